/* Looking at the guest from outside: see inspect.h. */
#include "runtime/inspect.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "cpu/vcpu.h"
#include "mmu/ram.h"
#include "mmu/walk.h"
#include "runtime/machine.h"

const char *inspect_mode(const struct vcpu *v)
{
    if (!(v->cr0 & CR0_PE))
        return "real mode";
    if (v->efer & EFER_LMA) {
        if (v->seg[SEG_CS].attr & SEGA_L)
            return "64-bit mode";
        return v->seg[SEG_CS].attr & SEGA_DB ? "compatibility mode, 32-bit"
                                             : "compatibility mode, 16-bit";
    }
    if (v->rflags & FL_VM)
        return "virtual-8086 mode";
    return v->seg[SEG_CS].attr & SEGA_DB ? "protected mode, 32-bit" : "protected mode, 16-bit";
}

static bool read_entry(const struct vcpu *v, uint64_t gpa, unsigned size, uint64_t *out)
{
    const void *p = ram_read_ptr(v->ram, gpa, size);

    *out = 0;
    if (!p)
        return false;
    memcpy(out, p, size);
    return true;
}

/* SDM vol. 3, 4.3 to 4.5: levels of tables from the top, each with this many index bits. */
int inspect_translate(const struct vcpu *v, uint64_t address, uint64_t *gpa)
{
    bool pae = v->cr4 & CR4_PAE, lma = v->efer & EFER_LMA;
    unsigned size = pae ? 8 : 4, bits = pae ? 9 : 10, level = lma ? 4 : pae ? 3 : 2;
    uint64_t table = lma ? v->cr3 & PTE_ADDR : pae ? v->cr3 & 0xffffffe0u : v->cr3 & 0xfffff000u;

    if (!(v->cr0 & CR0_PG)) {
        *gpa = address & 0xffffffffu;
        return 0;
    }
    if (!lma)
        address &= 0xffffffffu;
    else if ((int64_t)address >> 47 != 0 && (int64_t)address >> 47 != -1)
        return -EFAULT;
    for (;; level--) {
        unsigned shift = 12 + bits * (level - 1);
        uint64_t index = address >> shift & ((1u << bits) - 1), entry;
        bool page = level == 1;

        if (!read_entry(v, table + index * size, size, &entry) || !(entry & PTE_P))
            return -EFAULT;
        if ((entry & PTE_PS) && (level == 2 || (level == 3 && lma)))
            page = pae || (v->cr4 & CR4_PSE);
        if (page) {
            uint64_t offset = address & ((1ull << shift) - 1), base = entry & PTE_ADDR;

            if (!pae)
                base = level == 2 ? (entry & 0xffc00000u) | (entry >> 13 & 0xff) << 32
                                  : entry & 0xfffff000u;
            *gpa = (base & ~((1ull << shift) - 1)) | offset;
            return 0;
        }
        table = pae ? entry & PTE_ADDR : entry & 0xfffff000u;
    }
}

int inspect_read(struct machine *m, const struct vcpu *v, uint64_t address, void *buf, uint64_t len,
                 uint64_t *where)
{
    uint8_t *out = buf;

    while (len) {
        uint64_t part = GUEST_PAGE_SIZE - address % GUEST_PAGE_SIZE, gpa = address;
        const void *p;

        if (part > len)
            part = len;
        *where = address;
        if (v && inspect_translate(v, address, &gpa))
            return -EFAULT;
        p = ram_read_ptr(machine_ram(m), gpa, part);
        if (!p)
            return -EFAULT;
        memcpy(out, p, part);
        out += part;
        address += part;
        len -= part;
    }
    return 0;
}
