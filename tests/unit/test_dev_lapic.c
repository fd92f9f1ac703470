/* Local APIC and I/O APIC. */
#include "dev_fixture.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/ioapic.h"
#include "devices/irq_router.h"
#include "devices/lapic.h"
#include "devices/pic.h"

#define TSC_HZ 2000000000ull
#define BUS_HZ 25000000ull

struct cpu {
    struct lapic lapic;
    bool intr;
    unsigned nmis, inits, sipis;
    uint8_t sipi_vector;
};

static struct fake_clock clk;
static struct apic_bus bus;
static struct cpu cpu[4];
static struct ioapic io;

static void intr(void *o, bool pending)
{
    ((struct cpu *)o)->intr = pending;
}

static void nmi(void *o)
{
    ((struct cpu *)o)->nmis++;
}

static void take_init(void *o)
{
    ((struct cpu *)o)->inits++;
}

static void sipi(void *o, uint8_t vector)
{
    struct cpu *c = o;

    c->sipis++;
    c->sipi_vector = vector;
}

static uint64_t tsc(void *o)
{
    (void)o;
    return clk.now * (TSC_HZ / NSEC_PER_SEC);
}

static const struct lapic_cpu_ops ops = {intr, nmi, take_init, sipi, tsc};

static void eoi(void *o, uint8_t vector)
{
    (void)o;
    ioapic_eoi(&io, vector);
}

static struct lapic *L = &cpu[0].lapic;

static void wr(unsigned reg, uint32_t value)
{
    lapic_mmio_write(L, LAPIC_DEFAULT_BASE + reg, 4, value);
}

static uint32_t rd(unsigned reg)
{
    return (uint32_t)lapic_mmio_read(L, LAPIC_DEFAULT_BASE + reg, 4);
}

static void setup(void)
{
    fake_clock_init(&clk);
    for (unsigned i = 0; i < 4; i++) {
        struct lapic_config cfg = {.id = i,
                                   .bsp = i == 0,
                                   .bus_hz = BUS_HZ,
                                   .tsc_hz = TSC_HZ,
                                   .phys_bits = 46,
                                   .cpu = &ops,
                                   .cpu_opaque = &cpu[i]};

        lapic_init(&cpu[i].lapic, &cfg, &bus, &clk.timers);
    }
    bus.eoi = eoi;
    ioapic_init(&io, &bus);
    for (unsigned i = 0; i < 4; i++)
        lapic_mmio_write(&cpu[i].lapic, LAPIC_DEFAULT_BASE + 0xf0, 4, 0x1ff);
}

static bool to_x2apic(struct lapic *l)
{
    return lapic_write_msr(l, MSR_APIC_BASE, l->base | APIC_BASE_EXTD) == 0;
}

static void self(uint8_t vector)
{
    wr(0x300, 0x40000u | vector);
}

/* -- Registers
 * ------------------------------------------------------------------------------------- */

Test(lapic, reset_values)
{
    struct lapic_config cfg = {.id = 3,
                               .bus_hz = BUS_HZ,
                               .tsc_hz = TSC_HZ,
                               .phys_bits = 46,
                               .cpu = &ops,
                               .cpu_opaque = &cpu[0]};
    uint64_t v;

    fake_clock_init(&clk);
    cr_assert_eq(lapic_init(L, &cfg, &bus, &clk.timers), 0);
    cr_assert_eq(rd(0x20), 3u << 24);
    cr_assert_eq(rd(0x30), 0x50014u);
    cr_assert_eq(rd(0xf0), 0xffu);
    cr_assert_eq(rd(0xe0), 0xffffffffu);
    for (unsigned reg = 0x320; reg <= 0x370; reg += 0x10)
        cr_assert_eq(rd(reg), 0x10000u);
    cr_assert_eq(lapic_read_msr(L, MSR_APIC_BASE, &v), 0);
    cr_assert_eq(v, LAPIC_DEFAULT_BASE | APIC_BASE_ENABLE);
}

Test(lapic, lvt_stays_masked_while_software_disabled, .init = setup)
{
    wr(0x320, 0x31);
    cr_assert_eq(rd(0x320), 0x31u);
    wr(0xf0, 0xff);
    cr_assert_eq(rd(0x320), 0x10031u);
    wr(0x320, 0x31);
    cr_assert_eq(rd(0x320), 0x10031u);
}

