/*
 * Exceptions and interrupts: how an instruction reports a fault and how faults and interrupts are
 * delivered through the IDT. SDM vol. 3, chapter 6.
 */
#ifndef RINGSHIFT_CPU_EXCEPTION_H
#define RINGSHIFT_CPU_EXCEPTION_H

#include "cpu/vcpu.h"

/* Fill v->exc and return CPU_EXCEPTION, so that a rule can `return cpu_raise(v, EXC_UD)`. */
static inline enum cpu_result cpu_raise(struct vcpu *v, uint8_t vector)
{
    v->exc = (struct exception){.vector = vector};
    return CPU_EXCEPTION;
}

static inline enum cpu_result cpu_raise_code(struct vcpu *v, uint8_t vector, uint32_t error)
{
    v->exc = (struct exception){.vector = vector, .has_error = true, .error = error};
    return CPU_EXCEPTION;
}

/* Delivers v->exc as a fault at v->rip (traps: the caller has already advanced rip), with
 * contributory/double/triple fault rules. CPU_JUMP, or CPU_EXIT with VCPU_EXIT_TRIPLE. */
enum cpu_result cpu_deliver_exception(struct vcpu *v);

/* Delivers an external interrupt or NMI before the instruction at v->rip. */
enum cpu_result cpu_deliver_interrupt(struct vcpu *v, uint8_t vector);

/* INT3, INTO: checks the gate's DPL, saves next_rip. CPU_JUMP or CPU_EXCEPTION (to be delivered at
 * v->rip, which is a new task's if it got that far). */
enum cpu_result cpu_software_interrupt(struct vcpu *v, uint8_t vector, uint64_t next_rip);

/* INT n: the same, but in virtual-8086 mode it minds IOPL and the redirection map of VME. */
enum cpu_result cpu_int_n(struct vcpu *v, uint8_t vector, uint64_t next_rip);

/*
 * True if cpu_take_events() would find something to do: an interrupt that IF, or an NMI that an
 * earlier one holds back, does not count.  Boot loaders run for long with the timer's interrupt
 * pending and IF = 0; that must not cost them the short ways.
 */
static inline bool cpu_event_due(const struct vcpu *v)
{
    uint32_t events = atomic_load_explicit(&v->events, memory_order_relaxed);

    if (!(v->rflags & FL_IF))
        events &= ~(uint32_t)EV_INTR;
    if (v->nmi_blocked)
        events &= ~(uint32_t)EV_NMI;
    return events != 0;
}

/*
 * Takes pending events at an instruction boundary: NMI, interrupts when RFLAGS.IF = 1 and there
 * is no interrupt shadow (which it consumes). CPU_NEXT if nothing happened, CPU_JUMP after a
 * delivery, CPU_EXIT for EV_STOP or a triple fault. Uses v->platform->ops->intr_ack.
 */
enum cpu_result cpu_take_events(struct vcpu *v);

#endif
