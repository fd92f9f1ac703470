/*
 * Privileged and sensitive instructions that act on the vCPU state alone.  The rules are those of
 * the instruction pages of SDM vol. 2 and of vol. 3, 2.5 (control registers), 4.10.4 (TLB
 * invalidation), 13.3 (XCR0) and 17.2 (debug registers).
 */
#include "cpu/system.h"

#include "cpu/cpuid.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "cpu/segment.h"
#include "mmu/mmu.h"

static enum cpu_result gp0(struct vcpu *v)
{
    return cpu_raise_code(v, EXC_GP, 0);
}

enum cpu_result cpu_require_cpl0(struct vcpu *v)
{
    return v->cpl ? gp0(v) : CPU_NEXT;
}

/* -- Flags. ------------------------------------------------------------------------------------ */

void cpu_set_rflags(struct vcpu *v, uint64_t value)
{
    uint64_t old = v->rflags;

    v->rflags = value;
    if ((old & ~value & FL_AC) && (v->cr4 & CR4_SMAP))
        mmu_stlb_ac_cleared(v);
}

uint64_t cpu_flags_for_push(const struct vcpu *v)
{
    return v->rflags & ~(uint64_t)(FL_VM | FL_RF);
}

static unsigned iopl(const struct vcpu *v)
{
    return (v->rflags & FL_IOPL) >> 12;
}

/* Virtual-8086 mode without the right to the real flags. */
static bool v86_restricted(const struct vcpu *v)
{
    return vcpu_v86(v) && iopl(v) < 3;
}

/* CLI and STI act on VIF: virtual-8086 mode with VME, or CPL 3 with PVI (SDM vol. 3, 20.3, 20.4). */
static bool virtual_if(const struct vcpu *v)
{
    if (vcpu_real(v) || v->cpl <= iopl(v))
        return false;
    return vcpu_v86(v) ? v->cr4 & CR4_VME : v->cpl == 3 && (v->cr4 & CR4_PVI);
}

bool cpu_virtual_interrupt_due(const struct vcpu *v)
{
    return (v->rflags & FL_VIF) && (v->rflags & FL_VIP) && virtual_if(v);
}

enum cpu_result cpu_pushf(struct vcpu *v, unsigned size, uint64_t *image)
{
    *image = cpu_flags_for_push(v);
    if (!v86_restricted(v))
        return CPU_NEXT;
    if (!(v->cr4 & CR4_VME) || size > 2)
        return gp0(v);
    *image = (*image & ~(uint64_t)FL_IF) | FL_IOPL | (v->rflags & FL_VIF ? FL_IF : 0);
    return CPU_NEXT;
}

enum cpu_result cpu_popf(struct vcpu *v, uint64_t value, unsigned size)
{
    /* SDM vol. 2, POPF, table 4-15. RF is always cleared. */
    uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    uint64_t virtual = 0;

    if (size > 2)
        mask |= FL_AC | FL_ID;
    if (v->cpl == 0)
        mask |= FL_IOPL;
    if (v->cpl <= iopl(v))
        mask |= FL_IF;
    if (v86_restricted(v)) {
        if (!(v->cr4 & CR4_VME) || size > 2 || (value & FL_TF) ||
            ((value & FL_IF) && (v->rflags & FL_VIP)))
            return gp0(v);
        virtual = FL_VIF;
    }
    uint64_t fl = (v->rflags & ~mask & ~(uint64_t)FL_RF) | (value & mask) | FL_FIXED1;
    if (virtual)
        fl = (fl & ~virtual) | (value & FL_IF ? virtual : 0);
    if (size > 2 && v->cpl == 0)
        fl &= ~(uint64_t)(FL_VIF | FL_VIP);
    cpu_set_rflags(v, fl);
    return CPU_NEXT;
}

enum cpu_result cpu_cli(struct vcpu *v)
{
    if (virtual_if(v)) {
        v->rflags &= ~(uint64_t)FL_VIF;
        return CPU_NEXT;
    }
    if (v->cpl > iopl(v))
        return gp0(v);
    v->rflags &= ~(uint64_t)FL_IF;
    return CPU_NEXT;
}

enum cpu_result cpu_sti(struct vcpu *v)
{
    if (virtual_if(v)) {
        if (v->rflags & FL_VIP)
            return gp0(v);
        v->rflags |= FL_VIF;
        return CPU_NEXT;
    }
    if (v->cpl > iopl(v))
        return gp0(v);
    if (!(v->rflags & FL_IF)) {
        v->rflags |= FL_IF;
        v->interrupt_shadow = 1;
    }
    return CPU_NEXT;
}