Test(lapic, odd_accesses, .init = setup)
{
    wr(0x80, 0x20);
    cr_assert_eq(lapic_mmio_read(L, LAPIC_DEFAULT_BASE + 0x80, 1), 0x20);
    cr_assert_eq(lapic_mmio_read(L, LAPIC_DEFAULT_BASE + 0x81, 1), 0);
    cr_assert_eq(lapic_mmio_read(L, LAPIC_DEFAULT_BASE + 0x84, 4), 0);
    lapic_mmio_write(L, LAPIC_DEFAULT_BASE + 0x80, 1, 0x40);
    lapic_mmio_write(L, LAPIC_DEFAULT_BASE + 0x82, 4, 0x40);
    cr_assert_eq(rd(0x80), 0x20u);
    cr_assert_eq(lapic_mmio_read(L, LAPIC_DEFAULT_BASE + 0x30, 8), 0x50014u);
    wr(0x280, 0);
    wr(0x280, 0);
    cr_assert_eq(rd(0x280), 0u);
    wr(0x40, 1); /* no such register */
    wr(0x280, 0);
    cr_assert_eq(rd(0x280), 0x80u);
}

/* -- Priorities
 * ------------------------------------------------------------------------------------ */

Test(lapic, priorities_and_eoi, .init = setup)
{
    self(0x41);
    cr_assert(cpu[0].intr);
    cr_assert_eq(rd(0x220), 2u); /* IRR bit 0x41 */
    cr_assert_eq(lapic_acknowledge(L), 0x41);
    cr_assert_not(cpu[0].intr);
    cr_assert_eq(rd(0x120), 2u);
    cr_assert_eq(rd(0xa0), 0x40u);
    self(0x4f); /* same class */
    cr_assert_not(cpu[0].intr);
    self(0x50);
    cr_assert_eq(lapic_acknowledge(L), 0x50);
    wr(0xb0, 0);
    cr_assert_not(cpu[0].intr);
    wr(0xb0, 0);
    cr_assert(cpu[0].intr);
    cr_assert_eq(lapic_acknowledge(L), 0x4f);
    wr(0xb0, 0);
    wr(0xb0, 0); /* one too many */
    cr_assert_eq(lapic_acknowledge(L), -1);
}

Test(lapic, task_priority, .init = setup)
{
    lapic_set_cr8(L, 5);
    cr_assert_eq(rd(0x80), 0x50u);
    self(0x51);
    cr_assert_not(cpu[0].intr);
    cr_assert_eq(lapic_acknowledge(L), -1);
    wr(0x80, 0x4f);
    cr_assert(cpu[0].intr);
    cr_assert_eq(lapic_cr8(L), 4);
    cr_assert_eq(rd(0xa0), 0x4fu);
    wr(0x80, 0xf0);
    cr_assert_not(cpu[0].intr);
}

Test(lapic, illegal_vectors_are_errors, .init = setup)
{
    wr(0x370, 0xfe);
    self(0x0f);
    cr_assert_eq(lapic_acknowledge(L), 0xfe);
    cr_assert_eq(rd(0x280), 0u); /* not visible before a write */
    wr(0x280, 0);
    cr_assert_eq(rd(0x280), 0x20u);
    wr(0x280, 0);
    cr_assert_eq(rd(0x280), 0u);
    wr(0x370, 0x05); /* the error entry's own vector is illegal: no recursion without end */
    self(0x0f);
    wr(0x280, 0);
    cr_assert_eq(rd(0x280), 0x60u);
}

/* -- Timer
 * ----------------------------------------------------------------------------------------- */

Test(lapic, one_shot, .init = setup)
{
    wr(0x3e0, 0x3); /* by 16 */
    wr(0x320, 0x31);
    wr(0x380, 1000);
    fake_clock_advance(&clk, 1000 * 16 * 40 / 2);
    cr_assert_eq(rd(0x390), 500u);
    cr_assert_not(cpu[0].intr);
    fake_clock_advance(&clk, 1000 * 16 * 40 / 2);
    cr_assert_eq(lapic_acknowledge(L), 0x31);
    cr_assert_eq(rd(0x390), 0u);
    wr(0xb0, 0);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_not(cpu[0].intr);
    wr(0x320, 0x32); /* rewriting the entry does not fire it again */
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_not(cpu[0].intr);
}

