/*
 * Delivery of exceptions and interrupts (SDM vol. 3, 6.12 to 6.15 and chapter 20; the pseudocode of
 * INT n in vol. 2 gives the order of the checks): through the interrupt vector table of real mode,
 * through the IDT of protected mode with its 16-bit, 32-bit and task gates, out of virtual-8086
 * mode, and through the IDT of IA-32e mode.
 *
 * One attempt (deliver_once) either commits everything or changes nothing and leaves a new fault
 * in v->exc; the loop around it applies the double-fault table and ends in a triple fault.  Only a
 * task gate may change state and fault: that fault is the new task's.
 */
#include "cpu/exception.h"

#include <stdio.h>

#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "cpu/segment.h"
#include "cpu/stack.h"
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

static int fail(struct vcpu *v, uint8_t vector, uint32_t error)
{
    cpu_raise_code(v, vector, error);
    return -1;
}

static uint32_t ext_of(const struct event *e)
{
    return e->source == FROM_SOFTWARE ? 0 : 1;
}

static void delivered(struct vcpu *v)
{
    v->interrupt_shadow = 0;
    v->halted = false;
    cpu_mode_changed(v);
}

/* -- Real mode, and the 8086 program's own handlers in virtual-8086 mode. ------------------------
 */

/* Through the vector table at linear address `table`: pushes `flags`, CS and IP as 16-bit words, no
 * error code. */
static int through_vector_table(struct vcpu *v, uint64_t table, const struct event *e,
                                uint64_t flags, uint64_t clear)
{
    uint16_t entry[2];
    struct cpu_stack s = cpu_stack_current(v);
    const uint64_t frame[3] = {e->return_rip, v->seg[SEG_CS].sel, flags};

    if (mmu_load(v, (uint32_t)(table + e->vector * 4), entry, 4, MMU_READ | MMU_SYSTEM, false))
        return -1;
    if (entry[0] > v->seg[SEG_CS].limit)
        return fail(v, EXC_GP, ext_of(e));
    if (cpu_stack_push(v, &s, frame, 3, 2))
        return -1;
    v->gpr[RSP] = s.sp;
    cpu_load_real_segment(v, SEG_CS, entry[1]);
    v->rip = entry[0];
    cpu_set_rflags(v, v->rflags & ~clear);
    delivered(v);
    return 0;
}

static int deliver_real(struct vcpu *v, const struct event *e)
{
    if (e->vector * 4u + 3 > v->idtr.limit)
        return fail(v, EXC_GP, (uint32_t)e->vector << 3 | IDT_ERROR | ext_of(e));
    return through_vector_table(v, v->idtr.base, e, e->rflags, FL_IF | FL_TF | FL_AC | FL_RF);
}

/* -- Protected mode. -----------------------------------------------------------------------------
 */

static int through_task_gate(struct vcpu *v, uint64_t gate, const struct event *e)
{
    enum cpu_result r = cpu_task_switch(v, &(struct task_switch){
                                               .cause = TASK_EVENT,
                                               .sel = gate >> 16,
                                               .next_rip = e->return_rip,
                                               .rflags = e->rflags,
                                               .ext = ext_of(e),
                                               .has_error = e->has_error,
                                               .error = e->error,
                                           });
    v->halted = false;
    return r == CPU_JUMP ? 0 : -1;
}

