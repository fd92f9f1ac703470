/*
 * CPUID inline: 64-bit code finds what it was told before in v->cpuid_cache (cpu/cpuid.h).
 *
 *     mov   r10d, eax
 *     rorx  r11d, r10d, 27               bit 31 and the lowest bits of the leaf
 *     (flags aside)
 *     and   r11d, 1F0H
 *     cmp   r10d, gs:[r11 + key.leaf]
 *     jne   miss
 *     mov   r10d, gs:[r11 + key.sub_mask]
 *     and   r10d, ecx
 *     cmp   r10d, gs:[r11 + key.sub]
 *     jne   miss
 *     (flags back)
 *     mov   eax, gs:[r11 + r]            and EBX, ECX, EDX
 *
 * Programs execute it to serialise, and under a virtualizer that is a hot loop's worst instruction.
 */
#include "translator/lower.h"

#include "cpu/cpuid.h"

static void load(struct emitter *e, uint8_t opcode, unsigned reg, size_t off)
{
    e_gs_idx(e, false, opcode, reg, R11, 0, STATE_OFF(off));
}

bool lower_cpuid(struct xlate *x, uint8_t *miss[2])
{
    struct emitter *e = &x->e;
    if (is_legacy(x) || !x->bt->bmi2 || (x->key & KEY_ONE_INSN))
        return false;
    e_mov32_rr(e, R10, RAX);
    e_bytes(e, (const uint8_t[]){0xc4, 0x43, 0x7b, 0xf0, 0xda, 32 - CPUID_CACHE_ROL}, 6);
    lower_save_flags(e);
    e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and r11d, imm32 */
    e32(e, CPUID_CACHE_MASK);
    load(e, 0x3b, R10, offsetof(struct vcpu, cpuid_cache.key[0].leaf));
    miss[0] = e_jcc_fwd(e, CC_NE);
    load(e, 0x8b, R10, offsetof(struct vcpu, cpuid_cache.key[0].sub_mask));
    e_bytes(e, (const uint8_t[]){0x41, 0x21, 0xca}, 3); /* and r10d, ecx */
    load(e, 0x3b, R10, offsetof(struct vcpu, cpuid_cache.key[0].sub));
    miss[1] = e_jcc_fwd(e, CC_NE);
    lower_restore_flags(e);
    static const uint8_t out[4] = {RAX, RBX, RCX, RDX};
    for (unsigned i = 0; i < 4; i++)
        load(e, 0x8b, out[i], offsetof(struct vcpu, cpuid_cache.r[0][0]) + 4 * i);
    return true;
}
