/*
 * Compatibility mode: 32- and 16-bit code segments under a long-mode kernel, and every way between
 * them and 64-bit code - interrupts and faults, IRET, far branches, call gates, SYSENTER and
 * SYSCALL (SDM vol. 3, 5.8.3.1, 6.14; vol. 2; APM vol. 2, 4.5, 4.8, 6.1 where AMD differs).
 */
#include "guest.h"

extern u8 isr_stubs[];

#define VEC       0x81     /* a gate for CPL 3, without IST      */
#define SEL_C16   SEL_FREE /* 16-bit code, as set up by segments16() */
#define SEL_D16   (SEL_FREE + 8)
#define SEL_GATE  (SEL_FREE + 0x10) /* 16 bytes */
#define SEL_OTHER (SEL_FREE + 0x20)
#define LOW       0x60000000ul /* a page for tests that 32-bit code reaches at any CPL */

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

/* Snippets of 32- and 16-bit code; they end with INT 0x80 all the same. */
#define SNIP32(text)        SNIP(".code32\n\t" text "\n\t.code64")
#define SNIP32_AT(at, text) SNIP_AT(at, ".code32\n\t" text "\n\t.code64")
#define SNIP16(text)        SNIP(".code16\n\t" text "\n\t.code64")
#define SNIP16_AT(at, text) SNIP_AT(at, ".code16\n\t" text "\n\t.code64")
/* A flat DS: what CPL 0 had is null after the IRET to CPL 3. */
#define DS "mov %%ss, %%eax\n\tmov %%eax, %%ds\n\t"

static bool intel(void)
{
    return cpuid(0, 0).ebx == 0x756e6547; /* "Genu" */
}

/* Registers for 32-bit code: nothing in the upper halves. */
static struct regs regs32(unsigned cpl)
{
    struct regs r = regs_for(cpl);
    for (u64 *p = &r.rax; p <= &r.r15; p++)
        *p = (u32)*p;
    r.cs = cpl ? SEL_UCODE32 | 3 : SEL_K32;
    return r;
}

/* An empty page table for LOW. */
static void low_init(void)
{
    *pte_at(LOW, 2) = 0;
    invlpg(LOW);
}

static void put_far(void *at, u64 offset, unsigned size, unsigned sel)
{
    memcpy(at, &offset, size);
    memcpy((u8 *)at + size, &sel, 2);
}

static void put_gate(void *target, unsigned sel, unsigned access)
{
    u64 a = (u64)target;
    gdt[SEL_GATE / 8] =
        (a & 0xffff) | (u64)sel << 16 | (u64)access << 40 | (a >> 16 & 0xffff) << 48;
    gdt[SEL_GATE / 8 + 1] = a >> 32;
}

static struct isr_frame seen;
static u64 seen_top; /* the address behind the frame */
static bool look(struct isr_frame *f)
{
    seen = *f;
    seen_top = (u64)(&f->ss + 1);
    return true;
}

static void expect_frame(const struct regs *r, u64 rip, u64 rsp)
{
    EQ(seen.rip, rip);
    EQ(seen.cs, r->cs);
    EQ(seen.rsp, rsp);
    EQ(seen.ss, r->ss);
    EQ(seen_top, r->cs & 3 ? tss.rsp[0] : rsp & ~15ul);
}

/* -- The code itself ----------------------------------------------------------------------------
 */

TEST(compat, code32)
{
    BOTH_CPLS
    {
        struct regs r = regs32(cpl);
        r.rbx = at_cpl(cpl, buffer);
        r.rdi = 0xfffffff0;
        *(u64 *)buffer = 0x11223344;
        done(&r, SNIP32(DS "mov %%cs, %%eax\n\tmov (%%ebx), %%ecx\n\t" /* */
                           "inc %%ecx\n\tdec %%edi\n\t"                /* 64-bit code: REX */
                           "lea 0x20(%%edi), %%edx\n\t"                /* wraps */
                           "mov 0x12(%%ebx,%%edi), %%esi\n\t"          /* so does an address */
                           "push %%ecx\n\tpop 4(%%ebx)\n\t"
                           "call 1f\n\tjmp 2f\n1: mov (%%esp), %%ebp\n\tret\n2:\n\t"
                           "push %%cs\n\tpop 8(%%ebx)\n\tpushl $-2\n\tpopl 12(%%ebx)"));
        EQ(T.r.rax, r.cs);
        EQ(T.r.rcx, 0x11223345);
        EQ(T.r.rdi, 0xffffffef);
        EQ(T.r.rdx, 0xf);
        EQ(T.r.rsi, 0x00112233); /* one byte on */
        EQ(T.r.rsp, r.rsp);
        EQ(*(u32 *)(buffer + 4), 0x11223345);
        EQ(*(u32 *)(buffer + 8) & 0xffff, r.cs);
        EQ(*(u32 *)(buffer + 12), 0xfffffffe);
        /* What 64-bit mode has no more. */
        r.rax = 0x1b, r.rcx = 0x203, r.rsi = 0x35;
        *(u32 *)buffer = at_cpl(cpl, buffer);
        *(u16 *)(buffer + 4) = (u16)(SEL_UDATA | cpl);
        *(u32 *)(buffer + 8) = 5, *(u32 *)(buffer + 12) = 9;
        done(&r, SNIP32("mov %%ss, %%edx\n\tmov %%edx, %%ds\n\t"
                        "aaa\n\tmov %%eax, %%edi\n\tmov %%esi, %%eax\n\tmov $0x28, %%dl\n\t"
                        "add %%dl, %%al\n\tdaa\n\tmov %%eax, %%esi\n\t"
                        "mov $7, %%eax\n\tbound %%eax, 8(%%ebx)\n\tles (%%ebx), %%ebp\n\t"
                        "arpl %%ax, %%cx\n\tpusha\n\tpopa\n\tpush %%es\n\tpop %%edx"));
        EQ(T.r.rdi, 0x101);
        EQ(T.r.rsi, 0x63);
        EQ(T.r.rcx, 0x203);
        EQ(T.r.rbp, at_cpl(cpl, buffer));
        EQ(T.r.rdx & 0xffff, SEL_UDATA | cpl);
        EQ(T.r.rsp, r.rsp);
    }
}

