/*
 * Segment loads and far control transfers in long mode.
 *
 * Order matters in this file: a rule first checks everything that can fault, then touches the
 * guest's memory, then commits registers, so that a fault leaves the instruction restartable.
 * Descriptors are read once into a local copy and judged there: another vCPU may rewrite the table
 * at any time.
 */
#include "cpu/segment.h"

#include "cpu/cpuid.h"
#include "cpu/exception.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

#define ATTR_CODE64 (0x0b | SEGA_S | SEGA_P | SEGA_L | SEGA_G)
#define ATTR_DATA   (0x03 | SEGA_S | SEGA_P | SEGA_DB | SEGA_G)

static enum cpu_result gp(struct vcpu *v, uint32_t error)
{
    return cpu_raise_code(v, EXC_GP, error);
}

static uint16_t err_sel(uint16_t sel)
{
    return sel & ~3;
}

int cpu_read_descriptor(struct vcpu *v, uint16_t sel, uint32_t ext, uint64_t *desc, uint64_t *lin)
{
    uint32_t index = sel & ~7u;
    uint64_t base = v->gdtr.base;
    uint32_t limit = v->gdtr.limit;

    if (sel & 4) {
        base = v->ldtr.base;
        limit = v->ldtr.limit;
        if (!(v->ldtr.attr & SEGA_P)) {
            cpu_raise_code(v, EXC_GP, err_sel(sel) | ext);
            return -1;
        }
    }
    if (index + 7 > limit) {
        cpu_raise_code(v, EXC_GP, err_sel(sel) | ext);
        return -1;
    }
    *lin = base + index;
    return mmu_load(v, *lin, desc, 8, MMU_READ | MMU_SYSTEM, false);
}

/* The second half of a 16-byte system descriptor.  Its type field must be zero (SDM vol. 3,
 * 3.5.2), which stops a guest from aiming a selector at the middle of one. */
static int read_upper(struct vcpu *v, uint16_t sel, uint64_t lin, uint64_t *upper)
{
    uint32_t limit = sel & 4 ? v->ldtr.limit : v->gdtr.limit;

    if ((sel & ~7u) + 15 > limit) {
        cpu_raise_code(v, EXC_GP, err_sel(sel));
        return -1;
    }
    if (mmu_load(v, lin + 8, upper, 8, MMU_READ | MMU_SYSTEM, false))
        return -1;
    if (*upper >> 40 & 0x1f) {
        cpu_raise_code(v, EXC_GP, err_sel(sel));
        return -1;
    }
    return 0;
}

/* Atomically ORs bits into one byte of a descriptor table and returns its old value, or -1 with a
 * fault.  The CPU does these updates with a locked read-modify-write (SDM vol. 3, 8.1.2.1). */
static int or_byte(struct vcpu *v, uint64_t lin, uint8_t bits)
{
    void *host;
    uint64_t gpa;
    uint8_t old;

    switch (mmu_translate(v, lin, MMU_WRITE | MMU_RMW | MMU_SYSTEM, false, &host, &gpa)) {
    case MMU_RAM_CODE:
        ram_before_write(v->ram, gpa, 1);
        /* fall through */
    case MMU_RAM:
        return __atomic_fetch_or((uint8_t *)host, bits, __ATOMIC_SEQ_CST);
    case MMU_MMIO: {
        mmu_mmio_read(v, gpa, &old, 1);
        uint8_t new = old | bits;
        mmu_mmio_write(v, gpa, &new, 1);
        return old;
    }
    default:
        return -1;
    }
}

int cpu_mark_accessed(struct vcpu *v, uint64_t lin, uint64_t *desc)
{
    if (*desc & DESC_ACCESSED)
        return 0;
    if (or_byte(v, lin + 5, 1) < 0)
        return -1;
    *desc |= DESC_ACCESSED;
    return 0;
}

struct segment cpu_segment_of(uint16_t sel, uint64_t d)
{
    struct segment s = {
        .sel = sel,
        .attr = d >> 40 & 0xf0ff,
        .limit = (d & 0xffff) | (d >> 32 & 0xf0000),
        .base = (d >> 16 & 0xffffff) | (d >> 56) << 24,
    };
    if (s.attr & SEGA_G)
        s.limit = s.limit << 12 | 0xfff;
    return s;
}

