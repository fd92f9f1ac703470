/* Hardware task switches (SDM vol. 3, chapter 7). */
#include "tests/unit/legacy_fixture.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum { B_EIP = KTEXT + 0x800, B_ESP = KSTACK - 0x3000 };

static unsigned type_of(uint16_t sel)
{
    return get64(GDT + sel) >> 40 & 15;
}

/* A runnable task in L_TSS_B. */
static void make_task32(void)
{
    static const uint16_t sel[6] = {L_KDS, L_KCS, L_KDS, L_KDS, L_UDS, 0};

    put32(L_TSS_B_ADDR + 0x1c, 0xdead000);
    put32(L_TSS_B_ADDR + 0x20, B_EIP);
    put32(L_TSS_B_ADDR + 0x24, FL_CF | FL_IF);
    for (unsigned i = 0; i < 8; i++)
        put32(L_TSS_B_ADDR + 0x28 + 4 * i, i == RSP ? B_ESP : 0xb0000000 + i);
    for (unsigned i = 0; i < 6; i++)
        put32(L_TSS_B_ADDR + 0x48 + 4 * i, sel[i]);
    put32(L_TSS_B_ADDR + 0x60, L_LDT);
}

static void make_task16(void)
{
    static const uint16_t sel[4] = {L_KDS, L_CS16, L_SS16, L_SMALL};

    put16(L_TSS16_ADDR + 0x0e, 0x777);
    put16(L_TSS16_ADDR + 0x10, FL_ZF);
    for (unsigned i = 0; i < 8; i++)
        put16(L_TSS16_ADDR + 0x12 + 2 * i, i == RSP ? 0x8000 : 0x1600 + i);
    for (unsigned i = 0; i < 4; i++)
        put16(L_TSS16_ADDR + 0x22 + 2 * i, sel[i]);
    put16(L_TSS16_ADDR + 0x2a, 0);
}

static void setup(void)
{
    legacy_setup();
    make_task32();
    make_task16();
    for (unsigned i = 0; i < 8; i++)
        if (i != RSP)
            v->gpr[i] = 0xa0000000 + i;
    v->dr[7] = 0x455;
    memset(ram.base + L_TSS_A_ADDR + 0x20, 0xee, 0x40);
}

TestSuite(cpu_task, .init = setup, .fini = cpu_teardown);

static void expect_task_a_saved(uint32_t eip, uint32_t flags, uint32_t esp)
{
    cr_assert_eq(get32(L_TSS_A_ADDR + 0x20), eip);
    cr_assert_eq(get32(L_TSS_A_ADDR + 0x24), flags);
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(get32(L_TSS_A_ADDR + 0x28 + 4 * i), i == RSP ? esp : 0xa0000000 + i);
    cr_assert_eq(get32(L_TSS_A_ADDR + 0x4c), 0xeeee0000 | L_KCS, "the upper half is not the CPU's");
    cr_assert_eq(get16(L_TSS_A_ADDR + 0x50), L_KDS);
}

static void expect_task_b(uint64_t flags)
{
    cr_assert_eq(v->tr.sel, L_TSS_B);
    cr_assert_eq(v->tr.base, L_TSS_B_ADDR);
    cr_assert_eq(v->tr.attr & 15, SYS_TSS_BUSY);
    cr_assert_eq(v->rip, B_EIP);
    cr_assert_eq(v->rflags, flags);
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(v->gpr[i], i == RSP ? (uint64_t)B_ESP : 0xb0000000 + i);
    cr_assert_eq(v->seg[SEG_FS].sel, L_UDS);
    cr_assert_eq(v->seg[SEG_GS].attr, 0);
    cr_assert_eq(v->ldtr.base, LDT);
    cr_assert(v->cr0 & CR0_TS);
    cr_assert_eq(v->dr[7], 0x400, "local breakpoints are off");
    cr_assert_eq(v->mode_key, cpu_segment_key(v));
}

