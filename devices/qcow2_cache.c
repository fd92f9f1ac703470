/* Tables in memory, and the set of metadata clusters: see qcow2.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/qcow2.h"

#define CACHE_BYTES (4u << 20)
#define MAX_SETS    128u

int qcow2_cache_init(struct qcow2_cache *c, uint64_t cluster_size)
{
    uint64_t sets = CACHE_BYTES / cluster_size / QCOW2_WAYS;

    c->sets = sets < 1 ? 1 : sets > MAX_SETS ? MAX_SETS : (unsigned)sets;
    c->table = calloc((size_t)c->sets * QCOW2_WAYS, sizeof(*c->table));
    return c->table ? 0 : -ENOMEM;
}

void qcow2_cache_destroy(struct qcow2_cache *c)
{
    for (unsigned i = 0; c->table && i < c->sets * QCOW2_WAYS; i++)
        free(c->table[i].data);
    free(c->table);
}

static struct qcow2_table *set_of(const struct qcow2_cache *c, uint64_t offset)
{
    uint64_t hash = (offset >> 9) * 0x9e3779b97f4a7c15ull >> 32;

    return &c->table[hash % c->sets * QCOW2_WAYS];
}

struct qcow2_table *qcow2_cache_find(struct qcow2_cache *c, uint64_t offset)
{
    struct qcow2_table *set = set_of(c, offset);

    for (unsigned i = 0; i < QCOW2_WAYS; i++) {
        if (set[i].offset == offset && offset) {
            set[i].used = ++c->clock;
            return &set[i];
        }
    }
    return NULL;
}

static int write_table(struct qcow2 *q, struct qcow2_table *t)
{
    int err;

    if (!t->dirty)
        return 0;
    qcow2_raise_end(q, t->offset + q->cluster_size);
    err = block_file_write(q->fd, t->offset, t->data, q->cluster_size);
    if (!err)
        t->dirty = false;
    return err;
}

/* The way to fill: an empty one, or the one that was used longest ago. */
static struct qcow2_table *victim(struct qcow2_cache *c, uint64_t offset)
{
    struct qcow2_table *set = set_of(c, offset), *best = set;

    for (unsigned i = 0; i < QCOW2_WAYS; i++) {
        if (!set[i].offset)
            return &set[i];
        if ((int32_t)(set[i].used - best->used) < 0)
            best = &set[i];
    }
    return best;
}

int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *c, uint64_t offset, bool fresh,
                    struct qcow2_table **out)
{
    struct qcow2_table *t = qcow2_cache_find(c, offset);
    int err = 0;

    if (!t) {
        t = victim(c, offset);
        if (t->dirty && c == &q->l2) {
            err = qcow2_sync(q); /* an L2 table comes after refcounts */
            t = victim(c, offset);
        } else if (t->dirty) {
            err = write_table(q, t);
        }
        if (err)
            return err;
        t->offset = 0;
        if (!t->data)
            t->data = malloc(q->cluster_size);
        if (!t->data)
            return -ENOMEM;
        if (!fresh)
            err = block_file_read(q->fd, offset, t->data, q->cluster_size);
        if (err)
            return err;
        t->offset = offset;
        t->used = ++c->clock;
    }
    if (fresh) {
        memset(t->data, 0, q->cluster_size);
        t->dirty = true;
    }
    *out = t;
    return 0;
}

int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *c)
{
    int err = 0;

    for (unsigned i = 0; i < c->sets * QCOW2_WAYS && !err; i++)
        err = write_table(q, &c->table[i]);
    return err;
}

bool qcow2_cache_dirty(const struct qcow2_cache *c)
{
    for (unsigned i = 0; i < c->sets * QCOW2_WAYS; i++)
        if (c->table[i].dirty)
            return true;
    return false;
}

void qcow2_cache_drop(struct qcow2_cache *c, uint64_t offset)
{
    struct qcow2_table *t = qcow2_cache_find(c, offset);

    if (t) {
        t->dirty = false;
        t->offset = 0;
    }
}

/* -- The set ----------------------------------------------------------------------------------- */

static uint64_t *find_slot(const struct qcow2_set *s, uint64_t number)
{
    uint64_t at = (number * 0x9e3779b97f4a7c15ull >> 20) & (s->slots - 1);

    while (s->slot[at] && s->slot[at] != number + 1)
        at = (at + 1) & (s->slots - 1);
    return &s->slot[at];
}

bool qcow2_set_has(const struct qcow2_set *s, uint64_t number)
{
    return s->slots && *find_slot(s, number);
}

static int grow(struct qcow2_set *s)
{
    struct qcow2_set bigger = {.slots = s->slots ? 2 * s->slots : 256, .count = s->count};

    bigger.slot = calloc(bigger.slots, sizeof(*bigger.slot));
    if (!bigger.slot)
        return -ENOMEM;
    for (uint64_t i = 0; i < s->slots; i++)
        if (s->slot[i])
            *find_slot(&bigger, s->slot[i] - 1) = s->slot[i];
    free(s->slot);
    *s = bigger;
    return 0;
}

int qcow2_set_add(struct qcow2_set *s, uint64_t number)
{
    uint64_t *slot;

    if (s->count >= s->slots / 2 && grow(s))
        return -ENOMEM;
    slot = find_slot(s, number);
    if (*slot)
        return -EEXIST;
    *slot = number + 1;
    s->count++;
    return 0;
}

void qcow2_set_remove(struct qcow2_set *s, uint64_t number)
{
    uint64_t *slot;

    if (!qcow2_set_has(s, number))
        return;
    slot = find_slot(s, number);
    *slot = 0;
    s->count--;
    /* What the hole would cut off from its place is put in again. */
    for (uint64_t at = (uint64_t)(slot - s->slot);;) {
        uint64_t value;

        at = (at + 1) & (s->slots - 1);
        value = s->slot[at];
        if (!value)
            break;
        s->slot[at] = 0;
        *find_slot(s, value - 1) = value;
    }
}
