/*
 * The commands of a hard disk (ATA8-ACS), except IDENTIFY's contents (ata_identify.c).
 * Every address and count from the guest is checked against the capacity before anything happens.
 */
#include <errno.h>
#include <string.h>

#include "devices/ata.h"
#include "devices/ata_commands.h"

#define TRIM_BLOCKS 8u /* blocks of 64 ranges in one DATA SET MANAGEMENT, as IDENTIFY says */

/* -- Addresses --------------------------------------------------------------------------------- */

/* Sectors of a 28-bit (0 = 256) or 48-bit (0 = 65536) count. */
static uint32_t sector_count(uint16_t count, bool ext)
{
    return count ? count : ext ? 65536 : 256;
}

/* The logical block address of the taskfile; false if the CHS address is impossible. */
static bool address(const struct ata_command *cmd, uint64_t *lba)
{
    const struct ata_taskfile *tf = &cmd->tf;
    const struct ata_device *d = cmd->dev;
    uint32_t cylinder = (uint32_t)(tf->lba >> 8 & 0xffff), head = tf->device & 0x0f;
    uint32_t sector = tf->lba & 0xff;

    if (ata_is_ext(tf->command)) {
        *lba = tf->lba & 0xffffffffffff;
        return true;
    }
    if (tf->device & ATA_DEV_LBA) {
        *lba = tf->lba | (uint64_t)head << 24;
        return true;
    }
    *lba = ((uint64_t)cylinder * d->heads + head) * d->spt + sector - 1;
    return sector >= 1 && sector <= d->spt && head < d->heads;
}

/* Stores where a command stopped the way it was addressed. */
static void set_address(struct ata_command *cmd, uint64_t lba)
{
    struct ata_taskfile *tf = &cmd->tf;
    const struct ata_device *d = cmd->dev;

    if (ata_is_ext(tf->command)) {
        tf->lba = lba;
    } else if (tf->device & ATA_DEV_LBA) {
        tf->lba = lba & 0xffffff;
        tf->device = (uint8_t)((tf->device & 0xf0) | (lba >> 24 & 0x0f));
    } else {
        uint64_t track = lba / d->spt;

        tf->lba = (track / d->heads & 0xffff) << 8 | (lba % d->spt + 1);
        tf->device = (uint8_t)((tf->device & 0xf0) | track % d->heads);
    }
}

/* Reads address and count into cmd and checks them; false: the command has been failed. */
static bool take_range(struct ata_command *cmd, uint32_t sectors)
{
    uint64_t lba;

    if (!address(cmd, &lba) || lba >= cmd->dev->sectors || sectors > cmd->dev->sectors - lba) {
        ata_fail(cmd, ATA_ER_IDNF);
        return false;
    }
    cmd->lba = lba;
    cmd->sectors = sectors;
    return true;
}

/* -- Reading and writing ----------------------------------------------------------------------- */

static void fail_io(struct ata_command *cmd, int err)
{
    set_address(cmd, cmd->lba);
    /* A read-only image refuses writes as a write-protected drive does. */
    ata_fail(cmd, err == -EROFS || err == -EACCES ? ATA_ER_ABRT
                  : cmd->write                    ? ATA_ER_IDNF | ATA_ER_ABRT
                                                  : ATA_ER_UNC);
}

static void set_step(struct ata_command *cmd)
{
    cmd->step =
        cmd->sectors < ATA_CHUNK / ATA_SECTOR ? (uint32_t)cmd->sectors : ATA_CHUNK / ATA_SECTOR;
    cmd->buf_len = cmd->step * ATA_SECTOR;
    cmd->total = cmd->sectors * ATA_SECTOR;
}

static void advance(struct ata_command *cmd)
{
    cmd->lba += cmd->step;
    cmd->sectors -= cmd->step;
}

static void read_next(struct ata_command *cmd);

static void read_moved(struct ata_command *cmd)
{
    advance(cmd);
    read_next(cmd);
}

static void read_done(struct ata_command *cmd, int err)
{
    if (err) {
        fail_io(cmd, err);
    } else if (cmd->discard_data) {
        read_moved(cmd);
    } else {
        cmd->phase = ATA_PHASE_IN;
        cmd->data_done = read_moved;
        cmd->dev->adapter->data(cmd->dev->adapter_opaque, cmd);
    }
}

