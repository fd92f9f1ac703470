/*
 * I/O APIC (Intel 82093AA data sheet, with the EOI register of version 0x20).
 */
#ifndef RINGSHIFT_DEVICES_IOAPIC_H
#define RINGSHIFT_DEVICES_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/lapic.h"

#define IOAPIC_BASE 0xfec00000ull
#define IOAPIC_SIZE 0x1000u
#define IOAPIC_PINS 24

struct ioapic {
    struct apic_bus *bus;
    uint8_t id, select;
    uint32_t lines;   /* state of the pins */
    uint32_t latched; /* edges seen on unmasked pins, not delivered */
    uint64_t entry[IOAPIC_PINS];
};

void ioapic_init(struct ioapic *io, struct apic_bus *bus);
void ioapic_reset(struct ioapic *io);
void ioapic_set_irq(struct ioapic *io, unsigned pin, bool level);
/* A local APIC completed a level-triggered interrupt. */
void ioapic_eoi(struct ioapic *io, uint8_t vector);

extern const struct io_ops ioapic_io_ops; /* opaque: struct ioapic */

#endif
