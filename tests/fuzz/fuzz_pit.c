/*
 * The 8254 and port 61h: control words, counts and time in any order.  Nothing that a guest writes
 * makes interrupts come faster than every 20 us.
 */
#include "devices/pit.h"
#include "io_script.h"

static struct script script;
static struct pit pit;
static uint64_t last_edge;
static unsigned last_jumps;
static bool level;
/* So many interrupts may come at once: when a count was written, that of the old count and that of
 * the new one; when one came late, the next, which comes in time. */
static unsigned excused;

static void set_irq(void *opaque, unsigned n, bool on)
{
    if (on && !level) {
        FUZZ_CHECK(excused || script.now - last_edge >= 19000, "%llu ns between interrupts",
                   (unsigned long long)(script.now - last_edge));
        if (excused)
            excused--;
        if (script.jumps != last_jumps)
            excused = 1;
        last_edge = script.now;
        last_jumps = script.jumps;
    }
    level = on;
}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    pit_reset(&pit);
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    excused = 2;
    pit_io_ops.write(opaque, offset, size, value);
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    return pit_io_ops.read(opaque, offset, size);
}

static struct io_ops ops = {.read = port_read, .write = port_write};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    script_init(&script, 1, event);
    ops.max_size = pit_io_ops.max_size;
    pit = (struct pit){0};
    level = false;
    excused = 2;
    pit_init(&pit, (struct irq_line){.set = set_irq}, &script.timers);
    script_region(&script, &ops, &pit, 4);
    script_region(&script, &pit_speaker_ops, &pit, 1);
    script_run(&script, data, size > 4096 * SCRIPT_COMMAND ? 4096 * SCRIPT_COMMAND : size);
    pit_destroy(&pit);
    return 0;
}

SCRIPT_SEEDS(
    /* 100 Hz, rate generator; read back; a one-shot. */
    "w0+3:1=34 w0+0:1=9b w0+0:1=2e t=989680 w0+3:1=0 r0+0:1 r0+0:1 w0+3:1=e2 r0+0:1 w0+3:1=c2 "
    "r0+0:1 r0+0:1 w0+3:1=30 w0+0:1=ff w0+0:1=ff t=5f5e100 r0+0:2",
    /* Counter 2 through port 61h, as clocks are calibrated. */
    "r1+0:1 w1+0:1=1 w0+3:1=b0 w0+2:1=9b w0+2:1=2e r1+0:1 t=2dc6c00 r1+0:1 w1+0:1=0 w1+0:1=3 "
    "w0+3:1=b6 w0+2:2=4a9 r1+0:1",
    /* Every mode, the smallest and the largest count, BCD, one byte at a time. */
    "w0+3:1=14 w0+0:1=2 t=186a0 w0+3:1=16 w0+0:1=2 t=186a0 w0+3:1=12 w0+0:1=1 t=186a0 w0+3:1=18 "
    "w0+0:1=1 t=186a0 w0+3:1=1a w0+0:1=1 t=186a0 w0+3:1=10 w0+0:1=0 t=186a0 w0+3:1=35 w0+0:1=99 "
    "w0+0:1=99 t=989680 w0+3:1=27 w0+0:1=1 t=ffffffff w0+3:1=ff e0+0=0 w0+3:1=34 w0+0:1=0 w0+0:1=0 "
    "t=ffffffffff w0+0:4=1")
