/*
 * Privileged and sensitive instructions that a translator may do on the spot: in loops that make
 * them hot, with operands that change from round to round, so that what it has guessed at becomes
 * wrong.
 */
#include "guest.h"

enum { WARM = 2000 };

/* One RDMSR and one WRMSR that get to see several MSRs. */
TEST(inline, one_rdmsr_for_many_msrs)
{
    static const u32 msr[] = {MSR_FS_BASE, MSR_GS_BASE, MSR_KGS, MSR_LSTAR, MSR_CSTAR, MSR_FS_BASE};
    enum { N = sizeof(msr) / sizeof(msr[0]) };
    struct regs r = regs_for(0);
    u64 *value = (u64 *)buffer;
    u8 *read = SNIP("cmp %%ecx, %%ecx\n\tstc\n\trdmsr\n\tsetc %%bl\n\tsetz %%bh");
    u8 *write = SNIP("cmp %%ecx, %%ecx\n\tstc\n\twrmsr\n\tsetc %%bl\n\tsetz %%bh");
    u8 *write_dead = SNIP("wrmsr\n\txor %%ebx, %%ebx");

    for (unsigned round = 0; round < 60; round++)
        for (unsigned i = 0; i < N; i++) {
            unsigned k = round < 30 ? i : 0; /* at last the same all the time */
            value[k] = (random64() & 0x7fffffffffff) | (round & 1 ? 0xffff800000000000 : 0);
            r.rcx = msr[k] | random64() << 32;
            r.rax = (value[k] & 0xffffffff) | random64() << 32;
            r.rdx = value[k] >> 32 | random64() << 32;
            done(&r, round & 2 ? write : write_dead);
            if (round & 2)
                EQ(T.r.rbx & 0xffff, 0x101);
            r.rax = r.rdx = ~0ul;
            done(&r, read);
            EQ(T.r.rbx & 0xffff, 0x101);
            EQ(T.r.rax, value[k] & 0xffffffff);
            EQ(T.r.rdx, value[k] >> 32);
            EQ(T.r.rcx, r.rcx);
            EQ(rdmsr(msr[k]), value[k]);
        }
    for (unsigned i = 0; i < 4 && !on_tcg;
         i++) { /* not canonical, by one bit; TCG does not check */
        r.rcx = msr[i];
        r.rax = 0, r.rdx = 0x8000;
        fault(&r, SNIP("wrmsr"), GP, 0);
        run_at(&r, write_dead);
        expect(GP, 0);
        r.rdx = 0xffff7fff;
        run_at(&r, write);
        expect(GP, 0);
        r.rcx = 0xc0000000 + i; /* no such MSR, where another one is expected */
        run_at(&r, write);
        expect(GP, 0);
        run_at(&r, read);
        expect(GP, 0);
    }
    struct regs u = regs_for(3);
    u.rcx = MSR_FS_BASE;
    fault(&u, SNIP("rdmsr"), GP, 0);
    fault(&u, SNIP("wrmsr"), GP, 0);
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_GS_BASE, 0);
    wrmsr(MSR_KGS, 0);
}

/* The number is in the code, and the code behind the WRMSR depends on what it changes. */
TEST(inline, wrmsr_of_a_known_number)
{
    struct regs r = regs_for(0);
    u64 pa = map_new(KVA, PG_KRW);

    *(u64 *)(pa + 0x100) = 0x1122334455667788;
    *(u64 *)(pa + 0x200) = 0x99aabbccddeeff00;
    r.rbx = KVA & 0xffffffff, r.rbp = KVA >> 32;
    r.rdi = WARM;
    done(&r, SNIP("1: mov $0xc0000100, %%ecx\n\tmov %%ebx, %%eax\n\tmov %%ebp, %%edx\n\twrmsr\n\t"
                  "mov %%fs:0x100, %%r8\n\tadd $0x100, %%eax\n\twrmsr\n\tmov %%fs:0x100, %%r9\n\t"
                  "rdmsr\n\tmov %%rax, %%r10\n\tmov %%rdx, %%r11\n\tdec %%edi\n\tjnz 1b"));
    EQ(T.r.r8, 0x1122334455667788);
    EQ(T.r.r9, 0x99aabbccddeeff00);
    EQ(T.r.r10, (KVA & 0xffffffff) + 0x100);
    EQ(T.r.r11, KVA >> 32);
    wrmsr(MSR_FS_BASE, 0);
    /* RDTSC in the same run of code as the WRMSR that moves the TSC. */
    r = regs_for(0);
    r.rdi = 20;
    done(&r, SNIP("1: mov $0x10, %%ecx\n\txor %%eax, %%eax\n\tmov $0x1000, %%edx\n\twrmsr\n\t"
                  "rdtsc\n\tmov %%edx, %%r8d\n\tmov $0x5000, %%edx\n\txor %%eax, %%eax\n\twrmsr\n\t"
                  "rdtsc\n\tmov %%edx, %%r9d\n\tdec %%edi\n\tjnz 1b"));
    if (!on_tcg) { /* whose TSC cannot be written (QEMU 7.2) */
        EQ(T.r.r8, 0x1000);
        EQ(T.r.r9, 0x5000);
    }
}

