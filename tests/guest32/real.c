/*
 * Real mode: the interrupt table, A20, and the ways between all modes up to 64-bit mode.
 */
#include "guest32.h"

#define OWN_IVT 0x61000u /* in the FS segment */

static void vector(u32 table, unsigned n, const u8 *to)
{
    *mem32(table + 4 * n) = 0x30000000 | ip_of(REAL, to);
}

/* INT, exceptions and nesting through a table of the test's own, at 0 and elsewhere. */
TEST(real, interrupt_table)
{
    u8 *code =
        SNIP16("movw $0x1234, %%ax\n\tstc\n\tsti\n\tint $0x60\n\tpushfw\n\tpopw %%dx\n\tcli");
    u8 *h60 = SNIP16("pushfw\n\tpopw %%cx\n\tincw %%ax\n\tint $0x61\n\tiretw");
    u8 *h61 = SNIP16("addw $0x1000, %%ax\n\tiretw");
    static u8 saved[1024];
    memcpy(saved, (void *)0, sizeof(saved));
    for (unsigned i = 0; i < 2; i++) {
        u32 table = i ? OWN_IVT : 0;
        struct regs r = regs_for(REAL);
        r.ivt = table;
        for (unsigned n = 0; n < 256; n++) /* the end and surprises go to the kernel's stubs */
            *mem32(table + 4 * n) = real_vector(n);
        vector(table, 0x60, h60);
        vector(table, 0x61, h61);
        if (!done(&r, code))
            break;
        EQ(T.r.eax & 0xffff, 0x2235);
        EQ(T.r.ecx & (F_IF | F_CF), F_CF); /* the handler runs with IF = 0 */
        EQ(T.r.edx & (F_IF | F_CF), F_IF | F_CF);
        EQ(T.r.esp, r.esp);
    }
    memcpy((void *)0, saved, sizeof(saved));
}

/* Faults push the faulting IP, INTO and INT3 the next; no error codes. */
TEST(real, exceptions)
{
    u8 *de = SNIP16("divb %%cl"), *br = SNIP16("boundw %%ax, (%%bx)"), *ud = SNIP16("ud2");
    struct regs r = regs_for(REAL);
    r.ecx = 0;
    fault(&r, de, DE, 0);
    r.ebx = 0x100;
    fault(&r, br, BR, 0); /* bounds 0 to 0 */
    fault(&r, ud, UD, 0);
    u8 *lmsw = SNIP16("smsww %%ax\n\tlmsw %%ax"),
       *cr = SNIP16("movl %%cr0, %%eax\n\tmovl %%eax, %%cr0");
    done(&r, lmsw);
    done(&r, cr);
    r.eflags |= F_IF;
    u8 *flags = SNIP16("pushl $0x7ed7\n\tpopfl\n\tpushfl\n\tpopl %%eax\n\tpushl $2\n\tpopfl");
    if (done(&r, flags)) /* all but TF, IOPL and NT included */
        EQ(T.r.eax, 0x7ed7);
}

/* Fast A20 (port 92h): with the line off, 1 MiB wraps to 0. */
TEST(real, a20)
{
    u8 *code = SNIP16("inb $0x92, %%al\n\tandb $0xfc, %%al\n\toutb %%al, $0x92\n\t"
                      "movl %%es:0x50, %%ebx\n\tmovl %%fs:0x40, %%ecx\n\t"
                      "movl $0x600df00d, %%es:0x1010\n\t"
                      "orb $2, %%al\n\toutb %%al, $0x92\n\tmovl %%es:0x50, %%edx");
    struct regs r = regs_for(REAL);
    r.es = 0xffff; /* FFFF:0010 = 1 MiB */
    r.fs = 0;
    *(volatile u32 *)0x1000 = 0;
    u32 *first = mem32((u32)ds_ptr(0x40) - DS_BASE); /* not a constant: it is too near to NULL */
    u32 low = *first, high = *(volatile u32 *)0x100040, above = *(volatile u32 *)0x101000;
    if (!done(&r, code))
        return;
    EQ(T.r.ebx, low);
    EQ(T.r.ecx, low);
    EQ(T.r.edx, high);
    EQ(*(volatile u32 *)0x1000, 0x600df00d);
    EQ(*(volatile u32 *)0x101000, above);
}

/* -- All modes in one go ---------------------------------------------------------------------- */

static u64 pml4[512] __attribute__((aligned(4096)));
static u64 pdpt[512] __attribute__((aligned(4096)));
static u64 pd[512] __attribute__((aligned(4096)));

struct trip {
    u32 efer_legacy, efer_compat, cr0_compat;
    u32 wide[2], rip_relative;
    u32 compat_inc, compat_daa, compat_16;
    u32 wide_again[2];
    u32 efer_after, ss_after;
};
void long_trip(struct trip *t, u32 cr3);

/*
 * 32-bit protected mode -> long mode (compatibility) -> 64-bit -> compatibility, 32 and 16 bits ->
 * 64-bit -> compatibility -> 32-bit protected mode.
 */
