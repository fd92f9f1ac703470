/* IDENTIFY DEVICE and IDENTIFY PACKET DEVICE data (ATA8-ACS 7.16, 7.17), resets of the settings
 * that they report, and the making of drives. */
#include <stdio.h>
#include <string.h>

#include "devices/ata.h"

static void put(uint8_t *page, unsigned word, uint16_t value)
{
    page[2 * word] = (uint8_t)value;
    page[2 * word + 1] = (uint8_t)(value >> 8);
}

/* A string of `words` words, padded with blanks, the first character in the upper byte. */
static void put_string(uint8_t *page, unsigned word, unsigned words, const char *s)
{
    for (unsigned i = 0; i < 2 * words; i++) {
        page[2 * word + (i ^ 1)] = *s ? (uint8_t)*s : ' ';
        s += *s != '\0';
    }
}

static void put_modes(const struct ata_device *d, uint8_t *page)
{
    put(page, 53, 0x0006); /* words 64-70 and 88 are valid */
    put(page, 63, (uint16_t)(0x0007 | (d->mwdma_mode <= 2 ? 0x100u << d->mwdma_mode : 0)));
    put(page, 64, 0x0003); /* PIO modes 3 and 4 */
    for (unsigned i = 65; i <= 68; i++)
        put(page, i, 120); /* ns per cycle */
    put(page, 88, (uint16_t)(0x007f | (d->udma_mode <= 6 ? 0x100u << d->udma_mode : 0)));
    if (d->sata)
        put(page, 76, (uint16_t)(0x0006 | (d->kind == ATA_DISK ? 0x0100 : 0))); /* Gen 1, 2; NCQ */
    else
        put(page, 93, 0x6000 | 0x0001); /* 80-conductor cable, device 0 passed */
    put(page, 80, 0x01f0);              /* ATA/ATAPI-4 to ATA8-ACS */
}

void ata_identify(const struct ata_device *d, uint8_t *page)
{
    uint64_t chs = (uint64_t)d->cylinders * d->heads * d->spt;
    uint32_t lba28 = d->sectors > 0x0fffffff ? 0x0fffffff : (uint32_t)d->sectors;
    uint16_t commands = 1u << 5 | 1u << 3 | 1u << 0; /* write cache, power management, SMART */
    uint64_t current = (uint64_t)d->default_heads * d->default_spt * d->cylinders;
    uint16_t cylinders = d->cylinders;

    /* With another geometry set by the host, the cylinders that fit into the same size. */
    if (d->heads != d->default_heads || d->spt != d->default_spt) {
        uint64_t c = current / ((uint64_t)d->heads * d->spt);

        cylinders = c > 65535 ? 65535 : (uint16_t)c;
        chs = (uint64_t)cylinders * d->heads * d->spt;
    }
    memset(page, 0, ATA_SECTOR);
    put(page, 0, 0x0040); /* fixed disk */
    put(page, 1, d->cylinders);
    put(page, 3, d->default_heads);
    put(page, 6, d->default_spt);
    put_string(page, 10, 10, d->serial);
    put_string(page, 23, 4, d->firmware);
    put_string(page, 27, 20, d->model);
    put(page, 47, 0x8000 | ATA_MULTIPLE);
    put(page, 49, 0x0f00); /* DMA, LBA, IORDY */
    put(page, 50, 0x4000);
    put_modes(d, page);
    put(page, 53, 0x0007);
    put(page, 54, cylinders);
    put(page, 55, d->heads);
    put(page, 56, d->spt);
    put(page, 57, (uint16_t)chs);
    put(page, 58, (uint16_t)(chs >> 16));
    put(page, 59, d->multiple ? (uint16_t)(0x0100 | d->multiple) : 0);
    put(page, 60, (uint16_t)lba28);
    put(page, 61, (uint16_t)(lba28 >> 16));
    if (d->sata)
        put(page, 75, ATA_QUEUE - 1);
    put(page, 69, 1u << 14);           /* what is trimmed reads the same every time */
    put(page, 82, commands | 1u << 6); /* look-ahead */
    put(page, 83, 0x4000 | 1u << 13 | 1u << 12 | 1u << 10);        /* FLUSH, FLUSH EXT, 48-bit */
    put(page, 84, 0x4000 | 1u << 6 | 1u << 5 | 1u << 1 | 1u << 0); /* FUA, logs, SMART */
    put(page, 85,
        (uint16_t)(1u << 3 | (d->write_cache ? 1u << 5 : 0) | (d->look_ahead ? 1u << 6 : 0) |
                   (d->smart ? 1u << 0 : 0)));
    put(page, 86, 1u << 13 | 1u << 12 | 1u << 10);
    put(page, 87, 0x4000 | 1u << 6 | 1u << 5 | 1u << 1 | 1u << 0);
    for (unsigned i = 0; i < 4; i++)
        put(page, 100 + i, (uint16_t)(d->sectors >> 16 * i));
    put(page, 105, 8);      /* blocks of TRIM ranges */
    put(page, 106, 0x6003); /* 8 logical sectors per physical one: images live on 4K blocks */
    put(page, 119, 0x4000);
    put(page, 120, 0x4000);
    put(page, 169, 0x0001); /* TRIM */
    put(page, 217, 0x0001); /* non-rotating */
    put(page, 222, d->sata ? 0x101f : 0x001f);
    /* The integrity word (ATA8-ACS 7.16.7.88). */
    page[510] = 0xa5;
    uint8_t sum = 0;
    for (unsigned i = 0; i < 511; i++)
        sum = (uint8_t)(sum + page[i]);
    page[511] = (uint8_t)-sum;
}

