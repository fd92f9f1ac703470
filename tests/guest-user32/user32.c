/*
 * user32: what 32-bit programs rely on, tested from inside one: processes, signals, threads, x87
 * and SSE, segments of an LDT, virtual-8086 mode.  Static, so that it runs in any initramfs; runs
 * natively as well, where the host's kernel takes 32-bit programs.
 *
 * Ends with "user32: N passed, M failed" and exit code M; what the kernel lacks is "skipped".
 */
#include <asm/ldt.h>
#include <asm/vm86.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            printf("user32: line %d: %s (errno %d)\n", __LINE__, #cond, errno);                    \
            return FAILED;                                                                         \
        }                                                                                          \
    } while (0)

enum result { PASSED, FAILED, SKIPPED };

static const char *self;

/* ---- Processes --------------------------------------------------------------------------------
 */

static enum result test_fork_exec(void)
{
    for (int i = 0; i < 20; i++) {
        int status, pair[2];
        char number[16], text[16] = "";
        CHECK(pipe(pair) == 0);
        pid_t pid = fork();

        CHECK(pid >= 0);
        if (pid == 0) {
            dup2(pair[1], 1);
            snprintf(number, sizeof(number), "%d", i);
            execl(self, self, "child", number, (char *)NULL);
            _exit(127);
        }
        close(pair[1]);
        CHECK(read(pair[0], text, sizeof(text) - 1) > 0);
        close(pair[0]);
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 40 + i);
        CHECK(atoi(text) == i * i);
    }
    return PASSED;
}

/* Copy on write: what the child writes stays the child's. */
static enum result test_private_memory(void)
{
    const size_t size = 1 << 20;
    uint32_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int status;

    CHECK(p != MAP_FAILED);
    for (size_t i = 0; i < size / 4; i += 1024)
        p[i] = (uint32_t)i;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        for (size_t i = 0; i < size / 4; i += 1024) {
            if (p[i] != i)
                _exit(1);
            p[i] = ~(uint32_t)i;
        }
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    for (size_t i = 0; i < size / 4; i += 1024)
        CHECK(p[i] == i);
    munmap(p, size);
    return PASSED;
}

/* ---- Signals ----------------------------------------------------------------------------------
 */

static sigjmp_buf escape;
static volatile int last_signal, last_code;
static void *volatile last_address;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    last_signal = sig;
    last_code = info->si_code;
    last_address = info->si_addr;
    siglongjmp(escape, 1);
}

static void handle(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
    struct sigaction a = {.sa_sigaction = fn, .sa_flags = SA_SIGINFO | flags};

    sigemptyset(&a.sa_mask);
    sigaction(sig, &a, NULL);
}

static enum result test_faults(void)
{
    uint8_t *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile int zero = 0;

    CHECK(page != MAP_FAILED && munmap(page + 4096, 4096) == 0);
    handle(SIGSEGV, on_fault, 0);
    handle(SIGFPE, on_fault, 0);
    handle(SIGILL, on_fault, 0);
    handle(SIGTRAP, on_fault, 0);
    if (!sigsetjmp(escape, 1))
        *(volatile uint8_t *)(page + 17) = 1;
    CHECK(last_signal == SIGSEGV && last_code == SEGV_ACCERR && last_address == page + 17);
    if (!sigsetjmp(escape, 1))
        (void)*(volatile uint8_t *)(page + 4096);
    CHECK(last_signal == SIGSEGV && last_code == SEGV_MAPERR && last_address == page + 4096);
    if (!sigsetjmp(escape, 1))
        zero = 100 / zero;
    CHECK(last_signal == SIGFPE && last_code == FPE_INTDIV);
    if (!sigsetjmp(escape, 1))
        __asm__ volatile("ud2");
    CHECK(last_signal == SIGILL);
    if (!sigsetjmp(escape, 1))
        __asm__ volatile("int3");
    CHECK(last_signal == SIGTRAP);
    if (!sigsetjmp(escape, 1))
        __asm__ volatile("hlt"); /* privileged: #GP */
    CHECK(last_signal == SIGSEGV);
    munmap(page, 4096);
    return PASSED;
}

