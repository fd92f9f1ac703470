/* Signals: what handlers see, what they may change, and that nothing else changes. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/time.h>
#include <time.h>

#include "suite.h"

/* Registers as one array in the order of the machine's encoding. */
static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

static void read_byte(void *p)
{
    *(volatile char *)p;
}
static void write_byte(void *p)
{
    *(volatile char *)p = 1;
}

TEST(sig, segv_maperr)
{
    char *p = map_pages(3, PROT_READ | PROT_WRITE);
    munmap(p + 4096, 4096);
    EQ(catch_signal(read_byte, p + 4096 + 123), SIGSEGV);
    EQ(caught.info.si_code, SEGV_MAPERR);
    EQ(caught.info.si_addr, p + 4096 + 123);
    EQ(caught.gregs[REG_TRAPNO], 14);
    EQ(caught.gregs[REG_ERR], 4);
    EQ(caught.gregs[REG_CR2], p + 4096 + 123);
    EQ(catch_signal(write_byte, p + 4096), SIGSEGV);
    EQ(caught.gregs[REG_ERR], 6);
    EQ(catch_signal(read_byte, NULL), SIGSEGV);
    EQ(caught.info.si_addr, 0);
    EQ(catch_signal(read_byte, p + 8192), 0);
}

TEST(sig, segv_accerr)
{
    char *p = map_pages(1, PROT_READ | PROT_WRITE);
    p[5] = 1;
    SYS(mprotect(p, 4096, PROT_READ));
    EQ(catch_signal(read_byte, p + 5), 0);
    EQ(catch_signal(write_byte, p + 5), SIGSEGV);
    EQ(caught.info.si_code, SEGV_ACCERR);
    EQ(caught.info.si_addr, p + 5);
    EQ(caught.gregs[REG_ERR], 7);
    SYS(mprotect(p, 4096, PROT_NONE));
    EQ(catch_signal(read_byte, p + 5), SIGSEGV);
    EQ(caught.info.si_code, SEGV_ACCERR);
    SYS(mprotect(p, 4096, PROT_READ | PROT_WRITE));
    EQ(catch_signal(write_byte, p + 5), 0);
}

static void call(void *p)
{
    ((void (*)(void))p)();
}

TEST(sig, segv_exec)
{
    uint8_t *p = map_pages(1, PROT_READ | PROT_WRITE);
    p[0] = 0xc3;
    EQ(catch_signal(call, p), SIGSEGV);
    EQ(caught.info.si_code, SEGV_ACCERR);
    EQ(caught.info.si_addr, p);
    EQ(caught.gregs[REG_RIP], p);
    EQ(caught.gregs[REG_ERR] & 0x14, 0x14);
    SYS(mprotect(p, 4096, PROT_READ | PROT_EXEC));
    EQ(catch_signal(call, p), 0);
    munmap(p, 4096);
    EQ(catch_signal(call, p), SIGSEGV);
    EQ(caught.info.si_code, SEGV_MAPERR);
    EQ(caught.gregs[REG_RIP], p);
}

TEST(sig, segv_kernel_addresses)
{
    EQ(catch_signal(read_byte, (void *)0xffffffff81000000), SIGSEGV);
    EQ(caught.info.si_addr, 0xffffffff81000000);
    EQ(catch_signal(write_byte, (void *)0xffff888000000000), SIGSEGV);
    EQ(catch_signal(read_byte, (void *)0x0123456789abcdef), SIGSEGV); /* not canonical */
    EQ(caught.info.si_code, SI_KERNEL);
    EQ(caught.info.si_addr, 0);
    EQ(caught.gregs[REG_TRAPNO], 13);
    EQ(catch_signal(call, (void *)0xffffffff81000000), SIGSEGV);
    EQ(caught.gregs[REG_RIP], 0xffffffff81000000);
}

/* Faults at a known instruction with known registers; the handler compares and steps over it. */
static volatile struct {
    uint64_t regs[16];
    uint64_t rip, trapno, flags;
    int count, sig, length;
} seen;

static void on_fault_record(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    for (int i = 0; i < 16; i++)
        seen.regs[i] = (uint64_t)uc->uc_mcontext.gregs[greg_of[i]];
    seen.rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    seen.trapno = (uint64_t)uc->uc_mcontext.gregs[REG_TRAPNO];
    seen.flags = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];
    seen.count++;
    seen.sig = sig;
    uc->uc_mcontext.gregs[REG_RIP] += seen.length;
}

