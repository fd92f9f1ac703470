/*
 * How an access reaches guest memory: the soft form.
 *
 *     lea   r10, [operand]              linear address
 *     mov   r11d, r10d                  soft-TLB index
 *     shr   r11d, 7
 *     and   r11d, mask
 *     sub   r10, gs:[r11 + tag]         offset in the page, if the entry is for this page
 *     cmp   r10, 4096 - size            wrong page, or crosses its end: one unsigned compare
 *     ja    slow
 *     add   r10, gs:[r11 + host]        HVA
 *     op    [r10]
 *
 * The check needs the arithmetic flags. Where they are live they go through AH/AL (LAHF, SETO) and
 * back. Everything before `op` touches r10, r11 and scratch memory only, so a fault rolls back to
 * the instruction's start.
 *
 * The slow path (end of the block) calls bt_mem_prepare() with R10 = linear address. Reads always
 * continue at `op` with R10 = HVA of the page or of a bounce copy. Writes continue there too when
 * the TLB now has the page; otherwise at a twin of `op` that is followed by bt_mem_commit().
 */
#include "translator/lower.h"

#include "mmu/mmu.h"
#include "translator/reencode.h"

void side_mark(struct xlate *x, enum side_kind kind, unsigned reg)
{
    if (x->n_side >= TB_MAX_SIDE) {
        x->failed = true;
        return;
    }
    uint32_t here = (uint32_t)emit_here(&x->e);
    x->side[x->n_side++] = (struct side_entry){
        .host = here, .guest_off = x->guest_off, .kind = (uint8_t)kind, .reg = (uint8_t)reg};
}

void lower_save_flags(struct emitter *e)
{
    e_store_gs(e, VCPU_OFF(scratch[SCR_FLAGS_RAX]), RAX);
    e8(e, 0x9f);                                       /* lahf */
    e_bytes(e, (const uint8_t[]){0x0f, 0x90, 0xc0}, 3); /* seto al */
}

void lower_restore_flags(struct emitter *e)
{
    e_bytes(e, (const uint8_t[]){0x04, 0x7f}, 2); /* add al, 127: OF = old al */
    e8(e, 0x9e);                                  /* sahf */
    e_load_gs(e, RAX, VCPU_OFF(scratch[SCR_FLAGS_RAX]));
}

static uint32_t seg_base_off(unsigned seg)
{
    return (uint32_t)(offsetof(struct vcpu, seg) + seg * sizeof(struct segment) +
                      offsetof(struct segment, base));
}

void lower_ea(struct xlate *x, const struct insn *in, const struct insn_mem *m, unsigned addr_size,
              int32_t extra, bool with_segment)
{
    struct emitter *e = &x->e;
    bool seg = with_segment && (m->seg == SEG_FS || m->seg == SEG_GS);
    unsigned base = m->base, index = m->index;
    uint64_t disp = (uint64_t)m->disp + (int64_t)extra;

    if (base == BASE_RIP) {
        uint64_t a = x->cur_rip + in->len + disp;
        e_mov_imm(e, R10, addr_size == 4 ? (uint32_t)a : a);
    } else if (base == REG_NONE && index == REG_NONE) {
        if (addr_size == 4)
            disp = (uint32_t)disp;
        if (seg && (int64_t)disp == (int32_t)disp) {
            e_load_gs(e, R10, seg_base_off(m->seg));
            if (disp)
                e_lea(e, R10, R10, 0xff, 1, (int32_t)disp);
            return;
        }
        e_mov_imm(e, R10, disp);
    } else {
        if (seg && index == REG_NONE && base != R10 && base != R11 && addr_size == 8) {
            e_load_gs(e, R10, seg_base_off(m->seg));
            /* rsp cannot be an index: make it the base. */
            if (base == RSP)
                e_lea(e, R10, RSP, R10, 1, (int32_t)disp);
            else
                e_lea(e, R10, R10, base, 1, (int32_t)disp);
            return;
        }
        if (index == R10 || index == R11) {
            e_load_gs(e, R11, GPR_OFF(index));
            index = R11;
        }
        if (base == R10 || base == R11) {
            e_load_gs(e, R10, GPR_OFF(base));
            base = R10;
        }
        if (addr_size == 4)
            e_lea32(e, R10, base, index, m->scale, (int32_t)disp);
        else if (index == REG_NONE && disp == 0) {
            if (base != R10)
                e_mov_rr(e, R10, base);
        } else
            e_lea(e, R10, base, index, m->scale, (int32_t)disp);
    }
    if (seg) {
        e_load_gs(e, R11, seg_base_off(m->seg));
        e_lea(e, R10, R10, R11, 1, 0);
    }
}

