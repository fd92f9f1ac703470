/*
 * Segmentation (SDM vol. 3, chapters 3 and 5): bases, limits to the byte, types, loading, and the
 * instructions that look at descriptors.
 */
#include "guest32.h"

#define FREE(i)   (SEL_FREE + 8 * (i))
#define NO_LIMITS TCG_SKIP("segment limits and types are not checked on memory accesses")

static const struct {
    unsigned size;
    const char *name;
} sizes[] = {{1, "movb"}, {2, "movw"}, {4, "movl"}, {8, "fldl"}, {10, "fldt"}, {16, "movups"}};

/* Loads and stores of FS:[EBX], by size. */
static void accesses(struct snip load[6], struct snip store[6])
{
    load[0] = SNIP("movb %%fs:(%%ebx), %%al");
    load[1] = SNIP("movw %%fs:(%%ebx), %%ax");
    load[2] = SNIP("movl %%fs:(%%ebx), %%eax");
    load[3] = SNIP("fldl %%fs:(%%ebx)");
    load[4] = SNIP("fldt %%fs:(%%ebx)");
    load[5] = SNIP("movups %%fs:(%%ebx), %%xmm0");
    store[0] = SNIP("movb %%al, %%fs:(%%ebx)");
    store[1] = SNIP("movw %%ax, %%fs:(%%ebx)");
    store[2] = SNIP("movl %%eax, %%fs:(%%ebx)");
    store[3] = SNIP("fistpll %%fs:(%%ebx)");
    store[4] = SNIP("fstpt %%fs:(%%ebx)");
    store[5] = SNIP("movups %%xmm0, %%fs:(%%ebx)");
}

static struct regs fs_regs(unsigned m, u32 sel, u32 ebx)
{
    struct regs r = regs_for(m);
    r.fs = sel | (CPL3 >> m & 1 ? 3 : 0);
    r.ebx = ebx;
    return r;
}

/* Accesses at both edges of the valid range [lo, hi] of the segment in FS. */
static void edges(u32 sel, u32 lo, u32 hi, const char *what)
{
    struct snip load[6], store[6];
    accesses(load, store);
    EACH_MODE(m, PROT)
    {
        for (unsigned i = 0; i < 6; i++) {
            if (i == 5 && !feat.sse)
                continue;
            u32 w = sizes[i].size;
            asm volatile("fninit\n\tfld1");
            struct regs r = fs_regs(m, sel, hi - w + 1);
            context("%s, %s, %s at the top", mode_name(m), what, sizes[i].name);
            done(&r, code_for(m, load[i]));
            done(&r, code_for(m, store[i]));
            if (hi != 0xffffffff)
                for (u32 k = 1; k <= w; k++) {
                    r.ebx = hi - w + 1 + k;
                    fault(&r, code_for(m, load[i]), GP, 0);
                    asm volatile("fninit\n\tfld1");
                    fault(&r, code_for(m, store[i]), GP, 0);
                }
            context("%s, %s, %s at the bottom", mode_name(m), what, sizes[i].name);
            asm volatile("fninit\n\tfld1");
            r.ebx = lo;
            done(&r, code_for(m, load[i]));
            done(&r, code_for(m, store[i]));
            if (lo) {
                asm volatile("fninit\n\tfld1");
                r.ebx = lo - 1;
                fault(&r, code_for(m, load[i]), GP, 0);
                fault(&r, code_for(m, store[i]), GP, 0);
            }
        }
    }
}

TEST(segment, limit_bytes)
{
    NO_LIMITS;
    gdt[FREE(0) / 8] = DESC(DS_BASE + 0x13, 0x2345, 0xf3, 4);
    edges(FREE(0), 0, 0x2345, "byte granular");
}

TEST(segment, limit_pages)
{
    NO_LIMITS;
    gdt[FREE(0) / 8] = DESC(DS_BASE, 2, 0xf3, 0xc);
    edges(FREE(0), 0, 0x2fff, "page granular");
}

TEST(segment, limit_zero)
{
    NO_LIMITS;
    struct snip b = SNIP("movb %%fs:(%%ebx), %%al"), w = SNIP("movw %%fs:(%%ebx), %%ax");
    gdt[FREE(0) / 8] = DESC(DS_BASE, 0, 0xf3, 4);
    EACH_MODE(m, PROT)
    {
        struct regs r = fs_regs(m, FREE(0), 0);
        done(&r, code_for(m, b));
        fault(&r, code_for(m, w), GP, 0);
        r.ebx = 0xffffffff;
        fault(&r, code_for(m, b), GP, 0);
        fault(&r, code_for(m, w), GP, 0);
    }
}

TEST(segment, expand_down)
{
    NO_LIMITS;
    gdt[FREE(0) / 8] = DESC(DS_BASE, 0x1fff, 0xf7, 0); /* 16-bit: 2000h to FFFFh */
    edges(FREE(0), 0x2000, 0xffff, "expand-down, 16 bits");
    /* 32-bit: 2000h to FFFFFFFFh; the base makes the top wrap into memory */
    gdt[FREE(0) / 8] = DESC(DS_BASE + 0x8000, 1, 0xf7, 0xc);
    edges(FREE(0), 0x2000, 0xffffffff, "expand-down, 32 bits");
    struct snip l = SNIP("movl %%fs:(%%ebx), %%eax");
    EACH_MODE(m, PROT)
    {
        struct regs r = fs_regs(m, FREE(0), 0xffffffff);
        fault(&r, code_for(m, l), GP, 0);
        r.ebx = 0xfffffffd;
        fault(&r, code_for(m, l), GP, 0);
        r.ebx = 0xffffffffu - 0x2000;
        done(&r, code_for(m, l));
    }
    gdt[FREE(0) / 8] = DESC(0, 0xfffff, 0xf7, 0xc); /* nothing is valid */
    EACH_MODE(m, PROT)
    {
        struct regs r = fs_regs(m, FREE(0), DS_BASE);
        fault(&r, code_for(m, l), GP, 0);
    }
}

