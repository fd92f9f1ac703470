/*
 * Instructions that 64-bit mode dropped, in every mode that has them.  Expected values come from
 * the operation sections of SDM vol. 2.
 */
#include "guest32.h"

TEST(insn, modes)
{
    struct snip s = SNIP("nop");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        if (!done(&r, code_for(m, s)))
            continue;
        EQ(T.r.eip, r.eip + 2);
        for (unsigned i = 0; i < 8; i++)
            EQ((&T.r.eax)[i], (&r.eax)[i]);
        EQ(T.r.cs, r.cs);
        EQ(T.r.ss, r.ss);
        EQ(T.r.ds, r.ds);
        EQ(T.r.es, r.es);
        EQ(T.r.fs, r.fs);
        EQ(T.r.gs, r.gs);
    }
}

/* -- BCD -------------------------------------------------------------------------------------- */

static u32 szp(u8 v)
{
    u32 f = (v & 0x80 ? F_SF : 0) | (v ? 0 : F_ZF);
    u8 p = v ^ v >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return f | (p & 1 ? 0 : F_PF);
}

static u32 model_daa(u32 ax, u32 fl, u32 *out)
{
    u8 al = (u8)ax, old = al;
    u32 f = 0;
    if ((al & 15) > 9 || (fl & F_AF)) {
        al += 6;
        f |= F_AF;
    }
    if (old > 0x99 || (fl & F_CF)) {
        al += 0x60;
        f |= F_CF;
    }
    *out = (ax & 0xffffff00) | al;
    return f | szp(al);
}

static u32 model_das(u32 ax, u32 fl, u32 *out)
{
    u8 al = (u8)ax, old = al;
    u32 f = 0;
    if ((al & 15) > 9 || (fl & F_AF)) {
        f |= F_AF | ((fl & F_CF) || al < 6 ? F_CF : 0);
        al -= 6;
    }
    if (old > 0x99 || (fl & F_CF)) {
        al -= 0x60;
        f |= F_CF;
    }
    *out = (ax & 0xffffff00) | al;
    return f | szp(al);
}

static u32 model_aaa(u32 ax, u32 fl, u32 *out)
{
    u16 v = (u16)ax;
    u32 f = 0;
    if ((v & 15) > 9 || (fl & F_AF)) {
        v += 0x106;
        f = F_AF | F_CF;
    }
    *out = (ax & 0xffff0000) | (v & 0xff0f);
    return f;
}

static u32 model_aas(u32 ax, u32 fl, u32 *out)
{
    u16 v = (u16)ax;
    u32 f = 0;
    if ((v & 15) > 9 || (fl & F_AF)) {
        v -= 6;
        v -= 0x100;
        f = F_AF | F_CF;
    }
    *out = (ax & 0xffff0000) | (v & 0xff0f);
    return f;
}

static void bcd(const char *name, struct snip s, u32 (*model)(u32, u32, u32 *), u32 defined)
{
    EACH_MODE(m, ALL)
    {
        unsigned step = m == U32 || m == U16 ? 1 : 37;
        for (unsigned i = 0; i < 1024; i += step) {
            struct regs r = regs_for(m);
            u32 want, fl = (i & 256 ? F_CF : 0) | (i & 512 ? F_AF : 0);
            r.eax = 0x77777700 + (i & 0xff) + (i * 0x5b00 & 0xff00);
            r.eflags |= fl;
            u32 wf = model(r.eax, fl, &want);
            if (!done(&r, code_for(m, s)))
                return;
            if (T.r.eax != want || (T.r.eflags & defined) != (wf & defined)) {
                fail("%s of 0x%x flags 0x%x: got 0x%x flags 0x%x, want 0x%x flags 0x%x", name,
                     r.eax, fl, T.r.eax, T.r.eflags & defined, want, wf & defined);
                return;
            }
        }
    }
}

