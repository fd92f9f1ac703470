/* The soft TLB: what is entered, what each flush drops, SMAP, code pages, big pages. */
#include "mmu_fixture.h"

#define RWU (PTE_P | PTE_RW | PTE_US)
#define RWS (PTE_P | PTE_RW)

static void *host;
static uint64_t gpa;

static int translate(uint64_t gva, unsigned access)
{
    return mmu_translate(v, gva, access, false, &host, &gpa);
}

/* What emitted code does: the test of tags in the comment of mmu/mmu.h. NULL: a miss. */
static void *probe(uint64_t gva, bool user, bool write, unsigned size)
{
    struct soft_tlb_entry *e = mmu_stlb_slot(v, gva, user);
    uint64_t tag = write ? e->wtag : e->rtag;

    if ((uint64_t)(gva - tag) <= 4096 - size)
        return (void *)(uintptr_t)(e->host + (gva - tag));
    return NULL;
}

static void setup(void)
{
    mmu_setup(16 * MB);
    map_page(0x400000, 0x100000, RWU, 1);
    map_page(0x401000, 0x101000, RWU, 1);
    map_page(0x402000, 0x102000, PTE_P | PTE_US, 1);
    map_page(0xffff800000000000, 0x200000, RWS | PTE_G, 1);
    map_page(0xffff800000001000, 0x201000, RWS, 1);
    map_page(0xffff800000002000, 0xfee00000, RWS, 1);
}

TestSuite(tlb, .init = setup);

Test(tlb, starts_empty_and_matches_nothing)
{
    static const uint64_t interesting[] = {
        0, 0x1000, 0x1ff000, 0x200000, 0x400000, 0xfffffffffffff000, 0xffff800000000000};
    for (unsigned i = 0; i < sizeof interesting / sizeof *interesting; i++)
        for (unsigned n = 0; n < STLB_SIZE; n++)
            for (unsigned offset = 0; offset < 4096; offset += 4095) {
                uint64_t gva = interesting[i] + n * 4096 + offset;
                for (unsigned user = 0; user < 2; user++) {
                    cr_assert_null(probe(gva, user, false, 1));
                    cr_assert_null(probe(gva, user, true, 1));
                }
            }
}

Test(tlb, read_then_write)
{
    v->cpl = 3;
    cr_assert_eq(translate(0x400123, MMU_READ), MMU_RAM);
    cr_expect_eq(host, ram.base + 0x100123);
    cr_expect_eq(gpa, 0x100123);
    cr_expect_eq(probe(0x400ff8, true, false, 8), ram.base + 0x100ff8);
    cr_expect_null(probe(0x400ff9, true, false, 8), "crosses the page");
    cr_expect_null(probe(0x400000, true, true, 1), "D is not set yet");
    cr_expect_null(probe(0x400000, false, false, 1), "the other table is the supervisor's");
    cr_expect_eq(*entry_of(0x400000, 1) & (PTE_A | PTE_D), PTE_A);

    cr_assert_eq(translate(0x400001, MMU_WRITE), MMU_RAM);
    cr_expect_eq(probe(0x400000, true, true, 1), ram.base + 0x100000);
    cr_expect_eq(*entry_of(0x400000, 1) & (PTE_A | PTE_D), PTE_A | PTE_D);

    /* Now that D is set a read enters a writable page. */
    mmu_flush_all(v);
    cr_assert_eq(translate(0x400000, MMU_READ), MMU_RAM);
    cr_expect_not_null(probe(0x400000, true, true, 1));
}

Test(tlb, faults_leave_nothing)
{
    v->cpl = 3;
    cr_assert_eq(translate(0xffff800000000000, MMU_READ), -1);
    cr_expect_eq(v->exc.error, PF_P | PF_U);
    cr_assert_eq(translate(0x402000, MMU_READ), MMU_RAM);
    cr_assert_eq(translate(0x402000, MMU_WRITE), -1);
    cr_expect_eq(v->exc.error, PF_P | PF_W | PF_U);
    cr_expect_not_null(probe(0x402000, true, false, 1));
    cr_expect_null(probe(0x402000, true, true, 1));
    cr_assert_eq(translate(0x403000, MMU_READ), -1);
    cr_expect_eq(v->exc.cr2, 0x403000);
}

