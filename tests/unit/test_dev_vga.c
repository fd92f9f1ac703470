/*
 * The VGA: registers as software programs them, the window's read and write modes, and the picture
 * that comes out, for each kind of mode.
 */
#include "dev_fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/vga.h"

static struct vga v;
static struct fake_clock now;
static struct io_bus ports, memory;
static uint8_t *vram;
static uint32_t pixels[VGA_MAX_WIDTH * VGA_MAX_HEIGHT];
static struct vga_geometry g;

static void setup(void)
{
    fake_clock_init(&now);
    vram = calloc(1, VGA_VRAM_SIZE);
    vga_init(&v, vram, &now.timers);
    cr_assert_eq(io_bus_add(&ports, VGA_PORT, VGA_PORTS, &vga_io_ops, &v), 0);
    cr_assert_eq(io_bus_add(&ports, VBE_PORT, VBE_PORTS, &vbe_io_ops, &v), 0);
    cr_assert_eq(io_bus_add(&memory, VGA_WINDOW, VGA_WINDOW_SIZE, &vga_window_ops, &v), 0);
    cr_assert_eq(io_bus_add(&memory, 0xfeb00000, VGA_MMIO_SIZE, &vga_mmio_ops, &v), 0);
}

static uint8_t inb(uint16_t port)
{
    return (uint8_t)io_bus_read(&ports, port, 1);
}

static void outb(uint16_t port, uint8_t value)
{
    io_bus_write(&ports, port, 1, value);
}

/* An index and a data register by one 16-bit access, as most software does it. */
static void outw(uint16_t port, uint8_t index, uint8_t value)
{
    io_bus_write(&ports, port, 2, (uint16_t)(value << 8 | index));
}

static void set_ar(uint8_t index, uint8_t value)
{
    inb(0x3da);
    outb(0x3c0, index);
    outb(0x3c0, value);
}

static void set_dac(uint8_t index, uint8_t r, uint8_t gg, uint8_t b)
{
    outb(0x3c8, index);
    outb(0x3c9, r);
    outb(0x3c9, gg);
    outb(0x3c9, b);
}

static void set_vbe(uint16_t index, uint16_t value)
{
    io_bus_write(&ports, 0x1ce, 2, index);
    io_bus_write(&ports, 0x1cf, 2, value);
}

static uint16_t get_vbe(uint16_t index)
{
    io_bus_write(&ports, 0x1ce, 2, index);
    return (uint16_t)io_bus_read(&ports, 0x1cf, 2);
}

static void poke(uint32_t at, uint8_t value)
{
    io_bus_write(&memory, at, 1, value);
}

static uint8_t peek(uint32_t at)
{
    return (uint8_t)io_bus_read(&memory, at, 1);
}

static void render(void)
{
    vga_geometry(&v.r, &g);
    vga_render(&v.r, vram, &g, true, pixels);
}

static uint32_t pixel(unsigned x, unsigned y)
{
    cr_assert(x < g.width && y < g.height);
    return pixels[y * g.width + x];
}

/* The registers of a standard mode, from IBM's mode tables: misc, sequencer 1-4, CRTC, attribute
 * 10-13, graphics 0-8. */
struct mode {
    uint8_t misc, seq[4], cr[0x19], ar[4], gr[9];
};

static const struct mode mode_12h = {0xe3,
                                     {0x01, 0x0f, 0x00, 0x06},
                                     {0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0x00,
                                      0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xea, 0x8c,
                                      0xdf, 0x28, 0x00, 0xe7, 0x04, 0xe3, 0xff},
                                     {0x01, 0x00, 0x0f, 0x00},
                                     {0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x05, 0x0f, 0xff}};
static const struct mode mode_13h = {0x63,
                                     {0x01, 0x0f, 0x00, 0x0e},
                                     {0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00,
                                      0x41, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9c, 0x8e,
                                      0x8f, 0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff},
                                     {0x41, 0x00, 0x0f, 0x00},
                                     {0x00, 0x00, 0x00, 0x00, 0x00, 0x40, 0x05, 0x0f, 0xff}};
static const struct mode mode_4 = {0x63,
                                   {0x09, 0x03, 0x00, 0x02},
                                   {0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0x00,
                                    0xc1, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9c, 0x8e,
                                    0x8f, 0x14, 0x00, 0x96, 0xb9, 0xa2, 0xff},
                                   {0x01, 0x00, 0x03, 0x00},
                                   {0x00, 0x00, 0x00, 0x00, 0x00, 0x30, 0x0f, 0x0f, 0xff}};
