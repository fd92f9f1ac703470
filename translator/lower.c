/*
 * How an access reaches guest memory: the soft form.  Code of the first tier, which has not run often
 * yet, leaves the lookup to a helper that all accesses share (stubs.c):
 *
 *     lea   r10, [operand]              linear address
 *     mov   r11d, site
 *     jmp   access                      comes back with R10 = HVA
 *     op    [r10]
 *
 * The second tier has it inline:
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

void side_mark(struct xlate *x, unsigned kind)
{
    uint64_t off = emit_here(&x->e) - x->tb->entry_ind;
    if (x->n_side >= TB_MAX_SIDE || off >= SIDE_HOST_MAX) {
        x->failed = true;
        return;
    }
    x->side[x->n_side++] = (struct side_entry){
        .host = (uint32_t)off & SIDE_HOST_MAX, .guest_off = x->guest_off, .kind = kind & 31};
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
    return STATE_OFF(offsetof(struct vcpu, seg) + seg * sizeof(struct segment) +
                     offsetof(struct segment, base));
}

/* The offset of a 16- or 32-bit address. It wraps at its size. */
static void legacy_ea(struct xlate *x, const struct insn_mem *m, unsigned addr_size, int32_t extra)
{
    struct emitter *e = &x->e;
    int32_t disp = (int32_t)((uint32_t)m->disp + (uint32_t)extra);
    if (m->base == REG_NONE && m->index == REG_NONE) {
        e_mov_imm(e, R10, addr_size == 2 ? (uint16_t)disp : (uint32_t)disp);
        return;
    }
    if (m->index == REG_NONE && !disp)
        e_mov32_rr(e, R10, m->base);
    else
        e_lea32(e, R10, m->base, m->index, m->scale, disp);
    if (addr_size == 2)
        e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xd2}, 4); /* movzx r10d, r10w */
}

void lower_ea(struct xlate *x, const struct insn *in, const struct insn_mem *m, unsigned addr_size,
              int32_t extra, bool with_segment)
{
    struct emitter *e = &x->e;
    if (is_legacy(x)) {
        legacy_ea(x, m, addr_size, extra);
        return;
    }
    bool seg = with_segment && (m->seg == SEG_FS || m->seg == SEG_GS);
    unsigned base = m->base, index = m->index;
    uint64_t disp = (uint64_t)m->disp + (int64_t)extra;

    if (base == RSP && x->native_stack) {
        int64_t d = (int64_t)disp;
        bool now = index == REG_NONE && d == (int32_t)d;
        stack_value(x, R10, now ? (int32_t)d : 0);
        if (index == R10 || index == R11) {
            e_load_gs(e, R11, GPR_OFF(index));
            x->r11_id = 0;
            index = R11;
        }
        if (!now)
            e_lea(e, R10, R10, index == REG_NONE ? 0xff : index, m->scale, (int32_t)disp);
        if (addr_size == 4)
            e_mov32_rr(e, R10, R10);
    } else if (base == BASE_RIP) {
        uint64_t a = x->cur_rip + in->len + disp;
        if (addr_size == 4) {
            e_mov_imm(e, R10, (uint32_t)a);
            e->reloc = NULL;
        } else {
            e_mov_gva(e, R10, a, RELOC_GVA);
        }
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
            x->r11_id = 0;
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
        x->r11_id = 0;
        e_lea(e, R10, R10, R11, 1, 0);
    }
}

static uint32_t stlb_off(const struct xlate *x, size_t field)
{
    unsigned table = x->key & KEY_USER ? 0 : 1;
    return STATE_OFF(offsetof(struct vcpu, stlb) +
                      table * STLB_SIZE * sizeof(struct soft_tlb_entry) + field);
}

/*
 * R10 = offset becomes the linear address. A limit is compared as a signed 64-bit number, so that
 * neither the operand's size nor a limit of 4 GiB wraps.  Arithmetic flags are dead or saved here.
 */
static void lower_segment(struct xlate *x, struct slow_path *s, unsigned seg, unsigned size)
{
    struct emitter *e = &x->e;
    enum seg_class class = key_seg_class(x->key, seg);
    if (class == SEG_FLAT)
        return;
    if (class == SEG_LIMITED) {
        e_load32_gs(e, R11, STATE_OFF(offsetof(struct vcpu, seg) + seg * sizeof(struct segment) +
                                     offsetof(struct segment, limit)));
        if (size > 1)
            e_lea(e, R11, R11, 0xff, 1, -(int32_t)(size - 1));
        e_bytes(e, (const uint8_t[]){0x4d, 0x39, 0xda}, 3); /* cmp r10, r11 */
        s->seg_jcc = e_jcc_fwd(e, 0xf);                     /* jg */
    }
    e_load_gs(e, R11, seg_base_off(seg));
    e_lea32(e, R10, R10, R11, 1, 0);
}

static void to_stub(struct xlate *x, const struct mem_site *arg, unsigned reg, uint32_t stub)
{
    e_mov_meta(&x->e, reg, arg, RELOC_SITE);
    e_jmp(&x->e, stub);
}

/* MOV m, r and MOV m, imm: all that C code must know to do them, which it does for devices. */
static void note_store(struct mem_site *site, const struct insn *in)
{
    if (in->enc != ENC_LEGACY || in->map != MAP_ONE || (in->flags & (INSN_HIGH8 | INSN_LOCK)))
        return;
    if (in->opcode == 0x88 || in->opcode == 0x89) {
        site->store = STORE_REG;
        site->reg = in->reg;
    } else if (in->opcode == 0xc6 || in->opcode == 0xc7) {
        site->store = STORE_IMM;
        site->imm = in->imm;
    }
}

