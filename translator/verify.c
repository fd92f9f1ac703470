/*
 * The independent verifier: checks emitted blocks against the sandbox rules, knowing nothing of how
 * they were made.
 *
 * What it proves of a block (docs/architecture.md, invariant 2): whatever the guest's registers and
 * memory hold, each memory operand of each reachable instruction is one of
 *
 *     gs:[field]         vCPU state that emitted code may read, or may write
 *     gs:[table + index] an entry of the soft TLB, the jump cache (only to jump through it), the
 *                        window table or CPUID's answers, with an index that was just bounded
 *     [hva]              guest RAM or a bounce copy: an address that passed a soft-TLB check for at
 *                        least the operand's size, or that the prepare stub returned
 *     [address + delta]  a guest address in the window it was checked for or looked up by, at a
 *                        distance that the guard zones cover; of string instructions, which go on from
 *                        there without a gap and so end at a guard zone, the first element
 *     gs:[32 bits]       16- and 32-bit code only: the flat window's memory or nothing
 *     [flat base + reg]  the same, by one or two registers that hold no more than 32 bits and a
 *                        displacement that does not reach what lies below
 *     [sum + index]      in 64-bit code: such a sum computed before, and a bounded index
 *     [rsp]              in 64-bit code, where RSP itself is such a sum (native_stack.c): no further
 *                        from its window than the guard zones reach; also PUSH and POP
 *
 * and that control leaves only to instruction boundaries of the block, entries of other blocks, the
 * stubs, and through the jump cache.  No instruction is privileged, reveals host state, or uses the
 * host's stack or segments.
 *
 * Method: Capstone decodes; a forward data-flow analysis over the block follows what is known of
 * each register.  A register has a value number with a constant distance (so that a check of RBX
 * holds for RBX+8), and possibly a meaning (enum meaning).  Where paths join, what they do not
 * agree on is unknown.  The vCPU's fields, the tables' layout and the C side's promises (a
 * mem_site's size and resume addresses) are taken from the headers; all else is derived from the
 * bytes.
 *
 * This is not light code: it uses libc and Capstone, so its callers save FP state first.
 */
#include "translator/trace.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "mmu/window.h"
#include "translator/emit.h"
#include "translator/explain.h"
#include "translator/verify_decode.h"

/* -- What is known of a value ---------------------------------------------------------------------
 */

enum meaning {
    M_NONE,
    M_CONST,      /* a                                                                          */
    M_BOUND,      /* value = something & a                                                      */
    M_TLB_OFFSET, /* address - tag of the TLB entry at index `of`; a = 1 if by the write tag     */
    M_TLB_IN,     /* the same, known to be at most b                                            */
    M_HVA,        /* host address of at least a accessible bytes; b = 1 if they may be written;
                     of != 0: an address in reach of a window plus its delta, (of, of_drift)    */
    M_SUM,        /* an address at most a bytes outside a window, plus its delta                */
    M_NOT,        /* the complement of (of, drift)                                              */
    M_ROTATED,    /* RORX by 39 of value (of, drift)                                            */
    M_ID,         /* its low 16 bits, zero-extended: the window id of (of, drift)               */
    M_SIGNED,     /* sign-extended from 32 bits; of != 0: those of value (of, of_drift)         */
    M_NEAR,       /* value (of, drift) plus at most a; b = 1: or minus as much                  */
    M_DELTA_OF,   /* the delta of the window that (of, drift) is in                             */
    M_DELTA_ID,   /* the delta of window a                                                      */
    M_HOST_STACK, /* the VMM's stack pointer, a bytes down                                      */
    M_STACK,      /* a guest address plus the delta of its window, at most a bytes outside that;
                     of: the value number of that delta, if bt.stack_not does not say it yet    */
    M_UNDO,       /* bt.stack_not: with RSP and 1 the guest's RSP                               */
    M_ONES,       /* 2^n - 1 for some n, and 0 at least if the value was (door.c)                */
    M_FLAT,       /* the base of the flat window                                                */
    M_FLAT_SUM,   /* that plus a value of 32 bits                                               */
};

struct value {
    uint32_t vn;   /* value number: equal means equal, up to the distance                       */
    uint32_t of;
    int64_t drift; /* value = that value + drift                                               */
    int64_t of_drift;
    uint64_t a;
    uint32_t b;
    uint8_t meaning;
    bool narrow; /* of blocks of 16- and 32-bit code: bits 32 to 63 are 0. The eight registers of such
                  * code are that whenever a block is entered or left.                          */
};

#define MAX_FACTS 32u
#define N_SCRATCH 10u /* words of memory that are followed: scratch, the guest's R10 and R11 */
struct state {
    struct state *next; /* while it is not in use */
    struct value reg[16], scratch[N_SCRATCH];
    struct { /* value vn + drift lies at most `away` bytes outside window id */
        uint32_t vn, id;
        int64_t drift, away;
    } fact[MAX_FACTS];
    unsigned n_facts;
    /* What the instruction just before compared. */
    enum { CMP_NONE, CMP_TLB, CMP_ID, CMP_SIGNED } cmp;
    uint32_t cmp_vn;
    int64_t cmp_drift;
    uint64_t cmp_imm;
};

struct verifier {
    struct bt_engine *bt;
    const struct tb *tb;
    struct verify_code d; /* bytes and instructions of [entry_ind, host_end) */
    bool quiet, failed;
    struct state **in; /* by offset: the state before the instruction                          */
    uint32_t *order;   /* instructions in an order in which predecessors come first            */
    uint32_t *rank;    /* by offset: place in order, plus 1; 0 if not in it                    */
    bool *done, *loop; /* by offset: checked; head of a loop, checked again                    */
    bool *dirty;       /* by place                                                             */
    uint32_t n_order, next;
    uint32_t off; /* being checked */
    struct state *free_states;
};

#define VOFF(field) ((uint64_t)offsetof(struct vcpu, field))

static bool reject(struct verifier *v, const char *why, ...)
{
    if (!v->quiet && !v->failed) {
        const cs_insn *in = v->d.insn[v->off];
        va_list ap;
        char hex[33] = "";
        unsigned len = in && in->mnemonic[0] ? in->size : v->d.size - v->off;
        for (unsigned i = 0; i < len && i < 16; i++)
            snprintf(hex + 2 * i, 3, "%02x", v->d.code[v->off + i]);
        fprintf(stderr, "verifier: block %#llx (key %#x), host %#x+%#x: [%s] %s %s: ",
                (unsigned long long)v->tb->gva, v->tb->key, v->tb->entry_ind, v->off, hex,
                in ? in->mnemonic : "?", in ? in->op_str : "");
        va_start(ap, why);
        vfprintf(stderr, why, ap);
        va_end(ap);
        fputc('\n', stderr);
    }
    v->failed = true;
    return false;
}

static unsigned view_of(const struct verifier *v) /* index of the user/supervisor tables */
{
    return v->tb->key & KEY_USER ? 0 : 1;
}

/* -- Registers ------------------------------------------------------------------------------------
 */

/* General register number and width in bytes of a Capstone register; false for others. */
static bool gpr_of(unsigned r, unsigned *n, unsigned *width)
{
    static const struct {
        uint16_t reg;
        uint8_t n, width;
    } map[] = {
        {X86_REG_RAX, 0, 8},   {X86_REG_RCX, 1, 8},   {X86_REG_RDX, 2, 8},   {X86_REG_RBX, 3, 8},
        {X86_REG_RSP, 4, 8},   {X86_REG_RBP, 5, 8},   {X86_REG_RSI, 6, 8},   {X86_REG_RDI, 7, 8},
        {X86_REG_R8, 8, 8},    {X86_REG_R9, 9, 8},    {X86_REG_R10, 10, 8},  {X86_REG_R11, 11, 8},
        {X86_REG_R12, 12, 8},  {X86_REG_R13, 13, 8},  {X86_REG_R14, 14, 8},  {X86_REG_R15, 15, 8},
        {X86_REG_EAX, 0, 4},   {X86_REG_ECX, 1, 4},   {X86_REG_EDX, 2, 4},   {X86_REG_EBX, 3, 4},
        {X86_REG_ESP, 4, 4},   {X86_REG_EBP, 5, 4},   {X86_REG_ESI, 6, 4},   {X86_REG_EDI, 7, 4},
        {X86_REG_R8D, 8, 4},   {X86_REG_R9D, 9, 4},   {X86_REG_R10D, 10, 4}, {X86_REG_R11D, 11, 4},
        {X86_REG_R12D, 12, 4}, {X86_REG_R13D, 13, 4}, {X86_REG_R14D, 14, 4}, {X86_REG_R15D, 15, 4},
        {X86_REG_AX, 0, 2},    {X86_REG_CX, 1, 2},    {X86_REG_DX, 2, 2},    {X86_REG_BX, 3, 2},
        {X86_REG_SP, 4, 2},    {X86_REG_BP, 5, 2},    {X86_REG_SI, 6, 2},    {X86_REG_DI, 7, 2},
        {X86_REG_R8W, 8, 2},   {X86_REG_R9W, 9, 2},   {X86_REG_R10W, 10, 2}, {X86_REG_R11W, 11, 2},
        {X86_REG_R12W, 12, 2}, {X86_REG_R13W, 13, 2}, {X86_REG_R14W, 14, 2}, {X86_REG_R15W, 15, 2},
        {X86_REG_AL, 0, 1},    {X86_REG_CL, 1, 1},    {X86_REG_DL, 2, 1},    {X86_REG_BL, 3, 1},
        {X86_REG_AH, 0, 1},    {X86_REG_CH, 1, 1},    {X86_REG_DH, 2, 1},    {X86_REG_BH, 3, 1},
        {X86_REG_SPL, 4, 1},   {X86_REG_BPL, 5, 1},   {X86_REG_SIL, 6, 1},   {X86_REG_DIL, 7, 1},
        {X86_REG_R8B, 8, 1},   {X86_REG_R9B, 9, 1},   {X86_REG_R10B, 10, 1}, {X86_REG_R11B, 11, 1},
        {X86_REG_R12B, 12, 1}, {X86_REG_R13B, 13, 1}, {X86_REG_R14B, 14, 1}, {X86_REG_R15B, 15, 1},
    };
    for (unsigned i = 0; i < sizeof map / sizeof map[0]; i++)
        if (map[i].reg == r) {
            *n = map[i].n;
            *width = map[i].width;
            return true;
        }
    return false;
}

static bool high_byte(unsigned r)
{
    return r == X86_REG_AH || r == X86_REG_CH || r == X86_REG_DH || r == X86_REG_BH;
}

/* Registers that hold data of the guest and nothing of ours, besides the general ones. */
static bool data_register(unsigned r)
{
    return (r >= X86_REG_XMM0 && r <= X86_REG_XMM31) || (r >= X86_REG_YMM0 && r <= X86_REG_YMM31) ||
           (r >= X86_REG_ZMM0 && r <= X86_REG_ZMM31) || (r >= X86_REG_K0 && r <= X86_REG_K7) ||
           (r >= X86_REG_MM0 && r <= X86_REG_MM7) || (r >= X86_REG_ST0 && r <= X86_REG_ST7) ||
           (r >= X86_REG_FP0 && r <= X86_REG_FP7);
}

static uint32_t fresh(uint32_t off, unsigned slot)
{
    return 0x40000000u + off * 32 + slot;
}
static uint32_t merged(uint32_t off, unsigned slot)
{
    return 0x80000000u + off * 32 + slot;
}

static void unknown(struct value *x, uint32_t vn)
{
    *x = (struct value){.vn = vn};
}

static void forget(struct verifier *v, struct state *s, unsigned reg)
{
    unknown(&s->reg[reg], fresh(v->off, reg));
}

