/* The block layer: raw images, drives, the queue with and without io_uring, snapshots, locks. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/block.h"
#include "runtime/drive.h"

#define SIZE (1u << 20)

static char dir[64], path[128], err[600];
static struct block_queue *queue;
static struct block_device *dev;

static void make_file(const char *name, size_t size)
{
    int fd = open(name, O_CREAT | O_TRUNC | O_RDWR, 0600);
    uint8_t *data = malloc(size);

    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i / 512 + i);
    cr_assert_eq(write(fd, data, size), (ssize_t)size);
    close(fd);
    free(data);
}

static void setup_files(void)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-block-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/disk.img", dir);
    make_file(path, SIZE);
}

static void insert(const struct block_open_options *o)
{
    struct block_image *image;

    cr_assert_eq(block_image_open(&image, o, err, sizeof(err)), 0, "%s", err);
    cr_assert_eq(block_device_set_medium(dev, image), 0);
}

static void setup_with(unsigned flags)
{
    setup_files();
    cr_assert_eq(block_queue_create(&queue, flags), 0);
    cr_assert_eq(block_device_create(&dev, queue, "disk0", false), 0);
    insert(&(struct block_open_options){.path = path});
}

static void setup(void)
{
    setup_with(0);
}

static void setup_threads(void)
{
    setup_with(BLOCK_QUEUE_NO_URING);
}

static void teardown(void)
{
    char command[200];

    if (dev)
        cr_expect_eq(block_device_destroy(dev), 0);
    if (queue)
        block_queue_destroy(queue);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_expect_eq(system(command), 0);
}

static unsigned done_count;
static int last_result;

static void done(struct block_request *r)
{
    done_count++;
    last_result = r->result;
}

static int run(enum block_op op, uint64_t offset, uint64_t len, struct iovec *iov, unsigned n)
{
    struct block_request r = {
        .op = op, .offset = offset, .len = len, .iov = iov, .iovcnt = n, .done = done};
    unsigned before = done_count;

    block_submit(dev, &r);
    cr_assert_eq(done_count, before, "never from within block_submit()");
    block_drain(dev);
    cr_assert_eq(done_count, before + 1);
    return last_result;
}

/* What both ways to run requests must do. */
static void exercise(void)
{
    uint8_t a[1024], b[512], back[4096], *original = malloc(SIZE);
    struct iovec scattered[3] = {{a, 512}, {b, 512}, {a + 512, 512}}, whole = {back, 1536};

    cr_assert_eq(block_read(dev, 0, original, SIZE), 0);
    memset(a, 0xaa, sizeof(a));
    memset(b, 0xbb, sizeof(b));
    cr_assert_eq(run(BLOCK_WRITE, 4096, 1536, scattered, 3), 0);
    cr_assert_eq(run(BLOCK_READ, 4096, 1536, &whole, 1), 0);
    cr_assert(back[0] == 0xaa && back[511] == 0xaa && back[512] == 0xbb && back[1535] == 0xaa);
    whole.iov_len = 512;
    cr_assert_eq(run(BLOCK_READ, 4096 + 1536, 512, &whole, 1), 0);
    cr_assert_eq(memcmp(back, original + 4096 + 1536, 512), 0);
    cr_assert_eq(run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);

    cr_assert_eq(run(BLOCK_WRITE_ZEROES, 512, 1024, NULL, 0), 0);
    cr_assert_eq(run(BLOCK_DISCARD, 8192, 8192, NULL, 0), 0);
    cr_assert_eq(block_read(dev, 512, back, 1024), 0);
    for (unsigned i = 0; i < 1024; i++)
        cr_assert_eq(back[i], 0);
    cr_assert_eq(block_read(dev, 0, back, 512), 0);
    cr_assert_eq(memcmp(back, original, 512), 0);

    /* What cannot be. */
    whole.iov_len = 512;
    cr_assert_eq(run(BLOCK_READ, SIZE, 512, &whole, 1), -EINVAL);
    cr_assert_eq(run(BLOCK_READ, UINT64_MAX - 511, 512, &whole, 1), -EINVAL);
    cr_assert_eq(run(BLOCK_READ, 100, 512, &whole, 1), -EINVAL);
    cr_assert_eq(run(BLOCK_READ, 0, 1024, &whole, 1), -EINVAL, "buffers of another length");
    cr_assert_eq(run(BLOCK_DISCARD, 0, UINT64_MAX - 511, NULL, 0), -EINVAL);
    cr_assert_eq(run(BLOCK_READ, 0, 0, NULL, 0), 0);
    free(original);
}

