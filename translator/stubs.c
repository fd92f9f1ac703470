/*
 * The fixed pieces of emitted code: the doors between C and translated code.
 *
 *   enter     C -> translated code. Saves the C context at vcpu.host_rsp, falls into resume.
 *   resume    loads the guest's registers and jumps to bt.resume_target.
 *   exit_*    translated code -> C: stores the guest's registers, returns from enter.
 *   callout, prepare, commit, hot   call a C function on the host stack, then resume or leave.
 *   access, door   what code of the first tier passes through on its way from one place in the code
 *             cache to another: the soft-TLB lookup of an access (R10 = address, R11 = mem_site;
 *             ends at mem_site.resume with R10 = HVA), and the check of an indirect jump's target
 *             (R10 = address, R11 = block).  They keep such code small: it runs a few times only.
 *
 * resume is a restartable sequence: all it needs is in vcpu memory, so a kick signal that lands
 * inside it sets exit_request and moves the instruction pointer back to its start.  With
 * exit_request set it loads EFLAGS with TF, so that the first instruction of translated code traps
 * (signals.c): that is how "leave at the next instruction boundary" costs nothing when unused.
 *
 * Fixed pieces are emitted, not written as assembly, because vcpu field offsets are then known to
 * the compiler and cannot drift.
 */
#include "translator/bt.h"
#include "translator/emit.h"

#define BT_OFF(f) VCPU_OFF(bt.f)

static void e_store_imm32_gs(struct emitter *e, uint32_t off, uint32_t imm) /* mov qword */
{
    e8(e, 0x65);
    e8(e, 0x48);
    e8(e, 0xc7);
    e8(e, 0x04);
    e8(e, 0x25);
    e32(e, off);
    e32(e, imm);
}

/* On the host stack. Clears DF. */
static void save_flags(struct emitter *e)
{
    e8(e, 0x9c); /* pushfq */
    e8(e, 0x65); /* pop qword gs:[hflags] */
    e8(e, 0x8f);
    e8(e, 0x04);
    e8(e, 0x25);
    e32(e, BT_OFF(hflags));
    e8(e, 0xfc); /* cld */
}

/* The guest's RSP to vcpu (native_stack.c). Changes RAX, no flag. */
static void save_rsp(struct emitter *e)
{
    e_load_gs(e, RAX, BT_OFF(stack_not));
    e_lea(e, RAX, RSP, RAX, 1, 1);
    e_store_gs(e, GPR_OFF(RSP), RAX);
}

/* Guest state to vcpu, host stack, DF clear. Keeps R10 and R11. */
static void save_all(struct emitter *e)
{
    for (unsigned r = 0; r < 16; r++)
        if (r != R10 && r != R11 && r != RSP)
            e_store_gs(e, GPR_OFF(r), r);
    save_rsp(e);
    e_load_gs(e, RSP, VCPU_OFF(host_rsp));
    save_flags(e);
}

/* ZF = no TF and no DF among the flags to resume with */
static void test_tf_df(struct emitter *e)
{
    e_bytes(e, (const uint8_t[]){0x65, 0xf7, 0x04, 0x25}, 4); /* test dword gs:[hflags], imm */
    e32(e, BT_OFF(hflags));
    e32(e, FL_TF | FL_DF);
}

static void jmp_resume_target(struct emitter *e)
{
    e_bytes(e, (const uint8_t[]){0x65, 0xff, 0x24, 0x25}, 4); /* jmp gs:[resume_target] */
    e32(e, BT_OFF(resume_target));
}

static void call_c(struct emitter *e, uintptr_t fn)
{
    e_mov_imm(e, RAX, fn);
    e8(e, 0xff);
    e8(e, 0xd0);
}

/*
 * The light stub: as the callout stub, but C code is asked for a short cut first, with the
 * registers that it preserves anyway left alone.  light_resume is restartable, as resume is: until
 * its last jump it only loads what is in vcpu memory.
 */
