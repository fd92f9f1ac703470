/*
 * The ACPI tables of this machine (ACPI 6.5, chapter 5): RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG
 * and DSDT.  A guest that starts without firmware finds them in a fixed area below 1 MiB, where the
 * RSDP is also found by scanning; firmware gets them as fw_cfg files together with a script that
 * says where to put them (the table loader: 128-byte commands that allocate, add pointers and
 * compute checksums).
 */
#ifndef RINGSHIFT_DEVICES_ACPI_H
#define RINGSHIFT_DEVICES_ACPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct guest_ram;

#define ACPI_AREA      0xe0000ull /* first page: FACS (NVS); then the RSDP and the tables */
#define ACPI_FACS_SIZE 0x1000u
#define ACPI_AREA_SIZE 0x10000u
#define ACPI_RSDP      (ACPI_AREA + ACPI_FACS_SIZE)

struct acpi_config {
    unsigned cpus;       /* APIC IDs 0..cpus-1 */
    uint64_t low_size;   /* end of RAM below 4 GiB; the PCI hole begins there at the earliest */
    uint8_t pirq_irq[4]; /* the ISA interrupts (and GSIs) that PIRQA..PIRQD may be routed to */
    uint16_t pm_base;    /* of the ACPI registers (acpi_pm.h) */
    bool ecam;           /* there is memory-mapped PCI configuration, and an MCFG */
    bool vga;            /* there is a screen, and an 8042 with keyboard and mouse */
    bool parallel;       /* there is a parallel port */
};

/* The same tables for firmware that places them; each is malloc'ed. */
struct acpi_blobs {
    uint8_t *tables, *rsdp, *loader;
    size_t tables_len, rsdp_len, loader_len;
};

#define ACPI_TABLES_FILE "etc/acpi/tables"
#define ACPI_RSDP_FILE   "etc/acpi/rsdp"
#define ACPI_LOADER_FILE "etc/table-loader"

/* Writes all tables to RAM.  0, -EFAULT if the area is not RAM, -ENOSPC if the tables outgrow it.
 */
int acpi_build(const struct acpi_config *cfg, struct guest_ram *ram);

/* The lengths depend on cpus, ecam and the devices, and on nothing else.  0 or -ENOMEM; with an
 * error nothing is left allocated. */
int acpi_build_blobs(const struct acpi_config *cfg, struct acpi_blobs *out);
void acpi_free_blobs(struct acpi_blobs *b);

#endif