void ata_identify_packet(const struct ata_device *d, uint8_t *page)
{
    memset(page, 0, ATA_SECTOR);
    put(page, 0, 0x8580 | 2u << 5); /* ATAPI CD-ROM, removable, fast DRQ, 12-byte packets */
    put_string(page, 10, 10, d->serial);
    put_string(page, 23, 4, d->firmware);
    put_string(page, 27, 20, d->model);
    put(page, 49, 0x0f00);
    put_modes(d, page);
    put(page, 82, 1u << 14 | 1u << 9 | 1u << 4); /* NOP, DEVICE RESET, PACKET */
    put(page, 83, 0x4000);
    put(page, 84, 0x4000);
    put(page, 85, 1u << 14 | 1u << 9 | 1u << 4);
    put(page, 87, 0x4000);
}

/* -- Making and resetting ---------------------------------------------------------------------- */

static void make(struct ata_device *d, enum ata_kind kind, struct block_device *block,
                 const char *serial, const char *model)
{
    memset(d, 0, sizeof(*d));
    d->kind = kind;
    d->block = block;
    snprintf(d->serial, sizeof(d->serial), "%s", serial);
    snprintf(d->model, sizeof(d->model), "%s", model);
    snprintf(d->firmware, sizeof(d->firmware), "%s", RINGSHIFT_VERSION);
}

void ata_disk_init(struct ata_device *d, struct block_device *block, const char *serial)
{
    struct block_geometry g = block_device_geometry(block);

    make(d, ATA_DISK, block, serial, "RINGSHIFT HARDDISK");
    d->sectors = block->size / ATA_SECTOR;
    d->cylinders = (uint16_t)g.cylinders;
    d->default_heads = (uint8_t)g.heads;
    d->default_spt = (uint8_t)g.sectors;
    ata_device_reset(d, false);
}

void ata_cdrom_init(struct ata_device *d, struct block_device *block, const char *serial)
{
    make(d, ATA_CDROM, block, serial, "RINGSHIFT CD-ROM");
    atapi_attach(d);
    ata_device_reset(d, false);
}

void ata_device_reset(struct ata_device *d, bool soft)
{
    d->ncq_failed = false;
    d->standby = false;
    if (!soft) {
        d->heads = d->default_heads;
        d->spt = d->default_spt;
        d->multiple = ATA_MULTIPLE;
        d->mwdma_mode = 0xff;
        d->udma_mode = 5;
        d->write_cache = d->look_ahead = d->smart = true;
    }
    if (d->kind == ATA_CDROM)
        atapi_reset(d);
}