static const struct mode mode_6 = {0x63,
                                   {0x01, 0x01, 0x00, 0x06},
                                   {0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00,
                                    0xc1, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9c, 0x8e,
                                    0x8f, 0x28, 0x00, 0x96, 0xb9, 0xc2, 0xff},
                                   {0x01, 0x00, 0x01, 0x00},
                                   {0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0d, 0x0f, 0xff}};

static void set_mode(const struct mode *m)
{
    outb(0x3c2, m->misc);
    outw(0x3c4, 0, 1);
    for (uint8_t i = 0; i < 4; i++)
        outw(0x3c4, i + 1, m->seq[i]);
    outw(0x3c4, 0, 3);
    outw(0x3d4, 0x11, m->cr[0x11] & 0x7f);
    for (uint8_t i = 0; i < 0x19; i++)
        outw(0x3d4, i, m->cr[i]);
    for (uint8_t i = 0; i < 9; i++)
        outw(0x3ce, i, m->gr[i]);
    for (uint8_t i = 0; i < 16; i++)
        set_ar(i, i);
    for (uint8_t i = 0; i < 4; i++)
        set_ar(0x10 + i, m->ar[i]);
    inb(0x3da);
    outb(0x3c0, 0x20);
    outb(0x3c6, 0xff);
    for (unsigned i = 0; i < 256; i++)
        set_dac((uint8_t)i, i & 63, i >> 2, 63 - (i & 63));
}

static uint32_t dac(unsigned i)
{
    unsigned c[3] = {i & 63, i >> 2, 63 - (i & 63)}, rgb = 0;

    for (unsigned k = 0; k < 3; k++)
        rgb = rgb << 8 | (c[k] << 2 | c[k] >> 4);
    return rgb;
}

/* -- Registers --------------------------------------------------------------------------------- */

Test(vga, mono_and_color_ports, .init = setup)
{
    outb(0x3c2, 0x01);
    cr_assert_eq(inb(0x3cc), 0x01);
    outw(0x3d4, 0x0e, 0x12);
    cr_assert_eq(inb(0x3d5), 0x12);
    cr_assert_eq(inb(0x3b5), 0xff);
    outb(0x3c2, 0x00);
    cr_assert_eq(inb(0x3d5), 0xff);
    cr_assert_eq(inb(0x3b4), 0x0e);
    cr_assert_eq(inb(0x3b5), 0x12);
}

Test(vga, crtc_lock, .init = setup)
{
    outw(0x3d4, 0x07, 0x00);
    outw(0x3d4, 0x11, 0x80);
    outw(0x3d4, 0x00, 0x5f);
    cr_assert_eq(v.r.cr[0], 0, "locked");
    outw(0x3d4, 0x07, 0xff);
    cr_assert_eq(v.r.cr[7], 0x10, "only the line compare bit is not locked");
    outw(0x3d4, 0x12, 0x8f);
    cr_assert_eq(v.r.cr[0x12], 0x8f);
    outw(0x3d4, 0x11, 0x00);
    outw(0x3d4, 0x00, 0x5f);
    cr_assert_eq(v.r.cr[0], 0x5f);
}

Test(vga, attribute_flip_flop, .init = setup)
{
    set_ar(0x05, 0x3a);
    cr_assert_eq(v.r.ar[5], 0x3a);
    inb(0x3da);
    outb(0x3c0, 0x25); /* video on: the palette is the display's */
    outb(0x3c0, 0x11);
    cr_assert_eq(v.r.ar[5], 0x3a);
    inb(0x3da);
    outb(0x3c0, 0x32);
    outb(0x3c0, 0x07); /* but these are not */
    cr_assert_eq(v.r.ar[0x12], 0x07);
    cr_assert_eq(inb(0x3c1), 0x07);
    inb(0x3da);
    outb(0x3c0, 0x1f); /* out of range */
    outb(0x3c0, 0xff);
    cr_assert_eq(inb(0x3c1), 0);
}

