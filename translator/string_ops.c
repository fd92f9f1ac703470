/*
 * String instructions, page by page.
 *
 * A run is a number of elements that lie wholly within one page at the source and one at the
 * destination.  Both pages are translated once and the host's own string instruction does the run
 * on them: that has the guest's semantics by construction, overlapping MOVS and the flags of CMPS
 * and SCAS included.  With DF = 1 the run is a plain loop downwards.  An element that straddles a
 * page or touches MMIO is a run of one, through mmu_load() and mmu_store().
 *
 * Precision: registers are advanced after each run, and a run starts only when its pages have been
 * translated, so a fault leaves RSI, RDI and RCX at the element that faults.  The source is
 * translated before the destination, as an element reads before it writes.
 */
#include "translator/callouts.h"

#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/host_time.h"
#include "cpu/platform.h"
#include "cpu/segment.h"
#include "cpu/system.h"
#include "mmu/mmu.h"
#include "translator/host_string.h"

/* Bytes per call; after each run, of a page at most, events are looked at. */
#define WORK_LIMIT (256u << 10)
/* Elements of INS per call before events are looked at again. */
#define IO_LIMIT 256u

typedef volatile uint16_t __attribute__((aligned(1), may_alias)) any_u16;
typedef volatile uint32_t __attribute__((aligned(1), may_alias)) any_u32;
typedef volatile uint64_t __attribute__((aligned(1), may_alias)) any_u64;

struct string {
    struct vcpu *v;
    unsigned op;
    unsigned size;         /* of an element: 1, 2, 4, 8                                   */
    unsigned addr_size;    /* 2, 4, 8                                                     */
    bool down;             /* DF                                                          */
    bool repeat, until_zf; /* any repeat prefix; REPNE of CMPS and SCAS                */
    bool has_src, has_dst; /* [rsi], [rdi]                                             */
    bool writes;           /* to [rdi]                                                 */
    unsigned src_seg;
    uint64_t src_base, dst_base;
    uint64_t *rflags;
    struct mmu_near *near; /* of source and destination; NULL if there is little to do */
};

static uint64_t linear(const struct string *s, unsigned reg)
{
    uint64_t base = reg == RSI ? s->src_base : s->dst_base;
    uint64_t a = callout_truncate(s->v->gpr[reg], s->addr_size) + base;

    return vcpu_long64(s->v) ? a : (uint32_t)a;
}

/*
 * Outside 64-bit mode: checks the first element against its segment and cuts *n to what the limit
 * lets through.  0, or -1 with a fault.
 */
static int check_segment(const struct string *s, unsigned reg, uint64_t *n)
{
    struct vcpu *v = s->v;
    unsigned seg = reg == RSI ? s->src_seg : SEG_ES;
    unsigned access = reg == RDI && s->writes ? MMU_WRITE : MMU_READ;
    uint64_t offset = callout_truncate(v->gpr[reg], s->addr_size), gva;

    if (vcpu_long64(v))
        return 0;
    if (cpu_linear(v, seg, offset, s->size, access, &gva))
        return -1;
    if ((v->seg[seg].attr & 0xc) == 4) { /* expand-down data: offsets above the limit */
        *n = 1;
    } else if (!s->down) {
        uint64_t room = ((uint64_t)v->seg[seg].limit - offset + 1) / s->size;
        *n = room < *n ? room : *n;
    }
    return 0;
}

/* Writes an address register or the counter back with the address size's width. */
static void set_register(const struct string *s, unsigned reg, uint64_t value)
{
    uint64_t *r = &s->v->gpr[reg];

    if (s->addr_size == 8)
        *r = value;
    else if (s->addr_size == 4)
        *r = (uint32_t)value;
    else
        *r = (*r & ~0xffffull) | (value & 0xffff);
}

/* Elements from `gva` on that stay within its page, and within the register's range, going in the
 * direction of DF; 0 if already the first one straddles. */
