/* Huge host pages for guest RAM: see huge_pages.h. */
#include "mmu/huge_pages.h"

#include <errno.h>

#include "mmu/host_syscall.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define PIECE_PAGES (HUGE_PAGE_SIZE / GUEST_PAGE_SIZE)
/* Most pages of a piece that the guest has not touched yet: what memory this may add at worst. */
#define MAX_ABSENT 16
/* One part in so many of the time since the start may go into this. */
#define TIME_SHARE 32
/* Attempts at one piece, and refusals in a row before it is the host that does not want to. */
#define MAX_TRIES   3
#define MAX_REFUSED 8

void huge_pages_init(struct huge_pages *h, struct guest_ram *ram)
{
    uint64_t pieces = ram->span >> HUGE_PAGE_SHIFT;
    long p = host_mmap(0, pieces, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    *h = (struct huge_pages){.ram = ram, .begun = __builtin_ia32_rdtsc()};
    if (p < 0)
        return;
    h->tries = (uint8_t *)(uintptr_t)p;
    h->pieces = pieces;
}

void huge_pages_destroy(struct huge_pages *h)
{
    if (h->tries)
        host_munmap((uint64_t)(uintptr_t)h->tries, h->pieces);
    *h = (struct huge_pages){.ram = NULL};
}

/* Can it be one host page, and one mapping of a window? */
static bool suitable(const struct guest_ram *ram, uint64_t gpa)
{
    struct ram_extent e = {0};

    return ram_find_extent(ram, gpa, &e) && gpa + HUGE_PAGE_SIZE <= e.gpa + e.len &&
           !((e.offset + (gpa - e.gpa)) & (HUGE_PAGE_SIZE - 1)) &&
           ram_range_without(ram, gpa, HUGE_PAGE_SIZE, RAM_PAGE_READONLY | RAM_PAGE_KIND);
}

/* Is nearly all of it in memory?  (mincore() tells it of files that can be written to.) */
static bool filled(const struct guest_ram *ram, uint64_t gpa)
{
    uint8_t in[PIECE_PAGES];
    unsigned absent = 0;

    if (host_syscall6(SYS_mincore, (uint64_t)(uintptr_t)ram->base + gpa, HUGE_PAGE_SIZE,
                      (uint64_t)(uintptr_t)in, 0, 0, 0) < 0)
        return false;
    for (unsigned i = 0; i < PIECE_PAGES; i++)
        absent += !(in[i] & 1);
    return absent <= MAX_ABSENT;
}

int huge_pages_consider(struct huge_pages *h, uint64_t gpa)
{
    uint64_t piece = gpa >> HUGE_PAGE_SHIFT, now;
    int result = 0;

    if (piece >= h->pieces || h->tries[piece] >= MAX_TRIES || h->in_a_row >= MAX_REFUSED)
        return 0;
    now = __builtin_ia32_rdtsc();
    if (h->spent > (now - h->begun) / TIME_SHARE)
        return 0;
    gpa = piece << HUGE_PAGE_SHIFT;
    if (suitable(h->ram, gpa) && filled(h->ram, gpa)) {
        long err =
            host_madvise((uint64_t)(uintptr_t)h->ram->base + gpa, HUGE_PAGE_SIZE, MADV_COLLAPSE);
        if (!err) {
            h->tries[piece] = MAX_TRIES;
            h->in_a_row = 0;
            result = 1;
        } else { /* busy for the moment, no huge page free, an older kernel, a filter */
            h->tries[piece]++;
            h->in_a_row = err == -EPERM || err == -ENOSYS ? MAX_REFUSED : h->in_a_row + 1;
            result = (int)err;
        }
    }
    h->spent += __builtin_ia32_rdtsc() - now;
    return result;
}
