/* IDE and ATAPI as drivers use them: registers, PIO, bus-master DMA, resets; and what a hostile
 * guest does. */
#include "dev_fixture.h"

#include <errno.h>

#include "devices/ata_commands.h"
#include "devices/ide.h"
#include "tests/support/storage_rig.h"

#define DEVFN     PCI_DEVFN_OF(1, 1)
#define BM        0xc000
#define DISK_SIZE (8u << 20)
#define CD_SIZE   (2048u * 1000)

enum { ERR = 0x01, DRQ = 0x08, DRDY = 0x40, BSY = 0x80 };

static struct rig rig;
static struct ide_controller ide;
static struct mem_image disk_image, cd_image, cd2_image;
static struct block_device *disk, *cd;
static struct fake_irq irq14, irq15;

static void setup(void)
{
    cr_assert_eq(rig_init(&rig), 0);
    mem_image_init(&disk_image, DISK_SIZE);
    mem_image_init(&cd_image, CD_SIZE);
    mem_image_init(&cd2_image, 2048 * 400000ull);
    cd_image.image.read_only = cd2_image.image.read_only = true;
    disk = rig_drive(&rig, &disk_image, false);
    cd = rig_drive(&rig, &cd_image, true);
    ide_init(&ide, fake_irq_line(&irq14), fake_irq_line(&irq15));
    ata_disk_init(ide_drive(&ide, 0), disk, "SERIAL1");
    ata_cdrom_init(ide_drive(&ide, 2), cd, "SERIAL2");
    cr_assert_eq(ide_register(&ide, &rig.pci, &rig.ports, DEVFN), 0);
    rig_config32(&rig, DEVFN, PCI_BASE_ADDRESS_4, BM);
    rig_enable(&rig, DEVFN, true);
}

static void teardown(void)
{
    disk_image.hold = cd_image.hold = false;
    block_device_destroy(disk);
    block_device_destroy(cd);
    pci_function_destroy(&ide.pci);
    ide_destroy(&ide);
    rig_destroy(&rig);
    free(disk_image.data);
    free(cd_image.data);
    free(cd2_image.data);
}

TestSuite(ide, .init = setup, .fini = teardown, .timeout = 30);

/* -- A driver ---------------------------------------------------------------------------------- */

static uint16_t base = IDE_PORT0;

static uint8_t inb(uint16_t port)
{
    return (uint8_t)io_bus_read(&rig.ports, port, 1);
}

static void outb(uint16_t port, uint8_t value)
{
    io_bus_write(&rig.ports, port, 1, value);
}

/* Lets all block requests end. */
static void settle(void)
{
    block_drain(disk);
    block_drain(cd);
}

static uint8_t status(void)
{
    settle();
    return inb((uint16_t)(base + 7));
}

static uint8_t alt_status(void)
{
    settle();
    return inb((uint16_t)(base + 0x206));
}

static void read_words(void *buf, unsigned words)
{
    uint16_t *p = buf;

    for (unsigned i = 0; i < words; i++)
        p[i] = (uint16_t)io_bus_read(&rig.ports, base, 2);
}

static void write_words(const void *buf, unsigned words)
{
    const uint16_t *p = buf;

    for (unsigned i = 0; i < words; i++)
        io_bus_write(&rig.ports, base, 2, p[i]);
}

static void command28(uint8_t code, uint32_t lba, uint8_t count)
{
    outb((uint16_t)(base + 6), (uint8_t)(0xe0 | (lba >> 24 & 0x0f)));
    outb((uint16_t)(base + 2), count);
    outb((uint16_t)(base + 3), (uint8_t)lba);
    outb((uint16_t)(base + 4), (uint8_t)(lba >> 8));
    outb((uint16_t)(base + 5), (uint8_t)(lba >> 16));
    outb((uint16_t)(base + 7), code);
}

static void command48(uint8_t code, uint64_t lba, uint16_t count)
{
    outb((uint16_t)(base + 6), 0xe0);
    outb((uint16_t)(base + 2), (uint8_t)(count >> 8));
    outb((uint16_t)(base + 3), (uint8_t)(lba >> 24));
    outb((uint16_t)(base + 4), (uint8_t)(lba >> 32));
    outb((uint16_t)(base + 5), (uint8_t)(lba >> 40));
    outb((uint16_t)(base + 2), (uint8_t)count);
    outb((uint16_t)(base + 3), (uint8_t)lba);
    outb((uint16_t)(base + 4), (uint8_t)(lba >> 8));
    outb((uint16_t)(base + 5), (uint8_t)(lba >> 16));
    outb((uint16_t)(base + 7), code);
}

static void bm_start(uint32_t table, bool to_memory)
{
    uint16_t bm = (uint16_t)(BM + (base == IDE_PORT1 ? 8 : 0));

    outb(bm, 0);
    outb((uint16_t)(bm + 2), 0x06);
    io_bus_write(&rig.ports, (uint16_t)(bm + 4), 4, table);
    outb(bm, to_memory ? 0x08 : 0);
    outb(bm, to_memory ? 0x09 : 0x01);
}

static uint8_t bm_status(void)
{
    settle();
    return inb((uint16_t)(BM + 2 + (base == IDE_PORT1 ? 8 : 0)));
}

