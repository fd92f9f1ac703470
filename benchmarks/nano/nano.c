/*
 * What virtualisation costs, one operation at a time, after the "nanobenchmarks" of K. Adams and
 * O. Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS
 * 2006), section 6.3, and more of the same sort.  A kernel of its own on the library of
 * tests/guest: each "test" here is one operation in a loop between two RDTSC.
 *
 * Prints "NANO name ticks-per-1000-operations", and "NANO-CLOCK tsc" at the beginning and the end,
 * from whose arrival the harness learns what a tick is.
 */
#include "../../tests/guest/guest.h"

enum { REPEATS = 5 };
#define ENOUGH 40000000ul /* ticks of one sample: about 20 ms */

/* Four times `text` in a loop of r14 rounds; the ticks end up in rax.  r15 is taken; what else is
 * used must be said in the registers that it starts with. */
#define READ_TSC "rdtsc\n\tshl $32, %%rdx\n\tor %%rdx, %%rax\n\t"
#define UNROLL   4
#define LOOP(text)                                                                                 \
    SNIP(READ_TSC "mov %%rax, %%r15\n772:\n\t.rept 4\n\t" text                                     \
                  "\n\t.endr\n\tdec %%r14\n\tjnz 772b\n\t" READ_TSC "sub %%r15, %%rax")

/* Handlers without a line of C: they step over the instruction or just return. */
asm(".pushsection .text\n"
    "raw_iret: iretq\n"
    "raw_skip2: addq $2, (%rsp)\n\tiretq\n"                  /* DIV r32: 2 bytes         */
    "raw_skip3: addq $8, %rsp\n\taddq $3, (%rsp)\n\tiretq\n" /* error code; MOV: 3 bytes */
    "raw_map: addq $8, %rsp\n\torq $1, (%rsi)\n\tiretq\n"    /* makes the PTE present    */
    "raw_sysret: sysretq\n"
    "raw_kernel: swapgs\n\tmovq %rsp, %gs:0\n\tmovq %gs:8, %rsp\n\tpushq %rcx\n\tpushq %r11\n\t"
    "popq %r11\n\tpopq %rcx\n\tmovq %gs:0, %rsp\n\tswapgs\n\tsysretq\n"
    ".popsection");
extern u8 raw_iret[], raw_skip2[], raw_skip3[], raw_map[], raw_sysret[], raw_kernel[];

static u64 empty_loop; /* ticks of 1000 rounds of nothing */

static u64 sample(struct regs *r, u8 *code, u64 rounds)
{
    struct regs copy = *r;
    copy.r14 = rounds;
    if (!done(&copy, code))
        return 0;
    return T.r.rax;
}

/* The least of some samples, in ticks for 1000 operations. */
static u64 measure(struct regs *r, u8 *code)
{
    u64 rounds = 64, best = ~0ul;
    for (;;) {
        u64 t = sample(r, code, rounds);
        if (!t)
            return 0;
        if (t > ENOUGH)
            break;
        rounds *= t < ENOUGH / 8 ? 8 : 2;
    }
    for (unsigned i = 0; i < REPEATS; i++) {
        u64 t = sample(r, code, rounds);
        if (!t)
            return 0;
        u64 per = t * 1000 / rounds;
        best = per < best ? per : best;
    }
    return best;
}

static void show(const char *name, struct regs *r, u8 *code)
{
    u64 t = measure(r, code);
    if (t)
        print("NANO %s %lu\n", name, t > empty_loop ? (t - empty_loop) / UNROLL : 1);
}

static void gate(unsigned vector, void *handler)
{
    idt_set(vector, handler, SEL_KCODE, 0, 0xee); /* interrupt gate, DPL 3, no IST */
}

TEST(nano, _begin)
{
    print("NANO-CLOCK %lu\n", rdtsc());
    struct regs r = regs_for(0);
    empty_loop = measure(&r, LOOP(""));
}

/* -- Calls, flags, what user code does too ----------------------------------------------------- */

TEST(nano, callret)
{
    struct regs r = regs_for(3);
    show("callret", &r, LOOP("call 1f\n\tjmp 2f\n1:\tret\n2:"));
}
TEST(nano, callind)
{
    struct regs r = regs_for(3);
    show("callind", &r, LOOP("lea 1f(%%rip), %%rbx\n\tcall *%%rbx\n\tjmp 2f\n1:\tret\n2:"));
}
TEST(nano, pushf)
{
    struct regs r = regs_for(3);
    show("pushf+popf", &r, LOOP("pushfq\n\tpopfq"));
}
TEST(nano, cpuid)
{
    struct regs r = regs_for(3);
    show("cpuid", &r, LOOP("xor %%eax, %%eax\n\tcpuid"));
}
TEST(nano, rdtsc)
{
    struct regs r = regs_for(3);
    show("rdtsc", &r, LOOP("rdtsc"));
}

