/*
 * Three local APICs and an I/O APIC on their bus: registers in xAPIC and x2APIC form, IPIs, MSIs,
 * pins, acknowledgements, timers.  A vector that is taken is one that may be delivered, and no
 * timer interrupts more often than every 20 us by itself.
 */
#include "devices/ioapic.h"
#include "devices/lapic.h"
#include "io_script.h"

#define CPUS   3
#define TSC_HZ 2000000000ull

enum { IOAPIC, LAPIC /* and those of the other CPUs */ };
enum { PIN, LINT, TAKE, READ_MSR, WRITE_MSR, MSI, CR8, RESET, EVENTS };

static struct script script;
static struct apic_bus bus;
static struct lapic lapic[CPUS];
static struct ioapic ioapic;
static bool pending[CPUS];

static unsigned index_of(const void *opaque)
{
    return (unsigned)((const struct lapic *)opaque - lapic);
}

static void intr(void *opaque, bool on)
{
    pending[index_of(opaque)] = on;
}

static void nothing(void *opaque) {}

static void sipi(void *opaque, uint8_t vector) {}

static uint64_t tsc(void *opaque)
{
    return script.now * (TSC_HZ / NSEC_PER_SEC);
}

static const struct lapic_cpu_ops cpu_ops = {intr, nothing, nothing, sipi, tsc};

static void eoi(void *opaque, uint8_t vector)
{
    ioapic_eoi(&ioapic, vector);
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct lapic *l = opaque;
    uint64_t gpa = (l->base & ~0xfffull) + offset;

    return lapic_claims(l, gpa) ? lapic_mmio_read(opaque, gpa, size) : 0;
}

static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    const struct lapic *l = opaque;
    uint64_t gpa = (l->base & ~0xfffull) + offset;

    if (lapic_claims(l, gpa))
        lapic_mmio_write(opaque, gpa, size, value);
}

static const struct io_ops lapic_ops = {.read = mmio_read, .write = mmio_write, .max_size = 8};

/* The MSRs that there are, more often than those that there are not. */
static uint32_t msr_of(uint32_t arg)
{
    if ((arg & 0x300) == 0)
        return MSR_APIC_BASE;
    if ((arg & 0x300) == 0x100)
        return MSR_TSC_DEADLINE;
    return MSR_X2APIC_FIRST + (arg & 0xff);
}

static void take(unsigned cpu)
{
    bool was_pending = pending[cpu];
    int vector = lapic_acknowledge(&lapic[cpu]);

    FUZZ_CHECK(vector == -1 || vector == LAPIC_EXTINT || (vector >= 16 && vector < 256),
               "vector %d", vector);
    FUZZ_CHECK(was_pending || vector < 0, "vector %d without an interrupt", vector);
    FUZZ_CHECK(!was_pending || vector >= 0, "an interrupt without a vector");
}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    unsigned cpu = arg >> 16 & 0xff;
    uint64_t ignored;

    cpu %= CPUS;
    switch (what) {
    case PIN:
        ioapic_set_irq(&ioapic, arg % IOAPIC_PINS, value & 1);
        break;
    case LINT:
        lapic_set_lint(&lapic[cpu], arg & 1, value & 1);
        break;
    case TAKE:
        take(cpu);
        break;
    case READ_MSR:
        lapic_read_msr(&lapic[cpu], msr_of(arg), &ignored);
        break;
    case WRITE_MSR:
        lapic_write_msr(&lapic[cpu], msr_of(arg), value);
        break;
    case MSI:
        apic_bus_send_msi(&bus, 0xfee00000u | (arg & 0xfffff), (uint32_t)value);
        break;
    case CR8:
        lapic_set_cr8(&lapic[cpu], value & 15);
        break;
    default:
        lapic_reset(&lapic[cpu], value & 1);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    script_init(&script, EVENTS, event);
    bus = (struct apic_bus){.eoi = eoi};
    memset(pending, 0, sizeof(pending));
    ioapic = (struct ioapic){0};
    ioapic_init(&ioapic, &bus);
    script_region(&script, &ioapic_io_ops, &ioapic, 0x100);
    for (unsigned i = 0; i < CPUS; i++) {
        lapic[i] = (struct lapic){0};
        if (lapic_init(&lapic[i],
                       &(struct lapic_config){.id = i,
                                              .bsp = !i,
                                              .bus_hz = 1000000000,
                                              .tsc_hz = TSC_HZ,
                                              .phys_bits = 40,
                                              .cpu = &cpu_ops,
                                              .cpu_opaque = &lapic[i]},
                       &bus, &script.timers))
            abort();
        script_region(&script, &lapic_ops, &lapic[i], LAPIC_SIZE);
    }
    lapic_firmware_setup(&lapic[0]);
    script_run(&script, data, size > 4096 * SCRIPT_COMMAND ? 4096 * SCRIPT_COMMAND : size);
    for (unsigned i = 0; i < CPUS; i++)
        lapic_destroy(&lapic[i]);
    return 0;
}

SCRIPT_SEEDS(
    /* xAPIC: enable, timer periodic, take it, EOI; masked; divide; one-shot. */
    "w1+f0:4=1ff w1+3e0:4=b w1+320:4=20030 w1+380:4=186a0 t=30d40 e2+0=0 w1+b0:4=0 r1+390:4 "
    "r1+100:4 "
    "w1+320:4=30031 w1+320:4=31 w1+380:4=1 t=186a0 e2+0=0 r1+280:4 w1+280:4=0 r1+280:4",
    /* IPIs: fixed, lowest priority, self, all, INIT and SIPI, logical. */
    "w1+f0:4=1ff w2+f0:4=1ff w3+f0:4=1ff w1+310:4=1000000 w1+300:4=4040 e2+10000=0 w2+b0:4=0 "
    "w1+d0:4=1000000 w2+d0:4=2000000 w3+d0:4=4000000 w1+310:4=7000000 w1+300:4=951 w1+300:4=40052 "
    "w1+300:4=80053 w1+300:4=c4500 w1+300:4=c4610 e2+0=0 e2+10000=0 e2+20000=0 w1+300:4=400 "
    "w1+80:4=60 e2+0=0 w1+80:4=0",
    /* x2APIC and the TSC deadline. */
    "e4+0=fee00d00 e4+20f=1ff e4+232=40044 e4+100=1d1a94a2000 e3+100=0 t=3b9aca00 e2+0=0 e4+20b=0 "
    "e4+230=10000004e e4+23f=4f e4+208=30 e3+202=0 e3+20d=0 e6+0=3 e4+0=fee00900 e4+0=fee00000",
    /* I/O APIC: edge and level entries, remote IRR, EOI; MSIs; LINT; ExtINT. */
    "w1+f0:4=1ff w0+0:4=12 w0+10:4=8061 w0+0:4=13 w0+10:4=0 e0+1=1 e2+0=0 r0+10:4 w1+b0:4=0 e2+0=0 "
    "e0+1=0 w0+40:4=61 w0+0:4=14 w0+10:4=62 e0+2=1 e0+2=0 e2+0=0 e5+0=4071 e5+1000=172 e2+0=0 "
    "w1+350:4=700 e1+0=1 e2+0=0 e1+0=0 w1+360:4=400 e1+1=1 w0+0:4=10 w0+10:4=10700 e7+0=1 e7+0=0")
