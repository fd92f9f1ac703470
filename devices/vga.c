/*
 * VGA registers and the CPU's view of video memory: see vga.h.
 *
 * The 128 KiB window at 0xa0000 goes through the graphics controller one byte at a time: a read
 * fills the four latches, a write combines data, latches and masks (IBM PS/2 Video Subsystem,
 * "Graphics Controller").  With a VBE mode enabled, the window is a plain 64 KiB bank of linear
 * video memory instead.
 */
#include "devices/vga.h"

#include <string.h>

enum { /* ports, relative to VGA_PORT */
       P_CRTC_MONO = 0x04,
       P_STATUS1_MONO = 0x0a,
       P_ATTRIBUTE = 0x10,
       P_ATTRIBUTE_READ = 0x11,
       P_MISC = 0x12, /* reads input status 0 */
       P_SEQ = 0x14,
       P_DAC_MASK = 0x16,
       P_DAC_READ = 0x17, /* reads the DAC's state */
       P_DAC_WRITE = 0x18,
       P_DAC_DATA = 0x19,
       P_FEATURE_READ = 0x1a,
       P_MISC_READ = 0x1c,
       P_GR = 0x1e,
       P_CRTC = 0x24,
       P_STATUS1 = 0x2a,
};
enum { MISC_COLOR = 0x01, MISC_RAM = 0x02 };
enum { SEQ_CLOCKING, SEQ_PLANES = 2, SEQ_MEMORY = 4 };
enum { MEMORY_SEQUENTIAL = 0x04, MEMORY_CHAIN4 = 0x08 };
enum { GR_SET, GR_SET_ENABLE, GR_COMPARE, GR_FUNCTION, GR_READ_PLANE, GR_MODE, GR_MISC, GR_CARE };
enum { GR_BIT_MASK = 8 };
enum { MODE_READ_COMPARE = 0x08, MODE_ODD_EVEN = 0x10 };
enum { GRMISC_ODD_EVEN = 0x02 };
enum { STATUS1_BLANK = 0x01, STATUS1_RETRACE = 0x08 };
enum { CR_LOCK = 0x11, CR_OVERFLOW = 0x07 };
enum { AR_INDEX_VIDEO = 0x20 };

#define VBE_ID_FIRST  0xb0c0
#define VBE_ID_LATEST 0xb0c5

/* -- Timing ------------------------------------------------------------------------------------ */

/* Vertical timing values are scattered over three registers (CR7, CR9: "overflow"). */
static unsigned vertical_total(const struct vga_regs *r)
{
    return (r->cr[6] | (r->cr[7] & 0x01) << 8 | (r->cr[7] & 0x20) << 4) + 2u;
}

static unsigned vertical_end(const struct vga_regs *r)
{
    return (r->cr[0x12] | (r->cr[7] & 0x02) << 7 | (r->cr[7] & 0x40) << 3) + 1u;
}

static unsigned retrace_start(const struct vga_regs *r)
{
    return r->cr[0x10] | (r->cr[7] & 0x04) << 6 | (r->cr[7] & 0x80) << 2;
}

/* Input status 1: where the beam would be by now. */
static uint8_t status1(const struct vga *v)
{
    static const unsigned dot_hz[4] = {25175000, 28322000, 25175000, 25175000};
    const struct vga_regs *r = &v->r;
    uint64_t dots = (r->seq[1] & 1 ? 8 : 9) * (r->seq[1] & 8 ? 2 : 1);
    uint64_t line_dots = dots * (r->cr[0] + 5u), lines = vertical_total(r);
    uint64_t hz = dot_hz[r->misc >> 2 & 3], since = timer_now(v->clock) - v->power_on;
    uint64_t frame_ns = line_dots * lines * NSEC_PER_SEC / hz;
    uint8_t status = 0;

    /* A CRTC that is not programmed, or a VBE mode, which leaves it alone: 640 x 480 at 60 Hz. */
    if ((r->vbe[VBE_ENABLE] & VBE_ENABLED) || frame_ns < 4000000 || frame_ns > 50000000) {
        line_dots = 800;
        lines = 525;
        frame_ns = NSEC_PER_SEC / 60;
    }

    uint64_t line_ns = frame_ns / lines, at = since % frame_ns;
    unsigned line = (unsigned)(at / line_ns);
    unsigned end = vertical_end(r) < lines ? vertical_end(r) : (unsigned)lines - 45;
    unsigned start = retrace_start(r), width = ((r->cr[0x11] - r->cr[0x10] - 1u) & 15) + 1;

    if (start < end || start >= lines)
        start = end + (unsigned)(lines - end) / 4;
    /* A real pulse lasts two or three lines, some 64 us; whoever polls here is slower than a real
     * machine, so it is never shorter than that. */
    if (width < 2)
        width = 2;
    if (line >= start && line < start + width)
        status |= STATUS1_RETRACE;
    /* The visible part of a line is about four fifths. */
    if (line >= end || at % line_ns >= line_ns * 4 / 5)
        status |= STATUS1_BLANK;
    return status;
}

