/*
 * The C side of memory accesses: what happens when the check in emitted code fails.
 *
 * One mechanism serves every instruction without knowing what it does (blueprint, section 2): either
 * the page goes into the soft TLB and the native instruction runs on it, or the instruction runs on
 * a bounce copy (operands that cross a page, MMIO, state images) that is written back afterwards.
 * The copy keeps the operand's low address bits, so alignment faults come right by themselves.
 *
 * Light code: guest FP state is live; MMIO goes through vcpu_fp_save() inside mmu_mmio_*.
 */
#include "translator/bt.h"

#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/host_time.h"
#include "cpu/segment.h"
#include "translator/callouts.h"
#include "cpu/system.h"
#include "mmu/mmu.h"
#include "runtime/trace.h"
#include "translator/host_string.h"
#include "translator/trace.h"
#include "translator/xstate.h"

/* -- Prepare -------------------------------------------------------------------------------------- */

uint64_t bt_resume_at(struct vcpu *v, uint64_t target)
{
    if (v->fp_saved)
        vcpu_fp_restore(v);
    flat_use(v);
    stack_use(v);
    return target;
}

static uint64_t address_fault(struct vcpu *v, const struct mem_site *s)
{
    cpu_raise_code(v, s->flags & SITE_STACK ? EXC_SS : EXC_GP, 0);
    return 0;
}

/*
 * Splits the operand at the page boundary, translates every piece, and only then reads it.
 *
 * A masked operand may name pages that are not there, as long as no active element is on them.  The
 * CPU itself says which elements are: the copy of such an operand is placed so that the piece that
 * cannot be had lies in a page without access, and if the instruction touches that, the host's page
 * fault is the guest's (bt_guard_fault).
 */
static uint64_t bounce(struct vcpu *v, struct mem_site *s, uint64_t gva, unsigned size)
{
    struct engine_vcpu *ev = v->engine;
    bool write = s->access & MMU_WRITE, read = !write || (s->access & MMU_RMW);
    unsigned page_off = (unsigned)(gva & (GUEST_PAGE_SIZE - 1)), first = GUEST_PAGE_SIZE - page_off;
    unsigned len[2] = {size < first ? size : first, 0};
    void *host[2] = {0};
    uint8_t *buf = v->bounce + 64 + (gva & 63);
    bool canonical = mmu_canonical(gva) && mmu_canonical(gva + size - 1);
    len[1] = size - len[0];
    ev->bt->stats.bounces++;
    ev->bounce.gva = gva;
    for (unsigned i = 0, off = 0; i < 2; off += len[i], i++) {
        ev->bounce.len[i] = (uint16_t)len[i];
        ev->bounce.skip[i] = false;
        if (!len[i])
            continue;
        int t = -1;
        uint64_t piece = vcpu_long64(v) ? gva + off : (uint32_t)(gva + off);
        if (mmu_canonical(piece))
            t = mmu_translate(v, piece, s->access, s->flags & SITE_STACK, &host[i],
                              &ev->bounce.gpa[i]);
        if (t < 0) {
            if (!canonical)
                address_fault(v, s);
            if (!(s->flags & SITE_MASKED))
                return 0;
            ev->bounce.skip[i] = true;
            ev->bounce.exc[i] = v->exc;
        }
        ev->bounce.ram[i] = t != MMU_MMIO;
    }
    if (ev->bounce.skip[0] && ev->bounce.skip[1])
        buf = ev->guard + 3 * GUEST_PAGE_SIZE - len[0];
    else if (ev->bounce.skip[0])
        buf = ev->guard + page_off;
    else if (ev->bounce.skip[1])
        buf = ev->guard + 2 * GUEST_PAGE_SIZE - len[0];
    /* What is written back starts out as what is there: not every instruction that writes does
     * (an x87 store that finds an unmasked exception). */
    for (unsigned i = 0, off = 0; i < 2; off += len[i], i++) {
        if (!len[i] || ev->bounce.skip[i])
            continue;
        if (ev->bounce.ram[i]) {
            host_movs(1, buf + off, host[i], len[i]);
        } else if (read) {
            ev->bt->stats.mmio++;
            mmu_mmio_read(v, ev->bounce.gpa[i], buf + off, len[i]);
        } else {
            for (unsigned k = 0; k < len[i]; k++)
                buf[off + k] = 0;
        }
    }
    ev->bounce.active = write;
    ev->bounce.src = buf;
    v->bt.r10 = (uint64_t)(uintptr_t)buf;
    return bt_resume_at(v, s->resume_bounce);
}

