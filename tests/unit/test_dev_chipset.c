/* PCI configuration access, the reset ports and the keyboard controller. */
#include "dev_fixture.h"

#include <linux/pci_regs.h>

#include "devices/chipset.h"
#include "devices/i8042.h"
#include "devices/pci.h"
#include "devices/reset.h"

static struct reset_control rc;
static struct pci_host pci;
static struct chipset chipset;
static struct i8042 k;
static struct fake_clock now;
static struct io_bus bus;
static unsigned resets;

static void reset(void *opaque)
{
    (void)opaque;
    resets++;
}

static void setup(void)
{
    static const struct irq_line isa[ISA_IRQS];

    reset_control_init(&rc, reset, NULL);
    pci_host_init(&pci,
                  &(struct pci_host_config){.reset_control = &rc, .ports = &bus, .mmio = &bus});
    chipset_init(&chipset, &pci, isa);
    fake_clock_init(&now);
    i8042_init(&k, &(struct i8042_config){.reset = reset, .timers = &now.timers});
    io_bus_add(&bus, PCI_CONFIG_PORT, PCI_CONFIG_PORTS, &pci_host_ops, &pci);
    io_bus_add(&bus, RESET_FAST_PORT, 1, &reset_fast_ops, &rc);
    io_bus_add(&bus, I8042_DATA_PORT, 1, &i8042_data_ops, &k);
    io_bus_add(&bus, I8042_COMMAND_PORT, 1, &i8042_command_ops, &k);
}

static uint32_t config(unsigned b, unsigned slot, unsigned fn, unsigned reg, unsigned size)
{
    io_bus_write(&bus, 0xcf8, 4, 0x80000000u | b << 16 | slot << 11 | fn << 8 | (reg & 0xfc));
    return (uint32_t)io_bus_read(&bus, 0xcfc + (reg & 3), size);
}

/* As Linux' pci_check_type1() probes. */
Test(pci, mechanism_1, .init = setup)
{
    io_bus_write(&bus, 0xcfb, 1, 1);
    io_bus_write(&bus, 0xcf8, 4, 0x80000000u);
    cr_assert_eq(io_bus_read(&bus, 0xcf8, 4), 0x80000000u);
    io_bus_write(&bus, 0xcf8, 4, 0xffffffffu);
    cr_assert_eq(io_bus_read(&bus, 0xcf8, 4), 0x80fffffcu);
    io_bus_write(&bus, 0xcf8, 4, 0);
    cr_assert_eq(io_bus_read(&bus, 0xcfc, 4), 0xffffffffu, "enable bit clear");
}

Test(pci, enumeration, .init = setup)
{
    unsigned found = 0;

    for (unsigned slot = 0; slot < 32; slot++)
        for (unsigned fn = 0; fn < 8; fn++)
            if (config(0, slot, fn, PCI_VENDOR_ID, 4) != 0xffffffffu)
                found++;
    cr_assert_eq(found, 2);
    cr_assert_eq(config(1, 0, 0, PCI_VENDOR_ID, 4), 0xffffffffu);
    cr_assert_eq(config(0, 0, 0, PCI_VENDOR_ID, 4), 0x12378086u);
    cr_assert_eq(config(0, 0, 0, PCI_CLASS_DEVICE, 2), 0x0600u);
    cr_assert_eq(config(0, 1, 0, PCI_CLASS_DEVICE, 2), 0x0601u);
    cr_assert_eq(config(0, 0, 0, PCI_DEVICE_ID + 1, 1), 0x12u);
}

Test(pci, config_space_is_read_only, .init = setup)
{
    for (unsigned reg = 0; reg < 256; reg += 4) {
        uint32_t before = config(0, 0, 0, reg, 4);

        io_bus_write(&bus, 0xcfc, 4, 0xffffffffu);
        if (reg != PCI_COMMAND && reg != 0x58 && reg != 0x5c && reg != 0x70) /* PAM, SMRAM */
            cr_assert_eq(config(0, 0, 0, reg, 4), before, "register %#x", reg);
    }
    cr_assert_eq(config(0, 0, 0, 0xff, 1), 0);
    io_bus_write(&bus, 0xcff, 4, 0); /* half outside */
    cr_assert_eq(io_bus_read(&bus, 0xcff, 4) >> 8, 0xffffffu);
}

