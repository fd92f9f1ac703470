/*
 * The monitor's keys and mouse.  Keys are pressed one after the other by the monitor's thread, as
 * fast as the guest reads them, and a command that types is answered when it is done.
 */
#include "runtime/monitor_internal.h"

#include <errno.h>
#include <linux/input-event-codes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "devices/ps2.h"
#include "runtime/keys.h"

#define HOLD_MS      100u /* send-key's default */
#define HOLD_MAX_MS  10000u
#define TYPE_MS      15u /* between transitions of keys that are typed */
#define PATIENCE_MS  20000u
#define UNREAD_MAX   8u /* bytes the guest may leave unread while keys go on */
#define KEYS_AT_ONCE 16u

uint64_t monitor_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int add_step(struct monitor *mon, unsigned key, bool down, unsigned wait_ms)
{
    if (mon->step_count == MONITOR_KEYS_MAX)
        return -E2BIG;
    if (mon->step_count == mon->steps_size) {
        unsigned size = mon->steps_size ? mon->steps_size * 2 : 64;
        struct key_step *bigger = realloc(mon->steps, size * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        mon->steps = bigger;
        mon->steps_size = size;
    }
    mon->steps[mon->step_count++] = (struct key_step){(uint16_t)key, (uint16_t)wait_ms, down};
    return 0;
}

static int begin(struct monitor *mon, char *err, size_t errlen)
{
    if (mon->typist)
        return fail_with(err, errlen, -EBUSY, "another client is typing; try again later");
    if (!machine_has_screen(mon->machine))
        return fail_with(err, errlen, -ENODEV,
                         "this machine has no keyboard and mouse; run it with --vga std");
    mon->step_count = mon->step_next = 0;
    return 0;
}

static int start(struct monitor *mon, struct monitor_session *s)
{
    mon->typist = s;
    mon->step_due_ms = monitor_now_ms();
    mon->step_patience_ms = mon->step_due_ms + PATIENCE_MS;
    return MONITOR_LATER;
}

/* A key as QMP's KeyValue or by its name alone. */
static unsigned key_value(json_t *value, char *err, size_t errlen)
{
    json_t *name = json_is_object(value) ? json_object_get(value, "data") : value;
    unsigned key = 0;

    if (json_is_string(name))
        key = key_by_name(json_string_value(name), json_string_length(name));
    if (!key)
        fail_with(err, errlen, -EINVAL, "there is no key '%s' (keys have QEMU's names)",
                  json_is_string(name) ? json_string_value(name) : "");
    return key;
}

int monitor_send_key(struct monitor *mon, struct monitor_session *s, json_t *args, char *err,
                     size_t errlen)
{
    json_t *list = json_object_get(args, "keys"), *hold = json_object_get(args, "hold-time");
    json_int_t hold_ms = hold ? json_integer_value(hold) : HOLD_MS;
    unsigned keys[KEYS_AT_ONCE], n = 0;
    int code = begin(mon, err, errlen);

    if (code)
        return code;
    if (hold_ms < 0 || hold_ms > HOLD_MAX_MS || (hold && !json_is_integer(hold)))
        return fail_with(err, errlen, -EINVAL, "hold-time is 0 to %u ms", HOLD_MAX_MS);
    if (json_is_string(list)) { /* "ctrl-alt-delete" */
        const char *at = json_string_value(list);

        for (;; at++) {
            size_t len = strcspn(at, "-");

            if (n == KEYS_AT_ONCE || !(keys[n++] = key_by_name(at, len)))
                return fail_with(err, errlen, -EINVAL,
                                 "there is no key '%.*s' (keys have QEMU's names)",
                                 (int)(len < 40 ? len : 40), at);
            at += len;
            if (!*at)
                break;
        }
    } else {
        if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > KEYS_AT_ONCE)
            return fail_with(err, errlen, -EINVAL, "keys is a list of 1 to %u keys", KEYS_AT_ONCE);
        for (; n < json_array_size(list); n++) {
            keys[n] = key_value(json_array_get(list, n), err, errlen);
            if (!keys[n])
                return -EINVAL;
        }
    }
    for (unsigned i = 0; i < n && !code; i++)
        code = add_step(mon, keys[i], true, i == n - 1 ? (unsigned)hold_ms : 0);
    for (unsigned i = n; i > 0 && !code; i--)
        code = add_step(mon, keys[i - 1], false, 0);
    return code ? code : start(mon, s);
}

