/* 440FX and PIIX3 bridges: see chipset.h. */
#include "devices/chipset.h"

#include <linux/pci_regs.h>
#include <string.h>

#define DEVICE_82441FX     0x1237
#define DEVICE_82371SB_ISA 0x7000
#define CLASS_BRIDGE_HOST  0x060000
#define CLASS_BRIDGE_ISA   0x060100

#define PIRQRC          0x60 /* four registers */
#define PIRQRC_DISABLED 0x80
#define PIRQRC_IRQ      0x0f
#define ROUTABLE        0xdef8 /* 3-7, 9-12, 14, 15: the others are reserved */

/* The ISA interrupts' levels follow from wires and routes; tells of those that changed. */
static void update(struct chipset *c)
{
    uint16_t level = 0, changed;

    for (unsigned i = 0; i < PCI_INTX_PINS; i++) {
        uint8_t route = c->isa_bridge.config[PIRQRC + i];

        if (c->pirq[i] && !(route & PIRQRC_DISABLED))
            level |= (uint16_t)(1u << (route & PIRQRC_IRQ) & ROUTABLE);
    }
    changed = level ^ c->driven;
    c->driven = level;
    for (unsigned i = 0; i < ISA_IRQS; i++)
        if (changed >> i & 1)
            irq_set(&c->isa[i], level >> i & 1);
}

void chipset_set_pirq(struct chipset *c, unsigned pirq, bool level)
{
    c->pirq[pirq] = level;
    update(c);
}

void chipset_route(struct chipset *c, const uint8_t irq[PCI_INTX_PINS])
{
    memcpy(c->isa_bridge.config + PIRQRC, irq, PCI_INTX_PINS);
    update(c);
}

static void isa_written(void *opaque, unsigned at, unsigned size)
{
    struct chipset *c = opaque;

    if (at < PIRQRC + PCI_INTX_PINS && at + size > PIRQRC)
        update(c);
}

static void isa_reset(void *opaque)
{
    update(opaque);
}

static const struct pci_ops isa_ops = {.config_written = isa_written, .reset = isa_reset};

static void init_bridge(struct pci_function *f, const struct pci_id *id, const struct pci_ops *ops,
                        void *opaque)
{
    pci_function_init(f, id, ops, opaque);
    pci_put16(f->config + PCI_STATUS, PCI_STATUS_DEVSEL_MEDIUM);
    /* Bridges that always decode: memory, I/O and mastering cannot be switched off. */
    pci_put16(f->config + PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    pci_put16(f->writable + PCI_COMMAND, PCI_COMMAND_SERR | PCI_COMMAND_PARITY);
    f->writable[PCI_CACHE_LINE_SIZE] = f->writable[PCI_LATENCY_TIMER] = 0;
}

int chipset_init(struct chipset *c, struct pci_host *h, const struct irq_line isa[ISA_IRQS])
{
    static const struct pci_id host = {
        .vendor = PCI_VENDOR_INTEL,
        .device = DEVICE_82441FX,
        .class = CLASS_BRIDGE_HOST,
        .revision = 2,
    };
    static const struct pci_id bridge = {
        .vendor = PCI_VENDOR_INTEL,
        .device = DEVICE_82371SB_ISA,
        .class = CLASS_BRIDGE_ISA,
    };
    int err;

    memset(c, 0, sizeof(*c));
    memcpy(c->isa, isa, sizeof(c->isa));
    init_bridge(&c->host_bridge, &host, NULL, c);
    init_bridge(&c->isa_bridge, &bridge, &isa_ops, c);
    for (unsigned i = 0; i < PCI_INTX_PINS; i++) {
        c->isa_bridge.config[PIRQRC + i] = PIRQRC_DISABLED;
        c->isa_bridge.writable[PIRQRC + i] = PIRQRC_DISABLED | PIRQRC_IRQ;
    }
    err = pci_register(h, &c->host_bridge, PCI_DEVFN_OF(0, 0));
    return err ? err : pci_register(h, &c->isa_bridge, PCI_DEVFN_OF(PCI_ISA_SLOT, 0));
}
