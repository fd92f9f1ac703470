/*
 * Calls and returns of every sort: recursive, virtual, deep, non-local.
 */
#include <setjmp.h>

#include "rsbench.h"

__attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) static uint64_t
fib(unsigned n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static struct result bench_fib(void)
{
    uint64_t check = 0;
    start();
    for (uint64_t i = 0; i < 2; i++)
        check += fib((unsigned)(31 + (i & 1)));
    stop();
    return (struct result){2 * 3000000, check};
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

static struct result bench_virtual(void)
{
    static uint64_t (*const kinds[])(const struct shape *) = {area_square, area_rect, area_tri,
                                                              area_line};
    enum { COUNT = 1000 };
    static struct shape shapes[COUNT];
    for (unsigned i = 0; i < COUNT; i++)
        shapes[i] = (struct shape){kinds[rng() % 4], rng() & 0xffff, rng() & 0xffff};
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 5000; r++)
        for (unsigned i = 0; i < COUNT; i++)
            check += shapes[i].area(&shapes[i]);
    stop();
    return (struct result){5000ull * COUNT, check};
}

/* A stack that grows to a depth of 20000 frames and shrinks again: no return predictor is that
 * deep. */
__attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) static uint64_t
descend(unsigned depth, uint64_t v)
{
    return depth ? descend(depth - 1, v * 3 + depth) ^ (v >> 3) : v;
}

static struct result bench_recurse(void)
{
    enum { DEPTH = 20000, TIMES = 100 };
    uint64_t check = 0;
    start();
    for (unsigned i = 0; i < TIMES; i++)
        check += descend(DEPTH, i);
    stop();
    return (struct result){(uint64_t)DEPTH * TIMES, check};
}

__attribute__((noinline, noclone)) static uint32_t leaf(uint32_t v)
{
    return v * 5 + 1;
}

/* One direct call and return of a leaf: the cheapest there is. */
static struct result bench_callret(void)
{
    enum { TIMES = 5000000 };
    uint32_t v = 1;
    start();
    for (unsigned i = 0; i < TIMES; i++)
        v = leaf(v);
    stop();
    return (struct result){TIMES, v};
}

static jmp_buf target;
/* The compiler must not see that this never returns: the frames above it would become jumps. */
__attribute__((noipa, noinline)) static void jump(int v)
{
    longjmp(target, v);
}

__attribute__((noinline, noclone)) static int throw_from(unsigned depth, int v)
{
    if (depth)
        return throw_from(depth - 1, v + 1) + 1;
    jump(v + 1);
    return v;
}

static struct result bench_longjmp(void)
{
    enum { TIMES = 300000 };
    volatile uint64_t check = 0;
    start();
    for (volatile unsigned i = 0; i < TIMES; i++) {
        int v = setjmp(target);
        if (!v)
            throw_from(i % 8, (int)(i & 7));
        check += (unsigned)v;
    }
    stop();
    return (struct result){TIMES, check};
}

const struct bench call_benches[] = {
    {"fib", bench_fib, "call"},         {"callret", bench_callret, "call"},
    {"virtual", bench_virtual, "call"}, {"recurse", bench_recurse, "call"},
    {"longjmp", bench_longjmp, "jump"}, {0},
};
