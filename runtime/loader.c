/*
 * What all kernel formats share: opening files, recognising the format, boot_params with the e820
 * map, command line and initrd, and the GDT and page tables the 64-bit entry starts with.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MiB (1024ull * 1024)

/* ACPI 6.5, table 15.6: address range types, as e820 has them. */
enum { E820_RAM = 1 };

/* ---- Files ------------------------------------------------------------------------------------
 */

/* What a pipe may deliver: images of this size are kept in memory. */
#define SPOOL_MAX (1024 * MiB)

/* Copies what can only be read once into a memory file. */
static int spool(struct image_file *f, int in)
{
    char buf[16384];
    int out = memfd_create("ringshift-image", MFD_CLOEXEC);

    if (out < 0)
        return -errno;
    f->size = 0;
    for (;;) {
        ssize_t n = read(in, buf, sizeof(buf));
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            break;
        int code = n < 0 ? -errno : f->size + (uint64_t)n > SPOOL_MAX ? -EFBIG : 0;
        for (ssize_t done = 0; !code && done < n;) {
            ssize_t w = write(out, buf + done, (size_t)(n - done));
            if (w < 0 && errno != EINTR)
                code = -errno;
            if (w > 0)
                done += w;
        }
        if (code) {
            close(out);
            return code;
        }
        f->size += (uint64_t)n;
    }
    f->fd = out;
    return 0;
}

int image_open(struct image_file *f, const char *path, char *err, size_t errlen)
{
    struct stat st;

    *f = (struct image_file){.fd = -1, .path = path};
    if (!*path)
        return fail_with(err, errlen, -ENOENT, "the name of a file to boot is empty");
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return fail_with(err, errlen, -errno, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) < 0) {
        int code = -errno;
        close(fd);
        return fail_with(err, errlen, code, "cannot examine %s: %s", path, strerror(-code));
    }
    if (S_ISDIR(st.st_mode)) {
        close(fd);
        return fail_with(err, errlen, -EISDIR, "%s is a directory, not a file", path);
    }
    if (S_ISCHR(st.st_mode)) { /* /dev/zero would never end */
        close(fd);
        return fail_with(err, errlen, -EINVAL, "%s is a character device, not a file", path);
    }
    if (S_ISREG(st.st_mode)) {
        f->fd = fd;
        f->size = (uint64_t)st.st_size;
    } else {
        int code = spool(f, fd);
        close(fd);
        if (code == -EFBIG)
            return fail_with(err, errlen, code, "%s delivers more than %llu MiB; give a file", path,
                             SPOOL_MAX / MiB);
        if (code)
            return fail_with(err, errlen, code, "cannot read %s: %s", path, strerror(-code));
    }
    if (f->size == 0) {
        image_close(f);
        return fail_with(err, errlen, -ENODATA, "%s is empty", path);
    }
    return 0;
}

