/*
 * `ringshift ctl`: the friendly client of the control socket (docs/monitor.md).
 */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "runtime/cli.h"

static const char help_text[] =
    "Usage: ringshift ctl SOCKET COMMAND [ARGUMENTS]\n"
    "\n"
    "Talks to a virtual machine that was started with --monitor unix:SOCKET.\n"
    "\n"
    "The machine:\n"
    "  status                   running or paused\n"
    "  stop, cont               stop the processors and the guest's clocks; go on\n"
    "  reset                    pull the reset line\n"
    "  powerdown                press the power button\n"
    "  quit                     end the virtual machine at once\n"
    "  events                   print what happens, until the machine ends\n"
    "\n"
    "Screen, keyboard and mouse (with --vga std):\n"
    "  screen                   print the text screen\n"
    "  screendump FILE [png|ppm|text]\n"
    "                           save the screen; the name's ending says how\n"
    "  send-key KEYS...         press keys: ctrl-alt-delete, f1, ret, up, ...\n"
    "  type TEXT                type; \\n is Enter, \\t Tab, \\e Escape, \\\\ a backslash\n"
    "  mouse DX DY [WHEEL]      move it\n"
    "  click [BUTTON]           left, right, middle, side or extra\n"
    "\n"
    "Drives:\n"
    "  block                    list them\n"
    "  eject DRIVE [--force]    take the medium out\n"
    "  change DRIVE FILE [--force]\n"
    "                           put another one in\n"
    "\n"
    "Looking inside:\n"
    "  cpus                     registers and modes\n"
    "  stats                    figures, as --stats prints them\n"
    "  memory ADDRESS [SIZE] [--physical]\n"
    "                           a hex dump\n"
    "  memsave ADDRESS SIZE FILE [--physical]\n"
    "                           guest memory into a new file\n"
    "\n"
    "  '{\"execute\": ...}'       send this JSON and print the answer as it is\n"
    "  -                        send each line of standard input, print each answer\n"
    "\n"
    "Exit codes: 0 done; 1 the machine refused, and says why; 2 the command line is wrong;\n"
    "3 there is nobody at SOCKET.\n"
    "\n"
    "Examples:\n"
    "  ringshift ctl vm.sock screendump shot.png\n"
    "  ringshift ctl vm.sock type 'ls -l\\n'\n"
    "  ringshift ctl vm.sock send-key ctrl-alt-delete\n";

struct connection {
    FILE *in;
    int fd;
    const char *path;
    char *line; /* getline()'s */
    size_t size;
};

static int open_connection(struct connection *c, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    *c = (struct connection){.fd = -1, .path = path};
    if (strlen(path) >= sizeof(address.sun_path)) {
        cli_say("%s is too long for the path of a socket", path);
        return CLI_FILE;
    }
    memcpy(address.sun_path, path, strlen(path));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof(address))) {
        cli_say("no virtual machine answers at %s: %s (start one with --monitor unix:%s)", path,
                strerror(errno), path);
        return CLI_FILE;
    }
    c->in = fdopen(dup(c->fd), "r");
    return c->in ? CLI_OK : CLI_RESOURCE;
}

static void close_connection(struct connection *c)
{
    if (c->in)
        fclose(c->in);
    if (c->fd >= 0)
        close(c->fd);
    free(c->line);
}

/* The next message, or NULL at the end. */
static json_t *receive(struct connection *c)
{
    ssize_t len = getline(&c->line, &c->size, c->in);

    return len > 0 ? json_loadb(c->line, (size_t)len, 0, NULL) : NULL;
}

