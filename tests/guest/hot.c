/*
 * The same rules again in loops that run thousands of times.  A binary translator treats hot code
 * differently (other translations, cached addresses, host mappings), so what holds once must be
 * shown to hold there too, and to stop holding at the right iteration.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

enum { WARM = 20000 };

/* Runs a loop over `code` until it is certainly hot. */
static void warm(struct regs *r, u8 *code, u64 address)
{
    struct regs w = *r;
    w.rbx = w.rsi = w.rdi = address;
    w.rcx = WARM;
    done(&w, code);
}

TEST(hot, walk_off_the_mapping)
{
    /* A pointer that walks into an unmapped page: the fault comes at exactly that element. */
    for (unsigned i = 0; i < 40; i++)
        map_new(UVA + i * 4096ul, PG_URW);
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        u8 *load = SNIP("1: add (%%rbx), %%rax\n\tadd $8, %%rbx\n\tdec %%rcx\n\tjnz 1b");
        u8 *store = SNIP("1: mov %%rcx, (%%rbx)\n\tadd $8, %%rbx\n\tdec %%rcx\n\tjnz 1b");
        u8 *down = SNIP("1: mov %%rcx, -8(%%rbx)\n\tsub $8, %%rbx\n\tdec %%rcx\n\tjnz 1b");
        u8 *push = SNIP("mov %%rsp, %%r8\n\tmov %%rbx, %%rsp\n1: push %%rcx\n\tdec %%rcx\n\tjnz "
                        "1b\n\tmov %%r8, %%rsp");
        u8 *pop = SNIP("mov %%rsp, %%r8\n\tmov %%rbx, %%rsp\n1: pop %%rdx\n\tadd %%rdx, "
                       "%%rax\n\tdec %%rcx\n\tjnz 1b\n\t"
                       "mov %%r8, %%rsp");
        for (unsigned round = 0; round < 3; round++) {
            struct regs r = regs_for(cpl);
            warm(&r, load, UVA);
            r.rbx = UVA + 30 * 4096, r.rcx = 100000;
            run_at(&r, load);
            expect(PF, u);
            EQ(T.cr2, UVA + 40 * 4096);
            EQ(T.r.rbx, UVA + 40 * 4096);
            EQ(T.r.rcx, 100000 - 10 * 512);
            warm(&r, store, UVA);
            run_at(&r, store);
            expect(PF, u | PF_W);
            EQ(T.cr2, UVA + 40 * 4096);
            EQ(T.r.rcx, 100000 - 10 * 512);
            warm(&r, down, UVA + 40 * 4096);
            r.rbx = UVA + 10 * 4096;
            run_at(&r, down);
            expect(PF, u | PF_W);
            EQ(T.cr2, UVA - 8);
            EQ(T.r.rcx, 100000 - 10 * 512);
            warm(&r, push, UVA + 40 * 4096);
            run_at(&r, push);
            expect(PF, u | PF_W);
            EQ(T.cr2, UVA - 8);
            EQ(T.r.rsp, UVA);
            EQ(T.r.rcx, 100000 - 10 * 512);
            warm(&r, pop, UVA);
            r.rbx = UVA + 30 * 4096;
            run_at(&r, pop);
            expect(PF, u);
            EQ(T.cr2, UVA + 40 * 4096);
            EQ(T.r.rsp, UVA + 40 * 4096);
            EQ(T.r.rcx, 100000 - 10 * 512);
        }
    }
}

TEST(hot, pml4_slot_boundary)
{
    /* UVA2 begins the 512 GiB after UVA's.  Accesses over the boundary, and displacements, indexes
     * and stacks that reach from one side to the other. */
    u64 a = map_new(UVA2 - 4096, PG_URW), b = map_new(UVA2, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *straddle = SNIP(
            "1: mov (%%rbx), %%rax\n\tadd $1, %%rax\n\tmov %%rax, (%%rbx)\n\tlock incq (%%rbx)\n\t"
            "dec %%rcx\n\tjnz 1b");
        warm(&r, straddle, UVA2 - 512);
        *(u64 *)(a + 4088) = 0, *(u64 *)b = 0;
        r.rbx = UVA2 - 3, r.rcx = 1000;
        done(&r, straddle);
        u64 v;
        u8 bytes[8];
        memcpy(bytes, (u8 *)a + 4093, 3);
        memcpy(bytes + 3, (u8 *)b, 5);
        memcpy(&v, bytes, 8);
        EQ(v, 2000);
        u8 *reach =
            SNIP("1: mov 0x100(%%rbx), %%rax\n\tadd $1, %%rax\n\tmov %%rax, 0x100(%%rbx)\n\t"
                 "incq -0x200(%%rdi)\n\tmov $0x40, %%edx\n\tincq 0x100(%%rbx,%%rdx,8)\n\tmov "
                 "$-0x40, %%rdx\n\t"
                 "incq (%%rdi,%%rdx,8)\n\tdec %%rcx\n\tjnz 1b");
        r.rbx = UVA2 - 0x80, r.rdi = UVA2 + 0x80, r.rcx = WARM;
        memset((u8 *)a, 0, 4096);
        memset((u8 *)b, 0, 4096);
        done(&r, reach);
        EQ(*(u64 *)(b + 0x80), WARM);
        EQ(*(u64 *)(a + 4096 - 0x180), 2 * WARM);
        EQ(*(u64 *)(b + 0x280), WARM);
        /* the stack crosses it */
        u8 *stack = SNIP(
            "mov %%rsp, %%r8\n\tmov %%rbx, %%rsp\n"
            "1: push %%rcx\n\tpush $1\n\tpush $2\n\tcall 2f\n\tpop %%rax\n\tpop %%rax\n\tpop "
            "%%rdx\n\t"
            "add %%rdx, %%r9\n\tdec %%rcx\n\tjnz 1b\n\tjmp 3f\n2: sub $64, %%rsp\n\tmov %%rcx, "
            "24(%%rsp)\n\t"
            "mov 24(%%rsp), %%r10\n\tadd %%r10, %%r9\n\tadd $64, %%rsp\n\tret\n3: mov %%r8, %%rsp");
        for (unsigned off = 0; off < 64; off += 8) {
            r.rbx = UVA2 + off, r.rcx = 3000, r.r9 = 0;
            done(&r, stack);
            EQ(T.r.r9, 2 * 3000ul * 3001 / 2);
        }
        /* the far side is missing */
        unmap(UVA2);
        u64 u = cpl ? PF_U : 0;
        r.rbx = UVA2 - 3;
        run_at(&r, straddle);
        expect(PF, u);
        EQ(T.cr2, UVA2);
        r.rbx = UVA2 - 0x80;
        run_at(&r, reach);
        expect(PF, u);
        EQ(T.cr2, UVA2 + 0x80);
        map(UVA2, b, PG_URW);
    }
}

