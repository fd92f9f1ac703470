/*
 * The machine: construction, the platform callbacks of its vCPUs over the buses, the vCPU threads,
 * and the ways a run ends.  See machine.h for who may call what, and for the lock.
 *
 * Stopping: whoever wants the run to end or the machine to be reset sets `stop` and raises EV_STOP
 * on all vCPUs.  Each vCPU thread leaves the engine and parks; the thread of vCPU 0 waits for the
 * others and then acts: it returns from machine_run(), or resets everything and lets them go on.
 */
#include "runtime/machine.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "cpu/cpuid.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/host_time.h"
#include "cpu/platform.h"
#include "cpu/reset.h"
#include "cpu/system.h"
#include "devices/acpi.h"
#include "devices/acpi_pm.h"
#include "devices/bus.h"
#include "devices/chipset.h"
#include "devices/debug_ports.h"
#include "devices/fw_cfg.h"
#include "devices/i8042.h"
#include "devices/ioapic.h"
#include "devices/irq_router.h"
#include "devices/lapic.h"
#include "devices/parallel.h"
#include "devices/pci.h"
#include "devices/pflash.h"
#include "devices/pic.h"
#include "devices/piix4_pm.h"
#include "devices/pit.h"
#include "devices/reset.h"
#include "devices/rtc.h"
#include "devices/serial.h"
#include "devices/vga_pci.h"
#include "devices/virtio_blk.h"
#include "devices/virtio_rng.h"
#include "mmu/ram.h"
#include "runtime/boot_order.h"
#include "runtime/drive.h"
#include "runtime/event_loop.h"
#include "runtime/firmware.h"
#include "runtime/light_platform.h"
#include "runtime/storage.h"
#include "runtime/trace.h"
#include "runtime/tsc.h"
#include "runtime/vcpu_timers.h"

/* PCI slots 0 to 2 are the bridges' and the display's. */
#define FIRST_FREE_SLOT 3
#define MIN_MEMORY      (2ull << 20)
#define LOW_RAM_END     0x9fc00u /* the last KiB below 640K is the extended BIOS data area */
#define EBDA_END        0xa0000u
#define PCI_HOLE_BASE   0xc0000000ull /* RAM_LOW_MAX at the earliest */
#define HIGH_RAM        0x100000u     /* conventional memory ends, extended memory begins */

enum stop { STOP_NONE, STOP_POWEROFF, STOP_RESET, STOP_TRIPLE, STOP_ERROR, STOP_EXIT };

/* Where an application processor is in its start-up (SDM vol. 3, 8.4). */
enum startup { STARTUP_RUNNING, STARTUP_WAIT_SIPI };

struct machine_vcpu {
    struct machine *machine;
    struct vcpu *v;
    struct lapic lapic;
    struct vcpu_timers timers; /* the local APIC's */
    _Atomic pthread_t thread;
    bool has_thread;       /* a thread of ours, to be joined */
    _Atomic bool sleeping; /* in futex_wait on v->events */
    bool attached;         /* engine->vcpu_init() succeeded */
    /* Under the lock: */
    enum startup startup;
    bool init_pending, sipi_pending;
    uint8_t sipi_vector;
    /* Counters for --stats. */
    uint64_t halts, interrupts;
};

struct machine {
    struct light_platform light; /* first: struct platform * is a struct machine * */
    struct machine_config cfg;
    struct cpu_model model;
    struct guest_ram ram;
    bool ram_created;
    struct engine *engine;
    struct event_loop *loop;
    struct machine_vcpu *cpu; /* cfg.cpus of them */

    struct light_cond parked_cond, resume_cond;
    unsigned running;            /* vCPU threads in run_vcpu() that have not stopped for `paused` */
    struct light_cond stopped_cond; /* running became 0 */
    uint64_t frozen_tsc;         /* when the guest's clocks were stopped */
    unsigned parked;     /* vCPU threads other than 0 that wait for `generation` to change */
    uint64_t generation; /* counts resets */
    bool ending;         /* vCPU threads: return */

    _Atomic int stop;    /* enum stop */
    _Atomic bool quit;   /* machine_quit() was called */
    _Atomic bool paused; /* machine_stop() was called; changed under the lock */
    void (*listener)(void *opaque, enum machine_event what);
    void *listener_opaque;
    char message[400]; /* for STOP_TRIPLE and STOP_ERROR; written by who set `stop` */

    struct ioapic ioapic;
    struct pic pic;
    struct irq_router irqs;
    struct pit pit;
    struct rtc rtc;
    struct serial com1;
    struct acpi_pm pm;
    struct reset_control reset_control;
    struct i8042 i8042;
    struct pci_host pci;
    struct chipset chipset;
    struct storage storage;
    struct piix4_pm piix4_pm;
    struct fw_cfg fw_cfg; /* these two: with firmware only */
    struct pflash vars;
    struct debug_ports debug;
    struct parallel lpt1;
    int exit_code;
    struct event_fd *block_fd;
    struct vga_pci vga;
    struct virtio_blk *virtio_disk[DRIVES_MAX];
    unsigned virtio_disks;
    uint8_t virtio_slot[DRIVES_MAX];
    struct virtio_rng rng;
};

static struct machine *machine_of(struct platform *p)
{
    return (struct machine *)p;
}

static struct machine_vcpu *cpu_of(const struct vcpu *v)
{
    return &machine_of(v->platform)->cpu[v->id];
}

/* -- Events and stopping ----------------------------------------------------------------------- */

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

/* Sleeps while *word == value, at most until the deadline (CLOCK_MONOTONIC, ns). */
static void futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t deadline)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline / NSEC_PER_SEC),
                          .tv_nsec = (long)(deadline % NSEC_PER_SEC)};

    syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, value,
            deadline == TIMER_NEVER ? NULL : &ts, NULL, FUTEX_BITSET_MATCH_ANY);
}

void vcpu_raise(struct vcpu *v, uint32_t events)
{
    struct machine_vcpu *c = cpu_of(v);
    struct machine *m = c->machine;
    uint32_t old = atomic_fetch_or(&v->events, events);

    if ((old & events) == events)
        return; /* whoever raised them has made the vCPU notice */
    if (pthread_equal(c->thread, pthread_self())) {
        if (cpu_event_due(v))
            atomic_store(&v->exit_request, 1); /* seen on the way back into translated code */
    } else if (c->sleeping) {
        futex_wake(&v->events);
    } else {
        m->engine->ops->kick(m->engine, v);
    }
}

static void raise_all(struct machine *m, uint32_t events)
{
    for (unsigned i = 0; i < m->cfg.cpus; i++)
        vcpu_raise(m->cpu[i].v, events);
}

/* The first reason wins.  Async-signal-safe.  True if it was this one. */
static bool request_stop(struct machine *m, enum stop why)
{
    int none = STOP_NONE;

    if (!atomic_compare_exchange_strong(&m->stop, &none, why))
        return false;
    raise_all(m, EV_STOP);
    return true;
}

