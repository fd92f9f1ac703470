/*
 * Transfers of control through selectors: far branches, call gates, interrupts through every kind
 * of gate, IRET, and hardware task switches (SDM vol. 3, chapters 5 to 7).
 */
#include "guest32.h"

#define FREE(i)  (SEL_FREE + 8 * (i))
#define LOW_CODE 0x2000u /* free memory whose address fits in 16 bits */

/* What lies on the stack that the interrupted code used. */
static u32 on_stack(unsigned i)
{
    return *mem32(T.r.esp + 4 * i);
}
static u32 on_stack16(unsigned i)
{
    return *mem16(T.r.esp + 2 * i);
}

/* -- Far branches ----------------------------------------------------------------------------- */

TEST(gate, far_jump_call)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++)
            for (unsigned k = 0; k < 4; k++) { /* jmp/call, direct/indirect */
                bool code32 = CODE32 >> m & 1, o32 = code32 ^ o, call = k & 1, ind = k & 2;
                context("%s, %u bits, %s %s", mode_name(m), o32 ? 32 : 16, call ? "call" : "jmp",
                        ind ? "indirect" : "direct");
                struct regs r = regs_for(m);
                u8 *c = gen_start(m), *p = c;
                u32 off = code32 ? LOW_CODE : ip_of(m, c) + 0x200, sel = r.cs;
                if (code32) { /* the target reads back what was pushed */
                    p = (u8 *)LOW_CODE;
                } else {
                    p = c + 0x200;
                    if (m == V86 || m == REAL) { /* another name of the same memory */
                        sel -= 0x10;
                        off += 0x100;
                    }
                }
                if (call) {
                    for (unsigned i = 0; i < 2; i++) {
                        if (o)
                            PUT(p, 0x66);
                        PUT(p, (u8)(0x58 + i)); /* pop ax; pop cx */
                    }
                }
                PUT(p, 0xcc);
                p = c;
                if (o)
                    PUT(p, 0x66);
                if (ind) {
                    u32 at = ds_off(m, 0x500);
                    PUT(p, 0xff, (u8)((call ? 3 : 5) << 3 | (code32 ? 5 : 6)));
                    p = put_bytes(p, &at, code32 ? 4 : 2);
                    memcpy(ds_ptr(0x500), &off, 4);
                    memcpy(ds_ptr(0x500 + (o32 ? 4 : 2)), &sel, 2);
                } else {
                    PUT(p, call ? 0x9a : 0xea);
                    p = put_bytes(p, &off, o32 ? 4 : 2);
                    p = put16(p, sel);
                }
                u32 next = ip_of(m, p);
                PUT(p, 0xf4);
                run_at(&r, c);
                expect(DONE, 0);
                EQ(T.r.cs, sel);
                EQ(T.r.eip, off + 1 + (call ? (o ? 4 : 2) : 0));
                EQ(T.r.esp, r.esp);
                if (call) {
                    u32 mask = o32 ? 0xffffffff : 0xffff;
                    EQ(T.r.eax & mask, next & mask);
                    EQ(T.r.ecx & 0xffff, r.cs);
                }
            }
    }
}

TEST(gate, far_return)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++)
            for (unsigned imm = 0; imm < 2; imm++) {
                bool code32 = CODE32 >> m & 1, o32 = code32 ^ o;
                struct regs r = regs_for(m);
                u8 *c = gen_start(m), *p = c;
                u32 off = code32 ? LOW_CODE : ip_of(m, c) + 0x200;
                *(u8 *)LOW_CODE = c[0x200] = 0xcc;
                if (o)
                    PUT(p, 0x66);
                PUT(p, imm ? 0xca : 0xcb, 0x0c, 0x00);
                context("%s, %u bits, imm %u", mode_name(m), o32 ? 32 : 16, imm);
                if (o32) {
                    *mem32(SS_BASE + 0x8000) = off;
                    *mem32(SS_BASE + 0x8004) = 0x99990000 | r.cs;
                } else {
                    *mem16(SS_BASE + 0x8000) = (u16)off;
                    *mem16(SS_BASE + 0x8002) = (u16)r.cs;
                }
                run_at(&r, c);
                expect(DONE, 0);
                EQ(T.r.eip, off + 1);
                EQ(T.r.cs, r.cs);
                EQ(T.r.esp, r.esp + (o32 ? 8 : 4) + (imm ? 12 : 0));
            }
    }
}

