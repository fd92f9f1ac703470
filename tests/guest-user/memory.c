/* Memory management: mappings come and go, rights change, pages are shared, copied and aliased. */
#include <fcntl.h>
#include <setjmp.h>

#include "suite.h"

static void read_byte(void *p)
{
    *(volatile char *)p;
}
static void write_byte(void *p)
{
    *(volatile char *)p = 1;
}

/* Random operations on a region, against a model of what each page must hold. */
TEST(mem, random_operations)
{
    enum { PAGES = 512, STEPS = 8000 };
    static struct {
        int prot; /* -1: not mapped */
        uint32_t value;
    } model[PAGES];
    char *base = map_pages(PAGES, PROT_READ | PROT_WRITE);
    for (int i = 0; i < PAGES; i++)
        model[i].prot = PROT_READ | PROT_WRITE;
    for (int step = 0; step < STEPS; step++) {
        int first = (int)(rng() % PAGES), count = (int)(rng() % 8) + 1;
        if (first + count > PAGES)
            count = PAGES - first;
        char *p = base + first * 4096L;
        switch (rng() % 6) {
        case 0:
            SYS(munmap(p, (size_t)count * 4096));
            for (int i = 0; i < count; i++)
                model[first + i].prot = -1;
            break;
        case 1: {
            void *q = mmap(p, (size_t)count * 4096, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            EQ(q, p);
            for (int i = 0; i < count; i++)
                model[first + i].prot = PROT_READ | PROT_WRITE, model[first + i].value = 0;
            break;
        }
        case 2: {
            static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
            int prot = prots[rng() % 3];
            bool all = true;
            for (int i = 0; i < count; i++)
                all &= model[first + i].prot != -1;
            if (!all)
                break;
            SYS(mprotect(p, (size_t)count * 4096, prot));
            for (int i = 0; i < count; i++)
                model[first + i].prot = prot;
            break;
        }
        case 3:
            for (int i = 0; i < count; i++)
                if (model[first + i].prot != -1) {
                    SYS(madvise(p + i * 4096L, 4096, MADV_DONTNEED));
                    model[first + i].value = 0;
                }
            break;
        default:
            for (int i = 0; i < count; i++) {
                volatile uint32_t *w = (uint32_t *)(p + i * 4096L + 40);
                int prot = model[first + i].prot;
                if (prot == (PROT_READ | PROT_WRITE)) {
                    EQ(*w, model[first + i].value);
                    *w = model[first + i].value = (uint32_t)rng();
                } else if (prot == PROT_READ) {
                    EQ(*w, model[first + i].value);
                    EQ(catch_signal(write_byte, (void *)w), SIGSEGV);
                    EQ(caught.info.si_addr, w);
                } else {
                    EQ(catch_signal(read_byte, (void *)w), SIGSEGV);
                    EQ(caught.info.si_code, prot == -1 ? SEGV_MAPERR : SEGV_ACCERR);
                }
            }
        }
    }
}

TEST(mem, copy_on_write)
{
    enum { PAGES = 256 };
    uint32_t *p = map_pages(PAGES, PROT_READ | PROT_WRITE);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < PAGES; i++)
            p[i * 1024] = (uint32_t)(i + round * 1000);
        pid_t pid = SYS(fork());
        if (!pid) {
            for (int i = 0; i < PAGES; i++)
                EQ(p[i * 1024], i + round * 1000);
            for (int i = 0; i < PAGES; i += 2)
                p[i * 1024] = 0xc0ffee;
            for (int i = 0; i < PAGES; i++)
                EQ(p[i * 1024], i % 2 ? (uint32_t)(i + round * 1000) : 0xc0ffee);
            _exit(0);
        }
        for (int i = 1; i < PAGES; i += 2)
            p[i * 1024] = 0xbeef;
        EQ(wait_for(pid), 0);
        for (int i = 0; i < PAGES; i++)
            EQ(p[i * 1024], i % 2 ? 0xbeef : (uint32_t)(i + round * 1000));
    }
}