static void __attribute__((format(printf, 3, 4)))
stop_with_message(struct machine *m, enum stop why, const char *fmt, ...)
{
    char text[sizeof(m->message)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    /* Nobody reads it before all vCPU threads have parked, this one included. */
    if (request_stop(m, why))
        memcpy(m->message, text, sizeof(text));
}

void machine_quit(struct machine *m)
{
    atomic_store(&m->quit, true);
    raise_all(m, EV_STOP);
}

static bool stopping(struct machine *m)
{
    return atomic_load(&m->stop) != STOP_NONE || atomic_load(&m->quit);
}

static void tell(struct machine *m, enum machine_event what)
{
    if (m->listener)
        m->listener(m->listener_opaque, what);
}

static void on_power_off(void *opaque)
{
    request_stop(opaque, STOP_POWEROFF);
}

static void on_reset(void *opaque)
{
    request_stop(opaque, STOP_RESET);
}

/* The A20 gate: one wire to all processors.  Lock held. */
static void set_a20(void *opaque, bool on)
{
    struct machine *m = opaque;

    for (unsigned i = 0; i < m->cfg.cpus; i++)
        vcpu_set_a20(m->cpu[i].v, on);
}

static bool get_a20(void *opaque)
{
    const struct machine *m = opaque;

    return !atomic_load(&m->cpu[0].v->a20_off);
}

static void on_debug_exit(void *opaque, int code)
{
    struct machine *m = opaque;

    if (request_stop(m, STOP_EXIT))
        m->exit_code = code;
}

/* -- What the local APICs say to their vCPUs
 * ------------------------------------------------------- */

static void lapic_intr(void *opaque, bool pending)
{
    struct machine_vcpu *c = opaque;

    if (pending)
        vcpu_raise(c->v, EV_INTR);
    else
        atomic_fetch_and(&c->v->events, ~(uint32_t)EV_INTR);
}

static void lapic_nmi(void *opaque)
{
    struct machine_vcpu *c = opaque;

    vcpu_raise(c->v, EV_NMI);
}

static void lapic_take_init(void *opaque)
{
    struct machine_vcpu *c = opaque;

    /* INIT sends the boot processor to the reset vector, where firmware would start over. */
    if (c->v->id == 0) {
        request_stop(c->machine, STOP_RESET);
        return;
    }
    c->init_pending = true;
    c->sipi_pending = false;
    vcpu_raise(c->v, EV_STOP);
}

static void lapic_take_sipi(void *opaque, uint8_t vector)
{
    struct machine_vcpu *c = opaque;

    if (c->startup != STARTUP_WAIT_SIPI && !c->init_pending)
        return; /* ignored by a running processor */
    c->sipi_pending = true;
    c->sipi_vector = vector;
    vcpu_raise(c->v, EV_STOP);
}

static uint64_t lapic_tsc(void *opaque)
{
    struct machine_vcpu *c = opaque;

    return __rdtsc() + c->v->tsc_offset;
}

static const struct lapic_cpu_ops lapic_cpu_ops = {
    .intr = lapic_intr,
    .nmi = lapic_nmi,
    .init = lapic_take_init,
    .sipi = lapic_take_sipi,
    .tsc = lapic_tsc,
};

/* The 8259s' output goes to LINT0 of every local APIC. */
static void set_pic_output(void *opaque, unsigned n, bool level)
{
    struct machine *m = opaque;

    (void)n;
    for (unsigned i = 0; i < m->light.apic_bus.count; i++)
        lapic_set_lint(m->light.apic_bus.lapic[i], 0, level);
}

static void broadcast_eoi(void *opaque, uint8_t vector)
{
    struct machine *m = opaque;

    ioapic_eoi(&m->ioapic, vector);
}

static void set_pirq(void *opaque, unsigned pirq, bool level)
{
    struct machine *m = opaque;

    chipset_set_pirq(&m->chipset, pirq, level);
}

static void send_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct machine *m = opaque;

    apic_bus_send_msi(&m->light.apic_bus, address, data);
}

/* -- Platform callbacks
 * ---------------------------------------------------------------------------- */

static void trace_io(const struct machine *m, const char *what, char direction, uint64_t address,
                     unsigned size, uint64_t value)
{
    const struct engine_config *c = &m->cfg.engine_cfg;

    if (!c->trace || !(c->trace_mask & TRACE_IO) || address < c->trace_lo || address > c->trace_hi)
        return;
    fprintf(c->trace, "io: %s %c %#" PRIx64 " size %u value %#" PRIx64 "\n", what, direction,
            address, size, value);
}

/* Disk requests that this access has started may have ended already. */
static void reap_blocks(struct machine *m)
{
    if (m->cfg.drives)
        block_queue_reap(m->cfg.drives->queue);
}

static uint32_t platform_pio_read(struct platform *p, uint16_t port, unsigned size)
{
    struct machine *m = machine_of(p);
    uint32_t value;

    machine_lock(m);
    m->light.pio_accesses++;
    value = (uint32_t)io_bus_read(&m->light.ports, port, size);
    reap_blocks(m);
    trace_io(m, "port", 'R', port, size, value);
    machine_unlock(m);
    return value;
}

static void platform_pio_write(struct platform *p, uint16_t port, unsigned size, uint32_t value)
{
    struct machine *m = machine_of(p);

    machine_lock(m);
    m->light.pio_accesses++;
    trace_io(m, "port", 'W', port, size, value);
    io_bus_write(&m->light.ports, port, size, value);
    reap_blocks(m);
    machine_unlock(m);
}

/* The lock, and the books of --stats.  For calls that name their vCPU; the others' callers keep
 * them. */
static enum host_cause enter_devices(struct machine *m, struct vcpu *v)
{
    enum host_cause was = host_time_switch(v, HOST_DEVICE);

    machine_lock(m);
    return was;
}

static void leave_devices(struct machine *m, struct vcpu *v, enum host_cause was)
{
    machine_unlock(m);
    host_time_switch(v, was);
}

static uint64_t platform_mmio_read(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size)
{
    struct machine *m = machine_of(p);
    struct lapic *l = &cpu_of(v)->lapic;
    uint64_t value;

    enum host_cause was = enter_devices(m, v);
    m->light.mmio_accesses++;
    if (lapic_claims(l, gpa))
        value = lapic_mmio_read(l, gpa, size);
    else
        value = io_bus_read(&m->light.mmio, gpa, size);
    trace_io(m, "mmio", 'R', gpa, size, value);
    leave_devices(m, v, was);
    return value;
}

static void platform_mmio_write(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                                uint64_t value)
{
    struct machine *m = machine_of(p);
    struct lapic *l = &cpu_of(v)->lapic;

    enum host_cause was = enter_devices(m, v);
    m->light.mmio_accesses++;
    trace_io(m, "mmio", 'W', gpa, size, value);
    if (lapic_claims(l, gpa))
        lapic_mmio_write(l, gpa, size, value);
    else
        io_bus_write(&m->light.mmio, gpa, size, value);
    reap_blocks(m);
    leave_devices(m, v, was);
}

static int platform_intr_ack(struct platform *p, struct vcpu *v)
{
    struct machine *m = machine_of(p);
    struct machine_vcpu *c = cpu_of(v);
    int vector;

    enum host_cause was = enter_devices(m, v);
    vector = lapic_acknowledge(&c->lapic);
    if (vector == LAPIC_EXTINT)
        vector = pic_acknowledge(&m->pic);
    lapic_update(&c->lapic);
    if (vector < 0)
        atomic_fetch_and(&v->events, ~(uint32_t)EV_INTR);
    else
        c->interrupts++;
    leave_devices(m, v, was);
    return vector;
}

static void platform_run_timers(struct platform *p, struct vcpu *v)
{
    struct machine *m = machine_of(p);

    enum host_cause was = enter_devices(m, v);
    vcpu_timers_run(&cpu_of(v)->timers);
    leave_devices(m, v, was);
}

