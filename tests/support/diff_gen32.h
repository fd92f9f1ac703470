/*
 * Cases of 16- and 32-bit code for differential testing: as diff_gen.h, with segments of all kinds,
 * both address sizes, segment loads and far transfers.
 */
#ifndef RINGSHIFT_TESTS_DIFF_GEN32_H
#define RINGSHIFT_TESTS_DIFF_GEN32_H

#include "tests/support/diff_gen.h"

struct diff_gen32 {
    struct diff_gen g;
    unsigned bits;   /* of the code that is being made             */
    uint16_t seg[6]; /* what the segment registers hold by now     */
    unsigned stack;  /* 2 or 4: size of the stack pointer          */
    bool protected;  /* selectors are selectors (DIFF_COMPAT, PROT) */
};

static inline enum insn_mode diff32_mode(const struct diff_gen32 *g)
{
    return g->bits == 32 ? MODE_32 : MODE_16;
}

/* As diff_allowed(): can both sides run it and agree? */
static inline bool diff32_allowed(const struct diff_gen32 *g, const struct insn *in)
{
    const struct diff_case *c = g->g.c;
    bool user = c->cpl == 3 && c->world != DIFF_REAL;
    switch (in->op) {
    case OP_PUSH_SEG:
    case OP_MOV_FROM_SEG:
    case OP_MOV_TO_SEG:
    case OP_POP_SEG:
    case OP_LOAD_FAR_PTR:
    case OP_LAR:
    case OP_LSL:
    case OP_VERR:
    case OP_VERW:
    case OP_ARPL:
        return g->protected && user;
    case OP_BOUND:
        return true;
    case OP_INT: /* 2DH to 2FH and 80H mean something to host kernels */
        return g->protected && user && (in->imm & 0xff) != 3 && (in->imm & 0xff) != 4 &&
               (in->imm & 0xff) != 0x80;
    case OP_CLI:
    case OP_STI:
    case OP_PUSHF:
    case OP_IN: /* REP INS writes nothing before the fault, but RSI, RDI and RCX are as they were */
    case OP_OUT:
    case OP_INS:
    case OP_OUTS:
        if (in->op == OP_PUSHF)
            return c->world != DIFF_V86 && c->world != DIFF_REAL;
        return g->protected && user;
    case OP_LLDT:
    case OP_LTR:
        return g->protected && user;
    default:
        break;
    }
    if ((in->enc != ENC_LEGACY) && !g->protected)
        return false;
    return diff_allowed(in, user ? 3 : 0, g->g.structured);
}

static inline void diff32_put(struct diff_gen32 *g, const uint8_t *b, unsigned n)
{
    if (g->bits == 32)
        g->g.c->wide |= 1ull << g->g.c->n_at;
    diff_put(&g->g, b, n);
}

/* reg = value, all 32 bits. */
static inline void diff32_set(struct diff_gen32 *g, unsigned reg, uint32_t value)
{
    if (g->g.keep >> reg & 1)
        return;
    if (!g->g.sequence || g->g.c->n_at == 0) {
        g->g.c->gpr[reg] = value;
        return;
    }
    if (!diff_room(&g->g, 6))
        return;
    uint8_t b[6] = {0x66, (uint8_t)(0xb8 | reg)};
    memcpy(b + 2, &value, 4);
    diff32_put(g, b + (g->bits == 32), g->bits == 32 ? 5 : 6);
}

/* An offset in a segment to access `size` bytes at. */
static inline uint32_t diff32_target(struct diff_gen32 *g, unsigned seg, unsigned size,
                                     bool aligned, bool a16)
{
    static const uint32_t pages[] = {DIFF_LDATA,  DIFF_LDATA + 0x1000,  DIFF_LDATA + 0x4000,
                                     DIFF_LWRAP,  DIFF_LWRAP + 0xf000,  DIFF_LSTACK,
                                     DIFF_LSTACK, DIFF_LSTACK + 0x1000, DIFF_LWRAP2};
    uint64_t *s = &g->g.rng;
    const struct diff_desc *d = diff_desc_of(g->seg[seg]);
    uint32_t limit = diff_desc_limit(d), off = 0;
    for (unsigned tries = 0; tries < 6; tries++) {
        uint64_t r = diff_rnd(s);
        uint32_t lin = pages[(r >> 8) % 9] + (r >> 16 & 0xfff);
        if ((lin & 0xfff) + size > 4096 && size <= 4096 && (r >> 32) % 8)
            lin -= size;
        off = lin - d->base;
        switch (r % 32) {
        case 0:
        case 1:
        case 2: /* across two pages */
            off = DIFF_LDATA + 0x1000 - d->base - (r >> 40 & 31);
            break;
        case 3:
        case 4: /* about the limit; the end of 64 KiB */
            off = limit + 1 - (r >> 40 & 15);
            break;
        case 5:
        case 6:
            off = 0x10000 - (r >> 40 & 15);
            break;
        case 7: /* what is not there, or not writable */
            off = DIFF_LDATA + 0x2000 - d->base + (r >> 40 & 0x1fff);
            break;
        case 8:
            off = DIFF_LCODE - d->base + (r >> 40 & 0x2fff);
            break;
        case 9:
            off = (uint32_t)(r >> 30);
            break;
        case 10:
            off = (r >> 40) & 15;
            break;
        default:
            if (d->down ? off <= limit : off > limit || off + size - 1 > limit)
                continue;
        }
        if (!a16 || off <= 0xffff)
            break;
    }
    if (aligned && diff_rnd(s) % 8)
        off = ((off + d->base) & ~63u) - d->base;
    return a16 ? off & 0xffff : off;
}

