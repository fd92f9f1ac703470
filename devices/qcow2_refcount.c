/* Refcounts and allocation of clusters, and the order in which tables reach the disk: see qcow2.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/qcow2.h"

#define REFTABLE_BYTES_MAX (8u << 20)
#define FREED_MAX          16384u

int qcow2_mark_corrupt(struct qcow2 *q)
{
    uint8_t bits[8];

    if (!q->corrupt && q->version >= 3 && !q->image.read_only) {
        q->incompatible |= QCOW2_CORRUPT;
        qcow2_put64(bits, q->incompatible);
        block_file_write(q->fd, QCOW2_HEADER_INCOMPATIBLE, bits, sizeof(bits));
    }
    q->corrupt = true;
    return -EIO;
}

/* -- Single refcounts -------------------------------------------------------------------------- */

/* log2 of the refcounts in a block. */
static unsigned block_bits(const struct qcow2 *q)
{
    return q->cluster_bits + 3 - q->refcount_order;
}

static uint64_t read_refcount(const struct qcow2 *q, const uint8_t *block, uint64_t index)
{
    unsigned order = q->refcount_order;
    uint64_t value = 0;

    if (order < 3) {
        unsigned per_byte = 8u >> order, bits = 1u << order;

        return block[index / per_byte] >> (index % per_byte * bits) & ((1u << bits) - 1);
    }
    for (unsigned i = 0, bytes = 1u << (order - 3); i < bytes; i++)
        value = value << 8 | block[index * bytes + i];
    return value;
}

static void write_refcount(const struct qcow2 *q, uint8_t *block, uint64_t index, uint64_t value)
{
    unsigned order = q->refcount_order;

    if (order < 3) {
        unsigned per_byte = 8u >> order, bits = 1u << order;
        unsigned shift = (unsigned)(index % per_byte * bits);
        uint8_t *at = &block[index / per_byte], mask = (uint8_t)(((1u << bits) - 1) << shift);

        *at = (uint8_t)((*at & ~mask) | (value << shift & mask));
        return;
    }
    for (unsigned bytes = 1u << (order - 3), i = bytes; i-- > 0; value >>= 8)
        block[index * bytes + i] = (uint8_t)value;
}

/* The block that holds a cluster's refcount; *out = NULL if there is none. */
static int get_block(struct qcow2 *q, uint64_t cluster, struct qcow2_table **out)
{
    uint64_t i = cluster >> block_bits(q), offset;

    *out = NULL;
    if (i >= q->reftable_entries || !q->reftable[i])
        return 0;
    offset = q->reftable[i] & QCOW2_OFFSET;
    if (!qcow2_aligned(q, offset))
        return qcow2_mark_corrupt(q);
    return qcow2_cache_get(q, &q->refblocks, offset, false, out);
}

static int get_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
    struct qcow2_table *t;
    int err = get_block(q, cluster, &t);

    if (!err)
        *out = t ? read_refcount(q, t->data, cluster & ((1ull << block_bits(q)) - 1)) : 0;
    return err;
}

/* The block must exist. */
static int set_refcount(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
    struct qcow2_table *t;
    int err = get_block(q, cluster, &t);

    if (err || !t)
        return err ? err : qcow2_mark_corrupt(q);
    write_refcount(q, t->data, cluster & ((1ull << block_bits(q)) - 1), value);
    t->dirty = true;
    return 0;
}

/* -- Blocks and their table -------------------------------------------------------------------- */

static void reftable_changed(struct qcow2 *q, uint64_t i)
{
    if (q->reftable_dirty_from == q->reftable_dirty_to) {
        q->reftable_dirty_from = i;
        q->reftable_dirty_to = i + 1;
    }
    if (i < q->reftable_dirty_from)
        q->reftable_dirty_from = i;
    if (i >= q->reftable_dirty_to)
        q->reftable_dirty_to = i + 1;
}

