/*
 * What the monitor's commands do.  Each takes its arguments from a JSON object and answers with
 * one; docs/monitor.md lists them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/vcpu.h"
#include "devices/vga.h"
#include "mmu/ram.h"
#include "runtime/drive.h"
#include "runtime/inspect.h"
#include "runtime/monitor_internal.h"
#include "runtime/screenshot.h"

#define READ_MEMORY_MAX (64u << 10)
#define SAVE_MEMORY_MAX (64ull << 30)

struct command {
    const char *name;
    int (*run)(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen);
};

/* -- Arguments --------------------------------------------------------------------------------- */

/* A required string, or NULL with a sentence in err. */
static const char *get_string(json_t *args, const char *name, char *err, size_t errlen)
{
    json_t *value = json_object_get(args, name);

    /* A NUL inside would cut what we act on from what was checked. */
    if (json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value))
        return json_string_value(value);
    fail_with(err, errlen, -EINVAL, "the argument \"%s\" is missing or no string", name);
    return NULL;
}

/* A number, as such or as a string in decimal or hexadecimal (JSON numbers end at 2^63). */
static int get_u64(json_t *args, const char *name, uint64_t *out, char *err, size_t errlen)
{
    json_t *value = json_object_get(args, name);
    char *end;

    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *out = (uint64_t)json_integer_value(value);
        return 0;
    }
    if (json_is_string(value)) {
        const char *text = json_string_value(value);

        errno = 0;
        *out = strtoull(text, &end, 0);
        if (*text >= '0' && *text <= '9' && !*end && !errno)
            return 0;
    }
    return fail_with(err, errlen, -EINVAL,
                     "the argument \"%s\" is missing or no number (\"0x...\" is one, too)", name);
}

static json_t *hex(uint64_t value)
{
    return json_sprintf("0x%" PRIx64, value);
}

/* -- The machine's life ------------------------------------------------------------------------ */

static int cmd_capabilities(struct monitor *mon, json_t *args, json_t **result, char *err,
                            size_t errlen)
{
    return 0;
}

static int cmd_query_version(struct monitor *mon, json_t *args, json_t **result, char *err,
                             size_t errlen)
{
    *result = json_pack("{s:s}", "package", "Ringshift " RINGSHIFT_VERSION);
    return 0;
}

static int cmd_query_status(struct monitor *mon, json_t *args, json_t **result, char *err,
                            size_t errlen)
{
    bool stopped = machine_stopped(mon->machine);

    *result =
        json_pack("{s:s, s:b}", "status", stopped ? "paused" : "running", "running", !stopped);
    return 0;
}

static int cmd_stop(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    machine_stop(mon->machine);
    return 0;
}

static int cmd_cont(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    machine_cont(mon->machine);
    return 0;
}

static int cmd_reset(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    machine_reset(mon->machine);
    return 0;
}

static int cmd_powerdown(struct monitor *mon, json_t *args, json_t **result, char *err,
                         size_t errlen)
{
    machine_lock(mon->machine);
    machine_power_button(mon->machine);
    machine_unlock(mon->machine);
    return 0;
}

static int cmd_quit(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    machine_quit(mon->machine);
    return 0;
}

/* -- The screen -------------------------------------------------------------------------------- */

static int cmd_screendump(struct monitor *mon, json_t *args, json_t **result, char *err,
                          size_t errlen)
{
    const char *path = get_string(args, "filename", err, errlen), *name = "png";
    enum screenshot_format format;
    const char *dot;

    if (!path)
        return -EINVAL;
    dot = strrchr(path, '.');
    if (dot && !strcmp(dot, ".ppm"))
        name = "ppm";
    if (dot && !strcmp(dot, ".txt"))
        name = "text";
    if (json_object_get(args, "format")) {
        name = get_string(args, "format", err, errlen);
        if (!name)
            return -EINVAL;
    }
    if (screenshot_format_by_name(name, &format))
        return fail_with(err, errlen, -EINVAL, "format is png, ppm or text");
    return screenshot_save(mon->machine, path, format, err, errlen);
}

