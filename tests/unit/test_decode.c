/*
 * The decoder on chosen instructions, and every row of its tables.  What the host CPU and Capstone
 * say about generated instructions is checked by tests/tools/decode_oracle.c and decode_check.c.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "translator/decode_table.h"
#include "translator/insn.h"

#define B(...) (const uint8_t[15]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})

static struct insn decode_in(enum insn_mode mode, const uint8_t *bytes, size_t n)
{
    struct insn in;
    uint8_t code[15];

    /* Nothing may depend on what follows. */
    memset(code, 0xcc, sizeof(code));
    memcpy(code, bytes, n);
    int len = insn_decode(&in, code, sizeof(code), mode);
    cr_assert_eq(len, in.len);
    return in;
}

static struct insn decode(const uint8_t *bytes, size_t n)
{
    struct insn in = decode_in(MODE_64, bytes, n);

    cr_assert_neq(in.op, OP_INVALID, "%02x %02x %02x is invalid", bytes[0], bytes[1], bytes[2]);
    cr_assert_eq(in.len, n, "%02x %02x %02x: length %u, not %zu", bytes[0], bytes[1], bytes[2],
                 in.len, n);
    return in;
}

static bool refused(const uint8_t *bytes, size_t n)
{
    return decode_in(MODE_64, bytes, n).op == OP_INVALID;
}

#define BIT(reg) (1u << (reg))

/* -- Prefixes and operand size ----------------------------------------------------------------- */

Test(decode, operand_size)
{
    struct insn in = decode(B(0x01, 0xc8)); /* add eax, ecx */
    cr_assert_eq(in.op_size, 4);
    cr_assert_eq(decode(B(0x66, 0x01, 0xc8)).op_size, 2);
    cr_assert_eq(decode(B(0x48, 0x01, 0xc8)).op_size, 8);
    cr_assert_eq(decode(B(0x66, 0x48, 0x01, 0xc8)).op_size, 8);
    cr_assert_eq(decode(B(0x00, 0xc8)).op_size, 1);
    cr_assert_eq(decode(B(0x50)).op_size, 8);
    cr_assert_eq(decode(B(0x66, 0x50)).op_size, 2);
    cr_assert_eq(decode(B(0x66, 0x41, 0x50)).rm, R8);
}

Test(decode, rex_must_precede_the_opcode)
{
    struct insn in = decode(B(0x48, 0x66, 0x01, 0xc8));
    cr_assert_eq(in.op_size, 2);
    cr_assert_eq(in.rex, 0);
    cr_assert_eq(in.prefix_len, 2);
    in = decode(B(0x48, 0x45, 0x01, 0xc8)); /* the last of several counts */
    cr_assert_eq(in.rex, 0x45);
    cr_assert_eq(in.op_size, 4);
    cr_assert_eq(in.reg, R9);
    cr_assert_eq(in.rm, R8);
}

Test(decode, mandatory_prefix)
{
    cr_assert_str_eq(decode(B(0x0f, 0x58, 0xc1)).mnemonic, "addps");
    cr_assert_str_eq(decode(B(0x66, 0x0f, 0x58, 0xc1)).mnemonic, "addpd");
    cr_assert_str_eq(decode(B(0xf3, 0x0f, 0x58, 0xc1)).mnemonic, "addss");
    cr_assert_str_eq(decode(B(0xf2, 0x0f, 0x58, 0xc1)).mnemonic, "addsd");
    /* F2 and F3 go before 66; the last of them counts. */
    cr_assert_str_eq(decode(B(0x66, 0xf3, 0x0f, 0x58, 0xc1)).mnemonic, "addss");
    cr_assert_str_eq(decode(B(0xf3, 0x66, 0x0f, 0x58, 0xc1)).mnemonic, "addss");
    cr_assert_str_eq(decode(B(0xf2, 0xf3, 0x0f, 0x58, 0xc1)).mnemonic, "addss");
    cr_assert_str_eq(decode(B(0xf3, 0xf2, 0x0f, 0x58, 0xc1)).mnemonic, "addsd");
    cr_assert(refused(B(0xf3, 0x0f, 0x54, 0xc1)));
}

Test(decode, near_branches_ignore_66)
{
    struct insn in = decode(B(0x66, 0xe8, 0x78, 0x56, 0x34, 0x12));
    cr_assert_eq(in.op, OP_CALL);
    cr_assert_eq(in.imm, 0x12345678);
    cr_assert_eq(in.op_size, 8);
    in = decode(B(0x0f, 0x85, 0xfc, 0xff, 0xff, 0xff));
    cr_assert_eq(in.op, OP_JCC);
    cr_assert_eq(in.cond, 5);
    cr_assert_eq(in.imm, -4);
    cr_assert_eq(in.flags_read, FL_ZF);
    in = decode(B(0xeb, 0xfe));
    cr_assert_eq(in.imm, -2);
    in = decode(B(0xc2, 0x10, 0x00));
    cr_assert_eq(in.op, OP_RET);
    cr_assert_eq(in.imm, 16);
}

Test(decode, lock)
{
    struct insn in = decode(B(0xf0, 0x48, 0x0f, 0xb1, 0x0b)); /* lock cmpxchg [rbx], rcx */
    cr_assert(in.flags & INSN_LOCK);
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RCX) | BIT(RBX));
    cr_assert_eq(in.gpr_written, BIT(RAX));
    cr_assert(refused(B(0xf0, 0x01, 0xc8)), "register destination");
    cr_assert(refused(B(0xf0, 0x39, 0x08)), "cmp");
    cr_assert(refused(B(0xf0, 0x03, 0x08)), "memory source");
    cr_assert(refused(B(0xf0, 0x0f, 0xa3, 0x08)), "bt");
    cr_assert(refused(B(0xf0, 0x90)));
    cr_assert(refused(B(0xf0, 0xc5, 0xf8, 0x58, 0xc1)));
    cr_assert_eq(decode(B(0xf0, 0x0f, 0xab, 0x08)).op, OP_BT_MEM_REG);
    cr_assert_str_eq(decode(B(0xf0, 0x0f, 0xc7, 0x08)).mnemonic, "cmpxchg8b");
}

