/* Loads and stores done in C: page crossing, the RAM hole, code pages, MMIO splitting. */
#include "mmu_fixture.h"

#define RWU (PTE_P | PTE_RW | PTE_US)

static struct {
    unsigned count;
    struct {
        bool write;
        uint64_t gpa, value;
        unsigned size;
    } op[64];
} mmio;

static uint64_t mmio_read(struct platform *p, struct vcpu *vcpu, uint64_t gpa, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= ((gpa + i) & 0xff) << (8 * i);
    mmio.op[mmio.count].gpa = gpa;
    mmio.op[mmio.count].size = size;
    mmio.op[mmio.count++].write = false;
    return value;
}

static void mmio_write(struct platform *p, struct vcpu *vcpu, uint64_t gpa, unsigned size,
                       uint64_t value)
{
    mmio.op[mmio.count].gpa = gpa;
    mmio.op[mmio.count].size = size;
    mmio.op[mmio.count].value = value;
    mmio.op[mmio.count++].write = true;
}

static const struct platform_ops ops = {.mmio_read = mmio_read, .mmio_write = mmio_write};
static struct platform platform = {.ops = &ops};

static void setup(void)
{
    mmu_setup(16 * MB);
    v->platform = &platform;
    map_page(0x400000, 0x100000, RWU, 1);
    map_page(0x401000, 0x180000, RWU, 1); /* not next to its neighbour */
    map_page(0x402000, 0x102000, PTE_P | PTE_US, 1);
    map_page(0x404000, 0x104000, RWU, 1);
    map_page(0x405000, 0xfec00000, RWU, 1); /* MMIO behind RAM */
    map_page(0x406000, 0x106000, RWU, 1);
    for (unsigned i = 0; i < 16 * MB / 8; i++)
        if (i >= 0x100000 / 8)
            ((uint64_t *)ram.base)[i] = rnd();
}

TestSuite(access, .init = setup);

Test(access, all_sizes_and_offsets)
{
    uint8_t buf[66], want[64];

    for (unsigned size = 1; size <= 64; size++)
        for (uint64_t gva = 0x401000 - 70; gva < 0x401000 + 10; gva++) {
            for (unsigned i = 0; i < size; i++) {
                uint64_t a = gva + i;
                want[i] =
                    ram.base[a < 0x401000 ? a - 0x400000 + 0x100000 : a - 0x401000 + 0x180000];
            }
            memset(buf, 0x5a, sizeof buf);
            cr_assert_eq(mmu_load(v, gva, buf + 1, size, MMU_READ, false), 0);
            cr_assert_eq(memcmp(buf + 1, want, size), 0);
            cr_assert(buf[0] == 0x5a && buf[size + 1] == 0x5a);

            uint8_t before = *(gva - 1 < 0x401000 ? &ram.base[gva - 1 - 0x300000]
                                                  : &ram.base[gva - 1 - 0x401000 + 0x180000]);
            for (unsigned i = 0; i < size; i++)
                want[i] = (uint8_t)rnd();
            cr_assert_eq(mmu_store(v, gva, want, size, MMU_WRITE, false), 0);
            cr_assert_eq(mmu_load(v, gva, buf + 1, size, MMU_READ, false), 0);
            cr_assert_eq(memcmp(buf + 1, want, size), 0);
            cr_assert_eq(before, *(gva - 1 < 0x401000 ? &ram.base[gva - 1 - 0x300000]
                                                      : &ram.base[gva - 1 - 0x401000 + 0x180000]));
        }
}

Test(access, nothing_is_written_if_the_second_page_faults)
{
    uint8_t old[8], data[16] = {1, 2, 3, 4, 5, 6, 7, 8};

    v->cpl = 3;
    memcpy(old, ram.base + 0x180ff8, 8);
    cr_assert_eq(mmu_store(v, 0x401ffc, data, 8, MMU_WRITE, false), -1);
    cr_expect_eq(v->exc.vector, EXC_PF);
    cr_expect_eq(v->exc.error, PF_P | PF_W | PF_U);
    cr_expect_eq(v->exc.cr2, 0x402000, "the byte that faulted");
    cr_expect_eq(memcmp(old, ram.base + 0x180ff8, 8), 0);
    cr_assert_eq(mmu_load(v, 0x402ff8, data, 16, MMU_READ, false), -1);
    cr_expect_eq(v->exc.cr2, 0x403000);
    cr_expect_eq(v->exc.error, PF_U);
}