static int platform_apic_read_msr(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t *value)
{
    struct machine *m = machine_of(p);
    int err;

    enum host_cause was = enter_devices(m, v);
    m->light.lapic_accesses++;
    err = lapic_read_msr(&cpu_of(v)->lapic, msr, value);
    leave_devices(m, v, was);
    return err;
}

static int platform_apic_write_msr(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t value)
{
    struct machine *m = machine_of(p);
    struct lapic *l = &cpu_of(v)->lapic;
    int err;

    enum host_cause was = enter_devices(m, v);
    m->light.lapic_accesses++;
    err = lapic_write_msr(l, msr, value);
    if (v->apic_base != l->base) { /* CPUID shows whether it is enabled */
        v->apic_base = l->base;
        cpu_cpuid_forget(v);
    }
    leave_devices(m, v, was);
    return err;
}

static void platform_set_cr8(struct platform *p, struct vcpu *v, uint8_t tpr_class)
{
    struct machine *m = machine_of(p);

    enum host_cause was = enter_devices(m, v);
    lapic_set_cr8(&cpu_of(v)->lapic, tpr_class);
    leave_devices(m, v, was);
}

static uint8_t platform_get_cr8(struct platform *p, struct vcpu *v)
{
    struct machine *m = machine_of(p);
    uint8_t value;

    enum host_cause was = enter_devices(m, v);
    value = lapic_cr8(&cpu_of(v)->lapic);
    leave_devices(m, v, was);
    return value;
}

static const struct platform_ops platform_ops = {
    .pio_read = platform_pio_read,
    .pio_write = platform_pio_write,
    .mmio_read = platform_mmio_read,
    .mmio_write = platform_mmio_write,
    .intr_ack = platform_intr_ack,
    .run_timers = platform_run_timers,
    .apic_read_msr = platform_apic_read_msr,
    .apic_write_msr = platform_apic_write_msr,
    .set_cr8 = platform_set_cr8,
    .get_cr8 = platform_get_cr8,
#ifndef RS_NO_LIGHT_DEVICES
    .pio_read_light = light_pio_read,
    .pio_write_light = light_pio_write,
    .mmio_read_light = light_mmio_read,
    .mmio_write_light = light_mmio_write,
    .apic_read_msr_light = light_apic_read_msr,
    .apic_write_msr_light = light_apic_write_msr,
    .set_cr8_light = light_set_cr8,
    .intr_ack_light = light_intr_ack,
#endif
};

/* -- Firmware's part
 * ------------------------------------------------------------------------------- */

/* What a BIOS leaves behind besides tables: the few words of the BIOS data area that operating
 * systems still read. */
static int write_bios_data(struct machine *m)
{
    const struct {
        uint16_t address, value;
    } words[] = {
        {0x400, SERIAL_COM1_PORT},
        {0x40e, LOW_RAM_END >> 4}, /* segment of the extended BIOS data area */
        {0x410, 1 << 9},           /* equipment: one serial port */
        {0x413, LOW_RAM_END >> 10},
    };

    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        int err = ram_write(&m->ram, words[i].address, &words[i].value, sizeof(words[i].value));

        if (err)
            return err;
    }
    return 0;
}

static const uint8_t pirq_irq[PCI_INTX_PINS] = {10, 10, 11, 11};

static struct acpi_config acpi_config(const struct machine *m)
{
    struct acpi_config acpi = {
        .cpus = m->cfg.cpus,
        .low_size = m->ram.low_size,
        .pm_base = ACPI_PM_PORT,
        .ecam = !m->cfg.firmware, /* the 440FX has none, and firmware puts BARs there */
        .vga = m->cfg.vga,
        .parallel = true,
    };

    if (m->piix4_pm.pm_base != PIIX4_UNMAPPED)
        acpi.pm_base = (uint16_t)m->piix4_pm.pm_base;
    memcpy(acpi.pirq_irq, pirq_irq, sizeof(pirq_irq));
    return acpi;
}

/* The tables name the ports where firmware has put the ACPI registers by the time it asks. */
static void describe_acpi(void *opaque)
{
    struct machine *m = opaque;
    struct acpi_config acpi = acpi_config(m);
    struct acpi_blobs b;

    if (acpi_build_blobs(&acpi, &b))
        return; /* what was there stays */
    fw_cfg_set_file(&m->fw_cfg, ACPI_TABLES_FILE, b.tables, (uint32_t)b.tables_len);
    fw_cfg_set_file(&m->fw_cfg, ACPI_RSDP_FILE, b.rsdp, (uint32_t)b.rsdp_len);
    fw_cfg_set_file(&m->fw_cfg, ACPI_LOADER_FILE, b.loader, (uint32_t)b.loader_len);
    acpi_free_blobs(&b);
}

static int create_firmware(struct machine *m)
{
    struct firmware_facts facts = {
        .cpus = m->cfg.cpus,
        .ram_low = m->ram.low_size,
        .ram_high = m->ram.high_size,
        .graphics = m->cfg.vga,
        .serial_console = m->cfg.serial_console,
        .boot_menu = m->cfg.boot_menu,
        .menu_wait_ms = 5000,
        .tsc_mhz = (uint32_t)(m->light.platform.tsc_hz / 1000000),
    };
    const char *letters = m->cfg.boot_order ? m->cfg.boot_order : BOOT_ORDER_DEFAULT;
    char order[BOOT_ORDER_MAX];
    uint32_t id[4];
    int err;

    boot_order_cmos(letters, &m->storage, m->cfg.vga, &m->rtc);
    rtc_set_nvram(&m->rtc, 0x5f, (uint8_t)(m->cfg.cpus - 1));
    if (!m->cfg.firmware)
        return 0;
    if (boot_order_paths(letters, &m->storage, m->virtio_slot, order))
        facts.boot_order = order;
    cpu_cpuid(m->cpu[0].v, 1, 0, id);
    facts.cpuid_eax = id[0];
    facts.cpuid_edx = id[3];
    err = firmware_install(m->cfg.firmware, &m->ram, &m->light.mmio, &m->chipset, &m->vars);
    err = err ? err : fw_cfg_init(&m->fw_cfg, &m->ram);
    err = err ? err : firmware_describe(&m->fw_cfg, &facts);
    if (err)
        return err;
    describe_acpi(m);
    err = fw_cfg_on_select(&m->fw_cfg, ACPI_TABLES_FILE, describe_acpi, m);
    err = err ? err : fw_cfg_on_select(&m->fw_cfg, ACPI_RSDP_FILE, describe_acpi, m);
    err = err ? err : fw_cfg_on_select(&m->fw_cfg, ACPI_LOADER_FILE, describe_acpi, m);
    err = err ? err : io_bus_add(&m->light.ports, FW_CFG_PORT, FW_CFG_PORTS, &fw_cfg_io_ops, &m->fw_cfg);
    return err ? err
               : io_bus_add(&m->light.ports, FW_CFG_DMA_PORT, FW_CFG_DMA_LEN, &fw_cfg_dma_ops,
                            &m->fw_cfg);
}