struct segment cpu_flat_code64(uint16_t sel, unsigned dpl)
{
    return (struct segment){.sel = sel, .attr = ATTR_CODE64 | dpl << 5, .limit = 0xffffffff};
}

struct segment cpu_flat_data(uint16_t sel, unsigned dpl)
{
    return (struct segment){.sel = sel, .attr = ATTR_DATA | dpl << 5, .limit = 0xffffffff};
}

static enum cpu_result load_ss(struct vcpu *v, uint16_t sel)
{
    uint64_t d, lin;

    if (sel_null(sel)) {
        /* SDM vol. 2, MOV: allowed in 64-bit mode outside CPL 3 with RPL = CPL. */
        if (!vcpu_long64(v) || v->cpl == 3 || (sel & 3) != v->cpl)
            return gp(v, 0);
        v->seg[SEG_SS] = (struct segment){.sel = sel};
        return CPU_NEXT;
    }
    if (cpu_read_descriptor(v, sel, 0, &d, &lin))
        return CPU_EXCEPTION;
    if ((sel & 3) != v->cpl || (d & (DESC_S | DESC_CODE | DESC_WRITE)) != (DESC_S | DESC_WRITE) ||
        desc_dpl(d) != v->cpl)
        return gp(v, err_sel(sel));
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_SS, err_sel(sel));
    if (cpu_mark_accessed(v, lin, &d))
        return CPU_EXCEPTION;
    v->seg[SEG_SS] = cpu_segment_of(sel, d);
    return CPU_NEXT;
}

enum cpu_result cpu_load_segment(struct vcpu *v, enum seg seg, uint16_t sel)
{
    uint64_t d, lin;

    if (!(v->efer & EFER_LMA))
        return cpu_unsupported(v, "a segment load in legacy mode");
    if (seg == SEG_SS)
        return load_ss(v, sel);
    if (sel_null(sel)) {
        /* The base becomes 0 (Intel always; AMD since Zen 2, CPUID 8000_0021H EAX bit 6). */
        v->seg[seg] = (struct segment){.sel = sel};
        return CPU_NEXT;
    }
    if (cpu_read_descriptor(v, sel, 0, &d, &lin))
        return CPU_EXCEPTION;
    bool code = d & DESC_CODE;
    if (!(d & DESC_S) || (code && !(d & DESC_WRITE)))
        return gp(v, err_sel(sel));
    if (!(code && (d & DESC_CONF)) && (v->cpl > desc_dpl(d) || (sel & 3u) > desc_dpl(d)))
        return gp(v, err_sel(sel));
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    if (cpu_mark_accessed(v, lin, &d))
        return CPU_EXCEPTION;
    v->seg[seg] = cpu_segment_of(sel, d);
    return CPU_NEXT;
}

/* Common part of LLDT and LTR: the 16-byte descriptor of a GDT selector. */
static enum cpu_result read_system(struct vcpu *v, uint16_t sel, unsigned type, struct segment *out,
                                   uint64_t *lin)
{
    uint64_t d, upper = 0;

    if (sel & 4)
        return gp(v, err_sel(sel));
    if (cpu_read_descriptor(v, sel, 0, &d, lin))
        return CPU_EXCEPTION;
    if ((d & DESC_S) || desc_type(d) != type)
        return gp(v, err_sel(sel));
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    if ((v->efer & EFER_LMA) && read_upper(v, sel, *lin, &upper))
        return CPU_EXCEPTION;
    *out = cpu_segment_of(sel, d);
    out->base |= upper << 32;
    if (!mmu_canonical(out->base))
        return gp(v, err_sel(sel));
    return CPU_NEXT;
}

enum cpu_result cpu_lldt(struct vcpu *v, uint16_t sel)
{
    struct segment s;
    uint64_t lin;

    if (v->cpl)
        return gp(v, 0);
    if (sel_null(sel)) {
        v->ldtr = (struct segment){.sel = sel};
        return CPU_NEXT;
    }
    enum cpu_result r = read_system(v, sel, SYS_LDT, &s, &lin);
    if (r == CPU_NEXT)
        v->ldtr = s;
    return r;
}

