/*
 * Multiboot 1 (Multiboot Specification 0.6.96).  A header within the first 8192 bytes says what the
 * kernel wants; the image is ELF (either class: the entry is a 32-bit one), or the header holds
 * the addresses itself (the "a.out kludge").
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <string.h>

#define HEADER_MAGIC 0x1badb002u
#define ENTRY_MAGIC  0x2badb002u

enum {
    HEADER_SEARCH = 8192,
    /* header flags */
    WANT_PAGE_ALIGN = 1u << 0,
    WANT_MEMORY = 1u << 1,
    WANT_VIDEO = 1u << 2,
    HAS_ADDRESSES = 1u << 16,
    REQUIRED_KNOWN = WANT_PAGE_ALIGN | WANT_MEMORY | WANT_VIDEO,
    /* information flags */
    INFO_MEMORY = 1u << 0,
    INFO_CMDLINE = 1u << 2,
    INFO_MODS = 1u << 3,
    INFO_MMAP = 1u << 6,
    INFO_LOADER_NAME = 1u << 9,
    INFO_FRAMEBUFFER = 1u << 12,
    FRAMEBUFFER_TEXT = 2,
};

struct header {
    uint32_t magic, flags, checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
    uint32_t mode_type, width, height, depth;
};

struct info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name,
        apm_table;
    uint32_t vbe[4];
    uint64_t framebuffer_addr;
    uint32_t framebuffer_pitch, framebuffer_width, framebuffer_height;
    uint8_t framebuffer_bpp, framebuffer_type, color_info[6];
} __attribute__((packed, aligned(4)));
_Static_assert(sizeof(struct info) == 116, "3.3, Boot information format");

struct mod {
    uint32_t start, end, string, reserved;
};
struct mmap_entry {
    uint32_t size;
    uint64_t addr, len;
    uint32_t type;
} __attribute__((packed));

/* Finds the header: 4-byte aligned, and the three words sum up to 0.  Its offset, or -1. */
static int find_header(const struct image_file *f, struct header *h)
{
    uint8_t buf[HEADER_SEARCH];
    uint64_t len = f->size < sizeof(buf) ? f->size : sizeof(buf);

    if (image_read(f, 0, buf, len))
        return -1;
    for (uint64_t at = 0; at + 12 <= len; at += 4) {
        memset(h, 0, sizeof(*h));
        memcpy(h, buf + at, 12);
        if (h->magic != HEADER_MAGIC || h->magic + h->flags + h->checksum)
            continue;
        uint64_t n = len - at < sizeof(*h) ? len - at : sizeof(*h);
        memcpy(h, buf + at, n);
        if ((h->flags & HAS_ADDRESSES) && n < 32)
            continue;
        return (int)at;
    }
    return -1;
}

bool multiboot_present(const struct image_file *f)
{
    struct header h;
    return find_header(f, &h) >= 0;
}

/* 3.1.3, the address fields of the header. */
static int load_kludge(struct guest_ram *ram, const struct boot_config *cfg, const struct header *h,
                       uint32_t header_offset, struct elf_image *out, char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;

    if (h->header_addr < h->load_addr || h->header_addr - h->load_addr > header_offset)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s wants its header at 0x%x and its start at 0x%x, which its file "
                         "cannot give",
                         f->path, h->header_addr, h->load_addr);
    uint32_t offset = header_offset - (h->header_addr - h->load_addr);
    if (h->load_end_addr && h->load_end_addr < h->load_addr)
        return fail_with(err, errlen, -ENOEXEC, "%s ends at 0x%x, before its start at 0x%x",
                         f->path, h->load_end_addr, h->load_addr);
    uint64_t size = h->load_end_addr ? h->load_end_addr - h->load_addr : f->size - offset;
    if (size > f->size - offset)
        return fail_with(err, errlen, -ENODATA,
                         "%s is cut short: it declares %llu bytes and holds %llu", f->path,
                         (unsigned long long)size, (unsigned long long)(f->size - offset));
    uint64_t end = h->load_addr + size;
    if (h->bss_end_addr && h->bss_end_addr < end)
        return fail_with(err, errlen, -ENOEXEC, "%s ends its bss at 0x%x, inside its data", f->path,
                         h->bss_end_addr);
    if (h->bss_end_addr)
        end = h->bss_end_addr;
    if (h->load_addr < BOOT_HIGH_START)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s wants to be loaded at 0x%x; below 1 MiB is not available", f->path,
                         h->load_addr);
    if (!boot_range_free(ram, cfg, h->load_addr, end - h->load_addr))
        return fail_with(err, errlen, -ENOSPC,
                         "%s needs 0x%llx bytes at 0x%x, outside the %llu MiB of guest memory: "
                         "give more --memory",
                         f->path, (unsigned long long)(end - h->load_addr), h->load_addr,
                         (unsigned long long)(ram->size >> 20));
    if (h->entry_addr < h->load_addr || h->entry_addr >= end)
        return fail_with(err, errlen, -ENOEXEC, "%s has its entry point 0x%x outside its image",
                         f->path, h->entry_addr);
    int code = boot_read_to_ram(ram, f, offset, h->load_addr, size);
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", f->path,
                         code == -ENODATA ? "it shrank while being read" : strerror(-code));
    *out = (struct elf_image){.entry = h->entry_addr, .start = h->load_addr, .end = end};
    return 0;
}

