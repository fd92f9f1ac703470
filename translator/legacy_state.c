/*
 * What instructions that save and load FP state do differently outside 64-bit mode.  They run
 * natively, in 64-bit code, on a copy of their image (slow_mem.c); here the copy, or what it loaded,
 * is put right:
 *
 *   FXSAVE, XSAVE    leave the places of XMM8-15, of their upper parts and of ZMM16-31 alone
 *   FXRSTOR, XRSTOR  leave those registers alone (SDM vol. 1, 13.7-13.8; vol. 2, FXRSTOR)
 *   FNSTENV, FNSAVE, FLDENV, FRSTOR  in real and virtual-8086 mode have linear pointers, scattered,
 *                    and an opcode (SDM vol. 1, figures 8-10 and 8-12)
 *
 * Light code.
 */
#include "cpu/fpu.h"
#include "translator/bt.h"
#include "translator/host_string.h"
#include "translator/xstate.h"

enum { SSE = 1, AVX = 2, ZMM_HI256 = 6, HI16_ZMM = 7 };
#define XMM8_OFF 288u /* in the FXSAVE area */
#define XMM8_LEN 128u

/* The part of each component that does not exist outside 64-bit mode. */
static const struct {
    uint8_t component;
    uint16_t from, len; /* within the component; SSE: within the FXSAVE area */
} high[LEGACY_HIGH_PARTS] = {{SSE, XMM8_OFF, XMM8_LEN},
                             {AVX, 128, 128},
                             {ZMM_HI256, 256, 256},
                             {HI16_ZMM, 0, 1024}};

static uint64_t requested(const struct vcpu *v)
{
    return ((v->bt.xsave_rdx << 32) | (uint32_t)v->bt.xsave_rax) & v->xcr0;
}

/* Where part k lies in an image of these components; 0: not in it. */
static unsigned part_offset(unsigned k, uint64_t components, bool compacted)
{
    unsigned i = high[k].component;
    if (!(components >> i & 1))
        return 0;
    if (i == SSE)
        return high[k].from;
    /* Compacted: behind everything before it, aligned if it is (none of these is). */
    unsigned at = compacted ? xstate_size(components & ((1ull << i) - 1), true) : xstate_offset(i);
    return at + high[k].from;
}

static void current_xmm8_15(struct vcpu *v, uint8_t *to)
{
    if (v->fp_saved) {
        host_movs(1, to, v->fp_area + XMM8_OFF, XMM8_LEN);
        return;
    }
    __asm__ volatile("movups %%xmm8, (%0)\n\t"
                     "movups %%xmm9, 16(%0)\n\t"
                     "movups %%xmm10, 32(%0)\n\t"
                     "movups %%xmm11, 48(%0)\n\t"
                     "movups %%xmm12, 64(%0)\n\t"
                     "movups %%xmm13, 80(%0)\n\t"
                     "movups %%xmm14, 96(%0)\n\t"
                     "movups %%xmm15, 112(%0)"
                     :
                     : "r"(to)
                     : "memory");
}

/* -- Registers around XRSTOR -------------------------------------------------------------------- */

static void keep_registers(struct vcpu *v, uint8_t *kept)
{
    uint64_t present;
    vcpu_fp_save(v);
    __builtin_memcpy(&present, v->fp_area + 512, 8);
    for (unsigned k = 0; k < LEGACY_HIGH_PARTS; kept += high[k++].len) {
        unsigned at = part_offset(k, v->fp_host_mask, false);
        for (unsigned b = 0; at && b < high[k].len; b++)
            kept[b] = present >> high[k].component & 1 ? v->fp_area[at + b] : 0;
    }
}

static void put_registers_back(struct vcpu *v, const uint8_t *kept)
{
    uint64_t present;
    vcpu_fp_save(v);
    __builtin_memcpy(&present, v->fp_area + 512, 8);
    for (unsigned k = 0; k < LEGACY_HIGH_PARTS; kept += high[k++].len) {
        unsigned i = high[k].component, at = part_offset(k, v->fp_host_mask, false);
        if (!at)
            continue;
        if (!(present >> i & 1)) { /* the others are in their initial state: say so in full */
            uint8_t *low = v->fp_area + (i == SSE ? 160 : at - high[k].from);
            for (unsigned b = 0; b < high[k].from && (i != SSE || b < 128); b++)
                low[b] = 0;
        }
        host_movs(1, v->fp_area + at, kept, high[k].len);
        present |= 1ull << i;
    }
    __builtin_memcpy(v->fp_area + 512, &present, 8);
}

