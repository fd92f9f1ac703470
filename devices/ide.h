/*
 * The IDE function of the PIIX3 (82371SB data sheet, chapter 2.3): two channels at the legacy ports
 * with two drives each, PIO and bus-master DMA (Programming Interface for Bus Master IDE
 * Controller, revision 1.0).  What drives do with commands is in ata.h; this is registers, DRQ
 * blocks, interrupts and PRD tables.
 */
#ifndef RINGSHIFT_DEVICES_IDE_H
#define RINGSHIFT_DEVICES_IDE_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/ata.h"
#include "devices/bus.h"
#include "devices/irq.h"
#include "devices/pci.h"

#define IDE_CHANNELS      2
#define IDE_PORT0         0x1f0
#define IDE_CONTROL0      0x3f6
#define IDE_IRQ0          14
#define IDE_PORT1         0x170
#define IDE_CONTROL1      0x376
#define IDE_IRQ1          15
#define IDE_COMMAND_PORTS 8
#define IDE_BM_BAR        4
#define IDE_BM_PORTS      16
#define IDE_PCI_DEVICE    0x7010

struct ide_channel;

struct ide_drive {
    struct ide_channel *channel;
    struct ata_device dev;
    struct ata_command cmd;
    /* What the guest wrote last and, below it, what it wrote before (48-bit commands). */
    uint8_t feature[2], count[2], lba[3][2];
    uint8_t status, error;
    bool intrq;
    bool resetting;    /* posts the signature as soon as SRST is off and cmd is not busy */
    uint32_t pos, end; /* PIO: the DRQ block in cmd.buf (or cmd.packet) */
    bool first_block;  /* PIO out: no block of this command has been written yet */
    bool pio_in;       /* data went to the host by PIO: success needs no further interrupt */
    bool dma_wait;     /* a piece of data waits for the bus master */
};

struct ide_channel {
    struct ide_controller *ide;
    struct ide_drive drive[2];
    struct irq_line irq;
    uint8_t device;  /* device/head register: one for both drives */
    uint8_t control; /* device control: HOB, SRST, nIEN */

    /* The bus master. */
    uint8_t bm_command, bm_status;
    uint32_t bm_table;           /* descriptor table pointer */
    uint32_t prd_next;           /* address of the next descriptor */
    uint32_t prd_addr, prd_left; /* rest of the current one */
    bool prd_last;               /* it has the end-of-table bit */
    bool prd_done;               /* the table has ended */
};

struct ide_controller {
    struct pci_function pci;
    struct ide_channel channel[IDE_CHANNELS];
};

/* Makes the controller without drives (ide_drive() gives the places for ata_*_init()).  It must not
 * move. */
void ide_init(struct ide_controller *ide, struct irq_line irq0, struct irq_line irq1);
/* Puts it on the PCI bus and the ISA ports; drives are set up.  0 or negative errno. */
int ide_register(struct ide_controller *ide, struct pci_host *host, struct io_bus *ports,
                 uint8_t devfn);
/* The drive: n is 0..3, primary master to secondary slave.  ata_*_init() it before
 * ide_register(). */
struct ata_device *ide_drive(struct ide_controller *ide, unsigned n);
void ide_reset(struct ide_controller *ide);
/* Frees memory; no block request may be in flight. */
void ide_destroy(struct ide_controller *ide);

extern const struct io_ops ide_command_ops; /* opaque: struct ide_channel; 8 ports */
extern const struct io_ops ide_control_ops; /* opaque: struct ide_channel; 1 port */
extern const struct io_ops ide_bm_ops;      /* opaque: struct ide_controller; 16 ports */

#endif
