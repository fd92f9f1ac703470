/*
 * Control transfers through a selector: far JMP, CALL and RET, call gates, IRET, SYSCALL and
 * SYSENTER with their returns, in every mode.  Task switches are in task.c.
 *
 * As in segment.c: check everything, then touch the guest's memory, then commit.
 */
#include "cpu/cpuid.h"
#include "cpu/exception.h"
#include "cpu/segment.h"
#include "cpu/stack.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

/* Which words of a frame (RIP, CS, RFLAGS, RSP, SS, or a part of that) are selectors. */
enum { SEL_2ND = 1 << 1, SEL_5TH = 1 << 4, SEL_ALL_BUT_1ST = ~1u };

static enum cpu_result gp(struct vcpu *v, uint32_t error)
{
    return cpu_raise_code(v, EXC_GP, error);
}

static uint16_t err_sel(uint16_t sel)
{
    return sel & ~3;
}

static bool is_amd(const struct vcpu *v)
{
    return v->model->vendor == CPU_VENDOR_AMD;
}

/* Is this the image of a 64-bit code segment? */
static bool code64(const struct vcpu *v, const struct segment *cs)
{
    return vcpu_long(v) && (cs->attr & SEGA_L);
}

enum cpu_result cpu_check_target(struct vcpu *v, const struct segment *cs, uint64_t *rip,
                                 uint32_t ext)
{
    if (code64(v, cs))
        return mmu_canonical(*rip) ? CPU_NEXT : gp(v, ext);
    *rip = (uint32_t)*rip;
    return *rip <= cs->limit ? CPU_NEXT : gp(v, ext);
}

/* L and D together are not a mode (SDM vol. 3, 5.2.1).  Without IA-32e mode L is not looked at. */
static enum cpu_result check_code_mode(struct vcpu *v, uint16_t sel, uint64_t d)
{
    if (vcpu_long(v) && (d & (DESC_L | DESC_DB)) == (DESC_L | DESC_DB))
        return gp(v, err_sel(sel));
    return CPU_NEXT;
}

static void set_sp(struct vcpu *v, uint64_t sp, unsigned width)
{
    v->gpr[RSP] = cpu_stack_merge(v->gpr[RSP], sp, width);
}

/* -- Real-address and virtual-8086 mode. ---------------------------------------------------------
 */

static enum cpu_result real_transfer(struct vcpu *v, uint16_t sel, uint64_t ip)
{
    cpu_load_real_segment(v, SEG_CS, sel);
    v->rip = (uint32_t)ip;
    cpu_mode_changed(v);
    return CPU_JUMP;
}

/* The limit of CS stays, so it can be checked before. */
static enum cpu_result check_real_ip(struct vcpu *v, uint64_t ip)
{
    return ip <= v->seg[SEG_CS].limit ? CPU_NEXT : gp(v, 0);
}

static enum cpu_result real_call(struct vcpu *v, uint16_t sel, uint64_t offset, unsigned size,
                                 uint64_t next_rip)
{
    const uint64_t frame[] = {next_rip, v->seg[SEG_CS].sel};
    struct cpu_stack s = cpu_stack_current(v);

    if (check_real_ip(v, offset) != CPU_NEXT || cpu_stack_push(v, &s, frame, 2, size))
        return CPU_EXCEPTION;
    v->gpr[RSP] = s.sp;
    return real_transfer(v, sel, offset);
}

static enum cpu_result real_return(struct vcpu *v, unsigned size, uint16_t release)
{
    struct cpu_stack s = cpu_stack_current(v);
    uint64_t f[2];

    if (cpu_stack_peek(v, &s, 0, f, 2, size, SEL_2ND) || check_real_ip(v, f[0]) != CPU_NEXT)
        return CPU_EXCEPTION;
    set_sp(v, s.sp + 2 * size + release, s.width);
    return real_transfer(v, f[1], f[0]);
}

/* RF only matters with an instruction breakpoint; without one it would be gone after the next
 * instruction, so it is dropped at once instead of after every instruction. */
static uint64_t without_idle_rf(const struct vcpu *v, uint64_t flags)
{
    return cpu_debug_active(v) ? flags : flags & ~(uint64_t)FL_RF;
}

