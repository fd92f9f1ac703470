/*
 * A small library for the 16/32-bit bare-metal test kernel: as tests/guest/guest.h, for every mode
 * that is not 64-bit mode.
 *
 * A test puts code and a full register state together and calls run(), which enters the code in
 * the mode that the state names (by IRET, or by leaving protected mode) and comes back at the next
 * exception or interrupt that no handler claims, with everything recorded in `T`.  A snippet ends
 * with INT3 unless something else happens first: it is the one way out that no mode or privilege
 * level takes away.
 *
 * The 16-bit modes and S32 have the same segment bases, so that one test serves them all:
 *
 *     CS 0x30000 (16-bit modes; flat in S32)   DS 0x20000   SS 0x40000
 *     ES 0x50000   FS 0x60000   GS 0x70000     all with a limit of 0xffff
 *
 * Paging is off unless a test turns it on.
 */
#ifndef GUEST32_H
#define GUEST32_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum mode {
    K32,  /* 32-bit, CPL 0, flat                                                 */
    U32,  /* 32-bit, CPL 3, flat                                                 */
    S32,  /* 32-bit flat code, CPL 3, data and 32-bit stack in 64 KiB segments   */
    K16,  /* 16-bit protected mode, CPL 0                                        */
    U16,  /* 16-bit protected mode, CPL 3                                        */
    V86,  /* virtual-8086 mode, IOPL 3                                           */
    REAL, /* real mode                                                           */
    MODES,
};
#define M(m)     (1u << (m))
#define ALL      ((1u << MODES) - 1)
#define CODE32   (M(K32) | M(U32) | M(S32))
#define CODE16   (M(K16) | M(U16) | M(V86) | M(REAL))
#define PROT     (M(K32) | M(U32) | M(S32) | M(K16) | M(U16)) /* selectors are selectors */
#define CPL3     (M(U32) | M(S32) | M(U16))
#define CPL0     (M(K32) | M(K16))
#define SEGBASES (M(S32) | CODE16) /* segment bases as listed above */

/* start.S depends on the order. */
struct regs {
    u32 eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 eip, eflags;
    u32 cs, ss, ds, es, fs, gs;
    enum mode mode;
    bool unreal; /* REAL: data segments with 4 GiB limits */
    u32 ivt;     /* REAL: base of the interrupt table; 0xffffffff = the kernel's own */
};

struct trap {
    struct regs r;
    u32 vector, error, cr2, dr6;
};
extern struct trap T;

/* start.S depends on the order. */
struct frame {
    u32 gs, fs, es, ds;
    u32 edi, esi, ebp, esp_unused, ebx, edx, ecx, eax;
    u32 vector, error, eip, cs, eflags, esp, ss;
    u32 v86_es, v86_ds, v86_fs, v86_gs;
    u32 stack_esp, stack_ss; /* where the frame lies */
};
/* A handler returns true to resume (the frame up to eflags may be changed), false to end run(). */
typedef bool (*handler_fn)(struct frame *f);
extern handler_fn handlers[256];

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
    DONE = BP,
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

/* Selectors (GDT in lib.c; start.S has some of them as numbers). */
enum {
    SEL_KCODE = 0x08,
    SEL_KDATA = 0x10,
    SEL_UCODE = 0x18,
    SEL_UDATA = 0x20,
    SEL_LOW16 = 0x28,
    SEL_LOWDATA = 0x30,
    SEL_BIGDATA = 0x38,
    SEL_K16 = 0x40, /* CS, DS, SS, ES, FS, GS, 8 apart */
    SEL_U16 = 0x70, /* the same for CPL 3 */
    SEL_S32_SS = 0xa0,
    SEL_TSS = 0xa8,
    SEL_DF_TSS = 0xb0,
    SEL_LDT = 0xb8,
    SEL_K64 = 0xc0,
    SEL_U64 = 0xc8,
    SEL_FREE = 0x100, /* up to 0x3f8 */
};

#define CR0_PE           1u
#define CR0_MP           2u
#define CR0_EM           4u
#define CR0_TS           8u
#define CR0_NE           0x20u
#define CR0_WP           0x10000u
#define CR0_AM           0x40000u
#define CR0_PG           0x80000000u
#define CR4_VME          1u
#define CR4_PVI          2u
#define CR4_TSD          4u
#define CR4_DE           8u
#define CR4_PSE          0x10u
#define CR4_PAE          0x20u
#define CR4_PGE          0x80u
#define CR4_OSFXSR       0x200u
#define CR4_UMIP         0x800u
#define MSR_SYSENTER_CS  0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_EFER         0xc0000080u
#define EFER_LME         0x100u
#define EFER_LMA         0x400u
#define EFER_NX          0x800u

