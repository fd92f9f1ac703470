/* Time, sensitive instructions at CPL 3, and other corners that user programs reach. */
#include <cpuid.h>
#include <sched.h>
#include <sys/timerfd.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <time.h>

#include "suite.h"

TEST(time, monotonic)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < 300000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &b);
        if (b.tv_sec < a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec < a.tv_nsec))
            FAIL("the clock went back by %ld ns",
                 (a.tv_sec - b.tv_sec) * 1000000000 + a.tv_nsec - b.tv_nsec);
        a = b;
    }
}

static uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

static double tsc_rate(useconds_t us)
{
    double t0 = now();
    uint64_t c0 = rdtsc();
    usleep(us);
    return (double)(rdtsc() - c0) / (now() - t0);
}

TEST(time, tsc)
{
    uint64_t last = rdtsc();
    for (int i = 0; i < 300000; i++) {
        uint64_t t = rdtsc();
        CHECK(t >= last);
        last = t;
    }
    /* A host that takes the CPU away between two clock readings spoils a try, but not all. */
    double rate, rate2;
    for (int i = 0; i < 20; i++) {
        rate = tsc_rate(50000);
        rate2 = tsc_rate(200000);
        if (rate2 / rate >= 0.98 && rate2 / rate <= 1.02)
            return;
    }
    FAIL("TSC rates %.0f and %.0f Hz", rate, rate2);
}

TEST(time, sleeps)
{
    static const long ns[] = {100000, 1000000, 10000000, 50000000};
    for (int i = 0; i < 4; i++) {
        struct timespec ts = {0, ns[i]};
        double t = 1e9;
        for (int k = 0; k < 20 && t > (double)ns[i] * 1e-9 + 0.5; k++) {
            double t0 = now();
            nanosleep(&ts, NULL);
            t = now() - t0;
        }
        if (t < (double)ns[i] * 1e-9 || t > (double)ns[i] * 1e-9 + 0.5)
            FAIL("%ld ns of sleep took %.6f s", ns[i], t);
    }
    int fd = SYS(timerfd_create(CLOCK_MONOTONIC, 0));
    struct itimerspec it = {{0, 5000000}, {0, 5000000}};
    double t0 = now();
    SYS(timerfd_settime(fd, 0, &it, NULL));
    uint64_t total = 0, n;
    while (total < 40) {
        EQ(read(fd, &n, 8), 8);
        total += n;
    }
    double t = now() - t0;
    if (t < 0.19 || t > 10)
        FAIL("40 ticks of 5 ms took %.3f s", t);
}

static volatile int prof_ticks, virtual_ticks;
static void on_prof(int sig, siginfo_t *info, void *context)
{
    if (sig == SIGPROF)
        prof_ticks++;
    else
        virtual_ticks++;
}

TEST(time, profiling_timers)
{
    handle(SIGPROF, on_prof, SA_RESTART);
    handle(SIGVTALRM, on_prof, SA_RESTART);
    struct itimerval it = {{0, 10000}, {0, 10000}};
    SYS(setitimer(ITIMER_PROF, &it, NULL));
    SYS(setitimer(ITIMER_VIRTUAL, &it, NULL));
    double t0 = now();
    volatile uint64_t x = 0;
    while (now() - t0 < 20 && (prof_ticks < 10 || virtual_ticks < 10))
        for (int i = 0; i < 10000; i++)
            x += (uint64_t)i;
    CHECK(prof_ticks >= 10);
    CHECK(virtual_ticks >= 10);
}

static void do_sgdt(void *p)
{
    asm volatile("sgdt (%0)" ::"r"(p) : "memory");
}
static void do_sidt(void *p)
{
    asm volatile("sidt (%0)" ::"r"(p) : "memory");
}
static void do_sldt(void *p)
{
    asm volatile("sldt (%0)" ::"r"(p) : "memory");
}
static void do_str(void *p)
{
    asm volatile("str (%0)" ::"r"(p) : "memory");
}
static void do_smsw(void *p)
{
    asm volatile("smsw (%0)" ::"r"(p) : "memory");
}

