/*
 * The machine with an engine that executes nothing but a C function in place of the guest: threads,
 * sleep and wake-up, stopping, resetting, several vCPUs; and the event loop and TSC calibration
 * under it.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <signal.h>
#include <unistd.h>
#include <x86intrin.h>

#include "cpu/exception.h"
#include "cpu/platform.h"
#include "devices/chardev.h"
#include "devices/timer.h"
#include "mmu/ram.h"
#include "runtime/event_loop.h"
#include "runtime/machine.h"
#include "runtime/tsc.h"
#include "runtime/vcpu_timers.h"

/* -- A fake engine
 * --------------------------------------------------------------------------------- */

/* One step of the "guest": returns what run() returns with. */
typedef enum vcpu_exit (*guest_fn)(struct vcpu *v);

static guest_fn guest[4];
static _Atomic unsigned kicks, inits, destroys, runs;
static int init_error;

static int fake_create(const struct engine_config *cfg, struct guest_ram *ram, struct engine **out,
                       char *err, unsigned errlen)
{
    extern const struct engine_ops fake_ops;

    *out = calloc(1, sizeof(**out));
    (*out)->ops = &fake_ops;
    return 0;
}

static void fake_destroy(struct engine *e)
{
    free(e);
}

static int fake_vcpu_init(struct engine *e, struct vcpu *v)
{
    inits++;
    return init_error;
}

static void fake_vcpu_destroy(struct engine *e, struct vcpu *v)
{
    destroys++;
}

static void fake_run(struct engine *e, struct vcpu *v)
{
    runs++;
    v->exit = VCPU_EXIT_NONE;
    v->exit_request = 0;
    /* What cpu_take_events() does, without delivering to anything. */
    if (v->events & EV_STOP) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
        v->exit = VCPU_EXIT_STOP;
        return;
    }
    if (v->events & EV_NMI) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_NMI);
        v->halted = false;
    }
    v->exit = guest[v->id](v);
}

static void fake_kick(struct engine *e, struct vcpu *v)
{
    kicks++;
    atomic_store(&v->exit_request, 1);
}

static void fake_stats(struct engine *e, FILE *out) {}

const struct engine_ops fake_ops = {
    .name = "fake",
    .create = fake_create,
    .destroy = fake_destroy,
    .vcpu_init = fake_vcpu_init,
    .vcpu_destroy = fake_vcpu_destroy,
    .run = fake_run,
    .kick = fake_kick,
    .print_stats = fake_stats,
};

static unsigned loads;

static int load(struct machine *m, void *opaque, char *err, unsigned errlen)
{
    loads++;
    cr_assert_eq(machine_vcpu(m, 0)->rip, 0xfff0, "the vCPU has just been reset");
    if (opaque) {
        snprintf(err, errlen, "no such kernel");
        return -ENOENT;
    }
    return 0;
}

static struct machine *create(unsigned cpus, bool no_reboot)
{
    struct machine_config cfg = {.memory = 64u << 20,
                                 .cpus = cpus,
                                 .engine = &fake_ops,
                                 .no_reboot = no_reboot,
                                 .load = load};
    struct machine *m = NULL;
    char err[200] = "";

    cr_assert_eq(machine_create(&m, &cfg, err, sizeof(err)), 0, "%s", err);
    return m;
}

static void outb(struct vcpu *v, uint16_t port, uint8_t value)
{
    v->platform->ops->pio_write(v->platform, port, 1, value);
}

static uint32_t lapic_rd(struct vcpu *v, unsigned reg)
{
    return (uint32_t)v->platform->ops->mmio_read(v->platform, v, 0xfee00000 + reg, 4);
}

static void lapic_wr(struct vcpu *v, unsigned reg, uint32_t value)
{
    v->platform->ops->mmio_write(v->platform, v, 0xfee00000 + reg, 4, value);
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* -- Ends
 * ------------------------------------------------------------------------------------------ */

static char msg[400];

static enum vcpu_exit do_power_off(struct vcpu *v)
{
    v->platform->ops->pio_write(v->platform, 0x604, 2, 1 << 13);
    cr_assert(v->events & EV_STOP);
    cr_assert(v->exit_request);
    return VCPU_EXIT_NONE;
}

Test(machine, power_off, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_power_off;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_POWEROFF);
    cr_assert_str_eq(msg, "");
    cr_assert_eq(inits, 1);
    cr_assert_eq(destroys, 1);
    machine_destroy(m);
}

