/* 16- and 32-bit protected mode: limits, segment loads, gates, returns, interrupts, transitions. */
#include "tests/unit/legacy_fixture.h"

TestSuite(cpu_protected, .init = legacy_setup, .fini = cpu_teardown);

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct vcpu *snapshot(void)
{
    static struct vcpu before;
    before = *v;
    return &before;
}

/* A faulting instruction has changed no register. */
static void expect_unchanged(const struct vcpu *before, const char *what)
{
    cr_assert_eq(memcmp(v->gpr, before->gpr, sizeof(v->gpr)), 0, "%s: registers", what);
    cr_assert_eq(v->rip, before->rip, "%s: rip", what);
    cr_assert_eq(v->cpl, before->cpl, "%s: cpl", what);
    cr_assert_eq(v->rflags, before->rflags, "%s: flags", what);
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        cr_assert_eq(v->seg[i].sel, before->seg[i].sel, "%s: selector %u", what, i);
        cr_assert_eq(v->seg[i].base, before->seg[i].base, "%s: base %u", what, i);
    }
    cr_assert_eq(v->mode_key, before->mode_key, "%s: key", what);
}

/* -- Checks of data accesses. --------------------------------------------------------------------
 */

Test(cpu_protected, linear)
{
    static const struct {
        uint16_t sel;
        uint64_t offset;
        unsigned size, access;
        bool ok;
    } cases[] = {
        {L_KDS, 0xfffffffc, 4, MMU_WRITE, true},
        {L_KDS, 0xffffffff, 8, MMU_READ, true}, /* wraps, as the flat form does */
        {L_SMALL, 0xfff, 1, MMU_READ, true},
        {L_SMALL, 0xffc, 4, MMU_WRITE, true},
        {L_SMALL, 0xffd, 4, MMU_WRITE, false},
        {L_SMALL, 0x1000, 1, MMU_READ, false},
        {L_SMALL, 0xffffffff, 2, MMU_READ, false},
        {L_DOWN, 0xfff, 1, MMU_READ, false},
        {L_DOWN, 0x1000, 1, MMU_WRITE, true},
        {L_DOWN, 0xffe, 4, MMU_READ, false},
        {L_DOWN, 0xfffffffc, 4, MMU_READ, true},
        {L_DOWN, 0xfffffffd, 4, MMU_READ, false},
        {L_RO, 0, 4, MMU_READ, true},
        {L_RO, 0, 4, MMU_WRITE, false},
        {L_KCS, 0, 4, MMU_READ, true},
        {L_KCS, 0, 4, MMU_WRITE, false},
        {L_XO, 0, 4, MMU_READ, false},
        {L_XO, 0, 4, MMU_WRITE, false},
        {L_XO, 0, 4, MMU_EXEC, true},
        {0, 0, 1, MMU_READ, false},
        {0, 0, 1, MMU_WRITE, false},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        uint64_t lin;
        v->seg[SEG_ES] = cases[i].sel ? loaded(cases[i].sel) : (struct segment){0};
        int r = cpu_linear(v, SEG_ES, cases[i].offset, cases[i].size, cases[i].access, &lin);
        cr_assert_eq(r, cases[i].ok ? 0 : -1, "case %u", i);
        if (r)
            expect_fault_code(CPU_EXCEPTION, EXC_GP, 0);
        else
            cr_assert_eq(lin, (uint32_t)(v->seg[SEG_ES].base + cases[i].offset));
        /* The same through SS is #SS(0). */
        v->seg[SEG_SS] = v->seg[SEG_ES];
        if (cpu_linear(v, SEG_SS, cases[i].offset, cases[i].size, cases[i].access, &lin))
            expect_fault_code(CPU_EXCEPTION, EXC_SS, 0);
    }
    /* 16-bit expand-down reaches to FFFFH only. */
    struct segment s = {.attr = 0x97, .limit = 0xfff};
    cr_assert(cpu_segment_contains(&s, 0xfffe, 2));
    cr_assert_not(cpu_segment_contains(&s, 0xffff, 2));
}

Test(cpu_protected, key)
{
    cr_assert_eq(v->mode_key & 15, 1 | 1 << SEGKEY_STACK_SHIFT);
    cr_assert_eq(cpu_key_kind(v->mode_key, SEG_DS), SEGK_FLAT);
    cr_assert_eq(cpu_key_kind(v->mode_key, SEG_CS), SEGK_FLAT);
    cr_assert_eq(cpu_key_kind(v->mode_key, SEG_FS), SEGK_BASE);
    cr_assert(v->mode_key & SEGKEY_STACK_FREE);
    static const struct {
        uint16_t sel;
        enum segment_kind kind;
        bool flat;
    } cases[] = {
        {L_KDS, SEGK_FLAT, true},       {L_RO, SEGK_CHECKED, false},
        {L_SMALL, SEGK_CHECKED, false}, {L_DOWN, SEGK_CHECKED, false},
        {L_SS16, SEGK_BASE64K, false},  {0, SEGK_CHECKED, false},
        {L_KCS, SEGK_CHECKED, false},
    };
    for (unsigned i = 0; i < COUNT(cases); i++) {
        cr_assert_eq(cpu_load_segment(v, SEG_DS, cases[i].sel), CPU_NEXT, "case %u", i);
        cr_assert_eq(cpu_key_kind(v->mode_key, SEG_DS), cases[i].kind, "case %u", i);
        cr_assert_eq(cpu_segment_flat(v, SEG_DS), cases[i].flat, "case %u", i);
    }
    cr_assert_eq(cpu_load_segment(v, SEG_SS, L_SS16), CPU_NEXT);
    cr_assert_eq(v->mode_key >> SEGKEY_STACK_SHIFT & 3, 0);
    cr_assert_not(v->mode_key & SEGKEY_STACK_FREE);
    cr_assert_eq(cpu_far_jump(v, L_CS16, 0x10, 0), CPU_JUMP);
    cr_assert_eq(v->mode_key & 3, 0);
    cr_assert_eq(cpu_key_kind(v->mode_key, SEG_CS), SEGK_BASE64K);
}

