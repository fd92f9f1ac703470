/*
 * Local APIC: see lapic.h.  Section numbers are the SDM's, volume 3.
 *
 * Registers are known by their xAPIC offset; an x2APIC MSR number m is offset (m - 0x800) << 4
 * (10.12.1.2).
 */
#include "devices/lapic.h"

#include <errno.h>
#include <string.h>

enum {
    REG_ID = 0x020,
    REG_VERSION = 0x030,
    REG_TPR = 0x080,
    REG_APR = 0x090,
    REG_PPR = 0x0a0,
    REG_EOI = 0x0b0,
    REG_RRD = 0x0c0,
    REG_LDR = 0x0d0,
    REG_DFR = 0x0e0,
    REG_SVR = 0x0f0,
    REG_ISR = 0x100,
    REG_TMR = 0x180,
    REG_IRR = 0x200,
    REG_ESR = 0x280,
    REG_CMCI = 0x2f0,
    REG_ICR = 0x300,
    REG_ICR2 = 0x310,
    REG_LVT = 0x320,
    REG_LVT_LAST = 0x370,
    REG_INITIAL = 0x380,
    REG_CURRENT = 0x390,
    REG_DIVIDE = 0x3e0,
    REG_SELF_IPI = 0x3f0,
};

/* Version 0x14, six LVT entries, no EOI-broadcast suppression (10.4.8). */
#define VERSION (0x14u | (LVT_COUNT - 1) << 16)

enum { SVR_ENABLE = 1u << 8, SVR_MASK = 0x1ff | 1u << 9 };
enum { ESR_SEND_ILLEGAL = 1u << 5, ESR_RECV_ILLEGAL = 1u << 6, ESR_REGISTER = 1u << 7 };
enum {
    LVT_VECTOR = 0xff,
    LVT_MODE = 7u << 8,
    LVT_POLARITY = 1u << 13,
    LVT_REMOTE_IRR = 1u << 14,
    LVT_LEVEL = 1u << 15,
    LVT_MASKED = 1u << 16,
    LVT_TIMER_MODE = 3u << 17,
};
enum { TIMER_ONESHOT = 0, TIMER_PERIODIC = 1, TIMER_DEADLINE = 2 };

/* Shorter periods count right but interrupt no more often: a guest must not be able to keep the
 * host's I/O thread busy. */
#define MIN_PERIOD_NS 20000ull

static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
    [LVT_THERMAL] = LVT_VECTOR | LVT_MODE | LVT_MASKED,
    [LVT_PERF] = LVT_VECTOR | LVT_MODE | LVT_MASKED,
    [LVT_LINT0] = LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_LINT1] = LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_ERROR] = LVT_VECTOR | LVT_MASKED,
};

static void accept_fixed(struct lapic *l, uint8_t vector, bool level_triggered);

/* -- Bit vectors of 256 interrupts ------------------------------------------------------------- */

static void set_bit(uint32_t *map, uint8_t n)
{
    map[n >> 5] |= 1u << (n & 31);
}

static void clear_bit(uint32_t *map, uint8_t n)
{
    map[n >> 5] &= ~(1u << (n & 31));
}

static bool test_bit(const uint32_t *map, uint8_t n)
{
    return map[n >> 5] >> (n & 31) & 1;
}

static int highest_bit(const uint32_t *map)
{
    for (int i = 7; i >= 0; i--)
        if (map[i])
            return i * 32 + 31 - __builtin_clz(map[i]);
    return -1;
}

/* -- State ------------------------------------------------------------------------------------- */

static bool hw_enabled(const struct lapic *l)
{
    return l->base & APIC_BASE_ENABLE;
}

static bool x2apic(const struct lapic *l)
{
    return (l->base & (APIC_BASE_ENABLE | APIC_BASE_EXTD)) == (APIC_BASE_ENABLE | APIC_BASE_EXTD);
}

static bool sw_enabled(const struct lapic *l)
{
    return hw_enabled(l) && (l->svr & SVR_ENABLE);
}

/* 10.8.3.1 */
static uint8_t processor_priority(const struct lapic *l)
{
    int isrv = highest_bit(l->isr);
    uint8_t service = isrv < 0 ? 0 : (uint8_t)isrv & 0xf0;

    return (l->tpr & 0xf0) >= service ? l->tpr : service;
}

