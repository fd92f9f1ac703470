/* Real-address mode: segments, transfers, interrupts, reset and INIT states, A20. */
#include "tests/unit/legacy_fixture.h"

static void setup(void)
{
    legacy_setup();
    enter_real();
}

TestSuite(cpu_real, .init = setup, .fini = cpu_teardown);

Test(cpu_real, mode_queries)
{
    cr_assert_eq(vcpu_mode(v), CPU_REAL);
    cr_assert(vcpu_real(v));
    cr_assert_eq(vcpu_code_size(v), 2);
    cr_assert_eq(vcpu_stack_size(v), 2);
    v->cr0 |= CR0_PE;
    enter_flat32(0);
    cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
    cr_assert_eq(vcpu_code_size(v), 4);
    v->rflags |= FL_VM;
    cr_assert_eq(vcpu_mode(v), CPU_V86);
}

Test(cpu_real, segment_loads_keep_the_limit)
{
    v->seg[SEG_DS].limit = 0xffffffff; /* unreal mode */
    v->seg[SEG_DS].attr = 0x93 | SEGA_G | SEGA_DB;
    cr_assert_eq(cpu_load_segment(v, SEG_DS, 0x1234), CPU_NEXT);
    cr_assert_eq(v->seg[SEG_DS].base, 0x12340);
    cr_assert_eq(v->seg[SEG_DS].sel, 0x1234);
    cr_assert_eq(v->seg[SEG_DS].limit, 0xffffffff);
    cr_assert_eq(v->seg[SEG_DS].attr, 0x93 | SEGA_G | SEGA_DB);
    /* A read-only segment of protected mode becomes writable, a null one gets 64K. */
    v->seg[SEG_ES] = (struct segment){.attr = 0x91, .limit = 0xfff};
    cpu_load_segment(v, SEG_ES, 0);
    cr_assert_eq(v->seg[SEG_ES].attr, 0x93);
    cr_assert_eq(v->seg[SEG_ES].limit, 0xfff);
    v->seg[SEG_ES] = (struct segment){0};
    cpu_load_segment(v, SEG_ES, 0xffff);
    cr_assert_eq(v->seg[SEG_ES].base, 0xffff0);
    cr_assert_eq(v->seg[SEG_ES].limit, 0xffff);
}

Test(cpu_real, unreal_mode_from_the_beginning)
{
    /* The usual sequence: PE on, load DS with a flat selector, PE off, load DS again. */
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PE), CPU_NEXT);
    cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
    cr_assert_eq(v->seg[SEG_CS].base, 0x10000, "CS stays until it is loaded");
    cr_assert_eq(cpu_load_segment(v, SEG_DS, L_KDS), CPU_NEXT);
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 & ~(uint64_t)CR0_PE), CPU_NEXT);
    cr_assert_eq(cpu_load_segment(v, SEG_DS, 0x4000), CPU_NEXT);
    uint64_t lin;
    cr_assert_eq(cpu_linear(v, SEG_DS, 0x200000, 4, MMU_WRITE, &lin), 0);
    cr_assert_eq(lin, 0x240000);
    cr_assert_eq(cpu_key_kind(v->mode_key, SEG_DS), SEGK_BASE);
    cr_assert_eq(cpu_key_kind(v->mode_key, SEG_ES), SEGK_BASE64K);
    cr_assert(v->mode_key & SEGKEY_REAL);
}

Test(cpu_real, limits)
{
    static const struct {
        uint64_t offset;
        unsigned size;
        bool ok;
    } cases[] = {
        {0, 1, true},       {0xffff, 1, true},   {0xfffe, 2, true}, {0xffff, 2, false},
        {0xfffd, 4, false}, {0x10000, 1, false}, {0xfff8, 8, true}, {0xfff9, 8, false},
    };
    static const unsigned segs[] = {SEG_DS, SEG_SS, SEG_CS};

    for (unsigned s = 0; s < 3; s++)
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            uint64_t lin;
            int r = cpu_linear(v, segs[s], cases[i].offset, cases[i].size, MMU_WRITE, &lin);
            cr_assert_eq(r, cases[i].ok ? 0 : -1, "segment %u case %u", segs[s], i);
            if (r) {
                cr_assert_eq(v->exc.vector, segs[s] == SEG_SS ? EXC_SS : EXC_GP);
            } else {
                cr_assert_eq(lin, v->seg[segs[s]].base + cases[i].offset);
            }
        }
}

