/*
 * Differential test of the translator against the host CPU (docs/testing.md).
 *
 *     diff_host [--exhaustive] [--random] [--seconds N] [--seed S] [--stride N] [--cpl 0|3]
 *               [--config NAME] [--one SEED] [--keep-going N] [--mode 64|32|16] [--world W]
 *
 * --exhaustive goes through every encodable opcode with a set of operand forms (--stride N takes
 * every Nth); --random runs sequences.  Without either, both, in every configuration, sharing the
 * time.  --mode 32 and --mode 16 test code of that size in each mode of the guest that has it
 * (--world compat, prot, v86, real: only there); --cases N stops after so many cases.  A mismatch
 * is printed with the code reduced to what is needed, as a line for
 * tests/unit/test_translator_diff.c.  Exit status 1 if there was one.
 */
#include <getopt.h>

#include <capstone/capstone.h>

#include "tests/support/diff_native.h"

#include "tests/support/diff_gen32.h"
#include "tests/support/diff_guest.h"
#include "translator/bt.h"

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    atomic_fetch_or(&v->events, events);
}

static const struct config {
    const char *name;
    bool kicks;
    struct engine_config cfg;
} configs[] = {
    {"soft", false, {.mem_mode = MEM_SOFT, .verify = true}},
    {"mixed", false, {.mem_mode = MEM_MIXED, .verify = true}},
    {"window", false, {.mem_mode = MEM_WINDOW, .verify = true}},
    {"kicks", true, {.mem_mode = MEM_MIXED, .verify = true}},
    {"chaos", true, {.mem_mode = MEM_MIXED, .chaos = true, .verify = true, .cache_size = 2u << 20}},
};
#define CONFIGS (sizeof configs / sizeof configs[0])

struct run {
    struct diff_native *native;
    struct diff_guest *guest;
    const struct config *config;
    struct diff_case c[DIFF_BATCH];
    struct diff_result r[DIFF_BATCH];
    uint64_t id[DIFF_BATCH];
    unsigned n;
    bool exhaustive;
    uint64_t cases, insns, mismatches, ended[128];
    uint64_t limit; /* mismatches to report before giving up */
    unsigned bits;  /* 64, 32, 16 */
    enum diff_world world;
    uint64_t max_cases, total;
};

static void print_code(const struct diff_case *c)
{
    static const cs_mode modes[] = {
        [MODE_16] = CS_MODE_16, [MODE_32] = CS_MODE_32, [MODE_64] = CS_MODE_64};
    for (unsigned off = 0; off < c->len;) {
        csh cs;
        if (cs_open(CS_ARCH_X86, modes[diff_insn_mode(c, off)], &cs) != CS_ERR_OK)
            return;
        cs_insn *in;
        char hex[48] = "";
        size_t n = cs_disasm(cs, c->code + off, c->len - off, diff_start(c) + off, 1, &in);
        unsigned len = n ? in->size : 1;
        for (unsigned i = 0; i < len && i < 15; i++)
            snprintf(hex + 2 * i, 3, "%02x", c->code[off + i]);
        if (!n || in->size != 1 || c->code[off] != 0x90)
            printf("    %8llx  %-30s %s %s\n", (unsigned long long)diff_start(c) + off, hex,
                   n ? in->mnemonic : "?", n ? in->op_str : "");
        off += len;
        if (n)
            cs_free(in, n);
        cs_close(&cs);
    }
}

static void print_case(const struct diff_case *c)
{
    printf("    {.cpl = %u, .start = 0x%x, .rflags = 0x%llx, .fp_seed = 0x%llx,\n"
           "     .fs_base = 0x%llx, .gs_base = 0x%llx, .len = %u,\n     .gpr = {",
           c->cpl, c->start, (unsigned long long)c->rflags, (unsigned long long)c->fp_seed,
           (unsigned long long)c->fs_base, (unsigned long long)c->gs_base, c->len);
    if (c->bits) {
        printf("0}, .bits = %u, .world = %u, .n_at = %u, .wide = 0x%llx, .seg = {", c->bits,
               c->world, c->n_at, (unsigned long long)c->wide);
        for (unsigned i = 0; i < 6; i++)
            printf("0x%x%s", c->seg[i], i == 5 ? "},\n     .at = {" : ", ");
        for (unsigned i = 0; i < c->n_at; i++)
            printf("%u%s", c->at[i], i + 1 == c->n_at ? "},\n     .gpr = {" : ", ");
    }
    for (unsigned i = 0; i < 16; i++)
        printf("0x%llx%s", (unsigned long long)c->gpr[i],
               i == 15      ? "},"
               : i % 4 == 3 ? ",\n             "
                            : ", ");
    printf("\n     .code = {");
    for (unsigned i = 0; i < c->len; i++)
        printf("0x%02x%s", c->code[i],
               i + 1 == c->len ? "}},\n"
               : i % 16 == 15  ? ",\n              "
                               : ", ");
}

