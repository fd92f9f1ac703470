/*
 * One client's conversation with the monitor: lines in, commands out, answers and events back.  It
 * knows JSON and the form of messages, but neither sockets nor commands, so that it can be tested
 * and fuzzed alone.
 */
#ifndef RINGSHIFT_RUNTIME_MONITOR_SESSION_H
#define RINGSHIFT_RUNTIME_MONITOR_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define MONITOR_LINE_MAX   (64u << 10) /* of a command */
#define MONITOR_OUTPUT_MAX (4u << 20)  /* not yet read by the client; more, and it is dropped */

/* What an executed command comes back with besides 0 (done) and a negative errno (failed). */
enum { MONITOR_LATER = 1, MONITOR_UNKNOWN = 2 };

struct monitor_session;

/* Carries out a command.  args is an object, borrowed.  0 with *result (a new reference, or NULL
 * for an empty object); a negative errno with one sentence in err; MONITOR_UNKNOWN; MONITOR_LATER,
 * and monitor_session_finish() follows, until when the session takes no further command. */
typedef int monitor_execute_fn(void *opaque, struct monitor_session *s, const char *command,
                               json_t *args, json_t **result, char *err, size_t errlen);

struct monitor_session {
    monitor_execute_fn *execute;
    void *opaque;
    char *in;
    size_t in_len;
    bool skipping; /* the rest of a line that was too long */
    bool busy;     /* a command is under way: MONITOR_LATER */
    json_t *busy_id;
    char *out; /* [out_start, out_len) is to be sent */
    size_t out_start, out_len, out_size;
    bool broken; /* out of memory, or the client does not read: to be closed */
};

/* 0 or -ENOMEM; the greeting is ready to be sent. */
int monitor_session_init(struct monitor_session *s, monitor_execute_fn *execute, void *opaque);
void monitor_session_destroy(struct monitor_session *s);

/* Room for input: at most this much may be given to monitor_session_input(); 0 while busy and
 * full. */
size_t monitor_session_room(const struct monitor_session *s);
/* Takes bytes from the client and executes the commands that are complete. */
void monitor_session_input(struct monitor_session *s, const char *bytes, size_t len);

/* Ends a command that was left for later: with a result (new reference or NULL), or with an error
 * sentence.  Then goes on with what came in meanwhile. */
void monitor_session_finish(struct monitor_session *s, json_t *result, const char *error);

/* data: borrowed, or NULL. */
void monitor_session_event(struct monitor_session *s, const char *event, json_t *data);

/* What is to be sent; report what was. */
const char *monitor_session_output(const struct monitor_session *s, size_t *len);
void monitor_session_sent(struct monitor_session *s, size_t len);

#endif
