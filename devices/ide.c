/* The PIIX3's IDE controller: see ide.h. */
#include "devices/ide.h"

#include <linux/pci_regs.h>
#include <string.h>

#include "devices/ata_commands.h"

enum { CONTROL_NIEN = 0x02, CONTROL_SRST = 0x04, CONTROL_HOB = 0x80 };
enum { BM_START = 0x01, BM_TO_MEMORY = 0x08 };
enum { BM_ACTIVE = 0x01, BM_ERROR = 0x02, BM_INTERRUPT = 0x04, BM_CAPABLE = 0x60 };
enum {
    REG_DATA,
    REG_FEATURE, /* read: error */
    REG_COUNT,
    REG_LBA_LOW,
    REG_LBA_MID,
    REG_LBA_HIGH,
    REG_DEVICE,
    REG_COMMAND, /* read: status */
};
enum { NOW, BEFORE };

static struct ide_drive *selected(struct ide_channel *c)
{
    return &c->drive[!!(c->device & ATA_DEV_DEV1)];
}

static bool present(const struct ide_drive *d)
{
    return d->dev.kind != ATA_NONE;
}

/* -- Interrupts -------------------------------------------------------------------------------- */

static void update_irq(struct ide_channel *c)
{
    bool level = selected(c)->intrq && !(c->control & CONTROL_NIEN);

    irq_set(&c->irq, level);
}

static void raise_intrq(struct ide_drive *d)
{
    struct ide_channel *c = d->channel;

    d->intrq = true;
    if (d == selected(c) && !(c->control & CONTROL_NIEN))
        c->bm_status |= BM_INTERRUPT;
    update_irq(c);
}

static void clear_intrq(struct ide_drive *d)
{
    d->intrq = false;
    update_irq(d->channel);
}

/* -- Registers and taskfiles ------------------------------------------------------------------- */

static void show_taskfile(struct ide_drive *d, const struct ata_taskfile *tf)
{
    d->status = tf->status;
    d->error = tf->error;
    d->count[NOW] = (uint8_t)tf->count;
    d->count[BEFORE] = (uint8_t)(tf->count >> 8);
    for (unsigned i = 0; i < 3; i++) {
        d->lba[i][NOW] = (uint8_t)(tf->lba >> 8 * i);
        d->lba[i][BEFORE] = (uint8_t)(tf->lba >> (24 + 8 * i));
    }
}

static void take_taskfile(const struct ide_drive *d, uint8_t command, struct ata_taskfile *tf)
{
    *tf = (struct ata_taskfile){
        .command = command,
        .device = d->channel->device,
        .feature = (uint16_t)(d->feature[NOW] | d->feature[BEFORE] << 8),
        .count = (uint16_t)(d->count[NOW] | d->count[BEFORE] << 8),
    };
    for (unsigned i = 0; i < 3; i++)
        tf->lba |= (uint64_t)d->lba[i][NOW] << 8 * i | (uint64_t)d->lba[i][BEFORE] << (24 + 8 * i);
}

/* -- Bus-master DMA ---------------------------------------------------------------------------- */

/* Takes the next descriptor; false when the table has ended or cannot be read. */
static bool next_prd(struct ide_channel *c)
{
    uint8_t entry[8];
    uint32_t second;

    if (c->prd_last) {
        c->prd_done = true;
        return false;
    }
    if (pci_dma_read(&c->ide->pci, c->prd_next, entry, sizeof(entry))) {
        c->bm_status |= BM_ERROR;
        return false;
    }
    /* The table may not cross a 64K boundary: the controller counts in 16 bits. */
    c->prd_next = (c->prd_next & 0xffff0000) | ((c->prd_next + 8) & 0xffff);
    second = pci_get32(entry + 4);
    c->prd_addr = pci_get32(entry) & ~1u;
    c->prd_left = second & 0xfffe ? second & 0xfffe : 0x10000;
    c->prd_last = second >> 31;
    return true;
}

/* Moves the piece of data in cmd->buf.  False if it could not be moved to the end. */
static bool run_prds(struct ide_channel *c, struct ata_command *cmd)
{
    struct pci_function *f = &c->ide->pci;
    uint32_t pos = 0;

    while (pos < cmd->buf_len) {
        uint32_t n = cmd->buf_len - pos;
        int err;

        if (!c->prd_left && !next_prd(c))
            return false;
        n = n < c->prd_left ? n : c->prd_left;
        err = cmd->phase == ATA_PHASE_IN ? pci_dma_write(f, c->prd_addr, cmd->buf + pos, n)
                                         : pci_dma_read(f, c->prd_addr, cmd->buf + pos, n);
        if (err) {
            c->bm_status |= BM_ERROR;
            return false;
        }
        pos += n;
        c->prd_addr += n;
        c->prd_left -= n;
    }
    return true;
}

