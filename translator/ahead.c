/*
 * Checks put ahead of a block, and what links hand on.
 *
 * Whether a register is in the window expected (lower.c) is asked once for all accesses through it,
 * as long as it moves by constants. A loop would still ask again each time round: so a trace that
 * comes back to its start puts the checks of registers that it has not written before it uses them
 * in front of its first instruction, and has entrances behind them:
 *
 *     entry       for whoever comes from anywhere: the checks
 *     entry_load  R11 = the delta of the first window of those
 *     entry_known the first instruction
 *
 * A link says what is known where it leaves (struct known): registers that are at most KNOWN_AWAY
 * bytes outside their windows, and whose delta R11 is.  cache.c lets it go to the last entrance
 * whose demands that meets.  So the checks of a loop are made once, when it is entered.
 *
 * The checks need the flags: a block at whose beginning they are live has none.  One that does not
 * hold leaves the block before its first instruction; after three of those the access that it was
 * for is checked where it stands again (tb.not_ahead).
 */
#include "translator/lower.h"

/* Does the instruction write `r` in another way than by adding a constant? */
static bool replaces(const struct insn *in, unsigned r)
{
    unsigned ext = in->modrm >> 3 & 7;
    if (!(in->gpr_written >> r & 1))
        return false;
    if (in->op == OP_LEA)
        return in->op_size != 8 || in->addr_size != 8 || in->mem.base != r ||
               in->mem.index != REG_NONE;
    if (in->op != OP_COPY || in->enc != ENC_LEGACY || in->map != MAP_ONE || in->mod != 3 ||
        in->op_size != 8)
        return true;
    if (in->opcode == 0x81 || in->opcode == 0x83)
        return ext != 0 && ext != 5;
    return in->opcode != 0xff || ext >= 2;
}

/* The register by which this instruction's access is checked, if it has one of those: as
 * lower_window() will see it.  `ext`: registers that hold no more than 32 bits. */
static unsigned base_of(const struct xlate *x, const struct insn *in, uint16_t ext)
{
    struct insn_mem m = in->mem;
    switch (in->op) {
    case OP_LEAVE:
        return RBP;
    case OP_COPY:
    case OP_PUSH:
    case OP_POP:
    case OP_JMP_IND:
    case OP_CALL_IND:
        break;
    default:
        return REG_NONE;
    }
    if (!(in->flags & INSN_MEM) || (in->flags & INSN_VSIB) || in->addr_size != 8 ||
        m.seg == SEG_FS || m.seg == SEG_GS || m.disp != (int32_t)m.disp || m.base >= 16)
        return REG_NONE;
    if (m.index != REG_NONE) {
        bool index_ext = ext >> m.index & 1, base_ext = ext >> m.base & 1;
        bool small = index_ext || lower_small(x, m.index);
        if (m.scale == 1 && !index_ext && (base_ext || (!small && lower_small(x, m.base))))
            m.base = m.index;
        else if (!small)
            return REG_NONE;
    }
    return m.base == R10 || m.base == R11 || m.base == RSP ? REG_NONE : m.base;
}

/* Does the trace come back to where it starts? */
static bool closes(const struct xlate *x)
{
    for (unsigned i = 0; i < x->n; i++) {
        const struct insn *in = &x->insn[i];
        if ((in->op == OP_JCC || in->op == OP_JMP) &&
            x->rip[i] + in->len + (uint64_t)in->imm == x->tb->gva)
            return true;
    }
    return false;
}

void ahead_choose(struct xlate *x)
{
    uint16_t replaced = 0, ext = 0;
    x->ahead = 0;
    if (!x->window || !x->trace || is_legacy(x) || !closes(x) || x->live[0] ||
        x->tb->gpa2 != ~0ull || (x->key & (KEY_SLOW_MEM | KEY_ONE_INSN)))
        return;
    for (unsigned i = 0; i < x->n; i++) {
        const struct insn *in = &x->insn[i];
        enum insn_rule rule = rule_of(in, x->key);
        unsigned base = base_of(x, in, ext);
        unsigned id = base < 16 ? (unsigned)(x->reg[base].value >> WINDOW_SHIFT) & 0xffff : 0;
        x->index = (uint8_t)i;
        x->cur_rip = x->rip[i];
        if (rule == RULE_CALLOUT || rule == RULE_CALLOUT_END)
            return; /* nothing is known of registers behind it */
        if (base < 16 && lower_soft_site(x))
            return;
        if (base < 16 && !(replaced >> base & 1) && !(x->ahead >> base & 1) && x->reg[base].known &&
            window_id_ok(x->key & KEY_USER, id) && !(x->tb->table_form >> i & 1) &&
            !(x->tb->not_ahead >> i & 1)) {
            x->ahead |= (uint16_t)(1u << base);
            x->ahead_id[base] = (uint16_t)id;
            x->ahead_at[base] = (uint8_t)i;
        }
        for (unsigned r = 0; r < 16; r++) {
            if (replaces(in, r))
                replaced |= (uint16_t)(1u << r);
            if (in->gpr_written >> r & 1)
                ext = (uint16_t)((ext & ~(1u << r)) | (lower_extends(in) ? 1u << r : 0));
        }
    }
}

