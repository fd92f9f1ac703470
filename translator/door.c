/*
 * The door of a block for indirect jumps: is R10 the block's address?  It must not touch a flag, for if
 * it is not, they belong to another block.  JRCXZ is the one branch that needs none, but it is a
 * taken branch for every return and every call through a pointer, two registers have to be moved out
 * of its way and back, and it dilutes what the host's branch predictors know of the past.  So in the
 * second tier of 64-bit code nothing branches at all:
 *
 *     lea   r11, [r10 - address]     0 if it is this block
 *     pext  r11, r11, r11            2^n - 1, n the bits that were set
 *     mov   r11b, [r11 + probe]      faults unless n is 0
 *
 * `probe` is the last byte of a page; what lies 2^n - 1 behind it is on a page without access that is
 * set aside here, for each n, up to where addresses are not canonical.  (n = 64 would be the byte
 * before, but what is one off is not in the same slot of the jump cache.)  The signal handler
 * sends the jump on to the lookup, which takes twenty times as long as a lookup alone.  So jumps come to
 * a block by its side door first, which branches, and counts them; where there have been many they come
 * to the one that probes, until that faults: then two addresses in use share a slot.
 *
 * Where PEXT is microcode (AMD before family 19h) doors branch.  In 16- and 32-bit code the distance has
 * 32 bits, and 32 GiB are few enough to set aside:
 *
 *     lea   r11d, [r10 - address]
 *     mov   r11, [r11 * 8 + DOOR_PROBE]
 *
 * Another engine of this process may have that place; then these doors branch, too.
 */
#include "translator/lower.h"

#include <cpuid.h>
#include <sys/mman.h>

#define FIRST_APART 13u /* 2^n - 1 bytes behind the probe are beyond the page next to it */
#define LAST_APART  46u /* with more, addresses are not canonical */

static bool quick_pext(void)
{
    unsigned a, b, c, d, max, family;
    if (!__get_cpuid(0, &max, &b, &c, &d))
        return false;
    bool intel = b == 0x756e6547; /* "Genu" */
    bool amd = b == 0x68747541;   /* "Auth" */
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return false;
    family = (a >> 8 & 15) + ((a >> 8 & 15) == 15 ? a >> 20 & 255 : 0);
    return intel || (amd && family >= 0x19);
}

