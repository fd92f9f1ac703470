/*
 * Segmentation in every mode: descriptor fetches, segment register loads, limit and type checks
 * (segment.c), and every control transfer that goes through a selector: far JMP/CALL/RET, IRET,
 * SYSCALL and its kin (far.c), hardware task switches (task.c).  SDM vol. 3, chapters 3, 5, 7, 20.
 *
 * All functions here follow the rule of cpu_result: CPU_EXCEPTION leaves v->exc filled in and no
 * architectural state changed (accessed bits in descriptors may have been set).  Control transfers
 * return CPU_JUMP with v->rip at the target.  Exceptions are task switches, whose faults belong to
 * the new task once the old one has been left (SDM vol. 3, 7.3), and IRET to code that has a
 * virtual interrupt waiting: v->rip is at the target then.  Either way CPU_EXCEPTION means: deliver
 * v->exc at v->rip.
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

/* Types of system descriptors (SDM vol. 3, table 3-2).  Bit 3 tells 32-bit ones (64-bit in IA-32e
 * mode, where the 16-bit ones and task gates do not exist) from those of the 286. */
enum {
    SYS_TSS16_AVAIL = 1,
    SYS_LDT = 2,
    SYS_TSS16_BUSY = 3,
    SYS_CALL_GATE16 = 4,
    SYS_TASK_GATE = 5,
    SYS_INT_GATE16 = 6,
    SYS_TRAP_GATE16 = 7,
    SYS_TSS_AVAIL = 9,
    SYS_TSS_BUSY = 11,
    SYS_CALL_GATE = 12,
    SYS_INT_GATE = 14,
    SYS_TRAP_GATE = 15
};

/* Reads the descriptor that a non-null selector names; *lin is its linear address.  0, or -1 with
 * #GP(sel + ext) if it lies outside its table, or the #PF of reading it. */
int cpu_read_descriptor(struct vcpu *v, uint16_t sel, uint32_t ext, uint64_t *desc, uint64_t *lin);
/* The same with another vector than #GP (#TS for what a TSS names). */
int cpu_read_descriptor_as(struct vcpu *v, uint8_t vector, uint16_t sel, uint32_t ext,
                           uint64_t *desc, uint64_t *lin);
/* The second half of a 16-byte system descriptor of IA-32e mode.  0, or -1 with #GP(sel) or #PF. */
int cpu_read_descriptor_upper(struct vcpu *v, uint16_t sel, uint64_t lin, uint64_t *upper);
/* Atomic ((*byte & and) | or) on a byte of a descriptor table or TSS: its old value, or -1 with a
 * fault. */
int cpu_update_byte(struct vcpu *v, uint64_t lin, uint8_t and, uint8_t or);

/* Sets the accessed bit in memory if *desc lacks it.  0, or -1 with a fault. */
int cpu_mark_accessed(struct vcpu *v, uint64_t lin, uint64_t *desc);

/* The register image of a code or data descriptor. */
struct segment cpu_segment_of(uint16_t sel, uint64_t desc);

/* A flat segment as SYSCALL and friends load it: 64-bit or 32-bit code or writable data at `dpl`.
 */
struct segment cpu_flat_code64(uint16_t sel, unsigned dpl);
struct segment cpu_flat_code32(uint16_t sel, unsigned dpl);
struct segment cpu_flat_data(uint16_t sel, unsigned dpl);

/* -- Checks. -------------------------------------------------------------------------------------
 */

/* Do the limit and direction of `s` allow [offset, offset + size)?  SDM vol. 3, 5.3.  A limit of
 * 4 GiB - 1 allows everything: an access that wraps there is not faulted but goes on at offset 0
 * (the SDM leaves it to the implementation), as it does where nothing is checked. */
bool cpu_segment_contains(const struct segment *s, uint64_t offset, unsigned size);

/*
 * The linear address of `size` bytes at `offset` (already cut to the address size) in a segment
 * register, for an access of this kind (enum mmu_access; MMU_READ, MMU_WRITE or MMU_EXEC).  Checks
 * what the mode checks: limit, null, type (not in real and virtual-8086 mode), nothing in 64-bit
 * mode.  Outside 64-bit mode the result is cut to 32 bits.  0, or -1 with #GP(0), for SS #SS(0).
 */
int cpu_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, unsigned access,
               uint64_t *lin);

/* Base 0, limit 4 GiB - 1, readable and (but for CS) writable: offsets are linear addresses. */
bool cpu_segment_flat(const struct vcpu *v, unsigned seg);

/*
 * The segment state that translated code may be specialised on.
 *
 *   bits 0-1    code size: 0 = 16, 1 = 32, 2 = 64 bits (vcpu_code_size)
 *   bits 2-3    stack size: the same (vcpu_stack_size)
 *   bit  4      real-address mode
 *   bit  5      virtual-8086 mode
 *   bit  6      the stack of `pushes` needs no check: SS is SEGK_FLAT or SEGK_BASE
 *   bits 8-19   enum segment_kind of ES, CS, SS, DS, FS, GS (enum seg), two bits each
 *
 * The kind of CS is about fetches and, where it is not SEGK_CHECKED, reads; writes through CS are
 * never allowed in protected mode.  FS and GS are never SEGK_FLAT (a base of 0 is not worth a
 * variant).  In 64-bit mode every kind is SEGK_FLAT but those of FS and GS, which are SEGK_BASE.
 */
