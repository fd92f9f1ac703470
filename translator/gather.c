/*
 * Gathers and scatters: the instructions with many addresses. They are done in C, element by
 * element, on the saved vector state, because each element may fault on its own and the elements
 * done before it must show (SDM vol. 2, VPGATHERDD: "the destination register and the mask are
 * partially updated").
 */
#include "translator/bt.h"

#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/segment.h"
#include "mmu/mmu.h"
#include "translator/xstate.h"

enum { XC_SSE = 1, XC_AVX = 2, XC_OPMASK = 5, XC_ZMM_HI256 = 6, XC_HI16_ZMM = 7 };

/* Byte `off` (0..63) of vector register `reg` in the XSAVE image. */
static uint8_t *vec_byte(struct vcpu *v, unsigned reg, unsigned off)
{
    if (reg >= 16)
        return v->fp_area + xstate_offset(XC_HI16_ZMM) + 64 * (reg - 16) + off;
    if (off < 16)
        return v->fp_area + 160 + 16 * reg + off;
    if (off < 32)
        return v->fp_area + xstate_offset(XC_AVX) + 16 * reg + (off - 16);
    return v->fp_area + xstate_offset(XC_ZMM_HI256) + 32 * reg + (off - 32);
}

static uint64_t vec_read(struct vcpu *v, unsigned reg, unsigned off, unsigned size)
{
    uint64_t x = 0;
    for (unsigned i = 0; i < size; i++)
        x |= (uint64_t)*vec_byte(v, reg, off + i) << (8 * i);
    return x;
}

static void vec_write(struct vcpu *v, unsigned reg, unsigned off, unsigned size, uint64_t x)
{
    for (unsigned i = 0; i < size; i++)
        *vec_byte(v, reg, off + i) = (uint8_t)(x >> (8 * i));
}

static void zero_above(struct vcpu *v, unsigned reg, unsigned off)
{
    unsigned max = v->fp_host_mask >> XC_ZMM_HI256 & 1 ? 64 : 32;
    for (; off < max; off++)
        *vec_byte(v, reg, off) = 0;
}

enum cpu_result gather_execute(struct vcpu *v, const struct insn *in)
{
    bool evex = in->enc == ENC_EVEX, scatter = in->op == OP_SCATTER;
    bool wide = in->raw[in->prefix_len + 2] & 0x80; /* VEX.W or EVEX.W: same place */
    unsigned data = wide ? 8 : 4, idx = in->opcode & 1 ? 8 : 4;
    unsigned n = in->vec_len / (data > idx ? data : idx);

    if (evex ? in->evex_mask == 0 || (!scatter && in->reg == in->mem.index)
             : in->reg == in->mem.index || in->reg == in->vvvv || in->vvvv == in->mem.index)
        return cpu_raise(v, EXC_UD);

    vcpu_fp_save(v);
    uint64_t used = (1u << XC_SSE) | (1u << XC_AVX);
    if (evex)
        used |= (1u << XC_OPMASK) | (1u << XC_ZMM_HI256) | (1u << XC_HI16_ZMM);
    uint64_t bv;
    __builtin_memcpy(&bv, v->fp_area + 512, 8);
    bv |= used & v->fp_host_mask;
    __builtin_memcpy(v->fp_area + 512, &bv, 8);
    uint8_t *k = evex ? v->fp_area + xstate_offset(XC_OPMASK) + 8 * in->evex_mask : NULL;
    uint64_t kmask = 0;
    if (evex) {
        __builtin_memcpy(&kmask, k, 8);
    } else { /* every mask element becomes all-ones or all-zeros by its sign bit, even those of
              * VPGATHERQD and VGATHERQPS that have no index */
        for (unsigned i = 0; i < in->vec_len / data; i++) {
            bool set = vec_read(v, in->vvvv, i * data, data) >> (8 * data - 1) & 1;
            vec_write(v, in->vvvv, i * data, data, set ? ~0ull : 0);
        }
        zero_above(v, in->vvvv, in->vec_len);
    }

    const struct insn_mem *m = &in->mem;
    uint64_t base = 0, seg = 0;
    if (m->base == BASE_RIP)
        base = v->rip + in->len;
    else if (m->base != REG_NONE)
        base = v->gpr[m->base];
    if (m->seg == SEG_FS || m->seg == SEG_GS)
        seg = v->seg[m->seg].base;

    for (unsigned i = 0; i < n; i++) {
        bool on = evex ? kmask >> i & 1 : vec_read(v, in->vvvv, i * data, data) & 1;
        if (on) {
            uint64_t x = vec_read(v, m->index, i * idx, idx);
            if (idx == 4)
                x = (uint64_t)(int64_t)(int32_t)x;
            uint64_t ea = base + x * m->scale + (uint64_t)m->disp, value = 0;
            if (in->addr_size == 4)
                ea = (uint32_t)ea;
            if (vcpu_long64(v))
                ea += seg;
            else if (cpu_linear(v, m->seg, ea, data, scatter ? MMU_WRITE : MMU_READ, &ea))
                return CPU_EXCEPTION;
            if (scatter) {
                value = vec_read(v, in->reg, i * data, data);
                if (mmu_store(v, ea, &value, data, MMU_WRITE, m->seg == SEG_SS) < 0)
                    return CPU_EXCEPTION;
            } else {
                if (mmu_load(v, ea, &value, data, MMU_READ, m->seg == SEG_SS) < 0)
                    return CPU_EXCEPTION;
                vec_write(v, in->reg, i * data, data, value);
                /* Should a later one fault, this much is seen of the zeroes that end it: what is above
                 * the vector, not what is above the elements (so it is on Intel's). */
                zero_above(v, in->reg, in->vec_len);
            }
        }
        if (evex) {
            kmask &= ~(1ull << i);
            __builtin_memcpy(k, &kmask, 8);
        } else {
            vec_write(v, in->vvvv, i * data, data, 0);
        }
    }
    if (evex) {
        kmask = 0;
        __builtin_memcpy(k, &kmask, 8);
    } else {
        zero_above(v, in->vvvv, 0);
    }
    if (!scatter) /* also if no element was active */
        zero_above(v, in->reg, n * data);
    return CPU_NEXT;
}