/* -- Registers --------------------------------------------------------------------------------- */

static void write_attribute(struct vga *v, uint8_t value)
{
    if (!v->ar_data_next) {
        v->ar_index = value & 0x1f;
        v->r.palette_enabled = value & AR_INDEX_VIDEO;
    } else if (v->ar_index < sizeof(v->r.ar)) {
        /* The palette can only be written while the video is off. */
        if (v->ar_index >= 16)
            v->r.ar[v->ar_index] = value;
        else if (!v->r.palette_enabled)
            v->r.ar[v->ar_index] = value & 0x3f;
    }
    v->ar_data_next = !v->ar_data_next;
}

static void write_crtc(struct vga *v, uint8_t value)
{
    uint8_t *cr = v->r.cr;

    if (v->cr_index >= sizeof(v->r.cr))
        return;
    if ((cr[CR_LOCK] & 0x80) && v->cr_index <= 7) {
        /* Locked, but for bit 8 of the line compare. */
        if (v->cr_index == CR_OVERFLOW)
            cr[CR_OVERFLOW] = (uint8_t)((cr[CR_OVERFLOW] & ~0x10) | (value & 0x10));
        return;
    }
    cr[v->cr_index] = value;
}

static void write_dac(struct vga *v, uint8_t value)
{
    bool wide = (v->r.vbe[VBE_ENABLE] & VBE_8BIT_DAC) != 0;

    v->dac_cache[v->dac_part++] = wide ? value : value & 0x3f;
    if (v->dac_part == 3) {
        memcpy(v->r.dac[v->dac_write++], v->dac_cache, 3);
        v->dac_part = 0;
    }
}

static uint8_t read_dac(struct vga *v)
{
    uint8_t value = v->r.dac[v->dac_read][v->dac_part++];

    if (v->dac_part == 3) {
        v->dac_part = 0;
        v->dac_read++;
    }
    return value;
}

/* Which port of the CRTC pair (mono at 0x3bx, color at 0x3dx) is decoded depends on the
 * miscellaneous output register.  Gives the color number, or -1 for the pair that is not. */
static int canonical_port(const struct vga *v, unsigned port)
{
    bool color = v->r.misc & MISC_COLOR;

    if (port < 0x10)
        return color ? -1 : (int)port + 0x20;
    if (port >= 0x20)
        return color ? (int)port : -1;
    return (int)port;
}

static uint64_t vga_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vga *v = opaque;

    (void)size;
    switch (canonical_port(v, (unsigned)offset)) {
    case P_ATTRIBUTE:
        return v->ar_index | (v->r.palette_enabled ? AR_INDEX_VIDEO : 0);
    case P_ATTRIBUTE_READ:
        return v->ar_index < sizeof(v->r.ar) ? v->r.ar[v->ar_index] : 0;
    case P_MISC:
        return 0x10; /* switch sense: a color display */
    case P_SEQ:
        return v->seq_index;
    case P_SEQ + 1:
        return v->seq_index < sizeof(v->r.seq) ? v->r.seq[v->seq_index] : 0;
    case P_DAC_MASK:
        return v->r.dac_mask;
    case P_DAC_READ:
        return v->dac_reading ? 3 : 0;
    case P_DAC_WRITE:
        return v->dac_write;
    case P_DAC_DATA:
        return read_dac(v);
    case P_FEATURE_READ:
        return v->feature;
    case P_MISC_READ:
        return v->r.misc;
    case P_GR:
        return v->gr_index;
    case P_GR + 1:
        return v->gr_index < sizeof(v->r.gr) ? v->r.gr[v->gr_index] : 0;
    case P_CRTC:
        return v->cr_index;
    case P_CRTC + 1:
        return v->cr_index < sizeof(v->r.cr) ? v->r.cr[v->cr_index] : 0;
    case P_STATUS1:
        v->ar_data_next = false;
        return status1(v);
    default:
        return 0xff;
    }
}

