/* ACPI tables: see acpi.h.  Section numbers are ACPI 6.5's. */
#include "devices/acpi.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/acpi_pm.h"
#include "devices/aml.h"
#include "devices/i8042.h"
#include "devices/ioapic.h"
#include "devices/irq_router.h"
#include "devices/lapic.h"
#include "devices/parallel.h"
#include "devices/pci.h"
#include "devices/pic.h"
#include "devices/pit.h"
#include "devices/reset.h"
#include "devices/rtc.h"
#include "devices/serial.h"
#include "mmu/ram.h"

#define PACKED __attribute__((packed))

struct sdt_header { /* 5.2.6 */
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} PACKED;

struct gas { /* 5.2.3.2 */
    uint8_t space, bit_width, bit_offset, access_size;
    uint64_t address;
} PACKED;

enum { SPACE_MEMORY = 0, SPACE_IO = 1 };

struct rsdp { /* 5.2.5.3 */
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum, reserved[3];
} PACKED;

struct fadt { /* 5.2.9 */
    struct sdt_header h;
    uint32_t firmware_ctrl, dsdt;
    uint8_t reserved0, preferred_pm_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base;
    uint8_t cst_cnt;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t iapc_boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct gas reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor;
    uint64_t x_firmware_ctrl, x_dsdt;
    struct gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1;
    struct gas sleep_control, sleep_status;
    uint64_t hypervisor_id;
} PACKED;

enum { /* FADT flags, 5.2.9 table 5.10 */
       FADT_WBINVD = 1u << 0,
       FADT_PROC_C1 = 1u << 2,
       FADT_SLP_BUTTON = 1u << 5,
       FADT_FIX_RTC = 1u << 6,
       FADT_TMR_VAL_EXT = 1u << 8,
       FADT_RESET_REG_SUP = 1u << 10,
};
enum { /* IAPC_BOOT_ARCH, 5.2.9.3 */
       BOOT_LEGACY_DEVICES = 1u << 0,
       BOOT_8042 = 1u << 1,
       BOOT_VGA_NOT_PRESENT = 1u << 2,
};

struct facs { /* 5.2.10 */
    char signature[4];
    uint32_t length, hardware_signature, waking_vector, global_lock, flags;
    uint64_t x_waking_vector;
    uint8_t version, reserved0[3];
    uint32_t ospm_flags;
    uint8_t reserved1[24];
} PACKED;

struct madt { /* 5.2.12 */
    struct sdt_header h;
    uint32_t lapic_address, flags;
} PACKED;

enum { MADT_PCAT_COMPAT = 1 };

struct madt_lapic {
    uint8_t type, length, uid, apic_id;
    uint32_t flags;
} PACKED;

struct madt_ioapic {
    uint8_t type, length, id, reserved;
    uint32_t address, gsi_base;
} PACKED;

struct madt_override {
    uint8_t type, length, bus, source;
    uint32_t gsi;
    uint16_t flags;
} PACKED;

struct madt_lapic_nmi {
    uint8_t type, length, uid;
    uint16_t flags;
    uint8_t lint;
} PACKED;

struct mcfg { /* PCI Firmware 3.3, 4.1.2; one allocation */
    struct sdt_header h;
    uint64_t reserved0;
    uint64_t base;
    uint16_t segment;
    uint8_t bus_first, bus_last;
    uint32_t reserved1;
} PACKED;

/* MPS INTI flags (table 5.26). */
enum { INTI_HIGH = 1, INTI_EDGE = 1 << 2, INTI_LEVEL = 3 << 2 };

#define RSDP_V1_SIZE 20 /* the part ACPI 1.0 had */

_Static_assert(sizeof(struct rsdp) == 36, "RSDP");
_Static_assert(sizeof(struct fadt) == 276, "FADT, revision 6");
_Static_assert(sizeof(struct facs) == 64, "FACS");

/* A command of the table loader (QEMU's linker script; SeaBIOS and OVMF run it). Little-endian. */
struct loader_command {
    uint32_t command;
    union {
        struct {
            char file[56];
            uint32_t align;
            uint8_t zone;
        } PACKED allocate;
        struct {
            char dest[56], src[56];
            uint32_t offset;
            uint8_t size;
        } PACKED add_pointer;
        struct {
            char file[56];
            uint32_t offset, start, length;
        } PACKED add_checksum;
        uint8_t pad[124];
    };
} PACKED;

