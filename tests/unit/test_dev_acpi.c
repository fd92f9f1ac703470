/* ACPI: the fixed hardware, the AML writer, and the tables as they lie in guest memory. */
#include "dev_fixture.h"

#include <errno.h>
#include <string.h>

#include "devices/acpi.h"
#include "devices/acpi_pm.h"
#include "devices/aml.h"
#include "mmu/ram.h"

/* -- Fixed hardware
 * -------------------------------------------------------------------------------- */

static struct fake_clock clk;
static struct fake_irq sci;
static struct acpi_pm pm;
static unsigned offs;

static void power_off(void *opaque)
{
    (void)opaque;
    offs++;
}

static void setup(void)
{
    fake_clock_init(&clk);
    acpi_pm_init(&pm, fake_irq_line(&sci), &clk.timers, power_off, NULL);
}

static uint32_t rd(unsigned offset, unsigned size)
{
    return (uint32_t)acpi_pm_ops.read(&pm, offset, size);
}

static void wr(unsigned offset, unsigned size, uint32_t value)
{
    acpi_pm_ops.write(&pm, offset, size, value);
}

Test(acpi_pm, always_in_acpi_mode, .init = setup)
{
    cr_assert_eq(rd(ACPI_PM1_CNT, 2), 1);
    wr(ACPI_PM1_CNT, 2, 0);
    cr_assert_eq(rd(ACPI_PM1_CNT, 2), 1);
}

Test(acpi_pm, power_button, .init = setup)
{
    acpi_pm_power_button(&pm);
    cr_assert_not(sci.level);
    cr_assert_eq(rd(ACPI_PM1_EVT, 2), 0x100);
    wr(ACPI_PM1_EVT + 2, 2, 0x100);
    cr_assert(sci.level);
    wr(ACPI_PM1_EVT, 2, 0x100);
    cr_assert_not(sci.level);
    cr_assert_eq(rd(ACPI_PM1_EVT, 4), 0x1000000);
}

Test(acpi_pm, s5, .init = setup)
{
    wr(ACPI_PM1_CNT, 2, ACPI_SLP_TYP_S5 << 10);
    cr_assert_eq(offs, 0);
    wr(ACPI_PM1_CNT, 2, 1 << 10 | 1 << 13); /* a sleep state we do not have */
    cr_assert_eq(offs, 0);
    wr(ACPI_PM1_CNT, 2, ACPI_SLP_TYP_S5 << 10 | 1 << 13);
    cr_assert_eq(offs, 1);
    cr_assert_eq(rd(ACPI_PM1_CNT, 2) & 1 << 13, 0, "SLP_EN is write-only");
}

Test(acpi_pm, timer_counts, .init = setup)
{
    cr_assert_eq(rd(ACPI_PM_TMR, 4), 0);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_eq(rd(ACPI_PM_TMR, 4), ACPI_PM_TIMER_HZ);
    fake_clock_advance(&clk, 1000 * NSEC_PER_SEC);
    cr_assert_eq(rd(ACPI_PM_TMR, 4), (uint32_t)(ACPI_PM_TIMER_HZ * 1001));
    cr_assert_eq((uint8_t)rd(ACPI_PM_TMR + 1, 1), (uint8_t)(ACPI_PM_TIMER_HZ * 1001 >> 8));
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER);
}

Test(acpi_pm, timer_status, .init = setup)
{
    wr(ACPI_PM1_EVT + 2, 2, 1);
    fake_clock_advance(&clk, 599 * NSEC_PER_SEC);
    cr_assert_not(sci.level);
    fake_clock_advance(&clk, 2 * NSEC_PER_SEC); /* 2^31 ticks are 599.9 s */
    cr_assert(sci.level);
    wr(ACPI_PM1_EVT, 2, 1);
    cr_assert_not(sci.level);
    fake_clock_advance(&clk, 600 * NSEC_PER_SEC);
    cr_assert(sci.level);
}

Test(acpi_pm, gpe, .init = setup)
{
    wr(ACPI_GPE0 + 2, 2, 0xffff);
    cr_assert_eq(rd(ACPI_GPE0, 4), 0xffff0000u);
    pm.gpe_sts[1] = 2;
    wr(ACPI_GPE0 + 2, 2, 0xffff);
    cr_assert(sci.level);
    wr(ACPI_GPE0 + 1, 1, 2);
    cr_assert_not(sci.level);
}

/* -- AML
 * ------------------------------------------------------------------------------------------- */

