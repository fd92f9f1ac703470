/*
 * fw_cfg: see fw_cfg.h.
 *
 * Nothing can be written: the machine has no file that a guest may change, so DMA writes fail, as
 * the specification says they do for read-only items.  Reading past the end of an item, or one that
 * is not there, gives zeros.
 */
#include "devices/fw_cfg.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mmu/ram.h"

enum { /* the descriptor's control word */
       DMA_ERROR = 1u << 0,
       DMA_READ = 1u << 1,
       DMA_SKIP = 1u << 2,
       DMA_SELECT = 1u << 3,
       DMA_WRITE = 1u << 4,
};

enum { ID_TRADITIONAL = 1u << 0, ID_DMA = 1u << 1 };

#define DMA_SIGNATURE 0x51454d5520434647ull /* "QEMU CFG" */
#define NO_ITEM       0xffff

struct dma_descriptor { /* big-endian */
    uint32_t control, length;
    uint64_t address;
};

struct dir_entry { /* big-endian */
    uint32_t size;
    uint16_t select, reserved;
    char name[FW_CFG_NAME_MAX + 1];
};

static struct fw_cfg_item *lookup(struct fw_cfg *f, uint16_t key)
{
    if (key < FW_CFG_KEYS)
        return &f->item[key];
    if (key >= FW_CFG_ARCH_LOCAL && key < FW_CFG_ARCH_LOCAL + FW_CFG_ARCH_KEYS)
        return &f->arch[key - FW_CFG_ARCH_LOCAL];
    return NULL;
}

static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->offset = 0;
    f->selected = lookup(f, key) ? key : NO_ITEM;
    if (key >= FW_CFG_FILE_FIRST && key < FW_CFG_FILE_FIRST + f->files) {
        const struct fw_cfg_file *file = &f->file[key - FW_CFG_FILE_FIRST];

        if (file->select)
            file->select(file->opaque);
    }
}

static uint8_t next_byte(struct fw_cfg *f)
{
    const struct fw_cfg_item *i = lookup(f, f->selected);

    return i && f->offset < i->len ? i->data[f->offset++] : 0;
}

/* -- Ports ------------------------------------------------------------------------------------- */

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct fw_cfg *f = opaque;

    /* Reading both ports at once would have to read the selector, which cannot be read. */
    if (offset == 0)
        return 0;
    (void)size;
    return next_byte(f);
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    /* The selector is one word; single bytes of it, and data, cannot be written. */
    if (offset == 0 && size == 2)
        select_item(opaque, (uint16_t)value);
}

const struct io_ops fw_cfg_io_ops = {.read = port_read, .write = port_write, .max_size = 2};

/* -- DMA --------------------------------------------------------------------------------------- */

/* Copies `length` bytes of the item, zeros beyond its end.  False if the range is not RAM. */
static bool dma_copy(struct fw_cfg *f, uint64_t address, uint32_t length)
{
    const struct fw_cfg_item *i = lookup(f, f->selected);
    uint8_t *to = ram_ptr(f->ram, address, length);
    uint32_t have = i && f->offset < i->len ? i->len - f->offset : 0;

    if (!length)
        return true;
    if (!to)
        return false;
    if (have > length)
        have = length;
    ram_before_write(f->ram, address, length);
    if (have)
        memcpy(to, i->data + f->offset, have);
    memset(to + have, 0, length - have);
    f->offset += have;
    return true;
}

static void dma_run(struct fw_cfg *f, uint64_t at)
{
    struct dma_descriptor d;
    uint32_t control, length, status = 0;

    /* One copy: the guest may change it meanwhile. */
    if (ram_read(f->ram, at, &d, sizeof(d)))
        return; /* nowhere to report it to */
    control = be32toh(d.control);
    length = be32toh(d.length);
    if (control & DMA_SELECT)
        select_item(f, (uint16_t)(control >> 16));
    if (control & DMA_READ) {
        if (!dma_copy(f, be64toh(d.address), length))
            status = DMA_ERROR;
    } else if (control & DMA_WRITE) {
        status = DMA_ERROR;
    } else if (control & DMA_SKIP) {
        const struct fw_cfg_item *i = lookup(f, f->selected);
        uint32_t left = i && f->offset < i->len ? i->len - f->offset : 0;

        f->offset += length < left ? length : left;
    }
    d.control = htobe32(status);
    ram_write(f->ram, at, &d.control, sizeof(d.control));
}

static uint64_t dma_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    /* The register is big-endian and reads as a signature. */
    (void)opaque;
    for (unsigned i = 0; i < size; i++)
        value |= (DMA_SIGNATURE >> (56 - 8 * (offset + i)) & 0xff) << 8 * i;
    return value;
}

static void dma_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *f = opaque;
    uint64_t at;

    if (size != 4 || (offset & 3))
        return;
    if (offset == 0) {
        f->dma_high = be32toh((uint32_t)value);
        return;
    }
    at = (uint64_t)f->dma_high << 32 | be32toh((uint32_t)value);
    f->dma_high = 0;
    dma_run(f, at);
}

const struct io_ops fw_cfg_dma_ops = {.read = dma_read, .write = dma_write, .max_size = 4};

/* -- Contents ---------------------------------------------------------------------------------- */

static void release(struct fw_cfg_item *i)
{
    if (!i->borrowed)
        free(i->data);
    *i = (struct fw_cfg_item){0};
}

