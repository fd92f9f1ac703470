/*
 * Opening qcow2 images: the header, its extensions, the backing image, and the first picture of
 * which clusters hold metadata.  See qcow2.h.
 */
#include "devices/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_V2           72
#define HEADER_V3           104
#define L1_BYTES_MAX        (32u << 20)
#define REFTABLE_BYTES_MAX  (8u << 20)
#define SNAPSHOTS_MAX       65536u
#define SNAPSHOTS_BYTES_MAX (64ull << 20)
#define BACKING_NAME_MAX    1023u

/* Incompatible features that are refused by name. */
#define FEATURE_EXTERNAL_DATA (1ull << 2)
#define FEATURE_COMPRESSION   (1ull << 3)
#define FEATURE_EXTENDED_L2   (1ull << 4)

enum {
    EXTENSION_END = 0,
    EXTENSION_BACKING_FORMAT = 0xe2792aca,
    EXTENSION_ENCRYPTION = 0x0537be77,
};

struct header {
    uint32_t version, cluster_bits, crypt_method, l1_size, reftable_clusters, snapshots;
    uint64_t backing_offset, size, l1_offset, reftable_offset, snapshots_offset;
    uint32_t backing_size, refcount_order, header_length;
    uint64_t incompatible, autoclear;
    char backing_format[16];
    char backing_name[BACKING_NAME_MAX + 1];
};

/* Where messages go. */
struct report {
    const char *path;
    char *err;
    size_t errlen;
};

#define REFUSE(r, code, ...) block_error((r)->err, (r)->errlen, code, __VA_ARGS__)

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* -- The header -------------------------------------------------------------------------------- */

static void parse_header(struct header *h, const uint8_t *raw)
{
    h->version = get32(raw + 4);
    h->backing_offset = qcow2_get64(raw + 8);
    h->backing_size = get32(raw + 16);
    h->cluster_bits = get32(raw + 20);
    h->size = qcow2_get64(raw + 24);
    h->crypt_method = get32(raw + 32);
    h->l1_size = get32(raw + 36);
    h->l1_offset = qcow2_get64(raw + 40);
    h->reftable_offset = qcow2_get64(raw + QCOW2_HEADER_REFTABLE);
    h->reftable_clusters = get32(raw + 56);
    h->snapshots = get32(raw + 60);
    h->snapshots_offset = qcow2_get64(raw + 64);
    h->refcount_order = 4;
    h->header_length = HEADER_V2;
    if (h->version >= 3) {
        h->incompatible = qcow2_get64(raw + QCOW2_HEADER_INCOMPATIBLE);
        h->autoclear = qcow2_get64(raw + QCOW2_HEADER_AUTOCLEAR);
        h->refcount_order = get32(raw + 96);
        h->header_length = get32(raw + 100);
    }
}

static int check_features(const struct header *h, const struct report *r)
{
    uint64_t unknown = h->incompatible & ~(QCOW2_DIRTY | QCOW2_CORRUPT);

    if (h->crypt_method)
        return REFUSE(r, -ENOTSUP,
                      "the qcow2 image '%s' is encrypted, which is not supported; decrypt it with "
                      "qemu-img convert",
                      r->path);
    if (unknown & FEATURE_EXTERNAL_DATA)
        return REFUSE(r, -ENOTSUP,
                      "the qcow2 image '%s' keeps its data in another file, which is not "
                      "supported; join them with qemu-img convert",
                      r->path);
    if (unknown & FEATURE_COMPRESSION)
        return REFUSE(r, -ENOTSUP,
                      "the qcow2 image '%s' is compressed by another method than zlib, which is "
                      "not supported; unpack it with qemu-img convert",
                      r->path);
    if (unknown & FEATURE_EXTENDED_L2)
        return REFUSE(r, -ENOTSUP,
                      "the qcow2 image '%s' has subclusters (extended_l2), which are not "
                      "supported; remove them with qemu-img convert",
                      r->path);
    if (unknown)
        return REFUSE(r, -ENOTSUP,
                      "the qcow2 image '%s' has features that are not known (%#llx); try qemu-img "
                      "convert",
                      r->path, (unsigned long long)unknown);
    return 0;
}

