/*
 * Memory operands: accesses that cross a page, every addressing form, and faults that must leave
 * no trace.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

/* -- Accesses over a page boundary
 * ---------------------------------------------------------------*/

/*
 * Each case is run on a plain buffer first; then with the operand over a page boundary, where
 * registers, vector registers and memory must come out the same; then with either page missing,
 * or the second one read-only, where the fault must be exact and nothing may have changed.
 */
enum { R = 1, W = 2, TCG_BAD = 8 /* TCG changes flags or memory before it faults */ };

struct access_case {
    const char *name;
    const u8 *code; /* operand at (%rbx) = (%rsi) = (%rdi) */
    u8 size, flags;
};

static u8 vec_before[64 * 4] __attribute__((aligned(64))),
    vec_after[64 * 4] __attribute__((aligned(64)));

static void load_vectors(void)
{
    for (unsigned i = 0; i < sizeof(vec_before); i++)
        vec_before[i] = (u8)(i * 37 + 11);
    asm volatile("fninit\n\tfld1\n\tfldpi");
    if (feat.avx512f && (xgetbv(0) & 0xe0))
        asm volatile("vmovdqu64 (%0), %%zmm0\n\tvmovdqu64 64(%0), %%zmm1\n\t"
                     "vmovdqu64 128(%0), %%zmm2\n\tvmovdqu64 192(%0), %%zmm3" ::"r"(vec_before));
    else if (feat.avx)
        asm volatile("vmovdqu (%0), %%ymm0\n\tvmovdqu 64(%0), %%ymm1\n\t"
                     "vmovdqu 128(%0), %%ymm2\n\tvmovdqu 192(%0), %%ymm3" ::"r"(vec_before));
    else
        asm volatile("movdqu (%0), %%xmm0\n\tmovdqu 64(%0), %%xmm1\n\t"
                     "movdqu 128(%0), %%xmm2\n\tmovdqu 192(%0), %%xmm3" ::"r"(vec_before));
}

static void save_vectors(u8 *to)
{
    memset(to, 0, sizeof(vec_after));
    if (feat.avx512f && (xgetbv(0) & 0xe0))
        asm volatile("vmovdqu64 %%zmm0, (%0)\n\tvmovdqu64 %%zmm1, 64(%0)\n\t"
                     "vmovdqu64 %%zmm2, 128(%0)\n\tvmovdqu64 %%zmm3, 192(%0)" ::"r"(to)
                     : "memory");
    else if (feat.avx)
        asm volatile("vmovdqu %%ymm0, (%0)\n\tvmovdqu %%ymm1, 64(%0)\n\t"
                     "vmovdqu %%ymm2, 128(%0)\n\tvmovdqu %%ymm3, 192(%0)" ::"r"(to)
                     : "memory");
    else
        asm volatile("movdqu %%xmm0, (%0)\n\tmovdqu %%xmm1, 64(%0)\n\t"
                     "movdqu %%xmm2, 128(%0)\n\tmovdqu %%xmm3, 192(%0)" ::"r"(to)
                     : "memory");
    /* the x87 stack top, without its pointers */
    asm volatile("fnstenv (%0)\n\tfldenv (%0)" ::"r"(buffer + 0x7000) : "memory");
}

static void pattern(u8 *p, unsigned n, unsigned seed)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (u8)(seed * 131 + i * 29 + (i >> 3));
    p[0] |= 1; /* not zero, for divisors */
}

static struct regs access_regs(unsigned cpl, u64 at)
{
    struct regs r = regs_for(cpl);
    r.rbx = r.rsi = r.rdi = at;
    r.r10 = at - 0x40, r.r11 = 8;
    r.rcx = 2;
    r.rax = 0x1122334455667788;
    r.rdx = 0;
    r.rflags |= F_CF;
    return r;
}

/*
 * The arithmetic flags that the instruction writes whatever they were.  After a fault of it they
 * may have any value (docs/deviations.md): restarting it makes up for that.
 */
static u64 overwritten_flags(const struct access_case *c, struct regs r, u8 *operand)
{
    u64 after[2];
    for (unsigned i = 0; i < 2; i++) {
        struct regs in = r;
        in.rflags = (r.rflags & ~(u64)F_ARITH) | (i ? F_ARITH : 0);
        pattern(operand, 64, c->size);
        load_vectors();
        if (!done(&in, c->code))
            return 0;
        after[i] = T.r.rflags;
    }
    return F_ARITH & ~(after[0] ^ after[1]);
}

static void run_access(const struct access_case *c, u64 first, u64 second)
{
    /* first, second: physical pages behind UVA and UVA + 4096 */
    for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
        u64 u = cpl ? PF_U : 0;
        static u8 want_memory[64], want_vectors[256];
        map(UVA, first, PG_URW);
        map(UVA + 4096, second, PG_URW);
        /* reference: in the middle of a page */
        u8 *mid = (u8 *)first + 0x200;
        pattern(mid, 64, c->size);
        load_vectors();
        struct regs r = access_regs(cpl, UVA + 0x200);
        context("%s, cpl %u, plain", c->name, cpl);
        if (!done(&r, c->code))
            return;
        struct trap want = T;
        save_vectors(want_vectors);
        memcpy(want_memory, mid, 64);
        u64 kept = F_ARITH & ~overwritten_flags(c, r, mid);

        for (unsigned k = 1; k<c->size; k += c->size> 16 ? 7 : 1) {
            u64 at = UVA + 4096 - k; /* k bytes on the first page */
            u8 image[64];
            r = access_regs(cpl, at);
            context("%s, cpl %u, %u bytes on the first page", c->name, cpl, k);
            pattern(image, 64, c->size);
            memcpy((u8 *)first + 4096 - k, image, k);
            memcpy((u8 *)second, image + k, 64 - k);
            load_vectors();
            if (!done(&r, c->code))
                return;
            save_vectors(vec_after);
            const u64 *g = &T.r.rax, *w = &want.r.rax;
            for (unsigned i = 0; i < 16; i++) {
                u64 shift = at - (UVA + 0x200);
                if (g[i] != w[i] && g[i] - shift != w[i])
                    fail("register %u: got 0x%lx, want 0x%lx", i, g[i], w[i]);
            }
            EQ(T.r.rflags, want.r.rflags);
            EQ(memcmp(vec_after, want_vectors, 256), 0);
            EQ(memcmp((u8 *)first + 4096 - k, want_memory, k), 0);
            EQ(memcmp((u8 *)second, want_memory + k, 64 - k), 0);

            if (on_tcg && (c->flags & TCG_BAD))
                continue;
            /* the second page is missing, then the first, then the second is read-only */
            for (unsigned mode = 0; mode < 3; mode++) {
                if (mode == 2 && !(c->flags & W))
                    break;
                memcpy((u8 *)first + 4096 - k, image, k);
                memcpy((u8 *)second, image + k, 64 - k);
                map(UVA, first, mode == 1 ? 0 : PG_URW);
                map(UVA + 4096, second, mode == 0 ? 0 : mode == 2 ? PG_P | PG_U : PG_URW);
                context("%s, cpl %u, %u bytes on the first page, %s", c->name, cpl, k,
                        mode == 0   ? "second missing"
                        : mode == 1 ? "first missing"
                                    : "second read-only");
                load_vectors();
                r = access_regs(cpl, at);
                u64 err = u | (mode == 2 ? PF_P : 0) | (c->flags & W ? PF_W : 0);
                run_at(&r, c->code);
                /* TCG reports the read part of a read-modify-write first */
                if (on_tcg && (c->flags & (R | W)) == (R | W) && mode < 2)
                    err &= ~(u64)PF_W;
                expect(PF, err);
                EQ(T.cr2, mode == 1 ? at : UVA + 4096);
                EQ(trap_rip(), (u64)c->code);
                for (unsigned i = 0; i < 16; i++)
                    if ((&T.r.rax)[i] != (&r.rax)[i])
                        fail("register %u changed to 0x%lx", i, (&T.r.rax)[i]);
                EQ(T.r.rflags & kept, r.rflags & kept);
                save_vectors(vec_after);
                u8 vec_want[256];
                load_vectors();
                save_vectors(vec_want);
                EQ(memcmp(vec_after, vec_want, 256), 0);
                if (!(on_tcg && (c->flags & W))) {
                    EQ(memcmp((u8 *)first + 4096 - k, image, k), 0);
                    EQ(memcmp((u8 *)second, image + k, 64 - k), 0);
                }
                map(UVA, first, PG_URW);
                map(UVA + 4096, second, PG_URW);
            }
        }
    }
}

