/* AHCI as a driver uses it: command lists, FISes, NCQ, resets, MSI; and hostile tables. */
#include "dev_fixture.h"

#include <errno.h>

#include "devices/ahci.h"
#include "devices/ata_commands.h"
#include "tests/support/storage_rig.h"

#define DEVFN     PCI_DEVFN_OF(3, 0)
#define ABAR      0xfebf0000u
#define DISK_SIZE (16u << 20)
#define CD_SIZE   (2048u * 1000)

/* Guest memory, per port. */
#define LIST(port)     (0x10000u + 0x8000u * (port))
#define FIS(port)      (LIST(port) + 0x400u)
#define TABLE(port, n) (LIST(port) + 0x1000u + 0x200u * (n))
#define DATA           0x100000u

enum { CLB = 0, FB = 8, IS = 0x10, IE = 0x14, CMD = 0x18, TFD = 0x20, SIG = 0x24, SSTS = 0x28 };
enum { SCTL = 0x2c, SERR = 0x30, SACT = 0x34, CI = 0x38 };

static struct rig rig;
static struct ahci hba;
static struct mem_image disk_image, cd_image;
static struct block_device *disk, *cd;

static uint32_t rd(unsigned at)
{
    return (uint32_t)io_bus_read(&rig.mmio, ABAR + at, 4);
}

static void wr(unsigned at, uint32_t value)
{
    io_bus_write(&rig.mmio, ABAR + at, 4, value);
}

static uint32_t prd_(unsigned port, unsigned reg)
{
    return rd(0x100 + 0x80 * port + reg);
}

static void pwr(unsigned port, unsigned reg, uint32_t value)
{
    wr(0x100 + 0x80 * port + reg, value);
}

static void start(unsigned port)
{
    pwr(port, CLB, LIST(port));
    pwr(port, FB, FIS(port));
    pwr(port, SERR, 0xffffffff);
    pwr(port, IS, 0xffffffff);
    pwr(port, CMD, 0x10 | 0x06);
    pwr(port, CMD, 0x11 | 0x06);
    pwr(port, IE, 0x7dc0007f);
}

static void setup(void)
{
    cr_assert_eq(rig_init(&rig), 0);
    mem_image_init(&disk_image, DISK_SIZE);
    mem_image_init(&cd_image, CD_SIZE);
    cd_image.image.read_only = true;
    disk = rig_drive(&rig, &disk_image, false);
    cd = rig_drive(&rig, &cd_image, true);
    ahci_init(&hba);
    ata_disk_init(&hba.port[0].dev, disk, "SERIAL1");
    ata_cdrom_init(&hba.port[3].dev, cd, "SERIAL2");
    cr_assert_eq(ahci_register(&hba, &rig.pci, DEVFN), 0);
    rig_config32(&rig, DEVFN, PCI_BASE_ADDRESS_5, ABAR);
    rig_enable(&rig, DEVFN, true);
    wr(4, 0x80000002);
    start(0);
    start(3);
}

static void teardown(void)
{
    disk_image.hold = cd_image.hold = false;
    block_device_destroy(disk);
    block_device_destroy(cd);
    pci_function_destroy(&hba.pci);
    ahci_destroy(&hba);
    rig_destroy(&rig);
    free(disk_image.data);
    free(cd_image.data);
}

TestSuite(ahci, .init = setup, .fini = teardown, .timeout = 30);

static void settle(void)
{
    block_drain(disk);
    block_drain(cd);
}

/* -- A driver ---------------------------------------------------------------------------------- */

struct command {
    uint8_t code;
    uint64_t lba;
    uint16_t count, feature;
    uint8_t device, flags; /* of the command header: 0x20 ATAPI, 0x40 write */
    uint32_t buffer, bytes;
};