TEST(insn, daa)
{
    bcd("daa", SNIP("daa"), model_daa, F_CF | F_AF | F_ZF | F_SF | F_PF);
}
TEST(insn, das)
{
    bcd("das", SNIP("das"), model_das, F_CF | F_AF | F_ZF | F_SF | F_PF);
}
TEST(insn, aaa)
{
    bcd("aaa", SNIP("aaa"), model_aaa, F_CF | F_AF);
}
TEST(insn, aas)
{
    bcd("aas", SNIP("aas"), model_aas, F_CF | F_AF);
}

TEST(insn, aam_aad)
{
    static const u8 bases[] = {10, 1, 2, 16, 7, 255};
    EACH_MODE(m, ALL)
    {
        for (unsigned i = 0; i < sizeof(bases); i++) {
            u8 *c = gen_start(m), *p = c;
            PUT(p, 0xd4, bases[i], 0x89, 0xc3, 0xd5, bases[i], 0xcc); /* aam; mov bx, ax; aad */
            for (unsigned v = 0; v < 256; v += 23) {
                struct regs r = regs_for(m);
                u8 ah = (u8)(v / bases[i]), al = (u8)(v % bases[i]);
                r.eax = 0xabcd1200 | v;
                if (!done(&r, c))
                    return;
                EQ(T.r.ebx & 0xffff, ah << 8 | al);
                EQ(T.r.eax, 0xabcd0000 | ((al + ah * bases[i]) & 0xff));
                EQ(T.r.eflags & (F_SF | F_ZF | F_PF), szp((u8)T.r.eax));
            }
        }
        struct regs r = regs_for(m);
        u8 *c = gen_start(m), *p = c;
        PUT(p, 0xd4, 0, 0xcc);
        fault(&r, c, DE, 0);
    }
}

TEST(insn, salc)
{
    struct snip s = SNIP(".byte 0xd6");
    EACH_MODE(m, ALL)
    {
        for (unsigned cf = 0; cf < 2; cf++) {
            struct regs r = regs_for(m);
            r.eflags |= cf;
            if (!done(&r, code_for(m, s)))
                continue;
            EQ(T.r.eax, (r.eax & ~0xffu) | (cf ? 0xff : 0));
            EQ(T.r.eflags & F_ARITH, cf);
        }
    }
}

/* -- Stack ------------------------------------------------------------------------------------ */

TEST(insn, pusha_popa)
{
    struct snip w = SNIP("pushaw"), l = SNIP("pushal"), pw = SNIP("popaw"), pl = SNIP("popal");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        if (done(&r, code_for(m, w))) {
            EQ(T.r.esp, r.esp - 16);
            for (unsigned i = 0; i < 8; i++)
                check_eq("pushaw", *mem16(SS_BASE + 0x8000 - 2 - 2 * i), (&r.eax)[i] & 0xffff);
        }
        if (done(&r, code_for(m, l))) {
            EQ(T.r.esp, r.esp - 32);
            for (unsigned i = 0; i < 8; i++)
                check_eq("pushal", *mem32(SS_BASE + 0x8000 - 4 - 4 * i), (&r.eax)[i]);
        }
        for (unsigned i = 0; i < 8; i++)
            *mem32(SS_BASE + 0x8000 + 4 * i) = 0x01010101 * (i + 1);
        if (done(&r, code_for(m, pl))) {
            for (unsigned i = 0; i < 8; i++)
                if (i != 4)
                    check_eq("popal", (&T.r.eax)[i], 0x01010101 * (8 - i));
            EQ(T.r.esp, r.esp + 32);
        }
        for (unsigned i = 0; i < 8; i++)
            *mem16(SS_BASE + 0x8000 + 2 * i) = (u16)(0x0101 * (i + 1));
        if (done(&r, code_for(m, pw))) {
            for (unsigned i = 0; i < 8; i++)
                if (i != 4)
                    check_eq("popaw", (&T.r.eax)[i], ((&r.eax)[i] & 0xffff0000) | 0x0101 * (8 - i));
            EQ(T.r.esp, r.esp + 16);
        }
    }
}

