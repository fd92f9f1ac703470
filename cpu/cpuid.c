/*
 * CPU models.  SDM vol. 2, CPUID; AMD APM vol. 3, appendix E.
 *
 * Two kinds of feature bits: those of instructions that run natively (SSE, AVX, BMI, ...) pass if
 * the host has them and the decoder knows them; those of things that are done in software here
 * (PCID, SMEP, SMAP, UMIP, NX, 1 GiB pages, FSGSBASE, x2APIC, TSC deadline, RDTSCP, RDPID, ...) are
 * present whether the host has them or not.  Everything else is hidden: no bit is passed through
 * that is not named below.
 *
 * Speculation: the model says that the CPU is immune to the known attacks and has enhanced IBRS.
 * The guest's own mitigations cannot work here (its retpolines, IBRS writes and VERW are not what
 * the host CPU executes: indirect branches are rewritten into lookups, kernel and user code run at
 * the same host privilege in one address space), so they would cost time and protect nothing.
 * What this project promises instead is in the threat model (docs/).
 */
#include "cpu/cpuid.h"

#include <cpuid.h>

#define BIT(n) (1u << (n))

/* Leaf 1 ECX. */
enum {
    F1C_SSE3 = BIT(0),
    F1C_PCLMUL = BIT(1),
    F1C_SSSE3 = BIT(9),
    F1C_FMA = BIT(12),
    F1C_CX16 = BIT(13),
    F1C_PCID = BIT(17),
    F1C_SSE41 = BIT(19),
    F1C_SSE42 = BIT(20),
    F1C_X2APIC = BIT(21),
    F1C_MOVBE = BIT(22),
    F1C_POPCNT = BIT(23),
    F1C_TSC_DEADLINE = BIT(24),
    F1C_AES = BIT(25),
    F1C_XSAVE = BIT(26),
    F1C_OSXSAVE = BIT(27),
    F1C_AVX = BIT(28),
    F1C_F16C = BIT(29),
    F1C_RDRAND = BIT(30),
    F1C_HYPERVISOR = BIT(31),
};
#define F1C_NATIVE                                                                                 \
    (F1C_SSE3 | F1C_PCLMUL | F1C_SSSE3 | F1C_FMA | F1C_CX16 | F1C_SSE41 | F1C_SSE42 | F1C_MOVBE |  \
     F1C_POPCNT | F1C_AES | F1C_XSAVE | F1C_AVX | F1C_F16C | F1C_RDRAND)
#define F1C_VIRTUAL     (F1C_PCID | F1C_X2APIC | F1C_TSC_DEADLINE | F1C_HYPERVISOR)
#define F1C_NEEDS_XSAVE (F1C_FMA | F1C_AVX | F1C_F16C)

/* Leaf 1 EDX. */
enum {
    F1D_FPU = BIT(0),
    F1D_VME = BIT(1),
    F1D_DE = BIT(2),
    F1D_PSE = BIT(3),
    F1D_TSC = BIT(4),
    F1D_MSR = BIT(5),
    F1D_PAE = BIT(6),
    F1D_MCE = BIT(7),
    F1D_CX8 = BIT(8),
    F1D_APIC = BIT(9),
    F1D_SEP = BIT(11),
    F1D_MTRR = BIT(12),
    F1D_PGE = BIT(13),
    F1D_MCA = BIT(14),
    F1D_CMOV = BIT(15),
    F1D_PAT = BIT(16),
    F1D_PSE36 = BIT(17),
    F1D_CLFSH = BIT(19),
    F1D_MMX = BIT(23),
    F1D_FXSR = BIT(24),
    F1D_SSE = BIT(25),
    F1D_SSE2 = BIT(26),
    F1D_SS = BIT(27),
    F1D_HTT = BIT(28),
};
#define F1D_VIRTUAL                                                                                \
    (F1D_VME | F1D_DE | F1D_PSE | F1D_TSC | F1D_MSR | F1D_PAE | F1D_MCE | F1D_APIC | F1D_SEP |     \
     F1D_MTRR | F1D_PGE | F1D_MCA | F1D_PAT | F1D_PSE36 | F1D_SS)
