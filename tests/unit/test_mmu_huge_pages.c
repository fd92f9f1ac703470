/*
 * Huge host pages: which pieces of RAM become one, that nothing of their contents or of what a
 * window may do changes by it, and that a host that refuses is left alone.
 */
#include "mmu_fixture.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>

#include "mmu/huge_pages.h"
#include "mmu/window.h"

#define PIECE (16 * MB)
#define GVA   0x40000000ull

static struct huge_pages huge;
static struct window_space ws;
static struct window *w;

static void setup(void)
{
    mmu_setup(64 * MB);
    cr_assert_eq(window_space_init(&ws, &ram, &(struct window_config){.max_windows = 4}), 0);
    w = window_get(&ws, &(struct window_key){.pdpt_gpa = 0x1000}, NULL);
    cr_assert_not_null(w);
    huge_pages_init(&huge, &ram);
    cr_assert_not_null(huge.tries);
    huge.begun -= 1ull << 50; /* there is time */
}

static void teardown(void)
{
    huge_pages_destroy(&huge);
    window_space_destroy(&ws);
}

static uint32_t pattern(uint64_t gpa)
{
    return (uint32_t)(gpa * 2654435761u >> 3);
}

static void fill(uint64_t gpa, uint64_t len)
{
    for (uint64_t i = 0; i < len; i += 4)
        *(uint32_t *)(ram.base + gpa + i) = pattern(gpa + i);
}

static void check(uint64_t at, uint64_t gpa)
{
    for (uint64_t i = 0; i < HUGE_PAGE_SIZE; i += 4)
        cr_assert_eq(*(volatile uint32_t *)(at + i), pattern(gpa + i), "at %lx", gpa + i);
}

/* KiB of huge pages in the mapping at this address. */
static unsigned long huge_kib(uint64_t at)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    bool here = false;
    unsigned long kib = 0;

    cr_assert_not_null(f);
    while (fgets(line, sizeof line, f)) {
        uint64_t lo, hi;
        if (sscanf(line, "%lx-%lx ", &lo, &hi) == 2)
            here = lo <= at && at < hi;
        else if (here)
            sscanf(line, "ShmemPmdMapped: %lu", &kib);
    }
    fclose(f);
    return kib;
}

static void make_huge(uint64_t gpa)
{
    int r = huge_pages_consider(&huge, gpa + 12345);

    if (r < 0)
        cr_skip_test("the host makes no huge pages of shared memory (%s): NOT TESTED",
                     strerror(-r));
    cr_assert_eq(r, 1);
}

static void install(uint64_t gva, uint64_t gpa)
{
    struct window_pte pte = {.gpa = gpa, .shift = 21, .valid = true, .writable = true};

    cr_assert_eq(window_install(&ws, w, gva, &pte, NULL, NULL), 0);
}

static sigjmp_buf escape;

static void on_segv(int sig)
{
    siglongjmp(escape, 1);
}

static bool store(uint64_t at, uint32_t value)
{
    if (sigsetjmp(escape, 1))
        return false;
    *(volatile uint32_t *)at = value;
    return true;
}

