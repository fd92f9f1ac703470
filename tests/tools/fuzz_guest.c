/*
 * Random bytes as guest code (docs/testing.md): whatever they do, the guest ends in an exception, a
 * halt, a shutdown or the time limit, and the VMM neither crashes nor is corrupted.
 *
 *     fuzz_guest [--seconds N] [--streams N] [--seed S] [--one SEED] [--mode 64|32|16]
 *
 * A stream is a page of random or mutated instruction bytes, random registers, at CPL 0 or 3, with
 * every mapping of the guest's (page tables, descriptor tables and code included) within reach at
 * CPL 0.  --mode 32 and 16 run code of that size in every mode that has it, with segments of all
 * kinds and every block verified.  The process itself is the oracle: a signal in it is a failure,
 * and the seed of the stream that was running is printed before it dies.
 */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>

#include "tests/support/diff_gen32.h"
#include "tests/support/diff_guest.h"
#include "cpu/system.h"
#include "translator/bt.h"

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    atomic_fetch_or(&v->events, events);
}

static volatile uint64_t current_seed; /* for the report of a crash */
static const char *current_config;

static void report_crash(void)
{
    char buf[160];
    int n = snprintf(buf, sizeof buf, "\nfuzz_guest: crash in stream %#llx, configuration %s\n",
                     (unsigned long long)current_seed, current_config);
    ssize_t r = write(STDERR_FILENO, buf, (size_t)n);
    (void)r;
}

static void on_abort(int sig)
{
    report_crash();
    signal(sig, SIG_DFL);
    raise(sig);
}

static const struct config {
    const char *name;
    struct engine_config cfg;
    bool kicks;
} configs[] = {
    {"soft", {.mem_mode = MEM_SOFT}, false},
    {"window", {.mem_mode = MEM_WINDOW}, false},
    {"verified", {.mem_mode = MEM_MIXED, .verify = true}, false},
    {"chaos", {.mem_mode = MEM_MIXED, .chaos = true, .cache_size = 2u << 20}, true},
};
#define CONFIGS (sizeof configs / sizeof configs[0])

/* A second view of all of guest RAM, page tables included, for supervisor code. */
#define FUZZ_ALL   0xffff888000000000ull
#define FUZZ_ALL32 0xc0000000u

struct fuzz {
    struct diff_guest g;
    uint8_t sys[0x6000], pt[0x40000]; /* descriptor and page tables as they were set up */
    uint8_t low[0x10000];             /* real mode's interrupt table and handlers */
    uint64_t pt_size;
    uint64_t ended[40];
    unsigned bits; /* 64, 32, 16 */
};

static void setup(struct fuzz *f)
{
    struct diff_guest *g = &f->g;
    uint64_t all = f->bits == 64 ? FUZZ_ALL : FUZZ_ALL32, t = DIFF_PT_GPA;
    if (!diff_pae(g))
        t = diff_pt_entry(g, t, all >> 39 & 511);
    t = diff_pt_entry(g, t, all >> 30 & 511);
    for (uint64_t i = 0; i < FX_RAM >> 21; i++)
        fx_put64(&g->f, t + 8 * i, i << 21 | 0x83);
    f->pt_size = g->pt_next - DIFF_PT_GPA;
    ram_read(&g->f.ram, DIFF_SYS_GPA, f->sys, sizeof f->sys);
    ram_read(&g->f.ram, DIFF_PT_GPA, f->pt, f->pt_size);
    ram_read(&g->f.ram, 0, f->low, sizeof f->low);
}

/* Memory as the first stream found it. */
static void restore(struct fuzz *f)
{
    const uint8_t *ram = f->g.f.ram.base;
    if (memcmp(ram + DIFF_PT_GPA, f->pt, f->pt_size))
        fx_write(&f->g.f, DIFF_PT_GPA, f->pt, f->pt_size);
    if (memcmp(ram + DIFF_SYS_GPA, f->sys, sizeof f->sys))
        fx_write(&f->g.f, DIFF_SYS_GPA, f->sys, sizeof f->sys);
    if (f->bits != 64 && memcmp(ram, f->low, sizeof f->low))
        fx_write(&f->g.f, 0, f->low, sizeof f->low);
    for (unsigned p = 0; p < DIFF_PAGES; p++)
        if (memcmp(ram + f->g.gpa[p], f->g.pristine[p], 4096))
            fx_write(&f->g.f, f->g.gpa[p], f->g.pristine[p], 4096);
}

