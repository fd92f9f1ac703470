/*
 * Checks the decoder against the host CPU: the only authority on what an instruction is.
 *
 * Every test case is an instruction generated from its number: systematically through the opcode
 * maps, or at random.  A forked, fenced child (seccomp: no system call but rt_sigreturn and exit)
 * executes it natively, single-stepped, with its bytes at the end of a page behind which nothing is
 * mapped, and compares what happened with what insn_decode() said:
 *
 *   validity   OP_INVALID if and only if the CPU raises #UD (or #GP for more than 15 bytes)
 *   length     one byte less faults on the fetch; all bytes do not
 *   size       the memory operand fits exactly before an unmapped page
 *   writes     a read-only page faults if and only if INSN_MEM_WRITE
 *   access     an unmapped operand faults if and only if INSN_MEM
 *   effects    registers and flags outside gpr_written and flags_written keep their values; a
 *              second run with other values in everything outside gpr_read, flags_read and a
 *              not-read memory operand gives the same results, vector state included
 *
 * usage: decode_oracle [--stride N] [--offset N] [--random N] [--seed N] [--all] [--list]
 * Exit status 1 if anything disagrees that is not explained in excused(); 77 (skipped) if the host
 * is not an Intel processor, whose rules the decoder follows where makers differ.
 */
#include <cpuid.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "translator/insn.h"

#define PAGE        4096UL
#define CODE_PAGE   0x30000000UL /* RWX, one page; the next one is not mapped */
#define DATA_BASE   0x20000000UL /* DATA_SIZE bytes read-write, then nothing */
#define DATA_SIZE   (64 * 1024UL)
#define DATA_END    (DATA_BASE + DATA_SIZE)
#define DATA_MID    (DATA_BASE + DATA_SIZE / 2)
#define RO_BASE     0x24000000UL /* the same, read-only */
#define RO_SIZE     (16 * 1024UL)
#define RO_END      (RO_BASE + RO_SIZE)
#define NONE_PAGE   0x28000000UL /* never mapped */
#define FPSTATE_MAX 16384
#define DATA_FILL   0x01

/* -- Results, in memory shared with the parent ------------------------------------------------ */

enum kind {
    CPU_VALID,    /* decoder says invalid, the CPU executes it                                 */
    CPU_UD,       /* decoder says valid, the CPU does not know it                              */
    LENGTH,       /* different length                                                          */
    MEM_NONE,     /* decoder says no access, but there is one                                  */
    MEM_SMALLER,  /* the CPU touches more bytes than decoded                                   */
    MEM_LARGER,   /* the CPU touches fewer bytes                                               */
    MEM_WRITES,   /* writes, but is not decoded as writing                                     */
    MEM_NO_WRITE, /* decoded as writing, but does not                                          */
    GPR_WRITES,   /* a register outside gpr_written changed                                    */
    GPR_READS,    /* results depend on something outside what is decoded as read               */
    FLAG_WRITES,  /* a flag outside flags_written changed                                      */
    FLAG_DEPENDS, /* a flag decoded as overwritten keeps its old value (note only)             */
    NO_PRIV,      /* decoded as privileged, but executes                                       */
    CRASH,        /* the child died                                                            */
    KIND_COUNT
};

static const char *const kind_name[KIND_COUNT] = {
    "decoder-invalid-but-cpu-executes",
    "decoder-valid-but-cpu-#UD",
    "length",
    "memory-access-not-decoded",
    "memory-operand-larger-than-decoded",
    "memory-operand-smaller-than-decoded",
    "memory-write-not-decoded",
    "decoded-as-memory-write-but-is-none",
    "gpr-write-not-decoded",
    "gpr-read-not-decoded",
    "flag-write-not-decoded",
    "flag-kept (note)",
    "privileged-but-executes",
    "child-crash",
};

#define MAX_REPORTS 4096
struct report {
    uint8_t kind, len;
    uint8_t bytes[15];
    uint32_t key; /* what makes reports "the same" */
    uint64_t count;
    char detail[96];
};

struct shared {
    volatile uint64_t index; /* the case being run */
    volatile uint64_t cases, executions, invalid_agreed;
    volatile int done;
    uint8_t current[15];
    unsigned report_count;
    struct report reports[MAX_REPORTS];
};

static struct shared *shared;

/* -- Native execution ---------------------------------------------------------------------------
 */

struct state {
    uint64_t gpr[16]; /* enum gpr order */
    uint64_t rip, flags;
};

struct outcome {
    struct state s;
    int trap; /* exception vector */
    uint64_t err, cr2;
    uint8_t fp[FPSTATE_MAX];
};

static const int greg_of[16] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static struct {
    int phase; /* 0: idle, 1: enter the test, 2: in the test */
    const struct state *in;
    struct outcome *out;
    gregset_t saved;
    uint8_t saved_fp[FPSTATE_MAX];
} exec;

static uint8_t fp_template[FPSTATE_MAX];
static unsigned fp_size;

