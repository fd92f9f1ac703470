/*
 * Images without any format.  A flat image is loaded and entered at 1 MiB in 32-bit protected
 * mode.  A boot sector (with whatever follows it) is loaded and entered at 0x7c00 in real mode, as
 * a PC's BIOS does it; but there is no BIOS: every interrupt vector points to an IRET, so that
 * calls for BIOS services return with nothing done.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <string.h>

enum {
    BIOS_STUB = 0x4f0, /* the BIOS data area's bytes for communication between applications */
    DRIVE_HARD_DISK = 0x80,
};

int flat_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
              char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;

    if (!boot_range_free(ram, cfg, BOOT_HIGH_START, f->size))
        return fail_with(err, errlen, -ENOSPC,
                         "%s (%llu bytes) does not fit at 1 MiB in %llu MiB of guest memory: give "
                         "more --memory",
                         f->path, (unsigned long long)f->size,
                         (unsigned long long)(ram->size >> 20));
    int code = boot_read_to_ram(ram, f, 0, BOOT_HIGH_START, f->size);
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", f->path,
                         code == -ENODATA ? "it shrank while being read" : strerror(-code));
    out->start = BOOT_START_PROT32;
    out->rip = BOOT_HIGH_START;
    out->rsp = BOOT_STACK_TOP;
    out->kernel_start = BOOT_HIGH_START;
    out->kernel_end = BOOT_HIGH_START + f->size;
    return 0;
}

int boot_sector_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
                     char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;
    static const uint8_t iret = 0xcf;
    uint32_t ivt[256];

    if (f->size > BOOT_SECTOR_END - BOOT_SECTOR_ADDR)
        return fail_with(err, errlen, -EFBIG,
                         "%s has %llu bytes; from 0x7c00 up there is room for %u", f->path,
                         (unsigned long long)f->size, BOOT_SECTOR_END - BOOT_SECTOR_ADDR);
    int code = boot_read_to_ram(ram, f, 0, BOOT_SECTOR_ADDR, f->size);
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", f->path,
                         code == -ENODATA ? "it shrank while being read" : strerror(-code));
    for (unsigned i = 0; i < 256; i++)
        ivt[i] = BIOS_STUB;
    code = ram_write(ram, 0, ivt, sizeof(ivt));
    if (!code)
        code = ram_write(ram, BIOS_STUB, &iret, 1);
    if (code)
        return fail_with(err, errlen, code, "cannot write the interrupt vectors: %s",
                         strerror(-code));
    out->start = BOOT_START_REAL;
    out->rip = BOOT_SECTOR_ADDR;
    out->rsp = BOOT_SECTOR_ADDR;
    out->rdx = DRIVE_HARD_DISK;
    out->kernel_start = BOOT_SECTOR_ADDR;
    out->kernel_end = BOOT_SECTOR_ADDR + f->size;
    return 0;
}
