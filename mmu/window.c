/*
 * Windows (window.h): which parts of the host ranges map which guest pages.
 *
 * What is mapped is kept as runs: maximal stretches of HVA over consecutive GPAs with the same
 * rights and guest page size, which is what the host kernel merges into one VMA (or finer, never
 * coarser).  So the memory used here is proportional to the VMAs, the VMAs can be counted without
 * asking the host, and a guest that maps millions of scattered pages meets the budget, not an
 * error.  Runs live in a fixed pool and in two treaps: one by HVA, for faults and flushes, and one
 * by GPA, in which each node knows how far the writable runs below it reach, so that
 * window_protect_gpa() finds the mappings of one page without a list per page.
 *
 * Unused parts of the arena stay mapped PROT_NONE at all times, at the price of a VMA for each gap:
 * only what is mapped cannot be given to somebody else by the host's mmap, and a window must never
 * contain memory of the VMM.  For the same reason "unmapping" is mapping PROT_NONE memory over it.
 */
#include "mmu/window.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#include "mmu/host_syscall.h"
#include "mmu/mmu.h"
#include "mmu/walk.h"

enum { BY_HVA, BY_GPA };

#define RUN_WRITE  1u
#define RUN_GLOBAL 2u
#define RUN_SHIFT  8 /* the guest page's size is in bits 8-15 */

struct window_run {
    uint64_t hva, end; /* [hva, end) */
    uint64_t gpa;      /* of hva */
    uint64_t reach;    /* largest GPA end of a writable run in this subtree of BY_GPA */
    uint32_t flags;
    uint32_t shifts;     /* OR of 1 << guest page shift in this subtree of BY_HVA */
    uint32_t prev, next; /* neighbours by HVA */
    uint32_t left[2], right[2];
};

#define STRIDE          (WINDOW_SIZE + WINDOW_GUARD)
#define PAGE_MASK       (~(uint64_t)(GUEST_PAGE_SIZE - 1))
#define DEFAULT_WINDOWS 96
#define DEFAULT_AROUND  16
/* Installs of up to this many pages also enter them into the host's page tables: 0.1 us a page
 * then, a host page fault of 1 us for each at its first touch otherwise. Not for big pages: it
 * would allocate RAM that the guest has not touched. */
#define POPULATE_PAGES 16
/* The default VMA budget leaves this to the rest of the process. */
#define VMA_RESERVE  2048
#define BALLAST_VMAS 16
/* The host may need a few more VMAs while it replaces a mapping. */
#define VMA_SLACK 4

/* ---- Treaps -------------------------------------------------------------------------------- */

static struct window_run *run_at(const struct window_space *ws, uint32_t n)
{
    return &ws->pool[n];
}

/* Heap order must not be predictable to the guest, which chooses the order of keys. */
static uint64_t priority(const struct window_space *ws, uint32_t n)
{
    uint64_t x = (n + ws->seed) * 0x9e3779b97f4a7c15ull;

    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 32;
}

static uint64_t gpa_end(const struct window_run *r)
{
    return r->gpa + (r->end - r->hva);
}

static bool less(unsigned tree, const struct window_run *a, const struct window_run *b)
{
    if (tree == BY_GPA && a->gpa != b->gpa)
        return a->gpa < b->gpa;
    return a->hva < b->hva;
}

static void update(struct window_space *ws, unsigned tree, uint32_t n)
{
    struct window_run *r = run_at(ws, n);

    if (tree == BY_HVA) {
        r->shifts = 1u << (r->flags >> RUN_SHIFT);
        if (r->left[tree])
            r->shifts |= run_at(ws, r->left[tree])->shifts;
        if (r->right[tree])
            r->shifts |= run_at(ws, r->right[tree])->shifts;
        return;
    }
    r->reach = r->flags & RUN_WRITE ? gpa_end(r) : 0;
    if (r->left[tree] && run_at(ws, r->left[tree])->reach > r->reach)
        r->reach = run_at(ws, r->left[tree])->reach;
    if (r->right[tree] && run_at(ws, r->right[tree])->reach > r->reach)
        r->reach = run_at(ws, r->right[tree])->reach;
}

static void split(struct window_space *ws, unsigned tree, uint32_t root,
                  const struct window_run *key, uint32_t *lo, uint32_t *hi)
{
    struct window_run *r = run_at(ws, root);

    if (!root) {
        *lo = *hi = 0;
    } else if (less(tree, r, key)) {
        split(ws, tree, r->right[tree], key, &r->right[tree], hi);
        *lo = root;
        update(ws, tree, root);
    } else {
        split(ws, tree, r->left[tree], key, lo, &r->left[tree]);
        *hi = root;
        update(ws, tree, root);
    }
}

static uint32_t merge(struct window_space *ws, unsigned tree, uint32_t a, uint32_t b)
{
    if (!a || !b)
        return a | b;
    if (priority(ws, a) > priority(ws, b)) {
        struct window_run *r = run_at(ws, a);
        r->right[tree] = merge(ws, tree, r->right[tree], b);
        update(ws, tree, a);
        return a;
    }
    struct window_run *r = run_at(ws, b);
    r->left[tree] = merge(ws, tree, a, r->left[tree]);
    update(ws, tree, b);
    return b;
}