static void on_signal(int sig, siginfo_t *si, void *ctx)
{
    ucontext_t *uc = ctx;
    long long *g = uc->uc_mcontext.gregs;
    uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;

    if (exec.phase == 1) {
        memcpy(exec.saved, g, sizeof(exec.saved));
        memcpy(exec.saved_fp, fp, fp_size);
        for (int i = 0; i < 16; i++)
            g[greg_of[i]] = (long long)exec.in->gpr[i];
        g[REG_RIP] = (long long)exec.in->rip;
        g[REG_EFL] = (long long)(exec.in->flags | FL_TF | FL_IF | FL_FIXED1);
        memcpy(fp, fp_template, fp_size);
        exec.phase = 2;
    } else if (exec.phase == 2) {
        struct outcome *o = exec.out;
        for (int i = 0; i < 16; i++)
            o->s.gpr[i] = (uint64_t)g[greg_of[i]];
        o->s.rip = (uint64_t)g[REG_RIP];
        o->s.flags = (uint64_t)g[REG_EFL] & ~(uint64_t)(FL_TF | FL_RF);
        o->trap = (int)g[REG_TRAPNO];
        o->err = (uint64_t)g[REG_ERR];
        o->cr2 = (uint64_t)g[REG_CR2];
        memcpy(o->fp, fp, fp_size);
        memcpy(g, exec.saved, sizeof(exec.saved));
        memcpy(fp, exec.saved_fp, fp_size);
        exec.phase = 0;
    } else {
        _exit(99);
    }
}

/* Runs the bytes, of which the first `placed` are at the end of the code page. */
static void run(const struct state *in, const uint8_t *bytes, unsigned placed, struct outcome *out)
{
    struct state s = *in;

    s.rip = CODE_PAGE + PAGE - placed;
    memcpy((void *)s.rip, bytes, placed);
    exec.in = &s;
    exec.out = out;
    exec.phase = 1;
    __asm__ volatile("int3" ::: "memory");
    shared->executions++;
}

static bool fetch_fault(const struct outcome *o)
{
    return o->trap == EXC_PF && o->cr2 == CODE_PAGE + PAGE && (o->err & PF_I);
}

/* Offset and size of an XSAVE component in the signal frame. */
static void xstate_component(unsigned n, unsigned *offset, unsigned *size)
{
    unsigned a = 0xd, b = 0, c = n, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    *size = a;
    *offset = b;
}

/*
 * Vector registers: bytes with the sign bit set, so that vector masks select everything; opmasks
 * all ones; a half-filled x87 stack.
 */
static void make_template(void)
{
    static struct outcome o;
    struct state s = {.flags = FL_FIXED1};
    uint8_t nop = 0x90;
    uint64_t rnd = 88172645463325252ULL;

    fp_size = sizeof(struct _libc_fpstate);
    s.gpr[RSP] = DATA_MID;
    run(&s, &nop, 1, &o); /* with fp_size as it is: only to learn the frame's size */
    uint32_t magic, xsize;
    memcpy(&magic, o.fp + 464, 4);
    memcpy(&xsize, o.fp + 480, 4);
    if (magic == 0x46505853 && xsize <= FPSTATE_MAX)
        fp_size = xsize;
    memcpy(fp_template, o.fp, sizeof(struct _libc_fpstate));
    exec.phase = 0;
    run(&s, &nop, 1, &o);

    uint8_t *fp = fp_template;
    memcpy(fp, o.fp, fp_size);
    struct {
        unsigned off, size;
    } area[] = {{160, 256}, {0, 0}, {0, 0}, {0, 0}};
    uint64_t xfeatures = 3;
    memcpy(&xfeatures, fp + 472, 8);
    if (fp_size > 512 && (xfeatures & 4))
        xstate_component(2, &area[1].off, &area[1].size);
    if (fp_size > 512 && (xfeatures & 0xe0) == 0xe0) {
        unsigned off, size;
        xstate_component(5, &off, &size);
        memset(fp + off, 0xff, size);
        xstate_component(6, &area[2].off, &area[2].size);
        xstate_component(7, &area[3].off, &area[3].size);
    }
    for (unsigned a = 0; a < 4; a++) {
        for (unsigned i = 0; i < area[a].size; i++) {
            rnd ^= rnd << 13;
            rnd ^= rnd >> 7;
            rnd ^= rnd << 17;
            fp[area[a].off + i] = (uint8_t)(rnd | 0x80);
        }
    }
    fp[0] = 0x7f; /* FCW */
    fp[1] = 0x03;
    fp[2] = 0; /* FSW: top of stack 4 */
    fp[3] = 4 << 3;
    fp[4] = 0xf0; /* abridged FTW: 4 registers full */
    for (unsigned i = 0; i < 8; i++) {
        static const uint8_t value[10] = {1, 2, 3, 4, 5, 6, 7, 0xc0, 0x00, 0x40};
        memcpy(fp + 32 + 16 * i, value, 10);
        fp[32 + 16 * i] = (uint8_t)i;
    }
    uint32_t mxcsr = 0x1f80;
    memcpy(fp + 24, &mxcsr, 4);
    if (fp_size > 512) {
        uint64_t bv = xfeatures & 0xe7;
        memcpy(fp + 512, &bv, 8);
    }
}

/* -- Reports --------------------------------------------------------------------------------------
 */

