/*
 * The operating system's work: system calls, faults, address-space changes, processes, switches.
 * Times of two processes or threads are those on one CPU; the harness pins us to one natively.
 */
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rsbench.h"

static int memfd(void)
{
    int fd = memfd_create("bench", MFD_CLOEXEC);
    if (fd < 0)
        die("memfd_create");
    return fd;
}

static int wait_for(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        die("waitpid");
    return WEXITSTATUS(status);
}

static struct result bench_syscall(void)
{
    uint64_t bad = 0;
    long parent = syscall(SYS_getppid);
    start();
    for (uint64_t i = 0; i < 50000; i++)
        bad += syscall(SYS_getppid) != parent;
    stop();
    return (struct result){50000, bad};
}

static struct result bench_fault(void)
{
    enum { PAGES = 2048 };
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 2; r++) {
        uint8_t *p =
            mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            die("mmap");
        madvise(p, PAGES * 4096, MADV_NOHUGEPAGE);
        for (unsigned i = 0; i < PAGES; i++) {
            check += p[i * 4096u + i];
            p[i * 4096u] = (uint8_t)i;
        }
        for (unsigned i = 0; i < PAGES; i++)
            check += p[i * 4096u];
        munmap(p, PAGES * 4096);
    }
    stop();
    return (struct result){2ull * PAGES, check};
}

static struct result bench_mmap(void)
{
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 2000; r++) {
        uint8_t *p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            die("mmap");
        p[4096] = (uint8_t)r;
        check += p[4096];
        munmap(p, 16384);
    }
    stop();
    return (struct result){2000, check};
}

static struct result bench_fork(void)
{
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 40; r++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid)
            _exit((int)(r & 63));
        int status;
        if (waitpid(pid, &status, 0) != pid)
            die("waitpid");
        check += (uint64_t)WEXITSTATUS(status);
    }
    stop();
    return (struct result){40, check};
}

static struct result bench_exec(void)
{
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 15; r++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid) {
            execl("/proc/self/exe", "rsbench", "exit", (char *)NULL);
            _exit(127);
        }
        int status;
        if (waitpid(pid, &status, 0) != pid)
            die("waitpid");
        check += (uint64_t)WEXITSTATUS(status);
    }
    stop();
    return (struct result){15, check};
}

static struct result bench_pipe(void)
{
    int there[2], back[2];
    uint64_t rounds = 2000, check = 0;
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (!pid) {
        uint8_t c;
        close(there[1]);
        while (read(there[0], &c, 1) == 1) {
            c++;
            if (write(back[1], &c, 1) != 1)
                break;
        }
        _exit(0);
    }
    close(there[0]);
    start();
    for (uint64_t i = 0; i < rounds; i++) {
        uint8_t c = (uint8_t)i;
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
            die("pipe");
        check += c;
    }
    stop();
    close(there[1]);
    close(back[0]);
    waitpid(pid, NULL, 0);
    return (struct result){rounds, check};
}

/* Two threads hand a token to each other through a futex. */
static _Atomic uint32_t token;
static uint64_t token_rounds;

static void token_pass(uint32_t me)
{
    for (uint64_t i = 0; i < token_rounds; i++) {
        uint32_t t;
        while ((t = token) % 2 != me)
            syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, t, NULL, NULL, 0);
        token = t + 1;
        syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *token_thread(void *arg)
{
    token_pass(1);
    return NULL;
}

static struct result bench_switch(void)
{
    pthread_t thread;
    token = 0;
    token_rounds = 2000;
    if (pthread_create(&thread, NULL, token_thread, NULL))
        die("pthread_create");
    start();
    token_pass(0);
    pthread_join(thread, NULL);
    stop();
    return (struct result){2 * token_rounds, token};
}

/* Reading a file through the page cache in small pieces: copy_to_user. */
static struct result bench_read(void)
{
    static char buf[4096];
    int fd = open("/proc/self/exe", O_RDONLY);
    if (fd < 0)
        die("open");
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 10000; r++) {
        if (pread(fd, buf, sizeof(buf), (off_t)(r % 64) * 4096) != (ssize_t)sizeof(buf))
            die("pread");
        check += 1;
    }
    stop();
    close(fd);
    return (struct result){10000, check};
}