/* Number of differences, 0 if the case cannot be judged. */
static int judge(struct run *t, const struct diff_case *c, const struct diff_result *n,
                 const struct diff_result *g, FILE *out)
{
    if (n->vector == DIFF_TIMEOUT)
        return 0;
    if (n->vector == DIFF_CRASH || n->vector == DIFF_OTHER) {
        if (out)
            fprintf(out, "  the native side %s\n",
                    n->vector == DIFF_CRASH ? "died" : "made a system call");
        return 1;
    }
    if (c->bits && c->world == DIFF_REAL && g->vector == DIFF_OTHER)
        return 0; /* no room on the stack for a frame: shutdown */
    return diff_compare(n, g, c, t->guest->pristine_ptr, DIFF_FLAGS, out);
}

/* Without paging the guest would run on where the host stopped at a page fault, and through all of
 * its memory: in real mode such cases are left out. */
static bool runs_in_guest(const struct diff_case *c, const struct diff_result *native)
{
    return !c->bits || c->world != DIFF_REAL ||
           (native->vector != EXC_PF && native->vector != DIFF_TIMEOUT);
}

/* Runs one case on both sides; number of differences. */
static int run_one(struct run *t, const struct diff_case *c, FILE *out)
{
    static struct diff_result g;
    t->native->sh->c[0] = *c;
    diff_native_run(t->native, 1);
    diff_native_wait(t->native);
    if (!runs_in_guest(c, &t->native->sh->r[0]))
        return 0;
    diff_guest_run(t->guest, c, &g);
    return judge(t, c, &t->native->sh->r[0], &g, out);
}

/* Does it still fail?  Interruptions come at random, so try more often with them. */
static bool fails(struct run *t, const struct diff_case *c)
{
    for (unsigned i = 0; i < (t->config->kicks ? 200u : 2u); i++)
        if (run_one(t, c, NULL))
            return true;
    return false;
}

static void report(struct run *t, const struct diff_case *c, uint64_t id,
                   const struct diff_result *n, const struct diff_result *g)
{
    struct diff_case m = *c;
    t->mismatches++;
    if (t->mismatches > t->limit)
        return;
    printf("\nMISMATCH (%s, %s %llu, cpl %u)\n", t->config->name,
           t->exhaustive ? "encoding" : "seed", (unsigned long long)id, c->cpl);
    judge(t, c, n, g, stdout);
    if (fails(t, &m)) {
        for (unsigned i = m.n_at; i-- > 0;) { /* drop what is not needed */
            struct diff_case try = m;
            unsigned end = i + 1u < m.n_at ? m.at[i + 1] : m.len;
            bool nops = true;
            for (unsigned k = m.at[i]; k < end; k++)
                nops &= m.code[k] == 0x90;
            if (nops)
                continue;
            memset(try.code + m.at[i], 0x90, end - m.at[i]);
            if (fails(t, &try))
                m = try;
        }
        while (m.len > 1 && m.code[m.len - 1] == 0x90) {
            m.len--;
            if (!fails(t, &m)) {
                m.len++;
                break;
            }
        }
        for (unsigned i = 0; i < 16; i++) { /* simplest registers that still show it */
            struct diff_case try = m;
            try.gpr[i] = i != RSP ? 0 : c->bits ? c->gpr[i] : DIFF_STACK + 0x1000;
            if (fails(t, &try))
                m = try;
        }
        for (int i = 0; i < (t->config->kicks ? 2000 : 1); i++) {
            char *text = NULL;
            size_t len = 0;
            FILE *f = open_memstream(&text, &len);
            int d = run_one(t, &m, f);
            fclose(f);
            if (d)
                printf("reduced:\n%s", text);
            free(text);
            if (d)
                break;
        }
    } else {
        printf("does not happen again\n");
    }
    print_code(&m);
    print_case(&m);
    fflush(stdout);
}