static uint32_t report_key(const struct insn *in, enum kind kind, const uint8_t *bytes)
{
    /* Same kind, same opcode: one report. */
    uint32_t key = (uint32_t)kind << 27 | (uint32_t)in->enc << 24 | (uint32_t)in->map << 20 |
                   (uint32_t)in->opcode << 8;
    if (in->op == OP_INVALID) { /* no opcode known: by the first bytes after legacy prefixes */
        unsigned i = 0;
        while (i < 10 && (bytes[i] == 0x66 || bytes[i] == 0xf2 || bytes[i] == 0xf3 ||
                          bytes[i] == 0x67 || bytes[i] == 0xf0 || (bytes[i] & 0xf0) == 0x40))
            i++;
        key = (uint32_t)kind << 27 | bytes[i] << 19;
        if (bytes[i] == 0x0f)
            key |= (uint32_t)bytes[i + 1] << 11;
        else if (bytes[i] == 0x62)
            key |= (uint32_t)(bytes[i + 1] & 7) << 16 | (uint32_t)bytes[i + 4] << 4;
        else if (bytes[i] == 0xc4)
            key |= (uint32_t)(bytes[i + 1] & 7) << 16 | (uint32_t)bytes[i + 3] << 4;
        else
            key |= (uint32_t)bytes[i + 1] << 2;
    } else {
        key |= in->vec_len ? 1 : 0;
    }
    return key;
}

static void report(enum kind kind, const struct insn *in, const uint8_t *bytes, unsigned len,
                   const char *detail)
{
    uint32_t key = report_key(in, kind, bytes);

    for (unsigned i = 0; i < shared->report_count; i++) {
        if (shared->reports[i].key == key && shared->reports[i].kind == kind) {
            shared->reports[i].count++;
            return;
        }
    }
    if (shared->report_count == MAX_REPORTS)
        return;
    struct report *r = &shared->reports[shared->report_count];
    r->kind = (uint8_t)kind;
    r->len = (uint8_t)len;
    memcpy(r->bytes, bytes, 15);
    r->key = key;
    r->count = 1;
    snprintf(r->detail, sizeof(r->detail), "%s %s: %s", in->mnemonic, insn_op_name(in->op), detail);
    shared->report_count++;
}

/* -- What is known to differ, and why ---------------------------------------------------------- */

static unsigned prefixes(const uint8_t *bytes)
{
    unsigned i = 0;

    while (i < 15 && (bytes[i] == 0x66 || bytes[i] == 0x67 || bytes[i] == 0xf0 ||
                      bytes[i] == 0xf2 || bytes[i] == 0xf3 || (bytes[i] & 0xf0) == 0x40 ||
                      (bytes[i] & 0xe7) == 0x26 || (bytes[i] & 0xfe) == 0x64))
        i++;
    return i;
}

/* Opcodes that the decoder hides on purpose and the host may have. */
static bool hidden(const uint8_t *bytes)
{
    unsigned i = 0;
    bool f3 = false, p66 = false;

    for (; i < 12; i++) {
        uint8_t b = bytes[i];
        if (b == 0xf3)
            f3 = true;
        if (b == 0x66)
            p66 = true;
        if (!(b == 0x66 || b == 0xf2 || b == 0xf3 || b == 0x67 || b == 0x26 || b == 0x2e ||
              b == 0x36 || b == 0x3e || b == 0x64 || b == 0x65 || (b & 0xf0) == 0x40))
            break;
    }
    const uint8_t *o = bytes + i;
    if ((o[0] == 0xc6 || o[0] == 0xc7) && o[1] == 0xf8)
        return true; /* XABORT, XBEGIN */
    if (o[0] != 0x0f)
        return false;
    if (o[1] == 0x01 && (o[2] == 0xd5 || o[2] == 0xd6 || o[2] == 0xee || o[2] == 0xef ||
                         o[2] == 0xe8 || o[2] == 0xe9 || o[2] == 0xc0 || o[2] == 0xcf ||
                         o[2] == 0xd7 || o[2] == 0xc5 || (o[2] >= 0xcc && o[2] <= 0xce)))
        return true; /* XEND, XTEST, RDPKRU, WRPKRU, XSUSLDTRK, XRESLDTRK, SGX, PCONFIG, TDX */
    if (o[1] == 0xc7 && (o[2] >> 3 & 7) >= 3 && o[2] < 0xc0)
        return true; /* XRSTORS, XSAVES: #GP here */
    if (o[1] == 0xae && f3 && (o[2] >> 3 & 7) >= 4)
        return true; /* PTWRITE, INCSSP, UMONITOR, CLRSSBSY */
    if (o[1] == 0x38 && o[2] == 0xf8)
        return true; /* MOVDIR64B, ENQCMD(S) */
    if (o[1] == 0x38 && (o[2] == 0xf5 || o[2] == 0xf6) && !f3)
        return true; /* WRSS, WRUSS */
    if (o[1] == 0x37 || o[1] == 0xaa)
        return true; /* GETSEC, RSM */
    (void)p66;
    return false;
}

/* Not executed: they would take the process apart, or the kernel emulates them. */
static bool not_executable(const struct insn *in)
{
    switch (in->op) {
    case OP_SYSCALL:
    case OP_SYSRET:
    case OP_SYSENTER:
    case OP_SYSEXIT:
    case OP_INT:
    case OP_INT1:
    case OP_INTO:
    case OP_IRET:
    case OP_RETF:
    case OP_JMP_FAR:
    case OP_CALL_FAR:
    case OP_MOV_TO_SEG:
    case OP_POP_SEG:
    case OP_LOAD_FAR_PTR:
    case OP_WRFSBASE:
    case OP_WRGSBASE:
    case OP_POPF:
    case OP_XRSTOR:
    case OP_FXRSTOR:
    case OP_SGDT:
    case OP_SIDT:
    case OP_SLDT:
    case OP_STR:
    case OP_SMSW: /* UMIP emulation */
        return true;
    default:
        return false;
    }
}

