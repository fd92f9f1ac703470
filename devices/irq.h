/*
 * An interrupt wire: what a device drives without knowing which controller is at the other end.
 * `level` is the logical state (true = asserted), whatever the electrical polarity.
 */
#ifndef RINGSHIFT_DEVICES_IRQ_H
#define RINGSHIFT_DEVICES_IRQ_H

#include <stdbool.h>

struct irq_line {
    void (*set)(void *opaque, unsigned n, bool level); /* NULL: not connected */
    void *opaque;
    unsigned n;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->opaque, line->n, level);
}

#endif
