/* Delivery of exceptions and interrupts (cpu/exception.c). */
#include "tests/unit/cpu_fixture.h"

TestSuite(cpu_exception, .init = cpu_setup, .fini = cpu_teardown);

#define HANDLER(n) (0xffffffff80000000ull + (n)*16)

struct frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

static struct frame frame_at(uint64_t rsp)
{
    struct frame f;
    memcpy(&f, ram.base + rsp, sizeof(f));
    return f;
}

Test(cpu_exception, interrupt_from_user)
{
    enter_user();
    v->gpr[RSP] = USTACK - 5;
    v->rflags |= FL_CF | FL_TF | FL_NT | FL_AC;
    v->halted = true;
    cr_assert_eq(cpu_deliver_interrupt(v, 0x40), CPU_JUMP);
    cr_assert_eq(v->rip, HANDLER(0x40));
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->seg[SEG_CS].sel, KCS);
    cr_assert_eq(v->seg[SEG_SS].sel, 0);
    cr_assert_eq(v->gpr[RSP], KSTACK - 40);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_CF | FL_AC);
    cr_assert_not(v->halted);
    struct frame f = frame_at(v->gpr[RSP]);
    cr_assert_eq(f.rip, UTEXT);
    cr_assert_eq(f.cs, UCS | 3);
    cr_assert_eq(f.rsp, USTACK - 5);
    cr_assert_eq(f.ss, UDS | 3);
    cr_assert_eq(f.rflags, FL_FIXED1 | FL_IF | FL_CF | FL_TF | FL_NT | FL_AC);
}

Test(cpu_exception, same_level_aligns_the_stack)
{
    for (unsigned slack = 0; slack < 16; slack++) {
        enter_kernel();
        v->gpr[RSP] -= slack;
        uint64_t old = v->gpr[RSP];
        set_gate(0x41, KCS, HANDLER(0x41), GATE_TRAP, 0, 0);
        v->rflags = FL_FIXED1 | FL_IF;
        cr_assert_eq(cpu_deliver_interrupt(v, 0x41), CPU_JUMP);
        cr_assert_eq(v->gpr[RSP], (old & ~15ull) - 40);
        cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF, "a trap gate keeps IF");
        struct frame f = frame_at(v->gpr[RSP]);
        cr_assert_eq(f.rsp, old);
        cr_assert_eq(f.ss, KDS);
        cr_assert_eq(v->seg[SEG_SS].sel, KDS, "SS stays without a change of CPL");
    }
}

Test(cpu_exception, ist)
{
    set_gate(2, KCS, HANDLER(2), GATE_INT, 0, 1);
    cr_assert_eq(cpu_deliver_interrupt(v, 2), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], IST1 - 40);
    cr_assert_eq(v->seg[SEG_SS].sel, KDS);
    enter_user();
    cr_assert_eq(cpu_deliver_interrupt(v, 2), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], IST1 - 40);
    cr_assert_eq(v->seg[SEG_SS].sel, 0);
}

Test(cpu_exception, error_code_and_rf)
{
    enter_user();
    cpu_raise_code(v, EXC_GP, 0x1234);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], KSTACK - 48);
    cr_assert_eq(get64(v->gpr[RSP]), 0x1234);
    struct frame f = frame_at(v->gpr[RSP] + 8);
    cr_assert_eq(f.rip, UTEXT);
    cr_assert(f.rflags & FL_RF, "faults push RF = 1");
    cr_assert_not(v->rflags & FL_RF);
}

Test(cpu_exception, debug_exception)
{
    v->dr[7] |= DR7_GD;
    v->debugctl = DEBUGCTL_BTF;
    v->rflags |= FL_RF | FL_TF;
    cr_assert_eq(cpu_debug_trap(v, DR6_BS), CPU_JUMP);
    cr_assert_eq(v->dr[6], DR6_FIXED1 | DR6_BS);
    cr_assert_not(v->dr[7] & DR7_GD);
    cr_assert_eq(v->debugctl, 0);
    struct frame f = frame_at(v->gpr[RSP]);
    cr_assert_not(f.rflags & FL_RF);
    cr_assert(f.rflags & FL_TF);
    cr_assert_not(v->rflags & FL_TF);
    /* DR6 is sticky. */
    cpu_debug_trap(v, 1);
    cr_assert_eq(v->dr[6], DR6_FIXED1 | DR6_BS | 1);
}

Test(cpu_exception, page_fault_sets_cr2)
{
    v->exc = (struct exception){
        .vector = EXC_PF, .has_error = true, .error = PF_W, .cr2 = 0xdeadbeef000};
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->cr2, 0xdeadbeef000);
    cr_assert_eq(v->rip, HANDLER(EXC_PF));
}