TEST(sig, registers_at_fault)
{
    handle(SIGSEGV, on_fault_record, 0);
    uint64_t rip, after[4];
    static const uint64_t bad = 0x1000;
    seen.length = 4; /* addq %r11, (%r10): 4d 01 1a is 3 bytes, +8 disp makes 4 */
    asm volatile("mov %[bad], %%r10\n\t"
                 "mov $0x1111, %%r11d\n\t mov $0x2222, %%r12d\n\t mov $0x3333, %%r13d\n\t"
                 "mov $0x4444, %%eax\n\t mov $0x5555, %%ecx\n\t mov $0x6666, %%edx\n\t"
                 "mov $0x7777, %%esi\n\t mov $0x8888, %%edi\n\t mov $0x9999, %%r8d\n\t"
                 "mov $0xaaaa, %%r9d\n\t mov $0xbbbb, %%r14d\n\t"
                 "lea 1f(%%rip), %%r15\n\t"
                 "std\n" /* arithmetic flags that the instruction overwrites: docs/deviations.md */
                 "1: addq %%r11, 8(%%r10)\n\tcld\n\t"
                 "mov %%r15, %[rip]\n\t"
                 "mov %%r10, (%[after])\n\t mov %%r11, 8(%[after])\n\t mov %%r12, 16(%[after])\n\t"
                 "mov %%rax, 24(%[after])"
                 : [rip] "=m"(rip)
                 : [bad] "m"(bad), [after] "b"(after)
                 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                   "r15", "memory", "cc");
    EQ(seen.count, 1);
    EQ(seen.rip, rip);
    EQ(seen.flags & 0x400, 0x400);
    static const uint64_t want[16] = {0x4444, 0x5555, 0x6666, 0,      0,      0,
                                      0x7777, 0x8888, 0x9999, 0xaaaa, 0x1000, 0x1111,
                                      0x2222, 0x3333, 0xbbbb, 0};
    for (int i = 0; i < 15; i++)
        if (want[i] && seen.regs[i] != want[i])
            FAIL("register %d: got 0x%lx, want 0x%lx", i, seen.regs[i], want[i]);
    EQ(seen.regs[3], (uint64_t)after);
    EQ(after[0], 0x1000);
    EQ(after[1], 0x1111);
    EQ(after[2], 0x2222);
    EQ(after[3], 0x4444);
}

#define INSN(name, text)                                                                           \
    static void name(void *arg)                                                                    \
    {                                                                                              \
        asm volatile(text ::: "rax", "rcx", "rdx", "memory", "cc");                                \
    }
INSN(do_hlt, "hlt")
INSN(do_cli, "cli")
INSN(do_in, "inb $0x70, %%al")
INSN(do_out, "outb %%al, $0x70")
INSN(do_rdmsr, "rdmsr")
INSN(do_cr3, "mov %%cr3, %%rax")
INSN(do_dr7, "mov %%dr7, %%rax")
INSN(do_lgdt, "lgdt (%%rsp)")
INSN(do_invd, "invd")
INSN(do_swapgs, "swapgs")
INSN(do_int32, "int $0x20")
INSN(do_int0, "int $0")

TEST(sig, privileged_instructions)
{
    static void (*const fns[])(void *) = {do_hlt, do_cli,  do_in,   do_out,    do_rdmsr, do_cr3,
                                          do_dr7, do_lgdt, do_invd, do_swapgs, do_int32, do_int0};
    for (unsigned i = 0; i < sizeof(fns) / sizeof(fns[0]); i++) {
        int sig = catch_signal(fns[i], NULL);
        if (sig != SIGSEGV || caught.info.si_code != SI_KERNEL || caught.gregs[REG_TRAPNO] != 13)
            FAIL("instruction %u: signal %d code %d trap %lld", i, sig, caught.info.si_code,
                 (long long)caught.gregs[REG_TRAPNO]);
    }
}

INSN(do_ud2, "ud2")
INSN(do_div0, "xor %%edx, %%edx\n\tmov $1, %%eax\n\txor %%ecx, %%ecx\n\tdiv %%ecx")
INSN(do_idiv_overflow, "mov $-1, %%rcx\n\tmov $1, %%eax\n\tshl $63, %%rax\n\tcqo\n\tidiv %%rcx")
INSN(do_int3, "int3")
INSN(do_int1, ".byte 0xf1")
INSN(do_lock_nop, ".byte 0xf0, 0x90")
INSN(do_push_cs, ".byte 0x0e")

TEST(sig, ill)
{
    EQ(catch_signal(do_ud2, NULL), SIGILL);
    EQ(caught.info.si_code, ILL_ILLOPN);
    EQ(caught.info.si_addr, caught.gregs[REG_RIP]);
    EQ(*(uint16_t *)caught.info.si_addr, 0x0b0f);
    EQ(catch_signal(do_lock_nop, NULL), SIGILL);
    EQ(catch_signal(do_push_cs, NULL), SIGILL);
}