asm(".pushsection .text\n"
    ".globl long_trip\n"
    "long_trip:\n"
    "    pushal\n"
    "    movl 36(%esp), %edi\n"
    "    movl 40(%esp), %ebx\n"
    "    movl $0xc0000080, %ecx\n"
    "    rdmsr\n"
    "    movl %eax, 0(%edi)\n"
    "    movl %cr4, %eax\n"
    "    orl $0x20, %eax\n"
    "    movl %eax, %cr4\n"
    "    movl %ebx, %cr3\n"
    "    rdmsr\n"
    "    orl $0x100, %eax\n"
    "    wrmsr\n"
    "    movl %cr0, %eax\n"
    "    orl $0x80000000, %eax\n"
    "    movl %eax, %cr0\n"
    "    rdmsr\n" /* still 32-bit code, in compatibility mode */
    "    movl %eax, 4(%edi)\n"
    "    movl %cr0, %eax\n"
    "    movl %eax, 8(%edi)\n"
    "    ljmp $0xc0, $1f\n"
    "    .code64\n"
    "1:  movabsq $0x123456789abcdef0, %r8\n"
    "    movq %r8, %r15\n"
    "    bswapq %r15\n"
    "    movq %r15, 12(%rdi)\n"
    "    leaq 1b(%rip), %rax\n"
    "    subl $1b, %eax\n"
    "    movl %eax, 20(%rdi)\n"
    "    pushq $0x08\n"
    "    movl $2f, %eax\n    pushq %rax\n"
    "    lretq\n"
    "    .code32\n"
    "2:  movl $0x7fffffff, %eax\n"
    "    .byte 0x40\n" /* INC EAX, not REX */
    "    movl %eax, 24(%edi)\n"
    "    movl $0x15, %eax\n"
    "    addl $0x27, %eax\n"
    "    daa\n"
    "    movl %eax, 28(%edi)\n"
    "    ljmp $0x100, $0\n" /* 16-bit compatibility mode: the code below, by its base */
    ".globl long_trip_16\n"
    "long_trip_16:\n"
    "    .code16\n"
    "    movw $0xfff0, %ax\n"
    "    addw $0x20, %ax\n" /* 16-bit operands by default */
    "    movzwl %ax, %eax\n"
    "    movl %eax, %ds:32(%edi)\n"
    "    ljmpl $0x08, $3f\n"
    "    .code32\n"
    "3:  ljmp $0xc0, $4f\n"
    "    .code64\n"
    "4:  movabsq $0xfedcba9876543210, %rax\n"
    "    movq %rax, 36(%rdi)\n"
    "    pushq $0x08\n"
    "    movl $5f, %eax\n    pushq %rax\n"
    "    lretq\n"
    "    .code32\n"
    "5:  movl %cr0, %eax\n"
    "    andl $0x7fffffff, %eax\n"
    "    movl %eax, %cr0\n"
    "    movl $0xc0000080, %ecx\n"
    "    rdmsr\n"
    "    movl %eax, 44(%edi)\n"
    "    andl $~0x100, %eax\n"
    "    wrmsr\n"
    "    movl %cr4, %eax\n"
    "    andl $~0x20, %eax\n"
    "    movl %eax, %cr4\n"
    "    movw %ss, 48(%edi)\n"
    "    popal\n"
    "    ret\n"
    ".popsection\n");
extern u8 long_trip_16[];

TEST(real, long_mode_and_back)
{
    if (!feat.longmode)
        SKIP("no long mode");
    u8 *in_real = SNIP16("movw %%cs, %%ax\n\tmovl $0x12345678, %%ecx");
    struct trip t;
    memset(pml4, 0, sizeof(pml4));
    memset(pdpt, 0, sizeof(pdpt));
    pml4[0] = (u32)pdpt | 3;
    pdpt[0] = (u32)pd | 3;
    for (u32 i = 0; i < 512; i++)
        pd[i] = (u64)i << 21 | 0x83;
    gdt[SEL_FREE / 8] = DESC((u32)long_trip_16, 0xffff, 0x9b, 0);
    for (unsigned i = 0; i < 3; i++) {
        context("round %u", i);
        memset(&t, 0, sizeof(t));
        long_trip(&t, (u32)pml4);
        EQ(t.efer_legacy & (EFER_LME | EFER_LMA), 0);
        EQ(t.efer_compat & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
        EQ(t.cr0_compat >> 31, 1);
        EQ(t.wide[0], 0x78563412);
        EQ(t.wide[1], 0xf0debc9a);
        EQ(t.rip_relative, 0);
        EQ(t.compat_inc, 0x80000000);
        EQ(t.compat_daa, 0x42);
        EQ(t.compat_16, 0x10);
        EQ(t.wide_again[0], 0x76543210);
        EQ(t.wide_again[1], 0xfedcba98);
        EQ(t.efer_after & (EFER_LME | EFER_LMA), EFER_LME);
        EQ(t.ss_after & 0xffff, SEL_KDATA);
        struct regs r = regs_for(REAL);
        if (done(&r, in_real)) {
            EQ(T.r.eax & 0xffff, 0x3000);
            EQ(T.r.ecx, 0x12345678);
        }
        EACH_MODE(m, ALL)
        {
            r = regs_for(m);
            done(&r, code_for(m, SNIP("nop")));
        }
    }
}

/* In and out of protected mode by hand, with the segment registers kept: LMSW sets PE, MOV clears
 * it. */
TEST(real, lmsw_big_real)
{
    u8 *code =
        SNIP16("lgdtl (%%bx)\n\tmovw $1, %%ax\n\tlmsw %%ax\n\tmovw $0x10, %%bx\n\t"
               "movw %%bx, %%fs\n\tmovl %%cr0, %%eax\n\tandb $0xfe, %%al\n\tmovl %%eax, %%cr0\n\t"
               "jmp 1f\n1:\tmovl %%fs:(%%ecx), %%edx");
    static u32 target;
    struct regs r = regs_for(REAL);
    target = 0xabcd9876;
    r.ebx = 0x800;
    *mem16(DS_BASE + 0x800) = sizeof(gdt) - 1;
    *mem32(DS_BASE + 0x802) = (u32)gdt;
    r.ecx = (u32)&target; /* FS has the base 0 and 4 GiB now, in real mode */
    if (done(&r, code))
        EQ(T.r.edx, 0xabcd9876);
}
