/* The RTC: time, flags, interrupts, CMOS. */
#include "dev_fixture.h"

#include <time.h>

#include "devices/rtc.h"

#define SEC (int64_t) NSEC_PER_SEC

static struct fake_clock clk;
static struct fake_irq irq;
static struct rtc r;
static int64_t epoch; /* wall clock at machine time 0 */

static int64_t wall(void *opaque)
{
    (void)opaque;
    return epoch + (int64_t)clk.now;
}

static uint8_t rd(uint8_t reg)
{
    out8(&rtc_io_ops, &r, 0, reg);
    return in8(&rtc_io_ops, &r, 1);
}

static void wr(uint8_t reg, uint8_t value)
{
    out8(&rtc_io_ops, &r, 0, reg);
    out8(&rtc_io_ops, &r, 1, value);
}

static void set_wall(int year, int month, int day, int h, int m, int s)
{
    struct tm tm = {.tm_year = year - 1900,
                    .tm_mon = month - 1,
                    .tm_mday = day,
                    .tm_hour = h,
                    .tm_min = m,
                    .tm_sec = s};

    epoch = timegm(&tm) * SEC - (int64_t)clk.now;
}

static void start(void)
{
    rtc_init(&r, fake_irq_line(&irq), &clk.timers, wall, NULL, 512u << 20, 0);
}

static void setup(void)
{
    fake_clock_init(&clk);
    set_wall(2026, 11, 21, 21, 7, 59);
    start();
}

Test(rtc, shows_the_hosts_time_in_bcd, .init = setup)
{
    cr_assert_eq(rd(0), 0x59);
    cr_assert_eq(rd(2), 0x07);
    cr_assert_eq(rd(4), 0x21);
    cr_assert_eq(rd(6), 0x07); /* a Saturday */
    cr_assert_eq(rd(7), 0x21);
    cr_assert_eq(rd(8), 0x11);
    cr_assert_eq(rd(9), 0x26);
    cr_assert_eq(rd(0x32), 0x20);
    cr_assert_eq(rd(13), 0x80);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_eq(rd(0), 0x00);
    cr_assert_eq(rd(2), 0x08);
}

Test(rtc, binary_and_12_hours, .init = setup)
{
    wr(11, 0x06);
    cr_assert_eq(rd(4), 21);
    wr(11, 0x04);
    cr_assert_eq(rd(4), 0x80 | 9);
    wr(11, 0x00);
    cr_assert_eq(rd(4), 0x80 | 0x09);
    set_wall(2026, 1, 1, 0, 5, 0);
    cr_assert_eq(rd(4), 0x12);
    set_wall(2026, 1, 1, 12, 5, 0);
    cr_assert_eq(rd(4), 0x92);
}

Test(rtc, calendar)
{
    /* Every day from 1970 to 2069, against the C library. */
    fake_clock_init(&clk);
    for (int64_t day = 0; day < 36525; day++) {
        time_t t = day * 86400 + 3600;
        struct tm tm;

        gmtime_r(&t, &tm);
        epoch = t * SEC - (int64_t)clk.now;
        if (day == 0) {
            start();
            wr(11, 0x06);
        }
        cr_assert_eq(rd(7), tm.tm_mday);
        cr_assert_eq(rd(8), tm.tm_mon + 1);
        cr_assert_eq(rd(9), tm.tm_year % 100);
        cr_assert_eq(rd(6), tm.tm_wday + 1);
        cr_assert_eq(rd(0x32), 19 + tm.tm_year / 100);
    }
}

Test(rtc, setting_the_clock, .init = setup)
{
    wr(11, 0x82);
    wr(0, 0x30);
    wr(2, 0x45);
    wr(4, 0x12);
    wr(7, 0x29);
    wr(8, 0x02);
    wr(9, 0x24);
    wr(0x32, 0x20);
    fake_clock_advance(&clk, 5 * NSEC_PER_SEC);
    cr_assert_eq(rd(0), 0x30, "held while SET");
    wr(11, 0x02);
    fake_clock_advance(&clk, 31 * NSEC_PER_SEC);
    cr_assert_eq(rd(0), 0x01);
    cr_assert_eq(rd(2), 0x46);
    cr_assert_eq(rd(4), 0x12);
    cr_assert_eq(rd(7), 0x29);
    cr_assert_eq(rd(8), 0x02);
    rtc_reset(&r);
    cr_assert_eq(rd(2), 0x46, "a reset does not touch the time");
}

/* As Linux' mc146818_set_time() does it. */
Test(rtc, divider_reset_starts_half_a_second_early, .init = setup)
{
    wr(11, 0x82);
    wr(10, 0x76);
    wr(0, 0x10);
    wr(11, 0x02);
    fake_clock_advance(&clk, 3 * NSEC_PER_SEC);
    cr_assert_eq(rd(0), 0x10);
    wr(10, 0x26);
    fake_clock_advance(&clk, NSEC_PER_SEC / 2 - 1);
    cr_assert_eq(rd(0), 0x10);
    fake_clock_advance(&clk, 2);
    cr_assert_eq(rd(0), 0x11);
}

Test(rtc, garbage_as_time, .init = setup)
{
    wr(11, 0x82);
    for (uint8_t reg = 0; reg < 10; reg++)
        wr(reg, 0xff);
    wr(0x32, 0xff);
    wr(11, 0x02);
    for (uint8_t reg = 0; reg < 10; reg++)
        rd(reg);
    fake_clock_advance(&clk, 10 * NSEC_PER_SEC);
}