enum cpu_result cpu_stac(struct vcpu *v)
{
    if (v->cpl)
        return cpu_raise(v, EXC_UD);
    v->rflags |= FL_AC;
    return CPU_NEXT;
}

enum cpu_result cpu_clac(struct vcpu *v)
{
    if (v->cpl)
        return cpu_raise(v, EXC_UD);
    cpu_set_rflags(v, v->rflags & ~(uint64_t)FL_AC);
    return CPU_NEXT;
}

enum cpu_result cpu_hlt(struct vcpu *v, uint64_t next_rip)
{
    if (v->cpl)
        return gp0(v);
    v->rip = next_rip;
    v->halted = true;
    v->interrupt_shadow = 0; /* HLT was the instruction in the shadow of STI */
    return cpu_take_events(v);
}

/* -- Control registers. ------------------------------------------------------------------------ */

enum cpu_result cpu_mov_from_cr(struct vcpu *v, unsigned cr, uint64_t *out)
{
    if (cr != 0 && cr != 2 && cr != 3 && cr != 4 && cr != 8)
        return cpu_raise(v, EXC_UD);
    if (v->cpl)
        return gp0(v);
    switch (cr) {
    case 0:
        *out = v->cr0;
        break;
    case 2:
        *out = v->cr2;
        break;
    case 3:
        *out = v->cr3;
        break;
    case 4:
        *out = v->cr4;
        break;
    default:
        vcpu_fp_save(v);
        v->cr8 = v->platform->ops->get_cr8(v->platform, v) & 15;
        *out = v->cr8;
    }
    return CPU_NEXT;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

/* Loads the PDPTE registers; 0, or -1 with #GP(0). */
static int load_pdptes(struct vcpu *v, uint64_t cr3)
{
    uint64_t pdpte[4];

    if (mmu_read_pdptes(v, cr3, pdpte)) {
        gp0(v);
        return -1;
    }
    for (unsigned i = 0; i < 4; i++)
        v->pdpte[i] = pdpte[i];
    return 0;
}

static enum cpu_result set_cr0(struct vcpu *v, uint64_t value)
{
    uint64_t efer = v->efer;

    if (value >> 32)
        return gp0(v);
    /* Reserved bits below 32 read as zero; ET is hard-wired (SDM vol. 3, 2.5). */
    value &=
        CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG;
    value |= CR0_ET;
    if ((value & CR0_PG) && !(value & CR0_PE))
        return gp0(v);
    if ((value & CR0_NW) && !(value & CR0_CD))
        return gp0(v);
    uint64_t changed = v->cr0 ^ value;
    if (changed & value & CR0_PG) {
        if (efer & EFER_LME) {
            /* SDM vol. 3, 9.8.5: PAE must be on, CS must not be 64-bit already, and TR not hold a
             * 16-bit TSS. */
            if (!(v->cr4 & CR4_PAE) || (v->seg[SEG_CS].attr & SEGA_L) ||
                (v->tr.attr & (SEGA_P | 8)) == SEGA_P)
                return gp0(v);
            efer |= EFER_LMA;
        }
    } else if (changed & CR0_PG) {
        if (vcpu_long64(v) || (v->cr4 & CR4_PCIDE))
            return gp0(v);
        efer &= ~(uint64_t)EFER_LMA;
    }
    /* SDM vol. 3, 4.4.1. */
    if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && pae_paging(value, v->cr4, efer) &&
        load_pdptes(v, v->cr3))
        return CPU_EXCEPTION;
    v->efer = efer;
    v->cr0 = value;
    if (changed & (CR0_PG | CR0_WP | CR0_PE))
        mmu_flush_all(v);
    if (changed & (CR0_PG | CR0_PE))
        cpu_mode_changed(v);
    return CPU_NEXT;
}

static enum cpu_result set_cr3(struct vcpu *v, uint64_t value)
{
    bool keep = false;

    if (v->cr4 & CR4_PCIDE) {
        keep = value >> 63;
        value &= ~(1ull << 63);
    }
    if ((v->efer & EFER_LMA) && value >> CPU_PHYS_BITS)
        return gp0(v);
    if (pae_paging(v->cr0, v->cr4, v->efer) && load_pdptes(v, value))
        return CPU_EXCEPTION;
    /* With another table than the PCID had before this is a flush, which is allowed: what is remembered of
     * a PCID is always of one table, and INVLPG there finds it. */
    uint64_t *last = &v->pcid_cr3[vcpu_pcid_of(v, value)];
    bool same = value == v->cr3, flush = !keep || *last != value;
    v->cr3 = *last = value;
    if (flush)
        mmu_flush_nonglobal(v);
    else if (!same)
        mmu_switch(v);
    return CPU_NEXT;
}

