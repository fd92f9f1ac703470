/*
 * The test kernel's support code: serial output, descriptor tables, paging, traps, the test loop.
 * Everything is compiled without FP/SIMD registers, so that these belong to the tests alone.
 */
#include "guest.h"

extern u8 isr_stubs[], image_start[], image_end[];
extern const struct test tests_start[], tests_end[];

struct ctx {
    u64 v[8];
};
int ctx_save(struct ctx *c) __attribute__((returns_twice));
void ctx_jump(struct ctx *c) __attribute__((noreturn));
void regs_enter(const struct regs *r) __attribute__((noreturn));
void kernel_main(const u8 *boot_params);
void trap_entry(struct isr_frame *f);

struct trap T;
handler_fn handlers[256];
u64 default_cr4;
struct features feat;
bool on_tcg;
const char *skip_reason;
u8 run_stack[16384] __attribute__((aligned(4096)));
u8 buffer[8 * 4096] __attribute__((aligned(4096)));
u64 gdt[64] __attribute__((aligned(16)));
u64 ldt[8] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(4096)));
u64 *pml4;

static u64 idt[512] __attribute__((aligned(16)));
static u8 ist_stack[8192] __attribute__((aligned(16)));
static u8 ring0_stack[8192] __attribute__((aligned(16)));
static struct ctx run_ctx, test_ctx;
static volatile bool run_active, test_active;
static unsigned fail_count;
static char context_text[96];
static u64 random_state;

/* -- Output ----------------------------------------------------------------------------------- */

static void put(char c)
{
    for (unsigned i = 0; i < 1000000 && !(inb(0x3fd) & 0x20); i++)
        ;
    outb(0x3f8, (u8)c);
}

struct out {
    char *buf; /* NULL: serial port */
    size_t len, size;
};

static void out_char(struct out *o, char c)
{
    if (!o->buf) {
        if (c == '\n')
            put('\r');
        put(c);
    } else if (o->len + 1 < o->size) {
        o->buf[o->len++] = c;
        o->buf[o->len] = 0;
    }
}

static void format(struct out *o, const char *fmt, va_list ap)
{
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            out_char(o, *fmt);
            continue;
        }
        unsigned width = 0, longs = 0;
        bool zero = false;
        fmt++;
        if (*fmt == '0') {
            zero = true;
            fmt++;
        }
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            width = width * 10 + (unsigned)(*fmt - '0');
        for (; *fmt == 'l'; fmt++)
            longs++;
        switch (*fmt) {
        case 's':
            for (const char *s = va_arg(ap, const char *); *s; s++)
                out_char(o, *s);
            break;
        case 'c':
            out_char(o, (char)va_arg(ap, int));
            break;
        case 'd':
        case 'u':
        case 'x': {
            unsigned base = *fmt == 'x' ? 16 : 10, n = 0;
            u64 v = longs ? va_arg(ap, u64) : va_arg(ap, u32);
            char tmp[24];
            if (*fmt == 'd') {
                int64_t s = longs ? (int64_t)v : (int32_t)(u32)v;
                if (s < 0)
                    out_char(o, '-');
                v = s < 0 ? 0 - (u64)s : (u64)s;
            }
            do {
                tmp[n++] = "0123456789abcdef"[v % base];
                v /= base;
            } while (v);
            for (unsigned i = n; i < width; i++)
                out_char(o, zero ? '0' : ' ');
            while (n)
                out_char(o, tmp[--n]);
            break;
        }
        default:
            out_char(o, *fmt);
        }
    }
}

void print(const char *fmt, ...)
{
    struct out o = {0};
    va_list ap;
    va_start(ap, fmt);
    format(&o, fmt, ap);
    va_end(ap);
}

void context(const char *fmt, ...)
{
    struct out o = {context_text, 0, sizeof(context_text)};
    va_list ap;
    context_text[0] = 0;
    va_start(ap, fmt);
    format(&o, fmt, ap);
    va_end(ap);
}

static const char *current_test;

void fail(const char *fmt, ...)
{
    if (fail_count++ >= 4) /* the first messages tell the story */
        return;
    struct out o = {0};
    print("FAIL %s: ", current_test);
    if (context_text[0])
        print("[%s] ", context_text);
    va_list ap;
    va_start(ap, fmt);
    format(&o, fmt, ap);
    va_end(ap);
    print("\n");
}

