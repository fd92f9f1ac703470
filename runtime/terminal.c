/*
 * Non-blocking without O_NONBLOCK on what we were given: that flag sits on the open file, which the
 * shell and others share, and would outlive us.  So stdin and stdout are opened anew through
 * /proc/self/fd, which gives an open file of our own; where that is not possible (a socket, a tty
 * that belongs to another user) the flag is set after all and taken back at the end.
 *
 * Output: the device writes into a ring; the ring is written to stdout at once where it takes it
 * and from the event loop where it does not.  "At once" is a line, or what came within a
 * millisecond: a UART sends byte by byte and a system call for each would cost more than the rest
 * of it.  Regular files and /dev/null cannot be waited for and never make us wait, so they are
 * written directly.
 *
 * Input: bytes go through the escape filter into a buffer and from there to the device as fast as
 * it takes them.  A pipe is not read while the buffer holds bytes (back-pressure for its writer); a
 * tty always is, so that Ctrl-A X works when the guest has stopped listening.
 */
#include "runtime/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "runtime/event_loop.h"
#include "runtime/machine.h"

enum {
    OUT_SIZE = 65536, /* bytes the guest may be ahead of stdout */
    IN_SIZE = 65536,  /* a tty's input beyond this is lost: a large paste must fit */
    PACE_BYTES = 16,  /* per PACE_NS: about what 115200 baud and a FIFO would give */
    PACE_NS = 1000000,
    ESCAPE = 0x01,        /* Ctrl-A */
    FLUSH_MS = 2000,      /* at the end, for a slow consumer */
    QUIT_GRACE_MS = 5000, /* for the VM to end in good order after a signal */
    BACKGROUND_POLL_MS = 250,
    OUT_BATCH = 512,        /* bytes written at once even without a line end */
    OUT_DELAY_NS = 1000000, /* that an unfinished line waits for its rest */
};

static const int fatal_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS};
#define FATAL_SIGNALS (sizeof(fatal_signals) / sizeof(fatal_signals[0]))

struct terminal {
    struct chardev chardev;
    struct machine *machine; /* while attached */

    int in_fd, out_fd, signal_fd; /* ours to close */
    int signal_write;             /* the pipe's other end, the signal thread's */
    pthread_t signal_thread;
    bool signal_thread_runs;
    _Atomic bool signal_thread_ends;
    sigset_t signals; /* that it waits for */
    int in_flags, out_flags;      /* F_SETFL to restore on fds 0 and 1, -1 = untouched */
    bool in_tty, out_tty;
    bool in_eof, out_lost;
    bool escaped; /* Ctrl-A was the last key */
    bool raw_wanted;
    bool input_at_once; /* do not wait for the guest to assert RTS */
    struct event_fd *in_event, *out_event, *signal_event; /* NULL: not pollable or gone */
    struct vm_timer pace_timer; /* gives the next bytes of a pipe or file */
    uint64_t next_give;
    struct vm_timer in_timer;  /* reads what cannot be polled, and retries in the background */
    struct vm_timer out_timer; /* sends an unfinished line */
    struct vm_timer quit_timer;

    uint8_t in[IN_SIZE];
    size_t in_head, in_len;
    uint8_t out[OUT_SIZE];
    size_t out_head, out_len;
    bool out_blocked;  /* stdout takes no more: the event loop waits for it */
    bool device_waits; /* the device was told "not all taken" */

    int end_signal;
    bool quit_by_key;
    bool handlers_set;
    sigset_t old_mask;
    struct sigaction old_pipe, old_fatal[FATAL_SIGNALS];
};

/* What the async-signal-safe restore needs.  The one piece of global state: a signal handler has no
 * argument, and there is one controlling terminal a process. */
static struct {
    struct termios saved;
    int fd;
    atomic_int raw; /* 1: saved is to be put back */
} tty;

