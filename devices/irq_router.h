/*
 * Where the interrupt wires of a PC go: a global system interrupt n (ACPI 5.2.13) is pin n of the
 * I/O APIC; ISA IRQ n is also input n of the 8259s, and ISA IRQ 0 is GSI 2, as the MADT says.
 */
#ifndef RINGSHIFT_DEVICES_IRQ_ROUTER_H
#define RINGSHIFT_DEVICES_IRQ_ROUTER_H

#include "devices/ioapic.h"
#include "devices/irq.h"
#include "devices/pic.h"

#define TIMER_GSI 2 /* of ISA IRQ 0 */

struct irq_router {
    struct pic *pic;
    struct ioapic *ioapic;
};

/* The wire of ISA IRQ n (0..15). */
struct irq_line irq_router_isa(struct irq_router *r, unsigned n);

#endif
