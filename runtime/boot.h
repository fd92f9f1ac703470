/*
 * Booting a machine from files: joins the loader (files into RAM) with the machine (whose load
 * callback this is) and the vCPU's boot state.  Keeps the files open, so that a reboot needs no
 * names.
 */
#ifndef RINGSHIFT_RUNTIME_BOOT_H
#define RINGSHIFT_RUNTIME_BOOT_H

#include <stdio.h>

#include "runtime/firmware.h"
#include "runtime/loader.h"
#include "runtime/machine.h"

struct guest_boot {
    struct image_file kernel, initrd; /* initrd.fd = -1: none */
    enum boot_format format;
    struct boot_module modules[BOOT_MODULES_MAX];
    unsigned nmodules;
    char *module_text; /* what --initrd said, taken apart: the modules' names and arguments */
    const char *cmdline;
    bool vga_text;           /* the machine has a VGA, which starts in text mode */
    unsigned boots;          /* how often the guest was loaded */
    int load_error;          /* what guest_boot_load() failed with last, or 0 */
    struct boot_entry entry; /* of the last load */
    struct firmware firmware; /* the code is NULL: none */
    uint8_t *vga_rom;         /* for firmware; NULL if it was not found */
    uint32_t vga_rom_len;
    FILE *debugcon; /* the caller's */
};

/*
 * Opens the files; initrd may be NULL, and kernel (then there is nothing to load).  For multiboot and PVH it is a list `FILE[ ARGUMENTS],...`
 * of modules (",," stands for one comma), for Linux one file name.  0 or negative errno with one
 * sentence in err.
 */
int guest_boot_open(struct guest_boot *b, const char *kernel, enum boot_format format,
                    const char *initrd, const char *cmdline, char *err, size_t errlen);
/* Opens the firmware (firmware_open()) and the VGA BIOS that goes with it.  0 or negative errno
 * with one sentence in err, and everything closed. */
int guest_boot_open_firmware(struct guest_boot *b, const char *what, const char *vars, char *err,
                             size_t errlen);
void guest_boot_close(struct guest_boot *b);

/* For machine_config.load, with the guest_boot as load_opaque. */
int guest_boot_load(struct machine *m, void *opaque, char *err, unsigned errlen);

/* What the host can give at most: memory and swap, less a cgroup's limit.  Bytes. */
uint64_t host_memory_limit(void);

#endif
