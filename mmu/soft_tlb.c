/*
 * The soft TLB: a direct-mapped cache of translations to RAM, one table per privilege, searched by
 * emitted code and by mmu_translate().
 *
 * A hit costs a compare, so an entry can say no more than "this page, with these rights, now":
 * whatever changes the rights of a page must flush.  To keep flushes cheap without generation
 * numbers in the tags, struct soft_tlb_map holds one bit per slot and property, and a flush visits
 * only the slots concerned.
 *
 * Big pages are entered as the 4K pieces that were touched.  INVLPG must drop all pieces of the
 * page around an address (SDM vol. 3, 4.10.4.1), so slots of big pages are marked with their size,
 * and a Bloom filter over the big pages keeps the usual INVLPG of a 4K page from looking at them.
 *
 * The tables know nothing of PCIDs, so a change of CR3 drops what is not global.  Two processes that wake
 * each other touch the same few pages again and again, and a walk for each would cost more than the rest of
 * the switch: some of the user's entries are put aside, as a processor that tags them would have them still.
 * There are never any of the PCID that is current, so INVLPG need not look at them.
 */
#include "cpu/exception.h"
#include "mmu/mmu.h"

#define MAP_WORDS (STLB_SIZE / 64)

static void invalidate(struct vcpu *v, unsigned table, unsigned index)
{
    struct soft_tlb_entry *e = &v->stlb[table][index];
    struct soft_tlb_map *map = &v->stlb_map[table];
    uint64_t keep = ~(1ull << (index & 63));

    e->rtag = e->wtag = mmu_stlb_invalid_tag(index);
    e->info = 0;
    map->filled[index / 64] &= keep;
    map->global[index / 64] &= keep;
    map->user[index / 64] &= keep;
    map->big[index / 64] &= keep;
}

/* -- Device pages ------------------------------------------------------------------------------ */

static struct mmio_tlb_entry *mmio_slot(struct vcpu *v, uint64_t gva, bool user, bool write,
                                        uint64_t *tag)
{
    *tag = (gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) | (user ? MMIO_TLB_USER : 0) |
           (write ? MMIO_TLB_WRITE : 0);
    return &v->mmio_tlb[(2 * (gva >> GUEST_PAGE_SHIFT) + write) & (MMIO_TLB_SIZE - 1)];
}

static void drop_mmio(struct vcpu *v)
{
    for (unsigned i = 0; i < MMIO_TLB_SIZE; i++)
        v->mmio_tlb[i].tag = ~0ull;
}

/* -- RAM --------------------------------------------------------------------------------------- */

static uint64_t page_mask(const struct soft_tlb_entry *e)
{
    if (e->info & STLB_1G)
        return ~((1ull << 30) - 1);
    return ~((1ull << ((e->info & STLB_4M) ? 22 : (e->info & STLB_2M) ? 21 : 12)) - 1);
}

/* One bit of the Bloom filter for the 2M (4M, 1G) page around gva. */
static uint64_t big_hash(uint64_t gva, unsigned shift)
{
    uint64_t n = gva >> shift;

    return 1ull << ((n ^ n >> 6 ^ shift) & 63);
}

static unsigned half(uint64_t gva)
{
    return gva >> 63;
}

static void fill(struct vcpu *v, unsigned table, uint64_t gva, const struct mmu_xlat *x)
{
    uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    uint64_t gpa = x->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    unsigned index = (gva >> GUEST_PAGE_SHIFT) & (STLB_SIZE - 1);
    struct soft_tlb_entry *e = &v->stlb[table][index];
    struct soft_tlb_map *map = &v->stlb_map[table];
    uint64_t bit = 1ull << (index & 63);
    bool readonly = v->ram->page_flags[gpa >> GUEST_PAGE_SHIFT] & RAM_PAGE_READONLY;
    bool writable = x->writable;

    /* A user page that supervisor code may touch until the next CLAC: most are touched once, and
     * evicting an entry costs more than it has saved then.  What user code may do is entered instead:
     * C code looks there, too. */
    if (table == 1 && x->user && (v->cr4 & CR4_SMAP)) {
        if (v->ac_page == page) {
            v->ac_filled = 1;
        } else {
            v->ac_page = page;
            table = 0;
            writable = x->rw && x->dirty;
            e = &v->stlb[0][index];
            map = &v->stlb_map[0];
        }
    }
    invalidate(v, table, index);
    e->host = (uint64_t)(uintptr_t)(v->ram->base + gpa);
    e->info = gpa;
    map->filled[index / 64] |= bit;
    if (x->global) {
        e->info |= STLB_GLOBAL;
        map->global[index / 64] |= bit;
    }
    if (x->user) {
        e->info |= STLB_USER;
        map->user[index / 64] |= bit;
    }
    if (x->page_shift != GUEST_PAGE_SHIFT) {
        e->info |= x->page_shift == 30 ? STLB_1G : x->page_shift == 22 ? STLB_4M : STLB_2M;
        map->big[index / 64] |= bit;
        map->big_filter[half(gva)] |= big_hash(gva, x->page_shift);
    }
    e->rtag = page;
    if (writable && !readonly)
        e->wtag = page;
}