#define CASE(text, size, flags)                                                                    \
    {                                                                                              \
        text, SNIP(text), size, flags                                                              \
    }

TEST(cross, integer)
{
    const struct access_case cases[] = {
        CASE("mov (%%rbx), %%ax", 2, R),
        CASE("mov (%%rbx), %%eax", 4, R),
        CASE("mov (%%rbx), %%r10", 8, R),
        CASE("mov %%ax, (%%rbx)", 2, W),
        CASE("mov %%eax, (%%rbx)", 4, W),
        CASE("mov %%r11, (%%rbx)", 8, W),
        CASE("movl $0x12345678, (%%rbx)", 4, W),
        CASE("movq $-2, (%%rbx)", 8, W),
        CASE("movzwl (%%rbx), %%ecx", 2, R),
        CASE("movslq (%%rbx), %%r11", 4, R),
        CASE("add (%%rbx), %%rax", 8, R),
        CASE("add %%rax, (%%rbx)", 8, R | W),
        CASE("adc %%eax, (%%rbx)", 4, R | W),
        CASE("sbb (%%rbx), %%rdx", 8, R),
        CASE("cmpq $5, (%%rbx)", 8, R),
        CASE("test %%eax, (%%rbx)", 4, R),
        CASE("incw (%%rbx)", 2, R | W),
        CASE("negq (%%rbx)", 8, R | W),
        CASE("notl (%%rbx)", 4, R | W),
        CASE("shlq $3, (%%rbx)", 8, R | W),
        CASE("rcrl %%cl, (%%rbx)", 4, R | W | TCG_BAD),
        CASE("shld $5, %%rax, (%%rbx)", 8, R | W),
        CASE("imul (%%rbx), %%rax", 8, R),
        CASE("imul $77, (%%rbx), %%r11d", 4, R),
        CASE("mulq (%%rbx)", 8, R),
        CASE("divq (%%rbx)", 8, R),
        CASE("btsl $5, (%%rbx)", 4, R | W),
        CASE("btc %%rcx, (%%rbx)", 8, R | W),
        CASE("bsf (%%rbx), %%rax", 8, R),
        CASE("popcnt (%%rbx), %%rax", 8, R),
        CASE("cmovc (%%rbx), %%rax", 8, R),
        CASE("cmovnc (%%rbx), %%rax", 8, R),
        CASE("xchg %%rax, (%%rbx)", 8, R | W),
        CASE("xchg %%dx, (%%rbx)", 2, R | W),
        CASE("lock addq $7, (%%rbx)", 8, R | W),
        CASE("lock xadd %%eax, (%%rbx)", 4, R | W),
        CASE("lock btsq $3, (%%rbx)", 8, R | W),
        CASE("lock negl (%%rbx)", 4, R | W),
        CASE("cmpxchg %%rcx, (%%rbx)", 8, R | W),
        CASE("lock cmpxchg %%ecx, (%%rbx)", 4, R | W),
        CASE("lock cmpxchg8b (%%rbx)", 8, R | W | TCG_BAD),
        CASE("movnti %%rax, (%%rbx)", 8, W),
        CASE("movbe %%rax, (%%rbx)", 8, W),
        CASE("movbe (%%rbx), %%r11d", 4, R),
        CASE("crc32q (%%rbx), %%rax", 8, R),
    };
    u64 a = page_alloc(), b = page_alloc();
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (!feat.movbe && cases[i].name[3] == 'b' && cases[i].name[4] == 'e')
            continue;
        run_access(&cases[i], a, b);
    }
}

TEST(cross, float_and_vector)
{
    const struct access_case cases[] = {
        CASE("movups (%%rbx), %%xmm1", 16, R),
        CASE("movups %%xmm1, (%%rbx)", 16, W),
        CASE("movdqu (%%rbx), %%xmm0", 16, R),
        CASE("lddqu (%%rbx), %%xmm0", 16, R),
        CASE("movss (%%rbx), %%xmm0", 4, R),
        CASE("movsd %%xmm0, (%%rbx)", 8, W),
        CASE("movhps (%%rbx), %%xmm0", 8, R),
        CASE("movlps %%xmm1, (%%rbx)", 8, W),
        CASE("movd (%%rbx), %%xmm0", 4, R),
        CASE("movq %%xmm2, (%%rbx)", 8, W),
        CASE("addss (%%rbx), %%xmm0", 4, R),
        CASE("cvtsi2sdq (%%rbx), %%xmm0", 8, R),
        CASE("cvttss2si (%%rbx), %%r11", 4, R),
        CASE("pextrd $2, %%xmm1, (%%rbx)", 4, W),
        CASE("pinsrq $1, (%%rbx), %%xmm1", 8, R),
        CASE("pmovzxbw (%%rbx), %%xmm1", 8, R),
        CASE("ldmxcsr 60(%%rbx)\n\tmovq (%%rbx), %%mm0\n\tmovd %%mm0, %%eax\n\temms\n\t"
             "fld1\n\tfldpi",
             0, R),
        CASE("stmxcsr (%%rbx)", 4, W),
        CASE("fldl (%%rbx)\n\tfstp %%st(0)", 8, R),
        CASE("flds (%%rbx)\n\tfstp %%st(0)", 4, R),
        CASE("fldt (%%rbx)\n\tfstp %%st(0)", 10, R),
        CASE("fildll (%%rbx)\n\tfstp %%st(0)", 8, R),
        CASE("fstl (%%rbx)", 8, W),
        CASE("fists (%%rbx)", 2, W),
        CASE("fnstcw (%%rbx)", 2, W),
        CASE("fnstsw (%%rbx)", 2, W),
        CASE("fadds (%%rbx)", 4, R),
    };
    u64 a = page_alloc(), b = page_alloc();
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (cases[i].size)
            run_access(&cases[i], a, b);
    asm volatile("fninit");
    u32 csr = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(csr));
}

TEST(cross, avx)
{
    if (!feat.avx2)
        SKIP("no AVX2");
    const struct access_case cases[] = {
        CASE("vmovups (%%rbx), %%ymm1", 32, R),
        CASE("vmovdqu %%ymm1, (%%rbx)", 32, W),
        CASE("vpaddd (%%rbx), %%ymm1, %%ymm2", 32, R),
        CASE("vpshufb (%%rbx), %%xmm1, %%xmm2", 16, R),
        CASE("vbroadcastsd (%%rbx), %%ymm0", 8, R),
        CASE("vbroadcasti128 (%%rbx), %%ymm0", 16, R),
        CASE("vinserti128 $1, (%%rbx), %%ymm1, %%ymm2", 16, R),
        CASE("vextracti128 $1, %%ymm1, (%%rbx)", 16, W),
        CASE("vmovss (%%rbx), %%xmm0", 4, R),
        CASE("vpmovzxbd (%%rbx), %%ymm1", 8, R),
        CASE("vpblendvb %%ymm0, (%%rbx), %%ymm1, %%ymm2", 32, R),
    };
    u64 a = page_alloc(), b = page_alloc();
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        run_access(&cases[i], a, b);
    if (!feat.bmi2)
        return;
    const struct access_case bmi[] = {
        CASE("mulx (%%rbx), %%r10, %%r11", 8, R), CASE("rorx $9, (%%rbx), %%rax", 8, R),
        CASE("shrx %%rcx, (%%rbx), %%r10", 8, R), CASE("andn (%%rbx), %%rax, %%r11", 8, R),
        CASE("pext (%%rbx), %%rax, %%r10", 8, R), CASE("bzhi %%ecx, (%%rbx), %%eax", 4, R),
    };
    for (unsigned i = 0; i < sizeof(bmi) / sizeof(bmi[0]); i++)
        run_access(&bmi[i], a, b);
}

