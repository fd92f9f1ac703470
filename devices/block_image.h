/*
 * Inside the block layer: image formats.  A format's functions are synchronous and run on any
 * thread, several at a time: a format that keeps state locks it itself.
 */
#ifndef RINGSHIFT_DEVICES_BLOCK_IMAGE_H
#define RINGSHIFT_DEVICES_BLOCK_IMAGE_H

#include "devices/block.h"

/* A position in an array of buffers. */
struct block_iov {
    const struct iovec *iov;
    unsigned count;
    size_t skip; /* bytes of iov[0] that are done */
};

struct block_image;

/* offset and len lie in the image and are multiples of BLOCK_SECTOR.  0 or negative errno. */
struct block_format {
    const char *name;
    int (*read)(struct block_image *image, uint64_t offset, uint64_t len, struct block_iov *to);
    int (*write)(struct block_image *image, uint64_t offset, uint64_t len, struct block_iov *from);
    int (*flush)(struct block_image *image);
    int (*discard)(struct block_image *image, uint64_t offset, uint64_t len);
    int (*write_zeroes)(struct block_image *image, uint64_t offset, uint64_t len, bool unmap);
    /* Frees the image; writable ones have been flushed. */
    int (*close)(struct block_image *image);
};

/* What every format's own structure begins with. */
struct block_image {
    const struct block_format *format;
    uint64_t size; /* bytes, a multiple of BLOCK_SECTOR */
    bool read_only;
    int direct_fd; /* byte n of the image is byte n of this file; or -1 */
};

/* An open image file. */
struct block_file {
    int fd;
    uint64_t size;
    uint64_t dev, ino; /* which file it is */
};

#define BLOCK_MAX_CHAIN 32 /* images on top of each other */

/* The images that are being opened, from the top: how a chain that loops is recognized. */
struct block_chain {
    const struct block_chain *up;
    uint64_t dev, ino;
    unsigned depth;
};

/* Formats message into err and returns code: `return block_error(...)`. */
int block_error(char *err, size_t errlen, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The formats' open functions own `file` (closed on failure, too). */
int block_raw_open(struct block_image **out, const struct block_file *file, bool read_only,
                   uint64_t (*fit)(uint64_t bytes));
int block_qcow2_open(struct block_image **out, const struct block_file *file,
                     const struct block_open_options *o, const struct block_chain *chain, char *err,
                     size_t errlen);
/* Owns base, which stays as it is. */
int block_overlay_open(struct block_image **out, struct block_image *base, char *err,
                       size_t errlen);

/* block_image_open() below the images of the chain; snapshot is ignored. */
int block_image_open_chain(struct block_image **out, const struct block_open_options *o,
                           const struct block_chain *chain, char *err, size_t errlen);

/* -- Transfers that are complete or fail; a read past the end of the file gives zeros. ----------
 */
int block_file_readv(int fd, uint64_t offset, uint64_t len, struct block_iov *to);
int block_file_writev(int fd, uint64_t offset, uint64_t len, struct block_iov *from);
int block_file_read(int fd, uint64_t offset, void *buf, uint64_t len);
int block_file_write(int fd, uint64_t offset, const void *buf, uint64_t len);
int block_file_zero(int fd, uint64_t offset, uint64_t len, bool unmap);
/* Gives space back; a file system that cannot is no error. */
int block_file_discard(int fd, uint64_t offset, uint64_t len);

/* -- Buffers ----------------------------------------------------------------------------------- */
void block_iov_zero(struct block_iov *to, uint64_t len);
void block_iov_put(struct block_iov *to, const void *from, uint64_t len);
void block_iov_get(struct block_iov *from, void *to, uint64_t len);

/* Runs a request of any kind; 0 or negative errno.  For workers and the synchronous calls. */
int block_image_run(const struct block_request *r);

#endif
