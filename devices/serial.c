/* 16550A UART: see serial.h.  Register names are <linux/serial_reg.h>'s. */
#include "devices/serial.h"

#include <linux/serial_reg.h>
#include <stddef.h>
#include <string.h>

#define IER_MASK  (UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI)
#define MCR_MASK  (UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT1 | UART_MCR_OUT2 | UART_MCR_LOOP)
#define LSR_CHAR  (UART_LSR_PE | UART_LSR_FE | UART_LSR_BI)
#define IIR_FIFOS 0xc0 /* both bits: FIFOs present and enabled */

/* The other end is always there and ready. */
#define MODEM_IDLE (UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS)

static bool fifo_mode(const struct serial *s)
{
    return s->fcr & UART_FCR_ENABLE_FIFO;
}

static unsigned fifo_size(const struct serial *s)
{
    return fifo_mode(s) ? SERIAL_FIFO : 1;
}

static unsigned rx_trigger(const struct serial *s)
{
    static const uint8_t levels[] = {1, 4, 8, 14};

    return fifo_mode(s) ? levels[s->fcr >> 6] : 1;
}

static bool loopback(const struct serial *s)
{
    return s->mcr & UART_MCR_LOOP;
}

static uint8_t line_status(const struct serial *s)
{
    uint8_t lsr = s->lsr_errors;

    if (s->rx_count) {
        lsr |= UART_LSR_DR;
        if (s->line_errors)
            lsr |= s->rx[s->rx_head].flags;
    }
    if (fifo_mode(s))
        for (unsigned i = s->line_errors ? 0 : 1; i < s->rx_count; i++)
            if (s->rx[(s->rx_head + i) % SERIAL_FIFO].flags)
                lsr |= 0x80; /* "error in RCVR FIFO" */
    if (s->tx_count == 0)
        lsr |= UART_LSR_THRE | UART_LSR_TEMT;
    return lsr;
}

/* The interrupt to report, in the order of priority of the data sheet's table 4. */
static uint8_t interrupt_id(const struct serial *s)
{
    if ((s->ier & UART_IER_RLSI) && (line_status(s) & (UART_LSR_OE | LSR_CHAR)))
        return UART_IIR_RLSI;
    if ((s->ier & UART_IER_RDI) && s->rx_count)
        return s->rx_count >= rx_trigger(s) ? UART_IIR_RDI : UART_IIR_RX_TIMEOUT;
    if ((s->ier & UART_IER_THRI) && s->thre_pending)
        return UART_IIR_THRI;
    if ((s->ier & UART_IER_MSI) && s->msr_delta)
        return UART_IIR_MSI;
    return UART_IIR_NO_INT;
}

static void update_irq(struct serial *s)
{
    /* On a PC, OUT2 gates the interrupt; in loop mode the output pins are inactive. */
    bool enabled = (s->mcr & UART_MCR_OUT2) && !loopback(s);

    irq_set(&s->irq, enabled && interrupt_id(s) != UART_IIR_NO_INT);
}

static void update_modem(struct serial *s)
{
    uint8_t now = MODEM_IDLE, changed;

    if (loopback(s)) {
        now = 0;
        if (s->mcr & UART_MCR_RTS)
            now |= UART_MSR_CTS;
        if (s->mcr & UART_MCR_DTR)
            now |= UART_MSR_DSR;
        if (s->mcr & UART_MCR_OUT1)
            now |= UART_MSR_RI;
        if (s->mcr & UART_MCR_OUT2)
            now |= UART_MSR_DCD;
    }
    changed = now ^ s->modem;
    if (changed & UART_MSR_CTS)
        s->msr_delta |= UART_MSR_DCTS;
    if (changed & UART_MSR_DSR)
        s->msr_delta |= UART_MSR_DDSR;
    if (changed & UART_MSR_DCD)
        s->msr_delta |= UART_MSR_DDCD;
    if (changed & ~now & UART_MSR_RI)
        s->msr_delta |= UART_MSR_TERI;
    s->modem = now;
}

/* -- Receiver ---------------------------------------------------------------------------------- */

