/*
 * SYSCALL and SYSRET in loops, up to the round that is different.  A VMM may have a short way for
 * the usual pair, taken after the first few; each of these tests changes, in the kernel's part of
 * the loop or between two runs of it, one of the things that way depends on.
 */
#include "guest.h"

enum { WARM = 300 };

/* The part of the kernel's code at a LSTAR: R13 counts down to the round that is different. */
#define LAST(text) "dec %%r13\n\tjnz 7f\n\t" text "\n7: sysretq"

static void kernel_at(const u8 *entry, u64 fmask)
{
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_FMASK, fmask);
}

/* An endless loop of system calls with R12 counting, and a user's registers for it. */
static u8 *endless(u8 **behind)
{
    u8 *at;
    u8 *code = SNIP_AT(
        at, "1: inc %%r12\n\tsyscall\n662: mov %%rax, %%rdx\n\tpush %%r14\n\tpop %%r15\n\tjmp 1b");
    *behind = at;
    return code;
}

static struct regs user_regs(u64 rounds)
{
    struct regs r = regs_for(3);
    r.r12 = 0;
    r.r13 = rounds;
    return r;
}

TEST(syscalls, flags_there_and_back)
{
    TCG_SKIP("SYSCALL clears the arithmetic flags");
    static const u64 masks[] = {F_IF | F_TF | F_DF,
                                F_IF | F_TF | F_DF | F_ARITH | F_IOPL | F_NT | F_AC | F_ID,
                                F_IF | F_TF, F_TF | F_DF | F_CF | F_OF, 0};
    static const u64 bits[] = {F_CF, F_PF, F_AF, F_ZF, F_SF, F_OF, F_DF, F_ID, F_AC, F_NT};
    /* The kernel's flags at its entry to RBX, R11 there to RBP; it leaves with others. */
    u8 *entry = SNIP("pushfq\n\tpop %%rbx\n\tmov %%r11, %%rbp\n\tmov %%rsi, %%r11\n\tsysretq");
    u8 *code =
        SNIP("1: push %%rdi\n\tpopfq\n\tsyscall\n\tpushfq\n\tpop %%rdx\n\tdec %%r13\n\tjnz 1b");
    for (unsigned m = 0; m < sizeof(masks) / sizeof(masks[0]); m++) {
        kernel_at(entry, masks[m]);
        for (unsigned i = 0; i < 40; i++) {
            struct regs r = user_regs(8);
            r.rdi = r.rsi = F_IF | 2;
            for (unsigned k = 0; k < sizeof(bits) / sizeof(bits[0]); k++) {
                r.rdi |= random64() & 1 ? bits[k] : 0;
                r.rsi |= random64() & 1 ? bits[k] : 0;
            }
            r.rflags = F_IF | 2; /* which CPL 3 cannot change */
            context("mask 0x%lx, user 0x%lx, kernel 0x%lx", masks[m], r.rdi, r.rsi);
            if (!done(&r, code))
                return;
            EQ(T.r.rbp, r.rdi);
            EQ(T.r.rbx, (r.rdi & ~masks[m]) | 2);
            EQ(T.r.rdx, r.rsi);
        }
    }
}

TEST(syscalls, registers_stay)
{
    kernel_at(SNIP("sysretq"), F_IF | F_TF | F_DF);
    struct regs r = regs_for(3);
    u8 *at,
        *code = SNIP_AT(
            at, "1: mov $20, %%ecx\n2: mov %%rcx, (%%rbx)\n\tsyscall\n662: mov (%%rbx), %%rcx\n\t"
                "loop 2b\n\tsyscall");
    r.rbx = at_cpl(3, buffer);
    for (unsigned i = 0; i < 50; i++) {
        done(&r, code);
        EQ(T.r.rcx, at_cpl(3, at) + (u64)(trap_rip() - (u64)at) - 2);
        EQ(T.r.r11, r.rflags); /* LOOP leaves the flags alone */
        for (unsigned g = 0; g < 16; g++)
            if (g != 1 && g != 11)
                check_eq("register", (&T.r.rax)[g], (&r.rax)[g]);
        r.rflags = 0x46;
    }
}