/* Privileged instructions that raise #UD, not #GP, at CPL 3. */
static bool ud_at_cpl3(const struct insn *in)
{
    return in->op == OP_MONITOR || in->op == OP_MWAIT || in->op == OP_STAC || in->op == OP_CLAC;
}

/* Results that change from run to run. */
static bool not_deterministic(const struct insn *in)
{
    switch (in->op) {
    case OP_RDTSC:
    case OP_RDTSCP:
    case OP_RDPMC:
    case OP_CPUID:
    case OP_XSAVE:
    case OP_XSAVEC:
    case OP_XSAVEOPT:
    case OP_RDPID:
    case OP_PUSHF:
        return true;
    default:
        return !strcmp(in->mnemonic, "rdrand") || !strcmp(in->mnemonic, "rdseed");
    }
}

/* -- One case
 * --------------------------------------------------------------------------------------- */

static uint64_t rng_state;

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static uint64_t fs_base, gs_base;

/* Chooses address registers (or the displacement in `bytes`) so that the operand is at target. */
static bool place(const struct insn *in, struct state *s, uint8_t *bytes, uint64_t target)
{
    const struct insn_mem *m = &in->mem;
    uint64_t seg = m->seg == SEG_FS ? fs_base : m->seg == SEG_GS ? gs_base : 0;
    uint64_t index = 0;

    if (seg && in->addr_size == 4)
        return false;
    if (in->flags & INSN_VSIB)
        return false;
    target -= seg;
    /* Where the stack pointer is moved by the instruction itself. */
    if ((in->op == OP_POP || in->op == OP_PUSH || in->op == OP_CALL_IND) &&
        (m->base == RSP || m->index == RSP))
        return false;
    if (m->index != REG_NONE && m->index != m->base) {
        s->gpr[m->index] = 0x20;
        index = 0x20u * m->scale;
    }
    if (m->base == REG_NONE || m->base == BASE_RIP) {
        int64_t disp = (int64_t)(target - index);
        if (m->base == BASE_RIP)
            disp -= (int64_t)(CODE_PAGE + PAGE);
        if (in->disp_size != 4 || disp != (int32_t)disp)
            return false;
        memcpy(bytes + in->disp_off, &disp, 4);
    } else if (m->base == m->index) {
        uint64_t sum = target - (uint64_t)m->disp;
        if (in->addr_size != 8 || sum % (1u + m->scale))
            return false;
        s->gpr[m->base] = sum / (1u + m->scale);
    } else {
        s->gpr[m->base] = target - (uint64_t)m->disp - index;
        if (in->addr_size == 4)
            s->gpr[m->base] = (s->gpr[m->base] & 0xffffffff) | rng() << 32;
    }
    if (in->op == OP_BT_MEM_REG) {
        if (in->reg == m->base || in->reg == m->index)
            return false;
        s->gpr[in->reg] = 0;
    }
    return true;
}

static bool data_fault(const struct outcome *o, uint64_t lo, uint64_t hi)
{
    return o->trap == EXC_PF && !(o->err & PF_I) && o->cr2 >= lo && o->cr2 < hi;
}

static void default_state(struct state *s)
{
    for (int i = 0; i < 16; i++)
        s->gpr[i] = DATA_MID + 0x140 * (uint64_t)(i + 1);
    s->gpr[RCX] = 2;
    s->gpr[RDX] = 1;
    s->gpr[RAX] = 0x123456789abcdef0;
    s->rip = 0;
    s->flags = FL_FIXED1;
}

static void fill_data(uint8_t value)
{
    memset((void *)(DATA_END - 1024), value, 1024);
    memset((void *)DATA_MID - 2048, value, 10240);
}

/* Compares what two runs left behind; returns a description of the first difference or NULL. */
static const char *compare_fp(const struct outcome *a, const struct outcome *b)
{
    static char text[64];

    /* FOP, FIP and FDP (8-23) hold addresses; 416-511 are reserved and software-defined. */
    if (memcmp(a->fp, b->fp, 6))
        return "x87 control or status";
    for (unsigned i = 24; i < fp_size; i++) {
        if (i == 416)
            i = 576;
        if (i >= fp_size)
            break;
        if (a->fp[i] != b->fp[i]) {
            snprintf(text, sizeof(text), "vector state at offset %u", i);
            return text;
        }
    }
    return NULL;
}