void image_close(struct image_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

int image_read(const struct image_file *f, uint64_t offset, void *buf, uint64_t len)
{
    if (offset > f->size || len > f->size - offset)
        return -ENODATA;
    for (uint64_t done = 0; done < len;) {
        uint64_t want = len - done < 1024 * MiB ? len - done : 1024 * MiB;
        ssize_t n = pread(f->fd, (char *)buf + done, want, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENODATA;
        done += (uint64_t)n;
    }
    return 0;
}

/* ---- RAM --------------------------------------------------------------------------------------
 */

bool boot_range_free(const struct guest_ram *ram, const struct boot_config *cfg, uint64_t addr,
                     uint64_t size)
{
    if (addr < BOOT_HIGH_START || addr >= ram->low_size || size > ram->low_size - addr)
        return false;
    for (unsigned i = 0; i < cfg->ne820; i++) {
        const struct boot_e820_entry *e = &cfg->e820[i];
        if (e->type == E820_RAM && addr >= e->addr && addr - e->addr < e->size)
            return size <= e->size - (addr - e->addr);
    }
    return false;
}

int boot_clear_ram(struct guest_ram *ram, const struct boot_e820_entry *e820, unsigned ne820)
{
    for (unsigned i = 0; i < ne820; i++) {
        /* Whole pages only; a partial page at an edge is shared with what must stay. */
        uint64_t start = (e820[i].addr + GUEST_PAGE_SIZE - 1) & -(uint64_t)GUEST_PAGE_SIZE;
        uint64_t end = (e820[i].addr + e820[i].size) & -(uint64_t)GUEST_PAGE_SIZE;
        if (start < BOOT_GDT)
            start = BOOT_GDT; /* the first page holds the BIOS data area, which is the machine's */
        if (e820[i].type != E820_RAM || start >= end)
            continue;
        if (!ram_contains(ram, start, end - start))
            return -EFAULT;
        for (uint64_t p = start; p < end; p += GUEST_PAGE_SIZE)
            ram_before_write(ram, p, GUEST_PAGE_SIZE);
        if (fallocate(ram->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)ram_file_offset(ram, start), (off_t)(end - start)))
            return -errno;
    }
    return 0;
}

int boot_read_to_ram(struct guest_ram *ram, const struct image_file *f, uint64_t offset,
                     uint64_t gpa, uint64_t len)
{
    if (!len)
        return 0;
    if (!ram_contains(ram, gpa, len))
        return -EFAULT;
    ram_before_write(ram, gpa, len);
    return image_read(f, offset, ram->base + gpa, len);
}

/* ---- boot_params ------------------------------------------------------------------------------
 */

static int place_cmdline(struct guest_ram *ram, const struct boot_config *cfg,
                         const struct loaded_kernel *k, struct boot_params *bp, char *err,
                         size_t errlen)
{
    const char *cmdline = cfg->cmdline ? cfg->cmdline : "";
    uint64_t len = strlen(cmdline);
    uint64_t max = k->cmdline_max < BOOT_CMDLINE_MAX - 1 ? k->cmdline_max : BOOT_CMDLINE_MAX - 1;

    if (len > max)
        return fail_with(err, errlen, -E2BIG,
                         "the kernel command line has %llu bytes and %s takes at most %llu: "
                         "shorten --append",
                         (unsigned long long)len, cfg->kernel->path, (unsigned long long)max);
    bp->hdr.cmd_line_ptr = BOOT_CMDLINE;
    /* The header's own limit stays: memtest86+ takes no more than that many bytes, with the
     * terminating zero.  An ELF image came without a header. */
    if (!bp->hdr.cmdline_size)
        bp->hdr.cmdline_size = BOOT_CMDLINE_MAX - 1;
    return ram_write(ram, BOOT_CMDLINE, cmdline, len + 1);
}

/* As high as the kernel and the reserved ranges allow: that is where it is least in the way of the
 * kernel's own early choices (decompression, KASLR). */
static int place_initrd(struct guest_ram *ram, const struct boot_config *cfg,
                        const struct loaded_kernel *k, struct boot_params *bp,
                        struct boot_entry *out, char *err, size_t errlen)
{
    const struct image_file *f = cfg->initrd;
    uint64_t top = ram->low_size;
    uint64_t floor = k->end > BOOT_HIGH_START ? k->end : BOOT_HIGH_START;

    if (k->initrd_addr_max < top)
        top = k->initrd_addr_max + 1;
    /* From the highest RAM entry down. */
    for (unsigned i = cfg->ne820; i-- > 0;) {
        const struct boot_e820_entry *e = &cfg->e820[i];
        uint64_t end = e->addr + e->size < top ? e->addr + e->size : top;
        if (e->type != E820_RAM || end < f->size)
            continue;
        uint64_t addr = (end - f->size) & -(uint64_t)GUEST_PAGE_SIZE;
        if (addr < floor || !boot_range_free(ram, cfg, addr, f->size))
            continue;
        int code = boot_read_to_ram(ram, f, 0, addr, f->size);
        if (code)
            return fail_with(err, errlen, code, "cannot read the initrd %s: %s", f->path,
                             code == -ENODATA ? "it shrank while being read" : strerror(-code));
        bp->hdr.ramdisk_image = (uint32_t)addr;
        bp->hdr.ramdisk_size = (uint32_t)f->size;
        out->initrd_start = addr;
        out->initrd_size = f->size;
        return 0;
    }
    return fail_with(err, errlen, -ENOSPC,
                     "the initrd %s (%llu MiB) does not fit in %llu MiB of guest memory beside "
                     "the kernel: give more --memory",
                     f->path, (unsigned long long)((f->size + MiB - 1) / MiB),
                     (unsigned long long)(ram->size / MiB));
}

/* boot.rst, "struct setup_data": seeds the guest's random number generator, so that it need not
 * wait for entropy. */
static int place_rng_seed(struct guest_ram *ram, const struct boot_config *cfg,
                          struct boot_params *bp)
{
    struct setup_data head = {
        .next = bp->hdr.setup_data, .type = SETUP_RNG_SEED, .len = cfg->rng_seed_len};
    uint8_t node[sizeof(head) + 64];

    if (!cfg->rng_seed || !cfg->rng_seed_len)
        return 0;
    if (cfg->rng_seed_len > sizeof(node) - sizeof(head))
        return -EINVAL;
    memcpy(node, &head, sizeof(head));
    memcpy(node + sizeof(head), cfg->rng_seed, cfg->rng_seed_len);
    bp->hdr.setup_data = BOOT_SETUP_DATA;
    return ram_write(ram, BOOT_SETUP_DATA, node, sizeof(head) + cfg->rng_seed_len);
}

/* ---- CPU tables -------------------------------------------------------------------------------
 */

static int write_gdt(struct guest_ram *ram, bool code32)
{
    /* Flat code, 64-bit or 32-bit, and flat data, accessed bit set (SDM vol. 3, 3.4.5). */
    const uint64_t gdt[4] = {0, 0, [BOOT_CS / 8] = code32 ? 0x00cf9b000000ffff : 0x00af9b000000ffff,
                             [BOOT_DS / 8] = 0x00cf93000000ffff};

    return ram_write(ram, BOOT_GDT, gdt, sizeof(gdt));
}

/* Identity-maps the first 4 GiB with 2 MiB pages (SDM vol. 3, 4.5). */
static int write_page_tables(struct guest_ram *ram)
{
    enum { P = 1, W = 2, A = 1 << 5, D = 1 << 6, PS = 1 << 7 };
    uint64_t table[512] = {0};
    int code;

    table[0] = (BOOT_PAGE_TABLES + 0x1000) | P | W | A;
    code = ram_write(ram, BOOT_PAGE_TABLES, table, sizeof(table));
    for (uint64_t i = 0; i < 4; i++)
        table[i] = (BOOT_PAGE_TABLES + 0x2000 + i * 0x1000) | P | W | A;
    if (!code)
        code = ram_write(ram, BOOT_PAGE_TABLES + 0x1000, table, sizeof(table));
    for (uint64_t i = 0; i < 4 && !code; i++) {
        for (uint64_t j = 0; j < 512; j++)
            table[j] = (i << 30) | (j << 21) | P | W | A | D | PS;
        code = ram_write(ram, BOOT_PAGE_TABLES + 0x2000 + i * 0x1000, table, sizeof(table));
    }
    return code;
}
_Static_assert(BOOT_PAGE_TABLES + 6 * 0x1000 == BOOT_PAGE_TABLES_END, "page table area");

/* ---- Boot information of the protocols with modules --------------------------------------------
 */

int boot_info_put(struct guest_ram *ram, struct boot_info_area *area, const void *data,
                  uint64_t len, uint32_t align, uint32_t *gpa)
{
    uint32_t at = ((area->next ? area->next : BOOT_INFO) + align - 1) & -align;

    if (at > BOOT_INFO_END || len > BOOT_INFO_END - at)
        return -ENOSPC;
    area->next = at + (uint32_t)len;
    *gpa = at;
    return data ? ram_write(ram, at, data, len) : 0;
}

int boot_place_modules(struct guest_ram *ram, const struct boot_config *cfg, uint64_t floor,
                       uint32_t start[BOOT_MODULES_MAX], uint32_t end[BOOT_MODULES_MAX], char *err,
                       size_t errlen)
{
    uint64_t at = floor;

    for (unsigned i = 0; i < cfg->nmodules && i < BOOT_MODULES_MAX; i++) {
        const struct image_file *f = &cfg->modules[i].file;
        at = (at + GUEST_PAGE_SIZE - 1) & -(uint64_t)GUEST_PAGE_SIZE;
        if (!boot_range_free(ram, cfg, at, f->size))
            return fail_with(err, errlen, -ENOSPC,
                             "the module %s (%llu MiB) does not fit in %llu MiB of guest memory "
                             "beside the kernel: give more --memory",
                             f->path, (unsigned long long)((f->size + MiB - 1) / MiB),
                             (unsigned long long)(ram->size / MiB));
        int code = boot_read_to_ram(ram, f, 0, at, f->size);
        if (code)
            return fail_with(err, errlen, code, "cannot read the module %s: %s", f->path,
                             code == -ENODATA ? "it shrank while being read" : strerror(-code));
        start[i] = (uint32_t)at;
        at += f->size;
        end[i] = (uint32_t)at;
    }
    return 0;
}

void boot_memory_sizes(const struct boot_config *cfg, uint32_t *lower, uint32_t *upper)
{
    *lower = *upper = 0;
    for (unsigned i = 0; i < cfg->ne820; i++) {
        const struct boot_e820_entry *e = &cfg->e820[i];
        if (e->type == E820_RAM && e->addr == 0)
            *lower = (uint32_t)(e->size / 1024 < 640 ? e->size / 1024 : 640);
        if (e->type == E820_RAM && e->addr == BOOT_HIGH_START)
            *upper = (uint32_t)(e->size / 1024);
    }
}

/* ---- The whole --------------------------------------------------------------------------------
 */

static bool has_magic(const uint8_t *head, uint64_t len, const char *magic, uint64_t mlen)
{
    return len >= mlen && !memcmp(head, magic, mlen);
}

/* What people hand over by mistake, and what to do about each. */
static int refuse_unknown(const struct image_file *f, const uint8_t *head, uint64_t len, char *err,
                          size_t errlen)
{
    static const struct {
        const char *magic;
        uint8_t len;
        const char *name;
    } packed[] = {
        {"\x1f\x8b", 2, "gzip"},
        {"\xfd"
         "7zXZ",
         5, "xz"},
        {"BZh", 3, "bzip2"},
        {"\x28\xb5\x2f\xfd", 4, "zstd"},
        {"\x02\x21\x4c\x18", 4, "lz4"},
        {"\x04\x22\x4d\x18", 4, "lz4"},
        {"\x89LZO", 4, "lzo"},
        {"\x5d\x00\x00", 3, "lzma"},
    };

    for (unsigned i = 0; i < sizeof(packed) / sizeof(packed[0]); i++)
        if (has_magic(head, len, packed[i].magic, packed[i].len))
            return fail_with(err, errlen, -ENOEXEC,
                             "%s is %s-compressed: give the bzImage (vmlinuz) or the "
                             "uncompressed vmlinux",
                             f->path, packed[i].name);
    if (has_magic(head, len, "070701", 6))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is a cpio archive, not a kernel: pass it with --initrd", f->path);
    if (has_magic(head, len, "!<arch>", 7))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is a package or archive, not a kernel: unpack it first", f->path);
    if (len >= 0x40 && !memcmp(head + 56, "ARM\x64", 4))
        return fail_with(err, errlen, -ENOEXEC, "%s is a kernel for ARM64, not for x86-64",
                         f->path);
    if (has_magic(head, len, "MZ", 2))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is an EFI program without the Linux x86 boot header: give a bzImage "
                         "or an ELF kernel",
                         f->path);
    return fail_with(err, errlen, -ENOEXEC,
                     "%s is in no format that is known: it has neither a Linux boot header nor a "
                     "multiboot header nor a boot sector's signature, and is no ELF image; "
                     "--kernel-format flat starts anything",
                     f->path);
}

