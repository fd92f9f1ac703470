/*
 * The bridges of a 440FX board: the 82441FX host bridge at 00:00.0 and the 82371SB (PIIX3) ISA
 * bridge at 00:01.0, whose registers route PIRQA..PIRQD to ISA interrupts (82371SB data sheet,
 * "PIRQRC[A:D]").
 *
 * The host bridge decides what 0xa0000-0xfffff is (82441FX data sheet, 3.2.17 and 3.2.18):
 *   - 0xa0000-0xbffff belongs to the display, unless SMRAM is open;
 *   - 0xc0000-0xfffff in 13 segments: PAM registers say for each whether reads come from RAM or
 *     from the ISA bus, and whether writes go to RAM or to the ISA bus.  On the ISA bus there is
 * the BIOS ROM, at 0xe0000-0xfffff, and nothing else.
 */
#ifndef RINGSHIFT_DEVICES_CHIPSET_H
#define RINGSHIFT_DEVICES_CHIPSET_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/irq.h"
#include "devices/pci.h"

#define ISA_IRQS 16

#define PAM_BASE      0xc0000u
#define PAM_SIZE      0x40000u
#define PAM_SEGMENTS  13
#define ISA_BIOS      0xe0000u /* where the last ISA_BIOS_SIZE bytes of the BIOS ROM are decoded */
#define ISA_BIOS_SIZE 0x20000u
#define SMRAM_BASE    0xa0000u
#define SMRAM_SIZE    0x20000u

struct chipset {
    struct pci_function host_bridge, isa_bridge;
    struct irq_line isa[ISA_IRQS];
    bool pirq[PCI_INTX_PINS]; /* the wires' levels */
    uint16_t driven;          /* ISA interrupts that PIRQs assert now */
    struct guest_ram *ram;
    bool has_bios;
    uint64_t bios; /* offset in the RAM memfd of what is at ISA_BIOS on the ISA bus */
};

/* Puts both bridges on the bus; isa[n] is the wire of ISA interrupt n.  Memory below 1 MiB is laid
 * out at the first reset.  0 or negative errno. */
int chipset_init(struct chipset *c, struct pci_host *h, const struct irq_line isa[ISA_IRQS]);
/* The BIOS ROM: its last ISA_BIOS_SIZE bytes are in the RAM memfd at this offset. */
void chipset_set_bios(struct chipset *c, uint64_t offset);
/* Makes all segments RAM, as a BIOS has done by the time an operating system starts. */
void chipset_shadow(struct chipset *c);
/* For pci_host_config.set_pirq, directly or through its owner. */
void chipset_set_pirq(struct chipset *c, unsigned pirq, bool level);
/* Routes PIRQ n to ISA interrupt irq[n], as a BIOS does. */
void chipset_route(struct chipset *c, const uint8_t irq[PCI_INTX_PINS]);

/* Writes to PAM_BASE.. that do not go to RAM directly; opaque: struct chipset, PAM_SIZE bytes. */
extern const struct io_ops chipset_pam_ops;

#endif
