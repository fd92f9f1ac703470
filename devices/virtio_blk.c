/*
 * Virtio block device: see virtio_blk.h.
 *
 * Data goes between the image and guest memory without a copy.  A driver that did not accept
 * VIRTIO_BLK_F_FLUSH cannot ask for durability, so each of its writes is followed by a flush
 * (5.2.6.2).  A request that is wrong in itself fails alone; one whose chain cannot hold a request
 * breaks the device.
 */
#include "devices/virtio_blk.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#include "devices/block.h"
#include "devices/virtio.h"

#define QUEUE_SIZE 256
/* A chain holds a header and a status besides the data. */
#define SEGMENTS_MAX (QUEUE_SIZE - 2)
/* Sectors in one discard or write-zeroes request: 2 GiB. */
#define RANGE_MAX ((2u << 30) / BLOCK_SECTOR)

struct blk_request {
    struct virtio_blk *blk;
    struct block_request io;
    struct virtio_chain chain;
    struct iovec iov[VIRTIO_QUEUE_MAX];
    uint32_t written; /* bytes of the chain that are filled, but for the status */
    struct blk_request *next;
};

struct virtio_blk {
    struct virtio_device vdev; /* first */
    struct block_device *drive;
    struct blk_request *free;
    unsigned inflight;
    bool flushing; /* a chain was pushed while the queue is being worked on: interrupt once */
    bool batch;
};

static struct virtio_blk *blk_of(struct virtio_device *d)
{
    return (struct virtio_blk *)d;
}

/* -- Ends of requests -------------------------------------------------------------------------- */

static void release(struct blk_request *r)
{
    r->next = r->blk->free;
    r->blk->free = r;
    r->blk->inflight--;
}

/* The status is the last byte that the device may write (5.2.6). */
static void finish(struct blk_request *r, uint8_t status)
{
    struct virtio_blk *b = r->blk;

    virtio_chain_write(&b->vdev, &r->chain, r->chain.writable_len - 1, &status, 1);
    virtqueue_push(&b->vdev, 0, r->chain.head, r->written + 1);
    release(r);
    if (b->batch)
        b->flushing = true;
    else
        virtqueue_flush(&b->vdev, 0);
}