Test(decode, too_long_and_cut_off)
{
    uint8_t code[15];
    struct insn in;

    memset(code, 0x66, sizeof(code));
    cr_assert_eq(insn_decode(&in, code, 15, MODE_64), 15);
    cr_assert_eq(in.op, OP_INVALID);
    cr_assert_eq(in.imm, 1);
    code[14] = 0x90;
    cr_assert_eq(insn_decode(&in, code, 15, MODE_64), 15);
    cr_assert_eq(in.op, OP_NOP);
    code[13] = 0xb8; /* mov ax, imm16 would have 16 bytes */
    cr_assert_eq(insn_decode(&in, code, 15, MODE_64), 15);
    cr_assert_eq(in.op, OP_INVALID);
    cr_assert_eq(in.imm, 1);
    cr_assert_eq(insn_decode(&in, code, 14, MODE_64), 0);
    cr_assert_eq(insn_decode(&in, code, 0, MODE_64), 0);
    cr_assert_eq(insn_decode(&in, B(0x0f, 0x0b), MODE_64), 2);
    cr_assert_eq(in.op, OP_UD);
    cr_assert_eq(insn_decode(&in, (const uint8_t[]){0xff}, 1, MODE_64), 0);
    cr_assert_eq(insn_decode(&in, (const uint8_t[]){0x06}, 1, MODE_64), 1);
    cr_assert_eq(in.op, OP_INVALID);
    cr_assert_eq(in.imm, 0);
}

/* -- Memory operands -----------------------------------------------------------------------------
 */

static void assert_mem(struct insn in, int base, int index, int scale, int64_t disp, int size)
{
    cr_assert_eq(in.mem.base, base, "%s: base %d", in.mnemonic, in.mem.base);
    cr_assert_eq(in.mem.index, index, "%s: index %d", in.mnemonic, in.mem.index);
    cr_assert_eq(in.mem.scale, scale, "%s: scale %d", in.mnemonic, in.mem.scale);
    cr_assert_eq(in.mem.disp, disp, "%s: disp %ld", in.mnemonic, (long)in.mem.disp);
    cr_assert_eq(in.mem.size, size, "%s: size %d", in.mnemonic, in.mem.size);
}

Test(decode, addressing_64)
{
    assert_mem(decode(B(0x8b, 0x03)), RBX, REG_NONE, 1, 0, 4);
    assert_mem(decode(B(0x8b, 0x43, 0x80)), RBX, REG_NONE, 1, -128, 4);
    assert_mem(decode(B(0x8b, 0x83, 0, 0, 0, 0x80)), RBX, REG_NONE, 1, INT32_MIN, 4);
    assert_mem(decode(B(0x48, 0x8b, 0x04, 0x24)), RSP, REG_NONE, 1, 0, 8);
    assert_mem(decode(B(0x4a, 0x8b, 0x04, 0x24)), RSP, R12, 1, 0, 8);
    assert_mem(decode(B(0x49, 0x8b, 0x44, 0xcd, 0x10)), R13, RCX, 8, 16, 8);
    assert_mem(decode(B(0x8b, 0x05, 1, 0, 0, 0)), BASE_RIP, REG_NONE, 1, 1, 4);
    assert_mem(decode(B(0x41, 0x8b, 0x05, 1, 0, 0, 0)), BASE_RIP, REG_NONE, 1, 1, 4);
    assert_mem(decode(B(0x8b, 0x04, 0x25, 1, 0, 0, 0)), REG_NONE, REG_NONE, 1, 1, 4);
    assert_mem(decode(B(0x8b, 0x04, 0x8d, 1, 0, 0, 0)), REG_NONE, RCX, 4, 1, 4);
    struct insn in = decode(B(0x67, 0x8b, 0x44, 0x0d, 0x7f));
    assert_mem(in, RBP, RCX, 1, 127, 4);
    cr_assert_eq(in.addr_size, 4);
    cr_assert_eq(in.gpr_read, BIT(RBP) | BIT(RCX));
    cr_assert_eq(in.gpr_written, BIT(RAX));
    in = decode(B(0x48, 0xa1, 1, 2, 3, 4, 5, 6, 7, 0x88));
    cr_assert_eq(in.op, OP_MOV_MOFFS);
    assert_mem(in, REG_NONE, REG_NONE, 1, (int64_t)0x8807060504030201, 8);
    cr_assert_eq(in.flags & (INSN_MEM | INSN_MEM_READ | INSN_MEM_WRITE), INSN_MEM | INSN_MEM_READ);
    cr_assert_eq(decode(B(0x67, 0xa1, 1, 2, 3, 0x84)).mem.disp, 0x84030201);
}

Test(decode, segments_64)
{
    cr_assert_eq(decode(B(0x8b, 0x03)).mem.seg, SEG_DS);
    cr_assert_eq(decode(B(0x8b, 0x04, 0x24)).mem.seg, SEG_SS);
    cr_assert_eq(decode(B(0x8b, 0x45, 0)).mem.seg, SEG_SS);
    cr_assert_eq(decode(B(0x41, 0x8b, 0x45, 0)).mem.seg, SEG_DS); /* r13 */
    cr_assert_eq(decode(B(0x64, 0x8b, 0x03)).mem.seg, SEG_FS);
    cr_assert_eq(decode(B(0x65, 0x8b, 0x03)).mem.seg, SEG_GS);
    cr_assert_eq(decode(B(0x64, 0x65, 0x8b, 0x03)).mem.seg, SEG_GS);
    cr_assert_eq(decode(B(0x65, 0x2e, 0x8b, 0x03)).mem.seg, SEG_GS); /* null prefix */
    cr_assert_eq(decode(B(0x3e, 0x8b, 0x04, 0x24)).mem.seg, SEG_SS);
    cr_assert_eq(decode(B(0x65, 0xa4)).mem.seg, SEG_GS); /* movs */
}

