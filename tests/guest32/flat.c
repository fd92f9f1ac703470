/*
 * Flat segments in code that is hot: addresses that wrap at 4 GiB in every way, and indirect calls
 * whose targets are alike in their lower bits.  A translator may reach memory by another way there,
 * and find targets in a table of its own.
 */
#include "guest32.h"

#define FLAT (M(K32) | M(U32))
#define RUNS 300 /* enough to be hot */

static void fill(void)
{
    for (u32 i = 0; i < 0x1000; i += 4)
        *mem32(DS_BASE + i) = i * 0x9e3779b1u;
}

TEST(flat, wrap)
{
    EACH_MODE(m, FLAT)
    {
        struct regs r = regs_for(m);
        fill();
        r.ecx = RUNS;
        r.ebx = 0xffff0000;           /* + 10000h + DS_BASE */
        r.edx = 0x80000000 + DS_BASE; /* - 7fffff00h, + 80000040h as an unsigned displacement */
        r.esi = (u32)-8;              /* an index below 0 */
        r.edi = DS_BASE + 0x800;
        r.ebp = 0xfffffffc; /* no frame pointer */
        r.eax = 0;
        if (!done(&r, SNIP32("1: add 0x30004(%%ebx), %%eax\n\t"
                             "add -0x7fffff00(%%edx), %%eax\n\t"
                             "add -0x7fffffc0(%%edx), %%eax\n\t"
                             "add 0x20020(,%%esi,4), %%eax\n\t"
                             "add 0x2000c(%%ebp), %%eax\n\t"
                             "add -4(%%edi), %%eax\n\t"
                             "mov %%eax, 0x30400(%%ebx)\n\t"
                             "addl $3, 0x20424(,%%esi,4)\n\t"
                             "movb %%ah, 0x20410(%%ebp)\n\t"
                             "pushl 0x30404(%%ebx)\n\tpopl 0x30408(%%ebx)\n\t"
                             "lea 0x7ffffff0(%%ebx,%%esi,8), %%edi\n\t"
                             "mov $0x20800, %%edi\n\t"
                             "dec %%ecx\n\tjnz 1b" /* */)))
            continue;
        u32 sum = RUNS * (4 + 0x100 + 0x40 + 0 + 8 + 0x7fc) * 0x9e3779b1u;
        EQ(T.r.eax, sum);
        EQ(*mem32(DS_BASE + 0x400), sum);
        EQ(*mem32(DS_BASE + 0x404), 0x404 * 0x9e3779b1u + 3 * RUNS);
        EQ(*mem32(DS_BASE + 0x408), *mem32(DS_BASE + 0x404));
        EQ(*(u8 *)(DS_BASE + 0x40c), (u8)(sum >> 8));
    }
}

/* One place may wrap in some executions and not in others. */
TEST(flat, wraps_sometimes)
{
    EACH_MODE(m, FLAT)
    {
        struct regs r = regs_for(m);
        fill();
        r.ecx = RUNS * 4;
        r.esi = (u32)(-(int)RUNS * 2);
        r.eax = r.edx = 0;
        if (!done(&r, SNIP32("1: add 0x20400(%%esi), %%eax\n\t"
                             "xor 0x20400(,%%esi,2), %%edx\n\t"
                             "inc %%esi\n\tdec %%ecx\n\tjnz 1b")))
            continue;
        u32 sum = 0, mix = 0;
        for (int i = -RUNS * 2; i < RUNS * 2; i++) {
            sum += *mem32(DS_BASE + 0x400 + (u32)i);
            mix ^= *mem32(DS_BASE + 0x400 + (u32)(i * 2));
        }
        EQ(T.r.eax, sum);
        EQ(T.r.edx, mix);
    }
}

/* String instructions that look for something, both ways, in code that is hot. */
TEST(flat, strings)
{
    EACH_MODE(m, FLAT)
    {
        for (u32 down = 0; down < 2; down++) {
            struct regs r = regs_for(m);
            u32 first = down ? 0x7ff : 0, sign = down ? (u32)-1 : 1;
            fill();
            for (u32 i = 0; i < 0x800; i++)
                *(u8 *)(ES_BASE + i) = *(u8 *)(DS_BASE + i);
            *(u8 *)(ES_BASE + first + sign * 300) ^= 1;
            r.edx = RUNS;
            r.ebx = DS_BASE + first;
            r.ebp = ES_BASE + first;
            r.edi = 0;
            if (down)
                r.eflags |= F_DF;
            if (!done(&r, SNIP32("1: mov %%ebx, %%esi\n\tpush %%edi\n\tmov %%ebp, %%edi\n\t"
                                 "mov $400, %%ecx\n\trepe cmpsb\n\tpop %%edi\n\t"
                                 "lea (%%edi,%%ecx), %%edi\n\t" /* what is left of them */
                                 "lodsb\n\tmovzbl %%al, %%eax\n\tlea (%%edi,%%eax), %%edi\n\t"
                                 "mov %%ebp, %%esi\n\tmov $50, %%ecx\n\trep lodsb\n\t"
                                 "push %%edi\n\tmov %%ebp, %%edi\n\tmov $100, %%ecx\n\t"
                                 "repne scasb\n\tpop %%edi\n\tlea (%%edi,%%ecx), %%edi\n\t"
                                 "dec %%edx\n\tjnz 1b\n\tcld")))
                continue;
            u32 n = 0;
            u8 al = *(u8 *)(ES_BASE + first + sign * 49);
            while (*(u8 *)(ES_BASE + first + sign * n++) != al)
                ;
            EQ(T.r.edi, RUNS * (99 + *(u8 *)(DS_BASE + first + sign * 301) + 100 - n));
            EQ(T.r.ecx, 100 - n);
            EQ(T.r.esi, r.ebp + sign * 50);
        }
    }
}

