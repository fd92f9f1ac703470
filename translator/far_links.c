/*
 * Links between pages.
 *
 * A direct jump within a page can be linked for good: whoever runs the first block has the second one
 * mapped beside it.  Where a jump to another page goes is a matter of the page tables.  So the pages
 * that such jumps lead to have records (`far_page`: this GVA page is this GPA page), and a link to a
 * page goes straight to its target only while the page is open, that is while every address space in
 * use is known to have it there.  Otherwise the link goes through the jump cache, as an unlinked far
 * jump does, so a closed page costs speed and no more.
 *
 *   known    the page was fetched from since the last flush that could have moved it: a bit for each
 *            remembered address space, and one for global pages of the supervisor
 *   opened   global pages at once; others when their address space has been in use, without a
 *            flush, from one tick of a few milliseconds to the next.  Whoever switches address spaces
 *            or flushes more often than that, and so would patch more than run, pays nothing.
 *   closed   by INVLPG, flushes, and switches to an address space that is not known to have the page
 *
 * Machines with several virtual CPUs have no far links yet: "in use" must then mean "by any of them",
 * and what one knows may be stale for another.
 *
 * Everything here is called with the engine's lock held, on the virtual CPU's thread.
 */
#include "translator/bt.h"

#include <errno.h>
#include <sys/mman.h>

#define FAR_PAGES   65535u /* records; number 0 is none */
#define FAR_BUCKETS 4096u
#define AS_GLOBAL   31u    /* bit of far_page.known, and list, of global supervisor pages */
#define AS_LIST     4096u
#define TICK_CYCLES 6000000ull

struct far_page {
    uint64_t gva; /* | 1 for user */
    uint64_t gpa;
    struct far_link *links;
    uint32_t known;
    uint16_t next; /* in its bucket */
    bool open;
    bool listed;   /* in far_links.opened */
};

/* An address space and the pages known of it, so that forgetting it touches no others.  Which one it is
 * stands apart from the list: every change of CR3 looks for it. */
struct far_owner {
    uint64_t cr3, stamp; /* stamp 0: not in use */
};
struct far_space {
    uint32_t n;
    uint16_t page[AS_LIST];
};

struct far_links {
    struct far_owner owner[AS_GLOBAL];
    uint8_t hint[16]; /* where an address space was found last */
    struct far_space space[AS_GLOBAL + 1];
    struct far_page page[FAR_PAGES + 1];
    uint16_t bucket[FAR_BUCKETS];
    uint16_t opened[AS_LIST]; /* the open pages that are not known to be global, and maybe others */
    uint32_t n_opened;
    uint32_t n_pages;
    unsigned current;         /* space in use */
    uint64_t clock;           /* for stamps */
    uint64_t next_tick;       /* TSC */
    bool unstable;            /* one of them was closed since the last tick */
};

struct far_links *far_links_new(void)
{
    struct far_links *f = mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return f == MAP_FAILED ? NULL : f;
}

void far_links_free(struct far_links *f)
{
    if (f)
        munmap(f, sizeof *f);
}

static uint16_t *bucket_of(struct far_links *f, uint64_t gva)
{
    return &f->bucket[((gva >> GUEST_PAGE_SHIFT) ^ (gva >> 28)) & (FAR_BUCKETS - 1)];
}

static struct far_page *find_page(struct far_links *f, uint64_t gva, uint64_t gpa)
{
    for (uint16_t i = *bucket_of(f, gva); i; i = f->page[i].next)
        if (f->page[i].gva == gva && f->page[i].gpa == gpa)
            return &f->page[i];
    return NULL;
}

static void set_open(struct bt_engine *bt, struct far_page *p, bool open)
{
    p->open = open;
    for (struct far_link *l = p->links; l; l = l->next)
        cache_patch(bt, &l->link, open ? ahead_entrance(&l->link, l->link.to) : l->closed);
}

/* Is the page where its record says, for whoever runs now? */
static bool known_now(const struct far_links *f, const struct far_page *p)
{
    return p->known & (1u << AS_GLOBAL | 1u << f->current);
}

static void open_local_page(struct bt_engine *bt, struct far_page *p)
{
    struct far_links *f = bt->far;
    if (p->open || !p->links || (f->n_opened == AS_LIST && !p->listed))
        return;
    if (!p->listed)
        f->opened[f->n_opened++] = (uint16_t)(p - f->page);
    p->listed = true;
    set_open(bt, p, true);
}

