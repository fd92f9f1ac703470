/*
 * What tests and fuzzers of disk controllers share: a PCI bus, RAM, and drives whose medium is
 * memory: it can be made to fail, and to hold requests back until a test lets them go.
 */
#ifndef RINGSHIFT_TESTS_STORAGE_RIG_H
#define RINGSHIFT_TESTS_STORAGE_RIG_H

#include <linux/pci_regs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/block.h"
#include "devices/block_image.h"
#include "devices/pci.h"
#include "mmu/ram.h"

#define RIG_RAM (4u << 20)

struct mem_image {
    struct block_image image;
    uint8_t *data;
    _Atomic bool hold;
    _Atomic int fail; /* what every read and write returns */
    _Atomic unsigned reads, writes, flushes, discards, closes;
};

static inline void mem_image_wait(struct mem_image *m)
{
    while (m->hold)
        usleep(200);
}

static inline int mem_read(struct block_image *image, uint64_t offset, uint64_t len,
                           struct block_iov *to)
{
    struct mem_image *m = (struct mem_image *)image;

    mem_image_wait(m);
    m->reads++;
    if (m->fail)
        return m->fail;
    block_iov_put(to, m->data + offset, len);
    return 0;
}

static inline int mem_write(struct block_image *image, uint64_t offset, uint64_t len,
                            struct block_iov *from)
{
    struct mem_image *m = (struct mem_image *)image;

    mem_image_wait(m);
    m->writes++;
    if (m->fail)
        return m->fail;
    block_iov_get(from, m->data + offset, len);
    return 0;
}

static inline int mem_flush(struct block_image *image)
{
    struct mem_image *m = (struct mem_image *)image;

    mem_image_wait(m);
    m->flushes++;
    return 0;
}

static inline int mem_discard(struct block_image *image, uint64_t offset, uint64_t len)
{
    struct mem_image *m = (struct mem_image *)image;

    m->discards++;
    memset(m->data + offset, 0, len);
    return 0;
}

static inline int mem_zero(struct block_image *image, uint64_t offset, uint64_t len, bool unmap)
{
    (void)unmap;
    return mem_discard(image, offset, len);
}

static inline int mem_close(struct block_image *image)
{
    struct mem_image *m = (struct mem_image *)image;

    m->closes++; /* the test keeps it */
    return 0;
}

static const struct block_format mem_format = {
    .name = "memory",
    .read = mem_read,
    .write = mem_write,
    .flush = mem_flush,
    .discard = mem_discard,
    .write_zeroes = mem_zero,
    .close = mem_close,
};

/* Every 512-byte sector is different, and says which it is. */
static inline void mem_image_init(struct mem_image *m, uint64_t size)
{
    memset(m, 0, sizeof(*m));
    m->image = (struct block_image){.format = &mem_format, .size = size, .direct_fd = -1};
    m->data = malloc(size);
    for (uint64_t i = 0; i < size; i++)
        m->data[i] = (uint8_t)(i % 512 < 4 ? (i / 512) >> 8 * (i % 4) : i * 7 + i / 512);
}

struct rig {
    struct guest_ram ram;
    struct io_bus ports, mmio;
    struct reset_control rc;
    struct pci_host pci;
    struct block_queue *queue;
    bool pirq[PCI_INTX_PINS];
    unsigned messages;
    uint32_t message_data;
};

static inline void rig_pirq(void *opaque, unsigned pirq, bool level)
{
    ((struct rig *)opaque)->pirq[pirq] = level;
}

static inline void rig_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct rig *r = opaque;

    (void)address;
    r->messages++;
    r->message_data = data;
}

static inline int rig_init(struct rig *r)
{
    int err;

    memset(r, 0, sizeof(*r));
    err = ram_create(&r->ram, RIG_RAM);
    if (!err)
        err = block_queue_create(&r->queue, BLOCK_QUEUE_NO_URING);
    pci_host_init(&r->pci, &(struct pci_host_config){.reset_control = &r->rc,
                                                     .ports = &r->ports,
                                                     .mmio = &r->mmio,
                                                     .ram = &r->ram,
                                                     .set_pirq = rig_pirq,
                                                     .send_msi = rig_msi,
                                                     .opaque = r});
    return err;
}

static inline void rig_destroy(struct rig *r)
{
    block_queue_destroy(r->queue);
    io_bus_destroy(&r->ports);
    io_bus_destroy(&r->mmio);
    ram_destroy(&r->ram);
}

/* A drive with m in it (NULL: empty). */
static inline struct block_device *rig_drive(struct rig *r, struct mem_image *m, bool removable)
{
    struct block_device *d = NULL;

    if (block_device_create(&d, r->queue, "drive", removable))
        abort();
    block_device_set_medium(d, m ? &m->image : NULL);
    return d;
}

static inline void rig_config16(struct rig *r, uint8_t devfn, unsigned at, uint16_t value)
{
    pci_host_ops.write(&r->pci, 0, 4, 0x80000000u | (uint32_t)devfn << 8 | (at & 0xfc));
    pci_host_ops.write(&r->pci, 4 + (at & 3), 2, value);
}

static inline void rig_config32(struct rig *r, uint8_t devfn, unsigned at, uint32_t value)
{
    pci_host_ops.write(&r->pci, 0, 4, 0x80000000u | (uint32_t)devfn << 8 | (at & 0xfc));
    pci_host_ops.write(&r->pci, 4, 4, value);
}

/* I/O, memory and bus mastering. */
static inline void rig_enable(struct rig *r, uint8_t devfn, bool master)
{
    rig_config16(
        r, devfn, PCI_COMMAND,
        (uint16_t)(PCI_COMMAND_IO | PCI_COMMAND_MEMORY | (master ? PCI_COMMAND_MASTER : 0)));
}

static inline uint8_t *rig_mem(struct rig *r, uint64_t gpa)
{
    return r->ram.base + gpa;
}

static inline void rig_put32(struct rig *r, uint64_t gpa, uint32_t value)
{
    pci_put32(rig_mem(r, gpa), value);
}

#endif
