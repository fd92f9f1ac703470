/*
 * Reading and writing qcow2 images: guest offsets through L1 and L2 tables to clusters of the file,
 * and back to the backing image where there are none.  See qcow2.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "devices/qcow2.h"

enum kind {
    UNALLOCATED, /* the backing image's, or zeros */
    ZEROS,
    DATA,     /* in a cluster that other references may share */
    OWN_DATA, /* in a cluster that can be written in place */
    COMPRESSED,
};

static enum kind entry_kind(const struct qcow2 *q, uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED)
        return COMPRESSED;
    if (q->version >= 3 && entry & QCOW2_ZERO)
        return ZEROS;
    if (!(entry & QCOW2_OFFSET))
        return UNALLOCATED;
    return entry & QCOW2_COPIED ? OWN_DATA : DATA;
}

static uint64_t min64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t in_cluster(const struct qcow2 *q, uint64_t offset)
{
    return offset & (q->cluster_size - 1);
}

static uint64_t l1_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> (q->cluster_bits + q->l2_bits);
}

static uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits & ((1ull << q->l2_bits) - 1);
}

/* Bytes from offset to the end of what its L2 table maps. */
static uint64_t l2_room(const struct qcow2 *q, uint64_t offset)
{
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);

    return span - (offset & (span - 1));
}

void qcow2_compressed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *len)
{
    unsigned bits = 62 - (q->cluster_bits - 8);
    uint64_t sectors;

    *offset = entry & ((1ull << bits) - 1);
    sectors = (entry & (QCOW2_COMPRESSED - 1)) >> bits;
    *len = (sectors + 1) * 512 - (*offset & 511);
}

/* -- Lookup ------------------------------------------------------------------------------------ */

/* The L2 table that maps offset: *out = NULL if there is none.  Lock held shared: -EAGAIN if it is
 * not in memory; exclusively: brings it in. */
static int find_l2(struct qcow2 *q, uint64_t offset, bool exclusive, struct qcow2_table **out)
{
    uint64_t l2 = q->l1[l1_index(q, offset)] & QCOW2_OFFSET;

    *out = NULL;
    if (!l2)
        return 0;
    if (!qcow2_aligned(q, l2))
        return -EIO;
    if (exclusive)
        return qcow2_cache_get(q, &q->l2, l2, false, out);
    *out = qcow2_cache_find(&q->l2, l2);
    return *out ? 0 : -EAGAIN;
}

static uint64_t entry_at(const struct qcow2_table *t, uint64_t index)
{
    return t ? qcow2_get64(t->data + index * 8) : 0;
}

/*
 * What is at offset, and how many of the next len bytes are the same way: of one kind, and in
 * consecutive clusters if in clusters at all.  *host is where the first byte is in the file, or the
 * L2 entry of a compressed cluster.
 */
static int map(struct qcow2 *q, uint64_t offset, uint64_t len, bool exclusive, enum kind *kind,
               uint64_t *host, uint64_t *n)
{
    uint64_t index = l2_index(q, offset), entry, end;
    struct qcow2_table *t;
    int err = find_l2(q, offset, exclusive, &t);

    if (err)
        return err;
    len = min64(len, l2_room(q, offset));
    end = offset + len;
    entry = entry_at(t, index);
    *kind = entry_kind(q, entry);
    *n = min64(len, q->cluster_size - in_cluster(q, offset));
    *host = *kind == COMPRESSED ? entry : (entry & QCOW2_OFFSET) + in_cluster(q, offset);
    if ((*kind == DATA || *kind == OWN_DATA) && !qcow2_aligned(q, entry & QCOW2_OFFSET))
        return -EIO;
    if (*kind == COMPRESSED)
        return 0;
    if (!t) {
        *n = len;
        return 0;
    }
    while (offset + *n < end) {
        uint64_t next = entry_at(t, ++index);

        if (entry_kind(q, next) != *kind ||
            ((*kind == DATA || *kind == OWN_DATA) && (next & QCOW2_OFFSET) != *host + *n))
            break;
        *n += min64(q->cluster_size, end - offset - *n);
    }
    return 0;
}

/* -- Reading ----------------------------------------------------------------------------------- */

