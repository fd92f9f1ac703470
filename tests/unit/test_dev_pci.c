/* The PCI core: BARs that come and go, INTx wires, MSI and MSI-X, DMA rights; PIIX3 routing. */
#include "dev_fixture.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "devices/chipset.h"
#include "devices/pci.h"
#include "mmu/ram.h"

static struct io_bus ports, mmio;
static struct guest_ram ram;
static struct reset_control rc;
static struct pci_host host;
static struct chipset chipset;
static bool isa_level[ISA_IRQS];
static unsigned messages;
static uint64_t message_address;
static uint32_t message_data;

static struct pci_function dev, dev2;
static uint8_t io_mem[256], mem_mem[4096];
static uint64_t callback_at[PCI_BARS];
static int callback_result;

static void set_isa(void *opaque, unsigned n, bool level)
{
    (void)opaque;
    isa_level[n] = level;
}

static void set_pirq(void *opaque, unsigned pirq, bool level)
{
    (void)opaque;
    chipset_set_pirq(&chipset, pirq, level);
}

static void send_msi(void *opaque, uint64_t address, uint32_t data)
{
    (void)opaque;
    messages++;
    message_address = address;
    message_data = data;
}

static uint64_t byte_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return ((uint8_t *)opaque)[offset];
}

static void byte_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    ((uint8_t *)opaque)[offset] = (uint8_t)value;
}

static const struct io_ops byte_ops = {.read = byte_read, .write = byte_write, .max_size = 1};

static int bar_mapped(void *opaque, unsigned bar, uint64_t address)
{
    (void)opaque;
    if (address != PCI_UNMAPPED && callback_result)
        return callback_result;
    callback_at[bar] = address;
    return 0;
}

static const struct pci_ops ops = {.bar_mapped = bar_mapped};

static void setup(void)
{
    struct irq_line isa[ISA_IRQS];
    const struct pci_id id = {
        .vendor = 0x1234, .device = 0x5678, .class = 0x010203, .revision = 7, .interrupt_pin = 1};

    cr_assert_eq(ram_create(&ram, 4 << 20), 0);
    for (unsigned i = 0; i < ISA_IRQS; i++)
        isa[i] = (struct irq_line){.set = set_isa, .n = i};
    reset_control_init(&rc, NULL, NULL);
    pci_host_init(&host, &(struct pci_host_config){.reset_control = &rc,
                                                   .ports = &ports,
                                                   .mmio = &mmio,
                                                   .ram = &ram,
                                                   .set_pirq = set_pirq,
                                                   .send_msi = send_msi});
    cr_assert_eq(chipset_init(&chipset, &host, isa), 0);
    cr_assert_eq(io_bus_add(&ports, PCI_CONFIG_PORT, PCI_CONFIG_PORTS, &pci_host_ops, &host), 0);
    pci_function_init(&dev, &id, &ops, NULL);
    cr_assert_eq(pci_add_bar(&dev, 0, PCI_BAR_IO, 64, &byte_ops, io_mem), 0);
    cr_assert_eq(pci_add_bar(&dev, 1, PCI_BAR_MEM32, 4096, &byte_ops, mem_mem), 0);
    cr_assert_eq(pci_add_bar(&dev, 2, PCI_BAR_MEM64, 1 << 20, NULL, NULL), 0);
    cr_assert_eq(pci_add_bar(&dev, 3, PCI_BAR_MEM32, 4096, NULL, NULL), -EEXIST);
    cr_assert_eq(pci_add_bar(&dev, PCI_ROM_BAR, PCI_BAR_ROM, 2048, &byte_ops, mem_mem), 0);
    cr_assert_eq(pci_msix_init(&dev, 4, 70), 0);
    cr_assert_eq(pci_register(&host, &dev, PCI_DEVFN_OF(3, 0)), 0);
    cr_assert_eq(pci_register(&host, &dev, PCI_DEVFN_OF(3, 0)), -EEXIST);
}

static uint32_t get(unsigned slot, unsigned fn, unsigned reg, unsigned size)
{
    io_bus_write(&ports, 0xcf8, 4, 0x80000000u | slot << 11 | fn << 8 | (reg & 0xfc));
    return (uint32_t)io_bus_read(&ports, 0xcfc + (reg & 3), size);
}