TEST(hot, indexes_of_32_bits)
{
    /* An index of 32 bits reaches 32 GiB up, or 16 GiB down and up, from wherever the base is: over
     * the boundary of a 512 GiB slot, too, and with the base and the index in either place. */
    u64 a = map_new(UVA2 - 4096, PG_URW), b = map_new(UVA2, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *up = SNIP("1: mov %%esi, %%edx\n\tincq (%%rbx,%%rdx,8)\n\tincq 8(%%rdi,%%rdx,8)\n\t"
                      "dec %%rcx\n\tjnz 1b");
        u8 *down =
            SNIP("1: movslq %%esi, %%rdx\n\tincq (%%rbx,%%rdx,8)\n\tincq -16(%%rdi,%%rdx,8)\n\t"
                 "dec %%rcx\n\tjnz 1b");
        u8 *swapped = SNIP("1: mov %%esi, %%edx\n\tincq (%%rdx,%%rbx)\n\tincq 8(%%rbx,%%rdx)\n\t"
                           "dec %%rcx\n\tjnz 1b");
        u8 *constant =
            SNIP("1: movslq %%esi, %%rdx\n\tincq 0x70000000(,%%rdx,8)\n\tdec %%rcx\n\tjnz 1b");
        static const u32 index[] = {0xffffffff, 0x80000000, 0x7fffffff, 1};
        u64 low = map_new(0x6ffff000, PG_URW);
        for (unsigned i = 0; i < 4; i++) {
            long u = (long)(u64)index[i], s = (int)index[i];
            context("cpl %u, index 0x%x", cpl, index[i]);
            for (unsigned k = 0; k < 2; k++) {
                u64 at = k ? UVA2 : UVA2 - 16, pa = k ? b : a + 4096 - 16;
                u64 *p = (u64 *)pa;
                r.rcx = WARM / 4, r.rsi = index[i];
                p[0] = p[1] = 0;
                r.rbx = at - (u64)(8 * u), r.rdi = r.rbx;
                done(&r, up);
                EQ(p[0], WARM / 4);
                EQ(p[1], WARM / 4);
                p[0] = p[1] = 0;
                r.rbx = at - (u64)(8 * s), r.rdi = r.rbx + 24;
                done(&r, down);
                EQ(p[0], WARM / 4);
                EQ(p[1], WARM / 4);
                p[0] = p[1] = 0;
                r.rbx = at - (u64)u;
                done(&r, swapped);
                EQ(p[0], WARM / 4);
                EQ(p[1], WARM / 4);
            }
        }
        r.rsi = (u64)-0x200, r.rcx = WARM / 4;
        done(&r, constant);
        EQ(*(u64 *)low, WARM / 4);
    }
}

