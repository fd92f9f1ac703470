/*
 * SYSCALL and SYSRET of 64-bit code without C: what a kernel is entered and left by.
 *
 * A block jumps to bt.stub_syscall or bt.stub_sysret with its callout in R10, as to the light stub
 * (light_callout.c), and these go where vcpu.bt says: the light stub, or a piece of code here that
 * does all of it and goes on through the jump cache of the new privilege.  C code points there what
 * has to be looked at once only (system_calls_update()), and away again when it may have changed
 * (system_calls_forget()):
 *
 *     EFER.SCE, LSTAR, SFMASK, the segments of STAR; that nothing is traced or watched, no
 * breakpoint is set; that the other privilege's half of the jump cache is good for the key code
 * will have there.
 *
 * What is left is looked at each time: TF, AC and the like among the flags, for SYSRET an address
 * that is not canonical and events, which IF = 1 could let in.  Any of that is for C code, which
 * finds all registers and flags as they were.
 *
 * These pieces are helpers in the sense of signals.c: a kick that comes here steps on to the next
 * instruction boundary, so all of the new state is in place when the target is reached.  They touch
 * nothing that could fault, and the host's stack only with PUSHF.
 */
#include "translator/bt.h"
#include "translator/emit.h"

#include "cpu/segment.h"
#include "cpu/system.h"

#define BT_OFF(f) VCPU_OFF(bt.f)

/* What SYSRET takes from R11 (SDM vol. 2, SYSRET). */
#define SYSRET_FLAGS 0x3c7fd7u
/* Flags that need more than to be stored. */
#define ODD_FLAGS (FL_TF | FL_AC | FL_RF | FL_VM)

/* -- When
 * ------------------------------------------------------------------------------------------ */

void system_calls_forget(struct vcpu *v)
{
    v->bt.syscall_path = v->bt.sysret_path = v->engine->bt->stub_light;
}

/* struct segment up to its base, which is 0. */
static uint64_t packed(unsigned sel, struct segment s)
{
    return (sel & 0xffff) | (uint64_t)s.attr << 16 | (uint64_t)s.limit << 32;
}
_Static_assert(offsetof(struct segment, sel) == 0 && offsetof(struct segment, attr) == 2 &&
                   offsetof(struct segment, limit) == 4 && offsetof(struct segment, base) == 8,
               "packed() is the first quadword of a segment");

void system_calls_update(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    struct bt_engine *bt = ev->bt;
    const uint64_t needed = EFER_SCE | EFER_LMA;

    system_calls_forget(v);
    if (!bt->native_stack || bt->cfg.trace_mask || bt->cfg.chaos || ev->watch ||
        (v->dr[7] & DR7_ENABLES) || (v->efer & needed) != needed)
        return;
    if ((v->sfmask & (FL_TF | FL_DF)) == (FL_TF | FL_DF) && bt_long64_key_valid(v, 0)) {
        uint16_t sel = (v->star >> 32) & ~3u;
        v->bt.syscall_cs = packed(sel, cpu_flat_code64(0, 0));
        v->bt.syscall_ss = packed(sel + 8u, cpu_flat_data(0, 0));
        v->bt.syscall_keep = (~v->sfmask & ~(uint64_t)FL_RF) | FL_FIXED1;
        v->bt.syscall_index = jump_cache_index(bt, v->lstar, false);
        v->bt.syscall_path = bt->fast_syscall;
    }
    if (bt_long64_key_valid(v, 3)) {
        uint16_t sel = v->star >> 48;
        v->bt.sysret_cs = packed((sel + 16u) | 3, cpu_flat_code64(0, 3));
        v->bt.sysret_ss = packed((sel + 8u) | 3, cpu_flat_data(0, 3));
        v->bt.sysret_path = bt->fast_sysret[ev->young.now];
    }
}

/* -- The code
 * -------------------------------------------------------------------------------------- */

static void jmp_gs(struct emitter *e, uint32_t off)
{
    e_bytes(e, (const uint8_t[]){0x65, 0xff, 0x24, 0x25}, 4);
    e32(e, off);
}

/* test dword gs:[off], imm; jne */
static uint8_t *unless_clear(struct emitter *e, uint32_t off, uint32_t imm)
{
    e_bytes(e, (const uint8_t[]){0x65, 0xf7, 0x04, 0x25}, 4);
    e32(e, off);
    e32(e, imm);
    return e_jcc_fwd(e, CC_NE);
}

/* and/or/test r11d, imm: `reg` is the /digit of opcode 81 */
static void r11_imm(struct emitter *e, unsigned digit, uint32_t imm)
{
    e_bytes(e, (const uint8_t[]){0x41, 0x81, (uint8_t)(0xc3 | digit << 3)}, 3);
    e32(e, imm);
}