Test(tlb, non_canonical)
{
    cr_assert_eq(mmu_translate(v, 0x800000000000, MMU_READ, false, &host, &gpa), -1);
    cr_expect_eq(v->exc.vector, EXC_GP);
    cr_expect(v->exc.has_error);
    cr_expect_eq(v->exc.error, 0);
    cr_assert_eq(mmu_translate(v, 0xffff7fffffffffff, MMU_WRITE, true, &host, &gpa), -1);
    cr_expect_eq(v->exc.vector, EXC_SS);
}

Test(tlb, mmio_is_not_entered)
{
    cr_assert_eq(translate(0xffff800000002010, MMU_READ), MMU_MMIO);
    cr_expect_eq(gpa, 0xfee00010);
    cr_expect_null(probe(0xffff800000002010, false, false, 1));
    cr_assert_eq(translate(0xffff800000002010, MMU_WRITE), MMU_MMIO);
}

Test(tlb, device_pages_are_remembered_with_their_rights)
{
    const uint64_t dev = 0xffff800000002010, ro = 0xffff800000003020, user = 0x405000;

    map_page(ro & ~0xfffull, 0xfee01000, PTE_P, 1);
    map_page(user, 0xfee02000, RWU, 1);
    v->cr0 |= CR0_WP;
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(translate(dev, MMU_READ), MMU_MMIO);
        cr_expect_eq(gpa, 0xfee00010);
        cr_assert_eq(translate(dev + 4, MMU_WRITE), MMU_MMIO);
        cr_expect_eq(gpa, 0xfee00014);
        cr_assert_eq(translate(ro, MMU_READ), MMU_MMIO);
        cr_assert_eq(translate(ro, MMU_WRITE), -1, "the right to read is none to write");
        cr_assert_eq(translate(user, MMU_READ), MMU_MMIO);
    }
    cr_expect(*entry_of(dev, 1) & PTE_D);
    v->cpl = 3;
    cr_assert_eq(translate(dev, MMU_READ), -1, "the supervisor's right is not the user's");
    cr_assert_eq(translate(user, MMU_READ), MMU_MMIO);
    v->cpl = 0;
    v->cr4 |= CR4_SMAP;
    mmu_flush_all(v);
    v->rflags |= FL_AC;
    cr_assert_eq(translate(user, MMU_READ), MMU_MMIO);
    v->rflags &= ~(uint64_t)FL_AC;
    cr_assert_eq(translate(user, MMU_READ), -1, "SMAP, which AC lifts without a flush");

    /* Stale until flushed, by each kind of flush. */
    for (unsigned how = 0; how < 5; how++) {
        map_page(dev & ~0xfffull, 0xfee00000, RWS, 1);
        mmu_flush_all(v);
        cr_assert_eq(translate(dev, MMU_READ), MMU_MMIO);
        map_page(dev & ~0xfffull, 0x300000, RWS, 1);
        cr_assert_eq(translate(dev, MMU_READ), MMU_MMIO);
        cr_expect_eq(gpa, 0xfee00010);
        if (how == 0)
            mmu_flush_page(v, dev);
        else if (how == 1)
            mmu_flush_nonglobal(v);
        else if (how == 2)
            mmu_switch(v);
        else if (how == 3)
            mmu_flush_all(v);
        else
            mmu_stlb_drop_gpa(v, 0xfee00000, 0x1000);
        cr_assert_eq(translate(dev, MMU_READ), MMU_RAM, "flush %u", how);
        cr_expect_eq(gpa, 0x300010);
    }
}

