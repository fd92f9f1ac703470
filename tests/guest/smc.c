/*
 * Self-modifying code in every form a translator must notice.  SDM vol. 3, 8.1.3: a store to code
 * takes effect at the latest after a jump or a serializing instruction; the CPUs go further and
 * also notice it in the same block (all of them do, in linear address; vol. 3, 11.6), which old
 * programs rely on.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

static const u8 int80[] = {0xcd, 0x80};

/* mov $v, %eax; int $0x80 */
static void put_const(u8 *p, u32 v)
{
    p[0] = 0xb8;
    *(u32 *)(p + 1) = v;
    memcpy(p + 5, int80, 2);
}

static u32 call_const(unsigned cpl, u64 va)
{
    struct regs r = regs_for(cpl);
    r.rip = va;
    run(&r);
    expect(DONE, 0);
    return (u32)T.r.rax;
}

TEST(smc, patched_from_outside)
{
    u64 pa = map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        for (u32 i = 0; i < 300; i++) {
            put_const((u8 *)pa + 16, i); /* through the identity map: an alias */
            EQ(call_const(cpl, UVA + 16), i);
            *(u32 *)(pa + 17) = i + 7;
            EQ(call_const(cpl, UVA + 16), i + 7);
        }
    }
}

TEST(smc, store_ahead_in_the_block)
{
    /* mov %ecx, imm of the next instruction; mov $0, %eax */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("mov %%ecx, 1f+1(%%rip)\n1: mov $0, %%eax");
        for (u64 i = 1; i < 300; i++) {
            r.rcx = i * 3;
            done(&r, code);
            EQ(T.r.rax, i * 3);
        }
    }
}

TEST(smc, store_ahead_with_distance)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("mov %%cl, 1f+2(%%rip)\n\tadd $1, %%rdx\n\timul $3, %%rsi, %%rsi\n\t"
                        "push %%rdi\n\tpop %%r11\n1: add $0, %%dl\n\tnop");
        r.rdx = 0x100;
        for (u64 i = 1; i < 100; i++) {
            r.rcx = i;
            done(&r, code);
            EQ(T.r.rdx & 0xff, (1 + i) & 0xff);
        }
    }
}

TEST(smc, opcode_changes)
{
    /* The instruction itself becomes another: inc to dec. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("mov %%ax, 1f(%%rip)\n\tjmp 1f\n1: inc %%ecx");
        r.rcx = 100;
        r.rax = 0xc1ff; /* inc %ecx */
        done(&r, code);
        EQ(T.r.rcx, 101);
        r.rax = 0xc9ff; /* dec %ecx */
        done(&r, code);
        EQ(T.r.rcx, 99);
        r.rax = 0x9090;
        done(&r, code);
        EQ(T.r.rcx, 100);
        r.rax = 0x80cd; /* int $0x80: the block now ends earlier */
        done(&r, code);
        r.rax = 0x0b0f; /* ud2 */
        run_at(&r, code);
        expect(UD, 0);
        r.rax = 0xc1ff;
        done(&r, code);
        EQ(T.r.rcx, 101);
    }
}

TEST(smc, own_instruction)
{
    /* A store that overwrites the storing instruction: takes effect the next time. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("movb %%cl, 1f(%%rip)\n1: nop\n\tnop");
        r.rcx = 0x90;
        done(&r, code);
        u8 *same = SNIP("mov $50, %%edx\n1: movb $0xc6, 1b(%%rip)\n\tdec %%edx\n\tjnz 1b");
        done(&r, same);
        EQ(T.r.rdx & 0xffffffff, 0);
    }
}

TEST(smc, rep_stos_and_movs)
{
    u64 pa = map_new(UVA, PG_URW);
    u8 *target = (u8 *)pa;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        put_const(target + 100, 5);
        /* jump over 100 NOPs, which rep stosb puts there again and again */
        for (unsigned i = 0; i < 50; i++) {
            memset(target, 0xcc, 100);
            u32 probe = call_const(cpl, UVA + 100);
            EQ(probe, 5);
            r.rdi = UVA, r.rcx = 100, r.rax = 0x90, r.r11 = UVA;
            run_at(&r, SNIP("rep stosb\n\tjmp *%%r11"));
            expect(DONE, 0);
            EQ((u32)T.r.rax, 5);
        }
        /* code copied by rep movsb, by movsq, by movups */
        for (u32 i = 0; i < 100; i++) {
            put_const(buffer, i * 11);
            r.rsi = at_cpl(cpl, buffer), r.rdi = UVA + 200, r.rcx = 7, r.r11 = UVA + 200;
            run_at(&r, SNIP("rep movsb\n\tjmp *%%r11"));
            EQ((u32)T.r.rax, i * 11);
            put_const(buffer, i * 13);
            r.rcx = 1;
            run_at(&r, SNIP("movsq\n\tcall *%%r11"));
            EQ((u32)T.r.rax, i * 13);
            put_const(buffer, i * 17);
            run_at(&r, SNIP("movups (%%rsi), %%xmm0\n\tmovups %%xmm0, (%%rdi)\n\tjmp *%%r11"));
            EQ((u32)T.r.rax, i * 17);
        }
    }
}

