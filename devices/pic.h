/*
 * Two cascaded 8259A interrupt controllers (Intel 8259A data sheet) with the ELCR of the PIIX.
 * The master's INT output is a wire: to LINT0 of the local APICs, or to the CPU's INTR pin.
 */
#ifndef RINGSHIFT_DEVICES_PIC_H
#define RINGSHIFT_DEVICES_PIC_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/irq.h"

#define PIC_MASTER_PORT 0x20
#define PIC_SLAVE_PORT  0xa0
#define PIC_ELCR_PORT   0x4d0
#define PIC_CASCADE     2

struct pic;

struct pic_chip {
    struct pic *pic;
    uint8_t lines; /* state of the inputs */
    uint8_t latch; /* edge-triggered requests not yet acknowledged */
    uint8_t imr, isr;
    uint8_t elcr, elcr_mask;
    uint8_t vector_base; /* ICW2 */
    uint8_t lowest;      /* input with the lowest priority: 7 unless rotated */
    uint8_t icw_next;    /* which ICW the next data write is, 0 when initialised */
    bool icw4_expected, single;
    bool auto_eoi, rotate_on_aeoi, special_mask, special_fully_nested;
    bool level_all; /* ICW1.LTIM */
    bool read_isr, poll;
};

struct pic {
    struct pic_chip chip[2]; /* master, slave */
    struct irq_line out;
};

void pic_init(struct pic *p, struct irq_line out);
void pic_reset(struct pic *p);
/* Drives input n (0..15); n = 2 is the cascade and ignored. */
void pic_set_irq(struct pic *p, unsigned n, bool level);
/* The CPU's interrupt acknowledge cycle: returns the vector, the spurious one (IR7 of the chip
 * that was asked) if the request is gone. */
uint8_t pic_acknowledge(struct pic *p);
bool pic_output(const struct pic *p);

extern const struct io_ops pic_io_ops;   /* opaque: struct pic_chip; 2 ports */
extern const struct io_ops pic_elcr_ops; /* opaque: struct pic; 2 ports */

#endif
