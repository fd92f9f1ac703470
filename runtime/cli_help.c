/*
 * `ringshift help [VERB]`, also `ringshift --help`.
 */
#include "runtime/cli.h"

static const char overview_head[] =
    "Ringshift runs an x86 virtual machine in one ordinary process, by binary translation:\n"
    "no /dev/kvm, no root, no kernel module, an unmodified guest.\n"
    "\n"
    "Usage: ringshift VERB [OPTIONS]\n"
    "\n";

static const char overview_tail[] =
    "\n"
    "Examples:\n"
    "  ringshift run --kernel vmlinuz --initrd initramfs.cpio.gz\n"
    "        boots a Linux kernel; this terminal is its serial console, Ctrl-A X ends it\n"
    "  ringshift run --memory 1G --kernel vmlinuz --append 'console=ttyS0 quiet' --stats\n"
    "        with 1 GiB of memory, its own command line, and figures at the end\n"
    "  ringshift help run\n"
    "        every option of 'run', with the exit codes\n";

static int run_help(int argc, char **argv)
{
    if (argc > 2) {
        cli_say("help takes one verb at most, not also %s", argv[2]);
        return CLI_USAGE;
    }
    if (argc == 2) {
        const struct cli_verb *verb = cli_find(argv[1]);
        if (!verb) {
            cli_say("there is no help on %s, because there is no such verb (see 'ringshift help')",
                    argv[1]);
            return CLI_USAGE;
        }
        fputs(verb->help, stdout);
        return CLI_OK;
    }
    fputs(overview_head, stdout);
    for (const struct cli_verb *const *v = cli_verbs; *v; v++)
        printf("  %-10s%s\n", (*v)->name, (*v)->summary);
    fputs(overview_tail, stdout);
    return CLI_OK;
}

const struct cli_verb cli_help = {
    .name = "help",
    .summary = "explain a verb: ringshift help run",
    .help = "Usage: ringshift help [VERB]\n"
            "       ringshift VERB --help\n"
            "\n"
            "Explains a verb with its options and examples; without one, lists the verbs.\n",
    .run = run_help,
};
