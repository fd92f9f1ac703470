/*
 * Paging outside long mode: 2-level tables, 4 MiB pages, PAE (SDM vol. 3, 4.3 and 4.4).
 *
 * The first 64 MiB are mapped to themselves for everybody; TEST_VA is for the tests.
 */
#include "guest32.h"

#define TEST_VA 0x50000000u

enum {
    P = 1,
    W = 2,
    U = 4,
    A = 0x20,
    D = 0x40,
    PS = 0x80,
    G = 0x100,
    KRW = P | W,
    URW = P | W | U,
};

static u32 pd[1024] __attribute__((aligned(4096)));
static u32 pt[2][1024] __attribute__((aligned(4096)));
static u64 pdpt[4] __attribute__((aligned(4096)));
static u64 pae_pd[2][512] __attribute__((aligned(4096)));
static u64 pae_pt[512] __attribute__((aligned(4096)));
static u8 data[3][4096] __attribute__((aligned(4096)));

static void paging_on(bool pae)
{
    memset(pd, 0, sizeof(pd));
    memset(pt, 0, sizeof(pt));
    memset(pdpt, 0, sizeof(pdpt));
    memset(pae_pd, 0, sizeof(pae_pd));
    memset(pae_pt, 0, sizeof(pae_pt));
    memset(data, 0, sizeof(data));
    if (pae) {
        for (u32 i = 0; i < 32; i++)
            pae_pd[0][i] = i << 21 | URW | PS;
        pae_pd[1][(TEST_VA >> 21) & 511] = (u32)pae_pt | URW;
        pdpt[0] = (u32)pae_pd[0] | P;
        pdpt[TEST_VA >> 30] = (u32)pae_pd[1] | P;
        write_cr4(read_cr4() | CR4_PAE);
        write_cr3((u32)pdpt);
    } else {
        for (u32 i = 0; i < 16; i++)
            pd[i] = i << 22 | URW | PS;
        pd[TEST_VA >> 22] = (u32)pt[0] | URW;
        write_cr4(read_cr4() | CR4_PSE);
        write_cr3((u32)pd);
    }
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
}

static void set(unsigned page, u32 flags)
{
    if (read_cr4() & CR4_PAE)
        pae_pt[(TEST_VA >> 12 & 511) + page] = flags ? (u32)data[page] | flags : 0;
    else
        pt[0][(TEST_VA >> 12 & 1023) + page] = flags ? (u32)data[page] | flags : 0;
    invlpg(TEST_VA + page * 4096);
}

static u32 entry(unsigned page)
{
    return read_cr4() & CR4_PAE ? (u32)pae_pt[(TEST_VA >> 12 & 511) + page]
                                : pt[0][(TEST_VA >> 12 & 1023) + page];
}

static void pf(struct regs *r, const u8 *code, u32 error, u32 cr2)
{
    fault(r, code, PF, error);
    EQ(T.cr2, cr2);
}

/* Of an instruction that overwrites the arithmetic flags. */
static void pf_arithmetic(struct regs *r, const u8 *code, u32 error, u32 cr2)
{
    fault_of_arithmetic(r, code, PF, error);
    EQ(T.cr2, cr2);
}