void lower_access(struct xlate *x, const struct insn *in, struct access a, body_fn body)
{
    struct emitter *e = &x->e;
    struct mem_site *site = cache_meta_alloc(x->r, sizeof *site), *seg_site = NULL;
    bool legacy = is_legacy(x), odd = false;
    x->r11_id = 0;
    a.ref = (struct memref){.base = R10, .index = KEEP, .disp = 0};
    a.scratch = R11;
    if (legacy) { /* code segments cannot be written, but for real mode, where C sees to it */
        enum seg_class class = key_seg_class(x->key, a.seg);
        odd = class == SEG_ODD || (a.seg == SEG_CS && (a.kind & MMU_WRITE)) ||
              (class != SEG_FLAT && ((a.flags & SITE_BOUNCE) || (x->key & KEY_SLOW_MEM)));
        if (odd)
            a.flags |= SITE_SEG;
        else if (class == SEG_LIMITED)
            seg_site = cache_meta_alloc(x->r, sizeof *seg_site);
        if (class == SEG_LIMITED && !odd && !seg_site)
            x->failed = true;
    }
    if (!site || x->n_slow >= TB_MAX_SLOW || x->failed) {
        x->failed = true;
        return;
    }
    *site = (struct mem_site){.rip = x->cur_rip, .tb = x->tb, .size = a.size, .access = a.kind,
                              .flags = a.flags, .seg = a.seg, .heat = x->heat,
                              .index = (uint8_t)x->index};
    if (body == body_copy && a.kind == MMU_WRITE && a.size <= 8)
        note_store(site, in);
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
            side_mark(x, SIDE_XSAVE);
        body(x, in, &a);
        side_mark(x, SIDE_INSIDE);
        to_stub(x, site, R11, x->bt->stub_commit);
        site->resume_done = (uint32_t)emit_here(e);
        return;
    }

    struct slow_path *s = &x->slow[x->n_slow++];
    *s = (struct slow_path){.a = a, .in = in, .body = body, .site = site,
                            .guest_off = x->guest_off};
    if (seg_site) {
        *seg_site = *site;
        seg_site->flags |= SITE_SEG;
        s->seg_site = seg_site;
    }
    bool write = a.kind & MMU_WRITE;
    if ((x->key & KEY_SLOW_MEM) || odd) {
        to_stub(x, site, R11, x->bt->stub_prepare);
    } else if (!x->hot) {
        if (seg_site && a.flags_live)
            lower_save_flags(e);
        if (legacy)
            lower_segment(x, s, a.seg, a.size);
        if (seg_site && a.flags_live)
            lower_restore_flags(e);
        uint32_t stub = a.size > 64 ? x->bt->stub_prepare
                                    : x->bt->stub_access[access_stub_index(
                                          a.flags_live, !(x->key & KEY_USER), write, a.size)];
        to_stub(x, site, R11, stub);
    } else {
        if (a.flags_live)
            lower_save_flags(e);
        if (legacy)
            lower_segment(x, s, a.seg, a.size);
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
    for (unsigned i = 0; i < x->n_miss && !x->failed; i++) {
        x->guest_off = x->miss[i].guest_off;
        side_mark(x, SIDE_INSIDE);
        e_fix_here(e, x->miss[i].jcc);
        to_stub(x, x->miss[i].site, R10, x->bt->stub_wmiss);
    }
    for (unsigned i = 0; i < x->n_slow && !x->failed; i++) {
        struct slow_path *s = &x->slow[i];
        bool write = s->a.kind & MMU_WRITE;
        x->guest_off = s->guest_off;
        x->cur_rip = s->site->rip;
        side_mark(x, SIDE_INSIDE);
        if (s->jcc) {
            e_fix_here(e, s->jcc);
            e_gs_idx(e, true, 0x03, R10, R11, 0, /* undo the subtraction */
                     stlb_off(x, write ? offsetof(struct soft_tlb_entry, wtag)
                                       : offsetof(struct soft_tlb_entry, rtag)));
            if (s->a.flags_live)
                lower_restore_flags(e);
            to_stub(x, s->site, R11,
                    access_as_user(x->key, s->a.size, s->a.flags) ? x->bt->stub_as_user[write]
                                                                  : x->bt->stub_prepare);
        }
        if (s->seg_jcc) {
            e_fix_here(e, s->seg_jcc);
            if (s->a.flags_live)
                lower_restore_flags(e);
            to_stub(x, s->seg_site, R11, x->bt->stub_prepare);
        }
        s->site->resume_bounce = s->site->resume;
        if (write) {
            s->site->resume_bounce = (uint32_t)emit_here(e);
            s->body(x, s->in, &s->a);
            side_mark(x, SIDE_INSIDE);
            to_stub(x, s->site, R11, x->bt->stub_commit);
            s->site->resume_done = s->done;
        }
        if (s->seg_site) {
            s->seg_site->resume = s->site->resume;
            s->seg_site->resume_bounce = s->site->resume_bounce;
            s->seg_site->resume_done = s->site->resume_done;
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

/* Is the value of this register, which an instruction with a memory operand names, elsewhere than in the
 * host's? */
static bool away(const struct xlate *x, const struct insn *in, unsigned reg)
{
    return reg == R10 || reg == R11 ||
           (reg == RSP && x->native_stack && !(in->flags & INSN_HIGH8)); /* else it is AH */
}

static void load_away(struct xlate *x, unsigned host, unsigned reg)
{
    if (reg == RSP)
        stack_value(x, host, 0);
    else
        e_load_gs(&x->e, host, GPR_OFF(reg));
}

static void store_away(struct xlate *x, unsigned reg, unsigned host)
{
    if (reg != RSP) {
        e_store_gs(&x->e, GPR_OFF(reg), host);
        return;
    }
    if (host != R10)
        e_mov_rr(&x->e, R10, host);
    stack_set(x);
}

/*
 * The instruction with its operand at a->ref. The guest's r10/r11 as data go through the scratch
 * register that is left; a second one, or a high-byte register that forbids REX, borrows a register.
 */
void body_copy(struct xlate *x, const struct insn *in, const struct access *a)
{
    struct emitter *e = &x->e;
    unsigned field[2] = {KEEP, KEEP}, reg[2] = {KEEP, KEEP}, n = 0;
    if ((in->flags & INSN_REG_GPR) && away(x, in, in->reg))
        field[n++] = 0;
    if ((in->flags & INSN_VVVV_GPR) && away(x, in, in->vvvv))
        field[n++] = 1;
    unsigned guest[2] = {in->reg, in->vvvv}, host[2] = {a->scratch, a->scratch};
    unsigned spill = KEEP;
    bool same = n == 2 && guest[0] == guest[1];
    struct memref ref = a->ref;

    bool high8 = (in->flags & INSN_HIGH8) && (!ref.flat || ref.base == R10) && ref.base != RSP;
    if ((n == 2 && !same) || high8) {
        spill = spare_reg(in);
        e_store_gs(e, VCPU_OFF(scratch[SCR_SPILL]), spill);
        side_mark(x, SIDE_SPILL + spill);
        if (n == 2)
            host[1] = spill;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned f = field[i];
        reg[f] = host[i];
        if ((in->gpr_read & (1u << guest[f])) && !(same && i))
            load_away(x, host[i], guest[f]);
    }
    if (high8) {
        if (ref.flat)
            e_mov32_rr(e, spill, ref.base);
        else
            e_ref_lea(e, spill, &ref);
        ref = (struct memref){.base = (uint8_t)spill, .index = KEEP, .flat = ref.flat};
    }
    reencode_mem(e, in, &ref, reg[0], reg[1]);
    /* RSP last: that takes both scratch registers. */
    for (unsigned rsp = 0; rsp < 2; rsp++)
        for (unsigned i = 0; i < n; i++) {
            unsigned g = guest[field[i]];
            if ((in->gpr_written & (1u << g)) && !(same && i) && (g == RSP) == rsp)
                store_away(x, g, host[i]);
        }
    if (spill != KEEP) {
        e_load_gs(e, spill, VCPU_OFF(scratch[SCR_SPILL]));
        side_mark(x, SIDE_INSIDE);
    }
}

static void ref_op(struct emitter *e, unsigned prefix, bool w, const uint8_t *opc, unsigned n,
                   unsigned reg, const struct memref *ref)
{
    unsigned index = ref->index;
    unsigned rex = 0x40 | (w ? 8 : 0) | (reg >= 8 ? 4 : 0) | (index != KEEP && index >= 8 ? 2 : 0) |
                   (ref->base != KEEP && ref->base >= 8 ? 1 : 0);
    if (ref->flat)
        e_bytes(e, (const uint8_t[]){0x65, 0x67}, 2);
    if (prefix)
        e8(e, (uint8_t)prefix);
    if (rex != 0x40)
        e8(e, (uint8_t)rex);
    e_bytes(e, opc, n);
    e_modrm_mem(e, reg, ref->base, index, ref->scale ? ref->scale : 1, ref->disp);
}

void e_ref_op(struct emitter *e, bool w, uint8_t opcode, unsigned reg, const struct memref *ref)
{
    ref_op(e, 0, w, &opcode, 1, reg, ref);
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

/* -- The window form ------------------------------------------------------------------------------
 *
 *     checked                            table (flags live, or no telling which window)
 *     rorx  r10, base, 39                rorx  r11, base, 39
 *     cmp   r10b, id                     movzx r11d, r11w
 *     jne   miss                         mov   r11, gs:[delta + r11*8]
 *     mov   r11, gs:[delta + id*8]       op    [base + r11 + disp]
 *     op    [base + r11 + disp]
 *
 * `id` is what the block's entry state, followed through simple instructions, says the address will
 * have.  One check, or one lookup, serves all accesses through the same register as long as it moves by
 * constants: with the displacement that stays within the guard zones.  A miss leaves the block at this
 * instruction; an access that the window cannot serve faults and does the same.
 *
 * Eight bits are all a check looks at: code is short of bytes (docs/performance.md), and an address whose
 * bits above those are others is a multiple of 2^47 off, so that with the window's delta, which is that of
 * an address of the host's user half, it is in the host's kernel half or not canonical.
 */

static uint32_t delta_off(const struct xlate *x, unsigned id)
{
    unsigned view = x->key & KEY_USER ? 0 : 1;
    return STATE_OFF(offsetof(struct vcpu, window_delta) + (view * 65536u + id) * 8u);
}

/* R11 = delta of window `id`. Nothing to do if an earlier access has left it there: deltas only change
 * in C code, and whatever comes back from C says that R11 is lost. */
void lower_load_delta(struct xlate *x, unsigned id)
{
    if (x->r11_id != id + 1) {
        e_load_gs(&x->e, R11, delta_off(x, id));
        e_reloc(&x->e, RELOC_DELTA, 4);
    }
    x->r11_id = id + 1;
}

/* R11 = delta of the window of `reg`'s value, by table. It serves later accesses through a guest
 * register, too, until that has moved far. */
void lower_delta_by_table(struct xlate *x, unsigned reg)
{
    struct emitter *e = &x->e;
    x->r11_id = 0;
    if (reg != R10) {
        for (unsigned r = 0; r < 16; r++)
            x->reg[r].in_r11 = false;
        x->r11_id = R11_OF_REGS;
        x->reg[reg].in_r11 = true;
        x->reg[reg].r11_drift = 0;
    }
    e_rorx(e, R11, reg, WINDOW_SHIFT);
    e_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xdb}, 4); /* movzx r11d, r11w */
    e_gs_idx(e, true, 0x8b, R11, R11, 3, delta_off(x, 0));
}

/* jne to where this access misses what was expected of it, or (ahead) the block does for its sake. */
static void unless_equal(struct xlate *x, unsigned index, bool ahead)
{
    struct mem_site *site = cache_meta_alloc(x->r, sizeof *site);
    if (!site || x->n_miss >= TB_MAX_SLOW) {
        x->failed = true;
        return;
    }
    *site = (struct mem_site){.rip = x->cur_rip, .tb = x->tb, .index = (uint8_t)index,
                              .flags = ahead ? SITE_AHEAD : 0};
    x->miss[x->n_miss].jcc = e_jcc_fwd(&x->e, CC_NE);
    x->miss[x->n_miss].site = site;
    x->miss[x->n_miss++].guest_off = x->guest_off;
}

/* Compares with a window's id. Uses R10, or R11 if that is reg. */
static void compare_id(struct xlate *x, unsigned reg, unsigned id)
{
    unsigned tmp = reg == R10 ? R11 : R10;
    if (tmp == R11)
        x->r11_id = 0;
    e_rorx(&x->e, tmp, reg, WINDOW_SHIFT);
    e_bytes(&x->e, (const uint8_t[]){0x41, 0x80, (uint8_t)(0xf8 | (tmp & 7)), (uint8_t)id}, 4);
    e_reloc(&x->e, RELOC_ID, 1);
}

/* R11 = delta, having checked that `reg` (not R11) is in window id. Uses R10 unless reg is R10. */
static bool delta_checked(struct xlate *x, unsigned reg, unsigned id)
{
    compare_id(x, reg, id);
    unless_equal(x, x->index, false);
    if (!x->failed)
        lower_load_delta(x, id);
    return !x->failed;
}

static void set_checked(struct reg_guess *g, unsigned id)
{
    g->checked = true;
    g->id = (uint16_t)id;
    g->away = 0;
}

void lower_check_ahead(struct xlate *x, unsigned reg, unsigned id, unsigned at)
{
    compare_id(x, reg, id);
    unless_equal(x, at, true);
    set_checked(&x->reg[reg], id);
    x->reg[reg].away = KNOWN_AWAY; /* as whoever comes behind the check has it */
}

bool lower_soft_site(const struct xlate *x)
{
    const struct site_info *info = site_lookup(x->v->engine, x->cur_rip);
    if (info->rip == x->cur_rip && info->soft)
        x->tb->soft_form |= 1ull << x->index; /* bt_soft_miss() goes by it */
    return x->tb->soft_form >> x->index & 1;
}

/* Will the body need a register that the reference occupies? */
static bool needs_scratch(const struct xlate *x, const struct insn *in, body_fn body)
{
    return body != body_copy || ((in->flags & INSN_REG_GPR) && away(x, in, in->reg)) ||
           ((in->flags & INSN_VVVV_GPR) && away(x, in, in->vvvv));
}

static bool guess_ea(const struct xlate *x, const struct insn *in, const struct insn_mem *m,
                     unsigned addr_size, uint64_t *ea)
{
    uint64_t a = (uint64_t)m->disp;
    if (m->base == BASE_RIP)
        a += x->cur_rip + in->len;
    else if (m->base != REG_NONE) {
        if (!x->reg[m->base].known)
            return false;
        a += x->reg[m->base].value;
    }
    if (m->index != REG_NONE && !(in->flags & INSN_VSIB)) {
        if (!x->reg[m->index].known)
            return false;
        a += x->reg[m->index].value * m->scale;
    }
    if (addr_size == 4)
        a = (uint32_t)a;
    if (m->seg == SEG_FS || m->seg == SEG_GS)
        a += x->v->seg[m->seg].base;
    *ea = a;
    return true;
}

/* The body, and whether R11 comes out of it as it went in. */
static void window_body(struct xlate *x, const struct insn *in, const struct access *a, body_fn body)
{
    body(x, in, a);
    if (a->scratch == R11 || !lower_keeps_r11(body))
        x->r11_id = 0;
    x->r11_kept = true;
}

enum base_result { BASE_DONE, BASE_SOFT, BASE_FAILED };

/* Where an address of user code lies of which nothing is known: where the last one did, or the stack, near
 * which programs map most of what they allocate.  If that is wrong too often, the site uses the table. */
static bool likely_window(const struct xlate *x, unsigned *id)
{
    if (!(x->key & KEY_USER))
        return false;
    bool last = x->r11_id && x->r11_id <= 0x10000;
    *id = last ? x->r11_id - 1 : (unsigned)(x->v->gpr[RSP] >> WINDOW_SHIFT) & 0xffff;
    return window_id_ok(true, *id);
}

/* R11 = delta of the window of a guest register's value, as cheaply as can be; or no window will do. */
static enum base_result delta_of_base(struct xlate *x, unsigned reg, bool table)
{
    struct reg_guess *g = &x->reg[reg];
    unsigned id = (unsigned)(g->value >> WINDOW_SHIFT) & 0xffff;
    bool known = g->known;
    if (x->r11_id == R11_OF_REGS && g->in_r11)
        return BASE_DONE; /* a table lookup for an earlier access */
    if (!known && !table && !g->checked)
        known = likely_window(x, &id);
    if (g->checked) {
        lower_load_delta(x, g->id);
    } else if (known && !window_id_ok(x->key & KEY_USER, id)) {
        return BASE_SOFT;
    } else if (table || !known) {
        lower_delta_by_table(x, reg);
    } else {
        if (!delta_checked(x, reg, id))
            return BASE_FAILED;
        set_checked(g, id);
    }
    return BASE_DONE;
}

void lower_delta(struct xlate *x, unsigned reg)
{
    delta_of_base(x, reg, true);
}

static bool in_host_register(const struct xlate *x, unsigned reg)
{
    return reg < 16 && reg != R10 && reg != R11 && !(reg == RSP && x->native_stack);
}

/* The operand is at R10 + R11, address and delta. */
static void refer_to_sum(struct xlate *x, const struct insn *in, struct access *a, body_fn body)
{
    if (needs_scratch(x, in, body)) {
        e_lea(&x->e, R10, R10, R11, 1, 0);
        a->ref = (struct memref){.base = R10, .index = KEEP, .disp = 0};
        a->scratch = R11;
    } else {
        a->ref = (struct memref){.base = R10, .index = R11, .disp = 0};
    }
}

/* Is a register's value known, or guessed, to be no more than a signed number of 32 bits? */
bool lower_small(const struct xlate *x, unsigned reg)
{
    const struct reg_guess *g = &x->reg[reg];
    return g->ext || (g->known && (int64_t)g->value == (int32_t)g->value);
}

/*
 * Is it no more than that, by what is known, or from now on by a check?  That is cheaper than a check of the
 * sum that the register is part of, for R11 stays what it is, and the pointer is likely to have been
 * checked.  Uses R10 and the flags.
 */
static bool bounded(struct xlate *x, unsigned reg, bool table)
{
    struct emitter *e = &x->e;
    const uint8_t rex = (uint8_t)(0x4c | reg >> 3), modrm = (uint8_t)(0xd0 | (reg & 7));
    if (x->reg[reg].ext)
        return true;
    if (table || !lower_small(x, reg))
        return false;
    e_bytes(e, (const uint8_t[]){rex, 0x63, modrm}, 3); /* movsxd r10, reg32 */
    e_bytes(e, (const uint8_t[]){rex, 0x39, modrm}, 3); /* cmp reg, r10 */
    unless_equal(x, x->index, false);
    x->reg[reg].ext = EXT_SIGN;
    return true;
}

/*
 * An index that is the value of 32 bits cannot leave the guards of the window that the rest of the
 * address is in (up to 34 GiB, and 1 GiB of drift), so only that is checked: nothing at all if it is a
 * constant.  True if that is how it is done; R11 is the delta and a->ref what the body is to use.
 */
static bool lower_bounded_index(struct xlate *x, const struct insn *in, const struct insn_mem *m,
                                int32_t disp, bool table, struct access *a, body_fn body,
                                enum base_result *result)
{
    struct emitter *e = &x->e;
    unsigned base = m->base, index = m->index;
    if (!in_host_register(x, index) || (in->flags & INSN_VSIB))
        return false;
    *result = BASE_DONE;
    if (base == REG_NONE) {
        unsigned id = (unsigned)((uint64_t)(int64_t)disp >> WINDOW_SHIFT) & 0xffff;
        if (!window_id_ok(x->key & KEY_USER, id) || !bounded(x, index, table))
            return false;
        lower_load_delta(x, id);
        e->reloc = NULL; /* as above */
        a->ref = (struct memref){
            .base = R11, .index = (uint8_t)index, .disp = disp, .scale = m->scale};
        return true;
    }
    if (!in_host_register(x, base))
        return false;
    if (m->scale == 1 && !x->reg[index].ext &&
        (x->reg[base].ext || (!lower_small(x, index) && lower_small(x, base)))) {
        base = m->index; /* which of the two is the pointer is not for the encoding to say */
        index = m->base;
    }
    if (!bounded(x, index, table))
        return false;
    *result = delta_of_base(x, base, table);
    if (*result != BASE_DONE)
        return true;
    /* The index goes into the operand: it is what is computed last, as a rule. */
    e_lea(e, R10, base, R11, 1, 0);
    if (needs_scratch(x, in, body))
        a->scratch = R11;
    a->ref = (struct memref){
        .base = R10, .index = (uint8_t)index, .scale = m->scale, .disp = disp};
    return true;
}

/* [rsp + disp], [rsp + index + disp] as they are: native_stack.c. */
static bool lower_stack(struct xlate *x, const struct insn *in, const struct insn_mem *m,
                        unsigned addr_size, int32_t extra, struct access a, body_fn body)
{
    int64_t disp = m->disp + extra, up = 0, down = 0;
    if (m->base != RSP || m->seg == SEG_FS || m->seg == SEG_GS || addr_size != 8 ||
        disp != (int32_t)disp || (a.flags & SITE_BOUNCE) || !stack_direct(x))
        return false;
    if (m->index != REG_NONE) {
        if (!in_host_register(x, m->index) || (in->flags & INSN_VSIB) || !x->reg[m->index].ext)
            return false;
        up = (int64_t)m->scale << 32;
        down = x->reg[m->index].ext == EXT_SIGN ? up / 2 : 0;
    }
    stack_reach(x, disp - down, disp + up + a.size);
    a.scratch = R10;
    a.ref = (struct memref){.base = RSP,
                            .index = m->index == REG_NONE ? KEEP : m->index,
                            .scale = m->scale,
                            .disp = (int32_t)disp};
    window_body(x, in, &a, body);
    if (m->index == REG_NONE && !(a.flags & SITE_MASKED))
        stack_touched(x, (int32_t)disp);
    return true;
}

static bool lower_window(struct xlate *x, const struct insn *in, const struct insn_mem *m,
                         unsigned addr_size, int32_t extra, struct access a, body_fn body)
{
    struct emitter *e = &x->e;
    bool user = x->key & KEY_USER;
    if (!x->window || (a.flags & SITE_BOUNCE) || (x->key & KEY_SLOW_MEM) || lower_soft_site(x))
        return false;
    bool table = a.flags_live || (x->tb->table_form >> x->index & 1);
    bool seg = m->seg == SEG_FS || m->seg == SEG_GS;
    int64_t disp = m->disp + extra;
    a.scratch = R10;

    if (!seg && (m->base == BASE_RIP || (m->base == REG_NONE && m->index == REG_NONE))) {
        uint64_t ea = (uint64_t)disp + (m->base == BASE_RIP ? x->cur_rip + in->len : 0);
        if (addr_size == 4)
            ea = (uint32_t)ea;
        if (addr_size == 4 || m->base != BASE_RIP)
            e->reloc = NULL; /* its window is not one that moves with the block */
        unsigned id = (unsigned)(ea >> WINDOW_SHIFT) & 0xffff;
        if (!mmu_canonical(ea) || !window_id_ok(user, id))
            return false;
        lower_load_delta(x, id);
        if ((int64_t)ea == (int32_t)ea) {
            a.ref = (struct memref){.base = R11, .index = KEEP, .disp = (int32_t)ea};
        } else {
            e_mov_gva(e, R10, ea, RELOC_EA);
            if (needs_scratch(x, in, body)) {
                e_lea(e, R11, R10, R11, 1, 0);
                x->r11_id = 0;
                a.ref = (struct memref){.base = R11, .index = KEEP, .disp = 0};
            } else {
                a.ref = (struct memref){.base = R10, .index = R11, .disp = 0};
            }
        }
        window_body(x, in, &a, body);
        return true;
    }
    if (!seg && m->index == REG_NONE && in_host_register(x, m->base) && addr_size == 8 &&
        disp == (int32_t)disp) {
        enum base_result r = delta_of_base(x, m->base, table);
        if (r != BASE_DONE)
            return r == BASE_FAILED;
        struct reg_guess *g = &x->reg[m->base];
        bool proof = g->checked && x->r11_id == g->id + 1u && !(a.flags & SITE_MASKED);
        a.ref = (struct memref){.base = m->base, .index = R11, .disp = (int32_t)disp};
        window_body(x, in, &a, body);
        /* It has faulted or was in the window, for there is nothing else in reach. */
        uint64_t d = (uint64_t)(disp < 0 ? -disp : disp);
        if (proof && d < g->away)
            g->away = (uint32_t)d;
        return true;
    }
    enum base_result r;
    if (!seg && addr_size == 8 && disp == (int32_t)disp &&
        lower_bounded_index(x, in, m, (int32_t)disp, table, &a, body, &r)) {
        if (r == BASE_DONE)
            window_body(x, in, &a, body);
        return r != BASE_SOFT;
    }
    uint64_t ea = 0;
    bool known = guess_ea(x, in, m, addr_size, &ea);
    unsigned id = (unsigned)(ea >> WINDOW_SHIFT) & 0xffff;
    if (known && !window_id_ok(user, id))
        return false;
    lower_ea(x, in, m, addr_size, extra, true);
    if (table || !known)
        lower_delta_by_table(x, R10);
    else if (!delta_checked(x, R10, id))
        return true;
    refer_to_sum(x, in, &a, body);
    window_body(x, in, &a, body);
    return true;
}

bool lower_plain_flat(const struct xlate *x, unsigned seg)
{
    return x->window && !(x->key & KEY_SLOW_MEM) && key_seg_class(x->key, seg) == SEG_FLAT &&
           !lower_soft_site(x);
}

/*
 * A segment base other than 0 costs Intel's CPUs two cycles of a load and every other store
 * (docs/performance.md).  So an address of one register goes by R11 = the window's base instead:
 *
 *     mov   r11, gs:[flat_base]         once, as long as R11 lasts
 *     op    [base + r11 + disp]
 *
 * It does not wrap at 4 GiB: what does, reaches memory that is never there, up to 38 GiB above the
 * window, or between the window and the state below it (FLAT_BELOW); an instruction that does so
 * repeatedly is translated with the GS base (xlate.tb->table_form).  This relies on the upper halves of
 * the eight registers being 0, which flat_use() and the encodings of 32-bit code see to.
 *
 * The stack stays with the GS base: an index would keep the CPU from passing what was pushed to its
 * loads without going through memory.
 */
static bool by_flat_base(const struct xlate *x, const struct insn *in, const struct insn_mem *m,
                         int32_t disp)
{
    const struct vcpu *v = x->v;
    bool one = (m->base != REG_NONE) != (m->index != REG_NONE);
    if (!one || (in->flags & (INSN_HIGH8 | INSN_VSIB)) || disp < -(int32_t)FLAT_BELOW ||
        (x->tb->table_form >> x->index & 1) || m->base == RSP)
        return false;
    if (x->bt->cfg.chaos && (x->cur_rip & 2))
        return false;
    return m->base != RBP || (uint32_t)(v->gpr[RBP] - v->gpr[RSP]) > 1 << 20;
}

/* A load by two registers, one of them and the base summed in R10: an instruction more and a cycle less,
 * which is for values that addresses or other integers are made of.  The index, which is computed last as a
 * rule, does not pass that sum.  With it times 8 what would wrap is up to 38 GiB above the window. */
static bool sum_by_flat_base(const struct xlate *x, const struct insn *in, const struct insn_mem *m,
                             int32_t disp, const struct access *a, body_fn body)
{
    return body == body_copy && !a->kind && in->fpu == FPU_NONE && m->base != REG_NONE &&
           m->index != REG_NONE && m->base != RSP && !(in->flags & (INSN_HIGH8 | INSN_VSIB)) &&
           disp >= -(int32_t)FLAT_BELOW && !(x->tb->table_form >> x->index & 1) &&
           !(x->bt->cfg.chaos && (x->cur_rip & 2));
}

void lower_load_flat_base(struct xlate *x)
{
    if (x->r11_id != R11_FLAT)
        e_load_gs(&x->e, R11, VCPU_OFF(bt.flat_base));
    x->r11_id = R11_FLAT;
}

/*
 * 16- and 32-bit code: guest memory is at the GS base, and a 32-bit address wraps as the guest's
 * does, so a flat segment's operand is the guest's own with two prefixes.
 */
static bool lower_flat(struct xlate *x, const struct insn *in, const struct insn_mem *m,
                       unsigned addr_size, int32_t extra, struct access a, body_fn body)
{
    enum seg_class class = key_seg_class(x->key, m->seg);
    if (!x->window || (a.flags & SITE_BOUNCE) || (x->key & KEY_SLOW_MEM) || in->op == OP_MASKMOV ||
        class == SEG_ODD || (m->seg == SEG_CS && (a.kind & MMU_WRITE)) || lower_soft_site(x))
        return false;
    if (class == SEG_FLAT && addr_size == 4) {
        int32_t disp = (int32_t)((uint32_t)m->disp + (uint32_t)extra);
        if (m->base == RSP)
            disp = (int32_t)((uint32_t)disp + (uint32_t)x->esp_off);
        a.scratch = R10;
        a.ref = (struct memref){m->base, m->index, disp, m->scale, true};
        if (by_flat_base(x, in, m, disp)) {
            lower_load_flat_base(x);
            a.ref = m->index == REG_NONE
                        ? (struct memref){.base = m->base, .index = R11, .disp = disp}
                        : (struct memref){R11, m->index, disp, m->scale, false};
        } else if (sum_by_flat_base(x, in, m, disp, &a, body)) {
            lower_load_flat_base(x);
            e_lea(&x->e, R10, m->base, R11, 1, 0);
            a.ref = (struct memref){R10, m->index, disp, m->scale, false};
        }
        window_body(x, in, &a, body);
        return true;
    }
    x->r11_id = 0;
    if (class == SEG_LIMITED && a.flags_live)
        return false;
    legacy_ea(x, m, addr_size, extra);
    if (class == SEG_LIMITED) {
        struct slow_path limit = {0};
        struct mem_site *site = cache_meta_alloc(x->r, sizeof *site);
        if (!site || x->n_miss >= TB_MAX_SLOW) {
            x->failed = true;
            return true;
        }
        *site = (struct mem_site){.rip = x->cur_rip, .tb = x->tb, .index = x->index};
        lower_segment(x, &limit, m->seg, a.size);
        x->miss[x->n_miss].jcc = limit.seg_jcc;
        x->miss[x->n_miss].site = site;
        x->miss[x->n_miss++].guest_off = x->guest_off;
    } else {
        lower_segment(x, NULL, m->seg, a.size);
    }
    a.scratch = R11;
    a.ref = (struct memref){.base = R10, .index = KEEP, .flat = true};
    body(x, in, &a);
    return true;
}

void lower_mem(struct xlate *x, const struct insn *in, const struct insn_mem *m, unsigned addr_size,
               int32_t extra, struct access a, body_fn body)
{
    if (is_legacy(x)) {
        if (lower_flat(x, in, m, addr_size, extra, a, body))
            return;
        lower_ea(x, in, m, addr_size, extra, true);
        a.seg = m->seg;
        lower_access(x, in, a, body);
        return;
    }
    if (lower_stack(x, in, m, addr_size, extra, a, body) ||
        lower_window(x, in, m, addr_size, extra, a, body))
        return;
    lower_ea(x, in, m, addr_size, extra, true);
    lower_access(x, in, a, body);
    lower_forget_checks(x); /* its slow path comes back from C */
}

/* -- Following registers -------------------------------------------------------------------------- */

/* What guest memory holds now: only ever used to predict. */
static bool guess_load(const struct xlate *x, uint64_t ea, uint64_t *value)
{
    struct mmu_xlat t;
    if (!mmu_canonical(ea) || (ea & (GUEST_PAGE_SIZE - 1)) > GUEST_PAGE_SIZE - 8 ||
        mmu_peek(x->v, ea, &t) < 0)
        return false;
    const uint8_t *p = ram_read_ptr(x->v->ram, t.gpa, 8);
    if (!p)
        return false;
    __builtin_memcpy(value, p, 8);
    return true;
}

/* The same for what is known as a bound. */
static bool stray(uint32_t *away, int64_t by)
{
    if (by > 1 << 30 || by < -(1 << 30) || *away + (uint64_t)(by < 0 ? -by : by) > 1u << 30)
        return false;
    *away += (uint32_t)(by < 0 ? -by : by);
    return true;
}

static bool move(int32_t *distance, int64_t by)
{
    int64_t d = *distance + by;
    if (d > 1 << 30 || d < -(1 << 30))
        return false;
    *distance = (int32_t)d;
    return true;
}

/* The register moved by a constant: the check still holds, within bounds. */
static void drift(struct xlate *x, unsigned r, int64_t by)
{
    struct reg_guess *g = &x->reg[r];
    g->value += (uint64_t)by;
    g->ext = EXT_NONE;
    g->checked = g->checked && stray(&g->away, by);
    g->in_r11 = g->in_r11 && move(&g->r11_drift, by);
}

static void set_guess(struct xlate *x, unsigned r, bool known, uint64_t value)
{
    x->reg[r] = (struct reg_guess){.known = known, .value = value};
}

/* How an instruction that writes one general register extends it, where that is certain. */
static enum extension extension_of(const struct insn *in)
{
    unsigned ext = in->modrm >> 3 & 7;
    if ((in->op != OP_COPY && in->op != OP_LEA) || in->enc != ENC_LEGACY)
        return EXT_NONE;
    if (in->map == MAP_0F) {
        if (in->opcode == 0xb6 || in->opcode == 0xb7) /* MOVZX */
            return in->op_size >= 4 ? EXT_ZERO : EXT_NONE;
        if (in->opcode == 0xbe || in->opcode == 0xbf) /* MOVSX */
            return in->op_size == 8 ? EXT_SIGN : in->op_size == 4 ? EXT_ZERO : EXT_NONE;
        bool plain = (in->opcode & 0xf0) == 0x40 || in->opcode == 0xaf; /* CMOV, IMUL */
        return plain && in->op_size == 4 ? EXT_ZERO : EXT_NONE;
    }
    if (in->map != MAP_ONE)
        return EXT_NONE;
    if (in->op_size == 8 && (in->opcode == 0x63 || in->opcode == 0x98)) /* MOVSXD, CDQE */
        return EXT_SIGN;
    if (in->op_size != 4)
        return EXT_NONE;
    switch (in->opcode) {
    case 0x01: case 0x03: case 0x09: case 0x0b: case 0x11: case 0x13: case 0x19: case 0x1b:
    case 0x21: case 0x23: case 0x29: case 0x2b: case 0x31: case 0x33: /* ADD ... XOR */
    case 0x05: case 0x0d: case 0x15: case 0x1d: case 0x25: case 0x2d: case 0x35:
    case 0x69: case 0x6b: case 0x81: case 0x83: case 0x89: case 0x8b: case 0x8d:
    case 0xb8: case 0xb9: case 0xba: case 0xbb: case 0xbc: case 0xbd: case 0xbe: case 0xbf:
    case 0xc7: case 0xd1:
        return EXT_ZERO;
    case 0xc1: /* by 0 nothing may be written */
        return in->imm & 31 ? EXT_ZERO : EXT_NONE;
    case 0xf7: /* NOT, NEG */
        return ext == 2 || ext == 3 ? EXT_ZERO : EXT_NONE;
    case 0xff: /* INC, DEC */
        return ext < 2 ? EXT_ZERO : EXT_NONE;
    default:
        return EXT_NONE;
    }
}

bool lower_extends(const struct insn *in)
{
    return in->gpr_written && !(in->gpr_written & (in->gpr_written - 1)) && extension_of(in);
}

static void track(struct xlate *x, const struct insn *in)
{
    uint64_t ea = 0, value = 0;
    bool w64 = in->op_size == 8 && in->enc == ENC_LEGACY && in->map == MAP_ONE;
    bool rr = in->mod == 3;
    uint16_t written = in->gpr_written;
    switch (in->op) {
    case OP_PUSH: case OP_PUSHF: case OP_PUSH_SEG:
        drift(x, RSP, -(int64_t)in->op_size);
        return;
    case OP_POP:
        if (in->stack_operand == STK_REG && in->rm != RSP) {
            bool ok = x->reg[RSP].known && guess_load(x, x->reg[RSP].value, &value);
            set_guess(x, in->rm, ok, value);
        } else if (in->stack_operand == STK_REG) {
            set_guess(x, RSP, false, 0);
            return;
        }
        drift(x, RSP, in->op_size);
        return;
    case OP_LEAVE:
        x->reg[RSP] = x->reg[RBP];
        drift(x, RSP, in->op_size);
        set_guess(x, RBP, x->reg[RSP].known && guess_load(x, x->reg[RSP].value - 8, &value), value);
        return;
    case OP_LEA:
        if (in->op_size == 8 && in->addr_size == 8) {
            struct insn_mem m = in->mem;
            m.seg = SEG_DS;
            if (m.index == REG_NONE && m.base == in->reg) {
                drift(x, in->reg, m.disp);
                return;
            }
            if (m.index == REG_NONE && m.base < 16 && m.disp == (int32_t)m.disp) {
                x->reg[in->reg] = x->reg[m.base];
                drift(x, in->reg, m.disp);
                return;
            }
            bool ok = guess_ea(x, in, &m, 8, &ea);
            set_guess(x, in->reg, ok, ea);
            return;
        }
        break;
    case OP_COPY:
        if (!w64)
            break;
        if (in->opcode == 0x8b && (in->flags & INSN_MEM)) {
            bool ok = guess_ea(x, in, &in->mem, in->addr_size, &ea) && guess_load(x, ea, &value);
            set_guess(x, in->reg, ok, value);
            return;
        }
        if ((in->opcode == 0x89 || in->opcode == 0x8b) && rr) {
            unsigned dst = in->opcode == 0x89 ? in->rm : in->reg;
            x->reg[dst] = x->reg[in->opcode == 0x89 ? in->reg : in->rm];
            return;
        }
        if ((in->opcode == 0x83 || in->opcode == 0x81) && rr) {
            unsigned ext = in->modrm >> 3 & 7;
            if (ext == 0 || ext == 5) {
                drift(x, in->rm, ext ? -in->imm : in->imm);
                return;
            }
            if (ext == 7)
                return; /* CMP */
            if (ext == 4) { /* AND: alignment keeps the window */
                x->reg[in->rm].value &= (uint64_t)in->imm;
                x->reg[in->rm].checked = x->reg[in->rm].in_r11 = false;
                x->reg[in->rm].ext = in->imm >= 0 ? EXT_ZERO : EXT_NONE;
                return;
            }
        }
        if (in->opcode == 0xff && rr && (in->modrm >> 3 & 7) < 2) {
            drift(x, in->rm, in->modrm >> 3 & 1 ? -1 : 1);
            return;
        }
        if ((in->opcode & 0xf8) == 0xb8 || in->opcode == 0xc7) {
            if (in->opcode == 0xc7 && !rr)
                return;
            set_guess(x, in->rm, true, (uint64_t)in->imm);
            return;
        }
        if (rr && (in->opcode == 0x01 || in->opcode == 0x03 || in->opcode == 0x29 ||
                   in->opcode == 0x2b)) {
            unsigned dst = in->opcode & 2 ? in->reg : in->rm, src = in->opcode & 2 ? in->rm : in->reg;
            uint64_t by = x->reg[src].known ? x->reg[src].value : 0;
            x->reg[dst].value += in->opcode & 0x20 ? -by : by;
            x->reg[dst].checked = x->reg[dst].in_r11 = false;
            x->reg[dst].ext = EXT_NONE;
            return;
        }
        break;
    }
    for (unsigned r = 0; r < 16; r++)
        if (written >> r & 1)
            set_guess(x, r, false, 0);
    if (written && !(written & (written - 1)))
        x->reg[__builtin_ctz(written)].ext = extension_of(in);
}

void lower_track(struct xlate *x, const struct insn *in)
{
    track(x, in);
    if (x->native_stack) /* nothing is checked by RSP, and what moves from there is a copy */
        x->reg[RSP].checked = x->reg[RSP].in_r11 = false;
}

void lower_forget_checks(struct xlate *x)
{
    for (unsigned r = 0; r < 16; r++)
        x->reg[r].checked = false;
}
