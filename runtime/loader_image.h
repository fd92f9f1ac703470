/*
 * Inside the loader: what the formats (loader_bzimage.c, loader_elf.c) share with loader.c.
 */
#ifndef RINGSHIFT_RUNTIME_LOADER_IMAGE_H
#define RINGSHIFT_RUNTIME_LOADER_IMAGE_H

#include <asm/bootparam.h>

#include "runtime/error.h"
#include "runtime/loader.h"

/* Filled by a format's load function. */
struct loaded_kernel {
    uint64_t entry;           /* GPA of the entry point */
    bool entry32;             /* to be entered in 32-bit mode */
    uint64_t start, end;      /* GPA range that the kernel needs before it knows of memory */
    uint64_t initrd_addr_max; /* highest address an initrd byte may have */
    uint64_t cmdline_max;     /* longest command line, without its NUL */
};

/* True if [addr, addr+size) is RAM below 4 GiB, at or above 1 MiB, and touches no reserved range.
 */
bool boot_range_free(const struct guest_ram *ram, const struct boot_config *cfg, uint64_t addr,
                     uint64_t size);

/* Reads part of the image into RAM that boot_range_free() accepted. */
int boot_read_to_ram(struct guest_ram *ram, const struct image_file *f, uint64_t offset,
                     uint64_t gpa, uint64_t len);

/* An ELF image whose segments are in RAM. */
struct elf_image {
    uint64_t entry;      /* e_entry as a GPA, 0 if it lies in no segment */
    uint64_t pvh;        /* PVH entry, 0 if there is none */
    uint64_t start, end; /* of all segments, with their bss */
    bool is64;           /* for x86-64, else i386 */
};
/* Loads ET_EXEC images for i386 and x86-64.  0 or negative errno with a sentence in err. */
int elf_load_segments(struct guest_ram *ram, const struct boot_config *cfg, struct elf_image *out,
                      char *err, size_t errlen);
/* Is there a PVH note?  For boot_detect(): wrong files have none. */
bool elf_has_pvh(const struct image_file *f, bool *is64);

/*
 * The part of BOOT_INFO..BOOT_INFO_END that is still free: what boot information is made of is
 * taken from it piece by piece.  Ends in -ENOSPC when it is used up.
 */
struct boot_info_area {
    uint32_t next;
};
/* Copies len bytes (NULL: zeros) to the next place with that alignment; 0 and *gpa or -ENOSPC. */
int boot_info_put(struct guest_ram *ram, struct boot_info_area *area, const void *data,
                  uint64_t len, uint32_t align, uint32_t *gpa);

/* Loads the modules behind the kernel, page by page aligned, into start[]/end[] (GPAs). */
int boot_place_modules(struct guest_ram *ram, const struct boot_config *cfg, uint64_t floor,
                       uint32_t start[BOOT_MODULES_MAX], uint32_t end[BOOT_MODULES_MAX], char *err,
                       size_t errlen);
/* KiB of memory from 0, and from 1 MiB up to the first hole. */
void boot_memory_sizes(const struct boot_config *cfg, uint32_t *lower, uint32_t *upper);

/* Do the first bytes of the file hold such a header? */
bool multiboot_present(const struct image_file *f);
bool multiboot2_present(const struct image_file *f);
int multiboot_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                   char *err, size_t errlen);
int multiboot2_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                    char *err, size_t errlen);
int pvh_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
             char *err, size_t errlen);
int flat_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
              char *err, size_t errlen);
int boot_sector_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                     char *err, size_t errlen);

int bzimage_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_params *bp,
                 struct loaded_kernel *out, char *err, size_t errlen);
int elf_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_params *bp,
             struct loaded_kernel *out, char *err, size_t errlen);

#endif