static void prd(uint64_t at, uint32_t address, uint16_t len, bool last)
{
    rig_put32(&rig, at, address);
    rig_put32(&rig, at + 4, len | (last ? 0x80000000u : 0));
}

static const uint8_t *sector(uint32_t n)
{
    return disk_image.data + 512ull * n;
}

/* -- Probing -------------------------------------------------------------------------------------
 */

Test(ide, signatures_after_reset)
{
    outb(IDE_CONTROL0, 0x04);
    cr_expect_eq(alt_status() & BSY, BSY);
    outb(IDE_CONTROL0, 0x00);
    cr_expect_eq(alt_status(), 0x50);
    cr_expect_eq(inb(IDE_PORT0 + 1), 1);
    cr_expect_eq(inb(IDE_PORT0 + 2), 1);
    cr_expect_eq(inb(IDE_PORT0 + 4), 0);
    cr_expect_eq(inb(IDE_PORT0 + 5), 0);
    base = IDE_PORT1;
    outb(IDE_CONTROL1, 0x04);
    outb(IDE_CONTROL1, 0x00);
    cr_expect_eq(alt_status(), 0);
    cr_expect_eq(inb(IDE_PORT1 + 4), 0x14);
    cr_expect_eq(inb(IDE_PORT1 + 5), 0xeb);
}

Test(ide, nobody_answers_for_a_missing_slave)
{
    outb(IDE_PORT0 + 6, 0xf0);
    outb(IDE_PORT0 + 2, 0x55);
    outb(IDE_PORT0 + 3, 0xaa);
    cr_expect_eq(inb(IDE_PORT0 + 2), 0);
    cr_expect_eq(inb(IDE_PORT0 + 7), 0);
    outb(IDE_PORT0 + 7, ATA_CMD_IDENTIFY);
    cr_expect_eq(inb(IDE_PORT0 + 7), 0);
    cr_expect_eq(irq14.rises, 0);
}

Test(ide, diagnostic_answers_with_the_signature)
{
    outb(IDE_PORT0 + 6, 0xf0);
    outb(IDE_PORT0 + 7, ATA_CMD_DIAGNOSTIC);
    cr_expect_eq(irq14.rises, 1);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(inb(IDE_PORT0 + 1), 1);
    cr_expect_eq(inb(IDE_PORT0 + 6) & 0x10, 0);
}

Test(ide, identify)
{
    uint16_t id[256];
    uint8_t sum = 0;

    command28(ATA_CMD_IDENTIFY, 0, 0);
    cr_expect_eq(irq14.rises, 1);
    cr_expect_eq(status(), 0x58);
    cr_expect_not(irq14.level);
    read_words(id, 256);
    cr_expect_eq(irq14.rises, 1, "no interrupt after the data");
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(id[60] | id[61] << 16, DISK_SIZE / 512);
    cr_expect_eq(id[100], DISK_SIZE / 512);
    cr_expect_eq(id[3], 16);
    cr_expect_eq(id[6], 63);
    cr_expect(id[49] & 0x0300);
    cr_expect(id[83] & 1 << 10, "48-bit addresses");
    cr_expect_eq(id[10], 'S' << 8 | 'E');
    cr_expect_eq(id[27], 'R' << 8 | 'I');
    for (unsigned i = 0; i < 512; i++)
        sum = (uint8_t)(sum + ((uint8_t *)id)[i]);
    cr_expect_eq(sum, 0, "checksum");
}

Test(ide, nien_masks_the_interrupt)
{
    outb(IDE_CONTROL0, 0x02);
    command28(ATA_CMD_IDENTIFY, 0, 0);
    cr_expect_eq(irq14.rises, 0);
    outb(IDE_CONTROL0, 0x00);
    cr_expect(irq14.level, "it was pending all the time");
}

/* -- PIO ------------------------------------------------------------------------------------------
 */

Test(ide, pio_read_interrupts_per_sector)
{
    uint8_t buf[512];

    command28(ATA_CMD_READ_SECTORS, 5, 3);
    for (unsigned i = 0; i < 3; i++) {
        settle();
        cr_expect_eq(irq14.rises, i + 1);
        cr_expect_eq(status(), 0x58);
        read_words(buf, 256);
        cr_expect_arr_eq(buf, sector(5 + i), 512);
    }
    cr_expect_eq(irq14.rises, 3);
    cr_expect_eq(status(), 0x50);
}

Test(ide, pio_read_of_256_sectors_and_32_bit_port)
{
    uint32_t word;

    command28(ATA_CMD_READ_SECTORS, 0, 0);
    for (unsigned i = 0; i < 256; i++) {
        cr_assert_eq(status(), 0x58, "sector %u", i);
        for (unsigned k = 0; k < 128; k++) {
            word = (uint32_t)io_bus_read(&rig.ports, IDE_PORT0, 4);
            cr_assert_eq(memcmp(&word, sector(i) + 4 * k, 4), 0);
        }
    }
    cr_expect_eq(status(), 0x50);
}