/* inc qword gs:[off] */
static void count(struct emitter *e, uint32_t off)
{
    e_bytes(e, (const uint8_t[]){0x65, 0x48, 0xff, 0x04, 0x25}, 5);
    e32(e, off);
}

/* CPL, CS and SS. Uses R11. */
static void new_privilege(struct emitter *e, unsigned cpl, uint32_t cs, uint32_t ss)
{
    static const enum seg seg[2] = {SEG_CS, SEG_SS};
    const uint32_t value[2] = {cs, ss};

    e_bytes(e, (const uint8_t[]){0x65, 0xc6, 0x04, 0x25}, 4); /* mov byte gs:[cpl], imm */
    e32(e, VCPU_OFF(cpl));
    e8(e, (uint8_t)cpl);
    e_bytes(e, (const uint8_t[]){0x65, 0xc7, 0x04, 0x25}, 4); /* mov dword gs:[shadow], 0 */
    e32(e, VCPU_OFF(interrupt_shadow));
    e32(e, 0);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t off = VCPU_OFF(seg[0]) + (uint32_t)(seg[i] * sizeof(struct segment));
        e_load_gs(e, R11, value[i]);
        e_store_gs(e, off, R11);
        e_bytes(e, (const uint8_t[]){0x65, 0x48, 0xc7, 0x04, 0x25}, 5); /* mov qword gs:[base], 0 */
        e32(e, off + (uint32_t)offsetof(struct segment, base));
        e32(e, 0);
    }
}

/* The guest's RSP in R10 becomes the host's, by the windows of supervisor code or (sup = 0) of user
 * code; young: of code without any.  Flag-free, uses R11. */
static void new_stack(struct emitter *e, unsigned sup, bool young)
{
    if (young) {
        e_mov_rr(e, RSP, R10);
        e_bytes(e, (const uint8_t[]){0x65, 0x48, 0xc7, 0x04, 0x25}, 5); /* mov qword gs:[], -1 */
        e32(e, BT_OFF(stack_not));
        e32(e, ~0u);
        return;
    }
    e_rorx(e, R11, R10, WINDOW_SHIFT);
    e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xdb}, 4); /* movzx r11d, r11w */
    e_gs_idx(e, true, 0x8b, R11, R11, 3,
             VCPU_OFF(window_delta) + sup * (uint32_t)sizeof(((struct vcpu *)0)->window_delta[0]));
    e_lea(e, RSP, R10, R11, 1, 0);
    e_bytes(e, (const uint8_t[]){0x49, 0xf7, 0xd3}, 3); /* not r11 */
    e_store_gs(e, BT_OFF(stack_not), R11);
}

/* reg = the guest's RSP; from: the host's. Flag-free, uses R11. */
static void old_stack(struct emitter *e, unsigned from)
{
    e_load_gs(e, R11, BT_OFF(stack_not));
    e_lea(e, R10, from, R11, 1, 1);
}

/* The arithmetic flags from vcpu.rflags, by way of RAX, and DF = 0. */
static void new_flags(struct emitter *e)
{
    e_load_flags(e, VCPU_OFF(rflags));
    e8(e, 0xfc); /* cld */
}