static bool map_at(uint64_t at, uint64_t size, int prot)
{
    void *p = mmap((void *)(uintptr_t)at, size, prot,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (p == (void *)(uintptr_t)at)
        return true;
    if (p != MAP_FAILED) /* a kernel that does not know MAP_FIXED_NOREPLACE */
        munmap(p, size);
    return false;
}

/* The last quadword of the last page below 2 GiB, and nothing for 32 GiB above it. */
#define PROBE_PAGE  (DOOR_PROBE & ~(uint64_t)(GUEST_PAGE_SIZE - 1))
#define PROBE_GUARD (33ull << 30)

static bool map_probe32(void)
{
    if (!map_at(PROBE_PAGE, GUEST_PAGE_SIZE + PROBE_GUARD, PROT_NONE))
        return false;
    if (!mprotect((void *)PROBE_PAGE, GUEST_PAGE_SIZE, PROT_READ))
        return true;
    munmap((void *)PROBE_PAGE, GUEST_PAGE_SIZE + PROBE_GUARD);
    return false;
}

/* What lies 2^n - 1 behind a probe at the end of this page, n in the range that is apart; 0 if that is
 * among the 32 GiB above. */
static uint64_t place(const struct bt_engine *bt, uint64_t page, unsigned n)
{
    uint64_t at = page + (1ull << n);
    return bt->probe32 && at - PROBE_PAGE - GUEST_PAGE_SIZE < PROBE_GUARD - GUEST_PAGE_SIZE ? 0 : at;
}

static void unmap(const struct bt_engine *bt, uint64_t page, unsigned end)
{
    munmap((void *)(uintptr_t)page, 2 * GUEST_PAGE_SIZE);
    for (unsigned n = FIRST_APART; n < end; n++)
        if (place(bt, page, n))
            munmap((void *)(uintptr_t)place(bt, page, n), GUEST_PAGE_SIZE);
}

/* All places at once, for a probe on this page. */
static bool reserve(const struct bt_engine *bt, uint64_t page)
{
    if (!map_at(page, 2 * GUEST_PAGE_SIZE, PROT_NONE))
        return false;
    for (unsigned n = FIRST_APART; n <= LAST_APART; n++)
        if (place(bt, page, n) && !map_at(place(bt, page, n), GUEST_PAGE_SIZE, PROT_NONE)) {
            unmap(bt, page, n);
            return false;
        }
    if (mprotect((void *)(uintptr_t)page, GUEST_PAGE_SIZE, PROT_READ)) {
        unmap(bt, page, LAST_APART + 1);
        return false;
    }
    return true;
}

void door_init(struct bt_engine *bt)
{
    bt->probe32 = map_probe32();
    if (!bt->bmi2 || !quick_pext())
        return;
    for (uint64_t page = 0x10003000; page < 0x70000000 && !bt->probe; page += 0x1235000)
        if (reserve(bt, page))
            bt->probe = (uint32_t)page + GUEST_PAGE_SIZE - 1;
}

void door_destroy(struct bt_engine *bt)
{
    if (bt->probe)
        unmap(bt, bt->probe - (GUEST_PAGE_SIZE - 1), LAST_APART + 1);
    if (bt->probe32)
        munmap((void *)PROBE_PAGE, GUEST_PAGE_SIZE + PROBE_GUARD);
    bt->probe = 0;
    bt->probe32 = false;
}

bool door_probes(const struct bt_engine *bt, uint32_t key)
{
    return key & KEY_LEGACY ? bt->probe32 : bt->probe;
}

/* reg = R10 - address of the block */
static void emit_distance(struct xlate *x, unsigned reg)
{
    struct emitter *e = &x->e;
    uint64_t minus = -x->tb->gva;
    if ((int64_t)minus == (int32_t)minus) {
        e_lea(e, reg, R10, 0xff, 1, (int32_t)minus);
    } else {
        e_mov_gva(e, reg, minus, RELOC_MINUS_GVA);
        e_lea(e, reg, reg, R10, 1, 0);
    }
}

static void emit_probe(struct xlate *x)
{
    struct emitter *e = &x->e;
    if (x->key & KEY_LEGACY) {
        e_lea32(e, R11, R10, 0xff, 1, (int32_t)-x->tb->gva);
        e_op_mem(e, true, 0x8b, R11, 0xff, R11, 8, (int32_t)DOOR_PROBE);
        return;
    }
    emit_distance(x, R11);
    e_bytes(e, (const uint8_t[]){0xc4, 0x42, 0xa2, 0xf5, 0xdb}, 5); /* pext r11, r11, r11 */
    e_op_mem(e, false, 0x8a, R11, R11, 0xff, 1, (int32_t)x->bt->probe);
}

/* RCX = 0 if R10 is this block's address; the guest's RCX in R11 then, in RCX again on the way out. */
static void emit_branching_door(struct xlate *x)
{
    struct emitter *e = &x->e;
    e_mov_rr(e, R11, RCX);
    emit_distance(x, RCX);
    e8(e, 0xe3);
    e8(e, 3 + 5); /* jrcxz over the next two */
    e_mov_rr(e, RCX, R11);
    e_jmp(e, x->bt->stub_lookup);
}

void door_emit_side(struct xlate *x)
{
    struct emitter *e = &x->e;
    uint32_t heat = (uint32_t)(uintptr_t)&x->tb->door_heat;
    x->tb->side_door = (uint32_t)emit_here(e);
    emit_branching_door(x);
    e_op_mem(e, false, 0x8b, RCX, 0xff, 0xff, 1, (int32_t)heat);
    e_reloc(e, RELOC_META, 4);
    e_lea32(e, RCX, RCX, 0xff, 1, -1);
    e_op_mem(e, false, 0x89, RCX, 0xff, 0xff, 1, (int32_t)heat);
    e_reloc(e, RELOC_META, 4);
    e8(e, 0xe3);
    e8(e, 3 + 5);
    e_mov_rr(e, RCX, R11);
    e_jmp(e, x->tb->entry);
    e_mov_rr(e, RCX, R11);
    e_mov_meta(e, R11, x->tb, RELOC_META);
    e_jmp(e, x->bt->stub_door_hot);
}

void door_emit(struct xlate *x)
{
    struct emitter *e = &x->e;
    if (!x->hot) {
        e_mov_meta(e, R11, x->tb, RELOC_META);
        e_jmp(e, x->bt->stub_door);
    } else if (x->tb->side_door) {
        emit_probe(x);
    } else {
        emit_branching_door(x);
        e_mov_rr(e, RCX, R11);
    }
}

uint64_t door_hot(struct vcpu *v, struct tb *tb)
{
    struct bt_engine *bt = v->engine->bt;
    bt_lock(bt); /* whoever drops it, looks for it in the jump caches */
    tb->probing = tb->side_door && !tb->missed;
    if (tb->probing && !tb->dead)
        jump_cache_insert(v, tb);
    bt_unlock(bt);
    return bt_resume_at(v, tb->door);
}

bool door_missed(struct bt_engine *bt, struct tb *tb, uint64_t pc)
{
    if (!tb->side_door || pc < tb->entry_ind || pc >= tb->entry)
        return false;
    tb->missed = true;
    tb->probing = false;
    bt->stats.door_misses++;
    return true;
}
