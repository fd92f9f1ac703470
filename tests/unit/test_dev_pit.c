/* The 8254 and port 0x61. */
#include "dev_fixture.h"

#include "devices/pit.h"

static struct fake_clock clk;
static struct fake_irq irq;
static struct pit p;

static void wr(unsigned reg, uint8_t value)
{
    out8(&pit_io_ops, &p, reg, value);
}

static uint8_t rd(unsigned reg)
{
    return in8(&pit_io_ops, &p, reg);
}

static uint8_t rd61(void)
{
    return in8(&pit_speaker_ops, &p, 0);
}

static void wr61(uint8_t v)
{
    out8(&pit_speaker_ops, &p, 0, v);
}

/* Moves to the moment at which `ticks` whole ticks have passed since `start`. */
static void at_tick(uint64_t start, uint64_t ticks)
{
    fake_clock_run_until(&clk, start + (ticks * NSEC_PER_SEC + PIT_HZ - 1) / PIT_HZ);
}

static void load(unsigned n, unsigned mode, uint16_t count)
{
    wr(3, (uint8_t)(n << 6 | 0x30 | mode << 1));
    wr(n, (uint8_t)count);
    wr(n, (uint8_t)(count >> 8));
}

static uint16_t latched(unsigned n)
{
    uint8_t low;

    wr(3, (uint8_t)(n << 6));
    low = rd(n);
    return (uint16_t)(low | rd(n) << 8);
}

static void setup(void)
{
    fake_clock_init(&clk);
    pit_init(&p, fake_irq_line(&irq), &clk.timers);
}

Test(pit, silent_after_reset, .init = setup)
{
    fake_clock_advance(&clk, 10 * NSEC_PER_SEC);
    cr_assert_eq(irq.rises, 0);
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER);
}

Test(pit, rate_generator_does_not_drift, .init = setup)
{
    load(0, 2, 11932);
    fake_clock_advance(&clk, 100 * NSEC_PER_SEC);
    /* 100 s * 1193182 / 11932 = 9999.8 */
    cr_assert_eq(irq.rises, 9999 + 1, "%u (OUT starts high: one rise at the control word)",
                 irq.rises);
}

Test(pit, one_shot, .init = setup)
{
    uint64_t start = clk.now;

    load(0, 0, 1000);
    at_tick(start, 999);
    cr_assert_eq(irq.rises, 0);
    at_tick(start, 1000);
    cr_assert_eq(irq.rises, 1);
    cr_assert(irq.level);
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER);
    start = clk.now;
    load(0, 0, 500);
    cr_assert_not(irq.level);
    at_tick(start, 500);
    cr_assert_eq(irq.rises, 2);
}

Test(pit, counts_down_and_latches, .init = setup)
{
    uint64_t start = clk.now;

    load(0, 2, 1000);
    cr_assert_eq(latched(0), 1000);
    at_tick(start, 1);
    cr_assert_eq(latched(0), 999);
    at_tick(start, 999);
    cr_assert_eq(latched(0), 1);
    at_tick(start, 1000);
    cr_assert_eq(latched(0), 1000);
    at_tick(start, 1300);
    wr(3, 0x00);
    at_tick(start, 1400);
    cr_assert_eq(rd(0), 700 & 0xff);
    cr_assert_eq(rd(0), 700 >> 8);
    cr_assert_eq(rd(0), 600 & 0xff); /* not latched any more */
    cr_assert_eq(rd(0), 600 >> 8);
}

Test(pit, mode_0_goes_on_through_zero, .init = setup)
{
    uint64_t start = clk.now;

    load(0, 0, 10);
    at_tick(start, 11);
    cr_assert_eq(latched(0), 0xffff);
}

Test(pit, square_wave, .init = setup)
{
    uint64_t start = clk.now;

    load(2, 3, 1000);
    wr61(1);
    load(2, 3, 1000);
    start = clk.now;
    cr_assert(rd61() & 0x20);
    at_tick(start, 499);
    cr_assert(rd61() & 0x20);
    at_tick(start, 500);
    cr_assert_not(rd61() & 0x20);
    at_tick(start, 250);
    at_tick(start, 1000);
    cr_assert(rd61() & 0x20);
    at_tick(start, 1100);
    cr_assert_eq(latched(2), 800); /* by twos */
}

