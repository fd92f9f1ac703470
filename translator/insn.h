/*
 * The decoder's result: everything the translator must know of one instruction, and nothing
 * about how it will be translated.  insn_decode() is a pure function: no state, no allocation.
 */
#ifndef RINGSHIFT_TRANSLATOR_INSN_H
#define RINGSHIFT_TRANSLATOR_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/vcpu.h"

enum insn_mode { MODE_16, MODE_32, MODE_64 };

enum insn_enc { ENC_LEGACY, ENC_VEX, ENC_EVEX };

/* Opcode maps. MAP_5/MAP_6 exist under EVEX only (AVX512-FP16). */
enum insn_map { MAP_ONE, MAP_0F, MAP_0F38, MAP_0F3A, MAP_5 = 5, MAP_6 = 6 };

/*
 * What an instruction is to the translator.  Everything that runs natively as soon as its memory
 * operand is redirected is OP_COPY; every other name is an instruction with its own rule.
 */
enum insn_op {
    OP_COPY = 0,
    OP_INVALID, /* not an instruction of this mode, or a feature never exposed: #UD */
    OP_NOP,     /* architecturally without effect: NOP, hints, ENDBR, PREFETCH, CLDEMOTE */
    /* control transfer */
    OP_JMP, OP_JCC, OP_CALL, OP_LOOP, OP_LOOPE, OP_LOOPNE, OP_JRCXZ, /* relative: .imm = disp */
    OP_JMP_IND, OP_CALL_IND, OP_RET, /* RET: .imm = bytes to release */
    OP_JMP_FAR, OP_CALL_FAR,         /* memory form FF /5 /3, or immediate form (.imm2 = selector) */
    OP_RETF, OP_IRET, OP_INT, OP_INT3, OP_INT1, OP_INTO,
    OP_SYSCALL, OP_SYSRET, OP_SYSENTER, OP_SYSEXIT, OP_UD, /* UD0, UD1, UD2 */
    /* stack */
    OP_PUSH, OP_POP, /* operand by .stack_operand */
    OP_PUSHF, OP_POPF, OP_ENTER, OP_LEAVE, OP_PUSHA, OP_POPA, OP_PUSH_SEG, OP_POP_SEG,
    /* memory forms that need more than operand redirection */
    OP_LEA,
    OP_MOV_MOFFS,                              /* A0-A3: .disp holds the 64-bit offset */
    OP_MOVS, OP_CMPS, OP_STOS, OP_LODS, OP_SCAS, OP_INS, OP_OUTS,
    OP_BT_MEM_REG,                             /* BT/BTS/BTR/BTC m, r: bit offset moves the address */
    OP_XLAT, OP_MASKMOV,                       /* implicit [rbx+al], [rdi] */
    OP_GATHER, OP_SCATTER,                     /* VSIB */
    OP_FXSAVE, OP_FXRSTOR, OP_XSAVE, OP_XSAVEC, OP_XSAVEOPT, OP_XRSTOR,
    OP_FNSAVE, OP_FRSTOR, OP_FNSTENV, OP_FLDENV,
    /* system */
    OP_IN, OP_OUT, OP_HLT, OP_CLI, OP_STI, OP_CPUID, OP_RDMSR, OP_WRMSR, OP_RDTSC, OP_RDTSCP,
    OP_RDPMC, OP_RDPID, OP_MOV_FROM_CR, OP_MOV_TO_CR, OP_MOV_FROM_DR, OP_MOV_TO_DR, OP_CLTS,
    OP_LMSW, OP_SMSW, OP_SGDT, OP_SIDT, OP_LGDT, OP_LIDT, OP_SLDT, OP_STR, OP_LLDT, OP_LTR,
    OP_LAR, OP_LSL, OP_VERR, OP_VERW, OP_ARPL, OP_INVLPG, OP_INVPCID, OP_INVD, OP_WBINVD,
    OP_SWAPGS, OP_RDFSBASE, OP_RDGSBASE, OP_WRFSBASE, OP_WRGSBASE, OP_XGETBV, OP_XSETBV,
    OP_STAC, OP_CLAC, OP_MOV_FROM_SEG, OP_MOV_TO_SEG, OP_LOAD_FAR_PTR, /* LES/LDS/LSS/LFS/LGS */
    OP_MONITOR, OP_MWAIT, OP_VMCALL, /* VMCALL, VMMCALL and the other VMX/SVM opcodes: #UD */
    OP_BOUND, OP_BCD, /* DAA, DAS, AAA, AAS, AAM, AAD, SALC */
    OP_FAULT_DE, /* never decoded: where the translator has found a divisor of 0                     */
    OP_FAULT_NM, /* never decoded: the translator puts it where CR0 makes an instruction raise #NM */
    OP_FAULT_GP, /* and where a branch goes past the limit of CS */
    OP_COUNT
};

