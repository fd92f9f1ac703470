/*
 * ACPI fixed hardware (ACPI 6.5, 4.8): PM1 event and control registers, the PM timer and one
 * general-purpose event block.  The machine is always in ACPI mode (SCI_EN reads 1, there is no
 * SMI command port).
 */
#ifndef RINGSHIFT_DEVICES_ACPI_PM_H
#define RINGSHIFT_DEVICES_ACPI_PM_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/irq.h"
#include "devices/timer.h"

#define ACPI_PM_PORT     0x600
#define ACPI_PM_PORTS    0x40
#define ACPI_PM1_EVT     0x00 /* offsets from ACPI_PM_PORT */
#define ACPI_PM1_CNT     0x04
#define ACPI_PM_TMR      0x08
#define ACPI_GPE0        0x20
#define ACPI_GPE0_LEN    4
#define ACPI_SCI_IRQ     9
#define ACPI_PM_TIMER_HZ 3579545ull
#define ACPI_SLP_TYP_S5  0 /* what firmware that does not ask ACPI writes on a PIIX4 */

struct acpi_pm {
    struct irq_line sci;
    void (*power_off)(void *opaque); /* S5 was entered */
    void *opaque;
    struct vm_timer timer; /* next change of the PM timer's top bit, while TMR_EN */
    uint64_t start_ns;
    uint64_t carry_seen; /* how many changes of the top bit are in TMR_STS already */
    uint16_t pm1_sts, pm1_en, pm1_cnt;
    uint8_t gpe_sts[ACPI_GPE0_LEN / 2], gpe_en[ACPI_GPE0_LEN / 2];
};

void acpi_pm_init(struct acpi_pm *pm, struct irq_line sci, struct timer_queue *timers,
                  void (*power_off)(void *), void *opaque);
void acpi_pm_reset(struct acpi_pm *pm);
void acpi_pm_destroy(struct acpi_pm *pm);
void acpi_pm_power_button(struct acpi_pm *pm);

extern const struct io_ops acpi_pm_ops; /* opaque: struct acpi_pm; ACPI_PM_PORTS ports */

#endif