/* The fixed interrupt that may be delivered now, or -1. */
static int deliverable(const struct lapic *l)
{
    int vector;

    if (!sw_enabled(l))
        return -1;
    vector = highest_bit(l->irr);
    return vector >= 0 && (vector & 0xf0) > (processor_priority(l) & 0xf0) ? vector : -1;
}

/* Whether the 8259 interrupts this CPU: through LINT0 as ExtINT, or, with the APIC disabled by
 * IA32_APIC_BASE, through the pin's other function, INTR (10.4.3). */
static bool extint(const struct lapic *l)
{
    uint32_t lvt = l->lvt[LVT_LINT0];

    if (!l->lint[0])
        return false;
    if (!hw_enabled(l))
        return true;
    return !(lvt & LVT_MASKED) && (lvt & LVT_MODE) >> 8 == APIC_EXTINT;
}

void lapic_update(struct lapic *l)
{
    bool pending = deliverable(l) >= 0 || extint(l);

    if (pending != l->intr_pending || pending) {
        l->intr_pending = pending;
        l->cfg.cpu->intr(l->cfg.cpu_opaque, pending);
    }
}

int lapic_acknowledge(struct lapic *l)
{
    int vector = deliverable(l);

    if (vector < 0)
        return extint(l) ? LAPIC_EXTINT : -1;
    clear_bit(l->irr, (uint8_t)vector);
    set_bit(l->isr, (uint8_t)vector);
    lapic_update(l);
    return vector;
}

/* -- Errors and the local vector table --------------------------------------------------------- */

/* An event of a local source goes through its LVT entry (10.5.1). */
static void fire_lvt(struct lapic *l, enum lapic_lvt n)
{
    uint32_t lvt = l->lvt[n];
    unsigned mode = n == LVT_TIMER || n == LVT_ERROR ? APIC_FIXED : (lvt & LVT_MODE) >> 8;

    if ((lvt & LVT_MASKED) || !hw_enabled(l))
        return;
    switch (mode) {
    case APIC_FIXED:
        if (n >= LVT_LINT0 && n <= LVT_LINT1 && (lvt & LVT_LEVEL)) {
            if (lvt & LVT_REMOTE_IRR)
                return;
            l->lvt[n] |= LVT_REMOTE_IRR;
            accept_fixed(l, lvt & LVT_VECTOR, true);
            return;
        }
        accept_fixed(l, lvt & LVT_VECTOR, false);
        break;
    case APIC_NMI:
        l->cfg.cpu->nmi(l->cfg.cpu_opaque);
        break;
    case APIC_INIT:
        l->cfg.cpu->init(l->cfg.cpu_opaque);
        break;
    default: /* SMI: there is no SMM; ExtINT is a level, see extint() */
        break;
    }
}

static void report_error(struct lapic *l, uint32_t bit)
{
    if (l->esr_pending & bit)
        return; /* also ends a recursion through an error entry with an illegal vector */
    l->esr_pending |= bit;
    fire_lvt(l, LVT_ERROR);
}

static void accept_fixed(struct lapic *l, uint8_t vector, bool level_triggered)
{
    if (!sw_enabled(l))
        return;
    if (vector < 16) { /* 10.5.2 */
        report_error(l, ESR_RECV_ILLEGAL);
        return;
    }
    /* TMR is set at acceptance (10.8.4). */
    if (level_triggered)
        set_bit(l->tmr, vector);
    else
        clear_bit(l->tmr, vector);
    set_bit(l->irr, vector);
    lapic_update(l);
}

void lapic_set_lint(struct lapic *l, unsigned pin, bool level)
{
    bool rising = level && !l->lint[pin];
    uint32_t lvt = l->lvt[LVT_LINT0 + pin];

    if (l->lint[pin] == level)
        return;
    l->lint[pin] = level;
    if (!hw_enabled(l) && pin == 1 && rising)
        l->cfg.cpu->nmi(l->cfg.cpu_opaque); /* the pin is NMI then */
    else if (rising || ((lvt & LVT_LEVEL) && level))
        fire_lvt(l, LVT_LINT0 + pin);
    if (pin == 0)
        lapic_update(l);
}

/* -- Timer (10.5.4) ---------------------------------------------------------------------------- */

static unsigned timer_mode(const struct lapic *l)
{
    return (l->lvt[LVT_TIMER] & LVT_TIMER_MODE) >> 17;
}

static unsigned divider(const struct lapic *l)
{
    unsigned shift = (l->divide & 3) | (l->divide >> 1 & 4);

    return 1u << ((shift + 1) & 7);
}

