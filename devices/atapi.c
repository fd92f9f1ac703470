/*
 * A CD/DVD-ROM drive's commands: SCSI packets (MMC-6, SPC-3) behind the ATA command PACKET, and the
 * few other ATA commands of packet devices.  The disc is one data track in one session, read from
 * a block device in sectors of 2048 bytes.
 */
#include "devices/atapi.h"

#include <errno.h>
#include <string.h>

#include "devices/ata.h"
#include "devices/ata_commands.h"

#define SECTOR_RATIO (ATAPI_SECTOR / 512u)
#define CHUNK        (ATA_CHUNK / ATAPI_SECTOR) /* CD sectors in one piece */
#define RAW_SECTOR   2352u
#define RAW_CHUNK    (ATA_CHUNK / RAW_SECTOR)
#define LEAD_IN      150u /* sectors between 00:00:00 and LBA 0 */

enum sense_key {
    SENSE_NONE = 0x0,
    SENSE_NOT_READY = 0x2,
    SENSE_MEDIUM_ERROR = 0x3,
    SENSE_ILLEGAL_REQUEST = 0x5,
    SENSE_UNIT_ATTENTION = 0x6,
};

/* Additional sense code and qualifier (MMC-6 annex F). */
enum asc {
    ASC_NONE = 0x0000,
    ASC_READ_ERROR = 0x1100,
    ASC_INVALID_OPCODE = 0x2000,
    ASC_LBA_OUT_OF_RANGE = 0x2100,
    ASC_INVALID_FIELD = 0x2400,
    ASC_INVALID_PARAMETER = 0x2600,
    ASC_MEDIUM_CHANGED = 0x2800,
    ASC_RESET = 0x2900,
    ASC_SAVING_NOT_SUPPORTED = 0x3900,
    ASC_NO_MEDIUM = 0x3a00,
    ASC_NO_MEDIUM_TRAY_OPEN = 0x3a02,
    ASC_REMOVAL_PREVENTED = 0x5302,
    ASC_ILLEGAL_MODE = 0x6400,
};

enum opcode {
    OP_TEST_UNIT_READY = 0x00,
    OP_REQUEST_SENSE = 0x03,
    OP_INQUIRY = 0x12,
    OP_MODE_SELECT_6 = 0x15,
    OP_MODE_SENSE_6 = 0x1a,
    OP_START_STOP = 0x1b,
    OP_PREVENT_ALLOW = 0x1e,
    OP_READ_FORMAT_CAPACITIES = 0x23,
    OP_READ_CAPACITY = 0x25,
    OP_READ_10 = 0x28,
    OP_SEEK_10 = 0x2b,
    OP_VERIFY_10 = 0x2f,
    OP_SYNCHRONIZE_CACHE = 0x35,
    OP_READ_SUBCHANNEL = 0x42,
    OP_READ_TOC = 0x43,
    OP_READ_HEADER = 0x44,
    OP_PLAY_AUDIO_10 = 0x45,
    OP_GET_CONFIGURATION = 0x46,
    OP_PLAY_AUDIO_MSF = 0x47,
    OP_GET_EVENT_STATUS = 0x4a,
    OP_PAUSE_RESUME = 0x4b,
    OP_STOP_PLAY = 0x4e,
    OP_READ_DISC_INFORMATION = 0x51,
    OP_READ_TRACK_INFORMATION = 0x52,
    OP_MODE_SELECT_10 = 0x55,
    OP_MODE_SENSE_10 = 0x5a,
    OP_READ_12 = 0xa8,
    OP_READ_DVD_STRUCTURE = 0xad,
    OP_READ_CD_MSF = 0xb9,
    OP_SET_CD_SPEED = 0xbb,
    OP_MECHANISM_STATUS = 0xbd,
    OP_READ_CD = 0xbe,
};

/* -- Sense ------------------------------------------------------------------------------------- */

static void set_sense(struct ata_device *d, enum sense_key key, enum asc asc)
{
    d->atapi.sense_key = key;
    d->atapi.asc = (uint8_t)(asc >> 8);
    d->atapi.ascq = (uint8_t)asc;
}

/* CHECK CONDITION: the sense key is in the upper half of the error register. */
static void check(struct ata_command *cmd, enum sense_key key, enum asc asc)
{
    set_sense(cmd->dev, key, asc);
    cmd->tf.count = ATA_REASON_IO | ATA_REASON_COD;
    ata_fail(cmd, (uint8_t)(key << 4 | (key == SENSE_ILLEGAL_REQUEST ? ATA_ER_ABRT : 0)));
}

static void invalid_field(struct ata_command *cmd)
{
    check(cmd, SENSE_ILLEGAL_REQUEST, ASC_INVALID_FIELD);
}

static void good(struct ata_command *cmd)
{
    set_sense(cmd->dev, SENSE_NONE, ASC_NONE);
    cmd->tf.count = ATA_REASON_IO | ATA_REASON_COD;
    ata_succeed(cmd);
}

static bool has_medium(const struct ata_device *d)
{
    return d->block->image;
}

/* There is a disc and the drive can read it. */
static bool medium_present(const struct ata_device *d)
{
    return has_medium(d) && !d->atapi.tray_open;
}

