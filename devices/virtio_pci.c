/*
 * Virtio over PCI (virtio 1.2, 4.1): the legacy registers in BAR 0, MSI-X in BAR 1, and the modern
 * structures, each on a page of its own, in BAR 4.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

#include "devices/virtio.h"

#define LEGACY_BAR 0
#define MSIX_BAR   1
#define MODERN_BAR 4

/* The modern BAR: offsets and lengths of the structures. */
enum {
    COMMON_AT = 0x0000,
    ISR_AT = 0x1000,
    DEVICE_AT = 0x2000,
    NOTIFY_AT = 0x3000,
    STRUCTURE_SIZE = 0x1000,
    MODERN_SIZE = 0x4000,
    NOTIFY_MULTIPLIER = 4,
};

#define TRANSPORT_FEATURES                                                                         \
    (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC |                            \
     1ull << VIRTIO_RING_F_EVENT_IDX | LEGACY_FEATURES)
/* Offered through the legacy interface only (6.3). */
#define LEGACY_FEATURES (1ull << VIRTIO_F_NOTIFY_ON_EMPTY | 1ull << VIRTIO_F_ANY_LAYOUT)

/* -- Interrupts -------------------------------------------------------------------------------- */

void virtio_interrupt(struct virtio_device *d, uint16_t vector, uint8_t isr)
{
    if (pci_msix_enabled(&d->pci)) {
        if (vector != VIRTIO_MSI_NO_VECTOR)
            pci_notify(&d->pci, vector);
        return;
    }
    d->isr |= isr;
    pci_set_irq(&d->pci, true);
}

static uint8_t read_isr(struct virtio_device *d)
{
    uint8_t isr = d->isr;

    d->isr = 0;
    pci_set_irq(&d->pci, false);
    return isr;
}

void virtio_config_changed(struct virtio_device *d)
{
    d->generation++;
    if (d->status & VIRTIO_CONFIG_S_DRIVER_OK)
        virtio_interrupt(d, d->config_vector, VIRTIO_PCI_ISR_CONFIG);
}

/* A vector that does not exist cannot be chosen: it reads back as none (4.1.5.1.2.1). */
static uint16_t check_vector(const struct virtio_device *d, uint64_t vector)
{
    return vector < d->pci.msix_vectors ? (uint16_t)vector : VIRTIO_MSI_NO_VECTOR;
}

/* -- State ------------------------------------------------------------------------------------- */

void virtio_reset(struct virtio_device *d)
{
    d->resetting = true;
    if (d->class->reset)
        d->class->reset(d);
    d->resetting = false;
    d->features = 0;
    d->offered_select = d->features_select = 0;
    d->status = 0;
    d->config_vector = VIRTIO_MSI_NO_VECTOR;
    d->queue_select = 0;
    memset(d->queue, 0, sizeof(d->queue));
    for (unsigned i = 0; i < d->class->queues; i++) {
        d->queue[i].size = d->class->queue_size;
        d->queue[i].vector = VIRTIO_MSI_NO_VECTOR;
    }
    read_isr(d);
}

static void set_status(struct virtio_device *d, uint8_t status, bool legacy)
{
    if (status == 0) {
        virtio_reset(d);
        return;
    }
    if (!legacy && status & ~d->status & VIRTIO_CONFIG_S_FEATURES_OK &&
        (d->features & ~d->offered || !virtio_has(d, VIRTIO_F_VERSION_1)))
        status &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    /* Drivers written before the specification forgot to enable bus mastering. */
    if (legacy && status & VIRTIO_CONFIG_S_DRIVER_OK)
        d->pci.config[PCI_COMMAND] |= PCI_COMMAND_MASTER;
    d->status = status | (d->status & VIRTIO_CONFIG_S_NEEDS_RESET);
    /* Buffers may have been made available before the device was to look at them. */
    if (status & VIRTIO_CONFIG_S_DRIVER_OK)
        for (unsigned i = 0; i < d->class->queues; i++)
            if (d->queue[i].ready)
                d->class->notify(d, i);
}

