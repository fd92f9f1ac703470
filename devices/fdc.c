/* The floppy disk controller: see fdc.h.  Page and table numbers are the 82077AA data sheet's. */
#include "devices/fdc.h"

#include <errno.h>
#include <string.h>

enum { DOR_DRIVE = 0x03, DOR_NOT_RESET = 0x04, DOR_DMA_GATE = 0x08 };
enum { DSR_RESET = 0x80 };
enum { MSR_NON_DMA = 0x20, MSR_BUSY = 0x10, MSR_DIO = 0x40, MSR_RQM = 0x80 };
enum { DIR_CHANGED = 0x80 };
enum { CONFIG_IMPLIED_SEEK = 0x40 };

/* Status registers (section 6.0). */
enum {
    ST0_ABNORMAL = 0x40,
    ST0_INVALID = 0x80,
    ST0_POLLING = 0xc0,
    ST0_SEEK_END = 0x20,
    ST0_EQUIPMENT = 0x10,
    ST1_END_OF_CYLINDER = 0x80,
    ST1_DATA_ERROR = 0x20,
    ST1_OVERRUN = 0x10,
    ST1_NO_DATA = 0x04,
    ST1_NOT_WRITABLE = 0x02,
    ST1_NO_ADDRESS_MARK = 0x01,
    ST2_CONTROL_MARK = 0x40,
    ST2_WRONG_CYLINDER = 0x10,
    ST3_WRITE_PROTECTED = 0x40,
    ST3_READY = 0x20,
    ST3_TRACK_0 = 0x10,
    ST3_TWO_SIDES = 0x08,
};

/* Commands, without their MT, MFM and SK bits (table 5-1). */
enum {
    CMD_READ_TRACK = 0x02,
    CMD_SPECIFY = 0x03,
    CMD_SENSE_DRIVE = 0x04,
    CMD_WRITE = 0x05,
    CMD_READ = 0x06,
    CMD_RECALIBRATE = 0x07,
    CMD_SENSE_INTERRUPT = 0x08,
    CMD_WRITE_DELETED = 0x09,
    CMD_READ_ID = 0x0a,
    CMD_READ_DELETED = 0x0c,
    CMD_FORMAT = 0x0d,
    CMD_DUMPREG = 0x0e,
    CMD_SEEK = 0x0f, /* with bit 7: relative */
    CMD_VERSION = 0x10,
    CMD_PERPENDICULAR = 0x12,
    CMD_CONFIGURE = 0x13,
    CMD_LOCK = 0x14, /* bit 7: lock, else unlock */
    CMD_VERIFY = 0x16,
};
enum { MULTI_TRACK = 0x80, RELATIVE_IN = 0x40, VERIFY_COUNT = 0x80 };

#define VERSION_82077 0x90
#define SIZE_512      2 /* N: sector size code */

/* By preference when only the size is known. */
static const struct floppy_format formats[] = {
    {2880, 80, 2, 18, 0, FLOPPY_1M44}, {5760, 80, 2, 36, 3, FLOPPY_2M88},
    {1440, 80, 2, 9, 2, FLOPPY_720K},  {2400, 80, 2, 15, 0, FLOPPY_1M2},
    {720, 40, 2, 9, 1, FLOPPY_360K},   {3360, 80, 2, 21, 0, FLOPPY_1M44},
    {3444, 82, 2, 21, 0, FLOPPY_1M44}, {640, 40, 2, 8, 1, FLOPPY_360K},
    {360, 40, 1, 9, 1, FLOPPY_360K},   {320, 40, 1, 8, 1, FLOPPY_360K},
};