static uint64_t in_page(const struct string *s, unsigned reg, uint64_t gva)
{
    unsigned offset = gva & (GUEST_PAGE_SIZE - 1);
    uint64_t n;

    if (offset + s->size > GUEST_PAGE_SIZE)
        return 0;
    n = s->down ? offset / s->size + 1 : (GUEST_PAGE_SIZE - offset) / s->size;
    if (s->addr_size != 8) {
        /* The register wraps at its own size, which need not be at a page boundary. */
        uint64_t value = callout_truncate(s->v->gpr[reg], s->addr_size);
        uint64_t room =
            s->down ? value / s->size + 1 : ((1ull << 8 * s->addr_size) - value) / s->size;
        if (room < n)
            n = room ? room : 1;
    }
    return n;
}

static uint64_t load_element(const void *p, unsigned size)
{
    switch (size) {
    case 1:
        return *(const volatile uint8_t *)p;
    case 2:
        return *(const any_u16 *)p;
    case 4:
        return *(const any_u32 *)p;
    default:
        return *(const any_u64 *)p;
    }
}

static void store_element(void *p, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        *(volatile uint8_t *)p = value;
        break;
    case 2:
        *(any_u16 *)p = value;
        break;
    case 4:
        *(any_u32 *)p = value;
        break;
    default:
        *(any_u64 *)p = value;
    }
}

static uint64_t accumulator(const struct vcpu *v, unsigned size)
{
    return size == 1 ? (uint8_t)v->gpr[RAX] : callout_truncate(v->gpr[RAX], size);
}

static void set_accumulator(struct vcpu *v, unsigned size, uint64_t value)
{
    uint64_t *r = &v->gpr[RAX];

    if (size >= 4)
        *r = value;
    else if (size == 2)
        *r = (*r & ~0xffffull) | value;
    else
        *r = (*r & ~0xffull) | value;
}

/* EFLAGS' arithmetic bits from LAHF's AH and SETO's AL. */
static void set_flags(const struct string *s, uint16_t ax)
{
    const uint64_t low = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF;
    uint64_t fl = (ax >> 8 & low) | (ax & 1 ? FL_OF : 0);

    *s->rflags = (*s->rflags & ~(uint64_t)FL_ARITH) | fl;
}

/* Flags of CMP a, b. */
static void compare(const struct string *s, uint64_t a, uint64_t b)
{
    uint64_t ax = a;

#define CMP(suffix, type, constraint)                                                              \
    __asm__("cmp" suffix " %[b], %[a]\n\tlahf\n\tseto %%al"                                        \
            : "=&a"(ax)                                                                            \
            : [a] constraint((type)a), [b] constraint((type)b)                                     \
            : "cc")
    switch (s->size) {
    case 1:
        CMP("b", uint8_t, "q");
        break;
    case 2:
        CMP("w", uint16_t, "r");
        break;
    case 4:
        CMP("l", uint32_t, "r");
        break;
    default:
        CMP("q", uint64_t, "r");
    }
#undef CMP
    set_flags(s, ax);
}

/* True if a repeated CMPS or SCAS ends after an element that set the flags so. */
static bool found(const struct string *s)
{
    bool zf = *s->rflags & FL_ZF;
    return s->until_zf ? zf : !zf;
}

/* -- Runs on host memory, upwards: the host's instruction. ------------------------------------- */

/* Repeated compare; returns how many elements were done.  n > 0, so the flags are defined.  A
 * single compare is a repeat of one. */
static uint64_t run_cmps(const struct string *s, const void *src, const void *dst, uint64_t n)
{
    uint64_t left = n, ax = 0;

#define RUN(insn)                                                                                  \
    __asm__ volatile(insn "\n\tlahf\n\tseto %%al"                                                  \
                     : "+D"(dst), "+S"(src), "+c"(left), "=&a"(ax)                                 \
                     :                                                                             \
                     : "cc", "memory")
    switch (s->size | (s->until_zf ? 16 : 0)) {
    case 1:
        RUN("repe cmpsb");
        break;
    case 2:
        RUN("repe cmpsw");
        break;
    case 4:
        RUN("repe cmpsl");
        break;
    case 8:
        RUN("repe cmpsq");
        break;
    case 17:
        RUN("repne cmpsb");
        break;
    case 18:
        RUN("repne cmpsw");
        break;
    case 20:
        RUN("repne cmpsl");
        break;
    default:
        RUN("repne cmpsq");
    }
#undef RUN
    set_flags(s, ax);
    return n - left;
}

