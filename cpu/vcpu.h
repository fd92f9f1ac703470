/*
 * cpu/ owns the architectural state of a virtual CPU and the meaning of every privileged or
 * sensitive instruction: control and debug registers, MSRs, CPUID, segments, exceptions and
 * interrupts.  It knows nothing of instruction encodings (translator/), of devices (reached
 * through cpu/platform.h) or of how guest memory is shadowed (mmu/).
 *
 * This header defines `struct vcpu`, the one object everything hangs off.  There is no global
 * "current vCPU": translated code reaches it through the host's GS base, C code through a pointer.
 *
 * All C code that may run while guest floating-point state is live in the host's registers
 * (cpu/, mmu/, the light part of translator/) is compiled with -mgeneral-regs-only and calls no
 * libc function; what needs libc calls vcpu_fp_save() first (cpu/fpu.h).
 */
#ifndef RINGSHIFT_CPU_VCPU_H
#define RINGSHIFT_CPU_VCPU_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct guest_ram;
struct platform;
struct mmu;
struct engine_vcpu;

enum gpr {
    RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI,
    R8, R9, R10, R11, R12, R13, R14, R15,
};

enum seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT, SEG_NONE = 0xff };

/* RFLAGS (SDM vol. 1, 3.4.3). */
enum {
    FL_CF = 1u << 0, FL_FIXED1 = 1u << 1, FL_PF = 1u << 2, FL_AF = 1u << 4, FL_ZF = 1u << 6,
    FL_SF = 1u << 7, FL_TF = 1u << 8, FL_IF = 1u << 9, FL_DF = 1u << 10, FL_OF = 1u << 11,
    FL_IOPL = 3u << 12, FL_NT = 1u << 14, FL_RF = 1u << 16, FL_VM = 1u << 17, FL_AC = 1u << 18,
    FL_VIF = 1u << 19, FL_VIP = 1u << 20, FL_ID = 1u << 21,
    FL_ARITH = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF,
    /* The flags that live in the host's EFLAGS while translated code runs. */
    FL_HOST = FL_ARITH | FL_DF,
};

enum {
    CR0_PE = 1u << 0, CR0_MP = 1u << 1, CR0_EM = 1u << 2, CR0_TS = 1u << 3, CR0_ET = 1u << 4,
    CR0_NE = 1u << 5, CR0_WP = 1u << 16, CR0_AM = 1u << 18, CR0_NW = 1u << 29, CR0_CD = 1u << 30,
    CR0_PG = 1u << 31,
};

enum {
    CR4_VME = 1u << 0, CR4_PVI = 1u << 1, CR4_TSD = 1u << 2, CR4_DE = 1u << 3, CR4_PSE = 1u << 4,
    CR4_PAE = 1u << 5, CR4_MCE = 1u << 6, CR4_PGE = 1u << 7, CR4_PCE = 1u << 8,
    CR4_OSFXSR = 1u << 9, CR4_OSXMMEXCPT = 1u << 10, CR4_UMIP = 1u << 11, CR4_LA57 = 1u << 12,
    CR4_FSGSBASE = 1u << 16, CR4_PCIDE = 1u << 17, CR4_OSXSAVE = 1u << 18, CR4_SMEP = 1u << 20,
    CR4_SMAP = 1u << 21,
};

enum { EFER_SCE = 1u << 0, EFER_LME = 1u << 8, EFER_LMA = 1u << 10, EFER_NX = 1u << 11 };

enum vector {
    EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6,
    EXC_NM = 7, EXC_DF = 8, EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14,
    EXC_MF = 16, EXC_AC = 17, EXC_MC = 18, EXC_XM = 19,
};

/* #PF error code bits (SDM vol. 3, 4.7). */
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };

/*
 * A segment register with its hidden part.  `attr` holds the descriptor's access byte in bits 0-7
 * (type 0-3, S 4, DPL 5-6, P 7) and AVL, L, D/B, G in bits 12-15, as in bits 40-55 of a
 * descriptor with the limit nibble cleared.  `limit` is in bytes, already expanded by G.
 * A null selector loaded into a data segment has attr 0.
 */