/* -- The stack in 64-bit code (native_stack.c) ----------------------------------------------------- */

/* How far from its window an address may be and still fault, or be in it. The upper end of a guard zone
 * may hold a vCPU's state (flat_windows.c). */
#define REACH ((int64_t)WINDOW_GUARD - STATE_BIAS - GUEST_PAGE_SIZE)

static bool native_stack(const struct verifier *v)
{
    return stack_is_native(v->bt, v->tb->key);
}

static bool is_stack(const struct value *x)
{
    return x->meaning == M_STACK;
}

/* RSP is the sum of what bt.stack_not says and the guest's, in reach of its window; `near` enough for
 * other code? */
static bool stack_intact(const struct verifier *v, const struct state *s, bool near)
{
    const struct value *rsp = &s->reg[RSP];
    return !native_stack(v) || (is_stack(rsp) && !rsp->of && (!near || rsp->a <= STACK_SLACK));
}

/* C code has looked the delta up for what it has in RSP. */
static void stack_renewed(struct verifier *v, struct state *s)
{
    if (!native_stack(v))
        return;
    forget(v, s, RSP);
    s->reg[RSP].meaning = M_STACK;
}

/* Are size bytes between RSP + lo and RSP + hi in reach? */
static bool stack_reaches(const struct state *s, int64_t lo, int64_t hi, unsigned size)
{
    int64_t a = (int64_t)s->reg[RSP].a;
    return is_stack(&s->reg[RSP]) && a - lo <= REACH && a + hi + size <= REACH;
}

/* RSP has moved by at most this much; what it has proved about itself, it keeps. */
static void stack_moves(struct state *s, int64_t by)
{
    s->reg[RSP].a += (uint64_t)(by < 0 ? -by : by);
}

/* An access at RSP + disp has not faulted. */
static void stack_used(struct state *s, int64_t disp)
{
    uint64_t d = (uint64_t)(disp < 0 ? -disp : disp);
    if (is_stack(&s->reg[RSP]) && d < s->reg[RSP].a)
        s->reg[RSP].a = d;
}

/* -- Flow -----------------------------------------------------------------------------------------
 */

/* What both x and y say, into x; `vn` numbers what they do not agree on. True if x lost something.
 */
static bool meet_value(struct value *x, const struct value *y, uint32_t vn)
{
    bool changed = x->narrow && !y->narrow;
    x->narrow &= y->narrow;
    if ((x->vn != y->vn || x->drift != y->drift) && (x->vn != vn || x->drift)) {
        x->vn = vn;
        x->drift = 0;
        changed = true;
    }
    if (x->meaning == M_NONE)
        return changed;
    if (x->meaning == M_HVA && y->meaning == M_HVA) {
        uint64_t a = x->a < y->a ? x->a : y->a, b = x->b & y->b;
        changed |= a != x->a || b != x->b;
        x->a = a;
        x->b = b;
        if (x->of && (x->of != y->of || x->of_drift != y->of_drift)) {
            x->of = 0;
            x->of_drift = 0;
            changed = true;
        }
    } else if (x->meaning == M_STACK && y->meaning == M_STACK && x->of == y->of) {
        changed |= y->a > x->a;
        x->a = y->a > x->a ? y->a : x->a;
    } else if (x->meaning != y->meaning || x->of != y->of || x->of_drift != y->of_drift ||
               x->a != y->a || x->b != y->b) {
        *x = (struct value){.vn = x->vn, .drift = x->drift, .narrow = x->narrow};
        changed = true;
    }
    return changed;
}

static void unknown_but_narrow(struct value *x, uint32_t vn)
{
    *x = (struct value){.vn = vn, .narrow = x->narrow};
}

static void make_dirty(struct verifier *v, uint32_t off)
{
    if (!v->rank[off]) { /* not foreseen: last */
        v->order[v->n_order++] = off;
        v->rank[off] = v->n_order;
    }
    uint32_t place = v->rank[off] - 1;
    v->dirty[place] = true;
    if (place < v->next)
        v->next = place;
}

static struct state *new_state(struct verifier *v)
{
    struct state *s = v->free_states;
    if (!s)
        return malloc(sizeof *s);
    v->free_states = s->next;
    return s;
}

static void drop_state(struct verifier *v, uint32_t off)
{
    if (v->in[off]) {
        v->in[off]->next = v->free_states;
        v->free_states = v->in[off];
        v->in[off] = NULL;
    }
}

static int64_t distance(int64_t a, int64_t b)
{
    return a < b ? b - a : a - b;
}

/* Control may pass to offset `to` with state s. */
static void flow(struct verifier *v, uint32_t to, const struct state *s)
{
    struct state *in = v->in[to];
    bool changed = false;
    if (!in) {
        in = v->in[to] = new_state(v);
        if (!in) {
            v->failed = true;
            return;
        }
        *in = *s;
        changed = true;
        /* Backwards, to the head of a loop: nothing is known there.  That is checked once more with all
         * that follows; each state by itself, for the one from before the loop has passed. */
        if (v->done[to] && v->rank[to] <= v->rank[v->off]) {
            bool intact = stack_intact(v, s, true);
            for (unsigned r = 0; r < 16; r++)
                unknown_but_narrow(&in->reg[r], merged(to, r));
            for (unsigned i = 0; i < N_SCRATCH; i++)
                unknown_but_narrow(&in->scratch[i], merged(to, 16 + i));
            if (native_stack(v) && intact) {
                in->reg[RSP].meaning = M_STACK;
                in->reg[RSP].a = STACK_SLACK;
            }
            in->n_facts = 0;
            in->cmp = CMP_NONE;
            changed = !v->loop[to];
            v->loop[to] = true;
        }
    } else {
        for (unsigned r = 0; r < 16; r++)
            changed |= meet_value(&in->reg[r], &s->reg[r], merged(to, r));
        for (unsigned i = 0; i < N_SCRATCH; i++)
            changed |= meet_value(&in->scratch[i], &s->scratch[i], merged(to, 16 + i));
        for (unsigned i = 0; i < in->n_facts;) {
            int64_t away = INT64_MAX;
            for (unsigned k = 0; k < s->n_facts; k++)
                if (s->fact[k].vn == in->fact[i].vn && s->fact[k].id == in->fact[i].id) {
                    int64_t a = s->fact[k].away + distance(s->fact[k].drift, in->fact[i].drift);
                    away = a < away ? a : away;
                }
            if (away <= in->fact[i].away) {
                i++;
            } else if (away <= REACH) {
                in->fact[i++].away = away;
                changed = true;
            } else {
                in->fact[i] = in->fact[--in->n_facts];
                changed = true;
            }
        }
        if (in->cmp != CMP_NONE && (in->cmp != s->cmp || in->cmp_vn != s->cmp_vn ||
                                    in->cmp_drift != s->cmp_drift || in->cmp_imm != s->cmp_imm)) {
            in->cmp = CMP_NONE;
            changed = true;
        }
    }
    if (changed)
        make_dirty(v, to);
}

static bool boundary(const struct verifier *v, uint64_t host)
{
    uint64_t off = host - v->tb->entry_ind;
    return off < v->d.size && v->d.insn[off];
}

/* -- Forms of memory operands: one function each
 * --------------------------------------------------- */

struct operand {
    const cs_x86_op *op;
    unsigned size;
    bool write, jump;
    int base, index; /* general register numbers, -1 for none */
};

static bool inside(uint64_t off, unsigned size, uint64_t field, uint64_t field_size)
{
    return off >= field && off - field < field_size && size <= field_size - (off - field);
}

/* gs:[field] */
static bool form_field(struct verifier *v, const struct state *s, const struct operand *o)
{
    if (o->base >= 0 || o->index >= 0)
        return false;
    uint64_t off = (uint64_t)o->op->mem.disp;
    bool sup = view_of(v) == 1;
    const struct vcpu *t = NULL; /* for sizes only */
#define FIELD(f) inside(off, o->size, VOFF(f), sizeof t->f)
    if (o->jump) {
        uint64_t table = VOFF(jump_cache) + view_of(v) * sizeof t->jump_cache[0];
        return o->size == 8 && off % 8 == 0 && inside(off, 8, table, sizeof t->jump_cache[0]);
    }
    if (FIELD(gpr) || FIELD(scratch))
        return true;
    /* CLI, STI, SWAPGS, STAC, CLAC, WRFSBASE, WRGSBASE at CPL 0. */
    if (sup && (FIELD(rflags) || FIELD(interrupt_shadow) || FIELD(bt.shadow_rip) ||
                FIELD(kernel_gs_base) || FIELD(seg[SEG_GS].base) || FIELD(seg[SEG_FS].base) ||
                FIELD(ac_page)))
        return true;
    if (o->write)
        return false;
    if (sup && (FIELD(ac_filled) || FIELD(cr0) || FIELD(cr2) || FIELD(cr3) || FIELD(cr4)))
        return true;
    if ((v->tb->key & KEY_LEGACY) && FIELD(bt.flat_base))
        return true;
    if (native_stack(v) && o->size == 8 && off == VOFF(bt.stack_not))
        return true;
    if (FIELD(rflags) || FIELD(events) || FIELD(seg) || FIELD(tsc_aux) || FIELD(host_rsp))
        return true;
    uint64_t deltas = VOFF(window_delta) + view_of(v) * sizeof t->window_delta[0];
    return o->size == 8 && inside(off, 8, deltas, sizeof t->window_delta[0]);
#undef FIELD
}

/* gs:[table + index] */
static bool form_table(struct verifier *v, const struct state *s, const struct operand *o)
{
    const struct vcpu *t = NULL;
    uint64_t off = (uint64_t)o->op->mem.disp;
    if (o->write || (o->size != 8 && o->size != 4))
        return false;
    if (o->index < 0 && o->base >= 0) { /* TLB: the index is a byte offset of an entry */
        const struct value *x = &s->reg[o->base];
        uint64_t table = VOFF(stlb) + view_of(v) * sizeof t->stlb[0], field = off - table;
        if (o->size == 4)
            return !o->jump && x->meaning == M_BOUND && x->a == sizeof t->cpuid_cache.r - 16 &&
                   off % 4 == 0 &&
                   (off - VOFF(cpuid_cache.key) < 16 || off - VOFF(cpuid_cache.r) < 16);
        return !o->jump && x->meaning == M_BOUND &&
               x->a == (STLB_SIZE - 1) * sizeof(struct soft_tlb_entry) &&
               field < sizeof(struct soft_tlb_entry) && field % 8 == 0 &&
               field != offsetof(struct soft_tlb_entry, info);
    }
    if (o->size != 8 || o->base >= 0 || o->op->mem.scale != 8)
        return false;
    const struct value *x = &s->reg[o->index];
    bool bounded = x->meaning == M_ID || (x->meaning == M_BOUND && x->a <= 0xffff);
    if (o->jump)
        return bounded && off == VOFF(jump_cache) + view_of(v) * sizeof t->jump_cache[0];
    return bounded && off == VOFF(window_delta) + view_of(v) * sizeof t->window_delta[0];
}

/* [hva] */
static bool form_hva(struct verifier *v, const struct state *s, const struct operand *o)
{
    int64_t disp = o->op->mem.disp;
    if (o->base < 0 || o->index >= 0 || disp < 0)
        return false;
    const struct value *x = &s->reg[o->base];
    return x->meaning == M_HVA && (uint64_t)disp + o->size <= x->a && (!o->write || x->b);
}

static uint32_t window_id(uint64_t gva)
{
    return (uint32_t)(gva >> WINDOW_SHIFT) & 0xffff;
}

