/* 16550A UART. */
#include "dev_fixture.h"

#include <linux/serial_reg.h>
#include <string.h>

#include "devices/serial.h"

struct backend {
    struct chardev c; /* first */
    uint8_t out[256];
    size_t len, room;
    uint8_t in[256]; /* waiting to be accepted */
    size_t in_len;
    unsigned asked;
};

static size_t backend_write(struct chardev *c, const uint8_t *buf, size_t len)
{
    struct backend *b = (struct backend *)c;
    size_t n = len < b->room ? len : b->room;

    memcpy(b->out + b->len, buf, n);
    b->len += n;
    b->room -= n;
    return n;
}

static void backend_accept(struct chardev *c)
{
    struct backend *b = (struct backend *)c;
    size_t n = chardev_receive(c, b->in, b->in_len);

    b->asked++;
    memmove(b->in, b->in + n, b->in_len - n);
    b->in_len -= n;
}

static const struct chardev_ops backend_ops = {backend_write, backend_accept};

static struct backend b;
static struct serial s;
static struct fake_irq irq;

static uint8_t rd(unsigned reg)
{
    return in8(&serial_io_ops, &s, reg);
}

static void wr(unsigned reg, uint8_t value)
{
    out8(&serial_io_ops, &s, reg, value);
}

static void setup(void)
{
    b = (struct backend){.c.ops = &backend_ops, .room = sizeof(b.out)};
    serial_init(&s, fake_irq_line(&irq), &b.c);
    wr(UART_MCR, UART_MCR_OUT2 | UART_MCR_DTR | UART_MCR_RTS);
    b.asked = 0; /* RTS invites input */
}

static void fifo_on(uint8_t trigger)
{
    wr(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT | trigger);
}

Test(serial, identifies_as_16550a, .init = setup)
{
    cr_assert_eq(rd(UART_IIR), UART_IIR_NO_INT);
    wr(UART_FCR, UART_FCR_ENABLE_FIFO);
    cr_assert_eq(rd(UART_IIR), 0xc0 | UART_IIR_NO_INT);
    wr(UART_FCR, 0);
    cr_assert_eq(rd(UART_IIR), UART_IIR_NO_INT);
    wr(UART_SCR, 0x5a);
    cr_assert_eq(rd(UART_SCR), 0x5a);
    wr(UART_IER, 0xff);
    cr_assert_eq(rd(UART_IER), 0x0f);
    wr(UART_MCR, 0xff);
    cr_assert_eq(rd(UART_MCR), 0x1f);
}

Test(serial, divisor_latch_hides_data_and_ier, .init = setup)
{
    wr(UART_IER, UART_IER_RDI);
    wr(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
    wr(UART_DLL, 0x01);
    wr(UART_DLM, 0x02);
    cr_assert_eq(rd(UART_DLL), 0x01);
    cr_assert_eq(rd(UART_DLM), 0x02);
    wr(UART_LCR, UART_LCR_WLEN8);
    cr_assert_eq(rd(UART_IER), UART_IER_RDI);
    cr_assert_eq(b.len, 0);
}

Test(serial, output_and_thre_interrupt, .init = setup)
{
    cr_assert_eq(rd(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
    cr_assert_not(irq.level);
    wr(UART_IER, UART_IER_THRI);
    cr_assert(irq.level); /* enabling it while empty raises it */
    cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_THRI);
    cr_assert_not(irq.level); /* reading IIR acknowledges */
    cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_NO_INT);
    wr(UART_TX, 'x');
    cr_assert(irq.level);
    cr_assert_eq(b.len, 1);
    cr_assert_eq(b.out[0], 'x');
    wr(UART_IER, 0);
    cr_assert_not(irq.level);
}

Test(serial, interrupts_need_out2_and_no_loop, .init = setup)
{
    wr(UART_IER, UART_IER_THRI);
    wr(UART_MCR, 0);
    cr_assert_not(irq.level);
    cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_THRI);
}