const struct floppy_format *floppy_format(uint64_t size)
{
    for (unsigned i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (size == (uint64_t)formats[i].sectors * FDC_SECTOR)
            return &formats[i];
    return NULL;
}

uint64_t floppy_image_size(uint64_t bytes)
{
    static const uint64_t usual[] = {2880 * FDC_SECTOR, 5760 * FDC_SECTOR};
    uint64_t sectors = (bytes + FDC_SECTOR - 1) / FDC_SECTOR;

    if (floppy_format(sectors * FDC_SECTOR))
        return sectors * FDC_SECTOR;
    for (unsigned i = 0; i < 2; i++)
        if (bytes <= usual[i])
            return usual[i];
    return bytes;
}

enum floppy_drive_type floppy_drive_for(const struct floppy_format *format)
{
    if (!format || format->drive == FLOPPY_720K)
        return FLOPPY_1M44;
    return format->drive == FLOPPY_360K ? FLOPPY_1M2 : format->drive;
}

const char *floppy_drive_name(enum floppy_drive_type type)
{
    static const char *const names[] = {"no", "360K", "1.2M", "720K", "1.44M", "2.88M"};

    return names[type];
}

bool floppy_fits(enum floppy_drive_type type, const struct floppy_format *format)
{
    switch (format->drive) {
    case FLOPPY_360K:
        return type == FLOPPY_360K || type == FLOPPY_1M2;
    case FLOPPY_1M2:
        return type == FLOPPY_1M2;
    case FLOPPY_720K:
        return type == FLOPPY_720K || type == FLOPPY_1M44 || type == FLOPPY_2M88;
    case FLOPPY_1M44:
        return type == FLOPPY_1M44 || type == FLOPPY_2M88;
    case FLOPPY_2M88:
        return type == FLOPPY_2M88;
    case FLOPPY_NONE:
        break;
    }
    return false;
}

/* -- Interrupts and phases ----------------------------------------------------------------------
 */

static void update_irq(struct fdc *f)
{
    irq_set(&f->irq, f->irq_pending && (f->dor & DOR_DMA_GATE));
}

static void set_irq(struct fdc *f, bool pending)
{
    f->irq_pending = pending;
    update_irq(f);
}

static bool non_dma(const struct fdc *f)
{
    return f->hlt_nd & 1;
}

static void to_command_phase(struct fdc *f)
{
    f->phase = FDC_COMMAND;
    f->fifo_len = f->fifo_pos = f->expected = 0;
    f->pio_ready = false;
}

static void to_result_phase(struct fdc *f, unsigned bytes)
{
    f->phase = FDC_RESULT;
    f->fifo_len = (uint8_t)bytes;
    f->fifo_pos = 0;
    f->pio_ready = false;
}

static struct floppy_drive *drive(struct fdc *f, unsigned n)
{
    return n < FDC_DRIVES && f->drive[n].block ? &f->drive[n] : NULL;
}

/* -- Reset --------------------------------------------------------------------------------------
 */

static void reset_controller(struct fdc *f, bool hard)
{
    if (f->io_pending)
        f->io_stale = true;
    f->start_pending = false;
    to_command_phase(f);
    set_irq(f, false);
    for (unsigned i = 0; i < FDC_DRIVES; i++)
        f->drive[i].seek_done = false;
    f->reset_polls = 0;
    f->perpendicular &= 0xfc;
    if (hard || !f->locked)
        f->config = f->precomp = 0;
}

/* Out of reset: an interrupt, and four answers to SENSE INTERRUPT STATUS (drive polling). */
static void end_reset(struct fdc *f)
{
    f->reset_polls = 4;
    set_irq(f, true);
}

void fdc_reset(struct fdc *f)
{
    f->locked = false;
    reset_controller(f, true);
    f->dor = DOR_DMA_GATE | DOR_NOT_RESET;
    f->rate = 2;
    f->tdr = 0;
    f->srt_hut = f->hlt_nd = f->perpendicular = 0;
    for (unsigned i = 0; i < FDC_DRIVES; i++)
        f->drive[i].track = 0;
    update_irq(f);
}

/* -- Results ------------------------------------------------------------------------------------
 */

/* The seven result bytes of commands with data. */
static void finish(struct fdc *f, uint8_t st0, uint8_t st1, uint8_t st2)
{
    f->fifo[0] = (uint8_t)(st0 | f->head << 2 | f->unit);
    f->fifo[1] = st1;
    f->fifo[2] = st2;
    f->fifo[3] = f->c;
    f->fifo[4] = f->h;
    f->fifo[5] = f->r;
    f->fifo[6] = f->n;
    to_result_phase(f, 7);
    set_irq(f, true);
}

/* The address after sector r (table 5-5). */
static void next_address(struct fdc *f)
{
    if (f->r != f->eot) {
        f->r++;
        return;
    }
    f->r = 1;
    if (f->mt) {
        f->c = (uint8_t)(f->c + (f->h & 1));
        f->h ^= 1;
        f->head ^= 1;
    } else {
        f->c++;
    }
}

/* -- Transfers ----------------------------------------------------------------------------------
 */

static void start_piece(struct fdc *f);

static uint64_t offset_of(const struct fdc *f, const struct floppy_drive *d)
{
    const struct floppy_format *g = d->format;

    return (((uint64_t)d->track * g->heads + f->head) * g->spt + f->r - 1) * FDC_SECTOR;
}

/* `done` sectors are over.  Ends the command or goes on with the next piece. */
static void piece_done(struct fdc *f, uint32_t done)
{
    uint8_t st2 = f->deleted && !f->write ? ST2_CONTROL_MARK : 0;
    bool end = false;

    while (done--) {
        /* The last sector of the cylinder: both heads with MT, else this one. */
        end = f->r == f->eot && !(f->mt && !f->head);
        next_address(f);
    }
    if (f->format_track || f->tc || (end && f->verify))
        finish(f, 0, 0, st2);
    else if (end) /* nobody said that this was enough */
        finish(f, ST0_ABNORMAL, ST1_END_OF_CYLINDER, st2);
    else
        start_piece(f);
}

static void io_done(struct block_request *r)
{
    struct fdc *f = r->opaque;

    f->io_pending = false;
    if (f->io_stale) {
        f->io_stale = false;
        if (f->start_pending) {
            f->start_pending = false;
            start_piece(f);
        }
        return;
    }
    if (r->result) {
        finish(f, ST0_ABNORMAL,
               r->result == -EROFS ? ST1_NOT_WRITABLE : ST1_DATA_ERROR | ST1_NO_DATA, 0);
    } else if (f->write || f->verify) {
        piece_done(f, f->count);
    } else if (non_dma(f)) {
        f->pio_ready = true;
        f->pos = 0;
        set_irq(f, true);
    } else {
        size_t moved = i8237_transfer(f->dma, FDC_DMA, I8237_TO_MEMORY, f->data, f->length, &f->tc);

        if (moved < f->length && !f->tc)
            finish(f, ST0_ABNORMAL, ST1_OVERRUN, 0);
        else
            piece_done(f, (uint32_t)(moved + FDC_SECTOR - 1) / FDC_SECTOR);
    }
}

static void submit(struct fdc *f, struct floppy_drive *d, bool write, uint64_t offset)
{
    f->iov = (struct iovec){.iov_base = f->data, .iov_len = f->length};
    f->req = (struct block_request){
        .op = write ? BLOCK_WRITE : BLOCK_READ,
        .offset = offset,
        .len = f->length,
        .iov = &f->iov,
        .iovcnt = 1,
        .done = io_done,
        .opaque = f,
    };
    f->io_pending = true;
    block_submit(d->block, &f->req);
}

/* The host's data is in data[], `bytes` of it; what is missing of a sector is zeros. */
static void write_piece(struct fdc *f, uint32_t bytes)
{
    struct floppy_drive *d = drive(f, f->unit);

    memset(f->data + bytes, 0, f->length - bytes);
    f->count = (bytes + FDC_SECTOR - 1) / FDC_SECTOR;
    f->length = f->count * FDC_SECTOR;
    if (!d || !d->format)
        finish(f, ST0_ABNORMAL, ST1_NO_ADDRESS_MARK, 0);
    else
        submit(f, d, true, offset_of(f, d));
}

/* Whether the head can find sectors at all: a disk, formatted for this data rate, this side. */
static bool readable(const struct fdc *f, const struct floppy_drive *d, unsigned head)
{
    unsigned rate = f->rate & 3;

    if (!d || !d->format || d->track >= d->format->cylinders || head >= d->format->heads)
        return false;
    /* 360K disks are read at 300 kbit/s in a 1.2M drive, which turns faster, at 250 in their own.
     */
    return rate == (d->format->rate == 1 && d->type == FLOPPY_360K ? 2 : d->format->rate);
}

/* Starts the next run of sectors: the rest of this side of the track. */
static void start_piece(struct fdc *f)
{
    struct floppy_drive *d = drive(f, f->unit);
    uint32_t last;

    if (f->io_pending) { /* the request that a reset cut short has the buffer */
        f->start_pending = true;
        return;
    }
    if (!readable(f, d, f->head)) {
        finish(f, ST0_ABNORMAL, ST1_NO_ADDRESS_MARK, 0);
        return;
    }
    if (f->c != d->track) {
        finish(f, ST0_ABNORMAL, ST1_NO_DATA, ST2_WRONG_CYLINDER);
        return;
    }
    if (f->h != f->head || f->n != SIZE_512 || f->r < 1 || f->r > d->format->spt) {
        finish(f, ST0_ABNORMAL, ST1_NO_DATA, 0);
        return;
    }
    /* An EOT below R is never met: the controller runs on to a sector that is not there. */
    last = f->eot >= f->r && f->eot <= d->format->spt ? f->eot : d->format->spt;
    f->count = last - f->r + 1;
    f->length = f->count * FDC_SECTOR;
    f->tc = false;
    if (f->write && d->block->read_only) {
        finish(f, ST0_ABNORMAL, ST1_NOT_WRITABLE, 0);
    } else if (!f->write) {
        submit(f, d, false, offset_of(f, d));
    } else if (non_dma(f)) {
        f->pio_ready = true;
        f->pos = 0;
        set_irq(f, true);
    } else {
        size_t got = i8237_transfer(f->dma, FDC_DMA, I8237_FROM_MEMORY, f->data, f->length, &f->tc);

        if (got < f->length && !f->tc)
            finish(f, ST0_ABNORMAL, ST1_OVERRUN, 0);
        else
            write_piece(f, (uint32_t)got);
    }
}

/* READ, WRITE, VERIFY and READ TRACK: unit and head, C, H, R, N, EOT, GPL, DTL. */
static void start_transfer(struct fdc *f)
{
    unsigned command = f->fifo[0] & 0x1f;
    struct floppy_drive *d;

    f->unit = f->fifo[1] & 3;
    f->head = f->fifo[1] >> 2 & 1;
    f->c = f->fifo[2];
    f->h = f->fifo[3];
    f->r = f->fifo[4];
    f->n = f->fifo[5];
    f->eot = f->fifo[6];
    f->mt = (f->fifo[0] & MULTI_TRACK) && command != CMD_READ_TRACK;
    f->write = command == CMD_WRITE || command == CMD_WRITE_DELETED;
    f->deleted = command == CMD_READ_DELETED;
    f->verify = command == CMD_VERIFY;
    f->format_track = false;
    f->phase = FDC_EXECUTION;
    if (command == CMD_READ_TRACK)
        f->r = 1;
    /* VERIFY with EC set: the last byte says how many sectors, not where to stop. */
    if (f->verify && (f->fifo[1] & VERIFY_COUNT) && f->fifo[8])
        f->eot = (uint8_t)(f->r + f->fifo[8] - 1);
    d = drive(f, f->unit);
    if (d && (f->config & CONFIG_IMPLIED_SEEK) && f->c < 86) {
        if (d->format)
            d->changed = false;
        d->track = f->c;
    }
    start_piece(f);
}

/* FORMAT TRACK: unit and head, N, sectors, gap, fill byte; then C, H, R, N of every sector, of
 * which there is nothing to keep. */
static void format_with_ids(struct fdc *f)
{
    struct floppy_drive *d = drive(f, f->unit);

    if (!readable(f, d, f->head) || f->n != SIZE_512 || !f->eot || f->eot > d->format->spt) {
        finish(f, ST0_ABNORMAL, ST1_NO_ADDRESS_MARK, 0);
        return;
    }
    memset(f->data, f->fifo[5], sizeof(f->data));
    f->r = 1;
    f->count = f->eot;
    f->length = f->count * FDC_SECTOR;
    submit(f, d, true, offset_of(f, d));
}

static void start_format(struct fdc *f)
{
    struct floppy_drive *d;

    f->unit = f->fifo[1] & 3;
    f->head = f->fifo[1] >> 2 & 1;
    f->h = f->head;
    f->n = f->fifo[2];
    f->eot = f->fifo[3];
    f->mt = f->deleted = f->verify = false;
    f->write = f->format_track = true;
    f->phase = FDC_EXECUTION;
    f->tc = false;
    d = drive(f, f->unit);
    f->c = d ? d->track : 0;
    f->r = 1;
    if (f->io_pending || !d || !d->format || f->eot > FDC_MAX_SECTORS) {
        finish(f, ST0_ABNORMAL, ST1_NO_ADDRESS_MARK, 0);
    } else if (d->block->read_only) {
        finish(f, ST0_ABNORMAL, ST1_NOT_WRITABLE, 0);
    } else if (non_dma(f)) {
        f->length = f->eot * 4u;
        f->pos = 0;
        f->pio_ready = true;
        set_irq(f, true);
    } else {
        size_t got =
            i8237_transfer(f->dma, FDC_DMA, I8237_FROM_MEMORY, f->data, f->eot * 4u, &f->tc);

        if (got < f->eot * 4u && !f->tc)
            finish(f, ST0_ABNORMAL, ST1_OVERRUN, 0);
        else
            format_with_ids(f);
    }
}

/* -- Commands without data -----------------------------------------------------------------------
 */

static void seek_ended(struct fdc *f, unsigned unit, uint8_t st0)
{
    if (unit < FDC_DRIVES) {
        f->drive[unit].seek_done = true;
        f->drive[unit].seek_status = (uint8_t)(st0 | unit);
    }
    to_command_phase(f);
    set_irq(f, true);
}

/* Steps the head: with a disk in the drive that resets the change line. */
static void step_to(struct floppy_drive *d, unsigned track)
{
    d->track = (uint8_t)(track > 85 ? 85 : track);
    if (d->format)
        d->changed = false;
}

static void recalibrate(struct fdc *f)
{
    unsigned unit = f->fifo[1] & 3;
    struct floppy_drive *d = drive(f, unit);

    if (d)
        step_to(d, 0);
    /* Without a drive, track 0 is never found. */
    seek_ended(f, unit, d ? ST0_SEEK_END : ST0_SEEK_END | ST0_ABNORMAL | ST0_EQUIPMENT);
}

static void seek(struct fdc *f)
{
    unsigned unit = f->fifo[1] & 3, head = f->fifo[1] & 4, to = f->fifo[2];
    struct floppy_drive *d = drive(f, unit);

    if (d && (f->fifo[0] & MULTI_TRACK)) /* relative */
        to = f->fifo[0] & RELATIVE_IN ? d->track + to : d->track > to ? d->track - to : 0;
    if (d)
        step_to(d, to);
    seek_ended(f, unit, (uint8_t)(ST0_SEEK_END | head));
}

static void sense_interrupt(struct fdc *f)
{
    struct floppy_drive *d = NULL;

    set_irq(f, false);
    if (f->reset_polls) {
        unsigned unit = 4u - f->reset_polls--;

        f->fifo[0] = (uint8_t)(ST0_POLLING | unit);
        f->fifo[1] = unit < FDC_DRIVES ? f->drive[unit].track : 0;
        to_result_phase(f, 2);
        return;
    }
    for (unsigned i = 0; i < FDC_DRIVES && !d; i++)
        if (f->drive[i].seek_done)
            d = &f->drive[i];
    if (!d) {
        f->fifo[0] = ST0_INVALID;
        to_result_phase(f, 1);
        return;
    }
    d->seek_done = false;
    f->fifo[0] = d->seek_status;
    f->fifo[1] = d->track;
    to_result_phase(f, 2);
}

static void sense_drive(struct fdc *f)
{
    unsigned unit = f->fifo[1] & 3;
    struct floppy_drive *d = drive(f, unit);
    uint8_t st3 = (uint8_t)(ST3_READY | ST3_TWO_SIDES | (f->fifo[1] & 7));

    if (d && d->track == 0)
        st3 |= ST3_TRACK_0;
    if (d && (d->block->read_only || !d->format))
        st3 |= ST3_WRITE_PROTECTED;
    f->fifo[0] = st3;
    to_result_phase(f, 1);
}

static void read_id(struct fdc *f)
{
    struct floppy_drive *d;

    f->unit = f->fifo[1] & 3;
    f->head = f->fifo[1] >> 2 & 1;
    d = drive(f, f->unit);
    f->phase = FDC_EXECUTION;
    f->c = d ? d->track : 0;
    f->h = f->head;
    f->n = SIZE_512;
    if (!readable(f, d, f->head)) {
        f->r = 0;
        finish(f, ST0_ABNORMAL, ST1_NO_ADDRESS_MARK, 0);
        return;
    }
    /* The disk turns: another sector each time. */
    f->r = (uint8_t)(f->r % d->format->spt + 1);
    finish(f, 0, 0, 0);
}

static void dump_registers(struct fdc *f)
{
    for (unsigned i = 0; i < 4; i++)
        f->fifo[i] = i < FDC_DRIVES ? f->drive[i].track : 0;
    f->fifo[4] = f->srt_hut;
    f->fifo[5] = f->hlt_nd;
    f->fifo[6] = f->eot;
    f->fifo[7] = (uint8_t)(f->locked << 7 | (f->perpendicular & 0x3f));
    f->fifo[8] = f->config;
    f->fifo[9] = f->precomp;
    to_result_phase(f, 10);
}

/* -- Dispatch ------------------------------------------------------------------------------------
 */

/* Bytes of a command, 0 if there is none of this code. */
static unsigned command_length(uint8_t code)
{
    switch (code & 0x1f) {
    case CMD_READ:
    case CMD_READ_DELETED:
    case CMD_WRITE:
    case CMD_WRITE_DELETED:
    case CMD_READ_TRACK:
    case CMD_VERIFY:
        return 9;
    case CMD_FORMAT:
        return 6;
    case CMD_CONFIGURE:
        return 4;
    case CMD_SPECIFY:
    case CMD_SEEK:
        return 3;
    case CMD_READ_ID:
    case CMD_RECALIBRATE:
    case CMD_SENSE_DRIVE:
    case CMD_PERPENDICULAR:
        return 2;
    case CMD_SENSE_INTERRUPT:
    case CMD_DUMPREG:
    case CMD_VERSION:
    case CMD_LOCK:
        return 1;
    }
    return 0;
}

static void execute(struct fdc *f)
{
    switch (f->fifo[0] & 0x1f) {
    case CMD_READ:
    case CMD_READ_DELETED:
    case CMD_WRITE:
    case CMD_WRITE_DELETED:
    case CMD_READ_TRACK:
    case CMD_VERIFY:
        start_transfer(f);
        break;
    case CMD_FORMAT:
        start_format(f);
        break;
    case CMD_READ_ID:
        read_id(f);
        break;
    case CMD_RECALIBRATE:
        recalibrate(f);
        break;
    case CMD_SEEK:
        seek(f);
        break;
    case CMD_SENSE_INTERRUPT:
        sense_interrupt(f);
        break;
    case CMD_SENSE_DRIVE:
        sense_drive(f);
        break;
    case CMD_SPECIFY:
        f->srt_hut = f->fifo[1];
        f->hlt_nd = f->fifo[2];
        to_command_phase(f);
        break;
    case CMD_CONFIGURE:
        f->config = f->fifo[2];
        f->precomp = f->fifo[3];
        to_command_phase(f);
        break;
    case CMD_PERPENDICULAR:
        f->perpendicular = f->fifo[1];
        to_command_phase(f);
        break;
    case CMD_DUMPREG:
        dump_registers(f);
        break;
    case CMD_VERSION:
        f->fifo[0] = VERSION_82077;
        to_result_phase(f, 1);
        break;
    case CMD_LOCK:
        f->locked = f->fifo[0] & MULTI_TRACK;
        f->fifo[0] = (uint8_t)(f->locked << 4);
        to_result_phase(f, 1);
        break;
    }
}

/* -- The FIFO ------------------------------------------------------------------------------------
 */

/* A sector has passed the FIFO, or the last one has. */
static void pio_progress(struct fdc *f)
{
    if (f->pos < f->length) {
        if (f->pos % FDC_SECTOR == 0)
            set_irq(f, true);
        return;
    }
    f->pio_ready = false;
    if (f->format_track)
        format_with_ids(f);
    else if (f->write)
        write_piece(f, f->length);
    else
        piece_done(f, f->count);
}

static uint8_t read_fifo(struct fdc *f)
{
    uint8_t value = 0;

    if (f->phase == FDC_EXECUTION && f->pio_ready && !f->write) {
        if (f->pos % FDC_SECTOR == 0)
            set_irq(f, false);
        value = f->data[f->pos++];
        pio_progress(f);
    } else if (f->phase == FDC_RESULT) {
        if (f->fifo_pos == 0)
            set_irq(f, false);
        value = f->fifo[f->fifo_pos++];
        if (f->fifo_pos == f->fifo_len)
            to_command_phase(f);
    }
    return value;
}

static void write_fifo(struct fdc *f, uint8_t value)
{
    if (!(f->dor & DOR_NOT_RESET))
        return;
    if (f->phase == FDC_EXECUTION && f->pio_ready && f->write) {
        if (f->pos % FDC_SECTOR == 0)
            set_irq(f, false);
        f->data[f->pos++] = value;
        pio_progress(f);
        return;
    }
    if (f->phase != FDC_COMMAND)
        return;
    if (!f->fifo_len) {
        f->expected = (uint8_t)command_length(value);
        if (!f->expected) {
            f->fifo[0] = ST0_INVALID;
            to_result_phase(f, 1);
            return;
        }
    }
    f->fifo[f->fifo_len++] = value;
    if (f->fifo_len == f->expected) {
        f->fifo_len = 0;
        execute(f);
    }
}

/* -- Ports ---------------------------------------------------------------------------------------
 */

static uint8_t main_status(const struct fdc *f)
{
    if (!(f->dor & DOR_NOT_RESET))
        return 0;
    switch (f->phase) {
    case FDC_COMMAND:
        return (uint8_t)(MSR_RQM | (f->fifo_len ? MSR_BUSY : 0));
    case FDC_RESULT:
        return MSR_RQM | MSR_DIO | MSR_BUSY;
    case FDC_EXECUTION:
        if (f->pio_ready)
            return (uint8_t)(MSR_RQM | MSR_NON_DMA | MSR_BUSY | (f->write ? 0 : MSR_DIO));
        return MSR_BUSY;
    }
    return 0;
}

static uint64_t fdc_read(void *opaque, uint64_t offset, unsigned size)
{
    struct fdc *f = opaque;

    switch (offset) {
    case 2:
        return f->dor;
    case 3:
        return f->tdr;
    case 4:
        return main_status(f);
    case 5:
        return read_fifo(f);
    }
    return 0xff; /* status registers A and B are not there in AT mode */
}

static void write_dor(struct fdc *f, uint8_t value)
{
    uint8_t old = f->dor;

    f->dor = value;
    if ((old & DOR_NOT_RESET) && !(value & DOR_NOT_RESET))
        reset_controller(f, false);
    else if (!(old & DOR_NOT_RESET) && (value & DOR_NOT_RESET))
        end_reset(f);
    update_irq(f);
}

static void fdc_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fdc *f = opaque;

    switch (offset) {
    case 2:
        write_dor(f, (uint8_t)value);
        break;
    case 3:
        f->tdr = value & 3;
        break;
    case 4:
        f->rate = value & 3;
        if ((value & DSR_RESET) && (f->dor & DOR_NOT_RESET)) { /* clears itself */
            reset_controller(f, false);
            end_reset(f);
        }
        break;
    case 5:
        write_fifo(f, (uint8_t)value);
        break;
    }
}