static enum vcpu_exit do_reset_three_times(struct vcpu *v)
{
    if (loads == 4)
        return do_power_off(v);
    v->gpr[RAX] = 42;
    switch (loads) {
    case 1:
        outb(v, 0xcf9, 6);
        break;
    case 2:
        outb(v, 0x64, 0xfe);
        break;
    case 3:
        outb(v, 0x92, 1);
        break;
    }
    return VCPU_EXIT_NONE;
}

Test(machine, reset_restarts, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_reset_three_times;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_POWEROFF);
    cr_assert_eq(loads, 4);
    cr_assert_eq(inits, 4);
    machine_destroy(m);
}

Test(machine, no_reboot, .timeout = 100)
{
    struct machine *m = create(1, true);

    guest[0] = do_reset_three_times;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_REBOOT);
    cr_assert_eq(loads, 1);
    machine_destroy(m);
}

static enum vcpu_exit do_triple(struct vcpu *v)
{
    return VCPU_EXIT_TRIPLE;
}

Test(machine, triple_fault, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_triple;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_TRIPLE_FAULT);
    cr_assert(strstr(msg, "triple fault"));
    machine_destroy(m);
}

static enum vcpu_exit do_unsupported(struct vcpu *v)
{
    strcpy(v->exit_reason, "the guest did something odd");
    return VCPU_EXIT_UNSUPPORTED;
}

Test(machine, unsupported, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_unsupported;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_ERROR);
    cr_assert_str_eq(msg, "the guest did something odd");
    machine_destroy(m);
}

Test(machine, load_error, .timeout = 100)
{
    struct machine_config cfg = {
        .memory = 64u << 20, .cpus = 2, .engine = &fake_ops, .load = load, .load_opaque = &cfg};
    struct machine *m;

    guest[0] = do_triple;
    cr_assert_eq(machine_create(&m, &cfg, msg, sizeof(msg)), 0);
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_ERROR);
    cr_assert_str_eq(msg, "no such kernel");
    machine_destroy(m);
}

Test(machine, vcpu_init_error, .timeout = 100)
{
    struct machine *m = create(1, false);

    init_error = -ENOMEM;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_ERROR);
    cr_assert(strstr(msg, "vCPU 0"));
    machine_destroy(m);
}

Test(machine, bad_configurations)
{
    struct machine_config cfg = {.memory = 64u << 20, .cpus = 0, .engine = &fake_ops};
    struct machine *m;

    cr_assert_eq(machine_create(&m, &cfg, msg, sizeof(msg)), -EINVAL);
    cfg.cpus = MACHINE_MAX_CPUS + 1;
    cr_assert_eq(machine_create(&m, &cfg, msg, sizeof(msg)), -EINVAL);
    cfg.cpus = 1;
    cfg.memory = 4096;
    cr_assert_eq(machine_create(&m, &cfg, msg, sizeof(msg)), -EINVAL);
    cfg.memory = 1ull << 50;
    cr_assert_lt(machine_create(&m, &cfg, msg, sizeof(msg)), 0);
    cr_assert_neq(msg[0], '\0');
}

static enum vcpu_exit do_halt(struct vcpu *v)
{
    return VCPU_EXIT_HLT;
}

static void *quit_later(void *opaque)
{
    while (!runs) /* whenever the host lets it start */
        usleep(1000);
    usleep(50000);
    machine_quit(opaque);
    return NULL;
}

static enum machine_result run_and_quit(struct machine *m)
{
    pthread_t t;
    enum machine_result r;

    pthread_create(&t, NULL, quit_later, m);
    r = machine_run(m, msg, sizeof(msg));
    pthread_join(t, NULL);
    return r;
}