bool check_eq(const char *what, u64 got, u64 want)
{
    if (got == want)
        return true;
    fail("%s: got 0x%lx, want 0x%lx", what, got, want);
    return false;
}

/* -- Memory ----------------------------------------------------------------------------------- */

void *memset(void *dst, int c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((volatile u8 *)dst)[i] = (u8)c;
    return dst;
}

void *memcpy(void *dst, const void *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((volatile u8 *)dst)[i] = ((const u8 *)src)[i];
    return dst;
}

void copy_bytes(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, n);
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

u64 random64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1dul;
}

/* -- Paging ----------------------------------------------------------------------------------- */

/*
 * Physical memory: the image at 2 MiB, the kernel's own page tables after it, a pool for tests at
 * 32 MiB to 96 MiB.
 */
#define POOL_START 0x2000000ul
#define POOL_END   0x6000000ul
static u64 pool_next, pool_big_next;
static u64 kernel_tables[1 + 2 + 5 + 4][512] __attribute__((aligned(4096)));

u64 page_alloc(void)
{
    u64 pa = pool_next;
    pool_next += 4096;
    if (pool_next > POOL_END - 0x2000000)
        print("out of test pages\n");
    memset((void *)pa, 0, 4096);
    return pa;
}

u64 page_alloc_2m(void)
{
    u64 pa = pool_big_next;
    pool_big_next += 0x200000;
    if (pool_big_next > POOL_END)
        print("out of 2 MiB test pages\n");
    return pa;
}

u64 *pte_at(u64 va, unsigned level)
{
    u64 *table = pml4;
    for (unsigned l = 4; l > level; l--) {
        u64 *e = &table[va >> (12 + 9 * (l - 1)) & 511];
        if (!(*e & PG_P))
            *e = page_alloc() | PG_URW;
        table = (u64 *)(*e & PG_ADDR);
    }
    return &table[va >> (12 + 9 * (level - 1)) & 511];
}

void map_level(u64 va, u64 pa, u64 flags, unsigned level)
{
    *pte_at(va, level) = pa | flags | (level > 1 ? PG_PS : 0);
    invlpg(va);
}

void map(u64 va, u64 pa, u64 flags)
{
    map_level(va, pa, flags, 1);
}

u64 *space_with(u64 va, u64 pte)
{
    u64 *top = (u64 *)page_alloc(), *pdpt = (u64 *)page_alloc(), *pd = (u64 *)page_alloc(),
        *pt = (u64 *)page_alloc();
    memcpy(top, pml4, 4096);
    top[va >> 39 & 511] = (u64)pdpt | PG_URW;
    pdpt[va >> 30 & 511] = (u64)pd | PG_URW;
    pd[va >> 21 & 511] = (u64)pt | PG_URW;
    pt[va >> 12 & 511] = pte;
    return top;
}

u64 map_new(u64 va, u64 flags)
{
    u64 pa = page_alloc();
    map(va, pa, flags);
    return pa;
}

void unmap(u64 va)
{
    *pte_at(va, 1) = 0;
    invlpg(va);
}

/* Identity map of 4 GiB for the kernel; the image again for CPL 3 in 4 KiB pages. */
static void paging_init(void)
{
    u64(*t)[512] = kernel_tables;
    pml4 = t[0];
    pml4[0] = (u64)t[1] | PG_URW;
    for (u64 g = 0; g < 4; g++) {
        t[1][g] = (u64)t[2 + g] | PG_KRW;
        for (u64 i = 0; i < 512; i++)
            t[2 + g][i] = (g << 30 | i << 21) | PG_KRW | PG_PS | (g == 3 ? PG_PCD | PG_PWT : 0);
    }
    t[1][USER_OFFSET >> 30] = (u64)t[6] | PG_URW;
    u64 pa = (u64)image_start, last = pa;
    for (unsigned n = 0; n < 4 && last < (u64)image_end; n++) {
        t[6][(pa >> 21) + n] = (u64)t[7 + n] | PG_URW;
        for (unsigned i = 0; i < 512 && last < (u64)image_end; i++, last += 4096)
            t[7 + n][i] = last | PG_URW;
    }
    if (last < (u64)image_end)
        print("the image is too large for its user alias\n");
}

