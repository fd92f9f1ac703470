/* Boot order and drives for firmware: see boot_order.h. */
#include "runtime/boot_order.h"

#include <stdio.h>
#include <string.h>

#include "devices/rtc.h"

/* The letter of a drive's kind. */
static char letter_of(const struct drive *d)
{
    return d->kind == DRIVE_FLOPPY ? 'a' : d->kind == DRIVE_CDROM ? 'd' : 'c';
}

/* The path of a drive; "" if it is attached nowhere. */
static void path_of(const struct drive *d, const struct storage *s, unsigned virtio_slot, char *out,
                    size_t len)
{
    *out = '\0';
    if (d->kind == DRIVE_FLOPPY) {
        for (unsigned i = 0; i < FDC_DRIVES; i++)
            if (s->fdc.drive[i].block == d->dev)
                snprintf(out, len, "/pci@i0cf8/isa@1/fdc@03f0/floppy@%x\n", i);
    } else if (d->bus == DRIVE_BUS_VIRTIO) {
        snprintf(out, len, "/pci@i0cf8/scsi@%x/disk@0,0\n", virtio_slot);
    } else if (d->bus == DRIVE_BUS_AHCI) {
        for (unsigned i = 0; s->ahci && i < AHCI_PORTS; i++)
            if (s->ahci->port[i].dev.block == d->dev)
                snprintf(out, len, "/pci@i0cf8/pci8086,2922@%x/drive@%x/disk@0\n",
                         s->ahci->pci.devfn >> 3, i);
    } else {
        for (unsigned i = 0; i < 4; i++)
            if (s->ide.channel[i / 2].drive[i % 2].dev.block == d->dev)
                snprintf(out, len, "/pci@i0cf8/ide@1,1/drive@%x/disk@%x\n", i / 2, i % 2);
    }
}

size_t boot_order_paths(const char *letters, const struct storage *s,
                        const uint8_t virtio_slot[DRIVES_MAX], char out[BOOT_ORDER_MAX])
{
    size_t len = 0;

    *out = '\0';
    for (; *letters; letters++) {
        unsigned virtio = 0;

        for (unsigned i = 0; s->drives && i < s->drives->count; i++) {
            const struct drive *d = &s->drives->drive[i];
            unsigned slot =
                d->bus == DRIVE_BUS_VIRTIO && d->kind == DRIVE_DISK ? virtio_slot[virtio++] : 0;

            if (letter_of(d) != *letters)
                continue;
            path_of(d, s, slot, out + len, BOOT_ORDER_MAX - len);
            len += strlen(out + len);
        }
    }
    return len;
}

/* -- CMOS (as IBM's AT has it, and SeaBIOS reads it) ------------------------------------------- */

static unsigned boot_code(char letter)
{
    switch (letter) {
    case 'a':
        return 1;
    case 'c':
        return 2;
    case 'd':
        return 3;
    case 'n':
        return 4;
    }
    return 0;
}

/* Type 47, "user defined": nine bytes from `at`. */
static void describe_disk(struct rtc *rtc, unsigned at, unsigned cylinders, unsigned heads,
                          unsigned sectors)
{
    rtc_set_nvram(rtc, at, (uint8_t)cylinders);
    rtc_set_nvram(rtc, at + 1, (uint8_t)(cylinders >> 8));
    rtc_set_nvram(rtc, at + 2, (uint8_t)heads);
    rtc_set_nvram(rtc, at + 3, 0xff); /* no write precompensation */
    rtc_set_nvram(rtc, at + 4, 0xff);
    rtc_set_nvram(rtc, at + 5, (uint8_t)(0xc0 | (heads > 8) << 3));
    rtc_set_nvram(rtc, at + 6, (uint8_t)cylinders);
    rtc_set_nvram(rtc, at + 7, (uint8_t)(cylinders >> 8));
    rtc_set_nvram(rtc, at + 8, (uint8_t)sectors);
}

void boot_order_cmos(const char *letters, const struct storage *s, bool mouse, struct rtc *rtc)
{
    enum { FPU = 0x02, MOUSE = 0x04, FLOPPY = 0x01, SECOND_FLOPPY = 0x40 };
    enum { TRANSLATION_NONE = 0, TRANSLATION_LBA = 1 };
    uint8_t equipment = FPU | (mouse ? MOUSE : 0), types = 0;
    unsigned code[3] = {0}, translation = 0;
    struct storage_cmos c;

    storage_cmos(s, &c);
    if (c.floppy[0])
        equipment |= FLOPPY | (c.floppy[1] ? SECOND_FLOPPY : 0);
    rtc_set_nvram(rtc, 0x10, (uint8_t)(c.floppy[0] << 4 | c.floppy[1]));
    rtc_set_nvram(rtc, 0x14, equipment);
    for (unsigned i = 0; i < 2; i++) {
        if (!c.disk[i].cylinders)
            continue;
        types |= i ? 0x0f : 0xf0;
        rtc_set_nvram(rtc, 0x19 + i, 47);
        describe_disk(rtc, i ? 0x24 : 0x1b, c.disk[i].cylinders, c.disk[i].heads,
                      c.disk[i].sectors);
    }
    rtc_set_nvram(rtc, 0x12, types);
    /* How the BIOS makes three numbers of 10, 8 and 6 bits out of a sector's number. */
    for (unsigned i = 0; i < 4; i++) {
        const struct ata_device *d = &s->ide.channel[i / 2].drive[i % 2].dev;
        bool small = d->kind == ATA_DISK && d->cylinders <= 1024;

        translation |= (small ? TRANSLATION_NONE : TRANSLATION_LBA) << 2 * i;
    }
    rtc_set_nvram(rtc, 0x39, (uint8_t)translation);
    for (unsigned i = 0; i < 3 && letters[i]; i++)
        code[i] = boot_code(letters[i]);
    rtc_set_nvram(rtc, 0x3d, (uint8_t)(code[1] << 4 | code[0]));
    /* Bit 0: do not insist on 0x55 0xaa at the end of a floppy's boot sector. */
    rtc_set_nvram(rtc, 0x38, (uint8_t)(code[2] << 4 | 1));
}
