/*
 * Interrupts: delivery, priority and masking by the local APIC, the 8259 pair, the IO-APIC; HLT;
 * the STI and MOV SS shadows; NMI; and interrupts that arrive in loops of every kind, where the
 * result must be right and the interrupted RIP must be an instruction boundary.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

/* How long, in TSC ticks, to wait for what a busy host may do late: 10 to 20 s. */
#define PATIENCE 40000000000ul

enum { VEC_TIMER = 0x50, VEC_A = 0x61, VEC_B = 0x72 };

static volatile u64 irq_rip, irq_rflags, irq_cs;
static u8 order[16];
static volatile unsigned order_count;

static bool record_handler(struct isr_frame *f)
{
    irq_count[f->vector]++;
    irq_rip = f->rip;
    irq_rflags = f->rflags;
    irq_cs = f->cs;
    if (order_count < 16)
        order[order_count++] = (u8)f->vector;
    apic_write(APIC_EOI, 0);
    return true;
}

static void arm(unsigned vector, handler_fn fn)
{
    irq_count[vector] = 0;
    order_count = 0;
    handlers[vector] = fn;
}

/* Time for a pending interrupt to arrive; TCG looks for one only between its blocks. */
static void settle(void)
{
    for (volatile unsigned i = 0; i < 20; i++)
        ;
}

/* -- Local APIC
 * -----------------------------------------------------------------------------------*/

TEST(apic, registers)
{
    u32 version = apic_read(APIC_VERSION);
    CHECK((version & 0xff) >= 0x10 && (version & 0xff) < 0x20);
    CHECK((version >> 16 & 0xff) >= 3);
    EQ(apic_read(APIC_ID) >> 24, cpuid(1, 0).ebx >> 24);
    apic_write(APIC_TPR, 0x35);
    EQ(apic_read(APIC_TPR), 0x35);
    EQ(apic_read(APIC_PPR), 0x35);
    apic_write(APIC_TPR, 0);
    apic_write(APIC_LVTT, 0x10000 | VEC_TIMER);
    EQ(apic_read(APIC_LVTT), 0x10000 | VEC_TIMER);
    apic_write(APIC_LVTT, 0x10000);
}

TEST(apic, self_ipi)
{
    arm(VEC_A, record_handler);
    apic_self_ipi(VEC_A); /* IF = 0: it waits */
    EQ(irq_count[VEC_A], 0);
    EQ(apic_read(APIC_IRR + 16 * (VEC_A / 32)) >> (VEC_A % 32) & 1, 1);
    sti();
    settle();
    cli();
    EQ(irq_count[VEC_A], 1);
    EQ(apic_read(APIC_IRR + 16 * (VEC_A / 32)) >> (VEC_A % 32) & 1, 0);
    for (unsigned i = 0; i < 1000; i++) {
        sti();
        apic_self_ipi(VEC_A);
        asm volatile("nop");
        cli();
    }
    EQ(irq_count[VEC_A], 1001);
}

static bool no_eoi_handler(struct isr_frame *f)
{
    irq_count[f->vector]++;
    if (order_count < 16)
        order[order_count++] = (u8)f->vector;
    return true;
}

TEST(apic, priority)
{
    arm(VEC_A, record_handler);
    arm(VEC_B, record_handler);
    apic_self_ipi(VEC_A);
    apic_self_ipi(VEC_B);
    sti();
    settle();
    cli();
    EQ(order_count, 2);
    EQ(order[0], VEC_B); /* the higher class first */
    EQ(order[1], VEC_A);
    /* a vector in service holds back lower and equal classes */
    arm(VEC_B, no_eoi_handler);
    sti();
    apic_self_ipi(VEC_B);
    settle();
    EQ(irq_count[VEC_B], 1);
    EQ(apic_read(APIC_ISR + 16 * (VEC_B / 32)) >> (VEC_B % 32) & 1, 1);
    arm(VEC_A, record_handler);
    apic_self_ipi(VEC_A);
    settle();
    EQ(irq_count[VEC_A], 0);
    EQ(apic_read(APIC_PPR), VEC_B & 0xf0);
    apic_write(APIC_EOI, 0);
    settle();
    EQ(irq_count[VEC_A], 1);
    cli();
}