enum segment_kind {
    SEGK_FLAT, /* base 0, limit 4 GiB - 1, read and write: no base, no check                     */
    SEGK_BASE, /* limit 4 GiB - 1, read and write: add the base, no check                        */
    SEGK_BASE64K, /* expand-up, limit at least FFFFH, read and write: add the base; an access with
                     a 16-bit address needs a check only if it may cross offset FFFFH, one with a
                     32-bit address needs cpu_linear() */
    SEGK_CHECKED, /* cpu_linear() decides */
};
enum {
    SEGKEY_CODE_MASK = 3,
    SEGKEY_STACK_SHIFT = 2,
    SEGKEY_REAL = 1 << 4,
    SEGKEY_V86 = 1 << 5,
    SEGKEY_STACK_FREE = 1 << 6,
    SEGKEY_KIND_SHIFT = 8,
};
uint32_t cpu_segment_key(const struct vcpu *v);

static inline enum segment_kind cpu_key_kind(uint32_t key, unsigned seg)
{
    return (enum segment_kind)(key >> (SEGKEY_KIND_SHIFT + 2 * seg) & 3);
}

/* Recomputes v->mode_key.  To be called after any change of a segment register, CR0.PE, RFLAGS.VM
 * or EFER.LMA; everything in cpu/ does. */
void cpu_mode_changed(struct vcpu *v);

/* -- Loads. --------------------------------------------------------------------------------------
 */

/* Loads ES, SS, DS, FS or GS as MOV and POP do.  The caller sets the interrupt shadow for SS. */
enum cpu_result cpu_load_segment(struct vcpu *v, enum seg seg, uint16_t sel);

/* A load in real-address or virtual-8086 mode (vcpu_real_segments), CS included: cannot fail.  Does
 * not call cpu_mode_changed(). */
void cpu_load_real_segment(struct vcpu *v, enum seg seg, uint16_t sel);

/* CPU_NEXT, or #UD in real-address and virtual-8086 mode, where SLDT, STR, LLDT, LTR, LAR, LSL,
 * VERR, VERW and ARPL do not exist.  The functions below check it themselves. */
enum cpu_result cpu_require_protected(struct vcpu *v);

enum cpu_result cpu_lldt(struct vcpu *v, uint16_t sel);
enum cpu_result cpu_ltr(struct vcpu *v, uint16_t sel);

/* LAR, LSL: 1 and *out if the selector is accessible, 0 if not (ZF), -1 with a fault. */
int cpu_lar(struct vcpu *v, uint16_t sel, uint32_t *out);
int cpu_lsl(struct vcpu *v, uint16_t sel, uint32_t *out);
/* VERR, VERW: 1, 0, or -1 with a fault. */
int cpu_verify(struct vcpu *v, uint16_t sel, bool write);

/* -- Transfers. ----------------------------------------------------------------------------------
 */

/* `size` is the operand size in bytes (2, 4, 8); next_rip the address behind the instruction.
 * An offset is cut to the operand size by the caller. */
enum cpu_result cpu_far_jump(struct vcpu *v, uint16_t sel, uint64_t offset, uint64_t next_rip);
enum cpu_result cpu_far_call(struct vcpu *v, uint16_t sel, uint64_t offset, unsigned size,
                             uint64_t next_rip);
enum cpu_result cpu_far_return(struct vcpu *v, unsigned size, uint16_t release);
enum cpu_result cpu_iret(struct vcpu *v, unsigned size, uint64_t next_rip);

enum cpu_result cpu_syscall(struct vcpu *v, uint64_t next_rip);
enum cpu_result cpu_sysret(struct vcpu *v, unsigned size);
enum cpu_result cpu_sysenter(struct vcpu *v);
enum cpu_result cpu_sysexit(struct vcpu *v, unsigned size);

/* The segment of a transfer's target: #GP(ext) if *rip (cut to 32 bits outside 64-bit code) is not
 * canonical or not within the limit. */
enum cpu_result cpu_check_target(struct vcpu *v, const struct segment *cs, uint64_t *rip,
                                 uint32_t ext);

/* Reads a field of the 64-bit TSS (offset of RSPn, ISTn).  0, or -1 with #TS(TR + ext) or #PF. */
int cpu_tss_read64(struct vcpu *v, uint32_t offset, uint32_t ext, uint64_t *out);

/* A task switch (task.c). */
enum task_cause { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };
struct task_switch {
    enum task_cause cause;
    uint16_t sel;      /* of the TSS                                                            */
    bool direct;       /* JMP or CALL names the TSS itself: its DPL is checked                  */
    uint64_t next_rip; /* EIP that the old task is left with                                    */
    uint64_t rflags;   /* and its flags                                                         */
    uint32_t ext;      /* EXT bit for error codes                                               */
    bool has_error;    /* an error code goes on the new task's stack                            */
    uint32_t error;
};
/* CPU_JUMP, or CPU_EXCEPTION (see the top; #DB of a TSS with the T flag comes that way too). */
enum cpu_result cpu_task_switch(struct vcpu *v, const struct task_switch *t);

#endif
