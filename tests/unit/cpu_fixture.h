/*
 * What the cpu/ tests share: on top of the mmu fixture (RAM, page tables, one vCPU) a GDT, an IDT,
 * a TSS, stacks, a recording platform, and a way to run one instruction given by its bytes through
 * the decoder and the callouts.
 */
#ifndef RINGSHIFT_TEST_CPU_FIXTURE_H
#define RINGSHIFT_TEST_CPU_FIXTURE_H

#include "tests/unit/mmu_fixture.h"

#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "cpu/reset.h"
#include "cpu/segment.h"
#include "cpu/system.h"
#include "translator/callouts.h"

/* Linear addresses; all mapped to the GPA of the same value unless said otherwise. */
enum {
    GDT = 0x100000,
    IDT = 0x101000,
    TSS = 0x102000, /* 104 bytes, I/O map at 104, 8193 bytes */
    LDT = 0x106000,
    KDATA = 0x108000,
    KSTACK = 0x118000, /* top; 0x110000.. is mapped */
    IST1 = 0x11c000,   /* top */
    KTEXT = 0x120000,
    UTEXT = 0x200000,
    UDATA = 0x204000,
    USTACK = 0x20c000, /* top */
    UNMAPPED = 0x300000,
    MMIO = 0x310000, /* mapped to GPA MMIO_GPA */
};
#define MMIO_GPA 0xe0000000ull
#define NONCANON 0x0000800000000000ull

enum {
    KCS = 0x08,
    KDS = 0x10,
    UCS32 = 0x18,
    UDS = 0x20,
    UCS = 0x28,
    TSS_SEL = 0x30,
    CONF_CS = 0x40,   /* conforming, DPL 0 */
    ABSENT_DS = 0x48, /* DPL 3, not present */
    RO_DS = 0x50,     /* DPL 3, read-only data */
    GATE = 0x58,      /* call gate, DPL 3, to KCS:KTEXT */
    LDT_SEL = 0x68,
    FRESH_DS = 0x78,  /* DPL 0, accessed bit clear, base 0x12345678 */
    BAD_CS = 0x80,    /* L and D both set */
    XO_CS = 0x88,     /* execute-only, DPL 3 */
    ABSENT_CS = 0x90, /* DPL 0 */
    CS1 = 0x98,       /* code, DPL 1 */
    GDT_LIMIT = 0x9f,
};

static struct cpu_model model;

static struct {
    int intr[8];
    unsigned n_intr, next_intr;
    struct {
        bool write;
        uint16_t port;
        unsigned size;
        uint32_t value;
    } pio[64];
    unsigned n_pio;
    uint32_t pio_value;
    unsigned mmio_reads, mmio_writes;
    uint8_t mmio[4096];
    uint8_t cr8;
    uint64_t apic_value;
    unsigned apic_writes;
} fake;

static inline uint32_t fake_pio_read(struct platform *p, uint16_t port, unsigned size)
{
    if (fake.n_pio < 64) {
        fake.pio[fake.n_pio].write = false;
        fake.pio[fake.n_pio].port = port;
        fake.pio[fake.n_pio++].size = size;
    }
    return fake.pio_value++;
}

static inline void fake_pio_write(struct platform *p, uint16_t port, unsigned size, uint32_t value)
{
    if (fake.n_pio < 64) {
        fake.pio[fake.n_pio].write = true;
        fake.pio[fake.n_pio].port = port;
        fake.pio[fake.n_pio].value = value;
        fake.pio[fake.n_pio++].size = size;
    }
}

static inline uint64_t fake_mmio_read(struct platform *p, struct vcpu *vcpu, uint64_t gpa,
                                      unsigned size)
{
    uint64_t value = 0;
    fake.mmio_reads++;
    memcpy(&value, fake.mmio + (gpa & 4095), size);
    return value;
}

static inline void fake_mmio_write(struct platform *p, struct vcpu *vcpu, uint64_t gpa,
                                   unsigned size, uint64_t value)
{
    fake.mmio_writes++;
    memcpy(fake.mmio + (gpa & 4095), &value, size);
}

static inline int fake_intr_ack(struct platform *p, struct vcpu *vcpu)
{
    if (fake.next_intr == fake.n_intr) {
        atomic_fetch_and(&vcpu->events, ~(uint32_t)EV_INTR);
        return -1;
    }
    int vector = fake.intr[fake.next_intr++];
    if (fake.next_intr == fake.n_intr)
        atomic_fetch_and(&vcpu->events, ~(uint32_t)EV_INTR);
    return vector;
}