static uint64_t dir_read(void *opaque, uint64_t offset, unsigned size)
{
    struct fdc *f = opaque;
    const struct floppy_drive *d = drive(f, f->dor & DOR_DRIVE);

    return d && (d->changed || !d->format) ? DIR_CHANGED : 0;
}

static void ccr_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    ((struct fdc *)opaque)->rate = value & 3;
}

const struct io_ops fdc_ops = {.read = fdc_read, .write = fdc_write, .max_size = 1};
const struct io_ops fdc_dir_ops = {.read = dir_read, .write = ccr_write, .max_size = 1};

/* -- Construction and media -----------------------------------------------------------------------
 */

void fdc_init(struct fdc *f, struct irq_line irq, struct i8237 *dma)
{
    memset(f, 0, sizeof(*f));
    f->irq = irq;
    f->dma = dma;
    fdc_reset(f);
}

static void take_medium(struct floppy_drive *d)
{
    d->format = d->block->image ? floppy_format(d->block->size) : NULL;
    if (d->format && !floppy_fits(d->type, d->format))
        d->format = NULL;
    d->changed = true;
}

static void media_changed(void *opaque, bool present)
{
    take_medium(opaque);
}

void fdc_attach(struct fdc *f, unsigned n, struct block_device *block, enum floppy_drive_type type)
{
    struct floppy_drive *d = &f->drive[n];

    d->block = block;
    d->type = type;
    block->media_changed = media_changed;
    block->media_opaque = d;
    take_medium(d);
}
