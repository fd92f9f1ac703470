/*
 * What --trace can show.  The categories are bits of engine_config.trace_mask; whoever has
 * something to tell of a category tests its bit, and the address against [trace_lo, trace_hi],
 * before formatting anything, so that tracing costs next to nothing while it is off.
 */
#ifndef RINGSHIFT_RUNTIME_TRACE_H
#define RINGSHIFT_RUNTIME_TRACE_H

enum trace_category {
    TRACE_TRAPS = 1u << 0,  /* exceptions and software interrupts delivered to the guest        */
    TRACE_BLOCKS = 1u << 1, /* blocks translated, with disassembly of both sides                */
    TRACE_IRQ = 1u << 2,    /* external interrupts delivered                                    */
    TRACE_MMU = 1u << 3,    /* shadow misses, flushes, writes to translated code                */
    TRACE_IO = 1u << 4,     /* port and MMIO accesses                                           */
    /* Every block entered, with the registers. Blocks are not chained then: much slower. */
    TRACE_ENTER = 1u << 5,
};

#endif
