/*
 * Light callouts: the instructions a kernel calls out for all the time.
 *
 * The light stub (stubs.c) keeps the registers that C preserves where they are and asks
 * bt_light_callout().  Most instructions then go the way of every callout, but for those registers:
 * v->gpr[] has only what the instruction reads of them, and it may write none.  Some have a short
 * cut besides, which does the common case and nothing else: no event pending, nothing watched, a
 * string operation on plain RAM, SYSCALL, SYSRET, INT and IRET of 64-bit code.
 * Of 16- and 32-bit code only MOVS and STOS (32-bit C libraries copy by them, and boot loaders), and
 * only with what is in the soft TLB: that changes no window.
 * Whatever a short cut declines it has not touched, but for repeated string instructions: they are at a
 * later element then.
 */
#include "translator/bt.h"

#include "cpu/exception.h"
#include "cpu/host_time.h"
#include "cpu/segment.h"
#include "cpu/system.h"
#include "translator/callouts.h"
#include "translator/host_string.h"

/* Is there a short cut below? */
static bool has_short_cut(const struct insn *in, bool legacy)
{
    if (legacy)
        return (in->op == OP_MOVS || in->op == OP_STOS) && in->addr_size == 4 &&
               !(in->flags & INSN_REPNE);
    switch (in->op) {
    case OP_MOVS:
    case OP_STOS: {
        unsigned seg = in->op == OP_STOS ? SEG_ES : in->mem.seg;
        return in->addr_size == 8 && seg != SEG_FS && seg != SEG_GS && !(in->flags & INSN_REPNE);
    }
    case OP_SYSRET:
        return in->op_size == 8;
    case OP_SYSCALL:
    case OP_CLAC:
    case OP_INT:
    case OP_IRET:
        return true;
    default:
        return false;
    }
}

/* Can the rules of cpu/ be applied with the light stub's registers left alone?  A task switch, which
 * loads all of them, is possible outside IA-32e mode only. */
static bool leaves_kept_registers(const struct insn *in, bool legacy)
{
    if (in->gpr_written & BT_LIGHT_KEPT)
        return false;
    switch (in->op) {
    case OP_INT:
    case OP_INT3:
    case OP_IRET:
        return !legacy;
    case OP_MOVS: case OP_STOS: case OP_LODS: case OP_CMPS: case OP_SCAS:
    case OP_PUSHF: case OP_POPF: case OP_CLI: case OP_STI: case OP_STAC: case OP_CLAC:
    case OP_IN: case OP_OUT: case OP_RDMSR: case OP_WRMSR: case OP_RDTSC: case OP_RDTSCP:
    case OP_MOV_FROM_CR: case OP_MOV_TO_CR: case OP_MOV_FROM_DR: case OP_MOV_TO_DR: case OP_CLTS:
    case OP_INVLPG: case OP_INVPCID: case OP_MOV_TO_SEG: case OP_SWAPGS: case OP_XGETBV:
    case OP_RDFSBASE: case OP_RDGSBASE: case OP_WRFSBASE: case OP_WRGSBASE:
    case OP_FAULT_DE: case OP_FAULT_NM: case OP_INVALID: case OP_UD:
        return true;
    default:
        return false;
    }
}

uint8_t bt_light_kind(const struct insn *in, bool legacy)
{
    return (has_short_cut(in, legacy) ? LIGHT_SHORT_CUT : 0) |
           (leaves_kept_registers(in, legacy) ? LIGHT_RULES : 0);
}

/* Bytes from gva to the end of its page. */
static uint64_t room_at(uint64_t gva)
{
    return GUEST_PAGE_SIZE - (gva & (GUEST_PAGE_SIZE - 1));
}

/* For a stream of pages if there is one. */
static inline int translate(struct vcpu *v, uint64_t gva, unsigned access, struct mmu_near *near,
                            void **host)
{
    uint64_t gpa;

    return near ? mmu_translate_near(v, gva, access, near, host, &gpa)
                : mmu_translate(v, gva, access, false, host, &gpa);
}

/* A few bytes, one after the other: the host's REP takes longer to get going than this takes. */
static void copy_bytes(uint8_t *dst, const uint8_t *src, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        *(volatile uint8_t *)(dst + i) = *(const volatile uint8_t *)(src + i);
}

/* Page by page, as far as they are plain RAM.  What is left is the long way's: the registers say where
 * it begins. */
