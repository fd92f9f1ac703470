/*
 * The page walk against a model written from the text of SDM vol. 3, chapter 4, in another shape
 * than the implementation: all rights combinations exhaustively, then random tables.
 */
#include "mmu_fixture.h"

#include <pthread.h>

/* ---- The model ---------------------------------------------------------------------------- */

struct model_result {
    bool fault;
    uint32_t error;
    uint64_t gpa;
    unsigned shift;
    bool writable, user, global, nx;
};

/* SDM vol. 3, 4.6.1, paragraph by paragraph. */
static bool model_right(char kind, bool user_mode, bool implicit, bool user_address, bool rw,
                        bool xd)
{
    bool wp = v->cr0 & CR0_WP, smap = v->cr4 & CR4_SMAP, smep = v->cr4 & CR4_SMEP;
    bool nxe = v->efer & EFER_NX, ac = v->rflags & FL_AC;

    if (!user_mode) {
        if (kind == 'r') { /* "Data reads", supervisor-mode accesses */
            if (!user_address)
                return true;
            if (!smap)
                return true;
            return ac && !implicit;
        }
        if (kind == 'w') { /* "Data writes" */
            if (!user_address) {
                if (!wp)
                    return true;
                return rw;
            }
            if (!wp) {
                if (!smap)
                    return true;
                return ac && !implicit;
            }
            if (!smap)
                return rw;
            return rw && ac && !implicit;
        }
        /* "Instruction fetches" */
        if (!user_address)
            return nxe ? !xd : true;
        if (smep)
            return false;
        return nxe ? !xd : true;
    }
    if (kind == 'r')
        return user_address;
    if (kind == 'w')
        return user_address && rw;
    return user_address && (nxe ? !xd : true);
}

/* Translates over `mem`, a copy of RAM from GPA 0, and sets A and D there. */
static struct model_result model_walk(uint8_t *mem, uint64_t gva, char kind, bool system)
{
    static const unsigned shifts[] = {39, 30, 21, 12};
    struct model_result r = {0};
    bool user_mode = v->cpl == 3 && !system;
    bool rw = true, us = true, xd = false;
    uint64_t base = v->cr3 & 0x3ffffffff000ull; /* 45:12 */
    uint64_t *used[4], none = 0;
    unsigned n = 0, bad = 0; /* 1: not present, 2: reserved */

    for (unsigned i = 0; i < 4; i++) {
        uint64_t at = base + (gva >> shifts[i]) % 512 * 8, e;
        bool in_ram = at < ram.size;
        used[n] = in_ram ? (uint64_t *)(mem + at) : &none;
        e = in_ram ? *used[n] : UINT64_MAX;
        n++;
        if (e % 2 == 0) {
            bad = 1;
            break;
        }
        bool ps = e >> 7 & 1, leaf = i == 3 || (ps && (i == 1 || i == 2));
        for (unsigned b = GUEST_PHYS_BITS; b <= 51; b++)
            if (e >> b & 1)
                bad = 2;
        if (e >> 63 && !(v->efer & EFER_NX))
            bad = 2;
        if (i == 0 && ps)
            bad = 2;
        if (leaf && i < 3)
            for (unsigned b = 13; b < shifts[i]; b++)
                if (e >> b & 1)
                    bad = 2;
        if (bad)
            break;
        rw = rw && (e >> 1 & 1);
        us = us && (e >> 2 & 1);
        xd = xd || e >> 63;
        if (leaf) {
            uint64_t size = 1ull << shifts[i];
            r.shift = shifts[i];
            r.gpa = (e & 0x3ffffffff000ull) / size * size + gva % size;
            r.global = (e >> 8 & 1) && (v->cr4 & CR4_PGE);
            break;
        }
        base = e & 0x3ffffffff000ull;
    }
    r.error = (kind == 'w' ? 2 : 0) | (user_mode ? 4 : 0);
    if (kind == 'x' && ((v->efer & EFER_NX) || (v->cr4 & CR4_SMEP)))
        r.error |= 16;
    if (bad == 1) {
        r.fault = true;
        return r;
    }
    if (bad == 2) {
        r.fault = true;
        r.error |= 1 | 8;
        return r;
    }
    if (!model_right(kind, user_mode, system, us, rw, xd)) {
        r.fault = true;
        r.error |= 1;
        return r;
    }
    for (unsigned i = 0; i < n; i++)
        *used[i] |= 1 << 5;
    if (kind == 'w')
        *used[n - 1] |= 1 << 6;
    r.user = us;
    r.nx = xd;
    r.writable = (*used[n - 1] >> 6 & 1) && model_right('w', user_mode, system, us, rw, xd);
    return r;
}

