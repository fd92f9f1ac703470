/*
 * What the tests of real, virtual-8086 and 16/32-bit protected mode share: a vCPU without paging
 * over the RAM of the mmu fixture, a GDT with every kind of descriptor, TSSs and an IDT of 32-bit
 * gates.  Linear addresses are physical ones.
 */
#ifndef RINGSHIFT_TEST_LEGACY_FIXTURE_H
#define RINGSHIFT_TEST_LEGACY_FIXTURE_H

#include "tests/unit/cpu_fixture.h"

enum {
    L_KCS = 0x08,
    L_KDS = 0x10,
    L_UCS = 0x18 | 3,
    L_UDS = 0x20 | 3,
    L_TSS = 0x28,   /* 32-bit, busy: in TR                          */
    L_TSS_B = 0x30, /* 32-bit, available                            */
    L_TSS16 = 0x38, /* 16-bit, available                            */
    L_LDT = 0x40,
    L_GATE32 = 0x48,    /* DPL 3, to L_KCS:KTEXT, 3 parameters          */
    L_GATE16 = 0x50,    /* DPL 3, to L_KCS:0x1234, 2 parameters         */
    L_TASK_GATE = 0x58, /* DPL 3, to L_TSS_B                           */
    L_CONF = 0x60,      /* conforming code, DPL 0                       */
    L_CS16 = 0x68,      /* 16-bit code, DPL 0, base 0x10000             */
    L_SS16 = 0x70,      /* 16-bit data, DPL 0, limit FFFFH              */
    L_DOWN = 0x78,      /* expand-down, 32-bit, limit FFFH              */
    L_SMALL = 0x80,     /* data, DPL 0, limit FFFH                      */
    L_CS1 = 0x88,       /* code, DPL 1                                  */
    L_DS1 = 0x90,
    L_NOCS = 0x98,      /* code, DPL 0, absent                          */
    L_NODS = 0xa0,      /* data, DPL 3, absent                          */
    L_RO = 0xa8,        /* read-only data, DPL 3                        */
    L_XO = 0xb0,        /* execute-only code, DPL 3                     */
    L_USS16 = 0xb8 | 3, /* 16-bit data, DPL 3, limit FFFFH             */
    L_NOSS = 0xc0,      /* data, DPL 0, absent                          */
    L_SMALLCS = 0xc8,   /* 32-bit code, DPL 0, limit FFFH               */
    L_GATE1 = 0xd0,     /* like L_GATE32, to L_CS1                      */
    L_GDT_LIMIT = 0xdf,

    L_TSS_A_ADDR = TSS,
    L_TSS_B_ADDR = TSS + 0x400,
    L_TSS16_ADDR = TSS + 0x800,
    L_KTOP = KSTACK, /* ESP0 */
    L_KTOP1 = KSTACK - 0x2000,
};

static inline uint32_t get32(uint64_t gpa)
{
    uint32_t value;
    memcpy(&value, ram.base + gpa, 4);
    return value;
}

static inline uint16_t get16(uint64_t gpa)
{
    uint16_t value;
    memcpy(&value, ram.base + gpa, 2);
    return value;
}

static inline void put32(uint64_t gpa, uint32_t value)
{
    put(gpa, &value, 4);
}

static inline void put16(uint64_t gpa, uint16_t value)
{
    put(gpa, &value, 2);
}

static inline uint64_t call_gate(uint16_t sel, uint32_t offset, unsigned type, unsigned dpl,
                                 unsigned params)
{
    return (offset & 0xffff) | (uint64_t)sel << 16 | (uint64_t)params << 32 |
           (uint64_t)(0x80 | dpl << 5 | type) << 40 | (uint64_t)(offset & 0xffff0000) << 32;
}

static inline void set_gate32(unsigned vector, uint16_t sel, uint32_t target, unsigned type,
                              unsigned dpl)
{
    put64(IDT + vector * 8, call_gate(sel, target, type, dpl, 0));
}

/* Where the handler of a vector is. */
#define L_HANDLER(n) (KTEXT + (n)*16)

static inline struct segment loaded(uint16_t sel)
{
    return cpu_segment_of(sel, get64(GDT + (sel & ~7)));
}

/* Flat 32-bit code at a privilege of 0, 1 or 3. */
static inline void enter_flat32(unsigned cpl)
{
    static const uint16_t cs[4] = {L_KCS, L_CS1 | 1, 0, L_UCS},
                          ss[4] = {L_KDS, L_DS1 | 1, 0, L_UDS};

    v->cpl = (uint8_t)cpl;
    v->rflags = FL_FIXED1 | FL_IF;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        v->seg[i] = loaded(ss[cpl]);
    v->seg[SEG_CS] = loaded(cs[cpl]);
    v->gpr[RSP] = cpl == 3 ? USTACK : KSTACK - 0x1000;
    v->rip = cpl == 3 ? UTEXT : KTEXT;
    cpu_mode_changed(v);
}

