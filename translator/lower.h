/*
 * Lowering: the state of one block's translation and the rules for memory operands.  translate.c
 * decides what an instruction becomes; lower.c knows how an access reaches guest memory.
 */
#ifndef RINGSHIFT_TRANSLATOR_LOWER_H
#define RINGSHIFT_TRANSLATOR_LOWER_H

#include "translator/bt.h"
#include "translator/emit.h"
#include "translator/reencode.h"

#define TB_MAX_INSNS 64u
#define TB_MAX_SIDE  1024u
#define TB_MAX_SLOW  160u
#define TB_MAX_LINKS 32u

struct xlate;
struct access;

/* Emits the instruction proper on a->ref. Called twice for soft writes: in the main path and in the
 * twin that works on a bounce copy. May use a->scratch; a load may end in R11 or R10 even if they
 * are part of the reference. */
typedef void (*body_fn)(struct xlate *x, const struct insn *in, const struct access *a);

/* One memory access of an instruction. */
struct access {
    uint16_t size;
    uint8_t kind;     /* MMU_READ, MMU_WRITE, MMU_RMW|MMU_WRITE */
    uint8_t flags;    /* SITE_* */
    bool flags_live;  /* arithmetic flags must survive the check */
    uint8_t seg;      /* outside 64-bit mode: enum seg that R10 is an offset in; set by lower_mem() */
    uint64_t imm;     /* for the body */
    unsigned reg;     /* for the body */
    struct memref ref; /* set by lower_mem() */
    uint8_t scratch;   /* the one of R10, R11 that ref does not need; set by lower_mem() */
};

struct slow_path {
    struct access a;
    const struct insn *in;
    body_fn body;
    struct mem_site *site;
    uint8_t *jcc;         /* rel32 to fix, NULL if the main path jumps to prepare itself */
    uint8_t *seg_jcc;     /* the same for a segment's limit, R10 = offset; NULL if not checked */
    struct mem_site *seg_site;
    uint16_t guest_off;
    uint32_t done;
};

/* A register whose value is that of 32 bits: times 8 it reaches less far than a window's guards. */
enum extension { EXT_NONE, EXT_ZERO, EXT_SIGN };

/* What is known of a guest register while a block is translated for the window tier. */
struct reg_guess {
    bool known;       /* value holds a guess of the register's value, good enough to predict by */
    bool checked;     /* the register is at most `away` bytes outside window `id`: a fact       */
    uint16_t id;
    uint32_t away;    /* at most 1 GiB                                                          */
    bool in_r11;      /* with r11_id R11_OF_REGS: R11 is the delta of the window it was in       */
    int32_t r11_drift; /* less than 1 GiB ago                                                   */
    uint8_t ext;      /* enum extension, of what was last written: a fact                       */
    uint64_t value;
};

/* A direct jump emitted; it becomes a struct link when the block's exits are. */
struct pending_link {
    uint64_t target;
    uint8_t *patch; /* writable alias of the rel32 */
    uint32_t patch_x;
    uint32_t inlined; /* as in struct link */
    uint8_t thunk;
    struct known known;
};

/* How a trace goes on behind a branch in it. */
enum follow {
    FOLLOW_NOT,
    FOLLOW_NEXT,
    FOLLOW_TARGET,
    FOLLOW_THUNK, /* plus a register: a call that does nothing but load it with the return address */
};

#define R11_OF_REGS ~0u
#define R11_FLAT    (R11_OF_REGS - 1) /* in xlate.r11_id: R11 is the flat window's base */