TEST(mem, shared_between_processes)
{
    volatile uint64_t *p =
        mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK((void *)p != MAP_FAILED);
    pid_t pids[4];
    for (int k = 0; k < 4; k++) {
        pids[k] = SYS(fork());
        if (!pids[k]) {
            for (int i = 0; i < 20000; i++)
                __atomic_fetch_add(&p[i % 16 * 512], 1, __ATOMIC_SEQ_CST);
            _exit(0);
        }
    }
    for (int k = 0; k < 4; k++)
        EQ(wait_for(pids[k]), 0);
    for (int i = 0; i < 16; i++)
        EQ(p[i * 512], 4 * 20000 / 16);
}

TEST(mem, aliases)
{
    int fd = SYS(memfd_create("suite", 0));
    SYS(ftruncate(fd, 64 * 4096));
    uint32_t *a = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint32_t *b = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint32_t *c = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(a != MAP_FAILED && b != MAP_FAILED && c != MAP_FAILED);
    for (int i = 0; i < 20000; i++) {
        unsigned k = (unsigned)(rng() % (64 * 1024));
        uint32_t v = (uint32_t)rng();
        (i & 1 ? a : b)[k] = v;
        EQ((i & 1 ? b : a)[k], v);
    }
    /* A private mapping keeps its copy from the first write on. */
    c[5] = 77;
    a[5] = 1;
    EQ(c[5], 77);
    a[1024 * 3] = 42;
    EQ(c[1024 * 3], 42);
    /* write() and read() see the same pages. */
    uint32_t v = 0xabcdef01;
    EQ(SYS(pwrite(fd, &v, 4, 40 * 4096)), 4);
    EQ(a[40 * 1024], v);
    b[41 * 1024 + 3] = 99;
    EQ(SYS(pread(fd, &v, 4, 41 * 4096 + 12)), 4);
    EQ(v, 99);
}

TEST(mem, remap)
{
    char *p = map_pages(16, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 16; i++)
        p[i * 4096] = (char)(i + 1);
    char *q = mremap(p, 16 * 4096, 64 * 4096, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED);
    for (int i = 0; i < 16; i++)
        EQ(q[i * 4096], i + 1);
    EQ(q[17 * 4096], 0);
    if (q != p)
        EQ(catch_signal(read_byte, p), SIGSEGV);
    char *target = map_pages(64, PROT_NONE);
    for (int round = 0; round < 200; round++) {
        char *r = mremap(q, 64 * 4096, 64 * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, target);
        EQ(r, target);
        for (int i = 0; i < 16; i++)
            EQ(r[i * 4096], i + 1);
        EQ(catch_signal(read_byte, q + 4096), SIGSEGV);
        target = q;
        q = r;
    }
}

