/*
 * Initial states of a vCPU.  None of the functions touches what the machine set up (platform, ram,
 * engine, model, id, fp_area, host_tid).
 */
#ifndef RINGSHIFT_CPU_RESET_H
#define RINGSHIFT_CPU_RESET_H

#include "cpu/vcpu.h"

/* Power-on state (SDM vol. 3, table 9-1).  The TSC runs on, as all vCPUs must agree on it; events
 * are dropped.  FP state is the INIT state (not FCW 0040H).  Flushes the TLB. */
void vcpu_reset(struct vcpu *v);

/* INIT (SDM vol. 3, table 9-1): as vcpu_reset(), but x87 and SIMD state, XCR0, TSC, MTRRs, the other
 * MSRs but EFER, CR0.CD and CR0.NW stay.  An application processor then waits for a SIPI. */
void vcpu_init(struct vcpu *v);

/* SIPI: after vcpu_init() or vcpu_reset(), the vCPU starts at vector:0000 in real mode (SDM vol. 3,
 * 8.4.3). */
void vcpu_start(struct vcpu *v, uint8_t vector);

/*
 * The state in which firmware and loader enter a 64-bit kernel (Linux Documentation/arch/x86/
 * boot.rst, 64-bit boot protocol): long mode with paging from `cr3`, interrupts off, flat CS and
 * data segments of the given GDT (which the loader has put into guest memory, with descriptors
 * that match), RIP = entry, RSI = boot_params.  Includes what firmware does for the memory types:
 * MTRRs on, write-back but for the hole below 4 GiB.  To be called after vcpu_reset().
 */
void vcpu_setup_long64(struct vcpu *v, uint64_t rip, uint64_t rsi, uint64_t cr3, uint64_t gdt_base,
                       uint16_t gdt_limit, uint16_t cs, uint16_t ds);

/* 32-bit protected mode as boot protocols hand it over (Linux, multiboot, PVH): flat segments from
 * the loader's GDT, paging and interrupts off, no IDT.  The caller sets the registers that its
 * protocol asks for.  To be called after vcpu_reset(). */
void vcpu_setup_flat32(struct vcpu *v, uint32_t eip, uint64_t gdt_base, uint16_t gdt_limit,
                       uint16_t cs, uint16_t ds);

/* Real mode at cs:ip as a BIOS hands over to a boot sector, with DS = ES = FS = GS = ds, interrupts
 * off and the IVT at 0.  To be called after vcpu_reset(). */
void vcpu_setup_real(struct vcpu *v, uint16_t cs, uint16_t ip, uint16_t ds, uint16_t ss,
                     uint16_t sp);

#endif
