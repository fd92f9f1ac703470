/*
 * The block translator: one rule per kind of instruction.
 *
 * A block is a run of instructions on one guest page up to a control transfer, an instruction that
 * may change what translation depends on, the page's end, or TB_MAX_INSNS.  An instruction that
 * straddles two pages is a block of its own.  In the second tier it is a trace: it goes on behind
 * direct jumps within the page, along the side of a condition that has been executed before, until
 * it meets itself or, once it has some length, another trace.  What is known of registers then holds
 * across jumps, and the code of a path lies in one piece.
 *
 *     decode     until the block ends
 *     liveness   which arithmetic flags are live before each instruction (backward)
 *     emit       one rule each (emit_insn); slow paths and exit stubs after the main path
 *
 * Leaving a block: a direct jump within the page is a patchable link (valid as long as both blocks
 * live, because whoever runs the first has the page mapped), in the second tier also one to another
 * page (far_links.c); everything else goes through the jump cache with R10 = target, whose entries
 * follow TLB flushes.
 */
#include "translator/lower.h"

#include <string.h>
#include <time.h>

#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "mmu/mmu.h"
#include "runtime/trace.h"
#include "translator/reencode.h"

#define BT_OFF(f) VCPU_OFF(bt.f)

/* -- What ends a block ---------------------------------------------------------------------------- */

enum insn_rule rule_of(const struct insn *in, uint32_t key)
{
    bool cpl0 = !(key & (KEY_USER | KEY_CPL_MASK)) && !(key & KEY_ONE_INSN);
    bool user64 = (key & KEY_USER) && !(key & (KEY_LEGACY | KEY_ONE_INSN));
    switch (in->op) {
    /* The hot ones of a kernel's entry, exit and locking paths have an inline form at CPL 0. */
    case OP_CLI: case OP_SWAPGS: case OP_STAC: case OP_CLAC:
        return cpl0 ? RULE_NATIVE : RULE_CALLOUT;
    case OP_PUSHF: /* outside 64-bit mode CPL 3 may be virtual-8086 mode */
        return cpl0 || user64 ? RULE_NATIVE : RULE_CALLOUT;
    case OP_POPF:
        return cpl0 || user64 ? RULE_NATIVE : RULE_CALLOUT_END;
    case OP_CLTS: /* which is part of the key */
        return cpl0 && !(key & KEY_SSE_NM) ? RULE_NATIVE : RULE_CALLOUT_END;
    case OP_RDMSR:
        return cpl0 && !(key & KEY_LEGACY) ? RULE_NATIVE : RULE_CALLOUT;
    case OP_WRMSR:
        return cpl0 && !(key & KEY_LEGACY) ? RULE_NATIVE : RULE_CALLOUT_END;
    case OP_MOV_FROM_CR: /* not CR8, and what is #UD */
        return cpl0 && in->reg <= 4 && in->reg != 1 ? RULE_NATIVE : RULE_CALLOUT;
    case OP_WRFSBASE: case OP_WRGSBASE:
        return cpl0 && (key & KEY_FSGSBASE) ? RULE_NATIVE : RULE_CALLOUT;
    case OP_STI:
        return cpl0 ? RULE_NATIVE : RULE_CALLOUT_END;
    case OP_RDFSBASE: case OP_RDGSBASE:
        return key & KEY_FSGSBASE ? RULE_NATIVE : RULE_CALLOUT;
    case OP_MOV_FROM_SEG:
        return in->mod == 3 ? RULE_NATIVE : RULE_CALLOUT;
    case OP_COPY: case OP_NOP: case OP_LEA: case OP_MOV_MOFFS: case OP_PUSH: case OP_POP:
    case OP_LEAVE: case OP_BT_MEM_REG: case OP_XLAT: case OP_MASKMOV:
    case OP_FXSAVE: case OP_FXRSTOR: case OP_XSAVE: case OP_XSAVEC: case OP_XSAVEOPT:
    case OP_XRSTOR: case OP_FNSAVE: case OP_FRSTOR: case OP_FNSTENV: case OP_FLDENV:
    case OP_RDPID:
        return RULE_NATIVE;
    case OP_RDTSC: case OP_RDTSCP:
        return key & KEY_TSC_TRAP ? RULE_CALLOUT : RULE_NATIVE;
    case OP_JMP: case OP_JCC: case OP_CALL: case OP_LOOP: case OP_LOOPE: case OP_LOOPNE:
    case OP_JRCXZ: case OP_JMP_IND: case OP_CALL_IND: case OP_RET:
        return RULE_BRANCH;
    case OP_MOVS: case OP_CMPS: case OP_STOS: case OP_LODS: case OP_SCAS: case OP_INS: case OP_OUTS:
    case OP_GATHER: case OP_SCATTER: case OP_ENTER:
    case OP_IN: case OP_OUT: case OP_CPUID: case OP_RDPMC:
    case OP_MOV_FROM_DR: case OP_SMSW: case OP_SGDT: case OP_SIDT:
    case OP_LGDT: case OP_LIDT: case OP_SLDT: case OP_STR: case OP_LAR: case OP_LSL: case OP_VERR:
    case OP_VERW: case OP_XGETBV:
    case OP_PUSH_SEG: case OP_INVD: case OP_WBINVD: case OP_PUSHA: case OP_POPA: case OP_BOUND:
    case OP_BCD: case OP_ARPL:
        return RULE_CALLOUT;
    default:
        return RULE_CALLOUT_END;
    }
}

/* -- FPU enables ---------------------------------------------------------------------------------- */

/* The exception an instruction of this FPU class raises under the key's control bits, or -1. */
static int fpu_fault(const struct insn *in, uint32_t key)
{
    bool nm = key & KEY_SSE_NM;
    switch (in->fpu) {
    case FPU_X87:
        return key & KEY_X87_NM ? EXC_NM : -1;
    case FPU_FXSR:
        return key & KEY_X87_NM ? EXC_NM : -1;
    case FPU_WAIT:
        return key & KEY_WAIT_NM ? EXC_NM : -1;
    case FPU_MMX:
        return key & KEY_MMX_UD ? EXC_UD : nm ? EXC_NM : -1;
    case FPU_SSE:
        return key & KEY_SSE_UD ? EXC_UD : nm ? EXC_NM : -1;
    case FPU_AVX:
        return key & KEY_AVX_UD ? EXC_UD : nm ? EXC_NM : -1;
    case FPU_AVX512:
        return key & KEY_AVX512_UD ? EXC_UD : nm ? EXC_NM : -1;
    case FPU_XSAVE:
        return key & KEY_XSAVE_UD ? EXC_UD : nm ? EXC_NM : -1;
    default:
        return -1;
    }
}

/* -- Decoding ------------------------------------------------------------------------------------- */

/* Copies guest code: at most 15 bytes from `gpa`, continuing at gpa2 (page) past the page's end. */
static unsigned fetch(const struct bt_engine *bt, uint64_t gpa, uint64_t gpa2, uint8_t *buf)
{
    unsigned left = GUEST_PAGE_SIZE - (unsigned)(gpa & (GUEST_PAGE_SIZE - 1));
    unsigned n = left < 15 ? left : 15;
    const volatile uint8_t *p = bt->ram->base + gpa;
    for (unsigned i = 0; i < n; i++)
        buf[i] = p[i];
    if (gpa2 != ~0ull) {
        p = bt->ram->base + gpa2;
        for (unsigned i = n; i < 15; i++)
            buf[i] = p[i - n];
        n = 15;
    }
    return n;
}

static bool ends_block(const struct insn *in, uint32_t key)
{
    enum insn_rule r = rule_of(in, key);
    return r == RULE_BRANCH || r == RULE_CALLOUT_END || fpu_fault(in, key) >= 0;
}

/*
 * Flags possibly read at `gva` before they are overwritten, looking a few instructions ahead on
 * the same page. Unknown counts as live.
 */
static uint32_t peek_live(struct xlate *x, uint64_t gva)
{
    uint64_t page = x->tb->gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    uint32_t open = FL_ARITH, live = 0;
    if ((gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) != page || x->tb->gpa2 != ~0ull)
        return FL_ARITH;
    uint64_t gpa = (x->tb->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) + (gva - page);
    for (int i = 0; i < 8 && open; i++) {
        struct insn in;
        uint8_t buf[15];
        uint16_t lo = gpa & (GUEST_PAGE_SIZE - 1), hi = lo + 15;
        if (x->tb->peek_lo >= x->tb->peek_hi || lo < x->tb->peek_lo)
            x->tb->peek_lo = lo;
        if (hi > x->tb->peek_hi)
            x->tb->peek_hi = hi;
        if (gpa >> GUEST_PAGE_SHIFT != x->tb->gpa >> GUEST_PAGE_SHIFT)
            break;
        int len = insn_decode(&in, buf, fetch(x->bt, gpa, ~0ull, buf), key_mode(x->key));
        if (len <= 0 || in.op == OP_INVALID)
            break;
        live |= open & in.flags_read;
        if (!(in.flags & INSN_FLAGS_COND))
            open &= ~(uint32_t)in.flags_written;
        if (in.op == OP_JMP && (in.op_size > 2)) {
            uint64_t next = gpa + (unsigned)len + (uint64_t)in.imm;
            if (next >> GUEST_PAGE_SHIFT != gpa >> GUEST_PAGE_SHIFT)
                break;
            gpa = next;
            continue;
        }
        if (ends_block(&in, x->key))
            break;
        gpa += (unsigned)len;
    }
    return live | open;
}

/* The linear address of an offset in CS. */
static uint64_t linear_of(const struct xlate *x, uint64_t rip)
{
    return is_legacy(x) ? (uint32_t)(rip + (uint32_t)x->tb->cs) : rip;
}

/* An instruction pointer as an operand size of 2, 4 or 8 leaves it. */
static uint64_t truncate_rip(const struct insn *in, uint64_t rip)
{
    return in->op_size == 2 ? (uint16_t)rip : in->op_size == 4 ? (uint32_t)rip : rip;
}

/* Where a relative branch at the instruction before `next` goes: a linear address. */
static uint64_t branch_target(const struct xlate *x, const struct insn *in, uint64_t next)
{
    return linear_of(x, truncate_rip(in, next + (uint64_t)in->imm));
}

static uint32_t live_out(struct xlate *x)
{
    const struct insn *in = &x->insn[x->n - 1];
    uint64_t rip = x->rip[x->n - 1] + in->len, next = linear_of(x, rip);
    if (fpu_fault(in, x->key) >= 0 || (x->key & KEY_ONE_INSN)) /* a trap may show them */
        return FL_ARITH;
    switch (in->op) {
    case OP_JMP: case OP_CALL:
        return peek_live(x, branch_target(x, in, rip));
    case OP_JCC: case OP_LOOP: case OP_LOOPE: case OP_LOOPNE: case OP_JRCXZ: {
        uint32_t l = peek_live(x, next);
        return l == FL_ARITH ? l : l | peek_live(x, branch_target(x, in, rip));
    }
    default:
        return rule_of(in, x->key) == RULE_NATIVE ? peek_live(x, next) : FL_ARITH;
    }
}

/* Is instruction i a DIV or IDIV that is to look at its divisor first?  Not by AH to BH, which no
 * instruction with a REX prefix can read. */
static bool divisor_checked(const struct xlate *x, const struct insn *in, unsigned i)
{
    return (x->tb->check_divisor >> i & 1) && in->op == OP_COPY && in->enc == ENC_LEGACY &&
           in->map == MAP_ONE && (in->opcode & 0xfe) == 0xf6 && (in->modrm >> 3 & 7) >= 6 &&
           !(in->flags & INSN_HIGH8);
}

static void compute_liveness(struct xlate *x)
{
    uint32_t live = live_out(x);
    x->live[x->n] = live;
    for (unsigned i = x->n; i-- > 0;) {
        const struct insn *in = &x->insn[i];
        enum insn_rule r = rule_of(in, x->key);
        uint64_t rip = x->rip[i] + in->len;
        if (x->follow[i] >= FOLLOW_THUNK)
            live = FL_ARITH; /* the callee may be another by then */
        else if (x->follow[i] && in->op == OP_JCC) /* live where the trace is left, too */
            live |= peek_live(x, x->follow[i] == FOLLOW_NEXT ? branch_target(x, in, rip)
                                                             : linear_of(x, rip));
        if (r == RULE_CALLOUT || r == RULE_CALLOUT_END || in->op == OP_INVALID)
            live = FL_ARITH;
        else if (divisor_checked(x, in, i)) /* its fault shows them */
            live = FL_ARITH;
        else if (in->op == OP_POPF) /* C code may be asked for the whole of it, or fault */
            live = FL_ARITH;
        else if (!(in->flags & INSN_FLAGS_COND))
            live &= ~(uint32_t)in->flags_written;
        live |= in->flags_read & FL_ARITH;
        x->live[i] = live;
    }
}

/* -- Leaving the block ---------------------------------------------------------------------------- */

static uint32_t jump_cache_off(const struct xlate *x)
{
    unsigned sup = x->key & KEY_USER ? 0 : 1;
    return STATE_OFF(offsetof(struct vcpu, jump_cache) + sup * JUMP_CACHE_SIZE * 8);
}

