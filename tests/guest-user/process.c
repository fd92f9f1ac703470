/* Processes: fork, vfork, clone, exec, pipes, exit statuses. */
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <sys/socket.h>

#include "suite.h"

extern char **environ;

TEST(proc, fork_storm)
{
    for (int i = 0; i < 400; i++) {
        pid_t pid = SYS(fork());
        if (!pid)
            _exit(i & 127);
        int status = wait_for(pid);
        CHECK(WIFEXITED(status));
        EQ(WEXITSTATUS(status), i & 127);
    }
}

TEST(proc, many_at_once)
{
    /* Each computes with integer, floating-point and vector state of its own. */
    enum { N = 40 };
    pid_t pids[N];
    for (int k = 0; k < N; k++) {
        pids[k] = SYS(fork());
        if (!pids[k]) {
            double x = k + 1, y[8];
            uint64_t h = (uint64_t)k;
            for (int j = 0; j < 8; j++)
                y[j] = j * k;
            for (int i = 0; i < 60000; i++) {
                x = x * 0.999 + (double)k;
                h = h * 6364136223846793005ul + 1442695040888963407ul;
                for (int j = 0; j < 8; j++)
                    y[j] = y[j] * 0.5 + (double)(k + j);
                if (i % 10000 == 0)
                    sched_yield();
            }
            double sum = 0;
            for (int j = 0; j < 8; j++)
                sum += y[j] - 2.0 * (k + j);
            double limit = k * 1000.0; /* fixed point of x */
            uint64_t want = (uint64_t)k;
            for (int i = 0; i < 60000; i++)
                want = want * 6364136223846793005ul + 1442695040888963407ul;
            _exit(x - limit < 1e-6 && limit - x < 1e-6 && sum < 1e-9 && sum > -1e-9 && h == want
                      ? 0
                      : 1);
        }
    }
    for (int k = 0; k < N; k++)
        EQ(wait_for(pids[k]), 0);
}

TEST(proc, fork_tree)
{
    /* 2^7 processes; the exit status counts the leaves below. */
    pid_t root = SYS(fork());
    if (!root) {
        int depth = 0;
        for (;;) {
            if (depth == 6)
                _exit(1);
            pid_t a = fork();
            if (a < 0)
                _exit(200);
            if (!a) {
                depth++;
                continue;
            }
            pid_t b = fork();
            if (b < 0)
                _exit(200);
            if (!b) {
                depth++;
                continue;
            }
            _exit(WEXITSTATUS(wait_for(a)) + WEXITSTATUS(wait_for(b)));
        }
    }
    EQ(WEXITSTATUS(wait_for(root)), 64);
}

TEST(proc, exec_storm)
{
    for (int i = 0; i < 100; i++) {
        pid_t pid = SYS(fork());
        if (!pid) {
            char code[8];
            snprintf(code, sizeof(code), "%d", i);
            execl("/proc/self/exe", "guest-suite", "--child", "exit", code, (char *)NULL);
            _exit(127);
        }
        EQ(WEXITSTATUS(wait_for(pid)), i);
    }
}

TEST(proc, exec_environment)
{
    char value[4000];
    for (int n = 1; n < 128; n += 21) {
        memset(value, 'v', sizeof(value));
        snprintf(
            value, sizeof(value), "SUITE_VALUE=%.*s", n,
            "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv"
            "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv"
            "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv");
        char *env[] = {value, NULL}, *argv[] = {"guest-suite", "--child", "env", NULL};
        pid_t pid = SYS(fork());
        if (!pid) {
            execve("/proc/self/exe", argv, env);
            _exit(127);
        }
        EQ(WEXITSTATUS(wait_for(pid)), n);
    }
}

TEST(proc, vfork_exec)
{
    for (int i = 0; i < 100; i++) {
        volatile int shared = 0;
        pid_t pid = vfork();
        if (!pid) {
            shared = 1;
            execl("/proc/self/exe", "guest-suite", "--child", "exit", "23", (char *)NULL);
            _exit(127);
        }
        CHECK(pid > 0);
        EQ(shared, 1);
        EQ(WEXITSTATUS(wait_for(pid)), 23);
    }
}

TEST(proc, posix_spawn)
{
    char *argv[] = {"guest-suite", "--child", "exit", "5", NULL};
    for (int i = 0; i < 60; i++) {
        pid_t pid;
        EQ(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ), 0);
        EQ(WEXITSTATUS(wait_for(pid)), 5);
    }
}

