/*
 * translator/ turns guest code into host code and runs it: decoder (insn.h), block translator
 * (translate.c, lower.c, reencode.c), code cache (cache.c), the fixed pieces of emitted assembly
 * (stubs.c), the C side of memory accesses that miss (slow_mem.c), instructions done in C
 * (callouts.c), signals (signals.c) and the dispatcher (engine.c).  It sees guest memory through
 * mmu/ and architectural state through cpu/, and may not touch devices.
 *
 * This header is private to the folder.  What emitted code may assume:
 *
 *   gs:            host GS base = struct vcpu
 *   rsp            the guest's RSP, in 64-bit code as an address of the host's (native_stack.c); no
 *                  host stack while in translated code
 *   r10, r11       scratch; the guest's r10/r11 live in vcpu.gpr[]
 *   other GPRs     hold the guest's
 *   EFLAGS         the guest's arithmetic flags and DF (FL_HOST); all else is virtual
 *   x87/SSE/AVX    the guest's, always
 *
 * Code-cache addresses and metadata that emitted code names are below 2 GiB, so that they fit in
 * 32-bit immediates.
 *
 * Locks: bt_engine.lock guards the cache, hash, page lists and links.  It is a spin lock because it
 * is taken from light code; the machine lock is never taken while it is held.
 */
#ifndef RINGSHIFT_TRANSLATOR_BT_H
#define RINGSHIFT_TRANSLATOR_BT_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "cpu/vcpu.h"
#include "mmu/mmu.h"
#include "mmu/ram.h"
#include "mmu/huge_pages.h"
#include "mmu/window.h"
#include "runtime/engine.h"
#include "translator/insn.h"

/* -- Translated blocks --------------------------------------------------------------------------- */

/* What besides the code bytes a translation depends on. */
enum {
    KEY_USER = 1u << 0,     /* CPL 3                                                          */
    KEY_CPL_MASK = 3u << 1, /* CPL, for the rare 1 and 2                                      */
    KEY_X87_NM = 1u << 3,   /* CR0.EM or CR0.TS: x87/MMX raise #NM                            */
    KEY_WAIT_NM = 1u << 4,  /* CR0.MP and CR0.TS: WAIT raises #NM                             */
    KEY_SSE_UD = 1u << 5,   /* CR0.EM or not CR4.OSFXSR: SSE raises #UD                       */
    KEY_SSE_NM = 1u << 6,   /* CR0.TS                                                         */
    KEY_AVX_UD = 1u << 7,   /* CR4.OSXSAVE and XCR0 do not enable AVX                         */
    KEY_AVX512_UD = 1u << 8,
    KEY_XSAVE_UD = 1u << 9, /* not CR4.OSXSAVE                                                */
    KEY_ONE_INSN = 1u << 10, /* stop after one instruction (TF, breakpoints, STI shadow)       */
    KEY_SLOW_MEM = 1u << 11, /* every access through C (data breakpoints, #AC)                 */
    KEY_TSC_TRAP = 1u << 12, /* RDTSC is not the host's plain TSC for this CPL                 */
    KEY_MMX_UD = 1u << 13,   /* CR0.EM: MMX raises #UD                                         */
    KEY_FSGSBASE = 1u << 14, /* CR4.FSGSBASE                                                   */
    /* Outside 64-bit mode (these are all 0 in it): */
    KEY_CODE16 = 1u << 15,  /* CS.D = 0                                                        */
    KEY_CODE32 = 1u << 16,  /* CS.D = 1                                                        */
    KEY_STACK16 = 1u << 17, /* SS.B = 0                                                        */
    KEY_SEG_SHIFT = 18,     /* enum seg_class of ES, CS, SS, DS, FS, GS: 2 bits each           */
    KEY_YOUNG = 1u << 30,   /* 64-bit user code without windows (young.c)                      */
    KEY_LEGACY = KEY_CODE16 | KEY_CODE32,
};

/* How an access through a segment is checked and relocated. */
enum seg_class {
    SEG_FLAT,    /* base 0, limit 4 GiB                                                        */
    SEG_BASED,   /* some base, limit 4 GiB                                                     */
    SEG_LIMITED, /* some base, expand-up, a limit to check                                     */
    SEG_ODD,     /* everything else: every access through C                                    */
};
static inline enum seg_class key_seg_class(uint32_t key, unsigned seg)
{
    return (enum seg_class)(key >> (KEY_SEG_SHIFT + 2 * seg) & 3);
}
static inline enum insn_mode key_mode(uint32_t key)
{
    return key & KEY_CODE16 ? MODE_16 : key & KEY_CODE32 ? MODE_32 : MODE_64;
}

enum side_kind {
    SIDE_BOUNDARY, /* first byte of an instruction's code: state is exact here                */
    SIDE_INSIDE,   /* within an instruction: step on to reach a boundary                      */
    SIDE_ELEMENT,  /* as BOUNDARY, before the next element of a repeated string instruction   */
    SIDE_XSAVE,    /* as INSIDE, and guest RAX/RDX wait in bt.xsave_rax/rdx                   */
    SIDE_PLAIN_RSP, /* as INSIDE, and RSP is the guest's plain value                          */
    /* As BOUNDARY, at a string instruction on host addresses: what they are more than the guest's is in
     * R11, and if both are, for RSI in R10; in 16- and 32-bit code in R11 for both. */
    SIDE_STRING_BOTH = 8,
    SIDE_STRING_RSI,
    SIDE_STRING_RDI,
    SIDE_SPILL = 16, /* plus a register: as INSIDE, and its guest value waits in scratch[SCR_SPILL] */
    /* 16- and 32-bit code only, which has no registers to spill from here on: as INSIDE at the first byte
     * of an instruction, and ESP is yet to be moved: side_esp(). */
    SIDE_ESP = 24,
};
#define SIDE_ESP_MAX 16 /* by so much either way, in steps of 4 */
static inline unsigned side_of_esp(int distance)
{
    return (unsigned)(distance < 0 ? SIDE_ESP + 4 + distance / 4 : SIDE_ESP + 3 + distance / 4);
}
static inline int side_esp(unsigned kind)
{
    return kind < SIDE_ESP + 4 ? ((int)kind - SIDE_ESP - 4) * 4 : ((int)kind - SIDE_ESP - 3) * 4;
}

