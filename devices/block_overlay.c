/*
 * Throw-away writes (--snapshot): an image that is never written, under an unnamed temporary file
 * that holds what the guest wrote, at the same offsets, in blocks of 4 KiB.  Which blocks those are
 * is only known in memory; nothing outlives the process.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/block_image.h"

#define BLOCK       4096u
#define LEAF_BLOCKS (8u * 4096) /* one leaf of the map tells of 128 MiB */

struct overlay {
    struct block_image image;
    struct block_image *base;
    int fd;
    pthread_mutex_t lock; /* the map; a write that copies holds it until the block is complete */
    uint8_t **leaf;       /* bit set: the block is in the file */
    uint64_t leaves;
};

static bool present(const struct overlay *o, uint64_t block)
{
    const uint8_t *leaf = o->leaf[block / LEAF_BLOCKS];
    unsigned bit = block % LEAF_BLOCKS;

    return leaf && leaf[bit / 8] >> bit % 8 & 1;
}

static int mark(struct overlay *o, uint64_t block)
{
    uint8_t **leaf = &o->leaf[block / LEAF_BLOCKS];
    unsigned bit = block % LEAF_BLOCKS;

    if (!*leaf)
        *leaf = calloc(1, LEAF_BLOCKS / 8);
    if (!*leaf)
        return -ENOMEM;
    (*leaf)[bit / 8] |= (uint8_t)(1u << bit % 8);
    return 0;
}

static uint64_t min64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* How many of the len bytes at offset lie in blocks of the same kind as the first. */
static uint64_t run(const struct overlay *o, uint64_t offset, uint64_t len, bool *in_file)
{
    uint64_t block = offset / BLOCK, end = offset;

    *in_file = present(o, block);
    do
        end = (++block) * BLOCK;
    while (end < offset + len && present(o, block) == *in_file);
    return min64(end, offset + len) - offset;
}

static int overlay_read(struct block_image *i, uint64_t offset, uint64_t len, struct block_iov *to)
{
    struct overlay *o = (struct overlay *)i;
    int err = 0;

    while (len && !err) {
        bool in_file;
        uint64_t n;

        pthread_mutex_lock(&o->lock);
        n = run(o, offset, len, &in_file);
        pthread_mutex_unlock(&o->lock);
        err = in_file ? block_file_readv(o->fd, offset, n, to)
                      : o->base->format->read(o->base, offset, n, to);
        offset += n;
        len -= n;
    }
    return err;
}

/* Copies the block that a write will cover only in part.  Lock held. */
static int fill_block(struct overlay *o, uint64_t block)
{
    uint64_t at = block * BLOCK, n = min64(BLOCK, o->image.size - at);
    uint8_t buf[BLOCK];
    struct iovec one = {buf, n};
    struct block_iov iov = {&one, 1, 0};
    int err;

    if (present(o, block))
        return 0;
    err = o->base->format->read(o->base, at, n, &iov);
    err = err ? err : block_file_write(o->fd, at, buf, n);
    return err ? err : mark(o, block);
}

/* Makes the blocks of the range ready: copies the partial ones. */
static int prepare(struct overlay *o, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len;
    int err = 0;

    if (offset % BLOCK)
        err = fill_block(o, offset / BLOCK);
    if (!err && end % BLOCK && end != o->image.size)
        err = fill_block(o, end / BLOCK);
    return err;
}

static int overlay_write(struct block_image *i, uint64_t offset, uint64_t len,
                         struct block_iov *from)
{
    struct overlay *o = (struct overlay *)i;
    int err;

    pthread_mutex_lock(&o->lock);
    err = prepare(o, offset, len);
    err = err ? err : block_file_writev(o->fd, offset, len, from);
    for (uint64_t b = offset / BLOCK; b * BLOCK < offset + len && !err; b++)
        err = mark(o, b);
    pthread_mutex_unlock(&o->lock);
    return err;
}

static int overlay_write_zeroes(struct block_image *i, uint64_t offset, uint64_t len, bool unmap)
{
    struct overlay *o = (struct overlay *)i;
    int err;

    (void)unmap;
    pthread_mutex_lock(&o->lock);
    err = prepare(o, offset, len);
    err = err ? err : block_file_zero(o->fd, offset, len, true);
    for (uint64_t b = offset / BLOCK; b * BLOCK < offset + len && !err; b++)
        err = mark(o, b);
    pthread_mutex_unlock(&o->lock);
    return err;
}

static int overlay_discard(struct block_image *i, uint64_t offset, uint64_t len)
{
    return overlay_write_zeroes(i, offset, len, true);
}

static int overlay_flush(struct block_image *i)
{
    (void)i; /* it is to be lost anyway */
    return 0;
}

static int overlay_close(struct block_image *i)
{
    struct overlay *o = (struct overlay *)i;
    int err = block_image_close(o->base);

    for (uint64_t n = 0; n < o->leaves; n++)
        free(o->leaf[n]);
    free(o->leaf);
    close(o->fd);
    pthread_mutex_destroy(&o->lock);
    free(o);
    return err;
}

static const struct block_format overlay_format = {
    .name = "snapshot",
    .read = overlay_read,
    .write = overlay_write,
    .flush = overlay_flush,
    .discard = overlay_discard,
    .write_zeroes = overlay_write_zeroes,
    .close = overlay_close,
};

static int temporary_file(const char *dir)
{
    char name[4096];
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
        return fd;
    /* The file system has no unnamed files: one whose name goes at once. */
    snprintf(name, sizeof(name), "%s/ringshift-XXXXXX", dir);
    fd = mkostemp(name, O_CLOEXEC);
    if (fd >= 0)
        unlink(name);
    return fd;
}

int block_overlay_open(struct block_image **out, struct block_image *base, char *err, size_t errlen)
{
    const char *dir = getenv("TMPDIR");
    struct overlay *o = calloc(1, sizeof(*o));
    int code;

    if (!dir || !*dir)
        dir = "/var/tmp";
    if (!o) {
        block_image_close(base);
        return block_error(err, errlen, -ENOMEM, "cannot set up the snapshot: out of memory");
    }
    o->base = base;
    o->leaves = base->size / ((uint64_t)LEAF_BLOCKS * BLOCK) + 1;
    o->leaf = calloc(o->leaves, sizeof(*o->leaf));
    o->fd = o->leaf ? temporary_file(dir) : -1;
    pthread_mutex_init(&o->lock, NULL);
    if (o->fd < 0) {
        code = o->leaf ? -errno : -ENOMEM;
        overlay_close(&o->image);
        return block_error(err, errlen, code,
                           "cannot create a temporary file for the snapshot in '%s' (see TMPDIR): "
                           "%s",
                           dir, strerror(-code));
    }
    o->image = (struct block_image){
        .format = &overlay_format, .size = base->size, .read_only = false, .direct_fd = -1};
    *out = &o->image;
    return 0;
}
