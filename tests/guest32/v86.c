/*
 * Virtual-8086 mode, IOPL and the I/O bitmap, VME (SDM vol. 3, chapter 20; vol. 1, 19.5).
 */
#include "guest32.h"

static struct regs v86(unsigned iopl)
{
    struct regs r = regs_for(V86);
    r.eflags = F_VM | iopl << 12 | 2;
    return r;
}

TEST(v86, iopl)
{
    u8 *code[] = {SNIP16("cli"),       SNIP16("sti"),    SNIP16("pushfw"),
                  SNIP16("popfw"),     SNIP16("pushfl"), SNIP16("popfl"),
                  SNIP16("int $0x80"), SNIP16("iretw"),  SNIP16("iretl")};
    for (unsigned iopl = 0; iopl < 3; iopl++)
        for (unsigned i = 0; i < sizeof(code) / sizeof(code[0]); i++) {
            struct regs r = v86(iopl);
            context("iopl %u, %u", iopl, i);
            fault(&r, code[i], GP, 0);
        }
    struct regs r = v86(3);
    context("iopl 3");
    if (done(&r, code[1]))
        EQ(T.r.eflags, F_VM | F_IOPL | F_IF | 2);
    r.eflags |= F_IF;
    if (done(&r, code[0]))
        EQ(T.r.eflags, F_VM | F_IOPL | 2);
    if (done(&r, code[2]))
        EQ(*mem16(SS_BASE + 0x7ffe), 2 | F_IOPL | F_IF);
    if (done(&r, code[4])) {
        EQ(*mem32(SS_BASE + 0x7ffc), 2 | F_IOPL | F_IF); /* without VM and RF */
        EQ(T.r.esp, 0x7ffc);
    }
    *mem32(SS_BASE + 0x8000) = 0xffffffff & ~(u32)(F_TF | F_AC);
    if (done(&r, code[3]))
        EQ(T.r.eflags, F_VM | 0x7ed7);
    if (done(&r, code[5]))
        EQ(T.r.eflags, F_VM | F_ID | 0x7ed7);
    *mem32(SS_BASE + 0x8000) = 0;
    if (done(&r, code[5]))
        EQ(T.r.eflags, F_VM | F_IOPL | 2);
    run_at(&r, code[6]);
    expect(0x80, 0);
    EQ(T.r.eip, r.eip + 2);
}

TEST(v86, privileged)
{
    u8 *gp[] = {SNIP16("hlt"),
                SNIP16("movl %%cr0, %%eax"),
                SNIP16("movl %%eax, %%cr3"),
                SNIP16("lgdtl 0"),
                SNIP16("lidtl 0"),
                SNIP16("lmsw %%ax"),
                SNIP16("clts"),
                SNIP16("movl %%dr7, %%eax"),
                SNIP16("wbinvd"),
                SNIP16("rdmsr"),
                SNIP16("wrmsr"),
                SNIP16("invlpg 0")};
    u8 *ud[] = {SNIP16("lldt %%ax"), SNIP16("ltr %%ax"),        SNIP16("arpl %%ax, %%ax"),
                SNIP16("sldt %%ax"), SNIP16("larw %%ax, %%ax"), SNIP16("verr %%ax")};
    for (unsigned iopl = 0; iopl < 4; iopl += 3) {
        struct regs r = v86(iopl);
        for (unsigned i = 0; i < sizeof(gp) / sizeof(gp[0]); i++) {
            context("iopl %u, gp %u", iopl, i);
            fault(&r, gp[i], GP, 0);
        }
        for (unsigned i = 0; i < sizeof(ud) / sizeof(ud[0]); i++) {
            context("iopl %u, ud %u", iopl, i);
            fault(&r, ud[i], UD, 0);
        }
    }
}

/* Loading a selector in V86 mode: base = 16 * selector, never a fault. */
TEST(v86, selectors)
{
    u8 *s = SNIP16("movw %%ax, %%es\n\tmovb %%es:(%%bx), %%dl\n\tles (%%bx), %%cx");
    static const u16 sels[] = {0, 1, 3, 0x2000, 0x1fff, 0x7777};
    *mem32(DS_BASE) = 0x43214321;
    for (unsigned i = 0; i < 6; i++) {
        struct regs r = v86(i & 3);
        r.eax = sels[i];
        r.ebx = 0;
        *(u8 *)(sels[i] * 16u) = (u8)(0x60 + i);
        if (done(&r, s)) {
            EQ(T.r.edx & 0xff, 0x60 + i);
            EQ(T.r.es, *mem16(DS_BASE + 2));
        }
    }
}

/* Memory at and above 1 MiB is reached by FFFF:0010 and up; A20 is on. */
TEST(v86, high_memory_area)
{
    u8 *s = SNIP16("movl %%ds:(%%bx), %%eax");
    EACH_MODE(m, M(V86) | M(REAL))
    {
        struct regs r = regs_for(m);
        r.ds = 0xffff;
        r.ebx = 0x10;
        if (done(&r, s))
            EQ(T.r.eax, *(volatile u32 *)0x100000);
        r.ebx = 0xfffc;
        if (done(&r, s))
            EQ(T.r.eax, *(volatile u32 *)(0xffff0 + 0xfffc));
    }
}

