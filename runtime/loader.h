/*
 * Kernel loading: what firmware and a boot loader would have done.  The loader puts a 64-bit Linux
 * kernel (a bzImage, or an ELF image such as vmlinux), its initial RAM disk, its command line and
 * the boot_params page into guest RAM and says how the boot processor must start: in 64-bit mode
 * with identity-mapped page tables (Linux Documentation/arch/x86/boot.rst, "64-bit boot
 * protocol").  It knows RAM and files; it knows nothing of vCPUs, devices or the translator.
 *
 * Image files are hostile: every length and address is checked against the file and RAM before
 * use.  They are read with pread(), never mapped, so a file that shrinks meanwhile is a short read
 * and not a SIGBUS.
 */
#ifndef RINGSHIFT_RUNTIME_LOADER_H
#define RINGSHIFT_RUNTIME_LOADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mmu/ram.h"

struct boot_e820_entry; /* <asm/bootparam.h> */

/*
 * Guest-physical layout of what the loader builds, all in conventional memory that the e820 map
 * calls RAM: Linux copies or reserves each of them before it hands that memory out.
 */
enum {
    BOOT_GDT = 0x1000,
    BOOT_STACK_TOP = 0x7000, /* 64-bit entry points need no stack; harmless ones get 16 KiB */
    BOOT_PARAMS = 0x7000,
    BOOT_SETUP_DATA = 0x8000,
    BOOT_PAGE_TABLES = 0x9000, /* PML4, PDPT, and one page directory for each of 4 GiB */
    BOOT_PAGE_TABLES_END = 0xf000,
    BOOT_CMDLINE = 0x20000,
    BOOT_CMDLINE_MAX = 0x10000, /* with its NUL */
    BOOT_LOW_END = 0x30000,
    BOOT_HIGH_START = 0x100000,
};

/* Selectors of the boot GDT (boot.rst: __BOOT_CS, __BOOT_DS). */
enum { BOOT_CS = 0x10, BOOT_DS = 0x18, BOOT_GDT_LIMIT = 4 * 8 - 1 };

/* An image file held open, so that a reboot loads the same file again whatever became of its name.
 * What cannot be read at an offset (a pipe) is copied to an unnamed memory file first. */
struct image_file {
    int fd;
    uint64_t size;
    const char *path; /* as the user gave it, for messages; not owned */
};

/* 0 or negative errno with one sentence in err. */
int image_open(struct image_file *f, const char *path, char *err, size_t errlen);
void image_close(struct image_file *f);
/* Reads exactly len bytes at offset; -ENODATA if the file ends before that. */
int image_read(const struct image_file *f, uint64_t offset, void *buf, uint64_t len);

struct boot_config {
    const struct image_file *kernel;
    const struct image_file *initrd; /* or NULL */
    const char *cmdline;             /* or NULL */
    uint64_t acpi_rsdp;              /* GPA, 0 = none */
    /* The machine's memory map, ascending; nothing is loaded outside its RAM entries. */
    const struct boot_e820_entry *e820;
    unsigned ne820;
    const uint8_t *rng_seed; /* or NULL: passed on as SETUP_RNG_SEED */
    unsigned rng_seed_len;   /* at most 64 */
    const struct screen_info *screen; /* or NULL: no screen */
};

/* How to start the boot processor: 64-bit mode, paging on, interrupts off. */
struct boot_entry {
    uint64_t rip;
    uint64_t rsi; /* boot_params */
    uint64_t rsp;
    uint64_t cr3;
    uint64_t gdt_base;
    uint16_t gdt_limit;
    uint16_t cs, ds;
    /* For --stats and messages. */
    uint64_t kernel_start, kernel_end; /* [start, end) of the image in memory with its bss */
    uint64_t initrd_start, initrd_size;
};

/* Makes the RAM entries of the map read as zero and gives their memory back to the host: what a
 * reboot starts from. 0 or negative errno. */
int boot_clear_ram(struct guest_ram *ram, const struct boot_e820_entry *e820, unsigned ne820);

/*
 * Loads everything into RAM, which must read as zero (fresh, or boot_clear_ram()).  Returns 0
 * and *out, or a negative errno with one sentence in err that names the file; RAM contents are
 * then unspecified.
 */
int boot_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
              char *err, size_t errlen);

#endif
