/*
 * RSP where a translator may keep something else in the host's: every form that names it, at
 * addresses that are no stack at all, while its page comes, goes or is another one, and under
 * interrupts.  Most cases run twice, with RSP and with RBP in its place, and must come out the
 * same.
 *
 * And indirect jumps whose targets a translator's tables may take for one another.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

enum { HOT = 3000 };

/* -- RSP against RBP ------------------------------------------------------------------------------
 */

/* An instruction by each of the two names of a register: both start with the value in R8. */
struct form {
    const char *name;
    const u8 *code[2], *at[2];
    u8 flags;
};
enum {
    MEM = 1,   /* uses memory by the register */
    FLAGS = 2, /* sets the arithmetic flags, which then may have any value after a fault */
    LOOSE = 4, /* is several instructions by RBP: after a fault, neither RIP nor memory */
};

/* R12 is the plain buffer, R13 and R14 set OF, AH sets the others; R15 counts, without the flags.
 */
#define BEFORE(q)                                                                                  \
    "1: mov %%r12, %%rbx\n\tmov $5, %%ecx\n\tmov $7, %%edx\n\tmov %%r9, %%rax\n\t"                 \
    "mov %%r8, %%" q "\n\tcmp %%r13, %%r14\n\tsahf\n662: "
#define AFTER                                                                                      \
    "\n\tmov $0, %%r11d\n\tlea -1(%%r15), %%r15\n\txchg %%rcx, %%r15\n\tjrcxz 2f\n\t"              \
    "xchg %%rcx, %%r15\n\tjmp 1b\n2: xchg %%rcx, %%r15"
#define PAIR(f, sp, bp)                                                                            \
    do {                                                                                           \
        static struct form form_;                                                                  \
        form_.name = sp;                                                                           \
        form_.flags = (f);                                                                         \
        form_.code[0] = SNIP_AT(form_.at[0], BEFORE("rsp") sp AFTER);                              \
        form_.code[1] = SNIP_AT(form_.at[1], BEFORE("rbp") bp AFTER);                              \
        try_form(&form_);                                                                          \
    } while (0)
/* The same text for both: the register's names by size are the macro's last arguments. */
#define BOTH(f, text) PAIR(f, text("rsp", "esp", "sp", "spl"), text("rbp", "ebp", "bp", "bpl"))

static u64 page_of[4]; /* behind UVA, its second, UVA2 - 4096 and UVA2 */
static u64 sums[2][4];

static void fill_pages(void)
{
    for (unsigned p = 0; p < 4; p++)
        for (unsigned i = 0; i < 512; i++)
            ((u64 *)page_of[p])[i] = (p * 512 + i + 1) * 0x0123456789abcdeful;
    memset(buffer, 0x5a, 256);
    u64 low = 0; /* what the addresses around 0 are to the kernel */
    asm volatile("rep stosb" : "+D"(low) : "a"(0), "c"(128) : "memory");
}

static u64 sum(const void *p, unsigned n)
{
    u64 s = 0;
    for (unsigned i = 0; i < n; i++)
        s = (s << 7 | s >> 57) + ((const u64 *)p)[i] * 0x9e3779b97f4a7c15ul;
    return s;
}

static struct trap run_form(const struct form *f, unsigned which, unsigned cpl, u64 value,
                            u64 count, u64 *sum_of)
{
    struct regs r = regs_for(cpl);
    r.rbp = r.rsp;
    r.r8 = value;
    r.r9 = 0x1122334455660000ul | (value & 0xff00 ? 0xd500 : 0x0200) | 0x81;
    r.r12 = at_cpl(cpl, buffer);
    r.r13 = value & 8 ? 1 : 0x7fffffffffffffff;
    r.r14 = 0x8000000000000000;
    r.r15 = count;
    fill_pages();
    run_at(&r, f->code[which]);
    for (unsigned p = 0; p < 4; p++)
        sum_of[p] = sum((void *)page_of[p], 512);
    sum_of[0] += sum(buffer, 32);
    return T;
}

static bool compare_form(const struct form *f, unsigned cpl, u64 value, u64 count)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    char name[100];
    unsigned n = 0;
    for (const char *c = f->name; *c && n < sizeof(name) - 1; c++)
        if (*c != '\t' && *c != '%')
            name[n++] = *c == '\n' ? ';' : *c;
    name[n] = 0;
    context("%s, cpl %u, at 0x%lx, %lu times", name, cpl, value, count);
    struct trap sp = run_form(f, 0, cpl, value, count, sums[0]);
    struct trap bp = run_form(f, 1, cpl, value, count, sums[1]);
    u64 rsp = bp.r.rsp;
    bool same = true, fault = bp.vector != DONE;
    bp.r.rsp = bp.r.rbp;
    bp.r.rbp = rsp;
    same &= check_eq("vector", sp.vector, bp.vector);
    same &= check_eq("error code", sp.error, bp.error);
    if (bp.vector == PF)
        same &= check_eq("cr2", sp.cr2, bp.cr2);
    if (fault && !(f->flags & LOOSE))
        same &= check_eq("rip", sp.r.rip - at_cpl(cpl, f->at[0]), bp.r.rip - at_cpl(cpl, f->at[1]));
    for (unsigned i = 0; i < 16; i++)
        if (i != 11)
            same &= check_eq(names[i], (&sp.r.rax)[i], (&bp.r.rax)[i]);
    u64 ignored = F_RF | (fault && (f->flags & (FLAGS | LOOSE)) ? F_ARITH : 0);
    same &= check_eq("rflags", sp.r.rflags & ~ignored, bp.r.rflags & ~ignored);
    for (unsigned p = 0; p < 4 && !(fault && (f->flags & LOOSE)); p++)
        same &= check_eq("memory", sums[0][p], sums[1][p]);
    return same;
}

static void try_form(const struct form *f)
{
    static const u64 values[] = {
        UVA + 4096,
        UVA + 4096 - 4,
        UVA + 8,
        UVA + 3,
        UVA,
        UVA + 8192,
        UVA + 8192 - 8,
        UVA + 8192 - 3,
        UVA2,
        UVA2 + 8,
        UVA2 - 8,
        UVA2 - 5,
        UVA2 + 4,
        UVA2 + 4096 - 16,
        UVA2 + 4096,
        UVA2 - 4096,
        KVA,
        KVA + 4,
        KVA + 0x7fffffff,
        NONCANON,
        NONCANON - 8,
        NONCANON - 4,
        NONCANON + 4,
        NONCANON + 8,
        -NONCANON,
        -NONCANON - 8,
        -NONCANON + 4,
        -NONCANON + 8,
        -8ul,
        -4ul,
        -1ul,
        -0x1000ul,
        0x123456789abcdef0,
        0xfedcba9876543210,
        0x80000000,
        0x7ffffff8,
        0xfffffff8,
        0x100000000,
        0x200000000000,
        0x7f8000000000,
        0,
        4,
        8,
        0x40000000000000,
        0x8000000000000000,
        0x7fffffffffffffff,
    };
    BOTH_CPLS
    {
        u64 good = UVA + 4096 + 64;
        bool ok = compare_form(f, cpl, good, 1) && compare_form(f, cpl, good, HOT);
        for (unsigned i = 0; ok && i < sizeof(values) / sizeof(values[0]); i++)
            if (!(f->flags & LOOSE) ||
                values[i] - 0x1000 > 0xffffffff - 0x1000) /* maybe no memory */
                ok = compare_form(f, cpl, values[i], 1);
        if (ok && compare_form(f, cpl, UVA2 - 4, HOT))
            compare_form(f, cpl, KVA, 1);
    }
}

static void map_pages(void)
{
    page_of[0] = map_new(UVA, PG_URW);
    page_of[1] = map_new(UVA + 4096, PG_URW);
    page_of[2] = map_new(UVA2 - 4096, PG_URW);
    page_of[3] = map_new(UVA2, PG_URW);
}