TEST(segment, base)
{
    struct snip l = SNIP("movl %%fs:(%%ebx), %%eax"), s = SNIP("addl %%eax, %%fs:(%%ebx)");
    static const struct {
        u32 base, off;
    } cases[] = {{DS_BASE + 0x13, 0x100},
                 {DS_BASE, 0x113},
                 {0xffff0000, 0x10000 + DS_BASE + 0x113},
                 {0x80000000, 0x80000000 + DS_BASE + 0x113},
                 {DS_BASE + 0x114, 0xffffffff}};
    for (unsigned i = 0; i < 5; i++) {
        gdt[FREE(0) / 8] = DESC(cases[i].base, 0xfffff, 0xf3, 0xc);
        EACH_MODE(m, PROT)
        {
            struct regs r = fs_regs(m, FREE(0), cases[i].off);
            *mem32(DS_BASE + 0x113) = 0xc0ffee00 + m;
            if (i == 4) { /* a dword at FFFFFFFFh leaves the segment */
                continue;
            }
            if (done(&r, code_for(m, l)))
                EQ(T.r.eax, 0xc0ffee00 + m);
            r.eax = 5;
            if (done(&r, code_for(m, s)))
                EQ(*mem32(DS_BASE + 0x113), 0xc0ffee05 + m);
        }
    }
}

/* Code in a segment with a base that is no multiple of anything. */
TEST(segment, code_base)
{
    EACH_MODE(m, PROT)
    {
        u32 dpl = CPL3 >> m & 1 ? 3 : 0;
        u8 *c = gen_start(m), *p = c;
        u32 base = (u32)c - 0x1234;
        gdt[FREE(1) / 8] = DESC(base, 0xffff, 0x9b | dpl << 5, CODE32 >> m & 1 ? 4 : 0);
        struct regs r = regs_for(m);
        r.cs = FREE(1) | dpl;
        PUT(p, 0xe8); /* call +3: over two bytes */
        u32 rel = 2;
        p = put_bytes(p, &rel, CODE32 >> m & 1 ? 4 : 2);
        PUT(p, 0xcc, 0xcc);
        PUT(p, 0x58);             /* pop ax: the return address */
        PUT(p, 0x2e, 0x8a, 0x1e); /* mov bl, cs:[disp] */
        if (CODE32 >> m & 1) {
            p[-1] = 0x1d;
            p = put32(p, 0x1234);
        } else {
            p = put16(p, 0x1234);
        }
        PUT(p, 0xeb, 0x00, 0xcc);
        r.eip = 0x1234;
        r.ebx = 0;
        run(&r);
        expect(DONE, 0);
        EQ(T.r.eip, (u32)p - base);
        EQ(T.r.cs, r.cs);
        EQ(T.r.eax & 0xffff, 0x1234 + (CODE32 >> m & 1 ? 5 : 3));
        EQ(T.r.ebx & 0xff, 0xe8);
    }
}

TEST(segment, code_limit)
{
    TCG_SKIP("the limit of CS is not checked on fetches");
    EACH_MODE(m, PROT)
    {
        u32 dpl = CPL3 >> m & 1 ? 3 : 0;
        u8 *c = gen_start(m), *p = c;
        gdt[FREE(1) / 8] = DESC((u32)c, 0xff, 0x9b | dpl << 5, CODE32 >> m & 1 ? 4 : 0);
        struct regs r = regs_for(m);
        r.cs = FREE(1) | dpl;
        memset(c, 0x90, 0x120);
        c[0x100] = 0xcc;
        /* runs off the end: the next instruction's first byte is outside */
        r.eip = 0xf0;
        run(&r);
        expect(GP, 0);
        EQ(T.r.eip, 0x100);
        /* an instruction whose last byte is outside */
        p = c + 0xfe;
        PUT(p, 0xb0);
        p = c + 0xff;
        PUT(p, 0xb0, 0x12); /* mov al, imm8 at FFh */
        c[0xfe] = 0x90;
        r.eip = 0xf0;
        run(&r);
        expect(GP, 0);
        EQ(T.r.eip, 0xff);
        EQ(T.r.eax, r.eax);
        /* A branch out of the segment faults at the branch (SDM), or, as one to a non-canonical
         * address on AMD, at its target (docs/deviations.md): then it has done all else. */
        p = c + 0x10;
        PUT(p, 0xe9);
        u32 rel = 0x100 - (0x11 + (CODE32 >> m & 1 ? 4 : 2));
        put_bytes(p, &rel, CODE32 >> m & 1 ? 4 : 2);
        r.eip = 0x10;
        run(&r);
        expect(GP, 0);
        if (T.r.eip != 0x100)
            EQ(T.r.eip, 0x10);
        p = c + 0x20;
        PUT(p, 0xff, 0xd0); /* call ax: pushes nothing */
        r.eip = 0x20;
        r.eax = 0x1000;
        run(&r);
        expect(GP, 0);
        if (T.r.eip != 0x1000) {
            EQ(T.r.eip, 0x20);
            EQ(T.r.esp, r.esp);
        }
        p = c + 0x30;
        PUT(p, 0xc3); /* ret */
        r.eip = 0x30;
        *mem32(SS_BASE + 0x8000) = 0x100;
        run(&r);
        expect(GP, 0);
        if (T.r.eip != 0x100) {
            EQ(T.r.eip, 0x30);
            EQ(T.r.esp, r.esp);
        }
        /* and one to the last byte is fine */
        c[0xff] = 0xcc;
        r.eip = 0x20;
        r.eax = 0xff;
        run(&r);
        expect(DONE, 0);
        EQ(T.r.eip, 0x100);
    }
}