/* CD sectors on the disc. */
static uint32_t disc_sectors(const struct ata_device *d)
{
    uint64_t n = medium_present(d) ? d->block->size / ATAPI_SECTOR : 0;

    return n > 0xffffffff ? 0xffffffff : (uint32_t)n;
}

static void attention(struct ata_device *d, enum asc asc)
{
    d->atapi.attention_asc = (uint8_t)(asc >> 8);
    d->atapi.attention_ascq = (uint8_t)asc;
}

static void event(struct ata_device *d, enum atapi_event event)
{
    d->atapi.event = event;
    if (d->adapter && d->adapter->notify)
        d->adapter->notify(d->adapter_opaque);
}

void atapi_reset(struct ata_device *d)
{
    set_sense(d, SENSE_NONE, ASC_NONE);
    d->block->locked = false;
    d->atapi.event = has_medium(d) ? ATAPI_EVENT_NEW_MEDIA : ATAPI_EVENT_NONE;
    attention(d, ASC_RESET);
}

static void open_tray(struct ata_device *d)
{
    if (d->atapi.tray_open)
        return;
    d->atapi.tray_open = true;
    event(d, ATAPI_EVENT_REMOVAL);
}

static void close_tray(struct ata_device *d)
{
    if (!d->atapi.tray_open)
        return;
    d->atapi.tray_open = false;
    if (has_medium(d)) {
        attention(d, ASC_MEDIUM_CHANGED);
        event(d, ATAPI_EVENT_NEW_MEDIA);
    }
}

/* The eject button, while the guest has locked the tray: it is told, and may eject by itself. */
static void eject_requested(void *opaque)
{
    event(opaque, ATAPI_EVENT_EJECT_REQUEST);
}

static void media_changed(void *opaque, bool present)
{
    struct ata_device *d = opaque;

    if (!present) {
        open_tray(d);
        return;
    }
    d->atapi.tray_open = true; /* wherever the guest left it */
    close_tray(d);
}

void atapi_attach(struct ata_device *d)
{
    d->block->media_changed = media_changed;
    d->block->eject_requested = eject_requested;
    d->block->media_opaque = d;
}

/* -- Replies ----------------------------------------------------------------------------------- */

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static void put24(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 16);
    put16(p + 1, v);
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t get24(const uint8_t *p)
{
    return (uint32_t)p[0] << 16 | get16(p + 1);
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) << 16 | get16(p + 2);
}

/* A time address, in a field of four bytes. */
static void put_msf(uint8_t *p, uint32_t lba)
{
    uint32_t s = lba + LEAD_IN;

    p[0] = 0;
    p[1] = (uint8_t)(s / 75 / 60 > 255 ? 255 : s / 75 / 60);
    p[2] = (uint8_t)(s / 75 % 60);
    p[3] = (uint8_t)(s % 75);
}

static void put_address(uint8_t *p, uint32_t lba, bool msf)
{
    if (msf)
        put_msf(p, lba);
    else
        put32(p, lba);
}

/* PIO hands data out in bursts of the byte count that the host left in the LBA registers (even, 0
 * and 0xffff stand for 0xfffe). */
static void set_burst(struct ata_command *cmd)
{
    uint32_t limit = (uint32_t)(cmd->tf.lba >> 8 & 0xfffe);

    cmd->drq_bytes = limit ? limit : 0xfffe;
}

/* The first `len` bytes of cmd->buf, of which the host wants at most `allocation`. */
static void reply(struct ata_command *cmd, uint32_t len, uint32_t allocation)
{
    if (len > allocation)
        len = allocation;
    if (!len) {
        good(cmd);
        return;
    }
    set_burst(cmd);
    cmd->phase = ATA_PHASE_IN;
    cmd->buf_len = len;
    cmd->total = len;
    cmd->data_done = good;
    cmd->dev->adapter->data(cmd->dev->adapter_opaque, cmd);
}

static void inquiry(struct ata_command *cmd)
{
    const struct ata_device *d = cmd->dev;
    uint8_t *b = cmd->buf;

    if (cmd->packet[1] & 3) { /* no vital product data pages */
        invalid_field(cmd);
        return;
    }
    memset(b, 0, 36);
    b[0] = 0x05; /* CD/DVD drive */
    b[1] = 0x80; /* removable */
    b[3] = 0x21; /* ATAPI 2, response format 1 */
    b[4] = 31;
    memcpy(b + 8, "RINGSHFT", 8);
    memcpy(b + 16, "CD-ROM          ", 16);
    memset(b + 32, ' ', 4);
    memcpy(b + 32, d->firmware, strnlen(d->firmware, 4));
    reply(cmd, 36, cmd->packet[4]);
}

static void request_sense(struct ata_command *cmd)
{
    struct atapi *a = &cmd->dev->atapi;
    uint8_t *b = cmd->buf;

    if (a->sense_key == SENSE_NONE && (a->attention_asc || a->attention_ascq)) {
        a->sense_key = SENSE_UNIT_ATTENTION;
        a->asc = a->attention_asc;
        a->ascq = a->attention_ascq;
        a->attention_asc = a->attention_ascq = 0;
    }
    memset(b, 0, ATAPI_SENSE);
    b[0] = 0x70;
    b[2] = a->sense_key;
    b[7] = ATAPI_SENSE - 8;
    b[12] = a->asc;
    b[13] = a->ascq;
    reply(cmd, ATAPI_SENSE, cmd->packet[4]);
}