static inline void diff32_aim(struct diff_gen32 *g, const struct insn *in, uint32_t target)
{
    const struct insn_mem *m = &in->mem;
    uint64_t *s = &g->g.rng;
    bool a16 = in->addr_size == 2;
    uint32_t mask = a16 ? 0xffff : 0xffffffff, want = target - (uint32_t)m->disp;
    uint32_t junk = a16 ? (uint32_t)diff_rnd(s) << 16 : 0;
    if (m->index != REG_NONE && !(in->flags & INSN_VSIB)) {
        if (m->index == m->base || m->base == REG_NONE) {
            diff32_set(g, m->index, want / (m->scale + (m->base != REG_NONE)));
            return;
        }
        uint32_t idx = diff_rnd(s) & 0xff;
        if (diff_rnd(s) % 4 == 0)
            idx = a16 ? (uint32_t)diff_rnd(s) : 0 - idx;
        diff32_set(g, m->index, idx);
        want -= idx * m->scale;
    }
    if (m->base != REG_NONE)
        diff32_set(g, m->base, (want & mask) | junk);
}

/* The selector that an instruction is to load or ask about. */
static inline uint16_t diff32_selector(struct diff_gen32 *g)
{
    uint64_t r = diff_rnd(&g->g.rng);
    uint16_t any = r >> 16 & 0xf7f; /* 78H: Linux's GDT has the CPU's number there */
    return r % 16 || any >> 3 == 15 ? diff_selectors[(r >> 8) % DIFF_SELECTORS] : any;
}

