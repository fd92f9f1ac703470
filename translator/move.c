/*
 * Blocks moved to another address.
 *
 * Libraries and position-independent programs are somewhere else in each process, by chance, while
 * their pages are the same ones.  What a translation depends on besides the bytes is where it is in
 * few places: the door, return addresses, targets of direct jumps, operands relative to RIP.  So the
 * translator keeps a record of those (struct emitter.reloc), and where the same code at the same
 * physical address has been translated with the same key for another address, the dispatcher gets a
 * copy of that with those places changed, in a tenth of the time; of the second tier, if the code has
 * come that far, with all that has been learnt of its accesses.
 *
 * A block's metadata is in one piece, so pointers in it move by a constant.  Ids of windows: what
 * expects, or knows, to be in the window that the block is in goes on to do so; other ids stay as they
 * are.  That is the same renaming for checks and what relies on them, so nothing that was checked gets
 * unchecked; what was a good guess may be a bad one, which checks find out.
 *
 * Blocks on two pages, single steps and the like are not moved, nor those outside 64-bit user code.
 */
#include "translator/lower.h"

/* Addresses below this may have encodings of another length. */
#define LOWEST (1ull << 33)

bool move_possible(uint32_t key, uint64_t gva, uint64_t gpa2)
{
    return (key & KEY_USER) && !(key & (KEY_LEGACY | KEY_ONE_INSN | KEY_SLOW_MEM)) && gpa2 == ~0ull &&
           gva >= LOWEST && gva >> 47 == 0;
}