TEST(hot, ends_of_the_address_space)
{
    /* The last page of the lower half, the first and last of the upper half, and page zero. */
    u64 low = map_new(0x7ffffffff000, PG_URW);
    map_new(0xffff800000000000, PG_URW);
    u64 top = map_new(0xfffffffffffff000, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *code = SNIP("1: incq (%%rbx)\n\tdec %%rcx\n\tjnz 1b");
        static const u64 good[] = {0x7ffffffff000,     0x7ffffffffff8,     0xffff800000000000,
                                   0xffff800000000ff8, 0xfffffffffffff000, 0xfffffffffffffff8};
        for (unsigned i = 0; i < 6; i++) {
            context("cpl %u, 0x%lx", cpl, good[i]);
            r.rbx = good[i], r.rcx = WARM / 4;
            done(&r, code);
        }
        static const u64 bad[] = {0x800000000000,     0x800000000ff8,     0xffff7ffffffffff8,
                                  0xffff7ffffffffffc, 0x8000000000000000, 0x0001000000000000,
                                  0x1000ffffff000};
        for (unsigned i = 0; i < 7; i++) {
            if (on_tcg && (bad[i] & 7)) /* only the first byte is looked at: the same here */
                continue;
            context("cpl %u, 0x%lx", cpl, bad[i]);
            r.rbx = bad[i];
            run_at(&r, code);
            expect(GP, 0);
        }
        /* Addresses that differ from one that the code has got used to by multiples of 2^47. */
        static const u64 far[] = {1, 2, 3, 5, 254, 255, 256, 0x8000, 0xffff, 0x10000, 0x1fffe};
        for (unsigned i = 0; i < 6; i++) {
            r.rbx = good[i], r.rcx = WARM / 4, r.rdx = 0;
            u8 *warm = SNIP("1: incq (%%rbx)\n\tdec %%rcx\n\tjnz 1b\n\tincq 8(%%rdx)");
            r.rdx = good[i] & ~0xfffull;
            done(&r, warm);
            for (unsigned k = 0; k < 11; k++) {
                u64 at = good[i] + (far[k] << 47);
                if ((u64)((long)(at << 16) >> 16) == at)
                    continue;
                context("cpl %u, 0x%lx after 0x%lx", cpl, at, good[i]);
                r.rbx = at, r.rcx = 1;
                run_at(&r, warm);
                expect(GP, 0);
            }
        }
        context("cpl %u, a non-canonical base with a canonical sum", cpl);
        r.rbx = 0x800000000000, r.rcx = 1000, r.rdx = (u64)-16;
        done(&r, SNIP("1: incq -8(%%rbx)\n\tincq (%%rbx,%%rdx)\n\tdec %%rcx\n\tjnz 1b"));
        context("cpl %u, wrapping sums", cpl);
        *(u64 *)(top + 0xff0) = 0;
        r.rbx = 8, r.rcx = 1000;
        done(&r, SNIP("1: incq -24(%%rbx)\n\tdec %%rcx\n\tjnz 1b"));
        EQ(*(u64 *)(top + 0xff0), 1000);
        r.rbx = 0xffffffffffffff00, r.rdx = 0xf0;
        done(&r, SNIP("1: incq (%%rbx,%%rdx)\n\tdec %%rcx\n\tjnz 1b"));
        EQ(*(u64 *)(top + 0xff0), 2000);
        (void)low;
    }
}

TEST(hot, stack_pointer_games)
{
    /* RSP moved far, read as a value, used as data, switched between stacks in a hot loop. */
    for (unsigned i = 0; i < 8; i++) {
        map_new(UVA + i * 4096, PG_URW);
        map_new(KVA + i * 4096, PG_URW);
    }
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.r8 = UVA + 0x4000, r.r9 = KVA + 0x4000, r.rcx = WARM, r.rax = 0;
        r.rdi = r.rsp;
        done(&r,
             SNIP("1: mov %%r8, %%rsp\n\tpush %%rcx\n\tmov %%r9, %%rsp\n\tpush %%rcx\n\tpop "
                  "%%rdx\n\tadd %%rdx, %%rax\n\t"
                  "mov %%r8, %%rsp\n\tmov -8(%%rsp), %%rdx\n\tsub %%rdx, %%rax\n\tlea "
                  "-0x1000(%%rsp), %%rsp\n\t"
                  "push %%rsp\n\tpop %%rdx\n\tadd $0x1000, %%rdx\n\tcmp %%rdx, %%r8\n\tjne 9f\n\t"
                  "mov %%rsp, %%rbp\n\tand $-64, %%rsp\n\tsub $0x800, %%rsp\n\tmovq $7, "
                  "0x10(%%rsp)\n\t"
                  "addq $1, 0x10(%%rsp)\n\tmov %%rbp, %%rsp\n\tmov -0x7f0(%%rsp), %%rdx\n\tadd "
                  "%%rdx, %%rax\n\t"
                  "xchg %%rsp, %%r9\n\txchg %%rsp, %%r9\n\tdec %%rcx\n\tjnz 1b\n9: mov %%rdi, "
                  "%%rsp"));
        EQ(T.r.rcx, 0);
        EQ(T.r.rax, 8 * WARM);
        /* a stack pointer to nowhere is no fault until it is used */
        r.rcx = 5000, r.rax = 0;
        done(&r, SNIP("1: mov $0x123456789abcdef0, %%rsp\n\tmov %%rsp, %%rdx\n\tadd $16, "
                      "%%rsp\n\tsub %%rdx, %%rsp\n\t"
                      "add %%rsp, %%rax\n\tmov %%r8, %%rsp\n\tpush %%rcx\n\tpop %%rcx\n\tdec "
                      "%%rcx\n\tjnz 1b\n\tmov %%rdi, %%rsp"));
        EQ(T.r.rax, 16 * 5000);
        u8 *code = SNIP(
            "1: mov %%r8, %%rsp\n\tpush %%rcx\n\tpop %%rdx\n\tdec %%rcx\n\tjnz 1b\n\tpush %%rdx");
        r.rcx = WARM;
        done(&r, code);
        r.r8 = UVA + 0x10000;
        run_at(&r, code);
        expect(PF, PF_W | (cpl ? PF_U : 0));
        EQ(T.cr2, UVA + 0xfff8);
        EQ(T.r.rsp, UVA + 0x10000);
        r.r8 = NONCANON + 0x100;
        if (!on_tcg) {
            run_at(&r, code);
            expect(SS, 0);
            EQ(T.r.rsp, NONCANON + 0x100);
        }
    }
}

static volatile u64 toggles;
static u64 toggle_va, toggle_pa[2], toggle_flags;

static bool unmap_handler(struct isr_frame *f)
{
    /* an interrupt takes the page away, as a kernel that swaps would */
    toggles++;
    *pte_at(toggle_va, 1) = 0;
    invlpg(toggle_va);
    apic_write(APIC_EOI, 0);
    return true;
}

