/*
 * `ringshift version`, also `ringshift --version`.
 */
#include "runtime/cli.h"

static int run_version(int argc, char **argv)
{
    if (argc > 1) {
        cli_say("version takes no arguments, not %s", argv[1]);
        return CLI_USAGE;
    }
    puts("ringshift " RINGSHIFT_VERSION);
    return fflush(stdout) ? CLI_FILE : CLI_OK;
}

const struct cli_verb cli_version = {
    .name = "version",
    .summary = "print the version",
    .help = "Usage: ringshift version\n"
            "       ringshift --version\n"
            "\n"
            "Prints the program's name and version.\n",
    .run = run_version,
};
