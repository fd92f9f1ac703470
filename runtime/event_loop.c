/*
 * The I/O thread: see event_loop.h.
 *
 * One timerfd stands for the whole timer queue.  It is armed by whoever makes the earliest
 * deadline earlier (a system call, no wake-up of the thread), and left alone when deadlines go
 * away: then the thread wakes up once for nothing and arms it for what is next.
 *
 * An event_fd that is removed may still be in the batch that epoll_wait() returned, so it is only
 * marked dead, and freed by the thread between batches.
 */
#include "runtime/event_loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "runtime/near.h"

#define BATCH 16

struct event_fd {
    struct event_loop *loop;
    int fd;
    uint32_t events; /* what epoll waits for; 0: not registered with it */
    bool dead;
    void (*callback)(void *opaque, uint32_t events);
    void *opaque;
    struct event_fd *next;
};

struct event_loop {
    struct light_lock *lock;
    struct timer_queue timers;
    int epoll_fd, timer_fd, stop_fd;
    uint64_t armed;   /* deadline in the timerfd, TIMER_NEVER if none */
    bool dispatching; /* timers are being run: whoever does it arms at the end */
    bool adopted;     /* a sleeping thread runs the timers */
    bool frozen;
    bool started;
    uint64_t frozen_at; /* what the timers' clock shows while it is frozen */
    uint64_t behind;    /* how far the timers' clock is behind CLOCK_MONOTONIC */
    pthread_t thread;
    bool follow;       /* the I/O thread stays near who arms its timers */
    struct near_thread near;
    struct event_fd *fds;
};

static uint64_t monotonic_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

static uint64_t timers_now(void *opaque)
{
    const struct event_loop *l = opaque;

    return l->frozen ? l->frozen_at : monotonic_now() - l->behind;
}

uint64_t event_loop_host_deadline(const struct event_loop *l, uint64_t deadline)
{
    return l->frozen || deadline > TIMER_NEVER - l->behind ? TIMER_NEVER : deadline + l->behind;
}

/* A deadline of the timers' clock; TIMER_NEVER disarms. */
static void arm(struct event_loop *l, uint64_t deadline)
{
    uint64_t host = event_loop_host_deadline(l, deadline);
    /* To the kernel, zero means "disarm". */
    uint64_t at = host == TIMER_NEVER ? 0 : host ? host : 1;
    struct itimerspec its = {
        .it_value = {.tv_sec = (time_t)(at / NSEC_PER_SEC), .tv_nsec = (long)(at % NSEC_PER_SEC)},
    };

    l->armed = deadline;
    timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
}

void event_loop_stay_near(struct event_loop *l)
{
    if (l->follow && l->started && !pthread_equal(pthread_self(), l->thread))
        near_thread_follow(&l->near);
}

static void sooner(void *opaque, uint64_t deadline)
{
    struct event_loop *l = opaque;

    if (l->dispatching || l->frozen || deadline >= l->armed)
        return;
    event_loop_stay_near(l);
    arm(l, deadline);
}

static uint64_t run_timers(struct event_loop *l)
{
    uint64_t next;

    l->dispatching = true;
    next = timer_queue_run(&l->timers);
    l->dispatching = false;
    return next;
}

static void arm_sooner(struct event_loop *l, uint64_t deadline)
{
    if (!l->frozen && deadline < l->armed)
        arm(l, deadline);
}

bool event_loop_adopt_timers(struct event_loop *l, uint64_t *deadline)
{
    *deadline = event_loop_host_deadline(l, timer_queue_next(&l->timers));
    if (l->adopted)
        return false;
    l->adopted = true;
    if (l->armed != TIMER_NEVER)
        arm(l, TIMER_NEVER);
    return true;
}

uint64_t event_loop_run_adopted(struct event_loop *l)
{
    return event_loop_host_deadline(l, run_timers(l));
}

void event_loop_hand_back_timers(struct event_loop *l)
{
    l->adopted = false;
    arm_sooner(l, timer_queue_next(&l->timers));
}

void event_loop_freeze(struct event_loop *l)
{
    if (l->frozen)
        return;
    l->frozen_at = timers_now(l);
    l->frozen = true;
    arm(l, TIMER_NEVER);
}

void event_loop_thaw(struct event_loop *l)
{
    if (!l->frozen)
        return;
    l->behind = monotonic_now() - l->frozen_at;
    l->frozen = false;
    arm(l, timer_queue_next(&l->timers));
}

static void free_dead(struct event_loop *l)
{
    struct event_fd **at = &l->fds;

    while (*at) {
        struct event_fd *f = *at;

        if (f->dead) {
            *at = f->next;
            free(f);
        } else {
            at = &f->next;
        }
    }
}

