/* See verify_decode.h. */
#include "translator/verify_decode.h"

#include "translator/emit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/vcpu.h"

/* Not allowed in any form: what talks to the host kernel or the hypervisor, touches segments or the
 * host's stack, has memory operands that the encoding does not show, or reveals the host. */
static bool forbidden(unsigned id)
{
    static const bool list[X86_INS_ENDING] = {
        [X86_INS_SYSCALL] = true, [X86_INS_SYSENTER] = true, [X86_INS_SYSEXIT] = true,
        [X86_INS_SYSRET] = true, [X86_INS_INT] = true, [X86_INS_INT1] = true,
        [X86_INS_INT3] = true, [X86_INS_INTO] = true, [X86_INS_IRET] = true,
        [X86_INS_IRETD] = true, [X86_INS_IRETQ] = true, [X86_INS_CALL] = true,
        [X86_INS_LCALL] = true, [X86_INS_LJMP] = true, [X86_INS_RET] = true, [X86_INS_RETF] = true,
        [X86_INS_RETFQ] = true, [X86_INS_PUSHAW] = true,
        [X86_INS_PUSHAL] = true, [X86_INS_PUSHF] = true, [X86_INS_PUSHFD] = true,
        [X86_INS_POPAW] = true, [X86_INS_POPAL] = true, [X86_INS_POPF] = true,
        [X86_INS_POPFD] = true, [X86_INS_POPFQ] = true, [X86_INS_ENTER] = true,
        [X86_INS_LEAVE] = true, [X86_INS_LDS] = true, [X86_INS_LES] = true, [X86_INS_LFS] = true,
        [X86_INS_LGS] = true, [X86_INS_LSS] = true, [X86_INS_RDFSBASE] = true,
        [X86_INS_RDGSBASE] = true, [X86_INS_WRFSBASE] = true, [X86_INS_WRGSBASE] = true,
        [X86_INS_SWAPGS] = true, [X86_INS_SGDT] = true, [X86_INS_SIDT] = true,
        [X86_INS_SLDT] = true, [X86_INS_SMSW] = true, [X86_INS_STR] = true, [X86_INS_LAR] = true,
        [X86_INS_LSL] = true, [X86_INS_VERR] = true, [X86_INS_VERW] = true, [X86_INS_LGDT] = true,
        [X86_INS_LIDT] = true, [X86_INS_LLDT] = true, [X86_INS_LMSW] = true, [X86_INS_LTR] = true,
        [X86_INS_CLI] = true, [X86_INS_STI] = true, [X86_INS_HLT] = true, [X86_INS_IN] = true,
        [X86_INS_OUT] = true, [X86_INS_INSB] = true, [X86_INS_INSW] = true, [X86_INS_INSD] = true,
        [X86_INS_OUTSB] = true, [X86_INS_OUTSW] = true, [X86_INS_OUTSD] = true,
        [X86_INS_INVD] = true, [X86_INS_WBINVD] = true, [X86_INS_INVLPG] = true,
        [X86_INS_INVPCID] = true, [X86_INS_CLTS] = true, [X86_INS_RDMSR] = true,
        [X86_INS_WRMSR] = true, [X86_INS_RDPMC] = true, [X86_INS_CPUID] = true,
        [X86_INS_XGETBV] = true, [X86_INS_XSETBV] = true, [X86_INS_MONITOR] = true,
        [X86_INS_MWAIT] = true, [X86_INS_VMCALL] = true, [X86_INS_VMLAUNCH] = true,
        [X86_INS_VMRESUME] = true, [X86_INS_VMXOFF] = true, [X86_INS_VMXON] = true,
        [X86_INS_VMCLEAR] = true, [X86_INS_VMPTRLD] = true, [X86_INS_VMPTRST] = true,
        [X86_INS_VMREAD] = true, [X86_INS_VMWRITE] = true, [X86_INS_VMFUNC] = true,
        [X86_INS_INVEPT] = true, [X86_INS_INVVPID] = true, [X86_INS_VMRUN] = true,
        [X86_INS_VMMCALL] = true, [X86_INS_VMLOAD] = true, [X86_INS_VMSAVE] = true,
        [X86_INS_STGI] = true, [X86_INS_CLGI] = true, [X86_INS_SKINIT] = true,
        [X86_INS_INVLPGA] = true, [X86_INS_GETSEC] = true, [X86_INS_ENCLS] = true,
        [X86_INS_ENCLU] = true, [X86_INS_XBEGIN] = true, [X86_INS_XEND] = true,
        [X86_INS_XABORT] = true, [X86_INS_XTEST] = true, [X86_INS_XSAVES] = true,
        [X86_INS_XSAVES64] = true, [X86_INS_XRSTORS] = true, [X86_INS_XRSTORS64] = true,
        [X86_INS_XLATB] = true, [X86_INS_MOVSB] = true, [X86_INS_MOVSW] = true,
        [X86_INS_MOVSQ] = true, [X86_INS_LODSB] = true, [X86_INS_LODSW] = true,
        [X86_INS_LODSD] = true, [X86_INS_LODSQ] = true, [X86_INS_STOSB] = true,
        [X86_INS_STOSW] = true, [X86_INS_STOSD] = true, [X86_INS_STOSQ] = true,
        [X86_INS_SCASB] = true, [X86_INS_SCASW] = true, [X86_INS_SCASD] = true,
        [X86_INS_SCASQ] = true, [X86_INS_CMPSB] = true, [X86_INS_CMPSW] = true,
        [X86_INS_CMPSQ] = true, [X86_INS_BOUND] = true, [X86_INS_RSM] = true,
        [X86_INS_XCRYPTCBC] = true, [X86_INS_XCRYPTCFB] = true, [X86_INS_XCRYPTCTR] = true,
        [X86_INS_XCRYPTECB] = true, [X86_INS_XCRYPTOFB] = true, [X86_INS_XSHA1] = true,
        [X86_INS_XSHA256] = true, [X86_INS_XSTORE] = true, [X86_INS_MONTMUL] = true,
        [X86_INS_CLAC] = true, [X86_INS_STAC] = true, [X86_INS_UD2] = true, [X86_INS_UD2B] = true,
        [X86_INS_SALC] = true,
    };
    return id < X86_INS_ENDING && list[id];
}

