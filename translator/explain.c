/*
 * Explains a translation: three columns, the guest's instruction, what runs in its place, and why.
 *
 * Nothing here follows the translator's rules a second time.  The side table says which host
 * instructions belong to which guest instruction, and the reasons are read off the emitted code: an
 * access that goes through vcpu.stlb is in soft form, one that goes through vcpu.window_delta in
 * window form, a jump to the callout stub is a callout.  So what is printed is what runs.
 *
 * A block's code lies in this order (translate.c): entry check, the instructions one
 * after the other (the main path), slow paths, exit stubs.
 */
#include "translator/emit.h"
#include "translator/explain.h"

#include <capstone/capstone.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "translator/bt.h"

#define GUEST_WIDTH 44
#define HOST_WIDTH  60
#define WHY_WIDTH   48

/* -- Names ---------------------------------------------------------------------------------------- */

/* What emitted code reaches through GS. */
enum field { F_STACK, F_OTHER, F_GPR, F_FLAGS, F_STLB, F_JUMP_CACHE, F_DELTA };

static const char *const gpr_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static enum field name_field(uint64_t off, char *name, size_t size)
{
    static const struct {
        size_t off;
        const char *name;
    } scalar[] = {
#define FIELD(f) {offsetof(struct vcpu, f), "vcpu." #f}
        FIELD(rip), FIELD(rflags), FIELD(host_rsp), FIELD(tsc_offset), FIELD(tsc_aux),
        FIELD(events), FIELD(exit_request), FIELD(interrupt_shadow), FIELD(kernel_gs_base),
        FIELD(bt.shadow_rip), FIELD(bt.r10), FIELD(bt.r11), FIELD(bt.hflags), FIELD(bt.self),
#undef FIELD
        {offsetof(struct vcpu, scratch[SCR_FLAGS_RAX]), "vcpu.scratch.flags"},
        {offsetof(struct vcpu, scratch[SCR_TARGET]), "vcpu.scratch.target"},
        {offsetof(struct vcpu, scratch[SCR_SPILL]), "vcpu.scratch.spill"},
        {offsetof(struct vcpu, scratch[SCR_VALUE]), "vcpu.scratch.value"},
    };
    static const char *const seg_name[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs"};
    static const char *const space[2] = {"user", "kernel"};
    const uint64_t stlb = offsetof(struct vcpu, stlb), jc = offsetof(struct vcpu, jump_cache),
                   delta = offsetof(struct vcpu, window_delta), seg = offsetof(struct vcpu, seg);

    if (off == offsetof(struct vcpu, bt.stack_not)) {
        snprintf(name, size, "vcpu.stack_not");
        return F_STACK;
    }
    if (off < sizeof(((struct vcpu *)0)->gpr)) {
        snprintf(name, size, "vcpu.gpr.%s", gpr_name[off / 8]);
        return F_GPR;
    }
    for (size_t i = 0; i < sizeof(scalar) / sizeof(scalar[0]); i++)
        if (scalar[i].off == off) {
            snprintf(name, size, "%s", scalar[i].name);
            return off == offsetof(struct vcpu, rflags) ? F_FLAGS : F_OTHER;
        }
    if (off - seg < sizeof(((struct vcpu *)0)->seg)) {
        uint64_t in = (off - seg) % sizeof(struct segment);
        snprintf(name, size, "vcpu.%s.%s", seg_name[(off - seg) / sizeof(struct segment)],
                 in == offsetof(struct segment, base) ? "base" : in ? "attr" : "sel");
    } else if (off - stlb < sizeof(((struct vcpu *)0)->stlb)) {
        static const char *const part[4] = {"rtag", "wtag", "host", "info"};
        snprintf(name, size, "vcpu.stlb.%s.%s",
                 space[(off - stlb) / (STLB_SIZE * sizeof(struct soft_tlb_entry))],
                 part[(off - stlb) % sizeof(struct soft_tlb_entry) / 8]);
        return F_STLB;
    } else if (off - offsetof(struct vcpu, cpuid_cache) < sizeof(struct cpuid_cache)) {
        uint64_t in = off - offsetof(struct vcpu, cpuid_cache);
        static const char *const part[4] = {"leaf", "sub", "sub_mask", "?"};
        if (in < offsetof(struct cpuid_cache, r))
            snprintf(name, size, "vcpu.cpuid_cache.%s", part[in % 16 / 4]);
        else
            snprintf(name, size, "vcpu.cpuid_cache.%s", gpr_name[in % 16 / 4 == 1   ? RBX
                                                                 : in % 16 / 4 == 2 ? RCX
                                                                 : in % 16 / 4 == 3 ? RDX
                                                                                    : RAX]);
    } else if (off - jc < sizeof(((struct vcpu *)0)->jump_cache)) {
        uint64_t i = (off - jc) / 8;
        int n = snprintf(name, size, "vcpu.jump_cache.%s", space[i / JUMP_CACHE_SIZE]);
        if (i % JUMP_CACHE_SIZE)
            snprintf(name + n, size - (size_t)n, "[%#llx]",
                     (unsigned long long)(i % JUMP_CACHE_SIZE));
        return F_JUMP_CACHE;
    } else if (off - delta < sizeof(((struct vcpu *)0)->window_delta)) {
        uint64_t i = (off - delta) / 8;
        int n = snprintf(name, size, "vcpu.window_delta.%s", space[i / 65536]);
        if (i % 65536)
            snprintf(name + n, size - (size_t)n, "[%#llx]", (unsigned long long)(i % 65536));
        return F_DELTA;
    } else {
        snprintf(name, size, "vcpu+%#llx", (unsigned long long)off);
    }
    return F_OTHER;
}

static bool callout_stub(const struct bt_engine *bt, uint64_t x)
{
    return x == bt->stub_callout || x == bt->stub_light || x == bt->stub_syscall ||
           x == bt->stub_sysret;
}

static const char *stub_name(const struct bt_engine *bt, uint64_t x)
{
    const struct {
        uint32_t at;
        const char *name;
    } stub[] = {
        {bt->stub_lookup, "<lookup>"},   {bt->stub_callout, "<callout>"},
        {bt->stub_light, "<light callout>"},
        {bt->stub_syscall, "<syscall>"}, {bt->stub_sysret, "<sysret>"},
        {bt->stub_prepare, "<prepare>"}, {bt->stub_commit, "<commit>"},
        {bt->stub_as_user[0], "<read as user>"}, {bt->stub_as_user[1], "<write as user>"},
        {bt->stub_stepped, "<stepped>"}, {bt->stub_door, "<door>"},
        {bt->stub_wmiss, "<wmiss>"},     {bt->stub_exit_link, "<link>"},
        {bt->stub_resume, "<resume>"},   {bt->stub_exit_common, "<exit>"},
    };
    for (size_t i = 0; i < sizeof(stub) / sizeof(stub[0]); i++)
        if (stub[i].at == x)
            return stub[i].name;
    if (x == bt->stub_count[0] || x == bt->stub_count[1])
        return "<count>";
    for (unsigned i = 0; i < ACCESS_STUBS; i++)
        if (bt->stub_access[i] == x)
            return i & 1 ? "<write>" : "<read>";
    return NULL;
}

static bool access_stub(const struct bt_engine *bt, uint64_t x)
{
    return x >= bt->stub_access[0] && x < bt->stub_count[0];
}

/* -- The block, taken apart ------------------------------------------------------------------------ */

struct view {
    struct bt_engine *bt;
    const struct tb *tb;
    FILE *out;
    csh cs, guest_cs;
    cs_insn *host;
    size_t n;
    uint32_t main, slow, exits; /* where the parts start */
};

/* What the code of one guest instruction does. */
struct facts {
    bool soft, checked, table, plain, in_c, flags_saved, spill, jump_cache_slot, jump_cache;
    bool callout, callout_first, link, gpr, flat, helper, count, rsp, rsp_read, rsp_written;
    const struct callout *record;
};

static bool parse_hex(const char *s, uint64_t *value)
{
    char *end;
    if (s[0] < '0' || s[0] > '9')
        return false;
    *value = strtoull(s, &end, 0);
    return *end == '\0' || *end == ']';
}

/* The number that ends an address expression in brackets, or NULL. */
static const char *last_term(const char *open, const char *close, uint64_t *value)
{
    const char *p = close;
    while (p > open && p[-1] != ' ' && p[-1] != '[')
        p--;
    return parse_hex(p, value) ? p : NULL;
}

static bool in_meta(const struct bt_engine *bt, uint64_t x)
{
    uint64_t meta = (uint64_t)(uintptr_t)bt->meta;
    return x >= meta && x - meta < bt->meta_bytes;
}

static bool jump_target(const cs_insn *i, uint64_t *target)
{
    return i->mnemonic[0] == 'j' && parse_hex(i->op_str, target);
}

/* One host instruction as text with names for what it refers to; notes what that tells. */
static void host_text(const struct view *w, size_t at, char *text, size_t size, struct facts *f)
{
    const struct bt_engine *bt = w->bt;
    const struct tb *tb = w->tb;
    const cs_insn *i = &w->host[at];
    uint64_t value;
    const char *open = strstr(i->op_str, "gs:["), *close = open ? strchr(open, ']') : NULL, *comma;

    if (!strcmp(i->mnemonic, "lahf"))
        f->flags_saved = true;
    f->rsp |= strstr(i->op_str, "[rsp") || !strcmp(i->mnemonic, "push") || !strcmp(i->mnemonic, "pop");
    bool flat = (i->bytes[0] == 0x65 && i->bytes[1] == 0x67) ||
                (i->bytes[0] == 0x66 && i->bytes[1] == 0x65 && i->bytes[2] == 0x67);
    f->flat |= flat;
    if (!flat && close && (open = last_term(open + 4, close, &value))) {
        char name[64];
        bool indexed = open[-1] != '[';
        /* State lies below the GS base: the text has a negative displacement. */
        if (indexed && open[-2] == '-')
            value = -value;
        value = (uint32_t)(value + STATE_BIAS);
        switch (name_field(value, name, sizeof(name))) {
        case F_STLB:
            f->soft = true;
            break;
        case F_DELTA:
            if (indexed)
                f->table = true;
            else if (at && w->host[at - 1].mnemonic[0] == 'j' && w->host[at - 1].address >= w->main)
                f->checked = true;
            else
                f->plain = true;
            break;
        case F_JUMP_CACHE:
            *(indexed ? &f->jump_cache : &f->jump_cache_slot) = true;
            break;
        case F_STACK:
            *(i->op_str[0] == 'r' ? &f->rsp_read : &f->rsp_written) = true;
            break;
        case F_GPR:
            f->gpr |= value / 8 == R10 || value / 8 == R11;
            break;
        default:
            f->spill |= value == offsetof(struct vcpu, scratch[SCR_SPILL]);
        }
        snprintf(text, size, "%s %.*s%s%s", i->mnemonic, (int)(open - i->op_str), i->op_str, name,
                 close);
        return;
    }
    if (jump_target(i, &value)) {
        const char *stub = stub_name(bt, value);
        struct tb *to;
        f->in_c |= value == bt->stub_prepare || value == bt->stub_as_user[0] ||
                   value == bt->stub_as_user[1];
        f->helper |= access_stub(bt, value);
        f->count |= value == bt->stub_count[0] || value == bt->stub_count[1];
        if (callout_stub(bt, value))
            f->callout = true;
        if (stub)
            snprintf(text, size, "%s %s", i->mnemonic, stub);
        else if (value >= tb->entry_ind && value < tb->host_end)
            snprintf(text, size, "%s +%#x", i->mnemonic, (unsigned)(value - tb->entry_ind));
        else if ((to = cache_find_pc(w->bt, value)))
            snprintf(text, size, "%s <block %#llx>", i->mnemonic, (unsigned long long)to->gva);
        else
            snprintf(text, size, "%s %s", i->mnemonic, i->op_str);
        for (unsigned k = 0; k < tb->n_out; k++)
            f->link |= tb->out[k].patch_x >= i->address &&
                       tb->out[k].patch_x < i->address + i->size;
        return;
    }
    comma = strchr(i->op_str, ',');
    if (comma && comma[1] && !strncmp(i->mnemonic, "mov", 3) && parse_hex(comma + 2, &value) &&
        in_meta(bt, value) && at + 1 < w->n) {
        uint64_t next = 0;
        char name[64] = "";
        jump_target(&w->host[at + 1], &next);
        if (callout_stub(bt, next)) {
            f->record = (const struct callout *)(uintptr_t)value;
            snprintf(name, sizeof(name), "callout{%s}", f->record->insn.mnemonic);
        } else if (next == bt->stub_prepare || next == bt->stub_commit || next == bt->stub_wmiss ||
                   next == bt->stub_as_user[0] || next == bt->stub_as_user[1] ||
                   access_stub(bt, next)) {
            const struct mem_site *s = (const struct mem_site *)(uintptr_t)value;
            if (s->size)
                snprintf(name, sizeof(name), "site{%s, %u bytes}",
                         s->access & MMU_WRITE ? "write" : "read", s->size);
            else
                snprintf(name, sizeof(name), "site");
        } else if (next == bt->stub_exit_link) {
            const struct link *l = (const struct link *)(uintptr_t)value;
            snprintf(name, sizeof(name), "link{%#llx}", (unsigned long long)l->target);
        } else if (next == bt->stub_door) {
            snprintf(name, sizeof(name), "tb");
        }
        if (*name) {
            snprintf(text, size, "%s %.*s, %s", i->mnemonic, (int)(comma - i->op_str), i->op_str,
                     name);
            return;
        }
    }
    snprintf(text, size, "%s%s%s", i->mnemonic, *i->op_str ? " " : "", i->op_str);
}

/* -- Reasons -------------------------------------------------------------------------------------- */

static const char *callout_reason(const struct insn *in)
{
    switch (in->op) {
    case OP_INVALID: case OP_UD: case OP_VMCALL:
        return "raises #UD";
    case OP_MOVS: case OP_CMPS: case OP_STOS: case OP_LODS: case OP_SCAS:
        return "a string instruction whose operands move: done in C, page by page";
    case OP_INS: case OP_OUTS: case OP_IN: case OP_OUT:
        return "I/O goes to the device models, if IOPL and the I/O bitmap allow it";
    case OP_GATHER: case OP_SCATTER:
        return "every element has an address of its own";
    case OP_SGDT: case OP_SIDT: case OP_SLDT: case OP_STR: case OP_SMSW:
        return "sensitive: would show the host's state, and need not trap at CPL 3";
    case OP_LAR: case OP_LSL: case OP_VERR: case OP_VERW: case OP_ARPL:
        return "sensitive: looks at descriptor tables, and does not trap at CPL 3";
    case OP_POPF: case OP_PUSHF:
        return "sensitive: IF, IOPL and more are virtual; at CPL 3 the CPU would silently ignore "
               "them";
    case OP_STI: case OP_CLI:
        return "sensitive: IF is virtual";
    case OP_MOV_TO_SEG: case OP_MOV_FROM_SEG: case OP_POP_SEG: case OP_PUSH_SEG:
    case OP_LOAD_FAR_PTR:
        return "sensitive: segment registers are virtual";
    case OP_IRET: case OP_RETF: case OP_JMP_FAR: case OP_CALL_FAR: case OP_INT: case OP_INT3:
    case OP_INT1: case OP_INTO: case OP_SYSCALL: case OP_SYSENTER: case OP_SYSRET:
    case OP_SYSEXIT:
        return "changes CS and perhaps the privilege level, which is virtual";
    case OP_CPUID:
        return "sensitive: the guest sees the virtual CPU, not the host's";
    case OP_RDTSC: case OP_RDTSCP: case OP_RDPMC:
        return "sensitive: CR4 decides, or the virtual TSC is not the host's";
    case OP_XGETBV:
        return "sensitive: XCR0 is virtual";
    case OP_RDFSBASE: case OP_RDGSBASE: case OP_WRFSBASE: case OP_WRGSBASE:
        return "sensitive: segment bases are virtual; the host's GS base is ours";
    case OP_ENTER:
        return "rare: done in C";
    default:
        return in->flags & INSN_PRIVILEGED
                   ? "privileged: acts on the virtual CPU; #GP above CPL 0"
                   : "done in C on the virtual CPU's state";
    }
}

static void add(char *why, size_t size, const char *text)
{
    size_t n = strlen(why);
    if (n < size)
        snprintf(why + n, size - n, "%s%s", n ? "; " : "", text);
}

static bool linked(const struct tb *tb)
{
    for (unsigned i = 0; i < tb->n_out; i++)
        if (tb->out[i].to)
            return true;
    return false;
}

static void explain_branch(const struct view *w, const struct insn *in, const struct facts *f,
                           char *why, size_t size)
{
    bool direct = in->op != OP_RET && in->op != OP_JMP_IND && in->op != OP_CALL_IND;
    if (in->op == OP_CALL || in->op == OP_CALL_IND)
        add(why, size, "pushes the guest's return address, not the host's");
    if (in->op == OP_RET)
        add(why, size, "pops a guest address: no host return");
    if (f->link)
        add(why, size, linked(w->tb)
                           ? "direct jump within the page, linked to the other block"
                           : "direct jump within the page: goes to the exit stub until linked");
    if (f->jump_cache_slot)
        add(why, size, direct ? "direct jump to another page: through its jump-cache slot, which "
                                "TLB flushes clear"
                              : "through a jump-cache slot");
    if (f->jump_cache)
        add(why, size, "indirect jump: r10 = target, found in the jump cache");
}

/* Appends why the code of this instruction is as it is. */
static void explain_insn(const struct view *w, const struct insn *in, const struct facts *f,
                         bool verbatim, bool nothing, char *why, size_t size)
{
    char text[200];

    if (f->record && f->callout_first) {
        if (f->record->insn.op == OP_FAULT_NM)
            add(why, size, "raises #NM: CR0 says so");
        else if (f->record->insn.op == OP_FAULT_DE)
            add(why, size, "has divided by zero before: looks at the divisor, raises #DE by itself");
        else if (f->record->insn.op == OP_FAULT_GP)
            add(why, size, "raises #GP: goes past the limit of CS");
        else if (f->record->insn.op == OP_INVALID && in->op != OP_INVALID)
            add(why, size, "raises #UD: CR0, CR4 or XCR0 do not enable it");
        else {
            snprintf(text, sizeof(text), "rewritten into a callout to the VMM: %s",
                     callout_reason(in));
            add(why, size, text);
        }
        return;
    }
    if (nothing) {
        add(why, size, "no effect: left out");
        return;
    }
    switch (in->op) {
    case OP_CLI:
        add(why, size, "sensitive: clears the virtual IF; the host's stays set");
        break;
    case OP_STI:
        add(why, size, "sensitive: sets the virtual IF inline; a callout only if an event waits");
        break;
    case OP_PUSHF:
        add(why, size, "sensitive: arithmetic flags are the CPU's, all others virtual");
        break;
    case OP_SWAPGS:
        add(why, size, "privileged: swaps two fields of the virtual CPU");
        break;
    case OP_MOV_FROM_SEG: case OP_RDFSBASE: case OP_RDGSBASE:
        add(why, size, "sensitive: segment registers are virtual");
        break;
    case OP_RDTSCP: case OP_RDPID:
        add(why, size, "sensitive: TSC_AUX is virtual");
        break;
    case OP_CPUID:
        add(why, size, "sensitive: the virtual CPU's answer, remembered; asked for in C the first time");
        return;
    case OP_RDTSC:
        add(why, size, "the guest's TSC is the host's here");
        break;
    case OP_LEA:
        if (!verbatim && in->mem.base == BASE_RIP)
            add(why, size, "relative to the guest's RIP: a constant here");
        break;
    case OP_MOVS: case OP_CMPS: case OP_STOS: case OP_LODS: case OP_SCAS:
        add(why, size, "the host's own, on host addresses; the deltas come off again behind it");
        break;
    default:
        explain_branch(w, in, f, why, size);
    }
    bool native = stack_is_native(w->bt, w->tb->key);
    if (f->count)
        add(why, size, "counted: nothing else in this block would be");
    if (verbatim) {
        add(why, size, native && f->rsp ? "copied as is, for RSP is the guest's in its window"
                                        : "copied as is");
        return;
    }
    if (f->rsp_written)
        add(why, size, "RSP: looks up the delta of the window it is in now");
    else if (f->rsp_read && native)
        add(why, size, "RSP as a value: without the delta of its window");
    bool stack = in->op == OP_PUSH || in->op == OP_POP || in->op == OP_CALL || in->op == OP_RET ||
                 in->op == OP_CALL_IND || in->op == OP_LEAVE || in->op == OP_PUSHF;
    snprintf(text, sizeof(text), "%s redirected: ", stack ? "stack access" : "memory operand");
    size_t n = strlen(text);
    if (f->soft) {
        snprintf(text + n, sizeof(text) - n, "soft TLB, one compare for page and size");
        add(why, size, text);
    }
    if (f->helper) {
        snprintf(text + n, sizeof(text) - n, "soft TLB, looked up by a helper that also counts");
        add(why, size, text);
    }
    if (f->checked) {
        snprintf(text + n, sizeof(text) - n, "window, checked to be the one predicted");
        add(why, size, text);
    }
    if (native && f->rsp && !f->rsp_read && !f->soft && !f->helper && !f->in_c)
        add(why, size, "RSP is the guest's in its window: no check");
    if (f->table && !f->rsp_written) {
        snprintf(text + n, sizeof(text) - n, "window, found by table");
        add(why, size, text);
    }
    if (f->plain) {
        snprintf(text + n, sizeof(text) - n,
                 in->mem.base == BASE_RIP ? "window known, the address is a constant"
                                          : "window known, the check was done before");
        add(why, size, text);
    }
    if (f->in_c && !f->soft && !f->helper) {
        snprintf(text + n, sizeof(text) - n, "every access goes through C, on a copy");
        add(why, size, text);
    }
    if (f->flags_saved)
        add(why, size, "arithmetic flags live: kept in AH and AL meanwhile");
    if (f->gpr)
        add(why, size, "the guest's r10/r11 live in memory");
    if (f->spill)
        add(why, size, "a register is borrowed");
}

/* -- Printing ------------------------------------------------------------------------------------- */

/* Columns, row by row: the host's instructions [from, to), `why` wrapped beside them. */
static void print_rows(const struct view *w, const char *guest, size_t from, size_t to,
                       const char *why)
{
    for (size_t at = from; at < to || *why || *guest; at++) {
        char host[400] = "", place[16] = "";
        struct facts unused = {0};
        if (at < to) {
            snprintf(place, sizeof(place), "+%#x",
                     (unsigned)(w->host[at].address - w->tb->entry_ind));
            host_text(w, at, host, sizeof(host), &unused);
        }
        size_t cut = strlen(why);
        if (cut > WHY_WIDTH) {
            for (cut = WHY_WIDTH; cut && why[cut] != ' '; cut--)
                ;
            cut = cut ? cut : WHY_WIDTH;
        }
        if (cut)
            fprintf(w->out, "%-*s | %-7s %-*s | %.*s\n", GUEST_WIDTH, guest, place, HOST_WIDTH, host,
                    (int)cut, why);
        else
            fprintf(w->out, "%-*s | %-7s %s\n", GUEST_WIDTH, guest, place, host);
        for (why += cut; *why == ' '; why++)
            ;
        guest = "";
    }
}

/* Host instructions in [from, to) as indices. */
static void range(const struct view *w, uint32_t from, uint32_t to, size_t *first, size_t *end)
{
    for (*first = 0; *first < w->n && w->host[*first].address < from; ++*first)
        ;
    for (*end = *first; *end < w->n && w->host[*end].address < to; ++*end)
        ;
}

static unsigned guest_bytes(const struct view *w, uint64_t gva, uint8_t buf[15])
{
    const struct tb *tb = w->tb;
    uint64_t at = gva & (GUEST_PAGE_SIZE - 1), page = tb->gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1);
    unsigned n = 0;
    for (; n < 15 && at + n < GUEST_PAGE_SIZE; n++)
        buf[n] = w->bt->ram->base[page + at + n];
    for (unsigned k = 0; n < 15 && tb->gpa2 != ~0ull; k++)
        buf[n++] = w->bt->ram->base[tb->gpa2 + k];
    return n;
}