TEST(insn, descriptor_table_reads)
{
    /* With UMIP Linux emulates SGDT, SIDT and SMSW (dummy values) and since 5.10 the others too;
     * without UMIP they store.  A host address must never show: kernel half or dummy only. */
    uint8_t buf[16] = {0};
    uint64_t base;
    if (catch_signal(do_sgdt, buf) == 0) {
        memcpy(&base, buf + 2, 8);
        CHECK(base >> 47 == 0x1ffff);
    }
    if (catch_signal(do_sidt, buf) == 0) {
        memcpy(&base, buf + 2, 8);
        CHECK(base >> 47 == 0x1ffff);
    }
    catch_signal(do_sldt, buf);
    catch_signal(do_str, buf);
    memset(buf, 0, sizeof(buf));
    if (catch_signal(do_smsw, buf) == 0)
        CHECK(buf[0] & 1); /* CR0.PE */
}

TEST(insn, flags)
{
    uint64_t f;
    /* IOPL and IF do not change at CPL 3; ID and AC do. */
    asm volatile("pushf\n\tpop %0" : "=r"(f));
    EQ(f & 0x3200, 0x200);
    asm volatile("push %1\n\tpopf\n\tpushf\n\tpop %0\n\tpush $0x202\n\tpopf"
                 : "=r"(f)
                 : "r"(0x3000ul | 0x200000 | 0x4000 | 0xcd5)
                 : "cc", "memory");
    EQ(f & 0x207ed5, 0x204000 | 0x200 | 0xcd5);
    EQ(f & 0x3000, 0);
    /* LAHF, SAHF */
    uint16_t ax;
    asm volatile("mov $0xd5, %%ah\n\tsahf\n\tmov $0, %%ah\n\tlahf\n\tmov %%ax, %0"
                 : "=r"(ax)::"rax", "cc");
    EQ(ax >> 8, 0xd7);
}

TEST(insn, cpuid_consistency)
{
    unsigned a, b, c, d, a2, b2, c2, d2;
    CHECK(__get_cpuid(1, &a, &b, &c, &d));
    bool xsave = c >> 26 & 1, osxsave = c >> 27 & 1, avx = c >> 28 & 1;
    for (int i = 0; i < 100; i++) {
        __cpuid(1, a2, b2, c2, d2);
        EQ(c2, c);
        EQ(d2, d);
        if (i % 10 == 0)
            sched_yield();
    }
    EQ(xsave, osxsave);
    if (osxsave) {
        uint32_t lo, hi;
        asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        EQ(lo & 3, 3);
        if (avx)
            EQ(lo & 7, 7);
        __cpuid_count(0xd, 0, a2, b2, c2, d2);
        EQ(lo & ~a2, 0); /* XCR0 within what is supported */
        CHECK(b2 <= c2 && b2 >= 576);
        /* the size for the enabled components agrees with their own leaves */
        unsigned size = 576;
        for (unsigned i = 2; i < 32; i++)
            if (lo >> i & 1) {
                unsigned s, off, x, y;
                __cpuid_count(0xd, i, s, off, x, y);
                if (off + s > size)
                    size = off + s;
            }
        EQ(b2, size);
    }
    if (__get_cpuid_count(7, 0, &a2, &b2, &c2, &d2) && (b2 >> 16 & 1)) {
        uint32_t lo, hi;
        asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        EQ(lo & 0xe0, 0xe0); /* AVX-512 is offered only with its state enabled */
    }
    CHECK(d >> 26 & 1); /* SSE2: part of the architecture */
    __cpuid(0x80000001, a2, b2, c2, d2);
    CHECK(d2 >> 29 & 1); /* long mode */
}

TEST(insn, int80)
{
    /* The 32-bit system call gate works from 64-bit code (IA32 emulation). */
    long r = -1;
    asm volatile("int $0x80" : "=a"(r) : "0"(20) : "memory", "r8", "r9", "r10", "r11");
    if (r == -38)
        SKIP("no IA32 emulation");
    EQ(r, getpid());
}

