/* Firmware: see firmware.h. */
#include "runtime/firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/chipset.h"
#include "devices/fw_cfg.h"
#include "devices/pflash.h"
#include "devices/serial.h"
#include "devices/smbios.h"
#include "mmu/memory_map.h"
#include "runtime/error.h"

#define FOUR_GIB      (1ull << 32)
#define E820_RAM      1
#define PAGE_ROUND(n) (((n) + GUEST_PAGE_SIZE - 1) & ~(GUEST_PAGE_SIZE - 1))

/* -- Files ------------------------------------------------------------------------------------- */

int firmware_find(const char *name, char *path, size_t len)
{
    static const char *const folders[] = {"/usr/share/seabios", "/usr/share/OVMF",
                                          "/usr/share/ovmf", "/usr/share/qemu"};
    static const char *const beside[] = {"guests/firmware", "guests/seabios", "guests/ovmf"};
    char own[4096];
    ssize_t n = readlink("/proc/self/exe", own, sizeof(own) - 1);
    char *slash = NULL;

    if (n > 0) {
        own[n] = '\0';
        slash = strrchr(own, '/');
    }
    for (unsigned i = 0; slash && i < sizeof(beside) / sizeof(beside[0]); i++) {
        *slash = '\0';
        if (snprintf(path, len, "%s/%s/%s", own, beside[i], name) < (int)len && !access(path, R_OK))
            return 0;
    }
    for (unsigned i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
        if (snprintf(path, len, "%s/%s", folders[i], name) < (int)len && !access(path, R_OK))
            return 0;
    return -ENOENT;
}

int firmware_read_file(const char *path, uint32_t max, uint8_t **data, uint32_t *len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;
    struct stat st;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st))
        err = -errno;
    else if (!S_ISREG(st.st_mode))
        err = -EINVAL;
    else if (st.st_size == 0 || st.st_size > max)
        err = -EFBIG;
    *data = err ? NULL : malloc((size_t)st.st_size);
    if (!err && !*data)
        err = -ENOMEM;
    for (off_t at = 0; !err && at < st.st_size;) {
        ssize_t n = read(fd, *data + at, (size_t)(st.st_size - at));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            err = n < 0 ? -errno : -EIO; /* it shrank */
        else
            at += n;
    }
    close(fd);
    if (err) {
        free(*data);
        *data = NULL;
        return err;
    }
    *len = (uint32_t)st.st_size;
    return 0;
}

static int read_image(const char *path, uint8_t **data, uint32_t *len, char *err, size_t errlen)
{
    int code = firmware_read_file(path, FIRMWARE_MAX, data, len);

    if (code == -EFBIG)
        return fail_with(err, errlen, code, "the firmware %s is empty or larger than %u MiB", path,
                         FIRMWARE_MAX >> 20);
    if (code == -EINVAL)
        return fail_with(err, errlen, code, "the firmware %s is not a file", path);
    if (code)
        return fail_with(err, errlen, code, "cannot read the firmware %s: %s", path,
                         strerror(-code));
    return 0;
}

static int write_all(int fd, const uint8_t *data, uint32_t len, off_t at)
{
    while (len) {
        ssize_t n = pwrite(fd, data, len, at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        len -= (uint32_t)n;
        at += n;
    }
    return 0;
}

/* Opens the file of variables, or makes it from the template. */
static int open_vars(struct firmware *f, const char *path, const uint8_t *template,
                     uint32_t template_len, char *err, size_t errlen)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666), code;

    if (fd < 0)
        return fail_with(err, errlen, -errno, "cannot open the UEFI variables %s for writing: %s",
                         path, strerror(errno));
    f->vars_fd = fd;
    snprintf(f->vars_path, sizeof(f->vars_path), "%s", path);
    if (flock(fd, LOCK_EX | LOCK_NB))
        return fail_with(
            err, errlen, -errno,
            "the UEFI variables %s are in use by another virtual machine; give each its own", path);
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return fail_with(err, errlen, -EINVAL, "the UEFI variables %s are not a file", path);
    if (st.st_size == 0) {
        if (!template)
            return fail_with(
                err, errlen, -ENOENT,
                "the UEFI variables %s are empty, and OVMF's template OVMF_VARS.fd was not "
                "found (Debian: package ovmf)",
                path);
        code = write_all(fd, template, template_len, 0);
        if (code)
            return fail_with(err, errlen, code, "cannot write the UEFI variables %s: %s", path,
                             strerror(-code));
        st.st_size = template_len;
    }
    if (st.st_size > FIRMWARE_MAX || st.st_size % PFLASH_BLOCK)
        return fail_with(
            err, errlen, -EINVAL,
            "the UEFI variables %s have no size that a flash bank has (a multiple of 4 KiB, "
            "at most %u MiB)",
            path, FIRMWARE_MAX >> 20);
    free(f->vars);
    f->vars = NULL;
    return read_image(path, &f->vars, &f->vars_len, err, errlen);
}