static enum cpu_result set_cr4(struct vcpu *v, uint64_t value)
{
    if (value & ~v->model->cr4_valid)
        return gp0(v);
    uint64_t changed = v->cr4 ^ value;
    if ((v->efer & EFER_LMA) && !(value & CR4_PAE))
        return gp0(v);
    if ((changed & value & CR4_PCIDE) && (!(v->efer & EFER_LMA) || (v->cr3 & 0xfff)))
        return gp0(v);
    /* SDM vol. 3, 4.4.1. */
    if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) &&
        pae_paging(v->cr0, value, v->efer) && load_pdptes(v, v->cr3))
        return CPU_EXCEPTION;
    v->cr4 = value;
    if (changed & CR4_OSXSAVE)
        cpu_cpuid_forget(v);
    if (changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP))
        mmu_flush_all(v);
    return CPU_NEXT;
}

enum cpu_result cpu_mov_to_cr(struct vcpu *v, unsigned cr, uint64_t value)
{
    if (cr != 0 && cr != 2 && cr != 3 && cr != 4 && cr != 8)
        return cpu_raise(v, EXC_UD);
    if (v->cpl)
        return gp0(v);
    switch (cr) {
    case 0:
        return set_cr0(v, value);
    case 2:
        v->cr2 = value;
        return CPU_NEXT;
    case 3:
        return set_cr3(v, value);
    case 4:
        return set_cr4(v, value);
    default:
        if (value >> 4)
            return gp0(v);
        v->cr8 = value;
        if (v->platform->ops->set_cr8_light &&
            v->platform->ops->set_cr8_light(v->platform, v, value))
            return CPU_NEXT;
        vcpu_fp_save(v);
        v->platform->ops->set_cr8(v->platform, v, value);
        return CPU_NEXT;
    }
}

enum cpu_result cpu_lmsw(struct vcpu *v, uint16_t value)
{
    if (v->cpl)
        return gp0(v);
    /* Loads PE, MP, EM, TS; cannot clear PE. */
    return set_cr0(v, (v->cr0 & ~0xeull) | (value & 0xf));
}

enum cpu_result cpu_clts(struct vcpu *v)
{
    if (v->cpl)
        return gp0(v);
    v->cr0 &= ~(uint64_t)CR0_TS;
    return CPU_NEXT;
}

/* -- Debug registers. -------------------------------------------------------------------------- */

static enum cpu_result dr_access(struct vcpu *v, unsigned *dr)
{
    if (*dr > 7 || ((*dr == 4 || *dr == 5) && (v->cr4 & CR4_DE)))
        return cpu_raise(v, EXC_UD);
    if (v->cpl)
        return gp0(v);
    if (v->dr[7] & DR7_GD) {
        v->exc = (struct exception){.vector = EXC_DB, .dr6 = DR6_BD};
        return CPU_EXCEPTION;
    }
    if (*dr == 4 || *dr == 5)
        *dr += 2;
    return CPU_NEXT;
}

enum cpu_result cpu_mov_from_dr(struct vcpu *v, unsigned dr, uint64_t *out)
{
    enum cpu_result r = dr_access(v, &dr);

    if (r == CPU_NEXT)
        *out = v->dr[dr];
    return r;
}

enum cpu_result cpu_mov_to_dr(struct vcpu *v, unsigned dr, uint64_t value)
{
    enum cpu_result r = dr_access(v, &dr);

    if (r != CPU_NEXT)
        return r;
    if (dr >= 6 && value >> 32)
        return gp0(v);
    if (dr == 6)
        value = (value & (DR6_BP | DR6_BD | DR6_BS | DR6_BT)) | DR6_FIXED1;
    else if (dr == 7) /* bits 11, 12, 14, 15 read as 0, bit 10 as 1 */
        value = (value & 0xffff23ff) | DR7_FIXED1;
    v->dr[dr] = value;
    return CPU_NEXT;
}

