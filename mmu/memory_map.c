/*
 * Changes of the memory map: see memory_map.h.
 *
 * A change replaces the mapping at base + GPA, edits the list of extents under its sequence lock,
 * sets the pages' kind, drops the translated code of these GPAs and then tells the engine.  In this
 * order another vCPU may for a moment use an old translation of an address, as a processor may
 * whose TLB has not been shot down, but nothing old is left once it has noticed.
 *
 * What is unmapped becomes anonymous memory, not nothing: emitted code and C code hold HVAs across
 * a device access that may have caused the change.
 *
 * Runs libc, like ram.c.
 */
#include "mmu/memory_map.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const uint32_t kind_flags[] = {
    [RAM_KIND_RAM] = 0,
    [RAM_KIND_ROM] = RAM_PAGE_ROM,
    [RAM_KIND_HOLE] = RAM_PAGE_HOLE,
};

int ram_region_alloc(struct guest_ram *ram, uint64_t len, uint64_t *offset, void **host)
{
    uint64_t end = ram->size + RAM_EXTRA_SIZE;
    void *p;

    if (!len)
        return -EINVAL;
    if (len > end - ram->file_used)
        return -ENOSPC;
    len = (len + GUEST_PAGE_SIZE - 1) & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, ram->memfd,
             (off_t)ram->file_used);
    if (p == MAP_FAILED)
        return -errno;
    if (ram->regions == RAM_MAX_REGIONS) {
        munmap(p, len);
        return -ENOSPC;
    }
    ram->region[ram->regions++] = (struct ram_region){.host = p, .len = len};
    madvise(p, len, MADV_DONTDUMP);
    *offset = ram->file_used;
    *host = p;
    ram->file_used += len;
    return 0;
}

/* Appends to a list under construction, joining what continues. False if there is no room. */
static bool append(struct ram_extent *list, unsigned *n, struct ram_extent e)
{
    if (!e.len)
        return true;
    if (*n) {
        struct ram_extent *last = &list[*n - 1];

        if (last->kind == e.kind && last->gpa + last->len == e.gpa &&
            last->offset + last->len == e.offset) {
            last->len += e.len;
            return true;
        }
    }
    if (*n == RAM_MAX_EXTENTS)
        return false;
    list[(*n)++] = e;
    return true;
}

/* The list of extents with [new->gpa, +len) replaced; a hole is not listed. */
static bool edited(const struct guest_ram *ram, const struct ram_extent *new,
                   struct ram_extent *list, unsigned *n)
{
    uint64_t end = new->gpa + new->len;
    bool placed = false, ok = true;

    *n = 0;
    for (unsigned i = 0; i <= ram->extents && ok; i++) {
        struct ram_extent e = {.gpa = UINT64_MAX};

        if (i < ram->extents)
            e = ram->extent[i];
        if (i < ram->extents && e.gpa < new->gpa) { /* what is left of it before */
            struct ram_extent before = e;

            if (before.len > new->gpa - e.gpa)
                before.len = new->gpa - e.gpa;
            ok = append(list, n, before);
        }
        if (!placed && e.gpa + (i < ram->extents ? e.len : 0) > new->gpa) {
            if (ok && !(new->kind &RAM_PAGE_HOLE))
                ok = append(list, n, *new);
            placed = true;
        }
        if (i < ram->extents && e.gpa + e.len > end) { /* and after */
            uint64_t cut = e.gpa < end ? end - e.gpa : 0;

            ok = ok && append(list, n,
                              (struct ram_extent){.gpa = e.gpa + cut,
                                                  .len = e.len - cut,
                                                  .offset = e.offset + cut,
                                                  .kind = e.kind});
        }
    }
    return ok;
}

static void publish(struct guest_ram *ram, const struct ram_extent *list, unsigned n)
{
    atomic_fetch_add_explicit(&ram->map_seq, 1, memory_order_acq_rel);
    atomic_thread_fence(memory_order_seq_cst);
    memcpy(ram->extent, list, n * sizeof(*list));
    ram->extents = n;
    atomic_fetch_add_explicit(&ram->map_seq, 1, memory_order_release);
}

