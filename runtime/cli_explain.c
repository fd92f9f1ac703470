/*
 * `ringshift explain`: shows guest blocks and their translations side by side.
 *
 * The kernel is loaded as `run` would load it.  Addresses that the boot page tables map are
 * explained as they are at the entry point.  A kernel's own virtual addresses exist only once it
 * has set up its page tables: the guest runs until a block at the address is about to be
 * translated, with the registers as they are then, or for a given time.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mmu/mmu.h"
#include "runtime/boot.h"
#include "runtime/cli.h"
#include "translator/explain.h"

static const char help_text[] =
    "Usage: ringshift explain --kernel FILE --at ADDRESS [OPTIONS]\n"
    "\n"
    "Shows the block of guest code at an address, its translation beside it, and what was\n"
    "rewritten and why.\n"
    "\n"
    "  --kernel FILE      a bzImage (vmlinuz) or an ELF64 kernel (vmlinux)\n"
    "  --at ADDRESS       the guest virtual address, or 'entry' for the kernel's entry point\n"
    "  --count N          so many blocks, one after the other in memory; 1 unless given\n"
    "  --tier FORM        how memory is reached: 'soft' as code is translated first, 'window' as\n"
    "                     when it has become hot, or 'both'; both unless given\n"
    "  --after SECONDS    let the guest run so long first; unless given, it runs until a block\n"
    "                     at the address is first reached, 20 seconds at most, and not at\n"
    "                     all if the boot page tables map the address\n"
    "  --append STRING    its command line; 'nokaslr nopti' unless given, so that addresses are\n"
    "                     those of System.map\n"
    "  --initrd FILE      its initial RAM disk\n"
    "\n"
    "Exit codes: as in 'ringshift help run'.\n"
    "\n"
    "Examples:\n"
    "  ringshift explain --kernel vmlinuz --at entry\n"
    "  ringshift explain --kernel vmlinuz --at 0xffffffff81000000 --tier soft\n"
    "  ringshift explain --kernel vmlinuz --after 3 --at 0xffffffff81000000 --count 4\n";

struct options {
    const char *kernel, *initrd, *append;
    bool at_entry;
    uint64_t at, count, after;
    unsigned tiers; /* enum explain_tier */
};

struct explain {
    const struct options *options;
    struct guest_boot boot;
    int code; /* exit code of what was explained */
    bool done;
    struct machine *machine;
};

/* How long the guest may take to reach the address, in seconds.  Then what is there by now is
 * explained: startup_64, say, runs at its physical address only. */
#define REACH_LIMIT 20

/* Prints the blocks.  bt_explain() returns the length in bytes of the guest code it showed, or
 * a negative errno: -EFAULT where the address is not mapped. */
static int explain(struct machine *m, const struct options *o, uint64_t gva)
{
    for (uint64_t i = 0; i < o->count; i++) {
        int len = bt_explain(machine_engine(m), machine_vcpu(m, 0), gva, o->tiers, stdout);
        if (len == -ENOSYS) {
            cli_say("this build cannot explain translations");
            return CLI_UNSUPPORTED;
        }
        if (len == -EFAULT) {
            cli_say("0x%llx is not mapped in the guest", (unsigned long long)gva);
            return CLI_FILE;
        }
        if (len <= 0) {
            cli_say("cannot explain 0x%llx: %s", (unsigned long long)gva, strerror(-len));
            return CLI_INTERNAL;
        }
        gva += (uint64_t)len;
        if (i + 1 < o->count)
            putchar('\n');
    }
    return fflush(stdout) ? CLI_FILE : CLI_OK;
}