static inline int fake_apic_read(struct platform *p, struct vcpu *vcpu, uint32_t msr,
                                 uint64_t *value)
{
    *value = fake.apic_value;
    return msr == 0x8ff ? -1 : 0;
}

static inline int fake_apic_write(struct platform *p, struct vcpu *vcpu, uint32_t msr,
                                  uint64_t value)
{
    fake.apic_value = value;
    fake.apic_writes++;
    return msr == 0x8ff ? -1 : 0;
}

static inline void fake_set_cr8(struct platform *p, struct vcpu *vcpu, uint8_t value)
{
    fake.cr8 = value;
}

static inline uint8_t fake_get_cr8(struct platform *p, struct vcpu *vcpu)
{
    return fake.cr8;
}

static const struct platform_ops fake_ops = {
    .pio_read = fake_pio_read,
    .pio_write = fake_pio_write,
    .mmio_read = fake_mmio_read,
    .mmio_write = fake_mmio_write,
    .intr_ack = fake_intr_ack,
    .apic_read_msr = fake_apic_read,
    .apic_write_msr = fake_apic_write,
    .set_cr8 = fake_set_cr8,
    .get_cr8 = fake_get_cr8,
};
static struct platform fake_platform = {.ops = &fake_ops, .tsc_hz = 2300000000u};

/* The kick of the machine is not needed here. */
void __attribute__((weak)) vcpu_raise(struct vcpu *vcpu, uint32_t events)
{
    atomic_fetch_or(&vcpu->events, events);
}

static inline void put(uint64_t gpa, const void *data, unsigned size)
{
    memcpy(ram.base + gpa, data, size);
}

static inline uint64_t get64(uint64_t gpa)
{
    uint64_t value;
    memcpy(&value, ram.base + gpa, 8);
    return value;
}

static inline void put64(uint64_t gpa, uint64_t value)
{
    put(gpa, &value, 8);
}

static inline uint64_t descriptor(uint64_t base, uint32_t limit, unsigned access, unsigned flags)
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit & 0xf0000) << 32 | (uint64_t)flags << 52 | (base >> 24 & 0xff) << 56;
}

static inline void set_desc(unsigned sel, uint64_t d)
{
    put64(GDT + (sel & ~7u), d);
}

enum { GATE_INT = 14, GATE_TRAP = 15 };

static inline void set_gate(unsigned vector, uint16_t sel, uint64_t target, unsigned type,
                            unsigned dpl, unsigned ist)
{
    put64(IDT + vector * 16, (target & 0xffff) | (uint64_t)sel << 16 | (uint64_t)ist << 32 |
                                 (uint64_t)(0x80 | dpl << 5 | type) << 40 |
                                 (target & 0xffff0000) << 32);
    put64(IDT + vector * 16 + 8, target >> 32);
}

static inline void map_range(uint64_t from, uint64_t to, uint64_t flags)
{
    for (uint64_t a = from; a < to; a += 4096)
        map_page(a, a, flags, 1);
}

static inline void enter_kernel(void)
{
    v->cpl = 0;
    v->seg[SEG_CS] = cpu_flat_code64(KCS, 0);
    v->seg[SEG_SS] = cpu_flat_data(KDS, 0);
    v->gpr[RSP] = KSTACK - 0x1000;
    v->rip = KTEXT;
}

static inline void enter_user(void)
{
    v->cpl = 3;
    v->seg[SEG_CS] = cpu_flat_code64(UCS | 3, 3);
    v->seg[SEG_SS] = cpu_flat_data(UDS | 3, 3);
    v->gpr[RSP] = USTACK;
    v->rip = UTEXT;
    v->rflags = FL_FIXED1 | FL_IF;
}