/* Raw deflate with a 4 KiB window; it must give a whole cluster. */
static int inflate_cluster(const struct qcow2 *q, const uint8_t *in, uint64_t len, uint8_t *out)
{
    z_stream z = {.next_in = (uint8_t *)in,
                  .avail_in = (uInt)len,
                  .next_out = out,
                  .avail_out = (uInt)q->cluster_size};
    int result;

    if (inflateInit2(&z, -12) != Z_OK)
        return -ENOMEM;
    result = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    /* What follows the data in its last sector is another cluster's. */
    if ((result == Z_STREAM_END || result == Z_BUF_ERROR) && z.avail_out == 0)
        return 0;
    return -EIO;
}

/* inflated_lock held. */
static int load_compressed(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset, len;
    uint8_t *in;
    int err;

    if (q->inflated && q->inflated_entry == entry)
        return 0;
    if (!q->inflated)
        q->inflated = malloc(q->cluster_size);
    qcow2_compressed_extent(q, entry, &offset, &len);
    in = malloc(len);
    err = in && q->inflated ? 0 : -ENOMEM;
    q->inflated_entry = 0;
    err = err ? err : block_file_read(q->fd, offset, in, len);
    err = err ? err : inflate_cluster(q, in, len, q->inflated);
    if (!err)
        q->inflated_entry = entry;
    free(in);
    return err;
}

static int read_compressed(struct qcow2 *q, uint64_t entry, uint64_t at, uint64_t len,
                           struct block_iov *to)
{
    int err;

    pthread_mutex_lock(&q->inflated_lock);
    err = load_compressed(q, entry);
    if (!err)
        block_iov_put(to, q->inflated + at, len);
    pthread_mutex_unlock(&q->inflated_lock);
    return err;
}

/* The backing image may be smaller. */
static int read_backing(struct qcow2 *q, uint64_t offset, uint64_t len, struct block_iov *to)
{
    uint64_t there =
        q->backing && offset < q->backing->size ? min64(len, q->backing->size - offset) : 0;
    int err = there ? q->backing->format->read(q->backing, offset, there, to) : 0;

    if (!err && there < len)
        block_iov_zero(to, len - there);
    return err;
}

/* Lock held in any way. */
static int read_run(struct qcow2 *q, enum kind kind, uint64_t host, uint64_t offset, uint64_t n,
                    struct block_iov *to)
{
    switch (kind) {
    case UNALLOCATED:
        return read_backing(q, offset, n, to);
    case ZEROS:
        block_iov_zero(to, n);
        return 0;
    case DATA:
    case OWN_DATA:
        return block_file_readv(q->fd, host, n, to);
    case COMPRESSED:
        return read_compressed(q, host, in_cluster(q, offset), n, to);
    }
    return -EIO;
}

static int qcow2_read(struct block_image *image, uint64_t offset, uint64_t len,
                      struct block_iov *to)
{
    struct qcow2 *q = (struct qcow2 *)image;
    bool exclusive = false;
    int err = 0;

    pthread_rwlock_rdlock(&q->lock);
    while (len && !err) {
        enum kind kind;
        uint64_t host, n;

        err = map(q, offset, len, exclusive, &kind, &host, &n);
        if (err == -EAGAIN) {
            pthread_rwlock_unlock(&q->lock);
            pthread_rwlock_wrlock(&q->lock);
            exclusive = true;
            err = 0;
            continue;
        }
        err = err ? err : read_run(q, kind, host, offset, n, to);
        offset += err ? 0 : n;
        len -= err ? 0 : n;
    }
    pthread_rwlock_unlock(&q->lock);
    return err;
}

/* -- Changing the mapping: lock held exclusively ------------------------------------------------
 */

static void set_l1(struct qcow2 *q, uint64_t index, uint64_t l2_offset)
{
    q->l1[index] = l2_offset | QCOW2_COPIED;
    if (q->l1_dirty_from == q->l1_dirty_to) {
        q->l1_dirty_from = (uint32_t)index;
        q->l1_dirty_to = (uint32_t)index + 1;
    }
    if (index < q->l1_dirty_from)
        q->l1_dirty_from = (uint32_t)index;
    if (index >= q->l1_dirty_to)
        q->l1_dirty_to = (uint32_t)index + 1;
}

/* A new L2 table with these contents (NULL: empty). */
static int new_l2(struct qcow2 *q, const uint8_t *contents, struct qcow2_table **out,
                  uint64_t *offset)
{
    uint64_t cluster, count;
    int err = qcow2_allocate(q, 1, 1, &cluster, &count);

    if (err)
        return err;
    *offset = cluster << q->cluster_bits;
    err = qcow2_set_add(&q->metadata, cluster);
    err = err ? err : qcow2_cache_get(q, &q->l2, *offset, true, out);
    if (!err && contents)
        memcpy((*out)->data, contents, q->cluster_size);
    return err;
}