/* R10 = target: through the jump cache. */
static void jump_indirect(struct xlate *x, bool is_return)
{
    struct emitter *e = &x->e;
    if (x->key & KEY_ONE_INSN) {
        e_jmp(e, x->bt->stub_stepped);
        return;
    }
    if (x->bt->cfg.trace_mask & TRACE_ENTER) { /* tracing wants to see every block */
        e_jmp(e, x->bt->stub_lookup);
        return;
    }
    if (x->bt->bmi2 && !is_legacy(x) && !(is_return && return_cache_used(x->key))) {
        e_rorx(e, R11, R10, JUMP_CACHE_ROT);
        e_lea(e, R11, R11, R10, 1, 0);
        e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xdb}, 4); /* movzx r11d, r11w */
    } else {
        e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xda}, 4); /* movzx r11d, r10w */
    }
    e_bytes(e, (const uint8_t[]){0x65, 0x42, 0xff, 0x24, 0xdd}, 5); /* jmp gs:[r11*8 + off] */
    e32(e, jump_cache_off(x));
}

/* Can a direct jump leave by a link at all? */
static bool can_link(const struct xlate *x)
{
    /* A block that starts with an instruction across the page's end depends on two mappings. */
    return x->tb->gpa2 == ~0ull && !(x->key & KEY_ONE_INSN) &&
           !(x->bt->cfg.trace_mask & TRACE_ENTER);
}

static bool same_page(const struct xlate *x, uint64_t target)
{
    return (target ^ x->tb->gva) < GUEST_PAGE_SIZE &&
           (target & (GUEST_PAGE_SIZE - 1)) <= GUEST_PAGE_SIZE - 15 && can_link(x);
}

/* Another page: links pay where code is hot. */
static bool far_page(const struct xlate *x, uint64_t target)
{
    return x->trace && (target ^ x->tb->gva) >= GUEST_PAGE_SIZE && can_link(x);
}

static bool linkable(const struct xlate *x, uint64_t target)
{
    return same_page(x, target) || far_page(x, target);
}

/* R10 = target, known: through its place in the jump cache. */
static void jump_by_cache(struct xlate *x, uint64_t target)
{
    struct emitter *e = &x->e;
    e_mov_gva(e, R10, target, RELOC_GVA);
    e_bytes(e, (const uint8_t[]){0x65, 0xff, 0x24, 0x25}, 4); /* jmp gs:[off] */
    e_reloc(e, RELOC_PLACE, 0);
    e32(e, jump_cache_off(x) + jump_cache_index(x->bt, target, is_legacy(x)) * 8);
}

static void jump_unlinked(struct xlate *x, uint64_t target)
{
    struct emitter *e = &x->e;
    if (x->key & KEY_ONE_INSN) {
        e_mov_imm(e, R10, target);
        e_jmp(e, x->bt->stub_stepped);
    } else if (x->bt->cfg.trace_mask & TRACE_ENTER) {
        e_mov_imm(e, R10, target);
        e_jmp(e, x->bt->stub_lookup);
    } else {
        jump_by_cache(x, target);
    }
}

/* A patchable `jmp rel32` or `jcc rel32` (cc < 16) whose rel32 is within an aligned quadword, so that
 * patching it is one atomic store. The exit stub is emitted by finish_links(). */
static void jump_link(struct xlate *x, int cc, uint64_t target)
{
    struct emitter *e = &x->e;
    if (x->n_links == TB_MAX_LINKS) {
        x->failed = true;
        return;
    }
    unsigned opc = cc < 0 ? 1 : 2, place = (emit_here(e) + opc) % 8;
    e_nops(e, place > 4 ? 8 - place : 0);
    if (cc < 0) {
        e8(e, 0xe9);
    } else {
        e8(e, 0x0f);
        e8(e, (uint8_t)(0x80 | cc));
    }
    x->link[x->n_links++] = (struct pending_link){
        .target = target, .patch = e->p, .patch_x = (uint32_t)emit_here(e), .known = ahead_known(x)};
    e32(e, 0);
}

static void finish_links(struct xlate *x)
{
    struct emitter *e = &x->e;
    unsigned n_far = 0;
    for (unsigned i = 0; i < x->n_links; i++)
        n_far += far_page(x, x->link[i].target);
    struct link *near = cache_meta_alloc(x->r, (x->n_links - n_far) * (uint32_t)sizeof *near);
    struct far_link *far = cache_meta_alloc(x->r, n_far * (uint32_t)sizeof *far);
    x->tb->n_out = x->tb->n_far = 0;
    if (!near || !far) {
        x->failed = true;
        return;
    }
    x->tb->out = near;
    x->tb->far = far;
    for (unsigned i = 0; i < x->n_links && !e->overflow; i++) {
        const struct pending_link *p = &x->link[i];
        struct link *l = &near[x->tb->n_out];
        bool is_far = far_page(x, p->target);
        if (is_far) {
            struct far_link *f = &far[x->tb->n_far++];
            *f = (struct far_link){.closed = (uint32_t)emit_here(e)};
            l = &f->link;
            jump_by_cache(x, p->target);
        } else {
            x->tb->n_out++;
        }
        *l = (struct link){.from = x->tb, .target = p->target, .patch_x = p->patch_x,
                           .stub = (uint32_t)emit_here(e), .inlined = p->inlined,
                           .thunk = p->thunk, .known = p->known};
        uint32_t rel = l->stub - (l->patch_x + 4);
        memcpy(p->patch, &rel, 4);
        e_mov_meta(e, R10, l, RELOC_META);
        e_jmp(e, x->bt->stub_exit_link);
    }
}

static void jump_to(struct xlate *x, uint64_t target)
{
    if (linkable(x, target))
        jump_link(x, -1, target);
    else
        jump_unlinked(x, target);
}

static void jump_cond(struct xlate *x, unsigned cc, uint64_t taken, uint64_t fall)
{
    struct emitter *e = &x->e;
    if (linkable(x, taken)) {
        jump_link(x, (int)cc, taken);
        jump_to(x, fall);
    } else {
        uint8_t *f = e_jcc_fwd(e, cc);
        jump_to(x, fall);
        e_fix_here(e, f);
        jump_unlinked(x, taken);
    }
}

/* If the condition holds to `target`, else on in the trace. */
static void leave_trace(struct xlate *x, unsigned cc, uint64_t target)
{
    struct emitter *e = &x->e;
    if (linkable(x, target)) {
        jump_link(x, (int)cc, target);
        return;
    }
    uint8_t *stay = e_jcc_fwd(e, cc ^ 1);
    jump_unlinked(x, target);
    e_fix_here(e, stay);
}

/* -- Callouts ------------------------------------------------------------------------------------- */

static uint32_t callout_stub(const struct xlate *x, const struct callout *c)
{
    const struct bt_engine *bt = x->bt;
    if (!c->light)
        return bt->stub_callout;
    if (!(x->key & (KEY_LEGACY | KEY_SLOW_MEM))) {
        if (c->insn.op == OP_SYSCALL && (x->key & KEY_USER))
            return bt->stub_syscall;
        if (c->insn.op == OP_SYSRET && c->insn.op_size == 8 && !(x->key & KEY_CPL_MASK))
            return bt->stub_sysret;
    }
    return bt->stub_light;
}

static struct callout *emit_callout(struct xlate *x, const struct insn *in, bool resume)
{
    struct emitter *e = &x->e;
    struct callout *c = cache_meta_alloc(x->r, sizeof *c);
    if (!c) {
        x->failed = true;
        return NULL;
    }
    c->heat = 0;
    c->insn = *in;
    c->rip = x->cur_rip;
    c->tb = x->tb;
    e_mov_meta(e, R10, c, RELOC_CALLOUT);
    c->light = x->key & KEY_ONE_INSN ? 0 : bt_light_kind(in, is_legacy(x));
    for (unsigned r = 0; c->light && r < 16; r++)
        if (in->gpr_read & BT_LIGHT_KEPT & (1u << r))
            e_store_gs(e, GPR_OFF(r), r);
    e_jmp(e, callout_stub(x, c));
    c->resume = resume ? (uint32_t)emit_here(e) : 0;
    return c;
}

/* An instruction that only raises an exception. */
static void emit_raise(struct xlate *x, const struct insn *in, unsigned vector)
{
    struct insn fault = *in;
    fault.op = vector == EXC_NM ? OP_FAULT_NM : vector == EXC_GP ? OP_FAULT_GP : OP_INVALID;
    if (vector == EXC_UD)
        fault.imm = 0;
    emit_callout(x, &fault, false);
}

/* -- Moving the stack pointer ----------------------------------------------------------------------- */

static unsigned stack_addr_size(const struct xlate *x)
{
    return !is_legacy(x) ? 8 : x->key & KEY_STACK16 ? 2 : 4;
}

/* Stack pointer = base + n, in the width that the stack segment gives it. */
static void set_rsp(struct xlate *x, unsigned base, int32_t n)
{
    unsigned width = stack_addr_size(x);
    if (width == 2)
        e8(&x->e, 0x66);
    e_op_mem(&x->e, width == 8, 0x8d, RSP, base, 0xff, 1, n);
    x->esp_off = 0;
}

static void add_rsp(struct xlate *x, int32_t n)
{
    if (x->native_stack)
        stack_move(x, n);
    else if (x->defer)
        x->esp_off += n;
    else
        set_rsp(x, RSP, n);
}

/* Is this instruction pointer past the limit of CS? A branch there is #GP(0) of the branch, before it
 * has changed a register (SDM vol. 2, JMP, CALL, RET). */
static bool past_limit(const struct xlate *x, uint64_t rip)
{
    return is_legacy(x) && rip > x->tb->cs >> 32;
}

/*
 * 32-bit code: PUSH and POP are a move and an LEA, of which the LEAs are put off: a run of pushes, pops and
 * instructions that do not mind has one at its end.  Meanwhile ESP is the host's plus xlate.esp_off, which
 * displacements take into account; the side table knows it for instructions that fault, and nobody stops
 * in between (enum side_kind, SIDE_ESP).
 */

static void settle_esp(struct xlate *x)
{
    if (x->esp_off)
        set_rsp(x, RSP, x->esp_off);
    x->esp_off = 0;
}

/* ADD or SUB ESP, imm? */
static bool moves_esp(const struct insn *in, int32_t *by)
{
    unsigned ext = in->modrm >> 3 & 7;
    if (in->op != OP_COPY || in->enc != ENC_LEGACY || in->map != MAP_ONE || in->op_size != 4 ||
        (in->opcode != 0x81 && in->opcode != 0x83) || in->mod != 3 || in->rm != RSP ||
        (ext != 0 && ext != 5))
        return false;
    *by = (int32_t)(ext ? -(uint32_t)in->imm : (uint32_t)in->imm);
    return true;
}

/* Can instruction i be done, as the rules here do it, with ESP not yet where it belongs? */
static bool may_defer(const struct xlate *x, unsigned i)
{
    const struct insn *in = &x->insn[i];
    bool mem = in->flags & INSN_MEM, plain = !mem || (in->addr_size == 4 && lower_plain_flat(x, in->mem.seg));
    int32_t by;
    if (!x->window || !is_legacy(x) || (x->key & KEY_ONE_INSN) || stack_addr_size(x) != 4 ||
        !lower_plain_flat(x, SEG_SS) || fpu_fault(in, x->key) >= 0)
        return false;
    switch (in->op) {
    case OP_NOP:
        return true;
    case OP_JMP:
        return x->follow[i];
    case OP_PUSH: case OP_POP:
        return in->op_size == 4 && (in->stack_operand == STK_REG ? in->rm != RSP
                                                                 : in->stack_operand == STK_IMM);
    case OP_CALL:
        return in->op_size == 4 &&
               !past_limit(x, (uint32_t)(x->cur_rip + in->len + (uint64_t)in->imm));
    case OP_CALL_IND:
        return in->op_size == 4 && plain && (mem || in->rm != RSP) && !past_limit(x, 0xffffffff);
    case OP_RET:
        return in->op_size == 4 && !past_limit(x, 0xffffffff);
    case OP_LEAVE:
        return in->op_size == 4;
    case OP_LEA:
        return in->addr_size == 4 && in->op_size == 4 && in->mem.base != REG_NONE && in->reg != RSP;
    case OP_COPY:
        if (moves_esp(in, &by))
            return !(x->live[i + 1] & FL_ARITH) && by % 4 == 0;
        if (divisor_checked(x, in, i) || !plain || (in->gpr_written >> RSP & 1) ||
            (in->flags & (INSN_HIGH8 | INSN_VSIB)))
            return false;
        if (!mem)
            return !(in->gpr_read >> RSP & 1);
        return !((in->flags & INSN_REG_GPR) && in->reg == RSP) &&
               !((in->flags & INSN_VVVV_GPR) && in->vvvv == RSP) &&
               !(in->mem.seg == SEG_CS && (in->flags & INSN_MEM_WRITE));
    default:
        return false;
    }
}

/* Before instruction i: puts ESP right, unless that can wait. */
static void prepare_esp(struct xlate *x, unsigned i)
{
    const struct insn *in = &x->insn[i];
    int32_t after = x->esp_off;
    x->defer = may_defer(x, i);
    after += in->op == OP_PUSH ? -4 : in->op == OP_POP ? 4 : 0;
    if (!x->defer || after > SIDE_ESP_MAX || after < -SIDE_ESP_MAX)
        settle_esp(x);
}

/* -- Memory rules --------------------------------------------------------------------------------- */

static bool live_at(const struct xlate *x, unsigned i)
{
    return x->live[i] != 0;
}

static uint8_t stack_flag(const struct insn_mem *m)
{
    return m->seg == SEG_SS ? SITE_STACK : 0;
}

static struct access copy_access(const struct xlate *x, const struct insn *in, unsigned i)
{
    struct access a = {.size = in->mem.size, .flags = stack_flag(&in->mem),
                       .flags_live = live_at(x, i)};
    if (in->flags & INSN_MEM_WRITE)
        a.kind = in->flags & INSN_MEM_READ ? MMU_WRITE | MMU_RMW : MMU_WRITE;
    if ((in->flags & (INSN_MEM_ALIGNED | INSN_MASKED)) == INSN_MEM_ALIGNED)
        a.flags |= SITE_ALIGNED;
    if (in->flags & INSN_MASKED) {
        a.flags |= SITE_MASKED;
        if (a.kind)
            a.kind = MMU_WRITE | MMU_RMW; /* the copy keeps the bytes that are not stored */
    }
    return a;
}