static void compare(struct model_result m, uint64_t gva, unsigned access, const char *what)
{
    struct mmu_xlat x;
    int r;

    memset(&v->exc, 0xee, sizeof v->exc);
    r = mmu_walk(v, gva, access, &x);
    cr_assert_eq(r, m.fault ? -1 : 0, "%s: gva %lx access %u: %d", what, gva, access, r);
    if (m.fault) {
        cr_assert_eq(v->exc.vector, EXC_PF);
        cr_assert(v->exc.has_error);
        cr_assert_eq(v->exc.error, m.error, "%s: gva %lx access %u: error %x, want %x", what, gva,
                     access, v->exc.error, m.error);
        cr_assert_eq(v->exc.cr2, gva);
        return;
    }
    cr_assert_eq(x.gpa, m.gpa, "%s: gpa %lx want %lx", what, x.gpa, m.gpa);
    cr_assert_eq(x.page_shift, m.shift);
    cr_assert_eq(x.writable, m.writable, "%s: gva %lx access %u", what, gva, access);
    cr_assert_eq(x.user, m.user);
    cr_assert_eq(x.global, m.global);
    cr_assert_eq(x.nx, m.nx);
}

static void set_controls(unsigned bits)
{
    v->cr0 = bits & 1 ? v->cr0 | CR0_WP : v->cr0 & ~(uint64_t)CR0_WP;
    v->cr4 = bits & 2 ? v->cr4 | CR4_SMEP : v->cr4 & ~(uint64_t)CR4_SMEP;
    v->cr4 = bits & 4 ? v->cr4 | CR4_SMAP : v->cr4 & ~(uint64_t)CR4_SMAP;
    v->efer = bits & 8 ? v->efer | EFER_NX : v->efer & ~(uint64_t)EFER_NX;
    v->rflags = bits & 16 ? v->rflags | FL_AC : v->rflags & ~(uint64_t)FL_AC;
    v->cr4 = bits & 32 ? v->cr4 | CR4_PGE : v->cr4 & ~(uint64_t)CR4_PGE;
}

static const struct {
    unsigned access;
    char kind;
    bool system;
} accesses[] = {
    {MMU_READ, 'r', false},
    {MMU_WRITE, 'w', false},
    {MMU_EXEC, 'x', false},
    {MMU_READ | MMU_SYSTEM, 'r', true},
    {MMU_WRITE | MMU_SYSTEM, 'w', true},
    {MMU_WRITE | MMU_RMW, 'w', false},
};

/* ---- Exhaustive rights --------------------------------------------------------------------- */