/* All that would end a process in which nobody waits for them, so that none leaves a raw terminal
 * behind (signal(7)).  SIGUSR1 is the engine's, SIGPIPE and SIGXFSZ are ignored. */
static void add_ending_signals(sigset_t *set)
{
    static const int by_number[] = {SIGINT,    SIGTERM, SIGHUP,  SIGQUIT, SIGALRM,   SIGUSR2,
                                    SIGVTALRM, SIGPROF, SIGXCPU, SIGPWR,  SIGSTKFLT, SIGIO};

    for (size_t i = 0; i < sizeof(by_number) / sizeof(by_number[0]); i++) {
        struct sigaction old;
        /* nohup and background shells say so by ignoring a signal: leave it ignored. */
        if (sigaction(by_number[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaddset(set, by_number[i]);
    }
    for (int sig = SIGRTMIN; sig <= SIGRTMAX; sig++)
        sigaddset(set, sig);
}

/* ---- tty mode ---------------------------------------------------------------------------------
 */

void terminal_emergency_restore(void)
{
    int saved_errno = errno;

    if (atomic_exchange(&tty.raw, 0)) {
        /* From a background process group tcsetattr() would stop us with SIGTTOU. */
        sigset_t ttou, old;
        sigemptyset(&ttou);
        sigaddset(&ttou, SIGTTOU);
        pthread_sigmask(SIG_BLOCK, &ttou, &old);
        tcsetattr(tty.fd, TCSANOW, &tty.saved);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    errno = saved_errno;
}

/* Only the foreground process group may own the tty's mode; a background job gets it on SIGCONT,
 * when the shell brings it to the front. */
static void make_raw(struct terminal *t)
{
    struct termios raw;

    if (!t->in_tty || !t->raw_wanted || atomic_load(&tty.raw))
        return;
    pid_t front = tcgetpgrp(t->in_fd);
    if (front >= 0 && front != getpgrp())
        return;
    if (tcgetattr(t->in_fd, &tty.saved))
        return;
    tty.fd = t->in_fd;
    raw = tty.saved;
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    atomic_store(&tty.raw, 1);
    tcsetattr(t->in_fd, TCSANOW, &raw);
}

/* A crash of ours, before the engine has put its own handlers in place or outside them. */
static void on_fatal_signal(int sig)
{
    terminal_emergency_restore();
    signal(sig, SIG_DFL);
    raise(sig);
}

/* ---- Output -----------------------------------------------------------------------------------
 */

/* Nobody is left at the other end: without this the VM would run on unseen. */
static void end_vm(struct terminal *t, int signal)
{
    if (!t->machine || t->end_signal)
        return;
    t->end_signal = signal;
    machine_quit(t->machine);
    vm_timer_set(&t->quit_timer, timer_now(t->quit_timer.queue) + QUIT_GRACE_MS * 1000000ull);
}

static void lose_output(struct terminal *t, int error)
{
    if (t->out_lost)
        return;
    t->out_lost = true;
    t->out_len = 0;
    if (t->out_event)
        event_loop_remove_fd(machine_event_loop(t->machine), t->out_event);
    t->out_event = NULL;
    if (error == EPIPE) { /* end as any filter does whose reader has gone */
        end_vm(t, SIGPIPE);
    } else if (error == EIO && t->out_tty) {
        end_vm(t, SIGHUP);
    } else {
        fprintf(stderr, "ringshift: cannot write the guest's console to stdout: %s\r\n",
                strerror(error));
    }
}

/* Writes what stdout takes now. */
static void flush_output(struct terminal *t)
{
    bool blocked = false;

    while (t->out_len && !t->out_lost) {
        size_t run = OUT_SIZE - t->out_head;
        if (run > t->out_len)
            run = t->out_len;
        ssize_t n = write(t->out_fd, t->out + t->out_head, run);
        if (n > 0) {
            t->out_head = (t->out_head + (size_t)n) % OUT_SIZE;
            t->out_len -= (size_t)n;
        } else if (n < 0 && errno == EAGAIN) {
            blocked = true;
            break;
        } else if (n < 0 && errno != EINTR) {
            lose_output(t, errno);
        }
    }
    if (t->out_event && blocked != t->out_blocked)
        event_loop_set_events(machine_event_loop(t->machine), t->out_event, blocked ? EPOLLOUT : 0);
    t->out_blocked = blocked;
}

static size_t put_output(struct terminal *t, const uint8_t *buf, size_t len)
{
    size_t room = OUT_SIZE - t->out_len;
    size_t taken = len < room ? len : room;

    for (size_t i = 0; i < taken; i++)
        t->out[(t->out_head + t->out_len + i) % OUT_SIZE] = buf[i];
    t->out_len += taken;
    return taken;
}

static size_t terminal_write(struct chardev *c, const uint8_t *buf, size_t len)
{
    struct terminal *t = (struct terminal *)c; /* chardev is its first member */

    if (t->out_lost)
        return len;
    size_t taken = put_output(t, buf, len);
    if (t->out_blocked && t->out_event)
        ; /* stdout is full: the event loop goes on when it is not */
    else if (t->out_len >= OUT_BATCH || !t->machine || memchr(buf, '\n', taken))
        flush_output(t);
    else if (!t->out_timer.armed)
        vm_timer_set(&t->out_timer, timer_now(t->out_timer.queue) + OUT_DELAY_NS);
    if (taken < len && !t->out_lost)
        taken += put_output(t, buf + taken, len - taken);
    if (t->out_lost)
        return len;
    t->device_waits = taken < len;
    return taken;
}

static void on_output_ready(void *opaque, uint32_t events)
{
    struct terminal *t = opaque;

    flush_output(t);
    if (t->device_waits && t->out_len < OUT_SIZE / 2) {
        t->device_waits = false;
        chardev_writable(&t->chardev);
    }
}

static void on_output_timer(void *opaque)
{
    on_output_ready(opaque, 0);
}

/* Our own words among the guest's, on a tty in raw mode: CR LF. */
static void tell(struct terminal *t, const char *text)
{
    uint8_t buf[1024];
    size_t n = 0;

    for (; *text && n + 2 < sizeof(buf); text++) {
        if (*text == '\n')
            buf[n++] = '\r';
        buf[n++] = (uint8_t)*text;
    }
    put_output(t, buf, n);
    flush_output(t);
}

/* ---- Input ------------------------------------------------------------------------------------
 */

static void tell_stats(struct terminal *t)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    if (!f)
        return;
    machine_print_stats(t->machine, f);
    fclose(f);
    tell(t, "\n");
    for (char *line = text, *end; line && *line; line = end) {
        end = strchr(line, '\n');
        end = end ? end + 1 : line + strlen(line);
        char keep = *end;
        *end = '\0';
        tell(t, line);
        *end = keep;
    }
    free(text);
}

/* Handles the key after Ctrl-A; true if the key is for the guest after all. */
static bool escape_key(struct terminal *t, uint8_t key)
{
    switch (key) {
    case ESCAPE:
    case 'a':
        return true;
    case 'x':
    case 'X':
        tell(t, "\nringshift: ended by Ctrl-A X\n");
        t->quit_by_key = true;
        machine_quit(t->machine);
        return false;
    case 's':
    case 'S':
        tell_stats(t);
        return false;
    case 'b':
    case 'B':
        chardev_break(&t->chardev);
        return false;
    case 'p':
    case 'P':
        machine_power_button(t->machine);
        return false;
    default:
        tell(t, "\nCtrl-A H  this help\n"
                "Ctrl-A X  end the virtual machine\n"
                "Ctrl-A P  press its power button\n"
                "Ctrl-A B  send a break (with a letter after it: Linux's magic SysRq)\n"
                "Ctrl-A S  show statistics\n"
                "Ctrl-A Ctrl-A  send Ctrl-A to the guest\n");
        return false;
    }
}

/* Bytes from the tty: takes out the escapes.  What does not fit is lost, as keys are. */
static void filter_keys(struct terminal *t, const uint8_t *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t key = buf[i];
        if (!t->escaped && key == ESCAPE) {
            t->escaped = true;
            continue;
        }
        if (t->escaped) {
            t->escaped = false;
            if (!escape_key(t, key))
                continue;
            key = ESCAPE;
        }
        if (t->in_len < IN_SIZE)
            t->in[(t->in_head + t->in_len++) % IN_SIZE] = key;
    }
}

/* Input that comes as fast as it can be read is given at the speed of a line, or a guest that
 * echoes it would do nothing else. */
static void give_paced(struct terminal *t)
{
    uint64_t now = timer_now(t->pace_timer.queue);

    if (!t->in_len || (!t->input_at_once && !chardev_ready(&t->chardev)))
        return; /* a person types again what came too early; a pipe or file cannot */
    if (now >= t->next_give) {
        size_t run = IN_SIZE - t->in_head;
        run = run < t->in_len ? run : t->in_len;
        run = run < PACE_BYTES ? run : PACE_BYTES;
        size_t n = chardev_receive(&t->chardev, t->in + t->in_head, run);
        t->in_head = (t->in_head + n) % IN_SIZE;
        t->in_len -= n;
        t->next_give = now + PACE_NS;
        if (n < run)
            return; /* the device says when it has room */
    }
    if (t->in_len)
        vm_timer_set(&t->pace_timer, t->next_give);
}

static void give_input(struct terminal *t)
{
    if (!t->in_tty) {
        give_paced(t);
        return;
    }
    while (t->in_len) {
        size_t run = IN_SIZE - t->in_head;
        if (run > t->in_len)
            run = t->in_len;
        size_t n = chardev_receive(&t->chardev, t->in + t->in_head, run);
        t->in_head = (t->in_head + n) % IN_SIZE;
        t->in_len -= n;
        if (n < run)
            return;
    }
}

static void end_input(struct terminal *t)
{
    t->in_eof = true;
    if (t->in_event)
        event_loop_remove_fd(machine_event_loop(t->machine), t->in_event);
    t->in_event = NULL;
}

/* Reads once; true if bytes came. */
static bool read_input(struct terminal *t)
{
    uint8_t buf[4096];
    ssize_t n;

    /* What is not a tty is read only when the buffer is empty. */
    do
        n = read(t->in_fd, buf, sizeof(buf));
    while (n < 0 && errno == EINTR);

    if (n > 0) {
        if (t->in_tty)
            filter_keys(t, buf, (size_t)n);
        else
            for (ssize_t i = 0; i < n; i++)
                t->in[(t->in_head + t->in_len++) % IN_SIZE] = buf[i];
        return true;
    }
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n < 0 && errno == EIO && t->in_tty && tcgetpgrp(t->in_fd) >= 0) {
        /* A background job may not read the tty: look again after a while. */
        if (t->in_event)
            event_loop_set_events(machine_event_loop(t->machine), t->in_event, 0);
        vm_timer_set(&t->in_timer, timer_now(t->in_timer.queue) + BACKGROUND_POLL_MS * 1000000ull);
        return false;
    }
    /* The end of a file or pipe is no end of the VM: it goes on without.  A tty has no end but a
     * hang-up. */
    end_input(t);
    if (t->in_tty)
        end_vm(t, SIGHUP);
    return false;
}

/* Moves input on, as far as source and device allow. */
static void pump_input(struct terminal *t)
{
    give_input(t);
    if (!t->in_eof && (t->in_tty || !t->in_len) && read_input(t))
        give_input(t);
    if (t->in_eof)
        return;
    if (t->in_event) {
        if (!t->in_timer.armed)
            event_loop_set_events(machine_event_loop(t->machine), t->in_event,
                                  t->in_tty || !t->in_len ? EPOLLIN : 0);
    } else if (!t->in_len) {
        /* A regular file: there is more, or its end, right now. */
        vm_timer_set(&t->in_timer, timer_now(t->in_timer.queue));
    }
}

static void on_input_ready(void *opaque, uint32_t events)
{
    pump_input(opaque);
}

static void on_pace_timer(void *opaque)
{
    pump_input(opaque);
}

static void on_input_timer(void *opaque)
{
    struct terminal *t = opaque;

    make_raw(t);
    pump_input(t);
}

static void terminal_accept_input(struct chardev *c)
{
    struct terminal *t = (struct terminal *)c;

    give_input(t);
    /* Reading more is left to the event loop: this is a vCPU's time. */
    if (!t->in_len && !t->in_eof && t->machine) {
        if (!t->in_event)
            vm_timer_set(&t->in_timer, timer_now(t->in_timer.queue));
        else if (!t->in_timer.armed)
            event_loop_set_events(machine_event_loop(t->machine), t->in_event, EPOLLIN);
    }
}

/* ---- Signals ----------------------------------------------------------------------------------
 */

/*
 * Waits for the process's signals and writes their numbers into a pipe, one byte each, for the event loop.
 * No signalfd: with one in an epoll set Linux wakes that set's thread for each signal of any thread,
 * whether it is in the mask or not (signalfd_notify()), and the vCPU's SIGSEGVs are thousands a second.
 */
static void *signal_thread(void *opaque)
{
    struct terminal *t = opaque;
    siginfo_t si;

    while (!atomic_load(&t->signal_thread_ends)) {
        int number = sigwaitinfo(&t->signals, &si);
        uint8_t byte = (uint8_t)number;
        if (number <= 0 || atomic_load(&t->signal_thread_ends))
            continue;
        /* A pipe that is full of signals that nobody has looked at takes no more of them. */
        if (write(t->signal_write, &byte, 1) < 0)
            continue;
    }
    return NULL;
}

/* On this CPU: where another thread has run lately, unmapping memory costs an interrupt (near.h). */
static int start_signal_thread(struct terminal *t, char *err, unsigned errlen)
{
    pthread_attr_t attr;
    sigset_t all, old;
    int fds[2], cpu = sched_getcpu(), code;
    cpu_set_t cpus;

    if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0)
        return -errno;
    t->signal_fd = fds[0];
    t->signal_write = fds[1];
    code = pthread_attr_init(&attr);
    if (code)
        return -code;
    CPU_ZERO(&cpus);
    if (cpu >= 0 && cpu < CPU_SETSIZE) {
        CPU_SET((size_t)cpu, &cpus);
        pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    code = pthread_create(&t->signal_thread, &attr, signal_thread, t);
    if (code) /* the CPU may have gone meanwhile */
        code = pthread_create(&t->signal_thread, NULL, signal_thread, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    t->signal_thread_runs = code == 0;
    if (code)
        snprintf(err, errlen, "cannot start the terminal's thread for signals: %s (limits on the number of "
                 "processes, such as ulimit -u or a container's, count threads)", strerror(code));
    return -code;
}

static void stop_signal_thread(struct terminal *t)
{
    if (!t->signal_thread_runs)
        return;
    atomic_store(&t->signal_thread_ends, true);
    /* One that it waits for whatever the process was told to ignore. */
    pthread_kill(t->signal_thread, SIGCONT);
    pthread_join(t->signal_thread, NULL);
    t->signal_thread_runs = false;
}

static void on_signal_ready(void *opaque, uint32_t events)
{
    struct terminal *t = opaque;
    uint8_t number;

    while (read(t->signal_fd, &number, 1) == 1) {
        switch (number) {
        case SIGTSTP:
            terminal_emergency_restore();
            kill(getpid(), SIGSTOP);
            break; /* SIGCONT, which woke us, comes next */
        case SIGCONT:
            /* Someone else may have set the mode meanwhile; what it is now is what to restore. */
            terminal_emergency_restore();
            make_raw(t);
            break;
        default:
            if (t->end_signal) { /* asked twice: at once */
                terminal_emergency_restore();
                _exit(128 + number);
            }
            end_vm(t, number);
        }
    }
}

static void on_quit_timer(void *opaque)
{
    static const char text[] = "ringshift: the guest did not stop in time; ending at once\n";
    struct terminal *t = opaque;

    terminal_emergency_restore();
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
        _exit(128 + t->end_signal);
    _exit(128 + t->end_signal);
}

/* ---- Life -------------------------------------------------------------------------------------
 */

/* An open file of our own for what fd refers to, non-blocking; see the top of this file. */
static int open_again(int fd, int mode, int *flags)
{
    char path[32];
    struct stat st;
    int own = -1;

    *flags = -1;
    if (fstat(fd, &st) == 0 && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode))) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        own = open(path, mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    }
    if (own < 0) {
        own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (own >= 0 && !S_ISREG(st.st_mode)) {
            *flags = fcntl(fd, F_GETFL);
            if (*flags >= 0)
                fcntl(fd, F_SETFL, *flags | O_NONBLOCK);
        }
    }
    return own;
}