static bool refault_handler(struct isr_frame *f)
{
    if (read_cr2() >> 12 != toggle_va >> 12)
        return false;
    *pte_at(toggle_va, 1) = toggle_pa[0] | toggle_flags;
    return true;
}

TEST(hot, page_taken_away_by_an_interrupt)
{
    map_new(UVA, PG_URW);
    toggle_va = UVA;
    toggle_pa[0] = page_alloc();
    toggle_flags = PG_URW;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        handlers[0x50] = unmap_handler;
        handlers[PF] = refault_handler;
        toggles = 0;
        memset((u8 *)toggle_pa[0], 0, 4096);
        map(UVA, toggle_pa[0], PG_URW);
        r.rbx = UVA, r.rcx = 300000;
        r.rflags = F_IF | 2;
        apic_timer_periodic(0x50, 60000);
        u64 rounds = 0;
        u8 *code = SNIP("1: incq (%%rbx)\n\tmov (%%rbx), %%rax\n\tlock addq $2, 8(%%rbx)\n\t"
                        "mov %%rax, 16(%%rbx)\n\tdec %%rcx\n\tjnz 1b");
        do {
            rounds++;
            if (!done(&r, code))
                break;
        } while (toggles < 5 && rounds < 200);
        apic_write(APIC_LVTT, 0x10000);
        handlers[PF] = NULL;
        EQ(*(u64 *)toggle_pa[0], 300000 * rounds);
        EQ(*(u64 *)(toggle_pa[0] + 8), 600000 * rounds);
        EQ(T.r.rax, 300000 * rounds);
        if (toggles < 3)
            fail("only %lu interrupts", toggles);
        handlers[0x50] = irq_count_handler;
        sti();
        for (volatile unsigned i = 0; i < 20; i++)
            ;
        cli();
    }
}

static bool clear_dirty_handler(struct isr_frame *f)
{
    toggles++;
    *pte_at(toggle_va, 1) &= ~(PG_A | PG_D);
    invlpg(toggle_va);
    apic_write(APIC_EOI, 0);
    return true;
}

TEST(hot, dirty_bit_set_again)
{
    u64 pa = map_new(UVA, PG_URW);
    toggle_va = UVA;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *store = SNIP("1: mov %%rcx, (%%rbx)\n\tdec %%rcx\n\tjnz 1b");
        u8 *load = SNIP("1: mov (%%rbx), %%rax\n\tdec %%rcx\n\tjnz 1b");
        r.rbx = UVA;
        for (unsigned i = 0; i < 30; i++) {
            r.rcx = i < 5 ? WARM : 10;
            done(&r, store);
            EQ(*pte_at(UVA, 1) & (PG_A | PG_D), PG_A | PG_D);
            *pte_at(UVA, 1) = pa | PG_URW;
            invlpg(UVA);
            r.rcx = i < 5 ? WARM : 10;
            done(&r, load);
            EQ(*pte_at(UVA, 1) & (PG_A | PG_D), PG_A);
            *pte_at(UVA, 1) = pa | PG_URW;
            write_cr3(read_cr3());
        }
        handlers[0x50] = clear_dirty_handler;
        toggles = 0;
        r.rflags = F_IF | 2, r.rcx = 300000;
        apic_timer_periodic(0x50, 60000);
        done(&r, store);
        apic_write(APIC_LVTT, 0x10000);
        handlers[0x50] = irq_count_handler;
        sti();
        for (volatile unsigned i = 0; i < 20; i++)
            ;
        cli();
        r.rflags = 2, r.rcx = 1;
        done(&r, store);
        EQ(*pte_at(UVA, 1) & (PG_A | PG_D), PG_A | PG_D);
    }
}

TEST(hot, rights_change_between_runs)
{
    /* Hot loads and stores meet every combination of rights, at both privilege levels. */
    u64 pa = page_alloc();
    u8 *store = SNIP("1: mov %%rcx, (%%rbx)\n\tdec %%rcx\n\tjnz 1b");
    u8 *load = SNIP("1: mov (%%rbx), %%rax\n\tdec %%rcx\n\tjnz 1b");
    map(UVA, pa, PG_URW);
    for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
        struct regs r = regs_for(cpl);
        warm(&r, store, UVA);
        warm(&r, load, UVA);
    }
    for (unsigned i = 0; i < 200; i++) {
        u64 flags = random64() & (PG_P | PG_W | PG_U);
        bool wp = random64() & 1, smap = feat.smap && (random64() & 1), ac = random64() & 1;
        unsigned cpl = random64() & 1 ? 3 : 0;
        bool write = random64() & 1;
        map(UVA, pa, flags);
        write_cr0(wp ? DEFAULT_CR0 : DEFAULT_CR0 & ~CR0_WP);
        write_cr4(default_cr4 | (smap ? CR4_SMAP : 0));
        struct regs r = regs_for(cpl);
        r.rflags |= ac ? F_AC : 0;
        r.rbx = UVA, r.rcx = 3;
        context("round %u: flags %lu wp %u smap %u ac %u cpl %u %s", i, flags, wp, smap, ac, cpl,
                write ? "write" : "read");
        bool ok = flags & PG_P;
        if (cpl == 3)
            ok = ok && (flags & PG_U) && (!write || (flags & PG_W));
        else
            ok = ok && (!write || (flags & PG_W) || !wp) && (!smap || ac || !(flags & PG_U));
        run_at(&r, write ? store : load);
        if (ok)
            expect(DONE, 0);
        else
            expect(PF, (flags & PG_P ? PF_P : 0) | (write ? PF_W : 0) | (cpl ? PF_U : 0));
    }
    write_cr0(DEFAULT_CR0);
    write_cr4(default_cr4);
}

