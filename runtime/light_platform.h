/*
 * The part of the machine that its light callbacks (cpu/platform.h) work on, and those callbacks.
 * They are for what guests do all the time and what needs no libc: registers of the local APIC that
 * have nothing to do with time, ports that nobody claims, and what devices offer as light accesses
 * (devices/bus.h).
 */
#ifndef RINGSHIFT_RUNTIME_LIGHT_PLATFORM_H
#define RINGSHIFT_RUNTIME_LIGHT_PLATFORM_H

#include "cpu/platform.h"
#include "devices/bus.h"
#include "devices/lapic.h"
#include "runtime/lock.h"

struct light_platform {
    struct platform platform; /* first: what the vCPU has a pointer to                  */
    struct light_lock lock;   /* the machine lock                                       */
    struct io_bus ports, mmio;
    struct apic_bus apic_bus; /* the local APIC of vCPU n is number n                   */
    bool trace_io;            /* accesses are to be reported, which light code cannot   */
    uint64_t pio_accesses, mmio_accesses, lapic_accesses; /* for --stats                */
    uint64_t interrupts[LAPIC_MAX];                       /* acknowledged by light code */
};

bool light_pio_read(struct platform *p, struct vcpu *v, uint16_t port, unsigned size,
                    uint32_t *value);
bool light_pio_write(struct platform *p, struct vcpu *v, uint16_t port, unsigned size,
                     uint32_t value);
bool light_mmio_read(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                     uint64_t *value);
bool light_mmio_write(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                      uint64_t value);
bool light_apic_read_msr(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t *value);
bool light_apic_write_msr(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t value);
bool light_set_cr8(struct platform *p, struct vcpu *v, uint8_t tpr_class);
bool light_intr_ack(struct platform *p, struct vcpu *v, int *vector);

#endif
