/*
 * The MSRs a PC operating system expects.  Performance monitoring, thermal, RAPL and other
 * features that CPUID does not announce have no MSRs here: reading them is #GP(0), which is what a
 * probing kernel expects of a CPU without them.
 */
#include "cpu/msr.h"

#include "cpu/cpuid.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "cpu/system.h"
#include "mmu/mmu.h"

enum {
    MSR_TSC = 0x10,
    MSR_PLATFORM_ID = 0x17,
    MSR_APIC_BASE = 0x1b,
    MSR_FEATURE_CONTROL = 0x3a,
    MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48,
    MSR_PRED_CMD = 0x49,
    MSR_BIOS_UPDT_TRIG = 0x79,
    MSR_BIOS_SIGN_ID = 0x8b, /* AMD: PATCH_LEVEL */
    MSR_PLATFORM_INFO = 0xce,
    MSR_MTRR_CAP = 0xfe,
    MSR_ARCH_CAPABILITIES = 0x10a,
    MSR_FLUSH_CMD = 0x10b,
    MSR_MISC_FEATURES_ENABLES = 0x140,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_MCG_CAP = 0x179,
    MSR_MCG_STATUS = 0x17a,
    MSR_MISC_ENABLE = 0x1a0,
    MSR_DEBUGCTL = 0x1d9,
    MSR_MTRR_PHYSBASE0 = 0x200,
    MSR_MTRR_PHYSMASK7 = 0x20f,
    MSR_MTRR_FIX64K = 0x250,
    MSR_MTRR_FIX16K = 0x258, /* two of them */
    MSR_MTRR_FIX4K = 0x268,  /* eight of them */
    MSR_PAT = 0x277,
    MSR_MTRR_DEF_TYPE = 0x2ff,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC_FIRST = 0x800,
    MSR_X2APIC_LAST = 0x8ff,
};
#define MSR_STAR           0xc0000081u
#define MSR_LSTAR          0xc0000082u
#define MSR_CSTAR          0xc0000083u
#define MSR_SFMASK         0xc0000084u
#define MSR_FS_BASE        0xc0000100u
#define MSR_GS_BASE        0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX        0xc0000103u
/* AMD (PPR): read as a value a kernel accepts as "set up by firmware"; writes have no effect. */
#define MSR_AMD_SYSCFG     0xc0010010u
#define MSR_AMD_HWCR       0xc0010015u
#define MSR_AMD_TOP_MEM    0xc001001au
#define MSR_AMD_TOP_MEM2   0xc001001du
#define MSR_AMD_NB_CFG     0xc001001fu
#define MSR_AMD_INT_PEND   0xc0010055u
#define MSR_AMD_PATCH_LOAD 0xc0010020u
#define MSR_AMD_LS_CFG     0xc0011020u
#define MSR_AMD_IC_CFG     0xc0011021u
#define MSR_AMD_DC_CFG     0xc0011022u
#define MSR_AMD_BU_CFG     0xc0011023u
#define MSR_AMD_DE_CFG     0xc0011029u
#define MSR_AMD_BU_CFG2    0xc001102au

#define HWCR_TSC_FREQ_SEL (1ull << 24) /* the TSC counts at P0, so it is invariant */
#define DE_CFG_LFENCE_SER (1ull << 1)  /* LFENCE is serialising: the native one is */

#define MTRR_CAP          0x508u    /* 8 variable ranges, fixed ranges, write combining */
#define MISC_ENABLE_RO    0x1800ull /* BTS and PEBS unavailable */
#define MISC_ENABLE_VALID 0xc11889ull
#define TYPE_WB           6

/* Memory types an MTRR may hold (SDM vol. 3, table 11-8). */
static bool mtrr_type_valid(unsigned t)
{
    return t == 0 || t == 1 || t == 4 || t == 5 || t == TYPE_WB;
}

static int fixed_mtrr(uint32_t msr)
{
    if (msr == MSR_MTRR_FIX64K)
        return 0;
    if (msr == MSR_MTRR_FIX16K || msr == MSR_MTRR_FIX16K + 1)
        return 1 + (int)(msr - MSR_MTRR_FIX16K);
    if (msr >= MSR_MTRR_FIX4K && msr < MSR_MTRR_FIX4K + 8)
        return 3 + (int)(msr - MSR_MTRR_FIX4K);
    return -1;
}