TEST(insn, push_pop_segments)
{
    static const u8 push[4][2] = {{0x06}, {0x16}, {0x1e}, {0x0e}}; /* es ss ds cs */
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++) {
            bool o32 = (CODE32 >> m & 1) ^ o;
            u8 *c = gen_start(m), *p = c;
            for (unsigned i = 0; i < 4; i++) {
                if (o)
                    PUT(p, 0x66);
                PUT(p, push[i][0]);
            }
            for (unsigned i = 0; i < 2; i++) { /* push fs, push gs */
                if (o)
                    PUT(p, 0x66);
                PUT(p, 0x0f, i ? 0xa8 : 0xa0);
            }
            PUT(p, 0xcc);
            struct regs r = regs_for(m);
            memset(ss_ptr(0x7f00), 0x5a, 0x100);
            if (!done(&r, c))
                continue;
            unsigned w = o32 ? 4 : 2;
            EQ(T.r.esp, r.esp - 6 * w);
            const u32 want[6] = {r.es, r.ss, r.ds, r.cs, r.fs, r.gs};
            for (unsigned i = 0; i < 6; i++)
                check_eq("pushed selector", *mem16(SS_BASE + 0x8000 - w * (i + 1)), want[i]);

            /* pop them in another order: ds <- es', es <- ds', fs <- gs', gs <- fs', ss */
            p = c;
            static const u8 pop[5][2] = {{0x07}, {0x1f}, {0x0f, 0xa9}, {0x0f, 0xa1}, {0x17}};
            for (unsigned i = 0; i < 5; i++) {
                if (o)
                    PUT(p, 0x66);
                p = put_bytes(p, pop[i], pop[i][0] == 0x0f ? 2 : 1);
            }
            PUT(p, 0xcc);
            const u32 v[5] = {r.ds, r.es, r.fs, r.gs, r.ss};
            memset(ss_ptr(0x8000), 0xee, 0x40);
            for (unsigned i = 0; i < 5; i++)
                *mem16(SS_BASE + 0x8000 + w * i) = (u16)v[i];
            if (!done(&r, c))
                continue;
            EQ(T.r.esp, r.esp + 5 * w);
            EQ(T.r.es, v[0]);
            EQ(T.r.ds, v[1]);
            EQ(T.r.gs, v[2]);
            EQ(T.r.fs, v[3]);
            EQ(T.r.ss, v[4]);
        }
    }
}

/* SDM vol. 2, ENTER. */
TEST(insn, enter_leave)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++)
            for (unsigned level = 0; level < 5; level++) {
                bool o32 = (CODE32 >> m & 1) ^ o;
                unsigned w = o32 ? 4 : 2;
                u8 *c = gen_start(m), *p = c;
                if (o)
                    PUT(p, 0x66);
                PUT(p, 0xc8, 0x34, 0x01, (u8)(level | 0x20), 0xcc); /* enter 0x134, level */
                struct regs r = regs_for(m);
                r.ebp = r.esp + 0x100;
                for (unsigned i = 0; i < 0x200; i++)
                    *ss_ptr(0x8000 + i) = (u8)(i * 29 + 3);
                if (!done(&r, c))
                    continue;
                context("%s, operand %u, level %u", mode_name(m), w * 8, level);
                u32 frame = r.esp - w;
                u32 sp = 0x8000;
                sp -= w;
                EQ(w == 2 ? *mem16(SS_BASE + sp) : *mem32(SS_BASE + sp),
                   w == 2 ? r.ebp & 0xffff : r.ebp);
                for (unsigned i = 1; i < level; i++) {
                    sp -= w;
                    u32 from = SS_BASE + 0x8100 - w * i;
                    EQ(w == 2 ? *mem16(SS_BASE + sp) : *mem32(SS_BASE + sp),
                       w == 2 ? *mem16(from) : *mem32(from));
                }
                if (level) {
                    sp -= w;
                    EQ(w == 2 ? *mem16(SS_BASE + sp) : *mem32(SS_BASE + sp),
                       w == 2 ? frame & 0xffff : frame);
                }
                EQ(T.r.esp, r.esp - (0x8000 - sp) - 0x134);
                EQ(T.r.ebp, w == 2 ? (r.ebp & 0xffff0000) | (frame & 0xffff) : frame);

                p = c;
                if (o)
                    PUT(p, 0x66);
                PUT(p, 0xc9, 0xcc);
                u32 saved = *mem32(SS_BASE + 0x8100);
                if (!done(&r, c))
                    continue;
                EQ(T.r.esp, r.esp + 0x100 + w);
                EQ(T.r.ebp, w == 2 ? (r.ebp & 0xffff0000) | (saved & 0xffff) : saved);
            }
    }
}