/*
 * Opcodes with a register form for everything that does not fit elsewhere: new sensitive
 * instructions (protection keys, shadow stacks, RDPID, user interrupts, ...) appear there before
 * Capstone knows them. Only those with a known meaning pass.
 */
static bool forbidden_bytes(const uint8_t *b, unsigned len)
{
    unsigned i = 0, f3 = 0, f2 = 0, p66 = 0;
    for (; i < len && (b[i] == 0x66 || b[i] == 0xf2 || b[i] == 0xf3 || b[i] == 0xf0 ||
                       b[i] == 0x2e || b[i] == 0x36 || b[i] == 0x3e || b[i] == 0x26 ||
                       b[i] == 0x64 || b[i] == 0x65 || b[i] == 0x67);
         i++) {
        f3 |= b[i] == 0xf3;
        f2 |= b[i] == 0xf2;
        p66 |= b[i] == 0x66;
    }
    if (i < len && (b[i] & 0xf0) == 0x40)
        i++;
    if (i + 2 >= len || b[i] != 0x0f)
        return false;
    unsigned op = b[i + 1], modrm = b[i + 2], mod = modrm >> 6, reg = modrm >> 3 & 7;
    switch (op) {
    case 0x01: /* RDTSCP, SERIALIZE, XSUSLDTRK, XRESLDTRK */
        return modrm != 0xf9 && modrm != 0xe8 && !(f2 && modrm == 0xe9);
    case 0xae: /* fences in register form; CLRSSBSY and such in memory form */
        return mod == 3 ? f3 || f2 || p66 || reg < 5 : f3 || f2;
    case 0xc7: /* CMPXCHG8B/16B, RDRAND, RDSEED, XSAVEC */
        return mod == 3 ? f3 || f2 || reg < 6 : !(reg == 1 || reg == 4);
    case 0x1e: /* RDSSP hides among the NOPs: F3 0F 1E /1 */
        return mod == 3 && f3 && reg == 1;
    case 0x38: /* ENQCMD, MOVDIR64B (store where a register points), WRUSS, INVPCID and kin */
        return modrm == 0xf8 || modrm == 0xf5 || (modrm >= 0x80 && modrm <= 0x82);
    }
    return false;
}

bool verify_forbidden(const struct verify_code *v, const cs_insn *in)
{
    const cs_x86 *x = &in->detail->x86;
    if (forbidden(in->id) || forbidden_bytes(in->bytes, in->size) ||
        cs_insn_group(v->cs, in, X86_GRP_PRIVILEGE) || cs_insn_group(v->cs, in, X86_GRP_VM))
        return true;
    /* MOVSD and CMPSD are also names of SSE instructions. */
    return (in->id == X86_INS_MOVSD || in->id == X86_INS_CMPSD) && x->op_count >= 2 &&
           x->operands[0].type == X86_OP_MEM && x->operands[1].type == X86_OP_MEM;
}