/* The L2 table that maps offset, as one that can be written. */
static int own_l2(struct qcow2 *q, uint64_t offset, struct qcow2_table **out)
{
    uint64_t index = l1_index(q, offset), old = q->l1[index] & QCOW2_OFFSET, new;
    uint8_t *contents = NULL;
    int err = find_l2(q, offset, true, out);

    if (err || (*out && q->l1[index] & QCOW2_COPIED))
        return err;
    if (*out) {
        contents = malloc(q->cluster_size);
        if (!contents)
            return -ENOMEM;
        memcpy(contents, (*out)->data, q->cluster_size);
    }
    err = new_l2(q, contents, out, &new);
    free(contents);
    if (err)
        return err;
    set_l1(q, index, new);
    if (!old)
        return 0;
    qcow2_cache_drop(&q->l2, old);
    return qcow2_free(q, old >> q->cluster_bits);
}

/* The references of an entry that is replaced. */
static int free_entry(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_OFFSET, len = q->cluster_size;
    int err = 0;

    if (entry & QCOW2_COMPRESSED) {
        qcow2_compressed_extent(q, entry, &offset, &len);
        pthread_mutex_lock(&q->inflated_lock);
        q->inflated_entry = 0;
        pthread_mutex_unlock(&q->inflated_lock);
    } else if (!offset) {
        return 0;
    } else if (!qcow2_aligned(q, offset)) {
        return qcow2_mark_corrupt(q);
    }
    for (uint64_t c = offset >> q->cluster_bits; c <= (offset + len - 1) >> q->cluster_bits && !err;
         c++)
        err = qcow2_set_has(&q->metadata, c) ? qcow2_mark_corrupt(q) : qcow2_free(q, c);
    return err;
}

static int replace_entry(struct qcow2 *q, struct qcow2_table *t, uint64_t index, uint64_t entry)
{
    uint64_t old = entry_at(t, index);

    qcow2_put64(t->data + index * 8, entry);
    t->dirty = true;
    if (!(old & QCOW2_COMPRESSED) && (old & QCOW2_OFFSET) == (entry & QCOW2_OFFSET))
        return 0;
    return free_entry(q, old);
}

/* -- Writing ----------------------------------------------------------------------------------- */

/* In place; never over metadata, whatever the tables say. */
static int write_in_place(struct qcow2 *q, uint64_t host, uint64_t n, struct block_iov *from)
{
    for (uint64_t c = host >> q->cluster_bits; c <= (host + n - 1) >> q->cluster_bits; c++)
        if (qcow2_set_has(&q->metadata, c))
            return -EUCLEAN;
    qcow2_raise_end(q, host + n);
    return block_file_writev(q->fd, host, n, from);
}

/* Puts what is at guest [offset, offset + n), all in one cluster, to host. */
static int copy_old(struct qcow2 *q, uint64_t offset, uint64_t n, uint64_t host, bool reads_zero)
{
    uint8_t *buf;
    struct iovec one;
    struct block_iov iov = {&one, 1, 0};
    int err = 0;

    /* The image may end within the cluster. */
    n = offset >= q->image.size ? 0 : min64(n, q->image.size - offset);
    if (!n || (reads_zero && host >= q->file_end))
        return 0;
    buf = calloc(1, n);
    if (!buf)
        return -ENOMEM;
    one = (struct iovec){buf, n};
    if (!reads_zero) {
        enum kind kind;
        uint64_t at, same;

        err = map(q, offset, n, true, &kind, &at, &same);
        err = err ? err : read_run(q, kind, at, offset, n, &iov);
    }
    err = err ? err : block_file_write(q->fd, host, buf, n);
    free(buf);
    return err;
}

static bool reads_zero(const struct qcow2 *q, uint64_t entry, uint64_t offset)
{
    enum kind kind = entry_kind(q, entry);

    return kind == ZEROS || (kind == UNALLOCATED && (!q->backing || offset >= q->backing->size));
}

/* Fills clusters [host, ...) that are to hold guest [offset, offset + n) with that, and with what
 * was there before around it. */
