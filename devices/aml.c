/* AML writer: see aml.h.  Opcodes and encodings are named as in ACPI 6.5, chapter 20. */
#include "devices/aml.h"

#include <string.h>

enum {
    ZERO_OP = 0x00,
    ONE_OP = 0x01,
    NAME_OP = 0x08,
    BYTE_PREFIX = 0x0a,
    WORD_PREFIX = 0x0b,
    DWORD_PREFIX = 0x0c,
    STRING_PREFIX = 0x0d,
    QWORD_PREFIX = 0x0e,
    SCOPE_OP = 0x10,
    BUFFER_OP = 0x11,
    PACKAGE_OP = 0x12,
    METHOD_OP = 0x14,
    DUAL_NAME_PREFIX = 0x2e,
    MULTI_NAME_PREFIX = 0x2f,
    EXT_OP_PREFIX = 0x5b,
    EXT_REGION_OP = 0x80,
    EXT_FIELD_OP = 0x81,
    EXT_DEVICE_OP = 0x82,
    ROOT_CHAR = 0x5c,
    IF_OP = 0xa0,
};

/* Package lengths are written in the three-byte form, whatever they turn out to be: its value
 * includes the three bytes themselves (20.2.4). */
#define PKG_LENGTH_BYTES 3

static void put(struct aml *a, uint8_t byte)
{
    if (a->len < a->cap)
        a->buf[a->len++] = byte;
    else
        a->overflow = true;
}

static void put_le(struct aml *a, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        put(a, (uint8_t)(value >> (8 * i)));
}

static void put_bytes(struct aml *a, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        put(a, (uint8_t)s[i]);
}

void aml_init(struct aml *a, uint8_t *buf, size_t cap)
{
    *a = (struct aml){.buf = buf, .cap = cap};
}

static void open_length(struct aml *a)
{
    if (a->depth == AML_MAX_DEPTH) {
        a->overflow = true;
        return;
    }
    a->open[a->depth++] = a->len;
    put_le(a, 0, PKG_LENGTH_BYTES);
}

void aml_end(struct aml *a)
{
    size_t at, len;

    if (a->depth == 0 || a->overflow) {
        a->overflow = true;
        return;
    }
    at = a->open[--a->depth];
    len = a->len - at;
    a->buf[at] = (uint8_t)(2u << 6 | (len & 0xf));
    a->buf[at + 1] = (uint8_t)(len >> 4);
    a->buf[at + 2] = (uint8_t)(len >> 12);
}

void aml_begin_scope(struct aml *a, const char *path)
{
    put(a, SCOPE_OP);
    open_length(a);
    put_bytes(a, path, strlen(path));
}

void aml_begin_device(struct aml *a, const char *name)
{
    put(a, EXT_OP_PREFIX);
    put(a, EXT_DEVICE_OP);
    open_length(a);
    put_bytes(a, name, 4);
}

void aml_name(struct aml *a, const char *name)
{
    put(a, NAME_OP);
    put_bytes(a, name, strlen(name));
}

void aml_begin_package(struct aml *a, uint8_t elements)
{
    put(a, PACKAGE_OP);
    open_length(a);
    put(a, elements);
}

void aml_begin_method(struct aml *a, const char *name, unsigned args)
{
    put(a, METHOD_OP);
    open_length(a);
    put_bytes(a, name, 4);
    put(a, (uint8_t)args);
}

void aml_begin_if(struct aml *a)
{
    put(a, IF_OP);
    open_length(a);
}

void aml_bytes(struct aml *a, const void *bytes, size_t len)
{
    put_bytes(a, bytes, len);
}

void aml_path(struct aml *a, const char *names, unsigned segments)
{
    put(a, ROOT_CHAR);
    if (segments == 2) {
        put(a, DUAL_NAME_PREFIX);
    } else if (segments > 2) {
        put(a, MULTI_NAME_PREFIX);
        put(a, (uint8_t)segments);
    }
    put_bytes(a, names, 4 * segments);
}

void aml_pci_config_bytes(struct aml *a, const char *region, uint8_t offset, unsigned n,
                          const char *names)
{
    enum { PCI_CONFIG = 2, BYTE_ACCESS = 1 };

    put(a, EXT_OP_PREFIX);
    put(a, EXT_REGION_OP);
    put_bytes(a, region, 4);
    put(a, PCI_CONFIG);
    aml_integer(a, offset);
    aml_integer(a, n);
    put(a, EXT_OP_PREFIX);
    put(a, EXT_FIELD_OP);
    open_length(a);
    put_bytes(a, region, 4);
    put(a, BYTE_ACCESS); /* no lock, preserve */
    for (unsigned i = 0; i < n; i++) {
        put_bytes(a, names + 4 * i, 4);
        put(a, 8); /* bits */
    }
    aml_end(a);
}

