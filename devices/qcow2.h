/*
 * Inside the qcow2 format (QEMU's docs/interop/qcow2.txt): versions 2 and 3.
 *
 * Locking.  `lock` is held shared by transfers to and from clusters that are mapped already, data
 * included, and exclusively by whatever allocates, frees or changes a table, or brings one into a
 * cache.  So a cluster is never freed, or used for something else, under a transfer.
 *
 * Order on disk.  Tables are changed in memory and written by qcow2_sync(), in an order in which
 * a crash at any point leaves clusters allocated that nobody uses, at worst:
 *     data and refcount blocks -> refcount table -> L2 tables -> L1 table -> freed refcounts
 * with an fdatasync between each two of them that have something to write.  References go down
 * only after the last one, and a cluster is not used again before its refcount has gone down.
 *
 * A crash therefore costs space at worst, and not for long: the dirty bit is set in the file from
 * the first write until it is closed, and has the next writer, us or QEMU, count references anew.
 * Not in version 2, which has no such bit, nor with internal snapshots, which we do not count.
 *
 * Trust.  All of the file is hostile.  Offsets are checked where they are used; data is never
 * written to a cluster that is known to hold metadata (`metadata`, a set that starts with what the
 * tables say at opening and follows every allocation).
 */
#ifndef RINGSHIFT_DEVICES_QCOW2_H
#define RINGSHIFT_DEVICES_QCOW2_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/block_image.h"

#define QCOW2_OFFSET     0x00fffffffffffe00ull /* of L1, L2 and refcount table entries */
#define QCOW2_COPIED     (1ull << 63)          /* the refcount is exactly one */
#define QCOW2_COMPRESSED (1ull << 62)
#define QCOW2_ZERO       1ull

/* Incompatible features. */
#define QCOW2_DIRTY   (1ull << 0)
#define QCOW2_CORRUPT (1ull << 1)

/* Offsets of header fields that are written. */
#define QCOW2_HEADER_REFTABLE     48
#define QCOW2_HEADER_INCOMPATIBLE 72
#define QCOW2_HEADER_AUTOCLEAR    88

/* Clusters of a file whose references are counted at most: 4 bytes of memory each. */
#define QCOW2_COUNT_MAX (1ull << 28)

#define QCOW2_WAYS 8

/* A table in memory, as on disk (big-endian). */
struct qcow2_table {
    uint64_t offset; /* 0: none */
    uint8_t *data;
    bool dirty;
    _Atomic uint32_t used; /* time of the last use */
};

struct qcow2_cache {
    struct qcow2_table *table; /* sets * QCOW2_WAYS */
    unsigned sets;
    _Atomic uint32_t clock;
};

/* Clusters that hold metadata: a hash set of cluster numbers. */
struct qcow2_set {
    uint64_t *slot; /* number + 1, or 0 */
    uint64_t slots, count;
};

struct qcow2 {
    struct block_image image;
    int fd;
    unsigned version, cluster_bits, refcount_order;
    uint64_t cluster_size;
    unsigned l2_bits; /* log2 of the entries of an L2 table */
    uint64_t incompatible, autoclear;
    bool keeps_dirty_bit;
    struct block_image *backing; /* or NULL */

    pthread_rwlock_t lock;
    _Atomic bool started; /* the first write has prepared the file */
    _Atomic bool corrupt; /* found out at run time: no more writes */

    uint64_t *l1; /* host byte order */
    uint64_t l1_offset;
    uint32_t l1_size, l1_dirty_from, l1_dirty_to; /* [from, to) is to be written */
    struct qcow2_cache l2;

    uint64_t *reftable; /* host byte order */
    uint64_t reftable_offset, reftable_entries, reftable_dirty_from, reftable_dirty_to;
    uint64_t old_reftable_offset, old_reftable_clusters; /* moved, and the header does not know */
    struct qcow2_cache refblocks;
    uint64_t free_hint;        /* no cluster below it is free */
    _Atomic uint64_t file_end; /* nothing was ever written beyond: reads as zeros */
    uint64_t *freed;           /* clusters whose refcounts go down when the tables are on disk */
    unsigned nfreed, freed_capacity;
    struct qcow2_set metadata;

    pthread_mutex_t inflated_lock;
    uint64_t inflated_entry; /* the L2 entry of the compressed cluster that is in `inflated` */
    uint8_t *inflated;
};

static inline uint64_t qcow2_get64(const void *at)
{
    uint64_t v;

    __builtin_memcpy(&v, at, 8);
    return __builtin_bswap64(v);
}

static inline void qcow2_put64(void *at, uint64_t v)
{
    v = __builtin_bswap64(v);
    __builtin_memcpy(at, &v, 8);
}

static inline bool qcow2_aligned(const struct qcow2 *q, uint64_t offset)
{
    return (offset & (q->cluster_size - 1)) == 0;
}

/* Something is about to be written up to there. */
static inline void qcow2_raise_end(struct qcow2 *q, uint64_t end)
{
    uint64_t now = q->file_end;

    while (now < end && !atomic_compare_exchange_weak(&q->file_end, &now, end))
        ;
}

/* -- qcow2_cache.c: lock held exclusively, but for qcow2_cache_find(). --------------------------
 */
int qcow2_cache_init(struct qcow2_cache *c, uint64_t cluster_size);
void qcow2_cache_destroy(struct qcow2_cache *c);
/* The table if it is in memory, else NULL.  Lock held in any way. */
struct qcow2_table *qcow2_cache_find(struct qcow2_cache *c, uint64_t offset);
/* Brings the table in: from the file, or, if `fresh`, as zeros that are to be written. */
int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *c, uint64_t offset, bool fresh,
                    struct qcow2_table **out);
/* Writes what is dirty. */
int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *c);
bool qcow2_cache_dirty(const struct qcow2_cache *c);
/* Forgets a table that is freed. */
void qcow2_cache_drop(struct qcow2_cache *c, uint64_t offset);

int qcow2_set_add(struct qcow2_set *s, uint64_t number);
bool qcow2_set_has(const struct qcow2_set *s, uint64_t number);
void qcow2_set_remove(struct qcow2_set *s, uint64_t number);

/* -- qcow2_refcount.c: lock held exclusively. ---------------------------------------------------
 */
/* Gives min to max consecutive free clusters the refcount 1; *first is the first one's number. */
int qcow2_allocate(struct qcow2 *q, uint64_t min, uint64_t max, uint64_t *first, uint64_t *count);
/* One reference less, once the tables are on disk. */
int qcow2_free(struct qcow2 *q, uint64_t cluster);
/* Everything in order onto the disk, and then the freed clusters. */
int qcow2_sync(struct qcow2 *q);
/* Whether qcow2_sync() has tables to write.  Lock held in any way. */
bool qcow2_is_dirty(const struct qcow2 *q);
/* Computes all refcounts anew, as the dirty bit asks for. */
int qcow2_rebuild_refcounts(struct qcow2 *q);
/* The file contradicts itself: marks it so, ends all writing.  Returns -EIO. */
int qcow2_mark_corrupt(struct qcow2 *q);

/* -- qcow2_io.c -------------------------------------------------------------------------------- */
extern const struct block_format qcow2_format;
/* Where compressed data is: offset, and the bytes from there that hold it. */
void qcow2_compressed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *offset,
                             uint64_t *len);
int qcow2_close(struct block_image *image); /* qcow2.c */
int qcow2_start(struct qcow2 *q);           /* qcow2.c; lock held exclusively */

#endif
