/* Shows a translated block beside the guest code it came from: `ringshift explain` and
 * `--trace blocks`. */
#ifndef RINGSHIFT_TRANSLATOR_EXPLAIN_H
#define RINGSHIFT_TRANSLATOR_EXPLAIN_H

#include <stdint.h>
#include <stdio.h>

struct bt_engine;
struct engine;
struct tb;
struct vcpu;

enum explain_tier { EXPLAIN_SOFT = 1, EXPLAIN_WINDOW = 2 };

/*
 * Translates the block at `gva` as the state of `v` asks for and prints it, once per tier in
 * `tiers`; the window tier predicts addresses from v's registers.  The vCPU must not be running
 * translated code; one that is detached is attached for the duration of the call.  Nothing of the
 * translation stays behind.  Returns the length in bytes of the guest code shown, -EFAULT if gva is
 * not mapped to RAM, -ENOSYS if the engine is not this one, -ENOMEM.
 */
int bt_explain(struct engine *e, struct vcpu *v, uint64_t gva, unsigned tiers, FILE *out);

/* Prints a block.  May use libc and FP registers: v's FP state has been saved. */
void explain_print(struct bt_engine *bt, const struct tb *tb, FILE *out);

#endif
