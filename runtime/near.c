/* A helper thread on the CPU of the one it works for: see near.h. */
#include "runtime/near.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOK_EVERY   64u /* calls */
#define LOOSE_SHARE  8u  /* of its time on a CPU: one part in so many */
#define NSEC_PER_SEC 1000000000ull

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t = {0};

    syscall(SYS_clock_gettime, clock, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static bool put(struct near_thread *n, const uint64_t *mask)
{
    return syscall(SYS_sched_setaffinity, n->tid, sizeof(n->anywhere), mask) == 0;
}

void near_thread_begin(struct near_thread *n)
{
    unsigned cpus = 0;

    *n = (struct near_thread){.cpu = -1, .tid = (int)syscall(SYS_gettid)};
    if (syscall(SYS_sched_getaffinity, 0, sizeof(n->anywhere), n->anywhere) < 0 ||
        pthread_getcpuclockid(pthread_self(), &n->clock))
        return;
    for (unsigned i = 0; i < NEAR_MASK_WORDS; i++)
        cpus += (unsigned)__builtin_popcountll(n->anywhere[i]);
    n->on = cpus > 1;
}

/* Has it had much to do lately? */
static void look(struct near_thread *n)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC), used = now_ns(n->clock);

    n->loose = n->seen_ns && (used - n->used_ns) * LOOSE_SHARE > now - n->seen_ns;
    n->seen_ns = now;
    n->used_ns = used;
    if (n->loose && n->cpu >= 0) {
        put(n, n->anywhere);
        n->cpu = -1;
    }
}

void near_thread_follow(struct near_thread *n)
{
    uint64_t mask[NEAR_MASK_WORDS] = {0};
    int cpu;

    if (!n->on)
        return;
    if (n->calls++ % LOOK_EVERY == 0)
        look(n);
    cpu = n->loose ? -1 : sched_getcpu();
    if (cpu < 0 || cpu == n->cpu || cpu >= NEAR_MASK_WORDS * 64)
        return;
    mask[cpu / 64] = 1ull << (cpu % 64);
    if (put(n, mask))
        n->cpu = cpu;
    else
        n->on = false; /* a policy against it */
}
