/*
 * Multiboot2 (Multiboot2 Specification 2.0).  A header of tags within the first 32768 bytes says
 * what the kernel wants; what it gets is a list of tags, too.  The machine state at the entry is
 * that of multiboot 1 but for the magic number.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <string.h>

#define HEADER_MAGIC 0xe85250d6u
#define ENTRY_MAGIC  0x36d76289u

enum {
    HEADER_SEARCH = 32768,
    ARCH_I386 = 0,
    TAG_OPTIONAL = 1,
    /* header tags (3.1) */
    HDR_END = 0,
    HDR_INFO_REQUEST = 1,
    HDR_ADDRESS = 2,
    HDR_ENTRY = 3,
    HDR_CONSOLE = 4,
    HDR_FRAMEBUFFER = 5,
    HDR_MODULE_ALIGN = 6,
    HDR_EFI_BOOT_SERVICES = 7,
    HDR_ENTRY_EFI32 = 8,
    HDR_ENTRY_EFI64 = 9,
    HDR_RELOCATABLE = 10,
    /* information tags (3.4) */
    INFO_END = 0,
    INFO_CMDLINE = 1,
    INFO_LOADER_NAME = 2,
    INFO_MODULE = 3,
    INFO_MEMORY = 4,
    INFO_BIOS_DEVICE = 5,
    INFO_MMAP = 6,
    INFO_FRAMEBUFFER = 8,
    INFO_ACPI_NEW = 15,
    INFO_LOAD_BASE = 21,
    INFO_REQUEST_MAX = 64,
    FRAMEBUFFER_TEXT = 2,
    CONSOLE_REQUIRED = 1,
    RSDP_SIZE = 36,
};

struct header {
    uint32_t magic, architecture, length, checksum;
};
struct tag {
    uint16_t type, flags;
    uint32_t size;
};

/* What the header's tags said. */
struct wishes {
    bool has_addresses, has_entry;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

/* Finds a header with a right checksum, 8-byte aligned.  Its offset, or -1. */
static int find_header(const struct image_file *f, uint8_t buf[HEADER_SEARCH], uint32_t *buflen,
                       struct header *h)
{
    uint64_t len = f->size < HEADER_SEARCH ? f->size : HEADER_SEARCH;

    *buflen = (uint32_t)len;
    if (image_read(f, 0, buf, len))
        return -1;
    for (uint64_t at = 0; at + sizeof(*h) <= len; at += 8) {
        memcpy(h, buf + at, sizeof(*h));
        if (h->magic == HEADER_MAGIC && h->architecture == ARCH_I386 &&
            !(uint32_t)(h->magic + h->architecture + h->length + h->checksum))
            return (int)at;
    }
    return -1;
}

bool multiboot2_present(const struct image_file *f)
{
    uint8_t buf[HEADER_SEARCH];
    struct header h;
    uint32_t len;
    return find_header(f, buf, &len, &h) >= 0;
}

static bool info_known(uint32_t type, const struct boot_config *cfg)
{
    switch (type) {
    case INFO_CMDLINE:
    case INFO_LOADER_NAME:
    case INFO_MODULE:
    case INFO_MEMORY:
    case INFO_MMAP:
    case INFO_LOAD_BASE:
        return true;
    case INFO_FRAMEBUFFER:
        return cfg->vga_text;
    case INFO_ACPI_NEW:
        return cfg->acpi_rsdp != 0;
    default:
        return false;
    }
}

static int read_tags(const struct boot_config *cfg, const uint8_t *at, uint32_t len,
                     struct wishes *w, char *err, size_t errlen)
{
    const char *path = cfg->kernel->path;