#define T_ADD8(q, d, w, b)    "add $8, %%" q
#define T_ADDBIG(q, d, w, b)  "add $0x7fffffff, %%" q
#define T_SUBMIN(q, d, w, b)  "sub $-0x80000000, %%" q
#define T_SUB128(q, d, w, b)  "sub $-128, %%" q
#define T_ADC(q, d, w, b)     "adc $4096, %%" q
#define T_SBB(q, d, w, b)     "sbb %%rdx, %%" q
#define T_AND(q, d, w, b)     "and $-16, %%" q
#define T_ANDPOS(q, d, w, b)  "and $0x7ffffff0, %%" q
#define T_ANDPAGE(q, d, w, b) "and $-4096, %%" q "\n\tmov $1, %%edx"
#define T_OR(q, d, w, b)      "or $7, %%" q
#define T_XOR(q, d, w, b)     "xor %%rdx, %%" q
#define T_INC(q, d, w, b)     "inc %%" q
#define T_DEC(q, d, w, b)     "dec %%" q
#define T_NEG(q, d, w, b)     "neg %%" q
#define T_NOT(q, d, w, b)     "not %%" q
#define T_CMP(q, d, w, b)     "cmp %%r12, %%" q
#define T_CMPI(q, d, w, b)    "cmp $0x1000, %%" q
#define T_TEST(q, d, w, b)    "test %%" q ", %%" q
#define T_TESTB(q, d, w, b)   "test $15, %%" b
#define T_SHL(q, d, w, b)     "shl $3, %%" q
#define T_SARCL(q, d, w, b)   "sar %%cl, %%" q
#define T_ROR(q, d, w, b)     "ror $13, %%" q
#define T_SHLD(q, d, w, b)    "shld $9, %%rdx, %%" q
#define T_SHRD(q, d, w, b)    "shrd $9, %%" q ", %%rdx"
#define T_BSWAP(q, d, w, b)   "bswap %%" q
#define T_MOVW(q, d, w, b)    "mov %%dx, %%" w
#define T_MOVD(q, d, w, b)    "mov %%edx, %%" d
#define T_MOVB(q, d, w, b)    "mov %%dl, %%" b
#define T_MOVIB(q, d, w, b)   "mov $0x78, %%" b
#define T_MOVIW(q, d, w, b)   "mov $0x1230, %%" w
#define T_MOVID(q, d, w, b)   "mov $0x81234560, %%" d
#define T_MOVIQ(q, d, w, b)   "movabs $0x123456789abcdef0, %%" q
#define T_ADDW(q, d, w, b)    "add $0x7ff0, %%" w
#define T_ADDD(q, d, w, b)    "add $0x10, %%" d
#define T_ANDD(q, d, w, b)    "and $-16, %%" d
#define T_ANDB(q, d, w, b)    "and $0xf0, %%" b
#define T_INCW(q, d, w, b)    "incw %%" w
#define T_SELFD(q, d, w, b)   "mov %%" d ", %%" d
#define T_SELF(q, d, w, b)    "mov %%" q ", %%" q
#define T_FROM(q, d, w, b)    "mov %%" q ", %%rdx\n\tmov %%" q ", %%r10"
#define T_FROMD(q, d, w, b)   "mov %%" d ", %%edx\n\tmov %%" w ", %%cx\n\tmov %%" b ", %%bl"
#define T_TO10(q, d, w, b)    "mov %%r9, %%r10\n\tmov %%r10, %%" q
#define T_XCHG(q, d, w, b)    "xchg %%" q ", %%rdx"
#define T_XCHGA(q, d, w, b)   "xchg %%rax, %%" q
#define T_XCHGD(q, d, w, b)   "xchg %%" d ", %%edx"
#define T_XCHG10(q, d, w, b)  "xchg %%" q ", %%r10"
#define T_LEA1(q, d, w, b)    "lea 0x7fffffff(%%" q "), %%rdx"
#define T_LEA2(q, d, w, b)    "lea -0x80000000(%%" q "), %%" q
#define T_LEA3(q, d, w, b)    "lea 8(%%" q ",%%rcx,8), %%rdx"
#define T_LEA4(q, d, w, b)    "lea -8(%%" q ",%%rdx,2), %%" q
#define T_LEA5(q, d, w, b)    "lea 8(%%" d "), %%edx"
#define T_LEA6(q, d, w, b)    "lea 8(%%" q "), %%edx"
#define T_LEA7(q, d, w, b)    "lea 8(%%" q "), %%dx"
#define T_LEA8(q, d, w, b)    "lea 8(%%rbx,%%rcx), %%" q
#define T_LEA9(q, d, w, b)    "lea 8(%%" q ",%%r10,4), %%r10"
#define T_LEA10(q, d, w, b)   "lea 8(%%rbx), %%" w
#define T_LEA11(q, d, w, b)   "lea 16(%%" d ",%%edx), %%" d
#define T_LEA12(q, d, w, b)   "lea 0x20000000(%%" q "), %%" q "\n\tlea -0x1ffffff8(%%" q "), %%" q
#define T_CMOV(q, d, w, b)    "cmovc %%rdx, %%" q
#define T_CMOVN(q, d, w, b)   "cmovnc %%rdx, %%" q
#define T_CMOVD(q, d, w, b)   "cmovnz %%edx, %%" d
#define T_CMOVF(q, d, w, b)   "cmovs %%" q ", %%rdx"
#define T_SETB(q, d, w, b)    "setc %%" b
#define T_BT(q, d, w, b)      "bt %%rcx, %%" q
#define T_BTS(q, d, w, b)     "bts $3, %%" q
#define T_BTR(q, d, w, b)     "btr %%" q ", %%rdx"
#define T_BSF(q, d, w, b)     "bsf %%" q ", %%rdx"
#define T_BSR(q, d, w, b)     "mov $1, %%edx\n\tbsr %%rdx, %%" q
#define T_POPCNT(q, d, w, b)  "popcnt %%" q ", %%" q
#define T_MUL(q, d, w, b)     "mul %%" q
#define T_IMUL(q, d, w, b)    "imul $3, %%" q ", %%" q
#define T_IMUL2(q, d, w, b)   "imul %%" q ", %%rdx"
#define T_DIV(q, d, w, b)     "div %%" q
#define T_DIVD(q, d, w, b)    "div %%" d
#define T_DIVB(q, d, w, b)    "div %%" b
#define T_IDIV(q, d, w, b)    "mov $0, %%edx\n\tidiv %%" q
#define T_MOVZX(q, d, w, b)   "movzx %%" b ", %%edx"
#define T_MOVSX(q, d, w, b)   "movsx %%" b ", %%rdx\n\tmovsx %%" w ", %%r10"
#define T_MOVSXD(q, d, w, b)  "movslq %%" d ", %%rdx"
#define T_MOVSX2(q, d, w, b)  "movslq %%" d ", %%" q
#define T_MOVZX2(q, d, w, b)  "movzx %%dl, %%" d
#define T_XADD(q, d, w, b)    "xadd %%" q ", %%rdx"
#define T_XADD2(q, d, w, b)   "xadd %%rdx, %%" q
#define T_CMPXCHG(q, d, w, b) "cmpxchg %%" q ", %%rax"
#define T_CMPX2(q, d, w, b)   "cmpxchg %%rdx, %%" q
#define T_CRC(q, d, w, b)     "crc32q %%" q ", %%rdx"
#define T_MOVQX(q, d, w, b)   "movq %%" q ", %%xmm0\n\tmovq %%xmm0, %%rdx"
#define T_MOVXQ(q, d, w, b)   "movq %%rdx, %%xmm0\n\tmovq %%xmm0, %%" q
#define T_CVT(q, d, w, b)     "cvtsi2sdq %%" q ", %%xmm0\n\tmovq %%xmm0, %%rdx"
#define T_MULX(q, d, w, b)    "mulx %%" q ", %%r10, %%" q
#define T_ANDN(q, d, w, b)    "andn %%" q ", %%rdx, %%r10"
#define T_ANDN2(q, d, w, b)   "andn %%rdx, %%" q ", %%" q
#define T_PDEP(q, d, w, b)    "pdep %%" q ", %%rdx, %%" q
#define T_PEXT(q, d, w, b)    "pext %%rdx, %%" q ", %%r10"
#define T_RORX(q, d, w, b)    "rorx $7, %%" q ", %%" q
#define T_BLSR(q, d, w, b)    "blsr %%" q ", %%" q
#define T_SHLX(q, d, w, b)    "shlx %%" q ", %%rdx, %%r10"

