/*
 * The dispatcher: the loop that finds the block for the current guest state, runs it, and deals
 * with why it came back.  It is entered rarely once blocks are chained: for interrupts, faults,
 * first-time jumps and instructions that change what translation depends on.
 */
#include "translator/bt.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/host_time.h"
#include "cpu/platform.h"
#include "cpu/system.h"
#include "mmu/mmu.h"
#include "runtime/trace.h"
#include "translator/callouts.h"
#include "translator/trace.h"
#include "translator/xstate.h"

/* -- Keys ----------------------------------------------------------------------------------------- */

static enum seg_class class_of(const struct segment *s)
{
    bool code = s->attr & 8, usable = (s->attr & (SEGA_P | SEGA_S)) == (SEGA_P | SEGA_S);
    bool plain = code ? (s->attr & 2) : (s->attr & 6) == 2; /* readable; writable, expand-up */
    if (!usable || !plain || s->base > 0xffffffffu)
        return SEG_ODD;
    return s->limit != 0xffffffffu ? SEG_LIMITED : s->base ? SEG_BASED : SEG_FLAT;
}

/* The key's part that says what kind of code this is, and what its segments are like. */
static uint32_t legacy_key(const struct vcpu *v)
{
    uint32_t k = v->seg[SEG_CS].attr & SEGA_DB ? KEY_CODE32 : KEY_CODE16;
    if (!(v->seg[SEG_SS].attr & SEGA_DB))
        k |= KEY_STACK16;
    for (unsigned s = 0; s < SEG_COUNT; s++) {
        enum seg_class c = class_of(&v->seg[s]);
        /* A code segment in a data segment register can be read only. */
        if (s != SEG_CS && (v->seg[s].attr & 8))
            c = SEG_ODD;
        k |= (uint32_t)c << (KEY_SEG_SHIFT + 2 * s);
    }
    return k;
}

/* The key's part that CR0, CR4 and XCR0 decide. */
static uint32_t control_key(const struct vcpu *v)
{
    uint32_t k = 0;
    bool ts = v->cr0 & CR0_TS, em = v->cr0 & CR0_EM;
    if (ts || em)
        k |= KEY_X87_NM;
    if (ts)
        k |= KEY_SSE_NM;
    if (ts && (v->cr0 & CR0_MP))
        k |= KEY_WAIT_NM;
    if (em)
        k |= KEY_MMX_UD;
    if (em || !(v->cr4 & CR4_OSFXSR))
        k |= KEY_SSE_UD;
    if (!(v->cr4 & CR4_OSXSAVE)) {
        k |= KEY_XSAVE_UD | KEY_AVX_UD | KEY_AVX512_UD;
    } else {
        if ((v->xcr0 & 6) != 6)
            k |= KEY_AVX_UD;
        if ((v->xcr0 & 0xe6) != 0xe6)
            k |= KEY_AVX512_UD;
    }
    if (v->cr4 & CR4_FSGSBASE)
        k |= KEY_FSGSBASE;
    return k;
}

/* What the key is at this privilege. */
static uint32_t key_at(const struct vcpu *v, unsigned cpl, bool long64)
{
    struct engine_vcpu *ev = v->engine;
    uint32_t k = (uint32_t)cpl << 1;
    if (((ev->control.cr0 ^ v->cr0) | (ev->control.cr4 ^ v->cr4) | (ev->control.xcr0 ^ v->xcr0)) ||
        !ev->control.valid) {
        ev->control.cr0 = v->cr0;
        ev->control.cr4 = v->cr4;
        ev->control.xcr0 = v->xcr0;
        ev->control.key = control_key(v);
        ev->control.valid = true;
    }
    k |= ev->control.key;
    if (cpl == 3)
        k |= KEY_USER | (ev->young.now && long64 ? KEY_YOUNG : 0);
    if (v->tsc_offset || ((v->cr4 & CR4_TSD) && cpl))
        k |= KEY_TSC_TRAP;
    if (ev->watch)
        k |= KEY_SLOW_MEM;
    if (!long64)
        k |= legacy_key(v);
    return k;
}

uint32_t bt_current_key(const struct vcpu *v)
{
    return key_at(v, v->cpl, vcpu_long64(v));
}

/* The part of the key that all blocks in one half of the jump cache share. */
static uint32_t shared_key(uint32_t key)
{
    uint32_t cpl = key & KEY_CPL_MASK;
    if (cpl == 0 || cpl == KEY_CPL_MASK)
        key &= ~(uint32_t)KEY_CPL_MASK;
    return key & ~(uint32_t)(KEY_USER | KEY_ONE_INSN);
}

/* Data breakpoints and alignment checks make every access go through C. */
static void update_watch(struct vcpu *v)
{
    uint32_t w = 0;
    if (v->dr[7] & DR7_ENABLES)
        for (unsigned i = 0; i < 4; i++)
            if ((v->dr[7] >> (2 * i) & 3) && (v->dr[7] >> (16 + 4 * i) & 1))
                w |= WATCH_DATA; /* R/W = 1 or 3 */
    if (v->cpl == 3 && (v->cr0 & CR0_AM) && (v->rflags & FL_AC))
        w |= WATCH_ALIGN;
    v->engine->watch = w;
}

static bool exec_breakpoints(const struct vcpu *v)
{
    if (!(v->dr[7] & DR7_ENABLES))
        return false;
    for (unsigned i = 0; i < 4; i++)
        if ((v->dr[7] >> (2 * i) & 3) && !(v->dr[7] >> (16 + 4 * i) & 3))
            return true;
    return false;
}

static void use_key(struct vcpu *v, uint32_t key)
{
    struct engine_vcpu *ev = v->engine;
    uint32_t k = shared_key(key);
    uint64_t cs = bt_current_cs(v);
    unsigned sup = v->cpl != 3;
    if (k != ev->key_seen[sup] || cs != ev->cs_seen[sup]) {
        jump_cache_flush_half(v, sup);
        ev->key_seen[sup] = k;
        ev->cs_seen[sup] = cs;
    }
}

/* May what the jump cache says of this privilege be used now? */
static bool key_is_seen(const struct vcpu *v, uint32_t key)
{
    unsigned sup = v->cpl != 3;
    return shared_key(key) == v->engine->key_seen[sup] &&
           bt_current_cs(v) == v->engine->cs_seen[sup];
}

