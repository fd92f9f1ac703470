/*
 * Makes cases for differential testing: instruction encodings by opcode map, with registers set up
 * so that memory operands mostly land in the case's pages, and random sequences of them with
 * structured control flow.
 *
 * Encodings are assembled blindly (prefixes, opcode, ModRM, SIB, displacement, immediate) and shown
 * to the decoder, which says how long they are and what address they form; if it is wrong there,
 * the host CPU will disagree.
 */
#ifndef RINGSHIFT_TESTS_DIFF_GEN_H
#define RINGSHIFT_TESTS_DIFF_GEN_H

#include "tests/support/diff_case.h"
#include "translator/insn.h"

struct diff_gen {
    struct diff_case *c;
    uint64_t rng;
    bool sequence;   /* registers are set by instructions, not in the initial state            */
    bool x87_mem;    /* an x87 instruction with a memory operand is in: FDP differs            */
    bool structured; /* the caller handles control flow: no branches from the opcode maps      */
    uint16_t keep;   /* registers that must not be written (loop counters)                     */
    uint8_t limit;   /* instructions still allowed                                             */
};

/* -- What may run natively ------------------------------------------------------------------------
 */

/* Can both sides run it and agree?  False for what reads the world (time, random numbers, CPUID),
 * talks to the host kernel, or differs by design between the host's ring 3 and the guest's ring. */
static inline bool diff_allowed(const struct insn *in, unsigned cpl, bool structured)
{
    switch (in->op) {
    case OP_INVALID:
    case OP_SYSCALL:
    case OP_SYSRET:
    case OP_SYSENTER:
    case OP_SYSEXIT:
    case OP_VMCALL:
    case OP_CPUID:
    case OP_RDTSC:
    case OP_RDTSCP:
    case OP_RDPMC:
    case OP_RDPID:
    case OP_MOV_FROM_SEG:
    case OP_MOV_TO_SEG:
    case OP_PUSH_SEG:
    case OP_POP_SEG:
    case OP_LOAD_FAR_PTR:
    case OP_JMP_FAR:
    case OP_CALL_FAR:
    case OP_RETF:
    case OP_IRET:
    case OP_SGDT:
    case OP_SIDT:
    case OP_SLDT:
    case OP_STR:
    case OP_SMSW:
    case OP_LAR:
    case OP_LSL:
    case OP_VERR:
    case OP_VERW:
    case OP_MONITOR:
    case OP_MWAIT:
    case OP_XGETBV:
    case OP_ARPL:
    case OP_BOUND:
    case OP_INT1:
    case OP_FAULT_DE:
    case OP_FAULT_NM:
    case OP_FAULT_GP:
        return false;
    case OP_INT:
        return cpl == 3 && (in->imm & 0xff) != 3 && (in->imm & 0xff) != 4 &&
               (in->imm & 0xff) != 0x80;
    case OP_POPF:
        return false; /* generated with sane values only */
    case OP_IN:
    case OP_OUT:
    case OP_INS:
    case OP_OUTS:
    case OP_CLI:
    case OP_STI:
    case OP_HLT:
    case OP_RDMSR:
    case OP_WRMSR:
    case OP_MOV_FROM_CR:
    case OP_MOV_TO_CR:
    case OP_MOV_FROM_DR:
    case OP_MOV_TO_DR:
    case OP_CLTS:
    case OP_LMSW:
    case OP_LGDT:
    case OP_LIDT:
    case OP_LLDT:
    case OP_LTR:
    case OP_INVLPG:
    case OP_INVPCID:
    case OP_INVD:
    case OP_WBINVD:
    case OP_SWAPGS:
    case OP_XSETBV:
    case OP_STAC:
    case OP_CLAC:
        return cpl == 3;
    case OP_JMP:
    case OP_JCC:
    case OP_CALL:
    case OP_LOOP:
    case OP_LOOPE:
    case OP_LOOPNE:
    case OP_JRCXZ:
    case OP_JMP_IND:
    case OP_CALL_IND:
    case OP_RET:
        return !structured;
    case OP_XSAVEOPT:
        return false; /* does not write components in their initial state; translated as XSAVE */
    default:
        break;
    }
    if (in->flags & INSN_PRIVILEGED)
        return cpl == 3;
    if (in->enc == ENC_LEGACY && in->map == MAP_0F && in->opcode == 0xc7 &&
        ((in->modrm >> 3) & 7) >= 6)
        return false; /* RDRAND, RDSEED, RDPID, VMX */
    if (in->enc == ENC_LEGACY && in->map == MAP_0F && in->opcode == 0xc7 && !(in->flags & INSN_MEM))
        return false;
    return true;
}

/* -- Values ---------------------------------------------------------------------------------------
 */