Test(cpu_real, linear_addresses_wrap_at_4g_not_at_1m)
{
    uint64_t lin;
    cpu_load_segment(v, SEG_DS, 0xffff);
    cr_assert_eq(cpu_linear(v, SEG_DS, 0xffff, 1, MMU_READ, &lin), 0);
    cr_assert_eq(lin, 0x10ffef);
    v->seg[SEG_DS].base = 0xffff0000;
    v->seg[SEG_DS].limit = 0xffffffff;
    cr_assert_eq(cpu_linear(v, SEG_DS, 0x20000, 1, MMU_READ, &lin), 0);
    cr_assert_eq(lin, 0x10000);
}

Test(cpu_real, far_jump_call_return)
{
    cr_assert_eq(cpu_far_jump(v, 0x1800, 0x8000, 0), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x1800);
    cr_assert_eq(v->seg[SEG_CS].base, 0x18000);
    cr_assert_eq(v->seg[SEG_CS].attr, 0x9b);
    cr_assert_eq(v->rip, 0x8000);
    expect_fault_code(cpu_far_jump(v, 0, 0x10000, 0), EXC_GP, 0);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x1800);
    for (unsigned size = 2; size <= 4; size += 2) {
        enter_real();
        cr_assert_eq(cpu_far_call(v, 0x1800, 0x8000, size, 0x105), CPU_JUMP);
        cr_assert_eq(v->gpr[RSP], 0x1000 - 2 * size);
        cr_assert_eq(get16(0x21000 - 2 * size), 0x105);
        cr_assert_eq(get16(0x21000 - size), 0x1000);
        cr_assert_eq(cpu_far_return(v, size, 6), CPU_JUMP);
        cr_assert_eq(v->rip, 0x105);
        cr_assert_eq(v->seg[SEG_CS].base, 0x10000);
        cr_assert_eq(v->gpr[RSP], 0x1006);
    }
    /* A 32-bit return beyond the limit. */
    put32(0x21000, 0x10000);
    v->gpr[RSP] = 0x1000;
    expect_fault_code(cpu_far_return(v, 4, 0), EXC_GP, 0);
    cr_assert_eq(v->gpr[RSP], 0x1000);
}

Test(cpu_real, stack_wraps_at_64k)
{
    /* SP = 0: the pushes go to FFFEH and FFFCH; the upper half of ESP stays. */
    v->gpr[RSP] = 0xabcd0000;
    cr_assert_eq(cpu_far_call(v, 0x1800, 0, 2, 0x105), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], 0xabcdfffc);
    cr_assert_eq(get16(0x2fffc), 0x105);
    cr_assert_eq(get16(0x2fffe), 0x1000);
    cr_assert_eq(cpu_far_return(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], 0xabcd0000);
    /* SP = 2: one word at 0, the next at FFFEH. */
    v->gpr[RSP] = 2;
    cr_assert_eq(cpu_far_call(v, 0x1800, 0, 2, 0x106), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], 0xfffe);
    cr_assert_eq(get16(0x2fffe), 0x106);
    cr_assert_eq(get16(0x20000), 0x1000);
    cr_assert_eq(cpu_far_return(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->rip, 0x106);
    cr_assert_eq(v->gpr[RSP], 2);
    /* SP = 1: a word across the end of the segment. */
    v->gpr[RSP] = 1;
    expect_fault_code(cpu_far_call(v, 0x1800, 0, 2, 0x106), EXC_SS, 0);
    cr_assert_eq(v->gpr[RSP], 1);
    cr_assert_eq(v->rip, 0x106);
}

Test(cpu_real, interrupt_and_iret)
{
    v->rflags |= FL_TF | FL_AC | FL_CF | FL_IOPL | FL_NT;
    v->halted = true;
    cr_assert_eq(cpu_deliver_interrupt(v, 0x21), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x3000);
    cr_assert_eq(v->rip, 0x210);
    cr_assert_eq(v->gpr[RSP], 0xffa);
    cr_assert_eq(get16(0x20ffa), 0x100);
    cr_assert_eq(get16(0x20ffc), 0x1000);
    cr_assert_eq(get16(0x20ffe), FL_FIXED1 | FL_IF | FL_TF | FL_CF | FL_IOPL | FL_NT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_CF | FL_IOPL | FL_NT);
    cr_assert_not(v->halted);
    v->nmi_blocked = true;
    cr_assert_eq(cpu_iret(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->rip, 0x100);
    cr_assert_eq(v->seg[SEG_CS].base, 0x10000);
    cr_assert_eq(v->gpr[RSP], 0x1000);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF | FL_TF | FL_CF | FL_IOPL | FL_NT);
    cr_assert_not(v->nmi_blocked);
}