static inline void diff32_prepare(struct diff_gen32 *g, const struct insn *in)
{
    uint64_t *s = &g->g.rng;
    bool a16 = in->addr_size == 2, rep = in->flags & (INSN_REP | INSN_REPNE);
    uint32_t high = a16 ? (uint32_t)diff_rnd(s) << 16 : 0;
    bool string = in->op == OP_MOVS || in->op == OP_CMPS || in->op == OP_STOS ||
                  in->op == OP_LODS || in->op == OP_SCAS || in->op == OP_INS || in->op == OP_OUTS;
    if (g->g.sequence && diff_rnd(s) % 10 == 0 && !string)
        return; /* let fate decide */
    switch (in->op) {
    case OP_MOVS:
    case OP_CMPS:
    case OP_STOS:
    case OP_LODS:
    case OP_SCAS:
    case OP_INS:
    case OP_OUTS:
        if (in->op != OP_STOS && in->op != OP_SCAS && in->op != OP_INS)
            diff32_set(g, RSI, diff32_target(g, in->mem.seg, in->mem.size, false, a16) | high);
        if (in->op != OP_LODS && in->op != OP_OUTS)
            diff32_set(g, RDI, diff32_target(g, SEG_ES, in->mem.size, false, a16) | high);
        if (rep) {
            uint32_t n = diff_rnd(s) % 16 ? diff_rnd(s) % 80 : a16 ? 0xffff : 0x3000;
            diff32_set(g, RCX, n | high);
        }
        return;
    case OP_XLAT:
        diff32_set(g, RBX, (diff32_target(g, in->mem.seg, 1, false, a16) - 0x40) | high);
        return;
    case OP_MASKMOV:
        diff32_set(g, RDI, diff32_target(g, in->mem.seg, 16, false, a16) | high);
        return;
    case OP_LEAVE:
    case OP_ENTER: {
        uint32_t bp = diff32_target(g, SEG_SS, 32, false, g->stack == 2);
        diff32_set(g, RBP, g->stack == 2 ? bp | (uint32_t)diff_rnd(s) << 16 : bp);
        return;
    }
    case OP_POP_SEG: { /* push imm first, mostly */
        uint16_t sel = diff32_selector(g);
        uint8_t b[3] = {0x68, (uint8_t)sel, (uint8_t)(sel >> 8)};
        if (g->g.sequence && diff_room(&g->g, 20) && diff_rnd(s) % 4 &&
            (in->op_size == 2) == (g->bits == 16)) {
            if (g->bits == 16) {
                diff32_put(g, b, 3);
            } else {
                uint8_t w[5] = {0x68, (uint8_t)sel, (uint8_t)(sel >> 8)};
                diff32_put(g, w, 5);
            }
        }
        return;
    }
    case OP_MOV_TO_SEG:
    case OP_LAR:
    case OP_LSL:
    case OP_VERR:
    case OP_VERW:
    case OP_ARPL:
        if (!(in->flags & INSN_MEM)) {
            diff32_set(g, in->rm, diff32_selector(g) | (uint32_t)diff_rnd(s) << 16);
            return;
        }
        break;
    case OP_LEA:
    case OP_NOP:
        if (diff_rnd(s) % 2)
            return;
        break;
    default:
        break;
    }
    if (!(in->flags & INSN_MEM) || in->op == OP_MOV_MOFFS)
        return;
    unsigned size = in->mem.size ? in->mem.size : 64;
    bool xs =
        in->op == OP_XSAVE || in->op == OP_XSAVEC || in->op == OP_XSAVEOPT || in->op == OP_XRSTOR;
    if (xs)
        size = 2688;
    uint32_t t = diff32_target(g, in->mem.seg, size,
                               in->flags & INSN_MEM_ALIGNED || diff_rnd(s) % 8 == 0 || xs, a16);
    uint32_t table = DIFF_LDATA - diff_desc_of(g->seg[in->mem.seg])->base;
    if (in->map == MAP_0F && in->opcode == 0xae && (in->modrm >> 3 & 7) == 2 && diff_rnd(s) % 8)
        t = table + DIFF_MXCSR_OFF + 4 * (uint32_t)(diff_rnd(s) % DIFF_MXCSR_N);
    if (in->op >= OP_LAR && in->op <= OP_ARPL && diff_rnd(s) % 4)
        t = table + DIFF_SEL_OFF + 2 * (uint32_t)(diff_rnd(s) % DIFF_SEL_N);
    if (in->op == OP_MOV_TO_SEG && diff_rnd(s) % 4)
        t = table + DIFF_SEL_OFF + 2 * (uint32_t)(diff_rnd(s) % DIFF_SEL_N);
    if (in->op == OP_LOAD_FAR_PTR && diff_rnd(s) % 8)
        t = table + (in->op_size == 2 ? DIFF_FAR16_OFF + 4 * (uint32_t)(diff_rnd(s) % DIFF_SEL_N)
                                      : DIFF_FAR32_OFF + 8 * (uint32_t)(diff_rnd(s) % DIFF_SEL_N));
    diff32_aim(g, in, t);
    if (in->op == OP_BT_MEM_REG && diff_rnd(s) % 8)
        diff32_set(g, in->reg, (uint32_t)((diff_rnd(s) & 0x3ff) - (diff_rnd(s) % 2) * 0x200));
    if (in->op == OP_BOUND)
        diff32_set(g, in->reg, (uint32_t)diff_value(s));
    if (in->flags & INSN_VSIB)
        g->g.c->fp_seed = diff_fp_index_seed(g->g.c->fp_seed);
}

/* Absolute operands lead to the case's pages. */
static inline void diff32_fix_disp(struct diff_gen32 *g, const struct insn *in, uint8_t *b)
{
    if (!(in->flags & INSN_MEM) || in->disp_size < 2)
        return;
    uint32_t d;
    if (in->op == OP_MOV_MOFFS || (in->mem.base == REG_NONE && in->mem.index == REG_NONE))
        d = diff32_target(g, in->mem.seg, in->mem.size, in->flags & INSN_MEM_ALIGNED,
                          in->addr_size == 2);
    else
        d = (uint32_t)((diff_rnd(&g->g.rng) & 0xfff) - 0x800);
    memcpy(b + in->disp_off, &d, in->disp_size <= 4 ? in->disp_size : 4);
}