static void rx_push(struct serial *s, uint8_t data, uint8_t flags)
{
    unsigned at = (s->rx_head + s->rx_count) % SERIAL_FIFO;

    if (s->rx_count == fifo_size(s)) {
        s->lsr_errors |= UART_LSR_OE;
        if (fifo_mode(s))
            return;      /* the character in the shift register is lost, the FIFO is not touched */
        at = s->rx_head; /* the holding register is overwritten */
        s->rx_count--;
    }
    s->rx[at].data = data;
    s->rx[at].flags = flags;
    if (s->rx_count++ == 0)
        s->line_errors = flags != 0;
}

static void rx_clear(struct serial *s)
{
    s->rx_head = s->rx_count = 0;
    s->line_errors = false;
}

/* Room again: lets the backend deliver what it had to keep. */
static void rx_resume(struct serial *s)
{
    if (!s->refused || s->rx_count || loopback(s))
        return;
    s->refused = false;
    if (s->backend && s->backend->ops->accept_input)
        s->backend->ops->accept_input(s->backend);
}

static uint8_t rx_pop(struct serial *s)
{
    uint8_t data;

    if (s->rx_count == 0)
        return 0;
    data = s->rx[s->rx_head].data;
    s->rx_head = (s->rx_head + 1) % SERIAL_FIFO;
    s->rx_count--;
    s->line_errors = s->rx_count && s->rx[s->rx_head].flags;
    return data;
}

static size_t serial_receive(void *opaque, const uint8_t *buf, size_t len)
{
    struct serial *s = opaque;
    size_t n = 0;

    if (!loopback(s)) /* in loop mode SIN is disconnected: keep the input for later */
        while (n < len && s->rx_count < fifo_size(s))
            rx_push(s, buf[n++], 0);
    if (n < len)
        s->refused = true;
    update_irq(s);
    return n;
}

static bool serial_ready(void *opaque)
{
    const struct serial *s = opaque;

    return (s->mcr & UART_MCR_RTS) && !loopback(s);
}

static void serial_line_break(void *opaque)
{
    struct serial *s = opaque;

    if (!loopback(s))
        rx_push(s, 0, UART_LSR_BI);
    update_irq(s);
}

/* -- Transmitter ------------------------------------------------------------------------------- */

static void tx_flush(struct serial *s)
{
    if (s->in_flush)
        return; /* the backend called chardev_writable() from inside write() */
    s->in_flush = true;
    while (s->tx_count) {
        unsigned run = SERIAL_FIFO - s->tx_head;
        size_t sent;

        if (run > s->tx_count)
            run = s->tx_count;
        sent = s->backend ? s->backend->ops->write(s->backend, s->tx + s->tx_head, run) : run;
        if (sent > run)
            sent = run;
        s->tx_head = (s->tx_head + sent) % SERIAL_FIFO;
        s->tx_count -= sent;
        if (sent < run)
            break;
    }
    s->in_flush = false;
    if (s->tx_count == 0)
        s->thre_pending = true;
}

static void tx_push(struct serial *s, uint8_t data)
{
    s->thre_pending = false;
    if (loopback(s)) {
        rx_push(s, data, 0);
        s->thre_pending = true;
        return;
    }
    if (s->tx_count == fifo_size(s))
        return; /* software ignored THRE: the character is lost */
    s->tx[(s->tx_head + s->tx_count++) % SERIAL_FIFO] = data;
    tx_flush(s);
}

static void serial_writable(void *opaque)
{
    struct serial *s = opaque;

    if (s->tx_count == 0)
        return;
    tx_flush(s);
    update_irq(s);
}

/* -- Registers --------------------------------------------------------------------------------- */

static void write_fcr(struct serial *s, uint8_t value)
{
    bool toggled = (s->fcr ^ value) & UART_FCR_ENABLE_FIFO;

    /* The other bits are only taken when bit 0 is set; changing bit 0 clears both FIFOs. */
    s->fcr =
        value & UART_FCR_ENABLE_FIFO ? value & (UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_MASK) : 0;
    if (toggled || (s->fcr && (value & UART_FCR_CLEAR_RCVR)))
        rx_clear(s);
    if (toggled || (s->fcr && (value & UART_FCR_CLEAR_XMIT))) {
        if (s->tx_count)
            s->thre_pending = true;
        s->tx_head = s->tx_count = 0;
    }
    rx_resume(s);
}