static inline uint64_t diff_value(uint64_t *s)
{
    static const uint64_t edge[] = {0,
                                    1,
                                    2,
                                    0x7f,
                                    0x80,
                                    0xff,
                                    0x7fff,
                                    0x8000,
                                    0xffff,
                                    0x7fffffff,
                                    0x80000000,
                                    0xffffffff,
                                    0x7fffffffffffffff,
                                    0x8000000000000000,
                                    ~0ull,
                                    ~1ull,
                                    0xffffffff80000000};
    uint64_t r = diff_rnd(s), x = diff_rnd(s);
    switch (r % 8) {
    case 0:
    case 1:
        return DIFF_DATA + (x & 0x1fff);
    case 2:
        return DIFF_HIGH + (x & 0x1fff);
    case 3:
    case 4:
        return x & 0x7f;
    case 5:
        return edge[x % (sizeof edge / 8)];
    default:
        return x;
    }
}

/* An address to access `size` bytes at. */
static inline uint64_t diff_target(uint64_t *s, unsigned size, bool aligned, bool low)
{
    uint64_t r = diff_rnd(s), a;
    unsigned kind = (unsigned)(r % 64), off = (unsigned)(r >> 16) & 0xfff;
    unsigned edge = (unsigned)(r >> 32) & 63;
    if (size > 512 || kind < 30) {
        static const uint64_t page[] = {DIFF_DATA,  DIFF_DATA + 0x1000, DIFF_DATA + 0x4000,
                                        DIFF_STACK, DIFF_HIGH,          DIFF_HIGH + 0x1000};
        unsigned p = (unsigned)(r >> 40) % (low ? 4 : 6);
        a = page[p] + off;
        if ((off & 0xfff) + size > 4096)
            a -= size;
        if (size > 512)
            a = (low || (r >> 50 & 1) ? DIFF_DATA : DIFF_HIGH) + (off & 0x7ff);
    } else if (kind < 46) { /* across a page boundary, or nearly */
        a = (low || (r >> 50 & 1) ? DIFF_DATA : DIFF_HIGH) + 0x1000 - edge;
    } else if (kind < 50) { /* up to and over the end of what is mapped */
        a = (low || (r >> 50 & 1) ? DIFF_DATA : DIFF_HIGH) + 0x2000 - edge;
    } else if (kind < 53) {
        a = DIFF_DATA + 0x3000 + off; /* read-only, perhaps running into writable */
    } else if (kind < 54) {
        a = DIFF_DATA + 0x4000 - edge; /* RO -> RW */
    } else if (kind < 57) {
        a = DIFF_CODE + (off & 0x3fff) + (r >> 50 & 3) * 0x1000;
    } else if (kind < 60) {
        a = DIFF_DATA + 0x2000 + off; /* unmapped */
    } else if (kind < 62) {
        a = diff_rnd(s) & 0xfff; /* null pointers */
    } else if (kind < 63 && !low) {
        a = 0x00007ffffffffff0ull + (r >> 40 & 31); /* over the edge of the canonical half */
        if (a == 0x7ffffffff000)
            a = 0;
        /* The top page of user space belongs to nobody. */
    } else if (!low) {
        a = (r & 1ull << 60) ? 0xfffff00000000000ull + off : r & 0x7fffffffffffffff;
    } else {
        a = (uint32_t)(r >> 20);
    }
    if (aligned && (r >> 56 & 7))
        a &= ~(uint64_t)63;
    return low ? (uint32_t)a : a;
}

/* -- Code -----------------------------------------------------------------------------------------
 */

static inline bool diff_room(const struct diff_gen *g, unsigned n)
{
    return g->c->len + n + 16 <= DIFF_MAX_CODE && g->c->n_at < DIFF_MAX_INSNS;
}

static inline unsigned diff_put(struct diff_gen *g, const uint8_t *b, unsigned n)
{
    unsigned at = g->c->len;
    g->c->at[g->c->n_at++] = (uint16_t)at;
    memcpy(g->c->code + at, b, n);
    g->c->len = (uint16_t)(at + n);
    return at;
}

/* reg = value: by an instruction in a sequence, in the initial state for a single instruction. */
static inline void diff_set(struct diff_gen *g, unsigned reg, uint64_t value)
{
    if (g->keep >> reg & 1)
        return;
    if (!g->sequence || g->c->n_at == 0) {
        g->c->gpr[reg] = value;
        return;
    }
    if (!diff_room(g, 10))
        return;
    uint8_t b[10] = {(uint8_t)(0x48 | (reg >= 8)), (uint8_t)(0xb8 | (reg & 7))};
    memcpy(b + 2, &value, 8);
    if (reg != RSP && value <= 0x7fffffff && diff_rnd(&g->rng) % 2) {
        b[0] = reg >= 8 ? 0x41 : 0x40;
        diff_put(g, b, 6);
    } else {
        diff_put(g, b, 10);
    }
}