bool bt_guard_fault(struct vcpu *v, uint64_t address)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t buf = (uint64_t)(uintptr_t)ev->bounce.src;
    if (address - (uint64_t)(uintptr_t)ev->guard >= GUARD_SIZE || address < buf)
        return false;
    unsigned off = (unsigned)(address - buf), i = off >= ev->bounce.len[0];
    if (off >= (unsigned)ev->bounce.len[0] + ev->bounce.len[1] || !ev->bounce.skip[i])
        return false;
    v->exc = ev->bounce.exc[i];
    if (v->exc.vector == EXC_PF)
        v->exc.cr2 = vcpu_long64(v) ? ev->bounce.gva + off : (uint32_t)(ev->bounce.gva + off);
    return true;
}

/* Is this x87 instruction pointer one of translated code?  A guest's that looks like one is told by where
 * it came from last. */
static bool fip_is_ours(const struct vcpu *v, uint64_t fip)
{
    return cache_contains(v->engine->bt, fip) && fip != v->engine->image.fip;
}

/* Are the x87 pointers those of an instruction that has been executed here?  After an XRSTOR of an image that
 * has been put right they are the guest's, and it may be long until there is another.  FXSAVE changes
 * nothing, and the bounce buffer is free. */
static bool host_fip(struct vcpu *v)
{
    uint64_t fip;
    __asm__ volatile("fxsave64 %0" : "=m"(v->bounce));
    __builtin_memcpy(&fip, v->bounce + 8, 8);
    return fip_is_ours(v, fip);
}

/*
 * Where the state image at gva can be used as it lies: RAM without translated code, in one piece on
 * the host too.  NULL if it must be copied, or if the copy will find a fault.  An image written in
 * place must hold no host address, which only x87 state can (XGETBV with ECX = 1: SDM vol. 1,
 * 13.6).
 */
static uint8_t *image_in_place(struct vcpu *v, const struct mem_site *s, uint64_t gva,
                               unsigned size)
{
    uint64_t first = GUEST_PAGE_SIZE - (gva & (GUEST_PAGE_SIZE - 1)), gpa[2];
    void *host[2];
    struct exception saved = v->exc;

    if (s->flags & SITE_FIP) {
        uint64_t in_use;
        if (cpu_xgetbv(v, 1, &in_use) != CPU_NEXT || ((in_use & 1) && host_fip(v))) {
            v->exc = saved;
            return NULL;
        }
    }
    if (size > GUEST_PAGE_SIZE || (!vcpu_long64(v) && (uint32_t)(gva + size) < (uint32_t)gva) ||
        mmu_translate(v, gva, s->access, s->flags & SITE_STACK, &host[0], &gpa[0]) != MMU_RAM ||
        (size > first && (mmu_translate(v, gva + first, s->access, s->flags & SITE_STACK, &host[1],
                                        &gpa[1]) != MMU_RAM ||
                          gpa[1] != gpa[0] + first))) {
        v->exc = saved;
        return NULL;
    }
    return host[0];
}

/*
 * The way on behind the access of `s`: out to the dispatcher at once, if somebody asks for that and
 * the instruction is complete at `target`.  The resume stub would get there by a host single step.
 */