/* In every x86-64 CPU. */
#define F1D_X86_64                                                                                 \
    (F1D_FPU | F1D_CX8 | F1D_CMOV | F1D_CLFSH | F1D_MMX | F1D_FXSR | F1D_SSE | F1D_SSE2)

/* Leaf 7.0 EBX. */
enum {
    F7B_FSGSBASE = BIT(0),
    F7B_TSC_ADJUST = BIT(1),
    F7B_BMI1 = BIT(3),
    F7B_AVX2 = BIT(5),
    F7B_FDP_EXCPTN_ONLY = BIT(6),
    F7B_SMEP = BIT(7),
    F7B_BMI2 = BIT(8),
    F7B_ERMS = BIT(9),
    F7B_INVPCID = BIT(10),
    F7B_FCS_FDS = BIT(13),
    F7B_AVX512F = BIT(16),
    F7B_AVX512DQ = BIT(17),
    F7B_RDSEED = BIT(18),
    F7B_ADX = BIT(19),
    F7B_SMAP = BIT(20),
    F7B_AVX512IFMA = BIT(21),
    F7B_CLFLUSHOPT = BIT(23),
    F7B_CLWB = BIT(24),
    F7B_AVX512CD = BIT(28),
    F7B_SHA = BIT(29),
    F7B_AVX512BW = BIT(30),
    F7B_AVX512VL = BIT(31),
};
#define F7B_AVX512                                                                                 \
    (F7B_AVX512F | F7B_AVX512DQ | F7B_AVX512IFMA | F7B_AVX512CD | F7B_AVX512BW | F7B_AVX512VL)
#define F7B_NATIVE                                                                                 \
    (F7B_BMI1 | F7B_AVX2 | F7B_FDP_EXCPTN_ONLY | F7B_BMI2 | F7B_ERMS | F7B_FCS_FDS | F7B_RDSEED |  \
     F7B_ADX | F7B_CLFLUSHOPT | F7B_CLWB | F7B_SHA | F7B_AVX512)
#define F7B_VIRTUAL (F7B_FSGSBASE | F7B_TSC_ADJUST | F7B_SMEP | F7B_INVPCID | F7B_SMAP)

/* Leaf 7.0 ECX. */
enum {
    F7C_AVX512VBMI = BIT(1),
    F7C_UMIP = BIT(2),
    F7C_AVX512VBMI2 = BIT(6),
    F7C_GFNI = BIT(8),
    F7C_VAES = BIT(9),
    F7C_VPCLMUL = BIT(10),
    F7C_AVX512VNNI = BIT(11),
    F7C_AVX512BITALG = BIT(12),
    F7C_AVX512VPOPCNT = BIT(14),
    F7C_RDPID = BIT(22),
    F7C_CLDEMOTE = BIT(25),
    F7C_MOVDIRI = BIT(27),
};
#define F7C_AVX512                                                                                 \
    (F7C_AVX512VBMI | F7C_AVX512VBMI2 | F7C_AVX512VNNI | F7C_AVX512BITALG | F7C_AVX512VPOPCNT)
#define F7C_NATIVE  (F7C_AVX512 | F7C_GFNI | F7C_VAES | F7C_VPCLMUL | F7C_CLDEMOTE | F7C_MOVDIRI)
#define F7C_VIRTUAL (F7C_UMIP | F7C_RDPID)

/* Leaf 7.0 EDX. */
enum {
    F7D_FSRM = BIT(4),
    F7D_SERIALIZE = BIT(14),
    F7D_AVX512FP16 = BIT(23),
    F7D_SPEC_CTRL = BIT(26),
    F7D_ARCH_CAP = BIT(29),
};
#define F7D_NATIVE (F7D_FSRM | F7D_SERIALIZE | F7D_AVX512FP16)