static bool is_apic(uint32_t msr)
{
    return msr == MSR_APIC_BASE || msr == MSR_TSC_DEADLINE ||
           (msr >= MSR_X2APIC_FIRST && msr <= MSR_X2APIC_LAST);
}

static bool read_amd(uint32_t msr, uint64_t *val)
{
    switch (msr) {
    case MSR_AMD_HWCR:
        *val = HWCR_TSC_FREQ_SEL;
        return true;
    case MSR_AMD_DE_CFG:
        *val = DE_CFG_LFENCE_SER;
        return true;
    case MSR_AMD_SYSCFG:
    case MSR_AMD_TOP_MEM:
    case MSR_AMD_TOP_MEM2:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_INT_PEND:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_IC_CFG:
    case MSR_AMD_DC_CFG:
    case MSR_AMD_BU_CFG:
    case MSR_AMD_BU_CFG2:
        *val = 0;
        return true;
    default:
        return false;
    }
}

enum cpu_result cpu_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val)
{
    const struct cpu_model *m = v->model;
    bool amd = m->vendor == CPU_VENDOR_AMD;

    if (is_apic(msr)) {
        if (v->platform->ops->apic_read_msr_light &&
            v->platform->ops->apic_read_msr_light(v->platform, v, msr, val))
            return CPU_NEXT;
        vcpu_fp_save(v);
        if (v->platform->ops->apic_read_msr(v->platform, v, msr, val))
            return cpu_raise_code(v, EXC_GP, 0);
        return CPU_NEXT;
    }
    if (msr >= MSR_MTRR_PHYSBASE0 && msr <= MSR_MTRR_PHYSMASK7) {
        *val = v->mtrr_var[msr - MSR_MTRR_PHYSBASE0];
        return CPU_NEXT;
    }
    int fixed = fixed_mtrr(msr);
    if (fixed >= 0) {
        *val = v->mtrr_fix[fixed];
        return CPU_NEXT;
    }

    switch (msr) {
    case MSR_TSC:
        *val = cpu_read_tsc(v);
        return CPU_NEXT;
    case MSR_TSC_ADJUST:
        *val = v->tsc_adjust;
        return CPU_NEXT;
    case MSR_MTRR_CAP:
        *val = MTRR_CAP;
        return CPU_NEXT;
    case MSR_MTRR_DEF_TYPE:
        *val = v->mtrr_def_type;
        return CPU_NEXT;
    case MSR_PAT:
        *val = v->pat;
        return CPU_NEXT;
    case MSR_MCG_CAP: /* no banks */
    case MSR_MCG_STATUS:
        *val = 0;
        return CPU_NEXT;
    case MSR_BIOS_SIGN_ID:
        *val = v->bios_sign_id;
        return CPU_NEXT;
    case MSR_SYSENTER_CS:
        *val = v->sysenter_cs;
        return CPU_NEXT;
    case MSR_SYSENTER_ESP:
        *val = v->sysenter_esp;
        return CPU_NEXT;
    case MSR_SYSENTER_EIP:
        *val = v->sysenter_eip;
        return CPU_NEXT;
    case MSR_DEBUGCTL:
        *val = v->debugctl;
        return CPU_NEXT;
    case MSR_EFER:
        *val = v->efer;
        return CPU_NEXT;
    case MSR_STAR:
        *val = v->star;
        return CPU_NEXT;
    case MSR_LSTAR:
        *val = v->lstar;
        return CPU_NEXT;
    case MSR_CSTAR:
        *val = v->cstar;
        return CPU_NEXT;
    case MSR_SFMASK:
        *val = v->sfmask;
        return CPU_NEXT;
    case MSR_FS_BASE:
        *val = v->seg[SEG_FS].base;
        return CPU_NEXT;
    case MSR_GS_BASE:
        *val = v->seg[SEG_GS].base;
        return CPU_NEXT;
    case MSR_KERNEL_GS_BASE:
        *val = v->kernel_gs_base;
        return CPU_NEXT;
    case MSR_TSC_AUX:
        *val = v->tsc_aux;
        return CPU_NEXT;
    case MSR_SPEC_CTRL:
        if (!m->spec_ctrl_valid)
            break;
        *val = v->spec_ctrl;
        return CPU_NEXT;
    default:
        break;
    }