/* What firmware would have done, for a guest that starts without. */
static int firmware(struct machine *m)
{
    uint16_t level_triggered = 1u << ACPI_SCI_IRQ;
    struct acpi_config acpi;
    int err;

    chipset_shadow(&m->chipset);
    piix4_pm_assign(&m->piix4_pm);
    err = write_bios_data(m);
    acpi = acpi_config(m);
    for (unsigned i = 0; i < PCI_INTX_PINS; i++)
        level_triggered |= (uint16_t)(1u << pirq_irq[i]);
    pic_elcr_ops.write(&m->pic, 0, 1, level_triggered & 0xff);
    pic_elcr_ops.write(&m->pic, 1, 1, level_triggered >> 8);
    chipset_route(&m->chipset, pirq_irq);
    pci_host_assign(&m->pci, PCI_HOLE_BASE, PCI_ECAM_BASE, pirq_irq);
    if (m->cfg.vga) {
        vga_post(&m->vga.vga);
        i8042_firmware_setup(&m->i8042);
    }
    for (unsigned i = 0; i < m->cfg.cpus; i++)
        lapic_firmware_setup(&m->cpu[i].lapic);
    return err ? err : acpi_build(&acpi, &m->ram);
}

unsigned machine_e820(const struct machine *m, struct boot_e820_entry *out, unsigned max)
{
    enum { RAM = 1, RESERVED = 2, ACPI = 3, NVS = 4 };
    const struct boot_e820_entry map[] = {
        {0, LOW_RAM_END, RAM},
        {LOW_RAM_END, EBDA_END - LOW_RAM_END, RESERVED},
        {ACPI_AREA, ACPI_FACS_SIZE, NVS},
        {ACPI_RSDP, ACPI_AREA_SIZE - ACPI_FACS_SIZE, ACPI},
        {ACPI_AREA + ACPI_AREA_SIZE, HIGH_RAM - ACPI_AREA - ACPI_AREA_SIZE, RESERVED},
        {HIGH_RAM, m->ram.low_size - HIGH_RAM, RAM},
        {PCI_ECAM_BASE, PCI_ECAM_SIZE, RESERVED},
        {IOAPIC_BASE, IOAPIC_SIZE, RESERVED},
        {LAPIC_DEFAULT_BASE, LAPIC_SIZE, RESERVED},
        {RAM_HIGH_BASE, m->ram.high_size, RAM},
    };
    unsigned n = sizeof(map) / sizeof(map[0]) - (m->ram.high_size == 0);

    memcpy(out, map, (n < max ? n : max) * sizeof(map[0]));
    return n;
}

void machine_screen_info(const struct machine *m, struct screen_info *out)
{
    *out = (struct screen_info){0};
    if (m->cfg.vga)
        *out = (struct screen_info){
            .orig_video_mode = 3,
            .orig_video_cols = 80,
            .orig_video_lines = 25,
            .orig_video_points = 16,
            .orig_video_ega_bx = 3, /* 256 KiB of video memory */
            .orig_video_isVGA = 1,
        };
}

uint64_t machine_acpi_rsdp(const struct machine *m)
{
    (void)m;
    return ACPI_RSDP;
}

/* -- Reset
 * ----------------------------------------------------------------------------------------- */

static void reset_vcpu(struct machine_vcpu *c)
{
    vcpu_reset(c->v);
    c->startup = c->v->id == 0 ? STARTUP_RUNNING : STARTUP_WAIT_SIPI;
    c->init_pending = c->sipi_pending = false;
}

/* Brings everything but RAM to the state after power-up.  Lock held, no vCPU runs. */
static void reset_all(struct machine *m)
{
    for (unsigned i = 0; i < m->cfg.cpus; i++)
        reset_vcpu(&m->cpu[i]);
    pit_reset(&m->pit);
    serial_reset(&m->com1);
    rtc_reset(&m->rtc);
    acpi_pm_reset(&m->pm);
    i8042_reset(&m->i8042);
    reset_control_reset(&m->reset_control);
    storage_reset(&m->storage);
    debug_ports_flush(&m->debug);
    parallel_reset(&m->lpt1);
    if (m->cfg.firmware) {
        fw_cfg_reset(&m->fw_cfg);
        if (m->cfg.firmware->vars_len)
            pflash_reset(&m->vars);
    }
    pci_host_reset(&m->pci);
    pic_reset(&m->pic);
    ioapic_reset(&m->ioapic);
    for (unsigned i = 0; i < m->cfg.cpus; i++) {
        lapic_reset(&m->cpu[i].lapic, false);
        m->cpu[i].v->apic_base = m->cpu[i].lapic.base;
    }
}

/* -- vCPU threads
 * ---------------------------------------------------------------------------------- */

/* Whether something is pending that ends HLT (or wait-for-SIPI, which only EV_STOP ends). */
static bool awake(const struct vcpu *v, uint32_t events, bool wait_sipi)
{
    uint32_t wake = EV_STOP;

    if (!wait_sipi) {
        wake |= EV_FLUSH;
        if (v->rflags & FL_IF)
            wake |= EV_INTR;
        if (!v->nmi_blocked)
            wake |= EV_NMI;
    }
    return events & wake;
}

/*
 * Sleeps until then.  What a halted vCPU waits for is nearly always its own timer, so it takes the
 * timers over, its own and those of the I/O thread, while it sleeps: one wake-up instead of two, and the I/O thread stays asleep.
 */
static void wait_for_events(struct machine_vcpu *c, bool wait_sipi)
{
    struct machine *m = c->machine;
    struct vcpu *v = c->v;
    uint64_t deadline, own;
    uint32_t events;
    bool adopted;

    if (awake(v, atomic_load(&v->events), wait_sipi))
        return;
    enum host_cause was = host_time_switch(v, HOST_IDLE);
    machine_lock(m);
    adopted = event_loop_adopt_timers(m->loop, &deadline);
    vcpu_timers_sleep(&c->timers);
    own = vcpu_timers_deadline(&c->timers);
    machine_unlock(m);
    atomic_store(&c->sleeping, true);
    while (!awake(v, events = atomic_load(&v->events), wait_sipi)) {
        if (!(events & EV_TIMER)) {
            futex_wait(&v->events, events, adopted && deadline < own ? deadline : own);
            if (atomic_load(&v->events) != events)
                continue;
        }
        host_time_switch(v, HOST_DEVICE);
        machine_lock(m);
        atomic_fetch_and(&v->events, ~(uint32_t)EV_TIMER);
        vcpu_timers_run(&c->timers);
        if (adopted)
            deadline = event_loop_run_adopted(m->loop);
        own = vcpu_timers_deadline(&c->timers);
        machine_unlock(m);
        host_time_switch(v, HOST_IDLE);
    }
    atomic_store(&c->sleeping, false);
    machine_lock(m);
    if (adopted)
        event_loop_hand_back_timers(m->loop);
    vcpu_timers_wake(&c->timers);
    machine_unlock(m);
    host_time_switch(v, was);
}

/* Under machine_stop(): sleeps until machine_cont(), or the end. */
static void sleep_while_paused(struct machine_vcpu *c)
{
    struct machine *m = c->machine;
    struct vcpu *v = c->v;

    machine_lock(m);
    for (;;) {
        if (!m->paused || stopping(m))
            break;
        m->running--;
        light_cond_signal(&m->stopped_cond);
        machine_unlock(m);
        /* Whoever ends this raises EV_STOP after having changed what we look at. */
        atomic_store(&c->sleeping, true);
        for (;;) {
            uint32_t events = atomic_load(&v->events);

            if (events & EV_STOP)
                break;
            futex_wait(&v->events, events, TIMER_NEVER);
        }
        atomic_store(&c->sleeping, false);
        atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
        machine_lock(m);
        m->running++;
    }
    machine_unlock(m);
}