/* Leaf 7.1 EAX. */
enum {
    F71A_AVX_VNNI = BIT(4),
    F71A_AVX512BF16 = BIT(5),
    F71A_FZRM = BIT(10),
    F71A_FSRS = BIT(11),
    F71A_FSRC = BIT(12)
};
#define F71A_NATIVE (F71A_AVX_VNNI | F71A_AVX512BF16 | F71A_FZRM | F71A_FSRS | F71A_FSRC)

/*
 * Leaf 7.2 EDX.  BHI_CTRL announces SPEC_CTRL.BHI_DIS_S, which a kernel sets once at boot;
 * without it (and in spite of BHI_NO) Linux clears the branch history on every system call, by a
 * loop of branches.
 */
enum { F72D_BHI_CTRL = BIT(4) };

/* Leaf D.1 EAX. */
enum { FD1_XSAVEOPT = BIT(0), FD1_XSAVEC = BIT(1), FD1_XGETBV1 = BIT(2) };

/* Leaf 8000_0001. */
enum { FX1C_LAHF = BIT(0), FX1C_CMP_LEGACY = BIT(1), FX1C_LZCNT = BIT(5), FX1C_PREFETCHW = BIT(8) };
enum {
    FX1D_SYSCALL = BIT(11),
    FX1D_NX = BIT(20),
    FX1D_1G = BIT(26),
    FX1D_RDTSCP = BIT(27),
    FX1D_LM = BIT(29)
};
#define FX1D_VIRTUAL (FX1D_SYSCALL | FX1D_NX | FX1D_1G | FX1D_RDTSCP | FX1D_LM)
/* On AMD these repeat leaf 1 EDX. */
#define FX1D_COMMON 0x0183f3ffu

/* Leaf 8000_0008 EBX (AMD). */
enum {
    FX8B_IBPB = BIT(12),
    FX8B_IBRS = BIT(14),
    FX8B_IBRS_ALWAYS = BIT(16),
    FX8B_IBRS_PREFERRED = BIT(18),
    FX8B_SSB_NO = BIT(26),
    FX8B_BTC_NO = BIT(29)
};
/* Leaf 8000_0021 EAX (AMD). */
enum { FX21A_LFENCE_SERIAL = BIT(2), FX21A_NULL_SEL = BIT(6), FX21A_AUTO_IBRS = BIT(8) };
#define EFER_AUTO_IBRS (1u << 21)

/* IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2). */
#define ARCH_CAP_RDCL_NO      (1ull << 0)
#define ARCH_CAP_IBRS_ALL     (1ull << 1)
#define ARCH_CAP_SKIP_L1DFL   (1ull << 3)
#define ARCH_CAP_SSB_NO       (1ull << 4)
#define ARCH_CAP_MDS_NO       (1ull << 5)
#define ARCH_CAP_PSCHANGE_NO  (1ull << 6)
#define ARCH_CAP_TAA_NO       (1ull << 8)
#define ARCH_CAP_SBDR_SSDP_NO (1ull << 13)
#define ARCH_CAP_FBSDP_NO     (1ull << 14)
#define ARCH_CAP_PSDP_NO      (1ull << 15)
#define ARCH_CAP_BHI_NO       (1ull << 20)
#define ARCH_CAP_PBRSB_NO     (1ull << 24)
#define ARCH_CAP_GDS_NO       (1ull << 26)
#define ARCH_CAP_RFDS_NO      (1ull << 27)
#define ARCH_CAP_ITS_NO       (1ull << 62)
#define ARCH_CAPS                                                                                  \
    (ARCH_CAP_RDCL_NO | ARCH_CAP_IBRS_ALL | ARCH_CAP_SKIP_L1DFL | ARCH_CAP_SSB_NO |                \
     ARCH_CAP_MDS_NO | ARCH_CAP_PSCHANGE_NO | ARCH_CAP_TAA_NO | ARCH_CAP_SBDR_SSDP_NO |            \
     ARCH_CAP_FBSDP_NO | ARCH_CAP_PSDP_NO | ARCH_CAP_BHI_NO | ARCH_CAP_PBRSB_NO |                  \
     ARCH_CAP_GDS_NO | ARCH_CAP_RFDS_NO | ARCH_CAP_ITS_NO)