/* If a drive waits for the bus master and the bus master is on, moves the data. */
static void try_dma(struct ide_channel *c)
{
    struct ide_drive *d = selected(c);
    bool to_memory = c->bm_command & BM_TO_MEMORY;

    if (!d->dma_wait)
        d = &c->drive[d == &c->drive[0]];
    if (!d->dma_wait || !(c->bm_status & BM_ACTIVE) ||
        to_memory != (d->cmd.phase == ATA_PHASE_IN) || !pci_bus_master(&c->ide->pci))
        return;
    d->dma_wait = false;
    d->status = ATA_SR_BSY;
    if (run_prds(c, &d->cmd)) {
        ata_data_done(&d->cmd);
    } else {
        /* Too short a table, or memory that is not there: real drives would wait for ever, and
         * the driver would time out and reset.  Fail at once instead. */
        c->bm_status &= (uint8_t)~BM_ACTIVE;
        ata_fail(&d->cmd, ATA_ER_ABRT);
    }
}

static void bm_write_command(struct ide_channel *c, uint8_t value)
{
    bool start = value & BM_START, was = c->bm_command & BM_START;

    c->bm_command = value & (BM_START | BM_TO_MEMORY);
    if (start && !was) {
        c->prd_next = c->bm_table;
        c->prd_left = 0;
        c->prd_last = c->prd_done = false;
        c->bm_status |= BM_ACTIVE;
        try_dma(c);
    } else if (!start) {
        c->bm_status &= (uint8_t)~BM_ACTIVE;
    }
}

/* -- The drives' side -------------------------------------------------------------------------- */

/* Offers the next DRQ block of the piece of data. */
static void next_block(struct ide_drive *d)
{
    struct ata_command *cmd = &d->cmd;
    uint32_t n = cmd->buf_len - d->pos;

    n = n < cmd->drq_bytes ? n : cmd->drq_bytes;
    d->end = d->pos + n;
    d->status = ATA_SR_DRDY | ATA_SR_DRQ | (d->dev.kind == ATA_DISK ? ATA_SR_DSC : 0);
    if (d->dev.kind == ATA_CDROM && cmd->tf.command == ATA_CMD_PACKET) {
        d->count[NOW] = cmd->phase == ATA_PHASE_IN ? ATA_REASON_IO : 0;
        d->lba[1][NOW] = (uint8_t)n;
        d->lba[2][NOW] = (uint8_t)(n >> 8);
    }
    if (cmd->phase == ATA_PHASE_IN) {
        d->pio_in = d->dev.kind == ATA_DISK || cmd->tf.command != ATA_CMD_PACKET;
        raise_intrq(d);
    } else if (!d->first_block || cmd->tf.command == ATA_CMD_PACKET) {
        raise_intrq(d);
    }
    d->first_block = false;
}

static void drive_data(void *opaque, struct ata_command *cmd)
{
    struct ide_drive *d = opaque;

    d->pos = d->end = 0;
    if (cmd->phase == ATA_PHASE_PACKET) {
        d->end = ATAPI_PACKET;
        d->status = ATA_SR_DRDY | ATA_SR_DRQ;
        d->count[NOW] = ATA_REASON_COD;
    } else if (cmd->dma) {
        d->status = ATA_SR_DRDY | ATA_SR_DRQ;
        d->dma_wait = true;
        try_dma(d->channel);
    } else {
        next_block(d);
    }
}

static void post_signature(struct ide_drive *d)
{
    struct ata_taskfile tf;

    ata_signature(&d->dev, &tf);
    show_taskfile(d, &tf);
    d->resetting = false;
}

