/*
 * Young address spaces.
 *
 * A page in a window costs a host signal, a mapping and, before long, its removal: some ten
 * microseconds.  A process that lives for a millisecond never earns that back, and a system that runs
 * scripts is made of such processes.  So 64-bit user code in an address space that has just come up is
 * translated without windows: soft in both tiers, RSP the guest's own.  Such blocks are kept apart from
 * the others by their key (KEY_YOUNG).
 *
 * An address space is told by the page of its PML4, and is old once it has been the current one for
 * LIFE.  A flush on the way to another PML4 may mean that the page serves a new process: what its
 * entries for the usual places of programs, libraries and stacks were is remembered to tell that from
 * a guest that flushes at every switch.  With PCIDs the flush also says that the PCID is new, and so
 * its windows are empty: who is still young starts over.  A wrong guess costs time and nothing else.
 *
 * Being young changes what RSP is in translated code.  It ends in the dispatcher only (young_tick()),
 * between two entries of translated code; ways back that go round the dispatcher ask young_over().  It
 * begins with a write to CR3, in supervisor code.
 */
#include "translator/bt.h"

/* TSC cycles: some milliseconds. */
#define LIFE 6000000ull

static uint64_t life(const struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    const struct engine_config *cfg = &ev->bt->cfg;
    if (cfg->chaos) /* everything between no time and some */
        return (ev->chaos_light++ & 7) * 20000;
    return cfg->tick_cycles ? 0 : LIFE; /* what counts instructions wants the usual code */
}

static uint64_t table_of(const struct vcpu *v)
{
    return v->cr3 & 0x000ffffffffff000ull;
}

static uint64_t fingerprint(const struct vcpu *v, uint64_t table)
{
    static const uint16_t usual[] = {0, 1, 170, 171, 172, 254, 255};
    uint64_t print = 0;
    if (!ram_readable(v->ram, table, GUEST_PAGE_SIZE))
        return 0;
    const uint64_t *entry = (const uint64_t *)(v->ram->base + table);
    for (unsigned i = 0; i < sizeof usual / sizeof usual[0]; i++)
        print = print * 31 + (__atomic_load_n(&entry[usual[i]], __ATOMIC_RELAXED) & ~0xfffull);
    return print;
}

static struct young_space *slot(struct engine_vcpu *ev, uint64_t table)
{
    uint64_t n = table >> GUEST_PAGE_SHIFT;
    return &ev->young.space[(n ^ n >> 7) % YOUNG_SPACES];
}

void young_switch(struct vcpu *v, bool flushed)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t now = 0, table = table_of(v), left;
    enum mem_mode mode = ev->bt->cfg.mem_mode;
    if (!ev->bt->native_stack || mode == MEM_WINDOW || table == ev->young.table)
        return;
    struct young_space *s = slot(ev, ev->young.table);
    /* Of one that comes and goes without a flush the fingerprint is not asked for, and takes longer than all
     * the rest. */
    if (flushed || ev->young.now || s->table != ev->young.table)
        s->print = fingerprint(v, ev->young.table);
    s->table = ev->young.table;
    if (ev->young.now)
        now = __builtin_ia32_rdtsc();
    s->left = ev->young.now && ev->young.until > now ? ev->young.until - now : 0;
    s = slot(ev, table);
    if (s->table != table)
        left = life(v);
    else if (flushed && ((s->left && (v->cr4 & CR4_PCIDE)) || s->print != fingerprint(v, table)))
        left = life(v);
    else
        left = s->left;
    ev->young.table = table;
    ev->young.now = left;
    ev->young.until = left ? (now ? now : __builtin_ia32_rdtsc()) + left : 0;
    ev->bt->stats.young += !!left;
}

void young_tick(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    if (!ev->young.now || __builtin_ia32_rdtsc() < ev->young.until)
        return;
    ev->young.now = false;
    ev->bt->stats.grown++;
}
