/*
 * 16550A UART (National Semiconductor PC16550D data sheet), as COM1.  The line behind it is a
 * struct chardev and is infinitely fast: a character is sent when it is written, unless the
 * backend pushes back, and "four character times" of silence (the receive time-out) are over at
 * once.
 */
#ifndef RINGSHIFT_DEVICES_SERIAL_H
#define RINGSHIFT_DEVICES_SERIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/chardev.h"
#include "devices/irq.h"

#define SERIAL_COM1_PORT 0x3f8
#define SERIAL_COM1_IRQ  4
#define SERIAL_PORTS     8
#define SERIAL_FIFO      16

struct serial {
    struct irq_line irq;
    struct chardev *backend; /* may be NULL: output is dropped */

    uint8_t ier, lcr, mcr, scr, fcr;
    uint8_t dll, dlm;
    uint8_t lsr_errors; /* UART_LSR_OE; PE/FE/BI come with the character at the head */
    uint8_t msr_delta;  /* low half of MSR */
    uint8_t modem;      /* high half of MSR as last seen */
    bool thre_pending;  /* the transmitter-empty interrupt has not been acknowledged */
    bool line_errors;   /* the character at the head has flags nobody has read yet */
    bool refused;       /* the backend was told "no room" */
    bool in_flush;

    struct {
        uint8_t data, flags; /* UART_LSR_PE / FE / BI */
    } rx[SERIAL_FIFO];
    unsigned rx_head, rx_count;
    uint8_t tx[SERIAL_FIFO];
    unsigned tx_head, tx_count;
};

/* Connects itself to the backend as its client.  The struct must not move afterwards. */
void serial_init(struct serial *s, struct irq_line irq, struct chardev *backend);
void serial_reset(struct serial *s);
/* Disconnects from the backend. */
void serial_destroy(struct serial *s);

extern const struct io_ops serial_io_ops; /* opaque: struct serial */

#endif
