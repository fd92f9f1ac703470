/*
 * String instructions (translator/string_ops.c) against a model that does them byte by byte as
 * SDM vol. 2 describes, over scattered pages, holes, page-straddling elements, overlap, both
 * directions and all prefixes.
 */
#include "tests/unit/cpu_fixture.h"

#include "translator/bt.h"

TestSuite(cpu_string, .init = cpu_setup, .fini = cpu_teardown);

/* Eight virtual pages from AREA on, mapped out of order; HOLE is absent, ROM is read-only. */
#define AREA  0x400000ull
#define PAGES 8u
#define HOLE  5u
#define ROM   6u
static const uint8_t frame_of[PAGES] = {3, 7, 1, 0, 6, 5, 2, 4};
#define PHYS 0x280000ull

static uint8_t mirror[PAGES * 4096]; /* the model's memory, by virtual offset */

static void setup_area(void)
{
    for (unsigned i = 0; i < PAGES; i++) {
        if (i == HOLE)
            continue;
        map_page(AREA + i * 4096, PHYS + frame_of[i] * 4096,
                 PTE_P | PTE_US | (i == ROM ? 0 : PTE_RW), 1);
        for (unsigned j = 0; j < 4096; j++)
            mirror[i * 4096 + j] = rnd() % 3;
        memcpy(ram.base + PHYS + frame_of[i] * 4096, mirror + i * 4096, 4096);
    }
}

static bool same_memory(void)
{
    for (unsigned i = 0; i < PAGES; i++)
        if (i != HOLE && memcmp(ram.base + PHYS + frame_of[i] * 4096, mirror + i * 4096, 4096))
            return false;
    return true;
}

struct regs {
    uint64_t rax, rcx, rsi, rdi, rflags;
};

/* May `size` bytes at `a` be accessed?  Sets *cr2 to the first byte that may not. */
static bool accessible(uint64_t a, unsigned size, bool write, uint64_t *cr2)
{
    for (unsigned i = 0; i < size; i++) {
        uint64_t page = (a + i - AREA) / 4096;
        if (a + i < AREA || page >= PAGES || page == HOLE || (write && page == ROM)) {
            *cr2 = a + i;
            return false;
        }
    }
    return true;
}

static uint64_t model_load(uint64_t a, unsigned size)
{
    uint64_t x = 0;
    memcpy(&x, mirror + (a - AREA), size);
    return x;
}

static uint64_t cmp_flags(uint64_t a, uint64_t b, unsigned size)
{
    unsigned top = size * 8 - 1;
    uint64_t mask = size == 8 ? ~0ull : (1ull << size * 8) - 1;
    uint64_t r = (a - b) & mask;
    uint64_t f = 0;

    a &= mask;
    b &= mask;
    if (a < b)
        f |= FL_CF;
    if (!r)
        f |= FL_ZF;
    if (r >> top & 1)
        f |= FL_SF;
    if (((a ^ b) & (a ^ r)) >> top & 1)
        f |= FL_OF;
    if ((a ^ b ^ r) & 0x10)
        f |= FL_AF;
    if (!(__builtin_popcount(r & 0xff) & 1))
        f |= FL_PF;
    return f;
}

