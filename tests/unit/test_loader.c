/*
 * The loader on small images made here: what it must put where, what it must refuse, and that no
 * image, however broken, does more than that.
 */
#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/loader.h"

#define MiB (1024ull * 1024)

enum { BZ_SETUP_SECTS = 2, BZ_SETUP = (BZ_SETUP_SECTS + 1) * 512, BZ_KERNEL = 4096 };

static struct guest_ram ram;
static struct boot_e820_entry e820[4];
static unsigned ne820;

static void setup_size(uint64_t size)
{
    cr_assert_eq(ram_create(&ram, size), 0);
    ne820 = 0;
    e820[ne820++] = (struct boot_e820_entry){0, 0x9fc00, 1};
    e820[ne820++] = (struct boot_e820_entry){0xe0000, 0x20000, 2};
    e820[ne820++] = (struct boot_e820_entry){MiB, ram.low_size - MiB - 0x10000, 1};
    e820[ne820++] = (struct boot_e820_entry){ram.low_size - 0x10000, 0x10000, 3};
}

static void setup(void)
{
    setup_size(64 * MiB);
}

static void teardown(void)
{
    ram_destroy(&ram);
}

TestSuite(loader, .init = setup, .fini = teardown, .timeout = 120);

static struct image_file file_of(const void *data, uint64_t size)
{
    struct image_file f = {.fd = memfd_create("image", 0), .size = size, .path = "image"};

    cr_assert(f.fd >= 0);
    cr_assert_eq(pwrite(f.fd, data, size, 0), (ssize_t)size);
    return f;
}

static uint64_t make_bzimage(uint8_t *out)
{
    struct setup_header h = {
        .setup_sects = BZ_SETUP_SECTS,
        .syssize = BZ_KERNEL / 16,
        .boot_flag = 0xaa55,
        .jump = 0x6aeb, /* jmp over the header: it ends at 0x26c */
        .header = 0x53726448,
        .version = 0x020f,
        .loadflags = LOADED_HIGH,
        .initrd_addr_max = 0x7fffffff,
        .kernel_alignment = 0x200000,
        .relocatable_kernel = 1,
        .xloadflags = XLF_KERNEL_64,
        .cmdline_size = 255,
        .pref_address = 0x1000000,
        .init_size = 3 * MiB,
    };

    memset(out, 0, BZ_SETUP + BZ_KERNEL);
    memcpy(out + 0x1f1, &h, sizeof(h));
    for (unsigned i = 0; i < BZ_KERNEL; i++)
        out[BZ_SETUP + i] = (uint8_t)(i * 7 + 1);
    return BZ_SETUP + BZ_KERNEL;
}

struct tiny_elf {
    Elf64_Ehdr eh;
    Elf64_Phdr ph[3];
    uint8_t note[24];
    uint8_t text[256], data[64];
};

static struct tiny_elf make_elf(void)
{
    struct tiny_elf e = {
        .eh = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
               .e_type = ET_EXEC,
               .e_machine = EM_X86_64,
               .e_version = EV_CURRENT,
               .e_entry = 0x1000010,
               .e_phoff = offsetof(struct tiny_elf, ph),
               .e_ehsize = sizeof(Elf64_Ehdr),
               .e_phentsize = sizeof(Elf64_Phdr),
               .e_phnum = 3},
        .ph = {{.p_type = PT_LOAD,
                .p_offset = offsetof(struct tiny_elf, text),
                .p_vaddr = 0xffffffff81000000,
                .p_paddr = 0x1000000,
                .p_filesz = 256,
                .p_memsz = 256},
               {.p_type = PT_LOAD,
                .p_offset = offsetof(struct tiny_elf, data),
                .p_vaddr = 0xffffffff81200000,
                .p_paddr = 0x1200000,
                .p_filesz = 64,
                .p_memsz = MiB},
               {.p_type = PT_NOTE,
                .p_offset = offsetof(struct tiny_elf, note),
                .p_filesz = 20,
                .p_memsz = 20}},
    };
    const uint32_t note[5] = {4, 4, 18, 0x006e6558 /* "Xen" */, 0x1000080};

    memcpy(e.note, note, sizeof(note));
    memset(e.text, 0x90, sizeof(e.text));
    memset(e.data, 0x55, sizeof(e.data));
    return e;
}

static enum boot_format wanted; /* what --kernel-format would say */