static void rights(void)
{
    u8 *rd = SNIP32("movl (%%ebx), %%eax"), *wr = SNIP32("movl %%eax, (%%ebx)"),
       *rmw = SNIP32("lock incl (%%ebx)");
    struct regs u = regs_for(U32), k = regs_for(K32);
    u.ebx = k.ebx = TEST_VA + 0x10;
    set(0, 0);
    pf(&u, rd, PF_U, u.ebx);
    pf(&u, wr, PF_U | PF_W, u.ebx);
    pf(&k, rd, 0, u.ebx);
    pf(&k, wr, PF_W, u.ebx);
    set(0, P | U);
    done(&u, rd);
    EQ(entry(0) & (A | D), A);
    pf(&u, wr, PF_P | PF_U | PF_W, u.ebx);
    pf_arithmetic(&u, rmw, PF_P | PF_U | PF_W, u.ebx);
    pf(&k, wr, PF_P | PF_W, u.ebx);
    write_cr0(read_cr0() & ~CR0_WP);
    done(&k, wr); /* without WP the kernel writes where it likes */
    EQ(entry(0) & D, D);
    EQ(*(u32 *)(data[0] + 0x10), k.eax);
    pf(&u, wr, PF_P | PF_U | PF_W, u.ebx);
    write_cr0(read_cr0() | CR0_WP);
    pf(&k, wr, PF_P | PF_W, u.ebx);
    set(0, P | W);
    pf(&u, rd, PF_P | PF_U, u.ebx);
    pf(&u, wr, PF_P | PF_U | PF_W, u.ebx);
    done(&k, rd);
    EQ(entry(0) & (A | D), A);
    done(&k, wr);
    EQ(entry(0) & (A | D), A | D);
    set(0, URW);
    done(&u, rmw);
    EQ(*(u32 *)(data[0] + 0x10), k.eax + 1);
}

TEST(paging, rights_32)
{
    if (!feat.pse)
        SKIP("no PSE");
    paging_on(false);
    rights();
}

TEST(paging, rights_pae)
{
    if (!feat.pae)
        SKIP("no PAE");
    paging_on(true);
    rights();
}

/* The directory's rights and those of the table both count. */
TEST(paging, directory_rights)
{
    u8 *rd = SNIP32("movl (%%ebx), %%eax"), *wr = SNIP32("movl %%eax, (%%ebx)");
    paging_on(false);
    struct regs u = regs_for(U32);
    u.ebx = TEST_VA;
    set(0, URW);
    pd[TEST_VA >> 22] = (u32)pt[0] | P | U;
    write_cr3((u32)pd);
    done(&u, rd);
    pf(&u, wr, PF_P | PF_U | PF_W, u.ebx);
    pd[TEST_VA >> 22] = (u32)pt[0] | P | W;
    write_cr3((u32)pd);
    pf(&u, rd, PF_P | PF_U, u.ebx);
    pd[TEST_VA >> 22] = 0;
    write_cr3((u32)pd);
    pf(&u, rd, PF_U, u.ebx);
    pd[TEST_VA >> 22] = (u32)pt[0] | URW;
    write_cr3((u32)pd);
    done(&u, wr);
    EQ(pd[TEST_VA >> 22] & A, A);
}

static void crossing(void)
{
    u8 *rd = SNIP32("movl (%%ebx), %%eax"), *wr = SNIP32("movl %%eax, (%%ebx)"),
       *xadd = SNIP32("xaddl %%eax, (%%ebx)"), *push = SNIP32("pushl %%eax");
    struct regs u = regs_for(U32);
    u.ebx = TEST_VA + 0xffe;
    set(0, URW);
    set(1, 0);
    pf(&u, rd, PF_U, TEST_VA + 0x1000);
    pf(&u, wr, PF_U | PF_W, TEST_VA + 0x1000);
    EQ(*(u16 *)(data[0] + 0xffe), 0); /* nothing was written */
    set(1, P | U);
    pf_arithmetic(&u, xadd, PF_P | PF_U | PF_W, TEST_VA + 0x1000);
    EQ(*(u16 *)(data[0] + 0xffe), 0);
    set(1, URW);
    if (done(&u, wr)) {
        EQ(*(u16 *)(data[0] + 0xffe), u.eax & 0xffff);
        EQ(*(u16 *)data[1], u.eax >> 16);
    }
    set(0, 0);
    pf(&u, rd, PF_U, TEST_VA + 0xffe);
    u.esp = TEST_VA + 0x1000;
    pf(&u, push, PF_U | PF_W, TEST_VA + 0xffc);
}

/* Pushes and pops in a row, hot, of which one faults: all that came before it has happened, ESP
 * included, and nothing else. */