struct segment {
    uint16_t sel;
    uint16_t attr;
    uint32_t limit;
    uint64_t base;
};
enum {
    SEGA_TYPE = 0x000f, SEGA_S = 0x0010, SEGA_DPL = 0x0060, SEGA_P = 0x0080, SEGA_AVL = 0x1000,
    SEGA_L = 0x2000, SEGA_DB = 0x4000, SEGA_G = 0x8000,
};

struct dtable { /* GDTR, IDTR */
    uint64_t base;
    uint16_t limit;
};

/* What a C function that stands for an instruction tells the translator. */
enum cpu_result {
    CPU_NEXT = 0,  /* done; go on at the next instruction                                      */
    CPU_JUMP,      /* done; vcpu->rip holds where to go on                                     */
    CPU_EXCEPTION, /* fault: vcpu->exc is filled in, no state changed, rip = the instruction   */
    CPU_REPEAT,    /* a repeated string instruction did part of its work: state is consistent
                      at the same rip; take events, then run the instruction again             */
    CPU_EXIT,      /* leave engine->run(); vcpu->exit holds why; rip is where to resume        */
};

/* Why engine->run() returned. */
enum vcpu_exit {
    VCPU_EXIT_NONE = 0,
    VCPU_EXIT_HLT,         /* halted and nothing pending: block in the VMM until an event      */
    VCPU_EXIT_TRIPLE,      /* shutdown (SDM vol. 3, 6.15, #DF)                                 */
    VCPU_EXIT_STOP,        /* EV_STOP was raised (power-off, reset, quit)                      */
    VCPU_EXIT_UNSUPPORTED, /* the guest entered a mode this build cannot run; exit_reason says */
    VCPU_EXIT_ERROR,       /* host-side failure (out of memory, ...); exit_reason says         */
};

/* Bits of vcpu->events: set by anyone through vcpu_raise(), taken by the vCPU thread. */
enum vcpu_event {
    EV_INTR = 1u << 0, /* the interrupt controller has something to deliver: ask intr_ack      */
    EV_NMI = 1u << 1,
    EV_STOP = 1u << 2, /* leave engine->run()                                                  */
    EV_FLUSH = 1u << 3, /* the engine has cross-vCPU work for this vCPU (shoot-down)           */
    EV_A20 = 1u << 4,  /* the A20 gate has moved: translations are void (vcpu_set_a20)         */
    EV_TIMER = 1u << 5, /* a timer of this vCPU's is due: call the platform's run_timers       */
};

struct exception {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t cr2; /* for #PF only: committed to CR2 at delivery */
    uint64_t dr6; /* for #DB only: bits to set in DR6 at delivery */
};

/* One entry of the soft TLB (mmu/soft_tlb.h); emitted code depends on this layout. */
struct soft_tlb_entry {
    uint64_t rtag; /* GVA of the page if readable through this entry, else an unmatchable tag */
    uint64_t wtag; /* GVA of the page if writable (D set, holds no code), else unmatchable    */
    uint64_t host; /* HVA of the page's first byte in the RAM base mapping                    */
    uint64_t info; /* GPA of the page | STLB_* bits                                           */
};
enum { STLB_GLOBAL = 1, STLB_USER = 2, STLB_2M = 4, STLB_1G = 8, STLB_4M = 16 };
#define STLB_BITS 9
#define STLB_SIZE (1u << STLB_BITS)

/* What mmu/soft_tlb.c remembers of one table, one bit per slot, so that a flush visits only the
 * slots that need it. */
struct soft_tlb_map {
    uint64_t filled[STLB_SIZE / 64];
    uint64_t global[STLB_SIZE / 64];
    uint64_t user[STLB_SIZE / 64]; /* U/S = user: what SMAP must hide in stlb[1]              */
    uint64_t big[STLB_SIZE / 64];  /* part of a 2M, 4M or 1G page                             */
    uint64_t big_filter[2];        /* Bloom filter of the big pages, by half of the addresses */
};

