/*
 * Flat windows: guest memory for 16- and 32-bit code, at the GS base.
 *
 * A 32-bit address needs no check at all: with a 67h prefix the host truncates `gs:[ea]` to 32 bits
 * and adds the GS base, below which it cannot reach.  So the GS base is the host address of linear
 * address 0 in the address space and view at hand, and changes with them:
 *
 *     GS base - STATE_BIAS   struct vcpu, mapped once more (64-bit addresses reach it, as always)
 *     GS base - FLAT_BELOW   nothing
 *     GS base                4 GiB of guest memory, or nothing at all while there is no window
 *     GS base + 4 GiB        nothing, for 34 GiB and more
 *
 * Nothing is where addresses of registers and a displacement end up that go by vcpu.bt.flat_base, the
 * same address in a register, and do not wrap (lower.c).  Such a register must not be wider than 32
 * bits: flat_use() sees to that, and translated code keeps it so.
 *
 * Views: user code sees pages with U/S = 1, supervisor code the others only (an access to user
 * memory takes the soft form, where SMAP is checked); without paging there is one view.  64-bit code
 * never uses these windows: to its [base + disp32] the state would be within reach.
 */
#include "translator/bt.h"

#include "mmu/host_syscall.h"
#include "translator/emit.h"

#include <errno.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#define ALIAS_SIZE ((sizeof(struct vcpu) + GUEST_PAGE_SIZE - 1) & ~(uint64_t)(GUEST_PAGE_SIZE - 1))
#define FLAT_SIZE  (4ull << 30)
/* Above the window: a register times 8 and a displacement, which may be up to 38 GiB together. */
#define FLAT_TAIL  (36ull << 30)
_Static_assert(WINDOW_SIZE >= FLAT_SIZE + FLAT_TAIL, "windows have room for it");

/* Kinds of windows, in window_key.tag: no PCID has these bits. */
enum { FLAT_IDENTITY = 0x8000, FLAT_USER, FLAT_SUPERVISOR, FLAT_COMPAT = 0x9000 };

static bool is_flat(const struct window *w)
{
    return w->used && (w->key.tag & 0x8000);
}

bool flat_window(const struct window *w)
{
    return is_flat(w);
}

/* -- What the guest's page tables say ------------------------------------------------------------- */

static void probe_paged(struct vcpu *v, uint64_t gva, bool user, struct window_pte *out)
{
    struct mmu_xlat x;
    *out = (struct window_pte){.valid = false};
    if (gva >> 32 || mmu_peek(v, gva, &x) || !x.accessed || x.user != user)
        return;
    out->gpa = x.gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    out->shift = x.page_shift == 22 ? 21 : x.page_shift;
    out->valid = true;
    out->writable = x.rw && x.dirty;
    out->global = x.global;
}

static void probe_user(void *vcpu, uint64_t gva, struct window_pte *out)
{
    probe_paged(vcpu, gva, true, out);
}

static void probe_supervisor(void *vcpu, uint64_t gva, struct window_pte *out)
{
    probe_paged(vcpu, gva, false, out);
}

static void probe_identity(void *vcpu, uint64_t gva, struct window_pte *out)
{
    const struct vcpu *v = vcpu;
    *out = (struct window_pte){.valid = !(gva >> 32) && !v->a20_off, .writable = true,
                               .gpa = gva & ~(uint64_t)(GUEST_PAGE_SIZE - 1), .shift = 21};
}

window_probe flat_probe(const struct window *w)
{
    return w->key.tag == FLAT_IDENTITY     ? probe_identity
           : w->key.tag == FLAT_SUPERVISOR ? probe_supervisor
                                           : probe_user;
}

