/* Code that is generated, patched, moved and aliased while it runs. */
#include <pthread.h>

#include "suite.h"

typedef uint64_t (*fn0)(void);
typedef uint64_t (*fn1)(uint64_t);

enum { RWX = PROT_READ | PROT_WRITE | PROT_EXEC };

/* mov $v, %eax; ret */
static size_t emit_const(uint8_t *p, uint32_t v)
{
    p[0] = 0xb8;
    memcpy(p + 1, &v, 4);
    p[5] = 0xc3;
    return 6;
}

/* lea v(%rdi), %rax; ret */
static size_t emit_add(uint8_t *p, int32_t v)
{
    static const uint8_t op[] = {0x48, 0x8d, 0x87};
    memcpy(p, op, 3);
    memcpy(p + 3, &v, 4);
    p[7] = 0xc3;
    return 8;
}

TEST(jit, thousands_of_functions)
{
    enum { COUNT = 20000 };
    uint8_t *code = map_pages(COUNT * 16 / 4096 + 1, RWX);
    uint64_t sum = 0, want = 0;
    for (int i = 0; i < COUNT; i++) {
        emit_add(code + i * 16, i * 3);
        sum += ((fn1)(code + i * 16))((uint64_t)i); /* while its page still grows */
        want += (uint64_t)i * 4;
    }
    EQ(sum, want);
    for (int round = 0; round < 5; round++)
        for (int k = 0; k < COUNT; k++) {
            int i = (int)(rng() % COUNT);
            EQ(((fn1)(code + i * 16))(7), 7 + (uint64_t)i * 3);
        }
}

TEST(jit, patch_and_run)
{
    uint8_t *code = map_pages(1, RWX);
    emit_const(code, 0);
    for (uint32_t i = 0; i < 30000; i++) {
        *(volatile uint32_t *)(code + 1) = i;
        EQ(((fn0)code)(), i);
    }
}

TEST(jit, w_xor_x)
{
    uint8_t *code = map_pages(2, PROT_READ | PROT_WRITE);
    for (uint32_t i = 0; i < 2000; i++) {
        SYS(mprotect(code, 8192, PROT_READ | PROT_WRITE));
        emit_const(code + 4090 + i % 6, i);
        SYS(mprotect(code, 8192, PROT_READ | PROT_EXEC));
        EQ(((fn0)(code + 4090 + i % 6))(), i);
    }
}

