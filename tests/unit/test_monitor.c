/*
 * The monitor: what a client may send and what comes back, without a socket; then the socket itself
 * with a machine behind it that was never started.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <linux/input-event-codes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "runtime/display.h"
#include "runtime/keys.h"
#include "runtime/machine.h"
#include "runtime/monitor.h"
#include "runtime/monitor_session.h"

static struct monitor_session s;
static unsigned calls;
static char last_command[64];

/* "fail" fails, "later" waits, "echo" answers with its arguments; others are unknown. */
static int execute(void *opaque, struct monitor_session *session, const char *command, json_t *args,
                   json_t **result, char *err, size_t errlen)
{
    calls++;
    snprintf(last_command, sizeof(last_command), "%s", command);
    if (!strcmp(command, "fail")) {
        snprintf(err, errlen, "it failed");
        return -EIO;
    }
    if (!strcmp(command, "later"))
        return MONITOR_LATER;
    if (!strcmp(command, "echo")) {
        *result = json_incref(args);
        return 0;
    }
    return MONITOR_UNKNOWN;
}

static void setup(void)
{
    cr_assert_eq(monitor_session_init(&s, execute, NULL), 0);
}

static void teardown(void)
{
    monitor_session_destroy(&s);
}

/* The next message sent, or NULL. */
static json_t *message(void)
{
    size_t len;
    const char *out = monitor_session_output(&s, &len), *end = len ? memchr(out, '\n', len) : NULL;
    json_t *m;

    if (!end)
        return NULL;
    m = json_loadb(out, (size_t)(end - out), 0, NULL);
    cr_assert(m, "what is sent is JSON");
    monitor_session_sent(&s, (size_t)(end - out) + 1);
    return m;
}

static void input(const char *text)
{
    monitor_session_input(&s, text, strlen(text));
}

static const char *error_class(json_t *m)
{
    return json_string_value(json_object_get(json_object_get(m, "error"), "class"));
}

Test(monitor_session, greeting, .init = setup, .fini = teardown)
{
    json_t *m = message();

    cr_assert(json_object_get(json_object_get(m, "QMP"), "version"));
    cr_assert_eq(message(), NULL);
}

Test(monitor_session, commands_and_ids, .init = setup, .fini = teardown)
{
    json_t *m;

    message();
    input("{\"execute\": \"echo\", \"arguments\": {\"a\": 1}, \"id\": [\"x\"]}\r\n");
    m = message();
    cr_assert_eq(json_integer_value(json_object_get(json_object_get(m, "return"), "a")), 1);
    cr_assert(json_is_array(json_object_get(m, "id")));
    input("{\"execute\":\"fail\"}\n{\"execute\":\"nothing\",\"id\":2}\n");
    cr_assert_str_eq(error_class(message()), "GenericError");
    m = message();
    cr_assert_str_eq(error_class(m), "CommandNotFound");
    cr_assert_eq(json_integer_value(json_object_get(m, "id")), 2);
    cr_assert_eq(message(), NULL);
}

Test(monitor_session, partial_lines, .init = setup, .fini = teardown)
{
    const char *text = "{\"execute\":\"echo\"}\n";

    message();
    for (const char *at = text; *at; at++) {
        cr_assert_eq(calls, 0);
        monitor_session_input(&s, at, 1);
    }
    cr_assert_eq(calls, 1);
    input("\n  \r\n\t\n"); /* blank lines are no commands, and no errors */
    message();
    cr_assert_eq(message(), NULL);
}

Test(monitor_session, malformed, .init = setup, .fini = teardown)
{
    static const char *const lines[] = {
        "garbage\n",
        "{\n",
        "{\"execute\": 5}\n",
        "{\"execute\": \"echo\", \"arguments\": []}\n",
        "[]\n",
        "null\n",
        "{\"execute\": \"echo\"} trailing\n",
        "{\"execute\": \"echo\", \"execute\": \"fail\"}\n",
        "\"\\ud800\"\n",
        "{\"execute\": \"\xff\xfe\"}\n",
        "{\"a\": 1e999}\n",
    };

    message();
    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        input(lines[i]);
        cr_assert(error_class(message()), "an error for %s", lines[i]);
    }
    cr_assert_eq(calls, 0);
    monitor_session_input(&s, "{\"execute\":\0}\n", 14);
    cr_assert(error_class(message()));
    input("{\"execute\":\"echo\"}\n");
    cr_assert(json_object_get(message(), "return"), "and goes on");
}

Test(monitor_session, deep_nesting, .init = setup, .fini = teardown)
{
    char deep[60000];

    message();
    memset(deep, '[', sizeof(deep));
    monitor_session_input(&s, deep, sizeof(deep));
    input("\n");
    cr_assert(error_class(message()));
    cr_assert(!s.broken);
}

