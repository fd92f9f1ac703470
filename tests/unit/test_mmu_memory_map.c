/* Changes of the memory map: kinds, extents, what the soft TLB, the walk and windows do with them.
 */
#include "mmu_fixture.h"

#include <errno.h>
#include <unistd.h>

#include "mmu/memory_map.h"
#include "mmu/window.h"

#define RWU      (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
#define HIGH_ROM 0xfffc0000ull

static struct {
    unsigned count;
    uint64_t gpa, len;
} changed;

static void record_change(void *opaque, uint64_t gpa, uint64_t len)
{
    changed.count++;
    changed.gpa = gpa;
    changed.len = len;
    mmu_stlb_drop_gpa(v, gpa, len);
}

static struct {
    unsigned reads, writes;
    uint64_t gpa, value;
} mmio;

static uint64_t mmio_read(struct platform *p, struct vcpu *c, uint64_t gpa, unsigned size)
{
    mmio.reads++;
    mmio.gpa = gpa;
    return 0xdeadbeefcafebabeull;
}

static void mmio_write(struct platform *p, struct vcpu *c, uint64_t gpa, unsigned size,
                       uint64_t value)
{
    mmio.writes++;
    mmio.gpa = gpa;
    mmio.value = value;
}

static const struct platform_ops ops = {.mmio_read = mmio_read, .mmio_write = mmio_write};
static struct platform platform = {.ops = &ops};

static void setup(void)
{
    mmu_setup(4 * MB);
    ram.map_changed = record_change;
    v->platform = &platform;
    memset(&changed, 0, sizeof changed);
    memset(&mmio, 0, sizeof mmio);
}

static uint64_t new_region(uint64_t len, uint8_t **host)
{
    uint64_t offset;

    cr_assert_eq(ram_region_alloc(&ram, len, &offset, (void **)host), 0);
    return offset;
}

Test(memory_map, rom_and_alias, .init = setup)
{
    uint8_t *rom;
    uint64_t offset = new_region(256 << 10, &rom);

    for (unsigned i = 0; i < 256 << 10; i += 8)
        memcpy(rom + i, &(uint64_t){i}, 8);
    cr_expect_eq(ram_map_region(&ram, HIGH_ROM, 256 << 10, offset, RAM_KIND_ROM), 0);
    cr_expect_eq(ram_map_region(&ram, 0xe0000, 0x20000, offset + 0x20000, RAM_KIND_ROM), -EBUSY);
    cr_expect_eq(ram_remap(&ram, 0xe0000, 0x20000, offset + 0x20000, RAM_KIND_ROM), 0);
    cr_expect_eq(changed.count, 2);
    cr_expect_eq(changed.gpa, 0xe0000);
    cr_expect_eq(*(uint64_t *)(ram.base + 0xffff8), 0x3fff8);
    cr_expect_eq(*(uint64_t *)(ram.base + HIGH_ROM + 0x20000), 0x20000);
    cr_expect_eq(ram_file_offset(&ram, 0xf1234), offset + 0x31234);
    cr_expect_eq(ram_file_offset(&ram, 0x100000), 0x100000);
    cr_expect(ram_readable(&ram, 0xdfff0, 32));
    cr_expect(!ram_contains(&ram, 0xdfff0, 32));
    cr_expect(ram_contains(&ram, 0xdfff0, 16));
    cr_expect_null(ram_ptr(&ram, 0xf0000, 1));
    cr_expect_eq(ram_read_ptr(&ram, 0xf0000, 1), ram.base + 0xf0000);
    cr_expect_eq(ram_write(&ram, 0xf0000, "x", 1), -EFAULT);
    uint64_t x = 0;
    cr_expect_eq(ram_read(&ram, 0xf0000, &x, 8), 0);
    cr_expect_eq(x, 0x30000);
}