static void make_stream(struct fuzz *f, uint64_t seed, unsigned *cpl, uint8_t *code, unsigned len)
{
    uint64_t s = diff_seed(seed);
    unsigned kind = diff_below(&s, 4);
    *cpl = diff_below(&s, 2) ? 3 : 0;
    for (unsigned i = 0; i < len; i++)
        code[i] = (uint8_t)diff_rnd(&s);
    if (kind == 0)
        return;
    for (unsigned at = 0; at + 32 < len;) { /* instructions, some with a byte changed */
        uint8_t b[48];
        struct insn in;
        diff_random_bytes(&s, b);
        int n = insn_decode(&in, b, 15, MODE_64);
        if (n <= 0 || (in.op == OP_INVALID && diff_below(&s, 8)))
            continue;
        if (kind == 3 && in.op == OP_COPY && diff_below(&s, 2))
            continue; /* more of the sensitive ones */
        if (kind >= 2 && diff_below(&s, 6) == 0)
            b[diff_below(&s, (unsigned)n)] = (uint8_t)diff_rnd(&s);
        memcpy(code + at, b, (size_t)n);
        at += (unsigned)n;
    }
}

/* The same for 16- and 32-bit code. */
static void make_stream32(struct diff_gen32 *g, uint8_t *code, unsigned len)
{
    uint64_t *s = &g->g.rng;
    unsigned kind = diff_below(s, 4);
    for (unsigned i = 0; i < len; i++)
        code[i] = (uint8_t)diff_rnd(s);
    for (unsigned at = 0; kind && at + 32 < len;) {
        uint8_t b[48];
        struct insn in;
        diff32_random_bytes(g, b);
        int n = insn_decode(&in, b, 15, diff32_mode(g));
        if (n <= 0 || (in.op == OP_INVALID && diff_below(s, 8)))
            continue;
        if (kind == 3 && in.op == OP_COPY && diff_below(s, 2))
            continue;
        diff32_fix_disp(g, &in, b);
        if (kind >= 2 && diff_below(s, 6) == 0)
            b[diff_below(s, (unsigned)n)] = (uint8_t)diff_rnd(s);
        memcpy(code + at, b, (size_t)n);
        at += (unsigned)n;
    }
}

static uint32_t pick_register32(uint64_t *s)
{
    switch (diff_below(s, 8)) {
    case 0:
        return FUZZ_ALL32 + (uint32_t)(diff_rnd(s) & (FX_RAM - 1));
    case 1:
        return FUZZ_ALL32 + (uint32_t)(DIFF_PT_GPA + (diff_rnd(s) & 0xffff));
    case 2:
        return (uint32_t)DIFF_SYS + (diff_rnd(s) & 0x5fff);
    case 3: /* MSR numbers, selectors and such */
        return diff_below(s, 2) ? 0xc0000080 + diff_below(s, 16) : diff_below(s, 0x1000);
    case 4:
    case 5:
        return DIFF_LCODE + (uint32_t)(diff_rnd(s) & 0x31fff);
    default:
        return (uint32_t)diff_value(s) & (diff_below(s, 2) ? 0xffffffff : 0xffff);
    }
}

static uint64_t pick_register(uint64_t *s)
{
    switch (diff_below(s, 8)) {
    case 0:
        return FUZZ_ALL + (diff_rnd(s) & (FX_RAM - 1));
    case 1:
        return FUZZ_ALL + DIFF_PT_GPA + (diff_rnd(s) & 0xffff);
    case 2:
        return DIFF_SYS + (diff_rnd(s) & 0x5fff);
    case 3: /* MSR numbers and such */
        return diff_below(s, 2) ? 0xc0000080 + diff_below(s, 16) : diff_below(s, 0x1000);
    default:
        return diff_value(s);
    }
}

