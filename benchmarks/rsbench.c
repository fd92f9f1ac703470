/*
 * rsbench: small, self-checking benchmarks in one static program, to be run natively, in Ringshift
 * and in another VMM alike (run.py does that).
 *
 *     rsbench NAME [SCALE]    runs one; SCALE multiplies its work (default 1)
 *     rsbench all [SCALE]     runs all
 *     rsbench list
 *
 * Each prints "NAME ns_per_op check".  The check value depends on the work alone, not on the
 * machine, so that a wrong computation shows as a difference.  Nothing is warmed up: what a
 * translator needs to get going is part of the time, as it is for a user.
 */
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct result {
    uint64_t ops;
    uint64_t check;
};

static uint64_t rng_state;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static void die(const char *what)
{
    fprintf(stderr, "rsbench: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *get_memory(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    memset(p, 1, size); /* page faults have their own benchmark */
    return p;
}

/* Time is taken around the work only, so that set-up does not count. */
static struct timespec started, stopped;
static void start(void)
{
    clock_gettime(CLOCK_MONOTONIC, &started);
}
static void stop(void)
{
    clock_gettime(CLOCK_MONOTONIC, &stopped);
}

/* -- Integer ----------------------------------------------------------------------------------- */

static struct result bench_crc32(uint64_t n)
{
    static uint32_t table[256];
    static uint8_t data[65536];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[i] = c;
    }
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)rng();
    uint32_t crc = ~0u;
    start();
    for (uint64_t r = 0; r < n * 600; r++)
        for (unsigned i = 0; i < sizeof(data); i++)
            crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
    stop();
    return (struct result){n * 600 * (sizeof(data) / 1024), ~crc};
}

static void quicksort(uint32_t *a, int64_t lo, int64_t hi)
{
    while (lo < hi) {
        uint32_t pivot = a[(lo + hi) / 2];
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - lo < hi - i) {
            quicksort(a, lo, j);
            lo = i;
        } else {
            quicksort(a, i, hi);
            hi = j;
        }
    }
}

static struct result bench_sort(uint64_t n)
{
    enum { COUNT = 200000 };
    uint32_t *a = get_memory(COUNT * 4);
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 5; r++) {
        for (unsigned i = 0; i < COUNT; i++)
            a[i] = (uint32_t)rng();
        quicksort(a, 0, COUNT - 1);
        for (unsigned i = 1; i < COUNT; i++)
            if (a[i - 1] > a[i])
                abort();
        check = check * 31 + a[COUNT / 3];
    }
    stop();
    munmap(a, COUNT * 4);
    return (struct result){n * 5 * COUNT, check};
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static struct result bench_qsort(uint64_t n)
{
    enum { COUNT = 100000 };
    uint32_t *a = get_memory(COUNT * 4);
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 5; r++) {
        for (unsigned i = 0; i < COUNT; i++)
            a[i] = (uint32_t)rng();
        qsort(a, COUNT, 4, compare_u32);
        check = check * 31 + a[COUNT / 3];
    }
    stop();
    munmap(a, COUNT * 4);
    return (struct result){n * 5 * COUNT, check};
}

static struct result bench_hash(uint64_t n)
{
    enum { BITS = 17, SLOTS = 1 << BITS };
    struct slot {
        uint64_t key, value;
    } *t = get_memory(SLOTS * sizeof(*t));
    uint64_t check = 0, ops = 0;
    start();
    for (uint64_t r = 0; r < n * 30; r++) {
        memset(t, 0, SLOTS * sizeof(*t));
        for (unsigned i = 0; i < SLOTS; i++, ops++) {
            uint64_t key = rng() % (SLOTS / 2) + 1;
            uint64_t h = key * 0x9e3779b97f4a7c15ul >> (64 - BITS);
            while (t[h].key && t[h].key != key)
                h = (h + 1) & (SLOTS - 1);
            t[h].key = key;
            t[h].value += i;
            check += t[h].value;
        }
    }
    stop();
    munmap(t, SLOTS * sizeof(*t));
    return (struct result){ops, check};
}