static void prepare(unsigned port, unsigned slot, const struct command *c)
{
    uint32_t header = LIST(port) + 32 * slot, table = TABLE(port, slot);
    uint8_t *fis = rig_mem(&rig, table);

    rig_put32(&rig, header, 5u | c->flags | (c->bytes ? 1u << 16 : 0));
    rig_put32(&rig, header + 4, 0);
    rig_put32(&rig, header + 8, table);
    rig_put32(&rig, header + 12, 0);
    memset(fis, 0, 0x80);
    fis[0] = 0x27;
    fis[1] = 0x80;
    fis[2] = c->code;
    fis[3] = (uint8_t)c->feature;
    fis[11] = (uint8_t)(c->feature >> 8);
    fis[7] = c->device | 0x40;
    for (unsigned i = 0; i < 3; i++) {
        fis[4 + i] = (uint8_t)(c->lba >> 8 * i);
        fis[8 + i] = (uint8_t)(c->lba >> (24 + 8 * i));
    }
    fis[12] = (uint8_t)c->count;
    fis[13] = (uint8_t)(c->count >> 8);
    rig_put32(&rig, table + 0x80, c->buffer);
    rig_put32(&rig, table + 0x84, 0);
    rig_put32(&rig, table + 0x8c, c->bytes ? c->bytes - 1 : 0);
}

static void run(unsigned port, const struct command *c)
{
    prepare(port, 0, c);
    pwr(port, IS, 0xffffffff);
    pwr(port, CI, 1);
    settle();
}

static const uint8_t *sector(uint32_t n)
{
    return disk_image.data + 512ull * n;
}

static bool pin(void)
{
    return rig.pirq[pci_swizzle(3, 0)] || rig.pirq[0] || rig.pirq[1] || rig.pirq[2] || rig.pirq[3];
}

/* After a task file error. */
static void restart(unsigned port)
{
    pwr(port, CMD, 0x10 | 0x06);
    cr_assert_eq(prd_(port, CMD) & 0x8000, 0, "CR");
    pwr(port, SERR, 0xffffffff);
    pwr(port, IS, 0xffffffff);
    pwr(port, CMD, 0x11 | 0x06);
}

/* -- Detection -----------------------------------------------------------------------------------
 */

Test(ahci, what_is_there)
{
    cr_expect_eq(rd(0) & 0x1f, AHCI_PORTS - 1);
    cr_expect_eq(rd(0x0c), (1u << AHCI_PORTS) - 1);
    cr_expect_eq(prd_(0, SSTS), 0x123);
    cr_expect_eq(prd_(0, SIG), 0x00000101);
    cr_expect_eq(prd_(3, SIG), 0xeb140101);
    cr_expect_eq(prd_(1, SSTS), 0);
    cr_expect_eq(prd_(0, TFD) & 0xff, 0x50);
    cr_expect_eq(*rig_mem(&rig, FIS(0) + 0x40), 0x34, "the signature FIS came with FRE");
    cr_expect_eq(rd(0x100 + 0x80 * AHCI_PORTS), 0, "no port");
    cr_expect_eq((uint16_t)rd(0x06) & 0, 0);
}

Test(ahci, comreset)
{
    pwr(0, CMD, 0x10 | 0x06);
    pwr(0, SCTL, 0x301);
    cr_expect_eq(prd_(0, SSTS) & 0x0f, 0);
    pwr(0, SCTL, 0x300);
    cr_expect_eq(prd_(0, SSTS), 0x123);
    cr_expect(prd_(0, SERR) & 1u << 26);
    cr_expect(prd_(0, IS) & 0x40);
    cr_expect_eq(prd_(0, TFD) & 0xff, 0x50);
    pwr(0, SERR, 1u << 26);
    cr_expect_eq(prd_(0, IS) & 0x40, 0);
    /* Where nothing is plugged in nothing comes up. */
    pwr(1, SCTL, 0x301);
    pwr(1, SCTL, 0x300);
    cr_expect_eq(prd_(1, SSTS), 0);
}

Test(ahci, software_reset)
{
    struct command c = {0};
    uint8_t *fis;

    for (unsigned i = 0; i < 2; i++) {
        prepare(0, 0, &c);
        fis = rig_mem(&rig, TABLE(0, 0));
        fis[1] = 0;
        fis[15] = i ? 0 : 4;
        memset(rig_mem(&rig, FIS(0)), 0, 256);
        pwr(0, CI, 1);
        cr_expect_eq(prd_(0, CI), 0);
        cr_expect_eq(prd_(0, TFD) & 0x80, i ? 0 : 0x80);
    }
    cr_expect_eq(*rig_mem(&rig, FIS(0) + 0x40), 0x34);
    cr_expect_eq(*rig_mem(&rig, FIS(0) + 0x43), 0x01);
}

