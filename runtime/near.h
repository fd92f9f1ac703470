/*
 * Keeps a helper thread on the CPU of the one it works for.
 *
 * Every unmapping of a window interrupts each CPU where a thread of this process ran lately
 * (Linux 6.13 and later remember them for a second, awake or not), which on a virtual machine costs
 * more than the unmapping: fork in a guest took 1.6 times as long when the I/O thread had another
 * CPU.  That thread mostly serves timers of the very vCPU that it interrupts, so little is lost.
 * While it has real work (a disk, a display) it may run anywhere.
 */
#ifndef RINGSHIFT_RUNTIME_NEAR_H
#define RINGSHIFT_RUNTIME_NEAR_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define NEAR_MASK_WORDS 16 /* 1024 CPUs; on larger hosts threads stay where they are */

struct near_thread {
    bool on;
    bool loose;      /* it has much to do */
    int tid, cpu;    /* cpu: where it was put; -1: nowhere */
    clockid_t clock; /* its CPU time */
    unsigned calls;  /* until the next look at that */
    uint64_t seen_ns, used_ns;
    uint64_t anywhere[NEAR_MASK_WORDS];
};

/* The calling thread is the helper.  Does nothing where the host has one CPU for it, or refuses. */
void near_thread_begin(struct near_thread *n);
/* Called now and then, at least for every timer, by the thread to be near.  Makes system calls
 * only, so that light code may come here. */
void near_thread_follow(struct near_thread *n);

#endif
