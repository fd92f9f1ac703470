/*
 * The opcode tables behind insn_decode(): what one row says, and where rows are found.
 *
 * The rows are written in opcodes_legacy.def, opcodes_vex.def and opcodes_evex.def (their notation
 * is explained in decode_table.c).  A row is found by its encoding class, map and opcode byte; an
 * opcode may have several rows (alternatives), of which the first whose `match` fits the prefixes
 * and the ModRM byte is taken.  Only the decoder and its tests include this header.
 */
#ifndef RINGSHIFT_TRANSLATOR_DECODE_TABLE_H
#define RINGSHIFT_TRANSLATOR_DECODE_TABLE_H

#include <stdint.h>

#include "translator/insn.h"

/*
 * The selection key: everything that can tell two alternatives of an opcode apart.  A row's
 * `match` holds a value for these bits in its low half and a mask in its high half.
 */
enum {
    KEY_PP = 0,    /* 2 bits: mandatory prefix, numbered as in VEX.pp: none, 66, F3, F2         */
    KEY_W = 2,     /* REX.W, VEX.W, EVEX.W                                                      */
    KEY_L = 3,     /* 2 bits: VEX.L, EVEX.L'L                                                   */
    KEY_MOD3 = 5,  /* ModRM.mod = 3                                                             */
    KEY_REG = 6,   /* 3 bits: ModRM.reg without extension                                       */
    KEY_RM = 9,    /* 3 bits: ModRM.rm without extension                                        */
    KEY_M64 = 12,  /* 64-bit mode                                                               */
    KEY_REXB = 13, /* REX.B                                                                     */
};

/* clang-format off */

/* How the effective operand size follows from mode, 66H and W. */
enum opsize {
    OS_V,   /* 2, 4 or 8                                                                        */
    OS_B,   /* 1                                                                                */
    OS_D64, /* stack operations: 8 in 64-bit mode, 2 with 66H, never 4                          */
    OS_F64, /* near branches: 8 in 64-bit mode whatever the prefixes say (as Intel does)        */
    OS_Y,   /* 4, or 8 with W; 66H is not looked at                                             */
    OS_W,   /* 2                                                                                */
    OS_D,   /* 4                                                                                */
    OS_Z,   /* 2 or 4                                                                           */
    OS_M,   /* 8 in 64-bit mode, else 4                                                         */
};

/* How many bytes the memory operand has. */
enum memsize {
    SZ_OP, /* as op_size                                                                        */
    SZ_1, SZ_2, SZ_4, SZ_8, SZ_10, SZ_16, SZ_32, SZ_64,
    SZ_VL, SZ_VL2, SZ_VL4, SZ_VL8, /* the vector length and fractions of it                     */
    SZ_ENV, SZ_SAVE,               /* x87 environment 14/28, x87 state 94/108                   */
    SZ_512, SZ_0,                  /* FXSAVE area; XSAVE area (size known to the caller alone)  */
    SZ_2OP,                        /* CMPXCHG8B/16B, BOUND: twice op_size                       */
    SZ_FAR,                        /* far pointer: op_size + 2                                  */
    SZ_DT,                         /* descriptor table register: 6, or 10 in 64-bit mode        */
    SZ_SXD,                        /* MOVSXD source                                             */
};

enum imm_kind {
    IMM_NONE,
    IMM_IB,   /* 8 bits, sign-extended                                                          */
    IMM_UB,   /* 8 bits, zero-extended                                                          */
    IMM_IZ,   /* 16 or 32 bits, sign-extended                                                   */
    IMM_IV,   /* 16, 32 or 64 bits                                                              */
    IMM_IW,   /* 16 bits, zero-extended                                                         */
    IMM_IWIB, /* ENTER: 16 bits and 8 bits                                                      */
    IMM_JB, IMM_JZ, /* branch displacements                                                     */
    IMM_AP,   /* far pointer                                                                    */
    IMM_MOFFS, /* an absolute address, address-size bytes                                       */
};

/* clang-format on */