Test(cpu_task, jump)
{
    for (unsigned gate = 0; gate < 2; gate++) {
        uint32_t esp = v->gpr[RSP];
        cr_assert_eq(cpu_far_jump(v, gate ? L_TASK_GATE : L_TSS_B, 0x99, KTEXT + 7), CPU_JUMP);
        expect_task_a_saved(KTEXT + 7, FL_FIXED1 | FL_IF, esp);
        expect_task_b(FL_FIXED1 | FL_CF | FL_IF);
        cr_assert_eq(type_of(L_TSS), SYS_TSS_AVAIL);
        cr_assert_eq(type_of(L_TSS_B), SYS_TSS_BUSY);
        cr_assert_eq(get16(L_TSS_B_ADDR), 0, "JMP leaves no link");
        cr_assert_eq(v->cr3, 4096, "no paging: CR3 is not loaded");
        cpu_teardown();
        setup();
    }
}

Test(cpu_task, call_and_iret)
{
    uint32_t esp = v->gpr[RSP];
    cr_assert_eq(cpu_far_call(v, L_TSS_B, 0, 4, KTEXT + 7), CPU_JUMP);
    expect_task_b(FL_FIXED1 | FL_CF | FL_IF | FL_NT);
    cr_assert_eq(get16(L_TSS_B_ADDR), L_TSS);
    cr_assert_eq(type_of(L_TSS), SYS_TSS_BUSY, "a nesting task stays busy");
    cr_assert_eq(type_of(L_TSS_B), SYS_TSS_BUSY);
    v->gpr[RAX] = 0x5555;
    cr_assert_eq(cpu_iret(v, 4, B_EIP + 1), CPU_JUMP);
    cr_assert_eq(v->tr.sel, L_TSS);
    cr_assert_eq(v->rip, KTEXT + 7);
    cr_assert_eq(v->gpr[RSP], esp);
    cr_assert_eq(v->gpr[RAX], 0xa0000000);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_IF);
    cr_assert_eq(type_of(L_TSS), SYS_TSS_BUSY);
    cr_assert_eq(type_of(L_TSS_B), SYS_TSS_AVAIL);
    cr_assert_eq(get32(L_TSS_B_ADDR + 0x20), B_EIP + 1, "it goes on behind its IRET");
    cr_assert_eq(get32(L_TSS_B_ADDR + 0x24) & FL_NT, 0);
    cr_assert_eq(get32(L_TSS_B_ADDR + 0x28), 0x5555);
}

Test(cpu_task, interrupt_with_error_code)
{
    set_gate32(EXC_GP, L_TSS_B, 0, SYS_TASK_GATE, 0);
    enter_flat32(3);
    cpu_raise_code(v, EXC_GP, 0x1230);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->cpl, 0);
    cr_assert_eq(v->gpr[RSP], B_ESP - 4);
    cr_assert_eq(get32(B_ESP - 4), 0x1230);
    cr_assert_eq(get32(L_TSS_A_ADDR + 0x20), UTEXT);
    cr_assert(get32(L_TSS_A_ADDR + 0x24) & FL_RF, "as every fault");
    cr_assert(v->rflags & FL_NT);
    v->gpr[RSP] += 4;
    cr_assert_eq(cpu_iret(v, 4, B_EIP), CPU_JUMP);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->rip, UTEXT);
    cr_assert_eq(v->seg[SEG_CS].sel, L_UCS);
}

Test(cpu_task, double_fault_through_a_task_gate)
{
    /* The classic use: the kernel's stack is gone. */
    set_gate32(EXC_DF, L_TSS_B, 0, SYS_TASK_GATE, 0);
    put16(L_TSS_A_ADDR + 8, 0);
    enter_flat32(3);
    cpu_raise_code(v, EXC_GP, 0);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->tr.sel, L_TSS_B);
    cr_assert_eq(get32(v->gpr[RSP]), 0);
}