bool bt_jump_cache_valid(const struct vcpu *v)
{
    return key_is_seen(v, bt_current_key(v));
}

bool bt_long64_key_valid(const struct vcpu *v, unsigned cpl)
{
    const struct engine_vcpu *ev = v->engine;
    unsigned sup = cpl != 3;
    return shared_key(key_at(v, cpl, true)) == ev->key_seen[sup] && !ev->cs_seen[sup];
}

/* -- Finding code --------------------------------------------------------------------------------- */

int exec_translate(struct vcpu *v, uint64_t gva, uint64_t *gpa)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1), tag = page | (v->cpl == 3);
    struct exec_tlb_entry *e = &ev->exec_tlb[(gva >> GUEST_PAGE_SHIFT) & (EXEC_TLB_SIZE - 1)];
    if (e->gva_page == tag) {
        *gpa = (e->gpa_page & ~1ull) | (gva & (GUEST_PAGE_SIZE - 1));
        return 0;
    }
    if (!mmu_canonical(gva)) {
        cpu_raise_code(v, EXC_GP, 0);
        return -1;
    }
    struct mmu_xlat x;
    if (mmu_walk(v, gva, MMU_EXEC, &x) < 0)
        return -1;
    e->gva_page = tag;
    e->gpa_page = (x.gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) | x.global;
    unsigned slot = (unsigned)(e - ev->exec_tlb);
    if (!x.global)
        ev->exec_local[slot / 64] |= 1ull << (slot & 63);
    else
        ev->exec_local[slot / 64] &= ~(1ull << (slot & 63));
    *gpa = x.gpa;
    return 0;
}

/* Does exec_translate() know the page without a walk? */
static bool exec_page_known(const struct vcpu *v, uint64_t gva)
{
    return v->engine->exec_tlb[(gva >> GUEST_PAGE_SHIFT) & (EXEC_TLB_SIZE - 1)].gva_page ==
           ((gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) | (v->cpl == 3));
}

void engine_on_mmu_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva)
{
    struct engine_vcpu *ev = v->engine;
    if (!ev)
        return;
    if (kind <= MMU_FLUSHED_PAGE)
        ev->bt->stats.flushes[kind]++;
    if (ev->bt->cfg.trace_mask & TRACE_MMU)
        trace_flush(ev->bt, v, kind, gva);
    windows_on_flush(v, kind, gva);
    bt_lock(ev->bt);
    far_links_flush(v, kind, gva);
    bt_unlock(ev->bt);
    if (kind == MMU_FLUSHED_PCID) { /* the exec TLB holds nothing of it: a CR3 write emptied it */
        jump_cache_flush_pcid(v, (unsigned)gva);
        return;
    }
    if (kind == MMU_FLUSHED_PAGE) {
        uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
        struct exec_tlb_entry *e = &ev->exec_tlb[(gva >> GUEST_PAGE_SHIFT) & (EXEC_TLB_SIZE - 1)];
        if ((e->gva_page & ~1ull) == page)
            e->gva_page = ~0ull;
        jump_cache_flush_page(v, page);
        return;
    }
    uint32_t user_key = ev->key_seen[0];
    bool young = ev->young.now;
    young_switch(v, kind != MMU_SWITCHED);
    bool all = kind == MMU_FLUSHED_ALL;
    for (unsigned i = 0; all && i < EXEC_TLB_SIZE; i++)
        ev->exec_tlb[i].gva_page = ~0ull;
    for (unsigned word = 0; word < EXEC_TLB_SIZE / 64; word++) {
        for (uint64_t bits = ev->exec_local[word]; bits; bits &= bits - 1)
            ev->exec_tlb[64 * word + (unsigned)__builtin_ctzll(bits)].gva_page = ~0ull;
        ev->exec_local[word] = 0;
    }
    if (all || ev->jc_sup_nonglobal) {
        jump_cache_flush(v, false);
        ev->jc_cr3 = v->cr3;
        ev->jc_sup_nonglobal = false;
    } else {
        jump_cache_switch(v, kind == MMU_FLUSHED_NONGLOBAL);
    }
    if (all || ev->key_seen[0] != user_key || ev->young.now != young) /* else what it has found holds */
        system_calls_update(v);
}

/* Checks a block, if that is asked for. A refused one ends the run: it is a bug of ours. */
static bool verified(struct vcpu *v, const struct tb *tb)
{
    struct bt_engine *bt = v->engine->bt;
    if (!bt->cfg.verify)
        return true;
    enum host_cause was = host_time_switch(v, HOST_VERIFY);
    bool ok = bt_verify_block(bt, tb);
    host_time_switch(v, was);
    if (ok)
        return true;
    __builtin_snprintf(v->exit_reason, sizeof v->exit_reason,
                       "the verifier rejected the translation of the block at %#llx",
                       (unsigned long long)tb->gva);
    v->exit = VCPU_EXIT_ERROR;
    v->exc.vector = 255;
    return false;
}

/* The block at gva for this key, translated if need be; NULL with v->exc. */
static struct tb *find_block(struct vcpu *v, uint64_t gva, uint32_t key)
{
    struct bt_engine *bt = v->engine->bt;
    uint64_t gpa, cs = bt_current_cs(v);
    if (!vcpu_long64(v) && (uint32_t)(gva - cs) > cs >> 32) { /* before a #PF there */
        cpu_raise_code(v, EXC_GP, 0);
        return NULL;
    }
    for (;;) {
        if (exec_translate(v, gva, &gpa) < 0)
            return NULL;
        if (ram_page(v->ram, gpa) & RAM_PAGE_HOLE) {
            cpu_raise_code(v, EXC_GP, 0); /* code in a device's memory */
            return NULL;
        }
        bt_lock(bt);
        struct tb *tb = cache_lookup(bt, gva, gpa, key, cs);
        bt_unlock(bt);
        if (tb && tb->gpa2 != ~0ull) { /* is the tail still on the same page? */
            uint64_t tail;
            if (exec_translate(v, bt_next_page(v, gva), &tail) < 0)
                return NULL;
            if (tail != tb->gpa2) {
                bt_lock(bt);
                cache_invalidate_tb(bt, tb);
                bt_unlock(bt);
                tb = NULL;
            }
        }
        if (tb)
            return tb;
        bool reached = bt->cfg.reached && gva == bt->cfg.reached_gva;
        enum host_cause was = host_time_switch(v, HOST_TRANSLATE);
        bool watched = bt->cfg.verify || (bt->cfg.trace_mask & TRACE_BLOCKS);
        tb = reached ? NULL : move_block(v, gva, gpa, key, watched ? 1 : ~0u);
        if (tb && !watched) {
            host_time_switch(v, was);
            return tb;
        }
        vcpu_fp_save(v);
        if (reached)
            bt->cfg.reached(bt->cfg.reached_opaque);
        if (!tb)
            tb = translate_block(bt, v, gva, gpa, key, NULL);
        host_time_switch(v, was);
        if (!tb)
            return NULL;
        if (!verified(v, tb))
            return NULL;
        if (bt->cfg.trace_mask & TRACE_BLOCKS)
            trace_block(bt, tb);
        return tb;
    }
}