/* row.attr */
#define A_OPSIZE_SHIFT  0  /* 4 bits: enum opsize */
#define A_MEMSIZE_SHIFT 4  /* 5 bits: enum memsize */
#define A_IMM_SHIFT     9  /* 4 bits: enum imm_kind */
#define A_FPU_SHIFT     13 /* 4 bits: enum insn_fpu */
#define A_ELEM_SHIFT    17 /* 2 bits: log2 of the element size that EVEX.b broadcasts */
#define A_BIT(n)        (UINT64_C(1) << (n))
#define A_BCAST         A_BIT(19) /* EVEX.b with a memory operand broadcasts one element */
#define A_REG_R         A_BIT(20) /* ModRM.reg is a GPR that is read */
#define A_REG_W         A_BIT(21)
#define A_RM_R          A_BIT(22) /* ModRM.rm is a GPR or memory that is read */
#define A_RM_W          A_BIT(23)
#define A_MEM_R         A_BIT(24) /* ModRM.rm is memory that is read, or something that is no GPR */
#define A_MEM_W         A_BIT(25)
#define A_OPC_R         A_BIT(26) /* the low opcode bits are a GPR that is read */
#define A_OPC_W         A_BIT(27)
#define A_V_R           A_BIT(28) /* VEX.vvvv is a GPR that is read */
#define A_V_W           A_BIT(29)
#define A_V_VEC         A_BIT(30) /* VEX.vvvv is used, but is no GPR */
#define A_REG8          A_BIT(31) /* ModRM.reg is a byte register whatever op_size says */
#define A_RM8           A_BIT(32)
#define A_LOCK          A_BIT(33) /* LOCK is allowed if the destination is memory */
#define A_PRIV          A_BIT(34)
#define A_ALIGN         A_BIT(35) /* INSN_MEM_ALIGNED */
#define A_MASKED        A_BIT(36) /* INSN_MASKED whatever EVEX.aaa says */
#define A_STRING        A_BIT(37) /* F3/F2 repeat it */
#define A_CC            A_BIT(38) /* the low opcode bits are a condition code */
#define A_FCOND         A_BIT(39) /* INSN_FLAGS_COND */
#define A_COUNT         A_BIT(40) /* INSN_FLAGS_COND if the immediate count is masked to zero */
#define A_ADDR          A_BIT(41) /* the memory operand is only an address: no access */
#define A_MODIGN        A_BIT(42) /* ModRM.mod is taken as 3 */
#define A_VSIB          A_BIT(43)
#define A_K_REG         A_BIT(44) /* ModRM.reg is an opmask register */
#define A_K_V           A_BIT(45) /* VEX.vvvv is an opmask register */
#define A_ROUND         A_BIT(46) /* EVEX.b with registers: embedded rounding or SAE, length 64 */
#define A_NOK           A_BIT(47) /* EVEX.aaa must be 0 */
#define A_NOZ           A_BIT(48) /* EVEX.z must be 0 */
#define A_LIG           A_BIT(49) /* EVEX.L'L is ignored (scalar) */
#define A_D8ELEM        A_BIT(50) /* disp8 is scaled by the element size, not the operand size */
#define A_SREG          A_BIT(51) /* ModRM.reg is a segment register: no extension */
#define A_CREG          A_BIT(52) /* ModRM.reg is a control register: CR8 is the only extended one */
#define A_DISTINCT      A_BIT(53) /* #UD if the destination is also a source */
#define A_HEAD          A_BIT(62) /* first row of an opcode: ends the alternatives before it */
#define A_VALID         A_BIT(63)

/* row.effects: flags read 0-11, flags written 12-23, implicit GPRs read 24-39, written 40-55,
 * enum insn_op 56-63. */
#define E_FLAGS_W_SHIFT 12
#define E_GPR_R_SHIFT   24
#define E_GPR_W_SHIFT   40
#define E_OP_SHIFT      56
#define E_FLAGS_MASK    0xfffu

struct opcode_row {
    uint64_t match;
    uint64_t attr;
    uint64_t effects;
    const char *mnemonic;
};

#define INDEX_MODRM 0x8000u /* the opcode has a ModRM byte */
#define INDEX_ROW   0x7fffu /* the number of its first row; 0: no such opcode */
#define DECODE_MAPS 7       /* indexed by enum insn_map */

struct opcode_table {
    const struct opcode_row *rows;
    unsigned row_count;
    const uint16_t (*index)[256]; /* [DECODE_MAPS][256] */
};

/* Indexed by enum insn_enc. */
extern const struct opcode_table opcode_tables[3];

#endif
