/* What --trace prints of the translator's work, and the hook of the independent verifier. */
#ifndef RINGSHIFT_TRANSLATOR_TRACE_H
#define RINGSHIFT_TRANSLATOR_TRACE_H

#include "translator/bt.h"

/* All of these test the configured address range themselves and save FP state where needed. */
void trace_block(struct bt_engine *bt, const struct tb *tb);
void trace_enter(struct bt_engine *bt, struct vcpu *v, const struct tb *tb);
void trace_exception(struct bt_engine *bt, struct vcpu *v);
void trace_interrupt(struct bt_engine *bt, struct vcpu *v, uint64_t from);
void trace_debug(struct bt_engine *bt, struct vcpu *v, uint64_t dr6);
/* INT n, INT3, INT1, SYSCALL, which have been done. */
void trace_software(struct bt_engine *bt, struct vcpu *v, const struct callout *c);
void trace_flush(struct bt_engine *bt, struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva);
/* A soft-TLB miss resolved; target is an enum mmu_target. */
void trace_miss(struct bt_engine *bt, struct vcpu *v, uint64_t gva, uint64_t gpa, unsigned access,
                int target);
/* A page on its way into a window. */
void trace_install(struct bt_engine *bt, struct vcpu *v, uint64_t gva, uint64_t gpa, bool write);
void trace_code_write(struct bt_engine *bt, uint64_t gpa, uint64_t len);

/* Checks invariant 2 on emitted code with Capstone; prints what is wrong to stderr. */
bool bt_verify_block(struct bt_engine *bt, const struct tb *tb);
/* The same for other bytes in the block's place (tb->host_end - tb->entry_ind of them). */
bool bt_verify_bytes(struct bt_engine *bt, const struct tb *tb, const uint8_t *code, bool quiet);
/* Frees what verification keeps from block to block. */
void bt_verify_end(struct bt_engine *bt);

#endif
