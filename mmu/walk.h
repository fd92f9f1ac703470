/*
 * The layout of page-table entries (SDM vol. 3, 4.3 to 4.5; the flags are where they are in every
 * paging mode) and the physical-address width that the
 * guest sees.
 */
#ifndef RINGSHIFT_MMU_WALK_H
#define RINGSHIFT_MMU_WALK_H

#include <stdint.h>

/* MAXPHYADDR: CPUID.80000008H:EAX[7:0]. Bits from here to 51 are reserved in every entry. */
#define GUEST_PHYS_BITS 40
#define GUEST_PHYS_MASK ((1ull << GUEST_PHYS_BITS) - 1)

#define PTE_P    (1ull << 0)
#define PTE_RW   (1ull << 1)
#define PTE_US   (1ull << 2)
#define PTE_A    (1ull << 5)
#define PTE_D    (1ull << 6)
#define PTE_PS   (1ull << 7) /* page size in a PDPTE or PDE; PAT in a PTE */
#define PTE_G    (1ull << 8)
#define PTE_XD   (1ull << 63)
#define PTE_ADDR (GUEST_PHYS_MASK & ~0xfffull)

#endif