uint32_t cpu_debug_match(const struct vcpu *v, enum cpu_debug_kind kind, uint64_t addr,
                         unsigned size)
{
    uint32_t hit = 0;

    for (unsigned i = 0; i < 4; i++) {
        if (!(v->dr[7] >> (2 * i) & 3))
            continue;
        unsigned rw = v->dr[7] >> (16 + 4 * i) & 3;
        unsigned len = v->dr[7] >> (18 + 4 * i) & 3;
        uint64_t bytes = len == 2 ? 8 : len + 1;
        bool match = kind == DEBUG_READ    ? rw == DEBUG_READ
                     : kind == DEBUG_WRITE ? rw == DEBUG_WRITE || rw == DEBUG_READ
                     : kind == DEBUG_IO    ? rw == DEBUG_IO && (v->cr4 & CR4_DE)
                                           : rw == DEBUG_EXEC;
        if (!match)
            continue;
        /* The low address bits are ignored (SDM vol. 3, 17.2.5). */
        uint64_t start = v->dr[i] & ~(bytes - 1);
        if (kind == DEBUG_EXEC ? addr == v->dr[i] : addr < start + bytes && start < addr + size)
            hit |= 1u << i;
    }
    return hit;
}

enum cpu_result cpu_debug_trap(struct vcpu *v, uint64_t dr6_bits)
{
    v->exc = (struct exception){.vector = EXC_DB, .dr6 = dr6_bits};
    return cpu_deliver_exception(v);
}

/* -- Descriptor-table registers. --------------------------------------------------------------- */

enum cpu_result cpu_umip_check(struct vcpu *v)
{
    return v->cpl && (v->cr4 & CR4_UMIP) ? gp0(v) : CPU_NEXT;
}

static enum cpu_result load_table(struct vcpu *v, struct dtable *t, uint64_t base, uint16_t limit)
{
    if (v->cpl || !mmu_canonical(base))
        return gp0(v);
    t->base = base;
    t->limit = limit;
    return CPU_NEXT;
}

enum cpu_result cpu_lgdt(struct vcpu *v, uint64_t base, uint16_t limit)
{
    return load_table(v, &v->gdtr, base, limit);
}

enum cpu_result cpu_lidt(struct vcpu *v, uint64_t base, uint16_t limit)
{
    return load_table(v, &v->idtr, base, limit);
}

/* -- TLB. -------------------------------------------------------------------------------------- */

enum cpu_result cpu_invlpg(struct vcpu *v, uint64_t gva)
{
    if (v->cpl)
        return gp0(v);
    if (mmu_canonical(gva)) /* else a no-op: SDM vol. 2, INVLPG */
        mmu_flush_page(v, gva);
    return CPU_NEXT;
}

enum cpu_result cpu_invpcid(struct vcpu *v, uint64_t type, const uint64_t desc[2])
{
    uint64_t pcid = desc[0];

    if (v->cpl || type > 3)
        return gp0(v);
    if (type <= 1 && (pcid >> 12 || (pcid && !(v->cr4 & CR4_PCIDE))))
        return gp0(v);
    if (type == 0 && !mmu_canonical(desc[1]))
        return gp0(v);
    bool current = pcid == vcpu_pcid_of(v, v->cr3);
    switch (type) {
    case 0:
        if (current)
            mmu_flush_page(v, desc[1]);
        else
            mmu_flush_pcid(v, pcid);
        break;
    case 1:
        if (current)
            mmu_flush_nonglobal(v);
        else
            mmu_flush_pcid(v, pcid);
        break;
    case 2:
        mmu_flush_all(v);
        break;
    default: /* all contexts but for global pages: dropping more is allowed */
        mmu_flush_all(v);
    }
    return CPU_NEXT;
}

/* -- FS and GS bases. -------------------------------------------------------------------------- */

enum cpu_result cpu_swapgs(struct vcpu *v)
{
    if (v->cpl)
        return gp0(v);
    uint64_t base = v->seg[SEG_GS].base;
    v->seg[SEG_GS].base = v->kernel_gs_base;
    v->kernel_gs_base = base;
    return CPU_NEXT;
}

enum cpu_result cpu_rdbase(struct vcpu *v, enum seg seg, uint64_t *out)
{
    if (!(v->cr4 & CR4_FSGSBASE))
        return cpu_raise(v, EXC_UD);
    *out = v->seg[seg].base;
    return CPU_NEXT;
}

enum cpu_result cpu_wrbase(struct vcpu *v, enum seg seg, uint64_t value)
{
    if (!(v->cr4 & CR4_FSGSBASE))
        return cpu_raise(v, EXC_UD);
    if (!mmu_canonical(value))
        return gp0(v);
    v->seg[seg].base = value;
    return CPU_NEXT;
}

/* -- XCR0. ------------------------------------------------------------------------------------- */

