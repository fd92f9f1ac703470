/*
 * Paging: accessed and dirty bits, when a changed entry takes effect, PCID and global pages, big
 * pages, aliases, rights combined over the levels.  SDM vol. 3, chapter 4.
 *
 * Where the architecture allows an old translation to be used for a while, the tests accept both;
 * after the instruction that must flush it they accept only the new one.
 */
#include "guest.h"

#define BOTH_CPLS for (unsigned cpl = 0; context("cpl %u", cpl), cpl <= 3; cpl += 3)

static bool read_at(unsigned cpl, u64 va, u64 *value)
{
    struct regs r = regs_for(cpl);
    r.rbx = va;
    run_at(&r, SNIP("mov (%%rbx), %%rax"));
    *value = T.r.rax;
    return T.vector == DONE;
}

static bool write_at(unsigned cpl, u64 va, u64 value)
{
    struct regs r = regs_for(cpl);
    r.rbx = va;
    r.rax = value;
    run_at(&r, SNIP("mov %%rax, (%%rbx)"));
    return T.vector == DONE;
}

#define READS(cpl, va, want)                                                                       \
    do {                                                                                           \
        u64 v_ = 0;                                                                                \
        CHECK(read_at(cpl, va, &v_));                                                              \
        check_eq("value at " #va, v_, want);                                                       \
    } while (0)
#define READ_FAULTS(cpl, va, err)                                                                  \
    do {                                                                                           \
        u64 v_;                                                                                    \
        CHECK(!read_at(cpl, va, &v_));                                                             \
        expect(PF, err);                                                                           \
        EQ(T.cr2, va);                                                                             \
    } while (0)
#define WRITE_FAULTS(cpl, va, err)                                                                 \
    do {                                                                                           \
        CHECK(!write_at(cpl, va, 1));                                                              \
        expect(PF, err);                                                                           \
        EQ(T.cr2, va);                                                                             \
    } while (0)

static void flush_all(void)
{
    write_cr3(read_cr3());
}

/* -- Accessed and dirty -------------------------------------------------------------------------*/

TEST(paging, accessed_dirty_4k)
{
    BOTH_CPLS
    {
        u64 pa = page_alloc();
        map(UVA, pa, PG_URW);
        for (unsigned l = 2; l <= 4; l++)
            *pte_at(UVA, l) &= ~PG_A;
        flush_all();
        u64 v;
        CHECK(read_at(cpl, UVA, &v));
        EQ(*pte_at(UVA, 1), pa | PG_URW | PG_A);
        for (unsigned l = 2; l <= 4; l++)
            EQ(*pte_at(UVA, l) & (PG_A | PG_D), PG_A);
        CHECK(write_at(cpl, UVA, 5));
        EQ(*pte_at(UVA, 1), pa | PG_URW | PG_A | PG_D);
        /* D cleared, with a flush: set again by the next write, not by a read */
        *pte_at(UVA, 1) = pa | PG_URW;
        invlpg(UVA);
        CHECK(read_at(cpl, UVA, &v));
        EQ(*pte_at(UVA, 1), pa | PG_URW | PG_A);
        CHECK(write_at(cpl, UVA, 6));
        EQ(*pte_at(UVA, 1), pa | PG_URW | PG_A | PG_D);
        /* first access is a write */
        map(UVA + 4096, page_alloc(), PG_URW);
        CHECK(write_at(cpl, UVA + 4096, 6));
        EQ(*pte_at(UVA + 4096, 1) & (PG_A | PG_D), PG_A | PG_D);
        /* a fetch sets A alone */
        u64 code = map_new(UVA + 8192, PG_URW);
        *(u16 *)code = 0x80cd;
        struct regs r = regs_for(cpl);
        r.rip = UVA + 8192;
        run(&r);
        expect(DONE, 0);
        EQ(*pte_at(UVA + 8192, 1) & (PG_A | PG_D), PG_A);
    }
}

TEST(paging, read_modify_write_sets_dirty)
{
    BOTH_CPLS
    {
        static const char *const names[] = {"add",    "lock inc",  "xchg", "push",
                                            "movups", "rep stosb", "pop",  "call"};
        for (unsigned i = 0; i < 8; i++) {
            u64 pa = page_alloc();
            map(UVA, pa, PG_URW);
            u64 v;
            CHECK(read_at(cpl, UVA, &v));
            EQ(*pte_at(UVA, 1) & PG_D, 0);
            struct regs r = regs_for(cpl);
            context("%s, cpl %u", names[i], cpl);
            r.rbx = r.rdi = UVA + 64;
            r.rcx = 3;
            u64 sp = r.rsp;
            r.rbp = sp;
            switch (i) {
            case 0:
                done(&r, SNIP("add %%eax, (%%rbx)"));
                break;
            case 1:
                done(&r, SNIP("lock incq (%%rbx)"));
                break;
            case 2:
                done(&r, SNIP("xchg %%r10, (%%rbx)"));
                break;
            case 3:
                done(&r, SNIP("mov %%rbx, %%rsp\n\tpush %%r11\n\tmov %%rbp, %%rsp"));
                break;
            case 4:
                done(&r, SNIP("movups %%xmm0, (%%rbx)"));
                break;
            case 5:
                done(&r, SNIP("rep stosb"));
                break;
            case 6:
                done(&r, SNIP("push %%rax\n\tpop (%%rbx)"));
                break;
            default:
                done(&r, SNIP("mov %%rbx, %%rsp\n\tcall 1f\n1: mov %%rbp, %%rsp"));
                break;
            }
            EQ(*pte_at(UVA, 1) & PG_D, PG_D);
        }
    }
}

TEST(paging, faulting_write_does_not_set_dirty)
{
    u64 pa = page_alloc();
    map(UVA, pa, PG_P | PG_U);
    WRITE_FAULTS(3, UVA, PF_P | PF_W | PF_U);
    EQ(*pte_at(UVA, 1) & PG_D, 0);
}

TEST(paging, accessed_dirty_big)
{
    BOTH_CPLS
    {
        u64 pa = page_alloc_2m();
        map_level(UVA, pa, PG_URW, 2);
        u64 v;
        CHECK(read_at(cpl, UVA + 0x123000, &v));
        EQ(*pte_at(UVA, 2), pa | PG_URW | PG_PS | PG_A);
        CHECK(write_at(cpl, UVA + 0x45678, 77));
        EQ(*pte_at(UVA, 2), pa | PG_URW | PG_PS | PG_A | PG_D);
        EQ(*(u64 *)(pa + 0x45678), 77);
        if (feat.gbpages) {
            map_level(UVA2, 0, PG_URW, 3);
            *(u64 *)pa = 0x5555;
            READS(cpl, UVA2 + pa, 0x5555);
            EQ(*pte_at(UVA2, 3), PG_URW | PG_PS | PG_A);
            CHECK(write_at(cpl, UVA2 + pa + 8, 78));
            EQ(*pte_at(UVA2, 3), PG_URW | PG_PS | PG_A | PG_D);
            EQ(*(u64 *)(pa + 8), 78);
        }
        *pte_at(UVA2, 3) = 0;
        *pte_at(UVA, 2) = 0;
        flush_all();
    }
}

/* -- Changes take effect ------------------------------------------------------------------------*/

TEST(paging, remap_and_invlpg)
{
    BOTH_CPLS
    {
        u64 a = page_alloc(), b = page_alloc();
        *(u64 *)a = 0xaaaa;
        *(u64 *)b = 0xbbbb;
        map(UVA, a, PG_URW);
        for (unsigned i = 0; i < 50; i++) {
            READS(cpl, UVA, 0xaaaa);
            *pte_at(UVA, 1) = b | PG_URW;
            u64 v;
            CHECK(read_at(cpl, UVA, &v)); /* either is allowed */
            if (v != 0xaaaa && v != 0xbbbb)
                fail("read 0x%lx", v);
            invlpg(UVA + 0xfff); /* any address in the page */
            READS(cpl, UVA, 0xbbbb);
            *pte_at(UVA, 1) = a | PG_URW;
            flush_all();
        }
    }
}

TEST(paging, not_present_to_present_needs_no_flush)
{
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0;
        for (unsigned i = 0; i < 20; i++) {
            READ_FAULTS(cpl, UVA, u);
            WRITE_FAULTS(cpl, UVA, u | PF_W);
            u64 pa = page_alloc();
            *(u64 *)pa = i;
            *pte_at(UVA, 1) = pa | PG_URW; /* no INVLPG: faults are not cached */
            READS(cpl, UVA, i);
            CHECK(write_at(cpl, UVA, 100 + i));
            EQ(*(u64 *)pa, 100 + i);
            unmap(UVA);
        }
    }
}

