/*
 * qcow2 images, against those of qemu-img (Debian: qemu-utils): what it writes we read, what we
 * write it reads and checks.  Random writes, zeros and discards are compared with a plain copy in
 * memory.  Without qemu-img these tests are skipped.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices/block.h"

#define MiB (1u << 20)

static char dir[64], path[128], err[4096];
static struct block_queue *queue;
static struct block_device *dev;
static bool have_qemu_img;

static int shell(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int shell(const char *format, ...)
{
    char command[1000];
    va_list ap;
    int status;

    va_start(ap, format);
    vsnprintf(command, sizeof(command), format, ap);
    va_end(ap);
    status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void setup(void)
{
    snprintf(dir, sizeof(dir), "/tmp/rs-qcow2-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/disk.qcow2", dir);
    cr_assert_eq(block_queue_create(&queue, 0), 0);
    cr_assert_eq(block_device_create(&dev, queue, "disk0", false), 0);
    have_qemu_img = shell("qemu-img --version >/dev/null 2>&1") == 0;
}

static void teardown(void)
{
    if (dev)
        cr_expect_eq(block_device_destroy(dev), 0);
    if (queue)
        block_queue_destroy(queue);
    cr_expect_eq(shell("rm -rf %s", dir), 0);
}

#define NEEDS_QEMU_IMG()                                                                           \
    do {                                                                                           \
        if (!have_qemu_img)                                                                        \
            cr_skip_test("qemu-img (qemu-utils) is not installed: THIS IS NOT TESTED\n");          \
    } while (0)

static void insert(const struct block_open_options *o)
{
    struct block_image *image;

    cr_assert_eq(block_image_open(&image, o, err, sizeof(err)), 0, "%s", err);
    cr_assert_eq(block_device_set_medium(dev, image), 0);
}

static void open_rw(void)
{
    insert(&(struct block_open_options){.path = path});
}

/* Closes, and has qemu-img check it: 0, or 3 where leaked clusters are all right. */
static void close_and_check(bool leaks_allowed)
{
    int code;

    cr_assert_eq(block_device_set_medium(dev, NULL), 0);
    code =
        shell("qemu-img check -q %s >%s/check.log 2>&1 || { c=$?; cat %s/check.log >&2; exit $c; }",
              path, dir, dir);
    cr_assert(code == 0 || (leaks_allowed && code == 3), "qemu-img check: %d", code);
}

static void done(struct block_request *r)
{
    *(int *)r->opaque = r->result;
}

static int run(enum block_op op, uint64_t offset, uint64_t len, void *buf, bool unmap)
{
    struct iovec iov = {buf, len};
    int result = 1;
    struct block_request r = {.op = op,
                              .offset = offset,
                              .len = len,
                              .iov = &iov,
                              .iovcnt = 1,
                              .unmap = unmap,
                              .done = done,
                              .opaque = &result};

    block_submit(dev, &r);
    block_drain(dev);
    return result;
}

static uint64_t rng_state = 88172645463325252ull;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    return rng_state ^= rng_state << 17;
}

static void fill(uint8_t *buf, size_t len)
{
    for (size_t i = 0; i + 8 <= len; i += 8) {
        uint64_t v = rng();

        memcpy(buf + i, &v, 8);
    }
}

static void compare(const uint8_t *model, uint64_t size)
{
    uint8_t *now = malloc(size);

    cr_assert_eq(block_read(dev, 0, now, size), 0);
    for (uint64_t s = 0; s < size; s += 512)
        cr_assert_eq(memcmp(model + s, now + s, 512), 0, "sector %lu differs", s / 512);
    free(now);
}

