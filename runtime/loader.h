/*
 * Kernel loading: what firmware and a boot loader would have done.  The loader puts a kernel, its
 * modules (the initial RAM disk), its command line and what the boot protocol passes into guest
 * RAM, and says how the boot processor must start (enum boot_start).  It knows RAM and files; it
 * knows nothing of vCPUs, devices or the translator.
 *
 *     format        file                                        starts in
 *     linux         bzImage (boot.rst)                          64-bit or, for i386, 32-bit mode
 *     linux32       bzImage, by its 32-bit entry                32-bit mode
 *     elf           ELF64 Linux (vmlinux), 64-bit entry         64-bit mode
 *     pvh           ELF with a PVH note (Xen, pvh.pandoc)       32-bit mode
 *     multiboot     ELF or a.out kludge (Multiboot 0.6.96)      32-bit mode
 *     multiboot2    ELF or address tag (Multiboot2 2.0)         32-bit mode
 *     flat          anything: loaded and entered at 1 MiB       32-bit mode
 *     bootsector    anything: loaded and entered at 0x7c00      real mode
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
    BOOT_INFO = 0x9000, /* multiboot, multiboot2, PVH: in the place of the page tables */
    BOOT_INFO_END = 0x20000,
    BOOT_SECTOR_ADDR = 0x7c00,
    BOOT_SECTOR_END = 0x9f000, /* below the extended BIOS data area */
    BOOT_HIGH_START = 0x100000,
};

enum boot_format {
    BOOT_AUTO,
    BOOT_LINUX,
    BOOT_LINUX32,
    BOOT_ELF,
    BOOT_PVH,
    BOOT_MULTIBOOT,
    BOOT_MULTIBOOT2,
    BOOT_FLAT,
    BOOT_SECTOR,
    BOOT_FORMATS
};
/* As --kernel-format knows them. */
extern const char *const boot_format_names[BOOT_FORMATS];

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

/* One of the further files that multiboot and PVH kernels take. */
struct boot_module {
    struct image_file file;
    const char *args; /* its command line: the file's name and what the user put behind it */
};
enum { BOOT_MODULES_MAX = 32 };

struct boot_config {
    const struct image_file *kernel;
    enum boot_format format;           /* not BOOT_AUTO: see boot_detect() */
    const struct image_file *initrd;   /* or NULL; Linux formats */
    const struct boot_module *modules; /* multiboot, multiboot2, pvh */
    unsigned nmodules;
    bool vga_text;       /* a VGA shows 80x25 text at 0xb8000 */
    const char *cmdline; /* or NULL */
    uint64_t acpi_rsdp;  /* GPA, 0 = none */
    /* The machine's memory map, ascending; nothing is loaded outside its RAM entries. */
    const struct boot_e820_entry *e820;
    unsigned ne820;
    const uint8_t *rng_seed; /* or NULL: passed on as SETUP_RNG_SEED */
    unsigned rng_seed_len;   /* at most 64 */
    const struct screen_info *screen; /* or NULL: no screen */
};

enum boot_start {
    BOOT_START_LONG64, /* 64-bit mode, identity-mapped 4 GiB */
    BOOT_START_PROT32, /* 32-bit protected mode, flat segments, no paging */
    BOOT_START_REAL,   /* real mode, CS = 0, RIP an offset */
};

/* How to start the boot processor, with interrupts off.  Registers not named are 0. */
struct boot_entry {
    enum boot_start start;
    uint64_t rip;
    uint64_t rsi; /* Linux: boot_params */
    uint64_t rsp;
    uint32_t rax, rbx, rdx;
    uint64_t cr3; /* BOOT_START_LONG64 */
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

/* What an image is, where `wanted` is BOOT_AUTO: 0 and *out, or negative errno and a sentence that
 * says what the file seems to be. */
int boot_detect(const struct image_file *kernel, enum boot_format wanted, enum boot_format *out,
                char *err, size_t errlen);
/* True for the formats that take modules rather than an initrd. */
static inline bool boot_takes_modules(enum boot_format f)
{
    return f == BOOT_PVH || f == BOOT_MULTIBOOT || f == BOOT_MULTIBOOT2;
}

/*
 * Loads everything into RAM, which must read as zero (fresh, or boot_clear_ram()).  Returns 0
 * and *out, or a negative errno with one sentence in err that names the file; RAM contents are
 * then unspecified.
 */
int boot_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
              char *err, size_t errlen);

#endif