enum cpu_result cpu_ltr(struct vcpu *v, uint16_t sel)
{
    struct segment s;
    uint64_t lin;

    if (v->cpl)
        return gp(v, 0);
    if (sel_null(sel))
        return gp(v, 0);
    enum cpu_result r = read_system(v, sel, SYS_TSS_AVAIL, &s, &lin);
    if (r != CPU_NEXT)
        return r;
    int old = or_byte(v, lin + 5, 2);
    if (old < 0)
        return CPU_EXCEPTION;
    if (old & 2) /* another CPU was faster */
        return gp(v, err_sel(sel));
    s.attr |= 2;
    v->tr = s;
    return CPU_NEXT;
}

/* Descriptor for LAR, LSL, VERR, VERW: 1 if readable at this privilege, 0 if not, -1 on #PF. */
static int probe(struct vcpu *v, uint16_t sel, uint64_t *d)
{
    uint64_t lin;
    uint32_t limit = sel & 4 ? v->ldtr.limit : v->gdtr.limit;

    if (sel_null(sel) || (sel & ~7u) + 7 > limit || ((sel & 4) && !(v->ldtr.attr & SEGA_P)))
        return 0;
    if (cpu_read_descriptor(v, sel, 0, d, &lin))
        return -1;
    if (desc_is_code(*d) && (*d & DESC_CONF))
        return 1;
    return v->cpl <= desc_dpl(*d) && (sel & 3u) <= desc_dpl(*d);
}

int cpu_lar(struct vcpu *v, uint16_t sel, uint32_t *out)
{
    uint64_t d;
    int r = probe(v, sel, &d);

    if (r <= 0)
        return r;
    if (!(d & DESC_S)) {
        unsigned t = desc_type(d);
        if (t != SYS_LDT && t != SYS_TSS_AVAIL && t != SYS_TSS_BUSY && t != SYS_CALL_GATE)
            return 0;
    }
    *out = d >> 32 & 0x00ffff00;
    return 1;
}

int cpu_lsl(struct vcpu *v, uint16_t sel, uint32_t *out)
{
    uint64_t d;
    int r = probe(v, sel, &d);

    if (r <= 0)
        return r;
    if (!(d & DESC_S)) {
        unsigned t = desc_type(d);
        if (t != SYS_LDT && t != SYS_TSS_AVAIL && t != SYS_TSS_BUSY)
            return 0;
    }
    *out = cpu_segment_of(sel, d).limit;
    return 1;
}

int cpu_verify(struct vcpu *v, uint16_t sel, bool write)
{
    uint64_t d;
    int r = probe(v, sel, &d);

    if (r <= 0)
        return r;
    if (!(d & DESC_S))
        return 0;
    if (d & DESC_CODE)
        return !write && (d & DESC_WRITE);
    return !write || (d & DESC_WRITE);
}

int cpu_tss_read64(struct vcpu *v, uint32_t offset, uint32_t ext, uint64_t *out)
{
    if (!(v->tr.attr & SEGA_P) || offset + 7 > v->tr.limit) {
        cpu_raise_code(v, EXC_TS, err_sel(v->tr.sel) | ext);
        return -1;
    }
    return mmu_load(v, v->tr.base + offset, out, 8, MMU_READ | MMU_SYSTEM, false);
}

/* Judges a code descriptor's mode bits: CPU_NEXT for a 64-bit segment. */
static enum cpu_result check_code_mode(struct vcpu *v, uint16_t sel, uint64_t d)
{
    if ((d & (DESC_L | DESC_DB)) == (DESC_L | DESC_DB))
        return gp(v, err_sel(sel));
    if (!(d & DESC_L))
        return cpu_unsupported(v, "a 32-bit or 16-bit code segment (compatibility mode)");
    return CPU_NEXT;
}

/* Target of a far JMP or CALL (not through a gate): privilege, presence, mode. */
static enum cpu_result check_target(struct vcpu *v, uint16_t sel, uint64_t d, bool check_rpl)
{
    if (d & DESC_CONF) {
        if (desc_dpl(d) > v->cpl)
            return gp(v, err_sel(sel));
    } else if (desc_dpl(d) != v->cpl || (check_rpl && (sel & 3u) > v->cpl)) {
        return gp(v, err_sel(sel));
    }
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    return check_code_mode(v, sel, d);
}