/* -- Descriptor tables ------------------------------------------------------------------------ */

void idt_set(unsigned vector, void *handler, unsigned sel, unsigned ist, unsigned type_dpl_p)
{
    u64 a = (u64)handler;
    idt[2 * vector] = (a & 0xffff) | (u64)sel << 16 | (u64)ist << 32 | (u64)type_dpl_p << 40 |
                      (a >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = a >> 32;
}

void idt_default(unsigned vector, unsigned dpl, unsigned ist)
{
    idt_set(vector, isr_stubs + 16 * vector, SEL_KCODE, ist, 0x8e | dpl << 5);
}

static void tables_init(void)
{
    memset(gdt, 0, sizeof(gdt));
    memset(ldt, 0, sizeof(ldt));
    gdt[SEL_K32 / 8] = DESC(0, 0xfffff, 0x9b, 0xc);
    gdt[SEL_KCODE / 8] = DESC(0, 0xfffff, 0x9b, 0xa);
    gdt[SEL_KDATA / 8] = DESC(0, 0xfffff, 0x93, 0xc);
    gdt[SEL_UCODE32 / 8] = DESC(0, 0xfffff, 0xfb, 0xc);
    gdt[SEL_UDATA / 8] = DESC(0, 0xfffff, 0xf3, 0xc);
    gdt[SEL_UCODE / 8] = DESC(0, 0xfffff, 0xfb, 0xa);
    u64 base = (u64)&tss;
    gdt[SEL_TSS / 8] = DESC(base, sizeof(tss) - 1, 0x89, 0);
    gdt[SEL_TSS / 8 + 1] = base >> 32;
    base = (u64)ldt;
    gdt[SEL_LDT / 8] = DESC(base, sizeof(ldt) - 1, 0x82, 0);
    gdt[SEL_LDT / 8 + 1] = base >> 32;
    /* SYSENTER/SYSEXIT: kernel CS and SS, 32-bit user CS and SS, 64-bit user CS and SS. */
    for (unsigned i = 0; i < 6; i++)
        gdt[SEL_SYSENTER / 8 + i] = gdt[(const u8[]){SEL_KCODE, SEL_KDATA, SEL_UCODE32, SEL_UDATA,
                                                     SEL_UCODE, SEL_UDATA}[i] /
                                        8];

    memset(&tss, 0, sizeof(tss) - sizeof(tss.bitmap));
    memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
    tss.rsp[0] = (u64)ring0_stack + sizeof(ring0_stack);
    tss.ist[0] = (u64)ist_stack + sizeof(ist_stack);
    tss.iomap = offsetof(struct tss, bitmap);

    for (unsigned i = 0; i < 256; i++)
        idt_default(i, i == DONE || i == BP || i == OF ? 3 : 0, 1);

    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) gdtr = {sizeof(gdt) - 1, (u64)gdt},
                              idtr = {sizeof(idt) - 1, (u64)idt};
    asm volatile("lgdt %0\n\tlidt %1\n\t"
                 "pushq %2\n\tleaq 1f(%%rip), %%rax\n\tpushq %%rax\n\tlretq\n1:\n\t"
                 "movl %3, %%eax\n\tmovl %%eax, %%ss\n\tmovl %%eax, %%ds\n\tmovl %%eax, %%es\n\t"
                 "xorl %%eax, %%eax\n\tmovl %%eax, %%fs\n\tmovl %%eax, %%gs\n\tlldt %%ax\n\t"
                 "movl %4, %%eax\n\tltr %%ax" ::"m"(gdtr),
                 "m"(idtr), "i"(SEL_KCODE), "i"(SEL_KDATA), "i"(SEL_TSS)
                 : "rax", "memory");
}

/* -- Traps ------------------------------------------------------------------------------------ */

