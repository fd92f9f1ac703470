/*
 * PCI bus 0: configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2) at ports 0xcf8-0xcff, the
 * memory-mapped one (ECAM; PCI Express 5.0, 7.2.2), which the ACPI MCFG table announces, and what
 * every function shares: type-0 configuration space, base address registers that put regions on
 * the I/O and memory buses as software moves and enables them, INTx wires, MSI, MSI-X and
 * bus-master DMA.  Port 0xcf9 lies among the configuration ports: byte accesses there are the
 * chipset's reset control.
 *
 * A device embeds a struct pci_function and goes through these steps, once:
 *     pci_function_init(), pci_add_bar()...,
 * pci_add_capability()/pci_msi_init()/pci_msix_init()..., own bits in config[] and writable[],
 * pci_register(). What config[] holds at pci_register() is what a reset brings back.
 *
 * All functions: machine lock held.  Register names are those of <linux/pci_regs.h>.
 */
#ifndef RINGSHIFT_DEVICES_PCI_H
#define RINGSHIFT_DEVICES_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/reset.h"

struct guest_ram;

#define PCI_CONFIG_PORT  0xcf8
#define PCI_CONFIG_PORTS 8
#define PCI_ECAM_BASE    0xe0000000ull
#define PCI_ECAM_SIZE    (256ull << 20) /* buses 0..255 */
#define PCI_ISA_SLOT     1
#define PCI_SLOTS        32
#define PCI_INTX_PINS    4
#define PCI_BARS         7 /* six, and the expansion ROM */
#define PCI_ROM_BAR      6
#define PCI_MSIX_MAX     256

#define PCI_VENDOR_INTEL 0x8086
/* What functions without a subsystem identity of their own carry, as QEMU's machines do. */
#define PCI_SUBVENDOR 0x1af4
#define PCI_SUBDEVICE 0x1100

/* Slot and function as one number, 0..255. */
#define PCI_DEVFN_OF(slot, function) ((uint8_t)((slot) << 3 | (function)))

struct pci_host;
struct pci_function;

enum pci_bar_type {
    PCI_BAR_NONE = 0,
    PCI_BAR_IO,    /* at most 256 bytes */
    PCI_BAR_MEM32, /* 32-bit memory */
    PCI_BAR_MEM64, /* 64-bit prefetchable memory; takes the next BAR's place as well */
    PCI_BAR_ROM,   /* the expansion ROM; index PCI_ROM_BAR */
};

struct pci_bar {
    enum pci_bar_type type;
    uint64_t size;
    const struct io_ops *ops; /* NULL: no region on the bus, only pci_ops.bar_mapped */
    void *opaque;
    uint64_t address; /* where it is mapped now, or PCI_UNMAPPED */
};

#define PCI_UNMAPPED UINT64_MAX

/* A function's callbacks, each of which may be NULL. */
struct pci_ops {
    /* Configuration bytes [at, at + size) are about to be read: brings config[] up to date. */
    void (*config_read)(void *opaque, unsigned at, unsigned size);
    /* Configuration bytes [at, at + size) were written (what writable[] and w1c[] let through). */
    void (*config_written)(void *opaque, unsigned at, unsigned size);
    /* The BAR was mapped at address, or, with PCI_UNMAPPED, taken away.  0, or a negative errno to
     * refuse a mapping for now: it is tried again whenever a mapping changes. */
    int (*bar_mapped)(void *opaque, unsigned bar, uint64_t address);
    /* Bus reset: configuration space is as at pci_register() already. */
    void (*reset)(void *opaque);
};

struct pci_id {
    uint16_t vendor, device;
    uint32_t class; /* base class, subclass, interface: 24 bits */
    uint8_t revision;
    uint16_t subvendor, subdevice; /* 0, 0: PCI_SUBVENDOR, PCI_SUBDEVICE */
    uint8_t interrupt_pin;         /* 0: none, 1..4: INTA#..INTD# */
};

struct pci_function {
    struct pci_host *host; /* NULL until registered */
    uint8_t devfn;
    const struct pci_ops *ops;
    void *opaque;
    uint8_t config[256];
    uint8_t writable[256]; /* bits that software may change... */
    uint8_t w1c[256];      /* ...and bits that it clears by writing one */
    uint8_t initial[256];  /* config[] after reset */
    struct pci_bar bar[PCI_BARS];
    bool intx;       /* what pci_set_irq() said */
    bool intx_shown; /* what the wire carries: intx, unless INTx is disabled */
    uint16_t capabilities_end;
    uint8_t msi, msix; /* offsets of the capabilities, 0: none */
    /* MSI-X: */
    unsigned msix_vectors;
    uint32_t *msix_table;                     /* four dwords each: address, its upper half, data,
                                                 control */
    uint64_t msix_pending[PCI_MSIX_MAX / 64]; /* the PBA */
};

/* What the chipset around the bus provides. */
struct pci_host_config {
    struct reset_control *reset_control;
    struct io_bus *ports, *mmio;
    struct guest_ram *ram;
    /* PIRQ 0..3 (A..D) of the interrupt router changed; see pci_swizzle(). */
    void (*set_pirq)(void *opaque, unsigned pirq, bool level);
    /* A message-signalled interrupt: a dword write of data to address. */
    void (*send_msi)(void *opaque, uint64_t address, uint32_t data);
    void *opaque;
};

