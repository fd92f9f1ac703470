/*
 * ELF images: PT_LOAD segments go to their physical addresses.  What starts them is up to the boot
 * protocol; the one here is that of an ELF64 Linux (vmlinux): the processor starts at e_entry in
 * 64-bit mode with boot_params in RSI, as the bzImage's own decompressor would have done (Linux
 * arch/x86/kernel/head_64.S, startup_64).  libelf reads the headers; the segments' bytes are read
 * straight into guest RAM.
 */
#include "runtime/loader_image.h"

#include <errno.h>
#include <gelf.h>
#include <libelf.h>
#include <string.h>

enum {
    MAX_SEGMENTS = 64,
    MAX_NOTES = 65536,             /* bytes of one PT_NOTE looked at */
    XEN_ELFNOTE_PHYS32_ENTRY = 18, /* Xen public/elfnote.h: the PVH entry point */
};

struct segment_range {
    uint64_t vaddr, paddr, size;
};

/* The PVH entry point from a PT_NOTE segment, or 0. */
static uint64_t pvh_entry(const struct image_file *f, const GElf_Phdr *ph)
{
    static const char name[4] = "Xen";
    uint8_t buf[MAX_NOTES];
    uint64_t len = ph->p_filesz < sizeof(buf) ? ph->p_filesz : sizeof(buf);
    uint64_t at = 0;

    if (image_read(f, ph->p_offset, buf, len))
        return 0;
    while (len - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr n;
        memcpy(&n, buf + at, sizeof(n));
        at += sizeof(n);
        uint64_t nsize = ((uint64_t)n.n_namesz + 3) & ~3ull;
        uint64_t dsize = ((uint64_t)n.n_descsz + 3) & ~3ull;
        if (nsize > len - at || dsize > len - at - nsize)
            return 0;
        if (n.n_type == XEN_ELFNOTE_PHYS32_ENTRY && n.n_namesz == sizeof(name) &&
            !memcmp(buf + at, name, sizeof(name)) && (n.n_descsz == 4 || n.n_descsz == 8)) {
            uint64_t entry = 0;
            memcpy(&entry, buf + at + nsize, n.n_descsz);
            return entry;
        }
        at += nsize + dsize;
    }
    return 0;
}

static int check_header(const struct image_file *f, Elf *elf, GElf_Ehdr *eh, size_t *phnum,
                        char *err, size_t errlen)
{
    if (!elf || elf_kind(elf) != ELF_K_ELF || !gelf_getehdr(elf, eh))
        return fail_with(err, errlen, -ENOEXEC, "%s is not a valid ELF file: %s", f->path,
                         elf_errmsg(-1));
    bool ok =
        eh->e_ident[EI_CLASS] == ELFCLASS64 ? eh->e_machine == EM_X86_64 : eh->e_machine == EM_386;
    if (!ok || eh->e_ident[EI_DATA] != ELFDATA2LSB)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is an ELF image for another machine (e_machine %u), not for x86",
                         f->path, eh->e_machine);
    if (eh->e_type != ET_EXEC)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is not an ELF executable (e_type %u); a kernel image is ET_EXEC",
                         f->path, eh->e_type);
    if (elf_getphdrnum(elf, phnum) || !*phnum)
        return fail_with(err, errlen, -ENOEXEC, "%s has no program headers to load", f->path);
    if (*phnum > MAX_SEGMENTS)
        return fail_with(err, errlen, -ENOEXEC, "%s has %zu program headers; at most %d are taken",
                         f->path, *phnum, MAX_SEGMENTS);
    return 0;
}

static int load_segment(struct guest_ram *ram, const struct boot_config *cfg, const GElf_Phdr *ph,
                        struct segment_range *seg, size_t nseg, char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;

    if (ph->p_filesz > ph->p_memsz)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s has a segment with more bytes in the file than in memory", f->path);
    if (ph->p_offset > f->size || ph->p_filesz > f->size - ph->p_offset)
        return fail_with(err, errlen, -ENODATA,
                         "%s is cut short: the segment for 0x%llx lies beyond its end", f->path,
                         (unsigned long long)ph->p_paddr);
    if (ph->p_paddr < BOOT_HIGH_START)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s wants to be loaded at 0x%llx; below 1 MiB is not available", f->path,
                         (unsigned long long)ph->p_paddr);
    if (!boot_range_free(ram, cfg, ph->p_paddr, ph->p_memsz))
        return fail_with(err, errlen, -ENOSPC,
                         "%s needs 0x%llx bytes at 0x%llx, outside the %llu MiB of guest memory: "
                         "give more --memory",
                         f->path, (unsigned long long)ph->p_memsz, (unsigned long long)ph->p_paddr,
                         (unsigned long long)(ram->size >> 20));
    for (size_t i = 0; i < nseg; i++)
        if (ph->p_paddr < seg[i].paddr + seg[i].size && seg[i].paddr < ph->p_paddr + ph->p_memsz)
            return fail_with(err, errlen, -ENOEXEC, "%s has segments that overlap at 0x%llx",
                             f->path, (unsigned long long)ph->p_paddr);
    int code = boot_read_to_ram(ram, f, ph->p_offset, ph->p_paddr, ph->p_filesz);
    if (code)
        return fail_with(err, errlen, code, "cannot read %s: %s", f->path,
                         code == -ENODATA ? "it shrank while being read" : strerror(-code));
    return 0;
}