/* Of a block that has just been found. */
static bool on_global_page(const struct vcpu *v, const struct tb *tb)
{
    return v->engine->exec_tlb[(tb->gva >> GUEST_PAGE_SHIFT) & (EXEC_TLB_SIZE - 1)].gpa_page & 1;
}

/* Puts a block that has just been found into the jump cache. With the lock held. */
static void remember_block(struct vcpu *v, struct tb *tb)
{
    struct engine_vcpu *ev = v->engine;
    bool global = on_global_page(v, tb);
    jump_cache_insert(v, tb);
    far_links_seen(v, tb, global);
    if (!(tb->key & KEY_USER) && !global)
        ev->jc_sup_nonglobal = true;
}

/* -- Callouts ------------------------------------------------------------------------------------- */

static void merge_flags(struct vcpu *v)
{
    v->rflags = (v->rflags & ~(uint64_t)FL_HOST) | (v->bt.hflags & FL_HOST);
}

static void split_flags(struct vcpu *v)
{
    v->bt.hflags = (v->rflags & FL_HOST) | FL_FIXED1 | FL_IF;
}

/* Delivers v->exc; false if the run loop must end. */
static bool deliver(struct vcpu *v)
{
    struct bt_engine *bt = v->engine->bt;
    if (v->exc.vector == 255) /* an engine failure, not a guest exception */
        return false;
    bt->stats.exceptions[v->exc.vector & 31]++;
    if (bt->cfg.trace_mask & TRACE_TRAPS)
        trace_exception(bt, v);
    return cpu_deliver_exception(v) != CPU_EXIT;
}

/* Where translated code goes on at v->rip without the dispatcher, in bt.resume_target, if nothing
 * stands against that. */
static bool resume_short(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    if (!key_is_seen(v, bt_current_key(v)) || (v->cpl == 3 && (v->rflags & FL_AC)) || young_over(v))
        return false;
    /* The jump cache knows, or its miss stub brings us back. */
    v->bt.r10 = bt_linear(v, v->rip);
    v->bt.resume_target =
        v->jump_cache[v->cpl == 3 ? 0 : 1][jump_cache_index(ev->bt, v->bt.r10, !vcpu_long64(v))];
    split_flags(v);
    flat_use(v);
    stack_use(v);
    if (v->fp_saved)
        vcpu_fp_restore(v);
    return true;
}

/* Must the dispatcher see what comes next? */
static bool dispatcher_due(const struct vcpu *v)
{
    const struct engine_vcpu *ev = v->engine;
    return cpu_event_due(v) || (v->rflags & FL_TF) || (v->dr[7] & DR7_ENABLES) || ev->watch ||
           (ev->bt->cfg.trace_mask & TRACE_ENTER) || ev->bt->cfg.chaos;
}

bool bt_resume_short(struct vcpu *v)
{
    return !dispatcher_due(v) && resume_short(v);
}

uint64_t bt_deliver_fault(struct vcpu *v)
{
    merge_flags(v);
    if (v->exit != VCPU_EXIT_NONE || v->exc.vector == 255 || v->engine->step_pending ||
        atomic_load_explicit(&v->exit_request, memory_order_relaxed) || dispatcher_due(v))
        return 0;
    v->engine->db_bits = 0; /* an instruction that faults has hit no breakpoint */
    if (!deliver(v)) {
        v->exc.vector = 255; /* v->exit says the rest: nothing for the dispatcher to deliver */
        return 0;
    }
    if (resume_short(v))
        return v->bt.resume_target;
    split_flags(v);
    v->bt.r10 = bt_linear(v, v->rip);
    v->bt.exit_reason = EXIT_LOOKUP;
    return 0;
}

/* Translates a hot block again, for the second tier. v is at the instruction that made it hot. NULL if
 * it stays as it is, or with v->exit. */
static struct tb *heat_up(struct vcpu *v, struct tb *tb)
{
    struct bt_engine *bt = v->engine->bt;
    if (tb->dead)
        return NULL;
    vcpu_fp_save(v);
    enum host_cause was = host_time_switch(v, HOST_TRANSLATE);
    struct tb *hot = translate_block(bt, v, tb->gva, tb->gpa, tb->key, tb);
    host_time_switch(v, was);
    bt->stats.hot_blocks++;
    if (hot && !verified(v, hot))
        return NULL;
    if (hot && (bt->cfg.trace_mask & TRACE_BLOCKS))
        trace_block(bt, hot);
    return hot;
}

/* A block from heat_up() takes the place of the one before it in the jump cache. */
static void insert_hot(struct vcpu *v, struct tb *hot)
{
    struct bt_engine *bt = v->engine->bt;
    bt_lock(bt);
    if (hot && !hot->dead)
        jump_cache_insert(v, hot);
    bt_unlock(bt);
}

/* The place in its block of the instruction at v->rip. */
static unsigned index_in(const struct vcpu *v, const struct tb *tb)
{
    unsigned index = 0;
    int off = (int16_t)(bt_linear(v, v->rip) - tb->gva);
    for (uint32_t i = 0; i < tb->n_side; i++)
        if (side_starts(tb, &tb->side[i])) {
            if (tb->side[i].guest_off == off)
                break;
            index++;
        }
    return index < 63 ? index : 63;
}

/* Can an instruction done in C change what system_calls_update() looks at?  A new CR3 leads there by
 * itself. */
static bool changes_key(const struct insn *in)
{
    switch (in->op) {
    case OP_MOV_TO_CR:
        return in->reg != 3;
    case OP_CLTS: case OP_LMSW: case OP_MOV_TO_DR: case OP_XSETBV: case OP_WRMSR:
        return true;
    default:
        return false;
    }
}