/* -- I/O -------------------------------------------------------------------------------------- */

static void io_bit(unsigned port, bool deny)
{
    tss.iomap[port / 8] = (u8)((tss.iomap[port / 8] & ~(1u << port % 8)) | (u32)deny << port % 8);
}

TEST(io, bitmap)
{
    struct snip b = SNIP("inb %%dx, %%al"), w = SNIP("inw %%dx, %%ax"), l = SNIP("inl %%dx, %%eax"),
                ib = SNIP("inb $0x80, %%al"), ob = SNIP("outb %%al, $0x80"), ins = SNIP("insb"),
                outs = SNIP("rep outsw");
    for (unsigned p = 0x80; p < 0x90; p++)
        io_bit(p, false);
    io_bit(0x83, true);
    EACH_MODE(m, CPL3 | M(V86))
    {
        /* V86 looks at the bitmap whatever its IOPL is */
        for (unsigned iopl = 0; iopl < 4; iopl += 3) {
            struct regs r = regs_for(m);
            bool checked = m == V86 || iopl < 3;
            r.eflags = (r.eflags & ~(u32)F_IOPL) | iopl << 12;
            context("%s, iopl %u", mode_name(m), iopl);
            r.edx = 0x80;
            done(&r, code_for(m, b));
            done(&r, code_for(m, w));
            done(&r, code_for(m, ib));
            done(&r, code_for(m, ob));
            if (!checked)
                continue;
            fault(&r, code_for(m, l), GP, 0); /* its last byte is port 83h */
            r.edx = 0x82;
            done(&r, code_for(m, b));
            fault(&r, code_for(m, w), GP, 0);
            r.edx = 0x83;
            fault(&r, code_for(m, b), GP, 0);
            r.edi = es_off(m, 0x100);
            r.esi = ds_off(m, 0x100);
            fault(&r, code_for(m, ins), GP, 0);
            fault(&r, code_for(m, outs), GP, 0);
            r.edx = 0x84;
            done(&r, code_for(m, l));
            r.ecx = 3;
            if (done(&r, code_for(m, outs)))
                EQ(T.r.ecx, CODE32 >> m & 1 ? 0 : 0);
            r.edx = 0x90;
            fault(&r, code_for(m, b), GP, 0);
        }
    }
    /* the bitmap ends with the TSS; every check reads two bytes */
    gdt[SEL_TSS / 8] = DESC((u32)&tss, offsetof(struct test_tss, iomap) + 0x11 - 1, 0x89, 0);
    load_tr(SEL_TSS);
    EACH_MODE(m, CPL3 | M(V86))
    {
        struct regs r = regs_for(m);
        r.eflags &= ~(u32)F_IOPL;
        io_bit(0x78, false);
        r.edx = 0x78;
        done(&r, code_for(m, b));
        r.edx = 0x80; /* byte 10h is there, byte 11h is not */
        fault(&r, code_for(m, b), GP, 0);
    }
    /* no bitmap at all */
    gdt[SEL_TSS / 8] = DESC((u32)&tss, 0x67, 0x89, 0);
    load_tr(SEL_TSS);
    EACH_MODE(m, CPL3 | M(V86))
    {
        struct regs r = regs_for(m);
        r.eflags &= ~(u32)F_IOPL;
        r.edx = 0x80;
        fault(&r, code_for(m, b), GP, 0);
    }
}

/* CLI, STI, POPF and PUSHF by IOPL in protected mode. */
TEST(io, iopl)
{
    struct snip cli = SNIP("cli"), sti = SNIP("sti\n\tnop"), popf = SNIP("popfl"),
                pushf = SNIP("pushfl\n\tpopl %%eax");
    EACH_MODE(m, PROT)
    {
        unsigned cpl = CPL3 >> m & 1 ? 3 : 0;
        for (unsigned iopl = 0; iopl < 4; iopl++) {
            struct regs r = regs_for(m);
            bool may = cpl <= iopl;
            r.eflags |= iopl << 12;
            context("%s, iopl %u", mode_name(m), iopl);
            if (may) {
                if (done(&r, code_for(m, sti)))
                    EQ(T.r.eflags & F_IF, F_IF);
                r.eflags |= F_IF;
                if (done(&r, code_for(m, cli)))
                    EQ(T.r.eflags & F_IF, 0);
            } else {
                fault(&r, code_for(m, sti), GP, 0);
                fault(&r, code_for(m, cli), GP, 0);
            }
            if (done(&r, code_for(m, pushf)))
                EQ(T.r.eax, r.eflags);
            u32 was = r.eflags;
            *mem32(SS_BASE + 0x8000) = 2 | F_CF | ((was ^ F_IF) & F_IF) | ((was ^ F_IOPL) & F_IOPL);
            u32 want = *mem32(SS_BASE + 0x8000);
            if (cpl)
                want = (want & ~(u32)F_IOPL) | (was & F_IOPL);
            if (!may)
                want = (want & ~(u32)F_IF) | (was & F_IF);
            if (done(&r, code_for(m, popf)))
                EQ(T.r.eflags, want);
        }
    }
}