/* -- Segment loads. ------------------------------------------------------------------------------
 */

Test(cpu_protected, segment_load_faults)
{
    static const struct {
        unsigned cpl, seg;
        uint16_t sel;
        int vector; /* -1: loads */
        uint32_t error;
    } cases[] = {
        {0, SEG_DS, L_KDS, -1, 0},
        {3, SEG_DS, L_KDS, EXC_GP, L_KDS},
        {0, SEG_DS, L_KDS | 3, EXC_GP, L_KDS},
        {3, SEG_DS, L_UDS, -1, 0},
        {3, SEG_DS, L_CONF | 3, -1, 0},
        {3, SEG_DS, L_UCS, -1, 0},
        {0, SEG_DS, L_XO, EXC_GP, L_XO},
        {0, SEG_DS, L_NODS, EXC_NP, L_NODS},
        {0, SEG_DS, L_TSS, EXC_GP, L_TSS},
        {0, SEG_DS, 0x1000, EXC_GP, 0x1000},
        {0, SEG_DS, 0x0c, EXC_GP, 0x0c}, /* no LDT */
        {0, SEG_DS, 0, -1, 0},
        {3, SEG_DS, 3, -1, 0},
        {0, SEG_SS, 0, EXC_GP, 0},
        {0, SEG_SS, L_KDS, -1, 0},
        {0, SEG_SS, L_DS1 | 1, EXC_GP, L_DS1},
        {1, SEG_SS, L_DS1 | 1, -1, 0},
        {0, SEG_SS, L_RO, EXC_GP, L_RO},
        {0, SEG_SS, L_KCS, EXC_GP, L_KCS},
        {0, SEG_SS, L_NOSS, EXC_SS, L_NOSS},
        {3, SEG_SS, L_KDS | 3, EXC_GP, L_KDS},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        enter_flat32(cases[i].cpl);
        struct vcpu *before = snapshot();
        enum cpu_result r = cpu_load_segment(v, cases[i].seg, cases[i].sel);
        if (cases[i].vector < 0) {
            cr_assert_eq(r, CPU_NEXT, "case %u", i);
            cr_assert_eq(v->seg[cases[i].seg].sel, cases[i].sel);
            continue;
        }
        cr_assert_eq(r, CPU_EXCEPTION, "case %u", i);
        cr_assert_eq(v->exc.vector, cases[i].vector, "case %u", i);
        cr_assert_eq(v->exc.error, cases[i].error, "case %u", i);
        expect_unchanged(before, "load");
    }
}

Test(cpu_protected, system_segments)
{
    uint32_t out;

    cr_assert_eq(cpu_lldt(v, L_LDT), CPU_NEXT, "8-byte descriptors outside IA-32e mode");
    cr_assert_eq(v->ldtr.base, LDT);
    cr_assert_eq(cpu_ltr(v, L_TSS16), CPU_NEXT);
    cr_assert_eq(get64(GDT + L_TSS16) >> 40 & 15, SYS_TSS16_BUSY);
    cr_assert_eq(cpu_ltr(v, L_TSS_B), CPU_NEXT);
    cr_assert_eq(get64(GDT + L_TSS_B) >> 40 & 15, SYS_TSS_BUSY);
    expect_fault_code(cpu_ltr(v, L_TSS_B), EXC_GP, L_TSS_B);
    expect_fault_code(cpu_ltr(v, L_LDT), EXC_GP, L_LDT);
    expect_fault_code(cpu_lldt(v, L_TSS), EXC_GP, L_TSS);
    expect_fault_code(cpu_lldt(v, 4), EXC_GP, 4);
    set_desc(L_LDT, get64(GDT + L_LDT) & ~DESC_P);
    expect_fault_code(cpu_lldt(v, L_LDT), EXC_NP, L_LDT);

    /* SDM vol. 2, LAR and LSL: valid types. */
    static const struct {
        unsigned type;
        bool lar, lsl, lar_long, lsl_long;
    } types[] = {
        {0, 0, 0, 0, 0},  {1, 1, 1, 0, 0},  {2, 1, 1, 1, 1},  {3, 1, 1, 0, 0},
        {4, 1, 0, 0, 0},  {5, 1, 0, 0, 0},  {6, 0, 0, 0, 0},  {7, 0, 0, 0, 0},
        {8, 0, 0, 0, 0},  {9, 1, 1, 1, 1},  {10, 0, 0, 0, 0}, {11, 1, 1, 1, 1},
        {12, 1, 0, 1, 0}, {13, 0, 0, 0, 0}, {14, 0, 0, 0, 0}, {15, 0, 0, 0, 0},
    };
    for (unsigned i = 0; i < COUNT(types); i++) {
        set_desc(L_SMALL, descriptor(0, 0x123, 0x80 | types[i].type, 0));
        v->efer = 0;
        cr_assert_eq(cpu_lar(v, L_SMALL, &out), types[i].lar, "LAR type %u", i);
        cr_assert_eq(cpu_lsl(v, L_SMALL, &out), types[i].lsl, "LSL type %u", i);
        v->efer = EFER_LMA | EFER_LME;
        cr_assert_eq(cpu_lar(v, L_SMALL, &out), types[i].lar_long, "long LAR type %u", i);
        cr_assert_eq(cpu_lsl(v, L_SMALL, &out), types[i].lsl_long, "long LSL type %u", i);
    }
}

/* -- Far transfers. ------------------------------------------------------------------------------
 */