/* -- Commands -------------------------------------------------------------------------------------
 */

Test(ahci, identify_comes_with_a_pio_setup_fis)
{
    uint16_t id[256];

    run(0, &(struct command){.code = ATA_CMD_IDENTIFY, .buffer = DATA, .bytes = 512});
    cr_expect_eq(prd_(0, CI), 0);
    cr_expect_eq(prd_(0, IS), 0x02);
    cr_expect_eq(prd_(0, TFD), 0x50);
    cr_expect_eq(*rig_mem(&rig, FIS(0) + 0x20), 0x5f);
    cr_expect_eq(pci_get32(rig_mem(&rig, LIST(0) + 4)), 512);
    memcpy(id, rig_mem(&rig, DATA), 512);
    cr_expect_eq(id[75], 31);
    cr_expect(id[76] & 0x100);
    cr_expect_eq(id[93], 0);
    cr_expect(pin());
    cr_expect_eq(rd(8), 1);
    pwr(0, IS, 0x02);
    wr(8, 1);
    cr_expect_not(pin());
}

Test(ahci, dma_read_and_write_through_scattered_tables)
{
    struct command c = {.code = ATA_CMD_READ_DMA_EXT, .lba = 123, .count = 1000};
    uint32_t at = 0;
    unsigned n = 0;

    prepare(0, 0, &c);
    while (at < 1000 * 512) {
        uint32_t len = 2 + (n * 7919 % 5000 & ~1u);

        rig_put32(&rig, 0x40000 + 0x80 + 16 * n, DATA + at);
        rig_put32(&rig, 0x40000 + 0x84 + 16 * n, 0);
        rig_put32(&rig, 0x40000 + 0x8c + 16 * n, (len - 1) | 0x80000000u);
        at += len;
        n++;
    }
    memcpy(rig_mem(&rig, 0x40000), rig_mem(&rig, TABLE(0, 0)), 64);
    rig_put32(&rig, LIST(0), 5u | n << 16);
    rig_put32(&rig, LIST(0) + 8, 0x40000);
    pwr(0, CI, 1);
    settle();
    cr_expect_eq(prd_(0, CI), 0);
    cr_expect_eq(prd_(0, TFD), 0x50);
    cr_expect_eq(memcmp(rig_mem(&rig, DATA), sector(123), 1000 * 512), 0);
    cr_expect_eq(pci_get32(rig_mem(&rig, LIST(0) + 4)), 1000 * 512);
    *rig_mem(&rig, 0x40002) = ATA_CMD_WRITE_DMA_EXT;
    *rig_mem(&rig, 0x40005) = 0x10;
    pwr(0, CI, 1);
    settle();
    cr_expect_eq(prd_(0, TFD), 0x50);
    cr_expect_eq(memcmp(sector(123), sector(0x107b), 1000 * 512), 0);
}

Test(ahci, all_slots_at_once_without_queuing)
{
    for (unsigned i = 0; i < 32; i++)
        prepare(0, i,
                &(struct command){.code = ATA_CMD_READ_DMA_EXT,
                                  .lba = 10 * i,
                                  .count = 8,
                                  .buffer = DATA + 4096 * i,
                                  .bytes = 4096});
    pwr(0, CI, 0xffffffff);
    settle();
    cr_expect_eq(prd_(0, CI), 0);
    for (unsigned i = 0; i < 32; i++)
        cr_expect_eq(memcmp(rig_mem(&rig, DATA + 4096 * i), sector(10 * i), 4096), 0, "%u", i);
}