static void emit_light(struct bt_engine *bt, struct emitter *e, uint64_t leave)
{
    static const uint8_t clobbered[] = {RAX, RCX, RDX, RSI, RDI, R8, R9};
    static const uint8_t kept[] = {RBX, RBP, R12, R13, R14, R15};

    bt->stub_light = (uint32_t)emit_here(e);
    for (unsigned i = 0; i < sizeof clobbered; i++)
        e_store_gs(e, GPR_OFF(clobbered[i]), clobbered[i]);
    save_rsp(e);
    e_store_gs(e, BT_OFF(r10), R10);
    e_load_gs(e, RSP, VCPU_OFF(host_rsp));
    save_flags(e);
    e_load_gs(e, RDI, BT_OFF(self));
    e_mov_rr(e, RSI, R10);
    call_c(e, (uintptr_t)bt_light_callout);
    e_bytes(e, (const uint8_t[]){0x85, 0xc0}, 2); /* test eax, eax */
    uint8_t *declined = e_jcc_fwd(e, CC_E);
    e_bytes(e, (const uint8_t[]){0x83, 0xf8, LIGHT_LEAVE}, 3); /* cmp eax, LIGHT_LEAVE */
    uint8_t *go = e_jcc_fwd(e, CC_E);

    bt->light_resume = (uint32_t)emit_here(e);
    e_bytes(e, (const uint8_t[]){0x65, 0x83, 0x3c, 0x25}, 4); /* cmp dword gs:[exit_request], 0 */
    e32(e, VCPU_OFF(exit_request));
    e8(e, 0);
    uint8_t *request = e_jcc_fwd(e, CC_NE);
    test_tf_df(e);
    uint8_t *popf = e_jcc_fwd(e, CC_NE);
    e_load_flags(e, BT_OFF(hflags));
    for (unsigned i = 0; i < sizeof clobbered; i++)
        e_load_gs(e, clobbered[i], GPR_OFF(clobbered[i]));
    e_load_gs(e, R10, BT_OFF(r10));
    e_load_gs(e, RSP, BT_OFF(stack_host));
    jmp_resume_target(e);
    bt->light_resume_end = (uint32_t)emit_here(e);

    e_fix_here(e, request);
    e_fix_here(e, popf);
    for (unsigned i = 0; i < sizeof kept; i++)
        e_store_gs(e, GPR_OFF(kept[i]), kept[i]);
    e_jmp(e, bt->stub_resume);

    e_fix_here(e, declined);
    for (unsigned i = 0; i < sizeof kept; i++)
        e_store_gs(e, GPR_OFF(kept[i]), kept[i]);
    e_load_gs(e, RDI, BT_OFF(self));
    e_load_gs(e, RSI, BT_OFF(r10));
    call_c(e, (uintptr_t)bt_callout);
    e_bytes(e, (const uint8_t[]){0x85, 0xc0}, 2); /* test eax, eax */
    e_jcc(e, CC_E, bt->stub_resume);
    e_jmp(e, leave);

    e_fix_here(e, go);
    for (unsigned i = 0; i < sizeof kept; i++)
        e_store_gs(e, GPR_OFF(kept[i]), kept[i]);
    e_jmp(e, leave);
}

static void emit_door(struct bt_engine *bt, struct emitter *e)
{
    bt->stub_door = (uint32_t)emit_here(e);
    e_store_gs(e, BT_OFF(helper_rcx), RCX);
    e_op_mem(e, true, 0x8b, RCX, R11, 0xff, 1, offsetof(struct tb, minus_gva));
    e_lea(e, RCX, RCX, R10, 1, 0);
    e8(e, 0xe3); /* jrcxz: no flag may change, they belong to the target */
    uint8_t *rel8 = e->p;
    e8(e, 0);
    e_load_gs(e, RCX, BT_OFF(helper_rcx));
    e_jmp(e, bt->stub_lookup);
    *rel8 = (uint8_t)(e->p - rel8 - 1);
    e_load_gs(e, RCX, BT_OFF(helper_rcx));
    e_op_mem(e, false, 0xff, 4, R11, 0xff, 1, offsetof(struct tb, door)); /* jmp */
}

/* Helpers of the first tier: flags that are live wait in AX; R11's heat goes down. A jump that is taken
 * when it comes to 0. */