TEST(paging, more_rights_need_no_flush)
{
    /* A fault for rights drops the cached translation (SDM vol. 3, 4.10.4.3): retrying works. */
    BOTH_CPLS
    {
        u64 pa = page_alloc(), v;
        map(UVA, pa, PG_P | PG_U);
        CHECK(read_at(cpl, UVA, &v));
        WRITE_FAULTS(cpl, UVA, PF_P | PF_W | (cpl ? PF_U : 0));
        *pte_at(UVA, 1) |= PG_W;
        CHECK(write_at(cpl, UVA, 9));
        EQ(*(u64 *)pa, 9);
        if (feat.nx) {
            *(u16 *)pa = 0x80cd;
            map(UVA, pa, PG_URW | PG_NX);
            CHECK(read_at(cpl, UVA, &v));
            struct regs r = regs_for(cpl);
            r.rip = UVA;
            run(&r);
            expect(PF, PF_P | PF_I | (cpl ? PF_U : 0));
            *pte_at(UVA, 1) &= ~PG_NX;
            run(&r);
            expect(DONE, 0);
        }
    }
    u64 v;
    map_new(UVA, PG_KRW);
    CHECK(read_at(0, UVA, &v));
    READ_FAULTS(3, UVA, PF_P | PF_U);
    *pte_at(UVA, 1) |= PG_U;
    CHECK(read_at(3, UVA, &v));
}

