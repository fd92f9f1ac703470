/*
 * Cross-checks the decoder with Capstone: length, validity, memory operand, general registers and
 * flags, on every instruction of given ELF files and on generated ones.
 *
 * usage: decode_check [--mode 64|32|16] [--random N] [--seed N] [ELF file]...
 *
 * Capstone 4 is not always right (the host CPU settles such cases: decode_oracle.c) and does not
 * know what appeared after 2018.  Every known difference is listed in known_difference() with its
 * reason.  Exit status 1 if there is any other.
 */
#include <elf.h>
#undef PF_X
#undef PF_W
#undef PF_R
#include <capstone/capstone.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "translator/insn.h"

struct check {
    csh handle;
    cs_insn *cs;
    enum insn_mode mode;
    uint64_t compared, both_invalid, known;
    struct difference {
        char key[64];
        char text[160];
        uint64_t count;
    } * list;
    unsigned count, capacity;
};

static void difference(struct check *c, const char *what, const struct insn *in,
                       const uint8_t *bytes, unsigned len, const char *detail)
{
    char key[64];
    const char *cs = c->cs->mnemonic;

    snprintf(key, sizeof(key), "%s/%s/%.20s", what, in->mnemonic,
             !strcmp(what, "validity") ? cs : "");
    for (unsigned i = 0; i < c->count; i++) {
        if (!strcmp(c->list[i].key, key)) {
            c->list[i].count++;
            return;
        }
    }
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? c->capacity * 2 : 256;
        c->list = realloc(c->list, c->capacity * sizeof(*c->list));
        if (!c->list)
            abort();
    }
    struct difference *d = &c->list[c->count++];
    strcpy(d->key, key);
    d->count = 1;
    int n = 0;
    for (unsigned i = 0; i < len && i < 15; i++)
        n += snprintf(d->text + n, sizeof(d->text) - (size_t)n, "%02x ", bytes[i]);
    snprintf(d->text + n, sizeof(d->text) - (size_t)n, "| %s | %s", in->mnemonic, detail);
}

/* The general register that a Capstone register is (part of), or -1. */
static int gpr_of(unsigned reg)
{
    static const uint16_t map[16][5] = {
        {X86_REG_AL, X86_REG_AH, X86_REG_AX, X86_REG_EAX, X86_REG_RAX},
        {X86_REG_CL, X86_REG_CH, X86_REG_CX, X86_REG_ECX, X86_REG_RCX},
        {X86_REG_DL, X86_REG_DH, X86_REG_DX, X86_REG_EDX, X86_REG_RDX},
        {X86_REG_BL, X86_REG_BH, X86_REG_BX, X86_REG_EBX, X86_REG_RBX},
        {X86_REG_SPL, 0, X86_REG_SP, X86_REG_ESP, X86_REG_RSP},
        {X86_REG_BPL, 0, X86_REG_BP, X86_REG_EBP, X86_REG_RBP},
        {X86_REG_SIL, 0, X86_REG_SI, X86_REG_ESI, X86_REG_RSI},
        {X86_REG_DIL, 0, X86_REG_DI, X86_REG_EDI, X86_REG_RDI},
        {X86_REG_R8B, 0, X86_REG_R8W, X86_REG_R8D, X86_REG_R8},
        {X86_REG_R9B, 0, X86_REG_R9W, X86_REG_R9D, X86_REG_R9},
        {X86_REG_R10B, 0, X86_REG_R10W, X86_REG_R10D, X86_REG_R10},
        {X86_REG_R11B, 0, X86_REG_R11W, X86_REG_R11D, X86_REG_R11},
        {X86_REG_R12B, 0, X86_REG_R12W, X86_REG_R12D, X86_REG_R12},
        {X86_REG_R13B, 0, X86_REG_R13W, X86_REG_R13D, X86_REG_R13},
        {X86_REG_R14B, 0, X86_REG_R14W, X86_REG_R14D, X86_REG_R14},
        {X86_REG_R15B, 0, X86_REG_R15W, X86_REG_R15D, X86_REG_R15},
    };
    if (reg == 0)
        return -1;
    for (int i = 0; i < 16; i++) {
        for (int k = 0; k < 5; k++) {
            if (map[i][k] == reg)
                return i;
        }
    }
    return -1;
}

