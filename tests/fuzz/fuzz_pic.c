/*
 * The 8259s: command words, lines and acknowledgements in any order.  Whatever happened, they
 * deliver after an initialisation.
 */
#include "devices/pic.h"
#include "io_script.h"

enum { MASTER, SLAVE, ELCR };
enum { LINE, ACKNOWLEDGE, RESET, EVENTS };

static struct script script;
static struct pic pic;
static bool output;

static void set_output(void *opaque, unsigned n, bool on)
{
    output = on;
}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    switch (what) {
    case LINE:
        pic_set_irq(&pic, arg % 16, value & 1);
        break;
    case ACKNOWLEDGE:
        pic_acknowledge(&pic);
        break;
    default:
        pic_reset(&pic);
        break;
    }
    FUZZ_CHECK(output == pic_output(&pic), "the output's wire is not in the output's state");
}

static void initialise(void)
{
    static const uint8_t words[2][4] = {{0x11, 0x20, 0x04, 0x01}, {0x11, 0x28, 0x02, 0x01}};

    for (unsigned n = 0; n < 16; n++)
        pic_set_irq(&pic, n, false);
    script_write(&script, ELCR, 0, 2, 0);
    for (unsigned chip = MASTER; chip <= SLAVE; chip++) {
        for (unsigned i = 0; i < 4; i++)
            script_write(&script, chip, i > 0, 1, words[chip][i]);
        script_write(&script, chip, 1, 1, 0);    /* mask */
        script_write(&script, chip, 0, 1, 0x48); /* special mask mode off */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t lines[] = {0, 7, 8, 15};

    script_init(&script, EVENTS, event);
    pic = (struct pic){0};
    output = false;
    pic_init(&pic, (struct irq_line){.set = set_output});
    script_region(&script, &pic_io_ops, &pic.chip[0], 2);
    script_region(&script, &pic_io_ops, &pic.chip[1], 2);
    script_region(&script, &pic_elcr_ops, &pic, 2);
    script_run(&script, data, size > 4096 * SCRIPT_COMMAND ? 4096 * SCRIPT_COMMAND : size);
    initialise();
    FUZZ_CHECK(!output, "an interrupt without a line, after initialisation");
    for (unsigned i = 0; i < sizeof(lines); i++) {
        unsigned vector;

        pic_set_irq(&pic, lines[i], true);
        FUZZ_CHECK(output, "line %u is up, and there is no interrupt", lines[i]);
        vector = pic_acknowledge(&pic);
        FUZZ_CHECK(vector == 0x20u + lines[i], "line %u came as vector %#x", lines[i], vector);
        pic_set_irq(&pic, lines[i], false);
        if (lines[i] >= 8)
            script_write(&script, SLAVE, 0, 1, 0x20);
        script_write(&script, MASTER, 0, 1, 0x20);
    }
    return 0;
}

SCRIPT_SEEDS(
    /* Initialised, edges, nested, specific and non-specific EOI. */
    "w0+0:1=11 w0+1:1=20 w0+1:1=4 w0+1:1=1 w1+0:1=11 w1+1:1=28 w1+1:1=2 w1+1:1=1 w0+1:1=0 w1+1:1=0 "
    "e0+3=1 e1+0=0 e0+1=1 e1+0=0 w0+0:1=20 w0+0:1=63 e0+c=1 e1+0=0 w1+0:1=64 w0+0:1=62 w0+0:1=b "
    "r0+0:1 w0+0:1=a r0+0:1 w0+0:1=c r0+0:1 r0+1:1",
    /* Level-triggered, rotation, special mask and fully nested mode, auto-EOI, spurious. */
    "w2+0:1=f8 w2+1:1=de w0+0:1=19 w0+1:1=8 w0+1:1=ff w0+1:1=13 w0+1:1=0 e0+5=1 e1+0=0 e0+5=0 "
    "w0+0:1=80 w0+0:1=a0 w0+0:1=e3 w0+0:1=68 e0+4=1 e0+4=0 e1+0=0 w1+0:1=12 w1+1:1=70 e0+9=1 "
    "e2+0=0 "
    "r2+0:2")
