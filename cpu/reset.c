#include "cpu/reset.h"

#include "cpu/cpuid.h"
#include "cpu/fpu.h"
#include "cpu/segment.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

#define PAT_RESET          0x0007040600070406ull
#define APIC_BASE_RESET    0xfee00800ull /* xAPIC enabled */
#define APIC_BASE_BSP      0x100ull
#define MISC_ENABLE_RESET  0x1801ull /* fast strings; no BTS, no PEBS */
#define MICROCODE_REVISION (1ull << 32)

#define MTRR_ENABLE       0x800u
#define MTRR_FIXED_ENABLE 0x400u
#define MTRR_WB           6u
#define MTRR_VALID        0x800ull

static struct segment real_segment(uint16_t sel, uint16_t type)
{
    return (struct segment){
        .sel = sel, .attr = type | SEGA_S | SEGA_P, .limit = 0xffff, .base = sel * 16};
}

static void flush(struct vcpu *v)
{
    if (v->engine)
        mmu_flush_all(v);
    else
        mmu_stlb_init(v);
}

/* What power-up and INIT have in common. */
static void common_reset(struct vcpu *v)
{
    for (unsigned i = 0; i < 16; i++)
        v->gpr[i] = 0;
    if (v->model) {
        uint32_t r[4];
        cpu_cpuid(v, 1, 0, r);
        v->gpr[RDX] = r[0];
    }
    v->rip = 0xfff0;
    v->rflags = FL_FIXED1;
    v->interrupt_shadow = 0;
    atomic_store(&v->events, 0);

    for (unsigned i = 0; i < SEG_COUNT; i++)
        v->seg[i] = real_segment(0, 3);
    v->seg[SEG_CS] = real_segment(0xf000, 0xb);
    v->seg[SEG_CS].base = 0xffff0000;
    v->ldtr = (struct segment){.attr = SYS_LDT | SEGA_P, .limit = 0xffff};
    v->tr = (struct segment){.attr = SYS_TSS_BUSY | SEGA_P, .limit = 0xffff};
    v->gdtr = (struct dtable){.limit = 0xffff};
    v->idtr = (struct dtable){.limit = 0xffff};

    v->cr2 = v->cr3 = v->cr4 = v->cr8 = 0;
    cpu_cpuid_forget(v);
    for (unsigned i = 0; i < 4; i++)
        v->pdpte[i] = 0;
    for (unsigned i = 0; i < 8; i++)
        v->dr[i] = 0;
    v->dr[6] = DR6_FIXED1;
    v->dr[7] = DR7_FIXED1;
    v->cpl = 0;
    v->halted = false;
    v->nmi_blocked = false;
    v->efer = 0;
    v->exc = (struct exception){0};
    v->exit = VCPU_EXIT_NONE;
    v->exit_reason[0] = 0;
}

void vcpu_reset(struct vcpu *v)
{
    common_reset(v);
    v->cr0 = CR0_CD | CR0_NW | CR0_ET;
    v->xcr0 = XCR0_X87;
    v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = v->tsc_aux = 0;
    v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
    v->pat = PAT_RESET;
    v->apic_base = APIC_BASE_RESET | (v->id == 0 ? APIC_BASE_BSP : 0);
    v->misc_enable = MISC_ENABLE_RESET;
    v->bios_sign_id = MICROCODE_REVISION;
    v->mtrr_def_type = 0;
    for (unsigned i = 0; i < 16; i++)
        v->mtrr_var[i] = 0;
    for (unsigned i = 0; i < 11; i++)
        v->mtrr_fix[i] = 0;
    v->spec_ctrl = v->tsc_deadline = v->debugctl = v->xss = 0;
    v->tsc_offset -= v->tsc_adjust;
    v->tsc_adjust = 0;
    atomic_store(&v->a20_off, false);
    if (v->fp_area)
        vcpu_fp_reset(v);
    flush(v);
    cpu_mode_changed(v);
}

void vcpu_init(struct vcpu *v)
{
    uint64_t caches = v->cr0 & (CR0_CD | CR0_NW);

    common_reset(v);
    v->cr0 = caches | CR0_ET;
    v->debugctl = 0;
    flush(v);
    cpu_mode_changed(v);
}