/* Host address -> guest instruction, sorted by host address.  There are as many of them as bytes of
 * code, nearly, so they are packed. */
#define SIDE_HOST_MAX 0x1fffu
struct side_entry {
    uint32_t host : 13;     /* from tb.entry_ind */
    int32_t guest_off : 14; /* from tb.gva; of a trace it may be negative */
    uint32_t kind : 5;      /* enum side_kind */
};

struct tb;

/*
 * What is known of registers in 64-bit code at some place (ahead.c): those in regs[i] are at most
 * KNOWN_AWAY bytes outside the window whose id ends in id[i]; R11 is the delta of the one in
 * id[r11 - 1], if r11 is not 0.
 */
#define KNOWN_IDS  2u
#define KNOWN_AWAY (1u << 26)
struct known {
    uint16_t regs[KNOWN_IDS];
    uint8_t id[KNOWN_IDS];
    uint8_t r11;
    bool user; /* of user code: which half the ids belong to */
};

/* A direct jump out of a block that can be patched to go straight to its target. */
struct link {
    struct tb *from;
    struct tb *to;         /* NULL: goes to the exit stub */
    struct link *next_in;  /* list of tb.in */
    struct link **prev_in; /* what points to this in it */
    uint64_t target;       /* GVA */
    uint32_t patch_x;      /* executable address of the rel32 */
    uint32_t stub;         /* executable address of the exit stub */
    /* Of a call that looks as if it led to a block with tb.thunk: where to go if it is this one, to code of
     * `from` that does the same. Else 0. */
    uint32_t inlined;
    uint8_t thunk;
    struct known known;    /* where it leaves */
};

/* A direct jump to another page (far_links.c). Only the second tier has them. */
struct far_page;
struct far_link {
    struct link link;
    struct far_page *page;         /* where the target is; NULL: not linked */
    struct far_link *next, **prev; /* list of the page */
    uint32_t closed;               /* executable address of the way through the jump cache */
};

struct tb {
    uint64_t gva;        /* linear address */
    uint64_t cs;         /* outside 64-bit mode CS's limit and base (bt_current_cs), else 0 */
    uint64_t gpa;        /* of the first byte */
    uint64_t gpa2;       /* page of the tail of an instruction that straddles pages, or ~0 */
    uint32_t key;
    uint16_t guest_len;  /* of the bytes in one piece from gva; a trace goes on elsewhere */
    uint16_t n_insns;
    uint32_t entry_ind;  /* for indirect jumps: checks r10 against gva */
    uint32_t entry;      /* for direct jumps and the dispatcher */
    /* For links that hand on `known`, without and with R11 (ahead.c); else the same as entry. */
    uint32_t entry_load, entry_known;
    struct known known;
    uint32_t side_door;  /* of a block whose door probes (door.c): the other one; else 0 */
    uint32_t host_end;
    uint32_t n_side;
    struct side_entry *side;
    /* Lists of the blocks of a page, of gpa and of gpa2.  They grow long where a library's page is
     * mapped at many addresses, so removal must not walk them: page_prev points to what points to
     * this block. */
    struct tb *page_next, *page2_next;
    struct tb **page_prev, **page2_prev;
    struct link *in;
    struct link *out;    /* n_out of them */
    struct far_link *far; /* n_far of them */
    uint8_t n_out, n_far;
    uint8_t thunk;       /* all that it does is `mov reg, [esp]; ret`: 1 + reg; else 0 */
    uint64_t minus_gva;  /* what the door of the first tier adds to R10: 0 if this is the block */
    uint64_t door;       /* where it goes then: entry                                        */
    uint32_t door_heat;  /* jumps through the side door up to door_hot()                     */
    /* Bytes of the page that decide what the block is, besides those from gva on: the rest of a trace,
     * and what was looked at to see which flags are dead. */
    uint16_t peek_lo, peek_hi;
    /* Learnt of the second tier's accesses, a bit for each instruction: which window is not the same
     * every time; windows do not pay. */
    uint64_t table_form, soft_form;
    uint64_t not_ahead;  /* the same, of checks ahead: they do not hold every time           */
    uint64_t check_divisor; /* divisions by zero, or that overflow, were met here              */
    uint16_t *reloc;     /* n_reloc of them (emit.h); NULL: it cannot be moved (move.c)      */
    uint16_t n_reloc;
    uint32_t meta_size;  /* with reloc: of all its metadata, which begins with this          */
    int16_t return_off;  /* with reloc: from gva to where the call returns to that it ends with; 0: none */
    bool model;          /* cache_model() has it                                             */
    bool dead;
    bool probing;        /* jumps come in by the door that probes                            */
    bool missed;         /* a jump to another block has come there                           */
    bool hot;            /* second tier                                                      */
    bool window;         /* second tier, accesses through windows                            */
};

static inline bool side_is_esp(const struct tb *tb, const struct side_entry *se)
{
    return (tb->key & KEY_LEGACY) && se->kind >= SIDE_ESP;
}
/* Does an instruction start here? */
static inline bool side_starts(const struct tb *tb, const struct side_entry *se)
{
    return se->kind == SIDE_BOUNDARY || side_is_esp(tb, se);
}

