/*
 * Which windows there are, and what the delta tables say.
 *
 * Emitted code turns a guest address into a host address by adding vcpu.window_delta[privilege][id],
 * id = address bits 39..54.  Every entry is either the delta of a window (mmu/window.h) or that of
 * the null window: 512 GiB of host addresses where nothing is ever mapped.  Both have guard zones
 * (WINDOW_GUARD), so a 32-bit displacement cannot leave them, and an address whose bits above 54 are wrong
 * ends non-canonical.  That is why one table lookup is all the checking there is (invariant 2).
 *
 * User code has windows for the lower half of the addresses only, supervisor code for the upper half
 * only: a supervisor access to user memory takes the soft form, where SMAP and AC are checked.
 *
 * A window is known by what its PML4 entry points to, so all processes of a guest share the
 * kernel's; those of user memory also carry the PCID. Flushes revalidate the windows that are
 * current and mark the others stale.
 */
#include "translator/bt.h"

#include "mmu/host_syscall.h"
#include "runtime/trace.h"
#include "translator/callouts.h"
#include "translator/trace.h"

#include <errno.h>
#include <sys/mman.h>

static uint64_t gva_of_id(unsigned id)
{
    return (uint64_t)((int64_t)((uint64_t)id << 48) >> 9); /* bits 39..54, sign-extended */
}

static bool user_id(unsigned id)
{
    return id < 0x100;
}

static uint64_t null_delta(const struct engine_vcpu *ev, unsigned id)
{
    return ev->null_base - gva_of_id(id);
}

static void set_delta(struct vcpu *v, unsigned id, uint64_t delta)
{
    v->window_delta[user_id(id) ? 0 : 1][id] = delta;
}

static unsigned current_pcid(const struct vcpu *v)
{
    return vcpu_pcid_of(v, v->cr3);
}

/* -- What the tables say in other address spaces -------------------------------------------------- */

/*
 * To find the windows of an address space takes a look at a PML4 entry for each of the ids in use, and one
 * at the window.  So what came out is kept, until a window is opened or given to another, or a flush may have
 * changed it: what has not been flushed may be as it was (SDM vol. 3, 4.10.3), and no window that is stale
 * can be among them.
 */
static void forget_all_deltas(struct engine_vcpu *ev)
{
    for (unsigned i = 0; i < AS_RECORDS; i++)
        ev->as_deltas[i].cr3 = ~0ull;
    ev->deltas_now = NULL;
}

static void forget_deltas(const struct vcpu *v, unsigned pcid)
{
    struct engine_vcpu *ev = v->engine;
    if (vcpu_pcid_of(v, ev->as_deltas[pcid % AS_RECORDS].cr3) == pcid)
        ev->as_deltas[pcid % AS_RECORDS].cr3 = ~0ull;
}

static void keep_deltas(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    ev->deltas_now = NULL;
    if (ev->n_ids > AS_DELTAS)
        return;
    ev->deltas_now = &ev->as_deltas[current_pcid(v) % AS_RECORDS];
    ev->deltas_now->cr3 = v->cr3;
    for (unsigned i = 0; i < ev->n_ids; i++)
        ev->deltas_now->delta[i] = v->window_delta[user_id(ev->ids[i]) ? 0 : 1][ev->ids[i]];
}

/* True if the tables are right for CR3 now. Every now and then it is done the long way, which notes that
 * the windows are in use. */
static bool use_deltas(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    const uint64_t *old = ev->deltas_now ? ev->deltas_now->delta : NULL;
    unsigned r = current_pcid(v) % AS_RECORDS;
    const uint64_t *new = ev->as_deltas[r].delta;
    if (ev->as_deltas[r].cr3 != v->cr3 || !(++ev->deltas_used & 63))
        return false;
    for (unsigned i = 0; i < ev->n_ids; i++)
        if (!old || old[i] != new[i])
            set_delta(v, ev->ids[i], new[i]);
    ev->deltas_now = &ev->as_deltas[r];
    return true;
}

/* -- Following the guest -------------------------------------------------------------------------- */