Test(ide, read_multiple_interrupts_per_block)
{
    uint8_t buf[512 * 16];

    command28(ATA_CMD_SET_MULTIPLE, 0, 8);
    cr_expect_eq(status(), 0x50);
    command28(ATA_CMD_READ_MULTIPLE, 100, 12);
    settle();
    cr_expect_eq(irq14.rises, 2);
    cr_expect_eq(status(), 0x58);
    read_words(buf, 256 * 8);
    cr_expect_eq(irq14.rises, 3);
    cr_expect_eq(status(), 0x58);
    read_words(buf + 512 * 8, 256 * 4);
    cr_expect_eq(status(), 0x50);
    cr_expect_arr_eq(buf, sector(100), 512 * 12);
    command28(ATA_CMD_SET_MULTIPLE, 0, 3);
    cr_expect(status() & ERR, "no power of two");
}

Test(ide, pio_write)
{
    uint8_t buf[1024];

    memset(buf, 0xa5, 512);
    memset(buf + 512, 0x5a, 512);
    command28(ATA_CMD_WRITE_SECTORS, 7, 2);
    cr_expect_eq(irq14.rises, 0, "the first block is asked for without an interrupt");
    cr_expect_eq(status(), 0x58);
    write_words(buf, 256);
    cr_expect_eq(irq14.rises, 1);
    cr_expect_eq(status(), 0x58);
    write_words(buf + 512, 256);
    settle();
    cr_expect_eq(irq14.rises, 2);
    cr_expect_eq(status(), 0x50);
    cr_expect_arr_eq(sector(7), buf, 1024);
}

Test(ide, chs_lba28_and_lba48_mean_the_same_sector)
{
    uint8_t buf[512];
    uint32_t lba = (3 * 16 + 5) * 63 + 20 - 1; /* C 3, H 5, S 20 */

    outb(IDE_PORT0 + 6, 0xa5);
    outb(IDE_PORT0 + 2, 1);
    outb(IDE_PORT0 + 3, 20);
    outb(IDE_PORT0 + 4, 3);
    outb(IDE_PORT0 + 5, 0);
    outb(IDE_PORT0 + 7, ATA_CMD_READ_SECTORS);
    settle();
    read_words(buf, 256);
    cr_expect_arr_eq(buf, sector(lba), 512);
    command28(ATA_CMD_READ_SECTORS, lba, 1);
    settle();
    read_words(buf, 256);
    cr_expect_arr_eq(buf, sector(lba), 512);
    command48(ATA_CMD_READ_SECTORS_EXT, lba, 1);
    settle();
    read_words(buf, 256);
    cr_expect_arr_eq(buf, sector(lba), 512);
    /* Sector 0 and a sector beyond the track do not exist. */
    for (unsigned s = 0; s <= 64; s += 64) {
        outb(IDE_PORT0 + 6, 0xa0);
        outb(IDE_PORT0 + 2, 1);
        outb(IDE_PORT0 + 3, (uint8_t)s);
        outb(IDE_PORT0 + 7, ATA_CMD_READ_SECTORS);
        cr_expect_eq(status() & (ERR | DRQ), ERR);
        cr_expect(inb(IDE_PORT0 + 1) & 0x10);
    }
}

Test(ide, addresses_beyond_the_end)
{
    static const struct {
        uint64_t lba;
        uint16_t count;
    } bad[] = {{DISK_SIZE / 512, 1},
               {DISK_SIZE / 512 - 1, 2},
               {0xffffffffffff, 1},
               {DISK_SIZE / 512 - 1, 0},
               {0x800000000000, 0xffff}};

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        command48(ATA_CMD_READ_SECTORS_EXT, bad[i].lba, bad[i].count);
        cr_expect_eq(status() & (ERR | DRQ | BSY), ERR, "%u", i);
        cr_expect_eq(inb(IDE_PORT0 + 1), 0x10);
        command48(ATA_CMD_WRITE_DMA_EXT, bad[i].lba, bad[i].count);
        cr_expect_eq(status() & (ERR | DRQ | BSY), ERR, "%u", i);
    }
    cr_expect_eq(disk_image.reads + disk_image.writes, 0);
}

Test(ide, high_order_bytes_are_read_back)
{
    command48(ATA_CMD_READ_NATIVE_MAX_EXT, 0, 0);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(inb(IDE_PORT0 + 3) | inb(IDE_PORT0 + 4) << 8, DISK_SIZE / 512 - 1);
    outb(IDE_PORT0 + 3, 0x12);
    outb(IDE_PORT0 + 3, 0x34);
    cr_expect_eq(inb(IDE_PORT0 + 3), 0x34);
    outb(IDE_CONTROL0, 0x80);
    cr_expect_eq(inb(IDE_PORT0 + 3), 0x12);
    outb(IDE_PORT0 + 2, 0);
    cr_expect_eq(inb(IDE_PORT0 + 3), 0x34, "any write clears HOB");
}

/* -- Other commands -------------------------------------------------------------------------------
 */

