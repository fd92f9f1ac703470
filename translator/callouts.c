/*
 * Operand decoding for the instructions that are done in C; their meaning is in cpu/.
 *
 * Where an instruction has both a privilege check and a memory operand, the privilege (or #UD)
 * check comes first and the operand is read after it, as the CPU does.
 */
#include "translator/callouts.h"

#include "cpu/cpuid.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/host_time.h"
#include "cpu/msr.h"
#include "cpu/platform.h"
#include "cpu/segment.h"
#include "cpu/system.h"
#include "mmu/mmu.h"
#include "translator/bt.h"

/* -- Operands. --------------------------------------------------------------------------------- */

uint64_t callout_ea(const struct vcpu *v, const struct insn *in)
{
    const struct insn_mem *m = &in->mem;
    uint64_t a = m->disp;

    if (m->base == BASE_RIP)
        a += v->rip + in->len;
    else if (m->base != REG_NONE)
        a += v->gpr[m->base & 15];
    if (m->index != REG_NONE)
        a += v->gpr[m->index & 15] * m->scale;
    a = callout_truncate(a, in->addr_size) + callout_seg_base(v, m->seg);
    return vcpu_long64(v) ? a : (uint32_t)a;
}

static bool is_mem(const struct insn *in)
{
    return (in->flags & INSN_MODRM) && in->mod != 3;
}

static void write_gpr(struct vcpu *v, unsigned reg, unsigned size, uint64_t value)
{
    uint64_t *r = &v->gpr[reg & 15];

    if (size == 8)
        *r = value;
    else if (size == 4)
        *r = (uint32_t)value;
    else if (size == 2)
        *r = (*r & ~0xffffull) | (value & 0xffff);
    else
        *r = (*r & ~0xffull) | (value & 0xff);
}

static uint64_t read_gpr(const struct vcpu *v, unsigned reg, unsigned size)
{
    return callout_truncate(v->gpr[reg & 15], size);
}

void callout_watch(struct vcpu *v, enum cpu_debug_kind kind, uint64_t addr, unsigned size)
{
    if (cpu_debug_active(v) && v->engine)
        v->engine->db_bits |= cpu_debug_match(v, kind, addr, size);
}

static int load_at(struct vcpu *v, uint64_t gva, void *buf, unsigned size, bool stack)
{
    if (mmu_load(v, gva, buf, size, MMU_READ, stack))
        return -1;
    callout_watch(v, DEBUG_READ, gva, size);
    return 0;
}

static int store_at(struct vcpu *v, uint64_t gva, const void *buf, unsigned size, bool stack)
{
    if (mmu_store(v, gva, buf, size, MMU_WRITE, stack))
        return -1;
    callout_watch(v, DEBUG_WRITE, gva, size);
    return 0;
}

/* The linear address of `size` bytes `from` bytes into the operand, their segment checked.  0, or -1
 * with a fault. */
static int part_address(struct vcpu *v, const struct insn *in, unsigned from, unsigned size,
                        unsigned access, uint64_t *gva)
{
    const struct insn_mem *m = &in->mem;
    uint64_t a = (uint64_t)m->disp + from;

    if (vcpu_long64(v)) {
        *gva = callout_ea(v, in) + from;
        return 0;
    }
    if (m->base != REG_NONE)
        a += v->gpr[m->base & 15];
    if (m->index != REG_NONE)
        a += v->gpr[m->index & 15] * m->scale;
    return cpu_linear(v, m->seg, callout_truncate(a, in->addr_size), size, access, gva);
}

static int operand_address(struct vcpu *v, const struct insn *in, unsigned size, unsigned access,
                           uint64_t *gva)
{
    return part_address(v, in, 0, size, access, gva);
}

/* Operands of two parts, far pointers and bounds: each is an access of its own, and the second
 * one's offset is cut to the address size (as processors do; SDM says nothing). */
static int load_pair(struct vcpu *v, const struct insn *in, uint8_t *buf, unsigned first,
                     unsigned second)
{
    uint64_t gva[2];
    bool stack = in->mem.seg == SEG_SS;
    if (part_address(v, in, 0, first, MMU_READ, &gva[0]) ||
        load_at(v, gva[0], buf, first, stack) ||
        part_address(v, in, first, second, MMU_READ, &gva[1]))
        return -1;
    return load_at(v, gva[1], buf + first, second, stack);
}

static int load(struct vcpu *v, const struct insn *in, void *buf, unsigned size)
{
    uint64_t gva;
    if (operand_address(v, in, size, MMU_READ, &gva))
        return -1;
    return load_at(v, gva, buf, size, in->mem.seg == SEG_SS);
}

static int store(struct vcpu *v, const struct insn *in, const void *buf, unsigned size)
{
    uint64_t gva;
    if (operand_address(v, in, size, MMU_WRITE, &gva))
        return -1;
    return store_at(v, gva, buf, size, in->mem.seg == SEG_SS);
}