static void read_capacity(struct ata_command *cmd)
{
    put32(cmd->buf, disc_sectors(cmd->dev) ? disc_sectors(cmd->dev) - 1 : 0);
    put32(cmd->buf + 4, ATAPI_SECTOR);
    reply(cmd, 8, 8);
}

static void read_format_capacities(struct ata_command *cmd)
{
    uint8_t *b = cmd->buf;

    memset(b, 0, 12);
    b[3] = 8;
    put32(b + 4, disc_sectors(cmd->dev));
    put32(b + 8, ATAPI_SECTOR);
    b[8] = medium_present(cmd->dev) ? 2 : 3; /* formatted, or maximum without a medium */
    reply(cmd, 12, get16(cmd->packet + 7));
}

/* READ TOC/PMA/ATIP (MMC-6 6.26): formats 0 (tracks), 1 (session), 2 (the raw Q channel). */
static void read_toc(struct ata_command *cmd)
{
    uint8_t *b = cmd->buf, *p = b + 4;
    bool msf = cmd->packet[1] & 2;
    /* SFF-8020i had the format in the last byte. */
    unsigned format = cmd->packet[2] & 0x0f ? cmd->packet[2] & 0x0f : cmd->packet[9] >> 6;
    uint8_t track = cmd->packet[6];
    uint32_t end = disc_sectors(cmd->dev);

    b[2] = b[3] = 1; /* first and last track or session */
    memset(p, 0, 64);
    switch (format) {
    case 0:
        if (track > 1 && track != 0xaa) {
            invalid_field(cmd);
            return;
        }
        if (track <= 1) {
            p[1] = 0x14; /* data track */
            p[2] = 1;
            put_address(p + 4, 0, msf);
            p += 8;
        }
        p[1] = 0x16;
        p[2] = 0xaa; /* lead-out */
        put_address(p + 4, end, msf);
        p += 8;
        break;
    case 1:
        p[1] = 0x14;
        p[2] = 1;
        put_address(p + 4, 0, msf);
        p += 8;
        break;
    case 2: {
        static const uint8_t points[] = {0xa0, 0xa1, 0xa2, 1};

        for (unsigned i = 0; i < sizeof(points); i++, p += 11) {
            p[0] = 1; /* session */
            p[1] = points[i] == 0xa2 ? 0x16 : 0x14;
            p[3] = points[i];
            if (points[i] == 0xa0 || points[i] == 0xa1)
                p[8] = 1; /* first, last track */
            else if (msf)
                put_msf(p + 7, points[i] == 0xa2 ? end : 0);
            else
                put32(p + 7, points[i] == 0xa2 ? end : 0);
        }
        break;
    }
    default:
        invalid_field(cmd);
        return;
    }
    put16(b, (uint32_t)(p - b) - 2);
    reply(cmd, (uint32_t)(p - b), get16(cmd->packet + 7));
}

static void read_subchannel(struct ata_command *cmd)
{
    uint8_t *b = cmd->buf;
    unsigned format = cmd->packet[3];

    memset(b, 0, 24);
    b[1] = 0x15; /* no audio status to return */
    if (!(cmd->packet[2] & 0x40)) {
        reply(cmd, 4, get16(cmd->packet + 7));
        return;
    }
    b[4] = (uint8_t)format;
    switch (format) {
    case 1: /* position */
        b[3] = 12;
        b[5] = 0x14;
        b[6] = b[7] = 1;
        put_address(b + 8, 0, cmd->packet[1] & 2);
        put_address(b + 12, 0, false);
        reply(cmd, 16, get16(cmd->packet + 7));
        break;
    case 2: /* catalogue number: none */
    case 3: /* recording code: none */
        b[3] = 20;
        reply(cmd, 24, get16(cmd->packet + 7));
        break;
    default:
        invalid_field(cmd);
    }
}

