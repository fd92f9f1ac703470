/*
 * Re-encoding: the same instruction with its memory operand replaced by [base] and, where needed,
 * its general-register fields renamed.  Nothing else of the instruction changes, so it needs no
 * knowledge of what the instruction does (invariant 1: same ISA, so copy).
 */
#ifndef RINGSHIFT_TRANSLATOR_REENCODE_H
#define RINGSHIFT_TRANSLATOR_REENCODE_H

#include "translator/emit.h"
#include "translator/insn.h"

#define KEEP 0xffu

/* reg, vvvv: new register number for that field, or KEEP. base: address register without special
 * encoding (not rsp, rbp, r12, r13); index: register added to it, or KEEP for none; disp: only in
 * the form with an index. */
void reencode_mem(struct emitter *e, const struct insn *in, unsigned base, unsigned index,
                  int32_t disp, unsigned reg, unsigned vvvv);

/* The instruction as it is but without segment and address-size prefixes (implicit operands). */
void reencode_plain(struct emitter *e, const struct insn *in);

#endif