static int segment_of(unsigned reg)
{
    switch (reg) {
    case X86_REG_ES:
        return SEG_ES;
    case X86_REG_CS:
        return SEG_CS;
    case X86_REG_SS:
        return SEG_SS;
    case X86_REG_DS:
        return SEG_DS;
    case X86_REG_FS:
        return SEG_FS;
    case X86_REG_GS:
        return SEG_GS;
    default:
        return -1;
    }
}

static unsigned group_flags(uint64_t eflags, const uint64_t bits[6])
{
    static const unsigned flag[6] = {FL_OF, FL_SF, FL_ZF, FL_AF, FL_PF, FL_CF};
    unsigned mask = 0;

    for (int i = 0; i < 6; i++) {
        if (eflags & bits[i])
            mask |= flag[i];
    }
    return mask;
}

static unsigned flags_written(uint64_t e)
{
    static const uint64_t bits[6] = {
        X86_EFLAGS_MODIFY_OF | X86_EFLAGS_RESET_OF | X86_EFLAGS_UNDEFINED_OF,
        X86_EFLAGS_MODIFY_SF | X86_EFLAGS_RESET_SF | X86_EFLAGS_UNDEFINED_SF,
        X86_EFLAGS_MODIFY_ZF | X86_EFLAGS_UNDEFINED_ZF,
        X86_EFLAGS_MODIFY_AF | X86_EFLAGS_RESET_AF | X86_EFLAGS_UNDEFINED_AF,
        X86_EFLAGS_MODIFY_PF | X86_EFLAGS_RESET_PF | X86_EFLAGS_UNDEFINED_PF,
        X86_EFLAGS_MODIFY_CF | X86_EFLAGS_RESET_CF | X86_EFLAGS_SET_CF | X86_EFLAGS_UNDEFINED_CF,
    };
    return group_flags(e, bits);
}

static unsigned flags_tested(uint64_t e)
{
    static const uint64_t bits[6] = {X86_EFLAGS_TEST_OF, X86_EFLAGS_TEST_SF, X86_EFLAGS_TEST_ZF, 0,
                                     X86_EFLAGS_TEST_PF, X86_EFLAGS_TEST_CF};
    return group_flags(e, bits);
}

static bool starts(const char *s, const char *prefix)
{
    return !strncmp(s, prefix, strlen(prefix));
}

static bool one_of(const char *s, const char *const *list)
{
    for (; *list; list++) {
        if (starts(s, *list))
            return true;
    }
    return false;
}

/*
 * Differences in which Capstone is wrong or old, or which we want.  decode_oracle.c shows for most
 * of these that the host CPU agrees with us.
 */
static bool known_difference(const struct check *c, const struct insn *in, const uint8_t *bytes,
                             bool cs_valid)
{
    const char *cs = c->cs->mnemonic;
    bool valid = in->op != OP_INVALID;
    unsigned i = 0;
    bool prefixed = false, p66 = false, p67 = false, rex_seen = false;

    for (; i < 14; i++) {
        uint8_t b = bytes[i];
        bool rex = c->mode == MODE_64 && (b & 0xf0) == 0x40;
        if (b == 0x66 || b == 0xf2 || b == 0xf3 || b == 0xf0)
            prefixed = true;
        else if (!(b == 0x67 || b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x64 ||
                   b == 0x65 || rex))
            break;
        p66 |= b == 0x66;
        p67 |= b == 0x67;
        rex_seen |= rex;
    }
    bool vector_prefix = bytes[i] == 0xc4 || bytes[i] == 0xc5 || bytes[i] == 0x62;

    if (!valid && cs_valid) {
        /* Instructions that are never exposed, or of other makers' processors. */
        static const char *const hidden[] = {
            "xabort",  "xbegin",   "xend",     "xtest",    "enclu",    "encls",  "xsaves",
            "xrstors", "getsec",   "rdpkru",   "wrpkru",   "rsm",      "femms",  "pf",
            "pi2f",    "pavgusb",  "pmulhrw",  "pswapd",   "montmul",  "xcrypt", "xsha",
            "xstore",  "clzero",   "monitorx", "mwaitx",   "pcommit",  "vp",     "vfrcz",
            "bextr",   "blc",      "bls",      "t1mskc",   "tzmsk",    "llwpcb", "slwpcb",
            "lwp",     "rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase", "skinit", "extrq",
            "insertq", "cyrix",    "syscall",  "sysret",   "swapgs",   "ud",     "fstpnce",
            "ffreep",  "incssp",   "ptwrite",  NULL};
        if (one_of(cs, hidden) || bytes[i] == 0x8f)
            return true;
        if (bytes[i] == 0x8e && (bytes[i + 1] >> 3 & 7) == SEG_CS)
            return true; /* MOV CS */
        if (bytes[i] == 0x0f && bytes[i + 1] >= 0x20 && bytes[i + 1] <= 0x23)
            return true; /* MOV of a control register that does not exist */
        /* Capstone does not look at prefixes that make an instruction #UD, nor at vvvv, L, W. */
        return prefixed || vector_prefix || (p67 && rex_seen);
    }
    if (valid && !cs_valid) {
        /* Younger than Capstone 4; or more than it knows: hints, x87 aliases, EVEX forms. */
        static const char *const young[] = {"serialize", "gf2p8",  "movdiri", "ud0",       "rdpid",
                                            "lfence",    "mfence", "sfence",  "nop",       "vm",
                                            "inv",       "smsw",   "k",       "prefetchw", NULL};
        return vector_prefix || one_of(in->mnemonic, young) || in->fpu == FPU_X87 || prefixed ||
               in->op == OP_MOV_FROM_SEG || in->op == OP_MOV_TO_SEG; /* REX.R is ignored */
    }
    /* Near branches ignore 66H in 64-bit mode on Intel; Capstone takes AMD's side. */
    if (c->mode == MODE_64 && p66 && in->op >= OP_JMP && in->op <= OP_RET)
        return true;
    /* Capstone 4 mixes up 67H with REX, and 66H with F2 or F3. */
    if ((p67 && rex_seen) || (p66 && in->prefix_len > 1))
        return true;
    /* UD0 and UD1 have a ModRM byte; SSE4a shares opcodes with VMX, which is all #UD for us. */
    if (in->op == OP_UD || in->op == OP_VMCALL)
        return true;
    /* V' as part of the index, embedded rounding, broadcasts with disp8. */
    if (in->enc == ENC_EVEX && (in->vvvv > 15 || (in->raw[in->prefix_len + 3] & 0x18) != 8))
        return true;
    return false;
}