Test(cpu_protected, far_jump_faults)
{
    static const struct {
        unsigned cpl;
        uint16_t sel;
        uint32_t offset;
        int vector;
        uint32_t error;
        uint16_t cs;
    } cases[] = {
        {0, L_KCS, KTEXT + 5, -1, 0, L_KCS},
        {0, L_KCS | 3, 0, EXC_GP, L_KCS, 0},
        {3, L_UCS & ~3, UTEXT, -1, 0, L_UCS},
        {3, L_KCS, 0, EXC_GP, L_KCS, 0},
        {3, L_CONF, KTEXT, -1, 0, L_CONF | 3},
        {1, L_CONF | 3, KTEXT, -1, 0, L_CONF | 1},
        {0, L_UCS, 0, EXC_GP, L_UCS & ~3u, 0},
        {0, 0, 0, EXC_GP, 0, 0},
        {0, 3, 0, EXC_GP, 0, 0},
        {0, L_KDS, 0, EXC_GP, L_KDS, 0},
        {0, L_NOCS, 0, EXC_NP, L_NOCS, 0},
        {0, 0x2000, 0, EXC_GP, 0x2000, 0},
        {0, L_SMALLCS, 0xfff, -1, 0, L_SMALLCS},
        {0, L_SMALLCS, 0x1000, EXC_GP, 0, 0},
        {0, L_LDT, 0, EXC_GP, L_LDT, 0},
        {0, L_GATE32, 0, -1, 0, L_KCS},
        {3, L_GATE32 | 3, 0, EXC_GP, L_KCS, 0}, /* JMP does not change privilege */
        {0, L_CS16, 0x10000, EXC_GP, 0, 0},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        enter_flat32(cases[i].cpl);
        struct vcpu *before = snapshot();
        enum cpu_result r = cpu_far_jump(v, cases[i].sel, cases[i].offset, 0);
        if (cases[i].vector < 0) {
            cr_assert_eq(r, CPU_JUMP, "case %u", i);
            cr_assert_eq(v->seg[SEG_CS].sel, cases[i].cs, "case %u", i);
            cr_assert_eq(v->cpl, cases[i].cpl);
            continue;
        }
        cr_assert_eq(r, CPU_EXCEPTION, "case %u", i);
        cr_assert_eq(v->exc.vector, cases[i].vector, "case %u", i);
        cr_assert_eq(v->exc.error, cases[i].error, "case %u: %#x", i, v->exc.error);
        expect_unchanged(before, "far jump");
    }
}

Test(cpu_protected, far_call_same_level)
{
    uint64_t sp = v->gpr[RSP];
    cr_assert_eq(cpu_far_call(v, L_CONF, KTEXT + 0x10, 4, 0x1234567), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], sp - 8);
    cr_assert_eq(get32(sp - 8), 0x1234567);
    cr_assert_eq(get32(sp - 4), L_KCS);
    cr_assert_eq(cpu_far_return(v, 4, 0x20), CPU_JUMP);
    cr_assert_eq(v->rip, 0x1234567);
    cr_assert_eq(v->gpr[RSP], sp + 0x20);
    /* A 16-bit stack: SP moves, the rest of ESP does not. */
    cpu_load_segment(v, SEG_SS, L_SS16);
    v->gpr[RSP] = 0x55550002;
    cr_assert_eq(cpu_far_call(v, L_CS16, 0x777, 2, 0x4321), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], 0x5555fffe);
    cr_assert_eq(get16(0x2fffe), 0x4321);
    cr_assert_eq(get16(0x20000), L_KCS);
    cr_assert_eq(v->rip, 0x777);
    cr_assert_eq(vcpu_code_size(v), 2);
    cr_assert_eq(cpu_far_return(v, 2, 0), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], 0x55550002);
    /* Its limit. */
    v->gpr[RSP] = 3;
    expect_fault_code(cpu_far_call(v, L_CS16, 0, 4, 0), EXC_SS, 0);
    v->gpr[RSP] = 0x1000;
    v->seg[SEG_SS].limit = 0xffe;
    expect_fault_code(cpu_far_call(v, L_CS16, 0, 2, 0), EXC_SS, 0);
}

Test(cpu_protected, call_gate32_with_parameters)
{
    enter_flat32(3);
    v->gpr[RSP] = USTACK - 12;
    for (unsigned i = 0; i < 3; i++)
        put32(USTACK - 12 + 4 * i, 0x1110 + i);
    cr_assert_eq(cpu_far_call(v, L_GATE32 | 3, 0x999, 4, UTEXT + 7), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->rip, KTEXT);
    cr_assert_eq(v->seg[SEG_CS].sel, L_KCS);
    cr_assert_eq(v->seg[SEG_SS].sel, L_KDS);
    cr_assert_eq(v->gpr[RSP], L_KTOP - 28);
    const uint32_t frame[7] = {UTEXT + 7, L_UCS, 0x1110, 0x1111, 0x1112, USTACK - 12, L_UDS};
    cr_assert_eq(memcmp(ram.base + L_KTOP - 28, frame, sizeof(frame)), 0);
    /* RET 12 drops the parameters on both stacks, and the kernel's data segments. */
    v->seg[SEG_DS] = loaded(L_KDS);
    v->seg[SEG_FS] = loaded(L_CONF);
    cr_assert_eq(cpu_far_return(v, 4, 12), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->rip, UTEXT + 7);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(v->seg[SEG_SS].sel, L_UDS);
    cr_assert_eq(v->seg[SEG_DS].sel, 0);
    cr_assert_eq(v->seg[SEG_DS].attr, 0);
    cr_assert_eq(v->seg[SEG_ES].sel, L_UDS);
    cr_assert_eq(v->seg[SEG_FS].sel, L_CONF);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
}

