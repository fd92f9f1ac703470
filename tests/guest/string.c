/*
 * String instructions in code that has run often, where a translator may leave them to the
 * processor: what ends or interrupts them in the middle leaves RSI, RDI and RCX at an element, and
 * all else alone.
 */
#include "guest.h"

/* Supervisor code uses the upper half of the address space, as kernels do. */
#define BOTH_CPLS                                                                                  \
    for (unsigned cpl = 0;                                                                         \
         context("cpl %u", cpl), va = cpl ? UVA : KVA, rights = cpl ? PG_URW : PG_KRW, cpl <= 3;   \
         cpl += 3)

enum { WARM = 300, PAGES = 8 };

static u64 va, rights;

/* PAGES pages at va, filled with bytes at random; returns the first one's physical address. */
static u64 map_area(u64 at)
{
    u64 pa = page_alloc_2m();
    for (unsigned i = 0; i < PAGES; i++)
        map(at + i * 4096ul, pa + i * 4096ul, rights | PG_A | PG_D);
    for (unsigned i = 0; i < PAGES * 512; i++)
        ((u64 *)pa)[i] = random64();
    return pa;
}

/* The instruction again and again, from R8 to R9, R10 times; the last time as the registers say. */
#define LOOP(text)                                                                                 \
    SNIP("mov %%rsi, %%r12\n\tmov %%rdi, %%r13\n\tmov %%rcx, %%r14\n"                              \
         "1: test %%r15, %%r15\n\tjz 2f\n\tmov %%r8, %%rsi\n\tmov %%r9, %%rdi\n\tmov %%rbx, "      \
         "%%rcx\n\tjmp 3f\n"                                                                       \
         "2: mov %%r12, %%rsi\n\tmov %%r13, %%rdi\n\tmov %%r14, %%rcx\n"                           \
         "3: push %%rbp\n\tpopf\n\t" text "\n\tpushf\n\tpop %%rdx\n\tdec %%r15\n\tjns 1b")

static struct regs loop_regs(unsigned cpl, u64 src, u64 dst, u64 count)
{
    struct regs r = regs_for(cpl);
    r.rsi = src, r.rdi = dst, r.rcx = count;
    r.r8 = va, r.r9 = va + 4 * 4096, r.rbx = 16, r.r15 = WARM;
    r.rbp = F_CF | F_SF | F_OF | 2;
    return r;
}

static void expect_at(const struct regs *r, u64 rsi, u64 rdi, u64 rcx)
{
    EQ(T.r.rsi, rsi);
    EQ(T.r.rdi, rdi);
    EQ(T.r.rcx, rcx);
    EQ(T.r.r8, r->r8);
    EQ(T.r.r10, r->r10);
    EQ(T.r.r11, r->r11);
    EQ(T.r.r15, 0);
    EQ(T.r.rflags & F_ARITH, r->rbp & F_ARITH);
}