/* -- Pointers, ranges ------------------------------------------------------------------------- */

TEST(insn, load_far_pointer)
{
    static const u8 ops[5][2] = {{0xc4}, {0xc5}, {0x0f, 0xb2}, {0x0f, 0xb4}, {0x0f, 0xb5}};
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++)
            for (unsigned i = 0; i < 5; i++) {
                bool code32 = CODE32 >> m & 1, o32 = code32 ^ o;
                context("%s, %u bits, %u", mode_name(m), o32 ? 32 : 16, i);
                u8 *c = gen_start(m), *p = c;
                if (o)
                    PUT(p, 0x66);
                p = put_bytes(p, ops[i], ops[i][0] == 0x0f ? 2 : 1);
                PUT(p, code32 ? 0x0b : 0x0f, 0xcc); /* cx <- [ebx] or [bx] */
                struct regs r = regs_for(m);
                r.ebx = ds_off(m, 0x123);
                u32 was[6] = {r.es, r.ds, r.ss, r.fs, r.gs};
                u32 sel = i == 2 ? r.ss : r.es; /* loadable everywhere */
                *mem32(DS_BASE + 0x123) = 0x89abcdef;
                *mem16(DS_BASE + 0x123 + (o32 ? 4 : 2)) = (u16)sel;
                if (!done(&r, c))
                    continue;
                EQ(T.r.ecx, o32 ? 0x89abcdef : (r.ecx & 0xffff0000) | 0xcdef);
                was[i] = sel;
                EQ(T.r.es, was[0]);
                EQ(T.r.ds, was[1]);
                EQ(T.r.ss, was[2]);
                EQ(T.r.fs, was[3]);
                EQ(T.r.gs, was[4]);
            }
    }
    /* a register operand: #UD (in protected mode C4 and C5 begin VEX there) */
    struct snip lss = SNIP(".byte 0x0f, 0xb2, 0xc1"), lfs = SNIP(".byte 0x0f, 0xb4, 0xc1");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, lss), UD, 0);
        fault(&r, code_for(m, lfs), UD, 0);
    }
    struct snip les = SNIP(".byte 0xc4, 0xc1, 0x10, 0x58, 0xc1"),
                lds = SNIP(".byte 0xc5, 0xc1, 0x58, 0xc1"), bound = SNIP(".byte 0x62, 0xc1");
    EACH_MODE(m, M(V86) | M(REAL))
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, les), UD, 0);
        fault(&r, code_for(m, lds), UD, 0);
        fault(&r, code_for(m, bound), UD, 0);
    }
}

TEST(insn, bound)
{
    static const int32_t v[] = {-5, -4, 0, 99, 100, 101, 0x7fff, -0x8000};
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++) {
            bool code32 = CODE32 >> m & 1, o32 = code32 ^ o;
            u8 *c = gen_start(m), *p = c;
            if (o)
                PUT(p, 0x66);
            PUT(p, 0x62, code32 ? 0x0b : 0x0f, 0xcc); /* ecx in [ebx] or [bx] */
            if (o32) {
                *mem32(DS_BASE + 0x200) = (u32)-4;
                *mem32(DS_BASE + 0x204) = 100;
            } else {
                *mem16(DS_BASE + 0x200) = (u16)-4;
                *mem16(DS_BASE + 0x202) = 100;
            }
            for (unsigned i = 0; i < 8; i++) {
                struct regs r = regs_for(m);
                r.ebx = ds_off(m, 0x200);
                r.ecx = o32 ? (u32)v[i] : 0x12340000 | (v[i] & 0xffff);
                if (v[i] >= -4 && v[i] <= 100)
                    done(&r, c);
                else
                    fault(&r, c, BR, 0);
            }
        }
    }
}

