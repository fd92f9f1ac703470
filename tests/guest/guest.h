/*
 * A small library for bare-metal test kernels.
 *
 * The central idea: a test puts a machine-code snippet and a full register state together and
 * calls run(), which enters the snippet by IRETQ at CPL 0 or 3 and comes back at the next
 * exception or interrupt that no handler claims, with everything recorded in `T`.  A snippet ends
 * with INT 0x80 unless something else happens first.
 *
 * Before each test the CPU is brought to the same state (reset_cpu): flat segments, IDT with an
 * IST stack for every vector, IF = 0, default control registers, empty test areas of the address
 * space.  All of the kernel is mapped a second time for CPL 3, USER_OFFSET higher.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* start.S depends on the order. */
struct regs {
    u64 rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 rip, rflags, cs, ss;
};

struct trap {
    struct regs r;
    u64 vector, error, cr2, dr6;
};

struct isr_frame {
    u64 gpr[16]; /* in the order of struct regs; [4] (rsp) is unused */
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

extern struct trap T; /* what ended the last run() */

enum {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    BR = 5,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14,
    MF = 16,
    AC = 17,
    XM = 19,
    DONE = 0x80,
};
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };

enum {
    F_CF = 1,
    F_PF = 4,
    F_AF = 0x10,
    F_ZF = 0x40,
    F_SF = 0x80,
    F_TF = 0x100,
    F_IF = 0x200,
    F_DF = 0x400,
    F_OF = 0x800,
    F_IOPL = 0x3000,
    F_NT = 0x4000,
    F_RF = 0x10000,
    F_VM = 0x20000,
    F_AC = 0x40000,
    F_VIF = 0x80000,
    F_VIP = 0x100000,
    F_ID = 0x200000,
    F_ARITH = 0x8d5,
};

/* Selectors (GDT layout in lib.c). */
enum {
    SEL_K32 = 0x08,
    SEL_KCODE = 0x10,
    SEL_KDATA = 0x18,
    SEL_UCODE32 = 0x20,
    SEL_UDATA = 0x28,
    SEL_UCODE = 0x30,
    SEL_TSS = 0x38,
    SEL_LDT = 0x48,
    SEL_SYSENTER = 0x58,
    SEL_FREE = 0x90,
};

enum {
    MSR_APIC_BASE = 0x1b,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP,
    MSR_SYSENTER_EIP,
    MSR_PAT = 0x277,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_XSS = 0xda0,
};
#define MSR_EFER    0xc0000080u
#define MSR_STAR    0xc0000081u
#define MSR_LSTAR   0xc0000082u
#define MSR_CSTAR   0xc0000083u
#define MSR_FMASK   0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KGS     0xc0000102u
#define MSR_TSC_AUX 0xc0000103u

#define CR0_PE         1u
#define CR0_MP         2u
#define CR0_EM         4u
#define CR0_TS         8u
#define CR0_NE         0x20u
#define CR0_WP         0x10000u
#define CR0_AM         0x40000u
#define CR0_NW         0x20000000u
#define CR0_CD         0x40000000u
#define CR0_PG         0x80000000u
#define CR4_TSD        (1u << 2)
#define CR4_DE         (1u << 3)
#define CR4_PAE        (1u << 5)
#define CR4_PGE        (1u << 7)
#define CR4_PCE        (1u << 8)
#define CR4_OSFXSR     (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_UMIP       (1u << 11)
#define CR4_LA57       (1u << 12)
#define CR4_FSGSBASE   (1u << 16)
#define CR4_PCIDE      (1u << 17)
#define CR4_OSXSAVE    (1u << 18)
#define CR4_SMEP       (1u << 20)
#define CR4_SMAP       (1u << 21)