static bool low_area_usable(const struct boot_config *cfg)
{
    for (unsigned i = 0; i < cfg->ne820; i++) {
        const struct boot_e820_entry *e = &cfg->e820[i];
        if (e->type == E820_RAM && e->addr <= BOOT_GDT && e->addr + e->size >= BOOT_LOW_END)
            return true;
    }
    return false;
}

const char *const boot_format_names[BOOT_FORMATS] = {
    [BOOT_AUTO] = "auto",
    [BOOT_LINUX] = "linux",
    [BOOT_LINUX32] = "linux32",
    [BOOT_ELF] = "elf",
    [BOOT_PVH] = "pvh",
    [BOOT_MULTIBOOT] = "multiboot",
    [BOOT_MULTIBOOT2] = "multiboot2",
    [BOOT_FLAT] = "flat",
    [BOOT_SECTOR] = "bootsector",
};

int boot_detect(const struct image_file *kernel, enum boot_format wanted, enum boot_format *out,
                char *err, size_t errlen)
{
    uint8_t head[0x206] = {0};
    uint64_t len = kernel->size < sizeof(head) ? kernel->size : sizeof(head);
    int code = image_read(kernel, 0, head, len);
    bool elf = has_magic(head, len, "\177ELF", 4);
    bool linux_header = len == sizeof(head) && !memcmp(head + 0x202, "HdrS", 4);
    bool is64 = false;

    *out = wanted;
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", kernel->path, strerror(-code));
    switch (wanted) {
    case BOOT_AUTO:
        break;
    case BOOT_LINUX:
    case BOOT_LINUX32:
        return linux_header
                   ? 0
                   : fail_with(err, errlen, -ENOEXEC,
                               "%s is no bzImage: it has no Linux boot header", kernel->path);
    case BOOT_ELF:
    case BOOT_PVH:
        return elf ? 0 : fail_with(err, errlen, -ENOEXEC, "%s is no ELF image", kernel->path);
    case BOOT_MULTIBOOT:
        return multiboot_present(kernel)
                   ? 0
                   : fail_with(err, errlen, -ENOEXEC,
                               "%s has no multiboot header in its first 8192 bytes", kernel->path);
    case BOOT_MULTIBOOT2:
        return multiboot2_present(kernel)
                   ? 0
                   : fail_with(err, errlen, -ENOEXEC,
                               "%s has no multiboot2 header in its first 32768 bytes",
                               kernel->path);
    default:
        return 0;
    }

    /* A Linux header goes first: such a file also is a boot sector, and may be multiboot. */
    if (linux_header)
        *out = BOOT_LINUX;
    else if (multiboot2_present(kernel))
        *out = BOOT_MULTIBOOT2;
    else if (multiboot_present(kernel))
        *out = BOOT_MULTIBOOT;
    else if (elf)
        *out = elf_has_pvh(kernel, &is64) && !is64 ? BOOT_PVH : BOOT_ELF;
    else if (len >= 512 && head[510] == 0x55 && head[511] == 0xaa) {
        if (kernel->size > BOOT_SECTOR_END - BOOT_SECTOR_ADDR)
            return fail_with(err, errlen, -EFBIG,
                             "%s begins with a boot sector and is too large to be all loaded at "
                             "0x7c00: give a disk image with --disk",
                             kernel->path);
        *out = BOOT_SECTOR;
    } else
        return refuse_unknown(kernel, head, len, err, errlen);
    return 0;
}