TEST(syscalls, to_a_noncanonical_address)
{
    TCG_SKIP("SYSRET to a non-canonical address is not checked (as on AMD)");
    static const u64 to[] = {NONCANON, 0xffff7ffffffffffful, 0x1234567800000000ul};
    u8 *behind, *code = endless(&behind);
    for (unsigned i = 0; i < 3; i++) {
        kernel_at(SNIP(LAST("mov %%rbp, %%rcx\n\tmov $0x80000000, %%eax\n\tadd %%eax, %%eax")),
                  F_IF | F_TF | F_DF);
        struct regs r = user_regs(WARM);
        r.rbp = to[i];
        r.rflags = F_IF | 2;
        run_at(&r, code);
        expect(GP, 0);
        EQ(T.r.cs, SEL_KCODE); /* Intel's: still at CPL 0 */
        EQ(T.r.rcx, to[i]);
        EQ(T.r.rflags & (F_ARITH | F_IF), F_CF | F_PF | F_ZF | F_OF); /* of the ADD */
        EQ(T.r.rsp, r.rsp);
        EQ(T.r.r12, WARM);
    }
}

TEST(syscalls, without_sce)
{
    /* Cleared and set again between two runs of the same loop, and by the kernel in it. */
    u8 *behind, *code = endless(&behind);
    u8 *entry = SNIP(
        "push %%rcx\n\tpush %%r11\n\tdec %%r13\n\tjnz 7f\n\tmov $0xc0000080, %%ecx\n\trdmsr\n\t"
        "and $-2, %%eax\n\twrmsr\n7: pop %%r11\n\tpop %%rcx\n662: sysretq");
    kernel_at(entry, F_IF | F_TF | F_DF);
    for (unsigned i = 0; i < 3; i++) {
        struct regs r = user_regs(WARM);
        run_at(&r, code);
        expect(UD, 0); /* the SYSRET */
        EQ(T.r.cs, SEL_KCODE);
        EQ(T.r.r12, WARM);
        r.r12 = 0;
        run_at(&r, code);
        expect(UD, 0); /* the SYSCALL */
        EQ(T.r.cs, SEL_UCODE | 3);
        EQ(T.r.r12, 1);
        EQ(T.r.rcx, r.rcx);
        EQ(T.r.r11, r.r11);
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    }
}

TEST(syscalls, msrs_that_change_in_the_loop)
{
    /* Two entries, each of which installs the other one, with its own flags and selectors. */
    u8 *a, *b;
    u8 *entry = SNIP_AT(
        b, "inc %%r14\n\tpush %%rcx\n\tmov %%cs, %%edx\n\tlea (%%r8,%%rdx), %%r8\n\tpushfq\n\tpop "
           "%%rdx\n\t"
           "and $1, %%edx\n\tadd %%rdx, %%r9\n\tmov $0xc0000082, %%ecx\n\tmov %%rbp, %%rax\n\t"
           "xor %%edx, %%edx\n\twrmsr\n\tinc %%ecx\n\tinc %%ecx\n\tmov $0x700, %%eax\n\twrmsr\n\t"
           "mov $0xc0000081, %%ecx\n\tmov %%rsi, %%rdx\n\tor $0x100, %%edx\n\txor %%eax, "
           "%%eax\n\twrmsr\n\t"
           "pop %%rcx\n\tsysretq\n"
           "662: inc %%r15\n\tpush %%rcx\n\tmov %%cs, %%edx\n\tlea (%%r8,%%rdx), "
           "%%r8\n\tpushfq\n\tpop "
           "%%rdx\n\t"
           "and $1, %%edx\n\tadd %%rdx, %%r9\n\tmov $0xc0000082, %%ecx\n\tmov %%rbx, %%rax\n\t"
           "xor %%edx, %%edx\n\twrmsr\n\tinc %%ecx\n\tinc %%ecx\n\tmov $0x701, %%eax\n\twrmsr\n\t"
           "mov $0xc0000081, %%ecx\n\tmov %%rsi, %%rdx\n\txor %%eax, %%eax\n\twrmsr\n\t"
           "pop %%rcx\n\tsysretq");
    TCG_SKIP("SYSCALL clears the arithmetic flags");
    a = entry;
    kernel_at(a, 0x701);
    struct regs r = user_regs(2 * WARM);
    r.rbx = (u64)a, r.rbp = (u64)b, r.rsi = rdmsr(MSR_STAR) >> 32;
    r.r8 = r.r9 = r.r14 = r.r15 = 0;
    u8 *code = SNIP("1: stc\n\tsyscall\n\tdec %%r13\n\tjnz 1b\n\tmov %%cs, %%edi");
    done(&r, code);
    EQ(T.r.r14, WARM);
    EQ(T.r.r15, WARM);
    EQ(T.r.r8, WARM * (SEL_KCODE + (SEL_KCODE | 0x100)));
    EQ(T.r.r9, WARM); /* CF is masked at one of them */
    EQ(T.r.rdi, (SEL_UCODE32 + 16) | 3);
    wrmsr(MSR_STAR, r.rsi << 32);
}