static void read_header(struct ata_command *cmd)
{
    uint32_t lba = get32(cmd->packet + 2);

    if (lba >= disc_sectors(cmd->dev)) {
        check(cmd, SENSE_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
        return;
    }
    memset(cmd->buf, 0, 8);
    cmd->buf[0] = 1; /* mode 1 */
    put_address(cmd->buf + 4, lba, cmd->packet[1] & 2);
    reply(cmd, 8, get16(cmd->packet + 7));
}

static void read_disc_information(struct ata_command *cmd)
{
    uint8_t *b = cmd->buf;

    if (cmd->packet[1] & 7) { /* standard information only */
        invalid_field(cmd);
        return;
    }
    memset(b, 0, 34);
    put16(b, 32);
    b[2] = 0x0e; /* finalized, last session complete */
    b[3] = b[4] = b[5] = b[6] = 1;
    b[7] = 0x20;             /* unrestricted use */
    memset(b + 16, 0xff, 8); /* no lead-in and lead-out of a next session */
    reply(cmd, 34, get16(cmd->packet + 7));
}

static void read_track_information(struct ata_command *cmd)
{
    uint8_t *b = cmd->buf;
    uint32_t n = get32(cmd->packet + 2), kind = cmd->packet[1] & 3, end = disc_sectors(cmd->dev);

    if (kind == 0 ? n >= end : n != 1) {
        invalid_field(cmd);
        return;
    }
    memset(b, 0, 36);
    put16(b, 34);
    b[2] = b[3] = 1;
    b[5] = 0x04; /* data track, uninterrupted */
    b[6] = 0x01; /* mode 1 */
    put32(b + 24, end);
    reply(cmd, 36, get16(cmd->packet + 7));
}

/* -- GET CONFIGURATION (MMC-6 5.2, 6.6) ---------------------------------------------------------
 */

enum { PROFILE_CD_ROM = 0x0008, PROFILE_DVD_ROM = 0x0010 };

static uint16_t profile(const struct ata_device *d)
{
    return !medium_present(d)                ? 0
           : disc_sectors(d) > ATAPI_CD_SIZE ? PROFILE_DVD_ROM
                                             : PROFILE_CD_ROM;
}

static uint8_t *feature(uint8_t *p, uint16_t code, unsigned version, bool persistent, bool current,
                        unsigned len)
{
    put16(p, code);
    p[2] = (uint8_t)(version << 2 | persistent << 1 | current);
    p[3] = (uint8_t)len;
    memset(p + 4, 0, len);
    return p + 4;
}

static void get_configuration(struct ata_command *cmd)
{
    static const uint16_t codes[] = {0x0000, 0x0001, 0x0002, 0x0003, 0x0010,
                                     0x001d, 0x001e, 0x001f, 0x0100, 0x0105};
    uint8_t *b = cmd->buf, *p = b + 8;
    unsigned rt = cmd->packet[1] & 3, start = get16(cmd->packet + 2);
    uint16_t now = profile(cmd->dev);

    if (rt == 3) {
        invalid_field(cmd);
        return;
    }
    memset(b, 0, 8);
    put16(b + 6, now);
    for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        uint16_t code = codes[i];
        uint8_t *at = p;
        bool current = true;

        if (rt == 2 ? code != start : code < start)
            continue;
        switch (code) {
        case 0x0000: /* profile list */
            p = feature(p, code, 0, true, true, 8);
            put16(p, PROFILE_DVD_ROM);
            p[2] = now == PROFILE_DVD_ROM;
            put16(p + 4, PROFILE_CD_ROM);
            p[6] = now == PROFILE_CD_ROM;
            p += 8;
            break;
        case 0x0001: /* core: ATAPI, device busy events */
            p = feature(p, code, 2, true, true, 8);
            put32(p, 2);
            p[4] = 1;
            p += 8;
            break;
        case 0x0002: /* morphing: operational change events */
            p = feature(p, code, 1, true, true, 4);
            p[0] = 2;
            p += 4;
            break;
        case 0x0003: /* removable medium: tray, eject, lock */
            p = feature(p, code, 0, true, true, 4);
            p[0] = 1u << 5 | 1u << 3 | 1u << 0;
            p += 4;
            break;
        case 0x0010: /* random readable */
            current = now;
            p = feature(p, code, 0, false, current, 8);
            put32(p, ATAPI_SECTOR);
            put16(p + 4, 16);
            p += 8;
            break;
        case 0x001d: /* multi-read */
        case 0x001e: /* CD read */
            current = now == PROFILE_CD_ROM;
            p = feature(p, code, code == 0x001e ? 2 : 0, false, current, code == 0x001e ? 4 : 0);
            p += code == 0x001e ? 4 : 0;
            break;
        case 0x001f: /* DVD read */
            current = now == PROFILE_DVD_ROM;
            p = feature(p, code, 0, false, current, 4);
            p += 4;
            break;
        case 0x0100: /* power management */
            p = feature(p, code, 0, true, true, 0);
            break;
        case 0x0105: /* time-out */
            p = feature(p, code, 0, true, true, 0);
            break;
        }
        if (rt == 1 && !current)
            p = at;
    }
    put32(b, (uint32_t)(p - b) - 4);
    reply(cmd, (uint32_t)(p - b), get16(cmd->packet + 7));
}

/* GET EVENT STATUS NOTIFICATION (MMC-6 6.7): polled, media class only. */
static void get_event_status(struct ata_command *cmd)
{
    struct atapi *a = &cmd->dev->atapi;
    uint8_t *b = cmd->buf;
    bool media = cmd->packet[4] & 1u << 4;
    uint32_t len = media ? 8 : 4, allocation = get16(cmd->packet + 7);

    if (!(cmd->packet[1] & 1)) { /* no asynchronous operation */
        invalid_field(cmd);
        return;
    }
    memset(b, 0, 8);
    put16(b, len - 2);
    b[2] = media ? 4 : 0x80; /* class of the event; no event available */
    b[3] = 1u << 4;          /* supported classes */
    if (media) {
        b[4] = a->event;
        b[5] = (uint8_t)(a->tray_open | medium_present(cmd->dev) << 1);
        if (allocation > 4)
            a->event = ATAPI_EVENT_NONE;
    }
    reply(cmd, len, allocation);
}

static void mechanism_status(struct ata_command *cmd)
{
    memset(cmd->buf, 0, 8);
    cmd->buf[1] = cmd->dev->atapi.tray_open ? 0x10 : 0;
    reply(cmd, 8, get16(cmd->packet + 8));
}

