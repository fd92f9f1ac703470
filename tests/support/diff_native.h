/*
 * Runs cases of diff_case.h on the host CPU, in a child that can touch nothing of ours.
 *
 * A template process is forked before anything else is mapped; it forks a worker, and another if
 * that one dies.  The worker maps the case's pages at their own addresses and lives in a signal
 * handler: each case starts by returning from a signal with the wanted registers in the frame (the
 * kernel loads all of them, FP state included) and ends in the next signal, whose frame holds the
 * outcome.  A seccomp filter leaves it nothing but returning from signals and its two pipes.
 */
#ifndef RINGSHIFT_TESTS_DIFF_NATIVE_H
#define RINGSHIFT_TESTS_DIFF_NATIVE_H

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include <asm/ldt.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include "tests/support/diff_case.h"

#define DIFF_BATCH 32u

struct diff_shared {
    uint32_t n;
    _Atomic uint32_t current;
    struct diff_case c[DIFF_BATCH];
    struct diff_result r[DIFF_BATCH];
};

struct diff_native {
    struct diff_shared *sh;
    int to_worker, from_worker;
    pid_t template_pid;
};

/* -- The worker -----------------------------------------------------------------------------------
 */

static struct {
    struct diff_shared *sh;
    uint8_t *alias; /* all pages, writable            */
    uint8_t pristine[DIFF_PAGES][4096];
    uint64_t own_fs;
    ucontext_t home;
    uint8_t home_fp[8192];
    volatile int running;
    uint32_t tick_case;
} diff_worker;

static const uint8_t diff_greg[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                      REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                      REG_R12, REG_R13, REG_R14, REG_R15};

static inline uint64_t diff_rdfs(void)
{
    uint64_t x;
    __asm__ volatile("rdfsbase %0" : "=r"(x));
    return x;
}
static inline void diff_wrfs(uint64_t x)
{
    __asm__ volatile("wrfsbase %0" : : "r"(x));
}
static inline uint64_t diff_rdgs(void)
{
    uint64_t x;
    __asm__ volatile("rdgsbase %0" : "=r"(x));
    return x;
}
static inline void diff_wrgs(uint64_t x)
{
    __asm__ volatile("wrgsbase %0" : : "r"(x));
}

/* 16- and 32-bit code: DS, ES, FS and GS are not in the signal frame. */
static void diff_worker_segments(const struct diff_case *c)
{
    __asm__ volatile("mov %w0, %%es" : : "r"(c->seg[SEG_ES]));
    __asm__ volatile("mov %w0, %%ds" : : "r"(c->seg[SEG_DS]));
    __asm__ volatile("mov %w0, %%fs" : : "r"(c->seg[SEG_FS]));
    __asm__ volatile("mov %w0, %%gs" : : "r"(c->seg[SEG_GS]));
}

static bool diff_worker_ldt(void)
{
    for (unsigned i = 0; i < DIFF_LDT_N; i++) {
        const struct diff_desc *d = &diff_ldt[i];
        struct user_desc u = {.entry_number = i,
                              .base_addr = d->base,
                              .limit = d->limit,
                              .seg_32bit = d->big,
                              .contents = d->code ? 2 : d->down,
                              .read_exec_only = d->locked,
                              .limit_in_pages = d->pages,
                              .seg_not_present = d->absent};
        if (syscall(SYS_modify_ldt, 0x11, &u, sizeof u))
            return false;
    }
    return true;
}