TEST(string, page_that_is_not_there)
{
    BOTH_CPLS
    {
        u64 pa = map_area(va), u = cpl ? PF_U : 0, end = va + PAGES * 4096;
        static u8 *code[4], *fill[4];
        if (!code[0]) {
            code[0] = LOOP("rep movsb"), code[1] = LOOP("rep movsw");
            code[2] = LOOP("rep movsl"), code[3] = LOOP("rep movsq");
            fill[0] = LOOP("rep stosb"), fill[1] = LOOP("rep stosw");
            fill[2] = LOOP("rep stosl"), fill[3] = LOOP("rep stosq");
        }
        for (unsigned k = 0; k < 4; k++) {
            u64 size = 1ul << k, in = 5000 & -size;
            context("cpl %u, size %lu", cpl, size);
            /* the destination ends */
            struct regs r = loop_regs(cpl, va, end - in, 1000000);
            run_at(&r, code[k]);
            expect(PF, u | PF_W);
            EQ(T.cr2, end);
            expect_at(&r, va + in, end, 1000000 - in / size);
            EQ(memcmp((u8 *)pa, (u8 *)pa + PAGES * 4096 - in, in), 0);
            /* the source does, with a count beyond all memory */
            r = loop_regs(cpl, end - in, va + 3 * 4096, 1ul << 60);
            r.r9 = va + 3 * 4096;
            run_at(&r, code[k]);
            expect(PF, u);
            EQ(T.cr2, end);
            expect_at(&r, end, va + 3 * 4096 + in, (1ul << 60) - in / size);
            /* STOS, at once and in the middle */
            r = loop_regs(cpl, 0, end - in, ~0ul);
            run_at(&r, fill[k]);
            expect(PF, u | PF_W);
            EQ(T.cr2, end);
            expect_at(&r, 0, end, ~0ul - in / size);
            r = loop_regs(cpl, 0, end, 1);
            run_at(&r, fill[k]);
            expect(PF, u | PF_W);
            expect_at(&r, 0, end, 1);
        }
        /* DF = 1, and an element across the page's end */
        struct regs r = loop_regs(cpl, end - 8, va + 4096 - 8, 10000);
        r.rbp |= F_DF, r.r8 = va + 2048, r.r9 = va + 4096;
        run_at(&r, code[3]);
        expect(PF, u | PF_W);
        EQ(T.cr2, va - 8);
        expect_at(&r, end - 8 - 4096, va - 8, 10000 - 512);
        r = loop_regs(cpl, va, end - 20, 10000);
        run_at(&r, code[3]);
        expect(PF, u | PF_W);
        EQ(T.cr2, end);
        expect_at(&r, va + 16, end - 4, 9998);
        r = loop_regs(cpl, va + 4, va + 4096, 10000);
        r.rbp |= F_DF, r.r8 = va + 2048, r.r9 = va + 4096;
        run_at(&r, code[3]);
        expect(PF, u);
        EQ(T.cr2, va - 4);
        expect_at(&r, va - 4, va + 4096 - 8, 9999);
    }
}

static u64 lazy_pa, lazy_faults;

static bool lazy_handler(struct isr_frame *f)
{
    u64 page = read_cr2() & -4096ul;
    if (page - va >= PAGES * 4096)
        return false;
    lazy_faults++;
    map(page, lazy_pa + (page - va), rights);
    return true;
}

TEST(string, pages_that_come_when_they_are_needed)
{
    BOTH_CPLS
    {
        u8 *code = LOOP("rep movsb");
        lazy_pa = map_area(va);
        handlers[PF] = lazy_handler;
        for (unsigned round = 0; round < 20; round++) {
            for (unsigned i = 0; i < PAGES; i++)
                unmap(va + i * 4096);
            lazy_faults = 0;
            struct regs r = loop_regs(cpl, va + 5, va + 4 * 4096 + round, 3 * 4096);
            r.r15 = round ? 0 : WARM;
            done(&r, code);
            EQ(T.r.rdi, va + 7 * 4096 + round);
            EQ(memcmp((u8 *)lazy_pa + 5, (u8 *)lazy_pa + 4 * 4096 + round, 3 * 4096), 0);
            if (round)
                EQ(lazy_faults, 8);
        }
        handlers[PF] = NULL;
    }
}

TEST(string, rights)
{
    BOTH_CPLS
    {
        u64 pa = map_area(va), u = cpl ? PF_U : 0;
        u8 *copy = LOOP("rep movsq"), *fill = LOOP("rep stosl");
        for (unsigned round = 0; round < 12; round++) {
            map(va + 4096, pa + 4096, (rights & ~PG_W) | PG_A);
            struct regs r = loop_regs(cpl, va + 3 * 4096, va + 800, 2000);
            run_at(&r, copy);
            expect(PF, u | PF_W | PF_P);
            EQ(T.cr2, va + 4096);
            expect_at(&r, va + 4 * 4096 - 800, va + 4096, 2000 - (4096 - 800) / 8);
            r = loop_regs(cpl, 0, va + 800, 2000);
            r.rax = 0x1234567890abcdef;
            run_at(&r, fill);
            expect(PF, u | PF_W | PF_P);
            expect_at(&r, 0, va + 4096, 2000 - (4096 - 800) / 4);
            EQ(*(u32 *)(pa + 4092), 0x90abcdef);
            map(va + 4096, pa + 4096, rights);
            r = loop_regs(cpl, va + 3 * 4096, va + 800, 1000);
            done(&r, copy);
            EQ(T.r.rdi, va + 8800);
            EQ(*pte_at(va + 4096, 1) & (PG_A | PG_D), PG_A | PG_D);
        }
        if (cpl) { /* the kernel's page in the user's way */
            map(va + 2 * 4096, pa + 2 * 4096, PG_KRW);
            struct regs r = loop_regs(cpl, va, va + 2 * 4096 - 16, 100);
            run_at(&r, copy);
            expect(PF, u | PF_W | PF_P);
            expect_at(&r, va + 16, va + 2 * 4096, 98);
        }
    }
}

