/*
 * Differential testing against the host CPU: what a test case is and how outcomes are compared.
 *
 * A case is some code and the full register state before it; diff_native.h runs it on the host CPU
 * in a fenced child, diff_guest.h runs it through the translator.  Both see the same memory at the
 * same virtual addresses (diff_pages), filled with the same bytes, so every register, flag, vector
 * register and byte of memory must come out the same, and so must a fault's vector, error code and
 * address.  The code ends at a HLT, which for user code is #GP at a known address.
 *
 * A case is small and self-contained: FP state and memory follow from seeds.
 *
 * A process tests either 64-bit code or, with diff_legacy set before anything else, 16- and 32-bit
 * code.  That has its pages below 1 MiB, where real mode reaches them, and its segments in an LDT
 * (diff_ldt) which the host kernel installs by modify_ldt() and the guest finds in its memory.
 */
#ifndef RINGSHIFT_TESTS_DIFF_CASE_H
#define RINGSHIFT_TESTS_DIFF_CASE_H

#include <cpuid.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cpu/vcpu.h"
#include "translator/insn.h"

/* Is the host's CPU of Intel's? */
static inline bool diff_intel(void)
{
    static unsigned b; /* asked once: it is slow in a virtual machine */
    unsigned a, c, d;
    if (!b)
        __cpuid(0, a, b, c, d);
    return b == 0x756e6547; /* "Genu" */
}

/* -- Random numbers (xorshift64*) -----------------------------------------------------------------
 */