Test(pci, ecam, .init = setup)
{
    uint64_t isa = 1u << 15;

    io_bus_add(&bus, PCI_ECAM_BASE, PCI_ECAM_SIZE, &pci_ecam_ops, &pci);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE, 4), 0x12378086u);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + isa + PCI_CLASS_DEVICE, 2), 0x0601u);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE, 8) & 0xffffffffu, 0x12378086u);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + 0xfe, 4) >> 16, 0xffffu);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + 0x100, 4), 0xffffffffu);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + 0x1000, 4), 0xffffffffu);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + (1u << 20), 4), 0xffffffffu);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + PCI_ECAM_SIZE - 4, 4), 0xffffffffu);
    for (uint64_t at = 0; at < 0x10000; at += 3)
        io_bus_write(&bus, PCI_ECAM_BASE + at, 4, 0xffffffffu);
    cr_assert_eq(io_bus_read(&bus, PCI_ECAM_BASE + PCI_COMMAND, 2),
                 PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_SERR |
                     PCI_COMMAND_PARITY);
}

Test(reset, cf9, .init = setup)
{
    io_bus_write(&bus, 0xcf9, 1, 0x02);
    cr_assert_eq(resets, 0);
    io_bus_write(&bus, 0xcf9, 1, RESET_CONTROL_FULL);
    cr_assert_eq(resets, 1);
    io_bus_write(&bus, 0xcf9, 1, RESET_CONTROL_FULL);
    cr_assert_eq(resets, 1, "only a rising edge resets");
    cr_assert_eq(io_bus_read(&bus, 0xcf9, 1), 0x06);
    io_bus_write(&bus, 0xcf8, 4, 0x0600); /* a dword is a PCI address, not a reset */
    cr_assert_eq(resets, 1);
}

Test(reset, port_92, .init = setup)
{
    cr_assert_eq(io_bus_read(&bus, 0x92, 1), 0x02);
    io_bus_write(&bus, 0x92, 1, 0x02);
    cr_assert_eq(resets, 0);
    io_bus_write(&bus, 0x92, 1, 0x03);
    cr_assert_eq(resets, 1);
}

static uint8_t ask(uint8_t command)
{
    io_bus_write(&bus, 0x64, 1, command);
    cr_assert(io_bus_read(&bus, 0x64, 1) & 1, "an answer to %#x", command);
    return (uint8_t)io_bus_read(&bus, 0x60, 1);
}

Test(i8042, controller_works_without_a_keyboard, .init = setup)
{
    cr_assert_eq(ask(0xaa), 0x55);
    cr_assert_eq(ask(0xab), 0x00);
    cr_assert_eq(io_bus_read(&bus, 0x64, 1) & 1, 0);
    io_bus_write(&bus, 0x64, 1, 0x60);
    io_bus_write(&bus, 0x60, 1, 0x47);
    cr_assert_eq(ask(0x20), 0x47);
    io_bus_write(&bus, 0x60, 1, 0xff); /* reset the keyboard: nobody answers */
    cr_assert_eq(io_bus_read(&bus, 0x64, 1) & 1, 0);
    cr_assert_eq(resets, 0);
}

Test(i8042, reset_line, .init = setup)
{
    io_bus_write(&bus, 0x64, 1, 0xfe);
    cr_assert_eq(resets, 1);
    io_bus_write(&bus, 0x64, 1, 0xff);
    cr_assert_eq(resets, 1);
    io_bus_write(&bus, 0x64, 1, 0xd1);
    io_bus_write(&bus, 0x60, 1, 0xdf); /* A20 on */
    cr_assert_eq(resets, 1);
    cr_assert_eq(ask(0xd0), 0xcf, "bits 4 and 5 show that a device's byte waits");
    io_bus_write(&bus, 0x64, 1, 0xd1);
    io_bus_write(&bus, 0x60, 1, 0xde);
    cr_assert_eq(resets, 2);
}