Test(cpu_protected, call_gate16_and_inner_levels)
{
    enter_flat32(3);
    v->gpr[RSP] = USTACK - 4;
    put16(USTACK - 4, 0xaaaa);
    put16(USTACK - 2, 0xbbbb);
    cr_assert_eq(cpu_far_call(v, L_GATE16 | 3, 0, 2, UTEXT + 5), CPU_JUMP);
    cr_assert_eq(v->rip, 0x1234, "16 bits of the offset");
    cr_assert_eq(v->gpr[RSP], L_KTOP - 12);
    const uint16_t frame[6] = {(uint16_t)(UTEXT + 5),  L_UCS, 0xaaaa, 0xbbbb,
                               (uint16_t)(USTACK - 4), L_UDS};
    cr_assert_eq(memcmp(ram.base + L_KTOP - 12, frame, sizeof(frame)), 0);
    /* Level 1 has its own stack. */
    enter_flat32(3);
    cr_assert_eq(cpu_far_call(v, L_GATE1 | 3, 0, 4, UTEXT + 5), CPU_JUMP);
    cr_assert_eq(v->cpl, 1);
    cr_assert_eq(v->seg[SEG_CS].sel, L_CS1 | 1);
    cr_assert_eq(v->seg[SEG_SS].sel, L_DS1 | 1);
    cr_assert_eq(v->gpr[RSP], L_KTOP1 - 16);
    /* No change of privilege: two words on the stack in use, no parameters. */
    enter_flat32(0);
    uint64_t sp = v->gpr[RSP];
    cr_assert_eq(cpu_far_call(v, L_GATE32, 0, 4, KTEXT + 5), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], sp - 8);
}

Test(cpu_protected, call_gate_from_a_16_bit_tss)
{
    v->tr = cpu_segment_of(L_TSS16, descriptor(L_TSS16_ADDR, 43, 0x83, 0));
    put16(L_TSS16_ADDR + 2, 0x8000);
    put16(L_TSS16_ADDR + 4, L_SS16);
    enter_flat32(3);
    cr_assert_eq(cpu_far_call(v, L_GATE16 | 3, 0, 2, UTEXT + 5), CPU_JUMP);
    cr_assert_eq(v->seg[SEG_SS].sel, L_SS16);
    cr_assert_eq(v->gpr[RSP], 0x8000 - 12);
    cr_assert_eq(get16(0x28000 - 12), (uint16_t)(UTEXT + 5));
}

Test(cpu_protected, call_gate_faults)
{
    static const struct {
        const char *what;
        unsigned gate;
        uint16_t ss0;
        uint32_t esp0;
        uint32_t tr_limit;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {"gate DPL", 0, L_KDS, L_KTOP, 103, EXC_GP, L_GATE32},
        {"gate absent", 1, L_KDS, L_KTOP, 103, EXC_NP, L_GATE32},
        {"null code", 2, L_KDS, L_KTOP, 103, EXC_GP, 0},
        {"data as code", 3, L_KDS, L_KTOP, 103, EXC_GP, L_KDS},
        {"absent code", 4, L_KDS, L_KTOP, 103, EXC_NP, L_NOCS},
        {"code beyond the table", 5, L_KDS, L_KTOP, 103, EXC_GP, 0x3000},
        {"target beyond the limit", 6, L_KDS, L_KTOP, 103, EXC_GP, 0},
        {"TSS too short", 7, L_KDS, L_KTOP, 8, EXC_TS, L_TSS},
        {"null SS0", 7, 0, L_KTOP, 103, EXC_TS, 0},
        {"SS0 beyond the table", 7, 0x3000, L_KTOP, 103, EXC_TS, 0x3000},
        {"SS0 of another level", 7, L_DS1 | 1, L_KTOP, 103, EXC_TS, L_DS1},
        {"SS0 with RPL", 7, L_KDS | 1, L_KTOP, 103, EXC_TS, L_KDS},
        {"SS0 is code", 7, L_KCS, L_KTOP, 103, EXC_TS, L_KCS},
        {"SS0 absent", 7, L_NOSS, L_KTOP, 103, EXC_SS, L_NOSS},
        {"SS0 too small", 7, L_SMALL, 16, 103, EXC_SS, L_SMALL},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        uint64_t gates[] = {
            call_gate(L_KCS, KTEXT, SYS_CALL_GATE, 0, 3),
            call_gate(L_KCS, KTEXT, SYS_CALL_GATE, 3, 3) & ~DESC_P,
            call_gate(0, KTEXT, SYS_CALL_GATE, 3, 3),
            call_gate(L_KDS, KTEXT, SYS_CALL_GATE, 3, 3),
            call_gate(L_NOCS, KTEXT, SYS_CALL_GATE, 3, 3),
            call_gate(0x3000, KTEXT, SYS_CALL_GATE, 3, 3),
            call_gate(L_SMALLCS, 0x1000, SYS_CALL_GATE, 3, 3),
            call_gate(L_KCS, KTEXT, SYS_CALL_GATE, 3, 3),
        };
        set_desc(L_GATE32, gates[cases[i].gate]);
        put32(L_TSS_A_ADDR + 4, cases[i].esp0);
        put16(L_TSS_A_ADDR + 8, cases[i].ss0);
        v->tr.limit = cases[i].tr_limit;
        enter_flat32(3);
        v->gpr[RSP] -= 16;
        struct vcpu *before = snapshot();
        enum cpu_result r = cpu_far_call(v, L_GATE32 | 3, 0, 4, UTEXT + 7);
        cr_assert_eq(r, CPU_EXCEPTION, "%s", cases[i].what);
        cr_assert_eq(v->exc.vector, cases[i].vector, "%s: %u", cases[i].what, v->exc.vector);
        cr_assert_eq(v->exc.error, cases[i].error, "%s: %#x", cases[i].what, v->exc.error);
        expect_unchanged(before, cases[i].what);
    }
}

static void push_far(unsigned size, uint32_t ip, uint16_t cs, uint32_t sp, uint16_t ss)
{
    const uint32_t w[4] = {ip, cs, sp, ss};
    for (unsigned i = 0; i < 4; i++)
        put(v->gpr[RSP] + i * size, &w[i], size);
}

