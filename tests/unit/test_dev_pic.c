/* The 8259A pair. */
#include "dev_fixture.h"

#include "devices/pic.h"

static struct pic p;
static struct fake_irq out;

static void wr(unsigned chip, unsigned a0, uint8_t value)
{
    out8(&pic_io_ops, &p.chip[chip], a0, value);
}

static uint8_t rd(unsigned chip, unsigned a0)
{
    return in8(&pic_io_ops, &p.chip[chip], a0);
}

static void program(uint8_t icw4)
{
    for (unsigned i = 0; i < 2; i++) {
        wr(i, 0, 0x11);
        wr(i, 1, i ? 0x28 : 0x20);
        wr(i, 1, i ? 2 : 4);
        wr(i, 1, icw4);
        wr(i, 1, 0);
    }
}

static void setup(void)
{
    pic_init(&p, fake_irq_line(&out));
    program(0x01);
}

static void pulse(unsigned n)
{
    pic_set_irq(&p, n, true);
    pic_set_irq(&p, n, false);
}

Test(pic, edge_is_delivered_once, .init = setup)
{
    pic_set_irq(&p, 4, true);
    cr_assert(out.level);
    cr_assert_eq(rd(0, 0), 0x10);
    cr_assert_eq(pic_acknowledge(&p), 0x24);
    cr_assert_not(out.level);
    wr(0, 0, 0x0b);
    cr_assert_eq(rd(0, 0), 0x10);
    wr(0, 0, 0x20);
    cr_assert_eq(rd(0, 0), 0);
    cr_assert_not(out.level); /* still high, but no new edge */
    pic_set_irq(&p, 4, false);
    pic_set_irq(&p, 4, true);
    cr_assert(out.level);
}

Test(pic, slave_through_the_cascade, .init = setup)
{
    pulse(12);
    cr_assert(out.level);
    cr_assert_eq(rd(0, 0), 0x04);
    cr_assert_eq(pic_acknowledge(&p), 0x2c);
    cr_assert_not(out.level);
    pulse(10); /* higher priority on the slave, but the master has IR2 in service */
    cr_assert_not(out.level);
    wr(1, 0, 0x20);
    wr(0, 0, 0x20);
    cr_assert(out.level);
    cr_assert_eq(pic_acknowledge(&p), 0x2a);
}

Test(pic, special_fully_nested_lets_the_slave_nest)
{
    pic_init(&p, fake_irq_line(&out));
    program(0x11);
    pulse(12);
    pic_acknowledge(&p);
    pulse(10);
    cr_assert(out.level);
    cr_assert_eq(pic_acknowledge(&p), 0x2a);
    pulse(14); /* lower */
    cr_assert_not(out.level);
}

Test(pic, two_slave_interrupts_with_auto_eoi)
{
    pic_init(&p, fake_irq_line(&out));
    program(0x03);
    pulse(12);
    pulse(14);
    cr_assert_eq(pic_acknowledge(&p), 0x2c);
    cr_assert(out.level);
    cr_assert_eq(pic_acknowledge(&p), 0x2e);
    cr_assert_not(out.level);
}

Test(pic, priorities_and_masks, .init = setup)
{
    pulse(7);
    pulse(1);
    cr_assert_eq(pic_acknowledge(&p), 0x21);
    cr_assert_not(out.level);
    pulse(0);
    cr_assert(out.level);
    wr(0, 1, 0x01);
    cr_assert_not(out.level);
    wr(0, 1, 0x00);
    cr_assert_eq(pic_acknowledge(&p), 0x20);
    wr(0, 0, 0x20);
    wr(0, 0, 0x61); /* specific EOI of 1 */
    cr_assert_eq(pic_acknowledge(&p), 0x27);
}

Test(pic, rotation, .init = setup)
{
    wr(0, 0, 0xc3); /* IR3 lowest: IR4 highest */
    pulse(0);
    pulse(4);
    cr_assert_eq(pic_acknowledge(&p), 0x24);
    wr(0, 0, 0xa0); /* rotate on non-specific EOI: IR4 lowest */
    cr_assert_eq(pic_acknowledge(&p), 0x20);
    wr(0, 0, 0xe0); /* rotate on specific EOI of IR0 */
    pulse(0);
    pulse(1);
    cr_assert_eq(pic_acknowledge(&p), 0x21);
}

Test(pic, special_mask_mode, .init = setup)
{
    pulse(1);
    cr_assert_eq(pic_acknowledge(&p), 0x21);
    pulse(5);
    cr_assert_not(out.level);
    wr(0, 1, 0x02);
    wr(0, 0, 0x68);
    cr_assert(out.level);
    cr_assert_eq(pic_acknowledge(&p), 0x25);
    wr(0, 0, 0x20); /* clears 5, not the masked 1 */
    wr(0, 0, 0x0b);
    cr_assert_eq(rd(0, 0), 0x02);
    wr(0, 0, 0x48);
}

Test(pic, level_triggered_by_elcr, .init = setup)
{
    out8(&pic_elcr_ops, &p, 1, 0xff);
    cr_assert_eq(in8(&pic_elcr_ops, &p, 1), 0xde);
    out8(&pic_elcr_ops, &p, 0, 0xff);
    cr_assert_eq(in8(&pic_elcr_ops, &p, 0), 0xf8);
    pic_set_irq(&p, 9, true);
    cr_assert_eq(pic_acknowledge(&p), 0x29);
    wr(1, 0, 0x20);
    wr(0, 0, 0x20);
    cr_assert(out.level); /* asserted still */
    pic_set_irq(&p, 9, false);
    cr_assert_not(out.level); /* and a level is not latched */
}

Test(pic, spurious_master_and_slave, .init = setup)
{
    cr_assert_eq(pic_acknowledge(&p), 0x27);
    wr(0, 0, 0x0b);
    cr_assert_eq(rd(0, 0), 0, "a spurious IR7 sets no in-service bit");
    out8(&pic_elcr_ops, &p, 0, 0x20);
    pic_set_irq(&p, 5, true);
    pic_set_irq(&p, 5, false);
    cr_assert_eq(pic_acknowledge(&p), 0x27);
}

Test(pic, poll, .init = setup)
{
    wr(0, 0, 0x0c);
    cr_assert_eq(rd(0, 0), 0);
    pulse(6);
    wr(0, 0, 0x0c);
    cr_assert_eq(rd(0, 0), 0x86);
    wr(0, 0, 0x0b);
    cr_assert_eq(rd(0, 0), 0x40);
}

Test(pic, no_output_during_initialisation, .init = setup)
{
    wr(0, 0, 0x11);
    pulse(3);
    cr_assert_not(out.level);
    wr(0, 1, 0x40);
    wr(0, 1, 0x04);
    cr_assert_not(out.level);
    wr(0, 1, 0x01);
    cr_assert(out.level);
    cr_assert_eq(pic_acknowledge(&p), 0x43);
}

Test(pic, linux_probe_reads_back_the_mask, .init = setup)
{
    wr(1, 1, 0xff);
    wr(0, 1, (uint8_t) ~(1u << 2));
    cr_assert_eq(rd(0, 1), 0xfb); /* what probe_8259A() looks for */
}
