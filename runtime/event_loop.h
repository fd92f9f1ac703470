/*
 * The machine's I/O thread: waits in epoll for timers and file descriptors and calls back with the
 * machine lock held.  It is the only thread besides the vCPUs.
 *
 * All functions but create/destroy/start/stop are called with the machine lock held (callbacks
 * have it already).
 */
#ifndef RINGSHIFT_RUNTIME_EVENT_LOOP_H
#define RINGSHIFT_RUNTIME_EVENT_LOOP_H

#include <stdint.h>

#include "devices/timer.h"
#include "runtime/lock.h"

struct event_loop;
struct event_fd;

/* `lock` outlives the loop.  0 or negative errno. */
int event_loop_create(struct event_loop **out, struct light_lock *lock);
/* Stops the thread if it runs; fds still registered are forgotten, not closed. */
void event_loop_destroy(struct event_loop *l);

/* The I/O thread is to stay on the CPU of the thread that arms timers, if it has little else to do (see
 * near.h): for machines with one vCPU.  Before start. */
void event_loop_follow(struct event_loop *l);
/* Starts the thread, with all signals blocked.  0 or negative errno. */
int event_loop_start(struct event_loop *l);
/* Ends the thread and joins it.  Not with the machine lock held, not from a callback. */
void event_loop_stop(struct event_loop *l);

/* The timers the thread runs.  Their clock is CLOCK_MONOTONIC less the time spent frozen. */
struct timer_queue *event_loop_timers(struct event_loop *l);

/* When CLOCK_MONOTONIC shows this deadline of theirs; TIMER_NEVER while that clock is frozen. */
uint64_t event_loop_host_deadline(const struct event_loop *l, uint64_t deadline);
/* For a thread that has a timer of its own instead: keeps the I/O thread near, as arming one of these
 * would. */
void event_loop_stay_near(struct event_loop *l);

/* Stops the timers' clock: none fires until thaw, and then as late as it was stopped.  Nobody has
 * adopted the timers. */
void event_loop_freeze(struct event_loop *l);
void event_loop_thaw(struct event_loop *l);

/*
 * A thread that is about to sleep until an event (a halted vCPU, whose next event is nearly always
 * a timer) can run the timers itself, which saves waking the I/O thread only to be woken by it.
 * Between adopt and hand back the I/O thread runs only timers that others arm ahead of the
 * adopter's deadline.
 *
 * adopt: returns false if somebody has the timers already.  run: calls what is due.  Both give the
 * next deadline in CLOCK_MONOTONIC, to sleep no longer than that (TIMER_NEVER: no timer).
 */
bool event_loop_adopt_timers(struct event_loop *l, uint64_t *deadline);
uint64_t event_loop_run_adopted(struct event_loop *l);
void event_loop_hand_back_timers(struct event_loop *l);

/*
 * Calls callback(opaque, events) whenever one of `events` (EPOLLIN, EPOLLOUT, ...; level
 * triggered) is pending on fd; EPOLLHUP and EPOLLERR are always reported.  Returns a handle in
 * *out; 0 or negative errno.  A regular file is not pollable: -EPERM; such an fd never blocks, so
 * the caller can read it from a timer.
 */
int event_loop_add_fd(struct event_loop *l, int fd, uint32_t events,
                      void (*callback)(void *opaque, uint32_t events), void *opaque,
                      struct event_fd **out);
/* Changes what is waited for; 0 silences even EPOLLHUP. */
void event_loop_set_events(struct event_loop *l, struct event_fd *f, uint32_t events);
/* No callback comes after this returns.  Does not close the fd. */
void event_loop_remove_fd(struct event_loop *l, struct event_fd *f);

#endif