TEST(cross, avx512)
{
    if (!feat.avx512bw || !feat.avx512vl)
        SKIP("no AVX-512");
    const struct access_case cases[] = {
        CASE("vmovdqu64 (%%rbx), %%zmm1", 64, R),
        CASE("vmovdqu64 %%zmm1, (%%rbx)", 64, W),
        CASE("vpaddd (%%rbx), %%zmm1, %%zmm2", 64, R),
        CASE("vpaddd (%%rbx)%{1to16%}, %%zmm1, %%zmm2", 4, R),
        CASE("vpmovqb %%zmm1, (%%rbx)", 8, W),
        CASE("vextracti64x4 $1, %%zmm1, (%%rbx)", 32, W),
        CASE("kmovq (%%rbx), %%k1", 8, R),
        CASE("kmovw %%k0, (%%rbx)", 2, W),
    };
    u64 a = page_alloc(), b = page_alloc();
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        run_access(&cases[i], a, b);
}

TEST(cross, avx512_masked)
{
    /* Only unmasked elements fault; a fault in one leaves memory and the register as they were. */
    if (!feat.avx512bw || !feat.avx512vl)
        SKIP("no AVX-512");
    u64 a = page_alloc();
    map(UVA, a, PG_URW);
    BOTH_CPLS
    {
        for (unsigned n = 0; n <= 16; n++) { /* n dwords on the good page */
            context("cpl %u, n %u", cpl, n);
            struct regs r = regs_for(cpl);
            r.rbx = UVA + 4096 - 4 * n;
            r.rax = (1u << n) - 1;
            memset((u8 *)a, 0x11, 4096);
            u8 *good = SNIP(
                "kmovw %%eax, %%k1\n\tvpternlogd $255, %%zmm0, %%zmm0, %%zmm0\n\t"
                "vmovdqu32 (%%rbx), %%zmm1%{%%k1%}%{z%}\n\tvmovdqu32 %%zmm0, (%%rbx)%{%%k1%}\n\t"
                "vpaddd (%%rbx), %%zmm0, %%zmm2%{%%k1%}%{z%}\n\tvmovd %%xmm1, %%ecx\n\t"
                "vmovd %%xmm2, %%edx");
            done(&r, good);
            EQ(T.r.rcx, n ? 0x11111111 : 0);
            EQ(T.r.rdx, n ? 0xfffffffe : 0);
            for (unsigned i = 0; i < 16; i++)
                if (i < n)
                    EQ(*(u32 *)(a + 4096 - 4 * n + 4 * i), 0xffffffff);
            if (n == 16)
                continue;
            memset((u8 *)a, 0x11, 4096);
            r.rax = (1u << (n + 1)) - 1;
            u8 *at;
            u8 *bad = SNIP_AT(at, "kmovw %%eax, %%k1\n\tvpternlogd $255, %%zmm0, %%zmm0, %%zmm0\n"
                                  "662: vmovdqu32 %%zmm0, (%%rbx)%{%%k1%}");
            run_at(&r, bad);
            expect(PF, PF_W | (cpl ? PF_U : 0));
            EQ(trap_rip(), (u64)at);
            EQ(T.cr2 & ~4095ul, UVA + 4096);
            for (unsigned i = 0; i < 64; i += 4)
                EQ(*(u32 *)(a + 4096 - 64 + i), 0x11111111);
            bad = SNIP_AT(at, "kmovw %%eax, %%k1\n\tvpternlogd $255, %%zmm1, %%zmm1, %%zmm1\n"
                              "662: vmovdqu32 (%%rbx), %%zmm1%{%%k1%}");
            run_at(&r, bad);
            expect(PF, cpl ? PF_U : 0);
            u32 x;
            asm volatile("vmovd %%xmm1, %0" : "=r"(x));
            EQ(x, 0xffffffff);
        }
    }
}

TEST(cross, gather_partial)
{
    if (!feat.avx2)
        SKIP("no AVX2");
    u64 a = page_alloc();
    map(UVA, a, PG_URW);
    for (unsigned i = 0; i < 1024; i++)
        ((u32 *)a)[i] = i + 1;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        static const u32 index[8] = {10, 20, 30, 1024, 50, 60, 70, 80};
        memcpy(buffer, index, 32);
        r.rbx = UVA, r.rcx = at_cpl(cpl, buffer);
        u8 *at;
        u8 *code = SNIP_AT(at, "vmovdqu (%%rcx), %%ymm2\n\tvpcmpeqd %%ymm1, %%ymm1, %%ymm1\n\t"
                               "vpxor %%ymm0, %%ymm0, %%ymm0\n"
                               "662: vpgatherdd %%ymm1, (%%rbx,%%ymm2,4), %%ymm0\n\t"
                               "vmovdqu %%ymm0, 64(%%rcx)\n\tvmovdqu %%ymm1, 96(%%rcx)");
        run_at(&r, code);
        expect(PF, cpl ? PF_U : 0);
        EQ(trap_rip(), (u64)at);
        EQ(T.cr2, UVA + 4096);
        u32 value[8], mask[8];
        asm volatile("vmovdqu %%ymm0, %0\n\tvmovdqu %%ymm1, %1" : "=m"(value), "=m"(mask));
        for (unsigned i = 0; i < 3; i++) {
            EQ(value[i], index[i] + 1);
            EQ(mask[i], 0);
        }
        EQ(value[3], 0);
        EQ(mask[3], ~0u);
        /* resumed with the page present it completes */
        u64 b = map_new(UVA + 4096, PG_URW);
        *(u32 *)b = 0x99;
        r.rip = at_cpl(cpl, at);
        run(&r);
        expect(DONE, 0);
        for (unsigned i = 0; i < 8; i++)
            EQ(((u32 *)(buffer + 64))[i], i == 3 ? 0x99 : index[i] + 1);
        for (unsigned i = 0; i < 8; i++)
            EQ(((u32 *)(buffer + 96))[i], 0);
        unmap(UVA + 4096);
        /* masked-off elements do not fault, whatever their address */
        ((u32 *)buffer)[3] = 0x7fffffff;
        code = SNIP("vmovdqu (%%rcx), %%ymm2\n\tvpcmpeqd %%ymm1, %%ymm1, %%ymm1\n\t"
                    "vpslldq $16, %%ymm1, %%ymm1\n\tvpsrldq $4, %%ymm1, %%ymm1\n\t"
                    "vpcmpeqd %%ymm3, %%ymm3, %%ymm3\n\tvpsrldq $4, %%ymm3, %%ymm1\n\t"
                    "vpxor %%ymm0, %%ymm0, %%ymm0\n\t"
                    "vpgatherdd %%ymm1, (%%rbx,%%ymm2,4), %%ymm0\n\tvmovdqu %%ymm0, 64(%%rcx)");
        done(&r, code);
        EQ(*(u32 *)(buffer + 64 + 8), 31);
        EQ(*(u32 *)(buffer + 64 + 12), 0);
    }
}

