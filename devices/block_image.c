/*
 * Image files: opening, probing, locking, and transfers that are complete or fail.
 *
 * Locks are those of QEMU's file driver, so that its tools and Ringshift exclude each other: open
 * file description locks on single bytes, one per permission, all of them shared.  A byte at
 * LOCK_HELD + p says "I use permission p", one at LOCK_UNSHARED + p "nobody else may".  Whoever
 * comes first has locked; whoever comes later asks whether an exclusive lock on the opposite byte
 * would be refused.
 */
#include "devices/block_image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_HELD     100
#define LOCK_UNSHARED 200

enum { PERM_CONSISTENT_READ = 1 << 0, PERM_WRITE = 1 << 1, PERM_RESIZE = 1 << 3, PERM_BITS = 4 };

#define MAX_SEGMENTS 64
#define ZERO_CHUNK   (64u << 10)

int block_error(char *err, size_t errlen, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    if (errlen)
        vsnprintf(err, errlen, format, ap);
    va_end(ap);
    return code;
}

/* -- Buffers ----------------------------------------------------------------------------------- */

/* The next piece, at most len bytes; NULL at the end of the buffers. */
static uint8_t *iov_next(struct block_iov *c, uint64_t len, size_t *n)
{
    uint8_t *p;

    while (c->count && c->iov->iov_len == c->skip) {
        c->iov++;
        c->count--;
        c->skip = 0;
    }
    if (!c->count || !len)
        return NULL;
    p = (uint8_t *)c->iov->iov_base + c->skip;
    *n = c->iov->iov_len - c->skip;
    if (*n > len)
        *n = len;
    c->skip += *n;
    return p;
}

void block_iov_zero(struct block_iov *to, uint64_t len)
{
    uint8_t *p;
    size_t n;

    for (; (p = iov_next(to, len, &n)); len -= n)
        memset(p, 0, n);
}

void block_iov_put(struct block_iov *to, const void *from, uint64_t len)
{
    const uint8_t *at = from;
    uint8_t *p;
    size_t n;

    for (; (p = iov_next(to, len, &n)); len -= n, at += n)
        memcpy(p, at, n);
}

void block_iov_get(struct block_iov *from, void *to, uint64_t len)
{
    uint8_t *at = to, *p;
    size_t n;

    for (; (p = iov_next(from, len, &n)); len -= n, at += n)
        memcpy(at, p, n);
}

/* Fills segment[] from the cursor, which stays where it is.  Returns how many. */
static int segments(const struct block_iov *c, uint64_t len, struct iovec *segment)
{
    struct block_iov at = *c;
    int count = 0;
    size_t n;

    while (count < MAX_SEGMENTS) {
        uint8_t *p = iov_next(&at, len, &n);

        if (!p)
            break;
        segment[count++] = (struct iovec){p, n};
        len -= n;
    }
    return count;
}

static void iov_advance(struct block_iov *c, uint64_t len)
{
    size_t n;

    while (iov_next(c, len, &n))
        len -= n;
}

/* -- Transfers --------------------------------------------------------------------------------- */

