/*
 * Sensitive instructions at CPL 0 and CPL 3: those that trap, those that silently behave
 * otherwise (POPF), and those that reveal system state without a trap (SGDT, LAR, ...).
 * SDM vol. 2 for each instruction; vol. 3, 5.8 (far transfers), 25.5 for what virtualization
 * usually intercepts.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)
#define FAULTC(r, text, vec, err)                                                                  \
    do {                                                                                           \
        context("cpl %u, " text, cpl);                                                             \
        fault(&(r), SNIP(text), vec, err);                                                         \
    } while (0)

struct dtr {
    u16 limit;
    u64 base;
} __attribute__((packed));

/* -- Reading system registers ------------------------------------------------------------------ */

TEST(store, sgdt_sidt)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        memset(buffer, 0xee, 64);
        done(&r, SNIP("sgdt (%%rbx)\n\tsidt 16(%%rbx)"));
        EQ(*(u16 *)buffer, sizeof(gdt) - 1);
        EQ(*(u64 *)(buffer + 2), (u64)gdt);
        EQ(buffer[10], 0xee);
        EQ(*(u16 *)(buffer + 16), 4095);
        CHECK(*(u64 *)(buffer + 18) != 0);
        /* An operand size prefix changes nothing in 64-bit mode. */
        memset(buffer, 0xee, 64);
        done(&r, SNIP(".byte 0x66\n\tsgdt (%%rbx)"));
        EQ(*(u64 *)(buffer + 2), (u64)gdt);
        EQ(buffer[10], 0xee);
    }
}

TEST(store, sldt_str_smsw)
{
    asm volatile("lldt %w0" ::"r"(SEL_LDT));
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        memset(buffer, 0xee, 64);
        done(&r, SNIP("sldt %%eax\n\tstr %%ecx\n\tsmsw %%edx\n\tsldt (%%rbx)\n\tstr 8(%%rbx)\n\t"
                      "smsw 16(%%rbx)\n\tsmsw %%r10\n\tsldt %%r11\n\tstr %%r12w"));
        EQ(T.r.rax, SEL_LDT);
        EQ(T.r.rcx, SEL_TSS);
        EQ(T.r.rdx, (u32)DEFAULT_CR0);
        EQ(T.r.r10, DEFAULT_CR0);
        EQ(T.r.r11, SEL_LDT);
        EQ(T.r.r12, (r.r12 & ~0xfffful) | SEL_TSS);
        EQ(*(u32 *)buffer, 0xeeee0000 | SEL_LDT);
        EQ(*(u32 *)(buffer + 8), 0xeeee0000 | SEL_TSS);
        EQ(*(u32 *)(buffer + 16), 0xeeee0000 | (DEFAULT_CR0 & 0xffff));
    }
    asm volatile("lldt %w0" ::"r"(0));
}

TEST(store, umip)
{
    if (!feat.umip)
        SKIP("no UMIP");
    write_cr4(default_cr4 | CR4_UMIP);
    struct regs r = regs_for(3);
    unsigned cpl = 3;
    r.rbx = at_cpl(3, buffer);
    FAULTC(r, "sgdt (%%rbx)", GP, 0);
    FAULTC(r, "sidt (%%rbx)", GP, 0);
    FAULTC(r, "sldt %%eax", GP, 0);
    FAULTC(r, "sldt (%%rbx)", GP, 0);
    FAULTC(r, "str %%eax", GP, 0);
    FAULTC(r, "smsw %%rax", GP, 0);
    FAULTC(r, "smsw (%%rbx)", GP, 0);
    struct regs k = regs_for(0);
    k.rbx = (u64)buffer;
    context("cpl 0");
    done(&k, SNIP("sgdt (%%rbx)\n\tsidt (%%rbx)\n\tsldt %%eax\n\tstr %%ecx\n\tsmsw %%rdx"));
    EQ(T.r.rcx, SEL_TSS);
    write_cr4(default_cr4);
    context("UMIP off again");
    done(&r, SNIP("sgdt (%%rbx)"));
}

TEST(store, sgdt_faults)
{
    map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = UVA + 4096 - 5;
        fault(&r, SNIP("sgdt (%%rbx)"), PF, PF_W | (cpl ? PF_U : 0));
        EQ(T.cr2, UVA + 4096);
    }
}

/* -- Flags --------------------------------------------------------------------------------------
 */

#define F_ALL                                                                                      \
    (F_ARITH | F_TF | F_IF | F_DF | F_IOPL | F_NT | F_RF | F_VM | F_AC | F_VIF | F_VIP | F_ID)

TEST(flags, popf_cpl0)
{
    struct regs r = regs_for(0);
    u64 set = F_ARITH | F_DF | F_IOPL | F_NT | F_AC | F_ID;
    r.rax = set | 2;
    done(&r, SNIP("push %%rax\n\tpopfq\n\tpushfq\n\tpop %%rcx\n\tpush $2\n\tpopfq\n\tpushfq\n\tpop "
                  "%%rdx"));
    EQ(T.r.rcx, set | 2);
    EQ(T.r.rdx, 2);
    /* RF and VM cannot be set, reserved bits neither. */
    r.rax = F_RF | F_VM | 0xffffffff00000000 | 0x8028 | F_CF;
    done(&r, SNIP("push %%rax\n\tpopfq\n\tpushfq\n\tpop %%rcx"));
    EQ(T.r.rcx, F_CF | 2);
    /* IF, TF apart: interrupts are off in hardware here, TF would trap */
    r.rax = F_IF | 2;
    done(&r, SNIP("push %%rax\n\tpopfq\n\tpushfq\n\tpop %%rcx\n\tcli\n\tpushfq\n\tpop %%rdx"));
    EQ(T.r.rcx, F_IF | 2);
    EQ(T.r.rdx, 2);
}

TEST(flags, popf_cpl3)
{
    for (unsigned iopl = 0; iopl <= 3; iopl += 3) {
        context("iopl %u", iopl);
        struct regs r = regs_for(3);
        r.rflags = 2 | iopl << 12;
        r.rax = F_ARITH | F_DF | F_IOPL | F_NT | F_AC | F_ID | F_IF | 2;
        done(&r, SNIP("push %%rax\n\tpopfq\n\tpushfq\n\tpop %%rcx"));
        u64 want = F_ARITH | F_DF | F_NT | F_AC | F_ID | 2 | iopl << 12 | (iopl == 3 ? F_IF : 0);
        EQ(T.r.rcx, want);
        /* and clearing: IOPL stays, IF only with IOPL 3 */
        r.rflags = F_IF | 2 | iopl << 12;
        r.rax = 2;
        done(&r, SNIP("push %%rax\n\tpopfq\n\tpushfq\n\tpop %%rcx"));
        EQ(T.r.rcx, 2 | iopl << 12 | (iopl == 3 ? 0 : F_IF));
    }
}

TEST(flags, popf_16bit)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rflags = F_ID | F_AC | 2;
        r.rax = F_CF | F_OF | F_NT | 2;
        u64 sp = r.rsp;
        done(&r, SNIP("pushw %%ax\n\tpopfw\n\tmov %%rsp, %%rdx\n\tpushfw\n\tpopw %%cx\n\tpushfq\n\t"
                      "pop %%rsi"));
        EQ(T.r.rdx, sp);
        EQ(T.r.rcx & 0xffff, F_CF | F_OF | F_NT | 2);
        EQ(T.r.rsi, F_CF | F_OF | F_NT | F_ID | F_AC | 2); /* the upper half is unchanged */
    }
}

TEST(flags, cli_sti_iopl)
{
    struct regs r = regs_for(3);
    r.rflags = 2 | F_IOPL;
    done(&r, SNIP("sti\n\tpushfq\n\tpop %%rax\n\tcli\n\tpushfq\n\tpop %%rcx"));
    EQ(T.r.rax, 2 | F_IOPL | F_IF);
    EQ(T.r.rcx, 2 | F_IOPL);
    for (u64 iopl = 0; iopl < 3; iopl++) {
        context("iopl %lu", iopl);
        r.rflags = 2 | iopl << 12;
        fault(&r, SNIP("cli"), GP, 0);
        fault(&r, SNIP("sti"), GP, 0);
    }
}

