/* Guest RAM: layout with the hole, bounds, sharing, refusals. */
#include "mmu_fixture.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static bool touchable(void *p)
{
    int pipefd[2];

    cr_assert_eq(pipe(pipefd), 0);
    bool ok = write(pipefd[1], p, 1) == 1; /* EFAULT instead of SIGSEGV */
    close(pipefd[0]);
    close(pipefd[1]);
    return ok;
}

Test(ram, small)
{
    struct guest_ram r;

    cr_assert_eq(ram_create(&r, 3 * 4096 + 1), 0);
    cr_expect_eq(r.size, 4 * 4096);
    cr_expect_eq(r.low_size, r.size);
    cr_expect_eq(r.high_size, 0);
    cr_expect_eq(r.span, RAM_HIGH_BASE);
    cr_expect(touchable(r.base));
    cr_expect(touchable(r.base + r.size - 1));
    cr_expect(!touchable(r.base + r.size));
    cr_expect(!touchable(r.base + r.span));
    cr_expect_eq(ram_page(&r, r.size - 1), 0);
    cr_expect_eq(ram_page(&r, r.size), RAM_PAGE_HOLE);
    cr_expect_eq(ram_page(&r, UINT64_MAX), RAM_PAGE_HOLE);
    cr_expect(!touchable(r.base - 1));
    for (uint64_t i = 0; i < r.size; i++)
        cr_assert_eq(r.base[i], 0);
    ram_destroy(&r);
    cr_expect_eq(r.memfd, -1);
    ram_destroy(&r); /* harmless */
}

Test(ram, hole)
{
    struct guest_ram r;

    cr_assert_eq(ram_create(&r, RAM_LOW_MAX + 16 * MB), 0);
    cr_expect_eq(r.low_size, RAM_LOW_MAX);
    cr_expect_eq(r.high_size, 16 * MB);
    cr_expect_eq(r.span, RAM_HIGH_BASE + 16 * MB);
    cr_expect(touchable(r.base + RAM_LOW_MAX - 1));
    cr_expect(!touchable(r.base + RAM_LOW_MAX));
    cr_expect(!touchable(r.base + RAM_HIGH_BASE - 1));
    cr_expect(touchable(r.base + RAM_HIGH_BASE));
    cr_expect(touchable(r.base + r.span - 1));
    cr_expect(!touchable(r.base + r.span));

    cr_expect(ram_contains(&r, RAM_LOW_MAX - 8, 8));
    cr_expect(!ram_contains(&r, RAM_LOW_MAX - 8, 9));
    cr_expect(!ram_contains(&r, RAM_LOW_MAX, 1));
    cr_expect(!ram_contains(&r, RAM_HIGH_BASE - 1, 2));
    cr_expect(ram_contains(&r, RAM_HIGH_BASE, 16 * MB));
    cr_expect(!ram_contains(&r, RAM_HIGH_BASE, 16 * MB + 1));
    cr_expect(!ram_contains(&r, 0, UINT64_MAX));
    cr_expect(!ram_contains(&r, UINT64_MAX, 2));
    cr_expect(!ram_contains(&r, 8, UINT64_MAX - 4));

    /* The file has no hole: what is written at 4 GiB is in it right behind the low part. */
    r.base[RAM_HIGH_BASE + 5] = 77;
    char c = 0;
    cr_expect_eq(pread(r.memfd, &c, 1, (off_t)ram_file_offset(&r, RAM_HIGH_BASE + 5)), 1);
    cr_expect_eq(c, 77);
    cr_expect_eq(ram_file_offset(&r, RAM_HIGH_BASE), RAM_LOW_MAX);

    /* Flags exist for every page up to the end. */
    r.page_flags[(r.span >> 12) - 1] |= RAM_PAGE_CODE;
    cr_expect_eq(r.page_flags[0], 0);
    ram_destroy(&r);
}