/* What a direct far jump to a code segment checks (SDM vol. 2, JMP). */
TEST(gate, far_jump_checks)
{
    enum { OK = 0xff };
    static const struct {
        u8 access, rpl, at0, at3;
    } cases[] = {
        {0x9b, 0, OK, GP}, {0xfb, 3, GP, OK}, {0xfb, 0, GP, OK}, {0x9f, 0, OK, OK},
        {0x9f, 3, OK, OK}, {0xff, 3, GP, OK}, {0xdf, 3, GP, OK}, {0x99, 0, OK, GP},
        {0x93, 0, GP, GP}, {0xf3, 3, GP, GP}, {0x1b, 0, NP, GP}, {0x7b, 3, GP, NP},
        {0x1f, 0, NP, NP}, {0x9b, 3, GP, GP}, {0x82, 0, GP, GP}, {0x00, 0, GP, GP},
        {0x8e, 0, GP, GP}, {0x9a, 0, OK, GP},
    };
    struct snip jmp = SNIP("ljmpl *(%%ebx)");
    *(u8 *)LOW_CODE = 0xcc;
    EACH_MODE(m, PROT)
    {
        unsigned cpl = CPL3 >> m & 1 ? 3 : 0;
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct regs r = regs_for(m);
            unsigned v = cpl ? cases[i].at3 : cases[i].at0;
            context("%s, access %x, rpl %u", mode_name(m), cases[i].access, cases[i].rpl);
            gdt[FREE(0) / 8] = DESC(0, 0xfffff, cases[i].access, 0xc);
            r.ebx = ds_off(m, 0x500);
            *mem32(DS_BASE + 0x500) = LOW_CODE;
            *mem16(DS_BASE + 0x504) = (u16)(FREE(0) | cases[i].rpl);
            if (v != OK) {
                fault(&r, code_for(m, jmp), v, FREE(0));
                continue;
            }
            run_at(&r, code_for(m, jmp));
            expect(DONE, 0);
            EQ(T.r.eip, LOW_CODE + 1);
            EQ(T.r.cs, FREE(0) | cpl); /* the RPL becomes CPL */
            if (!on_tcg)
                EQ(gdt[FREE(0) / 8] >> 40 & 1, 1); /* accessed */
        }
        struct regs r = regs_for(m);
        r.ebx = ds_off(m, 0x500);
        *mem16(DS_BASE + 0x504) = 3;
        fault(&r, code_for(m, jmp), GP, 0);
        *mem16(DS_BASE + 0x504) = 0x403;
        fault(&r, code_for(m, jmp), GP, 0x400);
        if (!on_tcg) {
            gdt[FREE(0) / 8] = DESC(0, 0x1fff, cpl ? 0xfb : 0x9b, 0x4);
            *mem16(DS_BASE + 0x504) = (u16)(FREE(0) | cpl);
            fault(&r, code_for(m, jmp), GP, 0); /* behind the limit */
        }
    }
}

/* -- Call gates ------------------------------------------------------------------------------- */

TEST(gate, call_inner)
{
    static const u8 params[] = {0, 1, 3, 31};
    u8 *to = SNIP32("nop");
    EACH_MODE(m, CPL3)
    {
        for (unsigned w = 2; w <= 4; w += 2)
            for (unsigned i = 0; i < 4; i++) {
                unsigned n = params[i];
                context("%s, %u-bit gate, %u parameters", mode_name(m), w * 8, n);
                *(u8 *)LOW_CODE = 0xcc;
                gdt[FREE(0) / 8] =
                    gate(SEL_KCODE, w == 4 ? (u32)to + 1 : LOW_CODE, w == 4 ? 0xec : 0xe4, n);
                struct regs r = regs_for(m);
                u8 *c = gen_start(m), *p = c;
                PUT(p, 0x9a); /* the offset is ignored */
                p = put_bytes(p, &(u32){0x12345678}, CODE32 >> m & 1 ? 4 : 2);
                p = put16(p, FREE(0) | 3);
                u32 next = ip_of(m, p);
                for (unsigned k = 0; k < 128; k++)
                    *ss_ptr(0x8000 + k) = (u8)(k + 1);
                run_at(&r, c);
                expect(DONE, 0);
                EQ(T.r.cs, SEL_KCODE);
                EQ(T.r.ss, SEL_KDATA);
                EQ(T.r.esp, tss.t.esp0 - w * (4 + n));
                EQ(T.r.ds, r.ds);
                if (w == 4) {
                    EQ(on_stack(0), next);
                    EQ(on_stack(1) & 0xffff, r.cs);
                    EQ(memcmp((void *)(T.r.esp + 8), ss_ptr(0x8000), 4 * n), 0);
                    EQ(on_stack(2 + n), r.esp);
                    EQ(on_stack(3 + n) & 0xffff, r.ss);
                } else {
                    EQ(on_stack16(0), next & 0xffff);
                    EQ(on_stack16(1), r.cs);
                    EQ(memcmp((void *)(T.r.esp + 4), ss_ptr(0x8000), 2 * n), 0);
                    EQ(on_stack16(2 + n), r.esp & 0xffff);
                    EQ(on_stack16(3 + n), r.ss);
                }
            }
    }
}

/* There and back: RETF n releases the parameters on both stacks and drops segments that the outer
 * level may not have. */