TEST(flags, arithmetic_survives)
{
    /* Flags are live across memory accesses of every form, calls and privileged instructions. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        r.r10 = r.rbx - 8, r.r11 = 1;
        for (u64 f = 0; f < 64; f++) {
            u64 flags = 2 | (f & 1 ? F_CF : 0) | (f & 2 ? F_PF : 0) | (f & 4 ? F_AF : 0) |
                        (f & 8 ? F_ZF : 0) | (f & 16 ? F_SF : 0) | (f & 32 ? F_OF : 0);
            r.rax = flags;
            done(&r,
                 SNIP("push %%rax\n\tpopfq\n\t"
                      "mov (%%rbx), %%rcx\n\tmov %%rcx, 8(%%rbx)\n\tmov (%%r10,%%r11,8), %%rdx\n\t"
                      "push %%rdx\n\tpop %%rdx\n\tlea 3(%%rdx,%%rcx,4), %%rsi\n\t"
                      "movups (%%rbx), %%xmm0\n\tmovups %%xmm0, 16(%%rbx)\n\t"
                      "xchg %%r12, 24(%%rbx)\n\tmovzbl (%%rbx), %%r10d\n\tnot %%r11\n\t"
                      "call 1f\n\tjmp 2f\n1: ret\n2: mov $5, %%ecx\n3: loop 3b\n\t"
                      "lea 4f(%%rip), %%rdi\n\tjmp *%%rdi\n4: mov %%cs, %%r9d\n\tcld\n\t"
                      "pushfq\n\tpop %%rax"));
            EQ(T.r.rax, flags);
        }
    }
}

/* -- Descriptor queries
 * --------------------------------------------------------------------------*/

static const struct {
    u64 desc;
    u8 lar0, lar3, lsl0, lsl3, verr0, verr3, verw0, verw3; /* expected ZF */
    u32 limit;
} queries[] = {
    {DESC(0, 0xfffff, 0x9b, 0xa), 1, 0, 1, 0, 1, 0, 0, 0, 0xffffffff}, /* kernel code */
    {DESC(0, 0x12345, 0x93, 0x4), 1, 0, 1, 0, 1, 0, 1, 0, 0x12345},    /* kernel data, bytes */
    {DESC(0, 0x12345, 0xf3, 0xc), 1, 1, 1, 1, 1, 1, 1, 1, 0x12345fff}, /* user data, pages */
    {DESC(0, 0xfffff, 0xf1, 0xc), 1, 1, 1, 1, 1, 1, 0, 0, 0xffffffff}, /* read-only */
    {DESC(0, 0xfffff, 0xf9, 0xa), 1, 1, 1, 1, 0, 0, 0, 0, 0xffffffff}, /* execute-only */
    {DESC(0, 0xfffff, 0x9f, 0xa), 1, 1, 1, 1, 1, 1, 0, 0, 0xffffffff}, /* conforming code, DPL 0 */
    {DESC(0, 0xfffff, 0x73, 0xc), 1, 1, 1, 1, 1, 1, 1, 1, 0xffffffff}, /* not present */
    {DESC(0, 0x67, 0xe9, 0), 1, 1, 1, 1, 0, 0, 0, 0, 0x67},            /* TSS, available */
    {DESC(0, 0x67, 0xe2, 0), 1, 1, 1, 1, 0, 0, 0, 0, 0x67},            /* LDT */
    {DESC(0, 0, 0xec, 0), 1, 1, 0, 0, 0, 0, 0, 0, 0},                  /* call gate */
    {DESC(0, 0, 0xee, 0), 0, 0, 0, 0, 0, 0, 0, 0, 0},                  /* interrupt gate */
    {DESC(0, 0, 0xe0, 0), 0, 0, 0, 0, 0, 0, 0, 0, 0},                  /* type 0 */
    {DESC(0, 0xffff, 0xe1, 0), 0, 0, 0, 0, 0, 0, 0, 0, 0},             /* 16-bit TSS */
};

TEST(query, lar_lsl_verr_verw)
{
    TCG_SKIP("LAR and LSL accept types that are invalid in long mode");
    for (unsigned i = 0; i < sizeof(queries) / sizeof(queries[0]); i++) {
        gdt[SEL_FREE / 8] = queries[i].desc;
        gdt[SEL_FREE / 8 + 1] = 0;
        for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
            struct regs r = regs_for(cpl);
            context("descriptor %u, cpl %u", i, cpl);
            r.rax = SEL_FREE | cpl;
            r.rcx = 0x1234;
            done(&r,
                 SNIP("lar %%eax, %%ecx\n\tsetz %%dl\n\tmov $0x5678, %%r8d\n\tlsl %%eax, %%r8d\n\t"
                      "setz %%bl\n\tverr %%ax\n\tsetz %%sil\n\tverw %%ax\n\tsetz %%dil\n\t"
                      "mov $-1, %%r10\n\tmov %%rax, %%r11\n\tlar %%r11w, %%r10\n\t"
                      "mov $-1, %%r12\n\tlsl %%r11w, %%r12"));
            u8 lar = cpl ? queries[i].lar3 : queries[i].lar0;
            u8 lsl = cpl ? queries[i].lsl3 : queries[i].lsl0;
            EQ(T.r.rdx & 0xff, lar);
            u32 rights = (u32)(queries[i].desc >> 32) & 0x00ffff00;
            EQ(T.r.rcx & ~0xf0000ul, lar ? rights & ~0xf0000u : 0x1234);
            EQ(T.r.r10 & ~0xf0000ul, lar ? rights & ~0xf0000u : ~0xf0000ul);
            EQ(T.r.rbx & 0xff, lsl);
            EQ(T.r.r8, lsl ? queries[i].limit : 0x5678);
            EQ(T.r.r12, lsl ? queries[i].limit : ~0ul);
            EQ(T.r.rsi & 0xff, cpl ? queries[i].verr3 : queries[i].verr0);
            EQ(T.r.rdi & 0xff, cpl ? queries[i].verw3 : queries[i].verw0);
        }
    }
}

TEST(query, bad_selectors)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        static const u16 sels[] = {0, 3, 0xfff8, 0x1004};
        for (unsigned i = 0; i < 4; i++) {
            r.rax = sels[i];
            r.rcx = r.rdx = 77;
            r.rflags |= F_ZF | F_CF;
            done(&r, SNIP("lar %%eax, %%ecx\n\tsetz %%bl\n\tlsl %%eax, %%edx\n\tsetz %%sil\n\t"
                          "verr %%ax\n\tsetz %%dil\n\tverw %%ax\n\tsetz %%r10b\n\tsetc %%r11b"));
            EQ((T.r.rbx | T.r.rsi | T.r.rdi | T.r.r10) & 0xff, 0);
            EQ(T.r.r11 & 0xff, 1);
            EQ(T.r.rcx, 77);
            EQ(T.r.rdx, 77);
        }
    }
}

TEST(query, memory_operand)
{
    map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = UVA + 4096 - 2;
        r.r11 = 0;
        *(u16 *)(pte_at(UVA, 1)[0] & PG_ADDR) = 0;
        ((u16 *)(pte_at(UVA, 1)[0] & PG_ADDR))[2047] = (u16)(SEL_UDATA | cpl);
        /* reads two bytes only */
        done(&r,
             SNIP("lar (%%rbx), %%rcx\n\tsetz %%al\n\tlsl (%%rbx,%%r11), %%r10d\n\tverw (%%rbx)\n\t"
                  "setz %%dl"));
        EQ(T.r.rax & 0xff, 1);
        EQ(T.r.rcx & 0xff00, 0xf300);
        EQ(T.r.r10, 0xffffffff);
        EQ(T.r.rdx & 0xff, 1);
        r.rbx += 2;
        fault(&r, SNIP("lar (%%rbx), %%rcx"), PF, cpl ? PF_U : 0);
        fault(&r, SNIP("verr (%%rbx)"), PF, cpl ? PF_U : 0);
    }
}

/* -- Segment registers
 * ---------------------------------------------------------------------------*/