static int send_line(struct connection *c, const char *text, size_t len)
{
    while (len) {
        ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Sends one line and waits for the answer to it; events in between are passed over. */
static json_t *ask_text(struct connection *c, const char *text)
{
    json_t *answer;

    if (send_line(c, text, strlen(text)) || send_line(c, "\n", 1))
        return NULL;
    while ((answer = receive(c)) && !json_object_get(answer, "return") &&
           !json_object_get(answer, "error"))
        json_decref(answer);
    return answer;
}

/* Executes a command; takes the reference to args.  CLI_OK and *result, a new reference. */
static int ask(struct connection *c, const char *command, json_t *args, json_t **result)
{
    json_t *message =
        json_pack("{s:s, s:o}", "execute", command, "arguments", args ? args : json_object());
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    json_t *answer, *error;
    int code = CLI_OK;

    json_decref(message);
    *result = NULL;
    if (!text) {
        cli_say("ctl: the arguments are no UTF-8 text");
        return CLI_USAGE;
    }
    answer = ask_text(c, text);
    free(text);
    if (!answer) {
        if (!strcmp(command, "quit"))
            return CLI_OK; /* it may be gone before it can say so */
        cli_say("the virtual machine at %s ended or hung up", c->path);
        return CLI_FILE;
    }
    error = json_object_get(answer, "error");
    if (error) {
        const char *text_of = json_string_value(json_object_get(error, "desc"));

        cli_say("%s", text_of ? text_of : "the command failed");
        code = CLI_REFUSED;
    } else {
        *result = json_incref(json_object_get(answer, "return"));
    }
    json_decref(answer);
    return code;
}

/* -- Commands ---------------------------------------------------------------------------------- */

/* One argument list is left: argv[0] is the command. */
struct ctl_command {
    const char *name;
    int min_args, max_args;
    const char *usage;
    int (*run)(struct connection *c, int argc, char **argv);
};

static int simple(struct connection *c, const char *command, json_t *args)
{
    json_t *result;
    int code = ask(c, command, args, &result);

    json_decref(result);
    return code;
}

static int ctl_status(struct connection *c, int argc, char **argv)
{
    json_t *result;
    int code = ask(c, "query-status", NULL, &result);

    if (!code)
        puts(json_string_value(json_object_get(result, "status")) ?: "unknown");
    json_decref(result);
    return code;
}

static int ctl_plain(struct connection *c, int argc, char **argv)
{
    static const char *const names[][2] = {{"stop", "stop"},
                                           {"cont", "cont"},
                                           {"reset", "system_reset"},
                                           {"powerdown", "system_powerdown"},
                                           {"quit", "quit"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(argv[0], names[i][0]))
            return simple(c, names[i][1], NULL);
    return CLI_INTERNAL;
}

static int ctl_events(struct connection *c, int argc, char **argv)
{
    json_t *message;

    while ((message = receive(c))) {
        const char *event = json_string_value(json_object_get(message, "event"));
        json_t *data = json_object_get(message, "data");

        if (event) {
            fputs(event, stdout);
            if (data) {
                char *text = json_dumps(data, 0);

                printf(" %s", text ? text : "");
                free(text);
            }
            putchar('\n');
            fflush(stdout);
        }
        json_decref(message);
    }
    return CLI_OK;
}

static int ctl_screen(struct connection *c, int argc, char **argv)
{
    json_t *result;
    int code = ask(c, "query-screen", NULL, &result);
    const char *text = json_string_value(json_object_get(result, "text"));

    if (!code && text) {
        fputs(text, stdout);
    } else if (!code) {
        cli_say("the screen shows no text (%s, %lld x %lld); take a picture with screendump",
                json_string_value(json_object_get(result, "mode")) ?: "unknown",
                (long long)json_integer_value(json_object_get(result, "width")),
                (long long)json_integer_value(json_object_get(result, "height")));
        code = CLI_REFUSED;
    }
    json_decref(result);
    return code;
}

/* The machine may have another working directory than we: paths go out absolute. */
static char *absolute(const char *path)
{
    char directory[PATH_MAX], *out;

    if (path[0] == '/' || !getcwd(directory, sizeof(directory)))
        return strdup(path);
    return asprintf(&out, "%s/%s", directory, path) < 0 ? NULL : out;
}

static int ctl_screendump(struct connection *c, int argc, char **argv)
{
    char *path = absolute(argv[1]);
    json_t *args = json_pack("{s:s}", "filename", path);
    int code;

    if (args && argc > 2)
        json_object_set_new(args, "format", json_string(argv[2]));
    code = simple(c, "screendump", args);
    free(path);
    return code;
}

static int ctl_send_key(struct connection *c, int argc, char **argv)
{
    int code = CLI_OK;

    for (int i = 1; i < argc && !code; i++)
        code = simple(c, "send-key", json_pack("{s:s}", "keys", argv[i]));
    return code;
}

static int ctl_type(struct connection *c, int argc, char **argv)
{
    char *text = malloc(strlen(argv[1]) + 1), *out = text;
    int code;

    if (!text)
        return CLI_RESOURCE;
    for (const char *at = argv[1]; *at; at++) {
        if (*at != '\\' || !at[1]) {
            *out++ = *at;
            continue;
        }
        at++;
        *out++ = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at == 'e' ? 0x1b : *at;
    }
    *out = '\0';
    code = simple(c, "type", json_pack("{s:s}", "text", text));
    free(text);
    return code;
}

static int number(const char *text, long *out)
{
    char *end;

    errno = 0;
    *out = strtol(text, &end, 0);
    if (!*text || *end || errno) {
        cli_say("ctl: '%s' is no number", text);
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int ctl_mouse(struct connection *c, int argc, char **argv)
{
    long v[3] = {0};

    for (int i = 1; i < argc; i++)
        if (number(argv[i], &v[i - 1]))
            return CLI_USAGE;
    return simple(c, "mouse",
                  json_pack("{s:I, s:I, s:I}", "dx", (json_int_t)v[0], "dy", (json_int_t)v[1], "dz",
                            (json_int_t)v[2]));
}

static int ctl_click(struct connection *c, int argc, char **argv)
{
    int code = simple(c, "mouse", json_pack("{s:[s]}", "buttons", argc > 1 ? argv[1] : "left"));

    usleep(50000);
    return code ? code : simple(c, "mouse", json_pack("{s:[]}", "buttons"));
}

static int ctl_block(struct connection *c, int argc, char **argv)
{
    json_t *result, *drive;
    size_t i;
    int code = ask(c, "query-block", NULL, &result);

    json_array_foreach(result, i, drive)
    {
        json_t *in = json_object_get(drive, "inserted"), *stats = json_object_get(drive, "stats");

        printf("%-10s %-7s", json_string_value(json_object_get(drive, "device")) ?: "?",
               json_string_value(json_object_get(drive, "type")) ?: "?");
        if (in)
            printf(" %s, %lld bytes%s", json_string_value(json_object_get(in, "drv")) ?: "?",
                   (long long)json_integer_value(json_object_get(in, "size")),
                   json_is_true(json_object_get(in, "ro")) ? ", read-only" : "");
        else
            printf(" empty");
        printf("%s; %lld reads, %lld writes\n",
               json_is_true(json_object_get(drive, "locked")) ? ", locked by the guest" : "",
               (long long)json_integer_value(json_object_get(stats, "rd_operations")),
               (long long)json_integer_value(json_object_get(stats, "wr_operations")));
    }
    if (!code && !json_array_size(result))
        puts("no drives");
    json_decref(result);
    return code;
}

/* Takes --NAME out of the arguments; true if it was there. */
static bool take_flag(int *argc, char **argv, const char *flag)
{
    for (int i = 1; i < *argc; i++) {
        if (!strcmp(argv[i], flag)) {
            memmove(&argv[i], &argv[i + 1], (size_t)(*argc - i) * sizeof(*argv));
            --*argc;
            return true;
        }
    }
    return false;
}

static int ctl_eject(struct connection *c, int argc, char **argv)
{
    bool force = take_flag(&argc, argv, "--force");

    return simple(c, "eject", json_pack("{s:s, s:b}", "device", argv[1], "force", force));
}

static int ctl_change(struct connection *c, int argc, char **argv)
{
    bool force = take_flag(&argc, argv, "--force");
    char *path = argc > 2 ? absolute(argv[2]) : NULL;
    int code;

    if (!path) {
        cli_say("ctl: change DRIVE FILE [--force]");
        return CLI_USAGE;
    }
    code =
        simple(c, "change",
               json_pack("{s:s, s:s, s:b}", "device", argv[1], "filename", path, "force", force));
    free(path);
    return code;
}

static int ctl_stats(struct connection *c, int argc, char **argv)
{
    json_t *result;
    int code = ask(c, "query-stats", NULL, &result);

    if (!code)
        fputs(json_string_value(json_object_get(result, "text")) ?: "", stdout);
    json_decref(result);
    return code;
}

static void print_cpu(json_t *cpu)
{
    json_t *registers = json_object_get(cpu, "registers"), *value;
    const char *name;
    unsigned n = 0;

    printf("CPU %lld: %s, CPL %lld%s\n",
           (long long)json_integer_value(json_object_get(cpu, "cpu-index")),
           json_string_value(json_object_get(cpu, "mode")) ?: "?",
           (long long)json_integer_value(json_object_get(cpu, "cpl")),
           json_is_true(json_object_get(cpu, "halted")) ? ", halted" : "");
    json_object_foreach(registers, name, value)
        printf("  %-6s %-18s%s", name, json_string_value(value) ?: "?", ++n % 3 ? " " : "\n");
    if (n % 3)
        putchar('\n');
    json_object_foreach(json_object_get(cpu, "segments"), name, value)
        printf("  %-6s %-8s base %-18s limit %-10s attributes %s\n", name,
               json_string_value(json_object_get(value, "selector")) ?: "?",
               json_string_value(json_object_get(value, "base")) ?: "?",
               json_string_value(json_object_get(value, "limit")) ?: "?",
               json_string_value(json_object_get(value, "attributes")) ?: "?");
}

static int ctl_cpus(struct connection *c, int argc, char **argv)
{
    json_t *result, *cpu;
    size_t i;
    int code = ask(c, "query-cpus", NULL, &result);

    json_array_foreach(result, i, cpu) print_cpu(cpu);
    json_decref(result);
    return code;
}

static unsigned nibble(char digit)
{
    return digit <= '9' ? (unsigned)(digit - '0') : (unsigned)(digit - 'a' + 10);
}

static void hex_dump(uint64_t address, const char *digits, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 16) {
        size_t n = bytes - at < 16 ? bytes - at : 16;

        printf("%016llx ", (unsigned long long)(address + at));
        for (size_t i = 0; i < 16; i++)
            if (i < n)
                printf(" %.2s", digits + 2 * (at + i));
            else
                fputs("   ", stdout);
        fputs("  ", stdout);
        for (size_t i = 0; i < n; i++) {
            const char *d = digits + 2 * (at + i);
            unsigned byte = nibble(d[0]) << 4 | nibble(d[1]);

            putchar(byte >= 0x20 && byte < 0x7f ? (int)byte : '.');
        }
        putchar('\n');
    }
}

static int ctl_memory(struct connection *c, int argc, char **argv)
{
    bool physical = take_flag(&argc, argv, "--physical");
    uint64_t address, size = 256;
    json_t *result;
    int code;

    if (argc < 2 || cli_parse_number(argv[1], &address) ||
        (argc > 2 && cli_parse_number(argv[2], &size))) {
        cli_say("ctl: memory ADDRESS [SIZE] [--physical], with numbers such as 0x7c00");
        return CLI_USAGE;
    }
    code = ask(c, "read-memory",
               json_pack("{s:s, s:I, s:b}", "address", argv[1], "size", (json_int_t)size,
                         "physical", physical),
               &result);
    if (!code) {
        json_t *bytes = json_object_get(result, "bytes");

        hex_dump(address, json_string_value(bytes) ?: "", json_string_length(bytes) / 2);
    }
    json_decref(result);
    return code;
}

static int ctl_memsave(struct connection *c, int argc, char **argv)
{
    bool physical = take_flag(&argc, argv, "--physical");
    char *path = argc > 3 ? absolute(argv[3]) : NULL;
    int code;

    if (!path) {
        cli_say("ctl: memsave ADDRESS SIZE FILE [--physical]");
        return CLI_USAGE;
    }
    code = simple(c, "memsave",
                  json_pack("{s:s, s:s, s:s, s:b}", "val", argv[1], "size", argv[2], "filename",
                            path, "physical", physical));
    free(path);
    return code;
}

/* -- JSON as it is ----------------------------------------------------------------------------- */

static int raw(struct connection *c, const char *text)
{
    json_t *answer = ask_text(c, text);
    int code = CLI_OK;

    if (!answer) {
        cli_say("the virtual machine at %s ended or hung up", c->path);
        return CLI_FILE;
    }
    json_dumpf(answer, stdout, 0);
    putchar('\n');
    if (json_object_get(answer, "error"))
        code = CLI_REFUSED;
    json_decref(answer);
    return code;
}

static int raw_lines(struct connection *c)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t len;
    int code = CLI_OK;

    while (code != CLI_FILE && (len = getline(&line, &size, stdin)) > 0) {
        int one;

        if (line[len - 1] == '\n')
            line[--len] = '\0';
        if (strspn(line, " \t\r") == (size_t)len)
            continue;
        one = raw(c, line);
        fflush(stdout);
        code = one ? one : code;
    }
    free(line);
    return code;
}

/* -- The verb ---------------------------------------------------------------------------------- */

static const struct ctl_command commands[] = {
    {"status", 0, 0, "", ctl_status},
    {"stop", 0, 0, "", ctl_plain},
    {"cont", 0, 0, "", ctl_plain},
    {"reset", 0, 0, "", ctl_plain},
    {"powerdown", 0, 0, "", ctl_plain},
    {"quit", 0, 0, "", ctl_plain},
    {"events", 0, 0, "", ctl_events},
    {"screen", 0, 0, "", ctl_screen},
    {"screendump", 1, 2, " FILE [png|ppm|text]", ctl_screendump},
    {"send-key", 1, 100, " KEYS...", ctl_send_key},
    {"type", 1, 1, " TEXT", ctl_type},
    {"mouse", 2, 3, " DX DY [WHEEL]", ctl_mouse},
    {"click", 0, 1, " [BUTTON]", ctl_click},
    {"block", 0, 0, "", ctl_block},
    {"eject", 1, 2, " DRIVE [--force]", ctl_eject},
    {"change", 2, 3, " DRIVE FILE [--force]", ctl_change},
    {"stats", 0, 0, "", ctl_stats},
    {"cpus", 0, 0, "", ctl_cpus},
    {"memory", 1, 3, " ADDRESS [SIZE] [--physical]", ctl_memory},
    {"memsave", 3, 4, " ADDRESS SIZE FILE [--physical]", ctl_memsave},
};

static const struct ctl_command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (!strcmp(commands[i].name, name))
            return &commands[i];
    return NULL;
}

static int run_ctl(int argc, char **argv)
{
    const struct ctl_command *command = NULL;
    struct connection c;
    json_t *greeting;
    int code;

    if (argc < 3) {
        cli_say("ctl needs the path of a socket and a command (see 'ringshift help ctl')");
        return CLI_USAGE;
    }
    if (argv[2][0] != '{' && strcmp(argv[2], "-")) {
        command = find_command(argv[2]);
        if (!command) {
            cli_say("ctl does not know the command %s (see 'ringshift help ctl')", argv[2]);
            return CLI_USAGE;
        }
        if (argc - 3 < command->min_args || argc - 3 > command->max_args) {
            cli_say("usage: ringshift ctl SOCKET %s%s", command->name, command->usage);
            return CLI_USAGE;
        }
    } else if (argc > 3) {
        cli_say("ctl takes nothing after JSON, not also '%s'", argv[3]);
        return CLI_USAGE;
    }
    code = open_connection(&c, argv[1]);
    if (!code) {
        greeting = receive(&c);
        if (!json_object_get(greeting, "QMP")) {
            const char *why =
                json_string_value(json_object_get(json_object_get(greeting, "error"), "desc"));

            cli_say("%s: %s", argv[1], why ? why : "whoever answers there is no virtual machine");
            code = CLI_FILE;
        }
        json_decref(greeting);
    }
    if (!code && command)
        code = command->run(&c, argc - 2, argv + 2);
    else if (!code)
        code = strcmp(argv[2], "-") ? raw(&c, argv[2]) : raw_lines(&c);
    close_connection(&c);
    return code;
}

const struct cli_verb cli_ctl = {
    .name = "ctl",
    .summary = "talk to a running virtual machine: screen, keys, drives, stop and go on",
    .help = help_text,
    .run = run_ctl,
};
