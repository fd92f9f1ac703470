/*
 * ATA and ATAPI devices (ATA8-ACS; SFF-8020i and MMC-6 for packet devices), without the wires: what
 * a drive does with a command, whichever host adapter it arrived through.  ide.c and ahci.c are the
 * adapters: they own the registers, hand a drive a struct ata_command and move the data that it
 * offers or asks for.
 *
 * A command runs asynchronously, in steps:
 *   ata_submit()     the drive decodes the command;
 *   ops->data()      the drive has a piece of data in cmd->buf, or wants one there; the adapter
 *                    moves it, now or later, and calls ata_data_done();
 *   ops->complete()  the command has ended, cmd holds the resulting registers.
 * Data passes through cmd->buf, a buffer of ours, in pieces of at most ATA_CHUNK bytes: a guest
 * can neither change what is being written nor lose memory it gave to a command that a reset cut
 * short.
 *
 * Life of a command: it belongs to the adapter and outlives its I/O.  ata_abort() ends it: at once
 * if no block request is in flight, else when the request completes; until then cmd->busy stays
 * true, ops->complete() is called with cmd->aborted set, and the adapter must not reuse it before.
 * No data callback comes for an aborted command.
 *
 * Called with the machine lock held throughout.
 */
#ifndef RINGSHIFT_DEVICES_ATA_H
#define RINGSHIFT_DEVICES_ATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/atapi.h"
#include "devices/block.h"

#define ATA_SECTOR   512u
#define ATA_CHUNK    (256u << 10) /* bytes in one piece of data at most; a multiple of 2048 */
#define ATA_MULTIPLE 16u          /* most sectors per DRQ block of READ/WRITE MULTIPLE */
#define ATA_QUEUE    32u          /* NCQ tags */

/* Bits of the registers. */
enum {
    ATA_SR_ERR = 0x01, /* CHK for packet devices */
    ATA_SR_DRQ = 0x08,
    ATA_SR_DSC = 0x10,
    ATA_SR_DF = 0x20,
    ATA_SR_DRDY = 0x40,
    ATA_SR_BSY = 0x80,

    ATA_ER_ABRT = 0x04,
    ATA_ER_IDNF = 0x10,
    ATA_ER_UNC = 0x40,
    ATA_ER_ICRC = 0x80,

    ATA_DEV_DEV1 = 0x10,
    ATA_DEV_LBA = 0x40,

    ATA_REASON_COD = 0x01, /* "interrupt reason", in the count register */
    ATA_REASON_IO = 0x02,
};

enum ata_kind { ATA_NONE, ATA_DISK, ATA_CDROM };

enum ata_phase {
    ATA_PHASE_PACKET, /* the drive wants the 12 bytes of a packet in cmd->packet */
    ATA_PHASE_IN,     /* buf_len bytes in cmd->buf are for the host */
    ATA_PHASE_OUT,    /* the drive wants buf_len bytes in cmd->buf */
};

/* Command block registers; 48-bit commands use all of lba, count and feature, others the low
 * 24 + 4, 8 and 8 bits.  On completion lba, count and device are what the host reads. */
struct ata_taskfile {
    uint64_t lba;
    uint16_t count, feature;
    uint8_t device, command;
    uint8_t status, error;
};

struct ata_device;

struct ata_command {
    struct ata_device *dev;
    struct ata_taskfile tf;
    bool busy;         /* submitted and not completed */
    bool aborted;      /* nobody waits for it any more */
    bool dma;          /* data moves by DMA, else by PIO */
    bool queued;       /* an NCQ command; completes by tag */
    bool discard_data; /* READ VERIFY: reads the medium and transfers nothing */
    bool fua;          /* ends with a flush */
    bool write;
    bool io_pending; /* the block request is in flight */
    enum ata_phase phase;
    uint8_t tag;

    uint8_t *buf; /* ATA_CHUNK bytes, allocated when first needed */
    uint32_t buf_len;
    uint32_t drq_bytes; /* PIO: most bytes of buf per DRQ assertion */
    uint64_t total;     /* bytes the command has still to transfer, buf_len included */

    uint64_t lba;     /* next sector of the medium (512-byte units) */
    uint64_t sectors; /* left to do */
    uint32_t step;    /* sectors of the request in flight */
    uint32_t range;   /* DATA SET MANAGEMENT: next entry; READ CD: layout of a sector */

    uint8_t packet[16];
    struct block_request req;
    struct iovec iov;
    void (*io_done)(struct ata_command *cmd, int err);
    void (*data_done)(struct ata_command *cmd);
};

