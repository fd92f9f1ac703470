/*
 * The machine's firmware: finding and opening its images, putting them into the memory map, and
 * what fw_cfg tells it about the machine.
 *
 * A BIOS or UEFI image ends at 4 GiB; its last 128 KiB are also at 0xe0000, where PAM registers can
 * replace it by RAM.  UEFI variables are a flash bank right below it, backed by a file.
 */
#ifndef RINGSHIFT_RUNTIME_FIRMWARE_H
#define RINGSHIFT_RUNTIME_FIRMWARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chipset;
struct fw_cfg;
struct guest_ram;
struct io_bus;
struct pflash;

#define FIRMWARE_MAX (16u << 20) /* code and variables together */

struct firmware {
    char path[4096];
    uint8_t *code;
    uint32_t code_len;
    char vars_path[4096];
    int vars_fd;      /* -1: the variables are not kept, or there are none */
    bool vars_failed; /* they could not be written: said once */
    uint8_t *vars;
    uint32_t vars_len; /* 0: none */
    bool uefi;
};

/*
 * Opens `what`: "seabios", "ovmf", or the name of an image file.  vars, unless NULL, is the file
 * that holds UEFI variables; if it does not exist it is created from OVMF's template.  Without it
 * OVMF's variables live as long as the machine.
 * 0, or a negative errno with one sentence in err.
 */
int firmware_open(struct firmware *f, const char *what, const char *vars, char *err, size_t errlen);
void firmware_close(struct firmware *f);

/*
 * Looks for a file of Debian's firmware packages, such as "vgabios-stdvga.bin": beside this
 * program, in its guests/ folder, and where the packages put them.  0 and the path, or -ENOENT.
 */
int firmware_find(const char *name, char *path, size_t len);

/* Reads a whole file of at most `max` bytes; *data is malloc'ed.  0 or negative errno. */
int firmware_read_file(const char *path, uint32_t max, uint8_t **data, uint32_t *len);

/* Puts the images into memory.  Once, before the machine runs.  0 or negative errno. */
int firmware_install(struct firmware *f, struct guest_ram *ram, struct io_bus *mmio,
                     struct chipset *c, struct pflash *vars);

/* What fw_cfg says about the machine, but for its ACPI tables. */
struct firmware_facts {
    unsigned cpus;
    uint64_t ram_low, ram_high;
    bool graphics;          /* there is a screen */
    bool serial_console;    /* SeaBIOS' menus and BIOS output also go to COM1 */
    bool boot_menu;         /* offer SeaBIOS' boot menu... */
    uint16_t menu_wait_ms;  /* ...for so long */
    const char *boot_order; /* OpenFirmware device paths, a line each, or NULL */
    uint32_t tsc_mhz, cpuid_eax, cpuid_edx;
    /* Linux for OVMF to start, or NULLs: the kernel file, initial RAM disk, command line. */
    const uint8_t *kernel, *initrd;
    uint32_t kernel_len, initrd_len;
    const char *cmdline;
};

/* 0 or negative errno. */
int firmware_describe(struct fw_cfg *cfg, const struct firmware_facts *facts);

#endif