bool verify_string(const cs_insn *in, struct verify_string *out)
{
    const uint8_t *b = in->bytes;
    unsigned i = 0;
    *out = (struct verify_string){.repeat = b[0] == 0xf2 || b[0] == 0xf3};
    i += out->repeat;
    out->wide = b[i] == 0x48;
    i += b[i] == 0x66 || b[i] == 0x48;
    if (in->size != i + 1)
        return false;
    switch (b[i] & 0xfe) {
    case 0xa4: /* MOVS */
        out->src = out->dst = out->writes = true;
        return true;
    case 0xa6: /* CMPS */
        out->src = out->dst = true;
        return true;
    case 0xaa: /* STOS */
        out->dst = out->writes = true;
        return true;
    case 0xac: /* LODS */
        out->src = out->accumulator = true;
        return true;
    case 0xae: /* SCAS */
        out->dst = true;
        return true;
    default:
        return false;
    }
}

/* Bytes that the instruction really accesses, where Capstone's operand size is not that. */
unsigned verify_access_size(const cs_insn *in, const cs_x86_op *op)
{
    const uint8_t *b = in->bytes;
    unsigned i = 0, p66 = 0, w = 0, evex_w = 0;
    for (; i < in->size && (b[i] == 0x66 || b[i] == 0xf2 || b[i] == 0xf3 || b[i] == 0xf0 ||
                            b[i] == 0x2e || b[i] == 0x36 || b[i] == 0x3e || b[i] == 0x26);
         i++)
        p66 |= b[i] == 0x66;
    if (i < in->size && (b[i] & 0xf0) == 0x40)
        w = b[i++] & 8;
    if (b[i] == 0x62)
        evex_w = b[i + 2] & 0x80;
    switch (in->id) {
    case X86_INS_FXSAVE:
    case X86_INS_FXSAVE64:
    case X86_INS_FXRSTOR:
    case X86_INS_FXRSTOR64:
        return 512;
    case X86_INS_FNSAVE:
    case X86_INS_FRSTOR:
        return p66 ? 94 : 108;
    case X86_INS_FNSTENV:
    case X86_INS_FLDENV:
        return p66 ? 14 : 28;
    case X86_INS_FNSTSW:
        return 2;
    case X86_INS_XSAVE:
    case X86_INS_XSAVE64:
    case X86_INS_XSAVEC:
    case X86_INS_XSAVEC64:
    case X86_INS_XSAVEOPT:
    case X86_INS_XSAVEOPT64:
    case X86_INS_XRSTOR:
    case X86_INS_XRSTOR64:
        return p66 ? 1 /* CLWB */ : BOUNCE_SIZE / 2 /* only on a copy */;
    case X86_INS_CLFLUSH:
    case X86_INS_CLFLUSHOPT:
    case X86_INS_CLWB:
        return 1;
    case X86_INS_COMISS:
    case X86_INS_VCOMISS:
    case X86_INS_UCOMISS:
    case X86_INS_VUCOMISS:
        return 4;
    case X86_INS_COMISD:
    case X86_INS_VCOMISD:
    case X86_INS_UCOMISD:
    case X86_INS_VUCOMISD:
        return 8;
    case X86_INS_VPMOVQB:
    case X86_INS_VPMOVSQB:
    case X86_INS_VPMOVUSQB:
        return op->size > 8 ? 8 : op->size;
    case X86_INS_VMOVQ:
        return 8;
    case X86_INS_VPMOVSXBQ:
    case X86_INS_VPMOVZXBQ:
        return op->size > 8 ? 8 : op->size;
    case X86_INS_PUNPCKLBW:
    case X86_INS_PUNPCKLWD:
    case X86_INS_PUNPCKLDQ:
        return op->size == 8 ? 4 : op->size; /* the MMX forms read 32 bits */
    }
    if (op->avx_bcast != X86_AVX_BCAST_INVALID)
        return evex_w ? 8 : 4;
    size_t n = strlen(in->mnemonic);
    if (b[i] == 0x62 && op->size == 16 && n > 3 && in->mnemonic[1] != 'p') { /* scalars */
        if (!strcmp(in->mnemonic + n - 2, "ss"))
            return 4;
        if (!strcmp(in->mnemonic + n - 2, "sd"))
            return 8;
    }
    /* The operand-size prefix of an integer instruction, which F2 and F3 make Capstone overlook. */
    bool one_byte = b[i] != 0x0f && b[i] != 0x62 && b[i] != 0xc4 && b[i] != 0xc5;
    bool x87 = one_byte && b[i] >= 0xd8 && b[i] <= 0xdf;
    bool integer = one_byte ? !x87
                            : b[i] == 0x0f && ((b[i + 1] & 0xf0) == 0x40 ||
                                               ((b[i + 1] & 0xe0) == 0xa0) || b[i + 1] == 0xc1);
    return integer && p66 && !w && op->size == 4 ? 2 : op->size;
}

