/*
 * What translated code costs, exactly: host instructions run for each guest instruction, by class
 * of instruction, in loops that have become hot.  A child process runs each loop in the translator
 * while its parent steps it with PTRACE_SINGLESTEP, so the figures are the same on every machine
 * and under any load; helpers in C count too.  The difference between two lengths of a loop
 * cancels what surrounds it.
 *
 *     insn_cost [--check] [CLASS...]
 *
 * --check compares with the bounds below and fails where one is exceeded: a worse translation, or
 * one whose bound has to be raised with a reason.  A better one should lower its bound.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/bt_fixture.h"
#include "translator/bt.h"

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    v->events |= events;
}

enum { WARM = 3000, SHORT = 4, LONG = 12 };
#define UPPER 0xffff800000000000ull /* the RAM once more: kernel code has windows up there */

/*
 * A class is a subroutine that loops rbp times over `body`, called from a loop that halts in
 * between.  rdi (and r12) and rsi point to two areas of data, rbx and r13 are small, r8 is a
 * function that returns.  The counter, its branch and nothing else are added to the body's
 * instructions.
 */
#define CLASS(name, body)                                                                          \
    asm(".pushsection .rodata\n"                                                                   \
        "class_" #name ":\n"                                                                       \
        "1: lea 9f(%rip), %r8\n\tlea 8f(%rip), %r9\n\tcall 2f\n\thlt\n\tjmp 1b\n"                  \
        ".balign 16\n"                                                                             \
        "2: " body "\n\tdec %ebp\n\tjnz 2b\n\tret\n"                                               \
        ".balign 16\n"                                                                             \
        "8: inc %edx\n\tret\n"                                                                     \
        ".balign 16\n"                                                                             \
        "9: inc %ecx\n\tret\n"                                                                     \
        "class_" #name "_end:\n"                                                                   \
        ".popsection");                                                                            \
    extern const uint8_t class_##name[], class_##name##_end[];

CLASS(alu, "add %eax, %ecx\n\tlea (%rcx,%rbx,4), %rdx\n\timul %rdx, %rcx\n\txor %edx, %eax\n\t"
           "shl $3, %rdx\n\tsub %rdx, %rax\n\tmovzx %cl, %edx\n\tcmova %edx, %eax")
CLASS(branch, "test %ebx, %ebx\n\tjz 3f\n\tcmp $7, %ebx\n\tja 3f\n\tadd $1, %rax\n\tjmp 4f\n"
              "3:\tinc %edx\n4:")
CLASS(load,
      "mov (%rdi), %rax\n\tmov 8(%rdi), %rcx\n\tmov 16(%rdi), %edx\n\tmovzbl 24(%rdi), %r10d\n\t"
      "mov 32(%rsi), %rax\n\tadd 40(%rsi), %rax\n\tcmp 48(%rdi), %rax\n\tmovslq 56(%rdi), %r11")
CLASS(store, "mov %rax, (%rdi)\n\tmov %ecx, 8(%rdi)\n\tmov %dl, 16(%rdi)\n\tmovq $1, 24(%rsi)\n\t"
             "mov %rax, 32(%rsi)\n\tadd %rax, 40(%rdi)\n\tincl 48(%rdi)\n\torb $1, 56(%rsi)")
CLASS(index, "movzbl (%rdi,%rbx), %eax\n\tmov (%rsi,%rax,8), %rcx\n\txor %rcx, %rdx\n\t"
             "and $255, %edx\n\tmov (%rdi,%rdx,4), %eax\n\tmov %eax, (%rsi,%rdx,4)")
CLASS(chase, "mov (%rsi), %rsi\n\tadd 8(%rsi), %rax\n\tmov (%rsi), %rsi\n\tadd 8(%rsi), %rax")
CLASS(flags, "cmp %ebx, %ecx\n\tmov (%rdi), %rax\n\tadc $0, %rdx\n\tcmp %ebx, %edx\n\t"
             "mov 8(%rsi), %rcx\n\tsetb %al")
