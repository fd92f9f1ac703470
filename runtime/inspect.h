/*
 * Looking at the guest from outside while it does not run (machine_hold()): guest memory by
 * virtual or physical address, without any effect on accessed and dirty bits or on devices.
 */
#ifndef RINGSHIFT_RUNTIME_INSPECT_H
#define RINGSHIFT_RUNTIME_INSPECT_H

#include <stdint.h>

struct machine;
struct vcpu;

/* The processor's mode in words: "real mode", "64-bit mode", ... */
const char *inspect_mode(const struct vcpu *v);

/* Physical address behind a linear one, by the vCPU's page tables.  0 or -EFAULT. */
int inspect_translate(const struct vcpu *v, uint64_t address, uint64_t *gpa);

/* Copies guest memory: linear addresses of the vCPU, or physical ones if v is NULL.  -EFAULT with
 * the address in *where if some of it is not mapped, or is no memory. */
int inspect_read(struct machine *m, const struct vcpu *v, uint64_t address, void *buf, uint64_t len,
                 uint64_t *where);

#endif
