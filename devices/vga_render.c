/*
 * From VGA registers and video memory to a picture, scan line by scan line as the CRT controller
 * and the attribute controller make it: see vga.h.
 *
 * The CRTC counts character clocks.  For each it forms an address (byte, word or doubleword mode;
 * some bits replaced by the row scan counter, which gives CGA and Hercules their interleaved
 * lines), fetches one byte from each plane, and the shift registers turn the four bytes into 8
 * dots (9 in text).  Start address, panning, line compare (split screen), double scan and row scan
 * height apply to all modes alike, so tricks with them work.  VBE modes bypass all that.
 */
#include "devices/vga.h"

#include <errno.h>
#include <string.h>

enum { ARM_GRAPHICS = 0x01, ARM_MONO = 0x02, ARM_LINE_GRAPHICS = 0x04, ARM_BLINK = 0x08 };
enum { ARM_PAN_COMPARE = 0x20, ARM_8BIT = 0x40, ARM_P54 = 0x80 };
enum { AR_MODE = 0x10, AR_PLANES = 0x12, AR_PANNING = 0x13, AR_COLOR_SELECT = 0x14 };
enum { SHIFT_SINGLE, SHIFT_CGA };
enum { MAX_ROWS = 128 }; /* of text; more would be characters of less than 16 lines */

/* -- Geometry ---------------------------------------------------------------------------------- */

static unsigned display_lines(const struct vga_regs *r)
{
    unsigned end = (r->cr[0x12] | (r->cr[7] & 0x02) << 7 | (r->cr[7] & 0x40) << 3) + 1u;

    return r->cr[0x17] & 4 ? end * 2 : end;
}

static unsigned row_height(const struct vga_regs *r)
{
    return (r->cr[9] & 0x1f) + 1u;
}

static bool double_scan(const struct vga_regs *r)
{
    return r->cr[9] & 0x80;
}

static unsigned char_width(const struct vga_regs *r)
{
    return !(r->ar[AR_MODE] & ARM_GRAPHICS) && !(r->seq[1] & 1) ? 9 : 8;
}

void vga_geometry(const struct vga_regs *r, struct vga_geometry *g)
{
    *g = (struct vga_geometry){.kind = VGA_BLANK, .width = 640, .height = 480};
    if (r->vbe[VBE_ENABLE] & VBE_ENABLED) {
        g->kind = VGA_VBE;
        g->width = r->vbe[VBE_XRES];
        g->height = r->vbe[VBE_YRES];
        g->bpp = r->vbe[VBE_BPP];
        return;
    }
    /* Sequencer in reset, screen switched off, attribute controller without video, CRTC stopped
     * or never programmed: nothing to see. */
    if (!(r->cr[0x17] & 0x80) || r->cr[1] == 0)
        return;
    g->width = (r->cr[1] + 1u) * char_width(r) * (r->seq[1] & 8 ? 2 : 1);
    g->height = display_lines(r);
    if (g->width > VGA_MAX_WIDTH)
        g->width = VGA_MAX_WIDTH;
    if (!r->palette_enabled || (r->seq[1] & 0x20) || (r->seq[0] & 3) != 3)
        return;
    if (r->ar[AR_MODE] & ARM_GRAPHICS) {
        g->kind = VGA_GRAPHICS;
        return;
    }
    g->kind = VGA_TEXT;
    g->columns = r->cr[1] + 1u;
    g->rows = g->height / (row_height(r) * (double_scan(r) ? 2 : 1));
    if (g->rows > MAX_ROWS)
        g->rows = MAX_ROWS;
}

/* -- Colors ------------------------------------------------------------------------------------ */

struct palette {
    uint32_t dac[256];  /* behind the pixel mask */
    uint32_t color[16]; /* through the attribute controller as well */
};

