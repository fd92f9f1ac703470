/*
 * Local APIC (SDM vol. 3, chapter 10), in xAPIC (memory-mapped) and x2APIC (MSR) mode, and the bus
 * between the local APICs that carries IPIs and the messages of the I/O APIC and of MSIs.
 *
 * A local APIC does not know its CPU: it reports through struct lapic_cpu_ops, and the machine
 * asks lapic_acknowledge() when the CPU can take an interrupt.
 */
#ifndef RINGSHIFT_DEVICES_LAPIC_H
#define RINGSHIFT_DEVICES_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/timer.h"

#define LAPIC_DEFAULT_BASE 0xfee00000ull
#define LAPIC_SIZE         0x1000u
#define LAPIC_MAX          64

/* IA32_APIC_BASE (SDM vol. 3, 10.4.4 and 10.12.1). */
#define APIC_BASE_BSP    (1ull << 8)
#define APIC_BASE_EXTD   (1ull << 10)
#define APIC_BASE_ENABLE (1ull << 11)

#define MSR_APIC_BASE    0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC_FIRST 0x800u
#define MSR_X2APIC_LAST  0x8ffu

/* Delivery modes of the ICR, LVT entries and I/O APIC entries. */
enum apic_delivery {
    APIC_FIXED = 0,
    APIC_LOWEST = 1,
    APIC_SMI = 2,
    APIC_NMI = 4,
    APIC_INIT = 5,
    APIC_SIPI = 6,
    APIC_EXTINT = 7,
};

/* How a local APIC reaches its CPU.  Machine lock held. */
struct lapic_cpu_ops {
    /* Whether lapic_acknowledge() has (or the 8259 through LINT0) something to deliver. */
    void (*intr)(void *opaque, bool pending);
    void (*nmi)(void *opaque);
    void (*init)(void *opaque);
    void (*sipi)(void *opaque, uint8_t vector);
    /* The guest's TSC now; not negative in time. */
    uint64_t (*tsc)(void *opaque);
};

struct lapic_config {
    uint32_t id;
    bool bsp;
    uint64_t bus_hz; /* rate of the timer before the divider */
    uint64_t tsc_hz;
    unsigned phys_bits; /* MAXPHYADDR: which bits of IA32_APIC_BASE are reserved */
    const struct lapic_cpu_ops *cpu;
    void *cpu_opaque;
};

enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

struct lapic {
    struct lapic_config cfg;
    struct apic_bus *bus;
    uint64_t base; /* IA32_APIC_BASE */

    uint8_t id; /* xAPIC ID register; x2APIC uses cfg.id */
    uint8_t tpr;
    uint32_t ldr, dfr, svr;
    uint32_t irr[8], isr[8], tmr[8];
    uint32_t esr, esr_pending;
    uint64_t icr;
    uint32_t lvt[LVT_COUNT];
    bool lint[2]; /* state of the pins */
    bool intr_pending;

    struct vm_timer timer;
    uint32_t initial_count, divide;
    uint64_t timer_start;  /* ns: when the count was loaded */
    uint64_t timer_fired;  /* one-shot: done; periodic: periods reported */
    uint64_t tsc_deadline; /* 0 = disarmed */
};

/* What connects them. */
struct apic_bus {
    struct lapic *lapic[LAPIC_MAX];
    unsigned count;
    unsigned last_lowest; /* round robin of lowest-priority delivery */
    /* A level-triggered interrupt was completed: tells the I/O APICs. */
    void (*eoi)(void *opaque, uint8_t vector);
    void *eoi_opaque;
};

struct apic_message {
    uint32_t dest;
    bool logical;
    bool wide; /* dest is a 32-bit x2APIC ID rather than an 8-bit one */
    enum apic_delivery mode;
    uint8_t vector;
    bool level_triggered;
};

/* Returns whether somebody took it. */
bool apic_bus_send(struct apic_bus *bus, const struct apic_message *msg);
/* A message-signalled interrupt (SDM vol. 3, 10.11): false also if the address is not the local
 * APICs'. */
bool apic_bus_send_msi(struct apic_bus *bus, uint64_t address, uint32_t data);

/* Adds itself to the bus (at most LAPIC_MAX; -ENOSPC) in the power-up state. */
int lapic_init(struct lapic *l, const struct lapic_config *cfg, struct apic_bus *bus,
               struct timer_queue *timers);
/* Power-up/reset.  `init`: only what INIT resets (SDM 10.4.7.3: the ID and base stay). */
void lapic_reset(struct lapic *l, bool init);
void lapic_destroy(struct lapic *l);
/* Leaves it as firmware hands it to an operating system: enabled, LINT0 = ExtINT on the boot CPU,
 * LINT1 = NMI ("virtual wire mode", MultiProcessor Specification 3.6.2.2). */
void lapic_firmware_setup(struct lapic *l);

/* LINT0 (0): the 8259's output. LINT1 (1): NMI. */
void lapic_set_lint(struct lapic *l, unsigned pin, bool level);

/* Takes the highest deliverable interrupt into service: its vector, LAPIC_EXTINT if the 8259
 * should be asked instead, or -1 for none. */
#define LAPIC_EXTINT 256
int lapic_acknowledge(struct lapic *l);
/* Recomputes and reports whether something is deliverable. */
void lapic_update(struct lapic *l);

/* Memory-mapped registers: whether this address is this local APIC's, and the access. */
bool lapic_claims(const struct lapic *l, uint64_t gpa);
uint64_t lapic_mmio_read(struct lapic *l, uint64_t gpa, unsigned size);
void lapic_mmio_write(struct lapic *l, uint64_t gpa, unsigned size, uint64_t value);

/* MSR_APIC_BASE, MSR_TSC_DEADLINE and the x2APIC range: 0, or -1 for #GP(0). */
int lapic_read_msr(struct lapic *l, uint32_t msr, uint64_t *value);
int lapic_write_msr(struct lapic *l, uint32_t msr, uint64_t value);

/* CR8: bits 7:4 of the TPR (SDM 10.8.6). */
static inline uint8_t lapic_cr8(const struct lapic *l)
{
    return l->tpr >> 4;
}
void lapic_set_cr8(struct lapic *l, uint8_t value);

/*
 * The same for light code (devices/bus.h) of this local APIC's own CPU.  False, with nothing changed,
 * for what faults, is about time, or concerns anybody else.  After a write *pending is what
 * lapic_cpu_ops.intr would have been told, which the caller sees to.
 */
bool lapic_mmio_read_light(const struct lapic *l, uint64_t gpa, unsigned size, uint64_t *value);
bool lapic_mmio_write_light(struct lapic *l, uint64_t gpa, unsigned size, uint64_t value,
                            bool *pending);
bool lapic_read_msr_light(const struct lapic *l, uint32_t msr, uint64_t *value);
bool lapic_write_msr_light(struct lapic *l, uint32_t msr, uint64_t value, bool *pending);
/* False if there is nothing for lapic_acknowledge(), or it is the 8259's. */
bool lapic_acknowledge_light(struct lapic *l, int *vector, bool *pending);
/* Returns what would be *pending. */
bool lapic_set_cr8_light(struct lapic *l, uint8_t value);

#endif