static void count_running(struct machine *m, int change)
{
    machine_lock(m);
    m->running += (unsigned)change;
    light_cond_signal(&m->stopped_cond);
    machine_unlock(m);
}

static int attach(struct machine_vcpu *c)
{
    struct machine *m = c->machine;
    int err = m->engine->ops->vcpu_init(m->engine, c->v);

    if (err)
        stop_with_message(m, STOP_ERROR, "cannot set up vCPU %u: %s", c->v->id, strerror(-err));
    else
        c->attached = true;
    /* What came before was for nobody. */
    machine_lock(m);
    vcpu_timers_run(&c->timers);
    machine_unlock(m);
    return err;
}

static void detach(struct machine_vcpu *c)
{
    struct machine *m = c->machine;

    if (c->attached)
        m->engine->ops->vcpu_destroy(m->engine, c->v);
    c->attached = false;
}

/* INIT and SIPI as they come in; true if the vCPU is to run. */
static bool take_startup(struct machine_vcpu *c)
{
    struct machine *m = c->machine;
    struct vcpu *v = c->v;
    bool run, reattach = false;

    machine_lock(m);
    if (c->init_pending) {
        bool sipi = c->sipi_pending;

        vcpu_init(v);
        lapic_reset(&c->lapic, true);
        c->init_pending = false;
        c->sipi_pending = sipi;
        c->startup = STARTUP_WAIT_SIPI;
        reattach = true;
    }
    if (c->startup == STARTUP_WAIT_SIPI && c->sipi_pending) {
        vcpu_start(v, c->sipi_vector);
        c->sipi_pending = false;
        c->startup = STARTUP_RUNNING;
    }
    run = c->startup == STARTUP_RUNNING;
    machine_unlock(m);
    if (reattach) {
        detach(c);
        if (attach(c))
            return false;
    }
    return run;
}

/* Starts the books of --stats, if they are wanted.  Timeouts of this thread's sleeps are exact: the
 * default lets them be 50 us late. */
static void prepare_thread(struct machine_vcpu *c)
{
    c->v->host_time.on = c->machine->cfg.stats;
    c->v->host_time.since = __rdtsc();
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    machine_lock(c->machine);
    vcpu_timers_begin(&c->timers, c->machine->engine->ops->timer_signal);
    machine_unlock(c->machine);
}

static void finish_thread(struct machine_vcpu *c)
{
    machine_lock(c->machine);
    vcpu_timers_end(&c->timers);
    machine_unlock(c->machine);
}

/* Runs until somebody stops the machine. */
static void run_vcpu(struct machine_vcpu *c)
{
    struct machine *m = c->machine;
    struct vcpu *v = c->v;

    count_running(m, 1);
    while (!stopping(m)) {
        if (atomic_load(&m->paused)) {
            host_time_switch(v, HOST_IDLE);
            sleep_while_paused(c);
            host_time_switch(v, HOST_VMM);
            continue;
        }
        if (!take_startup(c)) {
            if (stopping(m))
                break;
            wait_for_events(c, true);
            atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
            continue;
        }
        m->engine->ops->run(m->engine, v);
        switch (v->exit) {
        case VCPU_EXIT_HLT:
            c->halts++;
            wait_for_events(c, false);
            break;
        case VCPU_EXIT_TRIPLE:
            stop_with_message(m, STOP_TRIPLE,
                              "the guest stopped by a triple fault at %#" PRIx64 " (CPL %u)",
                              v->rip, v->cpl);
            break;
        case VCPU_EXIT_UNSUPPORTED:
        case VCPU_EXIT_ERROR:
            stop_with_message(m, STOP_ERROR, "%.*s", (int)sizeof(v->exit_reason), v->exit_reason);
            break;
        case VCPU_EXIT_NONE:
        case VCPU_EXIT_STOP:
            break;
        }
    }
    count_running(m, -1);
}

/* Waits for the next life of the guest; true if there is none. */
static bool park(struct machine *m)
{
    uint64_t generation;
    bool ending;

    machine_lock(m);
    generation = m->generation;
    m->parked++;
    light_cond_signal(&m->parked_cond);
    while (m->generation == generation && !m->ending)
        light_cond_wait(&m->resume_cond, &m->light.lock);
    ending = m->ending;
    machine_unlock(m);
    return ending;
}

/* The thread of a vCPU other than 0. */
static void *vcpu_thread(void *opaque)
{
    struct machine_vcpu *c = opaque;

    prepare_thread(c);
    while (!park(c->machine)) {
        if (!attach(c))
            run_vcpu(c);
        detach(c);
    }
    finish_thread(c);
    return NULL;
}

static void wait_until_parked(struct machine *m, unsigned threads)
{
    machine_lock(m);
    while (m->parked < threads)
        light_cond_wait(&m->parked_cond, &m->light.lock);
    machine_unlock(m);
}

static int start_threads(struct machine *m, unsigned *started)
{
    int err = 0;

    machine_lock(m);
    m->ending = false;
    for (*started = 0; *started + 1 < m->cfg.cpus && !err; *started += !err) {
        struct machine_vcpu *c = &m->cpu[*started + 1];
        pthread_t thread;

        err = pthread_create(&thread, NULL, vcpu_thread, c);
        if (!err)
            c->thread = thread;
        c->has_thread = !err;
    }
    machine_unlock(m);
    return -err;
}

static void end_threads(struct machine *m)
{
    machine_lock(m);
    m->ending = true;
    light_cond_broadcast(&m->resume_cond);
    machine_unlock(m);
    for (unsigned i = 1; i < m->cfg.cpus; i++) {
        if (m->cpu[i].has_thread)
            pthread_join(m->cpu[i].thread, NULL);
        m->cpu[i].has_thread = false;
    }
}

/* One life of the guest, from reset to the next stop.  The others are parked. */
static void boot_and_run(struct machine *m)
{
    struct machine_vcpu *c = &m->cpu[0];
    char err[300] = "";
    int code;

    machine_lock(m);
    reset_all(m);
    code = m->cfg.firmware ? 0 : firmware(m);
    machine_unlock(m);
    if (code) {
        stop_with_message(m, STOP_ERROR, "cannot write the firmware tables: %s", strerror(-code));
        return;
    }
    if (attach(c))
        return;
    code = m->cfg.load && !m->cfg.firmware ? m->cfg.load(m, m->cfg.load_opaque, err, sizeof(err)) : 0;
    if (code) {
        stop_with_message(m, STOP_ERROR, "%s", *err ? err : strerror(-code));
    } else {
        machine_lock(m);
        m->parked = 0;
        m->generation++;
        light_cond_broadcast(&m->resume_cond);
        machine_unlock(m);
        run_vcpu(c);
    }
    detach(c);
}

enum machine_result machine_run(struct machine *m, char *msg, unsigned msglen)
{
    enum machine_result result = MACHINE_ERROR;
    unsigned started = 0;
    int err;