static inline void cpu_setup(void)
{
    mmu_setup(4 * MB);
    memset(&fake, 0, sizeof(fake));
    cpu_model_baseline(&model, 1, fake_platform.tsc_hz);
    v->model = &model;
    v->platform = &fake_platform;
    v->fp_saved = 1; /* no guest FP state in these tests */
    v->dr[6] = DR6_FIXED1;
    v->dr[7] = DR7_FIXED1;
    v->pat = 0x0007040600070406ull;
    v->apic_base = 0xfee00900;
    v->xcr0 = 1;

    map_range(GDT, KTEXT + 0x2000, PTE_P | PTE_RW);
    map_range(UTEXT, USTACK, PTE_P | PTE_RW | PTE_US);
    map_page(MMIO, MMIO_GPA, PTE_P | PTE_RW | PTE_US, 1);

    set_desc(KCS, descriptor(0, 0xfffff, 0x9b, 0xa));
    set_desc(KDS, descriptor(0, 0xfffff, 0x93, 0xc));
    set_desc(UCS32, descriptor(0, 0xfffff, 0xfb, 0xc));
    set_desc(UDS, descriptor(0, 0xfffff, 0xf3, 0xc));
    set_desc(UCS, descriptor(0, 0xfffff, 0xfb, 0xa));
    set_desc(TSS_SEL, descriptor(TSS, 104 + 8192, 0x89, 0));
    set_desc(TSS_SEL + 8, 0);
    set_desc(CONF_CS, descriptor(0, 0xfffff, 0x9f, 0xa));
    set_desc(ABSENT_DS, descriptor(0, 0xfffff, 0x73, 0xc));
    set_desc(RO_DS, descriptor(0, 0xfffff, 0xf1, 0xc));
    set_desc(GATE,
             (KTEXT & 0xffff) | KCS << 16 | 0xecull << 40 | (uint64_t)(KTEXT & 0xffff0000) << 32);
    set_desc(GATE + 8, 0);
    set_desc(LDT_SEL, descriptor(LDT, 0x1f, 0x82, 0));
    set_desc(LDT_SEL + 8, 0);
    set_desc(FRESH_DS, descriptor(0x12345678, 0xfffff, 0x92, 0xc));
    set_desc(BAD_CS, descriptor(0, 0xfffff, 0x9b, 0xe));
    set_desc(XO_CS, descriptor(0, 0xfffff, 0xf9, 0xa));
    set_desc(ABSENT_CS, descriptor(0, 0xfffff, 0x1b, 0xa));
    set_desc(CS1, descriptor(0, 0xfffff, 0xbb, 0xa));
    v->gdtr = (struct dtable){.base = GDT, .limit = GDT_LIMIT};
    v->idtr = (struct dtable){.base = IDT, .limit = 0xfff};
    v->tr = (struct segment){
        .sel = TSS_SEL, .attr = SYS_TSS_BUSY | SEGA_P, .limit = 104 + 8192, .base = TSS};
    put64(TSS + 4, KSTACK);
    put64(TSS + 12, KSTACK - 0x2000);
    put64(TSS + 36, IST1);
    uint16_t io_map = 104;
    put(TSS + 102, &io_map, 2);
    memset(ram.base + TSS + 104, 0xff, 8193);
    for (unsigned i = 0; i < 256; i++)
        set_gate(i, KCS, 0xffffffff80000000ull + i * 16, GATE_INT, 0, 0);
    enter_kernel();
}

static inline void cpu_teardown(void)
{
    ram_destroy(&ram);
}

/* Decodes and executes one instruction at v->rip; advances rip on CPU_NEXT. */
static inline enum cpu_result run_bytes(const uint8_t *code, unsigned len)
{
    struct insn in;
    int n = insn_decode(&in, code, len, MODE_64);

    cr_assert_gt(n, 0, "cut-off test instruction");
    enum cpu_result r = callout_execute(v, &in);
    if (r == CPU_NEXT)
        v->rip += in.len;
    return r;
}
#define RUN(...) run_bytes((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

/* The instruction faults with this exception and leaves registers alone. */
static inline void expect_fault_(enum cpu_result r, unsigned vector, bool has_error, uint32_t error,
                                 int line)
{
    cr_assert_eq(r, CPU_EXCEPTION, "line %d: result %d", line, r);
    cr_assert_eq(v->exc.vector, vector, "line %d: vector %u", line, v->exc.vector);
    cr_assert_eq(v->exc.has_error, has_error, "line %d", line);
    cr_assert(!has_error || v->exc.error == error, "line %d: error code %#x", line, v->exc.error);
}
#define expect_fault(r, vector)             expect_fault_(r, vector, false, 0, __LINE__)
#define expect_fault_code(r, vector, error) expect_fault_(r, vector, true, error, __LINE__)

#endif
