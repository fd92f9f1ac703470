/* Control and debug registers, flags, XCR0, I/O permission (cpu/system.c, translator/callouts.c).
 */
#include "tests/unit/cpu_fixture.h"

TestSuite(cpu_system, .init = cpu_setup, .fini = cpu_teardown);

static enum cpu_result to_cr(unsigned cr, uint64_t value)
{
    v->gpr[RAX] = value;
    if (cr >= 8)
        return run_bytes((const uint8_t[]){0x44, 0x0f, 0x22, 0xc0 | (cr & 7) << 3}, 4);
    return run_bytes((const uint8_t[]){0x0f, 0x22, 0xc0 | cr << 3}, 3);
}

static enum cpu_result to_dr(unsigned dr, uint64_t value)
{
    v->gpr[RAX] = value;
    return run_bytes((const uint8_t[]){0x0f, 0x23, 0xc0 | dr << 3}, 3);
}

static enum cpu_result from_dr(unsigned dr)
{
    return run_bytes((const uint8_t[]){0x0f, 0x21, 0xc0 | dr << 3}, 3);
}

Test(cpu_system, cr0)
{
    uint64_t cr0 = v->cr0;
    cr_assert_eq(to_cr(0, cr0 | CR0_TS), CPU_JUMP);
    cr_assert_eq(v->cr0, cr0 | CR0_TS);
    cr_assert_eq(RUN(0x0f, 0x06), CPU_JUMP);
    cr_assert_eq(v->cr0, cr0);
    expect_fault_code(to_cr(0, cr0 | 1ull << 32), EXC_GP, 0);
    expect_fault_code(to_cr(0, cr0 & ~CR0_PE), EXC_GP, 0);
    expect_fault_code(to_cr(0, cr0 | CR0_NW), EXC_GP, 0);
    expect_fault_code(to_cr(0, cr0 & ~(uint64_t)CR0_PG), EXC_GP, 0);
    cr_assert_eq(to_cr(0, cr0 | CR0_NW | CR0_CD), CPU_JUMP);
    cr_assert_eq(to_cr(0, (cr0 | 0x1000) & ~(uint64_t)CR0_ET), CPU_JUMP);
    cr_assert_eq(v->cr0, cr0, "reserved bits read as 0, ET as 1");
    unsigned flushes = flush_count[MMU_FLUSHED_ALL];
    cr_assert_eq(to_cr(0, cr0 & ~(uint64_t)CR0_WP), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_ALL], flushes + 1);
    enter_user();
    expect_fault_code(to_cr(0, cr0), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x20, 0xc0), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x06), EXC_GP, 0);
}

Test(cpu_system, paging_enables_long_mode)
{
    v->cr0 &= ~(uint64_t)CR0_PG;
    v->efer = EFER_LME;
    v->seg[SEG_CS] = cpu_segment_of(UCS32, get64(GDT + UCS32));
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), CPU_NEXT);
    cr_assert_eq(v->efer, EFER_LME | EFER_LMA);
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 & ~(uint64_t)CR0_PG), CPU_NEXT);
    cr_assert_eq(v->efer, EFER_LME);
    v->cr4 &= ~CR4_PAE;
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0);
    v->cr4 |= CR4_PAE;
    v->seg[SEG_CS].attr |= SEGA_L;
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0);
}