Test(ram, refusals)
{
    struct guest_ram r;

    cr_expect_eq(ram_create(&r, 0), -EINVAL);
    cr_expect_eq(ram_create(&r, UINT64_MAX), -EINVAL);
    cr_expect_eq(ram_create(&r, 1ull << GUEST_PHYS_BITS), -EINVAL);
    cr_expect_eq(ram_create(&r, 1ull << 39), -ENOMEM, "512 GiB is more than any host here");
    cr_expect_eq(r.memfd, -1);
    cr_expect_null(r.base);

    struct rlimit lim = {16 * MB + RAM_EXTRA_SIZE, 16 * MB + RAM_EXTRA_SIZE};
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &lim), 0);
    cr_expect_eq(ram_create(&r, 17 * MB), -EFBIG);
    cr_expect_eq(ram_create(&r, 16 * MB), 0);
    ram_destroy(&r);
}

Test(ram, address_space_limit)
{
    struct guest_ram r;
    struct rlimit lim = {5 * GB, 5 * GB};

    if (UNDER_ASAN)
        cr_skip("address space limit");
    cr_assert_eq(setrlimit(RLIMIT_AS, &lim), 0);
    cr_expect_eq(ram_create(&r, 5 * GB), -ENOMEM);
    cr_expect_eq(r.memfd, -1);
    cr_expect_eq(ram_create(&r, 64 * MB), 0);
    ram_destroy(&r);
}

/* Each failed creation gives everything back. */
Test(ram, no_leak_on_failure)
{
    struct guest_ram r;
    struct rlimit lim = {5 * GB, 5 * GB};
    int before = dup(0);

    if (UNDER_ASAN)
        cr_skip("address space limit");
    close(before);
    cr_assert_eq(setrlimit(RLIMIT_AS, &lim), 0);
    for (int i = 0; i < 3000; i++)
        cr_assert_eq(ram_create(&r, 5 * GB), -ENOMEM);
    int after = dup(0);
    cr_expect_eq(before, after);
    cr_expect_eq(ram_create(&r, 512 * MB), 0, "address space was given back");
}

Test(ram, sealed)
{
    struct guest_ram r;

    cr_assert_eq(ram_create(&r, MB), 0);
    cr_expect_eq(ftruncate(r.memfd, 0), -1);
    cr_expect_eq(ftruncate(r.memfd, 2 * MB), -1);
    ram_destroy(&r);
}

Test(ram, copies)
{
    char buf[64] = "hello";

    mmu_setup(MB);
    cr_expect_eq(ram_write(&ram, MB - 64, buf, 64), 0);
    cr_expect_eq(ram_write(&ram, MB - 63, buf, 64), -EFAULT);
    memset(buf, 0, sizeof buf);
    cr_expect_eq(ram_read(&ram, MB - 64, buf, 64), 0);
    cr_expect_str_eq(buf, "hello");
    cr_expect_eq(ram_read(&ram, MB, buf, 1), -EFAULT);
    cr_expect_eq(ram_read(&ram, UINT64_MAX, buf, 2), -EFAULT);
    cr_expect_eq(code_write.count, 0);

    ram.page_flags[3] |= RAM_PAGE_CODE;
    cr_expect_eq(ram_write(&ram, 3 * 4096 - 4, buf, 4), 0);
    cr_expect_eq(code_write.count, 0);
    cr_expect_eq(ram_write(&ram, 3 * 4096 - 4, buf, 5), 0);
    cr_expect_eq(code_write.count, 1);
    cr_expect_eq(code_write.gpa, 3 * 4096 - 4);
    cr_expect_eq(code_write.len, 5);
}

/* RAM that the guest does not touch costs nothing. */
Test(ram, lazy)
{
    struct guest_ram r;
    struct rusage a, b;

    getrusage(RUSAGE_SELF, &a);
    cr_assert_eq(ram_create(&r, 2 * GB), 0);
    getrusage(RUSAGE_SELF, &b);
    cr_expect_lt(b.ru_maxrss - a.ru_maxrss, 8192, "grew by %ld KiB", b.ru_maxrss - a.ru_maxrss);
    ram_destroy(&r);
}