TEST(apic, cr8_masks)
{
    arm(VEC_A, record_handler);
    write_cr8(VEC_A >> 4);
    apic_self_ipi(VEC_A);
    sti();
    settle();
    EQ(irq_count[VEC_A], 0);
    write_cr8((VEC_A >> 4) - 1); /* lowering it delivers */
    settle();
    EQ(irq_count[VEC_A], 1);
    apic_write(APIC_TPR, 0xf0);
    apic_self_ipi(VEC_A);
    settle();
    EQ(irq_count[VEC_A], 1);
    apic_write(APIC_TPR, 0);
    settle();
    cli();
    EQ(irq_count[VEC_A], 2);
}

/* What the timer counts in 10 million TSC ticks, or a little more. */
static u32 timer_ticks(u32 divide)
{
    apic_write(APIC_TDCR, divide);
    apic_write(APIC_TICR, 0xffffffff);
    u64 t0 = rdtsc();
    while (rdtsc() - t0 < 10000000)
        ;
    return 0xffffffff - apic_read(APIC_TCCR);
}

TEST(apic, timer_counts)
{
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, 0x10000 | VEC_TIMER);
    apic_write(APIC_TICR, 0xffffffff);
    u32 a = apic_read(APIC_TCCR);
    for (volatile unsigned i = 0; i < 10000; i++)
        ;
    u32 b = apic_read(APIC_TCCR);
    CHECK(b < a);
    /* The host may take the CPU away in the middle of a measurement: again, then. */
    u32 slow = 0, fast = 0;
    for (u64 start = rdtsc(); rdtsc() - start < PATIENCE;) {
        slow = timer_ticks(0xa); /* divide by 128 */
        fast = timer_ticks(0xb); /* by 1 */
        if (slow && fast / slow >= 64 && fast / slow <= 256)
            break;
    }
    if (slow == 0 || fast / slow < 64 || fast / slow > 256)
        fail("counted %u with divisor 1, %u with 128", fast, slow);
    apic_write(APIC_TICR, 0);
    EQ(apic_read(APIC_TCCR), 0);
}

TEST(apic, oneshot_wakes_hlt)
{
    arm(VEC_TIMER, record_handler);
    struct regs r = regs_for(0);
    for (unsigned i = 0; i < 20; i++) {
        u8 *at;
        u8 *code = SNIP_AT(at, "sti\n\thlt\n662: cli");
        apic_timer_oneshot(VEC_TIMER, 200000);
        done(&r, code);
        EQ(irq_rip, (u64)at);
        EQ(irq_rflags & F_IF, F_IF);
    }
    EQ(irq_count[VEC_TIMER], 20);
}

TEST(apic, periodic)
{
    arm(VEC_TIMER, irq_count_handler);
    apic_timer_periodic(VEC_TIMER, 100000);
    for (unsigned i = 0; i < 50; i++)
        asm volatile("sti; hlt; cli");
    apic_write(APIC_LVTT, 0x10000);
    CHECK(irq_count[VEC_TIMER] >= 50);
}

TEST(apic, tsc_deadline)
{
    if (!feat.tsc_deadline)
        SKIP("no TSC deadline timer");
    arm(VEC_TIMER, record_handler);
    apic_write(APIC_LVTT, 0x40000 | VEC_TIMER);
    asm volatile("mfence");
    for (unsigned i = 0; i < 20; i++) {
        /* Far enough away to be read back, however long the host lets the VMM wait. */
        u64 deadline = rdtsc() + (1ul << 40);
        wrmsr(MSR_TSC_DEADLINE, deadline);
        EQ(rdmsr(MSR_TSC_DEADLINE), deadline);
        deadline = rdtsc() + 500000;
        wrmsr(MSR_TSC_DEADLINE, deadline);
        asm volatile("sti; hlt; cli");
        CHECK(rdtsc() >= deadline);
        EQ(rdmsr(MSR_TSC_DEADLINE), 0);
    }
    EQ(irq_count[VEC_TIMER], 20);
    wrmsr(MSR_TSC_DEADLINE, 1); /* in the past: at once */
    sti();
    for (u64 start = rdtsc(); rdtsc() - start < PATIENCE && irq_count[VEC_TIMER] < 21;)
        asm volatile("pause");
    cli();
    EQ(irq_count[VEC_TIMER], 21);
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + (1ul << 40));
    wrmsr(MSR_TSC_DEADLINE, 0); /* disarmed */
    apic_write(APIC_LVTT, 0x10000);
}