static void vga_write(void *opaque, uint64_t offset, unsigned size, uint64_t value64)
{
    static const uint8_t gr_mask[9] = {0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff};
    static const uint8_t seq_mask[5] = {0x03, 0x3d, 0x0f, 0x3f, 0x0e};
    struct vga *v = opaque;
    uint8_t value = (uint8_t)value64;

    (void)size;
    switch (canonical_port(v, (unsigned)offset)) {
    case P_ATTRIBUTE:
        write_attribute(v, value);
        break;
    case P_MISC:
        v->r.misc = value;
        break;
    case P_SEQ:
        v->seq_index = value & 7;
        break;
    case P_SEQ + 1:
        if (v->seq_index < sizeof(v->r.seq))
            v->r.seq[v->seq_index] = value & seq_mask[v->seq_index];
        break;
    case P_DAC_MASK:
        v->r.dac_mask = value;
        break;
    case P_DAC_READ:
        v->dac_read = value;
        v->dac_part = 0;
        v->dac_reading = true;
        break;
    case P_DAC_WRITE:
        v->dac_write = value;
        v->dac_part = 0;
        v->dac_reading = false;
        break;
    case P_DAC_DATA:
        write_dac(v, value);
        break;
    case P_GR:
        v->gr_index = value & 15;
        break;
    case P_GR + 1:
        if (v->gr_index < sizeof(v->r.gr))
            v->r.gr[v->gr_index] = value & gr_mask[v->gr_index];
        break;
    case P_CRTC:
        v->cr_index = value & 0x3f;
        break;
    case P_CRTC + 1:
        write_crtc(v, value);
        break;
    case P_STATUS1:
        v->feature = value;
        break;
    default:
        break;
    }
}

const struct io_ops vga_io_ops = {.read = vga_read, .write = vga_write, .max_size = 1};

/* -- Video memory through the window ----------------------------------------------------------- */

static bool vbe_on(const struct vga *v)
{
    return v->r.vbe[VBE_ENABLE] & VBE_ENABLED;
}

static bool vbe_packed(const struct vga *v)
{
    return vbe_on(v) && v->r.vbe[VBE_BPP] >= 8;
}

/* Where in the window's memory this access falls, or -1 if the VGA does not decode it (graphics
 * controller, register 6, bits 2-3). */
static int64_t window_offset(const struct vga *v, uint64_t offset)
{
    static const struct {
        uint32_t start, size;
    } maps[4] = {{0, 0x20000}, {0, 0x10000}, {0x10000, 0x8000}, {0x18000, 0x8000}};
    unsigned map = v->r.gr[GR_MISC] >> 2 & 3;

    if (!(v->r.misc & MISC_RAM) || offset < maps[map].start ||
        offset - maps[map].start >= maps[map].size)
        return -1;
    return (int64_t)(offset - maps[map].start) +
           (vbe_on(v) ? (int64_t)v->r.vbe[VBE_BANK] << 16 : 0);
}

/* The first of the four plane bytes at plane address `at`: VGA modes see 64 KiB per plane. */
static uint32_t plane_index(const struct vga *v, uint32_t at)
{
    return vbe_on(v) ? (at & (VGA_VRAM_SIZE / 4 - 1)) * 4 : (at & 0xffff) * 4;
}

