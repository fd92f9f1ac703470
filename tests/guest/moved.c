/*
 * The same user code on the same physical pages at several addresses, as libraries and
 * position-independent programs have it: what an engine keeps of one address must not show at
 * another.  (Addresses relative to RIP, return addresses, where faults say they are, windows of
 * 512 GiB, code that changes.)
 */
#include "guest.h"

/* Three pages: two of code, one of data. They are copied to pages of their own and never run here. */
asm(".pushsection .rodata\n"
    ".balign 4096\n"
    "moved_blob:\n"
    /* RCX rounds of everything; RAX = a sum */
    "moved_main:\n"
    "	xor %eax, %eax\n"
    "	lea moved_table(%rip), %rbx\n"
    "1:	call moved_leaf\n"
    "	call moved_far_leaf\n"
    "	add moved_word(%rip), %rax\n"
    "	incl moved_count(%rip)\n"
    "	movl $3, moved_word(%rip)\n"
    "	lea 2f(%rip), %r10\n"
    "	jmp *%r10\n"
    "2:	add (%rbx), %rax\n"
    "	call *8(%rbx,%rcx)\n"
    "3:	cmpq $7, moved_word(%rip)\n"
    "	je moved_never\n"
    "	lea moved_table(%rip), %rdi\n"
    "	mov $8, %r8d\n"
    "4:	add 64(%rdi), %rax\n"
    "	add $8, %rdi\n"
    "	dec %r8d\n"
    "	jnz 4b\n"
    "	xor %edx, %edx\n"
    "5:	add 64(%rbx,%rdx,8), %rax\n"
    "	inc %rdx\n"
    "	cmp $8, %rdx\n"
    "	jb 5b\n"
    "	dec %r9d\n"
    "	jnz 1b\n"
    "	jmp moved_end\n"
    "moved_leaf:\n"
    "	push moved_word(%rip)\n"
    "	pop %rsi\n"
    "	add %rsi, %rax\n"
    "	ret\n"
    "moved_ud:\n"
    "	mov moved_word(%rip), %rax\n"
    "	ud2\n"
    "moved_missing:\n"
    "	mov moved_word(%rip), %rax\n"
    "	mov %rax, moved_blob+0x3008(%rip)\n"
    "	int $0x80\n"
    "moved_divide:\n"
    "	mov $1, %eax\n"
    "	cltd\n"
    "	divl moved_zero(%rip)\n"
    "	int $0x80\n"
    "moved_masked:\n" /* the last two elements are on the page that is not there */
    "	vmovups moved_mask(%rip), %ymm1\n"
    "	vmaskmovps moved_blob+0x2fe8(%rip), %ymm1, %ymm0\n"
    "	vmovd %xmm0, %eax\n"
    "	int $0x80\n"
    "moved_callouts:\n"
    "	mov $0x80000000, %eax\n"
    "	cpuid\n"
    "	lea moved_table(%rip), %rsi\n"
    "	lea moved_table+256(%rip), %rdi\n"
    "	mov $16, %ecx\n"
    "	rep movsq\n"
    "	mov moved_table+256+64(%rip), %rax\n"
    "	int3\n"
    "	.balign 4096, 0xcc\n"
    "moved_far_leaf:\n"
    "	add moved_count(%rip), %rax\n"
    "	ret\n"
    "moved_end:\n"
    "	nop\n"
    "	int $0x80\n"
    "moved_never:\n"
    "	ud2\n"
    "	.balign 4096, 0xcc\n"
    "moved_table:\n"
    "	.quad 5, 0, 0, 0, 0, 0, 0, 0\n"
    "	.quad 1, 2, 3, 4, 5, 6, 7, 8\n"
    "	.skip 512\n"
    "moved_word:	.quad 3\n"
    "moved_count:	.quad 0\n"
    "moved_zero:	.quad 0\n"
    "moved_mask:	.long -1, -1, -1, -1, -1, -1, 0, 0\n"
    "	.balign 4096\n"
    ".popsection\n");
extern const u8 moved_blob[3 * 4096], moved_main[], moved_leaf[], moved_ud[], moved_missing[],
    moved_divide[], moved_masked[], moved_callouts[], moved_table[], moved_word[], moved_count[],
    moved_end[];

static const u64 bases[] = {
    UVA, UVA + 0x10000000, UVA + 0x7654321000, UVA2 - 0x1000, UVA2 + 0x5000, 0x7f8000000000 - 0x2000,
    0x7ffff7dd0000, 0x555555554000, 0x10000000000 - 0x2000,
};
#define BASES (sizeof bases / sizeof bases[0])

static u64 pages[3];

static void make_pages(void)
{
    for (unsigned i = 0; i < 3; i++) {
        pages[i] = page_alloc();
        memcpy((void *)pages[i], moved_blob + 4096 * i, 4096);
    }
}

static void map_at(u64 base)
{
    for (unsigned i = 0; i < 3; i++)
        map(base + 4096 * i, pages[i], PG_URW);
}

static u64 *data(const u8 *label)
{
    return (u64 *)(pages[2] + (u64)(label - moved_blob - 2 * 4096));
}

static struct regs regs_at(u64 base, const u8 *label)
{
    struct regs r = regs_for(3);
    r.rip = base + (u64)(label - moved_blob);
    return r;
}

