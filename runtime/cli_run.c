/*
 * `ringshift run`: boots a kernel, with this terminal as its serial console.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/boot.h"
#include "runtime/cli.h"
#include "runtime/display.h"
#include "runtime/drive.h"
#include "runtime/monitor.h"
#include "runtime/terminal.h"
#include "runtime/trace.h"

#define MiB         (1024ull * 1024)
#define MEMORY_MIN  (16 * MiB)
#define MEMORY_MAX  (1024ull * 1024 * MiB) /* 1 TiB: more is surely a slip of the pen */
#define MEMORY_STD  (512 * MiB)
#define STD_CMDLINE "console=ttyS0"

static const char help_text[] =
    "Usage: ringshift run [OPTIONS] --kernel FILE\n"
    "       ringshift run [OPTIONS] --disk FILE | --firmware NAME\n"
    "\n"
    "Boots a kernel, or starts a PC's firmware, which boots from disks.  The guest's first serial\n"
    "port is this terminal; pipes, files and /dev/null do as well.\n"
    "\n"
    "The guest:\n"
    "  --kernel FILE      a Linux kernel (vmlinuz, vmlinux), a multiboot, multiboot2 or PVH\n"
    "                     kernel, or a boot sector\n"
    "  --kernel-format F  what that file is: 'linux', 'linux32' (by its 32-bit entry), 'elf',\n"
    "                     'pvh', 'multiboot', 'multiboot2', 'flat' (entered at 1 MiB in 32-bit\n"
    "                     mode) or 'bootsector' (at 0x7c00 in real mode); 'auto' unless given\n"
    "  --initrd FILE      its initial RAM disk; for multiboot and PVH kernels a list of\n"
    "                     modules: FILE[ ARGUMENTS],FILE...\n"
    "  --append STRING    its command line; for Linux '" STD_CMDLINE "' unless given\n"
    "  --disk FILE[,if=ide|ahci|virtio][,format=raw|qcow2][,readonly]\n"
    "                     a disk: an image file or a block device; repeat it for more\n"
    "  --cdrom FILE[,if=ide|ahci]\n"
    "                     a CD or DVD: an ISO image; '' is an empty drive, which is there\n"
    "                     anyway, and 'none' is none; repeat it for more\n"
    "  --floppy FILE[,readonly]\n"
    "                     a floppy disk: an image of up to 2.88M; '' is an empty drive, which is\n"
    "                     there anyway, and 'none' is none; twice for two drives\n"
    "  --snapshot         what the guest writes to its disks is lost at the end\n"
    "  --rng              a virtio entropy device, fed by the host\n"
    "  --firmware NAME    start in 'seabios' (the default with a disk and no kernel), 'ovmf' "
    "(UEFI)\n"
    "                     or an image FILE\n"
    "  --firmware-vars FILE  keep UEFI variables in this file, made if it does not exist\n"
    "  --boot ORDER       what the firmware boots from: letters, first to last, a floppy, c disk,\n"
    "                     d CD, n network; ',menu' after them, or 'menu' alone, offers a choice\n"
    "  --memory SIZE      its memory, with K, M or G; 512M unless given, 16M at least\n"
    "  --cpus N           its processors; only 1 is supported yet\n"
    "  --huge-pages MODE  'auto', guest memory in the host's huge pages where that pays and the host\n"
    "                     allows it, or 'off', which is the default\n"
    "  --cpu MODEL        what CPUID shows: 'host', all that this processor can and Ringshift\n"
    "                     passes on, or 'baseline', the same everywhere; 'host' unless given\n"
    "  --vga TYPE         'std', a VGA with keyboard and mouse, or 'none'; 'none' unless a "
    "display\n"
    "                     shows it\n"
    "  --display WAY      how to watch it: 'none', 'vnc[=ADDRESS:PORT][,password-file=FILE]'\n"
    "                     (127.0.0.1:5900 unless given), or 'sdl', a window; 'none' unless given\n"
    "  --monitor unix:PATH  a control socket, for 'ringshift ctl PATH' and programs\n"
    "  --no-reboot        end when the guest reboots, instead of starting it anew\n"
    "\n"
    "Seeing what happens:\n"
    "  --stats            figures on stderr at the end\n"
    "  --debugcon FILE    what the guest writes to the debug consoles (ports 0x402 and 0xe9);\n"
    "                     '-' is stderr\n"
    "  --trace KINDS      any of these, joined by commas:\n"
    "                       traps   exceptions, software interrupts, system calls\n"
    "                       irq     interrupts and NMIs delivered\n"
    "                       blocks  blocks translated, both sides disassembled\n"
    "                       enter   blocks entered, with the registers; very slow\n"
    "                       mmu     shadow misses, flushes, writes to translated code\n"
    "                       io      port and memory-mapped device accesses\n"
    "  --trace-file FILE  where the trace goes; stderr unless given\n"
    "  --trace-range LO-HI  only what concerns these guest addresses\n"
    "\n"
    "Testing Ringshift itself:\n"
    "  --mem MODE         how guest memory is reached: 'mixed', or 'soft' or 'window' alone\n"
    "  --verify           check all emitted code with a second, independent analysis\n"
    "  --chaos            tiny caches and random events: slow, and must change nothing\n"
    "\n"
    "Keys, when stdin is a terminal:\n"
    "  Ctrl-A X  end      Ctrl-A H  help     Ctrl-A P  power button\n"
    "  Ctrl-A B  break    Ctrl-A S  figures  Ctrl-A Ctrl-A  send Ctrl-A\n"
    "\n"
    "Exit codes:\n"
    "  0  the guest powered off, rebooted under --no-reboot, or Ctrl-A X was pressed\n"
    "  2  the command line is wrong\n"
    "  3  a file cannot be read, or holds no kernel that can be booted, or does not fit\n"
    "  4  the host refuses memory or another resource\n"
    "  5  the host's processor or kernel lacks a needed feature\n"
    "  6  the guest stopped by a triple fault\n"
    "  7  the guest went into a mode that is not supported yet\n"
    "  8  a failure inside Ringshift\n"
    "  (V << 1) | 1  the guest wrote V to the debug exit port, 0xf4\n"
    "  128+N  signal N ended it (141: the reader of stdout went away)\n"
    "\n"
    "Examples:\n"
    "  ringshift run --kernel build/guests/cloud/vmlinuz --initrd build/initramfs.cpio.gz\n"
    "  ringshift run --memory 1G --kernel vmlinuz --initrd initrd.gz \\\n"
    "      --append 'console=ttyS0 quiet'\n"
    "  ringshift run --kernel vmlinuz --no-reboot --append 'console=ttyS0 panic=-1' \\\n"
    "      </dev/null >boot.log\n"
    "  ringshift run --kernel vmlinuz --trace traps,irq --trace-file trace.txt\n";