static uint8_t status_of(int result)
{
    return result ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

static void done(struct block_request *io)
{
    struct blk_request *r = io->opaque;
    struct virtio_blk *b = r->blk;

    if (io->op == BLOCK_READ) {
        const struct virtio_buffer *buffer = r->chain.buffer + r->chain.readable;

        for (unsigned i = 0; i < r->chain.writable; i++)
            pci_dma_done(&b->vdev.pci, buffer[i].gpa, buffer[i].len);
        r->written = io->result ? 0 : (uint32_t)io->len;
    } else if (io->op != BLOCK_FLUSH && !io->result && !virtio_has(&b->vdev, VIRTIO_BLK_F_FLUSH) &&
               !b->vdev.resetting) {
        io->op = BLOCK_FLUSH;
        block_submit(b->drive, io);
        return;
    }
    finish(r, status_of(io->result));
}

/* -- Starts ------------------------------------------------------------------------------------ */

/* Maps `len` bytes after the first `skip` of these buffers; false if they are not all memory. */
static bool map_data(struct blk_request *r, const struct virtio_buffer *b, unsigned count,
                     uint64_t skip, uint64_t len, bool to_ram)
{
    unsigned n = 0;

    for (; count && len; b++, count--) {
        uint64_t part = b->len;
        void *p;

        if (skip >= part) {
            skip -= part;
            continue;
        }
        part = part - skip < len ? part - skip : len;
        p = pci_dma_map(&r->blk->vdev.pci, b->gpa + skip, part, to_ram);
        if (!p)
            return false;
        r->iov[n++] = (struct iovec){p, part};
        skip = 0;
        len -= part;
    }
    r->io.iov = r->iov;
    r->io.iovcnt = n;
    return len == 0;
}

static bool start_transfer(struct blk_request *r, bool read, uint64_t sector)
{
    const struct virtio_chain *c = &r->chain;
    uint64_t skip = sizeof(struct virtio_blk_outhdr);
    uint64_t len = read ? c->writable_len - 1 : c->readable_len - skip;

    if (len % BLOCK_SECTOR || sector > UINT64_MAX / BLOCK_SECTOR || len > UINT32_MAX)
        return false;
    if (read ? !map_data(r, c->buffer + c->readable, c->writable, 0, len, true)
             : !map_data(r, c->buffer, c->readable, skip, len, false))
        return false;
    r->io.op = read ? BLOCK_READ : BLOCK_WRITE;
    r->io.offset = sector * BLOCK_SECTOR;
    r->io.len = len;
    return true;
}

/* One range, as max_discard_seg and max_write_zeroes_seg say.  Gives a VIRTIO_BLK_S_. */
static uint8_t start_range(struct blk_request *r, bool zeroes)
{
    struct virtio_blk_discard_write_zeroes range;
    uint64_t skip = sizeof(struct virtio_blk_outhdr);
    uint32_t known = zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;

    if (r->chain.readable_len - skip != sizeof(range) ||
        virtio_chain_read(&r->blk->vdev, &r->chain, skip, &range, sizeof(range)))
        return VIRTIO_BLK_S_IOERR;
    if (range.flags & ~known)
        return VIRTIO_BLK_S_UNSUPP;
    if (range.num_sectors > RANGE_MAX || range.sector > UINT64_MAX / BLOCK_SECTOR)
        return VIRTIO_BLK_S_IOERR;
    r->io.op = zeroes ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD;
    r->io.unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    r->io.offset = range.sector * BLOCK_SECTOR;
    r->io.len = (uint64_t)range.num_sectors * BLOCK_SECTOR;
    return VIRTIO_BLK_S_OK;
}

static void get_id(struct blk_request *r)
{
    char id[VIRTIO_BLK_ID_BYTES] = {0};
    uint64_t room = r->chain.writable_len - 1;

    memcpy(id, r->blk->drive->name, strnlen(r->blk->drive->name, sizeof(r->blk->drive->name)));
    r->written = (uint32_t)(room < sizeof(id) ? room : sizeof(id));
    finish(r, status_of(virtio_chain_write(&r->blk->vdev, &r->chain, 0, id, r->written)));
}

static void start(struct blk_request *r)
{
    struct virtio_blk *b = r->blk;
    struct virtio_blk_outhdr header;
    uint8_t status = VIRTIO_BLK_S_OK;

    r->written = 0;
    r->io = (struct block_request){.done = done, .opaque = r};
    if (r->chain.writable_len < 1 ||
        virtio_chain_read(&b->vdev, &r->chain, 0, &header, sizeof(header))) {
        virtio_break(&b->vdev);
        release(r);
        return;
    }
    switch (header.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
        if (!start_transfer(r, header.type == VIRTIO_BLK_T_IN, header.sector))
            status = VIRTIO_BLK_S_IOERR;
        break;
    case VIRTIO_BLK_T_FLUSH:
        r->io.op = BLOCK_FLUSH;
        break;
    case VIRTIO_BLK_T_DISCARD:
        status = start_range(r, false);
        break;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        status = start_range(r, true);
        break;
    case VIRTIO_BLK_T_GET_ID:
        get_id(r);
        return;
    default:
        status = VIRTIO_BLK_S_UNSUPP;
        break;
    }
    if (status == VIRTIO_BLK_S_OK)
        block_submit(b->drive, &r->io);
    else
        finish(r, status);
}

static struct blk_request *new_request(struct virtio_blk *b)
{
    struct blk_request *r = b->free;

    if (r)
        b->free = r->next;
    else
        r = calloc(1, sizeof(*r));
    if (r) {
        r->blk = b;
        b->inflight++;
    }
    return r;
}

/* Starts what is available; false if it cannot go on. */
static bool start_all(struct virtio_blk *b)
{
    for (;;) {
        struct blk_request *r;

        /* A driver that has more under way than the queue holds used a descriptor twice. */
        if (b->inflight >= QUEUE_SIZE) {
            if (virtqueue_pending(&b->vdev, 0))
                virtio_break(&b->vdev);
            return false;
        }
        r = new_request(b);
        if (!r)
            return false;
        if (!virtqueue_pop(&b->vdev, 0, &r->chain)) {
            release(r);
            return true;
        }
        start(r);
    }
}

static void notify(struct virtio_device *d, unsigned queue)
{
    struct virtio_blk *b = blk_of(d);
    bool more;

    b->batch = true;
    do {
        virtqueue_want_notify(d, queue, false);
        more = start_all(b);
        virtqueue_want_notify(d, queue, true);
        /* What came before the driver saw that it should notify. */
    } while (more && virtqueue_pending(d, queue));
    b->batch = false;
    if (b->flushing)
        virtqueue_flush(d, queue);
    b->flushing = false;
}

static void reset(struct virtio_device *d)
{
    block_drain(blk_of(d)->drive);
}

static const struct virtio_class blk_class = {
    .name = "virtio-blk",
    .pci_device = VIRTIO_PCI_DEVICE0 + 1,
    .type = VIRTIO_ID_BLOCK,
    .pci_class = 0x010000, /* SCSI storage, as drivers of its beginnings expected */
    .queues = 1,
    .queue_size = QUEUE_SIZE,
    .config_size = offsetof(struct virtio_blk_config, unused1) + 3,
    .notify = notify,
    .reset = reset,
};

static void fill_config(struct virtio_blk *b)
{
    struct block_geometry g = block_device_geometry(b->drive);
    struct virtio_blk_config c = {
        .capacity = b->drive->size / BLOCK_SECTOR,
        .seg_max = SEGMENTS_MAX,
        .geometry = {(uint16_t)g.cylinders, (uint8_t)g.heads, (uint8_t)g.sectors},
        .blk_size = BLOCK_SECTOR,
        .physical_block_exp = 3, /* 4 KiB, the page cache's unit */
        .min_io_size = 1,
        .opt_io_size = 0,
        .num_queues = 1,
        .max_discard_sectors = RANGE_MAX,
        .max_discard_seg = 1,
        .discard_sector_alignment = 8,
        .max_write_zeroes_sectors = RANGE_MAX,
        .max_write_zeroes_seg = 1,
        .write_zeroes_may_unmap = 1,
    };

    memcpy(b->vdev.config, &c, blk_class.config_size);
}

int virtio_blk_create(struct virtio_blk **out, struct pci_host *h, uint8_t devfn,
                      struct block_device *drive)
{
    struct virtio_blk *b = calloc(1, sizeof(*b));
    uint64_t features = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_GEOMETRY |
                        1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_FLUSH |
                        1ull << VIRTIO_BLK_F_TOPOLOGY;
    int err;

    if (!b)
        return -ENOMEM;
    b->drive = drive;
    if (drive->read_only)
        features |= 1ull << VIRTIO_BLK_F_RO;
    else
        features |= 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
    err = virtio_init(&b->vdev, &blk_class, features);
    if (!err) {
        fill_config(b);
        err = pci_register(h, &b->vdev.pci, devfn);
        if (err)
            pci_function_destroy(&b->vdev.pci);
    }
    if (err) {
        free(b);
        return err;
    }
    *out = b;
    return 0;
}

void virtio_blk_destroy(struct virtio_blk *b)
{
    if (!b)
        return;
    virtio_destroy(&b->vdev);
    while (b->free) {
        struct blk_request *r = b->free;

        b->free = r->next;
        free(r);
    }
    free(b);
}