Test(cpu_task, to_a_16_bit_task_and_back)
{
    cr_assert_eq(cpu_far_call(v, L_TSS16, 0, 4, KTEXT + 7), CPU_JUMP);
    cr_assert_eq(v->tr.attr & 15, SYS_TSS16_BUSY);
    cr_assert_eq(v->rip, 0x777);
    cr_assert_eq(v->seg[SEG_CS].base, 0x10000);
    cr_assert_eq((uint16_t)v->gpr[RSP], 0x8000);
    cr_assert_eq((uint16_t)v->gpr[RDI], 0x1607);
    cr_assert_eq(v->seg[SEG_FS].attr, 0);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_ZF | FL_NT);
    cr_assert_eq(vcpu_stack_size(v), 2);
    cr_assert_eq(get16(L_TSS16_ADDR), L_TSS);
    v->gpr[RBX] = 0x12345678;
    cr_assert_eq(cpu_iret(v, 2, 0x778), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT + 7);
    cr_assert_eq(get16(L_TSS16_ADDR + 0x0e), 0x778);
    cr_assert_eq(get16(L_TSS16_ADDR + 0x18), 0x5678);
    cr_assert_eq(get16(L_TSS16_ADDR + 0x24), L_CS16);
    cr_assert_eq(type_of(L_TSS16), SYS_TSS16_AVAIL);
}

Test(cpu_task, loads_cr3_when_paging)
{
    /* One 4 MiB page for everything, in two page directories. */
    uint64_t pd = new_table(), pd2 = new_table();
    put32(pd, 0xe7);
    put32(pd2, 0xe7);
    v->cr4 = CR4_PSE;
    v->cr3 = pd;
    v->cr0 |= CR0_PG;
    put32(L_TSS_B_ADDR + 0x1c, (uint32_t)pd2);
    cr_assert_eq(cpu_far_jump(v, L_TSS_B, 0, KTEXT + 7), CPU_JUMP);
    cr_assert_eq(v->cr3, pd2);
    cr_assert_eq(v->rip, B_EIP);
}

Test(cpu_task, to_virtual_8086_mode)
{
    put32(L_TSS_B_ADDR + 0x20, 0x100);
    put32(L_TSS_B_ADDR + 0x24, FL_VM | FL_IF | FL_IOPL);
    for (unsigned i = 0; i < 6; i++)
        put32(L_TSS_B_ADDR + 0x48 + 4 * i, 0x1000 * (i + 1));
    cr_assert_eq(cpu_far_jump(v, L_TSS_B, 0, KTEXT + 7), CPU_JUMP);
    cr_assert_eq(vcpu_mode(v), CPU_V86);
    cr_assert_eq(v->cpl, 3);
    cr_assert_eq(v->seg[SEG_CS].base, 0x20000);
    cr_assert_eq(v->seg[SEG_GS].base, 0x60000);
}

Test(cpu_task, debug_trap_flag)
{
    ram.base[L_TSS_B_ADDR + 0x64] = 1;
    cr_assert_eq(cpu_far_jump(v, L_TSS_B, 0, KTEXT + 7), CPU_EXCEPTION);
    cr_assert_eq(v->exc.vector, EXC_DB);
    cr_assert_eq(v->exc.dr6, DR6_BT);
    cr_assert_eq(v->rip, B_EIP);
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->rip, L_HANDLER(EXC_DB));
    cr_assert_eq(get32(v->gpr[RSP]), B_EIP);
    cr_assert(v->dr[6] & DR6_BT);
    /* In the delivery of a double fault it is no third fault. */
    cpu_teardown();
    setup();
    ram.base[L_TSS_B_ADDR + 0x64] = 1;
    set_gate32(EXC_DF, L_TSS_B, 0, SYS_TASK_GATE, 0);
    v->exc = (struct exception){.vector = EXC_DF, .has_error = true};
    cr_assert_eq(cpu_deliver_exception(v), CPU_JUMP);
    cr_assert_eq(v->rip, L_HANDLER(EXC_DB));
}