/* insn.flags */
enum {
    INSN_MEM = 1u << 0,        /* has a ModRM memory operand (or moffs); .mem is valid          */
    INSN_MEM_READ = 1u << 1,   /* reads it                                                      */
    INSN_MEM_WRITE = 1u << 2,  /* writes it                                                     */
    INSN_LOCK = 1u << 3,
    INSN_REP = 1u << 4,        /* F3 as a repeat prefix (string instructions)                   */
    INSN_REPNE = 1u << 5,
    INSN_REG_GPR = 1u << 6,    /* ModRM.reg names a general register                            */
    INSN_RM_GPR = 1u << 7,     /* ModRM.rm names a general register (mod = 3)                   */
    INSN_VVVV_GPR = 1u << 8,   /* VEX.vvvv names a general register (BMI)                       */
    INSN_OPC_GPR = 1u << 9,    /* low opcode bits (+REX.B) name a general register; in .rm      */
    INSN_HIGH8 = 1u << 10,     /* an operand is AH/CH/DH/BH: no REX prefix may be added         */
    INSN_MASKED = 1u << 11,    /* memory faults are suppressed for masked-off elements:
                                  EVEX mask != k0, VMASKMOV, VPMASKMOV, compress/expand         */
    INSN_MEM_ALIGNED = 1u << 12, /* faults with #GP unless mem_size-aligned                     */
    INSN_PRIVILEGED = 1u << 13,  /* #GP(0) at CPL > 0                                           */
    INSN_MODRM = 1u << 14,
    INSN_SIB = 1u << 15,
    INSN_VSIB = 1u << 16,      /* .mem.index is a vector register                               */
    INSN_FLAGS_COND = 1u << 17, /* flags_written is "may write" (shift by CL): not a kill       */
    INSN_TOGGLE66 = 1u << 18,  /* 16-bit code, where 66h means the opposite of what it means to
                                  64-bit code: a copy needs the prefix if .raw has none         */
};

/* Which enable bits gate the instruction (#UD / #NM rules; SDM vol. 3, 2.5 and 13.1). */
enum insn_fpu { FPU_NONE, FPU_X87, FPU_WAIT, FPU_MMX, FPU_SSE, FPU_AVX, FPU_AVX512, FPU_FXSR,
                FPU_XSAVE };

enum { REG_NONE = 0xff, BASE_RIP = 0xfe };

struct insn_mem {
    uint8_t base;      /* enum gpr, REG_NONE or BASE_RIP                                       */
    uint8_t index;     /* enum gpr or REG_NONE; a vector register number with INSN_VSIB       */
    uint8_t scale;     /* 1, 2, 4, 8                                                          */
    uint8_t seg;       /* effective segment, default or override (in 64-bit mode only FS and
                          GS have a base; the others still decide #SS or #GP)                 */
    int64_t disp;      /* sign-extended, EVEX disp8*N already scaled                          */
    uint16_t size;     /* bytes accessed; for XSAVE-class 0 (the caller knows XCR0); for
                          BOUND/far pointers/descriptor tables the whole operand              */
};

