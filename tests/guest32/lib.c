/*
 * The 16/32-bit test kernel's support code: serial output, descriptor tables, entering the modes,
 * traps, the test loop.
 */
#include "guest32.h"

extern u8 isr_stubs[], real_stubs[];
extern u8 low_start[], low_end[], low_load[];
extern u8 snippets16_start[], snippets16_end[], snippets16_load[];
extern const struct test tests_start[], tests_end[];
extern struct frame trap_frame;

struct dtr {
    u16 limit;
    u32 base;
} __attribute__((packed));
extern struct regs real_regs;
extern u8 real_frame[];
extern struct dtr real_idtr, kernel_gdtr_low;
extern u32 real_unreal;
struct dtr kernel_idtr;
void real_run(void);

struct ctx {
    u32 v[6];
};
int ctx_save(struct ctx *c) __attribute__((returns_twice));
void ctx_jump(struct ctx *c) __attribute__((noreturn));
void regs_enter(const struct regs *r) __attribute__((noreturn));
void kernel_main(u32 magic, const u8 *info);
void trap_entry(struct frame *f);

struct trap T;
handler_fn handlers[256];
struct features feat;
bool on_tcg;
const char *skip_reason;
u64 gdt[128] __attribute__((aligned(16)));
u64 ldt[32] __attribute__((aligned(16)));
u64 idt[256] __attribute__((aligned(16)));
struct test_tss tss __attribute__((aligned(4096)));

