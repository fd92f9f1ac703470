/*
 * The assembler: tiny emission helpers, named after the instruction they emit.
 *
 * Code is written through the cache's writable alias and runs at the executable one; `x` is the
 * address the byte at `p` will run at.  Callers make sure there is room (struct emitter.end is a
 * hard stop: past it nothing is written and `overflow` is set).
 */
#ifndef RINGSHIFT_TRANSLATOR_EMIT_H
#define RINGSHIFT_TRANSLATOR_EMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/vcpu.h"

/* What a field of a block's code is that changes when the block is moved (move.c). */
enum reloc_kind {
    RELOC_REL32,     /* of a jump out of the block                                           */
    RELOC_GVA,       /* 64 bits: an address as far from the block's as it was                */
    RELOC_MINUS_GVA, /* 64 bits: the negative of one                                         */
    RELOC_EA,        /* as RELOC_GVA, of an operand in the window that the code says         */
    RELOC_PLACE,     /* displacement: where the jump cache has the address before it (jump_by_cache) */
    RELOC_SITE,      /* address of a struct mem_site of the block's                          */
    RELOC_CALLOUT,   /* of a struct callout                                                  */
    RELOC_META,      /* of anything else in the block's metadata                             */
    RELOC_ID,        /* a byte: the id of a window, in a check                               */
    RELOC_DELTA,     /* displacement: where the delta of a window with a known id is         */
};
#define RELOC_OFF_BITS 12 /* a record is kind << 12 | offset from the block's first byte */
#define RELOC_MAX      768u

struct emitter {
    uint8_t *p;      /* next byte, writable alias                */
    uint8_t *end;    /* first byte that must not be written      */
    int64_t rx_bias; /* executable address = writable address + bias */
    bool overflow;
    uint16_t *reloc; /* RELOC_MAX records; NULL: the block cannot be moved */
    unsigned n_reloc;
    uint64_t block;  /* with reloc: executable address that records are relative to */
};

static inline uint64_t emit_here(const struct emitter *e)
{
    return (uint64_t)((int64_t)(uintptr_t)e->p + e->rx_bias);
}

/* The field that begins `back` bytes before the next byte is of this kind. */
static inline void e_reloc(struct emitter *e, enum reloc_kind kind, unsigned back)
{
    uint64_t off = emit_here(e) - back - e->block;
    if (!e->reloc)
        return;
    if (e->n_reloc == RELOC_MAX || off >> RELOC_OFF_BITS)
        e->reloc = NULL;
    else
        e->reloc[e->n_reloc++] = (uint16_t)((unsigned)kind << RELOC_OFF_BITS | off);
}

static inline void e8(struct emitter *e, uint8_t b)
{
    if (__builtin_expect(e->p < e->end, 1))
        *e->p++ = b;
    else
        e->overflow = true;
}

static inline void e32(struct emitter *e, uint32_t v)
{
    if (__builtin_expect(e->end - e->p >= 4, 1)) {
        __builtin_memcpy(e->p, &v, 4);
        e->p += 4;
    } else {
        e->overflow = true;
    }
}

static inline void e64(struct emitter *e, uint64_t v)
{
    e32(e, (uint32_t)v);
    e32(e, (uint32_t)(v >> 32));
}

static inline void e_bytes(struct emitter *e, const uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        e8(e, b[i]);
}

/*
 * The vCPU lies this far below the GS base: 16- and 32-bit code has a window of guest memory at and
 * above it, which it reaches with 32-bit addresses (flat_windows.c), and state below it, which
 * only 64-bit addresses reach.
 */
#define STATE_BIAS 0x800000u
_Static_assert(sizeof(struct vcpu) <= STATE_BIAS, "the vCPU's fields are below the GS base");

/* Bytes below the GS base where nothing is, so that an address may be that much below 0. */
#define FLAT_BELOW 0x100000u
_Static_assert(sizeof(struct vcpu) + FLAT_BELOW + 8192 <= STATE_BIAS, "nothing is between the two");