static void check_effects(const struct insn *in, const uint8_t *code, const struct state *base)
{
    static struct outcome a, b;
    static uint8_t mem_a[12288];
    const struct state sa = *base;
    struct state sb = *base;
    char text[96];

    fill_data(DATA_FILL);
    run(&sa, code, in->len, &a);
    if (a.trap != EXC_DB && a.trap != EXC_DE && a.trap != EXC_GP && a.trap != EXC_PF)
        return;
    memcpy(mem_a, (void *)(DATA_MID - 2048), 10240);
    memcpy(mem_a + 10240, (void *)(DATA_END - 1024), 1024);

    for (int i = 0; i < 16; i++) {
        if (!(in->gpr_read >> i & 1))
            sb.gpr[i] = rng();
    }
    sb.flags ^= FL_HOST & ~in->flags_read;
    const bool store = in->op == OP_COPY && !(in->flags & INSN_MASKED) &&
                       (in->flags & (INSN_MEM_WRITE | INSN_MEM_READ)) == INSN_MEM_WRITE;
    fill_data(store ? 0x5a : DATA_FILL);
    run(&sb, code, in->len, &b);

    if (a.trap != b.trap || a.s.rip != b.s.rip) {
        snprintf(text, sizeof(text), "trap %d at %#lx, then %d at %#lx", a.trap,
                 (unsigned long)a.s.rip, b.trap, (unsigned long)b.s.rip);
        report(GPR_READS, in, code, in->len, text);
        return;
    }
    if (a.trap != EXC_DB)
        return;
    for (int i = 0; i < 16; i++) {
        bool written = in->gpr_written >> i & 1;
        if (!written && (a.s.gpr[i] != sa.gpr[i] || b.s.gpr[i] != sb.gpr[i])) {
            snprintf(text, sizeof(text), "register %d", i);
            report(GPR_WRITES, in, code, in->len, text);
        }
        if (written && a.s.gpr[i] != b.s.gpr[i]) {
            snprintf(text, sizeof(text), "register %d: %#lx or %#lx", i, (unsigned long)a.s.gpr[i],
                     (unsigned long)b.s.gpr[i]);
            report(GPR_READS, in, code, in->len, text);
        }
    }
    uint64_t keep = FL_HOST & ~in->flags_written;
    if (((a.s.flags ^ sa.flags) & keep) || ((b.s.flags ^ sb.flags) & keep)) {
        snprintf(text, sizeof(text), "flags %#lx",
                 (unsigned long)(((a.s.flags ^ sa.flags) | (b.s.flags ^ sb.flags)) & keep));
        report(FLAG_WRITES, in, code, in->len, text);
    }
    if (!(in->flags & INSN_FLAGS_COND) && ((a.s.flags ^ b.s.flags) & in->flags_written)) {
        snprintf(text, sizeof(text), "flags %#lx",
                 (unsigned long)((a.s.flags ^ b.s.flags) & in->flags_written));
        report(FLAG_DEPENDS, in, code, in->len, text);
    }
    const char *what = compare_fp(&a, &b);
    if (what)
        report(GPR_READS, in, code, in->len, what);
    if ((in->flags & INSN_MEM_WRITE) && in->mem.size && !(in->flags & INSN_MASKED) &&
        in->op == OP_COPY && place(in, &sb, (uint8_t[15]){0}, 0)) {
        /* What the store left: compare within the operand only, the rest was filled in anew. */
        const struct insn_mem *m = &in->mem;
        uint64_t ea = (uint64_t)m->disp;
        if (m->base < 16)
            ea += sa.gpr[m->base];
        if (m->index < 16)
            ea += sa.gpr[m->index] * m->scale;
        if (in->addr_size == 4)
            ea = (uint32_t)ea;
        ea += m->seg == SEG_FS ? fs_base : m->seg == SEG_GS ? gs_base : 0;
        if (m->base < 16 && ea >= DATA_MID - 2048 && ea + m->size <= DATA_MID + 8192 &&
            memcmp((void *)ea, mem_a + (ea - (DATA_MID - 2048)), m->size))
            report(GPR_READS, in, code, in->len, "stored bytes differ");
    }
}

static void check_memory(const struct insn *in, const uint8_t *code, const struct state *base)
{
    static struct outcome o;
    struct state s = *base;
    uint8_t bytes[15];
    const bool access = in->flags & INSN_MEM, writes = in->flags & INSN_MEM_WRITE;
    unsigned size = in->mem.size;

    memcpy(bytes, code, 15);
    if (!place(in, &s, bytes, NONE_PAGE + 0x40))
        return;
    run(&s, bytes, in->len, &o);
    if (data_fault(&o, NONE_PAGE, NONE_PAGE + 2 * PAGE) != access && o.trap != EXC_GP) {
        /* CLFLUSH and the like do not fault on every processor; everything else must. */
        report(access ? MEM_LARGER : MEM_NONE, in, code, in->len,
               access ? "no access at all" : "unmapped operand faults");
        return;
    }
    if (!access || size == 0)
        return;

    fill_data(DATA_FILL);
    s = *base;
    if (place(in, &s, bytes, DATA_END - size)) {
        run(&s, bytes, in->len, &o);
        if (data_fault(&o, DATA_END, DATA_END + PAGE))
            report(MEM_SMALLER, in, code, in->len, "touches more than decoded");
    }
    s = *base;
    uint64_t over = in->flags & INSN_MEM_ALIGNED ? DATA_END : DATA_END - size + 1;
    if (place(in, &s, bytes, over)) {
        run(&s, bytes, in->len, &o);
        if (!data_fault(&o, DATA_END, DATA_END + PAGE) && o.trap != EXC_GP)
            report(MEM_LARGER, in, code, in->len, "touches less than decoded");
    }
    s = *base;
    if (place(in, &s, bytes, RO_END - (size + 63) / 64 * 64)) {
        run(&s, bytes, in->len, &o);
        bool wrote = data_fault(&o, RO_BASE, RO_END) && (o.err & PF_W);
        if (wrote && !writes)
            report(MEM_WRITES, in, code, in->len, "");
        if (!wrote && writes && o.trap != EXC_GP)
            report(MEM_NO_WRITE, in, code, in->len, "");
    }
}

