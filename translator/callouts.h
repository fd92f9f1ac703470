/*
 * Instructions that are done in C: the step from an encoding (struct insn) to the rules of cpu/.
 *
 * On entry v holds the complete state (gpr, rflags) and v->rip is the instruction's address.
 * Results (enum cpu_result):
 *   CPU_NEXT       v->rip is untouched; go on behind the instruction.
 *   CPU_JUMP       v->rip is where to go on.  Control transfers, and every instruction after which
 *                  the next one must be looked up again and pending events be considered, since it
 *                  may have changed mode, paging, IF, TF, breakpoints or an interrupt shadow:
 *                  STI, POPF, HLT (when an interrupt was delivered), MOV to CR/DR, LMSW, CLTS,
 *                  WRMSR of EFER and TSC, XSETBV, INVLPG, INVPCID, MOV/POP/LSS to SS, INT n, IRET,
 *                  SYSCALL, ...; also a string instruction that wrote to a page with translations.
 *   CPU_EXCEPTION  v->exc, rip = the instruction.
 *   CPU_REPEAT     part of a repeated string instruction is done: rsi, rdi, rcx are those of the
 *                  next element, rip = the instruction.
 *   CPU_EXIT       v->exit says why.
 * Instructions that reach devices (IN, OUT, INS, OUTS, MMIO operands, APIC MSRs, CR8) have saved
 * the FP state: v->fp_saved tells.
 */
#ifndef RINGSHIFT_TRANSLATOR_CALLOUTS_H
#define RINGSHIFT_TRANSLATOR_CALLOUTS_H

#include "cpu/system.h"
#include "translator/insn.h"

enum cpu_result callout_execute(struct vcpu *v, const struct insn *in);

/* MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS with and without repeat prefix (string_ops.c). */
enum cpu_result callout_string(struct vcpu *v, const struct insn *in);

/* Linear address of the memory operand: address size, segment base, RIP-relative. */
uint64_t callout_ea(const struct vcpu *v, const struct insn *in);

/* Notes that the instruction has accessed [addr, addr + size): a data or I/O breakpoint that this
 * hits is delivered by the dispatcher as a trap after the instruction (or iteration). */
void callout_watch(struct vcpu *v, enum cpu_debug_kind kind, uint64_t addr, unsigned size);

/* `value` cut to an address of `size` (2, 4, 8) bytes. */
static inline uint64_t callout_truncate(uint64_t value, unsigned size)
{
    return size == 8 ? value : size == 4 ? (uint32_t)value : (uint16_t)value;
}

/* Base that an address in `seg` is relative to: in 64-bit mode only FS and GS have one. */
static inline uint64_t callout_seg_base(const struct vcpu *v, unsigned seg)
{
    return vcpu_long64(v) && seg != SEG_FS && seg != SEG_GS ? 0 : v->seg[seg].base;
}

#endif