/* What 64-bit code leaves in the upper halves does not reach 32-bit addresses, in hot code neither: with
 * the first entry, and with one from a loop of entries. */
TEST(compat, upper_halves_do_not_address)
{
    BOTH_CPLS
    {
        struct regs r = regs32(cpl);
        u64 high = 0xdead000000000000ul, at = at_cpl(cpl, buffer);
        u8 *code = SNIP32(DS "mov $200, %%ecx\n"
                             "1: mov 8(%%ebx), %%eax\n\tadd %%eax, 16(%%ebp)\n\t"
                             "mov (,%%esi,4), %%eax\n\tadd %%eax, (%%edi)\n\t"
                             "lea 4(%%ebx), %%edx\n\tmov %%edi, 20(%%edx)\n\t"
                             "dec %%ecx\n\tjnz 1b");
        for (unsigned i = 0; i < 20; i++) {
            memset(buffer, 0, 64);
            *(u32 *)(buffer + 8) = 3, *(u32 *)(buffer + 32) = 5;
            r.rbx = high | at, r.rbp = ~(u64)0xffffffff | at, r.rdi = (high ^ (u64)i << 33) | (at + 4);
            r.rsi = 1ul << 40 | (at + 32) / 4;
            done(&r, code);
            EQ(*(u32 *)(buffer + 16), 600);
            EQ(*(u32 *)(buffer + 4), 1000);
            EQ(*(u32 *)(buffer + 24), (u32)(at + 4));
            EQ(*(u32 *)(buffer + 28), 0);
        }
    }
}

TEST(compat, segments_have_limits)
{
    TCG_SKIP("no segment limits");
    BOTH_CPLS
    {
        struct regs r = regs32(cpl);
        r.rbx = 0xffc, r.rcx = SEL_OTHER | cpl;
        if (!cpl)
            gdt[SEL_OTHER / 8] = DESC((u64)buffer, 0xfff, 0x93, 4);
        else
            gdt[SEL_OTHER / 8] = DESC(at_cpl(3, buffer), 0xfff, 0xf3, 4);
        u8 *at;
        *(u32 *)(buffer + 0xffc) = 0x600d;
        u8 *code = SNIP32_AT(at, "mov %%ecx, %%es\n\tmov %%es:(%%ebx), %%edx\n\tinc %%ebx\n"
                                 "662: mov %%es:(%%ebx), %%edx");
        fault_at(&r, code, at, GP, 0);
        EQ(T.r.rdx, 0x600d);
        /* 64-bit code does not see them */
        done(&r, SNIP32("mov %%ecx, %%es\n\tmov %%es:(%%ebx), %%edx"));
        /* a null selector */
        code = SNIP32_AT(at, "xor %%eax, %%eax\n\tmov %%eax, %%es\n662: mov %%es:(%%ebx), %%edx");
        fault_at(&r, code, at, GP, 0);
        /* code runs up to the limit of CS */
        gdt[SEL_OTHER / 8] = DESC(0, 0x1ff, cpl ? 0xfb : 0x9b, 0xc);
        put_far(buffer, 0x200000, 4, SEL_OTHER | cpl);
        r.rbx = at_cpl(cpl, buffer);
        code = SNIP32_AT(at, DS "662: ljmp *(%%ebx)");
        fault_at(&r, code, at, GP, 0);
    }
}

/* -- Interrupts, faults, IRET -------------------------------------------------------------------
 */

TEST(compat, int_through_64bit_gate)
{
    idt_default(VEC, 3, 0);
    handlers[VEC] = look;
    BOTH_CPLS
    {
        struct regs r = regs32(cpl);
        r.rsp -= 12; /* the frame is aligned all the same */
        r.rflags |= F_CF | F_DF;
        u8 *code = SNIP32("int $0x81\n\tmov %%cs, %%eax\n\tmov %%ss, %%ecx\n\tpushf\n\tpop %%edx");
        done(&r, code);
        expect_frame(&r, at_cpl(cpl, code) + 2, r.rsp);
        EQ(seen.rflags, r.rflags);
        EQ(T.r.rax, r.cs);
        EQ(T.r.rcx, r.ss);
        EQ(T.r.rdx, r.rflags);
        EQ(T.r.rsp, r.rsp);
        EQ(T.r.rbx, r.rbx);
        for (unsigned i = 0; i < 3; i++) { /* INT3, INTO, and INT n of the same vector */
            u8 *at = i == 0 ? SNIP32("int3") : i == 1 ? SNIP32("into") : SNIP32("int $4");
            unsigned vec = i ? OF : BP;
            r.rflags = 2 | F_OF;
            run_at(&r, at);
            expect(vec, 0);
            EQ(T.r.rip, at_cpl(cpl, at) + (i == 2 ? 2 : 1));
            EQ(T.r.cs, r.cs);
        }
        r.rflags = 2;
        done(&r, SNIP32("into"));
        r.rax = 4, r.rbx = at_cpl(cpl, buffer);
        u8 *at;
        memset(buffer, 0, 8);
        code = SNIP32_AT(at, DS "662: bound %%eax, (%%ebx)");
        fault_at(&r, code, at, BR, 0);
        if (cpl && !on_tcg) /* TCG's error code has 16 times the vector */
            fault(&r, SNIP32("int $0x82"), GP, 0x82 * 8 + 2); /* its DPL is 0 */
    }
}

