/* One client's conversation with the monitor: see monitor_session.h. */
#include "runtime/monitor_session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

/* -- Output ------------------------------------------------------------------------------------ */

static void put_bytes(struct monitor_session *s, const char *bytes, size_t len)
{
    size_t need = s->out_len - s->out_start + len;

    if (s->broken)
        return;
    if (need > MONITOR_OUTPUT_MAX) {
        s->broken = true;
        return;
    }
    if (s->out_len + len > s->out_size) {
        memmove(s->out, s->out + s->out_start, s->out_len - s->out_start);
        s->out_len -= s->out_start;
        s->out_start = 0;
    }
    if (need > s->out_size) {
        size_t size = need < 4096 ? 4096 : need * 2;
        char *bigger = realloc(s->out, size);

        if (!bigger) {
            s->broken = true;
            return;
        }
        s->out = bigger;
        s->out_size = size;
    }
    memcpy(s->out + s->out_len, bytes, len);
    s->out_len += len;
}

/* Sends a message; takes the reference. */
static void put_message(struct monitor_session *s, json_t *message)
{
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

    json_decref(message);
    if (!text) {
        s->broken = true;
        return;
    }
    put_bytes(s, text, strlen(text));
    put_bytes(s, "\r\n", 2);
    free(text);
}

/* Takes the references to body and id (which may be NULL). */
static void put_answer(struct monitor_session *s, const char *key, json_t *body, json_t *id)
{
    json_t *message = json_object();

    json_object_set_new(message, key, body ? body : json_object());
    if (id)
        json_object_set_new(message, "id", id);
    put_message(s, message);
}

static void put_error(struct monitor_session *s, const char *class, const char *text, json_t *id)
{
    json_t *body = json_pack("{s:s, s:s}", "class", class, "desc", text);

    /* The text may quote the client: if that is no UTF-8, it is left out. */
    if (!body)
        body = json_pack("{s:s, s:s}", "class", class, "desc", "the command failed");
    put_answer(s, "error", body, id);
}

void monitor_session_event(struct monitor_session *s, const char *event, json_t *data)
{
    struct timeval now;
    json_t *message;

    gettimeofday(&now, NULL);
    message = json_pack("{s:{s:I, s:I}, s:s}", "timestamp", "seconds", (json_int_t)now.tv_sec,
                        "microseconds", (json_int_t)now.tv_usec, "event", event);
    if (data)
        json_object_set(message, "data", data);
    put_message(s, message);
}

const char *monitor_session_output(const struct monitor_session *s, size_t *len)
{
    *len = s->out_len - s->out_start;
    return s->out + s->out_start;
}

void monitor_session_sent(struct monitor_session *s, size_t len)
{
    s->out_start += len;
    if (s->out_start == s->out_len)
        s->out_start = s->out_len = 0;
}

/* -- Input ------------------------------------------------------------------------------------- */

static void run_command(struct monitor_session *s, json_t *message)
{
    json_t *command = json_object_get(message, "execute");
    json_t *args = json_object_get(message, "arguments"), *result = NULL;
    json_t *id = json_incref(json_object_get(message, "id"));
    json_t *empty = NULL;
    char err[600] = "";
    int code;

    if (!json_is_string(command)) {
        put_error(s, "GenericError", "a command is an object with \"execute\": NAME", id);
        return;
    }
    if (args && !json_is_object(args)) {
        put_error(s, "GenericError", "\"arguments\" is not an object", id);
        return;
    }
    if (!args)
        args = empty = json_object();
    code = s->execute(s->opaque, s, json_string_value(command), args, &result, err, sizeof(err));
    json_decref(empty);
    if (code == MONITOR_LATER) {
        s->busy = true;
        s->busy_id = id;
        return;
    }
    if (code == 0) {
        put_answer(s, "return", result, id);
    } else if (code == MONITOR_UNKNOWN) {
        put_error(s, "CommandNotFound", "there is no such command; see query-commands", id);
    } else {
        put_error(s, "GenericError", err[0] ? err : strerror(-code), id);
    }
}

static bool blank(const char *line, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!strchr(" \t\r", line[i]) || !line[i])
            return false;
    return true;
}

static void take_line(struct monitor_session *s, const char *line, size_t len)
{
    json_error_t error;
    json_t *message;
    char text[JSON_ERROR_TEXT_LENGTH + 40];

    if (blank(line, len))
        return;
    message = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
    if (!message) {
        snprintf(text, sizeof(text), "no JSON: %s", error.text);
        put_error(s, "GenericError", text, NULL);
        return;
    }
    run_command(s, message);
    json_decref(message);
}

/* Executes the complete lines. */
static void take_lines(struct monitor_session *s)
{
    size_t at = 0;

    while (!s->busy && !s->broken) {
        char *end = memchr(s->in + at, '\n', s->in_len - at);

        if (!end)
            break;
        size_t next = (size_t)(end - s->in) + 1;

        if (s->skipping)
            s->skipping = false;
        else
            take_line(s, s->in + at, next - at - 1);
        at = next;
    }
    memmove(s->in, s->in + at, s->in_len - at);
    s->in_len -= at;
    if (s->in_len < MONITOR_LINE_MAX || s->busy)
        return;
    /* A line that does not fit is refused, once, and read to its end. */
    if (!s->skipping)
        put_error(s, "GenericError", "the command is too long", NULL);
    s->skipping = true;
    s->in_len = 0;
}

size_t monitor_session_room(const struct monitor_session *s)
{
    return MONITOR_LINE_MAX - s->in_len;
}

void monitor_session_input(struct monitor_session *s, const char *bytes, size_t len)
{
    while (len && !s->broken) {
        size_t room = monitor_session_room(s), part = len < room ? len : room;

        if (!part)
            return; /* busy, and the caller did not ask for room */
        memcpy(s->in + s->in_len, bytes, part);
        s->in_len += part;
        bytes += part;
        len -= part;
        take_lines(s);
    }
}

void monitor_session_finish(struct monitor_session *s, json_t *result, const char *error)
{
    json_t *id = s->busy_id;

    s->busy = false;
    s->busy_id = NULL;
    if (error)
        put_error(s, "GenericError", error, id);
    else
        put_answer(s, "return", result, id);
    take_lines(s);
}

/* -- Life -------------------------------------------------------------------------------------- */

int monitor_session_init(struct monitor_session *s, monitor_execute_fn *execute, void *opaque)
{
    int major = 0, minor = 0, micro = 0;

    *s = (struct monitor_session){.execute = execute, .opaque = opaque};
    s->in = malloc(MONITOR_LINE_MAX);
    if (!s->in)
        return -ENOMEM;
    sscanf(RINGSHIFT_VERSION, "%d.%d.%d", &major, &minor, &micro);
    /* The version has the form that QMP's clients look for. */
    put_message(s, json_pack("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}", "QMP", "version", "qemu",
                             "major", major, "minor", minor, "micro", micro, "package",
                             "Ringshift " RINGSHIFT_VERSION, "capabilities"));
    return s->broken ? -ENOMEM : 0;
}

void monitor_session_destroy(struct monitor_session *s)
{
    json_decref(s->busy_id);
    free(s->in);
    free(s->out);
}
