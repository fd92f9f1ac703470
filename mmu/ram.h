/*
 * mmu/ owns guest-physical memory (ram.h, memory_map.h), the walk of guest page tables (walk.h) and
 * the shadow structures that make the walk rare: the soft TLB and, for hot code, windows.
 * It reads paging state from `struct vcpu` and knows nothing of instructions or devices.
 *
 * ram.h: one memfd holds all memory that the guest can reach by a plain load: its RAM, and the
 * regions that devices add (ROM, flash, frame buffers).  It is mapped linearly and read-write at
 * `base`, so that HVA = base + GPA for every GPA that is memory.
 *
 * What a GPA page is, its kind, is in page_flags: plain RAM (no flag), ROM (can be read and run;
 * writes go to the devices, which drop them or give them a meaning) or a hole (everything goes to
 * the devices).  Which part of the memfd is behind a page is in a short list of extents.  Both
 * change at run time (memory_map.h).  page_flags can be read at any time; whoever takes a decision
 * by it that outlives the access (a soft TLB entry, a window, a translated block) is told of
 * changes by the map_changed hook.  An HVA that was memory once stays accessible: a pointer that is
 * used just after a change reaches the wrong bytes of this guest's memory at worst.
 */
#ifndef RINGSHIFT_MMU_RAM_H
#define RINGSHIFT_MMU_RAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_PAGE_SIZE  4096u
#define GUEST_PAGE_SHIFT 12
/* RAM that does not fit below this continues at 4 GiB; between them live PCI, APICs, ROM. */
#define RAM_LOW_MAX   0xc0000000ull
#define RAM_HIGH_BASE 0x100000000ull
/* Room in the memfd for the regions of devices; costs nothing until it is used. */
#define RAM_EXTRA_SIZE  (96ull << 20)
#define RAM_MAX_EXTENTS 96
#define RAM_MAX_REGIONS 16

enum ram_page_flag {
    RAM_PAGE_CODE = 1u << 0, /* holds translated code: writes must go through ram_code_write() */
    RAM_PAGE_ROM = 1u << 1,  /* can be read and executed; a write goes to the devices           */
    RAM_PAGE_HOLE = 1u << 2, /* no memory: reads and writes go to the devices                   */
    RAM_PAGE_KIND = RAM_PAGE_ROM | RAM_PAGE_HOLE, /* mask; 0 is RAM                             */
    RAM_PAGE_READONLY = RAM_PAGE_CODE | RAM_PAGE_ROM, /* any: must not be mapped writable       */
};

/* A stretch of GPAs of one kind over consecutive bytes of the memfd. */
struct ram_extent {
    uint64_t gpa, len, offset;
    uint32_t kind; /* 0 (RAM) or RAM_PAGE_ROM */
};

/* A region's mapping for the device that owns it. */
struct ram_region {
    void *host;
    uint64_t len;
};

struct guest_ram {
    int memfd;
    uint8_t *base;      /* HVA of GPA 0                                                          */
    uint64_t size;      /* bytes of RAM                                                          */
    uint64_t low_size;  /* RAM at [0, low_size), but for what is mapped over it                  */
    uint64_t high_size; /* RAM at [4 GiB, 4 GiB + high_size)                                     */
    uint64_t span;      /* 4 GiB, or the end of RAM above; page_flags covers [0, span)           */
    uint64_t file_used; /* bytes of the memfd given to RAM and regions                           */
    _Atomic uint8_t *page_flags; /* one enum ram_page_flag set per GPA page                      */
    /* Sorted by GPA, disjoint.  A sequence lock: map_seq is odd while they change. */
    _Atomic uint32_t map_seq;
    unsigned extents;
    struct ram_extent extent[RAM_MAX_EXTENTS];
    unsigned regions;
    struct ram_region region[RAM_MAX_REGIONS];
    /* Called before bytes of a RAM_PAGE_CODE page change; drops translations that overlap.
     * Set by the engine.  May be called from any thread (DMA). */
    void (*code_write)(void *opaque, uint64_t gpa, uint64_t len);
    /* Called after the map has changed in this range, before anything else happens on this thread:
     * makes all vCPUs forget what they know about these GPAs.  Set by the engine; any thread. */
    void (*map_changed)(void *opaque, uint64_t gpa, uint64_t len);
    void *code_write_opaque; /* of both */
};

/* 0 or negative errno; size is rounded up to a page. On failure nothing is left allocated. */
int ram_create(struct guest_ram *ram, uint64_t size);
void ram_destroy(struct guest_ram *ram);