/* POPF of every kind of image, in one loop, and what PUSHF shows then. */
TEST(inline, popf_of_many_images)
{
    enum { N = 400 };
    u64 *image = (u64 *)buffer, *seen = image + N;

    for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3) {
        u64 may = F_ARITH | F_DF | F_ID | (cpl ? 0 : F_IF | F_IOPL | F_AC);
        struct regs r = regs_for(cpl);
        for (unsigned i = 0; i < N; i++) {
            image[i] = random64() & (may | F_RF | F_VIF | F_VIP | 0xffffffff00008028);
            if (cpl)
                image[i] |= random64() & (F_IF | F_IOPL);
            if (i & 3) /* mostly nothing but arithmetic flags, and IF */
                image[i] = (image[i] & (F_ARITH | F_IF)) | (image[i - 1] & ~(u64)(F_ARITH | F_IF));
            seen[i] = 0;
        }
        r.rbx = at_cpl(cpl, image), r.rsi = at_cpl(cpl, seen), r.rcx = N;
        done(&r, SNIP("1: push (%%rbx)\n\tpopfq\n\tpushfq\n\tpop (%%rsi)\n\tlea 8(%%rbx), %%rbx\n\t"
                      "lea 8(%%rsi), %%rsi\n\tlea -1(%%rcx), %%rcx\n\tjrcxz 2f\n\tjmp 1b\n2: cld"));
        u64 keep = r.rflags & ~may;
        for (unsigned i = 0; i < N; i++) {
            context("cpl %u, image %lx", cpl, image[i]);
            if (!EQ(seen[i], (image[i] & may) | (keep & (F_IF | F_IOPL | F_AC) & ~may) | 2))
                break;
        }
        /* DF itself, and the word form, which leaves the upper flags alone. */
        r = regs_for(cpl);
        r.rbx = at_cpl(cpl, seen), r.rsi = r.rbx + 64, r.rcx = WARM;
        seen[0] = 0x1111, seen[8] = 0;
        done(&r,
             SNIP("1: push $0x402\n\tpopfq\n\tlodsq\n\tpush $2\n\tpopfq\n\tlodsq\n\tdec %%ecx\n\t"
                  "jnz 1b\n\tpush $0x200ad7\n\tpopfq\n\tpushw $2\n\tpopfw\n\tpushfq\n\tpop %%rdx"));
        EQ(T.r.rsi, r.rsi);
        EQ(T.r.rdx & (F_ID | F_ARITH | F_DF), F_ID);
    }
}

/* -- Divisions -------------------------------------------------------------------------------- */

static u64 low_bits(u64 x, unsigned size)
{
    return size == 8 ? x : x & ((1ul << 8 * size) - 1);
}

static long sign_extend(u64 x, unsigned size)
{
    unsigned shift = 64 - 8 * size;
    return (long)(x << shift) >> shift;
}

/* What DIV (IDIV) of hi:lo by d gives: false for #DE.  Quotients of signed 64-bit divisions: those
 * with hi the sign of lo only. */
static bool divide(unsigned size, bool is_signed, u64 hi, u64 lo, u64 d, u64 *q, u64 *rest)
{
    if (!d)
        return false;
    if (!is_signed) {
        if (hi >= d)
            return false;
        if (size == 8) { /* by hand: there is no 128-bit division here */
            u64 r = hi;
            *q = 0;
            for (int bit = 63; bit >= 0; bit--) {
                bool carry = r >> 63;
                r = r << 1 | (lo >> bit & 1);
                if (carry || r >= d) {
                    r -= d;
                    *q |= 1ul << bit;
                }
            }
            *rest = r;
            return true;
        }
        u64 n = hi << 8 * size | lo;
        *q = n / d;
        *rest = n % d;
        return true;
    }
    long s = sign_extend(d, size), n = (long)lo;
    if (size < 4)
        n = sign_extend(hi << 8 * size | lo, 2 * size);
    else if (size == 4)
        n = (long)(hi << 32 | lo);
    if (s == -1 && n == (long)(1ul << 63))
        return false;
    long quotient = n / s;
    if (sign_extend((u64)quotient, size) != quotient)
        return false;
    *q = low_bits((u64)quotient, size);
    *rest = low_bits((u64)(n % s), size);
    return true;
}