static struct result chase(uint64_t steps, size_t bytes)
{
    size_t count = bytes / 64;
    struct node {
        struct node *next;
        uint64_t value, pad[6];
    } *nodes = get_memory(bytes);
    uint32_t *order = get_memory(count * 4);
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = rng() % i; /* Sattolo: one cycle */
        uint32_t x = order[i];
        order[i] = order[j];
        order[j] = x;
    }
    for (size_t i = 0; i < count; i++) {
        nodes[order[i]].next = &nodes[order[(i + 1) % count]];
        nodes[order[i]].value = i;
    }
    struct node *p = nodes;
    uint64_t check = 0;
    start();
    for (uint64_t i = 0; i < steps; i++) {
        check += p->value;
        p = p->next;
    }
    stop();
    munmap(nodes, bytes);
    munmap(order, count * 4);
    return (struct result){steps, check};
}

static struct result bench_chase32k(uint64_t n)
{
    return chase(n * 40000000, 32768);
}
static struct result bench_chase16m(uint64_t n)
{
    return chase(n * 1500000, 16 << 20);
}

/* -- Calls ------------------------------------------------------------------------------------- */

__attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) static uint64_t
fib(unsigned n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static struct result bench_fib(uint64_t n)
{
    uint64_t check = 0;
    start();
    for (uint64_t i = 0; i < n * 3; i++)
        check += fib((unsigned)(31 + (i & 1)));
    stop();
    return (struct result){n * 3 * 3000000, check};
}

struct shape {
    uint64_t (*area)(const struct shape *);
    uint64_t a, b;
};
static uint64_t area_square(const struct shape *s)
{
    return s->a * s->a;
}
static uint64_t area_rect(const struct shape *s)
{
    return s->a * s->b;
}
static uint64_t area_tri(const struct shape *s)
{
    return s->a * s->b / 2;
}
static uint64_t area_line(const struct shape *s)
{
    return s->a & s->b;
}

static struct result bench_virtual(uint64_t n)
{
    static uint64_t (*const kinds[])(const struct shape *) = {area_square, area_rect, area_tri,
                                                              area_line};
    enum { COUNT = 1000 };
    static struct shape shapes[COUNT];
    for (unsigned i = 0; i < COUNT; i++)
        shapes[i] = (struct shape){kinds[rng() % 4], rng() & 0xffff, rng() & 0xffff};
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 20000; r++)
        for (unsigned i = 0; i < COUNT; i++)
            check += shapes[i].area(&shapes[i]);
    stop();
    return (struct result){n * 20000 * COUNT, check};
}

/* -- Floating point, SIMD -----------------------------------------------------------------------
 */

static struct result bench_matmul(uint64_t n)
{
    enum { N = 128 };
    static double a[N][N], b[N][N], c[N][N];
    for (unsigned i = 0; i < N; i++)
        for (unsigned j = 0; j < N; j++) {
            a[i][j] = (double)(rng() & 15);
            b[i][j] = (double)(rng() & 15);
        }
    start();
    for (uint64_t r = 0; r < n * 25; r++)
        for (unsigned i = 0; i < N; i++)
            for (unsigned j = 0; j < N; j++) {
                double s = 0;
                for (unsigned k = 0; k < N; k++)
                    s += a[i][k] * b[k][j];
                c[i][j] = s;
                asm volatile("" ::: "memory");
            }
    stop();
    double sum = 0;
    for (unsigned i = 0; i < N; i++)
        for (unsigned j = 0; j < N; j++)
            sum += c[i][j] * (double)(i + 2 * j);
    return (struct result){n * 25 * N * N * N, (uint64_t)sum};
}

static struct result bench_sin(uint64_t n)
{
    double sum = 0;
    start();
    for (uint64_t i = 0; i < n * 4000000; i++)
        sum += sin((double)i * 0.001);
    stop();
    return (struct result){n * 4000000, (uint64_t)(int64_t)llround(sum * 1e4)};
}

