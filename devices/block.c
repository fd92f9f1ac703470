/* Drives and their requests: see block.h. */
#include "devices/block.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "devices/block_image.h"
#include "devices/block_queue.h"

int block_device_create(struct block_device **out, struct block_queue *q, const char *name,
                        bool removable)
{
    struct block_device *d = calloc(1, sizeof(*d));

    if (!d)
        return -ENOMEM;
    snprintf(d->name, sizeof(d->name), "%s", name);
    d->queue = q;
    d->removable = removable;
    *out = d;
    return 0;
}

int block_device_destroy(struct block_device *d)
{
    int err;

    d->media_changed = NULL;
    err = block_device_set_medium(d, NULL);
    free(d);
    return err;
}

int block_device_set_medium(struct block_device *d, struct block_image *image)
{
    struct block_image *old;
    int err;

    block_drain(d);
    old = d->image;
    d->image = NULL;
    d->size = 0;
    err = block_image_close(old);
    if (old && d->media_changed)
        d->media_changed(d->media_opaque, false);
    if (image) {
        d->image = image;
        d->size = image->size;
        d->read_only = image->read_only;
        if (d->media_changed)
            d->media_changed(d->media_opaque, true);
    }
    return err;
}

struct block_geometry block_device_geometry(const struct block_device *d)
{
    uint64_t cylinders = d->size / BLOCK_SECTOR / (16 * 63);

    return (struct block_geometry){
        .cylinders = cylinders > 16383 ? 16383
                     : cylinders < 1   ? 1
                                       : (uint32_t)cylinders,
        .heads = 16,
        .sectors = 63,
    };
}

static bool range_fits(const struct block_device *d, const struct block_request *r)
{
    if (r->op == BLOCK_FLUSH)
        return true;
    return r->offset % BLOCK_SECTOR == 0 && r->len % BLOCK_SECTOR == 0 && r->len <= d->size &&
           r->offset <= d->size - r->len;
}

static bool buffers_fit(const struct block_request *r)
{
    uint64_t len = 0;

    if (r->op != BLOCK_READ && r->op != BLOCK_WRITE)
        return true;
    for (unsigned i = 0; i < r->iovcnt; i++)
        len += r->iov[i].iov_len;
    return len == r->len;
}

static int check(const struct block_device *d, const struct block_request *r)
{
    if (!d->image)
        return -ENOMEDIUM;
    if (!range_fits(d, r) || !buffers_fit(r))
        return -EINVAL;
    if (d->image->read_only && r->op != BLOCK_READ && r->op != BLOCK_FLUSH)
        return -EROFS;
    return 0;
}

void block_submit(struct block_device *d, struct block_request *r)
{
    int err = check(d, r);

    r->dev = d;
    r->image = d->image;
    d->inflight++;
    if (err || (r->len == 0 && r->op != BLOCK_FLUSH))
        block_queue_finish(d->queue, r, err);
    else
        block_queue_start(d->queue, r);
}

void block_request_ended(struct block_request *r)
{
    struct block_device *d = r->dev;

    d->inflight--;
    d->ops[r->op]++;
    if (r->result)
        d->errors++;
    else if (r->op != BLOCK_FLUSH)
        d->bytes[r->op] += r->len;
    r->done(r);
}

void block_drain(struct block_device *d)
{
    for (;;) {
        block_queue_poll(d->queue);
        if (!d->inflight)
            break;
        block_queue_wait(d->queue);
    }
}

static int run_now(struct block_device *d, enum block_op op, uint64_t offset, void *buf,
                   uint64_t len)
{
    struct iovec iov = {buf, len};
    struct block_request r = {
        .op = op, .offset = offset, .len = len, .iov = &iov, .iovcnt = 1, .image = d->image};
    int err = check(d, &r);

    return err ? err : block_image_run(&r);
}

int block_read(struct block_device *d, uint64_t offset, void *buf, uint64_t len)
{
    return run_now(d, BLOCK_READ, offset, buf, len);
}

int block_write(struct block_device *d, uint64_t offset, const void *buf, uint64_t len)
{
    return run_now(d, BLOCK_WRITE, offset, (void *)buf, len);
}

int block_flush(struct block_device *d)
{
    return run_now(d, BLOCK_FLUSH, 0, NULL, 0);
}