Test(tlb, stale_until_flushed)
{
    v->cpl = 3;
    translate(0x400000, MMU_WRITE);
    *entry_of(0x400000, 1) = 0;
    cr_expect_eq(translate(0x400000, MMU_WRITE), MMU_RAM, "entries may be stale");
    mmu_flush_page(v, 0x401fff);
    cr_expect_eq(translate(0x400000, MMU_WRITE), MMU_RAM, "another page was flushed");
    mmu_flush_page(v, 0x400fff);
    cr_expect_eq(flush_count[MMU_FLUSHED_PAGE], 2);
    cr_expect_eq(flush_gva, 0x400fff);
    cr_expect_null(probe(0x400000, true, true, 1));
    cr_expect_null(probe(0x400000, true, false, 1));
    cr_expect_eq(translate(0x400000, MMU_WRITE), -1);
}

Test(tlb, flush_page_drops_global_in_both_tables)
{
    translate(0xffff800000000000, MMU_WRITE);
    translate(0x400000, MMU_WRITE);
    v->cpl = 3;
    translate(0x400000, MMU_WRITE);
    mmu_flush_page(v, 0xffff800000000000);
    cr_expect_null(probe(0xffff800000000000, false, false, 1));
    cr_expect_not_null(probe(0x400000, false, false, 1));
    mmu_flush_page(v, 0x400000);
    cr_expect_null(probe(0x400000, false, false, 1));
    cr_expect_null(probe(0x400000, true, false, 1));
}

Test(tlb, flush_nonglobal_keeps_global)
{
    translate(0xffff800000000000, MMU_WRITE);
    translate(0xffff800000001000, MMU_WRITE);
    translate(0x401000, MMU_WRITE);
    mmu_flush_nonglobal(v);
    cr_expect_eq(flush_count[MMU_FLUSHED_NONGLOBAL], 1);
    cr_expect_not_null(probe(0xffff800000000000, false, true, 1));
    cr_expect_null(probe(0xffff800000001000, false, false, 1));
    cr_expect_null(probe(0x401000, false, false, 1));
    mmu_flush_all(v);
    cr_expect_eq(flush_count[MMU_FLUSHED_ALL], 1);
    cr_expect_null(probe(0xffff800000000000, false, false, 1));

    /* G means nothing while CR4.PGE = 0. */
    v->cr4 &= ~(uint64_t)CR4_PGE;
    translate(0xffff800000000000, MMU_READ);
    mmu_flush_nonglobal(v);
    cr_expect_null(probe(0xffff800000000000, false, false, 1));
}

/* CR3 = this table and PCID, with or without a flush of that PCID. */
static void load_cr3(uint64_t table, unsigned pcid, bool flush)
{
    v->cr3 = table | pcid;
    if (flush)
        mmu_flush_nonglobal(v);
    else
        mmu_switch(v);
}

/* Who comes back to a PCID without a flush finds translations again; whatever may have changed them meanwhile
 * has taken them away. */