TEST(sig, fpe_integer)
{
    EQ(catch_signal(do_div0, NULL), SIGFPE);
    EQ(caught.info.si_code, FPE_INTDIV);
    EQ(caught.info.si_addr, caught.gregs[REG_RIP]);
    EQ(*(uint8_t *)caught.info.si_addr, 0xf7);
    EQ(catch_signal(do_idiv_overflow, NULL), SIGFPE);
    EQ(caught.info.si_code, FPE_INTDIV);
    EQ(caught.gregs[REG_RCX], -1);
}

TEST(sig, trap)
{
    EQ(catch_signal(do_int3, NULL), SIGTRAP);
    EQ(((uint8_t *)caught.gregs[REG_RIP])[-1], 0xcc);
    TCG_SKIP("INT1 is #UD");
    EQ(catch_signal(do_int1, NULL), SIGTRAP);
    EQ(((uint8_t *)caught.gregs[REG_RIP])[-1], 0xf1);
}

static void sse_fault(void *arg)
{
    const double *d = arg; /* unmask mask, a, b, op */
    uint32_t csr = 0x1f80 & ~(uint32_t)d[0];
    double a = d[1], b = d[2];
    asm volatile("ldmxcsr %0" ::"m"(csr));
    if (d[3] == 0)
        asm volatile("divsd %1, %0" : "+x"(a) : "x"(b));
    else
        asm volatile("mulsd %1, %0" : "+x"(a) : "m"(b));
}

TEST(sig, fpe_sse)
{
    TCG_SKIP("SSE exceptions are never raised");
    static const struct {
        double args[4];
        int code;
    } cases[] = {
        {{0x80, 0.0, 0.0, 0}, FPE_FLTINV},      {{0x200, 1.0, 0.0, 0}, FPE_FLTDIV},
        {{0x400, 1e300, 1e300, 1}, FPE_FLTOVF}, {{0x800, 1e-300, 1e-300, 1}, FPE_FLTUND},
        {{0x1000, 1.0, 3.0, 0}, FPE_FLTRES},
    };
    for (unsigned i = 0; i < 5; i++) {
        EQ(catch_signal(sse_fault, (void *)cases[i].args), SIGFPE);
        EQ(caught.info.si_code, cases[i].code);
        EQ(caught.gregs[REG_TRAPNO], 19);
        uint32_t csr = 0x1f80;
        asm volatile("ldmxcsr %0" ::"m"(csr));
    }
}

static void x87_fault(void *arg)
{
    uint16_t cw = (uint16_t)(0x37f & ~*(int *)arg);
    double zero = 0, one = 1, big = 1e300;
    asm volatile("fnclex; fldcw %0" ::"m"(cw));
    if (*(int *)arg == 4)
        asm volatile("fldl %0; fdivl %1; fwait" ::"m"(one), "m"(zero));
    else if (*(int *)arg == 1)
        asm volatile("fldl %0; fdivl %0; fwait" ::"m"(zero));
    else if (*(int *)arg == 8)
        asm volatile("fldl %0; fmull %0; fstpl %1; fwait" ::"m"(big), "m"(one) : "memory");
    else
        asm volatile("fld1; fldpi; fdivrp; fwait");
}

TEST(sig, fpe_x87)
{
    static int bits[] = {1, 4, 8, 0x20};
    static const int codes[] = {FPE_FLTINV, FPE_FLTDIV, FPE_FLTOVF, FPE_FLTRES};
    for (unsigned i = 0; i < 4; i++) {
        EQ(catch_signal(x87_fault, &bits[i]), SIGFPE);
        EQ(caught.info.si_code, codes[i]);
        EQ(caught.gregs[REG_TRAPNO], 16);
        asm volatile("fnclex; fninit");
    }
}

TEST(sig, bus_beyond_eof)
{
    int fd = SYS(memfd_create("suite", 0));
    SYS(ftruncate(fd, 4096));
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EQ(catch_signal(read_byte, p + 100), 0);
    EQ(catch_signal(read_byte, p + 5000), SIGBUS);
    EQ(caught.info.si_code, BUS_ADRERR);
    EQ(caught.info.si_addr, p + 5000);
    SYS(ftruncate(fd, 8192));
    EQ(catch_signal(read_byte, p + 5000), 0);
    SYS(ftruncate(fd, 0));
    EQ(catch_signal(read_byte, p + 100), SIGBUS);
}

static void unaligned_ac(void *arg)
{
    asm volatile("pushf\n\torl $0x40000, (%%rsp)\n\tpopf\n\t"
                 "mov 1(%0), %%eax\n\t"
                 "pushf\n\tandl $~0x40000, (%%rsp)\n\tpopf" ::"r"(arg)
                 : "rax", "cc", "memory");
}