/* Pages that the kernel has but took out of the page tables: minor faults on the page cache. */
static struct result bench_refault(void)
{
    enum { PAGES = 256, TIMES = 8 };
    int fd = memfd();
    if (ftruncate(fd, PAGES * 4096))
        die("ftruncate");
    uint8_t *p = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("mmap");
    memset(p, 3, PAGES * 4096);
    uint64_t check = 0;
    start();
    for (unsigned t = 0; t < TIMES; t++) {
        if (madvise(p, PAGES * 4096, MADV_DONTNEED))
            die("madvise");
        for (unsigned i = 0; i < PAGES; i++)
            check += ++p[i * 4096u];
    }
    stop();
    munmap(p, PAGES * 4096);
    close(fd);
    return (struct result){PAGES * TIMES, check};
}

/* Copy on write: private pages are written after fork made them read-only. */
static struct result bench_cow(void)
{
    enum { PAGES = 256, TIMES = 4 };
    uint8_t *p = get_memory(PAGES * 4096);
    uint64_t check = 0;
    int hold[2];
    if (pipe(hold))
        die("pipe");
    start();
    for (unsigned t = 0; t < TIMES; t++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid) {
            uint8_t c;
            _exit(read(hold[0], &c, 1) == 1 ? 0 : 1);
        }
        for (unsigned i = 0; i < PAGES; i++)
            check += ++p[i * 4096u];
        if (write(hold[1], "x", 1) != 1)
            die("write");
        wait_for(pid);
    }
    stop();
    close(hold[0]);
    close(hold[1]);
    munmap(p, PAGES * 4096);
    return (struct result){PAGES * TIMES, check};
}

/* Rights taken and given back, a page at a time: page-table changes that need a TLB flush. */
static struct result bench_mprotect(void)
{
    enum { PAGES = 64, TIMES = 20 };
    uint8_t *p = get_memory(PAGES * 4096);
    uint64_t check = 0;
    start();
    for (unsigned t = 0; t < TIMES; t++)
        for (unsigned i = 0; i < PAGES; i++) {
            uint8_t *page = p + i * 4096u;
            if (mprotect(page, 4096, PROT_READ))
                die("mprotect");
            check += page[1];
            if (mprotect(page, 4096, PROT_READ | PROT_WRITE))
                die("mprotect");
            page[0] = (uint8_t)t;
        }
    stop();
    munmap(p, PAGES * 4096);
    return (struct result){PAGES * TIMES, check};
}

static volatile sig_atomic_t signals;
static void count_signal(int sig)
{
    signals++;
}

static struct result bench_signal(void)
{
    enum { TIMES = 10000 };
    struct sigaction sa = {.sa_handler = count_signal};
    sigaction(SIGUSR1, &sa, NULL);
    signals = 0;
    pid_t me = getpid();
    start();
    for (unsigned i = 0; i < TIMES; i++)
        kill(me, SIGUSR1);
    stop();
    return (struct result){TIMES, (uint64_t)signals};
}

static void *nothing(void *arg)
{
    return arg;
}

static struct result bench_thread(void)
{
    enum { TIMES = 200 };
    uint64_t check = 0;
    start();
    for (uintptr_t i = 0; i < TIMES; i++) {
        pthread_t t;
        void *value;
        if (pthread_create(&t, NULL, nothing, (void *)i) || pthread_join(t, &value))
            die("pthread_create");
        check += (uintptr_t)value;
    }
    stop();
    return (struct result){TIMES, check};
}

/* Path walks: open, fstat, close. */
static struct result bench_open(void)
{
    enum { TIMES = 5000 };
    uint64_t check = 0;
    start();
    for (unsigned i = 0; i < TIMES; i++) {
        struct stat st;
        int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st))
            die("open");
        check += S_ISREG(st.st_mode);
        close(fd);
    }
    stop();
    return (struct result){TIMES, check};
}