static uint32_t insert(struct window_space *ws, unsigned tree, uint32_t root, uint32_t n)
{
    struct window_run *r = run_at(ws, root), *new = run_at(ws, n);

    if (!root || priority(ws, n) > priority(ws, root)) {
        split(ws, tree, root, new, &new->left[tree], &new->right[tree]);
        update(ws, tree, n);
        return n;
    }
    if (less(tree, new, r))
        r->left[tree] = insert(ws, tree, r->left[tree], n);
    else
        r->right[tree] = insert(ws, tree, r->right[tree], n);
    update(ws, tree, root);
    return root;
}

static uint32_t remove_run(struct window_space *ws, unsigned tree, uint32_t root, uint32_t n)
{
    struct window_run *r = run_at(ws, root);

    if (root == n)
        return merge(ws, tree, r->left[tree], r->right[tree]);
    if (less(tree, run_at(ws, n), r))
        r->left[tree] = remove_run(ws, tree, r->left[tree], n);
    else
        r->right[tree] = remove_run(ws, tree, r->right[tree], n);
    update(ws, tree, root);
    return root;
}

/* The last run that begins at or below hva. */
static uint32_t run_at_or_below(const struct window_space *ws, uint64_t hva)
{
    uint32_t best = 0;

    for (uint32_t n = ws->root[BY_HVA]; n;) {
        const struct window_run *r = run_at(ws, n);
        if (r->hva <= hva) {
            best = n;
            n = r->right[BY_HVA];
        } else {
            n = r->left[BY_HVA];
        }
    }
    return best;
}

/* The first run that ends above hva. */
static uint32_t run_from(const struct window_space *ws, uint64_t hva)
{
    uint32_t n = run_at_or_below(ws, hva);

    if (n)
        return run_at(ws, n)->end > hva ? n : run_at(ws, n)->next;
    for (n = ws->root[BY_HVA]; n && run_at(ws, n)->left[BY_HVA];)
        n = run_at(ws, n)->left[BY_HVA];
    return n;
}

/* In the subtree of n: the first run of guest pages of this size that ends above hva. */
static uint32_t run_of_size(const struct window_space *ws, uint32_t n, uint64_t hva, unsigned shift)
{
    while (n && (run_at(ws, n)->shifts & 1u << shift)) {
        const struct window_run *r = run_at(ws, n);
        if (r->end > hva) {
            uint32_t found = run_of_size(ws, r->left[BY_HVA], hva, shift);
            if (found)
                return found;
            if (r->flags >> RUN_SHIFT == shift)
                return n;
        }
        n = r->right[BY_HVA];
    }
    return 0;
}

/* ---- The map: runs, their neighbours, the count of VMAs ------------------------------------- */

static struct window *window_at(struct window_space *ws, uint64_t hva)
{
    uint64_t offset = hva - ws->arena;

    if (offset >= ws->arena_size || offset % STRIDE < WINDOW_GUARD || offset / STRIDE >= ws->count)
        return NULL;
    return &ws->window[offset / STRIDE];
}

static bool touching(const struct window_space *ws, uint32_t a, uint32_t b)
{
    return a && b && run_at(ws, a)->end == run_at(ws, b)->hva;
}

static void link_run(struct window_space *ws, uint64_t hva, uint64_t end, uint64_t gpa,
                     uint32_t flags)
{
    uint32_t n = ws->pool_free;

    if (n)
        ws->pool_free = run_at(ws, n)->next;
    else
        n = ++ws->pool_used; /* make_room() keeps the pool from running out */
    struct window_run *r = run_at(ws, n);
    r->hva = hva;
    r->end = end;
    r->gpa = gpa;
    r->flags = flags;
    r->prev = run_at_or_below(ws, hva);
    r->next = r->prev ? run_at(ws, r->prev)->next : run_from(ws, 0);
    if (r->prev)
        run_at(ws, r->prev)->next = n;
    if (r->next)
        run_at(ws, r->next)->prev = n;
    for (unsigned tree = 0; tree < 2; tree++)
        ws->root[tree] = insert(ws, tree, ws->root[tree], n);
    ws->runs++;
    ws->changes++;
    ws->adjacent += touching(ws, r->prev, n) + touching(ws, n, r->next);
    window_at(ws, hva)->runs++;
    if (window_vmas(ws) > ws->stats.vmas_peak)
        ws->stats.vmas_peak = window_vmas(ws);
}

static void unlink_run(struct window_space *ws, uint32_t n)
{
    struct window_run *r = run_at(ws, n);

    ws->adjacent -= (uint32_t)(touching(ws, r->prev, n) + touching(ws, n, r->next));
    ws->runs--;
    ws->changes++;
    window_at(ws, r->hva)->runs--;
    for (unsigned tree = 0; tree < 2; tree++)
        ws->root[tree] = remove_run(ws, tree, ws->root[tree], n);
    if (r->prev)
        run_at(ws, r->prev)->next = r->next;
    if (r->next)
        run_at(ws, r->next)->prev = r->prev;
    r->next = ws->pool_free;
    ws->pool_free = n;
}

/* Is the page of this GPA behind the one before in the memfd too? Else the host cannot merge. */
static bool contiguous(const struct window_space *ws, uint64_t gpa)
{
    struct ram_extent e = {0};

    return gpa && ram_find_extent(ws->ram, gpa, &e) &&
           (e.gpa < gpa ||
            ram_file_offset(ws->ram, gpa - GUEST_PAGE_SIZE) + GUEST_PAGE_SIZE == e.offset);
}