/* As diff_take(). */
static inline int diff32_take(struct diff_gen32 *g, uint8_t *b)
{
    struct insn in;
    int len = insn_decode(&in, b, 15, diff32_mode(g));
    if (len <= 0 || !diff32_allowed(g, &in) || (g->g.keep & in.gpr_written))
        return 0;
    bool x87 = in.enc == ENC_LEGACY && in.map == MAP_ONE && in.opcode >= 0xd8 && in.opcode <= 0xdf;
    bool image = in.op == OP_FXSAVE || in.op == OP_XSAVE || in.op == OP_XSAVEC ||
                 in.op == OP_XSAVEOPT || in.op == OP_FNSAVE || in.op == OP_FNSTENV;
    if (image && (g->g.x87_mem || g->g.keep))
        return 0;
    if (!g->protected && in.mem.seg == SEG_CS &&
        ((in.flags & INSN_MEM_WRITE) || in.op == OP_MASKMOV))
        return 0; /* only in protected mode is code not writable */
    if ((in.op == OP_FNSAVE || in.op == OP_FNSTENV) && !g->protected)
        return 0; /* the layout of real mode: tests/guest32 */
    diff32_fix_disp(g, &in, b);
    if (insn_decode(&in, b, 15, diff32_mode(g)) != len || !diff_room(&g->g, 64))
        return 0;
    diff32_prepare(g, &in);
    if (x87 || in.op == OP_FXRSTOR || in.op == OP_XRSTOR)
        g->g.x87_mem = true;
    if (!diff_room(&g->g, (unsigned)len))
        return 0;
    if (g->g.structured && (in.op == OP_MOV_TO_SEG || in.op == OP_POP_SEG) && in.reg == SEG_SS &&
        diff_rnd(&g->g.rng) % 4)
        return 0; /* a wild stack ends most cases */
    diff32_put(g, b, (unsigned)len);
    return len;
}

