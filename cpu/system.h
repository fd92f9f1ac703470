/*
 * Control and debug registers, descriptor-table registers, flags, TLB instructions, XCR0, time
 * stamps, HLT and I/O permission: what privileged and sensitive instructions do to `struct vcpu`.
 *
 * Conventions: v->rip is the address of the instruction; a function that takes `next_rip` needs
 * the address behind it.  Results are those of enum cpu_result; what changes something that
 * translated code may have been specialised on (CR0, CR4, EFER, XCR0, IF, TLB contents, debug
 * registers) is marked "serialising": the caller must look the next instruction up again
 * (CPU_JUMP to it) rather than fall through.
 */
#ifndef RINGSHIFT_CPU_SYSTEM_H
#define RINGSHIFT_CPU_SYSTEM_H

#include "cpu/vcpu.h"

/* Debug registers (SDM vol. 3, 17.2). */
enum {
    DR6_BP = 0xf,
    DR6_BD = 1 << 13,
    DR6_BS = 1 << 14,
    DR6_BT = 1 << 15,
    DR7_ENABLES = 0xff,
    DR7_GD = 1 << 13,
};
#define DR6_FIXED1   0xffff0ff0ull
#define DR7_FIXED1   0x400ull
#define DEBUGCTL_LBR 1u
#define DEBUGCTL_BTF 2u

/* Replaces RFLAGS; revokes supervisor access to user pages if AC goes away under SMAP. */
void cpu_set_rflags(struct vcpu *v, uint64_t value);
/* The image PUSHF stores (VM and RF read as 0) outside virtual-8086 mode. */
uint64_t cpu_flags_for_push(const struct vcpu *v);
/* PUSHF with operand size 2, 4 or 8 in any mode: CPU_NEXT and the image, or #GP(0). */
enum cpu_result cpu_pushf(struct vcpu *v, unsigned size, uint64_t *image);
/* POPF with operand size 2, 4 or 8.  CPU_NEXT (serialising if IF or TF changed), or #GP(0) in
 * virtual-8086 mode: then the stack pointer must not have moved. */
enum cpu_result cpu_popf(struct vcpu *v, uint64_t value, unsigned size);
/* Both follow IOPL, VME and PVI. */
enum cpu_result cpu_cli(struct vcpu *v);
enum cpu_result cpu_sti(struct vcpu *v); /* serialising; starts the interrupt shadow */
enum cpu_result cpu_stac(struct vcpu *v);
enum cpu_result cpu_clac(struct vcpu *v);
/* CPU_JUMP if an interrupt was delivered at once, else CPU_EXIT with VCPU_EXIT_HLT; rip is
 * next_rip either way. */
enum cpu_result cpu_hlt(struct vcpu *v, uint64_t next_rip);

enum cpu_result cpu_mov_from_cr(struct vcpu *v, unsigned cr, uint64_t *out);
enum cpu_result cpu_mov_to_cr(struct vcpu *v, unsigned cr, uint64_t value); /* serialising */
enum cpu_result cpu_lmsw(struct vcpu *v, uint16_t value);                   /* serialising */
enum cpu_result cpu_clts(struct vcpu *v);                                   /* serialising */
enum cpu_result cpu_mov_from_dr(struct vcpu *v, unsigned dr, uint64_t *out);
enum cpu_result cpu_mov_to_dr(struct vcpu *v, unsigned dr, uint64_t value); /* serialising */

/* CPU_NEXT, or #GP(0) where UMIP forbids SGDT, SIDT, SLDT, STR, SMSW. */
enum cpu_result cpu_umip_check(struct vcpu *v);
/* The base that LGDT and LIDT take from the pointer in memory: 24 bits of it with a 16-bit operand
 * size, 32 with a 32-bit one.  (SGDT and SIDT store 32 bits whatever the operand size, as CPUs since
 * the 386 do; 64 in 64-bit mode.) */
static inline uint64_t cpu_table_base(const struct vcpu *v, uint64_t base, unsigned op_size)
{
    return vcpu_long64(v) ? base : base & (op_size == 2 ? 0xffffffu : 0xffffffffu);
}
enum cpu_result cpu_lgdt(struct vcpu *v, uint64_t base, uint16_t limit);
enum cpu_result cpu_lidt(struct vcpu *v, uint64_t base, uint16_t limit);