/* Loads come from the ROM, stores go to the platform, and a read-modify-write does both. */
Test(memory_map, rom_accesses, .init = setup)
{
    uint8_t *rom;
    uint64_t offset = new_region(0x10000, &rom), x = 0;
    void *host;
    uint64_t gpa;

    memset(rom, 0x5a, 0x10000);
    cr_assert_eq(ram_remap(&ram, 0xf0000, 0x10000, offset, RAM_KIND_ROM), 0);
    map_page(0x400000, 0xf0000, RWU, 1);
    map_page(0x401000, 0xf1000, RWU, 1);
    cr_expect_eq(mmu_translate(v, 0x400010, MMU_READ, false, &host, &gpa), MMU_RAM);
    cr_expect_eq(host, ram.base + 0xf0010);
    struct soft_tlb_entry *e = mmu_stlb_slot(v, 0x400010, false);
    cr_expect_eq(e->rtag, 0x400000);
    cr_expect_neq(e->wtag, 0x400000);
    cr_expect_eq(mmu_translate(v, 0x400010, MMU_WRITE, false, &host, &gpa), MMU_MMIO);
    cr_expect_eq(gpa, 0xf0010);
    cr_expect_eq(mmu_translate(v, 0x401010, MMU_WRITE | MMU_RMW, false, &host, &gpa), MMU_MMIO);
    cr_expect_neq(mmu_stlb_slot(v, 0x401010, false)->wtag, 0x401000);
    cr_expect_eq(mmu_store(v, 0x400ffc, &(uint64_t){0x1122334455667788ull}, 8, MMU_WRITE, false),
                 0);
    cr_expect_eq(mmio.writes, 2, "cut at the page");
    cr_expect_eq(mmio.value, 0x11223344);
    cr_expect_eq(mmu_load(v, 0x400ffc, &x, 8, MMU_READ, false), 0);
    cr_expect_eq(x, 0x5a5a5a5a5a5a5a5aull);
    mmu_mmio_read(v, 0xf1010, &x, 8);
    cr_expect_eq(x, 0x5a5a5a5a5a5a5a5aull);
    cr_expect_eq(mmio.reads, 0);
    cr_expect_eq(rom[0xffc], 0x5a);
}

/* PAM: the same GPAs as ROM, as RAM under it, as write-protected RAM, and back. */
Test(memory_map, shadowing, .init = setup)
{
    uint8_t *rom;
    uint64_t offset = new_region(0x10000, &rom), x;
    void *host;
    uint64_t gpa;

    memset(rom, 0x11, 0x10000);
    map_page(0x400000, 0xf0000, RWU, 1);
    map_page(0x401000, 0xf4000, RWU, 1);
    ram.base[0xf0000] = 0x22;
    cr_expect_eq(mmu_load(v, 0x400000, &x, 1, MMU_READ, false), 0);
    cr_expect_eq((uint8_t)x, 0x22);
    cr_assert_eq(ram_remap(&ram, 0xf0000, 0x10000, offset, RAM_KIND_ROM), 0);
    cr_expect_eq(mmu_load(v, 0x400000, &x, 1, MMU_READ, false), 0);
    cr_expect_eq((uint8_t)x, 0x11, "the soft TLB has forgotten the RAM");
    cr_assert_eq(ram_remap(&ram, 0xf0000, 0x4000, 0xf0000, RAM_KIND_RAM), 0);
    cr_expect_eq(mmu_translate(v, 0x400000, MMU_WRITE, false, &host, &gpa), MMU_RAM);
    cr_expect_eq(*(uint8_t *)host, 0x22, "RAM has kept its contents");
    *(uint8_t *)host = 0x33;
    cr_expect_eq(mmu_translate(v, 0x401000, MMU_WRITE, false, &host, &gpa), MMU_MMIO);
    cr_expect_eq(ram.base[0xf4000], 0x11);
    cr_assert_eq(ram_remap(&ram, 0xf0000, 0x4000, 0xf0000, RAM_KIND_ROM), 0);
    cr_expect_eq(mmu_load(v, 0x400000, &x, 1, MMU_READ, false), 0);
    cr_expect_eq((uint8_t)x, 0x33);
    cr_expect_eq(mmu_translate(v, 0x400000, MMU_WRITE, false, &host, &gpa), MMU_MMIO);
    cr_assert_eq(ram_remap(&ram, 0xf0000, 0x10000, 0xf0000, RAM_KIND_RAM), 0);
    cr_expect_eq(ram.extents, 1, "all one piece again");
    unsigned n = changed.count;
    cr_assert_eq(ram_remap(&ram, 0xf4000, 0x4000, 0xf4000, RAM_KIND_RAM), 0);
    cr_expect_eq(changed.count, n, "no change, no flush");
    cr_expect_eq(ram_file_read(&ram, 0xf0000, &x, 1), 0);
    cr_expect_eq((uint8_t)x, 0x33);
}

