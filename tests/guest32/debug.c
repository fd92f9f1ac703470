/*
 * Debug exceptions in every mode: single step, INT1, breakpoint registers (SDM vol. 3, 17.3).
 */
#include "guest32.h"

#define BS 0x4000u

static u32 steps, where[64], flags_seen[64];
static u32 step_limit;

static bool step(struct frame *f)
{
    if (steps < 64) {
        where[steps] = f->eip;
        flags_seen[steps] = f->eflags;
    }
    return ++steps < step_limit;
}

/* Runs with TF set; returns how many #DB came before INT3, and EIPs in `where`. */
static void trace(unsigned m, const u8 *code, struct regs *r)
{
    steps = 0;
    step_limit = 60;
    handlers[DB] = step;
    write_dr6(0xffff0ff0);
    r->eflags |= F_TF;
    run_at(r, code);
    expect(DONE, 0);
    handlers[DB] = NULL;
    (void)m;
}

TEST(debug, single_step)
{
    struct snip s = SNIP("nop\n\tincw %%ax\n\tmovw %%ax, %%cx\n\tjmp 1f\n\tnop\n1:\tnop");
    static const u8 at16[] = {1, 2, 4, 7, 8}, at32[] = {1, 3, 6, 9, 10};
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        trace(m, code_for(m, s), &r);
        EQ(steps, 5);
        for (unsigned i = 0; i < 5; i++)
            EQ(where[i] - r.eip, CODE32 >> m & 1 ? at32[i] : at16[i]);
        EQ(T.dr6 & 0xe00f, BS);
    }
}

/* A single-stepped string instruction traps after each repetition. */
TEST(debug, step_rep)
{
    struct snip s = SNIP("rep stosb\n\tnop");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ecx = CODE32 >> m & 1 ? 4 : 0xabcd0004;
        r.edi = es_off(m, 0x100);
        trace(m, code_for(m, s), &r);
        EQ(steps, 5);
        for (unsigned i = 0; i < 3; i++)
            EQ(where[i], r.eip);
        EQ(where[3], r.eip + 2);
        EQ(where[4], r.eip + 3);
    }
}

/* MOV SS holds the trap back for one instruction; PUSHF pushes TF; POPF clears it after itself. */
TEST(debug, step_special)
{
    struct snip
        ss = SNIP("movw %%ss, %%ax\n\tmovw %%ax, %%ss\n\tnop\n\tnop"),
        popf =
            SNIP("pushfw\n\tpopw %%ax\n\tandw $0xfeff, %%ax\n\tpushw %%ax\n\tpopfw\n\tnop\n\tnop"),
        set = SNIP("pushfw\n\tpopw %%ax\n\torw $0x100, %%ax\n\tpushw %%ax\n\tpopfw\n\tnop\n\tnop");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        bool c32 = CODE32 >> m & 1;
        trace(m, code_for(m, ss), &r);
        EQ(steps, 3);
        EQ(where[0] - r.eip, c32 ? 3 : 2);
        EQ(where[1] - r.eip, (c32 ? 3 : 2) + 3); /* behind the first NOP */
        r = regs_for(m);
        trace(m, code_for(m, popf), &r);
        EQ(steps, 5); /* POPF itself is still traced */
        EQ(T.r.eflags & F_TF, 0);
        r = regs_for(m);
        steps = 0;
        step_limit = 60;
        handlers[DB] = step;
        run_at(&r, code_for(m, set));
        expect(DONE, 0);
        handlers[DB] = NULL;
        EQ(steps, 2); /* the two NOPs; the INT3 is on its way when its trap would come */
    }
}

/* INT n clears TF for the handler; the trap comes after its IRET. */
TEST(debug, step_int)
{
    struct snip s = SNIP("int $0x80\n\tnop\n\tnop");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.eflags |= F_TF;
        run_at(&r, code_for(m, s));
        expect(0x80, 0);
        EQ(T.r.eip, r.eip + 2);
        EQ(T.r.eflags & F_TF, F_TF);
    }
}

TEST(debug, icebp_int3_int1)
{
    TCG_SKIP("no INT1 (F1)");
    struct snip ice = SNIP(".byte 0xf1\n\tnop"), i1 = SNIP("int $1"), i3 = SNIP(".byte 0xcd, 3");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        idt_default(DB, 0); /* INT1 asks for no privilege */
        write_dr6(0xffff0ff0);
        run_at(&r, code_for(m, ice));
        expect(DB, 0);
        EQ(T.r.eip, r.eip + 1);
        EQ(T.dr6 & 0xe00f, 0);
        if ((CPL3 | M(V86)) >> m & 1) {
            fault(&r, code_for(m, i1), GP, DB * 8 + 2);
        } else {
            run_at(&r, code_for(m, i1));
            expect(DB, 0);
            EQ(T.r.eip, r.eip + 2);
        }
        run_at(&r, code_for(m, i3));
        expect(BP, 0);
        EQ(T.r.eip, r.eip + 2);
    }
}