/* Faults of the old task: nothing has happened. */
Test(cpu_task, faults_before_the_switch)
{
    enum how { JMP, CALL, IRET_NT };
    static const struct {
        const char *what;
        enum how how;
        unsigned cpl;
        uint16_t sel;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {"busy TSS", JMP, 0, L_TSS, EXC_GP, L_TSS},
        {"busy TSS, called", CALL, 0, L_TSS, EXC_GP, L_TSS},
        {"DPL of the TSS", JMP, 3, L_TSS_B, EXC_GP, L_TSS_B},
        {"RPL", CALL, 0, L_TSS_B | 1, EXC_GP, L_TSS_B},
        {"absent", JMP, 0, 0x70, EXC_NP, 0x70},
        {"too short", JMP, 0, 0x78, EXC_TS, 0x78},
        {"link to an available TSS", IRET_NT, 0, L_TSS_B, EXC_TS, L_TSS_B},
        {"link to data", IRET_NT, 0, L_KDS, EXC_TS, L_KDS},
        {"link into the LDT", IRET_NT, 0, 0x34, EXC_TS, 0x34},
        {"null link", IRET_NT, 0, 0, EXC_TS, 0},
        {"link beyond the table", IRET_NT, 0, 0x3000, EXC_TS, 0x3000},
    };

    set_desc(0x70, descriptor(L_TSS_B_ADDR, 103, 0x09, 0));
    set_desc(0x78, descriptor(L_TSS_B_ADDR, 102, 0x89, 0));
    for (unsigned i = 0; i < COUNT(cases); i++) {
        enter_flat32(cases[i].cpl);
        v->cr0 &= ~(uint64_t)CR0_TS;
        put16(L_TSS_A_ADDR, cases[i].sel);
        uint64_t rsp = v->gpr[RSP], rip = v->rip;
        enum cpu_result r;
        if (cases[i].how == IRET_NT) {
            v->rflags |= FL_NT;
            r = cpu_iret(v, 4, 0);
        } else if (cases[i].how == JMP) {
            r = cpu_far_jump(v, cases[i].sel, 0, 0);
        } else {
            r = cpu_far_call(v, cases[i].sel, 0, 4, 0);
        }
        cr_assert_eq(r, CPU_EXCEPTION, "%s", cases[i].what);
        cr_assert_eq(v->exc.vector, cases[i].vector, "%s: %u", cases[i].what, v->exc.vector);
        cr_assert_eq(v->exc.error, cases[i].error, "%s: %#x", cases[i].what, v->exc.error);
        cr_assert_eq(v->gpr[RSP], rsp);
        cr_assert_eq(v->rip, rip);
        cr_assert_eq(v->tr.sel, L_TSS);
        cr_assert_not(v->cr0 & CR0_TS);
        cr_assert_eq(type_of(L_TSS_B), SYS_TSS_AVAIL);
    }
}