Test(block, raw, .init = setup, .fini = teardown)
{
    if (!block_queue_has_uring(queue))
        fprintf(stderr, "NOTE: io_uring is not available here; this runs on threads\n");
    exercise();
}

Test(block, raw_on_threads, .init = setup_threads, .fini = teardown)
{
    cr_assert_not(block_queue_has_uring(queue));
    exercise();
}

static struct block_request again;
static unsigned chain;

static void done_and_again(struct block_request *r)
{
    cr_assert_eq(r->result, 0);
    done_count++;
    if (--chain)
        block_submit(dev, r);
}

/* Each request is told of once, by whichever of the two looks first. */
Test(block, reaped_or_polled, .init = setup, .fini = teardown)
{
    static uint8_t buf[4096];
    struct iovec iov = {buf, sizeof(buf)};

    cr_assert_eq(block_read(dev, 0, buf, sizeof(buf)), 0); /* now it is cached */
    for (unsigned round = 0; round < 50; round++) {
        again = (struct block_request){
            .op = BLOCK_READ, .len = sizeof(buf), .iov = &iov, .iovcnt = 1, .done = done_and_again};
        done_count = 0;
        chain = 30;
        block_submit(dev, &again);
        cr_assert_eq(done_count, 0, "never from within block_submit()");
        block_queue_reap(queue);
        cr_assert_leq(done_count, 30);
        block_drain(dev);
        block_queue_reap(queue);
        block_queue_poll(queue);
        cr_assert_eq(done_count, 30);
        cr_assert_eq(dev->inflight, 0);
    }
}

static struct many {
    struct block_request r;
    struct iovec iov;
    uint8_t data[512];
} many[600];

static void done_again(struct block_request *r)
{
    struct many *m = r->opaque;

    cr_assert_eq(r->result, 0);
    done_count++;
    if (r->op == BLOCK_WRITE) { /* read back, from within done() */
        memset(m->data, 0, sizeof(m->data));
        r->op = BLOCK_READ;
        block_submit(dev, r);
    }
}

static void flood(void)
{
    for (unsigned i = 0; i < 600; i++) {
        memset(many[i].data, (int)(i * 7 + 1), 512);
        many[i].iov = (struct iovec){many[i].data, 512};
        many[i].r = (struct block_request){.op = BLOCK_WRITE,
                                           .offset = i * 512,
                                           .len = 512,
                                           .iov = &many[i].iov,
                                           .iovcnt = 1,
                                           .done = done_again,
                                           .opaque = &many[i]};
        block_submit(dev, &many[i].r);
    }
    block_drain(dev);
    cr_assert_eq(done_count, 1200);
    for (unsigned i = 0; i < 600; i++)
        cr_assert(many[i].data[0] == (uint8_t)(i * 7 + 1) && many[i].data[511] == many[i].data[0]);
    cr_assert_eq(dev->ops[BLOCK_WRITE], 600);
    cr_assert_eq(dev->bytes[BLOCK_READ], 600 * 512);
}

Test(block, more_requests_than_fit_the_ring, .init = setup, .fini = teardown)
{
    flood();
}

Test(block, more_requests_than_threads, .init = setup_threads, .fini = teardown)
{
    flood();
}

