/*
 * The board: PCI configuration by ports and by memory, a function whose BARs move, capabilities,
 * the bridges' PAM, SMRAM and interrupt routing, ACPI power management wherever it is put, reset
 * and A20. After a reset all of it is as it was, and no timer comes more often than it may.
 */
#include <linux/pci_regs.h>

#include "devices/acpi_pm.h"
#include "devices/chipset.h"
#include "devices/pci.h"
#include "devices/piix4_pm.h"
#include "io_script.h"
#include "mmu/ram.h"

#define RAM_SIZE (2u << 20)
#define DEVFN    PCI_DEVFN_OF(4, 0)

enum { CONFIG, ECAM, FAST, PAM, APM, PM, MEMORY };
enum { PIRQ, INTX, NOTIFY, POWER, DMA, BUS_READ, BUS_WRITE, RESET, EVENTS };

static struct script script;
static struct guest_ram ram;
static struct io_bus bus; /* ports and memory at once: BARs may hide what is there */
static struct reset_control rc;
static struct pci_host pci;
static struct chipset chipset;
static struct acpi_pm pm;
static struct piix4_pm piix4;
static struct pci_function toy;
static uint8_t at_start[256][256];
static uint8_t levels[ISA_IRQS];
static struct irq_line isa[ISA_IRQS];
static bool in_reset;

static void set_line(void *opaque, unsigned n, bool on)
{
    FUZZ_CHECK(n < ISA_IRQS, "line %u", n);
    levels[n] = on;
}

static void set_pirq(void *opaque, unsigned n, bool level)
{
    FUZZ_CHECK(n < PCI_INTX_PINS, "PIRQ %u", n);
    chipset_set_pirq(&chipset, n, level);
}

static void send_msi(void *opaque, uint64_t address, uint32_t data)
{
    FUZZ_CHECK(!(address & 3), "message to %#llx", (unsigned long long)address);
}

static void reset_all(void *opaque)
{
    if (in_reset)
        return;
    in_reset = true;
    pci_host_reset(&pci);
    acpi_pm_reset(&pm);
    reset_control_reset(&rc);
    in_reset = false;
}

static void power_off(void *opaque) {}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    FUZZ_CHECK(offset + size <= *(const uint32_t *)opaque, "BAR read at %#llx",
               (unsigned long long)offset);
    return offset & 0xff;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    FUZZ_CHECK(offset + size <= *(const uint32_t *)opaque, "BAR write at %#llx",
               (unsigned long long)offset);
}

static const struct io_ops bar_ops = {.read = bar_read, .write = bar_write};

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    uint8_t buf[64];

    switch (what) {
    case PIRQ:
        chipset_set_pirq(&chipset, arg % PCI_INTX_PINS, value & 1);
        break;
    case INTX:
        pci_set_irq(&toy, value & 1);
        break;
    case NOTIFY:
        pci_notify(&toy, arg);
        break;
    case POWER:
        acpi_pm_power_button(&pm);
        break;
    case DMA:
        if (value & 1)
            pci_dma_read(&toy, value >> 1, buf, 1 + arg % sizeof(buf));
        else
            memset(buf, 0x5a, sizeof(buf)),
                pci_dma_write(&toy, value >> 1, buf, 1 + arg % sizeof(buf));
        break;
    case BUS_READ: /* wherever a BAR may be */
        io_bus_read(&bus, value, 1u << arg % 4);
        break;
    case BUS_WRITE:
        io_bus_write(&bus, value, 1u << arg % 4, arg >> 2);
        break;
    default:
        reset_all(NULL);
        break;
    }
}

static void read_all(uint8_t (*config)[256])
{
    for (unsigned f = 0; f < 256; f++)
        for (unsigned at = 0; pci.function[f] && at < 256; at += 4) {
            uint32_t v = (uint32_t)pci_ecam_ops.read(&pci, f << 12 | at, 4);

            memcpy(&config[f][at], &v, 4);
        }
}

