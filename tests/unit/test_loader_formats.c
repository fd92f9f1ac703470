/*
 * Multiboot 1 and 2, PVH, 32-bit Linux, flat images and boot sectors: what the loader must put
 * where, what it must refuse, and that no image makes it do more than that.
 */
#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/boot.h"
#include "runtime/loader.h"

#include <elf.h> /* its PF_* are macros: after the enums of that name */

#define MiB (1024ull * 1024)

static struct guest_ram ram;
static struct boot_e820_entry e820[3];
static struct boot_module modules[3];
static unsigned nmodules;
static bool vga;

static void setup(void)
{
    cr_assert_eq(ram_create(&ram, 32 * MiB), 0);
    e820[0] = (struct boot_e820_entry){0, 0x9fc00, 1};
    e820[1] = (struct boot_e820_entry){0xe0000, 0x20000, 2};
    e820[2] = (struct boot_e820_entry){MiB, 31 * MiB, 1};
}

static void teardown(void)
{
    ram_destroy(&ram);
}

TestSuite(loader_formats, .init = setup, .fini = teardown, .timeout = 120);

static struct image_file file_of(const void *data, uint64_t size)
{
    struct image_file f = {.fd = memfd_create("image", 0), .size = size, .path = "image"};

    cr_assert(f.fd >= 0);
    cr_assert_eq(pwrite(f.fd, data, size, 0), (ssize_t)size);
    return f;
}

static void add_module(const char *data, uint64_t size, const char *args)
{
    modules[nmodules++] = (struct boot_module){.file = file_of(data, size), .args = args};
}

static int load(const void *image, uint64_t size, enum boot_format wanted, struct boot_entry *out,
                enum boot_format *found, char *err)
{
    struct image_file kernel = file_of(image, size);
    struct boot_config cfg = {.kernel = &kernel,
                              .cmdline = "one two",
                              .modules = modules,
                              .nmodules = nmodules,
                              .acpi_rsdp = 0xe0000,
                              .e820 = e820,
                              .ne820 = 3,
                              .vga_text = vga};

    err[0] = '\0';
    int code = boot_detect(&kernel, wanted, &cfg.format, err, 300);
    *found = cfg.format;
    if (!code)
        code = boot_load(&ram, &cfg, out, err, 300);
    image_close(&kernel);
    return code;
}

#define WORD(gpa) (*(uint32_t *)(ram.base + (gpa)))
#define LOAD(image, wanted)                                                                        \
    cr_assert_eq(load(&(image), sizeof(image), wanted, &b, &f, err), 0, "%s", err)
#define REFUSE(image, wanted, words)                                                               \
    do {                                                                                           \
        cr_assert_lt(load(&(image), sizeof(image), wanted, &b, &f, err), 0);                       \
        cr_assert_not_null(strstr(err, words), "%s", err);                                         \
        cr_assert_null(strchr(err, '\n'));                                                         \
    } while (0)
#define LOCALS                                                                                     \
    struct boot_entry b;                                                                           \
    enum boot_format f;                                                                            \
    char err[300];                                                                                 \
    (void)b, (void)f, (void)err

/* -- Multiboot 1 ------------------------------------------------------------------------------ */

struct mb_elf {
    Elf32_Ehdr eh;
    Elf32_Phdr ph[2];
    uint32_t header[12];
    uint8_t text[64];
    uint32_t note[5];
};

static struct mb_elf make_elf32(void)
{
    struct mb_elf e = {
        .eh = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
               .e_type = ET_EXEC,
               .e_machine = EM_386,
               .e_version = EV_CURRENT,
               .e_entry = 0x200004,
               .e_phoff = offsetof(struct mb_elf, ph),
               .e_ehsize = sizeof(Elf32_Ehdr),
               .e_phentsize = sizeof(Elf32_Phdr),
               .e_phnum = 1},
        .ph = {{.p_type = PT_LOAD,
                .p_offset = offsetof(struct mb_elf, text),
                .p_vaddr = 0x200000,
                .p_paddr = 0x200000,
                .p_filesz = 64,
                .p_memsz = 0x1234},
               {.p_type = PT_NOTE,
                .p_offset = offsetof(struct mb_elf, note),
                .p_filesz = 20,
                .p_memsz = 20}},
        .header = {0x1badb002, 3, -(0x1badb002u + 3)},
        .note = {4, 4, 18, 0x006e6558, 0x200010},
    };
    memset(e.text, 0x90, sizeof(e.text));
    return e;
}