static int fill_clusters(struct qcow2 *q, const struct qcow2_table *t, uint64_t offset, uint64_t n,
                         uint64_t host, struct block_iov *from)
{
    uint64_t head = in_cluster(q, offset), end = offset + n, tail = in_cluster(q, end);
    uint64_t first = entry_at(t, l2_index(q, offset)), last = entry_at(t, l2_index(q, end - 1));
    uint64_t host_end = host + head + n;
    int err = 0;

    if (head)
        err = copy_old(q, offset - head, head, host, reads_zero(q, first, offset - head));
    if (!err && tail)
        err = copy_old(q, end, q->cluster_size - tail, host_end, reads_zero(q, last, end - tail));
    /* Whether or not the write succeeds: some of it may be there. */
    qcow2_raise_end(q, (host_end + q->cluster_size - 1) & ~(q->cluster_size - 1));
    return err ? err : block_file_writev(q->fd, host + head, n, from);
}

/* How many clusters from this one on cannot be written in place. */
static uint64_t count_to_allocate(const struct qcow2 *q, const struct qcow2_table *t,
                                  uint64_t index, uint64_t max)
{
    uint64_t n = 0;

    while (n < max && entry_kind(q, entry_at(t, index + n)) != OWN_DATA)
        n++;
    return n;
}

/* Writes the first of len bytes into new clusters, or a cluster that was kept for it; *n says how
 * many.  Lock held exclusively. */
static int write_new(struct qcow2 *q, uint64_t offset, uint64_t len, uint64_t *n,
                     struct block_iov *from)
{
    uint64_t index = l2_index(q, offset), head = in_cluster(q, offset), entry, first, count = 1;
    struct qcow2_table *t;
    bool kept;
    int err = own_l2(q, offset, &t);

    if (err)
        return err;
    entry = entry_at(t, index);
    kept = entry_kind(q, entry) == ZEROS && entry & QCOW2_OFFSET && entry & QCOW2_COPIED &&
           qcow2_aligned(q, entry & QCOW2_OFFSET);
    if (kept) {
        first = (entry & QCOW2_OFFSET) >> q->cluster_bits;
        if (qcow2_set_has(&q->metadata, first))
            return qcow2_mark_corrupt(q);
    } else {
        uint64_t most =
            (head + min64(len, l2_room(q, offset)) + q->cluster_size - 1) >> q->cluster_bits;

        err = qcow2_allocate(q, 1, count_to_allocate(q, t, index, most), &first, &count);
        if (err)
            return err;
    }
    *n = min64(len, (count << q->cluster_bits) - head);
    err = fill_clusters(q, t, offset, *n, first << q->cluster_bits, from);
    for (uint64_t i = 0; i < count && err && !kept; i++)
        qcow2_free(q, first + i);
    for (uint64_t i = 0; i < count && !err; i++)
        err = replace_entry(q, t, index + i, (first + i) << q->cluster_bits | QCOW2_COPIED);
    return err;
}

/* What must be done before the first change; lock not held. */
static int ready(struct qcow2 *q)
{
    int err = 0;

    if (q->started)
        return q->corrupt ? -EIO : 0;
    pthread_rwlock_wrlock(&q->lock);
    if (!q->started)
        err = qcow2_start(q);
    pthread_rwlock_unlock(&q->lock);
    return err;
}

static int qcow2_write(struct block_image *image, uint64_t offset, uint64_t len,
                       struct block_iov *from)
{
    struct qcow2 *q = (struct qcow2 *)image;
    bool exclusive = false;
    int err = ready(q);

    if (err)
        return err;
    pthread_rwlock_rdlock(&q->lock);
    while (len && !err) {
        enum kind kind = UNALLOCATED;
        uint64_t host, n = 0;

        err = q->corrupt ? -EIO : map(q, offset, len, exclusive, &kind, &host, &n);
        if (!exclusive && (err == -EAGAIN || (!err && kind != OWN_DATA))) {
            pthread_rwlock_unlock(&q->lock);
            pthread_rwlock_wrlock(&q->lock);
            exclusive = true;
            err = 0;
            continue;
        }
        if (!err && kind == OWN_DATA)
            err = write_in_place(q, host, n, from);
        else if (!err)
            err = write_new(q, offset, len, &n, from);
        offset += err ? 0 : n;
        len -= err ? 0 : n;
    }
    if (err == -EUCLEAN && !exclusive) {
        pthread_rwlock_unlock(&q->lock);
        pthread_rwlock_wrlock(&q->lock);
    }
    if (err == -EUCLEAN)
        err = qcow2_mark_corrupt(q);
    pthread_rwlock_unlock(&q->lock);
    return err;
}