TEST(gate, call_and_return)
{
    u8 *kernel = SNIP32("movl $0x10, %%ecx\n\tmovl %%ecx, %%ds\n\tmovl %%ecx, %%es\n\t"
                        "movl 8(%%esp), %%edx\n\tlretl $8");
    u8 *user = SNIP32("pushl $0x1111\n\tpushl $0x2222\n\tlcall $0x103, $0\n\tnop");
    gdt[FREE(0) / 8] = gate(SEL_KCODE, (u32)kernel, 0xec, 2);
    EACH_MODE(m, M(U32) | M(S32))
    {
        struct regs r = regs_for(m);
        if (!done(&r, user))
            continue;
        EQ(T.r.cs, r.cs);
        EQ(T.r.ss, r.ss);
        EQ(T.r.esp, r.esp);
        EQ(T.r.edx, 0x2222);
        EQ(T.r.ds, 0);
        EQ(T.r.es, 0);
        EQ(T.r.fs, r.fs);
        EQ(T.r.gs, r.gs);
    }
}

TEST(gate, call_same_level)
{
    u8 *to = SNIP32("popl %%eax\n\tpopl %%ecx");
    u8 *call = SNIP32("lcall $0x100, $0\n\thlt"), *jmp = SNIP32("ljmp $0x100, $0\n\thlt");
    gdt[FREE(0) / 8] = gate(SEL_KCODE, (u32)to, 0x8c, 5); /* parameters: only for inner levels */
    struct regs r = regs_for(K32);
    if (done(&r, call)) {
        EQ(T.r.esp, r.esp);
        EQ(T.r.eax, r.eip + 7);
        EQ(T.r.ecx & 0xffff, SEL_KCODE);
    }
    u8 *stop = SNIP32("nop");
    gdt[FREE(0) / 8] = gate(SEL_KCODE, (u32)stop, 0x8c, 0);
    if (done(&r, jmp)) {
        EQ(T.r.eip, (u32)stop + 2);
        EQ(T.r.esp, r.esp);
    }
    gdt[FREE(0) / 8] = gate(SEL_KCODE, (u32)stop, 0xec, 0);
    r = regs_for(U32);
    u8 *ujmp = SNIP32("ljmp $0x103, $0\n\thlt");
    fault(&r, ujmp, GP, SEL_KCODE); /* a jump changes no level */
    gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0x9f, 0xc);
    gdt[FREE(0) / 8] = gate(FREE(1), (u32)stop, 0xec, 0);
    if (done(&r, ujmp))
        EQ(T.r.cs, FREE(1) | 3); /* conforming: stays at CPL 3 */
}

TEST(gate, call_checks)
{
    u8 *call = SNIP32("lcall $0x103, $0"), *to = SNIP32("nop");
    struct regs r = regs_for(U32);
    gdt[FREE(0) / 8] = gate(SEL_KCODE, (u32)to, 0xcc, 0); /* DPL 2 */
    fault(&r, call, GP, FREE(0));
    gdt[FREE(0) / 8] = gate(SEL_KCODE, (u32)to, 0x6c, 0);
    fault(&r, call, NP, FREE(0));
    gdt[FREE(0) / 8] = gate(0, (u32)to, 0xec, 0);
    fault(&r, call, GP, 0);
    gdt[FREE(0) / 8] = gate(SEL_KDATA, (u32)to, 0xec, 0);
    fault(&r, call, GP, SEL_KDATA);
    gdt[FREE(0) / 8] = gate(0x400, (u32)to, 0xec, 0);
    fault(&r, call, GP, 0x400);
    gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0x1b, 0xc);
    gdt[FREE(0) / 8] = gate(FREE(1), (u32)to, 0xec, 0);
    fault(&r, call, NP, FREE(1));
    gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0xfb, 0xc);
    gdt[FREE(0) / 8] = gate(FREE(1) | 3, (u32)to, 0xec, 0);
    if (done(&r, call)) /* the same level after all */
        EQ(T.r.esp, r.esp - 8);
    /* The new stack comes from the TSS: level 1 here, so that the faults have a good stack. */
    gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0xbb, 0xc);
    gdt[FREE(2) / 8] = DESC(0, 0xfffff, 0xb3, 0xc);
    gdt[FREE(0) / 8] = gate(FREE(1), (u32)to, 0xec, 0);
    tss.t.ss1 = 0;
    tss.t.esp1 = SS_BASE + 0x4000;
    fault(&r, call, TS, 0);
    tss.t.ss1 = 0x401;
    fault(&r, call, TS, 0x400);
    tss.t.ss1 = FREE(2); /* RPL must be 1 */
    fault(&r, call, TS, FREE(2));
    tss.t.ss1 = SEL_UDATA | 1;
    fault(&r, call, TS, SEL_UDATA);
    tss.t.ss1 = FREE(1) | 1;
    fault(&r, call, TS, FREE(1));
    gdt[FREE(2) / 8] = DESC(0, 0xfffff, 0x33, 0xc);
    tss.t.ss1 = FREE(2) | 1;
    if (!on_tcg) /* #TS there */
        fault(&r, call, SS, FREE(2));
    gdt[FREE(2) / 8] = DESC(0, 0xfffff, 0xb3, 0xc);
    if (done(&r, call)) {
        EQ(T.r.cs, FREE(1) | 1);
        EQ(T.r.ss, FREE(2) | 1);
        EQ(T.r.esp, SS_BASE + 0x4000 - 16);
        EQ(on_stack(2), r.esp);
    }
    if (!on_tcg) { /* no room on the new stack */
        gdt[FREE(2) / 8] = DESC(0, 0xfff, 0xb3, 0x4);
        fault(&r, call, SS, FREE(2));
        tss.t.esp1 = 15;
        fault(&r, call, SS, FREE(2));
    }
}

