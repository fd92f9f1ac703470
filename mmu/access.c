/*
 * Loads and stores for instructions that are done in C, and raw MMIO transfers.
 *
 * Guest memory may change at any time: each byte is read or written once, in the widest moves that
 * fit, so that an access of 1, 2, 4 or 8 bytes within a page is as atomic as the host makes the
 * same instruction.
 */
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "mmu/mmu.h"

typedef volatile uint64_t __attribute__((aligned(1), may_alias)) any_u64;
typedef volatile uint32_t __attribute__((aligned(1), may_alias)) any_u32;
typedef volatile uint16_t __attribute__((aligned(1), may_alias)) any_u16;

static inline void copy(void *to, const void *from, unsigned size)
{
    uint8_t *d = to;
    const uint8_t *s = from;

    for (; size >= 8; size -= 8, d += 8, s += 8)
        *(any_u64 *)d = *(const any_u64 *)s;
    if (size & 4) {
        *(any_u32 *)d = *(const any_u32 *)s;
        d += 4, s += 4;
    }
    if (size & 2) {
        *(any_u16 *)d = *(const any_u16 *)s;
        d += 2, s += 2;
    }
    if (size & 1)
        *(volatile uint8_t *)d = *(const volatile uint8_t *)s;
}

/* One access, cut at the page boundary. */
struct part {
    uint64_t gva, gpa;
    void *host;
    unsigned size;
    enum mmu_target target;
};

/*
 * Translates all of [gva, gva+size) before anything is transferred: an instruction that faults on
 * its second page has not touched the first one. Returns the number of parts, or -1 with v->exc.
 */
static int translate_parts(struct vcpu *v, uint64_t gva, unsigned size, unsigned access, bool stack,
                           struct part part[2])
{
    unsigned room = GUEST_PAGE_SIZE - (unsigned)(gva & (GUEST_PAGE_SIZE - 1));
    int n = 1;

    part[0].gva = gva;
    part[0].size = size <= room ? size : room;
    if (size > room) {
        part[1].gva = gva + room;
        part[1].size = size - room;
        n = 2;
        /* Linear addresses wrap at 4 GiB outside 64-bit mode (SDM vol. 1, 3.3.7); descriptor
         * tables of IA-32e mode have 64-bit addresses even then. */
        if (!vcpu_long64(v) && !((v->efer & EFER_LMA) && (access & MMU_SYSTEM)))
            part[1].gva &= 0xffffffffu;
        /* The whole operand is checked to be canonical before paging comes into play. */
        if (!mmu_canonical(part[0].gva) || !mmu_canonical(part[1].gva)) {
            cpu_raise_code(v, stack ? EXC_SS : EXC_GP, 0);
            return -1;
        }
    }
    for (int i = 0; i < n; i++) {
        int target = mmu_translate(v, part[i].gva, access, stack, &part[i].host, &part[i].gpa);
        if (target < 0)
            return -1;
        part[i].target = (enum mmu_target)target;
    }
    return n;
}

/* Host address of [gva, gva + size) if the soft TLB has it: what mmu_translate() finds first. */
static inline void *in_tlb(struct vcpu *v, uint64_t gva, unsigned size, unsigned access, bool write)
{
    const struct soft_tlb_entry *e = mmu_stlb_slot(v, gva, v->cpl == 3 && !(access & MMU_SYSTEM));
    uint64_t offset = gva & (GUEST_PAGE_SIZE - 1);

    if ((write ? e->wtag : e->rtag) != gva - offset || offset + size > GUEST_PAGE_SIZE ||
        ((access & MMU_SYSTEM) && (e->info & STLB_USER) && (v->cr4 & CR4_SMAP)))
        return NULL;
    return (void *)(uintptr_t)(e->host + offset);
}

int mmu_load(struct vcpu *v, uint64_t gva, void *buf, unsigned size, unsigned access, bool stack)
{
    struct part part[2];
    uint8_t *to = buf;
    const void *host = in_tlb(v, gva, size, access, false);

    if (host) {
        copy(to, host, size);
        return 0;
    }
    int n = translate_parts(v, gva, size, access, stack, part);

    if (n < 0)
        return -1;
    for (int i = 0; i < n; to += part[i].size, i++)
        if (part[i].target == MMU_MMIO)
            mmu_mmio_read(v, part[i].gpa, to, part[i].size);
        else
            copy(to, part[i].host, part[i].size);
    return 0;
}

int mmu_store(struct vcpu *v, uint64_t gva, const void *buf, unsigned size, unsigned access,
              bool stack)
{
    struct part part[2];
    const uint8_t *from = buf;
    void *host = in_tlb(v, gva, size, access, true);

    if (host) {
        copy(host, from, size);
        return 0;
    }
    int n = translate_parts(v, gva, size, (access & ~MMU_KIND) | MMU_WRITE, stack, part);

    if (n < 0)
        return -1;
    for (int i = 0; i < n; from += part[i].size, i++) {
        if (part[i].target == MMU_MMIO) {
            mmu_mmio_write(v, part[i].gpa, from, part[i].size);
            continue;
        }
        if (part[i].target == MMU_RAM_CODE)
            ram_before_write(v->ram, part[i].gpa, part[i].size);
        copy(part[i].host, from, part[i].size);
    }
    return 0;
}

/* The largest power of two, at most 8, that divides gpa and does not exceed size. */
static unsigned piece_size(uint64_t gpa, unsigned size)
{
    unsigned piece = 8;

    while ((gpa & (piece - 1)) || piece > size)
        piece /= 2;
    return piece;
}

void mmu_mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size)
{
    uint8_t *to = buf;

    if (!(ram_page(v->ram, gpa) & RAM_PAGE_HOLE)) {
        copy(to, v->ram->base + gpa, size);
        return;
    }
    const struct platform_ops *ops = v->platform->ops;
    if (ops->mmio_read_light && size <= 8 && piece_size(gpa, size) == size) {
        uint64_t value;
        if (ops->mmio_read_light(v->platform, v, gpa, size, &value)) {
            copy(to, &value, size);
            return;
        }
    }
    vcpu_fp_save(v);
    while (size) {
        unsigned piece = piece_size(gpa, size);
        uint64_t value = v->platform->ops->mmio_read(v->platform, v, gpa, piece);
        copy(to, &value, piece);
        gpa += piece, to += piece, size -= piece;
    }
}

void mmu_mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size)
{
    const uint8_t *from = buf;

    const struct platform_ops *ops = v->platform->ops;
    if (ops->mmio_write_light && size <= 8 && piece_size(gpa, size) == size) {
        uint64_t value = 0;
        copy(&value, from, size);
        if (ops->mmio_write_light(v->platform, v, gpa, size, value))
            return;
    }
    vcpu_fp_save(v);
    while (size) {
        unsigned piece = piece_size(gpa, size);
        uint64_t value = 0;
        copy(&value, from, piece);
        v->platform->ops->mmio_write(v->platform, v, gpa, piece, value);
        gpa += piece, from += piece, size -= piece;
    }
}