static void create(void)
{
    static const uint32_t io_size = 64, mem_size = 4096, big_size = 1u << 20;
    for (unsigned i = 0; i < ISA_IRQS; i++)
        isa[i] = (struct irq_line){.set = set_line, .n = i};
    reset_control_init(&rc, reset_all, NULL);
    pci_host_init(&pci, &(struct pci_host_config){.reset_control = &rc,
                                                  .ports = &bus,
                                                  .mmio = &bus,
                                                  .ram = &ram,
                                                  .set_pirq = set_pirq,
                                                  .send_msi = send_msi});
    if (ram_create(&ram, RAM_SIZE) || chipset_init(&chipset, &pci, isa))
        abort();
    pci_function_init(
        &toy,
        &(struct pci_id){.vendor = 0x1234, .device = 1, .class = 0x020000, .interrupt_pin = 1},
        NULL, NULL);
    if (piix4_pm_init(&piix4, &pci, &pm) ||
        pci_add_bar(&toy, 0, PCI_BAR_IO, io_size, &bar_ops, (void *)&io_size) ||
        pci_add_bar(&toy, 1, PCI_BAR_MEM32, mem_size, &bar_ops, (void *)&mem_size) ||
        pci_add_bar(&toy, 2, PCI_BAR_MEM64, big_size, &bar_ops, (void *)&big_size) ||
        pci_msix_init(&toy, 4, 5) || pci_msi_init(&toy, 4) < 0 || pci_register(&pci, &toy, DEVFN))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool created;
    static uint8_t now[256][256];

    script_init(&script, EVENTS, event);
    if (created)
        reset_all(NULL); /* takes power management off the bus */
    acpi_pm_init(&pm, isa[ACPI_SCI_IRQ], &script.timers, power_off, NULL);
    if (!created) {
        create();
        created = true;
        reset_all(NULL);
        read_all(at_start);
    }
    reset_all(NULL);
    script_region(&script, &pci_host_ops, &pci, PCI_CONFIG_PORTS);
    script_region(&script, &pci_ecam_ops, &pci, 1u << 20);
    script_region(&script, &reset_fast_ops, &rc, 1);
    script_region(&script, &chipset_pam_ops, &chipset, PAM_SIZE);
    script_region(&script, &piix4_apm_ops, &piix4, PIIX4_APM_PORTS);
    script_region(&script, &acpi_pm_ops, &pm, ACPI_PM_PORTS);
    script_run(&script, data, size > 512 * SCRIPT_COMMAND ? 512 * SCRIPT_COMMAND : size);
    for (unsigned i = 0; i < PCI_INTX_PINS; i++)
        chipset_set_pirq(&chipset, i, false);
    pci_set_irq(&toy, false);
    reset_all(NULL);
    read_all(now);
    for (unsigned f = 0; f < 256; f++)
        for (unsigned at = 0; at < 256; at++)
            FUZZ_CHECK(now[f][at] == at_start[f][at], "function %#x, register %#x after reset: %#x",
                       f, at, now[f][at]);
    for (unsigned i = 0; i < ISA_IRQS; i++)
        FUZZ_CHECK(!levels[i], "interrupt %u is left on", i);
    script_write(&script, CONFIG, 0, 4, 0x80000000u | DEVFN << 8);
    FUZZ_CHECK(script_read(&script, CONFIG, 4, 4) == 0x00011234, "the function has gone");
    return 0;
}

SCRIPT_SEEDS(
    /* Sizing and placing BARs by mechanism #1, decoding on and off. */
    "w0+0:4=80002010 w0+4:4=ffffffff r0+4:4 w0+4:4=c001 w0+0:4=80002014 w0+4:4=ffffffff r0+4:4 "
    "w0+4:4=fe000000 "
    "w0+0:4=80002018 w0+4:4=c w0+0:4=8000201c w0+4:4=10 w0+0:4=80002020 w0+4:4=fe010000 "
    "w0+0:4=80002004 "
    "w0+4:2=7 e5+0=c000 e6+6=c03f e5+2=fe000ffc e5+3=1000000000 w0+4:2=0 w0+4:2=407 e5+0=fe000000",
    /* By memory: MSI-X table and messages, INTx, DMA. */
    "w1+20020:4=fe010000 w1+20004:2=6 e6+2=fe010000 e6+2=fe01000c e2+0=0 e2+4=0 e2+5=0 e1+0=1 "
    "e1+0=0 r1+20006:2 "
    "e4+10=2001 e4+3f=3ffffe e4+3f=200000 r1+20034:1 w1+20098:2=ffff w1+20040:2=ffff "
    "w1+20042:2=8000 e2+1=0",
    /* Bridges: PAM, SMRAM, routes; writes to what is ROM. */
    "w1+59:1=30 w1+5a:4=33113322 w3+0:8=1234 w3+3ffff:1=1 r3+3fffe:2 w1+72:1=48 w1+8060:4=0b0a0905 "
    "e0+0=1 e0+3=1 "
    "w1+8062:1=80 w1+8061:1=f e0+0=0 w0+1:1=6 w0+1:1=e w2+0:1=3 r2+0:1 w2+0:1=0",
    /* Power management: where it is, events, timer, sleep, SMBus. */
    "w1+b040:4=601 w1+b080:1=1 e5+1=608 e3+0=0 w5+2:2=101 w5+0:2=100 w5+4:2=2001 t=ffffffff r5+8:4 "
    "r5+0:2 "
    "w1+b090:4=701 w1+b0d2:1=1 e6+8=702 e5+0=700 w1+b040:4=ffc1 w1+b004:2=1 w4+0:1=f1 r4+0:2 "
    "w4+1:1=5 w5+20:4=ffffffff")
