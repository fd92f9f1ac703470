/*
 * Delivery of exceptions and interrupts through the long-mode IDT (SDM vol. 3, 6.12 to 6.15; the
 * pseudocode of INT n in vol. 2 gives the order of the checks).
 *
 * One attempt (deliver_once) either commits everything or changes nothing and leaves a new fault
 * in v->exc; the loop around it applies the double-fault table and ends in a triple fault.
 */
#include "cpu/exception.h"

#include <stdio.h>

#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "cpu/segment.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

enum source { FROM_EXCEPTION, FROM_INTERRUPT, FROM_SOFTWARE };

#define IDT_ERROR 2u /* error code: the index refers to the IDT (SDM vol. 3, 6.13) */

struct event {
    uint8_t vector;
    enum source source;
    bool has_error;
    uint32_t error;
    uint64_t return_rip;
    uint64_t rflags; /* the image to push */
};

/* 0: delivered.  1: the mode is not supported (v->exit is set).  -1: fault in v->exc. */
static int deliver_once(struct vcpu *v, const struct event *e)
{
    uint32_t ext = e->source == FROM_SOFTWARE ? 0 : 1;
    uint32_t idt_error = (uint32_t)e->vector << 3 | IDT_ERROR | ext;
    uint64_t gate[2], d, lin;

    if (!(v->efer & EFER_LMA)) {
        cpu_unsupported(v, "an interrupt or exception in legacy mode");
        return 1;
    }
    if ((uint32_t)e->vector * 16 + 15 > v->idtr.limit) {
        cpu_raise_code(v, EXC_GP, idt_error);
        return -1;
    }
    if (mmu_load(v, v->idtr.base + e->vector * 16, gate, 16, MMU_READ | MMU_SYSTEM, false))
        return -1;
    unsigned type = desc_type(gate[0]);
    if ((gate[0] & DESC_S) || (type != SYS_INT_GATE && type != SYS_TRAP_GATE)) {
        cpu_raise_code(v, EXC_GP, idt_error);
        return -1;
    }
    if (e->source == FROM_SOFTWARE && desc_dpl(gate[0]) < v->cpl) {
        cpu_raise_code(v, EXC_GP, idt_error);
        return -1;
    }
    if (!(gate[0] & DESC_P)) {
        cpu_raise_code(v, EXC_NP, idt_error);
        return -1;
    }

    uint16_t sel = gate[0] >> 16;
    unsigned ist = gate[0] >> 32 & 7;
    uint64_t target = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
    if (sel_null(sel)) {
        cpu_raise_code(v, EXC_GP, ext);
        return -1;
    }
    if (cpu_read_descriptor(v, sel, ext, &d, &lin))
        return -1;
    if (!desc_is_code(d) || desc_dpl(d) > v->cpl || (d & (DESC_L | DESC_DB)) != DESC_L) {
        cpu_raise_code(v, EXC_GP, (sel & ~3) | ext);
        return -1;
    }
    if (!(d & DESC_P)) {
        cpu_raise_code(v, EXC_NP, (sel & ~3) | ext);
        return -1;
    }

    unsigned cpl = d & DESC_CONF ? v->cpl : desc_dpl(d);
    uint64_t rsp = v->gpr[RSP];
    if (ist || cpl != v->cpl) {
        /* 64-bit TSS (SDM vol. 3, figure 7-11): RSPn at 4 + 8n, ISTn at 36 + 8(n-1). */
        if (cpu_tss_read64(v, ist ? 36 + 8 * (ist - 1) : 4 + 8 * cpl, ext, &rsp))
            return -1;
        if (!mmu_canonical(rsp)) {
            cpu_raise_code(v, EXC_SS, ext);
            return -1;
        }
    }
    if (!mmu_canonical(target)) {
        cpu_raise_code(v, EXC_GP, ext);
        return -1;
    }

    uint64_t frame[6] = {e->error,  e->return_rip, v->seg[SEG_CS].sel,
                         e->rflags, v->gpr[RSP],   v->seg[SEG_SS].sel};
    const uint64_t *first = e->has_error ? frame : frame + 1;
    unsigned bytes = e->has_error ? 48 : 40;
    rsp = (rsp & ~15ull) - bytes;
    if (cpu_mark_accessed(v, lin, &d) ||
        mmu_store(v, rsp, first, bytes, MMU_WRITE | (cpl < 3 ? MMU_SYSTEM : 0), true)) {
        /* Faults that carry a selector-style error code tell that an event was in delivery. */
        if (v->exc.vector == EXC_SS || v->exc.vector == EXC_GP)
            v->exc.error |= ext;
        return -1;
    }

    if (cpl != v->cpl)
        v->seg[SEG_SS] = (struct segment){.sel = cpl};
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | cpl, d);
    v->cpl = cpl;
    v->gpr[RSP] = rsp;
    v->rip = target;
    uint64_t clear = FL_TF | FL_NT | FL_RF | FL_VM;
    if (type == SYS_INT_GATE)
        clear |= FL_IF;
    v->rflags &= ~clear;
    v->interrupt_shadow = 0;
    v->halted = false;
    return 0;
}

enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT };

