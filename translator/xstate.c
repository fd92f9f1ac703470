/* See xstate.h. The table is constant after xstate_init(): a fact about the host, not state. */
#include "translator/xstate.h"

#include <cpuid.h>

static struct {
    uint32_t offset, size;
    bool align64;
} component[64];

void xstate_init(void)
{
    unsigned a, b, c, d;
    for (unsigned i = 2; i < 63; i++) {
        if (!__get_cpuid_count(0xd, i, &a, &b, &c, &d))
            return;
        component[i].size = a;
        component[i].offset = b;
        component[i].align64 = c & 2;
    }
}

unsigned xstate_size(uint64_t components, bool compacted)
{
    unsigned end = 576;
    for (unsigned i = 2; i < 63; i++) {
        if (!(components >> i & 1))
            continue;
        if (compacted) {
            if (component[i].align64)
                end = (end + 63) & ~63u;
            end += component[i].size;
        } else if (component[i].offset + component[i].size > end) {
            end = component[i].offset + component[i].size;
        }
    }
    return end;
}

unsigned xstate_offset(unsigned i)
{
    return i < 63 ? component[i].offset : 0;
}