int terminal_create(struct terminal **out, char *err, size_t errlen)
{
    static const struct chardev_ops ops = {
        .write = terminal_write,
        .accept_input = terminal_accept_input,
    };
    struct terminal *t = calloc(1, sizeof(*t));
    int code;

    *out = NULL;
    if (!t) {
        snprintf(err, errlen, "out of memory for the terminal");
        return -ENOMEM;
    }
    t->chardev.ops = &ops;
    t->in_fd = open_again(STDIN_FILENO, O_RDONLY, &t->in_flags);
    code = t->in_fd < 0 ? -errno : 0;
    t->out_fd = open_again(STDOUT_FILENO, O_WRONLY, &t->out_flags);
    code = t->out_fd < 0 && !code ? -errno : code;
    t->in_tty = t->in_fd >= 0 && isatty(t->in_fd);
    t->out_tty = t->out_fd >= 0 && isatty(t->out_fd);

    t->signal_fd = t->signal_write = -1;

    sigemptyset(&t->signals);
    add_ending_signals(&t->signals);
    sigaddset(&t->signals, SIGTSTP);
    sigaddset(&t->signals, SIGCONT);
    pthread_sigmask(SIG_BLOCK, &t->signals, &t->old_mask);
    err[0] = 0;
    if (!code)
        code = start_signal_thread(t, err, errlen);
    if (code) {
        if (!err[0])
            snprintf(err, errlen, "cannot set up the terminal: %s", strerror(-code));
        terminal_destroy(t);
        return code;
    }

    struct sigaction ignore = {.sa_handler = SIG_IGN};
    struct sigaction fatal = {.sa_handler = on_fatal_signal,
                              .sa_flags = (int)(SA_RESETHAND | SA_ONSTACK)};
    sigaction(SIGPIPE, &ignore, &t->old_pipe);
    for (size_t i = 0; i < FATAL_SIGNALS; i++)
        sigaction(fatal_signals[i], &fatal, &t->old_fatal[i]);
    t->handlers_set = true;
    atexit(terminal_emergency_restore);
    *out = t;
    return 0;
}