/* The formats that Linux knows: boot_params, and an initrd. */
static int linux_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                      char *err, size_t errlen)
{
    struct loaded_kernel k = {0};
    struct boot_params bp;

    _Static_assert(sizeof(bp) == 4096, "boot_params is the zero page");
    memset(&bp, 0, sizeof(bp));
    int code = cfg->format == BOOT_ELF ? elf_load(ram, cfg, &bp, &k, err, errlen)
                                       : bzimage_load(ram, cfg, &bp, &k, err, errlen);
    if (!code)
        code = place_cmdline(ram, cfg, &k, &bp, err, errlen);
    if (!code && cfg->initrd)
        code = place_initrd(ram, cfg, &k, &bp, out, err, errlen);
    if (code)
        return code;
    for (unsigned i = 0; i < cfg->ne820 && i < E820_MAX_ENTRIES_ZEROPAGE; i++)
        bp.e820_table[bp.e820_entries++] = cfg->e820[i];
    bp.acpi_rsdp_addr = cfg->acpi_rsdp;
    if (cfg->screen)
        bp.screen_info = *cfg->screen;
    bp.hdr.type_of_loader = 0xff; /* boot.rst: "undefined" */
    if (cfg->vga_text) {          /* what setup would have asked the BIOS */
        bp.screen_info.orig_video_mode = 3;
        bp.screen_info.orig_video_cols = 80;
        bp.screen_info.orig_video_lines = 25;
        bp.screen_info.orig_video_isVGA = 1; /* VIDEO_TYPE_VGAC */
        bp.screen_info.orig_video_points = 16;
    }
    code = bp.hdr.version >= 0x0209 ? place_rng_seed(ram, cfg, &bp) : 0;
    if (!code)
        code = ram_write(ram, BOOT_PARAMS, &bp, sizeof(bp));
    if (!code && !k.entry32)
        code = write_page_tables(ram);
    if (code)
        return fail_with(err, errlen, code, "cannot write the boot tables: %s", strerror(-code));
    out->start = k.entry32 ? BOOT_START_PROT32 : BOOT_START_LONG64;
    out->rip = k.entry;
    out->rsi = BOOT_PARAMS;
    out->rsp = BOOT_STACK_TOP;
    out->cr3 = k.entry32 ? 0 : BOOT_PAGE_TABLES;
    out->kernel_start = k.start;
    out->kernel_end = k.end;
    return 0;
}