TEST(sig, bus_alignment_check)
{
    TCG_SKIP("no #AC");
    static uint64_t data[2];
    /* The compiler's code up to the handler's siglongjmp runs with AC = 0: the kernel clears it
     * for handlers only with SMAP, so the handler itself may fault; a nested fault kills us. */
    EQ(catch_signal(unaligned_ac, data), SIGBUS);
    EQ(caught.info.si_code, BUS_ADRALN);
    EQ(caught.gregs[REG_TRAPNO], 17);
    asm volatile("pushf\n\tandl $~0x40000, (%%rsp)\n\tpopf" ::: "cc", "memory");
}

/* Single step by the trap flag, without a tracer. */
static volatile uint64_t step_rips[64];
static volatile int step_count;

static void on_step(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    if (step_count < 64)
        step_rips[step_count] = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    step_count++;
}

TEST(sig, trap_flag)
{
    handle(SIGTRAP, on_step, 0);
    uint64_t start;
    asm volatile("lea 1f(%%rip), %0\n\t"
                 "mov $3, %%ecx\n\t"
                 "pushf\n\torl $0x100, (%%rsp)\n\tpopf\n"
                 "1: dec %%ecx\n\t"                           /* +0, +2 */
                 "jnz 1b\n\t"                                 /* +2 */
                 "nop\n\t"                                    /* +4 */
                 "pushf\n\tandl $~0x100, (%%rsp)\n\tpopf\n\t" /* +5, +6, +13 */
                 "nop"
                 : "=&r"(start)::"rcx", "cc", "memory");
    static const uint8_t want[] = {2, 0, 2, 0, 2, 4, 5, 6, 13, 14};
    EQ(step_count, 10);
    for (int i = 0; i < 10; i++)
        EQ(step_rips[i] - start, want[i]);
}

/* Everything a handler changes in the context takes effect. */
static void on_usr1_modify(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    greg_t *g = uc->uc_mcontext.gregs;
    for (int i = 0; i < 16; i++)
        if (i != 4)
            g[greg_of[i]] = 0x1000 + i;
    g[REG_EFL] |= 1 | 0x800;
    g[REG_RIP] += 2;
}

TEST(sig, sigreturn_sets_registers)
{
    handle(SIGILL, on_usr1_modify, 0);
    uint64_t out[17] = {0};
    static uint64_t *outp;
    static uint64_t save[2];
    outp = out;
    asm volatile("mov %%rbp, %[save0]\n\tmov %%rbx, %[save1]\n\t"
                 "xor %%eax, %%eax\n\tud2\n\t"
                 "push %%rbx\n\tpushf\n\tmov %[outp], %%rbx\n\t"
                 "mov %%rax, (%%rbx)\n\tmov %%rcx, 8(%%rbx)\n\tmov %%rdx, 16(%%rbx)\n\t"
                 "mov %%rbp, 40(%%rbx)\n\tmov %%rsi, 48(%%rbx)\n\tmov %%rdi, 56(%%rbx)\n\t"
                 "mov %%r8, 64(%%rbx)\n\tmov %%r9, 72(%%rbx)\n\tmov %%r10, 80(%%rbx)\n\t"
                 "mov %%r11, 88(%%rbx)\n\tmov %%r12, 96(%%rbx)\n\tmov %%r13, 104(%%rbx)\n\t"
                 "mov %%r14, 112(%%rbx)\n\tmov %%r15, 120(%%rbx)\n\t"
                 "pop %%rax\n\tmov %%rax, 128(%%rbx)\n\tpop %%rax\n\tmov %%rax, 24(%%rbx)\n\t"
                 "mov %[save0], %%rbp\n\tmov %[save1], %%rbx"
                 : [save0] "=m"(save[0]), [save1] "=m"(save[1])
                 : [outp] "m"(outp)
                 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                   "r15", "memory", "cc");
    for (unsigned i = 0; i < 16; i++)
        if (i != 4)
            EQ(out[i], 0x1000 + i);
    EQ(out[16] & 0x801, 0x801);
}

/* -- Stacks
 * --------------------------------------------------------------------------------------*/

static sigjmp_buf overflow_env;
static volatile uint64_t handler_sp;

static void on_overflow(int sig, siginfo_t *info, void *context)
{
    char here;
    handler_sp = (uint64_t)&here;
    siglongjmp(overflow_env, 1);
}

__attribute__((noinline)) static uint64_t recurse(uint64_t n, volatile char *above)
{
    volatile char frame[512];
    frame[n % 512] = (char)n;
    return n == ~0ul ? 0
                     : recurse(n + 1, frame) + (uint64_t)frame[(n + 1) % 512] + (uint64_t)*above;
}