static void drive_complete(void *opaque, struct ata_command *cmd)
{
    struct ide_drive *d = opaque;
    struct ide_channel *c = d->channel;

    d->dma_wait = false;
    d->pos = d->end = 0;
    if (cmd->aborted) {
        if (d->resetting && !(c->control & CONTROL_SRST))
            post_signature(d);
        return;
    }
    show_taskfile(d, &cmd->tf);
    if (d == selected(c)) /* else the host looks at the other drive now */
        c->device = cmd->tf.device;
    if (cmd->dma && c->prd_last && !c->prd_left)
        c->bm_status &= (uint8_t)~BM_ACTIVE;
    if (!d->pio_in || (cmd->tf.status & ATA_SR_ERR))
        raise_intrq(d);
}

static const struct ata_adapter_ops drive_ops = {.data = drive_data, .complete = drive_complete};

/* -- Commands and resets ------------------------------------------------------------------------
 */

/* Ends what the drive is doing; the signature appears when that is so and SRST is off. */
static void reset_drive(struct ide_drive *d, bool soft)
{
    d->dma_wait = false;
    d->intrq = false;
    d->pos = d->end = 0;
    d->pio_in = d->first_block = false;
    if (!present(d))
        return;
    d->resetting = true;
    d->status = ATA_SR_BSY;
    ata_abort(&d->cmd);
    ata_device_reset(&d->dev, soft);
}

static void finish_reset(struct ide_drive *d)
{
    if (present(d) && d->resetting && !d->cmd.busy)
        post_signature(d);
}

/* EXECUTE DEVICE DIAGNOSTIC goes to both drives, and drive 0 answers. */
static void diagnostic(struct ide_channel *c)
{
    for (unsigned i = 0; i < 2; i++)
        if (c->drive[i].cmd.busy)
            return;
    for (unsigned i = 0; i < 2; i++)
        if (present(&c->drive[i]))
            post_signature(&c->drive[i]);
    c->device = 0;
    if (present(&c->drive[0]))
        raise_intrq(&c->drive[0]);
}

static void write_command(struct ide_channel *c, uint8_t command)
{
    struct ide_drive *d = selected(c);

    if (command == ATA_CMD_DIAGNOSTIC) {
        diagnostic(c);
        return;
    }
    if (!present(d))
        return;
    if (command == ATA_CMD_DEVICE_RESET && d->dev.kind == ATA_CDROM) {
        reset_drive(d, true);
        update_irq(c);
        finish_reset(d);
        return;
    }
    if (d->cmd.busy || d->resetting)
        return;
    clear_intrq(d);
    take_taskfile(d, command, &d->cmd.tf);
    d->status = ATA_SR_BSY;
    d->first_block = true;
    d->pio_in = false;
    ata_submit(&d->dev, &d->cmd);
}

static void write_control(struct ide_channel *c, uint8_t value)
{
    bool was = c->control & CONTROL_SRST, is = value & CONTROL_SRST;

    c->control = value;
    if (is && !was) {
        c->device = 0;
        for (unsigned i = 0; i < 2; i++)
            reset_drive(&c->drive[i], true);
    } else if (was && !is) {
        for (unsigned i = 0; i < 2; i++)
            finish_reset(&c->drive[i]);
    }
    update_irq(c);
}

/* -- The data port ------------------------------------------------------------------------------
 */

static uint8_t *pio_buffer(struct ide_drive *d)
{
    return d->cmd.phase == ATA_PHASE_PACKET ? d->cmd.packet : d->cmd.buf;
}

/* The host has read or written the whole block. */
static void block_done(struct ide_drive *d)
{
    struct ata_command *cmd = &d->cmd;

    d->status = ATA_SR_BSY;
    if (cmd->phase != ATA_PHASE_PACKET && d->pos < cmd->buf_len)
        next_block(d);
    else
        ata_data_done(cmd);
}

static bool pio_active(const struct ide_drive *d, bool in)
{
    return d->cmd.busy && !d->cmd.aborted && d->pos < d->end &&
           (d->cmd.phase == ATA_PHASE_IN) == in;
}

static uint32_t read_data(struct ide_drive *d, unsigned size)
{
    uint32_t value = 0, n;

    if (!pio_active(d, true))
        return 0;
    n = d->end - d->pos < size ? d->end - d->pos : size;
    memcpy(&value, pio_buffer(d) + d->pos, n);
    d->pos += n;
    if (d->pos == d->end)
        block_done(d);
    return value;
}

static void write_data(struct ide_drive *d, unsigned size, uint32_t value)
{
    uint32_t n;

    if (!pio_active(d, false))
        return;
    n = d->end - d->pos < size ? d->end - d->pos : size;
    memcpy(pio_buffer(d) + d->pos, &value, n);
    d->pos += n;
    if (d->pos == d->end)
        block_done(d);
}

