/* PS/2 keyboard: see ps2.h. */
#include "devices/ps2.h"

#include <linux/input-event-codes.h>
#include <stddef.h>
#include <string.h>

enum { ACK = 0xfa, RESEND = 0xfe, TEST_PASSED = 0xaa, ECHO = 0xee };
enum {
    CMD_LEDS = 0xed,
    CMD_ECHO = 0xee,
    CMD_SCAN_SET = 0xf0,
    CMD_IDENTIFY = 0xf2,
    CMD_TYPEMATIC = 0xf3,
    CMD_ENABLE = 0xf4,
    CMD_DISABLE = 0xf5,
    CMD_DEFAULTS = 0xf6,
    CMD_ALL_TYPEMATIC = 0xf7, /* to 0xfa: key types of set 3, which change nothing in the others */
    CMD_ALL_LAST = 0xfa,
    CMD_RESEND = 0xfe,
    CMD_RESET = 0xff,
};

#define TYPEMATIC_DEFAULT 0x2b /* 10.9 a second after 500 ms */
#define PREFIX            0xe0
#define EXTENDED          0x80 /* in the table below: behind a prefix 0xe0 */
#define RELEASED_SET1     0x80
#define RELEASED_SET2     0xf0

/* Scan codes of set 1, by Linux' key code.  Codes 1 to 88 of Linux are set 1 itself. */
static uint8_t set1_code(unsigned key)
{
    static const uint8_t others[] = {
        [KEY_RO] = 0x73,
        [KEY_HENKAN] = 0x79,
        [KEY_KATAKANAHIRAGANA] = 0x70,
        [KEY_MUHENKAN] = 0x7b,
        [KEY_KPENTER] = EXTENDED | 0x1c,
        [KEY_RIGHTCTRL] = EXTENDED | 0x1d,
        [KEY_KPSLASH] = EXTENDED | 0x35,
        [KEY_RIGHTALT] = EXTENDED | 0x38,
        [KEY_HOME] = EXTENDED | 0x47,
        [KEY_UP] = EXTENDED | 0x48,
        [KEY_PAGEUP] = EXTENDED | 0x49,
        [KEY_LEFT] = EXTENDED | 0x4b,
        [KEY_RIGHT] = EXTENDED | 0x4d,
        [KEY_END] = EXTENDED | 0x4f,
        [KEY_DOWN] = EXTENDED | 0x50,
        [KEY_PAGEDOWN] = EXTENDED | 0x51,
        [KEY_INSERT] = EXTENDED | 0x52,
        [KEY_DELETE] = EXTENDED | 0x53,
        [KEY_MUTE] = EXTENDED | 0x20,
        [KEY_VOLUMEDOWN] = EXTENDED | 0x2e,
        [KEY_VOLUMEUP] = EXTENDED | 0x30,
        [KEY_POWER] = EXTENDED | 0x5e,
        [KEY_KPEQUAL] = 0x59,
        [KEY_KPCOMMA] = 0x7e,
        [KEY_YEN] = 0x7d,
        [KEY_LEFTMETA] = EXTENDED | 0x5b,
        [KEY_RIGHTMETA] = EXTENDED | 0x5c,
        [KEY_COMPOSE] = EXTENDED | 0x5d,
        [KEY_SLEEP] = EXTENDED | 0x5f,
        [KEY_WAKEUP] = EXTENDED | 0x63,
    };

    if (key >= KEY_ESC && key <= KEY_F12 && key != 84 && key != 85)
        return (uint8_t)key;
    return key < sizeof(others) ? others[key] : 0;
}

/* Set 2's code for 7-bit codes of set 1: the inverse of the controller's translation. */
static const uint8_t set2_code[128] = {
    0x00, 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b,
    0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a,
    0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03,
    0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69,
    0x72, 0x7a, 0x70, 0x71, 0x84, 0x60, 0x61, 0x78, 0x07, 0x0f, 0x17, 0x1f, 0x27, 0x2f, 0x37, 0x3f,
    0x47, 0x4f, 0x56, 0x5e, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x57, 0x6f,
    0x13, 0x19, 0x39, 0x51, 0x53, 0x5c, 0x5f, 0x62, 0x63, 0x64, 0x65, 0x67, 0x68, 0x6a, 0x6d, 0x6e,
};

static void answer(struct ps2_keyboard *k, uint8_t byte)
{
    ps2_queue_put(&k->queue, byte);
    k->last = byte;
}

static void set_defaults(struct ps2_keyboard *k)
{
    k->set = 2;
    k->typematic = TYPEMATIC_DEFAULT;
    k->pending = 0;
}

void ps2_keyboard_reset(struct ps2_keyboard *k)
{
    memset(k, 0, sizeof(*k));
    set_defaults(k);
    k->scanning = true;
}

