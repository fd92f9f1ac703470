/* ptrace: single step, breakpoints in software and hardware, register and memory access. */
#include <linux/elf.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#include "suite.h"

static pid_t start_tracee(void (*fn)(void))
{
    pid_t pid = SYS(fork());
    if (!pid) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0))
            _exit(70);
        raise(SIGSTOP);
        fn();
        _exit(33);
    }
    int status = wait_for(pid);
    CHECK(WIFSTOPPED(status));
    EQ(WSTOPSIG(status), SIGSTOP);
    return pid;
}

static void finish(pid_t pid, int code)
{
    SYS(ptrace(PTRACE_CONT, pid, 0, 0));
    int status = wait_for(pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
        FAIL("the tracee ended with status 0x%x", status);
}

static struct user_regs_struct regs_of(pid_t pid)
{
    struct user_regs_struct r;
    SYS(ptrace(PTRACE_GETREGS, pid, 0, &r));
    return r;
}

static int step(pid_t pid)
{
    SYS(ptrace(PTRACE_SINGLESTEP, pid, 0, 0));
    int status = wait_for(pid);
    CHECK(WIFSTOPPED(status));
    return WSTOPSIG(status);
}

/* The code the tracer follows; labels are what it compares with. */
extern uint8_t trace_begin[], trace_loop[], trace_string[], trace_syscall[], trace_after[],
    trace_flags[], trace_end[];
static volatile uint64_t watched[4];
static uint8_t string_dst[64];
asm(".text\n.globl trace_begin\ntrace_begin:\n"
    "\tint3\n"
    "\tmov $4, %ecx\n"
    "trace_loop:\n"
    "\tadd $3, %rax\n"
    "\tdec %ecx\n"
    "\tjnz trace_loop\n"
    "\tmov $6, %ecx\n"
    "\tmov $0x41, %al\n"
    "trace_string:\n"
    "\trep stosb\n"
    "\tmov $39, %eax\n"
    "trace_syscall:\n"
    "\tsyscall\n"
    "trace_after:\n"
    "\tnop\n"
    "trace_flags:\n"
    "\tpushf\n"
    "\tpop %rdx\n"
    "trace_end:\n"
    "\tret\n");

static void trace_body(void)
{
    uint64_t rax = 0;
    void *d = string_dst;
    asm volatile("call trace_begin" : "+a"(rax), "+D"(d)::"rcx", "rdx", "r11", "memory", "cc");
    for (int i = 0; i < 6; i++)
        if (string_dst[i] != 0x41)
            _exit(34);
    _exit(33);
}

TEST(ptrace, single_step)
{
    pid_t pid = start_tracee(trace_body);
    SYS(ptrace(PTRACE_CONT, pid, 0, 0));
    int status = wait_for(pid);
    EQ(WSTOPSIG(status), SIGTRAP);
    EQ(regs_of(pid).rip, trace_begin + 1);

    EQ(step(pid), SIGTRAP);
    EQ(regs_of(pid).rip, trace_loop);
    for (int i = 0; i < 4; i++) {
        uint64_t rax = regs_of(pid).rax;
        EQ(step(pid), SIGTRAP);
        EQ(regs_of(pid).rax, rax + 3);
        EQ(step(pid), SIGTRAP);
        EQ(regs_of(pid).rcx, 3 - i);
        EQ(step(pid), SIGTRAP);
        EQ(regs_of(pid).rip, i < 3 ? trace_loop : trace_loop + 8);
    }
    EQ(step(pid), SIGTRAP);
    EQ(step(pid), SIGTRAP);
    EQ(regs_of(pid).rip, trace_string);
    for (int i = 0; i < 6; i++) { /* one trap for each iteration */
        EQ(step(pid), SIGTRAP);
        EQ(regs_of(pid).rcx, 5 - i);
        EQ(regs_of(pid).rdi, string_dst + i + 1);
        EQ(regs_of(pid).rip, i < 5 ? trace_string : trace_string + 2);
    }
    EQ(step(pid), SIGTRAP);
    EQ(regs_of(pid).rip, trace_syscall);
    EQ(step(pid), SIGTRAP);
    EQ(regs_of(pid).rip, trace_after);
    EQ(regs_of(pid).rax, pid);
    EQ(step(pid), SIGTRAP);
    EQ(step(pid), SIGTRAP);
    EQ(step(pid), SIGTRAP);
    EQ(regs_of(pid).rip, trace_end);
    finish(pid, 33);
}

static void count_body(void)
{
    volatile uint64_t sum = 0;
    for (uint64_t i = 0; i < 50; i++)
        sum += i * i;
    _exit(sum == 40425 ? 33 : 34);
}

TEST(ptrace, step_to_the_end)
{
    pid_t pid = start_tracee(count_body);
    int status, steps = 0;
    do {
        SYS(ptrace(PTRACE_SINGLESTEP, pid, 0, 0));
        status = wait_for(pid);
        steps++;
        if (WIFSTOPPED(status))
            EQ(WSTOPSIG(status), SIGTRAP);
    } while (WIFSTOPPED(status) && steps < 100000);
    CHECK(WIFEXITED(status));
    EQ(WEXITSTATUS(status), 33);
    CHECK(steps > 200);
}

__attribute__((noinline, noclone)) static uint64_t patched(uint64_t x)
{
    asm volatile("" : "+r"(x));
    return x * 3 + 1;
}

static void breakpoint_body(void)
{
    uint64_t v = 1;
    for (int i = 0; i < 10; i++)
        v = patched(v);
    _exit(v == 88573 ? 33 : 34);
}

TEST(ptrace, software_breakpoints)
{
    pid_t pid = start_tracee(breakpoint_body);
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, patched, 0);
    EQ(errno, 0);
    EQ(word, *(long *)patched);
    long brk = (word & ~0xffl) | 0xcc;
    for (int i = 0; i < 10; i++) {
        SYS(ptrace(PTRACE_POKETEXT, pid, patched, brk));
        SYS(ptrace(PTRACE_CONT, pid, 0, 0));
        int status = wait_for(pid);
        EQ(WSTOPSIG(status), SIGTRAP);
        struct user_regs_struct r = regs_of(pid);
        EQ(r.rip, (uint64_t)patched + 1);
        r.rip--;
        SYS(ptrace(PTRACE_SETREGS, pid, 0, &r));
        SYS(ptrace(PTRACE_POKETEXT, pid, patched, word));
        EQ(step(pid), SIGTRAP);
    }
    finish(pid, 33);
    EQ(*(long *)patched, word); /* our own copy was never changed */
}

