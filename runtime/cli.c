/*
 * What the verbs share: finding them, messages, and parsing of numbers.
 */
#include "runtime/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const struct cli_verb *const cli_verbs[] = {&cli_run,  &cli_explain, &cli_ctl,
                                            &cli_help, &cli_version, NULL};

const struct cli_verb *cli_find(const char *name)
{
    for (const struct cli_verb *const *v = cli_verbs; *v; v++)
        if (!strcmp((*v)->name, name))
            return *v;
    return NULL;
}

void cli_say(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    fputs("ringshift: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
}

int cli_bad_option(const char *verb, int opt, char **argv)
{
    /* getopt is past a long option; of letters such as -kernel's, it may stand before the rest. */
    const char *text = optopt > 0 && optopt < 256 && argv[optind] && argv[optind][0] == '-' &&
                               argv[optind][1] != '-'
                           ? argv[optind]
                           : argv[optind - 1];

    if (opt == ':')
        cli_say("%s %s needs a value (see 'ringshift help %s')", verb, text, verb);
    else if (optopt >= 256 && strchr(text, '='))
        cli_say("%s %.*s takes no value (see 'ringshift help %s')", verb, (int)strcspn(text, "="),
                text, verb);
    else
        cli_say("%s does not know %s%s (see 'ringshift help %s')", verb, text,
                text[0] == '-' && text[1] != '-' ? "; options begin with --" : "", verb);
    return CLI_USAGE;
}

int cli_parse_size(const char *text, uint64_t *out)
{
    char *end;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno)
        return -ERANGE;
    unsigned shift = 0;
    switch (*end) {
    case 'k':
    case 'K':
        shift = 10;
        break;
    case 'm':
    case 'M':
        shift = 20;
        break;
    case 'g':
    case 'G':
        shift = 30;
        break;
    case 't':
    case 'T':
        shift = 40;
        break;
    case '\0':
        break;
    default:
        return -EINVAL;
    }
    if (*end && end[1])
        return -EINVAL;
    if (value > UINT64_MAX >> shift)
        return -ERANGE;
    *out = value << shift;
    return 0;
}

int cli_parse_number(const char *text, uint64_t *out)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    const char *digits = text + (hex ? 2 : 0);
    char *end;

    if (!*digits || strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789") != strlen(digits))
        return -EINVAL;
    errno = 0;
    *out = strtoull(digits, &end, hex ? 16 : 10);
    return errno ? -ERANGE : 0;
}

int cli_main(int argc, char **argv)
{
    static const char hint[] = "see 'ringshift help'";

    if (argc < 2) {
        cli_say("what shall I do? For example: ringshift run --kernel vmlinuz (%s)", hint);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h"))
        name = "help";
    if (!strcmp(name, "--version") || !strcmp(name, "-V"))
        name = "version";
    const struct cli_verb *verb = cli_find(name);
    if (!verb) {
        cli_say("%s is not a command of mine (%s)", name, hint);
        return CLI_USAGE;
    }
    /* Every verb explains itself. */
    for (int i = 2; verb != &cli_help && i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(verb->help, stdout);
            return CLI_OK;
        }
    return verb->run(argc - 1, argv + 1);
}