static void stack_runs(void)
{
    u8 *push = SNIP32("1: push %%eax\n\tpush $0x12345678\n\tlea 8(%%esp), %%edx\n\tpush %%ebx\n\t"
                      "mov 8(%%esp), %%esi\n\tadd $5, %%edi\n\tpush %%edx\n\tadd (%%esp), %%edi\n\t"
                      "pop %%edx\n\tpop %%eax\n\tadd $8, %%esp\n\tmov %%esi, %%eax\n\t"
                      "dec %%ecx\n\tjnz 1b"),
       *pop = SNIP32(
           "1: pop %%eax\n\tadd $1, %%edi\n\tpop %%ebx\n\tmov -4(%%esp), %%esi\n\tpop %%edx\n\t"
           "pop %%ebp\n\tsub $16, %%esp\n\tdec %%ecx\n\tjnz 1b");
    struct regs r = regs_for(U32), start;
    r.eax = 0xa1, r.ebx = 0xb2, r.edi = 1;
    for (unsigned page = 0; page < 2; page++)
        set(page, URW);
    r.ecx = 300, r.esp = TEST_VA + 4096 + 8;
    if (done(&r, push)) {
        EQ(T.r.esp, r.esp);
        EQ(T.r.eax, 0xa1);
        EQ(T.r.esi, 0xa1);
        EQ(T.r.edx, r.esp);
        EQ(T.r.edi, 1 + 300 * (5 + r.esp));
        EQ(*(u32 *)(data[1] + 4), 0xa1);
        EQ(*(u32 *)(data[1]), 0x12345678);
        EQ(*(u32 *)(data[0] + 4092), 0xb2);
    }
    for (unsigned k = 0; k < 4; k++) { /* the write to page 0 faults */
        set(0, k & 1 ? P | U : 0);
        memset(data, 0, sizeof(data));
        r.ecx = 1 + k;
        start = r;
        run_at(&start, push);
        expect(PF, (k & 1 ? PF_P : 0) | PF_W | PF_U);
        EQ(T.cr2, TEST_VA + 4092);
        EQ(T.r.eip, (u32)push + 10);
        EQ(T.r.esp, r.esp - 8);
        EQ(T.r.edx, r.esp);
        EQ(T.r.edi, 1);
        EQ(*(u32 *)(data[1] + 4), 0xa1);
        EQ(*(u32 *)(data[1]), 0x12345678);
    }
    set(0, URW);
    r.ecx = 300, r.esp = TEST_VA + 4096 - 8, r.ebp = 0;
    for (u32 i = 0; i < 4; i++)
        *(u32 *)(data[0] + 4088 + 4 * i) = 0x100 + i;
    if (done(&r, pop)) {
        EQ(T.r.esp, r.esp);
        EQ(T.r.eax, 0x100);
        EQ(T.r.ebx, 0x101);
        EQ(T.r.esi, 0x101);
        EQ(T.r.edx, 0x102);
        EQ(T.r.ebp, 0x103);
        EQ(T.r.edi, 301);
    }
    for (unsigned k = 0; k < 3; k++) {
        set(1, 0);
        r.ecx = 1 + k;
        start = r;
        run_at(&start, pop);
        expect(PF, PF_U);
        EQ(T.cr2, TEST_VA + 4096);
        EQ(T.r.eip, (u32)pop + 9);
        EQ(T.r.esp, TEST_VA + 4096);
        EQ(T.r.eax, 0x100);
        EQ(T.r.ebx, 0x101);
        EQ(T.r.esi, 0x101);
        EQ(T.r.edx, r.edx);
        EQ(T.r.edi, 2);
    }
}

TEST(paging, stack_runs_32)
{
    paging_on(false);
    stack_runs();
}

TEST(paging, stack_runs_pae)
{
    if (!feat.pae)
        SKIP("no PAE");
    paging_on(true);
    stack_runs();
}