static uint64_t run_scas(const struct string *s, const void *dst, uint64_t n)
{
    uint64_t left = n, ax = s->v->gpr[RAX];

#define RUN(insn)                                                                                  \
    __asm__ volatile(insn "\n\tlahf\n\tseto %%al"                                                  \
                     : "+D"(dst), "+c"(left), "+a"(ax)                                             \
                     :                                                                             \
                     : "cc", "memory")
    switch (s->size | (s->until_zf ? 16 : 0)) {
    case 1:
        RUN("repe scasb");
        break;
    case 2:
        RUN("repe scasw");
        break;
    case 4:
        RUN("repe scasl");
        break;
    case 8:
        RUN("repe scasq");
        break;
    case 17:
        RUN("repne scasb");
        break;
    case 18:
        RUN("repne scasw");
        break;
    case 20:
        RUN("repne scasl");
        break;
    default:
        RUN("repne scasq");
    }
#undef RUN
    set_flags(s, ax);
    return n - left;
}

/* -- Runs downwards. --------------------------------------------------------------------------- */

static uint64_t run_down(const struct string *s, uint8_t *dst, const uint8_t *src, uint64_t n)
{
    uint64_t a = accumulator(s->v, s->size);

    for (uint64_t i = 0; i < n; i++) {
        int64_t at = -(int64_t)(i * s->size);
        switch (s->op) {
        case OP_MOVS:
            store_element(dst + at, s->size, load_element(src + at, s->size));
            break;
        case OP_STOS:
            store_element(dst + at, s->size, a);
            break;
        case OP_CMPS:
            compare(s, load_element(src + at, s->size), load_element(dst + at, s->size));
            break;
        default:
            compare(s, a, load_element(dst + at, s->size));
        }
        if ((s->op == OP_CMPS || s->op == OP_SCAS) && found(s))
            return i + 1;
    }
    return n;
}

/* -- One element through mmu/. ----------------------------------------------------------------- */

/* 0, or -1 with a fault. */
static int one_element(const struct string *s)
{
    struct vcpu *v = s->v;
    uint64_t src = 0, dst = 0;

    if (s->has_src && mmu_load(v, linear(s, RSI), &src, s->size, MMU_READ, false))
        return -1;
    switch (s->op) {
    case OP_MOVS:
        return mmu_store(v, linear(s, RDI), &src, s->size, MMU_WRITE, false);
    case OP_STOS:
        return mmu_store(v, linear(s, RDI), &v->gpr[RAX], s->size, MMU_WRITE, false);
    case OP_LODS:
        set_accumulator(v, s->size, src);
        return 0;
    default:
        if (mmu_load(v, linear(s, RDI), &dst, s->size, MMU_READ, false))
            return -1;
        compare(s, s->op == OP_CMPS ? src : accumulator(v, s->size), dst);
        return 0;
    }
}

/* stream: 0 for the source, 1 for the destination */
static int translate(const struct string *s, uint64_t gva, unsigned access, unsigned stream,
                     void **host, uint64_t *gpa)
{
    return s->near ? mmu_translate_near(s->v, gva, access, &s->near[stream], host, gpa)
                   : mmu_translate(s->v, gva, access, false, host, gpa);
}

/*
 * Does at least one and at most `count` elements; returns how many, or 0 with a fault.
 * *code_hit is set if a page with translations was written.
 */