_Static_assert(sizeof(struct loader_command) == 128, "a loader command");

enum { LOADER_ALLOCATE = 1, LOADER_ADD_POINTER = 2, LOADER_ADD_CHECKSUM = 3 };
enum { ZONE_HIGH = 1, ZONE_FSEG = 2 };

/* The tables under construction: an image of the area, how far it is filled, and the script if
 * firmware is to place them (then base is 0: pointers are offsets until the script has run). */
struct area {
    uint8_t *image;
    size_t len;
    uint64_t base;
    struct loader_command *script; /* NULL: none */
    unsigned commands;
};

#define MAX_COMMANDS 32

static uint8_t checksum(const void *p, size_t len)
{
    const uint8_t *b = p;
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum += b[i];
    return (uint8_t)-sum;
}

static struct loader_command *new_command(struct area *a, uint32_t command)
{
    struct loader_command *c = &a->script[a->commands++];

    *c = (struct loader_command){.command = command};
    return c;
}

static void script_allocate(struct area *a, const char *file, uint32_t align, uint8_t zone)
{
    struct loader_command *c = new_command(a, LOADER_ALLOCATE);

    memcpy(c->allocate.file, file, strlen(file));
    c->allocate.align = align;
    c->allocate.zone = zone;
}

static void script_pointer(struct area *a, const char *dest, size_t offset, unsigned size)
{
    struct loader_command *c = new_command(a, LOADER_ADD_POINTER);

    memcpy(c->add_pointer.dest, dest, strlen(dest));
    memcpy(c->add_pointer.src, ACPI_TABLES_FILE, strlen(ACPI_TABLES_FILE));
    c->add_pointer.offset = (uint32_t)offset;
    c->add_pointer.size = (uint8_t)size;
}

static void script_checksum(struct area *a, const char *file, size_t at, size_t start, size_t len)
{
    struct loader_command *c = new_command(a, LOADER_ADD_CHECKSUM);

    memcpy(c->add_checksum.file, file, strlen(file));
    c->add_checksum.offset = (uint32_t)at;
    c->add_checksum.start = (uint32_t)start;
    c->add_checksum.length = (uint32_t)len;
}

/* Makes the `size` bytes at offset `at` point to the table at offset `target`. */
static void set_pointer(struct area *a, size_t at, unsigned size, size_t target)
{
    uint64_t value = a->base + target;

    memcpy(a->image + at, &value, size);
    if (a->script)
        script_pointer(a, ACPI_TABLES_FILE, at, size);
}

static void init_header(struct sdt_header *h, const char *signature, uint8_t revision)
{
    memcpy(h->signature, signature, 4);
    h->revision = revision;
    memcpy(h->oem_id, "RNGSFT", 6);
    memcpy(h->oem_table_id, "RINGSHFT", 8);
    h->oem_revision = 1;
    memcpy(h->creator_id, "RNGS", 4);
    h->creator_revision = 1;
}

/* Length and checksum of the table that begins at `start` and ends where the area does now. */
static void finish(struct area *a, size_t start)
{
    struct sdt_header *h = (struct sdt_header *)(a->image + start);
    size_t len = a->len - start;

    h->length = (uint32_t)len;
    h->checksum = 0;
    if (a->script)
        script_checksum(a, ACPI_TABLES_FILE, start + offsetof(struct sdt_header, checksum), start,
                        len);
    else
        h->checksum = checksum(h, len);
}

/* Offset of the next table, aligned. */
static size_t next_table(struct area *a)
{
    a->len = (a->len + 63) & ~(size_t)63;
    return a->len;
}

static int append(struct area *a, const void *data, size_t len)
{
    if (len > ACPI_AREA_SIZE - a->len)
        return -ENOSPC;
    memcpy(a->image + a->len, data, len);
    a->len += len;
    return 0;
}

/* -- DSDT -------------------------------------------------------------------------------------- */