/* How far above (*up) and below (*down) 0 a value times scale can be; false if that is not known. */
static bool extent(const struct value *x, int64_t scale, int64_t *up, int64_t *down)
{
    if ((x->meaning == M_BOUND || x->meaning == M_CONST) && x->a <= 0xffffffff) {
        *up = (int64_t)x->a * scale;
        *down = 0;
    } else if (x->meaning == M_SIGNED) {
        *up = *down = scale << 31;
    } else {
        return false;
    }
    return true;
}

/* Is every address from lo to hi bytes off (vn, drift) in reach of what d is the delta for? */
static bool delta_reaches(const struct state *s, uint32_t vn, int64_t drift, const struct value *d,
                          int64_t lo, int64_t hi)
{
    const int64_t reach = REACH;
    if (d->meaning == M_DELTA_OF && d->of == vn)
        return drift - d->of_drift + lo >= -reach && drift - d->of_drift + hi <= reach;
    for (unsigned i = 0; d->meaning == M_DELTA_ID && i < s->n_facts; i++)
        if (s->fact[i].vn == vn && s->fact[i].id == d->a &&
            drift - s->fact[i].drift - s->fact[i].away + lo >= -reach &&
            drift - s->fact[i].drift + s->fact[i].away + hi <= reach)
            return true;
    return false;
}

/* How far outside the window that d is the delta for x can be; more than REACH: no telling. */
static int64_t away_from_window(const struct state *s, const struct value *x, const struct value *d)
{
    int64_t away = INT64_MAX;
    if (d->meaning == M_DELTA_OF && d->of == x->vn)
        away = distance(x->drift, d->of_drift);
    for (unsigned i = 0; d->meaning == M_DELTA_ID && i < s->n_facts; i++)
        if (s->fact[i].vn == x->vn && s->fact[i].id == d->a &&
            distance(x->drift, s->fact[i].drift) + s->fact[i].away < away)
            away = distance(x->drift, s->fact[i].drift) + s->fact[i].away;
    return away;
}

/* Does d hold the delta for guest addresses at x + disp? */
static bool delta_fits(const struct state *s, const struct value *x, const struct value *d,
                       int64_t disp)
{
    if (d->meaning == M_DELTA_ID && x->meaning == M_CONST && window_id(x->a) == d->a)
        return disp == (int32_t)disp;
    if (x->meaning == M_NEAR && delta_reaches(s, x->of, x->of_drift, d, disp - (x->b ? (int64_t)x->a : 0),
                                              disp + (int64_t)x->a))
        return true;
    return delta_reaches(s, x->vn, x->drift, d, disp, disp);
}

/* [address + delta + disp], also as the operand of LEA */
static bool form_window(struct verifier *v, const struct state *s, const struct operand *o)
{
    int64_t disp = o->op->mem.disp, up, down;
    if (o->base < 0 || o->size > GUEST_PAGE_SIZE)
        return false;
    const struct value *b = &s->reg[o->base];
    /* a constant and a bounded index */
    if (o->index >= 0 && b->meaning == M_DELTA_ID && extent(&s->reg[o->index], o->op->mem.scale, &up, &down))
        return window_id((uint64_t)disp) == b->a; /* 34 GiB at most: in reach of any place in it */
    if (o->op->mem.scale != 1)
        return false;
    if (o->index < 0) { /* the displacement is the address */
        struct value zero = {.meaning = M_CONST, .a = (uint64_t)disp};
        return b->meaning == M_DELTA_ID && delta_fits(s, &zero, b, 0);
    }
    const struct value *x = &s->reg[o->index];
    return delta_fits(s, b, x, disp) || delta_fits(s, x, b, disp);
}

/* [address + delta, taken together before, + index + disp] */
static bool form_sum(const struct state *s, const struct operand *o)
{
    int64_t disp = o->op->mem.disp, up = 0, down = 0;
    if (o->base < 0 || s->reg[o->base].meaning != M_SUM || o->size > GUEST_PAGE_SIZE)
        return false;
    if (o->index >= 0 && !extent(&s->reg[o->index], o->op->mem.scale, &up, &down))
        return false;
    int64_t away = (int64_t)s->reg[o->base].a;
    return away + down - disp <= REACH && away + up + disp + o->size <= REACH;
}

/* [rsp + index + disp] */
static bool form_stack(struct verifier *v, const struct state *s, const struct operand *o)
{
    int64_t disp = o->op->mem.disp, up = 0, down = 0;
    if (o->base != RSP || !native_stack(v))
        return false;
    if (o->index >= 0 && !extent(&s->reg[o->index], o->op->mem.scale, &up, &down))
        return false;
    return stack_reaches(s, disp - down, disp + up, o->size);
}

/* [flat base + reg * scale + disp] */
static bool form_flat(struct verifier *v, const struct state *s, const struct operand *o)
{
    int64_t disp = o->op->mem.disp;
    if (!(v->tb->key & KEY_LEGACY) || !v->tb->window || o->base < 0 || o->index < 0 ||
        o->size > GUEST_PAGE_SIZE || disp < -(int64_t)FLAT_BELOW || disp > INT32_MAX)
        return false;
    const struct value *b = &s->reg[o->base], *i = &s->reg[o->index];
    if ((b->meaning == M_FLAT || b->meaning == M_FLAT_SUM) && b->drift == 0 && i->narrow)
        return true;
    return i->meaning == M_FLAT && i->drift == 0 && o->op->mem.scale == 1 &&
           (b->narrow || (b->meaning == M_BOUND && b->a <= 0xffffffff));
}

/* What a probing door loads: a quadword of a page of its own, or nothing. */
static bool form_probe32(struct verifier *v, const struct state *s, const struct operand *o)
{
    const struct value *i = o->index < 0 ? NULL : &s->reg[o->index];
    return v->bt->probe32 && !o->write && o->size == 8 && o->base < 0 && i && i->meaning == M_BOUND &&
           i->a <= 0xffffffff && o->op->mem.scale == 8 && o->op->mem.disp == DOOR_PROBE;
}

/* Are the registers of 16- and 32-bit code as whatever comes next expects them? */
static bool all_narrow(struct verifier *v, const struct state *s)
{
    for (unsigned r = 0; r < 8 && (v->tb->key & KEY_LEGACY); r++)
        if (!s->reg[r].narrow)
            return reject(v, "leaves with register %u wider than 32 bits", r);
    return true;
}

/* What C code leaves in them. */
static void make_narrow(const struct verifier *v, struct state *s)
{
    for (unsigned r = 0; r < 8 && (v->tb->key & KEY_LEGACY); r++)
        s->reg[r].narrow = true;
}

/*
 * After an instruction, `before` says what was narrow before.  Operands of up to 32 bits keep the upper
 * half as it is or clear it; of 64-bit results only those that are followed are known.
 */
static void keep_narrow(const struct verifier *v, const cs_insn *in, const struct state *before,
                        struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    bool vector, wide = verify_wide_encoding(v->d.code + v->off, in->size, &vector);
    if (!(v->tb->key & KEY_LEGACY) || in->id == X86_INS_POP)
        return;
    for (unsigned i = 0; i < x->op_count && !vector; i++) {
        unsigned n, width;
        if (x->operands[i].type == X86_OP_REG && gpr_of(x->operands[i].reg, &n, &width) && width == 8)
            return;
    }
    for (unsigned r = 0; r < 8 && !wide; r++)
        s->reg[r].narrow = before->reg[r].narrow;
    unsigned n, width;
    if (in->id == X86_INS_LEA && gpr_of(x->operands[0].reg, &n, &width) && width == 4)
        s->reg[n].narrow = true;
}

static bool operand_of(struct verifier *v, const cs_x86_op *op, struct operand *o)
{
    unsigned n, width;
    o->op = op;
    o->base = o->index = -1;
    if (op->mem.segment == VERIFY_FLAT) /* any 32-bit address will do */
        return true;
    if (op->mem.base != X86_REG_INVALID) {
        if (!gpr_of(op->mem.base, &n, &width) || width != 8)
            return reject(v, "address of %s registers",
                          op->mem.base == X86_REG_RIP ? "RIP" : "odd");
        o->base = (int)n;
    }
    if (op->mem.index != X86_REG_INVALID && op->mem.index != X86_REG_RIZ) {
        if (!gpr_of(op->mem.index, &n, &width) || width != 8)
            return reject(v, "index is not a 64-bit register");
        o->index = (int)n;
    }
    return true;
}

/* [r11 + probe] of a door: mapped, or set aside so that it faults */
static bool form_probe(struct verifier *v, const struct state *s, const struct operand *o)
{
    return v->bt->probe && o->base == R11 && o->index < 0 && !o->write && o->size == 1 &&
           s->reg[R11].meaning == M_ONES && o->op->mem.disp == v->bt->probe;
}

/* The side door's count of jumps. */
static bool form_heat(struct verifier *v, const struct operand *o)
{
    return o->base < 0 && o->index < 0 && o->size == 4 && v->tb->side_door &&
           (uint64_t)o->op->mem.disp == (uintptr_t)&v->tb->door_heat;
}

static bool check_memory(struct verifier *v, const struct state *s, const struct operand *o)
{
    switch (o->op->mem.segment) {
    case X86_REG_GS:
        if (form_field(v, s, o) || form_table(v, s, o))
            return true;
        return reject(v, "state access of %u bytes outside what is allowed", o->size);
    case VERIFY_FLAT:
        if ((v->tb->key & KEY_LEGACY) && v->tb->window && !o->jump && o->size <= GUEST_PAGE_SIZE)
            return true;
        return reject(v, "a 32-bit address in a block that has no window for it");
    case X86_REG_FS:
        return reject(v, "fs: is the VMM's own");
    default:
        break;
    }
    if (!o->jump && (form_hva(v, s, o) || form_stack(v, s, o) || form_window(v, s, o) ||
                     form_sum(s, o) ||
                     form_flat(v, s, o) || form_heat(v, o) || form_probe(v, s, o) ||
                     form_probe32(v, s, o)))
        return true;
    return reject(v, "memory %s of %u bytes without a check", o->write ? "write" : "read", o->size);
}

/* -- Instructions ---------------------------------------------------------------------------------
 */

static bool is_stub(const struct verifier *v, uint64_t host)
{
    return host >= v->bt->stubs_x && host < v->bt->stubs_end;
}

/* An object of the block's metadata. */
static bool in_meta(const struct verifier *v, uint64_t p, size_t size)
{
    for (unsigned i = 0; i < CACHE_REGIONS; i++) {
        const struct cache_region *r = &v->bt->region[i];
        uint64_t lo = (uint64_t)(uintptr_t)r->meta;
        if (p >= lo && p - lo < r->meta_used && size <= r->meta_used - (p - lo))
            return p % 8 == 0;
    }
    return false;
}

static void set_meaning(struct verifier *v, struct state *s, unsigned reg, enum meaning m,
                        uint64_t a)
{
    forget(v, s, reg);
    s->reg[reg].meaning = (uint8_t)m;
    s->reg[reg].a = a;
}

static void set_drift(struct verifier *v, struct state *s, unsigned reg, struct value from,
                      int64_t by)
{
    int64_t d = from.drift + by;
    from.narrow = from.narrow && !by;
    if (from.meaning == M_CONST)
        from.a += (uint64_t)by;
    else if (by)
        from.meaning = M_NONE, from.of = 0, from.of_drift = 0, from.a = from.b = 0;
    from.drift = d;
    s->reg[reg] = from;
    if (d > INT32_MAX || d < INT32_MIN)
        forget(v, s, reg);
}

/* Where the C side comes back to: every promise it makes about that is in here. */
static bool resume(struct verifier *v, uint64_t host, const struct state *s)
{
    if (!boundary(v, host))
        return reject(v, "resumes at %#llx, which is no instruction of this block",
                      (unsigned long long)host);
    flow(v, (uint32_t)(host - v->tb->entry_ind), s);
    return true;
}