/* A host range is about to stand for something else. */
static void on_released(void *opaque, struct window *w)
{
    struct vcpu *v = opaque;
    struct engine_vcpu *ev = v->engine;
    forget_all_deltas(ev);
    if (flat_window(w))
        flat_released(v, w);
    for (unsigned i = 0; i < ev->n_ids && !flat_window(w); i++) {
        unsigned id = ev->ids[i];
        if (v->window_delta[user_id(id) ? 0 : 1][id] == w->delta)
            set_delta(v, id, null_delta(ev, id));
    }
    ev->stale[w - ev->ws.window] = false;
    ev->nonglobal[w - ev->ws.window] = false;
}

int windows_init(struct vcpu *v, unsigned vma_budget)
{
    struct engine_vcpu *ev = v->engine;
    struct window_config cfg = {.released = on_released, .opaque = v, .vma_budget = vma_budget};
    uint64_t size = WINDOW_SIZE + 2 * WINDOW_GUARD;
    void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    int r = window_space_init(&ev->ws, v->ram, &cfg);
    if (r) {
        munmap(p, size);
        return r;
    }
    ev->null_base = (uint64_t)(uintptr_t)p + WINDOW_GUARD;
    for (unsigned id = 0; id < 65536; id++)
        v->window_delta[0][id] = v->window_delta[1][id] = null_delta(ev, id);
    if (ev->bt->cfg.huge_pages)
        huge_pages_init(&ev->huge, v->ram);
    ev->windows_on = true;
    forget_all_deltas(ev);
    flat_init(v);
    return 0;
}

void windows_add_stats(struct window_stats *sum, const struct window_stats *w)
{
    sum->installs += w->installs;
    sum->installed_pages += w->installed_pages;
    sum->unmaps += w->unmaps;
    sum->protects += w->protects;
    sum->probes += w->probes;
    sum->vmas_peak = w->vmas_peak > sum->vmas_peak ? w->vmas_peak : sum->vmas_peak;
}

void windows_destroy(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    if (!ev->windows_on)
        return;
    windows_add_stats(&ev->bt->stats.windows, &ev->ws.stats);
    ev->bt->stats.windows_used = true;
    flat_destroy(v);
    window_space_destroy(&ev->ws);
    huge_pages_destroy(&ev->huge);
    munmap((void *)(uintptr_t)(ev->null_base - WINDOW_GUARD), WINDOW_SIZE + 2 * WINDOW_GUARD);
    ev->windows_on = false;
}

/* The key of the window for this id in the current address space; false if its PML4E maps nothing. */
static bool key_of(const struct vcpu *v, unsigned id, struct window_key *key)
{
    uint64_t gpa = (v->cr3 & 0x000ffffffffff000ull) + (id & 511) * 8;
    if (!(v->cr0 & CR0_PG) || !(v->efer & EFER_LMA) || !ram_readable(v->ram, gpa, 8))
        return false;
    uint64_t e = __atomic_load_n((uint64_t *)(v->ram->base + gpa), __ATOMIC_RELAXED);
    if (!(e & 1))
        return false;
    *key = (struct window_key){.pdpt_gpa = e & 0x000ffffffffff000ull,
                               .pml4_index = id & 511,
                               .tag = (uint16_t)(user_id(id) ? current_pcid(v) : 0)};
    return true;
}

static void revalidate(struct vcpu *v, struct window *w, bool keep_global)
{
    struct engine_vcpu *ev = v->engine;
    struct window_prober prober = {.vcpu = v};
    window_flush(&ev->ws, w, keep_global, window_probe_near, &prober);
    if (!keep_global)
        ev->stale[w - ev->ws.window] = false;
}

/* Table entries follow CR3. Windows are not created here: a fault does that. */
static void reload(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    for (unsigned i = 0; i < ev->n_ids; i++) {
        unsigned id = ev->ids[i];
        struct window_key key;
        struct window *w = key_of(v, id, &key) ? window_lookup(&ev->ws, &key) : NULL;
        if (w && ev->stale[w - ev->ws.window])
            revalidate(v, w, false);
        set_delta(v, id, w ? w->delta : null_delta(ev, id));
    }
}