int monitor_type(struct monitor *mon, struct monitor_session *s, json_t *args, char *err,
                 size_t errlen)
{
    json_t *text = json_object_get(args, "text");
    int code = begin(mon, err, errlen);

    if (code)
        return code;
    if (!json_is_string(text))
        return fail_with(err, errlen, -EINVAL, "text is a string");
    for (const char *at = json_string_value(text); *at && !code; at++) {
        unsigned key;
        bool shift;

        if (!key_by_char((unsigned char)*at, &key, &shift))
            return fail_with(err, errlen, -EINVAL,
                             "the character with code %u is not on the US keyboard that types "
                             "here",
                             (unsigned char)*at);
        if (shift)
            code = add_step(mon, KEY_LEFTSHIFT, true, TYPE_MS);
        if (!code)
            code = add_step(mon, key, true, TYPE_MS);
        if (!code)
            code = add_step(mon, key, false, shift ? 0 : TYPE_MS);
        if (!code && shift)
            code = add_step(mon, KEY_LEFTSHIFT, false, TYPE_MS);
    }
    return code ? code : start(mon, s);
}

static void finish_keys(struct monitor *mon, const char *error)
{
    struct monitor_session *s = mon->typist;

    mon->typist = NULL;
    /* Nothing stays pressed: the rest of the releases. */
    for (unsigned i = mon->step_next; i < mon->step_count; i++)
        if (!mon->steps[i].down)
            machine_key(mon->machine, mon->steps[i].key, false);
    mon->step_count = mon->step_next = 0;
    if (s)
        monitor_session_finish(s, NULL, error);
}

int monitor_run_keys(struct monitor *mon)
{
    while (mon->typist) {
        uint64_t now = monitor_now_ms();

        if (now < mon->step_due_ms)
            return (int)(mon->step_due_ms - now);
        if (mon->step_next == mon->step_count) {
            finish_keys(mon, NULL);
            continue;
        }
        if (machine_keys_pending(mon->machine) > UNREAD_MAX) {
            if (now > mon->step_patience_ms) {
                finish_keys(mon, "the guest does not read its keyboard");
                continue;
            }
            return 10;
        }
        const struct key_step *step = &mon->steps[mon->step_next++];

        machine_key(mon->machine, step->key, step->down);
        mon->step_due_ms = now + step->wait_ms;
        mon->step_patience_ms = now + PATIENCE_MS;
    }
    return -1;
}

void monitor_end_keys(struct monitor *mon)
{
    bool all = true;

    for (unsigned i = mon->step_next; i < mon->step_count; i++)
        all &= !mon->steps[i].down;
    /* Often it was the last key that ended the machine: then everything was typed. */
    if (mon->typist)
        finish_keys(mon, all ? NULL : "the machine ended before all keys were typed");
}

void monitor_forget_keys(struct monitor *mon, struct monitor_session *s)
{
    if (mon->typist != s)
        return;
    mon->typist = NULL;
    finish_keys(mon, NULL);
}

/* -- Mouse ------------------------------------------------------------------------------------- */

static int button_by_name(const char *name)
{
    static const struct {
        const char *name;
        int bit;
    } buttons[] = {{"left", PS2_LEFT},
                   {"right", PS2_RIGHT},
                   {"middle", PS2_MIDDLE},
                   {"side", PS2_SIDE},
                   {"extra", PS2_EXTRA}};

    for (unsigned i = 0; i < sizeof(buttons) / sizeof(buttons[0]); i++)
        if (!strcmp(name, buttons[i].name))
            return buttons[i].bit;
    return -EINVAL;
}

