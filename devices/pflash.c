/* NOR flash: see pflash.h.  Command names are the StrataFlash data sheet's. */
#include "devices/pflash.h"

#include <errno.h>
#include <string.h>

#include "mmu/memory_map.h"

enum {
    CMD_PROGRAM = 0x10,
    CMD_PROGRAM_ALT = 0x40,
    CMD_ERASE = 0x20,
    CMD_ERASE_BANK = 0x28, /* another code for block erase */
    CMD_CLEAR_STATUS = 0x50,
    CMD_LOCK = 0x60,
    CMD_READ_STATUS = 0x70,
    CMD_READ_ID = 0x90,
    CMD_CFI_QUERY = 0x98,
    CMD_SUSPEND = 0xb0,
    CMD_CONFIRM = 0xd0,
    CMD_BUFFER = 0xe8,
    CMD_READ_ARRAY = 0xff,
};
enum {
    STATUS_LOCKED = 0x02,
    STATUS_PROGRAM_ERROR = 0x10,
    STATUS_ERASE_ERROR = 0x20,
    STATUS_READY = 0x80
};

#define MANUFACTURER_ID 0x89
#define DEVICE_ID       0x18

/* Steps of commands that take several writes. */
enum { STEP_BUFFER_COUNT = 0x100 };

static void read_array(struct pflash *p)
{
    p->command = CMD_READ_ARRAY;
    p->buffer_left = 0;
    if (!p->mapped)
        p->mapped = !ram_remap(p->ram, p->gpa, p->size, p->offset, RAM_KIND_ROM);
}

static void take_over(struct pflash *p)
{
    if (p->mapped)
        ram_unmap_region(p->ram, p->gpa, p->size);
    p->mapped = false;
}

/* Keeps and applies a change. */
static void change(struct pflash *p, uint32_t at, const uint8_t *bytes, uint32_t len, uint8_t error)
{
    if (p->store && !p->store(p->opaque, at, bytes, len))
        p->status |= error;
    else
        memcpy(p->data + at, bytes, len);
}

/* Programming can only clear bits. */
static void program(struct pflash *p, uint32_t at, const uint8_t *bytes, uint32_t len)
{
    uint8_t new[PFLASH_WRITE_BUFFER];

    for (uint32_t i = 0; i < len; i++)
        new[i] = p->data[at + i] & bytes[i];
    change(p, at, new, len, STATUS_PROGRAM_ERROR);
}

static void erase(struct pflash *p, uint32_t at)
{
    uint8_t blank[PFLASH_BLOCK];

    memset(blank, 0xff, sizeof(blank));
    change(p, at & ~(PFLASH_BLOCK - 1), blank, PFLASH_BLOCK, STATUS_ERASE_ERROR);
}

/* -- CFI query (JESD68) ------------------------------------------------------------------------ */

static uint8_t cfi(const struct pflash *p, uint32_t at)
{
    uint32_t blocks = p->size / PFLASH_BLOCK - 1;

    switch (at) {
    case 0x10:
        return 'Q';
    case 0x11:
        return 'R';
    case 0x12:
        return 'Y';
    case 0x13:
        return 1; /* Intel/Sharp extended command set */
    case 0x15:
        return 0x31; /* primary table */
    case 0x1b:
        return 0x45; /* voltages */
    case 0x1c:
        return 0x55;
    case 0x1f:
        return 0x07; /* typical times: 2^n microseconds or milliseconds */
    case 0x20:
        return 0x07;
    case 0x21:
        return 0x0a;
    case 0x23:
        return 0x04;
    case 0x24:
        return 0x04;
    case 0x25:
        return 0x04;
    case 0x27:
        return (uint8_t)(31 - __builtin_clz(p->size)); /* 2^n bytes */
    case 0x2a:
        return 6; /* write buffer: 64 bytes */
    case 0x2c:
        return 1; /* one erase region */
    case 0x2d:
        return (uint8_t)blocks;
    case 0x2e:
        return (uint8_t)(blocks >> 8);
    case 0x2f:
        return (uint8_t)(PFLASH_BLOCK >> 8);
    case 0x30:
        return (uint8_t)(PFLASH_BLOCK >> 16);
    case 0x31:
        return 'P';
    case 0x32:
        return 'R';
    case 0x33:
        return 'I';
    case 0x34:
        return '1';
    case 0x35:
        return '0';
    }
    return 0;
}

/* -- Accesses ---------------------------------------------------------------------------------- */

static uint64_t flash_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pflash *p = opaque;

    (void)size; /* 1 */
    switch (p->command) {
    case CMD_READ_ARRAY:
        return p->data[offset];
    case CMD_READ_ID:
        return offset & 0xff ? (offset & 0xff) == 1 ? DEVICE_ID : 0 : MANUFACTURER_ID;
    case CMD_CFI_QUERY:
        return cfi(p, (uint32_t)(offset & 0xff));
    default:
        return p->status;
    }
}