TEST(stack, as_a_number)
{
    map_pages();
    BOTH(FLAGS, T_ADD8);
    BOTH(FLAGS, T_ADDBIG);
    BOTH(FLAGS, T_SUBMIN);
    BOTH(FLAGS, T_SUB128);
    BOTH(FLAGS, T_ADC);
    BOTH(FLAGS, T_SBB);
    BOTH(FLAGS, T_AND);
    BOTH(FLAGS, T_ANDPOS);
    BOTH(FLAGS, T_ANDPAGE);
    BOTH(FLAGS, T_OR);
    BOTH(FLAGS, T_XOR);
    BOTH(FLAGS, T_INC);
    BOTH(FLAGS, T_DEC);
    BOTH(FLAGS, T_NEG);
    BOTH(0, T_NOT);
    BOTH(FLAGS, T_CMP);
    BOTH(FLAGS, T_CMPI);
    BOTH(FLAGS, T_TEST);
    BOTH(FLAGS, T_TESTB);
    BOTH(FLAGS, T_SHL);
    BOTH(FLAGS, T_SARCL);
    BOTH(FLAGS, T_ROR);
    BOTH(FLAGS, T_SHLD);
    BOTH(FLAGS, T_SHRD);
    BOTH(0, T_BSWAP);
    BOTH(0, T_MOVW);
    BOTH(0, T_MOVD);
    BOTH(0, T_MOVB);
    BOTH(0, T_MOVIB);
    BOTH(0, T_MOVIW);
    BOTH(0, T_MOVID);
    BOTH(0, T_MOVIQ);
    BOTH(FLAGS, T_ADDW);
    BOTH(FLAGS, T_ADDD);
    BOTH(FLAGS, T_ANDD);
    BOTH(FLAGS, T_ANDB);
    BOTH(FLAGS, T_INCW);
    BOTH(0, T_SELFD);
    BOTH(0, T_SELF);
    BOTH(0, T_FROM);
    BOTH(0, T_FROMD);
    BOTH(0, T_TO10);
    BOTH(0, T_XCHG);
    BOTH(0, T_XCHGA);
    BOTH(0, T_XCHGD);
    BOTH(0, T_XCHG10);
    BOTH(0, T_LEA1);
    BOTH(0, T_LEA2);
    BOTH(0, T_LEA3);
    BOTH(0, T_LEA4);
    BOTH(0, T_LEA5);
    BOTH(0, T_LEA6);
    BOTH(0, T_LEA7);
    BOTH(0, T_LEA8);
    BOTH(0, T_LEA9);
    BOTH(0, T_LEA10);
    BOTH(0, T_LEA11);
    BOTH(0, T_LEA12);
    BOTH(0, T_CMOV);
    BOTH(0, T_CMOVN);
    BOTH(0, T_CMOVD);
    BOTH(0, T_CMOVF);
    BOTH(0, T_SETB);
    BOTH(FLAGS, T_BT);
    BOTH(FLAGS, T_BTS);
    BOTH(FLAGS, T_BTR);
    BOTH(FLAGS, T_BSF);
    BOTH(FLAGS, T_BSR);
    BOTH(FLAGS, T_POPCNT);
    BOTH(FLAGS, T_MUL);
    BOTH(FLAGS, T_IMUL);
    BOTH(FLAGS, T_IMUL2);
    BOTH(FLAGS, T_DIV);
    BOTH(FLAGS, T_DIVD);
    BOTH(FLAGS, T_DIVB);
    BOTH(FLAGS, T_IDIV);
    BOTH(0, T_MOVZX);
    BOTH(0, T_MOVSX);
    BOTH(0, T_MOVSXD);
    BOTH(0, T_MOVSX2);
    BOTH(0, T_MOVZX2);
    BOTH(FLAGS, T_XADD);
    BOTH(FLAGS, T_XADD2);
    BOTH(FLAGS, T_CMPXCHG);
    BOTH(FLAGS, T_CMPX2);
    BOTH(0, T_CRC);
    BOTH(0, T_MOVQX);
    BOTH(0, T_MOVXQ);
    BOTH(0, T_CVT);
    if (!feat.bmi2 || !feat.bmi1)
        return;
    BOTH(0, T_MULX);
    BOTH(FLAGS, T_ANDN);
    BOTH(FLAGS, T_ANDN2);
    BOTH(0, T_PDEP);
    BOTH(0, T_PEXT);
    BOTH(0, T_RORX);
    BOTH(FLAGS, T_BLSR);
    BOTH(0, T_SHLX);
}

#define M_LOAD(q, d, w, b)     "mov (%%" q "), %%rdx"
#define M_LOADD(q, d, w, b)    "mov -4(%%" q "), %%edx"
#define M_LOADB(q, d, w, b)    "movzbl 1(%%" q "), %%edx"
#define M_STORE(q, d, w, b)    "mov %%rdx, -8(%%" q ")"
#define M_STOREB(q, d, w, b)   "movb $7, (%%" q ")"
#define M_FAR(q, d, w, b)      "mov 0x7ffffff8(%%" q "), %%rdx"
#define M_FARDOWN(q, d, w, b)  "mov -0x80000000(%%" q "), %%rdx"
#define M_ADD(q, d, w, b)      "add %%rdx, (%%" q ")"
#define M_INCL(q, d, w, b)     "incl 4(%%" q ")"
#define M_LOCK(q, d, w, b)     "lock xadd %%rdx, -16(%%" q ")"
#define M_CMPX(q, d, w, b)     "cmpxchg %%rcx, (%%" q ")"
#define M_SELF(q, d, w, b)     "mov (%%" q "), %%" q
#define M_SELFD(q, d, w, b)    "mov (%%" q "), %%" d
#define M_SELFW(q, d, w, b)    "mov (%%" q "), %%" w
#define M_SELFB(q, d, w, b)    "mov (%%" q "), %%" b
#define M_STSELF(q, d, w, b)   "mov %%" q ", (%%" q ")"
#define M_STSELF2(q, d, w, b)  "mov %%" q ", -8(%%" q ")"
#define M_STSELFB(q, d, w, b)  "mov %%" b ", 3(%%" q ")"
#define M_ADDSELF(q, d, w, b)  "add (%%" q "), %%" q
#define M_ADDTO(q, d, w, b)    "add %%" q ", (%%" q ")"
#define M_XCHG(q, d, w, b)     "xchg %%" q ", (%%" q ")"
#define M_XADD(q, d, w, b)     "xadd %%" q ", (%%" q ")"
#define M_CMPXS(q, d, w, b)    "lock cmpxchg %%" q ", (%%" q ")"
#define M_OTHER(q, d, w, b)    "mov (%%rbx), %%" q
#define M_OTHERST(q, d, w, b)  "mov %%" q ", (%%rbx)"
#define M_OTHERADD(q, d, w, b) "add %%" q ", (%%rbx)"
#define M_OTHERXC(q, d, w, b)  "xchg %%" q ", (%%rbx)"
#define M_CMP(q, d, w, b)      "cmp %%" q ", (%%" q ")"
#define M_IMUL(q, d, w, b)     "imul $3, (%%" q "), %%" q
#define M_CMOV(q, d, w, b)     "cmovc (%%" q "), %%" q
#define M_IDX(q, d, w, b)      "mov (%%" q ",%%rcx,8), %%rdx"
#define M_IDXNEG(q, d, w, b)   "mov $-5, %%rdx\n\tmov %%rcx, (%%" q ",%%rdx,8)"
#define M_IDXBIG(q, d, w, b)   "mov $0xffffffff, %%edx\n\tmov 16(%%" q ",%%rdx,8), %%rdx"
#define M_IDXBIG2(q, d, w, b)  "movslq %%r9d, %%rdx\n\tmov 16(%%" q ",%%rdx,8), %%dl"
#define M_IDXWILD(q, d, w, b)  "mov %%r9, %%rdx\n\tmov (%%" q ",%%rdx,1), %%dl"
#define M_IDXBACK(q, d, w, b)                                                                      \
    "mov %%r12, %%rdx\n\tsub %%" q ", %%rdx\n\tmov 8(%%" q ",%%rdx), %%rdx"