TEST(sig, altstack_on_overflow)
{
    char *alt = map_pages(32, PROT_READ | PROT_WRITE);
    stack_t ss = {.ss_sp = alt, .ss_size = 32 * 4096};
    SYS(sigaltstack(&ss, NULL));
    handle(SIGSEGV, on_overflow, SA_ONSTACK);
    volatile int rounds = 0;
    char c = 0;
    for (;;) {
        if (sigsetjmp(overflow_env, 1)) {
            CHECK(handler_sp >= (uint64_t)alt && handler_sp < (uint64_t)alt + 32 * 4096);
            if (++rounds == 10)
                break;
        }
        recurse(0, &c);
    }
}

/* -- Storms
 * --------------------------------------------------------------------------------------*/

static volatile int usr1_count, usr2_count, depth, max_depth;

static void on_usr1(int sig, siginfo_t *info, void *context)
{
    usr1_count++;
}

static void on_usr2_nested(int sig, siginfo_t *info, void *context)
{
    usr2_count++;
    depth++;
    if (depth > max_depth)
        max_depth = depth;
    if (depth < 10)
        raise(SIGUSR2);
    depth--;
}

TEST(sig, storm)
{
    handle(SIGUSR1, on_usr1, 0);
    for (int i = 0; i < 20000; i++)
        kill(getpid(), SIGUSR1);
    EQ(usr1_count, 20000);
}

TEST(sig, nested)
{
    handle(SIGUSR2, on_usr2_nested, SA_NODEFER);
    for (int i = 0; i < 200; i++)
        raise(SIGUSR2);
    EQ(usr2_count, 2000);
    EQ(max_depth, 10);
}

TEST(sig, blocking)
{
    handle(SIGUSR1, on_usr1, 0);
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    EQ(usr1_count, 0);
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR1));
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    EQ(usr1_count, 1);
    /* sigwaitinfo with a queued real-time signal and its value */
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < 50; i++)
        SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i}));
    for (int i = 0; i < 50; i++) {
        siginfo_t info;
        EQ(SYS(sigwaitinfo(&set, &info)), SIGRTMIN);
        EQ(info.si_value.sival_int, i);
    }
}

static void tick_every(long us)
{
    struct itimerval it = {{0, us}, {0, us}};
    SYS(setitimer(ITIMER_REAL, &it, NULL));
}

TEST(sig, eintr_and_restart)
{
    int fds[2];
    char c;
    SYS(pipe(fds));
    handle(SIGALRM, on_usr1, 0);
    tick_every(20000); /* again and again: the first may come before the read */
    EQ(read(fds[0], &c, 1), -1);
    EQ(errno, EINTR);
    handle(SIGALRM, on_usr1, SA_RESTART);
    usr1_count = 0;
    pid_t parent = getpid(), pid = SYS(fork());
    if (!pid) {
        /* Answers when the parent has been interrupted a few times. */
        for (int ticks = 0; ticks < 5; ticks++)
            usleep(20000);
        _exit(write(fds[1], "x", 1) != 1 || getppid() != parent);
    }
    EQ(read(fds[0], &c, 1), 1);
    EQ(c, 'x');
    tick_every(0);
    CHECK(usr1_count >= 1);
    EQ(wait_for(pid), 0);
}

/* -- Handlers that repair the fault (user-level paging)
 * ------------------------------------------*/

static volatile int repair_count;
static char *repair_base;

static void on_repair(int sig, siginfo_t *info, void *context)
{
    char *page = (char *)((uint64_t)info->si_addr & ~4095ul);
    if (page < repair_base || page >= repair_base + 64 * 4096)
        _exit(90);
    repair_count++;
    if (mprotect(page, 4096, PROT_READ | PROT_WRITE))
        _exit(89);
}

static void repair_reset(void)
{
    SYS(mprotect(repair_base, 64 * 4096, PROT_NONE));
    repair_count = 0;
}