TEST(segment, types)
{
    NO_LIMITS;
    struct snip rd = SNIP("movl %%fs:(%%ebx), %%eax"), wr = SNIP("movl %%eax, %%fs:(%%ebx)"),
                rmw = SNIP("incl %%fs:(%%ebx)"), cs_wr = SNIP("movl %%eax, %%cs:(%%ebx)"),
                cs_rd = SNIP("movl %%cs:(%%ebx), %%eax");
    EACH_MODE(m, PROT)
    {
        struct regs r = fs_regs(m, FREE(0), 0x100);
        gdt[FREE(0) / 8] = DESC(DS_BASE, 0xffff, 0xf1, 4); /* read only */
        done(&r, code_for(m, rd));
        fault(&r, code_for(m, wr), GP, 0);
        fault(&r, code_for(m, rmw), GP, 0);
        gdt[FREE(0) / 8] = DESC(DS_BASE, 0xffff, 0xfb, 4); /* readable code */
        done(&r, code_for(m, rd));
        fault(&r, code_for(m, wr), GP, 0);
        r = regs_for(m);
        r.ebx = ip_of(m, gen_start(m)) & ~3u;
        done(&r, code_for(m, cs_rd));
        fault(&r, code_for(m, cs_wr), GP, 0);
    }
    /* execute-only code cannot be read */
    gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0xf9, 0xc);
    struct regs r = regs_for(U32);
    r.cs = FREE(1) | 3;
    r.ebx = DS_BASE;
    fault(&r, cs_rd.c32, GP, 0);
}

TEST(segment, null_selector)
{
    struct snip load = SNIP("movw %%ax, %%fs\n\tmovw %%ax, %%gs\n\tmovw %%ax, %%es");
    struct snip es = SNIP("movb %%es:(%%ebx), %%al"), fs = SNIP("movb %%al, %%fs:(%%ebx)"),
                gs = SNIP("incb %%gs:(%%ebx)"), ss = SNIP("movw %%ax, %%ss"), st = SNIP("stosb"),
                lss = SNIP("lssl (%%ebx), %%ecx");
    EACH_MODE(m, PROT)
    {
        for (u32 sel = 0; sel < 4; sel++) {
            struct regs r = regs_for(m);
            r.eax = sel;
            if (done(&r, code_for(m, load))) {
                EQ(T.r.fs, sel);
                EQ(T.r.gs, sel);
                EQ(T.r.es, sel);
            }
            fault(&r, code_for(m, ss), GP, 0);
            r.ebx = ds_off(m, 0x40);
            *mem32(DS_BASE + 0x40) = 0x1234;
            *mem32(DS_BASE + 0x44) = sel;
            fault(&r, code_for(m, lss), GP, 0);
            r.es = r.fs = r.gs = r.cs & 3 ? 0 : sel; /* the IRET to CPL 3 makes it 0 */
            r.ebx = 0x100;
            if (on_tcg)
                continue; /* a null segment has the base 0 there, and no limit */
            fault(&r, code_for(m, es), GP, 0);
            fault(&r, code_for(m, fs), GP, 0);
            fault(&r, code_for(m, gs), GP, 0);
            fault(&r, code_for(m, st), GP, 0);
        }
    }
}

/* IRET to an outer level takes a null selector for one of DPL 0, which that level cannot have. */
TEST(segment, null_selector_across_iret)
{
    struct snip look = SNIP("movw %%es, %%ax\n\tmovw %%fs, %%bx\n\tmovw %%gs, %%cx");
    EACH_MODE(m, PROT)
    {
        for (u32 sel = 0; sel < 4; sel++) {
            context("%s, selector %u", mode_name(m), sel);
            struct regs r = regs_for(m);
            u32 want = r.cs & 3 ? 0 : sel;
            r.es = r.fs = r.gs = sel;
            done(&r, code_for(m, look));
            EQ(T.r.eax & 0xffff, want);
            if (!on_tcg) {
                EQ(T.r.ebx & 0xffff, want);
                EQ(T.r.ecx & 0xffff, want);
            }
        }
    }
}

