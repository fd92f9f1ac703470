/*
 * From the middle of an instruction's code to a boundary, in the handler of a kick.
 *
 * The host's single step does that, too (signals.c), but each costs a #DB and a signal: 3 us, and
 * on a virtual machine, whose hypervisor intercepts #DB, 28 us, half a dozen times for an
 * interrupt.  So:
 *
 *   back      What an instruction's code does before its last step touches scratch only.  If all
 * that has been executed is such, the guest is where the instruction begins. forward   Otherwise
 * what is left is mostly glue of ours (LEA of the stack pointer, flags coming back, a jump), which
 * is done here, instruction by instruction, on the registers of the signal's context.
 *
 * Neither has to succeed: what is not known here is left to the single step.  Whatever is emulated
 * is what the processor would do next, so it does not matter whose instruction it was.
 */
#include "translator/bt.h"

#include <ucontext.h>

#include "translator/emit.h"

static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                    REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                    REG_R12, REG_R13, REG_R14, REG_R15};

#define SCRATCH_REGS (1u << R10 | 1u << R11)

/* Decodes the host instruction at pc; its length, or 0. */
static unsigned decode(uint64_t pc, uint64_t end, struct insn *in)
{
    uint64_t room = end - pc;
    int len = pc < end
                  ? insn_decode(in, (const uint8_t *)(uintptr_t)pc, room < 15 ? room : 15, MODE_64)
                  : 0;
    return len > 0 && in->op != OP_INVALID ? (unsigned)len : 0;
}

static bool is_legacy_one(const struct insn *in)
{
    return in->enc == ENC_LEGACY && in->map == MAP_ONE;
}

/* -- Back
 * ------------------------------------------------------------------------------------------ */

/* A jump to a helper that comes back with nothing of the instruction done. */
static bool to_access_helper(const struct bt_engine *bt, uint64_t target)
{
    for (unsigned i = 0; i < ACCESS_STUBS; i++)
        if (bt->stub_access[i] == target)
            return true;
    return target == bt->stub_prepare || target == bt->stub_as_user[0] ||
           target == bt->stub_as_user[1];
}

/*
 * Flags are written by what comes before an instruction's last step only if they are dead, and the
 * instruction itself may be one that writes scratch registers only (the guest's R10 and R11 live in
 * memory) and is not committed yet.  The difference is that ours works on a copy of a register.
 */
static bool only_scratch(const struct bt_engine *bt, const struct insn *in, uint64_t next,
                         bool *copied)
{
    if (in->op == OP_JMP && is_legacy_one(in))
        return to_access_helper(bt, next + (uint64_t)in->imm);
    if (in->op == OP_JCC || in->op == OP_NOP) /* not taken, or this would not be the way */
        return true;
    if ((in->op != OP_COPY && in->op != OP_LEA) || in->fpu != FPU_NONE || in->enc == ENC_EVEX ||
        (in->gpr_written & ~SCRATCH_REGS) || (in->flags & (INSN_MEM_WRITE | INSN_LOCK)) ||
        ((in->flags & INSN_MEM) && (in->mem.seg != SEG_GS || in->addr_size != 8)))
        return false;
    if (!in->flags_written) {
        bool move = is_legacy_one(in) && (in->opcode == 0x89 || in->opcode == 0x8b) && in->mod == 3;
        *copied |= move;
        return true;
    }
    return *copied && !(in->flags_read & FL_ARITH) && !(in->flags & INSN_FLAGS_COND) &&
           (in->flags_written & FL_ARITH) == FL_ARITH;
}

bool boundary_behind(const struct bt_engine *bt, const struct tb *tb, const struct side_entry *se,
                     uint64_t pc)
{
    uint64_t at = side_host(tb, se);
    bool copied = false;
    if (se->kind != SIDE_BOUNDARY)
        return false;
    for (unsigned i = 0; at < pc && i < 24; i++) {
        struct insn in;
        unsigned len = decode(at, tb->host_end, &in);
        if (!len || !only_scratch(bt, &in, at + len, &copied))
            return false;
        at += len;
    }
    return at == pc;
}