Test(ide, settings)
{
    uint16_t id[256];

    outb(IDE_PORT0 + 1, 0x03);
    command28(ATA_CMD_SET_FEATURES, 0, 0x42); /* UDMA 2 */
    cr_expect_eq(status(), 0x50);
    outb(IDE_PORT0 + 1, 0x82);
    command28(ATA_CMD_SET_FEATURES, 0, 0);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(disk_image.flushes, 1, "switching the cache off empties it");
    command28(ATA_CMD_IDENTIFY, 0, 0);
    settle();
    read_words(id, 256);
    cr_expect_eq(id[88] >> 8, 1 << 2);
    cr_expect_eq(id[85] & 1 << 5, 0);
    outb(IDE_PORT0 + 1, 0x77);
    command28(ATA_CMD_SET_FEATURES, 0, 0);
    cr_expect(status() & ERR);
    cr_expect_eq(inb(IDE_PORT0 + 1), 0x04);
}

Test(ide, flush_and_write_through)
{
    uint8_t buf[512] = {1};

    command28(ATA_CMD_FLUSH_CACHE, 0, 0);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(disk_image.flushes, 1);
    outb(IDE_PORT0 + 1, 0x82);
    command28(ATA_CMD_SET_FEATURES, 0, 0);
    settle();
    command28(ATA_CMD_WRITE_SECTORS, 0, 1);
    write_words(buf, 256);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(disk_image.flushes, 3, "without a write cache every write is durable");
}

Test(ide, verify_reads_and_transfers_nothing)
{
    command28(ATA_CMD_READ_VERIFY, 10, 20);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(disk_image.reads, 1);
    cr_expect_eq(irq14.rises, 1);
    disk_image.fail = -EIO;
    command28(ATA_CMD_READ_VERIFY, 10, 20);
    cr_expect_eq(status() & (ERR | DRQ), ERR);
    cr_expect_eq(inb(IDE_PORT0 + 1), 0x40);
    cr_expect_eq(inb(IDE_PORT0 + 3), 10, "where it went wrong");
}

Test(ide, trim_checks_every_range_first)
{
    uint8_t ranges[512] = {0};

    pci_put32(ranges, 100);
    pci_put16(ranges + 6, 8);
    pci_put32(ranges + 8, DISK_SIZE / 512 - 4);
    pci_put16(ranges + 14, 5);
    memcpy(rig_mem(&rig, 0x10000), ranges, 512);
    prd(0x1000, 0x10000, 512, true);
    outb(IDE_PORT0 + 1, 0);
    outb(IDE_PORT0 + 1, 1);
    command48(ATA_CMD_DATA_SET_MANAGEMENT, 0, 1);
    bm_start(0x1000, false);
    cr_expect_eq(status() & (ERR | DRQ | BSY), ERR);
    cr_expect_eq(disk_image.discards, 0);
    pci_put16(rig_mem(&rig, 0x10000 + 14), 4);
    command48(ATA_CMD_DATA_SET_MANAGEMENT, 0, 1);
    bm_start(0x1000, false);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(disk_image.discards, 2);
    cr_expect_eq(sector(103)[5], 0);
}

Test(ide, smart_says_healthy)
{
    outb(IDE_PORT0 + 1, ATA_SMART_STATUS);
    command28(ATA_CMD_SMART, 0xc24f00, 0);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(inb(IDE_PORT0 + 4), 0x4f);
    cr_expect_eq(inb(IDE_PORT0 + 5), 0xc2);
    command28(ATA_CMD_SMART, 0, 0);
    cr_expect(status() & ERR, "without the signature");
}

Test(ide, power_modes)
{
    command28(ATA_CMD_STANDBY_IMMEDIATE, 0, 0);
    cr_expect_eq(status(), 0x50);
    command28(ATA_CMD_CHECK_POWER, 0, 0);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(inb(IDE_PORT0 + 2), 0);
    command28(ATA_CMD_READ_VERIFY, 0, 1);
    settle();
    command28(ATA_CMD_CHECK_POWER, 0, 0);
    cr_expect_eq(inb(IDE_PORT0 + 2), 0xff);
}

Test(ide, every_command_ends)
{
    static uint8_t buf[ATA_CHUNK];

    for (unsigned code = 0; code < 256; code++) {
        command28((uint8_t)code, 3, 1);
        for (unsigned i = 0; i < 2000 && (status() & DRQ); i++) {
            read_words(buf, 256);
            write_words(buf, 256);
            if (ide.channel[0].drive[0].dma_wait) {
                prd(0x1000, 0x10000, 0, true);
                bm_start(0x1000, ide.channel[0].drive[0].cmd.phase == ATA_PHASE_IN);
            }
        }
        cr_expect_eq(status() & (BSY | DRQ), 0, "command %#x", code);
    }
}

/* -- Bus-master DMA -------------------------------------------------------------------------------
 */

Test(ide, dma_read_over_odd_pieces)
{
    prd(0x1000, 0x10000, 510, false);
    prd(0x1008, 0x20000, 2, false);
    prd(0x1010, 0x30000, 0xfffe, true);
    command28(ATA_CMD_READ_DMA, 50, 100);
    cr_expect_eq(status() & BSY, 0);
    cr_expect(status() & DRQ, "waits for the bus master");
    cr_expect_eq(irq14.rises, 0);
    bm_start(0x1000, true);
    cr_expect_eq(bm_status() & 0x07, 0x05, "active, as the table is longer; interrupt");
    cr_expect_eq(irq14.rises, 1);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), sector(50), 510), 0);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x20000), sector(50) + 510, 2), 0);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x30000), sector(51), 99 * 512), 0);
    outb(BM, 0);
    outb(BM + 2, 0x04);
    cr_expect_eq(bm_status() & 0x07, 0);
}