/* A run that wraps at 4 GiB, every other time. */
TEST(flat, string_wraps)
{
    EACH_MODE(m, FLAT)
    {
        struct regs r = regs_for(m);
        fill();
        r.edx = RUNS * 2;
        r.ebx = DS_BASE;
        r.ebp = (u32)-16;
        r.edi = 0;
        if (!done(&r, SNIP32("1: mov %%ebx, %%esi\n\tmov $32, %%ecx\n\txor %%eax, %%eax\n\t"
                             "rep lodsb\n\tadd %%eax, %%edi\n\tadd %%esi, %%edi\n\t"
                             "xchg %%ebx, %%ebp\n\tdec %%edx\n\tjnz 1b")))
            continue;
        u32 low = *(volatile u8 *)(*(volatile u32 *)&r.edi + 15);
        EQ(T.r.edi, RUNS * (DS_BASE + 32 + *(u8 *)(DS_BASE + 31) + 16 + low));
        EQ(T.r.ecx, 0);
    }
}

/*
 * Functions that load a register with their return address, on the page of the caller and on another one,
 * called so often that it is hot, and written to meanwhile.
 */
TEST(flat, return_address)
{
    static const u32 main_at = 0x1001000;
    static const u32 function_at[2] = {0x1001f00, 0x1800040};
    EACH_MODE(m, FLAT)
    {
        for (unsigned k = 0; k < 2; k++) {
            const u32 many = 2000000, half = 1000000, f = function_at[k];
            struct regs r = regs_for(m);
            u8 *p = (u8 *)f;
            PUT(p, 0x8b, 0x1c, 0x24, 0xc3); /* mov ebx, [esp]; ret */
            p = (u8 *)main_at;
            PUT(p, 0x31, 0xdb, 0x31, 0xd2, 0xf9); /* xor ebx, ebx; xor edx, edx; stc */
            PUT(p, 0xe8);
            p = put32(p, f - ((u32)p + 4));
            u32 ret = (u32)p;
            PUT(p, 0x11, 0xd8, 0x01, 0xd6, 0x51, 0x59); /* adc eax, ebx; add esi, edx; push ecx; pop ecx */
            PUT(p, 0x81, 0xf9);                         /* cmp ecx, half */
            p = put32(p, half);
            PUT(p, 0x75, 7, 0xc6, 5); /* jne 1f; mov byte [f + 1], 14h: it is edx from now on */
            p = put32(p, f + 1);
            PUT(p, 0x14, 0x49, 0x75); /* 1: dec ecx; jnz */
            PUT(p, (u8)(main_at - ((u32)p + 1)));
            PUT(p, 0xcc);
            r.eax = r.esi = 0;
            r.ecx = many;
            context("%s, function %u", mode_name(m), k);
            if (!done(&r, (u8 *)main_at))
                continue;
            /* The one that has written it had called it before. */
            EQ(T.r.eax, (many - half + 1) * ret + many);
            EQ(T.r.esi, (half - 1) * ret);
            EQ(T.r.ebx, 0);
            EQ(T.r.edx, ret);
            EQ(T.r.esp, r.esp);
        }
    }
}

TEST(flat, alike_targets)
{
    /* 4 MiB apart: code there may share its place in tables that go by the lower bits. */
    static const u32 at[3] = {0x1000040, 0x1400040, 0x1800040};
    EACH_MODE(m, FLAT)
    {
        struct regs r = regs_for(m);
        for (u32 i = 0; i < 3; i++) {
            u8 *p = (u8 *)at[i];
            PUT(p, 0x15); /* adc eax, 1 << 8 * i */
            p = put32(p, 1u << 8 * i);
            PUT(p, 0xc3);
        }
        r.ebx = at[0], r.esi = at[1], r.edi = at[2];
        r.eax = r.edx = r.ebp = 0;
        r.ecx = RUNS * 4;
        if (!done(&r, SNIP32("1: stc\n\tcall *%%ebx\n\tcall *%%esi\n\tcmc\n\tcall *%%edi\n\t"
                             "push %%esi\n\tstc\n\tcall *(%%esp)\n\tpop %%esi\n\t"
                             "test %%ecx, %%ecx\n\tcall *%%ebx\n\tcall *%%ebx\n\t"
                             "xchg %%ebx, %%edi\n\tdec %%ecx\n\tjnz 1b")))
            continue;
        u32 sum = 0;
        bool carry;
        for (unsigned i = 0; i < RUNS * 4; i++) {
            u32 b = i & 1 ? 1u << 16 : 1, d = i & 1 ? 1 : 1u << 16;
#define ADC(n) carry = __builtin_add_overflow(sum, (n) + carry, &sum)
            carry = true;
            ADC(b);
            ADC(1u << 8);
            carry = !carry;
            ADC(d);
            carry = true;
            ADC(1u << 8);
            carry = false;
            ADC(b);
            ADC(b);
        }
        EQ(T.r.eax, sum);
        EQ(T.r.esp, r.esp);
    }
}