static void put(unsigned slot, unsigned fn, unsigned reg, unsigned size, uint32_t value)
{
    io_bus_write(&ports, 0xcf8, 4, 0x80000000u | slot << 11 | fn << 8 | (reg & 0xfc));
    io_bus_write(&ports, 0xcfc + (reg & 3), size, value);
}

Test(pci_core, identity, .init = setup)
{
    cr_assert_eq(get(3, 0, PCI_VENDOR_ID, 4), 0x56781234u);
    cr_assert_eq(get(3, 0, PCI_CLASS_REVISION, 4), 0x01020307u);
    cr_assert_eq(get(3, 0, PCI_SUBSYSTEM_VENDOR_ID, 4), 0x11001af4u);
    put(3, 0, PCI_VENDOR_ID, 4, 0);
    cr_assert_eq(get(3, 0, PCI_VENDOR_ID, 4), 0x56781234u);
}

Test(pci_core, bars_size_and_move, .init = setup)
{
    put(3, 0, PCI_BASE_ADDRESS_0, 4, ~0u);
    cr_assert_eq(get(3, 0, PCI_BASE_ADDRESS_0, 4), 0xffffffc1u);
    put(3, 0, PCI_BASE_ADDRESS_1, 4, ~0u);
    cr_assert_eq(get(3, 0, PCI_BASE_ADDRESS_1, 4), 0xfffff000u);
    put(3, 0, PCI_BASE_ADDRESS_2, 4, ~0u);
    put(3, 0, PCI_BASE_ADDRESS_3, 4, ~0u);
    cr_assert_eq(get(3, 0, PCI_BASE_ADDRESS_2, 4), 0xfff0000cu);
    cr_assert_eq(get(3, 0, PCI_BASE_ADDRESS_3, 4), 0xffffffffu);
    put(3, 0, PCI_BASE_ADDRESS_5, 4, ~0u);
    cr_assert_eq(get(3, 0, PCI_BASE_ADDRESS_5, 4), 0);
    put(3, 0, PCI_ROM_ADDRESS, 4, ~1u);
    cr_assert_eq(get(3, 0, PCI_ROM_ADDRESS, 4), 0xfffff800u);

    put(3, 0, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    for (unsigned i = 0; i < PCI_BARS; i++)
        cr_assert_eq(dev.bar[i].address, PCI_UNMAPPED, "all-ones is no address (BAR %u)", i);

    put(3, 0, PCI_BASE_ADDRESS_0, 4, 0xc000);
    io_bus_write(&ports, 0xc005, 1, 0x5a);
    cr_assert_eq(io_mem[5], 0x5a);
    put(3, 0, PCI_BASE_ADDRESS_0, 4, 0xd000);
    cr_assert_eq(io_bus_read(&ports, 0xc005, 1), 0xff);
    cr_assert_eq(io_bus_read(&ports, 0xd005, 1), 0x5a);
    put(3, 0, PCI_BASE_ADDRESS_0, 4, 0xffc0); /* the last that fits */
    cr_assert_eq(io_bus_read(&ports, 0xffc5, 1), 0x5a);
    put(3, 0, PCI_BASE_ADDRESS_0, 4, 0x1c000); /* beyond the port space */
    cr_assert_eq(dev.bar[0].address, PCI_UNMAPPED);

    put(3, 0, PCI_BASE_ADDRESS_2, 4, 0x00100000);
    put(3, 0, PCI_BASE_ADDRESS_3, 4, 0x12);
    cr_assert_eq(callback_at[2], 0x1200100000ull);

    mem_mem[9] = 0x42;
    put(3, 0, PCI_ROM_ADDRESS, 4, 0xe8000000u);
    cr_assert_eq(io_bus_read(&mmio, 0xe8000009u, 1), 0xff);
    put(3, 0, PCI_ROM_ADDRESS, 4, 0xe8000001u);
    cr_assert_eq(io_bus_read(&mmio, 0xe8000009u, 1), 0x42);

    put(3, 0, PCI_COMMAND, 2, 0);
    for (unsigned i = 0; i < PCI_BARS; i++)
        cr_assert_eq(dev.bar[i].address, PCI_UNMAPPED);
    cr_assert_eq(callback_at[2], PCI_UNMAPPED);
    cr_assert_eq(mmio.count, 0);
}

Test(pci_core, overlapping_bars_wait_for_their_turn, .init = setup)
{
    put(3, 0, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    io_bus_add(&mmio, 0xfec00000, 4096, &byte_ops, io_mem);
    put(3, 0, PCI_BASE_ADDRESS_1, 4, 0xfec00000);
    cr_assert_eq(dev.bar[1].address, PCI_UNMAPPED);
    put(3, 0, PCI_ROM_ADDRESS, 4, 0xe8000001u);
    put(3, 0, PCI_BASE_ADDRESS_1, 4, 0xe8000000u);
    cr_assert_eq(dev.bar[1].address, PCI_UNMAPPED);
    cr_assert_eq(dev.bar[PCI_ROM_BAR].address, 0xe8000000u);
    put(3, 0, PCI_ROM_ADDRESS, 4, 0xe9000001u);
    cr_assert_eq(dev.bar[1].address, 0xe8000000u, "tried again when the other moved");
    /* A mapping that the device refuses is tried again as well. */
    callback_result = -EEXIST;
    put(3, 0, PCI_BASE_ADDRESS_2, 4, 0x80000000u);
    cr_assert_eq(dev.bar[2].address, PCI_UNMAPPED);
    callback_result = 0;
    put(3, 0, PCI_ROM_ADDRESS, 4, 0);
    cr_assert_eq(dev.bar[2].address, 0x80000000u);
}

Test(pci_core, reset_restores_everything, .init = setup)
{
    put(3, 0, PCI_BASE_ADDRESS_0, 4, 0xc000);
    put(3, 0, PCI_COMMAND, 2, 7);
    put(3, 0, PCI_INTERRUPT_LINE, 1, 11);
    pci_set_irq(&dev, true);
    pci_host_reset(&host);
    cr_assert_eq(ports.count, 1);
    cr_assert_eq(get(3, 0, PCI_COMMAND, 4), PCI_STATUS_CAP_LIST << 16);
    cr_assert_eq(get(3, 0, PCI_INTERRUPT_LINE, 1), 0);
    cr_assert_eq(host.pirq_count[pci_swizzle(3, 0)], 0);
}

Test(pci_core, a_multifunction_device_says_so, .init = setup)
{
    const struct pci_id id = {.vendor = 1, .device = 2};

    cr_assert_eq(get(3, 0, PCI_HEADER_TYPE, 1), 0);
    pci_function_init(&dev2, &id, NULL, NULL);
    cr_assert_eq(pci_register(&host, &dev2, PCI_DEVFN_OF(3, 5)), 0);
    cr_assert_eq(get(3, 0, PCI_HEADER_TYPE, 1), 0x80);
    cr_assert_eq(get(3, 5, PCI_VENDOR_ID, 4), 0x00020001u);
    cr_assert_eq(pci_free_slot(&host, 0), 2);
    cr_assert_eq(pci_free_slot(&host, 3), 4);
    pci_function_destroy(&dev2);
    cr_assert_eq(get(3, 5, PCI_VENDOR_ID, 4), 0xffffffffu);
}

Test(pci_core, intx_is_swizzled_shared_and_can_be_disabled, .init = setup)
{
    const struct pci_id id = {.vendor = 1, .device = 2, .interrupt_pin = 2};

    /* Slot 3 INTA# and slot 2 INTB# share PIRQC. */
    pci_function_init(&dev2, &id, NULL, NULL);
    cr_assert_eq(pci_register(&host, &dev2, PCI_DEVFN_OF(2, 0)), 0);
    put(1, 0, 0x62, 1, 11);
    pci_set_irq(&dev, true);
    cr_assert(isa_level[11]);
    cr_assert(get(3, 0, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    pci_set_irq(&dev2, true);
    pci_set_irq(&dev, false);
    cr_assert(isa_level[11], "the other still asserts it");
    put(1, 0, 0x62, 1, 5);
    cr_assert_not(isa_level[11]);
    cr_assert(isa_level[5]);
    put(1, 0, 0x62, 1, 0x80);
    cr_assert_not(isa_level[5]);
    put(1, 0, 0x62, 1, 8); /* reserved: goes nowhere */
    cr_assert_not(isa_level[8]);
    put(1, 0, 0x62, 1, 10);
    cr_assert(isa_level[10]);
    put(2, 0, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
    cr_assert_not(isa_level[10]);
    cr_assert(get(2, 0, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    put(2, 0, PCI_COMMAND, 2, 0);
    cr_assert(isa_level[10]);
    pci_function_destroy(&dev2);
    cr_assert_not(isa_level[10]);
}

static void setup_msix(void)
{
    setup();
    put(3, 0, PCI_BASE_ADDRESS_4, 4, 0xe8000000u);
    put(3, 0, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    io_bus_write(&mmio, 0xe8000000u + 65 * 16, 8, 0xfee01000u);
    io_bus_write(&mmio, 0xe8000000u + 65 * 16 + 8, 4, 0x4041);
    io_bus_write(&mmio, 0xe8000000u + 65 * 16 + 12, 4, 0);
}

Test(pci_core, msix, .init = setup_msix)
{
    unsigned cap = get(3, 0, PCI_CAPABILITY_LIST, 1);
    uint64_t pba = 0xe8000000u + 2048;

    cr_assert_eq(get(3, 0, cap, 1), PCI_CAP_ID_MSIX);
    cr_assert_eq(get(3, 0, cap + PCI_MSIX_FLAGS, 2), 69);
    cr_assert_eq(get(3, 0, cap + PCI_MSIX_TABLE, 4), 4);
    cr_assert_eq(get(3, 0, cap + PCI_MSIX_PBA, 4), 2048 | 4);
    cr_assert_eq(io_bus_read(&mmio, 0xe8000000u + 12, 4), PCI_MSIX_ENTRY_CTRL_MASKBIT);
    pci_notify(&dev, 65);
    cr_assert_eq(messages, 0, "MSI-X is off");
    put(3, 0, cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    pci_notify(&dev, 65);
    cr_assert_eq(messages, 1);
    cr_assert_eq(message_address, 0xfee01000u);
    cr_assert_eq(message_data, 0x4041);
    pci_notify(&dev, 70); /* there is none */
    pci_notify(&dev, 100000);
    cr_assert_eq(messages, 1);

    /* Masked by its entry: pending, sent when unmasked. */
    io_bus_write(&mmio, 0xe8000000u + 65 * 16 + 12, 4, 1);
    pci_notify(&dev, 65);
    pci_notify(&dev, 65);
    cr_assert_eq(messages, 1);
    cr_assert_eq(io_bus_read(&mmio, pba + 8, 8), 2);
    cr_assert_eq(io_bus_read(&mmio, pba + 8, 1), 2);
    io_bus_write(&mmio, pba + 8, 8, 0); /* read-only */
    io_bus_write(&mmio, 0xe8000000u + 65 * 16 + 12, 4, 0);
    cr_assert_eq(messages, 2);
    cr_assert_eq(io_bus_read(&mmio, pba + 8, 8), 0);

    /* Masked as a whole. */
    put(3, 0, cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    pci_notify(&dev, 65);
    cr_assert_eq(messages, 2);
    put(3, 0, cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    cr_assert_eq(messages, 3);

    /* A message is bus mastering. */
    put(3, 0, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    pci_notify(&dev, 65);
    cr_assert_eq(messages, 3);
    pci_host_reset(&host);
    cr_assert_not(pci_msix_enabled(&dev));
}

Test(pci_core, msi, .init = setup)
{
    const struct pci_id id = {.vendor = 1, .device = 2, .interrupt_pin = 1};
    unsigned cap;

    pci_function_init(&dev2, &id, NULL, NULL);
    cr_assert_eq(pci_msi_init(&dev2, 3), -EINVAL);
    cr_assert_eq(pci_msi_init(&dev2, 8), 0);
    cr_assert_eq(pci_register(&host, &dev2, PCI_DEVFN_OF(4, 0)), 0);
    cap = get(4, 0, PCI_CAPABILITY_LIST, 1);
    cr_assert_eq(get(4, 0, cap + PCI_MSI_FLAGS, 2),
                 PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | 3 << 1);
    put(4, 0, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    put(4, 0, cap + PCI_MSI_ADDRESS_LO, 4, 0xfee00000u);
    put(4, 0, cap + PCI_MSI_DATA_64, 2, 0x4037);
    /* Four granted (and no more than eight, whatever is asked). */
    put(4, 0, cap + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE | 2 << 4);
    pci_notify(&dev2, 6);
    cr_assert_eq(messages, 1);
    cr_assert_eq(message_data, 0x4034 | 2);
    put(4, 0, cap + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE | 7 << 4);
    pci_notify(&dev2, 31);
    cr_assert_eq(message_data, 0x4030 | 7);
    put(4, 0, cap + PCI_MSI_MASK_64, 4, 0x7f);
    pci_notify(&dev2, 3);
    cr_assert_eq(messages, 2);
    cr_assert_eq(get(4, 0, cap + PCI_MSI_PENDING_64, 4), 8);
    put(4, 0, cap + PCI_MSI_MASK_64, 4, 0);
    cr_assert_eq(messages, 3);
    cr_assert_eq(message_data, 0x4030 | 3);
    cr_assert_eq(get(4, 0, cap + PCI_MSI_PENDING_64, 4), 0);
}

Test(pci_core, dma_needs_bus_mastering_and_ram, .init = setup)
{
    uint32_t word = 0x12345678, back = 0;

    cr_assert_eq(pci_dma_write(&dev, 0x1000, &word, 4), -EACCES);
    cr_assert_null(pci_dma_map(&dev, 0x1000, 4, true));
    put(3, 0, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    cr_assert_eq(pci_dma_write(&dev, 0x1000, &word, 4), 0);
    cr_assert_eq(pci_dma_read(&dev, 0x1000, &back, 4), 0);
    cr_assert_eq(back, word);
    cr_assert_eq(pci_dma_read(&dev, (4 << 20) - 2, &back, 4), -EFAULT);
    cr_assert_eq(pci_dma_read(&dev, UINT64_MAX - 1, &back, 4), -EFAULT);
    cr_assert_not_null(pci_dma_map(&dev, 0x1000, 4096, true));
    cr_assert_null(pci_dma_map(&dev, 0x1000, UINT64_MAX, false));
    pci_dma_done(&dev, UINT64_MAX - 4, 100);
}

Test(pci_core, capabilities_do_not_outgrow_the_space, .init = setup)
{
    const struct pci_id id = {.vendor = 1, .device = 2};
    unsigned n = 0;

    pci_function_init(&dev2, &id, NULL, NULL);
    while (pci_add_capability(&dev2, PCI_CAP_ID_VNDR, 20) >= 0)
        n++;
    cr_assert_eq(n, (256 - 64) / 20);
    cr_assert_geq(pci_add_capability(&dev2, PCI_CAP_ID_VNDR, 12), 0);
    cr_assert_eq(pci_add_capability(&dev2, PCI_CAP_ID_VNDR, 4), -ENOSPC);
}

Test(pci_core, assignment_without_a_bios, .init = setup)
{
    static const uint8_t irq[4] = {10, 10, 11, 11};

    pci_host_assign(&host, 0xc0000000u, 0xe0000000u, irq);
    cr_assert_eq(dev.bar[0].address, 0xc000);
    cr_assert_eq(dev.bar[2].address, 0xc0000000u);
    cr_assert_eq(dev.bar[1].address, 0xc0100000u);
    cr_assert_eq(dev.bar[4].address, 0xc0101000u);
    cr_assert_eq(dev.bar[PCI_ROM_BAR].address, PCI_UNMAPPED);
    cr_assert_eq(get(3, 0, PCI_INTERRUPT_LINE, 1), 11);
    cr_assert_eq(get(3, 0, PCI_BASE_ADDRESS_2, 4), 0xc000000cu);
}