    if (msglen)
        msg[0] = '\0';
    m->cpu[0].thread = pthread_self();
    prepare_thread(&m->cpu[0]);
    if (m->cfg.cpus == 1)
        event_loop_follow(m->loop);
    err = event_loop_start(m->loop);
    if (!err)
        err = start_threads(m, &started);
    if (err) {
        snprintf(msg, msglen, "the host refuses a thread (see ulimit -u): %s", strerror(-err));
        atomic_store(&m->quit, true);
    }
    for (;;) {
        bool reset;

        wait_until_parked(m, started);
        if (!err)
            boot_and_run(m);
        raise_all(m, EV_STOP);
        reset = atomic_load(&m->stop) == STOP_RESET && !m->cfg.no_reboot;
        if (!reset || atomic_load(&m->quit))
            break;
        wait_until_parked(m, started);
        tell(m, MACHINE_EVENT_RESET);
        atomic_store(&m->stop, STOP_NONE);
    }
    tell(m, MACHINE_EVENT_SHUTDOWN);
    end_threads(m);
    finish_thread(&m->cpu[0]);
    event_loop_stop(m->loop);
    if (err)
        return MACHINE_REFUSED;
    switch ((enum stop)atomic_load(&m->stop)) {
    case STOP_NONE:
        result = MACHINE_QUIT;
        break;
    case STOP_POWEROFF:
        result = MACHINE_POWEROFF;
        break;
    case STOP_RESET:
        result = atomic_load(&m->quit) ? MACHINE_QUIT : MACHINE_REBOOT;
        break;
    case STOP_EXIT:
        result = MACHINE_EXIT;
        break;
    case STOP_TRIPLE:
        result = MACHINE_TRIPLE_FAULT;
        break;
    case STOP_ERROR:
        result = MACHINE_ERROR;
        break;
    }
    if (msglen)
        snprintf(msg, msglen, "%s", m->message);
    return result;
}

/* -- Construction
 * ---------------------------------------------------------------------------------- */

static int64_t wall_clock(void *opaque)
{
    struct timespec ts;

    (void)opaque;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * (int64_t)NSEC_PER_SEC + ts.tv_nsec;
}

static int create_vcpu(struct machine *m, unsigned i)
{
    struct machine_vcpu *c = &m->cpu[i];
    struct lapic_config apic = {
        .id = i,
        .bsp = i == 0,
        .bus_hz = APIC_BUS_HZ,
        .tsc_hz = m->light.platform.tsc_hz,
        .phys_bits = CPU_PHYS_BITS,
        .cpu = &lapic_cpu_ops,
        .cpu_opaque = c,
    };
    struct vcpu *v = vcpu_alloc();
    int err;

    if (!v)
        return -ENOMEM;
    c->machine = m;
    c->v = v;
    v->id = i;
    v->platform = &m->light.platform;
    v->ram = &m->ram;
    v->model = &m->model;
    err = vcpu_fp_init(v);
    if (err)
        return err;
    vcpu_reset(v);
    vcpu_timers_init(&c->timers, m->loop);
    return lapic_init(&c->lapic, &apic, &m->light.apic_bus, &c->timers.queue);
}

static int add_port(struct machine *m, uint16_t port, unsigned count, const struct io_ops *ops,
                    void *opaque)
{
    return io_bus_add(&m->light.ports, port, count, ops, opaque);
}

/* Puts every device on its bus. */
static int connect_devices(struct machine *m)
{
    const struct {
        uint16_t port, count;
        const struct io_ops *ops;
        void *opaque;
    } ports[] = {
        {PIC_MASTER_PORT, 2, &pic_io_ops, &m->pic.chip[0]},
        {PIC_SLAVE_PORT, 2, &pic_io_ops, &m->pic.chip[1]},
        {PIC_ELCR_PORT, 2, &pic_elcr_ops, &m->pic},
        {PIT_PORT, 4, &pit_io_ops, &m->pit},
        {PIT_SPEAKER_PORT, 1, &pit_speaker_ops, &m->pit},
        {I8042_DATA_PORT, 1, &i8042_data_ops, &m->i8042},
        {I8042_COMMAND_PORT, 1, &i8042_command_ops, &m->i8042},
        {RTC_PORT, 2, &rtc_io_ops, &m->rtc},
        {RESET_FAST_PORT, 1, &reset_fast_ops, &m->reset_control},
        {SERIAL_COM1_PORT, SERIAL_PORTS, &serial_io_ops, &m->com1},
        {PIIX4_APM_PORT, PIIX4_APM_PORTS, &piix4_apm_ops, &m->piix4_pm},
        {DEBUGCON_BOCHS_PORT, 1, &debugcon_ops, &m->debug},
        {DEBUGCON_PORT, 1, &debugcon_ops, &m->debug},
        {DEBUG_EXIT_PORT, DEBUG_EXIT_PORTS, &debug_exit_ops, &m->debug},
        {PARALLEL_PORT, PARALLEL_PORTS, &parallel_io_ops, &m->lpt1},
        {PCI_CONFIG_PORT, PCI_CONFIG_PORTS, &pci_host_ops, &m->pci},
    };

    for (unsigned i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
        int err = add_port(m, ports[i].port, ports[i].count, ports[i].ops, ports[i].opaque);

        if (err)
            return err;
    }
    int err = io_bus_add(&m->light.mmio, IOAPIC_BASE, IOAPIC_SIZE, &ioapic_io_ops, &m->ioapic);

    err = err ? err : io_bus_add(&m->light.mmio, PAM_BASE, PAM_SIZE, &chipset_pam_ops, &m->chipset);
    if (!err && !m->cfg.firmware)
        err = io_bus_add(&m->light.mmio, PCI_ECAM_BASE, PCI_ECAM_SIZE, &pci_ecam_ops, &m->pci);
    return err;
}

static void poll_blocks(void *opaque, uint32_t events)
{
    (void)events;
    block_queue_poll(opaque);
}

static int attach_virtio(struct machine *m, const struct drive *d)
{
    int slot = pci_free_slot(&m->pci, FIRST_FREE_SLOT);

    if (slot < 0 || m->virtio_disks == DRIVES_MAX)
        return -ENOSPC;
    m->virtio_slot[m->virtio_disks] = (uint8_t)slot;
    return virtio_blk_create(&m->virtio_disk[m->virtio_disks++], &m->pci, PCI_DEVFN_OF(slot, 0),
                             d->dev);
}

/* Connects a drive to its controller, unless that is storage.c's. */
static int attach_drive(struct machine *m, const struct drive *d, char *err, unsigned errlen)
{
    int code;

    if (d->kind != DRIVE_DISK || d->bus != DRIVE_BUS_VIRTIO)
        return 0;
    code = attach_virtio(m, d);
    if (code)
        snprintf(err, errlen, "%s cannot be attached: %s", d->dev->name, strerror(-code));
    return code;
}

static int create_drives(struct machine *m, char *err, unsigned errlen)
{
    const struct drive_set *set = m->cfg.drives;
    int code = storage_init(
        &m->storage,
        &(struct storage_config){
            .pci = &m->pci,
            .ports = &m->light.ports,
            .ram = &m->ram,
            .floppy_irq = irq_router_isa(&m->irqs, FDC_IRQ),
            .ide_irq = {irq_router_isa(&m->irqs, IDE_IRQ0), irq_router_isa(&m->irqs, IDE_IRQ1)},
            .drives = set,
            .ide_devfn = PCI_DEVFN_OF(PCI_ISA_SLOT, 1),
            .ahci_slot = PCI_ISA_SLOT + 2,
        },
        err, errlen);

    if (code || !set)
        return code;
    code = event_loop_add_fd(m->loop, block_queue_fd(set->queue), EPOLLIN, poll_blocks, set->queue,
                             &m->block_fd);
    for (unsigned i = 0; i < set->count && !code; i++)
        code = attach_drive(m, &set->drive[i], err, errlen);
    return code;
}

