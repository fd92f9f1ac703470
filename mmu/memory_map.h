/*
 * Changes of the guest-physical memory map: devices' memory that the guest reaches by plain loads
 * and stores (ROM, flash in read mode, a linear frame buffer) and the chipset's remapping of pages
 * below 1 MiB.
 *
 * A region's bytes are a piece of the RAM memfd.  The device has its own view of them for as long
 * as it lives, whether and wherever they are mapped:
 *
 *     uint64_t offset;
 *     uint8_t *vram;
 *     err = ram_region_alloc(ram, VRAM_SIZE, &offset, (void **)&vram);
 *     err = ram_map_region(ram, bar, VRAM_SIZE, offset, RAM_KIND_RAM);    // BAR enabled
 *     err = ram_unmap_region(ram, bar, VRAM_SIZE);                        // BAR disabled or moved
 *
 * To see what the guest has changed in a region, compare its bytes with a copy: there is no dirty
 * log, as keeping one would cost each first store to a page a host page fault.
 *
 * Locking: with the machine lock held, or before the machine runs.  The engine's lock is taken
 * inside (order: machine lock, engine lock).  A change is complete for the calling thread, if it is
 * a vCPU's, when the function returns; other vCPUs are kicked and forget the range before they run
 * another block.  The memory that was mapped there is not touched.
 */
#ifndef RINGSHIFT_MMU_MEMORY_MAP_H
#define RINGSHIFT_MMU_MEMORY_MAP_H

#include "mmu/ram.h"

enum ram_kind {
    RAM_KIND_RAM,  /* read, write, execute                                                       */
    RAM_KIND_ROM,  /* read and execute from memory; writes go to the platform's mmio_write       */
    RAM_KIND_HOLE, /* everything goes to the platform; in ram_remap() only                       */
};

/*
 * Sets `len` bytes (rounded up to pages) of zeros aside for a region: *offset in the memfd, *host
 * the device's own mapping of them, valid until ram_destroy().  0, -ENOSPC when RAM_EXTRA_SIZE is
 * used up, or another negative errno.
 */
int ram_region_alloc(struct guest_ram *ram, uint64_t len, uint64_t *offset, void **host);

/*
 * Maps [offset, offset+len) of the memfd at gpa, which must all be a hole. 0; -EBUSY if something
 * is mapped there (nothing changes then); -EINVAL if not page-aligned, outside the map or outside
 * the memfd; -ENOSPC if the map is too fragmented; another errno if the host refuses (the range is
 * a hole then).
 */
int ram_map_region(struct guest_ram *ram, uint64_t gpa, uint64_t len, uint64_t offset,
                   enum ram_kind kind);

/* Makes it a hole. The errors of ram_map_region(), but for -EBUSY: what was there does not matter.
 */
int ram_unmap_region(struct guest_ram *ram, uint64_t gpa, uint64_t len);

/*
 * Like ram_map_region(), but replaces what is there: for the chipset, which decides what lies over
 * what.  ram_own_offset(ram, gpa) is the machine's own RAM at gpa.  Does nothing if the range is
 * like that already.
 */
int ram_remap(struct guest_ram *ram, uint64_t gpa, uint64_t len, uint64_t offset,
              enum ram_kind kind);

/* Copies from and to the memfd wherever it is mapped, if at all: a write to RAM that is hidden
 * under ROM. The range must be page-mapped nowhere else as code. 0 or a negative errno. */
int ram_file_read(const struct guest_ram *ram, uint64_t offset, void *buf, uint64_t len);
int ram_file_write(struct guest_ram *ram, uint64_t offset, const void *buf, uint64_t len);

#endif