Test(cpu_system, cr3)
{
    uint64_t cr3 = v->cr3;
    unsigned n = flush_count[MMU_FLUSHED_NONGLOBAL];
    cr_assert_eq(to_cr(3, cr3), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_NONGLOBAL], n + 1);
    expect_fault_code(to_cr(3, cr3 | 1ull << 63), EXC_GP, 0);
    expect_fault_code(to_cr(3, cr3 | 1ull << CPU_PHYS_BITS), EXC_GP, 0);
    cr_assert_eq(to_cr(4, v->cr4 | CR4_PCIDE), CPU_JUMP);
    n = flush_count[MMU_FLUSHED_NONGLOBAL];
    cr_assert_eq(to_cr(3, cr3 | 1ull << 63), CPU_JUMP);
    cr_assert_eq(v->cr3, cr3, "bit 63 is not stored");
    cr_assert_eq(flush_count[MMU_FLUSHED_NONGLOBAL], n, "same root, no flush");
    cr_assert_eq(to_cr(3, cr3 | 5), CPU_JUMP);
    cr_assert_eq(v->cr3, cr3 | 5);
    expect_fault_code(to_cr(3, cr3 | 1ull << 62), EXC_GP, 0);
}

Test(cpu_system, cr4)
{
    uint64_t cr4 = v->cr4;
    expect_fault_code(to_cr(4, cr4 & ~CR4_PAE), EXC_GP, 0);
    expect_fault_code(to_cr(4, cr4 | 1ull << 13), EXC_GP, 0);
    expect_fault_code(to_cr(4, cr4 | CR4_LA57), EXC_GP, 0);
    expect_fault_code(to_cr(4, cr4 | 1ull << 32), EXC_GP, 0);
    expect_fault_code(to_cr(4, cr4 | CR4_OSXSAVE), EXC_GP, 0);
    unsigned n = flush_count[MMU_FLUSHED_ALL];
    cr_assert_eq(to_cr(4, cr4 | CR4_OSFXSR), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_ALL], n);
    cr_assert_eq(to_cr(4, cr4 | CR4_SMEP), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_ALL], n + 1);
    v->cr3 |= 1;
    expect_fault_code(to_cr(4, cr4 | CR4_PCIDE), EXC_GP, 0);
    v->cr3 &= ~1ull;
    cr_assert_eq(to_cr(4, cr4 | CR4_PCIDE), CPU_JUMP);
    expect_fault(to_cr(1, 0), EXC_UD);
    expect_fault(to_cr(5, 0), EXC_UD);
    expect_fault(to_cr(9, 0), EXC_UD);
}

Test(cpu_system, cr2_cr8)
{
    cr_assert_eq(to_cr(2, NONCANON), CPU_JUMP);
    cr_assert_eq(RUN(0x0f, 0x20, 0xd3), CPU_NEXT); /* mov rbx, cr2 */
    cr_assert_eq(v->gpr[RBX], NONCANON);
    cr_assert_eq(to_cr(8, 9), CPU_JUMP);
    cr_assert_eq(fake.cr8, 9);
    fake.cr8 = 4;
    cr_assert_eq(RUN(0x44, 0x0f, 0x20, 0xc3), CPU_NEXT);
    cr_assert_eq(v->gpr[RBX], 4);
    expect_fault_code(to_cr(8, 16), EXC_GP, 0);
}

Test(cpu_system, lmsw_smsw)
{
    v->gpr[RAX] = 0xffff0000 | CR0_TS; /* PE cannot be cleared */
    cr_assert_eq(RUN(0x0f, 0x01, 0xf0), CPU_JUMP);
    cr_assert_eq(v->cr0 & 0xf, CR0_PE | CR0_TS);
    enter_user();
    v->gpr[RBX] = ~0ull;
    cr_assert_eq(RUN(0x66, 0x0f, 0x01, 0xe3), CPU_NEXT);
    cr_assert_eq(v->gpr[RBX], 0xffffffffffff0000ull | (v->cr0 & 0xffff));
    cr_assert_eq(RUN(0x48, 0x0f, 0x01, 0xe3), CPU_NEXT);
    cr_assert_eq(v->gpr[RBX], v->cr0);
    expect_fault_code(RUN(0x0f, 0x01, 0xf0), EXC_GP, 0);
}