Test(pit, bcd, .init = setup)
{
    uint64_t start = clk.now;

    wr(3, 0x35); /* counter 0, mode 2, BCD */
    wr(0, 0x34);
    wr(0, 0x12);
    at_tick(start, 1);
    cr_assert_eq(latched(0), 0x1233);
    cr_assert_eq(p.counter[0].count, 1234);
    wr(3, 0x35);
    wr(0, 0);
    wr(0, 0);
    cr_assert_eq(p.counter[0].count, 10000);
}

Test(pit, readback_status, .init = setup)
{
    wr(3, 0x34);
    wr(3, 0xe2);                             /* status of counter 0 */
    cr_assert_eq(rd(0), 0x80 | 0x40 | 0x34); /* OUT high, null count */
    wr(0, 0);
    wr(0, 0);
    wr(3, 0xe2);
    cr_assert_eq(rd(0), 0x80 | 0x34);
    wr(3, 0xc2); /* count and status */
    cr_assert_eq(rd(0), 0x80 | 0x34);
    rd(0);
    rd(0);
    cr_assert_eq(p.counter[0].latched_bytes, 0);
}

/* How Linux calibrates the TSC: pit_calibrate_tsc(). */
Test(pit, gate_and_output_of_counter_2, .init = setup)
{
    uint64_t start;
    unsigned latch = PIT_HZ / 20; /* 50 ms */

    wr61((uint8_t)((rd61() & ~0x02) | 0x01));
    wr(3, 0xb0);
    wr(2, (uint8_t)latch);
    wr(2, (uint8_t)(latch >> 8));
    start = clk.now;
    cr_assert_not(rd61() & 0x20);
    at_tick(start, latch - 1);
    cr_assert_not(rd61() & 0x20);
    at_tick(start, latch);
    cr_assert(rd61() & 0x20);
}

Test(pit, gate_pauses_mode_0, .init = setup)
{
    uint64_t start;

    wr61(0);
    load(2, 0, 1000);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_eq(latched(2), 1000);
    start = clk.now;
    wr61(1);
    at_tick(start, 400);
    wr61(0);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_eq(latched(2), 600);
    wr61(1);
    start = clk.now;
    at_tick(start, 599);
    cr_assert_not(rd61() & 0x20);
    at_tick(start, 601);
    cr_assert(rd61() & 0x20);
}

Test(pit, gate_triggers_mode_1, .init = setup)
{
    uint64_t start;

    wr61(0);
    load(2, 1, 100);
    cr_assert(rd61() & 0x20);
    wr61(1);
    start = clk.now;
    cr_assert_not(rd61() & 0x20);
    at_tick(start, 100);
    cr_assert(rd61() & 0x20);
    wr61(0);
    wr61(1); /* again */
    cr_assert_not(rd61() & 0x20);
}

Test(pit, new_count_waits_for_the_end_of_the_period, .init = setup)
{
    uint64_t start = clk.now;

    load(0, 2, 1000);
    at_tick(start, 100);
    wr(0, 200);
    wr(0, 0);
    at_tick(start, 500);
    cr_assert_eq(latched(0), 500);
    at_tick(start, 1000);
    cr_assert_eq(latched(0), 200);
    at_tick(start, 1250);
    cr_assert_eq(latched(0), 150);
}

Test(pit, refresh_toggles, .init = setup)
{
    unsigned toggles = 0;
    uint8_t last = rd61() & 0x10;

    for (int i = 0; i < 1000; i++) {
        fake_clock_advance(&clk, 1000);
        if ((rd61() & 0x10) != last)
            toggles++;
        last = rd61() & 0x10;
    }
    cr_assert_geq(toggles, 64); /* every 15.08 us */
    cr_assert_leq(toggles, 68);
}

Test(pit, absurd_rates_do_not_flood_the_host, .init = setup)
{
    load(0, 2, 1);
    irq.rises = 0;
    fake_clock_advance(&clk, NSEC_PER_SEC / 100);
    cr_assert_leq(irq.rises, 501);
    cr_assert_geq(irq.rises, 400);
}

Test(pit, random_programs, .init = setup)
{
    uint32_t x = 7;

    for (int i = 0; i < 100000; i++) {
        x = x * 1664525 + 1013904223;
        switch (x >> 28 & 3) {
        case 0:
            wr(x >> 8 & 3, (uint8_t)(x >> 16));
            break;
        case 1:
            rd(x >> 8 & 3);
            break;
        case 2:
            wr61((uint8_t)(x >> 16));
            rd61();
            break;
        case 3:
            fake_clock_advance(&clk, x >> 12 & 0xffff);
        }
    }
}
