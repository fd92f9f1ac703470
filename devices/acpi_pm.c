/* ACPI fixed hardware: see acpi_pm.h. */
#include "devices/acpi_pm.h"

#include <string.h>

enum {
    PM1_TMR = 1u << 0,
    PM1_BM = 1u << 4,
    PM1_GBL = 1u << 5,
    PM1_PWRBTN = 1u << 8,
    PM1_SLPBTN = 1u << 9,
    PM1_RTC = 1u << 10,
    PM1_WAK = 1u << 15,
    PM1_STS_MASK = PM1_TMR | PM1_BM | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC | PM1_WAK,
    PM1_EN_MASK = PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC,
};
enum {
    CNT_SCI_EN = 1u << 0,
    CNT_GBL_RLS = 1u << 2,
    CNT_SLP_TYP_SHIFT = 10,
    CNT_SLP_TYP = 7u << 10,
    CNT_SLP_EN = 1u << 13,
};

/* The timer is 32 bits wide (TMR_VAL_EXT): TMR_STS is set when bit 31 changes. */
#define CARRY_TICKS (1ull << 31)

static uint64_t ticks(const struct acpi_pm *pm)
{
    return mul_div(timer_now(pm->timer.queue) - pm->start_ns, ACPI_PM_TIMER_HZ, NSEC_PER_SEC);
}

static void update(struct acpi_pm *pm)
{
    uint64_t carries = ticks(pm) / CARRY_TICKS;
    bool sci;

    if (carries != pm->carry_seen) {
        pm->carry_seen = carries;
        pm->pm1_sts |= PM1_TMR;
    }
    sci = pm->pm1_sts & pm->pm1_en & PM1_EN_MASK;
    for (unsigned i = 0; i < ACPI_GPE0_LEN / 2; i++)
        sci |= (pm->gpe_sts[i] & pm->gpe_en[i]) != 0;
    irq_set(&pm->sci, sci);
    if ((pm->pm1_en & PM1_TMR) && !(pm->pm1_sts & PM1_TMR))
        vm_timer_set(&pm->timer,
                     pm->start_ns +
                         mul_div((carries + 1) * CARRY_TICKS, NSEC_PER_SEC, ACPI_PM_TIMER_HZ) + 1);
    else
        vm_timer_cancel(&pm->timer);
}

static void timer_carry(void *opaque)
{
    update(opaque);
}

static void write_control(struct acpi_pm *pm, uint16_t value)
{
    pm->pm1_cnt = value & (uint16_t) ~(CNT_SLP_EN | CNT_GBL_RLS);
    pm->pm1_cnt |= CNT_SCI_EN;
    /* The other sleep types are not in the DSDT. */
    if ((value & CNT_SLP_EN) && (value & CNT_SLP_TYP) >> CNT_SLP_TYP_SHIFT == ACPI_SLP_TYP_S5)
        pm->power_off(pm->opaque);
}

static uint8_t read_byte(struct acpi_pm *pm, uint64_t offset)
{
    unsigned shift = (offset & 1) * 8;

    switch (offset & ~1ull) {
    case ACPI_PM1_EVT:
        return (uint8_t)(pm->pm1_sts >> shift);
    case ACPI_PM1_EVT + 2:
        return (uint8_t)(pm->pm1_en >> shift);
    case ACPI_PM1_CNT:
        return (uint8_t)(pm->pm1_cnt >> shift);
    case ACPI_GPE0:
        return pm->gpe_sts[offset & 1];
    case ACPI_GPE0 + 2:
        return pm->gpe_en[offset & 1];
    }
    return 0;
}

static void write_byte(struct acpi_pm *pm, uint64_t offset, uint8_t value)
{
    unsigned shift = (offset & 1) * 8;
    uint16_t mask = (uint16_t)(0xffu << shift), wide = (uint16_t)((unsigned)value << shift);

    switch (offset & ~1ull) {
    case ACPI_PM1_EVT: /* write one to clear */
        pm->pm1_sts &= (uint16_t)~wide;
        break;
    case ACPI_PM1_EVT + 2:
        pm->pm1_en = (uint16_t)((pm->pm1_en & ~mask) | wide) & PM1_EN_MASK;
        break;
    case ACPI_PM1_CNT:
        write_control(pm, (uint16_t)((pm->pm1_cnt & ~mask) | wide));
        break;
    case ACPI_GPE0:
        pm->gpe_sts[offset & 1] &= (uint8_t)~value;
        break;
    case ACPI_GPE0 + 2:
        pm->gpe_en[offset & 1] = value;
        break;
    }
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = opaque;
    uint64_t value = 0;

    if (offset >= ACPI_PM_TMR && offset + size <= ACPI_PM_TMR + 4)
        return (uint32_t)ticks(pm) >> (offset - ACPI_PM_TMR) * 8;
    update(pm);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_byte(pm, offset + i) << (8 * i);
    return value;
}

static void pm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = opaque;

    update(pm);
    if (offset == ACPI_PM1_CNT && size >= 2) /* one write, one decision */
        write_control(pm, (uint16_t)value);
    else
        for (unsigned i = 0; i < size; i++)
            write_byte(pm, offset + i, (uint8_t)(value >> (8 * i)));
    update(pm);
}

const struct io_ops acpi_pm_ops = {.read = pm_read, .write = pm_write, .max_size = 4};

void acpi_pm_power_button(struct acpi_pm *pm)
{
    pm->pm1_sts |= PM1_PWRBTN;
    update(pm);
}

void acpi_pm_reset(struct acpi_pm *pm)
{
    pm->pm1_sts = pm->pm1_en = 0;
    pm->pm1_cnt = CNT_SCI_EN;
    memset(pm->gpe_sts, 0, sizeof(pm->gpe_sts));
    memset(pm->gpe_en, 0, sizeof(pm->gpe_en));
    pm->start_ns = timer_now(pm->timer.queue);
    pm->carry_seen = 0;
    update(pm);
}

void acpi_pm_init(struct acpi_pm *pm, struct irq_line sci, struct timer_queue *timers,
                  void (*power_off)(void *), void *opaque)
{
    memset(pm, 0, sizeof(*pm));
    pm->sci = sci;
    pm->power_off = power_off;
    pm->opaque = opaque;
    vm_timer_init(&pm->timer, timers, timer_carry, pm);
    acpi_pm_reset(pm);
}

void acpi_pm_destroy(struct acpi_pm *pm)
{
    vm_timer_cancel(&pm->timer);
}