/* SDM vol. 2, IRET (real-address mode and RETURN-FROM-VIRTUAL-8086-MODE); vol. 3, 20.3 for VME. */
static enum cpu_result real_iret(struct vcpu *v, unsigned size)
{
    uint64_t mask = FL_ARITH | FL_TF | FL_IF | FL_DF | FL_NT;
    struct cpu_stack s = cpu_stack_current(v);
    bool virtual = false;
    uint64_t f[3];

    if (size > 2)
        mask |= FL_RF | FL_AC | FL_ID;
    if (!vcpu_v86(v)) {
        mask |= FL_IOPL;
    } else if ((v->rflags & FL_IOPL) != FL_IOPL) {
        if (!(v->cr4 & CR4_VME) || size > 2)
            return gp(v, 0);
        virtual = true;
        mask &= ~(uint64_t)FL_IF;
    }
    v->nmi_blocked = false;
    if (cpu_stack_peek(v, &s, 0, f, 3, size, SEL_2ND) || check_real_ip(v, f[0]) != CPU_NEXT)
        return CPU_EXCEPTION;
    uint64_t fl = (v->rflags & ~mask) | (f[2] & mask) | FL_FIXED1;
    if (virtual) {
        if ((f[2] & FL_TF) || ((f[2] & FL_IF) && (v->rflags & FL_VIP)))
            return gp(v, 0);
        fl = (fl & ~(uint64_t)FL_VIF) | (f[2] & FL_IF ? FL_VIF : 0);
    }
    set_sp(v, s.sp + 3 * size, s.width);
    cpu_set_rflags(v, without_idle_rf(v, fl));
    return real_transfer(v, f[1], f[0]);
}

/* -- Far JMP and CALL. ---------------------------------------------------------------------------
 */

/* Target of a far JMP or CALL (not through a gate): privilege, presence, mode. */
static enum cpu_result check_code(struct vcpu *v, uint16_t sel, uint64_t d)
{
    if (d & DESC_CONF) {
        if (desc_dpl(d) > v->cpl)
            return gp(v, err_sel(sel));
    } else if (desc_dpl(d) != v->cpl || (sel & 3u) > v->cpl) {
        return gp(v, err_sel(sel));
    }
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    return check_code_mode(v, sel, d);
}

/* The stack of an inner privilege level for a call gate. */
static int inner_stack(struct vcpu *v, unsigned cpl, struct cpu_stack *s)
{
    if (!vcpu_long(v))
        return cpu_stack_from_tss(v, cpl, 0, s);
    *s = (struct cpu_stack){.seg = {.sel = cpl}, .width = 8, .access = MMU_SYSTEM};
    if (cpu_tss_read64(v, 4 + 8 * cpl, 0, &s->sp))
        return -1;
    if (!mmu_canonical(s->sp)) {
        cpu_raise_code(v, EXC_SS, 0);
        return -1;
    }
    return 0;
}