static uint64_t period_ns(const struct lapic *l)
{
    uint64_t ns = mul_div((uint64_t)l->initial_count * divider(l), NSEC_PER_SEC, l->cfg.bus_hz);

    return ns ? ns : 1;
}

/* Whole periods since the count was loaded. */
static uint64_t periods_elapsed(const struct lapic *l)
{
    return (timer_now(l->timer.queue) - l->timer_start) / period_ns(l);
}

static uint32_t current_count(const struct lapic *l)
{
    uint64_t period, t;

    if (timer_mode(l) == TIMER_DEADLINE || l->initial_count == 0)
        return 0;
    period = period_ns(l);
    t = timer_now(l->timer.queue) - l->timer_start;
    if (timer_mode(l) == TIMER_ONESHOT && t >= period)
        return 0;
    t = mul_div(t % period, l->cfg.bus_hz, NSEC_PER_SEC) / divider(l);
    return t >= l->initial_count ? 1 : l->initial_count - (uint32_t)t;
}

static void schedule_deadline(struct lapic *l)
{
    uint64_t tsc = l->cfg.cpu->tsc(l->cfg.cpu_opaque);

    if (l->tsc_deadline == 0) {
        vm_timer_cancel(&l->timer);
    } else if (tsc >= l->tsc_deadline) {
        vm_timer_cancel(&l->timer);
        l->tsc_deadline = 0;
        fire_lvt(l, LVT_TIMER);
    } else {
        uint64_t ns = mul_div(l->tsc_deadline - tsc, NSEC_PER_SEC, l->cfg.tsc_hz);
        uint64_t now = timer_now(l->timer.queue);

        /* Rounded up: the interrupt never comes before the deadline. */
        vm_timer_set(&l->timer, ns >= TIMER_NEVER - 1 - now ? TIMER_NEVER : now + ns + 1);
    }
}

static void schedule_timer(struct lapic *l)
{
    uint64_t now, period, next;

    if (timer_mode(l) == TIMER_DEADLINE) {
        schedule_deadline(l);
        return;
    }
    vm_timer_cancel(&l->timer);
    /* A masked timer counts but needs nobody to wake up for it. */
    if (l->initial_count == 0 || timer_mode(l) > TIMER_PERIODIC || (l->lvt[LVT_TIMER] & LVT_MASKED))
        return;
    now = timer_now(l->timer.queue);
    period = period_ns(l);
    if (timer_mode(l) == TIMER_ONESHOT) {
        if (l->timer_fired || now - l->timer_start >= period)
            return;
        vm_timer_set(&l->timer, l->timer_start + period);
        return;
    }
    /* The period after the last one reported; periods missed while nothing ran are dropped, as
     * they would have merged in the IRR. */
    next = l->timer_start + (periods_elapsed(l) + 1) * period;
    if (period < MIN_PERIOD_NS && next < now + MIN_PERIOD_NS)
        next = now + MIN_PERIOD_NS;
    vm_timer_set(&l->timer, next);
}

static void timer_expired(void *opaque)
{
    struct lapic *l = opaque;

    if (timer_mode(l) == TIMER_DEADLINE) {
        schedule_deadline(l); /* fires, or sleeps on if the clocks' rates differ a little */
        return;
    }
    if (timer_mode(l) == TIMER_ONESHOT)
        l->timer_fired = 1;
    fire_lvt(l, LVT_TIMER);
    schedule_timer(l);
}

static void start_count(struct lapic *l, uint32_t count)
{
    l->initial_count = count;
    l->timer_start = timer_now(l->timer.queue);
    l->timer_fired = 0;
    schedule_timer(l);
}

static void write_divide(struct lapic *l, uint32_t value)
{
    uint32_t left = current_count(l);

    l->divide = value & 0xb;
    if (l->initial_count && timer_mode(l) != TIMER_DEADLINE) {
        /* The count goes on from where it is, at the new rate. */
        uint64_t done = (uint64_t)(l->initial_count - left) * divider(l);
        uint64_t ago = mul_div(done, NSEC_PER_SEC, l->cfg.bus_hz);
        uint64_t now = timer_now(l->timer.queue);

        l->timer_start = ago < now ? now - ago : 0;
    }
    schedule_timer(l);
}

/* -- Inter-processor interrupts (10.6) --------------------------------------------------------- */

