/* Reset ports: see reset.h. */
#include "devices/reset.h"

enum { PORT92_INIT = 0x01, PORT92_A20 = 0x02 };
enum { CF9_SYS_RST = 0x02, CF9_RST_CPU = 0x04, CF9_FULL_RST = 0x08 };

uint8_t reset_control_read(const struct reset_control *r)
{
    return r->portcf9;
}

void reset_control_write(struct reset_control *r, uint8_t value)
{
    /* A reset happens when RST_CPU goes from 0 to 1. */
    bool rising = ~r->portcf9 & value & CF9_RST_CPU;

    r->portcf9 = value & (CF9_SYS_RST | CF9_FULL_RST | CF9_RST_CPU);
    if (rising)
        r->reset(r->opaque);
}

static uint64_t fast_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct reset_control *r = opaque;

    (void)offset;
    (void)size;
    if (r->get_a20)
        return (r->port92 & PORT92_INIT) | (r->get_a20(r->opaque) ? PORT92_A20 : 0);
    return r->port92;
}

static void fast_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct reset_control *r = opaque;
    bool rising = ~r->port92 & value & PORT92_INIT;

    (void)offset;
    (void)size;
    r->port92 = value & (PORT92_INIT | PORT92_A20);
    if (r->set_a20)
        r->set_a20(r->opaque, value & PORT92_A20);
    if (rising)
        r->reset(r->opaque);
}

const struct io_ops reset_fast_ops = {.read = fast_read, .write = fast_write, .max_size = 1};

void reset_control_reset(struct reset_control *r)
{
    r->port92 = PORT92_A20;
    r->portcf9 = 0;
}

void reset_control_init(struct reset_control *r, void (*reset)(void *), void *opaque)
{
    r->reset = reset;
    r->opaque = opaque;
    reset_control_reset(r);
}