TEST(compat, faults)
{
    low_init();
    BOTH_CPLS
    {
        struct regs r = regs32(cpl);
        u8 *at, *code;
        r.rbx = LOW + 0x123;
        code = SNIP32_AT(at, DS "662: mov (%%ebx), %%ecx");
        fault_at(&r, code, at, PF, cpl ? PF_U : 0);
        EQ(T.cr2, LOW + 0x123);
        EQ(T.r.cs, r.cs);
        EQ(T.r.rsp, r.rsp);
        code = SNIP32_AT(at, DS "662: mov %%ecx, (%%ebx)");
        fault_at(&r, code, at, PF, PF_W | (cpl ? PF_U : 0));
        code = SNIP32_AT(at, DS "662: incl (%%ebx)");
        if (!on_tcg) /* TCG reads first */
            fault_at(&r, code, at, PF, PF_W | (cpl ? PF_U : 0));
        code = SNIP32_AT(at, DS "662: jmp *%%ebx");
        run_at(&r, code);
        expect(PF, (feat.nx ? PF_I : 0) | (cpl ? PF_U : 0));
        EQ(T.cr2, LOW + 0x123);
        EQ(T.r.rip, LOW + 0x123);
        /* a push; ESP stays */
        r.rsp = LOW + 2;
        fault(&r, SNIP32("push %%ecx"), PF, PF_W | (cpl ? PF_U : 0));
        EQ(T.cr2, LOW - 2);
        fault(&r, SNIP32("call .+16"), PF, PF_W | (cpl ? PF_U : 0));
        fault(&r, SNIP32("ret"), PF, cpl ? PF_U : 0);
        if (!on_tcg || !cpl) { /* TCG reads their frames as the supervisor */
            fault(&r, SNIP32("lret"), PF, cpl ? PF_U : 0);
            fault(&r, SNIP32("iret"), PF, cpl ? PF_U : 0);
        }
        r = regs32(cpl);
        fault(&r, SNIP32("ud2"), UD, 0);
        r.rcx = 0, r.rdx = 0;
        code = SNIP32_AT(at, "662: div %%ecx");
        run_at(&r, code);
        expect(DE, 0);
        EQ(trap_rip(), (u64)at);
        if (cpl) {
            fault(&r, SNIP32("cli"), GP, 0);
            fault(&r, SNIP32("mov %%cr0, %%eax"), GP, 0);
            r.rbx = (u64)buffer;
            code = SNIP32_AT(at, DS "662: mov (%%ebx), %%ecx");
            fault_at(&r, code, at, PF, PF_U | PF_P);
        }
    }
}

/* Maps a page where one is missing. */
static bool repair(struct isr_frame *f)
{
    (void)f;
    *(u32 *)map_new(LOW, PG_URW) = 77;
    return true;
}

TEST(compat, fault_resumed)
{
    handlers[PF] = repair;
    BOTH_CPLS
    {
        low_init();
        struct regs r = regs32(cpl);
        r.rbx = LOW;
        done(&r, SNIP32(DS "push %%ebx\n\tpop %%ecx\n\tmov (%%ecx), %%edx\n\tincl (%%ebx)\n\t"
                           "mov (%%ebx), %%esi"));
        EQ(T.r.rdx, 77);
        EQ(T.r.rsi, 78);
        low_init(); /* as a write this time, then as a push */
        done(&r, SNIP32(DS "incl (%%ebx)\n\tmov (%%ebx), %%esi"));
        EQ(T.r.rsi, 78);
        low_init();
        r.rsp = LOW + 0x800;
        done(&r, SNIP32("push %%ebx\n\tpop %%esi"));
        EQ(T.r.rsi, LOW);
    }
}

TEST(compat, iret)
{
    BOTH_CPLS
    {
        /* 32-bit frames within one privilege: to 32-bit code, to 64-bit code */
        for (unsigned wide = 0; wide < 2; wide++) {
            context("cpl %u, to %u-bit code", cpl, wide ? 64 : 32);
            struct regs r = regs32(cpl);
            u32 *sp = (u32 *)(run_stack + sizeof(run_stack) / 2);
            u8 *target = wide ? SNIP("mov %%rsp, %%rcx\n\tmov %%cs, %%eax\n\tmov %%ss, %%edx\n\t"
                                     "mov $-1, %%r9")
                              : SNIP32("mov %%esp, %%ecx\n\tmov %%cs, %%eax\n\tmov %%ss, %%edx");
            sp[0] = (u32)at_cpl(cpl, target);
            sp[1] = wide ? (cpl ? SEL_UCODE | 3 : SEL_KCODE) : (u32)r.cs;
            sp[2] = 2 | F_CF | F_ID;
            done(&r, SNIP32("iret"));
            EQ(T.r.rax, sp[1]);
            EQ(T.r.rcx, r.rsp + 12);
            EQ(T.r.rdx, r.ss);
            EQ(T.r.rflags & (F_CF | F_ID | F_ZF), F_CF | F_ID);
        }
        struct regs r = regs32(cpl);
        r.rflags |= F_NT; /* there are no tasks to return to */
        fault(&r, SNIP32("iret"), GP, 0);
    }
    /* to CPL 3 */
    for (unsigned wide = 0; wide < 2; wide++) {
        context("to %u-bit code at CPL 3", wide ? 64 : 32);
        struct regs r = regs32(0);
        u32 *sp = (u32 *)r.rsp, usp = (u32)at_cpl(3, run_stack + 4096);
        u8 *target = wide ? SNIP("mov %%rsp, %%rcx\n\tmov %%cs, %%eax\n\tmov %%ds, %%edx\n\t"
                                 "mov $-1, %%r9")
                          : SNIP32("mov %%esp, %%ecx\n\tmov %%cs, %%eax\n\tmov %%ds, %%edx");
        sp[0] = (u32)at_cpl(3, target);
        sp[1] = (wide ? SEL_UCODE : SEL_UCODE32) | 3;
        sp[2] = 2 | F_IF | F_IOPL;
        sp[3] = usp;
        sp[4] = SEL_UDATA | 3;
        done(&r, SNIP32("iret"));
        EQ(T.r.rax, sp[1]);
        EQ(T.r.rcx, usp);
        EQ(T.r.rdx, 0);
        EQ(T.r.rflags & (F_IF | F_IOPL), F_IF | F_IOPL);
        sp[4] = SEL_KDATA;
        fault(&r, SNIP32("iret"), GP, SEL_KDATA);
        sp[4] = 3; /* 64-bit code could not run with a null SS at CPL 3 either */
        fault(&r, SNIP32("iret"), GP, 0);
    }
}

TEST(compat, null_selectors_across_iret)
{
    BOTH_CPLS
    {
        for (unsigned sel = 0; sel < 4; sel++) {
            for (unsigned wide = 0; wide < 2; wide++) {
                struct regs r = wide ? regs_for(cpl) : regs32(cpl);
                u8 *code = wide ? SNIP("mov %%es, %%eax\n\tmov %%ds, %%ebx\n\tmov %%fs, %%ecx")
                                : SNIP32("mov %%es, %%eax\n\tmov %%ds, %%ebx\n\tmov %%fs, %%ecx");
                asm volatile("mov %0, %%es\n\tmov %0, %%ds\n\tmov %0, %%fs" ::"r"(sel));
                done(&r, code);
                EQ(T.r.rax, cpl ? 0 : sel);
                EQ(T.r.rbx, cpl ? 0 : sel);
                if (!on_tcg)
                    EQ(T.r.rcx, cpl ? 0 : sel);
            }
        }
    }
}

