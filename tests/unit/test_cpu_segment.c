/* Segment loads and far control transfers (cpu/segment.c). */
#include "tests/unit/cpu_fixture.h"

TestSuite(cpu_segment, .init = cpu_setup, .fini = cpu_teardown);

static enum cpu_result mov_seg(unsigned seg, uint16_t sel)
{
    v->gpr[RAX] = sel;
    return run_bytes((const uint8_t[]){0x8e, 0xc0 | seg << 3}, 2);
}

Test(cpu_segment, data_segments)
{
    enter_user();
    cr_assert_eq(mov_seg(SEG_DS, UDS | 3), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_DS].sel, UDS | 3);
    cr_assert_eq(v->seg[SEG_DS].limit, 0xffffffff);
    cr_assert_eq(v->rip, UTEXT + 2);
    cr_assert_eq(mov_seg(SEG_ES, 0), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_ES].attr, 0);
    cr_assert_eq(mov_seg(SEG_ES, 3), CPU_JUMP);
    expect_fault_code(mov_seg(SEG_DS, KDS), EXC_GP, KDS);
    expect_fault_code(mov_seg(SEG_DS, KDS | 3), EXC_GP, KDS);
    expect_fault_code(mov_seg(SEG_DS, ABSENT_DS | 3), EXC_NP, ABSENT_DS);
    expect_fault_code(mov_seg(SEG_DS, 0x1003), EXC_GP, 0x1000);
    expect_fault_code(mov_seg(SEG_DS, XO_CS | 3), EXC_GP, XO_CS);
    expect_fault_code(mov_seg(SEG_DS, TSS_SEL | 3), EXC_GP, TSS_SEL);
    expect_fault_code(mov_seg(SEG_DS, UDS | 7), EXC_GP, UDS | 4);
    cr_assert_eq(mov_seg(SEG_DS, RO_DS | 3), CPU_JUMP);
    cr_assert_eq(mov_seg(SEG_DS, UCS | 3), CPU_JUMP, "readable code");
    cr_assert_eq(mov_seg(SEG_DS, CONF_CS | 3), CPU_JUMP, "conforming code of any DPL");
    expect_fault(run_bytes((const uint8_t[]){0x8e, 0xc8}, 2), EXC_UD);
}

Test(cpu_segment, base_and_accessed_bit)
{
    cr_assert_eq(mov_seg(SEG_FS, FRESH_DS), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_FS].base, 0x12345678);
    cr_assert_eq(get64(GDT + FRESH_DS) >> 40 & 0xff, 0x93);
    cr_assert_eq(v->seg[SEG_FS].attr & 0xff, 0x93);
    cr_assert_eq(mov_seg(SEG_FS, 0), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_FS].base, 0);
    /* A table in a read-only page cannot take the bit. */
    set_desc(FRESH_DS, get64(GDT + FRESH_DS) & ~DESC_ACCESSED);
    map_page(GDT, GDT, PTE_P, 1);
    mmu_flush_all(v);
    expect_fault_code(mov_seg(SEG_FS, FRESH_DS), EXC_PF, PF_P | PF_W);
    cr_assert_eq(v->seg[SEG_FS].base, 0);
    cr_assert_eq(mov_seg(SEG_FS, KDS), CPU_JUMP, "no write if it is set already");
}

Test(cpu_segment, stack_segment)
{
    cr_assert_eq(mov_seg(SEG_SS, KDS), CPU_JUMP);
    cr_assert_eq(v->interrupt_shadow, 1);
    cr_assert_eq(mov_seg(SEG_SS, 0), CPU_JUMP, "null at CPL 0");
    expect_fault_code(mov_seg(SEG_SS, 1), EXC_GP, 0);
    expect_fault_code(mov_seg(SEG_SS, UDS | 3), EXC_GP, UDS);
    expect_fault_code(mov_seg(SEG_SS, KCS), EXC_GP, KCS);
    enter_user();
    expect_fault_code(mov_seg(SEG_SS, 3), EXC_GP, 0);
    expect_fault_code(mov_seg(SEG_SS, RO_DS | 3), EXC_GP, RO_DS);
    expect_fault_code(mov_seg(SEG_SS, ABSENT_DS | 3), EXC_SS, ABSENT_DS);
    cr_assert_eq(mov_seg(SEG_SS, UDS | 3), CPU_JUMP);
}