/* Light code has no memcpy(). */
static void copy(void *to, const void *from, uint64_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

struct move {
    const struct bt_engine *bt;
    const struct tb *from;
    struct tb *to;
    uint64_t by;   /* guest addresses move by that much */
    int64_t meta;  /* metadata */
    uint32_t code; /* code */
    uint8_t id[2]; /* window of the block: before, after */
    bool as_new;   /* it is to be as the translator leaves it, for the verifier */
};

static void *meta_of(const struct move *m, const void *p)
{
    return (void *)((intptr_t)p + m->meta);
}

static uint8_t id_of(const struct move *m, uint8_t id)
{
    return id == m->id[0] ? m->id[1] : id;
}

/* Metadata that code may name several times. */
static void move_site(const struct move *m, struct mem_site *s)
{
    if (s->tb != m->from)
        return;
    s->tb = m->to;
    s->rip += m->by;
    s->resume += m->code;
    s->resume_bounce += s->resume_bounce ? m->code : 0;
    s->resume_done += s->resume_done ? m->code : 0;
    if (s->flags & (SITE_MASKED | SITE_BOUNCE))
        s->insn = meta_of(m, s->insn);
}

static void move_callout(const struct move *m, struct callout *c)
{
    if (c->tb != m->from)
        return;
    c->tb = m->to;
    c->rip += m->by;
    c->resume += c->resume ? m->code : 0;
}

static void move_known(const struct move *m, struct known *k)
{
    for (unsigned i = 0; i < KNOWN_IDS; i++)
        if (k->regs[i] || k->r11 == i + 1)
            k->id[i] = id_of(m, k->id[i]);
}

/* `code` is where the block is written. */
static void set_jump(const struct move *m, const struct link *l, uint8_t *code, uint32_t target)
{
    uint32_t rel = target - (l->patch_x + 4);
    __builtin_memcpy(code + (l->patch_x - m->to->entry_ind), &rel, 4);
}

static void move_link(const struct move *m, struct link *l, uint8_t *code)
{
    l->from = m->to;
    l->to = NULL;
    l->next_in = NULL;
    l->prev_in = NULL;
    l->target += m->by;
    l->patch_x += m->code;
    l->stub += m->code;
    move_known(m, &l->known);
    set_jump(m, l, code, l->stub);
}

/* One place in the code; false: it cannot be moved there. */
static bool move_place(const struct move *m, unsigned kind, uint8_t *p)
{
    uint64_t wide;
    uint32_t narrow;
    switch (kind) {
    case RELOC_REL32:
        __builtin_memcpy(&narrow, p, 4);
        narrow -= m->code;
        __builtin_memcpy(p, &narrow, 4);
        return true;
    case RELOC_EA:
        __builtin_memcpy(&wide, p, 8);
        if ((wide + m->by) >> WINDOW_SHIFT != id_of(m, (uint8_t)(wide >> WINDOW_SHIFT)))
            return false;
        /* fallthrough */
    case RELOC_GVA:
    case RELOC_MINUS_GVA:
        __builtin_memcpy(&wide, p, 8);
        wide += kind == RELOC_MINUS_GVA ? -m->by : m->by;
        __builtin_memcpy(p, &wide, 8);
        return true;
    case RELOC_PLACE: /* mov r10, imm64; jmp gs:[disp32] */
        __builtin_memcpy(&wide, p - 12, 8);
        narrow = STATE_OFF(offsetof(struct vcpu, jump_cache)) +
                 jump_cache_index(m->bt, wide, false) * 8;
        __builtin_memcpy(p, &narrow, 4);
        return true;
    case RELOC_SITE:
    case RELOC_CALLOUT:
    case RELOC_META:
        __builtin_memcpy(&narrow, p, 4);
        narrow += (uint32_t)m->meta;
        __builtin_memcpy(p, &narrow, 4);
        if (kind == RELOC_SITE)
            move_site(m, (struct mem_site *)(uintptr_t)narrow);
        else if (kind == RELOC_CALLOUT)
            move_callout(m, (struct callout *)(uintptr_t)narrow);
        return true;
    case RELOC_ID:
        *p = id_of(m, *p);
        return true;
    case RELOC_DELTA:
        __builtin_memcpy(&narrow, p, 4);
        narrow -= STATE_OFF(offsetof(struct vcpu, window_delta));
        narrow = STATE_OFF(offsetof(struct vcpu, window_delta)) + id_of(m, (uint8_t)(narrow / 8)) * 8u;
        __builtin_memcpy(p, &narrow, 4);
        return true;
    default:
        return false;
    }
}

static bool fill_in(const struct move *m, uint8_t *code)
{
    struct tb *tb = m->to;
    tb->gva += m->by;
    tb->minus_gva = -tb->gva;
    tb->entry_ind += m->code;
    tb->entry += m->code;
    tb->entry_load += m->code;
    tb->entry_known += m->code;
    tb->side_door += tb->side_door ? m->code : 0;
    tb->host_end += m->code;
    tb->door = tb->entry;
    tb->side = meta_of(m, tb->side);
    tb->reloc = meta_of(m, tb->reloc);
    tb->out = meta_of(m, tb->out);
    tb->far = meta_of(m, tb->far);
    tb->in = NULL;
    tb->model = false;
    move_known(m, &tb->known);
    if (tb->missed) { /* what it shared a place of the jump cache with is elsewhere */
        tb->missed = false;
        tb->door_heat = DOOR_HEAT;
    }
    for (unsigned i = 0; i < tb->n_out; i++)
        move_link(m, &tb->out[i], code);
    for (unsigned i = 0; i < tb->n_far; i++) {
        struct far_link *f = &tb->far[i];
        move_link(m, &f->link, code);
        f->page = NULL;
        f->next = NULL;
        f->prev = NULL;
        f->closed += m->code;
        /* In a young address space links to other pages do not come to be open: they need not try. */
        if ((tb->key & KEY_YOUNG) && !m->as_new)
            set_jump(m, &f->link, code, f->closed);
    }
    for (unsigned i = 0; i < tb->n_reloc; i++)
        if (!move_place(m, tb->reloc[i] >> RELOC_OFF_BITS,
                        code + (tb->reloc[i] & ((1u << RELOC_OFF_BITS) - 1))))
            return false;
    return true;
}

/* Which of its links within the page have been taken. */
static uint32_t links_taken(const struct tb *tb)
{
    uint32_t taken = 0;
    for (unsigned i = 0; i < tb->n_out; i++)
        taken |= (uint32_t)!!tb->out[i].to << i;
    return taken;
}

/* With the lock held. The model may be dead afterwards. */
static struct tb *move_one(struct vcpu *v, struct tb *model, uint64_t gva, bool as_new)
{
    struct bt_engine *bt = v->engine->bt;
    /* Larger tables take a system call, which is for the translator. */
    if (!cache_tables_roomy(bt) || (model->window && !v->engine->windows_on))
        return NULL;
    struct cache_region *r = cache_reserve(bt, CACHE_MOVED);
    uint32_t mark = r->meta_used, size = model->host_end - model->entry_ind;
    if (model->dead) /* evicted: its memory is about to be used again */
        return NULL;
    struct tb *tb = cache_meta_alloc(r, model->meta_size);
    uint8_t *code = r->code_w + r->code_used;
    if (!tb)
        return NULL;
    struct move m = {
        .bt = bt,
        .from = model,
        .to = tb,
        .by = gva - model->gva,
        .meta = (intptr_t)tb - (intptr_t)model,
        .code = r->code_x + r->code_used - model->entry_ind,
        .id = {(uint8_t)(model->gva >> WINDOW_SHIFT), (uint8_t)(gva >> WINDOW_SHIFT)},
        .as_new = as_new,
    };
    copy(tb, model, model->meta_size);
    copy(code, bt->code_w + (model->entry_ind - bt->code_x), size);
    if (!fill_in(&m, code)) {
        r->meta_used = mark;
        return NULL;
    }
    r->code_used = (r->code_used + size + 15) & ~15u;
    cache_insert(bt, r, tb);
    bt->stats.moved++;
    return tb;
}

#define MOVE_MAX 32u

struct batch {
    struct tb *tb[MOVE_MAX];
    uint32_t taken[MOVE_MAX]; /* links_taken() of what it was made of */
    unsigned n, most;
    bool current; /* the jump cache is for code with this key now */
};

/* The block at this address on the page of `tb`: if there is none, made if that is possible. */
static struct tb *neighbour(struct vcpu *v, struct batch *b, const struct tb *tb, uint64_t gva)
{
    struct bt_engine *bt = v->engine->bt;
    uint64_t gpa = (tb->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1)) | (gva & (GUEST_PAGE_SIZE - 1));
    struct tb *there = cache_lookup(bt, gva, gpa, tb->key, 0), *model;
    if (there || b->n >= b->most || !(model = cache_model(bt, gpa, tb->key)))
        return there;
    b->taken[b->n] = links_taken(model);
    there = move_one(v, model, gva, false);
    if (there)
        b->tb[b->n++] = there;
    return there;
}