Test(cpu_protected, far_return_faults)
{
    static const struct {
        unsigned cpl;
        uint16_t cs, ss;
        uint32_t ip;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {0, 0, 0, 0, EXC_GP, 0},
        {0, L_KDS, 0, 0, EXC_GP, L_KDS},
        {0, L_NOCS, 0, 0, EXC_NP, L_NOCS},
        {0, L_SMALLCS, 0, 0x1000, EXC_GP, 0},
        {3, L_KCS, L_KDS, 0, EXC_GP, L_KCS},     /* RPL < CPL */
        {0, L_KCS | 3, L_UDS, 0, EXC_GP, L_KCS}, /* DPL != RPL */
        {0, L_UCS, 0, 0, EXC_GP, 0},
        {0, L_UCS, 3, 0, EXC_GP, 0},
        {0, L_UCS, L_KDS, 0, EXC_GP, L_KDS},
        {0, L_UCS, L_UDS & ~3, 0, EXC_GP, L_UDS & ~3u},
        {0, L_UCS, L_RO | 3, 0, EXC_GP, L_RO},
        {0, L_UCS, L_NODS | 3, 0, EXC_SS, L_NODS},
        {0, L_UCS, 0x3003, 0, EXC_GP, 0x3000},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        enter_flat32(cases[i].cpl);
        v->gpr[RSP] -= 32;
        push_far(4, cases[i].ip, cases[i].cs, USTACK, cases[i].ss);
        struct vcpu *before = snapshot();
        enum cpu_result r = cpu_far_return(v, 4, 0);
        cr_assert_eq(r, CPU_EXCEPTION, "case %u", i);
        cr_assert_eq(v->exc.vector, cases[i].vector, "case %u", i);
        cr_assert_eq(v->exc.error, cases[i].error, "case %u: %#x", i, v->exc.error);
        expect_unchanged(before, "far return");
    }
}

/* Of a slot that holds a selector two bytes are read, as Intel's processors do: the segment may end
 * behind them. */
Test(cpu_protected, returns_pop_two_bytes_of_a_selector)
{
    cpu_load_segment(v, SEG_SS, L_SS16);
    v->gpr[RSP] = 0xfff9;
    put32(0x2fff9, KTEXT + 5);
    put16(0x2fffd, L_KCS);
    cr_assert_eq(cpu_far_return(v, 4, 0), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT + 5);
    cr_assert_eq(v->gpr[RSP], 1);
    /* One byte is not enough. */
    v->gpr[RSP] = 0xfffb;
    expect_fault_code(cpu_far_return(v, 4, 0), EXC_SS, 0);
    /* To an outer level: SS is the last word, in IRET's frame as well. */
    v->gpr[RSP] = 0xfff1;
    put32(0x2fff1, UTEXT);
    put32(0x2fff5, L_UCS);
    put32(0x2fff9, USTACK);
    put16(0x2fffd, L_UDS);
    cr_assert_eq(cpu_far_return(v, 4, 0), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->gpr[RSP], USTACK);
    enter_flat32(0);
    cpu_load_segment(v, SEG_SS, L_SS16);
    v->gpr[RSP] = 0xffed;
    put32(0x2ffed, UTEXT);
    put32(0x2fff1, L_UCS);
    put32(0x2fff5, FL_FIXED1);
    cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(v->seg[SEG_SS].sel, L_UDS);
}

/* -- Interrupts. ---------------------------------------------------------------------------------
 */

Test(cpu_protected, interrupt_same_level)
{
    for (unsigned type = SYS_INT_GATE16; type <= SYS_TRAP_GATE; type++) {
        if (type > SYS_TRAP_GATE16 && type < SYS_INT_GATE)
            continue;
        unsigned size = type & 8 ? 4 : 2;
        bool masks = type == SYS_INT_GATE || type == SYS_INT_GATE16;
        enter_flat32(0);
        set_gate32(0x40, L_KCS, KTEXT + 0x400, type, 0);
        v->rflags |= FL_TF | FL_NT | FL_CF | FL_AC;
        uint64_t sp = v->gpr[RSP], flags = v->rflags;
        cr_assert_eq(cpu_deliver_interrupt(v, 0x40), CPU_JUMP);
        cr_assert_eq(v->gpr[RSP], sp - 3 * size);
        cr_assert_eq(v->rip, (KTEXT + 0x400) & size_mask(size));
        uint64_t w[3] = {0};
        for (unsigned i = 0; i < 3; i++)
            memcpy(&w[i], ram.base + v->gpr[RSP] + i * size, size);
        cr_assert_eq(w[0], KTEXT & size_mask(size));
        cr_assert_eq(w[1], L_KCS);
        cr_assert_eq(w[2], flags & size_mask(size));
        cr_assert_eq(v->rflags, FL_FIXED1 | FL_CF | FL_AC | (masks ? 0 : FL_IF));
        /* And back. */
        cr_assert_eq(cpu_iret(v, size, 0), CPU_JUMP);
        cr_assert_eq(v->gpr[RSP], sp);
        cr_assert_eq(v->rflags, flags);
    }
}

Test(cpu_protected, interrupt_from_user_and_back)
{
    enter_flat32(3);
    v->rflags |= FL_CF;
    cpu_raise_code(v, EXC_GP, 0x1230);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->gpr[RSP], L_KTOP - 24);
    const uint32_t frame[6] = {0x1230, UTEXT, L_UCS, FL_FIXED1 | FL_IF | FL_CF | FL_RF,
                               USTACK, L_UDS};
    cr_assert_eq(memcmp(ram.base + L_KTOP - 24, frame, sizeof(frame)), 0);
    cr_assert_eq(v->seg[SEG_DS].sel, L_UDS, "data segments stay");
    v->gpr[RSP] += 4;
    v->seg[SEG_FS] = (struct segment){.sel = 3};
    cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->seg[SEG_DS].sel, L_UDS);
    cr_assert_eq(v->seg[SEG_FS].sel, 0, "a null selector loses its RPL");
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF | FL_CF);
    /* A 16-bit gate pushes a 16-bit error code. */
    set_gate32(EXC_GP, L_KCS, 0x4444, SYS_INT_GATE16, 0);
    cpu_raise_code(v, EXC_GP, 0x1230);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], L_KTOP - 12);
    cr_assert_eq(get16(v->gpr[RSP]), 0x1230);
    /* A conforming handler stays at CPL 3. */
    enter_flat32(3);
    set_gate32(0x41, L_CONF, KTEXT, SYS_INT_GATE, 3);
    cr_assert_eq(cpu_int_n(v, 0x41, UTEXT + 2), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->gpr[RSP], USTACK - 12);
    cr_assert_eq(get32(USTACK - 12), UTEXT + 2);
}