/* -- Forward
 * --------------------------------------------------------------------------------------- */

static uint64_t reg(const greg_t *g, unsigned r)
{
    return (uint64_t)g[greg_of[r]];
}

static void set_reg(greg_t *g, unsigned r, uint64_t value, unsigned size)
{
    g[greg_of[r]] = (greg_t)(size == 4 ? (uint32_t)value : value);
}

/* Where a memory operand of the given size is: state of the vCPU's, or in a helper what R11 points
 * to; NULL for all else. */
static void *operand(struct vcpu *v, const struct insn *in, const greg_t *g, unsigned size,
                     bool helper)
{
    const struct insn_mem *m = &in->mem;
    if (in->addr_size != 8 || m->base == BASE_RIP || (in->flags & INSN_VSIB))
        return NULL;
    uint64_t a = (uint64_t)m->disp;
    if (m->base != REG_NONE)
        a += reg(g, m->base);
    if (m->index != REG_NONE)
        a += reg(g, m->index) * m->scale;
    if (m->seg == SEG_GS) {
        a += STATE_BIAS;
        return a <= sizeof(struct vcpu) - size ? (uint8_t *)v + a : NULL;
    }
    return helper && m->base == R11 && m->index == REG_NONE ? (void *)(uintptr_t)a : NULL;
}

static uint64_t load(const void *p, unsigned size)
{
    return size == 4 ? *(const uint32_t *)p : *(const uint64_t *)p;
}

static bool condition(uint64_t fl, unsigned cond)
{
    bool cf = fl & FL_CF, zf = fl & FL_ZF, sf = fl & FL_SF, of = fl & FL_OF, pf = fl & FL_PF, r;
    switch (cond >> 1) {
    case 0:
        r = of;
        break;
    case 1:
        r = cf;
        break;
    case 2:
        r = zf;
        break;
    case 3:
        r = cf || zf;
        break;
    case 4:
        r = sf;
        break;
    case 5:
        r = pf;
        break;
    case 6:
        r = sf != of;
        break;
    default:
        r = zf || sf != of;
    }
    return r != (cond & 1);
}

static void set_flags(greg_t *g, uint64_t ax)
{
    const uint64_t low = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF;
    uint64_t fl = (ax >> 8 & low) | (ax & 1 ? FL_OF : 0);
    g[REG_EFL] = (greg_t)(((uint64_t)g[REG_EFL] & ~(uint64_t)FL_ARITH) | fl);
}

/* ADD, AND, SUB, CMP, by their numbers in the opcode; false for the others. */
static bool arithmetic(greg_t *g, unsigned op, unsigned size, uint64_t a, uint64_t b,
                       uint64_t *result)
{
    uint64_t ax;
#define DO(insn, type)                                                                             \
    do {                                                                                           \
        type x_ = (type)a;                                                                         \
        __asm__(insn " %2, %0\n\tlahf\n\tseto %%al" : "+r"(x_), "=&a"(ax) : "r"((type)b) : "cc");  \
        a = x_;                                                                                    \
    } while (0)
    switch (op << 4 | size) {
    case 0x04:
        DO("addl", uint32_t);
        break;
    case 0x08:
        DO("addq", uint64_t);
        break;
    case 0x44:
        DO("andl", uint32_t);
        break;
    case 0x48:
        DO("andq", uint64_t);
        break;
    case 0x54:
    case 0x74:
        DO("subl", uint32_t);
        break;
    case 0x58:
    case 0x78:
        DO("subq", uint64_t);
        break;
    default:
        return false;
    }
#undef DO
    set_flags(g, ax);
    *result = a;
    return true;
}

