/*
 * A parallel port (IEEE 1284 compatibility mode, as the PC's LPT1 at 0x378) with a printer that
 * takes everything at once and drops it.  It never interrupts.
 */
#ifndef RINGSHIFT_DEVICES_PARALLEL_H
#define RINGSHIFT_DEVICES_PARALLEL_H

#include <stdint.h>

#include "devices/bus.h"

#define PARALLEL_PORT  0x378
#define PARALLEL_PORTS 8
#define PARALLEL_IRQ   7

struct parallel {
    uint8_t data, control;
};

void parallel_reset(struct parallel *p);

extern const struct io_ops parallel_io_ops; /* opaque: struct parallel */

#endif
