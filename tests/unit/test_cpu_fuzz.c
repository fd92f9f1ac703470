/*
 * Random system instructions over random descriptor tables and registers.  Whatever a guest puts
 * there, the vCPU state stays consistent, and an instruction that faults has changed nothing.
 */
#include "tests/unit/cpu_fixture.h"

TestSuite(cpu_fuzz, .init = cpu_setup, .fini = cpu_teardown);

/* Opcode bytes behind an optional 66h and REX; ModRM and what follows it are random. */
static const struct {
    uint8_t len, byte[3];
} opcodes[] = {
    {2, {0x0f, 0x00}},
    {2, {0x0f, 0x01}},
    {2, {0x0f, 0x02}},
    {2, {0x0f, 0x03}},
    {2, {0x0f, 0x05}},
    {2, {0x0f, 0x06}},
    {2, {0x0f, 0x07}},
    {2, {0x0f, 0x08}},
    {2, {0x0f, 0x09}},
    {2, {0x0f, 0x20}},
    {2, {0x0f, 0x21}},
    {2, {0x0f, 0x22}},
    {2, {0x0f, 0x23}},
    {2, {0x0f, 0x30}},
    {2, {0x0f, 0x32}},
    {2, {0x0f, 0x31}},
    {2, {0x0f, 0x33}},
    {2, {0x0f, 0x34}},
    {2, {0x0f, 0x35}},
    {2, {0x0f, 0xa0}},
    {2, {0x0f, 0xa1}},
    {2, {0x0f, 0xa2}},
    {2, {0x0f, 0xa8}},
    {2, {0x0f, 0xa9}},
    {2, {0x0f, 0xb2}},
    {2, {0x0f, 0xb4}},
    {2, {0x0f, 0xb5}},
    {2, {0x0f, 0xae}},
    {3, {0x0f, 0x38, 0x82}},
    {1, {0x8c}},
    {1, {0x8e}},
    {1, {0x9c}},
    {1, {0x9d}},
    {1, {0xc8}},
    {1, {0xca}},
    {1, {0xcb}},
    {1, {0xcc}},
    {1, {0xcd}},
    {1, {0xcf}},
    {1, {0xe4}},
    {1, {0xe5}},
    {1, {0xec}},
    {1, {0xef}},
    {1, {0xf1}},
    {1, {0xf4}},
    {1, {0xfa}},
    {1, {0xfb}},
    {1, {0xff}},
};

static uint64_t pick_address(void)
{
    switch (rnd() % 8) {
    case 0:
        return rnd();
    case 1:
        return UNMAPPED + rnd() % 64 - 32;
    case 2:
        return NONCANON - rnd() % 16;
    case 3:
        return USTACK - rnd() % 128;
    case 4:
        return UDATA + rnd() % 256;
    case 5:
        return MMIO + rnd() % 4096;
    default:
        return (rnd() % 2 ? KDATA : KSTACK - 0x800) + rnd() % 256;
    }
}

static uint16_t pick_selector(void)
{
    return rnd() % 8 ? rnd() % (GDT_LIMIT + 8) : rnd();
}

/* Plausible, then with a few bits flipped. */
static void mutate_tables(void)
{
    for (unsigned i = rnd() % 4; i; i--)
        put64(GDT + rnd() % (GDT_LIMIT / 8 + 1) * 8,
              get64(GDT + rnd() % 20 * 8) ^ 1ull << rnd() % 64);
    for (unsigned i = rnd() % 4; i; i--) {
        uint64_t at = IDT + rnd() % 512 * 8;
        put64(at, get64(at) ^ 1ull << rnd() % 64);
    }
    put64(TSS + 4 + rnd() % 10 * 8, pick_address());
    uint64_t area = rnd() % 2 ? KDATA : rnd() % 2 ? UDATA : KSTACK - 0x800;
    for (unsigned i = 0; i < 320; i += 8)
        put64(area + i,
              rnd() % 2 ? pick_selector() | (rnd() % 3 ? 0 : rnd() << 16) : pick_address());
}

static void check_state(unsigned round)
{
    cr_assert_eq(v->cpl, v->seg[SEG_CS].sel & 3, "round %u", round);
    cr_assert(!(v->cr0 & CR0_PG) || (v->cr0 & CR0_PE));
    cr_assert_eq(v->cr0 >> 32, 0);
    cr_assert(v->cr0 & CR0_ET);
    cr_assert_eq(v->cr4 & ~model.cr4_valid, 0);
    cr_assert(v->efer & EFER_LMA);
    cr_assert(v->cr4 & CR4_PAE);
    cr_assert_eq(v->cr3 >> CPU_PHYS_BITS, 0);
    cr_assert(v->rflags & FL_FIXED1);
    cr_assert_not(v->rflags & FL_VM);
    cr_assert(mmu_canonical(v->gdtr.base) && mmu_canonical(v->idtr.base));
    cr_assert(mmu_canonical(v->tr.base) && mmu_canonical(v->ldtr.base));
    cr_assert(mmu_canonical(v->seg[SEG_FS].base) && mmu_canonical(v->seg[SEG_GS].base));
    cr_assert(mmu_canonical(v->lstar) && mmu_canonical(v->kernel_gs_base));
    cr_assert_eq(v->xcr0 & ~model.xcr0_valid, 0);
    cr_assert(v->xcr0 & 1);
    cr_assert_eq(v->dr[6] & 0x1000, 0);
    cr_assert_eq(v->dr[7] & 0xd800, 0);
}