/* A call gate: SDM vol. 3, 5.8.3 to 5.8.5. */
static enum cpu_result through_gate(struct vcpu *v, uint16_t gate_sel, uint64_t gate, uint64_t lin,
                                    bool call, uint64_t next_rip)
{
    bool lma = vcpu_long(v);
    unsigned size = lma ? 8 : desc_type(gate) == SYS_CALL_GATE ? 4 : 2;
    uint64_t upper = 0, d, code_lin;

    if (v->cpl > desc_dpl(gate) || (gate_sel & 3u) > desc_dpl(gate))
        return gp(v, err_sel(gate_sel));
    if (!(gate & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(gate_sel));
    if (lma && cpu_read_descriptor_upper(v, gate_sel, lin, &upper))
        return CPU_EXCEPTION;
    uint16_t sel = gate >> 16;
    uint64_t target = gate & 0xffff;
    if (size > 2)
        target |= (gate >> 32 & 0xffff0000) | upper << 32;
    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, &d, &code_lin))
        return CPU_EXCEPTION;
    if (!desc_is_code(d) || desc_dpl(d) > v->cpl || (lma && (d & (DESC_L | DESC_DB)) != DESC_L))
        return gp(v, err_sel(sel));
    if (!call && !(d & DESC_CONF) && desc_dpl(d) != v->cpl)
        return gp(v, err_sel(sel));
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));

    unsigned cpl = v->cpl;
    struct cpu_stack old = cpu_stack_current(v), s = old;
    struct segment cs = cpu_segment_of(sel, d);
    uint64_t frame[2 + 31 + 2] = {next_rip, v->seg[SEG_CS].sel};
    unsigned count = 0;
    if (call && !(d & DESC_CONF) && desc_dpl(d) < v->cpl) {
        unsigned params = lma ? 0 : gate >> 32 & 31;
        cpl = desc_dpl(d);
        if (inner_stack(v, cpl, &s) ||
            (params && cpu_stack_peek(v, &old, 0, frame + 2, params, size, 0)))
            return CPU_EXCEPTION;
        frame[2 + params] = v->gpr[RSP];
        frame[3 + params] = v->seg[SEG_SS].sel;
        count = 4 + params;
    } else if (call) {
        count = 2;
        if (lma) /* the target is 64-bit code, which pushes without a segment */
            s.width = 8;
    }
    if (cpu_check_target(v, &cs, &target, 0) != CPU_NEXT ||
        (count && cpu_stack_push(v, &s, frame, count, size)) ||
        cpu_mark_accessed(v, code_lin, &d) || (s.desc && cpu_mark_accessed(v, s.lin, &s.desc)))
        return CPU_EXCEPTION;
    if (cpl != v->cpl)
        v->seg[SEG_SS] = s.desc ? cpu_segment_of(s.seg.sel, s.desc) : s.seg;
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | cpl, d);
    v->cpl = cpl;
    v->gpr[RSP] = s.sp;
    v->rip = target;
    cpu_mode_changed(v);
    return CPU_JUMP;
}

static enum cpu_result to_task(struct vcpu *v, uint16_t sel, bool direct, bool call,
                               uint64_t next_rip)
{
    return cpu_task_switch(v, &(struct task_switch){
                                  .cause = call ? TASK_CALL : TASK_JMP,
                                  .sel = sel,
                                  .direct = direct,
                                  .next_rip = next_rip,
                                  .rflags = v->rflags,
                              });
}

/* A far JMP or CALL to a system descriptor. */
static enum cpu_result through_system(struct vcpu *v, uint16_t sel, uint64_t d, uint64_t lin,
                                      bool call, uint64_t next_rip)
{
    unsigned type = desc_type(d);

    if (type == SYS_CALL_GATE || (type == SYS_CALL_GATE16 && !vcpu_long(v)))
        return through_gate(v, sel, d, lin, call, next_rip);
    if (vcpu_long(v))
        return gp(v, err_sel(sel));
    switch (type) {
    case SYS_TASK_GATE:
        if (v->cpl > desc_dpl(d) || (sel & 3u) > desc_dpl(d))
            return gp(v, err_sel(sel));
        if (!(d & DESC_P))
            return cpu_raise_code(v, EXC_NP, err_sel(sel));
        return to_task(v, d >> 16, false, call, next_rip);
    case SYS_TSS_AVAIL:
    case SYS_TSS_BUSY:
    case SYS_TSS16_AVAIL:
    case SYS_TSS16_BUSY:
        return to_task(v, sel, true, call, next_rip);
    default:
        return gp(v, err_sel(sel));
    }
}

enum cpu_result cpu_far_jump(struct vcpu *v, uint16_t sel, uint64_t offset, uint64_t next_rip)
{
    uint64_t d, lin;

    if (vcpu_real_segments(v)) {
        enum cpu_result r = check_real_ip(v, offset);
        return r == CPU_NEXT ? real_transfer(v, sel, offset) : r;
    }
    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, &d, &lin))
        return CPU_EXCEPTION;
    if (!(d & DESC_S))
        return through_system(v, sel, d, lin, false, next_rip);
    if (!desc_is_code(d))
        return gp(v, err_sel(sel));
    struct segment cs = cpu_segment_of(sel, d);
    if (check_code(v, sel, d) != CPU_NEXT || cpu_check_target(v, &cs, &offset, 0) != CPU_NEXT ||
        cpu_mark_accessed(v, lin, &d))
        return CPU_EXCEPTION;
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | v->cpl, d);
    v->rip = offset;
    cpu_mode_changed(v);
    return CPU_JUMP;
}

