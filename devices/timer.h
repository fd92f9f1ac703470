/*
 * Timers of the machine: a queue of absolute deadlines in nanoseconds of a monotonic clock.
 * The queue does not know who runs it: runtime/event_loop.c gives it CLOCK_MONOTONIC, a unit test
 * gives it a clock it turns by hand.
 *
 * Everything here is called with the machine lock held, and so are the callbacks.  A periodic
 * timer re-arms itself in its callback with `previous deadline + period`, which makes it free of
 * drift; a device whose callback comes more than one period late decides itself how to catch up
 * (timer_next_period()).
 */
#ifndef RINGSHIFT_DEVICES_TIMER_H
#define RINGSHIFT_DEVICES_TIMER_H

#include <stdbool.h>
#include <stdint.h>

#define TIMER_NEVER  UINT64_MAX
#define NSEC_PER_SEC 1000000000ull

struct vm_timer;

struct timer_queue {
    uint64_t (*now)(void *opaque);
    /* The earliest deadline became earlier than it was: whoever waits must wait for less.  It is
     * not told when the earliest deadline goes away or moves later.  May be NULL. */
    void (*sooner)(void *opaque, uint64_t deadline);
    void *opaque;
    struct vm_timer *first; /* sorted by deadline */
};

struct vm_timer {
    struct timer_queue *queue;
    void (*callback)(void *opaque);
    void *opaque;
    uint64_t deadline; /* meaningful while armed */
    bool armed;
    struct vm_timer *prev, *next;
};

static inline uint64_t timer_now(const struct timer_queue *q)
{
    return q->now(q->opaque);
}

void vm_timer_init(struct vm_timer *t, struct timer_queue *q, void (*callback)(void *),
                   void *opaque);

/* Arms or re-arms; a deadline in the past fires as soon as the queue is run.  TIMER_NEVER
 * cancels. */
void vm_timer_set(struct vm_timer *t, uint64_t deadline_ns);
void vm_timer_cancel(struct vm_timer *t);

/* Calls what is due by now.  Returns the next deadline, TIMER_NEVER if there is none. */
uint64_t timer_queue_run(struct timer_queue *q);

static inline uint64_t timer_queue_next(const struct timer_queue *q)
{
    return q->first ? q->first->deadline : TIMER_NEVER;
}

/*
 * The deadline after `previous` of a timer with this period: previous + period, or, when that has
 * passed already, the first multiple that has not, so that a machine that did not run for a while
 * (host suspend, SIGSTOP, a debugger) loses ticks and is not flooded with them.
 */
uint64_t timer_next_period(uint64_t previous, uint64_t period, uint64_t now);

/* a * b / c without overflow of the product; saturates at UINT64_MAX.  c > 0. */
static inline uint64_t mul_div(uint64_t a, uint64_t b, uint64_t c)
{
    unsigned __int128 r = (unsigned __int128)a * b / c;

    return r > UINT64_MAX ? UINT64_MAX : (uint64_t)r;
}

#endif
