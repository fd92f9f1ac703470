/*
 * Light callbacks: see light_platform.h.  This file and the functions of devices/ that it calls run
 * with the guest's FP state in the registers: no libc, no other registers than the general ones.
 *
 * The lock is taken only if it is free; a callback that declines has changed nothing.
 */
#include "runtime/light_platform.h"

#include "cpu/exception.h"
#include "cpu/host_time.h"
#include "cpu/vcpu.h"

static struct light_platform *light_of(struct platform *p)
{
    return (struct light_platform *)p;
}

static bool enter(struct light_platform *m, struct vcpu *v, enum host_cause *was)
{
    if (m->trace_io || !light_lock_try(&m->lock))
        return false;
    *was = host_time_switch(v, HOST_DEVICE);
    return true;
}

static void leave(struct light_platform *m, struct vcpu *v, enum host_cause was)
{
    light_lock_release(&m->lock);
    host_time_switch(v, was);
}

/* What lapic_update() and vcpu_raise() do, for the vCPU's own thread.  Lock held. */
static void report(struct vcpu *v, bool pending)
{
    uint32_t old = atomic_load_explicit(&v->events, memory_order_relaxed);

    if (pending && !(old & EV_INTR)) {
        atomic_fetch_or(&v->events, EV_INTR);
        if (cpu_event_due(v))
            atomic_store(&v->exit_request, 1);
    } else if (!pending && (old & EV_INTR)) {
        atomic_fetch_and(&v->events, ~(uint32_t)EV_INTR);
    }
}

bool light_pio_read(struct platform *p, struct vcpu *v, uint16_t port, unsigned size,
                    uint32_t *value)
{
    struct light_platform *m = light_of(p);
    enum host_cause was;
    uint64_t wide;

    if (!enter(m, v, &was))
        return false;
    bool done = io_bus_read_light(&m->ports, port, size, &wide);
    m->pio_accesses += done;
    leave(m, v, was);
    *value = done ? (uint32_t)wide : 0;
    return done;
}

bool light_pio_write(struct platform *p, struct vcpu *v, uint16_t port, unsigned size,
                     uint32_t value)
{
    struct light_platform *m = light_of(p);
    enum host_cause was;

    if (!enter(m, v, &was))
        return false;
    bool done = io_bus_write_light(&m->ports, port, size, value);
    m->pio_accesses += done;
    leave(m, v, was);
    return done;
}

bool light_mmio_read(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                     uint64_t *value)
{
    struct light_platform *m = light_of(p);
    struct lapic *l = m->apic_bus.lapic[v->id];
    enum host_cause was;
    bool done;

    if (!enter(m, v, &was))
        return false;
    if (lapic_claims(l, gpa))
        done = lapic_mmio_read_light(l, gpa, size, value);
    else
        done = io_bus_read_light(&m->mmio, gpa, size, value);
    m->mmio_accesses += done;
    leave(m, v, was);
    return done;
}

bool light_mmio_write(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                      uint64_t value)
{
    struct light_platform *m = light_of(p);
    struct lapic *l = m->apic_bus.lapic[v->id];
    enum host_cause was;
    bool done, pending;

    if (!enter(m, v, &was))
        return false;
    if (lapic_claims(l, gpa)) {
        done = lapic_mmio_write_light(l, gpa, size, value, &pending);
        if (done)
            report(v, pending);
    } else {
        done = io_bus_write_light(&m->mmio, gpa, size, value);
    }
    m->mmio_accesses += done;
    leave(m, v, was);
    return done;
}

bool light_apic_read_msr(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t *value)
{
    struct light_platform *m = light_of(p);
    enum host_cause was;

    if (!enter(m, v, &was))
        return false;
    bool done = lapic_read_msr_light(m->apic_bus.lapic[v->id], msr, value);
    m->lapic_accesses += done;
    leave(m, v, was);
    return done;
}

bool light_apic_write_msr(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t value)
{
    struct light_platform *m = light_of(p);
    enum host_cause was;
    bool pending;

    if (!enter(m, v, &was))
        return false;
    bool done = lapic_write_msr_light(m->apic_bus.lapic[v->id], msr, value, &pending);
    if (done)
        report(v, pending);
    m->lapic_accesses += done;
    leave(m, v, was);
    return done;
}

bool light_set_cr8(struct platform *p, struct vcpu *v, uint8_t tpr_class)
{
    struct light_platform *m = light_of(p);
    enum host_cause was;

    if (!enter(m, v, &was))
        return false;
    report(v, lapic_set_cr8_light(m->apic_bus.lapic[v->id], tpr_class));
    leave(m, v, was);
    return true;
}

bool light_intr_ack(struct platform *p, struct vcpu *v, int *vector)
{
    struct light_platform *m = light_of(p);
    enum host_cause was;
    bool pending;

    if (!enter(m, v, &was))
        return false;
    bool done = lapic_acknowledge_light(m->apic_bus.lapic[v->id], vector, &pending);
    if (done) {
        m->interrupts[v->id]++;
        report(v, pending);
    }
    leave(m, v, was);
    return done;
}
