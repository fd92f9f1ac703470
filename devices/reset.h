/*
 * The chipset's reset and A20 logic: ports 0x92 ("fast A20 and INIT") and 0xcf9 (reset control).
 * The A20 gate is the machine's: port 0x92 and the 8042 both open and close it, the last one wins.
 */
#ifndef RINGSHIFT_DEVICES_RESET_H
#define RINGSHIFT_DEVICES_RESET_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

#define RESET_FAST_PORT    0x92
#define RESET_CONTROL_PORT 0xcf9 /* claimed by pci.c, which shares its address range */
#define RESET_CONTROL_FULL 0x06  /* what the FADT says to write */

struct reset_control {
    void (*reset)(void *opaque);
    void *opaque;
    /* The A20 gate; may be NULL, then the bit is stored and means nothing. */
    void (*set_a20)(void *opaque, bool on);
    bool (*get_a20)(void *opaque);
    uint8_t port92, portcf9;
};

void reset_control_init(struct reset_control *r, void (*reset)(void *), void *opaque);
void reset_control_reset(struct reset_control *r);
uint8_t reset_control_read(const struct reset_control *r);
void reset_control_write(struct reset_control *r, uint8_t value);

extern const struct io_ops reset_fast_ops; /* opaque: struct reset_control; port 0x92 */

#endif