struct options {
    const char *kernel, *initrd, *append, *trace_file, *cpu, *vga, *monitor;
    struct display_options display;
    enum boot_format format;
    const char *firmware, *firmware_vars, *boot_order, *debugcon;
    char boot_letters[8];
    bool boot_menu;
    uint64_t memory;
    bool no_reboot, stats, snapshot, rng, trace_range;
    struct drive_options *drive; /* allocated */
    unsigned ndrives;
    struct engine_config engine;
};

static int parse_memory(const char *text, uint64_t *out)
{
    int code = cli_parse_size(text, out);

    if (code == -ERANGE || (!code && *out > MEMORY_MAX)) {
        cli_say("--memory %s is more than any host has; the most is 1T", text);
        return CLI_USAGE;
    }
    if (code) {
        cli_say("--memory takes a number with K, M or G, such as 512M, not '%s'", text);
        return CLI_USAGE;
    }
    if (*out < MEMORY_MIN) {
        cli_say("--memory %s is less than the 16M that a guest needs at least%s", text,
                text[strlen(text) - 1] <= '9' ? "; did you mean M?" : "");
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int parse_cpus(const char *text)
{
    uint64_t n;

    if (cli_parse_number(text, &n) || n == 0) {
        cli_say("--cpus takes a number of processors, not '%s'", text);
        return CLI_USAGE;
    }
    if (n != 1) {
        cli_say("--cpus %s: guests with more than one processor are not supported yet; use 1",
                text);
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int parse_trace(const char *text, uint32_t *mask)
{
    static const struct {
        const char *name;
        uint32_t bit;
    } kinds[] = {{"traps", TRACE_TRAPS}, {"blocks", TRACE_BLOCKS}, {"irq", TRACE_IRQ},
                 {"mmu", TRACE_MMU},     {"io", TRACE_IO},         {"enter", TRACE_ENTER}};

    for (const char *at = text;;) {
        size_t len = strcspn(at, ","), i;
        for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
            if (strlen(kinds[i].name) == len && !strncmp(at, kinds[i].name, len))
                break;
        if (i == sizeof(kinds) / sizeof(kinds[0])) {
            cli_say("--trace knows traps, blocks, irq, mmu, io and enter, not '%.*s'", (int)len,
                    at);
            return CLI_USAGE;
        }
        *mask |= kinds[i].bit;
        if (!at[len])
            return CLI_OK;
        at += len + 1;
    }
}

static int parse_range(const char *text, struct engine_config *cfg)
{
    char lo[40];
    const char *dash = strchr(text, '-');

    if (dash && (size_t)(dash - text) < sizeof(lo)) {
        memcpy(lo, text, (size_t)(dash - text));
        lo[dash - text] = '\0';
        if (!cli_parse_number(lo, &cfg->trace_lo) && !cli_parse_number(dash + 1, &cfg->trace_hi) &&
            cfg->trace_lo <= cfg->trace_hi)
            return CLI_OK;
    }
    cli_say("--trace-range takes two addresses, such as 0xffffffff81000000-0xffffffff81ffffff, "
            "not '%s'",
            text);
    return CLI_USAGE;
}

static int parse_mem_mode(const char *text, enum mem_mode *out)
{
    static const char *const names[] = {
        [MEM_MIXED] = "mixed", [MEM_SOFT] = "soft", [MEM_WINDOW] = "window"};

    for (int i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) {
            *out = (enum mem_mode)i;
            return CLI_OK;
        }
    cli_say("--mem knows mixed, soft and window, not '%s'", text);
    return CLI_USAGE;
}

static int parse_huge_pages(const char *text, bool *on)
{
    *on = !strcmp(text, "auto");
    if (*on || !strcmp(text, "off"))
        return CLI_OK;
    cli_say("--huge-pages knows auto and off, not '%s'", text);
    return CLI_USAGE;
}

static int parse_format(const char *text, enum boot_format *out)
{
    for (unsigned i = 0; i < BOOT_FORMATS; i++)
        if (!strcmp(text, boot_format_names[i])) {
            *out = (enum boot_format)i;
            return CLI_OK;
        }
    cli_say("--kernel-format knows auto, linux, linux32, elf, pvh, multiboot, multiboot2, flat and "
            "bootsector, not '%s'",
            text);
    return CLI_USAGE;
}

static int add_drive(struct options *o, enum drive_kind kind, const char *text)
{
    struct drive_options *list = realloc(o->drive, (o->ndrives + 1) * sizeof(*list));
    char err[5000];

    if (!list) {
        cli_say("out of memory");
        return CLI_RESOURCE;
    }
    o->drive = list;
    if (drive_parse(&list[o->ndrives], kind, text, err, sizeof(err))) {
        cli_say("%s", err);
        return CLI_USAGE;
    }
    o->ndrives++;
    return CLI_OK;
}

/* Letters of acdn, each at most once; ",menu" or "menu". */
static int parse_boot(const char *text, struct options *o)
{
    size_t n = strcspn(text, ","), i = 0;
    bool menu = !strcmp(text, "menu"), good = menu || n <= 4;

    if (!menu) {
        for (; good && i < n; i++)
            good = strchr("acdn", text[i]) && !memchr(text, text[i], i);
        menu = !strcmp(text + n, ",menu");
        good = good && n && (menu || !text[n]);
    }
    if (!good) {
        cli_say("--boot takes letters of a, c, d and n, such as dc, 'menu', or both, such as "
                "dc,menu; not '%s'",
                text);
        return CLI_USAGE;
    }
    memcpy(o->boot_letters, text, i);
    o->boot_letters[i] = '\0';
    o->boot_order = i ? o->boot_letters : NULL;
    o->boot_menu = menu;
    return CLI_OK;
}

static int check_firmware_options(struct options *o)
{
    if (!o->firmware && !o->kernel && o->ndrives)
        o->firmware = "seabios";
    if (!o->firmware && (o->firmware_vars || o->boot_order || o->boot_menu)) {
        cli_say("%s is for firmware, which --kernel alone does not start; add --firmware",
                o->firmware_vars ? "--firmware-vars" : "--boot");
        return CLI_USAGE;
    }
    if (o->firmware && o->kernel) {
        cli_say("--kernel starts without firmware in this version; leave out --firmware");
        return CLI_USAGE;
    }
    if (!o->firmware && !o->kernel) {
        cli_say("run needs something to boot: --kernel FILE, a bzImage or an ELF64 kernel, --disk "
                "FILE, or --firmware NAME (see 'ringshift help run')");
        return CLI_USAGE;
    }
    if (!o->kernel && o->initrd) {
        cli_say("--initrd is for a kernel given with --kernel");
        return CLI_USAGE;
    }
    return CLI_OK;
}

/* A VGA is there when it is asked for, for firmware, and for a display to show. */
static bool has_vga(const struct options *o)
{
    if (o->vga)
        return !strcmp(o->vga, "std");
    return o->firmware || o->display.kind != DISPLAY_NONE;
}

static int parse_display(const char *text, struct display_options *out)
{
    char err[5000];

    if (!display_parse(out, text, err, sizeof(err)))
        return CLI_OK;
    cli_say("%s", err);
    return CLI_USAGE;
}

static int parse_monitor(const char *text, const char **path)
{
    if (!strncmp(text, "unix:", 5) && text[5]) {
        *path = text + 5;
        return CLI_OK;
    }
    cli_say("--monitor takes unix:PATH, such as unix:/tmp/vm.sock, not '%s'", text);
    return CLI_USAGE;
}

static int parse_options(int argc, char **argv, struct options *o)
{
    enum {
        KERNEL = 256,
        KERNEL_FORMAT,
        INITRD,
        APPEND,
        DISK,
        CDROM,
        FLOPPY,
        FIRMWARE,
        FIRMWARE_VARS,
        BOOT,
        DEBUGCON,
        SNAPSHOT,
        RNG,
        MEMORY,
        CPUS,
        CPU,
        VGA,
        DISPLAY,
        MONITOR,
        NO_REBOOT,
        STATS,
        TRACE,
        TRACE_FILE,
        TRACE_RANGE,
        HUGE_PAGES,
        MEM,
        VERIFY,
        CHAOS,
    };
    static const struct option table[] = {
        {"kernel", required_argument, NULL, KERNEL},
        {"kernel-format", required_argument, NULL, KERNEL_FORMAT},
        {"initrd", required_argument, NULL, INITRD},
        {"append", required_argument, NULL, APPEND},
        {"disk", required_argument, NULL, DISK},
        {"cdrom", required_argument, NULL, CDROM},
        {"floppy", required_argument, NULL, FLOPPY},
        {"firmware", required_argument, NULL, FIRMWARE},
        {"firmware-vars", required_argument, NULL, FIRMWARE_VARS},
        {"boot", required_argument, NULL, BOOT},
        {"debugcon", required_argument, NULL, DEBUGCON},
        {"snapshot", no_argument, NULL, SNAPSHOT},
        {"rng", no_argument, NULL, RNG},
        {"memory", required_argument, NULL, MEMORY},
        {"cpus", required_argument, NULL, CPUS},
        {"cpu", required_argument, NULL, CPU},
        {"vga", required_argument, NULL, VGA},
        {"display", required_argument, NULL, DISPLAY},
        {"monitor", required_argument, NULL, MONITOR},
        {"no-reboot", no_argument, NULL, NO_REBOOT},
        {"stats", no_argument, NULL, STATS},
        {"trace", required_argument, NULL, TRACE},
        {"trace-file", required_argument, NULL, TRACE_FILE},
        {"trace-range", required_argument, NULL, TRACE_RANGE},
        {"huge-pages", required_argument, NULL, HUGE_PAGES},
        {"mem", required_argument, NULL, MEM},
        {"verify", no_argument, NULL, VERIFY},
        {"chaos", no_argument, NULL, CHAOS},
        {0},
    };
    int opt, code = CLI_OK;

    *o = (struct options){.memory = MEMORY_STD, .cpu = "host"};
    o->engine.trace_hi = UINT64_MAX;
    o->engine.on_fatal = terminal_emergency_restore;
    opterr = 0;
    while (!code && (opt = getopt_long(argc, argv, "+:", table, NULL)) != -1) {
        switch (opt) {
        case KERNEL:
            o->kernel = optarg;
            break;
        case KERNEL_FORMAT:
            code = parse_format(optarg, &o->format);
            break;
        case INITRD:
            o->initrd = optarg;
            break;
        case APPEND:
            o->append = optarg;
            break;
        case DISK:
            code = add_drive(o, DRIVE_DISK, optarg);
            break;
        case CDROM:
            code = add_drive(o, DRIVE_CDROM, optarg);
            break;
        case FLOPPY:
            code = add_drive(o, DRIVE_FLOPPY, optarg);
            break;
        case FIRMWARE:
            o->firmware = optarg;
            break;
        case FIRMWARE_VARS:
            o->firmware_vars = optarg;
            break;
        case BOOT:
            code = parse_boot(optarg, o);
            break;
        case DEBUGCON:
            o->debugcon = optarg;
            break;
        case SNAPSHOT:
            o->snapshot = true;
            break;
        case RNG:
            o->rng = true;
            break;
        case MEMORY:
            code = parse_memory(optarg, &o->memory);
            break;
        case CPUS:
            code = parse_cpus(optarg);
            break;
        case CPU:
            o->cpu = optarg;
            break;
        case VGA:
            o->vga = optarg;
            break;
        case DISPLAY:
            code = parse_display(optarg, &o->display);
            break;
        case MONITOR:
            code = parse_monitor(optarg, &o->monitor);
            break;
        case NO_REBOOT:
            o->no_reboot = true;
            break;
        case STATS:
            o->stats = true;
            break;
        case TRACE:
            code = parse_trace(optarg, &o->engine.trace_mask);
            break;
        case TRACE_FILE:
            o->trace_file = optarg;
            break;
        case TRACE_RANGE:
            code = parse_range(optarg, &o->engine);
            o->trace_range = true;
            break;
        case HUGE_PAGES:
            code = parse_huge_pages(optarg, &o->engine.huge_pages);
            break;
        case MEM:
            code = parse_mem_mode(optarg, &o->engine.mem_mode);
            break;
        case VERIFY:
            o->engine.verify = true;
            break;
        case CHAOS:
            o->engine.chaos = true;
            break;
        default:
            code = cli_bad_option("run", opt, argv);
            break;
        }
    }
    if (code)
        return code;
    if (optind < argc) {
        cli_say("run takes options only, not '%s'; a kernel is named with --kernel", argv[optind]);
        return CLI_USAGE;
    }
    code = check_firmware_options(o);
    if (code)
        return code;
    if (strcmp(o->cpu, "host") && strcmp(o->cpu, "baseline")) {
        cli_say("--cpu knows host and baseline, not '%s'", o->cpu);
        return CLI_USAGE;
    }
    if (!o->engine.trace_mask && (o->trace_file || o->trace_range)) {
        cli_say("%s says how to trace, but not what: add --trace",
                o->trace_file ? "--trace-file" : "--trace-range");
        return CLI_USAGE;
    }
    if (o->vga && strcmp(o->vga, "std") && strcmp(o->vga, "none")) {
        cli_say("--vga knows std and none, not '%s'", o->vga);
        return CLI_USAGE;
    }
    if (o->display.kind != DISPLAY_NONE && !has_vga(o)) {
        cli_say("--display needs a VGA to show; leave out --vga none");
        return CLI_USAGE;
    }
    return CLI_OK;
}

/* Which exit code a failed machine_create() stands for. */
static int create_failure(int code)
{
    switch (code) {
    case -ENOMEM:
    case -ENOSPC:
    case -EFBIG:
    case -EAGAIN:
    case -EMFILE:
    case -ENFILE:
    case -EPERM:
        return CLI_RESOURCE;
    case -ENODEV:
    case -ENOSYS:
    case -ENOTSUP:
        return CLI_HOST;
    default:
        return CLI_INTERNAL;
    }
}

static int result_code(enum machine_result result, struct machine *m, const struct guest_boot *b,
                       const struct terminal *t)
{
    switch (result) {
    case MACHINE_POWEROFF:
    case MACHINE_REBOOT:
        return CLI_OK;
    case MACHINE_QUIT:
        return terminal_end_signal(t) ? 128 + terminal_end_signal(t) : CLI_OK;
    case MACHINE_EXIT:
        return machine_exit_code(m);
    case MACHINE_TRIPLE_FAULT:
        return CLI_TRIPLE;
    case MACHINE_REFUSED:
        return CLI_RESOURCE;
    case MACHINE_ERROR:
        break;
    }
    if (b->load_error)
        return CLI_FILE;
    return machine_vcpu(m, 0)->exit == VCPU_EXIT_UNSUPPORTED ? CLI_UNSUPPORTED : CLI_INTERNAL;
}

static void write_debugcon(void *opaque, const char *text, size_t len)
{
    FILE *f = opaque;

    fwrite(text, 1, len, f);
    fflush(f);
}

/* What watches and controls the machine from other threads than the vCPUs' and the event loop's. */
struct frontends {
    struct display *display;
    struct monitor *monitor;
};

static void stop_frontends(struct frontends *f)
{
    if (f->monitor)
        monitor_destroy(f->monitor);
    display_destroy(f->display);
    *f = (struct frontends){0};
}

static int start_frontends(struct frontends *f, const struct options *o, struct machine *m)
{
    char err[5000];
    int code;

    *f = (struct frontends){0};
    code = display_create(&f->display, m, &o->display, err, sizeof(err));
    if (!code && display_unprotected(&o->display))
        cli_say("warning: --display vnc listens beyond this machine without a password: whoever "
                "reaches port %u sees and controls the guest; set one with ,password-file=FILE, or "
                "listen on 127.0.0.1 and come in through an SSH tunnel",
                o->display.port);
    if (!code && o->monitor)
        code = monitor_create(&f->monitor, m, o->monitor, err, sizeof(err));
    if (!code)
        return CLI_OK;
    cli_say("%s", err);
    stop_frontends(f);
    return CLI_RESOURCE;
}

static int run_machine(const struct options *o, struct guest_boot *b, struct drive_set *drives,
                       struct terminal *t)
{
    char msg[400] = "";
    struct machine *m;
    struct machine_config cfg = {
        .memory = o->memory,
        .cpus = 1,
        .engine = &bt_engine_ops,
        .engine_cfg = o->engine,
        .serial0 = terminal_chardev(t),
        .drives = drives,
        .rng = o->rng,
        .vga = has_vga(o),
        .firmware = o->firmware ? &b->firmware : NULL,
        .boot_order = o->boot_order,
        .boot_menu = o->boot_menu,
        .serial_console = true,
        .debugcon = b->debugcon ? write_debugcon : NULL,
        .debugcon_opaque = b->debugcon,
        .vga_rom = b->vga_rom,
        .vga_rom_len = b->vga_rom_len,
        .stats = o->stats,
        .baseline_cpu = !strcmp(o->cpu, "baseline"),
        .no_reboot = o->no_reboot,
        .load = guest_boot_load,
        .load_opaque = b,
    };
    int code = machine_create(&m, &cfg, msg, sizeof(msg));

    if (code) {
        cli_say("%s", *msg ? msg : strerror(-code));
        return create_failure(code);
    }
    if (o->firmware)
        terminal_input_at_once(t);
    code = terminal_attach(t, m);
    if (code) {
        cli_say("cannot connect the console to the machine: %s", strerror(-code));
        terminal_detach(t);
        machine_destroy(m);
        return CLI_INTERNAL;
    }
    struct frontends frontends;
    code = start_frontends(&frontends, o, m);
    if (code) {
        terminal_detach(t);
        terminal_restore(t);
        machine_destroy(m);
        return code;
    }
    enum machine_result result = machine_run(m, msg, sizeof(msg));
    stop_frontends(&frontends);
    terminal_detach(t);
    terminal_restore(t);
    int exit_code = result_code(result, m, b, t);
    if (result == MACHINE_TRIPLE_FAULT && !*msg)
        snprintf(msg, sizeof(msg), "the guest stopped by a triple fault");
    if (exit_code == 128 + SIGPIPE)
        snprintf(msg, sizeof(msg), "ended because the reader of the guest's console went away");
    if (*msg)
        cli_say("%s", msg);
    if (o->stats)
        machine_print_stats(m, stderr);
    machine_destroy(m);
    return exit_code;
}

static int run_with_drives(struct options *o, struct guest_boot *b, struct drive_set *drives)
{
    struct terminal *t;
    char err[200];

    int code = terminal_create(&t, err, sizeof(err));
    if (code) {
        cli_say("%s", err);
        return CLI_RESOURCE;
    }
    if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO))
        cli_say("Ctrl-A X ends the virtual machine, Ctrl-A H shows more keys");
    code = run_machine(o, b, drives, t);
    terminal_destroy(t);
    return code;
}

static int run_with_files(struct options *o, struct guest_boot *b)
{
    enum drive_bus bus = o->kernel ? DRIVE_BUS_VIRTIO : DRIVE_BUS_IDE;
    struct drive_set drives;
    char err[5000];
    int code = CLI_OK;

    if (drives_init(&drives, err, sizeof(err))) {
        cli_say("%s", err);
        return CLI_RESOURCE;
    }
    for (unsigned i = 0; i < o->ndrives && !code; i++) {
        if (drives_add(&drives, &o->drive[i], bus, o->snapshot, err, sizeof(err))) {
            cli_say("%s", err);
            code = CLI_FILE;
        }
    }
    if (!code && drives_add_usual(&drives, o->drive, o->ndrives, o->snapshot, err, sizeof(err))) {
        cli_say("%s", err);
        code = CLI_RESOURCE;
    }
    if (!code)
        code = run_with_drives(o, b, &drives);
    if (drives_destroy(&drives, err, sizeof(err))) {
        cli_say("%s", err);
        code = code ? code : CLI_FILE;
    }
    return code;
}

static int run_options(struct options *o)
{
    struct guest_boot b;
    char err[5000];
    int code;

    uint64_t limit = host_memory_limit();
    if (o->memory > limit) {
        cli_say("the host has %llu MiB of memory and swap for us, less than --memory asks for; "
                "give the guest less",
                (unsigned long long)(limit / MiB));
        return CLI_RESOURCE;
    }
    if (guest_boot_open(&b, o->kernel, o->format, o->initrd, o->append, err, sizeof(err)) ||
        (o->firmware &&
         guest_boot_open_firmware(&b, o->firmware, o->firmware_vars, err, sizeof(err)))) {
        cli_say("%s", err);
        return CLI_FILE;
    }
    if (!o->append && b.format <= BOOT_ELF)
        b.cmdline = STD_CMDLINE;
    b.vga_text = has_vga(o);
    if (o->debugcon) {
        b.debugcon = strcmp(o->debugcon, "-") ? fopen(o->debugcon, "we") : stderr;
        if (!b.debugcon) {
            cli_say("cannot write the debug console to %s: %s", o->debugcon, strerror(errno));
            guest_boot_close(&b);
            return CLI_FILE;
        }
    }
    if (o->engine.trace_mask) {
        o->engine.trace = o->trace_file ? fopen(o->trace_file, "we") : stderr;
        if (!o->engine.trace) {
            cli_say("cannot write the trace to %s: %s", o->trace_file, strerror(errno));
            guest_boot_close(&b);
            return CLI_FILE;
        }
    }
    code = run_with_files(o, &b);
    if (b.debugcon && b.debugcon != stderr && fclose(b.debugcon)) {
        cli_say("the debug output in %s is incomplete: %s", o->debugcon, strerror(errno));
        code = code ? code : CLI_FILE;
    }
    if (o->engine.trace && o->engine.trace != stderr && fclose(o->engine.trace)) {
        cli_say("the trace in %s is incomplete: %s", o->trace_file, strerror(errno));
        code = code ? code : CLI_FILE;
    }
    guest_boot_close(&b);
    return code;
}

static int run_run(int argc, char **argv)
{
    struct options o;
    int code = parse_options(argc, argv, &o);

    if (!code)
        code = run_options(&o);
    free(o.drive);
    return code;
}

const struct cli_verb cli_run = {
    .name = "run",
    .summary = "boot a kernel; this terminal is its serial console",
    .help = help_text,
    .run = run_run,
};