/* All of the main part: its sum is what the instructions say. */
static void check_main(u64 base, unsigned rounds)
{
    struct regs r = regs_at(base, moved_main);
    u64 sum = 0;
    *data(moved_count) = 0;
    data(moved_table)[1] = base + (u64)(moved_leaf - moved_blob);
    for (unsigned i = 0; i < rounds; i++)
        sum += 3 + i + 3 + 5 + 3 + 36 + 36;
    r.rcx = 0;
    r.r9 = rounds;
    context("at %lx, %u rounds: ", base, rounds);
    EQ(run(&r), DONE);
    EQ(T.r.rip, base + (u64)(moved_end - moved_blob) + 3);
    EQ(T.r.rax, sum);
    EQ(T.r.rbx, base + 0x2000);
    EQ(T.r.rdi, base + 0x2000 + 64);
    EQ(T.r.rsp, r.rsp);
    EQ(*data(moved_count), rounds);
    context("");
}

TEST(moved, calls_and_operands)
{
    make_pages();
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < BASES; i++) {
            map_at(bases[i]);
            check_main(bases[i], round == 1 ? 500 : 3);
            if (round == 2)
                for (unsigned p = 0; p < 3; p++)
                    unmap(bases[i] + 4096 * p);
        }
}

/* Address spaces that have just come up, which an engine may treat in another way. */
TEST(moved, new_address_spaces)
{
    u64 *before = pml4;
    make_pages();
    for (unsigned i = 0; i < BASES; i++)
        map_at(bases[i]);
    for (unsigned n = 0; n < 3 * BASES; n++) {
        u64 *space = (u64 *)page_alloc();
        memcpy(space, before, 4096);
        write_cr3((u64)space);
        check_main(bases[n % BASES], 300);
        check_main(bases[(n + 1) % BASES], 2);
        write_cr3((u64)before);
    }
}

static void check_fault(u64 base, const u8 *label, unsigned off, unsigned vector, u64 error)
{
    struct regs r = regs_at(base, label);
    context("at %lx: ", base);
    EQ(run(&r), vector);
    EQ(T.error, error);
    EQ(T.r.rip, r.rip + off);
    if (vector == PF)
        EQ(T.cr2, base + 0x3008);
    context("");
}

TEST(moved, faults)
{
    make_pages();
    for (unsigned i = 0; i < BASES; i++) {
        map_at(bases[i]);
        unmap(bases[i] + 0x3000);
        for (unsigned n = 0; n < 60; n++) {
            check_fault(bases[i], moved_ud, 7, UD, 0);
            check_fault(bases[i], moved_missing, 7, PF, PF_U | PF_W);
            check_fault(bases[i], moved_divide, 6, DE, 0);
        }
    }
}

TEST(moved, callouts)
{
    make_pages();
    for (unsigned i = 0; i < BASES; i++) {
        map_at(bases[i]);
        unmap(bases[i] + 0x3000);
        for (unsigned n = 0; n < 60; n++) {
            struct regs r = regs_at(bases[i], moved_callouts);
            context("at %lx: ", bases[i]);
            EQ(run(&r), BP);
            EQ(T.r.rax, 1);
            EQ(T.r.rsi, bases[i] + 0x2000 + 128);
            context("");
        }
    }
}

TEST(moved, masked_operands)
{
    TCG_SKIP("elements that are masked off fault");
    if (!feat.avx)
        SKIP("no AVX");
    make_pages();
    for (unsigned i = 0; i < BASES; i++) {
        map_at(bases[i]);
        unmap(bases[i] + 0x3000);
        for (unsigned n = 0; n < 60; n++) {
            struct regs r = regs_at(bases[i], moved_masked);
            context("at %lx: ", bases[i]);
            EQ(run(&r), DONE);
            EQ(T.r.rax, 0);
            context("");
        }
    }
}

/* What is written to the code is seen at all its addresses, in whatever order they run it. */
TEST(moved, code_that_changes)
{
    make_pages();
    u8 *leaf = (u8 *)pages[1]; /* add moved_count(%rip), %rax; ret */
    for (unsigned i = 0; i < BASES; i++)
        map_at(bases[i]);
    for (unsigned n = 0; n < 2 * BASES; n++) {
        u64 base = bases[n % BASES], other = bases[(n + 3) % BASES];
        check_main(base, 100);
        check_main(other, 100);
        u8 keep[7];
        memcpy(keep, leaf, 7);
        memcpy(leaf, "\x48\x8d\x80\x00\x00\x00\x00", 7); /* lea 0(%rax), %rax */
        struct regs r = regs_at(n & 1 ? base : other, moved_main);
        *data(moved_count) = 1000;
        data(moved_table)[1] = (n & 1 ? base : other) + (u64)(moved_leaf - moved_blob);
        r.rcx = 0;
        r.r9 = 1;
        EQ(run(&r), DONE);
        EQ(T.r.rax, 3 + 3 + 5 + 3 + 36 + 36);
        memcpy(leaf, keep, 7);
    }
}

/* Another page at an address where the code was, with the same code but for a constant. */
TEST(moved, other_pages)
{
    make_pages();
    u64 first[3], second[3];
    memcpy(first, pages, sizeof first);
    make_pages();
    memcpy(second, pages, sizeof second);
    *data(moved_word) = 3;
    memcpy((u8 *)pages[1], "\x48\x8d\x80\x00\x01\x00\x00", 7); /* lea 256(%rax), %rax */
    for (unsigned n = 0; n < 3; n++)
        for (unsigned i = 0; i < BASES; i++) {
            memcpy(pages, first, sizeof pages);
            map_at(bases[i]);
            check_main(bases[i], 60);
            memcpy(pages, second, sizeof pages);
            map_at(bases[i]);
            struct regs r = regs_at(bases[i], moved_main);
            data(moved_table)[1] = bases[i] + (u64)(moved_leaf - moved_blob);
            r.rcx = 0;
            r.r9 = 60;
            context("second pages at %lx: ", bases[i]);
            EQ(run(&r), DONE);
            EQ(T.r.rax, 60 * (3 + 256 + 3 + 5 + 3 + 36 + 36));
            context("");
        }
}