TEST(paging, fewer_rights_after_flush)
{
    BOTH_CPLS
    {
        u64 u = cpl ? PF_U : 0, v;
        u64 pa = page_alloc();
        map(UVA, pa, PG_URW);
        CHECK(write_at(cpl, UVA, 1));
        *pte_at(UVA, 1) &= ~PG_W;
        invlpg(UVA);
        WRITE_FAULTS(cpl, UVA, PF_P | PF_W | u);
        CHECK(read_at(cpl, UVA, &v));
        *pte_at(UVA, 1) = 0;
        invlpg(UVA);
        READ_FAULTS(cpl, UVA, u);
        /* rights taken away in an upper level */
        map(UVA, pa, PG_URW);
        CHECK(write_at(cpl, UVA, 1));
        for (unsigned l = 2; l <= 4; l++) {
            *pte_at(UVA, l) &= ~PG_W;
            flush_all();
            context("cpl %u level %u", cpl, l);
            WRITE_FAULTS(cpl, UVA, PF_P | PF_W | u);
            *pte_at(UVA, l) |= PG_W;
            flush_all();
            CHECK(write_at(cpl, UVA, 1));
            if (cpl == 3) {
                *pte_at(UVA, l) &= ~PG_U;
                flush_all();
                READ_FAULTS(3, UVA, PF_P | PF_U);
                *pte_at(UVA, l) |= PG_U;
                flush_all();
            }
            u64 e = *pte_at(UVA, l);
            *pte_at(UVA, l) = e & ~PG_P;
            flush_all();
            u64 got;
            CHECK(!read_at(cpl, UVA, &got));
            expect(PF, u);
            *pte_at(UVA, l) = e;
            flush_all();
        }
    }
}

TEST(paging, invlpg_other_page_keeps_working)
{
    for (unsigned i = 0; i < 64; i++)
        *(u64 *)map_new(UVA + i * 4096, PG_URW) = i;
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < 64; i++) {
            READS(3, UVA + i * 4096, i);
            invlpg(UVA + (i * 7 % 64) * 4096);
        }
}

