/* Drives and their controllers: see storage.h. */
#include "runtime/storage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IDE_DRIVES      4
#define IDE_FIRST_CDROM 2 /* secondary master, where PCs have it */

/* Puts the drive in place n of the IDE channels or of the AHCI ports. */
static void attach_ata(struct ata_device *d, const struct drive *drive, const char *prefix,
                       unsigned n)
{
    char serial[21];

    snprintf(serial, sizeof(serial), "%s%05u", prefix, n + 1);
    if (drive->kind == DRIVE_CDROM)
        ata_cdrom_init(d, drive->dev, serial);
    else
        ata_disk_init(d, drive->dev, serial);
}

static int attach_ide(struct storage *s, const struct drive *drive, char *err, unsigned errlen)
{
    static const uint8_t disks[] = {0, 1, 3, 2}, cdroms[] = {IDE_FIRST_CDROM, 3, 1, 0};
    const uint8_t *order = drive->kind == DRIVE_CDROM ? cdroms : disks;

    for (unsigned i = 0; i < IDE_DRIVES; i++) {
        struct ata_device *d = ide_drive(&s->ide, order[i]);

        if (d->kind == ATA_NONE) {
            attach_ata(d, drive, "RS", order[i]);
            return 0;
        }
    }
    snprintf(err, errlen, "%s has no place: IDE has %d drives; use if=ahci or if=virtio",
             drive->dev->name, IDE_DRIVES);
    return -ENOSPC;
}

static int attach_ahci(struct storage *s, const struct drive *drive, char *err, unsigned errlen)
{
    if (!s->ahci) {
        s->ahci = malloc(sizeof(*s->ahci));
        if (!s->ahci) {
            snprintf(err, errlen, "cannot create the AHCI controller: %s", strerror(ENOMEM));
            return -ENOMEM;
        }
        ahci_init(s->ahci);
    }
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        if (s->ahci->port[i].dev.kind == ATA_NONE) {
            attach_ata(&s->ahci->port[i].dev, drive, "RS-S", i);
            return 0;
        }
    }
    snprintf(err, errlen, "%s has no place: AHCI has %d ports; use if=virtio", drive->dev->name,
             AHCI_PORTS);
    return -ENOSPC;
}

static int attach_floppy(struct storage *s, const struct drive *drive, char *err, unsigned errlen)
{
    for (unsigned i = 0; i < FDC_DRIVES; i++) {
        if (!s->fdc.drive[i].block) {
            fdc_attach(&s->fdc, i, drive->dev, drive->floppy);
            return 0;
        }
    }
    snprintf(err, errlen, "%s has no place: a PC has %d floppy drives", drive->dev->name,
             FDC_DRIVES);
    return -ENOSPC;
}

static int attach(struct storage *s, const struct drive *drive, char *err, unsigned errlen)
{
    if (drive->kind == DRIVE_FLOPPY)
        return attach_floppy(s, drive, err, errlen);
    if (drive->bus == DRIVE_BUS_AHCI)
        return attach_ahci(s, drive, err, errlen);
    return drive->bus == DRIVE_BUS_IDE ? attach_ide(s, drive, err, errlen) : 0;
}

static int add_isa_ports(struct storage *s, struct io_bus *ports)
{
    const struct {
        uint16_t port, count;
        const struct io_ops *ops;
        void *opaque;
    } regions[] = {
        {I8237_PORT_LOW, I8237_PORTS_LOW, &i8237_low_ops, &s->dma},
        {I8237_PORT_PAGE, I8237_PORTS_PAGE, &i8237_page_ops, &s->dma},
        {I8237_PORT_HIGH, I8237_PORTS_HIGH, &i8237_high_ops, &s->dma},
        {FDC_PORT, FDC_PORTS, &fdc_ops, &s->fdc},
        {FDC_DIR_PORT, 1, &fdc_dir_ops, &s->fdc},
    };

    for (unsigned i = 0; i < sizeof(regions) / sizeof(regions[0]); i++) {
        int err =
            io_bus_add(ports, regions[i].port, regions[i].count, regions[i].ops, regions[i].opaque);

        if (err)
            return err;
    }
    return 0;
}

int storage_init(struct storage *s, const struct storage_config *cfg, char *err, unsigned errlen)
{
    int code = 0, slot;

    s->drives = cfg->drives;
    i8237_init(&s->dma, cfg->ram);
    fdc_init(&s->fdc, cfg->floppy_irq, &s->dma);
    ide_init(&s->ide, cfg->ide_irq[0], cfg->ide_irq[1]);
    /* IDE CD drives first: disks take what is left. */
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; cfg->drives && i < cfg->drives->count && !code; i++) {
            const struct drive *d = &cfg->drives->drive[i];

            if ((d->kind == DRIVE_CDROM && d->bus == DRIVE_BUS_IDE) == (pass == 0))
                code = attach(s, d, err, errlen);
        }
    }
    if (code)
        return code;
    code = add_isa_ports(s, cfg->ports);
    if (!code)
        code = ide_register(&s->ide, cfg->pci, cfg->ports, cfg->ide_devfn);
    if (!code && s->ahci) {
        slot = pci_free_slot(cfg->pci, cfg->ahci_slot);
        code = slot < 0 ? slot : ahci_register(s->ahci, cfg->pci, PCI_DEVFN_OF(slot, 0));
    }
    if (code)
        snprintf(err, errlen, "cannot create the disk controllers: %s", strerror(-code));
    return code;
}

void storage_reset(struct storage *s)
{
    i8237_reset(&s->dma);
    fdc_reset(&s->fdc);
}

void storage_destroy(struct storage *s)
{
    if (s->ahci) {
        pci_function_destroy(&s->ahci->pci);
        ahci_destroy(s->ahci);
        free(s->ahci);
    }
    pci_function_destroy(&s->ide.pci);
    ide_destroy(&s->ide);
}

void storage_cmos(const struct storage *s, struct storage_cmos *out)
{
    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < FDC_DRIVES; i++)
        if (s->fdc.drive[i].block)
            out->floppy[i] = s->fdc.drive[i].type;
    for (unsigned i = 0; i < 2; i++) {
        const struct ata_device *d = &s->ide.channel[0].drive[i].dev;

        if (d->kind != ATA_DISK)
            continue;
        out->disk[i].cylinders = d->cylinders;
        out->disk[i].heads = d->default_heads;
        out->disk[i].sectors = d->default_spt;
    }
}
