/*
 * String instructions through windows: the host's own instruction, on host addresses.
 *
 *     rorx  r11, rsi, 39                 delta of the window that RSI points into
 *     movzx r11d, r11w
 *     mov   r11, gs:[delta + r11*8]
 *     mov   r10, r11
 *     (the same for RDI, into R11)
 *     lea   rsi, [rsi + r10]
 *     lea   rdi, [rdi + r11]
 *     rep movsb
 *     not   r10                          x + ~d + 1 = x - d, and no flag changes
 *     not   r11
 *     lea   rsi, [rsi + r10 + 1]
 *     lea   rdi, [rdi + r11 + 1]
 *
 * The count needs no check: a run goes from element to element without a gap, so it cannot get past
 * the guard zones of the windows, up or down; nor does DF, nor what CMPS and SCAS compare.  With
 * one operand R10 is not used.
 *
 * An element is complete or has not begun (SDM vol. 2, REP): a fault, or a kick, in the middle
 * leaves the registers at the next one.  The side table says which of them hold host addresses then
 * (SIDE_STRING), and signals.c subtracts the deltas, which are still in R10 and R11.  A fault is
 * then dealt with as that of any access, and the instruction goes on with what is left.
 *
 * 16- and 32-bit code has one window, of 4 GiB (flat_windows.c), so R11 is its base for both
 * operands, and what comes off again is cut to 32 bits:
 *
 *     mov   r11, gs:[flat_base]
 *     lea   rsi, [rsi + r11]
 *     lea   rdi, [rdi + r11]
 *     rep movsd
 *     not   r11
 *     lea   esi, [rsi + r11 + 1]
 *     lea   edi, [rdi + r11 + 1]
 *
 * There is nothing above the window, and nothing for a megabyte below it: a run that would wrap
 * faults there and goes on in C.  RCX is ECX, whose upper half is 0.
 */
#include "translator/lower.h"

static bool reads_source(const struct insn *in)
{
    return in->op == OP_MOVS || in->op == OP_CMPS || in->op == OP_LODS;
}

static bool has_destination(const struct insn *in)
{
    return in->op != OP_LODS;
}

bool string_for_windows(uint32_t key, const struct insn *in)
{
    switch (in->op) {
    case OP_MOVS:
    case OP_CMPS:
    case OP_STOS:
    case OP_LODS:
    case OP_SCAS:
        if (key & (KEY_ONE_INSN | KEY_SLOW_MEM))
            return false;
        if (key & KEY_LEGACY)
            return in->addr_size == 4 &&
                   (!reads_source(in) || key_seg_class(key, in->mem.seg) == SEG_FLAT) &&
                   (!has_destination(in) || key_seg_class(key, SEG_ES) == SEG_FLAT);
        return in->addr_size == 8 &&
               !(reads_source(in) && (in->mem.seg == SEG_FS || in->mem.seg == SEG_GS));
    default:
        return false;
    }
}

/* Is this address register not known to point where code of this privilege has no windows? */
static bool may_have_window(const struct xlate *x, unsigned reg)
{
    const struct reg_guess *g = &x->reg[reg];
    return g->checked || !g->known ||
           window_id_ok(x->key & KEY_USER, (unsigned)(g->value >> WINDOW_SHIFT) & 0xffff);
}

static void e_not(struct emitter *e, unsigned reg) /* R10, R11 */
{
    e_bytes(e, (const uint8_t[]){0x49, 0xf7, (uint8_t)(0xd0 | (reg & 7))}, 3);
}

/* The instruction by itself, as string_decode() takes it. */
static void e_string(struct emitter *e, const struct insn *in)
{
    bool compares = in->op == OP_CMPS || in->op == OP_SCAS;
    if (in->flags & (INSN_REP | INSN_REPNE)) /* REPNE of the others is REP */
        e8(e, compares && (in->flags & INSN_REPNE) ? 0xf2 : 0xf3);
    if (in->op_size == 2)
        e8(e, 0x66);
    if (in->op_size == 8)
        e8(e, 0x48);
    e8(e, in->opcode);
}

/* The same while its registers, those of the operands it has, hold host addresses. */
static void on_host_addresses(struct xlate *x, const struct insn *in, bool src, bool dst)
{
    side_mark(x, src && dst ? SIDE_STRING_BOTH : src ? SIDE_STRING_RSI : SIDE_STRING_RDI);
    e_string(&x->e, in);
    side_mark(x, SIDE_INSIDE);
}

static void string_in_flat_window(struct xlate *x, const struct insn *in, bool src, bool dst)
{
    struct emitter *e = &x->e;
    lower_load_flat_base(x);
    if (src)
        e_lea(e, RSI, RSI, R11, 1, 0);
    if (dst)
        e_lea(e, RDI, RDI, R11, 1, 0);
    on_host_addresses(x, in, src, dst);
    e_not(e, R11);
    x->r11_id = 0;
    if (src)
        e_lea32(e, RSI, RSI, R11, 1, 1);
    if (dst)
        e_lea32(e, RDI, RDI, R11, 1, 1);
}

enum string_form lower_string(struct xlate *x, const struct insn *in)
{
    struct emitter *e = &x->e;
    bool src = reads_source(in), dst = has_destination(in);
    if (!string_for_windows(x->key, in))
        return STRING_IN_C;
    if (!x->window)
        return x->hot ? STRING_IN_C : STRING_COUNTED;
    if (is_legacy(x) && (x->tb->table_form >> x->index & 1)) /* it has wrapped */
        return STRING_IN_C;
    /* A guess by what the registers hold now: the kernel that patches its text copies to addresses that
     * are for users otherwise, and its memcpy is in C ever after. */
    if (!is_legacy(x) && ((src && !may_have_window(x, RSI)) || (dst && !may_have_window(x, RDI))))
        return STRING_RETRIED;
    if (lower_soft_site(x))
        return STRING_RETRIED;
    if (is_legacy(x)) {
        string_in_flat_window(x, in, src, dst);
        return STRING_INLINE;
    }
    if (src)
        lower_delta(x, RSI);
    if (src && dst)
        e_mov_rr(e, R10, R11);
    if (dst)
        lower_delta(x, RDI);
    unsigned of_src = dst ? R10 : R11;
    if (src)
        e_lea(e, RSI, RSI, of_src, 1, 0);
    if (dst)
        e_lea(e, RDI, RDI, R11, 1, 0);
    on_host_addresses(x, in, src, dst);
    if (src && dst)
        e_not(e, R10);
    e_not(e, R11);
    if (src)
        e_lea(e, RSI, RSI, of_src, 1, 1);
    if (dst)
        e_lea(e, RDI, RDI, R11, 1, 1);
    return STRING_INLINE;
}
