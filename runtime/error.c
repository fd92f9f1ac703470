#include "runtime/error.h"

#include <stdarg.h>
#include <stdio.h>

int fail_with(char *err, size_t errlen, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(err, errlen, format, ap);
    va_end(ap);
    return code;
}