static void compare_memory(struct check *c, const struct insn *in, const uint8_t *bytes)
{
    const cs_x86 *x = &c->cs->detail->x86;
    const cs_x86_op *op = NULL;
    char text[120];

    for (int i = 0; i < x->op_count; i++) {
        if (x->operands[i].type == X86_OP_MEM)
            op = &x->operands[i];
    }
    bool ours = (in->flags & INSN_MODRM) && in->mod != 3;
    if (!ours || !op)
        return;
    unsigned base = op->mem.base, index = op->mem.index;
    int cs_base = base == X86_REG_RIP || base == X86_REG_EIP ? BASE_RIP
                  : base == X86_REG_INVALID                  ? REG_NONE
                                                             : gpr_of(base);
    int cs_index = index == X86_REG_INVALID || index == X86_REG_RIZ || index == X86_REG_EIZ
                       ? REG_NONE
                       : gpr_of(index);
    if (in->flags & INSN_VSIB)
        cs_index = in->mem.index; /* vector register */
    int scale = cs_index == REG_NONE ? in->mem.scale : op->mem.scale;
    int64_t disp = in->mem.disp;
    if (in->addr_size == 2 || c->mode != MODE_64)
        disp = in->addr_size == 2 ? (int16_t)disp : (int32_t)disp;
    int64_t cs_disp = op->mem.disp;
    if (in->addr_size == 2 || c->mode != MODE_64)
        cs_disp = in->addr_size == 2 ? (int16_t)cs_disp : (int32_t)cs_disp;
    if (cs_base != in->mem.base || cs_index != in->mem.index || scale != in->mem.scale ||
        cs_disp != disp) {
        snprintf(text, sizeof(text), "base %d index %d*%d disp %ld; Capstone %d, %d*%d, %ld",
                 in->mem.base, in->mem.index, in->mem.scale, (long)disp, cs_base, cs_index,
                 op->mem.scale, (long)cs_disp);
        difference(c, "address", in, bytes, in->len, text);
    }
    int seg = segment_of(op->mem.segment);
    if (seg >= 0 && seg != in->mem.seg && (c->mode != MODE_64 || seg >= SEG_FS)) {
        snprintf(text, sizeof(text), "segment %d, Capstone %d", in->mem.seg, seg);
        difference(c, "segment", in, bytes, in->len, text);
    }
    /* Capstone gives scalar and MMX operands as 16 bytes, and does not know far pointers' sizes. */
    bool far = in->op == OP_JMP_FAR || in->op == OP_CALL_FAR || in->op == OP_LOAD_FAR_PTR ||
               in->op == OP_LSL || in->op == OP_LAR || !strcmp(in->mnemonic, "clwb") ||
               !strcmp(in->mnemonic, "crc32");
    bool rep66 = in->op_size == 2; /* 66H together with F2 or F3 is not seen as 16 bits */
    if (op->size > in->mem.size && in->mem.size && (in->flags & INSN_MEM) && in->fpu == FPU_NONE &&
        !far && !rep66) {
        snprintf(text, sizeof(text), "size %u, Capstone %u", in->mem.size, op->size);
        difference(c, "memory size", in, bytes, in->len, text);
    }
}

