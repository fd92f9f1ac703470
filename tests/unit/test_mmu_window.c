/*
 * Windows: real accesses through them, the host's own list of mappings against ours, TLB semantics
 * of flushes under random operations, the VMA budget under scattered mappings.
 */
#include "mmu_fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include "mmu/window.h"

#define RWU  (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
#define USER 0x400000ull
#define KERN 0xffff888000000000ull

static struct window_space *ws;
static struct window_space ws_storage;

static struct window_key key_of(uint64_t gva, uint64_t pdpt)
{
    return (struct window_key){.pdpt_gpa = pdpt, .pml4_index = gva >> 39 & 511};
}

static void setup_with(uint64_t ram_size, struct window_config cfg)
{
    mmu_setup(ram_size);
    ws = &ws_storage;
    cr_assert_eq(window_space_init(ws, &ram, &cfg), 0);
}

static void setup(void)
{
    setup_with(64 * MB, (struct window_config){.max_windows = 8});
}

/* ---- What the host says -------------------------------------------------------------------- */

static sigjmp_buf escape;
static uint64_t fault_address;

static void on_segv(int sig, siginfo_t *info, void *context)
{
    fault_address = (uint64_t)info->si_addr;
    siglongjmp(escape, 1);
}

static void catch_faults(void)
{
    struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigaction(SIGSEGV, &sa, NULL);
}

/* -1 if it faults. */
static int load(struct window *w, uint64_t gva)
{
    if (sigsetjmp(escape, 0))
        return -1;
    return *(volatile uint8_t *)(gva + w->delta);
}

static int store(struct window *w, uint64_t gva, uint8_t value)
{
    if (sigsetjmp(escape, 0))
        return -1;
    *(volatile uint8_t *)(gva + w->delta) = value;
    return 0;
}

struct vma {
    uint64_t lo, hi, offset;
    char perms[5];
};

static bool next_expected(uint64_t *at, struct vma *out)
{
    struct window_run_info r;
    uint64_t arena_end = ws->arena + ws->arena_size;

    if (*at >= arena_end)
        return false;
    if (!window_next_run(ws, *at, &r) || r.hva > *at) {
        *out = (struct vma){*at, arena_end, 0, "---p"};
        if (window_next_run(ws, *at, &r))
            out->hi = r.hva;
        *at = out->hi;
        return true;
    }
    *out = (struct vma){r.hva, r.end, ram_file_offset(&ram, r.gpa), "r--s"};
    if (r.writable)
        out->perms[1] = 'w';
    *at = r.end;
    /* Runs are finer than VMAs: they differ in what the host does not know. */
    bool writable = r.writable;
    while (window_next_run(ws, *at, &r) && r.hva == *at && r.writable == writable &&
           ram_file_offset(&ram, r.gpa) == out->offset + (out->hi - out->lo))
        *at = out->hi = r.end;
    return true;
}

/* Compares /proc/self/maps within the arena with our runs; returns the number of VMAs there. */
static unsigned check_host_mappings(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    uint64_t at = ws->arena;
    char line[512];
    unsigned n = 0;

    cr_assert_not_null(f);
    while (fgets(line, sizeof line, f)) {
        struct vma v1, want;
        cr_assert_eq(sscanf(line, "%lx-%lx %4s %lx", &v1.lo, &v1.hi, v1.perms, &v1.offset), 4);
        if (v1.hi <= ws->arena || v1.lo >= ws->arena + ws->arena_size)
            continue;
        /* The reservation may have merged with a neighbour outside. */
        v1.lo = v1.lo < ws->arena ? ws->arena : v1.lo;
        v1.hi = v1.hi > ws->arena + ws->arena_size ? ws->arena + ws->arena_size : v1.hi;
        cr_assert(next_expected(&at, &want), "the host has more: %s", line);
        cr_assert_eq(v1.lo, want.lo, "%s instead of %lx-%lx", line, want.lo, want.hi);
        cr_assert_eq(v1.hi, want.hi, "%s instead of %lx-%lx", line, want.lo, want.hi);
        cr_assert_eq(strcmp(v1.perms, want.perms), 0, "%s instead of %s", line, want.perms);
        if (want.perms[0] == 'r')
            cr_assert_eq(v1.offset, want.offset);
        n++;
    }
    fclose(f);
    cr_assert(!next_expected(&at, &(struct vma){0}));
    cr_assert_leq(n, window_vmas(ws), "the count of VMAs is not conservative");
    return n;
}

/* ---- Basics -------------------------------------------------------------------------------- */

static struct window_pte pte_of(uint64_t gpa, unsigned shift, bool writable)
{
    return (struct window_pte){
        .gpa = gpa, .shift = (uint8_t)shift, .valid = true, .writable = writable};
}

static int install(struct window *w, uint64_t gva, struct window_pte pte)
{
    return window_install(ws, w, gva, &pte, NULL, NULL);
}