static void body_load_divisor(struct xlate *x, const struct insn *in, const struct access *a)
{
    if (a->size == 1)
        e_ref_op(&x->e, false, 0x8a, R11, &a->ref);
    else
        e_ref_load(&x->e, a->size, R11, &a->ref);
}

/* `opcode modrm` with R11 as r/m operand, `other` as the register one, in the instruction's size. */
static void e_with_r11(struct emitter *e, const struct insn *in, unsigned opcode, unsigned other)
{
    bool byte = !(in->opcode & 1);
    if (!byte && in->op_size == 2)
        e8(e, 0x66);
    e8(e, (uint8_t)(0x41 | (!byte && in->op_size == 8 ? 8 : 0) | (other >= 8 ? 4 : 0)));
    e8(e, (uint8_t)opcode);
    e8(e, (uint8_t)(0xc0 | (other & 7) << 3 | (R11 & 7)));
}

/*
 * DIV and IDIV that have faulted: #DE for a divisor of 0, and for DIV an overflow too, which is an
 * upper half of the dividend not below the divisor (SDM vol. 2, DIV).  Overflow of IDIV is left to
 * the host.
 */
static void rule_divide(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool byte = !(in->opcode & 1), is_signed = (in->modrm >> 3 & 7) == 7;
    struct insn fault = *in;

    if (in->flags & INSN_MEM)
        lower_mem(x, in, &in->mem, in->addr_size, 0, copy_access(x, in, i), body_load_divisor);
    else if (in->rm == R10 || in->rm == R11)
        e_load_gs(e, R11, GPR_OFF(in->rm));
    else if (in->rm == RSP && x->native_stack)
        stack_value(x, R11, 0);
    else
        e_mov_rr(e, R11, in->rm);
    x->r11_id = 0;
    e_mov_rr(e, R10, byte ? RAX : RDX);
    lower_save_flags(e);
    if (is_signed) {
        e_with_r11(e, in, byte ? 0x84 : 0x85, R11); /* test r11, r11 */
    } else {
        if (byte)
            e_bytes(e, (const uint8_t[]){0x66, 0x41, 0xc1, 0xea, 8}, 5); /* shr r10w, 8 */
        e_with_r11(e, in, byte ? 0x38 : 0x39, R10);                      /* cmp r11, r10 */
    }
    uint8_t *fine = e_jcc_fwd(e, is_signed ? CC_NE : CC_A);
    lower_restore_flags(e);
    fault.op = OP_FAULT_DE;
    emit_callout(x, &fault, false);
    e_fix_here(e, fine);
    lower_restore_flags(e);
    e_with_r11(e, in, in->opcode, in->modrm >> 3 & 7);
}

/* Is an instruction of registers, with R10 or R11 as the one in ModRM.rm, the same with eight bytes of memory
 * in place of that?  Not where 32 bits are written, which clears the others, nor where a memory operand means
 * more (BT, XCHG), or gives other undefined flags (shifts by more than 1, multiplications). */
static bool same_on_memory(const struct insn *in)
{
    unsigned op = in->opcode, ext = in->modrm >> 3 & 7;
    bool written = in->gpr_written >> in->rm & 1;
    if (in->enc != ENC_LEGACY || !(in->flags & INSN_RM_GPR) || in->mod != 3 ||
        (in->rm != R10 && in->rm != R11) || (written && in->map == MAP_ONE && in->op_size == 4 && (op & 1)) ||
        ((in->flags & INSN_REG_GPR) && (in->reg == R10 || in->reg == R11)) ||
        ((in->gpr_read | in->gpr_written) >> (in->rm ^ R10 ^ R11) & 1))
        return false;
    if (in->map == MAP_ONE)
        return (op < 0x40 && (op & 7) < 4) || op == 0x63 || op == 0x69 || op == 0x6b || op == 0x80 ||
               op == 0x81 || op == 0x83 || op == 0x84 || op == 0x85 || (op >= 0x88 && op <= 0x8b) ||
               op == 0xc6 || op == 0xc7 || op == 0xd0 || op == 0xd1 ||
               ((op == 0xf6 || op == 0xf7) && ext < 4) || ((op == 0xfe || op == 0xff) && ext < 2);
    return in->map == MAP_0F && ((op >= 0x40 && op <= 0x4f) || (op >= 0x90 && op <= 0x9f) || op == 0xaf ||
                                 op == 0xb6 || op == 0xb7 || op == 0xbe || op == 0xbf);
}

static void rule_copy(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    if (divisor_checked(x, in, i)) {
        rule_divide(x, in, i);
        return;
    }
    if (in->flags & INSN_MEM) {
        lower_mem(x, in, &in->mem, in->addr_size, 0, copy_access(x, in, i), body_copy);
        return;
    }
    int32_t by;
    if (x->defer && moves_esp(in, &by)) {
        x->esp_off = (int32_t)((uint32_t)x->esp_off + (uint32_t)by);
        x->r11_kept = true;
        if (x->esp_off > SIDE_ESP_MAX || x->esp_off < -SIDE_ESP_MAX)
            settle_esp(x);
        return;
    }
    if (is_legacy(x) && in->enc == ENC_LEGACY) {
        x->r11_kept = true;
        if (in->map == MAP_ONE && in->opcode >= 0x40 && in->opcode <= 0x4f) {
            /* The short forms of INC and DEC are REX prefixes to the host. */
            if (in->op_size == 2)
                e8(e, 0x66);
            e8(e, 0xff);
            e8(e, (uint8_t)(0xc0 | (in->opcode & 0xf)));
        } else {
            reencode_plain(e, in);
        }
        return;
    }
    if (is_legacy(x) && in->enc == ENC_VEX && in->map == MAP_0F && in->opcode == 0x77) {
        /* VZEROUPPER, VZEROALL: of the eight registers there are (SDM vol. 2). */
        for (unsigned r = 0; r < 8; r++) {
            if (in->vec_len == 32) /* vpxor xmm, xmm, xmm */
                e_bytes(e, (const uint8_t[]){0xc5, (uint8_t)(0x81 | (~r & 15) << 3), 0xef,
                                             (uint8_t)(0xc0 | r << 3 | r)}, 4);
            else /* vmovaps xmm, xmm */
                e_bytes(e, (const uint8_t[]){0xc5, 0xf8, 0x28, (uint8_t)(0xc0 | r << 3 | r)}, 4);
        }
        return;
    }
    if (x->native_stack && ((in->gpr_read | in->gpr_written) >> RSP & 1)) {
        stack_copy(x, in, !(x->live[i + 1] & in->flags_written));
        return;
    }
    if (same_on_memory(in)) {
        reencode_state(e, in, GPR_OFF(in->rm));
        x->r11_kept = true;
        return;
    }
    /* Registers only: verbatim, around the two registers that live in memory. */
    x->r11_kept = !((in->gpr_read | in->gpr_written) >> R11 & 1);
    uint16_t scratch = (1u << R10) | (1u << R11);
    for (unsigned r = R10; r <= R11; r++)
        if (in->gpr_read & scratch & (1u << r))
            e_load_gs(e, r, GPR_OFF(r));
    e_bytes(e, in->raw, in->len);
    for (unsigned r = R10; r <= R11; r++)
        if (in->gpr_written & scratch & (1u << r))
            e_store_gs(e, GPR_OFF(r), r);
}

void lower_write_gpr(struct xlate *x, unsigned reg, unsigned src, unsigned size)
{
    struct emitter *e = &x->e;
    bool mem = reg == R10 || reg == R11;
    if (reg == RSP && x->native_stack) {
        if (size == 2) {
            unsigned rsp = src == R10 ? R11 : R10;
            stack_value(x, rsp, 0);
            e_bytes(e, (const uint8_t[]){0x66, 0x45, 0x89, (uint8_t)(0xc0 | (src & 7) << 3 | (rsp & 7))}, 4);
            src = rsp;
        } else if (size == 4) {
            e_mov32_rr(e, src, src);
        }
        if (src != R10)
            e_mov_rr(e, R10, src);
        stack_set(x);
    } else if (mem) {
        if (size == 2) {
            e8(e, 0x66);
            e_gs_abs(e, false, 0x89, src, GPR_OFF(reg));
        } else {
            if (size == 4)
                e_mov32_rr(e, src, src);
            e_store_gs(e, GPR_OFF(reg), src);
        }
    } else if (size == 8) {
        e_mov_rr(e, reg, src);
    } else {
        if (size == 2)
            e8(e, 0x66);
        unsigned rex = 0x40 | (src >= 8 ? 4 : 0) | (reg >= 8 ? 1 : 0);
        e8(e, (uint8_t)rex);
        e8(e, 0x89);
        e8(e, (uint8_t)(0xc0 | ((src & 7) << 3) | (reg & 7)));
    }
}

static bool lives_in_memory(unsigned reg)
{
    return reg == R10 || reg == R11;
}

/* LEA of a sum with R10 or R11 in it to another register: as it is, with that in a scratch register. */
static bool lea_of_away(struct xlate *x, const struct insn *in)
{
    struct emitter *e = &x->e;
    unsigned base = in->mem.base, index = in->mem.index;
    if (in->addr_size != 8 || in->op_size < 4 || in->mem.disp != (int32_t)in->mem.disp ||
        base >= 16 || lives_in_memory(in->reg) || lives_in_memory(base) == lives_in_memory(index))
        return false;
    e_load_gs(e, R10, GPR_OFF(lives_in_memory(base) ? base : index));
    if (lives_in_memory(base))
        base = R10;
    else
        index = R10;
    if (in->op_size == 4)
        e_lea32(e, in->reg, base, index, in->mem.scale, (int32_t)in->mem.disp);
    else
        e_lea(e, in->reg, base, index, in->mem.scale, (int32_t)in->mem.disp);
    x->r11_kept = true;
    return true;
}

static void rule_lea(struct xlate *x, const struct insn *in)
{
    if (is_legacy(x)) {
        x->r11_kept = true;
        if (in->addr_size == 4 && in->mem.base != REG_NONE) { /* what a sum has above is dropped */
            if (in->op_size == 2)
                e8(&x->e, 0x66);
            e_lea32(&x->e, in->reg, in->mem.base, in->mem.index, in->mem.scale,
                    (int32_t)in->mem.disp + (in->mem.base == RSP ? x->esp_off : 0));
            return;
        }
        lower_ea(x, in, &in->mem, in->addr_size, 0, false);
        lower_write_gpr(x, in->reg, R10, in->op_size);
        return;
    }
    if (x->native_stack && (in->mem.base == RSP || in->reg == RSP)) {
        stack_lea(x, in);
        return;
    }
    if (lea_of_away(x, in))
        return;
    if (in->mem.base == BASE_RIP || lives_in_memory(in->mem.base) || lives_in_memory(in->mem.index) ||
        lives_in_memory(in->reg)) {
        lower_ea(x, in, &in->mem, in->addr_size, 0, false);
        lower_write_gpr(x, in->reg, R10, in->op_size);
    } else {
        e_bytes(&x->e, in->raw, in->len);
        x->r11_kept = true;
    }
}

/* mov al/ax/eax/rax <-> operand */
static void body_moffs(struct xlate *x, const struct insn *in, const struct access *a)
{
    static const uint8_t opc[4] = {0x8a, 0x8b, 0x88, 0x89};
    if (in->op_size == 2)
        e8(&x->e, 0x66);
    e_ref_op(&x->e, in->op_size == 8, opc[in->opcode & 3], RAX, &a->ref);
}

static void body_push_reg(struct xlate *x, const struct insn *in, const struct access *a)
{
    unsigned reg = a->reg;
    if (reg == R10 || reg == R11) {
        e_load_gs(&x->e, a->scratch, GPR_OFF(reg));
        reg = a->scratch;
    } else if (reg == RSP && x->native_stack) {
        stack_value(x, a->scratch, 0);
        reg = a->scratch;
    }
    e_ref_store(&x->e, a->size, &a->ref, reg);
}

static void body_push_imm(struct xlate *x, const struct insn *in, const struct access *a)
{
    struct emitter *e = &x->e;
    if (a->size == 4 || (a->size == 8 && (int64_t)a->imm == (int32_t)a->imm)) {
        e_ref_op(e, a->size == 8, 0xc7, 0, &a->ref); /* mov, imm32 */
        e32(e, (uint32_t)a->imm);
        return;
    }
    e_mov_gva(e, a->scratch, a->imm, RELOC_GVA); /* a return address: others are in the code as they are */
    e_ref_store(e, a->size, &a->ref, a->scratch);
}

static void body_load_value(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_ref_load(&x->e, a->size, R11, &a->ref);
    e_store_gs(&x->e, VCPU_OFF(scratch[SCR_VALUE]), R11);
}

/* The value stays in R11 only: nothing else needs the scratch registers. */
static void body_load_r11(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_ref_load(&x->e, a->size, R11, &a->ref);
}

static void body_load_reg(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_ref_load(&x->e, a->size, a->reg, &a->ref);
}

static void body_load_r10(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_ref_load(&x->e, a->size, R10, &a->ref);
}

static void body_load_target(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_ref_load(&x->e, a->size, R11, &a->ref);
    e_store_gs(&x->e, VCPU_OFF(scratch[SCR_TARGET]), R11);
}

