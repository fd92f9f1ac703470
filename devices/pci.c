/* PCI host bridge: see pci.h.  Register names are <linux/pci_regs.h>'s. */
#include "devices/pci.h"

#include <linux/pci_regs.h>
#include <stddef.h>
#include <string.h>

#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_MASK   0x80fffffcu
#define DATA_OFFSET    4

#define VENDOR_INTEL       0x8086
#define DEVICE_82441FX     0x1237 /* host bridge */
#define DEVICE_82371AB_ISA 0x7110 /* ISA bridge */
#define CLASS_BRIDGE_HOST  0x0600
#define CLASS_BRIDGE_ISA   0x0601

/* The function that this bus, slot and function number stand for, or NULL. */
static struct pci_function *lookup(const struct pci_host *h, unsigned bus, unsigned slot,
                                   unsigned function)
{
    return bus == 0 && function == 0 ? h->slot[slot] : NULL;
}

/* Reads `size` bytes of configuration space; `at` is at most 256 - size. */
static uint64_t config_read(const struct pci_function *f, unsigned at, unsigned size)
{
    uint64_t value = 0;

    if (!f)
        return UINT64_MAX;
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

        f->config[at + i] = (uint8_t)((f->config[at + i] & ~mask) | (byte & mask));
    }
}

/* -- Mechanism #1
 * ---------------------------------------------------------------------------------- */

static struct pci_function *selected(const struct pci_host *h)
{
    if (!(h->address & ADDRESS_ENABLE))
        return NULL;
    return lookup(h, h->address >> 16 & 0xff, h->address >> 11 & 31, h->address >> 8 & 7);
}

static uint64_t pci_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pci_host *h = opaque;

    if (offset < DATA_OFFSET) {
        /* Only a dword access to the port itself reaches the address register. */
        if (offset == 0 && size == 4)
            return h->address;
        if (offset == RESET_CONTROL_PORT - PCI_CONFIG_PORT && size == 1)
            return reset_control_read(h->reset_control);
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
            reset_control_write(h->reset_control, (uint8_t)value);
        return;
    }
    config_write(selected(h), (h->address & 0xfc) + (unsigned)(offset - DATA_OFFSET), size, value);
}

const struct io_ops pci_host_ops = {.read = pci_read, .write = pci_write, .max_size = 4};

/* -- ECAM
 * ------------------------------------------------------------------------------------------ */

/* The function at this offset, if the access lies in its first 256 bytes: these are conventional
 * devices, without extended configuration space. */
static struct pci_function *ecam_lookup(const struct pci_host *h, uint64_t offset, unsigned size)
{
    if ((offset & 0xfff) + size > sizeof(h->host_bridge.config))
        return NULL;
    return lookup(h, offset >> 20 & 0xff, offset >> 15 & 31, offset >> 12 & 7);
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

static void put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static void setup_bridge(struct pci_function *f, uint16_t device, uint16_t class, uint8_t revision)
{
    memset(f, 0, sizeof(*f));
    put16(f->config + PCI_VENDOR_ID, VENDOR_INTEL);
    put16(f->config + PCI_DEVICE_ID, device);
    put16(f->config + PCI_CLASS_DEVICE, class);
    f->config[PCI_REVISION_ID] = revision;
    put16(f->config + PCI_STATUS, PCI_STATUS_DEVSEL_MEDIUM);
    /* Bridges that always decode: memory, I/O and mastering cannot be switched off. */
    put16(f->config + PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    put16(f->writable + PCI_COMMAND, PCI_COMMAND_SERR | PCI_COMMAND_PARITY);
    f->config[PCI_HEADER_TYPE] = PCI_HEADER_TYPE_NORMAL;
}

void pci_host_reset(struct pci_host *h)
{
    h->address = 0;
    setup_bridge(&h->host_bridge, DEVICE_82441FX, CLASS_BRIDGE_HOST, 2);
    setup_bridge(&h->isa_bridge, DEVICE_82371AB_ISA, CLASS_BRIDGE_ISA, 1);
}

void pci_host_init(struct pci_host *h, struct reset_control *reset_control)
{
    memset(h, 0, sizeof(*h));
    h->reset_control = reset_control;
    h->slot[0] = &h->host_bridge;
    h->slot[PCI_ISA_SLOT] = &h->isa_bridge;
    pci_host_reset(h);
}
