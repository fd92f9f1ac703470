/* The two 8237A DMA controllers: see i8237.h. */
#include "devices/i8237.h"

#include <string.h>

#include "mmu/ram.h"

/* Register offsets of one controller above the channels' address and count registers. */
enum {
    REG_STATUS_COMMAND = 0x8,
    REG_REQUEST = 0x9,
    REG_SINGLE_MASK = 0xa,
    REG_MODE = 0xb,
    REG_CLEAR_FLIP_FLOP = 0xc,
    REG_MASTER_CLEAR = 0xd, /* write; read: temporary register */
    REG_CLEAR_MASK = 0xe,
    REG_ALL_MASK = 0xf,
};

enum { COMMAND_DISABLE = 0x04 };
enum {
    MODE_CHANNEL = 0x03,
    MODE_TRANSFER = 0x0c,
    MODE_VERIFY = 0x00,
    MODE_WRITE = 0x04, /* to memory */
    MODE_READ = 0x08,  /* from memory */
    MODE_AUTOINIT = 0x10,
    MODE_DECREMENT = 0x20,
    MODE_CASCADE = 0xc0,
};

/* Which page register (port 0x80 + n) belongs to a channel. */
static const uint8_t page_of[I8237_CHANNELS] = {0x7, 0x3, 0x1, 0x2, 0xf, 0xb, 0x9, 0xa};

static void clear_chip(struct i8237_chip *c)
{
    c->command = c->status = c->request = c->temporary = 0;
    c->mask = 0x0f;
    c->high_byte = false;
}

void i8237_init(struct i8237 *d, struct guest_ram *ram)
{
    memset(d, 0, sizeof(*d));
    d->ram = ram;
    i8237_reset(d);
}

void i8237_reset(struct i8237 *d)
{
    struct guest_ram *ram = d->ram;

    memset(d, 0, sizeof(*d));
    d->ram = ram;
    for (unsigned i = 0; i < 2; i++)
        clear_chip(&d->chip[i]);
}

bool i8237_ready(const struct i8237 *d, unsigned channel, enum i8237_direction dir)
{
    const struct i8237_chip *chip = &d->chip[channel / 4];
    const struct i8237_channel *c = &chip->channel[channel % 4];
    unsigned transfer = c->mode & MODE_TRANSFER;

    if ((chip->command & COMMAND_DISABLE) || (chip->mask >> (channel % 4) & 1))
        return false;
    /* The first controller reaches the CPU through the second. */
    if (channel < 4 && (d->chip[1].command & COMMAND_DISABLE))
        return false;
    if ((c->mode & MODE_CASCADE) == MODE_CASCADE)
        return false;
    return transfer == MODE_VERIFY || transfer == (dir == I8237_TO_MEMORY ? MODE_WRITE : MODE_READ);
}

static void move(struct i8237 *d, enum i8237_direction dir, uint64_t gpa, void *buf, size_t len)
{
    if (dir == I8237_TO_MEMORY)
        (void)ram_write(d->ram, gpa, buf, len);
    else if (ram_read(d->ram, gpa, buf, len))
        memset(buf, 0xff, len);
}

size_t i8237_transfer(struct i8237 *d, unsigned channel, enum i8237_direction dir, void *buf,
                      size_t len, bool *tc)
{
    struct i8237_chip *chip = &d->chip[channel / 4];
    struct i8237_channel *c = &chip->channel[channel % 4];
    /* Word channels count words and drive A1-A16; the page gives A17-A23. */
    unsigned shift = channel / 4;
    uint64_t page = (uint64_t)(d->page[page_of[channel]] & (shift ? 0xfe : 0xff)) << 16;
    size_t units = len >> shift, done = 0;
    uint8_t *p = buf;

    *tc = false;
    while (done < units && !*tc && i8237_ready(d, channel, dir)) {
        size_t left = (size_t)c->count + 1, n = units - done;
        size_t to_wrap = c->mode & MODE_DECREMENT ? 1 : 0x10000u - c->address;

        /* In runs that neither pass terminal count nor the end of the 64K page. */
        n = n < left ? n : left;
        n = n < to_wrap ? n : to_wrap;
        if ((c->mode & MODE_TRANSFER) != MODE_VERIFY)
            move(d, dir, page + ((uint64_t)c->address << shift), p + (done << shift), n << shift);
        c->address = (uint16_t)(c->mode & MODE_DECREMENT ? c->address - n : c->address + n);
        c->count = (uint16_t)(c->count - n);
        done += n;
        if (n < left)
            continue;
        *tc = true;
        chip->status |= (uint8_t)(1u << (channel % 4));
        chip->request &= (uint8_t) ~(1u << (channel % 4));
        if (c->mode & MODE_AUTOINIT) {
            c->address = c->base_address;
            c->count = c->base_count;
        } else {
            chip->mask |= (uint8_t)(1u << (channel % 4));
        }
    }
    return done << shift;
}

