/*
 * The VGA: registers, both ways to the VBE registers, the legacy window, and what is drawn from
 * whatever they were left at.  Video memory and the picture end at a page without access.
 */
#include <errno.h>
#include <sys/mman.h>

#include "devices/vga.h"
#include "io_script.h"

#define PIXELS_MAX  ((size_t)VGA_MAX_WIDTH * VGA_MAX_HEIGHT)
#define GUARD       4096
#define RENDERS_MAX 4

enum { PORTS, VBE, WINDOW, MMIO };
enum { RENDER, TEXT, DRAW, RESET, POST, EVENTS };

static struct script script;
static struct vga vga;
static uint8_t *vram;
static uint32_t *pixels_end;
static char text[VGA_TEXT_MAX];
static unsigned renders;
static uint32_t dirty_end;

static void *guarded(size_t size)
{
    uint8_t *p = mmap(NULL, size + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED || mprotect(p + GUARD, size, PROT_READ | PROT_WRITE))
        abort();
    return p + GUARD;
}

/* Only what was written has to be cleared before the next run. */
static void touched(uint32_t end)
{
    if (end > dirty_end)
        dirty_end = end;
}

static void before_write(void *opaque, uint32_t offset, uint32_t len)
{
    FUZZ_CHECK((uint64_t)offset + len <= VGA_VRAM_SIZE, "a write to video memory at %#x+%#x",
               offset, len);
    touched(offset + len);
}

static void render(bool blink_on)
{
    struct vga_regs regs = vga.r;
    struct vga_geometry g;

    if (renders++ >= RENDERS_MAX)
        return; /* they take by far the most time */
    vga_geometry(&regs, &g);
    FUZZ_CHECK(g.width >= 1 && g.width <= VGA_MAX_WIDTH && g.height >= 1 &&
                   g.height <= VGA_MAX_HEIGHT,
               "a picture of %u x %u", g.width, g.height);
    vga_render(&regs, vram, &g, blink_on, pixels_end - (size_t)g.width * g.height);
}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    int len;

    switch (what) {
    case RENDER:
        render(arg & 1);
        break;
    case TEXT:
        len = vga_text(&vga.r, vram, text, sizeof(text));
        FUZZ_CHECK(len < 0 || strlen(text) == (size_t)len, "a text of %d bytes has %zu", len,
                   strlen(text));
        FUZZ_CHECK(len != -ENOSPC, "a text larger than VGA_TEXT_MAX");
        break;
    case DRAW: /* the guest, through the linear frame buffer */
        memcpy(vram + arg % (VGA_VRAM_SIZE - 8), &value, 8);
        touched(arg % (VGA_VRAM_SIZE - 8) + 8);
        break;
    case RESET:
        vga_reset(&vga);
        break;
    default:
        vga_post(&vga);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!vram) {
        vram = guarded(VGA_VRAM_SIZE);
        pixels_end = (uint32_t *)guarded(PIXELS_MAX * 4) + PIXELS_MAX;
    }
    memset(vram, 0, dirty_end);
    dirty_end = 0;
    script_init(&script, EVENTS, event);
    renders = 0;
    vga = (struct vga){0};
    vga_init(&vga, vram, &script.timers);
    vga.before_write = before_write;
    vga_post(&vga);
    touched(0x10000 * 4);
    script_region(&script, &vga_io_ops, &vga, VGA_PORTS);
    script_region(&script, &vbe_io_ops, &vga, VBE_PORTS);
    script_region(&script, &vga_window_ops, &vga, VGA_WINDOW_SIZE);
    script_region(&script, &vga_mmio_ops, &vga, VGA_MMIO_SIZE);
    script_run(&script, data, size > 256 * SCRIPT_COMMAND ? 256 * SCRIPT_COMMAND : size);
    if (!renders)
        render(true);
    return 0;
}

SCRIPT_SEEDS(
    /* Text mode 3 as it is, written to and scrolled. */
    "w2+18000:2=741 w2+18f9e:2=741 w0+24:2=0c w0+24:2=800d w0+24:2=0f0e e0+1=0 e1+0=0 r2+18000:2",
    /* Mode 13h: sequencer chain-4, 256 colours. */
    "w0+12:1=63 w0+14:2=0f02 w0+14:2=0e04 w0+1e:2=4005 w0+1e:2=0506 w0+24:2=8e11 w0+24:2=5f00 "
    "w0+24:2=4f01 w0+24:2=9f07 w0+24:2=8f12 w0+24:2=2813 w0+24:2=4014 w0+24:2=a317 w0+24:2=4109 "
    "r0+2a:1 w0+10:1=10 w0+10:1=41 w0+10:1=20 w2+0:4=3020100 w2+f9fc:4=ffffffff e0+0=0",
    /* Mode 12h: four planes, set/reset, write modes 0 to 3, latches. */
    "w0+12:1=e3 w0+14:2=0f02 w0+14:2=0604 w0+1e:2=0005 w0+1e:2=0506 w0+24:2=0011 w0+24:2=4f01 "
    "w0+24:2=df12 w0+24:2=3e07 w0+24:2=2813 w0+24:2=e317 w0+24:2=4009 r0+2a:1 w0+10:1=10 w0+10:1=1 "
    "w0+10:1=20 w0+1e:2=0f01 w0+1e:2=0500 w2+100:1=ff r2+100:1 w0+1e:2=0105 w2+101:1=0 "
    "w0+1e:2=0205 w2+102:1=a w0+1e:2=0305 w0+1e:2=0f08 w2+103:2=55aa w0+1e:2=0803 w2+104:1=3 "
    "w0+1e:2=0b05 r2+100:1 e0+0=0",
    /* Bochs VBE: 1024x768x32 with a larger virtual screen, panned; then 8 bits and banks. */
    "w1+0:2=4 w1+2:2=0 w1+0:2=1 w1+2:2=400 w1+0:2=2 w1+2:2=300 w1+0:2=3 w1+2:2=20 w1+0:2=4 "
    "w1+2:2=41 w1+0:2=6 w1+2:2=500 w1+0:2=8 w1+2:2=80 w1+0:2=9 w1+2:2=10 e2+1000=ffffff e0+0=0 "
    "w1+0:2=4 w1+2:2=0 w1+0:2=3 w1+2:2=8 w1+0:2=4 w1+2:2=61 w1+0:2=5 w1+2:2=7f w2+fffc:4=1020304 "
    "e0+0=0",
    /* The same through BAR 2, with 24, 16 and 15 bits. */
    "w3+508:2=0 w3+502:2=320 w3+504:2=258 w3+506:2=18 w3+508:2=c1 e2+0=112233445566 e0+0=0 "
    "w3+508:2=0 w3+506:2=10 w3+508:2=41 e0+0=0 w3+508:2=0 w3+506:2=f w3+508:2=41 e0+0=0 "
    "w3+508:2=0 w3+506:2=4 w3+508:2=41 e0+0=0 r3+508:2 r3+500:2 w3+400:1=ff r3+41c:1",
    /* DAC, palette, CGA graphics with interleaved rows. */
    "w0+18:1=0 w0+19:1=3f w0+19:1=0 w0+19:1=3f w0+17:1=0 r0+19:1 r0+19:1 r0+19:1 w0+16:1=f "
    "w0+14:2=0304 w0+14:2=0302 w0+1e:2=3005 w0+1e:2=0f06 w0+24:2=a217 w0+24:2=2813 w0+24:2=c109 "
    "w2+18000:4=1b1b1b1b w2+1a000:4=e4e4e4e4 e0+0=0 e3+0=0 e0+0=0 e4+0=0 e0+1=0 t=f4240 r0+2a:1")