Test(memory_map, holes, .init = setup)
{
    uint64_t x;
    void *host;
    uint64_t gpa;

    map_page(0x400000, 0xa0000, RWU, 1);
    map_page(0x600000, 0xe0000000, RWU, 2);
    cr_expect_eq(mmu_translate(v, 0x400000, MMU_WRITE, false, &host, &gpa), MMU_RAM);
    cr_assert_eq(ram_unmap_region(&ram, 0xa0000, 0x20000), 0);
    *(volatile uint8_t *)host = 1; /* a pointer from before is harmless */
    cr_expect_eq(ram_find_extent(&ram, 0xa0000, &(struct ram_extent){0}), false);
    cr_expect_eq(ram.extents, 2);
    cr_expect_eq(mmu_load(v, 0x400008, &x, 8, MMU_READ, false), 0);
    cr_expect_eq(x, 0xdeadbeefcafebabeull);
    cr_expect_eq(mmio.gpa, 0xa0008);
    cr_expect_eq(mmu_store(v, 0x400008, &x, 8, MMU_WRITE, false), 0);
    cr_expect_eq(mmio.writes, 1);

    /* A frame buffer comes, is written through the guest's mapping, moves, and goes. */
    uint8_t *vram;
    uint64_t offset = new_region(MB, &vram);
    cr_expect_eq(ram_map_region(&ram, 0xe0000000, MB, offset, RAM_KIND_RAM), 0);
    cr_expect_eq(mmu_store(v, 0x600010, &x, 8, MMU_WRITE, false), 0);
    cr_expect_eq(memcmp(vram + 0x10, &x, 8), 0);
    cr_expect_eq(ram_unmap_region(&ram, 0xe0000000, MB), 0);
    cr_expect_eq(mmu_store(v, 0x600010, &x, 8, MMU_WRITE, false), 0);
    cr_expect_eq(mmio.gpa, 0xe0000010);
    cr_expect_eq(ram_map_region(&ram, 0xd0000000, MB, offset, RAM_KIND_RAM), 0);
    cr_expect_eq(ram_map_region(&ram, 0xd00ff000, MB, offset, RAM_KIND_RAM), -EBUSY);
    cr_expect_eq(memcmp(ram.base + 0xd0000010, &x, 8), 0);
}

Test(memory_map, code_pages, .init = setup)
{
    ram.page_flags[0xf0] |= RAM_PAGE_CODE;
    cr_assert_eq(ram_unmap_region(&ram, 0xe0000, 0x10000), 0);
    cr_expect_eq(code_write.count, 0);
    cr_assert_eq(ram_unmap_region(&ram, 0xe8000, 0x10000), 0);
    cr_expect_eq(code_write.count, 1);
    cr_expect_eq(code_write.gpa, 0xe8000);
    cr_expect_eq(code_write.len, 0x10000);
}

