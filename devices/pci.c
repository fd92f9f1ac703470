/*
 * PCI bus and functions: see pci.h.
 *
 * A BAR is on its bus while software has enabled decoding and its address is usable.  If two
 * claim the same addresses (which firmware brings about for moments, while it moves things), the
 * first one keeps them and the other waits: each change of a mapping tries all that wait.
 */
#include "devices/pci.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/pci_internal.h"
#include "mmu/ram.h"

#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_MASK   0x80fffffcu
#define DATA_OFFSET    4

#define ASSIGN_IO_BASE 0xc000u
#define ASSIGN_IO_END  0x10000u

void pci_put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

void pci_put32(uint8_t *at, uint32_t value)
{
    pci_put16(at, (uint16_t)value);
    pci_put16(at + 2, (uint16_t)(value >> 16));
}

/* -- BARs -------------------------------------------------------------------------------------- */

static unsigned bar_register(unsigned index)
{
    return index == PCI_ROM_BAR ? PCI_ROM_ADDRESS : PCI_BASE_ADDRESS_0 + 4 * index;
}

static uint16_t command(const struct pci_function *f)
{
    return pci_get16(f->config + PCI_COMMAND);
}

/* Where the registers say the BAR is, or PCI_UNMAPPED.  Address zero and the all-ones of a size
 * probe are no places: software writes them with decoding enabled. */
static uint64_t bar_wanted(const struct pci_function *f, unsigned index)
{
    const struct pci_bar *bar = &f->bar[index];
    const uint8_t *reg = f->config + bar_register(index);
    uint64_t base = pci_get32(reg), limit = UINT32_MAX;

    if (bar->type == PCI_BAR_NONE)
        return PCI_UNMAPPED;
    if (!(command(f) & (bar->type == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return PCI_UNMAPPED;
    switch (bar->type) {
    case PCI_BAR_IO:
        limit = 0x10000;
        break;
    case PCI_BAR_ROM:
        if (!(base & PCI_ROM_ADDRESS_ENABLE))
            return PCI_UNMAPPED;
        break;
    case PCI_BAR_MEM64:
        base |= (uint64_t)pci_get32(reg + 4) << 32;
        limit = UINT64_MAX;
        break;
    default:
        break;
    }
    base &= ~(bar->size - 1);
    return base == 0 || base > limit - bar->size ? PCI_UNMAPPED : base;
}

static struct io_bus *bar_bus(const struct pci_function *f, const struct pci_bar *bar)
{
    return bar->type == PCI_BAR_IO ? f->host->cfg.ports : f->host->cfg.mmio;
}

static void unmap_bar(struct pci_function *f, unsigned index)
{
    struct pci_bar *bar = &f->bar[index];

    if (bar->address == PCI_UNMAPPED)
        return;
    if (bar->ops)
        io_bus_remove(bar_bus(f, bar), bar->address);
    bar->address = PCI_UNMAPPED;
    if (f->ops && f->ops->bar_mapped)
        f->ops->bar_mapped(f->opaque, index, PCI_UNMAPPED);
}

static void map_bar(struct pci_function *f, unsigned index, uint64_t address)
{
    struct pci_bar *bar = &f->bar[index];

    if (bar->ops && io_bus_add(bar_bus(f, bar), address, bar->size, bar->ops, bar->opaque))
        return;
    if (f->ops && f->ops->bar_mapped && f->ops->bar_mapped(f->opaque, index, address)) {
        if (bar->ops)
            io_bus_remove(bar_bus(f, bar), address);
        return;
    }
    bar->address = address;
}

/* Takes away every mapping that is wrong, then makes those that are missing. */
static void remap_all(struct pci_host *h)
{
    if (h->remapping)
        return;
    h->remapping = true;
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < 256; i++) {
            struct pci_function *f = h->function[i];

            for (unsigned b = 0; f && b < PCI_BARS; b++) {
                uint64_t wanted = bar_wanted(f, b);

                if (f->bar[b].address == wanted)
                    continue;
                if (pass == 0)
                    unmap_bar(f, b);
                else
                    map_bar(f, b, wanted);
            }
        }
    }
    h->remapping = false;
}

static bool touches(unsigned at, unsigned size, unsigned first, unsigned len)
{
    return at < first + len && first < at + size;
}

/* -- Interrupt wires --------------------------------------------------------------------------- */

static void update_intx(struct pci_function *f)
{
    bool level = f->intx && !(command(f) & PCI_COMMAND_INTX_DISABLE);
    uint16_t status = pci_get16(f->config + PCI_STATUS) & (uint16_t)~PCI_STATUS_INTERRUPT;
    unsigned pirq;

    /* The status bit shows the function's state, disabled or not (PCI 3.0, 6.2.3). */
    pci_put16(f->config + PCI_STATUS, f->intx ? status | PCI_STATUS_INTERRUPT : status);
    if (level == f->intx_shown || !f->host || !f->config[PCI_INTERRUPT_PIN])
        return;
    f->intx_shown = level;
    pirq = pci_swizzle(f->devfn >> 3, f->config[PCI_INTERRUPT_PIN] - 1u);
    f->host->pirq_count[pirq] += level ? 1u : -1u;
    if (f->host->pirq_count[pirq] == (level ? 1 : 0) && f->host->cfg.set_pirq)
        f->host->cfg.set_pirq(f->host->cfg.opaque, pirq, level);
}

void pci_set_irq(struct pci_function *f, bool level)
{
    if (f->intx == level)
        return;
    f->intx = level;
    update_intx(f);
}

/* -- Configuration space ----------------------------------------------------------------------- */

/* The function that this bus, slot and function number stand for, or NULL. */
static struct pci_function *lookup(const struct pci_host *h, unsigned bus, unsigned devfn)
{
    return bus == 0 ? h->function[devfn & 0xff] : NULL;
}

/* Reads `size` bytes of configuration space; `at` is at most 256 - size. */
static uint64_t config_read(struct pci_function *f, unsigned at, unsigned size)
{
    uint64_t value = 0;

    if (!f)
        return UINT64_MAX;
    if (f->ops && f->ops->config_read)
        f->ops->config_read(f->opaque, at, size);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)f->config[at + i] << (8 * i);
    return value;
}

