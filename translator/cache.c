/*
 * The code cache: where translated blocks live and how they are found, linked and dropped.
 *
 * One memfd is mapped twice: writable anywhere, executable below 2 GiB (never both, W^X).  It is
 * cut into regions that fill in turn, one at a time with translations and one with blocks that were
 * moved (move.c); when the last is full the oldest is evicted whole.  Within a
 * region blocks are laid out in allocation order, so "which block is this host address in" is a
 * binary search.  A dropped block's code and side table stay readable until its region is evicted,
 * because a vCPU may still be inside it; eviction is only done by a vCPU that is in C code.
 */
#include "translator/bt.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "runtime/trace.h"
#include "translator/emit.h"
#include "translator/trace.h"

#define LOW_MIN       0x10000000ull
#define LOW_MAX       0x78000000ull
#define MAX_TB_CODE   (48u << 10) /* upper bound of one block's code, slow paths included */
#define MAX_TB_META   (64u << 10)
#define MIN_CACHE     (2u << 20)
#define DEFAULT_CACHE (64ull << 20)

/* -- Blocks by address and key -------------------------------------------------------------------- */

#define TABLE_MIN_BITS  16u
#define MODELS_MIN_BITS 12u

static uint32_t tag_of(uint64_t gva, uint64_t gpa, uint32_t key, uint64_t cs)
{
    uint64_t h = gva ^ (gpa * 0x9e3779b97f4a7c15ull) ^ ((uint64_t)(key ^ (uint32_t)cs) << 40);
    return (uint32_t)((h * 0xff51afd7ed558ccdull) >> 32);
}

static uint32_t tag_of_tb(const struct tb *tb)
{
    return tag_of(tb->gva, tb->gpa, tb->key, tb->cs);
}

static uint64_t table_bytes(unsigned bits)
{
    return sizeof(struct tb_slot) << bits;
}

static void table_put(struct tb_table *t, struct tb_slot new)
{
    uint32_t mask = (1u << t->bits) - 1, i = new.tag >> (32 - t->bits);
    while (t->slot[i].tb)
        i = (i + 1) & mask;
    t->slot[i] = new;
}

static int table_init(struct tb_table *t, unsigned bits)
{
    t->slot =
        mmap(NULL, table_bytes(bits), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t->slot == MAP_FAILED) {
        t->slot = NULL;
        return -ENOMEM;
    }
    t->bits = bits;
    return 0;
}

static void table_destroy(struct tb_table *t)
{
    if (t->slot)
        munmap(t->slot, table_bytes(t->bits));
    t->slot = NULL;
}

static bool table_roomy(const struct tb_table *t)
{
    return t->n < 1u << (t->bits - 1);
}

/* Where memory for a larger table is refused, the one there is gets fuller. When it is full the
 * block is in no table, and never found again; it dies with its page or its region. */
static void table_insert(struct tb_table *t, uint32_t tag, struct tb *tb)
{
    if (!table_roomy(t)) {
        struct tb_table bigger = {.n = t->n};
        if (!table_init(&bigger, t->bits + 1)) {
            for (uint32_t i = 0; i < 1u << t->bits; i++)
                if (t->slot[i].tb)
                    table_put(&bigger, t->slot[i]);
            table_destroy(t);
            *t = bigger;
        } else if (t->n + 1 >= 1u << t->bits) { /* lookups end at a free slot */
            return;
        }
    }
    t->n++;
    table_put(t, (struct tb_slot){tag, (uint32_t)(uintptr_t)tb});
}

/* Closes the gap, so that no search ends before what it looks for. */
static void table_remove(struct tb_table *t, uint32_t tag, const struct tb *tb)
{
    uint32_t mask = (1u << t->bits) - 1, i = tag >> (32 - t->bits);
    while (t->slot[i].tb && t->slot[i].tb != (uint32_t)(uintptr_t)tb)
        i = (i + 1) & mask;
    if (!t->slot[i].tb)
        return;
    t->n--;
    for (uint32_t k = (i + 1) & mask; t->slot[k].tb; k = (k + 1) & mask) {
        uint32_t home = t->slot[k].tag >> (32 - t->bits);
        if (((k - home) & mask) >= ((k - i) & mask)) {
            t->slot[i] = t->slot[k];
            i = k;
        }
    }
    t->slot[i].tb = 0;
}