/* Device (name) { Name (_HID, EisaId (hid)) ... } with one I/O range; left open. */
static void begin_pnp_device(struct aml *a, const char *name, const char *hid)
{
    aml_begin_device(a, name);
    aml_name(a, "_HID");
    aml_eisa_id(a, hid);
}

static void write_isa_devices(struct aml *a)
{
    begin_pnp_device(a, "COM1", "PNP0501");
    aml_name(a, "_UID");
    aml_integer(a, 1);
    aml_begin_resources(a, "_CRS");
    aml_io(a, SERIAL_COM1_PORT, SERIAL_PORTS);
    aml_irq(a, SERIAL_COM1_IRQ);
    aml_end_resources(a);
    aml_end(a);

    begin_pnp_device(a, "RTC_", "PNP0B00");
    aml_begin_resources(a, "_CRS");
    aml_io(a, RTC_PORT, 2);
    aml_irq(a, RTC_IRQ);
    aml_end_resources(a);
    aml_end(a);

    begin_pnp_device(a, "PIC_", "PNP0000");
    aml_begin_resources(a, "_CRS");
    aml_io(a, PIC_MASTER_PORT, 2);
    aml_io(a, PIC_SLAVE_PORT, 2);
    aml_io(a, PIC_ELCR_PORT, 2);
    aml_end_resources(a);
    aml_end(a);

    begin_pnp_device(a, "TMR_", "PNP0100");
    aml_begin_resources(a, "_CRS");
    aml_io(a, PIT_PORT, 4);
    aml_irq(a, 0);
    aml_end_resources(a);
    aml_end(a);
}

static void write_optional_devices(struct aml *a, const struct acpi_config *cfg)
{
    if (cfg->vga) {
        begin_pnp_device(a, "KBD_", "PNP0303");
        aml_begin_resources(a, "_CRS");
        aml_io(a, I8042_DATA_PORT, 1);
        aml_io(a, I8042_COMMAND_PORT, 1);
        aml_irq(a, I8042_KBD_IRQ);
        aml_end_resources(a);
        aml_end(a);

        begin_pnp_device(a, "MOU_", "PNP0F13");
        aml_begin_resources(a, "_CRS");
        aml_irq(a, I8042_AUX_IRQ);
        aml_end_resources(a);
        aml_end(a);
    }
    if (cfg->parallel) {
        begin_pnp_device(a, "LPT1", "PNP0400");
        aml_begin_resources(a, "_CRS");
        aml_io(a, PARALLEL_PORT, PARALLEL_PORTS);
        aml_irq(a, PARALLEL_IRQ);
        aml_end_resources(a);
        aml_end(a);
    }
}

static void write_system_resources(struct aml *a, const struct acpi_config *cfg)
{
    /* Motherboard resources that are no device's (9.10). */
    begin_pnp_device(a, "MBRD", "PNP0C02");
    aml_name(a, "_UID");
    aml_integer(a, 0);
    aml_begin_resources(a, "_CRS");
    aml_io(a, PIT_SPEAKER_PORT, 1);
    aml_io(a, RESET_FAST_PORT, 1);
    aml_io(a, cfg->pm_base, ACPI_PM_PORTS);
    if (cfg->ecam)
        aml_memory_fixed(a, (uint32_t)PCI_ECAM_BASE, (uint32_t)PCI_ECAM_SIZE);
    aml_end_resources(a);
    aml_end(a);
}

static const char *const link_path[PCI_INTX_PINS] = {"_SB_LNKA", "_SB_LNKB", "_SB_LNKC",
                                                     "_SB_LNKD"};

/*
 * A PCI interrupt link (6.2.13): an operating system may read and set the PIIX3's routing of a PIRQ
 * through it, so the tables hold whatever firmware has routed.
 */