static volatile int ticks;

static void on_tick(int sig, siginfo_t *info, void *context)
{
    volatile double x = 1.5;

    (void)sig, (void)info, (void)context;
    ticks += x * x > 2; /* uses the FPU, which the interrupted code is using */
}

static enum result test_timer_keeps_fpu(void)
{
    struct itimerval t = {{0, 5000}, {0, 5000}}, off = {{0, 0}, {0, 0}};
    long double sum = 0, again = 0;

    handle(SIGALRM, on_tick, SA_ONSTACK | SA_RESTART);
    stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = (size_t)SIGSTKSZ};
    CHECK(sigaltstack(&stack, NULL) == 0);
    for (int i = 1; i < 200000; i++)
        sum += 1.0L / i;
    ticks = 0;
    CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
    while (ticks < 20) {
        again = 0;
        for (int i = 1; i < 200000; i++)
            again += 1.0L / i;
        if (again != sum)
            break;
    }
    setitimer(ITIMER_REAL, &off, NULL);
    CHECK(again == sum);
    return PASSED;
}

/* ---- Threads ----------------------------------------------------------------------------------
 */

enum { THREADS = 8, ROUNDS = 20000 };
static atomic_uint counter;
static unsigned guarded;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread unsigned own;

static void *worker(void *arg)
{
    own = (unsigned)(uintptr_t)arg;
    for (unsigned i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&counter, 1);
        if (i % 64 == 0) {
            pthread_mutex_lock(&mutex);
            guarded++;
            pthread_mutex_unlock(&mutex);
        }
        own++;
    }
    return (void *)(uintptr_t)own;
}

static enum result test_threads(void)
{
    pthread_t thread[THREADS];

    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&thread[i], NULL, worker, (void *)(uintptr_t)(i * 1000000)) == 0);
    for (unsigned i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(thread[i], &result) == 0);
        CHECK((uintptr_t)result == i * 1000000 + ROUNDS);
    }
    CHECK(counter == THREADS * ROUNDS && guarded == THREADS * ((ROUNDS + 63) / 64));
    return PASSED;
}

/* ---- Arithmetic -------------------------------------------------------------------------------
 */

static enum result test_arithmetic(void)
{
    volatile uint64_t a = 0xfedcba9876543210ull, b = 12345678901ull;
    volatile double x = 0.7;

    CHECK(a / b == 1487545455 && a % b == 0xfedcba9876543210ull - 1487545455ull * b);
    CHECK(fabs(sin(x) * sin(x) + cos(x) * cos(x) - 1) < 1e-15);
    CHECK(fabsl(expl(logl(10.0L)) - 10.0L) < 1e-17L);
    CHECK((int)strtod("1234.75", NULL) == 1234);
    /* Decimal adjustment, which 64-bit code has not: 0x38 + 0x45 = 0x83 in BCD. */
    uint32_t bcd = 0x38;
    __asm__("addb $0x45, %%al; daa" : "+a"(bcd) : : "cc");
    CHECK((bcd & 0xff) == 0x83);
    uint32_t regs[8];
    __asm__ volatile("pushal; movl %%esp, %%esi; movl $8, %%ecx; rep movsl; popal"
                     :
                     : "D"(regs), "a"(0x11223344)
                     : "memory", "cc");
    CHECK(regs[7] == 0x11223344 && regs[0] == (uint32_t)(uintptr_t)regs);
    return PASSED;
}

/* ---- Segments ---------------------------------------------------------------------------------
 */