TEST(paging, crossing_32)
{
    paging_on(false);
    crossing();
}

TEST(paging, crossing_pae)
{
    if (!feat.pae)
        SKIP("no PAE");
    paging_on(true);
    crossing();
}

TEST(paging, big_pages)
{
    u8 *rd = SNIP32("movl (%%ebx), %%eax"), *wr = SNIP32("movl %%eax, (%%ebx)");
    struct regs u = regs_for(U32);
    paging_on(false);
    u.ebx = TEST_VA + 0x123456;
    pd[TEST_VA >> 22] = 0x800000 | URW | PS; /* 8 MiB */
    write_cr3((u32)pd);
    *mem32(0x923456) = 0x600dcafe;
    if (done(&u, rd))
        EQ(T.r.eax, 0x600dcafe);
    EQ(pd[TEST_VA >> 22] & (A | D), A);
    done(&u, wr);
    EQ(pd[TEST_VA >> 22] & (A | D), A | D);
    pd[TEST_VA >> 22] = 0x800000 | P | U | PS;
    write_cr3((u32)pd);
    pf(&u, wr, PF_P | PF_U | PF_W, u.ebx);
    if (!on_tcg) { /* reserved: bit 21, and without PSE-36 more */
        pd[TEST_VA >> 22] = 0xa00000 | URW | PS;
        write_cr3((u32)pd);
        pf(&u, rd, PF_P | PF_U | PF_RSVD, u.ebx);
    }
}

/* Without CR4.PSE, bit 7 of a directory entry means nothing. */
TEST(paging, pse_off)
{
    u8 *rd = SNIP32("movl (%%ebx), %%eax");
    struct regs u = regs_for(U32);
    paging_on(false);
    /* the kernel's own mapping must do without big pages, too */
    for (u32 i = 0; i < 1024; i++)
        pt[1][i] = i << 12 | URW;
    for (u32 i = 1; i < 16; i++)
        pd[i] = 0;
    pd[0] = (u32)pt[1] | URW;
    pd[TEST_VA >> 22] = (u32)pt[0] | URW | PS;
    set(0, URW);
    write_cr3((u32)pd);
    write_cr4(read_cr4() & ~CR4_PSE);
    *(u32 *)data[0] = 0x12348765;
    u.ebx = TEST_VA;
    if (done(&u, rd))
        EQ(T.r.eax, 0x12348765);
}

TEST(paging, pae_big_pages_and_nx)
{
    if (!feat.pae)
        SKIP("no PAE");
    TCG_SKIP("a reserved bit is reported without P");
    u8 *rd = SNIP32("movl (%%ebx), %%eax"), *go = SNIP32("jmp *%%ebx");
    struct regs u = regs_for(U32);
    u64 *e = &pae_pd[1][(TEST_VA >> 21) & 511];
    paging_on(true);
    *e = 0x800000 | URW | PS;
    write_cr3((u32)pdpt);
    *mem32(0x923456) = 0xcccccccc;
    u.ebx = TEST_VA + 0x123456;
    if (done(&u, rd))
        EQ(T.r.eax, 0xcccccccc);
    run_at(&u, go);
    expect(DONE, 0);
    *e = 0x800000 | URW | PS | 1 << 13; /* reserved */
    write_cr3((u32)pdpt);
    pf(&u, rd, PF_P | PF_U | PF_RSVD, u.ebx);
    *e = 0x800000 | URW | PS | (u64)1 << 62;
    write_cr3((u32)pdpt);
    pf(&u, rd, PF_P | PF_U | PF_RSVD, u.ebx);
    *e = 0x800000 | URW | PS | (u64)1 << 63; /* NX: reserved while EFER.NXE is 0 */
    write_cr3((u32)pdpt);
    pf(&u, rd, PF_P | PF_U | PF_RSVD, u.ebx);
    if (feat.nx) {
        wrmsr(MSR_EFER, EFER_NX);
        write_cr3((u32)pdpt);
        done(&u, rd);
        run_at(&u, go);
        expect(PF, PF_P | PF_U | PF_I);
        EQ(T.r.eip, u.ebx);
        EQ(T.cr2, u.ebx);
        struct regs k = regs_for(K32);
        k.ebx = u.ebx;
        run_at(&k, go);
        expect(PF, PF_P | PF_I);
    }
}