static struct result bench_x87(uint64_t n)
{
    long double x = 0.5L;
    start();
    for (uint64_t i = 0; i < n * 6000000; i++)
        x = x * 1.25L + 1.0L / (x + 2.0L) - x * x * 0.25L;
    stop();
    return (struct result){n * 6000000, (uint64_t)(x * 1e12L)};
}

__attribute__((target("avx2"))) static uint64_t sad_avx2(const uint8_t *a, const uint8_t *b,
                                                         size_t size)
{
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < size; i += 32) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(a + i));
        __m256i y = _mm256_loadu_si256((const __m256i *)(b + i));
        __m256i z = _mm256_max_epu8(x, _mm256_add_epi8(y, _mm256_set1_epi8(3)));
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(z, y));
    }
    uint64_t v[4];
    _mm256_storeu_si256((__m256i *)v, sum);
    return v[0] + v[1] + v[2] + v[3];
}

static struct result bench_avx2(uint64_t n)
{
    static uint8_t a[16384 + 64], b[16384 + 64];
    for (unsigned i = 0; i < sizeof(a); i++) {
        a[i] = (uint8_t)rng();
        b[i] = (uint8_t)rng();
    }
    if (!__builtin_cpu_supports("avx2")) {
        fprintf(stderr, "rsbench: this CPU has no AVX2\n");
        exit(2);
    }
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 160000; r++)
        check += sad_avx2(a + (r & 31), b + (r & 15), 16384);
    stop();
    return (struct result){n * 160000 * 16, check};
}

/* -- Memory -------------------------------------------------------------------------------------
 */

static struct result copy(uint64_t n, size_t size)
{
    uint8_t *a = get_memory(size + 64), *b = get_memory(size + 64);
    for (size_t i = 0; i < size; i++)
        a[i] = (uint8_t)(i * 7);
    start();
    for (uint64_t r = 0; r < n; r++) {
        memcpy(b + (r & 1), a, size);
        asm volatile("" ::: "memory");
    }
    stop();
    uint64_t check = 0;
    for (size_t i = 0; i < size; i += 61)
        check = check * 31 + b[i];
    munmap(a, size + 64);
    munmap(b, size + 64);
    return (struct result){n, check};
}

static struct result bench_memcpy4k(uint64_t n)
{
    return copy(n * 1000000, 4096);
}
static struct result bench_memcpy1m(uint64_t n)
{
    return copy(n * 1000, 1 << 20);
}

static struct result bench_memset(uint64_t n)
{
    uint8_t *a = get_memory(65536);
    start();
    for (uint64_t r = 0; r < n * 50000; r++) {
        memset(a, (int)r, 65536);
        asm volatile("" ::: "memory");
    }
    stop();
    uint64_t check = a[12345];
    munmap(a, 65536);
    return (struct result){n * 50000, check};
}

/* -- Larger code --------------------------------------------------------------------------------
 */