TEST(apic, x2apic)
{
    if (!feat.x2apic)
        SKIP("no x2APIC");
    u64 base = rdmsr(MSR_APIC_BASE);
    wrmsr(MSR_APIC_BASE, base | 0x400);
    EQ(rdmsr(0x802), cpuid(0xb, 0).edx);
    CHECK((rdmsr(0x803) & 0xff) >= 0x10);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x808, 0x20);
    EQ(read_cr8(), 2);
    wrmsr(0x808, 0);
    handlers[VEC_A] = no_eoi_handler;
    irq_count[VEC_A] = 0;
    wrmsr(0x83f, VEC_A); /* self IPI */
    sti();
    settle();
    cli();
    EQ(irq_count[VEC_A], 1);
    wrmsr(0x80b, 0);
    wrmsr(0x830, (u64)rdmsr(0x802) << 32 | VEC_A); /* ICR, 64 bits at once */
    sti();
    settle();
    cli();
    EQ(irq_count[VEC_A], 2);
    wrmsr(0x80b, 0);
    struct regs r = regs_for(0);
    r.rcx = 0x80b, r.rax = 1, r.rdx = 0;
    fault(&r, SNIP("wrmsr"), GP, 0); /* EOI takes zero only */
    r.rcx = 0x802;
    fault(&r, SNIP("wrmsr"), GP, 0); /* the ID is read-only */
    r.rcx = 0x1b, r.rax = (u32)base & ~0x400u, r.rdx = 0;
    fault(&r, SNIP("wrmsr"), GP, 0); /* from x2APIC straight to xAPIC */
    wrmsr(MSR_APIC_BASE, base & ~0xc00ul);
    EQ(cpuid(1, 0).edx >> 9 & 1, 0);
    wrmsr(MSR_APIC_BASE, base);
    EQ(cpuid(1, 0).edx >> 9 & 1, 1);
    apic_enable();
}

TEST(apic, spurious_and_disabled)
{
    TCG_SKIP("the LVT mask bits are not forced");
    /* Software-disabled: no timer interrupt, LVT masks are forced on. */
    apic_write(APIC_SVR, 0xff);
    EQ(apic_read(APIC_LVTT) & 0x10000, 0x10000);
    apic_write(APIC_LVTT, VEC_TIMER);
    EQ(apic_read(APIC_LVTT) & 0x10000, 0x10000);
    apic_write(APIC_SVR, 0x1ff);
}

/* -- NMI
 * ------------------------------------------------------------------------------------------*/

static volatile unsigned nmi_depth, nmi_max_depth;

static void send_nmi(void)
{
    apic_write(APIC_ICR2, apic_read(APIC_ID) & 0xff000000);
    apic_write(APIC_ICR, 0x4400); /* NMI, physical destination, assert */
}

static bool nmi_handler(struct isr_frame *f)
{
    irq_count[NMI]++;
    nmi_depth++;
    if (nmi_depth > nmi_max_depth)
        nmi_max_depth = nmi_depth;
    if (irq_count[NMI] == 1) {
        send_nmi(); /* held until IRET */
        for (volatile unsigned i = 0; i < 1000; i++)
            ;
    }
    nmi_depth--;
    return true;
}