static uint8_t *count_down(struct emitter *e, bool live)
{
    if (live) {
        e_store_gs(e, BT_OFF(helper_rax), RAX);
        e_bytes(e, (const uint8_t[]){0x9f, 0x0f, 0x90, 0xc0}, 4); /* lahf; seto al */
    }
    e_op_mem(e, false, 0xff, 1, R11, 0xff, 1, offsetof(struct mem_site, heat)); /* dec dword */
    return e_jcc_fwd(e, CC_E);
}

static void flags_back(struct emitter *e, bool live)
{
    if (!live)
        return;
    e_bytes(e, (const uint8_t[]){0x04, 0x7f, 0x9e}, 3); /* add al, 127; sahf */
    e_load_gs(e, RAX, BT_OFF(helper_rax));
}

static void resume_site(struct emitter *e)
{
    e_op_mem(e, false, 0x8b, R11, R11, 0xff, 1, offsetof(struct mem_site, resume));
    e_bytes(e, (const uint8_t[]){0x41, 0xff, 0xe3}, 3); /* jmp r11 */
}

/* R10 = HVA of the address in it, by this soft TLB, for an access of this size; jumps if it is not there, with
 * what `tag` of entry RCX has to be added again.  RCX is put aside. */
static uint8_t *emit_lookup(struct emitter *e, uint32_t table, uint32_t tag, unsigned size)
{
    e_store_gs(e, BT_OFF(helper_rcx), RCX);
    e_mov32_rr(e, RCX, R10);
    e_bytes(e, (const uint8_t[]){0xc1, 0xe9, GUEST_PAGE_SHIFT - 5}, 3); /* shr ecx */
    e_bytes(e, (const uint8_t[]){0x81, 0xe1}, 2);                       /* and ecx */
    e32(e, (STLB_SIZE - 1) * (uint32_t)sizeof(struct soft_tlb_entry));
    e_gs_idx(e, true, 0x2b, R10, RCX, 0, tag); /* offset in the page, if it is that page */
    e_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfa}, 3); /* cmp r10, imm32 */
    e32(e, GUEST_PAGE_SIZE - size);
    uint8_t *miss = e_jcc_fwd(e, CC_A);
    e_gs_idx(e, true, 0x03, R10, RCX, 0, table + (uint32_t)offsetof(struct soft_tlb_entry, host));
    return miss;
}

static void emit_access(struct bt_engine *bt, struct emitter *e, unsigned index)
{
    bool live = index & 4, sup = index & 2, write = index & 1;
    uint32_t table = STATE_OFF(offsetof(struct vcpu, stlb) +
                               sup * STLB_SIZE * sizeof(struct soft_tlb_entry));
    uint32_t tag = table + (write ? offsetof(struct soft_tlb_entry, wtag)
                                  : offsetof(struct soft_tlb_entry, rtag));
    bt->stub_access[index] = (uint32_t)emit_here(e);
    uint8_t *hot = count_down(e, live);
    uint8_t *miss = emit_lookup(e, table, tag, 1u << (index >> 3));
    for (int end = 0; end < 3; end++) {
        if (end == 1) {
            e_fix_here(e, miss);
            e_gs_idx(e, true, 0x03, R10, RCX, 0, tag);
        } else if (end == 2) {
            e_fix_here(e, hot);
        }
        if (end < 2)
            e_load_gs(e, RCX, BT_OFF(helper_rcx));
        flags_back(e, live);
        if (end == 0) {
            resume_site(e);
        } else {
            e_jmp(e, end == 1 ? bt->stub_prepare : bt->stub_hot);
        }
    }
}

/*
 * Supervisor code of the second tier, after a miss in its soft TLB, with the flags live perhaps: under AC
 * it may do what user code may, so the user's TLB is as good (soft_tlb.c, as_user()).  Kernels touch a page
 * of user memory once or twice between STAC and CLAC, which would be a call of C each time.
 */
