/*
 * The UART with a line behind it that pushes back, sends and breaks as it likes.  Once the line
 * takes everything, the transmitter becomes empty, whatever was done before.
 */
#include <linux/serial_reg.h>

#include "devices/serial.h"
#include "io_script.h"

enum { RECEIVE, BREAK, CREDIT, READY, EVENTS };

static struct script script;
static struct serial uart;
static struct chardev line;
static uint64_t credit;
static bool in_event;

static size_t line_write(struct chardev *c, const uint8_t *buf, size_t len)
{
    size_t n = len < credit ? len : credit;

    FUZZ_CHECK(len <= SERIAL_FIFO, "%zu characters sent at once", len);
    for (size_t i = 0; i < n; i++)
        (void)*(const volatile uint8_t *)&buf[i];
    credit -= n;
    return n;
}

static void accept_input(struct chardev *c)
{
    uint8_t byte = 0x5a;

    /* A backend answers from inside. */
    if (!in_event) {
        in_event = true;
        chardev_receive(c, &byte, 1);
        in_event = false;
    }
}

static const struct chardev_ops line_ops = {.write = line_write, .accept_input = accept_input};

static void set_irq(void *opaque, unsigned n, bool level) {}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    uint8_t bytes[64];
    size_t len = arg % sizeof(bytes);

    switch (what) {
    case RECEIVE:
        memset(bytes, (int)value, sizeof(bytes));
        FUZZ_CHECK(chardev_receive(&line, bytes, len) <= len, "more taken than offered");
        break;
    case BREAK:
        chardev_break(&line);
        break;
    case CREDIT:
        credit = value & 0xffff;
        chardev_writable(&line);
        break;
    default:
        chardev_ready(&line);
        break;
    }
    FUZZ_CHECK(uart.rx_count <= SERIAL_FIFO && uart.tx_count <= SERIAL_FIFO,
               "a FIFO holds more than it can");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    script_init(&script, EVENTS, event);
    line = (struct chardev){.ops = &line_ops};
    uart = (struct serial){0};
    credit = 100;
    serial_init(&uart, (struct irq_line){.set = set_irq}, &line);
    script_region(&script, &serial_io_ops, &uart, SERIAL_PORTS);
    script_run(&script, data, size > 4096 * SCRIPT_COMMAND ? 4096 * SCRIPT_COMMAND : size);
    event(CREDIT, 0, 0xffff);
    FUZZ_CHECK(script_read(&script, 0, UART_LSR, 1) & UART_LSR_TEMT,
               "the line takes everything, and the transmitter is not empty");
    for (unsigned i = 0; i <= SERIAL_FIFO && script_read(&script, 0, UART_LSR, 1) & UART_LSR_DR;
         i++) {
        in_event = true; /* nothing more comes */
        script_write(&script, 0, UART_LCR, 1, 3);
        script_read(&script, 0, UART_RX, 1);
        in_event = false;
    }
    FUZZ_CHECK(!(script_read(&script, 0, UART_LSR, 1) & UART_LSR_DR), "data without end");
    serial_destroy(&uart);
    return 0;
}

SCRIPT_SEEDS(
    /* As Linux sets it up: divisor, 8n1, FIFO, interrupts; then both directions. */
    "w0+3:1=83 w0+0:1=1 w0+1:1=0 w0+3:1=3 w0+2:1=c7 w0+4:1=b w0+1:1=f r0+2:1 e0+14=61 r0+5:1 "
    "r0+0:1 r0+2:1 w0+0:1=41 w0+0:8=4847464544434241 e2+0=0 w0+0:1=42 w0+0:1=43 e2+0=20 r0+2:1 "
    "r0+6:1 e1+0=0 r0+5:1 r0+0:1 w0+2:1=6 r0+5:1",
    /* Loopback, scratch, no FIFO, overrun, modem lines, break. */
    "w0+4:1=1f w0+0:1=55 r0+0:1 w0+4:1=10 r0+6:1 w0+7:1=aa r0+7:1 w0+2:1=0 e0+3=62 e0+3=63 r0+5:1 "
    "w0+3:1=43 w0+3:1=3 w0+4:1=3 e3+0=0 w0+4:1=0 r0+6:1 e1+0=0 r0+0:4")