static uint64_t callout(struct vcpu *v, struct callout *c, bool light)
{
    struct engine_vcpu *ev = v->engine;
    merge_flags(v);
    v->rip = c->rip;
    ev->bt->stats.callouts[c->insn.op]++;
    enum cpu_result r;
    uint64_t old_tf = v->rflags & FL_TF;
    /* This is the instruction after the one that cast the shadow; it may cast a new one. STI that
     * comes here from its inline form has set IF and cast its shadow already. */
    if (c->insn.op != OP_STI || v->bt.shadow_rip != c->rip + c->insn.len)
        v->interrupt_shadow = 0;
    if (c->insn.op == OP_GATHER || c->insn.op == OP_SCATTER)
        r = gather_execute(v, &c->insn);
    else
        r = callout_execute(v, &c->insn);
    if (changes_key(&c->insn))
        system_calls_forget(v);
    if (r == CPU_JUMP && (ev->bt->cfg.trace_mask & TRACE_TRAPS))
        trace_software(ev->bt, v, c);
    if (r == CPU_NEXT || r == CPU_JUMP) {
        if (r == CPU_NEXT)
            v->rip = c->rip + c->insn.len;
        if (v->interrupt_shadow)
            v->bt.shadow_rip = v->rip;
        if (!dispatcher_due(v) && !old_tf && !(light && bt_left_long64(v, c))) {
            if (r == CPU_NEXT && c->resume && !c->tb->dead) {
                v->bt.resume_target = c->resume;
                split_flags(v);
                flat_use(v);
                stack_use(v);
                if (v->fp_saved)
                    vcpu_fp_restore(v);
                return 0;
            }
            if (resume_short(v))
                return 0;
        }
    } else if (r == CPU_EXCEPTION && !old_tf && v->exc.vector != 255 && !dispatcher_due(v) &&
               !(c->tb->key & KEY_ONE_INSN) && (!light || vcpu_long(v))) {
        /* Outside IA-32e mode a task gate may load all registers, those of the light stub too. */
        r = deliver(v) ? CPU_JUMP : CPU_EXIT;
        if (r == CPU_JUMP && resume_short(v))
            return 0;
        v->bt.exit_reason = EXIT_CALLOUT;
        v->bt.exit_arg = r;
        split_flags(v);
        return 1;
    }
    /* Single step: #DB after the instruction, except where delivery or return set TF anew. */
    if (old_tf && (r == CPU_NEXT || r == CPU_JUMP || r == CPU_REPEAT)) {
        switch (c->insn.op) {
        case OP_MOV_TO_SEG: case OP_POP_SEG: case OP_LOAD_FAR_PTR: /* MOV SS holds it back */
            ev->step_pending = !v->interrupt_shadow;
            break;
        case OP_SYSCALL: case OP_SYSENTER: case OP_SYSRET: case OP_SYSEXIT: case OP_IRET:
        case OP_INT: case OP_INT3: case OP_INT1:
            break;
        case OP_INTO:
            ev->step_pending = r == CPU_NEXT;
            break;
        default:
            ev->step_pending = true;
        }
    }
    v->bt.exit_reason = EXIT_CALLOUT;
    v->bt.exit_arg = r;
    split_flags(v); /* enter() merges them back */
    return 1;
}

/*
 * A string instruction in C that has run often: its block is translated (again) for the second tier,
 * where it may go through windows.  True if the callout is not to be done: its memory may be gone, or
 * there is v->exit.
 */
static bool string_hot(struct vcpu *v, struct callout *c)
{
    struct bt_engine *bt = v->engine->bt;
    struct tb *tb = c->tb;
    struct site_info *s = site_lookup(v->engine, c->rip);
    if (cpu_event_due(v)) /* later */
        return false;
    c->heat = 0;
    if (tb->dead)
        return false;
    v->rip = c->rip;
    tb->soft_form &= ~(1ull << index_in(v, tb));
    if (s->rip == c->rip)
        s->soft = false, s->soft_runs = s->streak = 0;
    uint64_t evictions = bt->stats.evictions;
    struct tb *hot = heat_up(v, tb);
    if (v->exit != VCPU_EXIT_NONE) {
        v->bt.exit_reason = EXIT_CALLOUT;
        v->bt.exit_arg = CPU_EXIT;
        return true;
    }
    insert_hot(v, hot);
    if (evictions == bt->stats.evictions)
        return false;
    v->bt.r10 = bt_linear(v, v->rip);
    v->bt.exit_reason = EXIT_LOOKUP;
    return true;
}

uint64_t bt_callout(struct vcpu *v, struct callout *c)
{
    if (c->heat > 1)
        c->heat--;
    else if (c->heat == 1 && string_hot(v, c))
        return 1;
    enum host_cause was = host_time_switch(v, HOST_CALLOUT);
    uint64_t leave = callout(v, c, false);
    host_time_switch(v, was);
    return leave;
}

uint64_t bt_callout_light(struct vcpu *v, struct callout *c)
{
    return callout(v, c, true);
}

/* A jump-cache miss whose target is translated already: the way back without the dispatcher. */
uint64_t bt_lookup(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    struct bt_engine *bt = ev->bt;
    uint64_t gva = v->bt.r10, gpa;
    v->rip = bt_offset(v, gva);
    if (v->exit_request || cpu_event_due(v) || (bt->cfg.trace_mask & TRACE_ENTER) || bt->cfg.chaos || ev->watch ||
        (v->dr[7] & DR7_ENABLES) || young_over(v))
        return 1;
    uint32_t key = bt_current_key(v);
    if (!key_is_seen(v, key))
        return 1;
    /* A fault is for the dispatcher to find again; outside 64-bit mode CS's limit comes first. */
    if ((!vcpu_long64(v) && !exec_page_known(v, gva)) || exec_translate(v, gva, &gpa) < 0)
        return 1;
    bt_lock(bt);
    struct tb *tb = cache_lookup(bt, gva, gpa, key, bt_current_cs(v));
    bool found = tb && tb->gpa2 == ~0ull;
    if (found)
        remember_block(v, tb);
    bt_unlock(bt);
    if (!found)
        return 1;
    bt->stats.fast_lookups++;
    v->bt.resume_target = tb->entry;
    stack_use(v);
    return 0;
}