Test(cpu_system, debug_registers)
{
    cr_assert_eq(to_dr(0, NONCANON), CPU_JUMP);
    cr_assert_eq(v->dr[0], NONCANON);
    cr_assert_eq(to_dr(6, 0), CPU_JUMP);
    cr_assert_eq(v->dr[6], 0xffff0ff0);
    cr_assert_eq(to_dr(6, 0xffffffff), CPU_JUMP);
    cr_assert_eq(v->dr[6], 0xffffefff);
    cr_assert_eq(to_dr(7, 0), CPU_JUMP);
    cr_assert_eq(v->dr[7], 0x400);
    cr_assert_eq(to_dr(7, 0xffffffff & ~DR7_GD), CPU_JUMP);
    cr_assert_eq(v->dr[7], 0xffff07ff);
    expect_fault_code(to_dr(7, 1ull << 32), EXC_GP, 0);
    expect_fault_code(to_dr(6, 1ull << 32), EXC_GP, 0);
    /* DR4, DR5 are DR6, DR7 unless CR4.DE. */
    cr_assert_eq(to_dr(5, 0), CPU_JUMP);
    cr_assert_eq(v->dr[7], 0x400);
    v->cr4 |= CR4_DE;
    expect_fault(to_dr(5, 0), EXC_UD);
    expect_fault(from_dr(4), EXC_UD);
    cr_assert_eq(to_dr(7, DR7_GD), CPU_JUMP);
    cr_assert_eq(from_dr(0), CPU_EXCEPTION);
    cr_assert_eq(v->exc.vector, EXC_DB);
    cr_assert_eq(v->exc.dr6, DR6_BD);
    enter_user();
    expect_fault_code(from_dr(0), EXC_GP, 0);
}

Test(cpu_system, breakpoints)
{
    v->dr[0] = 0x1000;
    v->dr[1] = 0x2003; /* 4 bytes, low bits ignored */
    v->dr[2] = 0x3000;
    v->dr[3] = 0x60;
    /* DR0 execute (L0), DR1 write 4 (G1), DR2 read/write 8 (L2), DR3 I/O 1 (disabled) */
    v->dr[7] = 0x400 | 1 | 8 | 16 | 1 << 20 | 3 << 22 | 3 << 24 | 2 << 26 | 2 << 28;
    cr_assert(cpu_debug_active(v));
    cr_assert_eq(cpu_debug_match(v, DEBUG_EXEC, 0x1000, 1), 1);
    cr_assert_eq(cpu_debug_match(v, DEBUG_EXEC, 0x1001, 1), 0);
    cr_assert_eq(cpu_debug_match(v, DEBUG_WRITE, 0x2000, 1), 2);
    cr_assert_eq(cpu_debug_match(v, DEBUG_WRITE, 0x1ffd, 4), 2);
    cr_assert_eq(cpu_debug_match(v, DEBUG_WRITE, 0x1ffc, 4), 0);
    cr_assert_eq(cpu_debug_match(v, DEBUG_READ, 0x2000, 4), 0);
    cr_assert_eq(cpu_debug_match(v, DEBUG_READ, 0x3007, 1), 4);
    cr_assert_eq(cpu_debug_match(v, DEBUG_WRITE, 0x3004, 8), 4);
    cr_assert_eq(cpu_debug_match(v, DEBUG_WRITE, 0x3008, 8), 0);
    cr_assert_eq(cpu_debug_match(v, DEBUG_IO, 0x60, 1), 0);
    v->dr[7] |= 0x40;
    cr_assert_eq(cpu_debug_match(v, DEBUG_IO, 0x60, 1), 0, "needs CR4.DE");
    v->cr4 |= CR4_DE;
    cr_assert_eq(cpu_debug_match(v, DEBUG_IO, 0x60, 1), 8);
}