static void config_write(struct pci_function *f, unsigned at, unsigned size, uint64_t value)
{
    if (!f)
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i)), mask = f->writable[at + i];
        uint8_t now = (uint8_t)((f->config[at + i] & ~mask) | (byte & mask));

        f->config[at + i] = (uint8_t)(now & ~(byte & f->w1c[at + i]));
    }
    if (f->ops && f->ops->config_written)
        f->ops->config_written(f->opaque, at, size);
    if (touches(at, size, PCI_COMMAND, 2))
        update_intx(f);
    if (touches(at, size, PCI_COMMAND, 2) || touches(at, size, PCI_BASE_ADDRESS_0, 24) ||
        touches(at, size, PCI_ROM_ADDRESS, 4))
        remap_all(f->host);
    if (at >= PCI_STD_HEADER_SIZEOF || touches(at, size, PCI_COMMAND, 2))
        pci_msi_config_written(f);
}

/* -- Mechanism #1 ------------------------------------------------------------------------------ */

static struct pci_function *selected(const struct pci_host *h)
{
    if (!(h->address & ADDRESS_ENABLE))
        return NULL;
    return lookup(h, h->address >> 16 & 0xff, h->address >> 8 & 0xff);
}

static uint64_t pci_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pci_host *h = opaque;

    if (offset < DATA_OFFSET) {
        /* Only a dword access to the port itself reaches the address register. */
        if (offset == 0 && size == 4)
            return h->address;
        if (offset == RESET_CONTROL_PORT - PCI_CONFIG_PORT && size == 1)
            return reset_control_read(h->cfg.reset_control);
        return UINT64_MAX;
    }
    /* In bounds: the bus lets no access run past the eighth port, so this ends at 0xfc + 4. */
    return config_read(selected(h), (h->address & 0xfc) + (unsigned)(offset - DATA_OFFSET), size);
}