static uint32_t stlb_off(const struct xlate *x, size_t field)
{
    unsigned table = x->key & KEY_USER ? 0 : 1;
    return (uint32_t)(offsetof(struct vcpu, stlb) +
                      table * STLB_SIZE * sizeof(struct soft_tlb_entry) + field);
}

static void to_stub(struct xlate *x, const void *arg, unsigned reg, uint32_t stub)
{
    e_mov_imm(&x->e, reg, (uintptr_t)arg);
    e_jmp(&x->e, stub);
}

void lower_access(struct xlate *x, const struct insn *in, struct access a, body_fn body)
{
    struct emitter *e = &x->e;
    struct mem_site *site = cache_meta_alloc(x->r, sizeof *site);
    a.ref = (struct memref){R10, KEEP, 0};
    a.scratch = R11;
    if (!site || x->n_slow >= TB_MAX_SLOW) {
        x->failed = true;
        return;
    }
    *site = (struct mem_site){.rip = x->cur_rip, .size = a.size, .access = a.kind,
                              .flags = a.flags};
    if (a.flags & (SITE_MASKED | SITE_BOUNCE)) {
        struct insn *copy = cache_meta_alloc(x->r, sizeof *copy);
        if (!copy) {
            x->failed = true;
            return;
        }
        *copy = *in;
        site->insn = copy;
    }
    if (a.flags & SITE_BOUNCE) {
        to_stub(x, site, R11, x->bt->stub_prepare);
        site->resume_bounce = site->resume = (uint32_t)emit_here(e);
        if (a.flags & SITE_XSAVE)
            side_mark(x, SIDE_XSAVE, 0);
        body(x, in, &a);
        side_mark(x, SIDE_INSIDE, 0);
        to_stub(x, site, R11, x->bt->stub_commit);
        site->resume_done = (uint32_t)emit_here(e);
        return;
    }

    struct slow_path *s = &x->slow[x->n_slow++];
    *s = (struct slow_path){.a = a, .in = in, .body = body, .site = site,
                            .guest_off = x->guest_off};
    if (x->key & KEY_SLOW_MEM) {
        to_stub(x, site, R11, x->bt->stub_prepare);
    } else {
        bool write = a.kind & MMU_WRITE;
        if (a.flags_live)
            lower_save_flags(e);
        e_mov32_rr(e, R11, R10);
        e_bytes(e, (const uint8_t[]){0x41, 0xc1, 0xeb, GUEST_PAGE_SHIFT - 5}, 4); /* shr r11d */
        e_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3);                       /* and r11d */
        e32(e, (STLB_SIZE - 1) * (uint32_t)sizeof(struct soft_tlb_entry));
        e_gs_idx(e, true, 0x2b, R10, R11, 0,
                 stlb_off(x, write ? offsetof(struct soft_tlb_entry, wtag)
                                   : offsetof(struct soft_tlb_entry, rtag)));
        e_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfa}, 3); /* cmp r10, imm32 */
        e32(e, GUEST_PAGE_SIZE - a.size);
        s->jcc = e_jcc_fwd(e, CC_A);
        e_gs_idx(e, true, 0x03, R10, R11, 0, stlb_off(x, offsetof(struct soft_tlb_entry, host)));
        if (a.flags_live)
            lower_restore_flags(e);
    }
    site->resume = (uint32_t)emit_here(e);
    body(x, in, &a);
    s->done = (uint32_t)emit_here(e);
}

void lower_slow_paths(struct xlate *x)
{
    struct emitter *e = &x->e;
    for (unsigned i = 0; i < x->n_slow && !x->failed; i++) {
        struct slow_path *s = &x->slow[i];
        bool write = s->a.kind & MMU_WRITE;
        x->guest_off = s->guest_off;
        x->cur_rip = s->site->rip;
        side_mark(x, SIDE_INSIDE, 0);
        if (s->jcc) {
            e_fix_here(e, s->jcc);
            e_gs_idx(e, true, 0x03, R10, R11, 0, /* undo the subtraction */
                     stlb_off(x, write ? offsetof(struct soft_tlb_entry, wtag)
                                       : offsetof(struct soft_tlb_entry, rtag)));
            if (s->a.flags_live)
                lower_restore_flags(e);
            to_stub(x, s->site, R11, x->bt->stub_prepare);
        }
        s->site->resume_bounce = s->site->resume;
        if (write) {
            s->site->resume_bounce = (uint32_t)emit_here(e);
            s->body(x, s->in, &s->a);
            side_mark(x, SIDE_INSIDE, 0);
            to_stub(x, s->site, R11, x->bt->stub_commit);
            s->site->resume_done = s->done;
        }
    }
}

