/* Interrupt wiring: see irq_router.h. */
#include "devices/irq_router.h"

static void set_isa(void *opaque, unsigned n, bool level)
{
    struct irq_router *r = opaque;

    pic_set_irq(r->pic, n, level);
    if (n != TIMER_GSI)
        ioapic_set_irq(r->ioapic, n == 0 ? TIMER_GSI : n, level);
}

struct irq_line irq_router_isa(struct irq_router *r, unsigned n)
{
    return (struct irq_line){.set = set_isa, .opaque = r, .n = n};
}