TEST(segment, read_selectors)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        memset(buffer, 0xee, 32);
        done(&r,
             SNIP("mov %%cs, %%eax\n\tmov %%ss, %%rcx\n\tmov %%cs, %%dx\n\tmov %%cs, (%%rbx)\n\t"
                  "mov %%ss, %%r10d\n\tmov %%cs, %%r11w\n\tpush %%fs\n\tpop %%rsi\n\t"
                  "push %%gs\n\tpop %%gs\n\tpush %%fs\n\tpop %%fs"));
        EQ(T.r.rax, r.cs);
        EQ(T.r.rcx, r.ss);
        EQ(T.r.rdx, (r.rdx & ~0xfffful) | r.cs);
        EQ(*(u32 *)buffer, 0xeeee0000 | r.cs);
        EQ(T.r.r10, r.ss);
        EQ(T.r.r11, (r.r11 & ~0xfffful) | r.cs);
        EQ(T.r.rsi & 0xffff, 0);
        EQ(T.r.rsp, r.rsp);
    }
}

TEST(segment, fs_gs_base_from_descriptor)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u64 base = at_cpl(cpl, buffer);
        gdt[SEL_FREE / 8] = DESC(base, 0xfffff, 0xf3, 0xc);
        for (unsigned i = 0; i < 64; i++)
            buffer[i] = (u8)(i + 1);
        r.rax = SEL_FREE | 3;
        r.rbx = 4, r.r11 = 8, r.r10 = 2;
        done(&r,
             SNIP("mov %%eax, %%fs\n\tmov %%eax, %%gs\n\tmov %%fs:0, %%ecx\n\t"
                  "mov %%gs:(%%rbx), %%edx\n\tmov %%fs:4(%%rbx,%%r10,2), %%esi\n\t"
                  "movb $0x77, %%gs:(%%r11)\n\tmov %%fs:(%%r11), %%dil\n\tlea 5(%%rbx), %%r8\n\t"
                  "addl $0x10, %%gs:16\n\tmov %%fs:(%%rbx,%%r11), %%r10b\n\tpush %%fs:(%%r11)\n\t"
                  "pop %%r12"));
        EQ(T.r.rcx, 0x04030201);
        EQ(T.r.rdx, 0x08070605);
        EQ(T.r.rsi, 0x100f0e0d);
        EQ(T.r.rdi & 0xff, 0x77);
        EQ(T.r.r8, 9);
        EQ(*(u32 *)(buffer + 16), 0x14131221);
        EQ(T.r.r10 & 0xff, 13);
        EQ(T.r.r12 & 0xffff, 0x0a77);
        EQ(rdmsr(MSR_FS_BASE), base);
        EQ(rdmsr(MSR_GS_BASE), base);
    }
}

TEST(segment, fs_base_wraps)
{
    /* base + offset wraps modulo 2^64; a 67h address is truncated before the base is added. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        buffer[100] = 0x42;
        wrmsr(MSR_FS_BASE, at_cpl(cpl, buffer) + 200);
        r.rbx = (u64)-100;
        done(&r, SNIP("movzbl %%fs:(%%rbx), %%eax\n\tmovzbl %%fs:-100, %%ecx"));
        EQ(T.r.rax, 0x42);
        EQ(T.r.rcx, 0x42);
        wrmsr(MSR_FS_BASE, at_cpl(cpl, buffer));
        r.r11 = 0xdeadbeef00000064;
        done(&r, SNIP("movzbl %%fs:(%%r11d), %%eax"));
        EQ(T.r.rax, 0x42);
        wrmsr(MSR_FS_BASE, 0);
    }
}

TEST(segment, load_far_pointers)
{
    gdt[SEL_FREE / 8] = DESC(0x1000, 0xfffff, 0xf3, 0xc);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, buffer);
        *(u64 *)buffer = 0x1122334455667788;
        *(u16 *)(buffer + 8) = SEL_FREE | 3;
        *(u16 *)(buffer + 4) = 0;
        done(&r, SNIP("lgs (%%rbx), %%eax\n\tmov %%gs, %%ecx\n\tmov %%gs:-0x1000(%%rbx), %%edx"));
        EQ(T.r.rax, 0x55667788);
        EQ(T.r.rcx, 0);
        *(u16 *)(buffer + 4) = SEL_FREE | 3;
        done(&r, SNIP("lfs (%%rbx), %%r11d\n\tmov %%fs, %%ecx\n\tmov %%fs:-0x1000(%%rbx), %%edx"));
        EQ(T.r.r11, 0x55667788);
        EQ(T.r.rcx, SEL_FREE | 3);
        EQ(T.r.rdx, 0x55667788);
    }
}

TEST(segment, ds_es_ignored_in_64bit)
{
    /* DS, ES, SS: base and limit play no part, even of a small or null segment. */
    gdt[SEL_FREE / 8] = DESC(0x12340000, 0, 0xf3, 0x4);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rax = SEL_FREE | 3;
        r.rbx = at_cpl(cpl, buffer);
        r.rsi = r.rbx, r.rdi = r.rbx + 8;
        *(u64 *)buffer = 0x42;
        done(
            &r,
            SNIP("mov %%eax, %%ds\n\tmov %%eax, %%es\n\tmov (%%rbx), %%rcx\n\tmovsq\n\t"
                 "xor %%eax, %%eax\n\tmov %%eax, %%ds\n\tmov %%eax, %%es\n\tmov -8(%%rdi), %%rdx"));
        EQ(T.r.rcx, 0x42);
        EQ(T.r.rdx, 0x42);
    }
}

/* -- Far transfers
 * -------------------------------------------------------------------------------*/

TEST(far, jump_call_return_same_level)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *target;
        u8 *code = SNIP_AT(target, "rex.w ljmp *(%%rbx)\n\tud2\n"
                                   "662: mov %%cs, %%eax\n\tlea 16(%%rbx), %%r11\n\t"
                                   "rex.w lcall *(%%r11)\n1: mov $7, %%edx\n\tint $0x80\n"
                                   "2: mov (%%rsp), %%rcx\n\tmov 8(%%rsp), %%rsi\n\tlretq");
        r.rbx = at_cpl(cpl, buffer);
        *(u64 *)buffer = at_cpl(cpl, target);
        *(u16 *)(buffer + 8) = (u16)r.cs;
        u8 *sub = SNIP("mov (%%rsp), %%rcx\n\tmov 8(%%rsp), %%rsi\n\tlretq");
        *(u64 *)(buffer + 16) = at_cpl(cpl, sub);
        *(u16 *)(buffer + 24) = (u16)r.cs;
        done(&r, code);
        EQ(T.r.rax, r.cs);
        EQ(T.r.rdx, 7);
        EQ(T.r.rcx, at_cpl(cpl, target) + 2 + 4 + 3);
        EQ(T.r.rsi & 0xffff, r.cs);
        EQ(T.r.rsp, r.rsp);
        /* LRET with an immediate releases more. */
        code = SNIP("push $0x55\n\tpush %%rax\n\tlea 1f(%%rip), %%rcx\n\tpush %%rcx\n\tlretq $8\n\t"
                    "ud2\n1:");
        r.rax = r.cs;
        done(&r, code);
        EQ(T.r.rsp, r.rsp);
        /* 32-bit far return */
        code = SNIP("lea 1f(%%rip), %%rcx\n\tsub $8, %%rsp\n\tmov %%ecx, (%%rsp)\n\t"
                    "mov %%eax, 4(%%rsp)\n\tlretl\n\tud2\n1:");
        done(&r, code);
        EQ(T.r.rsp, r.rsp);
    }
}

TEST(far, return_to_outer_level)
{
    struct regs r = regs_for(0);
    u8 *user = SNIP("mov %%cs, %%eax\n\tmov %%ss, %%ecx\n\tmov %%rsp, %%rdx\n\tmov %%ds, %%esi");
    u64 usp = at_cpl(3, run_stack + 4096);
    u64 *sp = (u64 *)r.rsp;
    sp[0] = at_cpl(3, user);
    sp[1] = SEL_UCODE | 3;
    sp[2] = usp;
    sp[3] = SEL_UDATA | 3;
    run_at(&r, SNIP("lretq"));
    expect(DONE, 0);
    EQ(T.r.rax, SEL_UCODE | 3);
    EQ(T.r.rcx, SEL_UDATA | 3);
    EQ(T.r.rdx, usp);
    EQ(T.r.rsi, 0); /* DS held a DPL 0 selector: nulled */
}

static void call_gate(unsigned index, void *target, unsigned sel, unsigned dpl, bool present)
{
    u64 a = (u64)target;
    gdt[index] = (a & 0xffff) | (u64)sel << 16 |
                 (u64)(0x0c | dpl << 5 | (present ? 0x80 : 0)) << 40 | (a >> 16 & 0xffff) << 48;
    gdt[index + 1] = a >> 32;
}