static void run_case(const uint8_t *code)
{
    static struct outcome o;
    struct insn in;
    struct state s;
    uint8_t bytes[15];
    char text[96];

    shared->cases++;
    memcpy(shared->current, code, 15);
    insn_decode(&in, code, 15, MODE_64);
    if (in.op == OP_UD || in.op == OP_VMCALL)
        return;
    default_state(&s);

    if (in.op == OP_INVALID) {
        run(&s, code, 15, &o);
        if (o.trap == EXC_UD || (in.imm == 1 && (o.trap == EXC_GP || fetch_fault(&o)))) {
            shared->invalid_agreed++;
            return;
        }
        if (hidden(code))
            return;
        /* Of a bad /reg with more than 15 bytes, the CPU reports the length and we the opcode. */
        if (o.trap == EXC_GP && prefixes(code) >= 4)
            return;
        snprintf(text, sizeof(text), "trap %d err %#lx, rip +%ld", o.trap, (unsigned long)o.err,
                 (long)(o.s.rip - (CODE_PAGE + PAGE - 15)));
        report(CPU_VALID, &in, code, 15, text);
        return;
    }
    if (not_executable(&in)) {
        /* One byte less can be tried safely: it only faults on the fetch. */
        if (in.len > 1) {
            run(&s, code, in.len - 1, &o);
            if (!fetch_fault(&o))
                report(LENGTH, &in, code, in.len, "shorter than decoded");
        }
        return;
    }

    memcpy(bytes, code, 15);
    bool placed =
        !(in.flags & INSN_MODRM) || in.mod == 3 || place(&in, &s, bytes, DATA_MID + 0x200);
    if (in.len > 1) {
        run(&s, bytes, in.len - 1, &o);
        if (!fetch_fault(&o)) {
            if (o.trap == EXC_UD && ud_at_cpl3(&in))
                return;
            snprintf(text, sizeof(text), "shorter than decoded: trap %d", o.trap);
            report(o.trap == EXC_UD ? CPU_UD : LENGTH, &in, code, in.len, text);
            return;
        }
    }
    run(&s, bytes, in.len, &o);
    if (o.trap == EXC_UD && ud_at_cpl3(&in))
        return;
    if (o.trap == EXC_UD) {
        report(CPU_UD, &in, code, in.len, "");
        return;
    }
    if (fetch_fault(&o) && o.s.rip == CODE_PAGE + PAGE - in.len) {
        report(LENGTH, &in, code, in.len, "longer than decoded");
        return;
    }
    bool branch = (in.op >= OP_JMP && in.op <= OP_RET) || in.op == OP_INT3;
    if (o.trap == EXC_DB && !branch && o.s.rip != CODE_PAGE + PAGE &&
        !(in.flags & (INSN_REP | INSN_REPNE))) {
        report(LENGTH, &in, code, in.len, "another length");
        return;
    }
    if ((in.flags & INSN_PRIVILEGED) && o.trap == EXC_DB)
        report(NO_PRIV, &in, code, in.len, "");
    if (in.flags & INSN_PRIVILEGED)
        return;

    if (in.flags & INSN_MODRM && in.mod != 3)
        check_memory(&in, bytes, &s);
    if (in.op == OP_GATHER || in.op == OP_SCATTER)
        return;
    if (!not_deterministic(&in) && !branch && placed)
        check_effects(&in, bytes, &s);
}

/* -- Case generation -----------------------------------------------------------------------------
 */

static unsigned pick(uint64_t *n, unsigned radix)
{
    unsigned digit = (unsigned)(*n % radix);

    *n /= radix;
    return digit;
}

static void tail(uint8_t *p, uint8_t *end)
{
    while (p < end)
        *p++ = (uint8_t)rng();
}

static uint64_t spread(uint64_t n)
{
    uint64_t x = n * 0x9e3779b97f4a7c15ULL + 0x1234567;

    x ^= x >> 32;
    return x ? x : 1;
}

/* ModRM bytes that meet every addressing form and every reg field. */
static const uint8_t mod_forms[] = {0x00, 0x04, 0x05, 0x43, 0x44, 0x87, 0xc0, 0xc1, 0xc4};

#define LEGACY_PREFIXES 20
static unsigned legacy_prefix(unsigned n, uint8_t *p)
{
    static const struct {
        uint8_t len, bytes[3];
    } sets[LEGACY_PREFIXES] = {
        {0, {0}},
        {1, {0x66}},
        {1, {0xf3}},
        {1, {0xf2}},
        {1, {0x48}},
        {2, {0x66, 0x48}},
        {2, {0xf3, 0x48}},
        {2, {0xf2, 0x48}},
        {1, {0x40}},
        {1, {0x45}},
        {1, {0x4f}},
        {2, {0x66, 0xf3}},
        {2, {0xf2, 0x66}},
        {1, {0x67}},
        {1, {0xf0}},
        {2, {0x66, 0xf0}},
        {2, {0x48, 0x66}},
        {1, {0x65}},
        {3, {0xf2, 0xf3, 0x41}},
        {2, {0x64, 0x42}},
    };
    memcpy(p, sets[n].bytes, 3);
    return sets[n].len;
}

