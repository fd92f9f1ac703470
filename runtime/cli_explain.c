/*
 * `ringshift explain`: shows guest blocks and their translations side by side.
 *
 * The kernel is loaded as `run` would load it.  Addresses that the boot page tables map are
 * explained as they are at the entry point; a kernel's own virtual addresses exist only once it has
 * set up its page tables, so with --after the guest runs for a while first.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/boot.h"
#include "runtime/cli.h"
#if __has_include("translator/explain.h")
#include "translator/explain.h"
#else
/* A build without the translator's half says so. */
static int explain_block(struct machine *m, uint64_t gva, FILE *out)
{
    return -ENOSYS;
}
#endif

static const char help_text[] =
    "Usage: ringshift explain --kernel FILE --at ADDRESS [OPTIONS]\n"
    "\n"
    "Shows the block of guest code at an address, its translation beside it, and what was\n"
    "rewritten and why.\n"
    "\n"
    "  --kernel FILE      a bzImage (vmlinuz) or an ELF64 kernel (vmlinux)\n"
    "  --at ADDRESS       the guest virtual address, or 'entry' for the kernel's entry point\n"
    "  --count N          so many blocks, one after the other in memory; 1 unless given\n"
    "  --after SECONDS    let the guest run first: a kernel's own addresses exist only once it\n"
    "                     has set up its page tables; 0 unless given\n"
    "  --append STRING    its command line; 'nokaslr nopti' unless given, so that addresses are\n"
    "                     those of System.map\n"
    "  --initrd FILE      its initial RAM disk\n"
    "\n"
    "Exit codes: as in 'ringshift help run'.\n"
    "\n"
    "Examples:\n"
    "  ringshift explain --kernel vmlinuz --at entry\n"
    "  ringshift explain --kernel vmlinuz --after 3 --at 0xffffffff81000000 --count 4\n";

struct options {
    const char *kernel, *initrd, *append;
    bool at_entry;
    uint64_t at, count, after;
};

struct explain {
    const struct options *options;
    struct guest_boot boot;
    int code; /* exit code of what was explained */
    bool done;
};

/* Prints the blocks.  explain_block() returns the length in bytes of the guest code it showed, or
 * a negative errno: -EFAULT where the address is not mapped. */
static int explain(struct machine *m, const struct options *o, uint64_t gva)
{
    for (uint64_t i = 0; i < o->count; i++) {
        int len = explain_block(m, gva, stdout);
        if (len == -ENOSYS) {
            cli_say("this build cannot explain translations");
            return CLI_UNSUPPORTED;
        }
        if (len == -EFAULT) {
            cli_say("0x%llx is not mapped in the guest%s", (unsigned long long)gva,
                    o->after ? "" : "; if it is an address of a running kernel, try --after 3");
            return CLI_FILE;
        }
        if (len <= 0) {
            cli_say("cannot explain 0x%llx: %s", (unsigned long long)gva, strerror(-len));
            return CLI_INTERNAL;
        }
        gva += (uint64_t)len;
    }
    return fflush(stdout) ? CLI_FILE : CLI_OK;
}

/* At the entry point: explains instead of starting, unless the guest is to run first. */
static int load(struct machine *m, void *opaque, char *err, unsigned errlen)
{
    struct explain *e = opaque;
    int code = guest_boot_load(m, &e->boot, err, errlen);

    if (code || e->options->after)
        return code;
    e->code = explain(m, e->options, e->options->at_entry ? e->boot.entry.rip : e->options->at);
    e->done = true;
    machine_quit(m);
    return 0;
}

struct alarm_clock {
    struct machine *machine;
    uint64_t seconds;
    pthread_t thread;
};

static void *ring(void *opaque)
{
    struct alarm_clock *a = opaque;
    struct timespec left = {.tv_sec = (time_t)a->seconds};

    while (nanosleep(&left, &left) && errno == EINTR)
        ;
    machine_quit(a->machine);
    return NULL;
}

