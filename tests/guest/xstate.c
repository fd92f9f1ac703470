/*
 * FXSAVE, XSAVE, XSAVEOPT, XSAVEC and their restores: formats, masks, the init optimization,
 * faults; and that the saved instruction and data pointers are the guest's own or zero.
 * SDM vol. 1, chapter 13.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

static u8 *const area = buffer; /* 64-byte aligned */
static u8 *const area2 = buffer + 0x3000;
static u8 *const source = buffer + 0x6000;

static void set_xcr0(u64 v)
{
    if (feat.xsave)
        xsetbv(0, v);
}

static u64 get_xcr0(void)
{
    return feat.xsave ? xgetbv(0) : 3;
}

static void check_pointers(const u8 *image)
{
    u64 fip = *(const u64 *)(image + 8), fdp = *(const u64 *)(image + 16);
    /* zero, or inside the kernel image (identity or alias) */
    if (fip && (fip & ~(u64)USER_OFFSET) - 0x200000 > 0x2000000)
        fail("FIP is 0x%lx", fip);
    if (fdp && (fdp & ~(u64)USER_OFFSET) - 0x200000 > 0x2000000)
        fail("FDP is 0x%lx", fdp);
}

static void load_all(void)
{
    for (unsigned i = 0; i < 0x1000; i++)
        source[i] = (u8)(i * 13 + (i >> 7) + 1);
    asm volatile("fninit\n\tfld1\n\tfldpi\n\tfldl2e");
    if (feat.avx512f && (get_xcr0() & 0xe0) == 0xe0)
        asm volatile(
            "vmovdqu64 (%0), %%zmm0\n\tvmovdqu64 64(%0), %%zmm7\n\tvmovdqu64 128(%0), %%zmm15\n\t"
            "vmovdqu64 192(%0), %%zmm16\n\tvmovdqu64 256(%0), %%zmm31\n\t"
            "kmovw 320(%0), %%k1\n\tkmovw 328(%0), %%k7" ::"r"(source));
    else if (feat.avx && (get_xcr0() & 4))
        asm volatile(
            "vmovdqu (%0), %%ymm0\n\tvmovdqu 64(%0), %%ymm7\n\tvmovdqu 128(%0), %%ymm15" ::"r"(
                source));
    else
        asm volatile(
            "movdqu (%0), %%xmm0\n\tmovdqu 64(%0), %%xmm7\n\tmovdqu 128(%0), %%xmm15" ::"r"(
                source));
}

static void clear_all(void)
{
    asm volatile("fninit");
    if (feat.avx512f && (get_xcr0() & 0xe0) == 0xe0)
        asm volatile("vpxorq %zmm0, %zmm0, %zmm0\n\tvpxorq %zmm7, %zmm7, %zmm7\n\t"
                     "vpxorq %zmm15, %zmm15, %zmm15\n\tvpxorq %zmm16, %zmm16, %zmm16\n\t"
                     "vpxorq %zmm31, %zmm31, %zmm31\n\tkxorw %k1, %k1, %k1\n\tkxorw %k7, %k7, %k7");
    else if (feat.avx && (get_xcr0() & 4))
        asm volatile("vzeroall");
    else
        asm volatile("pxor %xmm0, %xmm0\n\tpxor %xmm7, %xmm7\n\tpxor %xmm15, %xmm15");
}