static void build_palette(const struct vga_regs *r, struct palette *p)
{
    bool wide = r->vbe[VBE_ENABLE] & VBE_8BIT_DAC;

    for (unsigned i = 0; i < 256; i++) {
        const uint8_t *c = r->dac[i & r->dac_mask];
        uint32_t rgb = 0;

        for (unsigned k = 0; k < 3; k++) {
            unsigned level = wide ? c[k] : (c[k] & 0x3fu) << 2 | (c[k] & 0x3fu) >> 4;

            rgb = rgb << 8 | level;
        }
        p->dac[i] = rgb;
    }
    for (unsigned i = 0; i < 16; i++) {
        unsigned index = r->ar[i] & 0x3f;

        if (r->ar[AR_MODE] & ARM_P54)
            index = (index & 0x0f) | (r->ar[AR_COLOR_SELECT] & 3u) << 4;
        index |= (r->ar[AR_COLOR_SELECT] & 0x0cu) << 4;
        p->color[i] = p->dac[index];
    }
}

/* -- The CRTC ---------------------------------------------------------------------------------- */

/* The state of the counters at one scan line. */
struct scan {
    uint32_t address; /* of the row's first character */
    unsigned row;     /* row scan counter */
    bool split;       /* below the line compare */
};

static uint32_t start_address(const struct vga_regs *r)
{
    return (uint32_t)(r->cr[0x0c] << 8 | r->cr[0x0d]) + (r->cr[8] >> 5 & 3);
}

static unsigned line_compare(const struct vga_regs *r)
{
    unsigned line = r->cr[0x18] | (r->cr[7] & 0x10u) << 4 | (r->cr[9] & 0x40u) << 3;

    return r->cr[0x17] & 4 ? line * 2 : line;
}

/* Steps to the line after y. */
static void next_line(const struct vga_regs *r, struct scan *s, unsigned y)
{
    if (y == line_compare(r)) {
        *s = (struct scan){.split = true};
        return;
    }
    if (double_scan(r) && !(y & 1))
        return;
    if (s->row < row_height(r) - 1) {
        s->row++;
        return;
    }
    s->row = 0;
    s->address += r->cr[0x13] * 2u;
}

/* The plane address that character clock `counter` fetches from. */
static uint32_t fetch_address(const struct vga_regs *r, uint32_t counter, unsigned row)
{
    uint32_t at;

    if (r->cr[0x14] & 0x40)
        at =
            counter << 2; /* bits 0 and 1 have the same source as the CPU's in chain 4: see vga.c */
    else if (!(r->cr[0x17] & 0x40))
        at = counter << 1 | (r->cr[0x17] & 0x20 ? counter >> 15 & 1 : counter >> 13 & 1);
    else
        at = counter;
    if (!(r->cr[0x17] & 1))
        at = (at & ~0x2000u) | (row & 1) << 13;
    if (!(r->cr[0x17] & 2))
        at = (at & ~0x4000u) | (row >> 1 & 1) << 14;
    return at & 0xffff;
}

/* Dots by which the picture is shifted left. */
static unsigned panning(const struct vga_regs *r, const struct scan *s)
{
    unsigned pan = r->ar[AR_PANNING] & 15;

    if (s->split && (r->ar[AR_MODE] & ARM_PAN_COMPARE))
        return 0;
    if (char_width(r) == 9)
        return pan >= 8 ? 0 : pan + 1;
    if (r->ar[AR_MODE] & ARM_8BIT) /* two dots a pixel */
        return pan & 6;
    return pan & 7;
}

/* -- Text -------------------------------------------------------------------------------------- */

/* Byte offset in plane 2 of a character map (sequencer, register 3). */
static unsigned font_offset(unsigned map)
{
    return (map & 3) * 0x4000 + (map & 4 ? 0x2000 : 0);
}

struct text_style {
    unsigned font[2]; /* by attribute bit 3 */
    bool blink, blink_on, cursor_on;
};