Test(decode, addressing_16_and_32)
{
    struct insn in = decode_in(MODE_16, B(0x8b, 0x42, 0xfe)); /* mov ax, [bp+si-2] */
    assert_mem(in, RBP, RSI, 1, -2, 2);
    cr_assert_eq(in.mem.seg, SEG_SS);
    cr_assert_eq(in.addr_size, 2);
    cr_assert_eq(in.op_size, 2);
    assert_mem(decode_in(MODE_16, B(0x8b, 0x06, 0x34, 0x12)), REG_NONE, REG_NONE, 1, 0x1234, 2);
    assert_mem(decode_in(MODE_16, B(0x66, 0x67, 0x8b, 0x04, 0x8b)), RBX, RCX, 4, 0, 4);
    assert_mem(decode_in(MODE_32, B(0x8b, 0x05, 1, 0, 0, 0)), REG_NONE, REG_NONE, 1, 1, 4);
    cr_assert_eq(decode_in(MODE_32, B(0x26, 0x8b, 0x03)).mem.seg, SEG_ES);
    cr_assert_eq(decode_in(MODE_32, B(0x40)).gpr_written, BIT(RAX)); /* inc eax */
    cr_assert_eq(decode_in(MODE_32, B(0x60)).op, OP_PUSHA);
    cr_assert_eq(decode_in(MODE_32, B(0xc4, 0x03)).op, OP_LOAD_FAR_PTR);
    cr_assert_str_eq(decode_in(MODE_32, B(0xc5, 0xf8, 0x58, 0xc1)).mnemonic, "vaddps");
    in = decode_in(MODE_32, B(0x9a, 1, 2, 3, 4, 5, 6));
    cr_assert_eq(in.op, OP_CALL_FAR);
    cr_assert_eq(in.imm, 0x04030201);
    cr_assert_eq(in.imm2, 0x0605);
    cr_assert_eq(decode_in(MODE_16, B(0xe8, 0xfe, 0xff)).imm, -2);
    cr_assert_eq(decode_in(MODE_32, B(0x1e)).reg, SEG_DS);
}

Test(decode, address_without_access)
{
    struct insn in = decode(B(0x48, 0x8d, 0x44, 0x8b, 0x08)); /* lea rax, [rbx+rcx*4+8] */
    cr_assert_eq(in.op, OP_LEA);
    assert_mem(in, RBX, RCX, 4, 8, 8);
    cr_assert_eq(in.flags & (INSN_MEM | INSN_MEM_READ | INSN_MEM_WRITE), 0);
    cr_assert(refused(B(0x8d, 0xc0)));
    in = decode(B(0x0f, 0x1f, 0x44, 0x00, 0x00)); /* nop [rax+rax] */
    cr_assert_eq(in.op, OP_NOP);
    cr_assert_eq(in.flags & INSN_MEM, 0);
    cr_assert_eq(decode(B(0x0f, 0x18, 0x08)).op, OP_NOP);             /* prefetcht0 */
    cr_assert_eq(decode(B(0x0f, 0x0d, 0x08)).op, OP_NOP);             /* prefetchw */
    cr_assert_eq(decode(B(0xf3, 0x0f, 0x1e, 0xfa)).op, OP_NOP);       /* endbr64 */
    cr_assert_eq(decode(B(0xf3, 0x48, 0x0f, 0x1e, 0xc8)).op, OP_NOP); /* rdsspq */
    cr_assert_eq(decode(B(0x0f, 0x01, 0x38)).op, OP_INVLPG);
    cr_assert_eq(decode(B(0x0f, 0x01, 0x38)).flags & INSN_MEM, 0);
    in = decode(B(0x0f, 0xae, 0x38)); /* clflush */
    cr_assert_eq(in.op, OP_COPY);
    cr_assert_eq(in.mem.size, 1);
    cr_assert_eq(in.flags & (INSN_MEM_READ | INSN_MEM_WRITE), INSN_MEM_READ);
}

/* Memory sizes: what the CPU touches, never less. */
Test(decode, memory_sizes)
{
    static const struct {
        uint8_t bytes[10], size;
        bool write;
    } cases[] = {
        {{0x0f, 0x16, 0x03}, 8, false},                     /* movhps */
        {{0x66, 0x0f, 0x38, 0x21, 0x03}, 4, false},         /* pmovsxbd */
        {{0x66, 0x0f, 0x38, 0x22, 0x03}, 2, false},         /* pmovsxbq */
        {{0xf3, 0x0f, 0xe6, 0x03}, 8, false},               /* cvtdq2pd */
        {{0x66, 0x0f, 0x3a, 0x21, 0x03, 0}, 4, false},      /* insertps */
        {{0x66, 0x0f, 0x3a, 0x20, 0x03, 0}, 1, false},      /* pinsrb */
        {{0x66, 0x0f, 0xc4, 0x03, 0}, 2, false},            /* pinsrw */
        {{0x66, 0x48, 0x0f, 0x3a, 0x16, 0x03, 0}, 8, true}, /* pextrq */
        {{0x66, 0x0f, 0x3a, 0x15, 0x03, 0}, 2, true},       /* pextrw */
        {{0xc4, 0xe2, 0x7d, 0x18, 0x03}, 4, false},         /* vbroadcastss */
        {{0xc4, 0xe2, 0x7d, 0x1a, 0x03}, 16, false},        /* vbroadcastf128 */
        {{0xc4, 0xe3, 0x7d, 0x19, 0x03, 1}, 16, true},      /* vextractf128 */
        {{0xc5, 0xfc, 0x5a, 0x03}, 16, false},              /* vcvtps2pd ymm */
        {{0xc4, 0xe3, 0x7d, 0x1d, 0x03, 0}, 16, true},      /* vcvtps2ph ymm */
        {{0xd8, 0x03}, 4, false},                           /* fadd m32 */
        {{0xdc, 0x03}, 8, false},                           /* fadd m64 */
        {{0xdb, 0x2b}, 10, false},                          /* fld m80 */
        {{0xdf, 0x33}, 10, true},                           /* fbstp */
        {{0xd9, 0x2b}, 2, false},                           /* fldcw */
        {{0xd9, 0x33}, 28, true},                           /* fnstenv */
        {{0x66, 0xd9, 0x33}, 14, true},                     /* fnstenv, 16 bits */
        {{0xdd, 0x33}, 108, true},                          /* fnsave */
        {{0x66, 0xdd, 0x23}, 94, false},                    /* frstor, 16 bits */
        {{0x0f, 0xc7, 0x0b}, 8, true},                      /* cmpxchg8b */
        {{0x48, 0x0f, 0xc7, 0x0b}, 16, true},               /* cmpxchg16b */
        {{0x0f, 0x01, 0x03}, 10, true},                     /* sgdt */
        {{0x0f, 0x01, 0x13}, 10, false},                    /* lgdt */
        {{0xff, 0x2b}, 6, false},                           /* jmp far m16:32 */
        {{0x48, 0xff, 0x2b}, 10, false},                    /* jmp far m16:64 */
        {{0x48, 0x0f, 0xb2, 0x03}, 10, false},              /* lss */
        {{0x48, 0x0f, 0xba, 0x23, 0x45}, 8, false},         /* bt qword, 0x45: no address change */
        {{0x48, 0x63, 0x03}, 4, false},                     /* movsxd */
        {{0x0f, 0xb6, 0x03}, 1, false},                     /* movzx */
        {{0x8c, 0x03}, 2, true},                            /* mov m16, sreg */
        {{0x0f, 0xc3, 0x03}, 4, true},                      /* movnti */
        {{0x0f, 0x38, 0xf9, 0x03}, 4, true},                /* movdiri */
        {{0x0f, 0x62, 0x03}, 4, false},                     /* punpckldq mm, m32 */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct insn in = decode_in(MODE_64, cases[i].bytes, sizeof(cases[i].bytes));
        cr_assert_neq(in.op, OP_INVALID, "case %zu", i);
        cr_assert_eq(in.mem.size, cases[i].size, "%s: %u", in.mnemonic, in.mem.size);
        cr_assert_eq(!!(in.flags & INSN_MEM_WRITE), cases[i].write, "%s", in.mnemonic);
        cr_assert(in.flags & INSN_MEM);
    }
}

