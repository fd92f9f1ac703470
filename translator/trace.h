/* What --trace prints of the translator's work, and the hook of the independent verifier. */
#ifndef RINGSHIFT_TRANSLATOR_TRACE_H
#define RINGSHIFT_TRANSLATOR_TRACE_H

#include "translator/bt.h"

/* All of these test the configured address range themselves and save FP state where needed. */
void trace_block(struct bt_engine *bt, const struct tb *tb);
void trace_enter(struct bt_engine *bt, struct vcpu *v, const struct tb *tb);
void trace_exception(struct bt_engine *bt, struct vcpu *v);
void trace_interrupt(struct bt_engine *bt, struct vcpu *v, uint64_t from);

/* Checks invariant 2 on emitted code with Capstone; prints what is wrong to stderr. */
bool bt_verify_block(struct bt_engine *bt, const struct tb *tb);

#endif