/* What loading DS, ES, FS, GS and SS checks (SDM vol. 2, MOV). */
TEST(segment, load)
{
    struct snip ds = SNIP("movw %%ax, %%ds"), fs = SNIP("movw %%ax, %%fs"),
                ss = SNIP("movw %%ax, %%ss"), pop = SNIP("popw %%es"),
                lgs = SNIP("lgsw (%%ebx), %%cx");
    enum { OK = 0xff };
    static const struct {
        u8 access;
        u8 rpl;
        /* vector, or OK, for data segments and SS at CPL 0 and at CPL 3 */
        u8 data0, ss0, data3, ss3;
    } cases[] = {
        {0x93, 0, OK, OK, GP, GP}, {0x93, 3, GP, GP, GP, GP}, {0xf3, 0, OK, GP, OK, GP},
        {0xf3, 3, OK, GP, OK, OK}, {0xb3, 0, OK, GP, GP, GP}, {0xd3, 1, OK, GP, GP, GP},
        {0xb3, 2, GP, GP, GP, GP}, {0x91, 0, OK, GP, GP, GP}, {0xf1, 3, OK, GP, OK, GP},
        {0x97, 0, OK, OK, GP, GP}, {0xf7, 3, OK, GP, OK, OK}, {0x9b, 0, OK, GP, GP, GP},
        {0xfb, 3, OK, GP, OK, GP}, {0x99, 0, GP, GP, GP, GP}, {0xf9, 3, GP, GP, GP, GP},
        {0x9f, 3, OK, GP, OK, GP}, {0x9f, 0, OK, GP, OK, GP}, {0x9d, 0, GP, GP, GP, GP},
        {0x13, 0, NP, SS, GP, GP}, {0x73, 3, NP, GP, NP, SS}, {0x1b, 0, NP, GP, GP, GP},
        {0x82, 0, GP, GP, GP, GP}, {0xe9, 3, GP, GP, GP, GP}, {0x00, 0, GP, GP, GP, GP},
        {0x92, 0, OK, OK, GP, GP}, {0xf2, 3, OK, GP, OK, OK},
    };
    gdt[SEL_LDT / 8] |= (u64)0x80 << 40;
    lldt(SEL_LDT);
    EACH_MODE(m, PROT)
    {
        unsigned cpl = CPL3 >> m & 1 ? 3 : 0;
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
            for (unsigned ti = 0; ti < 2; ti++) {
                u32 sel = ti ? 8 * 5 + 4 : FREE(2);
                u64 *d = ti ? &ldt[5] : &gdt[FREE(2) / 8];
                unsigned vd = cpl ? cases[i].data3 : cases[i].data0,
                         vs = cpl ? cases[i].ss3 : cases[i].ss0;
                context("%s, access %x, rpl %u, %s", mode_name(m), cases[i].access, cases[i].rpl,
                        ti ? "ldt" : "gdt");
                *d = DESC(CODE32 >> m & 1 && m != S32 ? 0 : SS_BASE, 0xfffff, cases[i].access,
                          CODE32 >> m & 1 ? 0xc : 0x8);
                if (cases[i].access == 0x97 || cases[i].access == 0xf7)
                    *d = DESC(CODE32 >> m & 1 && m != S32 ? 0 : SS_BASE, 0, cases[i].access,
                              CODE32 >> m & 1 ? 0xc : 0x8);
                struct regs r = regs_for(m);
                r.eax = 0x55550000 | sel | cases[i].rpl;
                if (vd == OK) {
                    if (done(&r, code_for(m, ds)))
                        EQ(T.r.ds, sel | cases[i].rpl);
                    if (cases[i].access & 0x10)
                        EQ(*d >> 40 & 1, 1); /* accessed */
                    if (done(&r, code_for(m, fs)))
                        EQ(T.r.fs, sel | cases[i].rpl);
                } else {
                    fault(&r, code_for(m, ds), vd, sel);
                    fault(&r, code_for(m, fs), vd, sel);
                }
                *mem16(SS_BASE + 0x8000) = (u16)r.eax;
                if (vd == OK) {
                    if (done(&r, code_for(m, pop))) {
                        EQ(T.r.es, sel | cases[i].rpl);
                        EQ(T.r.esp, r.esp + 2);
                    }
                } else {
                    fault(&r, code_for(m, pop), vd, sel);
                }
                r.ebx = ds_off(m, 0x80);
                *mem16(DS_BASE + 0x80) = 0x7777;
                *mem16(DS_BASE + 0x82) = (u16)r.eax;
                if (vd == OK) {
                    if (done(&r, code_for(m, lgs))) {
                        EQ(T.r.gs, sel | cases[i].rpl);
                        EQ(T.r.ecx & 0xffff, 0x7777);
                    }
                } else {
                    fault(&r, code_for(m, lgs), vd, sel);
                }
                if (vs != OK)
                    fault(&r, code_for(m, ss), vs, sel);
                else if (done(&r, code_for(m, ss)))
                    EQ(T.r.ss, sel | cases[i].rpl);
            }
    }
}

TEST(segment, table_limits)
{
    struct snip fs = SNIP("movw %%ax, %%fs");
    gdt[SEL_LDT / 8] = DESC((u32)ldt, 0x16, 0x82, 0); /* two descriptors and 7/8 */
    lldt(SEL_LDT);
    for (unsigned i = 0; i < 32; i++)
        ldt[i] = DESC(0, 0xfffff, 0xf3, 0xc);
    EACH_MODE(m, PROT)
    {
        struct regs r = regs_for(m);
        r.eax = 0x0c | 3;
        done(&r, code_for(m, fs));
        r.eax = 0x14 | 3;
        fault(&r, code_for(m, fs), GP, 0x14);
        r.eax = 0xfffc | 3;
        fault(&r, code_for(m, fs), GP, 0xfffc);
        r.eax = 0x400 | 3; /* behind the GDT */
        fault(&r, code_for(m, fs), GP, 0x400);
        r.eax = 0x3f8 | 3;
        gdt[0x3f8 / 8] = DESC(0, 0xfffff, 0xf3, 0xc);
        done(&r, code_for(m, fs));
    }
    lldt(0); /* no LDT at all */
    EACH_MODE(m, PROT)
    {
        struct regs r = regs_for(m);
        r.eax = 0x04;
        fault(&r, code_for(m, fs), GP, 4);
    }
}