Test(decode, alignment)
{
    cr_assert(decode(B(0x0f, 0x28, 0x03)).flags & INSN_MEM_ALIGNED);           /* movaps */
    cr_assert(decode(B(0x0f, 0x58, 0x03)).flags & INSN_MEM_ALIGNED);           /* addps */
    cr_assert_not(decode(B(0x0f, 0x10, 0x03)).flags & INSN_MEM_ALIGNED);       /* movups */
    cr_assert_not(decode(B(0xf3, 0x0f, 0x58, 0x03)).flags & INSN_MEM_ALIGNED); /* addss */
    cr_assert_not(decode(B(0xf2, 0x0f, 0xf0, 0x03)).flags & INSN_MEM_ALIGNED); /* lddqu */
    cr_assert_not(decode(B(0x66, 0x0f, 0x3a, 0x63, 0x03, 0)).flags & INSN_MEM_ALIGNED);
    cr_assert(decode(B(0xc5, 0xfc, 0x28, 0x03)).flags & INSN_MEM_ALIGNED);     /* vmovaps */
    cr_assert_not(decode(B(0xc5, 0xfc, 0x58, 0x03)).flags & INSN_MEM_ALIGNED); /* vaddps */
    cr_assert(decode(B(0x62, 0xf1, 0x7d, 0x48, 0x6f, 0x03)).flags & INSN_MEM_ALIGNED);
    cr_assert(decode(B(0x0f, 0xae, 0x03)).flags & INSN_MEM_ALIGNED);       /* fxsave */
    cr_assert(decode(B(0x48, 0x0f, 0xc7, 0x0b)).flags & INSN_MEM_ALIGNED); /* cmpxchg16b */
    cr_assert_not(decode(B(0x0f, 0xc7, 0x0b)).flags & INSN_MEM_ALIGNED);
}

/* -- Registers and flags ------------------------------------------------------------------------
 */

Test(decode, partial_registers)
{
    struct insn in = decode(B(0x88, 0xe0)); /* mov al, ah */
    cr_assert(in.flags & INSN_HIGH8);
    cr_assert_eq(in.gpr_read, BIT(RAX));
    cr_assert_eq(in.gpr_written, BIT(RAX));
    in = decode(B(0x40, 0x88, 0xe0)); /* mov al, spl */
    cr_assert_not(in.flags & INSN_HIGH8);
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RSP));
    in = decode(B(0xb7, 0x01)); /* mov bh, 1 */
    cr_assert(in.flags & INSN_HIGH8);
    cr_assert_eq(in.gpr_written, BIT(RBX));
    cr_assert_eq(in.gpr_read, BIT(RBX));
    in = decode(B(0x89, 0xd8)); /* mov eax, ebx: zero-extends */
    cr_assert_eq(in.gpr_read, BIT(RBX));
    cr_assert_eq(in.gpr_written, BIT(RAX));
    in = decode(B(0x66, 0x89, 0xd8));
    cr_assert_eq(in.gpr_read, BIT(RBX) | BIT(RAX));
    in = decode(B(0x0f, 0xb6, 0xc7)); /* movzx eax, bh */
    cr_assert(in.flags & INSN_HIGH8);
    cr_assert_eq(in.gpr_read, BIT(RBX));
    cr_assert_eq(in.op_size, 4);
    in = decode(B(0x0f, 0x44, 0xc1)); /* cmove eax, ecx: writes even if false */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RCX));
    cr_assert_eq(in.gpr_written, BIT(RAX));
    cr_assert_eq(in.flags_read, FL_ZF);
    in = decode(B(0x41, 0x0f, 0x95, 0xc2)); /* setne r10b */
    cr_assert_eq(in.gpr_read, BIT(R10));
    cr_assert_eq(in.gpr_written, BIT(R10));
}