static void guest_text(const struct view *w, uint64_t rip, struct insn *in, char *text, size_t size)
{
    uint8_t buf[15];
    cs_insn *i = NULL;
    unsigned n_bytes = guest_bytes(w, rip, buf);

    if (insn_decode(in, buf, n_bytes, key_mode(w->tb->key)) <= 0)
        *in = (struct insn){.op = OP_INVALID, .len = 1};
    size_t n = cs_disasm(w->guest_cs, buf, in->len, rip, 1, &i);
    if (n)
        snprintf(text, size, "%016llx  %s%s%s", (unsigned long long)rip, i->mnemonic,
                 *i->op_str ? " " : "", i->op_str);
    else
        snprintf(text, size, "%016llx  (%s)", (unsigned long long)rip,
                 in->mnemonic ? in->mnemonic : "?");
    if (i)
        cs_free(i, n);
}

/* Long guest instructions get a row of their own. */
static void print_insn(const struct view *w, const char *guest, size_t from, size_t to,
                       const char *why)
{
    if (strlen(guest) > GUEST_WIDTH) {
        fprintf(w->out, "%s\n", guest);
        guest = "";
        if (from == to && !*why)
            return;
    }
    print_rows(w, guest, from, to, why);
}

static void print_main(const struct view *w)
{
    const struct tb *tb = w->tb;
    unsigned insns = 0;
    for (uint32_t s = 0; s < tb->n_side && side_host(tb, &tb->side[s]) < w->slow; s++) {
        const struct side_entry *se = &tb->side[s];
        uint32_t e = s + 1;
        if (!side_starts(tb, se) || side_host(tb, se) < w->main)
            continue;
        while (e < tb->n_side && !side_starts(tb, &tb->side[e]) &&
               side_host(tb, &tb->side[e]) < w->slow)
            e++;
        uint32_t end = e < tb->n_side && side_host(tb, &tb->side[e]) < w->slow
                           ? side_host(tb, &tb->side[e])
                           : w->slow;
        size_t first, last;
        char guest[240], why[500] = "", text[400];
        struct facts f = {0};
        struct insn in = {.len = 0};
        range(w, side_host(tb, se), end, &first, &last);
        for (size_t i = first; i < last; i++) {
            host_text(w, i, text, sizeof(text), &f);
            if (f.callout && i <= first + 1)
                f.callout_first = true;
        }
        if (insns++ == tb->n_insns) {
            snprintf(guest, sizeof(guest), "%016llx  (the block ends here)",
                     (unsigned long long)side_gva(tb, se));
            explain_branch(w, &in, &f, why, sizeof(why));
        } else {
            bool same = last > first;
            unsigned n = 0;
            guest_text(w, side_gva(tb, se), &in, guest, sizeof(guest));
            for (size_t i = first; i < last && same; n += w->host[i++].size)
                same = n + w->host[i].size <= in.len &&
                       !memcmp(w->host[i].bytes, in.raw + n, w->host[i].size);
            explain_insn(w, &in, &f, same && n == in.len, first == last, why, sizeof(why));
        }
        print_insn(w, guest, first, last, why);
    }
}

