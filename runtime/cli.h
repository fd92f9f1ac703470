/*
 * The command line.  Each verb of `ringshift VERB` is one file, runtime/cli_VERB.c, that exports a
 * `struct cli_verb`; runtime/cli.c lists them and holds what they share.
 */
#ifndef RINGSHIFT_RUNTIME_CLI_H
#define RINGSHIFT_RUNTIME_CLI_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The exit codes, as the man page documents them. A signal N that ends us gives 128 + N. */
enum cli_exit {
    CLI_OK = 0,          /* the guest powered off, rebooted under --no-reboot, or Ctrl-A X */
    CLI_REFUSED = 1,     /* ctl: the virtual machine refused the command                   */
    CLI_USAGE = 2,       /* the command line is wrong                                      */
    CLI_FILE = 3,        /* a file cannot be read, or is no kernel that can be booted      */
    CLI_RESOURCE = 4,    /* the host refuses memory or another resource                    */
    CLI_HOST = 5,        /* the host lacks a needed feature                                */
    CLI_TRIPLE = 6,      /* the guest stopped by a triple fault                            */
    CLI_UNSUPPORTED = 7, /* the guest went where this version cannot follow                */
    CLI_INTERNAL = 8,    /* a failure inside Ringshift                                     */
};

struct cli_verb {
    const char *name;
    const char *summary; /* for the list in `ringshift help` */
    const char *help;    /* the whole text of `ringshift help VERB` */
    /* argv[0] is the verb. Returns the exit code. */
    int (*run)(int argc, char **argv);
};

extern const struct cli_verb cli_run, cli_explain, cli_ctl, cli_help, cli_version;

/* NULL-terminated. */
extern const struct cli_verb *const cli_verbs[];

/* The verb of that name, or NULL. */
const struct cli_verb *cli_find(const char *name);

/* `ringshift` with all its arguments; returns the exit code. */
int cli_main(int argc, char **argv);

/* Prints "ringshift: <sentence>" on stderr. */
void cli_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says what getopt_long() rejected when it returned `opt` ('?' or ':'), and how to get help.
 * Returns CLI_USAGE. */
int cli_bad_option(const char *verb, int opt, char **argv);

/* Strict: digits, then nothing or K, M, G or T (powers of 1024, either case). -EINVAL, -ERANGE. */
int cli_parse_size(const char *text, uint64_t *out);
/* Strict: decimal, or hexadecimal after 0x, up to the end of text. -EINVAL, -ERANGE. */
int cli_parse_number(const char *text, uint64_t *out);

#endif
