/*
 * x87 environments, SYSENTER, self-modifying code and interrupts in every mode.
 */
#include "guest32.h"

#define FREE(i) (SEL_FREE + 8 * (i))

/* -- x87 (SDM vol. 1, 8.1.10) ----------------------------------------------------------------- */

/* Control, status and tag word lie 2 or 4 bytes apart; a 32-bit image has 28 bytes, a 16-bit one
 * 14. */
TEST(x87, environment)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++) {
            struct regs r = regs_for(m);
            bool o32 = (CODE32 >> m & 1) ^ o;
            unsigned w = o32 ? 4 : 2;
            u8 *c = gen_start(m), *p = c;
            context("%s, %u bits", mode_name(m), w * 8);
            asm volatile("fninit");
            memset(ds_ptr(0x700), 0x5a, 64);
            PUT(p, 0xd9, 0xee, 0xd9, 0xe8); /* fldz; fld1 */
            if (o)
                PUT(p, 0x66);
            PUT(p, 0xd9, CODE32 >> m & 1 ? 0x33 : 0x37); /* fnstenv [bx] */
            PUT(p, 0xcc);
            r.ebx = ds_off(m, 0x700);
            if (!done(&r, c))
                continue;
            u8 *e = ds_ptr(0x700);
            EQ(*(u16 *)e, 0x37f);
            EQ(*(u16 *)(e + w) & 0x3800, 6 << 11);
            EQ(*(u16 *)(e + 2 * w), 0x4fff); /* fldz: 01 zero; fld1: 00 valid */
            EQ(e[7 * w], 0x5a);
            EQ(e[7 * w - 1] != 0x5a, 1);
            /* and back */
            *(u16 *)e = 0x27f;
            *(u16 *)(e + w) = 0x4700;
            *(u16 *)(e + 2 * w) = 0xffff;
            p = c;
            if (o)
                PUT(p, 0x66);
            PUT(p, 0xd9, CODE32 >> m & 1 ? 0x23 : 0x27);             /* fldenv [bx] */
            PUT(p, 0xd9, CODE32 >> m & 1 ? 0x7b : 0x7f, 0x20);       /* fnstcw [bx+32] */
            PUT(p, 0xdd, CODE32 >> m & 1 ? 0x7b : 0x7f, 0x22, 0xcc); /* fnstsw [bx+34] */
            if (!done(&r, c))
                continue;
            EQ(*(u16 *)(e + 32), 0x27f);
            EQ(*(u16 *)(e + 34), 0x4700);
        }
    }
    asm volatile("fninit");
}

TEST(x87, save_restore)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++) {
            struct regs r = regs_for(m);
            bool o32 = (CODE32 >> m & 1) ^ o;
            unsigned w = o32 ? 4 : 2;
            u8 *c = gen_start(m), *p = c, *e = ds_ptr(0x700);
            context("%s, %u bits", mode_name(m), w * 8);
            asm volatile("fninit");
            memset(e, 0x5a, 256);
            PUT(p, 0xd9, 0xeb, 0xd9, 0xe8); /* fldpi; fld1 */
            if (o)
                PUT(p, 0x66);
            PUT(p, 0xdd, CODE32 >> m & 1 ? 0x33 : 0x37); /* fnsave [bx]: ends in FNINIT */
            PUT(p, 0xd9, CODE32 >> m & 1 ? 0xbb : 0xbf); /* fnstcw [bx+128] */
            p = put_bytes(p, &(u32){128}, CODE32 >> m & 1 ? 4 : 2);
            if (o)
                PUT(p, 0x66);
            PUT(p, 0xdd, CODE32 >> m & 1 ? 0x23 : 0x27); /* frstor [bx] */
            PUT(p, 0xd9, 0xc9);                          /* fxch */
            PUT(p, 0xdd, CODE32 >> m & 1 ? 0x9b : 0x9f); /* fstp qword [bx+136] */
            p = put_bytes(p, &(u32){136}, CODE32 >> m & 1 ? 4 : 2);
            PUT(p, 0xcc);
            r.ebx = ds_off(m, 0x700);
            if (!done(&r, c))
                continue;
            EQ(*(u16 *)(e + 7 * w + 8), 0x3fff); /* ST(0) = 1 */
            EQ(*(u32 *)(e + 7 * w + 4), 0x80000000);
            EQ(*(u16 *)(e + 7 * w + 18), 0x4000); /* ST(1) = pi */
            EQ(*(u32 *)(e + 7 * w + 14), 0xc90fdaa2);
            EQ(e[7 * w + 80], 0x5a);
            EQ(*(u16 *)(e + 128), 0x37f);
            EQ(*(u32 *)(e + 140), 0x400921fb);
        }
    }
    asm volatile("fninit");
}

