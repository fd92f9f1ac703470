/*
 * PVH (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h): an ELF image names a
 * 32-bit entry point in a note and is entered there with the address of a structure that says
 * where memory, modules and the command line are.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <string.h>

#define START_MAGIC 0x336ec578u

struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};
struct module_entry {
    uint64_t paddr, size, cmdline, reserved;
};
struct memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

static int put_info(struct guest_ram *ram, const struct boot_config *cfg, const uint32_t *start,
                    const uint32_t *end, uint32_t *info)
{
    struct start_info si = {.magic = START_MAGIC, .version = 1, .rsdp = cfg->acpi_rsdp};
    struct module_entry modules[BOOT_MODULES_MAX] = {0};
    struct boot_info_area area = {0};
    const char *cmdline = cfg->cmdline ? cfg->cmdline : "";
    uint32_t at = 0;
    int code = boot_info_put(ram, &area, NULL, sizeof(si), 8, info);

    if (!code)
        code = boot_info_put(ram, &area, cmdline, strlen(cmdline) + 1, 8, &at);
    si.cmdline = at;
    for (unsigned i = 0; i < cfg->nmodules && !code; i++) {
        const char *args = cfg->modules[i].args;
        code = boot_info_put(ram, &area, args, strlen(args) + 1, 8, &at);
        modules[i] =
            (struct module_entry){.paddr = start[i], .size = end[i] - start[i], .cmdline = at};
    }
    if (!code && cfg->nmodules) {
        code = boot_info_put(ram, &area, modules, cfg->nmodules * sizeof(modules[0]), 8, &at);
        si.modlist = at;
        si.nr_modules = cfg->nmodules;
    }
    for (unsigned i = 0; i < cfg->ne820 && !code; i++) {
        struct memmap_entry e = {cfg->e820[i].addr, cfg->e820[i].size, cfg->e820[i].type, 0};
        code = boot_info_put(ram, &area, &e, sizeof(e), 8, &at);
        if (i == 0)
            si.memmap = at;
        si.memmap_entries++;
    }
    return code ? code : ram_write(ram, *info, &si, sizeof(si));
}

int pvh_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_entry *out,
             char *err, size_t errlen)
{
    uint32_t start[BOOT_MODULES_MAX], end[BOOT_MODULES_MAX], info = 0;
    struct elf_image image;
    int code = elf_load_segments(ram, cfg, &image, err, errlen);

    if (code)
        return code;
    if (!image.pvh)
        return fail_with(err, errlen, -ENOEXEC, "%s has no PVH entry point within its segments",
                         cfg->kernel->path);
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
    out->rip = image.pvh;
    out->rbx = info;
    out->rsp = BOOT_STACK_TOP;
    out->kernel_start = image.start;
    out->kernel_end = image.end;
    return 0;
}
