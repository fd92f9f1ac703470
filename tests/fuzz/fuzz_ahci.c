/*
 * AHCI under a hostile driver: registers, command lists, FISes, PRD tables, NCQ, media that change
 * and fail.  Whatever happened, after a reset both drives have to identify themselves.
 */
#include "ata_drives.h"

#include "devices/ahci.h"
#include "devices/ata_commands.h"
#include "fuzz.h"
#include "script.h"

#define DEVFN   PCI_DEVFN_OF(3, 0)
#define ABAR    0xfebf0000u
#define CD_PORT 3

/* Guest memory, per port. */
#define LIST(port)     (0x4000u + 0x4000u * (port))
#define RECEIVED(port) (LIST(port) + 0x400u)
#define TABLE(port, n) (LIST(port) + 0x1000u + 0x100u * ((n) % 32))
#define DATA           0x40000u

enum {
    CLB = 0,
    FB = 8,
    IS = 0x10,
    IE = 0x14,
    CMD = 0x18,
    TFD = 0x20,
    SERR = 0x30,
    SACT = 0x34,
    CI = 0x38
};
enum {
    WRITE_REG,
    READ_REG,
    WRITE_RAM,
    ISSUE,
    PACKET,
    NCQ,
    START,
    DRAIN,
    MEDIUM,
    CONFIG,
    FAIL,
    KINDS
};

static struct ahci hba;

static void create(void)
{
    create_drives();
    ahci_init(&hba);
    ata_disk_init(&hba.port[0].dev, disk, "SERIAL1");
    ata_cdrom_init(&hba.port[CD_PORT].dev, cd, "SERIAL2");
    if (ahci_register(&hba, &rig.pci, DEVFN))
        abort();
}

static void wr(unsigned at, uint32_t value)
{
    io_bus_write(&rig.mmio, ABAR + at, 4, value);
}

static uint32_t rd(unsigned at)
{
    return (uint32_t)io_bus_read(&rig.mmio, ABAR + at, 4);
}

static unsigned reg(unsigned port, unsigned at)
{
    return 0x100 + 0x80 * port + at;
}

static void settle(void)
{
    block_drain(disk);
    block_drain(cd);
}

static void start(unsigned port)
{
    wr(reg(port, CLB), LIST(port));
    wr(reg(port, FB), RECEIVED(port));
    wr(reg(port, SERR), ~0u);
    wr(reg(port, IS), ~0u);
    wr(reg(port, CMD), 0x16);
    wr(reg(port, CMD), 0x17);
    wr(reg(port, IE), ~0u);
}

static void reset(void)
{
    settle();
    disk_image.fail = cd_image.fail = 0;
    pci_host_reset(&rig.pci);
    rig_config32(&rig, DEVFN, PCI_BASE_ADDRESS_5, ABAR);
    rig_enable(&rig, DEVFN, true);
    wr(4, 0x80000002);
    start(0);
    start(CD_PORT);
}

/* Writes a command header, a table with a register FIS and up to three PRD entries. */
static void build(unsigned port, unsigned slot, uint16_t flags, const uint8_t fis[20],
                  uint32_t bytes)
{
    uint8_t *header = rig_mem(&rig, LIST(port) + 32 * slot),
            *table = rig_mem(&rig, TABLE(port, slot));
    unsigned prds = 1 + (flags >> 12 & 3) % 3;

    memset(header, 0, 32);
    pci_put32(header, (flags & 0x7e0u) | 5 | prds << 16);
    pci_put32(header + 8, TABLE(port, slot));
    memcpy(table, fis, 20);
    for (unsigned i = 0; i < prds; i++) {
        pci_put32(table + 0x80 + 16 * i, DATA + 0x10000 * i);
        pci_put32(table + 0x8c + 16 * i, (bytes / prds + i) & 0x803fffff);
    }
}

static void issue(const uint8_t *c, bool ncq)
{
    unsigned port = c[1] & 0x80 ? CD_PORT : 0, slot = c[1] & 31;
    uint8_t fis[20] = {0x27, (uint8_t)(c[1] & 0x40 ? 0 : 0x80), c[4], c[5], c[6], c[7], c[8], c[9]};

    if (ncq) {
        fis[2] = c[4] & 1 ? ATA_CMD_WRITE_FPDMA_QUEUED : ATA_CMD_READ_FPDMA_QUEUED;
        fis[12] = (uint8_t)(slot << 3);
        wr(reg(port, SACT), 1u << slot);
    } else {
        fis[12] = c[10];
        fis[13] = c[11];
        fis[15] = c[1] & 0x20 ? 4 : 0;
    }
    build(port, slot, script_offset(c), fis, script_address(c));
    wr(reg(port, CI), 1u << slot);
}

static void packet(const uint8_t *c)
{
    unsigned slot = c[1] & 31;
    const uint8_t fis[20] = {0x27, 0x80, ATA_CMD_PACKET, c[1] >> 5 & 1};

    build(CD_PORT, slot, (uint16_t)(script_offset(c) | 0x20), fis, 0x10000);
    memcpy(rig_mem(&rig, TABLE(CD_PORT, slot) + 0x40), c + 4, 12);
    wr(reg(CD_PORT, CI), 1u << slot);
}