Test(rtc, update_in_progress, .init = setup)
{
    fake_clock_run_until(&clk, clk.now + NSEC_PER_SEC - 245000);
    cr_assert_eq(rd(10) & 0x80, 0);
    fake_clock_advance(&clk, 2000);
    cr_assert_eq(rd(10) & 0x80, 0x80);
    fake_clock_advance(&clk, 243000);
    cr_assert_eq(rd(10) & 0x80, 0);
}

Test(rtc, update_interrupt, .init = setup)
{
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER, "idle without interrupts");
    wr(11, 0x12);
    fake_clock_advance(&clk, NSEC_PER_SEC - 1);
    cr_assert_not(irq.level);
    fake_clock_advance(&clk, 1);
    cr_assert(irq.level);
    cr_assert_eq(rd(12) & 0x90, 0x90);
    cr_assert_not(irq.level);
    cr_assert_eq(rd(12), 0);
    for (int i = 0; i < 10; i++) {
        fake_clock_advance(&clk, NSEC_PER_SEC);
        rd(12);
    }
    cr_assert_eq(irq.rises, 11);
}

Test(rtc, flags_without_interrupts, .init = setup)
{
    rd(12);
    cr_assert_eq(rd(12), 0);
    fake_clock_advance(&clk, 5 * NSEC_PER_SEC);
    cr_assert_eq(rd(12), 0x50); /* UF and PF */
    cr_assert_eq(irq.rises, 0);
}

Test(rtc, periodic_rates, .init = setup)
{
    static const unsigned hz[16] = {0,   256, 128, 8192, 4096, 2048, 1024, 512,
                                    256, 128, 64,  32,   16,   8,    4,    2};

    for (unsigned rate = 0; rate < 16; rate++) {
        unsigned n = 0;

        wr(10, (uint8_t)(0x20 | rate));
        wr(11, 0x42);
        rd(12);
        for (int i = 0; i < 32768; i++) {
            fake_clock_advance(&clk, NSEC_PER_SEC / 32768 + 1);
            if (irq.level) {
                n++;
                rd(12);
            }
        }
        cr_assert_leq(n, hz[rate] + hz[rate] / 100 + 1, "rate %u: %u", rate, n);
        cr_assert_geq(n + hz[rate] / 100 + 1, hz[rate], "rate %u: %u", rate, n);
        wr(11, 0x02);
        rd(12);
    }
}

Test(rtc, alarm, .init = setup)
{
    wr(5, 0x21);
    wr(3, 0x08);
    wr(1, 0x10);
    wr(11, 0x22);
    fake_clock_advance(&clk, 10 * NSEC_PER_SEC);
    cr_assert_not(irq.level);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert(irq.level);
    cr_assert_eq(rd(12) & 0xa0, 0xa0);
    /* And again a day later, not before. */
    fake_clock_advance(&clk, 86399ull * NSEC_PER_SEC);
    cr_assert_not(irq.level);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert(irq.level);
    rd(12);
    /* Wild cards: every minute at :30. */
    wr(5, 0xff);
    wr(3, 0xc0);
    wr(1, 0x30);
    fake_clock_advance(&clk, 60ull * NSEC_PER_SEC);
    cr_assert(irq.level);
    rd(12);
    /* An alarm that cannot come. */
    wr(1, 0x77);
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER);
}

/* Found by fuzz_rtc: the sum of both did not fit into 64 bits. */
Test(rtc, set_far_ahead_and_then_the_host_is, .init = setup)
{
    wr(11, 0x82);
    wr(9, 0x99);
    wr(RTC_CENTURY, 0x21);
    wr(11, 0x02);
    cr_assert_eq(rd(RTC_CENTURY), 0x21);
    set_wall(2150, 1, 1, 0, 0, 0);
    cr_assert_eq(rd(RTC_CENTURY), 0x22);
    cr_assert_eq(rd(9), 0x22);
    /* It can be set again, on the fly. */
    wr(RTC_CENTURY, 0x20);
    cr_assert_eq(rd(RTC_CENTURY), 0x20);
    cr_assert_eq(rd(9), 0x22);
    fake_clock_advance(&clk, 2 * NSEC_PER_SEC);
    rd(12);
    fake_clock_advance(&clk, 2 * NSEC_PER_SEC);
    cr_assert(rd(12) & 0x10);
}

Test(rtc, memory_size_bytes)
{
    fake_clock_init(&clk);
    rtc_init(&r, fake_irq_line(&irq), &clk.timers, wall, NULL, 3ull << 30, 5ull << 30);
    cr_assert_eq(rd(0x15) | rd(0x16) << 8, 640);
    cr_assert_eq(rd(0x17) | rd(0x18) << 8, 0xffff);
    cr_assert_eq(rd(0x34) | rd(0x35) << 8, (3072 - 16) * 16);
    cr_assert_eq(rd(0x5b) | rd(0x5c) << 8 | rd(0x5d) << 16, 5 << 14);
    wr(0x40, 0xa5);
    cr_assert_eq(rd(0x40), 0xa5);
    rtc_reset(&r);
    cr_assert_eq(rd(0x40), 0xa5);
}

Test(rtc, random_accesses, .init = setup)
{
    uint32_t x = 5;

    for (int i = 0; i < 100000; i++) {
        x = x * 1664525 + 1013904223;
        if (x >> 31)
            wr(x >> 8 & 0x7f, (uint8_t)(x >> 16));
        else
            rd(x >> 8 & (x & 1 ? 15 : 0x7f));
        if ((x >> 4 & 0xf) == 0)
            fake_clock_advance(&clk, x);
    }
}