/* Returns false with *cr2 if the instruction faults. */
static bool model_run(struct regs *r, unsigned op, unsigned size, unsigned rep, unsigned addr_size,
                      uint64_t src_base, uint64_t *cr2)
{
    uint64_t amask = addr_size == 8 ? ~0ull : 0xffffffffull;
    int64_t step = r->rflags & FL_DF ? -(int64_t)size : (int64_t)size;
    bool has_src = op == OP_MOVS || op == OP_CMPS || op == OP_LODS;
    bool has_dst = op != OP_LODS;
    uint64_t mask = size == 8 ? ~0ull : (1ull << size * 8) - 1;

    for (;;) {
        if (rep) { /* before anything is done */
            r->rcx &= amask;
            if (op == OP_MOVS)
                r->rsi &= amask;
            if (op == OP_MOVS || op == OP_STOS)
                r->rdi &= amask;
            if (!r->rcx)
                return true;
        }
        uint64_t src = (r->rsi & amask) + src_base, dst = r->rdi & amask, x = 0;
        if (has_src) {
            if (!accessible(src, size, false, cr2))
                return false;
            x = model_load(src, size);
        }
        if (has_dst && !accessible(dst, size, op == OP_MOVS || op == OP_STOS, cr2))
            return false;
        switch (op) {
        case OP_MOVS:
            memcpy(mirror + (dst - AREA), &x, size);
            break;
        case OP_STOS:
            memcpy(mirror + (dst - AREA), &r->rax, size);
            break;
        case OP_LODS:
            r->rax = size == 4 ? x : (r->rax & ~mask) | x;
            break;
        case OP_CMPS:
            r->rflags =
                (r->rflags & ~(uint64_t)FL_ARITH) | cmp_flags(x, model_load(dst, size), size);
            break;
        default:
            r->rflags =
                (r->rflags & ~(uint64_t)FL_ARITH) | cmp_flags(r->rax, model_load(dst, size), size);
        }
        if (has_src)
            r->rsi = (r->rsi + step) & amask;
        if (has_dst)
            r->rdi = (r->rdi + step) & amask;
        if (!rep)
            return true;
        r->rcx = (r->rcx - 1) & amask;
        if ((op == OP_CMPS || op == OP_SCAS) && !(r->rflags & FL_ZF) == (rep == 0xf3))
            return true;
    }
}

Test(cpu_string, random_against_model, .timeout = 100)
{
    static const struct {
        uint8_t opcode, op;
    } ops[] = {{0xa4, OP_MOVS}, {0xaa, OP_STOS}, {0xac, OP_LODS}, {0xa6, OP_CMPS}, {0xae, OP_SCAS}};

    setup_area();
    for (unsigned round = 0; round < 200000; round++) {
        unsigned o = rnd() % 5, size = 1u << rnd() % 4, rep = 0, addr_size = rnd() % 4 ? 8 : 4;
        bool fs = rnd() % 5 == 0;
        uint8_t code[8];
        unsigned n = 0;

        if (fs)
            code[n++] = 0x64;
        if (addr_size == 4)
            code[n++] = 0x67;
        if (rnd() % 4)
            code[n++] = rep = rnd() % 2 ? 0xf3 : 0xf2;
        if (size == 2)
            code[n++] = 0x66;
        if (size == 8)
            code[n++] = 0x48;
        code[n++] = ops[o].opcode | (size > 1);

        struct regs r = {
            .rax = rnd() % 4 ? rnd() % 3 * 0x0101010101010101ull : rnd(),
            .rcx = rnd() % 8 ? rnd() % 40 : rnd() % 9000,
            .rflags = FL_FIXED1 | (rnd() & FL_ARITH) | (rnd() % 4 ? 0 : FL_DF),
        };
        /* Mostly near a page boundary; sometimes overlapping. */
        r.rsi = AREA + rnd() % PAGES * 4096 + rnd() % 64 - 32;
        r.rdi = rnd() % 3 ? AREA + rnd() % PAGES * 4096 + rnd() % 64 - 32 : r.rsi + rnd() % 40 - 20;
        if (rnd() % 4 == 0)
            r.rsi += rnd() % 4096;
        uint64_t base = fs ? 0x1000 : 0;
        r.rsi -= base;
        if (addr_size == 4) { /* the upper halves are ignored */
            r.rsi |= rnd() << 32;
            r.rdi |= rnd() << 32;
            r.rcx |= rnd() << 32;
        }
        if (o == 3 && rnd() % 2) /* long equal runs */
            r.rdi = r.rsi + base;

        enter_user();
        v->seg[SEG_FS].base = 0x1000;
        v->gpr[RAX] = r.rax;
        v->gpr[RCX] = r.rcx;
        v->gpr[RSI] = r.rsi;
        v->gpr[RDI] = r.rdi;
        v->rflags = r.rflags;
        uint64_t cr2 = 0;
        bool ok = model_run(&r, ops[o].op, size, rep, addr_size, base, &cr2);
        enum cpu_result result;
        while ((result = run_bytes(code, n)) == CPU_REPEAT)
            cr_assert_eq(v->rip, UTEXT);
        cr_assert_eq(result, ok ? CPU_NEXT : CPU_EXCEPTION, "round %u", round);
        if (!ok) {
            cr_assert_eq(v->exc.vector, EXC_PF);
            cr_assert_eq(v->exc.cr2, cr2, "round %u: %#lx %#lx", round, v->exc.cr2, cr2);
        }
        cr_assert_eq(v->gpr[RAX], r.rax, "round %u", round);
        cr_assert_eq(v->gpr[RCX], r.rcx, "round %u", round);
        cr_assert_eq(v->gpr[RSI], r.rsi, "round %u", round);
        cr_assert_eq(v->gpr[RDI], r.rdi, "round %u", round);
        cr_assert_eq(v->rflags, r.rflags, "round %u: %#lx %#lx", round, v->rflags, r.rflags);
        if (round % 64 == 0)
            cr_assert(same_memory(), "round %u", round);
    }
    cr_assert(same_memory());
}