static int deliver_protected(struct vcpu *v, const struct event *e)
{
    uint32_t ext = ext_of(e), idt_error = (uint32_t)e->vector << 3 | IDT_ERROR | ext;
    uint64_t gate, d, lin;
    bool v86 = vcpu_v86(v);

    if (e->vector * 8u + 7 > v->idtr.limit)
        return fail(v, EXC_GP, idt_error);
    if (mmu_load(v, (uint32_t)(v->idtr.base + e->vector * 8), &gate, 8, MMU_READ | MMU_SYSTEM,
                 false))
        return -1;
    unsigned type = desc_type(gate);
    unsigned size = type & 8 ? 4 : 2;
    bool interrupt_gate = (type & 7) == SYS_INT_GATE16;
    if ((gate & DESC_S) ||
        (type != SYS_TASK_GATE && !interrupt_gate && (type & 7) != SYS_TRAP_GATE16))
        return fail(v, EXC_GP, idt_error);
    if (e->source == FROM_SOFTWARE && desc_dpl(gate) < v->cpl)
        return fail(v, EXC_GP, idt_error);
    if (!(gate & DESC_P))
        return fail(v, EXC_NP, idt_error);
    if (type == SYS_TASK_GATE)
        return through_task_gate(v, gate, e);

    uint16_t sel = gate >> 16;
    uint64_t target = gate & 0xffff;
    if (size == 4)
        target |= gate >> 32 & 0xffff0000;
    if (sel_null(sel))
        return fail(v, EXC_GP, ext);
    if (cpu_read_descriptor(v, sel, ext, &d, &lin))
        return -1;
    if (!desc_is_code(d) || desc_dpl(d) > v->cpl)
        return fail(v, EXC_GP, (sel & ~3) | ext);
    if (!(d & DESC_P))
        return fail(v, EXC_NP, (sel & ~3) | ext);
    unsigned cpl = d & DESC_CONF ? v->cpl : desc_dpl(d);
    if (v86 && cpl)
        return fail(v, EXC_GP, (sel & ~3) | ext);

    struct cpu_stack s = cpu_stack_current(v);
    struct segment cs = cpu_segment_of(sel, d);
    /* From the lowest address up. */
    uint64_t frame[10];
    unsigned n = 0;
    if (e->has_error)
        frame[n++] = e->error;
    frame[n++] = e->return_rip;
    frame[n++] = v->seg[SEG_CS].sel;
    frame[n++] = e->rflags;
    s.error = ext;
    if (cpl != v->cpl) {
        if (cpu_stack_from_tss(v, cpl, ext, &s))
            return -1;
        frame[n++] = v->gpr[RSP];
        frame[n++] = v->seg[SEG_SS].sel;
    }
    if (v86) {
        frame[n++] = v->seg[SEG_ES].sel;
        frame[n++] = v->seg[SEG_DS].sel;
        frame[n++] = v->seg[SEG_FS].sel;
        frame[n++] = v->seg[SEG_GS].sel;
    }
    if (cpu_check_target(v, &cs, &target, ext) != CPU_NEXT ||
        cpu_stack_push(v, &s, frame, n, size) || cpu_mark_accessed(v, lin, &d) ||
        (s.desc && cpu_mark_accessed(v, s.lin, &s.desc)))
        return -1;

    if (s.desc)
        v->seg[SEG_SS] = cpu_segment_of(s.seg.sel, s.desc);
    if (v86) {
        static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
        for (unsigned i = 0; i < sizeof(data); i++)
            v->seg[data[i]] = (struct segment){.sel = 0};
    }
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | cpl, d);
    v->cpl = cpl;
    v->gpr[RSP] = s.sp;
    v->rip = target;
    v->rflags &=
        ~(uint64_t)(FL_TF | FL_NT | FL_RF | FL_VM | (interrupt_gate ? (unsigned)FL_IF : 0));
    delivered(v);
    return 0;
}

/* -- IA-32e mode. --------------------------------------------------------------------------------
 */

