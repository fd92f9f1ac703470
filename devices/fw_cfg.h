/*
 * The firmware configuration device of QEMU's PC machines (QEMU documentation, "QEMU Firmware
 * Configuration (fw_cfg) Device"): how SeaBIOS, OVMF and Linux are told what the machine is like.
 * Items are blobs with a 16-bit key; those from FW_CFG_FILE_FIRST on are files with names, listed
 * in the directory item.  A guest selects a key (port 0x510), then reads bytes (port 0x511), or
 * hands over a descriptor in memory (ports 0x514-0x51b, big-endian).
 */
#ifndef RINGSHIFT_DEVICES_FW_CFG_H
#define RINGSHIFT_DEVICES_FW_CFG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/bus.h"

struct guest_ram;

#define FW_CFG_PORT     0x510 /* selector and data */
#define FW_CFG_PORTS    2
#define FW_CFG_DMA_PORT 0x514
#define FW_CFG_DMA_LEN  8

/* Keys. */
enum {
    FW_CFG_SIGNATURE = 0x00,
    FW_CFG_ID = 0x01,
    FW_CFG_UUID = 0x02,
    FW_CFG_RAM_SIZE = 0x03,
    FW_CFG_NOGRAPHIC = 0x04,
    FW_CFG_NB_CPUS = 0x05,
    FW_CFG_KERNEL_ADDR = 0x07,
    FW_CFG_KERNEL_SIZE = 0x08,
    FW_CFG_INITRD_ADDR = 0x0a,
    FW_CFG_INITRD_SIZE = 0x0b,
    FW_CFG_BOOT_MENU = 0x0e,
    FW_CFG_MAX_CPUS = 0x0f,
    FW_CFG_KERNEL_ENTRY = 0x10,
    FW_CFG_KERNEL_DATA = 0x11,
    FW_CFG_INITRD_DATA = 0x12,
    FW_CFG_CMDLINE_ADDR = 0x13,
    FW_CFG_CMDLINE_SIZE = 0x14,
    FW_CFG_CMDLINE_DATA = 0x15,
    FW_CFG_SETUP_ADDR = 0x16,
    FW_CFG_SETUP_SIZE = 0x17,
    FW_CFG_SETUP_DATA = 0x18,
    FW_CFG_FILE_DIR = 0x19,
    FW_CFG_FILE_FIRST = 0x20,
    FW_CFG_ARCH_LOCAL = 0x8000,
    FW_CFG_IRQ0_OVERRIDE = 0x8002,
};

#define FW_CFG_MAX_FILES 64
#define FW_CFG_KEYS      (FW_CFG_FILE_FIRST + FW_CFG_MAX_FILES)
#define FW_CFG_ARCH_KEYS 8
#define FW_CFG_NAME_MAX  55

struct fw_cfg_item {
    uint8_t *data; /* owned unless `borrowed` */
    uint32_t len;
    bool borrowed;
};

struct fw_cfg_file {
    char name[FW_CFG_NAME_MAX + 1];
    /* Called when the file is selected, before it is read; may replace contents of any file that
     * has the same length. NULL: none. */
    void (*select)(void *opaque);
    void *opaque;
};

struct fw_cfg {
    struct guest_ram *ram;
    struct fw_cfg_item item[FW_CFG_KEYS], arch[FW_CFG_ARCH_KEYS];
    struct fw_cfg_file file[FW_CFG_MAX_FILES];
    unsigned files;
    uint16_t selected;
    uint32_t offset;
    uint32_t dma_high; /* upper half of the descriptor's address */
};

/* Empty but for the signature, the feature word and the directory. -ENOMEM. */
int fw_cfg_init(struct fw_cfg *f, struct guest_ram *ram);
void fw_cfg_reset(struct fw_cfg *f);
void fw_cfg_destroy(struct fw_cfg *f);

/* Copies the blob in as item `key` (below FW_CFG_FILE_FIRST, or from FW_CFG_ARCH_LOCAL on),
 * replacing it.  -EINVAL for another key, -ENOMEM. */
int fw_cfg_set(struct fw_cfg *f, uint16_t key, const void *data, uint32_t len);
/* The same without a copy: the caller keeps `data` alive as long as the device. */
int fw_cfg_set_borrowed(struct fw_cfg *f, uint16_t key, const void *data, uint32_t len);
int fw_cfg_set_u16(struct fw_cfg *f, uint16_t key, uint16_t value);
int fw_cfg_set_u32(struct fw_cfg *f, uint16_t key, uint32_t value);
int fw_cfg_set_u64(struct fw_cfg *f, uint16_t key, uint64_t value);

/* Adds a file, or replaces the one of that name.  The data is copied.  -ENOSPC, -ENAMETOOLONG,
 * -ENOMEM. */
int fw_cfg_set_file(struct fw_cfg *f, const char *name, const void *data, uint32_t len);
int fw_cfg_set_file_u64(struct fw_cfg *f, const char *name, uint64_t value);
/* Has `select` called whenever the guest selects the file.  -ENOENT. */
int fw_cfg_on_select(struct fw_cfg *f, const char *name, void (*select)(void *), void *opaque);
/* The contents of a file, or NULL. */
struct fw_cfg_item *fw_cfg_file(struct fw_cfg *f, const char *name);

extern const struct io_ops fw_cfg_io_ops;  /* opaque: struct fw_cfg; FW_CFG_PORTS ports */
extern const struct io_ops fw_cfg_dma_ops; /* opaque: struct fw_cfg; FW_CFG_DMA_LEN ports */

#endif
