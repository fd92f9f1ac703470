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
#include "cpu/system.h"
#include "mmu/mmu.h"
#include "translator/xstate.h"

static void copy_bytes(void *dst, const void *src, unsigned n)
{
    volatile uint8_t *d = dst;
    const volatile uint8_t *s = src;
    for (unsigned i = 0; i < n; i++)
        d[i] = s[i];
}

/* -- Masked operands ------------------------------------------------------------------------------ */

static uint64_t read_opmask(unsigned k)
{
    uint64_t m = ~0ull;
    switch (k) { /* the guest runs EVEX code, so the host has the registers */
    case 1: __asm__ volatile("kmovq %%k1, %0" : "=r"(m)); break;
    case 2: __asm__ volatile("kmovq %%k2, %0" : "=r"(m)); break;
    case 3: __asm__ volatile("kmovq %%k3, %0" : "=r"(m)); break;
    case 4: __asm__ volatile("kmovq %%k4, %0" : "=r"(m)); break;
    case 5: __asm__ volatile("kmovq %%k5, %0" : "=r"(m)); break;
    case 6: __asm__ volatile("kmovq %%k6, %0" : "=r"(m)); break;
    case 7: __asm__ volatile("kmovq %%k7, %0" : "=r"(m)); break;
    }
    return m;
}

/* Does the instruction touch any byte of its operand in [lo, hi)? */
static bool masked_touches(struct vcpu *v, const struct insn *in, unsigned lo, unsigned hi)
{
    if (in->enc == ENC_EVEX) {
        bool w = in->raw[in->prefix_len + 2] & 0x80;
        unsigned pp = in->raw[in->prefix_len + 2] & 3;
        bool bw = (in->map == MAP_0F && pp == 3 && (in->opcode == 0x6f || in->opcode == 0x7f)) ||
                  (in->map == MAP_0F38 && (in->opcode == 0x62 || in->opcode == 0x63));
        unsigned elem = bw ? (w ? 2 : 1) : (w ? 8 : 4);
        unsigned lanes = in->vec_len / elem;
        uint64_t mask = read_opmask(in->evex_mask);
        if (lanes < 64)
            mask &= (1ull << lanes) - 1;
        bool packed = in->map == MAP_0F38 && (in->opcode == 0x62 || in->opcode == 0x63 ||
                                              (in->opcode >= 0x88 && in->opcode <= 0x8b));
        if (packed) /* compress/expand: the operand is contiguous */
            return lo < (unsigned)__builtin_popcountll(mask) * elem;
        if (in->mem.size < in->vec_len) {
            if (in->mem.size <= elem)
                return mask != 0; /* broadcast or scalar */
            elem = in->mem.size / lanes ? in->mem.size / lanes : 1;
        }
        for (unsigned i = 0; i < lanes; i++)
            if ((mask >> i & 1) && i * elem < hi && (i + 1) * elem > lo)
                return true;
        return false;
    }
    /* VMASKMOVPS/PD, VPMASKMOVD/Q: sign bits of the vector register in vvvv. */
    vcpu_fp_save(v);
    bool w = in->raw[in->prefix_len + 2] & 0x80;
    unsigned elem = (in->opcode & 0xf0) == 0x80 ? (w ? 8 : 4) : (in->opcode & 1 ? 8 : 4);
    for (unsigned i = 0; i < in->vec_len / elem; i++) {
        unsigned byte = (i + 1) * elem - 1;
        const uint8_t *reg = byte < 16 ? v->fp_area + 160 + 16 * in->vvvv + byte
                                       : v->fp_area + 576 + 16 * in->vvvv + (byte - 16);
        if ((*reg & 0x80) && i * elem < hi && (i + 1) * elem > lo)
            return true;
    }
    return false;
}

/* -- Prepare -------------------------------------------------------------------------------------- */

static uint64_t resume_at(struct vcpu *v, uint64_t target)
{
    if (v->fp_saved)
        vcpu_fp_restore(v);
    return target;
}

static uint64_t address_fault(struct vcpu *v, const struct mem_site *s)
{
    cpu_raise_code(v, s->flags & SITE_STACK ? EXC_SS : EXC_GP, 0);
    return 0;
}

/* Splits the operand at the page boundary, translates every piece, and only then reads it. */
static uint64_t bounce(struct vcpu *v, struct mem_site *s, uint64_t gva, unsigned size)
{
    struct engine_vcpu *ev = v->engine;
    bool write = s->access & MMU_WRITE, read = !write || (s->access & MMU_RMW);
    unsigned first = GUEST_PAGE_SIZE - (unsigned)(gva & (GUEST_PAGE_SIZE - 1));
    unsigned len[2] = {size < first ? size : first, 0};
    void *host[2] = {0};
    uint8_t *buf = v->bounce + 64 + (gva & 63);
    len[1] = size - len[0];
    ev->bt->stats.bounces++;
    for (unsigned i = 0, off = 0; i < 2; off += len[i], i++) {
        ev->bounce.len[i] = (uint16_t)len[i];
        ev->bounce.skip[i] = false;
        if (!len[i])
            continue;
        int t = mmu_translate(v, gva + off, s->access, s->flags & SITE_STACK, &host[i],
                              &ev->bounce.gpa[i]);
        if (t < 0) {
            if (!(s->flags & SITE_MASKED) || masked_touches(v, s->insn, off, off + len[i]))
                return 0;
            ev->bounce.skip[i] = true;
        }
        ev->bounce.ram[i] = t != MMU_MMIO;
    }
    for (unsigned i = 0, off = 0; i < 2 && read; off += len[i], i++) {
        if (!len[i])
            continue;
        if (ev->bounce.skip[i]) {
            for (unsigned k = 0; k < len[i]; k++)
                buf[off + k] = 0;
        } else if (ev->bounce.ram[i]) {
            copy_bytes(buf + off, host[i], len[i]);
        } else {
            ev->bt->stats.mmio++;
            mmu_mmio_read(v, ev->bounce.gpa[i], buf + off, len[i]);
        }
    }
    ev->bounce.active = write;
    ev->bounce.src = buf;
    v->bt.r10 = (uint64_t)(uintptr_t)buf;
    return resume_at(v, s->resume_bounce);
}