/* Displacement from the GS base of an offset in struct vcpu. */
#define STATE_OFF(offset) ((uint32_t)(offset) - STATE_BIAS)
#define VCPU_OFF(field)   STATE_OFF(offsetof(struct vcpu, field))
#define GPR_OFF(r)        STATE_OFF(offsetof(struct vcpu, gpr) + 8 * (r))

/* One instruction `opcode reg, gs:[off]` (absolute form through a SIB byte). */
static inline void e_gs_abs(struct emitter *e, bool w, uint8_t opcode, unsigned reg, uint32_t off)
{
    e8(e, 0x65);
    unsigned rex = 0x40 | (w ? 8 : 0) | (reg >= 8 ? 4 : 0);
    if (rex != 0x40)
        e8(e, rex);
    e8(e, opcode);
    e8(e, (uint8_t)(((reg & 7) << 3) | 4));
    e8(e, 0x25);
    e32(e, off);
}

/* `opcode reg, gs:[idx * scale + off]` or, with scale 0, `gs:[idx + off]`. */
static inline void e_gs_idx(struct emitter *e, bool w, uint8_t opcode, unsigned reg, unsigned idx,
                            unsigned log2_scale, uint32_t off)
{
    e8(e, 0x65);
    if (log2_scale == 0) {
        unsigned rex = 0x40 | (w ? 8 : 0) | (reg >= 8 ? 4 : 0) | (idx >= 8 ? 1 : 0);
        if (rex != 0x40)
            e8(e, rex);
        e8(e, opcode);
        e8(e, (uint8_t)(0x80 | ((reg & 7) << 3) | (idx & 7)));
    } else {
        unsigned rex = 0x40 | (w ? 8 : 0) | (reg >= 8 ? 4 : 0) | (idx >= 8 ? 2 : 0);
        if (rex != 0x40)
            e8(e, rex);
        e8(e, opcode);
        e8(e, (uint8_t)(((reg & 7) << 3) | 4));
        e8(e, (uint8_t)((log2_scale << 6) | ((idx & 7) << 3) | 5));
    }
    e32(e, off);
}

static inline void e_load_gs(struct emitter *e, unsigned reg, uint32_t off)
{
    e_gs_abs(e, true, 0x8b, reg, off);
}
static inline void e_load32_gs(struct emitter *e, unsigned reg, uint32_t off)
{
    e_gs_abs(e, false, 0x8b, reg, off);
}
static inline void e_store_gs(struct emitter *e, uint32_t off, unsigned reg)
{
    e_gs_abs(e, true, 0x89, reg, off);
}

/* mov r64, r64 */
static inline void e_mov_rr(struct emitter *e, unsigned dst, unsigned src)
{
    e8(e, (uint8_t)(0x48 | (src >= 8 ? 4 : 0) | (dst >= 8 ? 1 : 0)));
    e8(e, 0x89);
    e8(e, (uint8_t)(0xc0 | ((src & 7) << 3) | (dst & 7)));
}
static inline void e_mov32_rr(struct emitter *e, unsigned dst, unsigned src)
{
    unsigned rex = 0x40 | (src >= 8 ? 4 : 0) | (dst >= 8 ? 1 : 0);
    if (rex != 0x40)
        e8(e, (uint8_t)rex);
    e8(e, 0x89);
    e8(e, (uint8_t)(0xc0 | ((src & 7) << 3) | (dst & 7)));
}

/* Shortest flag-free load of a 64-bit constant. */
static inline void e_mov_imm(struct emitter *e, unsigned reg, uint64_t v)
{
    if (v <= 0xffffffffu) {
        if (reg >= 8)
            e8(e, 0x41);
        e8(e, (uint8_t)(0xb8 | (reg & 7)));
        e32(e, (uint32_t)v);
    } else if ((int64_t)v == (int32_t)v) {
        e8(e, (uint8_t)(0x48 | (reg >= 8 ? 1 : 0)));
        e8(e, 0xc7);
        e8(e, (uint8_t)(0xc0 | (reg & 7)));
        e32(e, (uint32_t)v);
    } else {
        e8(e, (uint8_t)(0x48 | (reg >= 8 ? 1 : 0)));
        e8(e, (uint8_t)(0xb8 | (reg & 7)));
        e64(e, v);
    }
}