Test(block, a_partial_last_sector_reads_zeros, .init = setup, .fini = teardown)
{
    uint8_t buf[512];
    struct iovec iov = {buf, 512};
    struct stat st;

    block_device_set_medium(dev, NULL);
    cr_assert_eq(truncate(path, 1000), 0);
    insert(&(struct block_open_options){.path = path});
    cr_assert_eq(dev->size, 1024);
    cr_assert_eq(run(BLOCK_READ, 512, 512, &iov, 1), 0);
    cr_assert(buf[487] == (uint8_t)(999 / 512 + 999) && buf[488] == 0 && buf[511] == 0);
    cr_assert_eq(run(BLOCK_WRITE, 512, 512, &iov, 1), 0);
    stat(path, &st);
    cr_assert_eq(st.st_size, 1024);
}

Test(block, read_only_and_no_medium, .init = setup, .fini = teardown)
{
    uint8_t buf[512] = {0};
    struct iovec iov = {buf, 512};

    block_device_set_medium(dev, NULL);
    cr_assert_eq(dev->size, 0);
    cr_assert_eq(run(BLOCK_READ, 0, 512, &iov, 1), -ENOMEDIUM);
    cr_assert_eq(run(BLOCK_FLUSH, 0, 0, NULL, 0), -ENOMEDIUM);
    chmod(path, 0400);
    insert(&(struct block_open_options){.path = path, .read_only = true});
    cr_assert(dev->read_only);
    cr_assert_eq(run(BLOCK_READ, 0, 512, &iov, 1), 0);
    cr_assert_eq(run(BLOCK_WRITE, 0, 512, &iov, 1), -EROFS);
    cr_assert_eq(run(BLOCK_WRITE_ZEROES, 0, 512, NULL, 0), -EROFS);
    cr_assert_eq(run(BLOCK_DISCARD, 0, 512, NULL, 0), -EROFS);
    cr_assert_eq(run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
}

static unsigned changes;
static bool medium_present;

static void media_changed(void *opaque, bool present)
{
    (void)opaque;
    changes++;
    medium_present = present;
}

Test(block, media_change_waits_and_tells, .init = setup, .fini = teardown)
{
    static uint8_t buf[SIZE];
    static struct iovec iov = {buf, SIZE};
    static struct block_request r = {
        .op = BLOCK_READ, .len = SIZE, .iov = &iov, .iovcnt = 1, .done = done};

    dev->media_changed = media_changed;
    block_submit(dev, &r);
    cr_assert_eq(block_device_set_medium(dev, NULL), 0);
    cr_assert_eq(done_count, 1, "the request ended first");
    cr_assert_eq(last_result, 0);
    cr_assert_eq(changes, 1);
    cr_assert_not(medium_present);
    insert(&(struct block_open_options){.path = path});
    cr_assert_eq(changes, 2);
    cr_assert(medium_present);
}

Test(block, snapshot_leaves_the_image_alone, .init = setup, .fini = teardown)
{
    static uint8_t before[SIZE], after[SIZE], model[SIZE], buf[9 * 512];

    block_device_set_medium(dev, NULL);
    chmod(path, 0400);
    insert(&(struct block_open_options){.path = path, .snapshot = true});
    cr_assert_not(dev->read_only);
    cr_assert_eq(block_read(dev, 0, before, SIZE), 0);
    memcpy(model, before, SIZE);
    srand(1);
    for (unsigned i = 0; i < 400; i++) {
        unsigned sectors = 1 + (unsigned)rand() % 9, at = (unsigned)rand() % (SIZE / 512 - 9);

        if (i % 5 == 0) {
            cr_assert_eq(run(BLOCK_WRITE_ZEROES, at * 512, sectors * 512, NULL, 0), 0);
            memset(model + at * 512, 0, sectors * 512);
        } else {
            memset(buf, rand(), sizeof(buf));
            cr_assert_eq(block_write(dev, at * 512, buf, sectors * 512), 0);
            memcpy(model + at * 512, buf, sectors * 512);
        }
    }
    cr_assert_eq(block_read(dev, 0, after, SIZE), 0);
    cr_assert_eq(memcmp(model, after, SIZE), 0);
    block_device_set_medium(dev, NULL);
    insert(&(struct block_open_options){.path = path, .read_only = true});
    cr_assert_eq(block_read(dev, 0, after, SIZE), 0);
    cr_assert_eq(memcmp(before, after, SIZE), 0);
}

Test(block, one_writer_or_many_readers, .init = setup, .fini = teardown)
{
    struct block_open_options rw = {.path = path}, ro = {.path = path, .read_only = true};
    struct block_image *image, *image2;

    cr_assert_eq(block_image_open(&image, &rw, err, sizeof(err)), -EBUSY);
    cr_assert_not_null(strstr(err, "in use"));
    cr_assert_eq(block_image_open(&image, &ro, err, sizeof(err)), -EBUSY);
    block_device_set_medium(dev, NULL);
    cr_assert_eq(block_image_open(&image, &ro, err, sizeof(err)), 0);
    cr_assert_eq(block_image_open(&image2, &ro, err, sizeof(err)), 0);
    block_image_close(image2);
    cr_assert_eq(block_image_open(&image2, &rw, err, sizeof(err)), -EBUSY);
    block_image_close(image);
    cr_assert_eq(block_image_open(&image2, &rw, err, sizeof(err)), 0);
    block_image_close(image2);
}

Test(block, what_cannot_be_opened, .init = setup, .fini = teardown)
{
    struct block_open_options o = {.path = dir};
    char fifo[128], empty[128];
    struct block_image *image;

    cr_assert_lt(block_image_open(&image, &o, err, sizeof(err)), 0);
    o.path = "/nonexistent/disk";
    cr_assert_eq(block_image_open(&image, &o, err, sizeof(err)), -ENOENT);
    cr_assert_not_null(strstr(err, "/nonexistent/disk"));
    snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    o.path = fifo;
    cr_assert_eq(block_image_open(&image, &o, err, sizeof(err)), -EINVAL);
    o.path = "/dev/zero";
    cr_assert_eq(block_image_open(&image, &o, err, sizeof(err)), -EINVAL);
    snprintf(empty, sizeof(empty), "%s/empty", dir);
    make_file(empty, 0);
    o.path = empty;
    cr_assert_eq(block_image_open(&image, &o, err, sizeof(err)), -EINVAL);
}

Test(drive, options)
{
    struct drive_options o;

    cr_assert_eq(drive_parse(&o, DRIVE_DISK, "a.img", err, sizeof(err)), 0);
    cr_assert_str_eq(o.path, "a.img");
    cr_assert(o.bus == DRIVE_BUS_DEFAULT && o.format == BLOCK_FORMAT_AUTO && !o.read_only);
    cr_assert_eq(
        drive_parse(&o, DRIVE_DISK, "a,,b.img,if=ahci,format=qcow2,readonly", err, sizeof(err)), 0);
    cr_assert_str_eq(o.path, "a,b.img");
    cr_assert(o.bus == DRIVE_BUS_AHCI && o.format == BLOCK_FORMAT_QCOW2 && o.read_only);
    cr_assert_eq(drive_parse(&o, DRIVE_DISK, "", err, sizeof(err)), -EINVAL);
    cr_assert_eq(drive_parse(&o, DRIVE_DISK, ",if=ide", err, sizeof(err)), -EINVAL);
    cr_assert_eq(drive_parse(&o, DRIVE_DISK, "a,", err, sizeof(err)), -EINVAL);
    cr_assert_eq(drive_parse(&o, DRIVE_DISK, "a,if=scsi", err, sizeof(err)), -EINVAL);
    cr_assert_not_null(strstr(err, "scsi"));
    cr_assert_eq(drive_parse(&o, DRIVE_DISK, "a,format=vmdk", err, sizeof(err)), -EINVAL);
    cr_assert_eq(drive_parse(&o, DRIVE_DISK, "a,read-only", err, sizeof(err)), -EINVAL);
}