/* R/W, U/S, XD, P of every level, all control bits, all CPLs, all accesses, for one leaf level. */
static void exhaust_rights(unsigned leaf)
{
    const uint64_t gva = 0x7f1234567890 & ~0xfffull;
    uint64_t *e[4];
    static uint8_t mem[16 * 4096];
    unsigned levels = 4 - leaf + 1;

    mmu_setup(16 * 4096);
    for (unsigned l = 4; l >= leaf; l--)
        e[l - 1] = entry_of(gva, l);
    uint64_t target = leaf == 3 ? 3 * GB : leaf == 2 ? 6 * MB : 0x5000;
    for (unsigned combo = 0; combo < 1u << (3 * levels); combo++) {
        for (unsigned l = 4; l >= leaf; l--) {
            unsigned f = combo >> (3 * (4 - l)) & 7;
            *e[l - 1] = (l == leaf ? target | (leaf > 1 ? PTE_PS : 0) : *e[l - 1] & PTE_ADDR) |
                        PTE_P | (f & 1 ? PTE_RW : 0) | (f & 2 ? PTE_US : 0) | (f & 4 ? PTE_XD : 0);
        }
        for (unsigned controls = 0; controls < 32; controls++) {
            set_controls(controls);
            for (unsigned cpl = 0; cpl < 4; cpl += 3)
                for (unsigned a = 0; a < sizeof accesses / sizeof *accesses; a++) {
                    for (unsigned l = 4; l >= leaf; l--)
                        *e[l - 1] &= ~(PTE_A | PTE_D);
                    v->cpl = (uint8_t)cpl;
                    memcpy(mem, ram.base, next_table);
                    compare(model_walk(mem, gva + 5, accesses[a].kind, accesses[a].system), gva + 5,
                            accesses[a].access, "rights");
                    cr_assert_eq(memcmp(mem, ram.base, next_table), 0, "A/D: combo %x", combo);
                }
        }
    }
}

Test(walk, rights_1g)
{
    exhaust_rights(3);
}
Test(walk, rights_2m)
{
    exhaust_rights(2);
}

/* 4K pages have 4096 combinations of rights by level; here the comparison of all of the table
 * memory would dominate, so A/D of the four entries are compared alone. */
Test(walk, rights_4k)
{
    const uint64_t gva = 0xffff923456789000;
    uint64_t *e[4], saved[4], next[4];

    mmu_setup(16 * 4096);
    for (unsigned l = 4; l >= 1; l--)
        e[l - 1] = entry_of(gva, l);
    for (unsigned l = 1; l <= 4; l++)
        next[l - 1] = *e[l - 1] & PTE_ADDR;
    next[0] = 0xa000;
    for (unsigned combo = 0; combo < 4096; combo++)
        for (unsigned controls = 0; controls < 32; controls++) {
            set_controls(controls);
            for (unsigned cpl = 0; cpl < 4; cpl += 3)
                for (unsigned a = 0; a < 5; a++) {
                    v->cpl = (uint8_t)cpl;
                    for (unsigned l = 0; l < 4; l++) {
                        unsigned f = combo >> (3 * l) & 7;
                        saved[l] = *e[l] = next[l] | PTE_P | (f & 1 ? PTE_RW : 0) |
                                           (f & 2 ? PTE_US : 0) | (f & 4 ? PTE_XD : 0);
                    }
                    struct model_result m =
                        model_walk(ram.base, gva, accesses[a].kind, accesses[a].system);
                    uint64_t want[4];
                    for (unsigned l = 0; l < 4; l++) {
                        want[l] = *e[l];
                        *e[l] = saved[l];
                    }
                    compare(m, gva, accesses[a].access, "rights 4k");
                    for (unsigned l = 0; l < 4; l++)
                        cr_assert_eq(*e[l], want[l], "A/D level %u", l + 1);
                }
        }
}

/* ---- Present and reserved bits, one at a time ---------------------------------------------- */

Test(walk, each_bit_of_each_entry)
{
    static const uint64_t gva = 0x0000123456789abc;
    static uint8_t mem[16 * 4096];

    for (unsigned leaf = 1; leaf <= 3; leaf++) {
        mmu_setup(16 * 4096);
        map_page(gva, 0, PTE_P | PTE_RW | PTE_US, leaf);
        for (unsigned l = 4; l >= leaf; l--) {
            uint64_t *e = entry_of(gva, l), good = *e;
            for (unsigned bit = 0; bit < 64; bit++)
                for (unsigned controls = 0; controls < 64; controls++)
                    for (unsigned a = 0; a < 3; a++) {
                        set_controls(controls);
                        *e = good ^ 1ull << bit;
                        v->cpl = controls & 1 ? 3 : 0;
                        memcpy(mem, ram.base, ram.size);
                        compare(model_walk(mem, gva, accesses[a].kind, false), gva,
                                accesses[a].access, "bit");
                        *e = good;
                    }
        }
        ram_destroy(&ram);
    }
}

