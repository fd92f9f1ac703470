/*
 * What the benchmarks of rsbench share.  A benchmark is a function that does one *round*: it sets
 * up its data, works between start() and stop(), and returns how many operations that were and a
 * check value that depends on the work alone, never on the machine or on the time.  Rounds are
 * repeated until enough time has passed (rsbench.c); every one starts from the same random state
 * and must return the same.
 */
#ifndef RSBENCH_H
#define RSBENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct result {
    uint64_t ops;
    uint64_t check;
};

struct bench {
    const char *name;
    struct result (*fn)(void);
    const char *unit; /* what one operation is */
};

/* Each ends with an entry without a name. */
extern const struct bench integer_benches[], call_benches[], floating_benches[], memory_benches[],
    system_benches[];

/* xorshift64; the same sequence in every round. */
uint64_t rng(void);
/* The time between these two counts.  A round calls each once. */
void start(void);
void stop(void);
/* Says what failed, with errno's text, and ends the program. */
_Noreturn void die(const char *what);
/* Fresh anonymous memory, every page touched. Released with munmap(). */
void *get_memory(size_t size);
/* Keeps the compiler from seeing through a value. */
static inline uintptr_t opaque(uintptr_t v)
{
    __asm__ volatile("" : "+r"(v));
    return v;
}

#endif