static void print_slow(const struct view *w)
{
    const struct tb *tb = w->tb;
    int shown = INT32_MAX;
    uint32_t at = w->slow;
    if (w->slow < w->exits)
        fprintf(w->out,
                "slow paths: the page is not in the soft TLB, or not the window expected\n");
    for (uint32_t s = 0; s < tb->n_side; s++) {
        const struct side_entry *se = &tb->side[s];
        if (side_host(tb, se) < w->slow || side_host(tb, se) >= w->exits ||
            side_starts(tb, se))
            continue;
        uint32_t end = s + 1 < tb->n_side && side_host(tb, &tb->side[s + 1]) < w->exits
                           ? side_host(tb, &tb->side[s + 1])
                           : w->exits;
        char guest[240] = "";
        struct insn in;
        size_t first, last;
        if (se->guest_off != shown)
            guest_text(w, side_gva(tb, se), &in, guest, sizeof(guest));
        shown = se->guest_off;
        range(w, at > side_host(tb, se) ? at : side_host(tb, se), end, &first, &last);
        at = end;
        print_insn(w, guest, first, last, "");
    }
}

/* Finds where the parts of the block's code start. */
static void find_parts(struct view *w)
{
    const struct tb *tb = w->tb;
    uint32_t last = 0, insns = 0;
    w->main = tb->entry;
    for (uint32_t s = 0; s < tb->n_side; s++)
        if (side_starts(tb, &tb->side[s]) && side_host(tb, &tb->side[s]) >= tb->entry_known) {
            if (!insns++)
                w->main = side_host(tb, &tb->side[s]);
            last = s;
        }
    /* An open end has a boundary of its own and, right behind it, a mark that it is none. */
    last += insns > tb->n_insns ? 2 : 1;
    w->exits = tb->n_side ? side_host(tb, &tb->side[tb->n_side - 1]) : tb->host_end;
    w->slow = last < tb->n_side ? side_host(tb, &tb->side[last]) : w->exits;
}