Test(cpu_string, count_zero_changes_nothing)
{
    v->gpr[RCX] = 0;
    v->gpr[RSI] = v->gpr[RDI] = NONCANON;
    v->rflags |= FL_ZF | FL_CF;
    cr_assert_eq(RUN(0xf3, 0xa4), CPU_NEXT);
    cr_assert_eq(RUN(0xf3, 0xa6), CPU_NEXT);
    cr_assert_eq(RUN(0xf2, 0xae), CPU_NEXT);
    cr_assert_eq(v->rflags, FL_FIXED1 | FL_ZF | FL_CF);
    v->gpr[RCX] = 1;
    expect_fault_code(RUN(0xf3, 0xa4), EXC_GP, 0);
    cr_assert_eq(v->gpr[RCX], 1);
}

Test(cpu_string, long_runs_pause)
{
    map_range(0x300000, 0x3c0000, PTE_P | PTE_RW);
    v->gpr[RCX] = 0xa0000;
    v->gpr[RDI] = 0x300000;
    v->gpr[RAX] = 0x5a;
    unsigned pauses = 0;
    while (RUN(0xf3, 0xaa) == CPU_REPEAT) {
        pauses++;
        cr_assert_eq(v->gpr[RDI], 0x300000 + pauses * 0x40000);
        cr_assert_eq(v->gpr[RCX] + v->gpr[RDI], 0x3a0000);
    }
    cr_assert_eq(pauses, 2);
    cr_assert_eq(v->gpr[RCX], 0);
    cr_assert_eq(ram.base[0x39ffff], 0x5a);
    cr_assert_eq(ram.base[0x3a0000], 0);
    /* An event that can be delivered ends the call after a page. */
    v->gpr[RCX] = 0x8000;
    v->gpr[RDI] = 0x300000;
    v->events = EV_INTR;
    cr_assert_eq(RUN(0xf3, 0xaa), CPU_NEXT, "IF = 0");
    v->gpr[RCX] = 0x8000;
    v->rflags |= FL_IF;
    v->dr[7] |= 1;
    cr_assert_eq(RUN(0xf3, 0xaa), CPU_REPEAT);
    cr_assert_eq(v->gpr[RCX], 0x7000);
    cr_assert(v->rflags & FL_RF);
}

Test(cpu_string, code_pages)
{
    ram.page_flags[KDATA >> 12] |= RAM_PAGE_CODE;
    v->gpr[RCX] = 3;
    v->gpr[RDI] = KDATA + 8;
    v->gpr[RAX] = 0x1111;
    cr_assert_eq(RUN(0xf3, 0x48, 0xab), CPU_JUMP);
    cr_assert_eq(v->rip, KTEXT + 3);
    cr_assert_eq(code_write.count, 1);
    cr_assert_eq(code_write.gpa, KDATA + 8);
    cr_assert_eq(code_write.len, 24);
    cr_assert_eq(code_write.value_before, 0);
    cr_assert_eq(get64(KDATA + 24), 0x1111);
    v->rflags |= FL_DF;
    v->gpr[RCX] = 2;
    v->gpr[RDI] = KDATA + 16;
    cr_assert_eq(RUN(0xf3, 0x48, 0xab), CPU_JUMP);
    cr_assert_eq(code_write.gpa, KDATA + 8);
    cr_assert_eq(code_write.len, 16);
}