TEST(far, call_gate)
{
    u8 *kernel = SNIP("mov %%cs, %%eax\n\tmov %%rsp, %%rcx\n\tmov (%%rsp), %%rdx\n\t"
                      "mov 8(%%rsp), %%rsi\n\tmov 16(%%rsp), %%rdi\n\tmov 24(%%rsp), %%r8\n\t"
                      "mov %%ss, %%r9d");
    call_gate(SEL_FREE / 8, kernel, SEL_KCODE, 3, true);
    struct regs r = regs_for(3);
    r.rbx = at_cpl(3, buffer);
    *(u64 *)buffer = 0x1234; /* the offset is ignored */
    *(u16 *)(buffer + 8) = SEL_FREE | 3;
    u8 *code = SNIP("rex.w lcall *(%%rbx)");
    run_at(&r, code);
    expect(DONE, 0);
    EQ(T.r.rax, SEL_KCODE);
    EQ(T.r.rcx, tss.rsp[0] - 32);
    EQ(T.r.rdx, at_cpl(3, code) + 3);
    EQ(T.r.rsi, SEL_UCODE | 3);
    EQ(T.r.rdi, r.rsp);
    EQ(T.r.r8, SEL_UDATA | 3);
    EQ(T.r.r9, 0);
    /* and back by LRET */
    u8 *gate2 = SNIP("mov $0x99, %%r12d\n\tlretq");
    call_gate(SEL_FREE / 8, gate2, SEL_KCODE, 3, true);
    done(&r, SNIP("rex.w lcall *(%%rbx)\n\tmov %%cs, %%eax"));
    EQ(T.r.rax, SEL_UCODE | 3);
    EQ(T.r.r12, 0x99);
    EQ(T.r.rsp, r.rsp);
    /* faults */
    call_gate(SEL_FREE / 8, kernel, SEL_KCODE, 0, true);
    fault(&r, code, GP, SEL_FREE); /* DPL < CPL */
    call_gate(SEL_FREE / 8, kernel, SEL_KCODE, 3, false);
    fault(&r, code, NP, SEL_FREE);
    call_gate(SEL_FREE / 8, kernel, SEL_K32, 3, true);
    if (!on_tcg)
        fault(&r, code, GP, SEL_K32); /* not 64-bit code */
    call_gate(SEL_FREE / 8, kernel, SEL_KCODE, 3, true);
    fault(&r, SNIP("rex.w ljmp *(%%rbx)"), GP, SEL_KCODE); /* JMP may not raise privilege */
    /* from CPL 0: no stack switch */
    struct regs k = regs_for(0);
    k.rbx = (u64)buffer;
    run_at(&k, code);
    expect(DONE, 0);
    EQ(T.r.rcx, k.rsp - 16);
}

/* -- IRET
 * ----------------------------------------------------------------------------------------*/

TEST(iret, same_level)
{
    struct regs r = regs_for(0);
    r.rax = SEL_KCODE, r.rcx = SEL_KDATA, r.rdx = F_CF | F_ZF | F_DF | F_AC | F_ID | F_IOPL | 2;
    u64 sp = (u64)run_stack + 4096 + 5;
    r.rsi = sp;
    done(&r, SNIP("push %%rcx\n\tpush %%rsi\n\tpush %%rdx\n\tpush %%rax\n\tlea 1f(%%rip), %%r10\n\t"
                  "push %%r10\n\tiretq\n\tud2\n1: mov %%rsp, %%rdi\n\tmov %%rsi, %%rsp\n\t"
                  "pushfq\n\tpop %%r8\n\tmov %%ss, %%r9d"));
    EQ(T.r.rdi, sp);
    EQ(T.r.r8, r.rdx);
    EQ(T.r.r9, SEL_KDATA);
}

TEST(iret, null_ss_at_cpl0)
{
    struct regs r = regs_for(0);
    r.rax = SEL_KCODE, r.rcx = 0, r.rdx = 2;
    r.rsi = r.rsp;
    done(&r, SNIP("push %%rcx\n\tpush %%rsi\n\tpush %%rdx\n\tpush %%rax\n\tlea 1f(%%rip), %%r10\n\t"
                  "push %%r10\n\tiretq\n\tud2\n1: mov %%ss, %%r9d\n\tpush %%r9\n\tpop %%r8"));
    EQ(T.r.r9, 0);
}

TEST(iret, to_outer_level)
{
    struct regs r = regs_for(0);
    u8 *user =
        SNIP("mov %%cs, %%eax\n\tmov %%ss, %%ecx\n\tpushfq\n\tpop %%rdx\n\tmov %%ds, %%esi\n\t"
             "mov %%es, %%edi\n\tmov %%fs, %%r8d\n\tmov %%gs, %%r9d");
    u64 *sp = (u64 *)r.rsp;
    sp[0] = at_cpl(3, user);
    sp[1] = SEL_UCODE | 3;
    sp[2] = F_IF | F_CF | F_AC | F_IOPL | 2;
    sp[3] = at_cpl(3, run_stack + 4096);
    sp[4] = SEL_UDATA | 3;
    r.rax = SEL_KDATA, r.rcx = SEL_UDATA | 3;
    run_at(
        &r,
        SNIP("mov %%eax, %%ds\n\tmov %%ecx, %%es\n\tmov %%eax, %%fs\n\tmov %%ecx, %%gs\n\tiretq"));
    expect(DONE, 0);
    EQ(T.r.rax, SEL_UCODE | 3);
    EQ(T.r.rcx, SEL_UDATA | 3);
    EQ(T.r.rdx, F_IF | F_CF | F_AC | F_IOPL | 2);
    EQ(T.r.rsi, 0);
    EQ(T.r.rdi, SEL_UDATA | 3);
    EQ(T.r.r8, 0);
    EQ(T.r.r9, SEL_UDATA | 3);
}

TEST(iret, faults)
{
    struct regs r = regs_for(0);
    u64 *sp = (u64 *)r.rsp;
    u8 *iretq = SNIP("iretq");
    u64 good[5] = {(u64)iretq, SEL_KCODE, 2, r.rsp, SEL_KDATA};
    static const struct {
        u8 slot;
        u64 value, error;
    } cases[] = {
        {0, NONCANON, 0},                  /* RIP */
        {1, 0, 0},                         /* null CS */
        {1, SEL_KDATA, SEL_KDATA},         /* CS is data */
        {1, SEL_UCODE, SEL_UCODE},         /* RPL != DPL */
        {1, 0x1000, 0x1000},               /* beyond the limit */
        {4, SEL_UDATA | 3, SEL_UDATA | 0}, /* SS of another level */
        {4, SEL_KCODE, SEL_KCODE},         /* SS is code */
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (i == 0 && on_tcg)
            continue; /* faults at the target */
        context("case %u", i);
        memcpy(sp, good, sizeof(good));
        sp[cases[i].slot] = cases[i].value;
        fault(&r, iretq, GP, cases[i].error);
    }
    context("NT");
    memcpy(sp, good, sizeof(good));
    r.rflags |= F_NT;
    fault(&r, iretq, GP, 0);
    r.rflags &= ~(u64)F_NT;
    context("CPL 3 to CPL 0");
    struct regs u = regs_for(3);
    u64 *usp = (u64 *)(u.rsp - USER_OFFSET);
    memcpy(usp, good, sizeof(good));
    if (!on_tcg)
        fault(&u, iretq, GP, SEL_KCODE);
}

TEST(iret, cpl3_cannot_change_iopl_and_if)
{
    struct regs r = regs_for(3);
    if (on_tcg)
        write_cr4(default_cr4);
    r.rax = SEL_UCODE | 3, r.rcx = SEL_UDATA | 3, r.rdx = F_IF | F_IOPL | F_CF | F_NT | 2;
    r.rsi = r.rsp;
    done(&r, SNIP("push %%rcx\n\tpush %%rsi\n\tpush %%rdx\n\tpush %%rax\n\tlea 1f(%%rip), %%r10\n\t"
                  "push %%r10\n\tiretq\n\tud2\n1: pushfq\n\tpop %%r8"));
    EQ(T.r.r8, F_CF | F_NT | 2);
}