Test(machine, quit_ends_halt, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_halt;
    cr_assert_eq(run_and_quit(m), MACHINE_QUIT);
    machine_destroy(m);
}

static enum vcpu_exit do_spin(struct vcpu *v)
{
    while (!v->exit_request)
        _mm_pause();
    return VCPU_EXIT_NONE;
}

Test(machine, quit_kicks_a_running_guest, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_spin;
    cr_assert_eq(run_and_quit(m), MACHINE_QUIT);
    cr_assert_geq(kicks, 1);
    machine_destroy(m);
}

Test(machine, quit_before_run, .timeout = 100)
{
    struct machine *m = create(2, false);

    guest[0] = do_spin;
    machine_quit(m);
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_QUIT);
    machine_destroy(m);
}

/* -- Interrupts and sleep
 * -------------------------------------------------------------------------- */

#define TICKS 200

static unsigned ticks;
static uint64_t latency, deadline, cpu_used;

/* A tickless idle loop: arm the TSC deadline 1 ms ahead, halt, take the interrupt. */
static enum vcpu_exit do_timer(struct vcpu *v)
{
    const struct platform_ops *ops = v->platform->ops;
    int vector;

    if (!(v->rflags & FL_IF)) { /* first time */
        v->rflags |= FL_IF;
        lapic_wr(v, 0xf0, 0x1ff);
        lapic_wr(v, 0x320, 0x40000 | 0x31);
        cpu_used = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    } else {
        while ((vector = ops->intr_ack(v->platform, v)) >= 0) {
            cr_assert_eq(vector, 0x31);
            uint64_t tsc = __rdtsc();
            cr_assert_geq(tsc, deadline, "never early");
            latency += tsc - deadline;
            ticks++;
            lapic_wr(v, 0xb0, 0);
        }
    }
    cr_assert_eq(v->events & EV_INTR, 0);
    if (ticks == TICKS) {
        cpu_used = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_used;
        return do_power_off(v);
    }
    deadline = __rdtsc() + v->platform->tsc_hz / 1000;
    cr_assert_eq(ops->apic_write_msr(v->platform, v, 0x6e0, deadline), 0);
    return VCPU_EXIT_HLT;
}

Test(machine, tsc_deadline_wakes_hlt, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_timer;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_POWEROFF);
    cr_assert_eq(ticks, TICKS);
    cr_log_info("latency %.1f us, %.1f us of CPU per wake-up",
                (double)latency / TICKS * 1e6 / (double)machine_vcpu(m, 0)->platform->tsc_hz,
                (double)cpu_used / TICKS / 1e3);
    machine_destroy(m);
}

static enum vcpu_exit do_idle(struct vcpu *v)
{
    v->rflags |= FL_IF;
    return VCPU_EXIT_HLT;
}

Test(machine, idle_costs_nothing, .timeout = 100)
{
    struct machine *m = create(1, false);
    uint64_t cpu;

    guest[0] = do_idle;
    cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    cr_assert_eq(run_and_quit(m), MACHINE_QUIT);
    cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    cr_assert_leq(runs, 3);
    cr_assert_lt(cpu, 20000000ull, "%llu ns", (unsigned long long)cpu);
    machine_destroy(m);
}

/* With IF = 0 a pending interrupt must neither end HLT nor make the thread spin. */
static enum vcpu_exit do_masked_halt(struct vcpu *v)
{
    lapic_wr(v, 0xf0, 0x1ff);
    lapic_wr(v, 0x300, 0x40031);
    cr_assert(v->events & EV_INTR);
    return VCPU_EXIT_HLT;
}

Test(machine, masked_halt_sleeps, .timeout = 100)
{
    struct machine *m = create(1, false);

    guest[0] = do_masked_halt;
    cr_assert_eq(run_and_quit(m), MACHINE_QUIT);
    cr_assert_leq(runs, 3);
    machine_destroy(m);
}