Test(ide, dma_started_before_the_command)
{
    prd(0x1000, 0x10000, 1024, true);
    bm_start(0x1000, true);
    command28(ATA_CMD_READ_DMA, 9, 2);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(bm_status() & 0x07, 0x04, "table and data end together: not active");
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), sector(9), 1024), 0);
}

Test(ide, dma_write_of_many_chunks)
{
    uint32_t sectors = 3 * ATA_CHUNK / 512 + 5;

    for (unsigned i = 0; i < sectors * 512; i++)
        *rig_mem(&rig, 0x100000 + i) = (uint8_t)(i * 13 + i / 512);
    for (unsigned i = 0; i < 16; i++)
        prd(0x1000 + 8 * i, 0x100000 + 0x10000 * i, 0, i == 15);
    command48(ATA_CMD_WRITE_DMA_FUA_EXT, 1000, (uint16_t)sectors);
    bm_start(0x1000, false);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x100000), sector(1000), sectors * 512), 0);
    cr_expect_eq(disk_image.flushes, 1);
    cr_expect_eq(disk_image.writes, 4);
}

Test(ide, short_prd_table_fails_and_does_not_hang)
{
    prd(0x1000, 0x10000, 512, true);
    command28(ATA_CMD_READ_DMA, 0, 4);
    bm_start(0x1000, true);
    cr_expect_eq(status() & (BSY | DRQ | ERR), ERR);
    cr_expect_eq(irq14.rises, 1);
}

Test(ide, prd_table_without_end_is_as_long_as_the_data)
{
    /* Descriptors of two bytes all over the 64K segment of the table, none of them the last. */
    for (unsigned i = 0; i < 0x10000; i += 8)
        prd(0x20000 + i, 0x10000, 2, false);
    command28(ATA_CMD_READ_DMA, 0, 0);
    bm_start(0x2fff8, true);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), sector(255) + 510, 2), 0);
}

Test(ide, dma_to_memory_that_is_not_there)
{
    prd(0x1000, 0xf0000000, 512, true);
    command28(ATA_CMD_READ_DMA, 0, 1);
    bm_start(0x1000, true);
    cr_expect_eq(status() & (BSY | DRQ | ERR), ERR);
    cr_expect(bm_status() & 0x02);
    /* The table itself. */
    command28(ATA_CMD_READ_DMA, 0, 1);
    bm_start(0xf0000000, true);
    cr_expect_eq(status() & (BSY | DRQ | ERR), ERR);
    cr_expect(bm_status() & 0x02);
    /* Across the end of RAM. */
    prd(0x1000, RIG_RAM - 256, 512, true);
    command28(ATA_CMD_READ_DMA, 0, 1);
    bm_start(0x1000, true);
    cr_expect(status() & ERR);
}

Test(ide, no_dma_without_bus_mastering)
{
    rig_enable(&rig, DEVFN, false);
    memset(rig_mem(&rig, 0x10000), 0xee, 512);
    prd(0x1000, 0x10000, 512, true);
    command28(ATA_CMD_READ_DMA, 3, 1);
    bm_start(0x1000, true);
    cr_expect_eq(status() & (BSY | DRQ), DRQ);
    cr_expect_eq(*rig_mem(&rig, 0x10000), 0xee);
    rig_enable(&rig, DEVFN, true);
    cr_expect_eq(status(), 0x50, "it went on when it was allowed to");
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), sector(3), 512), 0);
}

Test(ide, wrong_direction_moves_nothing)
{
    prd(0x1000, 0x10000, 512, true);
    command28(ATA_CMD_READ_DMA, 3, 1);
    bm_start(0x1000, false);
    cr_expect_eq(status() & DRQ, DRQ);
    outb(BM, 0);
    outb(IDE_CONTROL0, 4);
    outb(IDE_CONTROL0, 0);
    cr_expect_eq(status(), 0x50);
}

/* -- Errors, resets, requests in flight
 * ------------------------------------------------------------ */

Test(ide, read_error_and_read_only_medium)
{
    uint8_t buf[512] = {0};

    disk_image.fail = -EIO;
    prd(0x1000, 0x10000, 512, true);
    command28(ATA_CMD_READ_DMA, 77, 1);
    bm_start(0x1000, true);
    cr_expect_eq(status() & (BSY | DRQ | ERR), ERR);
    cr_expect_eq(inb(IDE_PORT0 + 1), 0x40);
    cr_expect_eq(inb(IDE_PORT0 + 3), 77);
    disk_image.fail = 0;
    disk_image.image.read_only = true;
    command28(ATA_CMD_WRITE_SECTORS, 0, 1);
    write_words(buf, 256);
    cr_expect_eq(status() & (BSY | DRQ | ERR), ERR);
    cr_expect_eq(inb(IDE_PORT0 + 1), 0x04);
    cr_expect_neq(sector(0)[10], 0);
    disk_image.image.read_only = false;
}

