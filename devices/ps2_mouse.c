/* PS/2 mouse: see ps2.h. */
#include "devices/ps2.h"

#include <string.h>

enum { ACK = 0xfa, RESEND = 0xfe, TEST_PASSED = 0xaa };
enum {
    CMD_SCALE_1_1 = 0xe6,
    CMD_SCALE_2_1 = 0xe7,
    CMD_RESOLUTION = 0xe8,
    CMD_STATUS = 0xe9,
    CMD_STREAM = 0xea,
    CMD_READ = 0xeb,
    CMD_WRAP_END = 0xec,
    CMD_WRAP = 0xee,
    CMD_REMOTE = 0xf0,
    CMD_IDENTIFY = 0xf2,
    CMD_RATE = 0xf3,
    CMD_ENABLE = 0xf4,
    CMD_DISABLE = 0xf5,
    CMD_DEFAULTS = 0xf6,
    CMD_RESET = 0xff,
};
enum { ID_WHEEL = 3, ID_FIVE_BUTTONS = 4 };
enum { PACKET_SYNC = 0x08, PACKET_X_NEGATIVE = 0x10, PACKET_Y_NEGATIVE = 0x20 };

#define MOVED_MAX 100000 /* further than any screen; keeps sums far from overflow */

static void set_defaults(struct ps2_mouse *m)
{
    m->reporting = m->remote = m->scale_2_1 = false;
    m->resolution = 2; /* 4 counts per mm */
    m->rate = 100;
    m->dx = m->dy = m->dz = 0;
}

void ps2_mouse_reset(struct ps2_mouse *m)
{
    memset(m, 0, sizeof(*m));
    set_defaults(m);
}

static int limit(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* Takes at most a packet's worth of the movement. */
static int take(int32_t *moved, int low, int high)
{
    int part = limit(*moved, low, high);

    *moved -= part;
    return part;
}

static void put_packet(struct ps2_mouse *m)
{
    int x = take(&m->dx, -255, 255), y = -take(&m->dy, -255, 255), z = take(&m->dz, -8, 7);

    ps2_queue_put(&m->queue,
                  (uint8_t)(PACKET_SYNC | (m->buttons & 7) | (x < 0 ? PACKET_X_NEGATIVE : 0) |
                            (y < 0 ? PACKET_Y_NEGATIVE : 0)));
    ps2_queue_put(&m->queue, (uint8_t)x);
    ps2_queue_put(&m->queue, (uint8_t)y);
    if (m->id == ID_WHEEL)
        ps2_queue_put(&m->queue, (uint8_t)z);
    else if (m->id == ID_FIVE_BUTTONS)
        ps2_queue_put(&m->queue, (uint8_t)((z & 15) | (m->buttons & (PS2_SIDE | PS2_EXTRA)) << 1));
    m->reported = m->buttons;
}

void ps2_mouse_report(struct ps2_mouse *m)
{
    unsigned size = m->id ? 4 : 3;

    if (!m->reporting || m->remote || m->wrap)
        return;
    if (!m->id)
        m->dz = 0;
    while ((m->dx || m->dy || m->dz || m->buttons != m->reported) &&
           ps2_queue_room(&m->queue) >= size)
        put_packet(m);
}

void ps2_mouse_event(struct ps2_mouse *m, int dx, int dy, int dz, uint8_t held)
{
    m->buttons = held & 0x1f;
    m->dx = limit(m->dx + limit(dx, -MOVED_MAX, MOVED_MAX), -MOVED_MAX, MOVED_MAX);
    m->dy = limit(m->dy + limit(dy, -MOVED_MAX, MOVED_MAX), -MOVED_MAX, MOVED_MAX);
    m->dz = limit(m->dz + limit(dz, -MOVED_MAX, MOVED_MAX), -127, 127);
    ps2_mouse_report(m);
}

static void put_status(struct ps2_mouse *m)
{
    ps2_queue_put(&m->queue,
                  (uint8_t)((m->remote ? 0x40 : 0) | (m->reporting ? 0x20 : 0) |
                            (m->scale_2_1 ? 0x10 : 0) | (m->buttons & PS2_LEFT ? 0x04 : 0) |
                            (m->buttons & PS2_MIDDLE ? 0x02 : 0) |
                            (m->buttons & PS2_RIGHT ? 0x01 : 0)));
    ps2_queue_put(&m->queue, m->resolution);
    ps2_queue_put(&m->queue, m->rate);
}

/* Three sample rates in a row are the knock that opens the extended protocols. */
static void set_rate(struct ps2_mouse *m, uint8_t rate)
{
    m->rate = rate;
    m->knock[0] = m->knock[1];
    m->knock[1] = m->knock[2];
    m->knock[2] = rate;
    if (m->knock[0] != 200 || m->knock[2] != 80)
        return;
    if (m->knock[1] == 100)
        m->id = ID_WHEEL;
    else if (m->knock[1] == 200)
        m->id = ID_FIVE_BUTTONS;
}

void ps2_mouse_write(struct ps2_mouse *m, uint8_t byte)
{
    uint8_t pending = m->pending;

    if (m->wrap && byte != CMD_WRAP_END && byte != CMD_RESET) {
        ps2_queue_put(&m->queue, byte);
        return;
    }
    m->pending = 0;
    /* A command takes back what was not yet sent. */
    ps2_queue_clear(&m->queue);
    ps2_queue_put(&m->queue, ACK);
    if (pending == CMD_RATE) {
        set_rate(m, byte);
        return;
    }
    if (pending == CMD_RESOLUTION) {
        m->resolution = byte & 3;
        return;
    }
    switch (byte) {
    case CMD_SCALE_1_1:
    case CMD_SCALE_2_1:
        m->scale_2_1 = byte == CMD_SCALE_2_1;
        break;
    case CMD_RESOLUTION:
    case CMD_RATE:
        m->pending = byte;
        break;
    case CMD_STATUS:
        put_status(m);
        break;
    case CMD_STREAM:
    case CMD_REMOTE:
        m->remote = byte == CMD_REMOTE;
        break;
    case CMD_READ:
        put_packet(m);
        break;
    case CMD_WRAP:
    case CMD_WRAP_END:
        m->wrap = byte == CMD_WRAP;
        break;
    case CMD_IDENTIFY:
        ps2_queue_put(&m->queue, m->id);
        break;
    case CMD_ENABLE:
        m->reporting = true;
        m->dx = m->dy = m->dz = 0;
        m->reported = m->buttons;
        break;
    case CMD_DISABLE:
        m->reporting = false;
        break;
    case CMD_DEFAULTS:
        set_defaults(m);
        break;
    case CMD_RESET: {
        uint8_t held = m->buttons;

        ps2_mouse_reset(m);
        m->buttons = m->reported = held;
        ps2_queue_put(&m->queue, ACK);
        ps2_queue_put(&m->queue, TEST_PASSED);
        ps2_queue_put(&m->queue, m->id);
        break;
    }
    default:
        ps2_queue_clear(&m->queue);
        ps2_queue_put(&m->queue, RESEND);
        break;
    }
}