static uint64_t do_run(const struct string *s, uint64_t count, bool *code_hit)
{
    struct vcpu *v = s->v;
    uint64_t src = s->has_src ? linear(s, RSI) : 0, dst = s->has_dst ? linear(s, RDI) : 0;
    uint64_t n = count, gpa = 0;
    void *hsrc = NULL, *hdst = NULL;
    int target = MMU_RAM;

    if ((s->has_src && check_segment(s, RSI, &n)) || (s->has_dst && check_segment(s, RDI, &n)))
        return 0;
    if (s->has_src) {
        uint64_t room = in_page(s, RSI, src);
        n = room < n ? room : n;
    }
    if (s->has_dst) {
        uint64_t room = in_page(s, RDI, dst);
        n = room < n ? room : n;
    }
    if (n == 0)
        return one_element(s) ? 0 : 1;

    if (s->has_src) {
        target = translate(s, src, MMU_READ, 0, &hsrc, &gpa);
        if (target < 0)
            return 0;
        if (target == MMU_MMIO)
            return one_element(s) ? 0 : 1;
    }
    if (s->has_dst) {
        target = translate(s, dst, s->writes ? MMU_WRITE : MMU_READ, 1, &hdst, &gpa);
        if (target < 0)
            return 0;
        if (target == MMU_MMIO)
            return one_element(s) ? 0 : 1;
    }
    if (s->writes && target == MMU_RAM_CODE) {
        *code_hit = true;
        ram_before_write(v->ram, s->down ? gpa - (n - 1) * s->size : gpa, n * s->size);
    }

    if (s->op == OP_LODS) { /* only the last element stays */
        int64_t last = (int64_t)(n - 1) * s->size;
        set_accumulator(v, s->size,
                        load_element((uint8_t *)hsrc + (s->down ? -last : last), s->size));
        return n;
    }
    if (s->down)
        return run_down(s, hdst, hsrc, n);
    switch (s->op) {
    case OP_MOVS:
        host_movs(s->size, hdst, hsrc, n);
        return n;
    case OP_STOS:
        host_stos(s->size, hdst, v->gpr[RAX], n);
        return n;
    case OP_CMPS:
        return run_cmps(s, hsrc, hdst, n);
    default:
        return run_scas(s, hdst, n);
    }
}

/* -- INS and OUTS. ----------------------------------------------------------------------------- */

/* One element; the port is read only when the store is known to succeed, since a read may have
 * side effects that the restarted instruction must not repeat. */
static int one_io(const struct string *s)
{
    struct vcpu *v = s->v;
    const struct platform_ops *ops = v->platform->ops;
    uint16_t port = v->gpr[RDX];
    uint32_t value = 0;
    uint64_t one = 1;

    if (check_segment(s, s->op == OP_OUTS ? RSI : RDI, &one))
        return -1;
    if (s->op == OP_OUTS) {
        if (mmu_load(v, linear(s, RSI), &value, s->size, MMU_READ, false))
            return -1;
        vcpu_fp_save(v);
        enum host_cause was = host_time_switch(v, HOST_DEVICE);
        ops->pio_write(v->platform, port, s->size, value);
        host_time_switch(v, was);
        return 0;
    }
    uint64_t gva = linear(s, RDI), gpa;
    void *host;
    if (mmu_translate(v, gva, MMU_WRITE, false, &host, &gpa) < 0 ||
        ((gva ^ (gva + s->size - 1)) >> GUEST_PAGE_SHIFT &&
         mmu_translate(v, gva + s->size - 1, MMU_WRITE, false, &host, &gpa) < 0))
        return -1;
    vcpu_fp_save(v);
    enum host_cause was = host_time_switch(v, HOST_DEVICE);
    value = ops->pio_read(v->platform, port, s->size);
    host_time_switch(v, was);
    return mmu_store(v, gva, &value, s->size, MMU_WRITE, false);
}

/*
 * At least one and at most `count` elements of INS; returns how many, or 0 with a fault.  Upwards
 * into RAM the page is translated once for all of them: firmware reads whole sectors this way.
 */
