/* SMBIOS tables: see smbios.h.  Section numbers are those of DSP0134 2.8. */
#include "devices/smbios.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "mmu/ram.h"

#define MANUFACTURER "Ringshift"
#define PRODUCT      "Ringshift PC (i440FX + PIIX)"

/* Handles: the type in the upper byte, as is customary. */
enum {
    HANDLE_SYSTEM = 0x100,
    HANDLE_CHASSIS = 0x300,
    HANDLE_PROCESSOR = 0x400,
    HANDLE_MEMORY_ARRAY = 0x1000,
    HANDLE_MEMORY_DEVICE = 0x1100,
    HANDLE_MAPPED_ADDRESS = 0x1300,
    HANDLE_BOOT = 0x2000,
    HANDLE_END = 0x7f00,
};

#define DEVICE_MAX (16ull << 30) /* one memory device holds at most this */

struct writer {
    uint8_t *buf;
    size_t len, start; /* of all; where the current structure begins */
    unsigned strings, structures;
    size_t text_len;
    char text[256]; /* the current structure's strings, each with its terminator */
    uint16_t largest;
    bool overflow;
};

static void put(struct writer *w, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        if (w->len == SMBIOS_TABLES_MAX) {
            w->overflow = true;
            return;
        }
        w->buf[w->len++] = (uint8_t)(value >> 8 * i);
    }
}

/* A string's number in the structure, which is what its field holds. */
static void put_string(struct writer *w, const char *s)
{
    size_t n = strlen(s) + 1;

    if (n > sizeof(w->text) - w->text_len) {
        w->overflow = true;
        return;
    }
    memcpy(w->text + w->text_len, s, n);
    w->text_len += n;
    put(w, ++w->strings, 1);
}

static void begin(struct writer *w, uint8_t type, uint16_t handle)
{
    w->start = w->len;
    w->strings = 0;
    w->text_len = 0;
    put(w, type, 1);
    put(w, 0, 1); /* length of the formatted part: end() */
    put(w, handle, 2);
}

static void end(struct writer *w)
{
    if (w->overflow)
        return;
    w->buf[w->start + 1] = (uint8_t)(w->len - w->start);
    for (size_t i = 0; i < w->text_len; i++)
        put(w, (uint8_t)w->text[i], 1);
    put(w, 0, w->strings ? 1 : 2);
    if (w->len - w->start > w->largest)
        w->largest = (uint16_t)(w->len - w->start);
    w->structures++;
}

static void system_information(struct writer *w, const struct smbios_config *cfg) /* 7.2 */
{
    begin(w, 1, HANDLE_SYSTEM);
    put_string(w, MANUFACTURER);
    put_string(w, PRODUCT);
    put_string(w, RINGSHIFT_VERSION);
    put(w, 0, 1); /* serial number: none */
    for (unsigned i = 0; i < sizeof(cfg->uuid); i++)
        put(w, cfg->uuid[i], 1);
    put(w, 6, 1); /* woken by the power switch */
    put(w, 0, 1); /* SKU */
    put_string(w, "Virtual Machine");
    end(w);
}

static void chassis(struct writer *w) /* 7.4 */
{
    begin(w, 3, HANDLE_CHASSIS);
    put_string(w, MANUFACTURER);
    put(w, 1, 1); /* type: other */
    put_string(w, RINGSHIFT_VERSION);
    put(w, 0, 2);          /* serial number, asset tag */
    put(w, 0x03030303, 4); /* boot-up, power supply and thermal state: safe; security: none */
    put(w, 0, 4);          /* OEM */
    put(w, 0, 1);          /* height */
    put(w, 0, 1);          /* power cords */
    put(w, 0, 2);          /* contained elements */
    put(w, 0, 1);          /* SKU */
    end(w);
}

static void processor(struct writer *w, const struct smbios_config *cfg, unsigned n) /* 7.5 */
{
    char socket[16];
    uint16_t mhz = cfg->cpu_mhz > 0xffff ? 0xffff : (uint16_t)cfg->cpu_mhz;

    snprintf(socket, sizeof(socket), "CPU %u", n);
    begin(w, 4, (uint16_t)(HANDLE_PROCESSOR + n));
    put_string(w, socket);
    put(w, 3, 1); /* central processor */
    put(w, 1, 1); /* family: other */
    put_string(w, MANUFACTURER);
    put(w, cfg->cpuid_eax, 4);
    put(w, cfg->cpuid_edx, 4);
    put_string(w, RINGSHIFT_VERSION);
    put(w, 0, 1); /* voltage */
    put(w, 0, 2); /* external clock: unknown */
    put(w, mhz, 2);
    put(w, mhz, 2);
    put(w, 0x41, 1);           /* populated, enabled */
    put(w, 1, 1);              /* upgrade: other */
    put(w, 0xffffffffffff, 6); /* caches: not given */
    put(w, 0, 3);              /* serial number, asset tag, part number */
    put(w, 0x010101, 3);       /* one core, enabled, one thread */
    put(w, 0x02, 2);           /* characteristics: unknown */
    put(w, 1, 2);              /* family 2: other */
    end(w);
}