Test(loader_formats, multiboot_elf)
{
    LOCALS;
    struct mb_elf e = make_elf32();

    LOAD(e, BOOT_AUTO);
    cr_assert_eq(f, BOOT_MULTIBOOT);
    cr_assert_eq(b.start, BOOT_START_PROT32);
    cr_assert_eq(b.rip, 0x200004);
    cr_assert_eq(b.rax, 0x2badb002);
    cr_assert_eq(WORD(0x200000), 0x90909090);
    uint64_t cs = *(uint64_t *)(ram.base + b.gdt_base + b.cs);
    cr_assert_eq(cs, 0x00cf9b000000ffff, "flat 32-bit code");
    cr_assert_eq(WORD(b.rbx) & 0x1fff, 0x24d, "memory, command line, modules, map, loader");
    cr_assert_eq(WORD(b.rbx + 4), 639);
    cr_assert_eq(WORD(b.rbx + 8), 31 * 1024);
    cr_assert_str_eq((char *)ram.base + WORD(b.rbx + 16), "one two");
    cr_assert_eq(WORD(b.rbx + 20), 0, "no modules");
    cr_assert_eq(WORD(b.rbx + 44), 3 * 24, "memory map length");
    uint32_t map = WORD(b.rbx + 48);
    cr_assert_eq(WORD(map), 20);
    cr_assert_eq(WORD(map + 48 + 4), MiB);
    cr_assert_eq(WORD(map + 48 + 12), 31 * MiB);
    cr_assert_eq(WORD(map + 48 + 20), 1);

    vga = true;
    LOAD(e, BOOT_AUTO);
    cr_assert(WORD(b.rbx) & 0x1000);
    cr_assert_eq(WORD(b.rbx + 88), 0xb8000);
    cr_assert_eq(ram.base[b.rbx + 109], 2, "EGA text");
}

Test(loader_formats, multiboot_modules)
{
    LOCALS;
    struct mb_elf e = make_elf32();

    add_module("first", 5, "a.bin x=1");
    add_module("second", 6, "b.bin");
    LOAD(e, BOOT_MULTIBOOT);
    cr_assert_eq(WORD(b.rbx + 20), 2);
    uint32_t m = WORD(b.rbx + 24);
    cr_assert_eq(WORD(m) & 0xfff, 0, "page aligned");
    cr_assert_geq(WORD(m), b.kernel_end);
    cr_assert_eq(WORD(m + 4) - WORD(m), 5);
    cr_assert_arr_eq(ram.base + WORD(m), "first", 5);
    cr_assert_str_eq((char *)ram.base + WORD(m + 8), "a.bin x=1");
    cr_assert_geq(WORD(m + 16), WORD(m + 4));
    cr_assert_arr_eq(ram.base + WORD(m + 16), "second", 6);

    cr_assert_eq(ftruncate(modules[0].file.fd, 40 * MiB), 0);
    modules[0].file.size = 40 * MiB;
    REFUSE(e, BOOT_MULTIBOOT, "does not fit");
    modules[0].file.size = 50 * MiB;
    e.ph[0].p_memsz = 0x1000;
    REFUSE(e, BOOT_MULTIBOOT, "more --memory");
}

struct mb_kludge {
    uint8_t before[16];
    uint32_t header[8];
    uint8_t text[80];
};

static struct mb_kludge make_kludge(void)
{
    struct mb_kludge k = {.header = {0x1badb002, 0x10000, -(0x1badb002u + 0x10000), 0x100010,
                                     0x100000, 0x100080, 0x110000, 0x100030}};
    memset(k.text, 0xcc, sizeof(k.text));
    return k;
}

