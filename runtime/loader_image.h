/*
 * Inside the loader: what the formats (loader_bzimage.c, loader_elf.c) share with loader.c.
 */
#ifndef RINGSHIFT_RUNTIME_LOADER_IMAGE_H
#define RINGSHIFT_RUNTIME_LOADER_IMAGE_H

#include <asm/bootparam.h>

#include "runtime/loader.h"

/* Filled by a format's load function. */
struct loaded_kernel {
    uint64_t entry;           /* GPA of the 64-bit entry point */
    uint64_t start, end;      /* GPA range that the kernel needs before it knows of memory */
    uint64_t initrd_addr_max; /* highest address an initrd byte may have */
    uint64_t cmdline_max;     /* longest command line, without its NUL */
};

/* Formats message into err (always terminated) and returns code, so that callers can
 * `return boot_error(...)`. */
int boot_error(char *err, size_t errlen, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* True if [addr, addr+size) is RAM below 4 GiB, at or above 1 MiB, and touches no reserved range.
 */
bool boot_range_free(const struct guest_ram *ram, const struct boot_config *cfg, uint64_t addr,
                     uint64_t size);

/* Reads part of the image into RAM that boot_range_free() accepted. */
int boot_read_to_ram(struct guest_ram *ram, const struct image_file *f, uint64_t offset,
                     uint64_t gpa, uint64_t len);

int bzimage_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_params *bp,
                 struct loaded_kernel *out, char *err, size_t errlen);
int elf_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_params *bp,
             struct loaded_kernel *out, char *err, size_t errlen);

#endif