static void diff_worker_load(ucontext_t *uc, const struct diff_case *c)
{
    greg_t *g = uc->uc_mcontext.gregs;
    uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
    uint8_t img[DIFF_XSAVE] __attribute__((aligned(64)));
    memcpy(diff_worker.alias + c->start, c->code, c->len);
    for (unsigned i = 0; i < 16; i++)
        g[diff_greg[i]] = (greg_t)c->gpr[i];
    g[REG_RIP] = (greg_t)diff_start(c);
    g[REG_EFL] = (greg_t)(c->rflags | FL_FIXED1 | FL_IF);
    g[REG_CR2] = 0;
    if (c->bits) {
        for (unsigned i = 0; i < 8; i++)
            g[diff_greg[i]] = (greg_t)(uint32_t)c->gpr[i];
        g[REG_CSGSFS] = (greg_t)(c->seg[SEG_CS] | (uint64_t)c->seg[SEG_SS] << 48);
        uc->uc_flags |= 6; /* UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
    }
    diff_fp_make(c->fp_seed, img);
    memcpy(fp, img, 464); /* bytes 464-511 are the kernel's own */
    if (diff_xcr0() & 4) {
        uint64_t bv = diff_xcr0() & DIFF_XMASK;
        memcpy(fp + 512, &bv, 8);
        memcpy(fp + diff_xoff(2), img + diff_xoff(2), 256);
        if (bv & 0x80) {
            memcpy(fp + diff_xoff(5), img + diff_xoff(5), 64);
            memcpy(fp + diff_xoff(6), img + diff_xoff(6), 512);
            memcpy(fp + diff_xoff(7), img + diff_xoff(7), 1024);
        }
    }
}

static void diff_worker_store(const ucontext_t *uc, struct diff_result *r,
                              const struct diff_case *c)
{
    const greg_t *g = uc->uc_mcontext.gregs;
    const uint8_t *fp = (const uint8_t *)uc->uc_mcontext.fpregs;
    for (unsigned i = 0; i < 16; i++)
        r->gpr[i] = (uint64_t)g[diff_greg[i]];
    r->rip = (uint64_t)g[REG_RIP];
    r->rflags = (uint64_t)g[REG_EFL];
    r->error = (uint32_t)g[REG_ERR];
    r->cr2 = (uint64_t)g[REG_CR2];
    memset(r->xsave, 0, sizeof r->xsave);
    memcpy(r->xsave, fp, 464);
    if (diff_xcr0() & 4) {
        uint64_t bv;
        memcpy(&bv, fp + 512, 8);
        memcpy(r->xsave + 512, &bv, 8);
        memcpy(r->xsave + diff_xoff(2), fp + diff_xoff(2), 256);
        if (diff_xcr0() & 0x80) {
            memcpy(r->xsave + diff_xoff(5), fp + diff_xoff(5), 64);
            memcpy(r->xsave + diff_xoff(6), fp + diff_xoff(6), 512);
            memcpy(r->xsave + diff_xoff(7), fp + diff_xoff(7), 1024);
        }
    } else {
        r->xsave[512] = 3;
    }
    diff_fp_normalize(r->xsave);
    memset(diff_worker.alias + c->start, 0xf4, c->len);
    r->dirty = 0;
    for (unsigned p = DIFF_CODE_PAGES; p < DIFF_PAGES; p++) {
        uint8_t *now = diff_worker.alias + 4096 * p;
        if ((diff_pages[p].flags & DP_W) && memcmp(now, diff_worker.pristine[p], 4096)) {
            r->dirty |= 1u << p;
            memcpy(r->page[p], now, 4096);
            memcpy(now, diff_worker.pristine[p], 4096);
        }
    }
}

/* The kernel leaves AC and NT as the case set them, and AC would make our own code trap. */
void diff_worker_entry(int sig, siginfo_t *si, void *ctx);
__asm__(".pushsection .text\n"
        "diff_worker_entry:\n"
        "    pushfq\n"
        "    andq $~0x244000, (%rsp)\n"
        "    popfq\n"
        "    jmp diff_worker_signal\n"
        ".popsection\n");

/* Runs with the case's FS base until it has put its own back: no stack protector, no TLS. */
__attribute__((no_stack_protector, used)) static void diff_worker_signal(int sig, siginfo_t *si,
                                                                         void *ctx)
{
    uint64_t fs = diff_rdfs(), gs = diff_rdgs();
    uint16_t es, ds, fsel, gsel;
    __asm__ volatile("mov %%es, %0\n\tmov %%ds, %1\n\tmov %%fs, %2\n\tmov %%gs, %3"
                     : "=rm"(es), "=rm"(ds), "=rm"(fsel), "=rm"(gsel));
    diff_wrfs(diff_worker.own_fs);
    ucontext_t *uc = ctx;
    struct diff_shared *sh = diff_worker.sh;
    if (sig == SIGALRM) {
        if (!diff_worker.running || diff_worker.tick_case != sh->current) {
            diff_worker.tick_case = sh->current;
            diff_wrfs(fs);
            return;
        }
    }
    if (sig == SIGUSR2) {
        memcpy(&diff_worker.home, uc, sizeof diff_worker.home);
        memcpy(diff_worker.home_fp, uc->uc_mcontext.fpregs, diff_xcr0() & 4 ? DIFF_XSAVE : 512);
        diff_worker.running = 1;
        diff_worker.tick_case = ~0u;
    } else {
        if (!diff_worker.running)
            _exit(3);
        struct diff_result *r = &sh->r[sh->current];
        diff_worker_store(uc, r, &sh->c[sh->current]);
        r->fs_base = fs;
        r->gs_base = gs;
        uint64_t csss = (uint64_t)uc->uc_mcontext.gregs[REG_CSGSFS];
        uint16_t seg[6] = {es, (uint16_t)csss, (uint16_t)(csss >> 48), ds, fsel, gsel};
        memcpy(r->seg, seg, sizeof seg);
        r->vector = sig == SIGALRM  ? DIFF_TIMEOUT
                    : sig == SIGSYS ? DIFF_OTHER
                                    : (uint32_t)uc->uc_mcontext.gregs[REG_TRAPNO];
        sh->current++;
    }
    if (sh->current == sh->n) {
        diff_worker.running = 0;
        memcpy(uc->uc_mcontext.gregs, diff_worker.home.uc_mcontext.gregs, sizeof(gregset_t));
        memcpy(uc->uc_mcontext.fpregs, diff_worker.home_fp, diff_xcr0() & 4 ? DIFF_XSAVE : 512);
        return;
    }
    const struct diff_case *c = &sh->c[sh->current];
    diff_worker_load(uc, c);
    if (c->bits) {
        diff_worker_segments(c);
        return;
    }
    diff_wrgs(c->gs_base);
    diff_wrfs(c->fs_base);
}

static void diff_worker_fence(void)
{
    struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof f / sizeof f[0], f};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
        perror("diff: no seccomp filter");
}