Test(tlb, pcids)
{
    uint64_t a = v->cr3, b = new_table(), big = 0x40000000;

    v->cr4 |= CR4_PCIDE;
    map_page(big, 0x200000, RWU, 2);
    for (unsigned how = 0; how < 10; how++) {
        load_cr3(a, 1, true);
        v->cpl = 3;
        cr_assert_eq(translate(0x400000, MMU_WRITE), MMU_RAM);
        cr_assert_eq(translate(big + 0x7000, MMU_WRITE), MMU_RAM);
        load_cr3(b, 2, how == 9);
        cr_expect_null(probe(0x400000, true, false, 1), "of another address space");
        cr_expect_null(probe(big + 0x7000, true, false, 1));
        bool kept = false;
        switch (how) {
        case 0:
            kept = true;
            break;
        case 1:
            mmu_flush_pcid(v, 1);
            break;
        case 2:
            mmu_flush_all(v);
            break;
        case 3:
            mmu_stlb_protect_gpa(v, 0x101000);
            break;
        case 4:
            mmu_stlb_drop_gpa(v, 0x100000, 0x1000);
            break;
        case 5: /* INVLPG goes by the PCID, not by the table */
            load_cr3(b, 1, false);
            mmu_flush_page(v, 0x400000);
            load_cr3(b, 2, false);
            break;
        case 6: /* not another's flushes */
            mmu_flush_pcid(v, 3);
            mmu_flush_page(v, 0x400000);
            mmu_flush_nonglobal(v);
            kept = true;
            break;
        case 7: /* other rights for all */
            v->cr4 ^= CR4_SMEP;
            mmu_flush_all(v);
            break;
        case 8:
            break; /* and a flush on the way back */
        default:
            kept = true;
        }
        load_cr3(a, 1, how == 8);
        cr_expect_eq(probe(0x400000, true, true, 1) != NULL, kept, "%u", how);
        cr_expect_eq(probe(big + 0x7000, true, true, 1) != NULL, kept, "%u", how);
        mmu_flush_page(v, big);
        cr_expect_null(probe(big + 0x7000, true, false, 1), "INVLPG finds pieces of big pages");
    }
    /* The same PCID with another table: a flush or not, nothing of the first one's is to be seen there. */
    load_cr3(a, 1, true);
    translate(0x400000, MMU_READ);
    load_cr3(b, 1, false);
    load_cr3(b, 2, false);
    load_cr3(a, 1, false);
    cr_expect_null(probe(0x400000, true, false, 1));
}

/* A slot that is taken by another page forgets all the properties of the first. */
Test(tlb, replaced_entries)
{
    uint64_t a = 0xffff800000000000, b = a + STLB_SIZE * 4096ull;

    map_page(b, 0x300000, RWS, 1);
    translate(a, MMU_READ);
    translate(b, MMU_READ);
    cr_expect_null(probe(a, false, false, 1));
    cr_expect_not_null(probe(b, false, false, 1));
    mmu_flush_page(v, a);
    cr_expect_not_null(probe(b, false, false, 1));
    mmu_flush_nonglobal(v);
    cr_expect_null(probe(b, false, false, 1), "b is not global");
}

Test(tlb, smap)
{
    v->cr4 |= CR4_SMAP;
    cr_assert_eq(translate(0x400000, MMU_READ), -1);
    cr_expect_eq(v->exc.error, PF_P);
    v->rflags |= FL_AC;
    cr_assert_eq(translate(0x400000, MMU_WRITE), MMU_RAM);
    cr_expect_null(probe(0x400000, false, false, 1), "touched once");
    cr_expect_eq(v->ac_filled, 0, "CLAC has nothing to do");
    cr_assert_eq(translate(0x400000, MMU_WRITE), MMU_RAM);
    cr_assert_eq(translate(0xffff800000001000, MMU_WRITE), MMU_RAM);
    cr_expect_not_null(probe(0x400000, false, true, 1));
    cr_expect_neq(v->ac_filled, 0);
    /* Implicit supervisor accesses do not profit from the entry that AC let in. */
    cr_expect_eq(translate(0x400000, MMU_READ | MMU_SYSTEM), -1);
    cr_expect_eq(translate(0x400000, MMU_WRITE | MMU_SYSTEM), -1);
    cr_expect_eq(v->exc.error, PF_P | PF_W);

    v->rflags &= ~(uint64_t)FL_AC;
    mmu_stlb_ac_cleared(v);
    cr_expect_null(probe(0x400000, false, false, 1));
    cr_expect_eq(v->ac_filled, 0);
    cr_expect_not_null(probe(0xffff800000001000, false, true, 1));
    cr_expect_eq(translate(0x400000, MMU_READ), -1);

    /* The user's own table is not concerned. */
    v->cpl = 3;
    cr_assert_eq(translate(0x400000, MMU_READ), MMU_RAM);
    mmu_stlb_ac_cleared(v);
    cr_expect_not_null(probe(0x400000, true, false, 1));
}

