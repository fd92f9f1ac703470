/* Drives from the command line: see drive.h. */
#include "runtime/drive.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int say(char *err, size_t errlen, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int say(char *err, size_t errlen, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(err, errlen, format, ap);
    va_end(ap);
    return code;
}

/* Copies up to the first single comma, doubled ones as one.  Returns where it stopped, or NULL if
 * there is not enough room. */
static const char *copy_value(char *out, size_t size, const char *text)
{
    size_t len = 0;

    for (; *text; text++) {
        if (*text == ',') {
            if (text[1] != ',')
                break;
            text++;
        }
        if (len + 1 >= size)
            return NULL;
        out[len++] = *text;
    }
    out[len] = '\0';
    return text;
}

static int parse_bus(const char *name, enum drive_bus *out)
{
    static const char *const names[] = {
        [DRIVE_BUS_IDE] = "ide", [DRIVE_BUS_AHCI] = "ahci", [DRIVE_BUS_VIRTIO] = "virtio"};

    for (unsigned i = DRIVE_BUS_IDE; i <= DRIVE_BUS_VIRTIO; i++) {
        if (!strcmp(name, names[i])) {
            *out = (enum drive_bus)i;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_setting(struct drive_options *o, const char *setting, char *err, size_t errlen)
{
    if (!strncmp(setting, "if=", 3)) {
        if (parse_bus(setting + 3, &o->bus))
            return say(err, errlen, -EINVAL, "--disk: if= takes ide, ahci or virtio, not '%s'",
                       setting + 3);
    } else if (!strcmp(setting, "format=raw")) {
        o->format = BLOCK_FORMAT_RAW;
    } else if (!strcmp(setting, "format=qcow2")) {
        o->format = BLOCK_FORMAT_QCOW2;
    } else if (!strncmp(setting, "format=", 7)) {
        return say(err, errlen, -EINVAL, "--disk: format= takes raw or qcow2, not '%s'",
                   setting + 7);
    } else if (!strcmp(setting, "readonly")) {
        o->read_only = true;
    } else {
        return say(err, errlen, -EINVAL,
                   "--disk FILE takes if=, format= and readonly after commas, not '%s' (a comma in "
                   "a file's name is written twice)",
                   setting);
    }
    return 0;
}

int drive_parse(struct drive_options *out, enum drive_kind kind, const char *text, char *err,
                size_t errlen)
{
    struct drive_options o = {.kind = kind};
    const char *at = copy_value(o.path, sizeof(o.path), text);
    char setting[64];

    if (!at)
        return say(err, errlen, -EINVAL, "--disk: the file's name is too long");
    if (!o.path[0])
        return say(err, errlen, -EINVAL, "--disk needs the name of a file");
    while (*at) {
        int code;

        at = copy_value(setting, sizeof(setting), at + 1);
        if (!at)
            return say(err, errlen, -EINVAL, "--disk: what follows '%s' is too long", o.path);
        code = parse_setting(&o, setting, err, errlen);
        if (code)
            return code;
    }
    *out = o;
    return 0;
}

int drives_init(struct drive_set *set, char *err, size_t errlen)
{
    int code;

    *set = (struct drive_set){0};
    code = block_queue_create(&set->queue, 0);
    if (code)
        return say(err, errlen, code, "cannot set up disk I/O: %s", strerror(-code));
    return 0;
}

static unsigned count_kind(const struct drive_set *set, enum drive_kind kind)
{
    unsigned n = 0;

    for (unsigned i = 0; i < set->count; i++)
        n += set->drive[i].kind == kind;
    return n;
}

int drives_add(struct drive_set *set, const struct drive_options *o, enum drive_bus bus,
               bool snapshot, char *err, size_t errlen)
{
    static const char *const names[] = {
        [DRIVE_DISK] = "disk", [DRIVE_CDROM] = "cdrom", [DRIVE_FLOPPY] = "floppy"};
    struct block_open_options open = {
        .path = o->path, .format = o->format, .read_only = o->read_only, .snapshot = snapshot};
    struct drive *d = &set->drive[set->count];
    struct block_image *image = NULL;
    char name[16];
    int code;

    if (set->count == DRIVES_MAX)
        return say(err, errlen, -ENOSPC, "a machine has at most %d drives", DRIVES_MAX);
    if (o->path[0]) {
        code = block_image_open(&image, &open, err, errlen);
        if (code)
            return code;
    }
    snprintf(name, sizeof(name), "%s%u", names[o->kind], count_kind(set, o->kind));
    *d = (struct drive){.kind = o->kind, .bus = o->bus == DRIVE_BUS_DEFAULT ? bus : o->bus};
    code = block_device_create(&d->dev, set->queue, name, o->kind != DRIVE_DISK);
    if (code) {
        block_image_close(image);
        return say(err, errlen, code, "cannot set up the drive for '%s': %s", o->path,
                   strerror(-code));
    }
    block_device_set_medium(d->dev, image);
    set->count++;
    return 0;
}

int drives_destroy(struct drive_set *set, char *err, size_t errlen)
{
    int result = 0;

    for (unsigned i = 0; i < set->count; i++) {
        char name[sizeof(set->drive[i].dev->name)];
        int code;

        memcpy(name, set->drive[i].dev->name, sizeof(name));
        code = block_device_destroy(set->drive[i].dev);
        if (code && !result)
            result = say(err, errlen, code,
                         "not everything that the guest wrote to %s is on the disk: %s", name,
                         strerror(-code));
    }
    if (set->queue)
        block_queue_destroy(set->queue);
    *set = (struct drive_set){0};
    return result;
}