struct chardev *terminal_chardev(struct terminal *t)
{
    return &t->chardev;
}

void terminal_input_at_once(struct terminal *t)
{
    t->input_at_once = true;
}

int terminal_attach(struct terminal *t, struct machine *m)
{
    struct event_loop *loop = machine_event_loop(m);
    int code;

    machine_lock(m);
    t->machine = m;
    vm_timer_init(&t->pace_timer, event_loop_timers(loop), on_pace_timer, t);
    vm_timer_init(&t->in_timer, event_loop_timers(loop), on_input_timer, t);
    vm_timer_init(&t->quit_timer, event_loop_timers(loop), on_quit_timer, t);
    vm_timer_init(&t->out_timer, event_loop_timers(loop), on_output_timer, t);
    code = event_loop_add_fd(loop, t->signal_fd, EPOLLIN, on_signal_ready, t, &t->signal_event);
    if (!code) {
        code = event_loop_add_fd(loop, t->in_fd, EPOLLIN, on_input_ready, t, &t->in_event);
        if (code == -EPERM) { /* a regular file, /dev/null */
            vm_timer_set(&t->in_timer, timer_now(t->in_timer.queue));
            code = 0;
        }
    }
    if (!code) {
        code = event_loop_add_fd(loop, t->out_fd, 0, on_output_ready, t, &t->out_event);
        if (code == -EPERM)
            code = 0;
    }
    if (!code) {
        t->raw_wanted = true;
        make_raw(t);
    }
    machine_unlock(m);
    return code;
}

