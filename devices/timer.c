/* The timer queue: see timer.h.  A machine has about ten timers, so a sorted list is enough. */
#include "devices/timer.h"

#include <stddef.h>

void vm_timer_init(struct vm_timer *t, struct timer_queue *q, void (*callback)(void *),
                   void *opaque)
{
    *t = (struct vm_timer){.queue = q, .callback = callback, .opaque = opaque};
}

static void unlink_timer(struct vm_timer *t)
{
    if (t->prev)
        t->prev->next = t->next;
    else
        t->queue->first = t->next;
    if (t->next)
        t->next->prev = t->prev;
    t->prev = t->next = NULL;
    t->armed = false;
}

void vm_timer_cancel(struct vm_timer *t)
{
    if (t->armed)
        unlink_timer(t);
}

void vm_timer_set(struct vm_timer *t, uint64_t deadline_ns)
{
    struct timer_queue *q = t->queue;
    uint64_t earliest = timer_queue_next(q);
    struct vm_timer *before = NULL, *after;

    vm_timer_cancel(t);
    if (deadline_ns == TIMER_NEVER)
        return;
    /* Equal deadlines fire in the order in which they were armed. */
    for (after = q->first; after && after->deadline <= deadline_ns; after = after->next)
        before = after;
    t->deadline = deadline_ns;
    t->armed = true;
    t->prev = before;
    t->next = after;
    if (before)
        before->next = t;
    else
        q->first = t;
    if (after)
        after->prev = t;
    if (q->sooner && deadline_ns < earliest)
        q->sooner(q->opaque, deadline_ns);
}

uint64_t timer_queue_run(struct timer_queue *q)
{
    uint64_t now = timer_now(q);

    while (q->first && q->first->deadline <= now) {
        struct vm_timer *t = q->first;

        unlink_timer(t);
        t->callback(t->opaque);
    }
    return timer_queue_next(q);
}

uint64_t timer_next_period(uint64_t previous, uint64_t period, uint64_t now)
{
    uint64_t next = previous + period;

    if (next > now || period == 0)
        return next;
    return previous + ((now - previous) / period + 1) * period;
}