Test(cpu_fuzz, state_stays_consistent, .timeout = 110)
{
    static struct vcpu pristine, before;
    static uint8_t tables[0x8000];
    unsigned results[8] = {0};

    model.cr4_valid |= CR4_OSXSAVE;
    model.xcr0_valid = 0xe7;
    pristine = *v;
    memcpy(tables, ram.base + GDT, sizeof(tables));
    for (unsigned round = 0; round < 300000; round++) {
        uint8_t code[15];
        unsigned n = 0, op = rnd() % (sizeof(opcodes) / sizeof(opcodes[0]));

        if (round % 8 == 0) { /* afresh */
            memcpy(ram.base + GDT, tables, sizeof(tables));
            *v = pristine;
            v->cr4 |= CR4_OSXSAVE | CR4_FSGSBASE;
            v->star = 0x0018000800000000ull;
            v->lstar = v->sysenter_eip = KTEXT;
            v->sysenter_cs = rnd() % 4 ? KCS : 0;
        }
        mutate_tables();
        if (rnd() % 2)
            enter_user();
        else
            enter_kernel();
        v->rflags ^= rnd() & (FL_IF | FL_IOPL | FL_AC | FL_ARITH);
        for (unsigned i = 0; i < 16; i++)
            v->gpr[i] = rnd() % 4 ? pick_address() : pick_selector();
        if (op < 14 && rnd() % 2)
            v->gpr[RCX] = rnd() % 2 ? 0xc0000080 + rnd() % 4 : rnd() % 0x300;

        if (rnd() % 4 == 0)
            code[n++] = rnd() % 3 ? 0x66 : 0xf3;
        if (rnd() % 2)
            code[n++] = 0x40 | rnd() % 16;
        for (unsigned i = 0; i < opcodes[op].len; i++)
            code[n++] = opcodes[op].byte[i];
        while (n < 15)
            code[n++] = rnd();

        struct insn in;
        cr_assert_gt(insn_decode(&in, code, 15, MODE_64), 0);
        if (in.op == OP_COPY || in.op == OP_NOP || in.op == OP_INVALID)
            continue;
        /* Paging off by MOV to CR3 is legal; here it would only make every access fault. */
        if (in.op == OP_MOV_TO_CR && in.reg == 3)
            continue;
        memcpy(&before, v, offsetof(struct vcpu, stlb));
        enum cpu_result r = callout_execute(v, &in);
        cr_assert(r <= CPU_EXIT);
        results[r]++;
        if (r == CPU_EXCEPTION) {
            cr_assert_arr_eq(v->gpr, before.gpr, sizeof(v->gpr), "round %u", round);
            cr_assert_eq(v->rip, before.rip);
            cr_assert_eq(v->rflags, before.rflags);
            cr_assert_arr_eq(v->seg, before.seg, sizeof(v->seg));
            cr_assert_eq(v->cpl, before.cpl);
            cr_assert_eq(v->cr0, before.cr0);
            cr_assert_eq(v->cr4, before.cr4);
            cr_assert_eq(v->efer, before.efer);
            cr_assert_arr_eq(&v->gdtr, &before.gdtr, 10);
            cr_assert_arr_eq(&v->idtr, &before.idtr, 10);
            cr_assert_arr_eq(&v->tr, &before.tr, sizeof(v->tr));
            uint8_t vec = v->exc.vector;
            bool code_expected =
                vec == EXC_TS || vec == EXC_NP || vec == EXC_SS || vec == EXC_GP || vec == EXC_PF;
            cr_assert_eq(v->exc.has_error, code_expected, "vector %u", vec);
            cr_assert_leq(v->exc.error, 0xffff);
            cr_assert_not(vec != EXC_PF && (v->exc.error & 1), "no EXT from an instruction");
            r = cpu_deliver_exception(v);
            cr_assert(r == CPU_JUMP || (r == CPU_EXIT && v->exit == VCPU_EXIT_TRIPLE));
        } else if (r == CPU_NEXT) {
            cr_assert_eq(v->rip, before.rip);
        }
        check_state(round);
        if (r == CPU_JUMP)
            cr_assert(mmu_canonical(v->rip));
    }
    /* The dice must have hit all kinds of outcomes. */
    cr_assert_gt(results[CPU_NEXT], 1000);
    cr_assert_gt(results[CPU_JUMP], 1000);
    cr_assert_gt(results[CPU_EXCEPTION], 1000);
    cr_assert_gt(results[CPU_EXIT], 10);
}