int block_file_readv(int fd, uint64_t offset, uint64_t len, struct block_iov *to)
{
    struct iovec segment[MAX_SEGMENTS];

    while (len) {
        int count = segments(to, len, segment);
        ssize_t n = count ? preadv(fd, segment, count, (off_t)offset) : 0;

        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0) {
            block_iov_zero(to, len);
            return 0;
        }
        iov_advance(to, (uint64_t)n);
        offset += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

int block_file_writev(int fd, uint64_t offset, uint64_t len, struct block_iov *from)
{
    struct iovec segment[MAX_SEGMENTS];

    while (len) {
        int count = segments(from, len, segment);
        ssize_t n = count ? pwritev(fd, segment, count, (off_t)offset) : 0;

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        iov_advance(from, (uint64_t)n);
        offset += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

int block_file_read(int fd, uint64_t offset, void *buf, uint64_t len)
{
    struct iovec one = {buf, len};
    struct block_iov to = {&one, 1, 0};

    return block_file_readv(fd, offset, len, &to);
}

int block_file_write(int fd, uint64_t offset, const void *buf, uint64_t len)
{
    struct iovec one = {(void *)buf, len};
    struct block_iov from = {&one, 1, 0};

    return block_file_writev(fd, offset, len, &from);
}

int block_file_zero(int fd, uint64_t offset, uint64_t len, bool unmap)
{
    int mode = unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    uint8_t *zeros;
    int err = 0;

    /* Not beyond the end of a file: it is not to be extended by an allocation. */
    if (!fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len))
        return 0;
    zeros = calloc(1, ZERO_CHUNK);
    if (!zeros)
        return -ENOMEM;
    while (len && !err) {
        uint64_t n = len < ZERO_CHUNK ? len : ZERO_CHUNK;

        err = block_file_write(fd, offset, zeros, n);
        offset += n;
        len -= n;
    }
    free(zeros);
    return err;
}

int block_file_discard(int fd, uint64_t offset, uint64_t len)
{
    if (!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len))
        return 0;
    return errno == EIO || errno == ENOSPC ? -errno : 0;
}

int block_image_run(const struct block_request *r)
{
    const struct block_format *f = r->image->format;
    struct block_iov iov = {r->iov, r->iovcnt, 0};

    switch (r->op) {
    case BLOCK_READ:
        return f->read(r->image, r->offset, r->len, &iov);
    case BLOCK_WRITE:
        return f->write(r->image, r->offset, r->len, &iov);
    case BLOCK_FLUSH:
        return r->image->read_only ? 0 : f->flush(r->image);
    case BLOCK_DISCARD:
        return f->discard(r->image, r->offset, r->len);
    case BLOCK_WRITE_ZEROES:
        return f->write_zeroes(r->image, r->offset, r->len, r->unmap);
    case BLOCK_OPS:
        break;
    }
    return -EINVAL;
}

/* -- Locks ------------------------------------------------------------------------------------- */

static int lock_byte(int fd, int command, short type, off_t byte, short *found)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(fd, command, &fl))
        return -errno;
    *found = fl.l_type;
    return 0;
}

/* 0, -EBUSY if another use forbids this one, or another negative errno. */
static int lock_image(int fd, bool read_only)
{
    unsigned held = PERM_CONSISTENT_READ | (read_only ? 0 : PERM_WRITE | PERM_RESIZE);
    unsigned unshared = PERM_WRITE | PERM_RESIZE;
    short found = F_UNLCK;
    int err;

    for (unsigned p = 0; p < PERM_BITS; p++) {
        err = held >> p & 1 ? lock_byte(fd, F_OFD_SETLK, F_RDLCK, LOCK_HELD + p, &found) : 0;
        if (!err && unshared >> p & 1)
            err = lock_byte(fd, F_OFD_SETLK, F_RDLCK, LOCK_UNSHARED + p, &found);
        if (err) /* some file systems have no locks */
            return err == -EAGAIN || err == -EACCES ? -EBUSY : 0;
    }
    for (unsigned p = 0; p < PERM_BITS; p++) {
        if (held >> p & 1 && !lock_byte(fd, F_OFD_GETLK, F_WRLCK, LOCK_UNSHARED + p, &found) &&
            found != F_UNLCK)
            return -EBUSY;
        if (unshared >> p & 1 && !lock_byte(fd, F_OFD_GETLK, F_WRLCK, LOCK_HELD + p, &found) &&
            found != F_UNLCK)
            return -EBUSY;
    }
    return 0;
}

/* -- Opening ----------------------------------------------------------------------------------- */

static bool in_chain(const struct block_chain *c, const struct block_file *f)
{
    for (; c; c = c->up)
        if (c->dev == f->dev && c->ino == f->ino)
            return true;
    return false;
}