static volatile unsigned interrupts;
static bool count(struct isr_frame *f)
{
    (void)f;
    apic_write(APIC_EOI, 0);
    seen = *f;
    if (++interrupts < 100)
        apic_self_ipi(0x83);
    else
        *(u32 *)buffer = 1;
    return true;
}

TEST(compat, interrupts)
{
    apic_enable();
    idt_default(0x83, 0, 0);
    handlers[0x83] = count;
    BOTH_CPLS
    {
        struct regs r = regs32(cpl);
        interrupts = 0;
        *(u32 *)buffer = 0;
        r.rbx = at_cpl(cpl, buffer);
        r.rflags |= F_IF;
        apic_self_ipi(0x83);
        done(&r, SNIP32(DS "xor %%ecx, %%ecx\n1: inc %%ecx\n\tcmpl $0, (%%ebx)\n\tje 1b"));
        EQ(interrupts, 100);
        EQ(seen.cs, r.cs);
        EQ(seen.rsp, r.rsp);
        EQ(T.r.rsp, r.rsp);
    }
}

/* -- Far branches -------------------------------------------------------------------------------
 */

TEST(compat, far_branches)
{
    BOTH_CPLS
    {
        unsigned cs64 = cpl ? SEL_UCODE | 3 : SEL_KCODE;
        struct regs r = regs32(cpl);
        r.rbx = at_cpl(cpl, buffer);
        /* JMP to 64-bit code and back */
        u8 *there = SNIP("mov $-1, %%r8\n\tmov %%cs, %%ecx\n\tljmp *8(%%rbx)");
        u8 *back = SNIP32("mov %%cs, %%edx\n\tdec %%edi");
        put_far(buffer, at_cpl(cpl, there), 4, cs64);
        put_far(buffer + 8, at_cpl(cpl, back), 4, (u32)r.cs);
        done(&r, SNIP32(DS "ljmp *(%%ebx)"));
        EQ(T.r.rcx, cs64);
        EQ(T.r.rdx, r.cs);
        EQ(T.r.rdi, r.rdi - 1);
        EQ(T.r.r8, ~0ul);
        EQ(trap_rip(), (u64)back + 5);
        /* CALL: 32-bit words on the stack, whatever is called */
        u8 *sub = SNIP("mov (%%rsp), %%ecx\n\tmov 4(%%rsp), %%edx\n\tmov %%rsp, %%rsi\n\tlretl");
        put_far(buffer, at_cpl(cpl, sub), 4, cs64);
        u8 *at;
        u8 *code = SNIP32_AT(at, DS "lcall *(%%ebx)\n662: mov %%cs, %%edi");
        done(&r, code);
        EQ(T.r.rcx, at_cpl(cpl, at));
        EQ(T.r.rdx & 0xffff, r.cs);
        EQ(T.r.rsi, r.rsp - 8);
        EQ(T.r.rdi, r.cs);
        EQ(T.r.rsp, r.rsp);
        /* and from 64-bit code, which can only return to where 32 bits reach */
        struct regs k = regs_for(cpl);
        k.rbx = r.rbx;
        sub = SNIP32("mov (%%esp), %%ecx\n\tmov 4(%%esp), %%edx\n\tmov %%esp, %%esi\n\tlret");
        put_far(buffer, at_cpl(cpl, sub), 4, (u32)r.cs);
        if (!cpl) /* DS is flat there already; at CPL 3 the stack's segment is used anyway */
            k.rax = SEL_KDATA;
        code = SNIP_AT(at, "lcall *(%%rbx)\n662: mov %%cs, %%edi");
        done(&k, code);
        EQ(T.r.rcx, at_cpl(cpl, at));
        EQ(T.r.rdx & 0xffff, cs64);
        EQ(T.r.rsi, k.rsp - 8);
        EQ(T.r.rdi, cs64);
        EQ(T.r.rsp, k.rsp);
        /* RET with 64-bit words to 32-bit code */
        k.rax = r.cs, k.rcx = at_cpl(cpl, back);
        done(&k, SNIP("push %%rax\n\tpush %%rcx\n\tlretq"));
        EQ(T.r.rdx, r.cs);
        /* faults */
        put_far(buffer, at_cpl(cpl, there), 4, SEL_OTHER | cpl);
        code = SNIP32_AT(at, DS "662: ljmp *(%%ebx)");
        u64 dpl = cpl << 5;
        gdt[SEL_OTHER / 8] = DESC(0, 0xfffff, 0x9b | dpl, 0xe); /* L and D */
        if (!on_tcg)
            fault_at(&r, code, at, GP, SEL_OTHER);
        gdt[SEL_OTHER / 8] = DESC(0, 0xfffff, 0x1b | dpl, 0xa);
        fault_at(&r, code, at, NP, SEL_OTHER);
        gdt[SEL_OTHER / 8] = DESC(0, 0xfffff, 0x93 | dpl, 0xc);
        fault_at(&r, code, at, GP, SEL_OTHER);
        gdt[SEL_OTHER / 8] = DESC(0, 0x67, 0x89 | dpl, 0); /* a TSS: no tasks here */
        fault_at(&r, code, at, GP, SEL_OTHER);
        gdt[SEL_OTHER / 8] = DESC(0, 0, 0x85 | dpl, 0); /* a task gate */
        fault_at(&r, code, at, GP, SEL_OTHER);
        gdt[SEL_OTHER / 8] = DESC(0, 0xfffff, cpl ? 0x9b : 0xfb, 0xa); /* another privilege */
        fault_at(&r, code, at, GP, SEL_OTHER);
    }
}