TEST(mem, fresh_pages_are_zero)
{
    /* The same address again and again: a stale translation would show old contents. */
    char *at = map_pages(64, PROT_READ | PROT_WRITE);
    for (int round = 0; round < 400; round++) {
        for (int i = 0; i < 64; i++) {
            EQ(*(uint64_t *)(at + i * 4096 + 8), 0);
            *(uint64_t *)(at + i * 4096 + 8) = ~0ul;
        }
        SYS(munmap(at, 64 * 4096));
        void *p = mmap(at, 64 * 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        EQ(p, at);
    }
}

TEST(mem, protection_flips)
{
    char *p = map_pages(4, PROT_READ | PROT_WRITE);
    for (int round = 0; round < 2000; round++) {
        SYS(mprotect(p, 4 * 4096, PROT_READ));
        EQ(p[100], (char)round);
        EQ(catch_signal(write_byte, p + 100), SIGSEGV);
        SYS(mprotect(p, 4 * 4096, PROT_READ | PROT_WRITE));
        p[100] = (char)(round + 1);
    }
}

TEST(mem, huge_pages)
{
    enum { SIZE = 16 << 20 };
    char *p = map_pages(SIZE / 4096 + 512, PROT_READ | PROT_WRITE);
    char *a = (char *)(((uint64_t)p + 0x1fffff) & ~0x1ffffful);
    madvise(a, SIZE - 0x200000, MADV_HUGEPAGE);
    for (long i = 0; i < SIZE - 0x200000; i += 4096)
        *(uint64_t *)(a + i) = (uint64_t)i * 3;
    for (long i = 0; i < SIZE - 0x200000; i += 4096)
        EQ(*(uint64_t *)(a + i), (uint64_t)i * 3);
    /* split: change rights and unmap in the middle */
    SYS(mprotect(a + 0x201000, 4096, PROT_READ));
    EQ(catch_signal(write_byte, a + 0x201000), SIGSEGV);
    SYS(munmap(a + 0x403000, 8192));
    EQ(catch_signal(read_byte, a + 0x403000), SIGSEGV);
    EQ(catch_signal(read_byte, a + 0x405000), 0);
    SYS(madvise(a + 0x600000, 0x200000, MADV_DONTNEED));
    for (long i = 0; i < SIZE - 0x200000; i += 4096)
        if (i != 0x403000 && i != 0x404000)
            EQ(*(uint64_t *)(a + i), i >= 0x600000 && i < 0x800000 ? 0 : (uint64_t)i * 3);
}

TEST(mem, scattered_mappings)
{
    /* Alternating rights keep the kernel from merging: many mappings, each one page. */
    enum { COUNT = 12000 };
    char *p =
        mmap(NULL, COUNT * 8192ul, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    for (long i = 0; i < COUNT; i++) {
        SYS(mprotect(p + i * 8192, 4096, PROT_READ | PROT_WRITE));
        *(uint64_t *)(p + i * 8192 + 16) = (uint64_t)i;
    }
    for (long k = 0; k < 3 * COUNT; k++) {
        long i = (long)(rng() % COUNT);
        EQ(*(uint64_t *)(p + i * 8192 + 16), (uint64_t)i);
    }
    for (long i = 0; i < COUNT; i += 101)
        EQ(catch_signal(read_byte, p + i * 8192 + 4096), SIGSEGV);
    SYS(munmap(p, COUNT * 8192ul));
}

TEST(mem, accesses_across_pages)
{
    uint8_t *p = map_pages(3, PROT_READ | PROT_WRITE);
    uint8_t model[3 * 4096] = {0};
    for (int round = 0; round < 3000; round++) {
        unsigned off = 4096 - 64 + (unsigned)(rng() % 128);
        uint64_t v = rng();
        switch (rng() % 7) {
        case 0:
            asm volatile("movw %w1, (%0)" ::"r"(p + off), "r"(v) : "memory");
            memcpy(model + off, &v, 2);
            break;
        case 1:
            asm volatile("movl %k1, (%0)" ::"r"(p + off), "r"(v) : "memory");
            memcpy(model + off, &v, 4);
            break;
        case 2:
            asm volatile("mov %1, (%0)" ::"r"(p + off), "r"(v) : "memory");
            memcpy(model + off, &v, 8);
            break;
        case 3: {
            uint64_t m;
            asm volatile("lock addq %1, (%0)" ::"r"(p + off), "r"(v) : "memory", "cc");
            memcpy(&m, model + off, 8);
            m += v;
            memcpy(model + off, &m, 8);
            break;
        }
        case 4:
            asm volatile(
                "movq %1, %%xmm0\n\tpunpcklqdq %%xmm0, %%xmm0\n\tmovups %%xmm0, (%0)" ::"r"(p +
                                                                                            off),
                "r"(v)
                : "memory", "xmm0");
            memcpy(model + off, &v, 8);
            memcpy(model + off + 8, &v, 8);
            break;
        case 5: {
            uint32_t m, old;
            memcpy(&old, model + off, 4);
            asm volatile("xchgl %0, (%1)" : "=r"(m) : "r"(p + off), "0"((uint32_t)v) : "memory");
            EQ(m, old);
            memcpy(model + off, &v, 4);
            break;
        }
        default: {
            uint64_t got, want;
            asm volatile("mov (%1), %0" : "=r"(got) : "r"(p + off));
            memcpy(&want, model + off, 8);
            EQ(got, want);
        }
        }
    }
    EQ(memcmp(p, model, sizeof(model)), 0);
}

TEST(mem, heap)
{
    enum { SLOTS = 2000 };
    static struct {
        uint8_t *p;
        size_t size;
        uint8_t tag;
    } slots[SLOTS];
    for (int step = 0; step < 60000; step++) {
        unsigned k = (unsigned)(rng() % SLOTS);
        if (slots[k].p) {
            for (size_t i = 0; i < slots[k].size; i += 97)
                EQ(slots[k].p[i], slots[k].tag);
            free(slots[k].p);
            slots[k].p = NULL;
        } else {
            slots[k].size = rng() % 100 ? rng() % 2000 + 1 : rng() % 300000 + 1;
            slots[k].tag = (uint8_t)rng();
            slots[k].p = malloc(slots[k].size);
            CHECK(slots[k].p);
            memset(slots[k].p, slots[k].tag, slots[k].size);
        }
    }
}

__attribute__((noinline)) static uint64_t deep(uint64_t n)
{
    volatile uint64_t pad[6];
    pad[n % 6] = n;
    return n ? deep(n - 1) + pad[n % 6] : 0;
}

TEST(mem, deep_recursion)
{
    for (int i = 0; i < 5; i++)
        EQ(deep(60000), 60000ul * 60001 / 2);
}

static jmp_buf env;
__attribute__((noinline)) static void jump_out(int n)
{
    volatile char pad[100];
    pad[n % 100] = 1;
    if (!n)
        longjmp(env, 77);
    if (pad[n % 100])
        jump_out(n - 1);
    pad[0] = pad[1];
}

TEST(mem, longjmp)
{
    for (volatile int i = 0; i < 3000; i++) {
        int r = setjmp(env);
        if (!r)
            jump_out(i % 50);
        EQ(r, 77);
    }
}

TEST(mem, file_mapping)
{
    char name[] = "/tmp/suite-XXXXXX";
    int fd = mkstemp(name);
    if (fd < 0)
        SKIP("no writable /tmp");
    unlink(name);
    static char block[65536];
    for (unsigned i = 0; i < sizeof(block); i++)
        block[i] = (char)rng();
    for (int i = 0; i < 16; i++)
        EQ(SYS(write(fd, block, sizeof(block))), sizeof(block));
    char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    for (int i = 0; i < 16; i++)
        EQ(memcmp(p + i * 65536, block, sizeof(block)), 0);
    for (long i = 0; i < 1 << 20; i += 4096)
        p[i] = (char)(i >> 12);
    SYS(msync(p, 1 << 20, MS_SYNC));
    for (long i = 0; i < 1 << 20; i += 4096) {
        char c;
        EQ(SYS(pread(fd, &c, 1, i)), 1);
        EQ(c, (char)(i >> 12));
    }
}

/* System calls that copy to and from bad or half-mapped user memory return EFAULT, and partial
 * counts where they must. */
TEST(mem, efault)
{
    char *p = map_pages(2, PROT_READ | PROT_WRITE);
    SYS(munmap(p + 4096, 4096));
    int fds[2];
    SYS(pipe(fds));
    void *volatile low = (void *)8;
    EQ(write(fds[1], low, 10), -1);
    EQ(errno, EFAULT);
    EQ(write(fds[1], p + 4096, 10), -1);
    EQ(errno, EFAULT);
    EQ(write(fds[1], (void *)0xffff888000000000, 10), -1);
    EQ(errno, EFAULT);
    char c[64];
    EQ(write(fds[1], "0123456789", 10), 10);
    EQ(read(fds[0], p + 4096, 10), -1);
    EQ(errno, EFAULT);
    EQ(read(fds[0], c, 10), 10);
    memset(p, 'x', 4096);
    ssize_t n = write(fds[1], p + 4000, 200);
    CHECK(n == 96 || (n == -1 && errno == EFAULT));
    SYS(mprotect(p, 4096, PROT_READ));
    EQ(write(fds[1], p, 20), 20);
    EQ(read(fds[0], p, 20), -1);
    EQ(errno, EFAULT);
    EQ(syscall(SYS_getcwd, p, 100), -1);
    EQ(errno, EFAULT);
}
