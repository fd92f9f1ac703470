/*
 * The two devices behind the 8042's ports: a keyboard (IBM PS/2 Keyboard reference: commands, scan
 * code sets 1 and 2) and a mouse (IBM PS/2 Mouse reference; Microsoft's IntelliMouse with wheel and
 * its five-button successor).  Each has a queue of bytes that the controller takes one by one.
 *
 * Keys are named by Linux' key codes, KEY_* of <linux/input-event-codes.h>.  Machine lock held.
 */
#ifndef RINGSHIFT_DEVICES_PS2_H
#define RINGSHIFT_DEVICES_PS2_H

#include <stdbool.h>
#include <stdint.h>

#define PS2_QUEUE_SIZE 64u
#define PS2_QUEUE_KEEP 16u /* room that events leave for the answers to commands */

struct ps2_queue {
    uint8_t data[PS2_QUEUE_SIZE];
    unsigned head, count;
};

static inline void ps2_queue_clear(struct ps2_queue *q)
{
    q->head = q->count = 0;
}

/* How many bytes an event may still add. */
static inline unsigned ps2_queue_room(const struct ps2_queue *q)
{
    return q->count < PS2_QUEUE_SIZE - PS2_QUEUE_KEEP ? PS2_QUEUE_SIZE - PS2_QUEUE_KEEP - q->count
                                                      : 0;
}

static inline void ps2_queue_put(struct ps2_queue *q, uint8_t byte)
{
    if (q->count < PS2_QUEUE_SIZE)
        q->data[(q->head + q->count++) % PS2_QUEUE_SIZE] = byte;
}

/* count > 0 */
static inline uint8_t ps2_queue_take(struct ps2_queue *q)
{
    uint8_t byte = q->data[q->head];

    q->head = (q->head + 1) % PS2_QUEUE_SIZE;
    q->count--;
    return byte;
}

/* Puts back, in front, what was taken last. */
static inline void ps2_queue_return(struct ps2_queue *q, uint8_t byte)
{
    if (q->count == PS2_QUEUE_SIZE)
        return;
    q->head = (q->head + PS2_QUEUE_SIZE - 1) % PS2_QUEUE_SIZE;
    q->data[q->head] = byte;
    q->count++;
}

/* -- Keyboard ---------------------------------------------------------------------------------- */

struct ps2_keyboard {
    struct ps2_queue queue;
    bool scanning;
    uint8_t set;       /* 1 or 2 */
    uint8_t leds;      /* as command 0xed gave them: scroll, num, caps lock */
    uint8_t typematic; /* rate and delay, as command 0xf3 gave them */
    uint8_t pending;   /* command that waits for its argument, 0 = none */
    uint8_t last;      /* last byte sent, for "resend" */
    bool alt, control; /* held: they change what Print and Pause send */
};

void ps2_keyboard_reset(struct ps2_keyboard *k);
/* A command or argument from the host. */
void ps2_keyboard_write(struct ps2_keyboard *k, uint8_t byte);
/* A key goes down (again) or up.  False if the keyboard has no such key. */
bool ps2_keyboard_key(struct ps2_keyboard *k, unsigned key, bool down);

/* -- Mouse ------------------------------------------------------------------------------------- */

enum ps2_button {
    PS2_LEFT = 0x01,
    PS2_RIGHT = 0x02,
    PS2_MIDDLE = 0x04,
    PS2_SIDE = 0x08,
    PS2_EXTRA = 0x10,
};

struct ps2_mouse {
    struct ps2_queue queue;
    bool reporting, remote, wrap, scale_2_1;
    uint8_t resolution, rate;
    uint8_t id;         /* 0: three buttons; 3: and a wheel; 4: and two more buttons */
    uint8_t knock[3];   /* the last sample rates set, which switch to the extended protocols */
    uint8_t pending;    /* command that waits for its argument, 0 = none */
    uint8_t buttons;    /* held now: PS2_* */
    uint8_t reported;   /* as of the last packet */
    int32_t dx, dy, dz; /* moved since the last packet: right, down, wheel towards the user */
};

void ps2_mouse_reset(struct ps2_mouse *m);
void ps2_mouse_write(struct ps2_mouse *m, uint8_t byte);
/* The mouse moved by dx to the right, dy down, the wheel by dz clicks towards the user, and these
 * buttons are held. */
void ps2_mouse_event(struct ps2_mouse *m, int dx, int dy, int dz, uint8_t held);
/* Queues packets for what has not been reported, as far as there is room. */
void ps2_mouse_report(struct ps2_mouse *m);

#endif