/* A selector or machine status word: 16 bits of register or memory. */
static int read_rm16(struct vcpu *v, const struct insn *in, uint16_t *out)
{
    if (is_mem(in))
        return load(v, in, out, 2);
    *out = v->gpr[in->rm & 15];
    return 0;
}

/* SLDT, STR, SMSW, MOV r/m, Sreg: memory takes 16 bits, a register the operand size. */
static enum cpu_result write_rm16(struct vcpu *v, const struct insn *in, uint64_t value)
{
    uint16_t word = value;

    if (!is_mem(in)) {
        write_gpr(v, in->rm, in->op_size, value);
        return CPU_NEXT;
    }
    return store(v, in, &word, 2) ? CPU_EXCEPTION : CPU_NEXT;
}

/* Turns CPU_NEXT of a serialising instruction into a jump behind it. */
static enum cpu_result serialise(struct vcpu *v, const struct insn *in, enum cpu_result r)
{
    if (r != CPU_NEXT)
        return r;
    v->rip += in->len;
    return CPU_JUMP;
}

/* Operand size of stack instructions: in 64-bit mode 8 unless a 66h prefix makes it 2. */
static unsigned stack_size(const struct vcpu *v, const struct insn *in)
{
    return vcpu_long64(v) ? (in->op_size == 2 ? 2 : 8) : in->op_size;
}

/* Bytes of the stack pointer that count: SS.B outside 64-bit mode. */
static unsigned stack_width(const struct vcpu *v)
{
    return vcpu_long64(v) ? 8 : v->seg[SEG_SS].attr & SEGA_DB ? 4 : 2;
}

static void set_rsp(struct vcpu *v, uint64_t rsp)
{
    write_gpr(v, RSP, stack_width(v), rsp);
}

/* Loads and stores at an offset in the stack segment, which wraps at the stack's width. */
static int stack_load(struct vcpu *v, uint64_t offset, uint64_t *value, unsigned size)
{
    *value = 0;
    offset = callout_truncate(offset, stack_width(v));
    if (!vcpu_long64(v) && cpu_linear(v, SEG_SS, offset, size, MMU_READ, &offset))
        return -1;
    return load_at(v, offset, value, size, true);
}

static int stack_store(struct vcpu *v, uint64_t offset, uint64_t value, unsigned size)
{
    offset = callout_truncate(offset, stack_width(v));
    if (!vcpu_long64(v) && cpu_linear(v, SEG_SS, offset, size, MMU_WRITE, &offset))
        return -1;
    return store_at(v, offset, &value, size, true);
}

static int push(struct vcpu *v, uint64_t value, unsigned size)
{
    uint64_t rsp = v->gpr[RSP] - size;

    if (stack_store(v, rsp, value, size))
        return -1;
    set_rsp(v, rsp);
    return 0;
}

/* With an operand size of 32 bits Intel's processors write the selector only and leave the upper half of
 * its place alone; AMD's write four bytes (SDM vol. 2, PUSH, allows both). */
static int push_selector(struct vcpu *v, uint16_t selector, unsigned size)
{
    if (size != 4 || v->model->vendor != CPU_VENDOR_INTEL)
        return push(v, selector, size);
    if (stack_store(v, v->gpr[RSP] - 4, selector, 2))
        return -1;
    set_rsp(v, v->gpr[RSP] - 4);
    return 0;
}

static int peek_stack(struct vcpu *v, uint64_t *value, unsigned size)
{
    return stack_load(v, v->gpr[RSP], value, size);
}

static void release_stack(struct vcpu *v, unsigned size)
{
    set_rsp(v, v->gpr[RSP] + size);
}

/* Is the operand size 16 bits, for instructions whose decoded one does not say? */
static bool operand16(const struct vcpu *v, const struct insn *in)
{
    bool p66 = false;

    for (unsigned i = 0; i < in->prefix_len; i++)
        p66 |= in->raw[i] == 0x66;
    return !vcpu_long64(v) && p66 != !(v->seg[SEG_CS].attr & SEGA_DB);
}

/* Protected-mode instructions: #UD in real-address and virtual-8086 mode. */
static bool no_selectors(const struct vcpu *v)
{
    return !(v->cr0 & CR0_PE) || (v->rflags & FL_VM);
}

static void set_zf(struct vcpu *v, bool zf)
{
    v->rflags = zf ? v->rflags | FL_ZF : v->rflags & ~(uint64_t)FL_ZF;
}

static uint64_t edx_eax(const struct vcpu *v)
{
    return v->gpr[RDX] << 32 | (uint32_t)v->gpr[RAX];
}

