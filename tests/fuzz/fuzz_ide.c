/*
 * IDE and ATAPI under a hostile driver: ports, bus master, PRD tables, media that change and fail.
 * Whatever happened, after a reset both drives have to identify themselves.
 */
#include "ata_drives.h"

#include "devices/ata_commands.h"
#include "devices/ide.h"
#include "fuzz.h"
#include "script.h"

#define DEVFN PCI_DEVFN_OF(1, 1)
#define BM    0xc000
#define TABLE 0x1000u
#define DATA  0x10000u

enum {
    WRITE_PORT,
    READ_PORT,
    WRITE_BM,
    READ_BM,
    WRITE_RAM,
    ATA,
    PACKET,
    PIO,
    DRAIN,
    MEDIUM,
    CONFIG,
    FAIL,
    KINDS
};

static struct ide_controller ide;

static void create(void)
{
    create_drives();
    ide_init(&ide, (struct irq_line){0}, (struct irq_line){0});
    ata_disk_init(ide_drive(&ide, 0), disk, "SERIAL1");
    ata_cdrom_init(ide_drive(&ide, 2), cd, "SERIAL2");
    if (ide_register(&ide, &rig.pci, &rig.ports, DEVFN))
        abort();
}

static void out(uint16_t port, uint8_t value)
{
    io_bus_write(&rig.ports, port, 1, value);
}

static uint8_t in(uint16_t port)
{
    return (uint8_t)io_bus_read(&rig.ports, port, 1);
}

static void settle(void)
{
    block_drain(disk);
    block_drain(cd);
}

static void reset(void)
{
    settle();
    disk_image.fail = cd_image.fail = 0;
    pci_host_reset(&rig.pci);
    rig_config32(&rig, DEVFN, PCI_BASE_ADDRESS_4, BM);
    rig_enable(&rig, DEVFN, true);
}

/* A task file, with what 48-bit commands have in the previous contents, and the command. */
static void ata(uint16_t base, const uint8_t *c)
{
    out(base + 6, (uint8_t)((c[8] & 0xef) | (c[1] & 0x10)));
    out(base + 1, c[3]);
    out(base + 2, c[10]);
    out(base + 3, c[11]);
    out(base + 1, c[2]);
    out(base + 2, c[4]);
    for (unsigned i = 0; i < 3; i++)
        out((uint16_t)(base + 3 + i), c[5 + i]);
    out(base + 7, c[9]);
}

static void packet(uint16_t base, const uint8_t *c)
{
    out(base + 6, 0);
    out(base + 1, c[2] & 3);
    out(base + 4, 0);
    out(base + 5, c[3]);
    out(base + 7, ATA_CMD_PACKET);
    for (unsigned i = 0; i < 12; i += 2)
        io_bus_write(&rig.ports, base, 2, (uint16_t)(c[4 + i] | c[5 + i] << 8));
}

static void command(const uint8_t *c)
{
    uint16_t base = c[1] & 0x80 ? IDE_PORT1 : IDE_PORT0, offset = script_offset(c);
    unsigned size = 1u << (c[1] & 3) % 3;
    uint64_t value = script_value(c);
    uint16_t port = (uint16_t)(base + offset % 9);

    if (offset % 9 == 8) {
        port = (uint16_t)(base + 0x206);
        size = 1;
    }
    switch (c[0] % KINDS) {
    case WRITE_PORT:
        io_bus_write(&rig.ports, port, size, value);
        break;
    case READ_PORT:
        io_bus_read(&rig.ports, port, size);
        break;
    case WRITE_BM:
        io_bus_write(&rig.ports, BM + offset % 16, size, value);
        break;
    case READ_BM:
        io_bus_read(&rig.ports, BM + offset % 16, size);
        break;
    case WRITE_RAM:
        ram_write(&rig.ram, script_address(c) % (RIG_RAM - 8), &value, 8);
        break;
    case ATA:
        ata(base, c);
        break;
    case PACKET:
        packet(base, c);
        break;
    case PIO:
        for (unsigned i = 0; i < offset % 2048u; i++) {
            if (c[1] & 4)
                io_bus_write(&rig.ports, base, size, value + i);
            else
                io_bus_read(&rig.ports, base, size);
        }
        break;
    case MEDIUM:
        medium(c[1]);
        break;
    case CONFIG:
        rig_config32(&rig, DEVFN, offset & 0xfc, (uint32_t)value);
        break;
    case FAIL:
        fail_images(c[1]);
        break;
    default:
        settle();
        break;
    }
}

static void identify(uint16_t base, uint8_t cmd)
{
    out(base + 6, 0);
    out(base + 7, cmd);
    settle();
    if (in(base + 7) != 0x50 + 0x08 && in(base + 7) != 0x48)
        abort(); /* no data: the drive is stuck */
    for (unsigned i = 0; i < 256; i++)
        io_bus_read(&rig.ports, base, 2);
    if (in(base + 7) & 0x88)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool created;

    if (!created) {
        create();
        created = true;
    }
    reset();
    memset(rig.ram.base, 0, 128 << 10);
    medium(1);
    for (size_t at = 0; at + COMMAND <= size; at += COMMAND)
        command(data + at);
    reset();
    identify(IDE_PORT0, ATA_CMD_IDENTIFY);
    identify(IDE_PORT1, ATA_CMD_IDENTIFY_PACKET);
    return 0;
}

/* -- A driver that behaves ----------------------------------------------------------------------
 */

