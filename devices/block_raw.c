/* Raw images: files and block devices whose bytes are the disk's. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "devices/block_image.h"

static int raw_read(struct block_image *i, uint64_t offset, uint64_t len, struct block_iov *to)
{
    return block_file_readv(i->direct_fd, offset, len, to);
}

static int raw_write(struct block_image *i, uint64_t offset, uint64_t len, struct block_iov *from)
{
    return block_file_writev(i->direct_fd, offset, len, from);
}

static int raw_flush(struct block_image *i)
{
    return fdatasync(i->direct_fd) ? -errno : 0;
}

static int raw_discard(struct block_image *i, uint64_t offset, uint64_t len)
{
    return block_file_discard(i->direct_fd, offset, len);
}

static int raw_write_zeroes(struct block_image *i, uint64_t offset, uint64_t len, bool unmap)
{
    return block_file_zero(i->direct_fd, offset, len, unmap);
}

static int raw_close(struct block_image *i)
{
    int err = close(i->direct_fd) ? -errno : 0;

    free(i);
    return err;
}

static const struct block_format raw_format = {
    .name = "raw",
    .read = raw_read,
    .write = raw_write,
    .flush = raw_flush,
    .discard = raw_discard,
    .write_zeroes = raw_write_zeroes,
    .close = raw_close,
};

int block_raw_open(struct block_image **out, const struct block_file *file, bool read_only,
                   uint64_t (*fit)(uint64_t bytes))
{
    struct block_image *i = file->size ? malloc(sizeof(*i)) : NULL;
    uint64_t size = fit ? fit(file->size) : file->size;

    if (!i) {
        close(file->fd);
        return file->size ? -ENOMEM : -EINVAL;
    }
    /* A last sector that the file ends in is whole to the guest: its rest reads as zeros, and
     * comes into being when it is written. */
    *i = (struct block_image){.format = &raw_format,
                              .size = (size + BLOCK_SECTOR - 1) & ~(BLOCK_SECTOR - 1ull),
                              .read_only = read_only,
                              .direct_fd = file->fd};
    *out = i;
    return 0;
}
