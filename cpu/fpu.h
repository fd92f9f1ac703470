/*
 * Guest FP/SIMD state. While translated code runs, and while light C code runs on its behalf, it
 * lives in the host's registers. Anything that may touch them (libc, device models, tracing) is
 * preceded by vcpu_fp_save(); the way back into translated code restores it when fp_saved is set.
 */
#ifndef RINGSHIFT_CPU_FPU_H
#define RINGSHIFT_CPU_FPU_H

#include "cpu/vcpu.h"

/* XSAVEs the host registers into v->fp_area and gives C code default FP settings (MXCSR, x87
 * control). Idempotent. Sets v->fp_saved. */
void vcpu_fp_save_slow(struct vcpu *v);

static inline void vcpu_fp_save(struct vcpu *v)
{
    if (!v->fp_saved)
        vcpu_fp_save_slow(v);
}

/* Loads v->fp_area into the host registers and clears fp_saved. */
void vcpu_fp_restore(struct vcpu *v);

/* Allocates fp_area and puts it in the reset state; 0 or -ENOMEM. */
int vcpu_fp_init(struct vcpu *v);
/* Puts an allocated fp_area in the reset state and makes it the current state (fp_saved). */
void vcpu_fp_reset(struct vcpu *v);
void vcpu_fp_destroy(struct vcpu *v);

#endif
