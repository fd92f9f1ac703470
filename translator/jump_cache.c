/*
 * The jump cache: where an indirect jump (or a direct one to another page) finds its target.
 *
 * One table of host addresses for user code, one for supervisor code, indexed by 16 bits that are made
 * of the guest address:
 *
 *     16- and 32-bit code, and returns of 64-bit user code     its low 16 bits, one instruction
 *     all else in 64-bit code                                  of its sum with itself, shifted
 *
 * The second is two instructions more, which a return feels (docs/performance.md), but functions
 * are aligned, and would meet in a sixteenth of the table.  So a block of 64-bit user code has two places.
 * What is at the place is jumped to, with no flag touched.  The
 * block it lands in compares R10 with its own address and leaves for the dispatcher if they differ.
 * An entry says "this GVA is this block now", so it must go when the GVA's mapping may have changed
 * (TLB flush), when the translation key changes, and when the block is dropped.
 */
#include "translator/bt.h"

void jump_cache_init(struct vcpu *v)
{
    uint64_t miss = v->engine->bt->stub_lookup;
    for (int u = 0; u < 2; u++) {
        for (unsigned i = 0; i < JUMP_CACHE_SIZE; i++)
            v->jump_cache[u][i] = miss;
        v->engine->jc_n[u] = 0;
    }
}

/* -- Pages with entries ---------------------------------------------------------------------------- */

static unsigned page_hash(uint64_t gva)
{
    return (unsigned)(gva >> GUEST_PAGE_SHIFT ^ gva >> 28) & 65535;
}

static void add_pages(struct exec_pages *p, unsigned word, uint64_t bits)
{
    if (!p->bits[word] && p->n++ < EXEC_WORDS)
        p->word[p->n - 1] = (uint16_t)word;
    p->bits[word] |= bits;
}

static void forget_pages(struct exec_pages *p)
{
    if (p->n <= EXEC_WORDS)
        for (unsigned i = 0; i < p->n; i++)
            p->bits[p->word[i]] = 0;
    else
        for (unsigned i = 0; i < sizeof p->bits / sizeof p->bits[0]; i++)
            p->bits[i] = 0;
    p->n = 0;
}

/* Of this page, or of a block that straddles into it from the page before. */
static bool may_have_entries(const struct vcpu *v, unsigned sup, uint64_t page)
{
    const uint64_t *bits = v->engine->exec_pages[sup].bits;
    unsigned h = page_hash(page), before = page_hash(page - 1);
    return (bits[h >> 6] >> (h & 63) | bits[before >> 6] >> (before & 63)) & 1;
}

/* -- Entries --------------------------------------------------------------------------------------- */

/* The places of a block: for jumps, and for returns. */
static unsigned places_of(const struct bt_engine *bt, const struct tb *tb, unsigned place[2])
{
    place[0] = jump_cache_index(bt, tb->gva, tb->key & KEY_LEGACY);
    place[1] = return_cache_index(tb->gva);
    return return_cache_used(tb->key) && place[1] != place[0] ? 2 : 1;
}

void jump_cache_insert(struct vcpu *v, struct tb *tb)
{
    struct engine_vcpu *ev = v->engine;
    const uint32_t max = sizeof ev->jc_used[0] / sizeof ev->jc_used[0][0];
    unsigned sup = tb->key & KEY_USER ? 0 : 1, place[2], n = places_of(ev->bt, tb, place);
    ev->jc_saved &= sup;
    for (unsigned i = 0; i < n; i++) {
        uint64_t *e = &v->jump_cache[sup][place[i]];
        if (*e == ev->bt->stub_lookup) {
            if (ev->jc_n[sup] < max)
                ev->jc_used[sup][ev->jc_n[sup]] = place[i];
            ev->jc_n[sup]++; /* beyond max: the next flush clears the whole table */
        }
        *e = tb->side_door && !tb->probing ? tb->side_door : tb->entry_ind;
    }
    unsigned h = page_hash(tb->gva);
    add_pages(&ev->exec_pages[sup], h >> 6, 1ull << (h & 63));
}

/* The record of a PCID, or of another that shares its place. */
static struct as_record *record_of(const struct vcpu *v, uint64_t cr3)
{
    return &v->engine->as[vcpu_pcid_of(v, cr3) % AS_RECORDS];
}

void jump_cache_flush_pcid(struct vcpu *v, unsigned pcid)
{
    struct as_record *r = &v->engine->as[pcid % AS_RECORDS];
    if (vcpu_pcid_of(v, r->cr3) == pcid)
        r->n = 0;
}