TEST(paging, cr3_switch)
{
    /* Two address spaces that differ in one page. */
    u64 a = page_alloc(), b = page_alloc(), v;
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    map(UVA, a, PG_URW);
    u64 *other = (u64 *)page_alloc();
    memcpy(other, pml4, 4096);
    u64 *pdpt = (u64 *)page_alloc(), *pd = (u64 *)page_alloc(), *pt = (u64 *)page_alloc();
    other[UVA >> 39 & 511] = (u64)pdpt | PG_URW;
    pdpt[UVA >> 30 & 511] = (u64)pd | PG_URW;
    pd[UVA >> 21 & 511] = (u64)pt | PG_URW;
    pt[UVA >> 12 & 511] = b | PG_URW;
    u64 home = read_cr3();
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 50; i++) {
            write_cr3(home);
            READS(cpl, UVA, 1);
            write_cr3((u64)other);
            READS(cpl, UVA, 2);
        }
        pt[UVA >> 12 & 511] = 0;
        write_cr3(home);
        write_cr3((u64)other);
        CHECK(!read_at(cpl, UVA, &v));
        pt[UVA >> 12 & 511] = b | PG_URW;
    }
    write_cr3(home);
}

TEST(paging, cr3_switch_with_code)
{
    /* The same address holds different code in the two address spaces. */
    u64 a = page_alloc(), b = page_alloc();
    memcpy((void *)a, "\xb8\x01\0\0\0\xcd\x80", 7); /* mov $1, %eax; int $0x80 */
    memcpy((void *)b, "\xb8\x02\0\0\0\xcd\x80", 7);
    map(UVA, a, PG_URW);
    u64 *other = space_with(UVA, b | PG_URW);
    u64 home = read_cr3();
    BOTH_CPLS
    {
        struct regs r = regs_for(cpl);
        for (unsigned i = 0; i < 50; i++) {
            r.rip = UVA;
            write_cr3(home);
            run(&r);
            EQ(T.r.rax, 1);
            write_cr3((u64)other);
            run(&r);
            EQ(T.r.rax, 2);
            /* reached by a direct and by an indirect jump */
            r.r11 = UVA;
            run_at(&r, SNIP("jmp *%%r11"));
            EQ(T.r.rax, 2);
            write_cr3(home);
            run_at(&r, SNIP("call *%%r11"));
            EQ(T.r.rax, 1);
        }
    }
    write_cr3(home);
}

/* -- Global pages, PCID, INVPCID ----------------------------------------------------------------*/

TEST(paging, global_pages)
{
    if (!feat.pge)
        SKIP("no global pages");
    write_cr4(default_cr4 | CR4_PGE);
    u64 a = page_alloc(), b = page_alloc(), v;
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    BOTH_CPLS
    {
        map(UVA, a, PG_URW | PG_G);
        READS(cpl, UVA, 1);
        *pte_at(UVA, 1) = b | PG_URW | PG_G;
        write_cr3(read_cr3()); /* need not flush it */
        CHECK(read_at(cpl, UVA, &v));
        if (v != 1 && v != 2)
            fail("read 0x%lx", v);
        invlpg(UVA); /* must */
        READS(cpl, UVA, 2);
        *pte_at(UVA, 1) = a | PG_URW | PG_G;
        write_cr4(default_cr4); /* changing PGE flushes everything */
        READS(cpl, UVA, 1);
        *pte_at(UVA, 1) = b | PG_URW | PG_G;
        write_cr4(default_cr4 | CR4_PGE);
        READS(cpl, UVA, 2);
    }
    write_cr4(default_cr4);
}