/* IA32_SPEC_CTRL. */
#define SPEC_CTRL_IBRS      (1u << 0)
#define SPEC_CTRL_STIBP     (1u << 1)
#define SPEC_CTRL_SSBD      (1u << 2)
#define SPEC_CTRL_BHI_DIS_S (1u << 10)

#define SIGNATURE_LEAF 0x40000000u

static void host_cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
}

static void add(struct cpu_model *m, uint32_t leaf, uint32_t sub, uint32_t a, uint32_t b,
                uint32_t c, uint32_t d)
{
    if (m->leaves == CPU_MODEL_LEAVES)
        __builtin_trap(); /* a model that does not fit is a bug of this file */
    m->leaf[m->leaves++] = (struct cpuid_leaf){leaf, sub, {a, b, c, d}};
}

static uint32_t word_of(const char *s)
{
    uint32_t w;
    __builtin_memcpy(&w, s, 4);
    return w;
}

/* ceil(log2(n)): bits of an APIC ID that number n things. */
static uint32_t id_bits(uint32_t n)
{
    uint32_t bits = 0;
    while ((1u << bits) < n)
        bits++;
    return bits;
}

static void add_vendor(struct cpu_model *m)
{
    const char *s = m->vendor == CPU_VENDOR_AMD ? "AuthenticAMD" : "GenuineIntel";
    add(m, 0, 0, m->max_basic, word_of(s), word_of(s + 8), word_of(s + 4));
}

static void add_signature(struct cpu_model *m)
{
    static const char s[] = "RingshiftRS"; /* 12 bytes with the NUL */
    add(m, SIGNATURE_LEAF, 0, SIGNATURE_LEAF, word_of(s), word_of(s + 4), word_of(s + 8));
}

/* Leaf 1 EBX without the APIC ID: CLFLUSH line in 8 bytes, addressable logical CPUs. */
static uint32_t leaf1_ebx(const struct cpu_model *m, uint32_t clflush)
{
    uint32_t ids = 1u << id_bits(m->cpus);
    return (ids > 255 ? 255 : ids) << 16 | (clflush & 0xff00);
}

/* Topology: one package, one thread per core.  EDX (the x2APIC ID) is dynamic. */
static void add_topology(struct cpu_model *m, uint32_t leaf)
{
    add(m, leaf, 0, 0, 1, 1 << 8 | 0, 0);                      /* SMT level */
    add(m, leaf, 1, id_bits(m->cpus), m->cpus, 2 << 8 | 1, 0); /* core level */
}

/*
 * TSC frequency: tsc_hz = crystal * EBX / EAX.  Software (Linux's native_calibrate_tsc) computes
 * crystal_khz * EBX / EAX in 32 bits, so crystal_khz * EBX must stay below 2^32; among the ratios
 * for which it does, take the one closest to the truth (parts per billion in practice).
 */
static void add_tsc(struct cpu_model *m)
{
    uint64_t best_n = 0, best_d = 1, best_error = ~0ull;
    const uint64_t max_n = 0xffffffffull / (APIC_BUS_HZ / 1000);

    for (uint64_t d = 1; d <= 4096; d++) {
        uint64_t n = (m->tsc_hz * d + APIC_BUS_HZ / 2) / APIC_BUS_HZ;
        if (n > max_n)
            break;
        uint64_t hz = APIC_BUS_HZ * n / d;
        uint64_t error = hz > m->tsc_hz ? hz - m->tsc_hz : m->tsc_hz - hz;
        if (n && error < best_error) {
            best_error = error;
            best_n = n;
            best_d = d;
        }
    }
    add(m, 0x15, 0, best_n ? best_d : 0, best_n, best_n ? APIC_BUS_HZ : 0, 0);
    uint32_t mhz = (m->tsc_hz + 500000) / 1000000;
    add(m, 0x16, 0, mhz, mhz, 100, 0);
}