static struct window *current_window(struct vcpu *v, unsigned id)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t gva;
    uint64_t delta = v->window_delta[user_id(id) ? 0 : 1][id];
    if (delta == null_delta(ev, id))
        return NULL;
    return window_of_hva(&ev->ws, gva_of_id(id) + delta, &gva);
}

void windows_on_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva)
{
    struct engine_vcpu *ev = v->engine;
    if (!ev->windows_on)
        return;
    flat_on_flush(v, kind, gva);
    if (kind == MMU_FLUSHED_PAGE) {
        struct window *w = current_window(v, (unsigned)(gva >> WINDOW_SHIFT) & 0xffff);
        if (w)
            window_flush_page(&ev->ws, w, gva, window_probe_vcpu, v);
        forget_deltas(v, current_pcid(v)); /* a new PML4 entry is to be seen then */
        return;
    }
    /* What is not reachable now is looked at when it becomes reachable. */
    unsigned pcid = kind == MMU_FLUSHED_PCID ? (unsigned)gva : current_pcid(v);
    for (unsigned i = 0; i < ev->ws.top && kind != MMU_SWITCHED; i++) {
        const struct window *w = &ev->ws.window[i]; /* no PCID is the tag of a flat window */
        if (kind == MMU_FLUSHED_ALL ? w->used && !flat_window(w)
                                    : w->key.tag == pcid && w->key.pml4_index < 256)
            ev->stale[i] = true;
    }
    if (kind == MMU_FLUSHED_ALL)
        forget_all_deltas(ev);
    else if (kind != MMU_SWITCHED)
        forget_deltas(v, pcid);
    if (kind == MMU_FLUSHED_PCID)
        return;
    if (kind == MMU_SWITCHED && use_deltas(v))
        return;
    ev->deltas_now = NULL;
    reload(v);
    if (kind == MMU_SWITCHED)
        keep_deltas(v);
    if (kind == MMU_FLUSHED_NONGLOBAL)
        for (unsigned i = 0; i < ev->n_ids; i++) {
            struct window *w = user_id(ev->ids[i]) ? NULL : current_window(v, ev->ids[i]);
            if (w && ev->nonglobal[w - ev->ws.window])
                revalidate(v, w, true);
        }
}

/* Makes the table entry of an address point to a window. True if it did not before. */
static bool open_window(struct vcpu *v, uint64_t gva)
{
    struct engine_vcpu *ev = v->engine;
    unsigned id = (unsigned)(gva >> WINDOW_SHIFT) & 0xffff;
    struct window_key key;
    if (!window_id_ok(v->cpl == 3, id) || !mmu_canonical(gva) || current_window(v, id) ||
        !key_of(v, id, &key))
        return false;
    bool known = false;
    for (unsigned i = 0; i < ev->n_ids; i++)
        known |= ev->ids[i] == id;
    if (!known) {
        if (ev->n_ids == sizeof ev->ids / sizeof ev->ids[0])
            return false;
        ev->ids[ev->n_ids++] = (uint16_t)id;
        forget_all_deltas(ev); /* they say nothing of this one */
    }
    struct window *w = window_get(&ev->ws, &key, NULL);
    if (!w)
        return false;
    if (ev->stale[w - ev->ws.window])
        revalidate(v, w, false);
    set_delta(v, id, w->delta);
    forget_all_deltas(ev);
    return true;
}

