/*
 * Random instruction streams as guest code: whatever the guest executes, at whatever privilege, ends
 * in a guest exception, HLT, a mode this build refuses, or our stop - never in a fault of the VMM.
 *
 *     fuzz_guest [--streams N] [--seconds N] [--seed S] [--verify]   (N per memory form)
 *
 * Every stream gets its own seed (printed on failure; a crash prints it too), a page of bytes biased
 * towards instructions that matter, random registers half of which point into RAM, and CPL 0 or 3; one
 * process for each memory form.  The guest owns all of its RAM, page tables and descriptor tables included, so
 * these are put back between streams.  A second thread stops streams that run on.
 */
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/support/bt_fixture.h"

#define STREAM_BYTES 256u
#define STREAM_NS    1000000 /* longest run of one stream */

#define TSS          0x202000ull

static struct bt_fixture fx;
/* What fx_reset_memory() made, to put back between streams. */
static struct {
    uint64_t at, len;
    uint8_t *copy;
} table[2] = {{FX_PT, 0x3000 + (FX_RAM >> 9), NULL}, {FX_GDT, 0x11000, NULL}};
static _Atomic uint64_t current_seed, started_ns;
static _Atomic(struct bt_fixture *) running;
static _Atomic bool finished;

void vcpu_raise(struct vcpu *v, uint32_t events)
{
    atomic_fetch_or(&v->events, events);
    v->exit_request = 1;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s * 0x2545f4914f6cdd1dull;
}

/* Stops the stream at hand when it has had its time. */
static void *watchdog(void *arg)
{
    while (!atomic_load(&finished)) {
        usleep(500);
        struct bt_fixture *f = atomic_load(&running);
        if (f && now_ns() - atomic_load(&started_ns) > STREAM_NS) {
            atomic_fetch_or(&f->v->events, EV_STOP);
            f->engine->ops->kick(f->engine, f->v);
        }
    }
    return NULL;
}

static void report_crash(void)
{
    char line[64] = "fuzz_guest: the VMM crashed; --seed ";
    size_t n = strlen(line);
    uint64_t seed = atomic_load(&current_seed);
    for (int i = 60; i >= 0; i -= 4)
        line[n++] = "0123456789abcdef"[seed >> i & 15];
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, n) < 0)
        _exit(3);
}

static uint64_t random_value(uint64_t *s)
{
    switch (rnd(s) % 6) {
    case 0: return rnd(s);
    case 1: return FX_DATA + rnd(s) % 0x3000;
    case 2: return FX_CODE + rnd(s) % 0x2000; /* its own code */
    case 3: return rnd(s) % FX_RAM;
    case 4: return rnd(s) % 64;
    default: return 0x800000000000ull - rnd(s) % 64;
    }
}

static void random_code(uint64_t *s, uint8_t *code)
{
    static const uint8_t often[] = {0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x4c, 0x41, 0x89, 0x8b, 0xc3, 0xe8,
                                    0xff, 0xc5, 0xc4, 0x62, 0xa5, 0xab, 0x9c, 0x9d, 0xcf, 0xfb, 0xfa};
    for (unsigned i = 0; i < STREAM_BYTES; i++)
        code[i] = rnd(s) % 4 ? (uint8_t)rnd(s) : often[rnd(s) % sizeof often];
}