static void check_all(void)
{
    u8 got[64 * 5 + 16];
    unsigned size = 16;
    memset(got, 0, sizeof(got));
    if (feat.avx512f && (get_xcr0() & 0xe0) == 0xe0) {
        size = 64;
        asm volatile(
            "vmovdqu64 %%zmm0, (%0)\n\tvmovdqu64 %%zmm7, 64(%0)\n\tvmovdqu64 %%zmm15, 128(%0)\n\t"
            "vmovdqu64 %%zmm16, 192(%0)\n\tvmovdqu64 %%zmm31, 256(%0)\n\t"
            "kmovw %%k1, 320(%0)\n\tkmovw %%k7, 328(%0)" ::"r"(got)
            : "memory");
        EQ(memcmp(got + 192, source + 192, 128), 0);
        EQ(*(u16 *)(got + 320), *(u16 *)(source + 320));
        EQ(*(u16 *)(got + 328), *(u16 *)(source + 328));
    } else if (feat.avx && (get_xcr0() & 4)) {
        size = 32;
        asm volatile(
            "vmovdqu %%ymm0, (%0)\n\tvmovdqu %%ymm7, 64(%0)\n\tvmovdqu %%ymm15, 128(%0)" ::"r"(got)
            : "memory");
    } else {
        asm volatile(
            "movdqu %%xmm0, (%0)\n\tmovdqu %%xmm7, 64(%0)\n\tmovdqu %%xmm15, 128(%0)" ::"r"(got)
            : "memory");
    }
    for (unsigned i = 0; i < 3; i++)
        EQ(memcmp(got + 64 * i, source + 64 * i, size), 0);
    u64 pi;
    asm volatile("fstp %%st(0)\n\tfstpl %0\n\tfstp %%st(0)" : "=m"(pi));
    EQ(pi, 0x400921fb54442d18);
}

TEST(xstate, fxsave_round_trip)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area);
        r.r10 = r.rbx - 64, r.r11 = 8;
        set_xcr0(3);
        memset(area, 0xee, 1024);
        load_all();
        done(&r, SNIP("fxsave64 (%%rbx)"));
        EQ(*(u16 *)area, 0x37f);
        EQ(area[4], 0xe0); /* three registers in use */
        EQ(*(u32 *)(area + 24), 0x1f80);
        EQ(*(u64 *)(area + 32 + 16), 0xc90fdaa22168c235); /* pi in st(1) */
        EQ(memcmp(area + 160, source, 16), 0);
        EQ(memcmp(area + 160 + 15 * 16, source + 128, 16), 0);
        EQ(area[464], 0xee); /* software's own bytes */
        check_pointers(area);
        clear_all();
        done(&r, SNIP("fxrstor64 (%%r10,%%r11,8)"));
        check_all();
        /* the 32-bit format */
        load_all();
        done(&r, SNIP("fxsave (%%rbx)"));
        EQ(memcmp(area + 160, source, 16), 0);
        clear_all();
        done(&r, SNIP("fxrstor (%%rbx)"));
        check_all();
        set_xcr0(feat.xcr0_supported & 0xe7);
    }
}

TEST(xstate, fxrstor_faults)
{
    struct regs r = regs_for(0);
    r.rbx = (u64)area;
    asm volatile("fxsave64 (%0)" ::"r"(area) : "memory");
    u32 mask = *(u32 *)(area + 28);
    CHECK(mask & 0xffbf);
    *(u32 *)(area + 24) = 0x1f80 | 0x10000;
    if (!on_tcg)
        fault(&r, SNIP("fxrstor64 (%%rbx)"), GP, 0);
    *(u32 *)(area + 24) = 0xffff0000;
    if (!on_tcg)
        fault(&r, SNIP("ldmxcsr 24(%%rbx)"), GP, 0);
    *(u32 *)(area + 24) = 0x1f80;
    done(&r, SNIP("fxrstor64 (%%rbx)"));
}