/* Does this destination mean us? (10.6.2) */
static bool matches(const struct lapic *l, const struct apic_message *m)
{
    uint32_t dest = m->dest;

    if (!hw_enabled(l))
        return !m->logical && m->mode >= APIC_INIT && (dest == l->cfg.id || dest == 0xff);
    if (x2apic(l)) {
        uint32_t ldr = (l->cfg.id >> 4 << 16) | 1u << (l->cfg.id & 15);

        if (dest == (m->wide ? 0xffffffffu : 0xffu))
            return true;
        if (!m->logical)
            return dest == l->cfg.id;
        return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
    }
    if (m->wide) {
        if (dest == 0xffffffffu)
            return true;
        if (dest > 0xff)
            return false;
    }
    if (!m->logical)
        return dest == 0xff || dest == l->id;
    if (dest == 0xff)
        return true;
    if (l->dfr >> 28 == 0xf) /* flat */
        return dest & (l->ldr >> 24);
    return dest >> 4 == l->ldr >> 28 && (dest & (l->ldr >> 24) & 0xf); /* cluster */
}

/* One local APIC takes a message. */
static void take(struct lapic *l, const struct apic_message *m)
{
    switch (m->mode) {
    case APIC_FIXED:
    case APIC_LOWEST:
        accept_fixed(l, m->vector, m->level_triggered);
        break;
    case APIC_NMI:
        l->cfg.cpu->nmi(l->cfg.cpu_opaque);
        break;
    case APIC_INIT:
        l->cfg.cpu->init(l->cfg.cpu_opaque);
        break;
    case APIC_SIPI:
        l->cfg.cpu->sipi(l->cfg.cpu_opaque, m->vector);
        break;
    default:
        break;
    }
}

bool apic_bus_send(struct apic_bus *bus, const struct apic_message *m)
{
    bool taken = false;

    if (m->mode == APIC_LOWEST) {
        struct lapic *best = NULL;
        unsigned index = 0;

        /* Among equals, take turns. */
        for (unsigned i = 0; i < bus->count; i++) {
            unsigned at = (bus->last_lowest + 1 + i) % bus->count;
            struct lapic *l = bus->lapic[at];

            if (matches(l, m) && sw_enabled(l) &&
                (!best || processor_priority(l) < processor_priority(best))) {
                best = l;
                index = at;
            }
        }
        if (!best)
            return false;
        bus->last_lowest = index;
        take(best, m);
        return true;
    }
    for (unsigned i = 0; i < bus->count; i++) {
        if (!matches(bus->lapic[i], m))
            continue;
        take(bus->lapic[i], m);
        taken = true;
    }
    return taken;
}

bool apic_bus_send_msi(struct apic_bus *bus, uint64_t address, uint32_t data)
{
    struct apic_message m = {
        .dest = address >> 12 & 0xff,
        .logical = address >> 2 & 1,
        .mode = (enum apic_delivery)(data >> 8 & 7),
        .vector = (uint8_t)data,
        .level_triggered = data >> 15 & 1,
    };

    if (address >> 20 != LAPIC_DEFAULT_BASE >> 20)
        return false;
    return apic_bus_send(bus, &m);
}

static void send_ipi(struct lapic *l)
{
    uint32_t low = (uint32_t)l->icr;
    unsigned shorthand = low >> 18 & 3;
    struct apic_message m = {
        .dest = x2apic(l) ? (uint32_t)(l->icr >> 32) : (uint32_t)(l->icr >> 56),
        .wide = x2apic(l),
        .logical = low >> 11 & 1,
        .mode = low >> 8 & 7,
        .vector = (uint8_t)low,
    };

    /* "INIT level de-assert" only sets arbitration IDs, on processors before us (10.6.1). */
    if (m.mode == APIC_INIT && (low & 1u << 15) && !(low & 1u << 14))
        return;
    if ((m.mode == APIC_FIXED || m.mode == APIC_LOWEST) && m.vector < 16) {
        report_error(l, ESR_SEND_ILLEGAL);
        return;
    }
    if (shorthand == 0) {
        apic_bus_send(l->bus, &m);
        return;
    }
    for (unsigned i = 0; i < l->bus->count; i++) {
        struct lapic *to = l->bus->lapic[i];
        bool self = to == l;

        /* To oneself only fixed interrupts are valid. */
        if (shorthand == 1 ? self && m.mode == APIC_FIXED : shorthand == 2 || !self)
            if (!self || m.mode == APIC_FIXED || m.mode == APIC_NMI)
                take(to, &m);
    }
}

/* -- Registers --------------------------------------------------------------------------------- */