TEST(smc, store_forms)
{
    /* Every kind of store must be noticed. */
    u64 pa = map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        put_const((u8 *)pa, 0);
        r.rbx = UVA + 1, r.r11 = UVA;
#define FORM(value, text)                                                                          \
    do {                                                                                           \
        context("cpl %u, " text, cpl);                                                             \
        call_const(cpl, UVA);                                                                      \
        run_at(&r, SNIP(text "\n\tjmp *%%r11"));                                                   \
        expect(DONE, 0);                                                                           \
        EQ((u32)T.r.rax, value);                                                                   \
    } while (0)
        *(u32 *)(pa + 1) = 10;
        FORM(11, "incl (%%rbx)");
        FORM(10, "lock decl (%%rbx)");
        r.rcx = 0x12345678;
        FORM(0x12345678, "xchg %%ecx, (%%rbx)");
        r.rax = 0x12345678;
        FORM(0x12345678, "cmpxchg %%ecx, (%%rbx)");
        r.rcx = 4;
        FORM(0x1234567c, "lock xadd %%ecx, (%%rbx)");
        FORM(0x1234567e, "orb $2, (%%rbx)");
        FORM(0xedcba981, "notl (%%rbx)");
        FORM(0xedcba901, "cmp %%eax, %%eax\n\tsete (%%rbx)");
        FORM(0xedcba900, "btrl $0, (%%rbx)");
        r.rcx = 3;
        FORM(0xedcba908, "bts %%ecx, (%%rbx)");
        FORM(0x77, "movl $0x77, (%%rbx)");
        FORM(0x177, "movb $1, 1(%%rbx)");
        r.rcx = 0x55;
        FORM(0x55, "movd %%ecx, %%xmm0\n\tmovd %%xmm0, (%%rbx)");
        FORM(0x3f800000, "fld1\n\tfstps (%%rbx)");
        FORM(0xaa, "shll $0, (%%rbx)\n\tmovl $0x55, (%%rbx)\n\tshll $1, (%%rbx)");
        r.rcx = 0x99;
        FORM(0x99, "movnti %%ecx, (%%rbx)");
        r.rsi = r.rsp;
        FORM(0x66, "push $0x66\n\tpopq 8(%%rsp)\n\tmovl $0x66, (%%rbx)");
    }
}

TEST(smc, push_over_code)
{
    /* The stack runs into the code: PUSH and CALL store the new instruction. */
    u64 pa = map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        for (u32 i = 0; i < 50; i++) {
            u8 image[8];
            put_const(image, i);
            image[7] = 0x90;
            r.rsp = UVA + 72, r.rax = *(u64 *)image, r.r11 = UVA + 64;
            put_const((u8 *)pa + 64, 999);
            call_const(cpl, UVA + 64);
            run_at(&r, SNIP("push %%rax\n\tjmp *%%r11"));
            expect(DONE, 0);
            EQ((u32)T.r.rax, i);
        }
    }
}

TEST(smc, through_an_alias)
{
    u64 pa = map_new(UVA, PG_URW);
    map(UVA2, pa, PG_URW);
    map(KVA, pa, PG_KRW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        for (u32 i = 0; i < 100; i++) {
            put_const((u8 *)pa + 32, 1);
            EQ(call_const(cpl, UVA + 32), 1);
            r.rbx = UVA2 + 33, r.rcx = i, r.r11 = UVA + 32;
            run_at(&r, SNIP("mov %%ecx, (%%rbx)\n\tjmp *%%r11"));
            EQ((u32)T.r.rax, i);
            EQ(call_const(cpl, UVA2 + 32), i); /* and runs at the alias */
        }
    }
}