Test(cpu_segment, push_pop_fs)
{
    v->seg[SEG_FS].sel = UDS;
    uint64_t rsp = v->gpr[RSP];
    cr_assert_eq(RUN(0x0f, 0xa0), CPU_NEXT);
    cr_assert_eq(v->gpr[RSP], rsp - 8);
    cr_assert_eq(get64(rsp - 8), UDS);
    cr_assert_eq(RUN(0x66, 0x0f, 0xa0), CPU_NEXT);
    cr_assert_eq(v->gpr[RSP], rsp - 10);
    cr_assert_eq(RUN(0x66, 0x0f, 0xa9), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_GS].sel, UDS);
    put64(rsp - 8, 0x1000);
    expect_fault_code(RUN(0x0f, 0xa9), EXC_GP, 0x1000);
    cr_assert_eq(v->gpr[RSP], rsp - 8);
}

Test(cpu_segment, load_far_pointer)
{
    uint8_t ptr[10] = {1, 2, 3, 4, 5, 6, 7, 8, UDS, 0};
    put(KDATA, ptr, 10);
    v->gpr[RBX] = KDATA;
    cr_assert_eq(RUN(0x48, 0x0f, 0xb4, 0x03), CPU_JUMP); /* lfs rax, [rbx] */
    cr_assert_eq(v->gpr[RAX], 0x0807060504030201);
    cr_assert_eq(v->seg[SEG_FS].sel, UDS);
    ptr[4] = 0xff;
    put(KDATA, ptr, 10);
    v->gpr[RAX] = 7;
    expect_fault_code(RUN(0x0f, 0xb5, 0x03), EXC_GP, 0x6fc); /* lgs eax, [rbx] */
    cr_assert_eq(v->gpr[RAX], 7);
}

Test(cpu_segment, ltr_lldt)
{
    v->gpr[RAX] = TSS_SEL;
    cr_assert_eq(RUN(0x0f, 0x00, 0xd8), CPU_NEXT);
    cr_assert_eq(get64(GDT + TSS_SEL) >> 40 & 0xff, 0x8b, "busy");
    cr_assert_eq(v->tr.base, TSS);
    expect_fault_code(RUN(0x0f, 0x00, 0xd8), EXC_GP, TSS_SEL);
    v->gpr[RAX] = 0;
    expect_fault_code(RUN(0x0f, 0x00, 0xd8), EXC_GP, 0);
    cr_assert_eq(RUN(0x0f, 0x00, 0xd0), CPU_NEXT);
    cr_assert_eq(v->ldtr.attr, 0);
    v->gpr[RAX] = LDT_SEL;
    cr_assert_eq(RUN(0x0f, 0x00, 0xd0), CPU_NEXT);
    cr_assert_eq(v->ldtr.base, LDT);
    put64(LDT + 8, descriptor(0x5000, 0xfffff, 0x93, 0xc));
    cr_assert_eq(mov_seg(SEG_GS, 0xc), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_GS].base, 0x5000);
    expect_fault_code(mov_seg(SEG_GS, 0x24), EXC_GP, 0x24);
    /* The second half must have type 0, and the base must be canonical. */
    set_desc(LDT_SEL + 8, 1ull << 40);
    v->gpr[RAX] = LDT_SEL;
    expect_fault_code(RUN(0x0f, 0x00, 0xd0), EXC_GP, LDT_SEL);
    set_desc(LDT_SEL + 8, 0x8000);
    expect_fault_code(RUN(0x0f, 0x00, 0xd0), EXC_GP, LDT_SEL);
    v->gpr[RAX] = 0xc;
    expect_fault_code(RUN(0x0f, 0x00, 0xd0), EXC_GP, 0xc);
    v->gdtr.limit = LDT_SEL + 8;
    v->gpr[RAX] = LDT_SEL;
    expect_fault_code(RUN(0x0f, 0x00, 0xd0), EXC_GP, LDT_SEL);
    enter_user();
    expect_fault_code(RUN(0x0f, 0x00, 0xd0), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x00, 0xd8), EXC_GP, 0);
}

