/*
 * The CPU model: what CPUID tells the guest, and the limits that follow from it (which bits of
 * CR4, XCR0, EFER exist).  A model is built once, before the vCPUs run, and is constant after
 * that; CPUID's dynamic bits are added from the vCPU's state at execution.
 */
#ifndef RINGSHIFT_CPU_CPUID_H
#define RINGSHIFT_CPU_CPUID_H

#include "cpu/vcpu.h"

/*
 * MAXPHYADDR of every model; agrees with the reserved bits of the page walk (mmu/walk.h).  1 TiB:
 * Debian's OVMF builds page tables for the whole of it out of 2 MiB pages, which at 46 bits are
 * 256 MiB of tables, and jumps to address 0 where they do not fit.
 */
#define CPU_PHYS_BITS 40

/*
 * The core crystal clock of CPUID.15H, and with it the input clock of the local APIC timer (SDM
 * vol. 3, 10.5.4: the timer runs at the crystal clock if CPUID.15H enumerates it, divided by the
 * divide configuration register).  Linux takes the LAPIC frequency from there without calibrating.
 */
#define APIC_BUS_HZ 25000000u

enum cpu_vendor { CPU_VENDOR_INTEL, CPU_VENDOR_AMD };

#define XCR0_X87    0x01u
#define XCR0_SSE    0x02u
#define XCR0_AVX    0x04u
#define XCR0_AVX512 0xe0u /* opmask, ZMM_Hi256, Hi16_ZMM */
/* The XSAVE components that may be exposed. */
#define XCR0_VIRTUALISED (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512)

struct cpuid_leaf {
    uint32_t leaf, sub;
    uint32_t r[4]; /* EAX, EBX, ECX, EDX */
};
#define CPU_MODEL_LEAVES  48
#define CPU_MODEL_XSTATES 8

struct cpu_model {
    enum cpu_vendor vendor;
    uint32_t cpus; /* vCPUs of the machine: cores of one package */
    uint64_t tsc_hz;
    uint32_t max_basic, max_extended;
    uint64_t cr4_valid, efer_valid, xcr0_valid;
    uint64_t spec_ctrl_valid;   /* writable bits of SPEC_CTRL; 0: the MSR does not exist */
    uint64_t arch_capabilities; /* IA32_ARCH_CAPABILITIES; 0: the MSR does not exist */
    bool xsavec, xgetbv1;
    struct {
        uint32_t size, offset; /* in the standard format; size 0: no such component */
        bool align64;          /* in the compacted format */
    } xstate[CPU_MODEL_XSTATES];
    uint32_t leaves;
    struct cpuid_leaf leaf[CPU_MODEL_LEAVES];
};

/* The host's CPU as far as it can be virtualised; `tsc_hz` is the rate of the host's TSC. */
void cpu_model_host(struct cpu_model *m, uint32_t cpus, uint64_t tsc_hz);

/* A fixed model for tests: an Intel x86-64-v2 CPU without XSAVE, the same on every host. */
void cpu_model_baseline(struct cpu_model *m, uint32_t cpus, uint64_t tsc_hz);

/* CPUID with EAX = leaf, ECX = sub. */
void cpu_cpuid(const struct vcpu *v, uint32_t leaf, uint32_t sub, uint32_t out[4]);

/* The same for the CPU in 64-bit mode, which goes into v->cpuid_cache. */
void cpu_cpuid_remember(struct vcpu *v, uint32_t leaf, uint32_t sub, uint32_t out[4]);
/* To be called whenever what an answer depends on has changed: CR4.OSXSAVE, XCR0, the APIC's enable
 * bit. */
void cpu_cpuid_forget(struct vcpu *v);
/* Place of a leaf in the cache: bit 31 and the lowest four, as a rotation by CPUID_CACHE_ROL and a mask
 * put them into the offset of a 16-byte entry. */
#define CPUID_CACHE_ROL  5
#define CPUID_CACHE_MASK ((CPUID_CACHE_SIZE - 1) * 16u)

#endif