/* Memory as first operand that is only read, whatever Capstone says. */
bool verify_reads_only(const cs_insn *in)
{
    switch (in->id) {
    case X86_INS_CMP:
    case X86_INS_TEST:
    case X86_INS_BT:
    case X86_INS_MUL:
    case X86_INS_IMUL:
    case X86_INS_DIV:
    case X86_INS_IDIV:
    case X86_INS_NOP:
    case X86_INS_JMP:
    case X86_INS_LDMXCSR:
    case X86_INS_VLDMXCSR:
    case X86_INS_FLDCW:
    case X86_INS_FLDENV:
    case X86_INS_FRSTOR:
    case X86_INS_FXRSTOR:
    case X86_INS_FXRSTOR64:
    case X86_INS_XRSTOR:
    case X86_INS_XRSTOR64:
    case X86_INS_FADD:
    case X86_INS_FMUL:
    case X86_INS_FCOM:
    case X86_INS_FCOMP:
    case X86_INS_FSUB:
    case X86_INS_FSUBR:
    case X86_INS_FDIV:
    case X86_INS_FDIVR:
    case X86_INS_FIADD:
    case X86_INS_FIMUL:
    case X86_INS_FICOM:
    case X86_INS_FICOMP:
    case X86_INS_FISUB:
    case X86_INS_FISUBR:
    case X86_INS_FIDIV:
    case X86_INS_FIDIVR:
    case X86_INS_FLD:
    case X86_INS_FILD:
    case X86_INS_FBLD:
    case X86_INS_CLFLUSH:
    case X86_INS_CLFLUSHOPT:
    case X86_INS_CLWB:
    case X86_INS_PREFETCH:
    case X86_INS_PREFETCHW:
    case X86_INS_PREFETCHNTA:
    case X86_INS_PREFETCHT0:
    case X86_INS_PREFETCHT1:
    case X86_INS_PREFETCHT2:
        return true;
    case X86_INS_XSAVEOPT:
    case X86_INS_XSAVEOPT64: /* 66 0F AE /6 is CLWB */
        for (unsigned i = 0; i < in->size && in->bytes[i] != 0x0f; i++)
            if (in->bytes[i] == 0x66)
                return true;
        return false;
    case X86_INS_MOVD:
    case X86_INS_MOVQ: /* F3 REX.W 0F 7E is a load, which Capstone 4 mistakes */
        for (unsigned i = 0; i + 1 < in->size && in->bytes[i] != 0x0f; i++)
            if (in->bytes[i] == 0xf3)
                return true;
        return false;
    }
    return false;
}

/* General registers written beside the operands, as a mask, where Capstone 4 tells too few or too
 * many of them; -1 for instructions where it can be believed.  (SDM vol. 2, the page of each.) */
int verify_implicit_writes(const cs_insn *in)
{
    enum { A = 1 << 0, C = 1 << 1, D = 1 << 2 };
    switch (in->id) {
    case X86_INS_IMUL:
        if (in->detail->x86.op_count > 1)
            return 0;
        /* fallthrough */
    case X86_INS_MUL:
    case X86_INS_DIV:
    case X86_INS_IDIV: /* those of bytes write AX */
        return in->detail->x86.operands[0].size == 1 ? A : A | D;
    case X86_INS_CMPXCHG8B:
    case X86_INS_CMPXCHG16B:
    case X86_INS_RDTSC:
        return A | D;
    case X86_INS_RDTSCP:
        return A | C | D;
    case X86_INS_CMPXCHG:
    case X86_INS_CBW:
    case X86_INS_CWDE:
    case X86_INS_CDQE:
    case X86_INS_LAHF:
        return A;
    case X86_INS_CWD:
    case X86_INS_CDQ:
    case X86_INS_CQO:
        return D;
    case X86_INS_PCMPESTRI:
    case X86_INS_PCMPISTRI:
    case X86_INS_VPCMPESTRI:
    case X86_INS_VPCMPISTRI:
    case X86_INS_LOOP:
    case X86_INS_LOOPE:
    case X86_INS_LOOPNE:
        return C;
    }
    return -1;
}

/* -- Decoding -------------------------------------------------------------------------------------
 */

/* Prefixes without effect on instructions without memory operand. */
static bool idle_prefix(uint8_t b)
{
    return b == 0x2e || b == 0x36 || b == 0x3e || b == 0x26 || b == 0x64 || b == 0x65 || b == 0x67;
}