Test(loader_formats, multiboot_kludge)
{
    LOCALS;
    struct mb_kludge k = make_kludge();

    LOAD(k, BOOT_AUTO);
    cr_assert_eq(b.rip, 0x100030);
    cr_assert_eq(b.kernel_end, 0x110000);
    cr_assert_eq(WORD(0x100010), 0x1badb002);
    cr_assert_eq(WORD(0x100030), 0xcccccccc);
    k.header[5] = 0; /* load_end 0: the whole file */
    LOAD(k, BOOT_AUTO);
    k.header[6] = 0; /* no bss */
    LOAD(k, BOOT_AUTO);
    cr_assert_eq(b.kernel_end, 0x100000 + sizeof(k));

    static const struct {
        unsigned word;
        uint32_t value;
        const char *words;
    } cases[] = {
        {3, 0xfffff, "header"},           {3, 0x100011, "header"},
        {5, 0xfffff, "before its start"}, {5, 0x100081, "cut short"},
        {6, 0x10007f, "inside its data"}, {6, 0xffffffff, "outside"},
        {7, 0x110000, "entry"},           {7, 0xfffff, "entry"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        k = make_kludge();
        k.header[cases[i].word] = cases[i].value;
        REFUSE(k, BOOT_AUTO, cases[i].words);
    }
    k = make_kludge();
    k.header[3] = 0x90010;
    k.header[4] = 0x90000;
    k.header[5] = k.header[6] = 0;
    REFUSE(k, BOOT_AUTO, "1 MiB");
}

Test(loader_formats, multiboot_refusals)
{
    LOCALS;
    struct mb_elf e = make_elf32();

    e.header[1] = 8; /* a requirement that nobody knows */
    e.header[2] = -(0x1badb002u + 8);
    REFUSE(e, BOOT_AUTO, "flags 0x8");
    e = make_elf32();
    e.header[2]++;
    REFUSE(e, BOOT_MULTIBOOT, "no multiboot header");
    REFUSE(e, BOOT_AUTO, "nothing says how to start it");
    e = make_elf32();
    e.eh.e_machine = EM_ARM;
    REFUSE(e, BOOT_AUTO, "another machine");
    e = make_elf32();
    e.eh.e_entry = 0x300000;
    REFUSE(e, BOOT_AUTO, "entry point");
    e = make_elf32();
    e.ph[0].p_paddr = 0x8000;
    REFUSE(e, BOOT_AUTO, "below 1 MiB");
}

/* -- Multiboot 2 ------------------------------------------------------------------------------ */

struct mb2_image {
    uint32_t header[4];
    uint32_t addresses[6];
    uint32_t entry[4]; /* 12 bytes and padding */
    uint32_t request[4];
    uint32_t end[2];
    uint8_t text[64];
};

static struct mb2_image make_mb2(void)
{
    uint32_t len = offsetof(struct mb2_image, text);
    struct mb2_image k = {
        .header = {0xe85250d6, 0, len, -(0xe85250d6u + len)},
        .addresses = {2, 24, 0x400000, 0x400000, 0, 0x410000},
        .entry = {3, 12, 0x400050},
        .request = {1, 16, 6, 4},
        .end = {0, 8},
    };
    memset(k.text, 0xcc, sizeof(k.text));
    return k;
}

/* The information tag of a type, 0 if there is none. */
static uint32_t mb2_tag(uint32_t info, uint32_t type)
{
    uint32_t at = info + 8, end = info + WORD(info);
    for (; at < end && WORD(at); at += (WORD(at + 4) + 7) & ~7u)
        if (WORD(at) == type)
            return at;
    cr_assert_lt(at, end, "no end tag");
    return 0;
}

Test(loader_formats, multiboot2)
{
    LOCALS;
    struct mb2_image k = make_mb2();

    add_module("module", 6, "mod arg");
    LOAD(k, BOOT_AUTO);
    cr_assert_eq(f, BOOT_MULTIBOOT2);
    cr_assert_eq(b.start, BOOT_START_PROT32);
    cr_assert_eq(b.rax, 0x36d76289);
    cr_assert_eq(b.rip, 0x400050);
    cr_assert_eq(WORD(0x400000), 0xe85250d6);
    cr_assert_eq(b.rbx % 8, 0);
    cr_assert_str_eq((char *)ram.base + mb2_tag((uint32_t)b.rbx, 1) + 8, "one two");
    uint32_t mod = mb2_tag((uint32_t)b.rbx, 3);
    cr_assert_arr_eq(ram.base + WORD(mod + 8), "module", 6);
    cr_assert_str_eq((char *)ram.base + mod + 16, "mod arg");
    uint32_t mem = mb2_tag((uint32_t)b.rbx, 4);
    cr_assert_eq(WORD(mem + 12), 31 * 1024);
    uint32_t map = mb2_tag((uint32_t)b.rbx, 6);
    cr_assert_eq(WORD(map + 4), 16 + 3 * 24);
    cr_assert_eq(WORD(map + 8), 24);
    cr_assert_eq(WORD(map + 16 + 48), MiB);
    cr_assert_eq(mb2_tag((uint32_t)b.rbx, 8), 0, "no screen");
    cr_assert_neq(mb2_tag((uint32_t)b.rbx, 15), 0, "RSDP");
    vga = true;
    LOAD(k, BOOT_AUTO);
    cr_assert_neq(mb2_tag((uint32_t)b.rbx, 8), 0);
    k.addresses[3] = 0xffffffff; /* the whole file */
    LOAD(k, BOOT_AUTO);
}

Test(loader_formats, multiboot2_refusals)
{
    LOCALS;
    static const struct {
        unsigned word;
        uint32_t value;
        const char *words;
    } cases[] = {
        {4, 77, "feature 77"},      {5, 4, "broken"},           {5, 0xffffffff, "broken"},
        {5, 16, "broken"},          {7, 0x400004, "header at"}, {7, 0x3fffff, "header at"},
        {8, 0x400200, "cut short"}, {8, 0x3fffff, "before"},    {9, 0x400001, "inside"},
        {9, 0xf0000000, "outside"}, {11, 4, "broken"},          {12, 0x500000, "entry"},
        {16, 20, "information 20"}, {18, 5, "end tag"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct mb2_image k = make_mb2();
        ((uint32_t *)&k)[cases[i].word] = cases[i].value;
        cr_assert_lt(load(&k, sizeof(k), BOOT_AUTO, &b, &f, err), 0, "case %u", i);
        cr_assert_not_null(strstr(err, cases[i].words), "case %u: %s", i, err);
    }
    struct mb2_image k = make_mb2();
    k.header[2] = 0x10000;
    k.header[3] = -(0xe85250d6u + 0x10000);
    REFUSE(k, BOOT_AUTO, "does not end");
    k = make_mb2();
    k.header[3] ^= 1;
    REFUSE(k, BOOT_MULTIBOOT2, "no multiboot2 header");
}

/* -- PVH, Linux, flat, boot sector ------------------------------------------------------------ */

Test(loader_formats, pvh)
{
    LOCALS;
    struct mb_elf e = make_elf32();

    e.header[0] = 0;
    e.eh.e_phnum = 2;
    add_module("initrd", 6, "initrd");
    LOAD(e, BOOT_AUTO);
    cr_assert_eq(f, BOOT_PVH);
    cr_assert_eq(b.rip, 0x200010);
    cr_assert_eq(WORD(b.rbx), 0x336ec578);
    cr_assert_eq(WORD(b.rbx + 4), 1);
    cr_assert_eq(WORD(b.rbx + 12), 1);
    cr_assert_arr_eq(ram.base + WORD(WORD(b.rbx + 16)), "initrd", 6);
    cr_assert_str_eq((char *)ram.base + WORD(b.rbx + 24), "one two");
    cr_assert_eq(WORD(b.rbx + 32), 0xe0000);
    cr_assert_eq(WORD(b.rbx + 48), 3);
    cr_assert_eq(WORD(WORD(b.rbx + 40) + 48), MiB);
    e.note[4] = 0x500000;
    REFUSE(e, BOOT_PVH, "no PVH entry point");
    e.eh.e_phnum = 1;
    REFUSE(e, BOOT_PVH, "no PVH entry point");
}

Test(loader_formats, linux32)
{
    LOCALS;
    static uint8_t image[0x400 + 4096];
    struct setup_header h = {.setup_sects = 1,
                             .syssize = 256,
                             .boot_flag = 0xaa55,
                             .jump = 0x6aeb,
                             .header = 0x53726448,
                             .version = 0x020f,
                             .loadflags = LOADED_HIGH,
                             .initrd_addr_max = 0x7fffffff,
                             .kernel_alignment = 0x100000,
                             .relocatable_kernel = 1,
                             .cmdline_size = 255,
                             .pref_address = 0x1000000,
                             .init_size = MiB};

    memcpy(image + 0x1f1, &h, sizeof(h));
    memset(image + 0x400, 0x77, 4096);
    LOAD(image, BOOT_AUTO);
    cr_assert_eq(f, BOOT_LINUX);
    cr_assert_eq(b.start, BOOT_START_PROT32);
    cr_assert_eq(b.rip, 0x1000000);
    cr_assert_eq(b.rsi, BOOT_PARAMS);
    cr_assert_eq(WORD(0x1000000), 0x77777777);

    h.xloadflags = XLF_KERNEL_64;
    memcpy(image + 0x1f1, &h, sizeof(h));
    LOAD(image, BOOT_AUTO);
    cr_assert_eq(b.start, BOOT_START_LONG64);
    LOAD(image, BOOT_LINUX32);
    cr_assert_eq(b.start, BOOT_START_PROT32);
    cr_assert_eq(b.rip, 0x1000000);

    h.version = 0x0204; /* Linux 2.6.0: not relocatable, no sizes */
    h.jump = 0x3eeb;
    h.pref_address = 0x12345678;
    h.init_size = 0x11;
    memcpy(image + 0x1f1, &h, sizeof(h));
    LOAD(image, BOOT_AUTO);
    cr_assert_eq(b.start, BOOT_START_PROT32);
    cr_assert_eq(b.rip, MiB);
}

Test(loader_formats, flat_and_boot_sector)
{
    LOCALS;
    static uint8_t image[2048];

    memset(image, 0x11, sizeof(image));
    REFUSE(image, BOOT_AUTO, "--kernel-format flat");
    LOAD(image, BOOT_FLAT);
    cr_assert_eq(b.start, BOOT_START_PROT32);
    cr_assert_eq(b.rip, MiB);
    cr_assert_eq(WORD(MiB + 2044), 0x11111111);

    image[510] = 0x55;
    image[511] = 0xaa;
    LOAD(image, BOOT_AUTO);
    cr_assert_eq(f, BOOT_SECTOR);
    cr_assert_eq(b.start, BOOT_START_REAL);
    cr_assert_eq(b.rip, 0x7c00);
    cr_assert_eq(b.rdx, 0x80);
    cr_assert_eq(WORD(0x7c00 + 2044), 0x11111111);
    uint32_t vector = WORD(0x13 * 4);
    cr_assert_eq(ram.base[(vector >> 16) * 16 + (vector & 0xffff)], 0xcf, "IRET");

    static uint8_t disk[MiB];
    memcpy(disk, image, 512);
    REFUSE(disk, BOOT_AUTO, "--disk");
    REFUSE(disk, BOOT_SECTOR, "room for");
    static uint8_t huge[32 * MiB];
    REFUSE(huge, BOOT_FLAT, "more --memory");
}

Test(loader_formats, module_list)
{
    struct guest_boot boot;
    char err[400], list[200], path[2][40];
    struct mb_elf e = make_elf32();
    struct image_file kernel = file_of(&e, sizeof(e));
    char kernel_path[40];

    snprintf(kernel_path, sizeof(kernel_path), "/proc/self/fd/%d", kernel.fd);
    for (unsigned i = 0; i < 2; i++) {
        struct image_file m = file_of("content", 7);
        snprintf(path[i], sizeof(path[i]), "/proc/self/fd/%d", m.fd);
    }
    snprintf(list, sizeof(list), "%s a,,b c,%s", path[0], path[1]);
    cr_assert_eq(guest_boot_open(&boot, kernel_path, BOOT_AUTO, list, "", err, sizeof(err)), 0,
                 "%s", err);
    cr_assert_eq(boot.nmodules, 2);
    char want[60];
    snprintf(want, sizeof(want), "%s a,b c", path[0]);
    cr_assert_str_eq(boot.modules[0].args, want);
    cr_assert_str_eq(boot.modules[1].args, path[1]);
    guest_boot_close(&boot);
    snprintf(list, sizeof(list), "%s,", path[0]);
    cr_assert_lt(guest_boot_open(&boot, kernel_path, BOOT_AUTO, list, "", err, sizeof(err)), 0);
    cr_assert_not_null(strstr(err, "empty name"));
    snprintf(list, sizeof(list), "%s,/no/such/module x", path[0]);
    cr_assert_lt(guest_boot_open(&boot, kernel_path, BOOT_AUTO, list, "", err, sizeof(err)), 0);
    cr_assert_not_null(strstr(err, "/no/such/module"));
}

/* -- Broken images ---------------------------------------------------------------------------- */

static uint64_t random_state = 88172645463325252ull;

static uint64_t next_random(void) /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static bool survive(const void *image, uint64_t size, enum boot_format wanted)
{
    LOCALS;
    int code = load(image, size, wanted, &b, &f, err);

    if (code) {
        cr_assert(err[0] && !strchr(err, '\n'), "error %d has no sentence", code);
        return false;
    }
    cr_assert_leq(b.kernel_start, b.rip);
    cr_assert_lt(b.rip, b.kernel_end);
    cr_assert_leq(b.kernel_end, 32 * MiB);
    if (f != BOOT_SECTOR)
        cr_assert_geq(b.kernel_start, MiB);
    return true;
}

static void damage(const char *name, const void *good, uint64_t size, uint64_t from, uint64_t to,
                   enum boot_format format)
{
    static const uint32_t values[] = {0,          1,          7,          8,          0x7fffffff,
                                      0x80000000, 0xffffffff, 0xfffffff8, 0x100000,   0xfffff,
                                      0x10000,    0xffff,     0x2000000,  0xfff00000, 4};
    static uint8_t image[8192];
    unsigned loaded = 0;

    for (uint64_t n = 1; n < size; n++)
        survive(good, n, format);
    for (unsigned i = 0; i < 20000; i++) {
        memcpy(image, good, size);
        for (unsigned n = 1 + next_random() % 3; n; n--) {
            uint64_t at = from + next_random() % (to - from - 4);
            uint32_t v = next_random() % 3 ? values[next_random() % 15] : (uint32_t)next_random();
            memcpy(image + (next_random() % 4 ? at & ~3ull : at), &v, 1u << next_random() % 3);
        }
        loaded += survive(image, size, format);
    }
    cr_assert_gt(loaded, 200, "%s: only %u of the mutations were loaded", name, loaded);
}

Test(loader_formats, random_damage)
{
    struct mb_elf e = make_elf32();
    struct mb_kludge k = make_kludge();
    struct mb2_image k2 = make_mb2();

    add_module("module", 6, "mod arg");
    damage("elf", &e, sizeof(e), 16, offsetof(struct mb_elf, text), BOOT_MULTIBOOT);
    damage("kludge", &k, sizeof(k), 28, offsetof(struct mb_kludge, text), BOOT_MULTIBOOT);
    damage("multiboot2", &k2, sizeof(k2), 16, offsetof(struct mb2_image, text), BOOT_MULTIBOOT2);
    e.header[0] = 0;
    e.eh.e_phnum = 2;
    damage("pvh", &e, sizeof(e), 16, sizeof(e), BOOT_PVH);
}