/* Addresses.  The kernel is identity mapped; CPL 3 sees it USER_OFFSET higher. */
#define USER_OFFSET 0x40000000ul         /* below 2 GiB: 32-bit addresses reach it */
#define UVA         0x0000100000000000ul /* a PML4 slot for tests, lower half */
#define UVA2        0x0000108000000000ul /* the slot after it */
#define KVA         0xffffc00000000000ul /* a PML4 slot for tests, upper half */
#define NONCANON    0x0000800000000000ul

/* -- Tests ------------------------------------------------------------------------------------ */
struct test {
    const char *name;
    void (*fn)(void);
};
#define TEST(theme, name)                                                                          \
    static void test_##theme##_##name(void);                                                       \
    static const struct test entry_##theme##_##name                                                \
        __attribute__((section(".tests"), used)) = {#theme "." #name, test_##theme##_##name};      \
    static void test_##theme##_##name(void)

/* A failed check records its message; the test goes on, so a test may have several. */
void fail(const char *fmt, ...);
bool check_eq(const char *what, u64 got, u64 want);
#define EQ(got, want) check_eq(#got, (u64)(got), (u64)(want))
#define CHECK(cond)   check_eq(#cond, !!(cond), 1)
/* Text put in front of the messages of the following checks (for loops over cases). */
void context(const char *fmt, ...);
#define SKIP(reason)                                                                               \
    do {                                                                                           \
        skip_reason = (reason);                                                                    \
        return;                                                                                    \
    } while (0)
extern const char *skip_reason;
/* Checks that QEMU's TCG (7.2) is known to get wrong; the reason is printed with the result. */
#define TCG_SKIP(reason)                                                                           \
    do {                                                                                           \
        if (on_tcg)                                                                                \
            SKIP("QEMU TCG: " reason);                                                             \
    } while (0)
extern bool on_tcg;

/* -- Output ----------------------------------------------------------------------------------- */
void print(const char *fmt, ...); /* %s %c %d %u %x %lx (64 bit); width and zero flag */

/* -- Running snippets ------------------------------------------------------------------------- */
#define STR2(x) #x
#define STR(x)  STR2(x)
/* The address of a snippet that runs `text` and then INT 0x80. */
#define SNIP(text)                                                                                 \
    ({                                                                                             \
        u8 *snip_;                                                                                 \
        asm volatile(".pushsection .snippets,\"awx\"\n661:\n" text "\n\tint $0x80\n.popsection\n"  \
                     "\tlea 661b(%%rip), %0"                                                       \
                     : "=r"(snip_));                                                               \
        snip_;                                                                                     \
    })
/* The same; the text contains the label 662, whose address goes to `at`. */
#define SNIP_AT(at, text)                                                                          \
    ({                                                                                             \
        u8 *snip_;                                                                                 \
        asm volatile(".pushsection .snippets,\"awx\"\n661:\n" text "\n\tint $0x80\n.popsection\n"  \
                     "\tlea 661b(%%rip), %0\n\tlea 662b(%%rip), %1"                                \
                     : "=r"(snip_), "=r"(at));                                                     \
        snip_;                                                                                     \
    })

/* A register state for CPL 0 or 3: distinct values in all registers, a stack, IF = 0. */
struct regs regs_for(unsigned cpl);
/* Runs until a trap; fills T.  Returns the vector. */
unsigned run(const struct regs *r);
/* Runs `code` (an address within the kernel image; the alias is used at CPL 3). */
unsigned run_at(struct regs *r, const void *code);
/* Runs and expects a fault at the snippet's first byte, with no register changed. */
void fault(struct regs *r, const void *code, unsigned vector, u64 error);
/* The same where the instruction overwrites all arithmetic flags: after its fault they may have any
 * value (docs/deviations.md). */
void fault_of_arithmetic(struct regs *r, const void *code, unsigned vector, u64 error);
void fault_at(struct regs *r, const void *code, const void *at, unsigned vector, u64 error);
/* Runs and expects the INT 0x80 at its end. */
bool done(struct regs *r, const void *code);
void expect(unsigned vector, u64 error);
/* T's rip as an address in the kernel image. */
u64 trap_rip(void);
static inline u64 at_cpl(unsigned cpl, const void *p)
{
    return (u64)p + (cpl == 3 ? USER_OFFSET : 0);
}

/* A handler returns true to resume the interrupted code, false to end run(). */
typedef bool (*handler_fn)(struct isr_frame *f);
extern handler_fn handlers[256];

extern u8 run_stack[16384] __attribute__((aligned(4096)));
extern u8 buffer[8 * 4096] __attribute__((aligned(4096))); /* cleared before each test */
void copy_bytes(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);
void *memcpy(void *dst, const void *src, size_t n);
int memcmp(const void *a, const void *b, size_t n);
u64 random64(void); /* deterministic, restarted for each test */

/* -- Descriptor tables ------------------------------------------------------------------------ */
extern u64 gdt[64];
extern u64 ldt[8];
struct tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3, iomap;
    u8 bitmap[8193];
} __attribute__((packed));
extern struct tss tss;
void idt_set(unsigned vector, void *handler, unsigned sel, unsigned ist, unsigned type_dpl_p);
void idt_default(unsigned vector, unsigned dpl, unsigned ist);
#define DESC(base, limit, access, flags)                                                           \
    (((u64)(limit)&0xffff) | ((u64)(base)&0xffffff) << 16 | (u64)(access) << 40 |                  \
     ((u64)(limit) >> 16 & 0xf) << 48 | (u64)(flags) << 52 | ((u64)(base) >> 24 & 0xff) << 56)

