/*
 * Host signals in translated code.
 *
 * A vCPU thread's stack pointer is the guest's while it runs translated code, so every signal it
 * takes runs on an alternate stack; SS_AUTODISARM keeps the kernel from believing a guest RSP that
 * points into that stack.
 *
 * Faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL) whose PC is in the code cache are the guest's: the side
 * table gives the instruction, the trap number and error code give the exception, and the thread
 * continues at the exit stub. Anything else is a bug of ours and ends the process with a message.
 *
 * A kick (BT_KICK_SIGNAL: vcpu->exit_request is set) must leave translated code at the next
 * instruction boundary, where the whole guest state is exact. Between boundaries, in the middle of
 * an instruction's sequence, the handler sets TF and lets the CPU step on: at most a few
 * instructions, no polling anywhere. If the step leads into a helper, TF is dropped, and the resume
 * stub sets it again on the way back because exit_request is still set.
 */
#include "translator/bt.h"

#include <errno.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <asm/prctl.h>

#include "cpu/exception.h"
#include "translator/emit.h"

#define ALTSTACK_SIZE (256u << 10)

/* The vCPU this thread runs, for its signal handlers only; all other code is passed it. */
static __thread struct vcpu *thread_vcpu;

struct vcpu *bt_this_vcpu(void)
{
    return thread_vcpu;
}

static void write_str(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    ssize_t r = write(STDERR_FILENO, s, n);
    (void)r;
}

static void write_hex(uint64_t x)
{
    char b[19] = "0x";
    for (int i = 0; i < 16; i++)
        b[2 + i] = "0123456789abcdef"[x >> (60 - 4 * i) & 15];
    b[18] = 0;
    write_str(b);
}

/* Dispositions from before ours, as process-wide as they are: a crash that is not a vCPU's (an I/O
 * thread's, say) belongs to them. */
static struct sigaction previous[NSIG];

static int take_over(int sig, const struct sigaction *sa)
{
    struct sigaction old;
    if (sigaction(sig, sa, &old))
        return -1;
    if (old.sa_sigaction != sa->sa_sigaction) /* not an earlier engine's */
        previous[sig] = old;
    return 0;
}

/* Sent by kill() and the like, not caused by the instruction at the PC: then the trap number in the
 * context is that of the thread's last fault, whatever that was (sigaction(2), si_code). */
static bool sent(const siginfo_t *si)
{
    return si->si_code <= 0;
}

static _Noreturn void fatal_signal(int sig, const siginfo_t *si, const ucontext_t *uc)
{
    if (thread_vcpu && thread_vcpu->engine && thread_vcpu->engine->bt->cfg.on_fatal)
        thread_vcpu->engine->bt->cfg.on_fatal();
    char n[3] = {(char)('0' + sig / 10), (char)('0' + sig % 10), 0};
    if (sent(si)) {
        write_str("\nringshift: ended by signal ");
        write_str(n);
        write_str(", which another process sent\n");
    } else {
        write_str("\nringshift: internal error: signal ");
        write_str(n);
        write_str(" at host address ");
        write_hex((uint64_t)uc->uc_mcontext.gregs[REG_RIP]);
        write_str(", fault address ");
        write_hex((uint64_t)(uintptr_t)si->si_addr);
        write_str("; please report this with the guest image\n");
    }
    sigaction(sig, &previous[sig], NULL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, sig);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    raise(sig);
    _exit(8);
}

static void leave(struct vcpu *v, ucontext_t *uc, enum exit_reason reason)
{
    v->bt.exit_reason = reason;
    uc->uc_mcontext.gregs[REG_RIP] = v->engine->bt->stub_exit_common;
    uc->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)FL_TF;
}

static bool in_stubs(const struct bt_engine *bt, uint64_t pc)
{
    return pc >= bt->stubs_x && pc < bt->stubs_end;
}

/* At a string instruction on host addresses: the guest's. */
static void string_registers(const struct tb *tb, const struct side_entry *se, greg_t *g)
{
    if (tb->key & KEY_LEGACY) {
        if (se->kind != SIDE_STRING_RDI)
            g[REG_RSI] = (uint32_t)(g[REG_RSI] - g[REG_R11]);
        if (se->kind != SIDE_STRING_RSI)
            g[REG_RDI] = (uint32_t)(g[REG_RDI] - g[REG_R11]);
        return;
    }
    if (se->kind != SIDE_STRING_RDI)
        g[REG_RSI] -= g[se->kind == SIDE_STRING_BOTH ? REG_R10 : REG_R11];
    if (se->kind != SIDE_STRING_RSI)
        g[REG_RDI] -= g[REG_R11];
}

/* Is R10 what bt_mem_prepare() has read from a device, perhaps?  Then it is not to be read again. */
static bool on_copy(const struct vcpu *v, const greg_t *g)
{
    uint64_t r10 = (uint64_t)g[REG_R10];
    return r10 - (uint64_t)(uintptr_t)v->bounce < sizeof v->bounce ||
           r10 - (uint64_t)(uintptr_t)v->engine->guard < GUARD_SIZE;
}