/* Stores `count` values as the pushes of `size` bytes each that leave the stack pointer at the
 * address returned in *rsp; value[0] ends at the lowest address. */
static int push_words(struct vcpu *v, uint64_t *rsp, const uint64_t *value, unsigned count,
                      unsigned size, unsigned access)
{
    uint8_t buf[6 * 8];

    for (unsigned i = 0; i < count; i++)
        for (unsigned b = 0; b < size; b++)
            buf[i * size + b] = value[i] >> (8 * b);
    *rsp -= count * size;
    return mmu_store(v, *rsp, buf, count * size, MMU_WRITE | access, true);
}

static int pop_words(struct vcpu *v, uint64_t rsp, uint64_t *value, unsigned count, unsigned size)
{
    uint8_t buf[5 * 8];

    if (mmu_load(v, rsp, buf, count * size, MMU_READ, true))
        return -1;
    for (unsigned i = 0; i < count; i++) {
        value[i] = 0;
        for (unsigned b = 0; b < size; b++)
            value[i] |= (uint64_t)buf[i * size + b] << (8 * b);
    }
    return 0;
}

/* A 64-bit call gate: SDM vol. 3, 5.8.3.1 and 5.8.5.1. */
static enum cpu_result through_gate(struct vcpu *v, uint16_t gate_sel, uint64_t gate, uint64_t lin,
                                    bool call, uint64_t next_rip)
{
    uint64_t upper, d, code_lin;
    enum cpu_result r;

    if (v->cpl > desc_dpl(gate) || (gate_sel & 3u) > desc_dpl(gate))
        return gp(v, err_sel(gate_sel));
    if (!(gate & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(gate_sel));
    if (read_upper(v, gate_sel, lin, &upper))
        return CPU_EXCEPTION;
    uint16_t sel = gate >> 16;
    uint64_t target = (gate & 0xffff) | (gate >> 32 & 0xffff0000) | upper << 32;
    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, &d, &code_lin))
        return CPU_EXCEPTION;
    if (!desc_is_code(d) || desc_dpl(d) > v->cpl || (d & (DESC_L | DESC_DB)) != DESC_L)
        return gp(v, err_sel(sel));
    if (!call && !(d & DESC_CONF) && desc_dpl(d) != v->cpl)
        return gp(v, err_sel(sel));
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    if (!mmu_canonical(target))
        return gp(v, 0);

    unsigned cpl = v->cpl;
    uint64_t rsp = v->gpr[RSP];
    if (call && !(d & DESC_CONF) && desc_dpl(d) < v->cpl) {
        cpl = desc_dpl(d);
        if (cpu_tss_read64(v, 4 + 8 * cpl, 0, &rsp))
            return CPU_EXCEPTION;
        if (!mmu_canonical(rsp))
            return cpu_raise_code(v, EXC_SS, 0);
        const uint64_t frame[] = {next_rip, v->seg[SEG_CS].sel, v->gpr[RSP], v->seg[SEG_SS].sel};
        if (push_words(v, &rsp, frame, 4, 8, MMU_SYSTEM))
            return CPU_EXCEPTION;
    } else if (call) {
        const uint64_t frame[] = {next_rip, v->seg[SEG_CS].sel};
        if (push_words(v, &rsp, frame, 2, 8, 0))
            return CPU_EXCEPTION;
    }
    if (cpu_mark_accessed(v, code_lin, &d))
        return CPU_EXCEPTION;
    r = CPU_JUMP;
    if (cpl != v->cpl)
        v->seg[SEG_SS] = (struct segment){.sel = cpl};
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | cpl, d);
    v->cpl = cpl;
    v->gpr[RSP] = rsp;
    v->rip = target;
    return r;
}

enum cpu_result cpu_far_jump(struct vcpu *v, uint16_t sel, uint64_t offset)
{
    uint64_t d, lin;

