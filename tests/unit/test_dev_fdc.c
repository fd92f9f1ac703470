/* The 8237 DMA controllers and the floppy controller, as drivers program them. */
#include "dev_fixture.h"

#include <errno.h>

#include "devices/fdc.h"
#include "tests/support/storage_rig.h"

static struct rig rig;
static struct i8237 dma;
static struct fdc fdc;
static struct mem_image image, image720;
static struct block_device *drive;
static struct fake_irq irq;

static void setup(void)
{
    cr_assert_eq(rig_init(&rig), 0);
    mem_image_init(&image, 2880 * 512);
    mem_image_init(&image720, 1440 * 512);
    drive = rig_drive(&rig, &image, true);
    i8237_init(&dma, &rig.ram);
    fdc_init(&fdc, fake_irq_line(&irq), &dma);
    fdc_attach(&fdc, 0, drive, FLOPPY_1M44);
}

static void teardown(void)
{
    image.hold = false;
    block_device_destroy(drive);
    rig_destroy(&rig);
    free(image.data);
    free(image720.data);
}

TestSuite(i8237, .init = setup, .fini = teardown, .timeout = 30);
TestSuite(fdc, .init = setup, .fini = teardown, .timeout = 30);

/* -- 8237 ----------------------------------------------------------------------------------------
 */

static void program(unsigned channel, uint32_t address, uint16_t count, uint8_t mode)
{
    static const uint8_t page[] = {7, 3, 1, 2};

    out8(&i8237_low_ops, &dma, 0x0a, (uint8_t)(4 | channel));
    out8(&i8237_low_ops, &dma, 0x0c, 0);
    out8(&i8237_low_ops, &dma, 0x0b, (uint8_t)(mode | channel));
    out8(&i8237_low_ops, &dma, 2 * channel, (uint8_t)address);
    out8(&i8237_low_ops, &dma, 2 * channel, (uint8_t)(address >> 8));
    out8(&i8237_page_ops, &dma, page[channel], (uint8_t)(address >> 16));
    out8(&i8237_low_ops, &dma, 2 * channel + 1, (uint8_t)count);
    out8(&i8237_low_ops, &dma, 2 * channel + 1, (uint8_t)(count >> 8));
    out8(&i8237_low_ops, &dma, 0x0a, (uint8_t)channel);
}

Test(i8237, counts_to_terminal_count)
{
    uint8_t buf[100];
    bool tc;

    memset(buf, 0x5a, sizeof(buf));
    program(2, 0x23456, 79, 0x44);
    cr_expect_eq(i8237_transfer(&dma, 2, I8237_TO_MEMORY, buf, 50, &tc), 50);
    cr_expect_not(tc);
    cr_expect_eq(in8(&i8237_low_ops, &dma, 5), 29, "count, low byte");
    cr_expect_eq(in8(&i8237_low_ops, &dma, 5), 0);
    cr_expect_eq(i8237_transfer(&dma, 2, I8237_TO_MEMORY, buf, 50, &tc), 30);
    cr_expect(tc);
    cr_expect_eq(rig_mem(&rig, 0x23456)[79], 0x5a);
    cr_expect_eq(rig_mem(&rig, 0x23456)[80], 0);
    cr_expect_eq(in8(&i8237_low_ops, &dma, 8), 0x04, "status: TC of channel 2");
    cr_expect_eq(in8(&i8237_low_ops, &dma, 8), 0, "cleared by reading");
    cr_expect_eq(i8237_transfer(&dma, 2, I8237_TO_MEMORY, buf, 50, &tc), 0, "masked itself");
    cr_expect_eq(in8(&i8237_low_ops, &dma, 5), 0xff);
}