Test(vga, dac_sequence, .init = setup)
{
    set_dac(7, 0x3f, 0xff, 0x01);
    cr_assert_eq(inb(0x3c8), 8, "the index moves on");
    cr_assert_eq(inb(0x3c7), 0, "write state");
    outb(0x3c7, 7);
    cr_assert_eq(inb(0x3c7), 3, "read state");
    cr_assert_eq(inb(0x3c9), 0x3f);
    cr_assert_eq(inb(0x3c9), 0x3f, "six bits");
    cr_assert_eq(inb(0x3c9), 0x01);
    outb(0x3c8, 9);
    outb(0x3c9, 1); /* incomplete: no effect */
    outb(0x3c8, 9);
    cr_assert_eq(v.r.dac[9][0], 0);
}

Test(vga, retrace_toggles_at_70_hz, .init = setup)
{
    unsigned rises = 0, blanks = 0, last = 0, last_blank = 0;

    vga_post(&v);
    for (unsigned i = 0; i < 1000000; i++) { /* one second, in microseconds */
        unsigned s = inb(0x3da);

        rises += (s & 8) && !last;
        blanks += (s & 1) && !last_blank;
        last = s & 8;
        last_blank = s & 1;
        fake_clock_advance(&now, 1000);
    }
    cr_assert(rises >= 69 && rises <= 71, "%u retraces", rises);
    cr_assert(blanks > 25000 && blanks < 32000, "%u lines", blanks);
}

/* No values of the timing registers may divide by zero or keep pollers waiting. */
Test(vga, retrace_toggles_whatever_is_programmed, .init = setup)
{
    srand(1);
    for (unsigned round = 0; round < 200; round++) {
        unsigned rises = 0, last = 0;

        outw(0x3d4, 0x11, 0);
        for (uint8_t i = 0; i < 0x19; i++)
            outw(0x3d4, i, (uint8_t)rand());
        outw(0x3c4, 1, (uint8_t)rand());
        outb(0x3c2, (uint8_t)rand() | 1);
        for (unsigned i = 0; i < 20000; i++) {
            unsigned s = inb(0x3da);

            rises += (s & 8) && !last;
            last = s & 8;
            fake_clock_advance(&now, 10000);
        }
        cr_assert(rises >= 3 && rises <= 60, "%u retraces in 200 ms", rises);
    }
}

/* -- The window -------------------------------------------------------------------------------- */

Test(vga, window_maps, .init = setup)
{
    static const struct {
        uint32_t first, last;
    } maps[4] = {{0xa0000, 0xbffff}, {0xa0000, 0xaffff}, {0xb0000, 0xb7fff}, {0xb8000, 0xbffff}};

    set_mode(&mode_12h);
    for (uint8_t map = 0; map < 4; map++) {
        outw(0x3ce, 6, (uint8_t)(map << 2 | 1));
        poke(maps[map].first, 0x5a);
        cr_assert_eq(vram[0], 0x5a);
        poke(maps[map].first, 0x00);
        if (maps[map].first > 0xa0000)
            cr_assert_eq(peek(maps[map].first - 1), 0xff);
        if (maps[map].last < 0xbffff)
            cr_assert_eq(peek(maps[map].last + 1), 0xff);
        cr_assert_eq(peek(maps[map].last), 0x00);
    }
    outb(0x3c2, 0xe1); /* memory off */
    cr_assert_eq(peek(0xb8000), 0xff);
}

Test(vga, write_mode_0, .init = setup)
{
    set_mode(&mode_12h);
    outw(0x3c4, 2, 0x05);
    poke(0xa0010, 0xc3);
    cr_assert_eq(memcmp(vram + 0x40, "\xc3\0\xc3\0", 4), 0, "the map mask");
    outw(0x3c4, 2, 0x0f);
    outw(0x3ce, 3, 0x04); /* rotate by 4 */
    poke(0xa0010, 0x1e);
    cr_assert_eq(memcmp(vram + 0x40, "\xe1\xe1\xe1\xe1", 4), 0);
    outw(0x3ce, 0, 0x06); /* set/reset: planes 1 and 2 set, */
    outw(0x3ce, 1, 0x07); /* for planes 0 to 2 */
    outw(0x3ce, 3, 0x00);
    poke(0xa0010, 0x3c);
    cr_assert_eq(memcmp(vram + 0x40, "\x00\xff\xff\x3c", 4), 0);
    peek(0xa0010);
    outw(0x3ce, 8, 0xf0); /* bit mask: the rest comes from the latches */
    outw(0x3ce, 1, 0x00);
    poke(0xa0010, 0xaa);
    cr_assert_eq(memcmp(vram + 0x40, "\xa0\xaf\xaf\xac", 4), 0);
}