static bool string(struct vcpu *v, const struct callout *c)
{
    const struct insn *in = &c->insn;
    bool repeat = in->flags & INSN_REP, movs = in->op == OP_MOVS;
    uint64_t left = repeat ? v->gpr[RCX] : 1;
    unsigned shift = (unsigned)__builtin_ctz(in->op_size);
    struct mmu_near near[2], *from = NULL, *to = NULL;
    void *src = NULL, *dst;

    if (!left || (v->bt.hflags & FL_DF) || !c->resume || c->tb->dead)
        return false;
    if (left > MMU_NEAR_BYTES >> shift) {
        near[0] = near[1] = (struct mmu_near){0};
        from = &near[0];
        to = &near[1];
    }
    for (;;) {
        uint64_t room = room_at(v->gpr[RDI]), n, bytes;
        if (movs && room_at(v->gpr[RSI]) < room)
            room = room_at(v->gpr[RSI]);
        n = room >> shift < left ? room >> shift : left;
        if (!n || (movs && translate(v, v->gpr[RSI], MMU_READ, from, &src) != MMU_RAM) ||
            translate(v, v->gpr[RDI], MMU_WRITE, to, &dst) != MMU_RAM)
            return false;
        if (movs && in->op_size == 1 && n <= 16)
            copy_bytes(dst, src, n);
        else if (movs)
            host_movs(in->op_size, dst, src, n);
        else
            host_stos(in->op_size, dst, v->gpr[RAX], n);
        left -= n;
        bytes = n << shift;
        v->gpr[RDI] += bytes;
        if (movs)
            v->gpr[RSI] += bytes;
        if (repeat)
            v->gpr[RCX] = left;
        if (!left)
            break;
        if (cpu_event_due(v))
            return false;
    }
    v->bt.resume_target = c->resume;
    return true;
}

/* The host's address of `size` bytes at offset `a` of a flat segment; NULL if it is not that easy. */
static void *in_tlb(struct vcpu *v, unsigned seg, uint32_t a, unsigned size, bool write)
{
    const struct soft_tlb_entry *e = mmu_stlb_slot(v, a, v->cpl == 3);
    unsigned offset = a & (GUEST_PAGE_SIZE - 1);

    if ((write ? e->wtag : e->rtag) != a - offset || offset + size > GUEST_PAGE_SIZE ||
        !cpu_segment_flat(v, seg))
        return NULL;
    return (void *)(uintptr_t)(e->host + offset);
}

/* REP MOVSD of a few elements, each read after the one before has been written: the host's REP takes
 * longer to get going than this takes. */
static void copy_short(uint32_t *dst, const uint32_t *src, unsigned n)
{
    typedef volatile uint32_t __attribute__((aligned(1), may_alias)) any_u32;

    for (unsigned i = 0; i < n; i++)
        *(any_u32 *)(dst + i) = *(const any_u32 *)(src + i);
}

/* MOVS or STOS of 16- or 32-bit code. */
static bool legacy_string(struct vcpu *v, const struct callout *c)
{
    const struct insn *in = &c->insn;
    bool repeat = in->flags & INSN_REP, movs = in->op == OP_MOVS;
    uint64_t n = repeat ? (uint32_t)v->gpr[RCX] : 1;
    unsigned size = in->op_size;
    const void *src = NULL;
    void *dst;

    if (n - 1 >= GUEST_PAGE_SIZE || (v->bt.hflags & FL_DF) || !c->resume || c->tb->dead)
        return false;
    unsigned bytes = (unsigned)n * size;
    if (movs && !(src = in_tlb(v, in->mem.seg, (uint32_t)v->gpr[RSI], bytes, false)))
        return false;
    dst = in_tlb(v, SEG_ES, (uint32_t)v->gpr[RDI], bytes, true);
    if (!dst)
        return false;
    v->gpr[RDI] = (uint32_t)(v->gpr[RDI] + bytes);
    if (movs)
        v->gpr[RSI] = (uint32_t)(v->gpr[RSI] + bytes);
    if (repeat)
        v->gpr[RCX] = 0;
    if (!movs)
        host_stos(size, dst, v->gpr[RAX], n);
    else if (size == 4 && n <= 16)
        copy_short(dst, src, (unsigned)n);
    else
        host_movs(size, dst, src, n);
    v->bt.resume_target = c->resume;
    return true;
}