Test(cpu_real, iret32)
{
    put32(0x21000, 0x222);
    put32(0x21004, 0x1000);
    put32(0x21008, ~0u);
    v->rflags = FL_FIXED1;
    cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
    cr_assert_eq(v->rip, 0x222);
    cr_assert_eq(v->gpr[RSP], 0x100c);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_HOST | FL_TF | FL_IF | FL_IOPL | FL_NT | FL_AC | FL_ID,
                 "VM, VIF and VIP are not IRET's in real mode");
    put32(0x21000, 0x10000);
    v->gpr[RSP] = 0x1000;
    expect_fault_code(cpu_iret(v, 4, 0), EXC_GP, 0);
}

Test(cpu_real, exceptions_push_no_error_code)
{
    cpu_raise_code(v, EXC_GP, 0x1234);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], 0xffa);
    cr_assert_eq(get16(0x20ffa), 0x100);
    cr_assert_eq(v->rip, EXC_GP * 16);
}

Test(cpu_real, table_limit_and_shutdown)
{
    v->idtr.limit = 0x20 * 4 - 1;
    expect_fault_code(cpu_int_n(v, 0x20, 0x102), EXC_GP, 0x20 * 8 + 2);
    cr_assert_eq(cpu_int_n(v, 0x1f, 0x102), CPU_JUMP);
    enter_real();
    v->idtr.limit = 0x20 * 4 - 1;
    cr_assert_eq(cpu_deliver_interrupt(v, 0x20), CPU_JUMP);
    cr_assert_eq(v->rip, EXC_GP * 16, "#GP instead");
    /* SP = 1: #SS, then #SS again: double fault, which cannot push either. */
    enter_real();
    v->gpr[RSP] = 1;
    cr_assert_eq(cpu_deliver_interrupt(v, 8), CPU_EXIT);
    cr_assert_eq(v->exit, VCPU_EXIT_TRIPLE);
    /* The table may be anywhere. */
    enter_real();
    v->idtr = (struct dtable){.base = KDATA, .limit = 0x3ff};
    put32(KDATA + 4 * 5, 0x12340005);
    cr_assert_eq(cpu_int_n(v, 5, 0x102), CPU_JUMP);
    cr_assert_eq(v->rip, 5);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x1234);
    cr_assert_eq(get16(0x20ffa), 0x102);
}

Test(cpu_real, what_does_not_exist)
{
    uint32_t out;
    expect_fault(cpu_lldt(v, 0), EXC_UD);
    expect_fault(cpu_ltr(v, 0), EXC_UD);
    cr_assert_eq(cpu_lar(v, L_KDS, &out), -1);
    cr_assert_eq(v->exc.vector, EXC_UD);
    cr_assert_eq(cpu_lsl(v, L_KDS, &out), -1);
    cr_assert_eq(cpu_verify(v, L_KDS, false), -1);
    expect_fault_code(cpu_sysenter(v), EXC_GP, 0);
    expect_fault_code(cpu_sysexit(v, 4), EXC_GP, 0);
    v->efer |= EFER_SCE;
    expect_fault(cpu_syscall(v, 0), EXC_UD);
}

Test(cpu_real, flags)
{
    uint64_t image;
    v->rflags = FL_FIXED1 | FL_IOPL | FL_RF;
    cr_assert_eq(cpu_pushf(v, 2, &image), CPU_NEXT);
    cr_assert_eq(image, FL_FIXED1 | FL_IOPL);
    cr_assert_eq(cpu_popf(v, 0xffff, 2), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_HOST | FL_TF | FL_IF | FL_IOPL | FL_NT);
    cr_assert_eq(cpu_cli(v), CPU_NEXT);
    cr_assert_not(v->rflags & FL_IF);
    cr_assert_eq(cpu_sti(v), CPU_NEXT);
    cr_assert(v->rflags & FL_IF);
    cr_assert_eq(v->interrupt_shadow, 1);
    cr_assert_eq(cpu_io_check(v, 0x60, 1), CPU_NEXT);
}

