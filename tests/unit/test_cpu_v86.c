/* Virtual-8086 mode with and without VME (SDM vol. 3, chapter 20). */
#include "tests/unit/legacy_fixture.h"

TestSuite(cpu_v86, .init = legacy_setup, .fini = cpu_teardown);

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

Test(cpu_v86, iret_enters)
{
    const uint32_t frame[9] = {0xffff0,    0x1000, FL_FIXED1 | FL_VM | FL_IF | FL_IOPL | FL_NT,
                               0x77770ffe, 0x2000, 0x3000,
                               0x4000,     0x5000, 0x6000};
    put(v->gpr[RSP], frame, sizeof(frame));
    expect_fault_code(cpu_iret(v, 4, 0), EXC_GP, 0); /* EIP > FFFFH */
    cr_assert_eq(v->cpl, 0);
    cr_assert_not(v->rflags & FL_VM);
    put32(v->gpr[RSP], 0x100);
    cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
    cr_assert_eq(vcpu_mode(v), CPU_V86);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->rip, 0x100);
    cr_assert_eq(v->gpr[RSP], 0x77770ffe);
    static const uint16_t sel[6] = {0x3000, 0x1000, 0x2000, 0x4000, 0x5000, 0x6000};
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        cr_assert_eq(v->seg[i].sel, sel[i], "segment %u", i);
        cr_assert_eq(v->seg[i].base, sel[i] * 16);
        cr_assert_eq(v->seg[i].limit, 0xffff);
        cr_assert_eq(v->seg[i].attr, 0xf3);
    }
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_IF | FL_IOPL | FL_NT);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
    cr_assert(v->mode_key & SEGKEY_V86);
    cr_assert_eq(vcpu_stack_size(v), 2);
}

Test(cpu_v86, only_cpl_0_and_32_bits_enter)
{
    const uint32_t frame[9] = {UTEXT, L_UCS, FL_FIXED1 | FL_VM, USTACK, L_UDS, 0, 0, 0, 0};
    enter_flat32(3);
    v->gpr[RSP] -= 64;
    put(v->gpr[RSP], frame, sizeof(frame));
    cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
    cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
    cr_assert_eq(v->gpr[RSP], USTACK - 52);
}

Test(cpu_v86, interrupt_leaves_and_iret_returns)
{
    for (unsigned type = SYS_INT_GATE16; type <= SYS_INT_GATE; type += 8) {
        unsigned size = type & 8 ? 4 : 2;
        enter_v86(0);
        set_gate32(0x40, L_KCS, 0x4000, type, 0);
        v->rflags |= FL_NT | FL_CF;
        uint64_t flags = v->rflags;
        cr_assert_eq(cpu_deliver_interrupt(v, 0x40), CPU_JUMP);
        cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
        cr_assert_eq(v->cpl, 0);
        cr_assert_eq(v->gpr[RSP], L_KTOP - 9 * size);
        const uint32_t want[9] = {0x100,  0x1000, (uint32_t)flags, 0x1000, 0x2000,
                                  0x4000, 0x4003, 0x4004,          0x4005};
        for (unsigned i = 0; i < 9; i++) {
            uint32_t w = 0;
            memcpy(&w, ram.base + v->gpr[RSP] + i * size, size);
            cr_assert_eq(w, want[i] & (uint32_t)size_mask(size), "word %u", i);
        }
        for (unsigned i = 0; i < SEG_COUNT; i++)
            if (i != SEG_CS && i != SEG_SS)
                cr_assert(v->seg[i].sel == 0 && v->seg[i].attr == 0);
        cr_assert_eq(v->rflags, FL_FIXED1 | FL_CF);
        cr_assert_eq(v->mode_key, cpu_segment_key(v));
        if (size == 4) {
            cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
            cr_assert_eq(vcpu_mode(v), CPU_V86);
            cr_assert_eq(v->rflags, flags);
            cr_assert_eq(v->seg[SEG_GS].sel, 0x4005);
            cr_assert_eq(v->gpr[RSP], 0x1000);
        }
    }
    /* With an error code below it. */
    enter_v86(0);
    cpu_raise_code(v, EXC_GP, 0);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], L_KTOP - 40);
    cr_assert_eq(get32(v->gpr[RSP]), 0);
    cr_assert_eq(get32(v->gpr[RSP] + 4), 0x100);
}