TEST(sig, restartable_faults)
{
    repair_base = map_pages(64, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 64 * 4096; i++)
        repair_base[i] = (char)(i * 7 + i / 4096);
    static char copy[64 * 4096];
    memcpy(copy, repair_base, sizeof(copy));
    handle(SIGSEGV, on_repair, 0);

    /* rep movsb over ten protected pages */
    static char out[10 * 4096];
    repair_reset();
    void *src = repair_base + 50, *dst = out;
    uint64_t n = 9 * 4096;
    asm volatile("rep movsb" : "+S"(src), "+D"(dst), "+c"(n)::"memory");
    EQ(n, 0);
    EQ(memcmp(out, copy + 50, 9 * 4096), 0);
    EQ(repair_count, 10);

    /* rep stosq, backwards */
    repair_reset();
    dst = repair_base + 20 * 4096 - 8;
    n = 8 * 512;
    asm volatile("std\n\trep stosq\n\tcld"
                 : "+D"(dst), "+c"(n)
                 : "a"(0x0101010101010101ul)
                 : "memory", "cc");
    EQ(repair_count, 8);
    for (int i = 12 * 4096; i < 20 * 4096; i++)
        EQ(repair_base[i], 1);
    memcpy(repair_base + 12 * 4096, copy + 12 * 4096, 8 * 4096);

    /* accesses across two protected pages: two faults, then the right value */
    repair_reset();
    uint64_t v = 1;
    asm volatile("lock xaddq %0, (%1)" : "+r"(v) : "r"(repair_base + 4096 - 3) : "memory", "cc");
    uint64_t want;
    memcpy(&want, copy + 4096 - 3, 8);
    EQ(v, want);
    EQ(repair_count, 2);
    memcpy(&v, repair_base + 4096 - 3, 8);
    EQ(v, want + 1);

    repair_reset();
    asm volatile("movups (%0), %%xmm0\n\tmovups %%xmm0, (%1)" ::"r"(repair_base + 3 * 4096 - 9),
                 "r"(out)
                 : "xmm0", "memory");
    EQ(repair_count, 2);
    EQ(memcmp(out, copy + 3 * 4096 - 9, 16), 0);
}

/* The same for the stack itself, with the handler on an alternate one. */
TEST(sig, restartable_stack_faults)
{
    char *alt = map_pages(32, PROT_READ | PROT_WRITE);
    stack_t ss = {.ss_sp = alt, .ss_size = 32 * 4096};
    SYS(sigaltstack(&ss, NULL));
    repair_base = map_pages(64, PROT_READ | PROT_WRITE);
    handle(SIGSEGV, on_repair, SA_ONSTACK);
    for (int round = 0; round < 50; round++) {
        repair_reset();
        uint64_t sp = (uint64_t)repair_base + 40 * 4096 + 8, popped, end;
        asm volatile("mov %%rsp, %%r12\n\tmov %[sp], %%rsp\n\t"
                     "push %[v]\n\tpush %[v]\n\tpush %[v]\n\t" /* crosses into another page */
                     "call 1f\n\tjmp 2f\n1: ret $8\n2:\n\t"
                     "sub $8192, %%rsp\n\tpushf\n\tpopf\n\tenter $4096, $0\n\tpush %%rcx\n\t"
                     "pop %%rcx\n\tleave\n\tadd $8192, %%rsp\n\t"
                     "pop %[popped]\n\tmov %%rsp, %[end]\n\tmov %%r12, %%rsp"
                     : [popped] "=&r"(popped), [end] "=&r"(end)
                     : [sp] "r"(sp), [v] "r"(0x1234567812345678ul)
                     : "r12", "memory", "cc");
        EQ(popped, 0x1234567812345678ul);
        EQ(end, sp - 8);
        CHECK(repair_count >= 4);
    }
}

/* -- Timers that interrupt loops of every kind
 * ---------------------------------------------------*/

static volatile uint64_t ticks;

static void on_tick(int sig, siginfo_t *info, void *context)
{
    ticks++;
    /* Disturb what a careless translator might keep in host registers. */
    asm volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm7, %%xmm7\n\tpxor %%xmm15, %%xmm15\n\t"
                 "fninit\n\tstd\n\tcld\n\tmov $-1, %%r10\n\tmov $-1, %%r11" ::
                     : "xmm0", "xmm7", "xmm15", "r10", "r11", "cc");
}

static void start_ticks(long us)
{
    handle(SIGALRM, on_tick, SA_RESTART);
    struct itimerval it = {{0, us}, {0, us}};
    SYS(setitimer(ITIMER_REAL, &it, NULL));
}

static void stop_ticks(void)
{
    struct itimerval it = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &it, NULL);
}

#define LOOP(text, iterations)                                                                     \
    ({                                                                                             \
        uint64_t acc_ = 1, n_ = (iterations);                                                      \
        asm volatile("1:\n\t" text "\n\tdec %[n]\n\tjnz 1b"                                        \
                     : [a] "+r"(acc_), [n] "+r"(n_)                                                \
                     : [m] "r"(loop_memory)                                                        \
                     : "rcx", "rdx", "r8", "r10", "r11", "cc", "memory");                          \
        acc_;                                                                                      \
    })

static uint64_t loop_memory[64];