TEST(jit, two_mappings)
{
    int fd = SYS(memfd_create("jit", 0));
    SYS(ftruncate(fd, 16 * 4096));
    uint8_t *rw = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *rx = mmap(NULL, 16 * 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    CHECK(rw != MAP_FAILED && rx != MAP_FAILED);
    for (uint32_t i = 0; i < 20000; i++) {
        unsigned off = (i * 56) % (16 * 4096 - 16);
        emit_const(rw + off, i);
        EQ(((fn0)(rx + off))(), i);
        EQ(((fn0)(rx + off))(), i);
    }
    /* by a system call */
    for (uint32_t i = 0; i < 2000; i++) {
        uint8_t buf[8];
        size_t n = emit_const(buf, i * 7);
        EQ(pwrite(fd, buf, n, 100), n);
        EQ(((fn0)(rx + 100))(), i * 7);
    }
}

TEST(jit, modifies_itself_ahead)
{
    /* movl $v, imm-of-next-instruction(%rip); mov $0, %eax; ret: the store is in the same block */
    uint8_t *code = map_pages(1, RWX);
    static const uint8_t text[] = {0x89, 0x3d, 1, 0, 0, 0, /* mov %edi, 1(%rip) */
                                   0xb8, 0,    0, 0, 0,    /* mov $0, %eax */
                                   0xc3};
    memcpy(code, text, sizeof(text));
    for (uint64_t i = 0; i < 20000; i++)
        EQ(((fn1)code)(i * 17), (uint32_t)(i * 17));
}

TEST(jit, counter_in_a_code_page)
{
    /* incl counter(%rip); mov counter(%rip), %eax; ret; counter right behind */
    uint8_t *code = map_pages(1, RWX);
    static const uint8_t text[] = {0xff, 0x05, 7, 0,    0, 0, 0x8b, 0x05, 1,
                                   0,    0,    0, 0xc3, 0, 0, 0,    0};
    memcpy(code + 100, text, sizeof(text));
    for (uint32_t i = 1; i <= 100000; i++)
        EQ(((fn0)(code + 100))(), i);
}

TEST(jit, straddles_pages)
{
    uint8_t *code = map_pages(2, RWX);
    for (uint32_t i = 0; i < 6000; i++) {
        unsigned off = 4096 - 1 - i % 6;
        emit_const(code + off, i);
        EQ(((fn0)(code + off))(), i);
        *(code + off + 1) ^= 0x55;
        EQ(((fn0)(code + off))(), i ^ 0x55);
    }
    /* the second page alone is replaced */
    emit_const(code + 4094, 0x11223344);
    EQ(((fn0)(code + 4094))(), 0x11223344);
    SYS(mprotect(code + 4096, 4096, PROT_READ));
    SYS(munmap(code + 4096, 4096));
    void *p = mmap(code + 4096, 4096, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    EQ(p, code + 4096);
    memcpy(code + 4096, "\x88\x77\x66\xc3", 4);
    EQ(((fn0)(code + 4094))(), 0x66778844);
}

TEST(jit, other_code_at_the_same_address)
{
    uint8_t *at = map_pages(1, RWX);
    for (uint32_t i = 0; i < 1500; i++) {
        emit_const(at + 64, i);
        EQ(((fn0)(at + 64))(), i);
        EQ(((fn0)(at + 64))(), i);
        SYS(munmap(at, 4096));
        void *p = mmap(at, 4096, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        EQ(p, at);
    }
}

TEST(jit, string_instruction_copies_code)
{
    uint8_t *code = map_pages(4, RWX), buf[64];
    for (uint32_t i = 0; i < 5000; i++) {
        size_t n = emit_const(buf, i * 3);
        void *d = code + 4090, *s = buf;
        asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
        EQ(((fn0)(code + 4090))(), i * 3);
    }
    /* filled by rep stosb: NOPs in front of the RET */
    emit_const(code + 4096 + 500, 99);
    for (int i = 0; i < 200; i++) {
        void *d = code + 4096;
        size_t n = 500;
        asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(i & 1 ? 0x90 : 0xcc) : "memory");
        if (i & 1)
            EQ(((fn0)(code + 4096))(), 99);
        else
            EQ(catch_signal((void (*)(void *))(code + 4096), NULL), SIGTRAP);
    }
}

TEST(jit, patched_branches)
{
    /* A chain of functions that jump to each other; the targets change all the time. */
    enum { N = 50 };
    uint8_t *code = map_pages(N, RWX);
    for (int i = 0; i < N; i++) { /* lea 1(%rdi), %rdi; jmp next */
        uint8_t *p = code + i * 4096 + i * 16;
        static const uint8_t add[] = {0x48, 0x8d, 0x7f, 0x01, 0xe9};
        memcpy(p, add, 5);
        if (i == N - 1)
            memcpy(p, "\x48\x8d\x47\x01\xc3", 5);
        else {
            int32_t rel = (int32_t)((code + (i + 1) * 4096 + (i + 1) * 16) - (p + 9));
            memcpy(p + 5, &rel, 4);
        }
    }
    EQ(((fn1)code)(0), N);
    for (int round = 0; round < 3000; round++) {
        int i = (int)(rng() % (N - 1)), to = i + 1 + (int)(rng() % (unsigned)(N - 1 - i));
        uint8_t *p = code + i * 4096 + i * 16;
        int32_t rel = (int32_t)((code + to * 4096 + to * 16) - (p + 9)), old;
        memcpy(&old, p + 5, 4);
        memcpy(p + 5, &rel, 4);
        EQ(((fn1)p)(0), 1 + N - to);
        memcpy(p + 5, &old, 4);
        EQ(((fn1)p)(0), N - i);
    }
}

TEST(jit, child_has_its_own_code)
{
    uint8_t *code = map_pages(1, RWX);
    emit_const(code, 1);
    EQ(((fn0)code)(), 1);
    for (int round = 0; round < 50; round++) {
        pid_t pid = SYS(fork());
        if (!pid) {
            if (((fn0)code)() != 1)
                _exit(1);
            *(volatile uint32_t *)(code + 1) = 2;
            for (int i = 0; i < 100; i++)
                if (((fn0)code)() != 2)
                    _exit(2);
            _exit(0);
        }
        for (int i = 0; i < 100; i++)
            EQ(((fn0)code)(), 1);
        EQ(wait_for(pid), 0);
    }
}

static uint8_t *shared_code;
static volatile bool stop_thread;

static void *runner(void *arg)
{
    uint64_t last = 0;
    while (!stop_thread) {
        uint64_t v = ((fn0)shared_code)();
        if (v < last || v > 30000)
            return (void *)1;
        last = v;
    }
    return NULL;
}

TEST(jit, patched_by_another_thread)
{
    /* An aligned 4-byte immediate changes in one piece (SDM vol. 3, 8.1.3 asks for more, but this
     * much all processors do). */
    shared_code = (uint8_t *)map_pages(1, RWX) + 3; /* immediate at offset 4 */
    emit_const(shared_code, 0);
    pthread_t t;
    EQ(pthread_create(&t, NULL, runner, NULL), 0);
    for (uint32_t i = 1; i <= 30000; i++) {
        __atomic_store_n((uint32_t *)(shared_code + 1), i, __ATOMIC_SEQ_CST);
        if (i % 100 == 0)
            EQ(((fn0)shared_code)(), i);
    }
    stop_thread = true;
    void *r;
    pthread_join(t, &r);
    EQ(r, 0);
}

TEST(jit, fault_in_generated_code)
{
    /* mov (%rdi), %rax; ret, in front of an unmapped page */
    uint8_t *code = map_pages(2, RWX);
    SYS(munmap(code + 4096, 4096));
    memcpy(code + 4092, "\x48\x8b\x07\xc3", 4);
    uint64_t v = 55;
    EQ(((fn1)(code + 4092))((uint64_t)&v), 55);
    EQ(catch_signal((void (*)(void *))(code + 4092), (void *)16), SIGSEGV);
    EQ(caught.gregs[REG_RIP], code + 4092);
    EQ(caught.info.si_addr, 16);
    /* an instruction that runs into the unmapped page */
    code[4095] = 0x48;
    EQ(catch_signal((void (*)(void *))(code + 4095), NULL), SIGSEGV);
    EQ(caught.gregs[REG_RIP], code + 4095);
    EQ(caught.info.si_addr, code + 4096);
}

TEST(jit, trampolines_on_the_stack)
{
    uint8_t buf[2 * 4096];
    uint8_t *page = (uint8_t *)(((uint64_t)buf + 4095) & ~4095ul);
    SYS(mprotect(page, 4096, RWX));
    for (uint32_t i = 0; i < 5000; i++) {
        uint8_t *volatile p = page + i % 4000;
        emit_const(p, i);
        EQ(((fn0)p)(), i);
    }
}
