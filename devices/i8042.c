/* 8042 keyboard controller: see i8042.h. */
#include "devices/i8042.h"

#include <string.h>

enum {
    STATUS_OBF = 0x01,
    STATUS_SYS = 0x04,
    STATUS_COMMAND = 0x08,
    STATUS_UNLOCKED = 0x10,
    STATUS_AUX = 0x20,
};
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
    CMD_A20_OFF = 0xdd,
    CMD_A20_ON = 0xdf,
    CMD_PULSE = 0xf0,
};
enum {
    CONFIG_KBD_IRQ = 0x01,
    CONFIG_AUX_IRQ = 0x02,
    CONFIG_SYS = 0x04,
    CONFIG_KBD_OFF = 0x10,
    CONFIG_AUX_OFF = 0x20,
    CONFIG_TRANSLATE = 0x40,
};
enum { OUTPUT_NO_RESET = 0x01, OUTPUT_A20 = 0x02, OUTPUT_KBD_IRQ = 0x10, OUTPUT_AUX_IRQ = 0x20 };

#define BYTE_NS 250000 /* from one byte of a device to the next; a real wire takes up to 1 ms */

/* What the controller makes of scan code set 2 when translation is on: set 1. */
static const uint8_t translation[128] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
};

/* -- The output buffer ------------------------------------------------------------------------- */

static void update_irqs(struct i8042 *k)
{
    bool kbd = k->output_from == I8042_KBD, aux = k->output_from == I8042_AUX;

    irq_set(&k->cfg.kbd_irq, kbd && (k->config & CONFIG_KBD_IRQ));
    irq_set(&k->cfg.aux_irq, aux && (k->config & CONFIG_AUX_IRQ));
}

static void fill(struct i8042 *k, enum i8042_source from, uint8_t value)
{
    k->output = value;
    k->output_from = from;
    update_irqs(k);
}

/* The controller's own answer: at once, and ahead of what a device has sent. */
static void answer(struct i8042 *k, uint8_t value)
{
    if (k->output_from == I8042_KBD && !k->output_raw)
        ps2_queue_return(&k->kbd.queue, k->output_untranslated);
    else if (k->output_from == I8042_AUX && !k->output_raw)
        ps2_queue_return(&k->mouse.queue, k->output_untranslated);
    fill(k, I8042_CONTROLLER, value);
}

/* The byte as the host sees it; false if it only prepares for the next one. */
static bool translate(struct i8042 *k, uint8_t *byte)
{
    if (!(k->config & CONFIG_TRANSLATE))
        return true;
    if (*byte == 0xf0) {
        k->break_prefix = true;
        return false;
    }
    if (*byte < 0x80)
        *byte = translation[*byte];
    else if (*byte == 0x83)
        *byte = 0x41;
    else if (*byte == 0x84)
        *byte = 0x54;
    if (k->break_prefix)
        *byte |= 0x80;
    k->break_prefix = false;
    return true;
}

/* Moves the next byte of a device into the output buffer, if it is free and the time has come. */
static void pump(struct i8042 *k)
{
    bool kbd = k->kbd.queue.count && !(k->config & CONFIG_KBD_OFF);
    bool aux = k->mouse.queue.count && !(k->config & CONFIG_AUX_OFF);

    while (k->output_from == I8042_NOTHING && (kbd || aux)) {
        uint8_t byte;

        if (timer_now(k->cfg.timers) < k->next_ns) {
            if (!k->timer.armed)
                vm_timer_set(&k->timer, k->next_ns);
            return;
        }
        k->output_raw = false;
        if (kbd) {
            byte = k->output_untranslated = ps2_queue_take(&k->kbd.queue);
            kbd = k->kbd.queue.count;
            k->output_raw = k->break_prefix; /* two bytes became one */
            if (translate(k, &byte))
                fill(k, I8042_KBD, byte);
        } else {
            byte = k->output_untranslated = ps2_queue_take(&k->mouse.queue);
            fill(k, I8042_AUX, byte);
            ps2_mouse_report(&k->mouse); /* there is room again */
        }
    }
}

static void on_timer(void *opaque)
{
    pump(opaque);
}

/* -- Commands ---------------------------------------------------------------------------------- */

static void set_a20(struct i8042 *k, bool on)
{
    k->output_port = (uint8_t)((k->output_port & ~OUTPUT_A20) | (on ? OUTPUT_A20 : 0));
    if (k->cfg.set_a20)
        k->cfg.set_a20(k->cfg.opaque, on);
}

static void set_output_port(struct i8042 *k, uint8_t value)
{
    bool reset = k->output_port & ~value & OUTPUT_NO_RESET;

    k->output_port = value;
    set_a20(k, value & OUTPUT_A20);
    if (reset)
        k->cfg.reset(k->cfg.opaque);
}

static uint8_t output_port(const struct i8042 *k)
{
    uint8_t value = k->output_port & (uint8_t) ~(OUTPUT_KBD_IRQ | OUTPUT_AUX_IRQ);

    if (k->cfg.get_a20)
        value = (uint8_t)((value & ~OUTPUT_A20) | (k->cfg.get_a20(k->cfg.opaque) ? OUTPUT_A20 : 0));
    if (k->output_from == I8042_KBD)
        value |= OUTPUT_KBD_IRQ;
    if (k->output_from == I8042_AUX)
        value |= OUTPUT_AUX_IRQ;
    return value;
}

static void set_config(struct i8042 *k, uint8_t value)
{
    k->config = value & 0x7f;
    if (!(k->config & CONFIG_TRANSLATE))
        k->break_prefix = false;
    update_irqs(k);
    pump(k);
}

