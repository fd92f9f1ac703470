/*
 * qcow2 images that lie: opens the input as an image, reads, writes, zeroes and discards in it.
 * The first 8 bytes of an input are where the requests come from; the rest is the image.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/block_image.h"
#include "fuzz.h"

#define PREFIX   8
#define REQUESTS 24
#define LEN_MAX  (256u << 10)

static uint64_t state;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void request(struct block_image *image, uint8_t *buf)
{
    uint64_t sectors = image->size / BLOCK_SECTOR, at = rnd() % sectors, n = 1 + rnd() % 512;
    struct iovec iov = {buf, 0};
    struct block_request r = {.image = image, .iov = &iov, .iovcnt = 1};

    /* Mostly in the first megabyte, where small images have something. */
    if (rnd() % 4)
        at %= 2048;
    if (at >= sectors)
        at = 0;
    n = n > sectors - at ? sectors - at : n;
    r.op = (enum block_op)(rnd() % BLOCK_OPS);
    r.unmap = rnd() & 1;
    r.offset = at * BLOCK_SECTOR;
    r.len = iov.iov_len = n * BLOCK_SECTOR;
    if (image->read_only && r.op != BLOCK_FLUSH)
        r.op = BLOCK_READ;
    block_image_run(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t buf[LEN_MAX];
    struct block_open_options o = {.format = BLOCK_FORMAT_QCOW2, .no_backing = true};
    struct block_image *image;
    char path[64], err[5000];
    int fd;

    if (size < PREFIX)
        return 0;
    memcpy(&state, data, sizeof(state));
    state |= 1;
    fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data + PREFIX, size - PREFIX) < 0)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    o.path = path;
    o.read_only = state >> 8 & 1;
    if (!block_image_open(&image, &o, err, sizeof(err))) {
        for (unsigned i = 0; i < REQUESTS; i++)
            request(image, buf);
        block_image_close(image);
    }
    close(fd);
    return 0;
}

/* -- Well-formed images ------------------------------------------------------------------------ */

static void put32(uint8_t *at, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put64(uint8_t *at, uint64_t v)
{
    put32(at, (uint32_t)(v >> 32));
    put32(at + 4, (uint32_t)v);
}

/* Header, refcount table, one refcount block, L1 table, one L2 table, four data clusters. */
size_t fuzz_seed(unsigned index, uint8_t *out, size_t max)
{
    static const struct {
        uint32_t version, cluster_bits, order;
        uint64_t incompatible;
    } kinds[] = {{3, 9, 4, 0},  {3, 9, 0, 0}, {2, 9, 4, 0},
                 {3, 10, 6, 0}, {3, 9, 4, 1}, {3, 12, 1, 0}};
    uint64_t cs, l1_size;
    uint8_t *image = out + PREFIX;

    if (index >= sizeof(kinds) / sizeof(kinds[0]))
        return 0;
    cs = 1ull << kinds[index].cluster_bits;
    if (PREFIX + 9 * cs > max)
        return 0;
    memset(out, 0, PREFIX + 9 * cs);
    out[0] = (uint8_t)(0x5a + index);
    memcpy(image, "QFI\xfb", 4);
    put32(image + 4, kinds[index].version);
    put32(image + 20, kinds[index].cluster_bits);
    l1_size = 32;
    put64(image + 24, l1_size * cs * (cs / 8));
    put32(image + 36, (uint32_t)l1_size);
    put64(image + 40, 3 * cs); /* L1 */
    put64(image + 48, 1 * cs); /* refcount table */
    put32(image + 56, 1);
    if (kinds[index].version >= 3) {
        put64(image + 72, kinds[index].incompatible);
        put32(image + 96, kinds[index].order);
        put32(image + 100, 104);
    }
    put64(image + cs, 2 * cs);
    for (unsigned i = 0; i < 9; i++) {
        uint8_t *block = image + 2 * cs;
        unsigned bits = 1u << (kinds[index].version >= 3 ? kinds[index].order : 4);

        if (bits < 8)
            block[i * bits / 8] |= (uint8_t)(1u << (i * bits % 8));
        else
            block[(i + 1) * bits / 8 - 1] = 1;
    }
    put64(image + 3 * cs, 4 * cs | 1ull << 63);
    put64(image + 4 * cs, 5 * cs | 1ull << 63);
    put64(image + 4 * cs + 8, 6 * cs | 1ull << 63);
    put64(image + 4 * cs + 24, 7 * cs | 1ull << 62); /* compressed; not deflate's idea of it */
    put64(image + 4 * cs + 32, 8 * cs | 1ull << 63 | 1);
    return PREFIX + 9 * cs;
}