static void set_edx_eax(struct vcpu *v, uint64_t value)
{
    v->gpr[RAX] = (uint32_t)value;
    v->gpr[RDX] = value >> 32;
}

/* -- Groups of instructions. ------------------------------------------------------------------- */

static enum cpu_result do_in_out(struct vcpu *v, const struct insn *in)
{
    /* E4-E7 take the port from an immediate, EC-EF from DX; odd opcodes are the wide forms. */
    uint16_t port = in->opcode & 8 ? v->gpr[RDX] : (uint8_t)in->imm;
    unsigned size = !(in->opcode & 1) ? 1 : in->op_size == 2 ? 2 : 4;

    enum cpu_result r = cpu_io_check(v, port, size);
    if (r != CPU_NEXT)
        return r;
    const struct platform_ops *ops = v->platform->ops;
    uint32_t value = size == 1   ? (uint8_t)v->gpr[RAX]
                     : size == 2 ? (uint16_t)v->gpr[RAX]
                                 : (uint32_t)v->gpr[RAX];
    if (in->op == OP_IN) {
        if (!ops->pio_read_light || !ops->pio_read_light(v->platform, v, port, size, &value)) {
            vcpu_fp_save(v);
            enum host_cause was = host_time_switch(v, HOST_DEVICE);
            value = ops->pio_read(v->platform, port, size);
            host_time_switch(v, was);
        }
        write_gpr(v, RAX, size, value);
    } else if (!ops->pio_write_light ||
               !ops->pio_write_light(v->platform, v, port, size, value)) {
        vcpu_fp_save(v);
        enum host_cause was = host_time_switch(v, HOST_DEVICE);
        ops->pio_write(v->platform, port, size, value);
        host_time_switch(v, was);
    }
    callout_watch(v, DEBUG_IO, port, size);
    return CPU_NEXT;
}

static enum cpu_result do_far(struct vcpu *v, const struct insn *in)
{
    uint16_t sel = in->imm2;
    uint64_t offset = callout_truncate(in->imm, in->op_size);

    if (is_mem(in)) {
        uint8_t ptr[10];
        if (load_pair(v, in, ptr, in->op_size, 2))
            return CPU_EXCEPTION;
        offset = 0;
        for (unsigned i = 0; i < in->op_size; i++)
            offset |= (uint64_t)ptr[i] << (8 * i);
        sel = ptr[in->op_size] | ptr[in->op_size + 1] << 8;
    }
    if (in->op == OP_JMP_FAR)
        return cpu_far_jump(v, sel, offset, v->rip + in->len);
    return cpu_far_call(v, sel, offset, in->op_size, v->rip + in->len);
}

/* LES, LDS, LSS, LFS, LGS: the selector is loaded (and can fault) before the register changes. */
static enum cpu_result do_load_far_ptr(struct vcpu *v, const struct insn *in)
{
    uint8_t ptr[10];
    uint64_t offset = 0;
    enum seg seg;

    if (load_pair(v, in, ptr, in->op_size, 2))
        return CPU_EXCEPTION;
    for (unsigned i = 0; i < in->op_size; i++)
        offset |= (uint64_t)ptr[i] << (8 * i);
    if (in->map == MAP_ONE)
        seg = in->opcode == 0xc4 ? SEG_ES : SEG_DS;
    else
        seg = in->opcode == 0xb2 ? SEG_SS : in->opcode == 0xb4 ? SEG_FS : SEG_GS;
    enum cpu_result r = cpu_load_segment(v, seg, ptr[in->op_size] | ptr[in->op_size + 1] << 8);
    if (r != CPU_NEXT)
        return r;
    write_gpr(v, in->reg, in->op_size, offset);
    return serialise(v, in, r);
}

static enum cpu_result do_load_sreg(struct vcpu *v, const struct insn *in, unsigned seg,
                                    uint16_t sel)
{
    enum cpu_result r = cpu_load_segment(v, seg, sel);

    /* MOV SS and POP SS hold interrupts off for one instruction (SDM vol. 3, 6.8.3). */
    if (r == CPU_NEXT && seg == SEG_SS)
        v->interrupt_shadow = 1;
    return r;
}

static enum cpu_result do_pop_seg(struct vcpu *v, const struct insn *in)
{
    unsigned size = stack_size(v, in), seg = in->opcode >> 3 & 7, width = stack_width(v);
    uint64_t sel;

    if (peek_stack(v, &sel, 2)) /* of a wider element processors read these two bytes */
        return CPU_EXCEPTION;
    enum cpu_result r = do_load_sreg(v, in, seg, sel);
    if (r == CPU_NEXT) /* POP SS pops by the old width, and then it is the new one */
        write_gpr(v, RSP, width, v->gpr[RSP] + size);
    return serialise(v, in, r);
}