/*
 * Translations of device pages, which the soft TLB does not hold: mmu_translate() uses them, every
 * flush drops them all.  The tag is the page's GVA with the MMIO_TLB_* bits of the access; no page has
 * the tag ~0.
 */
struct mmio_tlb_entry {
    uint64_t tag;
    uint64_t gpa; /* of the page */
};
#define MMIO_TLB_SIZE 4u
enum { MMIO_TLB_WRITE = 1, MMIO_TLB_USER = 2 };

/*
 * Entries of the user's soft TLB that are put aside while another PCID is current (mmu/soft_tlb.c): the
 * translations that a guest may expect to find again when it comes back without a flush.
 */
#define STLB_KEPT_SPACES 16u
#define STLB_KEPT        16u
struct stlb_kept {
    uint32_t n;
    uint16_t index[STLB_KEPT];
    struct soft_tlb_entry entry[STLB_KEPT];
};

/*
 * Words of the binary translator that emitted code addresses relative to the GS base.  Owned by
 * translator/ (bt.h says how each is used); here only because there is one GS base.
 */
#define CPUID_CACHE_SIZE 32u
#define JUMP_CACHE_SIZE  65536u
#define BOUNCE_SIZE      16384u
struct vcpu_bt {
    uint64_t self;          /* this vCPU's address                                                 */
    uint64_t hflags;        /* EFLAGS image saved by the exit stubs, loaded by the resume stub     */
    uint64_t resume_target; /* host address the resume stub jumps to                               */
    uint64_t r10, r11;      /* scratch registers across a C helper                                 */
    uint64_t helper_rax, helper_rcx; /* the guest's while an assembly helper uses the registers    */
    uint64_t exit_reason, exit_arg;
    uint64_t shadow_rip;    /* the instruction that an interrupt shadow protects                   */
    /* 64-bit code: the host's RSP is the guest's plus a delta (translator/native_stack.c). */
    uint64_t stack_not;     /* ~delta                                                              */
    uint64_t stack_host;    /* what the resume stub loads RSP with                                 */
    uint64_t xsave_rax, xsave_rdx; /* the guest's own RAX/RDX while an XSAVE runs with a masked one */
    uint64_t flat_base;     /* what the GS base is for 16- and 32-bit code (flat_windows.c)        */
    /* SYSCALL and SYSRET (translator/system_calls.c): where they go, what they load. */
    uint64_t syscall_path, sysret_path;
    uint64_t syscall_cs, syscall_ss, sysret_cs, sysret_ss; /* struct segment up to its base        */
    uint64_t syscall_keep;  /* flags that are left as they are                                     */
    uint64_t syscall_index; /* LSTAR's in the jump cache                                           */
    uint64_t fast_syscalls, fast_sysrets; /* how many did without C code                           */
};

/* What a vCPU thread can be busy with (host_time.h). */
enum host_cause {
    HOST_VMM,       /* the dispatcher, events, all that is not named below */
    HOST_GUEST,     /* translated code, and the host's delivery of signals */
    HOST_TRANSLATE, /* the translator                                      */
    HOST_VERIFY,    /* the verifier of --verify                            */
    HOST_CALLOUT,   /* instructions done in C                              */
    HOST_MEMORY,    /* soft-TLB misses, bounce copies, window faults       */
    HOST_DEVICE,    /* device models, with the wait for the machine lock   */
    HOST_IDLE,      /* asleep: HLT, or the machine is stopped              */
    HOST_CAUSES,
};
struct host_time {
    bool on;
    enum host_cause cause; /* now */
    uint64_t since;        /* TSC */
    uint64_t spent[HOST_CAUSES];
};