/* The 9 dots (bit 8 first) of one row of a character, and its two colors. */
static unsigned text_cell(const struct vga_regs *r, const uint8_t *vram, const struct text_style *t,
                          uint32_t counter, unsigned row, unsigned *fg, unsigned *bg)
{
    const uint8_t *cell = vram + 4 * fetch_address(r, counter, row);
    uint8_t c = cell[0], attr = cell[1];
    uint8_t bits = vram[4 * ((t->font[attr >> 3 & 1] + c * 32u + row) & 0xffff) + 2];
    unsigned dots = (unsigned)bits << 1;
    unsigned cursor = (unsigned)(r->cr[0x0e] << 8 | r->cr[0x0f]);

    /* Line-drawing characters reach into the ninth dot. */
    if ((r->ar[AR_MODE] & ARM_LINE_GRAPHICS) && c >= 0xc0 && c <= 0xdf)
        dots |= bits & 1;
    *fg = attr & 15;
    *bg = attr >> 4;
    if (t->blink) {
        *bg &= 7;
        if ((attr & 0x80) && !t->blink_on)
            dots = 0;
    }
    if ((r->ar[AR_MODE] & ARM_MONO) && (attr & 7) == 1 && row == (r->cr[0x14] & 0x1fu))
        dots = 0x1ff;
    if (t->cursor_on && (counter & 0xffff) == cursor && row >= (r->cr[0x0a] & 0x1fu) &&
        row <= (r->cr[0x0b] & 0x1fu))
        dots = 0x1ff;
    return dots;
}

static struct text_style text_style(const struct vga_regs *r, bool blink_on)
{
    unsigned map = r->seq[3];

    return (struct text_style){
        .font = {font_offset((map & 3) | (map >> 2 & 4)),
                 font_offset((map >> 2 & 3) | (map >> 3 & 4))},
        .blink = r->ar[AR_MODE] & ARM_BLINK,
        .blink_on = blink_on,
        .cursor_on = blink_on && !(r->cr[0x0a] & 0x20),
    };
}

/* -- One scan line ----------------------------------------------------------------------------- */

/* The 8 dots of one character clock in a graphics mode, as palette or DAC colors. */
static void graphics_clock(const struct vga_regs *r, const struct palette *p, const uint8_t *planes,
                           uint32_t dots[8])
{
    unsigned shift = r->gr[5] >> 5 & 3, enable = r->ar[AR_PLANES] & 15;

    for (unsigned i = 0; i < 8; i++) {
        unsigned index = 0;

        if (shift == SHIFT_SINGLE) {
            for (unsigned k = 0; k < 4; k++)
                index |= (planes[k] >> (7 - i) & 1u) << k;
        } else if (shift == SHIFT_CGA) { /* two bits a pixel from planes 0 and 1, two from 2, 3 */
            unsigned odd = i / 4, bit = 6 - 2 * (i % 4);

            index = (planes[odd] >> bit & 3u) | (planes[2 + odd] >> bit & 3u) << 2;
        } else { /* 256 colors: each plane's byte is a pixel two dots wide */
            dots[i] = p->dac[planes[i / 2]];
            continue;
        }
        dots[i] = p->color[index & enable];
    }
}

static void scan_line(const struct vga_regs *r, const uint8_t *vram, const struct vga_geometry *g,
                      const struct palette *p, const struct text_style *text, const struct scan *s,
                      uint32_t *out)
{
    unsigned repeat = r->seq[1] & 8 ? 2 : 1, width = char_width(r), x = 0;
    unsigned skip = panning(r, s) * repeat;

    for (uint32_t clock = 0; x < g->width + skip; clock++) {
        uint32_t dots[9];

        if (g->kind == VGA_TEXT) {
            unsigned fg, bg;
            unsigned bits = text_cell(r, vram, text, s->address + clock, s->row, &fg, &bg);

            for (unsigned i = 0; i < width; i++)
                dots[i] = p->color[bits >> (8 - i) & 1 ? fg : bg];
        } else {
            graphics_clock(r, p, vram + 4 * fetch_address(r, s->address + clock, s->row), dots);
        }
        for (unsigned i = 0; i < width * repeat; i++, x++)
            if (x >= skip && x - skip < g->width)
                out[x - skip] = dots[i / repeat];
    }
}

/* -- VBE --------------------------------------------------------------------------------------- */