Test(ahci, native_command_queuing)
{
    disk_image.hold = true;
    for (unsigned i = 0; i < 32; i++)
        prepare(0, i,
                &(struct command){.code = ATA_CMD_READ_FPDMA_QUEUED,
                                  .lba = 100 * i,
                                  .feature = 8,
                                  .count = (uint16_t)(i << 3),
                                  .buffer = DATA + 4096 * i,
                                  .bytes = 4096});
    pwr(0, SACT, 0xffffffff);
    pwr(0, CI, 0xffffffff);
    cr_expect_eq(prd_(0, CI), 0, "all accepted");
    cr_expect_eq(prd_(0, SACT), 0xffffffff);
    cr_expect_eq(prd_(0, TFD) & 0x80, 0, "not busy");
    disk_image.hold = false;
    settle();
    cr_expect_eq(prd_(0, SACT), 0);
    cr_expect_eq(prd_(0, IS) & ~1u, 0x08);
    cr_expect_eq(*rig_mem(&rig, FIS(0) + 0x58), 0xa1);
    for (unsigned i = 0; i < 32; i++)
        cr_expect_eq(memcmp(rig_mem(&rig, DATA + 4096 * i), sector(100 * i), 4096), 0, "%u", i);
}

Test(ahci, queued_write_with_fua_flushes)
{
    memset(rig_mem(&rig, DATA), 0x3c, 4096);
    prepare(0, 4,
            &(struct command){.code = ATA_CMD_WRITE_FPDMA_QUEUED,
                              .lba = 64,
                              .feature = 8,
                              .count = 4 << 3,
                              .device = 0x80,
                              .flags = 0x40,
                              .buffer = DATA,
                              .bytes = 4096});
    pwr(0, SACT, 1 << 4);
    pwr(0, CI, 1 << 4);
    settle();
    cr_expect_eq(prd_(0, SACT), 0);
    cr_expect_eq(disk_image.flushes, 1);
    cr_expect_eq(sector(71)[511], 0x3c);
}

Test(ahci, failed_queued_command_is_in_the_log)
{
    disk_image.hold = true;
    for (unsigned i = 0; i < 3; i++)
        prepare(0, i,
                &(struct command){.code = ATA_CMD_READ_FPDMA_QUEUED,
                                  .lba = i == 1 ? DISK_SIZE : i,
                                  .feature = 1,
                                  .count = (uint16_t)(i << 3),
                                  .buffer = DATA,
                                  .bytes = 512});
    pwr(0, SACT, 7);
    pwr(0, CI, 7);
    disk_image.hold = false;
    settle();
    cr_expect(prd_(0, IS) & 0x40000000);
    cr_expect(prd_(0, SACT) & 2);
    cr_expect(prd_(0, TFD) & 1);
    restart(0);
    cr_expect_eq(prd_(0, SACT), 0);
    run(0,
        &(struct command){
            .code = ATA_CMD_READ_LOG_EXT, .lba = 0x10, .count = 1, .buffer = DATA, .bytes = 512});
    cr_expect_eq(prd_(0, TFD), 0x50);
    cr_expect_eq(*rig_mem(&rig, DATA), 1, "the tag");
    cr_expect_eq(*rig_mem(&rig, DATA + 3), 0x10, "IDNF");
    run(0,
        &(struct command){
            .code = ATA_CMD_READ_LOG_EXT, .lba = 0x10, .count = 1, .buffer = DATA, .bytes = 512});
    cr_expect_eq(*rig_mem(&rig, DATA), 0x80);
}

Test(ahci, errors_stop_the_port_until_it_is_restarted)
{
    prepare(0, 1, &(struct command){.code = ATA_CMD_FLUSH_CACHE_EXT});
    run(0, &(struct command){.code = ATA_CMD_READ_DMA_EXT,
                             .lba = DISK_SIZE / 512,
                             .count = 1,
                             .buffer = DATA,
                             .bytes = 512});
    cr_expect_eq(prd_(0, CI), 1);
    cr_expect_eq(prd_(0, IS), 0x40000001);
    cr_expect_eq(prd_(0, TFD), 0x1051);
    pwr(0, CI, 2);
    settle();
    cr_expect_eq(prd_(0, CI), 3);
    restart(0);
    cr_expect_eq(prd_(0, CI), 0);
    pwr(0, CI, 2);
    settle();
    cr_expect_eq(prd_(0, CI), 0);
    cr_expect_eq(disk_image.flushes, 1);
}

