/*
 * The page walk: 32-bit, PAE and 4-level paging as in SDM vol. 3, 4.3 to 4.8.
 *
 * The guest's other vCPUs and its devices may write the tables while they are walked.  So every
 * entry is read exactly once, all decisions are made on those values, and the accessed and dirty
 * flags are set by compare-exchange against the value that was read: if it has changed, the walk
 * starts again, as on a processor, whose update is a locked read-modify-write of a valid entry.
 *
 * Accessed flags are set only when the access goes through. The SDM allows them to be set or not
 * in the upper levels of a translation that faults.
 */
#include "cpu/cpuid.h"
#include "mmu/mmu.h"
#include "mmu/walk.h"

_Static_assert(GUEST_PHYS_BITS == CPU_PHYS_BITS, "reserved bits must match what CPUID says");

enum walk_status { WALK_OK, WALK_NOT_PRESENT, WALK_RESERVED };

struct walk {
    void *entry[4];    /* HVA of the entry used at level 1 (PTE) to 4 (PML4E)    */
    uint64_t value[4]; /* what was read there                                    */
    unsigned top;      /* highest level with an entry in memory: 2 or 4          */
    unsigned leaf;     /* level of the entry that maps the page: 1, 2 or 3       */
    uint64_t base;     /* physical address of the page                           */
    uint8_t shift;     /* and its size                                           */
    bool narrow;       /* entries of 4 bytes: 32-bit paging                      */
    uint64_t all;      /* AND of the entries: R/W and U/S need all levels        */
    uint64_t any;      /* OR of the entries: XD needs one                        */
};

/* Rights-relevant nature of one access. */
struct access_mode {
    bool write, exec, user, implicit;
};

static struct access_mode access_mode(const struct vcpu *v, unsigned access)
{
    unsigned kind = access & MMU_KIND;

    return (struct access_mode){
        .write = kind == MMU_WRITE,
        .exec = kind == MMU_EXEC,
        .user = v->cpl == 3 && !(access & MMU_SYSTEM),
        .implicit = access & MMU_SYSTEM,
    };
}

/* Bits that must be 0 in a present entry at `level` of 4-level or PAE paging. SDM vol. 3, tables
 * 4-9 to 4-11 and 4-15 to 4-20. */
static uint64_t reserved_bits(const struct vcpu *v, unsigned level, uint64_t value)
{
    uint64_t rsvd = ((1ull << 52) - 1) & ~GUEST_PHYS_MASK;

    if (!(v->efer & EFER_LMA))
        rsvd |= 0x7ffull << 52; /* ignored in 4-level paging only */
    if (!(v->efer & EFER_NX))
        rsvd |= PTE_XD;
    if (level == 4)
        rsvd |= PTE_PS;
    else if (level == 3 && (value & PTE_PS))
        rsvd |= 0x3fffe000ull; /* 29:13; bit 12 is PAT */
    else if (level == 2 && (value & PTE_PS))
        rsvd |= 0x001fe000ull; /* 20:13 */
    return rsvd;
}

/* HVA of an entry of a table, which may lie in ROM; NULL outside memory. */
static void *table_entry(const struct vcpu *v, uint64_t gpa, unsigned size)
{
    return (void *)(uintptr_t)ram_read_ptr(v->ram, mmu_a20(v, gpa), size);
}

/* 32-bit paging: SDM vol. 3, 4.3. */
static enum walk_status read_tables32(const struct vcpu *v, uint32_t gva, struct walk *w)
{
    uint64_t table = v->cr3 & 0xfffff000u;

    w->narrow = true;
    for (unsigned level = 2;; level--) {
        unsigned index = gva >> (level == 2 ? 22 : 12) & 1023;
        uint32_t *entry = table_entry(v, table + index * 4, 4);
        uint32_t value = entry ? __atomic_load_n(entry, __ATOMIC_ACQUIRE) : ~0u;

        if (!(value & PTE_P))
            return WALK_NOT_PRESENT;
        bool big = level == 2 && (value & PTE_PS) && (v->cr4 & CR4_PSE);
        if (big && (value & 1u << 21)) /* PSE-36: bits 39:32 of the address are in 20:13 */
            return WALK_RESERVED;
        w->entry[level - 1] = entry;
        w->value[level - 1] = value;
        w->all &= value;
        w->any |= value;
        if (level == 1 || big) {
            w->leaf = level;
            w->shift = big ? 22 : 12;
            w->base = big ? (value & 0xffc00000u) | (uint64_t)(value >> 13 & 0xff) << 32
                          : value & 0xfffff000u;
            return WALK_OK;
        }
        table = value & 0xfffff000u;
    }
}

static enum walk_status read_tables(const struct vcpu *v, uint64_t gva, struct walk *w)
{
    uint64_t table = v->cr3 & PTE_ADDR; /* PCID, PWT, PCD do not matter */