Test(cpu_protected, iret_to_a_16_bit_stack_changes_sp_only)
{
    v->gpr[RSP] = KSTACK - 0x1000;
    const uint32_t frame[5] = {UTEXT, L_UCS, FL_FIXED1, 0x77778888, L_USS16};
    put(v->gpr[RSP], frame, sizeof(frame));
    cr_assert_eq(cpu_iret(v, 4, 0), CPU_JUMP);
    cr_assert_eq(v->gpr[RSP], ((KSTACK - 0x1000) & 0xffff0000) | 0x8888);
    cr_assert_eq(vcpu_stack_size(v), 2);
}

Test(cpu_protected, iret_flags)
{
    static const struct {
        unsigned cpl, iopl, size;
        uint64_t want; /* after an image of all ones */
    } cases[] = {
        {0, 0, 4, FL_HOST | FL_TF | FL_NT | FL_AC | FL_ID | FL_IF | FL_IOPL | FL_VIF | FL_VIP},
        {0, 0, 2, FL_HOST | FL_TF | FL_NT | FL_IF | FL_IOPL},
        {3, 0, 4, FL_HOST | FL_TF | FL_NT | FL_AC | FL_ID},
        {3, 3, 4, FL_HOST | FL_TF | FL_NT | FL_AC | FL_ID | FL_IF | FL_IOPL},
        {3, 3, 2, FL_HOST | FL_TF | FL_NT | FL_IF | FL_IOPL},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        enter_flat32(cases[i].cpl);
        v->rflags = FL_FIXED1 | cases[i].iopl << 12;
        v->gpr[RSP] -= 32;
        push_far(cases[i].size, KTEXT & 0xffff, v->seg[SEG_CS].sel, 0, 0);
        uint32_t image = ~(uint32_t)(cases[i].cpl ? 0 : FL_VM);
        put(v->gpr[RSP] + 2 * cases[i].size, &image, cases[i].size);
        cr_assert_eq(cpu_iret(v, cases[i].size, 0), CPU_JUMP, "case %u", i);
        cr_assert_eq(v->rflags, FL_FIXED1 | cases[i].want, "case %u: %#lx", i, v->rflags);
    }
}

Test(cpu_protected, gate_faults)
{
    static const struct {
        const char *what;
        unsigned gate;
        uint16_t ss0;
        bool software;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {"beyond the IDT", 0, L_KDS, true, EXC_GP, 0xff * 8 + 2},
        {"DPL of the gate", 1, L_KDS, true, EXC_GP, 0x80 * 8 + 2},
        {"absent", 2, L_KDS, true, EXC_NP, 0x80 * 8 + 2},
        {"a call gate", 3, L_KDS, true, EXC_GP, 0x80 * 8 + 2},
        {"null code", 4, L_KDS, true, EXC_GP, 0},
        {"data as code", 5, L_KDS, true, EXC_GP, L_KDS},
        {"absent code", 6, L_KDS, true, EXC_NP, L_NOCS},
        {"beyond the code's limit", 7, L_KDS, true, EXC_GP, 0},
        {"null SS0", 8, 0, true, EXC_TS, 0},
        {"bad SS0", 8, L_DS1, true, EXC_TS, L_DS1},
        {"absent SS0", 8, L_NOSS, true, EXC_SS, L_NOSS},
        {"task gate to data", 9, L_KDS, true, EXC_GP, L_KDS},
        {"task gate to a busy TSS", 10, L_KDS, true, EXC_GP, L_TSS},
        {"task gate to the LDT", 11, L_KDS, true, EXC_GP, 0x34},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        uint64_t gates[] = {
            0,
            call_gate(L_KCS, KTEXT, SYS_INT_GATE, 0, 0),
            call_gate(L_KCS, KTEXT, SYS_INT_GATE, 3, 0) & ~DESC_P,
            call_gate(L_KCS, KTEXT, SYS_CALL_GATE, 3, 0),
            call_gate(3, KTEXT, SYS_INT_GATE, 3, 0),
            call_gate(L_KDS, KTEXT, SYS_INT_GATE, 3, 0),
            call_gate(L_NOCS, KTEXT, SYS_INT_GATE, 3, 0),
            call_gate(L_SMALLCS, 0x1000, SYS_INT_GATE, 3, 0),
            call_gate(L_KCS, KTEXT, SYS_INT_GATE, 3, 0),
            call_gate(L_KDS, 0, SYS_TASK_GATE, 3, 0),
            call_gate(L_TSS, 0, SYS_TASK_GATE, 3, 0),
            call_gate(0x34, 0, SYS_TASK_GATE, 3, 0),
        };
        unsigned vector = cases[i].gate ? 0x80 : 0xff;
        v->idtr.limit = cases[i].gate ? 0x7ff : 0x7fe;
        put64(IDT + vector * 8, gates[cases[i].gate]);
        put16(L_TSS_A_ADDR + 8, cases[i].ss0);
        enter_flat32(3);
        struct vcpu *before = snapshot();
        enum cpu_result r = cpu_int_n(v, vector, UTEXT + 2);
        cr_assert_eq(r, CPU_EXCEPTION, "%s", cases[i].what);
        cr_assert_eq(v->exc.vector, cases[i].vector, "%s: %u", cases[i].what, v->exc.vector);
        cr_assert_eq(v->exc.error, cases[i].error, "%s: %#x", cases[i].what, v->exc.error);
        expect_unchanged(before, cases[i].what);
    }
    /* For an event that is not the program's, the EXT bit is set. */
    v->idtr.limit = 0x7ff;
    put16(L_TSS_A_ADDR + 8, L_KDS);
    put64(IDT + 0x80 * 8, call_gate(L_NOCS, KTEXT, SYS_INT_GATE, 0, 0));
    enter_flat32(3);
    cr_assert_eq(cpu_deliver_interrupt(v, 0x80), CPU_JUMP);
    cr_assert_eq(v->rip, L_HANDLER(EXC_NP));
    cr_assert_eq(get32(v->gpr[RSP]), L_NOCS | 1);
}