enum cpu_result cpu_invlpg(struct vcpu *v, uint64_t gva); /* serialising */
/* `desc` is the 16-byte descriptor the instruction read (after the CPL check). */
enum cpu_result cpu_invpcid(struct vcpu *v, uint64_t type, const uint64_t desc[2]);
enum cpu_result cpu_require_cpl0(struct vcpu *v); /* CPU_NEXT or #GP(0) */

enum cpu_result cpu_swapgs(struct vcpu *v);
/* seg is SEG_FS or SEG_GS; size 4 or 8. */
enum cpu_result cpu_rdbase(struct vcpu *v, enum seg seg, uint64_t *out);
enum cpu_result cpu_wrbase(struct vcpu *v, enum seg seg, uint64_t value);

enum cpu_result cpu_xgetbv(struct vcpu *v, uint32_t index, uint64_t *out);
enum cpu_result cpu_xsetbv(struct vcpu *v, uint32_t index, uint64_t value); /* serialising */

uint64_t cpu_read_tsc(const struct vcpu *v);
enum cpu_result cpu_rdtsc(struct vcpu *v, uint64_t *out);
enum cpu_result cpu_rdpmc(struct vcpu *v);

/* May the current privilege access `size` bytes of ports at `port`?  CPU_NEXT, or #GP(0)/#PF.
 * SDM vol. 1, 19.5. */
enum cpu_result cpu_io_check(struct vcpu *v, uint16_t port, unsigned size);

/*
 * A virtual interrupt waits and the program has just enabled it: VIF and VIP are both set in
 * virtual-8086 mode with VME or at CPL 3 with PVI.  That is #GP(0) before the next instruction
 * (SDM vol. 3, 20.3.2); IRET and task switches check it.
 */
bool cpu_virtual_interrupt_due(const struct vcpu *v);

/* INT n of virtual-8086 mode with CR4.VME = 1: does the redirection map in the TSS send this vector
 * to the 8086 program's own handler?  CPU_NEXT, or #GP(0)/#PF.  SDM vol. 3, 20.3.3. */
enum cpu_result cpu_vme_redirected(struct vcpu *v, uint8_t vector, bool *redirected);

/* Opens or closes the A20 gate of this vCPU: closed, bit 20 of every physical address is 0.  The
 * vCPU drops its translations at its next instruction boundary.  Callable from any thread. */
void vcpu_set_a20(struct vcpu *v, bool enabled);

/* True if any breakpoint is enabled in DR7. */
static inline bool cpu_debug_active(const struct vcpu *v)
{
    return v->dr[7] & DR7_ENABLES;
}

/* True if one of them watches data or I/O. */
static inline bool cpu_debug_watching(const struct vcpu *v)
{
    for (unsigned i = 0; i < 4; i++)
        if ((v->dr[7] >> (2 * i) & 3) && (v->dr[7] >> (16 + 4 * i) & 3))
            return true;
    return false;
}

/* What a breakpoint watches (DR7.R/W; I/O needs CR4.DE). */
enum cpu_debug_kind { DEBUG_EXEC = 0, DEBUG_WRITE = 1, DEBUG_IO = 2, DEBUG_READ = 3 };

/* DR6.B0-B3 bits of the enabled breakpoints that an access to [addr, addr + size) hits.
 * DEBUG_READ means a load (matches R/W = 3), DEBUG_WRITE a store (matches 1 and 3). */
uint32_t cpu_debug_match(const struct vcpu *v, enum cpu_debug_kind kind, uint64_t addr,
                         unsigned size);

/* The same for a data access. */
static inline uint32_t cpu_debug_data_match(const struct vcpu *v, uint64_t addr, unsigned size,
                                            bool write)
{
    return cpu_debug_match(v, write ? DEBUG_WRITE : DEBUG_READ, addr, size);
}

/* Delivers #DB with these DR6 bits at v->rip (a trap: rip is already behind the instruction; a
 * fault for instruction breakpoints: rip is at it). */
enum cpu_result cpu_debug_trap(struct vcpu *v, uint64_t dr6_bits);

#endif
