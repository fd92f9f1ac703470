/* 32-bit and PAE paging (mmu/walk.c, mmu/soft_tlb.c). */
#include "tests/unit/mmu_fixture.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void put32(uint64_t gpa, uint32_t value)
{
    memcpy(ram.base + gpa, &value, 4);
}

static uint32_t get32(uint64_t gpa)
{
    uint32_t value;
    memcpy(&value, ram.base + gpa, 4);
    return value;
}

static void put64(uint64_t gpa, uint64_t value)
{
    memcpy(ram.base + gpa, &value, 8);
}

static uint64_t get64(uint64_t gpa)
{
    uint64_t value;
    memcpy(&value, ram.base + gpa, 8);
    return value;
}

static uint64_t pd, pt; /* of the linear addresses from 0 */

static void setup32(void)
{
    mmu_setup(16 * MB);
    v->efer = 0;
    v->cr4 = CR4_PSE | CR4_PGE;
    v->seg[SEG_CS].attr = SEGA_P | SEGA_S | SEGA_DB | 0xb;
    pd = v->cr3 = new_table();
    pt = new_table();
    put32(pd, (uint32_t)pt | 7);
}

static void setup_pae(void)
{
    mmu_setup(16 * MB);
    v->efer = EFER_NX;
    v->cr4 = CR4_PAE | CR4_PGE;
    v->seg[SEG_CS].attr = SEGA_P | SEGA_S | SEGA_DB | 0xb;
    pd = new_table();
    pt = new_table();
    v->pdpte[0] = pd | PTE_P;
    put64(pd, pt | 7);
}

static void teardown(void)
{
    ram_destroy(&ram);
}

TestSuite(mmu_paging32, .init = setup32, .fini = teardown);
TestSuite(mmu_pae, .init = setup_pae, .fini = teardown);

static void expect_pf(uint64_t gva, unsigned access, uint32_t error, int line)
{
    struct mmu_xlat x;
    cr_assert_eq(mmu_walk(v, gva, access, &x), -1, "line %d", line);
    cr_assert_eq(v->exc.vector, EXC_PF, "line %d", line);
    cr_assert_eq(v->exc.error, error, "line %d: %#x", line, v->exc.error);
    cr_assert_eq(v->exc.cr2, gva, "line %d", line);
}
#define EXPECT_PF(gva, access, error) expect_pf(gva, access, error, __LINE__)

Test(mmu_paging32, walk_4k)
{
    struct mmu_xlat x;

    put32(pt + 5 * 4, 0x345000 | 7);
    cr_assert_eq(mmu_walk(v, 0x5678, MMU_READ, &x), 0);
    cr_assert_eq(x.gpa, 0x345678);
    cr_assert_eq(x.page_shift, 12);
    cr_assert(x.user && x.rw && x.accessed && !x.dirty && !x.nx);
    cr_assert_eq(get32(pd), (uint32_t)pt | 7 | PTE_A);
    cr_assert_eq(get32(pt + 20), 0x345000 | 7 | PTE_A);
    cr_assert_eq(mmu_walk(v, 0x5678, MMU_WRITE, &x), 0);
    cr_assert_eq(get32(pt + 20), 0x345000 | 7 | PTE_A | PTE_D);
    cr_assert(x.dirty && x.writable);
    cr_assert_eq(get32(pd) & PTE_D, 0);
    cr_assert_eq(get32(pt + 24), 0, "its neighbour is not touched");
    /* The upper 32 bits of a linear address do not exist; the upper 10 bits choose the PDE. */
    put32(pd + 1023 * 4, (uint32_t)pt | 7);
    cr_assert_eq(mmu_walk(v, 0xffc05678, MMU_READ, &x), 0);
    cr_assert_eq(x.gpa, 0x345678);
    EXPECT_PF(0x6000, MMU_READ, 0);
    EXPECT_PF(0x400000, MMU_WRITE, PF_W);
}

Test(mmu_paging32, walk_4m)
{
    struct mmu_xlat x;

    put32(pd + 4, 0x00800000 | PTE_PS | PTE_G | 7);
    cr_assert_eq(mmu_walk(v, 0x7abcde, MMU_WRITE, &x), 0);
    cr_assert_eq(x.gpa, 0xbabcde);
    cr_assert_eq(x.page_shift, 22);
    cr_assert(x.global);
    cr_assert_eq(get32(pd + 4) & (PTE_A | PTE_D), PTE_A | PTE_D);
    /* PSE-36: bits 39:32 in 20:13. */
    put32(pd + 4, 0x00800000 | PTE_PS | 7 | 0xa5 << 13);
    cr_assert_eq(mmu_peek(v, 0x7abcde, &x), 0);
    cr_assert_eq(x.gpa, 0xa500babcdeull);
    put32(pd + 4, 0x00800000 | PTE_PS | 7 | 1 << 21);
    EXPECT_PF(0x400000, MMU_READ, PF_P | PF_RSVD);
    /* Without CR4.PSE the bit is ignored. */
    v->cr4 &= ~(uint64_t)CR4_PSE;
    put32(pd + 4, (uint32_t)pt | PTE_PS | 7);
    put32(pt, 0x123000 | 3);
    cr_assert_eq(mmu_walk(v, 0x400010, MMU_READ, &x), 0);
    cr_assert_eq(x.gpa, 0x123010);
}