/* Which helper is at this address (access_stub_index()), or -1. */
static int access_stub(const struct verifier *v, uint64_t to)
{
    for (unsigned i = 0; i < ACCESS_STUBS; i++)
        if (v->bt->stub_access[i] == to)
            return (int)i;
    return -1;
}

/* One of the block's links. */
static const struct link *link_at(const struct verifier *v, uint64_t address)
{
    for (unsigned i = 0; i < v->tb->n_out; i++)
        if ((uint64_t)(uintptr_t)&v->tb->out[i] == address)
            return &v->tb->out[i];
    for (unsigned i = 0; i < v->tb->n_far; i++)
        if ((uint64_t)(uintptr_t)&v->tb->far[i].link == address)
            return &v->tb->far[i].link;
    return NULL;
}

/* The jump that leads to the exit stub of this link may be made to lead to what does the same as its
 * target. */
static bool flow_inlined(struct verifier *v, const struct link *l, const struct state *s)
{
    struct state there = *s;
    if (!l->inlined)
        return true;
    if (!boundary(v, l->inlined))
        return reject(v, "a link to no instruction");
    forget(v, &there, R10);
    flow(v, (uint32_t)(l->inlined - v->tb->entry_ind), &there);
    return true;
}

static const struct far_link *far_link_at(const struct verifier *v, uint64_t address)
{
    for (unsigned i = 0; i < v->tb->n_far; i++)
        if ((uint64_t)(uintptr_t)&v->tb->far[i].link == address)
            return &v->tb->far[i];
    return NULL;
}

/* The stubs that take a callout. */
static bool callout_stub(const struct bt_engine *bt, uint64_t to)
{
    return to == bt->stub_callout || to == bt->stub_light || to == bt->stub_syscall ||
           to == bt->stub_sysret;
}

/* Does it do this instruction, in code of this kind? */
static bool stub_fits(const struct verifier *v, uint64_t to, const struct callout *c)
{
    const uint32_t no = KEY_LEGACY | KEY_ONE_INSN | KEY_SLOW_MEM;
    uint32_t key = v->tb->key;
    if (to == v->bt->stub_syscall)
        return c->insn.op == OP_SYSCALL && c->light && (key & KEY_USER) && !(key & no);
    if (to == v->bt->stub_sysret)
        return c->insn.op == OP_SYSRET && c->insn.op_size == 8 && c->light &&
               !(key & (KEY_USER | KEY_CPL_MASK | no));
    return true;
}

static bool holds(const struct verifier *v, const struct state *s, const struct known *k);

static bool jump_to_stub(struct verifier *v, const struct state *s, uint64_t to)
{
    const struct bt_engine *bt = v->bt;
    const struct value *r10 = &s->reg[R10], *r11 = &s->reg[R11];
    if (s->reg[RSP].meaning == M_HOST_STACK)
        return reject(v, "leaves with the host's stack");
    if (!stack_intact(v, s, to == bt->stub_exit_link))
        return reject(v, "leaves with a stack pointer that is not what it should be");
    if (!all_narrow(v, s))
        return false;
    if (to == bt->stub_lookup || to == bt->stub_stepped)
        return true;
    if (to == bt->stub_exit_link) {
        for (unsigned i = 0; i < v->tb->n_out; i++)
            if (r10->meaning == M_CONST && r10->a == (uint64_t)(uintptr_t)&v->tb->out[i])
                return holds(v, s, &v->tb->out[i].known) ? flow_inlined(v, &v->tb->out[i], s)
                                                         : reject(v, "a link that knows too much");
        const struct far_link *f = r10->meaning == M_CONST ? far_link_at(v, r10->a) : NULL;
        if (!f || !boundary(v, f->closed))
            return reject(v, "R10 is none of the block's links");
        if (!holds(v, s, &f->link.known))
            return reject(v, "a link that knows too much");
        /* The jump that leads here may be made to lead there, with what is known at both. */
        struct state there = *s;
        forget(v, &there, R10);
        flow(v, (uint32_t)(f->closed - v->tb->entry_ind), &there);
        return flow_inlined(v, &f->link, s);
    }
    if (to == bt->stub_door || to == bt->stub_door_hot) {
        if (r11->meaning != M_CONST || r11->a != (uint64_t)(uintptr_t)v->tb)
            return reject(v, "R11 is not the block");
        return true;
    }
    if (callout_stub(bt, to)) {
        if (r10->meaning != M_CONST || !in_meta(v, r10->a, sizeof(struct callout)))
            return reject(v, "R10 is no callout");
        const struct callout *c = (const struct callout *)(uintptr_t)r10->a;
        if (c->tb != v->tb)
            return reject(v, "callout of another block");
        if (!stub_fits(v, to, c))
            return reject(v, "callout of another instruction");
        if (!c->resume)
            return true;
        /* The C side changes what the instruction writes and, of what is ours, anything. */
        struct state out = *s;
        for (unsigned r = 0; r < 16; r++)
            if (r == R10 || r == R11 || (c->insn.gpr_written >> r & 1))
                forget(v, &out, r);
        if (native_stack(v))
            stack_renewed(v, &out);
        else if (c->insn.op == OP_PUSHF || c->insn.op == OP_PUSH_SEG)
            set_drift(v, &out, RSP, s->reg[RSP], -(int64_t)c->insn.op_size);
        for (unsigned i = 0; i < N_SCRATCH; i++)
            if (i < 8 || (c->insn.gpr_written >> (R10 + i - 8) & 1))
                unknown(&out.scratch[i], fresh(v->off, 16 + i));
        out.cmp = CMP_NONE;
        make_narrow(v, &out);
        return resume(v, c->resume, &out);
    }
    bool prepare = to == bt->stub_prepare, commit = to == bt->stub_commit;
    bool miss = to == bt->stub_wmiss;
    int access = access_stub(v, to);
    bool as_user = to == bt->stub_as_user[0] || to == bt->stub_as_user[1];
    bool count = to == bt->stub_count[0] || to == bt->stub_count[1];
    if (!prepare && !commit && !miss && !count && !as_user && access < 0)
        return reject(v, "jumps into the middle of the stubs");
    const struct value *arg = miss ? r10 : r11;
    if (arg->meaning != M_CONST || !in_meta(v, arg->a, sizeof(struct mem_site)))
        return reject(v, "the argument is no memory site");
    const struct mem_site *site = (const struct mem_site *)(uintptr_t)arg->a;
    if (access >= 0) {
        if (site->tb != v->tb || site->size > 1u << (access >> 3))
            return reject(v, "site of another block or of another size");
        if ((access & 2) != (view_of(v) == 1 ? 2 : 0) ||
            (access & 1) != ((site->access & MMU_WRITE) != 0))
            return reject(v, "looks up other rights than the site has");
    }
    if (as_user && (site->tb != v->tb || !access_as_user(v->tb->key, site->size, site->flags) ||
                    to != bt->stub_as_user[(site->access & MMU_WRITE) != 0]))
        return reject(v, "looks up as a user what it must not");
    if (miss)
        return site->tb == v->tb ? true : reject(v, "site of another block");
    struct state out = *s;
    out.cmp = CMP_NONE;
    forget(v, &out, R10);
    forget(v, &out, R11);
    if (count)
        return site->tb == v->tb ? resume(v, site->resume, &out) : reject(v, "site of another block");
    if (access < 0 && !as_user)
        stack_renewed(v, &out);
    if (commit)
        return resume(v, site->resume_done, &out);
    bool bounce = site->flags & SITE_BOUNCE;
    out.reg[R10].meaning = M_HVA;
    out.reg[R10].a = site->flags & SITE_XSAVE ? BOUNCE_SIZE / 2 : site->size;
    out.reg[R10].b = (site->access & MMU_WRITE) != 0;
    /* Where a write's main path is resumed, R10 is the page itself, not a copy. */
    return (bounce || resume(v, site->resume, &out)) && resume(v, site->resume_bounce, &out);
}

static bool lives(const struct state *s, uint32_t vn)
{
    for (unsigned r = 0; r < 16; r++)
        if (s->reg[r].vn == vn)
            return true;
    for (unsigned i = 0; i < N_SCRATCH; i++)
        if (s->scratch[i].vn == vn)
            return true;
    return false;
}

/* A block may check more addresses than there is room for; most are gone by the next instruction. */
static unsigned fact_slot(struct state *s)
{
    if (s->n_facts < MAX_FACTS)
        return s->n_facts++;
    for (unsigned i = 0; i < MAX_FACTS; i++)
        if (!lives(s, s->fact[i].vn))
            return i;
    return 0;
}

/* Value vn + drift is at most `away` bytes outside window id. */
static void learn(struct state *s, uint32_t vn, int64_t drift, uint32_t id, int64_t away)
{
    unsigned i = 0;
    while (i < s->n_facts && (s->fact[i].vn != vn || s->fact[i].id != id))
        i++;
    if (i < s->n_facts && s->fact[i].away + distance(s->fact[i].drift, drift) <= away)
        return;
    if (i == s->n_facts)
        i = fact_slot(s);
    s->fact[i].vn = vn;
    s->fact[i].id = id;
    s->fact[i].drift = drift;
    s->fact[i].away = away;
}

/* How far outside window id a value is at most; INT64_MAX: no telling. */
static int64_t away_from(const struct state *s, const struct value *x, uint32_t id)
{
    int64_t away = INT64_MAX;
    for (unsigned i = 0; i < s->n_facts; i++)
        if (s->fact[i].vn == x->vn && s->fact[i].id == id) {
            int64_t a = s->fact[i].away + distance(s->fact[i].drift, x->drift);
            away = a < away ? a : away;
        }
    return away;
}

/* The id of which 8 bits are known in code of this view. */
static uint32_t whole_id(const struct verifier *v, uint8_t id)
{
    return (view_of(v) ? 0xff00u : 0) | id;
}

/* Is all that true here? */
static bool holds(const struct verifier *v, const struct state *s, const struct known *k)
{
    for (unsigned i = 0; i < KNOWN_IDS; i++)
        for (unsigned r = 0; r < 16; r++)
            if ((k->regs[i] >> r & 1) && away_from(s, &s->reg[r], whole_id(v, k->id[i])) > KNOWN_AWAY)
                return false;
    return !k->r11 || (k->r11 <= KNOWN_IDS && s->reg[R11].meaning == M_DELTA_ID &&
                       s->reg[R11].a == whole_id(v, k->id[k->r11 - 1]));
}

/* The same as a state to start from. */
static void assume(struct verifier *v, struct state *s, const struct known *k, bool r11)
{
    for (unsigned i = 0; i < KNOWN_IDS; i++)
        for (unsigned r = 0; r < 16; r++)
            if (k->regs[i] >> r & 1)
                learn(s, s->reg[r].vn, 0, whole_id(v, k->id[i]), KNOWN_AWAY);
    if (r11 && k->r11 && k->r11 <= KNOWN_IDS) {
        s->reg[R11].meaning = M_DELTA_ID;
        s->reg[R11].a = whole_id(v, k->id[k->r11 - 1]);
    }
}

/* May code with this state go to that place of another block, or of this one again? */
static bool entrance(struct verifier *v, const struct state *s, const struct tb *tb, uint64_t to)
{
    struct known k = tb->known;
    if (to == tb->entry || to == tb->entry_ind)
        return true;
    if ((to != tb->entry_known && to != tb->entry_load) || ((tb->key ^ v->tb->key) & KEY_USER))
        return false;
    if (to != tb->entry_known)
        k.r11 = 0;
    return holds(v, s, &k) || reject(v, "comes in behind checks that it cannot do without");
}

/* An access by an address and the delta of a window that has been checked to be its: it has faulted, or
 * was in that window. */