/* In translated code: leaves if this is an instruction boundary, or as good as one. */
static bool leave_here(struct vcpu *v, ucontext_t *uc, const struct tb *tb, uint64_t pc, bool back)
{
    greg_t *g = uc->uc_mcontext.gregs;
    const struct side_entry *se = tb_side_lookup(tb, pc);
    if (pc == tb->entry_ind && pc != tb->entry) { /* an indirect jump's target */
        v->rip = bt_offset(v, (uint64_t)g[REG_R10]);
        leave(v, uc, EXIT_ASYNC);
        return true;
    }
    if (!se)
        return false;
    bool string = side_is_string(se->kind);
    bool exact = side_host(tb, se) == pc &&
                 (se->kind == SIDE_BOUNDARY || se->kind == SIDE_ELEMENT || string);
    /* A data breakpoint that C code has noticed already belongs to the instruction, done. */
    back = back && !(tb->key & (KEY_SLOW_MEM | KEY_ONE_INSN));
    if (!exact && !(back && !on_copy(v, g) && boundary_behind(v->engine->bt, tb, se, pc)))
        return false;
    if (string)
        string_registers(tb, se, g);
    v->rip = bt_offset(v, side_gva(tb, se));
    leave(v, uc, EXIT_ASYNC);
    return true;
}

/* How many instructions are executed here before the host is to do it. */
#define AHEAD_MAX 40

/*
 * Leaves if there is a boundary, goes on to the next one here, or has the host step on to it.  Not back
 * to the last one when stepping: C code that has asked for it, and come back to the middle of an
 * instruction, wants to see that instruction done (a store to the block's own page).
 */
static void leave_or_step(struct vcpu *v, ucontext_t *uc, uint64_t pc, bool back)
{
    struct bt_engine *bt = v->engine->bt;
    greg_t *g = uc->uc_mcontext.gregs, *efl = &g[REG_EFL];
    bool step = bt->cfg.chaos && (++v->engine->chaos_light & 2);
    for (unsigned i = 0;; i++, pc = (uint64_t)g[REG_RIP]) {
        bool helper = pc >= bt->through && pc < bt->through_end;
        const struct tb *tb = NULL;
        if (!cache_contains(bt, pc)) /* cannot be */
            break;
        if (in_stubs(bt, pc) && !helper) {
            if (pc >= bt->stub_resume && pc < bt->stub_resume_end && !(*efl & FL_TF))
                g[REG_RIP] = bt->stub_resume;
            else if (pc >= bt->light_resume && pc < bt->light_resume_end) {
                g[REG_RIP] = bt->light_resume;
                *efl &= ~(greg_t)FL_TF;
            } else if (!(pc >= bt->stub_resume && pc < bt->stub_resume_end))
                *efl &= ~(greg_t)FL_TF; /* the C side looks at exit_request */
            return;
        }
        if (!helper) {
            tb = cache_find_pc(bt, pc);
            if (tb && leave_here(v, uc, tb, pc, back && !step))
                return;
        }
        if (step || i >= AHEAD_MAX || (!helper && !tb) ||
            !boundary_ahead(v, helper ? bt->through_end : tb->host_end, helper, g))
            break;
    }
    *efl |= FL_TF;
}

static void on_kick(int sig, siginfo_t *si, void *ctx)
{
    ucontext_t *uc = ctx;
    struct vcpu *v = bt_this_vcpu();
    uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    if (!v || !v->engine)
        return;
    v->engine->bt->stats.signals_kick++;
    if (si->si_code == SI_TIMER) {
        atomic_fetch_or(&v->events, EV_TIMER);
        atomic_store(&v->exit_request, 1);
    }
    if (!atomic_load(&v->exit_request))
        return; /* already dealt with */
    if (cache_contains(v->engine->bt, pc))
        leave_or_step(v, uc, pc, true);
    else
        uc->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)FL_TF;
}