static int cmd_query_screen(struct monitor *mon, json_t *args, json_t **result, char *err,
                            size_t errlen)
{
    static const char *const kinds[] = {
        [VGA_BLANK] = "blank",
        [VGA_TEXT] = "text",
        [VGA_GRAPHICS] = "graphics",
        [VGA_VBE] = "graphics",
    };
    struct vga_regs regs;
    struct vga_geometry g;
    const uint8_t *vram;
    char *text;

    if (!machine_screen(mon->machine, &regs, &vram))
        return fail_with(err, errlen, -ENODEV, "this machine has no screen; run it with --vga std");
    vga_geometry(&regs, &g);
    *result = json_pack("{s:s, s:i, s:i}", "mode", kinds[g.kind], "width", (int)g.width, "height",
                        (int)g.height);
    if (g.kind == VGA_VBE)
        json_object_set_new(*result, "depth", json_integer(g.bpp));
    if (g.kind == VGA_TEXT && !screenshot_text(mon->machine, &text, err, errlen)) {
        json_object_set_new(*result, "columns", json_integer(g.columns));
        json_object_set_new(*result, "rows", json_integer(g.rows));
        json_object_set_new(*result, "text", json_string(text));
        free(text);
    }
    return 0;
}

static int cmd_mouse(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    return monitor_mouse(mon, args, err, errlen);
}

static int cmd_input_events(struct monitor *mon, json_t *args, json_t **result, char *err,
                            size_t errlen)
{
    return monitor_input_events(mon, args, err, errlen);
}

/* -- Drives ------------------------------------------------------------------------------------ */

static const char *const kind_names[] = {
    [DRIVE_DISK] = "disk", [DRIVE_CDROM] = "cdrom", [DRIVE_FLOPPY] = "floppy"};

static json_t *describe_drive(const struct drive *d)
{
    const struct block_device *dev = d->dev;
    json_t *o = json_pack("{s:s, s:s, s:b, s:b, s:b}", "device", dev->name, "type",
                          kind_names[d->kind], "removable", dev->removable, "locked", dev->locked,
                          "tray_open", dev->removable && !dev->image);

    if (dev->image)
        json_object_set_new(o, "inserted",
                            json_pack("{s:s, s:b, s:I}", "drv", block_image_format(dev->image),
                                      "ro", dev->read_only, "size", (json_int_t)dev->size));
    json_object_set_new(
        o, "stats",
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "rd_operations",
                  (json_int_t)dev->ops[BLOCK_READ], "rd_bytes", (json_int_t)dev->bytes[BLOCK_READ],
                  "wr_operations", (json_int_t)dev->ops[BLOCK_WRITE], "wr_bytes",
                  (json_int_t)dev->bytes[BLOCK_WRITE], "flush_operations",
                  (json_int_t)dev->ops[BLOCK_FLUSH], "errors", (json_int_t)dev->errors));
    return o;
}

static int cmd_query_block(struct monitor *mon, json_t *args, json_t **result, char *err,
                           size_t errlen)
{
    const struct drive_set *set = machine_drives(mon->machine);

    *result = json_array();
    machine_lock(mon->machine);
    for (unsigned i = 0; set && i < set->count; i++)
        json_array_append_new(*result, describe_drive(&set->drive[i]));
    machine_unlock(mon->machine);
    return 0;
}

/* The drive that "device" (or QMP's "id") names, or NULL with a sentence in err. */
static const struct drive *find_drive(struct monitor *mon, json_t *args, char *err, size_t errlen)
{
    const struct drive_set *set = machine_drives(mon->machine);
    const char *name = get_string(args, json_object_get(args, "id") ? "id" : "device", err, errlen);
    const struct drive *d;

    if (!name)
        return NULL;
    d = set ? drives_find(set, name) : NULL;
    if (!d)
        fail_with(err, errlen, -ENODEV, "there is no drive %.40s; query-block lists them", name);
    return d;
}