Test(lapic, dividers, .init = setup)
{
    static const struct {
        uint32_t reg, by;
    } d[] = {{0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {0xa, 128}, {0xb, 1}};

    for (unsigned i = 0; i < 8; i++) {
        wr(0x3e0, d[i].reg);
        wr(0x380, 100000);
        fake_clock_advance(&clk, 50000 * 40 * d[i].by);
        cr_assert_eq(rd(0x390), 50000u, "divider %u", d[i].by);
    }
}

Test(lapic, periodic_without_drift, .init = setup)
{
    uint64_t count = 0;

    wr(0x3e0, 0xb);
    wr(0x320, 0x20031);
    wr(0x380, 25000); /* 1 ms */
    for (int i = 0; i < 1000; i++) {
        fake_clock_advance(&clk, 1000000);
        if (lapic_acknowledge(L) == 0x31)
            count++;
        wr(0xb0, 0);
    }
    cr_assert_eq(count, 1000);
    cr_assert_eq(rd(0x390), 25000u);
    /* Time in which nothing ran: one interrupt, the phase is kept. */
    clk.now += 10500000;
    timer_queue_run(&clk.timers);
    cr_assert_eq(lapic_acknowledge(L), 0x31);
    wr(0xb0, 0);
    cr_assert_eq(timer_queue_next(&clk.timers), clk.now + 500000);
    wr(0x380, 0);
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER);
}

Test(lapic, masked_timer_wakes_nobody, .init = setup)
{
    wr(0x3e0, 0xb);
    wr(0x320, 0x30031);
    wr(0x380, 25000);
    cr_assert_eq(timer_queue_next(&clk.timers), TIMER_NEVER);
    fake_clock_advance(&clk, 1250000);
    cr_assert_eq(rd(0x390), 25000u - 6250);
    wr(0x320, 0x20031);
    cr_assert_eq(timer_queue_next(&clk.timers), clk.now + 750000);
}

Test(lapic, flood_is_limited, .init = setup)
{
    unsigned n = 0;

    wr(0x3e0, 0xb);
    wr(0x320, 0x20031);
    wr(0x380, 1);
    for (int i = 0; i < 1000; i++) {
        fake_clock_advance(&clk, 1000);
        n += lapic_acknowledge(L) == 0x31;
        wr(0xb0, 0);
    }
    cr_assert_leq(n, 51);
    cr_assert_geq(n, 40);
}

Test(lapic, tsc_deadline, .init = setup)
{
    uint64_t v;

    /* Not in the mode: ignored. */
    cr_assert_eq(lapic_write_msr(L, MSR_TSC_DEADLINE, tsc(NULL) + 1000), 0);
    cr_assert_eq(lapic_read_msr(L, MSR_TSC_DEADLINE, &v), 0);
    cr_assert_eq(v, 0);
    wr(0x320, 0x40031);
    lapic_write_msr(L, MSR_TSC_DEADLINE, tsc(NULL) + 2000000);
    lapic_read_msr(L, MSR_TSC_DEADLINE, &v);
    cr_assert_eq(v, tsc(NULL) + 2000000);
    fake_clock_advance(&clk, 999999);
    cr_assert_not(cpu[0].intr);
    fake_clock_advance(&clk, 3);
    cr_assert_eq(lapic_acknowledge(L), 0x31);
    wr(0xb0, 0);
    lapic_read_msr(L, MSR_TSC_DEADLINE, &v);
    cr_assert_eq(v, 0);
    /* The past fires at once. */
    lapic_write_msr(L, MSR_TSC_DEADLINE, 1);
    cr_assert_eq(lapic_acknowledge(L), 0x31);
    wr(0xb0, 0);
    /* The far future does not overflow. */
    lapic_write_msr(L, MSR_TSC_DEADLINE, UINT64_MAX);
    cr_assert_not(cpu[0].intr);
    lapic_write_msr(L, MSR_TSC_DEADLINE, tsc(NULL) + 2000);
    lapic_write_msr(L, MSR_TSC_DEADLINE, 0);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_not(cpu[0].intr);
    /* The counter is dead in this mode, and leaving the mode disarms. */
    wr(0x380, 1000);
    cr_assert_eq(rd(0x380), 0u);
    cr_assert_eq(rd(0x390), 0u);
    lapic_write_msr(L, MSR_TSC_DEADLINE, tsc(NULL) + 2000);
    wr(0x320, 0x31);
    fake_clock_advance(&clk, NSEC_PER_SEC);
    cr_assert_not(cpu[0].intr);
}