/* SHR by a constant other than 0. */
static uint64_t shift_right(greg_t *g, unsigned size, uint64_t a, unsigned by)
{
    uint64_t ax;
    if (size == 4) {
        uint32_t x = (uint32_t)a;
        __asm__("shrl %%cl, %0\n\tlahf\n\tseto %%al" : "+r"(x), "=&a"(ax) : "c"(by) : "cc");
        a = x;
    } else {
        __asm__("shrq %%cl, %0\n\tlahf\n\tseto %%al" : "+r"(a), "=&a"(ax) : "c"(by) : "cc");
    }
    set_flags(g, ax);
    return a;
}

/* The jumps. */
static bool jump(struct vcpu *v, const struct insn *in, greg_t *g, bool helper, uint64_t *pc)
{
    if (in->op == OP_JMP && is_legacy_one(in)) {
        *pc += (uint64_t)in->imm;
    } else if (in->op == OP_JCC) {
        if (condition((uint64_t)g[REG_EFL], in->cond))
            *pc += (uint64_t)in->imm;
    } else if (in->op == OP_JRCXZ && in->addr_size == 8) {
        if (!g[REG_RCX])
            *pc += (uint64_t)in->imm;
    } else if (in->op == OP_JMP_IND && in->op_size == 8) {
        const void *p = in->flags & INSN_MEM ? operand(v, in, g, 8, helper) : NULL;
        if ((in->flags & INSN_MEM) && !p)
            return false;
        *pc = p ? load(p, 8) : reg(g, in->rm);
    } else {
        return false;
    }
    return true;
}

static bool two_byte(const struct insn *in, greg_t *g)
{
    if (in->map == MAP_0F && in->opcode == 0xb7 && in->mod == 3 && in->op_size == 4) /* MOVZX */
        set_reg(g, in->reg, (uint16_t)reg(g, in->rm), 8);
    else if (in->map == MAP_0F && in->opcode == 0x90 && in->mod == 3 && in->rm == RAX) /* SETO AL */
        g[REG_RAX] = (greg_t)((reg(g, RAX) & ~0xffull) | (g[REG_EFL] & FL_OF ? 1 : 0));
    else
        return false;
    return true;
}