    if (amd) {
        if (read_amd(msr, val))
            return CPU_NEXT;
    } else {
        switch (msr) {
        case MSR_PLATFORM_ID:
        case MSR_MISC_FEATURES_ENABLES:
            *val = 0;
            return CPU_NEXT;
        case MSR_FEATURE_CONTROL:
            *val = 1; /* locked, nothing enabled */
            return CPU_NEXT;
        case MSR_PLATFORM_INFO: /* maximum non-turbo ratio, in units of 100 MHz */
            *val = (m->tsc_hz / 100000000 & 0xff) << 8;
            return CPU_NEXT;
        case MSR_MISC_ENABLE:
            *val = v->misc_enable;
            return CPU_NEXT;
        case MSR_ARCH_CAPABILITIES:
            if (!m->arch_capabilities)
                break;
            *val = m->arch_capabilities;
            return CPU_NEXT;
        default:
            break;
        }
    }
    return cpu_raise_code(v, EXC_GP, 0);
}

static bool store_canonical(uint64_t *field, uint64_t val)
{
    if (!mmu_canonical(val))
        return false;
    *field = val;
    return true;
}

static bool write_efer(struct vcpu *v, uint64_t val)
{
    uint64_t changed;

    val &= ~(uint64_t)EFER_LMA; /* read-only: a write is ignored */
    if (val & ~v->model->efer_valid)
        return false;
    changed = (v->efer ^ val) & ~(uint64_t)EFER_LMA;
    if ((changed & EFER_LME) && (v->cr0 & CR0_PG))
        return false;
    v->efer = val | (v->efer & EFER_LMA);
    if (changed & EFER_NX)
        mmu_flush_all(v);
    return true;
}

static bool write_pat(struct vcpu *v, uint64_t val)
{
    for (unsigned i = 0; i < 64; i += 8) {
        unsigned t = val >> i & 0xff;
        if (!mtrr_type_valid(t) && t != 7) /* UC- exists in the PAT only */
            return false;
    }
    v->pat = val;
    return true;
}

static bool write_mtrr_var(struct vcpu *v, unsigned index, uint64_t val)
{
    uint64_t reserved = ~0ull << CPU_PHYS_BITS | (index & 1 ? 0x7ff : 0xf00);

    if ((val & reserved) || (!(index & 1) && !mtrr_type_valid(val & 0xff)))
        return false;
    v->mtrr_var[index] = val;
    return true;
}

static bool write_mtrr_fix(struct vcpu *v, unsigned index, uint64_t val)
{
    for (unsigned i = 0; i < 64; i += 8)
        if (!mtrr_type_valid(val >> i & 0xff))
            return false;
    v->mtrr_fix[index] = val;
    return true;
}

/* A deadline is compared with the guest's TSC, so a pending one comes sooner or later now. */
static void tsc_moved(struct vcpu *v)
{
    const struct platform_ops *ops = v->platform->ops;
    uint64_t deadline;

    vcpu_fp_save(v);
    if (!ops->apic_read_msr(v->platform, v, MSR_TSC_DEADLINE, &deadline) && deadline)
        ops->apic_write_msr(v->platform, v, MSR_TSC_DEADLINE, deadline);
}