static void flush(struct run *t)
{
    if (!t->n)
        return;
    memcpy(t->native->sh->c, t->c, t->n * sizeof t->c[0]);
    bool real = t->bits != 64 && t->world == DIFF_REAL;
    diff_native_run(t->native, t->n);
    if (real)
        diff_native_wait(t->native);
    for (unsigned i = 0; i < t->n; i++)
        if (!real || runs_in_guest(&t->c[i], &t->native->sh->r[i]))
            diff_guest_run(t->guest, &t->c[i], &t->r[i]);
    if (!real)
        diff_native_wait(t->native);
    static struct diff_result native[DIFF_BATCH];
    memcpy(native, t->native->sh->r, t->n * sizeof native[0]);
    for (unsigned i = 0; i < t->n; i++) {
        t->cases++;
        t->insns += t->c[i].n_at;
        t->ended[native[i].vector & 127]++;
        if (native[i].vector == EXC_GP && diff_at_end(&t->c[i], &native[i]))
            t->ended[127]++;
        if (native[i].vector == DIFF_TIMEOUT || !runs_in_guest(&t->c[i], &native[i]))
            continue;
        if (t->r[i].vector == DIFF_TIMEOUT) { /* slow, or hung? */
            t->guest->patience_ms = 30000;
            diff_guest_run(t->guest, &t->c[i], &t->r[i]);
            t->guest->patience_ms = 250;
        }
        if (judge(t, &t->c[i], &native[i], &t->r[i], NULL))
            report(t, &t->c[i], t->id[i], &native[i], &t->r[i]);
    }
    t->n = 0;
}

static const char *const world_names[] = {"compat", "prot", "v86", "real"};