static int load(const void *image, uint64_t size, const char *cmdline, uint64_t initrd_size,
                struct boot_entry *out, char *err)
{
    struct image_file kernel = file_of(image, size);
    struct image_file initrd = {
        .fd = memfd_create("initrd", 0), .size = initrd_size, .path = "initrd"};
    struct boot_config cfg = {.kernel = &kernel,
                              .initrd = initrd_size ? &initrd : NULL,
                              .cmdline = cmdline,
                              .acpi_rsdp = 0xe0000,
                              .e820 = e820,
                              .ne820 = ne820,
                              .rng_seed = (const uint8_t *)"0123456789abcdef",
                              .rng_seed_len = 16};

    err[0] = '\0';
    cr_assert_eq(ftruncate(initrd.fd, (off_t)initrd_size), 0);
    int code = boot_detect(&kernel, wanted, &cfg.format, err, 300);
    if (!code)
        code = boot_load(&ram, &cfg, out, err, 300);
    image_close(&kernel);
    image_close(&initrd);
    return code;
}

static const struct boot_params *params(void)
{
    return ram_ptr(&ram, BOOT_PARAMS, sizeof(struct boot_params));
}

/* What must hold after any successful load. */
static void check_sane(const struct boot_entry *b)
{
    cr_assert_leq(b->kernel_start, b->rip);
    cr_assert_lt(b->rip, b->kernel_end);
    if (b->start == BOOT_START_REAL) {
        cr_assert_eq(b->kernel_start, 0x7c00);
        cr_assert_leq(b->kernel_end, 0x9f000);
        return;
    }
    cr_assert_geq(b->kernel_start, MiB);
    cr_assert_leq(b->kernel_end, ram.low_size - 0x10000);
    if (b->initrd_size) {
        cr_assert_geq(b->initrd_start, b->kernel_end);
        cr_assert_leq(b->initrd_start + b->initrd_size, ram.low_size - 0x10000);
    }
    if (b->rsi)
        cr_assert_eq(params()->e820_entries, ne820);
}

Test(loader, bzimage)
{
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    struct boot_entry b;
    char err[300];

    cr_assert_eq(load(image, size, "console=ttyS0", 100000, &b, err), 0, "%s", err);
    check_sane(&b);
    cr_assert_eq(b.rip, 0x1000200);
    cr_assert_eq(b.rsi, BOOT_PARAMS);
    cr_assert_arr_eq(ram.base + 0x1000000, image + BZ_SETUP, BZ_KERNEL);
    cr_assert_str_eq((char *)ram.base + params()->hdr.cmd_line_ptr, "console=ttyS0");
    cr_assert_eq(params()->hdr.type_of_loader, 0xff);
    cr_assert_eq(params()->hdr.ramdisk_size, 100000);
    cr_assert_eq(params()->hdr.ramdisk_image, (ram.low_size - 0x10000 - 100000) & ~0xfffull);
    cr_assert_eq(params()->acpi_rsdp_addr, 0xe0000);
    cr_assert_eq(params()->sentinel, 0);
    const struct setup_data *sd = ram_ptr(&ram, params()->hdr.setup_data, 32);
    cr_assert_eq(sd->type, SETUP_RNG_SEED);
    cr_assert_eq(sd->len, 16);
    cr_assert_arr_eq(sd->data, "0123456789abcdef", 16);
}

Test(loader, page_tables_map_identity)
{
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    struct boot_entry b;
    char err[300];

    cr_assert_eq(load(image, size, NULL, 0, &b, err), 0, "%s", err);
    for (uint64_t a = 0; a < 4096 * MiB; a += 2 * MiB) {
        const uint64_t *t = ram_ptr(&ram, b.cr3, 4096);
        for (int shift = 39; shift > 21; shift -= 9) {
            uint64_t e = t[(a >> shift) & 511];
            cr_assert_eq(e & 0x83, 3);
            t = ram_ptr(&ram, e & ~0xfffull, 4096);
            cr_assert_not_null(t);
        }
        cr_assert_eq(t[(a >> 21) & 511] & ~0x60ull, a | 0x83);
    }
    const uint64_t *gdt = ram_ptr(&ram, b.gdt_base, b.gdt_limit + 1u);
    cr_assert_eq(gdt[b.cs / 8] >> 53 & 1, 1, "CS is 64-bit");
    cr_assert_eq(gdt[b.ds / 8] >> 41 & 1, 1, "DS is writable");
}