struct vcpu {
    /* -- Hot: addressed by emitted code at small offsets from the host's GS base. -------------- */
    uint64_t gpr[16]; /* r10/r11 live here; the others only while the vCPU is in C code        */
    uint64_t rip;     /* valid while in C code                                                 */
    uint64_t rflags;  /* all bits valid in C code; in translated code FL_HOST is in EFLAGS     */
    uint64_t scratch[8]; /* spill space of emitted code                                        */
    uint64_t host_rsp;   /* the C stack to return to from translated code                      */
    uint64_t tsc_offset; /* guest TSC = host TSC + offset                                      */
    _Atomic uint32_t events; /* enum vcpu_event                                                */
    _Atomic uint32_t exit_request; /* nonzero: leave translated code at the next boundary      */
    uint32_t fp_saved;   /* guest FP state is in fp_area, not in the host's registers          */
    uint32_t ac_filled;  /* stlb[1] holds user pages, which CLAC must evict                    */
    uint64_t ac_page;    /* user page that supervisor code touched last under AC (soft_tlb.c)  */
    uint32_t interrupt_shadow; /* STI / MOV SS: no interrupt until after the next instruction  */
    struct vcpu_bt bt;

    struct segment seg[SEG_COUNT];

    /* -- Architectural state. ------------------------------------------------------------------ */
    struct segment ldtr, tr;
    struct dtable gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8; /* cr8 mirrors the TPR; platform->set_cr8 is the authority */
    uint64_t dr[8];                   /* dr[4], dr[5] unused                                     */
    uint64_t xcr0;
    uint8_t cpl;
    bool halted;
    bool nmi_blocked;
    uint32_t id; /* index of this vCPU; APIC ID */

    /* MSRs (names after the SDM). FS/GS base live in seg[].base. */
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat, apic_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip, misc_enable, mtrr_def_type;
    uint64_t mtrr_var[16], mtrr_fix[11], spec_ctrl, tsc_adjust, tsc_deadline, bios_sign_id;
    uint64_t debugctl, xss;

    uint32_t mode_key; /* cpu_segment_key() of the current state; kept by cpu_mode_changed()   */
    _Atomic bool a20_off; /* the A20 gate is closed: bit 20 of physical addresses is 0         */
    uint64_t pdpte[4]; /* PAE paging: the PDPTE registers, loaded with CR3 (SDM vol. 3, 4.4.1) */

    struct exception exc; /* meaningful after CPU_EXCEPTION */
    uint8_t last_interrupt; /* vector of the interrupt or NMI delivered last, for traces */
    enum vcpu_exit exit;
    char exit_reason[160]; /* one sentence for EXIT_UNSUPPORTED / EXIT_ERROR */

    /* -- What the vCPU works with; set up by the machine, constant while it runs. --------------- */
    struct platform *platform;
    struct guest_ram *ram;
    struct engine_vcpu *engine; /* the engine's own per-vCPU state */
    const struct cpu_model *model; /* what CPUID says: cpu/cpuid.h */
    struct host_time host_time;
    _Atomic int host_tid;       /* thread to signal, 0 while not running guest code */

    /* Guest FP/SIMD state while fp_saved; XSAVE standard format, all components of host XCR0. */
    uint64_t fp_host_mask;
    uint8_t *fp_area; /* 64-byte aligned, size from CPUID.0DH */

    /* What CPUID has answered 64-bit code, for translated code to look up (cpu/cpuid.h). */
    struct cpuid_cache {
        struct {
            uint32_t leaf, sub;
            uint32_t sub_mask; /* 0: ECX does not matter */
            uint32_t unused;
        } key[CPUID_CACHE_SIZE];
        uint32_t r[CPUID_CACHE_SIZE][4]; /* EAX, EBX, ECX, EDX */
    } cpuid_cache;

    /* -- Soft TLB: one for user mode, one for supervisor mode. ---------------------------------- */
    struct soft_tlb_entry stlb[2][STLB_SIZE] __attribute__((aligned(64)));
    struct soft_tlb_map stlb_map[2];
    uint64_t stlb_cr3;                        /* whose translations they are */
    uint64_t stlb_kept_cr3[STLB_KEPT_SPACES]; /* by PCID: whose those put aside are; ~0: nobody's */
    struct stlb_kept stlb_kept[STLB_KEPT_SPACES];
    struct mmio_tlb_entry mmio_tlb[MMIO_TLB_SIZE];