static void tray_moved(struct monitor *mon, const char *name, bool open)
{
    json_t *data = json_pack("{s:s, s:s, s:b}", "device", name, "id", name, "tray-open", open);

    monitor_broadcast(mon, "DEVICE_TRAY_MOVED", data);
    json_decref(data);
}

/* Ejects, and puts the image at path in unless it is NULL; tells what happened to the tray. */
static int set_medium(struct monitor *mon, const struct drive *d, const char *path, json_t *args,
                      char *err, size_t errlen)
{
    bool force = json_is_true(json_object_get(args, "force"));
    bool read_only = json_is_true(json_object_get(args, "read-only"));
    const struct block_image *before, *after;
    int code;

    machine_lock(mon->machine);
    before = d->dev->image;
    code = path ? drive_change(d, path, read_only, force, err, errlen)
                : drive_eject(d, force, err, errlen);
    after = d->dev->image;
    machine_unlock(mon->machine);
    if (before && (!code || !after))
        tray_moved(mon, d->dev->name, true);
    if (path && !code)
        tray_moved(mon, d->dev->name, false);
    return code;
}

static int cmd_eject(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    const struct drive *d = find_drive(mon, args, err, errlen);

    return d ? set_medium(mon, d, NULL, args, err, errlen) : -ENODEV;
}

static int cmd_change(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    const struct drive *d = find_drive(mon, args, err, errlen);
    const char *path;

    if (!d)
        return -ENODEV;
    /* QEMU's human "change" calls it target. */
    path = get_string(args, json_object_get(args, "target") ? "target" : "filename", err, errlen);
    return path ? set_medium(mon, d, path, args, err, errlen) : -EINVAL;
}

/* -- Looking inside ---------------------------------------------------------------------------- */

static int cmd_query_stats(struct monitor *mon, json_t *args, json_t **result, char *err,
                           size_t errlen)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    bool held;

    if (!f)
        return fail_with(err, errlen, -ENOMEM, "no memory for the statistics");
    held = machine_hold(mon->machine);
    machine_print_stats(mon->machine, f);
    if (held)
        machine_release(mon->machine);
    fclose(f);
    *result = json_pack("{s:s, s:I}", "text", text, "monitor-commands", (json_int_t)mon->commands);
    free(text);
    return 0;
}

static json_t *describe_segment(const struct segment *s)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "selector", hex(s->sel), "base", hex(s->base), "limit",
                     hex(s->limit), "attributes", hex(s->attr));
}