/*
 * Supervisor code at a user page under AC: what user code may do there, it may do as well.  NULL if that
 * is not known, or if the page has been touched before since AC was set: then it belongs into the
 * table that emitted code looks into.
 */
static const struct soft_tlb_entry *as_user(struct vcpu *v, uint64_t gva, bool write)
{
    const struct soft_tlb_entry *e = mmu_stlb_slot(v, gva, true);
    uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);

    if (!(v->cr4 & CR4_SMAP) || !(v->rflags & FL_AC) || (write ? e->wtag : e->rtag) != page ||
        v->ac_page == page)
        return NULL;
    v->ac_page = page;
    return e;
}

int mmu_translate(struct vcpu *v, uint64_t gva, unsigned access, bool stack, void **host,
                  uint64_t *gpa)
{
    bool user = v->cpl == 3 && !(access & MMU_SYSTEM);
    unsigned kind = access & MMU_KIND;
    struct soft_tlb_entry *e = mmu_stlb_slot(v, gva, user);
    uint64_t offset = gva & (GUEST_PAGE_SIZE - 1);
    struct mmu_xlat x;

    /* A supervisor entry for a user page is there by the grace of AC, which implicit accesses do
     * not have; the right to execute is not what an entry says. */
    if ((kind == MMU_WRITE ? e->wtag : e->rtag) == gva - offset && kind != MMU_EXEC &&
        !((access & MMU_SYSTEM) && (e->info & STLB_USER) && (v->cr4 & CR4_SMAP))) {
        *host = (void *)(uintptr_t)(e->host + offset);
        *gpa = (e->info & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) + offset;
        return MMU_RAM;
    }
    if (!user && kind != MMU_EXEC && !(access & MMU_SYSTEM)) {
        const struct soft_tlb_entry *u = as_user(v, gva, kind == MMU_WRITE);
        if (u) {
            *host = (void *)(uintptr_t)(u->host + offset);
            *gpa = (u->info & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) + offset;
            return MMU_RAM;
        }
    }

    uint64_t tag;
    struct mmio_tlb_entry *m = mmio_slot(v, gva, user, kind == MMU_WRITE, &tag);
    bool plain = kind != MMU_EXEC && !(access & MMU_SYSTEM);
    if (m->tag == tag && plain) {
        *gpa = m->gpa + offset;
        return MMU_MMIO;
    }
    if (!mmu_canonical(gva)) {
        cpu_raise_code(v, stack ? EXC_SS : EXC_GP, 0);
        return -1;
    }
    if (mmu_walk(v, gva, access, &x))
        return -1;
    *gpa = x.gpa;
    unsigned flags = ram_page(v->ram, x.gpa);
    if ((flags & RAM_PAGE_HOLE) || (kind == MMU_WRITE && (flags & RAM_PAGE_ROM))) {
        /* What a supervisor may do to a user's page changes with RFLAGS.AC, without a flush. */
        if (plain && x.user == user) {
            m->tag = tag;
            m->gpa = x.gpa - offset;
        }
        return MMU_MMIO;
    }
    *host = v->ram->base + x.gpa;
    if (kind != MMU_EXEC)
        fill(v, user ? 0 : 1, gva, &x);
    if (kind == MMU_WRITE && (v->ram->page_flags[x.gpa >> GUEST_PAGE_SHIFT] & RAM_PAGE_CODE))
        return MMU_RAM_CODE;
    return MMU_RAM;
}

int mmu_translate_near(struct vcpu *v, uint64_t gva, unsigned access, struct mmu_near *near,
                       void **host, uint64_t *gpa)
{
    bool write = (access & MMU_KIND) == MMU_WRITE;
    struct mmu_xlat x;

    if (mmu_walk_near(v, gva, access, near, gpa)) {
        unsigned flags = ram_page(v->ram, *gpa);
        if (!(flags & (write ? RAM_PAGE_HOLE | RAM_PAGE_READONLY : RAM_PAGE_HOLE))) {
            *host = v->ram->base + *gpa;
            return MMU_RAM;
        }
    }
    int target = mmu_translate(v, gva, access, false, host, gpa);
    /* A third page: there will be more. */
    if (target == MMU_RAM && ++near->walks > 2 && near->region != gva >> 21)
        mmu_peek_near(v, gva, near, &x);
    return target;
}