static int lar(uint16_t sel)
{
    v->gpr[RBX] = sel;
    v->gpr[RAX] = 0xaaaa;
    cr_assert_eq(RUN(0x0f, 0x02, 0xc3), CPU_NEXT);
    return v->rflags & FL_ZF ? (int)v->gpr[RAX] : -1;
}

static int64_t lsl(uint16_t sel)
{
    v->gpr[RBX] = sel;
    v->gpr[RAX] = 0xaaaa;
    cr_assert_eq(RUN(0x0f, 0x03, 0xc3), CPU_NEXT);
    return v->rflags & FL_ZF ? (int64_t)v->gpr[RAX] : -1;
}

static int ver(uint16_t sel, bool write)
{
    v->gpr[RAX] = sel;
    cr_assert_eq(run_bytes((const uint8_t[]){0x0f, 0x00, write ? 0xe8 : 0xe0}, 3), CPU_NEXT);
    return !!(v->rflags & FL_ZF);
}

Test(cpu_segment, lar_lsl_verr_verw)
{
    enter_user();
    cr_assert_eq(lar(UDS | 3), 0x00cff300);
    cr_assert_eq(lar(UCS | 3), 0x00affb00);
    cr_assert_eq(lar(KDS), -1);
    cr_assert_eq(lar(0), -1);
    cr_assert_eq(lar(3), -1);
    cr_assert_eq(lar(0x1003), -1);
    cr_assert_eq(lar(0x7), -1, "no LDT");
    cr_assert_eq(lar(CONF_CS | 3), 0x00af9f00);
    cr_assert_eq(lar(GATE | 3) & 0xff00, 0xec00);
    cr_assert_eq(lsl(GATE | 3), -1, "a gate has no limit");
    cr_assert_eq(lsl(UDS | 3), 0xffffffff);
    enter_kernel();
    cr_assert_eq(lar(TSS_SEL) & 0xff00, 0x8900);
    cr_assert_eq(lsl(TSS_SEL), 104 + 8192);
    cr_assert_eq(lsl(LDT_SEL), 0x1f);
    cr_assert_eq(lar(TSS_SEL + 8), -1, "type 0");
    enter_user();
    cr_assert_eq(ver(UDS | 3, false), 1);
    cr_assert_eq(ver(UDS | 3, true), 1);
    cr_assert_eq(ver(RO_DS | 3, true), 0);
    cr_assert_eq(ver(RO_DS | 3, false), 1);
    cr_assert_eq(ver(UCS | 3, false), 1);
    cr_assert_eq(ver(UCS | 3, true), 0);
    cr_assert_eq(ver(XO_CS | 3, false), 0);
    cr_assert_eq(ver(KDS, false), 0);
    cr_assert_eq(ver(0, false), 0);
    cr_assert_eq(ver(TSS_SEL, false), 0);
}

/* -- IRET. ------------------------------------------------------------------------------------- */

static void push_frame(uint64_t rip, uint64_t cs, uint64_t rflags, uint64_t rsp, uint64_t ss)
{
    const uint64_t f[5] = {rip, cs, rflags, rsp, ss};
    put(v->gpr[RSP], f, sizeof(f));
}

Test(cpu_segment, iret_to_user)
{
    v->seg[SEG_DS] = cpu_flat_data(KDS, 0);
    v->seg[SEG_ES] = cpu_flat_data(UDS | 3, 3);
    v->seg[SEG_FS] = (struct segment){.base = 0x7f0000001000};
    v->seg[SEG_GS] = cpu_segment_of(CONF_CS, get64(GDT + CONF_CS));
    push_frame(UTEXT, UCS | 3, 0xffffffffffffffff, USTACK, UDS | 3);
    cr_assert_eq(RUN(0x48, 0xcf), CPU_JUMP);
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(v->seg[SEG_SS].sel, UDS | 3);
    cr_assert_eq(v->seg[SEG_DS].sel, 0, "DPL 0 data is dropped");
    cr_assert_eq(v->seg[SEG_DS].attr, 0);
    cr_assert_eq(v->seg[SEG_ES].sel, UDS | 3);
    cr_assert_eq(v->seg[SEG_FS].base, 0x7f0000001000);
    cr_assert_eq(v->seg[SEG_GS].sel, CONF_CS);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_ARITH | FL_TF | FL_DF | FL_IF | FL_IOPL | FL_NT | FL_AC |
                                FL_ID | FL_VIF | FL_VIP);
}