/* -- IPIs
 * ------------------------------------------------------------------------------------------ */

static void ipi(uint8_t dest, uint32_t low)
{
    wr(0x310, (uint32_t)dest << 24);
    wr(0x300, low);
}

Test(lapic, physical_and_broadcast, .init = setup)
{
    ipi(2, 0x55);
    cr_assert_not(cpu[1].intr);
    cr_assert_eq(lapic_acknowledge(&cpu[2].lapic), 0x55);
    ipi(0xff, 0x66);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(lapic_acknowledge(&cpu[i].lapic), 0x66);
    ipi(0, 0xc0077); /* all but self */
    cr_assert_eq(lapic_acknowledge(L), -1);
    for (unsigned i = 1; i < 4; i++)
        cr_assert_eq(lapic_acknowledge(&cpu[i].lapic), 0x77);
    ipi(0, 0x80088); /* all */
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(lapic_acknowledge(&cpu[i].lapic), 0x88);
    ipi(9, 0x58); /* nobody */
}

Test(lapic, nmi_init_sipi, .init = setup)
{
    ipi(1, 0x400);
    cr_assert_eq(cpu[1].nmis, 1);
    ipi(0, 0xc4500); /* INIT, assert, all but self */
    cr_assert_eq(cpu[0].inits, 0);
    cr_assert_eq(cpu[3].inits, 1);
    ipi(0, 0xc8500); /* INIT level de-assert: nothing */
    cr_assert_eq(cpu[3].inits, 1);
    ipi(3, 0x608);
    cr_assert_eq(cpu[3].sipis, 1);
    cr_assert_eq(cpu[3].sipi_vector, 8);
    cr_assert_eq(cpu[1].sipis, 0);
}

Test(lapic, logical_flat_and_cluster, .init = setup)
{
    for (unsigned i = 0; i < 4; i++)
        lapic_mmio_write(&cpu[i].lapic, LAPIC_DEFAULT_BASE + 0xd0, 4, 1u << (24 + i));
    ipi(0x0a, 0x860);
    cr_assert_not(cpu[0].intr);
    cr_assert(cpu[1].intr);
    cr_assert_not(cpu[2].intr);
    cr_assert(cpu[3].intr);
    for (unsigned i = 0; i < 4; i++) {
        lapic_mmio_write(&cpu[i].lapic, LAPIC_DEFAULT_BASE + 0xe0, 4, 0);
        lapic_mmio_write(&cpu[i].lapic, LAPIC_DEFAULT_BASE + 0xd0, 4,
                         (i / 2) << 28 | 1u << (24 + i % 2));
    }
    ipi(0x11, 0x870);
    cr_assert_eq(lapic_acknowledge(&cpu[2].lapic), 0x70);
    cr_assert_eq(lapic_acknowledge(&cpu[0].lapic), -1);
}

Test(lapic, lowest_priority_takes_turns, .init = setup)
{
    unsigned n[4] = {0};

    lapic_mmio_write(&cpu[0].lapic, LAPIC_DEFAULT_BASE + 0x80, 4, 0x20);
    for (int i = 0; i < 9; i++) {
        ipi(0xff, 0x161);
        for (unsigned c = 0; c < 4; c++)
            if (lapic_acknowledge(&cpu[c].lapic) == 0x61) {
                n[c]++;
                lapic_mmio_write(&cpu[c].lapic, LAPIC_DEFAULT_BASE + 0xb0, 4, 0);
            }
    }
    cr_assert_eq(n[0], 0);
    cr_assert_eq(n[1], 3);
    cr_assert_eq(n[2], 3);
    cr_assert_eq(n[3], 3);
}

/* -- x2APIC
 * ---------------------------------------------------------------------------------------- */