Test(vga, logical_functions, .init = setup)
{
    static const uint8_t expected[4] = {0x0f, 0x05, 0x5f, 0x5a};

    set_mode(&mode_12h);
    for (uint8_t f = 0; f < 4; f++) {
        outw(0x3ce, 3, 0);
        poke(0xa0000, 0x55);
        peek(0xa0000);
        outw(0x3ce, 3, (uint8_t)(f << 3));
        poke(0xa0000, 0x0f);
        cr_assert_eq(vram[0], expected[f], "function %u", f);
    }
}

Test(vga, write_mode_1_copies_latches, .init = setup)
{
    set_mode(&mode_12h);
    memcpy(vram + 4 * 0x100, "\x12\x34\x56\x78", 4);
    outw(0x3ce, 5, 0x01);
    peek(0xa0100);
    poke(0xa0200, 0xff);
    cr_assert_eq(memcmp(vram + 4 * 0x200, "\x12\x34\x56\x78", 4), 0);
}

Test(vga, write_mode_2_and_3, .init = setup)
{
    set_mode(&mode_12h);
    outw(0x3ce, 5, 0x02);
    outw(0x3ce, 8, 0x18);
    peek(0xa0000);
    poke(0xa0000, 0x0a); /* a color */
    cr_assert_eq(memcmp(vram, "\x00\x18\x00\x18", 4), 0);
    outw(0x3ce, 5, 0x03);
    outw(0x3ce, 0, 0x05);
    outw(0x3ce, 8, 0xff);
    peek(0xa0000);
    poke(0xa0000, 0x10); /* the CPU's byte is the mask */
    cr_assert_eq(memcmp(vram, "\x10\x08\x10\x08", 4), 0);
}

Test(vga, read_modes, .init = setup)
{
    set_mode(&mode_12h);
    memcpy(vram, "\xf0\xcc\xaa\x00", 4);
    for (uint8_t p = 0; p < 4; p++) {
        outw(0x3ce, 4, p);
        cr_assert_eq(peek(0xa0000), vram[p]);
    }
    outw(0x3ce, 5, 0x08);
    outw(0x3ce, 2, 0x03); /* which dots have color 3? */
    outw(0x3ce, 7, 0x0f);
    cr_assert_eq(peek(0xa0000), 0xf0 & 0xcc & 0x55);
    outw(0x3ce, 7, 0x00); /* no plane matters */
    cr_assert_eq(peek(0xa0000), 0xff);
}

Test(vga, chain_4_and_odd_even_addressing, .init = setup)
{
    set_mode(&mode_13h);
    for (unsigned i = 0; i < 8; i++)
        poke(0xa0000 + i, (uint8_t)(0x10 + i));
    cr_assert_eq(memcmp(vram, "\x10\x11\x12\x13", 4), 0);
    cr_assert_eq(memcmp(vram + 16, "\x14\x15\x16\x17", 4), 0, "each plane has every fourth byte");
    cr_assert_eq(peek(0xa0006), 0x16);
    io_bus_write(&memory, 0xa0000, 8, 0x0807060504030201ull);
    cr_assert_eq(io_bus_read(&memory, 0xa0000, 8), 0x0807060504030201ull);

    vga_post(&v);
    io_bus_write(&memory, 0xb8002, 2, 0x4f41);
    cr_assert_eq(vram[8], 'A');
    cr_assert_eq(vram[9], 0x4f);
    cr_assert_eq(io_bus_read(&memory, 0xb8002, 2), 0x4f41u);
}

static uint64_t dirty_from, dirty_to;

static void before_write(void *opaque, uint32_t offset, uint32_t len)
{
    dirty_from = offset;
    dirty_to = offset + len;
}

Test(vga, announces_writes, .init = setup)
{
    v.before_write = before_write;
    set_mode(&mode_12h);
    poke(0xa1234, 1);
    cr_assert_eq(dirty_from, 0x1234 * 4);
    cr_assert_eq(dirty_to, 0x1234 * 4 + 4);
}

/* -- Pictures ---------------------------------------------------------------------------------- */

Test(vga_picture, blank_until_programmed, .init = setup)
{
    render();
    cr_assert_eq(g.kind, VGA_BLANK);
    cr_assert(g.width && g.height);
    cr_assert_eq(pixel(g.width - 1, g.height - 1), 0);
}