/* Of a side entry: where its code is, and the guest address of its instruction. */
static inline uint32_t side_host(const struct tb *tb, const struct side_entry *se)
{
    return tb->entry_ind + se->host;
}
static inline uint64_t side_gva(const struct tb *tb, const struct side_entry *se)
{
    return tb->gva + (uint64_t)(int64_t)se->guest_off;
}

/* A memory operand's slow path. Addresses are executable ones. */
struct mem_site {
    /* What the helpers of the first tier read (stubs.c): */
    uint32_t resume;        /* R10 = HVA: the native instruction in the main path */
    int32_t heat;           /* executions left until the block is translated again;
                               of a window check: misses so far */
    uint64_t rip;
    struct tb *tb;
    union {
        const struct insn *insn; /* SITE_MASKED, SITE_BOUNCE */
        int64_t imm;             /* STORE_IMM */
    };
    uint32_t resume_bounce; /* R10 = HVA or bounce copy: the instruction's twin, then the commit */
    uint32_t resume_done;   /* after the commit */
    uint16_t size;
    uint8_t access;         /* MMU_READ/MMU_WRITE/MMU_RMW */
    uint8_t flags;          /* SITE_* */
    uint8_t seg;            /* SITE_SEG: enum seg                 */
    uint8_t index;          /* of the instruction in its block    */
    uint8_t store;          /* STORE_*: C code can do all of it   */
    uint8_t reg;            /* STORE_REG: the register            */
};
enum { STORE_NO, STORE_REG, STORE_IMM };
enum {
    SITE_STACK = 1,   /* faults are #SS instead of #GP               */
    SITE_MASKED = 2,  /* faults of masked-off elements are suppressed */
    SITE_BOUNCE = 4,  /* always work on a copy                        */
    SITE_XSAVE = 8,   /* XSAVE family: mask EDX:EAX with XCR0         */
    SITE_FIP = 16,    /* the image written holds x87 FIP/FDP          */
    SITE_ALIGNED = 32, /* #GP(0) if not aligned, before any #PF       */
    SITE_SEG = 64,    /* R10 is an offset in a segment that C checks */
    SITE_COUNT = 128, /* no access at all: it counts executions      */
    /* Of a window check: it was put ahead of the block. */
    SITE_AHEAD = 128,
};

/* An instruction done in C. */
struct callout {
    struct insn insn;
    uint64_t rip;
    uint32_t resume; /* executable address of the next instruction; 0: the block ends here */
    uint8_t light;   /* LIGHT_* bits: what the light stub can do with it */
    int32_t heat;    /* executions left until the block is translated again; 0: never */
    struct tb *tb;
};
enum {
    LIGHT_SHORT_CUT = 1, /* light_callout.c has a short cut for it            */
    LIGHT_RULES = 2,     /* C code needs no more registers than the stub saves */
};

enum exit_reason {
    EXIT_LOOKUP = 1, /* vcpu.rip set: find the block                            */
    EXIT_LINK,       /* exit_arg = struct link: find its target and patch       */
    EXIT_CALLOUT,    /* a callout ended the block; exit_arg = enum cpu_result   */
    EXIT_FAULT,      /* v->exc filled in, rip = the faulting instruction        */
    EXIT_ASYNC,      /* at an instruction boundary because of exit_request      */
    EXIT_STEPPED,    /* a KEY_ONE_INSN block has done its instruction           */
    EXIT_WFAULT,     /* an access through a window faulted; exit_arg = host PC, wfault_hva */
    EXIT_DIVIDE,     /* as EXIT_FAULT, by the host's #DE in block exit_arg          */
    EXIT_WMISS,      /* exit_arg = struct mem_site: not the window it expected  */
};

/* Use of vcpu.scratch[] by emitted code. */
enum { SCR_FLAGS_RAX, SCR_TARGET, SCR_SPILL, SCR_VALUE };

/* -- Code cache ---------------------------------------------------------------------------------- */

/* Evicted whole, oldest first. Code grows up from code; metadata is a separate arena. */
struct cache_region {
    uint8_t *code_w;      /* writable alias                                   */
    uint32_t code_x;      /* executable alias (below 2 GiB)                   */
    uint32_t code_size, code_used;
    uint8_t *meta;        /* below 2 GiB                                      */
    uint32_t meta_size, meta_used;
    struct tb **tbs;      /* in address order: host address -> block          */
    uint32_t n_tbs, max_tbs;
    uint8_t use;          /* enum cache_use                                   */
    uint64_t stamp;       /* when it was begun; 0: never                      */
};

enum cache_use { CACHE_TRANSLATED, CACHE_MOVED, CACHE_USES };
#define CACHE_REGIONS 8u
#define MOVED_REGIONS 2u
/* Small enough that a booting kernel evicts all the time, large enough that a program the size of gdb
 * still gets somewhere. */
#define CHAOS_CACHE (8u << 20)

/*
 * Live blocks by address and key: open addressing, at most half full, which grows.  A slot holds enough
 * of the hash that a lookup touches no other block than the one it finds.
 */
struct tb_slot {
    uint32_t tag; /* upper half of the hash; its upper bits are where the slot would best be */
    uint32_t tb;  /* address, 0: free                                                       */
};
struct tb_table {
    struct tb_slot *slot; /* 1 << bits of them; NULL: none yet */
    unsigned bits;
    uint32_t n;
};