Test(lapic, base_msr_transitions, .init = setup)
{
    uint64_t x1 = LAPIC_DEFAULT_BASE | APIC_BASE_BSP | APIC_BASE_ENABLE, x2 = x1 | APIC_BASE_EXTD;
    uint64_t off = LAPIC_DEFAULT_BASE | APIC_BASE_BSP;

    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, off | APIC_BASE_EXTD), -1);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x1 | 1), -1);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x1 | 1ull << 46), -1);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x2), 0);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x2), 0);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x1), -1);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, off), 0);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x2), -1);
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, x1), 0);
    cr_assert_eq(rd(0xf0), 0xffu, "disabling loses the state");
    cr_assert_eq(lapic_write_msr(L, MSR_APIC_BASE, 0xfed00000 | APIC_BASE_ENABLE), 0);
    cr_assert(lapic_claims(L, 0xfed00fff));
    cr_assert_not(lapic_claims(L, LAPIC_DEFAULT_BASE));
}

Test(lapic, x2apic_registers, .init = setup)
{
    uint64_t v;

    cr_assert_eq(lapic_read_msr(L, 0x802, &v), -1, "not in xAPIC mode");
    wr(0x320, 0x31);
    cr_assert(to_x2apic(L));
    cr_assert_not(lapic_claims(L, LAPIC_DEFAULT_BASE));
    cr_assert(to_x2apic(&cpu[3].lapic));
    cr_assert_eq(lapic_read_msr(&cpu[3].lapic, 0x802, &v), 0);
    cr_assert_eq(v, 3);
    cr_assert_eq(lapic_read_msr(&cpu[3].lapic, 0x80d, &v), 0);
    cr_assert_eq(v, 8);
    cr_assert_eq(lapic_read_msr(L, 0x832, &v), 0);
    cr_assert_eq(v, 0x31);

    static const uint16_t readable[] = {0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f, 0x810, 0x817,
                                        0x818, 0x81f, 0x820, 0x827, 0x828, 0x830, 0x832, 0x833,
                                        0x834, 0x835, 0x836, 0x837, 0x838, 0x839, 0x83e};
    static const uint16_t writable[] = {0x808, 0x80b, 0x80f, 0x828, 0x830, 0x832, 0x833,
                                        0x834, 0x835, 0x836, 0x837, 0x838, 0x83e, 0x83f};

    for (unsigned msr = 0x800; msr <= 0x8ff; msr++) {
        bool r = false, w = false;

        for (unsigned i = 0; i < sizeof(readable) / 2; i++)
            r |= msr == readable[i] || (msr >= 0x810 && msr <= 0x827);
        for (unsigned i = 0; i < sizeof(writable) / 2; i++)
            w |= msr == writable[i];
        cr_assert_eq(lapic_read_msr(L, msr, &v), r ? 0 : -1, "read %#x", msr);
        cr_assert_eq(lapic_write_msr(L, msr, 0), w ? 0 : -1, "write %#x", msr);
        if (w && msr != 0x830)
            cr_assert_eq(lapic_write_msr(L, msr, 1ull << 32), -1, "reserved bits of %#x", msr);
    }
    cr_assert_eq(lapic_write_msr(L, 0x80b, 1), -1);
    cr_assert_eq(lapic_write_msr(L, 0x808, 0x100), -1);
}

Test(lapic, x2apic_ipis, .init = setup)
{
    for (unsigned i = 0; i < 4; i++) {
        cr_assert(to_x2apic(&cpu[i].lapic));
        lapic_write_msr(&cpu[i].lapic, 0x80f, 0x1ff);
    }
    lapic_write_msr(L, 0x83f, 0x77);
    cr_assert_eq(lapic_acknowledge(L), 0x77);
    lapic_write_msr(L, 0x830, 2ull << 32 | 0x78);
    cr_assert_eq(lapic_acknowledge(&cpu[2].lapic), 0x78);
    lapic_write_msr(L, 0x830, 0xaull << 32 | 0x879); /* logical, cluster 0 */
    cr_assert(cpu[1].intr);
    cr_assert_eq(lapic_acknowledge(&cpu[2].lapic), -1);
    cr_assert_eq(lapic_acknowledge(&cpu[3].lapic), 0x79);
    lapic_write_msr(L, 0x830, 0xffffffffull << 32 | 0x8a);
    cr_assert_eq(lapic_acknowledge(&cpu[3].lapic), 0x8a);
}