TEST(iret, sets_tf_for_the_next_instruction)
{
    /* TF taken from the frame traps after the first instruction at the target. */
    struct regs r = regs_for(0);
    r.rax = SEL_KCODE, r.rcx = SEL_KDATA, r.rdx = F_TF | 2, r.rsi = r.rsp;
    u8 *at;
    u8 *code = SNIP_AT(at, "push %%rcx\n\tpush %%rsi\n\tpush %%rdx\n\tpush %%rax\n\t"
                           "lea 662f(%%rip), %%r10\n\tpush %%r10\n\tiretq\n\tud2\n662: nop\n\tnop");
    run_at(&r, code);
    expect(DB, 0);
    EQ(trap_rip(), (u64)at + 1);
}

/* -- SYSCALL, SYSRET, SYSENTER, SYSEXIT
 * ----------------------------------------------------------*/

TEST(syscall, entry)
{
    u8 *entry = SNIP("mov %%cs, %%eax\n\tmov %%ss, %%edx\n\tpushfq\n\tpop %%rsi");
    struct regs r = regs_for(3);
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_FMASK, F_IF | F_DF | F_CF | F_TF);
    r.rflags = F_IF | F_DF | F_CF | F_ZF | F_OF | F_AC | 2;
    r.rsp = at_cpl(0, run_stack + 4096); /* stays: SYSCALL does not load RSP */
    u8 *code = SNIP("syscall");
    run_at(&r, code);
    expect(DONE, 0);
    EQ(T.r.rax, SEL_KCODE);
    EQ(T.r.rdx, SEL_KCODE + 8);
    EQ(T.r.rcx, at_cpl(3, code) + 2);
    EQ(T.r.r11, r.rflags);
    u64 lost = on_tcg ? F_ARITH : 0; /* TCG clears the arithmetic flags */
    EQ(T.r.rsi & ~lost, r.rflags & ~(u64)(F_IF | F_DF | F_CF | F_TF) & ~lost);
    EQ(T.r.r10, r.r10);
    EQ(T.r.rsp, r.rsp);
    /* from CPL 0 */
    struct regs k = regs_for(0);
    run_at(&k, code);
    expect(DONE, 0);
    EQ(T.r.rcx, (u64)code + 2);
}

TEST(syscall, round_trip)
{
    u8 *entry = SNIP("mov $0x77, %%eax\n\tmov %%rcx, %%rbx\n\tsysretq");
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_FMASK, F_IF | F_DF | F_TF | F_AC | F_NT);
    struct regs r = regs_for(3);
    r.rflags = F_IF | F_CF | F_AC | F_DF | F_ID | 2;
    done(&r, SNIP("syscall\n\tmov %%cs, %%edx\n\tmov %%ss, %%esi\n\tpushfq\n\tpop %%rdi"));
    EQ(T.r.rax, 0x77);
    EQ(T.r.rdx, SEL_UCODE32 + 16 + 3);
    EQ(T.r.rsi, SEL_UCODE32 + 8 + 3);
    EQ(T.r.rdi, r.rflags);
    EQ(T.r.rbx, T.r.rcx);
    EQ(T.r.rsp, r.rsp);
    /* a thousand times in a loop */
    r.r12 = 0, r.r13 = 1000;
    done(&r, SNIP("1: syscall\n\tadd %%rax, %%r12\n\tdec %%r13\n\tjnz 1b"));
    EQ(T.r.r12, 0x77 * 1000);
}

TEST(syscall, sysret_flags)
{
    /* RFLAGS = (R11 & 3C7FD7H) | 2: RF and VM are cleared, IOPL and IF loaded. */
    u8 *entry = SNIP("mov %%rdx, %%r11\n\tsysretq");
    wrmsr(MSR_LSTAR, (u64)entry);
    struct regs r = regs_for(3);
    r.rdx = ~0ul & ~(u64)(F_TF | F_VIP | F_VIF);
    done(&r, SNIP("syscall\n\tpushfq\n\tpop %%rdi"));
    u64 want = F_ARITH | F_IF | F_DF | F_IOPL | F_NT | F_AC | F_ID | 2;
    EQ(T.r.rdi & ~(u64)F_RF, want);
}

TEST(syscall, efer_sce)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1ul);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        FAULTC(r, "syscall", UD, 0);
    }
    struct regs r = regs_for(0);
    unsigned cpl = 0;
    FAULTC(r, "sysretq", UD, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
}

TEST(syscall, sysret_noncanonical)
{
    TCG_SKIP("SYSRET to a non-canonical address is not checked (as on AMD)");
    struct regs r = regs_for(0);
    r.rcx = NONCANON;
    r.r11 = 2;
    fault(&r, SNIP("sysretq"), GP, 0);
    EQ(T.r.cs, SEL_KCODE);
}

TEST(syscall, tf_masked)
{
    /* With TF in FMASK a single-stepped SYSCALL traps at its target with TF clear in flags. */
    u8 *entry = SNIP("nop\n\tnop");
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_FMASK, F_TF | F_IF);
    struct regs r = regs_for(3);
    r.rflags |= F_TF;
    run_at(&r, SNIP("syscall"));
    if (T.vector == DB) { /* Intel: no trap, AMD: trap at the target */
        EQ(T.r.rip, (u64)entry);
        EQ(T.r.cs, SEL_KCODE);
    } else {
        expect(DONE, 0);
    }
}

TEST(sysenter, round_trip)
{
    if (!feat.sysenter)
        SKIP("no SYSENTER in 64-bit mode (AMD)");
    u8 *entry =
        SNIP("mov %%rsp, %%rax\n\tmov %%cs, %%ebx\n\tmov %%ss, %%esi\n\tpushfq\n\tpop %%r8\n\t"
             "rex.w sysexit");
    wrmsr(MSR_SYSENTER_CS, SEL_SYSENTER);
    wrmsr(MSR_SYSENTER_EIP, (u64)entry);
    wrmsr(MSR_SYSENTER_ESP, (u64)run_stack + 4096);
    struct regs r = regs_for(3);
    r.rflags |= F_IF | F_CF;
    r.rcx = r.rsp - 64; /* SYSEXIT loads RSP from RCX and RIP from RDX */
    u8 *at;
    u8 *code = SNIP_AT(at, "lea 662f(%%rip), %%rdx\n\tsysenter\n\tud2\n"
                           "662: mov %%cs, %%r9d\n\tmov %%ss, %%r10d");
    done(&r, code);
    EQ(T.r.rax, (u64)run_stack + 4096);
    EQ(T.r.rbx, SEL_SYSENTER);
    EQ(T.r.rsi, SEL_SYSENTER + 8);
    EQ(T.r.r8 & F_IF, 0);
    EQ(T.r.r9, (SEL_SYSENTER + 32) | 3);
    EQ(T.r.r10, (SEL_SYSENTER + 40) | 3);
    EQ(T.r.rsp, r.rsp - 64);
    wrmsr(MSR_SYSENTER_CS, 0);
    fault(&r, SNIP("sysenter"), GP, 0);
    struct regs k = regs_for(0);
    fault(&k, SNIP("rex.w sysexit"), GP, 0);
}

/* -- GS and FS bases
 * -----------------------------------------------------------------------------*/

TEST(gsbase, swapgs)
{
    buffer[0] = 11;
    buffer[64] = 22;
    wrmsr(MSR_GS_BASE, (u64)buffer);
    wrmsr(MSR_KGS, (u64)buffer + 64);
    struct regs r = regs_for(0);
    done(&r, SNIP("movzbl %%gs:0, %%eax\n\tswapgs\n\tmovzbl %%gs:0, %%ecx\n\tswapgs\n\t"
                  "movzbl %%gs:0, %%edx\n\tswapgs"));
    EQ(T.r.rax, 11);
    EQ(T.r.rcx, 22);
    EQ(T.r.rdx, 11);
    EQ(rdmsr(MSR_GS_BASE), (u64)buffer + 64);
    EQ(rdmsr(MSR_KGS), (u64)buffer);
}

