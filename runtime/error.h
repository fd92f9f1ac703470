/*
 * Error sentences: fallible functions of runtime/ return a negative errno and put one clear
 * sentence into their caller's buffer.
 */
#ifndef RINGSHIFT_RUNTIME_ERROR_H
#define RINGSHIFT_RUNTIME_ERROR_H

#include <stddef.h>

/* Formats the sentence into err (errlen bytes) and returns code, for `return fail_with(...)`. */
int fail_with(char *err, size_t errlen, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