Test(ide, software_reset_while_a_request_is_in_flight)
{
    memset(rig_mem(&rig, 0x10000), 0xee, 512);
    disk_image.hold = true;
    prd(0x1000, 0x10000, 512, true);
    command28(ATA_CMD_READ_DMA, 3, 1);
    bm_start(0x1000, true);
    outb(IDE_CONTROL0, 4);
    outb(IDE_CONTROL0, 0);
    cr_expect_eq(inb(IDE_CONTROL0), BSY, "the drive takes its time");
    command28(ATA_CMD_READ_DMA, 5, 1);
    outb(IDE_PORT0 + 7, ATA_CMD_DIAGNOSTIC);
    cr_expect_eq(inb(IDE_CONTROL0), BSY);
    disk_image.hold = false;
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(inb(IDE_PORT0 + 1), 1, "the signature");
    cr_expect_eq(*rig_mem(&rig, 0x10000), 0xee, "nothing was transferred any more");
    cr_expect_eq(irq14.rises, 0);
    bm_start(0x1000, true);
    command28(ATA_CMD_READ_DMA, 5, 1);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), sector(5), 512), 0);
}

Test(ide, machine_reset_while_a_request_is_in_flight)
{
    uint8_t buf[512] = {0};

    disk_image.hold = true;
    command28(ATA_CMD_WRITE_SECTORS, 4, 1);
    write_words(buf, 256);
    pci_host_reset(&rig.pci);
    pci_host_reset(&rig.pci);
    cr_expect_eq(inb(IDE_CONTROL0), BSY);
    disk_image.hold = false;
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(sector(4)[9], 0, "what had been handed over was written");
}

Test(ide, reset_in_the_middle_of_pio)
{
    uint8_t buf[512];

    command28(ATA_CMD_READ_SECTORS, 5, 3);
    settle();
    read_words(buf, 100);
    outb(IDE_CONTROL0, 4);
    outb(IDE_CONTROL0, 0);
    cr_expect_eq(status(), 0x50);
    cr_expect_eq(io_bus_read(&rig.ports, IDE_PORT0, 2), 0);
    command28(ATA_CMD_READ_SECTORS, 5, 1);
    settle();
    read_words(buf, 256);
    cr_expect_arr_eq(buf, sector(5), 512);
}

/* -- ATAPI
 * ------------------------------------------------------------------------------------------ */

/* Sends a packet; data comes by PIO into buf.  Returns how many bytes came. */
static unsigned packet(const uint8_t *cdb, void *buf, unsigned limit)
{
    unsigned got = 0;

    base = IDE_PORT1;
    outb(IDE_PORT1 + 6, 0xa0);
    outb(IDE_PORT1 + 1, 0);
    outb(IDE_PORT1 + 4, (uint8_t)limit);
    outb(IDE_PORT1 + 5, (uint8_t)(limit >> 8));
    outb(IDE_PORT1 + 7, ATA_CMD_PACKET);
    cr_assert_eq(alt_status() & (DRQ | BSY), DRQ);
    cr_expect_eq(inb(IDE_PORT1 + 2) & 3, 1, "command");
    write_words(cdb, 6);
    while (status() & DRQ) {
        unsigned n = inb(IDE_PORT1 + 4) | (unsigned)inb(IDE_PORT1 + 5) << 8;

        cr_assert_eq(inb(IDE_PORT1 + 2) & 3, 2, "data in");
        cr_assert_leq(n, limit);
        read_words((uint8_t *)buf + got, (n + 1) / 2);
        got += n;
    }
    cr_expect_eq(inb(IDE_PORT1 + 2) & 3, 3, "status");
    return got;
}

static void expect_sense(uint8_t key, uint8_t asc, uint8_t ascq)
{
    uint8_t cdb[12] = {0x03, 0, 0, 0, 18}, sense[18];

    cr_expect_eq(packet(cdb, sense, 0xfffe), 18);
    cr_expect_eq(sense[2], key, "key %x", sense[2]);
    cr_expect_eq(sense[12], asc, "asc %x", sense[12]);
    cr_expect_eq(sense[13], ascq, "ascq %x", sense[13]);
}

static void clear_attention(void)
{
    uint8_t cdb[12] = {0}, none[2];

    packet(cdb, none, 0xfffe);
    expect_sense(6, 0x29, 0);
    packet(cdb, none, 0xfffe);
    cr_expect_eq(status() & ERR, 0);
}

Test(ide, disk_commands_show_the_packet_signature)
{
    uint16_t id[256];

    base = IDE_PORT1;
    command28(ATA_CMD_IDENTIFY, 0, 0);
    cr_expect(status() & ERR);
    cr_expect_eq(inb(IDE_PORT1 + 4), 0x14);
    cr_expect_eq(inb(IDE_PORT1 + 5), 0xeb);
    command28(ATA_CMD_IDENTIFY_PACKET, 0, 0);
    cr_expect_eq(status() & (DRQ | ERR), DRQ);
    read_words(id, 256);
    cr_expect_eq(id[0] & 0xff83, 0x8580);
    cr_expect_eq(status() & (BSY | DRQ | ERR), 0);
}

