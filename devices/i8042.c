/* 8042 without a keyboard: see i8042.h. */
#include "devices/i8042.h"

#include <string.h>

enum { STATUS_OBF = 0x01, STATUS_SYS = 0x04, STATUS_COMMAND = 0x08, STATUS_UNLOCKED = 0x10 };
enum {
    CMD_READ_CONFIG = 0x20,
    CMD_WRITE_CONFIG = 0x60,
    CMD_AUX_DISABLE = 0xa7,
    CMD_AUX_ENABLE = 0xa8,
    CMD_AUX_TEST = 0xa9,
    CMD_SELF_TEST = 0xaa,
    CMD_KBD_TEST = 0xab,
    CMD_KBD_DISABLE = 0xad,
    CMD_KBD_ENABLE = 0xae,
    CMD_READ_INPUT = 0xc0,
    CMD_READ_OUTPUT = 0xd0,
    CMD_WRITE_OUTPUT = 0xd1,
    CMD_KBD_LOOP = 0xd2,
    CMD_AUX_LOOP = 0xd3,
    CMD_AUX_SEND = 0xd4,
    CMD_PULSE = 0xf0,
};
enum { CONFIG_SYS = 0x04, CONFIG_KBD_OFF = 0x10, CONFIG_AUX_OFF = 0x20 };
enum { OUTPUT_NO_RESET = 0x01, OUTPUT_A20 = 0x02 };

static void answer(struct i8042 *k, uint8_t value)
{
    k->output = value;
    k->output_full = true;
}

static void set_output_port(struct i8042 *k, uint8_t value)
{
    bool reset = k->output_port & ~value & OUTPUT_NO_RESET;

    k->output_port = value;
    if (reset)
        k->reset(k->opaque);
}

static void command(struct i8042 *k, uint8_t value)
{
    k->pending = 0;
    if (value >= CMD_PULSE) { /* pulse the output bits that are 0 in the command */
        if (!(value & OUTPUT_NO_RESET))
            k->reset(k->opaque);
        return;
    }
    switch (value) {
    case CMD_READ_CONFIG:
        answer(k, k->config);
        break;
    case CMD_AUX_DISABLE:
        k->config |= CONFIG_AUX_OFF;
        break;
    case CMD_AUX_ENABLE:
        k->config &= (uint8_t)~CONFIG_AUX_OFF;
        break;
    case CMD_AUX_TEST:
        answer(k, 0xff); /* there is no second port */
        break;
    case CMD_SELF_TEST:
        k->config = CONFIG_SYS | CONFIG_KBD_OFF | CONFIG_AUX_OFF;
        answer(k, 0x55);
        break;
    case CMD_KBD_TEST:
        answer(k, 0x00);
        break;
    case CMD_KBD_DISABLE:
        k->config |= CONFIG_KBD_OFF;
        break;
    case CMD_KBD_ENABLE:
        k->config &= (uint8_t)~CONFIG_KBD_OFF;
        break;
    case CMD_READ_INPUT:
        answer(k, 0x80); /* keyboard not locked */
        break;
    case CMD_READ_OUTPUT:
        answer(k, k->output_port);
        break;
    case CMD_WRITE_CONFIG:
    case CMD_WRITE_OUTPUT:
    case CMD_KBD_LOOP:
    case CMD_AUX_LOOP:
    case CMD_AUX_SEND:
        k->pending = value;
        break;
    }
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *k = opaque;

    (void)offset;
    (void)size;
    k->output_full = false;
    return k->output;
}

static void data_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *k = opaque;
    uint8_t pending = k->pending;

    (void)offset;
    (void)size;
    k->command_last = false;
    k->pending = 0;
    switch (pending) {
    case CMD_WRITE_CONFIG:
        k->config = (uint8_t)value;
        break;
    case CMD_WRITE_OUTPUT:
        set_output_port(k, (uint8_t)value);
        break;
    case CMD_KBD_LOOP:
        answer(k, (uint8_t)value);
        break;
    default: /* to a device that is not there: no answer */
        break;
    }
}

static uint64_t command_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct i8042 *k = opaque;

    (void)offset;
    (void)size;
    return STATUS_UNLOCKED | (k->output_full ? STATUS_OBF : 0) |
           (k->config & CONFIG_SYS ? STATUS_SYS : 0) | (k->command_last ? STATUS_COMMAND : 0);
}

static void command_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *k = opaque;

    (void)offset;
    (void)size;
    k->command_last = true;
    command(k, (uint8_t)value);
}

const struct io_ops i8042_data_ops = {.read = data_read, .write = data_write, .max_size = 1};
const struct io_ops i8042_command_ops = {
    .read = command_read,
    .write = command_write,
    .max_size = 1,
};

void i8042_reset(struct i8042 *k)
{
    k->config = CONFIG_SYS | CONFIG_KBD_OFF | CONFIG_AUX_OFF;
    k->output_port = 0xcc | OUTPUT_NO_RESET | OUTPUT_A20;
    k->output = 0;
    k->output_full = k->command_last = false;
    k->pending = 0;
}

void i8042_init(struct i8042 *k, void (*reset)(void *), void *opaque)
{
    memset(k, 0, sizeof(*k));
    k->reset = reset;
    k->opaque = opaque;
    i8042_reset(k);
}