/* Random requests to image and model. */
static void workload(uint8_t *model, uint64_t size, unsigned count, unsigned max_sectors)
{
    uint8_t *buf = malloc(max_sectors * 512);

    for (unsigned i = 0; i < count; i++) {
        uint64_t len = (1 + rng() % max_sectors) * 512, at;
        unsigned what = rng() % 16;

        at = rng() % ((size - len) / 512 + 1) * 512;
        if (what < 9) {
            fill(buf, len);
            cr_assert_eq(run(BLOCK_WRITE, at, len, buf, false), 0);
            memcpy(model + at, buf, len);
        } else if (what < 11) {
            cr_assert_eq(run(BLOCK_WRITE_ZEROES, at, len, NULL, what & 1), 0);
            memset(model + at, 0, len);
        } else if (what == 11) {
            cr_assert_eq(run(BLOCK_DISCARD, at, len, NULL, false), 0);
            cr_assert_eq(run(BLOCK_WRITE_ZEROES, at, len, NULL, true), 0);
            memset(model + at, 0, len);
        } else if (what < 15) {
            cr_assert_eq(run(BLOCK_READ, at, len, buf, false), 0);
            cr_assert_eq(memcmp(buf, model + at, len), 0, "read at %lu", at);
        } else {
            cr_assert_eq(run(BLOCK_FLUSH, 0, 0, NULL, false), 0);
        }
    }
    free(buf);
}

/* Creates an image, runs a workload over it in several sittings, and lets qemu-img judge. */
static void life(const char *options, uint64_t size, unsigned count, unsigned max_sectors)
{
    uint8_t *model = calloc(1, size);

    cr_assert_eq(shell("qemu-img create -q -f qcow2 -o %s %s %lu", options, path, size), 0);
    for (unsigned sitting = 0; sitting < 3; sitting++) {
        open_rw();
        cr_assert_eq(dev->size, size);
        compare(model, size);
        workload(model, size, count, max_sectors);
        compare(model, size);
        close_and_check(false);
    }
    /* What qemu-img reads is what we wrote. */
    cr_assert_eq(shell("qemu-img convert -O raw %s %s/raw", path, dir), 0);
    snprintf(path, sizeof(path), "%s/raw", dir);
    insert(&(struct block_open_options){.path = path, .format = BLOCK_FORMAT_RAW});
    compare(model, size);
    free(model);
}

#define QCOW2_TEST(name) Test(qcow2, name, .init = setup, .fini = teardown, .timeout = 110)

QCOW2_TEST(version_3)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1", 16 * MiB, 300, 400);
}

QCOW2_TEST(version_2)
{
    NEEDS_QEMU_IMG();
    life("compat=0.10", 16 * MiB, 300, 400);
}

QCOW2_TEST(tiny_clusters_grow_the_refcount_table)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1,cluster_size=512,refcount_bits=64", 8 * MiB, 300, 400);
}

QCOW2_TEST(one_bit_refcounts)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1,cluster_size=4096,refcount_bits=1", 8 * MiB, 300, 100);
}

QCOW2_TEST(two_bit_refcounts_and_lazy)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1,refcount_bits=2,lazy_refcounts=on", 8 * MiB, 200, 100);
}

QCOW2_TEST(big_clusters)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1,cluster_size=2M", 20 * MiB, 60, 5000);
}

QCOW2_TEST(preallocated)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1,preallocation=metadata", 8 * MiB, 200, 300);
}

QCOW2_TEST(odd_size)
{
    NEEDS_QEMU_IMG();
    life("compat=1.1", 5 * MiB + 512 * 3, 200, 300);
}

