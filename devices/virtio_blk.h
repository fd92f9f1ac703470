/* The virtio block device (virtio 1.2, 5.2) on a drive of the block layer. */
#ifndef RINGSHIFT_DEVICES_VIRTIO_BLK_H
#define RINGSHIFT_DEVICES_VIRTIO_BLK_H

#include "devices/pci.h"

struct block_device;
struct virtio_blk;

/* Puts the drive on the bus; it stays the caller's, and is free again after virtio_blk_destroy().
 * 0 or negative errno. */
int virtio_blk_create(struct virtio_blk **out, struct pci_host *h, uint8_t devfn,
                      struct block_device *drive);
void virtio_blk_destroy(struct virtio_blk *b);

#endif