Test(cpu_string, mmio)
{
    for (unsigned i = 0; i < 16; i++)
        fake.mmio[i] = i;
    v->gpr[RCX] = 4;
    v->gpr[RSI] = MMIO;
    v->gpr[RDI] = KDATA;
    cr_assert_eq(RUN(0xf3, 0xa5), CPU_NEXT);
    cr_assert_eq(fake.mmio_reads, 4);
    cr_assert_eq(memcmp(ram.base + KDATA, fake.mmio, 16), 0);
    v->gpr[RCX] = 3;
    v->gpr[RSI] = KDATA + 4;
    v->gpr[RDI] = MMIO + 0x100;
    cr_assert_eq(RUN(0xf3, 0x66, 0xa5), CPU_NEXT);
    cr_assert_eq(fake.mmio_writes, 3);
    cr_assert_eq(fake.mmio[0x105], 9);
    v->gpr[RCX] = 100;
    v->gpr[RDI] = MMIO;
    v->gpr[RAX] = 7;
    cr_assert_eq(RUN(0xf2, 0xae), CPU_NEXT);
    cr_assert_eq(v->gpr[RDI], MMIO + 8);
    cr_assert_eq(v->gpr[RCX], 92);
    cr_assert(v->rflags & FL_ZF);
}

Test(cpu_string, ins_outs)
{
    fake.pio_value = 0x100;
    v->gpr[RDX] = 0x1f0;
    v->gpr[RCX] = 5;
    v->gpr[RDI] = KDATA;
    cr_assert_eq(RUN(0xf3, 0x66, 0x6d), CPU_NEXT);
    cr_assert_eq(fake.n_pio, 5);
    cr_assert_eq(get64(KDATA), 0x0103010201010100ull);
    cr_assert_eq(v->gpr[RDI], KDATA + 10);
    v->gpr[RCX] = 2;
    v->gpr[RSI] = KDATA;
    cr_assert_eq(RUN(0xf3, 0x6f), CPU_NEXT);
    cr_assert_eq(fake.n_pio, 7);
    cr_assert_eq(fake.pio[5].value, 0x01010100);
    cr_assert_eq(fake.pio[6].value, 0x01030102);
    /* A port is not read if its data cannot be stored, not even half of it. */
    v->gpr[RDI] = UNMAPPED;
    expect_fault_code(RUN(0x6d), EXC_PF, PF_W);
    map_page(UNMAPPED - 0x1000, KDATA, PTE_P | PTE_RW, 1);
    v->gpr[RDI] = UNMAPPED - 2;
    expect_fault_code(RUN(0x6d), EXC_PF, PF_W);
    cr_assert_eq(fake.n_pio, 7);
    enter_user();
    v->gpr[RCX] = 0;
    expect_fault_code(RUN(0xf3, 0x6c), EXC_GP, 0);
}