static void add_brand(struct cpu_model *m, const char *host)
{
    static const char head[] = "Ringshift virtual CPU (";
    char s[48];
    unsigned n = 0;

    for (unsigned i = 0; i < sizeof(s); i++)
        s[i] = 0;
    for (const char *p = head; *p; p++)
        s[n++] = *p;
    while (*host == ' ')
        host++;
    while (*host && n < sizeof(s) - 2) {
        /* "(R)" and "(TM)" would leave no room for what matters. */
        unsigned mark = host[0] != '('                                       ? 0
                        : host[1] == 'R' && host[2] == ')'                   ? 3
                        : host[1] == 'T' && host[2] == 'M' && host[3] == ')' ? 4
                                                                             : 0;
        if (mark)
            host += mark;
        else
            s[n++] = *host++;
    }
    while (s[n - 1] == ' ')
        n--;
    s[n] = ')';
    for (unsigned i = 0; i < 3; i++)
        add(m, 0x80000002 + i, 0, word_of(s + 16 * i), word_of(s + 16 * i + 4),
            word_of(s + 16 * i + 8), word_of(s + 16 * i + 12));
}

static void add_extended(struct cpu_model *m, const uint32_t h1[4], uint32_t sig, uint32_t f1d,
                         const char *brand)
{
    bool amd = m->vendor == CPU_VENDOR_AMD;
    uint32_t c = h1[2] & (FX1C_LAHF | FX1C_LZCNT | FX1C_PREFETCHW);
    uint32_t d = FX1D_VIRTUAL;

    m->max_extended = amd ? 0x80000021 : 0x80000008;
    if (amd) {
        d |= f1d & FX1D_COMMON;
        if (m->cpus > 1)
            c |= FX1C_CMP_LEGACY;
        add(m, 0x80000000, 0, m->max_extended, word_of("Auth"), word_of("cAMD"), word_of("enti"));
        add(m, 0x80000001, 0, sig, 0, c, d);
    } else {
        add(m, 0x80000000, 0, m->max_extended, 0, 0, 0);
        add(m, 0x80000001, 0, 0, 0, c, d);
    }
    add_brand(m, brand);
    add(m, 0x80000007, 0, 0, 0, 0, BIT(8)); /* invariant TSC */
    if (amd) {
        add(m, 0x80000008, 0, CPU_PHYS_BITS | 48 << 8,
            FX8B_IBPB | FX8B_IBRS | FX8B_IBRS_ALWAYS | FX8B_IBRS_PREFERRED | FX8B_SSB_NO |
                FX8B_BTC_NO,
            (m->cpus - 1) | id_bits(m->cpus) << 12, 0);
        add(m, 0x80000021, 0, FX21A_LFENCE_SERIAL | FX21A_NULL_SEL | FX21A_AUTO_IBRS, 0, 0, 0);
    } else {
        add(m, 0x80000008, 0, CPU_PHYS_BITS | 48 << 8, 0, 0, 0);
    }
}

/* What follows from the leaves for control registers. */
static void derive_limits(struct cpu_model *m, bool xsave)
{
    m->cr4_valid = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE |
                   CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE |
                   CR4_SMEP | CR4_SMAP;
    if (xsave)
        m->cr4_valid |= CR4_OSXSAVE;
    m->efer_valid = EFER_SCE | EFER_LME | EFER_NX;
    /* Accepted, without effect (see the overview). */
    m->spec_ctrl_valid = SPEC_CTRL_IBRS | SPEC_CTRL_STIBP | SPEC_CTRL_SSBD;
    if (m->vendor == CPU_VENDOR_AMD) {
        m->efer_valid |= EFER_AUTO_IBRS;
    } else {
        m->spec_ctrl_valid |= SPEC_CTRL_BHI_DIS_S;
        m->arch_capabilities = ARCH_CAPS;
    }
}