/* ---- CR3 and canonical addresses ----------------------------------------------------------- */

Test(walk, cr3_low_bits_and_pcid_do_not_matter)
{
    struct mmu_xlat x;

    mmu_setup(MB);
    map_page(0x400000, 0x7000, PTE_P | PTE_RW, 1);
    v->cr3 |= 0xfff;
    cr_assert_eq(mmu_walk(v, 0x400123, MMU_WRITE, &x), 0);
    cr_expect_eq(x.gpa, 0x7123);
}

Test(walk, tables_outside_ram_read_as_ones)
{
    struct mmu_xlat x;

    mmu_setup(MB);
    v->cr3 = 0xfee00000;
    cr_expect_eq(mmu_walk(v, 0, MMU_READ, &x), -1);
    cr_expect_eq(v->exc.error, PF_P | PF_RSVD);
    v->cr3 = 4096;
    *entry_of(0, 4) = ((1ull << GUEST_PHYS_BITS) - 4096) | PTE_P;
    cr_expect_eq(mmu_walk(v, 0, MMU_WRITE, &x), -1);
    cr_expect_eq(v->exc.error, PF_P | PF_RSVD | PF_W);
    cr_expect_eq(mmu_peek(v, 0, &x), -1);
}

Test(walk, paging_off)
{
    struct mmu_xlat x;

    mmu_setup(MB);
    v->cr0 = CR0_PE;
    v->efer = 0;
    v->cpl = 3;
    cr_assert_eq(mmu_walk(v, 0xfffff123, MMU_WRITE, &x), 0);
    cr_expect_eq(x.gpa, 0xfffff123);
    cr_expect(x.writable && !x.nx && !x.global);
    cr_assert_eq(mmu_peek(v, 0x123, &x), 0);
    cr_expect_eq(x.gpa, 0x123);
}

Test(walk, canonical)
{
    cr_expect(mmu_canonical(0));
    cr_expect(mmu_canonical(0x00007fffffffffff));
    cr_expect(!mmu_canonical(0x0000800000000000));
    cr_expect(!mmu_canonical(0xffff7fffffffffff));
    cr_expect(mmu_canonical(0xffff800000000000));
    cr_expect(mmu_canonical(UINT64_MAX));
}

/* ---- Peek ---------------------------------------------------------------------------------- */

Test(walk, peek_changes_nothing)
{
    struct mmu_xlat x;

    mmu_setup(MB);
    v->cpl = 3;
    map_page(0x400000, 0x7000, PTE_P | PTE_RW | PTE_XD | PTE_G, 1);
    uint64_t before = *entry_of(0x400000, 1);
    cr_assert_eq(mmu_peek(v, 0x400abc, &x), 0, "no rights are checked");
    cr_expect_eq(x.gpa, 0x7abc);
    cr_expect(!x.user && x.nx && x.global && !x.writable);
    cr_expect_eq(*entry_of(0x400000, 1), before);
    cr_expect_eq(mmu_peek(v, 0x401000, &x), -1);
    cr_expect_eq(mmu_peek(v, 0x8000000000000000, &x), -1);
}

/* ---- A/D updates --------------------------------------------------------------------------- */