static enum cpu_result do_popf(struct vcpu *v, const struct insn *in)
{
    unsigned size = stack_size(v, in);
    uint64_t value;

    if (peek_stack(v, &value, size))
        return CPU_EXCEPTION;
    enum cpu_result r = cpu_popf(v, value, size);
    if (r == CPU_NEXT)
        release_stack(v, size);
    return serialise(v, in, r);
}

/* SDM vol. 2, ENTER.  RBP and RSP change only when every access has succeeded. */
static enum cpu_result do_enter(struct vcpu *v, const struct insn *in)
{
    unsigned size = stack_size(v, in), level = in->imm2 & 31;
    uint64_t rsp = v->gpr[RSP] - size, rbp = v->gpr[RBP], frame = rsp, gpa, gva;
    void *host;

    if (stack_store(v, rsp, rbp, size))
        return CPU_EXCEPTION;
    for (unsigned i = 1; i < level; i++) {
        uint64_t outer = 0;
        rbp -= size;
        rsp -= size;
        if (stack_load(v, rbp, &outer, size) || stack_store(v, rsp, outer, size))
            return CPU_EXCEPTION;
    }
    if (level) {
        rsp -= size;
        if (stack_store(v, rsp, frame, size))
            return CPU_EXCEPTION;
    }
    rsp -= (uint16_t)in->imm;
    /* A push at the final stack pointer must be possible (SDM vol. 2, ENTER): all bytes of it, even
     * if the last ones are on another page. */
    gva = callout_truncate(rsp, stack_width(v));
    if (!vcpu_long64(v) && cpu_linear(v, SEG_SS, gva, size, MMU_WRITE, &gva))
        return CPU_EXCEPTION;
    uint64_t last = gva + size - 1;
    if (!vcpu_long64(v))
        last = (uint32_t)last;
    if (last >> GUEST_PAGE_SHIFT != gva >> GUEST_PAGE_SHIFT)
        last &= ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    if (mmu_translate(v, gva, MMU_WRITE, true, &host, &gpa) < 0 ||
        mmu_translate(v, last, MMU_WRITE, true, &host, &gpa) < 0)
        return CPU_EXCEPTION;
    write_gpr(v, RBP, size, frame);
    set_rsp(v, rsp);
    return CPU_NEXT;
}

static enum cpu_result do_store_table(struct vcpu *v, const struct insn *in, const struct dtable *t)
{
    uint8_t image[10];
    unsigned bytes = vcpu_long64(v) ? 8 : 4;

    enum cpu_result r = cpu_umip_check(v);
    if (r != CPU_NEXT)
        return r;
    image[0] = t->limit;
    image[1] = t->limit >> 8;
    for (unsigned i = 0; i < bytes; i++)
        image[2 + i] = t->base >> (8 * i);
    return store(v, in, image, 2 + bytes) ? CPU_EXCEPTION : CPU_NEXT;
}

static enum cpu_result do_load_table(struct vcpu *v, const struct insn *in)
{
    uint8_t image[10];
    uint64_t base = 0;
    unsigned bytes = vcpu_long64(v) ? 8 : 4;

    enum cpu_result r = cpu_require_cpl0(v);
    if (r != CPU_NEXT)
        return r;
    if (load(v, in, image, 2 + bytes))
        return CPU_EXCEPTION;
    for (unsigned i = 0; i < bytes; i++)
        base |= (uint64_t)image[2 + i] << (8 * i);
    if (operand16(v, in))
        base &= 0xffffff;
    uint16_t limit = image[0] | image[1] << 8;
    return in->op == OP_LGDT ? cpu_lgdt(v, base, limit) : cpu_lidt(v, base, limit);
}

static enum cpu_result do_selector(struct vcpu *v, const struct insn *in)
{
    uint16_t sel;
    uint32_t value = 0;
    int ok;

    if (no_selectors(v))
        return cpu_raise(v, EXC_UD);
    if (read_rm16(v, in, &sel))
        return CPU_EXCEPTION;
    switch (in->op) {
    case OP_LAR:
        ok = cpu_lar(v, sel, &value);
        break;
    case OP_LSL:
        ok = cpu_lsl(v, sel, &value);
        break;
    default:
        ok = cpu_verify(v, sel, in->op == OP_VERW);
    }
    if (ok < 0)
        return CPU_EXCEPTION;
    set_zf(v, ok);
    if (ok && (in->op == OP_LAR || in->op == OP_LSL))
        write_gpr(v, in->reg, in->op_size, value);
    return CPU_NEXT;
}

/* LLDT and LTR check CPL before they read the selector. */
static enum cpu_result do_load_system_seg(struct vcpu *v, const struct insn *in)
{
    uint16_t sel;