/* At the entry point: explains instead of starting, unless the guest is to run first. */
static int load(struct machine *m, void *opaque, char *err, unsigned errlen)
{
    struct explain *e = opaque;
    int code = guest_boot_load(m, &e->boot, err, errlen);
    uint64_t at = e->options->at_entry ? e->boot.entry.rip : e->options->at;
    struct mmu_xlat x;

    e->machine = m;
    if (code || e->options->after || !mmu_canonical(at) || mmu_peek(machine_vcpu(m, 0), at, &x) < 0)
        return code;
    e->code = explain(m, e->options, at);
    e->done = true;
    machine_quit(m);
    return 0;
}

/* The guest is about to run the block at the address for the first time. */
static void reached(void *opaque)
{
    struct explain *e = opaque;

    if (e->done || e->options->after)
        return;
    e->done = true; /* before: explaining translates the block, too */
    e->code = explain(e->machine, e->options, e->options->at);
    machine_quit(e->machine);
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
    struct alarm_clock a = {.machine = m, .seconds = o->after ? o->after : REACH_LIMIT};
    char msg[400] = "";
    int code = pthread_create(&a.thread, NULL, ring, &a);

    if (code) {
        cli_say("cannot start a thread: %s", strerror(code));
        return CLI_RESOURCE;
    }
    enum machine_result result = machine_run(m, msg, sizeof(msg));
    pthread_cancel(a.thread);
    pthread_join(a.thread, NULL);
    if (e->done)
        return e->code;
    if (result != MACHINE_QUIT) {
        cli_say("the guest ended within %llu seconds%s%s", (unsigned long long)a.seconds,
                *msg ? ": " : "", msg);
        return e->boot.load_error ? CLI_FILE : CLI_INTERNAL;
    }
    struct mmu_xlat x;
    if (!o->after && (!mmu_canonical(o->at) || mmu_peek(machine_vcpu(m, 0), o->at, &x) < 0)) {
        cli_say("the guest did not get to 0x%llx within %u seconds, and nothing is mapped there",
                (unsigned long long)o->at, REACH_LIMIT);
        return CLI_FILE;
    }
    if (!o->after)
        fprintf(stderr,
                "ringshift: the guest did not get to a block that starts at 0x%llx within %u "
                "seconds; this is what is there by now:\n",
                (unsigned long long)o->at, REACH_LIMIT);
    return explain(m, o, o->at_entry ? e->boot.entry.rip : o->at);
}

static int parse_options(int argc, char **argv, struct options *o)
{
    enum { KERNEL = 256, INITRD, APPEND, AT, COUNT, AFTER, TIER };
    static const struct option table[] = {
        {"kernel", required_argument, NULL, KERNEL}, {"initrd", required_argument, NULL, INITRD},
        {"append", required_argument, NULL, APPEND}, {"at", required_argument, NULL, AT},
        {"count", required_argument, NULL, COUNT},   {"after", required_argument, NULL, AFTER},
        {"tier", required_argument, NULL, TIER},     {0},
    };
    const char *at = NULL;
    int opt;

    *o = (struct options){
        .append = "nokaslr nopti", .count = 1, .tiers = EXPLAIN_SOFT | EXPLAIN_WINDOW};
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
        case TIER:
            o->tiers = !strcmp(optarg, "soft")     ? EXPLAIN_SOFT
                       : !strcmp(optarg, "window") ? EXPLAIN_WINDOW
                       : !strcmp(optarg, "both")   ? EXPLAIN_SOFT | EXPLAIN_WINDOW
                                                   : 0;
            if (!o->tiers) {
                cli_say("--tier knows soft, window and both, not '%s'", optarg);
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
    if (guest_boot_open(&e.boot, o.kernel, BOOT_AUTO, o.initrd, o.append, err, sizeof(err))) {
        cli_say("%s", err);
        return CLI_FILE;
    }
    struct machine_config cfg = {
        .memory = 512ull << 20,
        .cpus = 1,
        .engine = &bt_engine_ops,
        .engine_cfg.trace_hi = UINT64_MAX,
        .engine_cfg.reached = reached,
        .engine_cfg.reached_opaque = &e,
        .engine_cfg.reached_gva = o.at,
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