/* A REX that another prefix follows does not count. */
static bool idle_rex(const uint8_t *b, const uint8_t *end)
{
    return (*b & 0xf0) == 0x40 && b + 1 < end &&
           (idle_prefix(b[1]) || b[1] == 0x66 || b[1] == 0xf2 || b[1] == 0xf3 ||
            (b[1] & 0xf0) == 0x40);
}

/* VEX and EVEX opcodes that write their memory operand (SDM vol. 2). */
static bool vector_stores(bool evex, unsigned map, unsigned pp, unsigned op)
{
    switch (map) {
    case 1:
        return op == 0x11 || op == 0x13 || op == 0x17 || op == 0x29 || op == 0x2b ||
               (op == 0x7e && pp == 1) || op == 0x7f || op == 0xd6 || op == 0xe7 ||
               (!evex && (op == 0xae || op == 0x91));
    case 2:
        if (!evex)
            return op == 0x2e || op == 0x2f || op == 0x8e;
        return (pp == 2 && (op & 0xc8) == 0 && (op & 7) < 6 && op >= 0x10) || op == 0x8a ||
               op == 0x8b || op == 0x63;
    case 3:
        return (op >= 0x14 && op <= 0x17) || op == 0x19 || op == 0x1b || op == 0x39 || op == 0x3b ||
               op == 0x1d;
    case 5:
        return op == 0x11 || op == 0x7e;
    }
    return false;
}

/* Operands of a VEX or EVEX opcode that may be general registers written to: of conversions and moves
 * from vectors and opmasks (the other operand is none, though its number may be that of RSP), BMI,
 * CMPccXADD and whatever else has come into map 2 above E0. */
enum { GENERAL_REG = 1, GENERAL_RM = 2, GENERAL_ALL = 7 };
static unsigned vector_general(unsigned map, unsigned pp, unsigned op)
{
    switch (map) {
    case 1:
    case 5:
        if (op == 0x7e)
            return GENERAL_RM;
        return ((op == 0x2c || op == 0x2d || op == 0x78 || op == 0x79) && pp >= 2) || op == 0x50 ||
                       op == 0x93 || op == 0xc5 || op == 0xd7
                   ? GENERAL_REG
                   : 0;
    case 2:
        return op >= 0xe0 ? GENERAL_ALL : 0;
    case 3:
        return op >= 0x14 && op <= 0x17 ? GENERAL_RM : op >= 0xf0 ? GENERAL_ALL : 0;
    }
    return 0;
}

/*
 * Instructions that this Capstone does not know: much of AVX-512 and some of SSE, if it is
 * version 4. VEX and EVEX are regular enough to find the memory operand; how many bytes of it are
 * accessed is not known here, so only the form of the address is checked.  Gathers and scatters are
 * refused. Of legacy encodings GFNI, MOVDIRI, SERIALIZE and the fences' other register forms are
 * known.
 */