    if (no_selectors(v))
        return cpu_raise(v, EXC_UD);
    enum cpu_result r = cpu_require_cpl0(v);
    if (r != CPU_NEXT)
        return r;
    if (read_rm16(v, in, &sel))
        return CPU_EXCEPTION;
    return in->op == OP_LLDT ? cpu_lldt(v, sel) : cpu_ltr(v, sel);
}

static enum cpu_result do_lmsw(struct vcpu *v, const struct insn *in)
{
    uint16_t value;

    enum cpu_result r = cpu_require_cpl0(v);
    if (r != CPU_NEXT)
        return r;
    if (read_rm16(v, in, &value))
        return CPU_EXCEPTION;
    return serialise(v, in, cpu_lmsw(v, value));
}

static enum cpu_result do_invpcid(struct vcpu *v, const struct insn *in)
{
    uint64_t desc[2];

    enum cpu_result r = cpu_require_cpl0(v);
    if (r != CPU_NEXT)
        return r;
    if (load(v, in, desc, 16))
        return CPU_EXCEPTION;
    return serialise(v, in, cpu_invpcid(v, read_gpr(v, in->reg, vcpu_long64(v) ? 8 : 4), desc));
}

static enum cpu_result do_rdmsr(struct vcpu *v)
{
    uint64_t value;

    enum cpu_result r = cpu_require_cpl0(v);
    if (r == CPU_NEXT)
        r = cpu_rdmsr(v, v->gpr[RCX], &value);
    if (r == CPU_NEXT)
        set_edx_eax(v, value);
    return r;
}

/* Does translated code depend on this MSR (bt_current_key())?  IA32_TIME_STAMP_COUNTER and
 * IA32_TSC_ADJUST decide whether RDTSC is the host's. */
static bool msr_is_in_key(uint32_t msr)
{
    return msr == MSR_EFER || msr == 0x10 || msr == 0x3b;
}

static enum cpu_result do_wrmsr(struct vcpu *v, const struct insn *in)
{
    uint32_t msr = v->gpr[RCX];

    enum cpu_result r = cpu_require_cpl0(v);
    if (r == CPU_NEXT)
        r = cpu_wrmsr(v, msr, edx_eax(v));
    return msr_is_in_key(msr) ? serialise(v, in, r) : r;
}

static enum cpu_result do_rdtsc(struct vcpu *v, const struct insn *in)
{
    uint64_t value;

    enum cpu_result r = cpu_rdtsc(v, &value);
    if (r != CPU_NEXT)
        return r;
    set_edx_eax(v, value);
    if (in->op == OP_RDTSCP)
        v->gpr[RCX] = (uint32_t)v->tsc_aux;
    return CPU_NEXT;
}

static enum cpu_result do_cpuid(struct vcpu *v)
{
    uint32_t r[4];

    if (vcpu_long64(v))
        cpu_cpuid_remember(v, v->gpr[RAX], v->gpr[RCX], r);
    else
        cpu_cpuid(v, v->gpr[RAX], v->gpr[RCX], r);
    v->gpr[RAX] = r[0];
    v->gpr[RBX] = r[1];
    v->gpr[RCX] = r[2];
    v->gpr[RDX] = r[3];
    return CPU_NEXT;
}

static enum cpu_result do_cr_dr(struct vcpu *v, const struct insn *in)
{
    unsigned size = vcpu_long64(v) ? 8 : 4;
    uint64_t value = read_gpr(v, in->rm, size);
    enum cpu_result r;

    switch (in->op) {
    case OP_MOV_TO_CR:
        return serialise(v, in, cpu_mov_to_cr(v, in->reg, value));
    case OP_MOV_TO_DR:
        return serialise(v, in, cpu_mov_to_dr(v, in->reg, value));
    case OP_MOV_FROM_CR:
        r = cpu_mov_from_cr(v, in->reg, &value);
        break;
    default:
        r = cpu_mov_from_dr(v, in->reg, &value);
    }
    if (r == CPU_NEXT)
        write_gpr(v, in->rm, size, value);
    return r;
}

static enum cpu_result do_base(struct vcpu *v, const struct insn *in)
{
    enum seg seg = in->op == OP_RDFSBASE || in->op == OP_WRFSBASE ? SEG_FS : SEG_GS;
    uint64_t value;

    if (in->op == OP_WRFSBASE || in->op == OP_WRGSBASE)
        return cpu_wrbase(v, seg, read_gpr(v, in->rm, in->op_size));
    enum cpu_result r = cpu_rdbase(v, seg, &value);
    if (r == CPU_NEXT)
        write_gpr(v, in->rm, in->op_size, value);
    return r;
}

static enum cpu_result do_xcr(struct vcpu *v, const struct insn *in)
{
    uint64_t value;

    if (in->op == OP_XSETBV)
        return serialise(v, in, cpu_xsetbv(v, v->gpr[RCX], edx_eax(v)));
    enum cpu_result r = cpu_xgetbv(v, v->gpr[RCX], &value);
    if (r == CPU_NEXT)
        set_edx_eax(v, value);
    return r;
}