/* e_entry is physical in Linux's vmlinux; a virtual one is translated through its segment. */
static uint64_t find_entry(uint64_t entry, const struct segment_range *seg, size_t nseg)
{
    for (size_t i = 0; i < nseg; i++)
        if (entry >= seg[i].paddr && entry - seg[i].paddr < seg[i].size)
            return entry;
    for (size_t i = 0; i < nseg; i++)
        if (entry >= seg[i].vaddr && entry - seg[i].vaddr < seg[i].size)
            return seg[i].paddr + (entry - seg[i].vaddr);
    return 0;
}

static int load(struct guest_ram *ram, const struct boot_config *cfg, Elf *elf,
                struct elf_image *out, char *err, size_t errlen)
{
    const struct image_file *f = cfg->kernel;
    struct segment_range seg[MAX_SEGMENTS];
    size_t phnum = 0, nseg = 0;
    GElf_Ehdr eh;
    int code = check_header(f, elf, &eh, &phnum, err, errlen);

    *out = (struct elf_image){.start = UINT64_MAX};
    if (code)
        return code;
    out->is64 = eh.e_machine == EM_X86_64;
    for (size_t i = 0; i < phnum; i++) {
        GElf_Phdr ph;
        if (!gelf_getphdr(elf, (int)i, &ph))
            return fail_with(err, errlen, -ENOEXEC, "%s has unreadable program headers: %s",
                             f->path, elf_errmsg(-1));
        if (ph.p_type == PT_NOTE && !out->pvh)
            out->pvh = pvh_entry(f, &ph);
        if (ph.p_type != PT_LOAD || !ph.p_memsz)
            continue;
        code = load_segment(ram, cfg, &ph, seg, nseg, err, errlen);
        if (code)
            return code;
        seg[nseg++] = (struct segment_range){ph.p_vaddr, ph.p_paddr, ph.p_memsz};
        if (ph.p_paddr < out->start)
            out->start = ph.p_paddr;
        if (ph.p_paddr + ph.p_memsz > out->end)
            out->end = ph.p_paddr + ph.p_memsz;
    }
    if (!nseg)
        return fail_with(err, errlen, -ENOEXEC, "%s has no segment to load", f->path);
    out->entry = find_entry(eh.e_entry, seg, nseg);
    if (out->pvh && (out->pvh < out->start || out->pvh >= out->end))
        out->pvh = 0;
    if (!out->entry && !(out->pvh && cfg->format == BOOT_PVH))
        return fail_with(err, errlen, -ENOEXEC,
                         "%s has its entry point 0x%llx outside its segments", f->path,
                         (unsigned long long)eh.e_entry);
    return 0;
}

static Elf *open_elf(const struct image_file *f)
{
    return elf_version(EV_CURRENT) == EV_NONE ? NULL : elf_begin(f->fd, ELF_C_READ, NULL);
}

int elf_load_segments(struct guest_ram *ram, const struct boot_config *cfg, struct elf_image *out,
                      char *err, size_t errlen)
{
    Elf *elf = open_elf(cfg->kernel);
    int code = load(ram, cfg, elf, out, err, errlen);

    elf_end(elf);
    return code;
}

bool elf_has_pvh(const struct image_file *f, bool *is64)
{
    Elf *elf = open_elf(f);
    char err[200];
    GElf_Ehdr eh;
    size_t phnum = 0;
    bool found = false;

    *is64 = false;
    if (!check_header(f, elf, &eh, &phnum, err, sizeof(err))) {
        *is64 = eh.e_machine == EM_X86_64;
        for (size_t i = 0; i < phnum && !found; i++) {
            GElf_Phdr ph;
            found = gelf_getphdr(elf, (int)i, &ph) && ph.p_type == PT_NOTE && pvh_entry(f, &ph);
        }
    }
    elf_end(elf);
    return found;
}

int elf_load(struct guest_ram *ram, const struct boot_config *cfg, struct boot_params *bp,
             struct loaded_kernel *out, char *err, size_t errlen)
{
    struct elf_image image;
    int code = elf_load_segments(ram, cfg, &image, err, errlen);

    if (code)
        return code;
    if (!image.is64)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s is a 32-bit ELF image with neither a multiboot header nor a PVH "
                         "note: nothing says how to start it",
                         cfg->kernel->path);
    if (image.pvh && image.pvh == image.entry)
        return fail_with(err, errlen, -ENOEXEC,
                         "%s starts only by its 32-bit PVH entry: use --kernel-format pvh",
                         cfg->kernel->path);
    out->entry = image.entry;
    out->start = image.start;
    out->end = image.end;

    /* No header came with the image: say what a boot loader must (boot.rst). */
    bp->hdr.boot_flag = 0xaa55;
    bp->hdr.header = 0x53726448; /* "HdrS" */
    bp->hdr.version = 0x020f;
    bp->hdr.loadflags = LOADED_HIGH;
    bp->hdr.xloadflags = XLF_KERNEL_64;
    bp->hdr.kernel_alignment = 0x200000;
    out->initrd_addr_max = 0x7fffffff;
    out->cmdline_max = 2047;
    return 0;
}