Test(ahci, tables_too_short_or_nowhere)
{
    struct command c = {.code = ATA_CMD_READ_DMA_EXT, .count = 8, .buffer = DATA, .bytes = 1024};

    run(0, &c);
    cr_expect(prd_(0, IS) & 1u << 24, "overflow");
    cr_expect(prd_(0, TFD) & 1);
    restart(0);
    c.bytes = 0; /* no table at all */
    run(0, &c);
    cr_expect(prd_(0, TFD) & 1);
    restart(0);
    c.bytes = 4096;
    c.buffer = 0xf0000000;
    run(0, &c);
    cr_expect(prd_(0, IS) & 1u << 29, "host bus error");
    restart(0);
    prepare(0, 0, &c);
    rig_put32(&rig, LIST(0) + 12, 0xffffffff); /* command table */
    pwr(0, CI, 1);
    cr_expect(prd_(0, IS) & 1u << 29);
    restart(0);
    pwr(0, CLB, 0xfffffc00); /* command list */
    pwr(0, CI, 1);
    cr_expect(prd_(0, IS) & 1u << 29);
    restart(0);
    pwr(0, CLB, LIST(0));
    c.buffer = DATA;
    run(0, &c);
    cr_expect_eq(prd_(0, TFD), 0x50, "and it still works");
}

Test(ahci, no_dma_without_bus_mastering)
{
    rig_enable(&rig, DEVFN, false);
    run(0, &(struct command){.code = ATA_CMD_IDENTIFY, .buffer = DATA, .bytes = 512});
    cr_expect_eq(prd_(0, CI), 1);
    rig_enable(&rig, DEVFN, true);
    cr_expect_eq(prd_(0, CI), 0);
    cr_expect_eq(prd_(0, TFD), 0x50);
}

/* -- Resets with requests in flight
 * ----------------------------------------------------------------- */

Test(ahci, stop_while_requests_are_in_flight)
{
    memset(rig_mem(&rig, DATA), 0xee, 512);
    disk_image.hold = true;
    prepare(0, 0,
            &(struct command){
                .code = ATA_CMD_READ_DMA_EXT, .lba = 1, .count = 1, .buffer = DATA, .bytes = 512});
    pwr(0, CI, 1);
    pwr(0, CMD, 0x10);
    cr_expect_eq(prd_(0, CI), 0);
    cr_expect_eq(prd_(0, CMD) & 0x8000, 0x8000, "still running");
    /* An impatient driver goes on in the same slot. */
    pwr(0, CMD, 0x11);
    pwr(0, CI, 1);
    cr_expect_eq(prd_(0, CI), 1);
    disk_image.hold = false;
    settle();
    cr_expect_eq(prd_(0, CI), 0, "the second one was done when the first had ended");
    cr_expect_eq(memcmp(rig_mem(&rig, DATA), sector(1), 512), 0);
    pwr(0, CMD, 0x10);
    cr_expect_eq(prd_(0, CMD) & 0x8000, 0);
}

Test(ahci, every_reset_while_requests_are_in_flight)
{
    for (unsigned kind = 0; kind < 4; kind++) {
        disk_image.hold = true;
        for (unsigned i = 0; i < 32; i++)
            prepare(0, i,
                    &(struct command){.code = ATA_CMD_WRITE_FPDMA_QUEUED,
                                      .lba = 8 * i,
                                      .feature = 8,
                                      .count = (uint16_t)(i << 3),
                                      .flags = 0x40,
                                      .buffer = DATA,
                                      .bytes = 4096});
        pwr(0, SACT, 0xffffffff);
        pwr(0, CI, 0xffffffff);
        switch (kind) {
        case 0:
            wr(4, 1); /* HBA reset */
            break;
        case 1:
            pci_host_reset(&rig.pci);
            rig_config32(&rig, DEVFN, PCI_BASE_ADDRESS_5, ABAR);
            rig_enable(&rig, DEVFN, true);
            break;
        case 2:
            pwr(0, SCTL, 1);
            pwr(0, SCTL, 0);
            break;
        case 3:
            pwr(0, CMD, 0);
            break;
        }
        cr_expect_eq(prd_(0, TFD) & 0x80, kind == 3 ? 0 : 0x80, "kind %u", kind);
        disk_image.hold = false;
        settle();
        cr_expect_eq(prd_(0, TFD) & 0x80, 0);
        wr(4, 0x80000002);
        pwr(0, CMD, 0);
        start(0);
        run(0, &(struct command){.code = ATA_CMD_READ_DMA_EXT,
                                 .lba = 500,
                                 .count = 8,
                                 .buffer = DATA,
                                 .bytes = 4096});
        cr_expect_eq(prd_(0, TFD), 0x50, "kind %u", kind);
        cr_expect_eq(memcmp(rig_mem(&rig, DATA), sector(500), 4096), 0);
    }
}