Test(window, maps_pages)
{
    setup();
    catch_faults();
    struct window_key key = key_of(USER, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    cr_assert_eq(w->delta + (USER & ~(WINDOW_SIZE - 1)), w->base);
    cr_expect_eq(load(w, USER), -1);
    cr_expect_eq(fault_address, USER + w->delta);

    cr_assert_eq(install(w, USER + 0x123, pte_of(0x10000, 12, true)), 0);
    ram.base[0x10042] = 99;
    cr_expect_eq(load(w, USER + 0x42), 99);
    cr_expect_eq(store(w, USER + 0x43, 98), 0);
    cr_expect_eq(ram.base[0x10043], 98);
    cr_expect_eq(load(w, USER - 1), -1);
    cr_expect_eq(load(w, USER + 0x1000), -1);
    cr_expect(window_mapped(ws, w, USER + 0xfff, true));
    cr_expect(!window_mapped(ws, w, USER + 0x1000, false));
    cr_expect_eq(check_host_mappings(), 3);
    cr_expect_eq(window_vmas(ws), 3);

    cr_assert_eq(install(w, USER + 0x1000, pte_of(0x20000, 12, false)), 0);
    cr_expect_eq(load(w, USER + 0x1000), ram.base[0x20000]);
    cr_expect_eq(store(w, USER + 0x1000, 1), -1);
    cr_expect(!window_mapped(ws, w, USER + 0x1000, true));
    cr_expect_eq(window_vmas(ws), 4);
    /* The neighbour that continues the first page merges with it. */
    cr_assert_eq(install(w, USER - 0x1000, pte_of(0xf000, 12, true)), 0);
    cr_expect_eq(check_host_mappings(), 4);
    cr_expect_eq(window_vmas(ws), 4);

    uint64_t gva;
    cr_expect_eq(window_of_hva(ws, USER + w->delta + 5, &gva), w);
    cr_expect_eq(gva, USER + 5);
    cr_expect_null(window_of_hva(ws, w->base - 1, &gva));
    cr_expect_null(window_of_hva(ws, w->base + WINDOW_SIZE, &gva));
    cr_expect_null(window_of_hva(ws, (uint64_t)&gva, &gva));
    window_space_destroy(ws);
}

Test(window, kernel_half_and_edges)
{
    setup();
    catch_faults();
    for (unsigned slot = 0; slot < 512; slot += 511) {
        struct window_key key = {.pdpt_gpa = 0x6000, .pml4_index = (uint16_t)slot};
        struct window *w = window_get(ws, &key, NULL);
        uint64_t first = slot ? 0xffffff8000000000ull : 0, last = first + WINDOW_SIZE - 4096;
        cr_assert_eq(install(w, first, pte_of(0x10000, 12, true)), 0);
        cr_assert_eq(install(w, last, pte_of(0x11000, 12, true)), 0);
        cr_expect_eq(store(w, first, 1), 0);
        cr_expect_eq(store(w, last + 0xfff, 2), 0);
        cr_expect_eq(load(w, last + 0x1000), -1, "guard");
        cr_expect_eq(load(w, last + 0x1000 + WINDOW_GUARD - 1), -1);
        cr_expect_eq(load(w, first - 1), -1);
        cr_expect_eq(load(w, first - WINDOW_GUARD), -1);
        cr_expect_eq(install(w, last + 0x1000, pte_of(0x11000, 12, true)), -EFAULT);
        cr_expect_eq(install(w, first - 1, pte_of(0x11000, 12, true)), -EFAULT);
    }
    check_host_mappings();
}

Test(window, refuses_what_is_not_ram)
{
    setup();
    struct window_key key = key_of(USER, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    cr_expect_eq(install(w, USER, pte_of(64 * MB, 12, true)), -EFAULT);
    cr_expect_eq(install(w, USER, pte_of(0xfee00000, 12, true)), -EFAULT);
    cr_expect_eq(install(w, USER, pte_of(~0xfffull, 12, true)), -EFAULT);
    cr_expect_eq(install(w, USER, (struct window_pte){.gpa = 0x1000, .shift = 12}), -EFAULT);
    cr_expect_eq(install(w, USER + 0x1000, pte_of(0x200000, 21, true)), -EFAULT, "offsets differ");
    cr_expect_eq(ws->runs, 0);
}

Test(window, big_pages)
{
    setup();
    catch_faults();
    struct window_key key = key_of(KERN, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    /* 1G over 64M of RAM: what is RAM of it, in one mapping. */
    cr_assert_eq(install(w, KERN + 0x5000, pte_of(0x5000, 30, true)), 0);
    cr_expect_eq(ws->runs, 1);
    cr_expect_eq(ws->stats.installs, 1);
    ram.base[64 * MB - 1] = 5;
    cr_expect_eq(load(w, KERN + 64 * MB - 1), 5);
    cr_expect_eq(load(w, KERN + 64 * MB), -1);
    /* Another 2M page elsewhere. */
    cr_assert_eq(install(w, KERN + 4 * GB + 0x3000, pte_of(0x403000, 21, false)), 0);
    cr_expect_eq(load(w, KERN + 4 * GB), ram.base[0x400000]);
    cr_expect_eq(load(w, KERN + 4 * GB + 2 * MB - 1), ram.base[0x5fffff]);
    cr_expect_eq(load(w, KERN + 4 * GB + 2 * MB), -1);
    check_host_mappings();
    /* INVLPG of any address of a page drops all of it and nothing else. */
    window_flush_page(ws, w, KERN + 4 * GB + 2 * MB - 1, NULL, NULL);
    cr_expect_eq(load(w, KERN + 4 * GB), -1);
    cr_expect_eq(load(w, KERN + 0x5000), ram.base[0x5000]);
    window_flush_page(ws, w, KERN + GB - 1, NULL, NULL);
    cr_expect_eq(load(w, KERN + 0x5000), -1);
    cr_expect_eq(ws->runs, 0);
    cr_expect_eq(window_vmas(ws), 1);
    check_host_mappings();
}

Test(window, ram_above_the_hole)
{
    setup_with(RAM_LOW_MAX + 64 * MB, (struct window_config){.max_windows = 4});
    catch_faults();
    struct window_key key = key_of(KERN, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    cr_assert_eq(install(w, KERN + RAM_HIGH_BASE, pte_of(RAM_HIGH_BASE, 30, true)), 0);
    cr_assert_eq(install(w, KERN + RAM_LOW_MAX - GB, pte_of(RAM_LOW_MAX - GB, 30, true)), 0);
    cr_expect_eq(store(w, KERN + RAM_HIGH_BASE + 7, 77), 0);
    cr_expect_eq(ram.base[RAM_HIGH_BASE + 7], 77);
    cr_expect_eq(store(w, KERN + RAM_LOW_MAX - 1, 78), 0);
    cr_expect_eq(ram.base[RAM_LOW_MAX - 1], 78);
    cr_expect_eq(load(w, KERN + RAM_LOW_MAX), -1);
    cr_expect_eq(load(w, KERN + RAM_HIGH_BASE + 64 * MB), -1);
    check_host_mappings();
}

Test(window, code_pages)
{
    setup();
    catch_faults();
    struct window_key key = key_of(KERN, 0x5000), user = key_of(USER, 0x7000);
    struct window *k = window_get(ws, &key, NULL), *u = window_get(ws, &user, NULL);
    cr_assert_eq(install(k, KERN, pte_of(0, 30, true)), 0);
    cr_assert_eq(install(u, USER, pte_of(0x10000, 12, true)), 0);
    cr_assert_eq(install(u, USER + 0x5000, pte_of(0x10000, 12, true)), 0);
    cr_assert_eq(install(u, USER + 0x6000, pte_of(0x11000, 12, true)), 0);

    ram.page_flags[0x10] |= RAM_PAGE_CODE;
    window_protect_gpa(ws, 0x10abc);
    cr_expect_eq(ws->stats.protects, 3);
    cr_expect_eq(store(k, KERN + 0x10000, 1), -1);
    cr_expect_eq(store(u, USER, 1), -1);
    cr_expect_eq(store(u, USER + 0x5000, 1), -1);
    cr_expect_geq(load(k, KERN + 0x10000), 0);
    cr_expect_eq(store(k, KERN + 0xffff, 1), 0);
    cr_expect_eq(store(k, KERN + 0x11000, 1), 0);
    cr_expect_eq(store(u, USER + 0x6000, 1), 0);
    check_host_mappings();
    window_protect_gpa(ws, 0x10000);
    cr_expect_eq(ws->stats.protects, 3, "nothing left to do");

    /* Installing again does not make it writable, and keeps to one kind of page. */
    cr_assert_eq(install(k, KERN + 0x10000, pte_of(0x10000, 30, true)), 0);
    cr_assert_eq(install(u, USER, pte_of(0x10000, 12, true)), 0);
    cr_expect_eq(store(k, KERN + 0x10000, 1), -1);
    cr_expect_eq(store(u, USER, 1), -1);
    check_host_mappings();

    /* The code is gone: the next write fault makes it writable, here only. */
    ram.page_flags[0x10] = 0;
    uint64_t installs = ws->stats.installs;
    cr_assert_eq(install(k, KERN + 0x10000, pte_of(0x10000, 30, true)), 0);
    cr_expect_eq(ws->stats.installs, installs, "by mprotect");
    cr_expect_eq(store(k, KERN + 0x10000, 1), 0);
    cr_expect_eq(store(u, USER, 1), -1);
    cr_expect_eq(check_host_mappings(), window_vmas(ws));

    /* A big page that holds code from the start. */
    window_flush(ws, k, false, NULL, NULL);
    for (unsigned page = 0x100; page < 0x120; page += 3)
        ram.page_flags[page] |= RAM_PAGE_CODE;
    for (unsigned page = 0x80; page < 0x180; page++) {
        cr_assert_eq(install(k, KERN + page * 4096, pte_of(page * 4096, 30, true)), 0);
        cr_assert_eq(window_mapped(ws, k, KERN + page * 4096, true), !ram.page_flags[page]);
        cr_assert(window_mapped(ws, k, KERN + page * 4096, false));
    }
    check_host_mappings();
}

/* ---- Windows and their keys ----------------------------------------------------------------- */

static struct window *released[16];
static unsigned release_count;

static void on_release(void *opaque, struct window *w)
{
    cr_assert_eq(opaque, &release_count);
    released[release_count++ % 16] = w;
}

Test(window, lru_of_host_ranges)
{
    setup_with(64 * MB, (struct window_config){
                            .max_windows = 4, .released = on_release, .opaque = &release_count});
    struct window *w[5];
    struct window_key key[6];
    for (unsigned i = 0; i < 6; i++)
        key[i] = key_of(USER, 0x5000 + i * 0x1000);
    for (unsigned i = 0; i < 4; i++) {
        w[i] = window_get(ws, &key[i], NULL);
        cr_assert_eq(install(w[i], USER, pte_of(0x10000, 12, true)), 0);
    }
    cr_expect_eq(window_lookup(ws, &key[0]), w[0]);
    cr_expect_null(window_lookup(ws, &key[4]));
    struct window_key tagged = key[0];
    tagged.tag = 1;
    cr_expect_null(window_lookup(ws, &tagged));
    cr_expect_eq(window_get(ws, &key[2], NULL), w[2]);
    cr_expect_eq(release_count, 0);
    w[4] = window_get(ws, &key[4], NULL);
    cr_expect_eq(w[4], w[1], "the least recently used one");
    cr_expect_eq(release_count, 1);
    cr_expect_eq(released[0], w[1]);
    cr_expect_eq(w[4]->runs, 0);
    cr_expect_null(window_lookup(ws, &key[1]));
    cr_expect_eq(window_get(ws, &key[5], w[3]), w[0], "w[3] is kept");
    check_host_mappings();
}

Test(window, init_refusals)
{
    struct window_space s;
    struct window_config odd = {.around_pages = 3};
    struct rlimit lim = {1ull << 40, 1ull << 40};

    if (UNDER_ASAN)
        cr_skip("address space limit");
    mmu_setup(MB);
    cr_expect_eq(window_space_init(&s, &ram, &odd), -EINVAL);
    /* Too little address space for even a few windows. */
    setrlimit(RLIMIT_AS, &lim);
    cr_expect_eq(window_space_init(&s, &ram, &(struct window_config){0}), -ENOMEM);
    cr_expect_null(s.pool);
}

Test(window, fewer_windows_if_the_host_refuses)
{
    struct window_space s;
    struct rlimit lim = {16ull << 40, 16ull << 40};

    if (UNDER_ASAN)
        cr_skip("address space limit");
    mmu_setup(MB);
    setrlimit(RLIMIT_AS, &lim);
    cr_assert_eq(window_space_init(&s, &ram, &(struct window_config){.max_windows = 96}), 0);
    cr_expect_eq(s.count, 24);
    window_space_destroy(&s);
}

/* ---- Against the guest's real tables -------------------------------------------------------- */

Test(window, probe_vcpu)
{
    struct window_pte p;

    setup();
    map_page(USER, 0x10000, RWU, 1);
    for (unsigned l = 2; l <= 4; l++)
        *entry_of(USER, l) |= PTE_A;
    window_probe_vcpu(v, USER + 0x123, &p);
    cr_expect(p.valid && p.writable && !p.global);
    cr_expect_eq(p.gpa, 0x10000);
    *entry_of(USER, 1) = 0x10000 | (RWU & ~PTE_D);
    window_probe_vcpu(v, USER, &p);
    cr_expect(p.valid && !p.writable, "a write must come by to set D");
    *entry_of(USER, 1) = 0x10000 | (RWU & ~PTE_A);
    window_probe_vcpu(v, USER, &p);
    cr_expect(!p.valid, "an access must come by to set A");
    *entry_of(USER, 1) = 0x10000 | (RWU & ~PTE_RW);
    window_probe_vcpu(v, USER, &p);
    cr_expect(p.valid && !p.writable);
    v->cr0 &= ~(uint64_t)CR0_WP;
    window_probe_vcpu(v, USER, &p);
    cr_expect(p.valid && !p.writable, "whatever WP says, the user may not write");
    *entry_of(USER, 1) = 0x10000 | (RWU & ~PTE_US);
    window_probe_vcpu(v, USER, &p);
    cr_expect(!p.valid, "a supervisor page in the user half");
    *entry_of(USER, 1) = 0x10000 | RWU;
    *entry_of(USER, 3) &= ~PTE_A;
    window_probe_vcpu(v, USER, &p);
    cr_expect(!p.valid, "A of an upper level");
    map_page(KERN, 0x200000, RWU | PTE_G, 2);
    for (unsigned l = 3; l <= 4; l++)
        *entry_of(KERN, l) |= PTE_A;
    window_probe_vcpu(v, KERN + 0x5678, &p);
    cr_expect(!p.valid, "a user page in the kernel half");
    *entry_of(KERN, 2) &= ~PTE_US;
    window_probe_vcpu(v, KERN + 0x5678, &p);
    cr_expect(p.valid && p.writable && p.global);
    cr_expect_eq(p.gpa, 0x205000);
    cr_expect_eq(p.shift, 21);
}

Test(window, fault_around)
{
    setup();
    for (unsigned i = 0; i < 64; i++) /* 0x400000.. : contiguous but for page 20, old page 25 */
        map_page(USER + i * 4096, 0x100000 + (i == 20 ? 0x80000 : 0) + i * 4096,
                 i == 25 ? RWU & ~PTE_A : RWU, 1);
    for (unsigned l = 2; l <= 4; l++)
        *entry_of(USER, l) |= PTE_A;
    struct window_key key = key_of(USER, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    struct window_pte p;
    window_probe_vcpu(v, USER + 22 * 4096, &p);
    cr_assert_eq(window_install(ws, w, USER + 22 * 4096, &p, window_probe_vcpu, v), 0);
    for (unsigned i = 0; i < 64; i++)
        cr_expect_eq(window_mapped(ws, w, USER + i * 4096, true), i >= 21 && i <= 24, "page %u", i);
    window_probe_vcpu(v, USER + 32 * 4096, &p);
    cr_assert_eq(window_install(ws, w, USER + 32 * 4096, &p, window_probe_vcpu, v), 0);
    for (unsigned i = 26; i < 64; i++)
        cr_expect_eq(window_mapped(ws, w, USER + i * 4096, true), i >= 32 && i <= 47, "page %u", i);
    cr_expect_eq(ws->stats.installs, 2);
    check_host_mappings();
}

/* After a flush that goes by what the prober remembers, all that is mapped is what the tables say, whatever
 * bit of them has changed, on whatever level, and whatever mode the processor is in. */
Test(window, random_flush_against_walk)
{
    static const uint64_t bits[] = {PTE_P, PTE_RW, PTE_US, PTE_A, PTE_D, PTE_G, PTE_XD, 1ull << 12,
                                    1ull << 21, 1ull << 39, 1ull << 41, 1ull << 51, 1ull << 58};
    enum { PAGES = 600 }; /* over two of the last level's tables */

    for (unsigned half = 0; half < 2; half++) {
        uint64_t base = half ? KERN : USER + 300 * 4096;
        unsigned checked = 0;
        setup();
        struct window_key key = key_of(base, 0x5000);
        struct window *w = window_get(ws, &key, NULL);
        for (unsigned round = 0; round < 600; round++) {
            uint64_t flags = PTE_P | PTE_A | PTE_RW | PTE_D | (half ? 0 : PTE_US);
            for (unsigned i = 0; i < (round % 20 ? 3 : PAGES); i++) {
                uint64_t n = round % 20 ? rnd() % PAGES : i;
                map_page(base + n * 4096, 0x400000 + n * 4096 + (rnd() % 8 ? 0 : 0x800000),
                         flags | (rnd() % 4 ? 0 : PTE_G), 1);
            }
            for (unsigned l = 2; l <= 4; l++)
                for (unsigned i = 0; i < 2; i++) {
                    uint64_t *e = entry_of(base + i * (PAGES - 1) * 4096, l);
                    *e = (*e | RWU) & ~(PTE_D | PTE_XD | (half && l == 2 ? PTE_US : 0));
                }
            v->cr4 |= CR4_PGE;
            v->efer |= EFER_NX;
            for (unsigned i = 0; i < (round % 20 ? 40u : 400u); i++) {
                uint64_t gva = base + rnd() % PAGES * 4096;
                struct window_pte p;
                window_probe_vcpu(v, gva, &p);
                if (p.valid && p.gpa < 64 * MB)
                    cr_assert_eq(window_install(ws, w, gva, &p, window_probe_vcpu, v), 0);
            }
            for (unsigned i = rnd() % 30; i; i--)
                *entry_of(base + rnd() % PAGES * 4096, 1) ^= bits[rnd() % (sizeof bits / 8)];
            if (rnd() % 4 == 0) /* not what would lead to other tables */
                *entry_of(base + rnd() % PAGES * 4096, 2 + rnd() % 3) ^= bits[1 + rnd() % 3];
            if (rnd() % 8 == 0)
                v->cr4 ^= CR4_PGE;
            if (rnd() % 8 == 0)
                v->efer ^= EFER_NX;
            struct window_prober prober = {.vcpu = v};
            window_flush(ws, w, false, window_probe_near, &prober);

            struct window_run_info r;
            for (uint64_t at = 0; window_next_run(ws, at, &r); at = r.end)
                for (uint64_t hva = r.hva; hva < r.end; hva += 4096) {
                    struct window_pte p;
                    window_probe_vcpu(v, hva - w->delta, &p);
                    checked++;
                    cr_assert(p.valid, "round %u, page %#lx", round, hva - w->delta);
                    cr_assert_eq(p.gpa, r.gpa + (hva - r.hva));
                    cr_assert(p.writable || !r.writable);
                    cr_assert_eq(p.global, r.global);
                }
        }
        cr_expect_gt(checked, 20000, "%u", checked);
        window_space_destroy(ws);
        ram_destroy(&ram);
    }
}

Test(window, revalidation)
{
    setup();
    catch_faults();
    for (unsigned i = 0; i < 400; i++)
        map_page(USER + i * 4096, 0x400000 + i * 8192, RWU, 1);
    for (unsigned l = 2; l <= 4; l++)
        *entry_of(USER, l) |= PTE_A;
    struct window_key key = key_of(USER, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    for (unsigned i = 0; i < 400; i++) {
        struct window_pte p;
        window_probe_vcpu(v, USER + i * 4096, &p);
        cr_assert_eq(window_install(ws, w, USER + i * 4096, &p, window_probe_vcpu, v), 0);
    }
    /* Nothing changed: no system call. */
    struct window_stats before = ws->stats;
    window_flush(ws, w, false, window_probe_vcpu, v);
    cr_expect_eq(ws->stats.unmaps, before.unmaps);
    cr_expect_eq(ws->stats.installs, before.installs);
    cr_expect_eq(ws->stats.kept - before.kept, 400);
    struct window_prober prober = {.vcpu = v};
    before = ws->stats;
    window_flush(ws, w, false, window_probe_near, &prober);
    cr_expect_eq(ws->stats.kept - before.kept, 400);
    cr_expect_eq(ws->stats.probes - before.probes, 1, "the rest by the last level's table");
    cr_expect_eq(load(w, USER + 7 * 4096), ram.base[0x400000 + 7 * 8192]);

    /* What is kept between two pages that go, or is global, is not touched. */
    *entry_of(USER + 10 * 4096, 1) = 0;
    *entry_of(USER + 12 * 4096, 1) = 0;
    window_flush(ws, w, false, window_probe_vcpu, v);
    for (unsigned i = 9; i <= 13; i++)
        cr_expect_eq(window_mapped(ws, w, USER + i * 4096, false), i != 10 && i != 12);

    /* A stretch goes, one page moves, one becomes read-only (fork), one is not accessed any more.
     */
    for (unsigned i = 100; i < 200; i++)
        *entry_of(USER + i * 4096, 1) = 0;
    *entry_of(USER + 250 * 4096, 1) = 0x3000000 | RWU;
    *entry_of(USER + 251 * 4096, 1) &= ~PTE_RW;
    *entry_of(USER + 300 * 4096, 1) &= ~PTE_A;
    cr_expect_eq(load(w, USER + 150 * 4096), ram.base[0x400000 + 150 * 8192],
                 "stale until flushed");
    before = ws->stats;
    window_flush(ws, w, false, window_probe_vcpu, v);
    cr_expect_eq(ws->stats.unmaps - before.unmaps, 2);
    cr_expect_eq(ws->stats.remaps - before.remaps, 1);
    cr_expect_eq(ws->stats.downgrades - before.downgrades, 1);
    cr_expect_eq(load(w, USER + 150 * 4096), -1);
    ram.base[0x3000000] = 42;
    cr_expect_eq(load(w, USER + 250 * 4096), 42);
    cr_expect_eq(store(w, USER + 250 * 4096, 43), 0);
    cr_expect_eq(store(w, USER + 251 * 4096, 43), -1);
    cr_expect_geq(load(w, USER + 251 * 4096), 0);
    cr_expect_eq(load(w, USER + 300 * 4096), -1);
    check_host_mappings();

    /* All of it goes, scattered as it is: one call. */
    for (unsigned i = 0; i < 400; i++)
        *entry_of(USER + i * 4096, 1) = 0;
    before = ws->stats;
    window_flush(ws, w, false, window_probe_vcpu, v);
    cr_expect_eq(ws->stats.unmaps - before.unmaps, 1);
    cr_expect_eq(ws->runs, 0);
    check_host_mappings();
}

Test(window, global_pages)
{
    setup();
    struct window_key key = key_of(KERN, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    for (unsigned i = 0; i < 10; i++) {
        struct window_pte p = pte_of(0x100000 + i * 8192, 12, true);
        p.global = i % 5;
        cr_assert_eq(install(w, KERN + i * 4096, p), 0);
    }
    window_flush(ws, w, true, NULL, NULL);
    for (unsigned i = 0; i < 10; i++)
        cr_expect_eq(window_mapped(ws, w, KERN + i * 4096, true), i % 5 != 0);
    check_host_mappings();
    window_flush(ws, w, false, NULL, NULL);
    cr_expect_eq(ws->runs, 0);
}

/* ---- Random operations against a model of a TLB --------------------------------------------- */

#define AREAS   4
#define PAGES   (AREAS * 512)
#define HISTORY 6

/* All a TLB may still say of a page: what its PTE was at some time since the last flush. */
static struct model_page {
    struct window_pte now;
    struct window_pte seen[HISTORY];
    unsigned n;
} model[2][PAGES];
static uint64_t slot_gva[2] = {USER, KERN};
static struct window *slot_window[2];

static bool equal(const struct window_pte *a, const struct window_pte *b)
{
    return a->valid == b->valid && a->gpa == b->gpa && a->shift == b->shift &&
           a->writable == b->writable && a->global == b->global;
}

static void model_probe(void *opaque, uint64_t gva, struct window_pte *out)
{
    unsigned s = gva >> 63;
    uint64_t page = (gva - slot_gva[s]) >> 12;

    *out = page < PAGES ? model[s][page].now : (struct window_pte){.valid = false};
}

static void forget_seen(struct model_page *m, bool (*drop)(const struct window_pte *))
{
    unsigned n = 0;

    for (unsigned i = 0; i < m->n; i++)
        if (!drop(&m->seen[i]) || equal(&m->seen[i], &m->now))
            m->seen[n++] = m->seen[i];
    m->n = n;
}

static bool any(const struct window_pte *p)
{
    return true;
}
static bool is_big(const struct window_pte *p)
{
    return p->shift > 12;
}
static bool is_local(const struct window_pte *p)
{
    return !p->global;
}

static void model_flush_page(unsigned s, unsigned page)
{
    forget_seen(&model[s][page], any);
    for (unsigned i = page & ~511u; i <= (page | 511); i++)
        forget_seen(&model[s][i], is_big);
}

static void flush_page(unsigned s, unsigned page, bool probe)
{
    window_flush_page(ws, slot_window[s], slot_gva[s] + page * 4096ull + (rnd() & 0xfff),
                      probe ? model_probe : NULL, NULL);
    model_flush_page(s, page);
}

static void model_set(unsigned s, unsigned page, struct window_pte p)
{
    struct model_page *m = &model[s][page];

    if (m->n == HISTORY)
        flush_page(s, page, rnd() & 1);
    cr_assert_lt(m->n, HISTORY);
    m->now = p;
    m->seen[m->n++] = p;
}

static void check_model(void)
{
    for (unsigned s = 0; s < 2; s++)
        for (unsigned page = 0; page < PAGES; page++) {
            uint64_t hva = slot_gva[s] + page * 4096ull + slot_window[s]->delta;
            struct window_run_info r;
            if (!window_next_run(ws, hva, &r) || r.hva > hva)
                continue;
            uint64_t gpa = r.gpa + (hva - r.hva);
            bool allowed = false;
            for (unsigned i = 0; i < model[s][page].n; i++) {
                struct window_pte *p = &model[s][page].seen[i];
                allowed |= p->valid && p->gpa == gpa && p->shift == r.shift &&
                           p->global == r.global && (p->writable || !r.writable);
            }
            cr_assert(allowed, "slot %u page %u: gpa %lx shift %u w %d g %d is not in the history",
                      s, page, gpa, r.shift, r.writable, r.global);
            cr_assert(!r.writable || !(ram.page_flags[gpa >> 12] & RAM_PAGE_CODE));
        }
    cr_assert_leq(window_vmas(ws), ws->cfg.vma_budget);
}

static void random_pte_change(unsigned s)
{
    unsigned page = (unsigned)(rnd() % PAGES);
    struct window_pte p = {
        .shift = 12, .valid = true, .writable = rnd() % 4, .global = s && rnd() % 4};

    if (rnd() % 40 == 0) { /* a 2M page, often right where its 4K pages are */
        uint64_t base = (rnd() % 32) << 21;
        p.shift = 21;
        for (unsigned i = 0; i < 512; i++) {
            p.gpa = base + i * 4096;
            model_set(s, (page & ~511u) + i, p);
        }
        return;
    }
    if (rnd() % 40 == 0) { /* an area of 4K pages, contiguous or not */
        bool contiguous = rnd() & 1;
        uint64_t base = model[s][page & ~511u].now.gpa & ~0x1fffffull;
        for (unsigned i = 0; i < 512; i++) {
            p.gpa = contiguous ? base + i * 4096 : (rnd() % 16384) << 12;
            model_set(s, (page & ~511u) + i, p);
        }
        return;
    }
    if (model[s][page].now.shift == 21)
        return;
    p.gpa = rnd() & 1 ? (rnd() % 16384) << 12
                      : (model[s][page ? page - 1 : 0].now.gpa + 4096) % (64 * MB);
    if (rnd() % 8 == 0)
        p = (struct window_pte){.shift = 12, .valid = false};
    model_set(s, page, p);
}

static void random_operations(unsigned budget, unsigned rounds)
{
    setup_with(64 * MB, (struct window_config){.max_windows = 4, .vma_budget = budget});
    for (unsigned s = 0; s < 2; s++) {
        struct window_key key = key_of(slot_gva[s], 0x5000);
        slot_window[s] = window_get(ws, &key, NULL);
        for (unsigned i = 0; i < PAGES; i++) {
            model[s][i].now = (struct window_pte){.shift = 12, .valid = false};
            model[s][i].seen[0] = model[s][i].now;
            model[s][i].n = 1;
        }
    }
    for (unsigned n = 0; n < rounds; n++) {
        unsigned s = rnd() & 1, page = (unsigned)(rnd() % PAGES);
        switch (rnd() % 16) {
        case 0:
        case 1:
            random_pte_change(s);
            break;
        case 2:
            flush_page(s, page, rnd() & 1);
            break;
        case 3: {
            uint64_t gpa = (rnd() % 16384) << 12;
            if (model[s][page].now.valid && rnd() & 1)
                gpa = model[s][page].now.gpa;
            ram.page_flags[gpa >> 12] |= RAM_PAGE_CODE;
            window_protect_gpa(ws, gpa + 5);
            break;
        }
        case 4: {
            uint64_t gpa = model[s][page].now.gpa;
            ram.page_flags[gpa >> 12] = 0;
            break;
        }
        case 5:
            if (rnd() % 50 == 0) {
                bool keep_global = rnd() & 1;
                window_flush(ws, slot_window[s], keep_global, rnd() % 4 ? model_probe : NULL, NULL);
                for (unsigned i = 0; i < PAGES; i++)
                    forget_seen(&model[s][i], keep_global ? is_local : any);
            }
            break;
        default: {
            struct window_pte p = model[s][page].now;
            uint64_t gva = slot_gva[s] + page * 4096ull;
            int err =
                window_install(ws, slot_window[s], gva, &p, rnd() & 1 ? model_probe : NULL, NULL);
            cr_assert_eq(err, p.valid ? 0 : -EFAULT);
            if (p.valid) {
                cr_assert(window_mapped(ws, slot_window[s], gva, false));
                cr_assert_eq(window_mapped(ws, slot_window[s], gva, true),
                             p.writable && !(ram.page_flags[p.gpa >> 12] & RAM_PAGE_CODE));
            }
        }
        }
        if (n % 64 == 0)
            check_model();
        if (n % 1024 == 0)
            check_host_mappings();
    }
    cr_expect_eq(ws->stats.resets, 0);
    fprintf(stderr,
            "  %u operations: %lu installs of %lu pages, %lu unmaps, %lu remaps, %lu protects, "
            "%lu of %lu kept, %lu + %lu evictions, peak %u VMAs of %u\n",
            rounds, ws->stats.installs, ws->stats.installed_pages, ws->stats.unmaps,
            ws->stats.remaps, ws->stats.protects, ws->stats.kept, ws->stats.probes,
            ws->stats.window_evictions, ws->stats.partial_evictions, ws->stats.vmas_peak, budget);
}

Test(window, random_ample)
{
    random_operations(20000, 200000);
}
Test(window, random_tight)
{
    random_operations(200, 200000);
}
Test(window, random_tiny)
{
    random_operations(32, 50000);
}

/* ---- The budget under scattered pages; times ------------------------------------------------ */

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static unsigned host_vmas(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    unsigned n = 0;

    for (int c; (c = getc(f)) != EOF;)
        n += c == '\n';
    fclose(f);
    return n;
}

/* RINGSHIFT_STRESS_PAGES overrides the number of pages. */
Test(window, scattered_pages, .timeout = 120)
{
    const char *env = getenv("RINGSHIFT_STRESS_PAGES");
    unsigned pages = env ? (unsigned)atoi(env) : 120000;

    setup_with(256 * MB, (struct window_config){.max_windows = 16});
    catch_faults();
    struct window *w[16];
    for (unsigned i = 0; i < 16; i++) {
        struct window_key key = key_of((uint64_t)i << 39, 0x5000);
        w[i] = window_get(ws, &key, NULL);
    }
    double start = now_us();
    unsigned most = 0;
    for (unsigned n = 0; n < pages; n++) {
        /* First all in one window, then over all of them. */
        unsigned i = n < pages / 2 ? 0 : (unsigned)(rnd() % 16);
        uint64_t gva = ((uint64_t)i << 39) + (rnd() % (1 << 27) << 12);
        uint64_t gpa = rnd() % 65536 << 12;
        cr_assert_eq(install(w[i], gva, pte_of(gpa, 12, true)), 0);
        if (n % 64 == 0) {
            *(uint64_t *)(ram.base + gpa) = n;
            cr_assert_eq(load(w[i], gva), n & 0xff);
        }
        cr_assert_leq(window_vmas(ws), ws->cfg.vma_budget);
        if (n % 20000 == 19999) {
            unsigned host = host_vmas();
            most = host > most ? host : most;
            cr_assert_eq(check_host_mappings(), window_vmas(ws));
        }
    }
    double us = now_us() - start;
    fprintf(stderr,
            "  %u scattered pages: %.2f us each with evictions (%lu partial, %lu whole), peak %u "
            "VMAs, %u of the process\n",
            pages, us / pages, ws->stats.partial_evictions, ws->stats.window_evictions,
            ws->stats.vmas_peak, most);
    cr_expect_eq(ws->stats.resets, 0);
    cr_expect_gt(ws->stats.partial_evictions, 0);
    cr_expect_gt(ws->stats.window_evictions, 0);
}

/* The host refuses: everything is dropped, nothing breaks, the arena stays reserved. */
Test(window, host_refuses, .timeout = 60)
{
    setup_with(64 * MB, (struct window_config){.max_windows = 4, .vma_budget = 1000000});
    struct window_key key = key_of(USER, 0x5000);
    struct window *w = window_get(ws, &key, NULL);
    unsigned refused = 0;

    /* More than vm.max_map_count allows, several times, from different distances to the limit. */
    for (unsigned n = 0; n < 300000; n++) {
        int err = install(w, n % 100000 * 0x200000ull, pte_of(rnd() % 16384 << 12, 12, true));
        cr_assert(err == 0 || err == -ENOMEM);
        refused += err != 0;
        cr_assert(!ws->failed, "at %u, refused %u times", n, refused);
        if (err)
            cr_assert_neq(mmap((void *)(uintptr_t)(0x10000 + refused * 8192), 4096, PROT_READ,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
                          MAP_FAILED);
    }
    cr_expect_gt(refused, 4);
    cr_expect_eq(ws->stats.resets, refused);
    check_host_mappings();
}

Test(window, times)
{
    enum { N = 4000 };
    double t[10];
    struct window_pte p;
    uint8_t sum = 0;

    setup_with(64 * MB, (struct window_config){.max_windows = 4});
    memset(ram.base + 16 * MB, 1, N * 8192ull);
    for (unsigned i = 0; i < N; i++)
        map_page(USER + i * 4096, 16 * MB + i * 8192, RWU, 1);
    *entry_of(USER, 4) |= PTE_A;
    *entry_of(USER, 3) |= PTE_A;
    for (unsigned i = 0; i < N; i += 512)
        *entry_of(USER + i * 4096, 2) |= PTE_A;
    struct window_key key = key_of(USER, 0x5000);
    struct window *w = window_get(ws, &key, NULL);

    t[0] = now_us();
    for (unsigned i = 0; i < N; i++) {
        window_probe_vcpu(v, USER + i * 4096, &p);
        window_install(ws, w, USER + i * 4096, &p, window_probe_vcpu, v);
    }
    t[1] = now_us();
    for (unsigned i = 0; i < N; i++)
        sum |= *(volatile uint8_t *)(USER + i * 4096 + w->delta);
    cr_expect_eq(sum, 1);
    t[2] = now_us();
    window_flush(ws, w, false, window_probe_vcpu, v);
    t[3] = now_us();
    for (unsigned i = 0; i < N; i++)
        window_flush_page(ws, w, USER + (N + i) * 4096, window_probe_vcpu, v);
    t[4] = now_us();
    for (unsigned i = 0; i < N; i++)
        window_protect_gpa(ws, 16 * MB + i * 8192);
    t[5] = now_us();
    for (unsigned i = 0; i < N; i++) {
        window_probe_vcpu(v, USER + i * 4096, &p);
        window_install(ws, w, USER + i * 4096, &p, window_probe_vcpu, v);
    }
    t[6] = now_us();
    for (unsigned i = 0; i < N; i++)
        window_flush_page(ws, w, USER + i * 4096, NULL, NULL);
    t[7] = now_us();
    fprintf(stderr,
            "  us per page: install %.2f, first touch %.2f, revalidate %.3f, INVLPG of an unmapped "
            "page %.3f, protect %.2f, make writable %.2f, drop %.2f\n",
            (t[1] - t[0]) / N, (t[2] - t[1]) / N, (t[3] - t[2]) / N, (t[4] - t[3]) / N,
            (t[5] - t[4]) / N, (t[6] - t[5]) / N, (t[7] - t[6]) / N);
    cr_expect_eq(ws->runs, 0);
}
