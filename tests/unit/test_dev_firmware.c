/* What firmware meets: fw_cfg, flash, PAM and SMRAM, the PIIX4's power management, tables that it
 * places itself, debug ports. */
#include "dev_fixture.h"

#include <errno.h>
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/acpi.h"
#include "devices/chipset.h"
#include "devices/debug_ports.h"
#include "devices/fw_cfg.h"
#include "devices/parallel.h"
#include "devices/pflash.h"
#include "devices/piix4_pm.h"
#include "devices/smbios.h"
#include "mmu/memory_map.h"

static struct guest_ram ram;
static struct io_bus bus;

static void setup(void)
{
    cr_assert_eq(ram_create(&ram, 4u << 20), 0);
}

/* -- fw_cfg ------------------------------------------------------------------------------------ */

static struct fw_cfg fw;

static void setup_fw(void)
{
    setup();
    cr_assert_eq(fw_cfg_init(&fw, &ram), 0);
    io_bus_add(&bus, FW_CFG_PORT, FW_CFG_PORTS, &fw_cfg_io_ops, &fw);
    io_bus_add(&bus, FW_CFG_DMA_PORT, FW_CFG_DMA_LEN, &fw_cfg_dma_ops, &fw);
}

static void read_item(uint16_t key, void *to, unsigned len)
{
    io_bus_write(&bus, 0x510, 2, key);
    for (unsigned i = 0; i < len; i++)
        ((uint8_t *)to)[i] = (uint8_t)io_bus_read(&bus, 0x511, 1);
}

static uint32_t dma(uint32_t control, uint32_t len, uint64_t address)
{
    struct {
        uint32_t control, len;
        uint64_t address;
    } d = {htobe32(control), htobe32(len), htobe64(address)};

    cr_assert_eq(ram_write(&ram, 0x1000, &d, sizeof(d)), 0);
    io_bus_write(&bus, 0x514, 4, 0);
    io_bus_write(&bus, 0x518, 4, htobe32(0x1000));
    cr_assert_eq(ram_read(&ram, 0x1000, &control, 4), 0);
    return be32toh(control);
}

Test(fw_cfg, ports, .init = setup_fw)
{
    char text[8] = "";
    uint32_t id = 0;

    read_item(FW_CFG_SIGNATURE, text, 5);
    cr_assert_str_eq(text, "QEMU");
    cr_assert_eq(io_bus_read(&bus, 0x511, 1), 0, "beyond the end");
    read_item(FW_CFG_ID, &id, 4);
    cr_assert_eq(id, 3);
    read_item(0x7fff, text, 4);
    cr_assert_eq(text[0], 0, "no such item");
    read_item(FW_CFG_SIGNATURE, text, 2);
    io_bus_write(&bus, 0x510, 1, FW_CFG_ID); /* half a selector is none */
    cr_assert_eq(io_bus_read(&bus, 0x511, 1), 'M');
    cr_assert_eq(fw_cfg_set_u16(&fw, FW_CFG_NB_CPUS, 0x1234), 0);
    read_item(FW_CFG_NB_CPUS, text, 3);
    cr_assert_arr_eq(text, "\x34\x12\0", 3);
    cr_assert_eq(fw_cfg_set_u16(&fw, FW_CFG_FILE_FIRST, 1), -EINVAL);
}

Test(fw_cfg, files, .init = setup_fw)
{
    struct {
        uint32_t count;
        struct {
            uint32_t size;
            uint16_t select, reserved;
            char name[56];
        } e[3];
    } dir;
    char name[80];

    cr_assert_eq(fw_cfg_set_file(&fw, "etc/a", "alpha", 5), 0);
    cr_assert_eq(fw_cfg_set_file_u64(&fw, "etc/b", 0x3f8), 0);
    cr_assert_eq(fw_cfg_set_file(&fw, "etc/a", "aleph!", 6), 0);
    read_item(FW_CFG_FILE_DIR, &dir, sizeof(dir));
    cr_assert_eq(be32toh(dir.count), 2);
    cr_assert_str_eq(dir.e[0].name, "etc/a");
    cr_assert_eq(be32toh(dir.e[0].size), 6);
    cr_assert_eq(be32toh(dir.e[1].size), 8);
    read_item(be16toh(dir.e[0].select), name, 7);
    cr_assert_str_eq(name, "aleph!");
    memset(name, 'x', sizeof(name) - 1);
    name[56] = '\0';
    cr_assert_eq(fw_cfg_set_file(&fw, name, "", 0), -ENAMETOOLONG);
    name[55] = '\0';
    cr_assert_eq(fw_cfg_set_file(&fw, name, "", 0), 0);
    for (unsigned i = 3; i < FW_CFG_MAX_FILES; i++) {
        snprintf(name, sizeof(name), "opt/%u", i);
        cr_assert_eq(fw_cfg_set_file(&fw, name, "", 0), 0);
    }
    cr_assert_eq(fw_cfg_set_file(&fw, "one more", "", 0), -ENOSPC);
}