static void command(const uint8_t *c)
{
    uint16_t offset = script_offset(c);
    uint64_t value = script_value(c);

    switch (c[0] % KINDS) {
    case WRITE_REG:
        io_bus_write(&rig.mmio, ABAR + offset % AHCI_BAR_SIZE, 1u << (c[1] & 3), value);
        break;
    case READ_REG:
        io_bus_read(&rig.mmio, ABAR + offset % AHCI_BAR_SIZE, 1u << (c[1] & 3));
        break;
    case WRITE_RAM:
        ram_write(&rig.ram, script_address(c) % (RIG_RAM - 8), &value, 8);
        break;
    case ISSUE:
        issue(c, false);
        break;
    case NCQ:
        issue(c, true);
        break;
    case PACKET:
        packet(c);
        break;
    case START:
        start(c[1] & 0x80 ? CD_PORT : 0);
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

static void identify(unsigned port, uint8_t cmd)
{
    const uint8_t fis[20] = {0x27, 0x80, cmd};

    build(port, 0, 0, fis, 511);
    wr(reg(port, CI), 1);
    settle();
    if (rd(reg(port, CI)) || (rd(reg(port, TFD)) & 0x89))
        abort(); /* the port is stuck */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool created;

    if (!created) {
        create();
        created = true;
    }
    memset(rig.ram.base, 0, 512 << 10);
    reset();
    medium(1);
    for (size_t at = 0; at + COMMAND <= size; at += COMMAND)
        command(data + at);
    reset();
    settle();
    identify(0, ATA_CMD_IDENTIFY);
    identify(CD_PORT, ATA_CMD_IDENTIFY_PACKET);
    return 0;
}

/* -- A driver that behaves ----------------------------------------------------------------------
 */

/* count and sector number as 28-bit commands have them; 48-bit and queued ones take what comes. */
static void add_ata(struct script *s, unsigned port, unsigned slot, unsigned cmd, unsigned feature,
                    unsigned count, uint32_t lba, uint32_t bytes)
{
    add(s, ISSUE, port | slot, cmd == ATA_CMD_WRITE_DMA ? 0x40 : 0,
        cmd | feature << 8 | (uint64_t)lba << 16 | 0x40ull << 40 | (uint64_t)count << 48,
        bytes - 1);
}

size_t fuzz_seed(unsigned index, uint8_t *out, size_t max)
{
    static const struct {
        uint8_t command, feature, count;
    } disk_commands[] = {
        {ATA_CMD_IDENTIFY, 0, 0},         {ATA_CMD_READ_DMA, 0, 100},
        {ATA_CMD_WRITE_DMA, 0, 100},      {ATA_CMD_READ_SECTORS, 0, 5},
        {ATA_CMD_WRITE_SECTORS, 0, 5},    {ATA_CMD_READ_DMA_EXT, 0, 9},
        {ATA_CMD_FLUSH_CACHE_EXT, 0, 0},  {ATA_CMD_DATA_SET_MANAGEMENT, 1, 1},
        {ATA_CMD_READ_LOG_EXT, 0, 1},     {ATA_CMD_SET_FEATURES, 3, 0x46},
        {ATA_CMD_READ_LOG_DMA_EXT, 0, 1},
    };
    static const uint8_t packets[] = {0x12, 0x03, 0x5a, 0x25, 0x28, 0xbe, 0x43, 0x46, 0x4a, 0x1b};
    const unsigned n_disk = sizeof(disk_commands) / sizeof(disk_commands[0]);
    struct script s = {out, 0, max};

    if (index < n_disk) {
        for (unsigned slot = 0; slot < 3; slot++)
            add_ata(&s, 0, slot, disk_commands[index].command, disk_commands[index].feature,
                    disk_commands[index].count, 16 * slot, 51200);
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, READ_REG, 2, 0x110, 0, 0);
        add(&s, WRITE_REG, 2, 0x110, ~0ull, 0);
        return s.len;
    }
    index -= n_disk;
    if (index < 2) { /* queued; the sector count is the feature */
        for (unsigned slot = 0; slot < 6; slot++)
            add(&s, NCQ, slot, 0, index | 8 << 8 | (uint64_t)(100 * slot) << 16 | 0x40ull << 40,
                4095);
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, FAIL, index, 0, 0, 0);
        add(&s, NCQ, 7, 0, index | 8 << 8 | 0x40ull << 40, 4095);
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, ISSUE, 9, 0, ATA_CMD_READ_LOG_EXT | 10ull << 16 | 1ull << 48, 511);
        add(&s, START, 0, 0, 0, 0);
        return s.len;
    }
    index -= 2;
    if (index < sizeof(packets)) {
        add(&s, PACKET, 0, 0, 0x03, 0x24);
        add(&s, PACKET, 1 | (index & 1) << 5, 0, packets[index] | 0x10ull << 40,
            0x0200 | (packets[index] == 0xbe ? 0xf800 : 0));
        add(&s, DRAIN, 0, 0, 0, 0);
        add(&s, MEDIUM, index % 3, 0, 0, 0);
        add(&s, PACKET, 2, 0, packets[index] | 0x10ull << 40, 0x0200);
        return s.len;
    }
    index -= sizeof(packets);
    if (index == 0) { /* software reset, COMRESET, HBA reset */
        add(&s, ISSUE, 0x60, 0, 0, 0);
        add(&s, ISSUE, 0x41, 0, 0, 0);
        add(&s, WRITE_REG, 2, 0x12c, 0x301, 0);
        add(&s, WRITE_REG, 2, 0x12c, 0x300, 0);
        add(&s, START, 0, 0, 0, 0);
        add(&s, WRITE_REG, 2, 4, 0x80000003, 0);
        add(&s, START, 0x80, 0, 0, 0);
        return s.len;
    }
    return 0;
}
