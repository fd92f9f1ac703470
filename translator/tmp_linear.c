#include "cpu/exception.h"
#include "mmu/mmu.h"
#include "cpu/segment.h"
int __attribute__((weak)) cpu_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, unsigned access, uint64_t *linear);
int __attribute__((weak)) cpu_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, unsigned access, uint64_t *linear)
{
    const struct segment *s = &v->seg[seg];
    if (offset + size - 1 > s->limit) { cpu_raise_code(v, seg == SEG_SS ? EXC_SS : EXC_GP, 0); return -1; }
    *linear = (uint32_t)(s->base + offset);
    return 0;
}