/* A larger table, in memory at once, on disk with the next sync, at a new place. */
static int grow_reftable(struct qcow2 *q, uint64_t need)
{
    uint64_t per_cluster = q->cluster_size / 8, entries = q->reftable_entries, first, count;
    uint64_t old_clusters = (entries + per_cluster - 1) / per_cluster;
    uint64_t *table;
    int err;

    if (q->old_reftable_offset) { /* the last move is not on disk yet */
        err = qcow2_sync(q);
        if (err)
            return err;
    }
    entries = entries + entries / 2 > need + 1 ? entries + entries / 2 : need + 2;
    entries = (entries + per_cluster - 1) / per_cluster * per_cluster;
    if (entries * 8 > REFTABLE_BYTES_MAX)
        return -EFBIG;
    table = realloc(q->reftable, entries * sizeof(*table));
    if (!table)
        return -ENOMEM;
    memset(table + q->reftable_entries, 0, (entries - q->reftable_entries) * sizeof(*table));
    q->reftable = table;
    q->reftable_entries = entries;
    err = qcow2_allocate(q, entries / per_cluster, entries / per_cluster, &first, &count);
    if (err)
        return err;
    for (uint64_t i = 0; i < count && !err; i++)
        err = qcow2_set_add(&q->metadata, first + i);
    q->old_reftable_offset = q->reftable_offset;
    q->old_reftable_clusters = old_clusters;
    q->reftable_offset = first << q->cluster_bits;
    return err;
}

/* Puts a new refcount block for the cluster's range at `place`, whose refcount is the caller's. */
static int add_block(struct qcow2 *q, uint64_t cluster, uint64_t place)
{
    uint64_t i = cluster >> block_bits(q);
    struct qcow2_table *t;
    int err = qcow2_set_add(&q->metadata, place);

    if (err)
        return err == -EEXIST ? qcow2_mark_corrupt(q) : err;
    err = qcow2_cache_get(q, &q->refblocks, place << q->cluster_bits, true, &t);
    if (err)
        return err;
    q->reftable[i] = place << q->cluster_bits;
    reftable_changed(q, i);
    return 0;
}

/* Whether a cluster can be allocated.  A missing refcount block is made out of the cluster itself,
 * which its own first refcount then counts: it is free no more. */
static int is_free(struct qcow2 *q, uint64_t cluster, bool *out)
{
    uint64_t i = cluster >> block_bits(q), refcount;
    int err = 0;

    *out = false;
    if (cluster > QCOW2_OFFSET >> q->cluster_bits)
        return -EFBIG;
    if (i >= q->reftable_entries)
        err = grow_reftable(q, i + 1);
    if (err)
        return err;
    if (!q->reftable[i]) {
        err = add_block(q, cluster, cluster);
        return err ? err : set_refcount(q, cluster, 1);
    }
    err = get_refcount(q, cluster, &refcount);
    if (err)
        return err;
    *out = refcount == 0;
    if (*out && qcow2_set_has(&q->metadata, cluster))
        return qcow2_mark_corrupt(q);
    return 0;
}

int qcow2_allocate(struct qcow2 *q, uint64_t min, uint64_t max, uint64_t *first, uint64_t *count)
{
    uint64_t at = q->free_hint, run = 0;
    int err = 0;

    if (q->corrupt)
        return -EIO;
    for (;; at++) {
        uint64_t entries = q->reftable_entries;
        bool free;

        err = is_free(q, at, &free);
        if (err)
            return err;
        if (q->reftable_entries != entries) {
            /* The table has grown, perhaps into the run that was being looked at. */
            at = q->free_hint - 1;
            run = 0;
            continue;
        }
        if (free && ++run == max) {
            at++;
            break;
        }
        if (!free) {
            if (run >= min)
                break;
            run = 0;
        }
    }
    *first = at - run;
    *count = run;
    for (uint64_t i = 0; i < run && !err; i++)
        err = set_refcount(q, *first + i, 1);
    /* Shorter runs before this one stay behind for those who want less. */
    if (min == 1)
        q->free_hint = *first + run;
    return err;
}

int qcow2_free(struct qcow2 *q, uint64_t cluster)
{
    if (q->nfreed >= FREED_MAX) {
        int err = qcow2_sync(q);

        if (err)
            return err;
    }
    if (q->nfreed == q->freed_capacity) {
        unsigned capacity = q->freed_capacity ? 2 * q->freed_capacity : 64;
        uint64_t *freed = realloc(q->freed, capacity * sizeof(*freed));

        if (!freed)
            return -ENOMEM;
        q->freed = freed;
        q->freed_capacity = capacity;
    }
    q->freed[q->nfreed++] = cluster;
    return 0;
}