struct bt_stats {
    uint64_t blocks, guest_insns, guest_bytes, host_bytes;
    uint64_t exits[10]; /* by enum exit_reason */
    uint64_t enters, lookups, fast_lookups, links, evictions, invalidations, code_writes;
    uint64_t mem_slow, tlb_fills, bounces, mmio;
    uint64_t rejected; /* blocks that the verifier refused */
    uint64_t signals_kick, signals_step, signals_fault, exceptions[32], interrupts;
    uint64_t flushes[3];
    uint64_t moved;    /* blocks made of others by move.c */
    uint64_t door_misses, hot_blocks, wfaults, wmisses, soft_sites, window_retries, young, grown;
    uint64_t huge_made, huge_refused; /* pieces of guest RAM as huge host pages */
    uint64_t callouts[OP_COUNT];
    uint64_t fast_syscalls, fast_sysrets; /* of vCPUs that are gone; struct vcpu_bt */
    struct window_stats windows;          /* the same */
    bool windows_used;
    uint64_t translate_ns;
};

struct exec_tlb_entry {
    uint64_t gva_page; /* | 1 for user; ~0 invalid */
    uint64_t gpa_page; /* | 1 if global */
};
#define EXEC_TLB_SIZE 256u

/* The user half of the jump cache of an address space that is not current. Of those whose PCIDs are the same
 * modulo AS_RECORDS only one is remembered. */
#define AS_RECORDS 16u
#define AS_ENTRIES 1536u
/* Pages with jump-cache entries, hashed: INVLPG of any other page need not look. */
#define EXEC_WORDS 64u
struct exec_pages {
    uint64_t bits[1024];
    uint16_t word[EXEC_WORDS]; /* those that are not 0                   */
    unsigned n;                /* more than there is room for: any may be */
};
struct as_record {
    uint64_t cr3, epoch, cs;
    uint32_t key, n, n_words;  /* n 0: nothing */
    uint16_t word[EXEC_WORDS]; /* its struct exec_pages */
    uint64_t bits[EXEC_WORDS];
    uint16_t idx[AS_ENTRIES];
    uint32_t host[AS_ENTRIES];
};

/* Entries of the delta tables that are put aside with an address space, if there are no more. */
#define AS_DELTAS 32u

/* An address space that is not current (young.c). */
#define YOUNG_SPACES 64u
struct young_space {
    uint64_t table; /* GPA of its PML4                            */
    uint64_t print; /* what some of its entries were              */
    uint64_t left;  /* TSC cycles that it will be young; 0: is old */
};

/* What has been learnt of an instruction's accesses, by its address. */
struct site_info {
    uint64_t rip;
    uint32_t last_install; /* TSC / 256 */
    uint32_t fills;        /* in soft form: misses of the soft TLB that a window would not have */
    uint16_t streak;       /* installs in quick succession, by weight (note_install) */
    uint16_t page_faults;  /* the guest's so far, at the last install or fill        */
    uint8_t soft_runs;     /* accesses that no window could serve                  */
    uint8_t divides;       /* divisions that faulted on the host                   */
    uint8_t retries;       /* times it was given another chance with windows       */
    bool soft;             /* decision                                             */
};
/* Weight of an install behind a page fault of the guest; of any other 1. */
#define STORM_NEW_PAGE 4u
/* Installs in quick succession before an instruction gets the soft form. */
static inline bool site_storm(const struct site_info *s)
{
    return s->streak >= 24 * STORM_NEW_PAGE << (s->retries < 3 ? s->retries : 3);
}
/* Fills before an instruction in soft form gets another chance. */
static inline bool site_thrashes(const struct site_info *s)
{
    return s->fills >= 4096u << (s->retries < 15 ? s->retries : 15);
}
#define SITE_INFO_SIZE 8192u
#define HOT_THRESHOLD  48
#define DOOR_HEAT      256
/* Executions of a string instruction that was put back to C code until windows get another chance. */
#define STRING_RETRY   16384

enum { WATCH_DATA = 1, WATCH_ALIGN = 2 };

/* Helpers for accesses of the first tier: by operand size 1, 2, ... 64, and by kind. */
#define ACCESS_STUBS 56u
static inline unsigned access_stub_index(bool flags_live, bool sup, bool write, unsigned size)
{
    unsigned log = 0;
    while (1u << log < size)
        log++;
    return log << 3 | flags_live << 2 | sup << 1 | write;
}

/* May what this access of 64-bit code misses in the soft TLB be looked for in the user's (stub_as_user)? */
#define AS_USER_MAX 8u
static inline bool access_as_user(uint32_t key, unsigned size, unsigned site_flags)
{
    return !(key & (KEY_USER | KEY_LEGACY | KEY_ONE_INSN | KEY_SLOW_MEM)) && size <= AS_USER_MAX &&
           !site_flags;
}

struct bt_engine {
    struct engine base;
    struct engine_config cfg;
    struct guest_ram *ram;
    _Atomic uint32_t lock;
    struct cache_region region[CACHE_REGIONS];
    struct cache_region *current[CACHE_USES]; /* being filled; NULL: none yet */
    uint64_t regions_begun;
    int code_fd;
    bool bmi2;
    bool native_stack; /* there are windows: 64-bit code has the host's RSP (native_stack.c) */
    bool probe32;      /* the page at DOOR_PROBE is there (door.c) */
    uint8_t *code_w;
    uint32_t code_x;
    uint64_t code_size, meta_bytes;
    _Atomic uint64_t user_epoch;     /* counts user blocks dropped */
    _Atomic uint64_t code_write_gen; /* counts writes to code pages */
    uint8_t *meta;
    struct tb_table table;   /* of live blocks */
    struct tb_table models;  /* those that can be moved, by physical address and key (move.c) */
    struct tb **page_tbs;    /* by GPA page */
    uint64_t n_pages;
    struct vcpu *vcpus[64];
    unsigned n_vcpus;
    struct far_links *far;
    struct verify_kit *_Atomic verify_kit; /* of the verifier; NULL: in use, or never used */
    struct bt_stats stats;

