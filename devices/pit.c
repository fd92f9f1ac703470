/* 8254 PIT: see pit.h. */
#include "devices/pit.h"

#include <string.h>

/* A counter that reloads faster than this still counts right, but interrupts no more often: a
 * guest must not be able to keep the host's I/O thread busy. */
#define PIT_MIN_PERIOD_NS 20000ull

enum { PORT61_GATE2 = 0x01, PORT61_WRITABLE = 0x0f, PORT61_REFRESH = 0x10, PORT61_OUT2 = 0x20 };

/* Period of the DRAM refresh request: 18 ticks of counter 1. */
#define REFRESH_NS (18 * NSEC_PER_SEC / PIT_HZ)

static uint64_t ns_to_ticks(uint64_t ns)
{
    return mul_div(ns, PIT_HZ, NSEC_PER_SEC);
}

/* Rounded up, so that ns_to_ticks(ticks_to_ns(t)) == t. */
static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NSEC_PER_SEC + PIT_HZ - 1) / PIT_HZ);
}

static uint64_t elapsed(const struct pit_counter *c, uint64_t now)
{
    return c->base + (c->running && now > c->start_ns ? ns_to_ticks(now - c->start_ns) : 0);
}

static bool periodic(const struct pit_counter *c)
{
    return c->mode == 2 || c->mode == 3;
}

static uint32_t full_count(const struct pit_counter *c)
{
    return c->bcd ? 10000 : 0x10000;
}

/* Brings the counter to `now`: a new count written while a periodic counter runs is used from the
 * end of the current period. */
static void sync_counter(struct pit_counter *c, uint64_t now)
{
    uint64_t t, periods;

    if (!c->loaded || !periodic(c) || !c->next_count)
        return;
    t = elapsed(c, now);
    if (t < c->count)
        return;
    periods = t / c->count;
    /* Elapsed ticks restart at the first reload after the write; what came since counts by the
     * new value.  The write was less than a period before that reload unless nobody looked. */
    c->start_ns += mul_div(periods * c->count - c->base, NSEC_PER_SEC, PIT_HZ);
    c->base = 0;
    c->count = c->next_count;
    c->next_count = 0;
    c->null_count = false;
}

static void start(struct pit_counter *c, uint64_t now)
{
    if (c->next_count)
        c->count = c->next_count;
    c->next_count = 0;
    c->null_count = false;
    c->loaded = true;
    c->base = 0;
    c->start_ns = now;
    c->running = c->gate || c->mode == 1 || c->mode == 5;
}

static bool output(struct pit_counter *c, uint64_t now)
{
    uint64_t t;

    sync_counter(c, now);
    if (!c->loaded)
        return c->mode != 0;
    t = elapsed(c, now);
    switch (c->mode) {
    case 0:
    case 1:
        return t >= c->count;
    case 2: /* low for the last tick of each period; high while the gate is low */
        return !c->gate || t % c->count != c->count - 1;
    case 3: /* high for the first half, which has the odd tick */
        return !c->gate || t % c->count < (c->count + 1) / 2;
    default: /* 4, 5: low for one tick at the end */
        return t != c->count;
    }
}

static uint16_t counter_value(struct pit_counter *c, uint64_t now)
{
    uint32_t full = full_count(c), value;
    uint64_t t;

    sync_counter(c, now);
    if (!c->loaded)
        return 0;
    t = elapsed(c, now);
    switch (c->mode) {
    case 2:
        value = c->count - (uint32_t)(t % c->count);
        break;
    case 3: /* counts by two, twice per period */
        t = t % c->count * 2;
        value = c->count - (uint32_t)(t % c->count);
        value &= ~1u;
        break;
    default: /* goes on through zero */
        value = (uint32_t)((full + c->count - t % full) % full);
        break;
    }
    value %= full;
    if (c->bcd)
        value = value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10;
    return (uint16_t)value;
}

/* -- Counter 0 and its interrupt --------------------------------------------------------------- */