static uint64_t resume_behind(struct vcpu *v, const struct mem_site *s, uint64_t target)
{
    const struct side_entry *se;

    if (atomic_load_explicit(&v->exit_request, memory_order_relaxed) &&
        !(s->tb->key & KEY_ONE_INSN) && (se = tb_side_lookup(s->tb, target)) != NULL &&
        side_host(s->tb, se) == target && se->kind == SIDE_BOUNDARY) {
        v->bt.r10 = side_gva(s->tb, se);
        v->bt.exit_reason = EXIT_LOOKUP;
        return 0;
    }
    return bt_resume_at(v, target);
}

/* An access to a device, on one page.  A plain load needs no more than the value; a plain store is
 * done here. */
static uint64_t mmio(struct vcpu *v, struct mem_site *s, uint64_t gva, uint64_t gpa, unsigned size)
{
    struct engine_vcpu *ev = v->engine;
    uint8_t *buf = v->bounce + 64 + (gva & 63);

    if (s->flags & SITE_MASKED)
        return bounce(v, s, gva, size);
    if (!(s->access & MMU_WRITE)) {
        ev->bt->stats.mmio++;
        mmu_mmio_read(v, gpa, buf, size);
        ev->bounce.active = false;
        v->bt.r10 = (uint64_t)(uintptr_t)buf;
        return bt_resume_at(v, s->resume_bounce);
    }
    if (s->store == STORE_NO)
        return bounce(v, s, gva, size);
    uint64_t value = s->store == STORE_REG ? v->gpr[s->reg & 15] : (uint64_t)s->imm;
    ev->bt->stats.mmio++;
    mmu_mmio_write(v, gpa, &value, size);
    if (s->tb->dead) /* the device has changed the memory map */
        v->exit_request = 1;
    return resume_behind(v, s, s->resume_done);
}

