/*
 * 8042 keyboard controller (IBM PS/2 "Keyboard and Auxiliary Device Controller"): ports 0x60 and
 * 0x64, a keyboard and a mouse behind it (ps2.h), their interrupts, the A20 gate and the reset
 * line.  It can also be without devices: then the FADT says that there is none, ACPI systems leave
 * it alone, and others find a controller that works and nothing plugged in.
 *
 * A byte from a device takes a little while on its wire: the next one appears in the output buffer
 * some time after the last was read, so that a chain of interrupt handlers can read it again.
 */
#ifndef RINGSHIFT_DEVICES_I8042_H
#define RINGSHIFT_DEVICES_I8042_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/irq.h"
#include "devices/ps2.h"
#include "devices/timer.h"

#define I8042_DATA_PORT    0x60
#define I8042_COMMAND_PORT 0x64
#define I8042_KBD_IRQ      1
#define I8042_AUX_IRQ      12

struct i8042_config {
    void (*reset)(void *opaque);            /* the reset line was pulled */
    void (*set_a20)(void *opaque, bool on); /* the A20 gate changed; may be NULL */
    bool (*get_a20)(void *opaque);          /* its state, which others change too; may be NULL */
    void *opaque;
    struct irq_line kbd_irq, aux_irq;
    struct timer_queue *timers;
    bool devices; /* a keyboard and a mouse are plugged in */
};

enum i8042_source { I8042_NOTHING, I8042_CONTROLLER, I8042_KBD, I8042_AUX };

struct i8042 {
    struct i8042_config cfg;
    uint8_t config, output_port, output;
    enum i8042_source output_from; /* whose byte the output buffer holds; I8042_NOTHING: empty */
    bool output_raw;               /* the byte before translation is gone: cannot be put back */
    uint8_t output_untranslated;
    bool break_prefix; /* translation: 0xf0 has been seen */
    bool command_last;
    uint8_t pending;  /* command that waits for its data byte, 0 = none */
    uint64_t next_ns; /* no device's byte appears before */
    struct vm_timer timer;
    struct ps2_keyboard kbd;
    struct ps2_mouse mouse;
};

void i8042_init(struct i8042 *k, const struct i8042_config *cfg);
void i8042_reset(struct i8042 *k);
/* What a BIOS leaves behind: translation on, keyboard and its interrupt enabled. */
void i8042_firmware_setup(struct i8042 *k);

/* -- Input, machine lock held. ----------------------------------------------------------------- */
/* KEY_* goes down or up; false if there is no such key, or no keyboard. */
bool i8042_key(struct i8042 *k, unsigned key, bool down);
/* Relative movement, wheel clicks towards the user, and PS2_* buttons held from now on. */
void i8042_mouse(struct i8042 *k, int dx, int dy, int dz, uint8_t buttons);

extern const struct io_ops i8042_data_ops;    /* opaque: struct i8042; port 0x60 */
extern const struct io_ops i8042_command_ops; /* opaque: struct i8042; port 0x64 */

#endif