    if (!(v->efer & EFER_LMA))
        return cpu_unsupported(v, "a far jump in legacy mode");
    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, &d, &lin))
        return CPU_EXCEPTION;
    if (!(d & DESC_S) && desc_type(d) == SYS_CALL_GATE)
        return through_gate(v, sel, d, lin, false, 0);
    if (!desc_is_code(d))
        return gp(v, err_sel(sel));
    enum cpu_result r = check_target(v, sel, d, true);
    if (r != CPU_NEXT)
        return r;
    if (!mmu_canonical(offset))
        return gp(v, 0);
    if (cpu_mark_accessed(v, lin, &d))
        return CPU_EXCEPTION;
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | v->cpl, d);
    v->rip = offset;
    return CPU_JUMP;
}

enum cpu_result cpu_far_call(struct vcpu *v, uint16_t sel, uint64_t offset, unsigned size,
                             uint64_t next_rip)
{
    uint64_t d, lin;

    if (!(v->efer & EFER_LMA))
        return cpu_unsupported(v, "a far call in legacy mode");
    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, &d, &lin))
        return CPU_EXCEPTION;
    if (!(d & DESC_S) && desc_type(d) == SYS_CALL_GATE)
        return through_gate(v, sel, d, lin, true, next_rip);
    if (!desc_is_code(d))
        return gp(v, err_sel(sel));
    enum cpu_result r = check_target(v, sel, d, true);
    if (r != CPU_NEXT)
        return r;
    if (!mmu_canonical(offset))
        return gp(v, 0);
    uint64_t rsp = v->gpr[RSP];
    const uint64_t frame[] = {next_rip, v->seg[SEG_CS].sel};
    if (cpu_mark_accessed(v, lin, &d) || push_words(v, &rsp, frame, 2, size, 0))
        return CPU_EXCEPTION;
    v->seg[SEG_CS] = cpu_segment_of((sel & ~3) | v->cpl, d);
    v->gpr[RSP] = rsp;
    v->rip = offset;
    return CPU_JUMP;
}

/* CS of IRET and far RET. */
static enum cpu_result return_cs(struct vcpu *v, uint16_t sel, uint64_t *d, uint64_t *lin)
{
    unsigned rpl = sel & 3;

