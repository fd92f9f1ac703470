/*
 * Floppy disk controller (Intel 82077AA data sheet) in a PC/AT: ports 0x3f0-0x3f5 and 0x3f7, IRQ 6,
 * DMA channel 2, two drives.  Images are plain sectors of 512 bytes; their size says which format
 * they have.  Sectors have no gaps and no marks: what the controller reads about them is made up
 * from the geometry.
 */
#ifndef RINGSHIFT_DEVICES_FDC_H
#define RINGSHIFT_DEVICES_FDC_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/block.h"
#include "devices/bus.h"
#include "devices/i8237.h"
#include "devices/irq.h"

#define FDC_PORT        0x3f0
#define FDC_PORTS       6     /* 0x3f6 is the IDE control port... */
#define FDC_DIR_PORT    0x3f7 /* ...and this one is the floppy controller's again */
#define FDC_IRQ         6
#define FDC_DMA         2
#define FDC_DRIVES      2
#define FDC_SECTOR      512u
#define FDC_MAX_SECTORS 36u

/* What is in CMOS register 10h, one nibble a drive (IBM AT technical reference). */
enum floppy_drive_type {
    FLOPPY_NONE = 0,
    FLOPPY_360K = 1,
    FLOPPY_1M2 = 2,
    FLOPPY_720K = 3,
    FLOPPY_1M44 = 4,
    FLOPPY_2M88 = 5,
};

struct floppy_format {
    uint32_t sectors;
    uint8_t cylinders, heads, spt;
    uint8_t rate; /* bits 1:0 of CCR: 0 = 500, 1 = 300, 2 = 250, 3 = 1000 kbit/s */
    enum floppy_drive_type drive;
};

struct floppy_drive {
    enum floppy_drive_type type;
    struct block_device *block;         /* NULL: no drive */
    const struct floppy_format *format; /* of the disk in the drive, NULL if there is none */
    uint8_t track;                      /* where the head is */
    bool changed;                       /* the disk change line */
    bool seek_done;                     /* SENSE INTERRUPT STATUS has something to say... */
    uint8_t seek_status;                /* ...this ST0 */
};

enum fdc_phase { FDC_COMMAND, FDC_EXECUTION, FDC_RESULT };

struct fdc {
    struct irq_line irq;
    struct i8237 *dma;
    struct floppy_drive drive[FDC_DRIVES];

    uint8_t dor, rate, tdr;
    uint8_t srt_hut, hlt_nd, config, precomp, perpendicular;
    bool locked;
    bool irq_pending;
    uint8_t reset_polls; /* SENSE INTERRUPT STATUS answers still due after a reset */

    enum fdc_phase phase;
    uint8_t fifo[16]; /* command bytes, then result bytes */
    uint8_t fifo_len, fifo_pos, expected;

    /* The command being executed. */
    uint8_t unit, head, c, h, r, n, eot;
    bool mt, write, verify, format_track, deleted;
    uint32_t count;  /* sectors in data[] */
    uint32_t pos;    /* PIO: bytes of data[] that have passed the FIFO */
    uint32_t length; /* bytes of data[] in this piece */
    bool tc;
    bool pio_ready; /* data[] is what the host reads or fills through the FIFO */
    uint8_t data[FDC_MAX_SECTORS * FDC_SECTOR];

    struct block_request req;
    struct iovec iov;
    bool io_pending, io_stale; /* stale: a reset came while the request was in flight */
    bool start_pending;        /* a command waits for the stale request to end */
};

/* Without drives.  The struct must not move. */
void fdc_init(struct fdc *f, struct irq_line irq, struct i8237 *dma);
/* Attaches drive n (0 or 1), with or without a medium; sets block->media_changed.  A medium that
 * does not fit the drive reads as unformatted. */
void fdc_attach(struct fdc *f, unsigned n, struct block_device *block, enum floppy_drive_type type);
void fdc_reset(struct fdc *f);

/* The format of an image of this size (bytes), NULL if it is no floppy's. */
const struct floppy_format *floppy_format(uint64_t size);
/* How large the disk is that an image file of this many bytes holds: files that end early, as those
 * of boot sectors and of GRUB do, are 1.44M or else 2.88M disks whose rest was never written.  What
 * is larger than both stays as it is. */
uint64_t floppy_image_size(uint64_t bytes);
/* The drive to have for a disk of this format: the smallest modern one; NULL: an empty drive. */
enum floppy_drive_type floppy_drive_for(const struct floppy_format *format);
/* "1.44M" and so on. */
const char *floppy_drive_name(enum floppy_drive_type type);
/* Whether a drive of this type can read the format. */
bool floppy_fits(enum floppy_drive_type type, const struct floppy_format *format);

extern const struct io_ops fdc_ops;     /* opaque: struct fdc; FDC_PORTS from FDC_PORT */
extern const struct io_ops fdc_dir_ops; /* opaque: struct fdc; FDC_DIR_PORT */

#endif