/* Low memory, as the modes' segments see it. */
#define DS_BASE    0x20000u
#define CS16_BASE  0x30000u
#define SS_BASE    0x40000u
#define ES_BASE    0x50000u
#define FS_BASE    0x60000u
#define GS_BASE    0x70000u
#define CODE16_GEN 0xc000u /* offset in CS16_BASE of generated code; 16 KiB */

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

void fail(const char *fmt, ...);
bool check_eq(const char *what, u32 got, u32 want);
#define EQ(got, want) check_eq(#got, (u32)(got), (u32)(want))
#define CHECK(cond)   check_eq(#cond, !!(cond), 1)
void context(const char *fmt, ...);
#define EACH_MODE(m, set)                                                                          \
    for (unsigned m = 0; m < MODES; m++)                                                           \
        if (((set) >> m & 1) && (context("%s", mode_name(m)), true))
const char *mode_name(unsigned m);
#define SKIP(reason)                                                                               \
    do {                                                                                           \
        skip_reason = (reason);                                                                    \
        return;                                                                                    \
    } while (0)
extern const char *skip_reason;
/* What QEMU's TCG (7.2) is known to get wrong; the reason is printed with the result. */
#define TCG_SKIP(reason)                                                                           \
    do {                                                                                           \
        if (on_tcg)                                                                                \
            SKIP("QEMU TCG: " reason);                                                             \
    } while (0)
extern bool on_tcg;
void print(const char *fmt, ...); /* %s %c %d %u %x; width and zero flag */

/* -- Code ------------------------------------------------------------------------------------- */
struct snip {
    u8 *c16, *c32;
};
#define SNIP16(text)                                                                               \
    ({                                                                                             \
        u8 *snip_;                                                                                 \
        asm volatile(".pushsection .snippets16,\"awx\"\n\t.code16\n661:\n" text                    \
                     "\n\tint3\n\t.code32\n\t.popsection\n\tmovl $661b, %0"                        \
                     : "=r"(snip_));                                                               \
        snip_;                                                                                     \
    })
#define SNIP32(text)                                                                               \
    ({                                                                                             \
        u8 *snip_;                                                                                 \
        asm volatile(".pushsection .snippets32,\"awx\"\n\t.code32\n661:\n" text                    \
                     "\n\tint3\n\t.popsection\n\tmovl $661b, %0"                                   \
                     : "=r"(snip_));                                                               \
        snip_;                                                                                     \
    })
/* The same text assembled for both code sizes. */
#define SNIP(text)                                                                                 \
    ({                                                                                             \
        struct snip s_;                                                                            \
        s_.c16 = SNIP16(text);                                                                     \
        s_.c32 = SNIP32(text);                                                                     \
        s_;                                                                                        \
    })
static inline u8 *code_for(unsigned m, struct snip s)
{
    return CODE32 >> m & 1 ? s.c32 : s.c16;
}
/* Generated code: a place for the mode; emit with put(), the last byte must be INT3. */
u8 *gen_start(unsigned m);
u8 *put_bytes(u8 *p, const void *bytes, unsigned n);
#define PUT(p, ...)                                                                                \
    ((p) = put_bytes(p, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__})))
static inline u8 *put16(u8 *p, u32 v)
{
    return put_bytes(p, &v, 2);
}
static inline u8 *put32(u8 *p, u32 v)
{
    return put_bytes(p, &v, 4);
}
/* The offset of an address within the mode's CS. */
u32 ip_of(unsigned m, const void *p);

struct regs regs_for(unsigned m);
unsigned run(const struct regs *r);
/* The kernel's own real-mode handler of a vector, as an entry of an interrupt table. */
u32 real_vector(unsigned n);
unsigned run_at(struct regs *r, const void *code);
bool done(struct regs *r, const void *code);
/* Expects a fault at the code's first byte with no register changed. */
void fault(struct regs *r, const void *code, unsigned vector, u32 error);
/* The same where the instruction overwrites all arithmetic flags: after its fault they may have any
 * value (docs/deviations.md). */
