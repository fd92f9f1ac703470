/*
 * The host's own string instructions, upwards, for light code: no libc, no FP registers, and one pass
 * over guest memory that may change meanwhile, with no assumption of the compiler's.
 */
#ifndef RINGSHIFT_TRANSLATOR_HOST_STRING_H
#define RINGSHIFT_TRANSLATOR_HOST_STRING_H

#include <stdint.h>

/* Copies n elements of `size` (1, 2, 4, 8) bytes. */
static inline void host_movs(unsigned size, void *dst, const void *src, uint64_t n)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
        break;
    case 2:
        __asm__ volatile("rep movsw" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
        break;
    case 4:
        __asm__ volatile("rep movsl" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
        break;
    default:
        __asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
    }
}

/* Stores the low `size` bytes of value n times. */
static inline void host_stos(unsigned size, void *dst, uint64_t value, uint64_t n)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
    }
}

#endif