Test(cpu_system, popf_rules)
{
    static const struct {
        unsigned cpl, iopl;
        uint64_t changeable; /* of a 64-bit POPF */
    } rule[] = {
        {0, 0, FL_IF | FL_IOPL}, {0, 3, FL_IF | FL_IOPL}, {3, 0, 0}, {3, 2, 0},
        {3, 3, FL_IF},           {1, 1, FL_IF},
    };
    const uint64_t always = FL_ARITH | FL_DF | FL_TF | FL_NT | FL_AC | FL_ID;

    for (unsigned i = 0; i < sizeof(rule) / sizeof(rule[0]); i++) {
        uint64_t base = FL_FIXED1 | (uint64_t)rule[i].iopl << 12;
        uint64_t can = always | rule[i].changeable;
        v->cpl = rule[i].cpl;
        v->rflags = base | FL_RF;
        cr_assert_eq(cpu_popf(v, ~0ull, 8), CPU_NEXT);
        cr_assert_eq(v->rflags, base | can, "set, rule %u: %#lx", i, v->rflags);
        v->rflags = base | can;
        cr_assert_eq(cpu_popf(v, 0, 8), CPU_NEXT);
        cr_assert_eq(v->rflags, (base & ~can) | FL_FIXED1, "clear, rule %u", i);
        v->rflags = FL_FIXED1 | FL_AC;
        cr_assert_eq(cpu_popf(v, FL_ID, 2), CPU_NEXT);
        cr_assert_eq(v->rflags, FL_FIXED1 | FL_AC, "16 bits");
    }
}

Test(cpu_system, pushf_popf)
{
    uint64_t rsp = v->gpr[RSP];
    v->rflags = FL_FIXED1 | FL_IF | FL_RF | FL_CF;
    cr_assert_eq(RUN(0x9c), CPU_NEXT);
    cr_assert_eq(get64(rsp - 8), FL_FIXED1 | FL_IF | FL_CF);
    put64(rsp - 8, FL_AC | FL_ZF);
    cr_assert_eq(RUN(0x9d), CPU_JUMP);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_AC | FL_ZF);
    cr_assert_eq(v->gpr[RSP], rsp);
    v->gpr[RSP] = UNMAPPED + 8;
    expect_fault_code(RUN(0x9c), EXC_PF, PF_W);
    cr_assert_eq(v->gpr[RSP], UNMAPPED + 8);
    v->gpr[RSP] = NONCANON;
    expect_fault_code(RUN(0x9d), EXC_SS, 0);
}

Test(cpu_system, cli_sti_stac_clac)
{
    cr_assert_eq(RUN(0xfb), CPU_JUMP);
    cr_assert(v->rflags & FL_IF);
    cr_assert_eq(v->interrupt_shadow, 1);
    v->interrupt_shadow = 0;
    cr_assert_eq(RUN(0xfb), CPU_JUMP);
    cr_assert_eq(v->interrupt_shadow, 0, "no shadow if IF was set");
    cr_assert_eq(RUN(0xfa), CPU_NEXT);
    cr_assert_not(v->rflags & FL_IF);
    cr_assert_eq(RUN(0x0f, 0x01, 0xcb), CPU_NEXT);
    cr_assert(v->rflags & FL_AC);
    cr_assert_eq(RUN(0x0f, 0x01, 0xca), CPU_NEXT);
    cr_assert_not(v->rflags & FL_AC);
    enter_user();
    expect_fault_code(RUN(0xfa), EXC_GP, 0);
    expect_fault_code(RUN(0xfb), EXC_GP, 0);
    expect_fault(RUN(0x0f, 0x01, 0xcb), EXC_UD);
    expect_fault(RUN(0x0f, 0x01, 0xca), EXC_UD);
    v->rflags |= FL_IOPL;
    cr_assert_eq(RUN(0xfa), CPU_NEXT);
}