Test(ide, reset_is_a_unit_attention)
{
    uint8_t cdb[12] = {0}, inquiry[12] = {0x12, 0, 0, 0, 36}, buf[64];

    cr_expect_eq(packet(inquiry, buf, 0xfffe), 36, "INQUIRY does not care");
    cr_expect_eq(buf[0], 5);
    cr_expect_eq(buf[1], 0x80);
    cr_expect_eq(packet(inquiry, buf, 10), 36, "in pieces");
    packet(cdb, buf, 0xfffe);
    cr_expect(status() & ERR);
    cr_expect_eq(inb(IDE_PORT1 + 1) >> 4, 6);
    expect_sense(6, 0x29, 0);
    packet(cdb, buf, 0xfffe);
    cr_expect_eq(status() & ERR, 0);
}

Test(ide, read_disc)
{
    uint8_t read10[12] = {0x28, 0, 0, 0, 0, 17, 0, 0, 3}, capacity[12] = {0x25};
    uint8_t buf[3 * 2048];

    clear_attention();
    cr_expect_eq(packet(read10, buf, 2048), 3 * 2048);
    cr_expect_arr_eq(buf, cd_image.data + 17 * 2048, 3 * 2048);
    cr_expect_eq(packet(read10, buf, 1000), 3 * 2048, "bursts that are no sectors");
    cr_expect_arr_eq(buf, cd_image.data + 17 * 2048, 3 * 2048);
    cr_expect_eq(packet(capacity, buf, 8), 8);
    cr_expect_eq(buf[2] << 8 | buf[3], 999);
    cr_expect_eq(buf[6], 8);
    read10[4] = 0x03;
    read10[5] = 0xe7; /* 999: the last one, and two beyond */
    cr_expect_eq(packet(read10, buf, 2048), 0);
    expect_sense(5, 0x21, 0);
    read10[2] = 0xff;
    cr_expect_eq(packet(read10, buf, 2048), 0);
    expect_sense(5, 0x21, 0);
}

Test(ide, read_disc_by_dma)
{
    uint8_t read12[12] = {0xa8, 0, 0, 0, 0, 5, 0, 0, 0, 200, 0, 0};

    clear_attention();
    for (unsigned i = 0; i < 7; i++)
        prd(0x1000 + 8 * i, 0x100000 + 0x10000 * i, 0, i == 6);
    outb(IDE_PORT1 + 1, 1);
    outb(IDE_PORT1 + 7, ATA_CMD_PACKET);
    write_words(read12, 6);
    bm_start(0x1000, true);
    cr_expect_eq(status() & (ERR | DRQ | BSY), 0);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x100000), cd_image.data + 5 * 2048, 200 * 2048), 0);
}

Test(ide, read_cd_raw)
{
    uint8_t cdb[12] = {0xbe, 0, 0, 0, 0, 30, 0, 0, 2, 0xf8}, buf[2 * 2352];

    clear_attention();
    cr_expect_eq(packet(cdb, buf, 0xfffe), sizeof(buf));
    for (unsigned i = 0; i < 2; i++) {
        cr_expect_eq(buf[2352 * i], 0);
        cr_expect_eq(buf[2352 * i + 1], 0xff);
        cr_expect_eq(buf[2352 * i + 13], 0x02, "second 2");
        cr_expect_eq(buf[2352 * i + 14], 0x30 + i, "frame 30 in BCD");
        cr_expect_arr_eq(buf + 2352 * i + 16, cd_image.data + 2048 * (30 + i), 2048);
    }
    cdb[9] = 0x10;
    cr_expect_eq(packet(cdb, buf, 0xfffe), 4096);
    cr_expect_arr_eq(buf, cd_image.data + 2048 * 30, 4096);
    cdb[9] = 0;
    cr_expect_eq(packet(cdb, buf, 0xfffe), 0);
    cr_expect_eq(status() & ERR, 0);
}

Test(ide, table_of_contents)
{
    uint8_t cdb[12] = {0x43, 0, 0, 0, 0, 0, 0, 0x03, 0x24}, toc[804];

    clear_attention();
    cr_expect_eq(packet(cdb, toc, 0xfffe), 20);
    cr_expect_eq(toc[1], 18);
    cr_expect_eq(toc[6], 1);
    cr_expect_eq(toc[14], 0xaa);
    cr_expect_eq(toc[18] << 8 | toc[19], 1000);
    cdb[1] = 2;
    cr_expect_eq(packet(cdb, toc, 0xfffe), 20);
    cr_expect_eq(toc[9] * 60 * 75 + toc[10] * 75 + toc[11], 150);
    cdb[2] = 1;
    cr_expect_eq(packet(cdb, toc, 0xfffe), 12);
    cdb[2] = 2;
    cr_expect_eq(packet(cdb, toc, 0xfffe), 48);
    cdb[2] = 0;
    cdb[8] = 12;
    cdb[7] = 0;
    cr_expect_eq(packet(cdb, toc, 0xfffe), 12, "as much as was asked for");
    cdb[2] = 5;
    packet(cdb, toc, 0xfffe);
    expect_sense(5, 0x24, 0);
}