Test(memory_map, refusals, .init = setup)
{
    uint8_t *p;
    uint64_t offset = new_region(0x1000, &p);

    cr_expect_eq(ram_map_region(&ram, 0xd0000800, 0x1000, offset, RAM_KIND_RAM), -EINVAL);
    cr_expect_eq(ram_map_region(&ram, 0xd0000000, 0x800, offset, RAM_KIND_RAM), -EINVAL);
    cr_expect_eq(ram_map_region(&ram, 0xd0000000, 0, offset, RAM_KIND_RAM), -EINVAL);
    cr_expect_eq(ram_map_region(&ram, 0xfffff000, 0x2000, offset, RAM_KIND_RAM), -EINVAL);
    cr_expect_eq(ram_map_region(&ram, UINT64_MAX & ~0xfffull, 0x1000, offset, RAM_KIND_RAM),
                 -EINVAL);
    cr_expect_eq(
        ram_map_region(&ram, 0xd0000000, 0x2000, ram.size + RAM_EXTRA_SIZE - 0x1000, RAM_KIND_RAM),
        -EINVAL);
    cr_expect_eq(ram_region_alloc(&ram, RAM_EXTRA_SIZE, &offset, (void **)&p), -ENOSPC);
    cr_expect_eq(changed.count, 0);

    /* A map that falls to pieces is refused, not overrun. */
    int err = 0;
    unsigned n = 0;
    for (; n < 1000 && !err; n++)
        err = ram_unmap_region(&ram, n * 0x2000, 0x1000);
    cr_expect_eq(err, -ENOSPC);
    cr_expect_eq(ram.extents, RAM_MAX_EXTENTS);
    cr_expect(ram_contains(&ram, (n - 1) * 0x2000, 0x1000), "the refused change was not made");
}

/* Any sequence of changes gives the map that a page-by-page model gives. */
Test(memory_map, random_changes, .init = setup)
{
    enum { PAGES = 256 };
    static struct {
        uint32_t kind;
        uint64_t offset;
    } model[PAGES];
    uint8_t *p;
    uint64_t offset = new_region(PAGES * 4096, &p);

    for (unsigned i = 0; i < PAGES; i++)
        model[i].offset = i * 4096;
    for (unsigned round = 0; round < 3000; round++) {
        unsigned first = (unsigned)(rnd() % PAGES), n = 1 + (unsigned)(rnd() % (PAGES - first));
        unsigned kind = (unsigned)(rnd() % 3);
        uint64_t at = rnd() % 2 ? offset + first * 4096 : first * 4096ull;
        n = rnd() % 4 ? 1 + n % 8 : n;
        n = n > PAGES - first ? PAGES - first : n;
        int err = ram_remap(&ram, first * 4096, n * 4096, at, (enum ram_kind)kind);
        if (err) {
            cr_assert_eq(err, -ENOSPC);
            continue;
        }
        for (unsigned i = first; i < first + n; i++) {
            model[i].kind = kind == RAM_KIND_ROM    ? RAM_PAGE_ROM
                            : kind == RAM_KIND_HOLE ? RAM_PAGE_HOLE
                                                    : 0;
            model[i].offset = at + (i - first) * 4096;
        }
        uint64_t end = 0;
        for (unsigned i = 0; i < ram.extents; i++) {
            cr_assert_geq(ram.extent[i].gpa, end);
            end = ram.extent[i].gpa + ram.extent[i].len;
        }
        for (unsigned i = 0; i < PAGES; i++) {
            struct ram_extent e;
            cr_assert_eq(ram_page(&ram, i * 4096), model[i].kind);
            bool found = ram_find_extent(&ram, i * 4096, &e);
            cr_assert_eq(found, model[i].kind != RAM_PAGE_HOLE);
            if (found) {
                cr_assert_eq(e.kind, model[i].kind);
                cr_assert_eq(ram_file_offset(&ram, i * 4096), model[i].offset);
            }
        }
    }
}