static void compare_registers(struct check *c, const struct insn *in, const uint8_t *bytes)
{
    cs_regs read, written;
    uint8_t nread, nwritten;
    unsigned r = 0, w = 0;
    char text[120];

    /* Wrong in Capstone 4: CWD writes no source, TEST and BOUND no operand; hints read nothing. */
    if (in->op == OP_NOP || in->op == OP_BOUND || !strcmp(in->mnemonic, "cwd") ||
        !strcmp(in->mnemonic, "test") || !strcmp(in->mnemonic, "movq") || in->op == OP_STOS ||
        in->op == OP_SYSENTER || in->op == OP_SYSEXIT || in->op == OP_RDPID ||
        !strcmp(in->mnemonic, "clwb"))
        return;
    if (cs_regs_access(c->handle, c->cs, read, &nread, written, &nwritten))
        return;
    for (int i = 0; i < nread; i++) {
        int n = gpr_of(read[i]);
        if (n >= 0)
            r |= 1u << n;
    }
    for (int i = 0; i < nwritten; i++) {
        int n = gpr_of(written[i]);
        if (n >= 0)
            w |= 1u << n;
    }
    if (r & ~in->gpr_read & ~in->gpr_written) {
        snprintf(text, sizeof(text), "reads %#x, Capstone %#x", in->gpr_read, r);
        difference(c, "gpr read", in, bytes, in->len, text);
    }
    if (w & ~in->gpr_written) {
        snprintf(text, sizeof(text), "writes %#x, Capstone %#x", in->gpr_written, w);
        difference(c, "gpr written", in, bytes, in->len, text);
    }
    if (in->fpu != FPU_NONE)
        return; /* the union holds FPU flags */
    uint64_t e = c->cs->detail->x86.eflags;
    unsigned fw = flags_written(e), ft = flags_tested(e);
    if (fw & ~in->flags_written) {
        snprintf(text, sizeof(text), "flags written %#x, Capstone %#x", in->flags_written, fw);
        difference(c, "flags written", in, bytes, in->len, text);
    }
    if (ft & ~in->flags_read) {
        snprintf(text, sizeof(text), "flags read %#x, Capstone %#x", in->flags_read, ft);
        difference(c, "flags read", in, bytes, in->len, text);
    }
}

/* Returns how far to advance. */
static unsigned compare(struct check *c, const uint8_t *bytes, size_t avail)
{
    struct insn in;
    uint8_t padded[15];
    char text[120];

    if (avail < 15) { /* Capstone gets as much as we do */
        memset(padded, 0x90, sizeof(padded));
        memcpy(padded, bytes, avail);
        bytes = padded;
        avail = 15;
    }
    insn_decode(&in, bytes, avail, c->mode);
    const uint8_t *p = bytes;
    size_t left = avail > 15 ? 15 : avail;
    uint64_t addr = 0;
    bool ok = cs_disasm_iter(c->handle, &p, &left, &addr, c->cs);
    bool valid = in.op != OP_INVALID;

    c->compared++;
    if (!ok && !valid) {
        c->both_invalid++;
        return 1;
    }
    if (!ok) {
        c->cs->mnemonic[0] = 0;
        c->cs->id = 0;
    }
    if (known_difference(c, &in, bytes, ok)) {
        c->known++;
        return valid ? in.len : 1;
    }
    if (ok != valid) {
        snprintf(text, sizeof(text), "Capstone: %s", ok ? c->cs->mnemonic : "invalid");
        difference(c, "validity", &in, bytes, ok ? c->cs->size : in.len, text);
        return valid ? in.len : 1;
    }
    if (c->cs->size != in.len) {
        snprintf(text, sizeof(text), "length %u, Capstone %u: %.20s %.40s", in.len, c->cs->size,
                 c->cs->mnemonic, c->cs->op_str);
        difference(c, "length", &in, bytes, 15, text);
        return in.len;
    }
    compare_memory(c, &in, bytes);
    compare_registers(c, &in, bytes);
    return in.len;
}

