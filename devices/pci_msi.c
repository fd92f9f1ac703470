/*
 * Message-signalled interrupts (PCI Local Bus 3.0, 6.8): the MSI capability, and MSI-X with its
 * table and pending bits in a memory BAR.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>

#include "devices/pci_internal.h"

/* Dwords of a table entry. */
enum { ENTRY_ADDRESS, ENTRY_ADDRESS_HIGH, ENTRY_DATA, ENTRY_CONTROL, ENTRY_DWORDS };

/* Offsets in the 64-bit MSI capability with masks. */
enum { MSI_ADDRESS = 4, MSI_DATA = 12, MSI_MASK = 16, MSI_PENDING = 20, MSI_SIZE = 24 };

static void send(struct pci_function *f, uint64_t address, uint32_t data)
{
    /* A message is a memory write of the function's: no bus mastering, no message. */
    if (pci_bus_master(f) && f->host && f->host->cfg.send_msi)
        f->host->cfg.send_msi(f->host->cfg.opaque, address, data);
}

/* -- MSI --------------------------------------------------------------------------------------- */

int pci_msi_init(struct pci_function *f, unsigned vectors)
{
    unsigned log2 = 0;
    int at;

    while (1u << log2 < vectors && log2 < 5)
        log2++;
    if (vectors == 0 || 1u << log2 != vectors)
        return -EINVAL;
    at = pci_add_capability(f, PCI_CAP_ID_MSI, MSI_SIZE);
    if (at < 0)
        return at;
    f->msi = (uint8_t)at;
    pci_put16(f->config + at + PCI_MSI_FLAGS,
              (uint16_t)(PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | log2 << 1));
    pci_put16(f->writable + at + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE);
    pci_put32(f->writable + at + MSI_ADDRESS, ~3u);
    pci_put32(f->writable + at + MSI_ADDRESS + 4, ~0u);
    pci_put16(f->writable + at + MSI_DATA, 0xffff);
    pci_put32(f->writable + at + MSI_MASK, (uint32_t)((1ull << vectors) - 1));
    return 0;
}

bool pci_msi_enabled(const struct pci_function *f)
{
    return f->msi && f->config[f->msi + PCI_MSI_FLAGS] & PCI_MSI_FLAGS_ENABLE;
}

/* log2 of how many vectors software granted: no more than there are. */
static unsigned msi_granted(const struct pci_function *f)
{
    uint16_t flags = pci_get16(f->config + f->msi + PCI_MSI_FLAGS);
    unsigned granted = (flags & PCI_MSI_FLAGS_QSIZE) >> 4,
             have = (flags & PCI_MSI_FLAGS_QMASK) >> 1;

    return granted < have ? granted : have;
}

static void msi_notify(struct pci_function *f, unsigned vector)
{
    uint8_t *cap = f->config + f->msi;
    uint32_t count = 1u << msi_granted(f);
    uint64_t address;
    uint32_t data;

    vector %= count; /* fewer messages than vectors: they share (6.8.3.4) */
    if (pci_get32(cap + MSI_MASK) >> vector & 1) {
        pci_put32(cap + MSI_PENDING, pci_get32(cap + MSI_PENDING) | 1u << vector);
        return;
    }
    address = pci_get32(cap + MSI_ADDRESS) | (uint64_t)pci_get32(cap + MSI_ADDRESS + 4) << 32;
    data = (pci_get16(cap + MSI_DATA) & ~(count - 1)) | vector;
    send(f, address, data);
}

static void msi_flush(struct pci_function *f)
{
    uint8_t *pending = f->config + f->msi + MSI_PENDING;
    uint32_t ready = pci_get32(pending) & ~pci_get32(f->config + f->msi + MSI_MASK);

    pci_put32(pending, pci_get32(pending) & ~ready);
    for (unsigned i = 0; i < 32 && ready >> i; i++)
        if (ready >> i & 1)
            msi_notify(f, i);
}

/* -- MSI-X ------------------------------------------------------------------------------------- */

static uint16_t msix_flags(const struct pci_function *f)
{
    return pci_get16(f->config + f->msix + PCI_MSIX_FLAGS);
}

bool pci_msix_enabled(const struct pci_function *f)
{
    return f->msix && msix_flags(f) & PCI_MSIX_FLAGS_ENABLE;
}