enum cpu_result cpu_far_call(struct vcpu *v, uint16_t sel, uint64_t offset, unsigned size,
                             uint64_t next_rip)
{
    uint64_t d, lin;

    if (vcpu_real_segments(v))
        return real_call(v, sel, offset, size, next_rip);
    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, &d, &lin))
        return CPU_EXCEPTION;
    if (!(d & DESC_S))
        return through_system(v, sel, d, lin, true, next_rip);
    if (!desc_is_code(d))
        return gp(v, err_sel(sel));
    const uint64_t frame[] = {next_rip, v->seg[SEG_CS].sel};
    struct cpu_stack s = cpu_stack_current(v);
    struct segment cs = cpu_segment_of(sel, d);
    if (check_code(v, sel, d) != CPU_NEXT || cpu_check_target(v, &cs, &offset, 0) != CPU_NEXT ||
        cpu_mark_accessed(v, lin, &d) || cpu_stack_push(v, &s, frame, 2, size))
        return CPU_EXCEPTION;
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | v->cpl, d);
    v->gpr[RSP] = s.sp;
    v->rip = offset;
    cpu_mode_changed(v);
    return CPU_JUMP;
}

/* -- Far RET and IRET. ---------------------------------------------------------------------------
 */

/* A return in protected mode as it is put together from the stack. */
struct far_return {
    uint64_t rip, cs_desc, cs_lin;
    uint64_t sp, ss_desc, ss_lin; /* with `outer` or `with_ss` */
    uint16_t cs, ss;
    bool with_ss; /* SS and the stack pointer were popped too */
};

static enum cpu_result return_cs(struct vcpu *v, struct far_return *r)
{
    unsigned rpl = r->cs & 3;

    if (sel_null(r->cs))
        return gp(v, 0);
    if (cpu_read_descriptor(v, r->cs, 0, &r->cs_desc, &r->cs_lin))
        return CPU_EXCEPTION;
    if (!desc_is_code(r->cs_desc) || rpl < v->cpl)
        return gp(v, err_sel(r->cs));
    unsigned dpl = desc_dpl(r->cs_desc);
    if ((r->cs_desc & DESC_CONF) ? dpl > rpl : dpl != rpl)
        return gp(v, err_sel(r->cs));
    if (!(r->cs_desc & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(r->cs));
    return check_code_mode(v, r->cs, r->cs_desc);
}

/* A null SS may be returned to in 64-bit code outside CPL 3; r->ss_desc is 0 then. */
static enum cpu_result return_ss(struct vcpu *v, struct far_return *r)
{
    unsigned cpl = r->cs & 3;

    r->ss_desc = r->ss_lin = 0;
    if (sel_null(r->ss))
        return cpl == 3 || !vcpu_long(v) || !(r->cs_desc & DESC_L) ? gp(v, 0) : CPU_NEXT;
    if (cpu_read_descriptor(v, r->ss, 0, &r->ss_desc, &r->ss_lin))
        return CPU_EXCEPTION;
    if ((r->ss & 3u) != cpl || desc_dpl(r->ss_desc) != cpl ||
        (r->ss_desc & (DESC_S | DESC_CODE | DESC_WRITE)) != (DESC_S | DESC_WRITE))
        return gp(v, err_sel(r->ss));
    if (!(r->ss_desc & DESC_P))
        return cpu_raise_code(v, EXC_SS, err_sel(r->ss));
    return CPU_NEXT;
}

/* A return to a less privileged level must not leave it segments it could not have loaded
 * (SDM vol. 3, 5.8.6).  A null selector counts as DPL 0, so that its RPL is lost: 1, 2 and 3 become 0,
 * on Intel's and AMD's processors.  The hidden base is left alone: in 64-bit mode it belongs to the
 * MSRs. */
static void drop_inner_segments(struct vcpu *v)
{
    static const uint8_t segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    for (unsigned i = 0; i < sizeof(segs); i++) {
        struct segment *s = &v->seg[segs[i]];
        bool conforming = (s->attr & 0x0c) == 0x0c;
        if (!conforming && (s->attr >> 5 & 3) < v->cpl) {
            s->sel = 0;
            s->attr = 0;
        }
    }
}

/* The common end of IRET and far RET: everything is checked but RIP and the accessed bits. */
static enum cpu_result commit_return(struct vcpu *v, struct far_return *r)
{
    struct segment cs = cpu_segment_of(r->cs, r->cs_desc | DESC_ACCESSED);