static void read_next(struct ata_command *cmd)
{
    if (!cmd->sectors) {
        set_address(cmd, cmd->lba ? cmd->lba - 1 : 0);
        ata_succeed(cmd);
        return;
    }
    set_step(cmd);
    ata_block_io(cmd, false, cmd->lba, cmd->step, read_done);
}

static void flush_done(struct ata_command *cmd, int err)
{
    if (err) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    ata_succeed(cmd);
}

static void write_next(struct ata_command *cmd);

static void write_done(struct ata_command *cmd, int err)
{
    if (err) {
        fail_io(cmd, err);
        return;
    }
    advance(cmd);
    write_next(cmd);
}

static void write_moved(struct ata_command *cmd)
{
    ata_block_io(cmd, true, cmd->lba, cmd->step, write_done);
}

static void write_next(struct ata_command *cmd)
{
    if (!cmd->sectors) {
        set_address(cmd, cmd->lba ? cmd->lba - 1 : 0);
        if (cmd->fua || !cmd->dev->write_cache)
            ata_block_flush(cmd, flush_done);
        else
            ata_succeed(cmd);
        return;
    }
    set_step(cmd);
    cmd->phase = ATA_PHASE_OUT;
    cmd->data_done = write_moved;
    cmd->dev->adapter->data(cmd->dev->adapter_opaque, cmd);
}

/* READ, WRITE and VERIFY in all their forms. */
static void transfer(struct ata_command *cmd, bool write, bool dma)
{
    cmd->write = write;
    cmd->dma = dma;
    if (!take_range(cmd, sector_count(cmd->tf.count, ata_is_ext(cmd->tf.command))) ||
        !ata_buffer(cmd))
        return;
    cmd->dev->standby = false;
    if (write)
        write_next(cmd);
    else
        read_next(cmd);
}

static void transfer_multiple(struct ata_command *cmd, bool write)
{
    if (!cmd->dev->multiple) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    cmd->drq_bytes = cmd->dev->multiple * ATA_SECTOR;
    transfer(cmd, write, false);
}

/* READ/WRITE FPDMA QUEUED (ATA8-ACS 7.37): the count is in the feature register, the tag in bits
 * 7:3 of the count. */
static void transfer_queued(struct ata_command *cmd, bool write)
{
    if (!cmd->dev->sata || cmd->dev->ncq_failed) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    cmd->queued = true;
    cmd->tag = (uint8_t)(cmd->tf.count >> 3 & 0x1f);
    cmd->fua = write && (cmd->tf.device & 0x80);
    cmd->write = write;
    cmd->dma = true;
    if (!take_range(cmd, sector_count(cmd->tf.feature, true)) || !ata_buffer(cmd))
        return;
    cmd->dev->standby = false;
    if (write)
        write_next(cmd);
    else
        read_next(cmd);
}

/* -- DATA SET MANAGEMENT ----------------------------------------------------------------------- */

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return le64toh(v);
}

static void trim_next(struct ata_command *cmd);

static void trim_done(struct ata_command *cmd, int err)
{
    /* TRIM is advice: an image that cannot give space back has lost nothing. */
    if (err && err != -EOPNOTSUPP && err != -EINVAL)
        ata_fail(cmd, ATA_ER_ABRT);
    else
        trim_next(cmd);
}

static void trim_next(struct ata_command *cmd)
{
    while (cmd->range < cmd->buf_len / 8) {
        uint64_t entry = get64(cmd->buf + 8 * cmd->range++);
        uint64_t lba = entry & 0xffffffffffff, count = entry >> 48;

        if (!count)
            continue;
        ata_block_discard(cmd, lba, count, trim_done);
        return;
    }
    ata_succeed(cmd);
}

static void trim_received(struct ata_command *cmd)
{
    const struct ata_device *d = cmd->dev;

    /* All ranges are checked before the first one goes. */
    for (uint32_t i = 0; i < cmd->buf_len / 8; i++) {
        uint64_t entry = get64(cmd->buf + 8 * i);
        uint64_t lba = entry & 0xffffffffffff, count = entry >> 48;

        if (count && (lba >= d->sectors || count > d->sectors - lba)) {
            ata_fail(cmd, ATA_ER_IDNF);
            return;
        }
    }
    cmd->range = 0;
    trim_next(cmd);
}

static void data_set_management(struct ata_command *cmd)
{
    uint32_t blocks = cmd->tf.count;

    if (!(cmd->tf.feature & 1) || !blocks || blocks > TRIM_BLOCKS) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    cmd->dma = cmd->write = true;
    ata_receive(cmd, blocks * ATA_SECTOR, trim_received);
}