/* Ticks (since the counter's start) at which the output next rises after `t`, or TIMER_NEVER. */
static uint64_t next_rise(const struct pit_counter *c, uint64_t t)
{
    if (!c->loaded || !c->running)
        return TIMER_NEVER;
    switch (c->mode) {
    case 0:
    case 1:
        return t < c->count ? c->count : TIMER_NEVER;
    case 2:
    case 3:
        return (t / c->count + 1) * c->count;
    default:
        return t < c->count + 1 ? c->count + 1 : TIMER_NEVER;
    }
}

static void schedule(struct pit *p, uint64_t now)
{
    struct pit_counter *c = &p->counter[0];
    uint64_t at;

    sync_counter(c, now);
    p->next_edge = next_rise(c, elapsed(c, now));
    if (p->next_edge == TIMER_NEVER) {
        vm_timer_cancel(&p->timer);
        return;
    }
    at = c->start_ns + ticks_to_ns(p->next_edge - c->base);
    if (periodic(c) && at < now + PIT_MIN_PERIOD_NS && ticks_to_ns(c->count) < PIT_MIN_PERIOD_NS)
        at = now + PIT_MIN_PERIOD_NS;
    vm_timer_set(&p->timer, at);
}

static void update_counter0(struct pit *p)
{
    uint64_t now = timer_now(p->timer.queue);

    irq_set(&p->irq, output(&p->counter[0], now));
    schedule(p, now);
}

static void edge(void *opaque)
{
    struct pit *p = opaque;

    /* The output was low for at least a tick, which may be over already. */
    irq_set(&p->irq, false);
    irq_set(&p->irq, true);
    update_counter0(p);
}

/* -- Registers --------------------------------------------------------------------------------- */

static void changed(struct pit *p, unsigned n)
{
    if (n == 0)
        update_counter0(p);
}

static void set_gate(struct pit *p, unsigned n, bool gate)
{
    struct pit_counter *c = &p->counter[n];
    uint64_t now = timer_now(p->timer.queue);
    bool rising = gate && !c->gate;

    if (gate == c->gate)
        return;
    sync_counter(c, now);
    if (c->mode == 1 || c->mode == 5) { /* the gate is a trigger */
        c->gate = gate;
        if (rising && (c->loaded || c->next_count))
            start(c, now);
    } else if (periodic(c)) { /* low stops and resets; rising reloads */
        c->base = 0;
        c->running = false;
        c->gate = gate;
        if (rising && c->loaded)
            start(c, now);
    } else { /* low pauses */
        c->base = elapsed(c, now);
        c->start_ns = now;
        c->gate = gate;
        c->running = c->loaded && gate;
    }
    changed(p, n);
}

static void load_count(struct pit_counter *c, uint32_t raw, uint64_t now)
{
    if (c->bcd)
        raw = (raw >> 12 & 15) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15);
    if (raw == 0)
        raw = full_count(c);
    /* 1 is illegal in the periodic modes; the data sheet does not say what happens. */
    if (periodic(c) && raw == 1)
        raw = 2;
    sync_counter(c, now);
    c->next_count = raw;
    c->null_count = true;
    /* Modes 1 and 5 wait for the trigger, running periodic counters for the end of the period. */
    if (c->mode == 1 || c->mode == 5 || (periodic(c) && c->loaded && c->running))
        return;
    start(c, now);
}

static void write_counter(struct pit *p, unsigned n, uint8_t value)
{
    struct pit_counter *c = &p->counter[n];
    uint64_t now = timer_now(p->timer.queue);

    switch (c->access) {
    case 1:
        load_count(c, value, now);
        break;
    case 2:
        load_count(c, (uint32_t)value << 8, now);
        break;
    case 3:
        c->write_msb_next = !c->write_msb_next;
        if (c->write_msb_next) {
            c->write_lsb = value;
            if (c->mode == 0) /* the first byte stops the count; OUT goes low at once */
                c->loaded = c->running = false;
        } else {
            load_count(c, (uint32_t)value << 8 | c->write_lsb, now);
        }
        break;
    default:
        return;
    }
    changed(p, n);
}

