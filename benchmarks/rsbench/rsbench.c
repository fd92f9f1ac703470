/*
 * rsbench: self-checking benchmarks in one static program, to be run natively,
 * in Ringshift and in another VMM alike (benchmarks/bench.py does that).  Built
 * for 64 and for 32 bits.
 *
 *     rsbench NAME [SECONDS]  repeats rounds of one benchmark for SECONDS
 * (default 0.3) rsbench all [SECONDS]   runs all rsbench list            names
 * and units
 *
 * Each prints "RESULT NAME ns_per_op ns_per_op_of_the_first_round check
 * rounds": the median of the rounds, and the first; built for 32 bits it adds
 * ".32" to the name.  Nothing is warmed up: what a translator needs to get
 * going shows in the first round.  Times are those of the guest's
 * CLOCK_MONOTONIC.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "rsbench.h"

static uint64_t rng_state;
static struct timespec started, stopped;

uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

void die(const char *what)
{
    fprintf(stderr, "rsbench: %s: %s\n", what, strerror(errno));
    exit(1);
}

void *get_memory(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    memset(p, 1, size); /* page faults have their own benchmark */
    return p;
}

void start(void)
{
    clock_gettime(CLOCK_MONOTONIC, &started);
}

void stop(void)
{
    clock_gettime(CLOCK_MONOTONIC, &stopped);
}

static double seconds_between(const struct timespec *a, const struct timespec *b)
{
    return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_nsec - a->tv_nsec) * 1e-9;
}

static const struct bench *const suites[] = {integer_benches, call_benches, floating_benches,
                                             memory_benches, system_benches};
enum { SUITES = sizeof(suites) / sizeof(suites[0]) };

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void run(const struct bench *b, double seconds)
{
    static double rounds[4096];
    enum { MAX_ROUNDS = sizeof(rounds) / sizeof(rounds[0]) };
    struct timespec begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    double timed = 0, first = 0;
    uint64_t check = 0;
    unsigned n = 0;
    /* The time of set-up does not count in the result, but it limits the rounds.
     */
    do {
        rng_state = 0x9e3779b97f4a7c15ull;
        struct result r = b->fn();
        double t = seconds_between(&started, &stopped);
        rounds[n] = t / (double)r.ops;
        if (!n) {
            first = rounds[0];
            check = r.check;
        } else if (r.check != check) {
            fprintf(stderr, "rsbench: %s: round %u gave %016llx, the first one %016llx\n", b->name,
                    n, (unsigned long long)r.check, (unsigned long long)check);
            exit(3);
        }
        timed += t;
        n++;
    } while (n < MAX_ROUNDS && timed < seconds && seconds_between(&begin, &stopped) < 2 * seconds);
    qsort(rounds, n, sizeof(rounds[0]), compare_double);
    /* The median forgives the rounds in which somebody else had the CPU. */
    double median = n % 2 ? rounds[n / 2] : (rounds[n / 2 - 1] + rounds[n / 2]) / 2;
    printf("RESULT %s%s %.3f %.3f %016llx %u\n", b->name, sizeof(void *) == 4 ? ".32" : "",
           median * 1e9, first * 1e9, (unsigned long long)check, n);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "exit"))
        return 7;
    double seconds = argc > 2 ? strtod(argv[2], NULL) : 0.3;
    bool found = false, list = argc >= 2 && !strcmp(argv[1], "list");
    for (unsigned s = 0; argc >= 2 && s < SUITES; s++)
        for (const struct bench *b = suites[s]; b->name; b++) {
            if (list)
                printf("%s (per %s)\n", b->name, b->unit);
            else if (strcmp(argv[1], "all") && strcmp(argv[1], b->name))
                continue;
            else
                run(b, seconds);
            found = true;
        }
    if (!found) {
        fprintf(stderr, "rsbench: usage: rsbench NAME|all|list [SECONDS]\n");
        return 1;
    }
    return 0;
}