/* The same for an address that is as far from the block's as it is now wherever that is moved to.  One of 32
 * bits has been cut (66H before a jump, on AMD's processors), for blocks that can be moved lie above those
 * (move_possible()). */
static inline void e_mov_gva(struct emitter *e, unsigned reg, uint64_t v, enum reloc_kind kind)
{
    e_mov_imm(e, reg, v);
    if (v <= 0xffffffffu || (int64_t)v == (int32_t)v)
        e->reloc = NULL;
    else
        e_reloc(e, kind, 8);
}

/* The same for the address of metadata of the block's. */
static inline void e_mov_meta(struct emitter *e, unsigned reg, const void *p, enum reloc_kind kind)
{
    e_mov_imm(e, reg, (uintptr_t)p);
    e_reloc(e, kind, 4);
}

/*
 * ModRM + SIB + displacement of [base + index*scale + disp] for an already emitted opcode. The
 * caller emitted REX with R/X/B of (reg, index, base). base or index may be 0xff (none).
 */
static inline void e_modrm(struct emitter *e, unsigned reg, unsigned base, unsigned index,
                           unsigned scale, int32_t disp, unsigned mod)
{
    unsigned r = (reg & 7) << 3, ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
    if (base == 0xff) {
        e8(e, (uint8_t)(r | 4));
        e8(e, (uint8_t)((ss << 6) | ((index == 0xff ? 4 : index & 7) << 3) | 5));
        e32(e, (uint32_t)disp);
        return;
    }
    if (index != 0xff || (base & 7) == 4) {
        e8(e, (uint8_t)((mod << 6) | r | 4));
        e8(e, (uint8_t)((ss << 6) | ((index == 0xff ? 4 : index & 7) << 3) | (base & 7)));
    } else {
        e8(e, (uint8_t)((mod << 6) | r | (base & 7)));
    }
    if (mod == 1)
        e8(e, (uint8_t)disp);
    else if (mod == 2)
        e32(e, (uint32_t)disp);
}

static inline void e_modrm_mem(struct emitter *e, unsigned reg, unsigned base, unsigned index,
                               unsigned scale, int32_t disp)
{
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp ? 1 : 2;
    e_modrm(e, reg, base, index, scale, disp, mod);
}

static inline void e_modrm_disp32(struct emitter *e, unsigned reg, unsigned base, unsigned index,
                                  unsigned scale, int32_t disp)
{
    e_modrm(e, reg, base, index, scale, disp, 2);
}

/* `opcode reg, [base + index*scale + disp]` with REX.W = w. */
static inline void e_op_mem(struct emitter *e, bool w, uint8_t opcode, unsigned reg, unsigned base,
                            unsigned index, unsigned scale, int32_t disp)
{
    unsigned rex = 0x40 | (w ? 8 : 0) | (reg != 0xff && reg >= 8 ? 4 : 0) |
                   (index != 0xff && index >= 8 ? 2 : 0) | (base != 0xff && base >= 8 ? 1 : 0);
    if (rex != 0x40)
        e8(e, (uint8_t)rex);
    e8(e, opcode);
    e_modrm_mem(e, reg, base, index, scale, disp);
}