/* -- Interrupts
 * -------------------------------------------------------------------------------------- */

Test(ahci, message_signalled_interrupts)
{
    unsigned cap = hba.pci.msi;

    rig_config32(&rig, DEVFN, cap + 4, 0xfee00000);
    rig_config16(&rig, DEVFN, cap + (hba.pci.config[cap + 2] & 0x80 ? 12 : 8), 0x41);
    rig_config16(&rig, DEVFN, cap + 2, 1);
    run(0, &(struct command){.code = ATA_CMD_IDENTIFY, .buffer = DATA, .bytes = 512});
    cr_expect_eq(rig.messages, 1);
    cr_expect_eq(rig.message_data, 0x41);
    cr_expect_not(pin());
    /* Another port while the first is still pending. */
    run(3, &(struct command){.code = ATA_CMD_IDENTIFY_PACKET, .buffer = DATA, .bytes = 512});
    cr_expect_eq(rig.messages, 2);
    cr_expect_eq(rd(8), 9);
    /* Acknowledged without looking at the port: it is still pending. */
    wr(8, 9);
    cr_expect_eq(rd(8), 9);
    cr_expect_geq(rig.messages, 3);
    pwr(0, IS, 0xffffffff);
    pwr(3, IS, 0xffffffff);
    wr(8, 9);
    cr_expect_eq(rd(8), 0);
}

/* -- ATAPI
 * --------------------------------------------------------------------------------------------- */

static void packet(const uint8_t *cdb, uint32_t bytes, bool dma)
{
    prepare(3, 0,
            &(struct command){.code = ATA_CMD_PACKET,
                              .feature = dma,
                              .lba = 0xfffe00,
                              .flags = 0x20,
                              .buffer = DATA,
                              .bytes = bytes});
    memcpy(rig_mem(&rig, TABLE(3, 0) + 0x40), cdb, 12);
    pwr(3, IS, 0xffffffff);
    pwr(3, CI, 1);
    settle();
}

Test(ahci, packets)
{
    uint8_t ready[12] = {0}, sense[12] = {3, 0, 0, 0, 18};
    uint8_t read10[12] = {0x28, 0, 0, 0, 0, 17, 0, 0, 200};

    packet(ready, 0, false);
    cr_expect_eq(prd_(3, TFD) >> 12, 6, "unit attention");
    cr_expect(prd_(3, IS) & 0x40000000);
    restart(3);
    packet(sense, 18, false);
    cr_expect_eq(prd_(3, TFD) & 1, 0);
    cr_expect_eq(*rig_mem(&rig, DATA + 12), 0x29);
    for (unsigned dma = 0; dma < 2; dma++) {
        memset(rig_mem(&rig, DATA), 0, 200 * 2048);
        packet(read10, 200 * 2048, dma);
        cr_expect_eq(prd_(3, CI), 0);
        cr_expect_eq(prd_(3, TFD) & 0xff, 0x40);
        cr_expect_eq(memcmp(rig_mem(&rig, DATA), cd_image.data + 17 * 2048, 200 * 2048), 0);
        cr_expect_eq(pci_get32(rig_mem(&rig, LIST(3) + 4)), 200 * 2048);
    }
}

Test(ahci, narrow_accesses)
{
    cr_expect_eq(io_bus_read(&rig.mmio, ABAR + 0x100 + SSTS, 1), 0x23);
    cr_expect_eq(io_bus_read(&rig.mmio, ABAR + 0x100 + SSTS + 1, 1), 0x01);
    cr_expect_eq(io_bus_read(&rig.mmio, ABAR, 8), (uint64_t)rd(4) << 32 | rd(0));
    io_bus_write(&rig.mmio, ABAR + 0x100 + FB + 1, 1, 0x77);
    cr_expect_eq(prd_(0, FB), (FIS(0) & 0xffff00ff) | 0x7700);
}
