/* Debug console and debug exit: see debug_ports.h. */
#include "devices/debug_ports.h"

#include <string.h>

#define DEBUGCON_PRESENT 0xe9

void debug_ports_flush(struct debug_ports *d)
{
    if (d->len && d->sink)
        d->sink(d->opaque, d->line, d->len);
    d->len = 0;
}

static uint64_t debugcon_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return DEBUGCON_PRESENT;
}

static void debugcon_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_ports *d = opaque;

    (void)offset;
    (void)size;
    d->line[d->len++] = (char)value;
    if ((char)value == '\n' || d->len == sizeof(d->line))
        debug_ports_flush(d);
}

const struct io_ops debugcon_ops = {.read = debugcon_read, .write = debugcon_write, .max_size = 1};

static uint64_t exit_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return 0;
}

static void exit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_ports *d = opaque;

    (void)size;
    if (offset == 0)
        d->exit(d->opaque, (int)((value << 1 | 1) & 0xff)); /* what a process can exit with */
}

const struct io_ops debug_exit_ops = {.read = exit_read, .write = exit_write, .max_size = 4};

void debug_ports_init(struct debug_ports *d, void (*sink)(void *, const char *, size_t),
                      void (*exit)(void *, int), void *opaque)
{
    memset(d, 0, sizeof(*d));
    d->sink = sink;
    d->exit = exit;
    d->opaque = opaque;
}