TEST(paging, pcid)
{
    if (!feat.pcid)
        SKIP("no PCID");
    write_cr4(default_cr4 | CR4_PCIDE);
    u64 a = page_alloc(), b = page_alloc(), home = (u64)pml4;
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    u64 *other = (u64 *)page_alloc();
    BOTH_CPLS
    {
        map(UVA, a, PG_URW);
        memcpy(other, pml4, 4096);
        u64 *pdpt = (u64 *)page_alloc(), *pd = (u64 *)page_alloc(), *pt = (u64 *)page_alloc();
        other[UVA >> 39 & 511] = (u64)pdpt | PG_URW;
        pdpt[UVA >> 30 & 511] = (u64)pd | PG_URW;
        pd[UVA >> 21 & 511] = (u64)pt | PG_URW;
        pt[UVA >> 12 & 511] = b | PG_URW;
        write_cr3(home);
        write_cr3((u64)other | 1);
        for (unsigned i = 0; i < 30; i++) {
            write_cr3(home | 1ul << 63); /* keep PCID 0's translations */
            READS(cpl, UVA, 1);
            write_cr3((u64)other | 1 | 1ul << 63);
            READS(cpl, UVA, 2);
            EQ(read_cr3(), (u64)other | 1); /* bit 63 is not stored */
        }
        /* a change in PCID 1, seen after a MOV to CR3 without bit 63 */
        write_cr3(home | 1ul << 63);
        pt[UVA >> 12 & 511] = a | PG_URW;
        write_cr3((u64)other | 1);
        READS(cpl, UVA, 1);
        pt[UVA >> 12 & 511] = b | PG_URW;
        invlpg(UVA);
        READS(cpl, UVA, 2);
        write_cr3(home);
    }
    /* PCIDE can be cleared with any PCID; it flushes */
    write_cr3((u64)other | 5);
    write_cr3(home);
    write_cr4(default_cr4);
}

TEST(paging, invpcid)
{
    if (!feat.invpcid || !feat.pcid)
        SKIP("no INVPCID");
    write_cr4(default_cr4 | CR4_PCIDE | CR4_PGE);
    struct {
        u64 pcid, address;
    } d;
    u64 a = page_alloc(), b = page_alloc(), cur = a;
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    map(UVA, a, PG_URW);
    for (u64 type = 0; type < 4; type++) {
        for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
            context("type %lu, cpl %u", type, cpl);
            READS(cpl, UVA, *(u64 *)cur);
            cur = a + b - cur;
            *pte_at(UVA, 1) = cur | PG_URW;
            d.pcid = 0;
            d.address = UVA;
            asm volatile("invpcid %0, %1" ::"m"(d), "r"(type) : "memory");
            READS(cpl, UVA, *(u64 *)cur);
        }
    }
    /* global pages: type 2 flushes them */
    map(UVA, a, PG_URW | PG_G);
    READS(3, UVA, 1);
    *pte_at(UVA, 1) = b | PG_URW | PG_G;
    asm volatile("invpcid %0, %1" ::"m"(d), "r"(2ul) : "memory");
    READS(3, UVA, 2);
    struct regs r = regs_for(0);
    r.rbx = (u64)buffer;
    r.rax = 4; /* no such type */
    fault(&r, SNIP("invpcid (%%rbx), %%rax"), GP, 0);
    r.rax = 0;
    *(u64 *)buffer = 1ul << 12; /* reserved bits */
    fault(&r, SNIP("invpcid (%%rbx), %%rax"), GP, 0);
    *(u64 *)buffer = 0;
    *(u64 *)(buffer + 8) = NONCANON;
    fault(&r, SNIP("invpcid (%%rbx), %%rax"), GP, 0);
    write_cr4(default_cr4);
}

/* -- Big pages ----------------------------------------------------------------------------------*/

