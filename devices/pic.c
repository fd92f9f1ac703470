/* 8259A pair: see pic.h. */
#include "devices/pic.h"

#include <string.h>

enum { ICW1_ICW4 = 0x01, ICW1_SNGL = 0x02, ICW1_LTIM = 0x08, ICW1_INIT = 0x10 };
enum { ICW4_AEOI = 0x02, ICW4_SFNM = 0x10 };
enum {
    OCW3_SELECT = 0x08,
    OCW3_RIS = 0x01,
    OCW3_RR = 0x02,
    OCW3_POLL = 0x04,
    OCW3_SMM = 0x20,
    OCW3_ESMM = 0x40
};

static bool is_master(const struct pic_chip *c)
{
    return c == &c->pic->chip[0];
}

static uint8_t level_inputs(const struct pic_chip *c)
{
    return c->level_all ? 0xff : c->elcr;
}

static int highest_request(const struct pic_chip *c);

/* The IRR as the chip sees it: latched edges, and levels while they last. */
static uint8_t irr(const struct pic_chip *c)
{
    uint8_t level = level_inputs(c);
    uint8_t value = (uint8_t)((c->latch & ~level) | (c->lines & level));

    /* The slave drops and raises INT around each acknowledge, so the cascade input acts as a
     * level. */
    if (is_master(c)) {
        value &= (uint8_t) ~(1u << PIC_CASCADE);
        if (highest_request(&c->pic->chip[1]) >= 0)
            value |= 1u << PIC_CASCADE;
    }
    return value;
}

/* How many steps below the top priority input `n` is. */
static unsigned rank_of(const struct pic_chip *c, unsigned n)
{
    return (n - c->lowest - 1) & 7;
}

/* The input of highest priority among `mask`, or -1. */
static int highest(const struct pic_chip *c, uint8_t mask)
{
    for (unsigned rank = 0; rank < 8; rank++) {
        unsigned n = (c->lowest + 1 + rank) & 7;

        if (mask & (1u << n))
            return (int)n;
    }
    return -1;
}

/* The request that may interrupt what is in service, or -1. */
static int highest_request(const struct pic_chip *c)
{
    uint8_t in_service = c->isr;
    int request, serving;

    if (c->icw_next)
        return -1;
    request = highest(c, irr(c) & (uint8_t)~c->imr);
    if (request < 0)
        return -1;
    /* Special mask mode: a masked level in service does not hold back others. */
    if (c->special_mask)
        in_service &= (uint8_t)~c->imr;
    /* Special fully nested mode: the slave may interrupt itself. */
    if (c->special_fully_nested && is_master(c))
        in_service &= (uint8_t) ~(1u << PIC_CASCADE);
    serving = highest(c, in_service);
    if (serving < 0)
        return request;
    if (c->special_mask) /* every level but the ones in service */
        return in_service & (1u << request) ? -1 : request;
    return rank_of(c, (unsigned)request) < rank_of(c, (unsigned)serving) ? request : -1;
}

static void update(struct pic *p)
{
    irq_set(&p->out, pic_output(p));
}

bool pic_output(const struct pic *p)
{
    return highest_request(&p->chip[0]) >= 0;
}

void pic_set_irq(struct pic *p, unsigned n, bool level)
{
    struct pic_chip *c = &p->chip[n >> 3 & 1];
    uint8_t bit = (uint8_t)(1u << (n & 7));

    if (n == PIC_CASCADE || n > 15)
        return;
    /* An edge stays latched when the line drops again; the real chip would answer with a spurious
     * IR7, which helps nobody. */
    if (level && !(c->lines & bit))
        c->latch |= bit;
    c->lines = level ? c->lines | bit : c->lines & (uint8_t)~bit;
    update(p);
}

static void begin_service(struct pic_chip *c, unsigned n)
{
    c->latch &= (uint8_t) ~(1u << n);
    if (!c->auto_eoi)
        c->isr |= (uint8_t)(1u << n);
    else if (c->rotate_on_aeoi)
        c->lowest = (uint8_t)n;
}

uint8_t pic_acknowledge(struct pic *p)
{
    struct pic_chip *master = &p->chip[0], *slave = &p->chip[1];
    int n = highest_request(master);
    uint8_t vector;

    if (n < 0)
        return master->vector_base + 7; /* spurious: ISR is not touched */
    if (n == PIC_CASCADE) {
        int m = highest_request(slave);

        begin_service(master, PIC_CASCADE);
        if (m >= 0)
            begin_service(slave, (unsigned)m);
        vector = (uint8_t)(slave->vector_base + (m < 0 ? 7 : m));
    } else {
        begin_service(master, (unsigned)n);
        vector = (uint8_t)(master->vector_base + n);
    }
    update(p);
    return vector;
}

