/*
 * The PC's storage controllers: IDE and floppy controller, which are always there, AHCI when a
 * drive asks for it, and the ISA DMA controllers.  Which drive goes where is decided here.
 *
 * Drives outlive this; their requests have to be over (block_drain()) before storage_destroy().
 */
#ifndef RINGSHIFT_RUNTIME_STORAGE_H
#define RINGSHIFT_RUNTIME_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/ahci.h"
#include "devices/fdc.h"
#include "devices/i8237.h"
#include "devices/ide.h"
#include "runtime/drive.h"

struct guest_ram;

struct storage {
    struct i8237 dma;
    struct fdc fdc;
    struct ide_controller ide;
    struct ahci *ahci; /* NULL: none */
    const struct drive_set *drives;
};

struct storage_config {
    struct pci_host *pci;
    struct io_bus *ports;
    struct guest_ram *ram;
    struct irq_line floppy_irq, ide_irq[2];
    const struct drive_set *drives; /* those for other controllers are left alone; may be NULL */
    uint8_t ide_devfn;              /* PIIX3 function 1 */
    unsigned ahci_slot;             /* the first PCI slot AHCI may take */
};

/* What firmware tells about drives in CMOS. */
struct storage_cmos {
    enum floppy_drive_type floppy[FDC_DRIVES];
    struct {
        uint16_t cylinders; /* 0: no disk */
        uint8_t heads, sectors;
    } disk[2]; /* the drives of the first IDE channel */
};

/* s is zeroed and must not move.  0, or a negative errno with one sentence in err. */
int storage_init(struct storage *s, const struct storage_config *cfg, char *err, unsigned errlen);
/* What is not on the PCI bus, whose functions are reset with it. */
void storage_reset(struct storage *s);
void storage_destroy(struct storage *s);

void storage_cmos(const struct storage *s, struct storage_cmos *out);

#endif