/* -- LINT pins and the 8259
 * ------------------------------------------------------------------------- */

Test(lapic, virtual_wire, .init = setup)
{
    lapic_firmware_setup(L);
    lapic_set_lint(L, 0, true);
    cr_assert(cpu[0].intr);
    cr_assert_eq(lapic_acknowledge(L), LAPIC_EXTINT);
    self(0x31); /* the local APIC's own come first */
    cr_assert_eq(lapic_acknowledge(L), 0x31);
    lapic_set_lint(L, 0, false);
    cr_assert_not(cpu[0].intr);
    lapic_set_lint(L, 0, true);
    wr(0x350, 0x10700);
    cr_assert_not(cpu[0].intr);
    lapic_set_lint(L, 1, true);
    lapic_set_lint(L, 1, false);
    cr_assert_eq(cpu[0].nmis, 1);
}

Test(lapic, disabled_apic_passes_intr, .init = setup)
{
    lapic_write_msr(L, MSR_APIC_BASE, LAPIC_DEFAULT_BASE | APIC_BASE_BSP);
    lapic_set_lint(L, 0, true);
    cr_assert(cpu[0].intr);
    cr_assert_eq(lapic_acknowledge(L), LAPIC_EXTINT);
    cr_assert_not(lapic_claims(L, LAPIC_DEFAULT_BASE));
}

/* -- I/O APIC
 * -------------------------------------------------------------------------------------- */

static void io_wr(uint8_t reg, uint32_t value)
{
    ioapic_io_ops.write(&io, 0, 4, reg);
    ioapic_io_ops.write(&io, 0x10, 4, value);
}

static uint32_t io_rd(uint8_t reg)
{
    ioapic_io_ops.write(&io, 0, 4, reg);
    return (uint32_t)ioapic_io_ops.read(&io, 0x10, 4);
}

Test(ioapic, registers, .init = setup)
{
    cr_assert_eq(io_rd(1), 0x170020u);
    io_wr(0, 0x05000000);
    cr_assert_eq(io_rd(0), 0x05000000u);
    io_wr(0x10, 0xffffffff);
    cr_assert_eq(io_rd(0x10), 0x1afffu, "delivery status and remote IRR are read-only");
    io_wr(0x3f, 0xffffffff);
    cr_assert_eq(io_rd(0x3f), 0xff000000u);
    cr_assert_eq(io_rd(0x40), 0u);
}

Test(ioapic, edge, .init = setup)
{
    io_wr(0x11, 1u << 24);
    io_wr(0x10, 0x10041);
    ioapic_set_irq(&io, 0, true);
    io_wr(0x10, 0x41);
    cr_assert_not(cpu[1].intr, "an edge on a masked pin is lost");
    ioapic_set_irq(&io, 0, false);
    ioapic_set_irq(&io, 0, true);
    cr_assert_eq(lapic_acknowledge(&cpu[1].lapic), 0x41);
    ioapic_set_irq(&io, 0, true);
    cr_assert_not(cpu[1].intr);
}

Test(ioapic, level, .init = setup)
{
    io_wr(0x11, 0);
    io_wr(0x10, 0x8041);
    ioapic_set_irq(&io, 0, true);
    cr_assert_eq(io_rd(0x10), 0xc041u); /* remote IRR */
    cr_assert_eq(rd(0x1a0), 2u);        /* TMR bit 0x41 */
    cr_assert_eq(lapic_acknowledge(L), 0x41);
    ioapic_set_irq(&io, 0, false);
    ioapic_set_irq(&io, 0, true);
    cr_assert_not(cpu[0].intr, "not before the EOI");
    wr(0xb0, 0);
    cr_assert_eq(lapic_acknowledge(L), 0x41, "still asserted: again");
    ioapic_set_irq(&io, 0, false);
    wr(0xb0, 0);
    cr_assert_not(cpu[0].intr);
    cr_assert_eq(io_rd(0x10), 0x8041u);
    /* Masked while asserted: delivered when unmasked. */
    io_wr(0x10, 0x18041);
    ioapic_set_irq(&io, 0, true);
    cr_assert_not(cpu[0].intr);
    io_wr(0x10, 0x8041);
    cr_assert_eq(lapic_acknowledge(L), 0x41);
    /* The EOI register. */
    ioapic_io_ops.write(&io, 0x40, 4, 0x41);
    cr_assert_eq(io_rd(0x10), 0xc041u);
}