/* INT1 is delivered as a trap like a hardware #DB, without a check of the gate's DPL; DR6 is left
 * alone (SDM vol. 2, INT n). */
static enum cpu_result do_int1(struct vcpu *v, const struct insn *in)
{
    v->rip += in->len;
    return cpu_debug_trap(v, 0);
}

static enum cpu_result do_bound(struct vcpu *v, const struct insn *in)
{
    uint8_t b[8] = {0};
    int32_t index, low, high;

    if (load_pair(v, in, b, in->op_size, in->op_size))
        return CPU_EXCEPTION;
    if (in->op_size == 2) {
        index = (int16_t)v->gpr[in->reg];
        low = (int16_t)(b[0] | b[1] << 8);
        high = (int16_t)(b[2] | b[3] << 8);
    } else {
        index = v->gpr[in->reg];
        __builtin_memcpy(&low, b, 4);
        __builtin_memcpy(&high, b + 4, 4);
    }
    return index < low || index > high ? cpu_raise(v, EXC_BR) : CPU_NEXT;
}

static enum cpu_result do_arpl(struct vcpu *v, const struct insn *in)
{
    uint16_t dst, src = v->gpr[in->reg];

    if (no_selectors(v))
        return cpu_raise(v, EXC_UD);
    if (read_rm16(v, in, &dst))
        return CPU_EXCEPTION;
    bool adjust = (dst & 3) < (src & 3);
    if (adjust) {
        dst = (dst & ~3) | (src & 3);
        if (!is_mem(in))
            write_gpr(v, in->rm, 2, dst);
        else if (store(v, in, &dst, 2))
            return CPU_EXCEPTION;
    }
    set_zf(v, adjust);
    return CPU_NEXT;
}

/* -- Instructions that 64-bit mode does not have. ------------------------------------------------ */

/* PUSHA, POPA: nothing changes until every access has succeeded (SDM vol. 2). */
static enum cpu_result do_pusha(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size;

    for (unsigned i = 0; i < 8; i++)
        if (stack_store(v, v->gpr[RSP] - (i + 1) * size, v->gpr[i], size))
            return CPU_EXCEPTION;
    set_rsp(v, v->gpr[RSP] - 8 * size);
    return CPU_NEXT;
}

static enum cpu_result do_popa(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size;
    uint64_t value[8];

    for (unsigned i = 0; i < 8; i++)
        if (stack_load(v, v->gpr[RSP] + i * size, &value[i], size))
            return CPU_EXCEPTION;
    for (unsigned i = 0; i < 8; i++)
        if (7 - i != RSP)
            write_gpr(v, 7 - i, size, value[i]);
    release_stack(v, 8 * size);
    return CPU_NEXT;
}

static void set_sf_zf_pf(struct vcpu *v, uint8_t al)
{
    v->rflags &= ~(uint64_t)(FL_SF | FL_ZF | FL_PF);
    v->rflags |= (al & 0x80 ? FL_SF : 0) | (al ? 0 : FL_ZF) |
                 (__builtin_parity(al) ? 0 : FL_PF);
}

/* The decimal instructions, as SDM vol. 2 spells them out.  Flags it calls undefined come out as
 * Intel's processors leave them. */
static enum cpu_result do_bcd(struct vcpu *v, const struct insn *in)
{
    uint8_t al = v->gpr[RAX], ah = v->gpr[RAX] >> 8, old = al, base = (uint8_t)in->imm;
    bool cf = v->rflags & FL_CF, af = v->rflags & FL_AF, sub = in->opcode & 8;

