/*
 * The 8042 with keyboard and mouse: commands in any order, keys and movements at any time.
 * Whatever happened, a driver that starts over gets the answer to the self-test.
 */
#include "devices/i8042.h"
#include "io_script.h"

enum { DATA, COMMAND };
enum { KEY, MOUSE, RESET, FIRMWARE, EVENTS };

static struct script script;
static struct i8042 k;

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    switch (what) {
    case KEY:
        i8042_key(&k, arg % 0x300, value & 1);
        break;
    case MOUSE:
        i8042_mouse(&k, (int)(uint32_t)value, (int)(value >> 32), (int)arg >> 8, (uint8_t)arg);
        break;
    case RESET:
        i8042_reset(&k);
        break;
    default:
        i8042_firmware_setup(&k);
        break;
    }
    FUZZ_CHECK(k.kbd.queue.count <= PS2_QUEUE_SIZE && k.mouse.queue.count <= PS2_QUEUE_SIZE,
               "a queue holds more than it can");
}

/* As drivers find the controller: quiet the devices, read what is left, ask. */
static void self_test(void)
{
    uint8_t byte = 0;

    script_write(&script, COMMAND, 0, 1, 0xad);
    script_write(&script, COMMAND, 0, 1, 0xa7);
    for (unsigned i = 0; i < 4 * PS2_QUEUE_SIZE && script_read(&script, COMMAND, 0, 1) & 1; i++) {
        script_read(&script, DATA, 0, 1);
        script_advance(&script, 2000000);
    }
    FUZZ_CHECK(!(script_read(&script, COMMAND, 0, 1) & 1), "disabled devices keep sending");
    script_write(&script, COMMAND, 0, 1, 0xaa);
    for (unsigned i = 0; i < 100 && !(script_read(&script, COMMAND, 0, 1) & 1); i++)
        script_advance(&script, 1000000);
    byte = (uint8_t)script_read(&script, DATA, 0, 1);
    FUZZ_CHECK(byte == 0x55, "the self-test answers %#x", byte);
}

static void nothing(void *opaque) {}

static bool a20 = true;

static void set_a20(void *opaque, bool on)
{
    a20 = on;
}

static bool get_a20(void *opaque)
{
    return a20;
}

static void set_irq(void *opaque, unsigned n, bool level) {}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    script_init(&script, EVENTS, event);
    a20 = true;
    k = (struct i8042){0};
    i8042_init(&k, &(struct i8042_config){.reset = nothing,
                                          .set_a20 = set_a20,
                                          .get_a20 = get_a20,
                                          .kbd_irq = {.set = set_irq, .n = 1},
                                          .aux_irq = {.set = set_irq, .n = 12},
                                          .timers = &script.timers,
                                          .devices = !(size % SCRIPT_COMMAND)});
    i8042_reset(&k);
    script_region(&script, &i8042_data_ops, &k, 1);
    script_region(&script, &i8042_command_ops, &k, 1);
    script_run(&script, data, size > 1024 * SCRIPT_COMMAND ? 1024 * SCRIPT_COMMAND : size);
    self_test();
    return 0;
}

SCRIPT_SEEDS(
    /* Reset, self-test, port tests, configuration byte, A20. */
    "w1+0:1=aa r0+0:1 w1+0:1=ab r0+0:1 w1+0:1=a9 r0+0:1 w1+0:1=20 r0+0:1 w1+0:1=60 w0+0:1=47 "
    "w1+0:1=d1 w0+0:1=dd w1+0:1=d0 r0+0:1 w1+0:1=dd w1+0:1=df r1+0:1",
    /* Keyboard: reset, identify, set 1, LEDs, typematic, keys, resend. */
    "w0+0:1=ff t=f4240 r0+0:1 t=f4240 r0+0:1 w0+0:1=f2 t=f4240 r0+0:1 w0+0:1=f0 w0+0:1=1 t=f4240 "
    "w0+0:1=ed w0+0:1=7 w0+0:1=f3 w0+0:1=0 w0+0:1=f4 e0+1e=1 e0+1e=0 t=f4240 r0+0:1 w0+0:1=fe "
    "e0+63=1 e0+63=0 e0+77=1 e0+38=1 e0+63=1 e0+63=0 t=f4240 r0+0:1 w0+0:1=ee w0+0:1=f5 w0+0:1=f6",
    /* Mouse: enable, IntelliMouse knock, remote mode, wrap mode, packets. */
    "w1+0:1=a8 w1+0:1=d4 w0+0:1=ff t=f4240 r0+0:1 t=f4240 r0+0:1 t=f4240 r0+0:1 w1+0:1=d4 "
    "w0+0:1=f3 "
    "w1+0:1=d4 w0+0:1=c8 w1+0:1=d4 w0+0:1=f3 w1+0:1=d4 w0+0:1=64 w1+0:1=d4 w0+0:1=f3 w1+0:1=d4 "
    "w0+0:1=50 w1+0:1=d4 w0+0:1=f2 w1+0:1=d4 w0+0:1=f4 e1+1=500000003 e1+ff07=ffffffff00000000 "
    "t=f4240 r0+0:1 t=f4240 r0+0:1 w1+0:1=d4 w0+0:1=f0 w1+0:1=d4 w0+0:1=eb w1+0:1=d4 w0+0:1=ee "
    "w1+0:1=d4 w0+0:1=55 w1+0:1=d4 w0+0:1=ec w1+0:1=d4 w0+0:1=e9 w1+0:1=d4 w0+0:1=e7",
    /* Loops, internal RAM, output port pulses, both devices at once, odd commands. */
    "w1+0:1=d2 w0+0:1=1c r0+0:1 w1+0:1=d3 w0+0:1=8 r0+0:1 w1+0:1=21 r0+0:1 w1+0:1=61 w0+0:1=5a "
    "w1+0:1=c0 r0+0:1 w1+0:1=fe w1+0:1=f0 e3+0=0 e0+1c=1 e1+0=1 t=f4240 r1+0:1 r0+0:1 w1+0:1=ad "
    "w1+0:1=a7 w1+0:1=ae e2+0=0 r1+0:1")
