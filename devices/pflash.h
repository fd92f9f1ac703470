/*
 * Parallel NOR flash with the Intel/Sharp command set (CFI primary command set 0001h; JEDEC JESD68,
 * Intel StrataFlash data sheet), 8 bits wide, in the way QEMU's pflash_cfi01 behaves and OVMF's
 * variable driver expects.
 *
 * In read-array mode the contents are mapped as ROM and cost nothing; a write is a command, after
 * which the whole bank belongs to the device until it is put back into read-array mode.
 */
#ifndef RINGSHIFT_DEVICES_PFLASH_H
#define RINGSHIFT_DEVICES_PFLASH_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

struct guest_ram;

#define PFLASH_BLOCK        4096u /* erase block */
#define PFLASH_WRITE_BUFFER 64u

struct pflash {
    struct guest_ram *ram;
    uint64_t gpa, offset; /* where it is decoded; where its bytes are in the RAM memfd */
    uint32_t size;
    uint8_t *data;
    /* Called with what has changed; keeps it. May be NULL. False: it could not, which the guest
     * sees as a program error. */
    bool (*store)(void *opaque, uint32_t at, const uint8_t *data, uint32_t len);
    void *opaque;

    bool mapped; /* read-array mode */
    uint8_t command, status;
    uint32_t buffer_left, buffer_at, buffer_low, buffer_high;
    uint8_t buffer[PFLASH_WRITE_BUFFER];
};

/* Sets aside `size` bytes (a multiple of PFLASH_BLOCK), which the caller fills through p->data, and
 * registers at gpa on the memory bus.  0 or negative errno. */
int pflash_init(struct pflash *p, struct guest_ram *ram, struct io_bus *mmio, uint64_t gpa,
                uint32_t size, bool (*store)(void *, uint32_t, const uint8_t *, uint32_t),
                void *opaque);
void pflash_reset(struct pflash *p);

extern const struct io_ops pflash_io_ops; /* opaque: struct pflash */

#endif