    switch (in->opcode) {
    case 0x27: /* DAA */
    case 0x2f: /* DAS */
        if ((al & 15) > 9 || af) {
            if (sub)
                cf |= al < 6;
            al = sub ? al - 6 : al + 6;
            af = true;
        }
        if (old > 0x99 || (v->rflags & FL_CF)) {
            al = sub ? al - 0x60 : al + 0x60;
            cf = true;
        } else if (!sub) {
            cf = false;
        }
        set_sf_zf_pf(v, al);
        v->rflags &= ~(uint64_t)(FL_CF | FL_AF | FL_OF);
        v->rflags |= (cf ? FL_CF : 0) | (af ? FL_AF : 0);
        break;
    case 0x37: /* AAA */
    case 0x3f: /* AAS */
        if ((al & 15) > 9 || af) {
            uint16_t ax = (uint16_t)v->gpr[RAX];
            ax = sub ? (uint16_t)(ax - 0x106) : (uint16_t)(ax + 0x106);
            al = (uint8_t)ax;
            ah = ax >> 8;
            af = true;
        } else {
            af = false;
        }
        al &= 15;
        set_sf_zf_pf(v, al); /* undefined, like OF: as Intel's processors have them */
        v->rflags &= ~(uint64_t)(FL_CF | FL_AF | FL_OF);
        v->rflags |= af ? FL_CF | FL_AF : 0;
        break;
    case 0xd4: /* AAM */
        if (!base)
            return cpu_raise(v, EXC_DE);
        ah = al / base;
        al = al % base;
        set_sf_zf_pf(v, al);
        v->rflags &= ~(uint64_t)(FL_CF | FL_AF | FL_OF);
        break;
    case 0xd5: /* AAD */
        ah = (uint8_t)(ah * base);
        al = (uint8_t)(al + ah);
        set_sf_zf_pf(v, al);
        v->rflags &= ~(uint64_t)(FL_CF | FL_AF | FL_OF); /* undefined: those of the addition */
        v->rflags |= (al < old ? FL_CF : 0) | ((al ^ old ^ ah) & FL_AF) |
                     (((al ^ old) & (al ^ ah) & 0x80) ? FL_OF : 0);
        ah = 0;
        break;
    default: /* SALC */
        al = cf ? 0xff : 0;
    }
    write_gpr(v, RAX, 2, (uint16_t)(ah << 8 | al));
    return CPU_NEXT;
}

/* LOOPcc and JCXZ whose target is past the limit of CS: the count changes only if it is not taken. */
static enum cpu_result do_loop_past_limit(struct vcpu *v, const struct insn *in)
{
    bool loop = in->op != OP_JRCXZ, zf = v->rflags & FL_ZF;
    uint64_t count = callout_truncate(v->gpr[RCX] - (loop ? 1 : 0), in->addr_size);
    bool taken = loop ? count != 0 : count == 0;

    if (in->op == OP_LOOPE || in->op == OP_LOOPNE)
        taken = taken && zf == (in->op == OP_LOOPE);
    if (taken)
        return cpu_raise_code(v, EXC_GP, 0);
    if (loop)
        write_gpr(v, RCX, in->addr_size, count);
    return CPU_NEXT;
}

/* -- The switch. ------------------------------------------------------------------------------- */

static enum cpu_result execute(struct vcpu *v, const struct insn *in)
{
    uint64_t next = v->rip + in->len;
    enum cpu_result r;
    uint16_t sel;