TEST(insn, syscall_clobbers)
{
    /* RCX = next RIP, R11 = RFLAGS; everything else is preserved. */
    uint64_t rcx, r11, here, r8, r9, r10, rbx, r12;
    asm volatile("mov $0x1111, %%r8d\n\tmov $0x2222, %%r9d\n\tmov $0x3333, %%r10d\n\t"
                 "mov $0x5555, %%r12d\n\tmov $0x4444, %%ebx\n\tlea 1f(%%rip), %[here]\n\t"
                 "mov $39, %%eax\n\tstc\n\tstd\n\tsyscall\n1:\tcld\n\t"
                 "mov %%rcx, %[rcx]\n\tmov %%r11, %[r11]\n\tmov %%r8, %[r8]\n\t"
                 "mov %%r9, %[r9]\n\tmov %%r10, %[r10]\n\tmov %%rbx, %[rbx]\n\tmov %%r12, %[r12]"
                 : [here] "=&D"(here), [rcx] "=m"(rcx), [r11] "=m"(r11), [r8] "=m"(r8),
                   [r9] "=m"(r9), [r10] "=m"(r10), [rbx] "=m"(rbx), [r12] "=m"(r12)::"rax", "rcx",
                   "r11", "r8", "r9", "r10", "rbx", "r12", "memory", "cc");
    EQ(rcx, here);
    EQ(r11 & 0x601, 0x601);
    EQ(r8, 0x1111);
    EQ(r9, 0x2222);
    EQ(r10, 0x3333);
    EQ(rbx, 0x4444);
    EQ(r12, 0x5555);
}

TEST(insn, segments)
{
    uint16_t cs, ss, ds;
    asm volatile("mov %%cs, %0\n\tmov %%ss, %1\n\tmov %%ds, %2" : "=r"(cs), "=r"(ss), "=r"(ds));
    EQ(cs & 3, 3);
    EQ(ss & 3, 3);
    uint32_t limit, rights;
    bool ok;
    asm volatile("lsl %2, %0" : "=r"(limit), "=@ccz"(ok) : "r"((uint32_t)ss));
    CHECK(ok);
    EQ(limit, 0xffffffff);
    asm volatile("lar %2, %0" : "=r"(rights), "=@ccz"(ok) : "r"((uint32_t)cs));
    CHECK(ok);
    EQ(rights & 0x20fa00, 0x20fa00); /* L, present, DPL 3, code */
    asm volatile("verr %w1" : "=@ccz"(ok) : "r"((uint32_t)cs));
    CHECK(ok);
    asm volatile("verw %w1" : "=@ccz"(ok) : "r"((uint32_t)cs));
    CHECK(!ok);
    asm volatile("verr %w1" : "=@ccz"(ok) : "r"(0x10)); /* kernel code */
    CHECK(!ok);
    asm volatile("mov %0, %%ds\n\tmov %0, %%es\n\tmov %1, %%ds\n\tmov %1, %%es" ::"r"((uint32_t)ss),
                 "r"((uint32_t)ds));
}

TEST(insn, far_returns)
{
    uint16_t cs, ss;
    uint64_t v;
    TCG_SKIP("LRET and IRET read the user's stack as the supervisor (SMAP violation)");
    asm volatile("mov %%cs, %0\n\tmov %%ss, %1" : "=r"(cs), "=r"(ss));
    /* a far return to the same privilege level */
    asm volatile("push %1\n\tlea 1f(%%rip), %0\n\tpush %0\n\tlretq\n\tud2\n1:"
                 : "=&r"(v)
                 : "r"((uint64_t)cs)
                 : "memory");
    /* IRET at the same level */
    asm volatile("mov %%rsp, %%rcx\n\tpush %2\n\tpush %%rcx\n\tpushf\n\tpush %1\n\t"
                 "lea 1f(%%rip), %0\n\tpush %0\n\tiretq\n\tud2\n1:"
                 : "=&r"(v)
                 : "r"((uint64_t)cs), "r"((uint64_t)ss)
                 : "rcx", "memory", "cc");
}