Test(cpu_system, ac_and_smap)
{
    v->cr4 |= CR4_SMAP;
    uint64_t value;
    cr_assert_eq(RUN(0x0f, 0x01, 0xcb), CPU_NEXT);
    cr_assert_eq(mmu_load(v, UDATA, &value, 8, MMU_READ, false), 0);
    cr_assert_eq(RUN(0x0f, 0x01, 0xca), CPU_NEXT);
    cr_assert_eq(mmu_load(v, UDATA, &value, 8, MMU_READ, false), -1);
    /* Every other way to lose AC counts too. */
    v->star = 0x0018000800000000ull;
    v->sfmask = FL_AC;
    v->rflags |= FL_AC;
    cr_assert_eq(mmu_load(v, UDATA, &value, 8, MMU_READ, false), 0);
    cr_assert_eq(RUN(0x0f, 0x05), CPU_JUMP);
    cr_assert_eq(mmu_load(v, UDATA, &value, 8, MMU_READ, false), -1);
    v->rflags |= FL_AC;
    cr_assert_eq(mmu_load(v, UDATA, &value, 8, MMU_READ, false), 0);
    cr_assert_eq(cpu_popf(v, 0, 8), CPU_NEXT);
    cr_assert_eq(mmu_load(v, UDATA, &value, 8, MMU_READ, false), -1);
}

Test(cpu_system, descriptor_tables)
{
    v->gpr[RBX] = KDATA;
    cr_assert_eq(RUN(0x0f, 0x01, 0x03), CPU_NEXT);
    uint16_t limit;
    memcpy(&limit, ram.base + KDATA, 2);
    cr_assert_eq(limit, GDT_LIMIT);
    cr_assert_eq(get64(KDATA + 2), GDT);
    put64(KDATA + 2, 0xffffffffff000000ull);
    cr_assert_eq(RUN(0x0f, 0x01, 0x1b), CPU_NEXT);
    cr_assert_eq(v->idtr.base, 0xffffffffff000000ull);
    cr_assert_eq(v->idtr.limit, GDT_LIMIT);
    put64(KDATA + 2, NONCANON);
    expect_fault_code(RUN(0x0f, 0x01, 0x13), EXC_GP, 0);
    cr_assert_eq(v->gdtr.base, GDT);
    enter_user();
    v->gpr[RBX] = UDATA;
    cr_assert_eq(RUN(0x0f, 0x01, 0x0b), CPU_NEXT);
    cr_assert_eq(get64(UDATA + 2), v->idtr.base);
    expect_fault_code(RUN(0x0f, 0x01, 0x13), EXC_GP, 0);
    v->gpr[RAX] = ~0ull;
    cr_assert_eq(RUN(0x0f, 0x00, 0xc8), CPU_NEXT); /* str eax */
    cr_assert_eq(v->gpr[RAX], TSS_SEL);
    v->cr4 |= CR4_UMIP;
    expect_fault_code(RUN(0x0f, 0x01, 0x03), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x01, 0x0b), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x00, 0xc8), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x00, 0xc0), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x01, 0xe0), EXC_GP, 0);
}

Test(cpu_system, tlb_instructions)
{
    v->gpr[RBX] = UDATA + 5;
    cr_assert_eq(RUN(0x0f, 0x01, 0x3b), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_PAGE], 1);
    cr_assert_eq(flush_gva & ~4095ull, UDATA);
    v->gpr[RBX] = NONCANON;
    cr_assert_eq(RUN(0x0f, 0x01, 0x3b), CPU_JUMP, "no fault, no effect");
    cr_assert_eq(flush_count[MMU_FLUSHED_PAGE], 1);
    const uint64_t desc[2] = {0, UDATA};
    put(KDATA, desc, 16);
    v->gpr[RBX] = KDATA;
    unsigned all = flush_count[MMU_FLUSHED_ALL], some = flush_count[MMU_FLUSHED_NONGLOBAL];
    for (v->gpr[RCX] = 0; v->gpr[RCX] < 4; v->gpr[RCX]++)
        cr_assert_eq(RUN(0x66, 0x0f, 0x38, 0x82, 0x0b), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_PAGE], 2);
    /* Type 3 may drop global entries too, and does. */
    cr_assert_eq(flush_count[MMU_FLUSHED_ALL], all + 2);
    cr_assert_eq(flush_count[MMU_FLUSHED_NONGLOBAL], some + 1);
    expect_fault_code(RUN(0x66, 0x0f, 0x38, 0x82, 0x0b), EXC_GP, 0);
    v->gpr[RCX] = 0;
    put64(KDATA, 1);
    expect_fault_code(RUN(0x66, 0x0f, 0x38, 0x82, 0x0b), EXC_GP, 0);
    put64(KDATA, 1 << 12);
    expect_fault_code(RUN(0x66, 0x0f, 0x38, 0x82, 0x0b), EXC_GP, 0);
    put64(KDATA, 0);
    put64(KDATA + 8, NONCANON);
    expect_fault_code(RUN(0x66, 0x0f, 0x38, 0x82, 0x0b), EXC_GP, 0);
    enter_user();
    expect_fault_code(RUN(0x66, 0x0f, 0x38, 0x82, 0x0b), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x01, 0x3b), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x09), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x08), EXC_GP, 0);
}