/* An overlay on an overlay on a raw file that is smaller, by relative names. */
QCOW2_TEST(backing_chain)
{
    uint8_t *model = calloc(1, 8 * MiB);
    char raw[128];

    NEEDS_QEMU_IMG();
    fill(model, 3 * MiB + 512);
    snprintf(raw, sizeof(raw), "%s/base.raw", dir);
    int fd = open(raw, O_CREAT | O_WRONLY, 0600);

    cr_assert_eq(write(fd, model, 3 * MiB + 512), 3 * MiB + 512);
    close(fd);
    chmod(raw, 0400);
    cr_assert_eq(shell("cd %s && qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 8M &&"
                       "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=4k "
                       "disk.qcow2",
                       dir),
                 0);
    for (unsigned sitting = 0; sitting < 2; sitting++) {
        open_rw();
        compare(model, 8 * MiB);
        workload(model, 8 * MiB, 200, 300);
        compare(model, 8 * MiB);
        close_and_check(false);
    }
    cr_assert_eq(shell("cd %s && qemu-img convert -O raw disk.qcow2 out.raw", dir), 0);
    snprintf(path, sizeof(path), "%s/out.raw", dir);
    insert(&(struct block_open_options){.path = path});
    compare(model, 8 * MiB);
    free(model);
}

QCOW2_TEST(version_2_overlay_zeroes)
{
    uint8_t *model = calloc(1, 2 * MiB);

    NEEDS_QEMU_IMG();
    memset(model, 0x5a, 2 * MiB);
    cr_assert_eq(shell("cd %s && head -c 2M /dev/zero | tr '\\0' Z >base.raw && qemu-img create -q "
                       "-f qcow2 -o compat=0.10 -b base.raw -F raw disk.qcow2",
                       dir),
                 0);
    open_rw();
    compare(model, 2 * MiB);
    workload(model, 2 * MiB, 200, 300);
    compare(model, 2 * MiB);
    close_and_check(false);
    free(model);
}

QCOW2_TEST(compressed)
{
    uint8_t *model = calloc(1, 8 * MiB);
    char raw[128];
    int fd;

    NEEDS_QEMU_IMG();
    for (unsigned i = 0; i < 6 * MiB; i++) /* compresses well, but for some */
        model[i] = (uint8_t)(i >> 20 == 2 ? rng() : i / 700);
    snprintf(raw, sizeof(raw), "%s/base.raw", dir);
    fd = open(raw, O_CREAT | O_WRONLY, 0600);
    cr_assert_eq(write(fd, model, 8 * MiB), 8 * MiB);
    close(fd);
    cr_assert_eq(shell("qemu-img convert -c -O qcow2 %s %s", raw, path), 0);
    for (unsigned sitting = 0; sitting < 2; sitting++) {
        open_rw();
        compare(model, 8 * MiB);
        workload(model, 8 * MiB, 150, 300);
        compare(model, 8 * MiB);
        close_and_check(false);
    }
    free(model);
}

/* Internal snapshots: what they hold must not change when the disk is written. */
QCOW2_TEST(internal_snapshots_stay)
{
    uint8_t *model = calloc(1, 8 * MiB), *then = malloc(8 * MiB);

    NEEDS_QEMU_IMG();
    cr_assert_eq(shell("qemu-img create -q -f qcow2 %s 8M", path), 0);
    open_rw();
    workload(model, 8 * MiB, 100, 300);
    close_and_check(false);
    memcpy(then, model, 8 * MiB);
    cr_assert_eq(shell("qemu-img snapshot -c one %s", path), 0);
    open_rw();
    compare(model, 8 * MiB);
    workload(model, 8 * MiB, 150, 300);
    compare(model, 8 * MiB);
    close_and_check(false);
    cr_assert_eq(shell("qemu-img snapshot -a one %s", path), 0);
    open_rw();
    compare(then, 8 * MiB);
    close_and_check(false);
    free(model);
    free(then);
}