TEST(syscalls, control_registers_for_user_code)
{
    /* What the kernel changes in a round is so for the user behind that round's SYSRET. */
    struct {
        const char *name;
        u8 *entry;
        u64 cr, vector;
    } c[] = {
        {"CR4.TSD", SNIP(LAST("mov %%rbp, %%cr4")), default_cr4 | CR4_TSD, GP},
        {"CR0.TS", SNIP(LAST("mov %%rbp, %%cr0")), DEFAULT_CR0 | 8, NM},
        {"CR4.OSFXSR", SNIP(LAST("mov %%rbp, %%cr4")), default_cr4 & ~(u64)CR4_OSFXSR, UD},
    };
    u8 *at,
        *code =
            SNIP_AT(at, "1: inc %%r12\n\tsyscall\n662: rdtsc\n\txorps %%xmm1, %%xmm2\n\tjmp 1b");
    for (unsigned i = 0; i < 3; i++)
        for (unsigned again = 0; again < 2; again++) {
            context("%s", c[i].name);
            kernel_at(c[i].entry, F_IF | F_TF | F_DF);
            struct regs r = user_regs(WARM);
            r.rbp = c[i].cr;
            run_at(&r, code);
            expect((unsigned)c[i].vector, 0);
            EQ(trap_rip(), (u64)at + (i ? 2 : 0));
            EQ(T.r.cs, SEL_UCODE | 3);
            EQ(T.r.r12, WARM);
            write_cr0(DEFAULT_CR0);
            write_cr4(default_cr4);
        }
}

TEST(syscalls, breakpoints_for_user_code)
{
    u8 *behind, *code = endless(&behind);
    for (unsigned data = 0; data < 2; data++) {
        context("%s", data ? "data" : "instruction");
        kernel_at(data ? SNIP(LAST("mov %%rbp, %%dr1\n\tmov $0xd0000c, %%eax\n\tmov %%rax, %%dr7"))
                       : SNIP(LAST("mov %%rbp, %%dr1\n\tmov $12, %%eax\n\tmov %%rax, %%dr7")),
                  F_IF | F_TF | F_DF);
        struct regs r = user_regs(WARM);
        r.rbp = data ? r.rsp - 8 : at_cpl(3, behind);
        run_at(&r, code);
        expect(DB, 0);
        EQ(T.dr6 & 0x600f, 2);
        EQ(trap_rip(), (u64)behind + (data ? 5 : 0));
        EQ(T.r.cs, SEL_UCODE | 3);
        EQ(T.r.r12, WARM);
        write_dr7(0x400);
        write_dr6(0xffff0ff0);
    }
}

static u64 steps, step_rip[4];

static bool step_handler(struct isr_frame *f)
{
    if (steps < 4)
        step_rip[steps] = f->rip;
    steps++;
    write_dr6(0xffff0ff0);
    return steps < 3; /* the third one ends the run */
}