TEST(xstate, xsave_round_trip)
{
    if (!feat.xsave)
        SKIP("no XSAVE");
    u64 x = feat.xcr0_supported & 0xe7;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area);
        r.rax = (u32)x, r.rdx = 0;
        memset(area, 0, 0x1800);
        load_all();
        done(&r, SNIP("xsave64 (%%rbx)"));
        EQ(*(u64 *)(area + 512), x); /* XSTATE_BV: all in use */
        EQ(*(u64 *)(area + 520), 0);
        check_pointers(area);
        clear_all();
        done(&r, SNIP("xrstor64 (%%rbx)"));
        check_all();
        /* at r11, and with RFBM = all ones (limited by XCR0) */
        r.r11 = r.rbx, r.rax = r.rdx = ~0ul;
        load_all();
        done(&r, SNIP("xsave64 (%%r11)"));
        clear_all();
        done(&r, SNIP("xrstor64 (%%r11)"));
        check_all();
        if (feat.xsaveopt) {
            memset(area, 0, 0x1800);
            load_all();
            done(&r, SNIP("xsaveopt64 (%%r11)"));
            clear_all();
            done(&r, SNIP("xrstor64 (%%r11)"));
            check_all();
        }
    }
}

TEST(xstate, component_masks)
{
    if (!feat.xsave || !feat.avx)
        SKIP("no XSAVE with AVX");
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area);
        for (u64 rfbm = 0; rfbm < 8; rfbm++) {
            context("cpl %u, mask %lu", cpl, rfbm);
            memset(area, 0xee, 0x1000);
            memset(area + 512, 0, 64);
            load_all();
            r.rax = rfbm, r.rdx = 0;
            done(&r, SNIP("xsave64 (%%rbx)"));
            EQ(*(u64 *)(area + 512) & 7, rfbm);
            EQ(*(u16 *)area, rfbm & 1 ? 0x37f : 0xeeee);
            if (!on_tcg || (rfbm & 6) != 4) /* TCG takes MXCSR for a part of SSE alone */
                EQ(*(u32 *)(area + 24), rfbm & 6 ? 0x1f80 : 0xeeeeeeee);
            EQ(area[160], rfbm & 2 ? source[0] : 0xee);
            EQ(area[576], rfbm & 4 ? source[16] : 0xee);
        }
        /* restore with XSTATE_BV bits clear: those components are initialised */
        r.rax = 7;
        load_all();
        done(&r, SNIP("xsave64 (%%rbx)"));
        *(u64 *)(area + 512) = 2; /* only SSE */
        done(&r, SNIP("xrstor64 (%%rbx)"));
        u8 y[32];
        asm volatile("vmovdqu %%ymm0, %0" : "=m"(y));
        EQ(memcmp(y, source, 16), 0);
        u64 zero[2] = {0, 0};
        EQ(memcmp(y + 16, zero, 16), 0);
        u16 tag[14];
        asm volatile("fnstenv %0" : "=m"(tag));
        EQ(tag[4], 0xffff); /* x87 empty */
        /* components outside RFBM keep their registers */
        load_all();
        *(u64 *)(area + 512) = 7;
        memset(area + 160, 0, 256);
        r.rax = 1;
        done(&r, SNIP("xrstor64 (%%rbx)"));
        asm volatile("vmovdqu %%ymm0, %0" : "=m"(y));
        EQ(memcmp(y, source, 32), 0);
    }
}

TEST(xstate, init_optimization)
{
    if (!feat.xsave || !feat.avx)
        SKIP("no XSAVE with AVX");
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area);
        r.rax = feat.xcr0_supported & 0xe7, r.rdx = 0;
        /* vzeroupper puts the AVX component into its initial state */
        load_all();
        clear_all();
        if (feat.avx512f && (get_xcr0() & 0xe0) == 0xe0)
            asm volatile("vzeroall");
        memset(area, 0xee, 0x1000);
        memset(area + 512, 0, 64);
        done(&r, SNIP("xsave64 (%%rbx)"));
        u64 bv = *(u64 *)(area + 512);
        /* the CPU may or may not notice; where it does, the bit is clear (for XSAVE the area is
         * written all the same) */
        done(&r, SNIP("xrstor64 (%%rbx)"));
        u8 y[32];
        asm volatile("vmovdqu %%ymm0, %0" : "=m"(y));
        for (unsigned i = 0; i < 32; i++)
            EQ(y[i], 0);
        (void)bv;
    }
}

