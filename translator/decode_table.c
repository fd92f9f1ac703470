/*
 * The opcode tables, made from the .def files.
 *
 * Notation of a row, always one line:
 *
 *   OPM(map, first, last, match, "mnemonic", op, operands, effects)   opcode with ModRM
 *   OPN(...)                                                          opcode without ModRM
 *   ALT(match, "mnemonic", op, operands, effects)                     alternative to the row above
 *
 * A row's number is its line number in its .def file, which is what lets the index be built by the
 * preprocessor.  Rows of one opcode are on consecutive lines: an empty line or a comment ends the
 * list, and an encoding that none of the rows fits is OP_INVALID.
 *
 * match (the first row that fits wins; 0 fits always):
 *   NP P66 PF3 PF2  mandatory prefix; NREP: neither F2 nor F3
 *   W0 W1 L0 L1 L2  VEX/EVEX/REX fields
 *   MEM REG         ModRM.mod
 *   G0..G7 M0..M7   ModRM.reg, ModRM.rm
 *   X64 X32         64-bit mode, any other mode;  B0: no REX.B
 * operands:
 *   OV OB OD64 OF64 OY OW OD OZ OM      operand size (enum opsize)
 *   S1..S64 SVL.. SENV ..               memory operand size (enum memsize), else the operand size
 *   ER EW EX        ModRM.rm: GPR or memory, read, written, both
 *   MR MW MX        ModRM.rm: memory (or no GPR), read, written, both
 *   GR GW GX        ModRM.reg is a GPR;  ZR ZW ZX: low opcode bits;  VR VW VX: VEX.vvvv
 *   VV              VEX.vvvv is a vector or mask register (else it must be 1111b)
 *   IB UB IZ IV IMW IWIB JB JZ AP MOFFS  immediate (enum imm_kind)
 *   XA XU           SSE source of 16 bytes that must be, need not be aligned
 *   the rest as the A_ constants in decode_table.h are named
 * effects: FR(flags) FW(flags) read and written flags, IR(regs) IW(regs) implicit GPRs.
 * Undefined flags count as written.  SDM vol. 2; appendix A for the maps.
 */
#include "translator/decode_table.h"

/* clang-format off */

/* match */
#define FIELD(shift, bits, value) \
    ((uint64_t)((1u << (bits)) - 1) << (32 + (shift)) | (uint64_t)(value) << (shift))
#define NP FIELD(KEY_PP, 2, 0)
#define P66 FIELD(KEY_PP, 2, 1)
#define PF3 FIELD(KEY_PP, 2, 2)
#define PF2 FIELD(KEY_PP, 2, 3)
#define NREP FIELD(KEY_PP + 1, 1, 0)
#define W0 FIELD(KEY_W, 1, 0)
#define W1 FIELD(KEY_W, 1, 1)
#define L0 FIELD(KEY_L, 2, 0)
#define L1 FIELD(KEY_L, 2, 1)
#define L2 FIELD(KEY_L, 2, 2)
#define MEM FIELD(KEY_MOD3, 1, 0)
#define REG FIELD(KEY_MOD3, 1, 1)
#define G0 FIELD(KEY_REG, 3, 0)
#define G1 FIELD(KEY_REG, 3, 1)
#define G2 FIELD(KEY_REG, 3, 2)
#define G3 FIELD(KEY_REG, 3, 3)
#define G4 FIELD(KEY_REG, 3, 4)
#define G5 FIELD(KEY_REG, 3, 5)
#define G6 FIELD(KEY_REG, 3, 6)
#define G7 FIELD(KEY_REG, 3, 7)
#define M0 FIELD(KEY_RM, 3, 0)
#define M1 FIELD(KEY_RM, 3, 1)
#define M2 FIELD(KEY_RM, 3, 2)
#define M3 FIELD(KEY_RM, 3, 3)
#define M4 FIELD(KEY_RM, 3, 4)
#define M5 FIELD(KEY_RM, 3, 5)
#define M6 FIELD(KEY_RM, 3, 6)
#define M7 FIELD(KEY_RM, 3, 7)
#define X64 FIELD(KEY_M64, 1, 1)
#define X32 FIELD(KEY_M64, 1, 0)
#define B0 FIELD(KEY_REXB, 1, 0)