Test(serial, back_pressure_stops_the_transmitter, .init = setup)
{
    fifo_on(0);
    b.room = 2;
    wr(UART_IER, UART_IER_THRI);
    rd(UART_IIR);
    for (char ch = 'a'; ch < 'a' + 20; ch++)
        wr(UART_TX, (uint8_t)ch); /* two taken, 16 queued, two lost */
    cr_assert_eq(rd(UART_LSR) & (UART_LSR_THRE | UART_LSR_TEMT), 0);
    cr_assert_not(irq.level);
    b.room = 10;
    chardev_writable(&b.c);
    cr_assert_not(irq.level);
    cr_assert_eq(b.len, 12);
    b.room = 100;
    chardev_writable(&b.c);
    cr_assert(irq.level);
    cr_assert_eq(b.len, 18);
    cr_assert_arr_eq(b.out, "abcdefghijklmnopqr", 18);
    cr_assert_eq(rd(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
}

Test(serial, receive_without_fifo, .init = setup)
{
    wr(UART_IER, UART_IER_RDI);
    cr_assert_eq(chardev_receive(&b.c, (const uint8_t *)"hi", 2), 1);
    cr_assert(irq.level);
    cr_assert_eq(rd(UART_IIR), UART_IIR_RDI);
    cr_assert(rd(UART_LSR) & UART_LSR_DR);
    memcpy(b.in, "i", 1);
    b.in_len = 1;
    cr_assert_eq(rd(UART_RX), 'h');
    cr_assert_eq(b.asked, 1);
    cr_assert(irq.level); /* the next one has come */
    cr_assert_eq(rd(UART_RX), 'i');
    cr_assert_not(irq.level);
    cr_assert_eq(rd(UART_LSR) & UART_LSR_DR, 0);
}

Test(serial, fifo_trigger_and_timeout, .init = setup)
{
    fifo_on(UART_FCR_R_TRIG_10); /* 8 bytes */
    wr(UART_IER, UART_IER_RDI);
    cr_assert_eq(chardev_receive(&b.c, (const uint8_t *)"1234567", 7), 7);
    cr_assert_eq(rd(UART_IIR) & 0x3f, UART_IIR_RX_TIMEOUT);
    cr_assert_eq(chardev_receive(&b.c, (const uint8_t *)"8", 1), 1);
    cr_assert_eq(rd(UART_IIR) & 0x3f, UART_IIR_RDI);
    cr_assert_eq(chardev_receive(&b.c, (const uint8_t *)"abcdefghij", 10), 8);
    b.in_len = 2;
    memcpy(b.in, "ij", 2);
    for (int i = 0; i < 16; i++)
        cr_assert_eq(rd(UART_RX), "12345678abcdefgh"[i]);
    cr_assert_eq(rd(UART_RX), 'i');
    cr_assert_eq(rd(UART_RX), 'j');
    cr_assert_not(irq.level);
    cr_assert_eq(rd(UART_RX), 0);
}

Test(serial, clearing_the_fifo_lets_input_go_on, .init = setup)
{
    fifo_on(0);
    chardev_receive(&b.c, (const uint8_t *)"0123456789abcdefg", 17);
    b.in_len = 1;
    b.in[0] = 'g';
    wr(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
    cr_assert_eq(rd(UART_RX), 'g');
}

Test(serial, break_is_a_flagged_zero, .init = setup)
{
    fifo_on(0);
    wr(UART_IER, UART_IER_RLSI | UART_IER_RDI);
    chardev_receive(&b.c, (const uint8_t *)"a", 1);
    chardev_break(&b.c);
    cr_assert_eq(rd(UART_LSR), UART_LSR_DR | UART_LSR_THRE | UART_LSR_TEMT | 0x80);
    cr_assert_eq(rd(UART_RX), 'a');
    cr_assert_eq(rd(UART_IIR) & 0xf, UART_IIR_RLSI);
    cr_assert(rd(UART_LSR) & UART_LSR_BI);
    cr_assert_eq(rd(UART_LSR) & (UART_LSR_BI | 0x80), 0);
    cr_assert_eq(rd(UART_RX), 0);
}

Test(serial, loopback_data_and_modem, .init = setup)
{
    rd(UART_MSR);
    wr(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_RTS);
    cr_assert_eq(rd(UART_MSR) & 0xf0, UART_MSR_DCD | UART_MSR_CTS); /* Linux' autoconfig test */
    wr(UART_TX, 0xa5);
    cr_assert_eq(b.len, 0);
    cr_assert_eq(rd(UART_RX), 0xa5);
    wr(UART_TX, 1);
    wr(UART_TX, 2);
    cr_assert(rd(UART_LSR) & UART_LSR_OE);
    cr_assert_eq(rd(UART_LSR) & UART_LSR_OE, 0);
    cr_assert_eq(rd(UART_RX), 2);
    cr_assert_eq(chardev_receive(&b.c, (const uint8_t *)"z", 1), 0);
    b.in_len = 1;
    b.in[0] = 'z';
    wr(UART_MCR, UART_MCR_OUT2);
    cr_assert_eq(rd(UART_RX), 'z'); /* it was kept, not lost */
    rd(UART_MSR);
    wr(UART_IER, UART_IER_MSI);
    cr_assert_not(irq.level);
    wr(UART_MCR, UART_MCR_OUT2 | UART_MCR_LOOP);
    wr(UART_MCR, UART_MCR_OUT2);
    cr_assert_eq(rd(UART_IIR), UART_IIR_MSI);
    cr_assert(irq.level);
    cr_assert_eq(rd(UART_MSR) & 0x0f, UART_MSR_DCTS | UART_MSR_DDSR);
    cr_assert_not(irq.level);
}

Test(serial, trailing_edge_of_ri, .init = setup)
{
    wr(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT1);
    cr_assert_eq(rd(UART_MSR) & UART_MSR_TERI, 0);
    wr(UART_MCR, UART_MCR_LOOP);
    cr_assert(rd(UART_MSR) & UART_MSR_TERI);
}

Test(serial, every_byte_to_every_register_is_survived, .init = setup)
{
    uint32_t x = 1;

    for (int i = 0; i < 200000; i++) {
        x = x * 1664525 + 1013904223;
        if (x >> 31)
            wr(x >> 8 & 7, (uint8_t)(x >> 16));
        else
            rd(x >> 8 & 7);
        if ((x & 0xff) == 0)
            chardev_receive(&b.c, (const uint8_t *)"0123456789abcdef", 16);
        if ((x & 0xff) == 1)
            chardev_break(&b.c);
        b.len = 0;
        b.room = x >> 24 & 3;
        if ((x & 0xff) == 2)
            chardev_writable(&b.c);
        cr_assert_leq(s.rx_count, SERIAL_FIFO);
        cr_assert_leq(s.tx_count, SERIAL_FIFO);
        cr_assert_lt(s.rx_head, SERIAL_FIFO);
    }
}

Test(serial, works_without_a_backend)
{
    serial_init(&s, fake_irq_line(&irq), NULL);
    wr(UART_TX, 'x');
    cr_assert_eq(rd(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
    serial_destroy(&s);
}

/* -- Light accesses
 * -------------------------------------------------------------------------------- */

Test(serial, light_reads_show_the_same_and_change_nothing)
{
    static const uint8_t input[] = "a";
    uint64_t value;

    setup();
    for (unsigned step = 0; step < 8; step++) {
        struct serial before = s;
        for (unsigned reg = 0; reg < 8; reg++)
            if (serial_io_ops.read_light(&s, reg, 1, &value)) {
                cr_assert_eq(memcmp(&before, &s, sizeof(s)), 0, "register %u", reg);
                cr_assert_eq(rd(reg), value, "step %u, register %u", step, reg);
                cr_assert_eq(memcmp(&before, &s, sizeof(s)), 0, "reading register %u", reg);
            }
        cr_assert_eq(serial_io_ops.read_light(&s, UART_LSR, 1, &value), step < 2 || step > 5);
        if (step == 1) {
            chardev_receive(&b.c, input, 1);
        } else if (step == 3) {
            wr(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
        } else if (step == 4) {
            wr(UART_LCR, UART_LCR_WLEN8);
            wr(UART_SCR, 0x5a);
        } else if (step == 5) {
            rd(UART_RX);
        }
    }
}