static bool already(const struct guest_ram *ram, const struct ram_extent *new)
{
    struct ram_extent e = {0};

    if (new->kind & RAM_PAGE_HOLE) {
        for (uint64_t at = 0; at < new->len; at += GUEST_PAGE_SIZE)
            if (!(ram_page(ram, new->gpa + at) & RAM_PAGE_HOLE))
                return false;
        return true;
    }
    return ram_find_extent(ram, new->gpa, &e) && e.kind ==
                                                     new->kind &&new->gpa - e.gpa <=
                                                         e.len - new->len &&new->len <=
                                                         e.len &&e.offset + (new->gpa - e.gpa) ==
                                                     new->offset;
}

static int check(const struct guest_ram *ram, uint64_t gpa, uint64_t len, uint64_t offset)
{
    uint64_t file = ram->size + RAM_EXTRA_SIZE;

    if ((gpa | len | offset) & (GUEST_PAGE_SIZE - 1) || !len || gpa >= ram->span ||
        len > ram->span - gpa || offset > file || len > file - offset)
        return -EINVAL;
    return 0;
}

int ram_remap(struct guest_ram *ram, uint64_t gpa, uint64_t len, uint64_t offset,
              enum ram_kind kind)
{
    struct ram_extent list[RAM_MAX_EXTENTS];
    struct ram_extent new = {.gpa = gpa, .len = len, .offset = offset, .kind = kind_flags[kind]};
    bool code = false;
    unsigned n;
    int err = check(ram, gpa, len, offset);
    void *p;

    if (err)
        return err;
    if (already(ram, &new))
        return 0;
    if (!edited(ram, &new, list, &n))
        return -ENOSPC;
    if (kind == RAM_KIND_HOLE)
        p = mmap(ram->base + gpa, len, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    else
        p = mmap(ram->base + gpa, len, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_NORESERVE, ram->memfd, (off_t)offset);
    if (p == MAP_FAILED) {
        err = -errno;
        new.kind = RAM_PAGE_HOLE;
        if (!edited(ram, &new, list, &n)) /* fewer or as many as before, plus one at most */
            return err;
    } else {
        madvise(p, len, MADV_DONTDUMP);
    }
    publish(ram, list, n);
    for (uint64_t page = gpa >> GUEST_PAGE_SHIFT; page < (gpa + len) >> GUEST_PAGE_SHIFT; page++) {
        /* A page is a hole on the way from one kind to the other. */
        atomic_fetch_or(&ram->page_flags[page], RAM_PAGE_HOLE);
        if (new.kind != RAM_PAGE_HOLE)
            atomic_fetch_and(&ram->page_flags[page], (uint8_t)~RAM_PAGE_ROM);
        atomic_fetch_or(&ram->page_flags[page], (uint8_t) new.kind);
        uint8_t clear = (uint8_t)(RAM_PAGE_KIND & ~new.kind);
        code |= atomic_fetch_and(&ram->page_flags[page], (uint8_t)~clear) & RAM_PAGE_CODE;
    }
    if (code && ram->code_write)
        ram->code_write(ram->code_write_opaque, gpa, len);
    if (ram->map_changed)
        ram->map_changed(ram->code_write_opaque, gpa, len);
    return err;
}

int ram_map_region(struct guest_ram *ram, uint64_t gpa, uint64_t len, uint64_t offset,
                   enum ram_kind kind)
{
    int err = check(ram, gpa, len, offset);

    if (err)
        return err;
    for (uint64_t at = 0; at < len; at += GUEST_PAGE_SIZE)
        if (!(ram_page(ram, gpa + at) & RAM_PAGE_HOLE))
            return -EBUSY;
    return ram_remap(ram, gpa, len, offset, kind);
}

int ram_unmap_region(struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    return ram_remap(ram, gpa, len, 0, RAM_KIND_HOLE);
}

int ram_file_read(const struct guest_ram *ram, uint64_t offset, void *buf, uint64_t len)
{
    ssize_t n = pread(ram->memfd, buf, len, (off_t)offset);

    return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EIO;
}

int ram_file_write(struct guest_ram *ram, uint64_t offset, const void *buf, uint64_t len)
{
    uint64_t end = ram->size + RAM_EXTRA_SIZE;

    if (offset > end || len > end - offset)
        return -EINVAL;
    ssize_t n = pwrite(ram->memfd, buf, len, (off_t)offset);

    return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EIO;
}