static void write_link(struct aml *a, const struct acpi_config *cfg, unsigned n)
{
    enum {
        LOCAL0 = 0x60,
        ARG0 = 0x68,
        STORE = 0x70,
        AND = 0x7b,
        OR = 0x7d,
        DWORD_FIELD = 0x8a,
        RETURN = 0xa4,
        DISABLED = 0x80,
        IRQ_OFFSET = 5
    };
    static const uint8_t one_irq[] = {0x11, 0x0e, 0x0a, 0x0b, /* Buffer (11) */
                                      0x89, 0x06, 0x00, 0x09, 0x01, 0, 0, 0, 0, 0x79, 0x00};
    char prq[] = "_SB_PCI0ISA_PRQ0";
    uint8_t irqs[PCI_INTX_PINS];
    unsigned count = 0;

    prq[15] = (char)('0' + n);
    for (unsigned i = 0; i < PCI_INTX_PINS; i++) {
        bool known = false;

        for (unsigned k = 0; k < count; k++)
            known |= irqs[k] == cfg->pirq_irq[i];
        if (!known)
            irqs[count++] = cfg->pirq_irq[i];
    }
    begin_pnp_device(a, link_path[n] + 4, "PNP0C0F");
    aml_name(a, "_UID");
    aml_integer(a, n);
    aml_begin_resources(a, "_PRS");
    aml_shared_irqs(a, irqs, count);
    aml_end_resources(a);

    aml_begin_method(a, "_STA", 0);
    aml_begin_if(a);
    aml_bytes(a, (uint8_t[]){AND}, 1);
    aml_path(a, prq, 4);
    aml_integer(a, DISABLED);
    aml_integer(a, 0); /* no target */
    aml_bytes(a, (uint8_t[]){RETURN}, 1);
    aml_integer(a, 0x09); /* present, disabled */
    aml_end(a);
    aml_bytes(a, (uint8_t[]){RETURN}, 1);
    aml_integer(a, 0x0b);
    aml_end(a);

    aml_begin_method(a, "_DIS", 0);
    aml_bytes(a, (uint8_t[]){OR}, 1);
    aml_path(a, prq, 4);
    aml_integer(a, DISABLED);
    aml_path(a, prq, 4);
    aml_end(a);

    aml_begin_method(a, "_CRS", 0);
    aml_bytes(a, (uint8_t[]){STORE}, 1);
    aml_bytes(a, one_irq, sizeof(one_irq));
    aml_bytes(a, (uint8_t[]){LOCAL0, DWORD_FIELD, LOCAL0, 0x0a, IRQ_OFFSET}, 5);
    aml_bytes(a, "IRQN", 4);
    aml_bytes(a, (uint8_t[]){AND}, 1);
    aml_path(a, prq, 4);
    aml_integer(a, 0x0f);
    aml_bytes(a, "IRQN", 4);
    aml_bytes(a, (uint8_t[]){RETURN, LOCAL0}, 2);
    aml_end(a);

    aml_begin_method(a, "_SRS", 1);
    aml_bytes(a, (uint8_t[]){DWORD_FIELD, ARG0, 0x0a, IRQ_OFFSET}, 4);
    aml_bytes(a, "IRQN", 4);
    aml_bytes(a, (uint8_t[]){STORE}, 1);
    aml_bytes(a, "IRQN", 4);
    aml_path(a, prq, 4);
    aml_end(a);

    aml_end(a);
}

static void write_pci_root(struct aml *a, const struct acpi_config *cfg)
{
    begin_pnp_device(a, "PCI0", "PNP0A03");
    aml_name(a, "_BBN");
    aml_integer(a, 0);
    aml_name(a, "_UID");
    aml_integer(a, 0);
    aml_begin_resources(a, "_CRS");
    aml_bus_range(a, 0, 0xff);
    aml_io(a, PCI_CONFIG_PORT, PCI_CONFIG_PORTS);
    aml_io_range(a, 0x0000, PCI_CONFIG_PORT - 1);
    aml_io_range(a, PCI_CONFIG_PORT + PCI_CONFIG_PORTS, 0xffff);
    if (cfg->vga)
        aml_memory_range(a, 0xa0000, 0xbffff);
    if (cfg->ecam) {
        uint32_t hole = cfg->low_size > 0xc0000000u ? (uint32_t)cfg->low_size : 0xc0000000u;

        aml_memory_range(a, hole, (uint32_t)PCI_ECAM_BASE - 1);
        aml_memory_range(a, (uint32_t)(PCI_ECAM_BASE + PCI_ECAM_SIZE), (uint32_t)IOAPIC_BASE - 1);
    } else { /* firmware uses any part of the hole */
        aml_memory_range(a, (uint32_t)cfg->low_size, (uint32_t)IOAPIC_BASE - 1);
    }
    aml_end_resources(a);

    aml_name(a, "_PRT"); /* 6.2.13 */
    aml_begin_package(a, 4 * (PCI_SLOTS - 1));
    for (unsigned slot = 1; slot < PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < 4; pin++) {
            aml_begin_package(a, 4);
            aml_integer(a, slot << 16 | 0xffff);
            aml_integer(a, pin);
            aml_path(a, link_path[pci_swizzle(slot, pin)], 2);
            aml_integer(a, 0);
            aml_end(a);
        }
    }
    aml_end(a);

    aml_begin_device(a, "ISA_");
    aml_name(a, "_ADR");
    aml_integer(a, PCI_ISA_SLOT << 16);
    aml_pci_config_bytes(a, "P40C", 0x60, PCI_INTX_PINS, "PRQ0PRQ1PRQ2PRQ3");
    write_isa_devices(a);
    write_optional_devices(a, cfg);
    aml_end(a);

    aml_end(a);
}