TEST(insn, into)
{
    struct snip s = SNIP("into");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        done(&r, code_for(m, s));
        r.eflags |= F_OF;
        run_at(&r, code_for(m, s));
        expect(OF, 0);
        EQ(T.r.eip, r.eip + 1);
    }
}

TEST(insn, arpl)
{
    struct snip reg = SNIP("arpl %%cx, %%ax"), mem = SNIP("arpl %%cx, (%%bx)"),
                mem32_ = SNIP("arpl %%cx, (%%ebx)");
    EACH_MODE(m, PROT)
    {
        for (unsigned i = 0; i < 16; i++) {
            struct regs r = regs_for(m);
            r.eax = 0x11223300 | (i & 3);
            r.ecx = 0x44556600 | i >> 2;
            u32 want = (i >> 2) > (i & 3) ? 0x11223300 | i >> 2 : r.eax;
            if (!done(&r, code_for(m, reg)))
                continue;
            EQ(T.r.eax, want);
            EQ(T.r.eflags & F_ZF, want != r.eax ? F_ZF : 0);
            r.ebx = ds_off(m, 0x300);
            *mem32(DS_BASE + 0x300) = r.eax;
            if (!done(&r, code_for(m, SEGBASES >> m & 1 ? mem : mem32_)))
                continue;
            EQ(*mem32(DS_BASE + 0x300), want);
        }
    }
    EACH_MODE(m, M(V86) | M(REAL))
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, reg), UD, 0);
        fault(&r, code_for(m, mem), UD, 0);
    }
}

TEST(insn, inc_dec_short)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++)
            for (unsigned i = 0; i < 16; i++) {
                bool o32 = (CODE32 >> m & 1) ^ o, dec = i & 8;
                u8 *c = gen_start(m), *p = c;
                unsigned reg = i & 7;
                if (o)
                    PUT(p, 0x66);
                PUT(p, (u8)(0x40 + i), 0xcc);
                static const u32 values[] = {0,          0xffffffff, 0x7fffffff,
                                             0x80000000, 0xffff7fff, 0x8000};
                for (unsigned k = 0; k < 6; k++) {
                    struct regs r = regs_for(m);
                    u32 *x = &(&r.eax)[reg], mask = o32 ? 0xffffffff : 0xffff,
                        sign = o32 ? 0x80000000 : 0x8000;
                    if (reg != 4)
                        *x = values[k];
                    r.eflags |= k & 1;
                    if (!done(&r, c))
                        return;
                    u32 want = (*x & ~mask) | ((dec ? *x - 1 : *x + 1) & mask), w = want & mask;
                    check_eq("result", (&T.r.eax)[reg], want);
                    u32 f = (w & sign ? F_SF : 0) | (w ? 0 : F_ZF) | (szp((u8)w) & F_PF) | (k & 1);
                    if (w == (dec ? sign - 1 : sign))
                        f |= F_OF;
                    if ((w & 15) == (dec ? 15 : 0))
                        f |= F_AF;
                    check_eq("flags", T.r.eflags & F_ARITH, f);
                }
            }
    }
}

/* -- LOCK ------------------------------------------------------------------------------------- */

TEST(insn, lock)
{
    struct snip good[] = {
        SNIP("lock addl %%ecx, (%%ebx)"),  SNIP("lock orb $3, (%%ebx)"),
        SNIP("lock xaddl %%edx, (%%ebx)"), SNIP("lock cmpxchgl %%edx, (%%ebx)"),
        SNIP("lock cmpxchg8b (%%ebx)"),    SNIP("lock btsl $5, (%%ebx)"),
        SNIP("lock negw (%%ebx)"),         SNIP("lock notb (%%ebx)"),
        SNIP("lock incl (%%ebx)"),         SNIP("lock decw (%%ebx)"),
        SNIP("lock xchgb %%al, (%%ebx)"),  SNIP("lock sbbl $7, (%%ebx)"),
        SNIP("lock btcw $3, (%%ebx)"),     SNIP("lock xorl $0x12345678, (%%ebx)"),
    };
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x400);
        for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++)
            done(&r, code_for(m, good[i]));
    }
}