Test(decode, implicit_registers)
{
    struct insn in = decode(B(0xf7, 0xe3)); /* mul ebx */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RBX));
    cr_assert_eq(in.gpr_written, BIT(RAX) | BIT(RDX));
    in = decode(B(0x66, 0xf7, 0xe3)); /* mul bx: dx keeps its upper part */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RBX) | BIT(RDX));
    in = decode(B(0xf7, 0xf3)); /* div ebx */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RDX) | BIT(RBX));
    in = decode(B(0x0f, 0xa2)); /* cpuid */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RCX));
    cr_assert_eq(in.gpr_written, BIT(RAX) | BIT(RBX) | BIT(RCX) | BIT(RDX));
    in = decode(B(0xf3, 0x48, 0xa5)); /* rep movsq */
    cr_assert_eq(in.gpr_read, BIT(RSI) | BIT(RDI) | BIT(RCX));
    cr_assert_eq(in.gpr_written, BIT(RSI) | BIT(RDI) | BIT(RCX));
    cr_assert_eq(in.flags_read, FL_DF);
    cr_assert(in.flags & INSN_REP);
    in = decode(B(0xf2, 0xae)); /* repne scasb */
    cr_assert(in.flags & INSN_REPNE);
    cr_assert(in.flags & INSN_FLAGS_COND);
    in = decode(B(0x66, 0x0f, 0x3a, 0x61, 0xc1, 0x0c)); /* pcmpestri */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RDX));
    cr_assert_eq(in.gpr_written, BIT(RCX));
    cr_assert_eq(in.flags_written, FL_ARITH);
    in = decode(B(0xc4, 0xe2, 0xfb, 0xf6, 0xc3)); /* mulx rax, rax, rbx */
    cr_assert_eq(in.gpr_read, BIT(RDX) | BIT(RBX));
    cr_assert_eq(in.gpr_written, BIT(RAX));
    cr_assert_eq(in.flags_written, 0);
    in = decode(B(0xd3, 0xe0)); /* shl eax, cl */
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RCX));
    cr_assert(in.flags & INSN_FLAGS_COND);
    in = decode(B(0x0f, 0x05)); /* syscall */
    cr_assert_eq(in.gpr_written, BIT(RCX) | BIT(R11));
    in = decode(B(0xdf, 0xe0)); /* fnstsw ax */
    cr_assert_eq(in.gpr_written, BIT(RAX));
    cr_assert_eq(in.fpu, FPU_X87);
    in = decode(B(0x0f, 0x31)); /* rdtsc */
    cr_assert_eq(in.gpr_written, BIT(RAX) | BIT(RDX));
    cr_assert_eq(in.gpr_read, 0);
    in = decode(B(0xe2, 0xfe)); /* loop */
    cr_assert_eq(in.gpr_written, BIT(RCX));
    in = decode(B(0x0f, 0xae, 0x23)); /* xsave */
    cr_assert_eq(in.op, OP_XSAVE);
    cr_assert_eq(in.gpr_read, BIT(RAX) | BIT(RDX) | BIT(RBX));
    cr_assert_eq(in.mem.size, 0);
}

Test(decode, vector_instructions_with_general_registers)
{
    struct insn in = decode(B(0x66, 0x4d, 0x0f, 0x6e, 0xd2)); /* movq xmm10, r10 */
    cr_assert_eq(in.flags & (INSN_REG_GPR | INSN_RM_GPR), INSN_RM_GPR);
    cr_assert_eq(in.gpr_read, BIT(R10));
    in = decode(B(0x66, 0x44, 0x0f, 0xd7, 0xd9)); /* pmovmskb r11d, xmm1 */
    cr_assert_eq(in.flags & (INSN_REG_GPR | INSN_RM_GPR), INSN_REG_GPR);
    cr_assert_eq(in.gpr_written, BIT(R11));
    cr_assert_eq(in.gpr_read, 0);
    in = decode(B(0xf2, 0x4d, 0x0f, 0x2c, 0xda)); /* cvttsd2si r11, xmm10 */
    cr_assert_eq(in.gpr_written, BIT(R11));
    in = decode(B(0xc4, 0xc1, 0xfb, 0x92, 0xcb)); /* kmovq k1, r11 */
    cr_assert_eq(in.gpr_read, BIT(R11));
    cr_assert_eq(in.fpu, FPU_AVX512);
    in = decode(B(0x62, 0xd2, 0x7d, 0x48, 0x7c, 0xc2)); /* vpbroadcastd zmm0, r10d */
    cr_assert_eq(in.gpr_read, BIT(R10));
    cr_assert(in.flags & INSN_RM_GPR);
    in = decode(B(0xf2, 0x4d, 0x0f, 0x38, 0xf1, 0xda)); /* crc32 r11, r10 */
    cr_assert_eq(in.gpr_read, BIT(R10) | BIT(R11));
    cr_assert_eq(in.gpr_written, BIT(R11));
    in = decode(B(0xc4, 0x42, 0xa8, 0xf2, 0xdb)); /* andn r11, r10, r11 */
    cr_assert(in.flags & INSN_VVVV_GPR);
    cr_assert_eq(in.vvvv, R10);
    cr_assert_eq(in.gpr_read, BIT(R10) | BIT(R11));
    cr_assert_eq(in.flags_written, FL_ARITH);
    in = decode(B(0xc4, 0xc2, 0xa8, 0xf3, 0xcb)); /* blsr r10, r11 */
    cr_assert_eq(in.gpr_written, BIT(R10));
    cr_assert_eq(in.gpr_read, BIT(R11));
}

