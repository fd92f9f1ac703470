/*
 * Inputs of the harnesses for register devices: a list of 16-byte commands, which write and read
 * the device's regions through a bus, let time pass, or make something happen that comes from
 * outside (a key, a character on the line, an interrupt acknowledged).
 *
 *     byte 0: what, byte 1: size (low two bits) and region or event (rest), byte 2: unused,
 *     bytes 4..7: offset or argument, bytes 8..15: value
 *
 * Seeds are written as text, all numbers hexadecimal:
 *
 *     w1+4:2=30f    write 0x30f, two bytes, to offset 4 of region 1
 *     r1+4:2        read it
 *     t=f4240       1 ms passes
 *     e2+1=41       event 2 with argument 1 and value 0x41
 */
#ifndef RINGSHIFT_TESTS_IO_SCRIPT_H
#define RINGSHIFT_TESTS_IO_SCRIPT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/bus.h"
#include "devices/timer.h"
#include "fuzz.h"

#define SCRIPT_COMMAND 16
#define SCRIPT_REGIONS 8
#define SCRIPT_STRIDE  0x1000000ull /* between the bases of regions */

enum script_op { SCRIPT_WRITE, SCRIPT_READ, SCRIPT_TIME, SCRIPT_EVENT, SCRIPT_OPS };

struct script {
    struct io_bus bus;
    uint32_t len[SCRIPT_REGIONS];
    unsigned regions;
    struct timer_queue timers;
    uint64_t now;
    unsigned jumps; /* times that deadlines were met late */
    unsigned events;
    void (*event)(unsigned what, uint32_t arg, uint64_t value);
};

/* Says what does not hold, and crashes: the driver keeps the input. */
#define FUZZ_CHECK(condition, ...)                                                                 \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "fuzz: " __VA_ARGS__);                                                 \
            fputc('\n', stderr);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static inline uint64_t script_now(void *opaque)
{
    return ((struct script *)opaque)->now;
}

static inline void script_init(struct script *s, unsigned events,
                               void (*event)(unsigned what, uint32_t arg, uint64_t value))
{
    io_bus_destroy(&s->bus);
    *s = (struct script){.events = events, .event = event, .now = 1000 * NSEC_PER_SEC};
    s->timers = (struct timer_queue){.now = script_now, .opaque = s};
}

static inline void script_region(struct script *s, const struct io_ops *ops, void *opaque,
                                 uint32_t len)
{
    if (s->regions == SCRIPT_REGIONS ||
        io_bus_add(&s->bus, s->regions * SCRIPT_STRIDE, len, ops, opaque))
        abort();
    s->len[s->regions++] = len;
}

static inline void script_write(struct script *s, unsigned region, uint32_t offset, unsigned size,
                                uint64_t value)
{
    io_bus_write(&s->bus, region * SCRIPT_STRIDE + offset, size, value);
}

static inline uint64_t script_read(struct script *s, unsigned region, uint32_t offset,
                                   unsigned size)
{
    uint64_t value = io_bus_read(&s->bus, region * SCRIPT_STRIDE + offset, size);

    FUZZ_CHECK(size == 8 || !(value >> (8 * size)), "region %u+%#x: %u bytes read as %#llx", region,
               offset, size, (unsigned long long)value);
    return value;
}

/* Up to 64 deadlines are met in time, the rest late, as on a host that was suspended. */
static inline void script_advance(struct script *s, uint64_t ns)
{
    uint64_t target = s->now + ns, next;

    for (unsigned i = 0; i < 64 && (next = timer_queue_next(&s->timers)) <= target; i++) {
        if (next > s->now)
            s->now = next;
        next = timer_queue_run(&s->timers);
        FUZZ_CHECK(next > s->now, "a timer that never stops being due");
    }
    s->jumps += timer_queue_next(&s->timers) < target;
    s->now = target;
    timer_queue_run(&s->timers);
}

static inline void script_run(struct script *s, const uint8_t *data, size_t len)
{
    for (; len >= SCRIPT_COMMAND; data += SCRIPT_COMMAND, len -= SCRIPT_COMMAND) {
        unsigned size = 1u << (data[1] & 3), which = data[1] >> 2, region = which % s->regions;
        uint32_t offset;
        uint64_t value;

        memcpy(&offset, data + 4, 4);
        memcpy(&value, data + 8, 8);
        switch (data[0] % SCRIPT_OPS) {
        case SCRIPT_WRITE:
            script_write(s, region, offset % s->len[region], size,
                         size == 8 ? value : value & ((1ull << (8 * size)) - 1));
            break;
        case SCRIPT_READ:
            script_read(s, region, offset % s->len[region], size);
            break;
        case SCRIPT_TIME: /* up to 18 minutes */
            script_advance(s, value & 0xffffffffff);
            break;
        default:
            if (s->events)
                s->event(which % s->events, offset, value);
            break;
        }
    }
}

/* One line of text to commands; what does not follow the syntax aborts. */
static inline size_t script_assemble(const char *text, uint8_t *out, size_t max)
{
    size_t len = 0;

    while (*(text += strspn(text, " \n"))) {
        unsigned which = 0, offset = 0, size = 1;
        unsigned long long value = 0;
        uint8_t c[SCRIPT_COMMAND] = {0};
        const char *end = text + strcspn(text, " \n");

        switch (*text) {
        case 'w':
            c[0] = SCRIPT_WRITE;
            if (sscanf(text + 1, "%x+%x:%x=%llx", &which, &offset, &size, &value) != 4)
                abort();
            break;
        case 'r':
            c[0] = SCRIPT_READ;
            if (sscanf(text + 1, "%x+%x:%x", &which, &offset, &size) != 3)
                abort();
            break;
        case 't':
            c[0] = SCRIPT_TIME;
            if (sscanf(text + 1, "=%llx", &value) != 1)
                abort();
            break;
        case 'e':
            c[0] = SCRIPT_EVENT;
            if (sscanf(text + 1, "%x+%x=%llx", &which, &offset, &value) != 3)
                abort();
            break;
        default:
            abort();
        }
        c[1] = (uint8_t)(which << 2 | (size == 8 ? 3 : size == 4 ? 2 : size == 2 ? 1 : 0));
        memcpy(c + 4, &offset, 4);
        memcpy(c + 8, &value, 8);
        if (len + sizeof(c) > max)
            break;
        memcpy(out + len, c, sizeof(c));
        len += sizeof(c);
        text = end;
    }
    return len;
}

/* fuzz_seed() of a harness whose seeds are texts. */
#define SCRIPT_SEEDS(...)                                                                          \
    size_t fuzz_seed(unsigned index, uint8_t *out, size_t max)                                     \
    {                                                                                              \
        static const char *const seeds[] = {__VA_ARGS__};                                          \
                                                                                                   \
        return index < sizeof(seeds) / sizeof(seeds[0]) ? script_assemble(seeds[index], out, max)  \
                                                        : 0;                                       \
    }

#endif