TEST(segment, lldt_ltr)
{
    struct snip ld = SNIP("lldt %%ax"), tr = SNIP("ltr %%ax"), sl = SNIP("sldt %%eax"),
                st = SNIP("str %%eax");
    EACH_MODE(m, CPL0)
    {
        struct regs r = regs_for(m);
        r.eax = 0x3;
        if (done(&r, code_for(m, ld)) && done(&r, code_for(m, sl)))
            EQ(T.r.eax & 0xffff, 3);
        r.eax = SEL_KDATA;
        fault(&r, code_for(m, ld), GP, SEL_KDATA);
        r.eax = 0x1c;
        fault(&r, code_for(m, ld), GP, 0x1c);
        gdt[FREE(0) / 8] = DESC(0, 0xff, 0x02, 0);
        r.eax = FREE(0) | 1;
        fault(&r, code_for(m, ld), NP, FREE(0));
        r.eax = 0;
        if (!on_tcg) /* which takes it */
            fault(&r, code_for(m, tr), GP, 0);
        r.eax = SEL_TSS; /* busy */
        fault(&r, code_for(m, tr), GP, SEL_TSS);
        gdt[FREE(0) / 8] = DESC((u32)&tss, sizeof(tss) - 1, 0x09, 0);
        r.eax = FREE(0);
        fault(&r, code_for(m, tr), NP, FREE(0));
        gdt[FREE(0) / 8] = DESC((u32)&tss, sizeof(tss) - 1, 0x89, 0);
        if (done(&r, code_for(m, tr))) {
            EQ(gdt[FREE(0) / 8] >> 40 & 0xff, 0x8b);
            if (done(&r, code_for(m, st)))
                EQ(T.r.eax, (CODE32 >> m & 1 ? 0 : T.r.eax & 0xffff0000) | FREE(0));
        }
        load_tr(SEL_TSS);
    }
    EACH_MODE(m, CPL3)
    {
        struct regs r = regs_for(m);
        r.eax = SEL_LDT;
        fault(&r, code_for(m, ld), GP, 0);
        fault(&r, code_for(m, tr), GP, 0);
        done(&r, code_for(m, sl));
    }
    EACH_MODE(m, M(V86) | M(REAL))
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, ld), UD, 0);
        fault(&r, code_for(m, tr), UD, 0);
        fault(&r, code_for(m, sl), UD, 0);
        fault(&r, code_for(m, st), UD, 0);
    }
}

/* SDM vol. 2, LAR, LSL, VERR, VERW. */
TEST(segment, lar_lsl_verr_verw)
{
    struct snip lar = SNIP("larl %%eax, %%ecx"), lsl = SNIP("lsll %%eax, %%ecx"),
                verr = SNIP("verr %%ax"), verw = SNIP("verw %%ax"), larw = SNIP("larw %%ax, %%cx"),
                lslw = SNIP("lslw %%ax, %%cx");
    static const u8 lar_ok[16] = {0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0};
    static const u8 lsl_ok[16] = {0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0};
    EACH_MODE(m, PROT)
    {
        unsigned cpl = CPL3 >> m & 1 ? 3 : 0;
        for (unsigned access = 0; access < 256; access++) {
            if (m != U32 && m != K16 && access % 5)
                continue;
            for (unsigned rpl = 0; rpl < 4; rpl += 3) {
                unsigned type = access & 15, dpl = access >> 5 & 3;
                bool s = access & 0x10, g = access & 1;
                context("%s, access %x, rpl %u", mode_name(m), access, rpl);
                gdt[FREE(0) / 8] = DESC(0x12345678, 0xabcde, access, g ? 0xf : 0x7);
                struct regs r = regs_for(m);
                r.eax = 0x77770000 | FREE(0) | rpl;
                r.eflags |= F_CF | F_OF;
                bool conforming = s && (type & 12) == 12;
                bool visible = conforming || dpl >= (cpl > rpl ? cpl : rpl);
                bool ok = visible && (s || lar_ok[type]);
                u32 rights = (access << 8) | (g ? 0xf00000 : 0x700000);
                if (done(&r, code_for(m, lar))) {
                    EQ(T.r.eflags & F_ARITH, F_CF | F_OF | (ok ? F_ZF : 0));
                    EQ(T.r.ecx & 0xf0ff00, ok ? rights : r.ecx & 0xf0ff00);
                }
                if (done(&r, code_for(m, larw)))
                    EQ(T.r.ecx, ok ? (r.ecx & 0xffff0000) | access << 8 : r.ecx);
                ok = visible && (s || lsl_ok[type]);
                u32 limit = g ? 0xabcdefff : 0xabcde;
                if (done(&r, code_for(m, lsl))) {
                    EQ(T.r.eflags & F_ARITH, F_CF | F_OF | (ok ? F_ZF : 0));
                    EQ(T.r.ecx, ok ? limit : r.ecx);
                }
                if (done(&r, code_for(m, lslw)))
                    EQ(T.r.ecx, ok ? (r.ecx & 0xffff0000) | (limit & 0xffff) : r.ecx);
                ok = visible && s && !((type & 10) == 8);
                if (done(&r, code_for(m, verr)))
                    EQ(T.r.eflags & F_ARITH, F_CF | F_OF | (ok ? F_ZF : 0));
                ok = visible && s && (type & 10) == 2;
                if (done(&r, code_for(m, verw)))
                    EQ(T.r.eflags & F_ARITH, F_CF | F_OF | (ok ? F_ZF : 0));
            }
        }
        struct regs r = regs_for(m); /* null and absent selectors: ZF = 0, no fault */
        r.eflags |= F_ZF;
        static const u32 bad[] = {0, 3, 0x400, 0xffff, 0x44};
        for (unsigned i = 0; i < 5; i++) {
            r.eax = bad[i];
            struct snip *all[] = {&lar, &lsl, &verr, &verw};
            for (unsigned k = 0; k < 4; k++)
                if (done(&r, code_for(m, *all[k]))) {
                    EQ(T.r.eflags & F_ZF, 0);
                    EQ(T.r.ecx, r.ecx);
                }
        }
    }
    EACH_MODE(m, M(V86) | M(REAL))
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, lar), UD, 0);
        fault(&r, code_for(m, lsl), UD, 0);
        fault(&r, code_for(m, verr), UD, 0);
        fault(&r, code_for(m, verw), UD, 0);
    }
}