/* -- Interrupts ------------------------------------------------------------------------------- */

TEST(gate, interrupt_frames)
{
    struct snip s = SNIP("int $0x90\n\thlt");
    static const struct {
        u8 type;
        unsigned w;
        bool trap;
    } gates[] = {{0xe6, 2, false}, {0xe7, 2, true}, {0xee, 4, false}, {0xef, 4, true}};
    *(u8 *)LOW_CODE = 0xcc;
    EACH_MODE(m, PROT | M(V86))
    {
        for (unsigned i = 0; i < 4; i++) {
            if (m == V86 && gates[i].w == 2 && on_tcg)
                continue;
            context("%s, gate %x", mode_name(m), gates[i].type);
            idt[0x90] = gate(SEL_KCODE, LOW_CODE, gates[i].type, 0);
            struct regs r = regs_for(m);
            if (m == K16)
                continue; /* its stack is looked at below, through the 32-bit modes */
            r.eflags |= F_IF | F_NT | F_CF;
            run_at(&r, code_for(m, s));
            expect(DONE, 0);
            EQ(T.r.cs, SEL_KCODE);
            EQ(T.r.eip, LOW_CODE + 1);
            EQ(T.r.eflags & (F_IF | F_TF | F_NT | F_VM), gates[i].trap ? F_IF : 0);
            bool outer = m != K32;
            u32 ip = r.eip + 2, fl = r.eflags;
            if (gates[i].w == 2) {
                EQ(on_stack16(0), ip & 0xffff);
                EQ(on_stack16(1), r.cs);
                EQ(on_stack16(2), fl & 0xffff);
                if (outer) {
                    EQ(on_stack16(3), r.esp & 0xffff);
                    EQ(on_stack16(4), r.ss);
                }
            } else {
                EQ(on_stack(0), ip);
                EQ(on_stack(1) & 0xffff, r.cs);
                EQ(on_stack(2) & ~(u32)F_RF, fl);
                if (outer) {
                    EQ(on_stack(3), r.esp);
                    EQ(on_stack(4) & 0xffff, r.ss);
                }
                if (m == V86) {
                    EQ(on_stack(5) & 0xffff, r.es);
                    EQ(on_stack(6) & 0xffff, r.ds);
                    EQ(on_stack(7) & 0xffff, r.fs);
                    EQ(on_stack(8) & 0xffff, r.gs);
                    EQ(T.r.ds, 0);
                    EQ(T.r.gs, 0);
                    EQ(T.r.esp, tss.t.esp0 - 36);
                }
            }
        }
    }
}

TEST(gate, interrupt_checks)
{
    struct snip s = SNIP("int $0x90"), i3 = SNIP("int $3"), io = SNIP("into"), ud = SNIP("ud2");
    u8 *to = SNIP32("nop");
    EACH_MODE(m, PROT | M(V86))
    {
        struct regs r = regs_for(m);
        bool user = m != K32 && m != K16;
        idt[0x90] = gate(SEL_KCODE, (u32)to, 0x8e, 0);
        if (user)
            fault(&r, code_for(m, s), GP, 0x90 * 8 + 2);
        idt[0x90] = gate(SEL_KCODE, (u32)to, 0x6e, 0);
        fault(&r, code_for(m, s), NP, 0x90 * 8 + 2);
        idt[0x90] = gate(SEL_KCODE, (u32)to, 0xec, 0); /* a call gate is none for an IDT */
        fault(&r, code_for(m, s), GP, 0x90 * 8 + 2);
        idt[0x90] = gate(0, (u32)to, 0xee, 0);
        fault(&r, code_for(m, s), GP, 0);
        idt[0x90] = gate(SEL_KDATA, (u32)to, 0xee, 0);
        fault(&r, code_for(m, s), GP, SEL_KDATA);
        gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0x1b, 0xc);
        idt[0x90] = gate(FREE(1), (u32)to, 0xee, 0);
        fault(&r, code_for(m, s), NP, FREE(1));
        if (!user) { /* a handler may not be less privileged */
            idt[0x90] = gate(SEL_UCODE | 3, (u32)to, 0xee, 0);
            fault(&r, code_for(m, s), GP, SEL_UCODE);
        }
        if (m == V86) { /* nor anything but level 0 */
            idt[0x90] = gate(SEL_UCODE | 3, (u32)to, 0xee, 0);
            fault(&r, code_for(m, s), GP, SEL_UCODE);
        }
        idt_default(OF, 0);
        r.eflags |= F_OF;
        if (user)
            fault(&r, code_for(m, io), GP, OF * 8 + 2);
        idt[BP] = gate(SEL_KCODE, (u32)to, 0x6e, 0);
        fault(&r, code_for(m, i3), NP, BP * 8 + 2);
        idt_default(BP, 3);
        /* a fault delivered on the way to another one: EXT is set */
        idt[UD] = gate(SEL_KCODE, (u32)to, 0x0e, 0);
        if (!on_tcg)
            fault(&r, code_for(m, ud), NP, UD * 8 + 3);
        idt_default(UD, 0);
    }
}