/* XCR0 components and leaf D of the host. */
static void host_xsave(struct cpu_model *m)
{
    uint32_t r[4], lo, hi;

    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    m->xcr0_valid = (((uint64_t)hi << 32) | lo) & XCR0_VIRTUALISED;
    if ((m->xcr0_valid & XCR0_AVX512) != XCR0_AVX512 || !(m->xcr0_valid & XCR0_AVX))
        m->xcr0_valid &= ~(uint64_t)XCR0_AVX512;
    host_cpuid(0xd, 1, r);
    m->xsavec = r[0] & FD1_XSAVEC;
    m->xgetbv1 = r[0] & FD1_XGETBV1;
    add(m, 0xd, 0, m->xcr0_valid, 0, 0, 0); /* EBX, ECX are computed */
    add(m, 0xd, 1, r[0] & (FD1_XSAVEOPT | FD1_XSAVEC | FD1_XGETBV1), 0, 0, 0);
    for (unsigned i = 2; i < CPU_MODEL_XSTATES; i++) {
        if (!(m->xcr0_valid >> i & 1))
            continue;
        host_cpuid(0xd, i, r);
        m->xstate[i].size = r[0];
        m->xstate[i].offset = r[1];
        m->xstate[i].align64 = r[2] & 2;
        add(m, 0xd, i, r[0], r[1], r[2] & 2, 0);
    }
}

/* Intel cache leaves for one thread per core: L1 and L2 are the core's, L3 the package's. */
static void host_caches(struct cpu_model *m)
{
    uint32_t r[4];

    host_cpuid(2, 0, r);
    add(m, 2, 0, r[0], r[1], r[2], r[3]);
    for (uint32_t sub = 0; sub < 6; sub++) {
        host_cpuid(4, sub, r);
        if (!(r[0] & 0x1f))
            break;
        bool shared = (r[0] >> 5 & 7) >= 3;
        uint32_t sharing = shared ? (1u << id_bits(m->cpus)) - 1 : 0;
        uint32_t cores = (1u << id_bits(m->cpus)) - 1;
        uint32_t a = (r[0] & 0x3fff) | sharing << 14 | (cores > 63 ? 63 : cores) << 26;
        add(m, 4, sub, a, r[1], r[2], r[3] & 7);
    }
}

static void clear(struct cpu_model *m)
{
    for (unsigned i = 0; i < sizeof(*m); i++)
        ((uint8_t *)m)[i] = 0;
}