Test(monitor_session, huge_lines, .init = setup, .fini = teardown)
{
    static char block[10000];

    message();
    memset(block, 'x', sizeof(block));
    for (unsigned i = 0; i < 1000; i++)
        monitor_session_input(&s, block, sizeof(block));
    cr_assert(error_class(message()));
    cr_assert_eq(message(), NULL, "once");
    input("\n{\"execute\":\"echo\"}\n");
    cr_assert(json_object_get(message(), "return"));
}

/* While a command is under way nothing else is executed, and nothing is lost. */
Test(monitor_session, later, .init = setup, .fini = teardown)
{
    message();
    input("{\"execute\":\"later\",\"id\":1}\n{\"execute\":\"echo\",\"id\":2}\n");
    cr_assert_eq(calls, 1);
    cr_assert_eq(message(), NULL);
    monitor_session_event(&s, "STOP", NULL);
    cr_assert_str_eq(json_string_value(json_object_get(message(), "event")), "STOP");
    monitor_session_finish(&s, NULL, NULL);
    cr_assert_eq(json_integer_value(json_object_get(message(), "id")), 1);
    cr_assert_eq(json_integer_value(json_object_get(message(), "id")), 2);
    input("{\"execute\":\"later\"}\n");
    monitor_session_finish(&s, NULL, "no");
    cr_assert(error_class(message()));
}

Test(monitor_session, client_that_does_not_read, .init = setup, .fini = teardown)
{
    for (unsigned i = 0; i < 100000 && !s.broken; i++)
        monitor_session_event(&s, "STOP", NULL);
    cr_assert(s.broken);
}

/* -- Keys -------------------------------------------------------------------------------------- */

Test(keys, names_and_characters)
{
    unsigned key;
    bool shift;

    cr_assert_eq(key_by_name("ctrl", 4), KEY_LEFTCTRL);
    cr_assert_eq(key_by_name("ctrl-x", 4), KEY_LEFTCTRL);
    cr_assert_eq(key_by_name("ct", 2), 0);
    cr_assert_eq(key_by_name("", 0), 0);
    for (unsigned c = 0x20; c < 0x7f; c++)
        cr_assert(key_by_char((unsigned char)c, &key, &shift), "character %#x", c);
    cr_assert(key_by_char('?', &key, &shift) && key == KEY_SLASH && shift);
    cr_assert(key_by_char('/', &key, &shift) && key == KEY_SLASH && !shift);
    cr_assert(key_by_char('Q', &key, &shift) && key == KEY_Q && shift);
    cr_assert(!key_by_char(0xe4, &key, &shift));
    cr_assert(!key_by_char(0, &key, &shift));
}

/* -- Options ----------------------------------------------------------------------------------- */

Test(display_options, parse)
{
    static const char *const bad[] = {
        "",
        "x11",
        "vnc=",
        "vnc=5900",
        "vnc=127.0.0.1",
        "vnc=:5900",
        "vncx",
        "vnc=1.2.3.4:0",
        "vnc=1.2.3.4:x",
        "vnc=1.2.3.4:65536",
        "vnc,foo",
        "sdl,foo",
        "vnc,password-file=",
        "vnc=1.2.3.4:5,",
        "none,x",
        "vnc=1.2.3:5",
    };
    struct display_options o;
    char err[5000];

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        err[0] = '\0';
        cr_assert_eq(display_parse(&o, bad[i], err, sizeof(err)), -EINVAL, "'%s'", bad[i]);
        cr_assert(err[0], "'%s'", bad[i]);
    }
    cr_assert_eq(display_parse(&o, "none", err, sizeof(err)), 0);
    cr_assert_eq(o.kind, DISPLAY_NONE);
    cr_assert_eq(display_parse(&o, "vnc", err, sizeof(err)), 0);
    cr_assert_eq(o.address, 0x7f000001);
    cr_assert_eq(o.port, 5900);
    cr_assert_not(display_unprotected(&o));
    cr_assert_eq(display_parse(&o, "vnc=0.0.0.0:5901,password-file=/a,b", err, sizeof(err)), 0);
    cr_assert_eq(o.address, 0);
    cr_assert_eq(o.port, 5901);
    cr_assert_str_eq(o.password_file, "/a,b");
    cr_assert_not(display_unprotected(&o));
    cr_assert_eq(display_parse(&o, "vnc=0.0.0.0:5901", err, sizeof(err)), 0);
    cr_assert(display_unprotected(&o));
    cr_assert_eq(display_parse(&o, "vnc=127.9.9.9:5901", err, sizeof(err)), 0);
    cr_assert_not(display_unprotected(&o));
    cr_assert_eq(display_parse(&o, "sdl", err, sizeof(err)), 0);
    cr_assert_not(display_unprotected(&o));
    cr_assert_eq(display_parse(&o, "vnc=localhost:5901", err, sizeof(err)), 0);
    cr_assert_eq(o.address, 0x7f000001);
}