QCOW2_TEST(discard_gives_space_back)
{
    uint8_t *buf = malloc(8 * MiB);
    struct stat st;
    blkcnt_t full;

    NEEDS_QEMU_IMG();
    fill(buf, 8 * MiB);
    cr_assert_eq(shell("qemu-img create -q -f qcow2 %s 8M", path), 0);
    open_rw();
    cr_assert_eq(run(BLOCK_WRITE, 0, 8 * MiB, buf, false), 0);
    cr_assert_eq(run(BLOCK_FLUSH, 0, 0, NULL, false), 0);
    stat(path, &st);
    full = st.st_blocks;
    cr_assert_eq(run(BLOCK_DISCARD, 0, 8 * MiB, NULL, false), 0);
    cr_assert_eq(run(BLOCK_FLUSH, 0, 0, NULL, false), 0);
    stat(path, &st);
    if (shell("fallocate -l 1M %s/hole && fallocate -p -l 1M %s/hole 2>/dev/null", dir, dir) == 0)
        cr_assert_lt(st.st_blocks, full / 8);
    /* The clusters are used again: the file does not grow. */
    cr_assert_eq(run(BLOCK_WRITE, 0, 8 * MiB, buf, false), 0);
    close_and_check(false);
    stat(path, &st);
    cr_assert_lt(st.st_size, 10 * MiB);
    free(buf);
}

/* What a process does that is going to be killed: a marked sector, flushed and announced, then
 * writes, zeros and discards without end. */
static void write_until_killed(uint8_t mark, int announce)
{
    uint8_t *model = calloc(1, 64 * MiB), sector[512];

    if (block_queue_create(&queue, 0) || block_device_create(&dev, queue, "disk0", false))
        _exit(1);
    open_rw();
    memset(sector, mark, sizeof(sector));
    if (run(BLOCK_WRITE, 64 * MiB - 512, 512, sector, false) ||
        run(BLOCK_FLUSH, 0, 0, NULL, false) || write(announce, &mark, 1) != 1)
        _exit(1);
    memset(model, 0, 64 * MiB);
    for (;;) {
        uint64_t at = rng() % (63 * MiB / 512 - 512) * 512, len = (1 + rng() % 512) * 512;
        unsigned what = rng() % 8;

        run(what < 5 ? BLOCK_WRITE : what < 7 ? BLOCK_DISCARD : BLOCK_FLUSH, at, len, model, false);
    }
}