Test(loader, never_below_the_preferred_address)
{
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    struct setup_header *h = (void *)(image + 0x1f1);
    struct boot_entry b;
    char err[300];

    h->pref_address = 0x200000;
    h->init_size = 0x300000;
    cr_assert_eq(load(image, size, NULL, 0, &b, err), 0, "%s", err);
    check_sane(&b);
    cr_assert_eq(b.rip, 0x200200);
    /* Below the address it prefers it would unpack itself over what is there, or past the end. */
    h->pref_address = 0xfff00000;
    cr_assert_eq(load(image, size, NULL, 0, &b, err), -ENOSPC);
    cr_assert_not_null(strstr(err, "give more --memory"), "%s", err);
    h->pref_address = 0x1000000;
    h->init_size = 0x3378000; /* 51 MiB: more than the 48 behind it */
    cr_assert_eq(load(image, size, NULL, 0, &b, err), -ENOSPC);
    h->relocatable_kernel = 0;
    cr_assert_eq(load(image, size, NULL, 0, &b, err), -ENOSPC);
}

Test(loader, bzimage_refusals)
{
    static const struct {
        const char *words;
        unsigned offset, len;
        uint64_t value;
    } cases[] = {
        {"boot sector", 0x1fe, 2, 0},
        {"protocol", 0x206, 2, 0x201},
        {"zImage", 0x211, 1, 0},
        {"too short", 0x201, 1, 0x40},
        {"alignment", 0x230, 4, 3},
        {"alignment", 0x230, 4, 0},
        {"kernel size", 0x1f4, 4, 0},
        {"kernel size", 0x1f4, 4, 0x10000001},
        {"cut short", 0x1f4, 4, 0x1000},
        {"cut short", 0x1f1, 1, 255},
        {"more --memory", 0x260, 4, ~0u},
        {"protocol", 0x201, 1, 0x10},
        {"no Linux boot header", 0x202, 4, 0},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t image[BZ_SETUP + BZ_KERNEL];
        uint64_t size = make_bzimage(image);
        struct boot_entry b;
        char err[300];
        memcpy(image + cases[i].offset, &cases[i].value, cases[i].len);
        wanted = BOOT_LINUX;
        cr_assert_lt(load(image, size, NULL, 0, &b, err), 0, "case %u", i);
        cr_assert_not_null(strstr(err, cases[i].words), "case %u: %s", i, err);
        cr_assert_null(strchr(err, '\n'));
    }
}

Test(loader, command_line_and_initrd_limits)
{
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    char line[257], err[300];
    struct boot_entry b;

    memset(line, 'x', sizeof(line));
    line[255] = '\0';
    cr_assert_eq(load(image, size, line, 0, &b, err), 0, "%s", err);
    line[255] = 'x';
    line[256] = '\0';
    cr_assert_eq(load(image, size, line, 0, &b, err), -E2BIG);

    uint64_t room = ram.low_size - 0x10000 - 0x1000000 - 3 * MiB;
    cr_assert_eq(load(image, size, NULL, room, &b, err), 0, "%s", err);
    check_sane(&b);
    cr_assert_eq(load(image, size, NULL, room + 1, &b, err), -ENOSPC);
    cr_assert_not_null(strstr(err, "initrd"));
    cr_assert_eq(load(image, size, NULL, 5000 * MiB, &b, err), -ENOSPC);

    struct setup_header *h = (void *)(image + 0x1f1);
    h->initrd_addr_max = 0x27fffff;
    cr_assert_eq(load(image, size, NULL, MiB, &b, err), 0, "%s", err);
    cr_assert_leq(b.initrd_start + b.initrd_size, 0x2800000);
}

Test(loader, elf)
{
    struct tiny_elf e = make_elf();
    struct boot_entry b;
    char err[300];

    cr_assert_eq(load(&e, sizeof(e), "x", 5000, &b, err), 0, "%s", err);
    check_sane(&b);
    cr_assert_eq(b.rip, 0x1000010);
    cr_assert_eq(b.kernel_end, 0x1300000);
    cr_assert_arr_eq(ram.base + 0x1000000, e.text, sizeof(e.text));
    cr_assert_arr_eq(ram.base + 0x1200000, e.data, sizeof(e.data));
    cr_assert_eq(params()->hdr.header, 0x53726448);

    e.eh.e_entry = 0xffffffff81000020; /* virtual */
    cr_assert_eq(load(&e, sizeof(e), "x", 0, &b, err), 0, "%s", err);
    cr_assert_eq(b.rip, 0x1000020);
}