void aml_integer(struct aml *a, uint64_t value)
{
    if (value <= 1) {
        put(a, value ? ONE_OP : ZERO_OP);
    } else if (value <= 0xff) {
        put(a, BYTE_PREFIX);
        put_le(a, value, 1);
    } else if (value <= 0xffff) {
        put(a, WORD_PREFIX);
        put_le(a, value, 2);
    } else if (value <= 0xffffffffu) {
        put(a, DWORD_PREFIX);
        put_le(a, value, 4);
    } else {
        put(a, QWORD_PREFIX);
        put_le(a, value, 8);
    }
}

static unsigned hex_digit(char c)
{
    return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

/* Three letters of five bits and four hexadecimal digits, big-endian (19.3.4, EISAID). */
void aml_eisa_id(struct aml *a, const char *id)
{
    uint32_t v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 |
                 (uint32_t)(id[2] - 0x40) << 16 | hex_digit(id[3]) << 12 | hex_digit(id[4]) << 8 |
                 hex_digit(id[5]) << 4 | hex_digit(id[6]);

    aml_integer(a, __builtin_bswap32(v));
}

void aml_string(struct aml *a, const char *s)
{
    put(a, STRING_PREFIX);
    put_bytes(a, s, strlen(s) + 1);
}

/* -- Resource templates: Name (n, Buffer () {descriptors, end tag}) ---------------------------- */

void aml_begin_resources(struct aml *a, const char *name)
{
    aml_name(a, name);
    put(a, BUFFER_OP);
    open_length(a);
    put(a, WORD_PREFIX);
    put_le(a, 0, 2);
}

void aml_end_resources(struct aml *a)
{
    size_t size_at, len;

    put(a, 0x79); /* end tag; checksum 0 means "not checked" */
    put(a, 0x00);
    if (a->depth && !a->overflow) {
        size_at = a->open[a->depth - 1] + PKG_LENGTH_BYTES + 1;
        len = a->len - (size_at + 2);
        a->buf[size_at] = (uint8_t)len;
        a->buf[size_at + 1] = (uint8_t)(len >> 8);
    }
    aml_end(a);
}

void aml_io(struct aml *a, uint16_t port, uint8_t len)
{
    put(a, 0x47);
    put(a, 0x01); /* decodes 16 bits */
    put_le(a, port, 2);
    put_le(a, port, 2);
    put(a, 1); /* alignment */
    put(a, len);
}

void aml_irq(struct aml *a, unsigned irq)
{
    put(a, 0x22); /* without the flags byte: edge, active high, not shared */
    put_le(a, 1u << irq, 2);
}

void aml_shared_irqs(struct aml *a, const uint8_t *irqs, unsigned n)
{
    put(a, 0x89);
    put_le(a, 2 + 4 * n, 2);
    put(a, 0x09); /* consumer, level-triggered, active high, shared */
    put(a, (uint8_t)n);
    for (unsigned i = 0; i < n; i++)
        put_le(a, irqs[i], 4);
}

/* WordAddressSpace and DWordAddressSpace: producer, positive decode, fixed at both ends. */
static void address_space(struct aml *a, uint8_t type, uint8_t type_flags, unsigned bytes,
                          uint64_t first, uint64_t last)
{
    put(a, bytes == 2 ? 0x88 : 0x87);
    put_le(a, 3 + 5 * bytes, 2);
    put(a, type);
    put(a, 0x0c);
    put(a, type_flags);
    put_le(a, 0, bytes); /* granularity */
    put_le(a, first, bytes);
    put_le(a, last, bytes);
    put_le(a, 0, bytes);                /* translation offset */
    put_le(a, last - first + 1, bytes); /* length */
}

void aml_bus_range(struct aml *a, uint16_t first, uint16_t last)
{
    address_space(a, 2, 0, 2, first, last);
}

void aml_io_range(struct aml *a, uint16_t first, uint16_t last)
{
    address_space(a, 1, 3, 2, first, last); /* the entire range */
}

void aml_memory_range(struct aml *a, uint32_t first, uint32_t last)
{
    address_space(a, 0, 1, 4, first, last); /* read-write, not cacheable */
}

void aml_memory_fixed(struct aml *a, uint32_t base, uint32_t len)
{
    put(a, 0x86);
    put_le(a, 9, 2);
    put(a, 1); /* read-write */
    put_le(a, base, 4);
    put_le(a, len, 4);
}