/* A stack machine that computes primes; the dispatch is one indirect jump per instruction. */
static struct result bench_interp(uint64_t n)
{
    enum { PUSH, LOAD, STORE, ADD, MUL, MOD, LT, JZ, JMP, INC, HALT };
    /* for (i = 2; i < 3000; i++) { for (d = 2; d * d < i + 1; d++) if (i % d == 0) goto no;
     * count++; no: } */
    static const int32_t code[] = {
        PUSH, 2, STORE, 0,                                             /*  0: i = 2           */
        LOAD, 0, PUSH,  3000, LT,  JZ,   45,                           /*  4: i < 3000 ?      */
        PUSH, 2, STORE, 1,                                             /* 11: d = 2           */
        LOAD, 1, LOAD,  1,    MUL, LOAD, 0,  PUSH, 1, ADD, LT, JZ, 39, /* 15: d * d < i + 1 ? */
        LOAD, 0, LOAD,  1,    MOD, JZ,   41,                           /* 28: i % d           */
        INC,  1, JMP,   15,                                            /* 35: d++             */
        INC,  2,                                                       /* 39: count++         */
        INC,  0, JMP,   4,                                             /* 41: i++             */
        HALT,                                                          /* 45                  */
    };
    uint64_t ops = 0, check = 0;
    start();
    for (uint64_t r = 0; r < n * 60; r++) {
        int64_t stack[16], vars[4] = {0};
        int64_t *sp = stack;
        const int32_t *pc = code;
        for (;;) {
            ops++;
            switch (*pc++) {
            case PUSH:
                *sp++ = *pc++;
                continue;
            case LOAD:
                *sp++ = vars[*pc++];
                continue;
            case STORE:
                vars[*pc++] = *--sp;
                continue;
            case ADD:
                sp--;
                sp[-1] += sp[0];
                continue;
            case MUL:
                sp--;
                sp[-1] *= sp[0];
                continue;
            case MOD:
                sp--;
                sp[-1] = (int32_t)sp[-1] % (int32_t)sp[0];
                continue;
            case LT:
                sp--;
                sp[-1] = sp[-1] < sp[0];
                continue;
            case JZ:
                pc = *--sp ? pc + 1 : code + *pc;
                continue;
            case JMP:
                pc = code + *pc;
                continue;
            case INC:
                vars[*pc++]++;
                continue;
            default:
                break;
            }
            break;
        }
        check += (uint64_t)vars[2];
    }
    stop();
    return (struct result){ops, check};
}

/* A byte-oriented LZ77 compressor with a hash of the last occurrence, and its decompressor. */
static size_t lz_compress(const uint8_t *in, size_t size, uint8_t *out, uint32_t *heads)
{
    size_t i = 0, o = 0, literal = 0;
    memset(heads, 0, 4 << 14);
    while (i + 4 < size) {
        uint32_t v;
        memcpy(&v, in + i, 4);
        uint32_t h = v * 2654435761u >> 18;
        size_t cand = heads[h];
        heads[h] = (uint32_t)i + 1;
        if (cand && i - (cand - 1) < 65536 && !memcmp(in + cand - 1, in + i, 4)) {
            size_t from = cand - 1, len = 4;
            while (i + len < size && len < 255 && in[from + len] == in[i + len])
                len++;
            for (; literal < i; literal += 255) {
                size_t run = i - literal < 255 ? i - literal : 255;
                out[o++] = 0;
                out[o++] = (uint8_t)run;
                for (size_t k = 0; k < run; k++)
                    out[o++] = in[literal + k];
            }
            out[o++] = (uint8_t)len;
            out[o++] = (uint8_t)(i - from);
            out[o++] = (uint8_t)((i - from) >> 8);
            i += len;
            literal = i;
        } else {
            i++;
        }
    }
    for (; literal < size; literal += 255) {
        size_t run = size - literal < 255 ? size - literal : 255;
        out[o++] = 0;
        out[o++] = (uint8_t)run;
        for (size_t k = 0; k < run; k++)
            out[o++] = in[literal + k];
    }
    return o;
}

static size_t lz_expand(const uint8_t *in, size_t size, uint8_t *out)
{
    size_t i = 0, o = 0;
    while (i < size) {
        if (in[i]) {
            size_t len = in[i], back = in[i + 1] | (size_t)in[i + 2] << 8;
            for (size_t k = 0; k < len; k++, o++)
                out[o] = out[o - back];
            i += 3;
        } else {
            size_t run = in[i + 1];
            memcpy(out + o, in + i + 2, run);
            o += run;
            i += 2 + run;
        }
    }
    return o;
}