#define N_LEGACY (4ull * 256 * 256 * LEGACY_PREFIXES)
#define N_VEX    (4ull * 256 * 4 * 2 * 2 * 3 * 8 * sizeof(mod_forms) * 2)
#define N_EVEX   (5ull * 256 * 4 * 2 * 4 * 2 * 4 * 3 * 2 * 4)

static void gen_legacy(uint64_t n, uint8_t *code)
{
    uint8_t *p = code;
    unsigned map = pick(&n, 4), opcode = pick(&n, 256), modrm = pick(&n, 256);
    p += legacy_prefix(pick(&n, LEGACY_PREFIXES), p);
    if (map)
        *p++ = 0x0f;
    if (map >= 2)
        *p++ = map == 2 ? 0x38 : 0x3a;
    *p++ = (uint8_t)opcode;
    *p++ = (uint8_t)modrm;
    tail(p, code + 15);
}

static void gen_vex(uint64_t n, uint8_t *code)
{
    unsigned map = pick(&n, 4), opcode = pick(&n, 256), pp = pick(&n, 4), w = pick(&n, 2),
             l = pick(&n, 2), vvvv = pick(&n, 3), reg = pick(&n, 8),
             form = pick(&n, sizeof(mod_forms)), ext = pick(&n, 2);
    static const uint8_t v[3] = {15, 6, 9};
    uint8_t rxb = ext ? (uint8_t)(rng() & 0xe0) : 0xe0;

    code[0] = 0xc4;
    code[1] = (uint8_t)(rxb | map);
    code[2] = (uint8_t)(w << 7 | v[vvvv] << 3 | l << 2 | pp);
    code[3] = (uint8_t)opcode;
    code[4] = (uint8_t)(mod_forms[form] | reg << 3);
    tail(code + 5, code + 15);
}

static void gen_evex(uint64_t n, uint8_t *code)
{
    static const uint8_t maps[5] = {1, 2, 3, 5, 6};
    static const uint8_t aaa[4] = {0, 2, 0x83, 0x80};
    static const uint8_t forms[4] = {0x40, 0x84, 0xc0, 0xc2};
    unsigned map = maps[pick(&n, 5)], opcode = pick(&n, 256), pp = pick(&n, 4), w = pick(&n, 2),
             ll = pick(&n, 4), b = pick(&n, 2), mask = aaa[pick(&n, 4)], vvvv = pick(&n, 3),
             ext = pick(&n, 2), form = forms[pick(&n, 4)];
    static const uint8_t v[3] = {15, 6, 9};
    uint8_t rxbr = ext ? (uint8_t)(rng() & 0xf0) : 0xf0;
    uint8_t v2 = ext ? (uint8_t)(rng() & 8) : 8;

    code[0] = 0x62;
    code[1] = (uint8_t)(rxbr | map);
    code[2] = (uint8_t)(w << 7 | v[vvvv] << 3 | 4 | pp);
    code[3] = (uint8_t)((mask & 0x87) | ll << 5 | b << 4 | v2);
    code[4] = (uint8_t)opcode;
    code[5] = (uint8_t)(form | (rng() & 0x38));
    tail(code + 6, code + 15);
}

static void gen_random(uint8_t *code)
{
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x67,
                                       0x40, 0x48, 0x41, 0x4c, 0x0f, 0x0f, 0xc4, 0xc5, 0x62};
    unsigned k = (unsigned)(rng() % 5);

    tail(code, code + 15);
    for (unsigned i = 0; i < k; i++)
        code[i] = prefixes[rng() % sizeof(prefixes)];
}

struct options {
    uint64_t stride, offset, random, seed;
};

static uint64_t total_cases(const struct options *opt)
{
    return (N_LEGACY + N_VEX + N_EVEX) / opt->stride + opt->random;
}

static void generate(const struct options *opt, uint64_t i, uint8_t *code)
{
    uint64_t systematic = (N_LEGACY + N_VEX + N_EVEX) / opt->stride;

    rng_state = spread(i + opt->seed * 1000003);
    if (i >= systematic) {
        gen_random(code);
        return;
    }
    /* A step that is prime to every radix visits all digits evenly. */
    uint64_t n = (i * opt->stride + opt->offset) % (N_LEGACY + N_VEX + N_EVEX);
    if (n < N_LEGACY)
        gen_legacy(n, code);
    else if (n < N_LEGACY + N_VEX)
        gen_vex(n - N_LEGACY, code);
    else
        gen_evex(n - N_LEGACY - N_VEX, code);
}

/* -- The child
 * -------------------------------------------------------------------------------------- */

static void map_fixed(uint64_t addr, uint64_t size, int prot)
{
    if (mmap((void *)addr, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
        (void *)addr) {
        perror("mmap");
        _exit(98);
    }
}

static void fence(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) {
        perror("seccomp");
        _exit(98);
    }
}

static void child(const struct options *opt)
{
    static uint8_t stack[256 * 1024];
    stack_t ss = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    map_fixed(CODE_PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    map_fixed(DATA_BASE, DATA_SIZE, PROT_READ | PROT_WRITE);
    map_fixed(RO_BASE, RO_SIZE, PROT_READ | PROT_WRITE);
    memset((void *)RO_BASE, DATA_FILL, RO_SIZE);
    mprotect((void *)RO_BASE, RO_SIZE, PROT_READ);
    syscall(SYS_arch_prctl, 0x1003 /* ARCH_GET_FS */, &fs_base);
    syscall(SYS_arch_prctl, 0x1004 /* ARCH_GET_GS */, &gs_base);
    sigaltstack(&ss, NULL);
    sigfillset(&sa.sa_mask);
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        sigdelset(&sa.sa_mask, signals[i]);
        sigaction(signals[i], &sa, NULL);
    }
    fence();
    make_template();

    uint64_t total = total_cases(opt);
    for (; shared->index < total; shared->index++) {
        uint8_t code[15];
        generate(opt, shared->index, code);
        run_case(code);
    }
    shared->done = 1;
    _exit(0);
}