static inline void e_lea(struct emitter *e, unsigned dst, unsigned base, unsigned index,
                         unsigned scale, int32_t disp)
{
    e_op_mem(e, true, 0x8d, dst, base, index, scale, disp);
}
static inline void e_lea32(struct emitter *e, unsigned dst, unsigned base, unsigned index,
                           unsigned scale, int32_t disp)
{
    e_op_mem(e, false, 0x8d, dst, base, index, scale, disp);
}
static inline void e_load(struct emitter *e, unsigned dst, unsigned base, int32_t disp)
{
    e_op_mem(e, true, 0x8b, dst, base, 0xff, 1, disp);
}
static inline void e_store(struct emitter *e, unsigned base, int32_t disp, unsigned src)
{
    e_op_mem(e, true, 0x89, src, base, 0xff, 1, disp);
}

/* rorx r64, r64, imm8 (BMI2; no flags) */
static inline void e_rorx(struct emitter *e, unsigned dst, unsigned src, unsigned count)
{
    e8(e, 0xc4);
    e8(e, (uint8_t)((dst & 8 ? 0 : 0x80) | 0x40 | (src & 8 ? 0 : 0x20) | 3));
    e8(e, 0xfb);
    e8(e, 0xf0);
    e8(e, (uint8_t)(0xc0 | (dst & 7) << 3 | (src & 7)));
    e8(e, (uint8_t)count);
}

/* jmp rel32 / jcc rel32 to a known executable address. */
static inline void e_rel32(struct emitter *e, uint64_t target)
{
    if (e->reloc && (target < e->block || target > emit_here(e)))
        e_reloc(e, RELOC_REL32, 0);
    e32(e, (uint32_t)(target - (emit_here(e) + 4)));
}
static inline void e_jmp(struct emitter *e, uint64_t target)
{
    e8(e, 0xe9);
    e_rel32(e, target);
}
static inline void e_jcc(struct emitter *e, unsigned cc, uint64_t target)
{
    e8(e, 0x0f);
    e8(e, (uint8_t)(0x80 | cc));
    e_rel32(e, target);
}
/* Forward jcc rel32: returns the place to fix with e_fix_here(). */
static inline uint8_t *e_jcc_fwd(struct emitter *e, unsigned cc)
{
    e8(e, 0x0f);
    e8(e, (uint8_t)(0x80 | cc));
    e32(e, 0);
    return e->p - 4;
}
static inline uint8_t *e_jmp_fwd(struct emitter *e)
{
    e8(e, 0xe9);
    e32(e, 0);
    return e->p - 4;
}
static inline void e_fix_here(struct emitter *e, uint8_t *rel32)
{
    if (e->overflow)
        return;
    uint32_t v = (uint32_t)(e->p - (rel32 + 4));
    __builtin_memcpy(rel32, &v, 4);
}

/* Recommended multi-byte NOPs (SDM vol. 2, NOP). */
static inline void e_nops(struct emitter *e, unsigned n)
{
    static const uint8_t nop[5][4] = {
        {0}, {0x90}, {0x66, 0x90}, {0x0f, 0x1f, 0x00}, {0x0f, 0x1f, 0x40, 0x00}};
    while (n) {
        unsigned k = n > 4 ? 4 : n;
        e_bytes(e, nop[k], k);
        n -= k;
    }
}

enum { CC_O = 0, CC_B = 2, CC_AE = 3, CC_E = 4, CC_NE = 5, CC_BE = 6, CC_A = 7 };

/* The arithmetic flags from the word at gs:[off], without POPF, which takes ten times as long. Changes RAX. */
static inline void e_load_flags(struct emitter *e, uint32_t off)
{
    e_bytes(e, (const uint8_t[]){0x65, 0x8a, 0x04, 0x25}, 4); /* mov al, gs:[off + 1] */
    e32(e, off + 1);
    e_bytes(e, (const uint8_t[]){0xc0, 0xe0, 0x04}, 3);       /* shl al, 4: OF becomes the sign */
    e_bytes(e, (const uint8_t[]){0x00, 0xc0}, 2);             /* add al, al: OF = it has changed */
    e_bytes(e, (const uint8_t[]){0x65, 0x8a, 0x24, 0x25}, 4); /* mov ah, gs:[off] */
    e32(e, off);
    e8(e, 0x9e); /* sahf */
}

#endif