/* Many pages in one instruction, which lie in memory in no order, and one of them in the way of the rest:
 * accessed and dirty flags, rights, absence and code are each page's own. */
TEST(string, many_pages_with_one_that_differs)
{
    enum { MANY = 24, ODD = 13, BYTES = MANY * 4096 - 128 };
    static u64 from[MANY], to[MANY];
    BOTH_CPLS
    {
        u64 pa = page_alloc_2m(), u = cpl ? PF_U : 0, src = va, dst = va + 0x1ff000;
        u8 *copy = LOOP("rep movsb"), *fill = LOOP("rep stosq");
        for (unsigned i = 0; i < MANY; i++) {
            from[i] = pa + (i * 7 % MANY) * 4096ul;
            to[i] = pa + (MANY + i * 5 % MANY) * 4096ul;
            map(src + i * 4096ul, from[i], rights | PG_A | PG_D);
            map(dst + i * 4096ul, to[i], rights | PG_A | PG_D); /* from one table on to the next */
        }
        for (unsigned i = 0; i < MANY * 512; i++)
            ((u64 *)pa)[i] = random64();
        for (unsigned round = 0; round < 12; round++) {
            unsigned warm = round ? 0 : WARM, odd = ODD + round % 3;
            u64 at = dst + odd * 4096ul, done_bytes = odd * 4096ul - 64;
            context("cpl %u, round %u", cpl, round);
            /* neither accessed nor dirty yet, source and destination */
            map(src + odd * 4096ul, from[odd], rights & ~(PG_A | PG_D));
            map(at, to[odd], rights & ~(PG_A | PG_D));
            struct regs r = loop_regs(cpl, src + 64, dst + 64, BYTES);
            r.r8 = src, r.r9 = dst, r.r15 = warm;
            done(&r, copy);
            EQ(T.r.rsi, src + 64 + BYTES);
            EQ(T.r.rdi, dst + 64 + BYTES);
            EQ(T.r.rcx, 0);
            EQ(*pte_at(src + odd * 4096ul, 1) & (PG_A | PG_D), PG_A);
            EQ(*pte_at(at, 1) & (PG_A | PG_D), PG_A | PG_D);
            for (unsigned i = 0; i < MANY; i++) {
                unsigned lo = i ? 0 : 64, hi = i == MANY - 1 ? 4096 - 64 : 4096;
                EQ(memcmp((u8 *)to[i] + lo, (u8 *)from[i] + lo, hi - lo), 0);
            }
            /* holds code that has been executed: what is executed then is what was copied */
            static u8 *const mov_int = (u8 *)"\xb8\0\0\0\0\xcd\x80";
            for (unsigned k = 1; k <= 3; k++) {
                memcpy((u8 *)from[odd], mov_int, 7);
                ((u8 *)from[odd])[1] = (u8)(round * 4 + k);
                r = loop_regs(cpl, src + 64, dst + 64, BYTES);
                r.r15 = 0;
                done(&r, copy);
                EQ(T.r.rdi, dst + 64 + BYTES);
                struct regs x = regs_for(cpl);
                x.rip = at;
                run(&x);
                expect(DONE, 0);
                EQ(T.r.rax, round * 4 + k);
            }
            /* may not be written */
            map(at, to[odd], (rights & ~PG_W) | PG_A | PG_D);
            r = loop_regs(cpl, src + 64, dst + 64, BYTES);
            r.r15 = 0;
            run_at(&r, copy);
            expect(PF, u | PF_W | PF_P);
            EQ(T.cr2, at);
            expect_at(&r, src + 64 + done_bytes, at, BYTES - done_bytes);
            /* is not there: the source, then the destination */
            map(at, to[odd], rights | PG_A | PG_D);
            unmap(src + odd * 4096ul);
            run_at(&r, copy);
            expect(PF, u);
            EQ(T.cr2, src + odd * 4096ul);
            expect_at(&r, src + 64 + done_bytes, at, BYTES - done_bytes);
            unmap(at);
            r = loop_regs(cpl, 0, dst + 64, BYTES / 8);
            r.r9 = dst, r.r15 = warm, r.rax = random64();
            run_at(&r, fill);
            expect(PF, u | PF_W);
            EQ(T.cr2, at);
            expect_at(&r, 0, at, (BYTES - done_bytes) / 8);
            EQ(*(u64 *)(to[odd - 1] + 4088), r.rax);
            map(src + odd * 4096ul, from[odd], rights | PG_A | PG_D);
            map(at, to[odd], rights | PG_A | PG_D);
            if (cpl) { /* the kernel's page in the user's way */
                map(at, to[odd], PG_KRW | PG_A | PG_D);
                run_at(&r, fill);
                expect(PF, u | PF_W | PF_P);
                expect_at(&r, 0, at, (BYTES - done_bytes) / 8);
                map(at, to[odd], rights | PG_A | PG_D);
            }
        }
    }
}