/* -- The memory map ------------------------------------------------------------------------------- */

/*
 * What these GPAs are has changed (mmu/memory_map.h), and their translated code is gone already.
 * The thread that did it is either this vCPU's, in a callout, or it is none of ours.  Other vCPUs
 * forget everything when they next come by; none of them reads the map by what it remembers alone.
 */
static void map_changed(void *opaque, uint64_t gpa, uint64_t len)
{
    struct bt_engine *bt = opaque;
    struct vcpu *self = bt_this_vcpu();
    bt_lock(bt);
    for (unsigned i = 0; i < bt->n_vcpus; i++) {
        struct vcpu *v = bt->vcpus[i];
        if (v == self) {
            mmu_stlb_drop_gpa(v, gpa, len);
            windows_drop_gpa(v, gpa, len);
        } else {
            atomic_store(&v->engine->map_changed, true);
            bt_engine_ops.kick(&bt->base, v);
        }
    }
    bt_unlock(bt);
}

/* On the vCPU's thread. */
static void forget_map(struct vcpu *v)
{
    mmu_flush_all(v);
    windows_drop_gpa(v, 0, v->ram->span);
}

/* -- The loop ------------------------------------------------------------------------------------- */

static void enter(struct vcpu *v, uint64_t host)
{
    v->bt.resume_target = host;
    split_flags(v);
    flat_use(v);
    stack_use(v);
    if (v->fp_saved)
        vcpu_fp_restore(v);
    v->engine->bt->stats.enters++;
    void (*door)(void) = (void (*)(void))(uintptr_t)v->engine->bt->stub_enter;
    /* The door follows the C ABI but for FP state, which is the guest's from here on. */
    host_time_switch(v, HOST_GUEST);
    door();
    host_time_switch(v, HOST_VMM);
    merge_flags(v);
}

static bool take_events(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t before = v->rip;
    enum cpu_result r = cpu_take_events(v);
    if (r == CPU_JUMP) {
        ev->bt->stats.interrupts++;
        if (ev->bt->cfg.trace_mask & TRACE_IRQ)
            trace_interrupt(ev->bt, v, before);
    }
    return r != CPU_EXIT;
}

/* Traps due after the instruction that has just completed. */
static bool take_traps(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t bits = ev->db_bits | (ev->step_pending ? DR6_BS : 0);
    ev->step_pending = false;
    ev->db_bits = 0;
    if (!bits)
        return true;
    ev->bt->stats.exceptions[EXC_DB]++;
    if (ev->bt->cfg.trace_mask & TRACE_TRAPS)
        trace_debug(ev->bt, v, bits);
    return cpu_debug_trap(v, bits) != CPU_EXIT;
}

uint64_t bt_mem_hot(struct vcpu *v, struct mem_site *s)
{
    struct bt_engine *bt = v->engine->bt;
    struct tb *tb = s->tb;
    bool later = cpu_event_due(v), grown = young_over(v);
    s->heat = later || grown ? 1 : INT32_MAX;
    v->rip = s->rip;
    if (grown) { /* the dispatcher has other code for this address */
        v->bt.r10 = bt_linear(v, v->rip);
        return bt_resume_at(v, bt->stub_lookup);
    }
    if (!tb->dead && !later) {
        uint64_t evictions = bt->stats.evictions;
        struct tb *hot = heat_up(v, tb);
        if (v->exit != VCPU_EXIT_NONE)
            return 0;
        insert_hot(v, hot);
        if (evictions != bt->stats.evictions) { /* what we came from, and s, may be gone */
            v->bt.r10 = bt_linear(v, v->rip);
            return bt_resume_at(v, bt->stub_lookup);
        }
    }
    /* The old block lives on until this execution of it ends. */
    return s->flags & SITE_COUNT ? bt_resume_at(v, s->resume) : bt_mem_prepare(v, s);
}

/*
 * Accesses of one instruction that no window could serve before it gets the soft form.  Where a stack
 * grows they are page faults of the guest, and will be over.
 */
#define SOFT_RUNS       6
#define STACK_SOFT_RUNS 100

/* Was the fault at hand at the stack, by the host's RSP? */
static bool at_stack(const struct vcpu *v)
{
    uint64_t rsp = v->gpr[RSP] + ~v->bt.stack_not;
    return v->bt.stack_not != ~0ull &&
           v->engine->wfault_hva - rsp + GUEST_PAGE_SIZE < 16 * GUEST_PAGE_SIZE;
}

/*
 * An access through a window that no window could serve, or one of a storm of new pages: true if this
 * instruction of `from` is to be soft from now on.  That may be decided already, by another block with
 * this instruction, which a jump into this one's middle makes.
 */
static bool give_up_window(struct vcpu *v, const struct tb *from, bool stack)
{
    struct site_info *s = site_lookup(v->engine, v->rip);
    if (s->rip != v->rip)
        *s = (struct site_info){.rip = v->rip};
    if (s->soft && !site_storm(s))
        return !(from->soft_form >> index_in(v, from) & 1);
    if (!s->soft && ++s->soft_runs < (stack ? STACK_SOFT_RUNS : SOFT_RUNS))
        return false;
    s->streak = 0;
    s->soft = true;
    v->engine->bt->stats.soft_sites++;
    return true;
}

/*
 * Random accesses to more memory than the soft TLB covers cost a walk each in soft form, and a window
 * serves them once it has the pages.  Getting there looks like a storm of new pages, so after many
 * such misses without a page fault in between windows get another chance, and more patience; ever
 * more seldom, for it may end here again.
 */
bool bt_soft_miss(struct vcpu *v, const struct mem_site *m, uint64_t gva)
{
    struct site_info *s = site_lookup(v->engine, m->rip);
    struct tb *tb = m->tb;
    uint64_t bit = 1ull << m->index;
    if ((tb->key & (KEY_ONE_INSN | KEY_SLOW_MEM)) || tb->dead || (m->flags & SITE_BOUNCE))
        return false;
    if (s->rip != m->rip)
        *s = (struct site_info){.rip = m->rip, .soft = tb->soft_form & bit};
    if (!s->soft && !(tb->soft_form & bit))
        return false; /* it has this form for another reason */
    if (vcpu_long64(v) && !window_id_ok(v->cpl == 3, (unsigned)(gva >> WINDOW_SHIFT) & 0xffff))
        return false;
    uint16_t page_faults = (uint16_t)v->engine->bt->stats.exceptions[EXC_PF];
    s->fills = s->page_faults == page_faults ? s->fills + 1 : 0;
    s->page_faults = page_faults;
    if (!site_thrashes(s) || cpu_event_due(v))
        return false;
    s->fills = s->soft_runs = s->streak = 0;
    if (s->soft && s->retries < UINT8_MAX)
        s->retries++;
    s->soft = false;
    tb->soft_form &= ~bit;
    v->engine->bt->stats.window_retries++;
    return true;
}