/* The guest's RAX and RCX are in memory from the first line on. */
static void emit_syscall(struct bt_engine *bt, struct emitter *e)
{
    bt->fast_syscall = (uint32_t)emit_here(e);
    e_store_gs(e, GPR_OFF(RCX), RCX);
    e_store_gs(e, GPR_OFF(RAX), RAX);
    e_mov_rr(e, RCX, RSP);
    e_load_gs(e, RSP, VCPU_OFF(host_rsp));
    e8(e, 0x9c);                                  /* pushfq */
    e_bytes(e, (const uint8_t[]){0x41, 0x5b}, 2); /* pop r11 */
    e_load32_gs(e, RAX, VCPU_OFF(rflags));
    e8(e, 0xa9); /* test eax, imm */
    e32(e, ODD_FLAGS);
    uint8_t *odd = e_jcc_fwd(e, CC_NE);
    count(e, BT_OFF(fast_syscalls));
    e8(e, 0x25); /* and eax, imm */
    e32(e, ~(uint32_t)FL_HOST);
    r11_imm(e, 4, FL_HOST);                             /* and r11d, imm */
    e_bytes(e, (const uint8_t[]){0x41, 0x09, 0xc3}, 3); /* or r11d, eax */
    e_store_gs(e, GPR_OFF(R11), R11);
    e_gs_abs(e, true, 0x23, R11, BT_OFF(syscall_keep)); /* and */
    e_store_gs(e, VCPU_OFF(rflags), R11);
    new_flags(e);
    e_load(e, RAX, R10, offsetof(struct callout, rip));
    e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb6, 0x9a},
            4); /* movzx r11d, byte [r10 + insn.len] */
    e32(e, offsetof(struct callout, insn.len));
    e_lea(e, RAX, RAX, R11, 1, 0);
    old_stack(e, RCX);
    e_mov_rr(e, RCX, RAX);
    new_privilege(e, 0, BT_OFF(syscall_cs), BT_OFF(syscall_ss));
    new_stack(e, 1, false);
    e_load_gs(e, RAX, GPR_OFF(RAX));
    e_load_gs(e, R10, VCPU_OFF(lstar));
    e_load_gs(e, R11, BT_OFF(syscall_index));
    e_bytes(e, (const uint8_t[]){0x65, 0x42, 0xff, 0x24, 0xdd}, 5); /* jmp gs:[r11 * 8 + cache] */
    e32(e, VCPU_OFF(jump_cache) + (uint32_t)sizeof(((struct vcpu *)0)->jump_cache[0]));

    e_fix_here(e, odd);
    e_bytes(e, (const uint8_t[]){0x41, 0x53, 0x9d}, 3); /* push r11; popfq */
    e_mov_rr(e, RSP, RCX);
    e_load_gs(e, RCX, GPR_OFF(RCX));
    e_load_gs(e, RAX, GPR_OFF(RAX));
    e_jmp(e, bt->stub_light);
}

/* DF, which the flags put aside do not have, is changed last. */
static void emit_sysret(struct bt_engine *bt, struct emitter *e, bool young)
{
    uint8_t *odd[4];

    bt->fast_sysret[young] = (uint32_t)emit_here(e);
    e_store_gs(e, GPR_OFF(RAX), RAX);
    e_bytes(e, (const uint8_t[]){0x9f, 0x0f, 0x90, 0xc0}, 4); /* lahf; seto al */
    e_mov_rr(e, R11, RCX);
    e_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xe3, 16}, 4); /* shl r11, 16 */
    e_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xfb, 16}, 4); /* sar r11, 16 */
    e_bytes(e, (const uint8_t[]){0x49, 0x39, 0xcb}, 3);     /* cmp r11, rcx */
    odd[0] = e_jcc_fwd(e, CC_NE);
    odd[1] = unless_clear(e, VCPU_OFF(events), ~0u);
    odd[2] = unless_clear(e, VCPU_OFF(rflags), ODD_FLAGS);
    e_load_gs(e, R11, GPR_OFF(R11));
    e_bytes(e, (const uint8_t[]){0x41, 0xf7, 0xc3}, 3); /* test r11d, imm */
    e32(e, FL_TF | FL_AC | FL_DF);
    odd[3] = e_jcc_fwd(e, CC_NE);
    count(e, BT_OFF(fast_sysrets));
    r11_imm(e, 4, SYSRET_FLAGS); /* and */
    r11_imm(e, 1, FL_FIXED1);    /* or */
    e_store_gs(e, VCPU_OFF(rflags), R11);
    new_flags(e);
    old_stack(e, RSP);
    new_privilege(e, 3, BT_OFF(sysret_cs), BT_OFF(sysret_ss));
    new_stack(e, 0, young);
    e_load_gs(e, RAX, GPR_OFF(RAX));
    e_mov_rr(e, R10, RCX);
    e_rorx(e, R11, RCX, JUMP_CACHE_ROT);
    e_lea(e, R11, R11, RCX, 1, 0);
    e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xdb}, 4);       /* movzx r11d, r11w */
    e_bytes(e, (const uint8_t[]){0x65, 0x42, 0xff, 0x24, 0xdd}, 5); /* jmp gs:[r11 * 8 + cache] */
    e32(e, VCPU_OFF(jump_cache));

    for (unsigned i = 0; i < 4; i++)
        e_fix_here(e, odd[i]);
    e_bytes(e, (const uint8_t[]){0x04, 0x7f, 0x9e}, 3); /* add al, 127; sahf */
    e_load_gs(e, RAX, GPR_OFF(RAX));
    e_jmp(e, bt->stub_light);
}

void system_calls_emit(struct bt_engine *bt, struct emitter *e)
{
    bt->stub_syscall = (uint32_t)emit_here(e);
    jmp_gs(e, BT_OFF(syscall_path));
    bt->stub_sysret = (uint32_t)emit_here(e);
    jmp_gs(e, BT_OFF(sysret_path));
    if (!bt->bmi2) /* no windows, so C code never points there */
        return;
    emit_syscall(bt, e);
    emit_sysret(bt, e, false);
    emit_sysret(bt, e, true);
}