/* Maps the page of gva. */
static bool install(struct vcpu *v, struct window *w, uint64_t gva, bool write)
{
    window_probe probe = flat_window(w) ? flat_probe(w) : window_probe_vcpu;
    struct engine_vcpu *ev = v->engine;
    struct exception saved = v->exc;
    struct mmu_xlat x;
    struct window_pte pte;
    if (mmu_walk(v, gva, write ? MMU_WRITE : MMU_READ, &x) < 0) {
        v->exc = saved; /* the soft form raises it, precisely */
        return false;
    }
    probe(v, gva, &pte);
    if (!pte.valid || (write && !pte.writable))
        return false;
    if (write && (ram_page(v->ram, pte.gpa) & RAM_PAGE_READONLY))
        return false;
    if (window_mapped(&ev->ws, w, gva, write))
        return true; /* spurious: mapped meanwhile */
    if (!pte.global)
        ev->nonglobal[w - ev->ws.window] = true;
    if (ev->bt->cfg.trace_mask & TRACE_MMU)
        trace_install(ev->bt, v, gva, pte.gpa, write);
    /* Not the kernel's: what it has in big pages is all memory, mapped while it boots. */
    if (pte.shift >= HUGE_PAGE_SHIFT && v->cpl == 3) {
        int huge = huge_pages_consider(&ev->huge, pte.gpa);
        ev->bt->stats.huge_made += huge > 0;
        ev->bt->stats.huge_refused += huge < 0;
    }
    struct window_prober prober = {.vcpu = v};
    if (flat_window(w))
        return window_install(&ev->ws, w, gva, &pte, probe, v) == 0;
    return window_install(&ev->ws, w, gva, &pte, window_probe_near, &prober) == 0;
}

/* The instruction's operands lie where no window is yet: open them. */
static bool open_operands(struct vcpu *v)
{
    struct insn in;
    uint8_t buf[15];
    uint64_t gpa;
    if (exec_translate(v, v->rip, &gpa) < 0)
        return false;
    unsigned n = 0;
    for (; n < 15 && (n == 0 || ((v->rip + n) & 4095)); n++) {
        const uint8_t *p = ram_read_ptr(v->ram, gpa + n, 1);
        if (!p)
            return false;
        buf[n] = *(const volatile uint8_t *)p;
    }
    if (insn_decode(&in, buf, n, MODE_64) <= 0)
        return false;
    bool opened = false, string = string_for_windows(0, &in);
    if (string && in.gpr_read & (1u << RSI))
        opened |= open_window(v, v->gpr[RSI]);
    if (string && in.gpr_read & (1u << RDI))
        opened |= open_window(v, v->gpr[RDI]);
    if (in.flags & INSN_MEM)
        opened |= open_window(v, callout_ea(v, &in));
    if ((in.gpr_read | in.gpr_written) & (1u << RSP))
        opened |= open_window(v, v->gpr[RSP]);
    if (in.op == OP_LEAVE)
        opened |= open_window(v, v->gpr[RBP]);
    return opened;
}

/*
 * An instruction that only ever touches new pages (a page-fault storm, memory used once) would pay
 * the price of a mapping for each access: give it the soft form. New pages at intervals that dwarf
 * that price are fine.  Pages that were there already are likely to be touched again, big ones pay at
 * once.
 */
static void note_install(struct engine_vcpu *ev, uint64_t rip)
{
    struct site_info *s = site_lookup(ev, rip);
    uint32_t now = (uint32_t)(__builtin_ia32_rdtsc() >> 8);
    uint16_t page_faults = (uint16_t)ev->bt->stats.exceptions[EXC_PF];
    if (s->rip != rip)
        *s = (struct site_info){.rip = rip};
    if (now - s->last_install < 60000 >> 8) {
        s->streak += s->page_faults != page_faults ? STORM_NEW_PAGE : 1;
        if (site_storm(s))
            s->soft = true;
    } else if (s->streak) {
        s->streak = s->streak > STORM_NEW_PAGE ? s->streak - STORM_NEW_PAGE : 0;
    }
    s->last_install = now;
    s->page_faults = page_faults;
}

bool windows_resolve_fault(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t gva;
    struct window *w = window_of_hva(&ev->ws, ev->wfault_hva, &gva);
    if (w && install(v, w, gva, ev->wfault_write)) {
        note_install(ev, v->rip);
        return true;
    }
    if (!vcpu_long64(v))
        return !w && flat_is_null(v, ev->wfault_hva) && flat_open(v);
    return !w && open_operands(v);
}

void windows_drop_gpa(struct vcpu *v, uint64_t gpa, uint64_t len)
{
    if (v->engine->windows_on)
        window_drop_gpa(&v->engine->ws, gpa, len);
}

void windows_protect_gpa(struct vcpu *v, uint64_t gpa)
{
    if (v->engine->windows_on)
        window_protect_gpa(&v->engine->ws, gpa);
}
