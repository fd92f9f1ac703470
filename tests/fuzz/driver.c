/*
 * Runs a harness without libFuzzer:
 *
 *     fuzz_NAME [--seconds N] [--seed S] [--max BYTES] [FILE...]
 *     fuzz_NAME --write-seeds DIR
 *
 * Runs FILEs as they are; without any, mutates the harness's own inputs for N seconds (10).  The
 * same seed gives the same inputs in the same order.  An input that crashes the harness, or keeps
 * it busy for 20 seconds, is left behind in ./crash-NAME.  --write-seeds makes libFuzzer's corpus.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define MAX_INPUT (1u << 20)
#define MAX_SEEDS 64
#define HANG      20

static uint8_t *input;
static size_t input_len;
static char crash_file[300];

static uint64_t state = 1;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* Async-signal-safe. */
static void on_crash(int sig)
{
    int fd = open(crash_file, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    static const char text[] = "fuzz: crashed or hung; the input is in ./crash-NAME\n";

    if (fd >= 0 && write(fd, input, input_len) >= 0)
        close(fd);
    if (write(2, text, sizeof(text) - 1) < 0)
        _exit(2);
    signal(sig, SIG_DFL);
    raise(sig);
}

static uint64_t interesting(void)
{
    static const uint64_t values[] = {
        0,     1,     2,      7,      8,      0x7f,   0x80,    0xff,       0x100,      0x1ff,
        0x200, 0xfff, 0x1000, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff};
    uint64_t v = values[rnd() % (sizeof(values) / sizeof(values[0]))];

    return rnd() % 4 == 0 ? ~v : v;
}

static void put_number(uint8_t *at, size_t room, uint64_t v)
{
    unsigned size = 1u << rnd() % 4;
    int big = rnd() & 1;

    if (size > room)
        size = (unsigned)room;
    for (unsigned i = 0; i < size; i++)
        at[big ? size - 1 - i : i] = (uint8_t)(v >> (8 * i));
}

static void mutate(size_t max)
{
    unsigned steps = 1 + rnd() % 8;

    while (steps--) {
        /* Where structure is: more often near the beginning. */
        size_t at = rnd() % (input_len + 1);
        size_t n = 1 + rnd() % 64, from;

        if (rnd() % 3 == 0)
            at %= 128;
        if (at >= input_len)
            at = 0;
        if (!input_len)
            return;
        switch (rnd() % 8) {
        case 0:
            input[at] ^= (uint8_t)(1u << rnd() % 8);
            break;
        case 1:
            input[at] = (uint8_t)rnd();
            break;
        case 2:
        case 3:
            put_number(input + at, input_len - at, interesting());
            break;
        case 4:
            put_number(input + at, input_len - at, rnd() >> rnd() % 64);
            break;
        case 5: /* copy a piece */
            from = rnd() % input_len;
            n = n > input_len - at ? input_len - at : n;
            n = n > input_len - from ? input_len - from : n;
            memmove(input + at, input + from, n);
            break;
        case 6: /* insert a piece of itself */
            n = input_len + n > max ? 0 : n > input_len - at ? input_len - at : n;
            memmove(input + at + n, input + at, input_len - at);
            input_len += n;
            break;
        default: /* cut */
            if (rnd() % 4)
                break;
            n = n > input_len - at ? input_len - at : n;
            memmove(input + at, input + at + n, input_len - at - n);
            input_len -= n;
            break;
        }
    }
}

static int run_files(char **names, int count)
{
    for (int i = 0; i < count; i++) {
        FILE *f = fopen(names[i], "rb");

        if (!f) {
            fprintf(stderr, "fuzz: cannot read %s: %s\n", names[i], strerror(errno));
            return 2;
        }
        input_len = fread(input, 1, MAX_INPUT, f);
        fclose(f);
        alarm(HANG);
        LLVMFuzzerTestOneInput(input, input_len);
    }
    return 0;
}

static int write_seeds(const char *dir)
{
    for (unsigned n = 0; (input_len = fuzz_seed(n, input, MAX_INPUT)); n++) {
        char name[300];
        FILE *f;

        snprintf(name, sizeof(name), "%s/seed-%u", dir, n);
        f = fopen(name, "wb");
        if (!f || fwrite(input, 1, input_len, f) != input_len || fclose(f)) {
            fprintf(stderr, "fuzz: cannot write %s: %s\n", name, strerror(errno));
            return 2;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static uint8_t *seed[MAX_SEEDS];
    static size_t seed_len[MAX_SEEDS];
    unsigned seconds = 10, seeds = 0;
    unsigned long long runs = 0, first = 1;
    size_t max = MAX_INPUT;
    const char *base = strrchr(argv[0], '/');
    time_t end;
    int i;

    input = malloc(MAX_INPUT);
    snprintf(crash_file, sizeof(crash_file), "crash-%s", base ? base + 1 : argv[0]);
    for (i = 1; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
        if (!strcmp(argv[i], "--seconds"))
            seconds = (unsigned)strtoul(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--seed"))
            first = strtoull(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--max"))
            max = strtoul(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--write-seeds"))
            return write_seeds(argv[i + 1]);
        else
            break;
    }
    if (max > MAX_INPUT)
        max = MAX_INPUT;
    signal(SIGSEGV, on_crash);
    signal(SIGBUS, on_crash);
    signal(SIGABRT, on_crash);
    signal(SIGFPE, on_crash);
    signal(SIGALRM, on_crash);
    if (i < argc)
        return run_files(argv + i, argc - i);
    while (seeds < MAX_SEEDS && (input_len = fuzz_seed(seeds, input, MAX_INPUT))) {
        seed[seeds] = malloc(input_len);
        memcpy(seed[seeds], input, input_len);
        seed_len[seeds++] = input_len;
        alarm(HANG);
        LLVMFuzzerTestOneInput(input, input_len);
    }
    if (!seeds) {
        fprintf(stderr, "fuzz: the harness has no inputs to start from\n");
        return 2;
    }
    state = first * 0x9e3779b97f4a7c15ull + 1;
    for (end = time(NULL) + seconds; time(NULL) < end; runs++) {
        unsigned s = (unsigned)(rnd() % seeds);

        memcpy(input, seed[s], seed_len[s]);
        input_len = seed_len[s];
        mutate(max);
        alarm(HANG);
        LLVMFuzzerTestOneInput(input, input_len);
    }
    printf("fuzz: %llu inputs, nothing found\n", runs);
    return 0;
}