TEST(hot, system_calls_with_user_copies)
{
    /* A user loop of system calls whose kernel side copies from and to user memory under SMAP. */
    if (!feat.smap)
        SKIP("no SMAP");
    map_new(UVA, PG_URW);
    map_new(KVA, PG_KRW);
    u8 *entry = SNIP(
        "swapgs\n\tmov %%rsp, %%gs:8\n\tmov %%gs:0, %%rsp\n\tpush %%rcx\n\tpush %%r11\n\tstac\n\t"
        "mov (%%rdi), %%rax\n\tadd $1, %%rax\n\tmov %%rax, 8(%%rdi)\n\tclac\n\tincq %%gs:16\n\t"
        "pop %%r11\n\tpop %%rcx\n\tmov %%gs:8, %%rsp\n\tswapgs\n\tsysretq");
    u64 kernel_pa = *pte_at(KVA, 1) & PG_ADDR, user_pa = *pte_at(UVA, 1) & PG_ADDR;
    *(u64 *)kernel_pa = KVA + 0x800;
    wrmsr(MSR_KGS, KVA);
    wrmsr(MSR_GS_BASE, UVA + 0x100);
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_FMASK, F_IF | F_DF | F_TF | F_AC | F_NT);
    write_cr4(default_cr4 | CR4_SMAP | (feat.smep ? CR4_SMEP : 0));
    struct regs r = regs_for(3);
    r.rdi = UVA, r.rbx = WARM, r.r12 = 0;
    *(u64 *)(user_pa + 0x110) = 0;
    done(&r, SNIP("1: mov %%rbx, (%%rdi)\n\tsyscall\n\tadd 8(%%rdi), %%r12\n\tincq %%gs:16\n\tpush "
                  "%%rax\n\tpop %%rdx\n\t"
                  "dec %%rbx\n\tjnz 1b"));
    EQ(T.r.r12, (u64)WARM * (WARM + 1) / 2 + WARM);
    EQ(*(u64 *)(kernel_pa + 16), WARM);
    EQ(*(u64 *)(user_pa + 0x110), WARM);
    write_cr4(default_cr4);
}

TEST(hot, device_and_memory_from_one_instruction)
{
    u64 pa = map_new(KVA, PG_KRW);
    map(KVA + 4096, APIC_BASE, PG_KRW | PG_PCD);
    struct regs r = regs_for(0);
    u8 *code = SNIP("1: mov 0x80(%%rbx), %%eax\n\tadd %%rax, %%rdx\n\tmovl $0x30, "
                    "0x80(%%rbx)\n\tdec %%rcx\n\tjnz 1b");
    *(u32 *)(pa + 0x80) = 0x30;
    for (unsigned i = 0; i < 6; i++) {
        r.rbx = KVA, r.rcx = i < 2 ? WARM : 100, r.rdx = 0;
        done(&r, code);
        EQ(T.r.rdx, 0x30 * r.rcx);
        apic_write(APIC_TPR, 0x30);
        r.rbx = KVA + 4096, r.rcx = 200;
        done(&r, code);
        EQ(T.r.rdx, 0x30 * 200);
        apic_write(APIC_TPR, 0);
    }
}

TEST(hot, address_spaces)
{
    /* A loop body that switches CR3 each time and sees another page at the same address. */
    u64 a = page_alloc(), b = page_alloc();
    map(UVA, a, PG_URW);
    u64 *other = space_with(UVA, b | PG_URW);
    u64 home = read_cr3();
    struct regs r = regs_for(0);
    for (unsigned pcid = 0; pcid <= (feat.pcid ? 1u : 0u); pcid++) {
        context("pcid %u", pcid);
        if (pcid)
            write_cr4(default_cr4 | CR4_PCIDE);
        *(u64 *)a = *(u64 *)b = 0;
        r.rbx = UVA, r.rcx = 3000;
        r.r8 = home | (pcid ? 1ul << 63 : 0), r.r9 = (u64)other | (pcid ? 1ul << 63 | 7 : 0);
        done(&r, SNIP("1: mov %%r9, %%cr3\n\taddq $2, (%%rbx)\n\tmov (%%rbx), %%rdx\n\tmov %%r8, "
                      "%%cr3\n\taddq $1, (%%rbx)\n\t"
                      "add (%%rbx), %%rdx\n\tadd %%rdx, %%rax\n\tdec %%rcx\n\tjnz 1b"));
        EQ(*(u64 *)a, 3000);
        EQ(*(u64 *)b, 6000);
        EQ(T.r.rax - r.rax, 3 * (3000ul * 3001 / 2));
        write_cr3(home);
        write_cr4(default_cr4);
    }
}

/* The entry for a page in another address space. */
static u64 *pte_in(u64 *top, u64 va)
{
    u64 *t = top;
    for (unsigned shift = 39; shift > 12; shift -= 9)
        t = (u64 *)(t[va >> shift & 511] & ~0xffful);
    return &t[va >> 12 & 511];
}