TEST(cross, scatter_partial)
{
    if (!feat.avx512f)
        SKIP("no AVX-512");
    u64 a = page_alloc();
    map(UVA, a, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        static const u32 index[16] = {10, 20,  30,  40,  1024, 60,  70,  80,
                                      90, 100, 110, 120, 130,  140, 150, 160};
        memset((u8 *)a, 0, 4096);
        memcpy(buffer, index, 64);
        for (unsigned i = 0; i < 16; i++)
            ((u32 *)(buffer + 64))[i] = i + 1;
        r.rbx = UVA, r.rcx = at_cpl(cpl, buffer);
        u8 *at;
        u8 *code =
            SNIP_AT(at, "vmovdqu32 (%%rcx), %%zmm2\n\tvmovdqu32 64(%%rcx), %%zmm0\n\t"
                        "kxnorw %%k1, %%k1, %%k1\n"
                        "662: vpscatterdd %%zmm0, (%%rbx,%%zmm2,4)%{%%k1%}\n\tkmovw %%k1, %%eax");
        run_at(&r, code);
        expect(PF, PF_W | (cpl ? PF_U : 0));
        EQ(trap_rip(), (u64)at);
        u32 k;
        asm volatile("kmovw %%k1, %0" : "=r"(k));
        EQ(k & 0x1f, 0x10); /* those below the faulting element are done */
        for (unsigned i = 0; i < 16; i++)
            if (i != 4 && !(k >> i & 1))
                EQ(((u32 *)a)[index[i]], i + 1);
        u64 b = map_new(UVA + 4096, PG_URW);
        r.rip = at_cpl(cpl, at);
        run(&r);
        expect(DONE, 0);
        EQ(T.r.rax, 0);
        EQ(*(u32 *)b, 5);
        EQ(((u32 *)a)[160], 16);
        unmap(UVA + 4096);
    }
}

/* -- The stack at page edges
 * ---------------------------------------------------------------------*/

TEST(cross, stack_operations)
{
    u64 a = page_alloc(), b = page_alloc();
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        for (unsigned off = 0; off < 16; off++) {
            context("cpl %u, offset %u", cpl, off);
            map(UVA, a, PG_URW);
            map(UVA + 4096, b, PG_URW);
            struct regs r = regs_for(cpl);
            r.rsp = UVA + 4096 + off;
            r.rbp = UVA + 0x800;
            done(&r, SNIP("push %%rax\n\tpush $0x7f\n\tpushw $5\n\tpopw %%cx\n\tpop %%rdx\n\t"
                          "pop %%rsi\n\tcall 1f\n\tjmp 2f\n1: mov (%%rsp), %%r10\n\tret\n2:\n\t"
                          "enter $24, $0\n\tmov %%rbp, %%r11\n\tleave\n\tpushfq\n\tpop %%r12\n\t"
                          "push (%%rsp)\n\tpop %%r13\n\tenter $8, $3\n\tleave"));
            EQ(T.r.rsp, r.rsp);
            EQ(T.r.rcx & 0xffff, 5);
            EQ(T.r.rdx, 0x7f);
            EQ(T.r.rsi, r.rax);
            EQ(T.r.r11, r.rsp - 8);
            EQ(T.r.rbp, r.rbp);
            /* the lower page is missing: nothing changes */
            unmap(UVA);
            u64 addr = off < 8 ? r.rsp - 8 : 0;
            if (off < 8) {
                r.rbx = at_cpl(cpl, buffer);
                fault(&r, SNIP("push %%rax"), PF, u | PF_W);
                EQ(T.cr2, addr);
                fault(&r, SNIP("push (%%rbx)"), PF, u | PF_W);
                fault(&r, SNIP("call 1f\n1:"), PF, u | PF_W);
                fault(&r, SNIP("call *(%%rbx)"), PF, u | PF_W);
                fault(&r, SNIP("pushfq"), PF, u | PF_W);
                fault(&r, SNIP("enter $16, $0"), PF, u | PF_W);
                fault(&r, SNIP("push %%fs"), PF, u | PF_W);
                fault(&r, SNIP("push $1"), PF, u | PF_W);
            }
            /* the upper page is missing: pops fault */
            map(UVA, a, PG_URW);
            unmap(UVA + 4096);
            r.rsp = UVA + 4096 - off % 8;
            u64 first = off % 8 == 0 ? UVA + 4096 : UVA + 4096;
            r.rbp = r.rsp;
            r.rbx = at_cpl(cpl, buffer);
            fault(&r, SNIP("pop %%rax"), PF, u);
            EQ(T.cr2, first);
            fault(&r, SNIP("pop (%%rbx)"), PF, u);
            fault(&r, SNIP("ret"), PF, u);
            fault(&r, SNIP("ret $16"), PF, u);
            fault(&r, SNIP("popfq"), PF, u);
            fault(&r, SNIP("leave"), PF, u);
            if (off % 8 < 2) /* it reads two bytes only */
                fault(&r, SNIP("pop %%gs"), PF, u);
        }
    }
}

TEST(cross, pop_memory_faults)
{
    /* POP to memory: RSP is not changed when the store faults. */
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        struct regs r = regs_for(cpl);
        r.rbx = UVA;
        fault(&r, SNIP("pop (%%rbx)"), PF, u | PF_W);
        /* [rsp]-based destinations use RSP after the pop */
        u64 *sp = (u64 *)(r.rsp - (cpl ? USER_OFFSET : 0));
        sp[0] = 0x1111, sp[1] = 0x2222, sp[2] = 0x3333;
        done(&r, SNIP("pop (%%rsp)"));
        EQ(sp[1], 0x1111);
        EQ(T.r.rsp, r.rsp + 8);
        done(&r, SNIP("pop 8(%%rsp)"));
        EQ(sp[2], 0x1111);
        done(&r, SNIP("push 8(%%rsp)"));
        EQ(sp[-1], 0x1111);
        done(&r, SNIP("push %%rsp"));
        EQ(sp[-1], r.rsp); /* the value before */
        sp[0] = 0x7777;
        run_at(&r, SNIP("pop %%rsp"));
        EQ(T.r.rsp, 0x7777); /* the popped value, no increment */
    }
}

/* -- String instructions
 * -------------------------------------------------------------------------*/

