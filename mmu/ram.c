/*
 * Guest RAM: one memfd, mapped at HVA = base + GPA.  What is mapped over it later is
 * memory_map.c's.
 *
 * Nothing is reserved ahead: the kernel accounts for a memfd page when it is first touched, so a
 * guest costs what it uses.  The price is that a host that runs out of memory later answers a touch
 * with SIGBUS; what can be known beforehand (more RAM than the host has memory and swap, a file
 * size limit) is refused here with an errno instead.
 *
 * This file does run libc: it is set-up and device code, never called with guest FP state live.
 */
#include "mmu/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "mmu/walk.h"

/* Inaccessible room on both sides of the mapping, which also lets its start be aligned to the size
 * of a host huge page. */
#define RAM_GUARD (2ull << 20)

static uint64_t reservation_size(const struct guest_ram *ram)
{
    return ram->span + 3 * RAM_GUARD; /* guard, alignment, RAM, guard */
}

static bool host_can_back(uint64_t size)
{
    struct sysinfo si;

    if (sysinfo(&si))
        return true; /* let the kernel decide */
    uint64_t unit = si.mem_unit ? si.mem_unit : 1;
    return size / unit <= (uint64_t)si.totalram + si.totalswap;
}

static int map_part(struct guest_ram *ram, uint64_t gpa, uint64_t len)
{
    if (!len)
        return 0;
    void *p =
        mmap(ram->base + gpa, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
             ram->memfd, (off_t)ram_own_offset(ram, gpa));
    if (p == MAP_FAILED)
        return -errno;
    ram->extent[ram->extents++] =
        (struct ram_extent){.gpa = gpa, .len = len, .offset = ram_own_offset(ram, gpa)};
    /* Fewer host TLB misses where the host's shmem_enabled says "advise"; no effect elsewhere. */
    madvise(p, len, MADV_HUGEPAGE);
    /* A core dump of the VMM is about the VMM: guest memory is large and private. */
    madvise(p, len, MADV_DONTDUMP);
    return 0;
}

int ram_create(struct guest_ram *ram, uint64_t size)
{
    struct rlimit limit;
    uint8_t *reserved = MAP_FAILED;
    int err;

    *ram = (struct guest_ram){.memfd = -1};
    if (size == 0 || size > (1ull << GUEST_PHYS_BITS) - RAM_HIGH_BASE)
        return -EINVAL;
    size = (size + GUEST_PAGE_SIZE - 1) & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    if (!host_can_back(size))
        return -ENOMEM;
    /* Going past the limit would not fail but raise SIGXFSZ. */
    if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur < size + RAM_EXTRA_SIZE)
        return -EFBIG;

    ram->size = size;
    ram->low_size = size < RAM_LOW_MAX ? size : RAM_LOW_MAX;
    ram->high_size = size - ram->low_size;
    ram->span = RAM_HIGH_BASE + ram->high_size;
    ram->file_used = size;

    ram->memfd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (ram->memfd < 0 || ftruncate(ram->memfd, (off_t)(size + RAM_EXTRA_SIZE)))
        goto fail;
    /* Whoever gets hold of the descriptor cannot shrink the file under our mappings. */
    if (fcntl(ram->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        goto fail;

    void *flags = mmap(NULL, ram->span >> GUEST_PAGE_SHIFT, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (flags == MAP_FAILED)
        goto fail;
    ram->page_flags = flags;
    memset((uint8_t *)flags + (ram->low_size >> GUEST_PAGE_SHIFT), RAM_PAGE_HOLE,
           (RAM_HIGH_BASE - ram->low_size) >> GUEST_PAGE_SHIFT);

    reserved = mmap(NULL, reservation_size(ram), PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        goto fail;
    ram->base = (uint8_t *)(((uintptr_t)reserved + 2 * RAM_GUARD - 1) & ~(RAM_GUARD - 1));
    err = map_part(ram, 0, ram->low_size);
    if (!err)
        err = map_part(ram, RAM_HIGH_BASE, ram->high_size);
    if (err) {
        errno = -err;
        goto fail;
    }
    /* The two ends of the reservation that alignment left over. */
    uint8_t *first = ram->base - RAM_GUARD;
    uint8_t *end = reserved + reservation_size(ram);
    uint8_t *keep_end = (uint8_t *)ram->base + ram->span + RAM_GUARD;
    if (first > reserved)
        munmap(reserved, (size_t)(first - reserved));
    if (end > keep_end)
        munmap(keep_end, (size_t)(end - keep_end));
    return 0;

fail:
    err = -errno;
    if (reserved != MAP_FAILED)
        munmap(reserved, reservation_size(ram));
    ram->base = NULL;
    ram_destroy(ram);
    return err;
}

void ram_destroy(struct guest_ram *ram)
{
    for (unsigned i = 0; i < ram->regions; i++)
        munmap(ram->region[i].host, ram->region[i].len);
    if (ram->base)
        munmap(ram->base - RAM_GUARD, ram->span + 2 * RAM_GUARD);
    if (ram->page_flags)
        munmap((void *)ram->page_flags, ram->span >> GUEST_PAGE_SHIFT);
    if (ram->memfd >= 0)
        close(ram->memfd);
    *ram = (struct guest_ram){.memfd = -1};
}

int ram_read(const struct guest_ram *ram, uint64_t gpa, void *buf, uint64_t len)
{
    const void *p = ram_read_ptr(ram, gpa, len);

    if (!p)
        return -EFAULT;
    memcpy(buf, p, len);
    return 0;
}

int ram_write(struct guest_ram *ram, uint64_t gpa, const void *buf, uint64_t len)
{
    void *p = ram_ptr(ram, gpa, len);

    if (!p)
        return -EFAULT;
    ram_before_write(ram, gpa, len);
    memcpy(p, buf, len);
    return 0;
}