enum cpu_result cpu_xgetbv(struct vcpu *v, uint32_t index, uint64_t *out)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        return cpu_raise(v, EXC_UD);
    if (index == 0) {
        *out = v->xcr0;
        return CPU_NEXT;
    }
    if (index != 1 || !v->model->xgetbv1)
        return gp0(v);
    /* XCR0 & XINUSE.  Saved state: XSTATE_BV of plain XSAVE is XINUSE. */
    uint64_t inuse;
    if (v->fp_saved) {
        __builtin_memcpy(&inuse, v->fp_area + 512, 8);
    } else {
        uint32_t lo, hi;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
        inuse = (uint64_t)hi << 32 | lo;
    }
    *out = v->xcr0 & inuse;
    return CPU_NEXT;
}

enum cpu_result cpu_xsetbv(struct vcpu *v, uint32_t index, uint64_t value)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        return cpu_raise(v, EXC_UD);
    if (v->cpl || index != 0 || (value & ~v->model->xcr0_valid) || !(value & XCR0_X87))
        return gp0(v);
    if ((value & XCR0_AVX) && !(value & XCR0_SSE))
        return gp0(v);
    /* SDM vol. 1, 13.3: the AVX-512 components come together and need AVX. */
    if ((value & XCR0_AVX512) && ((value & XCR0_AVX512) != XCR0_AVX512 || !(value & XCR0_AVX)))
        return gp0(v);
    v->xcr0 = value;
    cpu_cpuid_forget(v);
    return CPU_NEXT;
}

/* -- Time stamps and counters. ----------------------------------------------------------------- */

uint64_t cpu_read_tsc(const struct vcpu *v)
{
    return __builtin_ia32_rdtsc() + v->tsc_offset;
}

enum cpu_result cpu_rdtsc(struct vcpu *v, uint64_t *out)
{
    if (v->cpl && (v->cr4 & CR4_TSD))
        return gp0(v);
    *out = cpu_read_tsc(v);
    return CPU_NEXT;
}

enum cpu_result cpu_rdpmc(struct vcpu *v)
{
    /* There are no counters: CPUID.0AH is zero, so every index is out of range. */
    return gp0(v);
}

/* -- Port I/O and the maps in the TSS. --------------------------------------------------------- */

static uint64_t tss_address(const struct vcpu *v, uint32_t offset)
{
    uint64_t lin = v->tr.base + offset;

    return vcpu_long(v) ? lin : (uint32_t)lin;
}

/* The offset of the I/O map is at 102 of a 32- or 64-bit TSS; a 16-bit one has none (SDM vol. 1,
 * 19.5.2).  #GP(0) if there is none. */
static enum cpu_result io_map(struct vcpu *v, uint16_t *map_base)
{
    if (!(v->tr.attr & SEGA_P) || !(v->tr.attr & 8) || v->tr.limit < 103)
        return gp0(v);
    return mmu_load(v, tss_address(v, 102), map_base, 2, MMU_READ | MMU_SYSTEM, false)
               ? CPU_EXCEPTION
               : CPU_NEXT;
}

enum cpu_result cpu_io_check(struct vcpu *v, uint16_t port, unsigned size)
{
    uint16_t map_base, bits;

    /* In virtual-8086 mode the map alone decides (SDM vol. 3, 20.2.8.1). */
    if (v->cpl <= iopl(v) && !vcpu_v86(v))
        return CPU_NEXT;
    enum cpu_result r = io_map(v, &map_base);
    if (r != CPU_NEXT)
        return r;
    /* The CPU always reads two bytes of the map, both of which must be inside the limit. */
    uint32_t offset = (uint32_t)map_base + port / 8;
    if (offset + 1 > v->tr.limit)
        return gp0(v);
    if (mmu_load(v, tss_address(v, offset), &bits, 2, MMU_READ | MMU_SYSTEM, false))
        return CPU_EXCEPTION;
    if (bits >> (port & 7) & ((1u << size) - 1))
        return gp0(v);
    return CPU_NEXT;
}

enum cpu_result cpu_vme_redirected(struct vcpu *v, uint8_t vector, bool *redirected)
{
    uint16_t map_base;
    uint8_t bits;

    enum cpu_result r = io_map(v, &map_base);
    if (r != CPU_NEXT)
        return r;
    uint32_t offset = (uint32_t)map_base - 32 + vector / 8;
    if (map_base < 32 || offset > v->tr.limit)
        return gp0(v);
    if (mmu_load(v, tss_address(v, offset), &bits, 1, MMU_READ | MMU_SYSTEM, false))
        return CPU_EXCEPTION;
    *redirected = !(bits >> (vector & 7) & 1);
    return CPU_NEXT;
}

/* -- Physical addresses. ----------------------------------------------------------------------- */

void vcpu_set_a20(struct vcpu *v, bool enabled)
{
    if (atomic_exchange(&v->a20_off, !enabled) == enabled)
        vcpu_raise(v, EV_A20);
}