Test(cpu_segment, iret_flags_at_cpl3)
{
    enter_user();
    v->rflags = FL_FIXED1 | FL_IF;
    v->gpr[RSP] = USTACK - 64;
    push_frame(UTEXT + 8, UCS | 3, 0, USTACK, UDS | 3);
    cr_assert_eq(RUN(0x48, 0xcf), CPU_JUMP);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF, "IF and IOPL are not the user's");
    v->gpr[RSP] = USTACK - 64;
    push_frame(UTEXT + 8, UCS | 3, ~0ull, USTACK, UDS | 3);
    cr_assert_eq(RUN(0x48, 0xcf), CPU_JUMP);
    cr_assert_not(v->rflags & FL_IOPL);
    cr_assert(v->rflags & FL_AC);
}

Test(cpu_segment, iret_sizes)
{
    uint32_t f4[5] = {KTEXT + 1, KCS, FL_FIXED1 | FL_CF, KSTACK, KDS};
    put(v->gpr[RSP], f4, sizeof(f4));
    cr_assert_eq(RUN(0xcf), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT + 1);
    cr_assert_eq(v->gpr[RSP], KSTACK);
    enter_kernel();
    map_page(0x1000, KDATA, PTE_P | PTE_RW, 1);
    uint16_t f2[5] = {0x1234, KCS, FL_FIXED1 | FL_OF, 0x1800, 0};
    put(v->gpr[RSP], f2, sizeof(f2));
    v->rflags |= FL_AC;
    cr_assert_eq(RUN(0x66, 0xcf), CPU_JUMP);
    cr_assert_eq(v->rip, 0x1234);
    cr_assert_eq(v->gpr[RSP], 0x1800);
    cr_assert_eq(v->seg[SEG_SS].sel, 0);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_OF | FL_AC, "16-bit IRET keeps the upper flags");
}

Test(cpu_segment, iret_checks)
{
    uint64_t rsp = v->gpr[RSP];
#define IRET(...) (push_frame(__VA_ARGS__), RUN(0x48, 0xcf))
    expect_fault_code(IRET(UTEXT, 0, 2, USTACK, UDS | 3), EXC_GP, 0);
    expect_fault_code(IRET(UTEXT, KDS, 2, USTACK, KDS), EXC_GP, KDS);
    expect_fault_code(IRET(UTEXT, 0x1003, 2, USTACK, UDS | 3), EXC_GP, 0x1000);
    expect_fault_code(IRET(UTEXT, KCS | 3, 2, USTACK, UDS | 3), EXC_GP, KCS);
    expect_fault_code(IRET(UTEXT, ABSENT_CS, 2, USTACK, 0), EXC_NP, ABSENT_CS);
    expect_fault_code(IRET(UTEXT, BAD_CS, 2, USTACK, 0), EXC_GP, BAD_CS);
    expect_fault_code(IRET(UTEXT, UCS | 3, 2, USTACK, 3), EXC_GP, 0);
    expect_fault_code(IRET(UTEXT, UCS | 3, 2, USTACK, KDS), EXC_GP, KDS);
    expect_fault_code(IRET(UTEXT, UCS | 3, 2, USTACK, UDS), EXC_GP, UDS);
    expect_fault_code(IRET(UTEXT, UCS | 3, 2, USTACK, ABSENT_DS | 3), EXC_SS, ABSENT_DS);
    expect_fault_code(IRET(NONCANON, UCS | 3, 2, USTACK, UDS | 3), EXC_GP, 0);
    v->rflags |= FL_NT;
    expect_fault_code(IRET(UTEXT, UCS | 3, 2, USTACK, UDS | 3), EXC_GP, 0);
    v->rflags &= ~FL_NT;
    cr_assert_eq(v->gpr[RSP], rsp);
    cr_assert_eq(v->rip, KTEXT);
    cr_assert_eq(v->cpl, 0);
    expect_fault_code(IRET(UTEXT, UCS32 | 3, 2, USTACK, 0), EXC_GP, 0);
    v->gpr[RSP] = UNMAPPED;
    expect_fault_code(RUN(0x48, 0xcf), EXC_PF, 0);
    v->gpr[RSP] = NONCANON;
    expect_fault_code(RUN(0x48, 0xcf), EXC_SS, 0);
    enter_user();
    v->gpr[RSP] = USTACK - 64;
    expect_fault_code(IRET(KTEXT, KCS, 2, USTACK, KDS), EXC_GP, KCS);
#undef IRET
}

