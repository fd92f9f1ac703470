/*
 * The RTC: any registers, times and alarms, and a host whose clock is set meanwhile.  Whatever was
 * written, a clock that is set goes on and shows a time that exists.
 */
#include "devices/rtc.h"
#include "io_script.h"

enum { WALL, RESET, NVRAM, EVENTS };

static struct script script;
static struct rtc rtc;
static int64_t wall_offset;

static int64_t wall_clock(void *opaque)
{
    return wall_offset + (int64_t)script.now;
}

static void set_irq(void *opaque, unsigned n, bool level) {}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    switch (what) {
    case WALL: /* somebody sets the host's clock: 1970 to 2200 */
        wall_offset = (int64_t)(value % (230ull * 365 * 86400 * NSEC_PER_SEC));
        break;
    case RESET:
        rtc_reset(&rtc);
        break;
    default:
        rtc_set_nvram(&rtc, 0x10 + arg % 0x70, (uint8_t)value);
        break;
    }
}

static unsigned get(unsigned index)
{
    script_write(&script, 0, 0, 1, index);
    return (unsigned)script_read(&script, 0, 1, 1);
}

static void set(unsigned index, unsigned value)
{
    script_write(&script, 0, 0, 1, index);
    script_write(&script, 0, 1, 1, value);
}

static void check_digits(unsigned index, unsigned low, unsigned high)
{
    unsigned value = get(index), number = (value >> 4) * 10 + (value & 15);

    FUZZ_CHECK((value & 15) < 10 && number >= low && number <= high, "register %u shows %#x", index,
               value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    script_init(&script, EVENTS, event);
    rtc = (struct rtc){0};
    wall_offset = 1700000000ll * (int64_t)NSEC_PER_SEC;
    rtc_init(&rtc, (struct irq_line){.set = set_irq}, &script.timers, wall_clock, NULL, 1 << 30, 0);
    script_region(&script, &rtc_io_ops, &rtc, 2);
    script_run(&script, data, size > 2048 * SCRIPT_COMMAND ? 2048 * SCRIPT_COMMAND : size);
    set(11, 0x82); /* SET; BCD, 24 hours, no interrupts */
    for (unsigned i = 0; i <= 9; i++)
        set(i, i == 7 || i == 8 ? 1 : 0);
    set(RTC_CENTURY, 0x20);
    set(11, 0x02);
    set(10, 0x26);
    script_advance(&script, 3 * NSEC_PER_SEC);
    get(12);
    script_advance(&script, 3 * NSEC_PER_SEC);
    FUZZ_CHECK(get(12) & 0x10, "the clock does not go on");
    check_digits(0, 0, 59);
    check_digits(2, 0, 59);
    check_digits(4, 0, 23);
    check_digits(6, 1, 7);
    check_digits(7, 1, 31);
    check_digits(8, 1, 12);
    check_digits(9, 0, 99);
    rtc_destroy(&rtc);
    return 0;
}

SCRIPT_SEEDS(
    /* Periodic interrupt at 1024 Hz, then at the fastest rate. */
    "w0+0:1=b w0+1:1=42 w0+0:1=a w0+1:1=26 t=3b9aca00 w0+0:1=c r0+1:1 w0+0:1=a w0+1:1=23 "
    "t=3b9aca00 "
    "w0+0:1=c r0+1:1 w0+0:1=8b r0+1:1",
    /* Setting the time with SET, binary and 12 hours; an alarm every hour. */
    "w0+0:1=b w0+1:1=86 w0+0:1=0 w0+1:1=3b w0+0:1=2 w0+1:1=3b w0+0:1=4 w0+1:1=17 w0+0:1=7 "
    "w0+1:1=1f "
    "w0+0:1=8 w0+1:1=c w0+0:1=9 w0+1:1=63 w0+0:1=32 w0+1:1=13 w0+0:1=1 w0+1:1=0 w0+0:1=3 w0+1:1=ff "
    "w0+0:1=5 w0+1:1=ff w0+0:1=b w0+1:1=26 t=77359400 w0+0:1=c r0+1:1 w0+0:1=4 r0+1:1 t=ffffffffff "
    "r0+1:1",
    /* Divider reset, update interrupt, values that are no time, the host's clock set. */
    "w0+0:1=a w0+1:1=70 t=3b9aca00 w0+0:1=a w0+1:1=26 w0+0:1=b w0+1:1=72 t=3b9aca00 w0+0:1=0 "
    "w0+1:1=ff w0+0:1=4 w0+1:1=fe w0+0:1=8 w0+1:1=0 w0+0:1=32 w0+1:1=ff e0+0=fffffffffff "
    "t=3b9aca00 "
    "e1+0=0 e2+5=7 r0+0:2 w0+0:1=7f r0+1:1")
