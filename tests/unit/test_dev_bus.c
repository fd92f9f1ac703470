/* The timer queue and the I/O bus. */
#include "dev_fixture.h"

#include <errno.h>

/* -- Timers
 * ---------------------------------------------------------------------------------------- */

static struct vm_timer timer[4];
static int order[16];
static unsigned fired;

static void record(void *opaque)
{
    order[fired++] = (int)(intptr_t)opaque;
}

static void setup_timers(struct fake_clock *c)
{
    fake_clock_init(c);
    for (int i = 0; i < 4; i++)
        vm_timer_init(&timer[i], &c->timers, record, (void *)(intptr_t)i);
}

Test(timer, fires_in_order_of_deadline_then_of_arming)
{
    struct fake_clock c;

    setup_timers(&c);
    vm_timer_set(&timer[0], c.now + 30);
    vm_timer_set(&timer[1], c.now + 10);
    vm_timer_set(&timer[2], c.now + 10);
    vm_timer_set(&timer[3], c.now + 20);
    cr_assert_eq(timer_queue_next(&c.timers), c.now + 10);
    c.now += 25;
    cr_assert_eq(timer_queue_run(&c.timers), c.now + 5);
    cr_assert_eq(fired, 3);
    cr_assert_eq(order[0], 1);
    cr_assert_eq(order[1], 2);
    cr_assert_eq(order[2], 3);
    cr_assert_not(timer[1].armed);
    cr_assert(timer[0].armed);
}

Test(timer, rearm_cancel_and_never)
{
    struct fake_clock c;

    setup_timers(&c);
    vm_timer_set(&timer[0], c.now + 10);
    vm_timer_set(&timer[0], c.now + 50);
    vm_timer_set(&timer[1], c.now + 20);
    vm_timer_cancel(&timer[1]);
    vm_timer_cancel(&timer[1]);
    vm_timer_set(&timer[2], c.now + 20);
    vm_timer_set(&timer[2], TIMER_NEVER);
    fake_clock_advance(&c, 40);
    cr_assert_eq(fired, 0);
    fake_clock_advance(&c, 20);
    cr_assert_eq(fired, 1);
    cr_assert_eq(timer_queue_next(&c.timers), TIMER_NEVER);
}

static uint64_t told;

static void sooner(void *opaque, uint64_t deadline)
{
    (void)opaque;
    told = deadline;
}

Test(timer, tells_only_of_earlier_deadlines)
{
    struct fake_clock c;

    setup_timers(&c);
    c.timers.sooner = sooner;
    vm_timer_set(&timer[0], c.now + 50);
    cr_assert_eq(told, c.now + 50);
    vm_timer_set(&timer[1], c.now + 60);
    cr_assert_eq(told, c.now + 50);
    vm_timer_set(&timer[2], c.now + 40);
    cr_assert_eq(told, c.now + 40);
    told = 0;
    vm_timer_set(&timer[2], c.now + 45); /* later than it was */
    cr_assert_eq(told, 0);
}

Test(timer, periods_do_not_drift_and_missed_ones_are_dropped)
{
    cr_assert_eq(timer_next_period(100, 10, 105), 110);
    cr_assert_eq(timer_next_period(100, 10, 110), 120);
    cr_assert_eq(timer_next_period(100, 10, 1003), 1010);
    cr_assert_eq(mul_div(UINT64_MAX, 10, 10), UINT64_MAX);
    cr_assert_eq(mul_div(UINT64_MAX, 10, 5), UINT64_MAX);
    cr_assert_eq(mul_div(3, 7, 2), 10);
}

/* -- Bus
 * ------------------------------------------------------------------------------------------- */

static uint8_t mem[2][16];
static unsigned accesses;

static uint64_t mem_read(void *opaque, uint64_t offset, unsigned size)
{
    const uint8_t *m = opaque;
    uint64_t v = 0;

    accesses++;
    for (unsigned i = 0; i < size; i++)
        v |= (uint64_t)m[offset + i] << (8 * i);
    return v;
}

static void mem_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    uint8_t *m = opaque;

    accesses++;
    for (unsigned i = 0; i < size; i++)
        m[offset + i] = (uint8_t)(value >> (8 * i));
}