Test(ioapic, router, .init = setup)
{
    struct pic pic;
    struct fake_irq out = {0};
    struct irq_router r = {.pic = &pic, .ioapic = &io};
    struct irq_line line = irq_router_isa(&r, 0);

    pic_init(&pic, fake_irq_line(&out));
    io_wr(0x14, 0x30); /* pin 2 */
    irq_set(&line, true);
    cr_assert_eq(lapic_acknowledge(L), 0x30);
    wr(0xb0, 0);
    line = irq_router_isa(&r, 4);
    io_wr(0x18, 0x34);
    irq_set(&line, true);
    cr_assert_eq(lapic_acknowledge(L), 0x34);
    cr_assert_eq(pic.chip[0].lines, 0x11);
}

Test(ioapic, random_accesses, .init = setup)
{
    uint32_t x = 99;

    for (int i = 0; i < 200000; i++) {
        x = x * 1664525 + 1013904223;
        unsigned reg = x >> 16 & 0xfff;

        switch (x >> 28 & 7) {
        case 0:
            lapic_mmio_write(L, LAPIC_DEFAULT_BASE + reg, 4, x * 2654435761u);
            break;
        case 1:
            lapic_mmio_read(L, LAPIC_DEFAULT_BASE + reg, 1u << (x >> 8 & 3));
            break;
        case 2:
            ioapic_io_ops.write(&io, reg & 0x7f, 4, x >> 4);
            break;
        case 3:
            io_wr((uint8_t)(x >> 8), x * 2246822519u);
            break;
        case 4:
            ioapic_set_irq(&io, x >> 8 & 31, x & 1);
            break;
        case 5:
            lapic_set_lint(L, x >> 8 & 1, x & 1);
            break;
        case 6:
            fake_clock_advance(&clk, x & 0xffff);
            break;
        case 7:
            lapic_acknowledge(L);
        }
    }
}

/* -- Light accesses
 * -------------------------------------------------------------------------------- */

/* All that an access can change, without the pointers and the timer's links. */
struct image {
    uint8_t first[offsetof(struct lapic, timer) - offsetof(struct lapic, base)];
    uint8_t second[sizeof(struct lapic) - offsetof(struct lapic, initial_count)];
    bool intr, armed;
    uint64_t deadline;
};

static struct image image_of(const struct cpu *c)
{
    struct image im;

    memset(&im, 0, sizeof(im));
    memcpy(im.first, &c->lapic.base, sizeof(im.first));
    memcpy(im.second, &c->lapic.initial_count, sizeof(im.second));
    im.intr = c->intr;
    im.armed = c->lapic.timer.armed;
    im.deadline = im.armed ? c->lapic.timer.deadline : 0;
    return im;
}

/*
 * Two machines of `cpus` processors get the same accesses, one of them by the light functions where
 * they do not decline: registers, values and interrupts are the same all the time, and what is
 * declined has changed nothing.
 */
