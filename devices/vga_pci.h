/*
 * The VGA as a PCI function, 1234:1111: the legacy ports and the window at 0xa0000, and
 *     BAR 0  the linear frame buffer: video memory itself, mapped into the guest
 *     BAR 2  the VGA's and VBE's registers, memory-mapped (QEMU, "standard VGA")
 *     ROM    the VGA BIOS, if there is one
 */
#ifndef RINGSHIFT_DEVICES_VGA_PCI_H
#define RINGSHIFT_DEVICES_VGA_PCI_H

#include "devices/pci.h"
#include "devices/vga.h"

#define VGA_PCI_SLOT 2

struct vga_pci {
    struct pci_function pci;
    struct vga vga;
    struct guest_ram *ram;
    uint64_t vram_offset, rom_offset; /* in the memfd of guest memory */
    uint64_t rom_size;                /* of the BAR; 0: none */
    uint64_t mapped[PCI_BARS];        /* where BARs 0 and ROM are, or PCI_UNMAPPED */
};

struct vga_pci_config {
    struct pci_host *host;
    struct guest_ram *ram;
    struct io_bus *ports, *mmio;
    const struct timer_queue *timers;
    const void *rom; /* the VGA BIOS' image, or NULL; copied */
    uint32_t rom_len;
};

/* Takes video memory from the guest's memory file, and puts the device on all its buses.  0 or
 * negative errno. */
int vga_pci_init(struct vga_pci *d, const struct vga_pci_config *cfg);
/* Before the guest's memory goes. */
void vga_pci_destroy(struct vga_pci *d);

#endif