static void first_cycle(struct pflash *p, uint8_t value)
{
    switch (value) {
    case CMD_PROGRAM:
    case CMD_PROGRAM_ALT:
    case CMD_ERASE:
    case CMD_ERASE_BANK:
    case CMD_LOCK:
    case CMD_READ_ID:
    case CMD_CFI_QUERY:
        p->command = value;
        break;
    case CMD_READ_STATUS:
        p->command = CMD_READ_STATUS;
        break;
    case CMD_CLEAR_STATUS:
        p->status = 0; /* READY comes back with the next operation: OVMF looks for 0 */
        read_array(p);
        return;
    case CMD_BUFFER:
        p->command = CMD_BUFFER;
        p->status |= STATUS_READY;
        p->buffer_left = STEP_BUFFER_COUNT;
        break;
    default:
        read_array(p);
        return;
    }
    take_over(p);
}

static void buffer_cycle(struct pflash *p, uint32_t at, uint8_t value)
{
    if (p->buffer_left == STEP_BUFFER_COUNT) { /* the number of bytes, less one */
        if (value >= PFLASH_WRITE_BUFFER) {
            p->status |= STATUS_PROGRAM_ERROR;
            p->command = CMD_READ_STATUS;
            return;
        }
        p->buffer_left = value + 1u;
        memset(p->buffer, 0xff, sizeof(p->buffer));
        p->buffer_low = UINT32_MAX;
        p->buffer_high = 0;
    } else if (p->buffer_left) {
        if (p->buffer_low == UINT32_MAX)
            p->buffer_at = at & ~(PFLASH_WRITE_BUFFER - 1);
        if ((at & ~(PFLASH_WRITE_BUFFER - 1)) != p->buffer_at) {
            p->status |= STATUS_PROGRAM_ERROR;
            p->command = CMD_READ_STATUS;
            return;
        }
        p->buffer[at - p->buffer_at] = value;
        p->buffer_low = at < p->buffer_low ? at : p->buffer_low;
        p->buffer_high = at > p->buffer_high ? at : p->buffer_high;
        p->buffer_left--;
    } else {
        if (value == CMD_CONFIRM)
            program(p, p->buffer_low, p->buffer + (p->buffer_low - p->buffer_at),
                    p->buffer_high - p->buffer_low + 1);
        else
            p->status |= STATUS_PROGRAM_ERROR;
        p->status |= STATUS_READY;
        p->command = CMD_READ_STATUS;
    }
}

static void flash_write(void *opaque, uint64_t offset, unsigned size, uint64_t wide)
{
    struct pflash *p = opaque;
    uint32_t at = (uint32_t)offset;
    uint8_t value = (uint8_t)wide;

    (void)size; /* 1 */
    switch (p->command) {
    case CMD_PROGRAM:
    case CMD_PROGRAM_ALT:
        program(p, at, &value, 1);
        p->status |= STATUS_READY;
        p->command = CMD_READ_STATUS;
        break;
    case CMD_ERASE:
    case CMD_ERASE_BANK:
        if (value == CMD_CONFIRM) {
            erase(p, at);
            p->status |= STATUS_READY;
            p->command = CMD_READ_STATUS;
        } else {
            first_cycle(p, value);
        }
        break;
    case CMD_LOCK: /* block lock bits are accepted and ignored */
        if (value == CMD_CONFIRM || value == 0x01) {
            p->status |= STATUS_READY;
            p->command = CMD_READ_STATUS;
        } else {
            first_cycle(p, value);
        }
        break;
    case CMD_BUFFER:
        buffer_cycle(p, at, value);
        break;
    default:
        first_cycle(p, value);
        break;
    }
}

const struct io_ops pflash_io_ops = {.read = flash_read, .write = flash_write, .max_size = 1};

void pflash_reset(struct pflash *p)
{
    p->status = 0;
    read_array(p);
}

int pflash_init(struct pflash *p, struct guest_ram *ram, struct io_bus *mmio, uint64_t gpa,
                uint32_t size, bool (*store)(void *, uint32_t, const uint8_t *, uint32_t),
                void *opaque)
{
    int err;

    if (!size || size % PFLASH_BLOCK || gpa % PFLASH_BLOCK)
        return -EINVAL;
    *p = (struct pflash){
        .ram = ram,
        .gpa = gpa,
        .size = size,
        .store = store,
        .opaque = opaque,
        .command = CMD_READ_ARRAY,
    };
    err = ram_region_alloc(ram, size, &p->offset, (void **)&p->data);
    err = err ? err : ram_map_region(ram, gpa, size, p->offset, RAM_KIND_ROM);
    p->mapped = !err;
    return err ? err : io_bus_add(mmio, gpa, size, &pflash_io_ops, p);
}