/* Empties the user half, and remembers it if it is worth it and fits. */
static void save_user_half(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    struct as_record *r = record_of(v, ev->jc_cr3);
    uint64_t miss = ev->bt->stub_lookup, epoch = atomic_load(&ev->bt->user_epoch);
    uint32_t n = ev->jc_n[0], kept = 0;
    const struct exec_pages *pages = &ev->exec_pages[0];
    bool saved = ev->jc_saved && r->cr3 == ev->jc_cr3 && r->n == n && r->epoch == epoch;
    if (!(v->cr4 & CR4_PCIDE) || !n || n > AS_ENTRIES || pages->n > EXEC_WORDS || saved) {
        if (!saved && r->cr3 == ev->jc_cr3)
            r->n = 0; /* what it is has lost entries since, by INVLPG perhaps */
        jump_cache_flush_half(v, 0);
        return;
    }
    r->cr3 = ev->jc_cr3;
    r->epoch = epoch;
    r->key = ev->key_seen[0];
    r->cs = ev->cs_seen[0];
    r->n_words = pages->n;
    for (unsigned i = 0; i < pages->n; i++) {
        r->word[i] = pages->word[i];
        r->bits[i] = pages->bits[pages->word[i]];
    }
    for (uint32_t k = 0; k < n; k++) {
        uint32_t idx = ev->jc_used[0][k];
        uint64_t *e = &v->jump_cache[0][idx], host = *e;
        *e = miss;
        if (host == miss)
            continue;
        r->idx[kept] = (uint16_t)idx;
        r->host[kept++] = (uint32_t)host;
    }
    r->n = kept;
    ev->jc_n[0] = 0;
    forget_pages(&ev->exec_pages[0]);
}

void jump_cache_switch(struct vcpu *v, bool flushed)
{
    struct engine_vcpu *ev = v->engine;
    if (!flushed || vcpu_pcid_of(v, ev->jc_cr3) != vcpu_pcid_of(v, v->cr3))
        save_user_half(v);
    else
        jump_cache_flush_half(v, 0);
    if (flushed)
        jump_cache_flush_pcid(v, vcpu_pcid_of(v, v->cr3));
    if (!(ev->key_seen[0] & KEY_LEGACY)) /* the half is empty: it may serve the other kind of code */
        ev->key_seen[0] = (ev->key_seen[0] & ~(uint32_t)KEY_YOUNG) | (ev->young.now ? KEY_YOUNG : 0);
    ev->jc_cr3 = v->cr3;
    ev->jc_saved = false;
    struct as_record *r = record_of(v, v->cr3);
    uint32_t n = r->n;
    if (!n || r->cr3 != v->cr3)
        return;
    if (r->epoch != atomic_load(&ev->bt->user_epoch) || r->key != ev->key_seen[0] ||
        r->cs != ev->cs_seen[0]) {
        r->n = 0;
        return;
    }
    for (uint32_t k = 0; k < n; k++) {
        uint32_t idx = r->idx[k];
        ev->jc_used[0][k] = idx;
        v->jump_cache[0][idx] = r->host[k];
    }
    ev->jc_n[0] = n;
    for (uint32_t k = 0; k < r->n_words; k++)
        add_pages(&ev->exec_pages[0], r->word[k], r->bits[k]);
    ev->jc_saved = true;
}

void jump_cache_flush(struct vcpu *v, bool user_only)
{
    if (!user_only)
        for (unsigned i = 0; i < AS_RECORDS; i++)
            v->engine->as[i].n = 0;
    jump_cache_flush_half(v, 0);
    if (!user_only)
        jump_cache_flush_half(v, 1);
}

void jump_cache_flush_half(struct vcpu *v, unsigned sup)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t miss = ev->bt->stub_lookup;
    const uint32_t max = sizeof ev->jc_used[0] / sizeof ev->jc_used[0][0];
    if (ev->jc_n[sup] > max) {
        for (unsigned i = 0; i < JUMP_CACHE_SIZE; i++)
            v->jump_cache[sup][i] = miss;
    } else {
        for (unsigned i = 0; i < ev->jc_n[sup]; i++)
            v->jump_cache[sup][ev->jc_used[sup][i]] = miss;
    }
    ev->jc_n[sup] = 0;
    ev->jc_saved &= sup;
    forget_pages(&ev->exec_pages[sup]);
}

void jump_cache_flush_page(struct vcpu *v, uint64_t gva)
{
    struct bt_engine *bt = v->engine->bt;
    uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    /* Blocks of this page, and one that straddles into it from the page before. Other pages whose
     * addresses end alike keep theirs. */
    for (unsigned way = 0; way < 4; way++) {
        bool sup = way & 1, low = way & 2;
        if (!may_have_entries(v, sup, page))
            continue;
        v->engine->jc_saved &= sup;
        if (sup && low && gva >> 32) /* that place is for 32-bit code, and for returns of user code */
            continue;
        for (uint64_t a = page - 15; a != page + GUEST_PAGE_SIZE; a++) {
            unsigned index = low ? return_cache_index(a) : jump_cache_index(bt, a, false);
            uint64_t *e = &v->jump_cache[sup][index];
            if (*e == bt->stub_lookup)
                continue;
            struct tb *tb = cache_find_pc(bt, *e);
            if (!tb || tb->gva == a)
                *e = bt->stub_lookup;
        }
    }
}

void jump_cache_forget(struct vcpu *v, struct tb *tb)
{
    unsigned sup = tb->key & KEY_USER ? 0 : 1, place[2], n = places_of(v->engine->bt, tb, place);
    v->engine->jc_saved &= sup;
    for (unsigned i = 0; i < n; i++) {
        uint64_t *e = &v->jump_cache[sup][place[i]];
        if (*e == tb->entry_ind || (tb->side_door && *e == tb->side_door))
            *e = v->engine->bt->stub_lookup;
    }
}