TEST(string, counts_and_directions)
{
    BOTH_CPLS
    {
        u64 pa = map_area(va);
        u8 *copy = LOOP("rep movsb"), *copyq = LOOP("rep movsq"), *one = LOOP("movsw\n\tstosl");
        /* a count of 0 touches nothing */
        static const u64 bad[] = {NONCANON, 0x8000000000000000, UVA2 + 0x123456, 0};
        for (unsigned i = 0; i < 4; i++) {
            struct regs r = loop_regs(cpl, bad[i], bad[3 - i], 0);
            done(&r, copy);
            EQ(T.r.rsi, bad[i]);
            EQ(T.r.rdi, bad[3 - i]);
            EQ(T.r.rcx, 0);
            EQ(T.r.rdx & F_ARITH, r.rbp & F_ARITH);
        }
        /* not canonical */
        struct regs r = loop_regs(cpl, va, NONCANON, 5);
        run_at(&r, copy);
        expect(GP, 0);
        expect_at(&r, va, NONCANON, 5);
        r = loop_regs(cpl, NONCANON, va, 5);
        run_at(&r, copy);
        expect(GP, 0);
        expect_at(&r, NONCANON, va, 5);
        /* overlapping: each element is read when those before it are written */
        u8 *p = (u8 *)pa, want[64];
        for (unsigned distance = 1; distance < 20; distance++) {
            for (unsigned i = 0; i < 64; i++)
                want[i] = p[i] = (u8)(i * 7 + distance);
            for (unsigned i = 0; i < 30; i++)
                want[distance + i] = want[i];
            r = loop_regs(cpl, va, va + distance, 30);
            done(&r, copy);
            EQ(memcmp(p, want, 64), 0);
            for (unsigned i = 0; i < 30; i++) /* downwards */
                p[i] = (u8)i, p[i + 30] = 0;
            r = loop_regs(cpl, va + 29, va + 29 + distance, 30);
            r.rbp |= F_DF, r.r8 += 2048, r.r9 += 2048;
            done(&r, copy);
            for (unsigned i = 0; i < 30; i++)
                EQ(p[distance + i], i);
            EQ(T.r.rsi, va - 1);
        }
        r = loop_regs(cpl, va + 1, va + 4096 + 3, 700);
        done(&r, copyq);
        EQ(memcmp(p + 1, p + 4096 + 3, 5600), 0);
        EQ(T.r.rcx, 0);
        /* without repeat */
        r = loop_regs(cpl, va + 4095, va + 2 * 4096 - 3, 77);
        r.rax = 0xdeadbeef;
        done(&r, one);
        EQ(T.r.rsi, va + 4097);
        EQ(T.r.rdi, va + 2 * 4096 + 3);
        EQ(T.r.rcx, 77);
        EQ(T.r.rdx & F_ARITH, r.rbp & F_ARITH);
        EQ(*(u32 *)(p + 2 * 4096 - 1), 0xdeadbeef);
        EQ(memcmp(p + 4095, p + 2 * 4096 - 3, 2), 0);
    }
}

