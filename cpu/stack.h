/*
 * Pushes and pops as transfers between code segments do them: through any SS (the current one, or
 * one that is about to be loaded from a TSS), with its width, base and limit.
 */
#ifndef RINGSHIFT_CPU_STACK_H
#define RINGSHIFT_CPU_STACK_H

#include "cpu/vcpu.h"

struct cpu_stack {
    struct segment seg; /* SS                                                                */
    uint64_t sp;        /* stack pointer, all 64 bits of it                                  */
    unsigned width;     /* of the stack pointer in bytes: 2, 4, 8                            */
    unsigned access;    /* MMU_SYSTEM for the stack of an inner privilege                    */
    uint32_t error;     /* error code of #SS                                                 */
    uint64_t desc, lin; /* from a TSS: SS's descriptor and where it is, else 0               */
};

/* The stack in use. */
struct cpu_stack cpu_stack_current(const struct vcpu *v);

/*
 * The stack that the 16- or 32-bit TSS names for privilege `cpl` (SDM vol. 3, 5.8.5 and 7.2.1), its
 * SS checked but not yet marked as accessed.  0, or -1 with #TS, #SS(SS + ext) or #PF.
 */
int cpu_stack_from_tss(struct vcpu *v, unsigned cpl, uint32_t ext, struct cpu_stack *out);

/* `count` pushes of `size` bytes each; value[0] ends at the lowest address.  Moves s->sp.  0, or -1
 * with #SS(s->error) or #PF: nothing was written, or at most what is below the stack pointer. */
int cpu_stack_push(struct vcpu *v, struct cpu_stack *s, const uint64_t *value, unsigned count,
                   unsigned size);

/* Reads `count` words of `size` bytes, starting `skip` bytes above the stack pointer.  `selectors`: bit
 * i says that word i is one, of which two bytes are read (SDM vol. 2 has them popped whole; Intel's
 * processors take what they need, and see neither a limit nor a page that the rest is past). */
int cpu_stack_peek(struct vcpu *v, const struct cpu_stack *s, unsigned skip, uint64_t *value,
                   unsigned count, unsigned size, unsigned selectors);

/* A stack pointer moved to `sp`: a 16-bit one leaves the upper half of ESP alone, a 32-bit one
 * clears the upper half of RSP. */
static inline uint64_t cpu_stack_merge(uint64_t old, uint64_t sp, unsigned width)
{
    return width == 8 ? sp : width == 4 ? (uint32_t)sp : (old & 0xffff0000u) | (sp & 0xffff);
}

#endif