static void body_store_value(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_load_gs(&x->e, a->scratch, VCPU_OFF(scratch[SCR_VALUE]));
    e_ref_store(&x->e, a->size, &a->ref, a->scratch);
}

bool lower_keeps_r11(body_fn body)
{
    return body == body_copy || body == body_push_reg || body == body_push_imm ||
           body == body_load_reg || body == body_load_r10 || body == body_moffs;
}

static const struct insn_mem stack_top = {.base = RSP, .index = REG_NONE, .scale = 1, .seg = SEG_SS};

static void stack_access(struct xlate *x, const struct insn *in, unsigned i, uint8_t kind,
                         unsigned size, int32_t disp, struct access a, body_fn body)
{
    a.kind = kind;
    a.size = (uint16_t)size;
    a.flags = SITE_STACK;
    a.flags_live = live_at(x, i);
    lower_mem(x, in, &stack_top, stack_addr_size(x), disp, a, body);
}

/* PUSH and POP as the host's own, if this is one of those. */
static bool push_directly(struct xlate *x, const struct insn *in, unsigned i)
{
    if (in->op_size != 8 || !stack_direct(x))
        return false;
    if (in->stack_operand == STK_IMM) {
        stack_push_imm(x, (uint64_t)in->imm, R10);
    } else if (in->stack_operand == STK_MEM) {
        struct access a = {.size = in->mem.size, .flags = stack_flag(&in->mem),
                           .flags_live = live_at(x, i)};
        lower_mem(x, in, &in->mem, in->addr_size, 0, a, body_load_r11);
        stack_push(x, R11);
        return true;
    } else if (in->rm == R10 || in->rm == R11) {
        e_load_gs(&x->e, R10, GPR_OFF(in->rm));
        stack_push(x, R10);
    } else if (in->rm == RSP) {
        stack_value(x, R10, 0);
        stack_push(x, R10);
    } else {
        stack_push(x, in->rm);
    }
    x->r11_kept = true;
    return true;
}

static bool pop_directly(struct xlate *x, const struct insn *in)
{
    if (in->op_size != 8 || in->stack_operand == STK_MEM || in->rm == RSP || !stack_direct(x))
        return false;
    if (in->rm == R10 || in->rm == R11) {
        stack_pop(x, R10);
        e_store_gs(&x->e, GPR_OFF(in->rm), R10);
    } else {
        stack_pop(x, in->rm);
    }
    x->r11_kept = true;
    return true;
}

static void rule_push(struct xlate *x, const struct insn *in, unsigned i)
{
    unsigned size = in->op_size;
    int32_t disp = -(int32_t)size;
    if (push_directly(x, in, i))
        return;
    switch (in->stack_operand) {
    case STK_REG:
        stack_access(x, in, i, MMU_WRITE, size, disp, (struct access){.reg = in->rm},
                     body_push_reg);
        break;
    case STK_IMM:
        stack_access(x, in, i, MMU_WRITE, size, disp, (struct access){.imm = (uint64_t)in->imm},
                     body_push_imm);
        break;
    default: {
        struct access a = {.size = in->mem.size, .flags = stack_flag(&in->mem),
                           .flags_live = live_at(x, i)};
        lower_mem(x, in, &in->mem, in->addr_size, 0, a, body_load_value);
        stack_access(x, in, i, MMU_WRITE, size, disp, (struct access){0}, body_store_value);
    }
    }
    add_rsp(x, disp);
}

static void rule_pop(struct xlate *x, const struct insn *in, unsigned i)
{
    unsigned size = in->op_size;
    bool mem = in->stack_operand == STK_MEM;
    if (pop_directly(x, in))
        return;
    if (!mem && size >= 4 && in->rm != R10 && in->rm != R11 && in->rm != RSP) {
        stack_access(x, in, i, MMU_READ, size, 0, (struct access){.reg = in->rm}, body_load_reg);
        add_rsp(x, (int32_t)size);
        return;
    }
    stack_access(x, in, i, MMU_READ, size, 0, (struct access){0},
                 mem ? body_load_value : body_load_r11);
    if (mem) {
        /* An address with base RSP is computed after the increment (SDM vol. 2, POP). */
        struct access a = {.size = (uint16_t)size, .kind = MMU_WRITE,
                           .flags = stack_flag(&in->mem), .flags_live = live_at(x, i)};
        lower_mem(x, in, &in->mem, in->addr_size, in->mem.base == RSP ? (int32_t)size : 0, a,
                  body_store_value);
        add_rsp(x, (int32_t)size);
        return;
    }
    if (in->rm == RSP) {
        if (size == 2)
            add_rsp(x, 2);
        lower_write_gpr(x, RSP, R11, size);
        return;
    }
    lower_write_gpr(x, in->rm, R11, size);
    add_rsp(x, (int32_t)size);
}

static void rule_leave(struct xlate *x, const struct insn *in, unsigned i)
{
    struct insn_mem m = {.base = RBP, .index = REG_NONE, .scale = 1, .seg = SEG_SS};
    struct access a = {.size = in->op_size, .flags = SITE_STACK, .flags_live = live_at(x, i)};
    lower_mem(x, in, &m, stack_addr_size(x), 0, a, body_load_r11);
    if (x->native_stack) {
        e_lea(&x->e, R10, RBP, 0xff, 1, in->op_size);
        lower_write_gpr(x, RBP, R11, in->op_size);
        stack_set(x);
        return;
    }
    set_rsp(x, RBP, in->op_size);
    lower_write_gpr(x, RBP, R11, in->op_size);
}

static void body_bt(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_load_gs(&x->e, a->scratch, VCPU_OFF(scratch[SCR_VALUE]));
    reencode_mem(&x->e, in, &a->ref, a->scratch, KEEP);
}

/*
 * BT/BTS/BTR/BTC m, r: the bit offset is signed and moves the address (SDM vol. 2, 3.1.1.9), so
 * compute the word's address and leave the native instruction an offset within it.
 */
static void rule_bt(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    unsigned bytes = in->op_size;
    lower_ea(x, in, &in->mem, in->addr_size, 0, false);
    unsigned reg = in->reg;
    if (reg == R10 || reg == R11) {
        e_load_gs(e, R11, GPR_OFF(reg));
        reg = R11;
    } else if (reg == RSP && x->native_stack) {
        stack_value(x, R11, 0);
        reg = R11;
    }
    /* r11 = sign-extended offset */
    if (bytes == 8) {
        if (reg != R11)
            e_mov_rr(e, R11, reg);
    } else {
        e8(e, (uint8_t)(0x4c | (reg >= 8 ? 1 : 0)));
        if (bytes == 4) {
            e8(e, 0x63); /* movsxd r11, r32 */
        } else {
            e8(e, 0x0f);
            e8(e, 0xbf); /* movsx r11, r16 */
        }
        e8(e, (uint8_t)(0xc0 | (3 << 3) | (reg & 7)));
    }
    e_store_gs(e, VCPU_OFF(scratch[SCR_VALUE]), R11);
    lower_save_flags(e);
    e_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xfb, 0x03}, 4);                     /* sar r11, 3 */
    e_bytes(e, (const uint8_t[]){0x49, 0x83, 0xe3, (uint8_t)-(int)bytes}, 4); /* and r11, -bytes */
    e_lea(e, R10, R10, R11, 1, 0);
    if (in->addr_size == 4)
        e_mov32_rr(e, R10, R10);
    else if (in->addr_size == 2)
        e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xd2}, 4); /* movzx r10d, r10w */
    e_load_gs(e, R11, VCPU_OFF(scratch[SCR_VALUE]));
    e_bytes(e, (const uint8_t[]){0x41, 0x83, 0xe3, (uint8_t)(bytes * 8 - 1)}, 4); /* and r11d */
    e_store_gs(e, VCPU_OFF(scratch[SCR_VALUE]), R11);
    lower_restore_flags(e);
    if (!is_legacy(x) && (in->mem.seg == SEG_FS || in->mem.seg == SEG_GS)) {
        e_load_gs(e, R11, STATE_OFF(offsetof(struct vcpu, seg[in->mem.seg]) +
                                     offsetof(struct segment, base)));
        e_lea(e, R10, R10, R11, 1, 0);
    }
    struct access a = copy_access(x, in, i);
    a.seg = in->mem.seg;
    a.size = (uint16_t)bytes;
    a.flags_live = true; /* ZF survives */
    lower_access(x, in, a, body_bt);
}

static void body_xlat(struct xlate *x, const struct insn *in, const struct access *a)
{
    e_ref_op(&x->e, false, 0x8a, RAX, &a->ref);
}

static void rule_xlat(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    struct insn_mem m = {.base = R10, .index = REG_NONE, .scale = 1, .seg = in->mem.seg};
    struct access a = {.size = 1, .seg = m.seg, .flags_live = live_at(x, i)};
    e_bytes(e, (const uint8_t[]){0x44, 0x0f, 0xb6, 0xd8}, 4); /* movzx r11d, al */
    if (in->addr_size <= 4)
        e_lea32(e, R10, RBX, R11, 1, 0);
    else
        e_lea(e, R10, RBX, R11, 1, 0);
    if (in->addr_size == 2)
        e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xd2}, 4); /* movzx r10d, r10w */
    if (!is_legacy(x) && (m.seg == SEG_FS || m.seg == SEG_GS)) {
        e_load_gs(e, R11, STATE_OFF(offsetof(struct vcpu, seg[m.seg]) +
                                     offsetof(struct segment, base)));
        e_lea(e, R10, R10, R11, 1, 0);
    }
    lower_access(x, in, a, body_xlat);
}

/* MASKMOVQ/MASKMOVDQU/VMASKMOVDQU: [rdi] is implicit, so RDI is borrowed for the HVA. */
static void body_maskmov(struct xlate *x, const struct insn *in, const struct access *a)
{
    struct emitter *e = &x->e;
    e_store_gs(e, VCPU_OFF(scratch[SCR_SPILL]), RDI);
    side_mark(x, SIDE_SPILL + RDI);
    e_ref_lea(e, RDI, &a->ref);
    reencode_plain(e, in);
    e_load_gs(e, RDI, VCPU_OFF(scratch[SCR_SPILL]));
    side_mark(x, SIDE_INSIDE);
}

static void rule_maskmov(struct xlate *x, const struct insn *in, unsigned i)
{
    struct insn_mem m = {.base = RDI, .index = REG_NONE, .scale = 1, .seg = in->mem.seg};
    struct access a = {.size = in->enc == ENC_LEGACY && in->fpu == FPU_MMX ? 8 : 16,
                       .kind = MMU_WRITE | MMU_RMW, .flags_live = live_at(x, i)};
    lower_mem(x, in, &m, in->addr_size, 0, a, body_maskmov);
}

/* The XSAVE family works on a copy: EDX:EAX must be masked with the guest's XCR0, and the image
 * must not hold host addresses. XSAVEOPT becomes XSAVE: its "modified" optimisation tracks host
 * addresses that mean nothing here (SDM vol. 1, 13.9). */
static void body_state(struct xlate *x, const struct insn *in, const struct access *a)
{
    if (in->op == OP_XSAVEOPT) {
        struct insn xs = *in; /* 0F AE /6 -> /4 */
        xs.modrm = (uint8_t)((xs.modrm & ~0x38) | (4 << 3));
        reencode_mem(&x->e, &xs, &a->ref, KEEP, KEEP);
    } else {
        reencode_mem(&x->e, in, &a->ref, KEEP, KEEP);
    }
}

static void rule_state(struct xlate *x, const struct insn *in, unsigned i)
{
    struct access a = {.size = in->mem.size, .flags = stack_flag(&in->mem) | SITE_BOUNCE,
                       .flags_live = live_at(x, i)};
    switch (in->op) {
    case OP_XSAVE: case OP_XSAVEC: case OP_XSAVEOPT:
        a.kind = MMU_WRITE | MMU_RMW;
        a.flags |= SITE_XSAVE | SITE_FIP;
        break;
    case OP_XRSTOR:
        a.flags |= SITE_XSAVE;
        break;
    case OP_FXRSTOR: case OP_FLDENV: case OP_FRSTOR:
        break;
    default: /* FXSAVE, FNSAVE, FNSTENV; FXSAVE leaves reserved bytes alone */
        a.kind = MMU_WRITE | MMU_RMW;
        a.flags |= SITE_FIP;
    }
    lower_mem(x, in, &in->mem, in->addr_size, 0, a, body_state);
}

/* -- Sensitive instructions with an inline form ----------------------------------------------------- */

/* op dword gs:[off], imm32 (ext = the /digit of opcode 81; flags are the caller's concern) */
static void e_gs_op_imm(struct emitter *e, unsigned ext, uint32_t off, uint32_t imm)
{
    e_bytes(e, (const uint8_t[]){0x65, 0x81, (uint8_t)(ext << 3 | 4), 0x25}, 4);
    e32(e, off);
    e32(e, imm);
}

static void rule_cli(struct xlate *x, unsigned i)
{
    struct emitter *e = &x->e;
    if (live_at(x, i))
        lower_save_flags(e);
    e_gs_op_imm(e, 4, VCPU_OFF(rflags), ~(uint32_t)FL_IF);
    if (live_at(x, i))
        lower_restore_flags(e);
}

static void rule_stac(struct xlate *x, unsigned i)
{
    struct emitter *e = &x->e;
    if (live_at(x, i))
        lower_save_flags(e);
    e_gs_op_imm(e, 1, VCPU_OFF(rflags), FL_AC);
    if (live_at(x, i))
        lower_restore_flags(e);
}

/* The end of an inline form: what has jumped here from one or two places is left to C, flags restored
 * if they are live. */