TEST(string, faults_in_the_middle)
{
    u64 a = page_alloc(), b = page_alloc();
    map(UVA, a, PG_URW);
    map(UVA2, b, PG_URW);
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        for (unsigned width = 1; width <= 8; width *= 2) {
            for (unsigned mis = 0; mis<width; mis += width> 2 ? 3 : 1) {
                context("cpl %u, width %u, misaligned %u", cpl, width, mis);
                struct regs r = regs_for(cpl);
                /* 20 whole elements fit; the next one starts on or reaches into the bad page */
                r.rdi = UVA + 4096 - 20 * width - mis;
                r.rsi = UVA2;
                r.rcx = 100;
                memset((u8 *)a, 0, 4096);
                pattern((u8 *)b, 1024, width);
                u8 *stos[] = {SNIP("rep stosb"), SNIP("rep stosw"), SNIP("rep stosl"),
                              SNIP("rep stosq")};
                u8 *movs[] = {SNIP("rep movsb"), SNIP("rep movsw"), SNIP("rep movsl"),
                              SNIP("rep movsq")};
                u8 *lods[] = {SNIP("rep lodsb"), SNIP("rep lodsw"), SNIP("rep lodsl"),
                              SNIP("rep lodsq")};
                u8 *scas[] = {SNIP("repne scasb"), SNIP("repne scasw"), SNIP("repne scasl"),
                              SNIP("repne scasq")};
                u8 *cmps[] = {SNIP("repe cmpsb"), SNIP("repe cmpsw"), SNIP("repe cmpsl"),
                              SNIP("repe cmpsq")};
                unsigned w = width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : 3;
                u64 limit = r.rdi + 20 * width;
                run_at(&r, stos[w]);
                expect(PF, u | PF_W);
                EQ(T.cr2, UVA + 4096);
                EQ(T.r.rdi, limit);
                EQ(T.r.rcx, 80);
                EQ(trap_rip(), (u64)stos[w]);
                EQ(*(u8 *)(a + ((limit - 1) & 4095)), (u8)(r.rax >> (8 * (width - 1))));
                run_at(&r, movs[w]);
                expect(PF, u | PF_W);
                EQ(T.r.rdi, limit);
                EQ(T.r.rsi, UVA2 + 20 * width);
                EQ(T.r.rcx, 80);
                EQ(memcmp((u8 *)a + (r.rdi & 4095), (u8 *)b, 20 * width), 0);
                r.rsi = r.rdi;
                run_at(&r, lods[w]);
                expect(PF, u);
                EQ(T.r.rsi, limit);
                EQ(T.r.rcx, 80);
                r.rax = 0x0011223344556677; /* does not occur */
                if (width > 1) {
                    run_at(&r, scas[w]);
                    expect(PF, u);
                    EQ(T.r.rdi, limit);
                    EQ(T.r.rcx, 80);
                }
                r.rsi = UVA2;
                run_at(&r, cmps[w]);
                expect(PF, u);
                EQ(T.r.rdi, limit);
                EQ(T.r.rsi, UVA2 + 20 * width);
                EQ(T.r.rcx, 80);
                /* the source faults: movs with source and destination exchanged */
                r.rsi = UVA + 4096 - 20 * width - mis, r.rdi = UVA2;
                run_at(&r, movs[w]);
                expect(PF, u);
                EQ(T.r.rsi, limit);
                EQ(T.r.rdi, UVA2 + 20 * width);
                EQ(T.r.rcx, 80);
            }
        }
    }
}

TEST(string, backwards)
{
    u64 a = page_alloc(), b = page_alloc();
    map(UVA + 4096, a, PG_URW);
    map(UVA2, b, PG_URW);
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        struct regs r = regs_for(cpl);
        r.rflags |= F_DF;
        pattern((u8 *)b, 4096, 3);
        memset((u8 *)a, 0, 4096);
        r.rdi = UVA + 4096 + 31, r.rsi = UVA2 + 4095, r.rcx = 50;
        u8 *code = SNIP("rep movsb");
        run_at(&r, code);
        expect(PF, u | PF_W);
        EQ(T.cr2, UVA + 4095);
        EQ(T.r.rdi, UVA + 4095);
        EQ(T.r.rsi, UVA2 + 4095 - 32);
        EQ(T.r.rcx, 18);
        EQ(memcmp((u8 *)a, (u8 *)b + 4096 - 32, 32), 0);
        r.rdi = UVA + 4096 + 24, r.rcx = 50;
        code = SNIP("rep stosq");
        run_at(&r, code);
        expect(PF, u | PF_W);
        EQ(T.cr2, UVA + 4096 - 8);
        EQ(T.r.rdi, UVA + 4096 - 8);
        EQ(T.r.rcx, 46);
        /* single ones without a prefix */
        r.rdi = UVA + 4096 + 8, r.rsi = UVA2 + 16;
        done(&r, SNIP("movsq\n\tlodsb\n\tstosw\n\tcld"));
        EQ(T.r.rdi, r.rdi - 10);
        EQ(T.r.rsi, r.rsi - 9);
    }
}

TEST(string, over_many_pages)
{
    enum { N = 10 };
    for (unsigned i = 0; i < N; i++) {
        pattern((u8 *)map_new(UVA + i * 4096, PG_URW), 4096, i);
        map_new(UVA2 + i * 4096, PG_URW);
    }
    BOTH_CPLS
    {
        for (unsigned off = 0; off < 40; off += 13) {
            struct regs r = regs_for(cpl);
            context("cpl %u, offset %u", cpl, off);
            r.rsi = UVA + off, r.rdi = UVA2 + 5, r.rcx = (N - 1) * 4096;
            u8 *compare =
                SNIP("rep movsb\n\tmov %%rax, %%rsi\n\tmov %%rbx, %%rdi\n\tmov %%rdx, %%rcx\n\t"
                     "repe cmpsb\n\tsetz %%r10b");
            r.rax = r.rsi, r.rbx = r.rdi, r.rdx = r.rcx;
            done(&r, compare);
            EQ(T.r.rcx, 0);
            EQ(T.r.r10 & 0xff, 1);
            EQ(T.r.rsi, UVA + off + (N - 1) * 4096);
            /* overlapping forward copy spreads a pattern of 3 bytes over pages */
            r.rsi = UVA2, r.rdi = UVA2 + 3, r.rcx = 3 * 4096, r.rbx = UVA2;
            done(&r,
                 SNIP("movb $1, (%%rbx)\n\tmovb $2, 1(%%rbx)\n\tmovb $3, 2(%%rbx)\n\trep movsb\n\t"
                      "mov 12288(%%rbx), %%eax"));
            EQ(T.r.rax & 0xffffff, 0x030201);
            /* and with words, one byte apart */
            r.rsi = UVA2, r.rdi = UVA2 + 1, r.rcx = 2048;
            done(&r, SNIP("rep movsw"));
            EQ(T.r.rdi, UVA2 + 1 + 4096);
        }
    }
}

TEST(string, counts_and_prefixes)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u64 base = at_cpl(cpl, buffer);
        r.rsi = base, r.rdi = base + 64;
        memset(buffer, 0, 256);
        buffer[0] = 1, buffer[1] = 2, buffer[2] = 3;
        r.rcx = 0;
        r.rsi = r.rdi = NONCANON; /* nothing is touched with a count of zero */
        done(&r, SNIP("rep movsb\n\trep stosq\n\trepe cmpsl\n\trepne scasw\n\trep lodsb"));
        EQ(T.r.rdi, NONCANON);
        r.rsi = base, r.rdi = base + 64;
        /* 67h: ECX, ESI, EDI; the upper halves of what is written are cleared */
        r.rcx = 0xabcd00000002;
        r.rsi |= 0xabcd00000000, r.rdi |= 0xef0100000000;
        done(&r, SNIP("addr32 rep movsb"));
        EQ(T.r.rcx, 0);
        EQ(T.r.rsi, base + 2);
        EQ(T.r.rdi, base + 66);
        EQ(buffer[65], 2);
        r.rcx = 0x100000000; /* ECX = 0: nothing happens, but to the upper halves */
        if (!on_tcg) {
            done(&r, SNIP("addr32 rep stosb"));
            EQ(T.r.rcx, 0);
            EQ(T.r.rdi, (u32)r.rdi);
        }
        /* segment override on the source only */
        wrmsr(MSR_FS_BASE, base);
        r.rsi = 2, r.rdi = base + 100, r.rcx = 1;
        done(&r,
             SNIP("rep movsb %%fs:(%%rsi), %%es:(%%rdi)\n\tmov $1, %%esi\n\tlodsb %%fs:(%%rsi)"));
        EQ(buffer[100], 3);
        EQ(T.r.rax & 0xff, 2);
        /* repne on movs repeats like rep */
        r.rsi = base, r.rdi = base + 120, r.rcx = 3;
        done(&r, SNIP(".byte 0xf2, 0xa4"));
        EQ(T.r.rcx, 0);
        EQ(buffer[122], 3);
        wrmsr(MSR_FS_BASE, 0);
        /* scas and cmps: flags are those of the last comparison */
        buffer[130] = 5;
        r.rdi = base + 128, r.rcx = 10, r.rax = 5;
        done(&r, SNIP("repne scasb\n\tsetz %%dl"));
        EQ(T.r.rcx, 7);
        EQ(T.r.rdi, base + 131);
        EQ(T.r.rdx & 0xff, 1);
    }
}