static void emit_as_user(struct bt_engine *bt, struct emitter *e, bool write)
{
    uint32_t table = VCPU_OFF(stlb);
    uint32_t tag = table + (uint32_t)(write ? offsetof(struct soft_tlb_entry, wtag)
                                            : offsetof(struct soft_tlb_entry, rtag));
    bt->stub_as_user[write] = (uint32_t)emit_here(e);
    e_store_gs(e, BT_OFF(helper_rax), RAX);
    e_bytes(e, (const uint8_t[]){0x9f, 0x0f, 0x90, 0xc0}, 4); /* lahf; seto al */
    e_bytes(e, (const uint8_t[]){0x65, 0xf7, 0x04, 0x25}, 4); /* test dword gs:[rflags], imm */
    e32(e, VCPU_OFF(rflags));
    e32(e, FL_AC);
    uint8_t *without = e_jcc_fwd(e, CC_E);
    uint8_t *miss = emit_lookup(e, table, tag, AS_USER_MAX);
    e_load_gs(e, RCX, BT_OFF(helper_rcx));
    flags_back(e, true);
    resume_site(e);
    e_fix_here(e, miss);
    e_gs_idx(e, true, 0x03, R10, RCX, 0, tag);
    e_load_gs(e, RCX, BT_OFF(helper_rcx));
    e_fix_here(e, without);
    flags_back(e, true);
    e_jmp(e, bt->stub_prepare);
}

/* Counts an execution of a block in which no access does (SITE_COUNT). */
static void emit_count(struct bt_engine *bt, struct emitter *e, bool live)
{
    bt->stub_count[live] = (uint32_t)emit_here(e);
    uint8_t *hot = count_down(e, live);
    for (int end = 0; end < 2; end++) {
        if (end)
            e_fix_here(e, hot);
        flags_back(e, live);
        if (end) {
            e_jmp(e, bt->stub_hot);
        } else {
            resume_site(e);
        }
    }
}