Test(machine, interrupts_through_the_8259, .timeout = 100)
{
    struct machine *m = create(1, false);
    struct vcpu *v = machine_vcpu(m, 0);
    const struct platform_ops *ops = v->platform->ops;

    /* As firmware leaves it, LINT0 = ExtINT: the PIT through the master, base 0x20. */
    lapic_wr(v, 0xf0, 0x1ff);
    lapic_wr(v, 0x350, 0x700);
    static const uint8_t icw[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1}, {0x21, 0}};
    for (unsigned i = 0; i < 5; i++)
        outb(v, icw[i][0], icw[i][1]);
    cr_assert_eq(ops->intr_ack(v->platform, v), -1);
    outb(v, 0x3fc, 0x08); /* COM1: OUT2, THRE interrupt */
    outb(v, 0x3f9, 0x02);
    cr_assert(v->events & EV_INTR);
    cr_assert_eq(ops->intr_ack(v->platform, v), 0x24);
    cr_assert_eq(v->events & EV_INTR, 0);
    machine_destroy(m);
}

Test(machine, unclaimed_accesses)
{
    struct machine *m = create(1, false);
    struct vcpu *v = machine_vcpu(m, 0);
    const struct platform_ops *ops = v->platform->ops;

    cr_assert_eq(ops->pio_read(v->platform, 0x1234, 4), 0xffffffffu);
    cr_assert_eq(ops->pio_read(v->platform, 0xffff, 4), 0xffffffffu);
    cr_assert_eq(ops->mmio_read(v->platform, v, 0xd0000000, 8), UINT64_MAX);
    ops->mmio_write(v->platform, v, UINT64_MAX - 7, 8, 0);
    cr_assert_eq(ops->mmio_read(v->platform, v, 0xfec00000, 4), 0);
    cr_assert_eq(lapic_rd(v, 0x30), 0x50014);
    machine_destroy(m);
}

Test(machine, random_port_accesses, .timeout = 60)
{
    struct machine *m = create(1, false);
    struct vcpu *v = machine_vcpu(m, 0);
    const struct platform_ops *ops = v->platform->ops;
    uint32_t x = 3;

    for (int i = 0; i < 500000; i++) {
        x = x * 1664525 + 1013904223;
        uint16_t port = (uint16_t)(x >> 16) & (x & 0x80 ? 0xffff : 0x7ff);
        unsigned size = 1u << (x >> 8 & 3) & 7;

        if (x & 0x40)
            ops->pio_read(v->platform, port, size ? size : 1);
        else
            ops->pio_write(v->platform, port, size ? size : 1, x * 2654435761u);
        if (x & 0x20)
            ops->intr_ack(v->platform, v);
    }
    machine_destroy(m);
}

/* -- Several vCPUs
 * --------------------------------------------------------------------------------- */

static _Atomic unsigned woken;

/* The boot CPU starts the other (INIT, SIPI) and waits for its IPI. */
static enum vcpu_exit do_bsp(struct vcpu *v)
{
    int vector;

    if (!(v->rflags & FL_IF)) {
        v->rflags |= FL_IF;
        lapic_wr(v, 0xf0, 0x1ff);
        lapic_wr(v, 0x310, 1u << 24);
        lapic_wr(v, 0x300, 0x4500);
        lapic_wr(v, 0x310, 1u << 24);
        lapic_wr(v, 0x300, 0x4608);
        return VCPU_EXIT_HLT;
    }
    vector = v->platform->ops->intr_ack(v->platform, v);
    if (vector < 0)
        return VCPU_EXIT_HLT;
    cr_assert_eq(vector, 0x41);
    woken++;
    if (loads == 1) {
        outb(v, 0xcf9, 6);
        return VCPU_EXIT_NONE;
    }
    return do_power_off(v);
}

static enum vcpu_exit do_ap(struct vcpu *v)
{
    if (v->rip == 0 && v->seg[SEG_CS].base == 0x8000 && v->seg[SEG_CS].sel == 0x800) {
        v->rip = 0x100;
        lapic_wr(v, 0xf0, 0x1ff);
        lapic_wr(v, 0x310, 0);
        lapic_wr(v, 0x300, 0x4041);
    }
    return VCPU_EXIT_HLT;
}