Test(i8237, wraps_in_its_page)
{
    uint8_t buf[32];
    bool tc;

    for (unsigned i = 0; i < 32; i++)
        buf[i] = (uint8_t)i;
    program(1, 0x2fff0, 31, 0x44);
    cr_expect_eq(i8237_transfer(&dma, 1, I8237_TO_MEMORY, buf, 32, &tc), 32);
    cr_expect_eq(*rig_mem(&rig, 0x2ffff), 15);
    cr_expect_eq(*rig_mem(&rig, 0x20000), 16);
    cr_expect_eq(*rig_mem(&rig, 0x30000), 0);
}

Test(i8237, decrement_autoinit_verify_and_direction)
{
    uint8_t buf[16] = {1, 2, 3, 4};
    bool tc;

    program(3, 0x1003, 3, 0x44 | 0x20);
    cr_expect_eq(i8237_transfer(&dma, 3, I8237_TO_MEMORY, buf, 4, &tc), 4);
    cr_expect_eq(*rig_mem(&rig, 0x1003), 1);
    cr_expect_eq(*rig_mem(&rig, 0x1000), 4);
    program(3, 0x2000, 7, 0x44 | 0x10);
    cr_expect_eq(i8237_transfer(&dma, 3, I8237_TO_MEMORY, buf, 16, &tc), 8);
    cr_expect(tc);
    cr_expect(i8237_ready(&dma, 3, I8237_TO_MEMORY), "started again by itself");
    cr_expect_not(i8237_ready(&dma, 3, I8237_FROM_MEMORY));
    program(3, 0x3000, 3, 0x40);
    cr_expect_eq(i8237_transfer(&dma, 3, I8237_TO_MEMORY, buf, 4, &tc), 4);
    cr_expect_eq(*rig_mem(&rig, 0x3000), 0, "verify");
    out8(&i8237_low_ops, &dma, 8, 4);
    cr_expect_not(i8237_ready(&dma, 3, I8237_TO_MEMORY), "controller disabled");
    out8(&i8237_low_ops, &dma, 0x0d, 0);
    cr_expect_eq(in8(&i8237_low_ops, &dma, 0x0f), 0xff, "master clear masks all");
}

