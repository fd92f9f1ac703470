/*
 * 8042 keyboard controller with nothing plugged in: enough for its self test, the A20 gate and the
 * reset line.  The FADT says there is none, so ACPI systems leave it alone; others find a
 * controller that works and no keyboard.
 */
#ifndef RINGSHIFT_DEVICES_I8042_H
#define RINGSHIFT_DEVICES_I8042_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

#define I8042_DATA_PORT    0x60
#define I8042_COMMAND_PORT 0x64

struct i8042 {
    void (*reset)(void *opaque);
    void *opaque;
    uint8_t config, output_port, output;
    bool output_full, command_last;
    uint8_t pending; /* command that waits for its data byte, 0 = none */
};

void i8042_init(struct i8042 *k, void (*reset)(void *), void *opaque);
void i8042_reset(struct i8042 *k);

extern const struct io_ops i8042_data_ops;    /* opaque: struct i8042; port 0x60 */
extern const struct io_ops i8042_command_ops; /* opaque: struct i8042; port 0x64 */

#endif
