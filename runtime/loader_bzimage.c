/*
 * bzImage: Linux's own format (Documentation/arch/x86/boot.rst).  A file is a boot sector, the
 * real-mode setup code (skipped: it asks a BIOS for what we know) and the protected-mode kernel,
 * whose 32-bit entry point is its first byte and whose 64-bit entry point is 0x200 bytes into it.
 * A 64-bit kernel is entered by the latter, unless the 32-bit entry is asked for.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

enum {
    HEADER_OFFSET = 0x1f1,
    SECTOR = 512,
    ENTRY_64 = 0x200,
    VERSION_64 = 0x020c,      /* 2.12: xloadflags */
    VERSION_INIT = 0x020a,    /* 2.10: pref_address, init_size */
    VERSION_CMDLINE = 0x0206, /* 2.06: cmdline_size */
    VERSION_RELOC = 0x0205,   /* 2.05: relocatable_kernel, kernel_alignment */
    VERSION_INITRD = 0x0203,  /* 2.03: initrd_addr_max */
    VERSION_MIN = 0x0202,     /* 2.02: cmd_line_ptr (Linux 2.4) */
};

/*
 * Where the kernel goes: where it prefers, else the lowest aligned place above that is large
 * enough. Below it would not run: it unpacks itself to its preferred address at least (boot.rst,
 * "pref_address").
 */
static uint64_t choose_address(const struct guest_ram *ram, const struct boot_config *cfg,
                               const struct setup_header *h, uint64_t need)
{
    if (boot_range_free(ram, cfg, h->pref_address, need))
        return h->pref_address;
    if (!h->relocatable_kernel)
        return 0;
    uint64_t low = h->pref_address > BOOT_HIGH_START ? h->pref_address : BOOT_HIGH_START;
    for (uint64_t a = (low + h->kernel_alignment - 1) & -(uint64_t)h->kernel_alignment;
         a >= low && a < ram->low_size; a += h->kernel_alignment)
        if (boot_range_free(ram, cfg, a, need))
            return a;
    return 0;
}

int bzimage_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_params *bp,
                 struct loaded_kernel *out, char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;
    struct setup_header *h = &bp->hdr;
    uint8_t jump[2];
    int code = image_read(f, 0x200, jump, sizeof(jump));

    /* The header's length is in the jump that skips it (boot.rst, "jump"). */
    uint64_t len = code ? 0 : 0x202 + (uint64_t)jump[1] - HEADER_OFFSET;
    if (len > sizeof(*h))
        len = sizeof(*h);
    if (!code)
        code = image_read(f, HEADER_OFFSET, h, len);
    if (code)
        return fail_with(err, errlen, code, "%s is cut short inside its boot header", f->path);

    if (h->boot_flag != 0xaa55)
        return fail_with(err, errlen, -ENOEXEC, "%s has no boot sector signature", f->path);
    if (h->version < VERSION_MIN || len <= offsetof(struct setup_header, cmd_line_ptr))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s uses boot protocol %u.%02u; 2.02 or newer is needed (Linux 2.4)",
                         f->path, h->version >> 8, h->version & 0xff);
    if ((h->version >= VERSION_64 && len < offsetof(struct setup_header, handover_offset)) ||
        (h->version >= VERSION_INIT && len < offsetof(struct setup_header, init_size) + 4))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s has a boot header too short for its protocol %u.%02u", f->path,
                         h->version >> 8, h->version & 0xff);
    /* Fields that the version does not define are not the header's. */
    if (h->version < VERSION_64)
        h->xloadflags = 0;
    if (h->version < VERSION_INIT) {
        h->pref_address = BOOT_HIGH_START;
        h->init_size = 0;
    }
    if (h->version < VERSION_CMDLINE)
        h->cmdline_size = 255;
    if (h->version < VERSION_RELOC)
        h->relocatable_kernel = 0;
    if (h->version < VERSION_INITRD)
        h->initrd_addr_max = 0x37ffffff;
    out->entry32 = cfg->format == BOOT_LINUX32 || !(h->xloadflags & XLF_KERNEL_64);
    if (!(h->loadflags & LOADED_HIGH))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is a zImage that loads below 1 MiB; give a bzImage", f->path);
    if (h->relocatable_kernel &&
        (h->kernel_alignment < 0x1000 || (h->kernel_alignment & (h->kernel_alignment - 1))))
        return fail_with(err, errlen, -ENOEXEC, "%s asks for the invalid alignment 0x%x", f->path,
                         h->kernel_alignment);

    uint64_t setup = ((uint64_t)(h->setup_sects ? h->setup_sects : 4) + 1) * SECTOR;
    if (setup >= f->size)
        return fail_with(err, errlen, -ENODATA, "%s is cut short: it ends inside its setup code",
                         f->path);
    /* syssize counts 16-byte paragraphs; the file may be longer (signature) but not shorter. */
    uint64_t size = (uint64_t)h->syssize * 16;
    if (size <= ENTRY_64 || h->syssize > UINT32_MAX / 16)
        return fail_with(err, errlen, -ENOEXEC, "%s declares an impossible kernel size of %llu",
                         f->path, (unsigned long long)size);
    /* The last paragraph may be partial in the file. */
    if (size - 15 > f->size - setup)
        return fail_with(err, errlen, -ENODATA,
                         "%s is cut short: it declares %llu bytes of kernel and holds %llu",
                         f->path, (unsigned long long)size, (unsigned long long)(f->size - setup));
    if (size > f->size - setup)
        size = f->size - setup;

    /* Before 2.10 the header did not say how much the kernel unpacks to. */
    uint64_t need = h->version < VERSION_INIT ? size * 4 + (1 << 20) : h->init_size;
    if (need < size)
        need = size;
    uint64_t addr = choose_address(ram, cfg, h, need);
    if (!addr)
        return fail_with(err, errlen, -ENOSPC,
                         "%s needs %llu MiB at 0x%llx to unpack itself and guest memory is %llu "
                         "MiB: give more --memory",
                         f->path, (unsigned long long)((need + (1 << 20) - 1) >> 20),
                         (unsigned long long)h->pref_address,
                         (unsigned long long)(ram->size >> 20));
    code = boot_read_to_ram(ram, f, setup, addr, size);
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", f->path,
                         code == -ENODATA ? "it shrank while being read" : strerror(-code));

    /* What the boot loader fills in; the rest of the header goes to the kernel as it is. */
    h->code32_start = (uint32_t)addr;
    h->setup_data = 0;    /* the file's own list, if any, is not in memory */
    h->vid_mode = 0xffff; /* "normal" */
    h->ramdisk_image = 0;
    h->ramdisk_size = 0;
    h->ext_loader_ver = 0;
    h->ext_loader_type = 0;

    out->entry = out->entry32 ? addr : addr + ENTRY_64;
    out->start = addr;
    out->end = addr + need;
    out->initrd_addr_max = h->initrd_addr_max;
    out->cmdline_max = h->cmdline_size;
    return 0;
}