    /* Fixed pieces of emitted code (executable addresses). */
    uint32_t stub_enter, stub_resume, stub_resume_end, light_resume, light_resume_end,
        stub_exit_common, stub_exit_link, stub_lookup, stub_callout, stub_light, stub_prepare,
        stub_commit, stub_hot, stub_stepped, stub_wmiss, stub_door_hot;
    /* What translated code passes through on its way from one place in it to another. */
    uint32_t through, through_end;
    uint32_t stub_door, stub_access[ACCESS_STUBS]; /* by access_stub_index() */
    uint32_t stub_count[2];                        /* flags dead, flags live */
    uint32_t stub_as_user[2]; /* supervisor code under AC, after a miss: read, write */
    uint32_t stub_syscall, stub_sysret;            /* system_calls.c         */
    uint32_t fast_syscall, fast_sysret[2];         /* of the latter: to a young address space's code */
    uint32_t stubs_x, stubs_end;
    uint32_t probe; /* door.c; 0: doors branch */
};

/* The engine's per-vCPU state. */
struct engine_vcpu {
    struct bt_engine *bt;
    struct exec_tlb_entry exec_tlb[EXEC_TLB_SIZE];
    uint64_t exec_local[EXEC_TLB_SIZE / 64]; /* which of them are not of global pages */
    /* Jump-cache slots in use since the last flush, so that a flush touches only those. */
    uint32_t jc_used[2][4096];
    uint32_t jc_n[2];
    bool jc_sup_nonglobal; /* some supervisor entry is of a non-global page */
    struct exec_pages exec_pages[2]; /* of user code, of the supervisor's */
    struct as_record as[AS_RECORDS]; /* by PCID */
    uint64_t jc_cr3; /* address space of the user half */
    /* The user half's entries are those of its record, or fewer, and none of them has gone back to the
     * miss stub since that was made. */
    bool jc_saved;
    struct { /* young.c */
        bool now;       /* the current address space is young */
        uint64_t until; /* TSC                                */
        uint64_t table; /* its PML4                           */
        struct young_space space[YOUNG_SPACES];
    } young;
    struct { /* the key's part that these decide, when bt_current_key() last looked */
        uint64_t cr0, cr4, xcr0;
        uint32_t key;
        bool valid;
    } control;
    /* Key (without per-block bits) and CS that the halves of the jump cache were filled under. */
    uint32_t key_seen[2];
    uint64_t cs_seen[2];
    struct tb *current; /* block entered last by the dispatcher */
    bool step_pending;
    uint32_t watch;   /* WATCH_*: what every access must be checked for (KEY_SLOW_MEM)     */
    uint64_t db_bits; /* DR6 bits of data breakpoints hit by the instruction at hand        */
    struct { /* what bt_mem_commit() has to write back */
        uint64_t gva, gpa[2];
        uint16_t len[2];
        bool ram[2], skip[2];
        uint8_t *src;
        bool active;
        struct exception exc[2]; /* of a skipped piece, should it be touched after all */
    } bounce;
    struct { /* size of XSAVE images with these components: standard, compacted */
        uint64_t rfbm;
        unsigned size[2];
        uint64_t fip; /* of the x87 state that XRSTOR has loaded last: the guest's, wherever it points */
    } image;
    /* legacy_state.c: of the image or the registers, what exists in 64-bit mode only. */
    uint8_t legacy_high[128 + 128 + 256 + 1024];
    uint8_t *guard; /* none, RW, none, none: pages for masked operands that fault in part */
    /* Windows of this vCPU; windows_on is false where the host cannot have them. */
    _Atomic bool map_changed; /* another thread has changed the memory map: forget it */
    struct huge_pages huge;
    bool windows_on;
    struct window_space ws;
    uint64_t null_base;       /* 512 GiB that nothing is ever mapped into, guards around        */
    uint16_t ids[64];         /* table entries in use                                           */
    unsigned n_ids;
    struct { /* what the tables said in address spaces that are not current (windows.c)         */
        uint64_t cr3; /* ~0: free */
        uint64_t delta[AS_DELTAS];
    } as_deltas[AS_RECORDS], *deltas_now; /* by PCID; those in the tables now, or NULL */
    unsigned deltas_used;
    bool stale[WINDOW_MAX];   /* flushed while not current: revalidate before use               */
    bool nonglobal[WINDOW_MAX]; /* holds pages that are not global                              */
    struct { /* flat_windows.c */
        bool on, any;             /* usable; one has been made                           */
        bool aliased[WINDOW_MAX]; /* struct vcpu is mapped below this window             */
        uint64_t view[2];         /* GS base of user, supervisor code; 0: no window yet  */
        uint64_t null_gs;         /* GS base where there is none                         */
        uint64_t gs;              /* the thread's GS base                                */
        uint64_t resets;          /* ws.stats.resets that this knows of                  */
    } flat;
    uint64_t wfault_hva;
    bool wfault_write;
    struct site_info site[SITE_INFO_SIZE];
    stack_t altstack;
    unsigned long long chaos_seed;
    uint32_t chaos_light; /* chaos takes every other light callout the long way */
};

static inline void bt_lock(struct bt_engine *bt)
{
    while (atomic_exchange_explicit(&bt->lock, 1, memory_order_acquire))
        __builtin_ia32_pause();
}
static inline void bt_unlock(struct bt_engine *bt)
{
    atomic_store_explicit(&bt->lock, 0, memory_order_release);
}