static void compare_light(unsigned cpus, bool x2, unsigned seed)
{
    struct fake_clock clock[2];
    struct apic_bus buses[2] = {0};
    struct ioapic ios[2];
    struct cpu c[2][2];
    unsigned light = 0, declined = 0;
    static const uint16_t often[] = {0x80, 0xb0, 0x300, 0x310, 0x3f0, 0x80, 0xb0, 0x300};

    memset(c, 0, sizeof(c));
    for (unsigned m = 0; m < 2; m++) {
        fake_clock_init(&clock[m]);
        for (unsigned i = 0; i < cpus; i++) {
            struct lapic_config cfg = {.id = i, .bsp = i == 0, .bus_hz = BUS_HZ, .tsc_hz = TSC_HZ,
                                       .phys_bits = 46, .cpu = &ops, .cpu_opaque = &c[m][i]};
            lapic_init(&c[m][i].lapic, &cfg, &buses[m], &clock[m].timers);
            lapic_mmio_write(&c[m][i].lapic, LAPIC_DEFAULT_BASE + 0xf0, 4, 0x1ff);
            if (x2)
                cr_assert(to_x2apic(&c[m][i].lapic));
        }
        ioapic_init(&ios[m], &buses[m]);
    }
    srand(seed);
    for (unsigned step = 0; step < 60000; step++) {
        unsigned what = (unsigned)rand() % 16, reg = (unsigned)rand() % 64 * 16;
        uint64_t value = (uint64_t)(unsigned)rand() << (rand() & 1 ? 0 : 20);
        uint64_t got[2] = {0, 0};
        int err[2] = {0, 0};
        bool done = false, pending = false;

        if (what < 12 && (rand() & 1))
            reg = often[(unsigned)rand() % 8];
        if (rand() & 1)
            value &= 0xff;
        if (reg == 0x300 && (rand() & 3)) /* fixed, to oneself or to where ICR2 says */
            value = (value & 0xff) | (rand() & 1 ? 0x40000 : 0);
        if (reg == 0xb0)
            value = rand() & 7 ? 0 : value;
        if (reg == 0xf0)
            value |= 0x100;
        struct image before = image_of(&c[1][0]);
        for (unsigned m = 0; m < 2; m++) {
            struct lapic *l = &c[m][0].lapic;
            struct apic_message msg = {.dest = 0, .vector = (uint8_t)value,
                                       .level_triggered = value >> 8 & 1};
            switch (what) {
            case 0: case 1: case 2:
                if (x2) {
                    done = m && lapic_read_msr_light(l, 0x800 + reg / 16, &got[m]);
                    err[m] = done ? 0 : lapic_read_msr(l, 0x800 + reg / 16, &got[m]);
                } else {
                    done = m && lapic_mmio_read_light(l, LAPIC_DEFAULT_BASE + reg, 4, &got[m]);
                    if (!done)
                        got[m] = lapic_mmio_read(l, LAPIC_DEFAULT_BASE + reg, 4);
                }
                break;
            case 3: case 4: case 5: case 6: case 7: case 8: case 9:
                if (x2)
                    done = m && lapic_write_msr_light(l, 0x800 + reg / 16, value, &pending);
                else
                    done = m && lapic_mmio_write_light(l, LAPIC_DEFAULT_BASE + reg, 4, value, &pending);
                if (done) {
                    c[m][0].intr = pending;
                    break;
                }
                if (m) {
                    struct image after = image_of(&c[1][0]);
                    cr_assert_arr_eq(&before, &after, sizeof(after), "declined %#x", reg);
                }
                if (x2)
                    err[m] = lapic_write_msr(l, 0x800 + reg / 16, value);
                else
                    lapic_mmio_write(l, LAPIC_DEFAULT_BASE + reg, 4, value);
                break;
            case 10:
                if (m)
                    c[m][0].intr = lapic_set_cr8_light(l, value & 15);
                else
                    lapic_set_cr8(l, value & 15);
                break;
            case 11: case 12: case 13: {
                int vector;
                if (m && lapic_acknowledge_light(l, &vector, &pending)) {
                    got[m] = (uint64_t)vector;
                    c[m][0].intr = pending;
                } else {
                    got[m] = (uint64_t)lapic_acknowledge(l);
                }
                break;
            }
            case 14:
                apic_bus_send(&buses[m], &msg);
                break;
            default:
                fake_clock_advance(&clock[m], 1000);
            }
        }
        light += done;
        declined += what < 10 && !done;
        cr_assert_eq(got[0], got[1], "step %u: %u, register %#x", step, what, reg);
        cr_assert_eq(err[0], err[1], "step %u: %u, register %#x", step, what, reg);
        for (unsigned i = 0; i < cpus; i++) {
            struct image a = image_of(&c[0][i]), b = image_of(&c[1][i]);
            cr_assert_arr_eq(&a, &b, sizeof(a), "step %u: %u, register %#x, value %#llx", step,
                             what, reg, (unsigned long long)value);
        }
    }
    cr_assert_gt(light, 5000, "%u", light);
    cr_assert_gt(declined, 1000);
}

Test(lapic, light_accesses_do_the_same)
{
    for (unsigned seed = 1; seed < 4; seed++) {
        compare_light(1, false, seed);
        compare_light(1, true, seed);
        compare_light(2, false, seed);
        compare_light(2, true, seed);
    }
}
