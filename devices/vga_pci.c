/* The VGA as a PCI function: see vga_pci.h. */
#include "devices/vga_pci.h"

#include <linux/pci_regs.h>

#include <errno.h>
#include <string.h>

#include "mmu/memory_map.h"

#define CLASS_DISPLAY_VGA 0x030000
#define ROM_MAX           (1u << 20)

enum { BAR_FRAME_BUFFER = 0, BAR_REGISTERS = 2 };

/* Video memory changes through the window: the guest may have run code from it. */
static void before_write(void *opaque, uint32_t offset, uint32_t len)
{
    struct vga_pci *d = opaque;

    if (d->mapped[BAR_FRAME_BUFFER] != PCI_UNMAPPED)
        ram_before_write(d->ram, d->mapped[BAR_FRAME_BUFFER] + offset, len);
}

static int bar_mapped(void *opaque, unsigned bar, uint64_t address)
{
    struct vga_pci *d = opaque;
    bool rom = bar == PCI_ROM_BAR;
    uint64_t size = rom ? d->rom_size : VGA_VRAM_SIZE;
    int err;

    if (!rom && bar != BAR_FRAME_BUFFER)
        return 0;
    if (d->mapped[bar] != PCI_UNMAPPED) {
        ram_unmap_region(d->ram, d->mapped[bar], size);
        d->mapped[bar] = PCI_UNMAPPED;
    }
    if (address == PCI_UNMAPPED)
        return 0;
    err = ram_map_region(d->ram, address, size, rom ? d->rom_offset : d->vram_offset,
                         rom ? RAM_KIND_ROM : RAM_KIND_RAM);
    if (!err)
        d->mapped[bar] = address;
    return err;
}

static void reset(void *opaque)
{
    struct vga_pci *d = opaque;

    vga_reset(&d->vga);
}

static const struct pci_ops ops = {.bar_mapped = bar_mapped, .reset = reset};

static int add_rom(struct vga_pci *d, const void *rom, uint32_t len)
{
    void *host;
    int err;

    if (len > ROM_MAX)
        return -EFBIG;
    for (d->rom_size = 4096; d->rom_size < len;)
        d->rom_size *= 2;
    err = ram_region_alloc(d->ram, d->rom_size, &d->rom_offset, &host);
    if (err)
        return err;
    memcpy(host, rom, len);
    return pci_add_bar(&d->pci, PCI_ROM_BAR, PCI_BAR_ROM, d->rom_size, NULL, NULL);
}

int vga_pci_init(struct vga_pci *d, const struct vga_pci_config *cfg)
{
    static const struct pci_id id = {
        .vendor = 0x1234,
        .device = 0x1111,
        .class = CLASS_DISPLAY_VGA,
        .revision = 2,
    };
    void *vram;
    int err;

    memset(d, 0, sizeof(*d));
    d->ram = cfg->ram;
    for (unsigned i = 0; i < PCI_BARS; i++)
        d->mapped[i] = PCI_UNMAPPED;
    pci_function_init(&d->pci, &id, &ops, d);
    err = ram_region_alloc(d->ram, VGA_VRAM_SIZE, &d->vram_offset, &vram);
    if (err)
        return err;
    vga_init(&d->vga, vram, cfg->timers);
    d->vga.before_write = before_write;
    d->vga.before_write_opaque = d;
    /* It decodes the legacy ports, which no BAR stands for; a BIOS looks whether that is enabled.
     */
    d->pci.writable[PCI_COMMAND] |= PCI_COMMAND_IO;
    err = pci_add_bar(&d->pci, BAR_FRAME_BUFFER, PCI_BAR_MEM32, VGA_VRAM_SIZE, NULL, NULL);
    if (!err)
        err = pci_add_bar(&d->pci, BAR_REGISTERS, PCI_BAR_MEM32, VGA_MMIO_SIZE, &vga_mmio_ops,
                          &d->vga);
    if (!err && cfg->rom)
        err = add_rom(d, cfg->rom, cfg->rom_len);
    if (!err)
        err = io_bus_add(cfg->ports, VGA_PORT, VGA_PORTS, &vga_io_ops, &d->vga);
    if (!err)
        err = io_bus_add(cfg->ports, VBE_PORT, VBE_PORTS, &vbe_io_ops, &d->vga);
    if (!err)
        err = io_bus_add(cfg->mmio, VGA_WINDOW, VGA_WINDOW_SIZE, &vga_window_ops, &d->vga);
    /* The window lies over RAM that nobody sees. */
    if (!err)
        err = ram_remap(d->ram, VGA_WINDOW, VGA_WINDOW_SIZE, 0, RAM_KIND_HOLE);
    if (!err)
        err = pci_register(cfg->host, &d->pci, PCI_DEVFN_OF(VGA_PCI_SLOT, 0));
    return err;
}

void vga_pci_destroy(struct vga_pci *d)
{
    pci_function_destroy(&d->pci);
}