/* -- The stack -------------------------------------------------------------------------------- */

TEST(segment, stack_limit)
{
    NO_LIMITS;
    struct snip push = SNIP("pushl %%eax"), pop = SNIP("popl %%eax"), pusha = SNIP("pushal"),
                call = SNIP("call 1f\n1:"), enter = SNIP("enterl $16, $0"),
                pushw = SNIP("pushw %%ax"), ebp = SNIP("movl (%%ebp), %%eax"),
                esp = SNIP("movl 4(%%esp), %%eax"), ds = SNIP("movl %%ds:(%%ebp), %%eax"),
                leave = SNIP("leavel"), ret = SNIP("retl"), pushf = SNIP("pushfl");
    gdt[FREE(0) / 8] = DESC(SS_BASE, 0xfff, 0xf3, 4);
    EACH_MODE(m, M(U32) | M(S32))
    {
        struct regs r = regs_for(m);
        r.ss = FREE(0) | 3;
        r.esp = 0x1000;
        done(&r, code_for(m, push));
        r.esp = 0xffc;
        done(&r, code_for(m, pop));
        r.esp = 0xffd;
        fault(&r, code_for(m, pop), SS, 0);
        fault(&r, code_for(m, ret), SS, 0);
        r.esp = 2;
        fault(&r, code_for(m, push), SS, 0);
        fault(&r, code_for(m, pushf), SS, 0);
        fault(&r, code_for(m, call), SS, 0);
        r.esp = 0;
        fault(&r, code_for(m, push), SS, 0);
        r.esp = 4;
        done(&r, code_for(m, push));
        r.esp = 28;
        fault(&r, code_for(m, pusha), SS, 0);
        r.esp = 32;
        done(&r, code_for(m, pusha));
        r.esp = 0x1001;
        fault(&r, code_for(m, push), SS, 0);
        r.esp = 0x1000;
        fault(&r, code_for(m, pop), SS, 0);
        r.esp = 0x1002;
        fault(&r, code_for(m, push), SS, 0);
        fault(&r, code_for(m, pushw), SS, 0);
        r.esp = 0x1001;
        fault(&r, code_for(m, pushw), SS, 0);
        r.esp = 0x1000;
        done(&r, code_for(m, pushw));
        r.esp = 0xff8;
        done(&r, code_for(m, esp));
        r.esp = 0xff9;
        fault(&r, code_for(m, esp), SS, 0);
        r.ebp = 0xffc;
        done(&r, code_for(m, ebp));
        r.ebp = 0xffd;
        fault(&r, code_for(m, ebp), SS, 0);
        done(&r, code_for(m, ds));
        r.ebp = 0x1000;
        fault(&r, code_for(m, leave), SS, 0);
        r.esp = 2;
        fault(&r, code_for(m, enter), SS, 0);
    }
    /* an expand-down stack */
    gdt[FREE(0) / 8] = DESC(SS_BASE, 0xfff, 0xf7, 4);
    EACH_MODE(m, M(U32) | M(S32))
    {
        struct regs r = regs_for(m);
        r.ss = FREE(0) | 3;
        r.esp = 0x1004;
        done(&r, code_for(m, push));
        r.esp = 0x1003;
        fault(&r, code_for(m, push), SS, 0);
        r.esp = 0x1000;
        done(&r, code_for(m, pop));
        fault(&r, code_for(m, push), SS, 0);
        r.esp = 0xfff;
        fault(&r, code_for(m, pop), SS, 0);
        r.esp = 0x1020;
        done(&r, code_for(m, pusha));
        r.esp = 0x101f;
        fault(&r, code_for(m, pusha), SS, 0);
    }
}

/* A 16-bit stack wraps at 64 KiB, between pushes but not within one. */
TEST(segment, stack_wrap_16)
{
    struct snip push = SNIP("pushw %%ax"), pop = SNIP("popw %%ax"), pushl = SNIP("pushl %%eax"),
                popl = SNIP("popl %%eax"), pusha = SNIP("pushaw"),
                two = SNIP("pushw %%ax\n\tpushw %%ax\n\tpopl %%ecx");
    EACH_MODE(m, M(U16) | M(V86))
    {
        struct regs r = regs_for(m);
        r.esp = 0;
        if (done(&r, code_for(m, push))) {
            EQ(T.r.esp, 0xfffe);
            EQ(*mem16(SS_BASE + 0xfffe), r.eax & 0xffff);
        }
        if (done(&r, code_for(m, pushl))) {
            EQ(T.r.esp, 0xfffc);
            EQ(*mem32(SS_BASE + 0xfffc), r.eax);
        }
        r.esp = 0xfffe;
        *mem16(SS_BASE + 0xfffe) = 0x4321;
        if (done(&r, code_for(m, pop))) {
            EQ(T.r.esp, 0);
            EQ(T.r.eax & 0xffff, 0x4321);
        }
        r.esp = 4;
        if (done(&r, code_for(m, pusha)))
            EQ(T.r.esp, 0xfff4);
        r.esp = 2;
        if (!on_tcg) {
            fault(&r, code_for(m, pushl), SS, 0); /* FFFEh: four bytes do not fit */
            r.esp = 1;
            fault(&r, code_for(m, push), SS, 0);
            r.esp = 0xffff;
            fault(&r, code_for(m, pop), SS, 0);
            r.esp = 0xfffe;
            fault(&r, code_for(m, popl), SS, 0);
            r.esp = 5; /* fails in its middle: nothing is popped or pushed */
            fault(&r, code_for(m, pusha), SS, 0);
            r.esp = 2; /* the second push succeeds at FFFEh, the pop of both does not */
            run_at(&r, code_for(m, two));
            expect(SS, 0);
            EQ(T.r.esp, 0xfffe);
        }
    }
}