    if (cpu_check_target(v, &cs, &r->rip, 0) != CPU_NEXT ||
        cpu_mark_accessed(v, r->cs_lin, &r->cs_desc) ||
        (r->with_ss && r->ss_desc && cpu_mark_accessed(v, r->ss_lin, &r->ss_desc)))
        return CPU_EXCEPTION;
    bool outer = (r->cs & 3) > v->cpl;
    unsigned width = vcpu_stack_size(v);
    v->seg[SEG_CS] = cs;
    v->cpl = r->cs & 3;
    v->rip = r->rip;
    if (r->with_ss) {
        v->seg[SEG_SS] =
            r->ss_desc ? cpu_segment_of(r->ss, r->ss_desc) : (struct segment){.sel = r->ss};
        width = vcpu_stack_size(v); /* a 16-bit stack leaves the rest of ESP as it was */
    }
    set_sp(v, r->sp, width);
    if (outer)
        drop_inner_segments(v);
    cpu_mode_changed(v);
    return CPU_JUMP;
}

enum cpu_result cpu_far_return(struct vcpu *v, unsigned size, uint16_t release)
{
    uint64_t f[2];

    if (vcpu_real_segments(v))
        return real_return(v, size, release);
    struct cpu_stack s = cpu_stack_current(v);
    if (cpu_stack_peek(v, &s, 0, f, 2, size, SEL_2ND))
        return CPU_EXCEPTION;
    struct far_return r = {.rip = f[0], .cs = f[1], .sp = s.sp + 2 * size + release};
    if (return_cs(v, &r) != CPU_NEXT)
        return CPU_EXCEPTION;
    if ((r.cs & 3) != v->cpl) {
        if (cpu_stack_peek(v, &s, 2 * size + release, f, 2, size, SEL_2ND))
            return CPU_EXCEPTION;
        r.with_ss = true;
        r.sp = f[0] + release;
        r.ss = f[1];
        if (return_ss(v, &r) != CPU_NEXT)
            return CPU_EXCEPTION;
    }
    return commit_return(v, &r);
}

/* IRET of CPL 0 in 32-bit code with VM set in the flags on the stack: to virtual-8086 mode. */
static enum cpu_result iret_to_v86(struct vcpu *v, const struct cpu_stack *s, const uint64_t f[3])
{
    static const uint8_t order[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint64_t g[6]; /* ESP, SS, ES, DS, FS, GS */

    if (cpu_stack_peek(v, s, 12, g, 6, 4, SEL_ALL_BUT_1ST))
        return CPU_EXCEPTION;
    if ((uint32_t)f[0] > 0xffff)
        return gp(v, 0);
    uint64_t mask =
        FL_HOST | FL_TF | FL_IF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID;
    cpu_set_rflags(v, without_idle_rf(v, (f[2] & mask) | FL_FIXED1));
    v->cpl = 3;
    cpu_load_real_segment(v, SEG_CS, f[1]);
    cpu_load_real_segment(v, SEG_SS, g[1]);
    for (unsigned i = 0; i < sizeof(order); i++)
        cpu_load_real_segment(v, order[i], g[2 + i]);
    v->gpr[RSP] = (uint32_t)g[0];
    v->rip = (uint32_t)f[0];
    cpu_mode_changed(v);
    return cpu_virtual_interrupt_due(v) ? gp(v, 0) : CPU_JUMP;
}

/* Back to the task that the current one is nested in (SDM vol. 3, 7.4). */
static enum cpu_result iret_to_task(struct vcpu *v, uint64_t next_rip)
{
    uint16_t link;