Test(tlb, supervisor_under_ac_goes_by_what_the_user_may)
{
    const uint64_t rw = 0x400000, ro = 0x402000; /* the latter read-only */

    v->cr4 |= CR4_SMAP;
    v->rflags |= FL_AC;
    cr_assert_eq(translate(rw, MMU_WRITE), MMU_RAM);
    cr_expect_not_null(probe(rw, true, true, 1), "what the user may is known from here on");
    mmu_stlb_ac_cleared(v);
    *entry_of(rw, 1) = 0;
    cr_expect_eq(translate(rw, MMU_WRITE), MMU_RAM, "no walk, until there is a flush");
    cr_expect_null(probe(rw, false, false, 1));
    mmu_stlb_ac_cleared(v);
    v->rflags &= ~(uint64_t)FL_AC;
    cr_expect_eq(translate(rw, MMU_READ), -1, "SMAP");
    v->rflags |= FL_AC;
    cr_expect_eq(translate(rw, MMU_READ | MMU_SYSTEM), -1, "SMAP: an implicit access");
    mmu_flush_page(v, rw);
    cr_expect_eq(translate(rw, MMU_WRITE), -1);

    /* Without CR0.WP the supervisor may write where the user may not. */
    v->cr0 &= ~(uint64_t)CR0_WP;
    cr_assert_eq(translate(ro, MMU_WRITE), MMU_RAM);
    cr_expect_not_null(probe(ro, true, false, 1));
    cr_expect_null(probe(ro, true, true, 1));
    mmu_stlb_ac_cleared(v);
    v->cr0 |= CR0_WP;
    mmu_flush_all(v);
    cr_assert_eq(translate(ro, MMU_READ), MMU_RAM);
    mmu_stlb_ac_cleared(v);
    cr_expect_eq(translate(ro, MMU_WRITE), -1, "the right to read is none to write");

    /* A first read leaves D alone, so the write after it has to walk. */
    mmu_stlb_ac_cleared(v);
    cr_assert_eq(translate(0x401000, MMU_READ), MMU_RAM);
    cr_expect_null(probe(0x401000, true, true, 1));
    mmu_stlb_ac_cleared(v);
    cr_assert_eq(translate(0x401000, MMU_WRITE), MMU_RAM);
    cr_expect(*entry_of(0x401000, 1) & PTE_D);

    /* Translated code appears in the page. */
    mmu_stlb_ac_cleared(v);
    ram.page_flags[0x101000 >> GUEST_PAGE_SHIFT] |= RAM_PAGE_CODE;
    mmu_stlb_protect_gpa(v, 0x101000);
    cr_expect_eq(translate(0x401000, MMU_WRITE), MMU_RAM_CODE);
}

Test(tlb, many_smap_pages)
{
    v->cr4 |= CR4_SMAP;
    v->rflags |= FL_AC;
    for (unsigned i = 0; i < STLB_SIZE; i++) {
        map_page(0x10000000 + i * 4096ull, 0x100000 + i * 4096ull, RWU, 1);
        for (unsigned touch = 0; touch < 2; touch++)
            cr_assert_eq(translate(0x10000000 + i * 4096ull, MMU_READ), MMU_RAM);
    }
    mmu_stlb_ac_cleared(v);
    for (unsigned i = 0; i < STLB_SIZE; i++)
        cr_assert_null(probe(0x10000000 + i * 4096ull, false, false, 1));
}

Test(tlb, system_access_at_cpl_3)
{
    v->cpl = 3;
    cr_assert_eq(translate(0xffff800000000000, MMU_READ | MMU_SYSTEM), MMU_RAM);
    cr_expect_not_null(probe(0xffff800000000000, false, false, 1));
    cr_expect_null(probe(0xffff800000000000, true, false, 1));
    cr_expect_eq(translate(0xffff800000000000, MMU_READ), -1);
    v->cr4 |= CR4_SMAP;
    v->rflags |= FL_AC;
    cr_expect_eq(translate(0x400000, MMU_READ | MMU_SYSTEM), -1);
    cr_expect_eq(v->exc.error, PF_P, "a supervisor access: U/S = 0");
}