#define M_IDX10(q, d, w, b)   "mov $2, %%r10d\n\tmov (%%" q ",%%r10,8), %%r10"
#define M_HIGH(q, d, w, b)    "and %%bh, (%%" q ")"
#define M_HIGH2(q, d, w, b)   "and (%%" q "), %%bh"
#define M_HIGH3(q, d, w, b)   "mov %%ah, 5(%%" q ")"
#define M_HIGH4(q, d, w, b)   "mov (%%" q "), %%ch"
#define M_67(q, d, w, b)      "mov (%%" d "), %%rdx"
#define M_67ST(q, d, w, b)    "mov %%dx, -2(%%" d ")"
#define M_FS(q, d, w, b)      "mov %%fs:(%%" q "), %%rdx"
#define M_GS(q, d, w, b)      "addq $3, %%gs:8(%%" q ")"
#define M_FSST(q, d, w, b)    "mov %%" q ", %%fs:(%%" q ")"
#define M_BT(q, d, w, b)      "btsq %%rcx, (%%" q ")"
#define M_BT2(q, d, w, b)     "mov $-100, %%rdx\n\tbtcq %%rdx, (%%" q ")"
#define M_BT3(q, d, w, b)     "btw %%" w ", (%%rbx)"
#define M_BTI(q, d, w, b)     "btrl $3, (%%" q ")"
#define M_DIV(q, d, w, b)     "mov $0, %%edx\n\tdivq (%%" q ")"
#define M_MUL(q, d, w, b)     "mulq (%%" q ")"
#define M_SHL(q, d, w, b)     "shlq %%cl, (%%" q ")"
#define M_SETC(q, d, w, b)    "setc (%%" q ")"
#define M_MOVUPS(q, d, w, b)  "movups (%%" q "), %%xmm0\n\tmovups %%xmm0, -16(%%" q ")"
#define M_FLD(q, d, w, b)     "fildll (%%" q ")\n\tfistpll (%%rbx)"
#define M_FST(q, d, w, b)     "fnstcw (%%" q ")"
#define M_MXCSR(q, d, w, b)   "stmxcsr (%%" q ")"
#define M_PREF(q, d, w, b)    "prefetcht0 (%%" q ")"
#define M_MOVBE(q, d, w, b)   "movbe (%%" q "), %%" q
#define M_CX16(q, d, w, b)    "cmpxchg16b (%%" q ")"
#define M_STOS(q, d, w, b)    "mov %%" q ", %%rdi\n\tstosq"
#define M_MOVS(q, d, w, b)    "mov %%rbx, %%rdi\n\tmov %%" q ", %%rsi\n\trep movsb"
#define M_VMOV(q, d, w, b)    "vmovdqu (%%" q "), %%ymm1\n\tvmovdqu %%ymm1, -32(%%" q ")"
#define M_VMASK(q, d, w, b)   "vpxor %%xmm0, %%xmm0, %%xmm0\n\tvmaskmovps (%%" q "), %%ymm0, %%ymm1"
#define M_VMASKST(q, d, w, b) "vpxor %%xmm0, %%xmm0, %%xmm0\n\tvmaskmovps %%ymm1, %%ymm0, (%%" q ")"
#define M_VMASK1(q, d, w, b)                                                                       \
    "mov $0x80000000, %%edx\n\tvmovd %%edx, %%xmm0\n\tvmaskmovps -4(%%" q "), %%ymm0, %%ymm1\n\t"  \
    "vmaskmovps %%ymm1, %%ymm0, -8(%%" q ")"
#define M_EVEX0(q, d, w, b)   "kxorq %%k1, %%k1, %%k1\n\tvmovdqu64 (%%" q "), %%zmm1%{%%k1%}"
#define M_EVEX0ST(q, d, w, b) "kxorq %%k1, %%k1, %%k1\n\tvmovdqu64 %%zmm1, (%%" q ")%{%%k1%}"
#define M_EVEX1(q, d, w, b)                                                                        \
    "kmovq %%rdx, %%k1\n\tvmovdqu8 -1(%%" q "), %%zmm1%{%%k1%}\n\tvmovdqu8 %%zmm1, (%%" q          \
    ")%{%%k1%}"
#define M_MULX(q, d, w, b) "mulx (%%" q "), %%r10, %%" q
#define M_ANDN(q, d, w, b) "andn (%%" q "), %%" q ", %%r10"
#define M_PDEP(q, d, w, b) "pdep (%%" q "), %%" q ", %%" q
#define M_RORX(q, d, w, b) "rorx $3, (%%" q "), %%" q

TEST(stack, as_an_address)
{
    map_pages();
    wrmsr(MSR_FS_BASE, 0x18);
    wrmsr(MSR_GS_BASE, -0x18ul);
    BOTH(MEM, M_LOAD);
    BOTH(MEM, M_LOADD);
    BOTH(MEM, M_LOADB);
    BOTH(MEM, M_STORE);
    BOTH(MEM, M_STOREB);
    BOTH(MEM, M_FAR);
    BOTH(MEM, M_FARDOWN);
    BOTH(MEM | FLAGS, M_ADD);
    BOTH(MEM | FLAGS, M_INCL);
    BOTH(MEM | FLAGS, M_LOCK);
    BOTH(MEM | FLAGS, M_CMPX);
    BOTH(MEM, M_SELF);
    BOTH(MEM, M_SELFD);
    BOTH(MEM, M_SELFW);
    BOTH(MEM, M_SELFB);
    BOTH(MEM, M_STSELF);
    BOTH(MEM, M_STSELF2);
    BOTH(MEM, M_STSELFB);
    BOTH(MEM | FLAGS, M_ADDSELF);
    BOTH(MEM | FLAGS, M_ADDTO);
    BOTH(MEM, M_XCHG);
    BOTH(MEM | FLAGS, M_XADD);
    BOTH(MEM | FLAGS, M_CMPXS);
    BOTH(MEM, M_OTHER);
    BOTH(MEM, M_OTHERST);
    BOTH(MEM | FLAGS, M_OTHERADD);
    BOTH(MEM, M_OTHERXC);
    BOTH(MEM | FLAGS, M_CMP);
    BOTH(MEM | FLAGS, M_IMUL);
    BOTH(MEM, M_CMOV);
    BOTH(MEM, M_IDX);
    BOTH(MEM, M_IDXNEG);
    BOTH(MEM, M_IDXBIG);
    BOTH(MEM, M_IDXBIG2);
    BOTH(MEM, M_IDXWILD);
    BOTH(MEM | FLAGS, M_IDXBACK);
    BOTH(MEM, M_IDX10);
    BOTH(MEM | FLAGS, M_HIGH);
    BOTH(MEM | FLAGS, M_HIGH2);
    BOTH(MEM, M_HIGH3);
    BOTH(MEM, M_HIGH4);
    BOTH(MEM, M_67);
    BOTH(MEM, M_67ST);
    BOTH(MEM, M_FS);
    BOTH(MEM | FLAGS, M_GS);
    BOTH(MEM, M_FSST);
    BOTH(MEM | FLAGS, M_BT);
    BOTH(MEM | FLAGS, M_BT2);
    BOTH(MEM | FLAGS, M_BT3);
    BOTH(MEM | FLAGS, M_BTI);
    BOTH(MEM | FLAGS, M_DIV);
    BOTH(MEM | FLAGS, M_MUL);
    BOTH(MEM | FLAGS, M_SHL);
    BOTH(MEM, M_SETC);
    BOTH(MEM, M_MOVUPS);
    BOTH(MEM, M_FLD);
    BOTH(MEM, M_FST);
    BOTH(MEM, M_MXCSR);
    BOTH(MEM, M_PREF);
    BOTH(MEM, M_MOVBE);
    BOTH(MEM | FLAGS, M_CX16);
    BOTH(MEM, M_STOS);
    BOTH(MEM, M_MOVS);
    if (feat.avx2) {
        BOTH(MEM, M_VMOV);
        BOTH(MEM, M_VMASK);
        BOTH(MEM, M_VMASKST);
        BOTH(LOOSE, M_VMASK1);
    }
    if (feat.avx512bw && (xgetbv(0) & 0xe0)) {
        BOTH(MEM, M_EVEX0);
        BOTH(MEM, M_EVEX0ST);
        BOTH(MEM, M_EVEX1);
    }
    if (feat.bmi2 && feat.bmi1) {
        BOTH(MEM, M_MULX);
        BOTH(MEM | FLAGS, M_ANDN);
        BOTH(MEM, M_PDEP);
        BOTH(MEM, M_RORX);
    }
}

/* The stack instructions, and what does the same by RBP, with its first access the one that faults.
 */