/* -- Other PCIDs ------------------------------------------------------------------------------- */

static void forget_kept(struct vcpu *v)
{
    for (unsigned i = 0; i < STLB_KEPT_SPACES; i++)
        v->stlb_kept_cr3[i] = ~0ull;
}

static void forget_kept_pcid(struct vcpu *v, unsigned pcid)
{
    uint64_t *cr3 = &v->stlb_kept_cr3[pcid % STLB_KEPT_SPACES];

    if (vcpu_pcid_of(v, *cr3) == pcid)
        *cr3 = ~0ull;
}

/* Before what is not global is dropped. Without PCIDs, and within one, the new CR3 is a flush. */
static void keep_user(struct vcpu *v)
{
    const struct soft_tlb_map *map = &v->stlb_map[0];
    struct stlb_kept *k = NULL;

    if (vcpu_pcid_of(v, v->stlb_cr3) == vcpu_pcid_of(v, v->cr3))
        return;
    for (unsigned word = 0; word < MAP_WORDS; word++)
        for (uint64_t bits = map->filled[word] & ~map->global[word]; bits; bits &= bits - 1) {
            if (!k) {
                unsigned i = vcpu_pcid_of(v, v->stlb_cr3) % STLB_KEPT_SPACES;
                v->stlb_kept_cr3[i] = v->stlb_cr3;
                k = &v->stlb_kept[i];
                k->n = 0;
            }
            if (k->n == STLB_KEPT)
                return;
            unsigned index = word * 64 + (unsigned)__builtin_ctzll(bits);
            k->index[k->n] = (uint16_t)index;
            k->entry[k->n++] = v->stlb[0][index];
        }
}

static void bring_back(struct vcpu *v, const struct stlb_kept *k)
{
    struct soft_tlb_map *map = &v->stlb_map[0];
    unsigned n = k->n;

    for (unsigned i = 0; i < n; i++) {
        unsigned index = k->index[i];
        const struct soft_tlb_entry *e = &k->entry[i];
        uint64_t bit = 1ull << (index & 63);
        unsigned shift = e->info & STLB_1G   ? 30
                         : e->info & STLB_4M ? 22
                         : e->info & STLB_2M ? 21
                                             : 0;
        if (map->filled[index / 64] & bit) /* a global page has its place */
            continue;
        v->stlb[0][index] = *e;
        map->filled[index / 64] |= bit;
        if (e->info & STLB_USER)
            map->user[index / 64] |= bit;
        if (shift) {
            map->big[index / 64] |= bit;
            map->big_filter[half(e->rtag)] |= big_hash(e->rtag, shift);
        }
    }
}

/* After that, if the new PCID's translations are as they were when it was left. */
static void return_user(struct vcpu *v)
{
    unsigned pcid = vcpu_pcid_of(v, v->cr3);

    if (v->stlb_kept_cr3[pcid % STLB_KEPT_SPACES] == v->cr3)
        bring_back(v, &v->stlb_kept[pcid % STLB_KEPT_SPACES]);
    forget_kept_pcid(v, pcid);
}

/* -- Flushes ------------------------------------------------------------------------------------ */

/* Invalidates the slots whose bits are set in `which`, an array of MAP_WORDS words. */
static void invalidate_set(struct vcpu *v, unsigned table, const uint64_t *which)
{
    for (unsigned word = 0; word < MAP_WORDS; word++)
        for (uint64_t bits = which[word]; bits; bits &= bits - 1)
            invalidate(v, table, word * 64 + (unsigned)__builtin_ctzll(bits));
}

void mmu_stlb_init(struct vcpu *v)
{
    forget_kept(v);
    v->stlb_cr3 = v->cr3;
    drop_mmio(v);
    for (unsigned table = 0; table < 2; table++) {
        for (unsigned index = 0; index < STLB_SIZE; index++) {
            invalidate(v, table, index);
            v->stlb[table][index].host = 0;
        }
        v->stlb_map[table].big_filter[0] = v->stlb_map[table].big_filter[1] = 0;
    }
}

void mmu_flush_all(struct vcpu *v)
{
    forget_kept(v);
    v->stlb_cr3 = v->cr3;
    drop_mmio(v);
    for (unsigned table = 0; table < 2; table++) {
        invalidate_set(v, table, v->stlb_map[table].filled);
        v->stlb_map[table].big_filter[0] = v->stlb_map[table].big_filter[1] = 0;
    }
    engine_on_mmu_flush(v, MMU_FLUSHED_ALL, 0);
}

