/*
 * A VGA with the Bochs VBE extension: the "standard VGA" (PCI 1234:1111) that Linux (bochs-drm,
 * efifb, vgacon), SeaBIOS' VGA BIOS and OVMF know.  Register names and numbers follow IBM's "PS/2
 * Video Subsystem" technical reference and the FreeVGA description; the VBE registers ("DISPI")
 * and the layout of the memory-mapped BAR are those of Bochs' vgabios and QEMU's stdvga
 * documentation.
 *
 * The device is in three files: vga.c holds registers and the CPU's side of video memory,
 * vga_render.c turns them into a picture, vga_font.c has a character set for machines that start
 * without a VGA BIOS.  Nothing is drawn unless somebody asks: a viewer copies `struct vga_regs`
 * under the machine lock and renders from the copy, without the lock.
 *
 * Video memory holds plane p's byte at address a in vram[4 * a + p]; a packed VBE mode is linear in
 * vram.  This is the same memory that the linear frame buffer BAR maps into the guest.
 */
#ifndef RINGSHIFT_DEVICES_VGA_H
#define RINGSHIFT_DEVICES_VGA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/bus.h"
#include "devices/timer.h"

#define VGA_PORT        0x3b0
#define VGA_PORTS       0x30
#define VBE_PORT        0x1ce
#define VBE_PORTS       4
#define VGA_WINDOW      0xa0000u
#define VGA_WINDOW_SIZE 0x20000u
#define VGA_VRAM_SIZE   (16u << 20)
#define VGA_MMIO_SIZE   0x1000u

/* The largest VBE mode; what it needs must also fit into video memory. */
#define VGA_MAX_WIDTH  4096u
#define VGA_MAX_HEIGHT 2304u

enum vbe_index { /* DISPI registers */
                 VBE_ID,
                 VBE_XRES,
                 VBE_YRES,
                 VBE_BPP,
                 VBE_ENABLE,
                 VBE_BANK,
                 VBE_VIRT_WIDTH,
                 VBE_VIRT_HEIGHT,
                 VBE_X_OFFSET,
                 VBE_Y_OFFSET,
                 VBE_MEMORY_64K,
                 VBE_REGS
};
enum vbe_enable {
    VBE_ENABLED = 0x01,
    VBE_GETCAPS = 0x02,
    VBE_8BIT_DAC = 0x20,
    VBE_LFB = 0x40,
    VBE_NOCLEAR = 0x80,
};

/* All that the picture depends on besides video memory. */
struct vga_regs {
    uint8_t misc;         /* miscellaneous output */
    uint8_t seq[5];       /* sequencer */
    uint8_t gr[9];        /* graphics controller */
    uint8_t ar[0x15];     /* attribute controller */
    uint8_t cr[0x19];     /* CRT controller */
    bool palette_enabled; /* the attribute index' bit 5: video on */
    uint8_t dac_mask;
    uint8_t dac[256][3];
    uint16_t vbe[VBE_REGS];
};

struct vga {
    struct vga_regs r;
    uint8_t *vram;     /* VGA_VRAM_SIZE bytes, not owned */
    uint64_t power_on; /* timer clock, ns: when the beam was at the top left */
    uint8_t latch[4];
    uint8_t seq_index, gr_index, ar_index, cr_index;
    bool ar_data_next; /* the attribute flip-flop */
    uint8_t feature;
    uint8_t dac_read, dac_write, dac_part;
    uint8_t dac_cache[3];
    bool dac_reading;
    uint16_t vbe_index;
    const struct timer_queue *clock;
    /* Before video memory changes other than through the guest's own mapping: bytes
     * [offset, offset + len).  May be NULL. */
    void (*before_write)(void *opaque, uint32_t offset, uint32_t len);
    void *before_write_opaque;
};

/* `vram` has VGA_VRAM_SIZE bytes and outlives the device; `clock` makes the retrace bits. */
void vga_init(struct vga *v, uint8_t *vram, const struct timer_queue *clock);
/* The state after power-up, video memory aside. */
void vga_reset(struct vga *v);
/* What a VGA BIOS would leave behind: mode 3 (80 x 25 text), its palette and a font, the screen
 * cleared. */
void vga_post(struct vga *v);

extern const struct io_ops vga_io_ops;     /* opaque: struct vga; VGA_PORTS from VGA_PORT */
extern const struct io_ops vbe_io_ops;     /* opaque: struct vga; VBE_PORTS from VBE_PORT */
extern const struct io_ops vga_window_ops; /* opaque: struct vga; memory from VGA_WINDOW */
extern const struct io_ops vga_mmio_ops;   /* opaque: struct vga; VGA_MMIO_SIZE bytes, BAR 2 */

/* -- The picture (vga_render.c).  No lock is needed: `r` is the caller's copy, and a guest that
 * draws meanwhile may be seen half way. -------------------------------------------------------- */

enum vga_kind { VGA_BLANK, VGA_TEXT, VGA_GRAPHICS, VGA_VBE };

struct vga_geometry {
    enum vga_kind kind;
    unsigned width, height; /* dots and scan lines; never 0, bounded by VGA_MAX_* */
    unsigned bpp;           /* VGA_VBE: 4, 8, 15, 16, 24 or 32; else 0 */
    unsigned columns, rows; /* VGA_TEXT: whole characters */
};

void vga_geometry(const struct vga_regs *r, struct vga_geometry *g);

/* Draws width x height pixels, 0x00RRGGBB, rows without gap.  `blink_on` is the phase of blinking
 * text and of the cursor. */
void vga_render(const struct vga_regs *r, const uint8_t *vram, const struct vga_geometry *g,
                bool blink_on, uint32_t *pixels);

/* The text screen as UTF-8 lines, each ended by '\n', without blanks at their ends; the rest of
 * out is '\0'.  Returns the length, or -ENODATA if the screen is in no text mode, -ENOSPC if len
 * (VGA_TEXT_MAX is always enough) is too small. */
#define VGA_TEXT_MAX 100000u
int vga_text(const struct vga_regs *r, const uint8_t *vram, char *out, size_t len);

/* -- The built-in character set (vga_font.c): 16 rows for each of the 256 characters of code page
 * 437, of which ASCII, blocks and lines have a shape. ------------------------------------------ */
void vga_font_glyph(uint8_t character, uint8_t rows[16]);

#endif