static uint64_t run_ins(const struct string *s, uint64_t count, bool *code_hit)
{
    struct vcpu *v = s->v;
    const struct platform_ops *ops = v->platform->ops;
    uint16_t port = v->gpr[RDX];
    uint64_t gva = linear(s, RDI), n = count < IO_LIMIT ? count : IO_LIMIT, gpa;
    uint64_t room = in_page(s, RDI, gva);
    void *host;

    n = room < n ? room : n;
    if (n < 2 || s->down)
        return one_io(s) == 0;
    if (check_segment(s, RDI, &n))
        return 0;
    int target = mmu_translate(v, gva, MMU_WRITE, false, &host, &gpa);
    if (target < 0)
        return 0;
    if (target == MMU_MMIO)
        return one_io(s) == 0;
    if (target == MMU_RAM_CODE) {
        *code_hit = true;
        ram_before_write(v->ram, gpa, n * s->size);
    }
    vcpu_fp_save(v);
    enum host_cause was = host_time_switch(v, HOST_DEVICE);
    for (uint64_t i = 0; i < n; i++)
        store_element((uint8_t *)host + i * s->size, s->size,
                      ops->pio_read(v->platform, port, s->size));
    host_time_switch(v, was);
    return n;
}

/* Breakpoints on what one element has accessed; registers still point at it. */
static void watch_element(const struct string *s)
{
    struct vcpu *v = s->v;

    if (s->has_src)
        callout_watch(v, DEBUG_READ, linear(s, RSI), s->size);
    if (s->has_dst)
        callout_watch(v, s->writes ? DEBUG_WRITE : DEBUG_READ, linear(s, RDI), s->size);
    if (s->op == OP_INS || s->op == OP_OUTS)
        callout_watch(v, DEBUG_IO, (uint16_t)v->gpr[RDX], s->size);
}

/*
 * A single MOVS, STOS or LODS whose pages are in the soft TLB: loops of them are how code that was
 * compiled for size copies memory (GRUB copies a kernel and its initrd so, byte by byte).  False:
 * not such a case, nothing has happened.
 */
static bool single_element(struct vcpu *v, const struct insn *in)
{
    bool src = in->op != OP_STOS, dst = in->op != OP_LODS;
    unsigned size = in->op_size, last = GUEST_PAGE_SIZE - size;
    struct soft_tlb_entry *from = NULL, *to = NULL;
    uint64_t from_gva = 0, to_gva = 0;

    if (in->flags & (INSN_REP | INSN_REPNE) || cpu_debug_watching(v) ||
        (src && !cpu_segment_flat(v, in->mem.seg)) || (dst && !cpu_segment_flat(v, SEG_ES)))
        return false;
    if (src) {
        from_gva = callout_truncate(v->gpr[RSI], in->addr_size);
        from = mmu_stlb_slot(v, from_gva, v->cpl == 3);
        if (from->rtag != (from_gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) ||
            (from_gva & (GUEST_PAGE_SIZE - 1)) > last)
            return false;
    }
    if (dst) {
        to_gva = callout_truncate(v->gpr[RDI], in->addr_size);
        to = mmu_stlb_slot(v, to_gva, v->cpl == 3);
        if (to->wtag != (to_gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) ||
            (to_gva & (GUEST_PAGE_SIZE - 1)) > last)
            return false;
    }
    uint64_t value = v->gpr[RAX];
    if (src)
        value = load_element((void *)(uintptr_t)(from->host + (from_gva & (GUEST_PAGE_SIZE - 1))),
                             size);
    if (dst)
        store_element((void *)(uintptr_t)(to->host + (to_gva & (GUEST_PAGE_SIZE - 1))), size,
                      value);
    else
        set_accumulator(v, size, value);
    const struct string s = {.v = v, .addr_size = in->addr_size};
    uint64_t step = v->rflags & FL_DF ? -(uint64_t)size : size;
    if (src)
        set_register(&s, RSI, v->gpr[RSI] + step);
    if (dst)
        set_register(&s, RDI, v->gpr[RDI] + step);
    return true;
}

