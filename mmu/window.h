/*
 * Windows: guest memory shadowed by the host's own MMU (docs/architecture.md).
 *
 * A window is a reserved range of HVA that stands for one PML4 slot (512 GiB) of a guest address
 * space: HVA = GVA + delta.  Guest pages are mapped into it from the RAM memfd as they are used;
 * everything else in it is inaccessible, and so are the guard zones of 4 GiB around it.
 *
 * This module owns the host ranges, knows what is mapped where, keeps the number of host mappings
 * (VMAs) within a budget and never decides about rights: the caller has walked the guest's page
 * tables and says what may be mapped (struct window_pte).  The one rule enforced here is that a
 * page of translated code (RAM_PAGE_CODE) is never mapped writable.
 *
 * One window_space belongs to one vCPU: all calls come from its thread.  They use no libc and no FP
 * registers and allocate nothing, so they may run in a signal handler; window_space_init() and
 * window_space_destroy() are the exceptions.
 */
#ifndef RINGSHIFT_MMU_WINDOW_H
#define RINGSHIFT_MMU_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "mmu/mmu.h"
#include "mmu/ram.h"

#define WINDOW_SHIFT 39
#define WINDOW_SIZE  (1ull << WINDOW_SHIFT)
#define WINDOW_GUARD (36ull << 30)
#define WINDOW_MAX   192 /* 47 bits of host address space hold fewer than 256 */

/*
 * What makes two slots of two address spaces the same memory: the same table below the PML4E.  All
 * processes of a guest share the kernel's windows that way.  `tag` is the caller's: 0 for kernel
 * slots, the PCID for user slots if each PCID is to have its own (flushes are per PCID).
 */
struct window_key {
    uint64_t pdpt_gpa;
    uint16_t pml4_index;
    uint16_t tag;
};

/* What the guest's page tables say about the page of one GVA, as far as windows care. */
struct window_pte {
    uint64_t gpa;  /* of the 4K page asked for (also inside a big page)                         */
    uint8_t shift; /* 12, 21 or 30: size of the guest page                                      */
    bool valid;    /* may be mapped: present, A set, U/S as its half of the addresses demands   */
    bool writable; /* may be mapped writable: R/W at all levels and D set                       */
    bool global;   /* survives flushes that keep global pages                                   */
};

/* Asks the guest's page tables, without side effects. */
typedef void (*window_probe)(void *opaque, uint64_t gva, struct window_pte *out);

/* A probe for the tables of `vcpu` (a struct vcpu *) as they are now, with the usual rules. */
void window_probe_vcpu(void *vcpu, uint64_t gva, struct window_pte *out);

/* The same for many pages of one flush or install, with a struct window_prober. */
struct window_prober {
    struct vcpu *vcpu;
    struct mmu_near near;
};
void window_probe_near(void *prober, uint64_t gva, struct window_pte *out);

struct window {
    struct window_key key;
    bool used;
    uint64_t base;     /* HVA of the slot's first byte                                          */
    uint64_t delta;    /* HVA - GVA, modulo 2^64                                                */
    uint64_t last_use; /* ws->clock at the last lookup or install                               */
    uint32_t runs;     /* mappings in it                                                        */
    uint64_t hand;     /* where eviction of parts of this window goes on (HVA)                  */
};

struct window_stats {
    uint64_t installs;          /* system calls that mapped guest pages                        */
    uint64_t installed_pages;   /* 4K pages that these covered                                 */
    uint64_t upgrades;          /* read-only made writable                                     */
    uint64_t downgrades;        /* writable made read-only by a flush                          */
    uint64_t protects;          /* writable made read-only because the page holds code         */
    uint64_t unmaps;            /* system calls that made pages inaccessible                   */
    uint64_t remaps;            /* by a flush: page maps elsewhere now                         */
    uint64_t probes, kept;      /* revalidation: questions asked, answers "unchanged"          */
    uint64_t window_evictions;  /* contents of a whole window dropped for the VMA budget       */
    uint64_t partial_evictions; /* part of the window in use dropped for the VMA budget        */
    uint64_t releases;          /* host range taken from one address space for another         */
    uint64_t resets;            /* everything dropped after the host refused a call            */
    uint32_t vmas_peak;
};