TEST(syscalls, single_step_from_sysret)
{
    /* TF from R11: the first trap is behind the instruction that SYSRET goes to, as with POPF. Then
     * a step over SYSCALL, with TF masked. */
    u8 *behind, *code = endless(&behind);
    TCG_SKIP("traps before the first instruction");
    for (unsigned again = 0; again < 2; again++) {
        kernel_at(SNIP(LAST("or $0x100, %%r11")), F_IF | F_TF | F_DF);
        struct regs r = user_regs(WARM);
        steps = 0;
        handlers[DB] = step_handler;
        run_at(&r, code);
        expect(DB, 0);
        EQ(T.r.r12, WARM);
        EQ(step_rip[0], at_cpl(3, behind) + 3);
        EQ(step_rip[1], at_cpl(3, behind) + 5);
        EQ(step_rip[2], at_cpl(3, behind) + 7);
    }
    /* User code that steps itself: no trap at CPL 0, TF in R11, stepping goes on after SYSRET. */
    u8 *at;
    code = SNIP_AT(at, "1: syscall\n\tdec %%r13\n\tjnz 1b\n\tpushfq\n\torl $0x100, "
                       "(%%rsp)\n\tpopfq\n662: syscall\n\t"
                       "nop\n\tnop\n\tnop\n\tnop");
    kernel_at(SNIP("mov %%r11, %%rbx\n\tpushfq\n\tpop %%rdi\n\tsysretq"), F_IF | F_TF | F_DF);
    struct regs r = user_regs(WARM);
    steps = 0;
    run_at(&r, code);
    expect(DB, 0);
    EQ(T.r.rbx & F_TF, F_TF);
    EQ(T.r.rdi & F_TF, 0);
    for (unsigned i = 0; i < 3; i++) /* behind the NOPs, or from SYSRET's target on */
        CHECK(step_rip[i] >= at_cpl(3, at) + 2 && step_rip[i] <= at_cpl(3, at) + 5);
}

static u8 *return_to;
static volatile u64 elsewhere, wrong_flags;

static bool at_return_handler(struct isr_frame *f)
{
    irq_count[f->vector]++;
    elsewhere += f->rip != at_cpl(3, return_to) || (f->cs & 3) != 3;
    wrong_flags += !(f->rflags & F_IF);
    apic_write(APIC_EOI, 0);
    return true;
}

TEST(syscalls, interrupts_that_wait_for_sysret)
{
    /* One raised in the kernel, with IF = 0 or under STI's shadow, arrives behind SYSRET and
     * nowhere else: every time, every other time, and where R11 has IF = 0 never. */
    enum { VEC = 0x61, ROUNDS = 400 };
    u8 *at;
#define RAISE "movl $0, 0x310(%%rbx)\n\tmovl $0x44061, 0x300(%%rbx)\n\t"
    u8 *code = SNIP_AT(at, "1: syscall\n662: add %%r13, %%r12\n\tdec %%r13\n\tjnz 1b");
    return_to = at;
    struct {
        u8 *entry;
        u64 fmask, want;
    } c[] = {
        {SNIP(RAISE "sysretq"), F_IF | F_TF | F_DF, ROUNDS},
        {SNIP("test $1, %%r13b\n\tjz 1f\n\t" RAISE "\n1: sysretq"), F_IF | F_TF | F_DF, ROUNDS / 2},
        {SNIP(RAISE "sti\n\tsysretq"), F_IF | F_TF | F_DF, ROUNDS},
        {SNIP("sti\n\tcli\n\t" RAISE "sysretq"), F_IF | F_TF | F_DF, ROUNDS},
        {SNIP("and $~0x200, %%r11\n\t" RAISE "sysretq"), F_IF | F_TF | F_DF, 0},
    };
    for (unsigned i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        context("case %u", i);
        handlers[VEC] = at_return_handler;
        irq_count[VEC] = 0;
        elsewhere = wrong_flags = 0;
        kernel_at(c[i].entry, c[i].fmask);
        struct regs r = user_regs(ROUNDS);
        r.rbx = APIC_BASE;
        r.rflags = F_IF | 2;
        done(&r, code);
        EQ(T.r.r12, (u64)ROUNDS * (ROUNDS + 1) / 2);
        EQ(irq_count[VEC], c[i].want);
        EQ(elsewhere, 0);
        EQ(wrong_flags, 0);
        handlers[VEC] = irq_count_handler; /* what waits still */
        sti();
        asm volatile("nop\n\tnop");
        cli();
    }
}