/* CR0.EM and TS: #NM; MP and TS: WAIT too. */
TEST(x87, not_available)
{
    struct snip f = SNIP("fnop"), w = SNIP("fwait"), n = SNIP("fnstcw (%%ebx)");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x10);
        write_cr0(read_cr0() | CR0_TS | CR0_MP);
        fault(&r, code_for(m, f), NM, 0);
        fault(&r, code_for(m, w), NM, 0);
        fault(&r, code_for(m, n), NM, 0);
        write_cr0(read_cr0() & ~CR0_MP);
        done(&r, code_for(m, w));
        write_cr0((read_cr0() & ~CR0_TS) | CR0_EM);
        fault(&r, code_for(m, f), NM, 0);
        done(&r, code_for(m, w));
        write_cr0(read_cr0() & ~CR0_EM);
        done(&r, code_for(m, f));
    }
}

/* With CR0.NE an unmasked exception is #MF at the next waiting instruction. */
TEST(x87, exception)
{
    struct snip s = SNIP("fnclex\n\tfldcw (%%ebx)\n\tfld1\n\tfldz\n\tfdivrp\n\tnop\n\tfwait");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        asm volatile("fninit");
        r.ebx = ds_off(m, 0x20);
        *mem16(DS_BASE + 0x20) = 0x37b; /* zero divide unmasked */
        *mem16(DS_BASE + 0x22) = 0;
        run_at(&r, code_for(m, s));
        asm volatile("fnclex\n\tfninit");
        if (T.vector == DONE) /* 0 / 1 in this order: nothing to report */
            fail("no #MF");
        else
            expect(MF, 0);
    }
}

/* -- SYSENTER --------------------------------------------------------------------------------- */

TEST(sysenter, enter_exit)
{
    if (!feat.sysenter)
        SKIP("no SYSENTER");
    struct snip enter = SNIP("sysenter"), leave = SNIP("sysexit");
    u8 *to = SNIP32("nop"), *user = SNIP32("nop");
    wrmsr(MSR_SYSENTER_CS, 0);
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, enter), GP, 0);
    }
    /* CS, SS = CS + 8, user CS = CS + 16, user SS = CS + 24: the GDT has them in this order */
    wrmsr(MSR_SYSENTER_CS, SEL_KCODE | 3);
    wrmsr(MSR_SYSENTER_ESP, SS_BASE + 0x2000);
    wrmsr(MSR_SYSENTER_EIP, (u32)to);
    EACH_MODE(m, ALL & ~M(REAL))
    {
        struct regs r = regs_for(m);
        r.eflags |= F_IF | F_CF;
        run_at(&r, code_for(m, enter));
        expect(DONE, 0);
        EQ(T.r.cs, SEL_KCODE);
        EQ(T.r.ss, SEL_KDATA);
        EQ(T.r.esp, SS_BASE + 0x2000);
        EQ(T.r.eip, (u32)to + 2);
        EQ(T.r.eflags & (F_IF | F_VM | F_CF), F_CF);
    }
    struct regs r = regs_for(REAL);
    fault(&r, enter.c16, GP, 0);
    EACH_MODE(m, CPL0)
    {
        r = regs_for(m);
        r.ecx = SS_BASE + 0x3000;
        r.edx = (u32)user;
        r.eflags |= F_IF;
        run_at(&r, code_for(m, leave));
        expect(DONE, 0);
        EQ(T.r.cs, SEL_UCODE | 3);
        EQ(T.r.ss, SEL_UDATA | 3);
        EQ(T.r.esp, SS_BASE + 0x3000);
        EQ(T.r.eip, (u32)user + 2);
    }
    EACH_MODE(m, CPL3 | M(V86))
    {
        r = regs_for(m);
        fault(&r, code_for(m, leave), GP, 0);
    }
    wrmsr(MSR_SYSENTER_CS, 0);
}

/* -- Self-modifying code ---------------------------------------------------------------------- */

/* Lets ES reach the mode's code for writing; returns an offset in ES for an address. */
static u32 es_code(unsigned m, struct regs *r, const u8 *at)
{
    if (CODE32 >> m & 1) {
        r->es = m == K32 ? SEL_KDATA : SEL_UDATA | 3;
        return (u32)at;
    }
    if (m == V86 || m == REAL) {
        r->es = 0x3000;
    } else {
        gdt[FREE(0) / 8] = DESC(CS16_BASE, 0xffff, 0xf3, 0);
        r->es = FREE(0) | (m == U16 ? 3 : 0);
    }
    return (u32)at - CS16_BASE;
}