/* The two files of Debian's ovmf package that belong together. */
static int open_ovmf(struct firmware *f, const char *vars, char *err, size_t errlen)
{
    static const char *const pairs[][2] = {{"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"},
                                           {"OVMF_CODE.fd", "OVMF_VARS.fd"}};
    char template[4096];
    int code = 0;

    for (unsigned i = 0; i < 2; i++) {
        struct stat st;

        if (firmware_find(pairs[i][0], f->path, sizeof(f->path)) ||
            firmware_find(pairs[i][1], template, sizeof(template)))
            continue;
        /* Variables that exist already say which of the two they are for. */
        if (vars && !stat(vars, &st) && st.st_size) {
            struct stat t;

            if (!stat(template, &t) && t.st_size != st.st_size && i == 0)
                continue;
        }
        f->uefi = true;
        code = read_image(f->path, &f->code, &f->code_len, err, errlen);
        if (!code)
            code = read_image(template, &f->vars, &f->vars_len, err, errlen);
        if (!code && vars) {
            uint8_t *copy = f->vars;
            uint32_t len = f->vars_len;

            f->vars = NULL;
            code = open_vars(f, vars, copy, len, err, errlen);
            free(copy);
        }
        return code;
    }
    return fail_with(err, errlen, -ENOENT,
                     "OVMF was not found: install Debian's package ovmf, or name an image with "
                     "--firmware FILE");
}

int firmware_open(struct firmware *f, const char *what, const char *vars, char *err, size_t errlen)
{
    int code;

    *f = (struct firmware){.vars_fd = -1};
    if (!strcmp(what, "ovmf")) {
        code = open_ovmf(f, vars, err, errlen);
    } else {
        if (!strcmp(what, "seabios")) {
            if (vars)
                return fail_with(
                    err, errlen, -EINVAL,
                    "--firmware-vars is for UEFI firmware; SeaBIOS keeps no variables");
            if (firmware_find("bios-256k.bin", f->path, sizeof(f->path)) &&
                firmware_find("bios.bin", f->path, sizeof(f->path)))
                return fail_with(
                    err, errlen, -ENOENT,
                    "SeaBIOS was not found: install Debian's package seabios, or name an "
                    "image with --firmware FILE");
        } else {
            snprintf(f->path, sizeof(f->path), "%s", what);
        }
        code = read_image(f->path, &f->code, &f->code_len, err, errlen);
        if (!code && vars) {
            char path[4096];
            uint8_t *template = NULL;
            uint32_t len = 0;

            f->uefi = true;
            if (!firmware_find("OVMF_VARS.fd", path, sizeof(path)))
                firmware_read_file(path, FIRMWARE_MAX, &template, &len);
            code = open_vars(f, vars, template, len, err, errlen);
            free(template);
        }
    }
    if (!code && f->code_len + f->vars_len > FIRMWARE_MAX)
        code = fail_with(err, errlen, -EFBIG, "the firmware %s and its variables exceed %u MiB",
                         f->path, FIRMWARE_MAX >> 20);
    if (code)
        firmware_close(f);
    return code;
}

void firmware_close(struct firmware *f)
{
    if (f->vars_fd >= 0)
        close(f->vars_fd);
    free(f->code);
    free(f->vars);
    f->vars_fd = -1;
    f->code = f->vars = NULL;
}

/* -- Memory ------------------------------------------------------------------------------------ */

static bool store_vars(void *opaque, uint32_t at, const uint8_t *data, uint32_t len)
{
    struct firmware *f = opaque;

    if (f->vars_fd < 0)
        return true;
    int err = write_all(f->vars_fd, data, len, at);

    if (err && !f->vars_failed) {
        fprintf(stderr, "ringshift: cannot write the UEFI variables %s: %s\n", f->vars_path,
                strerror(-err));
        f->vars_failed = true;
    }
    return !err;
}

int firmware_install(struct firmware *f, struct guest_ram *ram, struct io_bus *mmio,
                     struct chipset *c, struct pflash *vars)
{
    /* A small image is at the end of a larger ROM. */
    uint64_t size = f->code_len < ISA_BIOS_SIZE ? ISA_BIOS_SIZE : PAGE_ROUND((uint64_t)f->code_len);
    uint64_t offset;
    uint8_t *rom;
    int err = ram_region_alloc(ram, size, &offset, (void **)&rom);

    if (err)
        return err;
    memset(rom, 0xff, size - f->code_len);
    memcpy(rom + (size - f->code_len), f->code, f->code_len);
    err = ram_map_region(ram, FOUR_GIB - size, size, offset, RAM_KIND_ROM);
    if (err)
        return err;
    chipset_set_bios(c, offset + size - ISA_BIOS_SIZE);
    if (!f->vars_len)
        return 0;
    err = pflash_init(vars, ram, mmio, FOUR_GIB - size - f->vars_len, f->vars_len, store_vars, f);
    if (!err)
        memcpy(vars->data, f->vars, f->vars_len);
    return err;
}

/* -- fw_cfg ------------------------------------------------------------------------------------ */

static int describe_memory(struct fw_cfg *cfg, const struct firmware_facts *facts)
{
    struct {
        uint64_t address, length;
        uint32_t type;
    } __attribute__((packed))
    map[] = {{0, facts->ram_low, E820_RAM}, {RAM_HIGH_BASE, facts->ram_high, E820_RAM}};

    return fw_cfg_set_file(cfg, "etc/e820", map,
                           (uint32_t)sizeof(map[0]) * (facts->ram_high ? 2 : 1));
}