Test(cpu_exception, software_interrupt_dpl)
{
    enter_user();
    static struct vcpu before;
    before = *v;
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT + 2), EXC_GP, 0x80 * 8 + 2);
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->gpr[RSP], before.gpr[RSP]);
    cr_assert_eq(v->rflags, before.rflags);
    cr_assert_eq(v->cpl, 3);
    set_gate(0x80, KCS, HANDLER(0x80), GATE_INT, 3, 0);
    cr_assert_eq(cpu_software_interrupt(v, 0x80, UTEXT + 2), CPU_JUMP);
    struct frame f = frame_at(v->gpr[RSP]);
    cr_assert_eq(f.rip, UTEXT + 2);
    /* Hardware does not care about the gate's DPL. */
    enter_user();
    cr_assert_eq(cpu_deliver_interrupt(v, 0x81), CPU_JUMP);
}

Test(cpu_exception, gate_checks)
{
    enter_user();
    /* Beyond the limit. */
    v->idtr.limit = 0x80 * 16 + 14;
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, 0x402);
    v->idtr.limit = 0xfff;
    /* Wrong type: a call gate, a 64-bit TSS, a code segment. */
    set_gate(0x80, KCS, HANDLER(0x80), 12, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, 0x402);
    set_gate(0x80, KCS, HANDLER(0x80), 14 | 0x10, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, 0x402);
    /* Not present. */
    set_gate(0x80, KCS, HANDLER(0x80), GATE_INT, 3, 0);
    put64(IDT + 0x800, get64(IDT + 0x800) & ~(1ull << 47));
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_NP, 0x402);
    /* Selectors. */
    set_gate(0x80, 3, HANDLER(0x80), GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, 0);
    set_gate(0x80, 0x1000, HANDLER(0x80), GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, 0x1000);
    set_gate(0x80, KDS, HANDLER(0x80), GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, KDS);
    set_gate(0x80, ABSENT_CS, HANDLER(0x80), GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_NP, ABSENT_CS);
    set_gate(0x80, UCS32 | 3, HANDLER(0x80), GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, UCS32);
    set_gate(0x80, BAD_CS, HANDLER(0x80), GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, BAD_CS);
    /* Target and stack. */
    set_gate(0x80, KCS, NONCANON, GATE_INT, 3, 0);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_GP, 0);
    set_gate(0x80, KCS, HANDLER(0x80), GATE_INT, 3, 0);
    put64(TSS + 4, NONCANON);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_SS, 0);
    put64(TSS + 4, UNMAPPED);
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_PF, PF_W);
    cr_assert_eq(v->exc.cr2, UNMAPPED - 40);
    v->tr.limit = 10;
    expect_fault_code(cpu_software_interrupt(v, 0x80, UTEXT), EXC_TS, TSS_SEL);
    cr_assert_eq(v->cpl, 3);
}

Test(cpu_exception, conforming_handler_keeps_cpl)
{
    enter_user();
    set_gate(0x42, CONF_CS, HANDLER(0x42), GATE_INT, 3, 0);
    cr_assert_eq(cpu_deliver_interrupt(v, 0x42), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->seg[SEG_CS].sel, CONF_CS | 3);
    cr_assert_eq(v->gpr[RSP], USTACK - 40);
    /* Such a push is a user access. */
    enter_user();
    v->gpr[RSP] = KSTACK;
    expect_fault_code(cpu_software_interrupt(v, 0x42, UTEXT), EXC_PF, PF_W | PF_U | PF_P);
}

Test(cpu_exception, fault_in_delivery_has_ext)
{
    enter_user();
    set_gate(0x40, 0x1000, HANDLER(0x40), GATE_INT, 0, 0);
    cr_assert_eq(cpu_deliver_interrupt(v, 0x40), CPU_JUMP);
    cr_assert_eq(v->rip, HANDLER(EXC_GP));
    cr_assert_eq(get64(v->gpr[RSP]), 0x1001);
    v->idtr.limit = 0x3ff;
    enter_user();
    cr_assert_eq(cpu_deliver_interrupt(v, 0x40), CPU_JUMP);
    cr_assert_eq(get64(v->gpr[RSP]), 0x40 * 8 + 3);
}

Test(cpu_exception, double_fault_table)
{
    static const struct {
        uint8_t first, second;
        bool df;
    } cases[] = {
        {EXC_GP, EXC_NP, true},  {EXC_DE, EXC_NP, true},  {EXC_PF, EXC_NP, true},
        {EXC_SS, EXC_NP, true},  {EXC_UD, EXC_NP, false}, {EXC_DB, EXC_NP, false},
        {EXC_GP, EXC_PF, false}, {EXC_PF, EXC_PF, true},  {EXC_UD, EXC_PF, false},
        {EXC_AC, EXC_NP, false}, {EXC_MF, EXC_NP, false},
    };

    set_gate(EXC_DF, KCS, HANDLER(EXC_DF), GATE_INT, 0, 1);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (unsigned n = 0; n < 32; n++)
            if (n != EXC_DF)
                set_gate(n, KCS, HANDLER(n), GATE_INT, 0, 0);
        /* The first handler's gate is absent, or its IST stack is not mapped. */
        if (cases[i].second == EXC_NP)
            put64(IDT + cases[i].first * 16, get64(IDT + cases[i].first * 16) & ~(1ull << 47));
        else
            set_gate(cases[i].first, KCS, HANDLER(0), GATE_INT, 0, 2);
        put64(TSS + 44, UNMAPPED + 0x100);
        enter_user();
        v->exc = (struct exception){.vector = cases[i].first,
                                    .has_error = cases[i].first >= 10 && cases[i].first < 16,
                                    .cr2 = 0x1111};
        cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
        cr_assert_eq(v->rip, HANDLER(cases[i].df ? EXC_DF : cases[i].second), "case %u", i);
        if (cases[i].df)
            cr_assert_eq(get64(v->gpr[RSP]), 0);
        if (cases[i].second == EXC_PF)
            cr_assert_eq(v->cr2, UNMAPPED + 0x100 - (cases[i].first >= 10 ? 48 : 40),
                         "CR2 is that of the second page fault");
    }
}