/* The four PDPTEs are loaded with CR3, and only then (SDM vol. 3, 4.4.1). */
TEST(paging, pdptes)
{
    if (!feat.pae)
        SKIP("no PAE");
    TCG_SKIP("PDPTEs are read at each walk");
    u8 *rd = SNIP32("movl (%%ebx), %%eax"), *cr3 = SNIP32("movl %%eax, %%cr3");
    struct regs k = regs_for(K32);
    paging_on(true);
    set(0, URW);
    k.ebx = TEST_VA;
    pdpt[1] = 0; /* not seen yet */
    asm volatile("invlpg (%0)" ::"r"(TEST_VA));
    done(&k, rd);
    write_cr3((u32)pdpt);
    pf(&k, rd, 0, TEST_VA);
    pdpt[1] = (u32)pae_pd[1] | P | W; /* a reserved bit: the load of CR3 fails */
    k.eax = (u32)pdpt;
    fault(&k, cr3, GP, 0);
    pdpt[1] = (u32)pae_pd[1] | P | 1 << 9; /* software's bits are fine */
    done(&k, cr3);
    done(&k, rd);
}

/* A flush by CR3 and by INVLPG; global pages stay over the former. */
TEST(paging, flush)
{
    u8 *rd = SNIP32("movl (%%ebx), %%eax");
    struct regs u = regs_for(U32);
    paging_on(false);
    set(0, URW);
    set(1, URW);
    *(u32 *)data[0] = 1;
    *(u32 *)data[1] = 2;
    u.ebx = TEST_VA;
    for (unsigned i = 0; i < 6; i++) {
        pt[0][TEST_VA >> 12 & 1023] = (u32)data[i & 1] | URW;
        if (i & 2)
            invlpg(TEST_VA);
        else
            write_cr3((u32)pd);
        if (done(&u, rd))
            EQ(T.r.eax, (i & 1) + 1);
    }
}

/* Code on two pages, the second not there; a fault in every other mode. */
TEST(paging, fetch)
{
    paging_on(false);
    struct regs u = regs_for(U32);
    set(0, URW);
    memset(data[0], 0x90, 4096);
    data[0][0xffe] = 0xb8; /* mov eax, imm32: three bytes on the next page */
    data[0][0xfff] = 0x44;
    u.eip = TEST_VA + 0xff0;
    run(&u);
    expect(PF, PF_U);
    EQ(T.r.eip, TEST_VA + 0xffe);
    EQ(T.cr2, TEST_VA + 0x1000);
    set(1, URW);
    memcpy(data[1], (const u8[]){0x33, 0x22, 0x11, 0xcc}, 4);
    run(&u);
    expect(DONE, 0);
    EQ(T.r.eax, 0x11223344);
    EQ(T.r.eip, TEST_VA + 0x1004);
    /* 16-bit segments and V86: linear addresses are what is paged */
    static u32 low[1024] __attribute__((aligned(4096)));
    for (u32 i = 0; i < 1024; i++)
        low[i] = i << 12 | URW;
    low[0x25] = 0; /* DS:5000h */
    low[0x43] = 0x43000 | P | U;
    pd[0] = (u32)low | URW;
    write_cr3((u32)pd);
    struct snip rd = SNIP("movb 0x5123, %%al"), push = SNIP("pushw %%ax");
    EACH_MODE(m, M(S32) | M(U16) | M(V86) | M(K16))
    {
        struct regs r = regs_for(m);
        u32 user = m == K16 ? 0 : PF_U;
        fault(&r, code_for(m, rd), PF, user);
        EQ(T.cr2, 0x25123);
        if (m == K16)
            continue; /* no stack, no trap */
        r.esp = 0x4000;
        fault(&r, code_for(m, push), PF, user | PF_P | PF_W);
        EQ(T.cr2, 0x43ffe);
    }
}