static bool continues(const struct window_space *ws, const struct window_run *a, uint64_t hva,
                      uint64_t gpa, uint32_t flags)
{
    return a->end == hva && gpa_end(a) == gpa && a->flags == flags && contiguous(ws, gpa);
}

/* Records that [hva, end) is mapped to nothing any more. */
static void forget(struct window_space *ws, uint64_t hva, uint64_t end)
{
    for (uint32_t n = run_from(ws, hva); n && run_at(ws, n)->hva < end;) {
        struct window_run old = *run_at(ws, n);
        unlink_run(ws, n);
        if (old.hva < hva)
            link_run(ws, old.hva, hva, old.gpa, old.flags);
        if (old.end > end)
            link_run(ws, end, old.end, old.gpa + (end - old.hva), old.flags);
        n = old.next;
    }
}

/* Records that [hva, end) maps GPAs from gpa on. */
static void record(struct window_space *ws, uint64_t hva, uint64_t end, uint64_t gpa,
                   uint32_t flags)
{
    forget(ws, hva, end);
    uint32_t n = run_at_or_below(ws, hva);
    if (n && continues(ws, run_at(ws, n), hva, gpa, flags)) {
        hva = run_at(ws, n)->hva;
        gpa = run_at(ws, n)->gpa;
        unlink_run(ws, n);
    }
    n = run_from(ws, end);
    if (n && run_at(ws, n)->hva == end && run_at(ws, n)->flags == flags &&
        run_at(ws, n)->gpa == gpa + (end - hva) && contiguous(ws, gpa + (end - hva))) {
        end = run_at(ws, n)->end;
        unlink_run(ws, n);
    }
    link_run(ws, hva, end, gpa, flags);
}

static void forget_everything(struct window_space *ws)
{
    ws->root[BY_HVA] = ws->root[BY_GPA] = 0;
    ws->changes++;
    ws->pool_free = ws->pool_used = 0;
    ws->runs = ws->adjacent = 0;
    for (unsigned i = 0; i < ws->count; i++)
        ws->window[i].runs = 0;
}

/* ---- Host mappings ------------------------------------------------------------------------- */

static long reserve(uint64_t hva, uint64_t len, int fixed)
{
    return host_mmap(hva, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1,
                     0);
}

/*
 * Ballast: VMAs of no use, given up when the host has none left.  A MAP_FIXED mapping into the
 * middle of another one can take the process one beyond vm.max_map_count, and from then on every
 * mmap fails, also one that would replace thousands of VMAs by one.  munmap would still work, but
 * leave a hole in the arena for another thread's mmap to fall into.
 */
static void take_ballast(struct window_space *ws)
{
    long p = reserve(0, BALLAST_VMAS * GUEST_PAGE_SIZE, 0);

    ws->ballast = p < 0 ? 0 : (uint64_t)p;
    for (unsigned i = 1; ws->ballast && i < BALLAST_VMAS; i += 2)
        if (host_mprotect(ws->ballast + i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE, PROT_READ) < 0)
            break;
}

static void drop_ballast(struct window_space *ws)
{
    if (ws->ballast)
        host_munmap(ws->ballast, BALLAST_VMAS * GUEST_PAGE_SIZE);
    ws->ballast = 0;
}

/*
 * Last resort when the host refuses a call (it is out of VMAs or memory; a MAP_FIXED that failed
 * may even have left a hole): makes the whole arena one inaccessible mapping again.
 */
static void reset(struct window_space *ws)
{
    ws->stats.resets++;
    forget_everything(ws);
    drop_ballast(ws);
    if (reserve(ws->arena, ws->arena_size, MAP_FIXED) < 0)
        ws->failed = true;
    take_ballast(ws);
}

static void unmap(struct window_space *ws, uint64_t hva, uint64_t end)
{
    ws->stats.unmaps++;
    if (reserve(hva, end - hva, MAP_FIXED) < 0)
        reset(ws);
    else
        forget(ws, hva, end);
}

static void drop_contents(struct window_space *ws, struct window *w)
{
    uint32_t first = run_from(ws, w->base), last = run_at_or_below(ws, w->base + WINDOW_SIZE - 1);

    if (w->runs)
        unmap(ws, run_at(ws, first)->hva, run_at(ws, last)->end);
}

/* Drops an eighth of a window, going round. */
static void drop_part(struct window_space *ws, struct window *w)
{
    uint32_t first = run_from(ws, w->hand), last;

    if (!first || run_at(ws, first)->hva >= w->base + WINDOW_SIZE || w->hand < w->base)
        first = run_from(ws, w->base);
    last = first;
    for (uint32_t i = w->runs / 8; i; i--) {
        uint32_t next = run_at(ws, last)->next;
        if (!next || run_at(ws, next)->hva >= w->base + WINDOW_SIZE)
            break;
        last = next;
    }
    w->hand = run_at(ws, last)->end;
    unmap(ws, run_at(ws, first)->hva, run_at(ws, last)->end);
}

/* Evicts until `more` VMAs fit into the budget; `current` is the last to suffer. */
static void make_room(struct window_space *ws, struct window *current, unsigned more)
{
    while (ws->runs && window_vmas(ws) + more > ws->cfg.vma_budget) {
        struct window *oldest = NULL;
        for (unsigned i = 0; i < ws->count; i++) {
            struct window *w = &ws->window[i];
            if (w->runs && w != current && (!oldest || w->last_use < oldest->last_use))
                oldest = w;
        }
        if (oldest) {
            ws->stats.window_evictions++;
            drop_contents(ws, oldest);
        } else {
            ws->stats.partial_evictions++;
            drop_part(ws, current);
        }
    }
}