/* Faults of the new task: TR, EIP and registers are its own. */
Test(cpu_task, faults_after_the_switch)
{
    static const struct {
        const char *what;
        unsigned seg; /* 6: LDTR, 7: EIP */
        uint32_t value;
        unsigned vector;
        uint32_t error;
    } cases[] = {
        {"null CS", SEG_CS, 0, EXC_TS, 0},
        {"CS is data", SEG_CS, L_KDS, EXC_TS, L_KDS},
        {"absent CS", SEG_CS, L_NOCS, EXC_NP, L_NOCS},
        {"CS: DPL != RPL", SEG_CS, L_KCS | 1, EXC_TS, L_KCS},
        {"CS beyond the table", SEG_CS, 0x3000, EXC_TS, 0x3000},
        {"null SS", SEG_SS, 0, EXC_TS, 0},
        {"SS of another level", SEG_SS, L_DS1 | 1, EXC_TS, L_DS1},
        {"SS is read-only", SEG_SS, L_RO, EXC_TS, L_RO},
        {"absent SS", SEG_SS, L_NOSS, EXC_SS, L_NOSS},
        {"DS beyond the table", SEG_DS, 0x3000, EXC_TS, 0x3000},
        {"absent DS", SEG_DS, L_NODS, EXC_NP, L_NODS},
        {"execute-only ES", SEG_ES, L_XO, EXC_TS, L_XO},
        {"GS is a TSS", SEG_GS, L_TSS, EXC_TS, L_TSS},
        {"FS: RPL > DPL", SEG_FS, L_KDS | 3, EXC_TS, L_KDS},
        {"LDT in the LDT", 6, 0x0c, EXC_TS, 0x0c},
        {"LDT is data", 6, L_KDS, EXC_TS, L_KDS},
        {"EIP beyond the limit", 7, 0x1000, EXC_GP, 0},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        make_task32();
        set_desc(L_TSS, get64(GDT + L_TSS) | 2ull << 40);
        set_desc(L_TSS_B, get64(GDT + L_TSS_B) & ~(2ull << 40));
        v->tr = loaded(L_TSS);
        enter_flat32(0);
        if (cases[i].seg < 6)
            put32(L_TSS_B_ADDR + 0x48 + 4 * cases[i].seg, cases[i].value);
        if (cases[i].seg == 6)
            put32(L_TSS_B_ADDR + 0x60, cases[i].value);
        if (cases[i].seg == 7) {
            put32(L_TSS_B_ADDR + 0x20, cases[i].value);
            put32(L_TSS_B_ADDR + 0x4c, L_SMALLCS);
        }
        cr_assert_eq(cpu_far_jump(v, L_TSS_B, 0, KTEXT), CPU_EXCEPTION, "%s", cases[i].what);
        cr_assert_eq(v->exc.vector, cases[i].vector, "%s: %u", cases[i].what, v->exc.vector);
        cr_assert_eq(v->exc.error, cases[i].error, "%s: %#x", cases[i].what, v->exc.error);
        cr_assert_eq(v->tr.sel, L_TSS_B, "%s", cases[i].what);
        cr_assert_eq(v->rip, cases[i].seg == 7 ? cases[i].value : (uint32_t)B_EIP);
        cr_assert_eq(v->gpr[RAX], 0xb0000000);
        cr_assert_eq(type_of(L_TSS_B), SYS_TSS_BUSY);
        cr_assert_eq(v->mode_key, cpu_segment_key(v));
    }
}

Test(cpu_task, tables_that_cannot_be_written)
{
    /* With paging and CR0.WP, a read-only old TSS is a page fault of the old task. */
    uint64_t pd = new_table(), pt = new_table();
    put32(pd, (uint32_t)pt | 7);
    for (unsigned i = 0; i < 1024; i++)
        put32(pt + 4 * i, i << 12 | 0x63);
    v->cr3 = pd;
    v->cr0 |= CR0_PG | CR0_WP;
    static const uint32_t pages[] = {L_TSS_A_ADDR, GDT};
    for (unsigned i = 0; i < COUNT(pages); i++) {
        put32(pt + (pages[i] >> 12) * 4, pages[i] | 0x61);
        mmu_flush_all(v);
        cr_assert_eq(cpu_far_jump(v, L_TSS_B, 0, KTEXT), CPU_EXCEPTION);
        cr_assert_eq(v->exc.vector, EXC_PF);
        cr_assert_eq(v->exc.error, PF_P | PF_W);
        cr_assert_eq(v->tr.sel, L_TSS);
        cr_assert_eq(v->rip, KTEXT);
        cr_assert_eq(get32(L_TSS_A_ADDR + 0x28), 0xeeeeeeee, "nothing was saved");
        put32(pt + (pages[i] >> 12) * 4, pages[i] | 0x63);
    }
}