static uint64_t all_loops(uint64_t n)
{
    uint64_t sum = 0;
    memset(loop_memory, 0, sizeof(loop_memory));
    sum = sum * 31 + LOOP("imul $0x5851f42d, %[a], %[a]\n\tadd $0x14057, %[a]", n);
    sum = sum * 31 + LOOP("add %[n], (%[m])\n\trol $7, %[a]\n\txor (%[m]), %[a]", n);
    sum = sum * 31 + LOOP("push %[a]\n\tpop %%r10\n\tlea 3(%%r10,%[n],2), %[a]", n);
    sum = sum * 31 + LOOP("mov %[a], %%r11\n\tadd %%r11, 8(%[m])\n\tadc 8(%[m]), %[a]", n);
    sum = sum * 31 + LOOP("call 2f\n\tjmp 3f\n2: add $5, %[a]\n\tret\n3: ror $3, %[a]", n);
    sum = sum * 31 + LOOP("mov $3, %%ecx\n4: add %%rcx, %[a]\n\tloop 4b\n\trol $1, %[a]", n);
    sum = sum * 31 + LOOP("lock incq 16(%[m])\n\txchg %[a], 24(%[m])\n\tadd %[n], %[a]", n);
    sum = sum * 31 + LOOP("stc\n\tsbb $0, %[a]\n\tpushf\n\tpop %%r8\n\tand $1, %%r8d\n\t"
                          "add %%r8, %[a]\n\trol $9, %[a]",
                          n);
    sum = sum * 31 + LOOP("lea 5f(%%rip), %%r11\n\tjmp *%%r11\n\tud2\n5: add $11, %[a]\n\t"
                          "bswap %[a]",
                          n);
    for (int i = 0; i < 64; i++)
        sum = sum * 31 + loop_memory[i];
    return sum;
}

TEST(sig, timer_in_loops)
{
    uint64_t want = all_loops(20000);
    start_ticks(500);
    double until = now() + 3;
    do
        EQ(all_loops(20000), want);
    while (now() < until);
    stop_ticks();
    CHECK(ticks > 20);
}

TEST(sig, timer_in_string_loops)
{
    static uint8_t a[200000], b[200000];
    for (unsigned i = 0; i < sizeof(a); i++)
        a[i] = (uint8_t)rng();
    start_ticks(300);
    double until = now() + 2;
    do {
        void *s = a, *d = b;
        uint64_t n = sizeof(a);
        asm volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n)::"memory");
        EQ(memcmp(a, b, sizeof(a)), 0);
        s = a, d = b, n = sizeof(a);
        bool equal;
        asm volatile("cmp %%eax, %%eax\n\trepe cmpsb"
                     : "+S"(s), "+D"(d), "+c"(n), "=@ccz"(equal)::"memory");
        CHECK(equal && n == 0);
        d = b, n = sizeof(b);
        asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0x5a) : "memory");
        d = b, n = sizeof(b);
        asm volatile("repe scasb" : "+D"(d), "+c"(n), "=@ccz"(equal) : "a"(0x5a) : "memory");
        CHECK(equal && n == 0);
    } while (now() < until);
    stop_ticks();
    CHECK(ticks > 20);
}

TEST(sig, timer_in_float_loops)
{
    double want = 0;
    long double want_x87 = 0;
    start_ticks(500);
    double until = now() + 2;
    for (int round = 0; round == 0 || now() < until; round++) {
        double x = 1;
        long double y = 1;
        for (int i = 0; i < 30000; i++) {
            x = x * 1.000001 + 1.0 / (x + 3);
            y = y * 1.000001L + 1 / (y + 3);
        }
        if (round == 0)
            want = x, want_x87 = y;
        CHECK(x == want && y == want_x87);
    }
    stop_ticks();
    CHECK(ticks > 20);
}

/* -- All vector state over a signal
 * --------------------------------------------------------------*/

static volatile int vector_signals;
static bool has_avx, has_avx512;

static void on_vector_signal(int sig, siginfo_t *info, void *context)
{
    vector_signals++;
    if (has_avx512)
        asm volatile("vpxorq %%zmm0, %%zmm0, %%zmm0\n\tvpxorq %%zmm15, %%zmm15, %%zmm15\n\t"
                     "vpxorq %%zmm31, %%zmm31, %%zmm31\n\tkxorq %%k1, %%k1, %%k1\n\t"
                     "kxorq %%k7, %%k7, %%k7" ::
                         : "memory");
    else if (has_avx)
        asm volatile("vzeroall" ::: "memory");
    asm volatile("fninit\n\tfldz\n\tpcmpeqd %%mm3, %%mm3" ::: "memory");
    uint32_t csr = 0x9fc0;
    asm volatile("ldmxcsr %0" ::"m"(csr));
}

