/*
 * SMBIOS 2.8 tables (DMTF DSP0134) that describe this machine, as the two fw_cfg files that SeaBIOS
 * and OVMF take them from: an entry point, whose table address and checksums firmware fills in, and
 * the structures.  Firmware adds structure type 0 (BIOS information) itself.
 */
#ifndef RINGSHIFT_DEVICES_SMBIOS_H
#define RINGSHIFT_DEVICES_SMBIOS_H

#include <stddef.h>
#include <stdint.h>

#define SMBIOS_ANCHOR_FILE "etc/smbios/smbios-anchor"
#define SMBIOS_TABLES_FILE "etc/smbios/smbios-tables"
#define SMBIOS_ANCHOR_SIZE 31
#define SMBIOS_TABLES_MAX  8192

struct smbios_config {
    unsigned cpus;
    uint64_t ram_low, ram_high; /* bytes below and above 4 GiB */
    uint32_t cpu_mhz;
    uint32_t cpuid_eax, cpuid_edx; /* CPUID leaf 1 of processor 0 */
    uint8_t uuid[16];
};

/* Fills `tables` (SMBIOS_TABLES_MAX bytes) and `anchor`.  Returns the length of the tables, or
 * -ENOSPC. */
int smbios_build(const struct smbios_config *cfg, uint8_t *tables,
                 uint8_t anchor[SMBIOS_ANCHOR_SIZE]);

#endif