static void msix_notify(struct pci_function *f, unsigned vector)
{
    const uint32_t *entry = f->msix_table + vector * ENTRY_DWORDS;

    if (msix_flags(f) & PCI_MSIX_FLAGS_MASKALL ||
        entry[ENTRY_CONTROL] & PCI_MSIX_ENTRY_CTRL_MASKBIT) {
        f->msix_pending[vector / 64] |= 1ull << vector % 64;
        return;
    }
    f->msix_pending[vector / 64] &= ~(1ull << vector % 64);
    send(f, entry[ENTRY_ADDRESS] | (uint64_t)entry[ENTRY_ADDRESS_HIGH] << 32, entry[ENTRY_DATA]);
}

static void msix_flush(struct pci_function *f)
{
    for (unsigned i = 0; i < f->msix_vectors; i++)
        if (f->msix_pending[i / 64] >> i % 64 & 1)
            msix_notify(f, i);
}

/* The table at 0, the pending bits in the upper half of the BAR. */
static uint64_t msix_bar_size(unsigned vectors)
{
    uint64_t size = 4096;

    while (size / 2 < vectors * 16)
        size *= 2;
    return size;
}

static uint32_t msix_read_dword(const struct pci_function *f, uint64_t offset)
{
    uint64_t pba = msix_bar_size(f->msix_vectors) / 2;

    if (offset < 16ull * f->msix_vectors)
        return f->msix_table[offset / 4];
    if (offset >= pba && offset - pba < sizeof(f->msix_pending))
        return (uint32_t)(f->msix_pending[(offset - pba) / 8] >> (offset % 8 * 8));
    return 0;
}

static uint64_t msix_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pci_function *f = opaque;

    if (offset % size)
        return 0;
    if (size == 8)
        return msix_read_dword(f, offset) | (uint64_t)msix_read_dword(f, offset + 4) << 32;
    return msix_read_dword(f, offset & ~3ull) >> (offset % 4 * 8);
}

/* Only naturally aligned dwords and qwords are defined (6.8.2). */
static void msix_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *f = opaque;

    if (size < 4 || offset % size || offset >= 16ull * f->msix_vectors)
        return;
    f->msix_table[offset / 4] = (uint32_t)value;
    if (size == 8)
        f->msix_table[offset / 4 + 1] = (uint32_t)(value >> 32);
    if (pci_msix_enabled(f) && f->msix_pending[offset / 16 / 64] >> offset / 16 % 64 & 1)
        msix_notify(f, (unsigned)(offset / 16));
}

static const struct io_ops msix_ops = {.read = msix_read, .write = msix_write, .max_size = 8};

int pci_msix_init(struct pci_function *f, unsigned bar, unsigned vectors)
{
    uint64_t size = msix_bar_size(vectors);
    int at, err;

    if (vectors < 1 || vectors > PCI_MSIX_MAX || f->msix)
        return -EINVAL;
    f->msix_table = calloc(vectors, ENTRY_DWORDS * sizeof(uint32_t));
    if (!f->msix_table)
        return -ENOMEM;
    err = pci_add_bar(f, bar, PCI_BAR_MEM32, size, &msix_ops, f);
    at = err ? err : pci_add_capability(f, PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);
    if (at < 0)
        return at;
    f->msix = (uint8_t)at;
    f->msix_vectors = vectors;
    pci_put16(f->config + at + PCI_MSIX_FLAGS, (uint16_t)(vectors - 1));
    pci_put16(f->writable + at + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    pci_put32(f->config + at + PCI_MSIX_TABLE, bar);
    pci_put32(f->config + at + PCI_MSIX_PBA, (uint32_t)(size / 2) | bar);
    pci_msi_reset(f);
    return 0;
}

/* -- Both -------------------------------------------------------------------------------------- */

void pci_notify(struct pci_function *f, unsigned vector)
{
    if (pci_msix_enabled(f)) {
        if (vector < f->msix_vectors)
            msix_notify(f, vector);
    } else if (pci_msi_enabled(f)) {
        msi_notify(f, vector);
    }
}

void pci_msi_config_written(struct pci_function *f)
{
    if (pci_msix_enabled(f) && !(msix_flags(f) & PCI_MSIX_FLAGS_MASKALL))
        msix_flush(f);
    else if (pci_msi_enabled(f))
        msi_flush(f);
}

void pci_msi_reset(struct pci_function *f)
{
    memset(f->msix_pending, 0, sizeof(f->msix_pending));
    for (unsigned i = 0; i < f->msix_vectors; i++) {
        uint32_t *entry = f->msix_table + i * ENTRY_DWORDS;

        memset(entry, 0, ENTRY_DWORDS * sizeof(*entry));
        entry[ENTRY_CONTROL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
    }
}