static void pci_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *h = opaque;

    if (offset < DATA_OFFSET) {
        if (offset == 0 && size == 4)
            h->address = (uint32_t)value & ADDRESS_MASK;
        else if (offset == RESET_CONTROL_PORT - PCI_CONFIG_PORT && size == 1)
            reset_control_write(h->cfg.reset_control, (uint8_t)value);
        return;
    }
    config_write(selected(h), (h->address & 0xfc) + (unsigned)(offset - DATA_OFFSET), size, value);
}

const struct io_ops pci_host_ops = {.read = pci_read, .write = pci_write, .max_size = 4};

/* -- ECAM -------------------------------------------------------------------------------------- */

/* The function at this offset, if the access lies in its first 256 bytes: these are conventional
 * devices, without extended configuration space. */
static struct pci_function *ecam_lookup(const struct pci_host *h, uint64_t offset, unsigned size)
{
    if ((offset & 0xfff) + size > sizeof(h->function[0]->config))
        return NULL;
    return lookup(h, offset >> 20 & 0xff, offset >> 12 & 0xff);
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    return config_read(ecam_lookup(opaque, offset, size), offset & 0xfff, size);
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    config_write(ecam_lookup(opaque, offset, size), offset & 0xfff, size, value);
}

const struct io_ops pci_ecam_ops = {.read = ecam_read, .write = ecam_write, .max_size = 4};

/* -- Functions --------------------------------------------------------------------------------- */

