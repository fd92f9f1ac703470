/*
 * The jump cache: where an indirect jump (or a direct one to another page) finds its target.
 *
 * One table of host addresses for user code, one for supervisor code, indexed by the low 16 bits
 * of the guest address: `movzx r11d, r10w; jmp gs:[jump_cache + r11*8]`, no flags touched.  The
 * block it lands in compares R10 with its own address and leaves for the dispatcher if they differ.
 * An entry says "this GVA is this block now", so it must go when the GVA's mapping may have changed
 * (TLB flush), when the translation key changes, and when the block is dropped.
 */
#include "translator/bt.h"

void jump_cache_init(struct vcpu *v)
{
    uint64_t miss = v->engine->bt->stub_lookup;
    for (int u = 0; u < 2; u++) {
        for (unsigned i = 0; i < JUMP_CACHE_SIZE; i++)
            v->jump_cache[u][i] = miss;
        v->engine->jc_n[u] = 0;
    }
}

void jump_cache_insert(struct vcpu *v, struct tb *tb)
{
    struct engine_vcpu *ev = v->engine;
    unsigned sup = tb->key & KEY_USER ? 0 : 1;
    uint64_t *e = &v->jump_cache[sup][tb->gva & (JUMP_CACHE_SIZE - 1)];
    if (*e == ev->bt->stub_lookup) {
        const uint32_t max = sizeof ev->jc_used[0] / sizeof ev->jc_used[0][0];
        if (ev->jc_n[sup] < max)
            ev->jc_used[sup][ev->jc_n[sup]] = tb->gva & (JUMP_CACHE_SIZE - 1);
        ev->jc_n[sup]++; /* beyond max: the next flush clears the whole table */
    }
    *e = tb->entry_ind;
}

void jump_cache_flush(struct vcpu *v, bool user_only)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t miss = ev->bt->stub_lookup;
    const uint32_t max = sizeof ev->jc_used[0] / sizeof ev->jc_used[0][0];
    for (int sup = 0; sup < (user_only ? 1 : 2); sup++) {
        if (ev->jc_n[sup] > max) {
            for (unsigned i = 0; i < JUMP_CACHE_SIZE; i++)
                v->jump_cache[sup][i] = miss;
        } else {
            for (unsigned i = 0; i < ev->jc_n[sup]; i++)
                v->jump_cache[sup][ev->jc_used[sup][i]] = miss;
        }
        ev->jc_n[sup] = 0;
    }
}

void jump_cache_flush_page(struct vcpu *v, uint64_t gva)
{
    uint64_t miss = v->engine->bt->stub_lookup;
    /* Blocks of this page, and one that straddles into it from the page before. */
    uint64_t first = (gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) - 15;
    for (int sup = 0; sup < 2; sup++)
        for (unsigned i = 0; i < GUEST_PAGE_SIZE + 15; i++)
            v->jump_cache[sup][(first + i) & (JUMP_CACHE_SIZE - 1)] = miss;
}

void jump_cache_forget(struct vcpu *v, struct tb *tb)
{
    unsigned sup = tb->key & KEY_USER ? 0 : 1;
    uint64_t *e = &v->jump_cache[sup][tb->gva & (JUMP_CACHE_SIZE - 1)];
    if (*e == tb->entry_ind)
        *e = v->engine->bt->stub_lookup;
}