TEST(nmi, delivered_and_blocked)
{
    handlers[NMI] = nmi_handler;
    irq_count[NMI] = nmi_depth = nmi_max_depth = 0;
    cli(); /* does not mask it */
    send_nmi();
    for (volatile unsigned i = 0; i < 100000 && irq_count[NMI] < 2; i++)
        ;
    EQ(irq_count[NMI], 2);
    EQ(nmi_max_depth, 1);
    /* wakes HLT with IF = 0 */
    irq_count[NMI] = 1;
    send_nmi();
    for (volatile unsigned i = 0; i < 1000; i++)
        ;
    EQ(irq_count[NMI], 2);
}

/* -- 8259, 8254, IO-APIC
 * --------------------------------------------------------------------------*/

static bool pic_handler(struct isr_frame *f)
{
    irq_count[f->vector]++;
    if (f->vector >= 0x28)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
    return true;
}

static void pic_init(void)
{
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0xa0, 0x11);
    outb(0xa1, 0x28);
    outb(0xa1, 2);
    outb(0xa1, 1);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

static void pit_start(unsigned mode, u16 count)
{
    outb(0x43, (u8)(0x30 | mode << 1));
    outb(0x40, (u8)count);
    outb(0x40, (u8)(count >> 8));
}

TEST(pic, pit_interrupts)
{
    pic_init();
    handlers[0x20] = pic_handler;
    handlers[0x27] = pic_handler;
    apic_write(APIC_LVT0, 0x700); /* ExtINT: the virtual wire */
    irq_count[0x20] = 0;
    pit_start(2, 1193); /* 1 kHz */
    outb(0x21, 0xfe);
    for (unsigned i = 0; i < 50; i++)
        asm volatile("sti; hlt; cli");
    outb(0x21, 0xff);
    apic_write(APIC_LVT0, 0x10000);
    CHECK(irq_count[0x20] >= 45);
}

TEST(pic, mask_and_read_back)
{
    pic_init();
    outb(0x21, 0xa5);
    outb(0xa1, 0x5a);
    EQ(inb(0x21), 0xa5);
    EQ(inb(0xa1), 0x5a);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    /* a masked request shows in the IRR */
    pit_start(0, 100);
    for (u64 start = rdtsc(); rdtsc() - start < PATIENCE;) {
        outb(0x20, 0x0a);
        if (inb(0x20) & 1)
            break;
    }
    outb(0x20, 0x0a);
    EQ(inb(0x20) & 1, 1);
}

TEST(pit, calibration_by_speaker_gate)
{
    /* What Linux does with channel 2 to learn the TSC's rate: 10 ms. */
    outb(0x61, (u8)((inb(0x61) & ~2) | 1));
    /* The host may take the CPU away in the middle: until the two lowest rates agree. */
    u64 best = 1ul << 40, second = 2 * best;
    for (u64 start = rdtsc(); second > best * 5 / 4 && rdtsc() - start < PATIENCE;) {
        outb(0x43, 0xb0);
        outb(0x42, 11932 & 0xff);
        outb(0x42, 11932 >> 8);
        u64 t0 = rdtsc();
        while (!(inb(0x61) & 0x20))
            ;
        u64 rate = (rdtsc() - t0) / 10000;
        if (rate < best) {
            second = best;
            best = rate;
        } else if (rate < second) {
            second = rate;
        }
    }
    if (second > best * 5 / 4)
        fail("TSC rates %lu and %lu MHz", best, second);
    CHECK(best > 100 && best < 20000);
    outb(0x61, (u8)(inb(0x61) & ~3));
}

TEST(pit, counter_latch)
{
    pit_start(2, 0xffff);
    u16 last = 0;
    unsigned larger = 2;
    /* 200 readings take far less than the 55 ms between reloads, unless the host looks away. */
    for (u64 start = rdtsc(); larger > 1 && rdtsc() - start < PATIENCE;) {
        larger = 0;
        last = 0xffff;
        for (unsigned i = 0; i < 200; i++) {
            outb(0x43, 0);
            u16 v = inb(0x40);
            v |= (u16)(inb(0x40) << 8);
            larger += v > last;
            last = v;
        }
    }
    CHECK(last < 0xffff);
    CHECK(larger <= 1); /* at most one reload */
}

static void ioapic_write(u32 reg, u32 v)
{
    *(volatile u32 *)0xfec00000 = reg;
    *(volatile u32 *)0xfec00010 = v;
}

