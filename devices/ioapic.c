/* I/O APIC: see ioapic.h. */
#include "devices/ioapic.h"

#include <string.h>

enum { IOREGSEL = 0x00, IOWIN = 0x10, IOEOI = 0x40 };
enum { IOAPICID = 0, IOAPICVER = 1, IOAPICARB = 2, IOREDTBL = 0x10 };

#define VERSION (0x20u | (IOAPIC_PINS - 1) << 16)

/* Redirection table entry. */
#define RTE_VECTOR     0xffull
#define RTE_MODE_SHIFT 8
#define RTE_LOGICAL    (1ull << 11)
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LEVEL      (1ull << 15)
#define RTE_MASKED     (1ull << 16)
#define RTE_DEST_SHIFT 56
/* Vector, mode, destination mode, polarity, trigger, mask; destination.  Polarity is kept for
 * software to read; our lines carry logical levels. */
#define RTE_WRITABLE 0xff0000000001afffull

/* Sends what pin has to say, if anything. */
static void service(struct ioapic *io, unsigned pin)
{
    uint64_t rte = io->entry[pin];
    uint32_t bit = 1u << pin;
    struct apic_message m = {
        .dest = (uint32_t)(rte >> RTE_DEST_SHIFT),
        .logical = rte & RTE_LOGICAL,
        .mode = rte >> RTE_MODE_SHIFT & 7,
        .vector = (uint8_t)rte,
        .level_triggered = rte & RTE_LEVEL,
    };

    if (rte & RTE_MASKED)
        return;
    if (m.level_triggered) {
        if (!(io->lines & bit) || (rte & RTE_REMOTE_IRR))
            return;
    } else {
        if (!(io->latched & bit))
            return;
        io->latched &= ~bit;
    }
    if (m.mode == APIC_NMI || m.mode == APIC_INIT)
        m.level_triggered = false;
    else if (m.mode != APIC_FIXED && m.mode != APIC_LOWEST)
        return; /* no SMM; ExtINT comes through LINT0 */
    if (m.level_triggered)
        io->entry[pin] |= RTE_REMOTE_IRR;
    if (!apic_bus_send(io->bus, &m) && m.level_triggered)
        io->entry[pin] &= ~RTE_REMOTE_IRR; /* nobody will ever complete it */
}

void ioapic_set_irq(struct ioapic *io, unsigned pin, bool level)
{
    uint32_t bit = 1u << pin;
    bool rising;

    if (pin >= IOAPIC_PINS)
        return;
    rising = level && !(io->lines & bit);
    io->lines = level ? io->lines | bit : io->lines & ~bit;
    if (!rising)
        return;
    /* 82093AA 3.2.4: an edge on a masked pin is not remembered. */
    if (!(io->entry[pin] & (RTE_LEVEL | RTE_MASKED)))
        io->latched |= bit;
    service(io, pin);
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t rte = io->entry[pin];

        if ((rte & RTE_VECTOR) != vector || !(rte & RTE_LEVEL) || !(rte & RTE_REMOTE_IRR))
            continue;
        io->entry[pin] &= ~RTE_REMOTE_IRR;
        service(io, pin); /* still asserted: again */
    }
}

static void write_entry(struct ioapic *io, unsigned pin, unsigned half, uint32_t value)
{
    uint64_t mask = RTE_WRITABLE & (half ? 0xffffffff00000000ull : 0xffffffffull);
    uint64_t wide = half ? (uint64_t)value << 32 : value;

    io->entry[pin] = (io->entry[pin] & ~mask) | (wide & mask);
    if (!(io->entry[pin] & RTE_LEVEL))
        io->entry[pin] &= ~RTE_REMOTE_IRR; /* meaningless for edges */
    if (io->entry[pin] & (RTE_LEVEL | RTE_MASKED))
        io->latched &= ~(1u << pin);
    service(io, pin);
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ioapic *io = opaque;

    (void)size;
    if (offset == IOREGSEL)
        return io->select;
    if (offset != IOWIN)
        return 0;
    switch (io->select) {
    case IOAPICID:
    case IOAPICARB:
        return (uint32_t)io->id << 24;
    case IOAPICVER:
        return VERSION;
    }
    if (io->select >= IOREDTBL && io->select < IOREDTBL + 2 * IOAPIC_PINS) {
        uint64_t rte = io->entry[(io->select - IOREDTBL) / 2];

        return (uint32_t)(io->select & 1 ? rte >> 32 : rte);
    }
    return 0;
}

static void ioapic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *io = opaque;

    (void)size;
    switch (offset) {
    case IOREGSEL:
        io->select = (uint8_t)value;
        break;
    case IOEOI:
        ioapic_eoi(io, (uint8_t)value);
        break;
    case IOWIN:
        if (io->select == IOAPICID)
            io->id = value >> 24 & 0xf;
        else if (io->select >= IOREDTBL && io->select < IOREDTBL + 2 * IOAPIC_PINS)
            write_entry(io, (io->select - IOREDTBL) / 2, io->select & 1, (uint32_t)value);
        break;
    }
}

const struct io_ops ioapic_io_ops = {.read = ioapic_read, .write = ioapic_write, .max_size = 4};

void ioapic_reset(struct ioapic *io)
{
    io->id = 0;
    io->select = 0;
    io->latched = 0;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        io->entry[pin] = RTE_MASKED;
}

void ioapic_init(struct ioapic *io, struct apic_bus *bus)
{
    memset(io, 0, sizeof(*io));
    io->bus = bus;
    ioapic_reset(io);
}