static void write_cpus(struct aml *a, const struct acpi_config *cfg)
{
    for (unsigned i = 0; i < cfg->cpus; i++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[5] = {'C', '0', hex[i >> 4 & 15], hex[i & 15], 0};

        aml_begin_device(a, name);
        aml_name(a, "_HID");
        aml_string(a, "ACPI0007");
        aml_name(a, "_UID");
        aml_integer(a, i);
        aml_end(a);
    }
}

static void write_dsdt(struct aml *a, const struct acpi_config *cfg)
{
    aml_begin_scope(a, "\\_SB_");
    write_system_resources(a, cfg);
    write_pci_root(a, cfg);
    for (unsigned n = 0; n < PCI_INTX_PINS; n++)
        write_link(a, cfg, n);
    write_cpus(a, cfg);
    aml_end(a);

    aml_name(a, "\\_S5_"); /* 7.4.2.6 */
    aml_begin_package(a, 4);
    aml_integer(a, ACPI_SLP_TYP_S5);
    aml_integer(a, ACPI_SLP_TYP_S5);
    aml_integer(a, 0);
    aml_integer(a, 0);
    aml_end(a);
}

static int build_dsdt(struct area *a, const struct acpi_config *cfg, size_t *at)
{
    struct sdt_header *h;
    struct aml aml;

    *at = next_table(a);
    if (ACPI_AREA_SIZE - a->len < sizeof(*h))
        return -ENOSPC;
    h = (struct sdt_header *)(a->image + a->len);
    init_header(h, "DSDT", 2);
    aml_init(&aml, (uint8_t *)(h + 1), ACPI_AREA_SIZE - a->len - sizeof(*h));
    write_dsdt(&aml, cfg);
    if (aml.overflow)
        return -ENOSPC;
    a->len += sizeof(*h) + aml.len;
    finish(a, *at);
    return 0;
}

/* -- The other tables -------------------------------------------------------------------------- */

static struct gas io_register(uint16_t port, uint8_t bits, uint8_t access_size)
{
    return (struct gas){SPACE_IO, bits, 0, access_size, port};
}