Test(decode, flags)
{
    cr_assert_eq(decode(B(0x11, 0xc8)).flags_read, FL_CF); /* adc */
    cr_assert_eq(decode(B(0xff, 0xc0)).flags_written, FL_ARITH & ~FL_CF);
    cr_assert_eq(decode(B(0xc1, 0xc0, 3)).flags_written, FL_CF | FL_OF); /* rol */
    /* OF, undefined for other counts than 1, keeps its value on some processors. */
    cr_assert(decode(B(0xc1, 0xc0, 3)).flags & INSN_FLAGS_COND);
    cr_assert_not(decode(B(0xd1, 0xc0)).flags & INSN_FLAGS_COND);
    cr_assert_not(decode(B(0xc1, 0xe0, 3)).flags & INSN_FLAGS_COND); /* shl */
    cr_assert(decode(B(0xc1, 0xe0, 0x20)).flags & INSN_FLAGS_COND); /* shl eax, 32 */
    cr_assert_not(decode(B(0x48, 0xc1, 0xe0, 0x20)).flags & INSN_FLAGS_COND);
    cr_assert(decode(B(0xc0, 0xd0, 9)).flags & INSN_FLAGS_COND);                /* rcl al, 9 */
    cr_assert_eq(decode(B(0xd1, 0xd0)).flags_read, FL_CF);                      /* rcl */
    cr_assert_eq(decode(B(0xf7, 0xd0)).flags_written, 0);                       /* not */
    cr_assert_eq(decode(B(0x0f, 0xa3, 0xc8)).flags_written, FL_ARITH & ~FL_ZF); /* bt */
    cr_assert_eq(decode(B(0x0f, 0xc7, 0x0b)).flags_written, FL_ZF);
    cr_assert_eq(decode(B(0x66, 0x0f, 0x38, 0xf6, 0xc1)).flags_written, FL_CF); /* adcx */
    cr_assert_eq(decode(B(0xf3, 0x0f, 0x38, 0xf6, 0xc1)).flags_read, FL_OF);    /* adox */
    cr_assert_eq(decode(B(0x66, 0x0f, 0x38, 0x17, 0xc1)).flags_written, FL_ARITH);
    cr_assert_eq(decode(B(0x0f, 0x2e, 0xc1)).flags_written, FL_ARITH);       /* ucomiss */
    cr_assert_eq(decode(B(0xc5, 0xf8, 0x98, 0xc1)).flags_written, FL_ARITH); /* kortestw */
    cr_assert_eq(decode(B(0xda, 0xd1)).flags_read, FL_CF | FL_ZF);           /* fcmovbe */
    cr_assert_eq(decode(B(0xc4, 0xe2, 0xf9, 0xf7, 0xc1)).flags_written, 0);  /* shlx */
    cr_assert_eq(decode(B(0x9c)).flags_read, FL_ARITH | FL_DF);
    cr_assert_eq(decode(B(0xfd)).flags_written, FL_DF);
    cr_assert_eq(decode(B(0x9f)).flags_read, FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF);
    cr_assert_eq(decode(B(0x7f, 0)).flags_read, FL_ZF | FL_SF | FL_OF); /* jg */
}

/* -- VEX and EVEX -------------------------------------------------------------------------------
 */

Test(decode, vex_constraints)
{
    cr_assert(refused(B(0x66, 0xc5, 0xf8, 0x58, 0xc1)));
    cr_assert(refused(B(0x48, 0xc5, 0xf8, 0x58, 0xc1)));
    cr_assert(refused(B(0xc5, 0xf0, 0x28, 0xc1)), "vvvv of vmovaps");
    cr_assert(refused(B(0xc4, 0xe0, 0x78, 0x58, 0xc1)), "map 0");
    cr_assert(refused(B(0xc4, 0xe2, 0x79, 0x16, 0xc1)), "vpermps needs L = 1");
    cr_assert(refused(B(0xc4, 0xe2, 0xfd, 0x18, 0xc1)), "vbroadcastss needs W = 0");
    cr_assert(refused(B(0xc4, 0xe2, 0x6d, 0x90, 0x0c, 0x08)), "gather with index = destination");
    struct insn in = decode(B(0xc4, 0xe2, 0x6d, 0x90, 0x0c, 0x98)); /* vpgatherdd */
    cr_assert_eq(in.op, OP_GATHER);
    cr_assert_eq(in.flags & (INSN_VSIB | INSN_MASKED), INSN_VSIB | INSN_MASKED);
    assert_mem(in, RAX, 3, 4, 0, 4);
    cr_assert_eq(in.gpr_read, BIT(RAX));
    in = decode(B(0xc4, 0xe2, 0x7d, 0x2c, 0x03)); /* vmaskmovps */
    cr_assert(in.flags & INSN_MASKED);
    cr_assert_eq(in.vec_len, 32);
    cr_assert_eq(in.mem.size, 32);
}

Test(decode, evex)
{
    /* vaddps zmm1, zmm2, [rbx+64]: disp8 is scaled */
    struct insn in = decode(B(0x62, 0xf1, 0x6c, 0x48, 0x58, 0x4b, 0x01));
    assert_mem(in, RBX, REG_NONE, 1, 64, 64);
    cr_assert_eq(in.vec_len, 64);
    cr_assert_eq(in.fpu, FPU_AVX512);
    cr_assert_eq(in.disp_size, 1);
    /* the same with a broadcast */
    assert_mem(decode(B(0x62, 0xf1, 0x6c, 0x58, 0x58, 0x4b, 0x01)), RBX, REG_NONE, 1, 4, 4);
    /* disp32 is not scaled */
    assert_mem(decode(B(0x62, 0xf1, 0x6c, 0x48, 0x58, 0x8b, 1, 0, 0, 0)), RBX, REG_NONE, 1, 1, 64);
    /* vpexpandd zmm1{k1}, [rbx+4]: scaled by the element, masked */
    in = decode(B(0x62, 0xf2, 0x7d, 0x49, 0x89, 0x4b, 0x01));
    assert_mem(in, RBX, REG_NONE, 1, 4, 64);
    cr_assert(in.flags & INSN_MASKED);
    /* vmovdqu8 [rbx]{k3}, xmm17 */
    in = decode(B(0x62, 0xe1, 0x7f, 0x0b, 0x7f, 0x0b));
    cr_assert_eq(in.reg, 17);
    cr_assert_eq(in.evex_mask, 3);
    cr_assert(in.flags & INSN_MASKED);
    cr_assert(refused(B(0x62, 0xe1, 0x7f, 0x8b, 0x7f, 0x0b)), "zeroing store");
    cr_assert(refused(B(0x62, 0xf1, 0x6c, 0xc8, 0x58, 0xc1)), "zeroing with k0");
    cr_assert(refused(B(0x62, 0xf1, 0x6c, 0x68, 0x58, 0xc1)), "L'L = 3");
    cr_assert(refused(B(0x62, 0xf1, 0x6c, 0x58, 0x54, 0xc1)), "rounding of vandps");
    in = decode(B(0x62, 0xf1, 0x6c, 0x78, 0x58, 0xc1)); /* vaddps zmm0, zmm2, zmm1, {rz-sae} */
    cr_assert_eq(in.vec_len, 64);
    cr_assert(refused(B(0x62, 0xf9, 0x6c, 0x48, 0x58, 0xc1)), "reserved bit");
    cr_assert(refused(B(0x62, 0xf1, 0x68, 0x48, 0x58, 0xc1)), "fixed bit");
    /* vpgatherdd zmm1{k1}, [rax+zmm18*4] */
    in = decode(B(0x62, 0xf2, 0x7d, 0x41, 0x90, 0x0c, 0x90));
    cr_assert_eq(in.op, OP_GATHER);
    assert_mem(in, RAX, 18, 4, 0, 4);
    cr_assert(refused(B(0x62, 0xf2, 0x7d, 0x40, 0x90, 0x0c, 0x90)), "gather without mask");
    cr_assert_eq(decode(B(0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x0c, 0x90)).op, OP_SCATTER);
    /* vaddph zmm1, zmm2, [rbx]{1to32}: map 5 */
    in = decode(B(0x62, 0xf5, 0x6c, 0x58, 0x58, 0x4b, 0x01));
    cr_assert_eq(in.map, MAP_5);
    assert_mem(in, RBX, REG_NONE, 1, 2, 2);
}