static void end_of_interrupt(struct lapic *l)
{
    int vector = highest_bit(l->isr);

    if (vector < 0)
        return;
    clear_bit(l->isr, (uint8_t)vector);
    if (test_bit(l->tmr, (uint8_t)vector)) {
        for (unsigned pin = 0; pin < 2; pin++) {
            uint32_t *lvt = &l->lvt[LVT_LINT0 + pin];

            if ((*lvt & LVT_REMOTE_IRR) && (*lvt & LVT_VECTOR) == (uint32_t)vector) {
                *lvt &= ~LVT_REMOTE_IRR;
                if (l->lint[pin])
                    fire_lvt(l, LVT_LINT0 + pin);
            }
        }
        if (l->bus->eoi)
            l->bus->eoi(l->bus->eoi_opaque, (uint8_t)vector);
    }
    lapic_update(l);
}

static void write_lvt(struct lapic *l, enum lapic_lvt n, uint32_t value)
{
    unsigned old_mode = timer_mode(l);
    uint32_t keep = l->lvt[n] & LVT_REMOTE_IRR;

    value &= lvt_writable[n];
    if (!sw_enabled(l))
        value |= LVT_MASKED; /* 10.4.7.2 */
    if (value & LVT_LEVEL)
        value |= keep;
    l->lvt[n] = value;
    if (n == LVT_TIMER) {
        /* 10.5.4.1: moving into or out of TSC-deadline mode disarms the timer. */
        if (old_mode != timer_mode(l) &&
            (old_mode == TIMER_DEADLINE || timer_mode(l) == TIMER_DEADLINE)) {
            l->tsc_deadline = 0;
            l->initial_count = 0;
        }
        schedule_timer(l);
    } else if (n == LVT_LINT0 || n == LVT_LINT1) {
        if ((value & LVT_LEVEL) && l->lint[n - LVT_LINT0])
            fire_lvt(l, n);
        lapic_update(l);
    }
}

static void write_svr(struct lapic *l, uint32_t value)
{
    l->svr = value & SVR_MASK;
    if (!(l->svr & SVR_ENABLE)) {
        for (unsigned i = 0; i < LVT_COUNT; i++)
            l->lvt[i] |= LVT_MASKED;
        schedule_timer(l);
    }
    lapic_update(l);
}

/* Returns false if there is no such register. */
static bool read_register(const struct lapic *l, uint32_t reg, uint32_t *value)
{
    *value = 0;
    switch (reg) {
    case REG_ID:
        *value = x2apic(l) ? l->cfg.id : (uint32_t)l->id << 24;
        return true;
    case REG_VERSION:
        *value = VERSION;
        return true;
    case REG_TPR:
        *value = l->tpr;
        return true;
    case REG_APR:
    case REG_RRD:
    case REG_DFR:
        if (x2apic(l))
            return false;
        *value = reg == REG_DFR ? l->dfr : 0;
        return true;
    case REG_PPR:
        *value = processor_priority(l);
        return true;
    case REG_EOI: /* write-only */
        return !x2apic(l);
    case REG_LDR:
        *value = x2apic(l) ? (l->cfg.id >> 4 << 16) | 1u << (l->cfg.id & 15) : l->ldr;
        return true;
    case REG_SVR:
        *value = l->svr;
        return true;
    case REG_ESR:
        *value = l->esr;
        return true;
    case REG_ICR:
        *value = (uint32_t)l->icr;
        return true;
    case REG_ICR2:
        *value = (uint32_t)(l->icr >> 32);
        return !x2apic(l);
    case REG_INITIAL:
        *value = timer_mode(l) == TIMER_DEADLINE ? 0 : l->initial_count;
        return true;
    case REG_CURRENT:
        *value = current_count(l);
        return true;
    case REG_DIVIDE:
        *value = l->divide;
        return true;
    }
    if (reg >= REG_LVT && reg <= REG_LVT_LAST) {
        *value = l->lvt[(reg - REG_LVT) >> 4];
        return true;
    }
    if (reg >= REG_ISR && reg < REG_ESR) {
        const uint32_t *map = reg < REG_TMR ? l->isr : reg < REG_IRR ? l->tmr : l->irr;

        *value = map[reg >> 4 & 7];
        return true;
    }
    return false;
}