TEST(gsbase, fsgsbase_instructions)
{
    if (!feat.fsgsbase)
        SKIP("no FSGSBASE");
    write_cr4(default_cr4 | CR4_FSGSBASE);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rax = at_cpl(cpl, buffer), r.rcx = at_cpl(cpl, buffer) + 8;
        *(u64 *)buffer = 0x1111;
        *(u64 *)(buffer + 8) = 0x2222;
        done(&r,
             SNIP("wrfsbase %%rax\n\twrgsbase %%rcx\n\tmov %%fs:0, %%rdx\n\tmov %%gs:0, %%rsi\n\t"
                  "rdfsbase %%r10\n\trdgsbase %%r11\n\trdgsbase %%edi"));
        EQ(T.r.rdx, 0x1111);
        EQ(T.r.rsi, 0x2222);
        EQ(T.r.r10, r.rax);
        EQ(T.r.r11, r.rcx);
        EQ(T.r.rdi, (u32)r.rcx);
        EQ(rdmsr(MSR_FS_BASE), r.rax);
        r.r11 = 0xdeadbeef00000000 | (u32)r.rax;
        done(&r, SNIP("wrfsbase %%r11d\n\trdfsbase %%rdx"));
        EQ(T.r.rdx, (u32)r.rax);
        r.rax = NONCANON;
        if (!on_tcg) {
            fault(&r, SNIP("wrfsbase %%rax"), GP, 0);
            fault(&r, SNIP("wrgsbase %%rax"), GP, 0);
        }
    }
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_GS_BASE, 0);
}

/* -- Control and debug registers
 * -----------------------------------------------------------------*/

TEST(cr, round_trips)
{
    static const u32 bits0[] = {CR0_MP, CR0_EM, CR0_TS, CR0_NE, CR0_WP, CR0_AM};
    for (unsigned i = 0; i < 6; i++) {
        write_cr0(DEFAULT_CR0 ^ bits0[i]);
        EQ(read_cr0(), DEFAULT_CR0 ^ bits0[i]);
        write_cr0(DEFAULT_CR0);
    }
    EQ(read_cr0(), DEFAULT_CR0);
    const u32 bits4[] = {CR4_TSD,
                         CR4_DE,
                         CR4_PGE,
                         CR4_OSFXSR,
                         CR4_OSXMMEXCPT,
                         feat.umip ? CR4_UMIP : 0,
                         feat.fsgsbase ? CR4_FSGSBASE : 0,
                         feat.smep ? CR4_SMEP : 0,
                         feat.smap ? CR4_SMAP : 0,
                         feat.pcid ? CR4_PCIDE : 0};
    for (unsigned i = 0; i < sizeof(bits4) / sizeof(bits4[0]); i++) {
        write_cr4(default_cr4 ^ bits4[i]);
        EQ(read_cr4(), default_cr4 ^ bits4[i]);
        write_cr4(default_cr4);
    }
    asm volatile("mov %0, %%cr2" ::"r"(0x123456789abcdef0ul));
    EQ(read_cr2(), 0x123456789abcdef0);
    write_cr3((u64)pml4 | PG_PCD);
    EQ(read_cr3(), (u64)pml4 | PG_PCD);
    write_cr3((u64)pml4);
    EQ(read_cr3(), (u64)pml4);
    for (u64 i = 0; i < 16; i++) {
        write_cr8(i);
        EQ(read_cr8(), i);
        EQ(apic_read(APIC_TPR), i << 4);
    }
    write_cr8(0);
    apic_write(APIC_TPR, 0x53);
    EQ(read_cr8(), 5);
    apic_write(APIC_TPR, 0);
}

TEST(cr, registers_as_operands)
{
    struct regs r = regs_for(0);
    done(&r, SNIP("mov %%cr0, %%r10\n\tmov %%cr4, %%r11\n\tmov %%cr3, %%r12\n\tmov %%r10, %%cr0\n\t"
                  "mov %%r11, %%cr4\n\tmov %%r12, %%cr3\n\tmov %%cr3, %%rsp"));
    EQ(T.r.r10, DEFAULT_CR0);
    EQ(T.r.r11, default_cr4);
    EQ(T.r.r12, (u64)pml4);
    EQ(T.r.rsp, (u64)pml4);
    /* mod is ignored, always a register */
    r = regs_for(0);
    done(&r, SNIP(".byte 0x0f, 0x20, 0x00\n\t.byte 0x0f, 0x20, 0x59"));
    EQ(T.r.rax, DEFAULT_CR0);
    EQ(T.r.rcx, (u64)pml4);
}

TEST(cr, lmsw_clts)
{
    struct regs r = regs_for(0);
    r.rax = 0xffff0000 | CR0_TS | CR0_MP; /* PE cannot be cleared, only bits 0-3 are loaded */
    done(&r, SNIP("lmsw %%ax\n\tmov %%cr0, %%rcx\n\tclts\n\tmov %%cr0, %%rdx"));
    EQ(T.r.rcx, DEFAULT_CR0 | CR0_TS);
    EQ(T.r.rdx, DEFAULT_CR0);
    r.rbx = (u64)buffer;
    *(u16 *)buffer = CR0_EM;
    done(&r, SNIP("lmsw (%%rbx)\n\tmov %%cr0, %%rcx"));
    EQ(T.r.rcx, (DEFAULT_CR0 | CR0_EM) & ~CR0_MP);
    write_cr0(DEFAULT_CR0);
}

TEST(dr, round_trips)
{
    write_dr0(0x1122334455667788);
    write_dr1(0xffff800000000001);
    write_dr2(0x42);
    write_dr3(~0ul >> 17);
    EQ(read_dr0(), 0x1122334455667788);
    EQ(read_dr1(), 0xffff800000000001);
    EQ(read_dr2(), 0x42);
    EQ(read_dr3(), ~0ul >> 17);
    write_dr6(0);
    EQ(read_dr6() & ~0x10800ul, 0xfffe07f0); /* bus-lock and RTM bits are model-specific */
    write_dr6(0xffff0ff0);
    write_dr7(0);
    EQ(read_dr7(), 0x400);
    write_dr7(0x400);
    struct regs r = regs_for(0);
    done(&r, SNIP("mov %%dr0, %%r10\n\tmov %%dr7, %%r11\n\tmov %%r10, %%dr2\n\tmov %%dr2, %%rsp"));
    EQ(T.r.r10, 0x1122334455667788);
    EQ(T.r.r11, 0x400);
    EQ(T.r.rsp, 0x1122334455667788);
    for (unsigned i = 0; i < 4; i++) {
        write_dr0(0);
        write_dr1(0);
        write_dr2(0);
        write_dr3(0);
    }
}

/* -- Table registers
 * -----------------------------------------------------------------------------*/

TEST(tables, lgdt_lidt_faults)
{
    struct regs r = regs_for(0);
    unsigned cpl = 0;
    r.rbx = (u64)buffer;
    *(u16 *)buffer = 0xff;
    *(u64 *)(buffer + 2) = NONCANON;
    if (!on_tcg) {
        FAULTC(r, "lgdt (%%rbx)", GP, 0);
        FAULTC(r, "lidt (%%rbx)", GP, 0);
    }
    r.rbx = UVA;
    FAULTC(r, "lgdt (%%rbx)", PF, 0);
    struct dtr now;
    asm volatile("sgdt %0" : "=m"(now));
    EQ(now.base, (u64)gdt);
}

TEST(tables, ltr_lldt)
{
    struct regs r = regs_for(0);
    unsigned cpl = 0;
    r.rax = SEL_TSS; /* busy: it is loaded */
    FAULTC(r, "ltr %%ax", GP, SEL_TSS);
    r.rax = 0;
    if (!on_tcg) /* TCG loads it and aborts at the next stack switch */
        FAULTC(r, "ltr %%ax", GP, 0);
    r.rax = SEL_KDATA;
    FAULTC(r, "ltr %%ax", GP, SEL_KDATA);
    FAULTC(r, "lldt %%ax", GP, SEL_KDATA);
    r.rax = SEL_LDT + 4;
    FAULTC(r, "lldt %%ax", GP, SEL_LDT + 4);
    gdt[SEL_LDT / 8] &= ~(1ul << 47);
    r.rax = SEL_LDT;
    FAULTC(r, "lldt %%ax", NP, SEL_LDT);
    gdt[SEL_LDT / 8] |= 1ul << 47;
    /* LTR marks the descriptor busy */
    gdt[SEL_TSS / 8] &= ~(2ul << 40);
    r.rax = SEL_TSS;
    context("ltr");
    done(&r, SNIP("ltr %%ax"));
    EQ(gdt[SEL_TSS / 8] >> 40 & 0xf, 0xb);
    /* segments out of the LDT */
    ldt[1] = DESC((u64)buffer, 0xfffff, 0xf3, 0xc);
    buffer[5] = 0x99;
    r.rax = SEL_LDT, r.rcx = 8 + 4 + 3;
    context("lldt");
    done(&r, SNIP("lldt %%ax\n\tmov %%ecx, %%gs\n\tmovzbl %%gs:5, %%edx"));
    EQ(T.r.rdx, 0x99);
    asm volatile("lldt %w0" ::"r"(0));
    wrmsr(MSR_GS_BASE, 0);
}