static void notify(struct virtio_device *d, uint64_t queue)
{
    if (queue < d->class->queues && d->status & VIRTIO_CONFIG_S_DRIVER_OK)
        d->class->notify(d, (unsigned)queue);
}

static struct virtqueue *selected(struct virtio_device *d)
{
    return d->queue_select < d->class->queues ? &d->queue[d->queue_select] : NULL;
}

/* -- Device-specific configuration ------------------------------------------------------------- */

static uint64_t config_get(const struct virtio_device *d, uint64_t at, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        if (at + i < d->class->config_size)
            value |= (uint64_t)d->config[at + i] << (8 * i);
    return value;
}

static void config_put(struct virtio_device *d, uint64_t at, unsigned size, uint64_t value)
{
    if (!d->class->config_written || at >= d->class->config_size ||
        size > d->class->config_size - at)
        return;
    for (unsigned i = 0; i < size; i++)
        d->config[at + i] = (uint8_t)(value >> (8 * i));
    d->class->config_written(d, (unsigned)at, size);
}

/* -- Legacy ------------------------------------------------------------------------------------ */

static void legacy_set_pfn(struct virtio_device *d, uint32_t pfn)
{
    struct virtqueue *q = selected(d);

    if (!q)
        return;
    if (pfn == 0) {
        virtio_reset(d); /* what writing no address meant (4.1.4.8) */
        return;
    }
    if (q->ready)
        return;
    q->size = d->class->queue_size;
    q->desc = (uint64_t)pfn << VIRTIO_PCI_QUEUE_ADDR_SHIFT;
    q->avail = q->desc + 16ull * q->size;
    q->used = q->avail + 4 + 2ull * q->size + 2;
    q->used = (q->used + VIRTIO_PCI_VRING_ALIGN - 1) & ~(VIRTIO_PCI_VRING_ALIGN - 1ull);
    q->ready = true;
}

static uint64_t legacy_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_device *d = opaque;
    struct virtqueue *q = selected(d);
    bool msix = pci_msix_enabled(&d->pci);
    unsigned config = VIRTIO_PCI_CONFIG_OFF(msix);

    if (offset >= config)
        return config_get(d, offset - config, size);
    switch (offset) {
    case VIRTIO_PCI_HOST_FEATURES:
        return (uint32_t)d->offered;
    case VIRTIO_PCI_GUEST_FEATURES:
        return (uint32_t)d->features;
    case VIRTIO_PCI_QUEUE_PFN:
        return q ? q->desc >> VIRTIO_PCI_QUEUE_ADDR_SHIFT : 0;
    case VIRTIO_PCI_QUEUE_NUM:
        return q ? d->class->queue_size : 0;
    case VIRTIO_PCI_QUEUE_SEL:
        return d->queue_select;
    case VIRTIO_PCI_STATUS:
        return d->status;
    case VIRTIO_PCI_ISR:
        return read_isr(d);
    case VIRTIO_MSI_CONFIG_VECTOR:
        return d->config_vector;
    case VIRTIO_MSI_QUEUE_VECTOR:
        return q ? q->vector : VIRTIO_MSI_NO_VECTOR;
    default:
        return 0;
    }
}

static void legacy_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_device *d = opaque;
    struct virtqueue *q = selected(d);
    bool msix = pci_msix_enabled(&d->pci);
    unsigned config = VIRTIO_PCI_CONFIG_OFF(msix);

    if (offset >= config) {
        config_put(d, offset - config, size, value);
        return;
    }
    switch (offset) {
    case VIRTIO_PCI_GUEST_FEATURES:
        if (!(d->status & VIRTIO_CONFIG_S_DRIVER_OK))
            d->features = (uint32_t)(value & d->offered);
        break;
    case VIRTIO_PCI_QUEUE_PFN:
        legacy_set_pfn(d, (uint32_t)value);
        break;
    case VIRTIO_PCI_QUEUE_SEL:
        d->queue_select = (uint16_t)value;
        break;
    case VIRTIO_PCI_QUEUE_NOTIFY:
        notify(d, value & 0xffff);
        break;
    case VIRTIO_PCI_STATUS:
        set_status(d, (uint8_t)value, true);
        break;
    case VIRTIO_MSI_CONFIG_VECTOR:
        d->config_vector = check_vector(d, value & 0xffff);
        break;
    case VIRTIO_MSI_QUEUE_VECTOR:
        if (q)
            q->vector = check_vector(d, value & 0xffff);
        break;
    default:
        break;
    }
}

