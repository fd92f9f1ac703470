/*
 * Hardware task switches (SDM vol. 3, chapter 7): by JMP, CALL, an interrupt or IRET, between tasks
 * with 16-bit and 32-bit TSSs.  IA-32e mode has none.
 *
 * Up to a point everything that can fail is only checked, and a fault is one of the old task.  Then
 * the old task is saved, and the registers of the new one are loaded as they are; from there on
 * faults (bad segments, above all) are the new task's: its EIP, its stack, its handlers.
 */
#include "cpu/exception.h"
#include "cpu/segment.h"
#include "cpu/stack.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

/* SDM vol. 3, figures 7-2 and 7-10. */
enum {
    TSS32_SIZE = 0x68,
    TSS32_CR3 = 0x1c,
    TSS32_EIP = 0x20, /* then EFLAGS, eight registers, six selectors: 64 bytes */
    TSS32_SREG = 0x48,
    TSS32_LDT = 0x60,
    TSS32_TRAP = 0x64,
    TSS32_SAVED = 64,
    TSS16_SIZE = 0x2c,
    TSS16_IP = 0x0e, /* then FLAGS, eight registers, four selectors: 28 bytes */
    TSS16_SREG = 0x22,
    TSS16_LDT = 0x2a,
    TSS16_SAVED = 28,
};

/* Flags that a TSS can set. */
#define TASK_FLAGS                                                                                 \
    (FL_HOST | FL_TF | FL_IF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID)

struct tss_image {
    bool wide;
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t sreg[6], ldt; /* in the order of enum seg */
    bool trap;
};

/* A fault whose error code is a selector. */
static int fail(struct vcpu *v, uint8_t vector, uint16_t sel, uint32_t ext)
{
    cpu_raise_code(v, vector, (sel & ~3u) | ext);
    return -1;
}

static uint32_t field(const uint8_t *p, unsigned size)
{
    uint32_t value = p[0] | p[1] << 8;

    return size == 2 ? value : value | p[2] << 16 | (uint32_t)p[3] << 24;
}

static void set_field(uint8_t *p, uint32_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        p[i] = value >> (8 * i);
}

static int read_tss(struct vcpu *v, uint32_t base, bool wide, struct tss_image *t)
{
    uint8_t raw[TSS32_SIZE];
    unsigned size = wide ? 4 : 2, bytes = wide ? TSS32_SIZE : TSS16_SIZE;
    unsigned half = bytes / 2;
    const uint8_t *p = raw + (wide ? TSS32_EIP : TSS16_IP);
    const uint8_t *s = raw + (wide ? TSS32_SREG : TSS16_SREG);

    if (mmu_load(v, base, raw, half, MMU_READ | MMU_SYSTEM, false) ||
        mmu_load(v, (uint32_t)(base + half), raw + half, bytes - half, MMU_READ | MMU_SYSTEM,
                 false))
        return -1;
    *t = (struct tss_image){.wide = wide};
    t->eip = field(p, size);
    t->eflags = field(p + size, size);
    for (unsigned i = 0; i < 8; i++)
        t->gpr[i] = field(p + (2 + i) * size, size) | (wide ? 0 : 0xffff0000u);
    for (unsigned i = 0; i < (wide ? 6u : 4u); i++)
        t->sreg[i] = field(s + i * size, 2);
    t->ldt = field(raw + (wide ? TSS32_LDT : TSS16_LDT), 2);
    if (wide) {
        t->cr3 = field(raw + TSS32_CR3, 4);
        t->trap = raw[TSS32_TRAP] & 1;
    }
    return 0;
}

/* Can [lin, lin + size) be written?  0, or -1 with #PF. */
static int check_writable(struct vcpu *v, uint32_t lin, unsigned size)
{
    const uint32_t end[2] = {lin, lin + size - 1};
    uint64_t gpa;
    void *host;

    for (unsigned i = 0; i < 2; i++)
        if (mmu_translate(v, end[i], MMU_WRITE | MMU_SYSTEM, false, &host, &gpa) < 0)
            return -1;
    return 0;
}

static uint32_t gdt_type_byte(const struct vcpu *v, uint16_t sel)
{
    return (uint32_t)v->gdtr.base + (sel & ~7u) + 5;
}

