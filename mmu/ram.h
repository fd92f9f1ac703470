/*
 * mmu/ owns guest-physical memory (ram.h), the walk of guest page tables (walk.h) and the shadow
 * structures that make the walk rare: the soft TLB (soft_tlb.h) and, for hot code, windows.
 * It reads paging state from `struct vcpu` and knows nothing of instructions or devices.
 *
 * ram.h: one memfd holds all guest RAM.  It is mapped once, linearly and read-write, at `base`, so
 * that HVA = base + GPA for every GPA in RAM; the hole below 4 GiB stays PROT_NONE.
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
#define RAM_LOW_MAX      0xc0000000ull
#define RAM_HIGH_BASE    0x100000000ull

enum ram_page_flag {
    RAM_PAGE_CODE = 1u << 0, /* holds translated code: writes must go through ram_code_write() */
};

struct guest_ram {
    int memfd;
    uint8_t *base;      /* HVA of GPA 0                                                          */
    uint64_t size;      /* bytes of RAM                                                          */
    uint64_t low_size;  /* RAM at [0, low_size)                                                  */
    uint64_t high_size; /* RAM at [4 GiB, 4 GiB + high_size)                                     */
    uint64_t span;      /* end of the highest RAM GPA; page_flags covers [0, span)               */
    _Atomic uint8_t *page_flags; /* one enum ram_page_flag set per GPA page                      */
    /* Called before bytes of a RAM_PAGE_CODE page change; drops translations that overlap.
     * Set by the engine.  May be called from any thread (DMA). */
    void (*code_write)(void *opaque, uint64_t gpa, uint64_t len);
    void *code_write_opaque;
};

/* 0 or negative errno; size is rounded up to a page. On failure nothing is left allocated. */
int ram_create(struct guest_ram *ram, uint64_t size);
void ram_destroy(struct guest_ram *ram);

/* True if all of [gpa, gpa+len) is RAM.  Overflow-safe. */
static inline bool ram_contains(const struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    if (gpa < ram->low_size)
        return len <= ram->low_size - gpa;
    return gpa >= RAM_HIGH_BASE && gpa - RAM_HIGH_BASE < ram->high_size &&
           len <= ram->high_size - (gpa - RAM_HIGH_BASE);
}

/* HVA of RAM, or NULL unless all of [gpa, gpa+len) is RAM. For reading; writers call
 * ram_before_write() first. */
static inline void *ram_ptr(const struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    return ram_contains(ram, gpa, len) ? ram->base + gpa : NULL;
}

/* Offset in the memfd of a RAM GPA (the memfd has no hole). */
static inline uint64_t ram_file_offset(const struct guest_ram *ram, uint64_t gpa)
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
 * then). These call libc's memcpy: not for light code. */
int ram_read(const struct guest_ram *ram, uint64_t gpa, void *buf, uint64_t len);
int ram_write(struct guest_ram *ram, uint64_t gpa, const void *buf, uint64_t len);

#endif