void pci_function_init(struct pci_function *f, const struct pci_id *id, const struct pci_ops *ops,
                       void *opaque)
{
    bool own = id->subvendor || id->subdevice;

    memset(f, 0, sizeof(*f));
    f->ops = ops;
    f->opaque = opaque;
    f->capabilities_end = PCI_STD_HEADER_SIZEOF;
    for (unsigned i = 0; i < PCI_BARS; i++)
        f->bar[i].address = PCI_UNMAPPED;
    pci_put16(f->config + PCI_VENDOR_ID, id->vendor);
    pci_put16(f->config + PCI_DEVICE_ID, id->device);
    f->config[PCI_REVISION_ID] = id->revision;
    f->config[PCI_CLASS_PROG] = (uint8_t)id->class;
    pci_put16(f->config + PCI_CLASS_DEVICE, (uint16_t)(id->class >> 8));
    pci_put16(f->config + PCI_SUBSYSTEM_VENDOR_ID, own ? id->subvendor : PCI_SUBVENDOR);
    pci_put16(f->config + PCI_SUBSYSTEM_ID, own ? id->subdevice : PCI_SUBDEVICE);
    f->config[PCI_INTERRUPT_PIN] = id->interrupt_pin;
    if (id->interrupt_pin)
        f->writable[PCI_INTERRUPT_LINE] = 0xff;
    f->writable[PCI_CACHE_LINE_SIZE] = 0xff;
    f->writable[PCI_LATENCY_TIMER] = 0xf8;
    pci_put16(f->writable + PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
                                             PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    pci_put16(f->w1c + PCI_STATUS, PCI_STATUS_PARITY | PCI_STATUS_SIG_TARGET_ABORT |
                                       PCI_STATUS_REC_TARGET_ABORT | PCI_STATUS_REC_MASTER_ABORT |
                                       PCI_STATUS_SIG_SYSTEM_ERROR | PCI_STATUS_DETECTED_PARITY);
}

void pci_function_destroy(struct pci_function *f)
{
    if (f->host) {
        pci_set_irq(f, false);
        for (unsigned i = 0; i < PCI_BARS; i++)
            unmap_bar(f, i);
        f->host->function[f->devfn] = NULL;
        f->host = NULL;
    }
    free(f->msix_table);
    f->msix_table = NULL;
    f->msix = 0;
}

static bool size_fits(enum pci_bar_type type, unsigned index, uint64_t size)
{
    if (size & (size - 1))
        return false;
    if ((type == PCI_BAR_ROM) != (index == PCI_ROM_BAR))
        return false;
    switch (type) {
    case PCI_BAR_IO:
        return size >= 4 && size <= 256;
    case PCI_BAR_MEM32:
        return size >= 16 && size <= 1u << 31;
    case PCI_BAR_MEM64:
        return index < PCI_ROM_BAR - 1 && size >= 16;
    case PCI_BAR_ROM:
        return size >= 2048 && size <= 1u << 24;
    case PCI_BAR_NONE:
        break;
    }
    return false;
}

int pci_add_bar(struct pci_function *f, unsigned index, enum pci_bar_type type, uint64_t size,
                const struct io_ops *ops, void *opaque)
{
    static const uint32_t low_bits[] = {
        [PCI_BAR_IO] = PCI_BASE_ADDRESS_SPACE_IO,
        [PCI_BAR_MEM32] = PCI_BASE_ADDRESS_MEM_TYPE_32,
        [PCI_BAR_MEM64] = PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH,
        [PCI_BAR_ROM] = 0,
    };
    unsigned reg;
    uint64_t mask = ~(size - 1);

    if (index >= PCI_BARS || !size_fits(type, index, size))
        return -EINVAL;
    reg = bar_register(index);
    if (f->bar[index].type != PCI_BAR_NONE || pci_get32(f->writable + reg) != 0 ||
        (type == PCI_BAR_MEM64 && f->bar[index + 1].type != PCI_BAR_NONE))
        return -EEXIST;
    f->bar[index] = (struct pci_bar){type, size, ops, opaque, PCI_UNMAPPED};
    pci_put32(f->config + reg, low_bits[type]);
    pci_put32(f->writable + reg, (uint32_t)mask | (type == PCI_BAR_ROM ? 1 : 0));
    if (type == PCI_BAR_MEM64)
        pci_put32(f->writable + reg + 4, (uint32_t)(mask >> 32));
    f->writable[PCI_COMMAND] |= type == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    return 0;
}

int pci_add_capability(struct pci_function *f, uint8_t id, unsigned size)
{
    unsigned at = f->capabilities_end, next = PCI_CAPABILITY_LIST;

    size = (size + 3) & ~3u;
    if (size < 4 || size > 256 - at)
        return -ENOSPC;
    /* At the end of the chain, so that software meets them in the order they were added. */
    while (f->config[next])
        next = f->config[next] + PCI_CAP_LIST_NEXT;
    f->config[next] = (uint8_t)at;
    f->config[at + PCI_CAP_LIST_ID] = id;
    f->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    f->capabilities_end = (uint16_t)(at + size);
    return (int)at;
}

int pci_register(struct pci_host *h, struct pci_function *f, uint8_t devfn)
{
    if (h->function[devfn])
        return -EEXIST;
    f->host = h;
    f->devfn = devfn;
    h->function[devfn] = f;
    memcpy(f->initial, f->config, sizeof(f->initial));
    /* Function 0 says that there are others (PCI 3.0, 6.2.1), whoever came first. */
    for (unsigned fn = 1; fn < 8; fn++) {
        struct pci_function *first = h->function[devfn & ~7u];

        if (h->function[(devfn & ~7u) + fn] && first) {
            first->config[PCI_HEADER_TYPE] |= 0x80;
            first->initial[PCI_HEADER_TYPE] |= 0x80;
        }
    }
    remap_all(h);
    return 0;
}

int pci_free_slot(const struct pci_host *h, unsigned first)
{
    for (unsigned slot = first; slot < PCI_SLOTS; slot++) {
        bool used = false;

        for (unsigned fn = 0; fn < 8; fn++)
            used |= h->function[PCI_DEVFN_OF(slot, fn)] != NULL;
        if (!used)
            return (int)slot;
    }
    return -ENOSPC;
}

/* -- DMA --------------------------------------------------------------------------------------- */

bool pci_bus_master(const struct pci_function *f)
{
    return command(f) & PCI_COMMAND_MASTER;
}

int pci_dma_read(struct pci_function *f, uint64_t gpa, void *buf, uint64_t len)
{
    return pci_bus_master(f) ? ram_read(f->host->cfg.ram, gpa, buf, len) : -EACCES;
}

int pci_dma_write(struct pci_function *f, uint64_t gpa, const void *buf, uint64_t len)
{
    return pci_bus_master(f) ? ram_write(f->host->cfg.ram, gpa, buf, len) : -EACCES;
}

void *pci_dma_map(struct pci_function *f, uint64_t gpa, uint64_t len, bool to_ram)
{
    struct guest_ram *ram = f->host->cfg.ram;
    void *p;

    if (!pci_bus_master(f))
        return NULL;
    if (!to_ram)
        return (void *)ram_read_ptr(ram, gpa, len);
    p = ram_ptr(ram, gpa, len);
    if (p)
        ram_before_write(ram, gpa, len);
    return p;
}

void pci_dma_done(struct pci_function *f, uint64_t gpa, uint64_t len)
{
    struct guest_ram *ram = f->host->cfg.ram;

    if (ram_ptr(ram, gpa, len))
        ram_before_write(ram, gpa, len);
}

/* -- The host ---------------------------------------------------------------------------------- */

void pci_host_init(struct pci_host *h, const struct pci_host_config *cfg)
{
    *h = (struct pci_host){.cfg = *cfg};
}

void pci_host_reset(struct pci_host *h)
{
    h->address = 0;
    h->remapping = true; /* once, when all functions are reset */
    for (unsigned i = 0; i < 256; i++) {
        struct pci_function *f = h->function[i];

        if (!f)
            continue;
        pci_set_irq(f, false);
        memcpy(f->config, f->initial, sizeof(f->config));
        pci_msi_reset(f);
        if (f->ops && f->ops->reset)
            f->ops->reset(f->opaque);
    }
    h->remapping = false;
    remap_all(h);
}

static uint64_t align_up(uint64_t value, uint64_t alignment)
{
    return (value + alignment - 1) & ~(alignment - 1);
}

/* Gives every BAR of this size an address. */
static void assign_size(struct pci_host *h, uint64_t size, uint64_t *io, uint64_t *mem,
                        uint64_t mem_end)
{
    for (unsigned i = 0; i < 256; i++) {
        struct pci_function *f = h->function[i];

        for (unsigned b = 0; f && b < PCI_BARS; b++) {
            struct pci_bar *bar = &f->bar[b];
            bool port = bar->type == PCI_BAR_IO;
            uint64_t *next = port ? io : mem, at = align_up(*next, size);
            uint8_t *reg = f->config + bar_register(b);

            if (bar->type == PCI_BAR_NONE || bar->size != size)
                continue;
            if (at > (port ? ASSIGN_IO_END : mem_end) - size)
                continue;
            pci_put32(reg, pci_get32(reg) | (uint32_t)at);
            *next = at + size;
        }
    }
}

void pci_host_assign(struct pci_host *h, uint64_t mem_base, uint64_t mem_end,
                     const uint8_t irq[PCI_INTX_PINS])
{
    uint64_t io = ASSIGN_IO_BASE, mem = mem_base;

    h->remapping = true;
    /* The largest first: no gaps. */
    for (unsigned bit = 31; bit >= 2; bit--)
        if (mem_end - mem_base >= 1ull << bit)
            assign_size(h, 1ull << bit, &io, &mem, mem_end);
    for (unsigned i = 0; i < 256; i++) {
        struct pci_function *f = h->function[i];
        unsigned pin = f ? f->config[PCI_INTERRUPT_PIN] : 0;

        if (!f)
            continue;
        f->config[PCI_COMMAND] |= f->writable[PCI_COMMAND] & (PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
        if (pin && f->writable[PCI_INTERRUPT_LINE])
            f->config[PCI_INTERRUPT_LINE] = irq[pci_swizzle(i >> 3, pin - 1)];
    }
    h->remapping = false;
    remap_all(h);
}