/* ROM tables can be walked; accessed and dirty flags are not written there. */
Test(memory_map, tables_in_rom, .init = setup)
{
    struct mmu_xlat x;

    map_page(0x400000, 0x3000, PTE_P | PTE_RW | PTE_US, 1);
    uint64_t *pte = entry_of(0x400000, 1);
    uint64_t table = (uint64_t)((uint8_t *)pte - ram.base) & ~0xfffull;
    cr_assert_eq(ram_remap(&ram, table, 0x1000, table, RAM_KIND_ROM), 0);
    cr_expect_eq(mmu_walk(v, 0x400000, MMU_WRITE, &x), 0);
    cr_expect_eq(x.gpa, 0x3000);
    cr_expect(!(*pte & (PTE_A | PTE_D)));
    cr_assert_eq(ram_unmap_region(&ram, table, 0x1000), 0);
    cr_expect_eq(mmu_walk(v, 0x400000, MMU_WRITE, &x), -1, "all-ones has reserved bits set");
    cr_expect_eq(v->exc.error, PF_P | PF_RSVD | PF_W);
}

/* Windows: never writable over ROM, never past the end of an extent, dropped by GPA. */
Test(memory_map, windows, .init = setup)
{
    static struct window_space ws;
    struct window_config cfg = {.max_windows = 4};
    struct window_key key = {.pdpt_gpa = 0x1000, .pml4_index = 256};
    const uint64_t kern = 0xffff800000000000ull;
    struct window_run_info r;
    uint8_t *rom;
    uint64_t offset = new_region(0x20000, &rom);

    memset(rom, 0x77, 0x20000);
    ram.base[0x100000] = 0x44;
    cr_assert_eq(ram_remap(&ram, 0xe0000, 0x20000, offset, RAM_KIND_ROM), 0);
    cr_assert_eq(window_space_init(&ws, &ram, &cfg), 0);
    struct window *w = window_get(&ws, &key, NULL);
    struct window_pte pte = {.gpa = 0xe5000, .shift = 21, .valid = true, .writable = true};
    cr_expect_eq(window_install(&ws, w, kern + 0xe5000, &pte, NULL, NULL), 0);
    cr_expect(window_mapped(&ws, w, kern + 0xfffff, false));
    cr_expect(!window_mapped(&ws, w, kern + 0xe5000, true));
    cr_expect(!window_mapped(&ws, w, kern + 0x100000, false));
    cr_expect(!window_mapped(&ws, w, kern + 0xdf000, false));
    cr_expect_eq(*(uint8_t *)(w->delta + kern + 0xe5000), 0x77);
    pte.gpa = 0x100000;
    cr_expect_eq(window_install(&ws, w, kern + 0x100000, &pte, NULL, NULL), 0);
    cr_expect(window_mapped(&ws, w, kern + 0x100000, true));
    cr_expect(window_mapped(&ws, w, kern + 0x1ff000, true));
    cr_expect_eq(*(uint8_t *)(w->delta + kern + 0x100000), 0x44);
    cr_expect_eq(ws.runs, 2, "different parts of the file are different mappings");
    window_drop_gpa(&ws, 0xf0000, 0x20000);
    cr_expect(window_mapped(&ws, w, kern + 0xef000, false));
    cr_expect(!window_mapped(&ws, w, kern + 0xf0000, false));
    cr_expect(!window_mapped(&ws, w, kern + 0x10f000, false));
    cr_expect(window_mapped(&ws, w, kern + 0x110000, true));
    cr_expect(window_next_run(&ws, 0, &r));
    cr_expect_eq(r.end - r.hva, 0x10000);
    pte.gpa = 0xa0000;
    cr_assert_eq(ram_unmap_region(&ram, 0xa0000, 0x20000), 0);
    cr_expect_eq(window_install(&ws, w, kern + 0xa0000, &pte, NULL, NULL), -EFAULT);
    window_space_destroy(&ws);
}