/* cache.c */
int cache_init(struct bt_engine *bt, uint64_t size, char *err, unsigned errlen);
void cache_destroy(struct bt_engine *bt);
/* Room for one block of the largest size in the current region for this use, evicting the oldest if needed. */
struct cache_region *cache_reserve(struct bt_engine *bt, enum cache_use use);
void *cache_meta_alloc(struct cache_region *r, uint32_t size);
/* The block whose code contains host address x, or NULL. */
struct tb *cache_find_pc(struct bt_engine *bt, uint64_t x);
static inline bool cache_contains(const struct bt_engine *bt, uint64_t x)
{
    return x >= bt->code_x && x < bt->code_x + bt->code_size;
}
struct tb *cache_lookup(struct bt_engine *bt, uint64_t gva, uint64_t gpa, uint32_t key, uint64_t cs);
/* A block of the same code with this key, at whatever address, that can be moved; or NULL. */
struct tb *cache_model(struct bt_engine *bt, uint64_t gpa, uint32_t key);
/* Would inserting a block take no larger table? */
bool cache_tables_roomy(const struct bt_engine *bt);
void cache_insert(struct bt_engine *bt, struct cache_region *r, struct tb *tb);
void cache_invalidate_tb(struct bt_engine *bt, struct tb *tb);
/* guest_ram.code_write: drops blocks that overlap [gpa, gpa+len). */
void cache_code_write(void *opaque, uint64_t gpa, uint64_t len);
void cache_link(struct bt_engine *bt, struct link *l, struct tb *to);
/* The jump leads to its exit stub again. */
void cache_unlink(struct bt_engine *bt, struct link *l);
/* ahead.c: the entrance of the block that what this link hands on is good for; or what does the same as
 * the block (link.inlined). */
uint32_t ahead_entrance(const struct link *l, const struct tb *to);
/* Sets where the jump goes, a host address. */
void cache_patch(struct bt_engine *bt, struct link *l, uint32_t target);
/* The links to a block lead to the one that replaces it: same address, key and page. */
void cache_redirect(struct bt_engine *bt, struct tb *from, struct tb *to);
/* Is this link to another page, and so part of a far_link? */
static inline bool link_is_far(const struct link *l)
{
    return (l->target ^ l->from->gva) >= GUEST_PAGE_SIZE;
}

/* far_links.c. With the lock held but for far_links_tick(). */
struct far_links *far_links_new(void);
void far_links_free(struct far_links *f);
/* Starts over: no page is known, no far link goes anywhere. */
void far_links_forget(struct bt_engine *bt);
/* After a flush of the MMU; v->cr3 is the new one. */
void far_links_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva);
/* A block was found by way of the page tables; global: its page is. */
void far_links_seen(struct vcpu *v, const struct tb *tb, bool global);
void far_links_link(struct vcpu *v, struct far_link *l, struct tb *to, bool global);
/* The link is about to lose its target. */
void far_links_drop(struct far_link *l);
bool far_links_open(const struct far_link *l);
/* To be called now and then outside translated code: opens pages. */
void far_links_tick(struct vcpu *v);
const struct side_entry *tb_side_lookup(const struct tb *tb, uint64_t x);

/* jump_cache.c. The index mixes page bits into the low 16, by instructions that touch no flag (RORX,
 * LEA); without BMI2 it is the low 16 bits alone. */
#define JUMP_CACHE_ROT 6
static inline unsigned jump_cache_index(const struct bt_engine *bt, uint64_t gva, bool legacy)
{
    uint64_t mix = bt->bmi2 && !legacy ? gva >> JUMP_CACHE_ROT | gva << (64 - JUMP_CACHE_ROT) : 0;
    return (unsigned)(gva + mix) & (JUMP_CACHE_SIZE - 1);
}
/* Where returns look, if code of this key has a place of its own for them. */
static inline unsigned return_cache_index(uint64_t gva)
{
    return (unsigned)gva & (JUMP_CACHE_SIZE - 1);
}
static inline bool return_cache_used(uint32_t key)
{
    return (key & KEY_USER) && !(key & KEY_LEGACY);
}
void jump_cache_init(struct vcpu *v);
void jump_cache_insert(struct vcpu *v, struct tb *tb);
void jump_cache_flush(struct vcpu *v, bool user_only);
void jump_cache_flush_half(struct vcpu *v, unsigned sup);
/* CR3 has changed: keeps the user half for the old address space and brings back the new one's.
 * flushed: translations of the new PCID are void. */
void jump_cache_switch(struct vcpu *v, bool flushed);
void jump_cache_flush_pcid(struct vcpu *v, unsigned pcid);
void jump_cache_flush_page(struct vcpu *v, uint64_t gva);
void jump_cache_forget(struct vcpu *v, struct tb *tb);

/* door.c. What doors of 16- and 32-bit code load is DOOR_PROBE[distance], as quadwords. */
#define DOOR_PROBE 0x7ffffff8u
void door_init(struct bt_engine *bt);
void door_destroy(struct bt_engine *bt);
/* Do the doors of hot blocks with this key probe? */
bool door_probes(const struct bt_engine *bt, uint32_t key);
/* An access in soft form, of a block that may use windows, has missed in the soft TLB: true if its block
 * is to be translated again (bt_mem_hot), for windows. */
bool bt_soft_miss(struct vcpu *v, const struct mem_site *s, uint64_t gva);
/* From the side door, whose heat has come to 0: where to go on. */
uint64_t door_hot(struct vcpu *v, struct tb *tb);
/* A fault in this block: was it its door's? Then R10 is the address of another, to be looked up. */
bool door_missed(struct bt_engine *bt, struct tb *tb, uint64_t pc);

/* stubs.c */
void stubs_emit(struct bt_engine *bt, struct cache_region *r);