TEST(string, compare_scan_load)
{
    BOTH_CPLS
    {
        u64 pa = map_area(va), u = cpl ? PF_U : 0, end = va + PAGES * 4096;
        u8 *p = (u8 *)pa;
        memcpy(p + 4 * 4096, p, 4 * 4096);
        u8 *cmp = LOOP("repe cmpsb"), *cmpq = LOOP("repne cmpsq"), *scas = LOOP("repne scasb"),
           *scasl = LOOP("repe scasl"), *lods = LOOP("lodsq\n\txor %%rcx, %%rax\n\tlodsb"),
           *replods = LOOP("rep lodsw");
        struct regs r = loop_regs(cpl, va + 9, va + 4 * 4096 + 9, 9000);
        p[4 * 4096 + 6000] ^= 0x40;
        done(&r, cmp);
        EQ(T.r.rsi, va + 6001);
        EQ(T.r.rcx, 9000 - (6001 - 9));
        EQ(T.r.rdx & F_ZF, 0);
        r = loop_regs(cpl, va + 6001, va + 4 * 4096 + 6001, 20000);
        run_at(&r, cmp);
        expect(PF, u);
        EQ(T.cr2, end);
        EQ(T.r.rdi, end);
        EQ(T.r.rcx, 20000 - (4 * 4096 - 6001));
        r = loop_regs(cpl, va, va + 4 * 4096 + 8, 9);
        *(u64 *)(p + 40) = *(u64 *)(p + 4 * 4096 + 48);
        done(&r, cmpq);
        EQ(T.r.rcx, 3);
        EQ(T.r.rdx & F_ZF, F_ZF);
        memset(p, 0x11, 4096);
        p[3333] = 0x22;
        r = loop_regs(cpl, 1, va, 5000);
        r.rax = 0xff22;
        done(&r, scas);
        EQ(T.r.rdi, va + 3334);
        EQ(T.r.rsi, 1);
        EQ(T.r.rcx, 5000 - 3334);
        r = loop_regs(cpl, 1, va + 4, 5000);
        r.rax = 0xffffffff11111111;
        done(&r, scasl);
        EQ(T.r.rdi, va + 3336);
        EQ(T.r.rdx & F_ZF, 0);
        r = loop_regs(cpl, 1, va, 0); /* the flags stay */
        done(&r, scas);
        EQ(T.r.rdx & F_ARITH, r.rbp & F_ARITH);
        r = loop_regs(cpl, va + 3326, 2, 5);
        done(&r, lods);
        EQ(T.r.rax, 0x2211111111111111);
        EQ(T.r.rdi, 2);
        EQ(T.r.rsi, va + 3335);
        r = loop_regs(cpl, va + 3300, 2, 17);
        r.rax = 0x5555555555555555;
        done(&r, replods);
        EQ(T.r.rax, 0x5555555555552211);
        r = loop_regs(cpl, end - 6, 2, 9);
        run_at(&r, replods);
        expect(PF, u);
        expect_at(&r, end, 2, 6);
    }
}

