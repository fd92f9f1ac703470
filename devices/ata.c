/* What all ATA and ATAPI devices share: the life of a command.  See ata.h. */
#include "devices/ata.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/ata_commands.h"

bool ata_is_ext(uint8_t command)
{
    switch (command) {
    case ATA_CMD_DATA_SET_MANAGEMENT:
    case ATA_CMD_READ_SECTORS_EXT:
    case ATA_CMD_READ_DMA_EXT:
    case ATA_CMD_READ_NATIVE_MAX_EXT:
    case ATA_CMD_READ_MULTIPLE_EXT:
    case ATA_CMD_READ_LOG_EXT:
    case ATA_CMD_READ_LOG_DMA_EXT:
    case ATA_CMD_WRITE_SECTORS_EXT:
    case ATA_CMD_WRITE_DMA_EXT:
    case ATA_CMD_WRITE_MULTIPLE_EXT:
    case ATA_CMD_WRITE_DMA_FUA_EXT:
    case ATA_CMD_READ_VERIFY_EXT:
    case ATA_CMD_READ_FPDMA_QUEUED:
    case ATA_CMD_WRITE_FPDMA_QUEUED:
    case ATA_CMD_WRITE_MULTIPLE_FUA_EXT:
    case ATA_CMD_FLUSH_CACHE_EXT:
        return true;
    }
    return false;
}

void ata_signature(const struct ata_device *d, struct ata_taskfile *tf)
{
    *tf = (struct ata_taskfile){.count = 1, .lba = 0x000001, .error = 0x01};
    if (d->kind == ATA_DISK) {
        tf->status = ATA_SR_DRDY | ATA_SR_DSC;
    } else if (d->kind == ATA_CDROM) {
        tf->lba = 0xeb1401;
        tf->status = 0; /* not ready until the first command */
    } else {
        tf->lba = 0xffffff;
        tf->status = 0x7f;
    }
}

/* -- The end of a command ---------------------------------------------------------------------- */

static void complete(struct ata_command *cmd)
{
    struct ata_device *d = cmd->dev;

    cmd->busy = false;
    d->adapter->complete(d->adapter_opaque, cmd);
}

void ata_succeed(struct ata_command *cmd)
{
    cmd->tf.status = ATA_SR_DRDY | (cmd->dev->kind == ATA_DISK ? ATA_SR_DSC : 0);
    cmd->tf.error = 0;
    complete(cmd);
}

void ata_fail(struct ata_command *cmd, uint8_t error)
{
    cmd->tf.status = ATA_SR_DRDY | ATA_SR_ERR | (cmd->dev->kind == ATA_DISK ? ATA_SR_DSC : 0);
    cmd->tf.error = error;
    if (cmd->queued) {
        cmd->dev->ncq_failed = true;
        cmd->dev->ncq_error = cmd->tf;
        cmd->dev->ncq_error_tag = cmd->tag;
    }
    complete(cmd);
}

void ata_abort(struct ata_command *cmd)
{
    if (!cmd->busy || cmd->aborted)
        return;
    cmd->aborted = true;
    if (!cmd->io_pending)
        complete(cmd);
}

void ata_submit(struct ata_device *d, struct ata_command *cmd)
{
    uint8_t code = cmd->tf.command;

    cmd->dev = d;
    cmd->busy = true;
    cmd->aborted = cmd->io_pending = false;
    cmd->dma = cmd->queued = cmd->discard_data = cmd->fua = cmd->write = false;
    cmd->buf_len = cmd->step = cmd->range = 0;
    cmd->total = cmd->lba = cmd->sectors = 0;
    cmd->drq_bytes = ATA_SECTOR;
    cmd->data_done = NULL;
    cmd->tf.error = 0;
    if (!ata_is_ext(code)) {
        cmd->tf.lba &= 0xffffff;
        cmd->tf.count &= 0xff;
        cmd->tf.feature &= 0xff;
    }
    if (d->kind == ATA_DISK)
        ata_disk_command(cmd);
    else
        ata_packet_device_command(cmd);
}

void ata_command_destroy(struct ata_command *cmd)
{
    free(cmd->buf);
    cmd->buf = NULL;
}

/* -- Data -------------------------------------------------------------------------------------- */

bool ata_buffer(struct ata_command *cmd)
{
    if (!cmd->buf)
        cmd->buf = malloc(ATA_CHUNK);
    if (!cmd->buf)
        ata_fail(cmd, ATA_ER_ABRT);
    return cmd->buf;
}

void ata_data_done(struct ata_command *cmd)
{
    if (cmd->busy && !cmd->aborted && cmd->data_done)
        cmd->data_done(cmd);
}

void ata_reply(struct ata_command *cmd, uint32_t len)
{
    cmd->phase = ATA_PHASE_IN;
    cmd->buf_len = len;
    cmd->total = len;
    cmd->data_done = ata_succeed;
    cmd->dev->adapter->data(cmd->dev->adapter_opaque, cmd);
}

void ata_receive(struct ata_command *cmd, uint32_t len, void (*then)(struct ata_command *cmd))
{
    if (!ata_buffer(cmd))
        return;
    cmd->phase = ATA_PHASE_OUT;
    cmd->buf_len = len;
    cmd->total = len;
    cmd->data_done = then;
    cmd->dev->adapter->data(cmd->dev->adapter_opaque, cmd);
}

/* -- Block requests -----------------------------------------------------------------------------
 */

static void request_done(struct block_request *r)
{
    struct ata_command *cmd = r->opaque;

    cmd->io_pending = false;
    if (cmd->aborted)
        complete(cmd);
    else
        cmd->io_done(cmd, r->result);
}

static void submit(struct ata_command *cmd, enum block_op op, uint64_t sector, uint64_t sectors,
                   void (*done)(struct ata_command *cmd, int err))
{
    cmd->iov = (struct iovec){.iov_base = cmd->buf, .iov_len = sectors * ATA_SECTOR};
    cmd->req = (struct block_request){
        .op = op,
        .offset = sector * ATA_SECTOR,
        .len = sectors * ATA_SECTOR,
        .iov = &cmd->iov,
        .iovcnt = 1,
        .done = request_done,
        .opaque = cmd,
    };
    cmd->io_done = done;
    cmd->io_pending = true;
    block_submit(cmd->dev->block, &cmd->req);
}

void ata_block_io(struct ata_command *cmd, bool write, uint64_t sector, uint32_t sectors,
                  void (*done)(struct ata_command *cmd, int err))
{
    submit(cmd, write ? BLOCK_WRITE : BLOCK_READ, sector, sectors, done);
}

void ata_block_flush(struct ata_command *cmd, void (*done)(struct ata_command *cmd, int err))
{
    submit(cmd, BLOCK_FLUSH, 0, 0, done);
}

void ata_block_discard(struct ata_command *cmd, uint64_t sector, uint64_t sectors,
                       void (*done)(struct ata_command *cmd, int err))
{
    submit(cmd, BLOCK_DISCARD, sector, sectors, done);
}