CLASS(push, "push %rax\n\tpush %rcx\n\tpush %rbx\n\tpop %rcx\n\tpop %rdx\n\tpop %rax")
CLASS(call, "call 9f\n\tcall 8f")
CLASS(indirect, "xchg %r8, %r9\n\tcall *%r8")
CLASS(sse, "movups (%rdi), %xmm0\n\tmovups 16(%rdi), %xmm1\n\taddps %xmm1, %xmm0\n\t"
           "mulps 32(%rsi), %xmm0\n\tmovups %xmm0, 48(%rsi)\n\tpaddd %xmm0, %xmm1")
CLASS(string, "mov %rdi, %rax\n\tmov %rsi, %rdx\n\tmovsb\n\tmovsq\n\tstosb\n\tlodsb\n\t"
              "mov %rax, %rdi\n\tmov %rdx, %rsi\n\txor %eax, %eax\n\tmov %r12, %rdi\n\t"
              "lea 0x10000(%rdi), %rsi")
CLASS(sensitive, "pushfq\n\tcli\n\tpopfq\n\tmov %cr0, %rax\n\tswapgs")

static const struct class
{
    const char *name;
    const uint8_t *code, *end;
    bool hot;            /* has memory accesses, so it must get the window form                */
    unsigned insns;      /* of the body, the counter and its branch; what is called counts too */
    double window, soft; /* bounds: host instructions for each guest instruction               */
} classes[] = {
// clang-format off
#define ROW(name, hot, insns, window, soft)                                                        \
    {#name, class_##name, class_##name##_end, hot, insns, window, soft}
    ROW(alu,       false, 10, 1.3, 1.3),
    ROW(branch,    false,  8, 1.7, 1.7),
    ROW(load,      true,  10, 2.2, 9.6),
    ROW(store,     true,  10, 2.0, 8.7),
    ROW(index,     true,   8, 3.6, 7.7),
    ROW(chase,     true,   6, 3.1, 7.3),
    ROW(flags,     true,   8, 2.0, 5.4),
    ROW(push,      true,   8, 1.2, 14.3),
    ROW(call,      true,   8, 4.6, 13.4),
    ROW(indirect,  true,   6, 5.0, 11.0),
    ROW(sse,       true,   8, 2.0, 9.2),
    ROW(string,    true,  13, 4.2, 115.0),
    ROW(sensitive, false,  7, 11.0, 14.5),
    // clang-format on
};
enum { CLASSES = sizeof(classes) / sizeof(classes[0]) };

static void run_loop(struct bt_fixture *f, uint64_t count)
{
    f->v->gpr[RBP] = count;
    if (fx_run(f) != -1) {
        fprintf(stderr, "insn_cost: the guest stopped at %#llx: %s\n",
                (unsigned long long)f->v->rip, f->v->exit_reason);
        _exit(3);
    }
}

/* Stops for the parent before and after each of the two measured loops. */
static void child(const struct class *c, enum mem_mode mode)
{
    struct bt_fixture f;
    /* Nothing that depends on the time may run between the two loops. */
    struct engine_config cfg = {.mem_mode = mode, .tick_cycles = 1ull << 62};
    fx_create(&f, &cfg);
    fx_write(&f, FX_CODE, c->code, (uint64_t)(c->end - c->code));
    fx_put64(&f, FX_PT + 8 * 256, (FX_PT + 0x1000) | 3);
    f.v->rip += UPPER;
    f.v->gpr[RSP] += UPPER;
    f.v->gpr[RDI] = f.v->gpr[R12] = UPPER + FX_DATA;
    f.v->gpr[RSI] = UPPER + FX_DATA + 0x10000;
    f.v->gpr[RBX] = 1;
    for (uint64_t i = 0; i < 512; i++) /* a ring of pointers for "chase" */
        fx_put64(&f, FX_DATA + 0x10000 + 64 * i, UPPER + FX_DATA + 0x10000 + 64 * ((i + 1) % 512));
    run_loop(&f, WARM);
    run_loop(&f, WARM);
    static const uint64_t counts[] = {SHORT, LONG};
    for (unsigned i = 0; i < 2; i++) {
        raise(SIGSTOP);
        run_loop(&f, counts[i]);
        raise(SIGSTOP);
    }
    if (getenv("INSN_COST_STEPS"))
        f.engine->ops->print_stats(f.engine, stderr);
    const struct bt_stats *s = &((const struct bt_engine *)f.engine)->stats;
    _exit(s->hot_blocks || mode == MEM_SOFT || !c->hot ? 0 : 4);
}

/* Runs the child to its next SIGSTOP, handing other signals on; returns the steps, or 0 if the
 * child ended. */
static uint64_t until_stop(pid_t pid, bool step, int *status)
{
    int signal = 0;
    for (uint64_t steps = 0;; steps++) {
        if (ptrace(step ? PTRACE_SINGLESTEP : PTRACE_CONT, pid, 0, signal))
            return 0;
        if (waitpid(pid, status, 0) != pid || !WIFSTOPPED(*status))
            return 0;
        signal = WSTOPSIG(*status);
        if (signal == SIGSTOP)
            return steps + 1;
        if (signal == SIGTRAP)
            signal = 0;
    }
}

/* Host instructions for each guest instruction, or a negative value. */
static double measure(const struct class *c, enum mem_mode mode)
{
    pid_t pid = fork();
    if (pid < 0)
        return -1;
    if (!pid) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) {
            fprintf(stderr, "insn_cost: SKIPPED: no ptrace here: %s\n", strerror(errno));
            _exit(77);
        }
        raise(SIGSTOP);
        child(c, mode);
    }
    int status;
    uint64_t steps[2] = {0, 0};
    if (waitpid(pid, &status, 0) != pid)
        return -1;
    until_stop(pid, false, &status); /* to the short loop; faults on the way are the child's own */
    for (unsigned i = 0; i < 2 && WIFSTOPPED(status); i++) {
        steps[i] = until_stop(pid, true, &status);
        until_stop(pid, false, &status);
    }
    while (WIFSTOPPED(status) && !ptrace(PTRACE_CONT, pid, 0, 0) && waitpid(pid, &status, 0) == pid)
        ;
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
            exit(77);
        fprintf(stderr, "insn_cost: %s: the child ended with %#x%s\n", c->name, (unsigned)status,
                WIFEXITED(status) && WEXITSTATUS(status) == 4 ? ": its loop did not become hot"
                                                              : "");
        return -1;
    }
    if (getenv("INSN_COST_STEPS"))
        fprintf(stderr, "%s: %llu %llu steps\n", c->name, (unsigned long long)steps[0],
                (unsigned long long)steps[1]);
    return (double)((int64_t)steps[1] - (int64_t)steps[0]) / ((LONG - SHORT) * (double)c->insns);
}

static bool chosen(const char *name, char **names, int n)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return true;
    return n == 0;
}

int main(int argc, char **argv)
{
    bool check = argc > 1 && !strcmp(argv[1], "--check"), failed = false;
    char **names = argv + 1 + check;
    int n = argc - 1 - check;
    /* Hashes of host addresses should not move between runs. */
    if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE) && personality(ADDR_NO_RANDOMIZE) >= 0)
        execv("/proc/self/exe", argv);
    printf("%-10s %13s %8s %13s %8s   host instructions run for each guest instruction\n", "class",
           "window form", "bound", "soft form", "bound");
    for (unsigned i = 0; i < CLASSES; i++) {
        const struct class *c = &classes[i];
        if (!chosen(c->name, names, n))
            continue;
        double window = measure(c, MEM_MIXED), soft = measure(c, MEM_SOFT);
        bool bad = window < 0 || soft < 0 || window > c->window || soft > c->soft;
        printf("%-10s %13.2f %8.2f %13.2f %8.2f%s\n", c->name, window, c->window, soft, c->soft,
               bad ? "   EXCEEDED" : "");
        fflush(stdout);
        failed |= bad;
    }
    return check && failed ? 1 : 0;
}