    *w = (struct wishes){0};
    for (uint32_t pos = 0; pos + sizeof(struct tag) <= len;) {
        struct tag t;
        uint32_t words[INFO_REQUEST_MAX] = {0};
        memcpy(&t, at + pos, sizeof(t));
        if (t.type == HDR_END)
            return 0;
        if (t.size < sizeof(t) || t.size > len - pos)
            return fail_with(err, errlen, -ENOEXEC,
                             "%s has a broken multiboot2 header: tag %u is %u bytes long", path,
                             t.type, t.size);
        uint32_t n = (t.size - (uint32_t)sizeof(t)) / 4;
        n = n < INFO_REQUEST_MAX ? n : INFO_REQUEST_MAX;
        memcpy(words, at + pos + sizeof(t), n * 4);
        bool optional = t.flags & TAG_OPTIONAL, short_tag = false;
        switch (t.type) {
        case HDR_INFO_REQUEST:
            for (uint32_t i = 0; i < n && !optional; i++)
                if (!info_known(words[i], cfg))
                    return fail_with(err, errlen, -ENOTSUP,
                                     "%s requires the multiboot2 information %u, which is not "
                                     "known here",
                                     path, words[i]);
            break;
        case HDR_ADDRESS:
            short_tag = n < 4;
            w->has_addresses = true;
            w->header_addr = words[0];
            w->load_addr = words[1];
            w->load_end_addr = words[2];
            w->bss_end_addr = words[3];
            break;
        case HDR_ENTRY:
            short_tag = n < 1;
            w->has_entry = true;
            w->entry_addr = words[0];
            break;
        case HDR_CONSOLE:
        case HDR_FRAMEBUFFER:  /* a wish: the tag says what there is */
        case HDR_MODULE_ALIGN: /* always done */
        case HDR_EFI_BOOT_SERVICES:
        case HDR_ENTRY_EFI32: /* for loaders that EFI started */
        case HDR_ENTRY_EFI64:
        case HDR_RELOCATABLE: /* may, not must */
            break;
        default:
            if (!optional)
                return fail_with(err, errlen, -ENOTSUP,
                                 "%s requires the multiboot2 feature %u, which is not known here",
                                 path, t.type);
        }
        if (short_tag)
            return fail_with(err, errlen, -ENOEXEC,
                             "%s has a broken multiboot2 header: tag %u is %u bytes long", path,
                             t.type, t.size);
        if (t.size > UINT32_MAX - 7 || ((t.size + 7) & ~7u) > len - pos)
            break;
        pos += (t.size + 7) & ~7u;
    }
    return fail_with(err, errlen, -ENOEXEC, "%s has a multiboot2 header without an end tag", path);
}

/* 3.1.5, the address tag. */
static int load_addresses(struct guest_ram *ram, const struct boot_config *cfg,
                          const struct wishes *w, uint32_t header_offset, struct elf_image *out,
                          char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;
    bool whole = w->load_addr == UINT32_MAX; /* from the file's beginning */
    uint32_t before = whole ? header_offset : w->header_addr - w->load_addr;

    if ((!whole && w->header_addr < w->load_addr) || before > header_offset ||
        w->header_addr < before)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s wants its header at 0x%x and its start at 0x%x, which its file "
                         "cannot give",
                         f->path, w->header_addr, w->load_addr);
    uint32_t load = w->header_addr - before, offset = header_offset - before;
    if (w->load_end_addr && w->load_end_addr < load)
        return fail_with(err, errlen, -ENOEXEC, "%s ends at 0x%x, before its start at 0x%x",
                         f->path, w->load_end_addr, load);
    uint64_t size = w->load_end_addr ? w->load_end_addr - load : f->size - offset;
    if (size > f->size - offset)
        return fail_with(err, errlen, -ENODATA,
                         "%s is cut short: it declares %llu bytes and holds %llu", f->path,
                         (unsigned long long)size, (unsigned long long)(f->size - offset));
    uint64_t end = load + size;
    if (w->bss_end_addr && w->bss_end_addr < end)
        return fail_with(err, errlen, -ENOEXEC, "%s ends its bss at 0x%x, inside its data", f->path,
                         w->bss_end_addr);
    if (w->bss_end_addr)
        end = w->bss_end_addr;
    if (load < BOOT_HIGH_START)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s wants to be loaded at 0x%x; below 1 MiB is not available", f->path,
                         load);
    if (!boot_range_free(ram, cfg, load, end - load))
        return fail_with(err, errlen, -ENOSPC,
                         "%s needs 0x%llx bytes at 0x%x, outside the %llu MiB of guest memory: "
                         "give more --memory",
                         f->path, (unsigned long long)(end - load), load,
                         (unsigned long long)(ram->size >> 20));
    int code = boot_read_to_ram(ram, f, offset, load, size);
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", f->path,
                         code == -ENODATA ? "it shrank while being read" : strerror(-code));
    *out = (struct elf_image){.start = load, .end = end};
    return 0;
}

/* Appends one tag; 0 or -ENOSPC. */
static int put_tag(struct guest_ram *ram, struct boot_info_area *area, uint16_t type, const void *a,
                   uint64_t alen, const void *b, uint64_t blen)
{
    uint32_t at, ignored;
    struct {
        uint32_t type, size;
    } head = {type, (uint32_t)(sizeof(head) + alen + blen)};
    int code = boot_info_put(ram, area, &head, sizeof(head), 8, &at);

    if (!code && alen)
        code = boot_info_put(ram, area, a, alen, 1, &ignored);
    if (!code && blen)
        code = boot_info_put(ram, area, b, blen, 1, &ignored);
    return code;
}