/* -- Ports --------------------------------------------------------------------------------------
 */

static uint8_t read_reg(struct ide_channel *c, unsigned reg)
{
    struct ide_drive *d = selected(c);
    unsigned hob = c->control & CONTROL_HOB ? BEFORE : NOW;

    if (!present(d))
        return 0;
    switch (reg) {
    case REG_FEATURE:
        return d->error;
    case REG_COUNT:
        return d->count[hob];
    case REG_LBA_LOW:
    case REG_LBA_MID:
    case REG_LBA_HIGH:
        return d->lba[reg - REG_LBA_LOW][hob];
    case REG_DEVICE:
        return c->device | 0xa0;
    case REG_COMMAND:
        clear_intrq(d);
        return d->status;
    }
    return 0;
}

static void shift_in(uint8_t fifo[2], uint8_t value)
{
    fifo[BEFORE] = fifo[NOW];
    fifo[NOW] = value;
}

static void write_reg(struct ide_channel *c, unsigned reg, uint8_t value)
{
    struct ide_drive *sel = selected(c);

    if (reg == REG_COMMAND) {
        write_command(c, value);
        return;
    }
    /* Parameters of a running command cannot be changed, but the host may select the other
     * drive. */
    c->control &= (uint8_t)~CONTROL_HOB;
    if (reg == REG_DEVICE) {
        if (present(sel) && sel->cmd.busy && (sel->status & ATA_SR_BSY))
            return;
        c->device = value;
        update_irq(c);
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        struct ide_drive *d = &c->drive[i];

        if (d->cmd.busy || d->resetting)
            continue;
        switch (reg) {
        case REG_FEATURE:
            shift_in(d->feature, value);
            break;
        case REG_COUNT:
            shift_in(d->count, value);
            break;
        case REG_LBA_LOW:
        case REG_LBA_MID:
        case REG_LBA_HIGH:
            shift_in(d->lba[reg - REG_LBA_LOW], value);
            break;
        }
    }
}

static uint64_t command_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ide_channel *c = opaque;
    uint32_t value = 0;

    if (offset == REG_DATA)
        return read_data(selected(c), size);
    for (unsigned i = 0; i < size && offset + i < IDE_COMMAND_PORTS; i++)
        value |= (uint32_t)read_reg(c, (unsigned)offset + i) << 8 * i;
    return value;
}

static void command_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ide_channel *c = opaque;

    if (offset == REG_DATA) {
        write_data(selected(c), size, (uint32_t)value);
        return;
    }
    for (unsigned i = 0; i < size && offset + i < IDE_COMMAND_PORTS; i++)
        write_reg(c, (unsigned)offset + i, (uint8_t)(value >> 8 * i));
}

static uint64_t control_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ide_channel *c = opaque;

    return present(selected(c)) ? selected(c)->status : 0;
}

static void control_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    write_control(opaque, (uint8_t)value);
}

static uint8_t bm_read_byte(struct ide_controller *ide, unsigned offset)
{
    const struct ide_channel *c = &ide->channel[offset >> 3 & 1];

    switch (offset & 7) {
    case 0:
        return c->bm_command;
    case 2:
        return c->bm_status;
    case 4:
    case 5:
    case 6:
    case 7:
        return (uint8_t)(c->bm_table >> 8 * (offset & 3));
    }
    return 0xff;
}

static void bm_write_byte(struct ide_controller *ide, unsigned offset, uint8_t value)
{
    struct ide_channel *c = &ide->channel[offset >> 3 & 1];
    unsigned shift = 8 * (offset & 3);

    switch (offset & 7) {
    case 0:
        bm_write_command(c, value);
        break;
    case 2:
        c->bm_status &= (uint8_t) ~(value & (BM_ERROR | BM_INTERRUPT));
        c->bm_status = (uint8_t)((c->bm_status & ~BM_CAPABLE) | (value & BM_CAPABLE));
        break;
    case 4:
    case 5:
    case 6:
    case 7:
        c->bm_table = (c->bm_table & ~(0xffu << shift)) | (uint32_t)value << shift;
        c->bm_table &= ~3u;
        break;
    }
}

static uint64_t bm_read(void *opaque, uint64_t offset, unsigned size)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)bm_read_byte(opaque, (unsigned)offset + i) << 8 * i;
    return value;
}