/* -- Addressing forms
 * ----------------------------------------------------------------------------*/

static u64 code_page;

/* Runs bytes followed by INT 0x80 from a page that CPL 0 and 3 may execute. */
static bool run_bytes(struct regs *r, const u8 *code, unsigned n)
{
    memcpy((u8 *)code_page, code, n);
    ((u8 *)code_page)[n] = 0xcd;
    ((u8 *)code_page)[n + 1] = 0x80;
    r->rip = UVA2;
    run(r);
    if (T.vector == DONE)
        return true;
    fail("vector %lu error 0x%lx cr2 0x%lx rip +0x%lx", T.vector, T.error, T.cr2, T.r.rip - UVA2);
    return false;
}

/* Encodes op reg, [base + index * 2^scale + disp] in 64-bit mode; returns the length. */
static unsigned encode(u8 *out, u8 opcode, unsigned reg, unsigned base, unsigned index,
                       unsigned scale, int disp, unsigned disp_size, bool addr32)
{
    unsigned n = 0, mod = disp_size == 0 ? 0 : disp_size == 1 ? 1 : 2;
    bool sib = index != 4 || (base & 7) == 4;
    if (addr32)
        out[n++] = 0x67;
    out[n++] = (u8)(0x48 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3);
    out[n++] = opcode;
    out[n++] = (u8)(mod << 6 | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib)
        out[n++] = (u8)(scale << 6 | (index & 7) << 3 | (base & 7));
    if (disp_size == 1)
        out[n++] = (u8)disp;
    if (disp_size == 4) {
        memcpy(out + n, &disp, 4);
        n += 4;
    }
    return n;
}

TEST(addressing, all_base_and_index)
{
    code_page = map_new(UVA2, PG_URW);
    u64 data = map_new(UVA, PG_URW);
    unsigned counter = 0;
    for (unsigned base = 0; base < 16; base++) {
        for (unsigned index = 0; index < 16; index++) { /* 4 = none */
            for (unsigned scale = 0; scale < (index == 4 ? 1u : 4u); scale++) {
                unsigned disp_size = (unsigned)(counter % 3 == 0 ? 0 : counter % 3 == 1 ? 1 : 4);
                if (disp_size == 0 && (base & 7) == 5)
                    disp_size = 1;
                int disp = disp_size == 0 ? 0 : disp_size == 1 ? -77 : 0x1234;
                unsigned cpl = counter & 1 ? 3 : 0, reg = (counter * 7 + index) % 16;
                counter++;
                struct regs r = regs_for(cpl);
                u64 *g = &r.rax;
                u64 target = UVA + 0x800, mult = 1ul << scale;
                if (index == 4) {
                    g[base] = target - (u64)(long)disp;
                } else if (base == index) {
                    u64 v = (target - (u64)(long)disp) / (1 + mult);
                    g[base] = v;
                    target = v * (1 + mult) + (u64)(long)disp;
                } else {
                    g[index] = 0x135 + counter;
                    g[base] = target - (u64)(long)disp - g[index] * mult;
                }
                context("base %u index %u scale %u disp %d reg %u cpl %u", base, index, scale, disp,
                        reg, cpl);
                u64 *cell = (u64 *)(data + (target - UVA));
                *cell = 0x1020304050607080 + counter;
                u8 code[16];
                unsigned n = encode(code, 0x8b, reg, base, index, scale, disp, disp_size, false);
                if (!run_bytes(&r, code, n))
                    continue;
                u64 want = 0x1020304050607080 + counter;
                for (unsigned i = 0; i < 16; i++) {
                    u64 w = i == reg ? want : g[i];
                    if ((&T.r.rax)[i] != w)
                        fail("load: register %u: got 0x%lx, want 0x%lx", i, (&T.r.rax)[i], w);
                }
                n = encode(code, 0x01, reg, base, index, scale, disp, disp_size, false);
                run_bytes(&r, code, n);
                EQ(*cell, want + g[reg]);
                n = encode(code, 0x8d, reg, base, index, scale, disp, disp_size, false);
                run_bytes(&r, code, n);
                EQ((&T.r.rax)[reg], target);
                n = encode(code, 0x87, reg, base, index, scale, disp, disp_size, false);
                run_bytes(&r, code, n);
                EQ((&T.r.rax)[reg], want + g[reg]);
                EQ(*cell, g[reg]);
            }
        }
    }
}

TEST(addressing, address_size_prefix)
{
    code_page = map_new(UVA2, PG_URW);
    for (unsigned base = 0; base < 16; base++) {
        for (unsigned index = 0; index < 16; index++) {
            unsigned cpl = (base + index) & 1 ? 3 : 0, scale = (base + index) & 3;
            if (base == index)
                continue;
            if (index == 4)
                scale = 0;
            struct regs r = regs_for(cpl);
            u64 *g = &r.rax, target = at_cpl(cpl, buffer) + 0x400;
            /* the sum wraps at 32 bits, and the upper halves are rubbish */
            u32 idx = index == 4 ? 0 : 0xfffff123;
            u32 b = (u32)target - 0x55 - (idx << scale);
            g[base] = 0xdeadbeef00000000 | b;
            if (index != 4)
                g[index] = 0xabcdef0100000000 | idx;
            *(u64 *)(buffer + 0x400) = 0x5566778899aabbcc;
            u8 code[16];
            unsigned reg = (base * 3 + index) % 16;
            context("base %u index %u scale %u reg %u cpl %u", base, index, scale, reg, cpl);
            unsigned n = encode(code, 0x8b, reg, base, index, scale, 0x55, 1, true);
            run_bytes(&r, code, n);
            EQ((&T.r.rax)[reg], 0x5566778899aabbcc);
            n = encode(code, 0x8d, reg, base, index, scale, 0x55, 1, true);
            run_bytes(&r, code, n);
            EQ((&T.r.rax)[reg], target); /* LEA with 67h: zero-extended */
        }
    }
}

TEST(addressing, rip_relative_and_absolute)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        done(&r,
             SNIP("mov 1f(%%rip), %%rax\n\tlea 1f(%%rip), %%rcx\n\taddl $5, 1f(%%rip)\n\t"
                  "mov 1f(%%rip), %%r10d\n\tmovb $0x7e, 1f+7(%%rip)\n\tcmpb $0x7e, 1f+7(%%rip)\n\t"
                  "setz %%dl\n\tmovq $-1, 1f+8(%%rip)\n\timul $3, 1f(%%rip), %%r11d\n\t"
                  "lea 1f(%%eip), %%rsi\n\tmov 1f(%%eip), %%edi\n\tmovq $0x11223344, 1f(%%rip)\n\t"
                  "jmp 2f\n1: .quad 0x11223344, 0\n2:"));
        EQ(T.r.rax, 0x11223344);
        EQ(T.r.r10, 0x11223349);
        EQ(T.r.rdx & 0xff, 1);
        EQ(T.r.r11, (u32)(0x11223349 * 3));
        EQ(T.r.rsi, T.r.rcx); /* below 4 GiB */
        EQ(T.r.rdi, 0x11223349);
        /* absolute 32-bit address (no base), and with an index only */
        code_page = map_new(UVA2, PG_URW);
        u32 addr = (u32)at_cpl(cpl, buffer);
        *(u64 *)buffer = 0x42, *(u64 *)(buffer + 80) = 0x43;
        u8 code[16] = {0x48, 0x8b, 0x04, 0x25}; /* mov addr, %rax */
        memcpy(code + 4, &addr, 4);
        run_bytes(&r, code, 8);
        EQ(T.r.rax, 0x42);
        u8 idx[16] = {0x4e, 0x8b, 0x1c, 0xd5}; /* mov addr(,%r10,8), %r11 */
        memcpy(idx + 4, &addr, 4);
        r.r10 = 10;
        run_bytes(&r, idx, 8);
        EQ(T.r.r11, 0x43);
        u8 moffs[16] = {0x48, 0xa1}; /* movabs addr, %rax */
        u64 wide = at_cpl(cpl, buffer) + 80;
        memcpy(moffs + 2, &wide, 8);
        run_bytes(&r, moffs, 10);
        EQ(T.r.rax, 0x43);
        u8 moffs32[16] = {0x67, 0xa0}; /* 67h: a 32-bit offset */
        memcpy(moffs32 + 2, &addr, 4);
        run_bytes(&r, moffs32, 6);
        EQ(T.r.rax & 0xff, 0x42);
    }
}