/* A contributory fault while a contributory fault is delivered (SDM vol. 3, table 6-5). */
TEST(gate, double_fault)
{
    struct snip de = SNIP("divb %%cl");
    EACH_MODE(m, PROT | M(V86))
    {
        struct regs r = regs_for(m);
        r.ecx = 0;
        idt[DE] = gate(SEL_KDATA, 0, 0x8e, 0);
        run_at(&r, code_for(m, de));
        expect(DF, 0);
        EQ(T.r.eip, r.eip);
        EQ(T.r.cs, r.cs);
        EQ(T.r.eflags & F_VM, r.eflags & F_VM);
        idt_default(DE, 0);
    }
}

TEST(gate, iret)
{
    u8 *l = SNIP32("iretl"), *w = SNIP32("iretw");
    u8 *to = SNIP32("nop");
    *(u8 *)LOW_CODE = 0xcc;
    /* same level */
    struct regs r = regs_for(K32);
    u32 *s = mem32(SS_BASE + 0x8000);
    s[0] = (u32)to;
    s[1] = SEL_KCODE;
    s[2] = 0x3ed7 & ~(u32)F_TF; /* IOPL 3, IF, and the flags */
    if (done(&r, l)) {
        EQ(T.r.esp, r.esp + 12);
        EQ(T.r.eflags, s[2] & ~0x28u);
    }
    u16 *h = mem16(SS_BASE + 0x8000);
    h[0] = LOW_CODE;
    h[1] = SEL_KCODE;
    h[2] = F_CF | 2;
    if (done(&r, w)) {
        EQ(T.r.esp, r.esp + 6);
        EQ(T.r.eip, LOW_CODE + 1);
    }
    /* to CPL 3; data segments that it may not have become null */
    s[0] = (u32)to;
    s[1] = SEL_UCODE | 3;
    s[2] = 2 | F_IF;
    s[3] = 0x12345678;
    s[4] = SEL_UDATA | 3;
    r.fs = SEL_UDATA;
    if (done(&r, l)) {
        EQ(T.r.cs, SEL_UCODE | 3);
        EQ(T.r.esp, 0x12345678);
        EQ(T.r.ds, 0);
        EQ(T.r.fs, SEL_UDATA);
    }
    r.fs = SEL_KDATA;
    static const struct {
        u32 cs, ss;
        unsigned vector;
        u32 error;
    } bad[] = {
        {0, SEL_UDATA | 3, GP, 0},
        {SEL_UCODE | 2, SEL_UDATA | 2, GP, SEL_UCODE},
        {SEL_UDATA | 3, SEL_UDATA | 3, GP, SEL_UDATA},
        {SEL_KCODE | 3, SEL_UDATA | 3, GP, SEL_KCODE},
        {SEL_UCODE | 3, 0, GP, 0},
        {SEL_UCODE | 3, SEL_UDATA, GP, SEL_UDATA},
        {SEL_UCODE | 3, SEL_KDATA | 3, GP, SEL_KDATA},
        {SEL_UCODE | 3, SEL_UCODE | 3, GP, SEL_UCODE},
        {FREE(1) | 3, SEL_UDATA | 3, NP, FREE(1)},
        {SEL_UCODE | 3, FREE(2) | 3, SS, FREE(2)},
    };
    gdt[FREE(1) / 8] = DESC(0, 0xfffff, 0x7b, 0xc);
    gdt[FREE(2) / 8] = DESC(0, 0xfffff, 0x73, 0xc);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]) - on_tcg; i++) { /* the last: #NP there */
        context("case %u", i);
        s[0] = (u32)to;
        s[1] = bad[i].cs;
        s[2] = 2;
        s[3] = SS_BASE + 0x4000;
        s[4] = bad[i].ss;
        /* the trap's own frame lies below: the operands are still there */
        fault(&r, l, bad[i].vector, bad[i].error);
    }
    /* CPL 3 changes neither IF nor IOPL */
    context("cpl 3");
    r = regs_for(U32);
    s[0] = (u32)to;
    s[1] = SEL_UCODE | 3;
    s[2] = 2 | F_IF | F_IOPL | F_CF | F_ID;
    if (done(&r, l))
        EQ(T.r.eflags, 2 | F_CF | F_ID);
    s[1] = SEL_KCODE;
    fault(&r, l, GP, SEL_KCODE); /* not to an inner level */
    /* Real mode and V86 with IOPL 3 */
    u8 *w16 = SNIP16("iretw"), *l16 = SNIP16("iretl"), *to16 = SNIP16("nop");
    EACH_MODE(m, M(V86) | M(REAL))
    {
        r = regs_for(m);
        h[0] = (u16)ip_of(m, to16);
        h[1] = 0x3000;
        h[2] = F_CF | F_IF | 2 | F_IOPL;
        run_at(&r, w16);
        expect(DONE, 0);
        EQ(T.r.esp, r.esp + 6);
        EQ(T.r.eflags & 0xffff, F_CF | F_IF | F_IOPL | 2);
        s[0] = ip_of(m, to16);
        s[1] = 0x3000;
        s[2] = F_CF | 2 | F_IOPL | F_VIF | F_VIP;
        run_at(&r, l16);
        expect(DONE, 0);
        EQ(T.r.esp, r.esp + 12);
        EQ(T.r.eflags & 0xffff, F_CF | F_IOPL | 2);
    }
}