void vcpu_start(struct vcpu *v, uint8_t vector)
{
    v->seg[SEG_CS].sel = (uint16_t)(vector << 8);
    v->seg[SEG_CS].base = (uint64_t)vector << 12;
    v->rip = 0;
    cpu_mode_changed(v);
}

/* MTRRs as PC firmware leaves them: memory is write-back, the legacy video area and the hole below
 * 4 GiB (PCI, APICs) are uncached, and the ROM area is write-protected. */
static void setup_mtrrs(struct vcpu *v)
{
    v->mtrr_def_type = MTRR_ENABLE | MTRR_FIXED_ENABLE | MTRR_WB;
    v->mtrr_fix[0] = v->mtrr_fix[1] = 0x0606060606060606ull; /* 0-9FFFFH        */
    v->mtrr_fix[2] = 0;                                      /* A0000H-BFFFFH   */
    for (unsigned i = 3; i < 11; i++)
        v->mtrr_fix[i] = 0x0505050505050505ull; /* C0000H-FFFFFH   */
    v->mtrr_var[0] = RAM_LOW_MAX;               /* type 0: uncached */
    v->mtrr_var[1] =
        (((1ull << CPU_PHYS_BITS) - 1) & ~(RAM_HIGH_BASE - RAM_LOW_MAX - 1)) | MTRR_VALID;
}

void vcpu_setup_long64(struct vcpu *v, uint64_t rip, uint64_t rsi, uint64_t cr3, uint64_t gdt_base,
                       uint16_t gdt_limit, uint16_t cs, uint16_t ds)
{
    setup_mtrrs(v);
    v->gdtr = (struct dtable){.base = gdt_base, .limit = gdt_limit};
    v->idtr = (struct dtable){0};
    v->seg[SEG_CS] = cpu_flat_code64(cs, 0);
    v->seg[SEG_DS] = v->seg[SEG_ES] = v->seg[SEG_SS] = cpu_flat_data(ds, 0);
    v->seg[SEG_FS] = v->seg[SEG_GS] = cpu_flat_data(ds, 0);
    v->ldtr = (struct segment){0};
    v->tr = (struct segment){.attr = SYS_TSS_BUSY | SEGA_P};
    v->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE;
    v->cr3 = cr3;
    v->cr4 = CR4_PAE;
    v->efer = EFER_LME | EFER_LMA;
    v->cpl = 0;
    v->rip = rip;
    v->gpr[RSI] = rsi;
    v->rflags = FL_FIXED1;
    flush(v);
    cpu_mode_changed(v);
}

void vcpu_setup_flat32(struct vcpu *v, uint32_t eip, uint64_t gdt_base, uint16_t gdt_limit,
                       uint16_t cs, uint16_t ds)
{
    setup_mtrrs(v);
    v->gdtr = (struct dtable){.base = gdt_base, .limit = gdt_limit};
    v->idtr = (struct dtable){0};
    v->seg[SEG_CS] = cpu_flat_code32(cs, 0);
    v->seg[SEG_DS] = v->seg[SEG_ES] = v->seg[SEG_SS] = cpu_flat_data(ds, 0);
    v->seg[SEG_FS] = v->seg[SEG_GS] = cpu_flat_data(ds, 0);
    v->ldtr = (struct segment){0};
    v->tr = (struct segment){.attr = SYS_TSS_BUSY | SEGA_P};
    v->cr0 = CR0_PE | CR0_ET | CR0_NE;
    v->cpl = 0;
    v->rip = eip;
    v->rflags = FL_FIXED1;
    flush(v);
    cpu_mode_changed(v);
}

void vcpu_setup_real(struct vcpu *v, uint16_t cs, uint16_t ip, uint16_t ds, uint16_t ss,
                     uint16_t sp)
{
    setup_mtrrs(v);
    cpu_load_real_segment(v, SEG_CS, cs);
    cpu_load_real_segment(v, SEG_SS, ss);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS && i != SEG_SS)
            cpu_load_real_segment(v, (enum seg)i, ds);
    v->cr0 = CR0_ET;
    v->idtr = (struct dtable){.limit = 0x3ff};
    v->rip = ip;
    v->gpr[RSP] = sp;
    cpu_mode_changed(v);
}