Test(aml, encodings)
{
    uint8_t buf[64];
    struct aml a;

    aml_init(&a, buf, sizeof(buf));
    aml_integer(&a, 0);
    aml_integer(&a, 1);
    aml_integer(&a, 0x12);
    aml_integer(&a, 0x1234);
    aml_integer(&a, 0x12345678);
    aml_integer(&a, 0x123456789abcdef0);
    static const uint8_t integers[] = {0x00, 0x01, 0x0a, 0x12, 0x0b, 0x34, 0x12,
                                       0x0c, 0x78, 0x56, 0x34, 0x12, 0x0e, 0xf0,
                                       0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12};
    cr_assert_eq(a.len, sizeof(integers));
    cr_assert_arr_eq(buf, integers, sizeof(integers));

    aml_init(&a, buf, sizeof(buf));
    aml_eisa_id(&a, "PNP0501");
    static const uint8_t id[] = {0x0c, 0x41, 0xd0, 0x05, 0x01};
    cr_assert_arr_eq(buf, id, sizeof(id));

    aml_init(&a, buf, sizeof(buf));
    aml_begin_package(&a, 1);
    aml_integer(&a, 5);
    aml_end(&a);
    /* PackageOp, three length bytes that count themselves, the number of elements, the element */
    static const uint8_t package[] = {0x12, 0x86, 0x00, 0x00, 0x01, 0x0a, 0x05};
    cr_assert_eq(a.len, sizeof(package));
    cr_assert_arr_eq(buf, package, sizeof(package));
}

Test(aml, overflow_is_noticed_and_harmless)
{
    for (size_t cap = 0; cap < 64; cap++) {
        uint8_t buf[64 + 8];
        struct aml a;

        memset(buf, 0xee, sizeof(buf));
        aml_init(&a, buf, cap);
        aml_begin_device(&a, "DEV0");
        aml_begin_resources(&a, "_CRS");
        for (int i = 0; i < 6; i++)
            aml_io(&a, 0x3f8, 8);
        aml_end_resources(&a);
        aml_end(&a);
        cr_assert(a.overflow);
        cr_assert_leq(a.len, cap);
        cr_assert_eq(buf[cap], 0xee);
    }
    uint8_t buf[64];
    struct aml a;

    aml_init(&a, buf, sizeof(buf));
    for (int i = 0; i <= AML_MAX_DEPTH; i++)
        aml_begin_package(&a, 1);
    cr_assert(a.overflow);
    aml_init(&a, buf, sizeof(buf));
    aml_end(&a);
    cr_assert(a.overflow);
}

/* -- Tables
 * ---------------------------------------------------------------------------------------- */

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;

    while (len--)
        s += *p++;
    return s;
}

static uint32_t le32(const uint8_t *p)
{
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static const uint8_t *table(const struct guest_ram *ram, uint64_t gpa, const char *signature)
{
    const uint8_t *p = ram->base + gpa;
    uint32_t len = le32(p + 4);

    cr_assert_geq(gpa, ACPI_RSDP);
    cr_assert_eq(memcmp(p, signature, 4), 0);
    cr_assert_leq(gpa + len, ACPI_AREA + ACPI_AREA_SIZE);
    cr_assert_eq(sum(p, len), 0, "checksum of %s", signature);
    return p;
}

static void check_tables(unsigned cpus)
{
    struct acpi_config cfg = {.cpus = cpus, .low_size = 16u << 20, .pm_base = 0x600, .ecam = true};
    struct guest_ram ram;
    const uint8_t *rsdp, *xsdt, *fadt, *madt;
    unsigned lapics = 0;

    cr_assert_eq(ram_create(&ram, 16u << 20), 0);
    cr_assert_eq(acpi_build(&cfg, &ram), 0);
    rsdp = ram.base + ACPI_RSDP;
    cr_assert_eq(memcmp(rsdp, "RSD PTR ", 8), 0);
    cr_assert_eq(sum(rsdp, 20), 0);
    cr_assert_eq(sum(rsdp, 36), 0);
    cr_assert_eq(ACPI_RSDP % 16, 0);
    xsdt = table(&ram, le32(rsdp + 24), "XSDT");
    cr_assert_eq(le32(xsdt + 4), 36 + 3 * 8);
    cr_assert_eq(le32(table(&ram, le32(xsdt + 52), "MCFG") + 44), 0xe0000000u);
    fadt = table(&ram, le32(xsdt + 36), "FACP");
    cr_assert_eq(fadt[8], 6);
    table(&ram, le32(fadt + 40), "DSDT");
    table(&ram, le32(fadt + 140), "DSDT");
    cr_assert_eq(le32(fadt + 36) % 64, 0);
    cr_assert_eq(memcmp(ram.base + le32(fadt + 36), "FACS", 4), 0);
    madt = table(&ram, le32(xsdt + 44), "APIC");
    for (const uint8_t *p = madt + 44; p < madt + le32(madt + 4); p += p[1]) {
        cr_assert_gt(p[1], 1);
        lapics += p[0] == 0;
    }
    cr_assert_eq(lapics, cpus);
    ram_destroy(&ram);
}

Test(acpi, tables)
{
    check_tables(1);
    check_tables(2);
    check_tables(64);
}

Test(acpi, no_room)
{
    struct acpi_config cfg = {.cpus = 1, .low_size = 0xe0000};
    struct guest_ram ram;

    cr_assert_eq(ram_create(&ram, 0xe8000), 0);
    cr_assert_eq(acpi_build(&cfg, &ram), -EFAULT);
    ram_destroy(&ram);
}