/* The window that a privilege has in the current address space; false if none. */
static bool key_of_view(const struct vcpu *v, bool user, struct window_key *key)
{
    if (!(v->cr0 & CR0_PG)) {
        *key = (struct window_key){.tag = FLAT_IDENTITY};
        return true;
    }
    if (!(v->efer & EFER_LMA)) {
        *key = (struct window_key){.pdpt_gpa = v->cr3 & 0xffffffe0u,
                                   .tag = user ? FLAT_USER : FLAT_SUPERVISOR};
        return true;
    }
    uint64_t gpa = v->cr3 & 0x000ffffffffff000ull;
    if (!user || !ram_readable(v->ram, gpa, 8))
        return false;
    uint64_t e = __atomic_load_n((uint64_t *)(v->ram->base + gpa), __ATOMIC_RELAXED);
    if (!(e & 1))
        return false;
    unsigned pcid = vcpu_pcid_of(v, v->cr3);
    *key = (struct window_key){.pdpt_gpa = e & 0x000ffffffffff000ull,
                               .tag = (uint16_t)(FLAT_COMPAT | pcid)};
    return true;
}

/* -- The state below the GS base ------------------------------------------------------------------ */

/* Maps struct vcpu a second time.  It is shared memory (vcpu_alloc), so an mremap() of length 0
 * makes another mapping of it. */
static bool alias_state(struct vcpu *v, uint64_t gs)
{
    long r = host_syscall6(SYS_mremap, (uint64_t)(uintptr_t)v, 0, ALIAS_SIZE,
                           MREMAP_MAYMOVE | MREMAP_FIXED, gs - STATE_BIAS, 0);
    return r == (long)(gs - STATE_BIAS);
}

static void unalias_state(struct vcpu *v, uint64_t gs)
{
    struct engine_vcpu *ev = v->engine;
    long r = host_mmap(gs - STATE_BIAS, ALIAS_SIZE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (r != (long)(gs - STATE_BIAS))
        ev->ws.failed = true; /* 64-bit code may get this range: the machine must stop */
}

/* Makes a window usable by 16- and 32-bit code. */
static bool attach(struct vcpu *v, struct window *w)
{
    struct engine_vcpu *ev = v->engine;
    bool *aliased = &ev->flat.aliased[w - ev->ws.window];
    if (!*aliased)
        *aliased = alias_state(v, w->base);
    return *aliased;
}

void flat_released(struct vcpu *v, struct window *w)
{
    struct engine_vcpu *ev = v->engine;
    for (unsigned sup = 0; sup < 2; sup++)
        if (ev->flat.view[sup] == w->base)
            ev->flat.view[sup] = 0;
    if (ev->flat.aliased[w - ev->ws.window])
        unalias_state(v, w->base);
    ev->flat.aliased[w - ev->ws.window] = false;
}

/* The windows module has started over with one empty mapping: the aliases are gone. */
static void after_reset(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    ev->flat.resets = ev->ws.stats.resets;
    for (unsigned i = 0; i < WINDOW_MAX; i++)
        ev->flat.aliased[i] = false;
    ev->flat.view[0] = ev->flat.view[1] = 0;
}

static void set_gs(struct vcpu *v, uint64_t gs)
{
    struct engine_vcpu *ev = v->engine;
    if (gs == ev->flat.gs)
        return;
    __asm__ volatile("wrgsbase %0" : : "r"(gs));
    ev->flat.gs = v->bt.flat_base = gs;
}

/* 64-bit code may have left more than 32 bits in the registers; what they are then is undefined (SDM
 * vol. 1, 3.4.1.1). */
static void truncate_registers(struct vcpu *v)
{
    uint64_t all = 0;
    for (unsigned r = 0; r < 8; r++)
        all |= v->gpr[r];
    if (__builtin_expect(!(all >> 32), 1))
        return;
    for (unsigned r = 0; r < 8; r++)
        v->gpr[r] = (uint32_t)v->gpr[r];
}

void flat_use(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    if (!ev->flat.on)
        return;
    if (vcpu_long64(v)) {
        set_gs(v, (uint64_t)(uintptr_t)v + STATE_BIAS);
        return;
    }
    truncate_registers(v);
    if (ev->flat.resets != ev->ws.stats.resets)
        after_reset(v);
    uint64_t gs = ev->flat.view[v->cpl == 3 ? 0 : 1];
    set_gs(v, gs ? gs : ev->flat.null_gs);
}

/* -- Following the guest -------------------------------------------------------------------------- */

static void look_up_views(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    for (unsigned sup = 0; sup < 2; sup++) {
        struct window_key key;
        struct window *w = key_of_view(v, !sup, &key) ? window_lookup(&ev->ws, &key) : NULL;
        ev->flat.view[sup] = 0;
        if (!w || !attach(v, w))
            continue;
        if (ev->stale[w - ev->ws.window]) {
            window_flush(&ev->ws, w, false, flat_probe(w), v);
            ev->stale[w - ev->ws.window] = false;
        }
        ev->flat.view[sup] = w->base;
    }
}

void flat_on_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva)
{
    struct engine_vcpu *ev = v->engine;
    if (!ev->flat.any)
        return;
    unsigned pcid = kind == MMU_FLUSHED_PCID ? (unsigned)gva
                    : v->cr4 & CR4_PCIDE    ? v->cr3 & 0xfff
                                            : 0;
    for (unsigned i = 0; i < ev->ws.top; i++) {
        struct window *w = &ev->ws.window[i];
        if (!is_flat(w) || (w->key.tag == FLAT_IDENTITY && kind != MMU_FLUSHED_ALL))
            continue;
        bool compat = w->key.tag >= FLAT_COMPAT;
        switch (kind) {
        case MMU_FLUSHED_PAGE:
            if (w->base == ev->flat.view[0] || w->base == ev->flat.view[1])
                window_flush_page(&ev->ws, w, gva, flat_probe(w), v);
            else if (!compat) /* it may be a page that all address spaces share */
                ev->stale[i] = true;
            break;
        case MMU_SWITCHED:
            break;
        case MMU_FLUSHED_ALL:
            ev->stale[i] = true;
            break;
        default:
            if (!compat || (w->key.tag & 0xfff) == pcid)
                ev->stale[i] = true;
        }
    }
    if (kind != MMU_FLUSHED_PAGE && kind != MMU_FLUSHED_PCID)
        look_up_views(v);
}