/* Divisions that fail so often that a translator does something about it, and those in between. */
TEST(inline, divisions_by_zero_and_not)
{
    struct {
        u8 size;
        bool is_signed, mem;
        u8 *code;
    } form[] = {
        {1, 0, 0, SNIP("div %%r8b")},    {1, 1, 0, SNIP("idiv %%bl")},
        {2, 0, 0, SNIP("div %%r10w")},   {2, 1, 0, SNIP("idiv %%r8w")},
        {4, 0, 0, SNIP("div %%ebx")},    {4, 1, 0, SNIP("idiv %%r10d")},
        {8, 0, 0, SNIP("div %%r8")},     {8, 1, 0, SNIP("idiv %%rbx")},
        {1, 0, 1, SNIP("divb (%%rsi)")}, {1, 1, 1, SNIP("idivb (%%rsi)")},
        {2, 0, 1, SNIP("divw (%%rsi)")}, {2, 1, 1, SNIP("idivw (%%rsi)")},
        {4, 0, 1, SNIP("divl (%%rsi)")}, {4, 1, 1, SNIP("idivl (%%rsi)")},
        {8, 0, 1, SNIP("divq (%%rsi)")}, {8, 1, 1, SNIP("idivq (%%rsi)")},
        {8, 0, 0, SNIP("div %%r11")},
    };
    map_new(UVA, PG_URW);

    for (unsigned f = 0; f < sizeof(form) / sizeof(form[0]); f++) {
        unsigned size = form[f].size, faults = 0;
        for (unsigned i = 0; i < 150; i++) {
            struct regs r = regs_for(i & 1 ? 3 : 0);
            u64 d = random64() >> (random64() & 63), lo = random64() >> (random64() & 63);
            u64 hi = random64() >> (random64() & 63), q = 0, rest = 0;
            if (!(random64() & 3))
                d = 0;
            d = low_bits(d, size), lo = low_bits(lo, size), hi = low_bits(hi, size);
            if (form[f].is_signed && (size == 8 || (i & 2)))
                hi = low_bits(sign_extend(lo, size) < 0 ? ~0ul : 0, size);
            else if (d && (i & 4))
                hi = low_bits(hi % d, size);
            if (size == 1)
                r.rax = (r.rax & ~0xfffful) | hi << 8 | lo;
            else
                r.rax = (size < 8 ? r.rax & ~low_bits(~0ul, size) : 0) | lo,
                r.rdx = (size < 8 ? r.rdx & ~low_bits(~0ul, size) : 0) | hi;
            r.rbx = r.r8 = r.r10 = r.r11 = (size < 8 ? random64() & ~low_bits(~0ul, size) : 0) | d;
            r.rsi = UVA + 16 * i;
            r.rflags |= random64() & (F_CF | F_PF | F_AF | F_ZF | F_SF | F_OF);
            *(u64 *)(*pte_at(UVA, 1) & PG_ADDR) = 0;
            memcpy((u8 *)(*pte_at(UVA, 1) & PG_ADDR) + 16 * i, &d, 8);
            context("%u bytes, %s, %lx:%lx / %lx", size, form[f].is_signed ? "signed" : "unsigned",
                    hi, lo, d);
            bool ok = divide(size, form[f].is_signed, hi, lo, d, &q, &rest);
            if (!ok) {
                fault_of_arithmetic(&r, form[f].code, DE, 0);
                if (!on_tcg)
                    EQ(T.r.rflags & F_ARITH, r.rflags & F_ARITH);
                faults++;
                continue;
            }
            done(&r, form[f].code);
            if (size == 1) {
                EQ(T.r.rax & 0xffff, rest << 8 | q);
                EQ(T.r.rdx, r.rdx);
            } else {
                EQ(low_bits(T.r.rax, size), q);
                EQ(low_bits(T.r.rdx, size), rest);
            }
            EQ(T.r.r10, r.r10);
            EQ(T.r.r11, r.r11);
        }
        CHECK(faults > 20);
        if (form[f].mem) { /* memory comes first */
            struct regs r = regs_for(3);
            r.rsi = UVA + 4096 - (size > 1 ? 1 : 0);
            unmap(UVA + 4096);
            run_at(&r, form[f].code);
            expect(PF, PF_U);
            EQ(T.cr2, UVA + 4096);
        }
    }
}