/* The CPU's own accesses to tables and stacks are the supervisor's, whatever CPL is. */
TEST(paging, implicit)
{
    paging_on(false);
    for (u32 i = 0; i < 16; i++)
        pd[i] |= G;
    set(0, P | W); /* the descriptor table: for the supervisor only */
    memcpy(data[0], gdt, sizeof(gdt));
    struct {
        u16 limit;
        u32 base;
    } __attribute__((packed)) gdtr = {sizeof(gdt) - 1, TEST_VA};
    asm volatile("lgdt %0" ::"m"(gdtr));
    u8 *load = SNIP32("movw %%ax, %%fs"), *i = SNIP32("int $0x80");
    struct regs u = regs_for(U32);
    u.eax = SEL_UDATA | 3;
    done(&u, load);
    run_at(&u, i);
    expect(0x80, 0);
    ((u64 *)data[0])[SEL_FREE / 8] = DESC(0, 0xfffff, 0xf2, 0xc);
    u.eax = SEL_FREE | 3;
    set(0, P); /* the accessed bit cannot be set: #PF with the supervisor's error code */
    fault(&u, load, PF, PF_P | PF_W);
    gdtr.base = (u32)gdt;
    asm volatile("lgdt %0" ::"m"(gdtr));
}

/* MOV to CR0 and CR4: what must go together. */
TEST(paging, control_registers)
{
    TCG_SKIP("takes impossible values of CR0");
    u8 *cr0 = SNIP32("movl %%eax, %%cr0"), *cr4 = SNIP32("movl %%eax, %%cr4"),
       *rdcr1 = SNIP32("movl %%cr3, %%eax");
    struct regs k = regs_for(K32), u = regs_for(U32);
    fault(&u, cr0, GP, 0);
    fault(&u, rdcr1, GP, 0);
    k.eax = CR0_PG; /* PG without PE */
    fault(&k, cr0, GP, 0);
    k.eax = CR0_PE | 0x20000000; /* NW without CD */
    fault(&k, cr0, GP, 0);
    k.eax = 0x80000000; /* a reserved bit of CR4 */
    fault(&k, cr4, GP, 0);
    if (feat.longmode) {
        k.eax = 1 << 17; /* PCIDE outside long mode */
        fault(&k, cr4, GP, 0);
        /* PG with LME needs PAE */
        memset(pdpt, 0, sizeof(pdpt));
        write_cr3((u32)pdpt);
        wrmsr(MSR_EFER, EFER_LME);
        k.eax = read_cr0() | CR0_PG;
        fault(&k, cr0, GP, 0);
        wrmsr(MSR_EFER, 0);
        /* LME cannot change while paging is on */
        paging_on(false);
        u8 *wr = SNIP32("wrmsr");
        k = regs_for(K32);
        k.ecx = MSR_EFER;
        k.eax = EFER_LME;
        k.edx = 0;
        fault(&k, wr, GP, 0);
    }
}

/* -- Short string runs ------------------------------------------------------------------------ */

static u8 want[2 * 4096];

/* One element of MOVS (STOS): false, with CR2 and the error code's W, if it faults. */
static bool element(struct regs *r, unsigned size, bool movs, u32 *cr2, u32 *error)
{
    int step = r->eflags & F_DF ? -(int)size : (int)size;
    u32 at[2] = {r->esi - TEST_VA, r->edi - TEST_VA};
    u8 value[4];

    for (unsigned i = movs ? 0 : 1; i < 2; i++)
        for (unsigned b = 0; b < size; b++)
            if (at[i] + b >= sizeof(want)) {
                *cr2 = TEST_VA + at[i] + b;
                *error = i ? PF_W : 0;
                return false;
            }
    for (unsigned b = 0; b < size; b++)
        value[b] = movs ? want[at[0] + b] : (u8)(r->eax >> 8 * b);
    for (unsigned b = 0; b < size; b++)
        want[at[1] + b] = value[b];
    r->edi += (u32)step;
    if (movs)
        r->esi += (u32)step;
    r->ecx--;
    return true;
}

