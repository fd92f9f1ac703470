/*
 * Model-specific registers.  The caller has checked CPL; an MSR that does not exist, or a value it
 * cannot hold, is #GP(0).  Names and numbers after SDM vol. 4 and the Linux uapi.
 */
#ifndef RINGSHIFT_CPU_MSR_H
#define RINGSHIFT_CPU_MSR_H

#include "cpu/vcpu.h"

/* CPU_NEXT and *val, or CPU_EXCEPTION.  May call the platform (saves FP state first). */
enum cpu_result cpu_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val);

/* CPU_NEXT or CPU_EXCEPTION.  A write to EFER is serialising (cpu/system.h). */
enum cpu_result cpu_wrmsr(struct vcpu *v, uint32_t msr, uint64_t val);

#define MSR_EFER 0xc0000080u

#endif
