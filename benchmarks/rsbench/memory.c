/*
 * The C library's memory and string functions, one benchmark for each class of size: short enough
 * for registers, unrolled loops, REP MOVS, non-temporal stores.
 */
#include <string.h>
#include <sys/mman.h>

#include "rsbench.h"

static struct result copy(size_t size, uint64_t times)
{
    uint8_t *a = get_memory(size + 64), *b = get_memory(size + 64);
    for (size_t i = 0; i < size; i++)
        a[i] = (uint8_t)(i * 7);
    start();
    for (uint64_t r = 0; r < times; r++)
        memcpy((void *)opaque((uintptr_t)b + (r & 1)), a, opaque(size));
    stop();
    uint64_t check = 0;
    for (size_t i = 0; i < size; i += 61)
        check = check * 31 + b[i];
    munmap(a, size + 64);
    munmap(b, size + 64);
    return (struct result){times, check};
}

static struct result fill(size_t size, uint64_t times)
{
    uint8_t *a = get_memory(size + 64);
    start();
    for (uint64_t r = 0; r < times; r++)
        memset((void *)opaque((uintptr_t)a + (r & 1)), (int)r, opaque(size));
    stop();
    uint64_t check = a[size / 2];
    munmap(a, size + 64);
    return (struct result){times, check};
}

#define COPY(name, size, times)                                                                    \
    static struct result bench_memcpy##name(void)                                                  \
    {                                                                                              \
        return copy(size, times);                                                                  \
    }                                                                                              \
    static struct result bench_memset##name(void)                                                  \
    {                                                                                              \
        return fill(size, times);                                                                  \
    }
COPY(16, 16, 2000000)
COPY(64, 64, 2000000)
COPY(256, 256, 1000000)
COPY(1k, 1024, 500000)
COPY(4k, 4096, 100000)
COPY(64k, 65536, 4000)
COPY(1m, 1 << 20, 100)
COPY(16m, 16 << 20, 3)

/* Finding the end, and a byte, in strings of mixed lengths. */
static struct result bench_strlen(void)
{
    enum { STRINGS = 256, TIMES = 2000 };
    static char text[STRINGS][512];
    for (unsigned i = 0; i < STRINGS; i++) {
        size_t n = (size_t)(rng() % 500);
        memset(text[i], 'a' + (int)(i % 20), n);
        text[i][n] = 0;
        text[i][n / 2] = n ? 'z' : 0;
    }
    uint64_t check = 0;
    start();
    for (unsigned t = 0; t < TIMES; t++)
        for (unsigned i = 0; i < STRINGS; i++) {
            const char *s = (const char *)opaque((uintptr_t)text[i]);
            const char *z = strchr(s, 'z');
            check += strlen(s) + (z ? (uint64_t)(z - s) : 0);
        }
    stop();
    return (struct result){(uint64_t)STRINGS * TIMES, check};
}

const struct bench memory_benches[] = {
    {"memcpy16", bench_memcpy16, "copy"},   {"memcpy64", bench_memcpy64, "copy"},
    {"memcpy256", bench_memcpy256, "copy"}, {"memcpy1k", bench_memcpy1k, "copy"},
    {"memcpy4k", bench_memcpy4k, "copy"},   {"memcpy64k", bench_memcpy64k, "copy"},
    {"memcpy1m", bench_memcpy1m, "copy"},   {"memcpy16m", bench_memcpy16m, "copy"},
    {"memset16", bench_memset16, "fill"},   {"memset64", bench_memset64, "fill"},
    {"memset256", bench_memset256, "fill"}, {"memset1k", bench_memset1k, "fill"},
    {"memset4k", bench_memset4k, "fill"},   {"memset64k", bench_memset64k, "fill"},
    {"memset1m", bench_memset1m, "fill"},   {"memset16m", bench_memset16m, "fill"},
    {"strlen", bench_strlen, "string"},     {0},
};