static int damaged(const struct report *r, const char *what)
{
    return REFUSE(r, -EINVAL, "the qcow2 image '%s' is damaged: %s; see qemu-img check", r->path,
                  what);
}

/* A table in the file: aligned, not at 0, within the file. */
static bool table_fits(uint64_t offset, uint64_t bytes, uint64_t cluster_size, uint64_t file_size)
{
    return offset && offset % cluster_size == 0 && offset <= file_size &&
           bytes <= file_size - offset;
}

static int check_header(const struct header *h, const struct block_file *f, const struct report *r)
{
    uint64_t cluster, span;

    if (h->version != 2 && h->version != 3)
        return REFUSE(r, -ENOTSUP,
                      "'%s' is a qcow image of version %u; only versions 2 and 3 are supported",
                      r->path, h->version);
    if (h->cluster_bits < 9 || h->cluster_bits > 21)
        return damaged(r, "its cluster size is impossible");
    cluster = 1ull << h->cluster_bits;
    if (h->version >= 3 &&
        (h->header_length < HEADER_V3 || h->header_length > cluster || h->refcount_order > 6))
        return damaged(r, "its header has impossible fields");
    if (h->size == 0 || h->size > INT64_MAX - BLOCK_SECTOR)
        return damaged(r, "the size of its disk is impossible");
    if (h->l1_size > L1_BYTES_MAX / 8 ||
        !table_fits(h->l1_offset, h->l1_size * 8ull, cluster, f->size))
        return damaged(r, "its L1 table is not in the file");
    span = cluster * (cluster / 8);
    if (h->l1_size < (h->size - 1) / span + 1)
        return damaged(r, "its L1 table is too small for its disk");
    return 0;
}

static int parse_extensions(struct header *h, const uint8_t *raw, uint64_t len,
                            const struct report *r)
{
    uint64_t at = h->header_length, end = len;

    if (h->backing_offset && h->backing_offset < end)
        end = h->backing_offset;
    while (at + 8 <= end) {
        uint32_t type = get32(raw + at), size = get32(raw + at + 4);

        at += 8;
        if (type == EXTENSION_END)
            break;
        if (size > end - at)
            return damaged(r, "its header extensions run out of the header");
        if (type == EXTENSION_ENCRYPTION)
            return REFUSE(r, -ENOTSUP,
                          "the qcow2 image '%s' is encrypted (LUKS), which is not supported",
                          r->path);
        if (type == EXTENSION_BACKING_FORMAT) {
            if (size >= sizeof(h->backing_format))
                return REFUSE(r, -ENOTSUP,
                              "the backing file of '%s' has a format that is not supported",
                              r->path);
            memcpy(h->backing_format, raw + at, size);
            h->backing_format[size] = '\0';
        }
        at += ((uint64_t)size + 7) & ~7ull;
    }
    return 0;
}

static int parse_backing_name(struct header *h, const uint8_t *raw, uint64_t len,
                              const struct report *r)
{
    if (!h->backing_offset)
        return 0;
    if (h->backing_size == 0 || h->backing_size > BACKING_NAME_MAX || h->backing_offset > len ||
        h->backing_size > len - h->backing_offset)
        return damaged(r, "the name of its backing file is not in the header");
    memcpy(h->backing_name, raw + h->backing_offset, h->backing_size);
    h->backing_name[h->backing_size] = '\0';
    if (strlen(h->backing_name) != h->backing_size)
        return damaged(r, "the name of its backing file is no name");
    return 0;
}