TEST(debug, execute_breakpoint)
{
    TCG_SKIP("crashes");
    struct snip s = SNIP("nop\n\tnop\n\tnop");
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        u8 *c = code_for(m, s);
        write_dr6(0xffff0ff0);
        write_dr0((u32)c + 1); /* linear */
        write_dr7(0x402);
        run_at(&r, c);
        expect(DB, 0);
        EQ(T.r.eip, r.eip + 1); /* a fault */
        EQ(T.dr6 & 0xe00f, 1);
        if (m != REAL && m != K16) { /* RF lets it pass */
            r.eip = T.r.eip;
            r.eflags |= F_RF;
            run(&r);
            expect(DONE, 0);
        }
        write_dr7(0x400);
        done(&r, c);
    }
}

TEST(debug, data_breakpoint)
{
    struct snip wr = SNIP("movb %%al, (%%ebx)\n\tnop"), rd = SNIP("movb (%%ebx), %%al\n\tnop"),
                wide = SNIP("movl %%eax, -3(%%ebx)\n\tnop"), str = SNIP("rep stosb\n\tnop");
    static const u8 len16[] = {3, 3, 5}, len32[] = {2, 2, 3};
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        const u8 *len = CODE32 >> m & 1 ? len32 : len16;
        r.ebx = ds_off(m, 0x600);
        write_dr1(DS_BASE + 0x600);
        for (unsigned rw = 0; rw < 2; rw++) {
            write_dr7(0x408 | (rw ? 3u : 1u) << 20); /* one byte, written or accessed */
            write_dr6(0xffff0ff0);
            context("%s, rw %u", mode_name(m), rw);
            run_at(&r, code_for(m, wr));
            write_dr7(0x400); /* the checks themselves look there */
            expect(DB, 0);
            EQ(T.r.eip, r.eip + len[0]); /* a trap */
            EQ(T.dr6 & 0xe00f, 2);
            EQ(*ds_ptr(0x600), r.eax & 0xff);
            write_dr6(0xffff0ff0);
            write_dr7(0x408 | (rw ? 3u : 1u) << 20);
            run_at(&r, code_for(m, wide));
            expect(DB, 0);
            EQ(T.r.eip, r.eip + len[2]);
            run_at(&r, code_for(m, rd));
            expect(rw ? DB : DONE, 0);
        }
        /* inside a repeated instruction: after the iteration that hits */
        r.edi = es_off(m, 0x10);
        r.ecx = CODE32 >> m & 1 ? 8 : 8;
        write_dr1(ES_BASE + 0x13);
        write_dr7(0x408 | 1u << 20);
        run_at(&r, code_for(m, str));
        expect(DB, 0);
        EQ(T.r.ecx & 0xffff, 4);
        EQ(T.r.eip, r.eip);
        write_dr7(0x400);
    }
}

/* DR7.GD: any use of a debug register faults, with GD cleared for the handler. */
TEST(debug, general_detect)
{
    TCG_SKIP("no DR7.GD");
    struct snip rd = SNIP("movl %%dr0, %%eax"), wr = SNIP("movl %%eax, %%dr3");
    EACH_MODE(m, CPL0)
    {
        struct regs r = regs_for(m);
        for (unsigned i = 0; i < 2; i++) {
            write_dr6(0xffff0ff0);
            write_dr7(0x2400);
            run_at(&r, code_for(m, i ? wr : rd));
            expect(DB, 0);
            EQ(T.r.eip, r.eip);
            EQ(T.dr6 & 0xe00f, 0x2000);
            EQ(read_dr7(), 0x400);
        }
    }
    EACH_MODE(m, CPL3 | M(V86))
    {
        struct regs r = regs_for(m);
        fault(&r, code_for(m, rd), GP, 0);
        fault(&r, code_for(m, wr), GP, 0);
    }
}

TEST(debug, io_breakpoint)
{
    struct snip out = SNIP("outb %%al, $0x80\n\tnop"), in = SNIP("inw %%dx, %%ax\n\tnop");
    EACH_MODE(m, CPL0)
    {
        struct regs r = regs_for(m);
        write_cr4(read_cr4() | CR4_DE);
        write_dr2(0x80);
        write_dr6(0xffff0ff0);
        write_dr7(0x420 | 2u << 24);
        run_at(&r, code_for(m, out));
        expect(DB, 0);
        EQ(T.r.eip, r.eip + 2);
        EQ(T.dr6 & 0xe00f, 4);
        r.edx = 0x7f; /* two bytes: 7Fh and 80h */
        run_at(&r, code_for(m, in));
        expect(DB, 0);
        r.edx = 0x7e;
        done(&r, code_for(m, in));
        write_dr7(0x400);
    }
}