TEST(xstate, compacted)
{
    if (!feat.xsavec)
        SKIP("no XSAVEC");
    u64 x = feat.xcr0_supported & 0xe7;
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area2);
        r.rax = (u32)x, r.rdx = 0;
        memset(area2, 0, 0x1800);
        load_all();
        done(&r, SNIP("xsavec64 (%%rbx)"));
        EQ(*(u64 *)(area2 + 520), x | 1ul << 63); /* XCOMP_BV */
        EQ(*(u64 *)(area2 + 512), x);
        check_pointers(area2);
        EQ(memcmp(area2 + 576, source + 16, 16), 0); /* AVX first, right behind the header */
        clear_all();
        done(&r, SNIP("xrstor64 (%%rbx)"));
        check_all();
        /* a subset moves the later components up */
        if (x & 0xe0) {
            r.rax = 0xe0 & x;
            memset(area2, 0, 0x1800);
            load_all();
            done(&r, SNIP("xsavec64 (%%rbx)"));
            EQ(*(u64 *)(area2 + 520), 0xe0ul | 1ul << 63);
            EQ(*(u16 *)(area2 + 576 + 8), *(u16 *)(source + 320)); /* k1 */
            clear_all();
            done(&r, SNIP("xrstor64 (%%rbx)"));
            u32 k;
            asm volatile("kmovw %%k1, %0" : "=r"(k));
            EQ(k, *(u16 *)(source + 320));
        }
    }
}

TEST(xstate, bad_headers)
{
    if (!feat.xsave)
        SKIP("no XSAVE");
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area);
        r.rax = 7, r.rdx = 0;
        memset(area, 0, 0x1000);
        *(u32 *)(area + 24) = 0x1f80;
        *(u64 *)(area + 512) = 1ul << 20; /* a component that does not exist */
        fault(&r, SNIP("xrstor64 (%%rbx)"), GP, 0);
        *(u64 *)(area + 512) = 3;
        *(u64 *)(area + 520) = 1; /* XCOMP_BV with bit 63 clear must be zero */
        fault(&r, SNIP("xrstor64 (%%rbx)"), GP, 0);
        *(u64 *)(area + 520) = 0;
        *(u64 *)(area + 528) = 1; /* reserved header bytes */
        if (!on_tcg)
            fault(&r, SNIP("xrstor64 (%%rbx)"), GP, 0);
        *(u64 *)(area + 528) = 0;
        if (!on_tcg) {
            *(u32 *)(area + 24) = 0x80000000;
            fault(&r, SNIP("xrstor64 (%%rbx)"), GP, 0);
            *(u32 *)(area + 24) = 0x1f80;
        }
        done(&r, SNIP("xrstor64 (%%rbx)"));
        r.rbx += 8;
        if (!on_tcg) {
            fault(&r, SNIP("xsave64 (%%rbx)"), GP, 0);
            fault(&r, SNIP("xrstor64 (%%rbx)"), GP, 0);
        }
        r.rbx -= 8;
        /* a register operand and LOCK are no forms of it */
        fault(&r, SNIP(".byte 0xf0\n\tfxsave (%%rbx)"), UD, 0);
    }
}

/* Images without x87 state, which need not be copied, at all distances from a page's end, on pages
 * that follow each other in memory and on pages that do not. */
