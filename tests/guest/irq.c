/* The interrupt hardware the tests use: local APIC, 8259 pair, 8254, IO-APIC. */
#include "guest.h"

volatile u64 irq_count[256];

void apic_enable(void)
{
    wrmsr(MSR_APIC_BASE, APIC_BASE | 0x800 | (rdmsr(MSR_APIC_BASE) & 0x100));
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
}

void apic_timer_oneshot(unsigned vector, u32 count)
{
    apic_write(APIC_TDCR, 0xb); /* divide by 1 */
    apic_write(APIC_LVTT, vector);
    apic_write(APIC_TICR, count);
}

void apic_timer_periodic(unsigned vector, u32 count)
{
    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_LVTT, 0x20000 | vector);
    apic_write(APIC_TICR, count);
}

void apic_self_ipi(unsigned vector)
{
    apic_write(APIC_ICR2, 0);
    apic_write(APIC_ICR, 0x40000 | 0x4000 | vector);
}

bool irq_count_handler(struct isr_frame *f)
{
    irq_count[f->vector]++;
    apic_write(APIC_EOI, 0);
    return true;
}

void irq_quiesce(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    apic_enable();
    apic_write(APIC_LVTT, 0x10000);
    apic_write(APIC_TICR, 0);
    apic_write(APIC_LVT0, 0x10000);
    apic_write(APIC_LVT1, 0x10000);
    /* Drain what is pending or in service. */
    for (unsigned i = 0; i < 256; i++) {
        bool in_service = false;
        for (unsigned w = 0; w < 8; w++)
            in_service |= apic_read(APIC_ISR + 16 * w) != 0;
        if (!in_service)
            break;
        apic_write(APIC_EOI, 0);
    }
    for (unsigned i = 32; i < 256; i++)
        handlers[i] = irq_count_handler;
    sti();
    asm volatile("nop; nop");
    cli();
    for (unsigned i = 32; i < 256; i++) {
        handlers[i] = NULL;
        irq_count[i] = 0;
    }
}
