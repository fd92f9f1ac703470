/*
 * The user-mode counterparts of nano.c, for the native column: what the host's CPU and kernel take
 * for the operations that a program can do.  Where it takes a signal (pgfault, divzero), the figure
 * is that of the host kernel's signal delivery and return, not of the bare exception.
 * The same output as nano.c.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

static uint64_t rdtsc(void)
{
    return __builtin_ia32_rdtsc();
}

#define SAMPLE(name, text)                                                                         \
    static uint64_t sample_##name(uint64_t rounds)                                                 \
    {                                                                                              \
        uint64_t begin = rdtsc();                                                                  \
        asm volatile("sub $256, %%rsp\n1:\n\t.rept 4\n\t" text                                     \
                     "\n\t.endr\n\tdec %0\n\tjnz 1b\n\tadd $256, %%rsp"                            \
                     : "+r"(rounds)                                                                \
                     : [fault] "r"(fault_page)                                                     \
                     : "rax", "rbx", "rcx", "rdx", "rsi", "r10", "r11", "memory", "cc");           \
        return rdtsc() - begin;                                                                    \
    }
static void *fault_page;
SAMPLE(empty, "")
SAMPLE(callret, "call 3f\n\tjmp 4f\n3:\tret\n4:")
SAMPLE(callind, "lea 3f(%%rip), %%rbx\n\tcall *%%rbx\n\tjmp 4f\n3:\tret\n4:")
SAMPLE(pushf, "pushfq\n\tpopfq")
SAMPLE(cpuid, "xor %%eax, %%eax\n\tcpuid")
SAMPLE(rdtsc, "rdtsc")
SAMPLE(syscall, "mov $110, %%eax\n\tsyscall") /* getppid */
SAMPLE(pgfault, "xor %%eax, %%eax\n\tmovb (%[fault]), %%al\n\tnop")
SAMPLE(divzero, "xor %%ecx, %%ecx\n\txor %%edx, %%edx\n\tdiv %%ecx\n\tnop")

/* Over the instruction: MOVB is 2 or 3 bytes (a REX prefix for r8 and up), DIV is 2. */
static void step_over(int sig, siginfo_t *info, void *context)
{
    greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    const uint8_t *at = (const uint8_t *)*rip;
    *rip += (at[0] & 0xf0) == 0x40 ? 3 : 2;
}

static const struct {
    const char *name;
    uint64_t (*fn)(uint64_t rounds);
} samples[] = {
    {"callret", sample_callret}, {"callind", sample_callind}, {"pushf+popf", sample_pushf},
    {"cpuid", sample_cpuid},     {"rdtsc", sample_rdtsc},     {"syscall", sample_syscall},
    {"pgfault", sample_pgfault}, {"divzero", sample_divzero},
};

static uint64_t measure(uint64_t (*fn)(uint64_t))
{
    uint64_t rounds = 64, best = UINT64_MAX;
    while (fn(rounds) < 40000000)
        rounds *= 2;
    for (unsigned i = 0; i < 5; i++) {
        uint64_t per = fn(rounds) * 1000 / rounds;
        best = per < best ? per : best;
    }
    return best;
}

int main(void)
{
    struct sigaction sa = {.sa_sigaction = step_over, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGFPE, &sa, NULL);
    fault_page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("NANO-CLOCK %llu\n", (unsigned long long)rdtsc());
    uint64_t empty = measure(sample_empty);
    for (unsigned i = 0; i < sizeof(samples) / sizeof(samples[0]); i++) {
        uint64_t t = measure(samples[i].fn);
        printf("NANO %s %llu\n", samples[i].name,
               (unsigned long long)(t > empty ? (t - empty) / 4 : 1));
    }
    printf("NANO-CLOCK %llu\n", (unsigned long long)rdtsc());
    return 0;
}
