/*
 * guest-suite: what user programs rely on, tested from inside a program.  It runs natively (where
 * everything must pass) and under a guest's Linux.
 *
 * Every test runs in a forked child, so that a crash or a hang is one failed test; a test that
 * returns passed.  Tests that need a CPU or kernel feature which is missing say so with SKIP.
 */
#ifndef GUEST_SUITE_H
#define GUEST_SUITE_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

struct test {
    const char *name;
    void (*fn)(void);
    void *pad[2]; /* keeps the section's entries an array under any alignment */
};
#define TEST(theme, name)                                                                          \
    static void test_##theme##_##name(void);                                                       \
    static const struct test entry_##theme##_##name                                                \
        __attribute__((section("suite_tests"), used, aligned(32))) = {                             \
            #theme "." #name, test_##theme##_##name, {0}};                                         \
    static void test_##theme##_##name(void)

/* Ends the test; the message goes to the report. */
void fail_at(const char *file, int line, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 3, 4)));
void skip(const char *reason) __attribute__((noreturn));
#define FAIL(...)    fail_at(__FILE__, __LINE__, __VA_ARGS__)
#define SKIP(reason) skip(reason)
/* Tests that QEMU's TCG (7.2) is known to fail. */
bool on_tcg(void);
#define TCG_SKIP(reason)                                                                           \
    do {                                                                                           \
        if (on_tcg())                                                                              \
            skip("QEMU TCG: " reason);                                                             \
    } while (0)
#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            FAIL("%s", #cond);                                                                     \
    } while (0)
#define EQ(got, want)                                                                              \
    do {                                                                                           \
        uint64_t got_ = (uint64_t)(got), want_ = (uint64_t)(want);                                 \
        if (got_ != want_)                                                                         \
            FAIL("%s: got 0x%llx, want 0x%llx", #got, (unsigned long long)got_,                    \
                 (unsigned long long)want_);                                                       \
    } while (0)
/* A system call that must succeed. */
#define SYS(call)                                                                                  \
    ({                                                                                             \
        __typeof__(call) sys_ = (call);                                                            \
        if ((long)sys_ == -1)                                                                      \
            FAIL("%s: %s", #call, strerror(errno));                                                \
        sys_;                                                                                      \
    })

uint64_t rng(void); /* deterministic, restarted for each test */
uint32_t crc32(uint32_t crc, const void *data, size_t size);
void *map_pages(size_t pages, int prot); /* anonymous private pages; ends the test on failure */
void handle(int sig, void (*fn)(int, siginfo_t *, void *), int flags);
double now(void); /* CLOCK_MONOTONIC in seconds */
/* Waits for pid and returns its status. */
int wait_for(pid_t pid);

/*
 * Runs fn() and expects one of the signals that are caught here; returns the signal, or 0 if fn
 * returned.  What the handler saw is left in `caught`.
 */
struct caught {
    siginfo_t info;
    greg_t gregs[NGREG];
};
extern struct caught caught;
int catch_signal(void (*fn)(void *), void *arg);

#endif