TEST(compat, far_return_to_outer_level)
{
    for (unsigned wide = 0; wide < 2; wide++) {
        context("to %u-bit code", wide ? 64 : 32);
        struct regs r = regs32(0);
        u32 *sp = (u32 *)r.rsp, usp = (u32)at_cpl(3, run_stack + 4096);
        u8 *target = wide ? SNIP("mov %%rsp, %%rcx\n\tmov %%cs, %%eax\n\tmov $-1, %%r9")
                          : SNIP32("mov %%esp, %%ecx\n\tmov %%cs, %%eax");
        sp[0] = (u32)at_cpl(3, target);
        sp[1] = (wide ? SEL_UCODE : SEL_UCODE32) | 3;
        sp[2] = 0x99; /* released */
        sp[3] = usp;
        sp[4] = SEL_UDATA | 3;
        done(&r, SNIP32("lret $4"));
        EQ(T.r.rax, sp[1]);
        EQ(T.r.rcx, usp + 4);
        EQ(T.r.ss, SEL_UDATA | 3);
    }
}

TEST(compat, switches_in_a_loop)
{
    /* Long enough to be worth better code, in three code sizes. */
    BOTH_CPLS
    {
        unsigned cs64 = cpl ? SEL_UCODE | 3 : SEL_KCODE;
        struct regs r = regs32(cpl);
        r.rbx = at_cpl(cpl, buffer);
        r.rcx = 5000, r.rdi = 0, r.rsi = 0, r.rdx = 0;
        u8 *a, *b = SNIP("add 32(%%rbx), %%rsi\n\tinc %%rdx\n\tpush %%rdx\n\tpop %%r9\n\t"
                         "ljmp *8(%%rbx)");
        u8 *code = SNIP32_AT(a, DS "662: add 32(%%ebx), %%edi\n\tpush %%edi\n\tpop %%edi\n\t"
                                   "inc %%edx\n\tdec %%ecx\n\tjz 1f\n\tljmp *(%%ebx)\n1:");
        put_far(buffer, at_cpl(cpl, b), 4, cs64);
        put_far(buffer + 8, at_cpl(cpl, a), 4, (u32)r.cs);
        *(u64 *)(buffer + 32) = 0x100000003;
        done(&r, code);
        EQ(T.r.rdi, 15000);
        EQ(T.r.rdx, 9999);
        EQ(T.r.r9, 9998);
        EQ(T.r.rsi & 0xffffffff, 14997); /* the upper half of RSI may be lost in 32-bit code */
    }
}

/* -- Call gates ---------------------------------------------------------------------------------
 */

TEST(compat, call_gate)
{
    u8 *kernel = SNIP("mov %%rsp, %%rcx\n\tmov (%%rsp), %%rdx\n\tmov 8(%%rsp), %%rsi\n\t"
                      "mov 16(%%rsp), %%rdi\n\tmov 24(%%rsp), %%r8\n\tmov %%ss, %%r9d\n\t"
                      "mov %%cs, %%r10d\n\tlretq");
    u8 *at, *code;
    struct regs r = regs32(3);
    r.rbx = at_cpl(3, buffer);
    r.rsp -= 20;
    put_far(buffer, 0xffffffff, 4, SEL_GATE | 3); /* the offset is ignored */
    put_gate(kernel, SEL_KCODE, 0xec);
    code = SNIP32_AT(at, DS "lcall *(%%ebx)\n662: mov %%cs, %%eax\n\tmov %%ss, %%ebp");
    done(&r, code);
    EQ(T.r.rcx, tss.rsp[0] - 32);
    EQ(T.r.rdx, at_cpl(3, at));
    EQ(T.r.rsi, SEL_UCODE32 | 3);
    EQ(T.r.rdi, r.rsp);
    EQ(T.r.r8, SEL_UDATA | 3);
    EQ(T.r.r9, 0); /* a null SS */
    EQ(T.r.r10, SEL_KCODE);
    EQ(T.r.rax, SEL_UCODE32 | 3);
    EQ(T.r.rbp, SEL_UDATA | 3);
    EQ(T.r.rsp, r.rsp);

    /* many times */
    r.rbp = 3000;
    done(&r, SNIP32(DS "1: lcall *(%%ebx)\n\tdec %%ebp\n\tjnz 1b"));
    EQ(T.r.rsp, r.rsp);

    /* from CPL 0: the same stack, eight bytes a word */
    struct regs k = regs32(0);
    k.rbx = (u64)buffer;
    code = SNIP32_AT(at, "lcall *(%%ebx)\n662: mov %%cs, %%eax");
    done(&k, code);
    EQ(T.r.rcx, k.rsp - 16);
    EQ(T.r.rdx, (u64)at);
    EQ(T.r.rsi, SEL_K32);
    EQ(T.r.rax, SEL_K32);
    EQ(T.r.rsp, k.rsp);
    /* JMP: nothing is pushed */
    u8 *stop = SNIP("mov %%rsp, %%rcx\n\tmov $-1, %%r9");
    put_gate(stop, SEL_KCODE, 0xec);
    done(&k, SNIP32("ljmp *(%%ebx)"));
    EQ(T.r.rcx, k.rsp);

    /* faults */
    code = SNIP32_AT(at, DS "662: lcall *(%%ebx)");
    put_gate(kernel, SEL_KCODE, 0x8c); /* DPL 0 */
    fault_at(&r, code, at, GP, SEL_GATE);
    put_gate(kernel, SEL_KCODE, 0x6c); /* not present */
    fault_at(&r, code, at, NP, SEL_GATE);
    put_gate(kernel, SEL_KCODE, 0xe4); /* 16-bit call gates are no more */
    fault_at(&r, code, at, GP, SEL_GATE);
    put_gate(kernel, SEL_KCODE, 0xec);
    u8 *jump = SNIP32_AT(at, DS "662: ljmp *(%%ebx)");
    fault_at(&r, jump, at, GP, SEL_KCODE); /* JMP does not raise privilege */
    code = SNIP32_AT(at, DS "662: lcall *(%%ebx)");
    put_gate(kernel, 0, 0xec);
    fault_at(&r, code, at, GP, 0);
    put_gate(kernel, SEL_KDATA, 0xec);
    fault_at(&r, code, at, GP, SEL_KDATA);
    if (!on_tcg) {
        put_gate(kernel, SEL_K32, 0xec); /* only to 64-bit code */
        fault_at(&r, code, at, GP, SEL_K32);
        put_gate((u8 *)NONCANON, SEL_KCODE, 0xec);
        fault_at(&r, code, at, GP, 0);
    }
    put_gate(kernel, SEL_KCODE, 0xec);
    gdt[SEL_GATE / 8 + 1] |= 0x1ful << 40; /* no upper half of a gate */
    fault_at(&r, code, at, GP, SEL_GATE);
    put_gate(kernel, SEL_KCODE, 0xec);

    /* faults of the pushes: at CPL 3, with nothing changed */
    u64 rsp0 = tss.rsp[0];
    tss.rsp[0] = UVA + 4096 + 16;
    map_new(UVA + 4096, PG_KRW);
    run_at(&r, code);
    expect(PF, PF_W);
    EQ(T.cr2 >> 12, UVA >> 12);
    EQ(trap_rip(), (u64)at);
    EQ(T.r.cs, SEL_UCODE32 | 3);
    EQ(T.r.rsp, r.rsp);
    tss.rsp[0] = NONCANON;
    fault_at(&r, code, at, SS, 0);
    tss.rsp[0] = rsp0;
    low_init();
    r.rbx = LOW;
    fault_at(&r, code, at, PF, PF_U); /* the pointer */
}