TEST(smc, across_a_page_boundary)
{
    u64 a = map_new(UVA, PG_URW), b = map_new(UVA + 4096, PG_URW);
    BOTH_CPLS
    {
        for (unsigned split = 1; split < 7; split++) {
            context("cpl %u, split %u", cpl, split);
            u64 va = UVA + 4096 - split;
            u8 image[7];
            for (u32 i = 0; i < 40; i++) {
                put_const(image, i * 0x01010101);
                memcpy((u8 *)a + 4096 - split, image, split);
                memcpy((u8 *)b, image + split, 7 - split);
                EQ(call_const(cpl, va), i * 0x01010101);
                if (split < 5) { /* change the part on the second page alone */
                    u8 *last = (u8 *)b + 4 - split;
                    *last ^= 0x40;
                    EQ(call_const(cpl, va), (i * 0x01010101) ^ 0x40000000);
                }
                if (split > 1) { /* and on the first alone */
                    u8 *first = (u8 *)a + 4096 - split + 1;
                    *first ^= 0x20;
                    EQ(call_const(cpl, va) & 0xff, ((i & 0xff) ^ 0x20));
                }
            }
        }
    }
}

TEST(smc, straddling_store)
{
    /* A store that begins before the page and changes code at its start. */
    u64 a = map_new(UVA, PG_URW), b = map_new(UVA + 4096, PG_URW);
    (void)a;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        for (u64 i = 0; i < 50; i++) {
            put_const((u8 *)b, 0x100);
            EQ(call_const(cpl, UVA + 4096), 0x100);
            r.rbx = UVA + 4096 - 4;
            r.rax = 0xb8ul << 32 | i << 40; /* 4 bytes before, then B8 i xx xx */
            r.r11 = UVA + 4096;
            run_at(&r, SNIP("mov %%rax, (%%rbx)\n\tjmp *%%r11"));
            expect(DONE, 0);
            EQ((u32)T.r.rax & 0xff, i);
        }
    }
}

TEST(smc, remapped_page)
{
    u64 a = page_alloc(), b = page_alloc();
    put_const((u8 *)a, 1);
    put_const((u8 *)b, 2);
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 100; i++) {
            map(UVA, a, PG_P | PG_U);
            EQ(call_const(cpl, UVA), 1);
            map(UVA, b, PG_P | PG_U); /* INVLPG included */
            EQ(call_const(cpl, UVA), 2);
            struct regs r = regs_for(cpl);
            r.r11 = UVA;
            run_at(&r, SNIP("call *%%r11"));
            EQ((u32)T.r.rax, 2);
        }
    }
}

TEST(smc, second_page_remapped)
{
    /* A block that runs over a page boundary; its second page becomes another one. */
    u64 a = map_new(UVA, PG_URW), b = page_alloc(), c = page_alloc();
    memcpy((u8 *)a + 4096 - 3, "\xb8\x11\x22", 3);
    memcpy((u8 *)b, "\x33\x44\xcd\x80", 4);
    memcpy((u8 *)c, "\x55\x66\xcd\x80", 4);
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 50; i++) {
            map(UVA + 4096, b, PG_P | PG_U);
            EQ(call_const(cpl, UVA + 4096 - 3), 0x44332211);
            map(UVA + 4096, c, PG_P | PG_U);
            EQ(call_const(cpl, UVA + 4096 - 3), 0x66552211);
            unmap(UVA + 4096);
            struct regs r = regs_for(cpl);
            r.rip = UVA + 4096 - 3;
            run(&r);
            expect(PF, (cpl ? PF_U : 0) | (feat.nx ? PF_I : 0));
            EQ(T.cr2, UVA + 4096);
            EQ(T.r.rip, UVA + 4096 - 3);
        }
    }
}

TEST(smc, second_page_not_executable)
{
    if (!feat.nx)
        SKIP("no NX");
    u64 a = map_new(UVA, PG_URW), b = map_new(UVA + 4096, PG_URW | PG_NX);
    for (unsigned split = 1; split < 5; split++) {
        u8 image[7];
        put_const(image, 0x44332211);
        memcpy((u8 *)a + 4096 - split, image, split);
        memcpy((u8 *)b, image + split, 7 - split);
        BOTH_CPLS
        {
            struct regs r = regs_for(cpl);
            r.rip = UVA + 4096 - split;
            map(UVA + 4096, b, PG_URW | PG_NX);
            run(&r);
            expect(PF, PF_P | PF_I | (cpl ? PF_U : 0));
            EQ(T.cr2, UVA + 4096);
            EQ(T.r.rip, UVA + 4096 - split);
            map(UVA + 4096, b, PG_URW);
            run(&r);
            expect(DONE, 0);
            EQ(T.r.rax, 0x44332211);
        }
    }
}

TEST(smc, block_runs_into_a_bad_page)
{
    /* The instructions before the bad page run; the fault is at the first one on it. */
    u64 a = map_new(UVA, PG_URW);
    memset((u8 *)a, 0x90, 4096);
    memcpy((u8 *)a + 4096 - 6, "\xff\xc1\xff\xc1\xff\xc1", 6); /* inc %ecx three times */
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 5; i++) {
            struct regs r = regs_for(cpl);
            r.rip = UVA + 4096 - 20;
            r.rcx = 10;
            run(&r);
            expect(PF, (cpl ? PF_U : 0) | (feat.nx ? PF_I : 0));
            EQ(T.cr2, UVA + 4096);
            EQ(T.r.rip, UVA + 4096);
            EQ(T.r.rcx, 13);
        }
    }
}