Test(cpu_system, fs_gs_bases)
{
    v->seg[SEG_GS].base = 0x1111;
    v->kernel_gs_base = 0xffff888000000000ull;
    cr_assert_eq(RUN(0x0f, 0x01, 0xf8), CPU_NEXT);
    cr_assert_eq(v->seg[SEG_GS].base, 0xffff888000000000ull);
    cr_assert_eq(v->kernel_gs_base, 0x1111);
    expect_fault(RUN(0xf3, 0x48, 0x0f, 0xae, 0xc0), EXC_UD);
    v->cr4 |= CR4_FSGSBASE;
    enter_user();
    v->gpr[RAX] = 0xffffffff12345678ull;
    cr_assert_eq(RUN(0xf3, 0x0f, 0xae, 0xd0), CPU_NEXT); /* wrfsbase eax */
    cr_assert_eq(v->seg[SEG_FS].base, 0x12345678);
    cr_assert_eq(RUN(0xf3, 0x48, 0x0f, 0xae, 0xd8), CPU_NEXT); /* wrgsbase rax */
    cr_assert_eq(v->seg[SEG_GS].base, 0xffffffff12345678ull);
    cr_assert_eq(RUN(0xf3, 0x0f, 0xae, 0xcb), CPU_NEXT); /* rdgsbase ebx */
    cr_assert_eq(v->gpr[RBX], 0x12345678);
    v->gpr[RAX] = NONCANON;
    expect_fault_code(RUN(0xf3, 0x48, 0x0f, 0xae, 0xd0), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x01, 0xf8), EXC_GP, 0);
}

Test(cpu_system, xcr0)
{
    model.cr4_valid |= CR4_OSXSAVE;
    model.xcr0_valid = 0xe7;
    v->gpr[RCX] = v->gpr[RDX] = 0;
    v->gpr[RAX] = 3;
    expect_fault(RUN(0x0f, 0x01, 0xd1), EXC_UD);
    expect_fault(RUN(0x0f, 0x01, 0xd0), EXC_UD);
    v->cr4 |= CR4_OSXSAVE;
    static const struct {
        uint64_t value;
        bool ok;
    } cases[] = {
        {0, false},
        {1, true},
        {2, false},
        {3, true},
        {5, false},
        {7, true},
        {6, false},
        {0x1f, false},
        {0xe7, true},
        {0x67, false},
        {0xe3, false},
        {0x207, false},
        {1ull << 32 | 7, false},
        {0xe5, false},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        v->xcr0 = 1;
        v->gpr[RAX] = (uint32_t)cases[i].value;
        v->gpr[RDX] = cases[i].value >> 32;
        if (cases[i].ok) {
            cr_assert_eq(RUN(0x0f, 0x01, 0xd1), CPU_JUMP, "case %u", i);
            cr_assert_eq(v->xcr0, cases[i].value);
        } else {
            expect_fault_code(RUN(0x0f, 0x01, 0xd1), EXC_GP, 0);
            cr_assert_eq(v->xcr0, 1);
        }
    }
    v->xcr0 = 7;
    enter_user();
    cr_assert_eq(RUN(0x0f, 0x01, 0xd0), CPU_NEXT);
    cr_assert_eq(v->gpr[RAX], 7);
    cr_assert_eq(v->gpr[RDX], 0);
    v->gpr[RCX] = 2;
    expect_fault_code(RUN(0x0f, 0x01, 0xd0), EXC_GP, 0);
    v->gpr[RCX] = 0;
    expect_fault_code(RUN(0x0f, 0x01, 0xd1), EXC_GP, 0);
}

