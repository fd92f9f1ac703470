/*
 * The power management function of a PIIX4 (82371AB data sheet, chapter 7), 00:01.3: its
 * configuration registers put the ACPI registers (acpi_pm.h) and the SMBus host controller where
 * firmware wants them, and there is the APM port pair 0xb2/0xb3.
 *
 * There is no system management mode.  APMC_EN is set from the start, which tells firmware that
 * somebody has set up SMM already.
 */
#ifndef RINGSHIFT_DEVICES_PIIX4_PM_H
#define RINGSHIFT_DEVICES_PIIX4_PM_H

#include <stdint.h>

#include "devices/acpi_pm.h"
#include "devices/pci.h"

#define PIIX4_PM_FUNCTION 3 /* of PCI_ISA_SLOT */
#define PIIX4_APM_PORT    0xb2
#define PIIX4_APM_PORTS   2
#define PIIX4_SMB_PORTS   16
#define PIIX4_UNMAPPED    0xffffffffu

struct piix4_pm {
    struct pci_function f;
    struct acpi_pm *pm;
    struct io_bus *ports;
    uint32_t pm_base, smb_base; /* where they are on the bus now, or PIIX4_UNMAPPED */
    uint8_t apm_control, apm_status;
    uint8_t smb_status, smb_control, smb_command, smb_address, smb_data[2];
};

/* Puts the function on the bus.  0 or negative errno. */
int piix4_pm_init(struct piix4_pm *p, struct pci_host *h, struct acpi_pm *pm);
/* Maps the ACPI registers at ACPI_PM_PORT, as a BIOS does. */
void piix4_pm_assign(struct piix4_pm *p);
void piix4_pm_destroy(struct piix4_pm *p);

extern const struct io_ops piix4_apm_ops; /* opaque: struct piix4_pm */

#endif
