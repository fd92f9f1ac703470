/* The timers of one vCPU: see vcpu_timers.h. */
#include "runtime/vcpu_timers.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime/event_loop.h"

static uint64_t clock_now(void *opaque)
{
    const struct vcpu_timers *t = opaque;

    return timer_now(event_loop_timers(t->loop));
}

/* At the latest for this deadline.  A timer that is too early comes back here by way of
 * vcpu_timers_run(). */
static void arm(struct vcpu_timers *t, uint64_t deadline)
{
    if (t->id < 0) {
        if (deadline != TIMER_NEVER && (!t->relay.armed || deadline < t->relay.deadline))
            vm_timer_set(&t->relay, deadline);
        return;
    }
    uint64_t at = event_loop_host_deadline(t->loop, deadline);
    if (at == TIMER_NEVER || deadline >= t->armed)
        return; /* also while the clock stands still */
    event_loop_stay_near(t->loop);
    struct itimerspec its = {
        /* zero would disarm it */
        .it_value = {.tv_sec = (time_t)(at / NSEC_PER_SEC),
                     .tv_nsec = (long)(at % NSEC_PER_SEC) + !at},
    };
    if (syscall(SYS_timer_settime, t->id, TIMER_ABSTIME, &its, NULL) == 0)
        t->armed = deadline;
}

static void sooner(void *opaque, uint64_t deadline)
{
    struct vcpu_timers *t = opaque;

    if (!t->running)
        arm(t, deadline);
}

void vcpu_timers_run(struct vcpu_timers *t)
{
    t->running = true;
    uint64_t next = timer_queue_run(&t->queue);
    t->running = false;
    t->armed = TIMER_NEVER;
    if (!t->asleep)
        arm(t, next);
}

void vcpu_timers_sleep(struct vcpu_timers *t)
{
    struct itimerspec off = {.it_value = {0}};

    if (t->id < 0)
        return;
    if (t->armed != TIMER_NEVER)
        syscall(SYS_timer_settime, t->id, 0, &off, NULL);
    t->armed = TIMER_NEVER;
    t->asleep = true;
}

uint64_t vcpu_timers_deadline(const struct vcpu_timers *t)
{
    return t->asleep ? event_loop_host_deadline(t->loop, timer_queue_next(&t->queue)) : TIMER_NEVER;
}

void vcpu_timers_wake(struct vcpu_timers *t)
{
    t->asleep = false;
    arm(t, timer_queue_next(&t->queue));
}

static void relay(void *opaque)
{
    vcpu_timers_run(opaque);
}

void vcpu_timers_init(struct vcpu_timers *t, struct event_loop *loop)
{
    *t = (struct vcpu_timers){.loop = loop, .id = -1, .armed = TIMER_NEVER};
    t->queue = (struct timer_queue){.now = clock_now, .sooner = sooner, .opaque = t};
    vm_timer_init(&t->relay, event_loop_timers(loop), relay, t);
}

bool vcpu_timers_begin(struct vcpu_timers *t, int signal)
{
    struct sigevent how;
    int id;

    memset(&how, 0, sizeof(how));
    how.sigev_notify = SIGEV_THREAD_ID;
    how.sigev_signo = signal;
    how._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    if (!signal || syscall(SYS_timer_create, CLOCK_MONOTONIC, &how, &id))
        return false;
    /* A filter may know the one and not the other. */
    struct itimerspec off = {.it_value = {0}};
    if (syscall(SYS_timer_settime, id, 0, &off, NULL)) {
        syscall(SYS_timer_delete, id);
        return false;
    }
    t->id = id;
    vm_timer_cancel(&t->relay);
    t->armed = TIMER_NEVER;
    arm(t, timer_queue_next(&t->queue));
    return true;
}

void vcpu_timers_end(struct vcpu_timers *t)
{
    if (t->id < 0)
        return;
    syscall(SYS_timer_delete, t->id);
    t->id = -1;
    arm(t, timer_queue_next(&t->queue));
}
