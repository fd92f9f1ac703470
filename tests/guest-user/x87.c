/* The x87 unit: rounding, precision, environment, exceptions, 80-bit and BCD memory formats. */
#include <math.h>

#include "suite.h"

static void set_cw(uint16_t cw)
{
    asm volatile("fldcw %0" ::"m"(cw));
}

TEST(x87, rounding_control)
{
    static const struct {
        uint16_t rc;
        int32_t pos, neg;
    } cases[] = {{0, 2, -2}, {1, 2, -3}, {2, 3, -2}, {3, 2, -2}};
    double pos = 2.5, neg = -2.5;
    for (int i = 0; i < 4; i++) {
        int32_t a, b;
        set_cw((uint16_t)(0x37f | cases[i].rc << 10));
        asm volatile("fldl %2\n\tfistpl %0\n\tfldl %3\n\tfistpl %1"
                     : "=m"(a), "=m"(b)
                     : "m"(pos), "m"(neg));
        EQ(a, cases[i].pos);
        EQ(b, cases[i].neg);
    }
    set_cw(0x37f);
}

TEST(x87, precision_control)
{
    double one = 1, three = 3, r[3];
    static const uint16_t pc[] = {0x07f, 0x27f, 0x37f};
    long double wide;
    for (int i = 0; i < 3; i++) {
        set_cw(pc[i]);
        asm volatile("fldl %1\n\tfdivl %2\n\tfstpt %0" : "=m"(wide) : "m"(one), "m"(three));
        r[i] = (double)(wide * 3 - 1);
        set_cw(0x37f);
        if (i == 0)
            CHECK(wide == (long double)(1.0f / 3.0f));
        if (i == 1)
            CHECK(wide == (long double)(1.0 / 3.0));
        if (i == 2)
            CHECK(wide == 1.0L / 3.0L && wide != (long double)(1.0 / 3.0));
    }
    (void)r;
}

TEST(x87, stack)
{
    TCG_SKIP("no stack faults");
    double v[8], out;
    for (int i = 0; i < 8; i++)
        v[i] = i * 1.5;
    asm volatile("fninit");
    for (int i = 0; i < 8; i++)
        asm volatile("fldl %0" ::"m"(v[i]));
    uint16_t sw;
    asm volatile("fld1\n\tfnstsw %0" : "=m"(sw)); /* overflow */
    EQ(sw & 0x241, 0x241);                        /* IE, SF, C1 */
    asm volatile("fnclex\n\tfstpl %0" : "=m"(out));
    CHECK(isnan(out));
    for (int i = 7; i >= 1; i--) { /* v[0] was overwritten */
        asm volatile("fstpl %0" : "=m"(out));
        CHECK(out == v[i]);
    }
    asm volatile("fstp %%st(0)\n\tfnstsw %%ax" ::: "ax");
    asm volatile("fninit\n\tfldpi\n\tfld1\n\tfxch\n\tfstpl %0\n\tfstp %%st(0)" : "=m"(out));
    CHECK(out == M_PI);
    asm volatile("fninit\n\tfstpl %0\n\tfnstsw %1" : "=m"(out), "=m"(sw)); /* underflow */
    EQ(sw & 0x241, 0x41);
    asm volatile("fninit");
}

TEST(x87, environment)
{
    struct {
        uint32_t cw, sw, tag, fip, fcs, fdp, fds;
    } env, env2;
    struct {
        uint8_t env[28], regs[80];
    } save;
    double v = 1.25, out;
    uint64_t here;
    asm volatile("fninit\n\tlea 1f(%%rip), %1\n1: fldl %2\n\tfnstenv %0"
                 : "=m"(env), "=r"(here)
                 : "m"(v));
    EQ(env.cw & 0xffff, 0x37f);
    EQ(env.tag & 0xffff, 0x3fff);
    if (env.fip && env.fip != (uint32_t)here)
        FAIL("FIP is 0x%x, the instruction is at 0x%lx", env.fip, here);
    if (env.fdp && env.fdp != (uint32_t)(uint64_t)&v)
        FAIL("FDP is 0x%x, the operand at %p", env.fdp, (void *)&v);
    env.cw = 0xffff0c7f;
    asm volatile("fldenv %1\n\tfnstenv %0" : "=m"(env2) : "m"(env));
    EQ(env2.cw & 0xffff, 0xc7f);
    EQ(env2.tag & 0xffff, env.tag & 0xffff);
    asm volatile("fnsave %0" : "=m"(save)); /* leaves the unit initialised */
    uint16_t cw;
    asm volatile("fnstcw %0" : "=m"(cw));
    EQ(cw, 0x37f);
    asm volatile("frstor %1\n\tfstpl %0" : "=m"(out) : "m"(save));
    CHECK(out == 1.25);
    asm volatile("fninit");
}

TEST(x87, fxsave)
{
    static uint8_t area[1024] __attribute__((aligned(64)));
    static double v = 7.5;
    uint64_t here;
    double out;
    asm volatile("fninit\n\tlea 1f(%%rip), %1\n1: fldl %2\n\tfxsave64 %0"
                 : "=m"(area), "=r"(here)
                 : "m"(v));
    uint64_t fip = *(uint64_t *)(area + 8), fdp = *(uint64_t *)(area + 16);
    if (fip && fip != here)
        FAIL("FIP is 0x%lx, the instruction is at 0x%lx", fip, here);
    if (fdp && fdp != (uint64_t)&v)
        FAIL("FDP is 0x%lx, the operand at %p", fdp, (void *)&v);
    EQ(area[4], 0x80); /* abridged tag word: st(7) physical */
    asm volatile("fninit\n\tfxrstor64 %1\n\tfstpl %0\n\tfninit" : "=m"(out) : "m"(area));
    CHECK(out == 7.5);
}