Test(walk, tables_that_hold_code)
{
    struct mmu_xlat x;

    mmu_setup(MB);
    map_page(0x400000, 0x7000, PTE_P | PTE_RW, 1);
    uint64_t *pte = entry_of(0x400000, 1);
    uint64_t gpa = (uint64_t)((uint8_t *)pte - ram.base);
    ram.page_flags[gpa >> 12] |= RAM_PAGE_CODE;

    cr_assert_eq(mmu_walk(v, 0x400000, MMU_READ, &x), 0);
    cr_expect_eq(code_write.count, 1);
    cr_expect_eq(code_write.gpa, gpa);
    cr_expect_eq(code_write.len, 8);
    cr_expect_eq(code_write.value_before & PTE_A, 0, "told before the write");
    cr_assert_eq(mmu_walk(v, 0x400000, MMU_READ, &x), 0);
    cr_expect_eq(code_write.count, 1, "nothing to set, nothing to tell");
    cr_assert_eq(mmu_walk(v, 0x400000, MMU_WRITE, &x), 0);
    cr_expect_eq(code_write.count, 2);
}

/* A table that maps itself at all levels: one entry serves as PML4E, PDPTE, PDE and PTE. */
Test(walk, recursive_entry)
{
    struct mmu_xlat x;
    uint64_t gva = 0xfffffffffffff000; /* index 511 everywhere */

    mmu_setup(MB);
    *entry_of(gva, 4) = v->cr3 | PTE_P | PTE_RW;
    cr_assert_eq(mmu_walk(v, gva + 0xff8, MMU_WRITE, &x), 0);
    cr_expect_eq(x.gpa, v->cr3 + 0xff8);
    cr_expect_eq(*entry_of(gva, 4), v->cr3 | PTE_P | PTE_RW | PTE_A | PTE_D);
}

struct racer {
    uint64_t *pte;
    _Atomic bool stop;
    _Atomic uint64_t dirty; /* times that D was found set */
};

/* An operating system that counts in the ignored bits 52-61 and harvests A and D by exchange. */
static void *race(void *arg)
{
    struct racer *r = arg;

    for (unsigned i = 0; !r->stop; i++) {
        uint64_t old = __atomic_load_n(r->pte, __ATOMIC_SEQ_CST), new;
        do {
            new = (old & ~(0x3ffull << 52) & ~(PTE_A | PTE_D)) | (uint64_t)(i & 0x3ff) << 52;
        } while (!__atomic_compare_exchange_n(r->pte, &old, new, false, __ATOMIC_SEQ_CST,
                                              __ATOMIC_SEQ_CST));
        cr_assert_eq(old >> 52 & 0x3ff, (i - 1) & 0x3ff, "round %u: an update was lost", i);
        r->dirty += (old & PTE_D) != 0;
    }
    return NULL;
}

Test(walk, concurrent_updates_are_not_lost)
{
    struct racer r = {0};
    struct mmu_xlat x;
    pthread_t thread;

    mmu_setup(MB);
    map_page(0x400000, 0x7000, PTE_P | PTE_RW | 0x3ffull << 52, 1);
    r.pte = entry_of(0x400000, 1);
    cr_assert_eq(pthread_create(&thread, NULL, race, &r), 0);
    /* Until they have met often enough, which takes longer where they share a CPU. */
    for (unsigned walks = 0; walks < 100000 || r.dirty < 100; walks++) {
        cr_assert_eq(mmu_walk(v, 0x400000, MMU_WRITE, &x), 0);
        cr_assert_eq(x.gpa, 0x7000);
        cr_assert(x.writable);
    }
    r.stop = true;
    pthread_join(thread, NULL);
}

/* ---- Random tables ------------------------------------------------------------------------- */