/*
 * What a block just made leads to on its page: links that have been taken before, and where a call returns
 * to.  What one process has executed, the next is likely to, and each way to the dispatcher that is saved is
 * worth more than a copy.
 */
static void move_along(struct vcpu *v, struct batch *b, struct tb *tb, uint32_t taken)
{
    struct bt_engine *bt = v->engine->bt;
    uint64_t after = tb->gva + (uint64_t)(int64_t)tb->return_off;
    for (unsigned i = 0; i < tb->n_out && !tb->dead; i++) {
        struct tb *to = taken >> i & 1 ? neighbour(v, b, tb, tb->out[i].target) : NULL;
        if (to)
            cache_link(bt, &tb->out[i], to);
    }
    if (tb->return_off && !tb->dead && (after ^ tb->gva) < GUEST_PAGE_SIZE) {
        unsigned n = b->n;
        struct tb *to = neighbour(v, b, tb, after);
        if (to && b->n > n && b->current)
            jump_cache_insert(v, to);
    }
}

struct tb *move_block(struct vcpu *v, uint64_t gva, uint64_t gpa, uint32_t key, unsigned most)
{
    struct bt_engine *bt = v->engine->bt;
    struct batch b;
    struct tb *model;
    if (!move_possible(key, gva, ~0ull))
        return NULL;
    b.n = 0;
    b.most = most < MOVE_MAX ? most : MOVE_MAX;
    b.current = bt_jump_cache_valid(v) && bt_current_key(v) == key;
    bt_lock(bt);
    model = cache_model(bt, gpa, key);
    if (model) {
        b.taken[0] = links_taken(model);
        b.tb[0] = move_one(v, model, gva, most == 1);
        b.n = !!b.tb[0];
    }
    for (unsigned i = 0; i < b.n && most > 1; i++)
        move_along(v, &b, b.tb[i], b.taken[i]);
    bt_unlock(bt);
    return b.n ? b.tb[0] : NULL;
}