Test(cpu_v86, handlers_must_be_at_level_0)
{
    static const uint16_t sel[] = {L_CS1, L_CONF, L_UCS};

    for (unsigned i = 0; i < COUNT(sel); i++) {
        enter_v86(3);
        set_gate32(0x40, sel[i], KTEXT, SYS_INT_GATE, 3);
        expect_fault_code(cpu_int_n(v, 0x40, 0x102), EXC_GP, sel[i] & ~3u);
        cr_assert_eq(vcpu_mode(v), CPU_V86);
    }
}

Test(cpu_v86, segments_and_transfers_are_those_of_real_mode)
{
    enter_v86(0);
    cr_assert_eq(cpu_load_segment(v, SEG_DS, 0x1234), CPU_NEXT);
    cr_assert_eq(v->seg[SEG_DS].base, 0x12340);
    cr_assert_eq(cpu_far_call(v, 0x1800, 0x20, 2, 0x105), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_CS].attr, 0xf3);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(cpu_far_return(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->rip, 0x105);
    uint64_t lin;
    cr_assert_eq(cpu_linear(v, SEG_DS, 0xffff, 2, MMU_READ, &lin), -1);
    expect_fault_code(CPU_EXCEPTION, EXC_GP, 0);
    cr_assert_eq(cpu_linear(v, SEG_CS, 0x10, 2, MMU_WRITE, &lin), 0);
    uint32_t out;
    cr_assert_eq(cpu_lar(v, L_UDS, &out), -1);
    cr_assert_eq(v->exc.vector, EXC_UD);
    expect_fault(cpu_ltr(v, L_TSS_B), EXC_UD);
    expect_fault_code(cpu_mov_to_cr(v, 0, 0), EXC_GP, 0);
    expect_fault_code(cpu_hlt(v, 0), EXC_GP, 0);
}

/* What the IOPL-sensitive instructions do: SDM vol. 3, table 20-2 and vol. 2. */
Test(cpu_v86, iopl_sensitive_without_vme)
{
    uint64_t image;

    enter_v86(2);
    expect_fault_code(cpu_cli(v), EXC_GP, 0);
    expect_fault_code(cpu_sti(v), EXC_GP, 0);
    expect_fault_code(cpu_pushf(v, 2, &image), EXC_GP, 0);
    expect_fault_code(cpu_popf(v, 0, 2), EXC_GP, 0);
    expect_fault_code(cpu_iret(v, 2, 0), EXC_GP, 0);
    expect_fault_code(cpu_int_n(v, 0x21, 0x102), EXC_GP, 0);
    /* INT3 and INTO are not. */
    set_gate32(EXC_BP, L_KCS, KTEXT, SYS_INT_GATE, 3);
    cr_assert_eq(cpu_software_interrupt(v, EXC_BP, 0x101), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);

    enter_v86(3);
    cr_assert_eq(cpu_cli(v), CPU_NEXT);
    cr_assert_not(v->rflags & FL_IF);
    cr_assert_eq(cpu_sti(v), CPU_NEXT);
    cr_assert_eq(cpu_pushf(v, 4, &image), CPU_NEXT);
    cr_assert_eq(image, FL_FIXED1 | FL_IF | FL_IOPL);
    cr_assert_eq(cpu_popf(v, 0, 2), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_IOPL, "IOPL is not the program's");
    cr_assert_eq(cpu_popf(v, ~0ull, 4), CPU_NEXT);
    cr_assert_eq(v->rflags,
                 FL_FIXED1 | FL_VM | FL_IOPL | FL_HOST | FL_TF | FL_IF | FL_NT | FL_AC | FL_ID);
    put16(0x21000, 0x200);
    put16(0x21002, 0x1100);
    put16(0x21004, 0);
    cr_assert_eq(cpu_iret(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x1100);
    cr_assert_eq(v->gpr[RSP], 0x1006);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_IOPL | FL_AC | FL_ID);
}

