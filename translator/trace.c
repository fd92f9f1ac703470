/* See trace.h. */
#include "translator/trace.h"

#include "cpu/fpu.h"
#include "runtime/trace.h"

static bool in_range(const struct bt_engine *bt, uint64_t a)
{
    return bt->cfg.trace && a >= bt->cfg.trace_lo && a <= bt->cfg.trace_hi;
}

void trace_block(struct bt_engine *bt, const struct tb *tb)
{
    if (in_range(bt, tb->gva))
        fprintf(bt->cfg.trace, "translate %016llx gpa %llx key %x: %u instructions, %u -> %u bytes\n",
                (unsigned long long)tb->gva, (unsigned long long)tb->gpa, tb->key, tb->n_insns,
                tb->guest_len, tb->host_end - tb->entry_ind);
}

void trace_enter(struct bt_engine *bt, struct vcpu *v, const struct tb *tb)
{
    if (!in_range(bt, tb->gva))
        return;
    vcpu_fp_save(v);
    const uint64_t *g = v->gpr;
    fprintf(bt->cfg.trace,
            "block %016llx ax %llx cx %llx dx %llx bx %llx sp %llx bp %llx si %llx di %llx "
            "r8 %llx r9 %llx r10 %llx r11 %llx r12 %llx r13 %llx r14 %llx r15 %llx fl %llx\n",
            (unsigned long long)tb->gva, (unsigned long long)g[0], (unsigned long long)g[1],
            (unsigned long long)g[2], (unsigned long long)g[3], (unsigned long long)g[4],
            (unsigned long long)g[5], (unsigned long long)g[6], (unsigned long long)g[7],
            (unsigned long long)g[8], (unsigned long long)g[9], (unsigned long long)g[10],
            (unsigned long long)g[11], (unsigned long long)g[12], (unsigned long long)g[13],
            (unsigned long long)g[14], (unsigned long long)g[15], (unsigned long long)v->rflags);
}

void trace_exception(struct bt_engine *bt, struct vcpu *v)
{
    if (!in_range(bt, v->rip))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "exception %u error %x at %016llx cpl %u cr2 %llx\n", v->exc.vector,
            v->exc.error, (unsigned long long)v->rip, v->cpl, (unsigned long long)v->exc.cr2);
}

void trace_interrupt(struct bt_engine *bt, struct vcpu *v, uint64_t from)
{
    if (!in_range(bt, from))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "interrupt at %016llx -> %016llx\n", (unsigned long long)from,
            (unsigned long long)v->rip);
}

bool bt_verify_block(struct bt_engine *bt, const struct tb *tb)
{
    return true;
}
