/*
 * Huge host pages for guest RAM: 2 MiB of the memfd in one page, for fewer host TLB misses.
 *
 * Whether shared memory gets huge pages when it is allocated is for the host's administrator to say
 * (/sys/kernel/mm/transparent_hugepage/shmem_enabled, "never" unless set), but since Linux 6.1 a
 * process may ask for them where there is memory already: madvise(2), MADV_COLLAPSE.  The host
 * copies 2 MiB then, for a millisecond or two, in which all mappings of the piece are taken down.
 * So it is done for pieces that pay: those that the guest itself maps as one big page and has
 * filled, and with a small share of the time only.  A piece stays huge as long as the machine
 * lives.
 *
 * A window has use of it where one mapping covers the whole piece with one set of rights.
 */
#ifndef RINGSHIFT_MMU_HUGE_PAGES_H
#define RINGSHIFT_MMU_HUGE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/ram.h"

#define HUGE_PAGE_SHIFT 21
#define HUGE_PAGE_SIZE  (1ull << HUGE_PAGE_SHIFT)

struct huge_pages {
    struct guest_ram *ram;
    uint8_t *tries;    /* of each piece of GPAs; NULL: none of this */
    uint64_t pieces;   /* of `tries` */
    uint64_t begun;    /* TSC at the start, */
    uint64_t spent;    /* and cycles used since */
    unsigned in_a_row; /* refusals */
};

/* Does nothing, and leaves `h` doing nothing, if there is no memory for it.  Runs libc. */
void huge_pages_init(struct huge_pages *h, struct guest_ram *ram);
void huge_pages_destroy(struct huge_pages *h);

/* The guest's big page around this GPA is about to be mapped: makes its 2 MiB a huge host page if
 * that pays and the host lets us.  1 if it has done so, 0 if nothing was to be done now, or the
 * host's negative errno, which changes nothing.  Light; takes some milliseconds at worst, rarely.
 */
int huge_pages_consider(struct huge_pages *h, uint64_t gpa);

#endif