struct insn {
    uint8_t len;       /* 1..15                                                               */
    uint8_t raw[15];
    uint8_t enc;       /* enum insn_enc                                                       */
    uint8_t map;       /* enum insn_map                                                       */
    uint8_t opcode;
    uint8_t modrm;     /* raw byte                                                            */
    uint8_t sib;       /* raw byte                                                            */
    uint8_t mod, reg, rm; /* reg, rm with REX/VEX/EVEX extensions applied (rm only if mod = 3
                          or INSN_OPC_GPR)                                                    */
    uint8_t vvvv;      /* VEX/EVEX third operand register number (decoded, not inverted)      */
    uint8_t rex;       /* REX byte or 0                                                       */
    uint8_t opcode_off, modrm_off, disp_off, imm_off; /* offsets into raw; 0 if absent        */
    uint8_t prefix_len; /* legacy prefixes incl. REX; for VEX/EVEX: before the VEX byte       */
    uint8_t disp_size, imm_size;
    uint8_t op_size;   /* effective operand size of the integer form: 1, 2, 4, 8              */
    uint8_t addr_size; /* 2, 4, 8                                                             */
    uint8_t cond;      /* JCC: condition code 0..15                                           */
    uint8_t fpu;       /* enum insn_fpu                                                       */
    uint8_t stack_operand; /* PUSH/POP: see below                                             */
    uint8_t vec_len;   /* VEX/EVEX vector length in bytes (16, 32, 64), else 0                */
    uint8_t evex_mask; /* EVEX aaa field                                                      */
    uint16_t op;       /* enum insn_op                                                        */
    uint32_t flags;    /* INSN_*                                                              */
    struct insn_mem mem;
    int64_t imm;       /* sign-extended as the instruction does; relative branches: the
                          displacement; MOV r64, imm64: all 64 bits                           */
    uint16_t imm2;     /* ENTER level, far selector                                           */
    uint16_t gpr_read, gpr_written; /* masks of general registers, explicit, implicit and
                          address registers alike; 8/16-bit writes count as read and written  */
    uint16_t flags_read, flags_written; /* FL_ARITH | FL_DF masks; undefined = written        */
    const char *mnemonic; /* from the opcode table, lower case; for traces and statistics      */
};

enum { STK_REG, STK_IMM, STK_MEM };

/*
 * Conventions that the field comments leave open:
 *   - LEA, the hints (OP_NOP), INVLPG and UD0/UD1 have .mem filled in but INSN_MEM clear: they
 *     compute an address and access nothing.
 *   - String instructions, XLAT and MASKMOV have no ModRM memory operand, so INSN_MEM is clear;
 *     .mem.seg is the effective segment of [rsi], [rbx+al] or [rdi] (STOS, SCAS, INS: always ES,
 *     whatever .mem.seg says) and .mem.size, for strings, the element's size.
 *   - Gathers and scatters: .mem.size is one element.
 *   - PUSH_SEG, POP_SEG and MOV_*_SEG: .reg is enum seg.  MOV_*_CR/DR: .reg is the number of the
 *     control or debug register, .rm the general register.
 *   - INSN_LOCK is the prefix; XCHG with memory is atomic without it.
 *   - .reg and .rm of AH/CH/DH/BH (INSN_HIGH8) are 4..7; the GPR masks name RAX..RBX.
 *   - FXSAVE, FXRSTOR: .mem.size is 512, the alignment that INSN_MEM_ALIGNED asks for is 16; for
 *     the XSAVE class it is 64.
 *   - CLFLUSH, CLFLUSHOPT, CLWB are reads of one byte.
 *   - IN, OUT, CLI, STI, PUSHF, POPF, INT depend on IOPL and are not INSN_PRIVILEGED; RDTSC, RDPMC,
 *     SGDT and the like depend on CR4 and are not either.
 *   - .raw behind .len has no meaning.
 */

/*
 * Decodes the instruction at `code`, of which `avail` bytes may be read (at most 15 are).
 * Returns its length (1..15) and fills *out, or
 *   0  if `avail` ends before the instruction does (and avail < 15): *out is undefined.
 * A byte sequence that is no instruction decodes to OP_INVALID with the length that was looked
 * at; more than 15 bytes decode to OP_INVALID with len 15 (the CPU raises #GP for that: .imm = 1
 * tells this case apart).  Fails closed: whatever is not known is OP_INVALID.
 * SDM vol. 2, chapter 2 and appendix A.
 */
int insn_decode(struct insn *out, const uint8_t *code, size_t avail, enum insn_mode mode);

/* Names for statistics and traces. */
const char *insn_op_name(enum insn_op op);

#endif