static struct result bench_lz(uint64_t n)
{
    enum { SIZE = 1 << 20 };
    uint8_t *text = get_memory(SIZE), *packed = get_memory(2 * SIZE), *back = get_memory(SIZE);
    uint32_t *heads = get_memory(4 << 14);
    static const char *const words[] = {"the ",      "translator ", "of ",    "blocks ",
                                        "guest ",    "page ",       "fault ", "and ",
                                        "register ", "x",           "0",      "\n"};
    for (size_t i = 0; i < SIZE;) {
        const char *w = words[rng() % 12];
        for (; *w && i < SIZE; w++)
            text[i++] = (uint8_t)*w;
        if (i < SIZE && (rng() & 3) == 0)
            text[i++] = (uint8_t)('a' + rng() % 26);
    }
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 12; r++) {
        size_t size = lz_compress(text, SIZE, packed, heads);
        if (lz_expand(packed, size, back) != SIZE || memcmp(text, back, SIZE))
            abort();
        check += size;
    }
    stop();
    munmap(text, SIZE);
    munmap(packed, 2 * SIZE);
    munmap(back, SIZE);
    munmap(heads, 4 << 14);
    return (struct result){n * 12 * (SIZE / 1024), check};
}

/* -- The operating system -----------------------------------------------------------------------
 */

static struct result bench_syscall(uint64_t n)
{
    uint64_t bad = 0;
    long parent = syscall(SYS_getppid);
    start();
    for (uint64_t i = 0; i < n * 400000; i++)
        bad += syscall(SYS_getppid) != parent;
    stop();
    return (struct result){n * 400000, bad};
}

static struct result bench_fault(uint64_t n)
{
    enum { PAGES = 2048 };
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 16; r++) {
        uint8_t *p =
            mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            die("mmap");
        madvise(p, PAGES * 4096, MADV_NOHUGEPAGE);
        for (unsigned i = 0; i < PAGES; i++) {
            check += p[i * 4096u + i];
            p[i * 4096u] = (uint8_t)i;
        }
        for (unsigned i = 0; i < PAGES; i++)
            check += p[i * 4096u];
        munmap(p, PAGES * 4096);
    }
    stop();
    return (struct result){n * 16 * PAGES, check};
}

static struct result bench_mmap(uint64_t n)
{
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 30000; r++) {
        uint8_t *p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            die("mmap");
        p[4096] = (uint8_t)r;
        check += p[4096];
        munmap(p, 16384);
    }
    stop();
    return (struct result){n * 30000, check};
}

static struct result bench_fork(uint64_t n)
{
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 300; r++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid)
            _exit((int)(r & 63));
        int status;
        if (waitpid(pid, &status, 0) != pid)
            die("waitpid");
        check += (uint64_t)WEXITSTATUS(status);
    }
    stop();
    return (struct result){n * 300, check};
}

static struct result bench_exec(uint64_t n)
{
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 150; r++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid) {
            execl("/proc/self/exe", "rsbench", "exit", (char *)NULL);
            _exit(127);
        }
        int status;
        if (waitpid(pid, &status, 0) != pid)
            die("waitpid");
        check += (uint64_t)WEXITSTATUS(status);
    }
    stop();
    return (struct result){n * 150, check};
}

/* One CPU for both sides, as the guest has. */
static void pin(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set))
        return;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set)) {
            CPU_ZERO(&set);
            CPU_SET(i, &set);
            sched_setaffinity(0, sizeof(set), &set);
            return;
        }
}

static struct result bench_pipe(uint64_t n)
{
    int there[2], back[2];
    uint64_t rounds = n * 15000, check = 0;
    pin();
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (!pid) {
        uint8_t c;
        close(there[1]);
        while (read(there[0], &c, 1) == 1) {
            c++;
            if (write(back[1], &c, 1) != 1)
                break;
        }
        _exit(0);
    }
    close(there[0]);
    start();
    for (uint64_t i = 0; i < rounds; i++) {
        uint8_t c = (uint8_t)i;
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
            die("pipe");
        check += c;
    }
    stop();
    close(there[1]);
    close(back[0]);
    waitpid(pid, NULL, 0);
    return (struct result){rounds, check};
}