struct pci_host {
    struct pci_host_config cfg;
    uint32_t address;
    struct pci_function *function[256]; /* by devfn, or NULL */
    unsigned pirq_count[PCI_INTX_PINS]; /* wires asserted on each */
    bool remapping;                     /* inside remap_all(), or told to wait */
};

/* -- The bus. ---------------------------------------------------------------------------------- */
void pci_host_init(struct pci_host *h, const struct pci_host_config *cfg);
/* Resets the bus and every function on it. */
void pci_host_reset(struct pci_host *h);
/* What a BIOS does for an operating system that is started without one: gives every BAR an
 * address (memory from [mem_base, mem_end), I/O from 0xc000 up), enables decoding, writes the
 * interrupt line registers; irq[n] is the ISA interrupt of PIRQ n.  BARs that do not fit stay
 * unassigned. */
void pci_host_assign(struct pci_host *h, uint64_t mem_base, uint64_t mem_end,
                     const uint8_t irq[PCI_INTX_PINS]);
/* The PIRQ of a slot's pin (0..3), as on the PIIX boards that SeaBIOS and OVMF know. */
static inline unsigned pci_swizzle(unsigned slot, unsigned pin)
{
    return (slot + pin - 1) & 3;
}
/* The first slot >= first with no function, or -ENOSPC. */
int pci_free_slot(const struct pci_host *h, unsigned first);

extern const struct io_ops pci_host_ops; /* opaque: struct pci_host */
extern const struct io_ops pci_ecam_ops; /* opaque: struct pci_host */

/* -- Building a function. ---------------------------------------------------------------------- */
/* ops and opaque may be NULL; the caller owns the function, whose memory may hold anything. */
void pci_function_init(struct pci_function *f, const struct pci_id *id, const struct pci_ops *ops,
                       void *opaque);
/* Frees what the function allocated, and takes it off the bus. */
void pci_function_destroy(struct pci_function *f);
/* size is a power of two: at least 4 for I/O (at most 256), 16 for memory, 2048 for a ROM.
 * -EINVAL otherwise, -EEXIST if the BAR is taken. */
int pci_add_bar(struct pci_function *f, unsigned index, enum pci_bar_type type, uint64_t size,
                const struct io_ops *ops, void *opaque);
/* Reserves `size` bytes for a capability, chains it in and returns its offset; its body is zero.
 * -ENOSPC. */
int pci_add_capability(struct pci_function *f, uint8_t id, unsigned size);
/* MSI with 64-bit addresses and masks; vectors is 1, 2, 4, ... 32. */
int pci_msi_init(struct pci_function *f, unsigned vectors);
/* MSI-X with its table and PBA in a memory BAR of their own, which this adds (index `bar`).
 * -EINVAL unless 1 <= vectors <= PCI_MSIX_MAX; -ENOMEM. */
int pci_msix_init(struct pci_function *f, unsigned bar, unsigned vectors);
/* Puts it on the bus.  -EEXIST if the place is taken. */
int pci_register(struct pci_host *h, struct pci_function *f, uint8_t devfn);

/* -- What a running function does. ------------------------------------------------------------- */
static inline uint16_t pci_get16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}
static inline uint32_t pci_get32(const uint8_t *at)
{
    return pci_get16(at) | (uint32_t)pci_get16(at + 2) << 16;
}
void pci_put16(uint8_t *at, uint16_t value);
void pci_put32(uint8_t *at, uint32_t value);

/* Drives the INTx wire.  Devices that signal messages do not call it meanwhile. */
void pci_set_irq(struct pci_function *f, bool level);
bool pci_msi_enabled(const struct pci_function *f);
bool pci_msix_enabled(const struct pci_function *f);
/* Signals a vector through MSI-X or MSI, whichever is enabled; does nothing if neither is, or the
 * vector is none of the function's.  A masked vector is remembered. */
void pci_notify(struct pci_function *f, unsigned vector);

/* Whether the command register lets the function start bus cycles. */
bool pci_bus_master(const struct pci_function *f);
/* DMA.  -EACCES without bus mastering, -EFAULT unless all of the range is RAM (nothing is copied
 * then).  The guest may change memory meanwhile: check copies only. */
int pci_dma_read(struct pci_function *f, uint64_t gpa, void *buf, uint64_t len);
int pci_dma_write(struct pci_function *f, uint64_t gpa, const void *buf, uint64_t len);
/* RAM itself (ROM as well, unless to_ram), for transfers that need no copy; NULL where the above
 * fail.  It stays accessible, whatever software does to the memory map meanwhile.  For a transfer
 * into RAM (to_ram) call pci_dma_done() with the same range when it is over, so that code on these
 * pages that was translated in between is dropped. */
void *pci_dma_map(struct pci_function *f, uint64_t gpa, uint64_t len, bool to_ram);
void pci_dma_done(struct pci_function *f, uint64_t gpa, uint64_t len);

#endif
