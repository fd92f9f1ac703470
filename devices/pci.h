/*
 * PCI bus 0 behind configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2), ports 0xcf8-0xcff,
 * and the memory-mapped one (ECAM; PCI Express 5.0, 7.2.2), which the ACPI MCFG table announces.
 * It holds a host bridge (82441FX) and an ISA bridge (82371AB); other functions read as all-ones.
 * Port 0xcf9 lies in this range: byte accesses there are the chipset's reset control.
 */
#ifndef RINGSHIFT_DEVICES_PCI_H
#define RINGSHIFT_DEVICES_PCI_H

#include <stdint.h>

#include "devices/bus.h"
#include "devices/reset.h"

#define PCI_CONFIG_PORT  0xcf8
#define PCI_CONFIG_PORTS 8
#define PCI_ECAM_BASE    0xe0000000ull
#define PCI_ECAM_SIZE    (256ull << 20) /* buses 0..255 */
#define PCI_ISA_SLOT     1
#define PCI_SLOTS        32

struct pci_function {
    uint8_t config[256];
    uint8_t writable[256]; /* which bits of config software may change */
};

struct pci_host {
    struct reset_control *reset_control;
    uint32_t address;
    struct pci_function host_bridge, isa_bridge;
    struct pci_function *slot[PCI_SLOTS]; /* function 0 of each device, or NULL */
};

void pci_host_init(struct pci_host *h, struct reset_control *reset_control);
void pci_host_reset(struct pci_host *h);

extern const struct io_ops pci_host_ops; /* opaque: struct pci_host */
extern const struct io_ops pci_ecam_ops; /* opaque: struct pci_host */

#endif