Test(access, first_page_faults_first)
{
    uint8_t data[8];

    cr_assert_eq(mmu_load(v, 0x403ffe, data, 8, MMU_READ, false), -1);
    cr_expect_eq(v->exc.cr2, 0x403ffe);
}

/* Crossing out of the canonical range is #GP or #SS, even if the first page is not mapped. */
Test(access, canonical_edges)
{
    uint8_t data[8];

    cr_assert_eq(mmu_load(v, 0x7ffffffffffc, data, 8, MMU_READ, false), -1);
    cr_expect_eq(v->exc.vector, EXC_GP);
    cr_assert_eq(mmu_store(v, 0x7ffffffffffc, data, 8, MMU_WRITE, true), -1);
    cr_expect_eq(v->exc.vector, EXC_SS);
    cr_assert_eq(mmu_load(v, 0xffff7ffffffffffc, data, 8, MMU_READ, false), -1);
    cr_expect_eq(v->exc.vector, EXC_GP);

    /* The address space is a ring: 2^64 - 4 is followed by 0. */
    map_page(0xfffffffffffff000, 0x300000, RWU, 1);
    map_page(0, 0x301000, RWU, 1);
    memcpy(ram.base + 0x300ffc, "ring", 4);
    memcpy(ram.base + 0x301000, "road", 4);
    cr_assert_eq(mmu_load(v, 0xfffffffffffffffc, data, 8, MMU_READ, false), 0);
    cr_expect_eq(memcmp(data, "ringroad", 8), 0);
}

Test(access, compatibility_mode_wraps_at_4g)
{
    uint8_t data[8];

    map_page(0xfffff000, 0x300000, RWU, 1);
    map_page(0x100000000, 0x302000, RWU, 1);
    map_page(0, 0x301000, RWU, 1);
    memcpy(ram.base + 0x300ffc, "ring", 4);
    memcpy(ram.base + 0x301000, "road", 4);
    memcpy(ram.base + 0x302000, "worm", 4);
    cr_assert_eq(mmu_load(v, 0xfffffffc, data, 8, MMU_READ, false), 0);
    cr_expect_eq(memcmp(data, "ringworm", 8), 0);
    v->seg[SEG_CS].attr = (v->seg[SEG_CS].attr & (uint16_t)~SEGA_L) | SEGA_DB;
    cr_assert_eq(mmu_load(v, 0xfffffffc, data, 8, MMU_READ, false), 0);
    cr_expect_eq(memcmp(data, "ringroad", 8), 0);
    cr_assert_eq(mmu_load(v, 0xfffffffc, data, 8, MMU_READ | MMU_SYSTEM, false), 0);
    cr_expect_eq(memcmp(data, "ringworm", 8), 0);
}

Test(access, code_pages_are_told_the_exact_range)
{
    uint64_t data[2] = {0x1122334455667788, 0x99aabbccddeeff00};

    ram.page_flags[0x180] |= RAM_PAGE_CODE;
    cr_assert_eq(mmu_store(v, 0x400ffd, data, 16, MMU_WRITE, false), 0);
    cr_expect_eq(code_write.count, 1);
    cr_expect_eq(code_write.gpa, 0x180000);
    cr_expect_eq(code_write.len, 13);
    cr_expect_eq(memcmp(ram.base + 0x100ffd, data, 3), 0);
    cr_expect_eq(memcmp(ram.base + 0x180000, (char *)data + 3, 13), 0);
    cr_assert_eq(mmu_load(v, 0x401000, data, 8, MMU_READ, false), 0);
    cr_expect_eq(code_write.count, 1);
}