/* An address that left the flat window where it should have wrapped: true if this instruction of `from`
 * is to go by the GS base from now on, where it does. */
static bool wrap_at_gs(const struct vcpu *v, struct tb *from)
{
    uint64_t bit = 1ull << index_in(v, from);
    bool done = from->table_form & bit;
    from->table_form |= bit;
    return !done;
}

/* Divisions that fault on the host before the instruction is translated with a check. */
#define DIVIDE_FAULTS 3

/*
 * The host's #DE at v->rip in `from`: two changes of signal mask and stack, and the kernel twice.  A
 * division that keeps faulting gets a check of the divisor, and the exception without a signal.
 */
static void check_divisor(struct vcpu *v, struct tb *from)
{
    struct site_info *s = site_lookup(v->engine, v->rip);
    struct exception exc = v->exc;
    uint64_t bit = 1ull << index_in(v, from);
    if (s->rip != v->rip)
        *s = (struct site_info){.rip = v->rip};
    if (from->dead || (from->key & KEY_ONE_INSN) || (from->check_divisor & bit) ||
        ++s->divides < DIVIDE_FAULTS)
        return;
    s->divides = 0;
    from->check_divisor |= bit;
    heat_up(v, from);
    v->exc = exc;
}

static void bt_run(struct engine *e, struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    struct bt_engine *bt = ev->bt;
    uint64_t resume_flag_rip = ~0ull;
    bool soft_once = false; /* the next instruction's access is not for windows */

    v->exit = VCPU_EXIT_NONE;
    atomic_store(&v->host_tid, (int)syscall(SYS_gettid));
    for (;;) {
        do {
            if (atomic_fetch_and(&v->events, ~(uint32_t)EV_TIMER) & EV_TIMER) {
                vcpu_fp_save(v);
                v->platform->ops->run_timers(v->platform, v);
            }
            atomic_store(&v->exit_request, 0);
        } while (atomic_load(&v->events) & EV_TIMER);
        if ((ev->step_pending || ev->db_bits) && !take_traps(v))
            break;
        far_links_tick(v);
        young_tick(v);
        if (atomic_load(&ev->map_changed) && atomic_exchange(&ev->map_changed, false))
            forget_map(v);
        if (atomic_load(&v->events) & EV_FLUSH) /* being here is all it asks for */
            atomic_fetch_and(&v->events, ~(uint32_t)EV_FLUSH);
        bool shadow = v->interrupt_shadow && v->rip == v->bt.shadow_rip;
        if (v->interrupt_shadow && !shadow)
            v->interrupt_shadow = 0;
        if (v->halted || (atomic_load(&v->events) && !shadow) ||
            (atomic_load(&v->events) & EV_STOP)) {
            if (!take_events(v))
                break;
        }
        update_watch(v);
        uint32_t key = bt_current_key(v);
        use_key(v, key);
        system_calls_forget(v); /* whatever has happened since translated code was left */
        bool one = soft_once || (v->rflags & FL_TF) || (shadow && atomic_load(&v->events));
        if (exec_breakpoints(v)) {
            one = true;
            uint64_t hit = cpu_debug_match(v, DEBUG_EXEC, bt_linear(v, v->rip), 1);
            if (hit && !(v->rflags & FL_RF) && resume_flag_rip != v->rip) {
                if (cpu_debug_trap(v, hit) == CPU_EXIT)
                    break;
                continue;
            }
            v->rflags &= ~(uint64_t)FL_RF;
        }
        soft_once = false;
        if (one)
            key |= KEY_ONE_INSN;
        bt->stats.lookups++;
        struct tb *tb = find_block(v, bt_linear(v, v->rip), key);
        if (!tb) {
            if (!deliver(v))
                break;
            continue;
        }
        if (!one && !(bt->cfg.trace_mask & TRACE_ENTER)) {
            bt_lock(bt);
            remember_block(v, tb);
            bt_unlock(bt);
        }
        bool tf = v->rflags & FL_TF;
        if (bt->cfg.trace_mask & TRACE_ENTER)
            trace_enter(bt, v, tb);
        v->exit = VCPU_EXIT_NONE;
        ev->current = tb;
        enter(v, tb->entry);

    handle_exit:
        bt->stats.exits[v->bt.exit_reason % 10]++;
        switch (v->bt.exit_reason) {
        case EXIT_LOOKUP:
            v->rip = bt_offset(v, v->bt.r10);
            break;
        case EXIT_LINK: {
            struct link *l = (struct link *)(uintptr_t)v->bt.exit_arg;
            struct tb *from = l->from;
            v->rip = bt_offset(v, l->target);
            if (cpu_event_due(v) || from->dead || ev->db_bits)
                break; /* a trap of this instruction comes before a fault of the next */
            bt->stats.lookups++;
            uint64_t evictions = bt->stats.evictions;
            tb = find_block(v, l->target, from->key);
            if (!tb) {
                if (!deliver(v))
                    goto out;
                break;
            }
            /* Evicting to make room may have dropped the jumping block, and its memory may be the
             * new one's by now. */
            bt_lock(bt);
            if (evictions == bt->stats.evictions && !from->dead) {
                if (link_is_far(l))
                    far_links_link(v, (struct far_link *)l, tb, on_global_page(v, tb));
                else if (tb->gpa2 == ~0ull && (tb->gpa ^ from->gpa) < GUEST_PAGE_SIZE)
                    cache_link(bt, l, tb);
            }
            bt_unlock(bt);
            enter(v, tb->entry);
            goto handle_exit;
        }
        case EXIT_CALLOUT:
            if (one)
                v->interrupt_shadow = v->interrupt_shadow && v->bt.shadow_rip == v->rip;
            if (v->bt.exit_arg == CPU_EXIT)
                goto out;
            if (v->bt.exit_arg == CPU_EXCEPTION) {
                ev->step_pending = false;
                if (!deliver(v))
                    goto out;
            }
            break;
        case EXIT_STEPPED:
            v->rip = bt_offset(v, v->rip);
            if (tf)
                ev->step_pending = true;
            break;
        case EXIT_DIVIDE:
            check_divisor(v, (struct tb *)(uintptr_t)v->bt.exit_arg);
            if (v->exit != VCPU_EXIT_NONE)
                goto out;
            /* fall through */
        case EXIT_FAULT:
            ev->db_bits = 0; /* an instruction that faults has hit no breakpoint */
            if (!deliver(v))
                goto out;
            break;
        case EXIT_ASYNC: /* a kick may come just when the stepped instruction is done */
            if (tf && v->rip != bt_offset(v, tb->gva))
                ev->step_pending = true;
            break;
        case EXIT_WFAULT: {
            struct tb *from = (struct tb *)(uintptr_t)v->bt.exit_arg;
            bt->stats.wfaults++;
            host_time_switch(v, HOST_MEMORY);
            soft_once = !windows_resolve_fault(v);
            host_time_switch(v, HOST_VMM);
            if (ev->ws.failed) {
                __builtin_snprintf(v->exit_reason, sizeof v->exit_reason,
                                   "the host refused to change memory mappings");
                v->exit = VCPU_EXIT_ERROR;
                goto out;
            }
            if (soft_once && !from->dead && flat_wrapped(v, from) && wrap_at_gs(v, from)) {
                heat_up(v, from);
                if (v->exit != VCPU_EXIT_NONE)
                    goto out;
                break;
            }
            struct site_info *s = site_lookup(ev, v->rip);
            bool storm = s->rip == v->rip && s->soft && site_storm(s);
            bool stack = at_stack(v);
            if (stack && storm)
                s->soft = storm = false;
            if ((soft_once || storm) && !from->dead && give_up_window(v, from, stack)) {
                from->soft_form |= 1ull << index_in(v, from);
                heat_up(v, from);
                if (v->exit != VCPU_EXIT_NONE)
                    goto out;
            }
            break;
        }
        case EXIT_WMISS: {
            struct mem_site *site = (struct mem_site *)(uintptr_t)v->bt.exit_arg;
            v->rip = site->rip;
            bt->stats.wmisses++;
            soft_once = true;
            if (++site->heat >= 3 && !site->tb->dead) {
                *(site->flags & SITE_AHEAD ? &site->tb->not_ahead : &site->tb->table_form) |=
                    1ull << site->index;
                heat_up(v, site->tb);
                if (v->exit != VCPU_EXIT_NONE)
                    goto out;
            }
            break;
        }
        }
    }
out:
    vcpu_fp_save(v);
    atomic_store(&v->host_tid, 0);
}

