/*
 * Signals that other processes send.  A crash signal that arrives while translated code runs looks
 * like a fault of the guest's: the kernel leaves the trap number of the thread's last real fault in
 * its context.  It must end the process nevertheless, not become a guest exception or get lost.
 */
#include "tests/support/bt_fixture.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <criterion/criterion.h>

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    atomic_fetch_or(&v->events, events);
}

#define UPPER 0xffff800000000000ull

/* Counts at [rbx] for ever; the first access faults into the window, which sets the trap number. */
static const uint8_t endless[] = {
    0x48, 0xff, 0x03, /* 1: inc qword [rbx] */
    0xeb, 0xfb,       /*    jmp 1b          */
};

static void pause_ms(long ms)
{
    struct timespec t = {.tv_nsec = ms * 1000000};
    nanosleep(&t, NULL);
}

static void sent_signal(int sig, enum mem_mode mode)
{
    struct bt_fixture f;
    struct engine_config cfg = {.mem_mode = mode};
    int status = 0;

    signal(sig, SIG_DFL); /* not Criterion's handler */
    /* The child runs the guest; its RAM is shared, so its progress can be seen from here. */
    fx_create(&f, &cfg);
    fx_put64(&f, FX_PT + 8 * 256, (FX_PT + 0x1000) | 7);
    fx_write(&f, FX_CODE, endless, sizeof endless);
    f.v->rip = FX_CODE;
    f.v->gpr[RBX] = UPPER + FX_DATA;
    volatile uint64_t *count = ram_ptr(&f.ram, FX_DATA, 8);
    pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr))
            fx_run(&f);
        _exit(99);
    }
    while (*count < 100000 && waitpid(child, &status, WNOHANG) == 0)
        pause_ms(1);
    kill(child, sig);
    for (unsigned ms = 0; ms < 60000; ms += 10) {
        if (waitpid(child, &status, WNOHANG) != 0)
            break;
        pause_ms(10);
    }
    if (waitpid(child, NULL, WNOHANG) == 0) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    fx_destroy(&f);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == sig, "signal %d: status %#x", sig, status);
}

Test(signals, crash_signal_in_windows, .timeout = 100)
{
    sent_signal(SIGSEGV, MEM_WINDOW);
    sent_signal(SIGBUS, MEM_WINDOW);
}

Test(signals, crash_signal_in_soft_form, .timeout = 100)
{
    sent_signal(SIGSEGV, MEM_SOFT);
    sent_signal(SIGILL, MEM_SOFT);
    sent_signal(SIGFPE, MEM_SOFT);
}

Test(signals, trap_signal, .timeout = 100)
{
    sent_signal(SIGTRAP, MEM_WINDOW);
}