static uint64_t serial_read(void *opaque, uint64_t offset, unsigned size)
{
    struct serial *s = opaque;
    bool dlab = s->lcr & UART_LCR_DLAB;
    uint8_t value = 0;

    (void)size;
    switch (offset) {
    case UART_RX:
        if (dlab)
            return s->dll;
        value = rx_pop(s);
        rx_resume(s);
        break;
    case UART_IER:
        return dlab ? s->dlm : s->ier;
    case UART_IIR:
        value = interrupt_id(s);
        if (value == UART_IIR_THRI)
            s->thre_pending = false;
        if (fifo_mode(s))
            value |= IIR_FIFOS;
        break;
    case UART_LCR:
        return s->lcr;
    case UART_MCR:
        return s->mcr;
    case UART_LSR:
        value = line_status(s);
        s->lsr_errors = 0;
        s->line_errors = false;
        if (s->rx_count)
            s->rx[s->rx_head].flags = 0;
        break;
    case UART_MSR:
        value = s->modem | s->msr_delta;
        s->msr_delta = 0;
        break;
    case UART_SCR:
        return s->scr;
    }
    update_irq(s);
    return value;
}

static void serial_write(void *opaque, uint64_t offset, unsigned size, uint64_t v)
{
    struct serial *s = opaque;
    bool dlab = s->lcr & UART_LCR_DLAB;
    uint8_t value = (uint8_t)v, old;

    (void)size;
    switch (offset) {
    case UART_TX:
        if (dlab)
            s->dll = value;
        else
            tx_push(s, value);
        break;
    case UART_IER:
        if (dlab) {
            s->dlm = value;
            break;
        }
        old = s->ier;
        s->ier = value & IER_MASK;
        /* Enabling the interrupt while the transmitter is empty raises it at once. */
        if (~old & s->ier & UART_IER_THRI && s->tx_count == 0)
            s->thre_pending = true;
        break;
    case UART_FCR:
        write_fcr(s, value);
        break;
    case UART_LCR:
        s->lcr = value;
        break;
    case UART_MCR:
        old = s->mcr;
        s->mcr = value & MCR_MASK;
        update_modem(s);
        if (~old & s->mcr & UART_MCR_RTS)
            s->refused = true; /* a backend may have waited for this: see serial_ready() */
        rx_resume(s);
        break;
    case UART_LSR:
    case UART_MSR:
        break; /* writable for factory tests only */
    case UART_SCR:
        s->scr = value;
        break;
    }
    update_irq(s);
}

/* What drivers that poll read all the time, where reading it changes nothing. */
static bool serial_read_light(void *opaque, uint64_t offset, unsigned size, uint64_t *value)
{
    const struct serial *s = opaque;

    (void)size;
    if (offset == UART_LSR && !s->lsr_errors && !s->line_errors && !s->rx_count)
        *value = line_status(s);
    else if (offset == UART_LCR)
        *value = s->lcr;
    else if (offset == UART_SCR)
        *value = s->scr;
    else
        return false;
    return true;
}

const struct io_ops serial_io_ops = {
    .read = serial_read, .write = serial_write, .max_size = 1, .read_light = serial_read_light};

static const struct chardev_client_ops client_ops = {
    .receive = serial_receive,
    .writable = serial_writable,
    .line_break = serial_line_break,
    .ready = serial_ready,
};

void serial_reset(struct serial *s)
{
    s->ier = s->lcr = s->mcr = s->fcr = 0;
    s->scr = 0;
    s->dll = 0x0c; /* 9600 baud */
    s->dlm = 0;
    s->lsr_errors = 0;
    s->msr_delta = 0;
    s->modem = MODEM_IDLE;
    s->thre_pending = false;
    s->tx_head = s->tx_count = 0;
    rx_clear(s);
    update_irq(s);
    rx_resume(s);
}

void serial_init(struct serial *s, struct irq_line irq, struct chardev *backend)
{
    memset(s, 0, sizeof(*s));
    s->irq = irq;
    s->backend = backend;
    serial_reset(s);
    if (backend) {
        backend->client_opaque = s;
        backend->client = &client_ops;
    }
}

void serial_destroy(struct serial *s)
{
    if (s->backend) {
        s->backend->client = NULL;
        s->backend->client_opaque = NULL;
    }
    s->backend = NULL;
}