TEST(xstate, across_pages)
{
    if (!feat.xsave)
        SKIP("no XSAVE");
    u64 two = page_alloc_2m();
    BOTH_CPLS
    {
        for (unsigned order = 0; order < 2; order++) {
            struct regs r = regs_for(cpl);
            map(UVA, two + order * 4096, PG_URW);
            map(UVA + 4096, two + !order * 4096, PG_URW);
            memset((u8 *)two, 0, 8192);
            r.rax = 0xe6 & feat.xcr0_supported, r.rdx = 0;
            r.rsi = at_cpl(cpl, area2), r.rdi = at_cpl(cpl, area);
            for (unsigned back = 64; back <= 2048; back *= 2) {
                context("%d bytes before a page's end, order %d", back, order);
                memset(area, 0, 0x1800);
                memset(area2, 0, 0x1800);
                memset((u8 *)UVA, 0, 8192);
                asm volatile("xrstor64 (%0)" ::"r"(area), "a"(1), "d"(0)); /* x87: initial */
                load_all();
                asm volatile("xrstor64 (%0)" ::"r"(area), "a"(1), "d"(0));
                r.rbx = UVA + 4096 - back;
                done(&r, SNIP("xsave64 (%%rbx)\n\txsave64 (%%rsi)"));
                EQ(memcmp((u8 *)r.rbx, area2, 512 + 64), 0);
                EQ(memcmp((u8 *)r.rbx + 576, area2 + 576, 2048 - 576), 0);
                clear_all();
                done(&r, SNIP("xrstor64 (%%rbx)\n\txsave64 (%%rdi)"));
                EQ(memcmp(area, area2, 0x1800), 0);
                *(u64 *)(r.rbx + 512) |= 1ul << 20;
                fault(&r, SNIP("xrstor64 (%%rbx)"), GP, 0);
            }
        }
    }
}

TEST(xstate, page_faults)
{
    if (!feat.xsave)
        SKIP("no XSAVE");
    u64 a = page_alloc(), b = page_alloc();
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        struct regs r = regs_for(cpl);
        r.rax = feat.xcr0_supported & 0xe7, r.rdx = 0;
        r.rbx = UVA + 4096 - 256;
        r.rsi = at_cpl(cpl, area2);
        map(UVA, a, PG_URW);
        map(UVA + 4096, b, PG_URW);
        memset((u8 *)a, 0, 4096);
        memset((u8 *)b, 0, 4096);
        load_all();
        done(&r, SNIP("xsave64 (%%rbx)"));
        clear_all();
        done(&r, SNIP("xrstor64 (%%rbx)"));
        check_all();
        unmap(UVA + 4096);
        load_all();
        fault(&r, SNIP("xsave64 (%%rbx)"), PF, u | PF_W);
        EQ(T.cr2 & ~4095ul, UVA + 4096);
        fault(&r, SNIP("xrstor64 (%%rbx)"), PF, u);
        fault(&r, SNIP("fxsave64 (%%rbx)"), PF, u | PF_W);
        fault(&r, SNIP("fxrstor64 (%%rbx)"), PF, u);
        map(UVA + 4096, b, PG_P | PG_U);
        fault(&r, SNIP("xsave64 (%%rbx)"), PF, u | PF_W | PF_P);
        done(&r, SNIP("xrstor64 (%%rbx)"));
        asm volatile("fninit");
    }
}

TEST(xstate, fnsave_family)
{
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rbx = at_cpl(cpl, area);
        memset(area, 0xee, 256);
        load_all();
        done(&r,
             SNIP("fldl (%%rbx)\n\tfstp %%st(0)\n\tfnsave (%%rbx)\n\tfnstcw 128(%%rbx)\n\t"
                  "frstor (%%rbx)\n\tfnstenv 160(%%rbx)\n\tfldenv 160(%%rbx)\n\tfstp %%st(0)\n\t"
                  "fstpl 192(%%rbx)\n\tfnclex"));
        EQ(*(u16 *)(area + 128), 0x37f);
        EQ(*(u64 *)(area + 192), 0x400921fb54442d18);
        u32 fip = *(u32 *)(area + 12), fdp = *(u32 *)(area + 20);
        if (fip && (fip & ~(u32)USER_OFFSET) - 0x200000 > 0x2000000)
            fail("FIP is 0x%x", fip);
        if (fdp && (fdp & ~(u32)USER_OFFSET) - 0x200000 > 0x2000000)
            fail("FDP is 0x%x", fdp);
        EQ(area[108], 0xee);
    }
}