/* -- MODE SENSE (MMC-6 7) ---------------------------------------------------------------------- */

static uint8_t *mode_page(uint8_t *p, const struct ata_device *d, unsigned page, bool changeable)
{
    uint8_t len = page == 0x01 ? 6 : page == 0x0d ? 6 : page == 0x0e ? 14 : page == 0x1a ? 10 : 20;

    memset(p, 0, 2u + len);
    p[0] = (uint8_t)page;
    p[1] = len;
    if (changeable)
        return p + 2 + len;
    switch (page) {
    case 0x01: /* read error recovery */
        p[3] = 5;
        break;
    case 0x0d: /* CD device parameters: 60 seconds, 75 frames */
        p[5] = 60;
        p[7] = 75;
        break;
    case 0x0e: /* CD audio control */
        p[2] = 0x04;
        p[8] = 1;
        p[9] = 0xff;
        p[10] = 2;
        p[11] = 0xff;
        break;
    case 0x2a:       /* capabilities and mechanical status */
        p[2] = 0x3b; /* reads CD-R, CD-RW, DVD-ROM, DVD-R, DVD-RAM; method 2 */
        p[4] = 0x70; /* multi-session, mode 2 forms 1 and 2 */
        p[6] = (uint8_t)(0x29 | (d->block->locked ? 2 : 0)); /* tray; ejects; locks */
        put16(p + 8, 176 * 40);                              /* kB/s at most */
        put16(p + 12, 512);                                  /* KiB of buffer */
        put16(p + 14, 176 * 40);
        break;
    }
    return p + 2 + len;
}

static void mode_sense(struct ata_command *cmd, bool ten)
{
    static const uint8_t pages[] = {0x01, 0x0d, 0x0e, 0x1a, 0x2a};
    const struct ata_device *d = cmd->dev;
    uint8_t *b = cmd->buf, *p = b + (ten ? 8 : 4);
    unsigned control = cmd->packet[2] >> 6, wanted = cmd->packet[2] & 0x3f;
    bool found = false;

    if (control == 3) {
        check(cmd, SENSE_ILLEGAL_REQUEST, ASC_SAVING_NOT_SUPPORTED);
        return;
    }
    memset(b, 0, 8);
    for (unsigned i = 0; i < sizeof(pages); i++)
        if (wanted == pages[i] || wanted == 0x3f) {
            p = mode_page(p, d, pages[i], control == 1);
            found = true;
        }
    if (!found) {
        invalid_field(cmd);
        return;
    }
    /* SFF-8020i: type of medium: 70h door closed, no disc; 71h door open; 01h data CD, 41h DVD. */
    uint8_t medium = d->atapi.tray_open                ? 0x71
                     : !has_medium(d)                  ? 0x70
                     : disc_sectors(d) > ATAPI_CD_SIZE ? 0x41
                                                       : 0x01;
    if (ten) {
        put16(b, (uint32_t)(p - b) - 2);
        b[2] = medium;
        reply(cmd, (uint32_t)(p - b), get16(cmd->packet + 7));
    } else {
        b[0] = (uint8_t)(p - b - 1);
        b[1] = medium;
        reply(cmd, (uint32_t)(p - b), cmd->packet[4]);
    }
}

/* Nothing is changeable but what may be set to anything without effect. */
static void mode_select(struct ata_command *cmd, bool ten)
{
    uint32_t len = ten ? get16(cmd->packet + 7) : cmd->packet[4];

    if (!len) {
        good(cmd);
        return;
    }
    set_burst(cmd);
    ata_receive(cmd, len, good);
}

/* -- READ DVD STRUCTURE (MMC-6 6.23) ------------------------------------------------------------
 */

static void read_dvd_structure(struct ata_command *cmd)
{
    uint8_t *b = cmd->buf;
    uint32_t allocation = get16(cmd->packet + 8), sectors = disc_sectors(cmd->dev), len;

    if (profile(cmd->dev) != PROFILE_DVD_ROM || cmd->packet[6] > 0 || (cmd->packet[1] & 0x0f)) {
        invalid_field(cmd);
        return;
    }
    switch (cmd->packet[7]) {
    case 0x00: /* physical format */
        len = 4 + 2048;
        memset(b, 0, len);
        b[4] = 0x01; /* DVD-ROM, version 1 */
        b[5] = 0x0f; /* 120 mm, no maximum rate */
        b[6] = 0x01; /* one layer, embossed */
        put24(b + 9, 0x30000);
        put24(b + 13, 0x30000 + sectors - 1);
        break;
    case 0x01: /* copyright: none */
        len = 8;
        memset(b, 0, len);
        break;
    case 0x04: /* manufacturer */
        len = 4 + 2048;
        memset(b, 0, len);
        break;
    default:
        invalid_field(cmd);
        return;
    }
    put16(b, len - 2);
    reply(cmd, len, allocation);
}

/* -- Reading the disc ---------------------------------------------------------------------------
 */

/* What READ CD sends of each sector; also the layout in cmd->range. */
enum { RAW_SYNC = 0x80, RAW_HEADER = 0x20, RAW_USER = 0x10, RAW_ECC = 0x08 };

static uint32_t layout_size(uint32_t layout)
{
    return (layout & RAW_SYNC ? 12 : 0) + (layout & RAW_HEADER ? 4 : 0) +
           (layout & RAW_USER ? 2048 : 0) + (layout & RAW_ECC ? 288 : 0);
}