static bool run_covers(const struct window_space *ws, uint32_t n, uint64_t hva, uint64_t end,
                       uint64_t gpa)
{
    const struct window_run *r = run_at(ws, n);

    return n && r->hva <= hva && r->end >= end && r->gpa + (hva - r->hva) == gpa;
}

/* Maps [hva, end), which lies in w, to memory from gpa on; all of the GPAs are in one extent. */
static int map(struct window_space *ws, struct window *w, uint64_t hva, uint64_t end, uint64_t gpa,
               uint32_t flags)
{
    int prot = PROT_READ | (flags & RUN_WRITE ? PROT_WRITE : 0);
    long err;

    if (ws->failed)
        return -ENOMEM;
    make_room(ws, w, VMA_SLACK);
    uint32_t n = run_at_or_below(ws, hva);
    if (run_covers(ws, n, hva, end, gpa)) {
        uint32_t differ = run_at(ws, n)->flags ^ flags;
        if (!differ)
            return 0;
        /* The same pages with other rights: their host page-table entries can stay. */
        err = differ & RUN_WRITE ? host_mprotect(hva, end - hva, prot) : 0;
        if (differ & flags & RUN_WRITE)
            ws->stats.upgrades++;
        else if (differ & RUN_WRITE)
            ws->stats.downgrades++;
    } else {
        int populate = (end - hva) >> GUEST_PAGE_SHIFT <= POPULATE_PAGES ? MAP_POPULATE : 0;
        err = host_mmap(hva, end - hva, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE | populate,
                        ws->ram->memfd, ram_file_offset(ws->ram, gpa));
        ws->stats.installs++;
        ws->stats.installed_pages += (end - hva) >> GUEST_PAGE_SHIFT;
    }
    if (err < 0) {
        reset(ws);
        return -ENOMEM;
    }
    record(ws, hva, end, gpa, flags);
    return 0;
}

/* ---- Set-up -------------------------------------------------------------------------------- */

static unsigned default_vma_budget(void)
{
    unsigned long limit = 0;
    char text[24];
    int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);

    if (fd >= 0)
        close(fd);
    for (ssize_t i = 0; i < n && text[i] >= '0' && text[i] <= '9' && limit < 10000000; i++)
        limit = limit * 10 + (unsigned long)(text[i] - '0');
    if (!limit)
        limit = 65530; /* the kernel's default */
    limit = limit / 10 * 8;
    return (unsigned)(limit > VMA_RESERVE + 64 ? limit - VMA_RESERVE : 64);
}

int window_space_init(struct window_space *ws, struct guest_ram *ram,
                      const struct window_config *cfg)
{
    long p;

    *ws = (struct window_space){.ram = ram, .cfg = *cfg};
    if (!ws->cfg.vma_budget)
        ws->cfg.vma_budget = default_vma_budget();
    if (ws->cfg.vma_budget < 32)
        ws->cfg.vma_budget = 32;
    if (!ws->cfg.around_pages)
        ws->cfg.around_pages = DEFAULT_AROUND;
    if (ws->cfg.around_pages > 512 || (ws->cfg.around_pages & (ws->cfg.around_pages - 1)))
        return -EINVAL;
    ws->count = ws->cfg.max_windows ? ws->cfg.max_windows : DEFAULT_WINDOWS;
    if (ws->count > WINDOW_MAX)
        ws->count = WINDOW_MAX;

    /* There are at most as many runs as VMAs. Memory is used as the pool fills. */
    ws->pool_size = ws->cfg.vma_budget + 2 * VMA_SLACK;
    p = host_mmap(0, ws->pool_size * sizeof(struct window_run), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p < 0)
        return (int)p;
    ws->pool = (struct window_run *)p;
    ws->seed = __builtin_ia32_rdtsc();

    for (;; ws->count /= 2) {
        if (ws->count < 4) {
            window_space_destroy(ws);
            return -ENOMEM;
        }
        /* 1 GiB more, to align windows for huge pages; the excess stays part of the guards. */
        ws->arena_size = ws->count * STRIDE + WINDOW_GUARD + (1ull << 30);
        p = reserve(0, ws->arena_size, 0);
        if (p >= 0)
            break;
    }
    uint64_t aligned = ((uint64_t)p + (1ull << 30) - 1) & ~((1ull << 30) - 1);
    if (aligned > (uint64_t)p)
        host_munmap((uint64_t)p, aligned - (uint64_t)p);
    ws->arena_size -= aligned - (uint64_t)p;
    ws->arena = aligned;
    for (unsigned i = 0; i < ws->count; i++)
        ws->window[i].base = ws->arena + WINDOW_GUARD + i * STRIDE;
    take_ballast(ws);
    ws->stats.vmas_peak = 1;
    return 0;
}

void window_space_destroy(struct window_space *ws)
{
    if (ws->arena)
        host_munmap(ws->arena, ws->arena_size);
    drop_ballast(ws);
    if (ws->pool)
        host_munmap((uint64_t)(uintptr_t)ws->pool, ws->pool_size * sizeof(struct window_run));
    *ws = (struct window_space){.ram = NULL};
}

/* ---- Windows ------------------------------------------------------------------------------- */

static bool is_window_of(const struct window *w, const struct window_key *key)
{
    return w->used && w->key.pdpt_gpa == key->pdpt_gpa && w->key.pml4_index == key->pml4_index &&
           w->key.tag == key->tag;
}