static void drop_nonglobal(struct vcpu *v)
{
    drop_mmio(v);
    for (unsigned table = 0; table < 2; table++) {
        struct soft_tlb_map *map = &v->stlb_map[table];
        uint64_t which[MAP_WORDS], big = 0;

        for (unsigned word = 0; word < MAP_WORDS; word++) {
            which[word] = map->filled[word] & ~map->global[word];
            big |= map->big[word] & map->global[word];
        }
        invalidate_set(v, table, which);
        if (!big)
            map->big_filter[0] = map->big_filter[1] = 0;
    }
}

void mmu_flush_nonglobal(struct vcpu *v)
{
    keep_user(v);
    drop_nonglobal(v);
    forget_kept_pcid(v, vcpu_pcid_of(v, v->cr3));
    v->stlb_cr3 = v->cr3;
    engine_on_mmu_flush(v, MMU_FLUSHED_NONGLOBAL, 0);
}

void mmu_switch(struct vcpu *v)
{
    keep_user(v);
    drop_nonglobal(v);
    return_user(v);
    v->stlb_cr3 = v->cr3;
    engine_on_mmu_flush(v, MMU_SWITCHED, 0);
}

void mmu_flush_pcid(struct vcpu *v, uint64_t pcid)
{
    forget_kept_pcid(v, (unsigned)pcid);
    engine_on_mmu_flush(v, MMU_FLUSHED_PCID, pcid);
}

/* Drops the pieces of the big pages around gva. */
static void flush_big(struct vcpu *v, unsigned table, uint64_t gva)
{
    struct soft_tlb_map *map = &v->stlb_map[table];

    if (!(map->big_filter[half(gva)] &
          (big_hash(gva, 21) | big_hash(gva, 22) | big_hash(gva, 30))))
        return;
    for (unsigned word = 0; word < MAP_WORDS; word++)
        for (uint64_t bits = map->big[word]; bits; bits &= bits - 1) {
            unsigned index = word * 64 + (unsigned)__builtin_ctzll(bits);
            struct soft_tlb_entry *e = &v->stlb[table][index];
            if (!((e->rtag ^ gva) & page_mask(e)))
                invalidate(v, table, index);
        }
}

void mmu_flush_page(struct vcpu *v, uint64_t gva)
{
    uint64_t page = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    unsigned index = (gva >> GUEST_PAGE_SHIFT) & (STLB_SIZE - 1);

    if (atomic_load_explicit(&v->a20_off, memory_order_relaxed)) {
        mmu_flush_all(v); /* pieces of big pages are not marked as such then */
        return;
    }
    drop_mmio(v);
    for (unsigned table = 0; table < 2; table++) {
        if (v->stlb[table][index].rtag == page)
            invalidate(v, table, index);
        flush_big(v, table, gva);
    }
    engine_on_mmu_flush(v, MMU_FLUSHED_PAGE, gva);
}

void mmu_stlb_ac_cleared(struct vcpu *v)
{
    v->ac_page = ~0ull;
    if ((v->cr4 & CR4_SMAP) && v->ac_filled) {
        invalidate_set(v, 1, v->stlb_map[1].user);
        v->ac_filled = 0;
    }
}

void mmu_stlb_protect_gpa(struct vcpu *v, uint64_t gpa)
{
    forget_kept(v);
    gpa &= ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    for (unsigned table = 0; table < 2; table++)
        for (unsigned word = 0; word < MAP_WORDS; word++)
            for (uint64_t bits = v->stlb_map[table].filled[word]; bits; bits &= bits - 1) {
                unsigned index = word * 64 + (unsigned)__builtin_ctzll(bits);
                struct soft_tlb_entry *e = &v->stlb[table][index];
                if ((e->info & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) == gpa)
                    e->wtag = mmu_stlb_invalid_tag(index);
            }
}

void mmu_stlb_drop_gpa(struct vcpu *v, uint64_t gpa, uint64_t len)
{
    forget_kept(v);
    drop_mmio(v);
    for (unsigned table = 0; table < 2; table++)
        for (unsigned word = 0; word < MAP_WORDS; word++)
            for (uint64_t bits = v->stlb_map[table].filled[word]; bits; bits &= bits - 1) {
                unsigned index = word * 64 + (unsigned)__builtin_ctzll(bits);
                uint64_t page = v->stlb[table][index].info & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
                if (page - gpa < len)
                    invalidate(v, table, index);
            }
}