TEST(paging, big_page_split)
{
    BOTH_CPLS
    {
        u64 pa = page_alloc_2m(), u = cpl ? PF_U : 0;
        for (unsigned i = 0; i < 512; i++)
            *(u64 *)(pa + i * 4096) = i;
        map_level(UVA, pa, PG_URW, 2);
        for (unsigned i = 0; i < 512; i += 37)
            READS(cpl, UVA + i * 4096, i);
        /* split into 4 KiB pages, one of them read-only, one missing, one elsewhere */
        u64 *pt = (u64 *)page_alloc();
        for (unsigned i = 0; i < 512; i++)
            pt[i] = (pa + i * 4096) | PG_URW;
        pt[3] = (pa + 3 * 4096) | PG_P | PG_U;
        pt[4] = 0;
        pt[5] = (pa + 9 * 4096) | PG_URW;
        *pte_at(UVA, 2) = (u64)pt | PG_URW;
        invlpg(UVA + 100 * 4096); /* one INVLPG drops a big page as a whole */
        flush_all();
        READS(cpl, UVA + 2 * 4096, 2);
        WRITE_FAULTS(cpl, UVA + 3 * 4096, PF_P | PF_W | u);
        READ_FAULTS(cpl, UVA + 4 * 4096, u);
        READS(cpl, UVA + 5 * 4096, 9);
        /* and joined again */
        map_level(UVA, pa, PG_URW, 2);
        flush_all();
        READS(cpl, UVA + 4 * 4096, 4);
        READS(cpl, UVA + 5 * 4096, 5);
        CHECK(write_at(cpl, UVA + 3 * 4096, 33));
        EQ(*(u64 *)(pa + 3 * 4096), 33);
        *pte_at(UVA, 2) = 0;
        flush_all();
    }
}

TEST(paging, invlpg_drops_big_page)
{
    BOTH_CPLS
    {
        u64 a = page_alloc_2m(), b = page_alloc_2m();
        for (unsigned i = 0; i < 512; i++) {
            *(u64 *)(a + i * 4096) = i;
            *(u64 *)(b + i * 4096) = i + 1000;
        }
        map_level(UVA, a, PG_URW, 2);
        for (unsigned i = 0; i < 512; i += 61)
            READS(cpl, UVA + i * 4096, i);
        *pte_at(UVA, 2) = b | PG_URW | PG_PS;
        invlpg(UVA + 0x1ff000);
        for (unsigned i = 0; i < 512; i += 61)
            READS(cpl, UVA + i * 4096, i + 1000);
        *pte_at(UVA, 2) = 0;
        flush_all();
    }
}

TEST(paging, gigabyte_pages)
{
    if (!feat.gbpages)
        SKIP("no 1 GiB pages");
    map_level(KVA, 0, PG_KRW, 3);
    map_level(UVA, 0, PG_URW, 3);
    u64 pa = page_alloc();
    *(u64 *)pa = 0x4242;
    READS(0, KVA + pa, 0x4242);
    READS(3, UVA + pa, 0x4242);
    READ_FAULTS(3, KVA + pa, PF_P | PF_U);
    CHECK(write_at(3, UVA + pa, 7));
    READS(0, KVA + pa, 7);
    /* reserved bits between 13 and 29 of a 1 GiB entry */
    *pte_at(UVA, 3) |= 1ul << 21;
    flush_all();
    READ_FAULTS(3, UVA + pa, (on_tcg ? 0 : PF_P) | PF_U | PF_RSVD);
    *pte_at(UVA, 3) &= ~(1ul << 21);
    flush_all();
    /* code runs from there */
    struct regs r = regs_for(3);
    u8 *code = SNIP("mov $0x31, %%eax");
    r.rip = UVA + (u64)code;
    run(&r);
    expect(DONE, 0);
    EQ(T.r.rax, 0x31);
}

TEST(paging, big_page_reserved_bits)
{
    u64 pa = page_alloc_2m();
    map_level(UVA, pa, PG_URW, 2);
    *pte_at(UVA, 2) |= 1ul << 13;
    flush_all();
    READ_FAULTS(3, UVA, (on_tcg ? 0 : PF_P) | PF_U | PF_RSVD);
    /* bit 12 is the PAT bit, not an address bit */
    *pte_at(UVA, 2) = pa | PG_URW | PG_PS | 1 << 12;
    flush_all();
    *(u64 *)pa = 3;
    READS(3, UVA, 3);
}

/* -- Aliases ------------------------------------------------------------------------------------*/

