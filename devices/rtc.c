/*
 * MC146818A RTC: see rtc.h.  Register names are the data sheet's.
 *
 * Flags of register C (PF, AF, UF) are set whether or not their interrupt is enabled; they are
 * computed from the time that has passed whenever somebody looks, and a timer runs only while an
 * interrupt is enabled.
 */
#include "devices/rtc.h"

#include <string.h>

enum {
    SECONDS = 0,
    SECONDS_ALARM = 1,
    MINUTES = 2,
    MINUTES_ALARM = 3,
    HOURS = 4,
    HOURS_ALARM = 5,
    WEEKDAY = 6,
    DAY = 7,
    MONTH = 8,
    YEAR = 9,
    REG_A = 10,
    REG_B = 11,
    REG_C = 12,
    REG_D = 13,
};
enum { A_UIP = 0x80, A_DIVIDER = 0x70, A_DIVIDER_32K = 0x20, A_RATE = 0x0f };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 0x04, B_24H = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };
enum { D_VALID = 0x80 };
enum { HOUR_PM = 0x80, ALARM_ANY = 0xc0 };

#define SEC         ((int64_t)NSEC_PER_SEC)
#define DAY_SECONDS 86400
/* UIP is set this long before the update (data sheet, table 6). */
#define UIP_NS 244000
/* The first update comes half a second after the divider is released. */
#define HALF_SECOND (SEC / 2)

/* What the guest may set the clock to, in seconds since 1970: the years 1930 to 2199. Keeps 64-bit
 * nanoseconds, and the difference of any two times, from overflowing. */
#define FIRST_SECOND (-1262304000ll)
#define LAST_SECOND  7258118399ll
/* The last time shown: the year 2222. */
#define LAST_TIME (INT64_MAX + FIRST_SECOND * SEC - DAY_SECONDS * SEC)

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

/* Stands still at LAST_TIME: the guest has set its clock far ahead, and somebody the host's after
 * that. */
static int64_t guest_time(const struct rtc *r)
{
    int64_t t;

    if (__builtin_add_overflow(r->wall_clock(r->wall_opaque), r->offset, &t) || t > LAST_TIME)
        t = LAST_TIME;
    return t;
}

static uint8_t to_register(const struct rtc *r, unsigned value)
{
    return (uint8_t)(r->cmos[REG_B] & B_BINARY ? value : (value / 10 % 10) << 4 | value % 10);
}

static unsigned from_register(const struct rtc *r, uint8_t value)
{
    return r->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10u + (value & 15);
}