/* Puts the registers of a memory operand such that it lies at `target`. */
static inline void diff_aim(struct diff_gen *g, const struct insn *in, uint64_t target)
{
    const struct insn_mem *m = &in->mem;
    uint64_t seg = m->seg == SEG_FS ? g->c->fs_base : m->seg == SEG_GS ? g->c->gs_base : 0;
    uint64_t want = target - seg - (uint64_t)m->disp, high = 0;
    if (in->addr_size == 4) {
        want = (uint32_t)want;
        high = diff_rnd(&g->rng) << 32;
    }
    bool vsib = in->flags & INSN_VSIB;
    if (m->base == BASE_RIP)
        return;
    if (m->index != REG_NONE && !vsib) {
        if (m->index == m->base) {
            diff_set(g, m->base, want / (m->scale + 1u) + high);
            return;
        }
        if (m->base == REG_NONE) {
            diff_set(g, m->index, want / m->scale + high);
            return;
        }
        uint64_t idx = diff_rnd(&g->rng) & 0xff;
        if (diff_rnd(&g->rng) % 4 == 0)
            idx = -idx;
        diff_set(g, m->index, in->addr_size == 4 ? (uint32_t)idx + high : idx);
        want -= idx * m->scale;
        if (in->addr_size == 4)
            want = (uint32_t)want;
    }
    if (m->base != REG_NONE)
        diff_set(g, m->base, want | high);
}

/* Makes the instruction's memory operands, explicit and implicit, point somewhere. False: skip it.
 */