/* -- Initial states. -----------------------------------------------------------------------------
 */

Test(cpu_real, reset_state)
{
    vcpu_reset(v);
    cr_assert_eq(vcpu_mode(v), CPU_REAL);
    cr_assert_eq(v->seg[SEG_CS].sel, 0xf000);
    cr_assert_eq(v->seg[SEG_CS].base, 0xffff0000);
    cr_assert_eq(v->rip, 0xfff0);
    cr_assert_eq(v->cr0, 0x60000010);
    cr_assert_eq(v->idtr.limit, 0xffff);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cr_assert_eq(v->seg[i].limit, 0xffff);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
    /* The first far jump leaves the top of memory. */
    cr_assert_eq(cpu_far_jump(v, 0xf000, 0xe05b, 0), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_CS].base, 0xf0000);
}

Test(cpu_real, init_keeps_msrs_and_sipi_starts)
{
    enter_flat32(0);
    v->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_CD;
    v->efer = EFER_NX;
    v->pat = 0x0007010600070106ull;
    v->mtrr_def_type = 0xc06;
    v->xcr0 = 3;
    v->tsc_offset = 123;
    v->tsc_adjust = 7;
    v->dr[7] = 0x401;
    v->gpr[RBX] = 1;
    vcpu_init(v);
    cr_assert_eq(v->cr0, CR0_ET | CR0_CD);
    cr_assert_eq(v->efer, 0);
    cr_assert_eq(v->pat, 0x0007010600070106ull);
    cr_assert_eq(v->mtrr_def_type, 0xc06);
    cr_assert_eq(v->xcr0, 3);
    cr_assert_eq(v->tsc_offset, 123);
    cr_assert_eq(v->dr[7], DR7_FIXED1);
    cr_assert_eq(v->gpr[RBX], 0);
    vcpu_start(v, 0x9a);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x9a00);
    cr_assert_eq(v->seg[SEG_CS].base, 0x9a000);
    cr_assert_eq(v->rip, 0);
    cr_assert_eq(vcpu_mode(v), CPU_REAL);
}

Test(cpu_real, boot_states)
{
    vcpu_reset(v);
    vcpu_setup_real(v, 0, 0x7c00, 0x50, 0, 0x7000);
    cr_assert_eq(vcpu_mode(v), CPU_REAL);
    cr_assert_eq(v->seg[SEG_CS].base, 0);
    cr_assert_eq(v->seg[SEG_DS].base, 0x500);
    cr_assert_eq(v->seg[SEG_SS].limit, 0xffff);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
    vcpu_reset(v);
    vcpu_setup_flat32(v, 0x100000, GDT, L_GDT_LIMIT, L_KCS, L_KDS);
    cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
    cr_assert_eq(vcpu_code_size(v), 4);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cr_assert(cpu_segment_flat(v, i));
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
}

/* -- A20. ----------------------------------------------------------------------------------------
 */

Test(cpu_real, a20)
{
    uint8_t byte = 0;
    put64(0x12345, 0x11);
    put64(0x112345, 0x22);
    cr_assert_eq(mmu_load(v, 0x112345, &byte, 1, MMU_READ, false), 0);
    cr_assert_eq(byte, 0x22);
    vcpu_set_a20(v, false);
    cr_assert(v->events & EV_A20);
    cr_assert_eq(cpu_take_events(v), CPU_NEXT);
    cr_assert_not(v->events & EV_A20);
    cr_assert_eq(mmu_load(v, 0x112345, &byte, 1, MMU_READ, false), 0);
    cr_assert_eq(byte, 0x11);
    cr_assert_eq(mmu_load(v, 0x212345, &byte, 1, MMU_READ, false), 0);
    cr_assert_eq(byte, 0, "only bit 20 is masked");
    atomic_store(&v->events, 0);
    vcpu_set_a20(v, false);
    cr_assert_eq(v->events, 0, "no change");
    vcpu_set_a20(v, true);
    cpu_take_events(v);
    cr_assert_eq(mmu_load(v, 0x112345, &byte, 1, MMU_READ, false), 0);
    cr_assert_eq(byte, 0x22);
    vcpu_set_a20(v, false);
    vcpu_reset(v);
    cr_assert_not(v->a20_off);
}