    w->all = ~0ull;
    w->any = 0;
    w->narrow = false;
    w->top = 4;
    if (!(v->efer & EFER_LMA)) {
        w->top = 2;
        if (!(v->cr4 & CR4_PAE))
            return read_tables32(v, (uint32_t)gva, w);
        uint64_t pdpte = v->pdpte[gva >> 30 & 3];
        if (!(pdpte & PTE_P))
            return WALK_NOT_PRESENT;
        table = pdpte & PTE_ADDR;
    }
    for (unsigned level = w->top;; level--) {
        unsigned index = gva >> (GUEST_PAGE_SHIFT + 9 * (level - 1)) & 511;
        uint64_t *entry = table_entry(v, table + index * 8, 8);
        uint64_t value = entry ? __atomic_load_n(entry, __ATOMIC_ACQUIRE) : ~0ull;

        if (!(value & PTE_P))
            return WALK_NOT_PRESENT;
        if (value & reserved_bits(v, level, value))
            return WALK_RESERVED;
        w->entry[level - 1] = entry;
        w->value[level - 1] = value;
        w->all &= value;
        w->any |= value;
        if (level == 1 || (level < 4 && (value & PTE_PS))) {
            w->leaf = level;
            w->shift = GUEST_PAGE_SHIFT + 9 * (level - 1);
            w->base = value & PTE_ADDR & ~((1ull << w->shift) - 1);
            return WALK_OK;
        }
        table = value & PTE_ADDR;
    }
}

int mmu_read_pdptes(struct vcpu *v, uint64_t cr3, uint64_t pdpte[4])
{
    uint64_t table = cr3 & 0xffffffe0u;

    for (unsigned i = 0; i < 4; i++) {
        uint64_t *entry = table_entry(v, table + i * 8, 8);
        pdpte[i] = entry ? __atomic_load_n(entry, __ATOMIC_ACQUIRE) : ~0ull;
        /* SDM vol. 3, table 4-8: 2:1, 8:5 and from MAXPHYADDR up. */
        if ((pdpte[i] & PTE_P) && (pdpte[i] & (0x1e6 | ~GUEST_PHYS_MASK)))
            return -1;
    }
    return 0;
}

/* SDM vol. 3, 4.6.1. */
static bool access_allowed(const struct vcpu *v, const struct walk *w, struct access_mode m)
{
    bool user_page = w->all & PTE_US;

    if (m.exec && (w->any & PTE_XD)) /* 32-bit entries have none */
        return false;                /* with NXE = 0 a set XD was a reserved bit */
    if (m.user)
        return user_page && (!m.write || (w->all & PTE_RW));
    if (user_page && m.exec && (v->cr4 & CR4_SMEP))
        return false;
    if (user_page && !m.exec && (v->cr4 & CR4_SMAP) && (m.implicit || !(v->rflags & FL_AC)))
        return false;
    return !m.write || (w->all & PTE_RW) || !(v->cr0 & CR0_WP);
}

static void describe(const struct vcpu *v, uint64_t gva, const struct walk *w, struct access_mode m,
                     struct mmu_xlat *out)
{
    uint64_t leaf = w->value[w->leaf - 1];
    uint64_t mask = (1ull << w->shift) - 1, gpa = w->base | (gva & mask);

    m.write = true;
    m.exec = false;
    out->gpa = mmu_a20(v, gpa);
    out->page_shift = w->shift;
    if (atomic_load_explicit(&v->a20_off, memory_order_relaxed))
        out->page_shift = GUEST_PAGE_SHIFT; /* a big page is in pieces then */
    out->writable = (leaf & PTE_D) && access_allowed(v, w, m);
    out->user = w->all & PTE_US;
    out->global = (leaf & PTE_G) && (v->cr4 & CR4_PGE);
    out->nx = w->any & PTE_XD;
    out->rw = w->all & PTE_RW;
    out->accessed = w->all & PTE_A;
    out->dirty = leaf & PTE_D;
}

static void describe_identity(const struct vcpu *v, uint64_t gva, struct mmu_xlat *out)
{
    *out = (struct mmu_xlat){
        .gpa = mmu_a20(v, gva),
        .page_shift = GUEST_PAGE_SHIFT,
        .writable = true,
        .rw = true,
        .accessed = true,
        .dirty = true,
    };
}