/* -- Into the kernel and back ------------------------------------------------------------------ */

TEST(nano, syscall)
{
    struct regs r = regs_for(3);
    wrmsr(MSR_LSTAR, (u64)raw_sysret);
    show("syscall", &r, LOOP("syscall"));
    wrmsr(MSR_LSTAR, (u64)raw_kernel);
    wrmsr(MSR_KGS, (u64)buffer);
    *(u64 *)(buffer + 8) = (u64)run_stack + 4096;
    show("syscall-stack", &r, LOOP("syscall"));
}
TEST(nano, int)
{
    gate(0x81, raw_iret);
    struct regs r = regs_for(3);
    show("int", &r, LOOP("int $0x81"));
    r = regs_for(0);
    show("int-cpl0", &r, LOOP("int $0x81"));
}
TEST(nano, iret)
{
    struct regs r = regs_for(0);
    show("iret", &r,
         LOOP("mov %%rsp, %%rbx\n\tpushq $0x18\n\tpush %%rbx\n\tpushfq\n\tpushq $0x10\n\t"
              "lea 1f(%%rip), %%rdx\n\tpush %%rdx\n\tiretq\n1:"));
}
TEST(nano, divzero)
{
    gate(DE, raw_skip2);
    struct regs r = regs_for(3);
    r.rcx = 0;
    show("divzero", &r, LOOP("div %%ecx"));
}
TEST(nano, pgfault)
{
    gate(PF, raw_skip3);
    struct regs r = regs_for(3);
    r.rdi = UVA;
    map_new(UVA, PG_URW);
    unmap(UVA);
    show("pgfault", &r, LOOP("mov (%%rdi), %%rax"));
    r = regs_for(0);
    r.rdi = KVA;
    map_new(KVA, PG_KRW);
    unmap(KVA);
    show("pgfault-cpl0", &r, LOOP("mov (%%rdi), %%rax"));
}
/* A page that is made present by the handler, and taken away again: demand paging. */
TEST(nano, pgfault_map)
{
    gate(PF, raw_map);
    struct regs r = regs_for(0);
    r.rdi = KVA;
    map_new(KVA, PG_KRW);
    r.rsi = (u64)pte_at(KVA, 1);
    show("pgfault-map", &r, LOOP("andq $~1, (%%rsi)\n\tinvlpg (%%rdi)\n\tmov (%%rdi), %%rax"));
}

/* -- Page tables ------------------------------------------------------------------------------- */

TEST(nano, ptemod)
{
    struct regs r = regs_for(0);
    r.rdi = KVA;
    map_new(KVA, PG_KRW);
    r.rsi = (u64)pte_at(KVA, 1);
    show("ptemod", &r, LOOP("xorl $0x200, (%%rsi)\n\tmov (%%rdi), %%rax"));
    show("ptemod+invlpg", &r, LOOP("xorl $0x200, (%%rsi)\n\tinvlpg (%%rdi)\n\tmov (%%rdi), %%rax"));
}
TEST(nano, invlpg)
{
    struct regs r = regs_for(0);
    r.rdi = KVA;
    map_new(KVA, PG_KRW);
    show("invlpg", &r, LOOP("invlpg (%%rdi)"));
    show("invlpg+touch", &r, LOOP("invlpg (%%rdi)\n\tmov (%%rdi), %%rax"));
}

/* Two address spaces that share the kernel, and have a page each of their own. */
static void two_spaces(struct regs *r)
{
    u64 *other = (u64 *)page_alloc();
    memcpy(other, pml4, 4096);
    map_new(UVA, PG_URW);
    u64 *mine = pml4;
    pml4 = other;
    map_new(UVA, PG_URW);
    pml4 = mine;
    r->rdi = UVA;
    r->rbx = (u64)mine;
    r->rbp = (u64)other;
}
#define TWO_SWITCHES                                                                               \
    "mov %%rbp, %%cr3\n\tmov (%%rdi), %%rax\n\tmov %%rbx, %%cr3\n\tmov (%%rdi), %%rax"
TEST(nano, cr3)
{
    struct regs r = regs_for(0);
    two_spaces(&r);
    show("cr3-2switches", &r, LOOP(TWO_SWITCHES));
}
TEST(nano, cr3_pcid)
{
    if (!feat.pcid)
        SKIP("no PCID");
    struct regs r = regs_for(0);
    two_spaces(&r);
    write_cr4(default_cr4 | CR4_PCIDE);
    r.rbx |= 1ul << 63;
    r.rbp |= 1 | 1ul << 63;
    show("cr3-2switches-pcid", &r, LOOP(TWO_SWITCHES));
}

/* -- Privileged instructions ------------------------------------------------------------------- */