TEST(compat, descriptor_page_fault)
{
    /* An implicit access of user code: as the supervisor's. */
    u64 pa = map_new(UVA, PG_URW);
    gdt[SEL_LDT / 8] = DESC(UVA, 0xffff, 0x82, 0);
    gdt[SEL_LDT / 8 + 1] = UVA >> 32;
    *(u64 *)(pa + 8) = DESC(0, 0xfffff, 0xfb, 0xc);
    asm volatile("lldt %w0" ::"r"(SEL_LDT));
    struct regs r = regs32(3);
    r.rbx = at_cpl(3, buffer);
    u8 *at, *there = SNIP32("mov %%cs, %%ecx");
    put_far(buffer, at_cpl(3, there), 4, 8 + 4 + 3);
    u8 *code = SNIP32_AT(at, DS "662: ljmp *(%%ebx)");
    done(&r, code);
    EQ(T.r.rcx, 8 + 4 + 3);
    unmap(UVA);
    fault_at(&r, code, at, PF, 0);
    EQ(T.cr2 & ~7ul, UVA + 8);
    asm volatile("lldt %w0" ::"r"(0));
}

TEST(compat, interrupt_stack_page_fault)
{
    idt_default(VEC, 3, 0);
    handlers[VEC] = look;
    struct regs r = regs32(3);
    u64 rsp0 = tss.rsp[0];
    u8 *code = SNIP32("int $0x81");
    tss.rsp[0] = UVA + 4096;
    fault(&r, code, PF, PF_W);
    EQ(T.cr2 >> 12, UVA >> 12);
    EQ(T.r.cs, SEL_UCODE32 | 3);
    tss.rsp[0] = NONCANON;
    fault(&r, code, SS, 0);
    tss.rsp[0] = rsp0;
    done(&r, code);
}

/* -- SYSENTER, SYSCALL --------------------------------------------------------------------------
 */

TEST(compat, sysenter)
{
    struct regs r = regs32(3);
    if (!intel()) {
        TCG_SKIP("SYSENTER in compatibility mode although the vendor is AMD");
        fault(&r, SNIP32("sysenter"), UD, 0);
        fault(&r, SNIP32("sysexit"), UD, 0);
        return;
    }
    u8 *at, *back,
        *entry = SNIP_AT(at, "mov %%rsp, %%rax\n\tmov %%cs, %%ebx\n\tmov %%ss, %%esi\n\tpushfq\n\t"
                             "pop %%r8\n\tmov $-1, %%r9\n662: sysexit");
    wrmsr(MSR_SYSENTER_CS, SEL_SYSENTER);
    wrmsr(MSR_SYSENTER_EIP, (u64)entry);
    wrmsr(MSR_SYSENTER_ESP, (u64)run_stack + 4096);
    u8 *code = SNIP32_AT(back, "sysenter\n\tud2\n662: mov %%cs, %%ebp\n\tmov %%ss, %%edi");
    r.rflags |= F_IF | F_CF | F_DF;
    r.rcx = r.rsp - 64;
    r.rdx = at_cpl(3, back);
    done(&r, code);
    EQ(T.r.rax, (u64)run_stack + 4096);
    EQ(T.r.rbx, SEL_SYSENTER);
    EQ(T.r.rsi, SEL_SYSENTER + 8);
    EQ(T.r.r8 & (F_IF | F_CF | F_DF), F_CF | F_DF);
    EQ(T.r.r9, ~0ul);
    EQ(T.r.rbp, (SEL_SYSENTER + 16) | 3);
    EQ(T.r.rdi, (SEL_SYSENTER + 24) | 3);
    EQ(T.r.rsp, r.rsp - 64);
    /* many times */
    r.rcx = r.rsp, r.rdi = 3000;
    code = SNIP32_AT(back, "1: sysenter\n\tud2\n662: dec %%edi\n\tjnz 1b");
    r.rdx = at_cpl(3, back);
    done(&r, code);
    EQ(T.r.rdi, 0);
    /* from 32-bit code at CPL 0 */
    struct regs k = regs32(0);
    k.rcx = k.rsp, k.rdx = at_cpl(3, back), k.rdi = 1;
    done(&k, SNIP32("sysexit"));
    EQ(T.r.cs, (SEL_SYSENTER + 16) | 3);
    /* an entry point that is not there: a fault of the kernel's, on its stack */
    wrmsr(MSR_SYSENTER_EIP, UVA + 5);
    run_at(&r, SNIP32("sysenter"));
    expect(PF, feat.nx ? PF_I : 0);
    EQ(T.cr2, UVA + 5);
    EQ(T.r.rip, UVA + 5);
    EQ(T.r.cs, SEL_SYSENTER);
    EQ(T.r.rsp, (u64)run_stack + 4096);
    wrmsr(MSR_SYSENTER_CS, 0);
    fault(&r, SNIP32("sysenter"), GP, 0);
    fault(&r, SNIP32("sysexit"), GP, 0);
}

