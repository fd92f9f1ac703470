/*
 * The ACPI tables of this machine (ACPI 6.5, chapter 5): RSDP, XSDT, FADT, FACS, MADT, MCFG and
 * DSDT, in a fixed area below 1 MiB, where the RSDP is also found by scanning.
 */
#ifndef RINGSHIFT_DEVICES_ACPI_H
#define RINGSHIFT_DEVICES_ACPI_H

#include <stdbool.h>
#include <stdint.h>

struct guest_ram;

#define ACPI_AREA      0xe0000ull /* first page: FACS (NVS); then the RSDP and the tables */
#define ACPI_FACS_SIZE 0x1000u
#define ACPI_AREA_SIZE 0x10000u
#define ACPI_RSDP      (ACPI_AREA + ACPI_FACS_SIZE)

struct acpi_config {
    unsigned cpus;       /* APIC IDs 0..cpus-1 */
    uint64_t low_size;   /* end of RAM below 4 GiB; the PCI hole begins there at the earliest */
    bool vga;            /* there is a screen, and an 8042 with keyboard and mouse */
    uint8_t pirq_irq[4]; /* the ISA interrupts (and GSIs) of PIRQA..PIRQD */
};

/* Writes all tables to RAM.  0, -EFAULT if the area is not RAM, -ENOSPC if the tables outgrow it.
 */
int acpi_build(const struct acpi_config *cfg, struct guest_ram *ram);

#endif