static const struct io_ops legacy_ops = {.read = legacy_read, .write = legacy_write, .max_size = 4};

/* -- Modern ------------------------------------------------------------------------------------ */

static uint32_t half(uint64_t value, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(value >> (32 * select));
}

static uint64_t common_read(struct virtio_device *d, uint64_t offset)
{
    const struct virtqueue *q = selected(d);

    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
        return d->offered_select;
    case VIRTIO_PCI_COMMON_DF:
        return half(d->offered & ~LEGACY_FEATURES, d->offered_select);
    case VIRTIO_PCI_COMMON_GFSELECT:
        return d->features_select;
    case VIRTIO_PCI_COMMON_GF:
        return half(d->features, d->features_select);
    case VIRTIO_PCI_COMMON_MSIX:
        return d->config_vector;
    case VIRTIO_PCI_COMMON_NUMQ:
        return d->class->queues;
    case VIRTIO_PCI_COMMON_STATUS:
        return d->status;
    case VIRTIO_PCI_COMMON_CFGGENERATION:
        return d->generation;
    case VIRTIO_PCI_COMMON_Q_SELECT:
        return d->queue_select;
    default:
        break;
    }
    if (!q)
        return 0; /* a queue that is not there has size 0 (4.1.4.3) */
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        return q->size;
    case VIRTIO_PCI_COMMON_Q_MSIX:
        return q->vector;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        return q->ready;
    case VIRTIO_PCI_COMMON_Q_NOFF:
        return d->queue_select;
    case VIRTIO_PCI_COMMON_Q_DESCLO:
        return (uint32_t)q->desc;
    case VIRTIO_PCI_COMMON_Q_DESCHI:
        return q->desc >> 32;
    case VIRTIO_PCI_COMMON_Q_AVAILLO:
        return (uint32_t)q->avail;
    case VIRTIO_PCI_COMMON_Q_AVAILHI:
        return q->avail >> 32;
    case VIRTIO_PCI_COMMON_Q_USEDLO:
        return (uint32_t)q->used;
    case VIRTIO_PCI_COMMON_Q_USEDHI:
        return q->used >> 32;
    default:
        return 0;
    }
}

static void set_half(uint64_t *value, bool high, uint64_t part)
{
    unsigned shift = high ? 32 : 0;

    *value = (*value & ~(0xffffffffull << shift)) | (part & 0xffffffff) << shift;
}

/* A 64-bit field may also be written in one piece (4.1.3.1 allows only halves; some do). */
static void set_address(uint64_t *address, bool high, unsigned size, uint64_t value)
{
    set_half(address, high, value);
    if (size == 8 && !high)
        set_half(address, true, value >> 32);
}

static void queue_write(struct virtio_device *d, struct virtqueue *q, uint64_t offset,
                        unsigned size, uint64_t value)
{
    if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
        q->vector = check_vector(d, value & 0xffff);
        return;
    }
    if (q->ready)
        return; /* what a queue is made of does not change while it is enabled */
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        value &= 0xffff;
        if (value && value <= d->class->queue_size && !(value & (value - 1)))
            q->size = (unsigned)value;
        break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        q->ready = (value & 0xffff) == 1;
        break;
    case VIRTIO_PCI_COMMON_Q_DESCLO:
    case VIRTIO_PCI_COMMON_Q_DESCHI:
        set_address(&q->desc, offset == VIRTIO_PCI_COMMON_Q_DESCHI, size, value);
        break;
    case VIRTIO_PCI_COMMON_Q_AVAILLO:
    case VIRTIO_PCI_COMMON_Q_AVAILHI:
        set_address(&q->avail, offset == VIRTIO_PCI_COMMON_Q_AVAILHI, size, value);
        break;
    case VIRTIO_PCI_COMMON_Q_USEDLO:
    case VIRTIO_PCI_COMMON_Q_USEDHI:
        set_address(&q->used, offset == VIRTIO_PCI_COMMON_Q_USEDHI, size, value);
        break;
    default:
        break;
    }
}