static void on_trap(int sig, siginfo_t *si, void *ctx)
{
    ucontext_t *uc = ctx;
    struct vcpu *v = bt_this_vcpu();
    uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    if (!v || !v->engine || sent(si) || uc->uc_mcontext.gregs[REG_TRAPNO] != EXC_DB)
        fatal_signal(sig, si, uc);
    v->engine->bt->stats.signals_step++;
    if (!cache_contains(v->engine->bt, pc)) {
        uc->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)FL_TF;
        return;
    }
    leave_or_step(v, uc, pc, false);
}

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
    ucontext_t *uc = ctx;
    greg_t *g = uc->uc_mcontext.gregs;
    uint64_t pc = (uint64_t)g[REG_RIP];
    struct vcpu *v = bt_this_vcpu();
    struct bt_engine *bt = v && v->engine ? v->engine->bt : NULL;
    struct tb *tb = bt && !in_stubs(bt, pc) && !sent(si) ? cache_find_pc(bt, pc) : NULL;
    const struct side_entry *se = tb ? tb_side_lookup(tb, pc) : NULL;
    if (tb && door_missed(bt, tb, pc)) {
        g[REG_RIP] = bt->stub_lookup;
        g[REG_EFL] &= ~(greg_t)FL_TF;
        return;
    }
    if (!se)
        fatal_signal(sig, si, uc);
    bt->stats.signals_fault++;
    static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                        REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                        REG_R12, REG_R13, REG_R14, REG_R15};
    if (side_is_esp(tb, se))
        g[REG_RSP] = (uint32_t)(g[REG_RSP] + side_esp(se->kind));
    else if (se->kind >= SIDE_SPILL)
        g[greg_of[se->kind - SIDE_SPILL]] = (greg_t)v->scratch[SCR_SPILL];
    if (side_is_string(se->kind))
        string_registers(tb, se, g);
    if (se->kind == SIDE_XSAVE) {
        g[REG_RAX] = (greg_t)v->bt.xsave_rax;
        g[REG_RDX] = (greg_t)v->bt.xsave_rdx;
    }
    if (se->kind == SIDE_PLAIN_RSP)
        g[REG_RSP] += (greg_t)~v->bt.stack_not;
    v->rip = bt_offset(v, side_gva(tb, se));
    bool windows = tb->window || (stack_is_native(bt, tb->key) &&
                                  !(tb->key & (KEY_ONE_INSN | KEY_SLOW_MEM)));
    if (windows && (g[REG_TRAPNO] == EXC_PF || g[REG_TRAPNO] == EXC_GP ||
                    g[REG_TRAPNO] == EXC_SS)) {
        v->engine->wfault_hva = g[REG_TRAPNO] == EXC_PF ? (uint64_t)g[REG_CR2] : ~0ull;
        v->engine->wfault_write = g[REG_ERR] & PF_W;
        v->bt.exit_arg = (uint64_t)(uintptr_t)tb;
        leave(v, uc, EXIT_WFAULT);
        return;
    }
    switch (g[REG_TRAPNO]) {
    case EXC_XM: /* without an operating system that knows of it: SDM vol. 3, 6.15, #XM */
        cpu_raise(v, v->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
        break;
    case EXC_DE:
        cpu_raise(v, EXC_DE);
        v->bt.exit_arg = (uint64_t)(uintptr_t)tb;
        leave(v, uc, EXIT_DIVIDE);
        return;
    case EXC_UD: case EXC_MF: case EXC_OF: case EXC_BR:
        cpu_raise(v, (uint8_t)g[REG_TRAPNO]);
        break;
    case EXC_GP: case EXC_SS: case EXC_AC:
        cpu_raise_code(v, (uint8_t)g[REG_TRAPNO], 0);
        break;
    case EXC_PF:
        if (!bt_guard_fault(v, (uint64_t)g[REG_CR2]))
            fatal_signal(sig, si, uc);
        break;
    default:
        fatal_signal(sig, si, uc);
    }
    leave(v, uc, EXIT_FAULT);
}

int signals_init_process(char *err, unsigned errlen)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    /* Nothing may interrupt a handler: the alternate stack is disarmed while one runs. */
    sigfillset(&sa.sa_mask);
    for (unsigned i = 0; i < 4; i++)
        sigdelset(&sa.sa_mask, faults[i]);
    int r = 0;
    sa.sa_sigaction = on_fault;
    for (unsigned i = 0; i < 4; i++)
        r |= take_over(faults[i], &sa);
    sa.sa_sigaction = on_trap;
    r |= take_over(SIGTRAP, &sa);
    sa.sa_sigaction = on_kick;
    r |= take_over(BT_KICK_SIGNAL, &sa);
    if (r) {
        snprintf(err, errlen, "cannot install signal handlers: %s", strerror(errno));
        return -errno;
    }
    return 0;
}

int signals_init_thread(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    void *stack = mmap(NULL, ALTSTACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    if (stack == MAP_FAILED)
        return -ENOMEM;
    /* The kernel's value: glibc's SS_AUTODISARM may be absent. */
    ev->altstack = (stack_t){.ss_sp = stack, .ss_size = ALTSTACK_SIZE, .ss_flags = (int)(1u << 31)};
    if (sigaltstack(&ev->altstack, NULL) < 0 ||
        syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)v + STATE_BIAS) < 0) {
        munmap(stack, ALTSTACK_SIZE);
        return -errno;
    }
    thread_vcpu = v;
    return 0;
}

void signals_destroy_thread(struct vcpu *v)
{
    thread_vcpu = NULL;
    stack_t off = {.ss_flags = SS_DISABLE};
    sigaltstack(&off, NULL);
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0ul);
    munmap(v->engine->altstack.ss_sp, ALTSTACK_SIZE);
}
