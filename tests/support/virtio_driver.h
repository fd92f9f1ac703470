/*
 * A driver for virtio devices on a PCI bus without a machine, for tests and fuzzing: RAM, buses, a
 * virtio-blk on a temporary file at slot 3 and a virtio-rng at slot 4, BARs assigned.
 */
#ifndef RINGSHIFT_TESTS_VIRTIO_DRIVER_H
#define RINGSHIFT_TESTS_VIRTIO_DRIVER_H

#include <linux/pci_regs.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/block.h"
#include "devices/pci.h"
#include "devices/virtio.h"
#include "devices/virtio_blk.h"
#include "devices/virtio_rng.h"
#include "mmu/ram.h"

#define BLK_SLOT 3
#define RNG_SLOT 4

struct virtio_bench {
    struct io_bus ports, mmio;
    struct guest_ram ram;
    struct reset_control rc;
    struct pci_host host;
    struct block_queue *queue;
    struct block_device *disk;
    struct virtio_blk *blk;
    struct virtio_rng rng;
    int file;
    uint16_t io;   /* BAR 0 of the block device */
    uint64_t msix; /* BAR 1 */
    uint64_t mem;  /* BAR 4 */
    uint64_t rng_mem;
    unsigned messages, pirqs;
    uint32_t message_data;
    bool pirq;
};

static inline void bench_message(void *opaque, uint64_t address, uint32_t data)
{
    struct virtio_bench *b = opaque;

    (void)address;
    b->messages++;
    b->message_data = data;
}

static inline void bench_pirq(void *opaque, unsigned pirq, bool level)
{
    struct virtio_bench *b = opaque;

    (void)pirq;
    b->pirqs += level;
    b->pirq = level;
}

static inline uint32_t bench_config(struct virtio_bench *b, unsigned slot, unsigned reg,
                                    unsigned size)
{
    io_bus_write(&b->ports, 0xcf8, 4, 0x80000000u | slot << 11 | (reg & 0xfc));
    return (uint32_t)io_bus_read(&b->ports, 0xcfc + (reg & 3), size);
}

static inline void bench_set_config(struct virtio_bench *b, unsigned slot, unsigned reg,
                                    unsigned size, uint32_t value)
{
    io_bus_write(&b->ports, 0xcf8, 4, 0x80000000u | slot << 11 | (reg & 0xfc));
    io_bus_write(&b->ports, 0xcfc + (reg & 3), size, value);
}

/* What firmware does; also after a bus reset. */
static inline void bench_assign(struct virtio_bench *b)
{
    static const uint8_t irq[4] = {10, 10, 11, 11};

    pci_host_assign(&b->host, 0xc0000000u, 0xe0000000u, irq);
    for (unsigned slot = BLK_SLOT; slot <= RNG_SLOT; slot++)
        bench_set_config(b, slot, PCI_COMMAND, 2, 7);
    b->io = (uint16_t)(bench_config(b, BLK_SLOT, PCI_BASE_ADDRESS_0, 4) & ~3u);
    b->msix = bench_config(b, BLK_SLOT, PCI_BASE_ADDRESS_1, 4) & ~15u;
    b->mem = bench_config(b, BLK_SLOT, PCI_BASE_ADDRESS_4, 4) & ~15u;
    b->rng_mem = bench_config(b, RNG_SLOT, PCI_BASE_ADDRESS_4, 4) & ~15u;
}

/* 0 or negative errno; disk_size bytes of zeros. */
static inline int bench_create(struct virtio_bench *b, uint64_t ram, uint64_t disk_size,
                               bool read_only)
{
    struct block_open_options o = {.format = BLOCK_FORMAT_RAW, .read_only = read_only};
    struct block_image *image;
    char path[64], err[5000];
    int code;

    memset(b, 0, sizeof(*b));
    code = ram_create(&b->ram, ram);
    if (code)
        return code;
    reset_control_init(&b->rc, NULL, NULL);
    pci_host_init(&b->host, &(struct pci_host_config){.reset_control = &b->rc,
                                                      .ports = &b->ports,
                                                      .mmio = &b->mmio,
                                                      .ram = &b->ram,
                                                      .set_pirq = bench_pirq,
                                                      .send_msi = bench_message,
                                                      .opaque = b});
    io_bus_add(&b->ports, PCI_CONFIG_PORT, PCI_CONFIG_PORTS, &pci_host_ops, &b->host);
    b->file = memfd_create("disk", MFD_CLOEXEC);
    if (b->file < 0 || ftruncate(b->file, (off_t)disk_size))
        return -1;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", b->file);
    o.path = path;
    code = block_queue_create(&b->queue, 0);
    code = code ? code : block_device_create(&b->disk, b->queue, "disk0", false);
    code = code ? code : block_image_open(&image, &o, err, sizeof(err));
    if (code)
        return code;
    block_device_set_medium(b->disk, image);
    code = virtio_blk_create(&b->blk, &b->host, PCI_DEVFN_OF(BLK_SLOT, 0), b->disk);
    code = code ? code : virtio_rng_init(&b->rng, &b->host, PCI_DEVFN_OF(RNG_SLOT, 0));
    if (!code)
        bench_assign(b);
    return code;
}

static inline void bench_destroy(struct virtio_bench *b)
{
    virtio_rng_destroy(&b->rng);
    virtio_blk_destroy(b->blk);
    block_device_destroy(b->disk);
    block_queue_destroy(b->queue);
    close(b->file);
    io_bus_destroy(&b->ports);
    io_bus_destroy(&b->mmio);
    ram_destroy(&b->ram);
}

#endif