Test(fw_cfg, dma, .init = setup_fw)
{
    uint8_t *at = ram.base + 0x2000;

    cr_assert_eq(io_bus_read(&bus, 0x514, 4), htobe32(0x51454d55), "QEMU CFG");
    cr_assert_eq(io_bus_read(&bus, 0x518, 4), htobe32(0x20434647));
    cr_assert_eq(fw_cfg_set(&fw, FW_CFG_CMDLINE_DATA, "hello world", 12), 0);
    memset(at, 0xee, 32);
    cr_assert_eq(dma(FW_CFG_CMDLINE_DATA << 16 | 8 | 2, 5, 0x2000), 0, "select and read");
    cr_assert_arr_eq(at, "hello\xee", 6);
    cr_assert_eq(dma(4, 1, 0), 0, "skip");
    cr_assert_eq(dma(2, 10, 0x2000), 0, "read on, zeros beyond the end");
    cr_assert_arr_eq(at, "world\0\0\0\0\0\xee", 11);
    cr_assert_eq(dma(FW_CFG_CMDLINE_DATA << 16 | 8 | 2, 5, 0xfffffffffffffff0ull), 1, "not RAM");
    cr_assert_eq(dma(FW_CFG_CMDLINE_DATA << 16 | 8 | 2, 0xffffffffu, 0x2000), 1);
    cr_assert_eq(dma(FW_CFG_CMDLINE_DATA << 16 | 8 | 16, 4, 0x2000), 1, "nothing is writable");
    cr_assert_eq(dma(FW_CFG_CMDLINE_DATA << 16 | 8 | 4, 0xffffffffu, 0), 0, "skip beyond the end");
    cr_assert_eq(io_bus_read(&bus, 0x511, 1), 0);
    /* A descriptor outside RAM has nowhere to report to. */
    io_bus_write(&bus, 0x514, 4, 0xffffffff);
    io_bus_write(&bus, 0x518, 4, 0xffffffff);
}

/* -- PAM and SMRAM ----------------------------------------------------------------------------- */

static struct reset_control rc;
static struct pci_host pci;
static struct chipset chipset;
static uint64_t bios;
static uint8_t *rom;

static void setup_chipset(void)
{
    static const struct irq_line isa[ISA_IRQS];

    setup();
    reset_control_init(&rc, NULL, NULL);
    pci_host_init(&pci, &(struct pci_host_config){
                            .reset_control = &rc, .ports = &bus, .mmio = &bus, .ram = &ram});
    cr_assert_eq(chipset_init(&chipset, &pci, isa), 0);
    io_bus_add(&bus, PCI_CONFIG_PORT, PCI_CONFIG_PORTS, &pci_host_ops, &pci);
    io_bus_add(&bus, PAM_BASE, PAM_SIZE, &chipset_pam_ops, &chipset);
    cr_assert_eq(ram_region_alloc(&ram, ISA_BIOS_SIZE, &bios, (void **)&rom), 0);
    memset(rom, 0x0b, ISA_BIOS_SIZE);
    memset(ram.base + 0xa0000, 0xaa, 0x60000);
    chipset_set_bios(&chipset, bios);
    pci_host_reset(&pci);
}

static void set_config(unsigned fn, unsigned reg, unsigned size, uint32_t value)
{
    io_bus_write(&bus, 0xcf8, 4, 0x80000000u | (fn ? 1u << 11 : 0) | fn << 8 | (reg & 0xfc));
    io_bus_write(&bus, 0xcfc + (reg & 3), size, value);
}