static volatile u64 ticks;

static bool tick_handler(struct isr_frame *f)
{
    ticks++;
    apic_write(APIC_EOI, 0);
    return true;
}

TEST(syscalls, storm)
{
    /* Interrupts anywhere in user code, in the kernel with interrupts on, and at SYSCALL and
     * SYSRET. */
    enum { VEC = 0x50, ROUNDS = 200000 };
    kernel_at(SNIP("push %%rcx\n\tpush %%r11\n\tsti\n\tlea (%%r12,%%r13), %%r12\n\trol $7, "
                   "%%r12\n\tcli\n\t"
                   "pop %%r11\n\tpop %%rcx\n\tsysretq"),
              F_IF | F_TF | F_DF);
    u8 *code = SNIP("1: stc\n\tsyscall\n\tadc $0, %%r14\n\tstd\n\tsyscall\n\tcld\n\tpush "
                    "%%r14\n\tpop %%r15\n\tdec %%r13\n\t"
                    "jnz 1b");
    struct regs r = user_regs(ROUNDS);
    r.r14 = 0;
    done(&r, code);
    u64 want = T.r.r12;
    handlers[VEC] = tick_handler;
    r.rflags |= F_IF;
    u64 start = rdtsc();
    for (ticks = 0; ticks < 50 && rdtsc() - start < 40000000000ul;) {
        apic_timer_periodic(VEC, 30000);
        bool ok = done(&r, code);
        apic_write(APIC_LVTT, 0x10000);
        if (!ok)
            break;
        EQ(T.r.r12, want);
        EQ(T.r.r14, ROUNDS);
        EQ(T.r.r15, ROUNDS);
        EQ(T.r.rsp, r.rsp);
    }
    CHECK(ticks >= 5);
    sti();
    asm volatile("nop\n\tnop");
    cli();
}

TEST(syscalls, stacks)
{
    /* RSP is the user's over SYSCALL, whatever it is; the kernel has its own in the upper half, and
     * may return with another one, far from the last. */
    map_new(KVA, PG_KRW);
    map_new(UVA + 0x1000, PG_URW);
    map_new(UVA2 + 0x1000, PG_URW);
    u8 *entry = SNIP("xchg %%rsp, %%rbx\n\tpush %%rcx\n\tpush %%r11\n\tcall 1f\n\tjmp 2f\n1: "
                     "ret\n2: pop %%r11\n\tpop %%rcx\n\t"
                     "xchg %%rsp, %%rbx\n\tadd %%rsi, %%rsp\n\tneg %%rsi\n\tsysretq");
    kernel_at(entry, F_IF | F_TF | F_DF);
    struct regs r = user_regs(WARM);
    r.rbx = KVA + 0x1000, r.rsi = UVA2 - UVA;
    r.rsp = UVA + 0x2000;
    done(&r, SNIP("1: push %%r13\n\tsyscall\n\tpush %%r13\n\tpop %%r14\n\tpush %%r14\n\tpop "
                  "%%rax\n\tadd %%rax, %%r12\n\t"
                  "syscall\n\tpop %%rax\n\tadd %%rax, %%r12\n\tdec %%r13\n\tjnz 1b"));
    EQ(T.r.r12, 2 * ((u64)WARM * (WARM + 1) / 2));
    EQ(T.r.rsp, r.rsp);
    EQ(T.r.rbx, r.rbx);
    static const u64 odd[] = {
        NONCANON + 8, 0, 8, 0xffffffffffffffff, 0x7ffffffffff8, KVA + 0x800, 0xdead000000000000};
    u8 *code = SNIP("1: mov %%rbp, %%rsp\n\tsyscall\n\tcmp %%rbp, %%rsp\n\tjne 2f\n\tdec "
                    "%%r13\n\tjnz 1b\n2: nop");
    for (unsigned i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
        context("rsp 0x%lx", odd[i]);
        r = user_regs(WARM);
        r.rbx = KVA + 0x1000, r.rsi = 0, r.rbp = odd[i];
        done(&r, code);
        EQ(T.r.r13, 0);
        EQ(T.r.rsp, odd[i]);
        EQ(T.r.rbx, KVA + 0x1000);
    }
    /* and its first use behind SYSRET faults as it should */
    r = user_regs(WARM);
    r.rbx = KVA + 0x1000, r.rsi = 0, r.rbp = NONCANON + 8;
    run_at(&r,
           SNIP("1: syscall\n\tdec %%r13\n\tjnz 1b\n\tmov %%rbp, %%rsp\n\tsyscall\n\tpop %%rax"));
    TCG_SKIP("raises #GP");
    expect(SS, 0);
    EQ(T.r.cs, SEL_UCODE | 3);
    EQ(T.r.rsp, NONCANON + 8);
}