struct tb *cache_lookup(struct bt_engine *bt, uint64_t gva, uint64_t gpa, uint32_t key, uint64_t cs)
{
    const struct tb_table *t = &bt->table;
    uint32_t tag = tag_of(gva, gpa, key, cs), mask = (1u << t->bits) - 1;
    for (uint32_t i = tag >> (32 - t->bits); t->slot[i].tb; i = (i + 1) & mask) {
        struct tb *tb = (struct tb *)(uintptr_t)t->slot[i].tb;
        if (t->slot[i].tag == tag && tb->gva == gva && tb->gpa == gpa && tb->key == key &&
            tb->cs == cs)
            return tb;
    }
    return NULL;
}

/* -- Models ---------------------------------------------------------------------------------------
 *
 * Of the blocks of the same code, with the same key, at different addresses one is the model that
 * move.c copies: the one that was translated last, of the second tier if there is one of that.
 */

static uint32_t tag_of_model(uint64_t gpa, uint32_t key)
{
    return tag_of(0, gpa, key, 0);
}

static struct tb_slot *model_slot(struct bt_engine *bt, uint64_t gpa, uint32_t key)
{
    const struct tb_table *t = &bt->models;
    uint32_t tag = tag_of_model(gpa, key), mask = (1u << t->bits) - 1;
    for (uint32_t i = tag >> (32 - t->bits); t->slot[i].tb; i = (i + 1) & mask) {
        const struct tb *tb = (struct tb *)(uintptr_t)t->slot[i].tb;
        if (t->slot[i].tag == tag && tb->gpa == gpa && tb->key == key)
            return &t->slot[i];
    }
    return NULL;
}

struct tb *cache_model(struct bt_engine *bt, uint64_t gpa, uint32_t key)
{
    const struct tb_slot *slot = model_slot(bt, gpa, key);
    return slot ? (struct tb *)(uintptr_t)slot->tb : NULL;
}

bool cache_tables_roomy(const struct bt_engine *bt)
{
    return table_roomy(&bt->table) && table_roomy(&bt->models);
}

static void offer_model(struct bt_engine *bt, struct tb *tb)
{
    struct tb_slot *slot = model_slot(bt, tb->gpa, tb->key);
    struct tb *now = slot ? (struct tb *)(uintptr_t)slot->tb : NULL;
    if (now && now->hot && !tb->hot)
        return;
    tb->model = true;
    if (now) {
        now->model = false;
        slot->tb = (uint32_t)(uintptr_t)tb;
    } else {
        table_insert(&bt->models, tag_of_model(tb->gpa, tb->key), tb);
    }
}

/* -- Memory --------------------------------------------------------------------------------------- */

/*
 * Translated code is many times the size of what it stands for, and spread: on 4K pages the host
 * would spend more time on its instruction TLB than on the instructions.  Where the host backs
 * shared memory by huge pages when asked to ("advise"), both mappings of the cache ask, aligned to
 * them.
 */
#define HUGE_PAGE (2ull << 20)

/* Maps `size` bytes below 2 GiB at a random place, aligned to huge pages. */
static void *map_low(uint64_t size, int prot, int flags, int fd)
{
    uint64_t slots = (LOW_MAX - LOW_MIN - size) / HUGE_PAGE, rnd = 0;
    for (int tries = 0; tries < 256; tries++) {
        if (getrandom(&rnd, sizeof rnd, 0) != sizeof rnd)
            rnd = rnd * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t at = LOW_MIN + (rnd % slots) * HUGE_PAGE;
        void *p = mmap((void *)at, size, prot, flags | MAP_FIXED_NOREPLACE, fd, 0);
        if (p == (void *)at) {
            madvise(p, size, MADV_HUGEPAGE);
            return p;
        }
        if (p != MAP_FAILED)
            munmap(p, size);
    }
    return MAP_FAILED;
}