/* The clusters that nobody refers to on disk any more. */
static int apply_freed(struct qcow2 *q)
{
    uint64_t hole = 0, hole_len = 0;

    for (unsigned i = 0; i < q->nfreed; i++) {
        uint64_t cluster = q->freed[i], refcount;
        int err = get_refcount(q, cluster, &refcount);

        if (!err && refcount == 0)
            err = qcow2_mark_corrupt(q);
        err = err ? err : set_refcount(q, cluster, refcount - 1);
        if (err) {
            memmove(q->freed, q->freed + i, (q->nfreed - i) * sizeof(*q->freed));
            q->nfreed -= i;
            return err;
        }
        if (refcount > 1)
            continue;
        qcow2_set_remove(&q->metadata, cluster);
        if (cluster < q->free_hint)
            q->free_hint = cluster;
        if (hole_len && hole + hole_len == cluster) {
            hole_len++;
            continue;
        }
        if (hole_len)
            block_file_discard(q->fd, hole << q->cluster_bits, hole_len << q->cluster_bits);
        hole = cluster;
        hole_len = 1;
    }
    if (hole_len)
        block_file_discard(q->fd, hole << q->cluster_bits, hole_len << q->cluster_bits);
    q->nfreed = 0;
    return 0;
}

/* -- Onto the disk ----------------------------------------------------------------------------- */

/* Entries [from, to) of a table of 64-bit numbers. */
static int write_entries(struct qcow2 *q, uint64_t offset, const uint64_t *table, uint64_t from,
                         uint64_t to)
{
    uint64_t bytes = (to - from) * 8;
    uint8_t *buf = malloc(bytes);
    int err;

    if (!buf)
        return -ENOMEM;
    for (uint64_t i = from; i < to; i++)
        qcow2_put64(buf + (i - from) * 8, table[i]);
    qcow2_raise_end(q, offset + to * 8);
    err = block_file_write(q->fd, offset + from * 8, buf, bytes);
    free(buf);
    return err;
}

static int barrier(struct qcow2 *q)
{
    return fdatasync(q->fd) ? -errno : 0;
}

static int write_moved_reftable(struct qcow2 *q)
{
    uint64_t old = q->old_reftable_offset >> q->cluster_bits, clusters = q->old_reftable_clusters;
    uint8_t field[12];
    uint32_t count = (uint32_t)(q->reftable_entries * 8 >> q->cluster_bits);
    int err = write_entries(q, q->reftable_offset, q->reftable, 0, q->reftable_entries);

    err = err ? err : barrier(q);
    if (err)
        return err;
    /* Offset and size lie in one sector: they change together. */
    qcow2_put64(field, q->reftable_offset);
    for (unsigned i = 0; i < 4; i++)
        field[8 + i] = (uint8_t)(count >> (24 - 8 * i));
    err = block_file_write(q->fd, QCOW2_HEADER_REFTABLE, field, sizeof(field));
    err = err ? err : barrier(q);
    if (err)
        return err;
    q->reftable_dirty_from = q->reftable_dirty_to = 0;
    q->old_reftable_offset = 0;
    for (uint64_t i = 0; i < clusters && !err; i++)
        err = qcow2_free(q, old + i);
    return err;
}

static bool reftable_dirty(const struct qcow2 *q)
{
    return q->reftable_dirty_from != q->reftable_dirty_to || q->old_reftable_offset;
}

bool qcow2_is_dirty(const struct qcow2 *q)
{
    return q->nfreed || reftable_dirty(q) || q->l1_dirty_from != q->l1_dirty_to ||
           qcow2_cache_dirty(&q->l2) || qcow2_cache_dirty(&q->refblocks);
}

/* After the refcount blocks: their table. */
static int sync_reftable(struct qcow2 *q)
{
    int err;

    if (!reftable_dirty(q))
        return 0;
    err = barrier(q);
    if (!err && q->old_reftable_offset)
        return write_moved_reftable(q);
    err = err ? err
              : write_entries(q, q->reftable_offset, q->reftable, q->reftable_dirty_from,
                              q->reftable_dirty_to);
    if (!err)
        q->reftable_dirty_from = q->reftable_dirty_to = 0;
    return err;
}