Test(pam, every_segment_in_every_mode, .init = setup_chipset)
{
    for (unsigned n = 0; n < PAM_SEGMENTS; n++) {
        uint32_t base = n ? 0xc0000 + (n - 1) * 0x4000 : 0xf0000,
                 last = base + (n ? 0x3fff : 0xffff);
        unsigned reg = 0x59 + (n + 1) / 2, shift = n & 1 ? 0 : 4;
        bool has_rom = base >= 0xe0000;

        for (unsigned mode = 0; mode < 4; mode++) {
            set_config(0, reg, 1, mode << shift);
            unsigned page = ram_page(&ram, base);
            cr_assert_eq(ram_page(&ram, last), page);
            if (mode & 1) {
                cr_assert_eq(ram.base[base], 0xaa);
                cr_assert_eq(ram.base[last], 0xaa);
                cr_assert_eq(page, mode & 2 ? 0 : RAM_PAGE_ROM);
            } else {
                cr_assert_eq(page, has_rom ? RAM_PAGE_ROM : RAM_PAGE_HOLE, "segment %u", n);
                if (has_rom)
                    cr_assert_eq(ram.base[base], 0x0b);
            }
            if (mode != 3) { /* what the CPU does with a write that is not to RAM */
                uint8_t c;
                io_bus_write(&bus, base + 8, 4, 0x11111111 * mode);
                cr_assert_eq(ram_file_read(&ram, base + 8, &c, 1), 0);
                cr_assert_eq(c, mode == 2 ? 0x22 : 0xaa, "segment %u mode %u", n, mode);
                c = 0xaa;
                cr_assert_eq(ram_file_write(&ram, base + 8, &c, 1), 0);
                cr_assert_eq(rom[has_rom ? base + 8 - 0xe0000 : 0], 0x0b, "ROM stays");
            }
        }
        set_config(0, reg, 1, 0);
    }
}

Test(pam, reset_and_shadow, .init = setup_chipset)
{
    cr_assert_eq(ram_page(&ram, 0xfffff), RAM_PAGE_ROM);
    cr_assert_eq(ram_page(&ram, 0xc0000), RAM_PAGE_HOLE);
    chipset_shadow(&chipset);
    cr_assert(ram_contains(&ram, 0xc0000, 0x40000));
    cr_assert_eq(ram.base[0xf1234], 0xaa);
    pci_host_reset(&pci);
    cr_assert_eq(ram.base[0xf1234], 0x0b);
    set_config(0, 0x58, 4, 0xffffffffu); /* many registers at once */
    set_config(0, 0x5c, 4, 0xffffffffu);
    cr_assert(ram_contains(&ram, 0xc0000, 0x40000));
}

Test(pam, smram, .init = setup_chipset)
{
    cr_assert_eq(ram_page(&ram, 0xa0000), RAM_PAGE_HOLE);
    set_config(0, 0x72, 1, 0x48);
    cr_assert(ram_contains(&ram, 0xa0000, 0x20000));
    cr_assert_eq(ram.base[0xa0000], 0xaa);
    set_config(0, 0x72, 1, 0x58); /* locked: closed, too */
    cr_assert_eq(ram_page(&ram, 0xbffff), RAM_PAGE_HOLE);
    set_config(0, 0x72, 1, 0x48);
    cr_assert_eq(ram_page(&ram, 0xa0000), RAM_PAGE_HOLE, "stays locked");
    pci_host_reset(&pci);
    set_config(0, 0x72, 1, 0x48);
    cr_assert(ram_contains(&ram, 0xa0000, 0x20000), "until the reset");
}

/* -- PIIX4 power management -------------------------------------------------------------------- */