Test(cpu_segment, iret_unblocks_nmi_and_restores_rf)
{
    v->nmi_blocked = true;
    push_frame(KTEXT, KCS, FL_FIXED1 | FL_RF, KSTACK, KDS);
    cr_assert_eq(RUN(0x48, 0xcf), CPU_JUMP);
    cr_assert_not(v->nmi_blocked);
    cr_assert_not(v->rflags & FL_RF, "dropped: no breakpoint is enabled");
    v->dr[7] |= 1;
    v->gpr[RSP] = KSTACK - 0x1000;
    cr_assert_eq(RUN(0x48, 0xcf), CPU_JUMP);
    cr_assert(v->rflags & FL_RF);
}

/* -- SYSCALL and friends. ---------------------------------------------------------------------- */

Test(cpu_segment, syscall_sysret)
{
    v->star = 0x0018000800000000ull; /* SYSRET base 18H, SYSCALL base 08H */
    v->lstar = 0xffffffff81000000ull;
    v->sfmask = FL_IF | FL_TF | FL_DF | FL_AC;
    enter_user();
    v->rflags |= FL_DF | FL_CF | FL_AC;
    uint64_t rflags = v->rflags;
    cr_assert_eq(RUN(0x0f, 0x05), CPU_JUMP);
    cr_assert_eq(v->rip, v->lstar);
    cr_assert_eq(v->gpr[RCX], UTEXT + 2);
    cr_assert_eq(v->gpr[R11], rflags);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_CF);
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x08);
    cr_assert_eq(v->seg[SEG_SS].sel, 0x10);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(RUN(0x48, 0x0f, 0x07), CPU_JUMP);
    cr_assert_eq(v->rip, UTEXT + 2);
    cr_assert_eq(v->rflags, rflags);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x2b);
    cr_assert_eq(v->seg[SEG_SS].sel, 0x23);
    expect_fault_code(RUN(0x48, 0x0f, 0x07), EXC_GP, 0);
    enter_kernel();
    v->gpr[RCX] = NONCANON;
    expect_fault_code(RUN(0x48, 0x0f, 0x07), EXC_GP, 0);
    cr_assert_eq(v->cpl, 0);
    /* Without REX.W: to compatibility mode, RCX cut to 32 bits. */
    cr_assert_eq(RUN(0x0f, 0x07), CPU_JUMP);
    cr_assert_eq(v->rip, (uint32_t)NONCANON);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x1b);
    cr_assert_eq(v->seg[SEG_CS].attr & (SEGA_L | SEGA_DB), SEGA_DB);
    cr_assert_eq(v->seg[SEG_SS].sel, 0x23);
    expect_fault(RUN(0x0f, 0x05), EXC_UD); /* Intel: 64-bit mode only */
    enter_kernel();
    v->efer &= ~EFER_SCE;
    expect_fault(RUN(0x0f, 0x05), EXC_UD);
    expect_fault(RUN(0x48, 0x0f, 0x07), EXC_UD);
    /* R11 is filtered. */
    v->efer |= EFER_SCE;
    v->gpr[RCX] = UTEXT;
    v->gpr[R11] = ~0ull;
    cr_assert_eq(RUN(0x48, 0x0f, 0x07), CPU_JUMP);
    cr_assert_eq(v->rflags, (0x3c7fd7 & ~FL_RF) | 2);
}