/* The EDC of a sector: CRC-32 of x^32+x^31+x^16+x^15+x^4+x^3+x+1, reflected (ECMA-130, 14.3). */
static uint32_t edc(const uint8_t *p, uint32_t len)
{
    uint32_t crc = 0;

    while (len--) {
        crc ^= *p++;
        for (unsigned i = 0; i < 8; i++)
            crc = crc >> 1 ^ (crc & 1 ? 0xd8018001u : 0);
    }
    return crc;
}

static uint8_t bcd(uint32_t v)
{
    return (uint8_t)(v / 10 % 10 << 4 | v % 10);
}

/* The whole sector of 2352 bytes in mode 1.  The P and Q parity stays zero: drives that read raw
 * sectors hand out what is there, and no reader checks what the drive has corrected already. */
static void raw_sector(uint8_t *raw, const uint8_t *user, uint32_t lba)
{
    uint8_t msf[4];
    uint32_t crc;

    memset(raw, 0, RAW_SECTOR);
    memset(raw + 1, 0xff, 10); /* sync: 00, ten times ff, 00 */
    put_msf(msf, lba);
    raw[12] = bcd(msf[1]);
    raw[13] = bcd(msf[2]);
    raw[14] = bcd(msf[3]);
    raw[15] = 1;
    memcpy(raw + 16, user, ATAPI_SECTOR);
    crc = edc(raw, 16 + ATAPI_SECTOR);
    for (unsigned i = 0; i < 4; i++)
        raw[16 + ATAPI_SECTOR + i] = (uint8_t)(crc >> 8 * i);
}

/* Spreads the n sectors in buf into the layout, from the last to the first: each ends up at or
 * behind where it was. */
static void apply_layout(struct ata_command *cmd, uint32_t n)
{
    uint32_t size = layout_size(cmd->range);
    uint8_t raw[RAW_SECTOR];

    if (cmd->range == RAW_USER)
        return;
    if (size < ATAPI_SECTOR) { /* headers without user data: n is 1 */
        raw_sector(raw, cmd->buf, (uint32_t)(cmd->lba / SECTOR_RATIO));
        uint8_t *out = cmd->buf;
        if (cmd->range & RAW_SYNC)
            out = (uint8_t *)memcpy(out, raw, 12) + 12;
        if (cmd->range & RAW_HEADER)
            out = (uint8_t *)memcpy(out, raw + 12, 4) + 4;
        if (cmd->range & RAW_ECC)
            memcpy(out, raw + 16 + ATAPI_SECTOR, 288);
        return;
    }
    for (uint32_t i = n; i-- > 0;) {
        uint8_t *out = cmd->buf + (size_t)i * size;

        raw_sector(raw, cmd->buf + (size_t)i * ATAPI_SECTOR,
                   (uint32_t)(cmd->lba / SECTOR_RATIO) + i);
        if (cmd->range & RAW_SYNC)
            out = (uint8_t *)memcpy(out, raw, 12) + 12;
        if (cmd->range & RAW_HEADER)
            out = (uint8_t *)memcpy(out, raw + 12, 4) + 4;
        out = (uint8_t *)memcpy(out, raw + 16, ATAPI_SECTOR) + ATAPI_SECTOR;
        if (cmd->range & RAW_ECC)
            memcpy(out, raw + 16 + ATAPI_SECTOR, 288);
    }
}

static void disc_next(struct ata_command *cmd);

static void disc_moved(struct ata_command *cmd)
{
    cmd->lba += cmd->step;
    cmd->sectors -= cmd->step;
    disc_next(cmd);
}

static void disc_read(struct ata_command *cmd, int err)
{
    uint32_t n = cmd->step / SECTOR_RATIO;

    if (err) {
        check(cmd, SENSE_MEDIUM_ERROR, ASC_READ_ERROR);
        return;
    }
    apply_layout(cmd, n);
    cmd->buf_len = n * layout_size(cmd->range);
    cmd->total = cmd->sectors / SECTOR_RATIO * layout_size(cmd->range);
    cmd->phase = ATA_PHASE_IN;
    cmd->data_done = disc_moved;
    cmd->dev->adapter->data(cmd->dev->adapter_opaque, cmd);
}

static void disc_next(struct ata_command *cmd)
{
    uint64_t most = cmd->range == RAW_USER                   ? CHUNK
                    : layout_size(cmd->range) < ATAPI_SECTOR ? 1
                                                             : RAW_CHUNK;

    if (!cmd->sectors) {
        good(cmd);
        return;
    }
    if (!medium_present(cmd->dev)) { /* taken out between two pieces */
        check(cmd, SENSE_NOT_READY, ASC_NO_MEDIUM);
        return;
    }
    most *= SECTOR_RATIO;
    cmd->step = (uint32_t)(cmd->sectors < most ? cmd->sectors : most);
    ata_block_io(cmd, false, cmd->lba, cmd->step, disc_read);
}

