/*
 * The host's memory system calls without libc: callable from a signal handler, with the guest's
 * FP state in the registers, and without touching errno. Each returns what the kernel returns: a
 * negative errno on failure.
 */
#ifndef RINGSHIFT_MMU_HOST_SYSCALL_H
#define RINGSHIFT_MMU_HOST_SYSCALL_H

#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static inline long host_syscall6(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                                 uint64_t e, uint64_t f)
{
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = f;
    long ret;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

/* The address (as a positive number) or a negative errno. */
static inline long host_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd,
                             uint64_t offset)
{
    return host_syscall6(SYS_mmap, addr, len, (uint64_t)prot, (uint64_t)flags, (uint64_t)fd,
                         offset);
}

static inline long host_munmap(uint64_t addr, uint64_t len)
{
    return host_syscall6(SYS_munmap, addr, len, 0, 0, 0, 0);
}

static inline long host_mprotect(uint64_t addr, uint64_t len, int prot)
{
    return host_syscall6(SYS_mprotect, addr, len, (uint64_t)prot, 0, 0, 0);
}

static inline long host_madvise(uint64_t addr, uint64_t len, int advice)
{
    return host_syscall6(SYS_madvise, addr, len, (uint64_t)advice, 0, 0, 0);
}

#endif
