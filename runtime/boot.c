/*
 * From open files to a vCPU at the kernel's 64-bit entry point.
 */
#include "runtime/boot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sysinfo.h>

#include "cpu/reset.h"

enum { MAX_E820 = 32 };

int guest_boot_open(struct guest_boot *b, const char *kernel, const char *initrd,
                    const char *cmdline, char *err, size_t errlen)
{
    *b = (struct guest_boot){.kernel.fd = -1, .initrd.fd = -1, .cmdline = cmdline};
    int code = image_open(&b->kernel, kernel, err, errlen);
    if (!code && initrd)
        code = image_open(&b->initrd, initrd, err, errlen);
    if (code)
        guest_boot_close(b);
    return code;
}

void guest_boot_close(struct guest_boot *b)
{
    image_close(&b->kernel);
    image_close(&b->initrd);
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
    vcpu_setup_long64(machine_vcpu(m, 0), b->entry.rip, b->entry.rsi, b->entry.cr3,
                      b->entry.gdt_base, b->entry.gdt_limit, b->entry.cs, b->entry.ds);
    machine_vcpu(m, 0)->gpr[RSP] = b->entry.rsp;
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