TEST(smc, data_on_the_code_page)
{
    /* A counter right next to the loop that changes it. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code =
            SNIP("xor %%eax, %%eax\n\tmov $2000, %%ecx\n\tmovl $0, 3f(%%rip)\n"
                 "1: incl 3f(%%rip)\n\tadd 3f(%%rip), %%eax\n\tdec %%ecx\n\tjnz 1b\n\tjmp 4f\n"
                 "3: .long 0\n4:");
        done(&r, code);
        EQ(T.r.rax, 2000 * 2001 / 2);
    }
}

TEST(smc, loop_that_patches_itself)
{
    /* Each turn changes the immediate that the next turn adds. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("xor %%eax, %%eax\n\txor %%ecx, %%ecx\n"
                        "1: add $0x7fffffff, %%eax\n\tinc %%ecx\n\tmov %%ecx, 1b+1(%%rip)\n\t"
                        "cmp $500, %%ecx\n\tjb 1b\n\tmovl $0x7fffffff, 1b+1(%%rip)");
        done(&r, code);
        EQ(T.r.rax, (u32)(0x7fffffffu + 499 * 500 / 2));
    }
}

TEST(smc, patch_called_function)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP(
            "xor %%esi, %%esi\n\tmov $300, %%ecx\n"
            "1: mov %%ecx, 2f+1(%%rip)\n\tcall 2f\n\tadd %%rax, %%rsi\n\tdec %%ecx\n\tjnz 1b\n\t"
            "jmp 3f\n2: mov $0, %%eax\n\tret\n3:");
        done(&r, code);
        EQ(T.r.rsi, 300 * 301 / 2);
    }
}

TEST(smc, patch_return_target)
{
    /* The callee changes the code it returns to. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("xor %%esi, %%esi\n\tmov $200, %%ecx\n"
                        "1: call 2f\n3: add $1, %%esi\n\tdec %%ecx\n\tjnz 1b\n\tmovb $1, "
                        "3b+2(%%rip)\n\tjmp 4f\n"
                        "2: mov %%cl, %%al\n\tand $7, %%al\n\tmov %%al, 3b+2(%%rip)\n\tret\n4:");
        done(&r, code);
        EQ(T.r.rsi, 25 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7));
    }
}

TEST(smc, breakpoints_come_and_go)
{
    u64 pa = map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        put_const((u8 *)pa, 0x42);
        for (unsigned i = 0; i < 100; i++) {
            *(u8 *)pa = 0xcc;
            struct regs r = regs_for(cpl);
            r.rip = UVA;
            run(&r);
            expect(BP, 0);
            EQ(T.r.rip, UVA + 1);
            *(u8 *)pa = 0xb8;
            EQ(call_const(cpl, UVA), 0x42);
        }
    }
}

TEST(smc, write_protected_code)
{
    /* A faulting store to a code page changes nothing. */
    u64 pa = map_new(UVA, PG_P | PG_U);
    put_const((u8 *)pa, 0x42);
    BOTH_CPLS
    {
        EQ(call_const(cpl, UVA), 0x42);
        struct regs r = regs_for(cpl);
        r.rbx = UVA + 1;
        fault(&r, SNIP("mov %%eax, (%%rbx)"), PF, PF_P | PF_W | (cpl ? PF_U : 0));
        EQ(call_const(cpl, UVA), 0x42);
    }
}

TEST(smc, kernel_text_patching)
{
    /* Linux' alternatives and jump labels: 5-byte NOP to JMP and back, by way of INT3. */
    u64 pa = map_new(KVA, PG_KRW);
    u8 *code = (u8 *)pa;
    static const u8 nop5[] = {0x0f, 0x1f, 0x44, 0, 0}, jmp5[] = {0xe9, 7, 0, 0, 0};
    memset(code, 0x90, 64);
    memcpy(code, nop5, 5);
    put_const(code + 5, 1);
    put_const(code + 12, 2);
    for (unsigned i = 0; i < 200; i++) {
        const u8 *to = i & 1 ? nop5 : jmp5;
        EQ(call_const(0, KVA), i & 1 ? 2 : 1);
        code[0] = 0xcc;
        memcpy(code + 1, to + 1, 4);
        cpuid(0, 0);
        code[0] = to[0];
        cpuid(0, 0);
        EQ(call_const(0, KVA), i & 1 ? 1 : 2);
    }
}