static void memory(struct writer *w, const struct smbios_config *cfg) /* 7.17, 7.18, 7.20 */
{
    uint64_t total = cfg->ram_low + cfg->ram_high;
    unsigned devices = (unsigned)((total + DEVICE_MAX - 1) / DEVICE_MAX);
    const struct {
        uint64_t base, size;
    } part[] = {{0, cfg->ram_low}, {RAM_HIGH_BASE, cfg->ram_high}};

    begin(w, 16, HANDLE_MEMORY_ARRAY);
    put(w, 1, 1); /* location: other */
    put(w, 3, 1); /* use: system memory */
    put(w, 6, 1); /* multi-bit ECC, as QEMU says */
    put(w, total >> 10 < 0x80000000u ? total >> 10 : 0x80000000u, 4);
    put(w, 0xfffe, 2); /* no error information */
    put(w, devices, 2);
    put(w, total >> 10 < 0x80000000u ? 0 : total, 8);
    end(w);

    for (unsigned i = 0; i < devices; i++) {
        uint64_t left = total - i * DEVICE_MAX, size = left < DEVICE_MAX ? left : DEVICE_MAX;
        char name[16];

        snprintf(name, sizeof(name), "DIMM %u", i);
        begin(w, 17, (uint16_t)(HANDLE_MEMORY_DEVICE + i));
        put(w, HANDLE_MEMORY_ARRAY, 2);
        put(w, 0xfffe, 2);
        put(w, 0xffff, 2); /* widths: unknown */
        put(w, 0xffff, 2);
        put(w, size >> 20, 2);
        put(w, 9, 1); /* DIMM */
        put(w, 0, 1);
        put_string(w, name);
        put(w, 0, 1);
        put(w, 7, 1); /* RAM */
        put(w, 2, 2); /* detail: other */
        put(w, 0, 2); /* speed */
        put_string(w, MANUFACTURER);
        put(w, 0, 3); /* serial number, asset tag, part number */
        put(w, 0, 1); /* rank */
        put(w, 0, 4); /* extended size */
        put(w, 0, 2); /* configured speed */
        put(w, 0, 6); /* voltages: unknown */
        end(w);
    }
    for (unsigned i = 0; i < 2; i++) {
        uint64_t first = part[i].base, last = first + part[i].size - 1;
        bool wide = last >> 10 >= 0xffffffffu;

        if (!part[i].size)
            continue;
        begin(w, 19, (uint16_t)(HANDLE_MAPPED_ADDRESS + i));
        put(w, wide ? 0xffffffffu : first >> 10, 4);
        put(w, wide ? 0xffffffffu : last >> 10, 4);
        put(w, HANDLE_MEMORY_ARRAY, 2);
        put(w, 1, 1); /* partition width */
        put(w, wide ? first : 0, 8);
        put(w, wide ? last : 0, 8);
        end(w);
    }
}

static void boot_information(struct writer *w) /* 7.33 */
{
    begin(w, 32, HANDLE_BOOT);
    put(w, 0, 6);
    put(w, 0, 1); /* no errors detected */
    end(w);
}

static void end_of_table(struct writer *w) /* 7.45 */
{
    begin(w, 127, HANDLE_END);
    end(w);
}

static uint8_t checksum(const uint8_t *p, size_t len)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + p[i]);
    return (uint8_t)-sum;
}

/* 5.2.1, with the table at address 0. */
static void entry_point(const struct writer *w, uint8_t a[SMBIOS_ANCHOR_SIZE])
{
    memset(a, 0, SMBIOS_ANCHOR_SIZE);
    memcpy(a, "_SM_", 4);
    a[0x05] = SMBIOS_ANCHOR_SIZE;
    a[0x06] = 2; /* version 2.8 */
    a[0x07] = 8;
    a[0x08] = (uint8_t)w->largest;
    a[0x09] = (uint8_t)(w->largest >> 8);
    memcpy(a + 0x10, "_DMI_", 5);
    a[0x16] = (uint8_t)w->len;
    a[0x17] = (uint8_t)(w->len >> 8);
    a[0x1c] = (uint8_t)w->structures;
    a[0x1d] = (uint8_t)(w->structures >> 8);
    a[0x1e] = 0x28; /* BCD revision */
    a[0x15] = checksum(a + 0x10, 15);
    a[0x04] = checksum(a, SMBIOS_ANCHOR_SIZE);
}

int smbios_build(const struct smbios_config *cfg, uint8_t *tables,
                 uint8_t anchor[SMBIOS_ANCHOR_SIZE])
{
    struct writer w = {.buf = tables};

    system_information(&w, cfg);
    chassis(&w);
    for (unsigned i = 0; i < cfg->cpus; i++)
        processor(&w, cfg, i);
    memory(&w, cfg);
    boot_information(&w);
    end_of_table(&w);
    if (w.overflow)
        return -ENOSPC;
    entry_point(&w, anchor);
    return (int)w.len;
}