TEST(insn, lock_refused)
{
    TCG_SKIP("LOCK is let through before many instructions that do not take it");
    struct snip bad[] = {
        SNIP(".byte 0xf0; addl %%ecx, %%eax"),
        SNIP(".byte 0xf0; addl (%%ebx), %%eax"),
        SNIP(".byte 0xf0; cmpl %%ecx, (%%ebx)"),
        SNIP(".byte 0xf0; movl %%ecx, (%%ebx)"),
        SNIP(".byte 0xf0; nop"),
        SNIP(".byte 0xf0; testl %%ecx, (%%ebx)"),
        SNIP(".byte 0xf0; btl $5, (%%ebx)"),
        SNIP(".byte 0xf0; mull (%%ebx)"),
        SNIP(".byte 0xf0; pushl (%%ebx)"),
        SNIP(".byte 0xf0; incl %%eax"),
        SNIP(".byte 0xf0, 0x40"),
        SNIP(".byte 0xf0; shll $1, (%%ebx)"),
        SNIP(".byte 0xf0; xchgl %%ecx, %%eax"),
        SNIP(".byte 0xf0; jmp .+2"),
        SNIP(".byte 0xf0; movsb"),
        SNIP(".byte 0xf0; pushal"),
        SNIP(".byte 0xf0; lesl (%%ebx), %%eax"),
    };
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x400);
        for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
            context("%s, bad %u", mode_name(m), i);
            fault(&r, code_for(m, bad[i]), UD, 0);
        }
    }
}

TEST(insn, undefined)
{
    struct snip bad[] = {
        SNIP("ud2"),
        SNIP(".byte 0x0f, 0xff, 0xc0"),
        SNIP(".byte 0x0f, 0x0a"),
        SNIP(".byte 0xfe, 0xd0"),          /* FE /2 */
        SNIP(".byte 0xff, 0xf8"),          /* FF /7 */
        SNIP(".byte 0xff, 0xd8"),          /* CALL far, register */
        SNIP(".byte 0xff, 0xe8"),          /* JMP far, register */
        SNIP(".byte 0x8e, 0xc8"),          /* MOV CS, AX */
        SNIP(".byte 0x8e, 0xf0"),          /* MOV to segment register 6 */
        SNIP(".byte 0x8c, 0xf8"),          /* MOV from segment register 7 */
        SNIP(".byte 0x8d, 0xc0"),          /* LEA, register */
        SNIP(".byte 0x0f, 0xba, 0xc0, 1"), /* group 8 /0 */
        SNIP(".byte 0x0f, 0xc7, 0xc8"),    /* CMPXCHG8B, register */
        SNIP(".byte 0x0f, 0x20, 0xc8"),    /* MOV from CR1: #UD before the privilege check */
    };
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
            if (i == sizeof(bad) / sizeof(bad[0]) - 1 &&
                (m == U32 || m == S32 || m == U16 || m == V86))
                continue;
            context("%s, %u", mode_name(m), i);
            fault(&r, code_for(m, bad[i]), UD, 0);
        }
    }
}

TEST(insn, undefined_group1a_11)
{
    TCG_SKIP("8F /1 and C6 /1 run as /0");
    struct snip a = SNIP(".byte 0x8f, 0xc8"), b = SNIP(".byte 0xc6, 0xc8, 0");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, a), UD, 0);
        fault(&r, code_for(m, b), UD, 0);
    }
}

/* SDM vol. 3, 6.15, #GP: an instruction longer than 15 bytes. */
TEST(insn, length)
{
    EACH_MODE(m, ALL)
    {
        u8 *c = gen_start(m), *p = c;
        struct regs r = regs_for(m);
        for (unsigned i = 0; i < 14; i++)
            PUT(p, 0x26);
        PUT(p, 0x90, 0xcc);
        done(&r, c);
        p = c;
        for (unsigned i = 0; i < 15; i++)
            PUT(p, 0x26);
        PUT(p, 0x90, 0xcc);
        fault(&r, c, GP, 0);
    }
}