/* Returns false if there is no such writable register. Reserved bits were dealt with before. */
static bool write_register(struct lapic *l, uint32_t reg, uint32_t value)
{
    switch (reg) {
    case REG_ID:
        if (x2apic(l))
            return false;
        l->id = (uint8_t)(value >> 24);
        return true;
    case REG_TPR:
        l->tpr = (uint8_t)value;
        lapic_update(l);
        return true;
    case REG_EOI:
        end_of_interrupt(l);
        return true;
    case REG_LDR:
    case REG_DFR:
        if (x2apic(l))
            return false;
        if (reg == REG_LDR)
            l->ldr = value & 0xff000000u;
        else
            l->dfr = value | 0x0fffffffu;
        return true;
    case REG_SVR:
        write_svr(l, value);
        return true;
    case REG_ESR: /* 10.5.3: a write makes what was collected since the last one visible */
        l->esr = l->esr_pending;
        l->esr_pending = 0;
        return true;
    case REG_ICR:
        l->icr = (l->icr & 0xffffffff00000000ull) | (value & 0x000ccfffu);
        send_ipi(l);
        return true;
    case REG_ICR2:
        if (x2apic(l))
            return false;
        l->icr = (l->icr & 0xffffffffull) | (uint64_t)(value & 0xff000000u) << 32;
        return true;
    case REG_INITIAL:
        if (timer_mode(l) != TIMER_DEADLINE) /* 10.5.4.1: ignored in TSC-deadline mode */
            start_count(l, value);
        return true;
    case REG_DIVIDE:
        write_divide(l, value);
        return true;
    }
    if (reg >= REG_LVT && reg <= REG_LVT_LAST) {
        write_lvt(l, (reg - REG_LVT) >> 4, value);
        return true;
    }
    /* Read-only registers: the write has no effect in xAPIC mode. */
    return !x2apic(l) &&
           (reg == REG_VERSION || reg == REG_APR || reg == REG_PPR || reg == REG_RRD ||
            reg == REG_CURRENT || (reg >= REG_ISR && reg < REG_ESR));
}

/* -- xAPIC: memory-mapped ---------------------------------------------------------------------- */

bool lapic_claims(const struct lapic *l, uint64_t gpa)
{
    return hw_enabled(l) && !x2apic(l) &&
           (gpa & ~(uint64_t)(LAPIC_SIZE - 1)) == (l->base & ~(uint64_t)(LAPIC_SIZE - 1));
}

/* 10.4.1: registers are 32 bits wide on 16-byte boundaries; other accesses are undefined. Here
 * parts of a register read as expected, the bytes between registers as 0, and only aligned
 * 32-bit writes (or wider ones, by their low half) have an effect. */
uint64_t lapic_mmio_read(struct lapic *l, uint64_t gpa, unsigned size)
{
    uint32_t offset = gpa & (LAPIC_SIZE - 1), value;

    if ((offset & 0xf) >= 4 || (offset & 3) + size > 8)
        return 0;
    if (!read_register(l, offset & ~0xfu, &value)) {
        report_error(l, ESR_REGISTER);
        return 0;
    }
    value >>= 8 * (offset & 3);
    return size >= 4 ? value : value & ((1u << 8 * size) - 1);
}

void lapic_mmio_write(struct lapic *l, uint64_t gpa, unsigned size, uint64_t value)
{
    uint32_t offset = gpa & (LAPIC_SIZE - 1);

    if ((offset & 0xf) || size < 4)
        return;
    if (!write_register(l, offset, (uint32_t)value))
        report_error(l, ESR_REGISTER);
}

/* -- MSRs -------------------------------------------------------------------------------------- */

/* 10.12.5 */
static int write_base(struct lapic *l, uint64_t value)
{
    uint64_t mode_bits = APIC_BASE_ENABLE | APIC_BASE_EXTD;
    uint64_t allowed = ((1ull << l->cfg.phys_bits) - 1) & ~0xfffull;
    uint64_t old = l->base & mode_bits, new = value &mode_bits;

    if (value & ~(allowed | mode_bits | APIC_BASE_BSP))
        return -1;
    if (new == APIC_BASE_EXTD)
        return -1; /* no such mode */
    if (old == 0 && new == mode_bits)
        return -1; /* x2APIC only from xAPIC */
    if (old == mode_bits && new == APIC_BASE_ENABLE)
        return -1;     /* out of x2APIC only by disabling */
    if (old && !new) { /* the state is lost, as after reset (10.4.3) */
        lapic_reset(l, true);
        l->id = (uint8_t)l->cfg.id;
    }
    l->base = value;
    lapic_update(l);
    return 0;
}