struct xlate {
    struct emitter e;
    bool hot;             /* second tier */
    bool window;          /* second tier, through windows */
    bool trace;           /* second tier: goes on behind jumps, and has far links */
    bool native_stack;    /* stack_is_native() */
    bool stack_ok;        /* the stack is likely to be where there can be a window */
    bool stack_written;   /* RSP has got another value than one moved by a constant */
    int64_t stack_slack;  /* bytes that the host's RSP can be outside its window */
    int32_t heat;         /* of accesses of the first tier: executions to go to the second */
    struct reg_guess reg[16];
    uint16_t ahead;       /* registers whose checks are put ahead of the block: of these windows, */
    uint16_t ahead_id[16];
    uint8_t ahead_at[16]; /* for the accesses of these instructions first of all */
    /* R11 holds the delta of window r11_id - 1 (0: no telling; R11_OF_REGS: that of the registers with
     * in_r11, whichever it is) since an earlier instruction; every
     * instruction that is not known to keep it clears r11_kept. */
    unsigned r11_id;
    bool r11_kept;
    /* 32-bit code: the guest's ESP is that of the host plus this, for instructions that emit_insn() knows to
     * work with that (translate.c, may_defer()): what moves ESP, moves this. */
    int32_t esp_off;
    bool defer;
    unsigned n_miss;
    struct {
        uint8_t *jcc;
        struct mem_site *site;
        uint16_t guest_off;
    } miss[TB_MAX_SLOW];
    struct bt_engine *bt;
    struct vcpu *v;
    struct cache_region *r;
    struct tb *tb;
    uint32_t key;
    bool failed;          /* ran out of metadata or scratch space */
    unsigned n;           /* instructions */
    struct insn insn[TB_MAX_INSNS];
    uint64_t rip[TB_MAX_INSNS];
    uint8_t follow[TB_MAX_INSNS];    /* enum follow, of branches and calls; the last one's is FOLLOW_NOT */
    uint32_t live[TB_MAX_INSNS + 1]; /* arithmetic flags live before instruction i */
    int16_t guest_off;    /* of the instruction being emitted */
    uint64_t cur_rip;
    uint8_t index;        /* its place in the block */
    unsigned n_side, n_slow, n_links;
    struct pending_link link[TB_MAX_LINKS];
    struct side_entry side[TB_MAX_SIDE];
    struct slow_path slow[TB_MAX_SLOW];
    uint16_t reloc[RELOC_MAX];
};

/* What code from here on is: enum side_kind. */
void side_mark(struct xlate *x, unsigned kind);

static inline bool is_legacy(const struct xlate *x)
{
    return x->key & KEY_LEGACY;
}

/* R10 = linear address of the operand; outside 64-bit mode, where segments are checked by
 * lower_access(), its offset. Flag-free; uses R11. */
void lower_ea(struct xlate *x, const struct insn *in, const struct insn_mem *m, unsigned addr_size,
              int32_t extra, bool with_segment);

/* The access of operand *m (displacement moved by extra): computes its address, gets at guest memory
 * in the form chosen for this site, runs the body. */
void lower_mem(struct xlate *x, const struct insn *in, const struct insn_mem *m, unsigned addr_size,
               int32_t extra, struct access a, body_fn body);

/* The same in soft form for an address that lower_ea() has put in R10; outside 64-bit mode a.seg is set. */
void lower_access(struct xlate *x, const struct insn *in, struct access a, body_fn body);

/* `opcode reg, ref` (one-byte opcode, no operand-size prefix). */
void e_ref_op(struct emitter *e, bool w, uint8_t opcode, unsigned reg, const struct memref *ref);

/* `mov reg, ref` zero-extended from size 2, 4, 8; `mov ref, reg`; `lea reg, ref`. */
void e_ref_load(struct emitter *e, unsigned size, unsigned reg, const struct memref *ref);
void e_ref_store(struct emitter *e, unsigned size, const struct memref *ref, unsigned reg);
void e_ref_lea(struct emitter *e, unsigned reg, const struct memref *ref);

/* cpuid_inline.c: CPUID up to where it is done. False: nothing emitted, it is for C.  What leads to
 * miss[] comes with the flags put aside and no register changed; it is for C, too. */
bool lower_cpuid(struct xlate *x, uint8_t *miss[2]);

/* Emits what lower_access() put off to the end of the block. */
void lower_slow_paths(struct xlate *x);

/* Do windows not pay for this instruction? */
bool lower_soft_site(const struct xlate *x);

/* R11 = delta of the window of an address in this register of the host's, by table. Flag-free. */
void lower_delta_by_table(struct xlate *x, unsigned reg);

/* R11 = delta of the window that the value of this register of the guest's is in; there are windows for
 * it.  Flag-free. */
void lower_delta(struct xlate *x, unsigned reg);

/* string_window.c: a string instruction. STRING_INLINE: done; else emit a callout, which ... */
enum string_form {
    STRING_INLINE,
    STRING_IN_C,    /* ... stays one                                                        */
    STRING_COUNTED, /* ... counts, so that the block comes to the second tier               */
    STRING_RETRIED, /* ... may be tried with windows again after many executions            */
};
enum string_form lower_string(struct xlate *x, const struct insn *in);

