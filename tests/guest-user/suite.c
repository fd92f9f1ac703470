/* The test loop: each test in a child process, with a time limit. */
#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include "suite.h"

extern const struct test __start_suite_tests[], __stop_suite_tests[];

struct caught caught;

static struct report {
    volatile int state; /* 0 running, 1 failed, 2 skipped */
    char message[500];
} * report;

static uint64_t rng_state;
static sigjmp_buf catch_env;

enum { CODE_FAIL = 91, CODE_SKIP = 92, TIME_LIMIT = 300 };

void fail_at(const char *file, int line, const char *fmt, ...)
{
    const char *base = strrchr(file, '/');
    va_list ap;
    va_start(ap, fmt);
    /* The first failure counts, also when a child of the test reports it. */
    if (report->state == 0) {
        report->state = 1;
        int n = snprintf(report->message, sizeof(report->message),
                         "%s:%d: ", base ? base + 1 : file, line);
        vsnprintf(report->message + n, sizeof(report->message) - (size_t)n, fmt, ap);
    }
    va_end(ap);
    _exit(CODE_FAIL);
}

void skip(const char *reason)
{
    report->state = 2;
    snprintf(report->message, sizeof(report->message), "%s", reason);
    _exit(CODE_SKIP);
}

bool on_tcg(void)
{
    unsigned a, b, c, d;
    __cpuid(1, a, b, c, d);
    if (!(c >> 31 & 1))
        return false;
    __cpuid(0x40000000, a, b, c, d);
    return b == 0x54474354; /* "TCGTCGTCGTCG" */
}

uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state * 0x2545f4914f6cdd1dul;
}

uint32_t crc32(uint32_t crc, const void *data, size_t size)
{
    static uint32_t table[256];
    static volatile bool ready;
    if (!ready) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
            table[i] = c;
        }
        ready = true;
    }
    const uint8_t *p = data;
    crc = ~crc;
    while (size--)
        crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
    return ~crc;
}

void *map_pages(size_t pages, int prot)
{
    void *p = mmap(NULL, pages * 4096, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        FAIL("mmap of %zu pages: %s", pages, strerror(errno));
    return p;
}

void handle(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
    struct sigaction sa = {.sa_sigaction = fn, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&sa.sa_mask);
    SYS(sigaction(sig, &sa, NULL));
}

double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

int wait_for(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) != pid)
        if (errno != EINTR)
            FAIL("waitpid: %s", strerror(errno));
    return status;
}

static void on_caught(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    caught.info = *info;
    memcpy(caught.gregs, uc->uc_mcontext.gregs, sizeof(caught.gregs));
    siglongjmp(catch_env, sig);
}

int catch_signal(void (*fn)(void *), void *arg)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < 5; i++)
        handle(signals[i], on_caught, 0);
    int sig = sigsetjmp(catch_env, 1);
    if (!sig)
        fn(arg);
    for (unsigned i = 0; i < 5; i++)
        signal(signals[i], SIG_DFL);
    return sig;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--child")) { /* what the exec tests start */
        if (argc > 3 && !strcmp(argv[2], "exit"))
            return atoi(argv[3]);
        if (argc > 2 && !strcmp(argv[2], "env"))
            return getenv("SUITE_VALUE") ? (int)strlen(getenv("SUITE_VALUE")) : 0;
        if (argc > 2 && !strcmp(argv[2], "cat")) {
            char buf[4096];
            ssize_t n;
            while ((n = read(0, buf, sizeof(buf))) > 0)
                if (write(1, buf, (size_t)n) != n)
                    return 1;
            return 0;
        }
        return 99;
    }
    if (argc > 1 && !strcmp(argv[1], "--list")) {
        for (const struct test *t = __start_suite_tests; t < __stop_suite_tests; t++)
            puts(t->name);
        return 0;
    }
    unsigned passed = 0, failed = 0, skipped = 0;
    report = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (const struct test *t = __start_suite_tests; t < __stop_suite_tests; t++) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++)
            wanted |= !strncmp(t->name, argv[i], strlen(argv[i]));
        if (!wanted)
            continue;
        report->state = 0;
        report->message[0] = 0;
        double begun = now();
        fflush(stdout);
        pid_t pid = fork();
        if (!pid) {
            setpgid(0, 0);
            rng_state = 0x9e3779b97f4a7c15ul;
            t->fn();
            _exit(0);
        }
        /* A limit on the child by the parent: tests use the alarm clock themselves. */
        int status = 0;
        double limit = now() + TIME_LIMIT;
        bool timeout = false;
        pid_t got;
        while ((got = waitpid(pid, &status, WNOHANG)) == 0) {
            if (now() > limit) {
                timeout = true;
                kill(-pid, SIGKILL);
                kill(pid, SIGKILL);
                waitpid(pid, &status, 0);
                break;
            }
            double age = now() - begun;
            usleep(age < 0.02 ? 500 : age < 0.5 ? 5000 : 50000);
        }
        kill(-pid, SIGKILL); /* whatever it left behind */
        double took = now() - begun;
        if (timeout)
            snprintf(report->message, sizeof(report->message), "no end after %d s", TIME_LIMIT);
        else if (WIFSIGNALED(status))
            snprintf(report->message, sizeof(report->message), "killed by signal %d (%s)",
                     WTERMSIG(status), strsignal(WTERMSIG(status)));
        else if (report->state == 2) {
            printf("skip %s: %s\n", t->name, report->message);
            skipped++;
            continue;
        } else if (WEXITSTATUS(status) == 0 && report->state == 0) {
            printf("ok %s (%.2f s)\n", t->name, took);
            passed++;
            continue;
        } else if (!report->message[0])
            snprintf(report->message, sizeof(report->message), "exit status %d",
                     WEXITSTATUS(status));
        printf("FAIL %s: %s\n", t->name, report->message);
        failed++;
    }
    printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
    return failed || !passed;
}