Test(i8237, words_and_memory_that_is_not_there)
{
    uint8_t buf[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    bool tc;

    out8(&i8237_high_ops, &dma, 0x16, 0x45); /* channel 5 */
    out8(&i8237_high_ops, &dma, 0x04, 0x00);
    out8(&i8237_high_ops, &dma, 0x04, 0x80);
    out8(&i8237_page_ops, &dma, 0x0b, 0x03); /* bit 0 is not used */
    out8(&i8237_high_ops, &dma, 0x06, 3);
    out8(&i8237_high_ops, &dma, 0x06, 0);
    out8(&i8237_high_ops, &dma, 0x14, 0x01);
    cr_expect_eq(i8237_transfer(&dma, 5, I8237_TO_MEMORY, buf, 8, &tc), 8);
    cr_expect(tc);
    cr_expect_eq(*rig_mem(&rig, 0x30000 + 7), 8);
    program(2, 0xf00000, 7, 0x48);
    cr_expect_eq(i8237_transfer(&dma, 2, I8237_FROM_MEMORY, buf, 8, &tc), 8);
    cr_expect_eq(buf[0], 0xff);
    out8(&i8237_page_ops, &dma, 0, 0x42);
    cr_expect_eq(in8(&i8237_page_ops, &dma, 0), 0x42, "POST code");
}

/* -- Floppy ---------------------------------------------------------------------------------------
 */

static uint8_t msr(void)
{
    block_drain(drive);
    return in8(&fdc_ops, &fdc, 4);
}

static void put(uint8_t value)
{
    cr_assert_eq(msr() & 0xc0, 0x80, "ready for a command byte");
    out8(&fdc_ops, &fdc, 5, value);
}

static void send(const uint8_t *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        put(bytes[i]);
}

#define SEND(...) send((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static unsigned result(uint8_t *out)
{
    unsigned n = 0;

    while ((msr() & 0xd0) == 0xd0) {
        cr_assert_lt(n, 16);
        out[n++] = in8(&fdc_ops, &fdc, 5);
    }
    cr_expect_eq(msr(), 0x80);
    return n;
}

static void power_up(void)
{
    uint8_t r[16];

    out8(&fdc_ops, &fdc, 2, 0x00);
    cr_expect_eq(msr(), 0);
    out8(&fdc_ops, &fdc, 2, 0x1c);
    cr_expect(irq.level);
    for (unsigned i = 0; i < 4; i++) {
        SEND(0x08);
        cr_expect_eq(result(r), 2);
        cr_expect_eq(r[0], 0xc0 | i);
    }
    cr_expect_not(irq.level);
    SEND(0x08);
    cr_expect_eq(result(r), 1);
    cr_expect_eq(r[0], 0x80);
    out8(&fdc_dir_ops, &fdc, 0, 0); /* 500 kbit/s */
    SEND(0x03, 0xaf, 0x02);
}

static void seek(uint8_t cylinder)
{
    uint8_t r[16];

    SEND(0x0f, 0, cylinder);
    cr_expect(irq.level);
    SEND(0x08);
    cr_expect_eq(result(r), 2);
    cr_expect_eq(r[0], 0x20);
    cr_expect_eq(r[1], cylinder);
}

static const uint8_t *at(unsigned c, unsigned h, unsigned s)
{
    return image.data + ((c * 2 + h) * 18 + s - 1) * 512;
}

Test(fdc, reset_and_identification)
{
    uint8_t r[16];

    power_up();
    SEND(0x10);
    cr_expect_eq(result(r), 1);
    cr_expect_eq(r[0], 0x90);
    SEND(0x0e);
    cr_expect_eq(result(r), 10);
    SEND(0x94);
    cr_expect_eq(result(r), 1);
    cr_expect_eq(r[0], 0x10);
    SEND(0x1f);
    cr_expect_eq(result(r), 1);
    cr_expect_eq(r[0], 0x80, "unknown");
    SEND(0x04, 0);
    cr_expect_eq(result(r), 1);
    cr_expect_eq(r[0] & 0x78, 0x38, "ready, track 0, two sides");
    cr_expect_eq(in8(&fdc_ops, &fdc, 0), 0xff);
}

Test(fdc, read_by_dma_until_terminal_count)
{
    uint8_t r[16];

    power_up();
    seek(3);
    program(2, 0x10000, 5 * 512 - 1, 0x44);
    SEND(0x46, 0x04, 3, 1, 2, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0], 0x04);
    cr_expect_eq(r[1] | r[2], 0);
    cr_expect_eq(r[3], 3);
    cr_expect_eq(r[5], 7);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), at(3, 1, 2), 5 * 512), 0);
    cr_expect_not(irq.level);
}

Test(fdc, multi_track_reads_both_sides)
{
    uint8_t r[16];

    power_up();
    program(2, 0x10000, 36 * 512 - 1, 0x44);
    SEND(0xe6, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0);
    cr_expect_eq(r[3], 1, "the next cylinder");
    cr_expect_eq(r[4], 0);
    cr_expect_eq(r[5], 1);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), at(0, 0, 1), 36 * 512), 0);
}

Test(fdc, end_of_cylinder_without_terminal_count)
{
    uint8_t r[16];

    power_up();
    program(2, 0x10000, 36 * 512 - 1, 0x44);
    SEND(0x46, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0x40);
    cr_expect_eq(r[1], 0x80);
}