Test(piix4_pm, ports_move, .init = setup_chipset)
{
    static struct fake_clock clk;
    static struct acpi_pm pm;
    static struct piix4_pm p;
    static struct fake_irq sci;

    fake_clock_init(&clk);
    acpi_pm_init(&pm, fake_irq_line(&sci), &clk.timers, NULL, NULL);
    cr_assert_eq(piix4_pm_init(&p, &pci, &pm), 0);
    cr_assert_eq(io_bus_read(&bus, 0x604, 2), 0xffff, "nowhere yet");
    set_config(3, 0x40, 4, 0xb001);
    cr_assert_eq(io_bus_read(&bus, 0xb004, 2), 0xffff, "not enabled");
    set_config(3, 0x80, 1, 1);
    cr_assert_eq(io_bus_read(&bus, 0xb004, 2), 1);
    cr_assert_eq(p.pm_base, 0xb000);
    set_config(3, 0x40, 4, 0xffffffffu);
    cr_assert_eq(p.pm_base, 0xffc0);
    cr_assert_eq(io_bus_read(&bus, 0xb004, 2), 0xffff);
    set_config(3, 0x40, 4, 0xcc1); /* over the PCI ports, which stay what they are */
    cr_assert_eq(p.pm_base, PIIX4_UNMAPPED);
    set_config(3, 0x40, 4, 0x601);
    cr_assert_eq(io_bus_read(&bus, 0x604, 2), 1);
    /* The SMBus: nobody answers. */
    set_config(3, 0x90, 4, 0x701);
    set_config(3, 0xd2, 1, 9);
    io_bus_write(&bus, 0x704, 1, 0xa1);
    io_bus_write(&bus, 0x702, 1, 0x48);
    cr_assert_eq(io_bus_read(&bus, 0x700, 1), 4, "device error");
    io_bus_write(&bus, 0x700, 1, 4);
    cr_assert_eq(io_bus_read(&bus, 0x700, 1), 0);
    /* SMM counts as set up, whatever is written. */
    set_config(3, 0x58, 4, 0);
    cr_assert(p.f.config[0x5b] & 2);
    pci_host_reset(&pci);
    cr_assert_eq(io_bus_read(&bus, 0x604, 2), 0xffff);
    piix4_pm_destroy(&p);
}

/* -- Flash ------------------------------------------------------------------------------------- */

#define FLASH 0xffc00000ull

static struct pflash flash;
static bool store_fails;
static struct {
    unsigned count;
    uint32_t at, len;
} stored;

static bool store(void *opaque, uint32_t at, const uint8_t *data, uint32_t len)
{
    stored.count++;
    stored.at = at;
    stored.len = len;
    return !store_fails;
}

static void setup_flash(void)
{
    setup();
    cr_assert_eq(pflash_init(&flash, &ram, &bus, FLASH, 0x20000, store, NULL), 0);
    memset(flash.data, 0xff, 0x20000);
    memcpy(flash.data + 0x100, "contents", 8);
}

static void poke(uint32_t at, uint8_t value)
{
    io_bus_write(&bus, FLASH + at, 1, value);
}

static uint8_t peek(uint32_t at)
{
    if (ram_page(&ram, FLASH + at) == RAM_PAGE_ROM)
        return ram.base[FLASH + at];
    return (uint8_t)io_bus_read(&bus, FLASH + at, 1);
}

/* The probe of OVMF's variable driver, in its order. */
Test(pflash, ovmf_probe, .init = setup_flash)
{
    cr_assert_eq(peek(0x100), 'c');
    poke(0x100, 0x50);
    cr_assert_eq(peek(0x100), 'c');
    poke(0x100, 0x70);
    cr_assert_eq(ram_page(&ram, FLASH), RAM_PAGE_HOLE);
    cr_assert_eq(peek(0x100), 0, "cleared status, neither the byte nor the command");
    poke(0x100, 0xff);
    cr_assert_eq(ram_page(&ram, FLASH), RAM_PAGE_ROM);
    cr_assert_eq(peek(0x100), 'c');
    cr_assert_eq(stored.count, 0);
}

Test(pflash, program_and_erase, .init = setup_flash)
{
    poke(0x100, 0x10);
    poke(0x100, 0x0f);
    cr_assert_eq(peek(0), 0x80, "status");
    poke(0x101, 0x40);
    poke(0x101, 0xff);
    poke(0, 0xff);
    cr_assert_eq(peek(0x100), 'c' & 0x0f, "bits are only cleared");
    cr_assert_eq(peek(0x101), 'o');
    cr_assert_eq(stored.count, 2);
    poke(0x123, 0x20);
    poke(0x123, 0xd0);
    cr_assert_eq(stored.at, 0);
    cr_assert_eq(stored.len, PFLASH_BLOCK);
    poke(0, 0xff);
    cr_assert_eq(peek(0x100), 0xff);
    poke(0x1fff, 0x20); /* not confirmed */
    poke(0x1fff, 0xff);
    cr_assert_eq(stored.count, 3);
    store_fails = true;
    poke(0x10, 0x10);
    poke(0x10, 0);
    cr_assert(peek(0x10) & 0x10, "program error");
    poke(0, 0x50);
    cr_assert_eq(peek(0x10), 0xff);
}