/* Firmware reads sectors this way: many elements per page, and still not one too many. */
Test(cpu_string, ins_runs)
{
    map_page(UNMAPPED - 0x1000, KDATA, PTE_P | PTE_RW, 1);
    fake.pio_value = 0;
    v->gpr[RDX] = 0x1f0;
    v->gpr[RCX] = 8;
    v->gpr[RDI] = UNMAPPED - 6;
    expect_fault_code(RUN(0xf3, 0x66, 0x6d), EXC_PF, PF_W);
    cr_assert_eq(fake.pio_value, 3, "%u reads for three elements", fake.pio_value);
    cr_assert_eq(v->gpr[RCX], 5);
    cr_assert_eq(v->gpr[RDI], UNMAPPED);
    cr_assert_eq(get64(KDATA + 0xff8) >> 16, 0x000200010000ull);
    /* Long ones pause, so that interrupts come through. */
    v->gpr[RCX] = 1000;
    v->gpr[RDI] = UNMAPPED - 0x1000;
    atomic_store(&v->events, EV_STOP);
    cr_assert_eq(RUN(0xf3, 0x66, 0x6d), CPU_REPEAT);
    cr_assert(v->gpr[RCX] < 1000 && v->gpr[RCX] > 0);
    cr_assert_eq(fake.pio_value, 3 + 1000 - v->gpr[RCX]);
    atomic_store(&v->events, 0);
    /* Downwards. */
    fake.pio_value = 0x11;
    v->rflags |= FL_DF;
    v->gpr[RCX] = 2;
    v->gpr[RDI] = UNMAPPED - 0x100;
    cr_assert_eq(RUN(0xf3, 0x6c), CPU_NEXT);
    cr_assert_eq(ram.base[KDATA + 0xeff], 0x12);
    /* Over code. */
    v->rflags &= ~(uint64_t)FL_DF;
    ram.page_flags[KDATA >> 12] |= RAM_PAGE_CODE;
    v->gpr[RCX] = 4;
    v->gpr[RDI] = KDATA + 8;
    cr_assert_eq(RUN(0xf3, 0x66, 0x6d), CPU_JUMP);
    cr_assert_eq(code_write.gpa, KDATA + 8);
    cr_assert_eq(code_write.len, 8);
}

Test(cpu_string, masked_events_are_not_due)
{
    atomic_store(&v->events, EV_INTR | EV_NMI);
    v->rflags &= ~(uint64_t)FL_IF;
    v->nmi_blocked = true;
    cr_assert(!cpu_event_due(v));
    v->rflags |= FL_IF;
    cr_assert(cpu_event_due(v));
    v->rflags &= ~(uint64_t)FL_IF;
    v->nmi_blocked = false;
    cr_assert(cpu_event_due(v));
    atomic_store(&v->events, EV_STOP);
    cr_assert(cpu_event_due(v));
    atomic_store(&v->events, 0);
}

Test(cpu_string, single_step_stops_after_each_element)
{
    v->rflags |= FL_TF;
    v->gpr[RCX] = 3;
    v->gpr[RDI] = KDATA;
    cr_assert_eq(RUN(0xf3, 0xaa), CPU_REPEAT);
    cr_assert_eq(v->gpr[RCX], 2);
    cr_assert_eq(RUN(0xf3, 0xaa), CPU_REPEAT);
    cr_assert_eq(RUN(0xf3, 0xaa), CPU_NEXT);
}

Test(cpu_string, data_and_io_breakpoints)
{
    static struct engine_vcpu engine;

    v->engine = &engine;
    v->cr4 |= CR4_DE;
    v->dr[0] = KDATA + 2;
    v->dr[1] = 0x1f0;
    v->dr[7] |= 1 | 1 << 16 | 4 | 2 << 20; /* DR0: write of a byte; DR1: I/O */
    v->gpr[RCX] = 4;
    v->gpr[RDI] = KDATA;
    for (unsigned i = 0; i < 4; i++) {
        engine.db_bits = 0;
        cr_assert_eq(RUN(0xf3, 0xaa), i < 3 ? CPU_REPEAT : CPU_NEXT);
        cr_assert_eq(engine.db_bits, i == 2 ? 1 : 0);
    }
    v->gpr[RSI] = KDATA + 2;
    engine.db_bits = 0;
    cr_assert_eq(RUN(0xac), CPU_NEXT);
    cr_assert_eq(engine.db_bits, 0, "a load does not hit a write breakpoint");
    v->gpr[RDX] = 0x1ee;
    cr_assert_eq(RUN(0xed), CPU_NEXT);
    cr_assert_eq(engine.db_bits, 2);
    /* LGS reads its pointer over the breakpoint and then faults. */
    engine.db_bits = 0;
    v->dr[7] |= 3 << 16;
    memset(ram.base + KDATA, 0xff, 16);
    v->gpr[RBX] = KDATA;
    expect_fault_code(RUN(0x0f, 0xb5, 0x03), EXC_GP, 0xfffc);
    cr_assert_eq(engine.db_bits, 0);
    v->engine = NULL;
}
