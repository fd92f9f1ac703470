/* Parallel port: see parallel.h. */
#include "devices/parallel.h"

enum { DATA = 0, STATUS = 1, CONTROL = 2 };
enum {
    STATUS_UNUSED = 0x07,   /* reads as ones */
    STATUS_NO_ERROR = 0x08, /* nFault */
    STATUS_SELECTED = 0x10, /* the printer is on line */
    STATUS_NO_ACK = 0x40,   /* nAck */
    STATUS_NOT_BUSY = 0x80, /* inverted Busy */
};
enum { CONTROL_INIT = 0x04, CONTROL_SELECT = 0x08, CONTROL_USED = 0x3f, CONTROL_UNUSED = 0xc0 };

static uint64_t parallel_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct parallel *p = opaque;

    (void)size;
    switch (offset) {
    case DATA:
        return p->data;
    case STATUS:
        return STATUS_UNUSED | STATUS_NO_ERROR | STATUS_SELECTED | STATUS_NO_ACK | STATUS_NOT_BUSY;
    case CONTROL:
        return p->control | CONTROL_UNUSED;
    }
    return 0xff;
}

static void parallel_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct parallel *p = opaque;

    (void)size;
    if (offset == DATA)
        p->data = (uint8_t)value;
    else if (offset == CONTROL)
        p->control = (uint8_t)value & CONTROL_USED;
}

const struct io_ops parallel_io_ops = {
    .read = parallel_read, .write = parallel_write, .max_size = 1};

void parallel_reset(struct parallel *p)
{
    p->data = 0;
    p->control = CONTROL_INIT | CONTROL_SELECT;
}
