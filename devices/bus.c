/* Port and MMIO dispatch: see bus.h. */
#include "devices/bus.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static int grow(struct io_bus *bus)
{
    unsigned capacity = bus->capacity ? 2 * bus->capacity : 64;
    struct io_region *regions = realloc(bus->regions, capacity * sizeof(*regions));

    if (!regions)
        return -ENOMEM;
    bus->regions = regions;
    bus->capacity = capacity;
    return 0;
}

/* The index of the first region that begins above addr. */
static unsigned upper_bound(const struct io_bus *bus, uint64_t addr)
{
    unsigned lo = 0, hi = bus->count;

    while (lo < hi) {
        unsigned mid = lo + (hi - lo) / 2;

        if (bus->regions[mid].base <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int io_bus_add(struct io_bus *bus, uint64_t base, uint64_t len, const struct io_ops *ops,
               void *opaque)
{
    unsigned at = upper_bound(bus, base);

    if (len == 0 || base + len - 1 < base)
        return -EINVAL;
    if (at > 0 && base - bus->regions[at - 1].base < bus->regions[at - 1].len)
        return -EEXIST;
    if (at < bus->count && bus->regions[at].base - base < len)
        return -EEXIST;
    if (bus->count == bus->capacity && grow(bus))
        return -ENOMEM;
    memmove(&bus->regions[at + 1], &bus->regions[at], (bus->count - at) * sizeof(bus->regions[0]));
    bus->regions[at] = (struct io_region){base, len, ops, opaque};
    bus->count++;
    return 0;
}

int io_bus_remove(struct io_bus *bus, uint64_t base)
{
    unsigned at = upper_bound(bus, base);

    if (at == 0 || bus->regions[at - 1].base != base)
        return -ENOENT;
    memmove(&bus->regions[at - 1], &bus->regions[at], (bus->count - at) * sizeof(bus->regions[0]));
    bus->count--;
    return 0;
}

void io_bus_destroy(struct io_bus *bus)
{
    free(bus->regions);
    *bus = (struct io_bus){0};
}

/* The region that holds addr, or NULL. */
static const struct io_region *find(const struct io_bus *bus, uint64_t addr)
{
    unsigned at = upper_bound(bus, addr);

    if (at == 0 || addr - bus->regions[at - 1].base >= bus->regions[at - 1].len)
        return NULL;
    return &bus->regions[at - 1];
}

static bool takes_whole(const struct io_region *r, uint64_t addr, unsigned size)
{
    return r && size <= r->ops->max_size && size <= r->len - (addr - r->base);
}

static uint64_t size_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

uint64_t io_bus_read(const struct io_bus *bus, uint64_t addr, unsigned size)
{
    const struct io_region *r = find(bus, addr);

    if (takes_whole(r, addr, size))
        return r->ops->read(r->opaque, addr - r->base, size) & size_mask(size);
    if (size <= 1)
        return 0xff;

    uint64_t low = io_bus_read(bus, addr, size / 2);

    return low | io_bus_read(bus, addr + size / 2, size / 2) << (4 * size);
}

void io_bus_write(const struct io_bus *bus, uint64_t addr, unsigned size, uint64_t value)
{
    const struct io_region *r = find(bus, addr);

    if (takes_whole(r, addr, size)) {
        r->ops->write(r->opaque, addr - r->base, size, value & size_mask(size));
        return;
    }
    if (size <= 1)
        return;
    io_bus_write(bus, addr, size / 2, value & size_mask(size / 2));
    io_bus_write(bus, addr + size / 2, size / 2, value >> (4 * size));
}

/* -- Light code -------------------------------------------------------------------------------- */

/* The region that takes all of the access; NULL, and *none says whether nobody takes any of it. */
static const struct io_region *find_light(struct io_bus *bus, uint64_t addr, unsigned size,
                                          bool *none)
{
    *none = false;
    if (bus->last >= bus->count || addr - bus->regions[bus->last].base >= bus->regions[bus->last].len) {
        unsigned at = upper_bound(bus, addr);

        if (at == 0 || addr - bus->regions[at - 1].base >= bus->regions[at - 1].len) {
            *none = at == bus->count || bus->regions[at].base - addr >= size;
            return NULL;
        }
        bus->last = at - 1;
    }
    return takes_whole(&bus->regions[bus->last], addr, size) ? &bus->regions[bus->last] : NULL;
}

bool io_bus_read_light(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t *value)
{
    bool none;
    const struct io_region *r = find_light(bus, addr, size, &none);

    *value = size_mask(size);
    if (!r)
        return none;
    if (!r->ops->read_light || !r->ops->read_light(r->opaque, addr - r->base, size, value))
        return false;
    *value &= size_mask(size);
    return true;
}

bool io_bus_write_light(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t value)
{
    bool none;
    const struct io_region *r = find_light(bus, addr, size, &none);

    if (!r)
        return none;
    return r->ops->write_light &&
           r->ops->write_light(r->opaque, addr - r->base, size, value & size_mask(size));
}