TEST(addressing, fs_gs_forms)
{
    code_page = map_new(UVA2, PG_URW);
    BOTH_CPLS
    {
        u64 base = at_cpl(cpl, buffer) + 0x1000;
        wrmsr(MSR_FS_BASE, base);
        wrmsr(MSR_GS_BASE, base + 0x100);
        for (unsigned i = 0; i < 64; i++)
            *(u64 *)(buffer + 0x1000 + i * 8) = 0x100 + i;
        struct regs r = regs_for(cpl);
        r.r10 = 8, r.r11 = 3, r.rbp = (u64)-16, r.r12 = 0x18, r.rbx = 0;
        done(
            &r,
            SNIP(
                "mov %%fs:0x28, %%rax\n\tmov %%gs:(%%r10,%%r11,8), %%rcx\n\t"
                "mov %%gs:(%%rbp), %%rdx\n\tmov %%fs:8(%%r12), %%rsi\n\tadd %%fs:(%%r10), %%rdi\n\t"
                "addq $5, %%gs:(%%r10,%%r11,8)\n\txchg %%r10, %%fs:16(%%rbx)\n\t"
                "movups %%fs:(%%r12), %%xmm0\n\tmovq %%xmm0, %%r13\n\tlock incq %%gs:0\n\t"
                "push %%gs:0\n\tpop %%r14\n\tpop %%fs:0x30(%%rbx)\n\tpush %%fs:0x30\n\t"
                "cmpq $0x103, %%fs:0x18\n\tsetz %%r15b\n\tmovabs %%fs:0x28, %%al"));
        EQ(T.r.rcx, 0x124);
        EQ(T.r.rdx, 0x11e);
        EQ(T.r.rsi, 0x104);
        EQ(T.r.rdi, r.rdi + 0x101);
        EQ(*(u64 *)(buffer + 0x1000 + 0x120), 0x129);
        EQ(T.r.r10, 0x102);
        EQ(T.r.r13, 0x103);
        EQ(T.r.r14, 0x121);
        EQ(T.r.r15 & 0xff, 1);
        EQ(T.r.rax & 0xff, 0x05);
        wrmsr(MSR_FS_BASE, 0);
        wrmsr(MSR_GS_BASE, 0);
    }
}

TEST(addressing, high_byte_registers)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        r.rax = 0x1122334455667788, r.rcx = 0x8877665544332211, r.rdx = 0xaabbccddeeff0011;
        buffer[0] = 0x99;
        buffer[1] = 0x98;
        done(&r,
             SNIP("mov %%ah, %%cl\n\tmov (%%rbx), %%ch\n\tmov %%dh, 1(%%rbx)\n\tadd %%ah, %%dh\n\t"
                  "xchg %%al, %%ah\n\tmovzbl %%dh, %%esi\n\tmovsbl %%ch, %%edi\n\tcmp %%bh, "
                  "(%%rbx)\n\t"
                  "incb %%dh\n\tshlb $1, %%ah\n\tsetc %%dl"));
        EQ(T.r.rcx, 0x8877665544339977);
        EQ(buffer[1], 0x00);
        EQ(T.r.rsi, 0x77);
        EQ(T.r.rdi, 0xffffff99);
        EQ(T.r.rax, 0x1122334455661077); /* ah: 88 << 1 = 110 */
        EQ(T.r.rdx, 0xaabbccddeeff7801);
        /* with r10 and r11 around: no REX may creep in */
        r.r10 = r.rbx, r.r11 = 1;
        done(&r, SNIP("mov %%ah, (%%rbx)\n\tmov %%r10b, %%al\n\tmov (%%r10,%%r11), %%cl\n\tmov "
                      "%%ch, %%ah\n\t"
                      "movb $0x44, %%bh\n\tmov %%bh, %%dl"));
        EQ(buffer[0], 0x77);
        EQ(T.r.rax & 0xffff, (r.rcx & 0xff00) | (r.r10 & 0xff));
        EQ(T.r.rdx & 0xff, 0x44);
        EQ(T.r.rbx, (r.rbx & ~0xff00ul) | 0x4400);
    }
}

TEST(addressing, r10_r11_rsp_as_data)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        u64 *m = (u64 *)buffer;
        m[0] = 100, m[1] = 200, m[2] = 300, m[3] = 400;
        r.r10 = 7, r.r11 = r.rbx, r.rax = 100;
        done(&r, SNIP("xchg %%r10, (%%r11)\n\txadd %%r10, 8(%%r11)\n\tlock xadd %%r11, 16(%%rbx)"));
        EQ(m[0], 7);
        EQ(m[1], 300);
        EQ(T.r.r10, 200);
        EQ(T.r.r11, 300);
        EQ(m[2], 300 + r.r11);
        m[0] = 100;
        done(&r, SNIP("cmpxchg %%r10, (%%r11)\n\tsetz %%cl\n\tmov $1, %%eax\n\tcmpxchg %%r11, "
                      "8(%%rbx)\n\t"
                      "setz %%dl\n\tmov %%rax, %%r12"));
        EQ(m[0], 7);
        EQ(T.r.rcx & 0xff, 1);
        EQ(T.r.rdx & 0xff, 0);
        EQ(T.r.r12, 300);
        /* xchg and others with rsp as data */
        r.rax = (u64)run_stack; /* some value */
        done(
            &r,
            SNIP(
                "mov %%rsp, %%r12\n\txchg %%rsp, %%r11\n\tmov %%rsp, %%r13\n\txchg %%rsp, %%r11\n\t"
                "mov %%rsp, 24(%%rbx)\n\tadd $64, %%rsp\n\tsub 0f(%%rip), %%rsp\n\tlea 8(%%rsp), "
                "%%r14\n\t"
                "mov %%r12, %%rsp\n\tjmp 1f\n0: .quad 64\n1: cmp %%rsp, 24(%%rbx)\n\tsetz %%al\n\t"
                "test %%rsp, %%rsp\n\tpushq %%rsp\n\tpopq %%r15\n\tand $-16, %%rsp\n\t"
                "mov %%r12, %%rsp\n\txchg %%rsp, 24(%%rbx)\n\tmov %%esp, %%ecx\n\timul $1, %%rsp, "
                "%%rdx"));
        EQ(T.r.r12, r.rsp);
        EQ(T.r.r13, r.r11);
        EQ(T.r.r14, r.rsp + 8);
        EQ(T.r.r15, r.rsp);
        EQ(T.r.rax & 0xff, 1);
        EQ(T.r.rsp, r.rsp);
        EQ(T.r.rcx, (u32)r.rsp);
        EQ(T.r.rdx, r.rsp);
        /* 8, 16 and 32-bit parts */
        r.r10 = ~0ul, r.r11 = ~0ul;
        done(
            &r,
            SNIP(
                "mov $1, %%r10b\n\tmov $2, %%r11w\n\tmovzbl %%r10b, %%ecx\n\tadd %%r11w, %%r10w\n\t"
                "mov %%r10d, %%r11d\n\tbswap %%r10\n\tcmovz %%r10d, %%r12d"));
        EQ(T.r.rcx, 1);
        EQ(T.r.r11, 0xffffff03 + 0ul);
        EQ(T.r.r12, (u32)r.r12); /* CMOV zero-extends even when it does not move */
        if (feat.cx16) {
            __attribute__((aligned(16))) u64 pair[2] = {11, 22};
            memcpy(buffer + 256, pair, 16);
            r.r11 = at_cpl(cpl, buffer) + 256;
            r.rax = 11, r.rdx = 22, r.rbx = 33, r.rcx = 44;
            done(&r,
                 SNIP("lock cmpxchg16b (%%r11)\n\tsetz %%sil\n\tcmpxchg16b (%%r11)\n\tsetz %%dil"));
            EQ(T.r.rsi & 0xff, 1);
            EQ(T.r.rdi & 0xff, 0);
            EQ(T.r.rax, 33);
            EQ(T.r.rdx, 44);
        }
    }
}