void stubs_emit(struct bt_engine *bt, struct cache_region *r)
{
    static const uint8_t saved[] = {RBX, RBP, R12, R13, R14, R15};
    struct emitter em = {
        .p = r->code_w,
        .end = r->code_w + r->code_size,
        .rx_bias = (int64_t)r->code_x - (int64_t)(uintptr_t)r->code_w,
    };
    struct emitter *e = &em;
    bt->stubs_x = (uint32_t)emit_here(e);

    bt->stub_enter = (uint32_t)emit_here(e);
    for (unsigned i = 0; i < 6; i++) {
        if (saved[i] >= 8)
            e8(e, 0x41);
        e8(e, (uint8_t)(0x50 | (saved[i] & 7)));
    }
    e_bytes(e, (const uint8_t[]){0x48, 0x83, 0xec, 0x08}, 4); /* sub rsp, 8: 16-byte aligned */
    e_store_gs(e, VCPU_OFF(host_rsp), RSP);

    bt->stub_resume = (uint32_t)emit_here(e);
    e_load_gs(e, RSP, VCPU_OFF(host_rsp));
    e_bytes(e, (const uint8_t[]){0x65, 0x83, 0x3c, 0x25}, 4); /* cmp dword gs:[exit_request], 0 */
    e32(e, VCPU_OFF(exit_request));
    e8(e, 0);
    uint8_t *no_request = e_jcc_fwd(e, CC_E);
    e_bytes(e, (const uint8_t[]){0x65, 0x48, 0x81, 0x0c, 0x25}, 5); /* or qword gs:[hflags], TF */
    e32(e, BT_OFF(hflags));
    e32(e, FL_TF);
    e_fix_here(e, no_request);
    test_tf_df(e);
    uint8_t *popf = e_jcc_fwd(e, CC_NE);
    e_load_flags(e, BT_OFF(hflags));
    for (unsigned g = 0; g < 16; g++)
        if (g != RSP && g != R10 && g != R11)
            e_load_gs(e, g, GPR_OFF(g));
    e_load_gs(e, R10, BT_OFF(r10));
    e_load_gs(e, RSP, BT_OFF(stack_host));
    jmp_resume_target(e);
    e_fix_here(e, popf);
    for (unsigned g = 0; g < 16; g++)
        if (g != RSP && g != R10 && g != R11)
            e_load_gs(e, g, GPR_OFF(g));
    e_load_gs(e, R10, BT_OFF(r10));
    e_bytes(e, (const uint8_t[]){0x65, 0xff, 0x34, 0x25}, 4); /* push qword gs:[hflags] */
    e32(e, BT_OFF(hflags));
    e8(e, 0x9d); /* popfq */
    e_load_gs(e, RSP, BT_OFF(stack_host));
    jmp_resume_target(e);
    bt->stub_resume_end = (uint32_t)emit_here(e);

    bt->stub_exit_common = (uint32_t)emit_here(e);
    save_all(e);
    uint64_t leave = emit_here(e);
    e_bytes(e, (const uint8_t[]){0x48, 0x83, 0xc4, 0x08}, 4); /* add rsp, 8 */
    for (int i = 5; i >= 0; i--) {
        if (saved[i] >= 8)
            e8(e, 0x41);
        e8(e, (uint8_t)(0x58 | (saved[i] & 7)));
    }
    e8(e, 0xc3);

    bt->stub_lookup = (uint32_t)emit_here(e);
    e_store_gs(e, VCPU_OFF(rip), R10);
    e_store_gs(e, BT_OFF(r10), R10);
    save_all(e);
    e_load_gs(e, RDI, BT_OFF(self));
    call_c(e, (uintptr_t)bt_lookup);
    e_bytes(e, (const uint8_t[]){0x85, 0xc0}, 2); /* test eax, eax */
    e_jcc(e, CC_E, bt->stub_resume);
    e_store_imm32_gs(e, BT_OFF(exit_reason), EXIT_LOOKUP);
    e_jmp(e, leave);

    bt->stub_stepped = (uint32_t)emit_here(e);
    e_store_gs(e, VCPU_OFF(rip), R10);
    e_store_imm32_gs(e, BT_OFF(exit_reason), EXIT_STEPPED);
    e_jmp(e, bt->stub_exit_common);

    bt->stub_exit_link = (uint32_t)emit_here(e);
    e_store_gs(e, BT_OFF(exit_arg), R10);
    e_store_imm32_gs(e, BT_OFF(exit_reason), EXIT_LINK);
    e_jmp(e, bt->stub_exit_common);

    bt->stub_wmiss = (uint32_t)emit_here(e);
    e_store_gs(e, BT_OFF(exit_arg), R10);
    e_store_imm32_gs(e, BT_OFF(exit_reason), EXIT_WMISS);
    e_jmp(e, bt->stub_exit_common);

    bt->stub_callout = (uint32_t)emit_here(e);
    save_all(e);
    e_load_gs(e, RDI, BT_OFF(self));
    e_mov_rr(e, RSI, R10);
    call_c(e, (uintptr_t)bt_callout);
    e_bytes(e, (const uint8_t[]){0x85, 0xc0}, 2); /* test eax, eax */
    e_jcc(e, CC_E, bt->stub_resume);
    e_jmp(e, leave);

    emit_light(bt, e, leave);

    uint32_t *mem_stub[4] = {&bt->stub_prepare, &bt->stub_commit, &bt->stub_hot,
                             &bt->stub_door_hot};
    uintptr_t mem_fn[4] = {(uintptr_t)bt_mem_prepare, (uintptr_t)bt_mem_commit,
                           (uintptr_t)bt_mem_hot, (uintptr_t)door_hot};
    for (int i = 0; i < 4; i++) {
        *mem_stub[i] = (uint32_t)emit_here(e);
        save_all(e);
        e_store_gs(e, BT_OFF(r10), R10);
        e_store_imm32_gs(e, BT_OFF(exit_reason), EXIT_FAULT);
        e_load_gs(e, RDI, BT_OFF(self));
        e_mov_rr(e, RSI, R11);
        call_c(e, mem_fn[i]);
        e_store_gs(e, BT_OFF(resume_target), RAX);
        e_bytes(e, (const uint8_t[]){0x48, 0x85, 0xc0}, 3); /* test rax, rax */
        e_jcc(e, CC_NE, bt->stub_resume);
        e_jmp(e, leave);
    }
    bt->through = (uint32_t)emit_here(e);
    emit_door(bt, e);
    for (unsigned i = 0; i < ACCESS_STUBS; i++)
        emit_access(bt, e, i);
    emit_count(bt, e, false);
    emit_count(bt, e, true);
    emit_as_user(bt, e, false);
    emit_as_user(bt, e, true);
    system_calls_emit(bt, e);
    bt->through_end = (uint32_t)emit_here(e);
    while ((e->p - r->code_w) & 63)
        e8(e, 0xcc);
    bt->stubs_end = (uint32_t)emit_here(e);
    r->code_used = bt->stubs_end - bt->stubs_x;
}