/* translate.c: translates the block at gva. NULL with v->exc if fetching its first instruction
 * faults. Takes and releases the lock. With `replace` (a hot block, in which v is about to execute the
 * instruction at v->rip): for the second tier, in place of that one. */
struct tb *translate_block(struct bt_engine *bt, struct vcpu *v, uint64_t gva, uint64_t gpa,
                           uint32_t key, struct tb *replace);

/* move.c: may a block be moved? */
bool move_possible(uint32_t key, uint64_t gva, uint64_t gpa2);
/* The block at gva made of one that was translated for another address, where there is one; or NULL. With it
 * come those on its page that the other was linked to, and they, `most` blocks in all, linked; if that is 1,
 * it is as it comes from the translator, without links. Takes and releases the lock; light. */
struct tb *move_block(struct vcpu *v, uint64_t gva, uint64_t gpa, uint32_t key, unsigned most);

/* slow_mem.c: called from stubs. They return the host address to resume at, or 0 to leave with
 * bt.exit_reason, which is EXIT_FAULT unless they have set it. */
uint64_t bt_mem_prepare(struct vcpu *v, struct mem_site *s);
uint64_t bt_mem_commit(struct vcpu *v, struct mem_site *s);
uint64_t bt_resume_at(struct vcpu *v, uint64_t target);
/* engine.c: the same for an access whose heat has come to 0. */
uint64_t bt_mem_hot(struct vcpu *v, struct mem_site *s);
#define GUARD_SIZE (4u * GUEST_PAGE_SIZE)
/* Fills v->exc if a host fault at this address is a masked operand's; called by signal handlers. */
bool bt_guard_fault(struct vcpu *v, uint64_t address);
/* Host instruction pointers in an x87 image become guest ones (invariant 2: no leaks). */
void bt_fix_fip(struct vcpu *v, const struct insn *in, uint8_t *image);

/* legacy_state.c: 16- and 32-bit code is about to save or load the state image, or has done so;
 * `image` is the copy it works on. */
#define LEGACY_HIGH_PARTS 4u
void legacy_state_before(struct vcpu *v, const struct insn *in, uint8_t *image);
void legacy_state_after(struct vcpu *v, const struct insn *in, uint8_t *image);

/* windows.c: which windows there are and what the delta tables say. */
int windows_init(struct vcpu *v, unsigned vma_budget);
void windows_destroy(struct vcpu *v);
/* What --stats shows of them. */
void windows_add_stats(struct window_stats *sum, const struct window_stats *w);
void windows_on_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva);
/* A fault at v->rip (bt.wfault_*): true if the instruction can be run again in window form. */
bool windows_resolve_fault(struct vcpu *v);
void windows_protect_gpa(struct vcpu *v, uint64_t gpa);
void windows_drop_gpa(struct vcpu *v, uint64_t gpa, uint64_t len);
static inline struct site_info *site_lookup(struct engine_vcpu *ev, uint64_t rip)
{
    return &ev->site[(rip ^ rip >> 13) & (SITE_INFO_SIZE - 1)];
}
/* May code of this privilege use a window for addresses with this id (bits 39..54)? */
static inline bool window_id_ok(bool user, unsigned id)
{
    return user ? id < 0x100 : id >= 0xff00;
}

/* flat_windows.c: windows at the GS base for 16- and 32-bit code. */
void flat_init(struct vcpu *v);
void flat_destroy(struct vcpu *v);
/* Sets the GS base for the code that is about to run, and cuts the registers of 16- and 32-bit code to
 * 32 bits. To be called before every way back into translated code that loads registers; costs next to
 * nothing if all is right already. */
void flat_use(struct vcpu *v);
void flat_on_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva);
void flat_released(struct vcpu *v, struct window *w);
bool flat_window(const struct window *w);
window_probe flat_probe(const struct window *w);
/* Is this host address in the place of a window that has not been opened yet? Opens it. */
bool flat_is_null(const struct vcpu *v, uint64_t hva);
bool flat_open(struct vcpu *v);
/* Was the fault of an access of this block (engine_vcpu.wfault_hva) outside the 4 GiB at the GS base? */
bool flat_wrapped(const struct vcpu *v, const struct tb *from);

/* string_window.c: can this be done through windows, where there are any? */
bool string_for_windows(uint32_t key, const struct insn *in);
static inline bool side_is_string(unsigned kind)
{
    return kind >= SIDE_STRING_BOTH && kind <= SIDE_STRING_RDI;
}

/* native_stack.c */

/* How far the host's RSP may be outside its window where code passes from one block to another. */
#define STACK_SLACK (1ll << 30)
/* How far from its window an address may be that is used without a check.  The upper end of a guard
 * zone may hold a vCPU's state (flat_windows.c). */
#define STACK_REACH ((int64_t)WINDOW_GUARD - (16ll << 20))
/* Is the host's RSP the guest's plus a delta in code with this key? */
static inline bool stack_is_native(const struct bt_engine *bt, uint32_t key)
{
    return bt->native_stack && !(key & (KEY_LEGACY | KEY_YOUNG));
}
/* Is user code of the current address space without windows? */
static inline bool young_user(const struct vcpu *v)
{
    return v->engine->young.now && v->cpl == 3;
}
/* Sets what the resume stubs load the host's RSP with, from v->gpr[RSP]. To be called before every way
 * back into translated code. */
static inline void stack_use(struct vcpu *v)
{
    uint64_t rsp = v->gpr[RSP], delta = 0;
    if (v->engine->bt->native_stack && vcpu_long64(v) && !young_user(v))
        delta = v->window_delta[v->cpl != 3][rsp >> WINDOW_SHIFT & 0xffff];
    v->bt.stack_host = rsp + delta;
    v->bt.stack_not = ~delta;
}