Test(walk, random_tables)
{
    enum { TABLES = 12, SIZE = TABLES * 4096 };
    static uint8_t mem[SIZE];
    unsigned faults = 0, passes = 0, nears = 0, shifts[3] = {0};

    mmu_setup(SIZE);
    for (unsigned round = 0; round < 3000; round++) {
        uint64_t *t = (uint64_t *)ram.base;
        memset(t, 0, SIZE);
        /* Few distinct indices, so that walks meet entries. */
        for (unsigned table = 0; table < TABLES; table++)
            for (unsigned i = 0; i < 8; i++) {
                uint64_t e = (rnd() % TABLES) << 12 | (rnd() & 0xf7f) | PTE_P | PTE_RW | PTE_US;
                unsigned odd = rnd() % 64;
                if (odd < 3)
                    e &= ~PTE_P;
                else if (odd < 8)
                    e &= ~PTE_RW;
                else if (odd < 12)
                    e &= ~PTE_US;
                else if (odd < 16)
                    e |= PTE_XD;
                else if (odd < 24)
                    e = (e & 0xfff) | PTE_PS | (rnd() & GUEST_PHYS_MASK & ~0x3fffffffull) |
                        (rnd() & 1 ? 0x1000 : 0);
                else if (odd < 30)
                    e = (e & 0xfff) | PTE_PS | (rnd() & GUEST_PHYS_MASK & ~0x1fffffull);
                else if (odd < 31)
                    e ^= 1ull << rnd() % 64;
                else if (odd < 32)
                    e = rnd();
                if (rnd() % 4 == 0)
                    e &= ~(PTE_A | PTE_D);
                t[table * 512 + (i < 4 ? i : 512 - 8 + i)] = e;
            }
        v->cr3 = (rnd() % TABLES) << 12 | (rnd() & 0xfff);
        for (unsigned n = 0; n < 60; n++) {
            uint64_t r = rnd(), gva = 0;
            for (unsigned l = 0; l < 4; l++, r >>= 3)
                gva = gva << 9 | ((r & 7) < 4 ? r & 7 : 504 + (r & 7));
            gva = (uint64_t)((int64_t)(gva << 28) >> 16) | (rnd() & 0xfff);
            set_controls((unsigned)rnd());
            v->cpl = rnd() & 1 ? 3 : 0;
            unsigned a = rnd() % (sizeof accesses / sizeof *accesses);
            memcpy(mem, ram.base, SIZE);
            struct model_result m = model_walk(mem, gva, accesses[a].kind, accesses[a].system);
            compare(m, gva, accesses[a].access, "random");
            cr_assert_eq(memcmp(mem, ram.base, SIZE), 0, "A/D differ");
            if (m.fault)
                faults++;
            else
                passes++, shifts[(m.shift - 12) / 9]++;
        }
        struct mmu_near near = {0};
        uint64_t at = 0;
        for (unsigned n = 0; n < 40; n++) { /* the same controls: one flush asks for many pages */
            uint64_t r = rnd(), leaf = (r & 7) < 4 ? r & 7 : 504 + (r & 7);
            for (unsigned l = 0; l < 3 && n % 8 == 0; l++) {
                r >>= 3;
                at = at << 9 | ((r & 7) < 4 ? r & 7 : 504 + (r & 7));
            }
            uint64_t gva = (uint64_t)((int64_t)(at << 37) >> 16) | leaf << 12 | (rnd() & 0xfff);
            struct mmu_xlat x = {0}, y = {0};
            int one = mmu_peek(v, gva, &x), other = mmu_peek_near(v, gva, &near, &y);
            cr_assert_eq(one, other, "%#lx", gva);
            if (!one) {
                nears += near.table != NULL;
                cr_assert(x.gpa == y.gpa && x.page_shift == y.page_shift && x.user == y.user &&
                              x.rw == y.rw && x.nx == y.nx && x.accessed == y.accessed &&
                              x.dirty == y.dirty && x.global == y.global && x.writable == y.writable,
                          "%#lx", gva);
            }
        }
    }
    cr_expect(nears > 1000, "%u", nears);
    cr_expect(faults > 10000 && passes > 10000, "%u %u", faults, passes);
    cr_expect(shifts[0] > 1000 && shifts[1] > 1000 && shifts[2] > 1000, "%u %u %u", shifts[0],
              shifts[1], shifts[2]);
}