Test(loader, elf_refusals)
{
#define REFUSE(words, ...)                                                                         \
    do {                                                                                           \
        struct tiny_elf e = make_elf();                                                            \
        struct boot_entry b;                                                                       \
        char err[300];                                                                             \
        __VA_ARGS__;                                                                               \
        cr_assert_lt(load(&e, sizeof(e), NULL, 0, &b, err), 0, "%s", #__VA_ARGS__);                \
        cr_assert_not_null(strstr(err, words), "%s: %s", #__VA_ARGS__, err);                       \
    } while (0)
    REFUSE("ELF", e.eh.e_ident[EI_CLASS] = ELFCLASS32);
    REFUSE("another machine", e.eh.e_machine = EM_AARCH64);
    REFUSE("executable", e.eh.e_type = ET_REL);
    REFUSE("PVH", e.eh.e_entry = 0x1000080);
    REFUSE("entry point", e.eh.e_entry = 0x2000000);
    REFUSE("entry point", e.eh.e_entry = 0);
    REFUSE("program headers", e.eh.e_phnum = 0);
    REFUSE("program headers", e.eh.e_phoff = 1ull << 40);
    REFUSE("program headers", e.eh.e_phnum = 0xfff0);
    REFUSE("overlap", e.ph[1].p_paddr = 0x10000ff);
    REFUSE("below 1 MiB", e.ph[1].p_paddr = 0x7000);
    REFUSE("outside", e.ph[1].p_memsz = 1ull << 40);
    REFUSE("outside", e.ph[1].p_paddr = -(uint64_t)MiB);
    REFUSE("outside", e.ph[1].p_memsz = UINT64_MAX - 0x1200000 + 2);
    REFUSE("outside", e.ph[1].p_paddr = 0x3ff0000); /* the ACPI area */
    REFUSE("in the file than in memory", e.ph[1].p_memsz = 63);
    REFUSE("cut short", e.ph[1].p_offset = 4096);
    REFUSE("cut short", e.ph[1].p_offset = UINT64_MAX - 10);
    REFUSE("no segment", e.ph[0].p_type = e.ph[1].p_type = PT_NULL);
#undef REFUSE
}

Test(loader, names_what_it_was_given)
{
    static const struct {
        const char *magic, *words;
        unsigned len;
    } cases[] = {
        {"\x1f\x8b\x08", "gzip", 3},
        {"\xfd"
         "7zXZ",
         "xz", 5},
        {"070701", "--initrd", 6},
        {"!<arch>\n", "unpack", 8},
        {"MZ\x90", "EFI", 3},
        {"hello", "no format", 5},
        {"\x28\xb5\x2f\xfd", "zstd", 4},
    };
    uint8_t image[4096];
    struct boot_entry b;
    char err[300];

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memset(image, 0, sizeof(image));
        memcpy(image, cases[i].magic, cases[i].len);
        cr_assert_eq(load(image, sizeof(image), NULL, 0, &b, err), -ENOEXEC);
        cr_assert_not_null(strstr(err, cases[i].words), "%s", err);
    }
}

Test(loader, clears_ram_for_a_reboot)
{
    memset(ram.base + MiB, 0xee, 3 * MiB);
    memset(ram.base + ram.low_size - 0x10000, 0xac, 0x10000);
    memset(ram.base, 0x11, 0x9fc00);
    cr_assert_eq(boot_clear_ram(&ram, e820, ne820), 0);
    for (uint64_t a = 0x1000; a < 0x9f000; a++)
        cr_assert_eq(ram.base[a], 0);
    for (uint64_t a = MiB; a < 4 * MiB; a++)
        cr_assert_eq(ram.base[a], 0);
    cr_assert_eq(ram.base[0x40e], 0x11, "the BIOS data area is not ours");
    cr_assert_eq(ram.base[ram.low_size - 0x10000], 0xac);
}

Test(loader, high_ram, .init = NULL)
{
    setup_size(4096 * MiB);
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    struct boot_entry b;
    char err[300];

    cr_assert_eq(load(image, size, NULL, 10 * MiB, &b, err), 0, "%s", err);
    check_sane(&b);
    cr_assert_leq(b.initrd_start + b.initrd_size, 0x80000000);
}

Test(loader, files)
{
    struct image_file f;
    char err[300], path[64];
    int fds[2];

    cr_assert_eq(image_open(&f, "/no/such/file", err, sizeof(err)), -ENOENT);
    cr_assert_not_null(strstr(err, "/no/such/file"));
    cr_assert_eq(image_open(&f, "/", err, sizeof(err)), -EISDIR);
    cr_assert_eq(image_open(&f, "/dev/zero", err, sizeof(err)), -EINVAL); /* endless */
    cr_assert_eq(image_open(&f, "", err, sizeof(err)), -ENOENT);
    cr_assert_not_null(strstr(err, "empty"));
    cr_assert_eq(pipe(fds), 0);
    cr_assert_eq(write(fds[1], "through a pipe", 14), 14);
    close(fds[1]);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[0]);
    cr_assert_eq(image_open(&f, path, err, sizeof(err)), 0, "%s", err);
    close(fds[0]);
    char buf[5];
    cr_assert_eq(f.size, 14);
    cr_assert_eq(image_read(&f, 9, buf, 5), 0);
    cr_assert_arr_eq(buf, " pipe", 5);
    cr_assert_eq(image_read(&f, 10, buf, 5), -ENODATA);
    cr_assert_eq(image_read(&f, UINT64_MAX, buf, 2), -ENODATA);
    image_close(&f);
}