    switch (in->op) {
    case OP_MOVS:
    case OP_CMPS:
    case OP_STOS:
    case OP_LODS:
    case OP_SCAS:
    case OP_INS:
    case OP_OUTS:
        return callout_string(v, in);

    /* Control transfers. */
    case OP_JMP_FAR:
    case OP_CALL_FAR:
        return do_far(v, in);
    case OP_RETF:
        return cpu_far_return(v, in->op_size, in->imm);
    case OP_IRET:
        return cpu_iret(v, in->op_size, next);
    case OP_INT:
        return cpu_int_n(v, in->imm, next);
    case OP_INT3:
        return cpu_software_interrupt(v, EXC_BP, next);
    case OP_INTO:
        return v->rflags & FL_OF ? cpu_software_interrupt(v, EXC_OF, next) : CPU_NEXT;
    case OP_INT1:
        return do_int1(v, in);
    case OP_SYSCALL:
        return cpu_syscall(v, next);
    case OP_SYSRET:
        return cpu_sysret(v, in->op_size);
    case OP_SYSENTER:
        return cpu_sysenter(v);
    case OP_SYSEXIT:
        /* The operand size of SYSEXIT is 4 unless REX.W is there. */
        return cpu_sysexit(v, in->rex & 8 ? 8 : 4);

    /* Flags and the stack. */
    case OP_PUSHF: {
        uint64_t image;
        r = cpu_pushf(v, stack_size(v, in), &image);
        if (r == CPU_NEXT && push(v, image, stack_size(v, in)))
            r = CPU_EXCEPTION;
        return r;
    }
    case OP_POPF:
        return do_popf(v, in);
    case OP_ENTER:
        return do_enter(v, in);
    case OP_CLI:
        return cpu_cli(v);
    case OP_STI:
        return serialise(v, in, cpu_sti(v));
    case OP_STAC:
        return cpu_stac(v);
    case OP_CLAC:
        return cpu_clac(v);
    case OP_HLT:
        return cpu_hlt(v, next);

    /* Segments. */
    case OP_PUSH_SEG:
        return push_selector(v, v->seg[in->opcode >> 3 & 7].sel, stack_size(v, in)) ? CPU_EXCEPTION
                                                                                    : CPU_NEXT;
    case OP_POP_SEG:
        return do_pop_seg(v, in);
    case OP_MOV_FROM_SEG:
        if (in->reg >= SEG_COUNT)
            return cpu_raise(v, EXC_UD);
        return write_rm16(v, in, v->seg[in->reg].sel);
    case OP_MOV_TO_SEG:
        if (in->reg >= SEG_COUNT || in->reg == SEG_CS)
            return cpu_raise(v, EXC_UD);
        if (read_rm16(v, in, &sel))
            return CPU_EXCEPTION;
        return serialise(v, in, do_load_sreg(v, in, in->reg, sel));
    case OP_LOAD_FAR_PTR:
        return do_load_far_ptr(v, in);
    case OP_SWAPGS:
        return cpu_swapgs(v);
    case OP_RDFSBASE:
    case OP_RDGSBASE:
    case OP_WRFSBASE:
    case OP_WRGSBASE:
        return do_base(v, in);

    /* Descriptor tables and selectors. */
    case OP_SGDT:
        return do_store_table(v, in, &v->gdtr);
    case OP_SIDT:
        return do_store_table(v, in, &v->idtr);
    case OP_LGDT:
    case OP_LIDT:
        return do_load_table(v, in);
    case OP_SLDT:
        if (no_selectors(v))
            return cpu_raise(v, EXC_UD);
        r = cpu_umip_check(v);
        return r == CPU_NEXT ? write_rm16(v, in, v->ldtr.sel) : r;
    case OP_STR:
        if (no_selectors(v))
            return cpu_raise(v, EXC_UD);
        r = cpu_umip_check(v);
        return r == CPU_NEXT ? write_rm16(v, in, v->tr.sel) : r;
    case OP_SMSW:
        r = cpu_umip_check(v);
        return r == CPU_NEXT ? write_rm16(v, in, v->cr0) : r;
    case OP_LMSW:
        return do_lmsw(v, in);
    case OP_LLDT:
    case OP_LTR:
        return do_load_system_seg(v, in);
    case OP_LAR:
    case OP_LSL:
    case OP_VERR:
    case OP_VERW:
        return do_selector(v, in);
    case OP_ARPL:
        return do_arpl(v, in);
    case OP_BOUND:
        return do_bound(v, in);
    case OP_PUSHA:
        return do_pusha(v, in);
    case OP_POPA:
        return do_popa(v, in);
    case OP_BCD:
        return do_bcd(v, in);

    /* Control registers, TLB, caches. */
    case OP_MOV_FROM_CR:
    case OP_MOV_TO_CR:
    case OP_MOV_FROM_DR:
    case OP_MOV_TO_DR:
        return do_cr_dr(v, in);
    case OP_CLTS:
        return serialise(v, in, cpu_clts(v));
    case OP_INVLPG:
        return serialise(v, in, cpu_invlpg(v, callout_ea(v, in)));
    case OP_INVPCID:
        return do_invpcid(v, in);
    case OP_INVD:
    case OP_WBINVD:
        return cpu_require_cpl0(v); /* the host's caches are coherent */
    case OP_XGETBV:
    case OP_XSETBV:
        return do_xcr(v, in);

    /* MSRs, CPUID, counters, I/O. */
    case OP_RDMSR:
        return do_rdmsr(v);
    case OP_WRMSR:
        return do_wrmsr(v, in);
    case OP_CPUID:
        return do_cpuid(v);
    case OP_RDTSC:
    case OP_RDTSCP:
        return do_rdtsc(v, in);
    case OP_RDPID:
        write_gpr(v, in->rm, vcpu_long64(v) ? 8 : 4, v->tsc_aux);
        return CPU_NEXT;
    case OP_RDPMC:
        return cpu_rdpmc(v);
    case OP_IN:
    case OP_OUT:
        return do_in_out(v, in);

    case OP_LOOP:
    case OP_LOOPE:
    case OP_LOOPNE:
    case OP_JRCXZ:
        return do_loop_past_limit(v, in);
    case OP_FAULT_DE:
        return cpu_raise(v, EXC_DE);
    case OP_FAULT_NM:
        return cpu_raise(v, EXC_NM);
    case OP_FAULT_GP:
        return cpu_raise_code(v, EXC_GP, 0);
    case OP_INVALID:
        /* More than 15 bytes are #GP(0), everything else is #UD. */
        return in->imm ? cpu_raise_code(v, EXC_GP, 0) : cpu_raise(v, EXC_UD);
    default: /* UD0-UD2, VMCALL and its kin, MONITOR, MWAIT */
        return cpu_raise(v, EXC_UD);
    }
}

enum cpu_result callout_execute(struct vcpu *v, const struct insn *in)
{
    uint64_t hits = v->engine ? v->engine->db_bits : 0;
    enum cpu_result r = execute(v, in);

    /* An instruction that faults has hit no breakpoint. */
    if (r == CPU_EXCEPTION && v->engine)
        v->engine->db_bits = hits;
    return r;
}
