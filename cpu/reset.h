/*
 * Initial states of a vCPU.  Neither function touches what the machine set up (platform, ram,
 * engine, model, id, fp_area, host_tid).
 */
#ifndef RINGSHIFT_CPU_RESET_H
#define RINGSHIFT_CPU_RESET_H

#include "cpu/vcpu.h"

/* Power-on state (SDM vol. 3, table 9-1).  The TSC runs on, as all vCPUs must agree on it; events
 * are dropped.  FP state is the INIT state (not FCW 0040H).  Flushes the TLB. */
void vcpu_reset(struct vcpu *v);

/*
 * The state in which firmware and loader enter a 64-bit kernel (Linux Documentation/arch/x86/
 * boot.rst, 64-bit boot protocol): long mode with paging from `cr3`, interrupts off, flat CS and
 * data segments of the given GDT (which the loader has put into guest memory, with descriptors
 * that match), RIP = entry, RSI = boot_params.  Includes what firmware does for the memory types:
 * MTRRs on, write-back but for the hole below 4 GiB.  To be called after vcpu_reset().
 */
void vcpu_setup_long64(struct vcpu *v, uint64_t rip, uint64_t rsi, uint64_t cr3, uint64_t gdt_base,
                       uint16_t gdt_limit, uint16_t cs, uint16_t ds);

#endif