/* Maps the cache writable, aligned to huge pages. */
static void *map_writable(uint64_t size, int fd)
{
    uint8_t *p = mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
    if (p == MAP_FAILED)
        return p;
    uint8_t *at = (uint8_t *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    uint64_t before = (uint64_t)(at - p);
    if (before)
        munmap(p, before);
    if (before < HUGE_PAGE)
        munmap(at + size, HUGE_PAGE - before);
    void *w = mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (w == MAP_FAILED)
        munmap(at, size);
    else
        madvise(w, size, MADV_HUGEPAGE);
    return w;
}

int cache_init(struct bt_engine *bt, uint64_t size, char *err, unsigned errlen)
{
    if (!size)
        size = DEFAULT_CACHE;
    if (size < MIN_CACHE)
        size = MIN_CACHE;
    size = (size + (CACHE_REGIONS << 12) - 1) & ~(uint64_t)((CACHE_REGIONS << 12) - 1);
    bt->code_size = size;
    bt->meta_bytes = size * 3;
    bt->code_fd = memfd_create("ringshift-code", MFD_CLOEXEC);
    if (bt->code_fd < 0 || ftruncate(bt->code_fd, (off_t)size) < 0) {
        snprintf(err, errlen, "cannot create the code cache (memfd of %llu bytes): %s",
                 (unsigned long long)size, strerror(errno));
        return -errno;
    }
    bt->code_w = map_writable(size, bt->code_fd);
    void *x = map_low(size, PROT_READ | PROT_EXEC, MAP_SHARED, bt->code_fd);
    void *meta = map_low(bt->meta_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    bt->n_pages = bt->ram->span >> GUEST_PAGE_SHIFT;
    bt->page_tbs = mmap(NULL, bt->n_pages * sizeof *bt->page_tbs, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bt->far = far_links_new();
    if (!bt->far || table_init(&bt->table, TABLE_MIN_BITS) ||
        table_init(&bt->models, MODELS_MIN_BITS) || bt->code_w == MAP_FAILED ||
        x == MAP_FAILED || meta == MAP_FAILED ||
        bt->page_tbs == MAP_FAILED) {
        snprintf(err, errlen,
                 "cannot map the code cache executable below 2 GiB: %s (a policy against "
                 "executable shared memory, such as SELinux or noexec shmem, stops this)",
                 strerror(errno));
        return -ENOMEM;
    }
    bt->code_x = (uint32_t)(uintptr_t)x;
    bt->meta = meta;
    uint32_t rc = (uint32_t)(size / CACHE_REGIONS), rm = (uint32_t)(bt->meta_bytes / CACHE_REGIONS);
    for (unsigned i = 0; i < CACHE_REGIONS; i++) {
        struct cache_region *r = &bt->region[i];
        r->code_w = bt->code_w + (size_t)i * rc;
        r->code_x = bt->code_x + i * rc;
        r->code_size = rc;
        /* The index of blocks by address sits at the end of the metadata arena. */
        r->max_tbs = rm / 256;
        r->meta = bt->meta + (size_t)i * rm;
        r->meta_size = (rm - r->max_tbs * (uint32_t)sizeof(struct tb *)) & ~63u;
        r->tbs = (struct tb **)(r->meta + r->meta_size);
    }
    bt->current[CACHE_TRANSLATED] = &bt->region[0];
    bt->region[0].stamp = bt->regions_begun = 1;
    return 0;
}

void cache_destroy(struct bt_engine *bt)
{
    table_destroy(&bt->table);
    table_destroy(&bt->models);
    far_links_free(bt->far);
    if (bt->code_w && bt->code_w != MAP_FAILED)
        munmap(bt->code_w, bt->code_size);
    if (bt->code_x)
        munmap((void *)(uintptr_t)bt->code_x, bt->code_size);
    if (bt->meta && bt->meta != MAP_FAILED)
        munmap(bt->meta, bt->meta_bytes);
    if (bt->page_tbs && bt->page_tbs != MAP_FAILED)
        munmap(bt->page_tbs, bt->n_pages * sizeof *bt->page_tbs);
    if (bt->code_fd >= 0)
        close(bt->code_fd);
}

void *cache_meta_alloc(struct cache_region *r, uint32_t size)
{
    size = (size + 15) & ~15u;
    if (size > r->meta_size - r->meta_used)
        return NULL;
    void *p = r->meta + r->meta_used;
    r->meta_used += size;
    return p;
}

static bool region_has_room(const struct cache_region *r)
{
    return r->code_size - r->code_used >= MAX_TB_CODE &&
           r->meta_size - r->meta_used >= MAX_TB_META && r->n_tbs < r->max_tbs;
}

static struct cache_region *older(struct cache_region *a, struct cache_region *b)
{
    return !a || b->stamp < a->stamp ? b : a;
}

/*
 * The region to fill next: one that was never used, else the one that was begun first.  Copies get
 * MOVED_REGIONS at most, so that they, which come with each process, do not drive out what they are
 * copies of.
 */
static struct cache_region *choose_region(struct bt_engine *bt, enum cache_use use)
{
    struct cache_region *any = NULL, *copies = NULL;
    unsigned n_copies = 0;
    for (unsigned i = 0; i < CACHE_REGIONS; i++) {
        struct cache_region *r = &bt->region[i];
        bool holds_copies = r->stamp && r->use == CACHE_MOVED;
        n_copies += holds_copies;
        if (holds_copies)
            copies = older(copies, r);
        if (r != bt->current[CACHE_TRANSLATED])
            any = older(any, r);
    }
    return use == CACHE_MOVED && n_copies == MOVED_REGIONS ? copies : any;
}

struct cache_region *cache_reserve(struct bt_engine *bt, enum cache_use use)
{
    struct cache_region *r = bt->current[use];
    if (r && region_has_room(r))
        return r;
    r = choose_region(bt, use);
    for (unsigned i = 0; i < CACHE_USES; i++)
        if (bt->current[i] == r)
            bt->current[i] = NULL;
    bt->current[use] = r;
    r->use = use;
    r->stamp = ++bt->regions_begun;
    if (r->n_tbs) {
        for (uint32_t i = 0; i < r->n_tbs; i++)
            if (!r->tbs[i]->dead)
                cache_invalidate_tb(bt, r->tbs[i]);
        bt->stats.evictions++;
    }
    r->code_used = r->meta_used = r->n_tbs = 0;
    if (r == &bt->region[0]) { /* the stubs stay */
        r->code_used = bt->stubs_end - bt->stubs_x;
        r->code_used = (r->code_used + 63) & ~63u;
    }
    return r;
}

struct tb *cache_find_pc(struct bt_engine *bt, uint64_t x)
{
    if (!cache_contains(bt, x))
        return NULL;
    uint32_t rc = (uint32_t)(bt->code_size / CACHE_REGIONS);
    struct cache_region *r = &bt->region[(x - bt->code_x) / rc];
    uint32_t lo = 0, hi = r->n_tbs;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (r->tbs[mid]->host_end <= x)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == r->n_tbs || r->tbs[lo]->entry_ind > x)
        return NULL;
    return r->tbs[lo];
}

const struct side_entry *tb_side_lookup(const struct tb *tb, uint64_t x)
{
    uint32_t lo = 0, hi = tb->n_side; /* last entry with host <= x */
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (side_host(tb, &tb->side[mid]) <= x)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? &tb->side[lo - 1] : NULL;
}

/* Two virtual pages may be one guest-physical page; a block is on a page's list once. */
static bool two_pages(const struct tb *tb)
{
    return tb->gpa2 != ~0ull && tb->gpa2 >> GUEST_PAGE_SHIFT != tb->gpa >> GUEST_PAGE_SHIFT;
}

/* Page lists hold a block once for each of its pages; which `next` applies depends on the list. */
static struct tb **page_next(struct tb *t, uint64_t page)
{
    return t->gpa >> GUEST_PAGE_SHIFT == page ? &t->page_next : &t->page2_next;
}

static struct tb ***page_prev(struct tb *t, uint64_t page)
{
    return t->gpa >> GUEST_PAGE_SHIFT == page ? &t->page_prev : &t->page2_prev;
}

static void page_list_add(struct bt_engine *bt, struct tb *tb, uint64_t page)
{
    struct tb **head = &bt->page_tbs[page];
    *page_next(tb, page) = *head;
    *page_prev(tb, page) = head;
    if (*head)
        *page_prev(*head, page) = page_next(tb, page);
    *head = tb;
}

static void page_list_remove(struct bt_engine *bt, struct tb *tb, uint64_t page)
{
    struct tb *next = *page_next(tb, page), **prev = *page_prev(tb, page);
    *prev = next;
    if (next)
        *page_prev(next, page) = prev;
    if (!bt->page_tbs[page])
        bt->ram->page_flags[page] &= (uint8_t)~RAM_PAGE_CODE;
}

void cache_insert(struct bt_engine *bt, struct cache_region *r, struct tb *tb)
{
    r->tbs[r->n_tbs++] = tb;
    table_insert(&bt->table, tag_of_tb(tb), tb);
    if (tb->reloc && r->use == CACHE_TRANSLATED)
        offer_model(bt, tb);
    page_list_add(bt, tb, tb->gpa >> GUEST_PAGE_SHIFT);
    if (two_pages(tb))
        page_list_add(bt, tb, tb->gpa2 >> GUEST_PAGE_SHIFT);
}

void cache_patch(struct bt_engine *bt, struct link *l, uint32_t target)
{
    uint32_t rel = target - (l->patch_x + 4);
    unsigned shift = l->patch_x % 8 * 8; /* at most 32: jump_link() */
    uint64_t *word = (uint64_t *)(bt->code_w + (l->patch_x - l->patch_x % 8 - bt->code_x));
    uint64_t others = *word & ~(0xffffffffull << shift);
    __atomic_store_n(word, others | (uint64_t)rel << shift, __ATOMIC_RELEASE);
}

static void put_on_list(struct link *l, struct tb *to)
{
    l->to = to;
    l->next_in = to->in;
    l->prev_in = &to->in;
    if (to->in)
        to->in->prev_in = &l->next_in;
    to->in = l;
}

static void take_off_list(struct link *l)
{
    *l->prev_in = l->next_in;
    if (l->next_in)
        l->next_in->prev_in = l->prev_in;
    l->to = NULL;
}

void cache_link(struct bt_engine *bt, struct link *l, struct tb *to)
{
    if (l->to || l->from->dead || to->dead)
        return;
    put_on_list(l, to);
    cache_patch(bt, l, ahead_entrance(l, to));
    bt->stats.links++;
}

void cache_unlink(struct bt_engine *bt, struct link *l)
{
    if (!l->to)
        return;
    take_off_list(l);
    if (link_is_far(l))
        far_links_drop((struct far_link *)l);
    cache_patch(bt, l, l->stub);
}

void cache_redirect(struct bt_engine *bt, struct tb *from, struct tb *to)
{
    struct link *next;
    for (struct link *l = from->in; l; l = next) {
        next = l->next_in;
        if (l->from == from) /* it dies with it */
            continue;
        take_off_list(l);
        put_on_list(l, to);
        if (!link_is_far(l) || far_links_open((struct far_link *)l))
            cache_patch(bt, l, ahead_entrance(l, to));
    }
}

void cache_invalidate_tb(struct bt_engine *bt, struct tb *tb)
{
    if (tb->dead)
        return;
    tb->dead = true;
    if (tb->key & KEY_USER)
        atomic_fetch_add(&bt->user_epoch, 1);
    bt->stats.invalidations++;
    table_remove(&bt->table, tag_of_tb(tb), tb);
    if (tb->model)
        table_remove(&bt->models, tag_of_model(tb->gpa, tb->key), tb);
    page_list_remove(bt, tb, tb->gpa >> GUEST_PAGE_SHIFT);
    if (two_pages(tb))
        page_list_remove(bt, tb, tb->gpa2 >> GUEST_PAGE_SHIFT);
    while (tb->in)
        cache_unlink(bt, tb->in);
    for (unsigned i = 0; i < tb->n_out; i++)
        cache_unlink(bt, &tb->out[i]);
    for (unsigned i = 0; i < tb->n_far; i++)
        cache_unlink(bt, &tb->far[i].link);
    for (unsigned i = 0; i < bt->n_vcpus; i++)
        jump_cache_forget(bt->vcpus[i], tb);
}

static bool tb_overlaps(const struct tb *t, uint64_t gpa, uint64_t end)
{
    uint64_t first = GUEST_PAGE_SIZE - (t->gpa & (GUEST_PAGE_SIZE - 1));
    uint64_t len = t->guest_len < first ? t->guest_len : first;
    if (t->gpa < end && gpa < t->gpa + len)
        return true;
    uint64_t page = t->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    if (t->peek_lo < t->peek_hi && page + t->peek_lo < end && gpa < page + t->peek_hi)
        return true;
    return t->gpa2 != ~0ull && t->gpa2 < end && gpa < t->gpa2 + (t->guest_len - len);
}

void cache_code_write(void *opaque, uint64_t gpa, uint64_t len)
{
    struct bt_engine *bt = opaque;
    uint64_t end = gpa + len;
    bool hit = false;
    if (bt->cfg.trace_mask & TRACE_MMU)
        trace_code_write(bt, gpa, len);
    bt_lock(bt);
    atomic_fetch_add(&bt->code_write_gen, 1);
    bt->stats.code_writes++;
    for (uint64_t page = gpa >> GUEST_PAGE_SHIFT; page <= (end - 1) >> GUEST_PAGE_SHIFT; page++) {
        struct tb *next;
        for (struct tb *t = bt->page_tbs[page]; t; t = next) {
            next = *page_next(t, page);
            if (tb_overlaps(t, gpa, end)) {
                cache_invalidate_tb(bt, t);
                hit = true;
            }
        }
    }
    /* Another vCPU may be inside a block that has just been dropped: it leaves at its next
     * instruction boundary. The writer itself looks at whether its own block is dead. */
    for (unsigned i = 0; hit && i < bt->n_vcpus; i++)
        if (bt->vcpus[i] != bt_this_vcpu())
            bt_engine_ops.kick(&bt->base, bt->vcpus[i]);
    bt_unlock(bt);
}