static int replace(struct fw_cfg_item *i, const void *data, uint32_t len)
{
    uint8_t *copy = malloc(len ? len : 1);

    if (!copy)
        return -ENOMEM;
    memcpy(copy, data, len);
    release(i);
    i->data = copy;
    i->len = len;
    return 0;
}

static struct fw_cfg_item *plain_item(struct fw_cfg *f, uint16_t key)
{
    if (key >= FW_CFG_FILE_FIRST && key < FW_CFG_ARCH_LOCAL)
        return NULL;
    return lookup(f, key);
}

int fw_cfg_set(struct fw_cfg *f, uint16_t key, const void *data, uint32_t len)
{
    struct fw_cfg_item *i = plain_item(f, key);

    return i ? replace(i, data, len) : -EINVAL;
}

int fw_cfg_set_borrowed(struct fw_cfg *f, uint16_t key, const void *data, uint32_t len)
{
    struct fw_cfg_item *i = plain_item(f, key);

    if (!i)
        return -EINVAL;
    release(i);
    *i = (struct fw_cfg_item){.data = (uint8_t *)(uintptr_t)data, .len = len, .borrowed = true};
    return 0;
}

int fw_cfg_set_u16(struct fw_cfg *f, uint16_t key, uint16_t value)
{
    return fw_cfg_set(f, key, &(uint16_t){htole16(value)}, sizeof(value));
}

int fw_cfg_set_u32(struct fw_cfg *f, uint16_t key, uint32_t value)
{
    return fw_cfg_set(f, key, &(uint32_t){htole32(value)}, sizeof(value));
}

int fw_cfg_set_u64(struct fw_cfg *f, uint16_t key, uint64_t value)
{
    return fw_cfg_set(f, key, &(uint64_t){htole64(value)}, sizeof(value));
}

static int rebuild_directory(struct fw_cfg *f)
{
    uint32_t len = (uint32_t)(sizeof(uint32_t) + f->files * sizeof(struct dir_entry));
    uint8_t *dir = calloc(1, len);
    int err;

    if (!dir)
        return -ENOMEM;
    *(uint32_t *)dir = htobe32(f->files);
    for (unsigned i = 0; i < f->files; i++) {
        struct dir_entry e = {.size = htobe32(f->item[FW_CFG_FILE_FIRST + i].len),
                              .select = htobe16((uint16_t)(FW_CFG_FILE_FIRST + i))};

        memcpy(e.name, f->file[i].name, sizeof(e.name));
        memcpy(dir + sizeof(uint32_t) + i * sizeof(e), &e, sizeof(e));
    }
    err = fw_cfg_set(f, FW_CFG_FILE_DIR, dir, len);
    free(dir);
    return err;
}

static int find_file(const struct fw_cfg *f, const char *name)
{
    for (unsigned i = 0; i < f->files; i++)
        if (!strcmp(f->file[i].name, name))
            return (int)i;
    return -ENOENT;
}

int fw_cfg_set_file(struct fw_cfg *f, const char *name, const void *data, uint32_t len)
{
    int n = find_file(f, name), err;

    if (strlen(name) > FW_CFG_NAME_MAX)
        return -ENAMETOOLONG;
    if (n < 0 && f->files == FW_CFG_MAX_FILES)
        return -ENOSPC;
    if (n >= 0)
        err = replace(&f->item[FW_CFG_FILE_FIRST + n], data, len);
    else
        err = replace(&f->item[FW_CFG_FILE_FIRST + f->files], data, len);
    if (err)
        return err;
    if (n < 0) {
        f->file[f->files] = (struct fw_cfg_file){0};
        memcpy(f->file[f->files].name, name, strlen(name));
        f->files++;
    }
    return rebuild_directory(f);
}

int fw_cfg_set_file_u64(struct fw_cfg *f, const char *name, uint64_t value)
{
    return fw_cfg_set_file(f, name, &(uint64_t){htole64(value)}, sizeof(value));
}

int fw_cfg_on_select(struct fw_cfg *f, const char *name, void (*select)(void *), void *opaque)
{
    int n = find_file(f, name);

    if (n < 0)
        return n;
    f->file[n].select = select;
    f->file[n].opaque = opaque;
    return 0;
}

struct fw_cfg_item *fw_cfg_file(struct fw_cfg *f, const char *name)
{
    int n = find_file(f, name);

    return n < 0 ? NULL : &f->item[FW_CFG_FILE_FIRST + n];
}

void fw_cfg_reset(struct fw_cfg *f)
{
    select_item(f, FW_CFG_SIGNATURE);
    f->dma_high = 0;
}

int fw_cfg_init(struct fw_cfg *f, struct guest_ram *ram)
{
    int err;

    memset(f, 0, sizeof(*f));
    f->ram = ram;
    err = fw_cfg_set(f, FW_CFG_SIGNATURE, "QEMU", 4);
    err = err ? err : fw_cfg_set_u32(f, FW_CFG_ID, ID_TRADITIONAL | ID_DMA);
    err = err ? err : rebuild_directory(f);
    fw_cfg_reset(f);
    return err;
}

void fw_cfg_destroy(struct fw_cfg *f)
{
    for (unsigned i = 0; i < FW_CFG_KEYS; i++)
        release(&f->item[i]);
    for (unsigned i = 0; i < FW_CFG_ARCH_KEYS; i++)
        release(&f->arch[i]);
}