Test(vga_picture, text_mode, .init = setup)
{
    vga_post(&v);
    render();
    cr_assert_eq(g.kind, VGA_TEXT);
    cr_assert_eq(g.width, 720);
    cr_assert_eq(g.height, 400);
    cr_assert_eq(g.columns, 80);
    cr_assert_eq(g.rows, 25);
    /* The cursor is at 0, a block of two lines in light gray. */
    cr_assert_eq(pixel(0, 13), 0xaaaaaa);
    cr_assert_eq(pixel(0, 12), 0);
    cr_assert_eq(pixel(0, 15), 0);
    outw(0x3d4, 0x0a, 0x20);
    render();
    cr_assert_eq(pixel(0, 13), 0, "cursor off");
    /* Bright yellow on blue: a full block, nine dots wide only for line characters. */
    io_bus_write(&memory, 0xb8000 + 2 * (80 * 24 + 79), 2, 0x1edb);
    render();
    cr_assert_eq(pixel(79 * 9, 24 * 16), 0xffff55);
    cr_assert_eq(pixel(79 * 9 + 8, 24 * 16 + 15), 0xffff55);
    io_bus_write(&memory, 0xb8000, 2, 0x1e00 | 'L');
    render();
    cr_assert_eq(pixel(8, 0), 0x0000aa, "the ninth dot is background");
    cr_assert_eq(pixel(1, 5), 0xffff55, "the stem of the L");
    cr_assert_eq(pixel(5, 0), 0x0000aa);
}

Test(vga_picture, blinking_text, .init = setup)
{
    vga_post(&v);
    io_bus_write(&memory, 0xb8000, 2, 0x8fdb);
    vga_geometry(&v.r, &g);
    outw(0x3d4, 0x0a, 0x20);
    vga_render(&v.r, vram, &g, true, pixels);
    cr_assert_eq(pixels[0], 0xffffff);
    vga_render(&v.r, vram, &g, false, pixels);
    cr_assert_eq(pixels[0], 0);
    set_ar(0x10, 0x04); /* no blinking: bit 7 is a bright background */
    inb(0x3da);
    outb(0x3c0, 0x20);
    io_bus_write(&memory, 0xb8000, 2, 0x8f20);
    vga_render(&v.r, vram, &g, false, pixels);
    cr_assert_eq(pixels[0], 0x555555);
}

Test(vga_picture, second_font, .init = setup)
{
    vga_post(&v);
    vram[4 * (0x4000 + 'x' * 32) + 2] = 0xff; /* map 1, first row of x */
    io_bus_write(&memory, 0xb8000, 2, 0x0f00 | 'x');
    outw(0x3c4, 3, 0x04); /* attribute bit 3 set: map 1 */
    render();
    cr_assert_eq(pixel(0, 0), 0xffffff);
    io_bus_write(&memory, 0xb8000, 2, 0x0700 | 'x');
    render();
    cr_assert_eq(pixel(0, 0), 0);
}

Test(vga_picture, text_start_address_and_split, .init = setup)
{
    char text[VGA_TEXT_MAX];

    vga_post(&v);
    for (unsigned row = 0; row < 60; row++)
        io_bus_write(&memory, 0xb8000 + 160 * row, 1, '!' + row);
    outw(0x3d4, 0x0d, 160); /* two rows down */
    cr_assert_gt(vga_text(&v.r, vram, text, sizeof(text)), 0);
    cr_assert_eq(text[0], '!' + 2);
    cr_assert_eq(text[2], '!' + 3);
    /* After 10 rows the counters start at 0 again. */
    outw(0x3d4, 0x11, 0);
    outw(0x3d4, 0x18, 159);
    outw(0x3d4, 0x07, 0x0f);
    outw(0x3d4, 0x09, 0x0f);
    cr_assert_gt(vga_text(&v.r, vram, text, sizeof(text)), 0);
    cr_assert_eq(text[2 * 9], '!' + 11);
    cr_assert_eq(text[2 * 10], '!');
    cr_assert_eq(text[2 * 11], '!' + 1);
}

