/* The 8042 with its keyboard and mouse: what software reads when keys and mouse move. */
#include "dev_fixture.h"

#include <linux/input-event-codes.h>
#include <stdlib.h>

#include "devices/i8042.h"

static struct fake_clock now;
static struct fake_irq irqs[2];
static struct i8042 k;
static struct io_bus bus;
static unsigned resets;
static bool a20 = true;

static void reset(void *opaque)
{
    resets++;
}

static void set_a20(void *opaque, bool on)
{
    a20 = on;
}

static bool get_a20(void *opaque)
{
    return a20;
}

static void setup(void)
{
    fake_clock_init(&now);
    i8042_init(&k, &(struct i8042_config){.reset = reset,
                                          .set_a20 = set_a20,
                                          .get_a20 = get_a20,
                                          .kbd_irq = fake_irq_line(&irqs[0]),
                                          .aux_irq = fake_irq_line(&irqs[1]),
                                          .timers = &now.timers,
                                          .devices = true});
    io_bus_add(&bus, 0x60, 1, &i8042_data_ops, &k);
    io_bus_add(&bus, 0x64, 1, &i8042_command_ops, &k);
}

static uint8_t status(void)
{
    return (uint8_t)io_bus_read(&bus, 0x64, 1);
}

static void cmd(uint8_t value)
{
    io_bus_write(&bus, 0x64, 1, value);
}

static void data(uint8_t value)
{
    io_bus_write(&bus, 0x60, 1, value);
}

/* The next byte, waiting as software would; -1 if none comes. */
static int next(void)
{
    for (unsigned i = 0; i < 20 && !(status() & 1); i++)
        fake_clock_advance(&now, 100000);
    return status() & 1 ? (int)io_bus_read(&bus, 0x60, 1) : -1;
}

static void expect(unsigned n, const uint8_t *bytes, const char *what)
{
    for (unsigned i = 0; i < n; i++) {
        int byte = next();

        cr_assert_eq(byte, bytes[i], "%s, byte %u: %#x, not %#x", what, i, byte, bytes[i]);
    }
    cr_assert_eq(next(), -1, "%s: no more", what);
}
#define EXPECT(what, ...)                                                                          \
    expect(sizeof((uint8_t[]){__VA_ARGS__}), (const uint8_t[]){__VA_ARGS__}, what)

static void set_config(uint8_t value)
{
    cmd(0x60);
    data(value);
}

static void tap(unsigned key)
{
    cr_assert(i8042_key(&k, key, true));
    cr_assert(i8042_key(&k, key, false));
}

static void to_mouse(uint8_t value)
{
    cmd(0xd4);
    data(value);
}

Test(i8042, self_tests, .init = setup)
{
    cmd(0xaa);
    EXPECT("controller", 0x55);
    cmd(0xab);
    EXPECT("keyboard line", 0x00);
    cmd(0xa9);
    EXPECT("mouse line", 0x00);
    cmd(0x20);
    EXPECT("both off after the test", 0x34);
}

Test(i8042, keys_translated_and_not, .init = setup)
{
    set_config(0x45);
    tap(KEY_A);
    EXPECT("a", 0x1e, 0x9e);
    tap(KEY_RIGHT);
    EXPECT("right", 0xe0, 0x4d, 0xe0, 0xcd);
    tap(KEY_F7); /* the one key whose code in set 2 is above 0x7f */
    EXPECT("F7", 0x41, 0xc1);
    tap(KEY_SYSRQ);
    EXPECT("print", 0xe0, 0x2a, 0xe0, 0x37, 0xe0, 0xb7, 0xe0, 0xaa);
    tap(KEY_PAUSE);
    EXPECT("pause", 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5);
    set_config(0x05);
    tap(KEY_A);
    EXPECT("a in set 2", 0x1c, 0xf0, 0x1c);
    tap(KEY_RIGHT);
    EXPECT("right in set 2", 0xe0, 0x74, 0xe0, 0xf0, 0x74);
    tap(KEY_PAUSE);
    EXPECT("pause in set 2", 0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77);
    data(0xf0);
    data(0x01);
    EXPECT("select set 1", 0xfa, 0xfa);
    tap(KEY_A);
    EXPECT("a in set 1", 0x1e, 0x9e);
    data(0xf0);
    data(0x00);
    EXPECT("which set", 0xfa, 0xfa, 0x01);
    cr_assert(!i8042_key(&k, 0, true));
    cr_assert(!i8042_key(&k, KEY_MAX, true));
    cr_assert(!i8042_key(&k, 100000, true));
}