static void add_ata(struct script *s, unsigned channel, unsigned feature, unsigned count,
                    uint32_t lba, unsigned cmd)
{
    add(s, ATA, channel, feature,
        count | (uint64_t)(lba & 0xffffff) << 8 | 0x40ull << 32 | (uint64_t)cmd << 40, 0);
}

static void add_packet(struct script *s, unsigned feature, uint64_t first, uint32_t last)
{
    add(s, PACKET, 0x80, feature | 0x0800, first, last);
}

/* Two entries, the second the last. */
static void add_dma(struct script *s, unsigned channel, bool to_memory)
{
    unsigned at = channel ? 8 : 0;

    add(s, WRITE_RAM, 0, 0, DATA | 0x400ull << 32, TABLE);
    add(s, WRITE_RAM, 0, 0, (DATA + 0x1000) | 0x8000fc00ull << 32, TABLE + 8);
    add(s, WRITE_BM, 2, at + 4, TABLE, 0);
    add(s, WRITE_BM, 0, at + 2, 6, 0);
    add(s, WRITE_BM, 0, at, to_memory ? 9 : 1, 0);
    add(s, DRAIN, 0, 0, 0, 0);
    add(s, READ_BM, 0, at + 2, 0, 0);
    add(s, WRITE_BM, 0, at, 0, 0);
}

size_t fuzz_seed(unsigned index, uint8_t *out, size_t max)
{
    static const uint8_t pio[] = {ATA_CMD_IDENTIFY,         ATA_CMD_READ_SECTORS,
                                  ATA_CMD_READ_SECTORS_EXT, ATA_CMD_READ_MULTIPLE,
                                  ATA_CMD_WRITE_SECTORS,    ATA_CMD_WRITE_MULTIPLE_EXT,
                                  ATA_CMD_READ_LOG_EXT,     ATA_CMD_SMART};
    static const uint8_t dma[] = {ATA_CMD_READ_DMA, ATA_CMD_WRITE_DMA, ATA_CMD_READ_DMA_EXT,
                                  ATA_CMD_WRITE_DMA_FUA_EXT, ATA_CMD_DATA_SET_MANAGEMENT};
    static const uint8_t plain[] = {
        ATA_CMD_FLUSH_CACHE,  ATA_CMD_SET_MULTIPLE, ATA_CMD_DIAGNOSTIC, ATA_CMD_INIT_PARAMETERS,
        ATA_CMD_SET_FEATURES, ATA_CMD_READ_VERIFY,  ATA_CMD_CHECK_POWER};
    static const uint8_t packets[] = {0x12, 0x03, 0x1a, 0x5a, 0x25, 0x28, 0xa8, 0xbe, 0xb9, 0x43,
                                      0x46, 0x4a, 0x51, 0x52, 0xad, 0x1b, 0x1e, 0x55, 0x00};
    struct script s = {out, 0, max};

    if (index < sizeof(pio)) {
        bool write =
            pio[index] == ATA_CMD_WRITE_SECTORS || pio[index] == ATA_CMD_WRITE_MULTIPLE_EXT;

        add_ata(&s, 0, 0, 4, 0, ATA_CMD_SET_MULTIPLE);
        add_ata(&s, 0, pio[index] == ATA_CMD_SMART ? 0xd0 : 0, 3, 0xc24f00, pio[index]);
        add_ata(&s, 0, 0, 3, 100, pio[index]);
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, PIO, write ? 5 : 1, 768, 0x1234, 0);
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, READ_PORT, 0, 7, 0, 0);
        return s.len;
    }
    index -= sizeof(pio);
    if (index < sizeof(dma)) {
        bool in = dma[index] == ATA_CMD_READ_DMA || dma[index] == ATA_CMD_READ_DMA_EXT;

        add(&s, WRITE_RAM, 0, 0, 5 | 8ull << 48, DATA); /* a range to trim */
        add_ata(&s, 0, dma[index] == ATA_CMD_DATA_SET_MANAGEMENT, in ? 100 : 1, 100, dma[index]);
        add_dma(&s, 0, in);
        add(&s, READ_PORT, 0, 7, 0, 0);
        return s.len;
    }
    index -= sizeof(dma);
    if (index < sizeof(plain)) {
        add_ata(&s, 0, plain[index] == ATA_CMD_SET_FEATURES ? 3 : 0, 0x44, 100, plain[index]);
        add_ata(&s, 0x80, 2, 0, 0, plain[index]);
        add(&s, WRITE_PORT, 0, 8, 4, 0);
        add(&s, WRITE_PORT, 0, 8, 0, 0);
        add_ata(&s, 0x80, 0, 0, 0, ATA_CMD_DEVICE_RESET);
        return s.len;
    }
    index -= sizeof(plain);
    if (index < 2 * sizeof(packets)) {
        uint8_t op = packets[index / 2], form = op == 0xbe ? 0xf8 : 0;

        add_packet(&s, 0, 0x03, 0x24); /* REQUEST SENSE */
        add(&s, PIO, 0x81, 100, 0, 0);
        /* A few sectors from 16; allocation lengths in the same bytes. */
        add_packet(&s, index & 1, op | 0x10ull << 40 | 0xffull << 56, 0x0200 | (uint32_t)form << 8);
        if (index & 1)
            add_dma(&s, 0x80, true);
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, PIO, 0x81, 2000, 0, 0);
        add(&s, MEDIUM, index % 3, 0, 0, 0);
        add_packet(&s, 0, op | 0x10ull << 40, 0x0200 | (uint32_t)form << 8);
        add(&s, PIO, 0x81, 2000, 0, 0);
        return s.len;
    }
    return 0;
}