/* -- The socket -------------------------------------------------------------------------------- */

static int null_create(const struct engine_config *cfg, struct guest_ram *ram, struct engine **out,
                       char *err, unsigned errlen);

static void null_destroy(struct engine *e)
{
    free(e);
}

static int null_vcpu(struct engine *e, struct vcpu *v)
{
    return 0;
}

static void null_vcpu_destroy(struct engine *e, struct vcpu *v) {}

/* A guest that halts for ever. */
static void null_run(struct engine *e, struct vcpu *v)
{
    v->exit = v->events & EV_STOP ? VCPU_EXIT_STOP : VCPU_EXIT_HLT;
    atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
}

static void null_stats(struct engine *e, FILE *out)
{
    fprintf(out, "engine: none\n");
}

static const struct engine_ops null_engine = {
    .name = "null",
    .create = null_create,
    .destroy = null_destroy,
    .vcpu_init = null_vcpu,
    .vcpu_destroy = null_vcpu_destroy,
    .run = null_run,
    .kick = null_vcpu_destroy,
    .print_stats = null_stats,
};

static int null_create(const struct engine_config *cfg, struct guest_ram *ram, struct engine **out,
                       char *err, unsigned errlen)
{
    *out = calloc(1, sizeof(**out));
    (*out)->ops = &null_engine;
    return 0;
}

static char directory[] = "/tmp/rs-monitor-XXXXXX", path[100];
static struct machine *m;
static struct monitor *mon;

static void start(void)
{
    struct machine_config cfg = {
        .memory = 16u << 20, .cpus = 1, .engine = &null_engine, .vga = true};
    char err[300] = "";

    cr_assert(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/s", directory);
    cr_assert_eq(machine_create(&m, &cfg, err, sizeof(err)), 0, "%s", err);
    cr_assert_eq(monitor_create(&mon, m, path, err, sizeof(err)), 0, "%s", err);
}

static void stop(void)
{
    struct stat st;

    monitor_destroy(mon);
    machine_destroy(m);
    cr_assert_eq(stat(path, &st), -1, "the socket is gone");
    cr_assert_eq(rmdir(directory), 0, "nothing else was left");
}

static int dial(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = 20};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strcpy(address.sun_path, path);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* The next line, without its end; "" at the end. */
static char *read_line(int fd)
{
    static char line[200000];
    size_t len = 0;

    while (len < sizeof(line) - 1 && read(fd, line + len, 1) == 1 && line[len] != '\n')
        len++;
    line[len] = '\0';
    return line;
}

static json_t *ask(int fd, const char *command)
{
    cr_assert_eq(write(fd, command, strlen(command)), (ssize_t)strlen(command));
    cr_assert_eq(write(fd, "\n", 1), 1);
    for (;;) {
        json_t *answer = json_loads(read_line(fd), 0, NULL);

        cr_assert(answer, "an answer to %s", command);
        if (!json_object_get(answer, "event"))
            return answer;
    }
}

Test(monitor, socket_is_private_and_exclusive, .init = start, .fini = stop)
{
    struct monitor *second;
    struct stat st;
    char err[300] = "";

    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    cr_assert_eq(monitor_create(&second, m, path, err, sizeof(err)), -EADDRINUSE);
    cr_assert(err[0]);
}

Test(monitor, several_clients, .init = start, .fini = stop)
{
    int fd[3];

    for (unsigned i = 0; i < 3; i++) {
        fd[i] = dial();
        read_line(fd[i]);
    }
    for (unsigned i = 0; i < 3; i++)
        cr_assert(json_object_get(ask(fd[i], "{\"execute\":\"query-status\"}"), "return"));
    close(fd[0]);
    cr_assert(json_object_get(ask(fd[1], "{\"execute\":\"stop\"}"), "return"));
    cr_assert(strstr(read_line(fd[2]), "STOP"), "events go to all");
    cr_assert(machine_stopped(m));
    close(fd[1]);
    close(fd[2]);
}

Test(monitor, too_many_clients, .init = start, .fini = stop)
{
    int fd[40];

    for (unsigned i = 0; i < 40; i++)
        fd[i] = dial();
    cr_assert(strstr(read_line(fd[39]), "too many"));
    for (unsigned i = 0; i < 40; i++)
        close(fd[i]);
    usleep(200000);
    int again = dial();
    cr_assert(strstr(read_line(again), "QMP"));
    close(again);
}

Test(monitor, every_command_takes_bad_arguments, .init = start, .fini = stop)
{
    static const char *const arguments[] = {
        "",
        "{}",
        "{\"filename\": 5, \"keys\": 5, \"text\": 5, \"device\": 5, \"events\": 5, \"dx\": \"a\", "
        "\"val\": -1, \"size\": -1, \"address\": [], \"buttons\": 1}",
        "{\"filename\": \"\", \"keys\": [], \"text\": \"\", \"device\": \"\", \"events\": [], "
        "\"val\": 0, \"size\": 0, \"address\": 0, \"buttons\": []}",
        "{\"filename\": \"/nonexistent/x\", \"keys\": [{\"data\":\"bogus\"}], \"text\": "
        "\"\\u00e4\", "
        "\"device\": \"disk9\", \"events\": [{}], \"val\": \"0xffffffffffffffff\", "
        "\"size\": \"0xffffffffffffffff\", \"address\": \"0xffffffffffffffff\", "
        "\"buttons\": [\"bogus\"]}",
        "{\"filename\": \"a\\u0000b\"}",
    };
    int fd = dial();
    json_t *list, *item;
    size_t i;

    read_line(fd);
    list = json_object_get(ask(fd, "{\"execute\":\"query-commands\"}"), "return");
    cr_assert_gt(json_array_size(list), 20);
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));

        if (!strcmp(name, "quit") || !strcmp(name, "system_reset"))
            continue;
        for (unsigned k = 0; k < sizeof(arguments) / sizeof(arguments[0]); k++) {
            char command[1000];

            snprintf(command, sizeof(command), "{\"execute\": \"%s\"%s%s}", name,
                     *arguments[k] ? ", \"arguments\": " : "", arguments[k]);
            json_decref(ask(fd, command));
        }
    }
    close(fd);
}