static enum fault_class classify(uint8_t vector)
{
    switch (vector) {
    case EXC_DE:
    case EXC_TS:
    case EXC_NP:
    case EXC_SS:
    case EXC_GP:
        return CONTRIBUTORY;
    case EXC_PF:
        return PAGE_FAULT;
    default:
        return BENIGN;
    }
}

/* Side effects that happen when the exception is recognised, delivered or not: CR2 is updated even
 * by a page fault that turns into a double fault (SDM vol. 3, 6.15, #PF). */
static void recognise(struct vcpu *v, const struct exception *exc)
{
    if (exc->vector == EXC_PF)
        v->cr2 = exc->cr2;
    if (exc->vector == EXC_DB) {
        v->dr[6] |= exc->dr6;
        v->dr[7] &= ~(uint64_t)DR7_GD;
        v->debugctl &= ~(uint64_t)DEBUGCTL_BTF;
    }
}

static struct event event_of(const struct vcpu *v, const struct exception *exc)
{
    struct event e = {
        .vector = exc->vector,
        .source = FROM_EXCEPTION,
        .has_error = exc->has_error,
        .error = exc->error,
        .return_rip = v->rip,
        .rflags = v->rflags,
    };
    /* RF is set in the image of faults, so that an instruction breakpoint does not trigger again
     * when the handler returns (SDM vol. 3, 17.3.1.1). */
    switch (exc->vector) {
    case EXC_DB:
        e.rflags &= ~(uint64_t)FL_RF;
        break;
    case EXC_NMI:
    case EXC_BP:
    case EXC_OF:
    case EXC_DF:
    case EXC_MC:
        break;
    default:
        e.rflags |= FL_RF;
    }
    return e;
}

/* Delivers `e`, following faults of the delivery itself.  `current` is the vector whose class
 * counts for the double-fault table. */
static enum cpu_result deliver(struct vcpu *v, struct event e)
{
    uint8_t original = e.vector;
    enum fault_class cls = e.source == FROM_EXCEPTION ? classify(e.vector) : BENIGN;

    for (;;) {
        int r = deliver_once(v, &e);
        if (r == 0)
            return CPU_JUMP;
        if (r > 0)
            return CPU_EXIT;

        struct exception second = v->exc;
        recognise(v, &second);
        if (e.source == FROM_EXCEPTION && e.vector == EXC_DF) {
            v->exit = VCPU_EXIT_TRIPLE;
            vcpu_fp_save(v);
            snprintf(v->exit_reason, sizeof(v->exit_reason),
                     "triple fault: exception %u while delivering a double fault (first event: "
                     "vector %u) at rip %#llx, cr2 %#llx",
                     second.vector, original, (unsigned long long)v->rip,
                     (unsigned long long)v->cr2);
            return CPU_EXIT;
        }
        enum fault_class cls2 = classify(second.vector);
        if ((cls == CONTRIBUTORY && cls2 == CONTRIBUTORY) || (cls == PAGE_FAULT && cls2 != BENIGN))
            second = (struct exception){.vector = EXC_DF, .has_error = true};
        cls = cls2;
        e = event_of(v, &second);
    }
}

enum cpu_result cpu_deliver_exception(struct vcpu *v)
{
    struct exception exc = v->exc;

    recognise(v, &exc);
    return deliver(v, event_of(v, &exc));
}

enum cpu_result cpu_deliver_interrupt(struct vcpu *v, uint8_t vector)
{
    v->last_interrupt = vector;
    return deliver(v, (struct event){
                          .vector = vector,
                          .source = FROM_INTERRUPT,
                          .return_rip = v->rip,
                          .rflags = v->rflags,
                      });
}

enum cpu_result cpu_software_interrupt(struct vcpu *v, uint8_t vector, uint64_t next_rip)
{
    struct event e = {
        .vector = vector,
        .source = FROM_SOFTWARE,
        .return_rip = next_rip,
        .rflags = v->rflags & ~(uint64_t)FL_RF,
    };

    int r = deliver_once(v, &e);
    return r == 0 ? CPU_JUMP : r > 0 ? CPU_EXIT : CPU_EXCEPTION;
}

enum cpu_result cpu_take_events(struct vcpu *v)
{
    uint32_t events = atomic_load_explicit(&v->events, memory_order_acquire);

    if (events & EV_STOP) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
        v->exit = VCPU_EXIT_STOP;
        return CPU_EXIT;
    }
    if (v->interrupt_shadow) {
        v->interrupt_shadow = 0;
        return CPU_NEXT;
    }
    if ((events & EV_NMI) && !v->nmi_blocked) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_NMI);
        v->halted = false;
        v->nmi_blocked = true;
        return cpu_deliver_interrupt(v, EXC_NMI);
    }
    if ((events & EV_INTR) && (v->rflags & FL_IF)) {
        vcpu_fp_save(v);
        int vector = v->platform->ops->intr_ack(v->platform, v);
        if (vector >= 0) {
            v->halted = false;
            return cpu_deliver_interrupt(v, vector);
        }
    }
    if (v->halted) {
        v->exit = VCPU_EXIT_HLT;
        return CPU_EXIT;
    }
    return CPU_NEXT;
}
