/*
 * Names for keys.  Inside, a key is Linux' key code, KEY_* of <linux/input-event-codes.h>; people
 * and programs name it as QEMU does ("ctrl", "ret", "kp_add"); text is typed on a US layout.
 */
#ifndef RINGSHIFT_RUNTIME_KEYS_H
#define RINGSHIFT_RUNTIME_KEYS_H

#include <stdbool.h>
#include <stddef.h>

/* The key of this name (its first len bytes), or 0. */
unsigned key_by_name(const char *name, size_t len);

/* How to type an ASCII character: the key, and whether with Shift.  False if it has none. */
bool key_by_char(unsigned char c, unsigned *key, bool *shift);

#endif