Test(cpu_segment, sysenter_sysexit)
{
    enter_user();
    expect_fault_code(RUN(0x0f, 0x34), EXC_GP, 0);
    v->sysenter_cs = KCS;
    v->sysenter_esp = KSTACK;
    v->sysenter_eip = KTEXT;
    cr_assert_eq(RUN(0x0f, 0x34), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT);
    cr_assert_eq(v->gpr[RSP], KSTACK);
    cr_assert_eq(v->cpl, 0);
    cr_assert_not(v->rflags & FL_IF);
    v->gpr[RCX] = USTACK;
    v->gpr[RDX] = UTEXT;
    cr_assert_eq(RUN(0x48, 0x0f, 0x35), CPU_JUMP);
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(v->seg[SEG_CS].sel, KCS + 32 + 3);
    cr_assert_eq(v->seg[SEG_SS].sel, KCS + 40 + 3);
    expect_fault_code(RUN(0x48, 0x0f, 0x35), EXC_GP, 0);
    model.vendor = CPU_VENDOR_AMD;
    expect_fault(RUN(0x0f, 0x34), EXC_UD);
}

/* -- Far CALL, JMP, RET. ----------------------------------------------------------------------- */

static void far_pointer(uint64_t offset, uint16_t sel)
{
    put64(KDATA, offset);
    put(KDATA + 8, &sel, 2);
    put64(UDATA, offset);
    put(UDATA + 8, &sel, 2);
    v->gpr[RBX] = v->cpl == 3 ? UDATA : KDATA;
}

Test(cpu_segment, far_jump)
{
    far_pointer(KTEXT + 0x100, CONF_CS | 3);
    cr_assert_eq(RUN(0x48, 0xff, 0x2b), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT + 0x100);
    cr_assert_eq(v->seg[SEG_CS].sel, CONF_CS, "RPL becomes CPL");
    far_pointer(KTEXT, 0);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_GP, 0);
    far_pointer(KTEXT, UCS | 3);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_GP, UCS);
    far_pointer(KTEXT, KCS | 3);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_GP, KCS);
    far_pointer(KTEXT, TSS_SEL);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_GP, TSS_SEL);
    far_pointer(KTEXT, ABSENT_CS);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_NP, ABSENT_CS);
    far_pointer(NONCANON, KCS);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_GP, 0);
    enter_user();
    far_pointer(UTEXT, UCS32 | 3);
    cr_assert_eq(RUN(0x48, 0xff, 0x2b), CPU_JUMP);
    cr_assert_not(vcpu_long64(v), "compatibility mode");
    enter_user();
    far_pointer(0, GATE | 3);
    expect_fault_code(RUN(0x48, 0xff, 0x2b), EXC_GP, KCS);
}

Test(cpu_segment, far_call_and_return)
{
    uint64_t rsp = v->gpr[RSP];
    far_pointer(KTEXT + 0x100, KCS);
    cr_assert_eq(RUN(0x48, 0xff, 0x1b), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], rsp - 16);
    cr_assert_eq(get64(rsp - 16), KTEXT + 3);
    cr_assert_eq(get64(rsp - 8), KCS);
    cr_assert_eq(RUN(0x48, 0xca, 0x10, 0x00), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT + 3);
    cr_assert_eq(v->gpr[RSP], rsp + 0x10);
    /* Outward: pops the outer stack pointer too and releases on both stacks. */
    enter_kernel();
    const uint64_t frame[6] = {UTEXT, UCS | 3, 0x1111, 0x2222, USTACK - 0x20, UDS | 3};
    put(v->gpr[RSP], frame, sizeof(frame));
    cr_assert_eq(RUN(0x48, 0xca, 0x10, 0x00), CPU_JUMP);
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->gpr[RSP], USTACK - 0x10);
}

Test(cpu_segment, call_gate)
{
    enter_user();
    far_pointer(0x999, GATE | 3);
    cr_assert_eq(RUN(0x48, 0xff, 0x1b), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT);
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->seg[SEG_SS].sel, 0);
    cr_assert_eq(v->gpr[RSP], KSTACK - 32);
    cr_assert_eq(get64(KSTACK - 32), UTEXT + 3);
    cr_assert_eq(get64(KSTACK - 24), UCS | 3);
    cr_assert_eq(get64(KSTACK - 16), USTACK);
    cr_assert_eq(get64(KSTACK - 8), UDS | 3);
    cr_assert_eq(RUN(0x48, 0xcb), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->rip, UTEXT + 3);
    cr_assert_eq(v->gpr[RSP], USTACK);
    set_desc(GATE, get64(GDT + GATE) & ~(3ull << 45));
    expect_fault_code(RUN(0x48, 0xff, 0x1b), EXC_GP, GATE);
}