/* Two threads hand a token to each other through a futex. */
static _Atomic uint32_t token;
static uint64_t token_rounds;

static void token_pass(uint32_t me)
{
    for (uint64_t i = 0; i < token_rounds; i++) {
        uint32_t t;
        while ((t = token) % 2 != me)
            syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, t, NULL, NULL, 0);
        token = t + 1;
        syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *token_thread(void *arg)
{
    token_pass(1);
    return NULL;
}

static struct result bench_switch(uint64_t n)
{
    pthread_t thread;
    token = 0;
    token_rounds = n * 20000;
    pin();
    if (pthread_create(&thread, NULL, token_thread, NULL))
        die("pthread_create");
    start();
    token_pass(0);
    pthread_join(thread, NULL);
    stop();
    return (struct result){2 * token_rounds, token};
}

/* Reading a file through the page cache in small pieces: copy_to_user. */
static struct result bench_read(uint64_t n)
{
    static char buf[4096];
    int fd = open("/proc/self/exe", O_RDONLY);
    if (fd < 0)
        die("open");
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < n * 100000; r++) {
        if (pread(fd, buf, sizeof(buf), (off_t)(r % 64) * 4096) != (ssize_t)sizeof(buf))
            die("pread");
        check += 1;
    }
    stop();
    close(fd);
    return (struct result){n * 100000, check};
}

static const struct bench {
    const char *name;
    struct result (*fn)(uint64_t scale);
    const char *unit;
} benches[] = {
    {"crc32", bench_crc32, "KiB"},
    {"sort", bench_sort, "element"},
    {"qsort", bench_qsort, "element"},
    {"hash", bench_hash, "update"},
    {"chase32k", bench_chase32k, "step"},
    {"chase16m", bench_chase16m, "step"},
    {"fib", bench_fib, "call"},
    {"virtual", bench_virtual, "call"},
    {"matmul", bench_matmul, "mul-add"},
    {"sin", bench_sin, "call"},
    {"x87", bench_x87, "round"},
    {"avx2", bench_avx2, "KiB"},
    {"memcpy4k", bench_memcpy4k, "copy"},
    {"memcpy1m", bench_memcpy1m, "copy"},
    {"memset", bench_memset, "64 KiB"},
    {"interp", bench_interp, "bytecode"},
    {"lz", bench_lz, "KiB"},
    {"syscall", bench_syscall, "call"},
    {"read4k", bench_read, "call"},
    {"fault", bench_fault, "page"},
    {"mmap", bench_mmap, "cycle"},
    {"fork", bench_fork, "process"},
    {"exec", bench_exec, "process"},
    {"pipe", bench_pipe, "round trip"},
    {"switch", bench_switch, "hand-over"},
};
enum { BENCH_COUNT = sizeof(benches) / sizeof(benches[0]) };

static void run(const struct bench *b, uint64_t scale)
{
    rng_state = 0x9e3779b97f4a7c15ul;
    struct result r = b->fn(scale);
    double ns = (double)(stopped.tv_sec - started.tv_sec) * 1e9 +
                (double)(stopped.tv_nsec - started.tv_nsec);
    printf("%s %.3f %016llx\n", b->name, ns / (double)r.ops, (unsigned long long)r.check);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "exit"))
        return 7;
    uint64_t scale = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    bool found = false;
    if (argc >= 2 && !strcmp(argv[1], "list")) {
        for (unsigned i = 0; i < BENCH_COUNT; i++)
            printf("%s (per %s)\n", benches[i].name, benches[i].unit);
        return 0;
    }
    for (unsigned i = 0; argc >= 2 && scale && i < BENCH_COUNT; i++)
        if (!strcmp(argv[1], "all") || !strcmp(argv[1], benches[i].name)) {
            found = true;
            run(&benches[i], scale);
        }
    if (!found) {
        fprintf(stderr, "usage: rsbench NAME|all|list [SCALE]\n");
        return 1;
    }
    return 0;
}