static inline void legacy_setup(void)
{
    cpu_setup();
    v->efer = 0;
    v->cr4 = 0;
    v->cr0 = CR0_PE | CR0_ET | CR0_NE;
    memset(ram.base + GDT, 0, 0x1000);
    set_desc(L_KCS, descriptor(0, 0xfffff, 0x9b, 0xc));
    set_desc(L_KDS, descriptor(0, 0xfffff, 0x93, 0xc));
    set_desc(L_UCS, descriptor(0, 0xfffff, 0xfb, 0xc));
    set_desc(L_UDS, descriptor(0, 0xfffff, 0xf3, 0xc));
    set_desc(L_TSS, descriptor(L_TSS_A_ADDR, 104 + 32, 0x8b, 0));
    set_desc(L_TSS_B, descriptor(L_TSS_B_ADDR, 103, 0x89, 0));
    set_desc(L_TSS16, descriptor(L_TSS16_ADDR, 43, 0x81, 0));
    set_desc(L_LDT, descriptor(LDT, 0x1f, 0x82, 0));
    set_desc(L_GATE32, call_gate(L_KCS, KTEXT, SYS_CALL_GATE, 3, 3));
    set_desc(L_GATE16, call_gate(L_KCS, 0x991234, SYS_CALL_GATE16, 3, 2));
    set_desc(L_TASK_GATE, call_gate(L_TSS_B, 0, SYS_TASK_GATE, 3, 0));
    set_desc(L_CONF, descriptor(0, 0xfffff, 0x9f, 0xc));
    set_desc(L_CS16, descriptor(0x10000, 0xffff, 0x9b, 0));
    set_desc(L_SS16, descriptor(0x20000, 0xffff, 0x93, 0));
    set_desc(L_DOWN, descriptor(0, 0xfff, 0x97, 4));
    set_desc(L_SMALL, descriptor(KDATA, 0xfff, 0x93, 4));
    set_desc(L_CS1, descriptor(0, 0xfffff, 0xbb, 0xc));
    set_desc(L_DS1, descriptor(0, 0xfffff, 0xb3, 0xc));
    set_desc(L_NOCS, descriptor(0, 0xfffff, 0x1b, 0xc));
    set_desc(L_NODS, descriptor(0, 0xfffff, 0x73, 0xc));
    set_desc(L_RO, descriptor(0, 0xfffff, 0xf1, 0xc));
    set_desc(L_XO, descriptor(0, 0xfffff, 0xf9, 0xc));
    set_desc(L_USS16, descriptor(0x30000, 0xffff, 0xf3, 0));
    set_desc(L_NOSS, descriptor(0, 0xfffff, 0x13, 0xc));
    set_desc(L_SMALLCS, descriptor(KTEXT, 0xfff, 0x9b, 4));
    set_desc(L_GATE1, call_gate(L_CS1, KTEXT, SYS_CALL_GATE, 3, 0));
    v->gdtr = (struct dtable){.base = GDT, .limit = L_GDT_LIMIT};
    v->idtr = (struct dtable){.base = IDT, .limit = 0x7ff};
    v->ldtr = (struct segment){0};
    v->tr = loaded(L_TSS);
    memset(ram.base + TSS, 0, 0x1000);
    put32(L_TSS_A_ADDR + 4, L_KTOP);
    put16(L_TSS_A_ADDR + 8, L_KDS);
    put32(L_TSS_A_ADDR + 12, L_KTOP1);
    put16(L_TSS_A_ADDR + 16, L_DS1 | 1);
    for (unsigned i = 0; i < 256; i++)
        set_gate32(i, L_KCS, L_HANDLER(i), SYS_INT_GATE, 0);
    enter_flat32(0);
    mmu_stlb_init(v);
}

/* Real mode at 0x1000:0x0100 with the stack at 0x2000:SP. */
static inline void enter_real(void)
{
    v->cr0 &= ~(uint64_t)(CR0_PE | CR0_PG);
    v->cpl = 0;
    v->rflags = FL_FIXED1 | FL_IF;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        v->seg[i] = (struct segment){.attr = 0x93, .limit = 0xffff};
    v->seg[SEG_CS].attr = 0x9b;
    cpu_load_real_segment(v, SEG_CS, 0x1000);
    cpu_load_real_segment(v, SEG_SS, 0x2000);
    v->idtr = (struct dtable){.limit = 0x3ff};
    v->gpr[RSP] = 0x1000;
    v->rip = 0x100;
    for (unsigned i = 0; i < 256; i++)
        put32(i * 4, 0x30000000u | i * 16); /* 3000:i*16 */
    cpu_mode_changed(v);
}

/* Virtual-8086 mode, the same addresses. */
static inline void enter_v86(unsigned iopl)
{
    v->rflags = FL_FIXED1 | FL_IF | FL_VM | iopl << 12;
    v->cpl = 3;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu_load_real_segment(v, (enum seg)i, (uint16_t)(0x4000 + i));
    cpu_load_real_segment(v, SEG_CS, 0x1000);
    cpu_load_real_segment(v, SEG_SS, 0x2000);
    v->gpr[RSP] = 0x1000;
    v->rip = 0x100;
    for (unsigned i = 0; i < 256; i++)
        put32(i * 4, 0x30000000u | i * 16);
    cpu_mode_changed(v);
}

#endif