static void leave_run(struct isr_frame *f)
{
    memcpy(&T.r, f->gpr, sizeof(f->gpr));
    T.r.rsp = f->rsp;
    T.r.rip = f->rip;
    T.r.rflags = f->rflags;
    T.r.cs = f->cs;
    T.r.ss = f->ss;
    T.vector = f->vector;
    T.error = f->error;
    T.cr2 = read_cr2();
    T.dr6 = read_dr6();
    run_active = false;
    ctx_jump(&run_ctx);
}

void trap_entry(struct isr_frame *f)
{
    handler_fn h = f->vector < 256 ? handlers[f->vector] : NULL;
    if (h && h(f))
        return;
    if (run_active)
        leave_run(f);
    if (test_active) {
        test_active = false;
        context("%s", "");
        fail("unexpected vector %lu error 0x%lx at rip 0x%lx cs 0x%lx rflags 0x%lx rsp 0x%lx "
             "cr2 0x%lx",
             f->vector, f->error, f->rip, f->cs, f->rflags, f->rsp, read_cr2());
        ctx_jump(&test_ctx);
    }
    print("\nRESULT: FAIL vector %lu outside a test, rip 0x%lx\n", f->vector, f->rip);
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("cli; hlt");
}

struct regs regs_for(unsigned cpl)
{
    struct regs r;
    u64 *p = &r.rax;
    for (unsigned i = 0; i < 16; i++)
        p[i] = 0x1111111111111111ul * (i + 1) ^ 0x0f1e2d3c4b5a6978ul;
    r.rsp = at_cpl(cpl, run_stack + sizeof(run_stack) / 2);
    r.rip = 0;
    r.rflags = 2;
    r.cs = cpl == 3 ? SEL_UCODE | 3 : SEL_KCODE;
    r.ss = cpl == 3 ? SEL_UDATA | 3 : SEL_KDATA;
    return r;
}

unsigned run(const struct regs *r)
{
    if (!ctx_save(&run_ctx)) {
        run_active = true;
        regs_enter(r);
    }
    return (unsigned)T.vector;
}

unsigned run_at(struct regs *r, const void *code)
{
    r->rip = at_cpl(r->cs & 3, code);
    return run(r);
}

u64 trap_rip(void)
{
    return T.r.rip >= USER_OFFSET && T.r.rip < USER_OFFSET + 0x40000000 ? T.r.rip - USER_OFFSET
                                                                        : T.r.rip;
}

void expect(unsigned vector, u64 error)
{
    if (T.vector != vector || T.error != error)
        fail("got vector %lu error 0x%lx at rip 0x%lx (cr2 0x%lx), want vector %u error 0x%lx",
             T.vector, T.error, trap_rip(), T.cr2, vector, error);
}

static void check_fault(struct regs *r, const void *code, const void *at, unsigned vector,
                        u64 error, u64 overwritten)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    run_at(r, code);
    expect(vector, error);
    if (T.vector != vector)
        return;
    check_eq("rip of the fault", trap_rip(), (u64)at);
    if (code == at) {
        for (unsigned i = 0; i < 16; i++)
            check_eq(names[i], (&T.r.rax)[i], (&r->rax)[i]);
        u64 ignored = F_RF | overwritten;
        check_eq("rflags", T.r.rflags & ~ignored, r->rflags & ~ignored);
    }
}

void fault_at(struct regs *r, const void *code, const void *at, unsigned vector, u64 error)
{
    check_fault(r, code, at, vector, error, 0);
}

void fault_of_arithmetic(struct regs *r, const void *code, unsigned vector, u64 error)
{
    check_fault(r, code, code, vector, error, F_ARITH);
}

void fault(struct regs *r, const void *code, unsigned vector, u64 error)
{
    fault_at(r, code, code, vector, error);
}

bool done(struct regs *r, const void *code)
{
    run_at(r, code);
    if (T.vector == DONE)
        return true;
    fail("got vector %lu error 0x%lx at rip 0x%lx (snippet + 0x%lx, cr2 0x%lx), want the end of "
         "the snippet",
         T.vector, T.error, trap_rip(), trap_rip() - (u64)code, T.cr2);
    return false;
}

/* -- Features and reset ----------------------------------------------------------------------- */