/* -- Task switches ---------------------------------------------------------------------------- */

static struct tss32 other __attribute__((aligned(256)));
static struct tss16 small __attribute__((aligned(256)));
static u8 other_stack[4096] __attribute__((aligned(16)));

static void make_other(const void *code)
{
    memset(&other, 0, sizeof(other));
    other.eip = (u32)code;
    other.eflags = 2 | F_CF;
    other.eax = 0xa0a0a0a0;
    other.ecx = 0xc1c1c1c1;
    other.edx = 0xd2d2d2d2;
    other.ebx = 0xb3b3b3b3;
    other.esp = (u32)other_stack + 2048;
    other.ebp = 0xb5b5b5b5;
    other.esi = 0xe6e6e6e6;
    other.edi = 0xe7e7e7e7;
    other.cs = SEL_KCODE;
    other.ss = other.ds = other.es = SEL_KDATA;
    other.fs = SEL_UDATA;
    other.iomap = sizeof(other);
    other.esp0 = (u32)other_stack + sizeof(other_stack);
    other.ss0 = SEL_KDATA;
    gdt[FREE(0) / 8] = DESC((u32)&other, sizeof(other) - 1, 0xe9, 0);
}

static void check_other(void)
{
    EQ(T.r.eax, 0xa0a0a0a0);
    EQ(T.r.ecx, 0xc1c1c1c1);
    EQ(T.r.edx, 0xd2d2d2d2);
    EQ(T.r.ebx, 0xb3b3b3b3);
    EQ(T.r.ebp, 0xb5b5b5b5);
    EQ(T.r.esi, 0xe6e6e6e6);
    EQ(T.r.edi, 0xe7e7e7e7);
    EQ(T.r.esp, (u32)other_stack + 2048);
    EQ(T.r.fs, SEL_UDATA);
    EQ(read_cr0() & CR0_TS, CR0_TS);
    EQ(gdt[FREE(0) / 8] >> 40 & 0xf, 0xb);
}

static void check_saved(const struct regs *r, u32 eip, u32 eflags)
{
    EQ(tss.t.eip, eip);
    EQ(tss.t.eflags & ~(u32)F_RF, eflags);
    EQ(tss.t.eax, r->eax);
    EQ(tss.t.ecx, r->ecx);
    EQ(tss.t.esp, r->esp);
    EQ(tss.t.edi, r->edi);
    EQ(tss.t.cs, r->cs);
    EQ(tss.t.ss, r->ss);
    EQ(tss.t.ds, r->ds);
    EQ(tss.t.gs, r->gs);
}

static void back(void)
{
    write_cr0(read_cr0() & ~CR0_TS);
    lldt(0);
    load_tr(SEL_TSS);
}

TEST(task, jump)
{
    u8 *code = SNIP32("nop"), *jmp = SNIP32("ljmp $0x100, $0"), *ujmp = SNIP32("ljmp $0x103, $0");
    EACH_MODE(m, M(K32) | M(U32) | M(S32))
    {
        for (unsigned g = 0; g < 2; g++) { /* directly, or through a task gate */
            context("%s, %s", mode_name(m), g ? "gate" : "tss");
            make_other(code);
            if (g) {
                gdt[FREE(1) / 8] = gdt[FREE(0) / 8];
                gdt[FREE(0) / 8] = gate(FREE(1), 0, 0xe5, 0);
            }
            struct regs r = regs_for(m);
            u8 *c = m == K32 ? jmp : ujmp;
            run_at(&r, c);
            expect(DONE, 0);
            if (g)
                gdt[FREE(0) / 8] = gdt[FREE(1) / 8];
            check_other();
            EQ(T.r.eflags, 2 | F_CF);
            EQ(gdt[SEL_TSS / 8] >> 40 & 0xf, 9); /* not busy any more */
            check_saved(&r, r.eip + 7, r.eflags);
            EQ(other.link, 0);
            back();
        }
    }
}