struct window *window_lookup(struct window_space *ws, const struct window_key *key)
{
    uint64_t n = (key->pdpt_gpa >> GUEST_PAGE_SHIFT) + key->tag * 7ull + key->pml4_index;
    uint8_t *hint = &ws->hint[(n ^ n >> 6) & 63];
    struct window *w = &ws->window[*hint];

    for (unsigned i = 0; !is_window_of(w, key); i++) {
        if (i == ws->top)
            return NULL;
        w = &ws->window[i];
        *hint = (uint8_t)i;
    }
    w->last_use = ++ws->clock;
    return w;
}

struct window *window_get(struct window_space *ws, const struct window_key *key,
                          const struct window *keep)
{
    struct window *w = window_lookup(ws, key), *best = NULL;

    if (ws->failed)
        return NULL;
    if (w)
        return w;
    for (unsigned i = 0; i < ws->count; i++) {
        w = &ws->window[i];
        if (!w->used) {
            best = w;
            break;
        }
        if (w != keep && (!best || w->last_use < best->last_use))
            best = w;
    }
    if (best->used) {
        if (ws->cfg.released)
            ws->cfg.released(ws->cfg.opaque, best);
        drop_contents(ws, best);
        ws->stats.releases++;
        if (ws->failed)
            return NULL;
    }
    best->key = *key;
    best->used = true;
    if (best - ws->window >= (ptrdiff_t)ws->top)
        ws->top = (unsigned)(best - ws->window) + 1;
    best->hand = best->base;
    uint64_t slot = (uint64_t)((int64_t)((uint64_t)key->pml4_index << (WINDOW_SHIFT + 16)) >> 16);
    best->delta = best->base - slot;
    best->last_use = ++ws->clock;
    return best;
}

struct window *window_of_hva(struct window_space *ws, uint64_t hva, uint64_t *gva)
{
    struct window *w = window_at(ws, hva);

    if (!w || !w->used)
        return NULL;
    *gva = hva - w->delta;
    return w;
}

static bool in_window(const struct window *w, uint64_t hva)
{
    return hva - w->base < WINDOW_SIZE;
}

bool window_mapped(struct window_space *ws, struct window *w, uint64_t gva, bool write)
{
    uint64_t hva = gva + w->delta;
    uint32_t n = run_at_or_below(ws, hva);

    return in_window(w, hva) && n && run_at(ws, n)->end > hva &&
           (!write || (run_at(ws, n)->flags & RUN_WRITE));
}

bool window_next_run(const struct window_space *ws, uint64_t hva, struct window_run_info *out)
{
    uint32_t n = run_from(ws, hva);
    const struct window_run *r = run_at(ws, n);

    if (!n)
        return false;
    *out = (struct window_run_info){
        .hva = r->hva,
        .end = r->end,
        .gpa = r->gpa,
        .shift = (uint8_t)(r->flags >> RUN_SHIFT),
        .writable = r->flags & RUN_WRITE,
        .global = r->flags & RUN_GLOBAL,
    };
    return true;
}

/* ---- Installing ---------------------------------------------------------------------------- */

static uint32_t run_flags(const struct window_pte *pte)
{
    return (pte->writable ? RUN_WRITE : 0) | (pte->global ? RUN_GLOBAL : 0) |
           (uint32_t)pte->shift << RUN_SHIFT;
}

/* Holds translated code, or is ROM. */
static bool readonly(const struct window_space *ws, uint64_t gpa)
{
    return ws->ram->page_flags[gpa >> GUEST_PAGE_SHIFT] & RAM_PAGE_READONLY;
}

/* Eight pages' flags at a time; page is a multiple of 8. */
static bool any_of_8_readonly(const struct window_space *ws, uint64_t page)
{
    const uint64_t *flags = (const void *)(ws->ram->page_flags + page);

    return __atomic_load_n(flags, __ATOMIC_RELAXED) & 0x0101010101010101ull * RAM_PAGE_READONLY;
}

/* The stretch of pages in [lo, hi) around `page` that may be written, or may not, like it. */
static void same_kind(const struct window_space *ws, uint64_t page, uint64_t *lo, uint64_t *hi)
{
    bool fixed = readonly(ws, page << GUEST_PAGE_SHIFT);
    uint64_t a = page, b = page + 1;

    while (a > *lo) {
        if (!fixed && !(a & 7) && a - *lo >= 8 && !any_of_8_readonly(ws, a - 8))
            a -= 8;
        else if (readonly(ws, (a - 1) << GUEST_PAGE_SHIFT) == fixed)
            a--;
        else
            break;
    }
    while (b < *hi) {
        if (!fixed && !(b & 7) && *hi - b >= 8 && !any_of_8_readonly(ws, b))
            b += 8;
        else if (readonly(ws, b << GUEST_PAGE_SHIFT) == fixed)
            b++;
        else
            break;
    }
    *lo = a;
    *hi = b;
}

static bool same_pte(const struct window_pte *a, const struct window_pte *b)
{
    return b->valid && b->shift == a->shift && b->writable == a->writable && b->global == a->global;
}