static int check_elf(struct check *c, const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)sizeof(Elf64_Ehdr)) {
        perror(path);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    size_t size = (size_t)st.st_size;
    const uint8_t *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED) {
        perror(path);
        return -1;
    }
    const Elf64_Ehdr *eh = (const void *)file;
    int rc = -1;
    if (memcmp(eh->e_ident, ELFMAG, SELFMAG) || eh->e_ident[EI_CLASS] != ELFCLASS64 ||
        eh->e_shoff > size || (size - eh->e_shoff) / sizeof(Elf64_Shdr) < eh->e_shnum) {
        fprintf(stderr, "%s: not an ELF64 file with sections\n", path);
        goto out;
    }
    const Elf64_Shdr *sh = (const void *)(file + eh->e_shoff);
    for (unsigned i = 0; i < eh->e_shnum; i++) {
        if (sh[i].sh_type != SHT_PROGBITS || !(sh[i].sh_flags & SHF_EXECINSTR) ||
            sh[i].sh_offset > size || sh[i].sh_size > size - sh[i].sh_offset)
            continue;
        const uint8_t *p = file + sh[i].sh_offset, *end = p + sh[i].sh_size;
        while (p < end)
            p += compare(c, p, (size_t)(end - p));
    }
    rc = 0;
out:
    munmap((void *)file, size);
    return rc;
}

static void check_random(struct check *c, uint64_t n, uint64_t seed)
{
    /* Sane prefixes only; for piles of them Capstone is no help. */
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0x64, 0x67};
    static const uint8_t escapes[] = {0x0f, 0x0f, 0x0f, 0xc4, 0xc5, 0x62};
    uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;

    for (uint64_t i = 0; i < n; i++) {
        uint8_t bytes[16];
        for (int k = 0; k < 16; k += 8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            memcpy(bytes + k, &x, 8);
        }
        unsigned k = 0, how = bytes[15], escape = bytes[14];
        if (how & 1)
            bytes[k++] = prefixes[how / 8 % sizeof(prefixes)];
        if ((how & 6) == 6 && c->mode == MODE_64)
            bytes[k++] = 0x40 | (bytes[13] & 15);
        if (escape & 1)
            bytes[k] = escapes[escape / 2 % (k ? 3 : sizeof(escapes))];
        compare(c, bytes, 15);
    }
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct difference *)a)->key, ((const struct difference *)b)->key);
}

int main(int argc, char **argv)
{
    static struct check c = {.mode = MODE_64};
    uint64_t random = 0, seed = 1;
    int rc = 0, i = 1;

    for (; i < argc && argv[i][0] == '-' && i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--mode"))
            c.mode = atoi(argv[i + 1]) == 16   ? MODE_16
                     : atoi(argv[i + 1]) == 32 ? MODE_32
                                               : MODE_64;
        else if (!strcmp(argv[i], "--random"))
            random = strtoull(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--seed"))
            seed = strtoull(argv[i + 1], NULL, 0);
        else
            break;
    }
    cs_mode mode = c.mode == MODE_64 ? CS_MODE_64 : c.mode == MODE_32 ? CS_MODE_32 : CS_MODE_16;
    if (cs_open(CS_ARCH_X86, mode, &c.handle)) {
        fprintf(stderr, "cannot open Capstone\n");
        return 2;
    }
    cs_option(c.handle, CS_OPT_DETAIL, CS_OPT_ON);
    c.cs = cs_malloc(c.handle);
    for (; i < argc; i++)
        rc |= check_elf(&c, argv[i]) < 0;
    check_random(&c, random, seed);

    qsort(c.list, c.count, sizeof(*c.list), by_key);
    for (unsigned k = 0; k < c.count; k++)
        printf("%-14.*s %8lu x %s\n", (int)strcspn(c.list[k].key, "/"), c.list[k].key,
               (unsigned long)c.list[k].count, c.list[k].text);
    printf("%lu compared (%lu invalid for both, %lu known differences), %u other differences\n",
           (unsigned long)c.compared, (unsigned long)c.both_invalid, (unsigned long)c.known,
           c.count);
    cs_free(c.cs, 1);
    cs_close(&c.handle);
    free(c.list);
    return rc ? 2 : c.count != 0;
}