TEST(stack, operations)
{
    map_pages();
    PAIR(MEM, "push %%rdx", "mov %%rdx, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(MEM, "push %%r10", "mov %%r10, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(MEM, "push $-5", "movq $-5, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(MEM, "pushw $-5", "movw $-5, -2(%%rbp)\n\tlea -2(%%rbp), %%rbp");
    PAIR(MEM, "push %%dx", "mov %%dx, -2(%%rbp)\n\tlea -2(%%rbp), %%rbp");
    PAIR(MEM, "push %%rsp", "mov %%rbp, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(MEM, "push %%sp", "mov %%bp, -2(%%rbp)\n\tlea -2(%%rbp), %%rbp");
    PAIR(MEM, "pop %%rdx", "mov (%%rbp), %%rdx\n\tlea 8(%%rbp), %%rbp");
    PAIR(MEM, "pop %%r10", "mov (%%rbp), %%r10\n\tlea 8(%%rbp), %%rbp");
    PAIR(MEM, "pop %%dx", "mov (%%rbp), %%dx\n\tlea 2(%%rbp), %%rbp");
    PAIR(MEM, "pop %%rsp", "mov (%%rbp), %%rbp");
    PAIR(MEM, "pop %%sp", "mov (%%rbp), %%r11w\n\tlea 2(%%rbp), %%rbp\n\tmov %%r11w, %%bp");
    PAIR(LOOSE, "push (%%rbx)",
         "mov (%%rbx), %%r11\n\tmov %%r11, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "push 8(%%rsp)\n\tpush 16(%%rsp)",
         "mov 8(%%rbp), %%r11\n\tmov %%r11, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp\n\t"
         "mov 16(%%rbp), %%r11\n\tmov %%r11, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "push -0x20(%%rsp,%%rcx,8)",
         "mov -0x20(%%rbp,%%rcx,8), %%r11\n\tmov %%r11, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "pop 8(%%rsp)",
         "mov (%%rbp), %%r11\n\tmov %%r11, 16(%%rbp)\n\tlea 8(%%rbp), %%rbp");
    PAIR(LOOSE, "pop -16(%%rsp,%%rdx,8)",
         "mov (%%rbp), %%r11\n\tmov %%r11, -8(%%rbp,%%rdx,8)\n\tlea 8(%%rbp), %%rbp");
    PAIR(LOOSE, "pop (%%rbx)", "mov (%%rbp), %%r11\n\tmov %%r11, (%%rbx)\n\tlea 8(%%rbp), %%rbp");
    PAIR(LOOSE, "pop (%%rbx)\n\tpush (%%rbx)\n\tlea 0x80(%%rsp), %%rsp\n\tpop %%rdx",
         "mov (%%rbp), %%r11\n\tmov %%r11, (%%rbx)\n\tlea 8(%%rbp), %%rbp\n\tmov (%%rbx), %%r11\n\t"
         "mov %%r11, -8(%%rbp)\n\tlea 0x78(%%rbp), %%rbp\n\tmov (%%rbp), %%rdx\n\tlea 8(%%rbp), "
         "%%rbp");
    PAIR(LOOSE, "pushf\n\tmovq $0, (%%rsp)", "movq $0, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "mov $0x93d5, %%eax\n\tmovq $0x93, (%%rsp)\n\tpopf",
         "mov $0x93d5, %%eax\n\tmovq $0x93, (%%rbp)\n\tlea 8(%%rbp), %%rbp\n\ttest %%al, "
         "%%al\n\tsahf");
    PAIR(LOOSE, "call 3f\n3: movq $0, (%%rsp)", "movq $0, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "lea 3f(%%rip), %%r11\n\tcall *%%r11\n3: movq $0, (%%rsp)",
         "movq $0, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "lea 3f(%%rip), %%r11\n\tmov %%r11, (%%rsp)\n\tret\n3: movq $0, -8(%%rsp)",
         "movq $0, (%%rbp)\n\tlea 8(%%rbp), %%rbp");
    PAIR(LOOSE,
         "lea 3f(%%rip), %%r11\n\tmov %%r11, (%%rsp)\n\tret $0x7ff8\n3: movq $0, -0x8000(%%rsp)",
         "movq $0, (%%rbp)\n\tlea 0x8000(%%rbp), %%rbp");
    PAIR(LOOSE, "lea 3f(%%rip), %%r11\n\tmov %%r11, (%%rsp)\n\tjmp *(%%rsp)\n3: movq $0, (%%rsp)",
         "movq $0, (%%rbp)");
    PAIR(LOOSE,
         "lea 3f(%%rip), %%r11\n\tmov %%r11, (%%rsp)\n\tcall *(%%rsp)\n3: movq $0, (%%rsp)\n\t"
         "movq $0, 8(%%rsp)",
         "movq $0, (%%rbp)\n\tmovq $0, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp");
    PAIR(LOOSE, "mov %%rsp, %%rbp\n\tleave",
         "mov %%rbp, %%rsp\n\tmov (%%rbp), %%rsp\n\tlea 8(%%rbp), %%rbp");
    if (!on_tcg)
        PAIR(LOOSE, "enter $0, $0",
             "mov %%rsp, -8(%%rbp)\n\tlea -8(%%rbp), %%rbp\n\tmov %%rbp, %%rsp");
}

/* -- Far away and back ----------------------------------------------------------------------------
 */

TEST(stack, wanders_without_use)
{
    /* From one half of the address space to the other in steps, with nothing through RSP in between
     * but what does not touch memory; then a push, a pop, and what is wrong there. */
    map_pages();
    u64 k = map_new(KVA, PG_KRW);
    struct {
        u64 from, to, steps;
    } const ways[] = {
        {UVA + 0x800, UVA2 + 0x800, 0x8000},       {UVA2 + 0x800, UVA + 0x800, 0x400},
        {UVA + 0x800, UVA2 + 0x800, 0x200},        {KVA + 0x800, KVA + 0x7f8000000800, 0x8000},
        {KVA + 0x800, UVA + 0x800, 0x800},         {UVA + 0x800, KVA + 0x800, 0x800},
        {UVA + 0x800, NONCANON + 0x800, 0x8000},   {UVA + 0x800, UVA + 0x1000000800, 0x80},
        {UVA + 0x800, UVA - 0x1000000000, 0x1000}, {UVA2 + 0x800, UVA2 + 0x800, 700},
    };
    static u8 *code[6];
    code[0] = SNIP("1: add %%r8, %%rsp\n\tdec %%r15\n\tjnz 1b\n\tmov (%%rsp), %%rax\n\tpush "
                   "%%r9\n\tpop %%r10");
    code[1] = SNIP("1: lea (%%rsp,%%r8), %%rsp\n\tprefetcht0 (%%rsp)\n\tdec %%r15\n\tjnz 1b\n\t"
                   "mov (%%rsp), %%rax\n\tpush %%r9\n\tpop %%r10");
    code[2] = SNIP(
        "1: mov %%rsp, %%rdx\n\tadd %%r8, %%rdx\n\tmov %%rdx, %%rsp\n\tcall 2f\n2: dec %%r15\n\t"
        "jnz 1b\n\tmov (%%rsp), %%rax\n\tpush %%r9\n\tpop %%r10");
    for (unsigned w = 0; w < sizeof(ways) / sizeof(ways[0]); w++)
        BOTH_CPLS
    for (unsigned c = 0; c < 2; c++) {
        context("way %u, code %u, cpl %u", w, c, cpl);
        struct regs r = regs_for(cpl);
        fill_pages();
        *(u64 *)(k + 0x800) = 0x1234567;
        r.rsp = ways[w].from;
        r.r15 = ways[w].steps;
        r.r8 = (ways[w].to - ways[w].from) / ways[w].steps;
        if (((int64_t)(ways[w].to - ways[w].from)) < 0)
            r.r8 = -(-(ways[w].to - ways[w].from) / ways[w].steps);
        u64 to = r.rsp + r.r8 * r.r15, page = to & ~4095ul;
        run_at(&r, code[c]);
        EQ(T.r.rsp, to);
        EQ(T.r.r15, 0);
        bool there = page == UVA || page == UVA + 4096 || page == UVA2 || page == UVA2 - 4096;
        if (there || (page == KVA && !cpl)) {
            expect(DONE, T.error);
            u64 pa = page == KVA ? k
                                 : page_of[page == UVA          ? 0
                                           : page == UVA + 4096 ? 1
                                           : page == UVA2       ? 3
                                                                : 2];
            EQ(T.r.rax, *(u64 *)(pa + (to & 4095)));
            EQ(T.r.r10, r.r9);
            EQ(*(u64 *)(pa + (to & 4095) - 8), r.r9);
        } else if (to >= NONCANON && to < -NONCANON) {
            expect(on_tcg ? GP : SS, 0);
        } else {
            expect(PF, (cpl ? PF_U : 0) | (page == KVA ? PF_P : 0));
            EQ(T.cr2, to);
        }
    }
    /* steps by constants, as many as a block can hold and more, up to a place far away and there
     * used */
#define STEP(n)   "lea " n "(%%rsp), %%rsp\n\t"
#define STEP4(n)  STEP(n) STEP(n) STEP(n) STEP(n)
#define STEP16(n) STEP4(n) STEP4(n) STEP4(n) STEP4(n)
    static u8 *jump[6];
    jump[0] = SNIP("1: " STEP16("0x10000000") STEP16("0x10000000") STEP16("0x10000000")
                       STEP16("0x10000000") "dec %%r15\n\tjnz 1b\n\tmov (%%rsp), %%rax");
    jump[1] = SNIP("1: " STEP16("0x10000000") "vmaskmovps (%%rsp), %%ymm0, %%ymm1\n\t" STEP16(
        "0x10000000") "cmp %%r15, %%r15\n\tjnz 3f\n\t" STEP16("0x10000000")
                       STEP16("0x10000000") "vmaskmovps %%ymm1, %%ymm0, (%%rsp)\n\tdec "
                                            "%%r15\n\tjnz 1b\n3: mov (%%rsp), %%rax");
    jump[2] = SNIP("1: " STEP16("0x10000000") STEP16("0x10000000") STEP16(
        "0x10000000") "add $0x10000000, %%rsp\n\tcall 3f\n3: lea 0x10000008(%%rsp), "
                      "%%rsp\n\t" STEP4("0x10000000") STEP4("0x10000000") STEP4("0x10000000")
                          STEP("0x10000000")
                              STEP("0x10000000") "dec %%r15\n\tjnz 1b\n\tmov (%%rsp), %%rax");
    jump[3] =
        SNIP("1: add $0x7fffffff, %%rsp\n\tinc %%rsp\n\tdec %%r15\n\tjnz 1b\n\tmov (%%rsp), %%rax");
    jump[4] = SNIP("1: and $-4096, %%rsp\n\tlea 0x10000800(%%rsp), %%rsp\n\tdec %%r15\n\tjnz 1b\n\t"
                   "mov (%%rsp), %%rax");
    asm volatile("pxor %xmm0, %xmm0");
    if (feat.avx)
        asm volatile("vpxor %xmm0, %xmm0, %xmm0");
    BOTH_CPLS
    for (unsigned c = 0; c < 5; c++) {
        u64 step = c < 3 ? 64ul << 28 : c == 3 ? 1ul << 31 : 1ul << 28, n = (UVA2 - UVA) / step;
        if (c == 1 && (!feat.avx || on_tcg)) /* TCG loads what is masked, too */
            continue;
        for (unsigned round = 0; round < 3; round++) {
            context("cpl %u, jump %u, round %u", cpl, c, round);
            struct regs r = regs_for(cpl);
            fill_pages();
            r.rsp = UVA + 0x800, r.r15 = n;
            run_at(&r, jump[c]);
            if (c == 2) { /* whose call is far from anything */
                expect(PF, (cpl ? PF_U : 0) | PF_W);
                EQ(T.r.rsp, UVA + 0x800 + (49ul << 28));
                EQ(T.cr2, UVA + 0x7f8 + (49ul << 28));
                continue;
            }
            expect(DONE, T.error);
            EQ(T.r.rsp, UVA2 + 0x800);
            EQ(T.r.rax, *(u64 *)(page_of[3] + 0x800));
            r.r15 = 2 * n - 3; /* where nothing is */
            run_at(&r, jump[c]);
            expect(PF, cpl ? PF_U : 0);
            EQ(T.r.rsp, UVA + 0x800 + (2 * n - 3) * step);
            EQ(T.cr2, T.r.rsp);
        }
    }
}

/* -- The page under it ----------------------------------------------------------------------------
 */

static u64 grown, mode_of_growth, grown_pages[64];

static bool grow_handler(struct isr_frame *f)
{
    u64 va = read_cr2() & ~4095ul;
    if (va < UVA || va >= UVA + 64 * 4096 || f->rsp - read_cr2() + 256 > 512)
        return false;
    u64 i = (va - UVA) / 4096;
    grown++;
    if (mode_of_growth == 1 && *pte_at(va, 1) & PG_P) { /* copy on write */
        u64 copy = page_alloc();
        memcpy((void *)copy, (void *)grown_pages[i], 4096);
        grown_pages[i] = copy;
        map(va, copy, PG_URW);
    } else {
        grown_pages[i] = page_alloc();
        map(va, grown_pages[i], PG_URW);
    }
    return true;
}

TEST(stack, grows_and_is_copied)
{
    /* Down by pushes and frames into pages that the handler maps, up again by pops; then the same
     * over pages that are read-only. */
    handlers[PF] = grow_handler;
    BOTH_CPLS
    for (mode_of_growth = 0; mode_of_growth < 2; mode_of_growth++)
        for (unsigned round = 0; round < 3; round++) {
            for (unsigned i = 0; i < 64; i++) {
                unmap(UVA + i * 4096);
                if (mode_of_growth) {
                    grown_pages[i] = page_alloc();
                    map(UVA + i * 4096, grown_pages[i], PG_P | PG_U);
                }
            }
            struct regs r = regs_for(cpl);
            grown = 0;
            r.rsp = UVA + 64 * 4096;
            r.rcx = 900, r.rax = 0;
            done(&r,
                 SNIP("mov %%rcx, %%r8\n1: push %%rcx\n\tcall 2f\n\tsub $200, %%rsp\n\tmov %%rcx, "
                      "100(%%rsp)\n\tpush $-1\n\tdec %%rcx\n\tjnz 1b\n\tjmp 3f\n"
                      "2: push %%rbp\n\tmov %%rsp, %%rbp\n\tadd %%rcx, %%rax\n\tleave\n\tret\n"
                      "3: pop %%rdx\n\tadd %%rdx, %%rax\n\tadd 100(%%rsp), %%rax\n\tadd $200, "
                      "%%rsp\n\t"
                      "pop %%rdx\n\tadd %%rdx, %%rax\n\tdec %%r8\n\tjnz 3b"));
            EQ(T.r.rsp, UVA + 64 * 4096);
            EQ(T.r.rax, 3 * (900ul * 901 / 2) - 900);
            EQ(grown, (900ul * 216 + 8 + 4095) / 4096);
        }
    handlers[PF] = NULL;
}

TEST(stack, another_page_under_it)
{
    /* RSP stays while CR3 is switched or the page is mapped anew, in a loop, at CPL 0. */
    u64 a = page_alloc(), b = page_alloc();
    map(UVA, a, PG_KRW);
    u64 *other = space_with(UVA, b | PG_KRW);
    u64 home = read_cr3();
    for (unsigned pcid = 0; pcid <= (feat.pcid ? 1u : 0u); pcid++) {
        context("pcid %u", pcid);
        if (pcid)
            write_cr4(default_cr4 | CR4_PCIDE);
        struct regs r = regs_for(0);
        memset((void *)a, 0, 4096);
        memset((void *)b, 0, 4096);
        r.rsp = UVA + 0x800, r.rcx = 3000, r.rax = 0;
        r.r8 = home | (pcid ? 1ul << 63 : 0), r.r9 = (u64)other | (pcid ? 1ul << 63 | 7 : 0);
        done(&r, SNIP("1: push %%rcx\n\tmov %%r9, %%cr3\n\tincq (%%rsp)\n\tpush %%rax\n\tmov %%r8, "
                      "%%cr3\n\t"
                      "addq $2, (%%rsp)\n\tpop %%rdx\n\tpop %%rdx\n\tadd %%rdx, %%rax\n\tsub $8, "
                      "%%rsp\n\t"
                      "mov %%r9, %%cr3\n\tpop %%rdx\n\tadd %%rdx, %%rax\n\tmov %%r8, %%cr3\n\tdec "
                      "%%rcx\n\t"
                      "jnz 1b"));
        EQ(T.r.rsp, UVA + 0x800);
        EQ(*(u64 *)(b + 0x7f8), 3000);
        EQ(*(u64 *)(a + 0x7f8), 1);
        EQ(T.r.rax, 2 * (3000ul * 3001 / 2));
        EQ(*(u64 *)(a + 0x7f0), 6000);
        write_cr3(home);
        write_cr4(default_cr4);
    }
    /* INVLPG and the other page, then read-only (with CR0.WP), then 2 MiB pages */
    struct regs r = regs_for(0);
    u64 *pte = pte_at(UVA, 1);
    r.rsp = UVA + 0x800, r.rcx = 3000, r.rax = 0;
    r.rbx = (u64)pte, r.r8 = a | PG_KRW, r.r9 = b | PG_KRW, r.r12 = UVA;
    *(u64 *)(a + 0x800) = 1, *(u64 *)(b + 0x800) = 1000;
    u8 *swap =
        SNIP("1: mov %%r8, (%%rbx)\n\tinvlpg (%%r12)\n\tpop %%rdx\n\tadd %%rdx, %%rax\n\t"
             "mov %%r9, (%%rbx)\n\tinvlpg (%%r12)\n\tmov -8(%%rsp), %%rdx\n\tadd %%rdx, %%rax\n\t"
             "push %%rdx\n\tdec %%rcx\n\tjnz 1b");
    done(&r, swap);
    EQ(T.r.rax, 3000 * 1001ul);
    EQ(T.r.rsp, UVA + 0x800);
    r.r9 = b | PG_P;
    const u8 *at;
    u8 *store = SNIP_AT(at, "mov %%r8, (%%rbx)\n\tinvlpg (%%r12)\n\tpush $7\n\tpop %%rdx\n\t"
                            "mov %%r9, (%%rbx)\n\tinvlpg (%%r12)\n662: push %%rdx");
    for (unsigned i = 0; i < 50; i++) {
        fault_at(&r, store, at, PF, PF_P | PF_W);
        EQ(T.r.rsp, UVA + 0x800);
        EQ(T.cr2, UVA + 0x7f8);
    }
    u64 big[2] = {page_alloc_2m(), page_alloc_2m()};
    map_level(UVA2, big[0], PG_KRW | PG_PS, 2);
    *(u64 *)(big[0] + 0x123450) = 5, *(u64 *)(big[1] + 0x123450) = 70;
    r.rbx = (u64)pte_at(UVA2, 2), r.r8 = big[0] | PG_KRW | PG_PS, r.r9 = big[1] | PG_KRW | PG_PS;
    r.r12 = UVA2, r.rsp = UVA2 + 0x123450;
    done(&r, swap);
    EQ(T.r.rax, 3000 * 75ul);
}

TEST(stack, devices_and_nothing)
{
    /* A stack in the local APIC's page, the I/O APIC's, and where nothing is: as by RBP. */
    static const u64 places[] = {APIC_BASE, 0xfec00000, 0xd0000000};
    map_pages();
    for (unsigned p = 0; p < 3; p++)
        for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
            context("cpl %u, 0x%lx", cpl, places[p]);
            map(KVA + 0x10000, places[p], PG_URW | PG_PCD);
            struct regs r = regs_for(cpl);
            r.rsp = KVA + 0x10000 + APIC_TPR, r.r8 = at_cpl(cpl, buffer), r.rcx = 200;
            u8 *sp =
                SNIP("1: mov (%%rsp), %%eax\n\tmov %%eax, (%%rsp)\n\tlea 0x70(%%rsp), %%rsp\n\t"
                     "mov -0x70(%%rsp), %%edx\n\tlea -0x70(%%rsp), %%rsp\n\tcmp %%eax, "
                     "%%edx\n\tjne 2f\n\t"
                     "mov %%rsp, %%r9\n\tmov %%r8, %%rsp\n\tpush %%r9\n\tpop %%rsp\n\tdec "
                     "%%rcx\n\tjnz 1b\n2:");
            done(&r, sp);
            EQ(T.r.rcx, 0);
            EQ(T.r.rsp, r.rsp);
            unmap(KVA + 0x10000);
        }
}

TEST(stack, code_on_it)
{
    /* A trampoline is written by pushes, called where it is, changed and called again. */
    BOTH_CPLS
    {
        u64 flags = PG_URW;
        map_new(UVA, flags);
        map_new(UVA + 4096, flags);
        for (unsigned at = 0x800; at <= 0x1008; at += 0x804) {
            struct regs r = regs_for(cpl);
            r.rsp = UVA + (at & ~7u) + 8, r.rcx = 700, r.rax = 0;
            r.r8 = 0xc3000000b8ul | 0x9090ul << 48; /* mov eax, imm; ret */
            done(&r,
                 SNIP("xor %%ebx, %%ebx\n1: mov %%rcx, %%rdx\n\tshl $8, %%rdx\n\tmovabs "
                      "$0xc300000000b8, "
                      "%%r8\n\tor %%rdx, %%r8\n\tpush %%r8\n\tcall *%%rsp\n\tadd %%rax, %%rbx\n\t"
                      "incl 1(%%rsp)\n\tcall *%%rsp\n\tadd %%rax, %%rbx\n\tadd $8, %%rsp\n\tdec "
                      "%%rcx\n\t"
                      "jnz 1b"));
            EQ(T.r.rbx, 2 * (700ul * 701 / 2) + 700);
            EQ(T.r.rsp, r.rsp);
        }
    }
}

/* -- Interrupts -----------------------------------------------------------------------------------
 */

enum { VEC = 0x61 };
static u64 code_at, cpl_offset, ticks, wrong, wrong_rip, wrong_rsp;
static u64 rsp_at[2][200], sum_at[2][200]; /* in the first turn and the last */
static bool known_at[200];
static u64 gpr_at[200][16], wrong_gpr[16];

static u64 frame_sum(const struct isr_frame *f)
{
    u64 s = 0;
    for (unsigned i = 0; i < 15; i++)
        if (i != 1 && i != 4 && i != 13) /* RCX has the counter for a moment, R13 sums flags up */
            s = (s << 7 | s >> 57) + f->gpr[i] * 0x9e3779b97f4a7c15ul;
    return s;
}

static bool step_handler(struct isr_frame *f)
{
    u64 off = f->rip - code_at - cpl_offset;
    write_dr6(0xffff0ff0);
    for (unsigned turn = off < 200 ? known_at[off] : 2; turn < 2; turn++) {
        rsp_at[turn][off] = f->rsp;
        sum_at[turn][off] = frame_sum(f);
        memcpy(gpr_at[off], f->gpr, sizeof(gpr_at[off]));
        known_at[off] = true;
    }
    return true;
}

static bool tick_handler(struct isr_frame *f)
{
    u64 off = f->rip - code_at - cpl_offset;
    ticks++;
    bool ok = off >= 200 || !off;
    for (unsigned turn = 0; turn < 2 && !ok && known_at[off]; turn++)
        ok = rsp_at[turn][off] == f->rsp && sum_at[turn][off] == frame_sum(f);
    if (!ok && !wrong++) {
        wrong_rip = off, wrong_rsp = f->rsp;
        memcpy(wrong_gpr, f->gpr, sizeof(wrong_gpr));
    }
    apic_write(APIC_EOI, 0);
    apic_timer_oneshot(VEC, 500 + (u32)(random64() % 6000));
    return true;
}

TEST(stack, interrupted_anywhere)
{
    /* Each turn is the same but for R15, which counts: what single steps saw is what any interrupt
     * must find, but for flags that nothing will read (docs/deviations.md): those that are read are
     * summed up. */
    static u8 *code[3];
    map_pages();
    code[0] = SNIP(
        "nop\n1: mov %%r8, %%rsp\n\tadd $-128, %%rsp\n\tpush %%rsp\n\tpop %%rdx\n\tpush "
        "%%r10\n\tpop "
        "%%r11\n\t"
        "cmp %%r12, %%rsp\n\tpush (%%rbx)\n\tpop 8(%%rbx)\n\tpush 16(%%rsp)\n\tpop 8(%%rsp)\n\t"
        "movq $3, (%%rsp)\n\tsbb %%rdx, (%%rsp)\n\tlea 0x10000000(%%rsp), %%rsp\n\tlea "
        "-0x0ffffff8(%%rsp), %%rsp\n\t"
        "and $-64, %%rsp\n\tlahf\n\tmovzx %%ah, %%eax\n\tlea (%%r13,%%rax), %%r13\n\tseto "
        "%%al\n\tlea (%%r13,%%rax), %%r13\n\tmov %%rsp, (%%rsp)\n\tmov (%%rsp), %%rsp\n\tadd "
        "(%%rsp), %%rsp\n\t"
        "mov %%r8, %%rsp\n\tmov %%rsp, %%rbp\n\tlea -1(%%r15), %%r15\n\t"
        "xchg %%rcx, %%r15\n\tjrcxz 2f\n\txchg %%rcx, %%r15\n\tjmp 1b\n2: xchg %%rcx, %%r15");
    code[1] = SNIP(
        "nop\n1: mov %%r8, %%rsp\n\tstc\n\tcall 3f\n\tsbb $3, %%rsp\n\tadc $3, "
        "%%rsp\n\tlahf\n\tmovzx %%ah, %%eax\n\tlea (%%r13,%%rax), %%r13\n\tseto %%al\n\tlea "
        "(%%r13,%%rax), %%r13\n\tpush "
        "$5\n\tmovq "
        "$0, (%%rbx)\n\t"
        "xadd %%rsp, (%%rbx)\n\txchg %%rsp, (%%rbx)\n\txchg %%rsp, %%rdx\n\txchg %%rsp, %%rdx\n\t"
        "mov %%r8, (%%rbx)\n\tmov %%r8, %%rdx\n\tand %%bh, -8(%%rsp)\n\tmov %%rbp, "
        "%%rsp\n\tleave\n\t"
        "mov %%r8, %%rbp\n\tlea -1(%%r15), %%r15\n\t"
        "xchg %%rcx, %%r15\n\tjrcxz 2f\n\txchg %%rcx, %%r15\n\tjmp 1b\n2: xchg %%rcx, %%r15\n\tjmp "
        "5f\n"
        "3: push %%rbp\n\tmov %%rsp, %%rbp\n\tsub $0x40, %%rsp\n\tmov %%rbp, 8(%%rsp)\n\tmov "
        "8(%%rsp), "
        "%%rdx\n\tleave\n\tret $16\n5:");
    handlers[VEC] = tick_handler;
    BOTH_CPLS
    for (unsigned c = 0; c < 2; c++) {
        struct regs r = regs_for(cpl);
        context("cpl %u, code %u", cpl, c);
        r.r8 = r.rbp = r.rdx = UVA + 4096 + 0x800;
        r.rbx = UVA + 0x400;
        fill_pages();
        code_at = (u64)code[c], cpl_offset = cpl ? USER_OFFSET : 0;
        memset(known_at, 0, sizeof(known_at));
        handlers[DB] = step_handler;
        for (unsigned turns = 1; turns <= 4;
             turns += 3) { /* the last turns are the same as each other */
            r.rflags = F_TF | 2, r.r15 = 40;
            done(&r, code[c]);
        }
        handlers[DB] = NULL;
        r.rflags = 2, r.r15 = 20000;
        done(&r, code[c]);
        struct regs want = T.r;
        ticks = wrong = 0;
        r.rflags = F_IF | 2;
        u64 start = rdtsc();
        for (unsigned round = 0; ticks < 300 && rdtsc() - start < 3000000000ul; round++) {
            r.r15 = 20000;
            apic_timer_oneshot(VEC, 1000);
            done(&r, code[c]);
            apic_write(APIC_LVTT, 0x10000);
            for (unsigned i = 0; i < 16; i++)
                check_eq("register", (&T.r.rax)[i], (&want.rax)[i]);
        }
        for (unsigned i = 0; wrong && i < 15; i++)
            if (i != 1 && i != 4 && i != 13)
                check_eq("register at an interrupt", wrong_gpr[i], gpr_at[wrong_rip][i]);
        if (wrong)
            fail("%lu of %lu interrupts found another state, first at snippet + 0x%lx, rsp 0x%lx, "
                 "want 0x%lx",
                 wrong, ticks, wrong_rip, wrong_rsp, rsp_at[1][wrong_rip]);
    }
}

/* -- Doors ----------------------------------------------------------------------------------------
 */

enum { DOORS = 24 };

static void slot_alike(u64 base, u64 *to, unsigned n, unsigned salt)
{
    /* The same sum of two parts of the address, modulo 65536, as this project's jump cache has it;
     * and others that differ in single bits. */
    unsigned want = 0x4321 + salt * 64;
    u64 last = 0;
    unsigned found = 0;
    for (u64 a = base; a < base + 0x200000 - 64 && found < n; a++)
        if (((a + (a >> 6)) & 0xffff) == want && a >= last + 64) {
            to[found++] = a;
            last = a;
        }
    for (unsigned i = 0; found < n; i++)
        to[found++] = base + 0x1000 * (1u << i % 8) + 0x40 * i + 0x800;
}

TEST(doors, that_share_a_slot)
{
    /* Functions that add a constant and the carry, called in turn through pointers and by RET; the
     * constants change in between. */
    static u64 target[DOORS + 8];
    u64 big = page_alloc_2m();
    map_level(UVA, big, PG_URW | PG_PS, 2);
    u64 data = map_new(UVA2, PG_URW);
    u8 *by_call = SNIP(
        "1: lea (%%rsi,%%rdi,8), %%rbx\n\tinc %%rdi\n\tcmp %%r9, %%rdi\n\tcmove %%r11, %%rdi\n\t"
        "bt $1, %%ecx\n\tcall *(%%rbx)\n\tbt $0, %%ecx\n\tmov (%%rbx), %%rdx\n\tcall *%%rdx\n\t"
        "adc $0, %%rax\n\tdec %%rcx\n\tjnz 1b");
    u8 *by_ret = SNIP(
        "1: mov (%%rsi,%%rdi,8), %%rbx\n\tinc %%rdi\n\tcmp %%r9, %%rdi\n\tcmove %%r11, %%rdi\n\t"
        "lea 2f(%%rip), %%rdx\n\tpush %%rdx\n\tpush %%rbx\n\tbt $1, %%ecx\n\tret\n2: "
        "lea 3f(%%rip), %%rdx\n\tpush %%rdx\n\tbt $0, %%ecx\n\tjmp *%%rbx\n3: adc $0, %%rax\n\t"
        "dec %%rcx\n\tjnz 1b");
    for (unsigned salt = 0; salt < 6; salt++)
        BOTH_CPLS
        {
            unsigned n = salt % 3 == 0 ? 2 : salt % 3 == 1 ? 3 : DOORS;
            slot_alike(UVA, target, n, salt * 7 + cpl);
            for (unsigned i = 0; salt >= 3 && i < n; i++) /* what returns look at alone */
                target[i] = UVA + 0x1240 + 0x10000ul * i;
            for (unsigned round = 0; round < 12; round++) {
                context("cpl %u, salt %u, round %u", cpl, salt, round);
                static u32 imm[DOORS + 8];
                for (unsigned i = 0; i < n; i++) {
                    u8 *p = (u8 *)(big + (target[i] - UVA));
                    imm[i] = (u32)random64() & 0x7fffffff;
                    p[0] = 0x48, p[1] = 0x15; /* adc rax, imm32; ret: the carry out is 0 */
                    memcpy(p + 2, &imm[i], 4);
                    p[6] = 0xc3;
                    ((u64 *)data)[i] = target[i];
                }
                u64 count = round < 3 ? 40 : round < 10 ? 3000 : 30000;
                u64 want = 0;
                for (u64 c = count, i = 0; c; c--, i = (i + 1) % n)
                    want += 2ul * imm[i] + (c & 1) + (c >> 1 & 1);
                struct regs r = regs_for(cpl);
                r.rsi = UVA2, r.rdi = r.r11 = 0, r.r9 = n, r.rax = 0, r.rcx = count;
                done(&r, round & 1 ? by_ret : by_call);
                EQ(T.r.rax, want);
                EQ(T.r.rsp, r.rsp);
            }
        }
}