Test(cpu_v86, virtual_interrupt_flag)
{
    uint64_t image;

    v->cr4 |= CR4_VME;
    enter_v86(0);
    v->rflags &= ~(uint64_t)FL_IF;
    cr_assert_eq(cpu_sti(v), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_VIF);
    cr_assert_eq(cpu_pushf(v, 2, &image), CPU_NEXT);
    cr_assert_eq(image & 0xffff, FL_FIXED1 | FL_IF | FL_IOPL);
    expect_fault_code(cpu_pushf(v, 4, &image), EXC_GP, 0);
    cr_assert_eq(cpu_cli(v), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM);
    cr_assert_eq(cpu_popf(v, FL_IF | FL_CF | FL_IOPL, 2), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_VIF | FL_CF);
    expect_fault_code(cpu_popf(v, 0, 4), EXC_GP, 0);
    expect_fault_code(cpu_popf(v, FL_TF, 2), EXC_GP, 0);
    v->rflags |= FL_VIP;
    expect_fault_code(cpu_popf(v, FL_IF, 2), EXC_GP, 0);
    expect_fault_code(cpu_sti(v), EXC_GP, 0);
    cr_assert_eq(cpu_popf(v, 0, 2), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_VIP);
    /* IRET. */
    put16(0x21000, 0x200);
    put16(0x21002, 0x1100);
    put16(0x21004, FL_IF);
    expect_fault_code(cpu_iret(v, 2, 0), EXC_GP, 0);
    cr_assert_eq(v->gpr[RSP], 0x1000);
    v->rflags &= ~(uint64_t)FL_VIP;
    cr_assert_eq(cpu_iret(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_VIF);
    expect_fault_code(cpu_iret(v, 4, 0), EXC_GP, 0);
    put16(0x21006 + 4, FL_TF);
    expect_fault_code(cpu_iret(v, 2, 0), EXC_GP, 0);
}

Test(cpu_v86, interrupt_redirection)
{
    /* The map is the 32 bytes below the I/O map. */
    put16(L_TSS_A_ADDR + 102, 104 + 32);
    memset(ram.base + L_TSS_A_ADDR + 104, 0xff, 32);
    ram.base[L_TSS_A_ADDR + 104 + 4] = 0xfd; /* vector 21H to the program */
    v->cr4 |= CR4_VME;

    /* Method 6. */
    enter_v86(0);
    v->rflags |= FL_VIF | FL_CF;
    v->rflags &= ~(uint64_t)FL_IF;
    cr_assert_eq(cpu_int_n(v, 0x21, 0x102), CPU_JUMP);
    cr_assert_eq(vcpu_mode(v), CPU_V86);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x3000);
    cr_assert_eq(v->rip, 0x210);
    cr_assert_eq(v->gpr[RSP], 0xffa);
    cr_assert_eq(get16(0x20ffa), 0x102);
    cr_assert_eq(get16(0x20ffc), 0x1000);
    cr_assert_eq(get16(0x20ffe), FL_FIXED1 | FL_CF | FL_IF | FL_IOPL);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_CF);
    /* Method 5. */
    enter_v86(3);
    cr_assert_eq(cpu_int_n(v, 0x21, 0x102), CPU_JUMP);
    cr_assert_eq(v->rip, 0x210);
    cr_assert_eq(get16(0x20ffe), FL_FIXED1 | FL_IF | FL_IOPL);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_VM | FL_IOPL);
    /* Method 4: to the monitor, if the gate lets it. */
    enter_v86(3);
    expect_fault_code(cpu_int_n(v, 0x22, 0x102), EXC_GP, 0x22 * 8 + 2);
    set_gate32(0x22, L_KCS, KTEXT, SYS_INT_GATE, 3);
    cr_assert_eq(cpu_int_n(v, 0x22, 0x102), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);
    /* Method 3. */
    enter_v86(0);
    expect_fault_code(cpu_int_n(v, 0x22, 0x102), EXC_GP, 0);
    /* No map. */
    v->tr.limit = 103;
    expect_fault_code(cpu_int_n(v, 0x21, 0x102), EXC_GP, 0);
    v->tr.limit = 104 + 32;
    put16(L_TSS_A_ADDR + 102, 16);
    expect_fault_code(cpu_int_n(v, 0x21, 0x102), EXC_GP, 0);
    /* Exceptions are never redirected. */
    enter_v86(0);
    cpu_raise(v, EXC_DE);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);
}

Test(cpu_v86, virtual_interrupt_waiting_at_entry)
{
    const uint32_t frame[9] = {0x100, 0x1000, FL_FIXED1 | FL_VM | FL_VIF | FL_VIP, 0x1000, 0x2000};
    put(v->gpr[RSP], frame, sizeof(frame));
    v->cr4 |= CR4_VME;
    expect_fault_code(cpu_iret(v, 4, 0), EXC_GP, 0);
    cr_assert_eq(vcpu_mode(v), CPU_V86, "the fault is the program's");
    cr_assert_eq(v->rip, 0x100);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], L_KTOP - 40);
}