static void or_callout(struct xlate *x, const struct insn *in, uint8_t *from, uint8_t *and_from,
                       bool live)
{
    struct emitter *e = &x->e;
    uint8_t *done = e_jmp_fwd(e);
    e_fix_here(e, from);
    if (and_from)
        e_fix_here(e, and_from);
    if (live)
        lower_restore_flags(e);
    emit_callout(x, in, true);
    e_fix_here(e, done);
    lower_forget_checks(x);
}

/* C code evicts user pages from the soft TLB, if there are any. */
static void rule_clac(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool live = live_at(x, i);
    if (live)
        lower_save_flags(e);
    e_gs_op_imm(e, 7, VCPU_OFF(ac_filled), 0);
    uint8_t *filled = e_jcc_fwd(e, CC_NE);
    e_gs_op_imm(e, 4, VCPU_OFF(rflags), ~(uint32_t)FL_AC);
    e_bytes(e, (const uint8_t[]){0x65, 0x48, 0xc7, 0x04, 0x25}, 5); /* mov qword gs:[ac_page], -1 */
    e32(e, VCPU_OFF(ac_page));
    e32(e, ~0u);
    if (live)
        lower_restore_flags(e);
    or_callout(x, in, filled, NULL, live);
}

static void rule_mov_from_cr(struct xlate *x, const struct insn *in)
{
    static const uint32_t off[] = {VCPU_OFF(cr0), 0, VCPU_OFF(cr2), VCPU_OFF(cr3), VCPU_OFF(cr4)};
    e_load_gs(&x->e, R10, off[in->reg]);
    lower_write_gpr(x, in->rm, R10, is_legacy(x) ? 4 : 8);
}

/* A jump that is taken if R10 is no canonical address. Uses R11 and the flags. */
static uint8_t *unless_canonical(struct emitter *e)
{
    e_mov_rr(e, R11, R10);
    e_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xe3, 16}, 4); /* shl r11, 16 */
    e_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xfb, 16}, 4); /* sar r11, 16 */
    e_bytes(e, (const uint8_t[]){0x4d, 0x39, 0xd3}, 3);     /* cmp r11, r10 */
    return e_jcc_fwd(e, CC_NE);
}

/* A base that is not canonical faults in C. */
static void rule_wrbase(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    unsigned seg = in->op == OP_WRFSBASE ? SEG_FS : SEG_GS;
    uint32_t base = VCPU_OFF(seg[0]) + (uint32_t)(seg * sizeof(struct segment) +
                                                  offsetof(struct segment, base));
    bool live = live_at(x, i), wide = in->op_size == 8;
    uint8_t *odd = NULL;
    if (in->rm == R10 || in->rm == R11)
        e_load_gs(e, R10, GPR_OFF(in->rm));
    else if (in->rm == RSP && x->native_stack)
        stack_value(x, R10, 0);
    else
        e_mov_rr(e, R10, in->rm);
    if (wide) {
        if (live)
            lower_save_flags(e);
        odd = unless_canonical(e);
        if (live)
            lower_restore_flags(e);
    } else {
        e_mov32_rr(e, R10, R10);
    }
    e_store_gs(e, base, R10);
    if (!wide)
        return;
    or_callout(x, in, odd, NULL, live);
}

/* With nothing pending STI only sets IF; a kick that comes right after it finds the shadow. */
static void rule_sti(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool live = live_at(x, i);
    e_mov_imm(e, R10, x->cur_rip + in->len);
    e_store_gs(e, BT_OFF(shadow_rip), R10);
    if (live)
        lower_save_flags(e);
    e_gs_op_imm(e, 1, VCPU_OFF(rflags), FL_IF);
    e_bytes(e, (const uint8_t[]){0x65, 0xc7, 0x04, 0x25}, 4); /* mov dword gs:[shadow], 1 */
    e32(e, VCPU_OFF(interrupt_shadow));
    e32(e, 1);
    e_bytes(e, (const uint8_t[]){0x65, 0x83, 0x3c, 0x25}, 4); /* cmp dword gs:[events], 0 */
    e32(e, VCPU_OFF(events));
    e8(e, 0);
    uint8_t *none = e_jcc_fwd(e, CC_E);
    if (live)
        lower_restore_flags(e);
    emit_callout(x, in, false);
    e_fix_here(e, none);
    if (live)
        lower_restore_flags(e);
}

static void rule_swapgs(struct xlate *x)
{
    struct emitter *e = &x->e;
    uint32_t base = VCPU_OFF(seg[SEG_GS].base);
    e_load_gs(e, R10, base);
    e_load_gs(e, R11, VCPU_OFF(kernel_gs_base));
    e_store_gs(e, base, R11);
    e_store_gs(e, VCPU_OFF(kernel_gs_base), R10);
}

/* R10 = the host's EFLAGS, by way of the host's stack. */
static void flags_to_r10(struct emitter *e)
{
    e_store_gs(e, VCPU_OFF(scratch[SCR_VALUE]), RSP);
    e_load_gs(e, RSP, VCPU_OFF(host_rsp));
    e8(e, 0x9c);                                  /* pushfq */
    e_bytes(e, (const uint8_t[]){0x41, 0x5a}, 2); /* pop r10 */
    e_load_gs(e, RSP, VCPU_OFF(scratch[SCR_VALUE]));
}

/* The arithmetic flags and DF are the host's, the others are virtual. All of them survive up to the
 * store, for if that faults, PUSHF reads them again. */
static void rule_pushf(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    flags_to_r10(e);
    lower_save_flags(e);
    e_load_gs(e, R11, VCPU_OFF(rflags));
    e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe2}, 3); /* and r10d, FL_HOST */
    e32(e, FL_HOST);
    e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and r11d, ... */
    e32(e, ~(uint32_t)(FL_HOST | FL_RF | FL_VM));
    e_bytes(e, (const uint8_t[]){0x45, 0x09, 0xda}, 3); /* or r10d, r11d */
    e_store_gs(e, VCPU_OFF(scratch[SCR_VALUE]), R10);
    lower_restore_flags(e);
    stack_access(x, in, i, MMU_WRITE, in->op_size, -(int32_t)in->op_size, (struct access){0},
                 body_store_value);
    add_rsp(x, -(int32_t)in->op_size);
}

/*
 * What stays inline: the arithmetic flags, and at CPL 0 IF while no event waits.  If anything else is
 * to change, C code pops the image again.  The arithmetic flags are those before the POPF until its
 * operand has been read, and DF until it is clear that C code is not needed.
 */
static void rule_popf(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool user = x->key & KEY_USER;
    uint32_t same = FL_TF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID;
    uint8_t *slow[2] = {0};

    if (user) /* may not change IOPL, VIF and VIP, and IF by IOPL's leave only */
        same = FL_TF | FL_IF | FL_DF | FL_NT | FL_RF | FL_AC | FL_ID;
    if (in->op_size == 2)
        same &= 0xffff;
    stack_access(x, in, i, MMU_READ, in->op_size, 0, (struct access){0}, body_load_r10);
    e_load32_gs(e, R11, VCPU_OFF(rflags));
    e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and r11d, ~FL_HOST */
    e32(e, ~(uint32_t)FL_HOST);
    e_bytes(e, (const uint8_t[]){0x45, 0x31, 0xd3}, 3); /* xor r11d, r10d */
    e_bytes(e, (const uint8_t[]){0x41, 0xf7, 0xc3}, 3); /* test r11d, same */
    e32(e, same);
    slow[0] = e_jcc_fwd(e, CC_NE);
    if (!user) {
        e_gs_op_imm(e, 7, VCPU_OFF(events), 0); /* cmp */
        slow[1] = e_jcc_fwd(e, CC_NE);
        e_mov32_rr(e, R11, R10);
        e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and r11d, IF */
        e32(e, FL_IF);
        e_gs_op_imm(e, 4, VCPU_OFF(rflags), ~(uint32_t)FL_IF);
        e_bytes(e, (const uint8_t[]){0x65, 0x44, 0x09, 0x1c, 0x25}, 5); /* or gs:[rflags], r11d */
        e32(e, VCPU_OFF(rflags));
    }
    add_rsp(x, in->op_size);
    e8(e, 0xfc); /* cld */
    e_store_gs(e, VCPU_OFF(scratch[SCR_FLAGS_RAX]), RAX);
    e_mov32_rr(e, RAX, R10);
    e_bytes(e, (const uint8_t[]){0xc1, 0xe0, 8}, 3);        /* shl eax, 8: the low byte to AH */
    e_bytes(e, (const uint8_t[]){0x41, 0xc1, 0xea, 11}, 4); /* shr r10d, 11: OF */
    e_bytes(e, (const uint8_t[]){0x41, 0x83, 0xe2, 1}, 4);  /* and r10d, 1 */
    e_bytes(e, (const uint8_t[]){0x44, 0x09, 0xd0}, 3);     /* or eax, r10d */
    lower_restore_flags(e);
    uint8_t *done = e_jmp_fwd(e);
    e_fix_here(e, slow[0]);
    if (slow[1])
        e_fix_here(e, slow[1]);
    emit_callout(x, in, false);
    e_fix_here(e, done);
    lower_forget_checks(x);
}

/*
 * The MSR that an RDMSR or WRMSR is about, as far as can be told now: from a `mov ecx, imm` before it,
 * or from what RCX holds at the moment.
 */
static bool guess_msr(const struct xlate *x, unsigned i, uint32_t *msr)
{
    while (i-- > 0) {
        const struct insn *in = &x->insn[i];
        if (!(in->gpr_written >> RCX & 1))
            continue;
        *msr = (uint32_t)in->imm;
        return in->op == OP_COPY && in->enc == ENC_LEGACY && in->map == MAP_ONE &&
               in->opcode == 0xb9 && in->rm == RCX && in->op_size >= 4;
    }
    *msr = (uint32_t)x->v->gpr[RCX];
    return true;
}

/* Where in the vCPU an MSR is that is nothing but 64 bits there; canonical addresses all of them. */
static bool plain_msr(uint32_t msr, uint32_t *off)
{
    switch (msr) {
    case 0xc0000100: /* IA32_FS_BASE */
        *off = VCPU_OFF(seg[SEG_FS].base);
        return true;
    case 0xc0000101: /* IA32_GS_BASE */
        *off = VCPU_OFF(seg[SEG_GS].base);
        return true;
    case 0xc0000102: /* IA32_KERNEL_GS_BASE */
        *off = VCPU_OFF(kernel_gs_base);
        return true;
    default:
        return false;
    }
}

/* The MSR to expect and where it is; false if it is for C to see to, which it then does. */
static bool inline_msr(struct xlate *x, const struct insn *in, unsigned i, uint32_t *msr,
                       uint32_t *off)
{
    if (guess_msr(x, i, msr) && plain_msr(*msr, off))
        return true;
    emit_callout(x, in, true);
    lower_forget_checks(x);
    return false;
}

/* cmp ecx, msr; jne */
static uint8_t *unless_msr(struct emitter *e, uint32_t msr)
{
    e_bytes(e, (const uint8_t[]){0x81, 0xf9}, 2);
    e32(e, msr);
    return e_jcc_fwd(e, CC_NE);
}

/* The three MSRs that hold bases, inline, if RCX is what was guessed. */
static void rule_rdmsr(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool live = live_at(x, i);
    uint32_t msr, off;

    if (!inline_msr(x, in, i, &msr, &off))
        return;
    if (live)
        lower_save_flags(e);
    uint8_t *other = unless_msr(e, msr);
    if (live)
        lower_restore_flags(e);
    e_load32_gs(e, RAX, off);
    e_load32_gs(e, RDX, off + 4);
    or_callout(x, in, other, NULL, live);
}

/* A value that is not canonical faults in C. */
static void rule_wrmsr(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool live = live_at(x, i);
    uint32_t msr, off;

    if (!inline_msr(x, in, i, &msr, &off))
        return;
    e_mov32_rr(e, R10, RAX);
    e_mov32_rr(e, R11, RDX);
    if (live)
        lower_save_flags(e);
    uint8_t *other = unless_msr(e, msr);
    e_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xe3, 32}, 4); /* shl r11, 32 */
    e_bytes(e, (const uint8_t[]){0x4d, 0x09, 0xda}, 3);     /* or r10, r11 */
    uint8_t *odd = unless_canonical(e);
    if (live)
        lower_restore_flags(e);
    e_store_gs(e, off, R10);
    or_callout(x, in, other, odd, live);
}

static void rule_rdbase(struct xlate *x, const struct insn *in)
{
    unsigned seg = in->op == OP_RDFSBASE ? SEG_FS : SEG_GS;
    e_load_gs(&x->e, R10, VCPU_OFF(seg[0]) + (uint32_t)(seg * sizeof(struct segment) +
                                                        offsetof(struct segment, base)));
    lower_write_gpr(x, in->rm, R10, in->op_size);
}

static void rule_mov_from_seg(struct xlate *x, const struct insn *in)
{
    struct emitter *e = &x->e;
    uint32_t off = VCPU_OFF(seg[0]) +
                   (uint32_t)(in->reg * sizeof(struct segment) + offsetof(struct segment, sel));
    e_bytes(e, (const uint8_t[]){0x65, 0x44, 0x0f, 0xb7, 0x14, 0x25}, 6); /* movzx r10d, gs:[] */
    e32(e, off);
    lower_write_gpr(x, in->rm, R10, in->op_size);
}

/* -- String instructions -------------------------------------------------------------------------- */

/* Any other instruction is a callout. */
static void rule_string(struct xlate *x, const struct insn *in)
{
    enum string_form form = lower_string(x, in);
    if (form == STRING_INLINE)
        return;
    struct callout *c = emit_callout(x, in, true);
    if (c && form != STRING_IN_C)
        c->heat = form == STRING_COUNTED ? x->heat : STRING_RETRY;
}