static void common_write(struct virtio_device *d, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtqueue *q = selected(d);

    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
        d->offered_select = (uint32_t)value;
        break;
    case VIRTIO_PCI_COMMON_GFSELECT:
        d->features_select = (uint32_t)value;
        break;
    case VIRTIO_PCI_COMMON_GF:
        if (d->features_select <= 1 && !(d->status & VIRTIO_CONFIG_S_FEATURES_OK))
            set_half(&d->features, d->features_select == 1, value);
        break;
    case VIRTIO_PCI_COMMON_MSIX:
        d->config_vector = check_vector(d, value & 0xffff);
        break;
    case VIRTIO_PCI_COMMON_STATUS:
        set_status(d, (uint8_t)value, false);
        break;
    case VIRTIO_PCI_COMMON_Q_SELECT:
        d->queue_select = (uint16_t)value;
        break;
    default:
        if (q)
            queue_write(d, q, offset, size, value);
        break;
    }
}

static uint64_t modern_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_device *d = opaque;
    uint64_t at = offset % STRUCTURE_SIZE;

    switch (offset - at) {
    case COMMON_AT:
        return common_read(d, at);
    case ISR_AT:
        return at == 0 ? read_isr(d) : 0;
    case DEVICE_AT:
        return config_get(d, at, size);
    default:
        return 0;
    }
}

static void modern_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_device *d = opaque;
    uint64_t at = offset % STRUCTURE_SIZE;

    switch (offset - at) {
    case COMMON_AT:
        common_write(d, at, size, value);
        break;
    case DEVICE_AT:
        config_put(d, at, size, value);
        break;
    case NOTIFY_AT:
        notify(d, at / NOTIFY_MULTIPLIER);
        break;
    default:
        break;
    }
}

static const struct io_ops modern_ops = {.read = modern_read, .write = modern_write, .max_size = 8};

/* -- The window into the BAR that configuration space gives (4.1.4.9) ---------------------------
 */

static bool window(const struct virtio_device *d, uint32_t *offset, uint32_t *size)
{
    const uint8_t *cap = d->pci.config + d->modern_cap;

    *offset = pci_get32(cap + VIRTIO_PCI_CAP_OFFSET);
    *size = pci_get32(cap + VIRTIO_PCI_CAP_LENGTH);
    return cap[VIRTIO_PCI_CAP_BAR] == MODERN_BAR && (*size == 1 || *size == 2 || *size == 4) &&
           *offset % *size == 0 && *offset <= MODERN_SIZE - *size;
}

static bool is_window(const struct virtio_device *d, unsigned at, unsigned size)
{
    unsigned data = d->modern_cap + sizeof(struct virtio_pci_cap);

    return at < data + 4 && data < at + size;
}

static void function_config_read(void *opaque, unsigned at, unsigned size)
{
    struct virtio_device *d = opaque;
    uint32_t offset, len;

    if (is_window(d, at, size) && window(d, &offset, &len))
        pci_put32(d->pci.config + d->modern_cap + sizeof(struct virtio_pci_cap),
                  (uint32_t)modern_read(d, offset, len));
}

static void function_config_written(void *opaque, unsigned at, unsigned size)
{
    struct virtio_device *d = opaque;
    uint32_t offset, len;

    if (is_window(d, at, size) && window(d, &offset, &len)) {
        uint64_t value = pci_get32(d->pci.config + d->modern_cap + sizeof(struct virtio_pci_cap));

        modern_write(d, offset, len, value & ((1ull << 8 * len) - 1));
    }
}