TEST(smc, next_instruction)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned gap = 0; gap < 3; gap++) {
            struct regs r = regs_for(m);
            bool c32 = CODE32 >> m & 1;
            u8 *c = gen_start(m), *p = c;
            /* mov byte es:[target], 77h; (jmp +0); mov bl, 0 */
            u8 *imm = c + (c32 ? 8 : 6) + (gap == 1 ? 2 : 0) + gap / 2 * 40 + 1;
            u32 off = es_code(m, &r, imm);
            PUT(p, 0x26, 0xc6, c32 ? 0x05 : 0x06);
            p = put_bytes(p, &off, c32 ? 4 : 2);
            PUT(p, 0x77);
            if (gap == 1)
                PUT(p, 0xeb, 0);
            for (unsigned i = 0; gap == 2 && i < 40; i++)
                PUT(p, 0x90);
            PUT(p, 0xb3, 0x00, 0xcc);
            context("%s, gap %u", mode_name(m), gap);
            for (unsigned i = 0; i < 3; i++) { /* code that is translated already, too */
                *imm = 0;
                if (!done(&r, c))
                    break;
                EQ(T.r.ebx & 0xff, 0x77);
            }
        }
    }
}

/* A loop that counts in its own instruction. */
TEST(smc, loop)
{
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        bool c32 = CODE32 >> m & 1;
        u8 *c = gen_start(m), *p = c;
        u8 *imm = c + (c32 ? 7 : 5) + 1;
        u32 off = es_code(m, &r, imm);
        PUT(p, 0x26, 0xfe, c32 ? 0x05 : 0x06); /* inc byte es:[imm] */
        p = put_bytes(p, &off, c32 ? 4 : 2);
        PUT(p, 0xb3, 0x00);                    /* mov bl, imm */
        PUT(p, 0x00, 0xda);                    /* add dl, bl */
        PUT(p, 0xe2, (u8)(c - (p + 2)), 0xcc); /* loop */
        r.ecx = 3000;
        r.edx = 0;
        if (!done(&r, c))
            continue;
        EQ(T.r.ebx & 0xff, 3000 & 0xff);
        EQ(T.r.edx & 0xff, 3000 * 3001 / 2 & 0xff);
    }
}

/* REP STOSB over the code that follows it. */
TEST(smc, string)
{
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        u8 *c = gen_start(m), *p = c;
        PUT(p, 0xf3, 0xaa);
        for (unsigned i = 0; i < 64; i++)
            PUT(p, 0xf4); /* hlt */
        PUT(p, 0xcc);
        r.edi = es_code(m, &r, c + 2);
        r.ecx = 64;
        r.eax = 0x90;
        if (done(&r, c))
            EQ(T.r.eip, r.eip + 67);
    }
}

/* -- Interrupts ------------------------------------------------------------------------------- */

static volatile u32 ticks;

static bool tick(struct frame *f)
{
    (void)f;
    ticks++;
    *ds_ptr(0x900) = 1;
    outb(0x20, 0x20);
    return true;
}

static void timer_on(void)
{
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0x21, 0xfe);
    outb(0x43, 0x34); /* counter 0, mode 2: 1 kHz */
    outb(0x40, 0xa9);
    outb(0x40, 0x04);
}

/* The timer interrupts a loop (and, where it may be used, HLT) in every mode. */
TEST(irq, timer)
{
    struct snip loop = SNIP("1: cmpb $0, (%%ebx)\n\tje 1b\n\tcli"),
                halt = SNIP("1: hlt\n\tcmpb $0, (%%ebx)\n\tje 1b\n\tcli");
    timer_on();
    EACH_MODE(m, ALL)
    {
        for (unsigned h = 0; h < 2; h++) {
            struct regs r = regs_for(m);
            if (h && (CPL3 | M(V86)) >> m & 1)
                continue;
            handlers[0x20] = tick;
            ticks = 0;
            *ds_ptr(0x900) = 0;
            r.ebx = ds_off(m, 0x900);
            r.eflags |= F_IF | F_IOPL;
            if (!done(&r, code_for(m, h ? halt : loop)))
                continue;
            CHECK(ticks > 0);
            if (m == U16) /* what IRET leaves of the kernel's ESP */
                T.r.esp &= 0xffff;
            for (unsigned i = 0; i < 8; i++)
                EQ((&T.r.eax)[i], (&r.eax)[i]);
        }
    }
    outb(0x21, 0xff);
}

/* Copies of 64 KiB without a pause: whatever interrupts them, they are complete. */
TEST(irq, string)
{
    u8 *loop =
        SNIP16("movw $200, %%dx\n1:\tmovw $0xff00, %%cx\n\txorw %%si, %%si\n\txorw %%di, %%di\n\t"
               "rep movsb\n\tdecw %%dx\n\tjnz 1b\n\tcli");
    timer_on();
    EACH_MODE(m, CODE16)
    {
        struct regs r = regs_for(m);
        for (u32 i = 0; i < 0xff00; i++)
            *ds_ptr(i) = (u8)(i * 7 + (i >> 8));
        handlers[0x20] = tick;
        ticks = 0;
        r.eflags |= F_IF | F_IOPL;
        if (!done(&r, loop))
            continue;
        EQ(memcmp((void *)(ES_BASE + 0xa00), ds_ptr(0xa00), 0xf000), 0);
        EQ(T.r.ecx & 0xffff, 0);
        EQ(T.r.esi & 0xffff, 0xff00);
    }
    outb(0x21, 0xff);
}