Test(vga_picture, text_as_characters, .init = setup)
{
    char text[VGA_TEXT_MAX], small[50];
    static const char hello[] = "Hello, world";

    vga_post(&v);
    for (unsigned i = 0; hello[i]; i++)
        poke(0xb8000 + 2 * (i + 3), (uint8_t)hello[i]);
    poke(0xb8000 + 160, 0xc9);
    poke(0xb8000 + 162, 0xcd);
    int len = vga_text(&v.r, vram, text, sizeof(text));

    cr_assert_eq(strncmp(text, "   Hello, world\n\u2554\u2550\n\n", 24), 0, "%s", text);
    cr_assert_eq(len, 15 + 1 + 6 + 1 + 23);
    cr_assert_eq(vga_text(&v.r, vram, small, sizeof(small)), -ENOSPC);
    set_mode(&mode_13h);
    cr_assert_eq(vga_text(&v.r, vram, text, sizeof(text)), -ENODATA);
}

Test(vga_picture, mode_12h_planar, .init = setup)
{
    set_mode(&mode_12h);
    outw(0x3ce, 8, 0x80);
    outw(0x3ce, 5, 0x02);
    for (unsigned y = 0; y < 480; y++) {
        peek(0xa0000 + 80 * y + y / 8);
        poke(0xa0000 + 80 * y + y / 8, (uint8_t)y & 15);
    }
    render();
    cr_assert_eq(g.kind, VGA_GRAPHICS);
    cr_assert_eq(g.width, 640);
    cr_assert_eq(g.height, 480);
    for (unsigned y = 0; y < 480; y++) {
        cr_assert_eq(pixel(y / 8 * 8, y), dac(y & 15));
        cr_assert_eq(pixel(y / 8 * 8 + 1, y), dac(0));
    }
}

Test(vga_picture, planar_panning, .init = setup)
{
    set_mode(&mode_12h);
    vram[4 * 81] = 0x01; /* line 1, dot 15, color 1 */
    outw(0x3d4, 0x0d, 80);
    set_ar(0x13, 5);
    inb(0x3da);
    outb(0x3c0, 0x20);
    render();
    cr_assert_eq(pixel(10, 0), dac(1));
    cr_assert_eq(pixel(15, 0), dac(0));
}

Test(vga_picture, mode_13h, .init = setup)
{
    set_mode(&mode_13h);
    for (unsigned y = 0; y < 200; y++)
        for (unsigned x = 0; x < 320; x++)
            poke(0xa0000 + 320 * y + x, (uint8_t)(x ^ y));
    render();
    cr_assert_eq(g.width, 640);
    cr_assert_eq(g.height, 400);
    for (unsigned y = 0; y < 400; y++)
        for (unsigned x = 0; x < 640; x++)
            cr_assert_eq(pixel(x, y), dac(((x / 2) ^ (y / 2)) & 255));
    outb(0x3c6, 0x0f);
    render();
    cr_assert_eq(pixel(100, 0), dac(50 & 15), "the pixel mask");
}

Test(vga_picture, mode_x, .init = setup)
{
    set_mode(&mode_13h);
    outw(0x3c4, 4, 0x06); /* no chain */
    outw(0x3d4, 0x11, 0x2c);
    static const uint8_t tweak[][2] = {{0x06, 0x0d}, {0x07, 0x3e}, {0x10, 0xea},
                                       {0x11, 0x0c}, {0x12, 0xdf}, {0x14, 0x00},
                                       {0x15, 0xe7}, {0x16, 0x06}, {0x17, 0xe3}};
    for (unsigned i = 0; i < 9; i++)
        outw(0x3d4, tweak[i][0], tweak[i][1]);
    for (uint8_t p = 0; p < 4; p++) {
        outw(0x3c4, 2, (uint8_t)(1 << p));
        for (unsigned y = 0; y < 240; y++)
            for (unsigned x = p; x < 320; x += 4)
                poke(0xa0000 + 80 * y + x / 4, (uint8_t)(x + y));
    }
    render();
    cr_assert_eq(g.width, 640);
    cr_assert_eq(g.height, 480);
    for (unsigned y = 0; y < 480; y++)
        for (unsigned x = 0; x < 640; x++)
            cr_assert_eq(pixel(x, y), dac((x / 2 + y / 2) & 255));
}

