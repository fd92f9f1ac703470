/*
 * Signals that other processes send.  A crash signal that arrives while translated code runs looks
 * like a fault of the guest's: the kernel leaves the trap number of the thread's last real fault in
 * its context.  It must end the process nevertheless, not become a guest exception or get lost.
 */
#include "tests/support/bt_fixture.h"

#include "translator/bt.h"

#include <pthread.h>
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

/* -- Kicks --------------------------------------------------------------------------------------- */

static uint64_t device_reads;

static uint64_t counting_read(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size)
{
    return ++device_reads;
}

static _Atomic bool kicking;

static void *kicker(void *arg)
{
    struct bt_fixture *f = arg;
    uint64_t rnd = 1;

    while (kicking) {
        f->engine->ops->kick(f->engine, f->v);
        rnd = rnd * 6364136223846793005ull + 1442695040888963407ull;
        for (unsigned i = rnd >> 52; i; i--)
            __builtin_ia32_pause();
    }
    return NULL;
}

/*
 * A kick may come anywhere, and the handler goes back to an instruction's beginning or on to its end:
 * nothing is done twice or left out, least of all a read of a device.
 */
static void kicked(enum mem_mode mode, bool chaos)
{
    enum { ROUNDS = 150000 };
    static const uint8_t code[] = {
        0x8b, 0x03,                               /* 1: mov  eax, [rbx]     a device's register    */
        0x48, 0x01, 0xc2,                         /*    add  rdx, rax                              */
        0x50, 0x41, 0x5a,                         /*    push rax; pop r10                          */
        0x4d, 0x01, 0xd3,                         /*    add  r11, r10                              */
        0xe8, 0x25, 0,    0,    0,                /*    call 2f                                    */
        0x49, 0x8d, 0x34, 0x24,                   /*    lea  rsi, [r12]                            */
        0x49, 0x8d, 0x7c, 0x24, 0x40,             /*    lea  rdi, [r12 + 64]                       */
        0xb9, 0x40, 0,    0,    0,                /*    mov  ecx, 64                               */
        0xf9,                                     /*    stc                                        */
        0xf3, 0xa4,                               /*    rep movsb                                  */
        0x49, 0x11, 0xc8,                         /*    adc  r8, rcx                               */
        0x49, 0xff, 0x04, 0x24,                   /*    inc  qword [r12]                           */
        0x49, 0xff, 0x4c, 0x24, 0xf8,             /*    dec  qword [r12 - 8]                       */
        0x75, 0xd1,                               /*    jnz  1b                                    */
        0xf4,                                     /*    hlt                                        */
        0x90, 0x90, 0x90, 0x90, 0x90,
        0xf8,                                     /* 2: clc                                        */
        0x41, 0xff, 0xc1,                         /*    inc  r9d                                   */
        0xc3,                                     /*    ret                                        */
    };
    struct bt_fixture f;
    struct engine_config cfg = {.mem_mode = mode, .chaos = chaos, .verify = true};
    struct platform_ops ops = fx_ops;
    pthread_t thread;

    fx_create(&f, &cfg);
    ops.mmio_read = counting_read;
    f.platform.ops = &ops;
    device_reads = 0;
    fx_put64(&f, FX_PT + 8 * 256, (FX_PT + 0x1000) | 7);
    fx_put64(&f, FX_PT + 0x3000 + 4 * 0x1000 + 8 * 16, 0xfed00067);
    fx_put64(&f, FX_DATA + 0x1000 - 8, ROUNDS);
    fx_put64(&f, FX_DATA + 0x1000, 5);
    fx_write(&f, FX_CODE, code, sizeof code);
    f.v->rip = UPPER + FX_CODE;
    f.v->gpr[RSP] = UPPER + FX_STACK;
    f.v->gpr[RBX] = UPPER + FX_DATA + 0x10000;
    f.v->gpr[R12] = UPPER + FX_DATA + 0x1000;
    f.v->gpr[RDX] = f.v->gpr[R11] = f.v->gpr[R8] = f.v->gpr[R9] = 0;
    kicking = true;
    cr_assert_eq(pthread_create(&thread, NULL, kicker, &f), 0);
    fx_run(&f);
    kicking = false;
    pthread_join(thread, NULL);
    const uint64_t sum = (uint64_t)ROUNDS * (ROUNDS + 1) / 2;
    cr_expect_eq(device_reads, ROUNDS);
    cr_expect_eq(f.v->gpr[RDX], sum);
    cr_expect_eq(f.v->gpr[R11], sum);
    cr_expect_eq(f.v->gpr[R9], ROUNDS);
    cr_expect_eq(f.v->gpr[R8], ROUNDS);
    cr_expect_eq(f.v->gpr[RSP], UPPER + FX_STACK);
    cr_expect_eq(*(uint64_t *)ram_ptr(&f.ram, FX_DATA + 0x1000, 8), 5 + ROUNDS);
    cr_expect_eq(*(uint64_t *)ram_ptr(&f.ram, FX_DATA + 0x1040, 8), 5 + ROUNDS - 1);
    const struct bt_stats *s = &((const struct bt_engine *)f.engine)->stats;
    cr_expect_gt(s->signals_kick, 0);
    cr_log_info("%llu kicks, %llu steps", (unsigned long long)s->signals_kick,
                (unsigned long long)s->signals_step);
    fx_destroy(&f);
}

Test(signals, kicks_mixed, .timeout = 100)
{
    kicked(MEM_MIXED, false);
}

Test(signals, kicks_soft, .timeout = 100)
{
    kicked(MEM_SOFT, false);
}

Test(signals, kicks_window, .timeout = 100)
{
    kicked(MEM_WINDOW, false);
}

Test(signals, kicks_chaos, .timeout = 100)
{
    kicked(MEM_MIXED, true);
}