/* Every key gives a code of its own, the same in set 1 as through the translation of set 2. */
Test(i8042, sets_1_and_2_agree, .init = setup)
{
    unsigned keys = 0;

    for (unsigned key = 1; key < 256; key++) {
        uint8_t raw[16], translated[16];
        unsigned n = 0;
        int byte;

        set_config(0x05);
        data(0xf0);
        data(0x01);
        EXPECT("set 1", 0xfa, 0xfa);
        if (!i8042_key(&k, key, true))
            continue;
        i8042_key(&k, key, false);
        while ((byte = next()) >= 0)
            raw[n++] = (uint8_t)byte;
        data(0xf0);
        data(0x02);
        EXPECT("set 2", 0xfa, 0xfa);
        set_config(0x45);
        i8042_key(&k, key, true);
        i8042_key(&k, key, false);
        for (unsigned i = 0; i < n; i++) {
            translated[i] = (uint8_t)next();
            cr_assert_eq(translated[i], raw[i], "key %u", key);
        }
        cr_assert_eq(next(), -1, "key %u", key);
        keys++;
    }
    cr_assert_gt(keys, 105);
}

Test(i8042, keyboard_commands, .init = setup)
{
    set_config(0x05);
    data(0xee);
    EXPECT("echo", 0xee);
    data(0xf2);
    EXPECT("identify", 0xfa, 0xab, 0x83);
    data(0xed);
    data(0x05);
    EXPECT("LEDs", 0xfa, 0xfa);
    cr_assert_eq(k.kbd.leds, 5);
    data(0xf3);
    data(0x20);
    EXPECT("typematic", 0xfa, 0xfa);
    data(0xf5);
    EXPECT("disable", 0xfa);
    tap(KEY_A);
    cr_assert_eq(next(), -1);
    data(0xf4);
    EXPECT("enable", 0xfa);
    tap(KEY_A);
    EXPECT("a", 0x1c, 0xf0, 0x1c);
    data(0xfe);
    EXPECT("resend", 0x1c);
    data(0xff);
    EXPECT("reset", 0xfa, 0xaa);
    data(0x01);
    EXPECT("no command", 0xfe);
    data(0xf0);
    data(0x03);
    EXPECT("no set 3", 0xfa, 0xfe);
    data(0xed);
    data(0xf4); /* a command where an argument is expected */
    EXPECT("enable instead of LEDs", 0xfa, 0xfa);
    set_config(0x45);
    data(0xf2);
    EXPECT("identify, translated", 0xfa, 0xab, 0x41);
}

Test(i8042, interrupts, .init = setup)
{
    set_config(0x47);
    i8042_key(&k, KEY_A, true);
    cr_assert(irqs[0].level);
    cr_assert_eq(status() & 0x21, 0x01);
    cr_assert_eq(io_bus_read(&bus, 0x60, 1), 0x1e);
    cr_assert(!irqs[0].level);
    cr_assert_eq(io_bus_read(&bus, 0x60, 1), 0x1e, "can be read again");
    i8042_key(&k, KEY_A, false);
    cr_assert(!irqs[0].level, "not that soon");
    fake_clock_advance(&now, 1000000);
    cr_assert_eq(irqs[0].rises, 2);
    cr_assert_eq(next(), 0x9e);
    to_mouse(0xf4);
    fake_clock_advance(&now, 1000000);
    cr_assert_eq(irqs[1].rises, 1);
    cr_assert_eq(status() & 0x21, 0x21);
    cr_assert_eq(next(), 0xfa);
    cr_assert(!irqs[1].level);
    set_config(0x44);
    tap(KEY_B);
    fake_clock_advance(&now, 10000000);
    cr_assert_eq(irqs[0].rises, 2, "not enabled");
    set_config(0x45);
    cr_assert_eq(irqs[0].rises, 3);
}