static void poke_dr(pid_t pid, unsigned n, uint64_t v)
{
    if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg) + n * 8, v))
        FAIL("cannot set DR%u: %s", n, strerror(errno));
}

static uint64_t peek_dr(pid_t pid, unsigned n)
{
    errno = 0;
    long v = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg) + n * 8, 0);
    EQ(errno, 0);
    return (uint64_t)v;
}

static void watch_body(void)
{
    uint64_t v = 1;
    for (uint64_t i = 0; i < 5; i++) {
        watched[0] = i;      /* not watched */
        watched[1] = i * 10; /* watched for writes */
        v = patched(v);
        asm volatile("" : "+r"(v));
    }
    _exit(v == 364 && watched[1] == 40 ? 33 : 34);
}

TEST(ptrace, hardware_breakpoint)
{
    pid_t pid = start_tracee(watch_body);
    poke_dr(pid, 0, (uint64_t)patched);
    poke_dr(pid, 7, 0x1);
    for (int i = 0; i < 5; i++) {
        SYS(ptrace(PTRACE_CONT, pid, 0, 0));
        int status = wait_for(pid);
        CHECK(WIFSTOPPED(status));
        EQ(WSTOPSIG(status), SIGTRAP);
        EQ(regs_of(pid).rip, patched);
        EQ(peek_dr(pid, 6) & 0xf, 1);
    }
    poke_dr(pid, 7, 0);
    finish(pid, 33);
}

