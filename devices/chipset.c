/* 440FX and PIIX3 bridges: see chipset.h. */
#include "devices/chipset.h"

#include <linux/pci_regs.h>
#include <string.h>

#include "mmu/memory_map.h"

#define DEVICE_82441FX     0x1237
#define DEVICE_82371SB_ISA 0x7000
#define CLASS_BRIDGE_HOST  0x060000
#define CLASS_BRIDGE_ISA   0x060100

#define PIRQRC          0x60 /* four registers */
#define PIRQRC_DISABLED 0x80
#define PIRQRC_IRQ      0x0f
#define ROUTABLE        0xdef8 /* 3-7, 9-12, 14, 15: the others are reserved */

#define PAM           0x59 /* seven registers; two segments each, but for the first */
#define PAM_REGISTERS 7
enum { PAM_RE = 1, PAM_WE = 2, PAM_ATTRIBUTES = 3 };
#define SMRAM 0x72
enum { SMRAM_FIXED = 0x02, SMRAM_ENABLE = 0x08, SMRAM_LOCK = 0x10, SMRAM_OPEN = 0x40 };

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

/* -- Memory below 1 MiB ------------------------------------------------------------------------ */

/* Segment 0 is 64 KiB at 0xf0000; the others are 16 KiB each, from 0xc0000 up. */
static uint32_t segment_base(unsigned segment)
{
    return segment ? PAM_BASE + (segment - 1) * 0x4000 : 0xf0000;
}

static uint32_t segment_size(unsigned segment)
{
    return segment ? 0x4000 : 0x10000;
}

static unsigned segment_attributes(const struct chipset *c, unsigned segment)
{
    uint8_t reg = c->host_bridge.config[PAM + (segment + 1) / 2];

    return (segment & 1 ? reg : reg >> 4) & PAM_ATTRIBUTES;
}

/*
 * The map of one segment.  "Reads from ROM, writes to RAM" has no mapping of its own: it is ROM,
 * and the writes come back through chipset_pam_ops.  Should the host refuse a mapping, the segment
 * is a hole, and the guest is as badly off as with a broken board.
 */
static void map_segment(struct chipset *c, unsigned segment)
{
    uint32_t base = segment_base(segment), size = segment_size(segment);
    unsigned attributes = segment_attributes(c, segment);

    if (attributes & PAM_RE)
        ram_remap(c->ram, base, size, ram_own_offset(c->ram, base),
                  attributes & PAM_WE ? RAM_KIND_RAM : RAM_KIND_ROM);
    else if (c->has_bios && base >= ISA_BIOS)
        ram_remap(c->ram, base, size, c->bios + (base - ISA_BIOS), RAM_KIND_ROM);
    else
        ram_unmap_region(c->ram, base, size);
}

static void map_smram(struct chipset *c)
{
    uint8_t reg = c->host_bridge.config[SMRAM];

    if ((reg & SMRAM_ENABLE) && (reg & SMRAM_OPEN))
        ram_remap(c->ram, SMRAM_BASE, SMRAM_SIZE, ram_own_offset(c->ram, SMRAM_BASE), RAM_KIND_RAM);
    else
        ram_unmap_region(c->ram, SMRAM_BASE, SMRAM_SIZE);
}

static void map_all(struct chipset *c)
{
    if (!c->ram)
        return;
    for (unsigned i = 0; i < PAM_SEGMENTS; i++)
        map_segment(c, i);
    map_smram(c);
}

static void host_written(void *opaque, unsigned at, unsigned size)
{
    struct chipset *c = opaque;
    uint8_t *smram = &c->host_bridge.config[SMRAM];

    if (at + size > PAM && at < PAM + PAM_REGISTERS)
        map_all(c);
    if (at + size > SMRAM && at <= SMRAM) {
        if (*smram & SMRAM_LOCK) { /* closed, and only a reset unlocks it */
            *smram &= (uint8_t)~SMRAM_OPEN;
            c->host_bridge.writable[SMRAM] = 0;
        }
        map_all(c);
    }
}

static void host_reset(void *opaque)
{
    struct chipset *c = opaque;

    c->host_bridge.writable[SMRAM] = SMRAM_ENABLE | SMRAM_LOCK | SMRAM_OPEN;
    map_all(c);
}

static const struct pci_ops host_ops = {.config_written = host_written, .reset = host_reset};

void chipset_set_bios(struct chipset *c, uint64_t offset)
{
    c->has_bios = true;
    c->bios = offset;
    map_all(c);
}

void chipset_shadow(struct chipset *c)
{
    uint8_t both = PAM_RE | PAM_WE;

    c->host_bridge.config[PAM] = (uint8_t)(both << 4);
    memset(&c->host_bridge.config[PAM + 1], both << 4 | both, PAM_REGISTERS - 1);
    map_all(c);
}

static uint64_t pam_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return UINT64_MAX; /* nobody drives the ISA bus there */
}

static void pam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct chipset *c = opaque;
    uint32_t address = PAM_BASE + (uint32_t)offset;
    unsigned segment = address >= 0xf0000 ? 0 : 1 + (address - PAM_BASE) / 0x4000;

    (void)size; /* 1 */
    if (segment_attributes(c, segment) & PAM_WE)
        ram_file_write(c->ram, ram_own_offset(c->ram, address), &(uint8_t){(uint8_t)value}, 1);
}

const struct io_ops chipset_pam_ops = {.read = pam_read, .write = pam_write, .max_size = 1};

/* -- PCI interrupts ---------------------------------------------------------------------------- */

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
    c->ram = h->cfg.ram;
    init_bridge(&c->host_bridge, &host, &host_ops, c);
    c->host_bridge.writable[PAM] = PAM_ATTRIBUTES << 4;
    memset(&c->host_bridge.writable[PAM + 1], PAM_ATTRIBUTES << 4 | PAM_ATTRIBUTES,
           PAM_REGISTERS - 1);
    c->host_bridge.config[SMRAM] = SMRAM_FIXED;
    c->host_bridge.writable[SMRAM] = SMRAM_ENABLE | SMRAM_LOCK | SMRAM_OPEN;
    init_bridge(&c->isa_bridge, &bridge, &isa_ops, c);
    c->isa_bridge.config[PCI_HEADER_TYPE] |= 0x80; /* IDE and power management are functions too */
    for (unsigned i = 0; i < PCI_INTX_PINS; i++) {
        c->isa_bridge.config[PIRQRC + i] = PIRQRC_DISABLED;
        c->isa_bridge.writable[PIRQRC + i] = PIRQRC_DISABLED | PIRQRC_IRQ;
    }
    err = pci_register(h, &c->host_bridge, PCI_DEVFN_OF(0, 0));
    return err ? err : pci_register(h, &c->isa_bridge, PCI_DEVFN_OF(PCI_ISA_SLOT, 0));
}