static unsigned decode_other(struct verify_code *v, uint32_t off, cs_insn *in)
{
    const uint8_t *b = v->code + off, *start = b, *end = v->code + v->size;
    cs_x86 *x = &in->detail->x86;
    bool gs = false, a32 = false, fs = false, p66 = false, store, vsib = false, imm;
    unsigned general = 0;
    for (; b < end && (idle_prefix(*b) || *b == 0x66 || idle_rex(b, end)); b++) {
        fs |= *b == 0x64;
        gs |= *b == 0x65;
        a32 |= *b == 0x67;
        p66 |= *b == 0x66;
    }
    if (end - b < 3)
        return 0;
    unsigned ext_b, ext_x, ext_r, vvvv = 0, size = 1;
    bool evex = *b == 0x62;
    if (evex || *b == 0xc4 || *b == 0xc5) {
        bool two = *b == 0xc5;
        unsigned p0 = two ? (b[1] & 0x80) | 0x61 : b[1], p1 = two ? b[1] : b[2];
        unsigned map = evex ? p0 & 7 : p0 & 31, pp = p1 & 3;
        ext_b = p0 & 0x20 ? 0 : 8, ext_x = p0 & 0x40 ? 0 : 8, ext_r = p0 & 0x80 ? 0 : 8;
        vvvv = ~(p1 >> 3) & 15;
        b += evex ? 4 : two ? 2 : 3;
        if (p66 || map == 0 || map > 6 || map == 4 || end - b < 2)
            return 0;
        unsigned opcode = *b++;
        if (map == 1 && opcode == 0x77)
            return 0; /* VZEROALL, VZEROUPPER: no ModRM */
        vsib = map == 2 &&
               ((opcode & 0xfc) == 0x90 || (opcode & 0xfc) == 0xa0 || (opcode & 0xfe) == 0xc6);
        store = vector_stores(evex, map, pp, opcode);
        general = vector_general(map, pp, opcode);
        /* An immediate: all of map 3; in map 1 the shuffles, shifts, compares, inserts, extracts.
         */
        imm = map == 3 || (map == 1 && ((opcode >= 0x70 && opcode <= 0x73) || opcode == 0xc2 ||
                                        (opcode >= 0xc4 && opcode <= 0xc6)));
    } else {
        unsigned rex = (*b & 0xf0) == 0x40 ? *b++ : 0;
        ext_b = rex & 1 ? 8 : 0, ext_x = rex & 2 ? 8 : 0, ext_r = rex & 4 ? 8 : 0;
        if (end - b < 3 || *b++ != 0x0f)
            return 0;
        unsigned esc = *b++, opcode = esc == 0x38 || esc == 0x3a ? *b++ : 0;
        if (b == end)
            return 0;
        store = esc == 0x38 && opcode == 0xf9;
        imm = esc == 0x3a;
        if (store)
            size = rex & 8 ? 8 : 4;
        else if (p66 && ((esc == 0x38 && opcode == 0xcf) ||
                         (esc == 0x3a && (opcode == 0xce || opcode == 0xcf))))
            size = 16;
        else if ((esc != 0xae || *b < 0xe8) && (esc != 0x01 || *b != 0xe8))
            return 0;
    }
    unsigned modrm = *b++, mod = modrm >> 6, rm = modrm & 7, reg = (modrm >> 3 & 7) | ext_r;
    static const uint16_t gpr[16] = {X86_REG_RAX, X86_REG_RCX, X86_REG_RDX, X86_REG_RBX,
                                     X86_REG_RSP, X86_REG_RBP, X86_REG_RSI, X86_REG_RDI,
                                     X86_REG_R8,  X86_REG_R9,  X86_REG_R10, X86_REG_R11,
                                     X86_REG_R12, X86_REG_R13, X86_REG_R14, X86_REG_R15};
    memset(in->detail, 0, sizeof *in->detail);
    unsigned n = 0;
    if (mod != 3) {
        cs_x86_op *op = &x->operands[n++];
        if (vsib || fs || gs != a32 || (rm == 5 && mod == 0))
            return 0; /* also RIP-relative, 32-bit, or in a segment of the host, but gs:[32 bits] */
        op->mem.segment = gs ? X86_REG_GS : X86_REG_INVALID;
        op->type = X86_OP_MEM;
        op->access = store ? CS_AC_READ | CS_AC_WRITE : CS_AC_READ;
        op->mem.scale = 1;
        op->size = (uint8_t)size;
        if (rm == 4) {
            if (b == end)
                return 0;
            unsigned sib = *b++, index = (sib >> 3 & 7) | ext_x, base = sib & 7;
            if (index != 4)
                op->mem.index = gpr[index];
            op->mem.scale = 1 << (sib >> 6);
            if (base == 5 && mod == 0)
                mod = 4; /* disp32, no base */
            else
                op->mem.base = gpr[base | ext_b];
        } else {
            op->mem.base = gpr[rm | ext_b];
        }
        if (mod == 1) { /* EVEX scales it: take the largest reach */
            if (b == end)
                return 0;
            op->mem.disp = (int64_t)(int8_t)*b++ * (evex ? 64 : 1);
        } else if (mod == 2 || mod == 4) {
            int32_t d;
            if (end - b < 4)
                return 0;
            memcpy(&d, b, 4);
            op->mem.disp = d;
            b += 4;
        }
    }
    if ((general & GENERAL_RM) && mod == 3) {
        x->operands[n].type = X86_OP_REG;
        x->operands[n++].reg = gpr[rm | ext_b];
    }
    if (general & GENERAL_REG) {
        x->operands[n].type = X86_OP_REG;
        x->operands[n++].reg = gpr[reg];
    }
    if (general == GENERAL_ALL) {
        x->operands[n].type = X86_OP_REG;
        x->operands[n++].reg = gpr[vvvv];
    }
    x->op_count = (uint8_t)n;
    x->addr_size = a32 ? 4 : 8;
    b += imm;
    if (b > end)
        return 0;
    in->id = 0;
    in->address = v->address + off;
    in->size = (uint16_t)(b - start);
    memcpy(in->bytes, start, in->size < sizeof in->bytes ? in->size : sizeof in->bytes);
    snprintf(in->mnemonic, sizeof in->mnemonic, "(other)");
    in->op_str[0] = 0;
    return in->size;
}