/*
 * REP MOVS and REP STOS of few and of many elements, overlapping in any way, in both directions, up
 * to and over the ends of two pages, in code that is hot: memory, registers and flags are those of
 * the same number of single steps.
 */
static void short_runs(void)
{
    struct {
        u8 size;
        bool movs;
        u8 *code;
    } form[] = {
        {1, true, SNIP32("push %%ebx\n\tpop %%ebx\n\trep movsb")},
        {2, true, SNIP32("push %%ebx\n\tpop %%ebx\n\trep movsw")},
        {4, true, SNIP32("push %%ebx\n\tpop %%ebx\n\trep movsl")},
        {4, true, SNIP32("push %%ebx\n\tpop %%ebx\n\trep movsl %%ss:(%%esi), %%es:(%%edi)")},
        {1, false, SNIP32("push %%ebx\n\tpop %%ebx\n\trep stosb")},
        {2, false, SNIP32("push %%ebx\n\tpop %%ebx\n\trep stosw")},
        {4, false, SNIP32("push %%ebx\n\tpop %%ebx\n\trep stosl")},
    };
    u8 *memory = data[0];

    for (unsigned i = 0; i < 2; i++)
        set(i, URW);
    set(2, 0);
    for (unsigned i = 0; i < sizeof(want); i++)
        want[i] = memory[i] = (u8)(i * 31 + (i >> 7));
    for (unsigned f = 0; f < sizeof(form) / sizeof(form[0]); f++)
        for (unsigned i = 0; i < 800; i++) {
            struct regs r = regs_for(i & 1 ? U32 : K32), model;
            u32 seed = random32(), cr2 = 0, error = 0;
            bool ok = true;
            r.ecx = seed & 8 ? seed >> 8 & 31 : seed >> 8 & 255;
            r.edi = TEST_VA + (random32() & 8191);
            r.esi = seed & 16 ? r.edi + (seed >> 24 & 15) - 8 : TEST_VA + (random32() & 8191);
            if (!(seed & 0xe0)) /* near an end */
                r.edi = TEST_VA + (seed & 0x10000 ? 8192 - (seed >> 20 & 63) : seed >> 20 & 63);
            r.eflags |= random32() & (F_CF | F_PF | F_AF | F_ZF | F_SF | F_OF);
            if (i > 400 && !(seed & 0x70000000))
                r.eflags |= F_DF;
            model = r;
            context("%s, form %u, round %u, count %u", mode_name(r.mode), f, i, r.ecx);
            while (model.ecx && ok)
                ok = element(&model, form[f].size, form[f].movs, &cr2, &error);
            run_at(&r, form[f].code);
            if (ok) {
                expect(BP, 0);
            } else {
                expect(PF, error | (i & 1 ? PF_U : 0));
                EQ(T.cr2, cr2);
            }
            EQ(T.r.ecx, model.ecx);
            EQ(T.r.esi, model.esi);
            EQ(T.r.edi, model.edi);
            EQ(T.r.eflags & (F_ARITH | F_DF), r.eflags & (F_ARITH | F_DF));
            if (memcmp(memory, want, sizeof(want))) {
                fail("memory differs");
                return;
            }
        }
}

TEST(paging, short_runs_32)
{
    if (!feat.pse)
        SKIP("no PSE");
    paging_on(false);
    short_runs();
}

TEST(paging, short_runs_pae)
{
    if (!feat.pae)
        SKIP("no PAE");
    paging_on(true);
    short_runs();
}