static void vbe_planar_line(const struct palette *p, unsigned enable, const uint8_t *line,
                            unsigned x_offset, unsigned width, uint32_t *out)
{
    for (unsigned x = 0; x < width; x++) {
        const uint8_t *planes = line + (x + x_offset) / 8 * 4;
        unsigned index = 0;

        for (unsigned k = 0; k < 4; k++)
            index |= (planes[k] >> (7 - (x + x_offset) % 8) & 1u) << k;
        out[x] = p->color[index & enable];
    }
}

static uint32_t expand5(unsigned level)
{
    return level << 3 | level >> 2;
}

static void vbe_packed_line(const struct palette *p, unsigned bpp, const uint8_t *at,
                            unsigned width, uint32_t *out)
{
    for (unsigned x = 0; x < width; x++) {
        uint32_t pixel;

        switch (bpp) {
        case 8:
            out[x] = p->dac[at[x]];
            break;
        case 15:
            pixel = at[2 * x] | (uint32_t)at[2 * x + 1] << 8;
            out[x] = expand5(pixel >> 10 & 31) << 16 | expand5(pixel >> 5 & 31) << 8 |
                     expand5(pixel & 31);
            break;
        case 16:
            pixel = at[2 * x] | (uint32_t)at[2 * x + 1] << 8;
            out[x] = expand5(pixel >> 11) << 16 | ((pixel >> 3 & 0xfc) | (pixel >> 9 & 3)) << 8 |
                     expand5(pixel & 31);
            break;
        case 24:
            out[x] = at[3 * x] | (uint32_t)at[3 * x + 1] << 8 | (uint32_t)at[3 * x + 2] << 16;
            break;
        default:
            memcpy(&pixel, at + 4 * x, 4);
            out[x] = pixel & 0xffffff;
            break;
        }
    }
}

/* The device keeps offsets and sizes such that all of it is inside video memory (vbe_fit()). */
static void render_vbe(const struct vga_regs *r, const uint8_t *vram, const struct vga_geometry *g,
                       const struct palette *p, uint32_t *pixels)
{
    const uint16_t *b = r->vbe;
    unsigned bytes = (g->bpp + 7) / 8;
    size_t pitch = g->bpp == 4 ? b[VBE_VIRT_WIDTH] / 8 * 4u : b[VBE_VIRT_WIDTH] * bytes;

    for (unsigned y = 0; y < g->height; y++, pixels += g->width) {
        const uint8_t *line = vram + (y + b[VBE_Y_OFFSET]) * pitch;

        if (g->bpp == 4)
            vbe_planar_line(p, r->ar[AR_PLANES] & 15, line, b[VBE_X_OFFSET], g->width, pixels);
        else
            vbe_packed_line(p, g->bpp, line + b[VBE_X_OFFSET] * bytes, g->width, pixels);
    }
}

/* -- The whole picture ------------------------------------------------------------------------- */

static struct scan first_line(const struct vga_regs *r)
{
    unsigned preset = r->cr[8] & 0x1f;

    return (struct scan){.address = start_address(r),
                         .row = preset < row_height(r) ? preset : row_height(r) - 1};
}

void vga_render(const struct vga_regs *r, const uint8_t *vram, const struct vga_geometry *g,
                bool blink_on, uint32_t *pixels)
{
    struct text_style text = text_style(r, blink_on);
    struct scan s = first_line(r);
    struct palette p;

    build_palette(r, &p);
    if (g->kind == VGA_BLANK) {
        memset(pixels, 0, (size_t)g->width * g->height * sizeof(*pixels));
        return;
    }
    if (g->kind == VGA_VBE) {
        render_vbe(r, vram, g, &p, pixels);
        return;
    }
    for (unsigned y = 0; y < g->height; y++, pixels += g->width) {
        scan_line(r, vram, g, &p, &text, &s, pixels);
        next_line(r, &s, y);
    }
}

/* -- Text as characters ------------------------------------------------------------------------ */