/* SDM vol. 3, 4.6.1 for data accesses: rights of PDE and PTE together. */
Test(mmu_paging32, rights)
{
    for (unsigned n = 0; n < 256; n++) {
        uint32_t pde = 1 | (n & 3) << 1, pte = 1 | (n >> 2 & 3) << 1;
        bool wp = n & 16, user = n & 32, write = n & 64, smap = n & 128;
        bool us = pde & pte & PTE_US, rw = pde & pte & PTE_RW;
        bool ok = user ? us && (!write || rw) : (!write || rw || !wp) && !(us && smap);
        struct mmu_xlat x;

        put32(pd, (uint32_t)pt | pde);
        put32(pt, 0x300000 | pte);
        v->cr0 = CR0_PE | CR0_PG | (wp ? CR0_WP : 0);
        v->cr4 = smap ? CR4_SMAP : 0;
        v->cpl = user ? 3 : 0;
        int r = mmu_walk(v, 0x10, write ? MMU_WRITE : MMU_READ, &x);
        cr_assert_eq(r, ok ? 0 : -1, "case %#x", n);
        if (r)
            cr_assert_eq(v->exc.error, PF_P | (write ? PF_W : 0u) | (user ? PF_U : 0u));
    }
}

Test(mmu_paging32, fetches)
{
    struct mmu_xlat x;

    put32(pt, 0x300000 | 7);
    v->efer = EFER_NX;
    cr_assert_eq(mmu_walk(v, 0, MMU_EXEC, &x), 0, "there is no XD here");
    EXPECT_PF(0x1000, MMU_EXEC, 0); /* without PAE the I/D bit is not reported for NXE */
    v->cr4 |= CR4_SMEP;
    EXPECT_PF(0, MMU_EXEC, PF_P | PF_I);
    v->cpl = 3;
    cr_assert_eq(mmu_walk(v, 0, MMU_EXEC, &x), 0);
}

Test(mmu_paging32, invlpg_of_a_4m_page_drops_all_of_it)
{
    void *host;
    uint64_t gpa;

    put32(pd + 4, 0x00800000 | PTE_PS | 7);
    for (uint32_t a = 0x400000; a < 0x800000; a += 0x80000)
        cr_assert_eq(mmu_translate(v, a, MMU_READ, false, &host, &gpa), MMU_RAM);
    put32(pd + 4, 0x00c00000 | PTE_PS | 7);
    cr_assert_eq(mmu_translate(v, 0x700000, MMU_READ, false, &host, &gpa), MMU_RAM);
    cr_assert_eq(gpa, 0xb00000, "stale until it is flushed");
    mmu_flush_page(v, 0x401000);
    for (uint32_t a = 0x400000; a < 0x800000; a += 0x80000) {
        cr_assert_eq(mmu_translate(v, a, MMU_READ, false, &host, &gpa), MMU_RAM);
        cr_assert_eq(gpa, a + 0x800000, "%#x", a);
    }
}

Test(mmu_paging32, accesses_wrap_at_4g)
{
    uint32_t value;

    put32(pd + 1023 * 4, (uint32_t)pt | 7);
    put32(pt + 1023 * 4, 0x301000 | 7);
    put32(pt, 0x300000 | 7);
    put32(0x301ffc, 0x11223344);
    put32(0x300000, 0x55667788);
    cr_assert_eq(mmu_load(v, 0xfffffffe, &value, 4, MMU_READ, false), 0);
    cr_assert_eq(value, 0x77881122);
    value = 0xaabbccdd;
    cr_assert_eq(mmu_store(v, 0xffffffff, &value, 4, MMU_WRITE, false), 0);
    cr_assert_eq(get32(0x301ffc), 0xdd223344);
    cr_assert_eq(get32(0x300000), 0x55aabbcc);
}