/* The first of the registers checked that the block uses. */
static unsigned first_of(const struct xlate *x)
{
    unsigned first = REG_NONE;
    for (unsigned r = 0; r < 16; r++)
        if ((x->ahead >> r & 1) && (first == REG_NONE || x->ahead_at[r] < x->ahead_at[first]))
            first = r;
    return first;
}

/* Adds a register to what is known; false if its window is not among the two that there is room
 * for. */
static bool add(struct known *k, unsigned reg, unsigned id)
{
    for (unsigned i = 0; i < KNOWN_IDS; i++)
        if (!k->regs[i] || k->id[i] == (uint8_t)id) {
            k->id[i] = (uint8_t)id;
            k->regs[i] |= (uint16_t)(1u << reg);
            return true;
        }
    return false;
}

void ahead_emit(struct xlate *x)
{
    struct tb *tb = x->tb;
    unsigned first = first_of(x);
    tb->known = (struct known){0};
    tb->entry_load = tb->entry_known = tb->entry;
    if (first == REG_NONE)
        return;
    add(&tb->known, first, x->ahead_id[first]);
    for (unsigned r = 0; r < 16; r++)
        if ((x->ahead >> r & 1) && !add(&tb->known, r, x->ahead_id[r]))
            x->ahead &= (uint16_t) ~(1u << r);
    x->cur_rip = x->rip[0];
    x->guest_off = 0;
    side_mark(x, SIDE_BOUNDARY);
    for (unsigned r = 0; r < 16; r++)
        if (x->ahead >> r & 1)
            lower_check_ahead(x, r, x->ahead_id[r], x->ahead_at[r]);
    tb->entry_load = (uint32_t)emit_here(&x->e);
    lower_load_delta(x, x->ahead_id[first]);
    tb->known.r11 = 1;
    tb->entry_known = (uint32_t)emit_here(&x->e);
}

struct known ahead_known(const struct xlate *x)
{
    struct known k = {0};
    bool delta = x->r11_id && x->r11_id <= 0x10000;
    if (!x->window || is_legacy(x))
        return k;
    k.user = x->key & KEY_USER;
    if (delta) /* its window first */
        k.id[0] = (uint8_t)(x->r11_id - 1);
    for (unsigned pass = delta ? 0 : 1; pass < 2; pass++)
        for (unsigned r = 0; r < 16; r++) {
            const struct reg_guess *g = &x->reg[r];
            if (r != R10 && r != R11 && r != RSP && g->checked && g->away <= KNOWN_AWAY &&
                (pass || g->id == x->r11_id - 1))
                add(&k, r, g->id);
        }
    for (unsigned i = 0; i < KNOWN_IDS && delta; i++)
        if (k.regs[i] && k.id[i] == (uint8_t)(x->r11_id - 1))
            k.r11 = (uint8_t)(i + 1);
    return k;
}

uint32_t ahead_entrance(const struct link *l, const struct tb *to)
{
    const struct known *has = &l->known, *wants = &to->known;
    if (l->inlined && l->thunk == to->thunk)
        return l->inlined;
    if (!wants->r11 || has->user != !!(to->key & KEY_USER))
        return to->entry;
    for (unsigned i = 0; i < KNOWN_IDS; i++)
        for (unsigned k = 0; wants->regs[i]; k++) {
            if (k == KNOWN_IDS)
                return to->entry;
            if (has->id[k] == wants->id[i] && !(wants->regs[i] & ~has->regs[k]))
                break;
        }
    return has->r11 && has->id[has->r11 - 1] == wants->id[wants->r11 - 1] ? to->entry_known
                                                                          : to->entry_load;
}
