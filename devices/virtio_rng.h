/* The virtio entropy device (virtio 1.2, 5.4): random bytes from the host. */
#ifndef RINGSHIFT_DEVICES_VIRTIO_RNG_H
#define RINGSHIFT_DEVICES_VIRTIO_RNG_H

#include "devices/virtio.h"

struct virtio_rng {
    struct virtio_device vdev;
};

/* 0 or negative errno. */
int virtio_rng_init(struct virtio_rng *r, struct pci_host *h, uint8_t devfn);
void virtio_rng_destroy(struct virtio_rng *r);

#endif