static u32 ioapic_read(u32 reg)
{
    *(volatile u32 *)0xfec00000 = reg;
    return *(volatile u32 *)0xfec00010;
}

TEST(ioapic, pit_on_pin_2)
{
    CHECK((ioapic_read(1) >> 16 & 0xff) >= 0x17);
    arm(VEC_TIMER, irq_count_handler);
    pit_start(2, 1193);
    ioapic_write(0x10 + 2 * 2 + 1, apic_read(APIC_ID) & 0xff000000);
    ioapic_write(0x10 + 2 * 2, VEC_TIMER); /* edge, fixed, physical */
    EQ(ioapic_read(0x10 + 2 * 2), VEC_TIMER);
    for (unsigned i = 0; i < 50; i++)
        asm volatile("sti; hlt; cli");
    ioapic_write(0x10 + 2 * 2, 0x10000);
    CHECK(irq_count[VEC_TIMER] >= 45);
    u64 n = irq_count[VEC_TIMER];
    sti();
    for (volatile unsigned i = 0; i < 100000; i++)
        ;
    cli();
    CHECK(irq_count[VEC_TIMER] <= n + 1); /* masked */
}

/* -- Shadows and boundaries
 * -----------------------------------------------------------------------*/

TEST(shadow, sti)
{
    arm(VEC_A, record_handler);
    struct regs r = regs_for(0);
    u8 *at;
    /* one instruction runs after STI before the interrupt */
    apic_self_ipi(VEC_A);
    u8 *code = SNIP_AT(at, "sti\n\tnop\n662: nop\n\tcli");
    done(&r, code);
    EQ(irq_count[VEC_A], 1);
    EQ(irq_rip, (u64)at);
    /* STI; CLI lets nothing in */
    apic_self_ipi(VEC_A);
    done(&r, SNIP("sti\n\tcli\n\tnop\n\tnop"));
    EQ(irq_count[VEC_A], 1);
    /* nor does it in a loop */
    done(&r, SNIP("mov $100, %%ecx\n1: sti\n\tcli\n\tdec %%ecx\n\tjnz 1b"));
    EQ(irq_count[VEC_A], 1);
    /* STI with IF already set has no shadow */
    code = SNIP_AT(at, "sti\n\tnop\n662: sti\n\tnop\n\tcli");
    done(&r, code);
    EQ(irq_count[VEC_A], 2);
    EQ(irq_rip, (u64)at);
}

TEST(shadow, mov_ss)
{
    arm(VEC_A, record_handler);
    struct regs r = regs_for(0);
    u8 *at;
    r.rax = SEL_KDATA;
    r.rbx = APIC_BASE + APIC_ICR, r.rcx = 0x44000 | VEC_A;
    r.rflags = 2;
    /* POPF raises IF just before MOV SS: the interrupt comes before MOV SS or after the next */
    apic_self_ipi(VEC_A);
    u8 *code = SNIP_AT(at, "pushq $0x202\n\tpopfq\n662: mov %%eax, %%ss\n\tnop\n\tcli");
    done(&r, code);
    EQ(irq_count[VEC_A], 1);
    EQ(irq_rip, (u64)at); /* POPF has no shadow */
}

TEST(shadow, iret_and_popf_have_none)
{
    arm(VEC_A, record_handler);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rflags = F_IF | F_IOPL | 2;
        u8 *code = SNIP("nop\n\tnop\n\tcli");
        apic_self_ipi(VEC_A);
        irq_count[VEC_A] = 0;
        done(&r, code); /* entered by IRETQ with IF = 1 */
        EQ(irq_count[VEC_A], 1);
        EQ(irq_rip, at_cpl(cpl, code));
        EQ(irq_cs, r.cs);
    }
}

TEST(shadow, hlt_with_pending)
{
    arm(VEC_A, record_handler);
    struct regs r = regs_for(0);
    u8 *at;
    apic_self_ipi(VEC_A);
    u8 *code = SNIP_AT(at, "sti\n\thlt\n662: cli");
    done(&r, code); /* the shadow covers HLT, which then wakes at once */
    EQ(irq_count[VEC_A], 1);
    EQ(irq_rip, (u64)at);
}