static int sync_mapping(struct qcow2 *q)
{
    int err = 0;

    if (qcow2_cache_dirty(&q->l2)) {
        err = barrier(q);
        err = err ? err : qcow2_cache_write(q, &q->l2);
    }
    if (!err && q->l1_dirty_from != q->l1_dirty_to) {
        err = barrier(q);
        err = err ? err : write_entries(q, q->l1_offset, q->l1, q->l1_dirty_from, q->l1_dirty_to);
        if (!err)
            q->l1_dirty_from = q->l1_dirty_to = 0;
    }
    return err;
}

int qcow2_sync(struct qcow2 *q)
{
    int err;

    if (q->corrupt)
        return -EIO;
    err = qcow2_cache_write(q, &q->refblocks);
    err = err ? err : sync_reftable(q);
    err = err ? err : sync_mapping(q);
    err = err ? err : barrier(q);
    return err ? err : apply_freed(q);
}

/* -- After a crash of somebody who did not keep them up to date ---------------------------------
 */

struct census {
    uint32_t *count;
    uint64_t clusters; /* of the file */
};

static int count_range(struct qcow2 *q, struct census *c, uint64_t offset, uint64_t len)
{
    uint64_t first = offset >> q->cluster_bits, last = (offset + len - 1) >> q->cluster_bits;

    if (len == 0)
        return 0;
    if (offset + len < offset || last >= c->clusters)
        return -EIO;
    for (uint64_t i = first; i <= last; i++)
        c->count[i]++;
    return 0;
}

static int count_l2(struct qcow2 *q, struct census *c, uint64_t l2_offset)
{
    struct qcow2_table *t;
    int err = count_range(q, c, l2_offset, q->cluster_size);

    err = err ? err : qcow2_cache_get(q, &q->l2, l2_offset, false, &t);
    for (uint64_t i = 0; i < 1ull << q->l2_bits && !err; i++) {
        uint64_t entry = qcow2_get64(t->data + i * 8), offset = entry & QCOW2_OFFSET;
        uint64_t len = q->cluster_size;

        if (entry & QCOW2_COMPRESSED)
            qcow2_compressed_extent(q, entry, &offset, &len);
        else if (offset && !qcow2_aligned(q, offset))
            err = -EIO;
        if (offset && !err)
            err = count_range(q, c, offset, len);
    }
    return err;
}

static int take_census(struct qcow2 *q, struct census *c)
{
    int err = count_range(q, c, 0, q->cluster_size);

    err = err ? err : count_range(q, c, q->l1_offset, q->l1_size * 8ull);
    err = err ? err : count_range(q, c, q->reftable_offset, q->reftable_entries * 8);
    for (uint64_t i = 0; i < q->reftable_entries && !err; i++)
        if (q->reftable[i])
            err = count_range(q, c, q->reftable[i] & QCOW2_OFFSET, q->cluster_size);
    for (uint32_t i = 0; i < q->l1_size && !err; i++)
        if (q->l1[i] & QCOW2_OFFSET)
            err = count_l2(q, c, q->l1[i] & QCOW2_OFFSET);
    return err;
}

int qcow2_rebuild_refcounts(struct qcow2 *q)
{
    uint64_t clusters = (q->file_end + q->cluster_size - 1) >> q->cluster_bits;
    uint64_t spare = (clusters >> block_bits(q)) + 4, end = clusters;
    struct census c = {.clusters = clusters};
    int err;

    if (clusters > QCOW2_COUNT_MAX)
        return -EFBIG;
    c.count = calloc(clusters + spare, sizeof(*c.count));
    if (!c.count)
        return -ENOMEM;
    err = take_census(q, &c);
    /* New blocks go behind the end, where their own counts are met in turn. */
    for (uint64_t i = 0; i < end && !err; i++) {
        uint64_t have;

        err = get_refcount(q, i, &have);
        if (err || have == c.count[i])
            continue;
        if (i >> block_bits(q) >= q->reftable_entries || end == clusters + spare) {
            err = -EFBIG;
        } else if (!q->reftable[i >> block_bits(q)]) {
            err = add_block(q, i, end);
            c.count[end++] = 1;
        }
        err = err ? err : set_refcount(q, i, c.count[i]);
    }
    free(c.count);
    return err ? err : qcow2_sync(q);
}
