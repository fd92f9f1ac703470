/*
 * Privileged and sensitive instructions that a translator may do on the spot: in loops that make
 * them hot, with operands that change from round to round, so that what it has guessed at becomes
 * wrong.
 */
#include "guest.h"

enum { WARM = 2000 };

/* One RDMSR and one WRMSR that get to see several MSRs. */
TEST(inline, one_rdmsr_for_many_msrs)
{
    static const u32 msr[] = {MSR_FS_BASE, MSR_GS_BASE, MSR_KGS, MSR_LSTAR, MSR_CSTAR, MSR_FS_BASE};
    enum { N = sizeof(msr) / sizeof(msr[0]) };
    struct regs r = regs_for(0);
    u64 *value = (u64 *)buffer;
    u8 *read = SNIP("cmp %%ecx, %%ecx\n\tstc\n\trdmsr\n\tsetc %%bl\n\tsetz %%bh");
    u8 *write = SNIP("cmp %%ecx, %%ecx\n\tstc\n\twrmsr\n\tsetc %%bl\n\tsetz %%bh");
    u8 *write_dead = SNIP("wrmsr\n\txor %%ebx, %%ebx");

    for (unsigned round = 0; round < 60; round++)
        for (unsigned i = 0; i < N; i++) {
            unsigned k = round < 30 ? i : 0; /* at last the same all the time */
            value[k] = (random64() & 0x7fffffffffff) | (round & 1 ? 0xffff800000000000 : 0);
            r.rcx = msr[k] | random64() << 32;
            r.rax = (value[k] & 0xffffffff) | random64() << 32;
            r.rdx = value[k] >> 32 | random64() << 32;
            done(&r, round & 2 ? write : write_dead);
            if (round & 2)
                EQ(T.r.rbx & 0xffff, 0x101);
            r.rax = r.rdx = ~0ul;
            done(&r, read);
            EQ(T.r.rbx & 0xffff, 0x101);
            EQ(T.r.rax, value[k] & 0xffffffff);
            EQ(T.r.rdx, value[k] >> 32);
            EQ(T.r.rcx, r.rcx);
            EQ(rdmsr(msr[k]), value[k]);
        }
    for (unsigned i = 0; i < 4 && !on_tcg;
         i++) { /* not canonical, by one bit; TCG does not check */
        r.rcx = msr[i];
        r.rax = 0, r.rdx = 0x8000;
        fault(&r, SNIP("wrmsr"), GP, 0);
        run_at(&r, write_dead);
        expect(GP, 0);
        r.rdx = 0xffff7fff;
        run_at(&r, write);
        expect(GP, 0);
        r.rcx = 0xc0000000 + i; /* no such MSR, where another one is expected */
        run_at(&r, write);
        expect(GP, 0);
        run_at(&r, read);
        expect(GP, 0);
    }
    struct regs u = regs_for(3);
    u.rcx = MSR_FS_BASE;
    fault(&u, SNIP("rdmsr"), GP, 0);
    fault(&u, SNIP("wrmsr"), GP, 0);
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_GS_BASE, 0);
    wrmsr(MSR_KGS, 0);
}

/* The number is in the code, and the code behind the WRMSR depends on what it changes. */
TEST(inline, wrmsr_of_a_known_number)
{
    struct regs r = regs_for(0);
    u64 pa = map_new(KVA, PG_KRW);

    *(u64 *)(pa + 0x100) = 0x1122334455667788;
    *(u64 *)(pa + 0x200) = 0x99aabbccddeeff00;
    r.rbx = KVA & 0xffffffff, r.rbp = KVA >> 32;
    r.rdi = WARM;
    done(&r, SNIP("1: mov $0xc0000100, %%ecx\n\tmov %%ebx, %%eax\n\tmov %%ebp, %%edx\n\twrmsr\n\t"
                  "mov %%fs:0x100, %%r8\n\tadd $0x100, %%eax\n\twrmsr\n\tmov %%fs:0x100, %%r9\n\t"
                  "rdmsr\n\tmov %%rax, %%r10\n\tmov %%rdx, %%r11\n\tdec %%edi\n\tjnz 1b"));
    EQ(T.r.r8, 0x1122334455667788);
    EQ(T.r.r9, 0x99aabbccddeeff00);
    EQ(T.r.r10, (KVA & 0xffffffff) + 0x100);
    EQ(T.r.r11, KVA >> 32);
    wrmsr(MSR_FS_BASE, 0);
    /* RDTSC in the same run of code as the WRMSR that moves the TSC. */
    r = regs_for(0);
    r.rdi = 20;
    done(&r, SNIP("1: mov $0x10, %%ecx\n\txor %%eax, %%eax\n\tmov $0x1000, %%edx\n\twrmsr\n\t"
                  "rdtsc\n\tmov %%edx, %%r8d\n\tmov $0x5000, %%edx\n\txor %%eax, %%eax\n\twrmsr\n\t"
                  "rdtsc\n\tmov %%edx, %%r9d\n\tdec %%edi\n\tjnz 1b"));
    if (!on_tcg) { /* whose TSC cannot be written (QEMU 7.2) */
        EQ(T.r.r8, 0x1000);
        EQ(T.r.r9, 0x5000);
    }
}

/* POPF of every kind of image, in one loop, and what PUSHF shows then. */
TEST(inline, popf_of_many_images)
{
    enum { N = 400 };
    u64 *image = (u64 *)buffer, *seen = image + N;

    for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3) {
        u64 may = F_ARITH | F_DF | F_ID | (cpl ? 0 : F_IF | F_IOPL | F_AC);
        struct regs r = regs_for(cpl);
        for (unsigned i = 0; i < N; i++) {
            image[i] = random64() & (may | F_RF | F_VIF | F_VIP | 0xffffffff00008028);
            if (cpl)
                image[i] |= random64() & (F_IF | F_IOPL);
            if (i & 3) /* mostly nothing but arithmetic flags, and IF */
                image[i] = (image[i] & (F_ARITH | F_IF)) | (image[i - 1] & ~(u64)(F_ARITH | F_IF));
            seen[i] = 0;
        }
        r.rbx = at_cpl(cpl, image), r.rsi = at_cpl(cpl, seen), r.rcx = N;
        done(&r, SNIP("1: push (%%rbx)\n\tpopfq\n\tpushfq\n\tpop (%%rsi)\n\tlea 8(%%rbx), %%rbx\n\t"
                      "lea 8(%%rsi), %%rsi\n\tlea -1(%%rcx), %%rcx\n\tjrcxz 2f\n\tjmp 1b\n2: cld"));
        u64 keep = r.rflags & ~may;
        for (unsigned i = 0; i < N; i++) {
            context("cpl %u, image %lx", cpl, image[i]);
            if (!EQ(seen[i], (image[i] & may) | (keep & (F_IF | F_IOPL | F_AC) & ~may) | 2))
                break;
        }
        /* DF itself, and the word form, which leaves the upper flags alone. */
        r = regs_for(cpl);
        r.rbx = at_cpl(cpl, seen), r.rsi = r.rbx + 64, r.rcx = WARM;
        seen[0] = 0x1111, seen[8] = 0;
        done(&r,
             SNIP("1: push $0x402\n\tpopfq\n\tlodsq\n\tpush $2\n\tpopfq\n\tlodsq\n\tdec %%ecx\n\t"
                  "jnz 1b\n\tpush $0x200ad7\n\tpopfq\n\tpushw $2\n\tpopfw\n\tpushfq\n\tpop %%rdx"));
        EQ(T.r.rsi, r.rsi);
        EQ(T.r.rdx & (F_ID | F_ARITH | F_DF), F_ID);
    }
}
