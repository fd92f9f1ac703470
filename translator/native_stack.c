/*
 * The stack in 64-bit code, where there are windows: the host's RSP is the guest's RSP plus the delta
 * of the window that the stack is in, so that PUSH, POP, CALL's push, RET's pop and every [rsp + disp]
 * are the host's own, with no check at all.
 *
 *     host RSP = guest RSP + delta          bt.stack_not = ~delta
 *
 * The delta is what the table says for the guest's RSP (windows.c): an RSP that no window serves gets
 * the null window's, where every access faults.  C code sets both on every way back into translated code
 * (stack_use()), so an RSP that has wandered out of its window is put right by the first fault.  The
 * value of RSP is RSP + stack_not + 1; writing it looks the delta up, which touches no flag.
 *
 * What must hold is that the host's RSP is never further from its window than the guard zones reach
 * (invariant 2).  Code is entered with at most STACK_SLACK between them; a constant added to RSP is
 * added to that, and an access through RSP that has not faulted proves that there is nothing between
 * them but its displacement.  A block that moves RSP without using it settles that before it
 * is left: by reading at RSP or, where that must not fault, by looking the delta up again.
 *
 * Soft sites, single steps and data breakpoints get at the stack by its guest address, as at everything
 * else.
 */
#include "translator/lower.h"

#define NOT_OFF VCPU_OFF(bt.stack_not)

void stack_value(struct xlate *x, unsigned reg, int32_t disp)
{
    struct emitter *e = &x->e;
    e_load_gs(e, reg, NOT_OFF);
    if (disp == INT32_MAX) {
        e_lea(e, reg, RSP, reg, 1, disp);
        e_lea(e, reg, reg, 0xff, 1, 1);
    } else {
        e_lea(e, reg, RSP, reg, 1, disp + 1);
    }
}

void stack_set(struct xlate *x)
{
    struct emitter *e = &x->e;
    lower_delta_by_table(x, R10);
    e_lea(e, RSP, R10, R11, 1, 0);
    e_bytes(e, (const uint8_t[]){0x49, 0xf7, 0xd3}, 3); /* not r11 */
    e_store_gs(e, NOT_OFF, R11);
    x->r11_id = 0;
    x->stack_slack = 0;
    x->stack_written = true;
}

void stack_renew(struct xlate *x)
{
    bool written = x->stack_written;
    stack_value(x, R10, 0);
    stack_set(x);
    x->stack_written = written;
}

void stack_move(struct xlate *x, int32_t n)
{
    e_lea(&x->e, RSP, RSP, 0xff, 1, n);
    x->stack_slack += n < 0 ? -(int64_t)n : n;
}

bool stack_usable(const struct xlate *x)
{
    return x->native_stack && x->stack_ok && !(x->key & (KEY_ONE_INSN | KEY_SLOW_MEM));
}

bool stack_direct(const struct xlate *x)
{
    return stack_usable(x) && !lower_soft_site(x);
}

bool stack_within(const struct xlate *x, int64_t lo, int64_t hi)
{
    return x->stack_slack + hi <= STACK_REACH - 4096 && x->stack_slack - lo <= STACK_REACH - 4096;
}

void stack_reach(struct xlate *x, int64_t lo, int64_t hi)
{
    if (!stack_within(x, lo, hi))
        stack_renew(x);
}

void stack_touched(struct xlate *x, int32_t disp)
{
    int64_t d = disp < 0 ? -(int64_t)disp : disp;
    if (d < x->stack_slack)
        x->stack_slack = d;
}

/* Could RSP be too far from its window for other code? */
static bool unsettled(const struct xlate *x)
{
    return x->native_stack && x->stack_slack > STACK_SLACK && !(x->key & KEY_ONE_INSN);
}

void stack_settle(struct xlate *x)
{
    if (!unsettled(x))
        return;
    if (!stack_direct(x)) {
        stack_renew(x);
        return;
    }
    stack_reach(x, 0, 8);
    e_op_mem(&x->e, false, 0x8b, R10, RSP, 0xff, 1, 0); /* mov r10d, [rsp] */
    stack_touched(x, 0);
}

void stack_settle_late(struct xlate *x, bool keep_r10)
{
    struct emitter *e = &x->e;
    if (!unsettled(x))
        return;
    if (keep_r10)
        e_store_gs(e, VCPU_OFF(scratch[SCR_TARGET]), R10);
    stack_renew(x);
    if (keep_r10)
        e_load_gs(e, R10, VCPU_OFF(scratch[SCR_TARGET]));
}

void stack_push(struct xlate *x, unsigned reg)
{
    struct emitter *e = &x->e;
    stack_reach(x, -8, 0);
    if (reg >= 8)
        e8(e, 0x41);
    e8(e, (uint8_t)(0x50 | (reg & 7)));
    x->stack_slack = 0;
}