static void detect(void)
{
    struct cpuid_regs r = cpuid(0, 0);
    u32 max = r.eax;
    bool intel = r.ebx == 0x756e6547; /* "Genu" */
    r = cpuid(1, 0);
    feat.monitor = r.ecx >> 3 & 1;
    feat.fma = r.ecx >> 12 & 1;
    feat.cx16 = r.ecx >> 13 & 1;
    feat.pcid = r.ecx >> 17 & 1;
    feat.x2apic = r.ecx >> 21 & 1;
    feat.movbe = r.ecx >> 22 & 1;
    feat.tsc_deadline = r.ecx >> 24 & 1;
    feat.aes = r.ecx >> 25 & 1;
    feat.xsave = r.ecx >> 26 & 1;
    feat.avx = r.ecx >> 28 & 1;
    feat.rdrand = r.ecx >> 30 & 1;
    feat.sysenter = intel && (r.edx >> 11 & 1); /* AMD: not in long mode */
    feat.mtrr = r.edx >> 12 & 1;
    feat.pge = r.edx >> 13 & 1;
    feat.pat = r.edx >> 16 & 1;
    feat.clflush = r.edx >> 19 & 1;
    if (r.ecx >> 31 & 1) {
        struct cpuid_regs h = cpuid(0x40000000, 0);
        on_tcg = h.ebx == 0x54474354; /* "TCGTCGTCGTCG" */
    }
    if (max >= 7) {
        r = cpuid(7, 0);
        feat.fsgsbase = r.ebx & 1;
        feat.bmi1 = r.ebx >> 3 & 1;
        feat.avx2 = r.ebx >> 5 & 1;
        feat.smep = r.ebx >> 7 & 1;
        feat.bmi2 = r.ebx >> 8 & 1;
        feat.erms = r.ebx >> 9 & 1;
        feat.invpcid = r.ebx >> 10 & 1;
        feat.mpx = r.ebx >> 14 & 1;
        feat.avx512f = r.ebx >> 16 & 1;
        feat.rdseed = r.ebx >> 18 & 1;
        feat.smap = r.ebx >> 20 & 1;
        feat.sha = r.ebx >> 29 & 1;
        feat.avx512bw = r.ebx >> 30 & 1;
        feat.avx512vl = r.ebx >> 31 & 1;
        feat.umip = r.ecx >> 2 & 1;
        feat.pku = r.ecx >> 3 & 1;
        feat.vbmi2 = r.ecx >> 6 & 1;
        feat.la57 = r.ecx >> 16 & 1;
        feat.rdpid = r.ecx >> 22 & 1;
    }
    r = cpuid(0x80000001, 0);
    feat.syscall = r.edx >> 11 & 1;
    feat.nx = r.edx >> 20 & 1;
    feat.gbpages = r.edx >> 26 & 1;
    feat.rdtscp = r.edx >> 27 & 1;
    feat.maxphyaddr = cpuid(0x80000008, 0).eax & 0xff;
    if (feat.xsave) {
        r = cpuid(0xd, 0);
        feat.xcr0_supported = (u64)r.edx << 32 | r.eax;
        feat.xsave_size = r.ecx;
        r = cpuid(0xd, 1);
        feat.xsaveopt = r.eax & 1;
        feat.xsavec = r.eax >> 1 & 1;
        feat.xsaves = r.eax >> 3 & 1;
    }
    default_cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | (feat.xsave ? CR4_OSXSAVE : 0);
}

static void reset_cpu(void)
{
    cli();
    memset(handlers, 0, sizeof(handlers));
    write_cr4(default_cr4);
    write_cr0(DEFAULT_CR0);
    wrmsr(MSR_EFER, 0x501 | (feat.nx ? 0x800 : 0));
    write_dr7(0x400);
    write_dr6(0xffff0ff0);
    pool_next = POOL_START;
    pool_big_next = POOL_END - 0x2000000;
    for (unsigned i = 1; i < 512; i++)
        pml4[i] = 0;
    write_cr3((u64)pml4);
    if (feat.pge) { /* global pages of the previous test */
        write_cr4(default_cr4 | CR4_PGE);
        write_cr4(default_cr4);
    }
    write_cr8(0);
    tables_init();
    wrmsr(MSR_STAR, (u64)(SEL_UCODE32 | 3) << 48 | (u64)SEL_KCODE << 32);
    wrmsr(MSR_LSTAR, (u64)(isr_stubs + 16 * DONE));
    wrmsr(MSR_FMASK, F_IF | F_TF | F_DF);
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_GS_BASE, 0);
    wrmsr(MSR_KGS, 0);
    if (feat.xsave)
        xsetbv(0, feat.xcr0_supported & 0xe7);
    asm volatile("fninit");
    u32 mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(mxcsr));
    irq_quiesce();
    memset(buffer, 0, sizeof(buffer));
    memset(&T, 0, sizeof(T));
    random_state = 0x9e3779b97f4a7c15ul;
    context_text[0] = 0;
}