static uint64_t prepare(struct vcpu *v, struct mem_site *s)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t gva = v->bt.r10;
    unsigned size = s->size;
    v->rip = s->rip;
    ev->bt->stats.mem_slow++;
    if (s->flags & SITE_XSAVE) {
        v->bt.xsave_rax = v->gpr[RAX];
        v->bt.xsave_rdx = v->gpr[RDX];
        uint64_t rfbm = ((v->gpr[RDX] << 32) | (uint32_t)v->gpr[RAX]) & v->xcr0;
        bool compacted = s->insn->op == OP_XSAVEC;
        if (ev->image.rfbm != rfbm || !ev->image.size[compacted]) {
            ev->image.rfbm = rfbm;
            ev->image.size[0] = xstate_size(rfbm, false);
            ev->image.size[1] = xstate_size(rfbm, true);
        }
        size = ev->image.size[compacted];
    }
    if ((s->flags & SITE_SEG) && cpu_linear(v, s->seg, gva, size, s->access, &gva))
        return 0;
    /* The instruction would find out by itself, but only once its pages are there. */
    unsigned align = s->flags & SITE_XSAVE ? 64 : !(s->flags & SITE_ALIGNED) ? 1
                     : size > 64           ? 16
                                           : size;
    if (gva & (align - 1)) {
        cpu_raise_code(v, EXC_GP, 0);
        return 0;
    }
    if ((ev->watch & WATCH_ALIGN) && !(s->flags & SITE_MASKED) && mmu_canonical(gva)) {
        unsigned natural = size == 10 ? 8 : size; /* SDM vol. 3, table 6-7 */
        if (natural <= 8 && (gva & (natural - 1))) {
            cpu_raise_code(v, EXC_AC, 0);
            return 0;
        }
    }
    if (!mmu_canonical(gva) || !mmu_canonical(gva + size - 1))
        return s->flags & SITE_MASKED ? bounce(v, s, gva, size) : address_fault(v, s);
    if (ev->watch) {
        if (ev->watch & WATCH_DATA) {
            uint64_t hit = cpu_debug_match(v, s->access & MMU_WRITE ? DEBUG_WRITE : DEBUG_READ,
                                           gva, size);
            if (hit) {
                ev->db_bits |= hit;
                v->exit_request = 1;
            }
        }
    }
    if (s->flags & SITE_XSAVE) {
        uint64_t r = s->resume_bounce;
        uint8_t *image = vcpu_long64(v) ? image_in_place(v, s, gva, size) : NULL;
        if (image) {
            ev->bounce.active = false;
            v->bt.r10 = (uint64_t)(uintptr_t)image;
            r = bt_resume_at(v, r);
        } else {
            r = bounce(v, s, gva, size);
            image = ev->bounce.src;
        }
        if (!r)
            return 0;
        /* If another processor changes an image in place now, the host's checks and the mask in
         * EDX:EAX remain. */
        if (s->insn->op == OP_XRSTOR) {
            uint64_t bv, comp;
            __builtin_memcpy(&bv, image + 512, 8);
            __builtin_memcpy(&comp, image + 520, 8);
            if ((bv & ~v->xcr0) || ((comp & ~(1ull << 63)) & ~v->xcr0)) {
                cpu_raise_code(v, EXC_GP, 0);
                return 0;
            }
            if (bv & v->gpr[RAX] & 1) {
                ev->image.fip = 0;
                __builtin_memcpy(&ev->image.fip, image + 8, s->insn->rex & 8 ? 8 : 4);
            }
        }
        if (!vcpu_long64(v)) {
            legacy_state_before(v, s->insn, image);
            r = bt_resume_at(v, s->resume_bounce);
        }
        v->gpr[RAX] = (uint32_t)(v->gpr[RAX] & v->xcr0);
        v->gpr[RDX] = (uint32_t)(v->gpr[RDX] & (v->xcr0 >> 32));
        return r;
    }
    if ((s->flags & SITE_BOUNCE) && !vcpu_long64(v)) {
        uint64_t r = bounce(v, s, gva, size);
        if (r)
            legacy_state_before(v, s->insn, ev->bounce.src);
        return r;
    }
    if ((s->flags & SITE_BOUNCE) || (gva & (GUEST_PAGE_SIZE - 1)) + size > GUEST_PAGE_SIZE)
        return bounce(v, s, gva, size);

    void *host;
    uint64_t gpa;
    int target = mmu_translate(v, gva, s->access, s->flags & SITE_STACK, &host, &gpa);
    if (target >= 0 && (ev->bt->cfg.trace_mask & TRACE_MMU))
        trace_miss(ev->bt, v, gva, gpa, s->access, target);
    switch (target) {
    case MMU_RAM_CODE:
        ram_before_write(v->ram, gpa, size);
        if (s->tb->dead) /* it has changed itself: leave after this instruction */
            v->exit_request = 1;
        break;
    case MMU_RAM:
        ev->bt->stats.tlb_fills++;
        if (s->tb->window && bt_soft_miss(v, s, gva))
            return bt_mem_hot(v, s);
        break;
    case MMU_MMIO:
        return mmio(v, s, gva, gpa, size);
    default:
        return s->flags & SITE_MASKED ? bounce(v, s, gva, size) : 0;
    }
    v->bt.r10 = (uint64_t)(uintptr_t)host;
    return bt_resume_at(v, s->resume);
}

/* -- Commit --------------------------------------------------------------------------------------- */

/* The guest address of the x87 instruction at host address `fip`: in CS, but linear where the image
 * has it so (legacy_state.c). */
static uint64_t guest_fip(struct bt_engine *bt, uint64_t fip, bool linear)
{
    struct tb *tb = cache_find_pc(bt, fip);
    const struct side_entry *se = tb ? tb_side_lookup(tb, fip) : NULL;
    if (!se)
        return 0;
    return side_gva(tb, se) - (linear ? 0 : (uint32_t)tb->cs);
}