/* -- Paging ----------------------------------------------------------------------------------- */
#define PG_P    1ul
#define PG_W    2ul
#define PG_U    4ul
#define PG_PWT  8ul
#define PG_PCD  0x10ul
#define PG_A    0x20ul
#define PG_D    0x40ul
#define PG_PS   0x80ul
#define PG_G    0x100ul
#define PG_NX   (1ul << 63)
#define PG_ADDR 0x000ffffffffff000ul
#define PG_KRW  (PG_P | PG_W)
#define PG_URW  (PG_P | PG_W | PG_U)
extern u64 *pml4;
u64 page_alloc(void);                /* a zeroed page, freed at the test's end */
u64 page_alloc_2m(void);             /* 2 MiB, aligned, not zeroed */
u64 *pte_at(u64 va, unsigned level); /* 1 = PTE .. 4 = PML4E; makes tables */
void map(u64 va, u64 pa, u64 flags); /* 4 KiB, tables with all rights; INVLPG */
void map_level(u64 va, u64 pa, u64 flags, unsigned level);
/* Another address space: this one, but that in these 512 GiB there is one page only, with this PTE. */
u64 *space_with(u64 va, u64 pte);
u64 map_new(u64 va, u64 flags); /* a new page; returns its PA */
void unmap(u64 va);

/* -- CPU -------------------------------------------------------------------------------------- */
struct cpuid_regs {
    u32 eax, ebx, ecx, edx;
};
static inline struct cpuid_regs cpuid(u32 leaf, u32 sub)
{
    struct cpuid_regs r;
    asm volatile("cpuid"
                 : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                 : "0"(leaf), "2"(sub));
    return r;
}
struct features {
    bool xsave, xsaveopt, xsavec, xsaves, avx, avx2, avx512f, avx512bw, avx512vl, fma, bmi1, bmi2,
        pcid, invpcid, smep, smap, umip, fsgsbase, rdtscp, rdpid, x2apic, tsc_deadline, gbpages, nx,
        cx16, monitor, mpx, pku, movbe, sysenter, clflush, la57, rdrand, rdseed, erms, sha, aes,
        vbmi2, pge, mtrr, pat, syscall;
    unsigned maxphyaddr;
    u64 xcr0_supported;
    unsigned xsave_size;
};
extern struct features feat;