Test(machine, second_cpu_starts_by_sipi_and_survives_reset, .timeout = 100)
{
    struct machine *m = create(2, false);

    guest[0] = do_bsp;
    guest[1] = do_ap;
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_POWEROFF);
    cr_assert_eq(woken, 2);
    cr_assert_eq(loads, 2);
    machine_destroy(m);
}

/* -- e820
 * ------------------------------------------------------------------------------------------ */

Test(machine, e820)
{
    struct boot_e820_entry e[32];
    struct machine_config cfg = {.memory = 5ull << 30, .cpus = 1, .engine = &fake_ops};
    struct machine *m;
    unsigned n;
    uint64_t ram = 0;
    bool rsdp = false;

    if (machine_create(&m, &cfg, msg, sizeof(msg))) {
        cfg.memory = 64u << 20; /* a small host */
        cr_assert_eq(machine_create(&m, &cfg, msg, sizeof(msg)), 0, "%s", msg);
    }
    n = machine_e820(m, e, 32);
    cr_assert_leq(n, 32);
    for (unsigned i = 0; i < n; i++) {
        cr_assert_gt(e[i].size, 0);
        if (i)
            cr_assert_geq(e[i].addr, e[i - 1].addr + e[i - 1].size);
        if (e[i].type == 1) {
            cr_assert(ram_contains(machine_ram(m), e[i].addr, e[i].size));
            ram += e[i].size;
        }
        rsdp |= e[i].type == 3 && machine_acpi_rsdp(m) >= e[i].addr &&
                machine_acpi_rsdp(m) < e[i].addr + e[i].size;
    }
    cr_assert(rsdp);
    cr_assert_geq(ram, cfg.memory - (1u << 20));
    cr_assert_eq(machine_e820(m, e, 1), n);
    machine_destroy(m);
}

/* -- Event loop
 * ------------------------------------------------------------------------------------ */

static struct light_lock lock;
static struct event_loop *loop;
static struct vm_timer timer;
static _Atomic unsigned fired;
static uint64_t worst;
static struct event_fd *pipe_event;
static char got[16];

static void on_timer(void *opaque)
{
    uint64_t late = now_ns(CLOCK_MONOTONIC) - timer.deadline;

    if (late > worst)
        worst = late;
    if (++fired < 50)
        vm_timer_set(&timer, timer_next_period(timer.deadline, 1000000, timer.deadline));
}

static void wait_for(unsigned n)
{
    for (int i = 0; i < 50000 && fired < n; i++)
        usleep(1000);
    cr_assert_geq(fired, n);
}

Test(event_loop, periodic_timer_keeps_its_phase, .timeout = 100)
{
    uint64_t start, end;

    cr_assert_eq(event_loop_create(&loop, &lock), 0);
    cr_assert_eq(event_loop_start(loop), 0);
    light_lock_take(&lock);
    vm_timer_init(&timer, event_loop_timers(loop), on_timer, NULL);
    start = now_ns(CLOCK_MONOTONIC) + 1000000;
    vm_timer_set(&timer, start);
    light_lock_release(&lock);
    wait_for(50);
    light_lock_take(&lock);
    end = timer.deadline;
    light_lock_release(&lock);
    cr_assert_eq(end, start + 49 * 1000000ull);
    event_loop_destroy(loop);
}

/* -- A vCPU's own timers */

static struct vcpu_timers own;
static _Atomic unsigned signals;
static pthread_t run_by;

static void on_own_timer(void *opaque)
{
    run_by = pthread_self();
    if (++fired < 20)
        vm_timer_set(&timer, timer_next_period(timer.deadline, 1000000, timer.deadline));
}

static void on_timer_signal(int sig, siginfo_t *si, void *ctx)
{
    signals += si->si_code == SI_TIMER;
}

static void start_own_timers(int signal, bool accepted)
{
    cr_assert_eq(event_loop_create(&loop, &lock), 0);
    cr_assert_eq(event_loop_start(loop), 0);
    light_lock_take(&lock);
    vcpu_timers_init(&own, loop);
    vm_timer_init(&timer, &own.queue, on_own_timer, NULL);
    vm_timer_set(&timer, timer_now(&own.queue) + 1000000);
    cr_assert_eq(vcpu_timers_begin(&own, signal), accepted);
    light_lock_release(&lock);
}

