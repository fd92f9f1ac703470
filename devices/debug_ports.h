/*
 * Ports by which software talks to whoever watches the machine:
 *   0xe9, 0x402  debug console (Bochs, SeaBIOS and OVMF): each byte goes to the sink, and a read
 *                gives 0xe9, which is how software finds that the port is there;
 *   0xf4         QEMU's isa-debug-exit: a write of `value` ends the machine with exit code
 *                (value << 1) | 1.
 * Without a sink the debug consoles still answer, and swallow what is written.
 */
#ifndef RINGSHIFT_DEVICES_DEBUG_PORTS_H
#define RINGSHIFT_DEVICES_DEBUG_PORTS_H

#include <stddef.h>
#include <stdint.h>

#include "devices/bus.h"

#define DEBUGCON_PORT       0x402
#define DEBUGCON_BOCHS_PORT 0xe9
#define DEBUG_EXIT_PORT     0xf4
#define DEBUG_EXIT_PORTS    4

struct debug_ports {
    /* Where debug output goes, a line at a time or when the buffer is full; must not block for
     * long.  May be NULL. */
    void (*sink)(void *opaque, const char *text, size_t len);
    void (*exit)(void *opaque, int code);
    void *opaque;
    char line[256];
    size_t len;
};

void debug_ports_init(struct debug_ports *d, void (*sink)(void *, const char *, size_t),
                      void (*exit)(void *, int), void *opaque);
/* Hands out what is buffered: at the end, and on reset. */
void debug_ports_flush(struct debug_ports *d);

extern const struct io_ops debugcon_ops;   /* opaque: struct debug_ports; 1 port */
extern const struct io_ops debug_exit_ops; /* opaque: likewise; DEBUG_EXIT_PORTS ports */

#endif