Test(fdc, write_and_format)
{
    uint8_t r[16];

    power_up();
    seek(10);
    memset(rig_mem(&rig, 0x10000), 0x77, 1000);
    program(2, 0x10000, 999, 0x48);
    SEND(0x45, 0x00, 10, 0, 18, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0x40, "sector 19 does not exist");
    program(2, 0x10000, 999, 0x48);
    SEND(0x45, 0x00, 10, 0, 4, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0);
    cr_expect_eq(at(10, 0, 5)[487], 0x77);
    cr_expect_eq(at(10, 0, 5)[488], 0, "the rest of the sector is zeros");
    program(2, 0x10000, 18 * 4 - 1, 0x48);
    SEND(0x4d, 0x04, 2, 18, 0x54, 0xf6);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0);
    cr_expect_eq(at(10, 1, 1)[0], 0xf6);
    cr_expect_eq(at(10, 1, 18)[511], 0xf6);
    cr_expect_neq(at(11, 0, 1)[5], 0xf6);
    cr_expect_eq(at(10, 0, 5)[487], 0x77);
}

Test(fdc, what_is_not_on_the_track)
{
    static const struct {
        uint8_t c, h, r, n, st1, st2;
    } bad[] = {
        {5, 0, 1, 2, 0x04, 0x10}, {0, 1, 1, 2, 0x04, 0},   {0, 0, 19, 2, 0x04, 0},
        {0, 0, 0, 2, 0x04, 0},    {0, 0, 255, 2, 0x04, 0}, {0, 0, 1, 7, 0x04, 0},
    };
    uint8_t r[16];

    power_up();
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        program(2, 0x10000, 511, 0x44);
        SEND(0x46, 0x00, bad[i].c, bad[i].h, bad[i].r, bad[i].n, 255, 0x1b, 0xff);
        cr_expect_eq(result(r), 7);
        cr_expect_eq(r[0] & 0xc0, 0x40);
        cr_expect_eq(r[1], bad[i].st1, "%u", i);
        cr_expect_eq(r[2], bad[i].st2, "%u", i);
    }
    out8(&fdc_dir_ops, &fdc, 0, 2); /* 250 kbit/s */
    SEND(0x46, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[1], 0x01, "no address mark at this data rate");
    SEND(0x4a, 0x00);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0x40);
    /* A drive that is not there. */
    SEND(0x07, 0x01);
    SEND(0x08);
    cr_expect_eq(result(r), 2);
    cr_expect_eq(r[0], 0x71);
    SEND(0x46, 0x03, 0, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
}

Test(fdc, channel_not_ready_is_an_overrun)
{
    uint8_t r[16];

    power_up();
    SEND(0x46, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[1], 0x10);
}

Test(fdc, disk_change_line)
{
    uint8_t r[16];

    power_up();
    cr_expect_eq(in8(&fdc_dir_ops, &fdc, 0), 0x80, "changed since power-on");
    seek(1);
    cr_expect_eq(in8(&fdc_dir_ops, &fdc, 0), 0);
    block_device_set_medium(drive, NULL);
    cr_expect_eq(in8(&fdc_dir_ops, &fdc, 0), 0x80);
    seek(2);
    cr_expect_eq(in8(&fdc_dir_ops, &fdc, 0), 0x80, "no disk: stepping does not help");
    SEND(0x4a, 0x00);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[1], 0x01);
    block_device_set_medium(drive, &image720.image);
    cr_expect_eq(in8(&fdc_dir_ops, &fdc, 0), 0x80);
    SEND(0x07, 0x00);
    SEND(0x08);
    result(r);
    cr_expect_eq(in8(&fdc_dir_ops, &fdc, 0), 0);
    out8(&fdc_dir_ops, &fdc, 0, 2);
    program(2, 0x10000, 511, 0x44);
    SEND(0x46, 0x00, 0, 0, 9, 2, 9, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), image720.data + 8 * 512, 512), 0);
}

Test(fdc, write_protected)
{
    uint8_t r[16];

    block_device_set_medium(drive, NULL);
    image.image.read_only = true;
    block_device_set_medium(drive, &image.image);
    power_up();
    SEND(0x04, 0);
    result(r);
    cr_expect(r[0] & 0x40);
    program(2, 0x10000, 511, 0x48);
    SEND(0x45, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[1], 0x02);
    program(2, 0x10000, 71, 0x48);
    SEND(0x4d, 0x00, 2, 18, 0x54, 0xf6);
    result(r);
    cr_expect_eq(r[1], 0x02);
    cr_expect_eq(image.writes, 0);
}