static void bm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        bm_write_byte(opaque, (unsigned)offset + i, (uint8_t)(value >> 8 * i));
}

const struct io_ops ide_command_ops = {.read = command_read, .write = command_write, .max_size = 4};
const struct io_ops ide_control_ops = {.read = control_read, .write = control_write, .max_size = 1};
const struct io_ops ide_bm_ops = {.read = bm_read, .write = bm_write, .max_size = 4};

/* -- Construction -------------------------------------------------------------------------------
 */

/* Bus mastering may have been switched on after the drive asked for it. */
static void config_written(void *opaque, unsigned at, unsigned size)
{
    struct ide_controller *ide = opaque;

    if (at <= PCI_COMMAND && at + size > PCI_COMMAND)
        for (unsigned i = 0; i < IDE_CHANNELS; i++)
            try_dma(&ide->channel[i]);
}

void ide_reset(struct ide_controller *ide)
{
    for (unsigned i = 0; i < IDE_CHANNELS; i++) {
        struct ide_channel *c = &ide->channel[i];

        c->bm_command = c->bm_status = 0;
        c->bm_table = c->prd_next = c->prd_addr = c->prd_left = 0;
        c->prd_last = c->prd_done = false;
        c->control = c->device = 0;
        for (unsigned k = 0; k < 2; k++) {
            if (present(&c->drive[k]))
                c->bm_status |= (uint8_t)(0x20 << k);
            reset_drive(&c->drive[k], false);
            finish_reset(&c->drive[k]);
        }
        update_irq(c);
    }
}

static void pci_reset(void *opaque)
{
    ide_reset(opaque);
}

static const struct pci_ops ide_pci_ops = {.config_written = config_written, .reset = pci_reset};

struct ata_device *ide_drive(struct ide_controller *ide, unsigned n)
{
    return &ide->channel[n >> 1 & 1].drive[n & 1].dev;
}

void ide_init(struct ide_controller *ide, struct irq_line irq0, struct irq_line irq1)
{
    memset(ide, 0, sizeof(*ide));
    for (unsigned i = 0; i < IDE_CHANNELS; i++) {
        struct ide_channel *c = &ide->channel[i];

        c->ide = ide;
        c->irq = i ? irq1 : irq0;
        for (unsigned k = 0; k < 2; k++)
            c->drive[k].channel = c;
    }
}

int ide_register(struct ide_controller *ide, struct pci_host *host, struct io_bus *ports,
                 uint8_t devfn)
{
    static const uint16_t command[] = {IDE_PORT0, IDE_PORT1},
                          control[] = {IDE_CONTROL0, IDE_CONTROL1};
    /* Programming interface 80h: bus master, both channels at their legacy addresses for good. */
    static const struct pci_id id = {
        .vendor = PCI_VENDOR_INTEL, .device = IDE_PCI_DEVICE, .class = 0x010180};
    struct pci_function *f = &ide->pci;
    int err;

    for (unsigned i = 0; i < 2 * IDE_CHANNELS; i++) {
        struct ide_drive *d = &ide->channel[i >> 1].drive[i & 1];

        d->dev.adapter = &drive_ops;
        d->dev.adapter_opaque = d;
    }
    pci_function_init(f, &id, &ide_pci_ops, ide);
    /* IDETIM: both channels decode (bit 15), which firmware would enable. */
    for (unsigned at = 0x40; at < 0x44; at++)
        f->writable[at] = 0xff;
    f->config[0x41] = f->config[0x43] = 0x80;
    f->writable[0x44] = 0xff; /* SIDETIM */
    err = pci_add_bar(f, IDE_BM_BAR, PCI_BAR_IO, IDE_BM_PORTS, &ide_bm_ops, ide);
    if (!err)
        err = pci_register(host, f, devfn);
    for (unsigned i = 0; i < IDE_CHANNELS && !err; i++) {
        err = io_bus_add(ports, command[i], IDE_COMMAND_PORTS, &ide_command_ops, &ide->channel[i]);
        if (!err)
            err = io_bus_add(ports, control[i], 1, &ide_control_ops, &ide->channel[i]);
    }
    if (!err)
        ide_reset(ide);
    return err;
}

void ide_destroy(struct ide_controller *ide)
{
    for (unsigned i = 0; i < 2 * IDE_CHANNELS; i++)
        ata_command_destroy(&ide->channel[i >> 1].drive[i & 1].cmd);
}
