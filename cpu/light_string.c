/*
 * memcpy and its kin for light code built by clang, which turns loops and structure copies into
 * calls to them and has no option against it (gcc has: see LIGHT_FLAGS in CMakeLists.txt).  The C
 * library's use vector registers, where the guest's FP state is live.  These do not; in a program
 * built by clang they take the library's place.
 */
#ifdef __clang__
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    void *d = to;

    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    unsigned char *d = to;
    const unsigned char *s = from;

    if ((uintptr_t)d - (uintptr_t)s >= n)
        return memcpy(to, from, n);
    d += n - 1;
    s += n - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(d), "+S"(s), "+c"(n) : : "memory", "cc");
    return to;
}

void *memset(void *to, int value, size_t n)
{
    void *d = to;

    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(value) : "memory");
    return to;
}
#else
typedef int light_string_is_empty; /* ISO C wants a declaration in each file */
#endif