static bool make(struct run *t, struct diff_case *c, bool exhaustive, uint64_t i, uint64_t seed,
                 unsigned cpl)
{
    if (t->bits != 64 && !exhaustive)
        diff32_make_sequence(c, i, t->bits, t->world, cpl);
    else if (t->bits != 64)
        return diff32_make_single(c, i, seed, t->bits, t->world, cpl);
    else if (exhaustive)
        return diff_make_single(c, i, seed, cpl);
    else
        diff_make_sequence(c, i, cpl);
    return true;
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void go(struct run *t, bool exhaustive, double seconds, uint64_t seed, uint64_t stride,
               int cpl)
{
    double start = now(), until = start + seconds;
    t->exhaustive = exhaustive;
    t->cases = t->insns = 0;
    memset(t->ended, 0, sizeof t->ended);
    uint64_t bad = t->mismatches;
    uint64_t all = t->bits == 64 ? DIFF_N_ALL : DIFF32_N_ALL;
    for (uint64_t i = exhaustive ? seed % stride : 0; !exhaustive || i < all;
         i += exhaustive ? stride : 1) {
        struct diff_case *c = &t->c[t->n];
        unsigned l = cpl >= 0 ? (unsigned)cpl : diff_seed(seed + i) >> 20 & 1 ? 3 : 0;
        t->id[t->n] = exhaustive ? i : seed + i;
        if (!make(t, c, exhaustive, t->id[t->n], seed, l))
            continue;
        if (++t->n == DIFF_BATCH) {
            flush(t);
            if (now() > until || t->mismatches > t->limit || t->cases >= t->max_cases)
                break;
            if (t->config->cfg.chaos || (i & 0x3f) == 0)
                mmu_flush_all(t->guest->f.v);
        }
    }
    flush(t);
    double took = now() - start;
    t->total += t->cases;
    printf("%-7s %-6s %-10s %9llu cases %9llu instructions in %5.1f s (%.0f cases/s), to the end "
           "%llu%%, "
           "mismatches %llu; ended by",
           t->config->name, t->bits == 64 ? "" : world_names[t->world],
           exhaustive ? "exhaustive" : "random", (unsigned long long)t->cases,
           (unsigned long long)t->insns, took, (double)t->cases / took,
           (unsigned long long)(t->cases ? t->ended[127] * 100 / t->cases : 0),
           (unsigned long long)(t->mismatches - bad));
    t->ended[EXC_GP] -= t->ended[127];
    for (unsigned i = 0; i < 127; i++)
        if (t->ended[i])
            printf(" %c%u:%llu", i < 32 ? '#' : 'x', i, (unsigned long long)t->ended[i]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const struct option opts[] = {{"exhaustive", 0, 0, 'e'},
                                         {"random", 0, 0, 'r'},
                                         {"seconds", 1, 0, 't'},
                                         {"seed", 1, 0, 's'},
                                         {"stride", 1, 0, 'n'},
                                         {"cpl", 1, 0, 'p'},
                                         {"config", 1, 0, 'c'},
                                         {"one", 1, 0, '1'},
                                         {"keep-going", 1, 0, 'k'},
                                         {"mode", 1, 0, 'm'},
                                         {"world", 1, 0, 'w'},
                                         {"cases", 1, 0, 'N'},
                                         {0}};
    bool exhaustive = false, random = false;
    double seconds = 40;
    uint64_t seed = 1, stride = 0, one = 0, limit = 5;
    int cpl = -1, o;
    unsigned bits = 64;
    uint64_t max_cases = ~0ull;
    const char *only = NULL, *only_world = NULL;
    while ((o = getopt_long(argc, argv, "", opts, NULL)) != -1) {
        switch (o) {
        case 'e':
            exhaustive = true;
            break;
        case 'r':
            random = true;
            break;
        case 't':
            seconds = atof(optarg);
            break;
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case 'n':
            stride = strtoull(optarg, NULL, 0);
            break;
        case 'p':
            cpl = atoi(optarg);
            break;
        case 'c':
            only = optarg;
            break;
        case '1':
            one = strtoull(optarg, NULL, 0);
            break;
        case 'k':
            limit = strtoull(optarg, NULL, 0);
            break;
        case 'm':
            bits = (unsigned)atoi(optarg);
            break;
        case 'w':
            only_world = optarg;
            break;
        case 'N':
            max_cases = strtoull(optarg, NULL, 0);
            break;
        default:
            return 2;
        }
    }
    if (bits != 64 && bits != 32 && bits != 16)
        return 2;
    diff_legacy = bits != 64;
    if (!exhaustive && !random)
        exhaustive = random = true;

    static struct diff_native native;
    static struct diff_guest guest;
    static struct run t;
    if (diff_native_start(&native)) {
        perror("diff_host");
        return 2;
    }
    unsigned n = 0, worlds = bits == 64 ? 1 : bits == 32 ? 2 : 4;
    for (unsigned i = 0; i < CONFIGS * worlds; i++)
        n += (!only || !strcmp(only, configs[i / worlds].name)) &&
             (!only_world || !strcmp(only_world, world_names[i % worlds]));
    double share = seconds / n / (exhaustive + random);
    max_cases = max_cases == ~0ull ? max_cases : max_cases / n / (exhaustive + random) + 1;
    for (unsigned k = 0; k < CONFIGS * worlds && t.mismatches <= limit; k++) {
        unsigned i = k / worlds;
        if ((only && strcmp(only, configs[i].name)) ||
            (only_world && strcmp(only_world, world_names[k % worlds])))
            continue;
        t.native = &native;
        t.guest = &guest;
        t.config = &configs[i];
        t.limit = limit;
        t.bits = bits;
        t.world = (enum diff_world)(k % worlds);
        t.max_cases = max_cases;
        diff_guest_start_in(&guest, &configs[i].cfg, t.world);
        guest.kicks = configs[i].kicks;
        if (one) {
            struct diff_case *c = &t.c[0];
            if (!make(&t, c, !random, one, seed, cpl == 3 ? 3 : 0))
                printf("no such instruction\n");
            print_code(c);
            printf("%d differences\n", run_one(&t, c, stdout));
        } else {
            if (exhaustive) /* as much of the table as the time allows, evenly */
                go(&t, true, share, seed + k,
                   stride ? stride : 1 + (uint64_t)((bits == 64 ? 400 : 100) / (share + 1)), cpl);
            if (random && t.mismatches <= limit)
                go(&t, false, share, seed * 1000003 + k * 7919, 1, cpl);
        }
        uint64_t rejected = ((const struct bt_engine *)guest.f.engine)->stats.rejected;
        if (rejected) {
            printf("%s: the verifier rejected %llu blocks\n", configs[i].name,
                   (unsigned long long)rejected);
            t.mismatches += rejected;
        }
        diff_guest_stop(&guest);
    }
    diff_native_stop(&native);
    printf("%llu cases, %llu mismatches\n", (unsigned long long)t.total,
           (unsigned long long)t.mismatches);
    return t.mismatches != 0;
}