/* -- CPUID, TSC, performance counters
 * -------------------------------------------------------------*/

TEST(cpuid, basics)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rax = 0xffffffff00000000, r.rcx = ~0ul;
        done(&r, SNIP("cpuid"));
        CHECK(T.r.rax >= 7 && T.r.rax < 0x100);
        EQ(T.r.rax >> 32 | T.r.rbx >> 32 | T.r.rcx >> 32 | T.r.rdx >> 32, 0);
        struct cpuid_regs c = cpuid(0, 0);
        EQ(T.r.rbx, c.ebx);
        EQ(T.r.rcx, c.ecx);
    }
}

TEST(cpuid, mirrors_cr4)
{
    if (feat.xsave) {
        EQ(cpuid(1, 0).ecx >> 27 & 1, 1);
        write_cr4(default_cr4 & ~CR4_OSXSAVE);
        EQ(cpuid(1, 0).ecx >> 27 & 1, 0);
        write_cr4(default_cr4);
        EQ(cpuid(1, 0).ecx >> 27 & 1, 1);
    }
    EQ(cpuid(1, 0).edx >> 9 & 1, 1); /* APIC */
    u64 base = rdmsr(MSR_APIC_BASE);
    CHECK(base & 0x800);
}

TEST(cpuid, asked_again)
{
    /* The second answer may come from somewhere else: it is the same, by leaf and, where that matters,
     * sub-leaf, and it touches no flag; it changes with what it depends on. */
    static const u32 leaves[] = {0,  1,  2,  4,   5,          7,          0xb,        0xd,        0x10, 0x11, 0x1f,
                                 15, 16, 33, 513, 0x40000000, 0x80000000, 0x80000001, 0x80000002, 0x80000008,
                                 0x7fffffff, 0xffffffff, 0x80000011};
    u8 *code = SNIP("push %%rbp\n\tpopf\n\tcpuid\n\tpushf\n\tpop %%r8");
    u8 *plain = SNIP("push %%rbp\n\tpopf\n\tmov %%rax, %%r9\n\tmov %%rcx, %%r10\n\tcpuid\n\t"
                     "mov %%rax, %%r12\n\tmov %%rbx, %%r13\n\tmov %%rcx, %%r14\n\tmov %%rdx, %%r15\n\t"
                     "mov %%r9, %%rax\n\tmov %%r10, %%rcx\n\tcpuid\n\tpushf\n\tpop %%r8");
    BOTH_CPLS
    {
        for (unsigned round = 0; round < 3; round++)
            for (unsigned i = 0; i < sizeof leaves / sizeof leaves[0]; i++)
                for (unsigned sub = 0; sub < 4; sub++) {
                    struct regs r = regs_for(cpl);
                    context("cpl %u, leaf 0x%x, %u", cpl, leaves[i], sub);
                    struct cpuid_regs want = cpuid(leaves[i], sub);
                    r.rax = leaves[i] | 0xabcd00000000, r.rcx = sub | 0xffff00000000;
                    r.rbp = 2 | (i & 1 ? F_CF | F_OF | F_ZF : F_SF | F_AF | F_PF);
                    done(&r, round & 1 ? plain : code);
                    EQ(T.r.rax, want.eax);
                    EQ(T.r.rbx, want.ebx);
                    EQ(T.r.rcx, want.ecx);
                    EQ(T.r.rdx, want.edx);
                    EQ(T.r.r8 & F_ARITH, r.rbp & F_ARITH);
                    if (round & 1) {
                        EQ(T.r.r12, want.eax);
                        EQ(T.r.r13, want.ebx);
                    }
                }
    }
    if (feat.xsave) {
        for (unsigned i = 0; i < 6; i++) {
            write_cr4(i & 1 ? default_cr4 & ~CR4_OSXSAVE : default_cr4);
            struct regs r = regs_for(0);
            r.rax = 1, r.rcx = i, r.rbp = 2;
            done(&r, code);
            EQ(T.r.rcx >> 27 & 1, !(i & 1));
        }
        write_cr4(default_cr4);
        for (unsigned i = 0; i < 6; i++) {
            xsetbv(0, i & 1 ? 1 : feat.xcr0_supported & 0xe7);
            struct regs r = regs_for(0);
            r.rax = 0xd, r.rcx = 0, r.rbp = 2;
            done(&r, code);
            if (i & 1)
                EQ(T.r.rbx, 576);
            else if (feat.avx)
                CHECK(T.r.rbx > 576);
        }
    }
}

TEST(cpuid, consistency)
{
    struct cpuid_regs l1 = cpuid(1, 0), l7 = cpuid(7, 0), e1 = cpuid(0x80000001, 0);
    /* The features every 64-bit guest relies on. */
    static const u8 edx_bits[] = {0, 3, 4, 5, 6, 8, 9, 13, 15, 24, 25, 26};
    for (unsigned i = 0; i < sizeof(edx_bits); i++)
        if (!(l1.edx >> edx_bits[i] & 1))
            fail("CPUID.1:EDX bit %u is clear", edx_bits[i]);
    EQ(e1.edx >> 29 & 1, 1);
    EQ(e1.edx >> 11 & 1, 1);
    if (l7.ebx >> 5 & 1)
        CHECK(feat.avx); /* AVX2 needs AVX */
    if (l7.ebx >> 16 & 1) {
        CHECK(l7.ebx >> 5 & 1);
        EQ(feat.xcr0_supported & 0xe0, 0xe0);
    }
    if (feat.avx)
        EQ(feat.xcr0_supported & 7, 7);
    if (feat.invpcid && !on_tcg)
        CHECK(feat.pcid);
    CHECK(feat.maxphyaddr >= 32 && feat.maxphyaddr <= 52);
    if (feat.xsave) {
        u64 x = feat.xcr0_supported;
        u32 size = 576;
        for (unsigned i = 2; i < 63; i++)
            if (x >> i & 1) {
                struct cpuid_regs c = cpuid(0xd, i);
                if (c.ebx + c.eax > size)
                    size = c.ebx + c.eax;
            }
        EQ(feat.xsave_size, size);
        xsetbv(0, 1);
        EQ(cpuid(0xd, 0).ebx, 576);
        xsetbv(0, feat.xcr0_supported & 0xe7);
    }
    /* leaves beyond the maximum do not fault */
    cpuid(0x7fffffff, 5);
    cpuid(0x40000005, 0);
    cpuid(0x8fffffff, 0);
}

TEST(tsc, tsd)
{
    struct regs r = regs_for(3);
    done(&r, SNIP("rdtsc"));
    EQ(T.r.rax >> 32 | T.r.rdx >> 32, 0);
    write_cr4(default_cr4 | CR4_TSD);
    fault(&r, SNIP("rdtsc"), GP, 0);
    if (feat.rdtscp)
        fault(&r, SNIP("rdtscp"), GP, 0);
    struct regs k = regs_for(0);
    done(&k, SNIP("rdtsc"));
    write_cr4(default_cr4);
}

TEST(tsc, monotonic_and_aux)
{
    u64 last = rdtsc();
    for (unsigned i = 0; i < 10000; i++) {
        u64 t = rdtsc();
        if (t < last)
            fail("the TSC went back from 0x%lx to 0x%lx", last, t);
        last = t;
    }
    if (!feat.rdtscp)
        return;
    wrmsr(MSR_TSC_AUX, 0x1234abcd);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        done(&r, SNIP("rdtscp"));
        EQ(T.r.rcx, 0x1234abcd);
        EQ(T.r.rax >> 32 | T.r.rdx >> 32, 0);
        if (feat.rdpid) {
            done(&r, SNIP("rdpid %%r11"));
            EQ(T.r.r11, 0x1234abcd);
        }
    }
}