static void latch_count(struct pit_counter *c, uint64_t now)
{
    if (c->latched_bytes)
        return; /* a second latch command is ignored until the first is read */
    c->latch = counter_value(c, now);
    c->latched_bytes = c->access == 3 ? 2 : 1;
    if (c->access == 2)
        c->latch >>= 8;
}

static void latch_status(struct pit_counter *c, uint64_t now)
{
    if (c->status_latched)
        return;
    sync_counter(c, now);
    c->status = (uint8_t)(output(c, now) << 7 | c->null_count << 6 | c->access << 4 | c->mode << 1 |
                          c->bcd);
    c->status_latched = true;
}

static void write_control(struct pit *p, uint8_t value)
{
    uint64_t now = timer_now(p->timer.queue);
    unsigned n = value >> 6;
    struct pit_counter *c;

    if (n == 3) { /* read-back command */
        for (n = 0; n < 3; n++) {
            if (!(value & (2u << n)))
                continue;
            if (!(value & 0x20))
                latch_count(&p->counter[n], now);
            if (!(value & 0x10))
                latch_status(&p->counter[n], now);
        }
        return;
    }
    c = &p->counter[n];
    if ((value & 0x30) == 0) {
        latch_count(c, now);
        return;
    }
    c->access = value >> 4 & 3;
    c->mode = value >> 1 & 7;
    if (c->mode > 5)
        c->mode -= 4; /* bit 2 of modes 2 and 3 is "don't care" */
    c->bcd = value & 1;
    c->loaded = c->running = false;
    c->null_count = true;
    c->next_count = 0;
    c->write_msb_next = c->read_msb_next = false;
    c->latched_bytes = 0;
    c->status_latched = false;
    changed(p, n);
}

static uint8_t read_counter(struct pit *p, unsigned n)
{
    struct pit_counter *c = &p->counter[n];
    uint16_t value;

    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    if (c->latched_bytes) {
        value = c->latch;
        c->latch >>= 8;
        c->latched_bytes--;
        return (uint8_t)value;
    }
    value = counter_value(c, timer_now(p->timer.queue));
    if (c->access == 1)
        return (uint8_t)value;
    if (c->access == 2)
        return (uint8_t)(value >> 8);
    c->read_msb_next = !c->read_msb_next;
    return (uint8_t)(c->read_msb_next ? value : value >> 8);
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return offset < 3 ? read_counter(opaque, (unsigned)offset) : 0xff;
}

static void pit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    if (offset < 3)
        write_counter(opaque, (unsigned)offset, (uint8_t)value);
    else
        write_control(opaque, (uint8_t)value);
}

const struct io_ops pit_io_ops = {.read = pit_read, .write = pit_write, .max_size = 1};

static uint64_t speaker_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pit *p = opaque;
    uint64_t now = timer_now(p->timer.queue);
    uint8_t value = p->port61;

    (void)offset;
    (void)size;
    if (now / REFRESH_NS & 1)
        value |= PORT61_REFRESH;
    if (output(&p->counter[2], now))
        value |= PORT61_OUT2;
    return value;
}

static void speaker_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *p = opaque;

    (void)offset;
    (void)size;
    p->port61 = value & PORT61_WRITABLE;
    set_gate(p, 2, value & PORT61_GATE2);
}

const struct io_ops pit_speaker_ops = {.read = speaker_read, .write = speaker_write, .max_size = 1};

void pit_reset(struct pit *p)
{
    vm_timer_cancel(&p->timer);
    for (unsigned n = 0; n < 3; n++) {
        struct pit_counter *c = &p->counter[n];

        memset(c, 0, sizeof(*c));
        c->access = 3;
        c->mode = n == 0 ? 2 : 3; /* silent: nothing is loaded until the guest does */
        c->count = 0x10000;
        c->null_count = true;
        c->gate = n != 2;
    }
    p->port61 = 0;
    irq_set(&p->irq, false);
}

void pit_init(struct pit *p, struct irq_line irq0, struct timer_queue *timers)
{
    memset(p, 0, sizeof(*p));
    p->irq = irq0;
    vm_timer_init(&p->timer, timers, edge, p);
    pit_reset(p);
}

void pit_destroy(struct pit *p)
{
    vm_timer_cancel(&p->timer);
}
