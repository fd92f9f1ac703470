/*
 * Segmentation: descriptor fetches, segment register loads, and every control transfer that goes
 * through a selector (far JMP/CALL/RET, IRET, SYSCALL and its kin).  SDM vol. 3, chapters 3, 5.
 *
 * All functions here follow the rule of cpu_result: CPU_EXCEPTION leaves v->exc filled in and no
 * architectural state changed (accessed bits in descriptors may have been set).  Control transfers
 * return CPU_JUMP with v->rip at the target.
 */
#ifndef RINGSHIFT_CPU_SEGMENT_H
#define RINGSHIFT_CPU_SEGMENT_H

#include "cpu/vcpu.h"

/* Bits of a raw 8-byte descriptor. */
#define DESC_ACCESSED (1ull << 40)
#define DESC_WRITE    (1ull << 41) /* data: writable; code: readable      */
#define DESC_CONF     (1ull << 42) /* code: conforming; data: expand-down */
#define DESC_CODE     (1ull << 43)
#define DESC_S        (1ull << 44)
#define DESC_P        (1ull << 47)
#define DESC_L        (1ull << 53)
#define DESC_DB       (1ull << 54)

static inline unsigned desc_dpl(uint64_t d)
{
    return d >> 45 & 3;
}

static inline unsigned desc_type(uint64_t d)
{
    return d >> 40 & 15;
}

static inline bool desc_is_code(uint64_t d)
{
    return (d & (DESC_S | DESC_CODE)) == (DESC_S | DESC_CODE);
}

static inline bool sel_null(uint16_t sel)
{
    return (sel & ~3) == 0;
}

/* Types of system descriptors in long mode (SDM vol. 3, table 3-2). */
enum {
    SYS_LDT = 2,
    SYS_TSS_AVAIL = 9,
    SYS_TSS_BUSY = 11,
    SYS_CALL_GATE = 12,
    SYS_INT_GATE = 14,
    SYS_TRAP_GATE = 15
};

/* Reads the descriptor that a non-null selector names; *lin is its linear address.  0, or -1 with
 * #GP(sel + ext) if it lies outside its table, or the #PF of reading it. */
int cpu_read_descriptor(struct vcpu *v, uint16_t sel, uint32_t ext, uint64_t *desc, uint64_t *lin);

/* Sets the accessed bit in memory if *desc lacks it.  0, or -1 with a fault. */
int cpu_mark_accessed(struct vcpu *v, uint64_t lin, uint64_t *desc);

/* The register image of a code or data descriptor. */
struct segment cpu_segment_of(uint16_t sel, uint64_t desc);

/* A flat segment as SYSCALL and friends load it: 64-bit code or writable data at `dpl`. */
struct segment cpu_flat_code64(uint16_t sel, unsigned dpl);
struct segment cpu_flat_data(uint16_t sel, unsigned dpl);

/* Loads ES, SS, DS, FS or GS as MOV and POP do.  The caller sets the interrupt shadow for SS. */
enum cpu_result cpu_load_segment(struct vcpu *v, enum seg seg, uint16_t sel);

enum cpu_result cpu_lldt(struct vcpu *v, uint16_t sel);
enum cpu_result cpu_ltr(struct vcpu *v, uint16_t sel);

/* LAR, LSL: 1 and *out if the selector is accessible, 0 if not (ZF), -1 with a fault. */
int cpu_lar(struct vcpu *v, uint16_t sel, uint32_t *out);
int cpu_lsl(struct vcpu *v, uint16_t sel, uint32_t *out);
/* VERR, VERW: 1, 0, or -1 with a fault. */
int cpu_verify(struct vcpu *v, uint16_t sel, bool write);

/* `size` is the operand size in bytes (2, 4, 8). */
enum cpu_result cpu_far_jump(struct vcpu *v, uint16_t sel, uint64_t offset);
enum cpu_result cpu_far_call(struct vcpu *v, uint16_t sel, uint64_t offset, unsigned size,
                             uint64_t next_rip);
enum cpu_result cpu_far_return(struct vcpu *v, unsigned size, uint16_t release);
enum cpu_result cpu_iret(struct vcpu *v, unsigned size);

enum cpu_result cpu_syscall(struct vcpu *v, uint64_t next_rip);
enum cpu_result cpu_sysret(struct vcpu *v, unsigned size);
enum cpu_result cpu_sysenter(struct vcpu *v);
enum cpu_result cpu_sysexit(struct vcpu *v, unsigned size);

/* Reads a field of the 64-bit TSS (offset of RSPn, ISTn).  0, or -1 with #TS(TR + ext) or #PF. */
int cpu_tss_read64(struct vcpu *v, uint32_t offset, uint32_t ext, uint64_t *out);

#endif