TEST(tsc, write)
{
    TCG_SKIP("writes of the TSC have no effect");
    wrmsr(0x10, 0x123456789abc0000);
    u64 t = rdtsc();
    CHECK(t >= 0x123456789abc0000 && t < 0x123456789abc0000 + (1ul << 40));
    EQ(rdmsr(0x10) >= t, 1);
    wrmsr(0x10, 0);
}

TEST(rdpmc, cpl3)
{
    struct regs r = regs_for(3);
    r.rcx = 0;
    fault(&r, SNIP("rdpmc"), GP, 0);
}

/* -- XSETBV, XGETBV
 * ------------------------------------------------------------------------------*/

TEST(xcr, rules)
{
    if (!feat.xsave)
        SKIP("no XSAVE");
    struct regs r = regs_for(0);
    u64 x = feat.xcr0_supported;
    r.rcx = 0, r.rdx = 0;
    static const u32 bad[] = {0, 2, 4, 5, 0x80000003, 0x23, 0x47, 0x87, 0x67, 0xa7, 0xc7, 0xe3};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (on_tcg && (bad[i] == 5 || bad[i] == 4))
            continue;
        context("XCR0 = 0x%x", bad[i]);
        r.rax = bad[i];
        fault(&r, SNIP("xsetbv"), GP, 0);
    }
    context("index 1");
    r.rax = 3, r.rcx = 1;
    fault(&r, SNIP("xsetbv"), GP, 0);
    r.rcx = 2;
    fault(&r, SNIP("xgetbv"), GP, 0);
    context("%s", "");
    xsetbv(0, 1);
    EQ(xgetbv(0), 1);
    xsetbv(0, 3);
    EQ(xgetbv(0), 3);
    if (x & 4) {
        xsetbv(0, 7);
        EQ(xgetbv(0), 7);
    }
    struct regs u = regs_for(3);
    u.rcx = 0;
    done(&u, SNIP("xgetbv"));
    EQ(T.r.rax, xgetbv(0));
    EQ(T.r.rdx, 0);
    u.rax = 3, u.rdx = 0;
    fault(&u, SNIP("xsetbv"), GP, 0);
}

/* -- Ports
 * ---------------------------------------------------------------------------------------*/

TEST(io, iopl)
{
    struct regs r = regs_for(3);
    r.rflags |= F_IOPL;
    r.rdx = 0x3fd;
    done(&r, SNIP("in %%dx, %%al\n\tout %%al, $0x80"));
    EQ(T.r.rax & 0x20, 0x20); /* line status: transmitter empty */
    EQ(T.r.rax >> 8, r.rax >> 8);
    r.rdx = 0xcf8;
    done(&r, SNIP("inl %%dx, %%eax"));
    EQ(T.r.rax >> 32, 0);
}

TEST(io, bitmap)
{
    struct regs r = regs_for(3);
    unsigned cpl = 3;
    r.rdx = 0x80;
    FAULTC(r, "in %%dx, %%al", GP, 0);
    tss.bitmap[0x80 / 8] = 0xfe; /* port 0x80 alone */
    context("allowed");
    done(&r, SNIP("in %%dx, %%al\n\tout %%al, %%dx\n\tin $0x80, %%al"));
    FAULTC(r, "inw %%dx, %%ax", GP, 0); /* the second port is not */
    FAULTC(r, "outl %%eax, $0x80", GP, 0);
    FAULTC(r, "in $0x81, %%al", GP, 0);
    tss.bitmap[0x80 / 8] = 0xf0;
    context("four ports");
    done(&r, SNIP("inl %%dx, %%eax\n\toutw %%ax, %%dx"));
    r.rdx = 0x83;
    FAULTC(r, "inw %%dx, %%ax", GP, 0);
    tss.bitmap[0x80 / 8] = 0xff;
    /* the limit of the TSS cuts the bitmap off */
    tss.bitmap[0] = 0;
    gdt[SEL_TSS / 8] = DESC((u64)&tss, offsetof(struct tss, bitmap) + 1, 0x89, 0);
    asm volatile("ltr %w0" ::"r"(SEL_TSS));
    r.rdx = 0x10;
    FAULTC(r, "in %%dx, %%al", GP, 0);
    tss.iomap = 0x7fff;
    r.rdx = 0;
    FAULTC(r, "in %%dx, %%al", GP, 0);
}

TEST(io, string)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rflags |= F_IOPL;
        r.rdi = at_cpl(cpl, buffer) + 16;
        r.rdx = 0x3fd;
        r.rcx = 5;
        memset(buffer, 0, 64);
        done(&r, SNIP("rep insb"));
        EQ(T.r.rcx, 0);
        EQ(T.r.rdi, r.rdi + 5);
        CHECK(buffer[16] & 0x20);
        CHECK(buffer[20] & 0x20);
        EQ(buffer[21], 0);
        r.rflags |= F_DF;
        r.rsi = at_cpl(cpl, buffer) + 40;
        r.rdx = 0x80, r.rcx = 3;
        done(&r, SNIP("rep outsw\n\tcld"));
        EQ(T.r.rcx, 0);
        EQ(T.r.rsi, r.rsi - 6);
        r.rflags &= ~(u64)F_DF;
        r.rcx = 0;
        done(&r, SNIP("rep insb\n\trep outsl"));
        EQ(T.r.rdi, r.rdi);
    }
    struct regs r = regs_for(3);
    r.rdx = 0x80;
    fault(&r, SNIP("insb"), GP, 0);
    fault(&r, SNIP("rep outsl"), GP, 0);
}

TEST(io, string_fault)
{
    /* Elements before the fault are done; RCX and RDI say so. */
    map_new(UVA, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("rep insb");
        r.rflags |= F_IOPL;
        r.rdi = UVA + 4096 - 3, r.rcx = 10, r.rdx = 0x3fd;
        run_at(&r, code);
        expect(PF, PF_W | (cpl ? PF_U : 0));
        EQ(trap_rip(), (u64)code);
        EQ(T.cr2, UVA + 4096);
        EQ(T.r.rcx, 7);
        EQ(T.r.rdi, UVA + 4096);
        code = SNIP("rep outsw");
        r.rsi = UVA + 4096 - 4;
        r.rdx = 0x80;
        run_at(&r, code);
        expect(PF, cpl ? PF_U : 0);
        EQ(T.r.rcx, 8);
        EQ(T.r.rsi, UVA + 4096);
    }
}

/* -- Cache and hint instructions
 * -------------------------------------------------------------------*/

TEST(cache, instructions)
{
    struct regs r = regs_for(0);
    r.rbx = (u64)buffer;
    done(&r, SNIP("wbinvd\n\tinvlpg (%%rbx)"));
    BOTH_CPLS
    {
        struct regs u = regs_for(cpl);
        u.rbx = at_cpl(cpl, buffer);
        done(&u, SNIP("prefetcht0 (%%rbx)\n\tmfence\n\tlfence\n\tsfence\n\tpause\n\tnopl (%%rbx)"));
        u.rbx = UVA;
        done(
            &u,
            SNIP("prefetcht0 (%%rbx)\n\tprefetchnta (%%rbx)\n\tprefetchw (%%rbx)\n\tnopl (%%rbx)"));
        u.rbx = NONCANON;
        done(&u, SNIP("prefetcht0 (%%rbx)\n\tnopl (%%rbx)\n\tlea (%%rbx), %%rax"));
        if (feat.clflush) {
            u.rbx = at_cpl(cpl, buffer);
            done(&u, SNIP("clflush (%%rbx)"));
            u.rbx = UVA + 77;
            if (!on_tcg)
                fault(&u, SNIP("clflush (%%rbx)"), PF, cpl ? PF_U : 0);
        }
    }
    r.rbx = NONCANON;
    done(&r, SNIP("invlpg (%%rbx)")); /* a no-op (SDM vol. 2, INVLPG) */
    EQ(T.r.rbx, NONCANON);
}

TEST(cache, monitor_mwait)
{
    if (!feat.monitor) {
        struct regs r = regs_for(0);
        r.rax = (u64)buffer, r.rcx = r.rdx = 0;
        if (!on_tcg)
            fault(&r, SNIP("monitor"), UD, 0);
        SKIP("no MONITOR");
    }
    struct regs u = regs_for(3);
    u.rax = at_cpl(3, buffer), u.rcx = u.rdx = 0;
    fault(&u, SNIP("monitor"), UD, 0);
    fault(&u, SNIP("mwait"), UD, 0);
}