static int build_fadt(struct area *a, const struct acpi_config *cfg, size_t facs, size_t dsdt,
                      size_t *at)
{
    enum { ACCESS_BYTE = 1, ACCESS_WORD = 2, ACCESS_DWORD = 3 };
    struct fadt f = {
        .sci_int = ACPI_SCI_IRQ,
        .pm1a_evt = cfg->pm_base + ACPI_PM1_EVT,
        .pm1a_cnt = cfg->pm_base + ACPI_PM1_CNT,
        .pm_tmr = cfg->pm_base + ACPI_PM_TMR,
        .gpe0 = cfg->pm_base + ACPI_GPE0,
        .pm1_evt_len = 4,
        .pm1_cnt_len = 2,
        .pm_tmr_len = 4,
        .gpe0_len = ACPI_GPE0_LEN,
        .p_lvl2_lat = 101, /* above 100 and 1000: no C2, no C3 */
        .p_lvl3_lat = 1001,
        .century = RTC_CENTURY,
        /* Without a keyboard there is an 8042 that nobody need look for. */
        .iapc_boot_arch =
            (uint16_t)(BOOT_LEGACY_DEVICES | (cfg->vga ? BOOT_8042 : BOOT_VGA_NOT_PRESENT)),
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_TMR_VAL_EXT |
                 FADT_RESET_REG_SUP,
        .reset_reg = io_register(RESET_CONTROL_PORT, 8, ACCESS_BYTE),
        .reset_value = RESET_CONTROL_FULL,
        .minor = 5,
        .x_pm1a_evt = io_register(cfg->pm_base + ACPI_PM1_EVT, 32, ACCESS_WORD),
        .x_pm1a_cnt = io_register(cfg->pm_base + ACPI_PM1_CNT, 16, ACCESS_WORD),
        .x_pm_tmr = io_register(cfg->pm_base + ACPI_PM_TMR, 32, ACCESS_DWORD),
        .x_gpe0 = io_register(cfg->pm_base + ACPI_GPE0, 32, ACCESS_BYTE),
    };
    int err;

    init_header(&f.h, "FACP", 6);
    *at = next_table(a);
    err = append(a, &f, sizeof(f));
    if (err)
        return err;
    set_pointer(a, *at + offsetof(struct fadt, firmware_ctrl), 4, facs);
    set_pointer(a, *at + offsetof(struct fadt, dsdt), 4, dsdt);
    set_pointer(a, *at + offsetof(struct fadt, x_dsdt), 8, dsdt);
    finish(a, *at);
    return 0;
}

static int build_madt(struct area *a, const struct acpi_config *cfg, size_t *at)
{
    struct madt m = {.lapic_address = (uint32_t)LAPIC_DEFAULT_BASE, .flags = MADT_PCAT_COMPAT};
    struct madt_ioapic io = {
        .type = 1, .length = sizeof(io), .id = 0, .address = (uint32_t)IOAPIC_BASE};
    const struct madt_override overrides[] = {
        {2, sizeof(overrides[0]), 0, 0, TIMER_GSI, 0},
        {2, sizeof(overrides[0]), 0, ACPI_SCI_IRQ, ACPI_SCI_IRQ, INTI_HIGH | INTI_LEVEL},
    };
    struct madt_lapic_nmi nmi = {4, sizeof(nmi), 0xff, INTI_HIGH | INTI_EDGE, 1};
    int err;

    *at = next_table(a);
    init_header(&m.h, "APIC", 5);
    err = append(a, &m, sizeof(m));
    for (unsigned i = 0; i < cfg->cpus && !err; i++) {
        struct madt_lapic l = {0, sizeof(l), (uint8_t)i, (uint8_t)i, 1};

        err = append(a, &l, sizeof(l));
    }
    err = err ? err : append(a, &io, sizeof(io));
    err = err ? err : append(a, overrides, sizeof(overrides));
    err = err ? err : append(a, &nmi, sizeof(nmi));
    if (!err)
        finish(a, *at);
    return err;
}

static int build_mcfg(struct area *a, size_t *at)
{
    struct mcfg m = {.base = PCI_ECAM_BASE, .bus_first = 0, .bus_last = 255};
    int err;

    init_header(&m.h, "MCFG", 1);
    *at = next_table(a);
    err = append(a, &m, sizeof(m));
    if (!err)
        finish(a, *at);
    return err;
}

/* RSDT (entries of 4 bytes) or XSDT (8). */
static int build_root(struct area *a, const char *signature, unsigned size, const size_t *tables,
                      unsigned n, size_t *at)
{
    struct sdt_header h = {0};
    int err;

    init_header(&h, signature, 1);
    *at = next_table(a);
    err = append(a, &h, sizeof(h));
    for (unsigned i = 0; i < n && !err; i++) {
        err = append(a, &(uint64_t){0}, size);
        if (!err)
            set_pointer(a, a->len - size, size, tables[i]);
    }
    if (!err)
        finish(a, *at);
    return err;
}