TEST(shadow, syscall_masks_if)
{
    u8 *entry = SNIP("mov %%rcx, %%rbx\n\tnop\n\tnop");
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_FMASK, F_IF);
    arm(VEC_A, record_handler);
    struct regs r = regs_for(3);
    r.rflags = 2;
    apic_self_ipi(VEC_A);
    run_at(&r, SNIP("syscall"));
    expect(DONE, 0);
    EQ(irq_count[VEC_A], 0);
}

/* -- Storms
 * ---------------------------------------------------------------------------------------*/

static u8 *storm_code;
static u64 storm_len;
static u8 boundary[256]; /* offsets where an instruction begins, found by single stepping */
static volatile u64 storm_ticks, bad_rip, in_code;
static u32 storm_period;

static bool learn_handler(struct isr_frame *f)
{
    u64 off = f->rip - (u64)storm_code - ((f->cs & 3) ? USER_OFFSET : 0);
    if (off < storm_len)
        boundary[off] = 1;
    write_dr6(0xffff0ff0);
    return true;
}

static bool storm_handler(struct isr_frame *f)
{
    storm_ticks++;
    u64 off = f->rip - (u64)storm_code - ((f->cs & 3) ? USER_OFFSET : 0);
    if (off < storm_len) {
        in_code++;
        if (!boundary[off] && !bad_rip)
            bad_rip = f->rip;
    }
    apic_write(APIC_EOI, 0);
    apic_timer_oneshot(VEC_TIMER, storm_period + (u32)(random64() % storm_period));
    return true;
}

/* Runs the loop without interrupts for the right answer, then under a storm. */
static void storm(const char *name, u8 *code, u64 small, u64 large)
{
    for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
        context("%s, cpl %u", name, cpl);
        struct regs r = regs_for(cpl), want;
        u8 memory_want[64];
        r.rbx = r.rdi = at_cpl(cpl, buffer);
        r.rsi = r.rbx + 0x4000;
        r.r10 = r.rbx, r.r11 = 3;
        storm_code = code;
        storm_len = 120;
        memset(boundary, 0, sizeof(boundary));
        boundary[0] = 1;
        handlers[DB] = learn_handler;
        r.rcx = small;
        r.rflags = F_TF | F_IOPL | 2;
        memset(buffer, 0, 4096);
        done(&r, code);
        handlers[DB] = NULL;
        r.rcx = large;
        r.rflags = F_IOPL | 2;
        memset(buffer, 0, 4096);
        done(&r, code);
        want = T.r;
        memcpy(memory_want, buffer, 64);

        handlers[VEC_TIMER] = storm_handler;
        storm_ticks = bad_rip = in_code = 0;
        r.rflags = F_IF | F_IOPL | 2;
        /* However long it takes the host to deliver them: a busy one runs the VMM's timers late,
         * and few fall into a round. */
        u64 start = rdtsc();
        for (unsigned round = 0; storm_ticks < 30 && rdtsc() - start < PATIENCE; round++) {
            memset(buffer, 0, 4096);
            storm_period = 3000 << (round % 4 * 2);
            apic_timer_oneshot(VEC_TIMER, storm_period);
            bool ok = done(&r, code);
            apic_write(APIC_LVTT, 0x10000);
            if (!ok)
                break;
            for (unsigned i = 0; i < 16; i++)
                if ((&T.r.rax)[i] != (&want.rax)[i])
                    fail("register %u: got 0x%lx, want 0x%lx (%lu interrupts)", i, (&T.r.rax)[i],
                         (&want.rax)[i], storm_ticks);
            EQ(T.r.rflags & F_ARITH, want.rflags & F_ARITH);
            EQ(memcmp(buffer, memory_want, 64), 0);
        }
        if (storm_ticks < 5)
            fail("only %lu interrupts arrived", storm_ticks);
        if (bad_rip)
            fail("interrupted at snippet + 0x%lx, which is no instruction boundary",
                 bad_rip - (u64)code - (cpl ? USER_OFFSET : 0));
        handlers[VEC_TIMER] = NULL;
        /* take what is still pending */
        handlers[VEC_TIMER] = irq_count_handler;
        sti();
        settle();
        cli();
    }
}