/* ---- Broken images ----------------------------------------------------------------------------
 */

/* Loads and checks what must hold, whatever the outcome. */
static bool survive(const void *image, uint64_t size)
{
    struct boot_entry b;
    char err[300];

    memset(err, 0, sizeof(err));
    int code = load(image, size, "quiet", 5000, &b, err);
    if (code == 0)
        check_sane(&b);
    else
        cr_assert(err[0] && !strchr(err, '\n'), "error %d has no sentence", code);
    return code == 0;
}

Test(loader, truncated_at_every_length)
{
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    struct tiny_elf e = make_elf();

    for (uint64_t n = 1; n < size; n++)
        cr_assert_eq(survive(image, n), (n >= 512 && n < 0x206) || n > size - 16,
                     "bzImage of %lu bytes", (unsigned long)n);
    for (uint64_t n = 1; n < sizeof(e); n++)
        cr_assert_not(survive(&e, n), "ELF of %lu bytes", (unsigned long)n);
}

Test(loader, every_bit_flipped)
{
    uint8_t image[BZ_SETUP + BZ_KERNEL];
    uint64_t size = make_bzimage(image);
    struct tiny_elf e = make_elf();
    uint8_t *bytes = (uint8_t *)&e;

    for (unsigned bit = 0; bit < 0x280 * 8; bit++) {
        image[bit / 8] ^= (uint8_t)(1 << bit % 8);
        survive(image, size);
        image[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (unsigned bit = 0; bit < offsetof(struct tiny_elf, text) * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        survive(&e, sizeof(e));
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static uint64_t random_state = 88172645463325252ull;

static uint64_t next_random(void) /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* Replaces fields by values that break arithmetic. */
static void mutate(uint8_t *bytes, unsigned from, unsigned to)
{
    static const uint64_t values[] = {0,          1,           0x7f,          0xff,
                                      0x7fff,     0xffff,      0x7fffffff,    0x80000000,
                                      0xffffffff, 0x100000000, INT64_MAX,     1ull << 63,
                                      UINT64_MAX, 0x1000000,   -0x1000000ull, 0xfff};

    for (unsigned n = 1 + next_random() % 4; n; n--) {
        unsigned width = 1u << next_random() % 4;
        unsigned at = from + (unsigned)(next_random() % (to - from - width + 1));
        uint64_t v = values[next_random() % 16] + (next_random() % 3 ? 0 : next_random() % 5 - 2);
        if (next_random() % 4 == 0)
            v = next_random();
        memcpy(bytes + at, &v, width);
    }
}

Test(loader, random_damage)
{
    uint8_t good[BZ_SETUP + BZ_KERNEL], image[sizeof(good)];
    uint64_t size = make_bzimage(good);
    struct tiny_elf elf = make_elf();
    unsigned loaded = 0;

    for (unsigned i = 0; i < 50000; i++) {
        struct tiny_elf e = elf;
        mutate((uint8_t *)&e, 4, offsetof(struct tiny_elf, text));
        loaded += survive(&e, sizeof(e));
        memcpy(image, good, size);
        mutate(image, 0x1f1, 0x26c);
        loaded += survive(image, size);
    }
    cr_assert_gt(loaded, 1000, "most mutations were refused at the door: they test little");
}