static void proves(struct state *s, const struct state *before, const cs_x86_op *op)
{
    unsigned reg[2], width;
    if (op->mem.segment != X86_REG_INVALID || op->mem.scale != 1 ||
        !gpr_of(op->mem.base, &reg[0], &width) || !gpr_of(op->mem.index, &reg[1], &width))
        return;
    for (unsigned i = 0; i < 2; i++) {
        const struct value *x = &before->reg[reg[i]], *d = &before->reg[reg[!i]];
        int64_t disp = op->mem.disp;
        if (d->meaning == M_DELTA_ID && delta_reaches(before, x->vn, x->drift, d, disp, disp))
            learn(s, x->vn, x->drift, (uint32_t)d->a, disp < 0 ? -disp : disp);
    }
}

/* Is this a value of the guest's, of which less may be known without harm? What the host's addresses are made
 * of stays that. */
static bool guest_value(const struct value *x, unsigned reg)
{
    switch (x->meaning) {
    case M_NONE:
    case M_NEAR:
    case M_CONST:
        return true;
    case M_BOUND:
    case M_NOT:
    case M_ROTATED:
    case M_ID:
        return reg != R10 && reg != R11;
    default:
        return false;
    }
}

/* The state on the edge of a conditional jump where the condition does not hold. */
static void not_taken(struct state *s, unsigned id)
{
    if (id == X86_INS_JA && s->cmp == CMP_TLB) {
        for (unsigned r = 0; r < 16; r++)
            if (s->reg[r].vn == s->cmp_vn && s->reg[r].drift == s->cmp_drift &&
                s->reg[r].meaning == M_TLB_OFFSET) {
                s->reg[r].meaning = M_TLB_IN;
                s->reg[r].b = s->cmp_imm;
            }
    } else if (id == X86_INS_JNE && s->cmp == CMP_ID) {
        learn(s, s->cmp_vn, s->cmp_drift, (uint32_t)s->cmp_imm, 0);
    } else if (id == X86_INS_JNE && s->cmp == CMP_SIGNED) {
        for (unsigned r = 0; r < 16; r++)
            if (s->reg[r].vn == s->cmp_vn && s->reg[r].drift == s->cmp_drift &&
                guest_value(&s->reg[r], r))
                s->reg[r] = (struct value){.vn = s->cmp_vn,
                                           .drift = s->cmp_drift,
                                           .narrow = s->reg[r].narrow,
                                           .meaning = M_SIGNED};
    }
}

/* Wherever the guest's registers may be looked at, they hold none of ours: at instruction boundaries and
 * where control leaves. */
static bool no_host_address(struct verifier *v, const struct state *s)
{
    for (unsigned r = 0; r < 16; r++)
        if (r != R10 && r != R11 && s->reg[r].meaning == M_HVA)
            return reject(v, "a host address in register %u", r);
    return true;
}

static bool check_jump(struct verifier *v, const cs_insn *in, const struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    if (x->op_count != 1)
        return reject(v, "jump without one operand");
    if (!no_host_address(v, s))
        return false;
    if (x->operands[0].type == X86_OP_MEM) {
        struct operand o = {.size = x->operands[0].size, .jump = true};
        if (in->id != X86_INS_JMP)
            return reject(v, "not a jump");
        if (s->reg[RSP].meaning == M_HOST_STACK)
            return reject(v, "leaves with the host's stack");
        if (!stack_intact(v, s, true))
            return reject(v, "leaves with a stack pointer that is not what it should be");
        if (x->operands[0].mem.segment != X86_REG_GS)
            return reject(v, "indirect jump through memory");
        return all_narrow(v, s) && operand_of(v, &x->operands[0], &o) && check_memory(v, s, &o);
    }
    if (x->operands[0].type != X86_OP_IMM)
        return reject(v, "indirect jump by register");
    uint64_t to = (uint64_t)x->operands[0].imm;
    struct state out = *s;
    out.cmp = CMP_NONE;
    bool again = to == v->tb->entry || to == v->tb->entry_load || to == v->tb->entry_known;
    if ((!boundary(v, to) || again) && !is_stub(v, to) && !stack_intact(v, s, true))
        return reject(v, "leaves with a stack pointer that is not what it should be");
    if (again && to != v->tb->entry) {
        if (!entrance(v, s, v->tb, to))
            return false;
    } else if (boundary(v, to))
        flow(v, (uint32_t)(to - v->tb->entry_ind), &out);
    else if (is_stub(v, to)) {
        if (!jump_to_stub(v, &out, to))
            return false;
    } else {
        struct tb *other = cache_find_pc(v->bt, to);
        if (!other || !entrance(v, s, other, to))
            return reject(v, "jumps to no instruction, stub or block");
        if (!all_narrow(v, s))
            return false;
    }
    if (in->id == X86_INS_JMP)
        return true;
    out = *s;
    not_taken(&out, in->id);
    out.cmp = CMP_NONE;
    if (!boundary(v, in->address + in->size))
        return reject(v, "runs off the end of the block");
    flow(v, v->off + in->size, &out);
    return true;
}

static uint64_t slot_offset(unsigned slot)
{
    return slot < 8 ? VOFF(scratch) + 8 * slot : VOFF(gpr) + 8 * (R10 + slot - 8);
}

/* Which of the followed words a gs: operand is, or -1. */
static int scratch_slot(const cs_x86_op *op)
{
    if (op->type != X86_OP_MEM || op->mem.segment != X86_REG_GS || op->mem.base || op->mem.index)
        return -1;
    for (unsigned i = 0; i < N_SCRATCH; i++)
        if ((uint64_t)op->mem.disp == slot_offset(i))
            return (int)i;
    return -1;
}

/* Bytes of the vCPU's state get a value that is not followed. */
static bool overwrite(struct verifier *v, struct state *s, uint64_t off, unsigned size)
{
    for (unsigned i = 0; i < N_SCRATCH; i++) {
        uint64_t slot = slot_offset(i);
        if (off >= slot + 8 || slot >= off + size)
            continue;
        if (i < 8 && off != slot)
            return reject(v, "part of a scratch word");
        unknown(&s->scratch[i], fresh(v->off, 16 + i));
    }
    return true;
}

/* The result of LEA with a base and an index: near the one if the other is bounded.  If both are, it is
 * near the one that R11 has the delta for. */
static void set_near(struct verifier *v, struct state *s, unsigned dst, const struct operand *o)
{
    const struct value part[2] = {s->reg[o->base], s->reg[o->index]};
    const struct value delta = s->reg[R11];
    struct value near[2];
    unsigned n = 0, chosen = 0;
    int64_t up, down;
    for (unsigned bounded = 2; bounded-- > 0;) {
        int64_t scale = bounded ? o->op->mem.scale : 1;
        if (!extent(&part[bounded], scale, &up, &down) || (!bounded && o->op->mem.scale != 1))
            continue;
        near[n++] = (struct value){.meaning = M_NEAR,
                                   .of = part[!bounded].vn,
                                   .of_drift = part[!bounded].drift + o->op->mem.disp,
                                   .a = (uint64_t)up,
                                   .b = down != 0};
    }
    for (unsigned i = 0; i < n && dst != R11; i++)
        if (delta_fits(s, &near[i], &delta, 0))
            chosen = i;
    forget(v, s, dst);
    if (!n)
        return;
    near[chosen].vn = s->reg[dst].vn;
    s->reg[dst] = near[chosen];
}

/* Of instructions whose 32-bit result is always written, and so zero-extended. */
static bool zero_extends(const cs_insn *in)
{
    switch (in->id) {
    case X86_INS_MOV: case X86_INS_MOVZX: case X86_INS_MOVSX: case X86_INS_LEA: case X86_INS_ADD:
    case X86_INS_OR: case X86_INS_ADC: case X86_INS_SBB: case X86_INS_AND: case X86_INS_SUB:
    case X86_INS_XOR: case X86_INS_IMUL: case X86_INS_NOT: case X86_INS_NEG: case X86_INS_INC:
    case X86_INS_DEC:
        return true;
    case X86_INS_SHL: case X86_INS_SAL: case X86_INS_SHR: case X86_INS_SAR: case X86_INS_ROL:
    case X86_INS_ROR: case X86_INS_RCL: case X86_INS_RCR: { /* by 0 nothing may be written */
        const cs_x86_op *by = &in->detail->x86.operands[1];
        return in->detail->x86.op_count == 1 || (by->type == X86_OP_IMM && by->imm & 31);
    }
    default:
        return in->mnemonic[0] == 'c' && in->mnemonic[1] == 'm' && in->mnemonic[2] == 'o';
    }
}

/* What the width of its result says of the register an instruction has written. */
static void set_extension(struct verifier *v, const cs_insn *in, struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    unsigned n, width, sn, sw = 0;
    if (in->id == X86_INS_CDQE) {
        set_meaning(v, s, RAX, M_SIGNED, 0);
        return;
    }
    if (!x->op_count || x->operands[0].type != X86_OP_REG || !gpr_of(x->operands[0].reg, &n, &width))
        return;
    if (x->op_count > 1 && x->operands[1].type == X86_OP_REG)
        gpr_of(x->operands[1].reg, &sn, &sw);
    if (width == 8 && (in->id == X86_INS_MOVSXD || in->id == X86_INS_MOVSX))
        set_meaning(v, s, n, M_SIGNED, 0);
    else if (width == 8 && in->id == X86_INS_MOVZX)
        set_meaning(v, s, n, M_BOUND, 0xffff);
    else if (width == 8 && in->id == X86_INS_AND && x->operands[1].type == X86_OP_IMM &&
             x->operands[1].imm >= 0 && x->operands[1].imm <= 0x7fffffff)
        set_meaning(v, s, n, M_BOUND, (uint64_t)x->operands[1].imm);
    else if (width == 4 && zero_extends(in) && !(in->id == X86_INS_IMUL && x->op_count == 1))
        set_meaning(v, s, n, M_BOUND, 0xffffffff);
}

/* -- String instructions --------------------------------------------------------------------------
 */

/* Is what `value` has more than a guest address the delta in this register? */
static bool has_delta_of(const struct value *value, const struct value *delta)
{
    return value->meaning == M_HVA && value->of && value->of == delta->vn &&
           value->of_drift == delta->drift;
}

/* lea reg, [reg + ~delta + 1]: a guest address again? */
static bool string_restored(const struct state *s, unsigned dst, const cs_x86_op *lea,
                            const struct operand *o)
{
    if (o->base < 0 || o->index < 0 || dst != (unsigned)o->base || lea->mem.disp != 1 ||
        lea->mem.scale != 1)
        return false;
    const struct value *x = &s->reg[o->base], *n = &s->reg[o->index];
    return x->meaning == M_HVA && x->of && n->meaning == M_NOT && n->of == x->of &&
           n->of_drift == x->of_drift;
}

/* Where a string instruction has left off: nothing but the way back may be done with it. */
static bool is_swept(const struct state *s, unsigned reg)
{
    unsigned n, width;
    return reg != X86_REG_INVALID && gpr_of(reg, &n, &width) && s->reg[n].meaning == M_HVA &&
           s->reg[n].a == 0;
}

static bool same_register(unsigned a, unsigned b)
{
    unsigned n, m, width;
    return a != X86_REG_INVALID && gpr_of(a, &n, &width) && gpr_of(b, &m, &width) && n == m;
}

static bool uses_swept(struct verifier *v, const cs_insn *in, const struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    for (unsigned i = 0; i < x->op_count; i++) {
        const cs_x86_op *op = &x->operands[i];
        struct operand o;
        if (op->type == X86_OP_REG && is_swept(s, op->reg) &&
            !(in->id == X86_INS_LEA && i == 0 && x->op_count == 2 &&
              same_register(x->operands[1].mem.base, op->reg)))
            return true;
        if (op->type != X86_OP_MEM || (!is_swept(s, op->mem.base) && !is_swept(s, op->mem.index)))
            continue;
        unsigned dst, width;
        if (in->id != X86_INS_LEA || !gpr_of(x->operands[0].reg, &dst, &width) ||
            width != (v->tb->key & KEY_LEGACY ? 4 : 8) ||
            !operand_of(v, op, &o) || !string_restored(s, dst, op, &o))
            return true;
    }
    return false;
}