/* -- Life cycle ----------------------------------------------------------------------------------- */

static int bt_create(const struct engine_config *cfg, struct guest_ram *ram, struct engine **out,
                     char *err, unsigned errlen)
{
    struct bt_engine *bt = calloc(1, sizeof *bt);
    if (!bt) {
        snprintf(err, errlen, "out of memory for the translator");
        return -ENOMEM;
    }
    bt->base.ops = &bt_engine_ops;
    bt->cfg = *cfg;
    bt->ram = ram;
    bt->code_fd = -1;
    bt->bmi2 = __builtin_cpu_supports("bmi2");
    door_init(bt);
    int r = cache_init(bt, cfg->chaos && !cfg->cache_size ? CHAOS_CACHE : cfg->cache_size, err, errlen);
    if (!r)
        r = signals_init_process(err, errlen);
    if (r) {
        cache_destroy(bt);
        door_destroy(bt);
        free(bt);
        return r;
    }
    xstate_init();
    stubs_emit(bt, &bt->region[0]);
    ram->code_write = cache_code_write;
    ram->map_changed = map_changed;
    ram->code_write_opaque = bt;
    *out = &bt->base;
    return 0;
}

static void bt_destroy(struct engine *e)
{
    struct bt_engine *bt = (struct bt_engine *)e;
    bt->ram->code_write = NULL;
    bt->ram->map_changed = NULL;
    bt_verify_end(bt);
    door_destroy(bt);
    cache_destroy(bt);
    free(bt);
}

static int bt_vcpu_init(struct engine *e, struct vcpu *v)
{
    struct bt_engine *bt = (struct bt_engine *)e;
    struct engine_vcpu *ev = calloc(1, sizeof *ev);
    if (!ev)
        return -ENOMEM;
    ev->guard = mmap(NULL, GUARD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ev->guard == MAP_FAILED ||
        mprotect(ev->guard + GUEST_PAGE_SIZE, GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE)) {
        free(ev);
        return -ENOMEM;
    }
    ev->bt = bt;
    v->engine = ev;
    v->bt.self = (uint64_t)(uintptr_t)v;
    system_calls_forget(v);
    for (unsigned i = 0; i < EXEC_TLB_SIZE; i++)
        ev->exec_tlb[i].gva_page = ~0ull;
    ev->key_seen[0] = ev->key_seen[1] = ~0u;
    jump_cache_init(v);
    int r = signals_init_thread(v);
    if (!r && bt->cfg.mem_mode != MEM_SOFT && bt->bmi2 && (!bt->n_vcpus || bt->native_stack))
        windows_init(v, 0); /* without windows everything runs in soft form */
    if (!r && !bt->n_vcpus)
        bt->native_stack = v->engine->windows_on;
    if (!r && bt->native_stack && !v->engine->windows_on) { /* all vCPUs run the same code */
        signals_destroy_thread(v);
        r = -ENOMEM;
    }
    if (r) {
        munmap(ev->guard, GUARD_SIZE);
        free(ev);
        v->engine = NULL;
        return r;
    }
    bt_lock(bt);
    bt->vcpus[bt->n_vcpus++] = v;
    if (bt->n_vcpus > 1)
        far_links_forget(bt);
    bt_unlock(bt);
    return 0;
}