static enum result test_ldt(void)
{
    static uint32_t data[1024] = {[3] = 0x600df00d};
    struct user_desc d = {.entry_number = 1,
                          .base_addr = (uint32_t)(uintptr_t)data,
                          .limit = 15,
                          .seg_32bit = 1,
                          .useable = 1};
    uint32_t value = 0;

    if (syscall(SYS_modify_ldt, 1, &d, sizeof(d)))
        return errno == ENOSYS ? SKIPPED : FAILED;
    __asm__ volatile("movw %w1, %%fs; movl %%fs:12, %0" : "=r"(value) : "r"(1 << 3 | 7));
    CHECK(value == 0x600df00d);
    handle(SIGSEGV, on_fault, 0);
    last_signal = 0;
    if (!sigsetjmp(escape, 1))
        __asm__ volatile("movl %%fs:13, %0" : "=r"(value)); /* its last byte is past the limit */
    CHECK(last_signal == SIGSEGV);
    __asm__ volatile("movw %w0, %%fs" : : "r"(0));
    return PASSED;
}

/* ---- Virtual-8086 mode ------------------------------------------------------------------------
 */

static enum result test_vm86(void)
{
    static const uint8_t code[] = {
        0xb8, 0x34, 0x12,       /* mov ax, 1234h */
        0x05, 0x01, 0x00,       /* add ax, 1 */
        0x1e, 0x07,             /* push ds; pop es */
        0x26, 0xa3, 0x00, 0x02, /* mov es:[200h], ax */
        0xfa, 0x9c, 0x5b, 0xfb, /* cli; pushf; pop bx; sti */
        0xcd, 0x80,             /* int 80h: back to us */
    };
    uint8_t *memory = mmap((void *)0x10000, 0x10000, PROT_READ | PROT_WRITE | PROT_EXEC,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    struct vm86_struct vm = {.regs = {.cs = 0x1000, .ds = 0x1000, .ss = 0x1000, .esp = 0xfff0},
                             .cpu_type = CPU_586};
    int result;

    if (memory == MAP_FAILED)
        return SKIPPED;
    memcpy(memory, code, sizeof(code));
    vm.int_revectored.__map[0x80 / 32] |= 1u << (0x80 % 32);
    do
        result = (int)syscall(SYS_vm86old, &vm);
    while (result != -1 && (VM86_TYPE(result) == VM86_SIGNAL || VM86_TYPE(result) == VM86_STI));
    if (result == -1 && errno == ENOSYS)
        return SKIPPED;
    CHECK(VM86_TYPE(result) == VM86_INTx && VM86_ARG(result) == 0x80);
    CHECK((vm.regs.eax & 0xffff) == 0x1235 && memory[0x200] == 0x35 && memory[0x201] == 0x12);
    CHECK(!(vm.regs.ebx & 0x200) && vm.regs.eip == sizeof(code));
    munmap(memory, 0x10000);
    return PASSED;
}

/* -----------------------------------------------------------------------------------------------
 */

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        enum result (*fn)(void);
    } tests[] = {
        {"fork, exec, pipe, wait", test_fork_exec},
        {"private memory", test_private_memory},
        {"faults become signals", test_faults},
        {"timer signals keep the FPU", test_timer_keeps_fpu},
        {"threads", test_threads},
        {"arithmetic", test_arithmetic},
        {"LDT", test_ldt},
        {"virtual-8086 mode", test_vm86},
    };
    unsigned count[3] = {0};

    if (argc == 3 && !strcmp(argv[1], "child")) {
        int n = atoi(argv[2]);

        printf("%d", n * n);
        return 40 + n;
    }
    self = argv[0];
    for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        static const char *const words[] = {"passed", "FAILED", "skipped"};
        enum result r = tests[i].fn();

        printf("user32: %-28s %s\n", tests[i].name, words[r]);
        fflush(stdout);
        count[r]++;
    }
    printf("user32: %u passed, %u failed, %u skipped\n", count[PASSED], count[FAILED],
           count[SKIPPED]);
    return (int)count[FAILED];
}