static inline void diff32_random_bytes(struct diff_gen32 *g, uint8_t *b)
{
    static const uint8_t over[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    uint64_t *s = &g->g.rng, r = diff_rnd(s);
    unsigned n = 0, cls = (unsigned)(r % 100);
    if ((r >> 8) % 5 == 0)
        b[n++] = 0x67;
    if ((r >> 12) % 4 == 0)
        b[n++] = over[(r >> 16) % 6];
    if ((r >> 20) % 5 == 0)
        b[n++] = 0x66;
    if (cls < 66) {
        if ((r >> 24) % 8 < 2)
            b[n++] = (uint8_t)(0xf2 | (r >> 28 & 1));
        else if ((r >> 24) % 16 == 2)
            b[n++] = 0xf0;
        if (cls < 38) {
            b[n++] = (uint8_t)(r >> 32);
        } else if (cls < 44) {
            b[n++] = (uint8_t)(0xd8 | (r >> 32 & 7));
        } else {
            b[n++] = 0x0f;
            if (cls >= 58)
                b[n++] = cls < 62 ? 0x38 : 0x3a;
            b[n++] = (uint8_t)(r >> 32);
        }
    } else {
        uint64_t x = diff_rnd(s);
        if (cls < 84 && x % 4 == 0) {
            b[n++] = 0xc5;
            b[n++] = (uint8_t)(x >> 8 | 0xc0);
            if ((x >> 32) % 2)
                b[n - 1] |= 0x78;
        } else if (cls < 84) {
            b[n++] = 0xc4;
            b[n++] = (uint8_t)((x >> 8 & 0x20) | 0xc0 | (1 + (x >> 16) % 3));
            b[n++] = (uint8_t)(x >> 24);
            if ((x >> 32) % 2)
                b[n - 1] |= 0x78;
        } else {
            static const uint8_t maps[8] = {1, 1, 2, 2, 3, 3, 5, 6};
            b[n++] = 0x62;
            b[n++] = (uint8_t)((x & 0x30) | 0xc0 | maps[x >> 8 & 7]);
            b[n++] = (uint8_t)(x >> 16 | 4);
            b[n++] = (uint8_t)(x >> 24);
            if ((x >> 56) % 2) {
                b[n - 2] |= 0x78;
                b[n - 1] |= 0x08;
            }
            if ((x >> 59) % 4 == 0)
                b[n - 1] &= 0xf8;
            if ((x >> 61) % 2)
                b[n - 1] &= 0xef;
        }
        b[n++] = (uint8_t)(x >> 48);
    }
    diff_modrm(s, b + n);
}

static inline void diff32_case_init(struct diff_gen32 *g, struct diff_case *c, uint64_t seed,
                                    unsigned bits, enum diff_world world, unsigned cpl)
{
    static const uint8_t code32[] = {0, 2, 4, 0, 0}, code16[] = {1, 3, 5, 1, 1};
    static const uint8_t real_data[] = {7, 8, 9, 10}, unreal[] = {6, 7, 8, 9, 12, 17, 18, 11};
    memset(c, 0, sizeof *c);
    *g = (struct diff_gen32){.g = {.c = c, .rng = diff_seed(seed)}, .bits = bits};
    uint64_t *s = &g->g.rng;
    bool real = world == DIFF_V86 || world == DIFF_REAL, odd = diff_rnd(s) % 4 == 0;
    g->protected = !real;
    c->cpl = (uint8_t)(world == DIFF_COMPAT ? cpl : 3);
    c->bits = (uint8_t)bits;
    c->world = (uint8_t)world;
    for (unsigned i = 0; i < 16; i++)
        c->gpr[i] = i < 8 ? (uint32_t)diff_value(s) : diff_value(s);
    c->rflags = (diff_rnd(s) & FL_ARITH) | (diff_rnd(s) % 16 ? 0 : FL_DF);
    c->fp_seed = diff_rnd(s);
    c->start = (uint16_t)(diff_rnd(s) & 0x7ff);
    if (diff_rnd(s) % 4 == 0)
        c->start = (uint16_t)(0x1000 - diff_rnd(s) % 64);
    for (unsigned i = 0; i < 6; i++) { /* flat or small segments, sometimes any */
        uint16_t sel = bits == 32 ? DIFF_UDS : DIFF_SEL(7 + diff_rnd(s) % 4);
        if (world == DIFF_V86 || (real && !odd))
            sel = DIFF_SEL(real_data[diff_rnd(s) % 4]);
        else if (real)
            sel = DIFF_SEL(unreal[diff_rnd(s) % 8]);
        else if (diff_rnd(s) % 4 == 0 || (odd && diff_rnd(s) % 2))
            sel = diff_selectors[diff_rnd(s) % 18];
        c->seg[i] = sel;
    }
    if (!real && diff_rnd(s) % 32 == 0)
        c->seg[SEG_FS] = 0;
    uint16_t cs =
        bits == 32 ? DIFF_SEL(code32[diff_rnd(s) % 5]) : DIFF_SEL(code16[diff_rnd(s) % 5]);
    if (bits == 32 && diff_rnd(s) % 2)
        cs = DIFF_UCS32;
    c->seg[SEG_CS] = real ? DIFF_SEL(1) : cs;
    static const uint16_t stacks[] = {DIFF_UDS,     DIFF_SEL(11), DIFF_SEL(8),
                                      DIFF_SEL(10), DIFF_SEL(20), DIFF_SEL(6)};
    uint16_t ss = bits == 32 ? DIFF_UDS : DIFF_SEL(8);
    if (odd)
        ss = real ? DIFF_SEL(8 + 2 * (diff_rnd(s) & 1)) : stacks[diff_rnd(s) % 6];
    if (real && world == DIFF_REAL && odd && diff_rnd(s) % 4 == 0)
        ss = DIFF_SEL(11);
    c->seg[SEG_SS] = ss;
    const struct diff_desc *d = diff_desc_of(ss);
    uint32_t sp = DIFF_LSTACK - d->base + 0x200 + (diff_rnd(s) & 0x1bfc);
    if (d->base == DIFF_LWRAP2 && diff_rnd(s) % 8 == 0)
        sp = (diff_rnd(s) % 2 ? 0 : 0x10000) + (diff_rnd(s) & 0x1e) - 8; /* about the wrap */
    if (d->down)
        sp = 0xa00 + (diff_rnd(s) & 0x13fc);
    g->stack = d->big ? 4 : 2;
    c->gpr[RSP] = d->big ? sp : (sp & 0xffff) | (diff_rnd(s) % 4 ? 0 : (uint32_t)diff_rnd(s) << 16);
    if (world == DIFF_REAL && ((uint16_t)sp < 16))
        c->gpr[RSP] += 0x200;
    memcpy(g->seg, c->seg, sizeof g->seg);
}

/* -- Structured control flow ----------------------------------------------------------------------
 */

static inline void diff32_block(struct diff_gen32 *g, unsigned n, unsigned depth);

/* Offset in CS of the next instruction. */
static inline uint32_t diff32_ip(const struct diff_gen32 *g)
{
    return DIFF_LCODE + g->g.c->start + g->g.c->len - diff_desc_of(g->seg[SEG_CS])->base;
}

/* An instruction that ends in a field of the code's size, to be patched; returns where that is. */
static inline unsigned diff32_put_wide(struct diff_gen32 *g, const uint8_t *op, unsigned n)
{
    uint8_t b[12] = {0};
    memcpy(b, op, n);
    diff32_put(g, b, n + g->bits / 8);
    return g->g.c->len - g->bits / 8;
}
static inline void diff32_patch(struct diff_gen32 *g, unsigned at, uint32_t value)
{
    memcpy(g->g.c->code + at, &value, g->bits / 8);
}
static inline void diff32_patch_rel(struct diff_gen32 *g, unsigned at, unsigned target)
{
    diff32_patch(g, at, target - (at + g->bits / 8));
}

static inline void diff32_control(struct diff_gen32 *g, unsigned depth)
{
    uint64_t *s = &g->g.rng, r = diff_rnd(s);
    struct diff_case *c = g->g.c;
    unsigned k = (unsigned)(r >> 8) % 4 + 1, reg = (unsigned)(r >> 16) & 7, at;
    if (reg == RSP || reg == RCX)
        reg = RBX;
    if (!diff_room(&g->g, 120) || (g->g.keep >> reg & 1))
        return;
    switch (r % 13) {
    case 0:
    case 1:
        at = diff32_put_wide(g, (uint8_t[]){0x0f, (uint8_t)(0x80 | (r >> 24 & 15))}, 2);
        diff32_block(g, k, depth + 1);
        diff32_patch_rel(g, at, c->len);
        break;
    case 2: { /* jcc rel8, JCXZ, JECXZ */
        uint8_t b[3] = {0x67, (uint8_t)((r >> 32) % 4 ? 0x70 | (r >> 24 & 15) : 0xe3), 0};
        bool a = (r >> 40) % 4 == 0;
        diff32_put(g, b + !a, a ? 3 : 2);
        at = c->len - 1u;
        diff32_block(g, 1, depth + 2);
        if (c->len - at - 1 <= 127)
            c->code[at] = (uint8_t)(c->len - at - 1);
        break;
    }
    case 3: { /* a counted loop, by CX or ECX */
        if (g->g.keep & (1u << RCX))
            break;
        bool a = (r >> 48) % 4 == 0, cx = (g->bits == 16) != a;
        diff32_set(g, RCX, (uint32_t)((r >> 32) % 4 + 1) | (cx ? (uint32_t)diff_rnd(s) << 16 : 0));
        uint16_t keep = g->g.keep;
        unsigned top = c->len;
        g->g.keep |= 1u << RCX;
        diff32_block(g, k, depth + 2);
        g->g.keep = keep;
        int d = (int)top - (int)(c->len + 2 + a);
        uint8_t b[3] = {0x67, (uint8_t)(0xe2 - (r >> 40) % 3), (uint8_t)d};
        if (d >= -128 && diff_room(&g->g, 3))
            diff32_put(g, b + !a, 2u + a);
        break;
    }
    case 4:
    case 5: { /* a function: near, or far with its selector pushed */
        bool far = r % 13 == 5 && g->protected && c->cpl == 3;
        unsigned over = diff32_put_wide(g, (uint8_t[]){0xe9}, 1), fn = c->len;
        diff32_block(g, k, depth + 1);
        bool release = (r >> 32) % 4 == 0;
        uint8_t b[3] = {(uint8_t)((release ? 0xc2 : 0xc3) + (far ? 8 : 0)),
                        (uint8_t)((r >> 34) & 24), 0};
        diff32_put(g, b, release ? 3 : 1);
        diff32_patch_rel(g, over, c->len);
        if (!diff_room(&g->g, 8))
            break;
        if (far)
            diff32_patch(g, diff32_put_wide(g, (uint8_t[]){0x68}, 1), g->seg[SEG_CS]);
        at = diff32_put_wide(g, (uint8_t[]){0xe8}, 1);
        diff32_patch_rel(g, at, fn);
        break;
    }
    case 6:
    case 7: { /* indirect by register or memory */
        bool call = (r >> 32) % 2, mem = (r >> 33) % 2 && g->stack * 8 == g->bits;
        at = diff32_put_wide(g, (uint8_t[]){(uint8_t)(0xb8 | reg)}, 1);
        if (mem) {
            diff32_put(g, (uint8_t[]){(uint8_t)(0x50 | reg)}, 1);
            if (g->bits == 32) /* jmp/call [esp] */
                diff32_put(g, (uint8_t[]){0xff, call ? 0x14 : 0x24, 0x24}, 3);
            else /* mov bp, sp; jmp/call [bp] */
                diff32_put(g, (uint8_t[]){0x89, 0xe5}, 2),
                    diff32_put(g, (uint8_t[]){0xff, call ? 0x56 : 0x66, 0}, 3);
        } else {
            diff32_put(g, (uint8_t[]){0xff, (uint8_t)((call ? 0xd0 : 0xe0) | reg)}, 2);
        }
        diff32_block(g, 1, depth + 1);
        diff32_patch(g, at, diff32_ip(g));
        break;
    }
    case 8: /* push address; ret */
        at = diff32_put_wide(g, (uint8_t[]){0x68}, 1);
        diff32_put(g, (uint8_t[]){0xc3}, 1);
        diff32_block(g, 1, depth + 1);
        diff32_patch(g, at, diff32_ip(g));
        break;
    case 9: /* push flags, cs, address; iret */
        if (!g->protected || c->cpl != 3)
            break;
        diff32_put(g, (uint8_t[]){0x9c}, 1);
        diff32_patch(g, diff32_put_wide(g, (uint8_t[]){0x68}, 1), g->seg[SEG_CS]);
        at = diff32_put_wide(g, (uint8_t[]){0x68}, 1);
        diff32_put(g, (uint8_t[]){0xcf}, 1);
        diff32_block(g, 1, depth + 1);
        diff32_patch(g, at, diff32_ip(g));
        break;
    case 10: { /* popf with harmless bits, sometimes AC, NT, ID, TF */
        if (!g->protected)
            break;
        uint32_t f = ((uint32_t)(r >> 20) & (FL_ARITH | FL_DF)) | FL_IF;
        if ((r >> 50) % 4 == 0 && c->cpl == 3)
            f |= (uint32_t)(diff_rnd(s) & (FL_AC | FL_ID | FL_TF));
        at = diff32_put_wide(g, (uint8_t[]){0x68}, 1);
        diff32_patch(g, at, f);
        diff32_put(g, (uint8_t[]){0x9d}, 1);
        break;
    }
    case 11:
    case 12: { /* far jump to another segment over the same code, or to code of the other size */
        static const uint8_t to32[] = {0, 2, 4}, to16[] = {1, 3, 5};
        if (!g->protected || c->cpl != 3 || depth)
            break;
        bool other = (r >> 32) % 2;
        unsigned bits = other ? 48 - g->bits : g->bits;
        uint16_t sel = DIFF_SEL(bits == 32 ? to32[(r >> 34) % 3] : to16[(r >> 34) % 3]);
        if (bits == 32 && (r >> 40) % 4 == 0)
            sel = DIFF_UCS32;
        unsigned how = (r >> 44) % 2 ? 0 : g->stack * 8 == g->bits ? 2 : 0;
        uint32_t base = diff_desc_of(sel)->base;
        if (g->bits == 16 && DIFF_LCODE - base > 0xffff)
            how |= 1; /* needs a 32-bit offset */
        unsigned osize = (how & 1) ? 4 : g->bits / 8;
        uint32_t ip = DIFF_LCODE - base + c->start + c->len;
        uint8_t b[16];
        unsigned n = 0;
        if (how & 2) { /* push cs; push ip; retf: with 66h each for the wide one */
            if (how & 1)
                b[n++] = 0x66;
            b[n++] = 0x68;
            uint32_t v = sel;
            memcpy(b + n, &v, osize);
            n += osize;
            diff32_put(g, b, n);
            n = 0;
            ip = DIFF_LCODE - base + c->start + c->len + 2 * (how & 1) + 2 + osize;
            if (how & 1)
                b[n++] = 0x66;
            b[n++] = 0x68;
            memcpy(b + n, &ip, osize);
            diff32_put(g, b, n + osize);
            n = 0;
            if (how & 1)
                b[n++] = 0x66;
            b[n++] = 0xcb;
            diff32_put(g, b, n);
        } else {
            if (how & 1)
                b[n++] = 0x66;
            b[n++] = 0xea;
            ip += n + osize + 2;
            memcpy(b + n, &ip, osize);
            memcpy(b + n + osize, &sel, 2);
            diff32_put(g, b, n + osize + 2);
        }
        g->bits = bits;
        g->seg[SEG_CS] = sel;
        break;
    }
    }
}

static inline void diff32_block(struct diff_gen32 *g, unsigned n, unsigned depth)
{
    for (unsigned i = 0; i < n && g->g.limit; i++) {
        g->g.limit--;
        if (depth < 3 && diff_rnd(&g->g.rng) % 5 == 0) {
            diff32_control(g, depth);
            continue;
        }
        for (unsigned tries = 0; tries < 60; tries++) {
            uint8_t b[48];
            diff32_random_bytes(g, b);
            if (diff32_take(g, b))
                break;
        }
    }
}

static inline void diff32_make_sequence(struct diff_case *c, uint64_t seed, unsigned bits,
                                        enum diff_world world, unsigned cpl)
{
    struct diff_gen32 g;
    diff32_case_init(&g, c, seed, bits, world, cpl);
    g.g.sequence = g.g.structured = true;
    g.g.limit = (uint8_t)(1 + diff_below(&g.g.rng, 20));
    diff32_block(&g, g.g.limit, 0);
}

/* -- Every opcode ---------------------------------------------------------------------------------
 */

#define DIFF32_PREFIXES 16u
#define DIFF32_N_LEGACY (4u * 256 * DIFF32_PREFIXES * 256)
#define DIFF32_N_VEX    (3u * 256 * 16 * 32)
#define DIFF32_N_EVEX   (5u * 256 * 32 * 32)
#define DIFF32_N_ALL    (DIFF32_N_LEGACY + DIFF32_N_VEX + DIFF32_N_EVEX)

/* Encoding number i of all of them; false if there is no such instruction. */
static inline bool diff32_make_single(struct diff_case *c, uint64_t i, uint64_t seed, unsigned bits,
                                      enum diff_world world, unsigned cpl)
{
    struct diff_gen32 g;
    uint8_t b[64];
    unsigned n = 0;
    uint64_t s = diff_seed(seed + i * 2), k = i;
    if (i < DIFF32_N_LEGACY) {
        static const uint8_t pfx[DIFF32_PREFIXES][2] = {
            {0},    {0x66}, {0x67}, {0x67, 0x66}, {0xf3}, {0xf2}, {0xf0},       {0x66, 0xf3},
            {0x26}, {0x2e}, {0x36}, {0x3e},       {0x64}, {0x65}, {0x67, 0xf3}, {0x66, 0xf2}};
        static const uint8_t esc[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
        unsigned modrm = k % 256, p = k / 256 % DIFF32_PREFIXES;
        unsigned op = (unsigned)(k / 256 / DIFF32_PREFIXES % 256);
        unsigned map = (unsigned)(k / 256 / DIFF32_PREFIXES / 256);
        for (unsigned j = 0; j < 2 && pfx[p][j]; j++)
            b[n++] = pfx[p][j];
        for (unsigned j = 0; j < 2 && esc[map][j]; j++)
            b[n++] = esc[map][j];
        b[n++] = (uint8_t)op;
        b[n++] = (uint8_t)modrm;
    } else {
        bool evex = (i -= DIFF32_N_LEGACY) >= DIFF32_N_VEX;
        if (evex)
            i -= DIFF32_N_VEX;
        /* ModRM: a few registers and the memory forms of either address size. */
        unsigned form = i % 32, q = (unsigned)(i / 32), reg = (unsigned)(s >> 10 & 7);
        if ((s >> 40 & 7) == 0)
            b[n++] = (s >> 43 & 1) ? 0x67 : 0x64;
        unsigned vvvv = s >> 20 & 1 ? (unsigned)(s >> 21 & 7) : 0;
        if (!evex) {
            unsigned pp = q % 4, w = q / 4 % 2, l = q / 8 % 2, op = q / 16 % 256;
            unsigned map = q / 16 / 256 + 1;
            b[n++] = 0xc4;
            b[n++] = (uint8_t)(0xe0 | map);
            b[n++] = (uint8_t)(w << 7 | (~vvvv & 15) << 3 | l << 2 | pp);
            b[n++] = (uint8_t)op;
        } else {
            static const uint8_t maps[5] = {1, 2, 3, 5, 6};
            unsigned pp = q % 4, w = q / 4 % 2, l = q / 8 % 4, op = q / 32 % 256;
            unsigned aaa = s >> 30 & 7, z = s >> 33 & 1, bb = s >> 34 & 1;
            b[n++] = 0x62;
            b[n++] = (uint8_t)(0xf0 | maps[q / 32 / 256 % 5]);
            b[n++] = (uint8_t)(w << 7 | (~vvvv & 15) << 3 | 4 | pp);
            b[n++] = (uint8_t)(z << 7 | l << 5 | bb << 4 | 8 | aaa);
            b[n++] = (uint8_t)op;
        }
        b[n++] = (uint8_t)((form < 8    ? 0xc0 | form
                            : form < 16 ? form
                            : form < 24 ? 0x40 | (form & 7)
                                        : 0x80 | (form & 7)) |
                           reg << 3);
    }
    for (unsigned j = 0; j < 20; j++)
        b[n++] = (uint8_t)diff_rnd(&s);
    diff32_case_init(&g, c, seed ^ (k * 77), bits, world, cpl);
    return diff32_take(&g, b) > 0;
}

#endif