void cpu_model_host(struct cpu_model *m, uint32_t cpus, uint64_t tsc_hz)
{
    uint32_t h0[4], h1[4], h7[4] = {0}, h71[4] = {0}, x0[4], x1[4] = {0}, r[4];
    uint32_t brand[13] = {0};

    clear(m);
    m->cpus = cpus ? cpus : 1;
    m->tsc_hz = tsc_hz;
    host_cpuid(0, 0, h0);
    host_cpuid(1, 0, h1);
    host_cpuid(0x80000000, 0, x0);
    if (h0[0] >= 7) {
        host_cpuid(7, 0, h7);
        if (h7[0] >= 1)
            host_cpuid(7, 1, h71);
    }
    if (x0[0] >= 0x80000001)
        host_cpuid(0x80000001, 0, x1);
    if (x0[0] >= 0x80000004)
        for (unsigned i = 0; i < 3; i++)
            host_cpuid(0x80000002 + i, 0, brand + 4 * i);
    m->vendor =
        h0[1] == word_of("Auth") || h0[1] == word_of("Hygo") ? CPU_VENDOR_AMD : CPU_VENDOR_INTEL;
    bool amd = m->vendor == CPU_VENDOR_AMD;

    /* XSAVE counts only where the host kernel has enabled it; what needs the state behind it goes
     * with it. */
    bool xsave = h0[0] >= 0xd && (h1[2] & F1C_OSXSAVE);
    m->max_basic = 0x1f;
    add_vendor(m);
    if (xsave)
        host_xsave(m);
    bool avx = m->xcr0_valid & XCR0_AVX, avx512 = m->xcr0_valid & XCR0_AVX512;

    uint32_t c = (h1[2] & F1C_NATIVE) | F1C_VIRTUAL;
    uint32_t d = F1D_VIRTUAL | F1D_X86_64 | (m->cpus > 1 ? F1D_HTT : 0);
    if (!xsave)
        c &= ~F1C_XSAVE;
    if (!avx)
        c &= ~F1C_NEEDS_XSAVE;
    add(m, 1, 0, h1[0], leaf1_ebx(m, h1[1]), c, d);

    h7[1] &= F7B_NATIVE;
    h7[2] &= F7C_NATIVE;
    h7[3] &= F7D_NATIVE;
    h71[0] &= F71A_NATIVE;
    if (!avx) {
        h7[1] &= ~F7B_AVX2;
        h7[2] &= ~(F7C_VAES | F7C_VPCLMUL);
        h71[0] &= ~F71A_AVX_VNNI;
    }
    if (!avx512) {
        h7[1] &= ~F7B_AVX512;
        h7[2] &= ~F7C_AVX512;
        h7[3] &= ~F7D_AVX512FP16;
        h71[0] &= ~F71A_AVX512BF16;
    }
    add(m, 7, 0, 2, h7[1] | F7B_VIRTUAL, h7[2] | F7C_VIRTUAL,
        h7[3] | (amd ? 0 : F7D_SPEC_CTRL | F7D_ARCH_CAP));
    add(m, 7, 1, h71[0], 0, 0, 0);
    add(m, 7, 2, 0, 0, 0, amd ? 0 : F72D_BHI_CTRL);

    if (!amd)
        host_caches(m);
    add(m, 6, 0, BIT(2), 0, 0, 0); /* ARAT: the APIC timer never stops */
    add_topology(m, 0xb);
    add_topology(m, 0x1f);
    add_tsc(m);
    add_signature(m);
    add_extended(m, x1, h1[0], d, (const char *)brand);
    /* Legacy cache descriptions: AMD's L1 and L2/L3, Intel's L2. */
    if (amd && x0[0] >= 0x80000006) {
        host_cpuid(0x80000005, 0, r);
        add(m, 0x80000005, 0, r[0], r[1], r[2], r[3]);
    }
    if (x0[0] >= 0x80000006) {
        host_cpuid(0x80000006, 0, r);
        add(m, 0x80000006, 0, r[0], r[1], r[2], r[3]);
    }
    derive_limits(m, xsave);
}

void cpu_model_baseline(struct cpu_model *m, uint32_t cpus, uint64_t tsc_hz)
{
    static const uint32_t x1[4] = {0, 0, FX1C_LAHF, 0};
    const uint32_t sig = 0x106a5; /* family 6, model 1AH: Nehalem, the first x86-64-v2 CPU */

    clear(m);
    m->cpus = cpus ? cpus : 1;
    m->tsc_hz = tsc_hz;
    m->max_basic = 0x16;
    add_vendor(m);
    uint32_t d = F1D_VIRTUAL | F1D_X86_64 | (m->cpus > 1 ? F1D_HTT : 0);
    add(m, 1, 0, sig, leaf1_ebx(m, 8 << 8),
        F1C_SSE3 | F1C_SSSE3 | F1C_CX16 | F1C_SSE41 | F1C_SSE42 | F1C_POPCNT | F1C_VIRTUAL, d);
    add(m, 7, 0, 2, F7B_VIRTUAL, F7C_VIRTUAL, F7D_SPEC_CTRL | F7D_ARCH_CAP);
    add(m, 7, 2, 0, 0, 0, F72D_BHI_CTRL);
    add(m, 6, 0, BIT(2), 0, 0, 0);
    add_topology(m, 0xb);
    add_tsc(m);
    add_signature(m);
    add_extended(m, x1, sig, d, "x86-64-v2 baseline");
    m->xcr0_valid = XCR0_X87 | XCR0_SSE;
    derive_limits(m, false);
}