/* Is an access through this segment with a 32-bit address, by the instruction at hand, nothing but the
 * guest's own operand at the GS base, which needs no register? */
bool lower_plain_flat(const struct xlate *x, unsigned seg);

/* R11 = base of the flat window; 16- and 32-bit code only. */
void lower_load_flat_base(struct xlate *x);

/* After an instruction has been emitted: what it did to the registers (guesses and facts). */
void lower_track(struct xlate *x, const struct insn *in);

/* Where C may have run: registers come back from memory, so what was checked before is no fact any more. */
void lower_forget_checks(struct xlate *x);

/* What the rule for an instruction is like. (translate.c) */
enum insn_rule { RULE_NATIVE, RULE_CALLOUT, RULE_CALLOUT_END, RULE_BRANCH };
enum insn_rule rule_of(const struct insn *in, uint32_t key);

/* Does the instruction leave no more than 32 bits in the one general register that it writes? */
bool lower_extends(const struct insn *in);

/* Is a register's value known, or guessed, to be no more than a signed number of 32 bits? */
bool lower_small(const struct xlate *x, unsigned reg);

/* R11 = delta of window id. */
void lower_load_delta(struct xlate *x, unsigned id);

/* Is this register in window id? From now on it is, or the block is left before its first instruction, on
 * account of the access of instruction `at`. Uses R10 and the flags. */
void lower_check_ahead(struct xlate *x, unsigned reg, unsigned id, unsigned at);

/* ahead.c: which checks to put ahead of the block; them, and the entrances behind them; what is known
 * where a link leaves that is emitted now; where a link comes in. */
void ahead_choose(struct xlate *x);
void ahead_emit(struct xlate *x);
struct known ahead_known(const struct xlate *x);

/* native_stack.c.  All but stack_direct() are for x->native_stack only. */

/* reg = the guest's RSP + disp. */
void stack_value(struct xlate *x, unsigned reg, int32_t disp);
/* The guest's RSP = R10. Uses R11. */
void stack_set(struct xlate *x);
/* RSP += n. */
void stack_move(struct xlate *x, int32_t n);
/* The same RSP by another look at the table. Uses R10 and R11. */
void stack_renew(struct xlate *x);
/* May code here use the stack by the host's RSP, where the site has not been given up? */
bool stack_usable(const struct xlate *x);
/* May this instruction use the stack by the host's RSP? */
bool stack_direct(const struct xlate *x);
/* Bytes from RSP + lo to RSP + hi are about to be used; afterwards, those at RSP + disp have been. */
void stack_reach(struct xlate *x, int64_t lo, int64_t hi);
/* Is that possible without another look at the table? */
bool stack_within(const struct xlate *x, int64_t lo, int64_t hi);
void stack_touched(struct xlate *x, int32_t disp);
/* The block may be left after this instruction, of which nothing has been done yet. Uses R10, R11. */
void stack_settle(struct xlate *x);
/* The same where all of it has been done. Uses R11, and R10 unless that is to be kept. */
void stack_settle_late(struct xlate *x, bool keep_r10);
/* PUSH and POP of eight bytes, of and to a register of the host. */
void stack_push(struct xlate *x, unsigned reg);
void stack_push_imm(struct xlate *x, uint64_t imm, unsigned scratch); /* R10 or R11, if it needs one */
void stack_pop(struct xlate *x, unsigned reg);
/* An instruction without memory operand that names RSP. `dead`: nobody will see the flags. */
void stack_copy(struct xlate *x, const struct insn *in, bool dead);
/* LEA from or to RSP. */
void stack_lea(struct xlate *x, const struct insn *in);

/* door.c: the door of the block being translated, and the side door of one that has x->tb->side_door. */
void door_emit(struct xlate *x);
void door_emit_side(struct xlate *x);

/* mov reg, src in this size; reg may live in memory. src is R10 or R11. (translate.c) */
void lower_write_gpr(struct xlate *x, unsigned reg, unsigned src, unsigned size);

/* Flags to RAX (saved in scratch) and back. */
void lower_save_flags(struct emitter *e);
void lower_restore_flags(struct emitter *e);

/* Does this body leave R11 alone if it is not its scratch register? (translate.c) */
bool lower_keeps_r11(body_fn body);

/* A register field of an instruction that runs with its memory operand at [r10]. */
void body_copy(struct xlate *x, const struct insn *in, const struct access *a);

#endif