void stack_push_imm(struct xlate *x, uint64_t imm, unsigned scratch)
{
    struct emitter *e = &x->e;
    if ((int64_t)imm != (int32_t)imm) {
        e_mov_gva(e, scratch, imm, RELOC_GVA); /* a return address: PUSH has 32 bits */
        if (scratch == R11)
            x->r11_id = 0;
        stack_push(x, scratch);
        return;
    }
    stack_reach(x, -8, 0);
    if ((int64_t)imm == (int8_t)imm) {
        e8(e, 0x6a);
        e8(e, (uint8_t)imm);
    } else {
        e8(e, 0x68);
        e32(e, (uint32_t)imm);
    }
    x->stack_slack = 0;
}

void stack_pop(struct xlate *x, unsigned reg)
{
    struct emitter *e = &x->e;
    stack_reach(x, 0, 8);
    if (reg >= 8)
        e8(e, 0x41);
    e8(e, (uint8_t)(0x58 | (reg & 7)));
    x->stack_slack = 8;
}

/* MOV, ADD, SUB and AND of RSP as compilers use them. `dead`: nobody will see the flags. */
static bool plain_copy(struct xlate *x, const struct insn *in, bool dead)
{
    struct emitter *e = &x->e;
    unsigned ext = in->modrm >> 3 & 7;
    bool small = in->imm >= -(1 << 28) && in->imm <= 1 << 28;
    if (in->enc != ENC_LEGACY || in->map != MAP_ONE || in->mod != 3 || in->op_size != 8)
        return false;
    if (in->opcode == 0x89 || in->opcode == 0x8b) {
        unsigned dst = in->opcode == 0x89 ? in->rm : in->reg;
        unsigned src = in->opcode == 0x89 ? in->reg : in->rm;
        if (dst == RSP) {
            if (src == RSP) /* to itself */
                return true;
            if (src == R10 || src == R11)
                e_load_gs(e, R10, GPR_OFF(src));
            else
                e_mov_rr(e, R10, src);
            stack_set(x);
            return true;
        }
        if (dst == R10 || dst == R11) {
            stack_value(x, R10, 0);
            e_store_gs(e, GPR_OFF(dst), R10);
        } else {
            stack_value(x, dst, 0);
        }
        x->r11_kept = true;
        return true;
    }
    if ((in->opcode != 0x81 && in->opcode != 0x83) || in->rm != RSP || !small)
        return false;
    if (ext == 0 || ext == 5) {
        if (!dead) { /* they are those of the plain value */
            stack_value(x, R10, 0);
            e_bytes(e, (const uint8_t[]){0x49, in->opcode, (uint8_t)(0xc2 | ext << 3)}, 3);
            e_bytes(e, in->raw + in->imm_off, in->imm_size);
        }
        stack_move(x, (int32_t)(ext ? -in->imm : in->imm));
    } else if (ext == 4 && dead && in->imm < 0 && in->imm >= -4096) { /* deltas are multiples of pages */
        e_bytes(e, in->raw, in->len);
        x->stack_slack += 4096;
    } else {
        return false;
    }
    x->r11_kept = true;
    return true;
}

void stack_copy(struct xlate *x, const struct insn *in, bool dead)
{
    struct emitter *e = &x->e;
    if (plain_copy(x, in, dead))
        return;
    /* Anything else: on the plain value. */
    e_load_gs(e, R10, NOT_OFF);
    e_lea(e, RSP, RSP, R10, 1, 1);
    side_mark(x, SIDE_PLAIN_RSP);
    for (unsigned r = R10; r <= R11; r++)
        if (in->gpr_read >> r & 1)
            e_load_gs(e, r, GPR_OFF(r));
    e_bytes(e, in->raw, in->len);
    side_mark(x, SIDE_INSIDE);
    for (unsigned r = R10; r <= R11; r++)
        if (in->gpr_written >> r & 1)
            e_store_gs(e, GPR_OFF(r), r);
    e_mov_rr(e, R10, RSP);
    stack_set(x);
}

void stack_lea(struct xlate *x, const struct insn *in)
{
    struct emitter *e = &x->e;
    const struct insn_mem *m = &in->mem;
    bool wide = in->op_size == 8 && in->addr_size == 8 && m->disp == (int32_t)m->disp;
    bool plain_dst = in->reg != RSP && in->reg != R10 && in->reg != R11;
    if (wide && m->base == RSP && m->index == REG_NONE && in->reg == RSP && m->disp <= 1 << 28 &&
        m->disp >= -(1 << 28)) {
        stack_move(x, (int32_t)m->disp);
        x->r11_kept = true;
    } else if (wide && m->base == RSP && m->index == REG_NONE && plain_dst) {
        stack_value(x, in->reg, (int32_t)m->disp);
        x->r11_kept = true;
    } else if (wide && m->base == RSP && m->index != R10 && m->index != R11 && plain_dst) {
        stack_value(x, R10, 0);
        e_lea(e, in->reg, R10, m->index, m->scale, (int32_t)m->disp);
        x->r11_kept = true;
    } else {
        lower_ea(x, in, m, in->addr_size, 0, false);
        lower_write_gpr(x, in->reg, R10, in->op_size);
    }
}