static struct tss32 df_tss __attribute__((aligned(256)));
static u8 df_stack[4096], ring0_stack[8192] __attribute__((aligned(16)));
static struct ctx run_ctx, test_ctx;
static volatile bool run_active, test_active;
static enum mode run_mode;
static unsigned fail_count;
static char context_text[96];
static const char *current_test;
static u32 random_state;
static u8 gen_flat[16384] __attribute__((aligned(4096)));

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
        unsigned width = 0;
        bool zero = false;
        fmt++;
        if (*fmt == '0') {
            zero = true;
            fmt++;
        }
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            width = width * 10 + (unsigned)(*fmt - '0');
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
            u32 v = va_arg(ap, u32);
            char tmp[12];
            if (*fmt == 'd' && (int32_t)v < 0) {
                out_char(o, '-');
                v = 0 - v;
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

void fail(const char *fmt, ...)
{
    if (fail_count++ >= 6) /* the first messages tell the story */
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

bool check_eq(const char *what, u32 got, u32 want)
{
    if (got == want)
        return true;
    fail("%s: got 0x%x, want 0x%x", what, got, want);
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

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

u32 random32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state * 0x9e3779b1u;
}

/* -- Descriptor tables ------------------------------------------------------------------------ */

void idt_default(unsigned vector, unsigned dpl)
{
    idt[vector] = gate(SEL_KCODE, (u32)(isr_stubs + 16 * vector), 0x8e | dpl << 5, 0);
}

void load_tr(u32 sel)
{
    gdt[sel / 8] &= ~((u64)2 << 40);
    asm volatile("ltr %w0" ::"r"(sel) : "memory");
}

void lldt(u32 sel)
{
    asm volatile("lldt %w0" ::"r"(sel) : "memory");
}

/* A double fault is taken by a task of its own: it works on no stack that a test could have
 * broken.  The state of the test is in the TSS that the switch saved. */
static void double_fault(void)
{
    struct tss32 *t = &tss.t;
    asm volatile("pushfl\n\tandl $~0x4000, (%%esp)\n\tpopfl" ::: "memory", "cc");
    gdt[SEL_DF_TSS / 8] = DESC((u32)&df_tss, sizeof(df_tss) - 1, 0x89, 0);
    load_tr(SEL_TSS);
    memcpy(&T.r,
           (const u32[]){t->eax, t->ecx, t->edx, t->ebx, t->esp, t->ebp, t->esi, t->edi, t->eip,
                         t->eflags, t->cs, t->ss, t->ds, t->es, t->fs, t->gs},
           64);
    T.vector = DF;
    T.error = 0;
    T.dr6 = read_dr6();
    if (run_active) {
        run_active = false;
        ctx_jump(&run_ctx);
    }
    if (test_active) {
        test_active = false;
        fail("unexpected double fault at 0x%x:0x%x", t->cs, t->eip);
        ctx_jump(&test_ctx);
    }
    print("\nRESULT: FAIL double fault outside a test, eip 0x%x\n", t->eip);
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("cli; hlt");
}

static void tables_init(void)
{
    static const u32 bases[6] = {CS16_BASE, DS_BASE, SS_BASE, ES_BASE, FS_BASE, GS_BASE};
    memset(gdt, 0, sizeof(gdt));
    memset(ldt, 0, sizeof(ldt));
    gdt[SEL_KCODE / 8] = DESC(0, 0xfffff, 0x9b, 0xc);
    gdt[SEL_KDATA / 8] = DESC(0, 0xfffff, 0x93, 0xc);
    gdt[SEL_UCODE / 8] = DESC(0, 0xfffff, 0xfb, 0xc);
    gdt[SEL_UDATA / 8] = DESC(0, 0xfffff, 0xf3, 0xc);
    gdt[SEL_LOW16 / 8] = DESC(0x10000, 0xffff, 0x9b, 0);
    gdt[SEL_LOWDATA / 8] = DESC(0x10000, 0xffff, 0x93, 0);
    gdt[SEL_BIGDATA / 8] = DESC(0, 0xfffff, 0x93, 8);
    for (unsigned i = 0; i < 6; i++) {
        gdt[SEL_K16 / 8 + i] = DESC(bases[i], 0xffff, i ? 0x93 : 0x9b, 0);
        gdt[SEL_U16 / 8 + i] = DESC(bases[i], 0xffff, i ? 0xf3 : 0xfb, 0);
    }
    gdt[SEL_S32_SS / 8] = DESC(SS_BASE, 0xffff, 0xf3, 4);
    gdt[SEL_TSS / 8] = DESC((u32)&tss, sizeof(tss) - 1, 0x89, 0);
    gdt[SEL_DF_TSS / 8] = DESC((u32)&df_tss, sizeof(df_tss) - 1, 0x89, 0);
    gdt[SEL_LDT / 8] = DESC((u32)ldt, sizeof(ldt) - 1, 0x82, 0);
    gdt[SEL_K64 / 8] = DESC(0, 0xfffff, 0x9b, 0xa);
    gdt[SEL_U64 / 8] = DESC(0, 0xfffff, 0xfb, 0xa);

    memset(&tss, 0, offsetof(struct test_tss, iomap));
    memset(tss.iomap, 0xff, sizeof(tss.iomap));
    tss.t.esp0 = (u32)ring0_stack + sizeof(ring0_stack);
    tss.t.ss0 = SEL_KDATA;
    tss.t.iomap = offsetof(struct test_tss, iomap);
    memset(&df_tss, 0, sizeof(df_tss));
    df_tss.esp = df_tss.esp0 = (u32)df_stack + sizeof(df_stack) - 16;
    df_tss.ss0 = SEL_KDATA;
    df_tss.eip = (u32)double_fault;
    df_tss.eflags = 2;
    df_tss.cs = SEL_KCODE;
    df_tss.ss = df_tss.ds = df_tss.es = SEL_KDATA;
    df_tss.iomap = sizeof(df_tss);

    for (unsigned i = 0; i < 256; i++)
        idt_default(i, i == BP || i == OF || i == 0x80 ? 3 : 0);
    idt[DF] = gate(SEL_DF_TSS, 0, 0x85, 0);

    struct dtr gdtr = {sizeof(gdt) - 1, (u32)gdt};
    kernel_idtr = (struct dtr){sizeof(idt) - 1, (u32)idt};
    kernel_gdtr_low = gdtr;
    asm volatile("lgdt %0\n\tlidt %1\n\tljmp %2, $1f\n1:\n\t"
                 "movl %3, %%eax\n\tmovl %%eax, %%ss\n\tmovl %%eax, %%ds\n\tmovl %%eax, %%es\n\t"
                 "xorl %%eax, %%eax\n\tmovl %%eax, %%fs\n\tmovl %%eax, %%gs\n\tlldt %%ax\n\t"
                 "movl %4, %%eax\n\tltr %%ax" ::"m"(gdtr),
                 "m"(kernel_idtr), "i"(SEL_KCODE), "i"(SEL_KDATA), "i"(SEL_TSS)
                 : "eax", "memory");
}

/* -- Traps ------------------------------------------------------------------------------------ */

static void record(const struct frame *f)
{
    struct regs *r = &T.r;
    bool v86 = f->eflags & F_VM, outer = v86 || (f->cs & 3);
    memset(r, 0, sizeof(*r));
    r->eax = f->eax;
    r->ecx = f->ecx;
    r->edx = f->edx;
    r->ebx = f->ebx;
    r->ebp = f->ebp;
    r->esi = f->esi;
    r->edi = f->edi;
    r->eip = f->eip;
    r->eflags = f->eflags;
    r->cs = f->cs & 0xffff;
    r->esp = outer ? f->esp : f->stack_esp + 17 * 4;
    r->ss = (outer ? f->ss : f->stack_ss) & 0xffff;
    r->ds = (v86 ? f->v86_ds : f->ds) & 0xffff;
    r->es = (v86 ? f->v86_es : f->es) & 0xffff;
    r->fs = (v86 ? f->v86_fs : f->fs) & 0xffff;
    r->gs = (v86 ? f->v86_gs : f->gs) & 0xffff;
    r->mode = run_mode;
    T.vector = f->vector;
    T.error = f->error;
    T.cr2 = read_cr2();
    T.dr6 = read_dr6();
}

void trap_entry(struct frame *f)
{
    handler_fn h = f->vector < 256 ? handlers[f->vector] : NULL;
    if (h && h(f))
        return;
    if (run_active) {
        record(f);
        run_active = false;
        ctx_jump(&run_ctx);
    }
    if (test_active) {
        test_active = false;
        context("%s", "");
        fail("unexpected vector %u error 0x%x at 0x%x:0x%x eflags 0x%x cr2 0x%x", f->vector,
             f->error, f->cs & 0xffff, f->eip, f->eflags, read_cr2());
        ctx_jump(&test_ctx);
    }
    print("\nRESULT: FAIL vector %u error 0x%x outside a test, 0x%x:0x%x\n", f->vector, f->error,
          f->cs & 0xffff, f->eip);
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("cli; hlt");
}

/* -- Entering modes --------------------------------------------------------------------------- */

static const struct mode_info {
    const char *name;
    u16 cs, ss, ds, es, fs, gs;
    u32 eflags;
} modes[MODES] = {
    [K32] = {"k32", SEL_KCODE, SEL_KDATA, SEL_KDATA, SEL_KDATA, SEL_KDATA, SEL_KDATA, 2},
    [U32] = {"u32", SEL_UCODE | 3, SEL_UDATA | 3, SEL_UDATA | 3, SEL_UDATA | 3, SEL_UDATA | 3,
             SEL_UDATA | 3, 2},
    [S32] = {"s32", SEL_UCODE | 3, SEL_S32_SS | 3, SEL_U16 + 11, SEL_U16 + 27, SEL_U16 + 35,
             SEL_U16 + 43, 2},
    [K16] = {"k16", SEL_K16, SEL_K16 + 16, SEL_K16 + 8, SEL_K16 + 24, SEL_K16 + 32, SEL_K16 + 40,
             2},
    [U16] = {"u16", SEL_U16 + 3, SEL_U16 + 19, SEL_U16 + 11, SEL_U16 + 27, SEL_U16 + 35,
             SEL_U16 + 43, 2},
    [V86] = {"v86", 0x3000, 0x4000, 0x2000, 0x5000, 0x6000, 0x7000, F_VM | F_IOPL | 2},
    [REAL] = {"real", 0x3000, 0x4000, 0x2000, 0x5000, 0x6000, 0x7000, 2},
};

const char *mode_name(unsigned m)
{
    return modes[m].name;
}

u32 ip_of(unsigned m, const void *p)
{
    return CODE32 >> m & 1 ? (u32)p : (u32)p - CS16_BASE;
}

u8 *gen_start(unsigned m)
{
    return CODE32 >> m & 1 ? gen_flat : (u8 *)(CS16_BASE + CODE16_GEN);
}

u8 *put_bytes(u8 *p, const void *bytes, unsigned n)
{
    memcpy(p, bytes, n);
    return p + n;
}

struct regs regs_for(unsigned m)
{
    const struct mode_info *i = &modes[m];
    struct regs r = {
        .eax = 0x1a2b3c41,
        .ecx = 0x51627384,
        .edx = 0x95a6b7c2,
        .ebx = 0xd8e9fa03,
        .ebp = 0x13572468,
        .esi = 0x2468ace1,
        .edi = 0xfdb97533,
        .eflags = i->eflags,
        .cs = i->cs,
        .ss = i->ss,
        .ds = i->ds,
        .es = i->es,
        .fs = i->fs,
        .gs = i->gs,
        .mode = (enum mode)m,
        .ivt = 0xffffffff,
    };
    r.esp = SEGBASES >> m & 1 ? 0x8000 : SS_BASE + 0x8000;
    return r;
}

/* The kernel's interrupt table for real mode; tests may have their own instead. */
static u32 kernel_ivt[256];

u32 real_vector(unsigned n)
{
    return 0x10000000 | ((u32)(real_stubs + 8 * n) & 0xffff);
}

static void run_real(const struct regs *start)
{
    struct regs r = *start;
    for (;;) {
        memcpy(&real_regs, &r, 64);
        real_unreal = r.unreal;
        real_idtr = (struct dtr){0x3ff, r.ivt == 0xffffffff ? (u32)kernel_ivt : r.ivt};
        real_run();
        struct {
            u16 gs, fs, es, ds;
            u32 edi, esi, ebp, esp, ebx, edx, ecx, eax;
            u16 vector, ip, cs, flags;
            u32 esp_after;
            u16 ss;
        } __attribute__((packed)) f;
        memcpy(&f, real_frame, sizeof(f));
        memset(&T, 0, sizeof(T));
        r.eax = f.eax;
        r.ecx = f.ecx;
        r.edx = f.edx;
        r.ebx = f.ebx;
        r.ebp = f.ebp;
        r.esi = f.esi;
        r.edi = f.edi;
        r.esp = (f.esp_after & 0xffff0000) | ((f.esp_after + 48) & 0xffff);
        r.eip = f.ip;
        r.eflags = f.flags;
        r.cs = f.cs;
        r.ss = f.ss;
        r.ds = f.ds;
        r.es = f.es;
        r.fs = f.fs;
        r.gs = f.gs;
        T.r = r;
        T.vector = f.vector;
        T.dr6 = read_dr6();
        struct frame pf = {
            .vector = f.vector, .eip = f.ip, .cs = f.cs, .eflags = f.flags, .eax = f.eax};
        handler_fn h = handlers[f.vector & 255];
        if (!h || !h(&pf))
            return;
        r.eip = pf.eip;
        r.eflags = pf.eflags;
        r.eax = pf.eax;
    }
}

unsigned run(const struct regs *r)
{
    run_mode = r->mode;
    if (r->mode == REAL) {
        run_real(r);
        asm volatile("ltr %w0" ::"r"(SEL_TSS + 0 * (gdt[SEL_TSS / 8] &= ~((u64)2 << 40))));
        return T.vector;
    }
    if (!ctx_save(&run_ctx)) {
        run_active = true;
        regs_enter(r);
    }
    return T.vector;
}

unsigned run_at(struct regs *r, const void *code)
{
    r->eip = ip_of(r->mode, code);
    return run(r);
}

void expect(unsigned vector, u32 error)
{
    if (T.vector != vector || T.error != error)
        fail("got vector %u error 0x%x at 0x%x:0x%x (cr2 0x%x), want vector %u error 0x%x",
             T.vector, T.error, T.r.cs, T.r.eip, T.cr2, vector, error);
}

static void check_fault(struct regs *r, const void *code, const void *at, unsigned vector,
                        u32 error, u32 any)
{
    static const char *const names[] = {"eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"};
    run_at(r, code);
    expect(vector, error);
    if (T.vector != vector)
        return;
    check_eq("eip of the fault", T.r.eip, ip_of(r->mode, at));
    check_eq("cs of the fault", T.r.cs, r->cs);
    if (code == at) {
        for (unsigned i = 0; i < 8; i++)
            check_eq(names[i], (&T.r.eax)[i], (&r->eax)[i]);
        u32 mask = (r->mode == REAL ? 0xffff : ~0u) & ~(u32)F_RF & ~any;
        check_eq("eflags", T.r.eflags & mask, r->eflags & mask);
        check_eq("ds", T.r.ds, r->ds);
        check_eq("es", T.r.es, r->es);
        check_eq("fs", T.r.fs, r->fs);
        check_eq("gs", T.r.gs, r->gs);
        check_eq("ss", T.r.ss, r->ss);
    }
}

void fault_at(struct regs *r, const void *code, const void *at, unsigned vector, u32 error)
{
    check_fault(r, code, at, vector, error, 0);
}

void fault_of_arithmetic(struct regs *r, const void *code, unsigned vector, u32 error)
{
    check_fault(r, code, code, vector, error, 0x8d5); /* OF, SF, ZF, AF, PF, CF */
}

void fault(struct regs *r, const void *code, unsigned vector, u32 error)
{
    fault_at(r, code, code, vector, error);
}

bool done(struct regs *r, const void *code)
{
    run_at(r, code);
    if (T.vector == DONE)
        return true;
    fail("got vector %u error 0x%x at 0x%x:0x%x (code + 0x%x, cr2 0x%x), want the end of the code",
         T.vector, T.error, T.r.cs, T.r.eip, T.r.eip - r->eip, T.cr2);
    return false;
}

/* -- Features and reset ----------------------------------------------------------------------- */

static void detect(void)
{
    struct cpuid_regs r = cpuid(0, 0);
    u32 max = r.eax;
    r = cpuid(1, 0);
    feat.vme = r.edx >> 1 & 1;
    feat.pse = r.edx >> 3 & 1;
    feat.pae = r.edx >> 6 & 1;
    feat.cx8 = r.edx >> 8 & 1;
    feat.sysenter = r.edx >> 11 & 1;
    feat.pge = r.edx >> 13 & 1;
    feat.cmov = r.edx >> 15 & 1;
    feat.pse36 = r.edx >> 17 & 1;
    feat.fxsr = r.edx >> 24 & 1;
    feat.sse = r.edx >> 25 & 1;
    if (r.ecx >> 31 & 1)
        on_tcg = cpuid(0x40000000, 0).ebx == 0x54474354; /* "TCGTCGTCGTCG" */
    if (max >= 7) {
        r = cpuid(7, 0);
        feat.smep = r.ebx >> 7 & 1;
        feat.no_fcs = r.ebx >> 13 & 1;
        feat.umip = r.ecx >> 2 & 1;
    }
    if (cpuid(0x80000000, 0).eax >= 0x80000001) {
        r = cpuid(0x80000001, 0);
        feat.syscall = r.edx >> 11 & 1;
        feat.nx = r.edx >> 20 & 1;
        feat.longmode = r.edx >> 29 & 1;
    }
}

static void reset_cpu(void)
{
    asm volatile("cli");
    memset(handlers, 0, sizeof(handlers));
    write_cr0(CR0_PE | CR0_NE | 0x10);
    write_cr4(feat.fxsr ? CR4_OSFXSR : 0);
    if (feat.longmode)
        wrmsr(MSR_EFER, 0);
    write_dr7(0x400);
    write_dr6(0xffff0ff0);
    tables_init();
    for (unsigned i = 0; i < 256; i++)
        kernel_ivt[i] = real_vector(i);
    asm volatile("fninit");
    memset((void *)DS_BASE, 0, 0x10000);
    memset((void *)SS_BASE, 0, 0x10000);
    memset((void *)ES_BASE, 0, 0x30000);
    memset(&T, 0, sizeof(T));
    random_state = 0x9e3779b9u;
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

static void finish(bool good)
{
    outb(0xf4, good ? 0 : 1); /* isa-debug-exit: exit status 1 or 3 */
    outw(0x604, 0x2000);
    outb(0xcf9, 6);
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("cli; hlt");
}

void kernel_main(u32 magic, const u8 *info)
{
    outb(0x3f9, 0);
    outb(0x3fb, 0x80);
    outb(0x3f8, 1);
    outb(0x3f9, 0);
    outb(0x3fb, 3);
    outb(0x3fa, 7);
    outb(0x3fc, 3);
    outb(0x21, 0xff); /* no interrupts but those the tests ask for */
    outb(0xa1, 0xff);

    static char cmdline[1024]; /* a copy: the tests overwrite low memory */
    const char *from = NULL;
    if (magic == 0x2badb002 && (*(const u32 *)info & 4))
        from = (const char *)*(const u32 *)(info + 16);
    else if (magic != 0x2badb002 && *(const u32 *)info == 0x336ec578)
        from = (const char *)*(const u32 *)(info + 24);
    for (unsigned i = 0; from && from[i] && i < sizeof(cmdline) - 1; i++)
        cmdline[i] = from[i];
    memcpy(low_start, low_load, (size_t)(low_end - low_start));
    memcpy(snippets16_start, snippets16_load, (size_t)(snippets16_end - snippets16_start));

    size_t list_len = 0, after_len = 0;
    const char *list = option(cmdline, "tests", &list_len);
    const char *after = option(cmdline, "after", &after_len);
    size_t strict_len = 0;
    bool strict = option(cmdline, "strict", &strict_len);

    detect();
    on_tcg = on_tcg && !strict;
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
            if (fail_count > 6)
                print("# %u more failed checks in %s\n", fail_count - 6, t->name);
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
    finish(!failed);
}