static int deliver_long(struct vcpu *v, const struct event *e)
{
    uint32_t ext = ext_of(e), idt_error = (uint32_t)e->vector << 3 | IDT_ERROR | ext;
    uint64_t gate[2], d, lin;

    if ((uint32_t)e->vector * 16 + 15 > v->idtr.limit)
        return fail(v, EXC_GP, idt_error);
    if (mmu_load(v, v->idtr.base + e->vector * 16, gate, 16, MMU_READ | MMU_SYSTEM, false))
        return -1;
    unsigned type = desc_type(gate[0]);
    if ((gate[0] & DESC_S) || (type != SYS_INT_GATE && type != SYS_TRAP_GATE))
        return fail(v, EXC_GP, idt_error);
    if (e->source == FROM_SOFTWARE && desc_dpl(gate[0]) < v->cpl)
        return fail(v, EXC_GP, idt_error);
    if (!(gate[0] & DESC_P))
        return fail(v, EXC_NP, idt_error);

    uint16_t sel = gate[0] >> 16;
    unsigned ist = gate[0] >> 32 & 7;
    uint64_t target = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
    if (sel_null(sel))
        return fail(v, EXC_GP, ext);
    if (cpu_read_descriptor(v, sel, ext, &d, &lin))
        return -1;
    if (!desc_is_code(d) || desc_dpl(d) > v->cpl || (d & (DESC_L | DESC_DB)) != DESC_L)
        return fail(v, EXC_GP, (sel & ~3) | ext);
    if (!(d & DESC_P))
        return fail(v, EXC_NP, (sel & ~3) | ext);

    unsigned cpl = d & DESC_CONF ? v->cpl : desc_dpl(d);
    uint64_t rsp = v->gpr[RSP];
    if (ist || cpl != v->cpl) {
        /* 64-bit TSS (SDM vol. 3, figure 7-11): RSPn at 4 + 8n, ISTn at 36 + 8(n-1). */
        if (cpu_tss_read64(v, ist ? 36 + 8 * (ist - 1) : 4 + 8 * cpl, ext, &rsp))
            return -1;
        if (!mmu_canonical(rsp))
            return fail(v, EXC_SS, ext);
    }
    if (!mmu_canonical(target))
        return fail(v, EXC_GP, ext);

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
    delivered(v);
    return 0;
}

/* 0: delivered.  -1: fault in v->exc. */
static int deliver_once(struct vcpu *v, const struct event *e)
{
    if (vcpu_long(v))
        return deliver_long(v, e);
    return vcpu_real(v) ? deliver_real(v, e) : deliver_protected(v, e);
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
        if (!deliver_once(v, &e))
            return CPU_JUMP;

        struct exception second = v->exc;
        recognise(v, &second);
        /* #DB comes from the T flag of a task that was switched to: a trap, not a failure. */
        if (e.source == FROM_EXCEPTION && e.vector == EXC_DF && second.vector != EXC_DB) {
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

    return deliver_once(v, &e) ? CPU_EXCEPTION : CPU_JUMP;
}

enum cpu_result cpu_int_n(struct vcpu *v, uint8_t vector, uint64_t next_rip)
{
    bool restricted = (v->rflags & FL_IOPL) != FL_IOPL, redirected = false;

    if (!vcpu_v86(v))
        return cpu_software_interrupt(v, vector, next_rip);
    if ((v->cr4 & CR4_VME) && cpu_vme_redirected(v, vector, &redirected) != CPU_NEXT)
        return CPU_EXCEPTION;
    if (!redirected)
        return restricted ? cpu_raise_code(v, EXC_GP, 0)
                          : cpu_software_interrupt(v, vector, next_rip);
    /* SDM vol. 3, table 20-2, methods 5 and 6: with IOPL < 3 the program sees and clears VIF in the
     * place of IF. */
    uint64_t flags = v->rflags & ~(uint64_t)FL_RF, clear = FL_TF | FL_RF;
    if (restricted) {
        flags = (flags & ~(uint64_t)FL_IF) | FL_IOPL | (flags & FL_VIF ? FL_IF : 0);
        clear |= FL_VIF;
    } else {
        clear |= FL_IF;
    }
    const struct event e = {.vector = vector, .source = FROM_SOFTWARE, .return_rip = next_rip};
    return through_vector_table(v, 0, &e, flags, clear) ? CPU_EXCEPTION : CPU_JUMP;
}

enum cpu_result cpu_take_events(struct vcpu *v)
{
    uint32_t events = atomic_load_explicit(&v->events, memory_order_acquire);

    if (events & EV_STOP) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
        v->exit = VCPU_EXIT_STOP;
        return CPU_EXIT;
    }
    if (events & EV_A20) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_A20);
        mmu_flush_all(v);
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
        const struct platform_ops *ops = v->platform->ops;
        int vector;
        if (!ops->intr_ack_light || !ops->intr_ack_light(v->platform, v, &vector)) {
            vcpu_fp_save(v);
            vector = ops->intr_ack(v->platform, v);
        }
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