    if (!(v->tr.attr & SEGA_P) || v->tr.limit < 1)
        return cpu_raise_code(v, EXC_TS, err_sel(v->tr.sel));
    if (mmu_load(v, (uint32_t)v->tr.base, &link, 2, MMU_READ | MMU_SYSTEM, false))
        return CPU_EXCEPTION;
    return cpu_task_switch(v, &(struct task_switch){
                                  .cause = TASK_IRET,
                                  .sel = link,
                                  .next_rip = next_rip,
                                  .rflags = v->rflags,
                              });
}

enum cpu_result cpu_iret(struct vcpu *v, unsigned size, uint64_t next_rip)
{
    uint64_t f[5]; /* RIP, CS, RFLAGS, RSP, SS */

    if (vcpu_real_segments(v))
        return real_iret(v, size);
    /* NMIs are unblocked even if the IRET faults (SDM vol. 3, 6.7.1). */
    v->nmi_blocked = false;
    if (v->rflags & FL_NT)
        return vcpu_long(v) ? gp(v, 0) : iret_to_task(v, next_rip);

    /* In 64-bit mode SS:RSP are popped whether or not CPL changes (SDM vol. 3, 6.14.3). */
    bool long64 = vcpu_long64(v);
    struct cpu_stack s = cpu_stack_current(v);
    if (long64 && size == 8) { /* what every 64-bit system returns by, in one go */
        f[4] = 0;
        if (mmu_load(v, s.sp, f, 4 * 8 + 2, MMU_READ, true))
            return CPU_EXCEPTION;
        f[1] = (uint16_t)f[1];
    } else if (cpu_stack_peek(v, &s, 0, f, long64 ? 5 : 3, size, SEL_2ND | SEL_5TH)) {
        return CPU_EXCEPTION;
    }
    if (size == 4 && (f[2] & FL_VM) && !v->cpl && !vcpu_long(v))
        return iret_to_v86(v, &s, f);
    struct far_return r = {.rip = f[0], .cs = f[1], .sp = s.sp + 3 * size, .with_ss = long64};
    if (return_cs(v, &r) != CPU_NEXT)
        return CPU_EXCEPTION;
    if (!long64 && (r.cs & 3) != v->cpl) {
        if (cpu_stack_peek(v, &s, 3 * size, f + 3, 2, size, SEL_2ND))
            return CPU_EXCEPTION;
        r.with_ss = true;
    }
    if (r.with_ss) {
        r.sp = f[3];
        r.ss = f[4];
        if (return_ss(v, &r) != CPU_NEXT)
            return CPU_EXCEPTION;
    }

    unsigned old_cpl = v->cpl;
    uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (size > 2)
        mask |= FL_RF | FL_AC | FL_ID;
    if (old_cpl <= (v->rflags & FL_IOPL) >> 12)
        mask |= FL_IF;
    if (old_cpl == 0)
        mask |= FL_IOPL | (size > 2 ? FL_VIF | FL_VIP : 0);

    enum cpu_result result = commit_return(v, &r);
    if (result != CPU_JUMP)
        return result;
    cpu_set_rflags(v, without_idle_rf(v, (v->rflags & ~mask) | (f[2] & mask) | FL_FIXED1));
    return cpu_virtual_interrupt_due(v) ? gp(v, 0) : CPU_JUMP;
}

/* -- SYSCALL, SYSENTER. --------------------------------------------------------------------------
 */

static enum cpu_result enter_flat(struct vcpu *v, struct segment cs, uint16_t ss, unsigned cpl)
{
    v->seg[SEG_CS] = cs;
    v->seg[SEG_SS] = cpu_flat_data(ss, cpl);
    v->cpl = cpl;
    cpu_mode_changed(v);
    return CPU_JUMP;
}

/* Intel has SYSCALL and SYSRET in 64-bit mode only (SDM vol. 2), AMD in every mode but real. */
static bool has_syscall(const struct vcpu *v)
{
    return (v->efer & EFER_SCE) && (is_amd(v) ? !vcpu_real(v) : vcpu_long64(v));
}

enum cpu_result cpu_syscall(struct vcpu *v, uint64_t next_rip)
{
    uint16_t sel = (v->star >> 32) & ~3u;

