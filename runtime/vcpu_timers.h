/*
 * The timers of one vCPU, its local APIC's, run by the vCPU's own thread.
 *
 * A timer of the kernel's (timer_create(2), SIGEV_THREAD_ID) sends the thread the engine's kick
 * signal when the earliest deadline has come; the handler raises EV_TIMER, and the thread calls
 * vcpu_timers_run() as soon as it can, asleep or not.  By way of the I/O thread that would be a
 * wake-up, a change of threads and a signal, which takes three to four times as long.
 *
 * Where the kernel refuses such a timer (a seccomp filter, the limit of pending signals), and while
 * the thread does not exist, a timer of the I/O thread's does the work.
 *
 * All functions are called with the machine lock held.
 */
#ifndef RINGSHIFT_RUNTIME_VCPU_TIMERS_H
#define RINGSHIFT_RUNTIME_VCPU_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/timer.h"

struct event_loop;

struct vcpu_timers {
    struct timer_queue queue; /* on the clock of the event loop's timers */
    struct event_loop *loop;
    struct vm_timer relay; /* of the I/O thread's */
    int id;                /* the kernel's timer; -1: there is none */
    uint64_t armed;        /* what it waits for, TIMER_NEVER if for nothing */
    bool asleep;           /* between vcpu_timers_sleep() and vcpu_timers_wake()       */
    bool running;          /* whoever runs the timers arms at the end */
};

void vcpu_timers_init(struct vcpu_timers *t, struct event_loop *loop);
/* The calling thread is the vCPU's, and calls vcpu_timers_run() after it has got this signal.
 * 0: there is none.  True if that is how it is done from now on. */
bool vcpu_timers_begin(struct vcpu_timers *t, int signal);
/* The thread is about to end. */
void vcpu_timers_end(struct vcpu_timers *t);
/* Calls what is due, and arms for what comes next: also whenever a signal may have been lost, and
 * when the clock has been set going again. */
void vcpu_timers_run(struct vcpu_timers *t);
/*
 * The thread is about to sleep, and does not need a signal to wake up: it calls vcpu_timers_run()
 * itself when CLOCK_MONOTONIC shows vcpu_timers_deadline() (TIMER_NEVER: no need to), which is to
 * be asked again then.
 */
void vcpu_timers_sleep(struct vcpu_timers *t);
uint64_t vcpu_timers_deadline(const struct vcpu_timers *t);
void vcpu_timers_wake(struct vcpu_timers *t);

#endif