/* The flags of the page of a GPA; RAM_PAGE_HOLE beyond the map. */
static inline unsigned ram_page(const struct guest_ram *ram, uint64_t gpa)
{
    return gpa < ram->span ? ram->page_flags[gpa >> GUEST_PAGE_SHIFT] : RAM_PAGE_HOLE;
}

/* True if no page of [gpa, gpa+len), and not that of gpa, has one of `flags`. Overflow-safe. */
static inline bool ram_range_without(const struct guest_ram *ram, uint64_t gpa, uint64_t len,
                                     unsigned flags)
{
    if (gpa >= ram->span || len > ram->span - gpa)
        return false;
    uint64_t last = (gpa + (len ? len - 1 : 0)) >> GUEST_PAGE_SHIFT;
    for (uint64_t p = gpa >> GUEST_PAGE_SHIFT; p <= last; p++)
        if (ram->page_flags[p] & flags)
            return false;
    return true;
}

/* True if all of [gpa, gpa+len) is RAM: it can be read and written. */
static inline bool ram_contains(const struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    return ram_range_without(ram, gpa, len, RAM_PAGE_KIND);
}

/* True if all of [gpa, gpa+len) is RAM or ROM: it can be read and executed. */
static inline bool ram_readable(const struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    return ram_range_without(ram, gpa, len, RAM_PAGE_HOLE);
}

/* HVA of RAM, or NULL unless all of [gpa, gpa+len) is RAM.  Writers call ram_before_write() first.
 */
static inline void *ram_ptr(const struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    return ram_contains(ram, gpa, len) ? ram->base + gpa : NULL;
}

/* HVA of RAM or ROM, for reading; NULL unless all of it is. */
static inline const void *ram_read_ptr(const struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    return ram_readable(ram, gpa, len) ? ram->base + gpa : NULL;
}

/* The extent that a GPA lies in; false if it is in none (a hole). Light: no libc. */
static inline bool ram_find_extent(const struct guest_ram *ram, uint64_t gpa,
                                   struct ram_extent *out)
{
    for (;;) {
        uint32_t seq = atomic_load_explicit(&ram->map_seq, memory_order_acquire);
        unsigned lo = 0, hi = ram->extents < RAM_MAX_EXTENTS ? ram->extents : RAM_MAX_EXTENTS;
        bool found = false;

        while (lo < hi) { /* the last one that begins at or below gpa */
            unsigned mid = (lo + hi) / 2;
            if (ram->extent[mid].gpa <= gpa)
                lo = mid + 1;
            else
                hi = mid;
        }
        if (lo) {
            const struct ram_extent *e = &ram->extent[lo - 1];
            out->gpa = e->gpa;
            out->len = e->len;
            out->offset = e->offset;
            out->kind = e->kind;
            found = gpa - out->gpa < out->len;
        }
        atomic_thread_fence(memory_order_acquire);
        if (!(seq & 1) && seq == atomic_load_explicit(&ram->map_seq, memory_order_relaxed))
            return found;
    }
}

/* Offset in the memfd of a GPA that is memory. */
static inline uint64_t ram_file_offset(const struct guest_ram *ram, uint64_t gpa)
{
    struct ram_extent e = {0};

    return ram_find_extent(ram, gpa, &e) ? e.offset + (gpa - e.gpa) : 0;
}

/* Offset in the memfd of the RAM that is at this GPA unless something else is mapped over it. */
static inline uint64_t ram_own_offset(const struct guest_ram *ram, uint64_t gpa)
{
    return gpa < RAM_HIGH_BASE ? gpa : gpa - RAM_HIGH_BASE + ram->low_size;
}

/* Must precede every write to guest RAM that does not come through a vCPU's own write-checked
 * mapping: devices (DMA), loaders, page-walk A/D updates. */
static inline void ram_before_write(struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    for (uint64_t p = gpa >> GUEST_PAGE_SHIFT; len && p <= (gpa + len - 1) >> GUEST_PAGE_SHIFT; p++)
        if ((ram->page_flags[p] & RAM_PAGE_CODE) && ram->code_write)
            ram->code_write(ram->code_write_opaque, gpa, len);
}

/* DMA-style copies for devices and loaders; -EFAULT unless all of it is RAM (nothing is copied
 * then); ram_read also reads ROM. These call libc's memcpy: not for light code. */
int ram_read(const struct guest_ram *ram, uint64_t gpa, void *buf, uint64_t len);
int ram_write(struct guest_ram *ram, uint64_t gpa, const void *buf, uint64_t len);

#endif
