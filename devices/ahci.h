/*
 * The AHCI SATA controller of the ICH9 (Serial ATA AHCI 1.3.1; Intel ICH9 data sheet, chapter 15):
 * six ports, 32 command slots each, native command queuing, 64-bit addresses, one MSI vector.
 * Drives are in ata.h.
 */
#ifndef RINGSHIFT_DEVICES_AHCI_H
#define RINGSHIFT_DEVICES_AHCI_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/ata.h"
#include "devices/pci.h"

#define AHCI_PORTS      6
#define AHCI_SLOTS      32
#define AHCI_BAR        5
#define AHCI_BAR_SIZE   4096
#define AHCI_PCI_DEVICE 0x2922

struct ahci_port;

struct ahci_slot {
    struct ahci_port *port;
    struct ata_command cmd;
    bool issued;       /* fetched from the command list and not completed */
    uint64_t header;   /* where the command header is, for PRDBC */
    uint64_t table;    /* the command table */
    uint32_t prds;     /* entries in the PRD table... */
    uint32_t prd_next; /* ...the next one to fetch... */
    uint64_t prd_addr; /* ...and the rest of the current one */
    uint32_t prd_left;
    uint32_t moved; /* bytes, for PRDBC */
    bool write;
    bool pio_in;
};

struct ahci_port {
    struct ahci *hba;
    unsigned index;
    struct ata_device dev;
    struct ahci_slot slot[AHCI_SLOTS];
    uint64_t clb, fb; /* command list and received FIS area */
    uint32_t is, ie, cmd, tfd, sig, ssts, sctl, serr, sact, ci;
    bool stopped;       /* an error ended command processing until ST is cleared */
    bool srst;          /* between the two FISes of a software reset */
    bool signature_due; /* a reset waits for commands in flight */
    bool fis_due;       /* the signature FIS waits for FRE */
    bool running;       /* inside run_port(), which is not re-entered */
};

struct ahci {
    struct pci_function pci;
    uint32_t ghc, is;
    bool msi_level; /* what was last reported by message */
    struct ahci_port port[AHCI_PORTS];
};

/* Makes the controller without drives: ata_*_init() port[n].dev before ahci_register().  It must
 * not move. */
void ahci_init(struct ahci *h);
/* 0 or negative errno. */
int ahci_register(struct ahci *h, struct pci_host *host, uint8_t devfn);
void ahci_reset(struct ahci *h);
/* Frees memory; no block request may be in flight. */
void ahci_destroy(struct ahci *h);

extern const struct io_ops ahci_ops; /* opaque: struct ahci; the registers behind BAR 5 */

#endif
