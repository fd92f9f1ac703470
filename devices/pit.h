/*
 * 8254 programmable interval timer (Intel 8254 data sheet) and the PC's port 0x61.
 * Counter 0 drives IRQ 0; counter 1 stands for DRAM refresh; counter 2 has its gate and output at
 * port 0x61 (speaker), which is what operating systems calibrate their clocks with.
 *
 * No counter is ticked: a counter's state is computed from the time at which it was loaded, so the
 * PIT never drifts against the host's clock.
 */
#ifndef RINGSHIFT_DEVICES_PIT_H
#define RINGSHIFT_DEVICES_PIT_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/irq.h"
#include "devices/timer.h"

#define PIT_HZ           1193182ull
#define PIT_PORT         0x40
#define PIT_SPEAKER_PORT 0x61

struct pit_counter {
    uint8_t mode;   /* 0..5 */
    uint8_t access; /* RW bits of the control word: 1 LSB, 2 MSB, 3 LSB then MSB */
    bool bcd;
    bool gate;
    bool null_count;     /* a count was written that is not in use yet, or none at all */
    bool loaded;         /* counting has begun since the last control word */
    bool running;        /* not stopped by the gate */
    uint32_t count;      /* 1..0x10000 (10000 in BCD): the reload value in use */
    uint32_t next_count; /* modes 1, 2, 3, 5: taken at the next reload, 0 = none */
    uint64_t start_ns;   /* when `base` ticks had elapsed */
    uint64_t base;       /* ticks elapsed before start_ns */

    uint8_t write_lsb;
    bool write_msb_next, read_msb_next;
    uint16_t latch;
    uint8_t latched_bytes; /* how many bytes of `latch` are still to be read */
    uint8_t status;
    bool status_latched;
};

struct pit {
    struct pit_counter counter[3];
    struct irq_line irq;
    struct vm_timer timer; /* the next edge of counter 0's output */
    uint64_t next_edge;    /* in ticks of counter 0 */
    uint8_t port61;
};

void pit_init(struct pit *p, struct irq_line irq0, struct timer_queue *timers);
void pit_reset(struct pit *p);
void pit_destroy(struct pit *p);

extern const struct io_ops pit_io_ops;      /* opaque: struct pit; 4 ports from PIT_PORT */
extern const struct io_ops pit_speaker_ops; /* opaque: struct pit; port 0x61 */

#endif