/* A file of 8 MiB is written and copied within tmpfs. */
static struct result bench_filecopy(void)
{
    enum { SIZE = 8 << 20, STEP = 65536 };
    static uint8_t buffer[STEP];
    for (unsigned i = 0; i < STEP; i++)
        buffer[i] = (uint8_t)(i * 11);
    int a = memfd(), b = memfd();
    uint64_t check = 0;
    start();
    for (unsigned i = 0; i < SIZE / STEP; i++)
        if (write(a, buffer, STEP) != STEP)
            die("write");
    for (unsigned i = 0; i < SIZE / STEP; i++) {
        if (pread(a, buffer, STEP, (off_t)i * STEP) != STEP || write(b, buffer, STEP) != STEP)
            die("copy");
        check += buffer[i];
    }
    stop();
    close(a);
    close(b);
    return (struct result){SIZE / STEP * (STEP / 1024), check};
}

/* A token goes round a ring of processes, each of which touches a few pages of its own: what many
 * address spaces cost. */
static struct result procs(unsigned count)
{
    enum { PAGES = 16 };
    const unsigned laps = 2000 / count + 2;
    int first[2], in, next[2];
    if (pipe(first))
        die("pipe");
    in = first[0];
    pid_t *pids = calloc(count, sizeof(*pids));
    if (!pids)
        die("calloc");
    for (unsigned i = 0; i < count; i++) {
        if (pipe(next))
            die("pipe");
        pids[i] = fork();
        if (pids[i] < 0)
            die("fork");
        if (!pids[i]) {
            uint8_t *p = get_memory(PAGES * 4096);
            uint32_t v;
            close(first[1]);
            close(next[0]);
            while (read(in, &v, sizeof(v)) == sizeof(v)) {
                for (unsigned k = 0; k < PAGES; k++)
                    v += ++p[k * 4096];
                if (write(next[1], &v, sizeof(v)) != sizeof(v))
                    break;
            }
            _exit(0);
        }
        close(in);
        close(next[1]);
        in = next[0];
    }
    uint32_t v = 1;
    start();
    for (unsigned l = 0; l < laps; l++)
        if (write(first[1], &v, sizeof(v)) != sizeof(v) || read(in, &v, sizeof(v)) != sizeof(v))
            die("ring");
    stop();
    close(first[1]);
    close(in);
    for (unsigned i = 0; i < count; i++)
        wait_for(pids[i]);
    free(pids);
    return (struct result){(uint64_t)laps * count, v};
}
#define PROCS(n)                                                                                   \
    static struct result bench_procs##n(void)                                                      \
    {                                                                                              \
        return procs(n);                                                                           \
    }
PROCS(1)
PROCS(4)
PROCS(16)
PROCS(50)
PROCS(100)
PROCS(200)

const struct bench system_benches[] = {
    {"syscall", bench_syscall, "call"},
    {"read4k", bench_read, "call"},
    {"open", bench_open, "open"},
    {"signal", bench_signal, "signal"},
    {"fault", bench_fault, "page"},
    {"refault", bench_refault, "page"},
    {"cow", bench_cow, "page"},
    {"mmap", bench_mmap, "cycle"},
    {"mprotect", bench_mprotect, "cycle"},
    {"fork", bench_fork, "process"},
    {"exec", bench_exec, "process"},
    {"thread", bench_thread, "thread"},
    {"pipe", bench_pipe, "round trip"},
    {"switch", bench_switch, "hand-over"},
    {"filecopy", bench_filecopy, "KiB"},
    {"procs1", bench_procs1, "hand-over"},
    {"procs4", bench_procs4, "hand-over"},
    {"procs16", bench_procs16, "hand-over"},
    {"procs50", bench_procs50, "hand-over"},
    {"procs100", bench_procs100, "hand-over"},
    {"procs200", bench_procs200, "hand-over"},
    {0},
};