static const struct io_ops narrow = {.read = mem_read, .write = mem_write, .max_size = 1};
static const struct io_ops wide = {.read = mem_read, .write = mem_write, .max_size = 4};

Test(bus, overlap_and_bad_ranges_are_refused)
{
    struct io_bus bus = {0};

    cr_assert_eq(io_bus_add(&bus, 0x100, 16, &wide, mem[0]), 0);
    cr_assert_eq(io_bus_add(&bus, 0x10f, 1, &wide, mem[1]), -EEXIST);
    cr_assert_eq(io_bus_add(&bus, 0xf8, 9, &wide, mem[1]), -EEXIST);
    cr_assert_eq(io_bus_add(&bus, 0xf8, 8, &wide, mem[1]), 0);
    cr_assert_eq(io_bus_add(&bus, 0x110, 0, &wide, mem[1]), -EINVAL);
    cr_assert_eq(io_bus_add(&bus, UINT64_MAX, 2, &wide, mem[1]), -EINVAL);
    cr_assert_eq(io_bus_add(&bus, UINT64_MAX, 1, &wide, mem[1]), 0);
}

Test(bus, grows_and_shrinks)
{
    struct io_bus bus = {0};

    for (unsigned i = 0; i < 1000; i++)
        cr_assert_eq(io_bus_add(&bus, (1000 - i) * 16, 16, &wide, mem[i & 1]), 0);
    cr_assert_eq(bus.count, 1000);
    mem[0][3] = 0x77;
    cr_assert_eq(io_bus_read(&bus, 500 * 16 + 3, 1), 0x77);
    cr_assert_eq(io_bus_remove(&bus, 500 * 16 + 3), -ENOENT);
    cr_assert_eq(io_bus_remove(&bus, 500 * 16), 0);
    cr_assert_eq(io_bus_remove(&bus, 500 * 16), -ENOENT);
    cr_assert_eq(io_bus_read(&bus, 500 * 16 + 3, 1), 0xff);
    cr_assert_eq(io_bus_read(&bus, 502 * 16 + 3, 1), 0x77);
    cr_assert_eq(io_bus_add(&bus, 500 * 16 + 8, 8, &wide, mem[0]), 0);
    cr_assert_eq(io_bus_remove(&bus, 0), -ENOENT);
    io_bus_destroy(&bus);
    cr_assert_eq(io_bus_read(&bus, 16, 1), 0xff);
}

/* A region that removes itself while it is written to, as a PCI command register does. */
static struct io_bus *own_bus;

static void write_remove(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
    io_bus_remove(own_bus, 0x100);
}

Test(bus, a_handler_may_remove_its_region)
{
    static const struct io_ops vanishing = {
        .read = mem_read, .write = write_remove, .max_size = 1};
    struct io_bus bus = {0};

    own_bus = &bus;
    io_bus_add(&bus, 0x100, 16, &vanishing, mem[0]);
    io_bus_add(&bus, 0x110, 16, &wide, mem[1]);
    io_bus_write(&bus, 0x100, 4, 0x01020304); /* split: three of four find nobody */
    cr_assert_eq(bus.count, 1);
    io_bus_destroy(&bus);
}

Test(bus, unclaimed_reads_ones)
{
    struct io_bus bus = {0};

    io_bus_add(&bus, 0x100, 16, &wide, mem[0]);
    cr_assert_eq(io_bus_read(&bus, 0x110, 4), 0xffffffffu);
    cr_assert_eq(io_bus_read(&bus, 0xff, 1), 0xff);
    cr_assert_eq(io_bus_read(&bus, 0x0, 8), UINT64_MAX);
    io_bus_write(&bus, 0x110, 4, 0); /* no effect, no crash */
}