TEST(string, across_slots_of_the_address_space)
{
    /* From one 512 GiB to the next, and around the end of the address space. */
    u64 last = page_alloc(), first = page_alloc(), top = page_alloc();
    map(UVA2 - 4096, last, PG_URW);
    map(UVA2, first, PG_URW);
    map(0xfffffffffffff000, top, PG_URW);
    rights = PG_URW;
    for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
        context("cpl %u", cpl);
        va = UVA;
        map_area(va);
        u8 *fill = LOOP("rep stosw"), *copy = LOOP("rep movsb");
        for (unsigned i = 0; i < 12; i++) {
            struct regs r = loop_regs(cpl, 0, UVA2 - 101, 100);
            r.rax = 0xa0b0 + i;
            done(&r, fill);
            EQ(T.r.rdi, UVA2 + 99);
            EQ(*(u16 *)(first + 97), 0xa0b0 + i);
            EQ(*(u16 *)(last + 4096 - 101), 0xa0b0 + i);
            EQ(*(u8 *)(last + 4095), 0xb0 + i);
            r = loop_regs(cpl, UVA2 + 50, UVA2 - 50, 200);
            for (unsigned k = 0; k < 300; k++)
                ((u8 *)first)[k] = (u8)(k + i);
            done(&r, copy);
            EQ(*(u8 *)(last + 4095), 99 + i);
            EQ(*(u8 *)(first + 149), (u8)(249 + i));
            r = loop_regs(cpl, UVA2 + 50, UVA2 + 60, 100); /* downwards */
            r.rbp |= F_DF, r.r8 += 2048, r.r9 += 2048;
            done(&r, copy);
            EQ(T.r.rsi, UVA2 - 50);
        }
        /* around: to the kernel's memory at 0 */
        struct regs r = loop_regs(cpl, va, (u64)-100, 1000);
        run_at(&r, copy);
        if (cpl) {
            expect(PF, PF_U | PF_W | PF_P);
            EQ(T.cr2, 0);
            expect_at(&r, va + 100, 0, 900);
        } else {
            expect(DONE, 0);
            EQ(T.r.rsi, va + 1000);
            EQ(T.r.rdi, 900);
            EQ(T.r.rcx, 0);
        }
    }
}

static u64 irq_wrong, irq_inside, irq_start, irq_total, irq_distance;
static const u8 *irq_from, *irq_to;

/* The registers at an interrupt in the middle: as many elements are done as RCX says. */
static bool middle_handler(struct isr_frame *f)
{
    u64 rip = f->rip - (f->cs & 3 ? USER_OFFSET : 0), rcx = f->gpr[1], rsi = f->gpr[6],
        rdi = f->gpr[7];
    if (rip == (u64)irq_from && rcx != irq_total) {
        u64 n = irq_total - rcx;
        irq_inside++;
        if (rdi != irq_start + irq_distance + n || rsi != irq_start + n || f->gpr[10] != 0x1010 ||
            f->gpr[11] != 0x1111 || (f->rflags & F_ARITH) != (F_CF | F_SF | F_OF))
            irq_wrong++;
    } else if (rip >= (u64)irq_from && rip < (u64)irq_to &&
               rdi - va > irq_distance + irq_total) {
        irq_wrong++;
    }
    irq_count[0x50]++;
    apic_write(APIC_EOI, 0);
    return true;
}

/* REP MOVSB of irq_total bytes from va to irq_distance further, while a timer ticks. */
static void copy_under_interrupts(unsigned cpl, const u8 *pa, unsigned times)
{
    u8 *at;
    u8 *code =
        SNIP_AT(at, "1: mov %%r8, %%rsi\n\tmov %%r9, %%rdi\n\tmov %%rbx, %%rcx\n\tpush %%rbp\n\t"
                    "popf\n662: rep movsb\n\tdec %%r15\n\tjnz 1b");
    irq_from = at, irq_to = at + 2;
    irq_start = va;
    irq_wrong = irq_inside = 0;
    irq_count[0x50] = 0;
    handlers[0x50] = middle_handler;
    struct regs r = loop_regs(cpl, 0, 0, 0);
    r.r9 = va + irq_distance, r.rbx = irq_total, r.rbp |= F_IF, r.rflags |= F_IF;
    r.r10 = 0x1010, r.r11 = 0x1111;
    r.rbp &= cpl ? ~(u64)F_IF : ~0ul; /* POPF at CPL 3 does not change it */
    apic_timer_periodic(0x50, 20000);
    for (unsigned i = 0; i < 3000 && irq_inside < 20; i++) {
        r.r15 = times;
        done(&r, code);
    }
    apic_write(APIC_LVTT, 0x10000);
    handlers[0x50] = irq_count_handler;
    sti();
    for (volatile unsigned i = 0; i < 20; i++)
        ;
    cli();
    EQ(irq_wrong, 0);
    EQ(memcmp(pa, pa + irq_distance, irq_total), 0);
    EQ(T.r.rsi, va + irq_total);
    if (irq_count[0x50] <= 5)
        fail("%lu interrupts, %lu inside", irq_count[0x50], irq_inside);
}