TEST(task, call_and_iret)
{
    u8 *code = SNIP32("movl $0x77, %%eax\n\tiretl\n\tnop"),
       *call = SNIP32("lcall $0x100, $0\n\tnop"), *ucall = SNIP32("lcall $0x103, $0\n\tnop");
    u8 *stop = SNIP32("nop");
    EACH_MODE(m, M(K32) | M(U32) | M(S32))
    {
        struct regs r = regs_for(m);
        u8 *c = m == K32 ? call : ucall;
        make_other(stop);
        run_at(&r, c);
        expect(DONE, 0);
        check_other();
        EQ(T.r.eflags, 2 | F_CF | F_NT);
        EQ(other.link, SEL_TSS);
        EQ(gdt[SEL_TSS / 8] >> 40 & 0xf, 0xb); /* both are busy */
        back();
        make_other(code);
        gdt[SEL_TSS / 8] |= (u64)2 << 40;
        r.eflags |= F_OF;
        run_at(&r, c);
        expect(DONE, 0);
        EQ(T.r.eip, r.eip + 9);
        EQ(T.r.eflags, r.eflags);
        for (unsigned i = 0; i < 8; i++)
            EQ((&T.r.eax)[i], (&r.eax)[i]);
        EQ(T.r.cs, r.cs);
        EQ(T.r.ss, r.ss);
        EQ(other.eax, 0x77);
        EQ(other.eip, (u32)code + 6);
        EQ(other.eflags & F_NT, 0);
        EQ(gdt[FREE(0) / 8] >> 40 & 0xf, 9);
        EQ(gdt[SEL_TSS / 8] >> 40 & 0xf, 0xb);
        back();
    }
}

TEST(task, interrupt)
{
    u8 *stop = SNIP32("nop");
    struct snip i = SNIP("int $0x90\n\tnop"), gp = SNIP("movw %%ax, %%fs");
    EACH_MODE(m, PROT | M(V86))
    {
        struct regs r = regs_for(m);
        make_other(stop);
        idt[0x90] = gate(FREE(0), 0, 0xe5, 0);
        run_at(&r, code_for(m, i));
        expect(DONE, 0);
        check_other();
        EQ(T.r.eflags, 2 | F_CF | F_NT);
        EQ(other.link, SEL_TSS);
        check_saved(&r, r.eip + 2, r.eflags);
        back();
        /* an exception with an error code: on the new task's stack */
        if (m == V86)
            continue;
        make_other(stop);
        idt[GP] = gate(FREE(0), 0, 0x85, 0);
        r.eax = 0x400;
        run_at(&r, code_for(m, gp));
        expect(DONE, 0);
        EQ(T.r.esp, (u32)other_stack + 2044);
        EQ(on_stack(0), 0x400);
        check_saved(&r, r.eip, r.eflags);
        idt_default(GP, 0);
        back();
    }
}

TEST(task, ldt_and_levels)
{
    u8 *jmp = SNIP32("ljmp $0x100, $0"), *to = SNIP32("nop");
    struct regs r = regs_for(K32);
    make_other(to);
    other.ldt = SEL_LDT;
    other.cs = 0x0c | 3;
    other.ss = 0x14 | 3;
    other.ds = 0x14 | 3;
    other.es = 0;
    other.fs = other.gs = SEL_UDATA | 3;
    ldt[1] = DESC(0, 0xfffff, 0xfb, 0xc);
    ldt[2] = DESC(0, 0xfffff, 0xf3, 0xc);
    run_at(&r, jmp);
    expect(DONE, 0);
    EQ(T.r.cs, 0x0f);
    EQ(T.r.ss, 0x17);
    EQ(T.r.esp, (u32)other_stack + 2048);
    u32 sel;
    asm volatile("sldt %0" : "=r"(sel));
    EQ(sel & 0xffff, SEL_LDT);
    back();
    /* a task in virtual-8086 mode */
    u8 *v = SNIP16("nop");
    make_other((void *)ip_of(V86, v));
    other.eflags = F_VM | F_IOPL | 2;
    other.cs = 0x3000;
    other.ss = other.ds = other.es = other.fs = other.gs = 0x4000;
    other.esp = 0x8000;
    run_at(&r, jmp);
    expect(DONE, 0);
    EQ(T.r.eflags & F_VM, F_VM);
    EQ(T.r.cs, 0x3000);
    EQ(T.r.gs, 0x4000);
    EQ(T.r.eip, ip_of(V86, v) + 2);
    back();
}

TEST(task, tss16)
{
    u8 *jmp = SNIP32("ljmp $0x100, $0");
    memset(&small, 0, sizeof(small));
    *(u8 *)LOW_CODE = 0xcc;
    small.ip = LOW_CODE;
    small.flags = 2 | F_ZF;
    small.ax = 0x1234;
    small.di = 0x5678;
    small.sp = 0x7000;
    small.cs = SEL_KCODE;
    small.ss = SEL_K16 + 16;
    small.ds = small.es = SEL_KDATA;
    gdt[FREE(0) / 8] = DESC((u32)&small, sizeof(small) - 1, 0x81, 0);
    struct regs r = regs_for(K32);
    run_at(&r, jmp);
    expect(DONE, 0);
    EQ(T.r.eax & 0xffff, 0x1234);
    EQ(T.r.edi & 0xffff, 0x5678);
    EQ(T.r.esp & 0xffff, 0x7000);
    EQ(T.r.eflags & 0xffff, 2 | F_ZF);
    EQ(T.r.ss, SEL_K16 + 16);
    EQ(T.r.fs, 0);
    EQ(gdt[FREE(0) / 8] >> 40 & 0xf, 3);
    back();
    /* from a 16-bit task: its TSS takes the 16-bit halves */
    asm volatile("ltr %w0" ::"r"(
        FREE(1) + 0 * (gdt[FREE(1) / 8] = DESC((u32)&small, sizeof(small) - 1, 0x81, 0))));
    u8 *to = SNIP32("nop");
    make_other(to);
    run_at(&r, jmp);
    expect(DONE, 0);
    check_other();
    EQ(small.ax, r.eax & 0xffff);
    EQ(small.sp, r.esp & 0xffff);
    EQ(small.cs, SEL_KCODE);
    back();
}

