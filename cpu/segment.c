/*
 * Descriptors, segment loads and checks in every mode.
 *
 * Order matters in this file: a rule first checks everything that can fault, then touches the
 * guest's memory, then commits registers, so that a fault leaves the instruction restartable.
 * Descriptors are read once into a local copy and judged there: another vCPU may rewrite the table
 * at any time.
 */
#include "cpu/segment.h"

#include "cpu/exception.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

#define ATTR_CODE64 (0x0b | SEGA_S | SEGA_P | SEGA_L | SEGA_G)
#define ATTR_CODE32 (0x0b | SEGA_S | SEGA_P | SEGA_DB | SEGA_G)
#define ATTR_DATA   (0x03 | SEGA_S | SEGA_P | SEGA_DB | SEGA_G)
#define ATTR_REAL   (0x03 | SEGA_S | SEGA_P)

/* Type bits of a code or data segment in `attr`. */
enum { TYPE_RW = 2, TYPE_EXPAND_DOWN = 4, TYPE_CODE = 8 };

static enum cpu_result gp(struct vcpu *v, uint32_t error)
{
    return cpu_raise_code(v, EXC_GP, error);
}

static uint16_t err_sel(uint16_t sel)
{
    return sel & ~3;
}

/* -- Descriptors. --------------------------------------------------------------------------------
 */

int cpu_read_descriptor_as(struct vcpu *v, uint8_t vector, uint16_t sel, uint32_t ext,
                           uint64_t *desc, uint64_t *lin)
{
    uint32_t index = sel & ~7u;
    uint64_t base = v->gdtr.base;
    uint32_t limit = v->gdtr.limit;
    bool present = true;

    if (sel & 4) {
        base = v->ldtr.base;
        limit = v->ldtr.limit;
        present = v->ldtr.attr & SEGA_P;
    }
    if (!present || index + 7 > limit) {
        cpu_raise_code(v, vector, err_sel(sel) | ext);
        return -1;
    }
    *lin = base + index;
    if (!vcpu_long(v))
        *lin = (uint32_t)*lin;
    return mmu_load(v, *lin, desc, 8, MMU_READ | MMU_SYSTEM, false);
}

int cpu_read_descriptor(struct vcpu *v, uint16_t sel, uint32_t ext, uint64_t *desc, uint64_t *lin)
{
    return cpu_read_descriptor_as(v, EXC_GP, sel, ext, desc, lin);
}

/* The type field of the second half must be zero (SDM vol. 3, 3.5.2), which stops a guest from
 * aiming a selector at the middle of such a descriptor. */
int cpu_read_descriptor_upper(struct vcpu *v, uint16_t sel, uint64_t lin, uint64_t *upper)
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