/* -- The instruction. -------------------------------------------------------------------------- */

enum cpu_result callout_string(struct vcpu *v, const struct insn *in)
{
    bool io = in->op == OP_INS || in->op == OP_OUTS;
    bool compares = in->op == OP_CMPS || in->op == OP_SCAS;

    if (!io && !compares && single_element(v, in))
        return CPU_NEXT;

    struct string s = {
        .v = v,
        .op = in->op,
        .size = io && in->op_size == 8 ? 4 : in->op_size,
        .addr_size = in->addr_size,
        .down = v->rflags & FL_DF,
        .repeat = in->flags & (INSN_REP | INSN_REPNE),
        .until_zf = compares && (in->flags & INSN_REPNE),
        .has_src = in->op == OP_MOVS || in->op == OP_CMPS || in->op == OP_LODS || in->op == OP_OUTS,
        .has_dst = in->op != OP_LODS && in->op != OP_OUTS,
        .writes = in->op == OP_MOVS || in->op == OP_STOS || in->op == OP_INS,
        .src_seg = in->mem.seg,
        .src_base = callout_seg_base(v, in->mem.seg),
        .dst_base = callout_seg_base(v, SEG_ES),
        .rflags = &v->rflags,
    };
    uint64_t count = s.repeat ? callout_truncate(v->gpr[RCX], s.addr_size) : 1;
    /* Single steps and data breakpoints trap after every iteration (SDM vol. 3, 17.3.1). */
    bool watching = cpu_debug_watching(v);
    uint64_t budget = watching || (v->rflags & FL_TF) ? 1 : WORK_LIMIT / s.size;
    bool code_hit = false;
    struct mmu_near near[2];

    if (count > MMU_NEAR_BYTES / s.size) {
        near[0] = near[1] = (struct mmu_near){0};
        s.near = near;
    }
    if (io) {
        /* The permission check precedes the count check (SDM vol. 2, INS: #GP). */
        enum cpu_result r = cpu_io_check(v, v->gpr[RDX], s.size);
        if (r != CPU_NEXT)
            return r;
    }
    if (s.repeat && s.addr_size == 4) {
        /* In 64-bit code the upper half of RCX is gone before anything is done, and with MOVS and
         * STOS those of RSI and RDI are: it shows if the count is 0 or the first element faults (SDM
         * says nothing; as Intel's processors do). */
        set_register(&s, RCX, count);
        if (in->op == OP_MOVS)
            set_register(&s, RSI, v->gpr[RSI]);
        if (in->op == OP_MOVS || in->op == OP_STOS)
            set_register(&s, RDI, v->gpr[RDI]);
    }
    while (count) {
        uint64_t limit = count < budget ? count : budget;
        uint64_t done = !io                            ? do_run(&s, limit, &code_hit)
                        : in->op == OP_INS && s.repeat ? run_ins(&s, limit, &code_hit)
                                                       : one_io(&s) == 0;
        if (!done)
            return CPU_EXCEPTION;
        if (watching)
            watch_element(&s);
        uint64_t step = done * s.size;
        if (s.has_src)
            set_register(&s, RSI, s.down ? v->gpr[RSI] - step : v->gpr[RSI] + step);
        if (s.has_dst)
            set_register(&s, RDI, s.down ? v->gpr[RDI] - step : v->gpr[RDI] + step);
        count -= done;
        budget -= done;
        if (s.repeat)
            set_register(&s, RCX, count);
        if (compares && found(&s))
            break;
        if (count && (!budget || code_hit || cpu_event_due(v))) {
            /* An interrupt between iterations pushes RF = 1 (SDM vol. 3, 17.3.1.1). */
            if (cpu_debug_active(v))
                v->rflags |= FL_RF;
            return CPU_REPEAT;
        }
    }
    if (!code_hit)
        return CPU_NEXT;
    v->rip += in->len;
    return CPU_JUMP;
}