#define DEFINE_CR(n)                                                                               \
    static inline u64 read_cr##n(void)                                                             \
    {                                                                                              \
        u64 v;                                                                                     \
        asm volatile("mov %%cr" #n ", %0" : "=r"(v)::"memory");                                    \
        return v;                                                                                  \
    }                                                                                              \
    static inline void write_cr##n(u64 v)                                                          \
    {                                                                                              \
        asm volatile("mov %0, %%cr" #n ::"r"(v) : "memory");                                       \
    }
DEFINE_CR(0)
DEFINE_CR(2)
DEFINE_CR(3)
DEFINE_CR(4)
DEFINE_CR(8)
#define DEFINE_DR(n)                                                                               \
    static inline u64 read_dr##n(void)                                                             \
    {                                                                                              \
        u64 v;                                                                                     \
        asm volatile("mov %%dr" #n ", %0" : "=r"(v)::"memory");                                    \
        return v;                                                                                  \
    }                                                                                              \
    static inline void write_dr##n(u64 v)                                                          \
    {                                                                                              \
        asm volatile("mov %0, %%dr" #n ::"r"(v) : "memory");                                       \
    }
DEFINE_DR(0)
DEFINE_DR(1)
DEFINE_DR(2)
DEFINE_DR(3)
DEFINE_DR(6)
DEFINE_DR(7)
static inline u64 rdmsr(u32 msr)
{
    u32 lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (u64)hi << 32 | lo;
}
static inline void wrmsr(u32 msr, u64 v)
{
    asm volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline u64 rdtsc(void)
{
    u32 lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi)::"memory");
    return (u64)hi << 32 | lo;
}
static inline u64 xgetbv(u32 i)
{
    u32 lo, hi;
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(i));
    return (u64)hi << 32 | lo;
}
static inline void xsetbv(u32 i, u64 v)
{
    asm volatile("xsetbv" ::"c"(i), "a"((u32)v), "d"((u32)(v >> 32)));
}
static inline void invlpg(u64 va)
{
    asm volatile("invlpg (%0)" ::"r"(va) : "memory");
}
static inline u8 inb(u16 port)
{
    u8 v;
    asm volatile("inb %w1, %b0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline void outb(u16 port, u8 v)
{
    asm volatile("outb %b0, %w1" ::"a"(v), "Nd"(port));
}
static inline void outw(u16 port, u16 v)
{
    asm volatile("outw %w0, %w1" ::"a"(v), "Nd"(port));
}
static inline void sti(void)
{
    asm volatile("sti" ::: "memory");
}
static inline void cli(void)
{
    asm volatile("cli" ::: "memory");
}

#define DEFAULT_CR0 (CR0_PG | CR0_WP | CR0_NE | 0x10 | CR0_MP | CR0_PE)
extern u64 default_cr4; /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE where it exists */

/* -- Interrupt hardware (irq.c) --------------------------------------------------------------- */
#define APIC_BASE 0xfee00000ul
enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_IRR = 0x200,
    APIC_ICR = 0x300,
    APIC_ICR2 = 0x310,
    APIC_LVTT = 0x320,
    APIC_LVT0 = 0x350,
    APIC_LVT1 = 0x360,
    APIC_LVTE = 0x370,
    APIC_TICR = 0x380,
    APIC_TCCR = 0x390,
    APIC_TDCR = 0x3e0,
};
static inline u32 apic_read(unsigned reg)
{
    return *(volatile u32 *)(APIC_BASE + reg);
}
static inline void apic_write(unsigned reg, u32 v)
{
    *(volatile u32 *)(APIC_BASE + reg) = v;
}
void apic_enable(void);
void apic_timer_oneshot(unsigned vector, u32 count);
void apic_timer_periodic(unsigned vector, u32 count);
void apic_self_ipi(unsigned vector);
void irq_quiesce(void); /* masks everything; part of reset_cpu */
/* A handler that counts in irq_count[vector], sends EOI to the local APIC and resumes. */
bool irq_count_handler(struct isr_frame *f);
extern volatile u64 irq_count[256];

#endif