/*
 * In chain 4, address bits 0 and 1 select the plane.  A real VGA then feeds bits 14 and 15 into the
 * two freed bits of the plane address, and so does its CRTC in doubleword mode; here both leave
 * them 0, which looks the same and keeps a line of 320 pixels together.
 */
static uint8_t window_read(struct vga *v, uint32_t offset)
{
    const struct vga_regs *r = &v->r;
    unsigned plane = r->gr[GR_READ_PLANE] & 3;
    uint32_t at = offset;

    if (vbe_packed(v))
        return v->vram[offset & (VGA_VRAM_SIZE - 1)];
    if (r->seq[SEQ_MEMORY] & MEMORY_CHAIN4) {
        plane = offset & 3;
        at = offset & ~3u;
    } else if (r->gr[GR_MODE] & MODE_ODD_EVEN) {
        plane = (plane & 2) | (offset & 1);
        at = offset & ~1u;
    }
    memcpy(v->latch, v->vram + plane_index(v, at), 4);
    if (!(r->gr[GR_MODE] & MODE_READ_COMPARE))
        return v->latch[plane];

    uint8_t differs = 0;

    for (unsigned p = 0; p < 4; p++)
        if (r->gr[GR_CARE] >> p & 1)
            differs |= v->latch[p] ^ (r->gr[GR_COMPARE] >> p & 1 ? 0xff : 0x00);
    return (uint8_t)~differs;
}

static uint8_t combine(const struct vga_regs *r, uint8_t data, uint8_t latch)
{
    switch (r->gr[GR_FUNCTION] >> 3 & 3) {
    case 1:
        return data & latch;
    case 2:
        return data | latch;
    case 3:
        return data ^ latch;
    default:
        return data;
    }
}

/* What the graphics controller makes of the CPU's byte for one plane. */
static uint8_t plane_data(const struct vga *v, unsigned p, uint8_t value)
{
    const struct vga_regs *r = &v->r;
    unsigned rotate = r->gr[GR_FUNCTION] & 7;
    uint8_t rotated = (uint8_t)(value >> rotate | value << (8 - rotate));
    uint8_t set = r->gr[GR_SET] >> p & 1 ? 0xff : 0x00;
    uint8_t mask = r->gr[GR_BIT_MASK], latch = v->latch[p], data;

    switch (r->gr[GR_MODE] & 3) {
    case 1:
        return latch;
    case 2:
        data = combine(r, value >> p & 1 ? 0xff : 0x00, latch);
        break;
    case 3:
        mask &= rotated;
        data = combine(r, set, latch);
        break;
    default:
        data = combine(r, r->gr[GR_SET_ENABLE] >> p & 1 ? set : rotated, latch);
        break;
    }
    return (uint8_t)((data & mask) | (latch & ~mask));
}

static void window_write(struct vga *v, uint32_t offset, uint8_t value)
{
    const struct vga_regs *r = &v->r;
    unsigned planes = r->seq[SEQ_PLANES];
    uint32_t at = offset, index;

    if (vbe_packed(v)) {
        offset &= VGA_VRAM_SIZE - 1;
        if (v->before_write)
            v->before_write(v->before_write_opaque, offset, 1);
        v->vram[offset] = value;
        return;
    }
    if (r->seq[SEQ_MEMORY] & MEMORY_CHAIN4) {
        planes &= 1u << (offset & 3);
        at = offset & ~3u;
    } else if (!(r->seq[SEQ_MEMORY] & MEMORY_SEQUENTIAL)) {
        planes &= offset & 1 ? 0xa : 0x5;
        if (r->gr[GR_MISC] & GRMISC_ODD_EVEN)
            at = offset & ~1u;
    }
    index = plane_index(v, at);
    if (v->before_write)
        v->before_write(v->before_write_opaque, index, 4);
    for (unsigned p = 0; p < 4; p++)
        if (planes >> p & 1)
            v->vram[index + p] = plane_data(v, p, value);
}

static uint64_t vga_window_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vga *v = opaque;
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        int64_t at = window_offset(v, offset + i);
        uint64_t byte = at < 0 ? 0xff : window_read(v, (uint32_t)at);

        value |= byte << (8 * i);
    }
    return value;
}

