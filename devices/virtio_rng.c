/* Virtio entropy device: see virtio_rng.h. */
#include "devices/virtio_rng.h"

#include <linux/virtio_ids.h>
#include <sys/random.h>

/* Bytes that one chain gets at most: the lock is not held for long.  Drivers ask again. */
#define CHUNK 4096

static void serve(struct virtio_device *d, unsigned queue, const struct virtio_chain *chain)
{
    uint8_t bytes[CHUNK];
    uint64_t want = chain->writable_len < CHUNK ? chain->writable_len : CHUNK;
    ssize_t got = getrandom(bytes, want, GRND_NONBLOCK);

    if (got < 0 || virtio_chain_write(d, chain, 0, bytes, (uint64_t)got))
        got = 0;
    virtqueue_push(d, queue, chain->head, (uint32_t)got);
}

static void notify(struct virtio_device *d, unsigned queue)
{
    struct virtio_chain chain;
    unsigned served = 0;

    do {
        /* More than fit the queue come only from a driver that does not stop. */
        for (; served < VIRTIO_QUEUE_MAX && virtqueue_pop(d, queue, &chain); served++)
            serve(d, queue, &chain);
        virtqueue_want_notify(d, queue, true);
    } while (served < VIRTIO_QUEUE_MAX && virtqueue_pending(d, queue));
    if (served)
        virtqueue_flush(d, queue);
}

static const struct virtio_class rng_class = {
    .name = "virtio-rng",
    .pci_device = VIRTIO_PCI_DEVICE0 + 5,
    .type = VIRTIO_ID_RNG,
    .pci_class = 0x00ff00,
    .queues = 1,
    .queue_size = 8,
    .notify = notify,
};

int virtio_rng_init(struct virtio_rng *r, struct pci_host *h, uint8_t devfn)
{
    int err = virtio_init(&r->vdev, &rng_class, 0);

    if (err)
        return err;
    err = pci_register(h, &r->vdev.pci, devfn);
    if (err)
        pci_function_destroy(&r->vdev.pci);
    return err;
}

void virtio_rng_destroy(struct virtio_rng *r)
{
    virtio_destroy(&r->vdev);
}