/* True if done, false for #GP(0). */
static bool wrmsr(struct vcpu *v, uint32_t msr, uint64_t val)
{
    const struct cpu_model *m = v->model;
    bool amd = m->vendor == CPU_VENDOR_AMD;
    uint64_t unused;

    if (is_apic(msr)) {
        if (v->platform->ops->apic_write_msr_light &&
            v->platform->ops->apic_write_msr_light(v->platform, v, msr, val))
            return true;
        vcpu_fp_save(v);
        if (v->platform->ops->apic_write_msr(v->platform, v, msr, val))
            return false;
        if (msr == MSR_APIC_BASE) {
            v->apic_base = val; /* for CPUID.01H:EDX.APIC */
            cpu_cpuid_forget(v);
        }
        return true;
    }
    if (msr >= MSR_MTRR_PHYSBASE0 && msr <= MSR_MTRR_PHYSMASK7)
        return write_mtrr_var(v, msr - MSR_MTRR_PHYSBASE0, val);
    int fixed = fixed_mtrr(msr);
    if (fixed >= 0)
        return write_mtrr_fix(v, fixed, val);

    switch (msr) {
    case MSR_TSC: {
        /* SDM vol. 3, 17.17.3: the write shows in TSC_ADJUST too. */
        uint64_t delta = val - cpu_read_tsc(v);
        v->tsc_offset += delta;
        v->tsc_adjust += delta;
        tsc_moved(v);
        return true;
    }
    case MSR_TSC_ADJUST:
        v->tsc_offset += val - v->tsc_adjust;
        v->tsc_adjust = val;
        tsc_moved(v);
        return true;
    case MSR_MTRR_DEF_TYPE:
        if ((val & ~0xcffull) || !mtrr_type_valid(val & 0xff))
            return false;
        v->mtrr_def_type = val;
        return true;
    case MSR_PAT:
        return write_pat(v, val);
    case MSR_MCG_STATUS:
        return val == 0;
    case MSR_BIOS_SIGN_ID:
        /* Software writes 0 and executes CPUID to have the revision loaded: keep the revision. */
        return true;
    case MSR_SYSENTER_CS:
        v->sysenter_cs = (uint32_t)val;
        return true;
    case MSR_SYSENTER_ESP:
        return store_canonical(&v->sysenter_esp, val);
    case MSR_SYSENTER_EIP:
        return store_canonical(&v->sysenter_eip, val);
    case MSR_DEBUGCTL:
        /* Branch records do not exist; LBR is accepted as KVM and older CPUs do. */
        if (val & ~(uint64_t)(DEBUGCTL_LBR | DEBUGCTL_BTF))
            return false;
        v->debugctl = val;
        return true;
    case MSR_EFER:
        return write_efer(v, val);
    case MSR_STAR:
        v->star = val;
        return true;
    case MSR_LSTAR:
        return store_canonical(&v->lstar, val);
    case MSR_CSTAR:
        return store_canonical(&v->cstar, val);
    case MSR_SFMASK:
        if (val >> 32)
            return false;
        v->sfmask = val;
        return true;
    case MSR_FS_BASE: /* FS and GS do not enter into the mode key by their bases */
        return store_canonical(&v->seg[SEG_FS].base, val);
    case MSR_GS_BASE:
        return store_canonical(&v->seg[SEG_GS].base, val);
    case MSR_KERNEL_GS_BASE:
        return store_canonical(&v->kernel_gs_base, val);
    case MSR_TSC_AUX:
        if (val >> 32)
            return false;
        v->tsc_aux = val;
        return true;
    case MSR_SPEC_CTRL:
        if (!m->spec_ctrl_valid || (val & ~m->spec_ctrl_valid))
            return false;
        v->spec_ctrl = val;
        return true;
    case MSR_PRED_CMD:
        return m->spec_ctrl_valid && !(val & ~1ull);
    default:
        break;
    }

    if (amd)
        return msr == MSR_AMD_PATCH_LOAD || read_amd(msr, &unused);
    switch (msr) {
    case MSR_FLUSH_CMD:
        return m->arch_capabilities && !(val & ~1ull);
    case MSR_BIOS_UPDT_TRIG:
        return true;
    case MSR_MISC_FEATURES_ENABLES:
        return val == 0;
    case MSR_MISC_ENABLE:
        if (val & ~MISC_ENABLE_VALID)
            return false;
        v->misc_enable = val | MISC_ENABLE_RO;
        return true;
    default:
        return false;
    }
}

enum cpu_result cpu_wrmsr(struct vcpu *v, uint32_t msr, uint64_t val)
{
    return wrmsr(v, msr, val) ? CPU_NEXT : cpu_raise_code(v, EXC_GP, 0);
}