/* How a drive reaches its host adapter. */
struct ata_adapter_ops {
    /* Move the piece of data that cmd->phase describes and call ata_data_done(). */
    void (*data)(void *opaque, struct ata_command *cmd);
    /* cmd is no longer busy; cmd->tf holds the registers (unless aborted). */
    void (*complete)(void *opaque, struct ata_command *cmd);
    /* Something happened that the guest has not asked about (SATA asynchronous notification);
     * may be NULL. */
    void (*notify)(void *opaque);
};

struct ata_device {
    enum ata_kind kind;
    struct block_device *block; /* a CD drive's may be without a medium */
    const struct ata_adapter_ops *adapter;
    void *adapter_opaque;
    char serial[21], model[41], firmware[9];
    bool sata; /* behind AHCI: NCQ, SATA words of IDENTIFY */

    /* Disks. */
    uint64_t sectors;
    uint16_t cylinders; /* as shipped; heads and sectors_per_track as set by the host */
    uint8_t default_heads, default_spt, heads, spt;
    uint8_t multiple;              /* sectors per block of READ MULTIPLE, 0 = off */
    uint8_t udma_mode, mwdma_mode; /* the selected one, 0xff = none */
    bool write_cache, look_ahead, smart, standby;
    /* Error of a queued command, for log page 10h (ATA8-ACS A.14). */
    bool ncq_failed;
    struct ata_taskfile ncq_error;
    uint8_t ncq_error_tag;

    struct atapi atapi;
};

/* A disk on `block`, which is not owned and outlives all commands.  serial is ASCII, padded or cut.
 * The struct must not move. */
void ata_disk_init(struct ata_device *d, struct block_device *block, const char *serial);
/* A CD-ROM drive on `block`, with or without a medium, whose media_changed callback this sets. */
void ata_cdrom_init(struct ata_device *d, struct block_device *block, const char *serial);
/* Settings as after power-on or hardware reset; soft: as after a software reset, which keeps what
 * SET FEATURES 66h protects.  Commands in flight are the adapter's to abort. */
void ata_device_reset(struct ata_device *d, bool soft);

/* Starts cmd->tf on d.  The caller has set tf; everything else is filled in here.  For PACKET the
 * first callback asks for the packet. */
void ata_submit(struct ata_device *d, struct ata_command *cmd);
/* After ops->data(): all of the piece was moved.  (An adapter that cannot move it all ends the
 * command with ata_fail().) */
void ata_data_done(struct ata_command *cmd);
/* Ends a command with these error bits because its data could not be moved. */
void ata_fail(struct ata_command *cmd, uint8_t error);
/* See the top of this file.  Nothing if cmd is not busy. */
void ata_abort(struct ata_command *cmd);
/* Frees the buffer; cmd must not be busy. */
void ata_command_destroy(struct ata_command *cmd);

/* The registers after reset and EXECUTE DEVICE DIAGNOSTIC: the signature by which hosts tell disks
 * and packet devices apart (ATA8-ACS 9.12). */
void ata_signature(const struct ata_device *d, struct ata_taskfile *tf);
/* True if a command of this code takes 48-bit registers. */
bool ata_is_ext(uint8_t command);

/* -- Between ata.c, ata_disk.c, ata_identify.c and atapi.c. ------------------------------------ */
void ata_disk_command(struct ata_command *cmd);
void ata_packet_device_command(struct ata_command *cmd);
/* The pages of 512 bytes. */
void ata_identify(const struct ata_device *d, uint8_t *page);
void ata_identify_packet(const struct ata_device *d, uint8_t *page);
/* Completes with success; tf.lba, count and device are left as they are. */
void ata_succeed(struct ata_command *cmd);
/* Makes sure cmd->buf exists; false: the command has been failed. */
bool ata_buffer(struct ata_command *cmd);
/* Offers the first len bytes of cmd->buf to the host, then completes. */
void ata_reply(struct ata_command *cmd, uint32_t len);
/* Asks for len (at most ATA_CHUNK) bytes into cmd->buf, then calls then(). */
void ata_receive(struct ata_command *cmd, uint32_t len, void (*then)(struct ata_command *cmd));
/* Block requests on the command's buffer; done() is called unless the command was aborted. */
void ata_block_io(struct ata_command *cmd, bool write, uint64_t sector, uint32_t sectors,
                  void (*done)(struct ata_command *cmd, int err));
void ata_block_flush(struct ata_command *cmd, void (*done)(struct ata_command *cmd, int err));
void ata_block_discard(struct ata_command *cmd, uint64_t sector, uint64_t sectors,
                       void (*done)(struct ata_command *cmd, int err));

#endif