/* Register forms with prefixes that mean nothing there, which confuse this Capstone (66 3E 0F 7C).
 */
static unsigned decode_stripped(struct verify_code *v, uint32_t off, cs_insn *in, bool strip_66)
{
    uint8_t buf[16];
    unsigned n = 0, cut = 0;
    bool prefixes = true;
    for (uint32_t i = off; i < v->size && n < sizeof buf; i++) {
        uint8_t b = v->code[i];
        bool rep = b == 0x66 || b == 0xf2 || b == 0xf3;
        bool idle = idle_prefix(b) || idle_rex(v->code + i, v->code + v->size);
        prefixes = prefixes && (idle || rep);
        if (prefixes && (strip_66 ? b == 0x66 : idle))
            cut++;
        else
            buf[n++] = b;
    }
    const uint8_t *p = buf;
    size_t left = n;
    uint64_t address = v->address + off;
    if (!cut || !cs_disasm_iter(v->cs, &p, &left, &address, in))
        return 0;
    for (unsigned i = 0; i < in->detail->x86.op_count && !strip_66; i++)
        if (in->detail->x86.operands[i].type != X86_OP_REG &&
            !(i && in->detail->x86.operands[i].type == X86_OP_IMM))
            return 0;
    in->size = (uint16_t)(in->size + cut);
    return off + in->size <= v->size ? in->size : 0;
}

/* 66 behind F2 or F3 (F2 66 0F 38 F1, CRC32 of a word), which this Capstone knows in the other order
 * only.  The processor does not mind. */
static unsigned decode_reordered(struct verify_code *v, uint32_t off, cs_insn *in)
{
    uint8_t buf[16] = {0x66};
    unsigned n = 1, p66 = 0;
    bool prefixes = true;
    for (uint32_t i = off; i < v->size && n < sizeof buf; i++) {
        uint8_t b = v->code[i];
        prefixes = prefixes && (b == 0x66 || b == 0xf2 || b == 0xf3 || idle_prefix(b));
        if (prefixes && b == 0x66)
            p66++;
        else
            buf[n++] = b;
    }
    const uint8_t *p = buf;
    size_t left = n;
    uint64_t address = v->address + off;
    if (!p66 || !cs_disasm_iter(v->cs, &p, &left, &address, in))
        return 0;
    in->size = (uint16_t)(in->size + p66 - 1);
    return off + in->size <= v->size ? in->size : 0;
}

/* An SSE instruction with 66 and F2 or F3, of which only the latter counts: Capstone may think
 * otherwise. */
static bool repeat_wins(const uint8_t *b, uint32_t n)
{
    bool p66 = false, rep = false;
    for (; n > 2 &&
           (idle_prefix(*b) || *b == 0x66 || *b == 0xf2 || *b == 0xf3 || (*b & 0xf0) == 0x40);
         b++, n--) {
        p66 |= *b == 0x66;
        rep |= *b == 0xf2 || *b == 0xf3;
    }
    unsigned op = b[1];
    return p66 && rep && n > 2 && b[0] == 0x0f &&
           ((op >= 0x10 && op <= 0x17) || (op >= 0x28 && op <= 0x2f) ||
            (op >= 0x51 && op <= 0x7f) || op == 0xc2 || op == 0xd0 || op == 0xd6 || op == 0xe6 ||
            op == 0xf0);
}

/* MOVQ xmm, xmm (F3 0F 7E), which Capstone 4 takes for MMX to general register with a REX.W. */
static bool moves_vector(const cs_insn *in)
{
    unsigned i = 0;
    bool f3 = false;
    for (; i < in->size && i < sizeof in->bytes && in->bytes[i] != 0x0f; i++)
        f3 |= in->bytes[i] == 0xf3;
    return f3 && i + 2 < in->size && in->bytes[i + 1] == 0x7e && in->bytes[i + 2] >= 0xc0;
}

static bool vector_encoding(const uint8_t *b, uint32_t n)
{
    const uint8_t *end = b + n;
    while (b < end && (idle_prefix(*b) || idle_rex(b, end)))
        b++;
    return b < end && (*b == 0x62 || *b == 0xc4 || *b == 0xc5);
}

/* Instructions in lots: one takes 2 KB. */
struct verify_lot {
    struct verify_lot *next;
    unsigned used;
    struct {
        cs_insn insn;
        cs_detail detail;
    } item[32];
};

static struct verify_lot *new_lot(void)
{
    struct verify_lot *l = malloc(sizeof *l);
    if (l) {
        l->next = NULL;
        l->used = 0;
    }
    return l;
}