Test(i8042, disabled_lines_hold_their_bytes, .init = setup)
{
    set_config(0x75);
    tap(KEY_A);
    cr_assert_eq(next(), -1);
    cmd(0xae);
    EXPECT("a", 0x1e, 0x9e);
    cmd(0xad);
    tap(KEY_B);
    cr_assert_eq(next(), -1);
    data(0xee); /* sending to the keyboard switches it on */
    EXPECT("b, then echo", 0x30, 0xb0, 0xee);
}

/* A command's answer does not get mixed up with, nor loses, what a device has just sent. */
Test(i8042, answers_come_first, .init = setup)
{
    set_config(0x05);
    tap(KEY_A);
    cr_assert(status() & 1);
    cmd(0x20);
    EXPECT("config, then a", 0x05, 0x1c, 0xf0, 0x1c);
}

Test(i8042, full_queue, .init = setup)
{
    unsigned n = 0, overruns = 0;
    int byte;

    set_config(0x05);
    for (unsigned i = 0; i < 1000; i++)
        tap(KEY_A);
    data(0xee); /* there is room for answers left */
    while ((byte = next()) >= 0 && byte != 0xee) {
        n++;
        overruns += byte == 0x00;
    }
    cr_assert_eq(byte, 0xee);
    cr_assert(n > 16 && n < 64, "%u bytes", n);
    cr_assert_eq(overruns, 1);
}

Test(i8042, loops, .init = setup)
{
    set_config(0x47);
    cmd(0xd2);
    data(0x1c);
    cr_assert(irqs[0].level);
    EXPECT("keyboard loop: not translated", 0x1c);
    cmd(0xd3);
    data(0x5a);
    cr_assert(irqs[1].level);
    cr_assert_eq(status() & 0x20, 0x20);
    EXPECT("mouse loop", 0x5a);
}

Test(i8042, a20_and_reset, .init = setup)
{
    cmd(0xd1);
    data(0xdd);
    cr_assert(!a20);
    cmd(0xd0);
    EXPECT("output port", 0xdd & ~0x30);
    a20 = true; /* somebody else */
    cmd(0xd0);
    EXPECT("output port", 0xdf & ~0x30);
    cmd(0xdd);
    cr_assert(!a20);
    cmd(0xdf);
    cr_assert(a20);
    cr_assert_eq(resets, 0);
    cmd(0xfe);
    cr_assert_eq(resets, 1);
}

Test(mouse, identify_and_status, .init = setup)
{
    set_config(0x45);
    to_mouse(0xff);
    EXPECT("reset", 0xfa, 0xaa, 0x00);
    to_mouse(0xf2);
    EXPECT("identify", 0xfa, 0x00);
    to_mouse(0xe8);
    to_mouse(0x03);
    EXPECT("resolution", 0xfa, 0xfa);
    to_mouse(0xe9);
    EXPECT("status", 0xfa, 0x00, 0x03, 100);
    to_mouse(0xee);
    to_mouse(0x42);
    EXPECT("wrap", 0xfa, 0x42);
    to_mouse(0xec);
    EXPECT("unwrap", 0xfa);
    to_mouse(0x77);
    EXPECT("no command", 0xfe);
}

Test(mouse, movement_and_buttons, .init = setup)
{
    set_config(0x47);
    i8042_mouse(&k, 5, 5, 0, 0);
    cr_assert_eq(next(), -1, "not enabled");
    to_mouse(0xf4);
    EXPECT("enable", 0xfa);
    i8042_mouse(&k, 5, 3, 1, PS2_LEFT);
    EXPECT("right and down", 0x29, 0x05, 0xfd);
    i8042_mouse(&k, -300, 0, 0, PS2_LEFT);
    EXPECT("far left", 0x19, 0x01, 0x00, 0x19, 0xd3, 0x00);
    i8042_mouse(&k, 0, 0, 0, 0);
    EXPECT("release", 0x08, 0x00, 0x00);
}