Test(cpu_protected, double_and_triple_fault)
{
    enter_flat32(3);
    put64(IDT + EXC_GP * 8, 0);
    cpu_raise_code(v, EXC_GP, 0);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->rip, L_HANDLER(EXC_DF));
    cr_assert_eq(get32(v->gpr[RSP]), 0);
    enter_flat32(3);
    put16(L_TSS_A_ADDR + 8, 0);
    cpu_raise_code(v, EXC_GP, 0);
    cr_assert_eq(cpu_deliver_exception(v), CPU_EXIT);
    cr_assert_eq(v->exit, VCPU_EXIT_TRIPLE);
}

/* -- Fast system calls. --------------------------------------------------------------------------
 */

Test(cpu_protected, sysenter_sysexit)
{
    enter_flat32(3);
    v->sysenter_cs = L_KCS;
    v->sysenter_esp = 0xffff000012345678;
    v->sysenter_eip = KTEXT;
    cr_assert_eq(cpu_sysenter(v), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->gpr[RSP], 0x12345678);
    cr_assert_eq(v->seg[SEG_CS].sel, L_KCS);
    cr_assert_eq(v->seg[SEG_CS].attr & (SEGA_L | SEGA_DB), SEGA_DB);
    cr_assert_eq(v->seg[SEG_SS].sel, L_KDS);
    cr_assert_not(v->rflags & FL_IF);
    v->gpr[RCX] = USTACK;
    v->gpr[RDX] = UTEXT;
    cr_assert_eq(cpu_sysexit(v, 4), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->gpr[RSP], USTACK);
    cr_assert_eq(v->seg[SEG_CS].sel, L_UCS);
    cr_assert_eq(v->seg[SEG_SS].sel, L_UDS);
    expect_fault_code(cpu_sysexit(v, 4), EXC_GP, 0);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
}

Test(cpu_protected, syscall_by_vendor)
{
    enter_flat32(3);
    v->efer = EFER_SCE;
    v->star = 0x0013000800000000ull | KTEXT;
    expect_fault(cpu_syscall(v, UTEXT + 2), EXC_UD);
    expect_fault(cpu_sysret(v, 4), EXC_UD);
    model.vendor = CPU_VENDOR_AMD;
    v->gpr[R11] = 5;
    cr_assert_eq(cpu_syscall(v, UTEXT + 2), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT);
    cr_assert_eq(v->gpr[RCX], UTEXT + 2);
    cr_assert_eq(v->gpr[R11], 5);
    cr_assert_eq(v->cpl, 0);
    cr_assert_not(v->rflags & FL_IF);
    cr_assert_eq(cpu_sysret(v, 4), CPU_JUMP);
    cr_assert_eq(v->rip, UTEXT + 2);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x13);
    cr_assert(v->rflags & FL_IF);
    cr_assert_eq(v->cpl, 3);
}

/* -- Privileged state. ---------------------------------------------------------------------------
 */

Test(cpu_protected, into_long_mode_and_back)
{
    /* The order of SDM vol. 3, 9.8.5 with each step left out once. */
    uint64_t pml4 = v->cr3;
    v->efer = EFER_LME;
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0); /* no PAE */
    cr_assert_eq(cpu_mov_to_cr(v, 4, CR4_PAE), CPU_NEXT);
    v->tr.attr = SEGA_P | SYS_TSS16_BUSY;
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0);
    v->tr = loaded(L_TSS);
    v->seg[SEG_CS].attr |= SEGA_L;
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0);
    v->seg[SEG_CS].attr &= ~SEGA_L;
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), CPU_NEXT);
    cr_assert_eq(vcpu_mode(v), CPU_COMPATIBILITY);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
    expect_fault_code(cpu_mov_to_cr(v, 4, 0), EXC_GP, 0);
    expect_fault_code(cpu_wrmsr(v, MSR_EFER, 0), EXC_GP, 0);
    /* A far jump to 64-bit code; D with L is nothing. */
    set_desc(L_CS1, descriptor(0, 0xfffff, 0x9b, 0xa));
    set_desc(L_DS1, descriptor(0, 0xfffff, 0x9b, 0xe));
    expect_fault_code(cpu_far_jump(v, L_DS1, KTEXT, 0), EXC_GP, L_DS1);
    cr_assert_eq(cpu_far_jump(v, L_CS1, KTEXT, 0), CPU_JUMP);
    cr_assert_eq(vcpu_mode(v), CPU_LONG64);
    cr_assert_eq(v->mode_key & 15, 2 | 2 << SEGKEY_STACK_SHIFT);
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 & ~(uint64_t)CR0_PG), EXC_GP, 0);
    /* Task gates and TSSs are no targets in IA-32e mode. */
    expect_fault_code(cpu_far_jump(v, L_TSS_B, 0, 0), EXC_GP, L_TSS_B);
    expect_fault_code(cpu_far_jump(v, L_TASK_GATE, 0, 0), EXC_GP, L_TASK_GATE);
    expect_fault_code(cpu_far_jump(v, L_GATE16, 0, 0), EXC_GP, L_GATE16);
    /* Back through compatibility mode. */
    cr_assert_eq(cpu_far_call(v, L_KCS, KTEXT, 4, KTEXT + 8), CPU_JUMP);
    cr_assert_eq(vcpu_mode(v), CPU_COMPATIBILITY);
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 & ~(uint64_t)CR0_PG), CPU_NEXT);
    cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
    cr_assert_not(v->efer & EFER_LMA);
    cr_assert_eq(v->cr3, pml4);
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 & ~(uint64_t)CR0_PE), CPU_NEXT);
    cr_assert_eq(vcpu_mode(v), CPU_REAL);
    expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0);
}