static int describe_smbios(struct fw_cfg *cfg, const struct firmware_facts *facts)
{
    struct smbios_config s = {
        .cpus = facts->cpus,
        .ram_low = facts->ram_low,
        .ram_high = facts->ram_high,
        .cpu_mhz = facts->tsc_mhz,
        .cpuid_eax = facts->cpuid_eax,
        .cpuid_edx = facts->cpuid_edx,
    };
    uint8_t tables[SMBIOS_TABLES_MAX], anchor[SMBIOS_ANCHOR_SIZE];
    int len = smbios_build(&s, tables, anchor);

    if (len < 0)
        return len;
    len = fw_cfg_set_file(cfg, SMBIOS_TABLES_FILE, tables, (uint32_t)len);
    return len ? len : fw_cfg_set_file(cfg, SMBIOS_ANCHOR_FILE, anchor, sizeof(anchor));
}

/* A kernel in the form that OVMF's QEMU loader and QEMU's own boot ROM take. */
static int describe_kernel(struct fw_cfg *cfg, const struct firmware_facts *facts)
{
    uint32_t setup = facts->kernel[0x1f1] ? facts->kernel[0x1f1] : 4; /* setup_sects */
    uint32_t len = (setup + 1) * 512;
    uint32_t cmdline_len = (uint32_t)strlen(facts->cmdline) + 1;
    int err;

    if (len > facts->kernel_len)
        return -EINVAL;
    err = fw_cfg_set_u32(cfg, FW_CFG_SETUP_SIZE, len);
    err = err ? err : fw_cfg_set(cfg, FW_CFG_SETUP_DATA, facts->kernel, len);
    err = err ? err : fw_cfg_set_u32(cfg, FW_CFG_SETUP_ADDR, 0x10000);
    err = err ? err : fw_cfg_set_u32(cfg, FW_CFG_KERNEL_SIZE, facts->kernel_len - len);
    err = err ? err
              : fw_cfg_set(cfg, FW_CFG_KERNEL_DATA, facts->kernel + len, facts->kernel_len - len);
    err = err ? err : fw_cfg_set_u32(cfg, FW_CFG_KERNEL_ADDR, 0x100000);
    err = err ? err : fw_cfg_set_u32(cfg, FW_CFG_CMDLINE_SIZE, cmdline_len);
    err = err ? err : fw_cfg_set(cfg, FW_CFG_CMDLINE_DATA, facts->cmdline, cmdline_len);
    err = err ? err : fw_cfg_set_u32(cfg, FW_CFG_CMDLINE_ADDR, 0x20000);
    if (!err && facts->initrd) {
        err = fw_cfg_set_u32(cfg, FW_CFG_INITRD_SIZE, facts->initrd_len);
        err = err ? err : fw_cfg_set(cfg, FW_CFG_INITRD_DATA, facts->initrd, facts->initrd_len);
    }
    return err;
}

int firmware_describe(struct fw_cfg *cfg, const struct firmware_facts *facts)
{
    /* Bit 7: the state is there; the rest is what goes into SLP_TYP.  S0 and S5 are. */
    static const uint8_t states[6] = {0x80, 0, 0, 1, 2, 0x80 | 0};
    const struct {
        uint16_t key, value;
    } words[] = {
        {FW_CFG_NOGRAPHIC, !facts->graphics},
        {FW_CFG_NB_CPUS, (uint16_t)facts->cpus},
        {FW_CFG_MAX_CPUS, (uint16_t)facts->cpus},
        {FW_CFG_BOOT_MENU, facts->boot_menu},
    };
    int err = fw_cfg_set_u64(cfg, FW_CFG_RAM_SIZE, facts->ram_low + facts->ram_high);

    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]) && !err; i++)
        err = fw_cfg_set_u16(cfg, words[i].key, words[i].value);
    err = err ? err : fw_cfg_set_u32(cfg, FW_CFG_IRQ0_OVERRIDE, 1);
    err = err ? err : describe_memory(cfg, facts);
    err = err ? err : describe_smbios(cfg, facts);
    err = err ? err : fw_cfg_set_file(cfg, "etc/system-states", states, sizeof(states));
    err = err ? err
              : fw_cfg_set_file(cfg, "etc/boot-fail-wait", &(uint32_t){60000}, sizeof(uint32_t));
    if (!err && facts->boot_menu)
        err = fw_cfg_set_file(cfg, "etc/boot-menu-wait", &(uint16_t){facts->menu_wait_ms}, 2);
    if (!err && facts->serial_console)
        err = fw_cfg_set_file_u64(cfg, "etc/sercon-port", SERIAL_COM1_PORT);
    if (!err && facts->boot_order)
        err = fw_cfg_set_file(cfg, "bootorder", facts->boot_order,
                              (uint32_t)strlen(facts->boot_order) + 1);
    if (!err && facts->kernel)
        err = describe_kernel(cfg, facts);
    return err;
}