/* -- The parent
 * ------------------------------------------------------------------------------------- */

static bool intel_host, complete_host;

/* Is this an Intel CPU, and has it every extension the decoder knows? */
static void look_at_host(void)
{
    unsigned a, b, c, d, max, b7, c7, d7;

    __cpuid(0, max, b, c, d);
    intel_host = b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx;
    if (max < 7)
        return;
    __cpuid_count(7, 0, a, b7, c7, d7);
    const unsigned need_b = bit_AVX2 | bit_BMI | bit_BMI2 | bit_ADX | bit_SHA | bit_AVX512F |
                            bit_AVX512VL | bit_AVX512IFMA | bit_CLWB | bit_CLFLUSHOPT;
    const unsigned need_c = bit_GFNI | bit_VAES | bit_VPCLMULQDQ | bit_AVX512VBMI2 |
                            bit_AVX512BITALG | bit_AVX512VPOPCNTDQ | bit_MOVDIRI | bit_RDPID;
    complete_host = (b7 & need_b) == need_b && (c7 & need_c) == need_c && (d7 >> 23 & 1) &&
                    (d7 >> 14 & 1); /* AVX512_FP16, SERIALIZE */
}

static bool excused(const struct report *r)
{
    if (r->kind == CPU_UD && !complete_host)
        return true;                /* an extension that this host lacks */
    return r->kind == FLAG_DEPENDS; /* undefined flags that this processor happens to keep */
}

static int by_kind(const void *x, const void *y)
{
    const struct report *a = x, *b = y;

    return a->kind != b->kind ? a->kind - b->kind : a->key < b->key ? -1 : a->key > b->key;
}

int main(int argc, char **argv)
{
    struct options opt = {.stride = 101, .random = 20000, .seed = 1};
    bool list = false;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--list"))
            list = true;
        else if (!strcmp(argv[i], "--all"))
            opt.stride = 1;
        else if (i + 1 < argc && !strcmp(argv[i], "--stride"))
            opt.stride = strtoull(argv[++i], NULL, 0);
        else if (i + 1 < argc && !strcmp(argv[i], "--offset"))
            opt.offset = strtoull(argv[++i], NULL, 0);
        else if (i + 1 < argc && !strcmp(argv[i], "--random"))
            opt.random = strtoull(argv[++i], NULL, 0);
        else if (i + 1 < argc && !strcmp(argv[i], "--seed"))
            opt.seed = strtoull(argv[++i], NULL, 0);
        else {
            fprintf(stderr,
                    "usage: %s [--stride N] [--offset N] [--random N] [--seed N] [--all] "
                    "[--list]\n",
                    argv[0]);
            return 2;
        }
    }
    if (opt.stride == 0)
        opt.stride = 1;
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 2;
    }

    while (!shared->done) {
        pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            return 2;
        }
        if (pid == 0)
            child(&opt);
        /* A case that hangs is killed and reported like one that crashes. */
        uint64_t last = ~0ull;
        int status, idle = 0;
        while (waitpid(pid, &status, WNOHANG) == 0) {
            struct timespec ts = {0, 20 * 1000 * 1000};
            nanosleep(&ts, NULL);
            idle = shared->index == last ? idle + 1 : 0;
            last = shared->index;
            if (idle == 1500) /* 30 s, or more on a busy host */
                kill(pid, SIGKILL);
        }
        if (!shared->done) {
            struct insn in;
            char text[64];
            if (WIFEXITED(status) && WEXITSTATUS(status) == 98)
                return 2;
            insn_decode(&in, shared->current, 15, MODE_64);
            snprintf(text, sizeof(text), "status %#x", (unsigned)status);
            report(CRASH, &in, shared->current, 15, text);
            shared->index++;
        }
    }

    look_at_host();
    qsort(shared->reports, shared->report_count, sizeof(shared->reports[0]), by_kind);
    unsigned failed = 0, notes = 0;
    for (unsigned i = 0; i < shared->report_count; i++) {
        const struct report *r = &shared->reports[i];
        bool ok = excused(r);
        failed += !ok;
        notes += ok;
        if (ok && !list)
            continue;
        printf("%-36s %6lu x ", kind_name[r->kind], (unsigned long)r->count);
        for (unsigned k = 0; k < r->len; k++)
            printf("%02x%s", r->bytes[k], k + 1 == r->len ? "" : " ");
        printf("  %s\n", r->detail);
    }
    printf("%lu cases (%lu agreed invalid), %lu native executions, %u disagreements, %u notes\n",
           (unsigned long)shared->cases, (unsigned long)shared->invalid_agreed,
           (unsigned long)shared->executions, failed, notes);
    if (failed && !intel_host) {
        printf("not an Intel processor: nothing is concluded from the disagreements\n");
        return 77;
    }
    return failed != 0;
}