/* -- Classes --------------------------------------------------------------------------------------
 */

Test(decode, never_exposed)
{
    cr_assert(refused(B(0xc7, 0xf8, 0, 0, 0, 0)));       /* xbegin */
    cr_assert(refused(B(0xc6, 0xf8, 0)));                /* xabort */
    cr_assert(refused(B(0x0f, 0x01, 0xd5)));             /* xend */
    cr_assert(refused(B(0x0f, 0xc7, 0x2b)));             /* xsaves */
    cr_assert(refused(B(0x0f, 0xc7, 0x1b)));             /* xrstors */
    cr_assert(refused(B(0x66, 0x0f, 0xae, 0xf0)));       /* tpause */
    cr_assert(refused(B(0xf3, 0x0f, 0xae, 0x23)));       /* ptwrite */
    cr_assert(refused(B(0x66, 0x0f, 0x38, 0xf8, 0x03))); /* movdir64b */
    cr_assert(refused(B(0xf2, 0x0f, 0x38, 0xf8, 0x03))); /* enqcmd */
    cr_assert(refused(B(0x0f, 0x01, 0xee)));             /* rdpkru */
    cr_assert(refused(B(0x0f, 0x01, 0xcf)));             /* encls */
    cr_assert(refused(B(0x0f, 0x38, 0xf6, 0x03)));       /* wrss */
    cr_assert(refused(B(0xc4, 0xe2, 0x78, 0x49, 0xc0))); /* tilerelease */
    cr_assert(refused(B(0x8f, 0xe9, 0x78, 0x80, 0xc0))); /* XOP */
    cr_assert(refused(B(0x0f, 0x0f, 0xc0, 0x9e)));       /* 3DNow! */
    cr_assert_eq(decode(B(0x0f, 0x01, 0xc1)).op, OP_VMCALL);
    cr_assert_eq(decode(B(0x0f, 0x01, 0xd8)).op, OP_VMCALL); /* vmrun */
    cr_assert_eq(decode(B(0x0f, 0x78, 0xc0)).op, OP_VMCALL); /* vmread */
}

Test(decode, system)
{
    struct insn in = decode(B(0x0f, 0x22, 0x18)); /* mov cr3, rax whatever mod says */
    cr_assert_eq(in.op, OP_MOV_TO_CR);
    cr_assert_eq(in.reg, 3);
    cr_assert_eq(in.rm, RAX);
    cr_assert_eq(in.op_size, 8);
    cr_assert_eq(in.flags & (INSN_PRIVILEGED | INSN_MEM | INSN_RM_GPR),
                 INSN_PRIVILEGED | INSN_RM_GPR);
    cr_assert_eq(decode(B(0x44, 0x0f, 0x20, 0xc0)).reg, 8); /* mov rax, cr8 */
    cr_assert(refused(B(0x0f, 0x20, 0xc8)), "cr1");
    cr_assert(refused(B(0x44, 0x0f, 0x20, 0xd8)), "cr11");
    cr_assert_eq(decode(B(0x0f, 0x23, 0xf8)).reg, 7); /* mov dr7, rax */
    cr_assert(refused(B(0x44, 0x0f, 0x23, 0xf8)));
    cr_assert_eq(decode(B(0x8c, 0xd8)).op, OP_MOV_FROM_SEG);
    cr_assert_eq(decode(B(0x8e, 0xd8)).op, OP_MOV_TO_SEG);
    cr_assert_eq(decode(B(0x8e, 0xd8)).reg, SEG_DS);
    cr_assert(refused(B(0x8e, 0xc8)), "mov cs");
    cr_assert_eq(decode(B(0x0f, 0x01, 0xf8)).op, OP_SWAPGS);
    cr_assert_eq(decode(B(0x0f, 0x01, 0xca)).op, OP_CLAC);
    cr_assert_eq(decode(B(0x0f, 0x01, 0xcb)).op, OP_STAC);
    cr_assert_eq(decode(B(0x0f, 0x01, 0xd0)).op, OP_XGETBV);
    cr_assert_eq(decode(B(0x0f, 0x01, 0xf9)).op, OP_RDTSCP);
    cr_assert_eq(decode(B(0xf3, 0x48, 0x0f, 0xae, 0xd0)).op, OP_WRFSBASE);
    cr_assert_eq(decode(B(0x66, 0x0f, 0x38, 0x82, 0x03)).op, OP_INVPCID);
    cr_assert_eq(decode(B(0x48, 0xcf)).op_size, 8);
    cr_assert_eq(decode(B(0x0f, 0xa0)).reg, SEG_FS);
    cr_assert_eq(decode(B(0xc8, 0x10, 0x00, 0x01)).imm2, 1); /* enter 16, 1 */
    cr_assert_eq(decode(B(0xff, 0x30)).stack_operand, STK_MEM);
    cr_assert_eq(decode(B(0x68, 1, 0, 0, 0x80)).imm, (int32_t)0x80000001);
    cr_assert_eq(decode(B(0x6a, 0x80)).stack_operand, STK_IMM);
    cr_assert_eq(decode(B(0x41, 0x5a)).stack_operand, STK_REG);
    cr_assert_eq(decode(B(0x90)).op, OP_NOP);
    cr_assert_eq(decode(B(0xf3, 0x90)).op, OP_NOP);
    cr_assert_eq(decode(B(0x41, 0x90)).op, OP_COPY); /* xchg r8d, eax */
    cr_assert_eq(decode(B(0x9b)).fpu, FPU_WAIT);
    cr_assert_eq(decode(B(0x0f, 0xae, 0xf8)).op, OP_COPY); /* sfence */
    cr_assert_eq(decode(B(0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8)).imm, 0x0807060504030201);
}