Test(bus, splits_wide_and_straddling_accesses)
{
    struct io_bus bus = {0};

    io_bus_add(&bus, 0x100, 16, &narrow, mem[0]);
    io_bus_add(&bus, 0x110, 16, &wide, mem[1]);
    io_bus_write(&bus, 0x100, 4, 0x44332211);
    cr_assert_eq(accesses, 4);
    cr_assert_eq(mem[0][0], 0x11);
    cr_assert_eq(mem[0][3], 0x44);
    accesses = 0;
    io_bus_write(&bus, 0x110, 4, 0x88776655);
    cr_assert_eq(accesses, 1);
    cr_assert_eq(io_bus_read(&bus, 0x110, 4), 0x88776655u);
    io_bus_write(&bus, 0x10e, 4, 0xddccbbaa);
    cr_assert_eq(mem[0][14], 0xaa);
    cr_assert_eq(mem[0][15], 0xbb);
    cr_assert_eq(mem[1][0], 0xcc);
    cr_assert_eq(mem[1][1], 0xdd);
    cr_assert_eq(io_bus_read(&bus, 0x10e, 4), 0xddccbbaau);
    /* The end of the last region: half is there. */
    mem[1][15] = 0x5a;
    cr_assert_eq(io_bus_read(&bus, 0x11f, 2), 0xff5a);
}

/* -- Light accesses
 * -------------------------------------------------------------------------------- */

/* Even offsets only. */
static bool mem_read_light(void *opaque, uint64_t offset, unsigned size, uint64_t *value)
{
    if (offset & 1)
        return false;
    *value = mem_read(opaque, offset, size);
    return true;
}

static bool mem_write_light(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    if (offset & 1)
        return false;
    mem_write(opaque, offset, size, value);
    return true;
}

static const struct io_ops light = {.read = mem_read,
                                    .write = mem_write,
                                    .max_size = 4,
                                    .read_light = mem_read_light,
                                    .write_light = mem_write_light};

Test(bus, light_accesses_do_the_same_or_decline)
{
    static const unsigned sizes[] = {1, 2, 4};
    struct io_bus bus = {0};
    uint64_t value;
    unsigned done = 0;

    io_bus_add(&bus, 0x100, 16, &light, mem[0]);
    io_bus_add(&bus, 0x110, 16, &wide, mem[1]); /* has no light accesses */
    io_bus_add(&bus, 0x130, 8, &light, mem[0]);
    for (unsigned i = 0; i < 16; i++)
        mem[0][i] = (uint8_t)(i * 17 + 1);
    for (unsigned s = 0; s < 3; s++)
        for (unsigned addr = 0xf8; addr < 0x140; addr++)
            if (io_bus_read_light(&bus, addr, sizes[s], &value)) {
                cr_assert_eq(value, io_bus_read(&bus, addr, sizes[s]), "%#x size %u", addr,
                             sizes[s]);
                done++;
            }
    cr_assert_eq(done, /* bytes */ 8 + 8 + 16 + 4 + 8 + /* words */ 7 + 8 + 15 + 4 + 8 +
                           /* double words */ 5 + 7 + 13 + 3 + 8);
    cr_assert(io_bus_write_light(&bus, 0x102, 2, 0xffff1234));
    cr_assert_eq(mem[0][2], 0x34);
    cr_assert_eq(mem[0][3], 0x12);
    cr_assert_eq(mem[0][4], 4 * 17 + 1);
    cr_assert_not(io_bus_write_light(&bus, 0x103, 1, 0));
    cr_assert_not(io_bus_write_light(&bus, 0x10e, 4, 0));
    cr_assert_not(io_bus_write_light(&bus, 0x112, 1, 0));
    cr_assert(io_bus_write_light(&bus, 0x120, 4, 0));
    cr_assert_not(io_bus_write_light(&bus, 0x12e, 4, 0));
    /* The region that was hit last goes away. */
    cr_assert(io_bus_read_light(&bus, 0x132, 1, &value));
    io_bus_remove(&bus, 0x130);
    cr_assert(io_bus_read_light(&bus, 0x132, 1, &value));
    cr_assert_eq(value, 0xff);
    cr_assert(io_bus_read_light(&bus, 0x102, 1, &value));
    cr_assert_eq(value, 0x34);
    io_bus_destroy(&bus);
    cr_assert(io_bus_read_light(&bus, 0x102, 4, &value));
    cr_assert_eq(value, 0xffffffffu);
}