bool flat_open(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    struct window_key key;
    bool user = v->cpl == 3;
    if (ev->flat.view[user ? 0 : 1] || !key_of_view(v, user, &key))
        return false;
    struct window *w = window_get(&ev->ws, &key, NULL);
    if (!w || !attach(v, w))
        return false;
    ev->flat.any = true;
    if (ev->stale[w - ev->ws.window])
        window_flush(&ev->ws, w, false, flat_probe(w), v);
    ev->stale[w - ev->ws.window] = false;
    look_up_views(v);
    return ev->flat.view[user ? 0 : 1] != 0;
}

bool flat_is_null(const struct vcpu *v, uint64_t hva)
{
    return v->engine->flat.on && hva - v->engine->flat.null_gs < FLAT_SIZE + FLAT_TAIL;
}

bool flat_wrapped(const struct vcpu *v, const struct tb *from)
{
    return (from->key & KEY_LEGACY) && v->engine->flat.on &&
           v->engine->wfault_hva - v->engine->flat.gs >= FLAT_SIZE;
}

/* -- Life cycle ----------------------------------------------------------------------------------- */

void flat_init(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    uint64_t size = STATE_BIAS + FLAT_SIZE + FLAT_TAIL;
    if (!ev->windows_on || !(getauxval(AT_HWCAP2) & 2)) /* HWCAP2_FSGSBASE */
        return;
    void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return;
    ev->flat.null_gs = (uint64_t)(uintptr_t)p + STATE_BIAS;
    ev->flat.gs = (uint64_t)(uintptr_t)v + STATE_BIAS;
    ev->flat.on = alias_state(v, ev->flat.null_gs);
    if (!ev->flat.on)
        munmap(p, size);
}

void flat_destroy(struct vcpu *v)
{
    struct engine_vcpu *ev = v->engine;
    if (ev->flat.on)
        munmap((void *)(uintptr_t)(ev->flat.null_gs - STATE_BIAS),
               STATE_BIAS + FLAT_SIZE + FLAT_TAIL);
    ev->flat.on = false;
}