Test(ide, configuration_and_modes)
{
    uint8_t conf[12] = {0x46, 0, 0, 0, 0, 0, 0, 0, 200}, buf[256];
    uint8_t sense[12] = {0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 200};

    clear_attention();
    cr_expect_gt(packet(conf, buf, 0xfffe), 60);
    cr_expect_eq(buf[7], 0x08, "CD-ROM");
    block_device_set_medium(cd, &cd2_image.image);
    packet(conf, buf, 0xfffe);
    cr_expect_eq(buf[7], 0x10, "DVD-ROM");
    packet((uint8_t[12]){0}, buf, 0xfffe);
    cr_expect_eq(packet(sense, buf, 0xfffe), 8 + 22);
    cr_expect_eq(buf[8], 0x2a);
    sense[2] = 0xff;
    packet(sense, buf, 0xfffe);
    expect_sense(5, 0x39, 0);
    sense[2] = 0x3e;
    packet(sense, buf, 0xfffe);
    expect_sense(5, 0x24, 0);
}

Test(ide, disc_changed)
{
    uint8_t ready[12] = {0}, event[12] = {0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8}, buf[64];
    uint8_t read10[12] = {0x28, 0, 0, 0, 0, 1, 0, 0, 1};

    clear_attention();
    packet(event, buf, 0xfffe);
    block_device_set_medium(cd, NULL);
    cr_expect_eq(packet(event, buf, 0xfffe), 8);
    cr_expect_eq(buf[4], ATAPI_EVENT_REMOVAL);
    cr_expect_eq(buf[5], 1, "tray open, nothing in it");
    packet(ready, buf, 0xfffe);
    expect_sense(2, 0x3a, 2);
    packet(read10, buf, 0xfffe);
    expect_sense(2, 0x3a, 2);
    block_device_set_medium(cd, &cd2_image.image);
    cr_expect_eq(packet(event, buf, 0xfffe), 8);
    cr_expect_eq(buf[4], ATAPI_EVENT_NEW_MEDIA);
    cr_expect_eq(buf[5], 2);
    packet(ready, buf, 0xfffe);
    expect_sense(6, 0x28, 0);
    packet(ready, buf, 0xfffe);
    cr_expect_eq(status() & ERR, 0);
}

Test(ide, guest_locks_and_ejects)
{
    uint8_t lock[12] = {0x1e, 0, 0, 0, 1}, eject[12] = {0x1b, 0, 0, 0, 2}, ready[12] = {0}, buf[64];
    uint8_t event[12] = {0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8};

    clear_attention();
    packet(lock, buf, 0xfffe);
    cr_expect(cd->locked);
    packet(eject, buf, 0xfffe);
    expect_sense(5, 0x53, 2);
    packet(event, buf, 0xfffe);
    cd->eject_requested(cd->media_opaque);
    packet(event, buf, 0xfffe);
    cr_expect_eq(buf[4], ATAPI_EVENT_EJECT_REQUEST);
    lock[4] = 0;
    packet(lock, buf, 0xfffe);
    packet(eject, buf, 0xfffe);
    cr_expect_eq(status() & ERR, 0);
    packet(ready, buf, 0xfffe);
    expect_sense(2, 0x3a, 2);
    eject[4] = 3; /* back in */
    packet(eject, buf, 0xfffe);
    packet(ready, buf, 0xfffe);
    expect_sense(6, 0x28, 0);
}

Test(ide, disc_taken_out_under_a_transfer)
{
    uint8_t read12[12] = {0xa8, 0, 0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0};

    clear_attention();
    for (unsigned i = 0; i < 64; i++)
        prd(0x1000 + 8 * i, 0x100000, 0, i == 63);
    outb(IDE_PORT1 + 1, 1);
    outb(IDE_PORT1 + 7, ATA_CMD_PACKET);
    write_words(read12, 6);
    bm_start(0x1000, true);
    block_device_set_medium(cd, NULL); /* waits for what is in flight, which goes on meanwhile */
    cr_expect_eq(status() & (BSY | DRQ), 0);
    cr_expect_eq(cd_image.closes, 1);
}

Test(ide, every_packet_ends)
{
    static uint8_t buf[1 << 18];

    clear_attention();
    for (unsigned op = 0; op < 256; op++) {
        uint8_t cdb[12] = {(uint8_t)op, 0, 0, 0, 16, 16, 0, 0, 2, 0xf8, 0, 0};

        outb(IDE_PORT1 + 1, 0);
        outb(IDE_PORT1 + 4, 0xfe);
        outb(IDE_PORT1 + 5, 0xff);
        outb(IDE_PORT1 + 7, ATA_CMD_PACKET);
        write_words(cdb, 6);
        for (unsigned i = 0; i < 2000 && (status() & DRQ); i++) {
            read_words(buf, 1024);
            write_words(buf, 1024);
        }
        cr_expect_eq(status() & (BSY | DRQ), 0, "opcode %#x", op);
    }
}

Test(ide, device_reset_ends_a_packet_command)
{
    outb(IDE_PORT1 + 7, ATA_CMD_PACKET);
    base = IDE_PORT1;
    cr_expect_eq(alt_status() & DRQ, DRQ);
    outb(IDE_PORT1 + 7, ATA_CMD_DEVICE_RESET);
    cr_expect_eq(alt_status(), 0);
    cr_expect_eq(inb(IDE_PORT1 + 5), 0xeb);
}