int lapic_read_msr(struct lapic *l, uint32_t msr, uint64_t *value)
{
    uint32_t reg = (msr - MSR_X2APIC_FIRST) << 4, low;

    if (msr == MSR_APIC_BASE) {
        *value = l->base;
        return 0;
    }
    if (msr == MSR_TSC_DEADLINE) {
        *value = timer_mode(l) == TIMER_DEADLINE ? l->tsc_deadline : 0;
        return 0;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(l))
        return -1;
    if (!read_register(l, reg, &low))
        return -1;
    *value = reg == REG_ICR ? l->icr : low;
    return 0;
}

int lapic_write_msr(struct lapic *l, uint32_t msr, uint64_t value)
{
    uint32_t reg = (msr - MSR_X2APIC_FIRST) << 4;
    uint64_t allowed;

    if (msr == MSR_APIC_BASE)
        return write_base(l, value);
    if (msr == MSR_TSC_DEADLINE) {
        if (timer_mode(l) == TIMER_DEADLINE && hw_enabled(l)) {
            l->tsc_deadline = value;
            schedule_deadline(l);
        }
        return 0;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(l))
        return -1;
    /* 10.12.1.2: reserved bits fault. */
    switch (reg) {
    case REG_TPR:
        allowed = 0xff;
        break;
    case REG_EOI:
    case REG_ESR:
        allowed = 0;
        break;
    case REG_SVR:
        allowed = SVR_MASK;
        break;
    case REG_ICR:
        allowed = 0xffffffff000ccfffull;
        break;
    case REG_INITIAL:
        allowed = 0xffffffffu;
        break;
    case REG_DIVIDE:
        allowed = 0xb;
        break;
    case REG_SELF_IPI:
        allowed = 0xff;
        break;
    default:
        if (reg < REG_LVT || reg > REG_LVT_LAST)
            return -1;
        allowed = lvt_writable[(reg - REG_LVT) >> 4] | 1u << 12 | LVT_REMOTE_IRR;
    }
    if (value & ~allowed)
        return -1;
    if (reg == REG_SELF_IPI) { /* 10.12.11 */
        if ((uint8_t)value < 16)
            report_error(l, ESR_SEND_ILLEGAL);
        else
            accept_fixed(l, (uint8_t)value, false);
        return 0;
    }
    if (reg == REG_ICR)
        l->icr = value & 0xffffffff00000000ull;
    return write_register(l, reg, (uint32_t)value) ? 0 : -1;
}

void lapic_set_cr8(struct lapic *l, uint8_t value)
{
    l->tpr = (uint8_t)(value << 4);
    lapic_update(l);
}

/* -- Light accesses ---------------------------------------------------------------------------- */

static bool update_light(struct lapic *l)
{
    l->intr_pending = deliverable(l) >= 0 || extint(l);
    return l->intr_pending;
}

/* An edge-triggered interrupt from this CPU to itself: through the SELF IPI register, by shorthand,
 * or because there is no other CPU. */
static bool self_ipi_light(struct lapic *l, uint32_t vector)
{
    if (!sw_enabled(l) || vector < 16)
        return false;
    clear_bit(l->tmr, (uint8_t)vector);
    set_bit(l->irr, (uint8_t)vector);
    return true;
}

static bool write_icr_light(struct lapic *l, uint64_t icr)
{
    struct apic_message m = {
        .dest = x2apic(l) ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56),
        .wide = x2apic(l),
        .logical = icr >> 11 & 1,
        .mode = (icr >> 8) & 7,
        .vector = (uint8_t)icr,
    };
    unsigned shorthand = icr >> 18 & 3;

    if (m.mode != APIC_FIXED || shorthand > 1 ||
        (shorthand == 0 && (l->bus->count != 1 || !matches(l, &m))) ||
        !self_ipi_light(l, m.vector))
        return false;
    l->icr = icr;
    return true;
}

static bool end_of_interrupt_light(struct lapic *l)
{
    int vector = highest_bit(l->isr);

    if (vector < 0)
        return true;
    if (test_bit(l->tmr, (uint8_t)vector)) /* the I/O APIC must hear of it */
        return false;
    clear_bit(l->isr, (uint8_t)vector);
    return true;
}

bool lapic_mmio_read_light(const struct lapic *l, uint64_t gpa, unsigned size, uint64_t *value)
{
    uint32_t offset = gpa & (LAPIC_SIZE - 1), low;

    if ((offset & 0xf) || size != 4 || offset == REG_CURRENT || !read_register(l, offset, &low))
        return false;
    *value = low;
    return true;
}