/* The drives outlive the machine; what it started has to end before its devices go. */
static void destroy_drives(struct machine *m)
{
    for (unsigned i = 0; m->cfg.drives && i < m->cfg.drives->count; i++) {
        struct block_device *d = m->cfg.drives->drive[i].dev;

        block_drain(d);
        d->media_changed = NULL;
    }
    for (unsigned i = 0; i < m->virtio_disks; i++)
        virtio_blk_destroy(m->virtio_disk[i]);
}

static void debug_sink(void *opaque, const char *text, size_t len)
{
    struct machine *m = opaque;

    if (m->cfg.debugcon)
        m->cfg.debugcon(m->cfg.debugcon_opaque, text, len);
}

static int create_devices(struct machine *m)
{
    struct timer_queue *timers = event_loop_timers(m->loop);
    struct irq_line isa[ISA_IRQS];
    int err;

    m->light.apic_bus.eoi = broadcast_eoi;
    m->light.apic_bus.eoi_opaque = m;
    ioapic_init(&m->ioapic, &m->light.apic_bus);
    pic_init(&m->pic, (struct irq_line){.set = set_pic_output, .opaque = m});
    m->irqs = (struct irq_router){.pic = &m->pic, .ioapic = &m->ioapic};
    pit_init(&m->pit, irq_router_isa(&m->irqs, 0), timers);
    rtc_init(&m->rtc, irq_router_isa(&m->irqs, RTC_IRQ), timers, wall_clock, NULL, m->ram.low_size,
             m->ram.high_size);
    serial_init(&m->com1, irq_router_isa(&m->irqs, SERIAL_COM1_IRQ), m->cfg.serial0);
    acpi_pm_init(&m->pm, irq_router_isa(&m->irqs, ACPI_SCI_IRQ), timers, on_power_off, m);
    reset_control_init(&m->reset_control, on_reset, m);
    m->reset_control.set_a20 = set_a20;
    m->reset_control.get_a20 = get_a20;
    i8042_init(&m->i8042, &(struct i8042_config){.reset = on_reset,
                                                 .set_a20 = set_a20,
                                                 .get_a20 = get_a20,
                                                 .opaque = m,
                                                 .kbd_irq = irq_router_isa(&m->irqs, I8042_KBD_IRQ),
                                                 .aux_irq = irq_router_isa(&m->irqs, I8042_AUX_IRQ),
                                                 .timers = timers,
                                                 .devices = m->cfg.vga});
    pci_host_init(&m->pci, &(struct pci_host_config){.reset_control = &m->reset_control,
                                                     .ports = &m->light.ports,
                                                     .mmio = &m->light.mmio,
                                                     .ram = &m->ram,
                                                     .set_pirq = set_pirq,
                                                     .send_msi = send_msi,
                                                     .opaque = m});
    for (unsigned i = 0; i < ISA_IRQS; i++)
        isa[i] = irq_router_isa(&m->irqs, i);
    debug_ports_init(&m->debug, debug_sink, on_debug_exit, m);
    err = chipset_init(&m->chipset, &m->pci, isa);
    err = err ? err : piix4_pm_init(&m->piix4_pm, &m->pci, &m->pm);

    if (!err && m->cfg.vga)
        err = vga_pci_init(&m->vga, &(struct vga_pci_config){.host = &m->pci,
                                                             .ram = &m->ram,
                                                             .ports = &m->light.ports,
                                                             .mmio = &m->light.mmio,
                                                             .timers = timers,
                                                             .rom = m->cfg.vga_rom,
                                                             .rom_len = m->cfg.vga_rom_len});
    if (!err && m->cfg.rng)
        err = virtio_rng_init(&m->rng, &m->pci, PCI_DEVFN_OF(FIRST_FREE_SLOT, 0));
    return err;
}

static int create(struct machine *m, char *err, unsigned errlen)
{
    struct tsc_calibration tsc;
    int code;

    if (errlen)
        *err = '\0';
    tsc_calibration_begin(&tsc);
    code = event_loop_create(&m->loop, &m->light.lock);
    if (code) {
        snprintf(err, errlen, "cannot set up the event loop: %s", strerror(-code));
        return code;
    }
    code = ram_create(&m->ram, m->cfg.memory);
    if (code) {
        snprintf(err, errlen, "the host refuses %" PRIu64 " MiB of guest memory: %s",
                 m->cfg.memory >> 20, strerror(-code));
        return code;
    }
    m->ram_created = true;
    code = m->cfg.engine->create(&m->cfg.engine_cfg, &m->ram, &m->engine, err, errlen);
    if (code)
        return code;

    m->light.platform.ops = &platform_ops;
    m->light.platform.tsc_hz = tsc_calibration_finish(&tsc);
    if (m->cfg.baseline_cpu)
        cpu_model_baseline(&m->model, m->cfg.cpus, m->light.platform.tsc_hz);
    else
        cpu_model_host(&m->model, m->cfg.cpus, m->light.platform.tsc_hz);

    m->cpu = calloc(m->cfg.cpus, sizeof(*m->cpu));
    code = m->cpu ? 0 : -ENOMEM;
    for (unsigned i = 0; i < m->cfg.cpus && !code; i++)
        code = create_vcpu(m, i);
    if (!code) {
        code = create_devices(m);
        code = code ? code : connect_devices(m);
        code = code ? code : create_drives(m, err, errlen);
        code = code ? code : create_firmware(m);
    }
    if (code && errlen && !*err)
        snprintf(err, errlen, "cannot create the machine: %s", strerror(-code));
    return code;
}

int machine_create(struct machine **out, const struct machine_config *cfg, char *err,
                   unsigned errlen)
{
    struct machine *m;
    int code;

    if (cfg->cpus < 1 || cfg->cpus > MACHINE_MAX_CPUS) {
        snprintf(err, errlen, "a machine has 1 to %u CPUs", MACHINE_MAX_CPUS);
        return -EINVAL;
    }
    if (cfg->memory < MIN_MEMORY) {
        snprintf(err, errlen, "a machine needs at least %llu MiB of memory", MIN_MEMORY >> 20);
        return -EINVAL;
    }
    m = calloc(1, sizeof(*m));
    if (!m) {
        snprintf(err, errlen, "cannot create the machine: %s", strerror(ENOMEM));
        return -ENOMEM;
    }
    m->cfg = *cfg;
    m->light.trace_io = cfg->engine_cfg.trace && (cfg->engine_cfg.trace_mask & TRACE_IO);
    code = create(m, err, errlen);
    if (code) {
        machine_destroy(m);
        return code;
    }
    *out = m;
    return 0;
}

