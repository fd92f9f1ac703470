/* Drives from the command line: see drive.h. */
#include "runtime/drive.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "devices/block_image.h"
#include "runtime/error.h"

#define CD_SECTOR  2048u
#define IDE_PLACES 4

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

static const char *option_name(enum drive_kind kind)
{
    return kind == DRIVE_CDROM ? "--cdrom" : kind == DRIVE_FLOPPY ? "--floppy" : "--disk";
}

/* Which settings an option takes, for its error messages. */
static const char *option_settings(enum drive_kind kind)
{
    return kind == DRIVE_CDROM    ? "if="
           : kind == DRIVE_FLOPPY ? "readonly"
                                  : "if=, format= and readonly";
}

static int parse_setting(struct drive_options *o, const char *setting, char *err, size_t errlen)
{
    const char *name = option_name(o->kind);

    if (o->kind != DRIVE_FLOPPY && !strncmp(setting, "if=", 3)) {
        if (parse_bus(setting + 3, &o->bus) ||
            (o->kind == DRIVE_CDROM && o->bus == DRIVE_BUS_VIRTIO))
            return fail_with(err, errlen, -EINVAL, "%s: if= takes %s, not '%s'", name,
                             o->kind == DRIVE_CDROM ? "ide or ahci" : "ide, ahci or virtio",
                             setting + 3);
    } else if (o->kind == DRIVE_DISK && !strcmp(setting, "format=raw")) {
        o->format = BLOCK_FORMAT_RAW;
    } else if (o->kind == DRIVE_DISK && !strcmp(setting, "format=qcow2")) {
        o->format = BLOCK_FORMAT_QCOW2;
    } else if (o->kind == DRIVE_DISK && !strncmp(setting, "format=", 7)) {
        return fail_with(err, errlen, -EINVAL, "%s: format= takes raw or qcow2, not '%s'", name,
                         setting + 7);
    } else if (o->kind != DRIVE_CDROM && !strcmp(setting, "readonly")) {
        o->read_only = true;
    } else {
        return fail_with(
            err, errlen, -EINVAL,
            "%s FILE takes %s after a comma, not '%s' (a comma in a file's name is written "
            "twice)",
            name, option_settings(o->kind), setting);
    }
    return 0;
}