/* Killed while it writes: no structure is wrong, and what was flushed is there. */
QCOW2_TEST(kill_in_the_middle_of_writes)
{
    NEEDS_QEMU_IMG();
    cr_assert_eq(shell("qemu-img create -q -f qcow2 -o cluster_size=4k %s 64M", path), 0);
    cr_assert_eq(block_device_destroy(dev), 0);
    block_queue_destroy(queue);
    for (unsigned round = 1; round <= 12; round++) {
        uint8_t mark = 0, sector[512];
        int pipefd[2];
        pid_t child;

        cr_assert_eq(pipe(pipefd), 0);
        rng();
        child = fork();
        if (child == 0)
            write_until_killed((uint8_t)round, pipefd[1]);
        close(pipefd[1]);
        cr_assert_eq(read(pipefd[0], &mark, 1), 1);
        usleep(1000 + (unsigned)(rng() % 80000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        close(pipefd[0]);
        cr_assert_eq(block_queue_create(&queue, 0), 0);
        cr_assert_eq(block_device_create(&dev, queue, "disk0", false), 0);
        close_and_check(true);
        open_rw();
        cr_assert_eq(block_read(dev, 64 * MiB - 512, sector, 512), 0);
        cr_assert(sector[0] == round && sector[511] == round);
        /* The next writer gives leaked clusters back. */
        cr_assert_eq(block_write(dev, 0, sector, 512), 0);
        close_and_check(false);
        cr_assert_eq(block_device_destroy(dev), 0);
        block_queue_destroy(queue);
    }
    dev = NULL;
    queue = NULL;
}

/* The dirty bit: refcounts that are wrong or missing are computed anew before the first write. */
QCOW2_TEST(dirty_image_is_repaired_by_its_first_writer)
{
    uint8_t *model = calloc(1, 8 * MiB), zeros[65536] = {0}, header[104];
    uint64_t block;
    int fd;

    NEEDS_QEMU_IMG();
    cr_assert_eq(shell("qemu-img create -q -f qcow2 -o lazy_refcounts=on %s 8M", path), 0);
    open_rw();
    workload(model, 8 * MiB, 100, 300);
    close_and_check(false);
    /* Loses the first refcount block's contents, and says so. */
    fd = open(path, O_RDWR);
    cr_assert_eq(pread(fd, header, sizeof(header), 0), sizeof(header));
    header[79] |= 1;
    cr_assert_eq(pwrite(fd, header, sizeof(header), 0), sizeof(header));
    block = (uint64_t)header[53] << 16 | (uint64_t)header[54] << 8 | header[55];
    cr_assert_eq(pread(fd, header, 8, (off_t)block), 8);
    block = (uint64_t)header[4] << 24 | (uint64_t)header[5] << 16 | (uint64_t)header[6] << 8;
    cr_assert_eq(pwrite(fd, zeros, sizeof(zeros), (off_t)block), sizeof(zeros));
    close(fd);
    cr_assert_neq(shell("qemu-img check -q -U %s >/dev/null 2>&1", path), 0);
    insert(&(struct block_open_options){.path = path, .read_only = true});
    compare(model, 8 * MiB);
    cr_assert_eq(block_device_set_medium(dev, NULL), 0);
    open_rw();
    workload(model, 8 * MiB, 100, 300);
    compare(model, 8 * MiB);
    close_and_check(false);
    free(model);
}

/* -- Refusals: a sentence, and not a byte changed. --------------------------------------------- */

static void refused(const char *setup_command, int code, const char *word)
{
    struct block_image *image;
    struct block_open_options o = {.path = path};
    int result;

    cr_assert_eq(shell("cd %s && %s && md5sum disk.qcow2 >sum", dir, setup_command), 0);
    result = block_image_open(&image, &o, err, sizeof(err));
    cr_assert_eq(result, code, "%s: %d (%s)", setup_command, result, err);
    cr_assert_not_null(strstr(err, word), "'%s' is not in: %s", word, err);
    cr_assert_eq(shell("cd %s && md5sum -c --quiet sum", dir), 0);
}

QCOW2_TEST(what_is_not_supported)
{
    NEEDS_QEMU_IMG();
    refused("qemu-img create -q -f qcow2 -o extended_l2=on disk.qcow2 8M", -ENOTSUP, "subclusters");
    refused("qemu-img create -q -f qcow2 -o data_file=d disk.qcow2 8M", -ENOTSUP, "another file");
    refused("qemu-img create -q -f qcow2 --object secret,id=s,data=x -o "
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 disk.qcow2 8M",
            -ENOTSUP, "encrypted");
    if (shell("qemu-img create -q -f qcow2 -o compression_type=zstd %s/z 8M 2>/dev/null", dir) == 0)
        refused("cp z disk.qcow2", -ENOTSUP, "zlib");
    refused("qemu-img create -q -f qcow2 -o compat=1.1 disk.qcow2 8M && printf '\2' | dd "
            "of=disk.qcow2 bs=1 seek=79 conv=notrunc status=none",
            -EIO, "corrupt");
    refused("qemu-img create -q -f qcow2 disk.qcow2 8M && printf '\200' | dd of=disk.qcow2 bs=1 "
            "seek=72 conv=notrunc status=none",
            -ENOTSUP, "not known");
    refused("qemu-img create -q -f qcow2 disk.qcow2 8M && qemu-img create -q -f qcow2 -b "
            "disk.qcow2 -F qcow2 b && qemu-img rebase -u -b b -F qcow2 disk.qcow2",
            -ELOOP, "its own backing file");
    refused("rm -f disk.qcow2; qemu-img create -q -f qcow2 -u -b gone -F raw disk.qcow2 8M",
            -ENOENT, "gone");
    refused("qemu-img create -q -f qcow2 -u -b nbd://x/y -F raw disk.qcow2 8M", -EINVAL, "nbd");
    refused("truncate -s 100 disk.qcow2", -EINVAL, "damaged");
}
