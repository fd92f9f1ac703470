/*
 * Re-encoding: the same instruction with its memory operand replaced by another and, where needed,
 * its general-register fields renamed.  Nothing else of the instruction changes, so it needs no
 * knowledge of what the instruction does (invariant 1: same ISA, so copy).
 */
#ifndef RINGSHIFT_TRANSLATOR_REENCODE_H
#define RINGSHIFT_TRANSLATOR_REENCODE_H

#include "translator/emit.h"
#include "translator/insn.h"

#define KEEP 0xffu

/* Where an operand is on the host: [base + index * scale + disp], base any register, index KEEP for
 * none (never rsp).  With `flat`, gs:[that], as a 32-bit address; then base may be KEEP, too. */
struct memref {
    uint8_t base, index;
    int32_t disp;
    uint8_t scale; /* 0 means 1 */
    bool flat;
};

/* reg, vvvv: new register number for that field, or KEEP. */
void reencode_mem(struct emitter *e, const struct insn *in, const struct memref *ref, unsigned reg,
                  unsigned vvvv);

/* An instruction of ENC_LEGACY on registers with gs:[off] in place of the one in ModRM.rm. */
void reencode_state(struct emitter *e, const struct insn *in, uint32_t off);

/* The instruction as it is but without segment and address-size prefixes (implicit operands). */
void reencode_plain(struct emitter *e, const struct insn *in);

#endif