static int qcow2_flush(struct block_image *image)
{
    struct qcow2 *q = (struct qcow2 *)image;
    int err;

    pthread_rwlock_rdlock(&q->lock);
    if (!qcow2_is_dirty(q)) {
        err = q->corrupt ? -EIO : fdatasync(q->fd) ? -errno : 0;
        pthread_rwlock_unlock(&q->lock);
        return err;
    }
    pthread_rwlock_unlock(&q->lock);
    pthread_rwlock_wrlock(&q->lock);
    err = qcow2_sync(q);
    pthread_rwlock_unlock(&q->lock);
    return err;
}

/* -- Zeros and discards ------------------------------------------------------------------------ */

/* The entry that a whole cluster gets; *write: zeros must be written, there is no entry for them.
 */
static uint64_t zero_entry(const struct qcow2 *q, uint64_t old, bool backed, bool unmap,
                           bool *write)
{
    enum kind kind = entry_kind(q, old);
    bool keeps = kind == OWN_DATA || (kind == ZEROS && old & QCOW2_COPIED);

    *write = false;
    if (!backed && (kind == UNALLOCATED || unmap))
        return 0;
    if (q->version >= 3)
        return keeps && !unmap ? old | QCOW2_ZERO : QCOW2_ZERO;
    *write = true;
    return old;
}

/* Whole clusters of one L2 table: those that need writing stay, *n says how far it got. */
static int zero_clusters(struct qcow2 *q, uint64_t offset, uint64_t len, bool unmap, bool discard,
                         uint64_t *n, bool *write)
{
    bool backed = q->backing && offset < q->backing->size;
    struct qcow2_table *t;
    int err = find_l2(q, offset, true, &t);

    *write = false;
    *n = min64(len, l2_room(q, offset));
    if (err || (!t && (!backed || discard)))
        return err;
    len = *n;
    err = own_l2(q, offset, &t);
    for (*n = 0; *n < len && !err && !*write; *n += *write ? 0 : q->cluster_size) {
        uint64_t index = l2_index(q, offset + *n), old = entry_at(t, index), new;

        /* A hint: what is the backing image's stays so. */
        if (discard && entry_kind(q, old) == UNALLOCATED)
            continue;
        new = zero_entry(q, old, backed, unmap, write);
        if (*write && discard)
            *write = false;
        else if (!*write && new != old)
            err = replace_entry(q, t, index, new);
    }
    return err;
}

static int write_zeros_as_data(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    uint8_t *zeros = len ? calloc(1, len) : NULL;
    struct iovec one = {zeros, len};
    struct block_iov iov = {&one, 1, 0};
    int err = 0;

    if (len)
        err = zeros ? qcow2_write(&q->image, offset, len, &iov) : -ENOMEM;
    free(zeros);
    return err;
}

static int zero_range(struct qcow2 *q, uint64_t offset, uint64_t len, bool unmap, bool discard)
{
    uint64_t end = offset + len, head = in_cluster(q, offset), n;
    int err = ready(q);

    /* The part of a cluster that the image ends in is all of it. */
    if (end == q->image.size)
        end = (end + q->cluster_size - 1) & ~(q->cluster_size - 1);
    if (head) {
        n = min64(q->cluster_size - head, len);
        err = err || discard ? err : write_zeros_as_data(q, offset, n);
        offset += n;
        if (n == len)
            return err;
    }
    while (offset + q->cluster_size <= end && !err) {
        bool write;

        pthread_rwlock_wrlock(&q->lock);
        err = q->corrupt ? -EIO
                         : zero_clusters(q, offset, (end - offset) & ~(q->cluster_size - 1), unmap,
                                         discard, &n, &write);
        pthread_rwlock_unlock(&q->lock);
        offset += err ? 0 : n;
        if (!err && write) {
            n = min64(q->cluster_size, q->image.size - offset);
            err = write_zeros_as_data(q, offset, n);
            offset += q->cluster_size;
        }
    }
    if (offset < end && !err && !discard)
        err = write_zeros_as_data(q, offset, end - offset);
    return err;
}

static int qcow2_discard(struct block_image *image, uint64_t offset, uint64_t len)
{
    return zero_range((struct qcow2 *)image, offset, len, true, true);
}

static int qcow2_write_zeroes(struct block_image *image, uint64_t offset, uint64_t len, bool unmap)
{
    return zero_range((struct qcow2 *)image, offset, len, unmap, false);
}

const struct block_format qcow2_format = {
    .name = "qcow2",
    .read = qcow2_read,
    .write = qcow2_write,
    .flush = qcow2_flush,
    .discard = qcow2_discard,
    .write_zeroes = qcow2_write_zeroes,
    .close = qcow2_close,
};