static int put_info(struct guest_ram *ram, const struct boot_config *cfg, const uint32_t *start,
                    const uint32_t *end, uint32_t *gpa)
{
    struct info info = {.flags =
                            INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER_NAME | INFO_MODS};
    struct boot_info_area area = {0};
    struct mod mods[BOOT_MODULES_MAX] = {0};
    const char *cmdline = cfg->cmdline ? cfg->cmdline : "";
    uint32_t at = 0;
    int code = boot_info_put(ram, &area, NULL, sizeof(info), 8, gpa);

    boot_memory_sizes(cfg, &info.mem_lower, &info.mem_upper);
    if (!code)
        code = boot_info_put(ram, &area, cmdline, strlen(cmdline) + 1, 1, &info.cmdline);
    if (!code)
        code = boot_info_put(ram, &area, "Ringshift", 10, 1, &info.boot_loader_name);
    for (unsigned i = 0; i < cfg->nmodules && !code; i++) {
        const char *args = cfg->modules[i].args;
        code = boot_info_put(ram, &area, args, strlen(args) + 1, 1, &at);
        mods[i] = (struct mod){.start = start[i], .end = end[i], .string = at};
    }
    if (!code && cfg->nmodules)
        code = boot_info_put(ram, &area, mods, cfg->nmodules * sizeof(mods[0]), 8, &info.mods_addr);
    info.mods_count = cfg->nmodules;
    for (unsigned i = 0; i < cfg->ne820 && !code; i++) {
        struct mmap_entry e = {sizeof(e) - 4, cfg->e820[i].addr, cfg->e820[i].size,
                               cfg->e820[i].type};
        code = boot_info_put(ram, &area, &e, sizeof(e), 4, &at);
        if (i == 0)
            info.mmap_addr = at;
        info.mmap_length += (uint32_t)sizeof(e);
    }
    if (cfg->vga_text) {
        info.flags |= INFO_FRAMEBUFFER;
        info.framebuffer_addr = 0xb8000;
        info.framebuffer_pitch = 160;
        info.framebuffer_width = 80;
        info.framebuffer_height = 25;
        info.framebuffer_bpp = 16;
        info.framebuffer_type = FRAMEBUFFER_TEXT;
    }
    return code ? code : ram_write(ram, *gpa, &info, sizeof(info));
}

int multiboot_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                   char *err, size_t errlen)
{
    uint32_t start[BOOT_MODULES_MAX], end[BOOT_MODULES_MAX], info = 0;
    struct elf_image image;
    struct header h;
    int offset = find_header(cfg->kernel, &h);

    if (offset < 0)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s has no multiboot header in its first 8192 bytes", cfg->kernel->path);
    if (h.flags & 0xffff & ~(uint32_t)REQUIRED_KNOWN)
        return fail_with(err, errlen, -ENOTSUP,
                         "%s requires multiboot features that are not known here (flags 0x%x)",
                         cfg->kernel->path, h.flags & 0xffff & ~(uint32_t)REQUIRED_KNOWN);
    int code = h.flags & HAS_ADDRESSES
                   ? load_kludge(ram, cfg, &h, (uint32_t)offset, &image, err, errlen)
                   : elf_load_segments(ram, cfg, &image, err, errlen);
    if (!code)
        code = boot_place_modules(ram, cfg, image.end, start, end, err, errlen);
    if (code)
        return code;
    code = put_info(ram, cfg, start, end, &info);
    if (code)
        return fail_with(err, errlen, code,
                         "the command lines of %s and its modules do not fit in 64 KiB: shorten "
                         "--append",
                         cfg->kernel->path);
    out->start = BOOT_START_PROT32;
    out->rip = image.entry;
    out->rax = ENTRY_MAGIC;
    out->rbx = info;
    out->rsp = BOOT_STACK_TOP;
    out->kernel_start = image.start;
    out->kernel_end = image.end;
    return 0;
}