static void write_icw1(struct pic_chip *c, uint8_t value)
{
    c->imr = c->isr = c->latch = 0;
    c->lowest = 7;
    c->special_mask = c->auto_eoi = c->rotate_on_aeoi = c->special_fully_nested = false;
    c->read_isr = c->poll = false;
    c->single = value & ICW1_SNGL;
    c->icw4_expected = value & ICW1_ICW4;
    c->level_all = value & ICW1_LTIM;
    c->icw_next = 2;
}

static void write_ocw2(struct pic_chip *c, uint8_t value)
{
    uint8_t n = value & 7;
    int serving;

    switch (value >> 5) {
    case 0: /* rotate in automatic EOI mode: clear, set */
    case 4:
        c->rotate_on_aeoi = value >> 7;
        break;
    case 1: /* non-specific EOI, without and with rotation */
    case 5:
        /* In special mask mode a masked in-service bit is not cleared by this command. */
        serving = highest(c, c->special_mask ? c->isr & (uint8_t)~c->imr : c->isr);
        if (serving < 0)
            break;
        c->isr &= (uint8_t) ~(1u << serving);
        if (value >> 7)
            c->lowest = (uint8_t)serving;
        break;
    case 3: /* specific EOI */
        c->isr &= (uint8_t) ~(1u << n);
        break;
    case 6: /* set priority */
        c->lowest = n;
        break;
    case 7: /* rotate on specific EOI */
        c->isr &= (uint8_t) ~(1u << n);
        c->lowest = n;
        break;
    }
}

static void write_ocw3(struct pic_chip *c, uint8_t value)
{
    if (value & OCW3_POLL)
        c->poll = true;
    if (value & OCW3_RR)
        c->read_isr = value & OCW3_RIS;
    if (value & OCW3_ESMM)
        c->special_mask = value & OCW3_SMM;
}

static void write_data(struct pic_chip *c, uint8_t value)
{
    switch (c->icw_next) {
    case 0:
        c->imr = value;
        break;
    case 2:
        c->vector_base = value & 0xf8;
        c->icw_next = !c->single ? 3 : c->icw4_expected ? 4 : 0;
        break;
    case 3: /* the wiring of the cascade is fixed */
        c->icw_next = c->icw4_expected ? 4 : 0;
        break;
    case 4:
        c->special_fully_nested = value & ICW4_SFNM;
        c->auto_eoi = value & ICW4_AEOI;
        c->icw_next = 0;
        break;
    }
}

static void pic_write(void *opaque, uint64_t offset, unsigned size, uint64_t v)
{
    struct pic_chip *c = opaque;
    uint8_t value = (uint8_t)v;

    (void)size;
    if (offset)
        write_data(c, value);
    else if (value & ICW1_INIT)
        write_icw1(c, value);
    else if (value & OCW3_SELECT)
        write_ocw3(c, value);
    else
        write_ocw2(c, value);
    update(c->pic);
}

static uint64_t pic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pic_chip *c = opaque;

    (void)size;
    if (c->poll) { /* the read acts as an acknowledge cycle of this chip alone */
        int n = highest_request(c);

        c->poll = false;
        if (n < 0)
            return 0;
        begin_service(c, (unsigned)n);
        update(c->pic);
        return 0x80u | (unsigned)n;
    }
    if (offset)
        return c->imr;
    return c->read_isr ? c->isr : irr(c);
}

const struct io_ops pic_io_ops = {.read = pic_read, .write = pic_write, .max_size = 1};

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pic *p = opaque;

    (void)size;
    return p->chip[offset & 1].elcr;
}

static void elcr_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pic *p = opaque;
    struct pic_chip *c = &p->chip[offset & 1];

    (void)size;
    c->elcr = (uint8_t)value & c->elcr_mask;
    update(p);
}

const struct io_ops pic_elcr_ops = {.read = elcr_read, .write = elcr_write, .max_size = 1};

void pic_reset(struct pic *p)
{
    for (unsigned i = 0; i < 2; i++) {
        struct pic_chip *c = &p->chip[i];
        uint8_t lines = c->lines;

        memset(c, 0, sizeof(*c));
        c->pic = p;
        c->lines = lines;
        c->lowest = 7;
        c->imr = 0xff;
        /* As a BIOS leaves it. */
        c->vector_base = i ? 0x70 : 0x08;
        /* IRQ 0, 1, 2, 8 and 13 are always edge-triggered. */
        c->elcr_mask = i ? 0xde : 0xf8;
    }
    update(p);
}

void pic_init(struct pic *p, struct irq_line out)
{
    memset(p, 0, sizeof(*p));
    p->out = out;
    pic_reset(p);
}