/* -- Pages ------------------------------------------------------------------------------------- */

static void reply_identify(struct ata_command *cmd)
{
    if (!ata_buffer(cmd))
        return;
    ata_identify(cmd->dev, cmd->buf);
    ata_reply(cmd, ATA_SECTOR);
}

/* Makes the bytes of a page add up to 0. */
static void set_checksum(uint8_t *page)
{
    uint8_t sum = 0;

    for (unsigned i = 0; i < 511; i++)
        sum = (uint8_t)(sum + page[i]);
    page[511] = (uint8_t)-sum;
}

/* Log pages of a general purpose log (READ LOG EXT) or a SMART log. */
static void read_log(struct ata_command *cmd, uint8_t log, uint32_t first, uint32_t count)
{
    struct ata_device *d = cmd->dev;
    uint8_t *p;

    if (first != 0 || count != 1 || !ata_buffer(cmd)) {
        if (cmd->busy)
            ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    p = cmd->buf;
    memset(p, 0, ATA_SECTOR);
    switch (log) {
    case ATA_LOG_DIRECTORY:
        p[0] = 1; /* version; then pages of each log, as words */
        p[2 * ATA_LOG_NCQ_ERROR] = d->sata && cmd->tf.command != ATA_CMD_SMART;
        break;
    case ATA_LOG_NCQ_ERROR:
        if (!d->sata || cmd->tf.command == ATA_CMD_SMART) {
            ata_fail(cmd, ATA_ER_ABRT);
            return;
        }
        p[0] = d->ncq_failed ? d->ncq_error_tag : 0x80; /* bit 7: no queued command failed */
        p[2] = d->ncq_error.status;
        p[3] = d->ncq_error.error;
        for (unsigned i = 0; i < 3; i++) {
            p[4 + i] = (uint8_t)(d->ncq_error.lba >> 8 * i);
            p[8 + i] = (uint8_t)(d->ncq_error.lba >> (24 + 8 * i));
        }
        p[7] = d->ncq_error.device;
        p[12] = (uint8_t)d->ncq_error.count;
        p[13] = (uint8_t)(d->ncq_error.count >> 8);
        set_checksum(p);
        /* Reading it ends the error state. */
        d->ncq_failed = false;
        break;
    default:
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    ata_reply(cmd, ATA_SECTOR);
}

/* -- SMART ------------------------------------------------------------------------------------- */

#define SMART_SIGNATURE 0xc24f00u /* in lba bits 8-23 */

/* A healthy drive with two attributes: power-on hours and temperature. */
static const struct {
    uint8_t id, flags, value, raw, threshold;
} smart_attributes[] = {{9, 0x32, 100, 1, 0}, {194, 0x22, 100, 30, 0}};

static void smart_page(uint8_t *p, bool thresholds)
{
    memset(p, 0, ATA_SECTOR);
    p[0] = 1;
    for (unsigned i = 0; i < sizeof(smart_attributes) / sizeof(smart_attributes[0]); i++) {
        uint8_t *a = p + 2 + 12 * i;

        a[0] = smart_attributes[i].id;
        if (thresholds) {
            a[1] = smart_attributes[i].threshold;
            continue;
        }
        a[1] = smart_attributes[i].flags;
        a[3] = a[4] = smart_attributes[i].value;
        a[5] = smart_attributes[i].raw;
    }
    if (!thresholds) {
        p[362] = 0x02; /* off-line data collection: completed */
        p[368] = 0x03; /* SMART capability: saves attributes, autosave */
        p[370] = 0x01; /* error logging */
    }
    set_checksum(p);
}

static void smart(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;
    uint8_t sub = (uint8_t)cmd->tf.feature;

    if ((cmd->tf.lba & 0xffff00) != SMART_SIGNATURE || (!d->smart && sub != ATA_SMART_ENABLE)) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    switch (sub) {
    case ATA_SMART_ENABLE:
    case ATA_SMART_DISABLE:
        d->smart = sub == ATA_SMART_ENABLE;
        ata_succeed(cmd);
        break;
    case ATA_SMART_STATUS: /* the signature unchanged: no threshold exceeded */
    case ATA_SMART_AUTOSAVE:
    case ATA_SMART_SAVE:
    case ATA_SMART_OFFLINE: /* every self-test ends at once and finds nothing */
        ata_succeed(cmd);
        break;
    case ATA_SMART_READ_DATA:
    case ATA_SMART_READ_THRESHOLDS:
        if (!ata_buffer(cmd))
            break;
        smart_page(cmd->buf, sub == ATA_SMART_READ_THRESHOLDS);
        ata_reply(cmd, ATA_SECTOR);
        break;
    case ATA_SMART_READ_LOG:
        read_log(cmd, (uint8_t)cmd->tf.lba, 0, cmd->tf.count);
        break;
    default:
        ata_fail(cmd, ATA_ER_ABRT);
        break;
    }
}

/* -- Settings ---------------------------------------------------------------------------------- */

/* ATA8-ACS 7.47.4: bits 7:3 of the count are the kind of transfer, 2:0 the mode. */
static bool set_transfer_mode(struct ata_device *d, uint8_t value)
{
    uint8_t mode = value & 7;

    switch (value >> 3) {
    case 0: /* PIO default */
        return mode <= 1;
    case 1: /* PIO with flow control */
        return mode <= 4;
    case 4:
        if (mode > 2)
            return false;
        d->mwdma_mode = mode;
        d->udma_mode = 0xff;
        return true;
    case 8:
        if (mode > 6)
            return false;
        d->udma_mode = mode;
        d->mwdma_mode = 0xff;
        return true;
    }
    return false;
}

static void flush(struct ata_command *cmd)
{
    ata_block_flush(cmd, flush_done);
}

static void set_features(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;

    switch (cmd->tf.feature & 0xff) {
    case ATA_FEATURE_WRITE_CACHE_ON:
        d->write_cache = true;
        break;
    case ATA_FEATURE_WRITE_CACHE_OFF:
        d->write_cache = false;
        flush(cmd);
        return;
    case ATA_FEATURE_LOOK_AHEAD_ON:
    case ATA_FEATURE_LOOK_AHEAD_OFF:
        d->look_ahead = (cmd->tf.feature & 0xff) == ATA_FEATURE_LOOK_AHEAD_ON;
        break;
    case ATA_FEATURE_TRANSFER_MODE:
        if (set_transfer_mode(d, (uint8_t)cmd->tf.count))
            break;
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    case ATA_FEATURE_NO_REVERT:
    case ATA_FEATURE_REVERT:
    case ATA_FEATURE_APM_ON:
    case ATA_FEATURE_APM_OFF:
        break;
    default:
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    ata_succeed(cmd);
}

/* SET MULTIPLE MODE: a power of two up to what IDENTIFY word 47 says, 0 switches it off. */
static void set_multiple(struct ata_command *cmd)
{
    uint16_t n = cmd->tf.count;

    if (n > ATA_MULTIPLE || (n & (n - 1))) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    cmd->dev->multiple = (uint8_t)n;
    ata_succeed(cmd);
}

/* INITIALIZE DEVICE PARAMETERS (ATA-5 8.16): the geometry CHS addresses are meant in. */
static void init_parameters(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;

    if (!cmd->tf.count) {
        ata_fail(cmd, ATA_ER_ABRT);
        return;
    }
    d->heads = (uint8_t)((cmd->tf.device & 0x0f) + 1);
    d->spt = (uint8_t)cmd->tf.count;
    ata_succeed(cmd);
}

static void native_max(struct ata_command *cmd, bool ext)
{
    uint64_t last = cmd->dev->sectors - 1;

    if (!ext && last > 0x0fffffff)
        last = 0x0fffffff;
    if (!ext)
        cmd->tf.device |= ATA_DEV_LBA;
    set_address(cmd, last);
    ata_succeed(cmd);
}

static void power(struct ata_command *cmd, bool standby)
{
    cmd->dev->standby = standby;
    if (standby)
        flush(cmd);
    else
        ata_succeed(cmd);
}

void ata_disk_command(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;
    uint8_t code = cmd->tf.command;

    if ((code & 0xf0) == ATA_CMD_RECALIBRATE) {
        ata_succeed(cmd);
        return;
    }
    if ((code & 0xf0) == ATA_CMD_SEEK) {
        if (take_range(cmd, 1))
            ata_succeed(cmd);
        return;
    }
    switch (code) {
    case ATA_CMD_READ_SECTORS:
    case ATA_CMD_READ_SECTORS_ONCE:
    case ATA_CMD_READ_SECTORS_EXT:
        transfer(cmd, false, false);
        break;
    case ATA_CMD_READ_DMA:
    case ATA_CMD_READ_DMA_ONCE:
    case ATA_CMD_READ_DMA_EXT:
        transfer(cmd, false, true);
        break;
    case ATA_CMD_READ_MULTIPLE:
    case ATA_CMD_READ_MULTIPLE_EXT:
        transfer_multiple(cmd, false);
        break;
    case ATA_CMD_READ_VERIFY:
    case ATA_CMD_READ_VERIFY_ONCE:
    case ATA_CMD_READ_VERIFY_EXT:
        cmd->discard_data = true;
        transfer(cmd, false, false);
        break;
    case ATA_CMD_WRITE_SECTORS:
    case ATA_CMD_WRITE_SECTORS_ONCE:
    case ATA_CMD_WRITE_SECTORS_EXT:
    case ATA_CMD_WRITE_VERIFY:
        transfer(cmd, true, false);
        break;
    case ATA_CMD_WRITE_DMA_FUA_EXT:
        cmd->fua = true;
        transfer(cmd, true, true);
        break;
    case ATA_CMD_WRITE_DMA:
    case ATA_CMD_WRITE_DMA_ONCE:
    case ATA_CMD_WRITE_DMA_EXT:
        transfer(cmd, true, true);
        break;
    case ATA_CMD_WRITE_MULTIPLE_FUA_EXT:
        cmd->fua = true;
        transfer_multiple(cmd, true);
        break;
    case ATA_CMD_WRITE_MULTIPLE:
    case ATA_CMD_WRITE_MULTIPLE_EXT:
        transfer_multiple(cmd, true);
        break;
    case ATA_CMD_READ_FPDMA_QUEUED:
        transfer_queued(cmd, false);
        break;
    case ATA_CMD_WRITE_FPDMA_QUEUED:
        transfer_queued(cmd, true);
        break;
    case ATA_CMD_FLUSH_CACHE:
    case ATA_CMD_FLUSH_CACHE_EXT:
        flush(cmd);
        break;
    case ATA_CMD_DATA_SET_MANAGEMENT:
        data_set_management(cmd);
        break;
    case ATA_CMD_IDENTIFY:
        reply_identify(cmd);
        break;
    case ATA_CMD_READ_LOG_DMA_EXT:
        cmd->dma = true;
        __attribute__((fallthrough));
    case ATA_CMD_READ_LOG_EXT:
        read_log(cmd, (uint8_t)cmd->tf.lba,
                 (uint32_t)((cmd->tf.lba >> 8 & 0xff) | (cmd->tf.lba >> 32 & 0xff) << 8),
                 sector_count(cmd->tf.count, true));
        break;
    case ATA_CMD_SMART:
        smart(cmd);
        break;
    case ATA_CMD_SET_FEATURES:
        set_features(cmd);
        break;
    case ATA_CMD_SET_MULTIPLE:
        set_multiple(cmd);
        break;
    case ATA_CMD_INIT_PARAMETERS:
        init_parameters(cmd);
        break;
    case ATA_CMD_READ_NATIVE_MAX:
    case ATA_CMD_READ_NATIVE_MAX_EXT:
        native_max(cmd, code == ATA_CMD_READ_NATIVE_MAX_EXT);
        break;
    case ATA_CMD_CHECK_POWER:
    case ATA_CMD_CHECK_POWER_OLD:
        cmd->tf.count = d->standby ? 0x00 : 0xff;
        ata_succeed(cmd);
        break;
    case ATA_CMD_STANDBY:
    case ATA_CMD_STANDBY_OLD:
        /* With a timer value: standby later; a disk that never spins does not tell. */
        power(cmd, !cmd->tf.count);
        break;
    case ATA_CMD_STANDBY_IMMEDIATE:
    case ATA_CMD_STANDBY_IMMEDIATE_OLD:
    case ATA_CMD_SLEEP:
    case ATA_CMD_SLEEP_OLD:
        power(cmd, true);
        break;
    case ATA_CMD_IDLE:
    case ATA_CMD_IDLE_OLD:
    case ATA_CMD_IDLE_IMMEDIATE:
    case ATA_CMD_IDLE_IMMEDIATE_OLD:
        power(cmd, false);
        break;
    default:
        /* NOP, packet commands and whatever is unknown. */
        ata_fail(cmd, ATA_ER_ABRT);
        break;
    }
}