TEST(paging, aliases)
{
    u64 pa = page_alloc();
    map(UVA, pa, PG_URW);
    map(UVA + 0x5000, pa, PG_URW);
    map(UVA2, pa, PG_P | PG_U);
    map(KVA, pa, PG_KRW);
    for (u64 i = 1; i < 200; i++) {
        CHECK(write_at(3, UVA + 8, i));
        READS(3, UVA + 0x5008, i);
        READS(3, UVA2 + 8, i);
        READS(0, KVA + 8, i);
        EQ(*(u64 *)(pa + 8), i);
        CHECK(write_at(0, KVA + 8, i + 1000));
        READS(3, UVA + 8, i + 1000);
        *(u64 *)(pa + 8) = i + 2000;
        READS(3, UVA2 + 8, i + 2000);
    }
    WRITE_FAULTS(3, UVA2 + 8, PF_P | PF_U | PF_W);
}

TEST(paging, alias_across_a_page_boundary)
{
    /* The same page twice in a row: a store over the boundary wraps to its start. */
    u64 pa = page_alloc();
    map(UVA, pa, PG_URW);
    map(UVA + 4096, pa, PG_URW);
    BOTH_CPLS
    {
        memset((void *)pa, 0, 4096);
        CHECK(write_at(cpl, UVA + 4093, 0x8877665544332211));
        EQ(*(u32 *)(pa + 4092) >> 8, 0x332211);
        EQ(*(u64 *)pa & 0xffffffffff, 0x8877665544);
        struct regs r = regs_for(cpl);
        r.rbx = UVA + 4093;
        r.rax = 1;
        done(&r, SNIP("lock xadd %%rax, (%%rbx)\n\tmov (%%rbx), %%rcx"));
        EQ(T.r.rax, 0x8877665544332211);
        EQ(T.r.rcx, 0x8877665544332212);
    }
}

TEST(paging, page_tables_seen_through_aliases)
{
    /* The guest changes its page tables through another mapping of them. */
    u64 a = page_alloc(), b = page_alloc();
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    map(UVA, a, PG_URW);
    u64 pt = (u64)pte_at(UVA, 1);
    map(KVA, pt & ~4095ul, PG_KRW);
    BOTH_CPLS
    {
        for (unsigned i = 0; i < 20; i++) {
            READS(cpl, UVA, 1);
            CHECK(write_at(0, KVA + (pt & 4095), b | PG_URW));
            invlpg(UVA);
            READS(cpl, UVA, 2);
            CHECK(write_at(0, KVA + (pt & 4095), a | PG_URW));
            invlpg(UVA);
        }
    }
}

/* -- Scale --------------------------------------------------------------------------------------*/

TEST(paging, many_pages)
{
    /* More pages than a TLB holds, visited in three orders; then all rights change at once. */
    enum { N = 3000 };
    for (unsigned i = 0; i < N; i++)
        *(u64 *)map_new(UVA + i * 4096ul, PG_URW) = i ^ 0x5555;
    struct regs r = regs_for(3);
    u8 *sum =
        SNIP("xor %%eax, %%eax\n1: add (%%rbx), %%rax\n\tadd %%rdx, %%rbx\n\tdec %%rcx\n\tjnz 1b");
    u64 want = 0;
    for (unsigned i = 0; i < N; i++)
        want += i ^ 0x5555;
    for (unsigned round = 0; round < 3; round++) {
        r.rbx = UVA, r.rdx = 4096, r.rcx = N;
        done(&r, sum);
        EQ(T.r.rax, want);
        r.rbx = UVA + (N - 1) * 4096ul, r.rdx = (u64)-4096, r.rcx = N;
        done(&r, sum);
        EQ(T.r.rax, want);
    }
    for (unsigned i = 0; i < N; i++)
        *pte_at(UVA + i * 4096ul, 1) &= ~PG_U;
    flush_all();
    for (unsigned i = 0; i < N; i += 97)
        READ_FAULTS(3, UVA + i * 4096ul, PF_P | PF_U);
    r = regs_for(0);
    r.rbx = UVA, r.rdx = 4096, r.rcx = N;
    done(&r, sum);
    EQ(T.r.rax, want);
}