/* -- VME -------------------------------------------------------------------------------------- */

#define NEED_VME                                                                                   \
    do {                                                                                           \
        if (!feat.vme)                                                                             \
            SKIP("no VME");                                                                        \
        write_cr4(read_cr4() | CR4_VME);                                                           \
    } while (0)

TEST(vme, virtual_if)
{
    NEED_VME;
    u8 *cli = SNIP16("cli"), *sti = SNIP16("sti"), *pushf = SNIP16("pushfw\n\tpopw %%ax"),
       *popf = SNIP16("popfw"), *pushfl = SNIP16("pushfl"), *popfl = SNIP16("popfl");
    struct regs r = v86(0);
    if (done(&r, sti))
        EQ(T.r.eflags, F_VM | F_VIF | 2);
    r.eflags |= F_VIF;
    if (done(&r, cli))
        EQ(T.r.eflags, F_VM | 2);
    if (done(&r, pushf))
        EQ(T.r.eax & 0xffff, 2 | F_IOPL | F_IF); /* VIF in the place of IF, IOPL 3 */
    r.eflags = F_VM | 2;
    if (done(&r, pushf))
        EQ(T.r.eax & 0xffff, 2 | F_IOPL);
    r.eflags = F_VM | F_VIP | 2;
    fault(&r, sti, GP, 0); /* an interrupt is waiting */
    done(&r, cli);
    *mem16(SS_BASE + 0x8000) = 2 | F_IF | F_CF;
    fault(&r, popf, GP, 0);
    r.eflags = F_VM | 2;
    if (done(&r, popf))
        EQ(T.r.eflags, F_VM | F_VIF | F_CF | 2);
    *mem16(SS_BASE + 0x8000) = 2 | F_IF | F_TF;
    fault(&r, popf, GP, 0); /* single step is not virtual */
    fault(&r, pushfl, GP, 0);
    fault(&r, popfl, GP, 0);
}

TEST(vme, interrupt_redirection)
{
    NEED_VME;
    u8 *i = SNIP16("int $0x55\n\thlt"), *to = SNIP16("nop"), *iret = SNIP16("iretw");
    u16 *ivt = mem16(0x55 * 4);
    ivt[0] = (u16)ip_of(V86, to);
    ivt[1] = 0x3000;
    for (unsigned iopl = 0; iopl < 4; iopl += 3) {
        struct regs r = v86(iopl);
        u32 on = iopl == 3 ? F_IF : F_VIF;
        context("iopl %u", iopl);
        r.eflags |= on | F_CF;
        if (done(&r, i)) { /* bit clear: through the 8086 program's own table */
            EQ(T.r.eip, ip_of(V86, to) + 2);
            EQ(T.r.cs, 0x3000);
            EQ(T.r.esp, 0x8000 - 6);
            EQ(*mem16(SS_BASE + 0x7ffa), r.eip + 2);
            EQ(*mem16(SS_BASE + 0x7ffc), 0x3000);
            EQ(*mem16(SS_BASE + 0x7ffe), 2 | F_CF | F_IF | F_IOPL);
            EQ(T.r.eflags & (F_IF | F_VIF | F_TF), 0);
        }
        *mem16(SS_BASE + 0x8000) = (u16)ip_of(V86, to);
        *mem16(SS_BASE + 0x8002) = 0x3000;
        *mem16(SS_BASE + 0x8004) = 2 | F_IF;
        r = v86(iopl);
        if (done(&r, iret))
            EQ(T.r.eflags & (F_IF | F_VIF), on);
        tss.redirect[0x55 / 8] |= 1u << 0x55 % 8;
        idt_default(0x55, 3);
        if (iopl == 3) {
            run_at(&r, i);
            expect(0x55, 0);
        } else {
            fault(&r, i, GP, 0);
        }
        tss.redirect[0x55 / 8] = 0;
    }
}

/* Protected-mode virtual interrupts (SDM vol. 3, 20.4). */
TEST(vme, pvi)
{
    if (!feat.vme)
        SKIP("no VME");
    TCG_SKIP("no PVI");
    write_cr4(read_cr4() | CR4_PVI);
    struct snip cli = SNIP("cli"), sti = SNIP("sti");
    EACH_MODE(m, CPL3)
    {
        struct regs r = regs_for(m);
        if (done(&r, code_for(m, sti)))
            EQ(T.r.eflags, F_VIF | 2);
        r.eflags |= F_VIF;
        if (done(&r, code_for(m, cli)))
            EQ(T.r.eflags, 2);
        r.eflags = F_VIP | 2;
        fault(&r, code_for(m, sti), GP, 0);
    }
}