Test(vga_picture, cga_modes, .init = setup)
{
    set_mode(&mode_4);
    /* Lines alternate between two banks of 8 KiB; four pixels a byte. */
    poke(0xb8000, 0x1b);
    poke(0xb8001, 0xe4);
    poke(0xba000 + 79, 0xff);
    render();
    cr_assert_eq(g.width, 640);
    cr_assert_eq(g.height, 400);
    for (unsigned x = 0; x < 4; x++) {
        cr_assert_eq(pixel(2 * x, 0), dac(x));
        cr_assert_eq(pixel(8 + 2 * x, 1), dac(3 - x));
    }
    cr_assert_eq(pixel(639, 2), dac(3));
    cr_assert_eq(pixel(639, 4), dac(0));

    memset(vram, 0, 0x40000);
    set_mode(&mode_6);
    poke(0xb8000 + 80, 0x81);
    poke(0xba000, 0x40);
    render();
    cr_assert_eq(g.width, 640);
    cr_assert_eq(pixel(0, 4), dac(1));
    cr_assert_eq(pixel(7, 5), dac(1));
    cr_assert_eq(pixel(1, 2), dac(1));
    cr_assert_eq(pixel(0, 2), dac(0));
}

/* -- VBE --------------------------------------------------------------------------------------- */

static void set_vbe_mode(unsigned x, unsigned y, unsigned bpp)
{
    set_vbe(VBE_ENABLE, 0);
    set_vbe(VBE_XRES, (uint16_t)x);
    set_vbe(VBE_YRES, (uint16_t)y);
    set_vbe(VBE_BPP, (uint16_t)bpp);
    set_vbe(VBE_ENABLE, VBE_ENABLED | VBE_LFB);
}

Test(vbe, identification_and_capabilities, .init = setup)
{
    cr_assert_eq(get_vbe(VBE_ID), 0xb0c5);
    set_vbe(VBE_ID, 0xb0c2);
    cr_assert_eq(get_vbe(VBE_ID), 0xb0c2);
    set_vbe(VBE_ID, 0x1234);
    cr_assert_eq(get_vbe(VBE_ID), 0xb0c2);
    cr_assert_eq(get_vbe(VBE_MEMORY_64K), 256);
    set_vbe(VBE_ENABLE, VBE_GETCAPS);
    cr_assert_eq(get_vbe(VBE_XRES), VGA_MAX_WIDTH);
    cr_assert_eq(get_vbe(VBE_BPP), 32);
    set_vbe(VBE_ENABLE, 0);
    cr_assert_eq(get_vbe(VBE_BPP), 8);
    cr_assert_eq(get_vbe(500), 0);
}

Test(vbe, depths, .init = setup)
{
    static const struct {
        unsigned bpp;
        uint8_t bytes[4];
        uint32_t color;
    } cases[] = {
        {15, {0x1f, 0x7c}, 0xff00ff},
        {16, {0xe0, 0x07}, 0x00ff00},
        {16, {0x21, 0x08}, 0x080408},
        {24, {0x56, 0x34, 0x12}, 0x123456},
        {32, {0x56, 0x34, 0x12, 0xff}, 0x123456},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned bytes = (cases[i].bpp + 7) / 8;

        set_vbe_mode(1920, 1080, cases[i].bpp);
        memcpy(vram + (1079 * 1920 + 1919) * bytes, cases[i].bytes, bytes);
        render();
        cr_assert_eq(g.kind, VGA_VBE);
        cr_assert_eq(g.width, 1920);
        cr_assert_eq(g.height, 1080);
        cr_assert_eq(pixel(1919, 1079), cases[i].color, "%u bpp: %#x", cases[i].bpp,
                     pixel(1919, 1079));
        cr_assert_eq(pixel(1918, 1079), 0);
    }
    set_vbe_mode(800, 600, 8);
    set_dac(200, 63, 0, 63);
    vram[800] = 200;
    render();
    cr_assert_eq(pixel(0, 1), 0xff00ff);
    set_vbe(VBE_ENABLE, VBE_ENABLED | VBE_LFB | VBE_8BIT_DAC);
    set_dac(200, 0x81, 0x12, 0xfe);
    render();
    cr_assert_eq(pixel(0, 1), 0x8112fe);
}

Test(vbe, beyond_full_hd_and_too_large, .init = setup)
{
    set_vbe_mode(2560, 1600, 32);
    cr_assert(get_vbe(VBE_ENABLE) & VBE_ENABLED);
    set_vbe_mode(3840, 2160, 16);
    cr_assert(get_vbe(VBE_ENABLE) & VBE_ENABLED);
    set_vbe_mode(3840, 2160, 32);
    cr_assert(!(get_vbe(VBE_ENABLE) & VBE_ENABLED), "does not fit into memory");
    set_vbe_mode(0, 600, 32);
    cr_assert(!(get_vbe(VBE_ENABLE) & VBE_ENABLED));
    set_vbe_mode(800, 600, 7);
    cr_assert(!(get_vbe(VBE_ENABLE) & VBE_ENABLED));
    set_vbe_mode(65535, 65535, 8);
    cr_assert(!(get_vbe(VBE_ENABLE) & VBE_ENABLED));
}