static void dispatch(struct event_loop *l, const struct epoll_event *e, bool *stop)
{
    uint64_t count;

    if (e->data.ptr == &l->stop_fd) {
        *stop = true;
    } else if (e->data.ptr == &l->timer_fd) {
        if (read(l->timer_fd, &count, sizeof(count)) == sizeof(count))
            l->armed = TIMER_NEVER;
        arm_sooner(l, run_timers(l));
    } else {
        struct event_fd *f = e->data.ptr;

        if (!f->dead && f->events)
            f->callback(f->opaque, e->events);
    }
}

static void *thread_main(void *opaque)
{
    struct event_loop *l = opaque;
    struct epoll_event events[BATCH];
    bool stop = false;

    light_lock_take(l->lock);
    near_thread_begin(&l->near);
    light_lock_release(l->lock);
    while (!stop) {
        int n = epoll_wait(l->epoll_fd, events, BATCH, -1);

        light_lock_take(l->lock);
        for (int i = 0; i < n; i++)
            dispatch(l, &events[i], &stop);
        free_dead(l);
        light_lock_release(l->lock);
    }
    return NULL;
}

static int watch_internal(struct event_loop *l, int *fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = fd};

    if (*fd < 0)
        return -errno;
    return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, *fd, &e) ? -errno : 0;
}

int event_loop_create(struct event_loop **out, struct light_lock *lock)
{
    struct event_loop *l = calloc(1, sizeof(*l));
    int err;

    if (!l)
        return -ENOMEM;
    l->lock = lock;
    l->armed = TIMER_NEVER;
    l->timers = (struct timer_queue){.now = timers_now, .sooner = sooner, .opaque = l};
    l->timer_fd = l->stop_fd = -1;
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    err = l->epoll_fd < 0 ? -errno : 0;
    if (!err) {
        l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        err = watch_internal(l, &l->timer_fd);
    }
    if (!err) {
        l->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        err = watch_internal(l, &l->stop_fd);
    }
    if (err) {
        event_loop_destroy(l);
        return err;
    }
    *out = l;
    return 0;
}

void event_loop_destroy(struct event_loop *l)
{
    event_loop_stop(l);
    while (l->fds) {
        struct event_fd *f = l->fds;

        l->fds = f->next;
        free(f);
    }
    if (l->stop_fd >= 0)
        close(l->stop_fd);
    if (l->timer_fd >= 0)
        close(l->timer_fd);
    if (l->epoll_fd >= 0)
        close(l->epoll_fd);
    free(l);
}

void event_loop_follow(struct event_loop *l)
{
    l->follow = true;
}

int event_loop_start(struct event_loop *l)
{
    sigset_t all, old;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&l->thread, NULL, thread_main, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    l->started = err == 0;
    return -err;
}

void event_loop_stop(struct event_loop *l)
{
    uint64_t one = 1;

    if (!l->started)
        return;
    /* The counter cannot be full: this is the only write. */
    if (write(l->stop_fd, &one, sizeof(one)) == sizeof(one))
        pthread_join(l->thread, NULL);
    l->started = false;
    if (read(l->stop_fd, &one, sizeof(one)) < 0)
        return; /* nobody else reads it; nothing to do */
}

struct timer_queue *event_loop_timers(struct event_loop *l)
{
    return &l->timers;
}

int event_loop_add_fd(struct event_loop *l, int fd, uint32_t events,
                      void (*callback)(void *opaque, uint32_t events), void *opaque,
                      struct event_fd **out)
{
    struct event_fd *f = malloc(sizeof(*f));
    struct epoll_event e = {.events = events, .data.ptr = f};

    if (!f)
        return -ENOMEM;
    /* Registered even when nothing is waited for yet, to learn whether it can be. */
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &e)) {
        int err = -errno;

        free(f);
        return err;
    }
    if (events == 0)
        epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    *f = (struct event_fd){.loop = l,
                           .fd = fd,
                           .events = events,
                           .callback = callback,
                           .opaque = opaque,
                           .next = l->fds};
    l->fds = f;
    *out = f;
    return 0;
}

void event_loop_set_events(struct event_loop *l, struct event_fd *f, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = f};
    int op = events == 0 ? EPOLL_CTL_DEL : f->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

    if (events == f->events)
        return;
    epoll_ctl(l->epoll_fd, op, f->fd, &e);
    f->events = events;
}

void event_loop_remove_fd(struct event_loop *l, struct event_fd *f)
{
    event_loop_set_events(l, f, 0);
    f->dead = true;
}