void fault_of_arithmetic(struct regs *r, const void *code, unsigned vector, u32 error);
void fault_at(struct regs *r, const void *code, const void *at, unsigned vector, u32 error);
void expect(unsigned vector, u32 error);
/* A pointer to offset `off` in a segment of the SEGBASES modes; in flat modes the same memory. */
static inline u8 *ds_ptr(u32 off)
{
    return (u8 *)(DS_BASE + off);
}
static inline u8 *ss_ptr(u32 off)
{
    return (u8 *)(SS_BASE + off);
}
/* What a register must hold to address that byte. */
static inline u32 ds_off(unsigned m, u32 off)
{
    return SEGBASES >> m & 1 ? off : DS_BASE + off;
}
static inline u32 es_off(unsigned m, u32 off)
{
    return SEGBASES >> m & 1 ? off : ES_BASE + off;
}
static inline u32 esp_base(unsigned m) /* linear address - ESP */
{
    return SEGBASES >> m & 1 ? SS_BASE : 0;
}
static inline u16 *mem16(u32 linear)
{
    return (u16 *)linear;
}
static inline u32 *mem32(u32 linear)
{
    return (u32 *)linear;
}

void *memset(void *dst, int c, size_t n);
void *memcpy(void *dst, const void *src, size_t n);
int memcmp(const void *a, const void *b, size_t n);
u32 random32(void); /* deterministic, restarted for each test */

/* -- Descriptors ------------------------------------------------------------------------------ */
extern u64 gdt[128], ldt[32], idt[256];
struct tss32 {
    u16 link, r0;
    u32 esp0;
    u16 ss0, r1;
    u32 esp1;
    u16 ss1, r2;
    u32 esp2;
    u16 ss2, r3;
    u32 cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u16 es, r4, cs, r5, ss, r6, ds, r7, fs, r8, gs, r9, ldt, r10, trap, iomap;
};
struct tss16 {
    u16 link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss,
        ds, ldt;
};
/* The task that runs tests; what lies behind the TSS proper may be used as I/O bitmap. */
extern struct test_tss {
    struct tss32 t;
    u8 redirect[32]; /* VME's interrupt redirection bitmap, right below the I/O bitmap */
    u8 iomap[8193];
} tss;
#define DESC(base, limit, access, flags)                                                           \
    ((u64)((u32)(limit)&0xffff) | (u64)((u32)(base)&0xffffff) << 16 | (u64)(access) << 40 |        \
     (u64)((u32)(limit) >> 16 & 0xf) << 48 | (u64)(flags) << 52 |                                  \
     (u64)((u32)(base) >> 24 & 0xff) << 56)
/* A call, interrupt, trap or task gate; access holds P, DPL and type. */
static inline u64 gate(u32 sel, u32 off, u32 access, u32 params)
{
    return (u64)(off & 0xffff) | (u64)sel << 16 | (u64)params << 32 | (u64)access << 40 |
           (u64)(off >> 16) << 48;
}
void idt_default(unsigned vector, unsigned dpl);
void load_tr(u32 sel); /* makes the descriptor available first */
void lldt(u32 sel);

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
extern struct features {
    bool vme, pse, pae, sysenter, cmov, pge, pse36, fxsr, sse, longmode, nx, umip, no_fcs, syscall,
        cx8, smep;
} feat;
#define DEFINE_REG(n)                                                                              \
    static inline u32 read_##n(void)                                                               \
    {                                                                                              \
        u32 v;                                                                                     \
        asm volatile("mov %%" #n ", %0" : "=r"(v)::"memory");                                      \
        return v;                                                                                  \
    }                                                                                              \
    static inline void write_##n(u32 v)                                                            \
    {                                                                                              \
        asm volatile("mov %0, %%" #n ::"r"(v) : "memory");                                         \
    }
DEFINE_REG(cr0)
DEFINE_REG(cr2)
DEFINE_REG(cr3)
DEFINE_REG(cr4)
DEFINE_REG(dr0)
DEFINE_REG(dr1)
DEFINE_REG(dr2)
DEFINE_REG(dr3)
DEFINE_REG(dr6)
DEFINE_REG(dr7)
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
static inline void invlpg(u32 va)
{
    asm volatile("invlpg (%0)" ::"r"(va) : "memory");
}

#endif
