/*
 * What the mmu/ tests share: a vCPU in long mode over a small RAM, a builder of page tables, and
 * recorders in place of the engine and the platform.
 */
#ifndef RINGSHIFT_TEST_MMU_FIXTURE_H
#define RINGSHIFT_TEST_MMU_FIXTURE_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "mmu/mmu.h"
#include "mmu/walk.h"

/* AddressSanitizer needs more address space than RLIMIT_AS tests leave it. */
#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifndef UNDER_ASAN
#define UNDER_ASAN 0
#endif

#define MB (1ull << 20)
#define GB (1ull << 30)

static struct guest_ram ram;
static struct vcpu vcpu_storage;
static struct vcpu *const v = &vcpu_storage;
static uint64_t next_table; /* bump allocator of page-table pages, from GPA 4K up */

/* The engine's hook, as a recorder. Weak: the real one wins where the translator is linked in. */
static unsigned flush_count[MMU_FLUSHED_PCID + 1];
static uint64_t flush_gva;
void __attribute__((weak))
engine_on_mmu_flush(struct vcpu *vcpu, enum mmu_flush_kind kind, uint64_t gva)
{
    flush_count[kind]++;
    flush_gva = gva;
}

static unsigned fp_saves;
void __attribute__((weak)) vcpu_fp_save_slow(struct vcpu *vcpu)
{
    fp_saves++;
    vcpu->fp_saved = 1;
}

/* code_write callback. */
static struct {
    unsigned count;
    uint64_t gpa, len;
    uint64_t value_before; /* of the 8 bytes at gpa, when called */
} code_write;

static void record_code_write(void *opaque, uint64_t gpa, uint64_t len)
{
    code_write.count++;
    code_write.gpa = gpa;
    code_write.len = len;
    memcpy(&code_write.value_before, ram.base + gpa, 8);
}

static inline uint64_t new_table(void)
{
    uint64_t gpa = next_table;

    next_table += 4096;
    memset(ram.base + gpa, 0, 4096);
    return gpa;
}

static inline void mmu_setup(uint64_t ram_size)
{
    cr_assert_eq(ram_create(&ram, ram_size), 0);
    ram.code_write = record_code_write;
    next_table = 4096;
    memset(v, 0, sizeof *v);
    v->ram = &ram;
    v->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_NE | CR0_ET;
    v->cr4 = CR4_PAE | CR4_PGE;
    v->efer = EFER_LME | EFER_LMA | EFER_NX | EFER_SCE;
    v->seg[SEG_CS].attr = SEGA_P | SEGA_S | SEGA_L | 0xb;
    v->rflags = FL_FIXED1;
    v->cr3 = new_table();
    mmu_stlb_init(v);
}

static inline uint64_t *entry_at(uint64_t table, uint64_t gva, unsigned level)
{
    return (uint64_t *)(ram.base + table) + (gva >> (12 + 9 * (level - 1)) & 511);
}

/* The entry of gva at `level`, with tables above it created as needed with full rights. */
static inline uint64_t *entry_of(uint64_t gva, unsigned level)
{
    uint64_t table = v->cr3 & PTE_ADDR;

    for (unsigned l = 4; l > level; l--) {
        uint64_t *e = entry_at(table, gva, l);
        if (!(*e & PTE_P))
            *e = new_table() | PTE_P | PTE_RW | PTE_US;
        table = *e & PTE_ADDR;
    }
    return entry_at(table, gva, level);
}

/* Maps one page of 4K (level 1), 2M (2) or 1G (3). */
static inline void map_page(uint64_t gva, uint64_t gpa, uint64_t flags, unsigned level)
{
    *entry_of(gva, level) = gpa | flags | (level > 1 ? PTE_PS : 0);
}

static inline uint64_t rnd(void)
{
    static uint64_t x = 0x9e3779b97f4a7c15ull;

    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x * 0x2545f4914f6cdd1dull;
}

#endif