/* Saves what the TSS in TR keeps of a task: EIP, flags, registers, selectors. */
static int save_task(struct vcpu *v, uint32_t eip, uint32_t eflags)
{
    bool wide = v->tr.attr & 8;
    unsigned size = wide ? 4 : 2, bytes = wide ? TSS32_SAVED : TSS16_SAVED;
    uint32_t lin = (uint32_t)v->tr.base + (wide ? TSS32_EIP : TSS16_IP);
    uint8_t raw[TSS32_SAVED];

    /* The upper halves of the selectors' fields are not the CPU's. */
    if (mmu_load(v, lin, raw, bytes, MMU_READ | MMU_SYSTEM, false))
        return -1;
    set_field(raw, eip, size);
    set_field(raw + size, eflags, size);
    for (unsigned i = 0; i < 8; i++)
        set_field(raw + (2 + i) * size, v->gpr[i], size);
    for (unsigned i = 0; i < (wide ? 6u : 4u); i++)
        set_field(raw + (10 + i) * size, v->seg[i].sel, 2);
    return mmu_store(v, lin, raw, bytes, MMU_WRITE | MMU_SYSTEM, false);
}

static int load_ldtr(struct vcpu *v, uint16_t sel, uint32_t ext)
{
    uint64_t d, lin;

    v->ldtr = (struct segment){.sel = sel};
    if (sel_null(sel))
        return 0;
    if (sel & 4)
        return fail(v, EXC_TS, sel, ext);
    if (cpu_read_descriptor_as(v, EXC_TS, sel, ext, &d, &lin))
        return -1;
    if ((d & DESC_S) || desc_type(d) != SYS_LDT || !(d & DESC_P))
        return fail(v, EXC_TS, sel, ext);
    v->ldtr = cpu_segment_of(sel, d);
    return 0;
}

/* The rules of SDM vol. 3, table 7-1 for one segment register. */
static int load_segment(struct vcpu *v, enum seg seg, uint16_t sel, uint32_t ext)
{
    bool is_cs = seg == SEG_CS, is_ss = seg == SEG_SS;
    uint64_t d, lin;

    if (sel_null(sel))
        return is_cs || is_ss ? fail(v, EXC_TS, 0, ext) : 0;
    if (cpu_read_descriptor_as(v, EXC_TS, sel, ext, &d, &lin))
        return -1;
    unsigned dpl = desc_dpl(d), rpl = sel & 3;
    bool code = desc_is_code(d), conforming = code && (d & DESC_CONF), ok;
    if (is_cs)
        ok = code && (conforming ? dpl <= rpl : dpl == rpl);
    else if (is_ss)
        ok = (d & DESC_S) && !code && (d & DESC_WRITE) && dpl == v->cpl && rpl == v->cpl;
    else
        ok = (d & DESC_S) && (!code || (d & DESC_WRITE)) &&
             (conforming || (dpl >= v->cpl && dpl >= rpl));
    if (!ok)
        return fail(v, EXC_TS, sel, ext);
    if (!(d & DESC_P))
        return fail(v, is_ss ? EXC_SS : EXC_NP, sel, ext);
    if (cpu_mark_accessed(v, lin, &d))
        return -1;
    v->seg[seg] = cpu_segment_of(sel, d);
    return 0;
}

/* Everything that may fail in the new task. */
static int enter_task(struct vcpu *v, const struct tss_image *t, const struct task_switch *q)
{
    static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    if (load_ldtr(v, t->ldt, q->ext))
        return -1;
    if (v->rflags & FL_VM) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            cpu_load_real_segment(v, (enum seg)i, t->sreg[i]);
    } else {
        if (load_segment(v, SEG_CS, t->sreg[SEG_CS], q->ext) ||
            load_segment(v, SEG_SS, t->sreg[SEG_SS], q->ext))
            return -1;
        for (unsigned i = 0; i < sizeof(data); i++)
            if (load_segment(v, data[i], t->sreg[data[i]], q->ext))
                return -1;
    }
    if (v->rip > v->seg[SEG_CS].limit)
        return fail(v, EXC_GP, 0, q->ext);
    if (q->has_error) {
        struct cpu_stack s = cpu_stack_current(v);
        uint64_t error = q->error;
        s.error = q->ext;
        if (cpu_stack_push(v, &s, &error, 1, t->wide ? 4 : 2))
            return -1;
        v->gpr[RSP] = s.sp;
    }
    return 0;
}

/* The TSS descriptor that a switch goes to: SDM vol. 3, 7.3, steps 2 to 5. */
static int check_tss(struct vcpu *v, const struct task_switch *q, struct segment *out)
{
    uint8_t vector = q->cause == TASK_IRET ? EXC_TS : EXC_GP;
    uint64_t d, lin;

    if ((q->sel & 4) || sel_null(q->sel))
        return fail(v, vector, q->sel, q->ext);
    if (cpu_read_descriptor_as(v, vector, q->sel, q->ext, &d, &lin))
        return -1;
    unsigned type = desc_type(d);
    if (q->direct && (desc_dpl(d) < v->cpl || desc_dpl(d) < (q->sel & 3u)))
        return fail(v, EXC_GP, q->sel, q->ext);
    bool busy = q->cause == TASK_IRET;
    if ((d & DESC_S) || (type & ~8u) != (busy ? SYS_TSS16_BUSY : SYS_TSS16_AVAIL))
        return fail(v, vector, q->sel, q->ext);
    if (!(d & DESC_P))
        return fail(v, EXC_NP, q->sel, q->ext);
    *out = cpu_segment_of(q->sel, d);
    if (out->limit < (type & 8 ? TSS32_SIZE : TSS16_SIZE) - 1u)
        return fail(v, EXC_TS, q->sel, q->ext);
    return 0;
}