/* The CPU does these updates with a locked read-modify-write (SDM vol. 3, 8.1.2.1). */
int cpu_update_byte(struct vcpu *v, uint64_t lin, uint8_t and, uint8_t or)
{
    void *host;
    uint64_t gpa;
    uint8_t old;

    if (!vcpu_long(v))
        lin = (uint32_t)lin;
    switch (mmu_translate(v, lin, MMU_WRITE | MMU_RMW | MMU_SYSTEM, false, &host, &gpa)) {
    case MMU_RAM_CODE:
        ram_before_write(v->ram, gpa, 1);
        /* fall through */
    case MMU_RAM:
        old = __atomic_load_n((uint8_t *)host, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n((uint8_t *)host, &old, (old & and) | or, false,
                                            __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            ;
        return old;
    case MMU_MMIO: {
        mmu_mmio_read(v, gpa, &old, 1);
        uint8_t new = (old & and) | or ;
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
    if (cpu_update_byte(v, lin + 5, 0xff, 1) < 0)
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

struct segment cpu_flat_code32(uint16_t sel, unsigned dpl)
{
    return (struct segment){.sel = sel, .attr = ATTR_CODE32 | dpl << 5, .limit = 0xffffffff};
}

struct segment cpu_flat_data(uint16_t sel, unsigned dpl)
{
    return (struct segment){.sel = sel, .attr = ATTR_DATA | dpl << 5, .limit = 0xffffffff};
}

/* -- Checks. -------------------------------------------------------------------------------------
 */

static bool expand_down(const struct segment *s)
{
    return (s->attr & (SEGA_S | TYPE_CODE | TYPE_EXPAND_DOWN)) == (SEGA_S | TYPE_EXPAND_DOWN);
}

bool cpu_segment_contains(const struct segment *s, uint64_t offset, unsigned size)
{
    uint64_t last = offset + size - 1;

    if (expand_down(s))
        return offset > s->limit && last <= (s->attr & SEGA_DB ? 0xffffffffu : 0xffffu);
    return last <= s->limit || s->limit == 0xffffffff;
}

static bool readable(const struct segment *s)
{
    return (s->attr & SEGA_P) && (!(s->attr & TYPE_CODE) || (s->attr & TYPE_RW));
}

static bool writable(const struct segment *s)
{
    return (s->attr & SEGA_P) && !(s->attr & TYPE_CODE) && (s->attr & TYPE_RW);
}

int cpu_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, unsigned access,
               uint64_t *lin)
{
    const struct segment *s = &v->seg[seg];
    unsigned kind = access & MMU_KIND;

    if (vcpu_long64(v)) {
        *lin = offset + (seg == SEG_FS || seg == SEG_GS ? s->base : 0);
        return 0;
    }
    *lin = (uint32_t)(s->base + offset);
    bool ok = cpu_segment_contains(s, offset, size);
    if (!vcpu_real_segments(v) && kind != MMU_EXEC)
        ok = ok && (kind == MMU_WRITE ? writable(s) : readable(s));
    if (ok)
        return 0;
    cpu_raise_code(v, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
    return -1;
}

static enum segment_kind segment_kind(const struct vcpu *v, unsigned seg)
{
    const struct segment *s = &v->seg[seg];

    if (expand_down(s) || s->limit < 0xffff)
        return SEGK_CHECKED;
    if (!vcpu_real_segments(v) && !(seg == SEG_CS ? readable(s) : writable(s)))
        return SEGK_CHECKED;
    if (s->limit != 0xffffffff)
        return SEGK_BASE64K;
    return s->base || seg == SEG_FS || seg == SEG_GS ? SEGK_BASE : SEGK_FLAT;
}

bool cpu_segment_flat(const struct vcpu *v, unsigned seg)
{
    const struct segment *s = &v->seg[seg];

    if (vcpu_long64(v))
        return (seg != SEG_FS && seg != SEG_GS) || !s->base;
    return !s->base && s->limit == 0xffffffff && !expand_down(s) &&
           (vcpu_real_segments(v) || (seg == SEG_CS ? readable(s) : writable(s)));
}

/* 16, 32, 64 bits as 0, 1, 2. */
static uint32_t log_size(unsigned size)
{
    return size >> 2;
}

uint32_t cpu_segment_key(const struct vcpu *v)
{
    if (vcpu_long64(v))
        return 2 | 2 << SEGKEY_STACK_SHIFT | SEGKEY_STACK_FREE |
               (uint32_t)SEGK_BASE << (SEGKEY_KIND_SHIFT + 2 * SEG_FS) |
               (uint32_t)SEGK_BASE << (SEGKEY_KIND_SHIFT + 2 * SEG_GS);

    uint32_t key = log_size(vcpu_code_size(v)) | log_size(vcpu_stack_size(v)) << SEGKEY_STACK_SHIFT;
    if (vcpu_real(v))
        key |= SEGKEY_REAL;
    if (vcpu_v86(v))
        key |= SEGKEY_V86;
    for (unsigned seg = 0; seg < SEG_COUNT; seg++)
        key |= (uint32_t)segment_kind(v, seg) << (SEGKEY_KIND_SHIFT + 2 * seg);
    if (cpu_key_kind(key, SEG_SS) <= SEGK_BASE)
        key |= SEGKEY_STACK_FREE;
    return key;
}

void cpu_mode_changed(struct vcpu *v)
{
    v->mode_key = cpu_segment_key(v);
}

/* -- Loads. --------------------------------------------------------------------------------------
 */

void cpu_load_real_segment(struct vcpu *v, enum seg seg, uint16_t sel)
{
    struct segment *s = &v->seg[seg];

    s->sel = sel;
    s->base = (uint64_t)sel << 4;
    if (vcpu_v86(v)) { /* SDM vol. 3, 20.2 and 26.3.1.2 */
        s->attr = ATTR_REAL | SEGA_DPL;
        s->limit = 0xffff;
        return;
    }
    /* Limit, D/B and G of the last protected-mode load stay (SDM vol. 3, 9.9.2: hence "unreal
     * mode"), rights become those of read-write data.  A segment that was null has no limit to
     * keep. */
    if (!(s->attr & SEGA_P))
        s->limit = 0xffff;
    if (seg != SEG_CS)
        s->attr = (s->attr & (SEGA_AVL | SEGA_DB | SEGA_G)) | ATTR_REAL;
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

static enum cpu_result load_data(struct vcpu *v, enum seg seg, uint16_t sel)
{
    uint64_t d, lin;

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

enum cpu_result cpu_load_segment(struct vcpu *v, enum seg seg, uint16_t sel)
{
    enum cpu_result r = CPU_NEXT;

    if (vcpu_real_segments(v))
        cpu_load_real_segment(v, seg, sel);
    else
        r = seg == SEG_SS ? load_ss(v, sel) : load_data(v, seg, sel);
    if (r == CPU_NEXT)
        cpu_mode_changed(v);
    return r;
}

enum cpu_result cpu_require_protected(struct vcpu *v)
{
    return vcpu_real_segments(v) ? cpu_raise(v, EXC_UD) : CPU_NEXT;
}

/* Common part of LLDT and LTR: the descriptor of a GDT selector; `types` is a set of bits. */
static enum cpu_result read_system(struct vcpu *v, uint16_t sel, unsigned types,
                                   struct segment *out, uint64_t *lin)
{
    uint64_t d, upper = 0;

    if (sel & 4)
        return gp(v, err_sel(sel));
    if (cpu_read_descriptor(v, sel, 0, &d, lin))
        return CPU_EXCEPTION;
    if ((d & DESC_S) || !(types >> desc_type(d) & 1))
        return gp(v, err_sel(sel));
    if (!(d & DESC_P))
        return cpu_raise_code(v, EXC_NP, err_sel(sel));
    if (vcpu_long(v) && cpu_read_descriptor_upper(v, sel, *lin, &upper))
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

    enum cpu_result r = cpu_require_protected(v);
    if (r != CPU_NEXT)
        return r;
    if (v->cpl)
        return gp(v, 0);
    if (sel_null(sel)) {
        v->ldtr = (struct segment){.sel = sel};
        return CPU_NEXT;
    }
    r = read_system(v, sel, 1u << SYS_LDT, &s, &lin);
    if (r == CPU_NEXT)
        v->ldtr = s;
    return r;
}

enum cpu_result cpu_ltr(struct vcpu *v, uint16_t sel)
{
    struct segment s;
    uint64_t lin;

    enum cpu_result r = cpu_require_protected(v);
    if (r != CPU_NEXT)
        return r;
    if (v->cpl)
        return gp(v, 0);
    if (sel_null(sel))
        return gp(v, 0);
    r = read_system(v, sel, 1u << SYS_TSS_AVAIL | (vcpu_long(v) ? 0 : 1u << SYS_TSS16_AVAIL), &s,
                    &lin);
    if (r != CPU_NEXT)
        return r;
    int old = cpu_update_byte(v, lin + 5, 0xff, 2);
    if (old < 0)
        return CPU_EXCEPTION;
    if (old & 2) /* another CPU was faster */
        return gp(v, err_sel(sel));
    s.attr |= 2;
    v->tr = s;
    return CPU_NEXT;
}

/* -- Questions about selectors. ------------------------------------------------------------------
 */

/* Descriptor for LAR, LSL, VERR, VERW: 1 if readable at this privilege, 0 if not, -1 with a fault.
 */
static int probe(struct vcpu *v, uint16_t sel, uint64_t *d)
{
    uint64_t lin;
    uint32_t limit = sel & 4 ? v->ldtr.limit : v->gdtr.limit;

    if (cpu_require_protected(v) != CPU_NEXT)
        return -1;
    if (sel_null(sel) || (sel & ~7u) + 7 > limit || ((sel & 4) && !(v->ldtr.attr & SEGA_P)))
        return 0;
    if (cpu_read_descriptor(v, sel, 0, d, &lin))
        return -1;
    if (desc_is_code(*d) && (*d & DESC_CONF))
        return 1;
    return v->cpl <= desc_dpl(*d) && (sel & 3u) <= desc_dpl(*d);
}

/* SDM vol. 2, LAR and LSL: the system descriptors they are valid for. */
#define LSL_LEGACY                                                                                 \
    (1u << SYS_TSS16_AVAIL | 1u << SYS_LDT | 1u << SYS_TSS16_BUSY | 1u << SYS_TSS_AVAIL |          \
     1u << SYS_TSS_BUSY)
#define LAR_LEGACY (LSL_LEGACY | 1u << SYS_CALL_GATE16 | 1u << SYS_TASK_GATE | 1u << SYS_CALL_GATE)
#define LSL_LONG   (1u << SYS_LDT | 1u << SYS_TSS_AVAIL | 1u << SYS_TSS_BUSY)
#define LAR_LONG   (LSL_LONG | 1u << SYS_CALL_GATE)

int cpu_lar(struct vcpu *v, uint16_t sel, uint32_t *out)
{
    uint64_t d;
    int r = probe(v, sel, &d);

    if (r <= 0)
        return r;
    if (!(d & DESC_S) && !((vcpu_long(v) ? LAR_LONG : LAR_LEGACY) >> desc_type(d) & 1))
        return 0;
    *out = d >> 32 & 0x00ffff00;
    return 1;
}

int cpu_lsl(struct vcpu *v, uint16_t sel, uint32_t *out)
{
    uint64_t d;
    int r = probe(v, sel, &d);

    if (r <= 0)
        return r;
    if (!(d & DESC_S) && !((vcpu_long(v) ? LSL_LONG : LSL_LEGACY) >> desc_type(d) & 1))
        return 0;
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