static int open_file(struct block_file *f, const char *path, bool read_only,
                     const struct block_chain *chain, char *err, size_t errlen)
{
    struct stat st;
    off_t end;
    int code;

    /* Not blocking: a FIFO would wait for its other end. */
    f->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0)
        return block_error(err, errlen, -errno, "cannot open the disk image '%s'%s: %s", path,
                           read_only ? "" : " for writing", strerror(errno));
    if (fstat(f->fd, &st)) {
        code = -errno;
        goto fail;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        close(f->fd);
        return block_error(err, errlen, -EINVAL,
                           "'%s' cannot be a disk: it is neither a regular file nor a block device",
                           path);
    }
    fcntl(f->fd, F_SETFL, 0);
    end = lseek(f->fd, 0, SEEK_END);
    if (end < 0) {
        code = -errno;
        goto fail;
    }
    f->size = (uint64_t)end;
    f->dev = S_ISBLK(st.st_mode) ? UINT64_MAX : st.st_dev;
    f->ino = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_ino;
    if (in_chain(chain, f)) {
        close(f->fd);
        return block_error(err, errlen, -ELOOP, "the disk image '%s' is its own backing file",
                           path);
    }
    code = lock_image(f->fd, read_only);
    if (code == -EBUSY) {
        close(f->fd);
        return block_error(err, errlen, code,
                           "the disk image '%s' is in use by another drive or process%s", path,
                           read_only ? " that writes to it" : "; two writers would destroy it");
    }
    if (!code)
        return 0;
fail:
    close(f->fd);
    return block_error(err, errlen, code, "cannot use the disk image '%s': %s", path,
                       strerror(-code));
}

int block_image_open_chain(struct block_image **out, const struct block_open_options *o,
                           const struct block_chain *up, char *err, size_t errlen)
{
    static const uint8_t qcow2_magic[4] = {'Q', 'F', 'I', 0xfb};
    struct block_chain here = {.up = up, .depth = up ? up->depth + 1 : 1};
    enum block_format_id format = o->format;
    struct block_file f;
    uint8_t magic[4];
    int code;

    if (here.depth > BLOCK_MAX_CHAIN)
        return block_error(err, errlen, -ELOOP,
                           "the chain of backing files is longer than %d images at '%s'",
                           BLOCK_MAX_CHAIN, o->path);
    code = open_file(&f, o->path, o->read_only || o->snapshot, up, err, errlen);
    if (code)
        return code;
    here.dev = f.dev;
    here.ino = f.ino;
    if (format == BLOCK_FORMAT_AUTO) {
        format = BLOCK_FORMAT_RAW;
        if (f.size >= sizeof(magic) && !block_file_read(f.fd, 0, magic, sizeof(magic)) &&
            !memcmp(magic, qcow2_magic, sizeof(magic)))
            format = BLOCK_FORMAT_QCOW2;
    }
    if (format == BLOCK_FORMAT_QCOW2)
        return block_qcow2_open(out, &f, o, &here, err, errlen);
    code = block_raw_open(out, &f, o->read_only || o->snapshot, o->fit);
    if (code)
        return block_error(err, errlen, code, "cannot use the disk image '%s': %s", o->path,
                           code == -EINVAL ? "it is empty" : strerror(-code));
    return 0;
}

int block_image_open(struct block_image **out, const struct block_open_options *o, char *err,
                     size_t errlen)
{
    struct block_image *image;
    int code = block_image_open_chain(&image, o, NULL, err, errlen);

    if (!code && o->snapshot && !o->read_only)
        code = block_overlay_open(&image, image, err, errlen);
    if (!code)
        *out = image;
    return code;
}

int block_image_close(struct block_image *image)
{
    int flushed, closed;

    if (!image)
        return 0;
    flushed = image->read_only ? 0 : image->format->flush(image);
    closed = image->format->close(image);
    return flushed ? flushed : closed;
}

const char *block_image_format(const struct block_image *image)
{
    return image->format->name;
}