/*
 * A data pointer is ours exactly if the instruction pointer is: every instruction that sets the one
 * sets the other, and a guest that loads values of its own loads both.  What guest address it stood
 * for is not known any more, so it becomes 0, which is also what CPUs leave that update it on
 * exceptions only (SDM vol. 1, 8.1.8).
 */
void bt_fix_fip(struct vcpu *v, const struct insn *in, uint8_t *image)
{
    struct bt_engine *bt = v->engine->bt;
    bool env = in->op == OP_FNSAVE || in->op == OP_FNSTENV, wide = !env && (in->rex & 8);
    if (env && in->op_size == 2) { /* 16-bit image: FIP at 6, FDP at 10; too short to tell */
        for (unsigned i = 6; i < 8; i++)
            image[i] = image[i + 4] = 0;
        return;
    }
    unsigned fip_off = env ? 12 : 8, fdp_off = env ? 20 : 16;
    uint64_t fip = 0, zero = 0;
    __builtin_memcpy(&fip, image + fip_off, 4);
    if (wide)
        __builtin_memcpy(&fip, image + fip_off, 8);
    if (!fip_is_ours(v, fip))
        return;
    fip = guest_fip(bt, fip, env && vcpu_real_segments(v));
    if (wide) {
        __builtin_memcpy(image + fip_off, &fip, 8);
        __builtin_memcpy(image + fdp_off, &zero, 8);
    } else {
        __builtin_memcpy(image + fip_off, &fip, 4);
        __builtin_memcpy(image + fdp_off, &zero, 4);
    }
}

static uint64_t commit(struct vcpu *v, struct mem_site *s)
{
    struct engine_vcpu *ev = v->engine;
    bool x87 = true;
    v->rip = s->rip;
    if (s->flags & SITE_XSAVE) {
        x87 = v->gpr[RAX] & 1;
        v->gpr[RAX] = v->bt.xsave_rax;
        v->gpr[RDX] = v->bt.xsave_rdx;
    }
    if (ev->bounce.active && (s->flags & SITE_FIP) && x87)
        bt_fix_fip(v, s->insn, ev->bounce.src);
    if ((s->flags & SITE_BOUNCE) && !vcpu_long64(v))
        legacy_state_after(v, s->insn, ev->bounce.src);
    if (ev->bounce.active) {
        uint8_t *src = ev->bounce.src;
        for (unsigned i = 0; i < 2; src += ev->bounce.len[i], i++) {
            unsigned len = ev->bounce.len[i];
            if (!len || ev->bounce.skip[i])
                continue;
            if (ev->bounce.ram[i]) {
                ram_before_write(v->ram, ev->bounce.gpa[i], len);
                host_movs(1, v->ram->base + ev->bounce.gpa[i], src, len);
                if (s->tb->dead)
                    v->exit_request = 1;
            } else {
                ev->bt->stats.mmio++;
                mmu_mmio_write(v, ev->bounce.gpa[i], src, len);
                if (s->tb->dead) /* the device has changed the memory map */
                    v->exit_request = 1;
            }
        }
        ev->bounce.active = false;
    }
    return resume_behind(v, s, s->resume_done);
}

/* -- The doors from emitted code ------------------------------------------------------------------ */

uint64_t bt_mem_prepare(struct vcpu *v, struct mem_site *s)
{
    enum host_cause was = host_time_switch(v, HOST_MEMORY);
    uint64_t to = prepare(v, s);
    if (!to && v->bt.exit_reason == EXIT_FAULT && !(s->tb->key & KEY_ONE_INSN))
        to = bt_deliver_fault(v);
    host_time_switch(v, was);
    return to;
}

uint64_t bt_mem_commit(struct vcpu *v, struct mem_site *s)
{
    enum host_cause was = host_time_switch(v, HOST_MEMORY);
    uint64_t leave = commit(v, s);
    host_time_switch(v, was);
    return leave;
}