Test(tlb, execute_is_no_right_to_read)
{
    v->cr4 |= CR4_SMAP;
    cr_assert_eq(translate(0x400000, MMU_EXEC), MMU_RAM);
    cr_expect_null(probe(0x400000, false, false, 1));
    cr_expect_eq(translate(0x400000, MMU_READ), -1);
    map_page(0x405000, 0x105000, RWU | PTE_XD, 1);
    v->cpl = 3;
    cr_assert_eq(translate(0x405000, MMU_READ), MMU_RAM);
    cr_expect_eq(translate(0x405000, MMU_EXEC), -1, "nor the other way round");
    cr_expect_eq(v->exc.error, PF_P | PF_U | PF_I);
}

Test(tlb, code_pages)
{
    ram.page_flags[0x100] |= RAM_PAGE_CODE;
    cr_assert_eq(translate(0x400000, MMU_WRITE), MMU_RAM_CODE);
    cr_expect_eq(host, ram.base + 0x100000);
    cr_expect_not_null(probe(0x400000, false, false, 1));
    cr_expect_null(probe(0x400000, false, true, 1));
    cr_assert_eq(translate(0x400000, MMU_READ), MMU_RAM);
    cr_assert_eq(translate(0x400000, MMU_WRITE), MMU_RAM_CODE);
    cr_expect_eq(code_write.count, 0, "telling is up to the caller");

    ram.page_flags[0x100] &= (uint8_t)~RAM_PAGE_CODE;
    cr_assert_eq(translate(0x400000, MMU_WRITE), MMU_RAM);
    cr_expect_not_null(probe(0x400000, false, true, 1));
}

Test(tlb, protect_gpa)
{
    /* Three mappings of one page in two tables, and a neighbour. */
    map_page(0x7003000, 0x100000, RWU, 1);
    translate(0x400000, MMU_WRITE);
    translate(0x401000, MMU_WRITE);
    translate(0x7003000, MMU_WRITE);
    v->cpl = 3;
    translate(0x400000, MMU_WRITE);
    mmu_stlb_protect_gpa(v, 0x100abc);
    cr_expect_null(probe(0x400000, false, true, 1));
    cr_expect_null(probe(0x400000, true, true, 1));
    cr_expect_null(probe(0x7003000, false, true, 1));
    cr_expect_not_null(probe(0x400000, false, false, 1));
    cr_expect_not_null(probe(0x400000, true, false, 1));
    cr_expect_not_null(probe(0x401000, false, true, 1));
}

Test(tlb, big_pages)
{
    uint64_t two = 0x40000000, one = 0x80000000;

    map_page(two, 0x200000, RWU, 2);
    map_page(one, 0, RWU, 3);
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(translate(two + i * 0x1000 + 7, MMU_WRITE), MMU_RAM);
        cr_expect_eq(host, ram.base + 0x200007 + i * 0x1000);
        cr_assert_eq(translate(one + 0x10000 + i * 0x1000, MMU_WRITE), MMU_RAM);
        cr_expect_eq(gpa, 0x10000 + i * 0x1000);
    }
    translate(0x400000 + 0x1000, MMU_READ); /* may take the slot of two + 0x1000 */
    translate(two + 0x1000, MMU_READ);
    cr_expect_not_null(probe(two, false, true, 1));

    mmu_flush_page(v, two - 1);
    mmu_flush_page(v, two + 0x200000);
    cr_expect_not_null(probe(two, false, true, 1));
    mmu_flush_page(v, two + 0x1fffff);
    for (unsigned i = 0; i < 4; i++) {
        cr_expect_null(probe(two + i * 0x1000, false, false, 1));
        cr_expect_not_null(probe(one + 0x10000 + i * 0x1000, false, false, 1));
    }
    mmu_flush_page(v, one + 0x3fffffff);
    for (unsigned i = 0; i < 4; i++)
        cr_expect_null(probe(one + 0x10000 + i * 0x1000, false, false, 1));
}

