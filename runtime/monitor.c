/*
 * The control socket: see monitor.h.  One thread waits for the listening socket, the clients, the
 * machine's events (through an eventfd) and the time of the next key.
 */
#include "runtime/monitor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "runtime/monitor_internal.h"

#define CLIENTS_MAX 16u
#define FAREWELL_MS 300

struct monitor_client {
    struct monitor_session session;
    int fd;
    bool ended; /* sends nothing more: closed when its answers are out */
};

/* -- Events ------------------------------------------------------------------------------------ */

static void wake(struct monitor *mon)
{
    uint64_t one = 1;

    if (write(mon->wake_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: it is awake */
}

/* The machine's listener: any thread. */
static void on_event(void *opaque, enum machine_event what)
{
    struct monitor *mon = opaque;

    pthread_mutex_lock(&mon->event_lock);
    if (mon->event_count < sizeof(mon->events) / sizeof(mon->events[0]))
        mon->events[mon->event_count++] = what;
    pthread_mutex_unlock(&mon->event_lock);
    wake(mon);
}

void monitor_broadcast(struct monitor *mon, const char *event, json_t *data)
{
    for (unsigned i = 0; i < mon->client_count; i++)
        monitor_session_event(&mon->clients[i].session, event, data);
}

static void send_events(struct monitor *mon)
{
    static const char *const names[] = {
        [MACHINE_EVENT_STOP] = "STOP",         [MACHINE_EVENT_RESUME] = "RESUME",
        [MACHINE_EVENT_RESET] = "RESET",       [MACHINE_EVENT_POWERDOWN] = "POWERDOWN",
        [MACHINE_EVENT_SHUTDOWN] = "SHUTDOWN",
    };
    enum machine_event events[16];
    unsigned n;

    pthread_mutex_lock(&mon->event_lock);
    n = mon->event_count;
    memcpy(events, mon->events, sizeof(events));
    mon->event_count = 0;
    pthread_mutex_unlock(&mon->event_lock);
    for (unsigned i = 0; i < n; i++)
        monitor_broadcast(mon, names[events[i]], NULL);
}

/* -- Clients ----------------------------------------------------------------------------------- */

/* Sessions are referred to by address (the typist), so they stay where they are: a slot is free
 * when its fd is -1, and client_count only says how far slots have been used. */
static bool in_use(const struct monitor_client *c)
{
    return c->fd >= 0;
}

static void drop(struct monitor *mon, struct monitor_client *c)
{
    monitor_forget_keys(mon, &c->session);
    close(c->fd);
    c->fd = -1;
    monitor_session_destroy(&c->session);
    memset(&c->session, 0, sizeof(c->session));
    c->session.broken = true; /* takes no events */
}

static void accept_client(struct monitor *mon)
{
    int fd = accept4(mon->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct monitor_client *c = NULL;

    if (fd < 0)
        return;
    for (unsigned i = 0; i < CLIENTS_MAX && !c; i++)
        if (!in_use(&mon->clients[i]))
            c = &mon->clients[i];
    if (!c) {
        static const char full[] = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"too many "
                                   "clients are connected\"}}\r\n";

        send(fd, full, sizeof(full) - 1, MSG_NOSIGNAL);
        close(fd);
        return;
    }
    if (monitor_session_init(&c->session, monitor_execute, mon)) {
        monitor_session_destroy(&c->session);
        memset(&c->session, 0, sizeof(c->session));
        c->session.broken = true;
        close(fd);
        return;
    }
    c->fd = fd;
    c->ended = false;
}

static void send_output(struct monitor_client *c)
{
    for (;;) {
        size_t len;
        const char *bytes = monitor_session_output(&c->session, &len);
        ssize_t n;

        if (!len)
            return;
        n = send(c->fd, bytes, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                c->session.broken = true;
            return;
        }
        monitor_session_sent(&c->session, (size_t)n);
    }
}

static void receive(struct monitor_client *c)
{
    char bytes[4096];
    size_t room = monitor_session_room(&c->session);
    ssize_t n = recv(c->fd, bytes, room < sizeof(bytes) ? room : sizeof(bytes), 0);

    if (n > 0)
        monitor_session_input(&c->session, bytes, (size_t)n);
    else if (n == 0)
        c->ended = true;
    else if (errno != EAGAIN && errno != EINTR)
        c->session.broken = true;
}

static bool finished(const struct monitor_client *c)
{
    size_t len;

    if (c->session.broken)
        return true;
    monitor_session_output(&c->session, &len);
    return c->ended && !c->session.busy && !len;
}

/* -- The thread -------------------------------------------------------------------------------- */

static short wanted(const struct monitor_client *c)
{
    size_t len;
    short events = 0;

    monitor_session_output(&c->session, &len);
    if (len)
        events |= POLLOUT;
    /* A client that has much to read is not listened to before it does. */
    if (!c->ended && !c->session.busy && len < MONITOR_OUTPUT_MAX / 4 &&
        monitor_session_room(&c->session))
        events |= POLLIN;
    return events;
}

static void serve(struct monitor *mon, int timeout)
{
    struct pollfd fds[CLIENTS_MAX + 2];
    unsigned n = mon->client_count;
    uint64_t count;

    fds[0] = (struct pollfd){.fd = mon->wake_fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = mon->listen_fd, .events = POLLIN};
    for (unsigned i = 0; i < n; i++) {
        struct monitor_client *c = &mon->clients[i];

        fds[i + 2] = (struct pollfd){.fd = c->fd, .events = in_use(c) ? wanted(c) : 0};
        /* A closed connection is always reported; whoever still types for it must not spin. */
        if (in_use(c) && !fds[i + 2].events)
            fds[i + 2].fd = -1;
    }
    if (poll(fds, n + 2, timeout) < 0)
        return;
    if (fds[0].revents && read(mon->wake_fd, &count, sizeof(count)) < 0)
        return;
    send_events(mon);
    for (unsigned i = 0; i < n; i++) {
        struct monitor_client *c = &mon->clients[i];

        if (fds[i + 2].fd < 0)
            continue;
        if (fds[i + 2].revents & (POLLIN | POLLHUP | POLLERR) && !c->ended && !c->session.busy)
            receive(c);
        else if (fds[i + 2].revents & (POLLHUP | POLLERR) && c->ended)
            c->session.broken = true; /* nobody reads the answers */
    }
    if (fds[1].revents & POLLIN)
        accept_client(mon);
}

static void *monitor_thread(void *opaque)
{
    struct monitor *mon = opaque;
    uint64_t deadline = UINT64_MAX;

    for (;;) {
        int timeout = monitor_run_keys(mon);
        bool unsent = false;

        for (unsigned i = 0; i < CLIENTS_MAX; i++) {
            struct monitor_client *c = &mon->clients[i];
            size_t len;

            if (!in_use(c))
                continue;
            send_output(c);
            if (finished(c))
                drop(mon, c);
            else if (monitor_session_output(&c->session, &len) && len)
                unsent = true;
        }
        if (atomic_load(&mon->ending)) {
            uint64_t now = monitor_now_ms();

            if (deadline == UINT64_MAX) {
                /* Events that came just before the end have not been sent yet. */
                send_events(mon);
                monitor_end_keys(mon);
                deadline = now + FAREWELL_MS;
                continue;
            }
            if (!unsent || now >= deadline)
                break;
            timeout = 20;
        }
        serve(mon, timeout);
    }
    return NULL;
}

/* -- Life -------------------------------------------------------------------------------------- */

/* Makes way for a new socket: 0 if there is nothing at path or a socket that nobody serves. */
static int clear_path(const struct sockaddr_un *address, char *err, size_t errlen)
{
    struct stat st;
    int fd, code = 0;

    if (lstat(address->sun_path, &st))
        return errno == ENOENT
                   ? 0
                   : fail_with(err, errlen, -errno, "cannot create the monitor socket %s: %s",
                               address->sun_path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return fail_with(err, errlen, -EEXIST,
                         "%s exists and is no socket; give --monitor another path",
                         address->sun_path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail_with(err, errlen, -errno, "cannot create a socket: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN)
        code = fail_with(err, errlen, -EADDRINUSE,
                         "another process listens on %s; give --monitor another path",
                         address->sun_path);
    else if (errno == ECONNREFUSED && unlink(address->sun_path))
        code = fail_with(err, errlen, -errno, "cannot remove the old socket %s: %s",
                         address->sun_path, strerror(errno));
    close(fd);
    return code;
}

static int open_socket(struct monitor *mon, const char *path, char *err, size_t errlen)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat st;
    int code;

    if (strlen(path) >= sizeof(address.sun_path) || !*path)
        return fail_with(err, errlen, -EINVAL,
                         "the path of the monitor socket must have 1 to %zu characters",
                         sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path));
    memcpy(mon->path, address.sun_path, sizeof(mon->path));
    code = clear_path(&address, err, errlen);
    if (code)
        return code;
    mon->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The file gets the socket's mode, so it is never open to others, whatever the umask. */
    if (mon->listen_fd < 0 || fchmod(mon->listen_fd, 0600) ||
        bind(mon->listen_fd, (struct sockaddr *)&address, sizeof(address)) ||
        listen(mon->listen_fd, 8))
        return fail_with(err, errlen, -errno, "cannot create the monitor socket %s: %s", path,
                         strerror(errno));
    if (!lstat(path, &st)) {
        mon->inode = st.st_ino;
        mon->device = st.st_dev;
    }
    return 0;
}

int monitor_create(struct monitor **out, struct machine *m, const char *path, char *err,
                   size_t errlen)
{
    struct monitor *mon = calloc(1, sizeof(*mon));
    sigset_t all, old;
    int code;

    if (!mon)
        return fail_with(err, errlen, -ENOMEM, "no memory for the monitor");
    mon->machine = m;
    mon->listen_fd = mon->wake_fd = -1;
    pthread_mutex_init(&mon->event_lock, NULL);
    mon->clients = calloc(CLIENTS_MAX, sizeof(*mon->clients));
    mon->client_count = CLIENTS_MAX;
    mon->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    code = mon->clients && mon->wake_fd >= 0
               ? 0
               : fail_with(err, errlen, -ENOMEM, "cannot set up the monitor");
    for (unsigned i = 0; !code && i < CLIENTS_MAX; i++) {
        mon->clients[i].fd = -1;
        mon->clients[i].session.broken = true;
    }
    if (!code)
        code = open_socket(mon, path, err, errlen);
    if (!code) {
        machine_set_listener(m, on_event, mon);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        code = -pthread_create(&mon->thread, NULL, monitor_thread, mon);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        mon->started = !code;
        if (code)
            fail_with(err, errlen, code, "cannot start the monitor's thread: %s", strerror(-code));
    }
    if (code) {
        machine_set_listener(m, NULL, NULL);
        monitor_destroy(mon);
        return code;
    }
    *out = mon;
    return 0;
}

void monitor_destroy(struct monitor *mon)
{
    struct stat st;

    if (mon->started) {
        machine_set_listener(mon->machine, NULL, NULL);
        atomic_store(&mon->ending, true);
        wake(mon);
        pthread_join(mon->thread, NULL);
    }
    for (unsigned i = 0; mon->clients && i < CLIENTS_MAX; i++)
        if (in_use(&mon->clients[i]))
            drop(mon, &mon->clients[i]);
    /* Only our own: somebody may have put another one there. */
    if (mon->listen_fd >= 0) {
        close(mon->listen_fd);
        if (mon->inode && !lstat(mon->path, &st) && st.st_ino == mon->inode &&
            st.st_dev == mon->device)
            unlink(mon->path);
    }
    if (mon->wake_fd >= 0)
        close(mon->wake_fd);
    pthread_mutex_destroy(&mon->event_lock);
    free(mon->clients);
    free(mon->steps);
    free(mon);
}