/* More elements than this are better done by the host's own REP, which takes time to get going. */
#define SHORT_REP 24

/*
 * A short REP MOVS or REP STOS of 16- or 32-bit code with flat segments: a loop over the elements, each
 * of which is complete in itself, as that of a repeated instruction is.  The flags are not its
 * business, so it counts by LEA and JECXZ.  Longer ones, and DF = 1, are left to the host's own instruction,
 * or to C; false: so is all of it.
 */
static bool rule_short_rep(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    bool live = live_at(x, i);
    bool movs = in->op == OP_MOVS;
    unsigned size = in->op_size, reg = movs ? R11 : RAX;
    struct memref src = {.base = RSI, .index = KEEP, .flat = true};
    struct memref dst = {.base = RDI, .index = KEEP, .flat = true};

    if (!is_legacy(x) || !x->window || (x->key & (KEY_SLOW_MEM | KEY_ONE_INSN)) ||
        (in->op != OP_MOVS && in->op != OP_STOS) || !(in->flags & INSN_REP) ||
        in->addr_size != 4 || key_seg_class(x->key, SEG_ES) != SEG_FLAT ||
        (movs && key_seg_class(x->key, in->mem.seg) != SEG_FLAT) || lower_soft_site(x))
        return false;
    flags_to_r10(e);
    if (live)
        lower_save_flags(e);
    e_bytes(e, (const uint8_t[]){0x41, 0xf7, 0xc2}, 3); /* test r10d, DF */
    e32(e, FL_DF);
    uint8_t *down = e_jcc_fwd(e, CC_NE);
    e_bytes(e, (const uint8_t[]){0x83, 0xf9, SHORT_REP}, 3); /* cmp ecx */
    uint8_t *many = e_jcc_fwd(e, CC_A);
    if (live)
        lower_restore_flags(e);

    uint64_t next = emit_here(e);
    side_mark(x, SIDE_ELEMENT);
    e_bytes(e, (const uint8_t[]){0x67, 0xe3}, 2); /* jecxz */
    uint8_t *rel8 = e->p;
    e8(e, 0);
    if (movs && size == 1)
        e_ref_op(e, false, 0x8a, reg, &src);
    else if (movs)
        e_ref_load(e, size, reg, &src);
    if (size == 1)
        e_ref_op(e, false, 0x88, reg, &dst);
    else
        e_ref_store(e, size, &dst, reg);
    side_mark(x, SIDE_INSIDE);
    e_op_mem(e, false, 0x8d, RDI, RDI, 0xff, 1, (int32_t)size);
    if (movs)
        e_op_mem(e, false, 0x8d, RSI, RSI, 0xff, 1, (int32_t)size);
    e_op_mem(e, false, 0x8d, RCX, RCX, 0xff, 1, -1);
    e_jmp(e, next);

    e_fix_here(e, down);
    e_fix_here(e, many);
    if (live)
        lower_restore_flags(e);
    rule_string(x, in);
    if (!e->overflow) {
        if (e->p - rel8 - 1 > 127)
            x->failed = true;
        *rel8 = (uint8_t)(e->p - rel8 - 1);
    }
    return true;
}

static void rule_cpuid(struct xlate *x, const struct insn *in)
{
    struct emitter *e = &x->e;
    uint8_t *miss[2], *done = NULL;
    bool inl = lower_cpuid(x, miss);
    if (inl) {
        done = e_jmp_fwd(e);
        e_fix_here(e, miss[0]);
        e_fix_here(e, miss[1]);
        lower_restore_flags(e);
    }
    emit_callout(x, in, true);
    if (inl)
        e_fix_here(e, done);
}

/* -- Branch rules --------------------------------------------------------------------------------- */

/* R10 = new instruction pointer, zero-extended; outside 64-bit mode it becomes a linear address. */
static void target_to_linear(struct xlate *x)
{
    struct emitter *e = &x->e;
    uint32_t base = (uint32_t)x->tb->cs;
    if (is_legacy(x) && base)
        e_lea32(e, R10, R10, 0xff, 1, (int32_t)base);
}

/* R10 = an instruction pointer in a register. */
static void target_from_register(struct xlate *x, unsigned reg, unsigned width)
{
    struct emitter *e = &x->e;
    if (!is_legacy(x))
        e_mov_rr(e, R10, reg);
    else if (width == 2)
        e_bytes(e, (const uint8_t[]){0x44, 0x0f, 0xb7, (uint8_t)(0xd0 | reg)}, 4); /* movzx r10d */
    else
        e_mov32_rr(e, R10, reg);
}

/* R10 = target of this width: #GP(0) if it is past the limit of CS. */
static void check_limit(struct xlate *x, const struct insn *in, unsigned i, unsigned width)
{
    struct emitter *e = &x->e;
    if (!past_limit(x, width == 2 ? 0xffff : 0xffffffff))
        return;
    if (live_at(x, i))
        lower_save_flags(e);
    e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xfa}, 3); /* cmp r10d, limit */
    e32(e, (uint32_t)(x->tb->cs >> 32));
    uint8_t *ok = e_jcc_fwd(e, CC_BE);
    if (live_at(x, i))
        lower_restore_flags(e);
    emit_raise(x, in, EXC_GP);
    e_fix_here(e, ok);
    if (live_at(x, i))
        lower_restore_flags(e);
}

/* LOOPcc and JCXZ on CX, which the host cannot test: on a zero-extended copy, RCX put aside in R11. */
static void branch_on_cx(struct xlate *x, const struct insn *in, uint64_t target, uint64_t next)
{
    struct emitter *e = &x->e;
    bool loop = in->op != OP_JRCXZ;
    uint8_t *cond = NULL;
    if (loop)
        e_bytes(e, (const uint8_t[]){0x66, 0x8d, 0x49, 0xff}, 4); /* lea cx, [rcx - 1] */
    side_mark(x, SIDE_INSIDE);
    if (in->op == OP_LOOPE || in->op == OP_LOOPNE)
        cond = e_jcc_fwd(e, in->op == OP_LOOPE ? CC_NE : CC_E);
    e_mov_rr(e, R11, RCX);
    e_bytes(e, (const uint8_t[]){0x0f, 0xb7, 0xc9}, 3); /* movzx ecx, cx */
    e8(e, 0xe3);                                        /* jrcxz */
    uint8_t *rel8 = e->p;
    e8(e, 0);
    e_mov_rr(e, RCX, R11);
    jump_to(x, loop ? target : next);
    if (!e->overflow)
        *rel8 = (uint8_t)(e->p - rel8 - 1);
    e_mov_rr(e, RCX, R11);
    if (cond)
        e_fix_here(e, cond);
    jump_to(x, loop ? next : target);
}

/*
 * 32-bit code finds its data by calling a function that loads a register with its return address.  The link
 * to that function leads here while it is what is there (ahead_entrance()), and the trace goes on.
 */
static void inline_thunk(struct xlate *x, unsigned reg, uint64_t next_rip)
{
    struct pending_link *l = &x->link[x->n_links - 1];
    l->inlined = (uint32_t)emit_here(&x->e);
    l->thunk = (uint8_t)(reg + 1);
    side_mark(x, SIDE_INSIDE);
    e_mov_imm(&x->e, reg, next_rip);
    add_rsp(x, 4);
    x->r11_kept = true;
}

static void emit_branch(struct xlate *x, const struct insn *in, unsigned i)
{
    struct emitter *e = &x->e;
    uint64_t next_rip = truncate_rip(in, x->cur_rip + in->len);
    uint64_t next = linear_of(x, x->cur_rip + in->len);
    uint64_t target = branch_target(x, in, x->cur_rip + in->len);
    bool past = past_limit(x, truncate_rip(in, x->cur_rip + in->len + (uint64_t)in->imm));
    unsigned width = in->op_size; /* of a return address */
    if (in->op != OP_CALL && in->op != OP_CALL_IND && in->op != OP_RET &&
        !(in->op == OP_JMP && x->follow[i]))
        stack_settle(x);
    switch (in->op) {
    case OP_JMP:
        if (past)
            emit_raise(x, in, EXC_GP);
        else if (!x->follow[i])
            jump_to(x, target);
        x->r11_kept = true;
        break;
    case OP_JCC:
        if (past) {
            uint8_t *taken = e_jcc_fwd(e, in->cond);
            jump_to(x, next);
            e_fix_here(e, taken);
            emit_raise(x, in, EXC_GP);
        } else if (x->follow[i] == FOLLOW_NEXT) {
            leave_trace(x, in->cond, target);
        } else if (x->follow[i] == FOLLOW_TARGET) {
            leave_trace(x, in->cond ^ 1, next);
        } else {
            jump_cond(x, in->cond, target, next);
        }
        x->r11_kept = true;
        break;
    case OP_LOOP: case OP_LOOPE: case OP_LOOPNE: case OP_JRCXZ: {
        x->reg[RCX].checked = false; /* it moves before the jump */
        if (past) {
            emit_callout(x, in, false);
            break;
        }
        if (in->addr_size == 2) {
            branch_on_cx(x, in, target, next);
            break;
        }
        if (in->addr_size == 4)
            e8(e, 0x67);
        e8(e, in->opcode);
        uint8_t *rel8 = e->p;
        e8(e, 0);
        jump_to(x, next);
        if (!e->overflow)
            *rel8 = (uint8_t)(e->p - rel8 - 1);
        jump_to(x, target);
        break;
    }
    case OP_CALL:
        if (width == 8 && stack_direct(x)) {
            stack_push_imm(x, next_rip, R10);
            jump_to(x, target);
            break;
        }
        stack_access(x, in, i, MMU_WRITE, width, -(int32_t)width,
                     (struct access){.imm = next_rip}, body_push_imm);
        if (past) { /* processors have written the return address by then */
            emit_raise(x, in, EXC_GP);
            break;
        }
        add_rsp(x, -(int32_t)width);
        settle_esp(x);
        stack_settle_late(x, false);
        jump_to(x, target);
        if (x->follow[i] >= FOLLOW_THUNK && !x->failed)
            inline_thunk(x, x->follow[i] - FOLLOW_THUNK, next_rip);
        break;
    case OP_JMP_IND: case OP_CALL_IND: {
        unsigned reg = in->rm;
        bool mem = in->flags & INSN_MEM, call = in->op == OP_CALL_IND;
        bool pushed = call && width == 8 && stack_direct(x);
        /* Where nothing comes in between, or only a push that leaves it alone, it stays in R10. */
        bool direct = mem && (!call || (pushed && stack_within(x, -8, 0)) ||
                              (width == 4 && lower_plain_flat(x, SEG_SS) && stack_addr_size(x) == 4));
        if (mem) {
            struct access a = {.size = (uint16_t)width, .flags = stack_flag(&in->mem),
                               .flags_live = live_at(x, i)};
            lower_mem(x, in, &in->mem, in->addr_size, 0, a,
                      direct ? body_load_r10 : body_load_target);
        } else if (reg == RSP) {
            if (x->native_stack)
                stack_value(x, R10, 0);
            else if (width == 2)
                e_bytes(e, (const uint8_t[]){0x44, 0x0f, 0xb7, 0xd4}, 4); /* movzx r10d, sp */
            else
                e_mov_rr(e, R10, RSP);
            e_store_gs(e, VCPU_OFF(scratch[SCR_TARGET]), R10);
        }
        if (pushed) {
            stack_push_imm(x, next_rip, R11);
        } else if (call) {
            stack_access(x, in, i, MMU_WRITE, width, -(int32_t)width,
                         (struct access){.imm = next_rip}, body_push_imm);
        }
        if (direct)
            ;
        else if (mem)
            e_load_gs(e, R10, VCPU_OFF(scratch[SCR_TARGET]));
        else if (reg == RSP && width < 8)
            e_load32_gs(e, R10, VCPU_OFF(scratch[SCR_TARGET]));
        else if (reg == RSP)
            e_load_gs(e, R10, VCPU_OFF(scratch[SCR_TARGET]));
        else if (reg == R10 || reg == R11)
            e_load_gs(e, R10, GPR_OFF(reg));
        else
            target_from_register(x, reg, width);
        check_limit(x, in, i, width);
        if (call && !pushed) {
            add_rsp(x, -(int32_t)width);
            stack_settle_late(x, true);
        }
        settle_esp(x);
        target_to_linear(x);
        jump_indirect(x, false);
        break;
    }
    case OP_RET:
        if (width == 8 && stack_direct(x)) {
            stack_pop(x, R10);
            if ((uint16_t)in->imm)
                stack_move(x, (uint16_t)in->imm);
            jump_indirect(x, true);
            break;
        }
        stack_access(x, in, i, MMU_READ, width, 0, (struct access){0}, body_load_r10);
        check_limit(x, in, i, width);
        add_rsp(x, (int32_t)(width + (uint16_t)in->imm));
        stack_settle_late(x, true);
        settle_esp(x);
        target_to_linear(x);
        jump_indirect(x, true);
        break;
    }
}

/* -- One instruction ------------------------------------------------------------------------------ */