Test(mmu_paging32, a20_masks_tables_and_pages)
{
    struct mmu_xlat x;

    /* The tables are at 1 MiB + their addresses as far as CR3 says. */
    atomic_store(&v->a20_off, true);
    v->cr3 = pd + MB;
    put32(pt, 0x100000 | 7);
    cr_assert_eq(mmu_walk(v, 0x123, MMU_READ, &x), 0);
    cr_assert_eq(x.gpa, 0x123);
    put32(pd + 4, 0x00800000 | PTE_PS | 7);
    cr_assert_eq(mmu_walk(v, 0x7abcde, MMU_READ, &x), 0);
    cr_assert_eq(x.gpa, 0xaabcde);
    cr_assert_eq(x.page_shift, 12, "no longer one piece");
    /* Nor is what INVLPG must drop. */
    void *host;
    uint64_t gpa;
    cr_assert_eq(mmu_translate(v, 0x600000, MMU_READ, false, &host, &gpa), MMU_RAM);
    put32(pd + 4, 0x00c00000 | PTE_PS | 7);
    mmu_flush_page(v, 0x400000);
    cr_assert_eq(mmu_translate(v, 0x600000, MMU_READ, false, &host, &gpa), MMU_RAM);
    cr_assert_eq(gpa, 0xe00000);
}

Test(mmu_paging32, tables_outside_ram)
{
    struct mmu_xlat x;

    v->cr3 = 0xfee00000;
    cr_assert_eq(mmu_walk(v, 0, MMU_READ, &x), -1);
    cr_assert_eq(v->exc.error & PF_P, PF_P, "all ones: present, reserved bit set");
    cr_assert_eq(mmu_peek(v, 0, &x), -1);
}

Test(mmu_pae, walk)
{
    struct mmu_xlat x;

    put64(pt + 5 * 8, 0x345000 | 7);
    cr_assert_eq(mmu_walk(v, 0x5678, MMU_WRITE, &x), 0);
    cr_assert_eq(x.gpa, 0x345678);
    cr_assert_eq(get64(pd), pt | 7 | PTE_A);
    cr_assert_eq(get64(pt + 40), 0x345000 | 7 | PTE_A | PTE_D);
    cr_assert_eq(v->pdpte[0], pd | PTE_P, "PDPTEs have no accessed flag");
    cr_assert(x.accessed);
    put64(pd + 8, 0x800000 | PTE_PS | PTE_G | 7);
    cr_assert_eq(mmu_walk(v, 0x2abcde, MMU_READ, &x), 0);
    cr_assert_eq(x.gpa, 0x8abcde);
    cr_assert_eq(x.page_shift, 21);
    /* Bits 31:30 choose the register. */
    for (unsigned i = 1; i < 4; i++) {
        EXPECT_PF((uint64_t)i << 30, MMU_READ, 0);
        v->pdpte[i] = pd | PTE_P;
        cr_assert_eq(mmu_walk(v, (uint64_t)i << 30 | 0x5678, MMU_READ, &x), 0);
        cr_assert_eq(x.gpa, 0x345678);
    }
    /* It is the register that counts, not CR3. */
    v->cr3 = 0;
    cr_assert_eq(mmu_walk(v, 0x5678, MMU_READ, &x), 0);
}

Test(mmu_pae, reserved_bits)
{
    static const struct {
        unsigned level;
        uint64_t bits;
    } cases[] = {
        {1, 1ull << 46}, {1, 1ull << 51}, {1, 1ull << 52},       {1, 1ull << 62},
        {2, 1ull << 46}, {2, 1ull << 62}, {2, PTE_PS | 1 << 13},
    };
    struct mmu_xlat x;

    for (unsigned i = 0; i < COUNT(cases); i++) {
        put64(pd, pt | 7 | (cases[i].level == 2 ? cases[i].bits : 0));
        put64(pt, 0x345000 | 7 | (cases[i].level == 1 ? cases[i].bits : 0));
        EXPECT_PF(0, MMU_READ, PF_P | PF_RSVD);
        cr_assert_eq(mmu_peek(v, 0, &x), -1);
    }
    put64(pd, pt | 7);
    put64(pt, 0x345000 | 7 | PTE_XD);
    cr_assert_eq(mmu_walk(v, 0, MMU_READ, &x), 0);
    cr_assert(x.nx);
    EXPECT_PF(0, MMU_EXEC, PF_P | PF_I);
    v->efer = 0;
    EXPECT_PF(0, MMU_READ, PF_P | PF_RSVD);
}

Test(mmu_pae, user_and_write_rights)
{
    put64(pt, 0x345000 | PTE_P);
    v->cpl = 3;
    EXPECT_PF(0, MMU_READ, PF_P | PF_U);
    put64(pt, 0x345000 | PTE_P | PTE_US);
    EXPECT_PF(0, MMU_WRITE, PF_P | PF_U | PF_W);
    struct mmu_xlat x;
    cr_assert_eq(mmu_walk(v, 0, MMU_READ, &x), 0);
    cr_assert_not(x.writable);
    cr_assert_eq(mmu_walk(v, 0, MMU_READ | MMU_SYSTEM, &x), 0);
}