static void command(struct i8042 *k, uint8_t value)
{
    k->pending = 0;
    if (value >= CMD_PULSE) { /* pulse the output bits that are 0 in the command */
        if (!(value & OUTPUT_NO_RESET))
            k->cfg.reset(k->cfg.opaque);
        return;
    }
    switch (value) {
    case CMD_READ_CONFIG:
        answer(k, k->config);
        break;
    case CMD_AUX_DISABLE:
        set_config(k, k->config | CONFIG_AUX_OFF);
        break;
    case CMD_AUX_ENABLE:
        set_config(k, k->config & (uint8_t)~CONFIG_AUX_OFF);
        break;
    case CMD_AUX_TEST:
        answer(k, k->cfg.devices ? 0x00 : 0xff); /* 0xff: there is no second port */
        break;
    case CMD_SELF_TEST:
        k->config = CONFIG_SYS | CONFIG_KBD_OFF | CONFIG_AUX_OFF;
        k->break_prefix = false;
        answer(k, 0x55);
        break;
    case CMD_KBD_TEST:
        answer(k, 0x00);
        break;
    case CMD_KBD_DISABLE:
        set_config(k, k->config | CONFIG_KBD_OFF);
        break;
    case CMD_KBD_ENABLE:
        set_config(k, k->config & (uint8_t)~CONFIG_KBD_OFF);
        break;
    case CMD_READ_INPUT:
        answer(k, 0x80); /* keyboard not locked */
        break;
    case CMD_READ_OUTPUT:
        answer(k, output_port(k));
        break;
    case CMD_A20_OFF:
    case CMD_A20_ON:
        set_a20(k, value == CMD_A20_ON);
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

/* -- Ports ------------------------------------------------------------------------------------- */

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *k = opaque;

    (void)offset;
    (void)size;
    uint8_t value = k->output; /* stays readable after it has been taken */

    if (k->output_from == I8042_NOTHING)
        return value;
    if (k->output_from != I8042_CONTROLLER)
        k->next_ns = timer_now(k->cfg.timers) + BYTE_NS;
    k->output_from = I8042_NOTHING;
    update_irqs(k);
    pump(k);
    return value;
}

static void to_keyboard(struct i8042 *k, uint8_t value)
{
    k->config &= (uint8_t)~CONFIG_KBD_OFF; /* sending releases the clock line */
    if (k->cfg.devices)
        ps2_keyboard_write(&k->kbd, value);
    pump(k);
}

static void to_mouse(struct i8042 *k, uint8_t value)
{
    k->config &= (uint8_t)~CONFIG_AUX_OFF;
    if (k->cfg.devices)
        ps2_mouse_write(&k->mouse, value);
    pump(k);
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
        set_config(k, (uint8_t)value);
        break;
    case CMD_WRITE_OUTPUT:
        set_output_port(k, (uint8_t)value);
        break;
    case CMD_KBD_LOOP: /* as if the device had sent it, but untranslated */
    case CMD_AUX_LOOP:
        if (pending == CMD_AUX_LOOP && !k->cfg.devices)
            break;
        answer(k, (uint8_t)value);
        k->output_raw = true;
        fill(k, pending == CMD_KBD_LOOP ? I8042_KBD : I8042_AUX, (uint8_t)value);
        break;
    case CMD_AUX_SEND:
        to_mouse(k, (uint8_t)value);
        break;
    default:
        to_keyboard(k, (uint8_t)value);
        break;
    }
}

static uint64_t command_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct i8042 *k = opaque;

    (void)offset;
    (void)size;
    return STATUS_UNLOCKED | (k->output_from != I8042_NOTHING ? STATUS_OBF : 0) |
           (k->output_from == I8042_AUX ? STATUS_AUX : 0) |
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

/* -- Input ------------------------------------------------------------------------------------- */

bool i8042_key(struct i8042 *k, unsigned key, bool down)
{
    bool known = k->cfg.devices && ps2_keyboard_key(&k->kbd, key, down);

    pump(k);
    return known;
}

void i8042_mouse(struct i8042 *k, int dx, int dy, int dz, uint8_t buttons)
{
    if (!k->cfg.devices)
        return;
    ps2_mouse_event(&k->mouse, dx, dy, dz, buttons);
    pump(k);
}

/* -- Life -------------------------------------------------------------------------------------- */

void i8042_reset(struct i8042 *k)
{
    k->config = CONFIG_SYS | CONFIG_KBD_OFF | CONFIG_AUX_OFF;
    k->output_port = 0xcc | OUTPUT_NO_RESET | OUTPUT_A20;
    k->output = 0;
    k->output_from = I8042_NOTHING;
    k->output_raw = k->break_prefix = k->command_last = false;
    k->pending = 0;
    k->next_ns = 0;
    vm_timer_cancel(&k->timer);
    ps2_keyboard_reset(&k->kbd);
    ps2_mouse_reset(&k->mouse);
    update_irqs(k);
}

void i8042_firmware_setup(struct i8042 *k)
{
    set_config(k, CONFIG_SYS | CONFIG_TRANSLATE | CONFIG_KBD_IRQ | CONFIG_AUX_OFF);
}

void i8042_init(struct i8042 *k, const struct i8042_config *cfg)
{
    memset(k, 0, sizeof(*k));
    k->cfg = *cfg;
    vm_timer_init(&k->timer, cfg->timers, on_timer, k);
    i8042_reset(k);
}