TEST(task, checks)
{
    u8 *jmp = SNIP32("ljmp $0x100, $0"), *to = SNIP32("nop"), *iret = SNIP32("iretl");
    struct regs r = regs_for(K32), u = regs_for(U32);
    u8 *ujmp = SNIP32("ljmp $0x103, $0");
    make_other(to);
    gdt[FREE(0) / 8] = DESC((u32)&other, sizeof(other) - 1, 0x8b, 0);
    fault(&r, jmp, GP, FREE(0)); /* busy */
    gdt[FREE(0) / 8] = DESC((u32)&other, sizeof(other) - 1, 0x09, 0);
    fault(&r, jmp, NP, FREE(0));
    gdt[FREE(0) / 8] = DESC((u32)&other, sizeof(other) - 2, 0x89, 0);
    fault(&r, jmp, TS, FREE(0));
    gdt[FREE(0) / 8] = DESC((u32)&other, sizeof(other) - 1, 0x89, 0);
    fault(&u, ujmp, GP, FREE(0)); /* DPL */
    gdt[FREE(0) / 8] = gate(FREE(1), 0, 0x85, 0);
    fault(&u, ujmp, GP, FREE(0));
    gdt[FREE(0) / 8] = gate(SEL_KDATA, 0, 0x85, 0);
    fault(&r, jmp, GP, SEL_KDATA);
    gdt[FREE(0) / 8] = gate(FREE(1), 0, 0x05, 0);
    fault(&r, jmp, NP, FREE(0));
    /* IRET with NT: the back link must name a busy TSS */
    r.eflags |= F_NT;
    tss.t.link = SEL_KDATA;
    fault(&r, iret, TS, SEL_KDATA);
    tss.t.link = 0x404;
    fault(&r, iret, TS, 0x404);
    make_other(to);
    tss.t.link = FREE(0); /* not busy */
    fault(&r, iret, TS, FREE(0));
    r.eflags &= ~(u32)F_NT;
    /* what the new state gets wrong faults in the new task, before its first instruction */
    static const struct {
        u16 offset, value;
        unsigned vector;
        u32 error;
    } bad[] = {
        {offsetof(struct tss32, ss), 0, TS, 0},
        {offsetof(struct tss32, ss), SEL_UDATA, TS, SEL_UDATA},
        {offsetof(struct tss32, cs), SEL_KDATA, TS, SEL_KDATA},
        {offsetof(struct tss32, cs), 0, TS, 0},
        {offsetof(struct tss32, ds), SEL_TSS, TS, SEL_TSS},
        {offsetof(struct tss32, ldt), SEL_KDATA, TS, SEL_KDATA},
        {offsetof(struct tss32, es), FREE(2), NP, FREE(2)},
        {offsetof(struct tss32, ss), FREE(2), SS, FREE(2)},
    };
    gdt[FREE(2) / 8] = DESC(0, 0xfffff, 0x13, 0xc);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]) - on_tcg; i++) { /* the last: #NP there */
        context("case %u", i);
        make_other(to);
        memcpy((u8 *)&other + bad[i].offset, &bad[i].value, 2);
        /* the fault is handled by a task, as the new task's stack may be unusable */
        static struct tss32 handler __attribute__((aligned(256)));
        handler = other;
        handler.cs = SEL_KCODE;
        handler.ss = handler.ds = handler.es = SEL_KDATA;
        handler.ldt = 0;
        handler.esp = (u32)other_stack + 1024;
        gdt[FREE(3) / 8] = DESC((u32)&handler, sizeof(handler) - 1, 0x89, 0);
        idt[bad[i].vector] = gate(FREE(3), 0, 0x85, 0);
        run_at(&r, jmp);
        expect(DONE, 0);
        EQ(T.r.esp, (u32)other_stack + 1020);
        EQ(on_stack(0) & ~1u, bad[i].error);
        if (!on_tcg)
            EQ(other.eip, (u32)to);
        EQ(handler.link, FREE(0));
        idt_default(bad[i].vector, 0);
        back();
    }
}

/* The T bit of a TSS: #DB before the new task's first instruction, DR6.BT (SDM vol. 3, 17.3.1.5).
 */
TEST(task, debug_trap)
{
    TCG_SKIP("the T bit of a TSS does nothing");
    u8 *jmp = SNIP32("ljmp $0x100, $0"), *to = SNIP32("nop");
    struct regs r = regs_for(K32);
    make_other(to);
    other.trap = 1;
    run_at(&r, jmp);
    expect(DB, 0);
    EQ(T.r.eip, (u32)to);
    EQ(T.dr6 & 0xe00f, 0x8000);
    EQ(T.r.eax, 0xa0a0a0a0);
    back();
}
