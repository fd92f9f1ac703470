/* TSC calibration: see tsc.h. */
#include "runtime/tsc.h"

#include <time.h>
#include <x86intrin.h>

#define NSEC_PER_SEC 1000000000ull
#define MIN_INTERVAL 20000000ull
#define SAMPLES      64

static uint64_t monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

static uint64_t rdtsc_ordered(void)
{
    _mm_lfence();
    return __rdtsc();
}

/* Reads both clocks as close together as they get: of several tries, the one in which the least
 * time passed around reading the clock, which no interruption can have hit. */
static void sample(struct tsc_calibration *c)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < SAMPLES; i++) {
        uint64_t before = rdtsc_ordered(), ns = monotonic_ns(), after = rdtsc_ordered();

        if (after - before < best) {
            best = after - before;
            c->tsc = before + (after - before) / 2;
            c->ns = ns;
        }
    }
}

void tsc_calibration_begin(struct tsc_calibration *c)
{
    sample(c);
}

uint64_t tsc_calibration_finish(const struct tsc_calibration *c)
{
    struct tsc_calibration end = *c;
    uint64_t until = c->ns + MIN_INTERVAL, now;

    while ((now = monotonic_ns()) < until) {
        struct timespec ts = {.tv_nsec = (long)(until - now)};

        nanosleep(&ts, NULL);
    }
    sample(&end);
    return (uint64_t)((unsigned __int128)(end.tsc - c->tsc) * NSEC_PER_SEC / (end.ns - c->ns));
}