bool lapic_mmio_write_light(struct lapic *l, uint64_t gpa, unsigned size, uint64_t value,
                            bool *pending)
{
    uint32_t low = (uint32_t)value;

    if (size != 4)
        return false;
    switch (gpa & (LAPIC_SIZE - 1)) {
    case REG_TPR:
        l->tpr = (uint8_t)low;
        break;
    case REG_EOI:
        if (!end_of_interrupt_light(l))
            return false;
        break;
    case REG_ICR:
        if (!write_icr_light(l, (l->icr & 0xffffffff00000000ull) | (low & 0x000ccfffu)))
            return false;
        break;
    case REG_ICR2:
        l->icr = (l->icr & 0xffffffffull) | (uint64_t)(low & 0xff000000u) << 32;
        break;
    default:
        return false;
    }
    *pending = update_light(l);
    return true;
}

bool lapic_read_msr_light(const struct lapic *l, uint32_t msr, uint64_t *value)
{
    uint32_t reg = (msr - MSR_X2APIC_FIRST) << 4, low;

    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(l) || reg == REG_CURRENT ||
        !read_register(l, reg, &low))
        return false;
    *value = reg == REG_ICR ? l->icr : low;
    return true;
}

bool lapic_write_msr_light(struct lapic *l, uint32_t msr, uint64_t value, bool *pending)
{
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(l))
        return false;
    switch ((msr - MSR_X2APIC_FIRST) << 4) {
    case REG_TPR:
        if (value > 0xff)
            return false;
        l->tpr = (uint8_t)value;
        break;
    case REG_EOI:
        if (value || !end_of_interrupt_light(l))
            return false;
        break;
    case REG_SELF_IPI:
        if (value > 0xff || !self_ipi_light(l, (uint32_t)value))
            return false;
        break;
    case REG_ICR:
        if ((value & ~0xffffffff000ccfffull) || !write_icr_light(l, value))
            return false;
        break;
    default:
        return false;
    }
    *pending = update_light(l);
    return true;
}

bool lapic_acknowledge_light(struct lapic *l, int *vector, bool *pending)
{
    *vector = deliverable(l);
    if (*vector < 0)
        return false;
    clear_bit(l->irr, (uint8_t)*vector);
    set_bit(l->isr, (uint8_t)*vector);
    *pending = update_light(l);
    return true;
}

bool lapic_set_cr8_light(struct lapic *l, uint8_t value)
{
    l->tpr = (uint8_t)(value << 4);
    return update_light(l);
}

/* -- Life -------------------------------------------------------------------------------------- */

void lapic_reset(struct lapic *l, bool init)
{
    vm_timer_cancel(&l->timer);
    if (!init) {
        l->id = (uint8_t)l->cfg.id;
        l->base = LAPIC_DEFAULT_BASE | APIC_BASE_ENABLE | (l->cfg.bsp ? APIC_BASE_BSP : 0);
    }
    /* 10.4.7.1 */
    l->tpr = 0;
    l->ldr = 0;
    l->dfr = 0xffffffffu;
    l->svr = 0xff;
    memset(l->irr, 0, sizeof(l->irr));
    memset(l->isr, 0, sizeof(l->isr));
    memset(l->tmr, 0, sizeof(l->tmr));
    l->esr = l->esr_pending = 0;
    l->icr = 0;
    for (unsigned i = 0; i < LVT_COUNT; i++)
        l->lvt[i] = LVT_MASKED;
    l->initial_count = l->divide = 0;
    l->timer_start = l->timer_fired = 0;
    l->tsc_deadline = 0;
    lapic_update(l);
}

void lapic_firmware_setup(struct lapic *l)
{
    write_svr(l, SVR_ENABLE | 0xff);
    if (l->cfg.bsp)
        write_lvt(l, LVT_LINT0, APIC_EXTINT << 8);
    write_lvt(l, LVT_LINT1, APIC_NMI << 8);
}

int lapic_init(struct lapic *l, const struct lapic_config *cfg, struct apic_bus *bus,
               struct timer_queue *timers)
{
    if (bus->count == LAPIC_MAX)
        return -ENOSPC;
    memset(l, 0, sizeof(*l));
    l->cfg = *cfg;
    l->bus = bus;
    vm_timer_init(&l->timer, timers, timer_expired, l);
    bus->lapic[bus->count++] = l;
    lapic_reset(l, false);
    return 0;
}

void lapic_destroy(struct lapic *l)
{
    vm_timer_cancel(&l->timer);
}