TEST(addressing, indirect_branches)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        r.r14 = r.rsp;
        done(&r, SNIP("xor %%eax, %%eax\n\tlea 1f(%%rip), %%r10\n\tjmp *%%r10\n\tud2\n"
                      "1: add $1, %%eax\n\tlea 2f(%%rip), %%r11\n\tjmp *%%r11\n\tud2\n"
                      "2: add $2, %%eax\n\tlea 3f(%%rip), %%rcx\n\tmov %%rcx, (%%rbx)\n\tjmp "
                      "*(%%rbx)\n\tud2\n"
                      "3: add $4, %%eax\n\tlea 7f(%%rip), %%r11\n\tcall *%%r11\n\tadd $8, %%eax\n\t"
                      "mov %%r11, 8(%%rbx)\n\tmov %%rbx, %%r10\n\tmov $1, %%r11d\n\tcall "
                      "*(%%r10,%%r11,8)\n\t"
                      "push 8(%%rbx)\n\tcall *(%%rsp)\n\tcall *(%%rsp)\n\tadd $8, %%rsp\n\t"
                      "mov 8(%%rbx), %%r10\n\tcall *%%r10\n\tlea 8f(%%rip), %%r11\n\tpush "
                      "$1\n\tpush $2\n\tcall *%%r11\n\t"
                      "push 8(%%rbx)\n\tmov %%rsp, %%r11\n\tcall *(%%r11)\n\tpop %%r11\n\t"
                      "jmp 9f\n7: add $0x100, %%eax\n\tret\n8: add $0x1000, %%eax\n\tret $16\n9:"));
        EQ(T.r.rax, 1 + 2 + 4 + 8 + 0x100 * 6 + 0x1000);
        EQ(T.r.rsp, r.rsp);
    }
}

TEST(addressing, loop_and_jrcxz)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rcx = 10, r.rax = 0;
        done(&r, SNIP("1: inc %%eax\n\tloop 1b\n\tmov $7, %%ecx\n2: inc %%eax\n\tcmp $14, "
                      "%%eax\n\tloopne 2b\n\t"
                      "mov %%rcx, %%rdx\n\tmov $5, %%ecx\n3: inc %%eax\n\tcmp %%eax, "
                      "%%eax\n\tloope 3b\n\t"
                      "xor %%esi, %%esi\n\tjrcxz 4f\n\tmov $1, %%esi\n4: mov $1, %%ecx\n\tshl $32, "
                      "%%rcx\n\t"
                      "jrcxz 5f\n\tadd $2, %%esi\n5: jecxz 6f\n\tadd $4, %%esi\n6: stc\n\tloop "
                      "7f\n7: setc %%dil\n\t"
                      "mov $3, %%r10\n\taddr32 loop 8f\n8:"));
        EQ(T.r.rax, 10 + 4 + 5);
        EQ(T.r.rdx, 3);
        EQ(T.r.rsi, 2);
        EQ(T.r.rdi & 0xff, 1);
    }
}

TEST(addressing, bit_strings)
{
    /* BT family with a register offset reaches beyond the operand, in both directions. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer) + 4096;
        memset(buffer, 0, 8192);
        static const int64_t offsets[] = {0, 63, 64, -1, -64, -65, 1000, -1000, 32767, -32768};
        for (unsigned i = 0; i < 10; i++) {
            int64_t o = offsets[i];
            context("cpl %u, offset %d", cpl, (int)o);
            r.rcx = (u64)o, r.r10 = r.rbx, r.r11 = (u64)o;
            u8 *byte = buffer + 4096 + (o >> 3);
            done(&r, SNIP("bts %%rcx, (%%rbx)\n\tsetc %%al\n\tbt %%r11, (%%r10)\n\tsetc %%dl"));
            EQ(T.r.rax & 0xff, 0);
            EQ(T.r.rdx & 0xff, 1);
            EQ(*byte, 1u << (o & 7));
            done(&r,
                 SNIP("lock btc %%ecx, (%%rbx)\n\tsetc %%al\n\tbtrl %%r11d, (%%rbx)\n\tsetc %%dl"));
            EQ(T.r.rax & 0xff, 1);
            EQ(T.r.rdx & 0xff, 0);
            EQ(*byte, 0);
            if (o >= -32768 && o <= 32767) {
                done(&r, SNIP("btsw %%r11w, (%%rbx)\n\tbtrw %%cx, (%%r10)\n\tsetc %%al"));
                EQ(T.r.rax & 0xff, 1);
                EQ(*byte, 0);
            }
        }
        /* the immediate form stays within the operand */
        done(&r, SNIP("btsl $37, (%%rbx)"));
        EQ(*(u32 *)(buffer + 4096), 1u << 5);
        *(u32 *)(buffer + 4096) = 0;
        r.rcx = 1ul << 40; /* far away: faults there */
        fault(&r, SNIP("bts %%rcx, (%%rbx)"), PF,
              on_tcg ? (cpl ? PF_U : 0) : (cpl ? PF_U : 0) | PF_W);
        EQ(T.cr2, r.rbx + (1ul << 37));
    }
}

TEST(addressing, xlat_and_maskmov)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        for (unsigned i = 0; i < 256; i++)
            buffer[i] = (u8)(255 - i);
        r.rbx = at_cpl(cpl, buffer);
        r.rax = 0xffffffffffffff10;
        done(&r, SNIP("xlat"));
        EQ(T.r.rax, 0xffffffffffffffef);
        wrmsr(MSR_FS_BASE, 16);
        done(&r, SNIP("xlatb %%fs:(%%rbx)"));
        EQ(T.r.rax & 0xff, 0xdf);
        wrmsr(MSR_FS_BASE, 0);
        r.rbx |= 0xabcd00000000;
        done(&r, SNIP(".byte 0x67, 0xd7"));
        EQ(T.r.rax & 0xff, 0xef);
        r.rbx = UVA;
        fault(&r, SNIP("xlat"), PF, cpl ? PF_U : 0);
        EQ(T.cr2, UVA + 0x10);
        r.rbx = at_cpl(cpl, buffer);
        r.rdi = r.rbx + 0x1ff8;
        memset(buffer + 0x1ff0, 0, 64);
        done(&r,
             SNIP("pcmpeqd %%xmm1, %%xmm1\n\tmovq %%xmm1, %%xmm2\n\tmaskmovdqu %%xmm2, %%xmm1\n\t"
                  "pslldq $9, %%xmm1\n\tadd $24, %%rdi\n\tmaskmovdqu %%xmm1, %%xmm1"));
        EQ(*(u64 *)(buffer + 0x1ff8), ~0ul);
        EQ(*(u64 *)(buffer + 0x2000), 0);
        EQ(*(u64 *)(buffer + 0x2018), 0xffffffffffffff00);
        EQ(*(u64 *)(buffer + 0x2010), 0);
    }
}