static void print_key(const struct tb *tb, FILE *out)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } keys[] = {{KEY_X87_NM, "x87 raises #NM"},     {KEY_SSE_UD, "SSE raises #UD"},
                {KEY_SSE_NM, "SSE raises #NM"},     {KEY_AVX_UD, "AVX raises #UD"},
                {KEY_AVX512_UD, "AVX-512 raises #UD"}, {KEY_XSAVE_UD, "XSAVE raises #UD"},
                {KEY_ONE_INSN, "one instruction"},  {KEY_SLOW_MEM, "accesses in C"},
                {KEY_TSC_TRAP, "virtual TSC"},      {KEY_CODE16, "16-bit code"},
                {KEY_CODE32, "32-bit code"},       {KEY_STACK16, "16-bit stack"},
                {KEY_YOUNG, "young address space"}};
    fprintf(out, "for CPL %u", (tb->key & KEY_CPL_MASK) >> 1);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (tb->key & keys[i].bit)
            fprintf(out, ", %s", keys[i].name);
}

void explain_print(struct bt_engine *bt, const struct tb *tb, FILE *out)
{
    struct view w = {.bt = bt, .tb = tb, .out = out};
    size_t first, last;

    static const cs_mode guest_mode[] = {
        [MODE_16] = CS_MODE_16, [MODE_32] = CS_MODE_32, [MODE_64] = CS_MODE_64};
    if (cs_open(CS_ARCH_X86, CS_MODE_64, &w.cs) != CS_ERR_OK)
        return;
    if (cs_open(CS_ARCH_X86, guest_mode[key_mode(tb->key)], &w.guest_cs) != CS_ERR_OK) {
        cs_close(&w.cs);
        return;
    }
    cs_option(w.cs, CS_OPT_SKIPDATA, CS_OPT_ON);
    w.n = cs_disasm(w.cs, (const uint8_t *)(uintptr_t)tb->entry_ind, tb->host_end - tb->entry_ind,
                    tb->entry_ind, 0, &w.host);
    find_parts(&w);
    fprintf(out, "block %#llx at physical %#llx, %s form, ", (unsigned long long)tb->gva,
            (unsigned long long)tb->gpa, tb->window ? "window" : "soft");
    print_key(tb, out);
    fprintf(out, ": %u instructions -> %u bytes\n", tb->n_insns, tb->host_end - tb->entry_ind);
    fprintf(out, "%-*s | %-*s | %s\n", GUEST_WIDTH, "guest", HOST_WIDTH + 8, "host", "why");
    range(&w, tb->entry_ind, tb->entry, &first, &last);
    print_rows(&w, "(door for indirect jumps)", first, last,
               "the jump cache may have guessed wrong: r10 must be this block's address");
    range(&w, tb->entry, tb->entry_known, &first, &last);
    if (first < last)
        print_rows(&w, "(checks ahead)", first, last,
                   "registers that are in the windows expected for all of the block; links that know "
                   "come in behind this");
    print_main(&w);
    print_slow(&w);
    range(&w, w.exits, tb->side_door ? tb->side_door : tb->host_end, &first, &last);
    if (first < last)
        print_rows(&w, "(exit stubs)", first, last,
                   "taken until a direct jump is linked");
    range(&w, tb->side_door ? tb->side_door : tb->host_end, tb->host_end, &first, &last);
    if (first < last)
        print_rows(&w, "(side door)", first, last,
                   "the door until many have come, and where two blocks share a place in the jump cache");
    if (w.host)
        cs_free(w.host, w.n);
    cs_close(&w.guest_cs);
    cs_close(&w.cs);
}