TEST(nano, cli)
{
    struct regs r = regs_for(0);
    r.rflags |= F_IF;
    show("cli+sti", &r, LOOP("cli\n\tsti\n\tnop"));
    show("pushf+cli+popf", &r, LOOP("pushfq\n\tcli\n\tpopfq"));
}
TEST(nano, cr)
{
    struct regs r = regs_for(0);
    r.rax = 0;
    show("cr8wr", &r, LOOP("xor %%eax, %%eax\n\tmov %%rax, %%cr8"));
    show("cr0rd", &r, LOOP("mov %%cr0, %%rax"));
    show("cr2rd", &r, LOOP("mov %%cr2, %%rax"));
    show("clts", &r, LOOP("clts"));
}
TEST(nano, msr)
{
    struct regs r = regs_for(0);
    r.rcx = MSR_FS_BASE;
    show("rdmsr", &r, LOOP("rdmsr"));
    show("wrmsr", &r, LOOP("xor %%eax, %%eax\n\txor %%edx, %%edx\n\twrmsr"));
    show("swapgs", &r, LOOP("swapgs"));
}

/* -- Devices ----------------------------------------------------------------------------------- */

TEST(nano, port)
{
    struct regs r = regs_for(0);
    r.rcx = 0x3fd;
    show("in", &r, LOOP("mov $0x3fd, %%edx\n\tin %%dx, %%al")); /* serial port, line status */
    show("in-none", &r, LOOP("in $0xed, %%al"));
    show("out", &r, LOOP("out %%al, $0x80"));
}
TEST(nano, mmio)
{
    struct regs r = regs_for(0);
    r.rdi = APIC_BASE;
    show("mmio-read", &r, LOOP("mov 0x20(%%rdi), %%eax"));
    show("mmio-write", &r, LOOP("movl $0, 0x80(%%rdi)"));
}

/* -- Interrupts -------------------------------------------------------------------------------- */

static volatile u64 arrived;
static bool take_time(struct isr_frame *f)
{
    arrived = rdtsc();
    apic_write(APIC_EOI, 0);
    return true;
}

static void sort(u64 *a, unsigned n)
{
    for (unsigned i = 1; i < n; i++)
        for (unsigned j = i; j && a[j - 1] > a[j]; j--) {
            u64 t = a[j];
            a[j] = a[j - 1];
            a[j - 1] = t;
        }
}

/* From the moment a one-shot timer runs out to the handler's first lines, with the CPU in a loop
 * or halted.  The median of some. */
static void timer_latency(const char *name, bool halt)
{
    enum { SAMPLES = 61, APIC_TICKS = 400000 };
    static u64 late[SAMPLES];
    apic_enable();
    handlers[0x90] = take_time;
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, 0x10000); /* masked: how long is a tick of the APIC's? */
    apic_write(APIC_TICR, 0xffffffff);
    u32 c0 = apic_read(APIC_TCCR);
    u64 t0 = rdtsc();
    while (rdtsc() - t0 < ENOUGH)
        ;
    u32 c1 = apic_read(APIC_TCCR);
    u64 t1 = rdtsc();
    if (c0 == c1) {
        fail("the APIC timer stands still");
        return;
    }
    u64 wait = (t1 - t0) * APIC_TICKS / (c0 - c1);
    for (unsigned i = 0; i < SAMPLES; i++) {
        arrived = 0;
        u64 begin = rdtsc();
        apic_timer_oneshot(0x90, APIC_TICKS);
        if (halt)
            asm volatile("sti\n\thlt\n\tcli" ::: "memory");
        sti();
        for (u64 t = rdtsc(); !arrived && rdtsc() - t < 10 * ENOUGH;)
            ;
        cli();
        if (!arrived) {
            fail("no timer interrupt");
            return;
        }
        late[i] = arrived > begin + wait ? arrived - begin - wait : 0;
    }
    sort(late, SAMPLES);
    print("NANO %s %lu\n", name, late[SAMPLES / 2] * 1000 + 1);
}

TEST(nano, timer)
{
    timer_latency("timer-latency", false);
}
TEST(nano, timer_halted)
{
    timer_latency("timer-latency-hlt", true);
}
TEST(nano, self_ipi)
{
    enum { SAMPLES = 61 };
    static u64 late[SAMPLES];
    apic_enable();
    handlers[0x91] = take_time;
    sti();
    for (unsigned i = 0; i < SAMPLES; i++) {
        arrived = 0;
        u64 begin = rdtsc();
        apic_self_ipi(0x91);
        while (!arrived && rdtsc() - begin < 10 * ENOUGH)
            ;
        late[i] = arrived - begin;
    }
    cli();
    sort(late, SAMPLES);
    print("NANO self-ipi %lu\n", late[SAMPLES / 2] * 1000);
}

TEST(nano, zz_end)
{
    print("NANO-CLOCK %lu\n", rdtsc());
}
