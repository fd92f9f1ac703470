/*
 * Saving and restoring the guest's FP/SIMD state.
 *
 * The state is kept in XSAVE standard format and moved with plain XSAVE and XRSTOR: XSAVEOPT's
 * "modified" optimisation compares with the area of the last XRSTOR, an assumption that signal
 * delivery by the host kernel (which does its own XSAVE/XRSTOR) and a reset of the area by C code
 * would both break.  XSAVE writes every requested component, so nothing stale is left in the area
 * whatever XSTATE_BV says.  SDM vol. 1, 13.7 and 13.8.
 *
 * The components moved are those guest code can reach: x87, SSE, AVX and the AVX-512 ones.
 * PKRU and AMX are never exposed to a guest (cpu/cpuid.c); PKRU moreover governs the VMM's own
 * accesses and must not be loaded from guest state.
 */
#include "cpu/fpu.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>

#include "cpu/cpuid.h"

#define FXSAVE_SIZE  512
#define XSAVE_HEADER 64
#define MXCSR_RESET  0x1f80u
#define FCW_RESET    0x037fu

static uint64_t read_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

void vcpu_fp_save_slow(struct vcpu *v)
{
    static const uint32_t mxcsr = MXCSR_RESET;

    if (v->fp_host_mask)
        __asm__ volatile("xsave64 (%0)"
                         :
                         : "r"(v->fp_area), "a"((uint32_t)v->fp_host_mask),
                           "d"((uint32_t)(v->fp_host_mask >> 32))
                         : "memory");
    else
        __asm__ volatile("fxsave64 (%0)" : : "r"(v->fp_area) : "memory");
    /* The guest's control words must not reach C code: unmasked exceptions would hit the VMM. */
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr) : "memory");
    v->fp_saved = 1;
}

void vcpu_fp_restore(struct vcpu *v)
{
    if (v->fp_host_mask)
        __asm__ volatile("xrstor64 (%0)"
                         :
                         : "r"(v->fp_area), "a"((uint32_t)v->fp_host_mask),
                           "d"((uint32_t)(v->fp_host_mask >> 32))
                         : "memory");
    else
        __asm__ volatile("fxrstor64 (%0)" : : "r"(v->fp_area) : "memory");
    v->fp_saved = 0;
}

/* Size of a standard-format area that holds the components of `mask` (CPUID.0DH, SDM vol. 1,
 * 13.4.2). */
static uint32_t area_size(uint64_t mask)
{
    uint32_t size = FXSAVE_SIZE + XSAVE_HEADER;

    for (unsigned i = 2; i < 63; i++) {
        uint32_t a, b, c, d;
        if (!(mask >> i & 1))
            continue;
        __cpuid_count(0xd, i, a, b, c, d);
        if (b + a > size)
            size = b + a;
    }
    return size;
}

/* The state after INIT of every component (SDM vol. 1, 13.6): XSTATE_BV = 0 makes XRSTOR load it;
 * MXCSR is loaded from memory regardless, and FXRSTOR takes everything from memory. */
void vcpu_fp_reset(struct vcpu *v)
{
    uint32_t size = v->fp_host_mask ? area_size(v->fp_host_mask) : FXSAVE_SIZE;

    for (uint32_t i = 0; i < size; i++)
        v->fp_area[i] = 0;
    v->fp_area[0] = FCW_RESET & 0xff;
    v->fp_area[1] = FCW_RESET >> 8;
    v->fp_area[24] = MXCSR_RESET & 0xff;
    v->fp_area[25] = MXCSR_RESET >> 8;
    v->fp_saved = 1;
}

int vcpu_fp_init(struct vcpu *v)
{
    uint32_t a, b, c, d;

    v->fp_host_mask = 0;
    __cpuid(1, a, b, c, d);
    if (c & bit_OSXSAVE)
        v->fp_host_mask = read_xcr0() & XCR0_VIRTUALISED;
    uint32_t size = v->fp_host_mask ? area_size(v->fp_host_mask) : FXSAVE_SIZE;
    v->fp_area = aligned_alloc(64, (size + 63) & ~63u);
    if (!v->fp_area)
        return -ENOMEM;
    vcpu_fp_reset(v);
    return 0;
}

void vcpu_fp_destroy(struct vcpu *v)
{
    free(v->fp_area);
    v->fp_area = NULL;
}