TEST(syscalls, address_spaces)
{
    /* The kernel changes to another address space in every call; there is other code at the same
     * address behind SYSRET there. With flushes, and with PCIDs without. */
    u64 a = page_alloc(), b = page_alloc();
    map(UVA, a, PG_P | PG_U);
    u64 *other = space_with(UVA, b | PG_P | PG_U), home = read_cr3();
    /* 1: syscall; inc r14 or inc r15; dec r13; jnz 1b; int 80h */
    static const u8 text[] = {0x0f, 0x05, 0x49, 0xff, 0xc6, 0x49,
                              0xff, 0xcd, 0x75, 0xf6, 0xcd, 0x80};
    memcpy((void *)a, text, sizeof(text));
    memcpy((void *)b, text, sizeof(text));
    ((u8 *)b)[4] = 0xc7;
    kernel_at(SNIP("mov %%cr3, %%rax\n\tmov %%rbx, %%cr3\n\tor %%rbp, %%rax\n\tmov %%rax, "
                   "%%rbx\n\tsysretq"),
              F_IF | F_TF | F_DF);
    for (unsigned pcid = 0; pcid <= (feat.pcid ? 1u : 0u); pcid++)
        for (unsigned again = 0; again < 3; again++) {
            context("pcid %u", pcid);
            if (pcid)
                write_cr4(default_cr4 | CR4_PCIDE);
            struct regs r = user_regs(20000);
            r.rbp = pcid ? 1ul << 63 : 0;
            r.rbx = (u64)other | (pcid ? 7 : 0) | r.rbp;
            r.r14 = r.r15 = 0;
            r.rip = UVA;
            run(&r);
            expect(DONE, 0);
            EQ(T.r.r14, 10000);
            EQ(T.r.r15, 10000);
            write_cr3(home);
            write_cr4(default_cr4);
        }
}

TEST(syscalls, alignment_checks_for_user_code)
{
    /* AC with CR0.AM: what SYSRET brings back is checked from the next access on. */
    u8 *at;
    write_cr0(DEFAULT_CR0 | CR0_AM);
    kernel_at(SNIP(LAST("or $0x40000, %%r11")), F_IF | F_TF | F_DF | F_AC);
    TCG_SKIP("has no alignment checks");
    for (unsigned again = 0; again < 2; again++) {
        struct regs r = user_regs(WARM);
        r.rbx = at_cpl(3, buffer) + 1;
        run_at(&r, SNIP_AT(at, "1: inc %%r12\n\tsyscall\n662: mov (%%rbx), %%rax\n\tjmp 1b"));
        expect(AC, 0);
        EQ(trap_rip(), (u64)at);
        EQ(T.r.r12, WARM);
    }
    write_cr0(DEFAULT_CR0);
}