/* Replaces an entry if it still has the value that was read. */
static bool update_entry(struct vcpu *v, const struct walk *w, unsigned level, uint64_t value)
{
    void *entry = w->entry[level - 1];
    uint64_t old = w->value[level - 1];
    uint32_t old32 = (uint32_t)old;

    uint64_t gpa = (uint64_t)((uint8_t *)entry - v->ram->base);

    /* Page tables may share a page with code (they do during early boot), and may lie in ROM. */
    ram_before_write(v->ram, gpa, w->narrow ? 4 : 8);
    if (ram_page(v->ram, gpa) & RAM_PAGE_KIND)
        return true;
    if (w->narrow)
        return __atomic_compare_exchange_n((uint32_t *)entry, &old32, (uint32_t)value, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    return __atomic_compare_exchange_n((uint64_t *)entry, &old, value, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

/* Sets A in every entry used, and D in the leaf for a write. False if an entry changed meanwhile.
 */
static bool set_accessed_dirty(struct vcpu *v, struct walk *w, bool write)
{
    for (unsigned level = w->top; level >= w->leaf; level--) {
        uint64_t old = w->value[level - 1];
        uint64_t set = PTE_A | (write && level == w->leaf ? PTE_D : 0);

        if ((old & set) == set)
            continue;
        if (!update_entry(v, w, level, old | set))
            return false;
        w->value[level - 1] = old | set;
    }
    w->all |= PTE_A;
    return true;
}

static int page_fault(struct vcpu *v, uint64_t gva, struct access_mode m, uint32_t cause)
{
    uint32_t error = cause;

    if (m.write)
        error |= PF_W;
    if (m.user)
        error |= PF_U;
    if (m.exec && (((v->efer & EFER_NX) && (v->cr4 & CR4_PAE)) || (v->cr4 & CR4_SMEP)))
        error |= PF_I;
    v->exc = (struct exception){.vector = EXC_PF, .has_error = true, .error = error, .cr2 = gva};
    return -1;
}

int mmu_walk(struct vcpu *v, uint64_t gva, unsigned access, struct mmu_xlat *out)
{
    struct access_mode m = access_mode(v, access);
    struct walk w;

    if (!(v->cr0 & CR0_PG)) {
        describe_identity(v, gva, out);
        return 0;
    }
    do {
        switch (read_tables(v, gva, &w)) {
        case WALK_NOT_PRESENT:
            return page_fault(v, gva, m, 0);
        case WALK_RESERVED:
            return page_fault(v, gva, m, PF_P | PF_RSVD);
        case WALK_OK:
            break;
        }
        if (!access_allowed(v, &w, m))
            return page_fault(v, gva, m, PF_P);
    } while (!set_accessed_dirty(v, &w, m.write));
    describe(v, gva, &w, m, out);
    return 0;
}

int mmu_peek(const struct vcpu *v, uint64_t gva, struct mmu_xlat *out)
{
    struct mmu_near near = {0};

    return mmu_peek_near(v, gva, &near, out);
}

bool mmu_walk_near(const struct vcpu *v, uint64_t gva, unsigned access, const struct mmu_near *near,
                   uint64_t *gpa)
{
    struct access_mode m = access_mode(v, access);

    if (!near->table || near->region != gva >> 21)
        return false;
    uint64_t value =
        __atomic_load_n(&near->table[gva >> GUEST_PAGE_SHIFT & 511], __ATOMIC_ACQUIRE);
    struct walk w; /* all zero would be a REP STOS, slower than the rest of this */
    uint64_t need = PTE_P | PTE_A | (m.write ? PTE_D : 0);
    w.all = near->all & value;
    w.any = near->any | value;
    /* D is the last level's alone. */
    if ((value & need) != need || !(w.all & PTE_A) || (value & reserved_bits(v, 1, value)) ||
        !access_allowed(v, &w, m))
        return false;
    *gpa = mmu_a20(v, (value & PTE_ADDR) | (gva & (GUEST_PAGE_SIZE - 1)));
    return true;
}

int mmu_peek_near(const struct vcpu *v, uint64_t gva, struct mmu_near *near, struct mmu_xlat *out)
{
    unsigned index = gva >> GUEST_PAGE_SHIFT & 511;
    struct walk w;

    if (!mmu_canonical(gva))
        return -1;
    if (!(v->cr0 & CR0_PG)) {
        describe_identity(v, gva, out);
        return 0;
    }
    if (near->table && near->region == gva >> 21) {
        uint64_t value = __atomic_load_n(&near->table[index], __ATOMIC_ACQUIRE);
        if (!(value & PTE_P) || (value & reserved_bits(v, 1, value)))
            return -1;
        w.value[0] = value;
        w.all = near->all & value;
        w.any = near->any | value;
        w.leaf = 1;
        w.shift = GUEST_PAGE_SHIFT;
        w.base = value & PTE_ADDR;
    } else {
        if (read_tables(v, gva, &w) != WALK_OK)
            return -1;
        near->table = NULL;
        if (w.leaf == 1 && !w.narrow) {
            near->table = (const uint64_t *)w.entry[0] - index;
            near->region = gva >> 21;
            near->all = ~0ull;
            near->any = 0;
            for (unsigned level = 1; level < w.top; level++) {
                near->all &= w.value[level];
                near->any |= w.value[level];
            }
        }
    }
    describe(v, gva, &w, access_mode(v, MMU_READ), out);
    return 0;
}