/* MOV, LEA, arithmetic and so on, of one-byte opcodes. */
static bool one_byte(struct vcpu *v, const struct insn *in, greg_t *g, bool helper)
{
    unsigned size = in->op_size, ext = in->modrm >> 3 & 7, group = in->opcode >> 3 & 7;
    bool mem = in->flags & INSN_MEM;
    void *p = mem ? operand(v, in, g, size, helper) : NULL;
    uint64_t result;

    switch (in->opcode) {
    case 0x9f: /* LAHF */
        g[REG_RAX] =
            (greg_t)((reg(g, RAX) & ~0xff00ull) |
                     ((uint64_t)g[REG_EFL] & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) << 8 |
                     FL_FIXED1 << 8);
        return true;
    case 0x9e: /* SAHF */
        g[REG_EFL] =
            (greg_t)(((uint64_t)g[REG_EFL] & ~(uint64_t)(FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) |
                     (reg(g, RAX) >> 8 & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)));
        return true;
    case 0x04: { /* ADD AL, imm8 */
        uint64_t ax;
        uint8_t al = (uint8_t)reg(g, RAX);
        __asm__("addb %b2, %b0\n\tlahf\n\tseto %%al"
                : "+q"(al), "=&a"(ax)
                : "q"((uint8_t)in->imm)
                : "cc");
        set_flags(g, ax);
        g[REG_RAX] = (greg_t)((reg(g, RAX) & ~0xffull) | al);
        return true;
    }
    }
    if ((size != 4 && size != 8) || (mem && !p))
        return false;
    switch (in->opcode) {
    case 0x89:
        if (!mem)
            set_reg(g, in->rm, reg(g, in->reg), size);
        else if (size == 4)
            *(uint32_t *)p = (uint32_t)reg(g, in->reg);
        else
            *(uint64_t *)p = reg(g, in->reg);
        return true;
    case 0x8b:
        set_reg(g, in->reg, mem ? load(p, size) : reg(g, in->rm), size);
        return true;
    case 0xb8:
    case 0xb9:
    case 0xba:
    case 0xbb:
    case 0xbc:
    case 0xbd:
    case 0xbe:
    case 0xbf:
        set_reg(g, in->rm, (uint64_t)in->imm, size);
        return true;
    case 0xc7:
        if (mem)
            return false;
        set_reg(g, in->rm, (uint64_t)in->imm, size);
        return true;
    case 0x03:
    case 0x23:
    case 0x2b:
    case 0x3b:
        if (!arithmetic(g, group, size, reg(g, in->reg), mem ? load(p, size) : reg(g, in->rm),
                        &result))
            return false;
        if (group != 7)
            set_reg(g, in->reg, result, size);
        return true;
    case 0x01:
    case 0x21:
    case 0x29:
    case 0x39:
        if (mem || !arithmetic(g, group, size, reg(g, in->rm), reg(g, in->reg), &result))
            return false;
        if (group != 7)
            set_reg(g, in->rm, result, size);
        return true;
    case 0x81:
    case 0x83:
        if (mem || !arithmetic(g, ext, size, reg(g, in->rm), (uint64_t)in->imm, &result))
            return false;
        if (ext != 7)
            set_reg(g, in->rm, result, size);
        return true;
    case 0xc1:
        if (mem || ext != 5 || !(in->imm & (size == 8 ? 63 : 31)))
            return false;
        set_reg(g, in->rm,
                shift_right(g, size, reg(g, in->rm), (unsigned)in->imm & (size == 8 ? 63 : 31)),
                size);
        return true;
    case 0xf7:
        if (mem || ext != 2)
            return false;
        set_reg(g, in->rm, ~reg(g, in->rm), size);
        return true;
    case 0xff: { /* DEC of what a helper counts: CF stays */
        uint64_t cf = (uint64_t)g[REG_EFL] & FL_CF;
        if (!mem || !helper || ext != 1 || size != 4 ||
            !arithmetic(g, 5, 4, *(uint32_t *)p, 1, &result))
            return false;
        *(uint32_t *)p = (uint32_t)result;
        g[REG_EFL] = (greg_t)(((uint64_t)g[REG_EFL] & ~(uint64_t)FL_CF) | cf);
        return true;
    }
    default:
        return false;
    }
}

bool boundary_ahead(struct vcpu *v, uint64_t end, bool helper, greg_t *g)
{
    uint64_t pc = (uint64_t)g[REG_RIP];
    struct insn in;
    unsigned len = decode(pc, end, &in);
    bool ok;

    if (!len || (in.flags & (INSN_LOCK | INSN_REP | INSN_REPNE)) || in.fpu != FPU_NONE)
        return false;
    pc += len;
    if (in.op == OP_JMP || in.op == OP_JCC || in.op == OP_JRCXZ || in.op == OP_JMP_IND) {
        ok = jump(v, &in, g, helper, &pc);
    } else if (in.op == OP_NOP) {
        ok = true;
    } else if (in.op == OP_LEA) {
        uint64_t a = (uint64_t)in.mem.disp;
        ok = in.addr_size == 8 && in.mem.base != BASE_RIP && in.op_size >= 4;
        if (in.mem.base < 16)
            a += reg(g, in.mem.base);
        if (in.mem.index < 16)
            a += reg(g, in.mem.index) * in.mem.scale;
        if (ok)
            set_reg(g, in.reg, a, in.op_size);
    } else if (in.op != OP_COPY) {
        ok = false;
    } else if (in.enc == ENC_VEX) { /* RORX */
        unsigned by = (unsigned)in.imm & 63;
        uint64_t a = reg(g, in.rm);
        ok = in.map == MAP_0F3A && in.opcode == 0xf0 && in.mod == 3 && in.op_size == 8 && by;
        if (ok)
            set_reg(g, in.reg, a >> by | a << (64 - by), 8);
    } else {
        ok = in.enc == ENC_LEGACY &&
             (in.map == MAP_ONE ? one_byte(v, &in, g, helper) : two_byte(&in, g));
    }
    if (ok)
        g[REG_RIP] = (greg_t)pc;
    return ok;
}