void machine_destroy(struct machine *m)
{
    if (m->loop)
        event_loop_stop(m->loop);
    destroy_drives(m);
    if (m->rng.vdev.class)
        virtio_rng_destroy(&m->rng);
    serial_destroy(&m->com1);
    for (unsigned i = 0; m->cpu && i < m->cfg.cpus; i++) {
        struct vcpu *v = m->cpu[i].v;

        if (!v)
            continue;
        vcpu_fp_destroy(v);
        vcpu_free(v);
    }
    free(m->cpu);
    if (m->engine)
        m->engine->ops->destroy(m->engine);
    vga_pci_destroy(&m->vga);
    storage_destroy(&m->storage);
    debug_ports_flush(&m->debug);
    fw_cfg_destroy(&m->fw_cfg);
    piix4_pm_destroy(&m->piix4_pm);
    pci_function_destroy(&m->chipset.host_bridge);
    pci_function_destroy(&m->chipset.isa_bridge);
    io_bus_destroy(&m->light.ports);
    io_bus_destroy(&m->light.mmio);
    if (m->ram_created)
        ram_destroy(&m->ram);
    /* Timers are embedded in devices, which go with the machine: the queue is not run any more. */
    if (m->loop)
        event_loop_destroy(m->loop);
    free(m);
}

/* -- Access
 * ---------------------------------------------------------------------------------------- */

void machine_power_button(struct machine *m)
{
    acpi_pm_power_button(&m->pm);
    tell(m, MACHINE_EVENT_POWERDOWN);
}

void machine_reset(struct machine *m)
{
    request_stop(m, STOP_RESET);
}

static bool hold(struct machine *m, bool quiet)
{
    bool was_running;

    machine_lock(m);
    was_running = !m->paused;
    if (was_running) {
        atomic_store(&m->paused, true);
        raise_all(m, EV_STOP);
        while (m->running)
            light_cond_wait(&m->stopped_cond, &m->light.lock);
        event_loop_freeze(m->loop);
        m->frozen_tsc = __rdtsc();
        if (!quiet)
            tell(m, MACHINE_EVENT_STOP);
    }
    machine_unlock(m);
    return was_running;
}

static void release(struct machine *m, bool quiet)
{
    machine_lock(m);
    if (m->paused) {
        uint64_t lost = __rdtsc() - m->frozen_tsc;

        /* Both clocks lose the same stretch, so they still agree with each other. */
        event_loop_thaw(m->loop);
        for (unsigned i = 0; i < m->cfg.cpus; i++) {
            m->cpu[i].v->tsc_offset -= lost;
            vcpu_timers_run(&m->cpu[i].timers);
        }
        atomic_store(&m->paused, false);
        if (!quiet)
            tell(m, MACHINE_EVENT_RESUME);
        raise_all(m, EV_STOP);
    }
    machine_unlock(m);
}

void machine_stop(struct machine *m)
{
    hold(m, false);
}

void machine_cont(struct machine *m)
{
    release(m, false);
}

bool machine_hold(struct machine *m)
{
    return hold(m, true);
}

void machine_release(struct machine *m)
{
    release(m, true);
}

bool machine_stopped(const struct machine *m)
{
    return atomic_load(&m->paused);
}

void machine_set_listener(struct machine *m, void (*event)(void *opaque, enum machine_event what),
                          void *opaque)
{
    m->listener = event;
    m->listener_opaque = opaque;
}

bool machine_has_screen(const struct machine *m)
{
    return m->cfg.vga;
}

bool machine_screen(struct machine *m, struct vga_regs *regs, const uint8_t **vram)
{
    if (!m->cfg.vga)
        return false;
    machine_lock(m);
    *regs = m->vga.vga.r;
    machine_unlock(m);
    *vram = m->vga.vga.vram;
    return true;
}

bool machine_key(struct machine *m, unsigned key, bool down)
{
    bool known;

    machine_lock(m);
    known = i8042_key(&m->i8042, key, down);
    machine_unlock(m);
    return known;
}

unsigned machine_keys_pending(struct machine *m)
{
    unsigned n;

    machine_lock(m);
    n = m->i8042.kbd.queue.count;
    machine_unlock(m);
    return n;
}

void machine_mouse(struct machine *m, int dx, int dy, int dz, uint8_t buttons)
{
    machine_lock(m);
    i8042_mouse(&m->i8042, dx, dy, dz, buttons);
    machine_unlock(m);
}

int machine_exit_code(const struct machine *m)
{
    return m->exit_code;
}

struct guest_ram *machine_ram(struct machine *m)
{
    return &m->ram;
}

struct vcpu *machine_vcpu(struct machine *m, unsigned index)
{
    return index < m->cfg.cpus ? m->cpu[index].v : NULL;
}

const struct drive_set *machine_drives(const struct machine *m)
{
    return m->cfg.drives;
}

struct event_loop *machine_event_loop(struct machine *m)
{
    return m->loop;
}

struct engine *machine_engine(struct machine *m)
{
    return m->engine;
}

void machine_lock(struct machine *m)
{
    light_lock_take(&m->light.lock);
}

void machine_unlock(struct machine *m)
{
    light_lock_release(&m->light.lock);
}

/* What the vCPU threads did since machine_run() began, and what the process used. */
static void print_host_time(struct machine *m, FILE *out)
{
    static const char *const names[HOST_CAUSES] = {
        [HOST_GUEST] = "guest code",     [HOST_TRANSLATE] = "translating",
        [HOST_VERIFY] = "verifying",     [HOST_CALLOUT] = "callouts",
        [HOST_MEMORY] = "memory misses", [HOST_DEVICE] = "devices",
        [HOST_VMM] = "dispatcher",       [HOST_IDLE] = "idle",
    };
    static const uint8_t order[] = {HOST_GUEST,  HOST_TRANSLATE, HOST_VERIFY, HOST_CALLOUT,
                                    HOST_MEMORY, HOST_DEVICE,    HOST_VMM,    HOST_IDLE};
    struct rusage use;

    for (unsigned i = 0; i < m->cfg.cpus; i++) {
        const struct host_time *t = &m->cpu[i].v->host_time;
        uint64_t total = 0;

        if (!t->on)
            continue;
        for (unsigned c = 0; c < HOST_CAUSES; c++)
            total += t->spent[c];
        fprintf(out, "host time:    vCPU %u: %.3f s:", i,
                (double)total / (double)m->light.platform.tsc_hz);
        for (unsigned k = 0; k < sizeof(order); k++)
            if (t->spent[order[k]] || order[k] != HOST_VERIFY)
                fprintf(out, "%s %s %.1f %%", k ? "," : "", names[order[k]],
                        (double)t->spent[order[k]] * 100 / (double)total);
        fputc('\n', out);
    }
    if (!getrusage(RUSAGE_SELF, &use))
        fprintf(out, "host CPU:     %ld.%03ld s in user mode, %ld.%03ld s in the kernel\n",
                use.ru_utime.tv_sec, use.ru_utime.tv_usec / 1000, use.ru_stime.tv_sec,
                use.ru_stime.tv_usec / 1000);
}

void machine_print_stats(struct machine *m, FILE *out)
{
    fprintf(out,
            "machine: TSC %" PRIu64 ".%06" PRIu64 " MHz, %" PRIu64 " port accesses, %" PRIu64
            " MMIO accesses, %" PRIu64 " local APIC MSR accesses\n",
            m->light.platform.tsc_hz / 1000000, m->light.platform.tsc_hz % 1000000, m->light.pio_accesses,
            m->light.mmio_accesses, m->light.lapic_accesses);
    for (unsigned i = 0; i < m->cfg.cpus; i++)
        fprintf(out, "vCPU %u: %" PRIu64 " interrupts, %" PRIu64 " halts\n", i,
                m->cpu[i].interrupts + m->light.interrupts[i], m->cpu[i].halts);
    print_host_time(m, out);
    m->engine->ops->print_stats(m->engine, out);
}