/* Extends [*before, *after) pages around gva over the neighbours in its block that continue it. */
static void look_around(const struct window_space *ws, uint64_t gva, const struct window_pte *pte,
                        window_probe probe, void *opaque, uint64_t *before, uint64_t *after)
{
    uint64_t block = (uint64_t)ws->cfg.around_pages - 1;
    uint64_t index = gva >> GUEST_PAGE_SHIFT & block;
    struct window_pte q;

    *before = 0;
    *after = 1;
    while (*before < index && pte->gpa >= (*before + 1) << GUEST_PAGE_SHIFT) {
        uint64_t distance = (*before + 1) << GUEST_PAGE_SHIFT;
        probe(opaque, gva - distance, &q);
        if (!same_pte(pte, &q) || q.gpa != pte->gpa - distance)
            break;
        ++*before;
    }
    while (index + *after <= block) {
        uint64_t distance = *after << GUEST_PAGE_SHIFT;
        probe(opaque, gva + distance, &q);
        if (!same_pte(pte, &q) || q.gpa != pte->gpa + distance)
            break;
        ++*after;
    }
}

int window_install(struct window_space *ws, struct window *w, uint64_t gva,
                   const struct window_pte *pte, window_probe probe, void *opaque)
{
    uint64_t page = pte->gpa >> GUEST_PAGE_SHIFT, lo, hi, part_lo, part_hi;
    uint32_t flags = run_flags(pte);
    struct ram_extent e = {0};

    gva &= PAGE_MASK;
    if (!in_window(w, gva + w->delta) || !pte->valid ||
        !ram_find_extent(ws->ram, page << GUEST_PAGE_SHIFT, &e))
        return -EFAULT;
    w->last_use = ++ws->clock;

    if (pte->shift > GUEST_PAGE_SHIFT) {
        uint64_t pages = 1ull << (pte->shift - GUEST_PAGE_SHIFT);
        lo = page - (gva >> GUEST_PAGE_SHIFT & (pages - 1));
        hi = lo + pages;
        if ((page ^ gva >> GUEST_PAGE_SHIFT) & (pages - 1))
            return -EFAULT; /* the caller's GPA and GVA disagree about the offset in the page */
    } else if (probe) {
        uint64_t before, after;
        look_around(ws, gva, pte, probe, opaque, &before, &after);
        lo = page - before;
        hi = page + after;
    } else {
        lo = page;
        hi = page + 1;
    }
    part_lo = e.gpa >> GUEST_PAGE_SHIFT;
    part_hi = (e.gpa + e.len) >> GUEST_PAGE_SHIFT;
    lo = lo > part_lo ? lo : part_lo;
    hi = hi < part_hi ? hi : part_hi;
    if (flags & RUN_WRITE) {
        same_kind(ws, page, &lo, &hi);
        if (readonly(ws, page << GUEST_PAGE_SHIFT))
            flags &= ~RUN_WRITE;
    }

    /* Pages on both sides that are mapped like this already keep their host page-table entries. */
    uint64_t hva = gva + w->delta - ((page - lo) << GUEST_PAGE_SHIFT);
    uint64_t end = hva + ((hi - lo) << GUEST_PAGE_SHIFT);
    uint64_t gpa = lo << GUEST_PAGE_SHIFT, own = gva + w->delta;
    uint32_t n = run_at_or_below(ws, hva);
    if (n && run_at(ws, n)->end > hva && run_at(ws, n)->end <= own &&
        run_at(ws, n)->flags == flags && run_covers(ws, n, hva, hva + GUEST_PAGE_SIZE, gpa)) {
        gpa += run_at(ws, n)->end - hva;
        hva = run_at(ws, n)->end;
    }
    n = run_at_or_below(ws, end - 1);
    if (n && run_at(ws, n)->end >= end && run_at(ws, n)->hva > own &&
        run_at(ws, n)->flags == flags &&
        run_covers(ws, n, end - GUEST_PAGE_SIZE, end, gpa + (end - hva) - GUEST_PAGE_SIZE))
        end = run_at(ws, n)->hva;
    /* Where only the rights of gva's page change, change those of its run. */
    n = run_at_or_below(ws, own);
    if (run_covers(ws, n, own, own + GUEST_PAGE_SIZE, page << GUEST_PAGE_SHIFT)) {
        if (run_at(ws, n)->hva > hva) {
            gpa += run_at(ws, n)->hva - hva;
            hva = run_at(ws, n)->hva;
        }
        if (run_at(ws, n)->end < end)
            end = run_at(ws, n)->end;
    }
    return map(ws, w, hva, end, gpa, flags);
}

/* ---- Flushing ------------------------------------------------------------------------------ */

/* Changes found by a flush, collected into one system call as long as they continue each other. */
enum change_kind { CHANGE_NONE, CHANGE_UNMAP, CHANGE_MAP };
struct change {
    enum change_kind kind;
    uint64_t hva, end, gpa;
    uint32_t flags;
};

static bool in_one_extent(const struct window_space *ws, uint64_t gpa, uint64_t len)
{
    struct ram_extent e = {0};

    return ram_find_extent(ws->ram, gpa, &e) && len <= e.len - (gpa - e.gpa);
}

static void apply(struct window_space *ws, struct window *w, struct change *c)
{
    if (c->kind == CHANGE_UNMAP) {
        /* It may leave a rest of a run on each side. */
        if (window_vmas(ws) + VMA_SLACK > ws->cfg.vma_budget)
            make_room(ws, w, VMA_SLACK);
        unmap(ws, c->hva, c->end);
    } else if (c->kind == CHANGE_MAP) {
        map(ws, w, c->hva, c->end, c->gpa, c->flags);
    }
    c->kind = CHANGE_NONE;
}

