/*
 * What a vCPU needs from the machine around it.  Implemented in runtime/machine.c over devices/.
 *
 * All callbacks may use libc and sleep for short times on locks: the caller has saved the guest's
 * FP state (vcpu_fp_save).  They never change the vCPU's registers; they may raise events on any
 * vCPU (vcpu_raise), this one included.
 */
#ifndef RINGSHIFT_CPU_PLATFORM_H
#define RINGSHIFT_CPU_PLATFORM_H

#include <stdbool.h>
#include <stdint.h>

struct vcpu;
struct platform;

struct platform_ops {
    /* size is 1, 2 or 4 bytes; unclaimed ports read all-ones and swallow writes. */
    uint32_t (*pio_read)(struct platform *p, uint16_t port, unsigned size);
    void (*pio_write)(struct platform *p, uint16_t port, unsigned size, uint32_t value);

    /* Guest-physical accesses outside RAM; size is 1, 2, 4 or 8, not crossing an 8-byte boundary.
     * The vCPU matters for the local APIC page. */
    uint64_t (*mmio_read)(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size);
    void (*mmio_write)(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                       uint64_t value);

    /* Acknowledges the highest-priority deliverable interrupt of this vCPU (local APIC first, then
     * ExtINT from the 8259): returns its vector and moves it to in-service, or -1 if there is
     * none.  Clears EV_INTR when nothing more is deliverable. */
    int (*intr_ack)(struct platform *p, struct vcpu *v);

    /* Local APIC MSRs: 0x1b (IA32_APIC_BASE), 0x6e0 (TSC_DEADLINE), 0x800-0x8ff (x2APIC).
     * Return 0, or -1 where the access must raise #GP(0). */
    int (*apic_read_msr)(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t *value);
    int (*apic_write_msr)(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t value);
    void (*set_cr8)(struct platform *p, struct vcpu *v, uint8_t tpr_class);
    uint8_t (*get_cr8)(struct platform *p, struct vcpu *v);

    /* EV_TIMER was raised, by the engine's handler of its timer signal. */
    void (*run_timers)(struct platform *p, struct vcpu *v);

    /*
     * Light forms of the above, which the vCPU's thread may call with the guest's FP state still in
     * the registers: no libc, and they never wait.  False: nothing has happened, save the FP state and
     * call the full form (an access that faults always takes it).  NULL: always so.
     */
    bool (*pio_read_light)(struct platform *p, struct vcpu *v, uint16_t port, unsigned size,
                           uint32_t *value);
    bool (*pio_write_light)(struct platform *p, struct vcpu *v, uint16_t port, unsigned size,
                            uint32_t value);
    bool (*mmio_read_light)(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                            uint64_t *value);
    bool (*mmio_write_light)(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                             uint64_t value);
    bool (*apic_read_msr_light)(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t *value);
    bool (*apic_write_msr_light)(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t value);
    bool (*set_cr8_light)(struct platform *p, struct vcpu *v, uint8_t tpr_class);
    bool (*intr_ack_light)(struct platform *p, struct vcpu *v, int *vector);
};

struct platform {
    const struct platform_ops *ops;
    uint64_t tsc_hz; /* rate of the host's TSC, which is the guest's */
};

#endif