/* The argument of a command. */
static void argument(struct ps2_keyboard *k, uint8_t command, uint8_t byte)
{
    switch (command) {
    case CMD_LEDS:
        k->leds = byte & 7;
        break;
    case CMD_TYPEMATIC:
        k->typematic = byte & 0x7f;
        break;
    default: /* CMD_SCAN_SET */
        if (byte > 2) {
            answer(k, RESEND); /* this keyboard has no set 3 */
            return;
        }
        answer(k, ACK);
        if (byte == 0)
            answer(k, k->set);
        else
            k->set = byte;
        return;
    }
    answer(k, ACK);
}

void ps2_keyboard_write(struct ps2_keyboard *k, uint8_t byte)
{
    uint8_t pending = k->pending;

    k->pending = 0;
    if (pending && byte < CMD_LEDS) {
        argument(k, pending, byte);
        return;
    }
    switch (byte) { /* a command instead of an argument ends the old one */
    case CMD_LEDS:
    case CMD_SCAN_SET:
    case CMD_TYPEMATIC:
        k->pending = byte;
        answer(k, ACK);
        break;
    case CMD_ECHO:
        answer(k, ECHO);
        break;
    case CMD_IDENTIFY:
        answer(k, ACK);
        answer(k, 0xab);
        answer(k, 0x83);
        break;
    case CMD_ENABLE:
        ps2_queue_clear(&k->queue);
        k->scanning = true;
        answer(k, ACK);
        break;
    case CMD_DISABLE:
    case CMD_DEFAULTS:
        ps2_queue_clear(&k->queue);
        set_defaults(k);
        k->scanning = byte == CMD_DEFAULTS;
        answer(k, ACK);
        break;
    case CMD_ALL_TYPEMATIC ... CMD_ALL_LAST:
        answer(k, ACK);
        break;
    case CMD_RESEND:
        ps2_queue_put(&k->queue, k->last);
        break;
    case CMD_RESET:
        ps2_keyboard_reset(k);
        answer(k, ACK);
        answer(k, TEST_PASSED);
        break;
    default:
        answer(k, RESEND);
        break;
    }
}

/* Appends the bytes of one key transition: prefix (0: none) and code of set 1. */
static unsigned encode(const struct ps2_keyboard *k, uint8_t *out, uint8_t prefix, uint8_t code,
                       bool down)
{
    unsigned n = 0;

    if (prefix)
        out[n++] = prefix;
    if (k->set == 1) {
        out[n++] = down ? code : code | RELEASED_SET1;
    } else {
        if (!down)
            out[n++] = RELEASED_SET2;
        out[n++] = set2_code[code & 0x7f];
    }
    return n;
}

/* All or nothing, so that no key sticks half way; a full keyboard says so once, with an overrun. */
static void send(struct ps2_keyboard *k, const uint8_t *bytes, unsigned n)
{
    unsigned room = ps2_queue_room(&k->queue);

    if (room <= n) {
        if (room)
            ps2_queue_put(&k->queue, k->set == 1 ? 0xff : 0x00);
        return;
    }
    for (unsigned i = 0; i < n; i++)
        ps2_queue_put(&k->queue, bytes[i]);
    k->last = bytes[n - 1];
}

/* Print is a shifted key of the old keypad: it brings its Shift along; Alt makes it SysRq. */
static unsigned encode_print(const struct ps2_keyboard *k, uint8_t *out, bool down)
{
    unsigned n;

    if (k->alt)
        return encode(k, out, 0, 0x54, down);
    n = encode(k, out, PREFIX, down ? 0x2a : 0x37, down);
    return n + encode(k, out + n, PREFIX, down ? 0x37 : 0x2a, down);
}

/* Pause has no release; it sends all of itself when pressed. */
static unsigned encode_pause(const struct ps2_keyboard *k, uint8_t *out, bool down)
{
    unsigned n;

    if (!down)
        return 0;
    if (k->control) { /* Break */
        n = encode(k, out, PREFIX, 0x46, true);
        return n + encode(k, out + n, PREFIX, 0x46, false);
    }
    n = encode(k, out, 0xe1, 0x1d, true);
    n += encode(k, out + n, 0, 0x45, true);
    n += encode(k, out + n, 0xe1, 0x1d, false);
    return n + encode(k, out + n, 0, 0x45, false);
}

bool ps2_keyboard_key(struct ps2_keyboard *k, unsigned key, bool down)
{
    uint8_t bytes[16], code = set1_code(key);
    unsigned n;

    if (key == KEY_LEFTALT || key == KEY_RIGHTALT)
        k->alt = down;
    if (key == KEY_LEFTCTRL || key == KEY_RIGHTCTRL)
        k->control = down;
    if (key == KEY_SYSRQ)
        n = encode_print(k, bytes, down);
    else if (key == KEY_PAUSE)
        n = encode_pause(k, bytes, down);
    else if (code)
        n = encode(k, bytes, code & EXTENDED ? PREFIX : 0, code & 0x7f, down);
    else
        return false;
    if (k->scanning && n)
        send(k, bytes, n);
    return true;
}