/* Accesses across 64 KiB in 16-bit segments (SDM vol. 3, 20.1.1: #GP, #SS for the stack). */
TEST(segment, offset_ffff)
{
    NO_LIMITS;
    struct snip b = {SNIP16("movb (%%bx), %%al"), NULL}, w = {SNIP16("movw (%%bx), %%ax"), NULL},
                s = {SNIP16("movw %%ax, (%%bp)"), NULL}, l = {SNIP16("movl (%%bx), %%eax"), NULL},
                les = {SNIP16("lesw (%%bx), %%cx"), NULL}, mw = {SNIP16("movsw"), NULL},
                big = {SNIP16("movb (%%ebx), %%al"), NULL};
    EACH_MODE(m, CODE16)
    {
        struct regs r = regs_for(m);
        r.ebx = r.ebp = r.esi = 0xffff;
        r.edi = 0x10;
        done(&r, code_for(m, b));
        if (m == REAL) { /* a fault in real mode pushes no error code */
            fault(&r, code_for(m, w), GP, 0);
            fault(&r, code_for(m, s), SS, 0);
        } else {
            fault(&r, code_for(m, w), GP, 0);
            fault(&r, code_for(m, s), SS, 0);
        }
        fault(&r, code_for(m, mw), GP, 0);
        r.ebx = 0xfffd;
        fault(&r, code_for(m, l), GP, 0);
        fault(&r, code_for(m, les), GP, 0);
        r.ebx = 0xfffc;
        done(&r, code_for(m, l));
        r.ebx = 0x10000;
        fault(&r, code_for(m, big), GP, 0);
    }
}

/* A repeated string instruction stops at the element that does not fit, with all before it done. */
TEST(segment, string_limit)
{
    NO_LIMITS;
    struct snip movs = SNIP("rep movsb"), stos = SNIP("rep stosl"), lods = SNIP("rep lodsw"),
                down = SNIP("rep movsw");
    gdt[FREE(0) / 8] = DESC(ES_BASE, 0x1ff, 0xf3, 4);
    EACH_MODE(m, CPL3)
    {
        struct regs r = regs_for(m);
        r.es = FREE(0) | 3;
        r.esi = ds_off(m, 0x100);
        r.edi = 0x180;
        r.ecx = 0x100;
        memset((void *)ES_BASE, 0xee, 0x400);
        memset(ds_ptr(0x100), 0x11, 0x100);
        run_at(&r, code_for(m, movs));
        expect(GP, 0);
        EQ(T.r.eip, r.eip);
        EQ(T.r.ecx, 0x80);
        EQ(T.r.edi, 0x200);
        EQ(T.r.esi, r.esi + 0x80);
        EQ(*mem32(ES_BASE + 0x1fc), 0x11111111);
        EQ(*mem32(ES_BASE + 0x200), 0xeeeeeeee);
        r.edi = 0x1f2;
        r.ecx = 10;
        run_at(&r, code_for(m, stos));
        expect(GP, 0);
        EQ(T.r.ecx, 7);
        EQ(T.r.edi, 0x1fe);
        EQ(*mem32(ES_BASE + 0x1fa), r.eax);
        EQ(*mem32(ES_BASE + 0x1fe), 0xeeee1111);
        r.ds = FREE(0) | 3;
        r.esi = 0x1fb;
        run_at(&r, code_for(m, lods));
        expect(GP, 0);
        EQ(T.r.ecx, 8);
        EQ(T.r.esi, 0x1ff);
        r = regs_for(m);
        r.es = FREE(0) | 3;
        r.eflags |= F_DF;
        r.esi = ds_off(m, 0x180);
        r.edi = 5;
        r.ecx = 8;
        run_at(&r, code_for(m, down));
        expect(GP, 0);
        EQ(T.r.ecx, 5);
        EQ(T.r.edi, CODE32 >> m & 1 ? 0xffffffff : 0xffff);
    }
}

/* -- Table registers -------------------------------------------------------------------------- */