TEST(compat, syscall)
{
    struct regs r = regs32(3);
    u8 *at, *entry = SNIP("mov %%rsp, %%rax\n\tmov %%cs, %%ebx\n\tmov %%ss, %%esi\n\tmov %%r11, "
                          "%%rdi\n\tmov %%rcx, %%rdx\n\tmov $-1, %%r9\n\tsysretl");
    wrmsr(MSR_CSTAR, (u64)entry);
    r.rflags |= F_IF | F_CF | F_DF;
    u8 *code = SNIP32_AT(at, "syscall\n662: mov %%cs, %%ebp\n\tpushf\n\tpop %%eax");
    if (intel()) {
        fault(&r, code, UD, 0); /* in 64-bit mode only */
        fault(&r, SNIP32("sysret"), UD, 0);
        struct regs k = regs32(0);
        fault(&k, SNIP32("sysret"), UD, 0);
    } else {
        done(&r, code);
        EQ(T.r.rbx, SEL_KCODE);
        EQ(T.r.rsi, SEL_KDATA);
        EQ(T.r.rdi & ~(u64)F_RF, r.rflags);
        EQ(T.r.rdx, at_cpl(3, at));
        EQ(T.r.rbp, SEL_UCODE32 | 3);
        EQ(T.r.rsp, r.rsp);
        EQ(T.r.rax, r.rflags);
        r.rsi = 3000;
        wrmsr(MSR_CSTAR, (u64)SNIP("sysretl"));
        done(&r, SNIP32("1: syscall\n\tdec %%esi\n\tjnz 1b"));
        wrmsr(MSR_CSTAR, UVA);
        run_at(&r, code);
        expect(PF, feat.nx ? PF_I : 0);
        EQ(T.r.rip, UVA);
        EQ(T.r.cs, SEL_KCODE);
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1ul);
        fault(&r, code, UD, 0);
    }
    /* SYSRET to 32-bit code, from a 64-bit kernel: both vendors */
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    struct regs k = regs_for(0);
    u8 *user = SNIP32("mov %%cs, %%eax\n\tmov %%ss, %%edx\n\tdec %%edi");
    k.rcx = at_cpl(3, user) | 0xabcdul << 32; /* the upper half is ignored */
    k.r11 = F_IF | F_CF | 2;
    k.rdi = 5;
    run_at(&k, SNIP("sysretl"));
    expect(DONE, 0);
    EQ(T.r.rax, SEL_UCODE32 | 3);
    EQ(T.r.rdx, (SEL_UCODE32 + 8) | 3);
    EQ(T.r.rdi, 4);
    EQ(T.r.rflags & F_IF, F_IF);
}

/* -- 16-bit code --------------------------------------------------------------------------------
 */

/* A 16-bit code segment with its base at `code`, a data and stack segment on `buffer`. */
static struct regs regs16(unsigned cpl, const void *code)
{
    struct regs r = regs32(cpl);
    gdt[SEL_C16 / 8] = DESC(at_cpl(cpl, code), 0xffff, cpl ? 0xfb : 0x9b, 0);
    gdt[SEL_D16 / 8] = DESC(at_cpl(cpl, buffer), 0x6fff, cpl ? 0xf3 : 0x93, 0);
    r.cs = SEL_C16 | cpl;
    r.ss = SEL_D16 | cpl;
    r.rip = 0;
    r.rsp = 0x4000;
    return r;
}
#define DS16 "mov %%ss, %%ax\n\tmov %%ax, %%ds\n\t"

static void done16(const struct regs *r)
{
    run(r);
    if (T.vector != DONE)
        fail("got vector %lu error 0x%lx at rip 0x%lx (cr2 0x%lx)", T.vector, T.error, T.r.rip,
             T.cr2);
}

static void fault16(const struct regs *r, u64 rip, unsigned vector, u64 error)
{
    run(r);
    expect(vector, error);
    EQ(T.r.rip, rip);
    EQ(T.r.cs, r->cs);
    EQ((u16)T.r.rsp, (u16)r->rsp);
}

TEST(compat, code16)
{
    BOTH_CPLS
    {
        *(u16 *)(buffer + 0x10) = 0x1234;
        u8 *code = SNIP16(DS16 "mov $0xfff0, %%bx\n\tmov $0x20, %%si\n\tmov (%%bx,%%si), %%cx\n\t"
                               "push %%cx\n\tpop %%dx\n\tpushl $0x55667788\n\tpopl 0x20\n\t"
                               "call 1f\n\tjmp 2f\n1: mov %%sp, %%bp\n\tmov (%%bp), %%di\n\tret\n"
                               "2: mov %%cs, %%bx\n\tinc %%si");
        struct regs r = regs16(cpl, code);
        r.rsp = 0xabcd4000; /* only SP is loaded, and used */
        done16(&r);
        EQ(T.r.rcx & 0xffff, 0x1234);
        EQ(T.r.rcx >> 16, r.rcx >> 16);
        EQ(T.r.rdx & 0xffff, 0x1234);
        EQ(*(u32 *)(buffer + 0x20), 0x55667788);
        EQ(*(u16 *)(buffer + 0x3ffe), T.r.rdi & 0xffff);
        EQ(T.r.rbx & 0xffff, r.cs);
        EQ(T.r.rsi & 0xffff, 0x21);
        EQ(T.r.rsp & 0xffff, 0x4000);
        if (on_tcg)
            continue;
        /* limits, which TCG does not have */
        code = SNIP16(DS16 "mov %%ds:0x6ffe, %%cx\n\tmov %%ds:0x6fff, %%cx");
        r = regs16(cpl, code);
        fault16(&r, 8, GP, 0);
        code = SNIP16("push %%cx");
        r = regs16(cpl, code);
        r.rsp = 0x7002;
        fault16(&r, 0, SS, 0);
        r.rsp = 0; /* FFFEH is past it too */
        fault16(&r, 0, SS, 0);
        code = SNIP16(".byte 0x66, 0xe9\n\t.long 0x10000"); /* jmpl past CS's limit */
        r = regs16(cpl, code);
        fault16(&r, 0, GP, 0);
    }
}