Test(monitor, memory_and_registers, .init = start, .fini = stop)
{
    int fd = dial();
    json_t *answer;

    read_line(fd);
    answer = ask(fd, "{\"execute\":\"query-cpus\"}");
    cr_assert_str_eq(json_string_value(json_object_get(
                         json_array_get(json_object_get(answer, "return"), 0), "mode")),
                     "real mode");
    answer = ask(fd, "{\"execute\":\"read-memory\",\"arguments\":{\"address\":4094,\"size\":4,"
                     "\"physical\":true}}");
    cr_assert_str_eq(json_string_value(json_object_get(json_object_get(answer, "return"), "bytes")),
                     "00000000");
    answer = ask(fd, "{\"execute\":\"read-memory\",\"arguments\":{\"address\":\"0xfffffff0\","
                     "\"size\":16,\"physical\":true}}");
    cr_assert(json_object_get(answer, "error"), "no memory there");
    answer = ask(fd, "{\"execute\":\"query-stats\"}");
    cr_assert(strstr(json_string_value(json_object_get(json_object_get(answer, "return"), "text")),
                     "engine: none"));
    close(fd);
}

/* A key that the guest does not read does not hold up other clients. */
Test(monitor, typing_while_the_guest_sleeps, .init = start, .fini = stop)
{
    int typist = dial(), other = dial();
    char command[3000] = "{\"execute\":\"type\",\"arguments\":{\"text\":\"";

    read_line(typist);
    read_line(other);
    memset(command + strlen(command), 'a', 2000);
    strcat(command, "\"}}\n");
    cr_assert_gt(write(typist, command, strlen(command)), 0);
    usleep(300000);
    cr_assert(json_object_get(ask(other, "{\"execute\":\"query-status\"}"), "return"));
    cr_assert(json_object_get(
        ask(other, "{\"execute\":\"send-key\",\"arguments\":{\"keys\":\"a\"}}"), "error"));
    close(typist);
    close(other);
}

Test(monitor, stale_socket_is_replaced)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    cr_assert(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/s", directory);
    strcpy(address.sun_path, path);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd); /* its process has died */

    struct machine_config cfg = {.memory = 16u << 20, .cpus = 1, .engine = &null_engine};
    char err[300] = "";

    cr_assert_eq(machine_create(&m, &cfg, err, sizeof(err)), 0, "%s", err);
    cr_assert_eq(monitor_create(&mon, m, path, err, sizeof(err)), 0, "%s", err);
    fd = dial();
    read_line(fd);
    cr_assert(json_object_get(ask(fd, "{\"execute\":\"screendump\",\"arguments\":{\"filename\":"
                                      "\"/tmp/never\"}}"),
                              "error"),
              "without a VGA there is no screen");
    close(fd);
    monitor_destroy(mon);
    FILE *f = fopen(path, "w");
    fputs("precious", f);
    fclose(f);
    cr_assert_eq(monitor_create(&mon, m, path, err, sizeof(err)), -EEXIST);
    machine_destroy(m);
    cr_assert_eq(unlink(path), 0, "a file is left alone");
    rmdir(directory);
}