    if (!has_syscall(v))
        return cpu_raise(v, EXC_UD);
    v->gpr[RCX] = next_rip;
    if (!vcpu_long(v)) { /* APM vol. 3, SYSCALL: legacy mode */
        v->rip = (uint32_t)v->star;
        cpu_set_rflags(v, v->rflags & ~(uint64_t)(FL_VM | FL_IF | FL_RF));
        return enter_flat(v, cpu_flat_code32(sel, 0), sel + 8, 0);
    }
    v->gpr[R11] = v->rflags & ~(uint64_t)FL_RF;
    v->rip = vcpu_long64(v) ? v->lstar : v->cstar;
    cpu_set_rflags(v, (v->rflags & ~v->sfmask & ~(uint64_t)FL_RF) | FL_FIXED1);
    return enter_flat(v, cpu_flat_code64(sel, 0), sel + 8, 0);
}

enum cpu_result cpu_sysret(struct vcpu *v, unsigned size)
{
    uint16_t sel = v->star >> 48;

    if (!has_syscall(v))
        return cpu_raise(v, EXC_UD);
    if (v->cpl)
        return gp(v, 0);
    bool to64 = vcpu_long64(v) && size == 8;
    /* Intel checks RCX here, still at CPL 0; AMD faults on the fetch at CPL 3 (APM vol. 3,
     * SYSRET), which is what the next fetch does by itself. */
    if (to64 && !is_amd(v) && !mmu_canonical(v->gpr[RCX]))
        return gp(v, 0);
    v->rip = to64 ? v->gpr[RCX] : (uint32_t)v->gpr[RCX];
    uint64_t fl = v->rflags | FL_IF;
    if (vcpu_long(v))
        fl = (v->gpr[R11] & 0x3c7fd7) | FL_FIXED1;
    cpu_set_rflags(v, without_idle_rf(v, fl));
    return enter_flat(v, to64 ? cpu_flat_code64((sel + 16) | 3, 3) : cpu_flat_code32(sel | 3, 3),
                      (sel + 8) | 3, 3);
}

enum cpu_result cpu_sysenter(struct vcpu *v)
{
    uint16_t sel = v->sysenter_cs & 0xfffc;
    bool lma = vcpu_long(v);

    if (is_amd(v) && lma)
        return cpu_raise(v, EXC_UD); /* APM vol. 3, SYSENTER: legacy mode only */
    if (!sel || vcpu_real(v))
        return gp(v, 0);
    cpu_set_rflags(v, v->rflags & ~(uint64_t)(FL_VM | FL_IF | FL_RF));
    v->gpr[RSP] = lma ? v->sysenter_esp : (uint32_t)v->sysenter_esp;
    v->rip = lma ? v->sysenter_eip : (uint32_t)v->sysenter_eip;
    return enter_flat(v, lma ? cpu_flat_code64(sel, 0) : cpu_flat_code32(sel, 0), sel + 8, 0);
}

enum cpu_result cpu_sysexit(struct vcpu *v, unsigned size)
{
    uint16_t sel = v->sysenter_cs & 0xfffc;

    if (is_amd(v) && vcpu_long(v))
        return cpu_raise(v, EXC_UD);
    if (!sel || vcpu_real(v) || v->cpl)
        return gp(v, 0);
    if (size != 8) {
        v->gpr[RSP] = (uint32_t)v->gpr[RCX];
        v->rip = (uint32_t)v->gpr[RDX];
        return enter_flat(v, cpu_flat_code32((sel + 16) | 3, 3), (sel + 24) | 3, 3);
    }
    if (!mmu_canonical(v->gpr[RCX]) || !mmu_canonical(v->gpr[RDX]))
        return gp(v, 0);
    v->gpr[RSP] = v->gpr[RCX];
    v->rip = v->gpr[RDX];
    return enter_flat(v, cpu_flat_code64((sel + 32) | 3, 3), (sel + 40) | 3, 3);
}