/* -- Registers --------------------------------------------------------------------------------- */

static uint8_t read_chip(struct i8237_chip *chip, unsigned reg)
{
    if (reg < 8) {
        const struct i8237_channel *c = &chip->channel[reg >> 1];
        uint16_t value = reg & 1 ? c->count : c->address;
        bool high = chip->high_byte;

        chip->high_byte = !high;
        return (uint8_t)(high ? value >> 8 : value);
    }
    switch (reg) {
    case REG_STATUS_COMMAND: {
        uint8_t status = (uint8_t)(chip->status | chip->request << 4);

        chip->status = 0; /* reading clears the terminal count bits */
        return status;
    }
    case REG_MASTER_CLEAR:
        return chip->temporary;
    case REG_ALL_MASK:
        return (uint8_t)(chip->mask | 0xf0);
    default:
        return 0xff;
    }
}

static void set_half(uint16_t *reg, bool high, uint8_t value)
{
    *reg = high ? (uint16_t)((*reg & 0x00ff) | value << 8) : (uint16_t)((*reg & 0xff00) | value);
}

static void write_chip(struct i8237_chip *chip, unsigned reg, uint8_t value)
{
    uint8_t bit = (uint8_t)(1u << (value & 3));

    if (reg < 8) {
        struct i8237_channel *c = &chip->channel[reg >> 1];

        set_half(reg & 1 ? &c->base_count : &c->base_address, chip->high_byte, value);
        set_half(reg & 1 ? &c->count : &c->address, chip->high_byte, value);
        chip->high_byte = !chip->high_byte;
        return;
    }
    switch (reg) {
    case REG_STATUS_COMMAND:
        chip->command = value;
        break;
    case REG_REQUEST:
        /* Software requests are remembered for the status register; nothing on a PC is served by
         * them. */
        chip->request = value & 4 ? chip->request | bit : chip->request & (uint8_t)~bit;
        break;
    case REG_SINGLE_MASK:
        chip->mask = value & 4 ? chip->mask | bit : chip->mask & (uint8_t)~bit;
        break;
    case REG_MODE:
        chip->channel[value & MODE_CHANNEL].mode = value & (uint8_t)~MODE_CHANNEL;
        break;
    case REG_CLEAR_FLIP_FLOP:
        chip->high_byte = false;
        break;
    case REG_MASTER_CLEAR:
        clear_chip(chip);
        break;
    case REG_CLEAR_MASK:
        chip->mask = 0;
        break;
    case REG_ALL_MASK:
        chip->mask = value & 0x0f;
        break;
    }
}

static uint64_t read_low(void *opaque, uint64_t offset, unsigned size)
{
    struct i8237 *d = opaque;

    return read_chip(&d->chip[0], (unsigned)offset);
}

static void write_low(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8237 *d = opaque;

    write_chip(&d->chip[0], (unsigned)offset, (uint8_t)value);
}

static uint64_t read_high(void *opaque, uint64_t offset, unsigned size)
{
    struct i8237 *d = opaque;

    return read_chip(&d->chip[1], (unsigned)offset >> 1);
}

static void write_high(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8237 *d = opaque;

    write_chip(&d->chip[1], (unsigned)offset >> 1, (uint8_t)value);
}

/* Page registers without a channel (0x80, 0x84, ...) are plain storage, as POST code and delay
 * loops expect. */
static uint64_t read_page(void *opaque, uint64_t offset, unsigned size)
{
    return ((struct i8237 *)opaque)->page[offset];
}

static void write_page(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    ((struct i8237 *)opaque)->page[offset] = (uint8_t)value;
}

const struct io_ops i8237_low_ops = {.read = read_low, .write = write_low, .max_size = 1};
const struct io_ops i8237_high_ops = {.read = read_high, .write = write_high, .max_size = 1};
static bool read_page_light(void *opaque, uint64_t offset, unsigned size, uint64_t *value)
{
    *value = read_page(opaque, offset, size);
    return true;
}

static bool write_page_light(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    write_page(opaque, offset, size, value);
    return true;
}

const struct io_ops i8237_page_ops = {.read = read_page,
                                      .write = write_page,
                                      .max_size = 1,
                                      .read_light = read_page_light,
                                      .write_light = write_page_light};