TEST(storm, register_loop)
{
    storm("register loop",
          SNIP("1: imul $0x19660d, %%eax, %%eax\n\tadd $0x3c6ef35f, %%eax\n\t"
               "xor %%eax, %%edx\n\trol $3, %%rdx\n\tdec %%rcx\n\tjnz 1b"),
          5, 300000);
}

TEST(storm, memory_loop)
{
    storm("memory loop",
          SNIP("1: add %%rcx, (%%rbx)\n\tmov (%%rbx), %%rax\n\txor %%rax, 8(%%rbx)\n\t"
               "rolq $5, 8(%%rbx)\n\tlock incq 16(%%rbx)\n\tadc %%r11, (%%r10,%%r11,8)\n\t"
               "dec %%rcx\n\tjnz 1b\n\tmov 8(%%rbx), %%rdx"),
          5, 100000);
}

TEST(storm, calls_and_stack)
{
    storm(
        "calls",
        SNIP("1: call 2f\n\tpush %%rcx\n\tpop %%rdx\n\tadd %%rdx, %%rax\n\tlea 3f(%%rip), %%r8\n\t"
             "call *%%r8\n\tdec %%rcx\n\tjnz 1b\n\tjmp 4f\n"
             "2: add $3, %%rax\n\tret\n3: push %%rbp\n\tmov %%rsp, %%rbp\n\tsub $32, %%rsp\n\t"
             "mov %%rax, -8(%%rbp)\n\trolq $1, -8(%%rbp)\n\tmov -8(%%rbp), %%rax\n\tleave\n\tret\n"
             "4: xor %%r8d, %%r8d"),
        5, 50000);
}

TEST(storm, indirect_jumps)
{
    storm("indirect jumps",
          SNIP("1: lea 2f(%%rip), %%r10\n\ttest $1, %%cl\n\tjz 5f\n\tlea 3f(%%rip), %%r10\n"
               "5: jmp *%%r10\n2: add $7, %%rax\n\tjmp 4f\n3: sub $3, %%rax\n\trol $2, %%rax\n"
               "4: dec %%rcx\n\tjnz 1b\n\txor %%r10d, %%r10d"),
          6, 100000);
}

TEST(storm, string_loop)
{
    storm("strings",
          SNIP("mov %%rdi, %%r8\n\tmov %%rsi, %%r9\n\tmov %%rcx, %%rdx\n"
               "1: mov %%r9, %%rsi\n\tmov %%r8, %%rdi\n\tmov $3000, %%ecx\n\trep movsb\n\t"
               "mov %%r8, %%rdi\n\tmov %%edx, %%eax\n\tmov $50, %%ecx\n\trep stosw\n\t"
               "mov %%r8, %%rdi\n\tmov %%r9, %%rsi\n\tmov $1000, %%ecx\n\trepe cmpsb\n\t"
               "add %%rcx, %%rbp\n\tdec %%rdx\n\tjnz 1b"),
          1, 600);
}

TEST(storm, flags_loop)
{
    storm("flags",
          SNIP("1: stc\n\tadc %%rax, %%rax\n\tsbb $1, %%rdx\n\tpushfq\n\tpop %%r8\n\tand $0xcd5, "
               "%%r8d\n\t"
               "add %%r8, %%rax\n\tcmp %%rdx, %%rax\n\tsetg %%r9b\n\tcmovl %%rdx, %%rax\n\tlahf\n\t"
               "inc %%r11\n\tsahf\n\tloop 1b"),
          5, 60000);
}