Test(decode, op_names)
{
    for (int op = 0; op < OP_COUNT; op++)
        cr_assert_str_neq(insn_op_name((enum insn_op)op), "?", "op %d has no name", op);
    cr_assert_str_eq(insn_op_name(OP_JCC), "JCC");
    cr_assert_str_eq(insn_op_name(OP_COUNT), "?");
}

/* -- The tables
 * ------------------------------------------------------------------------------------ */

/* Builds an instruction for a selection key. Returns its mode. */
static enum insn_mode encode(enum insn_enc enc, unsigned map, unsigned opcode, uint32_t key,
                             bool modrm, uint8_t *code)
{
    static const uint8_t pp_bytes[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned pp = key >> KEY_PP & 3, w = key >> KEY_W & 1, l = key >> KEY_L & 3,
             mod = key >> KEY_MOD3 & 1 ? 3 : 0, b = key >> KEY_REXB & 1;
    uint8_t *p = code;

    memset(code, 0, 15);
    if (enc == ENC_LEGACY) {
        if (pp)
            *p++ = pp_bytes[pp];
        if (w || b)
            *p++ = (uint8_t)(0x40 | w << 3 | b);
        if (map)
            *p++ = 0x0f;
        if (map > 1)
            *p++ = map == MAP_0F38 ? 0x38 : 0x3a;
    } else if (enc == ENC_VEX) {
        *p++ = 0xc4;
        *p++ = (uint8_t)(0xe0 | map);
        *p++ = (uint8_t)(w << 7 | 0x78 | l << 2 | pp);
    } else {
        *p++ = 0x62;
        *p++ = (uint8_t)(0xf0 | map);
        *p++ = (uint8_t)(w << 7 | 0x7c | pp);
        *p++ = (uint8_t)(l << 5 | 8);
    }
    *p++ = (uint8_t)opcode;
    if (modrm)
        *p++ = (uint8_t)(mod << 6 | (key >> KEY_REG & 7) << 3 | (key >> KEY_RM & 7));
    return key >> KEY_M64 & 1 || enc != ENC_LEGACY ? MODE_64 : MODE_32;
}

/* Every row can be selected: none is hidden behind an earlier one or a break in its list. */
Test(decode, every_row_is_reachable)
{
    static bool reached[4096];
    uint64_t x = 88172645463325252ULL;
    unsigned rows = 0;

    for (int enc = ENC_LEGACY; enc <= ENC_EVEX; enc++) {
        const struct opcode_table *t = &opcode_tables[enc];
        cr_assert_lt(t->row_count, 4096u);
        memset(reached, 0, sizeof(reached));
        for (unsigned map = 0; map < DECODE_MAPS; map++) {
            for (unsigned opcode = 0; opcode < 256; opcode++) {
                unsigned index = t->index[map][opcode];
                bool modrm = index & INDEX_MODRM;
                if (!index)
                    continue;
                cr_assert(t->rows[index & INDEX_ROW].attr & A_HEAD);
                for (unsigned r = index & INDEX_ROW;; r++) {
                    const struct opcode_row *row = &t->rows[r];
                    if (!(row->attr & A_VALID) ||
                        ((row->attr & A_HEAD) && r != (index & INDEX_ROW)))
                        break;
                    for (int tries = 0; tries < 4000 && !reached[r]; tries++) {
                        struct insn in;
                        uint8_t code[15];
                        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                        uint32_t mask = (uint32_t)(row->match >> 32);
                        uint32_t key = ((uint32_t)row->match & mask) | ((uint32_t)x & ~mask);
                        if (row->attr & A_VSIB) /* needs a SIB byte, and a mask below */
                            key = (key & ~(7u << KEY_RM | 7u << KEY_REG)) | 4u << KEY_RM |
                                  2u << KEY_REG;
                        enum insn_mode mode =
                            encode((enum insn_enc)enc, map, opcode, key, modrm, code);
                        if (enc == ENC_EVEX && (row->attr & A_VSIB))
                            code[3] |= 1;
                        if ((row->attr & A_DISTINCT) || (row->attr & A_VSIB))
                            code[2] &= enc == ENC_EVEX && (row->attr & A_VSIB) ? 0xff : 0xd7;
                        insn_decode(&in, code, 15, mode);
                        reached[r] = in.op != OP_INVALID && in.mnemonic == row->mnemonic &&
                                     in.op == row->effects >> E_OP_SHIFT;
                    }
                }
            }
        }
        for (unsigned r = 0; r < t->row_count; r++) {
            if (!(t->rows[r].attr & A_VALID))
                continue;
            rows++;
            cr_assert(reached[r], "line %u of table %d (%s) is never used", r, enc,
                      t->rows[r].mnemonic);
        }
    }
    cr_assert_gt(rows, 2000u);
}