uint64_t bt_mem_prepare(struct vcpu *v, struct mem_site *s)
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
        size = xstate_size(rfbm, s->insn->op == OP_XSAVEC);
    }
    if (!mmu_canonical(gva) || !mmu_canonical(gva + size - 1))
        return address_fault(v, s);
    /* The instruction would find out by itself, but only once its pages are there. */
    if ((s->flags & SITE_ALIGNED) && (gva & (size > 64 ? 15 : size - 1))) {
        cpu_raise_code(v, EXC_GP, 0);
        return 0;
    }
    if (ev->watch) {
        if (ev->watch & WATCH_ALIGN && size <= 8 && (gva & (size - 1))) {
            cpu_raise_code(v, EXC_AC, 0);
            return 0;
        }
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
        uint64_t r = bounce(v, s, gva, size);
        if (!r)
            return 0;
        if (s->insn->op == OP_XRSTOR) {
            uint64_t bv, comp;
            __builtin_memcpy(&bv, ev->bounce.src + 512, 8);
            __builtin_memcpy(&comp, ev->bounce.src + 520, 8);
            if ((bv & ~v->xcr0) || ((comp & ~(1ull << 63)) & ~v->xcr0)) {
                cpu_raise_code(v, EXC_GP, 0);
                return 0;
            }
        }
        v->gpr[RAX] = (uint32_t)(v->gpr[RAX] & v->xcr0);
        v->gpr[RDX] = (uint32_t)(v->gpr[RDX] & (v->xcr0 >> 32));
        return r;
    }
    if ((s->flags & SITE_BOUNCE) || (gva & (GUEST_PAGE_SIZE - 1)) + size > GUEST_PAGE_SIZE)
        return bounce(v, s, gva, size);

    void *host;
    uint64_t gpa;
    switch (mmu_translate(v, gva, s->access, s->flags & SITE_STACK, &host, &gpa)) {
    case MMU_RAM_CODE:
        ram_before_write(v->ram, gpa, size);
        break;
    case MMU_RAM:
        ev->bt->stats.tlb_fills++;
        break;
    case MMU_MMIO:
        return bounce(v, s, gva, size);
    default:
        return s->flags & SITE_MASKED ? bounce(v, s, gva, size) : 0;
    }
    v->bt.r10 = (uint64_t)(uintptr_t)host;
    return resume_at(v, s->resume);
}

/* -- Commit --------------------------------------------------------------------------------------- */

void bt_fix_fip(struct vcpu *v, uint8_t *image, bool fxsave_format)
{
    struct bt_engine *bt = v->engine->bt;
    unsigned fip_off = fxsave_format ? 8 : 12, fdp_off = fxsave_format ? 16 : 20;
    uint32_t fip;
    __builtin_memcpy(&fip, image + fip_off, 4);
    if (cache_contains(bt, fip)) {
        uint64_t gva = 0;
        struct tb *tb = cache_find_pc(bt, fip);
        const struct side_entry *se = tb ? tb_side_lookup(tb, fip) : NULL;
        if (se)
            gva = tb->gva + se->guest_off;
        if (fxsave_format)
            __builtin_memcpy(image + fip_off, &gva, 8);
        else
            __builtin_memcpy(image + fip_off, &gva, 4);
    }
    /* A data pointer into our own mappings tells the guest nothing it may know. */
    uint64_t fdp = 0;
    __builtin_memcpy(&fdp, image + fdp_off, fxsave_format ? 8 : 4);
    uint64_t base = (uint64_t)(uintptr_t)v->ram->base, self = (uint64_t)(uintptr_t)v;
    bool ours = fxsave_format
                    ? (fdp - base < v->ram->span || fdp - self < sizeof *v)
                    : (uint32_t)(fdp - base) < v->ram->span || (uint32_t)(fdp - self) < sizeof *v;
    if (ours) {
        fdp = 0;
        __builtin_memcpy(image + fdp_off, &fdp, fxsave_format ? 8 : 4);
    }
}

uint64_t bt_mem_commit(struct vcpu *v, struct mem_site *s)
{
    struct engine_vcpu *ev = v->engine;
    bool x87 = true;
    v->rip = s->rip;
    if (s->flags & SITE_XSAVE) {
        x87 = v->gpr[RAX] & 1;
        v->gpr[RAX] = v->bt.xsave_rax;
        v->gpr[RDX] = v->bt.xsave_rdx;
    }
    if (ev->bounce.active) {
        uint8_t *src = ev->bounce.src;
        if ((s->flags & SITE_FIP) && x87)
            bt_fix_fip(v, src, s->insn->op != OP_FNSAVE && s->insn->op != OP_FNSTENV);
        for (unsigned i = 0; i < 2; src += ev->bounce.len[i], i++) {
            unsigned len = ev->bounce.len[i];
            if (!len || ev->bounce.skip[i])
                continue;
            if (ev->bounce.ram[i]) {
                ram_before_write(v->ram, ev->bounce.gpa[i], len);
                copy_bytes(v->ram->base + ev->bounce.gpa[i], src, len);
            } else {
                ev->bt->stats.mmio++;
                mmu_mmio_write(v, ev->bounce.gpa[i], src, len);
            }
        }
        ev->bounce.active = false;
    }
    return resume_at(v, s->resume_done);
}