    uint64_t pcid_cr3[4096]; /* the value of CR3 that was loaded last with each PCID */

    /* Binary translator: host entry points by the low 16 bits of the guest address, one table for
     * user and one for supervisor code, and the copy that awkward accesses work on. */
    uint64_t jump_cache[2][JUMP_CACHE_SIZE] __attribute__((aligned(64)));
    /* HVA - GVA by address bits 39..54, for user and for supervisor code (translator/windows.c). */
    uint64_t window_delta[2][65536] __attribute__((aligned(64)));
    uint8_t bounce[BOUNCE_SIZE] __attribute__((aligned(4096)));
};

/*
 * Sets event bits (enum vcpu_event) and makes the vCPU notice: out of HLT if it sleeps in the VMM,
 * out of translated code by a signal.  Callable from any thread.  Implemented by the machine
 * (runtime/), which knows the thread and the engine.
 */
void vcpu_raise(struct vcpu *v, uint32_t events);

/*
 * A zeroed vCPU in shared memory of its own, which the engine can map a second time; NULL if the host
 * has none. vcpu_free() takes it or NULL.
 */
struct vcpu *vcpu_alloc(void);
void vcpu_free(struct vcpu *v);

/* -- The mode (SDM vol. 1, 3.1 and vol. 3, 2.2). ------------------------------------------------- */

/* The PCID that a value of CR3 stands for (SDM vol. 3, 4.10.1). */
static inline unsigned vcpu_pcid_of(const struct vcpu *v, uint64_t cr3)
{
    return v->cr4 & CR4_PCIDE ? cr3 & 0xfff : 0;
}

/* 64-bit mode. */
static inline bool vcpu_long64(const struct vcpu *v)
{
    return (v->efer & EFER_LMA) && (v->seg[SEG_CS].attr & SEGA_L);
}

/* IA-32e mode: 64-bit or compatibility mode. */
static inline bool vcpu_long(const struct vcpu *v)
{
    return v->efer & EFER_LMA;
}

/* Real-address mode.  CPL is 0 then. */
static inline bool vcpu_real(const struct vcpu *v)
{
    return !(v->cr0 & CR0_PE);
}

/* Virtual-8086 mode.  CPL is 3 then; RFLAGS.VM is never set in IA-32e mode. */
static inline bool vcpu_v86(const struct vcpu *v)
{
    return (v->rflags & FL_VM) && (v->cr0 & CR0_PE);
}

/* A segment is base + 16 * selector: real-address and virtual-8086 mode. */
static inline bool vcpu_real_segments(const struct vcpu *v)
{
    return vcpu_real(v) || vcpu_v86(v);
}

enum cpu_mode { CPU_REAL, CPU_V86, CPU_PROTECTED, CPU_COMPATIBILITY, CPU_LONG64 };

static inline enum cpu_mode vcpu_mode(const struct vcpu *v)
{
    if (vcpu_long(v))
        return vcpu_long64(v) ? CPU_LONG64 : CPU_COMPATIBILITY;
    return vcpu_real(v) ? CPU_REAL : vcpu_v86(v) ? CPU_V86 : CPU_PROTECTED;
}

/* Default operand and address size in bytes: 2 or 4 after CS.D (in real mode too: a protected-mode
 * CS outlives the switch back until it is loaded), 8 in 64-bit mode (addresses; operands are 4). */
static inline unsigned vcpu_code_size(const struct vcpu *v)
{
    return vcpu_long64(v) ? 8 : v->seg[SEG_CS].attr & SEGA_DB ? 4 : 2;
}

/* Width in bytes of the stack pointer that pushes and pops use: SS.B, 8 in 64-bit mode. */
static inline unsigned vcpu_stack_size(const struct vcpu *v)
{
    return vcpu_long64(v) ? 8 : v->seg[SEG_SS].attr & SEGA_DB ? 4 : 2;
}

/* All bits of an address or stack pointer of `size` (2, 4, 8) bytes. */
static inline uint64_t size_mask(unsigned size)
{
    return size == 8 ? ~0ull : (1ull << (8 * size)) - 1;
}

#endif