/* A page with: mov eax, n; add rax, [rbx]; inc qword [rbx + 8]; int 80h */
static u64 number_page(u32 n)
{
    u64 page = page_alloc();
    static const u8 text[] = {0xb8, 0, 0, 0, 0, 0x48, 0x03, 0x03, 0x48, 0xff, 0x43, 0x08, 0xcd, 0x80};
    memcpy((void *)page, text, sizeof text);
    memcpy((u8 *)page + 1, &n, 4);
    return page;
}

#define SPACES 20u
struct number_space {
    u64 *top, code[2], data[2], visits[2];
    unsigned now;
};

static void visit(struct number_space *s, unsigned pcid, u64 keep)
{
    struct regs r = regs_for(3);
    write_cr3((u64)s->top | pcid | keep);
    r.rip = UVA, r.rbx = UVA + 4096;
    run(&r);
    expect(DONE, 0);
    EQ(T.r.rax, pcid * 1000 + 1 + s->now * 110);
    EQ(*(u64 *)(s->data[s->now] + 8), ++s->visits[s->now]);
}

TEST(hot, address_spaces_revisited)
{
    /* More address spaces than anybody remembers, each with code and data of its own at the same addresses,
     * gone back to without a flush; then other pages there, and each kind of flush on its own. */
    if (!feat.pcid || !feat.invpcid)
        SKIP("no PCID or no INVPCID");
    static struct number_space space[SPACES + 1];
    static const u8 some[] = {1, 17, 6, 20};
    u64 home = read_cr3(), keep = 1ul << 63;
    for (unsigned i = 1; i <= SPACES; i++) {
        struct number_space *s = &space[i];
        *s = (struct number_space){.now = 0};
        for (unsigned k = 0; k < 2; k++) {
            s->code[k] = number_page(i * 1000 + k * 100);
            s->data[k] = page_alloc();
            *(u64 *)s->data[k] = 1 + k * 10;
        }
        s->top = space_with(UVA, s->code[0] | PG_P | PG_U);
        *pte_in(s->top, UVA + 4096) = s->data[0] | PG_URW;
    }
    write_cr4(default_cr4 | CR4_PCIDE | CR4_PGE);
    for (unsigned round = 0; round < 80; round++) {
        context("round %u", round);
        for (unsigned i = 1; i <= (round < 3 ? SPACES : 4); i++)
            visit(&space[i], i, round ? keep : 0);
        for (unsigned i = 0; i < sizeof some; i++)
            visit(&space[some[i]], some[i], keep);
    }
    for (unsigned kind = 0; kind < 14; kind++)
        for (unsigned i = 0; i < sizeof some; i++) {
            struct number_space *s = &space[some[i]];
            struct {
                u64 pcid, address;
            } d = {some[i], UVA};
            context("flush %u, PCID %u", kind % 7, some[i]);
            visit(s, some[i], keep);
            write_cr3(home | keep);
            s->now ^= 1;
            *pte_in(s->top, UVA) = s->code[s->now] | PG_P | PG_U;
            *pte_in(s->top, UVA + 4096) = s->data[s->now] | PG_URW;
            switch (kind % 7) {
            case 0:
                asm volatile("invpcid %0, %1" ::"m"(d), "r"(0ul) : "memory");
                d.address += 4096;
                asm volatile("invpcid %0, %1" ::"m"(d), "r"(0ul) : "memory");
                break;
            case 1:
                asm volatile("invpcid %0, %1" ::"m"(d), "r"(1ul) : "memory");
                break;
            case 2: /* INVLPG by way of another table with this PCID */
                write_cr3(home | some[i] | keep);
                invlpg(UVA);
                invlpg(UVA + 4096);
                write_cr3(home | keep);
                break;
            case 3:
                asm volatile("invpcid %0, %1" ::"m"(d), "r"(3ul) : "memory");
                break;
            case 4:
                asm volatile("invpcid %0, %1" ::"m"(d), "r"(2ul) : "memory");
                break;
            case 5:
                write_cr4(default_cr4 | CR4_PCIDE);
                write_cr4(default_cr4 | CR4_PCIDE | CR4_PGE);
            }
            visit(s, some[i], kind % 7 == 6 ? 0 : keep);
            visit(&space[2], 2, keep);
            visit(s, some[i], keep);
        }
    write_cr3(home);
    write_cr4(default_cr4);
}

/* How long it takes until a translator may believe that an address space is here to stay. */
#define YOUTH_ROUNDS 60