Test(pflash, buffered_program, .init = setup_flash)
{
    poke(0x1040, 0xe8);
    cr_assert(peek(0) & 0x80);
    poke(0x1040, 2); /* three bytes */
    poke(0x1041, 1);
    poke(0x1042, 2);
    poke(0x1043, 3);
    poke(0x1040, 0xd0);
    poke(0, 0xff);
    cr_assert_eq(memcmp(flash.data + 0x1040, "\xff\1\2\3\xff", 5), 0);
    poke(0x1040, 0xe8);
    poke(0x1040, 64); /* too many */
    cr_assert(peek(0) & 0x10);
    poke(0, 0x50);
    poke(0x103f, 0xe8);
    poke(0x103f, 1);
    poke(0x103f, 0);
    poke(0x1040, 0); /* another buffer */
    cr_assert(peek(0) & 0x10);
    poke(0, 0x50);
    cr_assert_eq(flash.data[0x103f], 0xff);
}

Test(pflash, query, .init = setup_flash)
{
    poke(0x55, 0x98);
    cr_assert_eq(peek(0x10), 'Q');
    cr_assert_eq(peek(0x27), 17);
    cr_assert_eq((peek(0x2d) | peek(0x2e) << 8) + 1, 32);
    poke(0, 0xff);
    poke(0, 0x90);
    cr_assert_eq(peek(0), 0x89);
    pflash_reset(&flash);
    cr_assert_eq(peek(0x100), 'c');
}

/* -- Tables ------------------------------------------------------------------------------------ */

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;

    for (size_t i = 0; i < len; i++)
        s = (uint8_t)(s + p[i]);
    return s;
}

/* Runs the script as firmware does and checks what comes out. */
Test(acpi, loader_script)
{
    struct acpi_config cfg = {.cpus = 2, .low_size = 512u << 20, .pm_base = 0xb000, .vga = true};
    struct acpi_blobs b;
    uint64_t tables_at = 0x1fff0000, rsdp_at = 0xf5000;
    bool allocated[2] = {false};

    cr_assert_eq(acpi_build_blobs(&cfg, &b), 0);
    cr_assert_eq(b.loader_len % 128, 0);
    for (size_t i = 0; i < b.loader_len; i += 128) {
        const uint8_t *c = b.loader + i;
        const char *file = (const char *)c + 4;
        bool is_rsdp = !strcmp(file, ACPI_RSDP_FILE);
        uint8_t *blob = is_rsdp ? b.rsdp : b.tables;
        size_t len = is_rsdp ? b.rsdp_len : b.tables_len;
        uint32_t arg[3];

        cr_assert(is_rsdp || !strcmp(file, ACPI_TABLES_FILE));
        switch (c[0]) {
        case 1:
            cr_assert_eq(c[64], is_rsdp ? 2 : 1);
            allocated[is_rsdp] = true;
            break;
        case 2: {
            uint64_t value = 0;
            memcpy(arg, c + 4 + 112, 4);
            unsigned size = c[4 + 116];
            cr_assert(allocated[0] && allocated[1]);
            cr_assert_leq(arg[0] + size, len);
            memcpy(&value, blob + arg[0], size);
            cr_assert_lt(value, b.tables_len, "an offset, before it is relocated");
            value += tables_at;
            memcpy(blob + arg[0], &value, size);
            break;
        }
        case 3:
            memcpy(arg, c + 4 + 56, 12);
            cr_assert_leq(arg[1] + arg[2], len);
            cr_assert_eq(blob[arg[0]], 0);
            blob[arg[0]] = (uint8_t)-sum(blob + arg[1], arg[2]);
            break;
        default:
            cr_assert_fail("command %u", c[0]);
        }
    }
    (void)rsdp_at;
    cr_assert_eq(sum(b.rsdp, 20), 0);
    cr_assert_eq(sum(b.rsdp, 36), 0);
    uint64_t at;
    memcpy(&at, b.rsdp + 24, 8);
    const uint8_t *xsdt = b.tables + (at - tables_at);
    cr_assert_eq(memcmp(xsdt, "XSDT", 4), 0);
    uint32_t n;
    memcpy(&n, xsdt + 4, 4);
    cr_assert_eq(n, 36 + 2 * 8, "no MCFG");
    cr_assert_eq(sum(xsdt, n), 0);
    memcpy(&at, xsdt + 36, 8);
    const uint8_t *fadt = b.tables + (at - tables_at);
    cr_assert_eq(memcmp(fadt, "FACP", 4), 0);
    cr_assert_eq(sum(fadt, 276), 0);
    uint32_t word;
    memcpy(&word, fadt + 64, 4);
    cr_assert_eq(word, 0xb004, "PM1a control");
    memcpy(&word, fadt + 40, 4);
    const uint8_t *dsdt = b.tables + (word - tables_at);
    cr_assert_eq(memcmp(dsdt, "DSDT", 4), 0);
    memcpy(&n, dsdt + 4, 4);
    cr_assert_eq(sum(dsdt, n), 0);
    memcpy(&word, fadt + 36, 4);
    cr_assert_eq(word % 64, 0, "FACS alignment");

    /* Another place for the registers must not change any length. */
    struct acpi_blobs other;
    cfg.pm_base = 0x600;
    cr_assert_eq(acpi_build_blobs(&cfg, &other), 0);
    cr_assert_eq(other.tables_len, b.tables_len);
    cr_assert_eq(other.loader_len, b.loader_len);
    acpi_free_blobs(&b);
    acpi_free_blobs(&other);
}