Test(vbe, clears_unless_told_not_to, .init = setup)
{
    vram[1000] = 1;
    set_vbe_mode(640, 480, 8);
    cr_assert_eq(vram[1000], 0);
    vram[1000] = 1;
    set_vbe(VBE_ENABLE, 0);
    set_vbe(VBE_ENABLE, VBE_ENABLED | VBE_NOCLEAR);
    cr_assert_eq(vram[1000], 1);
}

Test(vbe, virtual_screen_and_panning, .init = setup)
{
    set_vbe_mode(640, 480, 8);
    set_vbe(VBE_VIRT_WIDTH, 1024);
    cr_assert_eq(get_vbe(VBE_VIRT_HEIGHT), VGA_VRAM_SIZE / 1024);
    set_vbe(VBE_X_OFFSET, 100);
    set_vbe(VBE_Y_OFFSET, 50);
    set_dac(1, 63, 63, 63);
    vram[(50 + 7) * 1024 + 100 + 3] = 1;
    render();
    cr_assert_eq(pixel(3, 7), 0xffffff);
    set_vbe(VBE_X_OFFSET, 0xffff);
    cr_assert_eq(get_vbe(VBE_X_OFFSET), 1024 - 640);
    set_vbe(VBE_Y_OFFSET, 0xffff);
    cr_assert_eq(get_vbe(VBE_Y_OFFSET), VGA_VRAM_SIZE / 1024 - 480);
    render(); /* the very end of memory */
    set_vbe(VBE_VIRT_WIDTH, 65535);
    render();
}

Test(vbe, bank_window, .init = setup)
{
    outb(0x3c2, 0x63);
    set_vbe_mode(1024, 768, 32);
    set_vbe(VBE_BANK, 3);
    poke(0xa1234, 0x77);
    cr_assert_eq(vram[3 * 65536 + 0x1234], 0x77);
    cr_assert_eq(peek(0xa1234), 0x77);
    set_vbe(VBE_BANK, 0xffff);
    cr_assert_eq(get_vbe(VBE_BANK), 255);
    poke(0xaffff, 0x99);
    cr_assert_eq(vram[VGA_VRAM_SIZE - 1], 0x99);
    cr_assert_eq(peek(0xb0000), 0xff);
}

Test(vbe, planar_16_colors, .init = setup)
{
    set_mode(&mode_12h);
    set_vbe_mode(800, 600, 4);
    outw(0x3c4, 2, 0x08);
    poke(0xa0000 + 100, 0x40);
    render();
    cr_assert_eq(g.width, 800);
    cr_assert_eq(pixel(1, 1), dac(8));
    set_vbe_mode(804, 600, 4);
    cr_assert(!(get_vbe(VBE_ENABLE) & VBE_ENABLED), "no whole bytes");
}

Test(vbe, memory_mapped_registers, .init = setup)
{
    uint64_t bar = 0xfeb00000;

    cr_assert_eq(io_bus_read(&memory, bar + 0x500, 2), 0xb0c5u);
    io_bus_write(&memory, bar + 0x502, 2, 1280);
    cr_assert_eq(get_vbe(VBE_XRES), 1280);
    io_bus_write(&memory, bar + 0x402, 1, 0x63); /* miscellaneous output */
    cr_assert_eq(inb(0x3cc), 0x63);
    io_bus_write(&memory, bar + 0x414, 2, 0x1234);
    io_bus_write(&memory, bar + 0x400, 1, 0x20);
    cr_assert_eq(v.r.palette_enabled, true);
    cr_assert_eq(io_bus_read(&memory, bar + 0x604, 4), 0x1e1e1e1eu);
    cr_assert_eq(io_bus_read(&memory, bar, 4), 0u, "no EDID");
    for (uint64_t at = 0; at < VGA_MMIO_SIZE; at++)
        io_bus_write(&memory, bar + at, 4, io_bus_read(&memory, bar + at, 8));
}
