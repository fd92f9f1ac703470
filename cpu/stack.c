/*
 * Pushes and pops of control transfers.
 *
 * Almost always the words lie side by side: then they are checked and moved as one.  Only a stack
 * pointer that wraps around in between (16 bits: from 0 to FFFEH) needs them one by one.
 */
#include "cpu/stack.h"

#include "cpu/exception.h"
#include "cpu/segment.h"
#include "mmu/mmu.h"

#define CHUNK 64 /* most that mmu_load() and mmu_store() move at once */

struct cpu_stack cpu_stack_current(const struct vcpu *v)
{
    return (struct cpu_stack){
        .seg = v->seg[SEG_SS],
        .sp = v->gpr[RSP],
        .width = vcpu_stack_size(v),
    };
}

static int ts(struct vcpu *v, uint16_t sel, uint32_t ext)
{
    cpu_raise_code(v, EXC_TS, (sel & ~3u) | ext);
    return -1;
}

int cpu_stack_from_tss(struct vcpu *v, unsigned cpl, uint32_t ext, struct cpu_stack *out)
{
    bool wide = v->tr.attr & 8;
    uint32_t offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
    uint8_t field[6];
    unsigned bytes = wide ? 6 : 4;

    if (!(v->tr.attr & SEGA_P) || offset + bytes - 1 > v->tr.limit)
        return ts(v, v->tr.sel, ext);
    if (mmu_load(v, (uint32_t)(v->tr.base + offset), field, bytes, MMU_READ | MMU_SYSTEM, false))
        return -1;
    uint32_t sp = field[0] | field[1] << 8;
    if (wide)
        sp |= field[2] << 16 | (uint32_t)field[3] << 24;
    uint16_t sel = field[bytes - 2] | field[bytes - 1] << 8;

    *out = (struct cpu_stack){.sp = sp, .access = MMU_SYSTEM, .error = (sel & ~3u) | ext};
    if (sel_null(sel))
        return ts(v, 0, ext);
    if (cpu_read_descriptor_as(v, EXC_TS, sel, ext, &out->desc, &out->lin))
        return -1;
    if ((sel & 3u) != cpl || desc_dpl(out->desc) != cpl ||
        (out->desc & (DESC_S | DESC_CODE | DESC_WRITE)) != (DESC_S | DESC_WRITE))
        return ts(v, sel, ext);
    if (!(out->desc & DESC_P)) {
        cpu_raise_code(v, EXC_SS, out->error);
        return -1;
    }
    out->seg = cpu_segment_of(sel, out->desc);
    out->width = out->seg.attr & SEGA_DB ? 4 : 2;
    return 0;
}

static bool usable(const struct vcpu *v, const struct cpu_stack *s)
{
    return vcpu_real_segments(v) || (s->seg.attr & SEGA_P);
}

/* [offset, offset + total) of the segment, in pieces of at most CHUNK bytes. */
static int transfer(struct vcpu *v, const struct cpu_stack *s, uint64_t offset, uint8_t *buf,
                    unsigned total, bool write)
{
    while (total) {
        unsigned n = total < CHUNK ? total : CHUNK;
        uint64_t lin = s->width == 8 ? offset : (uint32_t)(s->seg.base + offset);
        if (write ? mmu_store(v, lin, buf, n, MMU_WRITE | s->access, true)
                  : mmu_load(v, lin, buf, n, MMU_READ | s->access, true))
            return -1;
        offset += n, buf += n, total -= n;
    }
    return 0;
}

static unsigned word_size(unsigned i, unsigned size, unsigned selectors)
{
    return selectors >> i & 1 ? 2 : size;
}

static uint64_t get_word(const uint8_t *p, unsigned size)
{
    uint64_t q = 0;

    if (size == 8)
        __builtin_memcpy(&q, p, 8);
    else if (size == 4)
        __builtin_memcpy(&q, p, 4);
    else
        __builtin_memcpy(&q, p, 2);
    return q;
}

static void put_word(uint8_t *p, unsigned size, uint64_t value)
{
    if (size == 8)
        __builtin_memcpy(p, &value, 8);
    else if (size == 4)
        __builtin_memcpy(p, &value, 4);
    else
        __builtin_memcpy(p, &value, 2);
}

/* The words of a push or pop: from `low` upwards, wrapping around at the stack's width. */
static int move(struct vcpu *v, const struct cpu_stack *s, uint64_t low, uint8_t *buf,
                unsigned count, unsigned size, unsigned selectors, bool write)
{
    uint64_t mask = size_mask(s->width);
    unsigned total = (count - 1) * size + word_size(count - 1, size, selectors);

    if (s->width == 8)
        return transfer(v, s, low, buf, total, write);
    low &= mask;
    bool whole = low + total - 1 <= mask;
    bool ok = usable(v, s);
    if (whole)
        ok = ok && cpu_segment_contains(&s->seg, low, total);
    else
        for (unsigned i = 0; i < count; i++)
            ok = ok && cpu_segment_contains(&s->seg, (low + i * size) & mask,
                                            word_size(i, size, selectors));
    if (!ok) {
        cpu_raise_code(v, EXC_SS, s->error);
        return -1;
    }
    if (whole)
        return transfer(v, s, low, buf, total, write);
    for (unsigned i = 0; i < count; i++)
        if (transfer(v, s, (low + i * size) & mask, buf + i * size,
                     word_size(i, size, selectors), write))
            return -1;
    return 0;
}

int cpu_stack_push(struct vcpu *v, struct cpu_stack *s, const uint64_t *value, unsigned count,
                   unsigned size)
{
    uint8_t buf[36 * 8];

    for (unsigned i = 0; i < count; i++)
        put_word(buf + i * size, size, value[i]);
    uint64_t low = s->sp - count * size;
    if (move(v, s, low, buf, count, size, 0, true))
        return -1;
    s->sp = cpu_stack_merge(s->sp, low, s->width);
    return 0;
}

int cpu_stack_peek(struct vcpu *v, const struct cpu_stack *s, unsigned skip, uint64_t *value,
                   unsigned count, unsigned size, unsigned selectors)
{
    uint8_t buf[36 * 8];

    if (move(v, s, s->sp + skip, buf, count, size, selectors, false))
        return -1;
    for (unsigned i = 0; i < count; i++)
        value[i] = get_word(buf + i * size, word_size(i, size, selectors));
    return 0;
}