static void change(struct window_space *ws, struct window *w, struct change *c,
                   enum change_kind kind, uint64_t hva, uint64_t end, uint64_t gpa, uint32_t flags)
{
    /* Between two runs that go there is nothing to keep. */
    if (c->kind == CHANGE_UNMAP && kind == CHANGE_UNMAP) {
        c->end = end;
        return;
    }
    if (c->kind == CHANGE_MAP && kind == CHANGE_MAP && c->end == hva && c->flags == flags &&
        c->gpa + (c->end - c->hva) == gpa &&
        in_one_extent(ws, c->gpa, gpa + (end - hva) - c->gpa)) {
        c->end = end;
        return;
    }
    apply(ws, w, c);
    *c = (struct change){.kind = kind, .hva = hva, .end = end, .gpa = gpa, .flags = flags};
}

/*
 * How many pages of a run from gva on, at most n, the guest's tables still have as the run says.  Only by what
 * the prober has at hand, the last level's table, so 0 may also mean that it has to be asked: most flushes
 * change no page, or one, of the hundreds that are mapped.
 */
static unsigned unchanged(const struct window_prober *p, uint64_t gva, uint64_t gpa, uint32_t flags,
                          uint64_t n)
{
    const struct vcpu *v = p->vcpu;
    bool user = !(gva >> 63), global = v->cr4 & CR4_PGE;
    unsigned first = gva >> GUEST_PAGE_SHIFT & 511, i = 0;
    uint64_t upper = p->near.all, all = PTE_A | (user ? PTE_US : 0) | (flags & RUN_WRITE ? PTE_RW : 0);
    uint64_t want = PTE_P | all | (flags & RUN_WRITE ? PTE_D : 0) | (flags & RUN_GLOBAL ? PTE_G : 0);
    uint64_t reserved = ((1ull << 52) - 1) & ~GUEST_PHYS_MASK;
    uint64_t mask = PTE_ADDR | reserved | want | (global ? PTE_G : 0) | (user ? 0 : upper & PTE_US) |
                    (v->efer & EFER_NX ? 0 : PTE_XD);

    if (!p->near.table || p->near.region != gva >> 21 || (upper & all) != all ||
        flags >> RUN_SHIFT != GUEST_PAGE_SHIFT || (!global && (flags & RUN_GLOBAL)) ||
        !(v->efer & EFER_LMA) || /* other bits are reserved then */
        atomic_load_explicit(&v->a20_off, memory_order_relaxed))
        return 0;
    if (n > 512 - first)
        n = 512 - first;
    while (i < n && (__atomic_load_n(&p->near.table[first + i], __ATOMIC_ACQUIRE) & mask) ==
                        (want | (gpa + ((uint64_t)i << GUEST_PAGE_SHIFT))))
        i++;
    return i;
}

/* Compares [hva, end) of a run with the guest's tables. */
static void revalidate(struct window_space *ws, struct window *w, const struct window_run *r,
                       uint64_t hva, uint64_t end, window_probe probe, void *opaque,
                       struct change *c)
{
    while (hva < end) {
        uint64_t gva = hva - w->delta, gpa = r->gpa + (hva - r->hva);
        struct window_pte pte;
        unsigned same = probe != window_probe_near ? 0
                                                   : unchanged(opaque, gva, gpa, r->flags,
                                                               (end - hva) >> GUEST_PAGE_SHIFT);

        if (same) {
            apply(ws, w, c);
            ws->stats.kept += same;
            hva += (uint64_t)same << GUEST_PAGE_SHIFT;
            continue;
        }
        probe(opaque, gva, &pte);
        ws->stats.probes++;
        /* As far as this answer goes: the rest of the guest page. */
        uint64_t size = 1ull << (pte.valid ? pte.shift : GUEST_PAGE_SHIFT);
        uint64_t stop = hva + size - (gva & (size - 1));
        stop = stop < end ? stop : end;
        if (!pte.valid || !in_one_extent(ws, pte.gpa, stop - hva)) {
            change(ws, w, c, CHANGE_UNMAP, hva, stop, 0, 0);
        } else if (pte.gpa != gpa || run_flags(&pte) != r->flags) {
            uint32_t flags = run_flags(&pte);
            /* Writable only when it is written, if that is unlikely (so far it was not), or if
             * there may be code in it. */
            if (!(r->flags & RUN_WRITE) ||
                (pte.gpa != gpa && (stop - hva > GUEST_PAGE_SIZE || readonly(ws, pte.gpa))))
                flags &= ~RUN_WRITE;
            ws->stats.remaps += pte.gpa != gpa;
            if (flags != r->flags || pte.gpa != gpa) {
                change(ws, w, c, CHANGE_MAP, hva, stop, pte.gpa, flags);
            } else {
                apply(ws, w, c);
                ws->stats.kept++;
            }
        } else {
            apply(ws, w, c);
            ws->stats.kept++;
        }
        hva = stop;
    }
}