Test(access, mmio_pieces)
{
    static const struct {
        uint64_t gpa;
        unsigned size, n, pieces[12];
    } cases[] = {
        {0xfec00000, 1, 1, {1}},        {0xfec00001, 2, 2, {1, 1}},
        {0xfec00002, 4, 2, {2, 2}},     {0xfec00000, 8, 1, {8}},
        {0xfec00004, 8, 2, {4, 4}},     {0xfec00003, 16, 5, {1, 4, 8, 2, 1}},
        {0xfec00000, 3, 2, {2, 1}},     {0xfec00000, 64, 8, {8, 8, 8, 8, 8, 8, 8, 8}},
        {0xfec00ffc, 16, 3, {4, 8, 4}},
    };
    uint8_t buf[64], data[64];

    for (unsigned i = 0; i < 64; i++)
        data[i] = (uint8_t)rnd();
    for (unsigned c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (unsigned write = 0; write < 2; write++) {
            uint64_t gpa = cases[c].gpa;
            mmio.count = 0;
            if (write)
                mmu_mmio_write(v, gpa, data, cases[c].size);
            else
                mmu_mmio_read(v, gpa, buf, cases[c].size);
            cr_assert_eq(mmio.count, cases[c].n, "case %u: %u pieces", c, mmio.count);
            for (unsigned i = 0; i < mmio.count; i++) {
                cr_assert_eq(mmio.op[i].size, cases[c].pieces[i], "case %u", c);
                cr_assert_eq(mmio.op[i].gpa, gpa);
                cr_assert_eq(gpa % mmio.op[i].size, 0);
                if (write)
                    cr_assert_eq(
                        memcmp(&mmio.op[i].value, data + (gpa - cases[c].gpa), mmio.op[i].size), 0);
                gpa += mmio.op[i].size;
            }
            if (!write)
                for (unsigned i = 0; i < cases[c].size; i++)
                    cr_assert_eq(buf[i], (uint8_t)(cases[c].gpa + i));
        }
    }
}

Test(access, ram_then_mmio_then_ram)
{
    uint8_t buf[8];
    uint64_t data = 0x0807060504030201;

    cr_assert_eq(mmu_load(v, 0x404ffd, buf, 8, MMU_READ, false), 0);
    cr_expect_eq(memcmp(buf, ram.base + 0x104ffd, 3), 0);
    for (unsigned i = 0; i < 5; i++)
        cr_expect_eq(buf[3 + i], i);
    cr_assert_eq(mmu_store(v, 0x405ffc, &data, 8, MMU_WRITE, false), 0);
    cr_expect_eq(mmio.op[mmio.count - 1].value, 0x04030201);
    cr_expect_eq(memcmp(ram.base + 0x106000, (char *)&data + 4, 4), 0);
    /* The second page is checked before the device sees anything. */
    mmio.count = 0;
    *entry_of(0x406000, 1) = 0;
    mmu_flush_page(v, 0x406000);
    cr_expect_eq(mmu_store(v, 0x405ffc, &data, 8, MMU_WRITE, false), -1);
    cr_expect_eq(mmio.count, 0);
}

Test(access, hole_below_4g)
{
    uint64_t data = 1;

    ram_destroy(&ram);
    mmu_setup(RAM_LOW_MAX + 16 * MB);
    v->platform = &platform;
    map_page(0x80000000, RAM_LOW_MAX - 2 * MB, RWU, 2);
    map_page(0x80200000, RAM_LOW_MAX, RWU, 2);
    map_page(0x80400000, RAM_HIGH_BASE, RWU, 2);
    mmio.count = 0;
    cr_assert_eq(mmu_store(v, 0x801ffffc, &data, 8, MMU_WRITE, false), 0);
    cr_expect_eq(mmio.count, 1);
    cr_expect_eq(mmio.op[0].gpa, RAM_LOW_MAX);
    cr_expect_eq(ram.base[RAM_LOW_MAX - 4], 1);
    cr_assert_eq(mmu_store(v, 0x80400010, &data, 8, MMU_WRITE, false), 0);
    cr_expect_eq(ram.base[RAM_HIGH_BASE + 0x10], 1);
    cr_expect_eq(mmio.count, 1);
}
