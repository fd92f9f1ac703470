/* See reencode.h. SDM vol. 2, 2.1-2.2 (REX), 2.3 (VEX), 2.7 (EVEX). */
#include "translator/reencode.h"

static bool kept_prefix(uint8_t b)
{
    return b == 0xf2 || b == 0xf3 || b == 0xf0;
}

/* Legacy prefixes that still mean something once the operand is ours. REX is not among them. */
static void emit_prefixes(struct emitter *e, const struct insn *in)
{
    unsigned n = in->prefix_len;
    if (in->enc == ENC_LEGACY && in->rex && n)
        n--; /* REX is the last prefix */
    /* 66h first: next to the opcode, disassemblers take it for a mandatory prefix. */
    bool p66 = false;
    for (unsigned i = 0; i < n; i++)
        p66 |= in->raw[i] == 0x66;
    if (p66 != !!(in->flags & INSN_TOGGLE66))
        e8(e, 0x66);
    for (unsigned i = 0; i < n; i++)
        if (kept_prefix(in->raw[i]))
            e8(e, in->raw[i]);
}

static void emit_operand(struct emitter *e, const struct insn *in, unsigned reg3,
                         const struct memref *ref)
{
    unsigned scale = ref->scale ? ref->scale : 1;
    if (in->enc == ENC_EVEX) /* scales 8-bit displacements: they need the 32-bit form */
        e_modrm_disp32(e, reg3, ref->base, ref->index, scale, ref->disp);
    else
        e_modrm_mem(e, reg3, ref->base, ref->index, scale, ref->disp);
    if (in->imm_size)
        e_bytes(e, in->raw + in->imm_off, in->imm_size);
}

void reencode_mem(struct emitter *e, const struct insn *in, const struct memref *ref, unsigned reg,
                  unsigned vvvv)
{
    const uint8_t *raw = in->raw;
    unsigned b = ref->base == KEEP ? 0 : ref->base >> 3 & 1;
    unsigned x = ref->index == KEEP ? 0 : ref->index >> 3 & 1;
    unsigned reg3 = reg == KEEP ? (in->modrm >> 3) & 7 : reg & 7;
    if (ref->flat)
        e_bytes(e, (const uint8_t[]){0x65, 0x67}, 2);
    emit_prefixes(e, in);
    switch (in->enc) {
    case ENC_LEGACY: {
        unsigned r = reg == KEEP ? (in->rex >> 2) & 1 : reg >> 3 & 1;
        unsigned rex = (in->rex & 0x48) | (r << 2) | (x << 1) | b;
        if (rex)
            e8(e, (uint8_t)(rex | 0x40));
        e_bytes(e, raw + in->prefix_len, in->opcode_off - in->prefix_len + 1u);
        break;
    }
    case ENC_VEX: {
        const uint8_t *v = raw + in->prefix_len;
        bool two = v[0] == 0xc5;
        unsigned rbit = reg == KEEP ? v[1] & 0x80 : (reg & 8 ? 0 : 0x80);
        unsigned map = two ? 1 : v[1] & 0x1f;
        unsigned last = two ? v[1] & 0x7f : v[2];
        if (vvvv != KEEP)
            last = (last & ~0x78u) | ((~vvvv & 15) << 3);
        e8(e, 0xc4);
        e8(e, (uint8_t)(rbit | (x ? 0 : 0x40) | (b ? 0 : 0x20) | map));
        e8(e, (uint8_t)last);
        e8(e, in->opcode);
        break;
    }
    default: {
        const uint8_t *v = raw + in->prefix_len;
        unsigned p0 = (v[1] & ~0x60u) | (x ? 0 : 0x40) | (b ? 0 : 0x20);
        if (reg != KEEP)
            p0 = (p0 & ~0x90u) | (reg & 8 ? 0 : 0x80) | 0x10;
        unsigned p1 = v[2];
        if (vvvv != KEEP)
            p1 = (p1 & ~0x78u) | ((~vvvv & 15) << 3);
        e8(e, 0x62);
        e8(e, (uint8_t)p0);
        e8(e, (uint8_t)p1);
        e8(e, v[3]);
        e8(e, in->opcode);
        break;
    }
    }
    emit_operand(e, in, reg3, ref);
}

void reencode_state(struct emitter *e, const struct insn *in, uint32_t off)
{
    unsigned rex = in->rex & 0x4c;
    e8(e, 0x65);
    emit_prefixes(e, in);
    if (rex)
        e8(e, (uint8_t)(rex | 0x40));
    e_bytes(e, in->raw + in->prefix_len, in->opcode_off - in->prefix_len + 1u);
    e8(e, (uint8_t)((in->modrm & 0x38) | 4));
    e8(e, 0x25);
    e32(e, off);
    if (in->imm_size)
        e_bytes(e, in->raw + in->imm_off, in->imm_size);
}

void reencode_plain(struct emitter *e, const struct insn *in)
{
    emit_prefixes(e, in);
    unsigned from = in->prefix_len;
    if (in->enc == ENC_LEGACY && in->rex)
        from--;
    e_bytes(e, in->raw + from, in->len - from);
}