Test(cpu_system, time_stamps)
{
    v->tsc_offset = 1ull << 60;
    v->tsc_aux = 0x1234;
    enter_user();
    cr_assert_eq(RUN(0x0f, 0x31), CPU_NEXT);
    cr_assert_geq(v->gpr[RDX], 1u << 28);
    cr_assert_eq(RUN(0x0f, 0x01, 0xf9), CPU_NEXT);
    cr_assert_eq(v->gpr[RCX], 0x1234);
    v->cr4 |= CR4_TSD;
    expect_fault_code(RUN(0x0f, 0x31), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x01, 0xf9), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x33), EXC_GP, 0);
    enter_kernel();
    cr_assert_eq(RUN(0x0f, 0x31), CPU_NEXT);
}

Test(cpu_system, io_permission)
{
    v->gpr[RDX] = 0x3f8;
    enter_user();
    expect_fault_code(RUN(0xec), EXC_GP, 0);
    ram.base[TSS + 104 + 0x3f8 / 8] = 0xfe; /* port 3F8H allowed */
    cr_assert_eq(RUN(0xec), CPU_NEXT);
    expect_fault_code(RUN(0x66, 0xed), EXC_GP, 0);
    ram.base[TSS + 104 + 0x3f8 / 8] = 0xfc;
    cr_assert_eq(RUN(0x66, 0xed), CPU_NEXT);
    expect_fault_code(RUN(0xed), EXC_GP, 0);
    /* Four ports across a byte of the map. */
    v->gpr[RDX] = 0x3fe;
    ram.base[TSS + 104 + 0x3f8 / 8] = 0x3f;
    ram.base[TSS + 104 + 0x400 / 8] = 0xfc;
    cr_assert_eq(RUN(0xed), CPU_NEXT);
    /* The last port needs the byte behind the map. */
    v->gpr[RDX] = 0xffff;
    ram.base[TSS + 104 + 8191] = 0;
    cr_assert_eq(RUN(0xec), CPU_NEXT);
    v->tr.limit--;
    expect_fault_code(RUN(0xec), EXC_GP, 0);
    v->tr.limit = 102;
    expect_fault_code(RUN(0xec), EXC_GP, 0);
    v->rflags |= FL_IOPL;
    cr_assert_eq(RUN(0xec), CPU_NEXT);
}

Test(cpu_system, in_out)
{
    v->gpr[RAX] = 0x1122334455667788ull;
    v->gpr[RDX] = 0xffff0cf8;
    cr_assert_eq(RUN(0xe6, 0x80), CPU_NEXT);
    cr_assert_eq(RUN(0x66, 0xef), CPU_NEXT);
    cr_assert_eq(RUN(0x48, 0xef), CPU_NEXT); /* REX.W is ignored */
    cr_assert_eq(fake.n_pio, 3);
    cr_assert_eq(fake.pio[0].port, 0x80);
    cr_assert_eq(fake.pio[0].value, 0x88);
    cr_assert_eq(fake.pio[1].port, 0xcf8);
    cr_assert_eq(fake.pio[1].value, 0x7788);
    cr_assert_eq(fake.pio[2].size, 4);
    cr_assert_eq(fake.pio[2].value, 0x55667788);
    fake.pio_value = 0xa1b2c3d4;
    cr_assert_eq(RUN(0xe4, 0x60), CPU_NEXT);
    cr_assert_eq(v->gpr[RAX], 0x11223344556677d4ull);
    fake.pio_value = 0xa1b2c3d4;
    cr_assert_eq(RUN(0xed), CPU_NEXT);
    cr_assert_eq(v->gpr[RAX], 0xa1b2c3d4);
}

