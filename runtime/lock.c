/* The machine lock: see lock.h. */
#include "runtime/lock.h"

#include <limits.h>

static void wait_while(_Atomic uint32_t *word, uint32_t value)
{
    host_syscall6(SYS_futex, (uintptr_t)word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, value, 0, 0, 0);
}

static void wake(_Atomic uint32_t *word, uint32_t threads)
{
    host_syscall6(SYS_futex, (uintptr_t)word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, threads, 0, 0, 0);
}

void light_lock_take(struct light_lock *l)
{
    if (light_lock_try(l))
        return;
    /* From here on the release must wake somebody up, even if it is not us who waits. */
    while (atomic_exchange_explicit(&l->state, 2, memory_order_acquire) != 0)
        wait_while(&l->state, 2);
}

void light_cond_wait(struct light_cond *c, struct light_lock *l)
{
    uint32_t before = atomic_load(&c->signals);

    light_lock_release(l);
    wait_while(&c->signals, before);
    light_lock_take(l);
}

void light_cond_signal(struct light_cond *c)
{
    atomic_fetch_add(&c->signals, 1);
    wake(&c->signals, 1);
}

void light_cond_broadcast(struct light_cond *c)
{
    atomic_fetch_add(&c->signals, 1);
    wake(&c->signals, INT_MAX);
}