static void function_reset(void *opaque)
{
    virtio_reset(opaque);
}

static const struct pci_ops function_ops = {
    .config_read = function_config_read,
    .config_written = function_config_written,
    .reset = function_reset,
};

/* -- Construction ------------------------------------------------------------------------------ */

static int add_structure(struct virtio_device *d, uint8_t type, uint32_t offset, uint32_t len,
                         unsigned extra)
{
    unsigned size = sizeof(struct virtio_pci_cap) + extra;
    int at = pci_add_capability(&d->pci, PCI_CAP_ID_VNDR, size);

    if (at < 0)
        return at;
    d->pci.config[at + VIRTIO_PCI_CAP_LEN] = (uint8_t)size;
    d->pci.config[at + VIRTIO_PCI_CAP_CFG_TYPE] = type;
    d->pci.config[at + VIRTIO_PCI_CAP_BAR] = type == VIRTIO_PCI_CAP_PCI_CFG ? 0 : MODERN_BAR;
    pci_put32(d->pci.config + at + VIRTIO_PCI_CAP_OFFSET, offset);
    pci_put32(d->pci.config + at + VIRTIO_PCI_CAP_LENGTH, len);
    return at;
}

static int add_capabilities(struct virtio_device *d)
{
    uint8_t *writable = d->pci.writable;
    int at = add_structure(d, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_AT, STRUCTURE_SIZE, 0);

    at = at < 0 ? at : add_structure(d, VIRTIO_PCI_CAP_ISR_CFG, ISR_AT, STRUCTURE_SIZE, 0);
    at = at < 0 ? at : add_structure(d, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_AT, STRUCTURE_SIZE, 0);
    at = at < 0 ? at : add_structure(d, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_AT, STRUCTURE_SIZE, 4);
    if (at < 0)
        return at;
    pci_put32(d->pci.config + at + VIRTIO_PCI_NOTIFY_CAP_MULT, NOTIFY_MULTIPLIER);
    at = add_structure(d, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 4);
    if (at < 0)
        return at;
    d->modern_cap = (unsigned)at;
    writable[at + VIRTIO_PCI_CAP_BAR] = 0xff;
    memset(writable + at + VIRTIO_PCI_CAP_OFFSET, 0xff, 12); /* offset, length, data */
    return 0;
}

int virtio_init(struct virtio_device *d, const struct virtio_class *class, uint64_t features)
{
    const struct pci_id id = {
        .vendor = VIRTIO_PCI_VENDOR,
        .device = class->pci_device,
        .class = class->pci_class,
        .subvendor = VIRTIO_PCI_VENDOR,
        .subdevice = class->type,
        .interrupt_pin = 1,
    };
    int err;

    memset(d, 0, sizeof(*d));
    d->class = class;
    d->offered = features | TRANSPORT_FEATURES;
    pci_function_init(&d->pci, &id, &function_ops, d);
    err = pci_add_bar(&d->pci, LEGACY_BAR, PCI_BAR_IO, class->config_size > 100 ? 256 : 128,
                      &legacy_ops, d);
    err = err ? err : pci_add_bar(&d->pci, MODERN_BAR, PCI_BAR_MEM64, MODERN_SIZE, &modern_ops, d);
    err = err ? err : pci_msix_init(&d->pci, MSIX_BAR, class->queues + 1);
    err = err ? err : add_capabilities(d);
    if (err) {
        pci_function_destroy(&d->pci);
        return err;
    }
    for (unsigned i = 0; i < class->queues; i++) {
        d->queue[i].size = class->queue_size;
        d->queue[i].vector = VIRTIO_MSI_NO_VECTOR;
    }
    d->config_vector = VIRTIO_MSI_NO_VECTOR;
    return 0;
}

void virtio_destroy(struct virtio_device *d)
{
    virtio_reset(d);
    pci_function_destroy(&d->pci);
}