int drive_parse(struct drive_options *out, enum drive_kind kind, const char *text, char *err,
                size_t errlen)
{
    struct drive_options o = {.kind = kind};
    const char *at = copy_value(o.path, sizeof(o.path), text), *name = option_name(kind);
    char setting[64];

    if (!at)
        return fail_with(err, errlen, -EINVAL, "%s: the file's name is too long", name);
    if (!o.path[0] && kind == DRIVE_DISK)
        return fail_with(err, errlen, -EINVAL, "%s needs the name of a file", name);
    o.absent = kind != DRIVE_DISK && !strcmp(o.path, "none");
    if (o.absent && *at)
        return fail_with(err, errlen, -EINVAL,
                         "%s none means no drive, which has no settings (./none is a file)", name);
    /* Discs and floppies are sectors and nothing else. */
    if (kind != DRIVE_DISK)
        o.format = BLOCK_FORMAT_RAW;
    if (kind == DRIVE_CDROM) {
        o.read_only = true;
        o.bus = DRIVE_BUS_IDE;
    }
    while (*at) {
        int code;

        at = copy_value(setting, sizeof(setting), at + 1);
        if (!at)
            return fail_with(err, errlen, -EINVAL, "%s: what follows '%s' is too long", name,
                             o.path);
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
        return fail_with(err, errlen, code, "cannot set up disk I/O: %s", strerror(-code));
    return 0;
}

static unsigned count_kind(const struct drive_set *set, enum drive_kind kind)
{
    unsigned n = 0;

    for (unsigned i = 0; i < set->count; i++)
        n += set->drive[i].kind == kind;
    return n;
}

/* A last sector that the file ends in is whole. */
static uint64_t disc_image_size(uint64_t bytes)
{
    return (bytes + CD_SECTOR - 1) / CD_SECTOR * CD_SECTOR;
}

static int check_floppy(const struct block_image *image, const char *path, char *err, size_t errlen)
{
    if (floppy_format(image->size))
        return 0;
    return fail_with(
        err, errlen, -EINVAL,
        "'%s' is larger than the largest floppy disk (2.88M, 2949120 bytes); use --disk for "
        "a hard disk's image",
        path);
}

/* Opens the image that o describes and makes sure that it is one for this kind of drive. */
static int open_medium(struct block_image **out, const struct drive_options *o, bool snapshot,
                       char *err, size_t errlen)
{
    struct block_open_options open = {.path = o->path,
                                      .format = o->format,
                                      .read_only = o->read_only,
                                      .snapshot = snapshot,
                                      .fit = o->kind == DRIVE_FLOPPY  ? floppy_image_size
                                             : o->kind == DRIVE_CDROM ? disc_image_size
                                                                      : NULL};
    int code = block_image_open(out, &open, err, errlen);

    if (!code && o->kind == DRIVE_FLOPPY) {
        code = check_floppy(*out, o->path, err, errlen);
        if (code)
            block_image_close(*out);
    }
    return code;
}

int drives_add(struct drive_set *set, const struct drive_options *o, enum drive_bus bus,
               bool snapshot, char *err, size_t errlen)
{
    static const char *const names[] = {
        [DRIVE_DISK] = "disk", [DRIVE_CDROM] = "cdrom", [DRIVE_FLOPPY] = "floppy"};
    struct drive *d = &set->drive[set->count];
    struct block_image *image = NULL;
    char name[16];
    int code;

    if (o->absent)
        return 0;
    if (set->count == DRIVES_MAX)
        return fail_with(err, errlen, -ENOSPC, "a machine has at most %d drives", DRIVES_MAX);
    if (o->path[0]) {
        code = open_medium(&image, o, snapshot, err, errlen);
        if (code)
            return code;
    }
    snprintf(name, sizeof(name), "%s%u", names[o->kind], count_kind(set, o->kind));
    *d = (struct drive){
        .kind = o->kind, .bus = o->bus == DRIVE_BUS_DEFAULT ? bus : o->bus, .snapshot = snapshot};
    code = block_device_create(&d->dev, set->queue, name, o->kind != DRIVE_DISK);
    if (code) {
        block_image_close(image);
        return fail_with(err, errlen, code, "cannot set up the drive for '%s': %s", o->path,
                         strerror(-code));
    }
    block_device_set_medium(d->dev, image);
    if (o->kind == DRIVE_FLOPPY)
        d->floppy = floppy_drive_for(floppy_format(d->dev->size));
    set->count++;
    return 0;
}

static bool mentions(const struct drive_options *o, unsigned n, enum drive_kind kind)
{
    for (unsigned i = 0; i < n; i++)
        if (o[i].kind == kind)
            return true;
    return false;
}

static unsigned count_ide(const struct drive_set *set)
{
    unsigned n = 0;

    for (unsigned i = 0; i < set->count; i++)
        n += set->drive[i].kind != DRIVE_FLOPPY && set->drive[i].bus == DRIVE_BUS_IDE;
    return n;
}

int drives_add_usual(struct drive_set *set, const struct drive_options *o, unsigned n,
                     bool snapshot, char *err, size_t errlen)
{
    struct drive_options cd = {
        .kind = DRIVE_CDROM, .bus = DRIVE_BUS_IDE, .format = BLOCK_FORMAT_RAW, .read_only = true};
    struct drive_options floppy = {.kind = DRIVE_FLOPPY, .format = BLOCK_FORMAT_RAW};
    int code = 0;

    if (!mentions(o, n, DRIVE_CDROM) && count_ide(set) < IDE_PLACES && set->count < DRIVES_MAX)
        code = drives_add(set, &cd, DRIVE_BUS_IDE, snapshot, err, errlen);
    if (!code && !mentions(o, n, DRIVE_FLOPPY) && set->count < DRIVES_MAX)
        code = drives_add(set, &floppy, DRIVE_BUS_DEFAULT, snapshot, err, errlen);
    return code;
}

const struct drive *drives_find(const struct drive_set *set, const char *name)
{
    for (unsigned i = 0; i < set->count; i++)
        if (!strcmp(set->drive[i].dev->name, name))
            return &set->drive[i];
    return NULL;
}

/* Whether the medium may go. */
static int may_eject(const struct drive *d, bool force, char *err, size_t errlen)
{
    struct block_device *dev = d->dev;

    if (!dev->removable)
        return fail_with(err, errlen, -EINVAL, "%s is no drive whose medium can be changed",
                         dev->name);
    if (!dev->image || !dev->locked)
        return 0;
    if (force) {
        dev->locked = false;
        return 0;
    }
    if (dev->eject_requested)
        dev->eject_requested(dev->media_opaque);
    return fail_with(
        err, errlen, -EBUSY,
        "the guest has locked %s; it has been asked to eject the medium: try again, or "
        "force it",
        dev->name);
}

static int set_medium(const struct drive *d, struct block_image *image, char *err, size_t errlen)
{
    int code = block_device_set_medium(d->dev, image);

    if (code)
        return fail_with(err, errlen, code,
                         "not everything that the guest wrote to the old medium of %s is on it: %s",
                         d->dev->name, strerror(-code));
    return 0;
}

int drive_eject(const struct drive *d, bool force, char *err, size_t errlen)
{
    int code = may_eject(d, force, err, errlen);

    return code ? code : set_medium(d, NULL, err, errlen);
}

int drive_change(const struct drive *d, const char *path, bool read_only, bool force, char *err,
                 size_t errlen)
{
    struct drive_options o = {.kind = d->kind, .format = BLOCK_FORMAT_RAW, .read_only = read_only};
    struct block_image *image = NULL;
    int code = may_eject(d, force, err, errlen);

    if (code)
        return code;
    if (d->kind == DRIVE_CDROM)
        o.read_only = true;
    if ((size_t)snprintf(o.path, sizeof(o.path), "%s", path) >= sizeof(o.path) || !*path)
        return fail_with(err, errlen, -EINVAL, "%s needs the name of an image file", d->dev->name);
    code = open_medium(&image, &o, d->snapshot, err, errlen);
    if (!code && d->kind == DRIVE_FLOPPY && !floppy_fits(d->floppy, floppy_format(image->size))) {
        uint64_t kib = image->size / 1024;

        block_image_close(image);
        return fail_with(err, errlen, -EINVAL,
                         "'%s' is a disk of %" PRIu64
                         " KiB, which %s, a %s drive, cannot read; give it "
                         "with --floppy when the machine starts to have a drive for it",
                         path, kib, d->dev->name, floppy_drive_name(d->floppy));
    }
    return code ? code : set_medium(d, image, err, errlen);
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
            result = fail_with(err, errlen, code,
                               "not everything that the guest wrote to %s is on the disk: %s", name,
                               strerror(-code));
    }
    if (set->queue)
        block_queue_destroy(set->queue);
    *set = (struct drive_set){0};
    return result;
}