struct window_config {
    unsigned max_windows;  /* host ranges to reserve; 0 = default. Fewer if the host refuses.    */
    unsigned vma_budget;   /* most VMAs to use; 0 = 80 % of vm.max_map_count less a reserve.     */
    unsigned around_pages; /* fault-around block, a power of two <= 512; 0 = default             */
    /* Called before the host range of `w` is given to another key: whoever remembers its delta
     * must forget it. May be NULL. */
    void (*released)(void *opaque, struct window *w);
    void *opaque;
};

struct window_run;

struct window_space {
    struct guest_ram *ram;
    struct window_config cfg;
    uint64_t arena, arena_size; /* the reservation: guard, window, guard, window, ..., guard     */
    unsigned count;             /* windows in it                                                 */
    unsigned top;               /* those from here on were never used                            */
    uint8_t hint[64];           /* where the window of a key was last, by a hash of the key      */
    uint64_t clock;
    /* The host refused even to drop mappings, so some may be stale: the machine must stop. */
    bool failed;
    uint64_t ballast; /* mappings to give up when the host has no VMA left                       */

    /* Mapped runs: a pool, and two treaps over it (by HVA; by GPA). Index 0 is "none". */
    struct window_run *pool;
    uint32_t pool_size, pool_free, pool_used;
    uint32_t root[2];
    uint32_t runs, adjacent; /* mapped runs; pairs of them without a gap between                 */
    uint64_t changes;        /* counts runs that came and went                                   */
    uint64_t seed;

    struct window_stats stats;
    struct window window[WINDOW_MAX];
};

/* 0 or a negative errno; -ENOMEM if not even a few windows can be reserved. */
int window_space_init(struct window_space *ws, struct guest_ram *ram,
                      const struct window_config *cfg);
void window_space_destroy(struct window_space *ws);

/* VMAs that the arena consists of now. */
static inline uint32_t window_vmas(const struct window_space *ws)
{
    return 2 * ws->runs + 1 - ws->adjacent;
}

/* The window of this key, or NULL. Marks it as recently used. */
struct window *window_lookup(struct window_space *ws, const struct window_key *key);

/*
 * The window of this key, empty if it is new. Takes the least recently used one when all are in
 * use (never `keep`, if not NULL). NULL only if ws->failed.
 */
struct window *window_get(struct window_space *ws, const struct window_key *key,
                          const struct window *keep);

/* The window whose 512 GiB hold this HVA, or NULL (guard zones, other memory); *gva as seen there.
 */
struct window *window_of_hva(struct window_space *ws, uint64_t hva, uint64_t *gva);

/*
 * Maps the guest page around gva as `pte` says, replacing what was there, in one system call: all
 * of a big page that is in one extent of memory (ram.h) and, if it is writable, shares with gva's
 * page whether it may be written (ROM and pages with code may not);
 * or, given a probe, a 4K page and those neighbours in its fault-around block that continue it.
 *
 * The page may come to be read-only although pte->writable (RAM_PAGE_CODE, RAM_PAGE_ROM). 0;
 * -EFAULT if the page is a hole or gva is not in w; -ENOMEM if the host refuses (serve the access
 * through the soft form).
 */
int window_install(struct window_space *ws, struct window *w, uint64_t gva,
                   const struct window_pte *pte, window_probe probe, void *opaque);

/*
 * Flushes, as of a TLB. With a probe, mappings that are still right stay, those that changed are
 * changed, and only the rest is dropped; without one all are dropped. keep_global leaves mappings
 * of global pages alone.
 */
void window_flush(struct window_space *ws, struct window *w, bool keep_global, window_probe probe,
                  void *opaque);
/* The guest page around gva (INVLPG), whatever its size. */
void window_flush_page(struct window_space *ws, struct window *w, uint64_t gva, window_probe probe,
                       void *opaque);

/* Makes every mapping of this GPA page read-only. The caller has set RAM_PAGE_CODE. */
void window_protect_gpa(struct window_space *ws, uint64_t gpa);

/* Drops every mapping of this range of GPAs (whole pages): the memory map has changed there. */
void window_drop_gpa(struct window_space *ws, uint64_t gpa, uint64_t len);

/* Is the page of gva mapped (for writing)? Tells a race or a spurious fault from a miss. */
bool window_mapped(struct window_space *ws, struct window *w, uint64_t gva, bool write);

/* For tests and tracing: the mapped run at or after hva; false at the end. */
struct window_run_info {
    uint64_t hva, end, gpa;
    uint8_t shift;
    bool writable, global;
};
bool window_next_run(const struct window_space *ws, uint64_t hva, struct window_run_info *out);

#endif