static uint8_t hour_to_register(const struct rtc *r, unsigned hour)
{
    if (r->cmos[REG_B] & B_24H)
        return to_register(r, hour);
    return to_register(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static unsigned hour_from_register(const struct rtc *r, uint8_t value)
{
    if (r->cmos[REG_B] & B_24H)
        return from_register(r, value);
    return from_register(r, value & 0x7f) % 12 + (value & HOUR_PM ? 12 : 0);
}

/* -- Calendar (proleptic Gregorian; days since 1970-01-01) ------------------------------------- */

static int64_t days_from_date(int64_t year, unsigned month, unsigned day)
{
    /* Years are counted from March, so that the leap day comes last. */
    int64_t y = year - (month <= 2), era = floor_div(y, 400), yoe = y - era * 400;
    int64_t doy = (153 * ((int64_t)month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static void date_from_days(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
    int64_t z = days + 719468, era = floor_div(z, 146097), doe = z - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;

    *day = (unsigned)(doy - (153 * mp + 2) / 5 + 1);
    *month = (unsigned)(mp < 10 ? mp + 3 : mp - 9);
    *year = yoe + era * 400 + (*month <= 2);
}

/* Fills the time registers for a guest time. */
static void time_to_registers(struct rtc *r, int64_t ns)
{
    int64_t seconds = floor_div(ns, SEC), days = floor_div(seconds, DAY_SECONDS), year;
    unsigned of_day = (unsigned)(seconds - days * DAY_SECONDS), month, day;

    date_from_days(days, &year, &month, &day);
    r->cmos[SECONDS] = to_register(r, of_day % 60);
    r->cmos[MINUTES] = to_register(r, of_day / 60 % 60);
    r->cmos[HOURS] = hour_to_register(r, of_day / 3600);
    r->cmos[WEEKDAY] = to_register(r, (unsigned)(((days + 4) % 7 + 7) % 7) + 1); /* Sunday = 1 */
    r->cmos[DAY] = to_register(r, day);
    r->cmos[MONTH] = to_register(r, month);
    r->cmos[YEAR] = to_register(r, (unsigned)(year % 100));
    r->cmos[RTC_CENTURY] = to_register(r, (unsigned)(year / 100 % 100));
}

/* The guest time the registers stand for; anything goes in, something comes out. */
static int64_t time_from_registers(const struct rtc *r)
{
    int64_t year = from_register(r, r->cmos[RTC_CENTURY]) * 100ll + from_register(r, r->cmos[YEAR]);
    unsigned month = from_register(r, r->cmos[MONTH]), day = from_register(r, r->cmos[DAY]);
    int64_t seconds;

    if (month < 1 || month > 12)
        month = 1;
    seconds = days_from_date(year, month, day) * DAY_SECONDS +
              hour_from_register(r, r->cmos[HOURS]) * 3600ll +
              from_register(r, r->cmos[MINUTES]) * 60ll + from_register(r, r->cmos[SECONDS]);
    if (seconds > LAST_SECOND)
        seconds = LAST_SECOND;
    if (seconds < FIRST_SECOND)
        seconds = FIRST_SECOND;
    return seconds * SEC;
}

/* -- Flags and interrupts ---------------------------------------------------------------------- */

static bool alarm_matches(const struct rtc *r, unsigned of_day)
{
    uint8_t s = r->cmos[SECONDS_ALARM], m = r->cmos[MINUTES_ALARM], h = r->cmos[HOURS_ALARM];

    return (s >= ALARM_ANY || from_register(r, s) == of_day % 60) &&
           (m >= ALARM_ANY || from_register(r, m) == of_day / 60 % 60) &&
           (h >= ALARM_ANY || hour_from_register(r, h) == of_day / 3600);
}

/* The first second after `after` (seconds since 1970) that the alarm matches, or INT64_MAX. */
static int64_t next_alarm(const struct rtc *r, int64_t after)
{
    uint8_t s = r->cmos[SECONDS_ALARM], m = r->cmos[MINUTES_ALARM], h = r->cmos[HOURS_ALARM];
    bool any_s = s >= ALARM_ANY, any_m = m >= ALARM_ANY, any_h = h >= ALARM_ANY;
    int64_t t = after + 1, end = after + DAY_SECONDS + 1;

    if ((!any_s && from_register(r, s) > 59) || (!any_m && from_register(r, m) > 59) ||
        (!any_h && hour_from_register(r, h) > 23))
        return INT64_MAX;
    while (t <= end) {
        unsigned of_day = (unsigned)(t - floor_div(t, DAY_SECONDS) * DAY_SECONDS);

        if (alarm_matches(r, of_day))
            return t;
        /* Skip whole hours and minutes that cannot match: at most 24 + 60 + 60 steps. */
        if (!any_h && hour_from_register(r, h) != of_day / 3600)
            t += 3600 - of_day % 3600;
        else if (!any_m && from_register(r, m) != of_day / 60 % 60)
            t += 60 - of_day % 60;
        else
            t++;
    }
    return INT64_MAX;
}

/* Period of the periodic interrupt in ns, 0 = none. */
static uint64_t periodic_ns(const struct rtc *r)
{
    unsigned rate = r->cmos[REG_A] & A_RATE;

    if (rate == 0 || (r->cmos[REG_A] & A_DIVIDER) > A_DIVIDER_32K)
        return 0;
    if (rate <= 2)
        rate += 7;
    return (NSEC_PER_SEC << (rate - 1)) / 32768;
}

static void update_irq(struct rtc *r)
{
    if (r->cmos[REG_C] & r->cmos[REG_B] & (C_PF | C_AF | C_UF))
        r->cmos[REG_C] |= C_IRQF;
    else
        r->cmos[REG_C] &= (uint8_t)~C_IRQF;
    irq_set(&r->irq, r->cmos[REG_C] & C_IRQF);
}

/* Sets the flags of everything that happened since the last look. */
static void sync_flags(struct rtc *r)
{
    uint64_t now = timer_now(r->timer.queue), period = periodic_ns(r);
    int64_t time = guest_time(r);

    if (period && (now - r->pf_phase) / period > (r->pf_checked - r->pf_phase) / period)
        r->cmos[REG_C] |= C_PF;
    r->pf_checked = now;
    if (!r->held) {
        int64_t from = floor_div(r->checked, SEC), to = floor_div(time, SEC);

        if (to > from) {
            r->cmos[REG_C] |= C_UF;
            if (next_alarm(r, from) <= to)
                r->cmos[REG_C] |= C_AF;
        }
        r->checked = time; /* also when the host's clock was set back */
    }
    update_irq(r);
}

/* Arms the timer for the next event whose interrupt is enabled and whose flag is not yet set. */
static void schedule(struct rtc *r)
{
    uint8_t wanted = r->cmos[REG_B] & (uint8_t)~r->cmos[REG_C];
    uint64_t now = timer_now(r->timer.queue), deadline = TIMER_NEVER, period = periodic_ns(r);
    int64_t at = INT64_MAX;

    if ((wanted & B_PIE) && period)
        deadline = r->pf_phase + ((now - r->pf_phase) / period + 1) * period;
    if (!r->held && (wanted & (B_UIE | B_AIE))) {
        int64_t time = guest_time(r), second = floor_div(time, SEC);

        if (wanted & B_UIE)
            at = second + 1;
        if (wanted & B_AIE) {
            int64_t alarm = next_alarm(r, second);

            at = alarm < at ? alarm : at;
        }
        if (at != INT64_MAX && now + (uint64_t)(at * SEC - time) < deadline)
            deadline = now + (uint64_t)(at * SEC - time);
    }
    vm_timer_set(&r->timer, deadline);
}

static void refresh(struct rtc *r)
{
    sync_flags(r);
    schedule(r);
}

static void expired(void *opaque)
{
    refresh(opaque);
}

/* -- Registers --------------------------------------------------------------------------------- */

static bool is_time_register(uint8_t index)
{
    return index == SECONDS || index == MINUTES || index == HOURS ||
           (index >= WEEKDAY && index <= YEAR) || index == RTC_CENTURY;
}

static bool divider_stopped(uint8_t reg_a)
{
    return (reg_a & A_DIVIDER) >= 0x60;
}

/* Stops or restarts the time after SET or the divider changed. */
static void update_hold(struct rtc *r, bool was_stopped)
{
    bool stopped = divider_stopped(r->cmos[REG_A]);
    bool hold = (r->cmos[REG_B] & B_SET) || stopped;

    if (hold == r->held && stopped == was_stopped)
        return;
    if (hold && !r->held) {
        time_to_registers(r, guest_time(r));
    } else if (!hold) {
        r->offset = time_from_registers(r) - r->wall_clock(r->wall_opaque);
        if (was_stopped)
            r->offset += HALF_SECOND;
        r->checked = guest_time(r);
    }
    if (was_stopped && !stopped)
        r->pf_phase = r->pf_checked = timer_now(r->timer.queue);
    r->held = hold;
}

static void write_register(struct rtc *r, uint8_t index, uint8_t value)
{
    bool was_stopped = divider_stopped(r->cmos[REG_A]);
    int64_t time;

    sync_flags(r);
    switch (index) {
    case REG_A:
        r->cmos[REG_A] = value & (uint8_t)~A_UIP;
        update_hold(r, was_stopped);
        break;
    case REG_B:
        if (value & B_SET)
            value &= (uint8_t)~B_UIE; /* data sheet: SET clears UIE */
        /* While the time is held the registers mean what they meant when they were written; the
         * mode bits may be changed first. */
        r->cmos[REG_B] = value;
        update_hold(r, was_stopped);
        update_irq(r);
        break;
    case REG_C:
    case REG_D:
        return;
    default:
        if (!is_time_register(index) || r->held) {
            r->cmos[index] = value;
            break;
        }
        /* Set on the fly: the other fields go on from the current time. */
        time = guest_time(r);
        time_to_registers(r, time);
        r->cmos[index] = value;
        r->offset = time_from_registers(r) + (time - floor_div(time, SEC) * SEC) -
                    r->wall_clock(r->wall_opaque);
        r->checked = guest_time(r);
    }
    schedule(r);
}

static uint8_t read_register(struct rtc *r, uint8_t index)
{
    uint8_t value;

    switch (index) {
    case REG_A:
        value = r->cmos[REG_A];
        if (!r->held) {
            int64_t time = guest_time(r);

            if (time - floor_div(time, SEC) * SEC >= SEC - UIP_NS)
                value |= A_UIP;
        }
        return value;
    case REG_C:
        sync_flags(r);
        value = r->cmos[REG_C];
        r->cmos[REG_C] = 0;
        update_irq(r);
        schedule(r);
        return value;
    case REG_D:
        return D_VALID;
    }
    if (is_time_register(index) && !r->held)
        time_to_registers(r, guest_time(r));
    return r->cmos[index];
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size)
{
    struct rtc *r = opaque;

    (void)size;
    /* The index port is write-only on a PC/AT; chipsets return the last index. */
    return offset ? read_register(r, r->index) : r->index;
}

static void rtc_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct rtc *r = opaque;

    (void)size;
    if (offset)
        write_register(r, r->index, (uint8_t)value);
    else
        r->index = value & 0x7f; /* bit 7 masks NMI; nothing raises one through it */
}

const struct io_ops rtc_io_ops = {.read = rtc_read, .write = rtc_write, .max_size = 1};

static void put16(struct rtc *r, unsigned low, unsigned high, uint64_t value)
{
    r->cmos[low] = (uint8_t)value;
    r->cmos[high] = (uint8_t)(value >> 8);
}

static void update_checksum(struct rtc *r)
{
    unsigned sum = 0;

    for (unsigned i = 0x10; i <= 0x2d; i++)
        sum += r->cmos[i];
    put16(r, 0x2f, 0x2e, sum);
}

/* What setup programs leave in the RAM bytes, and operating systems and boot loaders may ask. */
static void fill_cmos(struct rtc *r, uint64_t ram_low, uint64_t ram_high)
{
    uint64_t ext_kb = ram_low > 0x100000 ? (ram_low - 0x100000) >> 10 : 0;
    uint64_t above_16m = ram_low > 0x1000000 ? (ram_low - 0x1000000) >> 16 : 0;
    uint64_t high = ram_high >> 16;

    if (ext_kb > 0xffff)
        ext_kb = 0xffff;
    if (above_16m > 0xffff)
        above_16m = 0xffff;
    if (high > 0xffffff)
        high = 0xffffff;
    r->cmos[0x14] = 0x02; /* equipment: FPU */
    put16(r, 0x15, 0x16, 640);
    put16(r, 0x17, 0x18, ext_kb);
    put16(r, 0x30, 0x31, ext_kb);
    put16(r, 0x34, 0x35, above_16m);
    put16(r, 0x5b, 0x5c, high);
    r->cmos[0x5d] = (uint8_t)(high >> 16);
    update_checksum(r);
}

void rtc_set_nvram(struct rtc *r, unsigned index, uint8_t value)
{
    if (index < 0x10 || index >= sizeof(r->cmos) || index == RTC_CENTURY)
        return;
    r->cmos[index] = value;
    update_checksum(r);
}

void rtc_reset(struct rtc *r)
{
    /* RESET clears the interrupt enables and flags, and nothing else. */
    sync_flags(r);
    r->cmos[REG_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | 0x08);
    r->cmos[REG_C] = 0;
    r->index = 0;
    update_irq(r);
    schedule(r);
}

void rtc_init(struct rtc *r, struct irq_line irq, struct timer_queue *timers,
              int64_t (*wall_clock)(void *), void *wall_opaque, uint64_t ram_low, uint64_t ram_high)
{
    memset(r, 0, sizeof(*r));
    r->irq = irq;
    r->wall_clock = wall_clock;
    r->wall_opaque = wall_opaque;
    vm_timer_init(&r->timer, timers, expired, r);
    r->cmos[REG_A] = A_DIVIDER_32K | 6; /* 1024 Hz */
    r->cmos[REG_B] = B_24H;
    fill_cmos(r, ram_low, ram_high);
    r->checked = guest_time(r);
    r->pf_phase = r->pf_checked = timer_now(timers);
    rtc_reset(r);
}

void rtc_destroy(struct rtc *r)
{
    vm_timer_cancel(&r->timer);
}
