/*
 * Inputs of harnesses that drive a device: lists of 16-byte commands.
 *
 *     byte 0: what, byte 1: size, slot or the like, bytes 2..3: offset, 4..11: value,
 *     12..15: address (little-endian)
 */
#ifndef RINGSHIFT_TESTS_FUZZ_SCRIPT_H
#define RINGSHIFT_TESTS_FUZZ_SCRIPT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define COMMAND 16

static inline uint16_t script_offset(const uint8_t *c)
{
    return (uint16_t)(c[2] | c[3] << 8);
}

static inline uint64_t script_value(const uint8_t *c)
{
    uint64_t v;

    memcpy(&v, c + 4, 8);
    return v;
}

static inline uint32_t script_address(const uint8_t *c)
{
    uint32_t v;

    memcpy(&v, c + 12, 4);
    return v;
}

/* A script that is being written. */
struct script {
    uint8_t *out;
    size_t len, max;
};

static inline void add(struct script *s, unsigned what, unsigned size, unsigned offset,
                       uint64_t value, uint32_t address)
{
    uint8_t *c = s->out + s->len;

    if (s->len + COMMAND > s->max)
        return;
    c[0] = (uint8_t)what;
    c[1] = (uint8_t)size;
    c[2] = (uint8_t)offset;
    c[3] = (uint8_t)(offset >> 8);
    memcpy(c + 4, &value, 8);
    memcpy(c + 12, &address, 4);
    s->len += COMMAND;
}

#endif