Test(cpu_protected, pdptes_are_loaded_and_checked)
{
    uint64_t table = new_table() + 0x20; /* 32-byte aligned is enough */
    put64(table, 0x3001);
    put64(table + 8, 0);
    put64(table + 16, 0x5000 | PTE_RW); /* absent: not checked */
    put64(table + 24, 0x7001);
    v->cr3 = table;
    cr_assert_eq(cpu_mov_to_cr(v, 4, CR4_PAE), CPU_NEXT, "without paging nothing is loaded");
    cr_assert_eq(v->pdpte[0], 0);
    static const uint64_t reserved[] = {PTE_RW, PTE_US, 1 << 5, 1 << 8, 1ull << 46, PTE_XD};
    for (unsigned i = 0; i < COUNT(reserved); i++) {
        put64(table, 0x3001 | reserved[i]);
        expect_fault_code(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), EXC_GP, 0);
        cr_assert_not(v->cr0 & CR0_PG);
    }
    put64(table, 0x3001);
    cr_assert_eq(cpu_mov_to_cr(v, 0, v->cr0 | CR0_PG), CPU_NEXT);
    cr_assert_eq(v->pdpte[0], 0x3001);
    cr_assert_eq(v->pdpte[3], 0x7001);
    put64(table, 0x9001 | PTE_RW);
    cr_assert_eq(v->pdpte[0], 0x3001, "a write to memory alone changes nothing");
    expect_fault_code(cpu_mov_to_cr(v, 3, table), EXC_GP, 0);
    expect_fault_code(cpu_mov_to_cr(v, 4, CR4_PAE | CR4_PGE), EXC_GP, 0);
    cr_assert_eq(v->cr4, CR4_PAE);
    put64(table, 0x9001);
    cr_assert_eq(cpu_mov_to_cr(v, 3, table), CPU_NEXT);
    cr_assert_eq(v->pdpte[0], 0x9001);
}

Test(cpu_protected, lmsw)
{
    enter_real();
    cr_assert_eq(cpu_lmsw(v, CR0_PE), CPU_NEXT);
    cr_assert_eq(vcpu_mode(v), CPU_PROTECTED);
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
    cr_assert_eq(cpu_lmsw(v, CR0_TS | CR0_EM), CPU_NEXT);
    cr_assert_eq(v->cr0 & 0xf, CR0_PE | CR0_EM | CR0_TS, "LMSW cannot clear PE");
}

Test(cpu_protected, table_bases)
{
    cr_assert_eq(cpu_table_base(v, 0x12345678, 2), 0x345678);
    cr_assert_eq(cpu_table_base(v, 0x12345678, 4), 0x12345678);
}

Test(cpu_protected, io_permission_map)
{
    put16(L_TSS_A_ADDR + 102, 104);
    memset(ram.base + L_TSS_A_ADDR + 104, 0, 33);
    ram.base[L_TSS_A_ADDR + 104 + 2] = 0x08; /* port 13H */
    enter_flat32(3);
    cr_assert_eq(cpu_io_check(v, 0x10, 1), CPU_NEXT);
    expect_fault_code(cpu_io_check(v, 0x13, 1), EXC_GP, 0);
    expect_fault_code(cpu_io_check(v, 0x10, 4), EXC_GP, 0);
    cr_assert_eq(cpu_io_check(v, 0x11, 2), CPU_NEXT);
    expect_fault_code(cpu_io_check(v, 0x200, 1), EXC_GP, 0); /* beyond the limit */
    v->rflags |= FL_IOPL;
    cr_assert_eq(cpu_io_check(v, 0x13, 1), CPU_NEXT);
    /* In virtual-8086 mode IOPL does not help. */
    enter_v86(3);
    expect_fault_code(cpu_io_check(v, 0x13, 1), EXC_GP, 0);
    cr_assert_eq(cpu_io_check(v, 0x10, 1), CPU_NEXT);
    /* A 16-bit TSS has no map. */
    v->tr.attr = SEGA_P | SYS_TSS16_BUSY;
    expect_fault_code(cpu_io_check(v, 0x10, 1), EXC_GP, 0);
}

Test(cpu_protected, virtual_interrupt_flag_of_pvi)
{
    enter_flat32(3);
    expect_fault_code(cpu_cli(v), EXC_GP, 0);
    expect_fault_code(cpu_sti(v), EXC_GP, 0);
    v->cr4 |= CR4_PVI;
    cr_assert_eq(cpu_sti(v), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF | FL_VIF);
    cr_assert_eq(cpu_cli(v), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF);
    v->rflags |= FL_VIP;
    expect_fault_code(cpu_sti(v), EXC_GP, 0);
    /* POPF and PUSHF are as without it. */
    uint64_t image;
    cr_assert_eq(cpu_pushf(v, 4, &image), CPU_NEXT);
    cr_assert(image & FL_IF);
    cr_assert_eq(cpu_popf(v, 0, 4), CPU_NEXT);
    cr_assert(v->rflags & FL_IF);
    /* At CPL 1 it does nothing. */
    enter_flat32(1);
    expect_fault_code(cpu_cli(v), EXC_GP, 0);
    /* IRET to a program whose virtual interrupt waits. */
    enter_flat32(0);
    const uint32_t frame[5] = {UTEXT, L_UCS, FL_FIXED1 | FL_VIF | FL_VIP, USTACK, L_UDS};
    put(v->gpr[RSP], frame, sizeof(frame));
    expect_fault_code(cpu_iret(v, 4, 0), EXC_GP, 0);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->rip, UTEXT);
}
