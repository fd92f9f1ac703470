/*
 * The block layer: drives that disk controllers are attached to, media (disk images) in them, and
 * asynchronous requests from the one to the other.
 *
 *     controller --block_submit()--> drive --> block queue: io_uring or worker threads
 *         ^                                         |  image format (raw, qcow2, overlay)
 *         +------------- request->done() <----------+
 *
 * A controller owns its requests and their buffers until done() is called, from the machine's
 * event loop with the machine lock held.  Requests run at the same time and end in any order;
 * a flush makes durable what had ended before it was submitted.  There is no cancelling:
 * block_drain() waits.
 *
 * All functions are called with the machine lock held, or before the machine runs.
 */
#ifndef RINGSHIFT_DEVICES_BLOCK_H
#define RINGSHIFT_DEVICES_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define BLOCK_SECTOR 512u

struct block_device;
struct block_image;
struct block_queue;

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,        /* fdatasync, in effect */
    BLOCK_DISCARD,      /* the contents are not needed any more: a hint */
    BLOCK_WRITE_ZEROES, /* reads as zeros afterwards */
    BLOCK_OPS
};

struct block_request {
    enum block_op op;
    bool unmap;           /* WRITE_ZEROES: space may be given back */
    uint64_t offset, len; /* bytes, multiples of BLOCK_SECTOR; not for FLUSH */
    /* READ and WRITE: the buffers, of len bytes together; they and the array stay until done(). */
    const struct iovec *iov;
    unsigned iovcnt;
    /* Called once, never from within block_submit().  It may submit again or free the request. */
    void (*done)(struct block_request *r);
    void *opaque;
    int result; /* in done(): 0 or negative errno */

    /* The block layer's own: */
    struct block_device *dev;
    struct block_image *image;
    struct block_request *next;
};

struct block_geometry {
    uint32_t cylinders, heads, sectors; /* per track */
};

/* A drive.  Controllers read the fields; only the functions below change them, except where
 * marked. */
struct block_device {
    char name[16];             /* "disk0", "cdrom0", "floppy0": for messages and the monitor */
    bool removable;            /* the medium can be changed */
    bool read_only;            /* the medium cannot be written */
    uint64_t size;             /* bytes, a multiple of BLOCK_SECTOR; 0 without a medium */
    struct block_image *image; /* the medium, or NULL */
    struct block_queue *queue;
    unsigned inflight;

    /* The controller's, to set when it attaches: */
    bool locked; /* the guest forbids ejecting */
    /* The medium went (present = false) or came.  May be NULL. */
    void (*media_changed)(void *opaque, bool present);
    /* Somebody wants the medium out while it is locked.  May be NULL. */
    void (*eject_requested)(void *opaque);
    void *media_opaque;

    uint64_t ops[BLOCK_OPS], bytes[BLOCK_OPS], errors; /* statistics of ended requests */
};

/* -- Images ------------------------------------------------------------------------------------ */

enum block_format_id {
    BLOCK_FORMAT_AUTO, /* qcow2 if the file begins like one, else raw */
    BLOCK_FORMAT_RAW,
    BLOCK_FORMAT_QCOW2,
};

struct block_open_options {
    const char *path; /* a regular file or a block device */
    enum block_format_id format;
    bool read_only;
    bool snapshot;   /* writes go to an unnamed temporary file; the image is opened read-only */
    bool no_backing; /* refuse images that refer to another file */
    /* Raw images: how large the disk is that a file of this many bytes holds, no less than that
     * (NULL: whole sectors).  What the file lacks reads as zeros, and comes into being when it is
     * written. */
    uint64_t (*fit)(uint64_t bytes);
};

/*
 * Opens an image and locks it as QEMU does: one writer, or any number of readers.  Changes nothing
 * in the file.  0 and *out, or a negative errno with one sentence in err.
 */
int block_image_open(struct block_image **out, const struct block_open_options *o, char *err,
                     size_t errlen);
/* Makes everything durable and closes; NULL is no image.  0, or the negative errno of what could
 * not be written: the image is closed all the same. */
int block_image_close(struct block_image *image);
/* "raw", "qcow2". */
const char *block_image_format(const struct block_image *image);

/* -- The queue that runs requests -------------------------------------------------------------- */

enum { BLOCK_QUEUE_NO_URING = 1 }; /* flags: worker threads only */

/* One serves all drives of a machine.  Threads start when they are needed.  0 or negative errno. */
int block_queue_create(struct block_queue **out, unsigned flags);
/* Waits for all requests; their done() functions are called. */
void block_queue_destroy(struct block_queue *q);
/* Readable whenever block_queue_poll() has something to do: for the event loop. */
int block_queue_fd(const struct block_queue *q);
/* Calls done() of all requests that have ended. */
void block_queue_poll(struct block_queue *q);
/* The same at once for requests that had ended when they were submitted, as those to cached parts
 * of raw images do: called after a vCPU's access to a device, it saves the way through the event
 * loop.  Cheap if there are none. */
void block_queue_reap(struct block_queue *q);
/* Whether requests to raw images go through io_uring. */
bool block_queue_has_uring(const struct block_queue *q);

/* -- Drives ------------------------------------------------------------------------------------ */

/* name is cut to 15 characters.  0 or -ENOMEM. */
int block_device_create(struct block_device **out, struct block_queue *q, const char *name,
                        bool removable);
/* Waits for its requests and closes the medium; the result is block_image_close()'s. */
int block_device_destroy(struct block_device *d);

/* Puts a medium (NULL: none) into the drive, which owns it from then on, after the requests to the
 * old one have ended; the controller is told.  The result is that of closing the old one. */
int block_device_set_medium(struct block_device *d, struct block_image *image);

/* The CHS geometry that BIOSes expect of a hard disk of this size: 16 heads of 63 sectors, at most
 * 16383 cylinders (ATA/ATAPI-6, annex A). */
struct block_geometry block_device_geometry(const struct block_device *d);

/* -- Requests ---------------------------------------------------------------------------------- */

/* Starts a request.  What is wrong with it (no medium: -ENOMEDIUM, a write to a read-only medium:
 * -EROFS, a range outside the medium or unaligned: -EINVAL) is reported through done(). */
void block_submit(struct block_device *d, struct block_request *r);

/* Waits until no request of the drive is under way; their done() functions are called meanwhile. */
void block_drain(struct block_device *d);

/* Synchronous transfers, for tests and set-up code: they block the caller.  0 or negative errno,
 * as above. */
int block_read(struct block_device *d, uint64_t offset, void *buf, uint64_t len);
int block_write(struct block_device *d, uint64_t offset, const void *buf, uint64_t len);
int block_flush(struct block_device *d);

#endif