static void vga_window_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct vga *v = opaque;

    for (unsigned i = 0; i < size; i++) {
        int64_t at = window_offset(v, offset + i);

        if (at >= 0)
            window_write(v, (uint32_t)at, (uint8_t)(value >> (8 * i)));
    }
}

const struct io_ops vga_window_ops = {
    .read = vga_window_read,
    .write = vga_window_write,
    .max_size = 8,
};

/* -- Bochs VBE --------------------------------------------------------------------------------- */

/* Bytes from one line to the next. */
static uint32_t vbe_pitch(const struct vga_regs *r, unsigned virt_width)
{
    unsigned bpp = r->vbe[VBE_BPP];

    if (bpp == 4) /* per plane, and four planes share vram */
        return virt_width / 8 * 4;
    return virt_width * ((bpp + 7) / 8);
}

/* Virtual width and height, and what panning they leave, so that everything shown is in memory. */
static void vbe_fit(struct vga *v)
{
    uint16_t *b = v->r.vbe;
    unsigned max_pitch = VGA_VRAM_SIZE / (b[VBE_YRES] ? b[VBE_YRES] : 1);

    if (b[VBE_VIRT_WIDTH] < b[VBE_XRES] || vbe_pitch(&v->r, b[VBE_VIRT_WIDTH]) > max_pitch)
        b[VBE_VIRT_WIDTH] = b[VBE_XRES];
    if (b[VBE_BPP] == 4)
        b[VBE_VIRT_WIDTH] &= (uint16_t)~7u;

    uint32_t pitch = vbe_pitch(&v->r, b[VBE_VIRT_WIDTH]);
    uint32_t lines = pitch ? VGA_VRAM_SIZE / pitch : 0;

    b[VBE_VIRT_HEIGHT] = (uint16_t)(lines > 0xffff ? 0xffff : lines);
    if (b[VBE_X_OFFSET] > b[VBE_VIRT_WIDTH] - b[VBE_XRES])
        b[VBE_X_OFFSET] = (uint16_t)(b[VBE_VIRT_WIDTH] - b[VBE_XRES]);
    if (b[VBE_Y_OFFSET] > b[VBE_VIRT_HEIGHT] - b[VBE_YRES])
        b[VBE_Y_OFFSET] = (uint16_t)(b[VBE_VIRT_HEIGHT] - b[VBE_YRES]);
}

static bool vbe_mode_valid(const struct vga_regs *r)
{
    const uint16_t *b = r->vbe;
    uint32_t pitch = vbe_pitch(r, b[VBE_XRES]);

    switch (b[VBE_BPP]) {
    case 4:
    case 8:
    case 15:
    case 16:
    case 24:
    case 32:
        break;
    default:
        return false;
    }
    if (b[VBE_BPP] == 4 && (b[VBE_XRES] & 7))
        return false;
    return b[VBE_XRES] >= 8 && b[VBE_YRES] && b[VBE_XRES] <= VGA_MAX_WIDTH &&
           b[VBE_YRES] <= VGA_MAX_HEIGHT && (uint64_t)pitch * b[VBE_YRES] <= VGA_VRAM_SIZE;
}