/* Code page 437 as Unicode: 0x00-0x1f, 0x7f-0xff.  NUL is a blank on the screen. */
static const uint16_t cp437_low[32] = {
    0x0020, 0x263a, 0x263b, 0x2665, 0x2666, 0x2663, 0x2660, 0x2022, 0x25d8, 0x25cb, 0x25d9,
    0x2642, 0x2640, 0x266a, 0x266b, 0x263c, 0x25ba, 0x25c4, 0x2195, 0x203c, 0x00b6, 0x00a7,
    0x25ac, 0x21a8, 0x2191, 0x2193, 0x2192, 0x2190, 0x221f, 0x2194, 0x25b2, 0x25bc};
static const uint16_t cp437_high[129] = {
    0x2302, 0x00c7, 0x00fc, 0x00e9, 0x00e2, 0x00e4, 0x00e0, 0x00e5, 0x00e7, 0x00ea, 0x00eb, 0x00e8,
    0x00ef, 0x00ee, 0x00ec, 0x00c4, 0x00c5, 0x00c9, 0x00e6, 0x00c6, 0x00f4, 0x00f6, 0x00f2, 0x00fb,
    0x00f9, 0x00ff, 0x00d6, 0x00dc, 0x00a2, 0x00a3, 0x00a5, 0x20a7, 0x0192, 0x00e1, 0x00ed, 0x00f3,
    0x00fa, 0x00f1, 0x00d1, 0x00aa, 0x00ba, 0x00bf, 0x2310, 0x00ac, 0x00bd, 0x00bc, 0x00a1, 0x00ab,
    0x00bb, 0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563, 0x2551,
    0x2557, 0x255d, 0x255c, 0x255b, 0x2510, 0x2514, 0x2534, 0x252c, 0x251c, 0x2500, 0x253c, 0x255e,
    0x255f, 0x255a, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256c, 0x2567, 0x2568, 0x2564, 0x2565,
    0x2559, 0x2558, 0x2552, 0x2553, 0x256b, 0x256a, 0x2518, 0x250c, 0x2588, 0x2584, 0x258c, 0x2590,
    0x2580, 0x03b1, 0x00df, 0x0393, 0x03c0, 0x03a3, 0x03c3, 0x00b5, 0x03c4, 0x03a6, 0x0398, 0x03a9,
    0x03b4, 0x221e, 0x03c6, 0x03b5, 0x2229, 0x2261, 0x00b1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00f7,
    0x2248, 0x00b0, 0x2219, 0x00b7, 0x221a, 0x207f, 0x00b2, 0x25a0, 0x00a0};

static size_t put_utf8(uint8_t c, char *out)
{
    unsigned u = c < 0x20 ? cp437_low[c] : c < 0x7f ? c : c == 0xff ? ' ' : cp437_high[c - 0x7f];

    if (u < 0x80) {
        out[0] = (char)u;
        return 1;
    }
    if (u < 0x800) {
        out[0] = (char)(0xc0 | u >> 6);
        out[1] = (char)(0x80 | (u & 0x3f));
        return 2;
    }
    out[0] = (char)(0xe0 | u >> 12);
    out[1] = (char)(0x80 | (u >> 6 & 0x3f));
    out[2] = (char)(0x80 | (u & 0x3f));
    return 3;
}

int vga_text(const struct vga_regs *r, const uint8_t *vram, char *out, size_t len)
{
    struct vga_geometry g;
    size_t used = 0;

    vga_geometry(r, &g);
    if (g.kind != VGA_TEXT)
        return -ENODATA;
    memset(out, 0, len);

    struct scan s = first_line(r);
    unsigned y = 0, line_height = row_height(r) * (double_scan(r) ? 2 : 1);

    for (unsigned row = 0; row < g.rows; row++) {
        size_t end = used; /* behind the last character that is no blank */

        for (unsigned column = 0; column < g.columns; column++) {
            uint8_t c = vram[4 * fetch_address(r, s.address + column, 0)];

            if (used + 5 > len)
                return -ENOSPC;
            used += put_utf8(c, out + used);
            if (c != 0 && c != ' ' && c != 0xff)
                end = used;
        }
        memset(out + end, 0, used - end);
        out[end] = '\n';
        used = end + 1;
        for (unsigned i = 0; i < line_height; i++, y++)
            next_line(r, &s, y);
    }
    return (int)used;
}