static void emit_insn(struct xlate *x, unsigned i)
{
    struct emitter *e = &x->e;
    const struct insn *in = &x->insn[i];
    int fault = fpu_fault(in, x->key);
    if (fault >= 0) {
        emit_raise(x, in, (unsigned)fault);
        return;
    }
    switch (rule_of(in, x->key)) {
    case RULE_BRANCH:
        emit_branch(x, in, i);
        return;
    case RULE_CALLOUT:
        if (in->op == OP_CPUID)
            rule_cpuid(x, in);
        else if (!rule_short_rep(x, in, i))
            rule_string(x, in);
        return;
    case RULE_CALLOUT_END:
        emit_callout(x, in, false);
        return;
    case RULE_NATIVE:
        break;
    }
    switch (in->op) {
    case OP_NOP:
    case OP_CLTS: /* it is clear */
        /* Where traps are due after single instructions, each has a host address of its own. */
        if (x->key & KEY_SLOW_MEM)
            e_nops(e, 1);
        x->r11_kept = true;
        break;
    case OP_LEA:
        rule_lea(x, in);
        break;
    case OP_MOV_MOFFS: {
        struct access a = copy_access(x, in, i);
        lower_mem(x, in, &in->mem, in->addr_size, 0, a, body_moffs);
        break;
    }
    case OP_PUSH:
        rule_push(x, in, i);
        break;
    case OP_POP:
        rule_pop(x, in, i);
        break;
    case OP_LEAVE:
        rule_leave(x, in, i);
        break;
    case OP_BT_MEM_REG:
        rule_bt(x, in, i);
        break;
    case OP_XLAT:
        rule_xlat(x, in, i);
        break;
    case OP_MASKMOV:
        rule_maskmov(x, in, i);
        break;
    case OP_XSAVE: case OP_XSAVEC: case OP_XSAVEOPT: case OP_XRSTOR:
    case OP_FXSAVE: case OP_FNSAVE: case OP_FNSTENV:
        rule_state(x, in, i);
        break;
    case OP_RDTSC:
        e_bytes(e, in->raw, in->len);
        break;
    case OP_RDTSCP:
        /* The host's TSC_AUX, its CPU number, never shows: LFENCE; RDTSC waits as RDTSCP does. */
        e_bytes(e, (const uint8_t[]){0x0f, 0xae, 0xe8, 0x0f, 0x31}, 5);
        e_load32_gs(e, RCX, VCPU_OFF(tsc_aux));
        break;
    case OP_CLI:
        rule_cli(x, i);
        break;
    case OP_STI:
        rule_sti(x, in, i);
        break;
    case OP_SWAPGS:
        rule_swapgs(x);
        break;
    case OP_STAC:
        rule_stac(x, i);
        break;
    case OP_CLAC:
        rule_clac(x, in, i);
        break;
    case OP_MOV_FROM_CR:
        rule_mov_from_cr(x, in);
        break;
    case OP_WRFSBASE: case OP_WRGSBASE:
        rule_wrbase(x, in, i);
        break;
    case OP_PUSHF:
        rule_pushf(x, in, i);
        break;
    case OP_POPF:
        rule_popf(x, in, i);
        break;
    case OP_RDMSR:
        rule_rdmsr(x, in, i);
        break;
    case OP_WRMSR:
        rule_wrmsr(x, in, i);
        break;
    case OP_RDFSBASE: case OP_RDGSBASE:
        rule_rdbase(x, in);
        break;
    case OP_MOV_FROM_SEG:
        rule_mov_from_seg(x, in);
        break;
    case OP_RDPID:
        e_load32_gs(e, R10, VCPU_OFF(tsc_aux));
        lower_write_gpr(x, in->rm, R10, is_legacy(x) ? 4 : 8);
        break;
    case OP_FXRSTOR: case OP_FLDENV: case OP_FRSTOR:
        if (is_legacy(x)) /* on a copy: see legacy_state.c */
            rule_state(x, in, i);
        else
            rule_copy(x, in, i);
        break;
    default: /* OP_COPY */
        rule_copy(x, in, i);
    }
}

/* Executions of an access of the first tier up to the second. */
static int32_t initial_heat(const struct xlate *x)
{
    const struct engine_config *cfg = &x->bt->cfg;
    if ((x->key & (KEY_ONE_INSN | KEY_SLOW_MEM)) || (cfg->trace_mask & TRACE_ENTER))
        return INT32_MAX;
    return cfg->hot_threshold           ? cfg->hot_threshold
           : cfg->mem_mode == MEM_WINDOW ? 1
           : cfg->chaos                ? 1 + (int32_t)(x->tb->gva >> 4 & 3)
                                       : HOT_THRESHOLD;
}

/*
 * What the registers hold, as far as it is known, at the block's start: v has them before the
 * instruction at `hot`, whose access made the block hot.
 */
static void guess_entry(struct xlate *x, unsigned hot)
{
    uint32_t written = 0;
    for (unsigned i = 0; i < hot; i++)
        written |= x->insn[i].gpr_written;
    for (unsigned g = 0; g < 16; g++)
        x->reg[g] = (struct reg_guess){.known = !(written >> g & 1), .value = x->v->gpr[g]};
}

static void guess_here(struct xlate *x)
{
    for (unsigned g = 0; g < 16; g++)
        if (!x->reg[g].known && !x->reg[g].checked)
            x->reg[g] = (struct reg_guess){
                .known = true, .value = x->v->gpr[g], .ext = x->reg[g].ext}; /* a fact stays one */
}

/* -- The block ------------------------------------------------------------------------------------ */

/* Marks a page as holding code. Writers see the flag, or their stores come before our reads. */
static void claim_page(struct bt_engine *bt, uint64_t gpa)
{
    _Atomic uint8_t *flags = &bt->ram->page_flags[gpa >> GUEST_PAGE_SHIFT];
    if (atomic_fetch_or(flags, RAM_PAGE_CODE) & RAM_PAGE_CODE)
        return;
    for (unsigned i = 0; i < bt->n_vcpus; i++) {
        mmu_stlb_protect_gpa(bt->vcpus[i], gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1));
        windows_protect_gpa(bt->vcpus[i], gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1));
    }
}

/*
 * Encodings that mean something else to 64-bit code: 82h, an alias of 80h, and bits of VEX and EVEX
 * that other modes ignore (SDM vol. 2, 2.3.5.6, 2.7.11): the fourth bits of vvvv and of B, R', W
 * where it chooses between general registers of 4 and 8 bytes, and the fourth bit of a register in
 * an immediate.
 */
static void make_host_encoding(struct insn *in)
{
    uint8_t *v = in->raw + in->prefix_len;
    if (in->enc == ENC_LEGACY) {
        if (in->map == MAP_ONE && in->opcode == 0x82)
            in->raw[in->opcode_off] = in->opcode = 0x80;
        return;
    }
    if (in->enc == ENC_VEX && in->map == MAP_0F3A &&
        ((in->opcode & 0xfc) == 0x48 || in->opcode == 0x4c || (in->opcode & 0xfc) == 0x5c ||
         (in->opcode & 0xe8) == 0x68))
        in->raw[in->imm_off] &= 0x7f;
    if (v[0] == 0xc5)
        return;
    v[1] |= in->enc == ENC_EVEX ? 0x30 : 0x20;
    v[2] |= 0x40;
    unsigned pp = v[2] & 3, op = in->opcode;
    bool convert = (in->map == MAP_0F || in->map == MAP_5) && pp >= 2 &&
                   (op == 0x2a || op == 0x2c || op == 0x2d || op == 0x7b || op == 0x78 || op == 0x79);
    bool move = in->map == MAP_0F ? pp == 1 && (op == 0x6e || op == 0x7e)
                                  : in->map == MAP_0F3A && (op == 0x16 || op == 0x22 ||
                                                            (op >= 0x60 && op <= 0x63));
    bool dword = convert || move;
    if (dword || (in->flags & (INSN_REG_GPR | INSN_RM_GPR | INSN_VVVV_GPR)))
        v[2] &= 0x7f;
}

static struct tb *known_block(struct xlate *x, uint64_t gva)
{
    const struct tb *tb = x->tb;
    uint64_t page = tb->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    return cache_lookup(x->bt, gva, page | (gva & (GUEST_PAGE_SIZE - 1)), x->key, tb->cs);
}

/* How many instructions a trace may have before it copies what another trace holds already. */
#define TRACE_COPIES 20u

/* May a trace go on at this address, where `there` (NULL: nothing) is?  A short one goes on even in
 * another's code: what it knows of registers is worth more than the copy costs. */
static bool may_follow(const struct xlate *x, uint64_t gva, const struct tb *there)
{
    if (!same_page(x, gva) || (there && there->window && x->n > TRACE_COPIES))
        return false;
    for (unsigned i = 0; i < x->n; i++)
        if (linear_of(x, x->rip[i]) == gva)
            return false;
    return true;
}

/* 32-bit code with a flat stack, where nothing that RET checks can be wrong? */
static bool plain_stack32(const struct xlate *x)
{
    return (x->key & KEY_CODE32) && !(x->key & (KEY_STACK16 | KEY_ONE_INSN | KEY_SLOW_MEM)) &&
           key_seg_class(x->key, SEG_SS) == SEG_FLAT && !past_limit(x, 0xffffffff);
}

/* 1 + reg if this is all of `mov reg, [esp]; ret`, else 0. */
static uint8_t thunk_register(const uint8_t *code)
{
    unsigned reg = code[1] >> 3;
    return code[0] == 0x8b && (code[1] & 0xc7) == 0x04 && code[2] == 0x24 && code[3] == 0xc3 && reg != RSP
               ? (uint8_t)(reg + 1)
               : 0;
}

/* Does the call just decoded seem to lead to such a function?  ahead_entrance() will see what is there. */
static enum follow follow_call(const struct xlate *x, uint64_t target, uint64_t next)
{
    struct mmu_xlat t;
    const uint8_t *p;
    uint8_t code[4], reg = 0;
    if (x->insn[x->n - 1].op_size == 4 && plain_stack32(x) && x->window && linkable(x, target) &&
        (target & (GUEST_PAGE_SIZE - 1)) <= GUEST_PAGE_SIZE - 4 && may_follow(x, next, NULL) &&
        !mmu_peek(x->v, target, &t) && (p = ram_read_ptr(x->v->ram, t.gpa, 4))) {
        for (unsigned i = 0; i < 4; i++)
            code[i] = ((const volatile uint8_t *)p)[i];
        reg = thunk_register(code);
    }
    return reg ? (enum follow)(FOLLOW_THUNK + reg - 1) : FOLLOW_NOT;
}

/*
 * Whether a trace goes on behind the branch just decoded.  Code on it counts no executions, so the
 * choice at a condition is made by what there is: a side that was never executed is not followed.
 */
static enum follow follow_branch(struct xlate *x)
{
    const struct insn *in = &x->insn[x->n - 1];
    uint64_t rip = x->rip[x->n - 1] + in->len;
    enum follow how = FOLLOW_NOT;
    if ((in->op != OP_JMP && in->op != OP_JCC && in->op != OP_CALL) || x->n > TB_MAX_INSNS - 4 ||
        x->tb->gpa2 != ~0ull)
        return FOLLOW_NOT;
    uint64_t taken = branch_target(x, in, rip), next = linear_of(x, rip);
    if (past_limit(x, truncate_rip(in, rip + (uint64_t)in->imm)))
        return FOLLOW_NOT;
    if (in->op == OP_CALL)
        return follow_call(x, taken, next);
    bt_lock(x->bt);
    struct tb *there = known_block(x, taken);
    bool by_target = may_follow(x, taken, there);
    if (in->op == OP_JMP) {
        how = by_target ? FOLLOW_TARGET : FOLLOW_NOT;
    } else if (taken != x->tb->gva) { /* a loop ends where it closes */
        struct tb *after = known_block(x, next);
        bool by_next = may_follow(x, next, after);
        how = by_next && (after || !there) ? FOLLOW_NEXT
              : by_target && there && !after ? FOLLOW_TARGET
                                             : FOLLOW_NOT;
    }
    bt_unlock(x->bt);
    return how;
}

/* After x->n was set: what the block is made of. */
static void set_extent(struct xlate *x)
{
    struct tb *tb = x->tb;
    uint64_t start = x->rip[0] & (GUEST_PAGE_SIZE - 1), lo = start, hi = start;
    bool piece = true;
    tb->n_insns = (uint16_t)x->n;
    tb->guest_len = 0;
    x->follow[x->n - 1] = FOLLOW_NOT;
    for (unsigned i = 0; i < x->n; i++) {
        uint64_t at = start + (uint64_t)(int64_t)(int16_t)(x->rip[i] - x->rip[0]);
        lo = at < lo ? at : lo;
        hi = at + x->insn[i].len > hi ? at + x->insn[i].len : hi;
        piece = piece && x->rip[i] == x->rip[0] + tb->guest_len;
        if (piece)
            tb->guest_len = (uint16_t)(tb->guest_len + x->insn[i].len);
    }
    if (!piece) {
        uint64_t base = (tb->gpa & (GUEST_PAGE_SIZE - 1)) - start;
        tb->peek_lo = (uint16_t)(lo + base);
        tb->peek_hi = (uint16_t)(hi + base);
    }
}

