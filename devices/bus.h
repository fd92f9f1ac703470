/*
 * Address spaces that devices claim ranges of: I/O ports and memory-mapped I/O.  Lookup is a
 * binary search over sorted, disjoint regions, which come and go as software moves PCI BARs.
 * Called with the machine lock held.
 */
#ifndef RINGSHIFT_DEVICES_BUS_H
#define RINGSHIFT_DEVICES_BUS_H

#include <stdbool.h>
#include <stdint.h>

/* A device's handlers; `offset` is relative to the region.  Values are little-endian in the low
 * `size` bytes.  A handler may add and remove regions, its own included. */
struct io_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
    /* Widest access the device knows (1, 2, 4 or 8); a wider one arrives as several. */
    unsigned max_size;
    /* For accesses that guests make all the time (may be NULL): the same without libc and without
     * calling anybody else, so that a vCPU need not save its FP state.  False, with nothing changed:
     * call read or write. */
    bool (*read_light)(void *opaque, uint64_t offset, unsigned size, uint64_t *value);
    bool (*write_light)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

struct io_region {
    uint64_t base, len;
    const struct io_ops *ops;
    void *opaque;
};

/* Zero is an empty bus. */
struct io_bus {
    struct io_region *regions; /* sorted by base */
    unsigned count, capacity;
    unsigned last; /* region that a light access hit last */
};

/* 0, -EINVAL (empty or wrapping range), -EEXIST (overlap) or -ENOMEM. */
int io_bus_add(struct io_bus *bus, uint64_t base, uint64_t len, const struct io_ops *ops,
               void *opaque);
/* Removes the region that was added at exactly this base; -ENOENT if there is none. */
int io_bus_remove(struct io_bus *bus, uint64_t base);
/* Frees what the bus allocated; it is empty then. */
void io_bus_destroy(struct io_bus *bus);

/* size is 1, 2, 4 or 8.  What no device claims reads as all-ones and swallows writes; an access
 * that straddles regions, or is wider than the device, is split. */
uint64_t io_bus_read(const struct io_bus *bus, uint64_t addr, unsigned size);
void io_bus_write(const struct io_bus *bus, uint64_t addr, unsigned size, uint64_t value);

/* The same for light code: false, with nothing changed, if it takes more than that.  What no device
 * claims is no work at all. */
bool io_bus_read_light(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t *value);
bool io_bus_write_light(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t value);

#endif