TEST(xstate, preserved_over_everything)
{
    /* Faults, port accesses, CPUID, page walks and interrupts leave vector registers alone. */
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        r.rflags |= F_IOPL;
        r.rbx = at_cpl(cpl, area);
        for (unsigned i = 0; i < 20; i++) {
            load_all();
            done(&r,
                 SNIP("in $0x80, %%al\n\tout %%al, $0x80\n\tcpuid\n\trdtsc\n\tpushfq\n\tpopfq"));
            run_at(&r, SNIP("ud2"));
            expect(UD, 0);
            r.r12 = UVA;
            run_at(&r, SNIP("mov (%%r12), %%rax"));
            expect(PF, cpl ? PF_U : 0);
            map_new(UVA, PG_URW);
            done(&r, SNIP("mov (%%r12), %%rax\n\tmov %%rax, 8(%%r12)"));
            unmap(UVA);
            (void)apic_read(APIC_ID);
            apic_self_ipi(0x61);
            handlers[0x61] = irq_count_handler;
            sti();
            asm volatile("nop; nop");
            cli();
            wrmsr(MSR_KGS, i);
            write_cr3(read_cr3());
            check_all();
        }
    }
}

TEST(xstate, lazy_fpu_switch)
{
    /* Two contexts share the unit through #NM, CLTS, FXSAVE and FXRSTOR. */
    struct regs r = regs_for(3);
    r.rbx = at_cpl(3, source);
    u8 *use = SNIP("movups (%%rbx), %%xmm3\n\tpaddd %%xmm3, %%xmm3\n\tmovq %%xmm3, %%rax");
    load_all();
    set_xcr0(3);
    for (unsigned i = 0; i < 50; i++) {
        write_cr0(DEFAULT_CR0 | CR0_TS);
        fault(&r, use, NM, 0);
        asm volatile("clts");
        asm volatile("fxsave64 (%0)" ::"r"(area) : "memory");
        done(&r, use);
        EQ(T.r.rax, (u64)(*(u32 *)source * 2) | (u64)(*(u32 *)(source + 4) * 2) << 32);
        asm volatile("fxrstor64 (%0)" ::"r"(area) : "memory");
    }
    u8 x[16];
    asm volatile("movups %%xmm0, %0" : "=m"(x));
    EQ(memcmp(x, source, 16), 0);
    set_xcr0(feat.xcr0_supported & 0xe7);
}

TEST(xstate, instruction_pointer_over_xrstor)
{
    /* The x87 instruction pointer of an image is the guest's: of an instruction just executed, of
     * one that came back by XRSTOR and is saved again, many times, and of one executed after that.
     */
    if (!feat.xsave)
        SKIP("no XSAVE");
    TCG_SKIP("keeps no instruction pointer");
    map_new(KVA, PG_KRW);
    map_new(KVA + 4096, PG_KRW);
    u64 pa = *pte_at(KVA, 1) & PG_ADDR;
    u8 *at;
    u8 *code = SNIP_AT(
        at, "fninit\n\tfnop\n662: fld1\n\txor %%edx, %%edx\n\tmov $3, %%eax\n\txsave64 (%%rdi)\n"
            "1: xrstor64 (%%rdi)\n\txsave64 0x400(%%rdi)\n\tmov 0x408(%%rdi), %%rbx\n\t"
            "xsave64 (%%rdi)\n\tdec %%r8\n\tjnz 1b\n\t"
            "fldz\n\txsave64 0x800(%%rdi)\n\tmov 0x808(%%rdi), %%rsi");
    for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
        context("cpl %u", cpl);
        struct regs r = regs_for(cpl);
        if (cpl)
            map(UVA, pa, PG_URW);
        r.rdi = cpl ? UVA : KVA;
        r.r8 = 200;
        done(&r, code);
        EQ(*(u64 *)(pa + 8), at_cpl(cpl, at));
        EQ(T.r.rbx, at_cpl(cpl, at));
        CHECK(T.r.rsi > at_cpl(cpl, at) && T.r.rsi < T.r.rip);
    }
}