/* Closes what the space in use is not known to have. */
static void close_unknown(struct bt_engine *bt)
{
    struct far_links *f = bt->far;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f->n_opened; i++) {
        struct far_page *p = &f->page[f->opened[i]];
        if (p->open && known_now(f, p)) {
            f->opened[kept++] = f->opened[i];
            continue;
        }
        p->listed = false;
        if (p->open) {
            set_open(bt, p, false);
            f->unstable = true;
        }
    }
    f->n_opened = kept;
}

static void forget_space(struct far_links *f, unsigned as)
{
    struct far_space *s = &f->space[as];
    for (uint32_t i = 0; i < s->n; i++)
        f->page[s->page[i]].known &= ~(1u << as);
    s->n = 0;
}

/* One page of the spaces in `mask` is not known any more. */
static void forget_page(struct far_links *f, struct far_page *p, uint32_t mask)
{
    for (uint32_t bits = p->known & mask; bits; bits &= bits - 1) {
        struct far_space *s = &f->space[__builtin_ctz(bits)];
        for (uint32_t i = 0; i < s->n; i++)
            if (s->page[i] == p - f->page) {
                s->page[i] = s->page[--s->n];
                break;
            }
    }
    p->known &= ~mask;
}

static void know(struct far_links *f, struct far_page *p, unsigned as)
{
    struct far_space *s = &f->space[as];
    if ((p->known >> as & 1) || s->n == AS_LIST)
        return;
    p->known |= 1u << as;
    s->page[s->n++] = (uint16_t)(p - f->page);
}

/* The spaces of a PCID. */
static uint32_t spaces_of(const struct vcpu *v, const struct far_links *f, unsigned pcid)
{
    uint32_t mask = 0;
    for (unsigned as = 0; as < AS_GLOBAL; as++)
        if (f->owner[as].stamp && vcpu_pcid_of(v, f->owner[as].cr3) == pcid)
            mask |= 1u << as;
    return mask;
}

static void forget_pcid(const struct vcpu *v, struct far_links *f, unsigned pcid)
{
    for (uint32_t bits = spaces_of(v, f, pcid); bits; bits &= bits - 1)
        forget_space(f, (unsigned)__builtin_ctz(bits));
}

/* Makes the address space of CR3 the current one. */
static void use_space(struct vcpu *v, struct far_links *f)
{
    struct far_owner *o = f->owner;
    uint8_t *hint = &f->hint[(v->cr3 ^ v->cr3 >> GUEST_PAGE_SHIFT) & 15];
    if (o[*hint].stamp && o[*hint].cr3 == v->cr3) {
        o[*hint].stamp = ++f->clock;
        f->current = *hint;
        return;
    }
    unsigned oldest = 0;
    for (unsigned as = 0; as < AS_GLOBAL; as++) {
        if (o[as].stamp && o[as].cr3 == v->cr3) {
            oldest = as;
            break;
        }
        if (o[as].stamp < o[oldest].stamp)
            oldest = as;
    }
    if (!o[oldest].stamp || o[oldest].cr3 != v->cr3)
        forget_space(f, oldest);
    o[oldest] = (struct far_owner){.cr3 = v->cr3, .stamp = ++f->clock};
    f->current = oldest;
    *hint = (uint8_t)oldest;
}

void far_links_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva)
{
    struct bt_engine *bt = v->engine->bt;
    struct far_links *f = bt->far;
    if (!f->n_pages)
        return;
    switch (kind) {
    case MMU_FLUSHED_ALL: {
        struct far_space *g = &f->space[AS_GLOBAL];
        for (uint32_t i = 0; i < g->n; i++)
            if (f->page[g->page[i]].open)
                set_open(bt, &f->page[g->page[i]], false);
        for (unsigned as = 0; as <= AS_GLOBAL; as++)
            forget_space(f, as);
        use_space(v, f);
        close_unknown(bt);
        break;
    }
    case MMU_FLUSHED_NONGLOBAL:
        forget_pcid(v, f, vcpu_pcid_of(v, v->cr3));
        use_space(v, f);
        close_unknown(bt);
        break;
    case MMU_SWITCHED:
        use_space(v, f);
        close_unknown(bt);
        break;
    case MMU_FLUSHED_PCID:
        forget_pcid(v, f, (unsigned)gva);
        close_unknown(bt); /* it is not the current one; to be on the safe side */
        break;
    case MMU_FLUSHED_PAGE: {
        uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
        for (uint16_t i = *bucket_of(f, page); i; i = f->page[i].next) {
            struct far_page *p = &f->page[i];
            if ((p->gva & ~1ull) != page || !p->known)
                continue;
            forget_page(f, p, spaces_of(v, f, vcpu_pcid_of(v, v->cr3)) | 1u << AS_GLOBAL);
            if (p->open) {
                set_open(bt, p, false);
                f->unstable = true;
            }
        }
        break;
    }
    }
}