static int clone_fn(void *arg)
{
    *(volatile int *)arg += 1;
    return 3;
}

TEST(proc, clone_vm)
{
    char *stack = map_pages(16, PROT_READ | PROT_WRITE);
    volatile int value = 0;
    for (int i = 0; i < 200; i++) {
        pid_t pid = SYS(clone(clone_fn, stack + 16 * 4096, CLONE_VM | SIGCHLD, (void *)&value));
        EQ(WEXITSTATUS(wait_for(pid)), 3);
        EQ(value, i + 1);
    }
}

TEST(proc, pipeline)
{
    /* 3 MiB through four processes that copy by 4 KiB, checked at the end. */
    enum { STAGES = 4, SIZE = 3 << 20 };
    int in[2], prev;
    pid_t pids[STAGES + 1];
    SYS(pipe(in));
    pids[STAGES] = SYS(fork());
    if (!pids[STAGES]) {
        uint8_t buf[1000];
        close(in[0]);
        for (unsigned done = 0; done < SIZE;) {
            unsigned n = SIZE - done < sizeof(buf) ? SIZE - done : (unsigned)sizeof(buf);
            for (unsigned i = 0; i < n; i++)
                buf[i] = (uint8_t)((done + i) * 2654435761u >> 13);
            if (write(in[1], buf, n) != (ssize_t)n)
                _exit(1);
            done += n;
        }
        _exit(0);
    }
    close(in[1]);
    prev = in[0];
    for (int k = 0; k < STAGES; k++) {
        int out[2];
        SYS(pipe(out));
        pids[k] = SYS(fork());
        if (!pids[k]) {
            dup2(prev, 0);
            dup2(out[1], 1);
            close(out[0]);
            close(out[1]);
            close(prev);
            execl("/proc/self/exe", "guest-suite", "--child", "cat", (char *)NULL);
            _exit(127);
        }
        close(out[1]);
        close(prev);
        prev = out[0];
    }
    static uint8_t buf[8192];
    unsigned done = 0;
    ssize_t n;
    while ((n = read(prev, buf, sizeof(buf))) > 0)
        for (ssize_t i = 0; i < n; i++, done++)
            EQ(buf[i], (uint8_t)(done * 2654435761u >> 13));
    EQ(done, SIZE);
    for (int k = 0; k <= STAGES; k++)
        EQ(wait_for(pids[k]), 0);
}

TEST(proc, socketpair_ping)
{
    int fds[2];
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
    pid_t pid = SYS(fork());
    if (!pid) {
        uint64_t v;
        close(fds[0]);
        while (read(fds[1], &v, 8) == 8) {
            v = v * 3 + 1;
            if (write(fds[1], &v, 8) != 8)
                _exit(1);
        }
        _exit(0);
    }
    close(fds[1]);
    uint64_t v = 1, want = 1;
    for (int i = 0; i < 5000; i++) {
        EQ(write(fds[0], &v, 8), 8);
        EQ(read(fds[0], &v, 8), 8);
        want = want * 3 + 1;
        EQ(v, want);
    }
    close(fds[0]);
    EQ(wait_for(pid), 0);
}

TEST(proc, death_by_signal)
{
    static const int signals[] = {SIGKILL, SIGTERM, SIGSEGV, SIGILL, SIGFPE, SIGABRT, SIGTRAP};
    for (unsigned i = 0; i < 7; i++) {
        pid_t pid = SYS(fork());
        if (!pid) {
            volatile int zero = 0;
            switch (signals[i]) {
            case SIGSEGV:
                asm volatile("movl $1, 16");
                break;
            case SIGILL:
                asm volatile("ud2");
                break;
            case SIGFPE:
                asm volatile("idivl %0" ::"m"(zero), "a"(1), "d"(0));
                break;
            case SIGTRAP:
                asm volatile("int3");
                break;
            default:
                kill(getpid(), signals[i]);
            }
            _exit(1);
        }
        int status = wait_for(pid);
        CHECK(WIFSIGNALED(status));
        EQ(WTERMSIG(status), signals[i]);
    }
}

static volatile sig_atomic_t children;
static void on_chld(int sig, siginfo_t *info, void *context)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        children++;
}

TEST(proc, sigchld)
{
    handle(SIGCHLD, on_chld, SA_RESTART);
    for (int i = 0; i < 50; i++)
        if (!SYS(fork()))
            _exit(0);
    for (int i = 0; i < 10000 && children < 50; i++)
        usleep(10000);
    EQ(children, 50);
}