static void vbe_enable(struct vga *v, uint16_t value)
{
    struct vga_regs *r = &v->r;
    bool was_on = vbe_on(v);

    if (!(value & VBE_ENABLED) || !vbe_mode_valid(r)) {
        r->vbe[VBE_ENABLE] = value & (uint16_t)~VBE_ENABLED;
        r->vbe[VBE_BANK] = 0;
        return;
    }
    r->vbe[VBE_ENABLE] = value;
    if (was_on)
        return;
    r->vbe[VBE_VIRT_WIDTH] = r->vbe[VBE_XRES];
    r->vbe[VBE_X_OFFSET] = r->vbe[VBE_Y_OFFSET] = r->vbe[VBE_BANK] = 0;
    vbe_fit(v);
    if (!(value & VBE_NOCLEAR)) {
        uint32_t len = vbe_pitch(r, r->vbe[VBE_VIRT_WIDTH]) * r->vbe[VBE_YRES];

        if (v->before_write)
            v->before_write(v->before_write_opaque, 0, len);
        memset(v->vram, 0, len);
    }
    /* The VGA BIOS relies on the mode switch to prepare the window: graphics, 64 KiB at 0xa0000,
     * all planes, chained where pixels are packed. */
    r->gr[GR_MISC] = (uint8_t)((r->gr[GR_MISC] & ~0x0e) | 0x05);
    r->gr[GR_MODE] &= (uint8_t)~0x60;
    r->cr[0x17] |= 3;
    r->cr[9] &= (uint8_t)~0x9f;
    r->cr[0x18] = 0xff;
    r->cr[7] |= 0x10;
    r->cr[9] |= 0x40;
    if (r->vbe[VBE_BPP] == 4) {
        r->seq[SEQ_MEMORY] &= (uint8_t)~MEMORY_CHAIN4;
    } else {
        r->seq[SEQ_MEMORY] |= MEMORY_CHAIN4;
        r->gr[GR_MODE] |= 0x40;
    }
    r->seq[SEQ_PLANES] = 0x0f;
}

static uint16_t vbe_read_register(const struct vga *v, unsigned index)
{
    bool caps = v->r.vbe[VBE_ENABLE] & VBE_GETCAPS;

    switch (index) {
    case VBE_XRES:
        return caps ? VGA_MAX_WIDTH : v->r.vbe[index];
    case VBE_YRES:
        return caps ? VGA_MAX_HEIGHT : v->r.vbe[index];
    case VBE_BPP:
        return caps ? 32 : v->r.vbe[index];
    case VBE_MEMORY_64K:
        return VGA_VRAM_SIZE >> 16;
    default:
        return index < VBE_REGS ? v->r.vbe[index] : 0;
    }
}

static void vbe_write_register(struct vga *v, unsigned index, uint16_t value)
{
    uint16_t *b = v->r.vbe;

    switch (index) {
    case VBE_ID:
        if (value >= VBE_ID_FIRST && value <= VBE_ID_LATEST)
            b[VBE_ID] = value;
        break;
    case VBE_XRES:
    case VBE_YRES:
    case VBE_BPP:
        if (vbe_on(v)) /* the mode is fixed while it is shown */
            break;
        if (index == VBE_BPP && value == 0)
            value = 8;
        b[index] = value;
        break;
    case VBE_ENABLE:
        vbe_enable(v, value);
        break;
    case VBE_BANK:
        b[index] = value & ((VGA_VRAM_SIZE >> 16) - 1);
        break;
    case VBE_VIRT_WIDTH:
    case VBE_X_OFFSET:
    case VBE_Y_OFFSET:
        b[index] = value;
        if (vbe_on(v))
            vbe_fit(v);
        break;
    default:
        break;
    }
}

static uint64_t vbe_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct vga *v = opaque;

    if (size != 2)
        return UINT64_MAX;
    return offset == 0 ? v->vbe_index : vbe_read_register(v, v->vbe_index);
}

static void vbe_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct vga *v = opaque;

    if (size != 2)
        return;
    if (offset == 0)
        v->vbe_index = (uint16_t)value;
    else
        vbe_write_register(v, v->vbe_index, (uint16_t)value);
}

const struct io_ops vbe_io_ops = {.read = vbe_read, .write = vbe_write, .max_size = 2};

/* -- BAR 2 ------------------------------------------------------------------------------------- */

enum { MMIO_PORTS = 0x400, MMIO_PORTS_SIZE = 0x20, MMIO_VBE = 0x500, MMIO_EXTENDED = 0x600 };

#define MMIO_LITTLE_ENDIAN 0x1e1e1e1e

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vga *v = opaque;

    if (offset >= MMIO_PORTS && offset + size <= MMIO_PORTS + MMIO_PORTS_SIZE) {
        uint64_t value = 0;

        for (unsigned i = 0; i < size; i++)
            value |= vga_read(v, offset - MMIO_PORTS + 0x10 + i, 1) << (8 * i);
        return value;
    }
    if (offset >= MMIO_VBE && offset < MMIO_VBE + 2 * VBE_REGS && size == 2 && !(offset & 1))
        return vbe_read_register(v, (unsigned)(offset - MMIO_VBE) / 2);
    if (offset == MMIO_EXTENDED && size == 4)
        return 8; /* bytes of extended registers */
    if (offset == MMIO_EXTENDED + 4 && size == 4)
        return MMIO_LITTLE_ENDIAN;
    return 0; /* no EDID */
}