/* operands */
#define OSIZE(x) ((uint64_t)OS_##x << A_OPSIZE_SHIFT)
#define OV OSIZE(V)
#define OB OSIZE(B)
#define OD64 OSIZE(D64)
#define OF64 OSIZE(F64)
#define OY OSIZE(Y)
#define OW OSIZE(W)
#define OD OSIZE(D)
#define OZ OSIZE(Z)
#define OM OSIZE(M)
#define MSIZE(x) ((uint64_t)SZ_##x << A_MEMSIZE_SHIFT)
#define S1 MSIZE(1)
#define S2 MSIZE(2)
#define S4 MSIZE(4)
#define S8 MSIZE(8)
#define S10 MSIZE(10)
#define S16 MSIZE(16)
#define S32 MSIZE(32)
#define S64 MSIZE(64)
#define SVL MSIZE(VL)
#define SVL2 MSIZE(VL2)
#define SVL4 MSIZE(VL4)
#define SVL8 MSIZE(VL8)
#define SENV MSIZE(ENV)
#define SSAVE MSIZE(SAVE)
#define S512 MSIZE(512)
#define SNONE MSIZE(0)
#define S2OP MSIZE(2OP)
#define SFAR MSIZE(FAR)
#define SDT MSIZE(DT)
#define SSXD MSIZE(SXD)
#define IMMK(x) ((uint64_t)IMM_##x << A_IMM_SHIFT)
#define IB IMMK(IB)
#define UB IMMK(UB)
#define IZ IMMK(IZ)
#define IV IMMK(IV)
#define IMW IMMK(IW)
#define IWIB IMMK(IWIB)
#define JB IMMK(JB)
#define JZ IMMK(JZ)
#define AP IMMK(AP)
#define MOFFS IMMK(MOFFS)
#define FPUC(x) ((uint64_t)FPU_##x << A_FPU_SHIFT)
#define X87 FPUC(X87)
#define MMX FPUC(MMX)
#define SSE FPUC(SSE)
#define XA (SSE | MR | S16 | ALIGN)
#define XU (SSE | MR | S16)
#define AVX FPUC(AVX)
#define Z512 FPUC(AVX512)
#define ER A_RM_R
#define EW A_RM_W
#define EX (A_RM_R | A_RM_W)
#define MR A_MEM_R
#define MW A_MEM_W
#define MX (A_MEM_R | A_MEM_W)
#define GR A_REG_R
#define GW A_REG_W
#define GX (A_REG_R | A_REG_W)
#define ZR A_OPC_R
#define ZW A_OPC_W
#define ZX (A_OPC_R | A_OPC_W)
#define VR A_V_R
#define VW A_V_W
#define VX (A_V_R | A_V_W)
#define VV A_V_VEC
#define E8 A_RM8
#define LK A_LOCK
#define PRIV A_PRIV
#define ALIGN A_ALIGN
#define MASKED A_MASKED
#define STRING A_STRING
#define CC A_CC
#define FCOND A_FCOND
#define COUNT A_COUNT
#define ADDR A_ADDR
#define MODIGN A_MODIGN
#define VSIB A_VSIB
#define SREG A_SREG
#define CREG A_CREG
#define DISTINCT A_DISTINCT
#define KG A_K_REG
#define KV (A_V_VEC | A_K_V)
#define RC A_ROUND
#define NOK A_NOK
#define NOZ A_NOZ
#define LIG A_LIG
#define ELEM(n) ((uint64_t)(n) << A_ELEM_SHIFT)
#define BC2 (A_BCAST | ELEM(1))
#define BC4 (A_BCAST | ELEM(2))
#define BC8 (A_BCAST | ELEM(3))
#define D81 (A_D8ELEM | ELEM(0))
#define D82 (A_D8ELEM | ELEM(1))
#define D84 (A_D8ELEM | ELEM(2))
#define D88 (A_D8ELEM | ELEM(3))

/* effects */
#define FR(x) ((uint64_t)(x))
#define FW(x) ((uint64_t)(x) << E_FLAGS_W_SHIFT)
#define IR(x) ((uint64_t)(x) << E_GPR_R_SHIFT)
#define IW(x) ((uint64_t)(x) << E_GPR_W_SHIFT)
#define CF FL_CF
#define PF FL_PF
#define AF FL_AF
#define ZF FL_ZF
#define SF FL_SF
#define DF FL_DF
#define OF FL_OF
#define ALLF FL_ARITH
#define AX (1u << RAX)
#define CX (1u << RCX)
#define DX (1u << RDX)
#define BX (1u << RBX)
#define SP (1u << RSP)
#define BP (1u << RBP)
#define SI (1u << RSI)
#define DI (1u << RDI)
#define AD (AX | DX)
#define ABCD (AX | BX | CX | DX)
#define BIT_R11 (1u << R11)
#define STACK (IR(SP) | IW(SP))

#define ROW(head, match, name, op, operands, effects) \
    [__LINE__] = {(match), A_VALID | (head) | (operands), \
                  (effects) | (uint64_t)OP_##op << E_OP_SHIFT, name},
#define ALT(match, name, op, operands, effects) ROW(0, match, name, op, operands, effects)
#define OPM(map, first, last, match, name, op, operands, effects) \
    ROW(A_HEAD, match, name, op, operands, effects)
#define OPN OPM
/* Ends the alternatives of a file's last opcode. */
#define END [__LINE__] = {0},
static const struct opcode_row legacy_rows[] = {
#include "translator/opcodes_legacy.def"
};
static const struct opcode_row vex_rows[] = {
#include "translator/opcodes_vex.def"
};
static const struct opcode_row evex_rows[] = {
#include "translator/opcodes_evex.def"
};

#undef ALT
#undef OPM
#undef OPN
#undef END
#define ALT(...)
#define END
#define OPM(map, first, last, ...) [MAP_##map][first ... last] = INDEX_MODRM | __LINE__,
#define OPN(map, first, last, ...) [MAP_##map][first ... last] = __LINE__,
static const uint16_t legacy_index[DECODE_MAPS][256] = {
#include "translator/opcodes_legacy.def"
};
static const uint16_t vex_index[DECODE_MAPS][256] = {
#include "translator/opcodes_vex.def"
};
static const uint16_t evex_index[DECODE_MAPS][256] = {
#include "translator/opcodes_evex.def"
};

#define TABLE(enc) {enc##_rows, sizeof(enc##_rows) / sizeof(enc##_rows[0]), enc##_index}
const struct opcode_table opcode_tables[3] = {
    [ENC_LEGACY] = TABLE(legacy),
    [ENC_VEX] = TABLE(vex),
    [ENC_EVEX] = TABLE(evex),
};