TEST(sig, vector_state_preserved)
{
    __builtin_cpu_init();
    has_avx = __builtin_cpu_supports("avx");
    has_avx512 = __builtin_cpu_supports("avx512bw");
    handle(SIGUSR1, on_vector_signal, 0);
    static uint8_t in[64 * 8] __attribute__((aligned(64))),
        out[64 * 8] __attribute__((aligned(64)));
    for (int round = 0; round < 300; round++) {
        for (unsigned i = 0; i < sizeof(in); i++)
            in[i] = (uint8_t)rng();
        memset(out, 0, sizeof(out));
        long pid = getpid();
        static double x87_in = 3.25, x87_out;
        uint32_t csr_in = 0x3f80, csr_out; /* round down */
        asm volatile("ldmxcsr %0" ::"m"(csr_in));
        asm volatile("fninit\n\tfldl %0" ::"m"(x87_in));
        if (has_avx512)
            asm volatile("vmovdqu64 (%1), %%zmm0\n\tvmovdqu64 64(%1), %%zmm15\n\t"
                         "vmovdqu64 128(%1), %%zmm16\n\tvmovdqu64 192(%1), %%zmm31\n\t"
                         "kmovq 256(%1), %%k1\n\tkmovq 264(%1), %%k7\n\t"
                         "mov %3, %%eax\n\tmov %4, %%edi\n\tmov %5, %%esi\n\tsyscall\n\t"
                         "vmovdqu64 %%zmm0, (%2)\n\tvmovdqu64 %%zmm15, 64(%2)\n\t"
                         "vmovdqu64 %%zmm16, 128(%2)\n\tvmovdqu64 %%zmm31, 192(%2)\n\t"
                         "kmovq %%k1, 256(%2)\n\tkmovq %%k7, 264(%2)"
                         : "=m"(out)
                         : "r"(in), "r"(out), "i"(SYS_kill), "r"((int)pid), "i"(SIGUSR1)
                         : "rax", "rdi", "rsi", "rcx", "r11", "memory", "xmm0", "xmm15");
        else if (has_avx)
            asm volatile("vmovdqu (%1), %%ymm0\n\tvmovdqu 64(%1), %%ymm15\n\t"
                         "vmovdqu 128(%1), %%ymm7\n\tvmovdqu 192(%1), %%ymm8\n\t"
                         "mov %3, %%eax\n\tmov %4, %%edi\n\tmov %5, %%esi\n\tsyscall\n\t"
                         "vmovdqu %%ymm0, (%2)\n\tvmovdqu %%ymm15, 64(%2)\n\t"
                         "vmovdqu %%ymm7, 128(%2)\n\tvmovdqu %%ymm8, 192(%2)"
                         : "=m"(out)
                         : "r"(in), "r"(out), "i"(SYS_kill), "r"((int)pid), "i"(SIGUSR1)
                         : "rax", "rdi", "rsi", "rcx", "r11", "memory", "xmm0", "xmm7", "xmm8",
                           "xmm15");
        else
            kill((int)pid, SIGUSR1);
        asm volatile("stmxcsr %0\n\tfstpl %1" : "=m"(csr_out), "=m"(x87_out));
        unsigned size = has_avx512 ? 64 : 32;
        for (int r = 0; (has_avx || has_avx512) && r < 4; r++)
            if (memcmp(in + 64 * r, out + 64 * r, size))
                FAIL("vector register %d differs after the signal (round %d)", r, round);
        if (has_avx512)
            CHECK(!memcmp(in + 256, out + 256, 16));
        EQ(csr_out & 0xffc0, csr_in);
        CHECK(x87_out == x87_in);
        csr_in = 0x1f80;
        asm volatile("ldmxcsr %0" ::"m"(csr_in));
    }
    EQ(vector_signals, 300);
}

/* What a handler writes to the FP area of the frame is there after it returns. */
static void on_xmm_modify(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    uc->uc_mcontext.fpregs->_xmm[3].element[1] = 0xdeadbeef;
    uc->uc_mcontext.fpregs->_xmm[3].element[2] = 0x12345678;
    uc->uc_mcontext.fpregs->mxcsr |= 0x8000;
}

TEST(sig, sigreturn_sets_vector_registers)
{
    handle(SIGUSR1, on_xmm_modify, 0);
    uint32_t out[4] = {0}, csr;
    asm volatile("pcmpeqd %%xmm3, %%xmm3\n\tmov %1, %%eax\n\tmov %2, %%edi\n\tmov %3, %%esi\n\t"
                 "syscall\n\tmovups %%xmm3, %0"
                 : "=m"(out)
                 : "i"(SYS_kill), "r"(getpid()), "i"(SIGUSR1)
                 : "rax", "rcx", "rdi", "rsi", "r11", "xmm3", "memory");
    asm volatile("stmxcsr %0" : "=m"(csr));
    EQ(out[0], 0xffffffff);
    EQ(out[1], 0xdeadbeef);
    EQ(out[2], 0x12345678);
    EQ(csr & 0x8000, 0x8000);
    csr = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(csr));
}