TEST(hot, young_address_spaces)
{
    /* User code that lives on its stack, in two address spaces with a stack of their own at the same
     * address: from when they are new until they have run for several milliseconds, with flushes at the
     * switches and without, and with a fault on the stack's end in either. */
    u64 a = page_alloc(), b = page_alloc();
    map(UVA + 4096, a, PG_URW);
    u64 *other = space_with(UVA + 4096, b | PG_URW), home = read_cr3();
    u8 *code = SNIP("1: push %%rcx\n\tlea 8(%%rsp), %%rsi\n\tpushq (%%rbx)\n\tsub %%rsp, %%rsi\n\t"
                    "add (%%rsp), %%rax\n\tpop %%r9\n\tadd %%rsi, %%rdx\n\tcall 2f\n\tpop %%rcx\n\t"
                    "dec %%rcx\n\tjnz 1b\n\tjmp 3f\n\t2: add 8(%%rsp), %%r8\n\tret\n\t3:");
    u8 *deep = SNIP("1: push %%rax\n\tdec %%rcx\n\tjnz 1b");
    for (unsigned pcid = 0; pcid <= (feat.pcid ? 2u : 0u); pcid++) {
        if (pcid)
            write_cr4(default_cr4 | CR4_PCIDE);
        *(u64 *)a = 1, *(u64 *)b = 1000; /* the marks */
        for (unsigned i = 0; i < 2 * YOUTH_ROUNDS; i++) {
            context("pcid %u, round %u", pcid, i);
            u64 n = 4000, keep = pcid == 2 && i > 1 ? 1ul << 63 : 0;
            write_cr3((i & 1 ? (u64)other | (pcid ? 9 : 0) : home) | keep);
            struct regs r = regs_for(3);
            r.rsp = UVA + 0x2000, r.rbx = UVA + 0x1000, r.rcx = n, r.rax = r.rdx = r.r8 = 0;
            done(&r, code);
            EQ(T.r.rsp, UVA + 0x2000);
            EQ(T.r.rax, n * (i & 1 ? 1000 : 1));
            EQ(T.r.rdx, n * 16);
            EQ(T.r.r8, n * (n + 1) / 2);
            EQ(*(u64 *)((i & 1 ? b : a) + 0xff8), 1); /* the last RCX */
            *(u64 *)((i & 1 ? b : a) + 0xff8) = 0;
            r.rsp = UVA + 0x1080, r.rcx = 30, r.rip = at_cpl(3, deep);
            run(&r);
            expect(PF, PF_W | PF_U);
            EQ(T.cr2, UVA + 0xff8);
            EQ(T.r.rsp, UVA + 0x1000);
            EQ(T.r.rcx, 14);
            *(u64 *)(i & 1 ? b : a) = i & 1 ? 1000 : 1;
        }
        write_cr3(home);
        write_cr4(default_cr4);
    }
}

TEST(hot, stores_that_run_into_code)
{
    /* A hot store loop walks over data pages and then over the page with code that was run. */
    for (unsigned i = 0; i < 10; i++)
        map_new(UVA + i * 4096, PG_URW);
    u64 pa = *pte_at(UVA + 9 * 4096, 1) & PG_ADDR;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        u8 *store = SNIP("1: mov %%al, (%%rbx)\n\tinc %%rbx\n\tdec %%rcx\n\tjnz 1b");
        warm(&r, store, UVA);
        for (unsigned i = 0; i < 20; i++) {
            memcpy((u8 *)pa + 0x100, "\xb8\x01\x90\x90\x90\xcd\x80", 7);
            struct regs c = regs_for(cpl);
            c.rip = UVA + 9 * 4096 + 0x100;
            run(&c);
            expect(DONE, 0);
            EQ(T.r.rax, 0x90909001);
            /* overwrite the opcode: mov $0x90909001, %eax becomes mov $1, %al and three NOPs */
            r.rbx = UVA + 8 * 4096 + 0xf00, r.rcx = 0x100 + 0x101, r.rax = 0xb0;
            done(&r, store);
            c.rax = 0;
            run(&c);
            expect(DONE, 0);
            EQ(T.r.rax, 1);
            if (T.vector != DONE)
                break;
        }
    }
}

TEST(hot, string_and_plain_on_the_same_page)
{
    for (unsigned i = 0; i < 4; i++)
        map_new(UVA + i * 4096, PG_URW);
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = UVA, r.rcx = 2000, r.rax = 0;
        done(&r, SNIP("mov %%rcx, %%rdx\n1: mov %%rbx, %%rdi\n\tmov %%edx, %%eax\n\tmov $1500, "
                      "%%ecx\n\trep stosl\n\t"
                      "mov 5996(%%rbx), %%esi\n\tcmp %%esi, %%edx\n\tjne 2f\n\tlea (%%rbx), "
                      "%%rsi\n\tlea 6000(%%rbx), %%rdi\n\t"
                      "mov $2000, %%ecx\n\trep movsb\n\tmov 7996(%%rbx), %%esi\n\tcmp %%esi, "
                      "%%edx\n\tjne 2f\n\t"
                      "incl 4(%%rbx)\n\tmov %%rbx, %%rdi\n\tlea 6000(%%rbx), %%rsi\n\tmov $2000, "
                      "%%ecx\n\trepe cmpsb\n\t"
                      "cmp $1995, %%ecx\n\tjne 2f\n\tdec %%rdx\n\tjnz 1b\n2:"));
        EQ(T.r.rdx, 0);
    }
}

/*
 * Hot code is translated along its path, over jumps.  Here a jump back ends exactly with its page:
 * what follows it in memory is on another page and no part of the path.  Then the path's second
 * half changes.
 */
#define LOOP_AT_PAGE_END(size, jump)                                                               \
    "jmp 1f\n\t.balign 4096\n7: .skip 16\n"                                                        \
    "2: add $1, %%rax\n\tdec %%rcx\n\tjnz 1f\n\tjmp 9f\n\t"                                        \
    ".skip 4096 - " #size " - (. - 7b), 0xcc\n"                                                    \
    "1: add (%%rbx), %%rdx\n\t" jump "\n\tud2\n662:\n9:"