/* Without a timer of the kernel's the I/O thread does the work. */
Test(vcpu_timers, relayed, .timeout = 100)
{
    start_own_timers(0, false);
    wait_for(20);
    cr_expect(!pthread_equal(run_by, pthread_self()));
    light_lock_take(&lock);
    vcpu_timers_end(&own);
    light_lock_release(&lock);
    event_loop_destroy(loop);
}

Test(vcpu_timers, refused, .timeout = 100)
{
    start_own_timers(999, false); /* no such signal: as if a filter were in the way */
    wait_for(20);
    event_loop_destroy(loop);
}

Test(vcpu_timers, by_signal, .timeout = 100)
{
    struct sigaction sa = {.sa_sigaction = on_timer_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    uint64_t begin;

    sigaction(SIGUSR2, &sa, NULL);
    start_own_timers(SIGUSR2, true);
    begin = timer.deadline;
    for (unsigned seen = 0; fired < 20;) {
        while (signals == seen)
            usleep(100);
        seen = signals;
        light_lock_take(&lock);
        vcpu_timers_run(&own);
        light_lock_release(&lock);
    }
    cr_expect(pthread_equal(run_by, pthread_self()));
    cr_expect_eq(timer.deadline, begin + 19 * 1000000ull);
    /* While the clock stands still nothing is due; afterwards it comes as late as that took. */
    light_lock_take(&lock);
    event_loop_freeze(loop);
    vm_timer_set(&timer, timer_now(&own.queue) + 5000000);
    light_lock_release(&lock);
    usleep(30000);
    light_lock_take(&lock);
    vcpu_timers_run(&own);
    cr_expect_eq(fired, 20);
    event_loop_thaw(loop);
    vcpu_timers_run(&own);
    unsigned before = signals;
    light_lock_release(&lock);
    for (unsigned i = 0; i < 10000 && signals == before; i++)
        usleep(100);
    light_lock_take(&lock);
    vcpu_timers_run(&own);
    cr_expect_eq(fired, 21);
    /* A sleeper looks after itself, unless a deadline comes nearer. */
    vm_timer_set(&timer, timer_now(&own.queue) + 3000000);
    vcpu_timers_sleep(&own);
    cr_expect_leq(vcpu_timers_deadline(&own), now_ns(CLOCK_MONOTONIC) + 3000000);
    before = signals;
    light_lock_release(&lock);
    usleep(20000);
    cr_expect_eq(signals, before);
    light_lock_take(&lock);
    vm_timer_set(&timer, timer_now(&own.queue) + 1000000);
    vm_timer_cancel(&timer);
    vm_timer_set(&timer, timer_now(&own.queue) + 1000000);
    light_lock_release(&lock);
    for (unsigned i = 0; i < 10000 && signals == before; i++)
        usleep(100);
    cr_expect_gt(signals, before);
    light_lock_take(&lock);
    vm_timer_cancel(&timer);
    vcpu_timers_wake(&own);
    cr_expect_eq(vcpu_timers_deadline(&own), TIMER_NEVER);
    /* Back to the I/O thread when this one ends. */
    vm_timer_set(&timer, timer_now(&own.queue) + 3000000);
    vcpu_timers_end(&own);
    light_lock_release(&lock);
    wait_for(22);
    cr_expect(!pthread_equal(run_by, pthread_self()));
    event_loop_destroy(loop);
}

static void on_pipe(void *opaque, uint32_t events)
{
    int fd = *(int *)opaque;

    if (events & EPOLLIN) {
        ssize_t n = read(fd, got, sizeof(got) - 1);
        got[n > 0 ? n : 0] = '\0';
    }
    fired++;
    if (events & EPOLLHUP && !(events & EPOLLIN))
        event_loop_remove_fd(loop, pipe_event); /* from its own callback */
}

Test(event_loop, fds, .timeout = 100)
{
    int p[2], file;
    struct event_fd *f;

    cr_assert_eq(pipe(p), 0);
    cr_assert_eq(event_loop_create(&loop, &lock), 0);
    cr_assert_eq(event_loop_start(loop), 0);
    light_lock_take(&lock);
    cr_assert_eq(event_loop_add_fd(loop, p[0], 0, on_pipe, &p[0], &pipe_event), 0);
    file = open("/proc/self/exe", O_RDONLY);
    cr_assert_eq(event_loop_add_fd(loop, file, EPOLLIN, on_pipe, NULL, &f), -EPERM);
    close(file);
    light_lock_release(&lock);
    cr_assert_eq(write(p[1], "hi", 2), 2);
    usleep(20000);
    cr_assert_eq(fired, 0);
    light_lock_take(&lock);
    event_loop_set_events(loop, pipe_event, EPOLLIN);
    light_lock_release(&lock);
    wait_for(1);
    cr_assert_str_eq(got, "hi");
    close(p[1]);
    wait_for(2);
    usleep(20000);
    cr_assert_eq(fired, 2);
    event_loop_destroy(loop);
    close(p[0]);
}

Test(event_loop, add_and_remove_race, .timeout = 60)
{
    cr_assert_eq(event_loop_create(&loop, &lock), 0);
    cr_assert_eq(event_loop_start(loop), 0);
    for (int i = 0; i < 2000; i++) {
        struct event_fd *f;
        int p[2];

        cr_assert_eq(pipe(p), 0);
        cr_assert_eq(write(p[1], "x", 1), 1);
        light_lock_take(&lock);
        cr_assert_eq(event_loop_add_fd(loop, p[0], EPOLLIN, on_pipe, &p[0], &f), 0);
        light_lock_release(&lock);
        if (i & 1)
            sched_yield();
        light_lock_take(&lock);
        event_loop_remove_fd(loop, f);
        light_lock_release(&lock);
        close(p[0]);
        close(p[1]);
    }
    event_loop_destroy(loop);
}

/* -- TSC
 * ------------------------------------------------------------------------------------------- */

Test(tsc, calibration_repeats, .timeout = 100)
{
    uint64_t hz[5], lo = UINT64_MAX, hi = 0;

    for (int i = 0; i < 5; i++) {
        struct tsc_calibration c;

        tsc_calibration_begin(&c);
        hz[i] = tsc_calibration_finish(&c);
        lo = hz[i] < lo ? hz[i] : lo;
        hi = hz[i] > hi ? hz[i] : hi;
    }
    cr_log_info("TSC %llu..%llu Hz: %.1f ppm apart", (unsigned long long)lo, (unsigned long long)hi,
                (double)(hi - lo) * 1e6 / (double)lo);
    cr_assert_lt((hi - lo) * 1000000 / lo, 50);
}

/* -- Stop and go on ---------------------------------------------------------------------------- */

static _Atomic uint64_t steps, guest_tsc;
static _Atomic unsigned events_seen[MACHINE_EVENT_SHUTDOWN + 1];

static enum vcpu_exit counting_guest(struct vcpu *v)
{
    steps++;
    guest_tsc = __rdtsc() + v->tsc_offset;
    usleep(500);
    return VCPU_EXIT_NONE;
}

static void count_event(void *opaque, enum machine_event what)
{
    events_seen[what]++;
}

static _Atomic uint64_t timer_ticks;
static struct vm_timer tick_timer;

static void tick(void *opaque)
{
    timer_ticks++;
    vm_timer_set(&tick_timer, tick_timer.deadline + 5000000);
}

static void *stop_and_go_on(void *opaque)
{
    struct machine *m = opaque;
    struct timer_queue *q = event_loop_timers(machine_event_loop(m));
    uint64_t at, tsc, now, later;

    while (steps < 5)
        usleep(1000);
    machine_lock(m);
    vm_timer_init(&tick_timer, q, tick, NULL);
    vm_timer_set(&tick_timer, timer_now(q) + 5000000);
    machine_unlock(m);
    while (timer_ticks < 3)
        usleep(1000);

    machine_stop(m);
    cr_assert(machine_stopped(m));
    at = steps;
    tsc = guest_tsc;
    machine_lock(m);
    now = timer_now(q);
    machine_unlock(m);
    uint64_t ticks_before = timer_ticks;
    usleep(300000);
    cr_assert_eq(steps, at, "the guest stands still");
    cr_assert_eq(timer_ticks, ticks_before, "and so do its timers");
    machine_lock(m);
    later = timer_now(q);
    machine_unlock(m);
    cr_assert_eq(now, later);
    cr_assert(!machine_hold(m), "already stopped");
    machine_cont(m);
    cr_assert(!machine_stopped(m));
    while (steps < at + 2 || timer_ticks < ticks_before + 2)
        usleep(1000);
    /* 300 ms at 1 GHz would be more than this; a slow host may take long, but not that long. */
    cr_assert_lt(guest_tsc - tsc, machine_vcpu(m, 0)->platform->tsc_hz / 4,
                 "the TSC did not see the pause");

    cr_assert(machine_hold(m));
    machine_release(m);
    machine_stop(m);
    machine_reset(m); /* while stopped: the guest starts anew when it goes on */
    usleep(50000);
    cr_assert(machine_stopped(m));
    machine_cont(m);
    at = steps;
    while (steps < at + 2)
        usleep(1000);
    machine_stop(m);
    machine_quit(m); /* a stopped machine can end */
    return NULL;
}

Test(machine, stop_and_cont, .timeout = 60)
{
    struct machine *m = create(1, false);
    pthread_t thread;
    char msg[200];

    guest[0] = counting_guest;
    machine_set_listener(m, count_event, NULL);
    pthread_create(&thread, NULL, stop_and_go_on, m);
    cr_assert_eq(machine_run(m, msg, sizeof(msg)), MACHINE_QUIT);
    pthread_join(thread, NULL);
    cr_assert_eq(events_seen[MACHINE_EVENT_STOP], 3, "hold and release say nothing");
    cr_assert_eq(events_seen[MACHINE_EVENT_RESUME], 2);
    cr_assert_eq(events_seen[MACHINE_EVENT_RESET], 1);
    cr_assert_eq(events_seen[MACHINE_EVENT_SHUTDOWN], 1);
    cr_assert_eq(loads, 2);
    machine_destroy(m);
}

/* -- The lock
 * -------------------------------------------------------------------------------- */

enum { LOCK_THREADS = 4, LOCK_ROUNDS = 50000 };

static struct light_lock shared_lock;
static struct light_cond turn_changed;
static unsigned counted, turn;

static void *count_up(void *opaque)
{
    unsigned me = (unsigned)(uintptr_t)opaque;

    for (unsigned i = 0; i < LOCK_ROUNDS; i++) {
        if ((i + me) % 3 || !light_lock_try(&shared_lock))
            light_lock_take(&shared_lock);
        counted = counted + 1;
        light_lock_release(&shared_lock);
    }
    /* And in turns: everybody waits for the one before. */
    for (unsigned i = 0; i < 500; i++) {
        light_lock_take(&shared_lock);
        while (turn % LOCK_THREADS != me)
            light_cond_wait(&turn_changed, &shared_lock);
        turn++;
        light_cond_broadcast(&turn_changed);
        light_lock_release(&shared_lock);
    }
    return NULL;
}

Test(light_lock, excludes_and_wakes, .timeout = 60)
{
    pthread_t thread[LOCK_THREADS];

    for (unsigned i = 0; i < LOCK_THREADS; i++)
        cr_assert_eq(pthread_create(&thread[i], NULL, count_up, (void *)(uintptr_t)i), 0);
    for (unsigned i = 0; i < LOCK_THREADS; i++)
        pthread_join(thread[i], NULL);
    cr_expect_eq(counted, LOCK_THREADS * LOCK_ROUNDS);
    cr_expect_eq(turn, LOCK_THREADS * 500);
    cr_expect(light_lock_try(&shared_lock));
    cr_expect_not(light_lock_try(&shared_lock));
    light_lock_release(&shared_lock);
    cr_expect(light_lock_try(&shared_lock));
}