TEST(string, interrupts_in_the_middle)
{
    BOTH_CPLS
    {
        u64 pa = map_area(va);
        irq_distance = irq_total = 3 * 4096;
        copy_under_interrupts(cpl, (u8 *)pa, 400);
    }
}

TEST(string, interrupts_in_the_middle_of_many_pages)
{
    BOTH_CPLS
    {
        u64 pa = page_alloc_2m();
        for (unsigned i = 0; i < 512; i++)
            map(va + i * 4096ul, pa + i * 4096ul, rights | PG_A | PG_D);
        for (unsigned i = 0; i < 256 * 512; i++)
            ((u64 *)pa)[i] = random64();
        irq_distance = 256 * 4096, irq_total = 256 * 4096 - 77;
        copy_under_interrupts(cpl, (u8 *)pa, 8);
        if (!irq_inside)
            fail("of %lu interrupts none was inside", irq_count[0x50]);
    }
}

TEST(string, code_is_overwritten)
{
    BOTH_CPLS
    {
        /* The instructions behind REP MOVSB are what it writes: INC RAX a hundred times, or NOPs.
         */
        u64 pa = map_area(va);
        u8 *code = (u8 *)pa;
        static const u8 start[] = {0xf3, 0xa4}, end[] = {0xcd, 0x80};
        memset(code, 0x90, 4096);
        memcpy(code + 100, start, 2);
        memcpy(code + 402, end, 2);
        for (unsigned i = 0; i < 100; i++) { /* at va + 4096 */
            memcpy(code + 4096 + 3 * i, "\x48\xff\xc0", 3);
            memcpy(code + 8192 + 3 * i, "\x0f\x1f\x00", 3);
        }
        for (unsigned i = 0; i < 200; i++) {
            struct regs r = regs_for(cpl);
            unsigned what = i % 3 == 2;
            r.rsi = va + 4096 + 4096 * what, r.rdi = va + 102, r.rcx = 300, r.rax = 0,
            r.rip = va + 100;
            run(&r);
            expect(DONE, 0);
            EQ(T.r.rax, what ? 0 : 100);
            EQ(T.r.rdi, va + 402);
            EQ(T.r.rcx, 0);
        }
        /* it overwrites itself: the iterations that are left may be those of the old instruction or
         * be given up, but what is executed afterwards is new */
        static const u8 self[] = {0xf3, 0xaa, 0x90, 0x90, 0xcd, 0x80};
        for (unsigned i = 0; i < 100; i++) {
            struct regs r = regs_for(cpl);
            memcpy(code + 2048, self, 6);
            r.rdi = va + 2048 - 50, r.rcx = 54, r.rax = 0x90, r.rip = va + 2048 - 50;
            memset(code + 2048 - 50, 0x90, 50);
            run(&r);
            expect(DONE, 0);
            CHECK(T.r.rdi >= va + 2049 && T.r.rdi <= va + 2052);
            EQ(code[2048], 0x90);
        }
    }
}

TEST(string, devices)
{
    /* Memory, then a device, then memory again, by the same instruction. */
    BOTH_CPLS
    {
        u64 pa = map_area(va), apic = va + 100 * 4096;
        map(apic, APIC_BASE, rights | PG_PCD);
        u32 id = apic_read(APIC_VERSION);
        u8 *copy = LOOP("rep movsl");
        for (unsigned i = 0; i < 12; i++) {
            struct regs r = loop_regs(cpl, apic + APIC_VERSION, va + 4 * 4096 + 4 * i, 1);
            *(u32 *)(pa + 4 * 4096 + 4 * i) = 0;
            done(&r, copy);
            EQ(*(u32 *)(pa + 4 * 4096 + 4 * i), id);
            r = loop_regs(cpl, va, apic + APIC_TPR, 1);
            *(u32 *)pa = i << 4;
            done(&r, copy);
            EQ(apic_read(APIC_TPR), i << 4);
            EQ(T.r.rdi, apic + APIC_TPR + 4);
        }
        apic_write(APIC_TPR, 0);
    }
}