static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct vga *v = opaque;

    if (offset >= MMIO_PORTS && offset + size <= MMIO_PORTS + MMIO_PORTS_SIZE) {
        for (unsigned i = 0; i < size; i++)
            vga_write(v, offset - MMIO_PORTS + 0x10 + i, 1, value >> (8 * i) & 0xff);
        return;
    }
    if (offset >= MMIO_VBE && offset < MMIO_VBE + 2 * VBE_REGS && size == 2 && !(offset & 1))
        vbe_write_register(v, (unsigned)(offset - MMIO_VBE) / 2, (uint16_t)value);
}

const struct io_ops vga_mmio_ops = {.read = mmio_read, .write = mmio_write, .max_size = 4};

/* -- Life -------------------------------------------------------------------------------------- */

void vga_reset(struct vga *v)
{
    memset(&v->r, 0, sizeof(v->r));
    v->r.misc = MISC_COLOR;
    v->r.dac_mask = 0xff;
    v->r.vbe[VBE_ID] = VBE_ID_LATEST;
    v->r.vbe[VBE_BPP] = 8;
    memset(v->latch, 0, sizeof(v->latch));
    v->seq_index = v->gr_index = v->ar_index = v->cr_index = 0;
    v->ar_data_next = v->dac_reading = false;
    v->feature = v->dac_read = v->dac_write = v->dac_part = 0;
    v->vbe_index = 0;
    v->power_on = timer_now(v->clock);
}

void vga_init(struct vga *v, uint8_t *vram, const struct timer_queue *clock)
{
    memset(v, 0, sizeof(*v));
    v->vram = vram;
    v->clock = clock;
    vga_reset(v);
}

void vga_post(struct vga *v)
{
    /* IBM PS/2 Video Subsystem, "Mode 3+": 720 x 400, 9 x 16 characters. */
    static const uint8_t seq[5] = {0x03, 0x00, 0x03, 0x00, 0x02};
    static const uint8_t gr[9] = {0, 0, 0, 0, 0, 0x10, 0x0e, 0x0f, 0xff};
    static const uint8_t ar[0x15] = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14,
                                     0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d,
                                     0x3e, 0x3f, 0x0c, 0x00, 0x0f, 0x08, 0x00};
    static const uint8_t cr[0x19] = {0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00,
                                     0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, 0x9c, 0x8e,
                                     0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff};
    struct vga_regs *r = &v->r;

    vga_reset(v);
    r->misc = 0x67;
    memcpy(r->seq, seq, sizeof(seq));
    memcpy(r->gr, gr, sizeof(gr));
    memcpy(r->ar, ar, sizeof(ar));
    memcpy(r->cr, cr, sizeof(cr));
    r->palette_enabled = true;
    for (unsigned i = 0; i < 64; i++) /* EGA colors: rgbRGB, two thirds and one third */
        for (unsigned c = 0; c < 3; c++)
            r->dac[i][c] = (uint8_t)((i >> (2 - c) & 1) * 0x2a + (i >> (5 - c) & 1) * 0x15);
    if (v->before_write)
        v->before_write(v->before_write_opaque, 0, 0x10000 * 4);
    memset(v->vram, 0, 0x10000 * 4);
    for (unsigned at = 0; at < 0x8000; at += 2) {
        v->vram[4 * at] = ' ';
        v->vram[4 * at + 1] = 0x07;
    }
    for (unsigned c = 0; c < 256; c++) {
        uint8_t rows[16];

        vga_font_glyph((uint8_t)c, rows);
        for (unsigned y = 0; y < 16; y++)
            v->vram[4 * (c * 32 + y) + 2] = rows[y];
    }
}