static int read_header(struct header *h, const struct block_file *f, const struct report *r)
{
    uint8_t start[HEADER_V3], *raw;
    uint64_t len;
    int err;

    if (f->size < HEADER_V2)
        return REFUSE(r, -EINVAL, "'%s' is no qcow2 image: it is too small", r->path);
    err = block_file_read(f->fd, 0, start, sizeof(start));
    if (err)
        return REFUSE(r, err, "cannot read '%s': %s", r->path, strerror(-err));
    if (memcmp(start, "QFI\xfb", 4))
        return REFUSE(r, -EINVAL, "'%s' is no qcow2 image", r->path);
    memset(h, 0, sizeof(*h));
    parse_header(h, start);
    err = check_header(h, f, r);
    err = err ? err : check_features(h, r);
    if (err)
        return err;
    len = 1ull << h->cluster_bits;
    raw = malloc(len);
    if (!raw)
        return REFUSE(r, -ENOMEM, "cannot open '%s': out of memory", r->path);
    err = block_file_read(f->fd, 0, raw, len);
    if (err)
        REFUSE(r, err, "cannot read '%s': %s", r->path, strerror(-err));
    err = err ? err : parse_extensions(h, raw, len, r);
    err = err ? err : parse_backing_name(h, raw, len, r);
    free(raw);
    return err;
}

/* -- The backing image ------------------------------------------------------------------------- */