static int check_old_task(struct vcpu *v)
{
    bool wide = v->tr.attr & 8;

    if (!(v->tr.attr & SEGA_P) || v->tr.limit < (wide ? TSS32_SIZE : TSS16_SIZE) - 1u)
        return fail(v, EXC_TS, v->tr.sel, 0);
    if (check_writable(v, (uint32_t)v->tr.base + (wide ? TSS32_EIP : TSS16_IP),
                       wide ? TSS32_SAVED : TSS16_SAVED))
        return -1;
    return check_writable(v, gdt_type_byte(v, v->tr.sel), 1);
}

enum cpu_result cpu_task_switch(struct vcpu *v, const struct task_switch *q)
{
    bool nests = q->cause == TASK_CALL || q->cause == TASK_EVENT;
    struct tss_image t;
    struct segment tr;

    if (check_tss(v, q, &tr))
        return CPU_EXCEPTION;
    bool wide = tr.attr & 8;
    uint32_t base = tr.base;
    uint64_t pdpte[4];
    if (check_old_task(v) || read_tss(v, base, wide, &t) ||
        check_writable(v, gdt_type_byte(v, q->sel), 1) || (nests && check_writable(v, base, 2)))
        return CPU_EXCEPTION;
    bool load_cr3 = wide && (v->cr0 & CR0_PG);
    if (load_cr3 && (v->cr4 & CR4_PAE) && mmu_read_pdptes(v, t.cr3, pdpte)) {
        fail(v, EXC_TS, q->sel, q->ext);
        return CPU_EXCEPTION;
    }

    uint32_t flags = q->rflags;
    if (q->cause == TASK_IRET)
        flags &= ~(uint32_t)FL_NT;
    uint16_t old_sel = v->tr.sel;
    if (save_task(v, q->next_rip, flags) || read_tss(v, base, wide, &t) ||
        (nests && mmu_store(v, base, &old_sel, 2, MMU_WRITE | MMU_SYSTEM, false)))
        return CPU_EXCEPTION; /* only if another CPU changes the page tables at this moment */
    if (!nests && cpu_update_byte(v, gdt_type_byte(v, old_sel), (uint8_t)~2u, 0) < 0)
        return CPU_EXCEPTION;
    if (q->cause != TASK_IRET && cpu_update_byte(v, gdt_type_byte(v, q->sel), 0xff, 2) < 0)
        return CPU_EXCEPTION;

    /* The new task begins here. */
    tr.attr |= 2;
    v->tr = tr;
    v->cr0 |= CR0_TS;
    v->dr[7] &= ~0x155ull; /* the local breakpoints are the old task's */
    if (load_cr3) {
        v->cr3 = t.cr3;
        if (v->cr4 & CR4_PAE)
            for (unsigned i = 0; i < 4; i++)
                v->pdpte[i] = pdpte[i];
        mmu_flush_nonglobal(v);
    }
    uint64_t fl = (t.eflags & TASK_FLAGS) | FL_FIXED1;
    if (nests)
        fl |= FL_NT;
    cpu_set_rflags(v, cpu_debug_active(v) ? fl : fl & ~(uint64_t)FL_RF);
    v->rip = t.eip;
    for (unsigned i = 0; i < 8; i++)
        v->gpr[i] = t.gpr[i];
    for (unsigned i = 0; i < SEG_COUNT; i++)
        v->seg[i] = (struct segment){.sel = t.sreg[i]};
    v->cpl = fl & FL_VM ? 3 : t.sreg[SEG_CS] & 3;
    v->interrupt_shadow = 0;

    int r = enter_task(v, &t, q);
    cpu_mode_changed(v);
    if (r)
        return CPU_EXCEPTION;
    if (cpu_virtual_interrupt_due(v))
        return cpu_raise_code(v, EXC_GP, 0);
    if (t.trap) { /* SDM vol. 3, 17.3.1.5: before the first instruction of the new task */
        v->exc = (struct exception){.vector = EXC_DB, .dr6 = DR6_BT};
        return CPU_EXCEPTION;
    }
    return CPU_JUMP;
}