static inline uint64_t diff_rnd(uint64_t *s)
{
    uint64_t x = *s;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *s = x;
    return x * 0x2545f4914f6cdd1dull;
}
static inline uint64_t diff_seed(uint64_t n)
{
    n = (n + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    n = (n ^ (n >> 27)) * 0x94d049bb133111ebull;
    return (n ^ (n >> 31)) | 1;
}
static inline unsigned diff_below(uint64_t *s, unsigned n)
{
    return (unsigned)((diff_rnd(s) >> 32) * n >> 32);
}

/* -- Memory ---------------------------------------------------------------------------------------
 */

#define DIFF_CODE  0x10000000ull     /* two pages of code, two of data that code reaches by RIP */
#define DIFF_DATA  0x20000000ull     /* RW RW none RO RW none                                   */
#define DIFF_STACK 0x30000000ull     /* RW RW                                                   */
#define DIFF_HIGH  0x700000000000ull /* RW RW: out of reach of 32-bit addresses                 */

enum { DP_W = 1, DP_X = 2 };
struct diff_page {
    uint64_t gva;
    unsigned flags;
};
#define DIFF_PAGES 12u
static const struct diff_page diff_pages64[DIFF_PAGES] = {
    {DIFF_CODE, DP_X},           {DIFF_CODE + 0x1000, DP_X}, {DIFF_CODE + 0x2000, DP_W},
    {DIFF_CODE + 0x3000, 0},     {DIFF_DATA, DP_W},          {DIFF_DATA + 0x1000, DP_W},
    {DIFF_DATA + 0x3000, 0},     {DIFF_DATA + 0x4000, DP_W}, {DIFF_STACK, DP_W},
    {DIFF_STACK + 0x1000, DP_W}, {DIFF_HIGH, DP_W},          {DIFF_HIGH + 0x1000, DP_W},
};

/* 16- and 32-bit code: code, data, a segment that wraps (its first and last page), stack. */
#define DIFF_LCODE  0x20000u /* X X RW                             */
#define DIFF_LDATA  0x30000u /* RW RW none RO RW                   */
#define DIFF_LWRAP  0x40000u /* RW ... RW: offsets 0 and F000H     */
#define DIFF_LWRAP2 0x42000u /* RW ... the stack: offsets 0, E000H */
#define DIFF_LSTACK 0x50000u /* RW RW                              */
static const struct diff_page diff_pages32[DIFF_PAGES] = {
    {DIFF_LCODE, DP_X},          {DIFF_LCODE + 0x1000, DP_X}, {DIFF_LCODE + 0x2000, DP_W},
    {DIFF_LDATA, DP_W},          {DIFF_LDATA + 0x1000, DP_W}, {DIFF_LDATA + 0x3000, 0},
    {DIFF_LDATA + 0x4000, DP_W}, {DIFF_LWRAP, DP_W},          {DIFF_LWRAP2, DP_W},
    {DIFF_LWRAP + 0xf000, DP_W}, {DIFF_LSTACK, DP_W},         {DIFF_LSTACK + 0x1000, DP_W},
};
static bool diff_legacy; /* set once, before anything else of this is used */
#define diff_pages      (diff_legacy ? diff_pages32 : diff_pages64)
#define DIFF_CODE_PAGES 2u /* the first two of the table */

/* Words at these offsets of the first data page are valid MXCSR images. */
#define DIFF_MXCSR_OFF 0x40u
#define DIFF_MXCSR_N   8u

/* -- Segments of 16- and 32-bit code -------------------------------------------------------------
 */

struct diff_desc {
    uint32_t base, limit; /* limit as in the descriptor: in pages with `pages` */
    bool code, down, locked /* data: read-only; code: execute-only */, big, pages, absent;
};
static const struct diff_desc diff_ldt[] = {
    {.base = 0,
     .limit = 0xfffff,
     .code = true,
     .big = true,
     .pages = true}, /* 0: flat 32-bit code */
    {.base = DIFF_LCODE, .limit = 0xffff, .code = true},
    {.base = DIFF_LCODE, .limit = 0x2fff, .code = true, .big = true},
    {.base = DIFF_LCODE - 0x1000, .limit = 0x3fff, .code = true},
    {.base = 0, .limit = 0xfffff, .code = true, .locked = true, .big = true, .pages = true},
    {.base = DIFF_LCODE, .limit = 0xffff, .code = true, .locked = true},
    {.base = 0, .limit = 0xfffff, .big = true, .pages = true}, /* 6: flat data */
    {.base = DIFF_LDATA, .limit = 0xffff},
    {.base = DIFF_LSTACK, .limit = 0xffff},
    {.base = DIFF_LWRAP, .limit = 0xffff},
    {.base = DIFF_LWRAP2, .limit = 0xffff},
    {.base = DIFF_LSTACK, .limit = 0x1fff, .big = true},
    {.base = DIFF_LDATA, .limit = 0x17ff, .big = true}, /* 12 */
    {.base = DIFF_LDATA, .limit = 0xffff, .locked = true},
    {.base = DIFF_LDATA, .limit = 0x0fff, .down = true},
    {.base = DIFF_LDATA - 0x1000, .limit = 0x0fff, .down = true, .big = true},
    {.base = DIFF_LDATA + 3, .limit = 1, .big = true, .pages = true},
    {.base = 0xffff0000, .limit = 0xfffff, .big = true, .pages = true},
    {.base = DIFF_LDATA, .limit = 0xfffff, .big = true, .pages = true}, /* 18 */
    {.base = DIFF_LDATA, .limit = 0xffff, .absent = true},
    {.base = DIFF_LSTACK, .limit = 0x07ff, .down = true},
    {.base = DIFF_LDATA, .limit = 0},
};
#define DIFF_LDT_N  (sizeof diff_ldt / sizeof diff_ldt[0])
#define DIFF_SEL(n) ((uint16_t)((n) << 3 | 7))
enum { DIFF_UCS32 = 0x23, DIFF_UDS = 0x2b }; /* of Linux's GDT, flat */

/* What instructions load into segment registers: mostly usable. */
static const uint16_t diff_selectors[] = {
    DIFF_UDS,
    DIFF_SEL(6),
    DIFF_SEL(7),
    DIFF_SEL(8),
    DIFF_SEL(9),
    DIFF_SEL(10),
    DIFF_SEL(11),
    DIFF_SEL(12),
    DIFF_SEL(13),
    DIFF_SEL(14),
    DIFF_SEL(15),
    DIFF_SEL(16),
    DIFF_SEL(17),
    DIFF_SEL(18),
    DIFF_SEL(20),
    DIFF_SEL(7),
    DIFF_SEL(18),
    DIFF_UCS32,
    DIFF_SEL(2),
    DIFF_SEL(4),
    DIFF_SEL(19),
    DIFF_SEL(21),
    DIFF_SEL(22),
    0,
    3,
    DIFF_SEL(7) - 1,
};
#define DIFF_SELECTORS (sizeof diff_selectors / sizeof diff_selectors[0])
/* They are in the first data page too, and far pointers with them. */
#define DIFF_SEL_N     32u
#define DIFF_SEL_OFF   0x80u
#define DIFF_FAR32_OFF 0x100u
#define DIFF_FAR16_OFF 0x200u

static inline const struct diff_desc *diff_desc_of(uint16_t sel)
{
    if ((sel & 4) && (unsigned)sel >> 3 < DIFF_LDT_N)
        return &diff_ldt[sel >> 3];
    return sel == DIFF_UCS32 ? &diff_ldt[0] : &diff_ldt[6];
}
static inline uint64_t diff_desc_raw(const struct diff_desc *d)
{
    uint64_t access = 0x71u | (d->absent ? 0 : 0x80) | (d->code ? 8 : 0) | (d->down ? 4 : 0) |
                      (d->locked ? 0 : 2);
    return (d->limit & 0xffff) | (uint64_t)(d->base & 0xffffff) << 16 | access << 40 |
           (uint64_t)(d->limit >> 16) << 48 | (d->big ? 1ull << 54 : 0) |
           (d->pages ? 1ull << 55 : 0) | (uint64_t)(d->base >> 24) << 56;
}
static inline uint32_t diff_desc_limit(const struct diff_desc *d)
{
    return d->pages ? d->limit << 12 | 0xfff : d->limit;
}

/* What page i holds before every case: code pages HLT, the others a mix of random bits, small
 * numbers, floating-point values and pointers. */
static inline void diff_fill_page(unsigned i, uint8_t *page)
{
    uint64_t s = diff_seed(1000 + i);
    if (i < DIFF_CODE_PAGES) {
        memset(page, 0xf4, 4096);
        return;
    }
    for (unsigned o = 0; o < 4096; o += 8) {
        uint64_t r = diff_rnd(&s), x = diff_rnd(&s);
        double d = (double)(int64_t)x / 65536;
        float f[2] = {(float)(int32_t)x / 16, (float)(int32_t)(x >> 32)};
        switch (r >> 60) {
        case 0:
        case 1:
            x = x & 0xff;
            break;
        case 2:
            x = (x & 0x80000000 ? -1ull : 0) ^ (x & 0xf);
            break;
        case 3:
        case 4:
            memcpy(&x, &d, 8);
            break;
        case 5:
        case 6:
            memcpy(&x, f, 8);
            break;
        case 7:
            if (diff_legacy) /* offsets */
                x &= 0x1fff00001fffull;
            else
                x = DIFF_DATA + (x & 0x1fff);
            break;
        case 8:
            if (!diff_legacy)
                x = DIFF_STACK + (x & 0x1fff);
            break;
        case 9:
            if (!diff_legacy)
                x = DIFF_CODE + (x & 0x1fff);
            break;
        }
        memcpy(page + o, &x, 8);
    }
    if (diff_pages[i].gva == (diff_legacy ? DIFF_LDATA : DIFF_DATA))
        for (unsigned k = 0; k < DIFF_MXCSR_N; k++) {
            uint32_t m = (uint32_t)diff_rnd(&s) & 0xffff;
            if (k < 5)
                m |= 0x1f80;
            memcpy(page + DIFF_MXCSR_OFF + 4 * k, &m, 4);
        }
    if (!diff_legacy || diff_pages[i].gva != DIFF_LDATA)
        return;
    for (unsigned k = 0; k < DIFF_SEL_N; k++) { /* selectors; m16:32; m16:16 */
        uint16_t sel = diff_selectors[k % DIFF_SELECTORS], off = (uint16_t)diff_rnd(&s);
        memcpy(page + DIFF_SEL_OFF + 2 * k, &sel, 2);
        memcpy(page + DIFF_FAR32_OFF + 8 * k + 4, &sel, 2);
        memcpy(page + DIFF_FAR16_OFF + 4 * k, &off, 2);
        memcpy(page + DIFF_FAR16_OFF + 4 * k + 2, &sel, 2);
    }
}

/* -- Cases ----------------------------------------------------------------------------------------
 */

#define DIFF_MAX_CODE  400u
#define DIFF_MAX_INSNS 64u
#define DIFF_XSAVE     2688u
#define DIFF_XMASK     0xe7u

/* How the guest runs 16- and 32-bit code.  The host runs it in compatibility mode: V86 and REAL get
 * cases that cannot tell. */
enum diff_world { DIFF_COMPAT, DIFF_PROT, DIFF_V86, DIFF_REAL };

struct diff_case {
    uint64_t gpr[16], rflags, fs_base, gs_base;
    uint64_t fp_seed;
    uint16_t start;  /* offset of the code in the code pages          */
    uint16_t len;    /* of the code, without the HLT that ends it     */
    uint8_t cpl;     /* 0 or 3; native code runs at 3 in either case  */
    uint8_t bits;    /* 16 or 32: the code's size at its start; 0: 64-bit code     */
    uint8_t world;   /* and the mode that the guest runs it in (enum diff_world)   */
    uint16_t seg[6]; /* and selectors in diff_ldt or Linux's GDT, by enum seg      */
    uint8_t n_at;
    uint64_t wide;               /* bit i: instruction i is 32-bit code  */
    uint16_t at[DIFF_MAX_INSNS]; /* offsets of instructions, for reports and minimising */
    uint8_t code[DIFF_MAX_CODE];
};

enum { DIFF_TIMEOUT = 100, DIFF_CRASH, DIFF_OTHER };

struct diff_result {
    uint64_t gpr[16], rip, rflags, fs_base, gs_base;
    uint64_t cr2;
    uint32_t vector, error;
    uint16_t seg[6]; /* of 16- and 32-bit code in protected mode           */
    /* Real mode: six bytes at this offset of the segment at frame_at belong to the end's frame. */
    uint32_t frame_at, frame_sp;
    bool frame_wraps;
    uint8_t xsave[DIFF_XSAVE] __attribute__((aligned(64)));
    uint32_t dirty; /* bit i: page i changed, to page[i] */
    uint8_t page[DIFF_PAGES][4096];
};

/* Where the code starts and ends, as an address or, in 16- and 32-bit code, an offset in CS. */
static inline uint64_t diff_start(const struct diff_case *c)
{
    if (c->bits)
        return (uint32_t)(DIFF_LCODE - diff_desc_of(c->seg[SEG_CS])->base + c->start);
    return DIFF_CODE + c->start;
}
/* How far in the code an outcome is: c->len is the regular end. */
static inline uint64_t diff_offset(const struct diff_case *c, const struct diff_result *r)
{
    if (!c->bits)
        return r->rip - diff_start(c);
    uint16_t cs = c->world == DIFF_V86 || c->world == DIFF_REAL ? c->seg[SEG_CS] : r->seg[SEG_CS];
    return (uint32_t)(r->rip + diff_desc_of(cs)->base - DIFF_LCODE - c->start);
}
static inline bool diff_at_end(const struct diff_case *c, const struct diff_result *r)
{
    return diff_offset(c, r) == c->len;
}
/* The size of the code at an offset. */
static inline enum insn_mode diff_insn_mode(const struct diff_case *c, uint64_t off)
{
    if (!c->bits)
        return MODE_64;
    unsigned bits = c->bits;
    for (unsigned i = 0; i < c->n_at && c->at[i] <= off; i++)
        bits = c->wide >> i & 1 ? 32 : 16;
    return bits == 32 ? MODE_32 : MODE_16;
}

/* -- FP state -------------------------------------------------------------------------------------
 */

static inline uint32_t diff_xoff(unsigned component)
{
    static uint32_t off[8];
    if (!off[component]) {
        uint32_t a, b, c, d;
        __cpuid_count(0xd, component, a, b, c, d);
        off[component] = b;
    }
    return off[component];
}
static inline uint64_t diff_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

/* fp_seed with the low bits 001 (after diff_fp_index_seed) gives vectors of small integers, which
 * serve as gather indices and as masks. */
static inline uint64_t diff_fp_element(uint64_t *s, unsigned kind)
{
    uint64_t x = diff_rnd(s);
    static const uint32_t edge32[] = {
        0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
        1, 0x007fffff, 0x7f7fffff, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x00800000};
    static const uint64_t edge64[] = {0,
                                      1ull << 63,
                                      0x3ff0000000000000,
                                      0x7ff0000000000000,
                                      0xfff0000000000000,
                                      0x7ff8000000000000,
                                      0x7ff0000000000001,
                                      1,
                                      0x7fefffffffffffff,
                                      0x43e0000000000000,
                                      0xc3e0000000000000,
                                      0x41dfffffffc00000,
                                      0x4330000000000000,
                                      0x3fe0000000000000,
                                      0x0010000000000000,
                                      0xbff8000000000000};
    double d = (double)(int32_t)x / 4096;
    float f[2] = {(float)(int32_t)x / 256, (float)(int16_t)(x >> 32)};
    switch (kind & 7) {
    case 0:
    case 1:
        return x;
    case 2:
    case 3:
        memcpy(&x, &d, 8);
        return x;
    case 4:
    case 5:
        memcpy(&x, f, 8);
        return x;
    case 6:
        return edge32[x & 15] | (uint64_t)edge32[x >> 4 & 15] << 32;
    default:
        return edge64[x & 15];
    }
}

static inline uint64_t diff_fp_index_seed(uint64_t s)
{
    return (s & ~7ull) | 1;
}

static inline void diff_fp_make(uint64_t seed, uint8_t *img)
{
    uint64_t s = diff_seed(seed), mask = diff_xcr0() & DIFF_XMASK;
    bool small = (seed & 7) == 1, wild = (seed & 0x38) == 0;
    memset(img, 0, DIFF_XSAVE);
    uint16_t fcw = 0x37f, fsw = 0;
    uint32_t mxcsr = 0x1f80;
    if (diff_below(&s, 3) == 0)
        fcw = 0x7f | (diff_rnd(&s) & 0xf00);
    if (diff_below(&s, 3) == 0)
        mxcsr = 0x1f80 | (diff_rnd(&s) & 0xe07f);
    if (wild) {
        fcw = (fcw & ~0x3f) | (diff_rnd(&s) & 0x3f);
        mxcsr = (mxcsr & ~0x1f80u) | (diff_rnd(&s) & 0x1f80);
    }
    fsw = diff_rnd(&s) & 0x7f00; /* TOP and condition codes */
    uint8_t ftw = diff_below(&s, 2) ? 0xff : diff_below(&s, 2) ? 0 : (uint8_t)diff_rnd(&s);
    if (diff_below(&s, 4) == 0)
        fsw |= diff_rnd(&s) & 0x7f & ~(wild ? 0 : 0x40);
    memcpy(img, &fcw, 2);
    memcpy(img + 2, &fsw, 2);
    img[4] = ftw;
    memcpy(img + 24, &mxcsr, 4);
    uint32_t mxmask = 0xffff;
    memcpy(img + 28, &mxmask, 4);
    for (unsigned i = 0; i < 8; i++) {
        long double ld = (long double)(int64_t)diff_rnd(&s) / (1 << diff_below(&s, 30));
        uint64_t r = diff_rnd(&s);
        memcpy(img + 32 + 16 * i, &ld, 10);
        if (r % 4 == 0) {
            memcpy(img + 32 + 16 * i, &r, 8);
            img[32 + 16 * i + 9] = (uint8_t)(r >> 56);
        }
    }
    for (unsigned r = 0; r < 32; r++) {
        uint64_t q[8];
        unsigned kind = (unsigned)diff_rnd(&s) & 7;
        for (unsigned i = 0; i < 8; i++) {
            q[i] = diff_fp_element(&s, kind);
            if (small) {
                q[i] &= 0xfc000000fcull;
                if (r & 1) /* sign bits: masks of VEX gathers and VMASKMOV */
                    q[i] |= diff_rnd(&s) & 0x8000000080000000ull;
                if (r % 4 >= 2)
                    q[i] = (q[i] & 0x80000000000000ffull);
            }
        }
        if (r < 16) {
            memcpy(img + 160 + 16 * r, q, 16);
            if (mask & 4)
                memcpy(img + diff_xoff(2) + 16 * r, q + 2, 16);
            if (mask & 0x40)
                memcpy(img + diff_xoff(6) + 32 * r, q + 4, 32);
        } else if (mask & 0x80) {
            memcpy(img + diff_xoff(7) + 64 * (r - 16), q, 64);
        }
    }
    if (mask & 0x20)
        for (unsigned k = 0; k < 8; k++) {
            uint64_t r = diff_rnd(&s), x = diff_rnd(&s);
            x = r % 8 == 0 ? 0 : r % 8 == 1 ? ~0ull : r % 8 == 2 ? x & 0xff : x;
            memcpy(img + diff_xoff(5) + 8 * k, &x, 8);
        }
    memcpy(img + 512, &mask, 8);
}

/* Components in their initial state get their initial values, so that images compare bytewise. */
static inline void diff_fp_normalize(uint8_t *img)
{
    uint64_t bv;
    memcpy(&bv, img + 512, 8);
    uint64_t mask = diff_xcr0() & DIFF_XMASK;
    if (!(bv & 1)) {
        memset(img, 0, 24);
        img[0] = 0x7f;
        img[1] = 3;
        memset(img + 32, 0, 128);
    }
    if (!(bv & 2))
        memset(img + 160, 0, 256);
    if ((mask & 4) && !(bv & 4))
        memset(img + diff_xoff(2), 0, 256);
    if ((mask & 0x20) && !(bv & 0x20))
        memset(img + diff_xoff(5), 0, 64);
    if ((mask & 0x40) && !(bv & 0x40))
        memset(img + diff_xoff(6), 0, 512);
    if ((mask & 0x80) && !(bv & 0x80))
        memset(img + diff_xoff(7), 0, 1024);
}

/* -- Comparing ------------------------------------------------------------------------------------
 */

static const char *const diff_reg_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                              "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                              "r12", "r13", "r14", "r15"};

#define DIFF_FLAGS (FL_ARITH | FL_DF | FL_TF | FL_NT | FL_AC | FL_ID)

static inline int diff_report(FILE *out, const char *what, uint64_t native, uint64_t guest)
{
    if (out)
        fprintf(out, "  %-10s native %#18llx  translated %#18llx\n", what,
                (unsigned long long)native, (unsigned long long)guest);
    return 1;
}

/*
 * What may differ after a fault, by design or because CPUs differ:
 *  - arithmetic flags: where later instructions overwrite them unread, the translator does not keep
 *    them across its memory checks, so the image in the fault's frame is not exact (the values the
 *    guest computes with are).
 *  - MMX: the host may switch the x87 registers to MMX before it finds that the operand faults.
 *  - branches to non-canonical addresses: #GP before (Intel) or after the branch is taken.
 *  - accesses that run past 4 GiB: fault or wrap (SDM vol. 3, 5.3).
 *  - MOVS, BOUND and far pointers with two faulting operands, too.
 *  - segments: alignment or limit first; a masked operand beyond the limit faults here although no
 *    active element is there; which part of a far pointer is read first.
 *  - beyond the limit: BOUND's second part, if the first one decides; what XSAVE does not write.
 *  - CLFLUSH through execute-only CS.
 *  - what processors do in parts, and perhaps wrapping at 64 KiB: PUSHA, POPA, MASKMOV, state
 * images.
 *  - V86 and real mode: code between the instructions that were made for them.
 *  - real mode: no pages, no error codes.
 *  - CMPS with two faulting operands: which comes first.
 *  - alignment checks (#AC) of masked operands and of instructions done in C: not made.
 *  - stores that convert: MXCSR may have the conversion's flags.
 *  - x87 instructions that find an unmasked exception: the host does not touch memory then.
 *  - masked operands that cross into non-canonical addresses: #PF or #GP.
 *  - x87 and big operands: CR2 is somewhere in the operand's part on the page.
 *  - x87 and state images: the host may have written or loaded a part before it faults.
 *  - a pending x87 exception and a memory fault: which comes first.
 */
struct diff_excuses {
    uint64_t flags;
    bool all, x87, mxcsr, branch, cr2, cr2_page, memory, vector;
};
static inline bool diff_is_fault(uint32_t vector)
{
    return vector == EXC_PF || vector == EXC_GP || vector == EXC_SS || vector == EXC_AC;
}

/* May an access of the instruction that faulted run past offset 4 GiB - 1? */
static inline bool diff_wraps(const struct insn *in, const struct diff_result *n)
{
    const struct insn_mem *m = &in->mem;
    uint32_t ea = (uint32_t)m->disp;
    if (m->base != REG_NONE)
        ea += (uint32_t)n->gpr[m->base & 15];
    if (m->index != REG_NONE && !(in->flags & INSN_VSIB))
        ea += (uint32_t)n->gpr[m->index & 15] * m->scale;
    bool string = (in->op >= OP_MOVS && in->op <= OP_OUTS) || in->op == OP_MASKMOV;
    return (in->addr_size == 4 && ea > 0xfffff000) || (uint32_t)n->gpr[RSP] > 0xffffff00 ||
           (string && ((uint32_t)n->gpr[RSI] > 0xfffffff0 || (uint32_t)n->gpr[RDI] > 0xfffffff0));
}

static inline struct diff_excuses
diff_excuse(const struct diff_case *c, const struct diff_result *n, const struct diff_result *g)
{
    struct diff_excuses x = {0};
    struct insn in;
    uint64_t off = diff_offset(c, g), noff = diff_offset(c, n);
    bool fault = diff_is_fault(g->vector) && off != c->len;
    bool known =
        off < c->len && insn_decode(&in, c->code + off, c->len - off, diff_insn_mode(c, off)) > 0;
    if (fault && known && in.fpu == FPU_X87 && (in.flags & INSN_MEM)) {
        uint16_t fsw;
        memcpy(&fsw, n->xsave + 2, 2);
        x.all = (fsw & 0x80) || n->rip != g->rip; /* the host suppressed the access */
    }
    if (c->bits && (n->vector == EXC_GP || n->vector == EXC_SS) && noff < c->len &&
        insn_decode(&in, c->code + noff, c->len - noff, diff_insn_mode(c, noff)) > 0)
        x.all |= diff_wraps(&in, n);
    known =
        off < c->len && insn_decode(&in, c->code + off, c->len - off, diff_insn_mode(c, off)) > 0;
    x.all |= c->bits && known && (in.flags & INSN_MASKED) && noff != off &&
             (g->vector == EXC_GP || g->vector == EXC_SS);
    x.all |= c->bits && known && fault &&
             (in.op == OP_BOUND || in.op == OP_POPA || in.op == OP_PUSHA || in.op == OP_MASKMOV ||
              in.fpu == FPU_XSAVE || in.fpu == FPU_FXSR);
    if (c->bits && c->world >= DIFF_V86 && noff != c->len) { /* a wild branch: any instruction */
        bool listed = false;
        for (unsigned i = 0; i < c->n_at; i++)
            listed |= c->at[i] == noff;
        x.all |= !listed;
    }
    if (n->vector > 31 || noff == c->len)
        return x;
    struct insn nin;
    if (n->vector == EXC_AC && noff < c->len &&
        insn_decode(&nin, c->code + noff, c->len - noff, diff_insn_mode(c, noff)) > 0)
        x.all |= (nin.op != OP_COPY && nin.op != OP_PUSH && nin.op != OP_POP) ||
                 (nin.flags & INSN_MASKED);
    if (diff_is_fault(n->vector) || n->vector == EXC_DE || n->vector == EXC_BR ||
        n->vector == EXC_MF || n->vector == EXC_XM)
        x.flags = FL_ARITH;
    else
        return x;
    x.branch = n->vector == EXC_GP && (int64_t)(g->rip << 16) >> 16 != (int64_t)g->rip;
    x.all |= x.branch && g->vector == EXC_DB;
    if (!known || n->rip != g->rip)
        return x;
    bool mem = (in.flags & INSN_MEM) || in.op == OP_MASKMOV;
    x.x87 = in.fpu == FPU_MMX || (fault && (in.op == OP_FRSTOR || in.op == OP_FLDENV));
    x.vector = fault && ((n->vector == EXC_MF && mem) ||
                         (n->vector == EXC_XM && (in.flags & INSN_MEM_WRITE)) ||
                         (diff_is_fault(n->vector) &&
                          (in.op == OP_CMPS || in.fpu == FPU_XSAVE || (in.flags & INSN_MASKED) ||
                           (mem && in.fpu == FPU_X87) || (mem && in.mem.size > 64))));
    x.memory = (in.fpu == FPU_X87 || in.fpu == FPU_FXSR || in.fpu == FPU_XSAVE) &&
               (in.flags & INSN_MEM_WRITE);
    x.cr2 = in.op == OP_CMPS || in.op == OP_MASKMOV || in.mem.size > 64 || in.fpu == FPU_XSAVE;
    if (c->bits) {
        x.vector |= fault && diff_is_fault(n->vector) &&
                    (in.op == OP_MOVS || in.op == OP_LOAD_FAR_PTR || in.op == OP_BOUND);
        x.cr2 |= in.op == OP_MOVS || in.op == OP_RETF || in.op == OP_IRET ||
                 in.op == OP_LOAD_FAR_PTR || in.op == OP_BOUND;
        bool flush = in.map == MAP_0F && in.opcode == 0xae && (in.modrm >> 3 & 7) >= 6;
        x.vector |= flush && g->vector == EXC_GP; /* CLFLUSH is allowed on execute-only code */
        bool order = (n->vector == EXC_GP || n->vector == EXC_SS) && fault;
        x.vector |= order && (in.flags & INSN_MEM_ALIGNED);
        x.all |= order && (in.flags & INSN_MASKED);
    }
    x.mxcsr = in.flags & INSN_MEM_WRITE;
    x.cr2_page = in.fpu == FPU_X87;
    return x;
}

/* Number of differences; each is described on `out` if that is not NULL.
 * `flags`: the RFLAGS bits to compare. */
static inline int diff_compare(const struct diff_result *n, const struct diff_result *g,
                               const struct diff_case *c, const uint8_t *const *pristine,
                               uint64_t flags, FILE *out)
{
    int d = 0;
    char name[32];
    struct diff_excuses ex = diff_excuse(c, n, g);
    bool real = c->bits && c->world == DIFF_REAL;
    if (ex.all || (real && (n->vector == EXC_PF || n->vector == EXC_AC)))
        return 0;
    flags &= ~ex.flags;
    if (n->vector != g->vector && !ex.vector)
        d += diff_report(out, "vector", n->vector, g->vector);
    if (n->rip != g->rip && !ex.branch)
        d += diff_report(out, "rip", n->rip, g->rip);
    if (n->vector == g->vector) {
        uint32_t ne = n->error, ge = g->error;
        if (n->vector == EXC_PF) {
            if (c->cpl == 0)
                ne &= ~(uint32_t)PF_U;
            /* The host kernel hides what is mapped beyond user space. */
            if (n->cr2 >= 0x7ffffffff000)
                ne &= ~(uint32_t)PF_P, ge &= ~(uint32_t)PF_P;
            if (n->cr2 != g->cr2 && !ex.cr2 && !(ex.cr2_page && (n->cr2 ^ g->cr2) < 4096))
                d += diff_report(out, "cr2", n->cr2, g->cr2);
        }
        if (ne != ge && !real && !(ex.cr2 && n->cr2 != g->cr2))
            d += diff_report(out, "error", ne, ge);
    }
    /* 16- and 32-bit code: the upper halves are undefined; legacy modes have no R8 to R15. */
    for (unsigned i = 0; i < (c->bits && c->world != DIFF_COMPAT ? 8 : 16); i++) {
        uint64_t unseen = c->bits && i < 8 ? ~0ull << 32 : 0;
        if ((n->gpr[i] | unseen) != (g->gpr[i] | unseen) && !(ex.branch && (i == RSP || i == RCX)))
            d += diff_report(out, diff_reg_name[i], n->gpr[i], g->gpr[i]);
    }
    static const char *const segs[6] = {"es", "cs", "ss", "ds", "fs", "gs"};
    /* The host kernel's IRET clears null selectors. */
    for (unsigned i = 0; i < 6 && c->bits && c->world <= DIFF_PROT; i++)
        if (((n->seg[i] ^ g->seg[i]) & (g->seg[i] & ~3 ? 0xffff : 0xfffc)) &
            (c->cpl == 3 ? 0xffff : 0xfffc))
            d += diff_report(out, segs[i], n->seg[i], g->seg[i]);
    if ((n->rflags ^ g->rflags) & flags)
        d += diff_report(out, "rflags", n->rflags & flags, g->rflags & flags);
    if (n->fs_base != g->fs_base && !c->bits)
        d += diff_report(out, "fs base", n->fs_base, g->fs_base);
    if (n->gs_base != g->gs_base && !c->bits)
        d += diff_report(out, "gs base", n->gs_base, g->gs_base);

    const uint8_t *a = n->xsave, *b = g->xsave;
    uint64_t mask = diff_xcr0() & DIFF_XMASK;
    uint64_t x = 0, y = 0;
    static const struct {
        const char *name;
        unsigned off, size;
    } ctl[] = {{"fcw", 0, 2}, {"fsw", 2, 2}, {"ftw", 4, 1}, {"mxcsr", 24, 4}};
    for (unsigned i = 0; i < 4; i++) {
        x = y = 0;
        memcpy(&x, a + ctl[i].off, ctl[i].size);
        memcpy(&y, b + ctl[i].off, ctl[i].size);
        if (x != y && !(ex.x87 && i < 3) && !(ex.mxcsr && i == 3))
            d += diff_report(out, ctl[i].name, x, y);
    }
    for (unsigned i = 0; i < 8 && !ex.x87; i++)
        if (memcmp(a + 32 + 16 * i, b + 32 + 16 * i, 10)) {
            memcpy(&x, a + 32 + 16 * i, 8);
            memcpy(&y, b + 32 + 16 * i, 8);
            snprintf(name, sizeof name, "st%u", i);
            d += diff_report(out, name, x, y);
        }
    for (unsigned r = 0; r < 32; r++) {
        if (r >= 16 && !(mask & 0x80))
            break;
        for (unsigned q = 0; q < 8; q++) {
            unsigned o = r >= 16 ? diff_xoff(7) + 64 * (r - 16) + 8 * q
                         : q < 2 ? 160 + 16 * r + 8 * q
                         : q < 4 ? diff_xoff(2) + 16 * r + 8 * (q - 2)
                                 : diff_xoff(6) + 32 * r + 8 * (q - 4);
            if ((q >= 2 && !(mask & 4)) || (q >= 4 && !(mask & 0x40)))
                break;
            memcpy(&x, a + o, 8);
            memcpy(&y, b + o, 8);
            if (x != y) {
                snprintf(name, sizeof name, "zmm%u[%u]", r, q);
                d += diff_report(out, name, x, y);
            }
        }
    }
    for (unsigned k = 0; k < 8 && (mask & 0x20); k++) {
        memcpy(&x, a + diff_xoff(5) + 8 * k, 8);
        memcpy(&y, b + diff_xoff(5) + 8 * k, 8);
        if (x != y) {
            snprintf(name, sizeof name, "k%u", k);
            d += diff_report(out, name, x, y);
        }
    }
    for (unsigned p = 0; p < DIFF_PAGES; p++) {
        const uint8_t *pn = n->dirty >> p & 1 ? n->page[p] : pristine[p];
        const uint8_t *pg = g->dirty >> p & 1 ? g->page[p] : pristine[p];
        if (pn == pg || ex.memory || !memcmp(pn, pg, 4096))
            continue;
        uint8_t less[4096];
        for (unsigned i = 0; i < 6 && real && g->frame_at; i++) {
            uint32_t sp = g->frame_sp + i;
            uint32_t o =
                g->frame_at + (g->frame_wraps ? sp & 0xffff : sp) - (uint32_t)diff_pages[p].gva;
            if (i == 0)
                memcpy(less, pg, 4096), pg = less;
            if (o < 4096)
                less[o] = pn[o];
        }
        unsigned shown = 0;
        for (unsigned o = 0; o < 4096 && shown < 6; o += 8)
            if (memcmp(pn + o, pg + o, 8)) {
                memcpy(&x, pn + o, 8);
                memcpy(&y, pg + o, 8);
                snprintf(name, sizeof name, "%llx", (unsigned long long)diff_pages[p].gva + o);
                d += diff_report(out, name, x, y);
                shown++;
            }
    }
    return d;
}

#endif
