/*
 * virtio devices under a hostile driver.  An input is a list of 16-byte commands: writes and reads
 * of every BAR and of configuration space, pieces of memory, and waiting for requests.
 *
 *     byte 0: what, byte 1: size and slot, bytes 2..3: offset, bytes 4..11: value, 12..15: address
 */
#include "../support/virtio_driver.h"
#include "fuzz.h"
#include "script.h"

#define RAM_SIZE (2u << 20)

enum {
    WRITE_IO,
    WRITE_MEM,
    READ_IO,
    READ_MEM,
    WRITE_RAM,
    CONFIG,
    DRAIN,
    WRITE_MSIX,
    ENABLE,
    KINDS
};

static uint64_t bar(const struct virtio_bench *b, uint8_t which, bool port)
{
    if (port)
        return b->io + (which & 0x80 ? 0x80u : 0);
    return which & 0x80 ? b->rng_mem : b->mem;
}

static void command(struct virtio_bench *b, const uint8_t *c)
{
    unsigned size = 1u << (c[1] & 3), slot = c[1] & 0x80 ? RNG_SLOT : BLK_SLOT;
    uint16_t offset = (uint16_t)(c[2] | c[3] << 8);
    uint64_t value;
    uint32_t address;

    memcpy(&value, c + 4, 8);
    memcpy(&address, c + 12, 4);
    switch (c[0] % KINDS) {
    case WRITE_IO:
        io_bus_write(&b->ports, bar(b, c[1], true) + offset % 128, size > 4 ? 4 : size, value);
        break;
    case WRITE_MEM:
        io_bus_write(&b->mmio, bar(b, c[1], false) + offset % 0x4000, size, value);
        break;
    case READ_IO:
        io_bus_read(&b->ports, bar(b, c[1], true) + offset % 128, size > 4 ? 4 : size);
        break;
    case READ_MEM:
        io_bus_read(&b->mmio, bar(b, c[1], false) + offset % 0x4000, size);
        break;
    case WRITE_RAM:
        ram_write(&b->ram, address % (RAM_SIZE - 8), &value, 8);
        break;
    case CONFIG:
        bench_set_config(b, slot, offset & 0xff, size > 4 ? 4 : size, (uint32_t)value);
        break;
    case WRITE_MSIX:
        io_bus_write(&b->mmio, b->msix + offset % 0x1000, size < 4 ? 4 : size, value);
        break;
    case ENABLE: /* undoes what configuration writes broke */
        bench_assign(b);
        break;
    default:
        block_drain(b->disk);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct virtio_bench bench;
    static bool created;

    if (!created) {
        if (bench_create(&bench, RAM_SIZE, 1 << 20, false))
            abort();
        created = true;
    }
    memset(bench.ram.base, 0, 64 << 10);
    pci_host_reset(&bench.host);
    bench_assign(&bench);
    for (size_t at = 0; at + COMMAND <= size; at += COMMAND)
        command(&bench, data + at);
    block_drain(bench.disk);
    return 0;
}

/* -- A driver that behaves ----------------------------------------------------------------------
 */

static void add_desc(struct script *s, uint32_t table, unsigned i, uint64_t gpa, uint32_t len,
                     uint16_t flags, uint16_t next)
{
    add(s, WRITE_RAM, 3, 0, gpa, table + 16 * i);
    add(s, WRITE_RAM, 3, 0, len | (uint64_t)flags << 32 | (uint64_t)next << 48, table + 16 * i + 8);
}

/* Rings at 0x1000 (legacy layout of 256 entries), a request of this type at 0x8000. */
static void add_request(struct script *s, unsigned type, bool indirect)
{
    uint16_t data = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID ? VRING_DESC_F_WRITE : 0;
    uint32_t table = indirect ? 0x9000 : 0x1000;
    uint32_t len = type == VIRTIO_BLK_T_DISCARD || type == VIRTIO_BLK_T_WRITE_ZEROES ? 16 : 1024;

    add(s, WRITE_RAM, 3, 0, type, 0x8000);
    add(s, WRITE_RAM, 3, 0, 3, 0x8008);
    add(s, WRITE_RAM, 3, 0, 1, 0xa000);  /* of a range: the sector, */
    add(s, WRITE_RAM, 3, 0, 16, 0xa008); /* how many */
    add_desc(s, table, 0, 0x8000, 16, VRING_DESC_F_NEXT, 1);
    add_desc(s, table, 1, 0xa000, len, VRING_DESC_F_NEXT | data, 2);
    add_desc(s, table, 2, 0xb000, 1, VRING_DESC_F_WRITE, 0);
    if (indirect)
        add_desc(s, 0x1000, 0, 0x9000, 48, VRING_DESC_F_INDIRECT, 0);
    add(s, WRITE_RAM, 3, 0, 1ull << 16, 0x2000); /* avail: index 1, ring[0] = 0 */
}

size_t fuzz_seed(unsigned index, uint8_t *out, size_t max)
{
    static const unsigned types[] = {VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
                                     VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID,
                                     VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};
    unsigned type = types[index % 6], form = index / 6;
    struct script s = {out, 0, max};
    unsigned rng = form == 3 ? 0x80 : 0;

    if (form > 3)
        return 0;
    add_request(&s, type, form == 1);
    if (form == 0) { /* legacy */
        add(&s, WRITE_IO, 0, VIRTIO_PCI_STATUS, 3, 0);
        add(&s, WRITE_IO, 2, VIRTIO_PCI_GUEST_FEATURES, ~0u, 0);
        add(&s, WRITE_IO, 2, VIRTIO_PCI_QUEUE_PFN, 1, 0);
        add(&s, WRITE_IO, 0, VIRTIO_PCI_STATUS, 7, 0);
        add(&s, WRITE_IO, 1, VIRTIO_PCI_QUEUE_NOTIFY, 0, 0);
    } else {
        add(&s, WRITE_MEM, rng, VIRTIO_PCI_COMMON_STATUS, 3, 0);
        for (unsigned half = 0; half < 2; half++) {
            add(&s, WRITE_MEM, rng | 2, VIRTIO_PCI_COMMON_GFSELECT, half, 0);
            add(&s, WRITE_MEM, rng | 2, VIRTIO_PCI_COMMON_GF,
                half        ? 1
                : form == 2 ? 0
                            : 0x30000000u | 1u << VIRTIO_BLK_F_FLUSH,
                0);
        }
        add(&s, WRITE_MEM, rng, VIRTIO_PCI_COMMON_STATUS, 11, 0);
        if (rng)
            add(&s, WRITE_MEM, rng | 1, VIRTIO_PCI_COMMON_Q_SIZE, 8, 0);
        add(&s, WRITE_MEM, rng | 3, VIRTIO_PCI_COMMON_Q_DESCLO, 0x1000, 0);
        add(&s, WRITE_MEM, rng | 3, VIRTIO_PCI_COMMON_Q_AVAILLO, 0x2000, 0);
        add(&s, WRITE_MEM, rng | 3, VIRTIO_PCI_COMMON_Q_USEDLO, 0x3000, 0);
        add(&s, WRITE_MEM, rng | 1, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 0);
        add(&s, WRITE_MEM, rng, VIRTIO_PCI_COMMON_STATUS, 15, 0);
        add(&s, WRITE_MEM, rng | 1, 0x3000, 0, 0);
    }
    add(&s, DRAIN, 0, 0, 0, 0);
    add(&s, READ_IO, 0, VIRTIO_PCI_ISR, 0, 0);
    add(&s, WRITE_RAM, 3, 0, 2ull << 16, 0x2000);
    add(&s, form ? WRITE_MEM : WRITE_IO, rng | 1, form ? 0x3000 : VIRTIO_PCI_QUEUE_NOTIFY, 0, 0);
    return s.len;
}