/* young.c.  CR3 has changed; flushed: what was known of the new PCID's translations is void. */
void young_switch(struct vcpu *v, bool flushed);
/* In the dispatcher: ends the current address space's youth when it is time. */
void young_tick(struct vcpu *v);
/* Is it time, so that user code must be entered by way of the dispatcher? */
static inline bool young_over(const struct vcpu *v)
{
    return young_user(v) && __builtin_ia32_rdtsc() >= v->engine->young.until;
}

/* gather.c */
enum cpu_result gather_execute(struct vcpu *v, const struct insn *in);

/* engine.c: called from the lookup stub with the target in bt.r10; 0 = resume there, else the
 * dispatcher must deal with it. */
uint64_t bt_lookup(struct vcpu *v);
/* engine.c: called from the callout stub; 0 = resume at bt.resume_target. */
uint64_t bt_callout(struct vcpu *v, struct callout *c);
/* The same for the light stub, which keeps BT_LIGHT_KEPT to itself. */
uint64_t bt_callout_light(struct vcpu *v, struct callout *c);
/* engine.c: true if translated code can go on at v->rip, in whatever mode that is, without the
 * dispatcher: at bt.resume_target. */
bool bt_resume_short(struct vcpu *v);
/* Has this callout of 64-bit code led to compatibility mode?  The registers that the light stub keeps in
 * the host's may then be too wide (flat_use()). */
static inline bool bt_left_long64(const struct vcpu *v, const struct callout *c)
{
    return !(c->tb->key & KEY_LEGACY) && !vcpu_long64(v);
}
/* engine.c: delivers the fault in v->exc of the instruction at v->rip, with all registers in v: where
 * to resume, or 0 if the dispatcher must do it, or has to see to what comes then. */
uint64_t bt_deliver_fault(struct vcpu *v);

/* light_callout.c: registers that the light stub leaves in the host's, because C code preserves
 * them: v->gpr[] has only those of them that the instruction reads. */
#define BT_LIGHT_KEPT (1u << RBX | 1u << RBP | 1u << R12 | 1u << R13 | 1u << R14 | 1u << R15)
/* What the light stub can do with this instruction of 64-bit or (legacy) other code: LIGHT_SHORT_CUT,
 * LIGHT_RULES, both or, if it must take the long way, 0. */
uint8_t bt_light_kind(const struct insn *in, bool legacy);
/* Called from the light stub. */
enum light_result {
    LIGHT_DECLINED, /* nothing has changed: take the long way */
    LIGHT_RESUME,   /* done, resume at bt.resume_target */
    LIGHT_LEAVE,    /* the dispatcher is next: bt.exit_reason says why */
};
uint64_t bt_light_callout(struct vcpu *v, struct callout *c);
/* engine.c: may what the jump cache says of the current privilege be used in the current state? */
bool bt_jump_cache_valid(const struct vcpu *v);
/* The same of 64-bit code at this CPL, if all else stays as it is. */
bool bt_long64_key_valid(const struct vcpu *v, unsigned cpl);

/* system_calls.c: SYSCALL and SYSRET are done without C from here on, if nothing stands against that. */
void system_calls_update(struct vcpu *v);
/* Something of what system_calls_update() has looked at may have changed, or may be about to. */
void system_calls_forget(struct vcpu *v);
struct emitter;
void system_calls_emit(struct bt_engine *bt, struct emitter *e);
/* Translates an instruction address to a GPA through the exec TLB. 0 or -1 with v->exc. */
int exec_translate(struct vcpu *v, uint64_t gva, uint64_t *gpa);
uint32_t bt_current_key(const struct vcpu *v);
static inline uint64_t bt_current_cs(const struct vcpu *v)
{
    const struct segment *cs = &v->seg[SEG_CS];
    return vcpu_long64(v) ? 0 : (uint64_t)cs->limit << 32 | (uint32_t)cs->base;
}
/* Blocks, links and the jump cache go by linear addresses; vcpu.rip is the offset in CS. */
static inline uint64_t bt_linear(const struct vcpu *v, uint64_t rip)
{
    return vcpu_long64(v) ? rip : (uint32_t)(rip + v->seg[SEG_CS].base);
}
/* The page behind the one of this linear address: outside 64-bit mode addresses wrap at 4 GiB. */
static inline uint64_t bt_next_page(const struct vcpu *v, uint64_t linear)
{
    uint64_t next = (linear | (GUEST_PAGE_SIZE - 1)) + 1;
    return vcpu_long64(v) ? next : (uint32_t)next;
}
static inline uint64_t bt_offset(const struct vcpu *v, uint64_t linear)
{
    return vcpu_long64(v) ? linear : (uint32_t)(linear - v->seg[SEG_CS].base);
}

/* boundary.c, of a signal's context. Has nothing but scratch been touched between this boundary and pc? */
bool boundary_behind(const struct bt_engine *bt, const struct tb *tb, const struct side_entry *se,
                     uint64_t pc);
/* Executes the host instruction at g[REG_RIP], of code that ends at `end` (helper: one of those in
 * stubs.c), if it is of a known kind. */
bool boundary_ahead(struct vcpu *v, uint64_t end, bool helper, long long *g);

/* signals.c */
int signals_init_process(char *err, unsigned errlen);
int signals_init_thread(struct vcpu *v);
void signals_destroy_thread(struct vcpu *v);
#define BT_KICK_SIGNAL SIGUSR1
/* The vCPU that the calling thread runs, or NULL: for signal handlers and for telling one's own
 * writes to code from those of others. */
struct vcpu *bt_this_vcpu(void);

#endif