static json_t *describe_cpu(const struct vcpu *v)
{
    static const char *const gpr[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const seg[SEG_COUNT] = {[SEG_ES] = "es", [SEG_CS] = "cs", [SEG_SS] = "ss",
                                               [SEG_DS] = "ds", [SEG_FS] = "fs", [SEG_GS] = "gs"};
    const struct {
        const char *name;
        uint64_t value;
    } system[] = {{"rip", v->rip},        {"rflags", v->rflags}, {"cr0", v->cr0}, {"cr2", v->cr2},
                  {"cr3", v->cr3},        {"cr4", v->cr4},       {"cr8", v->cr8}, {"efer", v->efer},
                  {"gdtr", v->gdtr.base}, {"idtr", v->idtr.base}};
    json_t *o = json_pack("{s:i, s:s, s:i, s:b}", "cpu-index", (int)v->id, "mode", inspect_mode(v),
                          "cpl", (int)v->cpl, "halted", (int)v->halted);
    json_t *registers = json_object(), *segments = json_object();

    for (unsigned i = 0; i < 16; i++)
        json_object_set_new(registers, gpr[i], hex(v->gpr[i]));
    for (unsigned i = 0; i < sizeof(system) / sizeof(system[0]); i++)
        json_object_set_new(registers, system[i].name, hex(system[i].value));
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (seg[i])
            json_object_set_new(segments, seg[i], describe_segment(&v->seg[i]));
    json_object_set_new(segments, "ldtr", describe_segment(&v->ldtr));
    json_object_set_new(segments, "tr", describe_segment(&v->tr));
    json_object_set_new(o, "registers", registers);
    json_object_set_new(o, "segments", segments);
    return o;
}

static int cmd_query_cpus(struct monitor *mon, json_t *args, json_t **result, char *err,
                          size_t errlen)
{
    bool held = machine_hold(mon->machine);
    const struct vcpu *v;

    *result = json_array();
    for (unsigned i = 0; (v = machine_vcpu(mon->machine, i)); i++)
        json_array_append_new(*result, describe_cpu(v));
    if (held)
        machine_release(mon->machine);
    return 0;
}

/* The vCPU whose addresses "address" means, NULL for physical ones. */
static int get_space(struct monitor *mon, json_t *args, const struct vcpu **v, char *err,
                     size_t errlen)
{
    uint64_t index = 0;

    *v = NULL;
    if (json_is_true(json_object_get(args, "physical")))
        return 0;
    if (json_object_get(args, "cpu-index") && get_u64(args, "cpu-index", &index, err, errlen))
        return -EINVAL;
    *v = index < MACHINE_MAX_CPUS ? machine_vcpu(mon->machine, (unsigned)index) : NULL;
    return *v ? 0 : fail_with(err, errlen, -EINVAL, "there is no such processor");
}

static int not_mapped(const struct vcpu *v, uint64_t where, char *err, size_t errlen)
{
    return fail_with(err, errlen, -EFAULT, "%s address %#" PRIx64 " is not memory of the guest",
                     v ? "linear" : "physical", where);
}

static int cmd_read_memory(struct monitor *mon, json_t *args, json_t **result, char *err,
                           size_t errlen)
{
    static const char digits[] = "0123456789abcdef";
    uint64_t address, size, where;
    const struct vcpu *v;
    uint8_t *bytes;
    char *text;
    bool held;
    int code = get_u64(args, "address", &address, err, errlen);

    if (!code)
        code = get_u64(args, "size", &size, err, errlen);
    if (!code)
        code = get_space(mon, args, &v, err, errlen);
    if (code)
        return code;
    if (size < 1 || size > READ_MEMORY_MAX)
        return fail_with(err, errlen, -EINVAL, "size is 1 to %u; memsave takes more",
                         READ_MEMORY_MAX);
    bytes = malloc(size);
    text = malloc(2 * size);
    code = bytes && text ? 0 : fail_with(err, errlen, -ENOMEM, "no memory for the bytes");
    if (!code) {
        held = machine_hold(mon->machine);
        code = inspect_read(mon->machine, v, address, bytes, size, &where);
        if (held)
            machine_release(mon->machine);
        if (code)
            not_mapped(v, where, err, errlen);
    }
    if (!code) {
        for (uint64_t i = 0; i < size; i++) {
            text[2 * i] = digits[bytes[i] >> 4];
            text[2 * i + 1] = digits[bytes[i] & 15];
        }
        *result =
            json_pack("{s:o, s:s%}", "address", hex(address), "bytes", text, (size_t)2 * size);
    }
    free(text);
    free(bytes);
    return code;
}

static int save_memory(struct monitor *mon, const struct vcpu *v, uint64_t address, uint64_t size,
                       int fd, char *err, size_t errlen)
{
    static const size_t chunk = 1u << 20;
    uint8_t *bytes = malloc(chunk);
    int code = bytes ? 0 : -ENOMEM;
    bool held = machine_hold(mon->machine);
    uint64_t where;

    while (size && !code) {
        size_t part = size < chunk ? size : chunk;

        code = inspect_read(mon->machine, v, address, bytes, part, &where);
        if (code)
            not_mapped(v, where, err, errlen);
        for (size_t at = 0; at < part && !code;) {
            ssize_t n = write(fd, bytes + at, part - at);

            if (n < 0 && errno != EINTR)
                code = -errno;
            else if (n > 0)
                at += (size_t)n;
        }
        address += part;
        size -= part;
    }
    if (held)
        machine_release(mon->machine);
    free(bytes);
    return code;
}

static int cmd_memsave(struct monitor *mon, json_t *args, json_t **result, char *err, size_t errlen)
{
    const char *path = get_string(args, "filename", err, errlen);
    uint64_t address, size;
    const struct vcpu *v;
    int fd, code = path ? get_u64(args, "val", &address, err, errlen) : -EINVAL;

    if (!code)
        code = get_u64(args, "size", &size, err, errlen);
    if (!code)
        code = get_space(mon, args, &v, err, errlen);
    if (code)
        return code;
    if (size < 1 || size > SAVE_MEMORY_MAX)
        return fail_with(err, errlen, -EINVAL,
                         "size is at least 1, and no more than any guest has");
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return fail_with(err, errlen, -errno, "cannot create %s: %s", path, strerror(errno));
    code = save_memory(mon, v, address, size, fd, err, errlen);
    if (close(fd) && !code)
        code = -errno;
    if (code) {
        unlink(path);
        if (!err[0])
            fail_with(err, errlen, code, "cannot write %s: %s", path, strerror(-code));
    }
    return code;
}

static int cmd_pmemsave(struct monitor *mon, json_t *args, json_t **result, char *err,
                        size_t errlen)
{
    json_object_set_new(args, "physical", json_true());
    return cmd_memsave(mon, args, result, err, errlen);
}

/* -- The table --------------------------------------------------------------------------------- */

static int cmd_query_commands(struct monitor *mon, json_t *args, json_t **result, char *err,
                              size_t errlen);

static const struct command commands[] = {
    {"qmp_capabilities", cmd_capabilities},
    {"query-commands", cmd_query_commands},
    {"query-version", cmd_query_version},
    {"query-status", cmd_query_status},
    {"stop", cmd_stop},
    {"cont", cmd_cont},
    {"system_reset", cmd_reset},
    {"system_powerdown", cmd_powerdown},
    {"quit", cmd_quit},
    {"screendump", cmd_screendump},
    {"query-screen", cmd_query_screen},
    {"mouse", cmd_mouse},
    {"input-send-event", cmd_input_events},
    {"query-block", cmd_query_block},
    {"eject", cmd_eject},
    {"change", cmd_change},
    {"blockdev-change-medium", cmd_change},
    {"query-stats", cmd_query_stats},
    {"query-cpus", cmd_query_cpus},
    {"read-memory", cmd_read_memory},
    {"memsave", cmd_memsave},
    {"pmemsave", cmd_pmemsave},
};

/* Those that are answered later. */
static const char *const typing_commands[] = {"send-key", "type"};

static int cmd_query_commands(struct monitor *mon, json_t *args, json_t **result, char *err,
                              size_t errlen)
{
    *result = json_array();
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        json_array_append_new(*result, json_pack("{s:s}", "name", commands[i].name));
    for (size_t i = 0; i < sizeof(typing_commands) / sizeof(typing_commands[0]); i++)
        json_array_append_new(*result, json_pack("{s:s}", "name", typing_commands[i]));
    return 0;
}

int monitor_execute(void *opaque, struct monitor_session *s, const char *command, json_t *args,
                    json_t **result, char *err, size_t errlen)
{
    struct monitor *mon = opaque;

    mon->commands++;
    if (!strcmp(command, "send-key"))
        return monitor_send_key(mon, s, args, err, errlen);
    if (!strcmp(command, "type"))
        return monitor_type(mon, s, args, err, errlen);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (!strcmp(commands[i].name, command)) {
            int code = commands[i].run(mon, args, result, err, errlen);

            if (code) {
                json_decref(*result);
                *result = NULL;
            }
            return code;
        }
    }
    return MONITOR_UNKNOWN;
}
