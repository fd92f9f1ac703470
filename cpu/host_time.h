/*
 * What a vCPU thread's time goes into, for --stats: one TSC reading at each change of cause, nothing
 * but a test when it is off.  Times are exclusive: a device access made by a callout counts as
 * device time.  Only the vCPU's own thread may call this.
 */
#ifndef RINGSHIFT_CPU_HOST_TIME_H
#define RINGSHIFT_CPU_HOST_TIME_H

#include <x86intrin.h>

#include "cpu/vcpu.h"

static inline enum host_cause host_time_switch(struct vcpu *v, enum host_cause to)
{
    struct host_time *t = &v->host_time;
    enum host_cause from = t->cause;

    if (t->on) {
        uint64_t now = __rdtsc();

        t->spent[from] += now - t->since;
        t->since = now;
        t->cause = to;
    }
    return from;
}

#endif