/*
 * Each operand is the sum of an address in reach of a window and its delta: accesses go on from there
 * without a gap, so a guard zone ends them, however many they are.  The side table says what signals.c is
 * to subtract, and from what.
 */
static bool check_string(struct verifier *v, const cs_insn *in, struct state *s,
                         const struct verify_string *str)
{
    const struct side_entry *se = tb_side_lookup(v->tb, in->address);
    unsigned kind = str->src && str->dst ? SIDE_STRING_BOTH
                    : str->src           ? SIDE_STRING_RSI
                                         : SIDE_STRING_RDI;
    bool legacy = v->tb->key & KEY_LEGACY, narrow[2] = {s->reg[RAX].narrow, s->reg[RCX].narrow};
    if (in->detail->x86.addr_size != 8 || !v->tb->window || (legacy && str->wide))
        return reject(v, "a string instruction in a block that cannot have it");
    if (!se || side_host(v->tb, se) != in->address || se->kind != kind)
        return reject(v, "a string instruction that the side table does not know");
    if (str->src && !has_delta_of(&s->reg[RSI], &s->reg[str->dst && !legacy ? R10 : R11]))
        return reject(v, "a string instruction without a check of RSI");
    if (str->dst && (!has_delta_of(&s->reg[RDI], &s->reg[R11]) || (str->writes && !s->reg[RDI].b)))
        return reject(v, "a string instruction without a check of RDI");
    for (unsigned r = RSI; r <= RDI; r++)
        if (r == RSI ? str->src : str->dst) { /* somewhere else now, good for nothing but the way back */
            s->reg[r].vn = fresh(v->off, r);
            s->reg[r].drift = 0;
            s->reg[r].a = s->reg[r].b = 0;
        }
    if (str->repeat)
        forget(v, s, RCX);
    if (str->accumulator)
        forget(v, s, RAX);
    s->reg[RAX].narrow = legacy && narrow[0]; /* it has counted down, or got less than 64 bits */
    s->reg[RCX].narrow = legacy && narrow[1];
    return true;
}

/*
 * What only RSP can do in 64-bit code: true if the instruction is that (or refused).  The register has
 * no other use, for its value is the host's.
 */
static bool stack_effect(struct verifier *v, const cs_insn *in, struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    const cs_x86_op *d = &x->operands[0], *r = &x->operands[1];
    const uint8_t *b = in->bytes + (in->bytes[0] == 0x41);
    unsigned dst = 0, dw = 0, src = 0, sw = 0, n, width;
    bool dreg = x->op_count > 0 && d->type == X86_OP_REG && gpr_of(d->reg, &dst, &dw);
    bool sreg = x->op_count > 1 && r->type == X86_OP_REG && gpr_of(r->reg, &src, &sw);
    struct value *rsp = &s->reg[RSP];
    struct operand o = {0};
    bool to_rsp = dreg && dst == RSP && dw == 8;

    switch (in->id) {
    case X86_INS_PUSH: /* of a register or a constant, eight bytes */
        if (!((b[0] & 0xf8) == 0x50 || (b == in->bytes && (b[0] == 0x68 || b[0] == 0x6a))) ||
            (dreg && dst == RSP) || !stack_reaches(s, -8, 0, 8))
            return reject(v, "pushes on something that is no stack of the guest"), true;
        rsp->a = 0;
        return true;
    case X86_INS_POP:
        if (!is_stack(rsp))
            return false;
        if ((b[0] & 0xf8) != 0x58 || !dreg || dst == RSP || !stack_reaches(s, 0, 0, 8))
            return reject(v, "pops what is no stack of the guest"), true;
        forget(v, s, dst);
        rsp->a = 8;
        return true;
    case X86_INS_MOV:
        if (d->type == X86_OP_MEM && sreg && sw == 8 && d->mem.segment == X86_REG_GS &&
            !d->mem.base && !d->mem.index && (uint64_t)d->mem.disp == VOFF(bt.stack_not)) {
            if (s->reg[src].meaning != M_NOT || s->reg[src].of_drift || !is_stack(rsp) ||
                rsp->of != s->reg[src].of)
                return reject(v, "not the delta of the stack pointer"), true;
            rsp->of = 0;
            return true;
        }
        if (dreg && dw == 8 && r->type == X86_OP_MEM && r->mem.segment == X86_REG_GS &&
            !r->mem.base && !r->mem.index && (uint64_t)r->mem.disp == VOFF(bt.stack_not)) {
            if (dst == RSP || !stack_intact(v, s, false))
                return reject(v, "the stack pointer is not what this is about"), true;
            set_meaning(v, s, dst, M_UNDO, 0);
            return true;
        }
        if (dreg && dst != RSP && scratch_slot(r) >= 0 && is_stack(&s->scratch[scratch_slot(r)]))
            return reject(v, "reads the host's address of the stack"), true;
        if (d->type == X86_OP_MEM && sreg && src == RSP && sw == 8 && scratch_slot(d) >= 0)
            return false;
        break;
    case X86_INS_LEA:
        if (!dreg || r->type != X86_OP_MEM)
            break;
        if (r->mem.base == X86_REG_ESP && is_stack(rsp))
            return reject(v, "reads the host's address of the stack"), true;
        if (!to_rsp && r->mem.base != X86_REG_RSP)
            break;
        if (!operand_of(v, r, &o))
            return true;
        if (o.base == RSP && is_stack(rsp)) {
            if (to_rsp && o.index < 0) {
                stack_moves(s, r->mem.disp);
            } else if (dw == 8 && o.index >= 0 && r->mem.scale == 1 && s->reg[o.index].meaning == M_UNDO) {
                forget(v, s, dst); /* the guest's RSP, and that minus 1 */
            } else {
                reject(v, "reads the host's address of the stack");
            }
            return true;
        }
        if (to_rsp && o.base >= 0 && o.index >= 0 && r->mem.scale == 1 && r->mem.disp == 0) {
            const struct value *delta = &s->reg[o.index], *address = &s->reg[o.base];
            if (delta->meaning != M_DELTA_OF || delta->of != address->vn ||
                delta->of_drift != address->drift)
                return reject(v, "a stack pointer without a look at its window"), true;
            uint32_t of = delta->vn;
            set_meaning(v, s, RSP, M_STACK, 0);
            s->reg[RSP].of = of;
            return true;
        }
        break;
    case X86_INS_AND:
        if (to_rsp && is_stack(rsp) && r->type == X86_OP_IMM && r->imm < 0 &&
            r->imm >= -(int64_t)GUEST_PAGE_SIZE) {
            stack_moves(s, GUEST_PAGE_SIZE);
            return true;
        }
        break;
    }
    for (unsigned i = 0; is_stack(rsp) && i < x->op_count; i++)
        if (x->operands[i].type == X86_OP_REG && gpr_of(x->operands[i].reg, &n, &width) && n == RSP &&
            !(in->id == X86_INS_MOV && to_rsp))
            return reject(v, "the host's address of the stack as data"), true;
    return false;
}

/* Effects that the analysis follows. True if the instruction was one of them (its memory operands
 * have been checked); everything else just makes the registers it writes unknown. */
