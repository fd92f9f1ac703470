/*
 * From open files to a vCPU at the kernel's entry point.
 */
#include "runtime/boot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sysinfo.h>

#include "cpu/reset.h"

enum { MAX_E820 = 32 };

/* "FILE[ ARGUMENTS],FILE..." into modules; a doubled comma is one that is meant. */
static int open_modules(struct guest_boot *b, const char *list, char *err, size_t errlen)
{
    char *text = strdup(list), *at = text;

    b->module_text = text;
    if (!text) {
        snprintf(err, errlen, "out of memory");
        return -ENOMEM;
    }
    while (at) {
        char *next = NULL, *to = at;
        for (char *from = at; *from; from++) {
            if (*from == ',' && from[1] != ',') {
                next = from + 1;
                break;
            }
            if (*from == ',')
                from++;
            *to++ = *from;
        }
        *to = '\0';
        char *name = at + strspn(at, " ");
        if (!*name) {
            snprintf(err, errlen, "--initrd has an empty name in its list of modules");
            return -EINVAL;
        }
        if (b->nmodules == BOOT_MODULES_MAX) {
            snprintf(err, errlen, "--initrd lists more than %d modules", BOOT_MODULES_MAX);
            return -E2BIG;
        }
        /* The module's own copy of its file name, as its arguments begin with that name. */
        char *path = strndup(name, strcspn(name, " "));
        struct boot_module *m = &b->modules[b->nmodules];
        if (!path) {
            snprintf(err, errlen, "out of memory");
            return -ENOMEM;
        }
        int code = image_open(&m->file, path, err, errlen);
        if (code) {
            free(path);
            return code;
        }
        m->args = name;
        b->nmodules++;
        at = next;
    }
    return 0;
}

int guest_boot_open(struct guest_boot *b, const char *kernel, enum boot_format format,
                    const char *initrd, const char *cmdline, char *err, size_t errlen)
{
    *b = (struct guest_boot){.kernel.fd = -1, .initrd.fd = -1, .cmdline = cmdline};
    int code = kernel ? image_open(&b->kernel, kernel, err, errlen) : 0;
    if (!code && kernel)
        code = boot_detect(&b->kernel, format, &b->format, err, errlen);
    if (!code && initrd) {
        if (boot_takes_modules(b->format))
            code = open_modules(b, initrd, err, errlen);
        else if (b->format == BOOT_FLAT || b->format == BOOT_SECTOR) {
            snprintf(err, errlen, "%s is a %s image, which takes no --initrd", kernel,
                     boot_format_names[b->format]);
            code = -EINVAL;
        } else
            code = image_open(&b->initrd, initrd, err, errlen);
    }
    if (code)
        guest_boot_close(b);
    return code;
}

int guest_boot_open_firmware(struct guest_boot *b, const char *what, const char *vars, char *err,
                             size_t errlen)
{
    char path[4096];
    int code = firmware_open(&b->firmware, what, vars, err, errlen);

    if (code) {
        guest_boot_close(b);
        return code;
    }
    if (!firmware_find("vgabios-stdvga.bin", path, sizeof(path)))
        firmware_read_file(path, 1u << 20, &b->vga_rom, &b->vga_rom_len);
    return 0;
}

void guest_boot_close(struct guest_boot *b)
{
    if (b->firmware.code)
        firmware_close(&b->firmware);
    free(b->vga_rom);
    b->vga_rom = NULL;
    image_close(&b->kernel);
    image_close(&b->initrd);
    for (unsigned i = 0; i < b->nmodules; i++) {
        image_close(&b->modules[i].file);
        free((char *)b->modules[i].file.path);
    }
    b->nmodules = 0;
    free(b->module_text);
    b->module_text = NULL;
}

static void start_vcpu(struct vcpu *v, const struct boot_entry *e)
{
    switch (e->start) {
    case BOOT_START_LONG64:
        vcpu_setup_long64(v, e->rip, e->rsi, e->cr3, e->gdt_base, e->gdt_limit, e->cs, e->ds);
        break;
    case BOOT_START_PROT32:
        vcpu_setup_flat32(v, (uint32_t)e->rip, e->gdt_base, e->gdt_limit, e->cs, e->ds);
        break;
    case BOOT_START_REAL:
        vcpu_setup_real(v, 0, (uint16_t)e->rip, 0, 0, (uint16_t)e->rsp);
        break;
    }
    if (e->start != BOOT_START_LONG64) {
        for (unsigned i = 0; i < 16; i++)
            v->gpr[i] = 0;
        v->gpr[RAX] = e->rax;
        v->gpr[RBX] = e->rbx;
        v->gpr[RDX] = e->rdx;
        v->gpr[RSI] = e->rsi;
    }
    v->gpr[RSP] = e->rsp;
}

int guest_boot_load(struct machine *m, void *opaque, char *err, unsigned errlen)
{
    struct guest_boot *b = opaque;
    struct boot_e820_entry e820[MAX_E820];
    struct guest_ram *ram = machine_ram(m);
    struct screen_info screen;
    uint8_t seed[32];
    struct boot_config cfg = {
        .kernel = &b->kernel,
        .format = b->format,
        .modules = b->modules,
        .nmodules = b->nmodules,
        .vga_text = b->vga_text,
        .initrd = b->initrd.fd >= 0 ? &b->initrd : NULL,
        .cmdline = b->cmdline,
        .acpi_rsdp = machine_acpi_rsdp(m),
        .e820 = e820,
    };
    int code = 0;

    machine_screen_info(m, &screen);
    cfg.screen = &screen;
    cfg.ne820 = machine_e820(m, e820, MAX_E820);
    if (cfg.ne820 > MAX_E820)
        cfg.ne820 = MAX_E820;
    /* A host that has no randomness to give yet does not keep the guest from starting. */
    if (getrandom(seed, sizeof(seed), GRND_NONBLOCK) == (ssize_t)sizeof(seed)) {
        cfg.rng_seed = seed;
        cfg.rng_seed_len = sizeof(seed);
    }
    if (b->boots++) {
        code = boot_clear_ram(ram, e820, cfg.ne820);
        if (code)
            snprintf(err, errlen, "cannot clear guest memory for the reboot: %s", strerror(-code));
    }
    if (!code)
        code = boot_load(ram, &cfg, &b->entry, err, errlen);
    b->load_error = code;
    if (code)
        return code;
    start_vcpu(machine_vcpu(m, 0), &b->entry);
    return 0;
}

/* The smallest memory.max on the way from our cgroup (v2) to the root. */
static uint64_t cgroup_memory_limit(void)
{
    char path[4096] = "", line[4096], file[4400];
    uint64_t limit = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");

    if (!f)
        return limit;
    while (fgets(line, sizeof(line), f))
        if (!strncmp(line, "0::/", 4)) {
            line[strcspn(line, "\n")] = '\0';
            memcpy(path, line + 3, strlen(line + 3) + 1);
        }
    fclose(f);
    while (*path) {
        unsigned long long value;
        snprintf(file, sizeof(file), "/sys/fs/cgroup%s/memory.max", path);
        f = fopen(file, "re");
        if (f && fscanf(f, "%llu", &value) == 1 && value < limit) /* else the word "max" */
            limit = value;
        if (f)
            fclose(f);
        *strrchr(path, '/') = '\0';
    }
    return limit;
}

uint64_t host_memory_limit(void)
{
    struct sysinfo si;
    uint64_t limit = cgroup_memory_limit();

    if (sysinfo(&si))
        return limit;
    uint64_t host = ((uint64_t)si.totalram + si.totalswap) * si.mem_unit;
    return host < limit ? host : limit;
}