/* Big global pages survive a CR3 write, and INVLPG still finds them afterwards. */
Test(tlb, big_global_pages)
{
    uint64_t k = 0xffffffff80000000;

    map_page(k, 0x200000, RWS | PTE_G, 2);
    translate(k + 0x5000, MMU_READ);
    mmu_flush_nonglobal(v);
    cr_expect_not_null(probe(k + 0x5000, false, false, 1));
    mmu_flush_page(v, k + 0x9000);
    cr_expect_null(probe(k + 0x5000, false, false, 1));
}

/* A random mix of accesses and page-table changes, each followed by its flush: what the soft TLB
 * says must always be what a walk says. */
Test(tlb, random_against_walk)
{
    static const uint64_t bases[] = {0x400000, 0x600000, 0x40000000, 0xffff800000000000,
                                     0xffff800040000000};
    unsigned hits = 0;

    v->cr4 |= CR4_SMAP | CR4_PCIDE;
    for (unsigned n = 0; n < 4000000; n++) {
        uint64_t gva = bases[rnd() % 5] + (rnd() % 8 << 12) + (rnd() % 3 << 21) + (rnd() & 0xff8);
        uint64_t half = gva >> 63;
        switch (rnd() % 16) {
        case 0: { /* map a 4K page, a 2M page or nothing */
            uint64_t *pde = entry_of(gva, 2);
            uint64_t flags = PTE_P | (rnd() & PTE_RW) | (half ? 0 : PTE_US) | (rnd() & PTE_G);
            if (rnd() % 3 == 0)
                *pde = (rnd() % 8 << 21) | flags | PTE_PS;
            else {
                if (!(*pde & PTE_P) || (*pde & PTE_PS)) {
                    if (next_table > 4 * MB)
                        continue;
                    *pde = new_table() | RWU;
                }
                *entry_of(gva, 1) = rnd() % 5 ? (rnd() % 4096 << 12) | flags : 0;
            }
            mmu_flush_page(v, gva);
            /* INVLPG of one address of a table that was replaced is not enough for the others. */
            for (unsigned i = 0; i < 8; i++)
                mmu_flush_page(v, (gva & ~0x1fffffull) + i * 4096);
            for (unsigned pcid = 0; pcid < 4; pcid++)
                if (pcid != (v->cr3 & 0xfff))
                    mmu_flush_pcid(v, pcid);
            break;
        }
        case 1:
            v->cpl = rnd() & 1 ? 3 : 0;
            break;
        case 2:
            v->rflags ^= FL_AC;
            if (!(v->rflags & FL_AC))
                mmu_stlb_ac_cleared(v);
            break;
        case 3: {
            uint64_t g = rnd() % 4096;
            ram.page_flags[g] ^= RAM_PAGE_CODE;
            mmu_stlb_protect_gpa(v, g << 12);
            break;
        }
        case 4:
            load_cr3(v->cr3 & ~0xfffull, rnd() % 4, rnd() % 8 == 0);
            break;
        default: {
            unsigned access = rnd() & 1 ? MMU_WRITE : MMU_READ;
            bool user = v->cpl == 3;
            void *fast = probe(gva, user, access == MMU_WRITE, 8);
            struct mmu_xlat x;
            int r = mmu_walk(v, gva, access, &x);
            if (fast) {
                hits++;
                cr_assert_eq(r, 0, "hit on %lx where the walk faults", gva);
                cr_assert_eq(fast, ram.base + x.gpa);
                if (access == MMU_WRITE)
                    cr_assert(!(ram.page_flags[x.gpa >> 12] & RAM_PAGE_CODE));
            }
            int t = translate(gva, access);
            if (r)
                cr_assert_eq(t, -1);
            else
                cr_assert_eq(gpa, x.gpa);
        }
        }
    }
    cr_expect_gt(hits, 50000, "%u", hits);
}