void far_links_forget(struct bt_engine *bt)
{
    struct far_links *f = bt->far;
    for (uint32_t i = 1; i <= f->n_pages; i++) {
        struct far_page *p = &f->page[i];
        while (p->links)
            cache_unlink(bt, &p->links->link);
        *p = (struct far_page){0};
    }
    for (unsigned as = 0; as <= AS_GLOBAL; as++)
        f->space[as].n = 0;
    for (unsigned i = 0; i < FAR_BUCKETS; i++)
        f->bucket[i] = 0;
    f->n_opened = f->n_pages = 0;
}

static struct far_page *new_page(struct vcpu *v, uint64_t gva, uint64_t gpa)
{
    struct bt_engine *bt = v->engine->bt;
    struct far_links *f = bt->far;
    if (f->n_pages == FAR_PAGES) /* not in practice */
        far_links_forget(bt);
    if (!f->n_pages)
        use_space(v, f);
    uint16_t *bucket = bucket_of(f, gva);
    struct far_page *p = &f->page[++f->n_pages];
    *p = (struct far_page){.gva = gva, .gpa = gpa, .next = *bucket};
    *bucket = (uint16_t)f->n_pages;
    return p;
}

static uint64_t page_gva(const struct tb *tb)
{
    return (tb->gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) | !!(tb->key & KEY_USER);
}

static uint64_t page_gpa(const struct tb *tb)
{
    return tb->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
}

/* Where it is known that a page is there. */
static unsigned space_of(const struct far_links *f, const struct tb *tb, bool global)
{
    return global && !(tb->key & KEY_USER) ? AS_GLOBAL : f->current;
}

void far_links_seen(struct vcpu *v, const struct tb *tb, bool global)
{
    struct far_links *f = v->engine->bt->far;
    if (!f->n_pages)
        return;
    struct far_page *p = find_page(f, page_gva(tb), page_gpa(tb));
    if (p)
        know(f, p, space_of(f, tb, global));
}

void far_links_link(struct vcpu *v, struct far_link *l, struct tb *to, bool global)
{
    struct bt_engine *bt = v->engine->bt;
    struct far_links *f = bt->far;
    if (l->link.to || l->link.from->dead || to->dead)
        return;
    if (to->gpa2 != ~0ull || bt->n_vcpus > 1) {
        cache_patch(bt, &l->link, l->closed);
        return;
    }
    struct far_page *p = find_page(f, page_gva(to), page_gpa(to));
    if (!p)
        p = new_page(v, page_gva(to), page_gpa(to));
    know(f, p, space_of(f, to, global));
    cache_link(bt, &l->link, to);
    l->page = p;
    l->next = p->links;
    l->prev = &p->links;
    if (p->links)
        p->links->prev = &l->next;
    p->links = l;
    if (!p->open && (p->known >> AS_GLOBAL & 1))
        set_open(bt, p, true);
    if (!p->open)
        cache_patch(bt, &l->link, l->closed);
}

void far_links_drop(struct far_link *l)
{
    if (!l->page)
        return;
    *l->prev = l->next;
    if (l->next)
        l->next->prev = l->prev;
    l->page = NULL;
}

bool far_links_open(const struct far_link *l)
{
    return l->page && l->page->open;
}

void far_links_tick(struct vcpu *v)
{
    struct bt_engine *bt = v->engine->bt;
    struct far_links *f = bt->far;
    uint64_t now = __builtin_ia32_rdtsc();
    if (now < f->next_tick)
        return;
    bt_lock(bt);
    struct far_space *g = &f->space[AS_GLOBAL], *s = &f->space[f->current];
    for (uint32_t i = 0; i < g->n; i++) {
        struct far_page *p = &f->page[g->page[i]];
        if (!p->open && (p->known >> AS_GLOBAL & 1))
            set_open(bt, p, true);
    }
    for (uint32_t i = 0; i < s->n && !f->unstable; i++)
        if (f->page[s->page[i]].known >> f->current & 1)
            open_local_page(bt, &f->page[s->page[i]]);
    f->unstable = false;
    f->next_tick = now + (bt->cfg.tick_cycles ? bt->cfg.tick_cycles : bt->cfg.chaos ? 0 : TICK_CYCLES);
    bt_unlock(bt);
}