static bool known_effect(struct verifier *v, const cs_insn *in, struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    const cs_x86_op *d = &x->operands[0], *r = &x->operands[1];
    unsigned dst = 0, dw = 0, src = 0, sw = 0;
    bool dreg = x->op_count > 0 && d->type == X86_OP_REG && gpr_of(d->reg, &dst, &dw);
    bool sreg = x->op_count > 1 && r->type == X86_OP_REG && gpr_of(r->reg, &src, &sw);
    struct operand o = {0};
    switch (in->id) {
    case X86_INS_MOV:
    case X86_INS_MOVABS:
        if (dreg && r->type == X86_OP_IMM && dw >= 4) {
            uint64_t imm = (uint64_t)r->imm;
            set_meaning(v, s, dst, M_CONST, dw == 4 ? (uint32_t)imm : imm);
            return true;
        }
        if (dreg && sreg && dw == 8 && sw == 8) {
            s->reg[dst] = s->reg[src];
            return true;
        }
        if (dreg && dw == 8 && r->type == X86_OP_MEM && r->mem.segment == X86_REG_GS) {
            int slot = scratch_slot(r);
            if (slot >= 0) {
                s->reg[dst] = s->scratch[slot];
                return true;
            }
            uint64_t off = (uint64_t)r->mem.disp;
            uint64_t deltas = VOFF(window_delta) + view_of(v) * sizeof(uint64_t) * 65536;
            if (!operand_of(v, r, &o))
                return true;
            o.size = 8;
            struct value idx = o.index >= 0 ? s->reg[o.index] : (struct value){0};
            if (!check_memory(v, s, &o))
                return true;
            if (o.base < 0 && o.index < 0 && off == VOFF(host_rsp)) {
                if (dst == RSP)
                    set_meaning(v, s, RSP, M_HOST_STACK, 0);
                else
                    reject(v, "reads the host's stack pointer");
            } else if (o.base < 0 && o.index < 0 && off == VOFF(bt.flat_base)) {
                set_meaning(v, s, dst, M_FLAT, 0);
            } else if (o.base < 0 && o.index < 0 && inside(off, 8, deltas, 8 * 65536)) {
                set_meaning(v, s, dst, M_DELTA_ID, (off - deltas) / 8);
            } else if (o.index >= 0 && o.base < 0 && off == deltas && idx.meaning == M_ID) {
                set_meaning(v, s, dst, M_DELTA_OF, 0);
                s->reg[dst].of = idx.of;
                s->reg[dst].of_drift = idx.of_drift;
            } else {
                forget(v, s, dst);
            }
            return true;
        }
        if (d->type == X86_OP_MEM && sreg && sw == 8 && scratch_slot(d) >= 0) {
            s->scratch[scratch_slot(d)] = s->reg[src];
            return true;
        }
        return false;
    case X86_INS_LEA: {
        if (!dreg || r->type != X86_OP_MEM)
            return false;
        unsigned n, w;
        bool wide = dw == 8 && gpr_of(r->mem.base, &n, &w) && w == 8;
        if (r->mem.base == X86_REG_RIP || r->mem.base == X86_REG_EIP) {
            reject(v, "RIP-relative address");
            return true;
        }
        if (!wide) {
            forget(v, s, dst);
            if (dw == 4)
                set_meaning(v, s, dst, M_BOUND, 0xffffffff);
            return true;
        }
        if (!operand_of(v, r, &o))
            return true;
        o.size = 64;
        if (string_restored(s, dst, r, &o)) {
            forget(v, s, dst);
        } else if (o.base >= 0 && o.index == R11 && dst == R10 && !r->mem.disp && r->mem.scale == 1 &&
                   s->reg[o.base].narrow && s->reg[R11].meaning == M_FLAT && !s->reg[R11].drift) {
            set_meaning(v, s, R10, M_FLAT_SUM, 0);
        } else if (o.base >= 0 && o.index == R11 && dst == (unsigned)o.base && (dst == RSI || dst == RDI) &&
                   !r->mem.disp && r->mem.scale == 1 && s->reg[dst].narrow &&
                   s->reg[R11].meaning == M_FLAT && !s->reg[R11].drift) {
            uint32_t base = s->reg[R11].vn; /* as string instructions need it */
            set_meaning(v, s, dst, M_HVA, 512);
            s->reg[dst].b = 1;
            s->reg[dst].of = base;
        } else if (o.base >= 0 && o.index == R11 && dst == R10 && o.base != R10 && !r->mem.disp &&
                   r->mem.scale == 1 &&
                   away_from_window(s, &s->reg[o.base], &s->reg[R11]) <= REACH) {
            int64_t away = away_from_window(s, &s->reg[o.base], &s->reg[R11]);
            set_meaning(v, s, R10, M_SUM, (uint64_t)away);
        } else if (o.base >= 0 && s->reg[o.base].meaning == M_SUM) { /* where the index cannot stay */
            bool reaches = form_sum(s, &o);
            forget(v, s, dst);
            if (reaches) {
                set_meaning(v, s, dst, M_HVA, 512);
                s->reg[dst].b = 1;
            }
        } else if (o.base >= 0 && form_window(v, s, &o)) {
            struct value delta = {0};
            /* base + delta, as string instructions need it and only to be taken apart again */
            if (o.index >= 0 && !r->mem.disp && dst == (unsigned)o.base)
                delta = s->reg[o.index];
            set_meaning(v, s, dst, M_HVA, 512);
            s->reg[dst].b = 1;
            s->reg[dst].of = delta.vn;
            s->reg[dst].of_drift = delta.drift;
        } else if (o.index < 0 && o.base >= 0) {
            set_drift(v, s, dst, s->reg[o.base], r->mem.disp);
        } else if (o.index >= 0 && o.base >= 0) {
            set_near(v, s, dst, &o);
        } else {
            forget(v, s, dst);
        }
        return true;
    }
    case X86_INS_AND:
        if (dreg && dw == 4 && r->type == X86_OP_IMM) {
            set_meaning(v, s, dst, M_BOUND, (uint32_t)r->imm);
            return true;
        }
        return false;
    case X86_INS_MOVZX:
        if (dreg && dw >= 4 && sreg && sw == 2) {
            struct value from = s->reg[src];
            if (from.meaning == M_ROTATED) {
                set_meaning(v, s, dst, M_ID, 0);
                s->reg[dst].of = from.of;
                s->reg[dst].of_drift = from.of_drift;
            } else {
                set_meaning(v, s, dst, M_BOUND, 0xffff);
            }
            return true;
        }
        return false;
    case X86_INS_PEXT: /* Intel's order: destination, source, mask */
        if (dreg && dw == 8 && sreg && x->op_count == 3 && x->operands[2].type == X86_OP_REG &&
            x->operands[2].reg == r->reg) {
            set_meaning(v, s, dst, M_ONES, 0);
            return true;
        }
        return false;
    case X86_INS_RORX:
        if (dreg && dw == 8 && sreg && x->op_count == 3 && x->operands[2].type == X86_OP_IMM &&
            (x->operands[2].imm & 63) == WINDOW_SHIFT) {
            struct value from = s->reg[src];
            set_meaning(v, s, dst, M_ROTATED, 0);
            s->reg[dst].of = from.vn;
            s->reg[dst].of_drift = from.drift;
            return true;
        }
        return false;
    case X86_INS_SUB:
    case X86_INS_ADD: {
        if (!dreg || dw != 8)
            return false;
        if (r->type == X86_OP_IMM) {
            set_drift(v, s, dst, s->reg[dst], in->id == X86_INS_ADD ? r->imm : -r->imm);
            return true;
        }
        if (r->type != X86_OP_MEM || r->mem.segment != X86_REG_GS || !r->mem.base || r->mem.index)
            return false;
        if (!operand_of(v, r, &o))
            return true;
        o.size = 8;
        if (!check_memory(v, s, &o))
            return true;
        const struct value *idx = &s->reg[o.base];
        uint64_t table = VOFF(stlb) + view_of(v) * STLB_SIZE * sizeof(struct soft_tlb_entry);
        uint64_t field = (uint64_t)r->mem.disp - table;
        struct value old = s->reg[dst];
        forget(v, s, dst);
        if (in->id == X86_INS_SUB && dst != (unsigned)o.base &&
            field != offsetof(struct soft_tlb_entry, host)) {
            s->reg[dst].meaning = M_TLB_OFFSET;
            s->reg[dst].of = idx->vn;
            s->reg[dst].of_drift = idx->drift;
            s->reg[dst].a = field == offsetof(struct soft_tlb_entry, wtag);
        } else if (in->id == X86_INS_ADD && field == offsetof(struct soft_tlb_entry, host) &&
                   old.meaning == M_TLB_IN && old.of == idx->vn && old.of_drift == idx->drift &&
                   old.b < GUEST_PAGE_SIZE) {
            s->reg[dst].meaning = M_HVA;
            s->reg[dst].b = old.a;
            s->reg[dst].a = GUEST_PAGE_SIZE - old.b;
        }
        return true;
    }
    case X86_INS_NOT:
        if (!dreg || dw != 8)
            return false;
        {
            struct value from = s->reg[dst];
            set_meaning(v, s, dst, M_NOT, 0);
            s->reg[dst].of = from.vn;
            s->reg[dst].of_drift = from.drift;
        }
        return true;
    case X86_INS_INC:
    case X86_INS_DEC:
        if (!dreg || dw != 8)
            return false;
        set_drift(v, s, dst, s->reg[dst], in->id == X86_INS_INC ? 1 : -1);
        return true;
    case X86_INS_MOVSXD:
        if (!dreg || dw != 8 || !sreg || sw != 4)
            return false;
        {
            struct value from = s->reg[src];
            set_meaning(v, s, dst, M_SIGNED, 0);
            s->reg[dst].of = from.vn;
            s->reg[dst].of_drift = from.drift;
        }
        return true;
    case X86_INS_CMP:
        if (dreg && dw == 8 && sreg && sw == 8 && s->reg[src].meaning == M_SIGNED &&
            s->reg[src].of == s->reg[dst].vn && s->reg[src].of_drift == s->reg[dst].drift) {
            s->cmp = CMP_SIGNED;
            s->cmp_vn = s->reg[dst].vn;
            s->cmp_drift = s->reg[dst].drift;
            return true;
        }
        if (!dreg || r->type != X86_OP_IMM)
            return false;
        if (dw == 8 && s->reg[dst].meaning == M_TLB_OFFSET && r->imm >= 0) {
            s->cmp = CMP_TLB;
            s->cmp_vn = s->reg[dst].vn;
            s->cmp_drift = s->reg[dst].drift;
            s->cmp_imm = (uint64_t)r->imm;
        } else if (dw == 1 && !high_byte(d->reg) && s->reg[dst].meaning == M_ROTATED) {
            /* What has other bits above these eight faults with this window's delta (lower.c). */
            s->cmp = CMP_ID;
            s->cmp_vn = s->reg[dst].of;
            s->cmp_drift = s->reg[dst].of_drift;
            s->cmp_imm = (view_of(v) ? 0xff00u : 0) | (uint8_t)r->imm;
        }
        return true;
    case X86_INS_PUSHFQ:
        if (s->reg[RSP].meaning != M_HOST_STACK || s->reg[RSP].a != 0)
            reject(v, "pushes on something that is not the host's stack");
        set_meaning(v, s, RSP, M_HOST_STACK, 8);
        return true;
    case X86_INS_POP:
        if (s->reg[RSP].meaning != M_HOST_STACK || s->reg[RSP].a != 8 || !dreg || dw != 8 ||
            dst == RSP)
            reject(v, "pops what was not pushed");
        forget(v, s, dst);
        set_meaning(v, s, RSP, M_HOST_STACK, 0);
        return true;
    }
    return false;
}

static bool check_operands(struct verifier *v, const cs_insn *in, struct state *s)
{
    const cs_x86 *x = &in->detail->x86;
    unsigned n, width;
    bool nop = in->id == X86_INS_NOP;
    for (unsigned i = 0; i < x->op_count; i++) {
        const cs_x86_op *op = &x->operands[i];
        if (op->type == X86_OP_REG) {
            if (!gpr_of(op->reg, &n, &width) && !data_register(op->reg))
                return reject(v, "uses register %s", cs_reg_name(v->d.cs, op->reg));
        } else if (op->type == X86_OP_MEM && !nop) {
            struct operand o = {.size = verify_access_size(in, op)};
            o.write = in->id ? !verify_reads_only(in) && (i == 0 || (op->access & CS_AC_WRITE))
                             : op->access & CS_AC_WRITE;
            if (in->id == X86_INS_MASKMOVQ || in->id == X86_INS_MASKMOVDQU ||
                in->id == X86_INS_VMASKMOVDQU) {
                o.size = in->id == X86_INS_MASKMOVQ ? 8 : 16;
                o.write = true;
            }
            if (!operand_of(v, op, &o) || !check_memory(v, s, &o))
                return false;
            if (o.write && op->mem.segment == X86_REG_GS && !op->mem.base && !op->mem.index &&
                !overwrite(v, s, (uint64_t)op->mem.disp, o.size))
                return false;
        }
    }
    return true;
}

/* May the instruction leave its memory operand alone? */
static bool masked(const cs_insn *in)
{
    const cs_x86 *x = &in->detail->x86;
    for (unsigned i = 0; i < x->op_count; i++)
        if (x->operands[i].type == X86_OP_REG && x->operands[i].reg >= X86_REG_K0 &&
            x->operands[i].reg <= X86_REG_K7)
            return true;
    switch (in->id) {
    case X86_INS_VMASKMOVPS: case X86_INS_VMASKMOVPD: case X86_INS_VPMASKMOVD:
    case X86_INS_VPMASKMOVQ:
        return true;
    default: /* EVEX with a mask, should Capstone not list it; prefetches */
        return (in->bytes[0] == 0x62 && in->bytes[3] & 7) || strncmp(in->mnemonic, "prefetch", 8) == 0;
    }
}