int boot_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
              char *err, size_t errlen)
{
    static int (*const loaders[BOOT_FORMATS])(struct guest_ram *, const struct boot_config *,
                                              struct boot_entry *, char *, size_t) = {
        [BOOT_LINUX] = linux_load,         [BOOT_LINUX32] = linux_load,
        [BOOT_ELF] = linux_load,           [BOOT_PVH] = pvh_load,
        [BOOT_MULTIBOOT] = multiboot_load, [BOOT_MULTIBOOT2] = multiboot2_load,
        [BOOT_FLAT] = flat_load,           [BOOT_SECTOR] = boot_sector_load,
    };

    *out = (struct boot_entry){0};
    if ((unsigned)cfg->format >= BOOT_FORMATS || !loaders[cfg->format])
        return fail_with(err, errlen, -EINVAL, "%s was given no boot format", cfg->kernel->path);
    if (!low_area_usable(cfg))
        return fail_with(err, errlen, -EINVAL,
                         "the machine's memory map leaves no room for the boot tables");
    int code = loaders[cfg->format](ram, cfg, out, err, errlen);
    if (code)
        return code;
    if (out->start == BOOT_START_REAL)
        return 0;
    code = write_gdt(ram, out->start == BOOT_START_PROT32);
    if (code)
        return fail_with(err, errlen, code, "cannot write the boot GDT: %s", strerror(-code));
    out->gdt_base = BOOT_GDT;
    out->gdt_limit = BOOT_GDT_LIMIT;
    out->cs = BOOT_CS;
    out->ds = BOOT_DS;
    return 0;
}