Test(huge_pages, contents_and_rights_stay, .init = setup, .fini = teardown)
{
    signal(SIGSEGV, on_segv);
    fill(PIECE, HUGE_PAGE_SIZE);
    install(GVA, PIECE);
    check(GVA + w->delta, PIECE);
    make_huge(PIECE);
    check((uint64_t)ram.base + PIECE, PIECE);
    check(GVA + w->delta, PIECE);
    cr_assert_eq(huge_kib(GVA + w->delta), 2048);

    /* Code in one of its pages splits the mapping. */
    ram.page_flags[(PIECE + 0x5000) >> GUEST_PAGE_SHIFT] |= RAM_PAGE_CODE;
    window_protect_gpa(&ws, PIECE + 0x5000);
    cr_assert(!store(GVA + w->delta + 0x5010, 1));
    cr_assert(store(GVA + w->delta + 0x4ffc, 2) && store(GVA + w->delta + 0x6000, 3));
    cr_assert_eq(*(uint32_t *)(ram.base + PIECE + 0x4ffc), 2);
    cr_assert_eq(*(uint32_t *)(ram.base + PIECE + 0x6000), 3);
    fill(PIECE, HUGE_PAGE_SIZE);
    check(GVA + w->delta, PIECE);

    /* Used for something else: dropped, and mapped elsewhere. */
    window_flush(&ws, w, false, NULL, NULL);
    cr_assert(!store(GVA + w->delta, 1));
    ram.page_flags[(PIECE + 0x5000) >> GUEST_PAGE_SHIFT] = 0;
    install(GVA + 5 * HUGE_PAGE_SIZE, PIECE);
    check(GVA + 5 * HUGE_PAGE_SIZE + w->delta, PIECE);
    cr_assert_eq(huge_kib(GVA + 5 * HUGE_PAGE_SIZE + w->delta), 2048);
    cr_assert_eq(huge_pages_consider(&huge, PIECE), 0, "it is one already");
}

Test(huge_pages, only_what_the_guest_has_filled, .init = setup, .fini = teardown)
{
    cr_assert_eq(huge_pages_consider(&huge, PIECE), 0);
    fill(PIECE, HUGE_PAGE_SIZE / 2);
    cr_assert_eq(huge_pages_consider(&huge, PIECE), 0);
    fill(PIECE + HUGE_PAGE_SIZE, HUGE_PAGE_SIZE); /* neighbours do not count */
    fill(PIECE - HUGE_PAGE_SIZE, HUGE_PAGE_SIZE);
    cr_assert_eq(huge_pages_consider(&huge, PIECE), 0);
    fill(PIECE, HUGE_PAGE_SIZE);
    make_huge(PIECE);
}

Test(huge_pages, no_code_no_holes, .init = setup, .fini = teardown)
{
    fill(PIECE, HUGE_PAGE_SIZE);
    ram.page_flags[(PIECE >> GUEST_PAGE_SHIFT) + 511] |= RAM_PAGE_CODE;
    cr_assert_eq(huge_pages_consider(&huge, PIECE), 0);
    ram.page_flags[(PIECE >> GUEST_PAGE_SHIFT) + 511] = 0;
    cr_assert_eq(huge_pages_consider(&huge, 64 * MB), 0);
    cr_assert_eq(huge_pages_consider(&huge, 0xfee00000), 0);
    cr_assert_eq(huge_pages_consider(&huge, ~0ull), 0);
    make_huge(PIECE);
}

Test(huge_pages, takes_a_small_share_of_the_time, .init = setup, .fini = teardown)
{
    fill(PIECE, 8 * HUGE_PAGE_SIZE);
    huge.begun = __builtin_ia32_rdtsc();
    huge.spent = 1ull << 40;
    cr_assert_eq(huge_pages_consider(&huge, PIECE), 0);
    huge.spent = 0;
    make_huge(PIECE);
    cr_assert_gt(huge.spent, 0);
}

Test(huge_pages, a_host_that_refuses, .init = setup, .fini = teardown)
{
    unsigned refused = 0;

    fill(PIECE, 32 * MB);
    /* EINVAL from now on, as from a kernel before 6.1 */
    cr_assert_eq(madvise(ram.base + PIECE, 32 * MB, MADV_NOHUGEPAGE), 0);
    for (unsigned n = 0; n < 3; n++)
        for (uint64_t gpa = PIECE; gpa < PIECE + 32 * MB; gpa += HUGE_PAGE_SIZE)
            refused += huge_pages_consider(&huge, gpa) < 0;
    cr_assert_gt(refused, 0);
    cr_assert_leq(refused, 8, "asked again after %u refusals", refused);
}

Test(huge_pages, off_by_default_state)
{
    struct huge_pages none = {0};

    cr_assert_eq(huge_pages_consider(&none, PIECE), 0);
    huge_pages_destroy(&none);
}