TEST(storm, vector_loop)
{
    storm("vectors",
          SNIP("movd %%ecx, %%xmm0\n\tpshufd $0, %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %%xmm1\n\t"
               "pxor %%xmm2, %%xmm2\n\tfninit\n\tfld1\n\tfldpi\n"
               "1: paddd %%xmm0, %%xmm1\n\tpxor %%xmm1, %%xmm2\n\tmovups %%xmm2, 32(%%rbx)\n\t"
               "movups 32(%%rbx), %%xmm3\n\tpaddq %%xmm3, %%xmm2\n\tfadd %%st, %%st(1)\n\tfxch\n\t"
               "dec %%rcx\n\tjnz 1b\n\tmovq %%xmm2, %%rax\n\tfstpl 48(%%rbx)\n\tfstpl 56(%%rbx)"),
          5, 60000);
}

TEST(storm, privileged_loop)
{
    /* At CPL 0 only the first part of the register state matters; CPL 3 has IOPL 3 and may as well.
     */
    storm("cli and sti",
          SNIP("1: cli\n\tadd $3, %%rax\n\tsti\n\txor %%rcx, %%rax\n\tpushfq\n\tcli\n\tadd %%rax, "
               "%%rdx\n\t"
               "popfq\n\trol $1, %%rdx\n\tdec %%rcx\n\tjnz 1b"),
          5, 30000);
}

TEST(storm, page_walks)
{
    /* Loads over many pages, so that misses and interrupts mix. */
    for (unsigned i = 0; i < 256; i++)
        *(u64 *)map_new(UVA + i * 4096ul, PG_URW) = i;
    storm(
        "page walks",
        SNIP("mov $0x100000000000, %%r8\n\tmov %%rcx, %%r9\n2: mov %%r8, %%rdx\n\tmov $256, %%ecx\n"
             "1: add (%%rdx), %%rax\n\tadd %%rcx, 8(%%rdx)\n\tadd $4096, %%rdx\n\tdec %%ecx\n\tjnz "
             "1b\n\t"
             "dec %%r9\n\tjnz 2b"),
        1, 400);
}

static volatile u64 jump_to;

static bool redirect_handler(struct isr_frame *f)
{
    irq_count[f->vector]++;
    f->rip = jump_to + ((f->cs & 3) ? USER_OFFSET : 0);
    apic_write(APIC_EOI, 0);
    return true;
}

TEST(storm, endless_loops)
{
    /* Loops without any exit: only an interrupt gets out of them. */
    static u8 *loops[6];
    loops[0] = SNIP("1: jmp 1b");
    loops[1] = SNIP("1: lea 1b(%%rip), %%r11\n\tjmp *%%r11");
    loops[2] = SNIP("1: inc %%rax\n\tpush %%rax\n\tpop %%rcx\n\tjmp 1b");
    loops[3] = SNIP("1: pause\n\tcmpl $-1, (%%rbx)\n\tjne 1b");
    loops[4] = SNIP("1: call 2f\n2: pop %%rcx\n\tjmp 1b");
    loops[5] = SNIP("1: xor %%ecx, %%ecx\n\tjrcxz 1b");
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 6; i++) {
            struct regs r = regs_for(cpl);
            r.rbx = at_cpl(cpl, buffer);
            context("loop %u, cpl %u", i, cpl);
            r.rflags = F_IF | 2;
            arm(VEC_TIMER, redirect_handler);
            jump_to = (u64)SNIP("nop");
            apic_timer_oneshot(VEC_TIMER, 100000);
            done(&r, loops[i]);
            EQ(irq_count[VEC_TIMER], 1);
        }
    }
}

TEST(storm, interrupts_from_cpl3_switch_stacks)
{
    arm(VEC_TIMER, record_handler);
    idt_default(VEC_TIMER, 0, 0); /* no IST: TSS.RSP0 */
    struct regs r = regs_for(3);
    r.rflags = F_IF | 2;
    r.rcx = 200000;
    apic_timer_periodic(VEC_TIMER, 20000);
    done(&r, SNIP("1: add $1, %%rax\n\tdec %%rcx\n\tjnz 1b"));
    apic_write(APIC_LVTT, 0x10000);
    EQ(T.r.rax, r.rax + 200000);
    EQ(T.r.rsp, r.rsp);
    idt_default(VEC_TIMER, 0, 1);
}