/* -- x87 environments of real and virtual-8086 mode ------------------------------------------------ */

static uint32_t get32(const uint8_t *p)
{
    uint32_t x;
    __builtin_memcpy(&x, p, 4);
    return x;
}
static void put32(uint8_t *p, uint32_t x)
{
    __builtin_memcpy(p, &x, 4);
}

/* A 16-bit image of protected mode has no opcode and half the pointer: what it lacks is 0. */
static void environment_to_real(uint8_t *image, bool wide)
{
    if (!wide) {
        image[8] = image[9] = image[12] = image[13] = 0;
        return;
    }
    uint32_t ip = get32(image + 12), opcode = get32(image + 16) >> 16 & 0x7ff;
    uint32_t data = get32(image + 20);
    put32(image + 12, ip & 0xffff);
    put32(image + 16, (ip >> 16) << 12 | opcode);
    put32(image + 20, data & 0xffff);
    put32(image + 24, (data >> 16) << 12);
}

static void environment_from_real(uint8_t *image, bool wide)
{
    if (!wide) {
        image[8] = image[9] = image[12] = image[13] = 0;
        return;
    }
    uint32_t mixed = get32(image + 16), high_data = get32(image + 24);
    put32(image + 12, (get32(image + 12) & 0xffff) | (mixed >> 12 & 0xffff) << 16);
    put32(image + 16, (mixed & 0x7ff) << 16);
    put32(image + 20, (get32(image + 20) & 0xffff) | (high_data >> 12 & 0xffff) << 16);
    put32(image + 24, 0);
}

/* -- Before and after ----------------------------------------------------------------------------- */

/* The parts of an XSAVE image that only 64-bit mode has, from it to what is kept or back. */
static void move_parts(struct vcpu *v, const struct insn *in, uint8_t *image, bool back)
{
    uint8_t *kept = v->engine->legacy_high;
    for (unsigned k = 0; k < LEGACY_HIGH_PARTS; kept += high[k++].len) {
        unsigned at = part_offset(k, requested(v), in->op == OP_XSAVEC);
        if (at)
            host_movs(1, back ? image + at : kept, back ? kept : image + at, high[k].len);
    }
}

void legacy_state_before(struct vcpu *v, const struct insn *in, uint8_t *image)
{
    uint8_t *kept = v->engine->legacy_high;
    switch (in->op) {
    case OP_FXSAVE:
        host_movs(1, kept, image + XMM8_OFF, XMM8_LEN);
        break;
    case OP_FXRSTOR:
        current_xmm8_15(v, image + XMM8_OFF);
        break;
    case OP_XSAVE:
    case OP_XSAVEC:
    case OP_XSAVEOPT:
        move_parts(v, in, image, false);
        break;
    case OP_XRSTOR:
        keep_registers(v, kept);
        break;
    case OP_FLDENV:
    case OP_FRSTOR:
        if (vcpu_real_segments(v))
            environment_from_real(image, in->op_size == 4);
        break;
    default:
        break;
    }
}

void legacy_state_after(struct vcpu *v, const struct insn *in, uint8_t *image)
{
    const uint8_t *kept = v->engine->legacy_high;
    switch (in->op) {
    case OP_FXSAVE:
        host_movs(1, image + XMM8_OFF, kept, XMM8_LEN);
        break;
    case OP_XSAVE:
    case OP_XSAVEC:
    case OP_XSAVEOPT:
        move_parts(v, in, image, true);
        if (requested(v) >> HI16_ZMM & 1) /* counts as being in its initial state */
            image[512] &= (uint8_t)~(1u << HI16_ZMM);
        break;
    case OP_XRSTOR:
        put_registers_back(v, kept);
        break;
    case OP_FNSTENV:
    case OP_FNSAVE:
        if (vcpu_real_segments(v))
            environment_to_real(image, in->op_size == 4);
        break;
    default:
        break;
    }
}
