/*
 * The PC's two 8237A DMA controllers and their page registers (Intel 8237A data sheet; 82371SB
 * data sheet, 4.2): channels 0-3 move bytes, channels 5-7 words, channel 4 cascades the first
 * controller.  A device that holds DREQ calls i8237_transfer(), which moves what the guest has
 * programmed the channel for.
 */
#ifndef RINGSHIFT_DEVICES_I8237_H
#define RINGSHIFT_DEVICES_I8237_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/bus.h"

struct guest_ram;

#define I8237_PORT_LOW   0x00 /* 16 ports, channels 0-3 */
#define I8237_PORT_PAGE  0x80 /* 16 ports */
#define I8237_PORT_HIGH  0xc0 /* 32 ports, channels 4-7, even addresses */
#define I8237_CHANNELS   8
#define I8237_PORTS_LOW  16
#define I8237_PORTS_PAGE 16
#define I8237_PORTS_HIGH 32

struct i8237_channel {
    uint16_t base_address, base_count;
    uint16_t address, count; /* count is one less than what is left; 0xffff after the last */
    uint8_t mode;
};

struct i8237_chip {
    struct i8237_channel channel[4];
    uint8_t command, status, mask, request, temporary;
    bool high_byte; /* the byte pointer flip-flop */
};

struct i8237 {
    struct guest_ram *ram;
    struct i8237_chip chip[2];
    uint8_t page[16];
};

/* Which way data moves, seen from memory. */
enum i8237_direction { I8237_TO_MEMORY, I8237_FROM_MEMORY };

void i8237_init(struct i8237 *d, struct guest_ram *ram);
void i8237_reset(struct i8237 *d);

/* True if the device on this channel would be served: controller enabled, channel unmasked, not a
 * cascade, programmed for this direction (or for "verify", which moves nothing) and, where
 * autoinitialization is off, not at terminal count. */
bool i8237_ready(const struct i8237 *d, unsigned channel, enum i8237_direction dir);

/*
 * Moves up to len bytes between buf and memory (whole words on channels 5-7).  Returns how many
 * bytes the channel took, fewer than len when its count ran out or it is not ready; *tc is set to
 * whether terminal count was reached, with which the transfer ends.  Memory that is not RAM reads
 * as 0xff and swallows writes.  A "verify" transfer counts and leaves both sides alone.
 */
size_t i8237_transfer(struct i8237 *d, unsigned channel, enum i8237_direction dir, void *buf,
                      size_t len, bool *tc);

extern const struct io_ops i8237_low_ops;  /* opaque: struct i8237; I8237_PORT_LOW */
extern const struct io_ops i8237_page_ops; /* opaque: struct i8237; I8237_PORT_PAGE */
extern const struct io_ops i8237_high_ops; /* opaque: struct i8237; I8237_PORT_HIGH */

#endif
