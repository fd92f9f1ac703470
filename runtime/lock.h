/*
 * The machine lock, and what threads wait for under it.  A mutex of our own, because light code
 * takes it too: with the guest's FP state in the registers, so without libc, and only if it is free
 * at once (light_lock_try).  After U. Drepper, "Futexes Are Tricky", mutex 2: the word says whether
 * anybody waits, so that an uncontended release makes no system call.
 */
#ifndef RINGSHIFT_RUNTIME_LOCK_H
#define RINGSHIFT_RUNTIME_LOCK_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mmu/host_syscall.h"

/* Zero is a free lock. */
struct light_lock {
    _Atomic uint32_t state; /* 0: free, 1: held, 2: held, and somebody may wait */
};

/* Takes the lock if it is free.  Light code. */
static inline bool light_lock_try(struct light_lock *l)
{
    uint32_t free = 0;

    return atomic_compare_exchange_strong_explicit(&l->state, &free, 1, memory_order_acquire,
                                                   memory_order_relaxed);
}

/* Waits for the lock as long as it takes. */
void light_lock_take(struct light_lock *l);

/* Light code. */
static inline void light_lock_release(struct light_lock *l)
{
    if (atomic_exchange_explicit(&l->state, 0, memory_order_release) == 2)
        host_syscall6(SYS_futex, (uintptr_t)&l->state, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0);
}

/* A condition variable for such a lock.  Zero is a valid one. */
struct light_cond {
    _Atomic uint32_t signals;
};

/* With the lock held: waits without it for a signal, or for nothing at all: check the condition
 * again. */
void light_cond_wait(struct light_cond *c, struct light_lock *l);
void light_cond_signal(struct light_cond *c);
void light_cond_broadcast(struct light_cond *c);

#endif