void terminal_detach(struct terminal *t)
{
    struct machine *m = t->machine;

    if (!m)
        return;
    machine_lock(m);
    struct event_loop *loop = machine_event_loop(m);
    if (t->in_event)
        event_loop_remove_fd(loop, t->in_event);
    if (t->out_event)
        event_loop_remove_fd(loop, t->out_event);
    if (t->signal_event)
        event_loop_remove_fd(loop, t->signal_event);
    t->in_event = t->out_event = t->signal_event = NULL;
    vm_timer_cancel(&t->pace_timer);
    vm_timer_cancel(&t->in_timer);
    vm_timer_cancel(&t->out_timer);
    vm_timer_cancel(&t->quit_timer);
    t->in_eof = true;
    t->machine = NULL;
    machine_unlock(m);
}

/* The rest of the output: for as long as the consumer takes if the guest ended by itself, not long
 * if somebody wants us gone. */
static void drain_output(struct terminal *t)
{
    struct timespec start, now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    while (t->out_len && !t->out_lost) {
        int wait = -1;
        flush_output(t);
        if (!t->out_len)
            break;
        if (t->end_signal || t->quit_by_key) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            long spent =
                (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
            if (spent >= FLUSH_MS)
                break;
            wait = (int)(FLUSH_MS - spent);
        }
        struct pollfd p[2] = {{.fd = t->out_fd, .events = POLLOUT},
                              {.fd = t->signal_fd, .events = POLLIN}};
        uint8_t number;
        if (poll(p, 2, wait) > 0 && (p[1].revents & POLLIN) && read(t->signal_fd, &number, 1) == 1 &&
            number != SIGTSTP && number != SIGCONT) {
            t->end_signal = number;
            break;
        }
    }
}