    if (sel_null(sel))
        return gp(v, 0);
    if (cpu_read_descriptor(v, sel, 0, d, lin))
        return CPU_EXCEPTION;
    if (!desc_is_code(*d) || rpl < v->cpl)
        return gp(v, err_sel(sel));
    if ((*d & DESC_CONF) ? desc_dpl(*d) > rpl : desc_dpl(*d) != rpl)
        return gp(v, err_sel(sel));
    if (!(*d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    return check_code_mode(v, sel, *d);
}

/* SS of a return to `cpl` in a 64-bit code segment; *d = 0 for a null selector. */
static enum cpu_result return_ss(struct vcpu *v, uint16_t sel, unsigned cpl, uint64_t *d,
                                 uint64_t *lin)
{
    *d = *lin = 0;
    if (sel_null(sel))
        return cpl == 3 ? gp(v, 0) : CPU_NEXT;
    if (cpu_read_descriptor(v, sel, 0, d, lin))
        return CPU_EXCEPTION;
    if ((sel & 3u) != cpl || desc_dpl(*d) != cpl ||
        (*d & (DESC_S | DESC_CODE | DESC_WRITE)) != (DESC_S | DESC_WRITE))
        return gp(v, err_sel(sel));
    if (!(*d & DESC_P))
        return cpu_raise_code(v, EXC_SS, err_sel(sel));
    return CPU_NEXT;
}

/* A return to a less privileged level must not leave it segments it could not have loaded
 * (SDM vol. 3, 5.8.6).  The hidden base is left alone: in 64-bit mode it belongs to the MSRs. */
static void drop_inner_segments(struct vcpu *v)
{
    static const uint8_t segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    for (unsigned i = 0; i < sizeof(segs); i++) {
        struct segment *s = &v->seg[segs[i]];
        bool conforming = (s->attr & 0x0c) == 0x0c;
        if ((s->attr & SEGA_P) && !conforming && (s->attr >> 5 & 3) < v->cpl) {
            s->sel = 0;
            s->attr = 0;
        }
    }
}

/* The common end of IRET and an outer far RET: everything is checked but the accessed bits. */
static enum cpu_result commit_return(struct vcpu *v, uint16_t cs, uint64_t cs_desc, uint64_t cs_lin,
                                     uint16_t ss, uint64_t ss_desc, uint64_t ss_lin, uint64_t rip,
                                     uint64_t rsp)
{
    if (!mmu_canonical(rip))
        return gp(v, 0);
    if (cpu_mark_accessed(v, cs_lin, &cs_desc) ||
        (ss_desc && cpu_mark_accessed(v, ss_lin, &ss_desc)))
        return CPU_EXCEPTION;
    bool outer = (cs & 3) > v->cpl;
    v->seg[SEG_CS] = cpu_segment_of(cs, cs_desc);
    v->seg[SEG_SS] = ss_desc ? cpu_segment_of(ss, ss_desc) : (struct segment){.sel = ss};
    v->cpl = cs & 3;
    v->rip = rip;
    v->gpr[RSP] = rsp;
    if (outer)
        drop_inner_segments(v);
    return CPU_JUMP;
}

enum cpu_result cpu_far_return(struct vcpu *v, unsigned size, uint16_t release)
{
    uint64_t f[2], d, lin;
    uint64_t rsp = v->gpr[RSP];

    if (!(v->efer & EFER_LMA))
        return cpu_unsupported(v, "a far return in legacy mode");
    if (pop_words(v, rsp, f, 2, size))
        return CPU_EXCEPTION;
    uint16_t cs = f[1];
    enum cpu_result r = return_cs(v, cs, &d, &lin);
    if (r != CPU_NEXT)
        return r;
    rsp += 2 * size + release;
    if ((cs & 3) == v->cpl) {
        if (!mmu_canonical(f[0]))
            return gp(v, 0);
        if (cpu_mark_accessed(v, lin, &d))
            return CPU_EXCEPTION;
        v->seg[SEG_CS] = cpu_segment_of(cs, d);
        v->rip = f[0];
        v->gpr[RSP] = rsp;
        return CPU_JUMP;
    }
    uint64_t g[2], ss_desc, ss_lin;
    if (pop_words(v, rsp, g, 2, size))
        return CPU_EXCEPTION;
    r = return_ss(v, g[1], cs & 3, &ss_desc, &ss_lin);
    if (r != CPU_NEXT)
        return r;
    return commit_return(v, cs, d, lin, g[1], ss_desc, ss_lin, f[0], g[0] + release);
}

/* IRET in 64-bit mode pops SS:RSP whether or not CPL changes (SDM vol. 3, 6.14.3). */
enum cpu_result cpu_iret(struct vcpu *v, unsigned size)
{
    uint64_t f[5], cs_desc, cs_lin, ss_desc, ss_lin; /* RIP, CS, RFLAGS, RSP, SS */

    if (!(v->efer & EFER_LMA))
        return cpu_unsupported(v, "IRET in legacy mode");
    /* NMIs are unblocked even if the IRET faults (SDM vol. 3, 6.7.1). */
    v->nmi_blocked = false;
    if (v->rflags & FL_NT)
        return gp(v, 0);
    if (pop_words(v, v->gpr[RSP], f, 5, size))
        return CPU_EXCEPTION;
    uint16_t cs = f[1], ss = f[4];
    enum cpu_result r = return_cs(v, cs, &cs_desc, &cs_lin);
    if (r != CPU_NEXT)
        return r;
    r = return_ss(v, ss, cs & 3, &ss_desc, &ss_lin);
    if (r != CPU_NEXT)
        return r;

    unsigned old_cpl = v->cpl;
    uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (size > 2)
        mask |= FL_RF | FL_AC | FL_ID;
    if (old_cpl <= (v->rflags & FL_IOPL) >> 12)
        mask |= FL_IF;
    if (old_cpl == 0)
        mask |= FL_IOPL | (size > 2 ? FL_VIF | FL_VIP : 0);

    r = commit_return(v, cs, cs_desc, cs_lin, ss, ss_desc, ss_lin, f[0], f[3]);
    if (r != CPU_JUMP)
        return r;
    uint64_t fl = (v->rflags & ~mask) | (f[2] & mask) | FL_FIXED1;
    /* RF only matters with an instruction breakpoint; without one it would be gone after the next
     * instruction, so it is dropped here instead of after every instruction. */
    if (!cpu_debug_active(v))
        fl &= ~(uint64_t)FL_RF;
    cpu_set_rflags(v, fl);
    return CPU_JUMP;
}

enum cpu_result cpu_syscall(struct vcpu *v, uint64_t next_rip)
{
    if (!(v->efer & EFER_SCE) || !(v->efer & EFER_LMA))
        return cpu_raise(v, EXC_UD);
    uint16_t sel = v->star >> 32;
    v->gpr[RCX] = next_rip;
    v->gpr[R11] = v->rflags & ~(uint64_t)FL_RF;
    v->rip = vcpu_long64(v) ? v->lstar : v->cstar;
    cpu_set_rflags(v, (v->rflags & ~v->sfmask & ~(uint64_t)FL_RF) | FL_FIXED1);
    v->seg[SEG_CS] = cpu_flat_code64(sel & ~3, 0);
    v->seg[SEG_SS] = cpu_flat_data((sel & ~3) + 8, 0);
    v->cpl = 0;
    return CPU_JUMP;
}

enum cpu_result cpu_sysret(struct vcpu *v, unsigned size)
{
    if (!(v->efer & EFER_SCE) || !(v->efer & EFER_LMA))
        return cpu_raise(v, EXC_UD);
    if (v->cpl)
        return gp(v, 0);
    if (size != 8)
        return cpu_unsupported(v, "SYSRET to compatibility mode");
    /* Intel checks RCX here, still at CPL 0; AMD faults on the fetch at CPL 3 (APM vol. 3,
     * SYSRET), which is what the next fetch does by itself. */
    if (v->model->vendor != CPU_VENDOR_AMD && !mmu_canonical(v->gpr[RCX]))
        return gp(v, 0);
    uint16_t sel = v->star >> 48;
    v->rip = v->gpr[RCX];
    uint64_t fl = (v->gpr[R11] & 0x3c7fd7) | FL_FIXED1;
    if (!cpu_debug_active(v))
        fl &= ~(uint64_t)FL_RF;
    v->seg[SEG_CS] = cpu_flat_code64((sel + 16) | 3, 3);
    v->seg[SEG_SS] = cpu_flat_data((sel + 8) | 3, 3);
    v->cpl = 3;
    cpu_set_rflags(v, fl);
    return CPU_JUMP;
}

enum cpu_result cpu_sysenter(struct vcpu *v)
{
    if (v->model->vendor == CPU_VENDOR_AMD && (v->efer & EFER_LMA))
        return cpu_raise(v, EXC_UD); /* APM vol. 3, SYSENTER: legacy mode only */
    if (!(v->sysenter_cs & 0xfffc) || !(v->cr0 & CR0_PE))
        return gp(v, 0);
    if (!(v->efer & EFER_LMA))
        return cpu_unsupported(v, "SYSENTER in legacy mode");
    uint16_t sel = v->sysenter_cs & 0xfffc;
    cpu_set_rflags(v, v->rflags & ~(uint64_t)(FL_VM | FL_IF | FL_RF));
    v->gpr[RSP] = v->sysenter_esp;
    v->rip = v->sysenter_eip;
    v->seg[SEG_CS] = cpu_flat_code64(sel, 0);
    v->seg[SEG_SS] = cpu_flat_data(sel + 8, 0);
    v->cpl = 0;
    return CPU_JUMP;
}

enum cpu_result cpu_sysexit(struct vcpu *v, unsigned size)
{
    if (v->model->vendor == CPU_VENDOR_AMD && (v->efer & EFER_LMA))
        return cpu_raise(v, EXC_UD);
    if (!(v->sysenter_cs & 0xfffc) || !(v->cr0 & CR0_PE) || v->cpl)
        return gp(v, 0);
    if (size != 8)
        return cpu_unsupported(v, "SYSEXIT to 32-bit mode");
    if (!mmu_canonical(v->gpr[RCX]) || !mmu_canonical(v->gpr[RDX]))
        return gp(v, 0);
    uint16_t sel = v->sysenter_cs & 0xfffc;
    v->gpr[RSP] = v->gpr[RCX];
    v->rip = v->gpr[RDX];
    v->seg[SEG_CS] = cpu_flat_code64((sel + 32) | 3, 3);
    v->seg[SEG_SS] = cpu_flat_data((sel + 40) | 3, 3);
    v->cpl = 3;
    return CPU_JUMP;
}