/* Decodes up to the block's end; false with v->exc if the straddling tail cannot be fetched. */
static bool decode_block(struct xlate *x)
{
    struct tb *tb = x->tb;
    uint64_t gpa = tb->gpa, rip = is_legacy(x) ? (uint32_t)(tb->gva - (uint32_t)tb->cs) : tb->gva;
    uint64_t limit = is_legacy(x) ? tb->cs >> 32 : ~0ull;
    enum insn_mode mode = key_mode(x->key);
    unsigned max = x->key & KEY_ONE_INSN ? 1 : TB_MAX_INSNS;
    while (x->n < max) {
        struct insn *in = &x->insn[x->n];
        uint8_t buf[15];
        unsigned avail = fetch(x->bt, gpa, ~0ull, buf);
        int len = insn_decode(in, buf, avail, mode);
        if (rip > limit || (len && rip + (unsigned)len - 1 > limit)) {
            if (x->n)
                break;
            cpu_raise_code(x->v, EXC_GP, 0);
            return false;
        }
        if (len == 0) { /* straddles the page's end */
            if (x->n)
                break;
            uint64_t gpa2;
            if (exec_translate(x->v, bt_next_page(x->v, tb->gva), &gpa2) < 0)
                return false;
            if (!ram_readable(x->bt->ram, gpa2, GUEST_PAGE_SIZE)) {
                cpu_raise_code(x->v, EXC_GP, 0);
                return false;
            }
            tb->gpa2 = gpa2;
            claim_page(x->bt, gpa2);
            fetch(x->bt, gpa, gpa2, buf);
            len = insn_decode(in, buf, 15, mode);
            if (rip + (unsigned)len - 1 > limit) {
                cpu_raise_code(x->v, EXC_GP, 0);
                return false;
            }
        }
        if (mode != MODE_64)
            make_host_encoding(in);
        x->follow[x->n] = FOLLOW_NOT;
        x->rip[x->n++] = rip;
        rip += (unsigned)len;
        gpa += (unsigned)len;
        if (ends_block(in, x->key)) {
            enum follow how = x->trace ? follow_branch(x) : FOLLOW_NOT;
            if (!how)
                break;
            if (how == FOLLOW_TARGET) {
                rip = truncate_rip(in, rip + (uint64_t)in->imm);
                gpa = (tb->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) |
                      (linear_of(x, rip) & (GUEST_PAGE_SIZE - 1));
            }
            x->follow[x->n - 1] = (uint8_t)how;
            continue;
        }
        if (tb->gpa2 != ~0ull || (gpa & (GUEST_PAGE_SIZE - 1)) == 0)
            break;
    }
    set_extent(x);
    return true;
}

static bool block_open_ended(const struct xlate *x)
{
    const struct insn *in = &x->insn[x->n - 1];
    enum insn_rule r = rule_of(in, x->key);
    return (r == RULE_NATIVE || r == RULE_CALLOUT) && fpu_fault(in, x->key) < 0;
}

enum accesses { ACCESS_NONE, ACCESS_STACK, ACCESS_MEMORY };

/*
 * How this instruction reaches guest memory from emitted code: by the host's RSP at most?  A guess
 * where it is a matter of the site.
 */
static enum accesses accesses_of(const struct xlate *x, const struct insn *in)
{
    bool native = stack_usable(x);
    if (string_for_windows(x->key, in))
        return ACCESS_MEMORY;
    if (rule_of(in, x->key) == RULE_NATIVE && (in->flags & INSN_MEM))
        return native && in->mem.base == RSP && in->mem.index == REG_NONE ? ACCESS_STACK
                                                                         : ACCESS_MEMORY;
    switch (in->op) {
    case OP_PUSH: case OP_PUSHF: case OP_POP: case OP_POPF: case OP_CALL: case OP_RET:
        return native ? ACCESS_STACK : ACCESS_MEMORY;
    case OP_CALL_IND:
        return native && !(in->flags & INSN_MEM) ? ACCESS_STACK : ACCESS_MEMORY;
    case OP_JMP_IND:
        return in->flags & INSN_MEM ? ACCESS_MEMORY : ACCESS_NONE;
    case OP_LEAVE:
        return ACCESS_MEMORY;
    default:
        return ACCESS_NONE;
    }
}

/*
 * Whose accesses count the block's executions.  If they are all the host's own, or there are none, code of
 * its own does: at the first access, which is at *first, or at the first instruction.  A block without
 * any, as it often stands behind a call (TEST, Jcc), gains by the second tier, too: it goes on as a trace.
 */
static enum accesses block_accesses(const struct xlate *x, unsigned *first)
{
    enum accesses most = ACCESS_NONE;
    for (unsigned i = 0; i < x->n; i++) {
        enum accesses a = accesses_of(x, &x->insn[i]);
        if (a == ACCESS_STACK && most == ACCESS_NONE)
            *first = i;
        most = a > most ? a : most;
    }
    return most;
}

/* In a block without accesses but the host's own: counts its executions, as helpers of accesses do. */
static void emit_count(struct xlate *x, unsigned i)
{
    struct mem_site *site = cache_meta_alloc(x->r, sizeof *site);
    if (!site) {
        x->failed = true;
        return;
    }
    *site = (struct mem_site){
        .rip = x->cur_rip, .tb = x->tb, .flags = SITE_COUNT, .heat = x->heat};
    e_mov_meta(&x->e, R11, site, RELOC_SITE);
    e_jmp(&x->e, x->bt->stub_count[live_at(x, i)]);
    site->resume = (uint32_t)emit_here(&x->e);
}

static bool stack_likely(const struct xlate *x, uint64_t rsp)
{
    return mmu_canonical(rsp) &&
           window_id_ok(x->key & KEY_USER, (unsigned)(rsp >> WINDOW_SHIFT) & 0xffff);
}

/* RSP has got a new value: supervisor code in the upper half has its stack there, too. */
static void stack_moved(struct xlate *x)
{
    x->stack_written = false;
    x->stack_ok = x->window && x->reg[RSP].known ? stack_likely(x, x->reg[RSP].value)
                                                 : (x->key & KEY_USER) || x->tb->gva >> 63;
}

/* Does the rule for this instruction use R11 only where it gets at memory? */
static bool leaves_r11_to_operands(const struct insn *in)
{
    switch (in->op) {
    case OP_COPY: case OP_NOP: case OP_LEA: case OP_MOV_MOFFS: case OP_PUSH: case OP_POP:
    case OP_LEAVE: case OP_CALL: case OP_RET: case OP_JMP_IND: case OP_CALL_IND: case OP_JMP:
    case OP_JCC:
        return true;
    default:
        return false;
    }
}

struct tb *translate_block(struct bt_engine *bt, struct vcpu *v, uint64_t gva, uint64_t gpa,
                           uint32_t key, struct tb *replace)
{
    struct xlate xs, *x = &xs; /* 30 KiB: the vCPU thread's stack is sized for it */
    struct timespec t0, t1;
    struct tb block;
    uint64_t gen;
    clock_gettime(CLOCK_MONOTONIC, &t0);

    /* Decode without the lock (a page walk for a straddling tail may write A bits to a page that
     * holds code); if code was written meanwhile, decode again. */
    do {
        gen = atomic_load(&bt->code_write_gen);
        block = (struct tb){.gva = gva, .minus_gva = -gva, .gpa = gpa, .gpa2 = ~0ull, .key = key,
                            .cs = bt_current_cs(v)};
        x->bt = bt;
        x->v = v;
        x->tb = &block;
        x->key = key;
        x->n = 0;
        x->window = replace && !(key & KEY_YOUNG) &&
                    (key & KEY_LEGACY ? v->engine->flat.on : v->engine->windows_on);
        block.window = x->window;
        if (replace) {
            block.table_form = replace->table_form;
            block.soft_form = replace->soft_form;
            block.not_ahead = replace->not_ahead;
            block.check_divisor = replace->check_divisor;
        }
        if (bt->cfg.chaos && (gva & 8))
            block.check_divisor = ~0ull;
        x->heat = initial_heat(x);
        claim_page(bt, gpa);
        x->trace = replace && !(key & (KEY_ONE_INSN | KEY_SLOW_MEM));
        if (!decode_block(x))
            return NULL;
        bt_lock(bt);
        if (gen == atomic_load(&bt->code_write_gen))
            break;
        bt_unlock(bt);
    } while (true);

    struct cache_region *r = cache_reserve(bt, CACHE_TRANSLATED);
    if (replace && replace->dead) /* evicted: its memory is about to be used again */
        replace = NULL;
    struct tb *tb = cache_meta_alloc(r, sizeof *tb);
    *tb = block;
    x->tb = tb;
    x->r = r;
    /* Eviction may have emptied the page's list and dropped the flag. */
    claim_page(bt, gpa);
    if (tb->gpa2 != ~0ull)
        claim_page(bt, tb->gpa2);
    uint32_t meta_mark = r->meta_used;
    uint8_t *code = r->code_w + r->code_used;
    for (;;) {
        x->e = (struct emitter){.p = code, .end = r->code_w + r->code_size,
                                .rx_bias = (int64_t)r->code_x - (int64_t)(uintptr_t)r->code_w};
        r->meta_used = meta_mark;
        x->n_side = x->n_slow = x->n_links = x->n_miss = 0;
        tb->thunk = x->n == 2 && plain_stack32(x) && x->insn[0].len == 3 && x->insn[1].len == 1
                        ? thunk_register((uint8_t[]){x->insn[0].raw[0], x->insn[0].raw[1],
                                                     x->insn[0].raw[2], x->insn[1].raw[0]})
                        : 0;
        x->native_stack = stack_is_native(bt, key);
        x->stack_ok = stack_likely(x, v->gpr[RSP]);
        x->stack_written = false;
        x->stack_slack = STACK_SLACK;
        unsigned hot_at = 0, count_at = 0;
        enum accesses accesses = block_accesses(x, &count_at);
        x->hot = tb->hot = replace || (accesses == ACCESS_NONE && x->heat == INT32_MAX);
        for (unsigned i = 0; i < x->n && x->window; i++)
            if (x->rip[i] == v->rip)
                hot_at = i;
        guess_entry(x, hot_at);
        x->r11_id = 0;
        x->esp_off = 0;
        x->failed = false;
        compute_liveness(x);
        tb->entry_ind = (uint32_t)emit_here(&x->e);
        x->e.block = tb->entry_ind;
        x->e.reloc = move_possible(key, gva, tb->gpa2) ? x->reloc : NULL;
        /* Where it is is not known yet. In chaos some have no other. */
        tb->side_door = replace && door_probes(bt, key) && !(bt->cfg.chaos && (gva & 16));
        door_emit(x);
        tb->entry = (uint32_t)emit_here(&x->e);
        x->guest_off = 0;
        ahead_choose(x);
        ahead_emit(x);
        for (unsigned i = 0; i < x->n; i++) {
            x->cur_rip = x->rip[i];
            x->index = (uint8_t)i;
            x->guest_off = (int16_t)(x->cur_rip - x->rip[0]);
            prepare_esp(x, i);
            side_mark(x, x->esp_off ? side_of_esp(x->esp_off) : SIDE_BOUNDARY);
            if (i == hot_at)
                guess_here(x);
            x->r11_kept = false;
            bool r11 = leaves_r11_to_operands(&x->insn[i]);
            if (!r11)
                x->r11_id = 0;
            if (i == count_at && accesses != ACCESS_MEMORY && !x->hot)
                emit_count(x, i);
            emit_insn(x, i);
            if (!r11 || !x->r11_kept)
                x->r11_id = 0;
            if (x->window && !is_legacy(x))
                lower_track(x, &x->insn[i]);
            if (x->stack_written)
                stack_moved(x);
            if (rule_of(&x->insn[i], key) == RULE_CALLOUT)
                lower_forget_checks(x);
        }
        if (block_open_ended(x)) {
            stack_settle_late(x, false);
            /* Between the last instruction and the jump the state is that of the next one. */
            uint64_t rip = x->rip[x->n - 1] + x->insn[x->n - 1].len;
            settle_esp(x);
            x->guest_off = (int16_t)(rip - x->rip[0]);
            side_mark(x, SIDE_BOUNDARY);
            side_mark(x, SIDE_INSIDE);
            x->side[x->n_side - 1].host++;
            jump_to(x, linear_of(x, rip));
        }
        lower_slow_paths(x);
        x->guest_off = 0;
        side_mark(x, SIDE_INSIDE);
        finish_links(x);
        if (tb->side_door)
            door_emit_side(x);
        if (!x->failed && !x->e.overflow)
            break;
        if (x->n <= 1)
            __builtin_trap(); /* one instruction always fits: MAX_TB_CODE, MAX_TB_META */
        x->n /= 2; /* too long for its tables: a shorter block always fits */
        set_extent(x);
    }
    tb->door = tb->entry;
    tb->door_heat = tb->side_door ? DOOR_HEAT : 0;
    tb->host_end = (uint32_t)emit_here(&x->e);
    tb->n_side = x->n_side;
    tb->side = cache_meta_alloc(r, x->n_side * (uint32_t)sizeof *tb->side);
    memcpy(tb->side, x->side, x->n_side * sizeof *tb->side);
    if (x->e.reloc) {
        tb->n_reloc = (uint16_t)x->e.n_reloc;
        tb->reloc = cache_meta_alloc(r, tb->n_reloc * (uint32_t)sizeof *tb->reloc);
        memcpy(tb->reloc, x->reloc, tb->n_reloc * sizeof *tb->reloc);
        tb->meta_size = (uint32_t)(r->meta + r->meta_used - (uint8_t *)tb);
        const struct insn *last = &x->insn[x->n - 1];
        if (last->op == OP_CALL || last->op == OP_CALL_IND)
            tb->return_off = (int16_t)(x->rip[x->n - 1] + last->len - gva);
    }
    r->code_used = ((uint32_t)(x->e.p - r->code_w) + 15) & ~15u;
    cache_insert(bt, r, tb);
    if (replace) { /* not before: a page without blocks is no code page any more */
        if (!replace->dead)
            cache_redirect(bt, replace, tb);
        cache_invalidate_tb(bt, replace);
    }
    bt->stats.blocks++;
    bt->stats.guest_insns += x->n;
    for (unsigned i = 0; i < x->n; i++)
        bt->stats.guest_bytes += x->insn[i].len;
    bt->stats.host_bytes += tb->host_end - tb->entry_ind;
    bt_unlock(bt);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    bt->stats.translate_ns += (uint64_t)((t1.tv_sec - t0.tv_sec) * 1000000000ll) +
                              (uint64_t)(t1.tv_nsec - t0.tv_nsec);
    return tb;
}