/* -- The test loop ---------------------------------------------------------------------------- */

static bool starts_with(const char *s, const char *prefix, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != prefix[i])
            return false;
    return true;
}

/* The value of `key=` on the command line, up to the next blank; NULL if absent. */
static const char *option(const char *cmdline, const char *key, size_t *len)
{
    size_t n = 0;
    while (key[n])
        n++;
    for (const char *s = cmdline; s && *s; s++) {
        if ((s == cmdline || s[-1] == ' ') && starts_with(s, key, n) && s[n] == '=') {
            s += n + 1;
            for (n = 0; s[n] && s[n] != ' '; n++)
                ;
            *len = n;
            return s;
        }
    }
    return NULL;
}

/* tests=PREFIX,PREFIX,...; the tests that end the machine run only when they are asked for. */
static bool selected(const char *name, const char *list, size_t len)
{
    if (!list)
        return !starts_with(name, "end.", 4);
    for (size_t i = 0; i < len;) {
        size_t n = i;
        while (n < len && list[n] != ',')
            n++;
        if (starts_with(name, list + i, n - i))
            return true;
        i = n + 1;
    }
    return false;
}

static void finish(void)
{
    /* QEMU's PIIX4 power management block exists only after firmware set it up; the keyboard
     * controller's reset line works in both VMMs (which run with -no-reboot). */
    outw(0x604, 0x2000);
    outb(0xcf9, 6);
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("cli; hlt");
}

/*
 * Command line: tests=PREFIX,... selects tests; after=NAME starts behind that test (the runner
 * uses it to go on after a test that ended the virtual machine); list prints the names.
 */
void kernel_main(const u8 *boot_params)
{
    outb(0x3f9, 0);
    outb(0x3fb, 0x80);
    outb(0x3f8, 1);
    outb(0x3f9, 0);
    outb(0x3fb, 3);
    outb(0x3fa, 7);
    outb(0x3fc, 3);

    const char *cmdline = (const char *)(u64) * (const u32 *)(boot_params + 0x228);
    size_t list_len = 0, after_len = 0;
    const char *list = option(cmdline, "tests", &list_len);
    const char *after = option(cmdline, "after", &after_len);
    size_t strict_len = 0;
    bool strict = option(cmdline, "strict", &strict_len);

    detect();
    on_tcg = on_tcg && !strict;
    paging_init();
    reset_cpu();

    unsigned passed = 0, failed = 0, skipped = 0;
    bool started = !after;
    for (const struct test *t = tests_start; t < tests_end; t++) {
        if (!started) {
            started = starts_with(t->name, after, after_len) && !t->name[after_len];
            continue;
        }
        if (!selected(t->name, list, list_len))
            continue;
        current_test = t->name;
        print("# %s\n", t->name);
        reset_cpu();
        fail_count = 0;
        skip_reason = NULL;
        if (!ctx_save(&test_ctx)) {
            test_active = true;
            t->fn();
        }
        test_active = false;
        if (fail_count) {
            failed++;
            if (fail_count > 4)
                print("# %u more failed checks in %s\n", fail_count - 4, t->name);
        } else if (skip_reason) {
            print("skip %s: %s\n", t->name, skip_reason);
            skipped++;
        } else {
            print("ok %s\n", t->name);
            passed++;
        }
    }
    print("RESULT: %s %u passed, %u failed, %u skipped\n", failed ? "FAIL" : "PASS", passed, failed,
          skipped);
    finish();
}
