/*
 * Virtio (Virtual I/O Device 1.2, OASIS) over PCI, split virtqueues: what all virtio devices
 * share.  Devices are transitional: a driver finds the legacy interface in an I/O BAR (4.1.4.8)
 * and the modern one through capabilities into a memory BAR (4.1.4); interrupts are MSI-X or INTx.
 *
 * A device embeds struct virtio_device, describes itself in a struct virtio_class, and takes
 * chains of buffers off its queues:
 *
 *     notify(queue) -> virtqueue_pop() -> work, now or later -> virtqueue_push() ->
 * virtqueue_flush()
 *
 * Rings and descriptors are the driver's and so hostile: every field is copied before it is
 * checked, a chain that loops, leaves RAM or is longer than its queue breaks the device (status
 * NEEDS_RESET, 2.1.2) until the driver resets it.
 *
 * Machine lock held throughout.  Constants are those of <linux/virtio_*.h>.
 */
#ifndef RINGSHIFT_DEVICES_VIRTIO_H
#define RINGSHIFT_DEVICES_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/pci.h"

#define VIRTIO_QUEUE_MAX   256 /* descriptors in a queue, and in a chain */
#define VIRTIO_QUEUES_MAX  8
#define VIRTIO_CONFIG_MAX  256
#define VIRTIO_PCI_VENDOR  0x1af4
#define VIRTIO_PCI_DEVICE0 0x1000 /* transitional devices: 0x1000.. */

struct virtio_device;

struct virtio_class {
    const char *name;
    uint16_t pci_device;  /* PCI device ID of the transitional device */
    uint16_t type;        /* virtio device type (5): the PCI subsystem ID */
    uint32_t pci_class;   /* 24 bits */
    unsigned queues;      /* at most VIRTIO_QUEUES_MAX */
    unsigned queue_size;  /* power of two, at most VIRTIO_QUEUE_MAX */
    unsigned config_size; /* at most VIRTIO_CONFIG_MAX */
    /* The driver made buffers available in a queue (it may also be none). */
    void (*notify)(struct virtio_device *d, unsigned queue);
    /* The driver resets the device, or the machine does: forget all chains, and what is under way
     * must have ended on return.  virtqueue_push() does nothing meanwhile.  May be NULL. */
    void (*reset)(struct virtio_device *d);
    /* The driver wrote config[at, at + size).  May be NULL: configuration is read-only then. */
    void (*config_written)(struct virtio_device *d, unsigned at, unsigned size);
};

struct virtqueue {
    unsigned size;              /* descriptors, as the driver chose */
    bool ready;                 /* the rings' addresses are set */
    uint16_t vector;            /* MSI-X, or VIRTIO_MSI_NO_VECTOR */
    uint64_t desc, avail, used; /* GPAs */
    uint16_t next_avail, next_used;
    uint16_t signalled; /* next_used when the driver was interrupted last */
    bool signalled_valid;
};

struct virtio_device {
    struct pci_function pci;
    const struct virtio_class *class;
    uint64_t offered, features; /* by us; accepted by the driver */
    uint32_t offered_select, features_select;
    uint8_t status, isr, generation;
    uint16_t config_vector, queue_select;
    bool resetting;
    struct virtqueue queue[VIRTIO_QUEUES_MAX];
    uint8_t config[VIRTIO_CONFIG_MAX]; /* device-specific configuration, little-endian */
    unsigned modern_cap;               /* offset of the VIRTIO_PCI_CAP_PCI_CFG capability */
};

struct virtio_buffer {
    uint64_t gpa;
    uint32_t len;
};

/* A chain of descriptors: what the device reads comes before what it writes (2.7.4.2). */
struct virtio_chain {
    uint16_t head;
    unsigned readable, writable; /* buffers of each kind */
    uint64_t readable_len, writable_len;
    struct virtio_buffer buffer[VIRTIO_QUEUE_MAX];
};

/* -- For devices. ------------------------------------------------------------------------------ */

/* `features` are the device's own: ring and transport features come on top.  The caller fills
 * config[] afterwards and calls pci_register(h, &d->pci, ...).  0 or negative errno. */
int virtio_init(struct virtio_device *d, const struct virtio_class *class, uint64_t features);
/* Resets and takes the device off the bus. */
void virtio_destroy(struct virtio_device *d);

static inline bool virtio_has(const struct virtio_device *d, unsigned feature)
{
    return d->features >> feature & 1;
}

/* Takes the next chain; false if there is none (or the device is broken or not started). */
bool virtqueue_pop(struct virtio_device *d, unsigned queue, struct virtio_chain *out);
/* Whether virtqueue_pop() has something to look at. */
bool virtqueue_pending(struct virtio_device *d, unsigned queue);
/* Gives a chain back; `written` bytes of its writable buffers were filled. */
void virtqueue_push(struct virtio_device *d, unsigned queue, uint16_t head, uint32_t written);
/* Interrupts the driver if it wants to know of what was pushed. */
void virtqueue_flush(struct virtio_device *d, unsigned queue);
/* While disabled, the driver need not notify.  After enabling, the device looks once more. */
void virtqueue_want_notify(struct virtio_device *d, unsigned queue, bool want);

/* config[] changed: tells the driver. */
void virtio_config_changed(struct virtio_device *d);
/* The driver broke the rules: no chain is taken any more before a reset. */
void virtio_break(struct virtio_device *d);

/* Copies len bytes at `offset` of the chain's readable buffers.  0, -EINVAL if there are fewer, or
 * what pci_dma_read() says. */
int virtio_chain_read(struct virtio_device *d, const struct virtio_chain *c, uint64_t offset,
                      void *out, uint64_t len);
/* The same into its writable buffers. */
int virtio_chain_write(struct virtio_device *d, const struct virtio_chain *c, uint64_t offset,
                       const void *in, uint64_t len);

/* -- Between virtio_pci.c and virtio_queue.c. -------------------------------------------------- */
void virtio_reset(struct virtio_device *d);
void virtio_interrupt(struct virtio_device *d, uint16_t vector, uint8_t isr);

#endif