Test(fdc, without_dma)
{
    uint8_t r[16], buf[1024];

    power_up();
    SEND(0x03, 0xaf, 0x03);
    SEND(0x46, 0x00, 0, 0, 17, 2, 18, 0x1b, 0xff);
    for (unsigned i = 0; i < 1024; i++) {
        cr_assert_eq(msr(), 0xf0);
        cr_expect_eq(irq.level, i % 512 == 0);
        buf[i] = in8(&fdc_ops, &fdc, 5);
    }
    cr_expect_arr_eq(buf, at(0, 0, 17), 1024);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[1], 0x80);
    SEND(0x45, 0x00, 0, 0, 18, 2, 18, 0x1b, 0xff);
    for (unsigned i = 0; i < 512; i++) {
        cr_assert_eq(msr(), 0xb0);
        out8(&fdc_ops, &fdc, 5, 0x99);
    }
    cr_expect_eq(result(r), 7);
    cr_expect_eq(at(0, 0, 18)[511], 0x99);
}

Test(fdc, read_id_verify_and_relative_seek)
{
    uint8_t r[16], first;

    power_up();
    seek(7);
    SEND(0x4a, 0x04);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0], 0x04);
    cr_expect_eq(r[3], 7);
    cr_expect_eq(r[4], 1);
    first = r[5];
    SEND(0x4a, 0x04);
    result(r);
    cr_expect_eq(r[5], first % 18 + 1, "the disk turns");
    SEND(0x56, 0x00, 7, 0, 1, 2, 18, 0x1b, 0xff);
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0);
    SEND(0xcf, 0x00, 5);
    SEND(0x08);
    result(r);
    cr_expect_eq(r[1], 12);
    SEND(0x8f, 0x00, 200);
    SEND(0x08);
    result(r);
    cr_expect_eq(r[1], 0);
}

Test(fdc, reset_while_a_request_is_in_flight)
{
    uint8_t r[16];

    power_up();
    image.hold = true;
    memset(rig_mem(&rig, 0x10000), 0xee, 512);
    program(2, 0x10000, 511, 0x44);
    SEND(0x46, 0x00, 0, 0, 1, 2, 18, 0x1b);
    out8(&fdc_ops, &fdc, 5, 0xff);
    out8(&fdc_ops, &fdc, 4, 0x80);
    cr_expect(irq.level);
    out8(&fdc_ops, &fdc, 4, 0x80);
    fdc_reset(&fdc);
    out8(&fdc_ops, &fdc, 4, 0x00);
    /* The next command waits for the buffer. */
    for (unsigned i = 0; i < 9; i++)
        out8(&fdc_ops, &fdc, 5, (const uint8_t[]){0x46, 0, 0, 0, 2, 2, 18, 0x1b, 0xff}[i]);
    cr_expect_eq(in8(&fdc_ops, &fdc, 4), 0x10);
    image.hold = false;
    cr_expect_eq(result(r), 7);
    cr_expect_eq(r[0] & 0xc0, 0);
    cr_expect_eq(memcmp(rig_mem(&rig, 0x10000), at(0, 0, 2), 512), 0);
}

Test(fdc, formats)
{
    cr_expect_eq(floppy_format(1474560)->spt, 18);
    cr_expect_eq(floppy_format(2949120)->rate, 3);
    cr_expect_eq(floppy_format(368640)->cylinders, 40);
    cr_expect_null(floppy_format(1474561));
    cr_expect_null(floppy_format(0));
    cr_expect(floppy_fits(FLOPPY_1M44, floppy_format(737280)));
    cr_expect_not(floppy_fits(FLOPPY_1M44, floppy_format(1228800)));
    cr_expect_not(floppy_fits(FLOPPY_1M44, floppy_format(2949120)));
}