/* 0, or -1 if the engine failed. */
static int run_stream(uint64_t seed, unsigned long counts[4])
{
    uint64_t s = seed | 1;
    uint8_t code[STREAM_BYTES];
    for (int i = 0; i < 8; i++)
        rnd(&s);
    struct bt_fixture *f = &fx;
    struct vcpu *v = f->v;
    for (unsigned i = 0; i < 2; i++)
        fx_write(f, table[i].at, table[i].copy, table[i].len);
    fx_reset_cpu(f);
    fx_put64(f, TSS + 4, FX_STACK - 0x8000); /* RSP0: faults at CPL 3 find a stack */
    v->tr = (struct segment){.sel = 0x28, .attr = 0x8b, .limit = 0x67, .base = TSS};
    random_code(&s, code);
    uint64_t at = FX_CODE + 0x1000 - rnd(&s) % 300; /* often across the page's end */
    fx_write(f, at, code, sizeof code);
    for (unsigned r = 0; r < 16; r++)
        v->gpr[r] = random_value(&s);
    v->rip = at;
    v->rflags = FL_FIXED1 | (rnd(&s) & (FL_ARITH | FL_DF));
    if (rnd(&s) % 16 == 0)
        v->rflags |= FL_TF;
    if (rnd(&s) & 1) {
        v->cpl = 3;
        v->seg[SEG_CS].sel = 0x13;
        v->seg[SEG_CS].attr |= SEGA_DPL;
        v->seg[SEG_SS].sel = 0x1b;
        v->seg[SEG_SS].attr |= SEGA_DPL;
    }
    v->events = 0;
    atomic_store(&current_seed, seed);
    atomic_store(&started_ns, now_ns());
    atomic_store(&running, f);
    f->engine->ops->run(f->engine, v);
    atomic_store(&running, NULL);
    switch (v->exit) {
    case VCPU_EXIT_HLT: counts[0]++; break;
    case VCPU_EXIT_TRIPLE: counts[1]++; break;
    case VCPU_EXIT_STOP: counts[2]++; break;
    case VCPU_EXIT_UNSUPPORTED: counts[3]++; break;
    default:
        fprintf(stderr, "fuzz_guest: the engine failed: %s; --seed %016llx\n", v->exit_reason,
                (unsigned long long)seed);
        return -1;
    }
    return 0;
}

static int run_streams(const char *name, uint64_t streams, uint64_t seconds, uint64_t seed, bool one)
{
    pthread_t dog;
    pthread_create(&dog, NULL, watchdog, NULL);
    uint64_t begin = now_ns(), n = 0, s = seed | 1;
    unsigned long counts[4] = {0};
    int bad = 0;
    while (n < streams && !bad && (!seconds || now_ns() - begin < seconds * 1000000000u)) {
        bad = run_stream(one ? seed : rnd(&s), counts);
        n++;
    }
    atomic_store(&finished, true);
    pthread_join(dog, NULL);
    printf("%-6s %llu streams in %.1f s: %lu halted (a handler or HLT), %lu triple faults, %lu stopped, "
           "%lu left 64-bit mode; %s\n",
           name, (unsigned long long)n, (double)(now_ns() - begin) / 1e9, counts[0], counts[1],
           counts[2], counts[3], bad ? "FAILED" : "no VMM fault");
    fflush(stdout);
    return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
    uint64_t streams = ~0ull, seconds = 0, seed = (uint64_t)getpid() << 32 ^ now_ns();
    bool verify = false, one = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--verify"))
            verify = true;
        else if (i + 1 < argc && !strcmp(argv[i], "--streams"))
            streams = strtoull(argv[++i], NULL, 0);
        else if (i + 1 < argc && !strcmp(argv[i], "--seconds"))
            seconds = strtoull(argv[++i], NULL, 0);
        else if (i + 1 < argc && !strcmp(argv[i], "--seed"))
            seed = strtoull(argv[++i], NULL, 16), one = true;
        else {
            fprintf(stderr, "usage: fuzz_guest [--streams N] [--seconds N] [--seed HEX] [--verify]\n");
            return 2;
        }
    }
    if (one)
        streams = 1;
    else if (streams == ~0ull && !seconds)
        seconds = 10;
    static const enum mem_mode modes[3] = {MEM_SOFT, MEM_WINDOW, MEM_MIXED};
    static const char *const names[3] = {"soft", "window", "mixed"};
    int bad = 0;
    for (int i = 0; i < 3; i++) {
        fflush(NULL);
        pid_t child = fork(); /* a vCPU belongs to its thread, and a crash to its mode */
        if (child == 0) {
            struct engine_config cfg = {.mem_mode = modes[i], .verify = verify,
                                        .on_fatal = report_crash, .cache_size = 4u << 20};
            fx_create(&fx, &cfg);
            for (unsigned t = 0; t < 2; t++) {
                table[t].copy = malloc(table[t].len);
                if (!table[t].copy || ram_read(&fx.ram, table[t].at, table[t].copy, table[t].len))
                    _exit(3);
            }
            _exit(run_streams(names[i], streams, seconds, seed, one));
        }
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) < 0 || status)
            bad = 1;
    }
    return bad;
}