static bool check_insn(struct verifier *v)
{
    const cs_insn *in = v->d.insn[v->off];
    struct state s = *v->in[v->off];
    const cs_x86 *x = &in->detail->x86;
    const struct side_entry *se = tb_side_lookup(v->tb, in->address);
    struct verify_string str;

    if (se && side_host(v->tb, se) == in->address &&
        (se->kind == SIDE_BOUNDARY || se->kind == SIDE_ELEMENT) && !no_host_address(v, &s))
        return false;
    if (verify_string(in, &str)) {
        if (!check_string(v, in, &s, &str))
            return false;
        s.cmp = CMP_NONE;
        if (!boundary(v, in->address + in->size))
            return reject(v, "runs off the end of the block");
        flow(v, v->off + in->size, &s);
        return true;
    }
    if (se && side_is_string(se->kind))
        return reject(v, "what the side table takes for a string instruction");
    if (uses_swept(v, in, &s))
        return reject(v, "calculates with a host address");
    if (verify_forbidden(&v->d, in))
        return reject(v, "forbidden");
    if (cs_insn_group(v->d.cs, in, X86_GRP_JUMP) || in->id == X86_INS_LOOP ||
        in->id == X86_INS_LOOPE || in->id == X86_INS_LOOPNE) {
        if (in->id == X86_INS_LOOP || in->id == X86_INS_LOOPE || in->id == X86_INS_LOOPNE)
            s.reg[RCX] = (struct value){.vn = fresh(v->off, RCX), .narrow = s.reg[RCX].narrow};
        return check_jump(v, in, &s);
    }
    s.cmp = CMP_NONE;
    bool mask =
        in->id == X86_INS_MASKMOVQ || in->id == X86_INS_MASKMOVDQU || in->id == X86_INS_VMASKMOVDQU;
    if (mask) { /* [rdi], which Capstone may not list */
        cs_x86_op rdi = {.type = X86_OP_MEM, .mem = {.base = X86_REG_RDI, .scale = 1}};
        struct operand o = {.size = in->id == X86_INS_MASKMOVQ ? 8 : 16, .write = true};
        if (x->addr_size != 8)
            return reject(v, "32-bit address");
        if (!operand_of(v, &rdi, &o) || !check_memory(v, &s, &o))
            return false;
    }
    if (native_stack(v) && stack_effect(v, in, &s)) {
        if (v->failed)
            return false;
    } else if (!native_stack(v) && in->id == X86_INS_PUSH) {
        return reject(v, "forbidden");
    } else if (!known_effect(v, in, &s)) {
        if (!check_operands(v, in, &s))
            return false;
        unsigned n, width;
        /* Capstone has TEST AL, imm8 write its register, and does not know about the count of SHLD. */
        for (unsigned i = 0; i < x->op_count && in->id != X86_INS_TEST; i++)
            if (x->operands[i].type == X86_OP_REG && gpr_of(x->operands[i].reg, &n, &width) &&
                (in->id == X86_INS_CMPXCHG || in->id == X86_INS_SHLD || in->id == X86_INS_SHRD ? i == 0
                 : in->id == X86_INS_XCHG || in->id == X86_INS_XADD
                     ? true
                 : in->id == X86_INS_MULX ? i < 2
                     : !x->operands[i].access || (x->operands[i].access & CS_AC_WRITE)))
                forget(v, &s, n);
        int implicit = verify_implicit_writes(in);
        for (unsigned r = 0; implicit > 0 && r < 16; r++)
            if (implicit >> r & 1)
                forget(v, &s, r);
        for (unsigned i = 0; implicit < 0 && i < in->detail->regs_write_count; i++)
            if (gpr_of(in->detail->regs_write[i], &n, &width))
                forget(v, &s, n);
        set_extension(v, in, &s);
    }
    for (unsigned i = 0; native_stack(v) && i < x->op_count; i++)
        if (x->operands[i].type == X86_OP_MEM && x->operands[i].mem.base == X86_REG_RSP &&
            x->operands[i].mem.index == X86_REG_INVALID && in->id != X86_INS_LEA &&
            in->id != X86_INS_NOP && x->operands[i].mem.segment != X86_REG_GS && !masked(in))
            stack_used(&s, x->operands[i].mem.disp);
    for (unsigned i = 0; i < x->op_count && in->id != X86_INS_LEA && in->id != X86_INS_NOP; i++)
        if (x->operands[i].type == X86_OP_MEM && !masked(in))
            proves(&s, v->in[v->off], &x->operands[i]);
    if (v->failed)
        return false;
    if (!boundary(v, in->address + in->size))
        return reject(v, "runs off the end of the block");
    keep_narrow(v, in, v->in[v->off], &s);
    flow(v, v->off + in->size, &s);
    return true;
}

/* -- Order and entry
 * ------------------------------------------------------------------------------- */

/* Is this `mov gs:[disp32], r64`? */
static bool stores_to_state(const struct verifier *v, uint32_t off)
{
    const uint8_t *c = v->d.code + off;
    const cs_insn *in = v->d.insn[off];
    return in && in->size == 9 && c[0] == 0x65 && (c[1] & 0xfb) == 0x48 && c[2] == 0x89;
}

/* Where control can go from an instruction, as far as one look tells: offsets into to[4]. */
static unsigned successors(struct verifier *v, uint32_t off, uint32_t *to)
{
    const cs_insn *in = v->d.insn[off];
    const cs_x86 *x = &in->detail->x86;
    uint64_t host[5];
    unsigned n = 0, kept = 0;
    bool jump = cs_insn_group(v->d.cs, in, X86_GRP_JUMP) || in->id == X86_INS_LOOP ||
                in->id == X86_INS_LOOPE || in->id == X86_INS_LOOPNE;
    if (in->id != X86_INS_JMP)
        host[n++] = in->address + in->size;
    if (jump && x->op_count == 1 && x->operands[0].type == X86_OP_IMM) {
        uint64_t t = (uint64_t)x->operands[0].imm;
        /* Before a jump to a stub its argument is loaded: `mov r32, imm32`; for light callouts there
         * may be registers stored in between. */
        uint32_t arg = 0, at = off;
        while (t == v->bt->stub_light && at >= 9 && stores_to_state(v, at - 9))
            at -= 9;
        if (is_stub(v, t) && at >= 6 && v->d.insn[at - 6] && v->d.code[at - 6] == 0x41)
            memcpy(&arg, v->d.code + at - 4, 4);
        if (callout_stub(v->bt, t) && in_meta(v, arg, sizeof(struct callout))) {
            host[n++] = ((const struct callout *)(uintptr_t)arg)->resume;
        } else if ((t == v->bt->stub_prepare || t == v->bt->stub_commit ||
                    t == v->bt->stub_count[0] || t == v->bt->stub_count[1] ||
                    t == v->bt->stub_as_user[0] || t == v->bt->stub_as_user[1] ||
                    access_stub(v, t) >= 0) &&
                   in_meta(v, arg, sizeof(struct mem_site))) {
            const struct mem_site *s = (const struct mem_site *)(uintptr_t)arg;
            bool count = t == v->bt->stub_count[0] || t == v->bt->stub_count[1];
            if (!count)
                host[n++] = t == v->bt->stub_commit ? s->resume_done : s->resume_bounce;
            if (t != v->bt->stub_commit)
                host[n++] = s->resume;
        } else if (t == v->bt->stub_exit_link && link_at(v, arg)) {
            if (link_at(v, arg)->inlined)
                host[n++] = link_at(v, arg)->inlined;
            if (far_link_at(v, arg))
                host[n++] = far_link_at(v, arg)->closed;
        } else {
            host[n++] = t;
        }
    }
    for (unsigned i = 0; i < n; i++)
        if (boundary(v, host[i]))
            to[kept++] = (uint32_t)(host[i] - v->tb->entry_ind);
    return kept;
}

/*
 * Reverse postorder: in a block without loops, which is nearly all of them, the analysis then sees
 * every instruction once, with all that leads to it known.
 */
static bool find_order(struct verifier *v)
{
    uint32_t *stack = calloc(v->d.size, sizeof *stack);
    uint8_t *tried = calloc(v->d.size, 1);
    uint32_t *post = calloc(v->d.size, sizeof *post), n = 0;
    bool ok = stack && tried && post;
    uint32_t roots[3] = {v->tb->entry - v->tb->entry_ind, 0,
                         v->tb->side_door ? v->tb->side_door - v->tb->entry_ind : 0};
    for (unsigned r = 0; ok && r < 3; r++) {
        uint32_t depth = 0;
        if (v->rank[roots[r]])
            continue;
        stack[depth++] = roots[r];
        v->rank[roots[r]] = 1;
        while (depth) {
            uint32_t off = stack[depth - 1], to[5];
            unsigned k = successors(v, off, to);
            while (tried[off] < k && v->rank[to[tried[off]]])
                tried[off]++;
            if (tried[off] < k) {
                v->rank[to[tried[off]]] = 1;
                stack[depth++] = to[tried[off]];
            } else {
                post[n++] = off;
                depth--;
            }
        }
    }
    memset(v->rank, 0, v->d.size * sizeof *v->rank);
    for (uint32_t i = 0; ok && i < n; i++) {
        v->order[i] = post[n - 1 - i];
        v->rank[v->order[i]] = i + 1;
    }
    v->n_order = n;
    free(stack);
    free(tried);
    free(post);
    return ok;
}

static bool verify(struct bt_engine *bt, struct verify_kit *kit, const struct tb *tb,
                   const uint8_t *code, bool quiet)
{
    struct verifier v = {.bt = bt,
                         .tb = tb,
                         .quiet = quiet,
                         .d = {.code = code,
                               .size = tb->host_end - tb->entry_ind,
                               .address = tb->entry_ind,
                               .kit = kit}};
    const uint32_t n = v.d.size;
    unsigned long steps = 0;
    v.in = calloc(n, sizeof *v.in);
    v.order = calloc(n, sizeof *v.order);
    v.rank = calloc(n, sizeof *v.rank);
    v.dirty = calloc(n, sizeof *v.dirty);
    v.done = calloc(n, sizeof *v.done);
    v.loop = calloc(n, sizeof *v.loop);
    if (!verify_decode(&v.d, &v.off)) {
        if (v.d.insn)
            reject(&v, "not an instruction");
        v.failed = true;
    } else if (!v.in || !v.order || !v.rank || !v.dirty || !v.done || !v.loop) {
        v.failed = true;
    } else if (!boundary(&v, tb->entry) || (tb->side_door && !boundary(&v, tb->side_door)) ||
               !boundary(&v, tb->entry_load) || !boundary(&v, tb->entry_known)) {
        reject(&v, "an entry is no instruction");
    } else if (!find_order(&v)) {
        v.failed = true;
    } else {
        struct state s = {0};
        for (unsigned r = 0; r < 16; r++)
            unknown(&s.reg[r], 1 + r);
        for (unsigned i = 0; i < N_SCRATCH; i++)
            unknown(&s.scratch[i], 17 + i);
        make_narrow(&v, &s);
        if (native_stack(&v)) {
            s.reg[RSP].meaning = M_STACK;
            s.reg[RSP].a = STACK_SLACK;
        }
        v.off = 0;
        flow(&v, 0, &s);
        flow(&v, tb->entry - tb->entry_ind, &s);
        if (tb->side_door)
            flow(&v, tb->side_door - tb->entry_ind, &s);
        if (tb->entry_known != tb->entry) {
            assume(&v, &s, &tb->known, false);
            flow(&v, tb->entry_load - tb->entry_ind, &s);
            assume(&v, &s, &tb->known, true);
            flow(&v, tb->entry_known - tb->entry_ind, &s);
        }
        for (v.next = 0; !v.failed && v.next < v.n_order;) {
            uint32_t place = v.next++;
            if (!v.dirty[place])
                continue;
            v.dirty[place] = false;
            v.off = v.order[place];
            if (++steps > 100ul * n) { /* it would be a bug of this verifier */
                reject(&v, "the analysis does not come to an end");
                break;
            }
            check_insn(&v);
            v.done[v.off] = true;
            if (!v.dirty[place]) /* or it jumps to itself, with what that needs */
                drop_state(&v, v.off);
        }
        for (uint32_t off = 0; off < n && !v.failed; off++)
            if (v.d.insn[off] && !v.done[off]) {
                v.off = off;
                reject(&v, "cannot be reached, which means that this verifier missed something");
            }
    }
    for (uint32_t off = 0; v.in && off < n; off++)
        free(v.in[off]);
    for (struct state *s = v.free_states, *next; s; s = next) {
        next = s->next;
        free(s);
    }
    free(v.in);
    free(v.order);
    free(v.rank);
    free(v.dirty);
    free(v.done);
    free(v.loop);
    verify_decode_free(&v.d);
    return !v.failed;
}

bool bt_verify_bytes(struct bt_engine *bt, const struct tb *tb, const uint8_t *code, bool quiet)
{
    struct verify_kit *kit = atomic_exchange(&bt->verify_kit, NULL), *none = NULL;
    if (!kit)
        kit = verify_kit_new();
    bool ok = kit && verify(bt, kit, tb, code, quiet);
    if (!atomic_compare_exchange_strong(&bt->verify_kit, &none, kit))
        verify_kit_free(kit); /* another thread has put its own there meanwhile */
    return ok;
}

void bt_verify_end(struct bt_engine *bt)
{
    verify_kit_free(atomic_exchange(&bt->verify_kit, NULL));
}

bool bt_verify_block(struct bt_engine *bt, const struct tb *tb)
{
    bool ok = bt_verify_bytes(bt, tb, (const uint8_t *)(uintptr_t)tb->entry_ind, false);
    bt->stats.rejected += !ok;
    if (!ok) /* all there is to find the mistake by */
        explain_print(bt, tb, stderr);
    return ok;
}