static int put_info(struct guest_ram *ram, const struct boot_config *cfg,
                    const struct elf_image *image, const uint32_t *start, const uint32_t *end,
                    uint32_t *gpa)
{
    struct boot_info_area area = {0};
    const char *cmdline = cfg->cmdline ? cfg->cmdline : "";
    uint32_t sizes[2], load_base = (uint32_t)image->start;
    struct {
        uint64_t addr, len;
        uint32_t type, zero;
    } map[64] = {0};
    uint32_t map_head[2] = {sizeof(map[0]), 0}, total[2] = {0}, at;
    unsigned n = cfg->ne820 < 64 ? cfg->ne820 : 64;
    int code = boot_info_put(ram, &area, total, sizeof(total), 8, gpa);

    boot_memory_sizes(cfg, &sizes[0], &sizes[1]);
    if (!code)
        code = put_tag(ram, &area, INFO_CMDLINE, cmdline, strlen(cmdline) + 1, NULL, 0);
    if (!code)
        code = put_tag(ram, &area, INFO_LOADER_NAME, "Ringshift", 10, NULL, 0);
    for (unsigned i = 0; i < cfg->nmodules && !code; i++) {
        const char *args = cfg->modules[i].args;
        uint32_t range[2] = {start[i], end[i]};
        code = put_tag(ram, &area, INFO_MODULE, range, sizeof(range), args, strlen(args) + 1);
    }
    if (!code)
        code = put_tag(ram, &area, INFO_MEMORY, sizes, sizeof(sizes), NULL, 0);
    for (unsigned i = 0; i < n; i++) {
        map[i].addr = cfg->e820[i].addr;
        map[i].len = cfg->e820[i].size;
        map[i].type = cfg->e820[i].type;
    }
    if (!code)
        code = put_tag(ram, &area, INFO_MMAP, map_head, sizeof(map_head), map, n * sizeof(map[0]));
    if (!code && cfg->vga_text) {
        struct {
            uint64_t addr;
            uint32_t pitch, width, height;
            uint8_t bpp, type;
            uint16_t reserved;
        } fb = {0xb8000, 160, 80, 25, 16, FRAMEBUFFER_TEXT, 0};
        code = put_tag(ram, &area, INFO_FRAMEBUFFER, &fb, 24, NULL, 0);
    }
    if (!code && cfg->acpi_rsdp) {
        uint8_t rsdp[RSDP_SIZE];
        code = ram_read(ram, cfg->acpi_rsdp, rsdp, sizeof(rsdp));
        if (!code)
            code = put_tag(ram, &area, INFO_ACPI_NEW, rsdp, sizeof(rsdp), NULL, 0);
    }
    if (!code)
        code = put_tag(ram, &area, INFO_LOAD_BASE, &load_base, 4, NULL, 0);
    if (!code)
        code = put_tag(ram, &area, INFO_END, NULL, 0, NULL, 0);
    if (!code)
        code = boot_info_put(ram, &area, NULL, 0, 8, &at);
    if (code)
        return code;
    total[0] = at - *gpa;
    return ram_write(ram, *gpa, total, sizeof(total));
}

int multiboot2_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                    char *err, size_t errlen)
{
    uint32_t start[BOOT_MODULES_MAX], end[BOOT_MODULES_MAX], info = 0, len = 0;
    uint8_t buf[HEADER_SEARCH];
    struct elf_image image;
    struct wishes w;
    struct header h;
    int offset = find_header(cfg->kernel, buf, &len, &h);

    if (offset < 0)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s has no multiboot2 header in its first 32768 bytes", cfg->kernel->path);
    if (h.length < sizeof(h) || h.length > len - (uint32_t)offset)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s has a multiboot2 header of %u bytes, which does not end within its "
                         "first 32768 bytes",
                         cfg->kernel->path, h.length);
    int code =
        read_tags(cfg, buf + offset + sizeof(h), h.length - (uint32_t)sizeof(h), &w, err, errlen);
    if (!code)
        code = w.has_addresses ? load_addresses(ram, cfg, &w, (uint32_t)offset, &image, err, errlen)
                               : elf_load_segments(ram, cfg, &image, err, errlen);
    if (code)
        return code;
    if (w.has_entry)
        image.entry = w.entry_addr;
    if (image.entry < image.start || image.entry >= image.end)
        return fail_with(err, errlen, -ENOEXEC, "%s has its entry point 0x%llx outside its image",
                         cfg->kernel->path, (unsigned long long)image.entry);
    code = boot_place_modules(ram, cfg, image.end, start, end, err, errlen);
    if (code)
        return code;
    code = put_info(ram, cfg, &image, start, end, &info);
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