TEST(paging, sparse_mappings)
{
    /* One page in each of many 2 MiB and 1 GiB regions, in both halves. */
    for (u64 i = 0; i < 120; i++) {
        *(u64 *)map_new(UVA + i * 0x40000000ul % 0x8000000000ul + i * 0x201000, PG_URW) = i;
        *(u64 *)map_new(KVA + i * 0x40000000ul % 0x8000000000ul + i * 0x3000, PG_KRW) = i + 500;
    }
    for (unsigned round = 0; round < 3; round++)
        for (u64 i = 0; i < 120; i++) {
            READS(3, UVA + i * 0x40000000ul % 0x8000000000ul + i * 0x201000, i);
            READS(0, KVA + i * 0x40000000ul % 0x8000000000ul + i * 0x3000, i + 500);
        }
}

TEST(paging, every_pml4_slot)
{
    u64 pa = page_alloc();
    *(u64 *)pa = 0x77;
    for (u64 i = 2; i < 512; i += 3) {
        u64 va = (i << 39 | 0x123000) | (i >= 256 ? 0xffff000000000000 : 0);
        map(va, pa, PG_URW);
        READS(i & 1 ? 3 : 0, va, 0x77);
    }
}

TEST(paging, upper_half_user_pages)
{
    /* U/S comes from the entries, not from the half of the address space. */
    map_new(KVA, PG_URW);
    map_new(UVA, PG_KRW);
    u64 v;
    CHECK(write_at(3, KVA, 5));
    READS(0, KVA, 5);
    CHECK(write_at(0, UVA, 6));
    READ_FAULTS(3, UVA, PF_P | PF_U);
    CHECK(read_at(3, KVA, &v));
    EQ(v, 5);
}

TEST(paging, outside_ram)
{
    /* A page beyond RAM reads as all-ones and swallows writes (no device there). */
    map(UVA, 0x700000000, PG_URW | PG_PCD);
    BOTH_CPLS
    {
        u64 v;
        CHECK(read_at(cpl, UVA, &v));
        CHECK(write_at(cpl, UVA, 0x1234));
        struct regs r = regs_for(cpl);
        r.rbx = UVA;
        done(&r, SNIP("movups (%%rbx), %%xmm0\n\tlock incl (%%rbx)\n\tpush (%%rbx)\n\tpop %%rax\n\t"
                      "movzbl 3(%%rbx), %%ecx"));
    }
}

TEST(paging, mmio_by_every_width)
{
    /* The local APIC's version register through a mapping of our own, by different instructions. */
    map(KVA, APIC_BASE, PG_KRW | PG_PCD);
    struct regs r = regs_for(0);
    r.rbx = KVA;
    r.rsi = KVA + APIC_VERSION, r.rdi = (u64)buffer;
    r.r11 = KVA, r.r10 = APIC_VERSION;
    done(&r,
         SNIP("mov 0x30(%%rbx), %%eax\n\tmov (%%r11,%%r10), %%r10d\n\tcmp %%eax, 0x30(%%rbx)\n\t"
              "setz %%cl\n\tmovsl\n\ttestl $0x10, 0x30(%%rbx)\n\tsetnz %%dl\n\t"
              "movd 0x30(%%r11), %%xmm0\n\tmovd %%xmm0, %%r13d"));
    u32 version = apic_read(APIC_VERSION);
    EQ(T.r.rax, version);
    EQ(T.r.r10, version);
    EQ(T.r.rcx & 0xff, 1);
    EQ(*(u32 *)buffer, version);
    EQ(T.r.rdx & 0xff, version & 0x10 ? 1 : 0);
    EQ((u32)T.r.r13, version);
    /* read-modify-write and store forms on the TPR */
    r.rax = 0x40;
    done(&r, SNIP("mov %%eax, 0x80(%%rbx)\n\torl $3, 0x80(%%r11)\n\tmov 0x80(%%rbx), %%ecx\n\t"
                  "movl $0x20, 0x80(%%rbx)\n\txchg %%edx, 0x80(%%rbx)"));
    EQ(T.r.rcx, 0x43);
    EQ(T.r.rdx, 0x20);
    apic_write(APIC_TPR, 0);
}