/* Size of an XSAVE area for these components; x87 and SSE always have their 512 bytes. */
static uint32_t xsave_size(const struct cpu_model *m, uint64_t mask, bool compacted)
{
    uint32_t size = 512 + 64;

    for (unsigned i = 2; i < CPU_MODEL_XSTATES; i++) {
        if (!(mask >> i & 1))
            continue;
        if (compacted) {
            if (m->xstate[i].align64)
                size = (size + 63) & ~63u;
            size += m->xstate[i].size;
        } else if (m->xstate[i].offset + m->xstate[i].size > size) {
            size = m->xstate[i].offset + m->xstate[i].size;
        }
    }
    return size;
}

/* Leaves whose result depends on ECX. */
static bool has_subleaves(uint32_t leaf)
{
    return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x1f;
}

void cpu_cpuid_forget(struct vcpu *v)
{
    /* A leaf that has another place. */
    for (unsigned i = 0; i < CPUID_CACHE_SIZE; i++)
        v->cpuid_cache.key[i].leaf = i == 0;
}

void cpu_cpuid_remember(struct vcpu *v, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    struct cpuid_cache *c = &v->cpuid_cache;
    uint32_t offset = leaf << CPUID_CACHE_ROL | leaf >> (32 - CPUID_CACHE_ROL);
    unsigned i = (offset & CPUID_CACHE_MASK) / 16;

    cpu_cpuid(v, leaf, sub, out);
    c->key[i].sub_mask = has_subleaves(leaf) ? ~0u : 0;
    c->key[i].sub = sub & c->key[i].sub_mask;
    c->key[i].leaf = leaf;
    for (unsigned j = 0; j < 4; j++)
        c->r[i][j] = out[j];
}

void cpu_cpuid(const struct vcpu *v, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct cpu_model *m = v->model;
    uint32_t wanted = has_subleaves(leaf) ? sub : 0;

    out[0] = out[1] = out[2] = out[3] = 0;
    for (unsigned i = 0; i < m->leaves; i++) {
        const struct cpuid_leaf *l = &m->leaf[i];
        if (l->leaf == leaf && l->sub == wanted) {
            for (unsigned j = 0; j < 4; j++)
                out[j] = l->r[j];
            break;
        }
    }

    switch (leaf) {
    case 1:
        out[1] |= v->id << 24;
        if (v->cr4 & CR4_OSXSAVE)
            out[2] |= F1C_OSXSAVE;
        if (!(v->apic_base & 1 << 11))
            out[3] &= ~F1D_APIC;
        break;
    case 0xb:
    case 0x1f:
        /* Every sub-leaf returns its number and the x2APIC ID (SDM vol. 2, CPUID). */
        if (leaf <= m->max_basic) {
            out[2] = (out[2] & ~0xffu) | (sub & 0xff);
            out[3] = v->id;
        }
        break;
    case 0xd:
        if (sub == 0 && out[0]) {
            out[1] = xsave_size(m, v->xcr0, false);
            out[2] = xsave_size(m, m->xcr0_valid, false);
        } else if (sub == 1 && m->xsavec) {
            out[1] = xsave_size(m, v->xcr0 | v->xss, true);
        }
        break;
    case 0x80000001:
        /* Intel announces SYSCALL where it exists: in 64-bit mode (SDM vol. 2, CPUID). */
        if (m->vendor != CPU_VENDOR_AMD && !vcpu_long64(v))
            out[3] &= ~FX1D_SYSCALL;
        if (m->vendor == CPU_VENDOR_AMD && !(v->apic_base & 1 << 11))
            out[3] &= ~F1D_APIC;
        break;
    default:
        break;
    }
}