TEST(ptrace, hardware_watchpoint)
{
    pid_t pid = start_tracee(watch_body);
    poke_dr(pid, 1, (uint64_t)&watched[1]);
    poke_dr(pid, 7, 0x4 | 0x9ul << 20); /* DR1: write, 8 bytes */
    for (uint64_t i = 0; i < 5; i++) {
        SYS(ptrace(PTRACE_CONT, pid, 0, 0));
        int status = wait_for(pid);
        CHECK(WIFSTOPPED(status));
        EQ(WSTOPSIG(status), SIGTRAP);
        EQ(peek_dr(pid, 6) & 0xf, 2);
        EQ(ptrace(PTRACE_PEEKDATA, pid, &watched[1], 0), i * 10);
    }
    poke_dr(pid, 7, 0);
    finish(pid, 33);
}

static void syscall_body(void)
{
    for (int i = 0; i < 5; i++)
        if (syscall(SYS_getppid) != 4321)
            _exit(34);
    _exit(33);
}

TEST(ptrace, syscall_results_changed)
{
    pid_t pid = start_tracee(syscall_body);
    for (int i = 0; i < 5; i++) {
        SYS(ptrace(PTRACE_SYSCALL, pid, 0, 0));
        EQ(WSTOPSIG(wait_for(pid)), SIGTRAP);
        EQ(regs_of(pid).orig_rax, SYS_getppid);
        SYS(ptrace(PTRACE_SYSCALL, pid, 0, 0));
        EQ(WSTOPSIG(wait_for(pid)), SIGTRAP);
        struct user_regs_struct r = regs_of(pid);
        r.rax = 4321;
        SYS(ptrace(PTRACE_SETREGS, pid, 0, &r));
    }
    finish(pid, 33);
}

static void vector_body(void)
{
    uint64_t v[2];
    asm volatile("pcmpeqd %%xmm5, %%xmm5\n\tint3\n\tmovups %%xmm5, %0" : "=m"(v)::"xmm5");
    _exit(v[0] == 0x1122334455667788 && v[1] == ~0ul ? 33 : 34);
}

TEST(ptrace, vector_registers)
{
    pid_t pid = start_tracee(vector_body);
    SYS(ptrace(PTRACE_CONT, pid, 0, 0));
    EQ(WSTOPSIG(wait_for(pid)), SIGTRAP);
    struct user_fpregs_struct fp;
    SYS(ptrace(PTRACE_GETFPREGS, pid, 0, &fp));
    EQ(fp.xmm_space[5 * 4], 0xffffffff);
    fp.xmm_space[5 * 4] = 0x55667788;
    fp.xmm_space[5 * 4 + 1] = 0x11223344;
    SYS(ptrace(PTRACE_SETFPREGS, pid, 0, &fp));
    static uint8_t xstate[16384];
    struct iovec iov = {xstate, sizeof(xstate)};
    SYS(ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &iov));
    EQ(*(uint64_t *)(xstate + 160 + 5 * 16), 0x1122334455667788);
    SYS(ptrace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, &iov));
    finish(pid, 33);
}

static void all_regs_body(void)
{
    uint64_t ok;
    asm volatile("int3\n\t"
                 "lea (%%r10,%%r11), %%rax\n\tadd %%r12, %%rax\n\tadd %%r13, %%rax\n\t"
                 "add %%r14, %%rax\n\tadd %%r15, %%rax\n\tadd %%r8, %%rax\n\tadd %%r9, %%rax\n\t"
                 "add %%rsi, %%rax\n\tadd %%rdi, %%rax\n\tadd %%rcx, %%rax\n\tadd %%rdx, %%rax"
                 : "=a"(ok)::"rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
                   "r14", "r15", "cc");
    _exit(ok == 0xfff ? 33 : 34);
}

TEST(ptrace, set_all_registers)
{
    pid_t pid = start_tracee(all_regs_body);
    SYS(ptrace(PTRACE_CONT, pid, 0, 0));
    EQ(WSTOPSIG(wait_for(pid)), SIGTRAP);
    struct user_regs_struct r = regs_of(pid);
    r.r8 = 1, r.r9 = 2, r.r10 = 4, r.r11 = 8, r.r12 = 16, r.r13 = 32, r.r14 = 64, r.r15 = 128;
    r.rsi = 256, r.rdi = 512, r.rcx = 1024, r.rdx = 2048;
    SYS(ptrace(PTRACE_SETREGS, pid, 0, &r));
    finish(pid, 33);
}