static void build_rsdp(struct rsdp *r, uint64_t rsdt, uint64_t xsdt)
{
    memset(r, 0, sizeof(*r));
    memcpy(r->signature, "RSD PTR ", 8);
    memcpy(r->oem_id, "RNGSFT", 6);
    r->revision = 2;
    r->length = sizeof(*r);
    r->rsdt = (uint32_t)rsdt;
    r->xsdt = xsdt;
}

static void build_facs(struct facs *f)
{
    memcpy(f->signature, "FACS", 4);
    f->length = sizeof(*f);
    f->version = 2;
}

/* All tables but the FACS, which is at offset 0, and the RSDP. */
static int build_tables(struct area *a, const struct acpi_config *cfg, size_t *rsdt, size_t *xsdt)
{
    size_t dsdt, table[3];
    unsigned n = 2;
    int err = build_dsdt(a, cfg, &dsdt);

    err = err ? err : build_fadt(a, cfg, 0, dsdt, &table[0]);
    err = err ? err : build_madt(a, cfg, &table[1]);
    if (cfg->ecam)
        err = err ? err : build_mcfg(a, &table[n++]);
    err = err ? err : build_root(a, "RSDT", 4, table, n, rsdt);
    return err ? err : build_root(a, "XSDT", 8, table, n, xsdt);
}

int acpi_build(const struct acpi_config *cfg, struct guest_ram *ram)
{
    struct area a = {.image = calloc(1, ACPI_AREA_SIZE), .base = ACPI_AREA};
    size_t rsdt, xsdt;
    int err;

    if (!a.image)
        return -ENOMEM;
    build_facs((struct facs *)a.image);
    a.len = ACPI_FACS_SIZE + sizeof(struct rsdp);
    err = build_tables(&a, cfg, &rsdt, &xsdt);
    if (!err) {
        struct rsdp *r = (struct rsdp *)(a.image + ACPI_FACS_SIZE);

        build_rsdp(r, a.base + rsdt, a.base + xsdt);
        r->checksum = checksum(r, RSDP_V1_SIZE);
        r->extended_checksum = checksum(r, sizeof(*r));
        err = ram_write(ram, ACPI_AREA, a.image, ACPI_AREA_SIZE);
    }
    free(a.image);
    return err;
}

int acpi_build_blobs(const struct acpi_config *cfg, struct acpi_blobs *out)
{
    struct area a = {
        .image = calloc(1, ACPI_AREA_SIZE),
        .script = calloc(MAX_COMMANDS, sizeof(struct loader_command)),
    };
    struct rsdp *r = malloc(sizeof(*r));
    size_t rsdt, xsdt;
    int err = a.image && a.script && r ? 0 : -ENOMEM;

    if (!err) {
        script_allocate(&a, ACPI_RSDP_FILE, 16, ZONE_FSEG);
        script_allocate(&a, ACPI_TABLES_FILE, 64, ZONE_HIGH);
        build_facs((struct facs *)a.image);
        a.len = sizeof(struct facs);
        err = build_tables(&a, cfg, &rsdt, &xsdt);
    }
    if (err) {
        free(a.image);
        free(a.script);
        free(r);
        return err;
    }
    build_rsdp(r, rsdt, xsdt);
    script_pointer(&a, ACPI_RSDP_FILE, offsetof(struct rsdp, rsdt), 4);
    script_pointer(&a, ACPI_RSDP_FILE, offsetof(struct rsdp, xsdt), 8);
    script_checksum(&a, ACPI_RSDP_FILE, offsetof(struct rsdp, checksum), 0, RSDP_V1_SIZE);
    script_checksum(&a, ACPI_RSDP_FILE, offsetof(struct rsdp, extended_checksum), 0, sizeof(*r));
    *out = (struct acpi_blobs){
        .tables = a.image,
        .tables_len = a.len,
        .rsdp = (uint8_t *)r,
        .rsdp_len = sizeof(*r),
        .loader = (uint8_t *)a.script,
        .loader_len = a.commands * sizeof(*a.script),
    };
    return 0;
}

void acpi_free_blobs(struct acpi_blobs *b)
{
    free(b->tables);
    free(b->rsdp);
    free(b->loader);
    *b = (struct acpi_blobs){0};
}
