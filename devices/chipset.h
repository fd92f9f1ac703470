/*
 * The bridges of a 440FX board: the 82441FX host bridge at 00:00.0 and the 82371SB (PIIX3) ISA
 * bridge at 00:01.0, whose registers route PIRQA..PIRQD to ISA interrupts (82371SB data sheet,
 * "PIRQRC[A:D]").
 */
#ifndef RINGSHIFT_DEVICES_CHIPSET_H
#define RINGSHIFT_DEVICES_CHIPSET_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/irq.h"
#include "devices/pci.h"

#define ISA_IRQS 16

struct chipset {
    struct pci_function host_bridge, isa_bridge;
    struct irq_line isa[ISA_IRQS];
    bool pirq[PCI_INTX_PINS]; /* the wires' levels */
    uint16_t driven;          /* ISA interrupts that PIRQs assert now */
};

/* Puts both bridges on the bus; isa[n] is the wire of ISA interrupt n.  0 or negative errno. */
int chipset_init(struct chipset *c, struct pci_host *h, const struct irq_line isa[ISA_IRQS]);
/* For pci_host_config.set_pirq, directly or through its owner. */
void chipset_set_pirq(struct chipset *c, unsigned pirq, bool level);
/* Routes PIRQ n to ISA interrupt irq[n], as a BIOS does. */
void chipset_route(struct chipset *c, const uint8_t irq[PCI_INTX_PINS]);

#endif
