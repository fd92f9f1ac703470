/*
 * Split virtqueues (virtio 1.2, 2.7), the device's side.
 *
 * The driver runs on other threads while we look at its memory.  An index is read before what it
 * covers (acquire) and written after it (release); the two places where each side must see the
 * other's write or be seen itself (2.7.7.1, 2.7.10) have a full fence.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <string.h>

#include "devices/virtio.h"

/* Offsets in the avail and used rings. */
enum { RING_FLAGS = 0, RING_INDEX = 2, RING_ENTRIES = 4 };

void virtio_break(struct virtio_device *d)
{
    if (d->status & VIRTIO_CONFIG_S_NEEDS_RESET)
        return;
    d->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    if (d->status & VIRTIO_CONFIG_S_DRIVER_OK)
        virtio_interrupt(d, d->config_vector, VIRTIO_PCI_ISR_CONFIG);
}

static bool running(const struct virtio_device *d, const struct virtqueue *q)
{
    return q->ready && !d->resetting && d->status & VIRTIO_CONFIG_S_DRIVER_OK &&
           !(d->status & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* A 16-bit field of a ring, or NULL (the device is broken then). */
static _Atomic uint16_t *field(struct virtio_device *d, uint64_t gpa, bool write)
{
    /* Natural alignment is the driver's duty (2.7); without it an access would not be atomic. */
    void *p = gpa & 1 ? NULL : pci_dma_map(&d->pci, gpa, 2, write);

    if (!p)
        virtio_break(d);
    return p;
}

static bool read_field(struct virtio_device *d, uint64_t gpa, uint16_t *out)
{
    _Atomic uint16_t *p = field(d, gpa, false);

    if (p)
        *out = atomic_load_explicit(p, memory_order_acquire);
    return p != NULL;
}

static bool write_field(struct virtio_device *d, uint64_t gpa, uint16_t value)
{
    _Atomic uint16_t *p = field(d, gpa, true);

    if (p)
        atomic_store_explicit(p, value, memory_order_release);
    return p != NULL;
}

static uint64_t used_event(const struct virtqueue *q)
{
    return q->avail + RING_ENTRIES + 2ull * q->size;
}

static uint64_t avail_event(const struct virtqueue *q)
{
    return q->used + RING_ENTRIES + 8ull * q->size;
}

/* -- Taking chains ----------------------------------------------------------------------------- */

static bool add_buffer(struct virtio_chain *c, const struct vring_desc *desc)
{
    bool writable = desc->flags & VRING_DESC_F_WRITE;
    unsigned n = c->readable + c->writable;

    if (n == VIRTIO_QUEUE_MAX || (!writable && c->writable))
        return false;
    c->buffer[n] = (struct virtio_buffer){desc->addr, desc->len};
    if (writable) {
        c->writable++;
        c->writable_len += desc->len;
    } else {
        c->readable++;
        c->readable_len += desc->len;
    }
    return true;
}

/* Follows a chain in a table of `count` descriptors.  A table is as long as its longest chain, so
 * more steps than that are a loop. */
static bool follow(struct virtio_device *d, struct virtio_chain *c, uint64_t table, uint32_t count,
                   uint16_t at, bool indirect)
{
    for (uint32_t steps = 0; steps < count; steps++) {
        struct vring_desc desc;

        if (at >= count || pci_dma_read(&d->pci, table + 16ull * at, &desc, sizeof(desc)))
            return false;
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            /* Not in an indirect table, not with a successor (2.7.5.3.1). */
            if (indirect || desc.flags & VRING_DESC_F_NEXT ||
                !virtio_has(d, VIRTIO_RING_F_INDIRECT_DESC) || desc.len == 0 ||
                desc.len % sizeof(desc) || desc.len / sizeof(desc) > VIRTIO_QUEUE_MAX)
                return false;
            return follow(d, c, desc.addr, desc.len / sizeof(desc), 0, true);
        }
        if (!add_buffer(c, &desc))
            return false;
        if (!(desc.flags & VRING_DESC_F_NEXT))
            return true;
        at = desc.next;
    }
    return false;
}

bool virtqueue_pending(struct virtio_device *d, unsigned queue)
{
    const struct virtqueue *q = &d->queue[queue];
    uint16_t index;

    return running(d, q) && read_field(d, q->avail + RING_INDEX, &index) && index != q->next_avail;
}

bool virtqueue_pop(struct virtio_device *d, unsigned queue, struct virtio_chain *out)
{
    struct virtqueue *q = &d->queue[queue];
    uint16_t index;

    if (!running(d, q) || !read_field(d, q->avail + RING_INDEX, &index) || index == q->next_avail)
        return false;
    out->readable = out->writable = 0;
    out->readable_len = out->writable_len = 0;
    if ((uint16_t)(index - q->next_avail) > q->size ||
        !read_field(d, q->avail + RING_ENTRIES + 2ull * (q->next_avail % q->size), &out->head) ||
        !follow(d, out, q->desc, q->size, out->head, false)) {
        virtio_break(d);
        return false;
    }
    q->next_avail++;
    return true;
}

void virtqueue_want_notify(struct virtio_device *d, unsigned queue, bool want)
{
    struct virtqueue *q = &d->queue[queue];

    if (!running(d, q))
        return;
    if (!virtio_has(d, VIRTIO_RING_F_EVENT_IDX))
        write_field(d, q->used + RING_FLAGS, want ? 0 : VRING_USED_F_NO_NOTIFY);
    else if (want)
        write_field(d, avail_event(q), q->next_avail);
    if (want)
        atomic_thread_fence(memory_order_seq_cst);
}

/* -- Giving them back -------------------------------------------------------------------------- */

void virtqueue_push(struct virtio_device *d, unsigned queue, uint16_t head, uint32_t written)
{
    struct virtqueue *q = &d->queue[queue];
    struct vring_used_elem elem = {.id = head, .len = written};

    if (!running(d, q))
        return;
    if (pci_dma_write(&d->pci, q->used + RING_ENTRIES + 8ull * (q->next_used % q->size), &elem,
                      sizeof(elem))) {
        virtio_break(d);
        return;
    }
    write_field(d, q->used + RING_INDEX, ++q->next_used);
}

/* Whether the driver asked to be told when used entry `event` is there (2.7.10). */
static bool passed(uint16_t event, uint16_t now, uint16_t before)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static bool wants_interrupt(struct virtio_device *d, struct virtqueue *q)
{
    uint16_t value, before = q->signalled;
    bool valid = q->signalled_valid;

    atomic_thread_fence(memory_order_seq_cst);
    /* For legacy drivers: always when the queue has run empty. */
    if (virtio_has(d, VIRTIO_F_NOTIFY_ON_EMPTY) && read_field(d, q->avail + RING_INDEX, &value) &&
        value == q->next_avail)
        return true;
    if (!virtio_has(d, VIRTIO_RING_F_EVENT_IDX))
        return read_field(d, q->avail + RING_FLAGS, &value) &&
               !(value & VRING_AVAIL_F_NO_INTERRUPT);
    q->signalled = q->next_used;
    q->signalled_valid = true;
    if (!read_field(d, used_event(q), &value))
        return false;
    return !valid || passed(value, q->next_used, before);
}

void virtqueue_flush(struct virtio_device *d, unsigned queue)
{
    struct virtqueue *q = &d->queue[queue];

    if (running(d, q) && wants_interrupt(d, q))
        virtio_interrupt(d, q->vector, 1);
}

/* -- The contents of chains -------------------------------------------------------------------- */

static int chain_copy(struct virtio_device *d, const struct virtio_buffer *b, unsigned count,
                      uint64_t offset, uint8_t *buf, uint64_t len, bool write)
{
    for (; len && count; b++, count--) {
        uint64_t n;
        int err;

        if (offset >= b->len) {
            offset -= b->len;
            continue;
        }
        n = b->len - offset < len ? b->len - offset : len;
        err = write ? pci_dma_write(&d->pci, b->gpa + offset, buf, n)
                    : pci_dma_read(&d->pci, b->gpa + offset, buf, n);
        if (err)
            return err;
        buf += n;
        len -= n;
        offset = 0;
    }
    return len ? -EINVAL : 0;
}

int virtio_chain_read(struct virtio_device *d, const struct virtio_chain *c, uint64_t offset,
                      void *out, uint64_t len)
{
    return chain_copy(d, c->buffer, c->readable, offset, out, len, false);
}

int virtio_chain_write(struct virtio_device *d, const struct virtio_chain *c, uint64_t offset,
                       const void *in, uint64_t len)
{
    return chain_copy(d, c->buffer + c->readable, c->writable, offset, (void *)in, len, true);
}
