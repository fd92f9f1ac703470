/*
 * What all kernel formats share: opening files, recognising the format, boot_params with the e820
 * map, command line and initrd, and the GDT and page tables the 64-bit entry starts with.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MiB (1024ull * 1024)

/* ACPI 6.5, table 15.6: address range types, as e820 has them. */
enum { E820_RAM = 1 };

int boot_error(char *err, size_t errlen, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(err, errlen, format, ap);
    va_end(ap);
    return code;
}

/* ---- Files ------------------------------------------------------------------------------------
 */

/* Copies what can only be read once into a memory file. */
static int spool(struct image_file *f, int in)
{
    static const uint64_t limit = 4096 * MiB;
    char buf[65536];
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
        int code = n < 0 ? -errno : f->size + (uint64_t)n > limit ? -EFBIG : 0;
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

    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    *f = (struct image_file){.fd = -1, .path = path};
    if (fd < 0)
        return boot_error(err, errlen, -errno, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) < 0) {
        int code = -errno;
        close(fd);
        return boot_error(err, errlen, code, "cannot examine %s: %s", path, strerror(-code));
    }
    if (S_ISDIR(st.st_mode)) {
        close(fd);
        return boot_error(err, errlen, -EISDIR, "%s is a directory, not a file", path);
    }
    if (S_ISREG(st.st_mode)) {
        f->fd = fd;
        f->size = (uint64_t)st.st_size;
    } else {
        int code = spool(f, fd);
        close(fd);
        if (code)
            return boot_error(err, errlen, code, "cannot read %s: %s", path, strerror(-code));
    }
    if (f->size == 0) {
        image_close(f);
        return boot_error(err, errlen, -ENODATA, "%s is empty", path);
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
        return boot_error(err, errlen, -E2BIG,
                          "the kernel command line has %llu bytes and %s takes at most %llu: "
                          "shorten --append",
                          (unsigned long long)len, cfg->kernel->path, (unsigned long long)max);
    bp->hdr.cmd_line_ptr = BOOT_CMDLINE;
    bp->hdr.cmdline_size = (uint32_t)len;
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
            return boot_error(err, errlen, code, "cannot read the initrd %s: %s", f->path,
                              code == -ENODATA ? "it shrank while being read" : strerror(-code));
        bp->hdr.ramdisk_image = (uint32_t)addr;
        bp->hdr.ramdisk_size = (uint32_t)f->size;
        out->initrd_start = addr;
        out->initrd_size = f->size;
        return 0;
    }
    return boot_error(err, errlen, -ENOSPC,
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

static int write_gdt(struct guest_ram *ram)
{
    /* Flat 64-bit code and flat data, accessed bit set (SDM vol. 3, 3.4.5). */
    const uint64_t gdt[4] = {0, 0, [BOOT_CS / 8] = 0x00af9b000000ffff,
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
            return boot_error(err, errlen, -ENOEXEC,
                              "%s is %s-compressed: give the bzImage (vmlinuz) or the "
                              "uncompressed vmlinux",
                              f->path, packed[i].name);
    if (has_magic(head, len, "070701", 6))
        return boot_error(err, errlen, -ENOEXEC,
                          "%s is a cpio archive, not a kernel: pass it with --initrd", f->path);
    if (has_magic(head, len, "!<arch>", 7))
        return boot_error(err, errlen, -ENOEXEC,
                          "%s is a package or archive, not a kernel: unpack it first", f->path);
    if (len >= 0x40 && !memcmp(head + 56, "ARM\x64", 4))
        return boot_error(err, errlen, -ENOEXEC, "%s is a kernel for ARM64, not for x86-64",
                          f->path);
    if (has_magic(head, len, "MZ", 2))
        return boot_error(err, errlen, -ENOEXEC,
                          "%s is an EFI program without the Linux x86 boot header: give a bzImage "
                          "or an ELF64 kernel",
                          f->path);
    return boot_error(err, errlen, -ENOEXEC, "%s is neither a bzImage nor an ELF64 kernel image",
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

int boot_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
              char *err, size_t errlen)
{
    uint8_t head[0x206] = {0};
    uint64_t len = cfg->kernel->size < sizeof(head) ? cfg->kernel->size : sizeof(head);
    struct loaded_kernel k = {0};
    struct boot_params bp;
    int code = image_read(cfg->kernel, 0, head, len);

    _Static_assert(sizeof(bp) == 4096, "boot_params is the zero page");
    *out = (struct boot_entry){0};
    memset(&bp, 0, sizeof(bp));
    if (code)
        return boot_error(err, errlen, code, "cannot read %s: %s", cfg->kernel->path,
                          strerror(-code));
    if (!low_area_usable(cfg))
        return boot_error(err, errlen, -EINVAL,
                          "the machine's memory map leaves no room for the boot tables");
    if (has_magic(head, len, "\177ELF", 4))
        code = elf_load(ram, cfg, &bp, &k, err, errlen);
    else if (len == sizeof(head) && !memcmp(head + 0x202, "HdrS", 4))
        code = bzimage_load(ram, cfg, &bp, &k, err, errlen);
    else
        return refuse_unknown(cfg->kernel, head, len, err, errlen);
    if (code)
        return code;

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
    code = place_rng_seed(ram, cfg, &bp);
    if (!code)
        code = ram_write(ram, BOOT_PARAMS, &bp, sizeof(bp));
    if (!code)
        code = write_gdt(ram);
    if (!code)
        code = write_page_tables(ram);
    if (code)
        return boot_error(err, errlen, code, "cannot write the boot tables: %s", strerror(-code));

    out->rip = k.entry;
    out->rsi = BOOT_PARAMS;
    out->rsp = BOOT_STACK_TOP;
    out->cr3 = BOOT_PAGE_TABLES;
    out->gdt_base = BOOT_GDT;
    out->gdt_limit = BOOT_GDT_LIMIT;
    out->cs = BOOT_CS;
    out->ds = BOOT_DS;
    out->kernel_start = k.start;
    out->kernel_end = k.end;
    return 0;
}