static bool system_call(struct vcpu *v, const struct callout *c)
{
    struct bt_engine *bt = v->engine->bt;
    enum cpu_result r;

    /* SYSRET may turn on what has to be dealt with at once: interrupts, TF, alignment checks. */
    if (c->insn.op == OP_SYSRET && (v->events || (v->gpr[R11] & (FL_TF | FL_AC))))
        return false;
    v->rflags = (v->rflags & ~(uint64_t)FL_HOST) | (v->bt.hflags & FL_HOST);
    v->rip = c->rip;
    if (c->insn.op == OP_SYSCALL)
        r = cpu_syscall(v, c->rip + c->insn.len);
    else
        r = cpu_sysret(v, 8);
    if (r != CPU_JUMP)
        return false;
    v->bt.hflags = (v->rflags & FL_HOST) | FL_FIXED1 | FL_IF;
    v->bt.r10 = v->rip;
    system_calls_update(v); /* the next one may do without us */
    v->bt.resume_target = bt_jump_cache_valid(v)
                              ? v->jump_cache[v->cpl == 3 ? 0 : 1][jump_cache_index(bt, v->bt.r10, false)]
                              : bt->stub_lookup;
    return true;
}

/* INT n and IRET of 64-bit code.  If they fault, all that has changed is that an IRET has ended the
 * blocking of NMIs, which it does anyway. */
static enum light_result transfer(struct vcpu *v, const struct callout *c)
{
    uint64_t next = c->rip + c->insn.len;

    v->rflags = (v->rflags & ~(uint64_t)FL_HOST) | (v->bt.hflags & FL_HOST);
    v->rip = c->rip;
    if ((c->insn.op == OP_INT ? cpu_int_n(v, (uint8_t)c->insn.imm, next)
                              : cpu_iret(v, c->insn.op_size, next)) != CPU_JUMP)
        return LIGHT_DECLINED;
    if (!bt_left_long64(v, c) && bt_resume_short(v))
        return LIGHT_RESUME;
    v->bt.hflags = (v->rflags & FL_HOST) | FL_FIXED1 | FL_IF;
    v->bt.exit_reason = EXIT_CALLOUT;
    v->bt.exit_arg = CPU_JUMP;
    return LIGHT_LEAVE;
}

static enum light_result short_cut(struct vcpu *v, const struct callout *c)
{
    struct engine_vcpu *ev = v->engine;
    struct bt_engine *bt = ev->bt;
    uint64_t *count = &bt->stats.callouts[c->insn.op];
    enum light_result r;
    bool done = false;

    /* An inline STI casts a shadow that nobody sees end, but its place is known. */
    if (v->interrupt_shadow && v->bt.shadow_rip != c->rip)
        v->interrupt_shadow = 0;
    if (v->interrupt_shadow || v->fp_saved || ev->watch || (v->rflags & FL_TF) ||
        (v->dr[7] & DR7_ENABLES) || bt->cfg.trace_mask)
        return LIGHT_DECLINED;
    if (bt->cfg.chaos && (++ev->chaos_light & 1))
        return LIGHT_DECLINED;
    if (!vcpu_long64(v)) {
        done = (c->insn.op == OP_MOVS || c->insn.op == OP_STOS) && legacy_string(v, c);
        *count += done;
        return done ? LIGHT_RESUME : LIGHT_DECLINED;
    }
    switch (c->insn.op) {
    case OP_MOVS:
    case OP_STOS:
        done = string(v, c);
        break;
    case OP_CLAC:
        done = c->resume && !c->tb->dead && cpu_clac(v) == CPU_NEXT;
        v->bt.resume_target = c->resume;
        break;
    case OP_INT:
    case OP_IRET:
        r = transfer(v, c);
        *count += r != LIGHT_DECLINED;
        return r;
    default:
        done = !bt->cfg.chaos && system_call(v, c);
    }
    *count += done;
    return done ? LIGHT_RESUME : LIGHT_DECLINED;
}

uint64_t bt_light_callout(struct vcpu *v, struct callout *c)
{
    enum host_cause was = host_time_switch(v, HOST_CALLOUT);
    enum light_result r = LIGHT_DECLINED;

    if (c->heat > 1) {
        c->heat--;
    } else if (c->heat == 1) { /* bt_callout() sees to it, with all registers in v */
        host_time_switch(v, was);
        return LIGHT_DECLINED;
    }
    if (c->light & LIGHT_SHORT_CUT)
        r = short_cut(v, c);
    if (r == LIGHT_DECLINED && (c->light & LIGHT_RULES) && !v->engine->bt->cfg.trace_mask) /* traces show registers */
        r = bt_callout_light(v, c) ? LIGHT_LEAVE : LIGHT_RESUME;
    if (r == LIGHT_RESUME)
        stack_use(v);
    host_time_switch(v, was);
    return r;
}