static void knock(uint8_t middle)
{
    static const uint8_t rates[3] = {200, 0, 80};

    for (unsigned i = 0; i < 3; i++) {
        to_mouse(0xf3);
        EXPECT("rate", 0xfa);
        to_mouse(i == 1 ? middle : rates[i]);
        EXPECT("rate", 0xfa);
    }
}

Test(mouse, wheel_and_five_buttons, .init = setup)
{
    set_config(0x47);
    knock(100);
    to_mouse(0xf2);
    EXPECT("IntelliMouse", 0xfa, 0x03);
    to_mouse(0xf4);
    EXPECT("enable", 0xfa);
    i8042_mouse(&k, 0, 0, -1, 0);
    EXPECT("wheel up", 0x08, 0x00, 0x00, 0xff);
    knock(200);
    to_mouse(0xf2);
    EXPECT("Explorer", 0xfa, 0x04);
    i8042_mouse(&k, 0, 0, 2, 0);
    EXPECT("wheel down", 0x08, 0x00, 0x00, 0x02);
    i8042_mouse(&k, 0, 0, 0, PS2_SIDE);
    EXPECT("fourth button", 0x08, 0x00, 0x00, 0x10);
}

/* When nobody reads, movement adds up and the last state of the buttons arrives. */
Test(mouse, nothing_lost_when_slow, .init = setup)
{
    int sum = 0, byte, buttons = 0;

    set_config(0x47);
    to_mouse(0xf4);
    EXPECT("enable", 0xfa);
    for (unsigned i = 0; i < 1000; i++)
        i8042_mouse(&k, 3, 0, 0, i & 1 ? PS2_RIGHT : 0);
    while ((byte = next()) >= 0) {
        int x = next();

        sum += byte & 0x10 ? x - 256 : x;
        buttons = byte & 7;
        next();
    }
    cr_assert_eq(sum, 3000);
    cr_assert_eq(buttons, PS2_RIGHT);
}

Test(i8042, without_devices)
{
    fake_clock_init(&now);
    i8042_init(&k, &(struct i8042_config){.reset = reset, .timers = &now.timers});
    io_bus_add(&bus, 0x60, 1, &i8042_data_ops, &k);
    io_bus_add(&bus, 0x64, 1, &i8042_command_ops, &k);
    cmd(0xa9);
    EXPECT("no second port", 0xff);
    data(0xff);
    cr_assert_eq(next(), -1);
    to_mouse(0xff);
    cr_assert_eq(next(), -1);
    cr_assert(!i8042_key(&k, KEY_A, true));
    i8042_mouse(&k, 1, 1, 1, 1);
    cr_assert_eq(next(), -1);
}

/* Whatever is written, the controller stays consistent and can be brought back. */
Test(i8042, random_traffic, .init = setup)
{
    srand(42);
    for (unsigned i = 0; i < 300000; i++) {
        switch (rand() % 7) {
        case 0:
            cmd((uint8_t)rand());
            break;
        case 1:
            data((uint8_t)rand());
            break;
        case 2:
            io_bus_read(&bus, 0x60, 1);
            break;
        case 3:
            i8042_key(&k, (unsigned)rand() % 300, rand() & 1);
            break;
        case 4:
            i8042_mouse(&k, rand(), -rand(), rand(), (uint8_t)rand());
            break;
        case 5:
            fake_clock_advance(&now, (uint64_t)rand() % 1000000);
            break;
        default:
            status();
        }
        cr_assert(k.kbd.queue.count <= PS2_QUEUE_SIZE && k.mouse.queue.count <= PS2_QUEUE_SIZE);
    }
    cmd(0xff); /* takes no argument: ends a command that waits for one */
    while (next() >= 0)
        ;
    cmd(0xaa);
    cr_assert_eq(next(), 0x55);
}