void terminal_restore(struct terminal *t)
{
    if (t->out_fd >= 0)
        drain_output(t);
    t->raw_wanted = false;
    terminal_emergency_restore();
}

void terminal_destroy(struct terminal *t)
{
    if (!t)
        return;
    terminal_restore(t);
    if (t->in_flags >= 0)
        fcntl(STDIN_FILENO, F_SETFL, t->in_flags);
    if (t->out_flags >= 0)
        fcntl(STDOUT_FILENO, F_SETFL, t->out_flags);
    stop_signal_thread(t);
    int fds[4] = {t->in_fd, t->out_fd, t->signal_fd, t->signal_write};
    for (size_t i = 0; i < 4; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (t->handlers_set) {
        sigaction(SIGPIPE, &t->old_pipe, NULL);
        for (size_t i = 0; i < FATAL_SIGNALS; i++) {
            struct sigaction now;
            /* Unless the engine has put its own in place meanwhile. */
            if (!sigaction(fatal_signals[i], NULL, &now) && now.sa_handler == on_fatal_signal)
                sigaction(fatal_signals[i], &t->old_fatal[i], NULL);
        }
    }
    pthread_sigmask(SIG_SETMASK, &t->old_mask, NULL);
    free(t);
}

int terminal_end_signal(const struct terminal *t)
{
    return t->end_signal;
}