Test(cpu_system, enter)
{
    uint64_t rsp = v->gpr[RSP];
    v->gpr[RBP] = rsp + 0x100;
    put64(rsp + 0xf8, 0x1111);
    put64(rsp + 0xf0, 0x2222);
    cr_assert_eq(RUN(0xc8, 0x20, 0x00, 0x03), CPU_NEXT);
    cr_assert_eq(get64(rsp - 8), rsp + 0x100);
    cr_assert_eq(get64(rsp - 16), 0x1111);
    cr_assert_eq(get64(rsp - 24), 0x2222);
    cr_assert_eq(get64(rsp - 32), rsp - 8);
    cr_assert_eq(v->gpr[RBP], rsp - 8);
    cr_assert_eq(v->gpr[RSP], rsp - 32 - 0x20);
    /* The final stack pointer is probed. */
    v->gpr[RSP] = rsp = UTEXT + 0x10;
    v->gpr[RBP] = 0x55;
    expect_fault_code(RUN(0xc8, 0x00, 0x10, 0x00), EXC_PF, PF_W);
    cr_assert_eq(v->gpr[RSP], rsp);
    cr_assert_eq(v->gpr[RBP], 0x55);
}

Test(cpu_system, undefined)
{
    expect_fault(RUN(0x0f, 0x0b), EXC_UD);
    expect_fault(RUN(0x0f, 0x01, 0xc1), EXC_UD); /* vmcall */
    expect_fault(RUN(0x0f, 0x01, 0xc8), EXC_UD); /* monitor */
    expect_fault(RUN(0x0f, 0x01, 0xc9), EXC_UD); /* mwait */
    expect_fault(RUN(0x0f, 0x01, 0xd9), EXC_UD); /* vmmcall */
    expect_fault(RUN(0x06), EXC_UD);
    expect_fault_code(RUN(0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                          0x66, 0x66, 0x66, 0x90),
                      EXC_GP, 0);
}

static uint64_t ea(const uint8_t *code, unsigned len)
{
    struct insn in;
    cr_assert_gt(insn_decode(&in, code, len, MODE_64), 0);
    return callout_ea(v, &in);
}
#define EA(...) ea((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

Test(cpu_system, effective_addresses)
{
    v->gpr[RBX] = 0xffffffff00001000ull;
    v->gpr[R9] = 0x10;
    v->seg[SEG_FS].base = 0x7f0000000000;
    v->seg[SEG_DS].base = 0x999;
    v->rip = 0x400000;
    cr_assert_eq(EA(0x0f, 0x01, 0x3b), 0xffffffff00001000ull);
    cr_assert_eq(EA(0x67, 0x0f, 0x01, 0x3b), 0x1000);
    cr_assert_eq(EA(0x42, 0x0f, 0x01, 0x7c, 0xcb, 0xf8), 0xffffffff00001078ull);
    cr_assert_eq(EA(0x64, 0x67, 0x0f, 0x01, 0x3b), 0x7f0000001000);
    cr_assert_eq(EA(0x0f, 0x01, 0x3d, 0xf9, 0xff, 0xff, 0xff), 0x400000);
    cr_assert_eq(EA(0x0f, 0x01, 0x3c, 0x25, 0, 0, 0, 0x80), 0xffffffff80000000ull);
    cr_assert_eq(EA(0x67, 0x0f, 0x01, 0x3c, 0x25, 0, 0, 0, 0x80), 0x80000000ull);
}