/* -- On demand ------------------------------------------------------------------------------------ */

static void drop(struct bt_engine *bt, struct tb *tb)
{
    bt_lock(bt);
    cache_invalidate_tb(bt, tb);
    bt_unlock(bt);
}

static int explain_attached(struct bt_engine *bt, struct vcpu *v, uint64_t gva, unsigned tiers,
                            FILE *out)
{
    uint64_t gpa;
    if (exec_translate(v, gva, &gpa) < 0 ||
        !ram_readable(bt->ram, gpa & ~(uint64_t)(GUEST_PAGE_SIZE - 1), GUEST_PAGE_SIZE))
        return -EFAULT;
    struct tb *tb = translate_block(bt, v, gva, gpa, bt_current_key(v), NULL);
    if (!tb)
        return -EFAULT;
    int len = tb->guest_len;
    if (tiers & EXPLAIN_SOFT)
        explain_print(bt, tb, out);
    if (tiers & EXPLAIN_WINDOW) {
        if (v->engine->windows_on) {
            tb = translate_block(bt, v, gva, gpa, tb->key, tb);
            if (!tb)
                return -EFAULT;
            if (tiers & EXPLAIN_SOFT)
                fputc('\n', out);
            explain_print(bt, tb, out);
        } else {
            fprintf(out, "no window form: this host's CPU lacks BMI2\n");
        }
    }
    drop(bt, tb);
    return len;
}

int bt_explain(struct engine *e, struct vcpu *v, uint64_t gva, unsigned tiers, FILE *out)
{
    struct bt_engine *bt = (struct bt_engine *)e;
    bool detached = !v->engine;
    uint8_t cpl = v->cpl;
    struct mmu_xlat x;

    if (e->ops != &bt_engine_ops)
        return -ENOSYS;
    if (!mmu_canonical(gva) || mmu_peek(v, gva, &x) < 0)
        return -EFAULT;
    if (detached) {
        int r = e->ops->vcpu_init(e, v);
        if (r)
            return r;
    }
    /* Wherever the guest happens to be: kernel code is kernel code. */
    if (v->cpl == 3 && !x.user)
        v->cpl = 0;
    else if (v->cpl == 0 && x.user && (v->cr0 & CR0_PG) && (v->cr4 & CR4_SMEP))
        v->cpl = 3;
    int len = explain_attached(bt, v, gva, tiers, out);
    v->cpl = cpl;
    if (detached)
        e->ops->vcpu_destroy(e, v);
    return len;
}