TEST(x87, memory_formats)
{
    long double w = 0.1L, w2;
    uint8_t bcd[10];
    int64_t i = -1234567890123456789, i2;
    int16_t s = -12345, s2;
    float f = 1.1f, f2;
    /* across a page boundary, where every size can straddle */
    uint8_t *p = map_pages(2, PROT_READ | PROT_WRITE);
    for (int off = 4096 - 10; off <= 4096; off++) {
        memcpy(p + off, &w, 10);
        asm volatile("fldt (%1)\n\tfstpt %0" : "=m"(w2) : "r"(p + off));
        CHECK(w == w2);
        asm volatile("fldt %0\n\tfstpt (%1)" ::"m"(w), "r"(p + off) : "memory");
        EQ(memcmp(p + off, &w, 10), 0);
        memcpy(p + off, &i, 8);
        asm volatile("fildll (%1)\n\tfistpll %0" : "=m"(i2) : "r"(p + off));
        EQ(i2, i);
        memcpy(p + off, &s, 2);
        asm volatile("filds (%1)\n\tfistps %0" : "=m"(s2) : "r"(p + off));
        EQ((uint16_t)s2, (uint16_t)s);
        memcpy(p + off, &f, 4);
        asm volatile("flds (%1)\n\tfstps %0" : "=m"(f2) : "r"(p + off));
        CHECK(f == f2);
        int64_t n = 123456789;
        asm volatile("fildll %0\n\tfbstp (%1)" ::"m"(n), "r"(p + off) : "memory");
        memcpy(bcd, p + off, 10);
        EQ(memcmp(bcd, "\x89\x67\x45\x23\x01\0\0\0\0\0", 10), 0);
        asm volatile("fbld (%1)\n\tfistpll %0" : "=m"(i2) : "r"(p + off));
        EQ(i2, 123456789);
    }
}

TEST(x87, compare_and_flags)
{
    double a[] = {1, 2, 2, NAN}, b[] = {2, 1, 2, 1};
    static const uint8_t want[] = {0x01, 0x00, 0x40, 0x45}; /* CF, -, ZF, unordered */
    for (int i = 0; i < 4; i++) {
        uint64_t flags;
        uint16_t sw;
        asm volatile(
            "fldl %2\n\tfldl %1\n\tfucomip %%st(1), %%st\n\tpushf\n\tpop %0\n\tfstp %%st(0)"
            : "=r"(flags)
            : "m"(a[i]), "m"(b[i])
            : "cc");
        EQ(flags & 0x45, want[i]);
        asm volatile("fldl %1\n\tfcompl %2\n\tfnstsw %0" : "=a"(sw) : "m"(a[i]), "m"(b[i]));
        EQ((sw >> 8) & 0x45, want[i]);
    }
    asm volatile("fnclex");
}

TEST(x87, transcendental)
{
    TCG_SKIP("computed in double precision");
    for (int i = 1; i < 200; i++) {
        long double x = i * 0.01L, s, c, l, at;
        asm volatile("fsin" : "=t"(s) : "0"(x));
        asm volatile("fcos" : "=t"(c) : "0"(x));
        CHECK(fabsl(s * s + c * c - 1) < 1e-18L);
        asm volatile("fyl2x" : "=t"(l) : "0"(x), "u"(1.0L) : "st(1)");
        CHECK(fabsl(exp2l(l) - x) < 1e-16L);
        asm volatile("fpatan" : "=t"(at) : "0"(c), "u"(s) : "st(1)");
        CHECK(fabsl(at - x) < 1e-17L);
        CHECK(sqrtl(x) * sqrtl(x) - x < 1e-18L);
    }
}

TEST(x87, mmx_shares_registers)
{
    uint64_t a = 0x0102030405060708, b = 0x1010101010101010, r;
    asm volatile("movq %1, %%mm3\n\tpaddb %2, %%mm3\n\tmovq %%mm3, %0\n\temms"
                 : "=m"(r)
                 : "m"(a), "m"(b));
    EQ(r, 0x1112131415161718);
    uint16_t tag;
    struct {
        uint32_t w[7];
    } env;
    asm volatile("movq %1, %%mm0\n\tfnstenv %0\n\temms" : "=m"(env) : "m"(a));
    tag = (uint16_t)env.w[2];
    EQ(tag & 3, 2); /* all tags valid; st(0) is special (a NaN pattern) */
    asm volatile("fninit");
}

TEST(x87, exception_flags)
{
    static const struct {
        double a, b;
        char op;
        uint16_t flags;
    } cases[] = {{1, 0, '/', 4},
                 {0, 0, '/', 1},
                 {1e308, 10, '*', 0},
                 {1, 3, '/', 0x20},
                 {INFINITY, INFINITY, '-', 1}};
    for (int i = 0; i < 5; i++) {
        uint16_t sw;
        asm volatile("fninit");
        if (cases[i].op == '/')
            asm volatile("fldl %1\n\tfdivl %2\n\tfnstsw %0\n\tfstp %%st(0)"
                         : "=m"(sw)
                         : "m"(cases[i].a), "m"(cases[i].b));
        else if (cases[i].op == '*')
            asm volatile("fldl %1\n\tfmull %2\n\tfnstsw %0\n\tfstp %%st(0)"
                         : "=m"(sw)
                         : "m"(cases[i].a), "m"(cases[i].b));
        else
            asm volatile("fldl %1\n\tfsubl %2\n\tfnstsw %0\n\tfstp %%st(0)"
                         : "=m"(sw)
                         : "m"(cases[i].a), "m"(cases[i].b));
        EQ(sw & 0x3d, cases[i].flags);
    }
    asm volatile("fninit");
}