TEST(syscalls, back_to_compatibility_mode)
{
    u8 *behind, *code = endless(&behind);
    kernel_at(SNIP("dec %%r13\n\tjnz 1f\n\tmov %%rbp, %%rcx\n\tsysretl\n1: sysretq"),
              F_IF | F_TF | F_DF);
    u8 *narrow = SNIP(".code32\n\tmov %%cs, %%eax\n\tdec %%ebx\n\t.byte 0x40, 0x40\n\t.code64");
    for (unsigned i = 0; i < 4; i++) {
        struct regs r = user_regs(WARM);
        r.rbp = at_cpl(3, narrow);
        r.rbx = 5;
        run_at(&r, code);
        expect(DONE, 0);
        EQ(T.r.rax, (SEL_UCODE32 | 3) + 2); /* 40h is INC EAX there */
        EQ(T.r.rbx, 4);
        EQ(T.r.r12, WARM);
    }
}

TEST(syscalls, user_memory_under_ac)
{
    /* A page that user code has just touched, read and written by the kernel between STAC and CLAC
     * in every call, with flags that are live over the accesses; up to the round in which that is
     * not allowed. */
    if (!feat.smap)
        SKIP("no SMAP");
    u8 *at;
    struct {
        const char *name;
        u8 *last;
        u64 error;
    } c[5];
#define COPY                                                                                       \
    "mov (%%rdi), %%rax\n\tadc $1, %%rax\n\tmov %%rax, 8(%%rdi)\n\tadcl $0, 0xffc(%%rdi)\n\t"
#define KERNEL(last)                                                                               \
    SNIP("dec %%r13\n\tjnz 7f\n\t" last "\n7: stac\n\tstc\n\t" COPY "clac\n\tsysretq")
    c[0].name = "without AC";
    c[0].last = KERNEL("clac\n\tmov (%%rdi), %%rax");
    c[0].error = PF_P;
    c[1].name = "AC cleared by POPFQ";
    c[1].last =
        KERNEL("stac\n\tmov (%%rdi), %%rax\n\tpushfq\n\tandl $~0x40000, (%%rsp)\n\tpopfq\n\tmov "
               "(%%rdi), %%rax");
    c[1].error = PF_P;
    c[2].name = "written, read only";
    c[2].last = KERNEL(
        "mov %%rbp, (%%rbx)\n\tinvlpg (%%rdi)\n\tstac\n\tmov (%%rdi), %%rax\n\tmov %%rax, (%%rdi)");
    c[2].error = PF_P | PF_W;
    c[3].name = "not there any more";
    c[3].last = KERNEL("movq $0, (%%rbx)\n\tinvlpg (%%rdi)\n\tstac\n\tmov (%%rdi), %%rax");
    c[3].error = 0;
    c[4].name = "on to a page that is not there";
    c[4].last = KERNEL("stac\n\tmov %%rax, 0xffc(%%rdi)");
    c[4].error = PF_W;
    u8 *code = SNIP_AT(
        at, "1: inc %%r12\n\tmov %%r12, (%%rdi)\n\tsyscall\n662: mov 8(%%rdi), %%rax\n\tsub %%r12, "
            "%%rax\n\tadd %%rax, %%r14\n\tjmp 1b");
    for (unsigned i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        context("%s", c[i].name);
        u64 pa = map_new(UVA, PG_URW);
        map_new(KVA, PG_KRW);
        write_cr4(default_cr4 | CR4_SMAP);
        kernel_at(c[i].last, F_IF | F_TF | F_DF | F_AC);
        struct regs r = user_regs(20000);
        r.rdi = UVA, r.r14 = 0;
        /* the kernel's view of the PTE, which the identity map has at a supervisor's address */
        r.rbx = (u64)pte_at(UVA, 1), r.rbp = pa | PG_P | PG_U | PG_A | PG_D;
        r.rsp = at_cpl(0, run_stack + 8192);
        run_at(&r, code);
        expect(PF, c[i].error);
        EQ(T.r.cs, SEL_KCODE);
        EQ(T.cr2, i == 4 ? UVA + 4096 : UVA);
        EQ(T.r.r12, 20000);
        EQ(T.r.r14, 2 * 19999); /* 1 and the carry */
        EQ(*(u32 *)(pa + 0xffc), 0);
        write_cr4(default_cr4);
        unmap(UVA);
    }
}