static void bt_vcpu_destroy(struct engine *e, struct vcpu *v)
{
    struct bt_engine *bt = (struct bt_engine *)e;
    if (!v->engine)
        return;
    for (unsigned i = 0; i < bt->n_vcpus; i++)
        if (bt->vcpus[i] == v)
            bt->vcpus[i] = bt->vcpus[--bt->n_vcpus];
    bt->stats.fast_syscalls += v->bt.fast_syscalls;
    bt->stats.fast_sysrets += v->bt.fast_sysrets;
    windows_destroy(v);
    signals_destroy_thread(v);
    munmap(v->engine->guard, GUARD_SIZE);
    free(v->engine);
    v->engine = NULL;
}

static void bt_kick(struct engine *e, struct vcpu *v)
{
    atomic_store(&v->exit_request, 1);
    int tid = atomic_load(&v->host_tid);
    if (tid && tid != (int)syscall(SYS_gettid))
        syscall(SYS_tgkill, getpid(), tid, BT_KICK_SIGNAL);
}

static void bt_print_stats(struct engine *e, FILE *out)
{
    const struct bt_engine *bt = (const struct bt_engine *)e;
    const struct bt_stats *s = &bt->stats;
    fprintf(out,
            "translation:  %llu blocks, %llu instructions, %llu -> %llu bytes (x%llu.%02llu), "
            "%llu us, %llu instructions/ms\n",
            (unsigned long long)s->blocks, (unsigned long long)s->guest_insns,
            (unsigned long long)s->guest_bytes, (unsigned long long)s->host_bytes,
            (unsigned long long)(s->guest_bytes ? s->host_bytes / s->guest_bytes : 0),
            (unsigned long long)(s->guest_bytes ? s->host_bytes * 100 / s->guest_bytes % 100 : 0),
            (unsigned long long)(s->translate_ns / 1000),
            (unsigned long long)(s->translate_ns ? s->guest_insns * 1000000 / s->translate_ns : 0));
    fprintf(out,
            "cache:        %llu links, %llu blocks dropped, %llu regions evicted, %llu writes to "
            "code pages\n",
            (unsigned long long)s->links, (unsigned long long)s->invalidations,
            (unsigned long long)s->evictions, (unsigned long long)s->code_writes);
    fprintf(out, "dispatcher:   %llu entries, %llu lookups, %llu short ones, %llu by faults at doors\n",
            (unsigned long long)s->enters, (unsigned long long)s->lookups,
            (unsigned long long)s->fast_lookups, (unsigned long long)s->door_misses);
    static const char *const reason[10] = {"?",     "lookup", "link",         "callout", "fault",
                                           "async", "step",   "window fault", "divide",
                                           "window miss"};
    fprintf(out, "exits:       ");
    for (unsigned i = 1; i < 10; i++)
        fprintf(out, " %s %llu%s", reason[i], (unsigned long long)s->exits[i], i < 9 ? "," : "\n");
    fprintf(out, "memory:       %llu slow accesses, %llu soft-TLB fills, %llu bounces, %llu MMIO\n",
            (unsigned long long)s->mem_slow, (unsigned long long)s->tlb_fills,
            (unsigned long long)s->bounces, (unsigned long long)s->mmio);
    fprintf(out,
            "windows:      %llu hot blocks, %llu faults, %llu misses, %llu sites back to soft form, "
            "%llu tried again\n",
            (unsigned long long)s->hot_blocks, (unsigned long long)s->wfaults,
            (unsigned long long)s->wmisses, (unsigned long long)s->soft_sites,
            (unsigned long long)s->window_retries);
    fprintf(out, "huge pages:   %llu pieces of RAM, %llu refused by the host\n",
            (unsigned long long)s->huge_made, (unsigned long long)s->huge_refused);
    fprintf(out, "moved:        %llu blocks to other addresses\n", (unsigned long long)s->moved);
    fprintf(out, "young:        %llu address spaces, %llu grew old\n", (unsigned long long)s->young,
            (unsigned long long)s->grown);
    struct window_stats w = s->windows;
    bool windows = s->windows_used;
    for (unsigned i = 0; i < bt->n_vcpus; i++) {
        windows |= bt->vcpus[i]->engine->windows_on;
        windows_add_stats(&w, &bt->vcpus[i]->engine->ws.stats);
    }
    if (windows)
        fprintf(out,
                "mappings:     %llu installs of %llu pages, %llu unmaps, %llu protects, %llu probes, "
                "at most %u VMAs of a vCPU\n",
                (unsigned long long)w.installs, (unsigned long long)w.installed_pages,
                (unsigned long long)w.unmaps, (unsigned long long)w.protects,
                (unsigned long long)w.probes, w.vmas_peak);
    fprintf(out, "flushes:      %llu all, %llu non-global, %llu page\n",
            (unsigned long long)s->flushes[0], (unsigned long long)s->flushes[1],
            (unsigned long long)s->flushes[2]);
    fprintf(out, "signals:      %llu kicks, %llu steps, %llu faults\n",
            (unsigned long long)s->signals_kick, (unsigned long long)s->signals_step,
            (unsigned long long)s->signals_fault);
    fprintf(out, "interrupts:   %llu\n", (unsigned long long)s->interrupts);
    fprintf(out, "exceptions:  ");
    for (unsigned i = 0; i < 32; i++)
        if (s->exceptions[i])
            fprintf(out, " #%u: %llu", i, (unsigned long long)s->exceptions[i]);
    uint64_t syscalls = s->fast_syscalls, sysrets = s->fast_sysrets;
    for (unsigned i = 0; i < bt->n_vcpus; i++) {
        syscalls += bt->vcpus[i]->bt.fast_syscalls;
        sysrets += bt->vcpus[i]->bt.fast_sysrets;
    }
    fprintf(out, "\nsystem calls: %llu entries, %llu returns without C code\n",
            (unsigned long long)syscalls, (unsigned long long)sysrets);
    fprintf(out, "callouts:\n");
    for (unsigned i = 0; i < OP_COUNT; i++)
        if (s->callouts[i])
            fprintf(out, "  %-16s %llu\n", insn_op_name((enum insn_op)i),
                    (unsigned long long)s->callouts[i]);
}

const struct engine_ops bt_engine_ops = {
    .name = "binary translation",
    .create = bt_create,
    .destroy = bt_destroy,
    .vcpu_init = bt_vcpu_init,
    .vcpu_destroy = bt_vcpu_destroy,
    .run = bt_run,
    .kick = bt_kick,
    .timer_signal = BT_KICK_SIGNAL,
    .print_stats = bt_print_stats,
};