/* A low register the instruction does not touch, that needs no REX and no special encoding. */
static unsigned spare_reg(const struct insn *in)
{
    static const uint8_t candidates[] = {RSI, RDI, RBX, RDX, RCX, RAX};
    for (unsigned i = 0; i < sizeof candidates; i++)
        if (!((in->gpr_read | in->gpr_written) & (1u << candidates[i])))
            return candidates[i];
    return R8; /* not reached by any encoding: an instruction names at most five registers */
}

/*
 * The instruction with its operand at a->ref. The guest's r10/r11 as data go through the scratch
 * register that is left; a second one, or a high-byte register that forbids REX, borrows a register.
 */
void body_copy(struct xlate *x, const struct insn *in, const struct access *a)
{
    struct emitter *e = &x->e;
    unsigned field[2] = {KEEP, KEEP}, reg[2] = {KEEP, KEEP}, n = 0;
    if ((in->flags & INSN_REG_GPR) && (in->reg == R10 || in->reg == R11))
        field[n++] = 0;
    if ((in->flags & INSN_VVVV_GPR) && (in->vvvv == R10 || in->vvvv == R11))
        field[n++] = 1;
    unsigned guest[2] = {in->reg, in->vvvv}, host[2] = {a->scratch, a->scratch};
    unsigned spill = KEEP;
    bool same = n == 2 && guest[0] == guest[1];
    struct memref ref = a->ref;

    if ((n == 2 && !same) || (in->flags & INSN_HIGH8)) {
        spill = spare_reg(in);
        e_store_gs(e, VCPU_OFF(scratch[SCR_SPILL]), spill);
        side_mark(x, SIDE_SPILL, spill);
        if (n == 2)
            host[1] = spill;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned f = field[i];
        reg[f] = host[i];
        if ((in->gpr_read & (1u << guest[f])) && !(same && i))
            e_load_gs(e, host[i], GPR_OFF(guest[f]));
    }
    if (in->flags & INSN_HIGH8) {
        e_ref_lea(e, spill, &ref);
        ref = (struct memref){(uint8_t)spill, KEEP, 0};
    }
    reencode_mem(e, in, &ref, reg[0], reg[1]);
    for (unsigned i = 0; i < n; i++)
        if ((in->gpr_written & (1u << guest[field[i]])) && !(same && i))
            e_store_gs(e, GPR_OFF(guest[field[i]]), host[i]);
    if (spill != KEEP) {
        e_load_gs(e, spill, VCPU_OFF(scratch[SCR_SPILL]));
        side_mark(x, SIDE_INSIDE, 0);
    }
}

static void ref_op(struct emitter *e, unsigned prefix, bool w, const uint8_t *opc, unsigned n,
                   unsigned reg, const struct memref *ref)
{
    unsigned index = ref->index == KEEP ? 0xff : ref->index;
    unsigned rex = 0x40 | (w ? 8 : 0) | (reg >= 8 ? 4 : 0) | (index != 0xff && index >= 8 ? 2 : 0) |
                   (ref->base >= 8 ? 1 : 0);
    if (prefix)
        e8(e, (uint8_t)prefix);
    if (rex != 0x40)
        e8(e, (uint8_t)rex);
    e_bytes(e, opc, n);
    e_modrm_mem(e, reg, ref->base, index, 1, ref->disp);
}

void e_ref_load(struct emitter *e, unsigned size, unsigned reg, const struct memref *ref)
{
    if (size == 2)
        ref_op(e, 0, false, (const uint8_t[]){0x0f, 0xb7}, 2, reg, ref);
    else
        ref_op(e, 0, size == 8, (const uint8_t[]){0x8b}, 1, reg, ref);
}

void e_ref_store(struct emitter *e, unsigned size, const struct memref *ref, unsigned reg)
{
    ref_op(e, size == 2 ? 0x66 : 0, size == 8, (const uint8_t[]){0x89}, 1, reg, ref);
}

void e_ref_lea(struct emitter *e, unsigned reg, const struct memref *ref)
{
    ref_op(e, 0, true, (const uint8_t[]){0x8d}, 1, reg, ref);
}

void lower_mem(struct xlate *x, const struct insn *in, const struct insn_mem *m, unsigned addr_size,
               int32_t extra, struct access a, body_fn body)
{
    lower_ea(x, in, m, addr_size, extra, true);
    lower_access(x, in, a, body);
}