TEST(hot, path_over_the_pages_end)
{
    u8 *after;
    u8 *code[] = {
        SNIP_AT(after, LOOP_AT_PAGE_END(8, ".byte 0xe9\n\t.long 2b - . - 4")),
        SNIP_AT(after, LOOP_AT_PAGE_END(12, "test %%rsp, %%rsp\n\t.byte 0x0f, 0x85\n\t"
                                            ".long 2b - . - 4")),
        SNIP_AT(after, LOOP_AT_PAGE_END(12, "test %%rsp, %%rsp\n\t.byte 0x0f, 0x84\n\t"
                                            ".long 9f - . - 4\n\tjmp 2b")),
    };
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 3; i++) {
            u8 *page = (u8 *)(((u64)code[i] + 4096) & ~4095ul);
            for (u8 step = 1; step < 4; step++) {
                struct regs r = regs_for(cpl);
                page[16 + 3] = step; /* add $step, %rax */
                r.rbx = UVA, r.rcx = WARM, r.rax = 0, r.rdx = 0;
                map_new(UVA, PG_URW);
                context("cpl %u, loop %u, step %u", cpl, i, step);
                done(&r, code[i]);
                EQ(T.r.rax, (u64)step * WARM);
                EQ(T.r.rdx, 0);
            }
        }
    }
    (void)after;
}

/* A loop over two pages that jumps from one to the other and back; the second adds `step` to RAX.
 */
static void put_far_loop(u64 first, u64 second, u8 step)
{
    static const u8 head[] = {0x48, 0x03, 0x13,                  /* add (%rbx), %rdx    */
                              0x48, 0xff, 0xc9,                  /* dec %rcx            */
                              0x0f, 0x84, 0x34, 0, 0, 0,         /* jz to offset 0x40   */
                              0xe9, 0xef, 0x0f, 0, 0};           /* jmp to the next page */
    const u8 tail[] = {0x48, 0x83, 0xc0, step, 0x48, 0x03, 0x13, /* add $step, %rax; as above */
                       0xe9, 0xf4, 0xef, 0xff, 0xff};            /* jmp to the page before */
    memcpy((u8 *)first, head, sizeof(head));
    memcpy((u8 *)first + 0x40, "\xcd\x80", 2); /* int $0x80 */
    memcpy((u8 *)second, tail, sizeof(tail));
}

static void far_loop(unsigned cpl, u64 step)
{
    for (unsigned i = 0; i < 3; i++) {
        struct regs r = regs_for(cpl);
        r.rip = UVA, r.rbx = UVA + 0x3000, r.rcx = WARM + 1, r.rax = r.rdx = 0;
        run(&r);
        expect(DONE, 0);
        EQ(T.r.rax, step * WARM);
        EQ(T.r.rdx, 0);
    }
}

TEST(hot, jumps_between_pages)
{
    /* However well a translator remembers where a direct jump led: the page tables say where it
     * leads, after INVLPG, after a change of CR3, with and without PCID, global or not. */
    u64 first = page_alloc(), a = page_alloc(), b = page_alloc(), home = (u64)pml4;
    u64 *other = (u64 *)page_alloc();
    u64 *pdpt = (u64 *)page_alloc(), *pd = (u64 *)page_alloc(), *pt = (u64 *)page_alloc();
    put_far_loop(first, a, 1);
    put_far_loop(first, b, 2);
    BOTH_CPLS
    {
        for (unsigned kind = 0; kind < 3; kind++) {
            u64 flags = cpl ? PG_URW : PG_KRW, keep = 0, pcid = 0;
            u64 global = kind == 1 && feat.pge ? PG_G : 0;
            if (kind == 2 && feat.pcid)
                keep = 1ul << 63, pcid = 1;
            context("cpl %u, kind %u", cpl, kind);
            write_cr4(default_cr4 | (global ? CR4_PGE : 0) | (keep ? CR4_PCIDE : 0));
            map(UVA, first, flags | global);
            map_new(UVA + 0x3000, flags);
            memcpy(other, pml4, 4096);
            other[UVA >> 39 & 511] = (u64)pdpt | PG_URW;
            pdpt[UVA >> 30 & 511] = (u64)pd | PG_URW;
            pd[UVA >> 21 & 511] = (u64)pt | PG_URW;
            for (unsigned i = 0; i < 4; i++)
                pt[(UVA >> 12 & 511) + i] = *pte_at(UVA + 4096ul * i, 1);
            pt[(UVA >> 12 & 511) + 1] = b | flags;
            write_cr3((u64)other | pcid);
            write_cr3(home);
            for (unsigned round = 0; round < 20; round++) {
                map(UVA + 4096, a, flags | global);
                far_loop(cpl, 1);
                if (!global) {
                    write_cr3((u64)other | pcid | keep);
                    far_loop(cpl, 2);
                    write_cr3(home | keep);
                    far_loop(cpl, 1);
                }
                *pte_at(UVA + 4096, 1) = b | flags | global;
                invlpg(UVA + 4096);
                far_loop(cpl, 2);
                *pte_at(UVA + 4096, 1) = a | flags | global;
                write_cr3(home);
                write_cr4(default_cr4); /* flushes if that changes PGE or PCIDE */
                far_loop(cpl, 1);
                write_cr4(default_cr4 | (global ? CR4_PGE : 0) | (keep ? CR4_PCIDE : 0));
                ((u8 *)a)[3] = 5; /* the code on the other page changes */
                far_loop(cpl, 5);
                ((u8 *)a)[3] = 1;
                unmap(UVA + 4096);
                struct regs r = regs_for(cpl);
                r.rip = UVA, r.rbx = UVA + 0x3000, r.rcx = 7;
                run(&r);
                expect(PF, cpl ? PF_U | (feat.nx ? PF_I : 0) : feat.nx ? PF_I : 0);
                EQ(T.cr2, UVA + 4096);
                EQ(T.r.rcx, 6);
            }
        }
    }
    write_cr3(home);
    write_cr4(default_cr4);
}