static _Noreturn void diff_worker_main(struct diff_shared *sh, int in, int out)
{
    int fd = memfd_create("diff", MFD_CLOEXEC);
    uint8_t *stack =
        mmap(NULL, 1u << 18, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    diff_worker.sh = sh;
    diff_worker.own_fs = diff_rdfs();
    if (diff_legacy && !diff_worker_ldt())
        _exit(7);
    if (fd < 0 || ftruncate(fd, DIFF_PAGES * 4096))
        _exit(4);
    diff_worker.alias = mmap(NULL, DIFF_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (diff_worker.alias == MAP_FAILED || stack == MAP_FAILED)
        _exit(4);
    for (unsigned p = 0; p < DIFF_PAGES; p++) {
        int prot = PROT_READ | (diff_pages[p].flags & DP_W ? PROT_WRITE : 0) |
                   (diff_pages[p].flags & DP_X ? PROT_EXEC : 0);
        void *at = (void *)diff_pages[p].gva;
        diff_fill_page(p, diff_worker.pristine[p]);
        memcpy(diff_worker.alias + 4096 * p, diff_worker.pristine[p], 4096);
        if (mmap(at, 4096, prot, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 4096 * p) !=
            at)
            _exit(5);
    }
    stack_t ss = {.ss_sp = stack, .ss_size = 1u << 18, .ss_flags = (int)(1u << 31)};
    if (sigaltstack(&ss, NULL))
        _exit(6);
    struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    sa.sa_sigaction = diff_worker_entry;
    sigfillset(&sa.sa_mask);
    static const int sigs[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGUSR2, SIGALRM, SIGSYS};
    for (unsigned i = 0; i < 8; i++)
        sigaction(sigs[i], &sa, NULL);
    struct itimerval it = {{0, 100000}, {0, 100000}};
    setitimer(ITIMER_REAL, &it, NULL);
    int tid = (int)syscall(SYS_gettid);
    diff_worker_fence();
    for (;;) {
        char b;
        ssize_t k = read(in, &b, 1);
        if (k < 0 && errno == EINTR)
            continue;
        if (k != 1)
            _exit(0);
        if (sh->current < sh->n)
            syscall(SYS_tgkill, tid, tid, SIGUSR2);
        b = 'D';
        while (write(out, &b, 1) < 0 && errno == EINTR)
            ;
    }
}

/* -- The side that asks ---------------------------------------------------------------------------
 */

/* Call before anything is mapped below 4 GiB. 0 or -1. */
static inline int diff_native_start(struct diff_native *d)
{
    int to[2], from[2];
    d->sh = mmap(NULL, sizeof *d->sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (d->sh == MAP_FAILED || pipe(to) || pipe(from))
        return -1;
    pid_t parent = getpid();
    d->template_pid = fork();
    if (d->template_pid < 0)
        return -1;
    if (d->template_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(0);
        close(to[1]);
        close(from[0]);
        for (;;) {
            pid_t template = getpid(), w = fork();
            if (w == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (getppid() != template)
                    _exit(0);
                diff_worker_main(d->sh, to[0], from[1]);
            }
            int status;
            if (w < 0 || waitpid(w, &status, 0) < 0 || (WIFEXITED(status) && !WEXITSTATUS(status)))
                _exit(0);
            char b = WIFEXITED(status) ? (char)WEXITSTATUS(status) : 'X';
            if (write(from[1], &b, 1) != 1)
                _exit(0);
        }
    }
    close(to[0]);
    close(from[1]);
    d->to_worker = to[1];
    d->from_worker = from[0];
    return 0;
}

static inline void diff_native_stop(struct diff_native *d)
{
    close(d->to_worker);
    close(d->from_worker);
    waitpid(d->template_pid, NULL, 0);
    munmap(d->sh, sizeof *d->sh);
}

/* Starts the first n cases of sh->c; diff_native_wait() returns when their results are there. */
static inline void diff_native_run(struct diff_native *d, unsigned n)
{
    char b = 'R';
    d->sh->n = n;
    d->sh->current = 0;
    if (write(d->to_worker, &b, 1) != 1)
        abort();
}

static inline void diff_native_wait(struct diff_native *d)
{
    for (;;) {
        char b = 0;
        ssize_t k = read(d->from_worker, &b, 1);
        if (k < 0 && errno == EINTR)
            continue;
        if (k != 1) {
            fprintf(stderr, "diff: the native side is gone\n");
            abort();
        }
        if (b == 'D')
            return;
        if (b >= 4 && b <= 7) {
            fprintf(stderr, "diff: the native side cannot start (%d)%s\n", b,
                    b == 7 ? ": modify_ldt() is refused, 16- and 32-bit code cannot be tested"
                           : "");
            abort();
        }
        d->sh->r[d->sh->current].vector = DIFF_CRASH;
        d->sh->current++;
        b = 'R';
        if (write(d->to_worker, &b, 1) != 1)
            abort();
    }
}

#endif