static inline void diff_prepare(struct diff_gen *g, const struct insn *in)
{
    uint64_t *s = &g->rng;
    bool low = in->addr_size == 4;
    bool string = in->op == OP_MOVS || in->op == OP_CMPS || in->op == OP_STOS ||
                  in->op == OP_LODS || in->op == OP_SCAS || in->op == OP_INS || in->op == OP_OUTS;
    if (g->sequence && diff_rnd(s) % 10 == 0 && !(string && low))
        return; /* let fate decide */
    switch (in->op) {
    case OP_MOVS:
    case OP_CMPS:
    case OP_STOS:
    case OP_LODS:
    case OP_SCAS:
    case OP_INS:
    case OP_OUTS: {
        /* With a 32-bit count of zero CPUs differ in what is zero-extended; we do as Intel's. */
        bool rep = in->flags & (INSN_REP | INSN_REPNE);
        uint64_t high = low && (!rep || diff_intel()) ? diff_rnd(s) << 32 : 0;
        uint64_t src = diff_target(s, 1, false, low), dst = diff_target(s, 1, false, low);
        if (in->op != OP_STOS && in->op != OP_SCAS && in->op != OP_INS) {
            src -= in->mem.seg == SEG_FS   ? g->c->fs_base
                   : in->mem.seg == SEG_GS ? g->c->gs_base
                                           : 0;
            diff_set(g, RSI, low ? (uint32_t)src + high : src);
        }
        if (in->op != OP_LODS && in->op != OP_OUTS)
            diff_set(g, RDI, dst + high);
        if (rep)
            diff_set(g, RCX, (diff_rnd(s) % 16 ? diff_rnd(s) % 80 : 0x3000) + high);
        return;
    }
    case OP_XLAT:
        diff_set(g, RBX, diff_target(s, 1, false, low) - 0x40);
        return;
    case OP_MASKMOV:
        diff_set(g, RDI, diff_target(s, 16, false, low));
        return;
    case OP_LEAVE:
    case OP_ENTER:
        diff_set(g, RBP, DIFF_STACK + 0x800 + (diff_rnd(s) & 0xfff));
        return;
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
    uint64_t t =
        diff_target(s, size, in->flags & INSN_MEM_ALIGNED || diff_rnd(s) % 8 == 0 || xs, low);
    if (in->map == MAP_0F && in->opcode == 0xae && (in->modrm >> 3 & 7) == 2 && diff_rnd(s) % 8)
        t = DIFF_DATA + DIFF_MXCSR_OFF + 4 * (diff_rnd(s) % DIFF_MXCSR_N);
    diff_aim(g, in, t);
    if (in->op == OP_BT_MEM_REG && diff_rnd(s) % 8)
        diff_set(g, in->reg, (diff_rnd(s) & 0x3ff) - (diff_rnd(s) % 2) * 0x200);
    if (in->flags & INSN_VSIB)
        g->c->fp_seed = diff_fp_index_seed(g->c->fp_seed);
}

/* RIP-relative and absolute displacements lead to the case's pages. */
static inline void diff_fix_disp(struct diff_gen *g, struct insn *in, uint8_t *b)
{
    uint64_t *s = &g->rng;
    if ((in->flags & INSN_MEM) && in->op == OP_MOV_MOFFS) {
        uint64_t t = diff_target(s, in->mem.size, false, in->addr_size == 4);
        uint64_t seg = in->mem.seg == SEG_FS   ? g->c->fs_base
                       : in->mem.seg == SEG_GS ? g->c->gs_base
                                               : 0;
        t -= seg;
        memcpy(b + in->disp_off, &t, in->addr_size == 4 ? 4 : 8);
        return;
    }
    if (!(in->flags & INSN_MEM) || in->disp_size != 4)
        return;
    int32_t d;
    if (in->mem.base == BASE_RIP) {
        uint64_t t = diff_rnd(s) % 4 ? DIFF_CODE + 0x2000 + (diff_rnd(s) & 0xfff)
                                     : DIFF_CODE + (diff_rnd(s) & 0x3fff);
        if (diff_rnd(s) % 4 == 0)
            t = DIFF_CODE + 0x3000 - (diff_rnd(s) & 31);
        if (in->flags & INSN_MEM_ALIGNED)
            t &= ~63ull;
        d = (int32_t)(t - (diff_start(g->c) + g->c->len + in->len));
    } else if (in->mem.base == REG_NONE && in->mem.index == REG_NONE) {
        uint64_t t = diff_target(s, in->mem.size, in->flags & INSN_MEM_ALIGNED, true);
        d = (int32_t)(t - (in->mem.seg == SEG_FS   ? g->c->fs_base
                           : in->mem.seg == SEG_GS ? g->c->gs_base
                                                   : 0));
    } else {
        d = (int32_t)((diff_rnd(s) & 0xfff) - 0x800);
    }
    memcpy(b + in->disp_off, &d, 4);
}

/*
 * Takes the encoding in b (16 or more bytes, immediates already random) if the decoder knows it and
 * it may run: adds what its operands need and the instruction itself.  0: not usable.
 */
static inline int diff_take(struct diff_gen *g, uint8_t *b)
{
    struct insn in;
    int len = insn_decode(&in, b, 15, MODE_64);
    if (len <= 0 || !diff_allowed(&in, g->c->cpl, g->structured))
        return 0;
    if (g->keep & in.gpr_written)
        return 0;
    bool x87 = in.enc == ENC_LEGACY && in.map == MAP_ONE && in.opcode >= 0xd8 && in.opcode <= 0xdf;
    bool image = in.op == OP_FXSAVE || in.op == OP_XSAVE || in.op == OP_XSAVEC ||
                 in.op == OP_XSAVEOPT || in.op == OP_FNSAVE || in.op == OP_FNSTENV;
    bool env16 = (in.op == OP_FNSAVE || in.op == OP_FNSTENV) && in.op_size == 2;
    if (image && (g->x87_mem || g->keep || (env16 && g->structured)))
        return 0; /* FIP, FDP and FOP in the image, perhaps of the loop's last round */
    diff_fix_disp(g, &in, b);
    if (insn_decode(&in, b, 15, MODE_64) != len)
        return 0;
    if (!diff_room(g, 64))
        return 0;
    unsigned before = g->c->len;
    diff_prepare(g, &in);
    if (g->c->len != before) { /* the displacement depends on the place */
        if (in.mem.base == BASE_RIP && (in.flags & INSN_MEM)) {
            int32_t d;
            memcpy(&d, b + in.disp_off, 4);
            d -= (int32_t)(g->c->len - before);
            memcpy(b + in.disp_off, &d, 4);
        }
    }
    if (x87)
        g->x87_mem = true;
    if (in.op == OP_FXRSTOR || in.op == OP_XRSTOR || in.op == OP_FRSTOR || in.op == OP_FLDENV)
        g->x87_mem = true;
    if (!diff_room(g, (unsigned)len))
        return 0;
    diff_put(g, b, (unsigned)len);
    return len;
}

/* A random ModRM with its SIB and room for a displacement; returns bytes written. */
static inline unsigned diff_modrm(uint64_t *s, uint8_t *b)
{
    uint64_t r = diff_rnd(s);
    unsigned n = 0;
    b[n++] = (uint8_t)(r % 3 ? r >> 8 : (r >> 8) | 0xc0);
    if ((b[0] & 7) == 4 && b[0] < 0xc0)
        b[n++] = (uint8_t)(r >> 16);
    for (unsigned i = 0; i < 16; i++)
        b[n++] = (uint8_t)diff_rnd(s);
    return n;
}

/* One random encoding of any class. */
static inline void diff_random_bytes(uint64_t *s, uint8_t *b)
{
    uint64_t r = diff_rnd(s);
    unsigned n = 0, cls = (unsigned)(r % 100);
    r >>= 8;
    if (r % 8 == 0)
        b[n++] = 0x67;
    r >>= 3;
    if (r % 16 < 2)
        b[n++] = r % 2 ? 0x64 : 0x65;
    else if (r % 16 == 2)
        b[n++] = (uint8_t)((r >> 4) % 2 ? 0x2e : 0x36);
    r >>= 6;
    if (cls < 62) { /* legacy */
        if (r % 6 == 0)
            b[n++] = 0x66;
        r >>= 4;
        if (r % 8 < 2)
            b[n++] = r % 2 ? 0xf2 : 0xf3;
        else if (r % 8 == 2)
            b[n++] = 0xf0;
        r >>= 4;
        if (r % 2)
            b[n++] = (uint8_t)(0x40 | (r >> 1 & 15));
        r >>= 6;
        if (cls < 32) {
            b[n++] = (uint8_t)r;
        } else if (cls < 38) {
            b[n++] = (uint8_t)(0xd8 | (r & 7));
        } else if (cls < 54) {
            b[n++] = 0x0f;
            b[n++] = (uint8_t)r;
        } else {
            b[n++] = 0x0f;
            b[n++] = cls < 58 ? 0x38 : 0x3a;
            b[n++] = (uint8_t)r;
        }
    } else if (cls < 80) {
        uint64_t x = diff_rnd(s);
        if (x % 4 == 0) {
            b[n++] = 0xc5;
            b[n++] = (uint8_t)(x >> 8);
        } else {
            b[n++] = 0xc4;
            b[n++] = (uint8_t)((x >> 8 & 0xe0) | (1 + (x >> 16) % 3));
            b[n++] = (uint8_t)(x >> 24);
        }
        if ((x >> 32) % 2) /* vvvv = 1111b where it must be */
            b[n - 1] |= 0x78;
        b[n++] = (uint8_t)(x >> 40);
    } else {
        uint64_t x = diff_rnd(s);
        static const uint8_t maps[8] = {1, 1, 2, 2, 3, 3, 5, 6};
        b[n++] = 0x62;
        b[n++] = (uint8_t)((x & 0xf0) | maps[x >> 8 & 7]);
        b[n++] = (uint8_t)(x >> 16 | 4);
        b[n++] = (uint8_t)(x >> 24);
        if ((x >> 56) % 2) {
            b[n - 2] |= 0x78;
            b[n - 1] |= 0x08;
        }
        if ((x >> 58) % 2)
            b[n - 1] &= 0x7f;
        if ((x >> 59) % 4 == 0)
            b[n - 1] &= 0xf8;
        if ((x >> 61) % 2)
            b[n - 1] &= 0xef;
        b[n++] = (uint8_t)(x >> 48);
    }
    diff_modrm(s, b + n);
}

static inline void diff_case_init(struct diff_gen *g, struct diff_case *c, uint64_t seed,
                                  unsigned cpl)
{
    memset(c, 0, sizeof *c);
    *g = (struct diff_gen){.c = c, .rng = diff_seed(seed)};
    uint64_t *s = &g->rng;
    c->cpl = (uint8_t)cpl;
    for (unsigned i = 0; i < 16; i++)
        c->gpr[i] = diff_value(s);
    c->gpr[RSP] = DIFF_STACK + 0x200 + (diff_rnd(s) & 0x1bf8);
    if (diff_rnd(s) % 16 == 0)
        c->gpr[RSP] = DIFF_STACK + 0x1000 + (diff_rnd(s) & 15);
    c->rflags = (diff_rnd(s) & FL_ARITH) | (diff_rnd(s) % 16 ? 0 : FL_DF);
    c->fs_base = diff_rnd(s) & 0x3fffffff;
    c->gs_base = DIFF_HIGH - (diff_rnd(s) & 0xffffff);
    c->fp_seed = diff_rnd(s);
    c->start = (uint16_t)(diff_rnd(s) & 0x7ff);
    if (diff_rnd(s) % 4 == 0)
        c->start = (uint16_t)(0x1000 - diff_rnd(s) % 64); /* across the page's end */
}

/* -- Structured control flow ----------------------------------------------------------------------
 */

static inline void diff_block(struct diff_gen *g, unsigned n, unsigned depth);

static inline void diff_patch32(struct diff_gen *g, unsigned at, unsigned target)
{
    int32_t d = (int32_t)target - (int32_t)(at + 4);
    memcpy(g->c->code + at, &d, 4);
}

/* lea reg, [rip + X], X to be patched; returns where. */
static inline unsigned diff_lea_rip(struct diff_gen *g, unsigned reg)
{
    uint8_t b[7] = {(uint8_t)(0x48 | (reg >= 8 ? 4 : 0)), 0x8d, (uint8_t)(5 | (reg & 7) << 3)};
    return diff_put(g, b, 7) + 3;
}

static inline void diff_control(struct diff_gen *g, unsigned depth)
{
    uint64_t *s = &g->rng, r = diff_rnd(s);
    unsigned k = (unsigned)(r >> 8) % 4 + 1, reg = (unsigned)(r >> 16) & 15, at;
    if (reg == RSP)
        reg = R10;
    if (reg < 4)
        reg = R10 + (reg & 1);
    if (!diff_room(g, 120) || (g->keep >> reg & 1))
        return;
    switch (r % 10) {
    case 0:
    case 1: { /* jcc rel32 forward */
        uint8_t b[6] = {0x0f, (uint8_t)(0x80 | (r >> 24 & 15))};
        at = diff_put(g, b, 6) + 2;
        diff_block(g, k, depth + 1);
        diff_patch32(g, at, g->c->len);
        break;
    }
    case 2: { /* jcc rel8, JRCXZ */
        uint8_t b[2] = {(uint8_t)((r >> 32) % 4 ? 0x70 | (r >> 24 & 15) : 0xe3)};
        at = diff_put(g, b, 2) + 1;
        unsigned from = g->c->len;
        diff_block(g, 1, depth + 2);
        if (g->c->len - from <= 127)
            g->c->code[at] = (uint8_t)(g->c->len - from);
        break;
    }
    case 3: { /* a counted loop */
        if (g->keep & (1u << RCX))
            break;
        diff_set(g, RCX, (r >> 32) % 4 + 1);
        uint16_t keep = g->keep;
        unsigned top = g->c->len;
        g->keep |= 1u << RCX;
        diff_block(g, k, depth + 2);
        g->keep = keep;
        int d = (int)top - (int)(g->c->len + 2);
        if (d >= -128 && diff_room(g, 2))
            diff_put(g, (uint8_t[]){(uint8_t)(0xe2 - (r >> 40) % 3), (uint8_t)d}, 2);
        break;
    }
    case 4: { /* call over a function, and the function */
        uint8_t b[5] = {0xe9};
        unsigned over = diff_put(g, b, 5) + 1, fn = g->c->len;
        diff_block(g, k, depth + 1);
        if ((r >> 32) % 4 == 0)
            diff_put(g, (uint8_t[]){0xc2, (uint8_t)((r >> 34) & 24), 0}, 3);
        else
            diff_put(g, (uint8_t[]){0xc3}, 1);
        diff_patch32(g, over, g->c->len);
        b[0] = 0xe8;
        if (diff_room(g, 5))
            diff_patch32(g, diff_put(g, b, 5) + 1, fn);
        break;
    }
    case 5:
    case 6: { /* indirect jump or call by register */
        bool call = (r >> 32) % 2;
        at = diff_lea_rip(g, reg);
        uint8_t b[3] = {reg >= 8 ? 0x41 : 0x40, 0xff, (uint8_t)((call ? 0xd0 : 0xe0) | (reg & 7))};
        diff_put(g, b, 3);
        diff_block(g, 1, depth + 1);
        diff_patch32(g, at, g->c->len);
        if (call) /* drop the return address again */
            diff_put(g, (uint8_t[]){0x58 | RAX}, 1);
        break;
    }
    case 7: { /* push address; ret */
        at = diff_lea_rip(g, reg);
        uint8_t b[2] = {reg >= 8 ? 0x41 : 0x40, (uint8_t)(0x50 | (reg & 7))};
        diff_put(g, b, 2);
        diff_put(g, (uint8_t[]){0xc3}, 1);
        diff_block(g, 1, depth + 1);
        diff_patch32(g, at, g->c->len);
        break;
    }
    case 8: { /* indirect through memory */
        at = diff_lea_rip(g, reg);
        uint8_t st[4] = {(uint8_t)(0x48 | (reg >= 8 ? 4 : 0)), 0x89,
                         (uint8_t)(0x04 | (reg & 7) << 3), 0x24};
        bool call = (r >> 32) % 2;
        diff_put(g, st, 4);                                          /* mov [rsp], reg */
        diff_put(g, (uint8_t[]){0xff, call ? 0x14 : 0x24, 0x24}, 3); /* jmp/call [rsp] */
        diff_block(g, 1, depth + 1);
        diff_patch32(g, at, g->c->len);
        break;
    }
    case 9: /* popf with harmless bits, sometimes AC, NT, ID, TF */
    {
        uint32_t f = (uint32_t)(r >> 20) & (FL_ARITH | FL_DF);
        if ((r >> 50) % 4 == 0 && (g->c->cpl == 3))
            f |= (uint32_t)(diff_rnd(s) & (FL_AC | FL_ID | FL_NT | FL_TF));
        else if ((r >> 50) % 4 == 1)
            f |= (uint32_t)(diff_rnd(s) & (FL_ID | FL_NT));
        f |= FL_IF;
        uint8_t b[5] = {0x68};
        memcpy(b + 1, &f, 4);
        diff_put(g, b, 5);
        diff_put(g, (uint8_t[]){0x9d}, 1);
        break;
    }
    }
}

static inline void diff_save_restore(struct diff_gen *g)
{
    uint64_t *s = &g->rng, r = diff_rnd(s);
    if (g->x87_mem || !diff_room(g, 120) || (g->keep & 0xc7))
        return;
    uint64_t at = ((r & 1) ? DIFF_DATA : DIFF_HIGH) + (r >> 8 & 0x400) + ((r >> 20) % 4 ? 0 : 0x20);
    bool xs = (r >> 24) % 2 && (diff_xcr0() & 4);
    diff_set(g, RSI, at);
    if (xs) {
        static const uint32_t masks[] = {7, ~0u, 1, 2, 4, 6, 0xe0, 0xe6};
        diff_set(g, RAX, masks[r >> 28 & 7]);
        diff_set(g, RDX, r >> 32 & 1 ? 0 : ~0u);
    }
    uint8_t w = (uint8_t)(0x40 | (r >> 40 & 8));
    unsigned save = !xs ? 0 : 4;
    if (xs && (r >> 44) % 3 == 1)
        diff_put(g, (uint8_t[]){w, 0x0f, 0xc7, 0x26}, 4);
    else
        diff_put(g, (uint8_t[]){w, 0x0f, 0xae, (uint8_t)(6 | save << 3)}, 4);
    if ((r >> 50) % 4 == 0)
        return;
    diff_block(g, 2, 2);
    if (!diff_room(g, 40))
        return;
    diff_set(g, RSI, at);
    if (xs && (r >> 54) % 2)
        diff_set(g, RAX, (uint32_t)(diff_rnd(s) & 0xff));
    diff_put(g, (uint8_t[]){w, 0x0f, 0xae, (uint8_t)(6 | (xs ? 5 : 1) << 3)}, 4);
    g->x87_mem = true;
}

static inline void diff_block(struct diff_gen *g, unsigned n, unsigned depth)
{
    for (unsigned i = 0; i < n && g->limit; i++) {
        uint64_t r = diff_rnd(&g->rng);
        if (depth < 3 && r % 5 == 0) {
            g->limit--;
            diff_control(g, depth);
            continue;
        }
        if (depth == 0 && r % 61 == 0) {
            diff_save_restore(g);
            continue;
        }
        for (unsigned tries = 0; tries < 60; tries++) {
            uint8_t b[48];
            diff_random_bytes(&g->rng, b);
            if (diff_take(g, b))
                break;
        }
        g->limit--;
    }
}

/* A random sequence, wholly determined by its seed. */
static inline void diff_make_sequence(struct diff_case *c, uint64_t seed, unsigned cpl)
{
    struct diff_gen g;
    diff_case_init(&g, c, seed, cpl);
    g.sequence = g.structured = true;
    g.limit = (uint8_t)(1 + diff_below(&g.rng, 20));
    diff_block(&g, g.limit, 0);
}

/* -- Every opcode ---------------------------------------------------------------------------------
 */

/* The ways to name an operand: ModRM.mod, rm and the extension bits, SIB. */
struct diff_form {
    uint8_t mod, rm, b, has_sib, scale, index, x, base;
};
static const struct diff_form diff_forms[] = {
    {3, 0, 0, 0, 0, 0, 0, 0}, /* rax  */
    {3, 5, 0, 0, 0, 0, 0, 0}, /* rbp (also CH)  */
    {3, 2, 1, 0, 0, 0, 0, 0}, /* r10  */
    {3, 3, 1, 0, 0, 0, 0, 0}, /* r11  */
    {3, 4, 0, 0, 0, 0, 0, 0}, /* rsp  */
    {0, 3, 0, 0, 0, 0, 0, 0}, /* [rbx] */
    {0, 2, 1, 0, 0, 0, 0, 0}, /* [r10] */
    {1, 5, 0, 0, 0, 0, 0, 0}, /* [rbp+8] */
    {1, 5, 1, 0, 0, 0, 0, 0}, /* [r13+8] */
    {2, 3, 1, 0, 0, 0, 0, 0}, /* [r11+32] */
    {0, 5, 0, 0, 0, 0, 0, 0}, /* [rip+32] */
    {0, 4, 0, 1, 0, 4, 0, 5}, /* [abs] */
    {0, 4, 0, 1, 0, 4, 0, 4}, /* [rsp] */
    {0, 4, 1, 1, 0, 4, 0, 4}, /* [r12] */
    {1, 4, 0, 1, 3, 1, 0, 4}, /* [rsp+rcx*8+8] */
    {2, 4, 0, 1, 2, 2, 1, 0}, /* [rax+r10*4+32] */
    {0, 4, 1, 1, 1, 3, 1, 2}, /* [r10+r11*2] */
    {2, 4, 1, 1, 0, 4, 1, 5}, /* [r13+r12+32] */
    {0, 4, 1, 1, 3, 3, 1, 3}, /* [r11+r11*8] */
    {0, 4, 0, 1, 2, 6, 0, 5}, /* [rsi*4+32] */
};
#define DIFF_FORMS (sizeof diff_forms / sizeof diff_forms[0])

#define DIFF_N_LEGACY (4u * 256 * 14 * 8 * DIFF_FORMS)
#define DIFF_N_VEX    (3u * 256 * 16 * 8 * DIFF_FORMS)
#define DIFF_N_EVEX   (5u * 256 * 32 * 4 * DIFF_FORMS)
#define DIFF_N_ALL    (DIFF_N_LEGACY + DIFF_N_VEX + DIFF_N_EVEX)

static inline unsigned diff_operand(uint64_t *s, uint8_t *b, const struct diff_form *f,
                                    unsigned reg)
{
    unsigned n = 0;
    b[n++] = (uint8_t)(f->mod << 6 | (reg & 7) << 3 | f->rm);
    if (f->has_sib)
        b[n++] = (uint8_t)(f->scale << 6 | f->index << 3 | f->base);
    for (unsigned i = 0; i < 20; i++)
        b[n++] = (uint8_t)diff_rnd(s);
    return n;
}

/* Encoding number i of all of them; false if there is no such instruction. */
static inline bool diff_make_single(struct diff_case *c, uint64_t i, uint64_t seed, unsigned cpl)
{
    struct diff_gen g;
    uint8_t b[64];
    unsigned n = 0;
    uint64_t k = i;
    const struct diff_form *f = &diff_forms[k % DIFF_FORMS];
    k /= DIFF_FORMS;
    uint64_t s = diff_seed(seed + i * 2);
    if (i < DIFF_N_LEGACY) {
        unsigned reg = k % 8, p = k / 8 % 14, op = k / 112 % 256, map = (unsigned)(k / 112 / 256);
        static const uint8_t pfx[14][3] = {{0},    {0x66},       {0xf3},       {0xf2},      {0},
                                           {0x66}, {0xf3},       {0xf2},       {0xf0},      {0x67},
                                           {0x64}, {0x65, 0x67}, {0x66, 0xf2}, {0x36, 0xf0}};
        bool w = (p >= 4 && p < 8) || p == 13, r = p == 4 || p == 6 || (p >= 9 && s >> 20 & 1);
        for (unsigned j = 0; j < 3 && pfx[p][j]; j++)
            b[n++] = pfx[p][j];
        unsigned rex = (w ? 8u : 0) | (r ? 4 : 0) | f->x * 2u | f->b;
        if (rex || (s >> 21 & 7) == 0)
            b[n++] = (uint8_t)(0x40 | rex);
        static const uint8_t esc[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
        for (unsigned j = 0; j < 2 && esc[map][j]; j++)
            b[n++] = esc[map][j];
        b[n++] = (uint8_t)op;
        diff_operand(&s, b + n, f, reg);
    } else if ((i -= DIFF_N_LEGACY) < DIFF_N_VEX) {
        unsigned reg = k - DIFF_N_LEGACY / DIFF_FORMS;
        uint64_t q = reg;
        reg = q % 8;
        unsigned pp = q / 8 % 4, w = q / 32 % 2, l = q / 64 % 2, op = q / 128 % 256;
        unsigned map = (unsigned)(q / 128 / 256) + 1, vvvv = s >> 20 & 15;
        if (s >> 30 & 1)
            vvvv = 10 + (s >> 31 & 1);
        if (s >> 32 & 1)
            vvvv = 0;
        if (s >> 40 & 1 && (s >> 41 & 3) == 0)
            b[n++] = (s >> 43 & 1) ? 0x67 : 0x64;
        unsigned r = s >> 24 & 1;
        if (map == 1 && !w && !f->x && !f->b && s >> 25 & 1) {
            b[n++] = 0xc5;
            b[n++] = (uint8_t)((r ? 0 : 0x80) | (~vvvv & 15) << 3 | l << 2 | pp);
        } else {
            b[n++] = 0xc4;
            b[n++] = (uint8_t)((r ? 0 : 0x80) | (f->x ? 0 : 0x40) | (f->b ? 0 : 0x20) | map);
            b[n++] = (uint8_t)(w << 7 | (~vvvv & 15) << 3 | l << 2 | pp);
        }
        b[n++] = (uint8_t)op;
        diff_operand(&s, b + n, f, reg);
    } else {
        i -= DIFF_N_VEX;
        uint64_t q = k - (DIFF_N_LEGACY + DIFF_N_VEX) / DIFF_FORMS;
        static const uint8_t maps[5] = {1, 2, 3, 5, 6};
        unsigned v = q % 4, pp = q / 4 % 4, w = q / 16 % 2, l = q / 32 % 4, op = q / 128 % 256;
        unsigned map = maps[q / 128 / 256 % 5], vvvv = s >> 20 & 31, reg = s >> 25 & 31;
        if (v == 0 || v == 3)
            vvvv = 0;
        unsigned aaa = v == 0 ? 0 : s >> 30 & 7, z = v == 2 ? s >> 33 & 1 : 0, bb = v >= 2;
        if (s >> 40 & 1 && (s >> 41 & 3) == 0)
            b[n++] = (s >> 43 & 1) ? 0x67 : 0x64;
        b[n++] = 0x62;
        unsigned p0 = map | (reg & 8 ? 0 : 0x80) | (reg & 16 ? 0 : 0x10);
        p0 |= f->b ? 0 : 0x20;
        p0 |= (f->mod == 3 ? (s >> 34 & 1) : f->x) ? 0 : 0x40;
        b[n++] = (uint8_t)p0;
        b[n++] = (uint8_t)(w << 7 | (~vvvv & 15) << 3 | 4 | pp);
        b[n++] = (uint8_t)(z << 7 | l << 5 | bb << 4 | (vvvv & 16 ? 0 : 8) | aaa);
        b[n++] = (uint8_t)op;
        diff_operand(&s, b + n, f, reg);
    }
    struct insn in;
    int len = insn_decode(&in, b, 15, MODE_64);
    if (len <= 0 || !diff_allowed(&in, cpl, false))
        return false;
    diff_case_init(&g, c, seed ^ (i * 77), cpl);
    return diff_take(&g, b) > 0;
}

#endif
