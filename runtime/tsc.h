/*
 * The rate of the host's TSC, measured against CLOCK_MONOTONIC.  The guest trusts it (CPUID.15H),
 * so it must be good to a few parts per million; nominal rates (CPUID, brand strings) are not.
 */
#ifndef RINGSHIFT_RUNTIME_TSC_H
#define RINGSHIFT_RUNTIME_TSC_H

#include <stdint.h>

struct tsc_calibration {
    uint64_t tsc, ns; /* a moment on both clocks */
};

/* Starts a measurement, to be finished some time later: what happens in between costs nothing. */
void tsc_calibration_begin(struct tsc_calibration *c);

/* Hz.  Sleeps for what is missing to 20 ms since begin, which bounds the error to about 5 ppm. */
uint64_t tsc_calibration_finish(const struct tsc_calibration *c);

#endif