static void run_stream(struct fuzz *f, uint64_t seed)
{
    static uint8_t code[2048];
    struct vcpu *v = f->g.f.v;
    unsigned cpl, len = 512;
    uint64_t s = diff_seed(seed ^ 0x5a5a);
    struct diff_case c;
    struct diff_gen32 g;
    bool legacy = f->bits != 64;
    current_seed = seed;
    if (legacy) {
        diff32_case_init(&g, &c, seed, f->bits, f->g.world, 3);
        cpl = f->g.world <= DIFF_PROT && diff_below(&s, 2) ? 0 : 3;
        c.cpl = (uint8_t)cpl;
        make_stream32(&g, code, len);
    } else {
        make_stream(f, seed, &cpl, code, len);
    }

    restore(f);
    uint8_t *fp_area = v->fp_area; /* set below; resetting it is slow */
    v->fp_area = NULL;
    vcpu_reset(v);
    v->fp_area = fp_area;
    vcpu_setup_long64(v, 0, 0, 0, 0, 0, 0x10, 0x18);
    v->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | (v->model->xcr0_valid ? CR4_OSXSAVE : 0);
    if (v->model->xcr0_valid)
        v->xcr0 = v->model->xcr0_valid;
    diff_guest_cpu(&f->g, cpl);
    if (diff_below(&s, 8) == 0)
        v->cr4 |= CR4_SMAP | CR4_SMEP | CR4_PCIDE;
    if (diff_below(&s, 16) == 0)
        v->cr0 |= CR0_TS;
    unsigned start = diff_below(&s, 4) ? diff_below(&s, 2048) : 4096 - diff_below(&s, 64);
    for (unsigned done = 0; done < len;) {
        unsigned at = start + done, n = len - done, room = 4096 - at % 4096;
        n = n < room ? n : room;
        fx_write(&f->g.f, f->g.gpa[at / 4096] + at % 4096, code + done, n);
        done += n;
    }
    for (unsigned r = 0; r < 16; r++)
        v->gpr[r] = !legacy ? pick_register(&s) : r < 8 ? pick_register32(&s) : diff_rnd(&s);
    if (diff_below(&s, 4))
        v->gpr[RSP] = legacy ? c.gpr[RSP] : DIFF_STACK + 0x1000;
    v->rip = DIFF_CODE + start;
    v->rflags = (diff_rnd(&s) & (FL_ARITH | FL_DF | FL_AC | FL_NT | FL_ID)) | FL_FIXED1 |
                (diff_below(&s, 2) ? FL_IF : 0) | (diff_below(&s, 16) ? 0 : FL_TF) |
                (diff_below(&s, 8) ? 0 : FL_IOPL);
    if (legacy) {
        c.start = (uint16_t)start;
        v->rip = diff_start(&c);
        c.rflags = v->rflags & ~(f->g.world == DIFF_REAL ? (uint64_t)FL_AC : 0);
        uint64_t cr4 = v->cr4;
        diff_guest_legacy(&f->g, &c);
        v->cr4 |= cr4 & (CR4_SMAP | CR4_SMEP);
        if (f->g.world == DIFF_V86 && diff_below(&s, 2)) {
            v->rflags &= ~(uint64_t)FL_IOPL;
            v->cr4 |= diff_below(&s, 2) ? CR4_VME : 0;
        }
        if (f->g.world == DIFF_REAL && diff_below(&s, 4) == 0)
            vcpu_set_a20(v, false);
    } else {
        v->seg[SEG_FS].base = diff_rnd(&s) & 0x3fffffff;
        v->seg[SEG_GS].base = DIFF_HIGH;
    }
    uint8_t img[DIFF_XSAVE];
    diff_fp_make(diff_rnd(&s), img);
    memcpy(v->fp_area, img, v->fp_host_mask & 0x80 ? DIFF_XSAVE : v->fp_host_mask & 4 ? 832 : 512);
    v->fp_saved = 1;
    v->exit = VCPU_EXIT_NONE;
    mmu_flush_all(v);

    atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
    f->g.running = true;
    /* A handler halts; go on behind it for a few rounds: the stack it would return to is random. */
    for (unsigned round = 0; round < 3; round++) {
        f->g.f.engine->ops->run(f->g.f.engine, v);
        if (v->exit != VCPU_EXIT_HLT)
            break;
        v->halted = false;
        if (diff_below(&s, 3))
            break;
        v->rip = (legacy ? DIFF_LCODE : DIFF_CODE) + start + diff_below(&s, len);
        if (legacy && v->seg[SEG_CS].limit < v->rip)
            v->rip &= 0xffff;
    }
    f->g.running = false;
    f->g.runs++;
    f->ended[v->exit % 40]++;
    if (v->exit == VCPU_EXIT_ERROR) {
        fprintf(stderr, "fuzz_guest: stream %#llx: engine failure: %s\n", (unsigned long long)seed,
                v->exit_reason);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    static const struct option opts[] = {{"seconds", 1, 0, 't'},
                                         {"streams", 1, 0, 'n'},
                                         {"seed", 1, 0, 's'},
                                         {"one", 1, 0, '1'},
                                         {"config", 1, 0, 'c'},
                                         {"mode", 1, 0, 'm'},
                                         {0}};
    double seconds = 15;
    uint64_t seed = 1, streams = ~0ull, one = 0;
    const char *only = NULL;
    unsigned bits = 64;
    int o;
    while ((o = getopt_long(argc, argv, "", opts, NULL)) != -1) {
        switch (o) {
        case 't':
            seconds = atof(optarg);
            break;
        case 'n':
            streams = strtoull(optarg, NULL, 0);
            seconds = 1e9;
            break;
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case '1':
            one = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            only = optarg;
            break;
        case 'm':
            bits = (unsigned)atoi(optarg);
            break;
        default:
            return 2;
        }
    }
    if (bits != 64 && bits != 32 && bits != 16)
        return 2;
    diff_legacy = bits != 64;
    signal(SIGABRT, on_abort);
    static struct fuzz f;
    static const char *const world_names[] = {"compat", "prot", "v86", "real"};
    unsigned worlds = bits == 64 ? 1 : bits == 32 ? 2 : 4;
    for (unsigned k = 0; k < CONFIGS * worlds; k++) {
        unsigned c = k / worlds;
        if (only && strcmp(only, configs[c].name))
            continue;
        struct engine_config cfg = configs[c].cfg;
        struct timespec t0, t;
        uint64_t n = 0;
        unsigned runs = (only ? 1 : CONFIGS) * worlds;
        double share = seconds / runs, took = 0;
        current_config = configs[c].name;
        cfg.on_fatal = report_crash;
        cfg.verify |= bits != 64;
        f.bits = bits;
        memset(f.ended, 0, sizeof f.ended);
        diff_guest_start_in(&f.g, &cfg, (enum diff_world)(k % worlds));
        setup(&f);
        f.g.patience_ms = 8;
        f.g.kicks = configs[c].kicks;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        do {
            run_stream(&f, one ? one : (seed << 32) + n);
            if ((++n & 63) == 0) {
                clock_gettime(CLOCK_MONOTONIC, &t);
                took = (double)(t.tv_sec - t0.tv_sec) + (double)(t.tv_nsec - t0.tv_nsec) / 1e9;
            }
        } while (!one && took < share && n < streams / runs);
        const struct bt_stats *st = &((struct bt_engine *)f.g.f.engine)->stats;
        printf(
            "%-8s %s %9llu streams in %5.1f s (%.0f/s): %llu halts, %llu shutdowns, %llu stopped, "
            "%llu unsupported; %llu blocks, %llu rejected\n",
            configs[c].name, bits == 64 ? "" : world_names[k % worlds], (unsigned long long)n, took,
            took > 0 ? (double)n / took : 0, (unsigned long long)f.ended[VCPU_EXIT_HLT],
            (unsigned long long)f.ended[VCPU_EXIT_TRIPLE],
            (unsigned long long)f.ended[VCPU_EXIT_STOP],
            (unsigned long long)f.ended[VCPU_EXIT_UNSUPPORTED], (unsigned long long)st->blocks,
            (unsigned long long)st->rejected);
        fflush(stdout);
        if (st->rejected)
            return 1;
        diff_guest_stop(&f.g);
    }
    return 0;
}