static void read_disc(struct ata_command *cmd, uint32_t lba, uint32_t count, uint32_t layout)
{
    uint32_t end = disc_sectors(cmd->dev);

    if (lba > end || count > end - lba || (count && lba >= end)) {
        check(cmd, SENSE_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
        return;
    }
    if (!count || !layout) {
        good(cmd);
        return;
    }
    cmd->lba = (uint64_t)lba * SECTOR_RATIO;
    cmd->sectors = (uint64_t)count * SECTOR_RATIO;
    cmd->range = layout;
    set_burst(cmd);
    disc_next(cmd);
}

/* READ CD: byte 9 says what of each sector is wanted; a sector type other than "any" and "mode 1"
 * is not on this disc. */
static void read_cd(struct ata_command *cmd, uint32_t lba, uint32_t count)
{
    unsigned type = cmd->packet[1] >> 2 & 7, fields = cmd->packet[9];
    uint32_t layout = fields & (RAW_SYNC | RAW_USER | RAW_ECC);

    if (type != 0 && type != 2) {
        check(cmd, SENSE_ILLEGAL_REQUEST, ASC_ILLEGAL_MODE);
        return;
    }
    if ((fields & 0x07) || (cmd->packet[10] & 7)) { /* C2 errors, sub-channels */
        invalid_field(cmd);
        return;
    }
    if (fields & 0x20) /* header codes 01 and 11; 10, the sub-header alone, is empty in mode 1 */
        layout |= RAW_HEADER;
    read_disc(cmd, lba, count, layout);
}

static uint32_t from_msf(const uint8_t *p)
{
    uint32_t frames = (p[0] * 60u + p[1]) * 75u + p[2];

    return frames >= LEAD_IN ? frames - LEAD_IN : 0xffffffff;
}

static void read_cd_msf(struct ata_command *cmd)
{
    uint32_t from = from_msf(cmd->packet + 3), to = from_msf(cmd->packet + 6);

    if (from == 0xffffffff || to == 0xffffffff || to < from) {
        invalid_field(cmd);
        return;
    }
    read_cd(cmd, from, to - from);
}

/* START STOP UNIT: bit 1 (LoEj) moves the tray, bit 0 says which way. */
static void start_stop(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;

    if (cmd->packet[4] >> 4 || !(cmd->packet[4] & 2)) { /* power states, spinning */
        good(cmd);
        return;
    }
    if (cmd->packet[4] & 1) {
        close_tray(d);
    } else if (d->block->locked) {
        check(cmd, medium_present(d) ? SENSE_ILLEGAL_REQUEST : SENSE_NOT_READY,
              ASC_REMOVAL_PREVENTED);
        return;
    } else {
        open_tray(d);
    }
    good(cmd);
}

/* -- Dispatch -----------------------------------------------------------------------------------
 */

/* Commands that do not report a pending unit attention (SPC-3 4.5.8, MMC-6 4.1.6). */
static bool ignores_attention(uint8_t op)
{
    return op == OP_INQUIRY || op == OP_REQUEST_SENSE || op == OP_GET_CONFIGURATION ||
           op == OP_GET_EVENT_STATUS;
}

static bool needs_medium(uint8_t op)
{
    switch (op) {
    case OP_TEST_UNIT_READY:
    case OP_READ_CAPACITY:
    case OP_READ_10:
    case OP_READ_12:
    case OP_SEEK_10:
    case OP_VERIFY_10:
    case OP_READ_SUBCHANNEL:
    case OP_READ_TOC:
    case OP_READ_HEADER:
    case OP_PLAY_AUDIO_10:
    case OP_PLAY_AUDIO_MSF:
    case OP_PAUSE_RESUME:
    case OP_READ_DISC_INFORMATION:
    case OP_READ_TRACK_INFORMATION:
    case OP_READ_DVD_STRUCTURE:
    case OP_READ_CD:
    case OP_READ_CD_MSF:
        return true;
    }
    return false;
}

void atapi_execute(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;
    struct atapi *a = &d->atapi;
    const uint8_t *p = cmd->packet;

    if (!ata_buffer(cmd))
        return;
    if ((a->attention_asc || a->attention_ascq) && !ignores_attention(p[0])) {
        enum asc asc = (enum asc)(a->attention_asc << 8 | a->attention_ascq);

        a->attention_asc = a->attention_ascq = 0;
        check(cmd, SENSE_UNIT_ATTENTION, asc);
        return;
    }
    if (needs_medium(p[0]) && !medium_present(d)) {
        check(cmd, SENSE_NOT_READY, a->tray_open ? ASC_NO_MEDIUM_TRAY_OPEN : ASC_NO_MEDIUM);
        return;
    }
    switch (p[0]) {
    case OP_TEST_UNIT_READY:
    case OP_STOP_PLAY:
    case OP_SYNCHRONIZE_CACHE:
    case OP_SET_CD_SPEED:
        good(cmd);
        break;
    case OP_REQUEST_SENSE:
        request_sense(cmd);
        break;
    case OP_INQUIRY:
        inquiry(cmd);
        break;
    case OP_MODE_SELECT_6:
    case OP_MODE_SELECT_10:
        mode_select(cmd, p[0] == OP_MODE_SELECT_10);
        break;
    case OP_MODE_SENSE_6:
    case OP_MODE_SENSE_10:
        mode_sense(cmd, p[0] == OP_MODE_SENSE_10);
        break;
    case OP_START_STOP:
        start_stop(cmd);
        break;
    case OP_PREVENT_ALLOW:
        d->block->locked = p[4] & 1;
        good(cmd);
        break;
    case OP_READ_FORMAT_CAPACITIES:
        read_format_capacities(cmd);
        break;
    case OP_READ_CAPACITY:
        read_capacity(cmd);
        break;
    case OP_READ_10:
        read_disc(cmd, get32(p + 2), get16(p + 7), RAW_USER);
        break;
    case OP_READ_12:
        read_disc(cmd, get32(p + 2), get32(p + 6), RAW_USER);
        break;
    case OP_READ_CD:
        read_cd(cmd, get32(p + 2), get24(p + 6));
        break;
    case OP_READ_CD_MSF:
        read_cd_msf(cmd);
        break;
    case OP_SEEK_10:
        read_disc(cmd, get32(p + 2), 0, RAW_USER);
        break;
    case OP_VERIFY_10:
        if (get32(p + 2) > disc_sectors(d) || get16(p + 7) > disc_sectors(d) - get32(p + 2))
            check(cmd, SENSE_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
        else
            good(cmd);
        break;
    case OP_READ_SUBCHANNEL:
        read_subchannel(cmd);
        break;
    case OP_READ_TOC:
        read_toc(cmd);
        break;
    case OP_READ_HEADER:
        read_header(cmd);
        break;
    case OP_PLAY_AUDIO_10:
    case OP_PLAY_AUDIO_MSF:
    case OP_PAUSE_RESUME:
        check(cmd, SENSE_ILLEGAL_REQUEST, ASC_ILLEGAL_MODE); /* no audio track */
        break;
    case OP_GET_CONFIGURATION:
        get_configuration(cmd);
        break;
    case OP_GET_EVENT_STATUS:
        get_event_status(cmd);
        break;
    case OP_READ_DISC_INFORMATION:
        read_disc_information(cmd);
        break;
    case OP_READ_TRACK_INFORMATION:
        read_track_information(cmd);
        break;
    case OP_READ_DVD_STRUCTURE:
        read_dvd_structure(cmd);
        break;
    case OP_MECHANISM_STATUS:
        mechanism_status(cmd);
        break;
    default:
        check(cmd, SENSE_ILLEGAL_REQUEST, ASC_INVALID_OPCODE);
        break;
    }
}

/* -- The ATA commands of a packet device --------------------------------------------------------
 */

/* Commands of disks end with the signature in the registers, by which hosts that probe with
 * IDENTIFY DEVICE recognize a packet device (ATA8-ACS 7.16.5). */
static void refuse(struct ata_command *cmd)
{
    cmd->tf.lba = 0xeb1401;
    cmd->tf.count = 1;
    ata_fail(cmd, ATA_ER_ABRT);
}

void ata_packet_device_command(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;

    switch (cmd->tf.command) {
    case ATA_CMD_PACKET:
        if (cmd->tf.feature & 2) { /* overlapped */
            ata_fail(cmd, ATA_ER_ABRT);
            return;
        }
        cmd->dma = cmd->tf.feature & 1;
        memset(cmd->packet, 0, sizeof(cmd->packet));
        cmd->phase = ATA_PHASE_PACKET;
        cmd->data_done = atapi_execute;
        d->adapter->data(d->adapter_opaque, cmd);
        break;
    case ATA_CMD_IDENTIFY_PACKET:
        if (!ata_buffer(cmd))
            return;
        ata_identify_packet(d, cmd->buf);
        ata_reply(cmd, ATA_SECTOR);
        break;
    case ATA_CMD_SET_FEATURES:
        switch (cmd->tf.feature & 0xff) {
        case ATA_FEATURE_TRANSFER_MODE:
            if ((cmd->tf.count & 0xf8) == 0x40 && (cmd->tf.count & 7) <= 6) {
                d->udma_mode = cmd->tf.count & 7;
                d->mwdma_mode = 0xff;
            } else if ((cmd->tf.count & 0xf8) == 0x20 && (cmd->tf.count & 7) <= 2) {
                d->mwdma_mode = cmd->tf.count & 7;
                d->udma_mode = 0xff;
            } else if (cmd->tf.count > 0x0c) {
                ata_fail(cmd, ATA_ER_ABRT);
                return;
            }
            ata_succeed(cmd);
            break;
        case ATA_FEATURE_NO_REVERT:
        case ATA_FEATURE_REVERT:
        case ATA_FEATURE_LOOK_AHEAD_OFF:
        case ATA_FEATURE_LOOK_AHEAD_ON:
            ata_succeed(cmd);
            break;
        default:
            ata_fail(cmd, ATA_ER_ABRT);
        }
        break;
    case ATA_CMD_FLUSH_CACHE:
    case ATA_CMD_STANDBY_IMMEDIATE:
    case ATA_CMD_IDLE_IMMEDIATE:
    case ATA_CMD_SLEEP:
        ata_succeed(cmd);
        break;
    case ATA_CMD_CHECK_POWER:
        cmd->tf.count = 0xff;
        ata_succeed(cmd);
        break;
    case ATA_CMD_IDENTIFY:
    case ATA_CMD_READ_SECTORS:
        refuse(cmd);
        break;
    default:
        ata_fail(cmd, ATA_ER_ABRT);
        break;
    }
}
