/*
 * A character stream between a serial device (the client) and whatever is behind it on the host
 * (the backend: a terminal, a pipe, a test).  Neither knows the other's type.
 *
 * Every function here, in both directions, is called with the machine lock held, from any thread.
 * None of them may block: a backend that cannot write now takes less and calls writable() later,
 * a device whose receive buffer is full takes less and calls accept_input() later.
 */
#ifndef RINGSHIFT_DEVICES_CHARDEV_H
#define RINGSHIFT_DEVICES_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chardev;

/* The backend's side: called by the device. */
struct chardev_ops {
    /* Output of the guest.  Returns how many bytes were taken, 0..len; when fewer than len, the
     * backend calls chardev_writable() once it can take more.  A backend that has lost its reader
     * takes everything and drops it. */
    size_t (*write)(struct chardev *c, const uint8_t *buf, size_t len);
    /* The device, which took less than it was given, has room again.  May be NULL. */
    void (*accept_input)(struct chardev *c);
};

/* The device's side: called by the backend. */
struct chardev_client_ops {
    /* Input for the guest.  Returns how many bytes were taken, 0..len; when fewer than len, the
     * device calls ops->accept_input() once it has room. */
    size_t (*receive)(void *opaque, const uint8_t *buf, size_t len);
    /* The backend, which took less than it was given, can take more. */
    void (*writable)(void *opaque);
    /* A break condition on the line. */
    void (*line_break)(void *opaque);
    /* True while the guest asserts RTS. What is received before may well be thrown away, as drivers
     * clear the FIFO when they set up the port; a backend whose input cannot be typed again waits
     * for this. The device calls accept_input() when it becomes true. */
    bool (*ready)(void *opaque);
};

/* A backend embeds this and sets `ops`; the device that uses it sets the client fields. */
struct chardev {
    const struct chardev_ops *ops;
    const struct chardev_client_ops *client; /* NULL until a device is connected */
    void *client_opaque;
};

/* For backends.  With no device connected, input is refused and the rest has no effect. */
static inline size_t chardev_receive(struct chardev *c, const uint8_t *buf, size_t len)
{
    return c->client ? c->client->receive(c->client_opaque, buf, len) : 0;
}

static inline void chardev_writable(struct chardev *c)
{
    if (c->client)
        c->client->writable(c->client_opaque);
}

static inline bool chardev_ready(struct chardev *c)
{
    return c->client && c->client->ready(c->client_opaque);
}

static inline void chardev_break(struct chardev *c)
{
    if (c->client)
        c->client->line_break(c->client_opaque);
}

#endif