static int run_guest(struct explain *e, struct machine *m)
{
    const struct options *o = e->options;
    struct alarm_clock a = {.machine = m, .seconds = o->after};
    char msg[400] = "";
    int code = o->after ? pthread_create(&a.thread, NULL, ring, &a) : 0;

    if (code) {
        cli_say("cannot start a thread: %s", strerror(code));
        return CLI_RESOURCE;
    }
    enum machine_result result = machine_run(m, msg, sizeof(msg));
    if (o->after) {
        pthread_cancel(a.thread);
        pthread_join(a.thread, NULL);
    }
    if (e->done)
        return e->code;
    if (result != MACHINE_QUIT) {
        cli_say("the guest ended within %llu seconds%s%s", (unsigned long long)o->after,
                *msg ? ": " : "", msg);
        return e->boot.load_error ? CLI_FILE : CLI_INTERNAL;
    }
    return explain(m, o, o->at_entry ? e->boot.entry.rip : o->at);
}

static int parse_options(int argc, char **argv, struct options *o)
{
    enum { KERNEL = 256, INITRD, APPEND, AT, COUNT, AFTER };
    static const struct option table[] = {
        {"kernel", required_argument, NULL, KERNEL},
        {"initrd", required_argument, NULL, INITRD},
        {"append", required_argument, NULL, APPEND},
        {"at", required_argument, NULL, AT},
        {"count", required_argument, NULL, COUNT},
        {"after", required_argument, NULL, AFTER},
        {0},
    };
    const char *at = NULL;
    int opt;

    *o = (struct options){.append = "nokaslr nopti", .count = 1};
    opterr = 0;
    while ((opt = getopt_long(argc, argv, "+:", table, NULL)) != -1) {
        switch (opt) {
        case KERNEL:
            o->kernel = optarg;
            break;
        case INITRD:
            o->initrd = optarg;
            break;
        case APPEND:
            o->append = optarg;
            break;
        case AT:
            at = optarg;
            break;
        case COUNT:
            if (cli_parse_number(optarg, &o->count) || !o->count || o->count > 100000) {
                cli_say("--count takes a number from 1 to 100000, not '%s'", optarg);
                return CLI_USAGE;
            }
            break;
        case AFTER:
            if (cli_parse_number(optarg, &o->after) || o->after > 86400) {
                cli_say("--after takes a number of seconds, a day at most, not '%s'", optarg);
                return CLI_USAGE;
            }
            break;
        default:
            return cli_bad_option("explain", opt, argv);
        }
    }
    if (optind < argc) {
        cli_say("explain takes options only, not '%s' (see 'ringshift help explain')",
                argv[optind]);
        return CLI_USAGE;
    }
    if (!o->kernel || !at) {
        cli_say("explain needs --%s (see 'ringshift help explain')",
                o->kernel ? "at ADDRESS" : "kernel FILE");
        return CLI_USAGE;
    }
    o->at_entry = !strcmp(at, "entry");
    if (!o->at_entry && cli_parse_number(at, &o->at)) {
        cli_say("--at takes an address such as 0xffffffff81000000, or 'entry', not '%s'", at);
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int run_explain(int argc, char **argv)
{
    struct options o;
    struct explain e = {.options = &o};
    struct machine *m;
    char err[400] = "";
    int code = parse_options(argc, argv, &o);

    if (code)
        return code;
    if (guest_boot_open(&e.boot, o.kernel, o.initrd, o.append, err, sizeof(err))) {
        cli_say("%s", err);
        return CLI_FILE;
    }
    struct machine_config cfg = {
        .memory = 512ull << 20,
        .cpus = 1,
        .engine = &bt_engine_ops,
        .engine_cfg.trace_hi = UINT64_MAX,
        .no_reboot = true,
        .load = load,
        .load_opaque = &e,
    };
    code = machine_create(&m, &cfg, err, sizeof(err));
    if (code) {
        cli_say("%s", *err ? err : strerror(-code));
        code = CLI_RESOURCE;
    } else {
        code = run_guest(&e, m);
        machine_destroy(m);
    }
    guest_boot_close(&e.boot);
    return code;
}

const struct cli_verb cli_explain = {
    .name = "explain",
    .summary = "show a block of guest code and its translation side by side",
    .help = help_text,
    .run = run_explain,
};