/* The name is a path, relative to the image's own folder; -EINVAL if it is some other thing. */
static int backing_path(char *out, size_t size, const char *image, const char *name)
{
    const char *slash = strrchr(image, '/'), *colon = strchr(name, ':');
    int n;

    if (!strncmp(name, "file:", 5)) {
        name += 5;
        colon = NULL;
    }
    /* "nbd://...", "json:{...}": what is before the first slash names a protocol. */
    if (colon && (!strchr(name, '/') || colon < strchr(name, '/')))
        return -EINVAL;
    if (name[0] == '/' || !slash)
        n = snprintf(out, size, "%s", name);
    else
        n = snprintf(out, size, "%.*s/%s", (int)(slash - image), image, name);
    return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

static int open_backing(struct qcow2 *q, const struct header *h, const struct block_open_options *o,
                        const struct block_chain *chain, const struct report *r)
{
    struct block_open_options back = {.read_only = true, .no_backing = o->no_backing};
    char path[8192], why[4096];
    int err;

    if (!h->backing_name[0])
        return 0;
    if (o->no_backing)
        return REFUSE(r, -EINVAL, "'%s' refers to a backing file, which is not allowed here",
                      r->path);
    if (!strcmp(h->backing_format, "raw"))
        back.format = BLOCK_FORMAT_RAW;
    else if (!strcmp(h->backing_format, "qcow2"))
        back.format = BLOCK_FORMAT_QCOW2;
    else if (h->backing_format[0])
        return REFUSE(r, -ENOTSUP,
                      "the backing file of '%s' has the format '%s', which is not supported",
                      r->path, h->backing_format);
    err = backing_path(path, sizeof(path), r->path, h->backing_name);
    if (err)
        return REFUSE(r, err, "the backing file of '%s', '%s', is not a file's name", r->path,
                      h->backing_name);
    back.path = path;
    err = block_image_open_chain(&q->backing, &back, chain, why, sizeof(why));
    if (err)
        return REFUSE(r, err, "%s (the backing file of '%s')", why, r->path);
    return 0;
}

/* -- Tables ------------------------------------------------------------------------------------ */

static int load_entries(const struct qcow2 *q, uint64_t offset, uint64_t entries, uint64_t **out)
{
    uint64_t *table = malloc(entries ? entries * 8 : 8);
    int err;

    if (!table)
        return -ENOMEM;
    err = block_file_read(q->fd, offset, table, entries * 8);
    if (err) {
        free(table);
        return err;
    }
    for (uint64_t i = 0; i < entries; i++)
        table[i] = qcow2_get64(&table[i]);
    *out = table;
    return 0;
}

/* Adds the clusters of a table; -EEXIST if one of them belongs to another table. */
static int add_range(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    int err = 0;

    for (uint64_t c = offset >> q->cluster_bits;
         bytes && c <= (offset + bytes - 1) >> q->cluster_bits && !err; c++)
        err = qcow2_set_add(&q->metadata, c);
    return err;
}

/* Every table that `entries` point to. */
static int add_tables(struct qcow2 *q, const uint64_t *table, uint64_t entries)
{
    int err = 0;

    for (uint64_t i = 0; i < entries && !err; i++) {
        uint64_t offset = table[i] & QCOW2_OFFSET;

        if (!qcow2_aligned(q, offset))
            err = -EEXIST;
        else if (offset)
            err = qcow2_set_add(&q->metadata, offset >> q->cluster_bits);
    }
    return err;
}

/* The snapshot table, whose entries vary in length, and the L1 tables it names. */
static int add_snapshots(struct qcow2 *q, const struct header *h)
{
    uint64_t at = h->snapshots_offset;
    int err = 0;

    if (h->snapshots == 0)
        return 0;
    if (h->snapshots > SNAPSHOTS_MAX || !qcow2_aligned(q, at) || at > QCOW2_OFFSET)
        return -EEXIST;
    for (uint32_t i = 0; i < h->snapshots && !err; i++) {
        uint8_t raw[40];
        uint64_t l1, bytes;

        err = block_file_read(q->fd, at, raw, sizeof(raw));
        if (err)
            break;
        l1 = qcow2_get64(raw);
        bytes = get32(raw + 8) * 8ull;
        if (!qcow2_aligned(q, l1) || l1 > QCOW2_OFFSET || bytes > L1_BYTES_MAX)
            return -EEXIST;
        err = add_range(q, l1, bytes);
        at += 40ull + get32(raw + 36) + get16(raw + 12) + get16(raw + 14);
        at = (at + 7) & ~7ull;
        if (at - h->snapshots_offset > SNAPSHOTS_BYTES_MAX)
            return -EEXIST;
    }
    return err ? err : add_range(q, h->snapshots_offset, at - h->snapshots_offset);
}

/* What only a writer needs: refcounts, and to know where metadata is. */
static int prepare_writing(struct qcow2 *q, const struct header *h, const struct report *r)
{
    uint64_t entries = (uint64_t)h->reftable_clusters << (q->cluster_bits - 3);
    int err;

    if (h->incompatible & QCOW2_CORRUPT)
        return REFUSE(r, -EIO,
                      "the qcow2 image '%s' is marked as corrupt; repair it with qemu-img check "
                      "-r all, or open it readonly",
                      r->path);
    if (h->incompatible & QCOW2_DIRTY && h->snapshots)
        return REFUSE(r, -ENOTSUP,
                      "the qcow2 image '%s' was not closed and has internal snapshots; repair it "
                      "with qemu-img check -r all",
                      r->path);
    if (h->reftable_clusters == 0 || entries * 8 > REFTABLE_BYTES_MAX ||
        !table_fits(h->reftable_offset, entries * 8, q->cluster_size, UINT64_MAX / 2))
        return damaged(r, "its refcount table is not in the file");
    q->reftable_offset = h->reftable_offset;
    q->reftable_entries = entries;
    q->keeps_dirty_bit =
        q->version >= 3 && !h->snapshots && q->file_end >> q->cluster_bits < QCOW2_COUNT_MAX / 2;
    err = load_entries(q, q->reftable_offset, entries, &q->reftable);
    err = err ? err : add_range(q, 0, q->cluster_size);
    err = err ? err : add_range(q, q->l1_offset, q->l1_size * 8ull);
    err = err ? err : add_range(q, q->reftable_offset, entries * 8);
    err = err ? err : add_tables(q, q->reftable, entries);
    err = err ? err : add_tables(q, q->l1, q->l1_size);
    err = err ? err : add_snapshots(q, h);
    err = err ? err : qcow2_cache_init(&q->refblocks, q->cluster_size);
    if (err == -EEXIST)
        return damaged(r, "its tables overlap");
    if (err)
        return REFUSE(r, err, "cannot open the qcow2 image '%s': %s", r->path, strerror(-err));
    return 0;
}

static int write_dirty_bit(struct qcow2 *q, bool set)
{
    uint64_t bits = set ? q->incompatible | QCOW2_DIRTY : q->incompatible & ~QCOW2_DIRTY;
    uint8_t field[8];
    int err;

    qcow2_put64(field, bits);
    err = block_file_write(q->fd, QCOW2_HEADER_INCOMPATIBLE, field, sizeof(field));
    if (!err && fdatasync(q->fd))
        err = -errno;
    if (!err)
        q->incompatible = bits;
    return err;
}

/* Before the first change: what other programs, or a crash, left for the next writer to do. */
int qcow2_start(struct qcow2 *q)
{
    uint8_t field[8] = {0};
    int err = 0;

    /* Bits of what cannot be kept up to date, such as dirty bitmaps. */
    if (q->autoclear) {
        err = block_file_write(q->fd, QCOW2_HEADER_AUTOCLEAR, field, sizeof(field));
        q->autoclear = err ? q->autoclear : 0;
    }
    if (!err && q->incompatible & QCOW2_DIRTY) {
        err = qcow2_rebuild_refcounts(q);
        if (!err && !q->keeps_dirty_bit)
            err = write_dirty_bit(q, false);
    } else if (!err && q->keeps_dirty_bit) {
        err = write_dirty_bit(q, true);
    }
    if (!err && fdatasync(q->fd))
        err = -errno;
    q->started = err == 0;
    return err;
}

/* -- Opening and closing ----------------------------------------------------------------------- */

static int load(struct qcow2 *q, const struct header *h, const struct block_open_options *o,
                const struct block_chain *chain, const struct report *r)
{
    int err = qcow2_cache_init(&q->l2, q->cluster_size);

    err = err ? err : load_entries(q, q->l1_offset, q->l1_size, &q->l1);
    if (err)
        return REFUSE(r, err, "cannot open the qcow2 image '%s': %s", r->path, strerror(-err));
    if (!q->image.read_only)
        err = prepare_writing(q, h, r);
    return err ? err : open_backing(q, h, o, chain, r);
}

int qcow2_close(struct block_image *image)
{
    struct qcow2 *q = (struct qcow2 *)image;
    int err = 0;

    /* A sync makes refcounts go down, which the next one writes. */
    for (unsigned i = 0; i < 3 && !err && !q->corrupt && q->started && qcow2_is_dirty(q); i++)
        err = qcow2_sync(q);
    if (q->corrupt)
        err = -EUCLEAN;
    if (!err && q->started && q->keeps_dirty_bit)
        err = write_dirty_bit(q, false);
    if (q->backing)
        block_image_close(q->backing);
    if (close(q->fd) && !err)
        err = -errno;
    qcow2_cache_destroy(&q->l2);
    qcow2_cache_destroy(&q->refblocks);
    pthread_rwlock_destroy(&q->lock);
    pthread_mutex_destroy(&q->inflated_lock);
    free(q->l1);
    free(q->reftable);
    free(q->freed);
    free(q->metadata.slot);
    free(q->inflated);
    free(q);
    return err;
}

int block_qcow2_open(struct block_image **out, const struct block_file *file,
                     const struct block_open_options *o, const struct block_chain *chain, char *err,
                     size_t errlen)
{
    const struct report r = {o->path, err, errlen};
    struct header *h = malloc(sizeof(*h));
    struct qcow2 *q = calloc(1, sizeof(*q));
    pthread_rwlockattr_t attr;
    int code = h && q ? read_header(h, file, &r)
                      : REFUSE(&r, -ENOMEM, "cannot open '%s': out of memory", r.path);

    if (code) {
        close(file->fd);
        free(h);
        free(q);
        return code;
    }
    q->image = (struct block_image){
        .format = &qcow2_format,
        .size = (h->size + BLOCK_SECTOR - 1) & ~(BLOCK_SECTOR - 1ull),
        .read_only = o->read_only || o->snapshot,
        .direct_fd = -1,
    };
    q->fd = file->fd;
    q->version = h->version;
    q->cluster_bits = h->cluster_bits;
    q->cluster_size = 1ull << h->cluster_bits;
    q->l2_bits = h->cluster_bits - 3;
    q->refcount_order = h->refcount_order;
    q->incompatible = h->incompatible;
    q->autoclear = h->autoclear;
    q->l1_offset = h->l1_offset;
    q->l1_size = h->l1_size;
    q->file_end = file->size;
    /* A flush waits for no more than the transfers that are under way. */
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&q->lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    pthread_mutex_init(&q->inflated_lock, NULL);
    code = load(q, h, o, chain, &r);
    free(h);
    if (code) {
        qcow2_close(&q->image);
        return code;
    }
    *out = &q->image;
    return 0;
}