TEST(compat, code16_interrupts_and_faults)
{
    low_init();
    idt_default(VEC, 3, 0);
    handlers[VEC] = look;
    apic_enable();
    idt_default(0x83, 0, 0);
    handlers[0x83] = count;
    BOTH_CPLS
    {
        u8 *code = SNIP16("nop\n\tint $0x81\n\tmov %%cs, %%ax\n\tmov %%ss, %%cx\n\tinc %%dx");
        struct regs r = regs16(cpl, code);
        if (!cpl) { /* the handler gets RSP as it is: it must be an address as well */
            gdt[SEL_D16 / 8] = DESC(0, 0xfffff, 0x93, 0xc);
            r.rsp = (u64)run_stack + 8192;
        }
        done16(&r);
        r.rsp = cpl ? seen.rsp >> 16 << 16 | (u16)r.rsp : r.rsp; /* IRET to CPL 3 loads SP */
        expect_frame(&r, 3, r.rsp);
        EQ(T.r.rax & 0xffff, r.cs);
        EQ(T.r.rcx & 0xffff, r.ss);
        EQ(T.r.rdx & 0xffff, (r.rdx + 1) & 0xffff);
        EQ((u16)T.r.rsp, (u16)r.rsp);
        /* an interrupt from outside */
        if (cpl) {
            interrupts = 0;
            *(u32 *)buffer = 0;
            code = SNIP16(DS16 "1: inc %%cx\n\tcmpw $0, 0\n\tje 1b");
            r = regs16(3, code);
            r.rflags |= F_IF;
            apic_self_ipi(0x83);
            done16(&r);
            EQ(interrupts, 100);
            EQ(seen.cs, r.cs);
        }
        /* page faults: CR2 is linear */
        code = SNIP16("mov %%cx, %%es\n\tmov %%es:0x10, %%ax");
        r = regs16(cpl, code);
        gdt[SEL_OTHER / 8] = DESC(LOW, 0xffff, cpl ? 0xf3 : 0x93, 0);
        r.rcx = SEL_OTHER | cpl;
        fault16(&r, 2, PF, cpl ? PF_U : 0);
        EQ(T.cr2, LOW + 0x10);
        /* ... of a fetch: the code goes on into a page that is not there */
        u64 pa = map_new(LOW, PG_URW);
        *(u8 *)(pa + 0xfff) = 0x90;
        gdt[SEL_C16 / 8] = DESC(LOW + 0x800, 0xffff, cpl ? 0xfb : 0x9b, 0);
        r.rip = 0x7ff;
        fault16(&r, 0x800, PF, (cpl ? PF_U : 0) | (feat.nx ? PF_I : 0));
        EQ(T.cr2, LOW + 0x1000);
        /* ... of the stack */
        code = SNIP16("pushal");
        r = regs16(cpl, code);
        gdt[SEL_D16 / 8] = DESC(LOW + 0x1000, 0xffff, cpl ? 0xf3 : 0x93, 0);
        r.rsp = 0x800;
        fault16(&r, 0, PF, PF_W | (cpl ? PF_U : 0));
        low_init();
    }
}

TEST(compat, code16_far)
{
    BOTH_CPLS
    {
        unsigned cs64 = cpl ? SEL_UCODE | 3 : SEL_KCODE;
        /* to 64-bit code and back, with an offset of 32 and one of 16 bits */
        u8 *there = SNIP("mov %%cs, %%ecx\n\tmov $-1, %%r9\n\tdata16 ljmp *(%%rbx)");
        u8 *code = SNIP16(DS16 "ljmpl *0x10\n\t.org 661b + 0x40\n\tmov %%cs, %%dx\n\tinc %%si");
        struct regs r = regs16(cpl, code);
        r.rbx = at_cpl(cpl, buffer);
        put_far(buffer + 0x10, at_cpl(cpl, there), 4, cs64);
        put_far(buffer, 0x40, 2, SEL_C16 | cpl);
        done16(&r);
        EQ(T.r.rcx, cs64);
        EQ(T.r.rdx & 0xffff, r.cs);
        EQ(T.r.rsi & 0xffff, (r.rsi + 1) & 0xffff);
        /* a far call within 16-bit code: 16-bit words */
        code = SNIP16(DS16 "lcallw *0x10\n\tmov $5, %%si\n\tint $0x80\n\t"
                           ".org 661b + 0x40\n\tmov %%sp, %%bp\n\tmov (%%bp), %%cx\n\t"
                           "mov 2(%%bp), %%dx\n\tlretw");
        r = regs16(cpl, code);
        put_far(buffer + 0x10, 0x40, 2, SEL_C16 | cpl);
        done16(&r);
        EQ(T.r.rcx & 0xffff, 8);
        EQ(T.r.rdx & 0xffff, r.cs);
        EQ(T.r.rbp & 0xffff, 0x3ffc);
        EQ(T.r.rsi & 0xffff, 5);
        EQ(T.r.rsp & 0xffff, 0x4000);
    }
    /* through a 64-bit call gate, and back by LRET with eight bytes a word */
    context("call gate");
    u8 *kernel = SNIP("mov %%rsp, %%rcx\n\tmov (%%rsp), %%rdx\n\tmov 8(%%rsp), %%rsi\n\t"
                      "mov 16(%%rsp), %%rdi\n\tlretq");
    put_gate(kernel, SEL_KCODE, 0xec);
    u8 *code = SNIP16(DS16 "lcallw *0x10\n\tmov %%cs, %%bp");
    struct regs r = regs16(3, code);
    put_far(buffer + 0x10, 0, 2, SEL_GATE | 3);
    done16(&r);
    EQ(T.r.rcx, tss.rsp[0] - 32);
    EQ(T.r.rdx, 8);
    EQ(T.r.rsi, r.cs);
    EQ(T.r.rdi & 0xffff, r.rsp);
    EQ(T.r.rbp & 0xffff, r.cs);
    EQ(T.r.rsp & 0xffff, r.rsp);
    /* 16-bit IRET */
    BOTH_CPLS
    {
        code = SNIP16("iretw\n\t.org 661b + 0x40\n\tmov %%cs, %%cx\n\tmov %%sp, %%dx");
        r = regs16(cpl, code);
        ((u16 *)(buffer + 0x4000))[0] = 0x40;
        ((u16 *)(buffer + 0x4000))[1] = SEL_C16 | cpl;
        ((u16 *)(buffer + 0x4000))[2] = 2 | F_CF;
        done16(&r);
        EQ(T.r.rcx & 0xffff, r.cs);
        EQ(T.r.rdx & 0xffff, 0x4006);
        EQ(T.r.rflags & F_CF, F_CF);
    }
}