TEST(insn, vsyscall)
{
    /* Emulated by the kernel from a fetch fault, or absent (SIGSEGV). */
    static time_t t;
    t = 0;
    int sig = catch_signal((void (*)(void *))0xffffffffff600400, &t);
    if (sig == SIGSEGV)
        SKIP("no vsyscall page");
    EQ(sig, 0);
    time_t n = time(NULL);
    CHECK(n - t < 3 && t - n < 3);
    struct timeval tv;
    long r;
    asm volatile("mov $0xffffffffff600000, %%r11\n\tcall *%%r11"
                 : "=a"(r)
                 : "D"(&tv), "S"(0)
                 : "rcx", "r11", "memory");
    EQ(r, 0);
    CHECK(n - tv.tv_sec < 3);
}

TEST(insn, string_and_direction)
{
    static uint8_t a[300], b[300];
    for (int i = 0; i < 300; i++)
        a[i] = (uint8_t)rng();
    void *s = a + 299, *d = b + 299;
    uint64_t n = 300;
    asm volatile("std\n\trep movsb\n\tcld" : "+S"(s), "+D"(d), "+c"(n)::"memory");
    EQ(memcmp(a, b, 300), 0);
    EQ((uint8_t *)s + 1, a);
    /* overlapping: a pattern spreads */
    memset(b, 0, 300);
    b[0] = 7;
    s = b, d = b + 1, n = 250;
    asm volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n)::"memory");
    for (int i = 0; i <= 250; i++)
        EQ(b[i], 7);
    /* 32-bit address size truncates and counts ECX */
    n = 0x1234567800000003;
    uint8_t *low =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low != MAP_FAILED) {
        d = (void *)((uint64_t)low | 0xdead00000000);
        asm volatile("addr32 rep stosb" : "+D"(d), "+c"(n) : "a"(9) : "memory");
        EQ(low[2], 9);
        EQ(low[3], 0);
        EQ(n, 0);
        EQ(d, low + 3);
    }
    /* cmps and scas stop in the middle */
    bool equal;
    memcpy(b, a, 300);
    b[123] ^= 1;
    s = a, d = b, n = 300;
    asm volatile("repe cmpsb" : "+S"(s), "+D"(d), "+c"(n), "=@ccz"(equal)::"memory");
    CHECK(!equal);
    EQ((uint8_t *)s - a, 124);
    EQ(n, 300 - 124);
}

TEST(insn, bit_offsets)
{
    static uint64_t bits[64];
    bool c;
    for (int round = 0; round < 3000; round++) {
        int64_t off = (int64_t)(rng() % 2000) - 1000;
        uint64_t *mid = bits + 32;
        int64_t word = off >> 6;
        uint64_t mask = 1ul << (off & 63);
        bool old = mid[word] & mask;
        switch (rng() & 3) {
        case 0:
            asm volatile("btsq %2, (%1)" : "=@ccc"(c) : "r"(mid), "r"(off) : "memory");
            CHECK(mid[word] & mask);
            break;
        case 1:
            asm volatile("lock btrq %2, (%1)" : "=@ccc"(c) : "r"(mid), "r"(off) : "memory");
            CHECK(!(mid[word] & mask));
            break;
        case 2:
            asm volatile("mov %1, %%r10\n\tmov %2, %%r11\n\tbtcl %%r11d, (%%r10)"
                         : "=@ccc"(c)
                         : "r"(mid), "r"(off)
                         : "memory", "r10", "r11");
            CHECK(!!(mid[word] & mask) == !old);
            break;
        default:
            asm volatile("btw %w2, (%1)" : "=@ccc"(c) : "r"(mid), "r"(off) : "memory");
        }
        EQ(c, old);
    }
}