Test(cpu_exception, triple_fault)
{
    v->idtr.limit = 0;
    v->rip = 0xffffffff81234567;
    cpu_raise(v, EXC_UD);
    cr_assert_eq(cpu_deliver_exception(v), CPU_EXIT);
    cr_assert_eq(v->exit, VCPU_EXIT_TRIPLE);
    cr_assert_not_null(strstr(v->exit_reason, "ffffffff81234567"));
    cr_assert_not_null(strstr(v->exit_reason, "vector 6"));
    cr_assert_eq(v->rip, 0xffffffff81234567);
}

Test(cpu_exception, events)
{
    cr_assert_eq(cpu_take_events(v), CPU_NEXT);
    fake.intr[0] = 0x50;
    fake.n_intr = 1;
    v->events = EV_INTR;
    cr_assert_eq(cpu_take_events(v), CPU_NEXT, "IF = 0");
    v->rflags |= FL_IF;
    v->interrupt_shadow = 1;
    cr_assert_eq(cpu_take_events(v), CPU_NEXT, "shadow");
    cr_assert_eq(v->interrupt_shadow, 0);
    cr_assert_eq(cpu_take_events(v), CPU_JUMP);
    cr_assert_eq(v->rip, HANDLER(0x50));
    cr_assert_eq(v->events, 0);
    /* NMI: needs no IF, blocks the next one until IRET. */
    v->events = EV_NMI;
    cr_assert_eq(cpu_take_events(v), CPU_JUMP);
    cr_assert_eq(v->rip, HANDLER(2));
    v->events = EV_NMI;
    cr_assert_eq(cpu_take_events(v), CPU_NEXT);
    cr_assert_eq(RUN(0x48, 0xcf), CPU_JUMP);
    cr_assert_eq(cpu_take_events(v), CPU_JUMP);
    v->events = EV_STOP | EV_INTR;
    cr_assert_eq(cpu_take_events(v), CPU_EXIT);
    cr_assert_eq(v->exit, VCPU_EXIT_STOP);
    cr_assert_eq(v->events, EV_INTR);
}

Test(cpu_exception, hlt)
{
    v->rflags |= FL_IF;
    cr_assert_eq(RUN(0xf4), CPU_EXIT);
    cr_assert_eq(v->exit, VCPU_EXIT_HLT);
    cr_assert(v->halted);
    cr_assert_eq(v->rip, KTEXT + 1);
    /* Still nothing: still halted.  A spurious event does not wake it up. */
    v->events = EV_INTR;
    cr_assert_eq(cpu_take_events(v), CPU_EXIT);
    cr_assert(v->halted);
    fake.intr[0] = 0x50;
    fake.n_intr = 1;
    v->events = EV_INTR;
    cr_assert_eq(cpu_take_events(v), CPU_JUMP);
    cr_assert_not(v->halted);
    cr_assert_eq(frame_at(v->gpr[RSP]).rip, KTEXT + 1);
    /* Pending before the HLT: STI; HLT does not sleep. */
    enter_kernel();
    fake.next_intr = 0;
    v->events = EV_INTR;
    cr_assert_eq(RUN(0xfb), CPU_JUMP);
    cr_assert_eq(v->interrupt_shadow, 1);
    cr_assert_eq(RUN(0xf4), CPU_JUMP);
    cr_assert_eq(frame_at(v->gpr[RSP]).rip, KTEXT + 2);
    enter_user();
    expect_fault_code(RUN(0xf4), EXC_GP, 0);
}

Test(cpu_exception, smap_and_wp_apply_to_system_accesses)
{
    /* An IDT in a user page is read with supervisor rights and SMAP, whatever AC says. */
    v->cr4 |= CR4_SMAP;
    v->rflags |= FL_AC;
    memcpy(ram.base + UDATA, ram.base + IDT, 4096);
    v->idtr.base = UDATA;
    expect_fault_code(cpu_software_interrupt(v, 3, KTEXT), EXC_PF, PF_P);
    cr_assert_eq(v->exc.cr2, UDATA + 48);
}
