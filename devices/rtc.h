/*
 * MC146818A real-time clock with 128 bytes of CMOS RAM, at ports 0x70/0x71.  It shows the host's
 * time of day (UTC) plus an offset that the guest sets by setting the clock; nothing ticks, the
 * registers are computed when they are read.
 */
#ifndef RINGSHIFT_DEVICES_RTC_H
#define RINGSHIFT_DEVICES_RTC_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/irq.h"
#include "devices/timer.h"

#define RTC_PORT    0x70
#define RTC_IRQ     8
#define RTC_CENTURY 0x32 /* where the FADT says the century is */

struct rtc {
    struct irq_line irq;
    /* Host time of day in ns since 1970 (UTC). */
    int64_t (*wall_clock)(void *opaque);
    void *wall_opaque;
    struct vm_timer timer; /* the next enabled interrupt */

    uint8_t index;
    uint8_t cmos[128];   /* the time registers are only valid while `held` */
    int64_t offset;      /* guest time = wall clock + offset, in ns */
    bool held;           /* SET or divider reset: the time stands still in cmos[] */
    int64_t checked;     /* guest time up to which flags are in register C */
    uint64_t pf_checked; /* likewise for the periodic flag: machine time, ns */
    uint64_t pf_phase;   /* machine time the divider chain was started at */
};

/* ram_low, ram_high: bytes of RAM below and above 4 GiB, for the memory size bytes. */
void rtc_init(struct rtc *r, struct irq_line irq, struct timer_queue *timers,
              int64_t (*wall_clock)(void *), void *wall_opaque, uint64_t ram_low,
              uint64_t ram_high);
/* CMOS contents and time survive, as with a battery. */
void rtc_reset(struct rtc *r);
void rtc_destroy(struct rtc *r);
/* Sets a byte of the RAM that the standard configuration is in (0x10-0x7f, but not the century), as
 * a setup program does. */
void rtc_set_nvram(struct rtc *r, unsigned index, uint8_t value);

extern const struct io_ops rtc_io_ops; /* opaque: struct rtc; 2 ports */

#endif