struct verify_kit *verify_kit_new(void)
{
    struct verify_kit *kit = calloc(1, sizeof *kit);
    if (!kit)
        return NULL;
    kit->lots = kit->lot = new_lot();
    if (!kit->lots || cs_open(CS_ARCH_X86, CS_MODE_64, &kit->cs) != CS_ERR_OK) {
        free(kit->lots);
        free(kit);
        return NULL;
    }
    cs_option(kit->cs, CS_OPT_DETAIL, CS_OPT_ON);
    return kit;
}

void verify_kit_free(struct verify_kit *kit)
{
    if (!kit)
        return;
    while (kit->lots) {
        struct verify_lot *l = kit->lots;
        kit->lots = l->next;
        free(l);
    }
    cs_close(&kit->cs);
    free(kit);
}

bool verify_wide_encoding(const uint8_t *b, size_t size, bool *vector)
{
    size_t i = 0;
    while (i < size && (b[i] == 0x66 || b[i] == 0xf2 || b[i] == 0xf3 || b[i] == 0xf0 || b[i] == 0x2e ||
                        b[i] == 0x36 || b[i] == 0x3e || b[i] == 0x26 || b[i] == 0x64 || b[i] == 0x65 ||
                        b[i] == 0x67))
        i++;
    *vector = i < size && (b[i] == 0xc4 || b[i] == 0xc5 || b[i] == 0x62);
    if (*vector)
        return b[i] != 0xc5 && i + 2 < size && (b[i + 2] & 0x80);
    return i < size && (b[i] & 0xf8) == 0x48;
}

static cs_insn *new_insn(struct verify_code *v)
{
    struct verify_lot *l = v->kit->lot;
    if (l->used == sizeof l->item / sizeof l->item[0]) {
        if (!l->next)
            l->next = new_lot();
        l = l->next;
        if (!l)
            return NULL;
        l->used = 0;
        v->kit->lot = l;
    }
    cs_insn *in = &l->item[l->used].insn;
    in->detail = &l->item[l->used++].detail;
    return in;
}

bool verify_decode(struct verify_code *v, uint32_t *bad)
{
    v->kit->lot = v->kit->lots;
    v->kit->lot->used = 0;
    v->cs = v->kit->cs;
    v->insn = calloc(v->size, sizeof *v->insn);
    v->spare = new_insn(v);
    if (!v->spare || !v->insn)
        return false;
    for (uint32_t off = 0; off < v->size;) {
        cs_insn *in = new_insn(v);
        const uint8_t *p = v->code + off;
        size_t left = v->size - off;
        uint64_t address = v->address + off;
        if (!in)
            return false;
        v->insn[off] = in;
        *bad = off;
        /* Of VEX and EVEX this Capstone gets some lengths wrong (embedded rounding). */
        bool known = repeat_wins(v->code + off, v->size - off)
                         ? decode_stripped(v, off, in, true) != 0
                         : cs_disasm_iter(v->cs, &p, &left, &address, in);
        unsigned size = known ? in->size : 0;
        if ((!known || vector_encoding(v->code + off, v->size - off)) &&
            decode_other(v, off, v->spare) && v->spare->size != size) {
            v->insn[off] = v->spare;
            v->spare = in;
            in = v->insn[off];
            known = true;
        }
        /* It also takes some EVEX index registers for vectors. */
        const cs_x86_op *mem = &v->spare->detail->x86.operands[0];
        if (known && in->id && vector_encoding(v->code + off, v->size - off) &&
            decode_other(v, off, v->spare) && mem->type == X86_OP_MEM)
            for (unsigned i = 0; i < in->detail->x86.op_count; i++)
                if (in->detail->x86.operands[i].type == X86_OP_MEM)
                    in->detail->x86.operands[i].mem = mem->mem;
        if (!known)
            known = decode_stripped(v, off, in, false) || decode_reordered(v, off, in);
        if (!known) {
            in->mnemonic[0] = in->op_str[0] = 0;
            return false;
        }
        /* State lies below the GS base: displacements become offsets in struct vcpu. */
        cs_x86 *x = &in->detail->x86;
        if ((in->id == X86_INS_MOVQ || in->id == X86_INS_MOVD) && moves_vector(in))
            x->op_count = 0;
        for (unsigned i = 0; i < x->op_count; i++) {
            if (x->operands[i].type != X86_OP_MEM || x->operands[i].mem.segment != X86_REG_GS)
                continue;
            if (x->addr_size == 8)
                x->operands[i].mem.disp += STATE_BIAS;
            else
                x->operands[i].mem.segment = VERIFY_FLAT;
        }
        off += in->size;
    }
    return true;
}

void verify_decode_free(struct verify_code *v)
{
    free(v->insn);
}
