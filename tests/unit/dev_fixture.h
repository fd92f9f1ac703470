/*
 * What tests of devices share: a clock turned by hand, a recorder for interrupt wires, and port
 * accesses the way a bus does them.
 */
#ifndef RINGSHIFT_TESTS_DEV_FIXTURE_H
#define RINGSHIFT_TESTS_DEV_FIXTURE_H

#include <criterion/criterion.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/irq.h"
#include "devices/timer.h"

struct fake_clock {
    struct timer_queue timers;
    uint64_t now;
};

static inline uint64_t fake_clock_now(void *opaque)
{
    return ((struct fake_clock *)opaque)->now;
}

static inline void fake_clock_init(struct fake_clock *c)
{
    *c = (struct fake_clock){.now = 1000 * NSEC_PER_SEC};
    c->timers = (struct timer_queue){.now = fake_clock_now, .opaque = c};
}

/* Moves on to `when`, running each timer at its own time. */
static inline void fake_clock_run_until(struct fake_clock *c, uint64_t when)
{
    uint64_t next;

    while ((next = timer_queue_next(&c->timers)) <= when) {
        if (next > c->now)
            c->now = next;
        timer_queue_run(&c->timers);
    }
    c->now = when;
}

static inline void fake_clock_advance(struct fake_clock *c, uint64_t ns)
{
    fake_clock_run_until(c, c->now + ns);
}

struct fake_irq {
    bool level;
    unsigned rises;
};

static inline void fake_irq_set(void *opaque, unsigned n, bool level)
{
    struct fake_irq *irq = opaque;

    irq += n;
    if (level && !irq->level)
        irq->rises++;
    irq->level = level;
}

static inline struct irq_line fake_irq_line(struct fake_irq *irq)
{
    return (struct irq_line){.set = fake_irq_set, .opaque = irq};
}

static inline uint8_t in8(const struct io_ops *ops, void *dev, uint64_t offset)
{
    return (uint8_t)ops->read(dev, offset, 1);
}

static inline void out8(const struct io_ops *ops, void *dev, uint64_t offset, uint8_t value)
{
    ops->write(dev, offset, 1, value);
}

#endif