Test(smbios, structures)
{
    struct smbios_config cfg = {
        .cpus = 2, .ram_low = 3ull << 30, .ram_high = 30ull << 30, .cpu_mhz = 3000};
    uint8_t tables[SMBIOS_TABLES_MAX], anchor[SMBIOS_ANCHOR_SIZE];
    int len = smbios_build(&cfg, tables, anchor), at = 0;
    unsigned count = 0, largest = 0, seen[256] = {0};

    cr_assert_gt(len, 0);
    while (at < len) {
        int start = at;

        seen[tables[at]]++;
        cr_assert_geq(tables[at + 1], 4);
        at += tables[at + 1];
        while (tables[at] || tables[at + 1])
            at++;
        at += 2;
        count++;
        if ((unsigned)(at - start) > largest)
            largest = (unsigned)(at - start);
    }
    cr_assert_eq(at, len);
    cr_assert_eq(seen[1], 1);
    cr_assert_eq(seen[4], 2);
    cr_assert_eq(seen[17], 3, "33 GiB in devices of 16");
    cr_assert_eq(seen[19], 2);
    cr_assert_eq(seen[127], 1);
    cr_assert_eq(sum(anchor, 31), 0);
    cr_assert_eq(sum(anchor + 16, 15), 0);
    cr_assert_eq(anchor[0x1c], count);
    cr_assert_eq(anchor[0x08], largest);
    cr_assert_eq(anchor[0x16] | anchor[0x17] << 8, len);
    cfg.cpus = 64;
    cr_assert_gt(smbios_build(&cfg, tables, anchor), 0);
}

/* -- Small ports ------------------------------------------------------------------------------- */

static char text[512];
static int exit_code;

static void sink(void *opaque, const char *s, size_t len)
{
    strncat(text, s, len);
    strcat(text, "|");
}

static void on_exit_port(void *opaque, int code)
{
    exit_code = code;
}

Test(debug_ports, console_and_exit)
{
    struct debug_ports d;

    debug_ports_init(&d, sink, on_exit_port, NULL);
    cr_assert_eq(in8(&debugcon_ops, &d, 0), 0xe9);
    for (const char *s = "one\ntwo"; *s; s++)
        out8(&debugcon_ops, &d, 0, (uint8_t)*s);
    cr_assert_str_eq(text, "one\n|");
    debug_ports_flush(&d);
    cr_assert_str_eq(text, "one\n|two|");
    for (unsigned i = 0; i < 300; i++)
        out8(&debugcon_ops, &d, 0, 'x');
    cr_assert_eq(strlen(text), 9 + 256 + 1);
    debug_exit_ops.write(&d, 0, 4, 0x10);
    cr_assert_eq(exit_code, 0x21);
    debug_exit_ops.write(&d, 0, 4, 0xffffffff);
    cr_assert_eq(exit_code, 0xff);
}

Test(parallel, registers)
{
    struct parallel p;

    parallel_reset(&p);
    out8(&parallel_io_ops, &p, 0, 0xaa); /* how BIOSes look for a port */
    cr_assert_eq(in8(&parallel_io_ops, &p, 0), 0xaa);
    cr_assert(in8(&parallel_io_ops, &p, 1) & 0x80, "not busy");
    out8(&parallel_io_ops, &p, 2, 0xff);
    cr_assert_eq(in8(&parallel_io_ops, &p, 2), 0xff);
    cr_assert_eq(in8(&parallel_io_ops, &p, 7), 0xff);
}