/* An optional integer of moderate size. */
static int get_small(json_t *object, const char *name, int *out, char *err, size_t errlen)
{
    json_t *value = json_object_get(object, name);

    *out = 0;
    if (!value)
        return 0;
    if (!json_is_integer(value) || json_integer_value(value) < -100000 ||
        json_integer_value(value) > 100000)
        return fail_with(err, errlen, -EINVAL, "%s is a number of -100000 to 100000", name);
    *out = (int)json_integer_value(value);
    return 0;
}

/* {"dx": 5, "dy": -3, "dz": 0, "buttons": ["left"]}: buttons are those held from now on; without
 * the argument they stay as they are. */
int monitor_mouse(struct monitor *mon, json_t *args, char *err, size_t errlen)
{
    json_t *list = json_object_get(args, "buttons"), *item;
    int dx, dy, dz, code;
    size_t i;

    if (!machine_has_screen(mon->machine))
        return fail_with(err, errlen, -ENODEV, "this machine has no mouse; run it with --vga std");
    code = get_small(args, "dx", &dx, err, errlen);
    if (!code)
        code = get_small(args, "dy", &dy, err, errlen);
    if (!code)
        code = get_small(args, "dz", &dz, err, errlen);
    if (code)
        return code;
    if (list) {
        uint8_t held = 0;

        if (!json_is_array(list))
            return fail_with(err, errlen, -EINVAL, "buttons is a list of names");
        json_array_foreach(list, i, item)
        {
            int bit = json_is_string(item) ? button_by_name(json_string_value(item)) : -EINVAL;

            if (bit < 0)
                return fail_with(err, errlen, -EINVAL,
                                 "a button is left, middle, right, side or extra");
            held |= (uint8_t)bit;
        }
        mon->buttons = held;
    }
    machine_mouse(mon->machine, dx, dy, dz, mon->buttons);
    return 0;
}

/* One InputEvent of QMP: rel, btn and key. */
static int input_event(struct monitor *mon, json_t *event, int move[2], int *wheel, char *err,
                       size_t errlen)
{
    const char *type = json_string_value(json_object_get(event, "type"));
    json_t *data = json_object_get(event, "data");
    bool down = json_is_true(json_object_get(data, "down"));

    if (type && !strcmp(type, "rel")) {
        const char *axis = json_string_value(json_object_get(data, "axis"));
        int value, code = get_small(data, "value", &value, err, errlen);

        if (code)
            return code;
        if (!axis || (strcmp(axis, "x") && strcmp(axis, "y")))
            return fail_with(err, errlen, -EINVAL, "axis is x or y");
        move[*axis == 'y'] += value;
        return 0;
    }
    if (type && !strcmp(type, "btn")) {
        const char *name = json_string_value(json_object_get(data, "button"));
        int bit;

        if (name && !strncmp(name, "wheel-", 6)) {
            *wheel += !down ? 0 : !strcmp(name, "wheel-up") ? -1 : 1;
            return 0;
        }
        bit = name ? button_by_name(name) : -EINVAL;
        if (bit < 0)
            return fail_with(err, errlen, -EINVAL, "there is no such button");
        mon->buttons = (uint8_t)(down ? mon->buttons | bit : mon->buttons & ~bit);
        return 0;
    }
    if (type && !strcmp(type, "key")) {
        unsigned key = key_value(json_object_get(data, "key"), err, errlen);

        if (!key)
            return -EINVAL;
        machine_key(mon->machine, key, down);
        return 0;
    }
    return fail_with(err, errlen, -EINVAL, "an event's type is rel, btn or key");
}

int monitor_input_events(struct monitor *mon, json_t *args, char *err, size_t errlen)
{
    json_t *list = json_object_get(args, "events"), *event;
    int move[2] = {0}, wheel = 0, code = 0;
    size_t i;

    if (!machine_has_screen(mon->machine))
        return fail_with(err, errlen, -ENODEV,
                         "this machine has no keyboard and mouse; run it with --vga std");
    if (!json_is_array(list) || json_array_size(list) > 64)
        return fail_with(err, errlen, -EINVAL, "events is a list of at most 64 events");
    json_array_foreach(list, i, event)
    {
        code = input_event(mon, event, move, &wheel, err, errlen);
        if (code)
            break;
    }
    machine_mouse(mon->machine, move[0], move[1], wheel, mon->buttons);
    return code;
}