static void flush_range(struct window_space *ws, struct window *w, uint64_t hva, uint64_t end,
                        bool keep_global, window_probe probe, void *opaque)
{
    struct change c = {.kind = CHANGE_NONE};
    uint32_t n = run_from(ws, hva);

    while (hva < end) {
        if (!n || run_at(ws, n)->hva >= end)
            break;
        struct window_run r = *run_at(ws, n);
        uint64_t changes = ws->changes;
        uint64_t from = r.hva > hva ? r.hva : hva, to = r.end < end ? r.end : end;
        if (keep_global && (r.flags & RUN_GLOBAL))
            apply(ws, w, &c); /* what is dropped must not reach over it */
        else if (probe)
            revalidate(ws, w, &r, from, to, probe, opaque, &c);
        else
            change(ws, w, &c, CHANGE_UNMAP, from, to, 0, 0);
        hva = to;
        /* By address, where changes (and the evictions they may cause) have changed the runs. */
        n = ws->changes == changes ? r.next : run_from(ws, hva);
    }
    apply(ws, w, &c);
}

void window_flush(struct window_space *ws, struct window *w, bool keep_global, window_probe probe,
                  void *opaque)
{
    if (w->runs)
        flush_range(ws, w, w->base, w->base + WINDOW_SIZE, keep_global, probe, opaque);
}

void window_flush_page(struct window_space *ws, struct window *w, uint64_t gva, window_probe probe,
                       void *opaque)
{
    uint64_t hva = (gva + w->delta) & PAGE_MASK;

    if (!in_window(w, hva) || !w->runs)
        return;
    /* All pieces of big pages around it. */
    for (unsigned shift = 21; shift <= 30; shift += 9) {
        uint64_t lo = hva & ~((1ull << shift) - 1), end = lo + (1ull << shift), at = lo;
        for (;;) {
            uint32_t n = run_of_size(ws, ws->root[BY_HVA], at, shift);
            if (!n || run_at(ws, n)->hva >= end)
                break;
            struct window_run r = *run_at(ws, n);
            at = r.end < end ? r.end : end;
            flush_range(ws, w, r.hva > lo ? r.hva : lo, at, false, probe, opaque);
        }
    }
    uint32_t n = run_at_or_below(ws, hva);
    if (n && run_at(ws, n)->end > hva && run_at(ws, n)->flags >> RUN_SHIFT == GUEST_PAGE_SHIFT)
        flush_range(ws, w, hva, hva + GUEST_PAGE_SIZE, false, probe, opaque);
}

/* ---- Code pages ---------------------------------------------------------------------------- */

/* A writable run that maps this GPA. */
static uint32_t find_writable(const struct window_space *ws, uint32_t n, uint64_t gpa)
{
    while (n && run_at(ws, n)->reach > gpa) {
        const struct window_run *r = run_at(ws, n);
        uint32_t left = r->left[BY_GPA];
        /* Runs on the left begin lower; if one there reaches beyond gpa, it contains gpa or begins
         * above it, and then so does everything on the right. */
        if (left && run_at(ws, left)->reach > gpa) {
            n = left;
            continue;
        }
        if (r->gpa > gpa)
            return 0;
        if ((r->flags & RUN_WRITE) && gpa_end(r) > gpa)
            return n;
        n = r->right[BY_GPA];
    }
    return 0;
}

void window_protect_gpa(struct window_space *ws, uint64_t gpa)
{
    uint32_t n;

    gpa &= PAGE_MASK;
    while (!ws->failed && (n = find_writable(ws, ws->root[BY_GPA], gpa))) {
        struct window_run *r = run_at(ws, n);
        struct window *w = window_at(ws, r->hva);

        if (window_vmas(ws) + VMA_SLACK > ws->cfg.vma_budget) {
            make_room(ws, w, VMA_SLACK);
            continue; /* the run may be gone */
        }
        uint64_t hva = r->hva + (gpa - r->gpa);
        uint32_t flags = r->flags & ~RUN_WRITE;
        if (host_mprotect(hva, GUEST_PAGE_SIZE, PROT_READ) < 0) {
            reset(ws);
            return;
        }
        ws->stats.protects++;
        record(ws, hva, hva + GUEST_PAGE_SIZE, gpa, flags);
    }
}

void window_drop_gpa(struct window_space *ws, uint64_t gpa, uint64_t len)
{
    /* By address, because unmapping changes the runs. */
    for (uint32_t n = run_from(ws, 0); n && !ws->failed;) {
        struct window_run r = *run_at(ws, n);
        uint64_t lo = gpa > r.gpa ? gpa - r.gpa : 0;
        uint64_t hi = gpa + len > r.gpa ? gpa + len - r.gpa : 0;

        if (hi > r.end - r.hva)
            hi = r.end - r.hva;
        if (lo < hi) {
            /* It may leave a rest of the run on each side. */
            if (window_vmas(ws) + VMA_SLACK > ws->cfg.vma_budget)
                unmap(ws, r.hva, r.end);
            else
                unmap(ws, r.hva + lo, r.hva + hi);
        }
        n = run_from(ws, r.end);
    }
}

/* ---- The usual probe ----------------------------------------------------------------------- */

void window_probe_vcpu(void *vcpu, uint64_t gva, struct window_pte *out)
{
    struct window_prober p = {.vcpu = vcpu};

    window_probe_near(&p, gva, out);
}

void window_probe_near(void *prober, uint64_t gva, struct window_pte *out)
{
    struct window_prober *p = prober;
    struct mmu_xlat x;

    *out = (struct window_pte){.valid = false};
    if (mmu_peek_near(p->vcpu, gva, &p->near, &x) || !x.accessed || x.user != !(gva >> 63))
        return;
    out->gpa = x.gpa & PAGE_MASK;
    out->shift = x.page_shift;
    out->valid = true;
    out->writable = x.rw && x.dirty;
    out->global = x.global;
}
