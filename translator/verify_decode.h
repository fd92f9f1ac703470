/*
 * The verifier's view of machine code: Capstone, and what Capstone (version 4 above all) does not
 * know or gets wrong.  Private to verify.c.
 */
#ifndef RINGSHIFT_TRANSLATOR_VERIFY_DECODE_H
#define RINGSHIFT_TRANSLATOR_VERIFY_DECODE_H

#include <stdbool.h>
#include <stdint.h>

#include <capstone/capstone.h>

/* What is kept from block to block: Capstone's handle and the memory for its instructions.  One
 * thread at a time. */
struct verify_kit {
    csh cs;
    struct verify_lot *lots; /* all of them                                         */
    struct verify_lot *lot;  /* the one in use: those before it are full             */
};

/* Segment of operands with a 32-bit address relative to the GS base: guest memory, not the vCPU's. */
#define VERIFY_FLAT X86_REG_CR0

struct verify_code {
    const uint8_t *code;
    uint32_t size;
    uint64_t address; /* of the first byte */
    cs_insn **insn;   /* by offset; NULL where no instruction starts */
    cs_insn *spare;
    struct verify_kit *kit;
    csh cs; /* the kit's */
};

/* NULL if memory ran out. */
struct verify_kit *verify_kit_new(void);
void verify_kit_free(struct verify_kit *kit);

/* Decodes all of it, with c->code to c->kit filled in. False if memory ran out or the bytes at *bad
 * are no instruction.  In either case verify_decode_free() must follow; until then the kit is in
 * use. */
bool verify_decode(struct verify_code *c, uint32_t *bad);
void verify_decode_free(struct verify_code *c);

/* Not allowed in any form: what talks to the host kernel or the hypervisor, touches segments or the
 * host's stack, has memory operands that the encoding does not show, or reveals the host. */
bool verify_forbidden(const struct verify_code *c, const cs_insn *in);
/* A string instruction with 64-bit addresses and without segment override, in one of the encodings that
 * are allowed under conditions: [F2 or F3] [66 or REX.W] opcode.  False if it is nothing of the kind. */
struct verify_string {
    bool src, dst;   /* [rsi], [rdi]              */
    bool writes;     /* to [rdi]                  */
    bool repeat;
    bool wide;       /* of eight bytes           */
    bool accumulator; /* LODS writes RAX          */
};
bool verify_string(const cs_insn *in, struct verify_string *out);
/* Upper bound of the bytes accessed, where Capstone's operand size is not that. For instructions
 * that Capstone does not know it is 1: only the form of their address can be checked. */
unsigned verify_access_size(const cs_insn *in, const cs_x86_op *op);
/* Memory as first operand is only read, whatever Capstone says. */
bool verify_reads_only(const cs_insn *in);
/* General registers that it writes without naming them, as a mask; -1 if regs_write is right. */
int verify_implicit_writes(const cs_insn *in);

/* REX.W, VEX.W or EVEX.W; is it one of the latter two, which say more reliably than Capstone how wide a
 * general register is that is written? */
bool verify_wide_encoding(const uint8_t *bytes, size_t size, bool *vector);

#endif