TEST(segment, sgdt_sidt)
{
    struct snip g = SNIP("sgdtl (%%ebx)"), i = SNIP("sidtl (%%ebx)"), w = SNIP("smsww (%%ebx)"),
                r32 = SNIP("smswl %%eax");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x203);
        memset(ds_ptr(0x200), 0x5a, 16);
        if (done(&r, code_for(m, g))) {
            EQ(*mem16(DS_BASE + 0x203), sizeof(gdt) - 1);
            EQ(*mem32(DS_BASE + 0x205), gdt);
            EQ(*mem16(DS_BASE + 0x209), 0x5a5a);
        }
        if (done(&r, code_for(m, i)) && m != REAL) {
            EQ(*mem16(DS_BASE + 0x203), sizeof(idt) - 1);
            EQ(*mem32(DS_BASE + 0x205), idt);
        }
        memset(ds_ptr(0x200), 0x5a, 16);
        if (done(&r, code_for(m, w)))
            EQ(*mem32(DS_BASE + 0x203), 0x5a5a0030 | (m != REAL));
        if (done(&r, code_for(m, r32)))
            EQ(T.r.eax & 0xffff, 0x30 | (m != REAL));
    }
    if (!feat.umip)
        return;
    write_cr4(read_cr4() | CR4_UMIP);
    EACH_MODE(m, CPL3)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x203);
        fault(&r, code_for(m, g), GP, 0);
        fault(&r, code_for(m, i), GP, 0);
        fault(&r, code_for(m, w), GP, 0);
    }
}

/* LGDT and LIDT with 16-bit operands take 24 bits of the base. */
TEST(segment, lgdt_24_bits)
{
    struct snip w = SNIP("lgdtw (%%ebx)\n\tsgdtl 8(%%ebx)"),
                l = SNIP("lgdtl (%%ebx)\n\tsgdtl 8(%%ebx)");
    EACH_MODE(m, CPL0)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x300);
        *mem16(DS_BASE + 0x300) = sizeof(gdt) - 1;
        *mem32(DS_BASE + 0x302) = 0x7f000000 | (u32)gdt;
        if (done(&r, code_for(m, w))) {
            EQ(*mem16(DS_BASE + 0x308), sizeof(gdt) - 1);
            EQ(*mem32(DS_BASE + 0x30a), gdt);
        }
        *mem32(DS_BASE + 0x302) = (u32)gdt;
        if (done(&r, code_for(m, l)))
            EQ(*mem32(DS_BASE + 0x30a), gdt);
    }
    EACH_MODE(m, CPL3 | M(V86))
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x300);
        fault(&r, code_for(m, l), GP, 0);
    }
}

/* Moves from segment registers: 16 bits to memory, zero-extended to a 32-bit register. */
TEST(segment, store)
{
    struct snip r32 = SNIP("movl %%fs, %%eax"), r16 = SNIP("movw %%fs, %%ax"),
                mem = SNIP("movw %%fs, (%%ebx)");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x400);
        if (done(&r, code_for(m, r32)))
            EQ(T.r.eax, r.fs);
        if (done(&r, code_for(m, r16)))
            EQ(T.r.eax, (r.eax & 0xffff0000) | r.fs);
        *mem32(DS_BASE + 0x400) = 0x99999999;
        if (done(&r, code_for(m, mem)))
            EQ(*mem32(DS_BASE + 0x400), 0x99990000 | r.fs);
    }
}

/* PUSH of a segment register: with 32 bits, Intel's processors leave the upper half of the place
 * alone and AMD's clear it (SDM vol. 2, PUSH). */
TEST(segment, push)
{
    TCG_SKIP("writes all four bytes whatever the vendor");
    struct snip l = SNIP("pushl %%fs\n\tpushl $0\n\tpopl %%eax"),
                w = SNIP("pushw %%fs\n\tpushw $0\n\tpopw %%ax");
    u32 id[4];
    asm("cpuid" : "=a"(id[0]), "=b"(id[1]), "=c"(id[2]), "=d"(id[3]) : "a"(0));
    bool intel = id[1] == 0x756e6547; /* "Genu" */
    EACH_MODE(m, M(U32) | M(S32) | M(U16) | M(V86))
    {
        struct regs r = regs_for(m);
        u32 at = esp_base(m) + r.esp;
        *mem32(at - 4) = 0x99999999;
        if (done(&r, code_for(m, l))) {
            EQ(*mem32(at - 4), (intel ? 0x99990000 : 0) | r.fs);
            EQ(T.r.esp, r.esp - 4);
        }
        *mem32(at - 4) = 0x99999999;
        if (done(&r, code_for(m, w))) {
            EQ(*mem32(at - 4) >> 16, r.fs);
            EQ(T.r.esp, r.esp - 2);
        }
    }
}

/* -- Real and unreal mode --------------------------------------------------------------------- */

TEST(segment, unreal)
{
    u8 *rd = SNIP16("movl %%fs:(%%ebx), %%eax"), *wr = SNIP16("movl %%eax, %%es:(%%ebx)"),
       *reload = SNIP16("movw $0x2000, %%ax\n\tmovw %%ax, %%es\n\tmovl %%es:(%%ebx), %%ecx"),
       *str = SNIP16("addr32 rep movsb");
    static u32 high;
    struct regs r = regs_for(REAL);
    r.unreal = true;
    r.ebx = (u32)&high - 0x60000;
    high = 0xfeedbeef;
    if (done(&r, rd))
        EQ(T.r.eax, 0xfeedbeef);
    r.ebx = (u32)&high - 0x50000;
    r.eax = 0x01020304;
    if (done(&r, wr))
        EQ(high, 0x01020304);
    r.ebx = (u32)&high - 0x20000; /* loading the selector changes the base alone */
    if (done(&r, reload))
        EQ(T.r.ecx, 0x01020304);
    static u8 copy[64];
    r.esi = (u32)gdt - 0x20000;
    r.edi = (u32)copy - 0x50000;
    r.ecx = 64;
    if (done(&r, str))
        EQ(memcmp(copy, gdt, 64), 0);
    if (!on_tcg) {
        r.unreal = false;
        fault(&r, rd, GP, 0);
    }
}
