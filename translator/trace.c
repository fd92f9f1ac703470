/* See trace.h. */
#include "translator/trace.h"

#include "cpu/fpu.h"
#include "runtime/trace.h"
#include "translator/explain.h"

static bool in_range(const struct bt_engine *bt, uint64_t a)
{
    return bt->cfg.trace && a >= bt->cfg.trace_lo && a <= bt->cfg.trace_hi;
}

void trace_block(struct bt_engine *bt, const struct tb *tb)
{
    if (!in_range(bt, tb->gva))
        return;
    fprintf(bt->cfg.trace, "translate ");
    explain_print(bt, tb, bt->cfg.trace);
}

void trace_enter(struct bt_engine *bt, struct vcpu *v, const struct tb *tb)
{
    if (!in_range(bt, tb->gva))
        return;
    vcpu_fp_save(v);
    const uint64_t *g = v->gpr;
    fprintf(bt->cfg.trace,
            "enter %016llx ax %llx cx %llx dx %llx bx %llx sp %llx bp %llx si %llx di %llx "
            "r8 %llx r9 %llx r10 %llx r11 %llx r12 %llx r13 %llx r14 %llx r15 %llx fl %llx\n",
            (unsigned long long)tb->gva, (unsigned long long)g[0], (unsigned long long)g[1],
            (unsigned long long)g[2], (unsigned long long)g[3], (unsigned long long)g[4],
            (unsigned long long)g[5], (unsigned long long)g[6], (unsigned long long)g[7],
            (unsigned long long)g[8], (unsigned long long)g[9], (unsigned long long)g[10],
            (unsigned long long)g[11], (unsigned long long)g[12], (unsigned long long)g[13],
            (unsigned long long)g[14], (unsigned long long)g[15], (unsigned long long)v->rflags);
}

void trace_exception(struct bt_engine *bt, struct vcpu *v)
{
    static const char *const name[32] = {
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "?", "#TS",
        "#NP", "#SS", "#GP", "#PF", "?",   "#MF", "#AC", "#MC", "#XM", "#VE", "#CP"};
    const char *n = name[v->exc.vector & 31];
    if (!in_range(bt, v->rip))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "trap: %s rip %016llx cpl %u", n ? n : "?", (unsigned long long)v->rip,
            v->cpl);
    if (v->exc.has_error)
        fprintf(bt->cfg.trace, " error %#x", v->exc.error);
    if (v->exc.vector == EXC_PF)
        fprintf(bt->cfg.trace, " cr2 %016llx", (unsigned long long)v->exc.cr2);
    fputc('\n', bt->cfg.trace);
}

void trace_debug(struct bt_engine *bt, struct vcpu *v, uint64_t dr6)
{
    if (!in_range(bt, v->rip))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "trap: #DB rip %016llx cpl %u dr6 %#llx\n", (unsigned long long)v->rip,
            v->cpl, (unsigned long long)dr6);
}

void trace_software(struct bt_engine *bt, struct vcpu *v, const struct callout *c)
{
    if (!in_range(bt, c->rip))
        return;
    switch (c->insn.op) {
    case OP_INT: case OP_INT3: case OP_INT1:
        vcpu_fp_save(v);
        fprintf(bt->cfg.trace, "trap: int %#x rip %016llx -> %016llx\n",
                c->insn.op == OP_INT    ? (unsigned)c->insn.imm & 0xff
                : c->insn.op == OP_INT3 ? EXC_BP
                                        : EXC_DB,
                (unsigned long long)c->rip, (unsigned long long)v->rip);
        break;
    case OP_SYSCALL: case OP_SYSENTER:
        vcpu_fp_save(v);
        fprintf(bt->cfg.trace, "trap: %s rax %#llx rip %016llx\n",
                c->insn.op == OP_SYSCALL ? "syscall" : "sysenter", (unsigned long long)v->gpr[RAX],
                (unsigned long long)c->rip);
    }
}

void trace_interrupt(struct bt_engine *bt, struct vcpu *v, uint64_t from)
{
    if (!in_range(bt, from))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "irq: %s %#x rip %016llx -> %016llx\n",
            v->last_interrupt == EXC_NMI ? "NMI" : "vector", v->last_interrupt,
            (unsigned long long)from, (unsigned long long)v->rip);
}

void trace_flush(struct bt_engine *bt, struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva)
{
    bool page = kind == MMU_FLUSHED_PAGE;
    if (!in_range(bt, page ? gva : v->rip))
        return;
    vcpu_fp_save(v);
    switch (kind) {
    case MMU_FLUSHED_ALL:
        fprintf(bt->cfg.trace, "mmu: flush all");
        break;
    case MMU_FLUSHED_NONGLOBAL:
        fprintf(bt->cfg.trace, "mmu: flush non-global, cr3 %llx", (unsigned long long)v->cr3);
        break;
    case MMU_FLUSHED_PAGE:
        fprintf(bt->cfg.trace, "mmu: flush page %016llx", (unsigned long long)gva);
        break;
    case MMU_SWITCHED:
        fprintf(bt->cfg.trace, "mmu: switch, cr3 %llx", (unsigned long long)v->cr3);
        break;
    case MMU_FLUSHED_PCID:
        fprintf(bt->cfg.trace, "mmu: flush PCID %llu", (unsigned long long)gva);
        break;
    }
    fprintf(bt->cfg.trace, " rip %016llx\n", (unsigned long long)v->rip);
}

void trace_miss(struct bt_engine *bt, struct vcpu *v, uint64_t gva, uint64_t gpa, unsigned access,
                int target)
{
    static const char *const what[] = {
        [MMU_RAM] = "RAM", [MMU_RAM_CODE] = "page with translated code", [MMU_MMIO] = "device"};
    if (!in_range(bt, gva))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "mmu: miss %s gva %016llx gpa %llx (%s) rip %016llx\n",
            access & MMU_WRITE ? "write" : "read", (unsigned long long)gva, (unsigned long long)gpa,
            what[target], (unsigned long long)v->rip);
}

void trace_install(struct bt_engine *bt, struct vcpu *v, uint64_t gva, uint64_t gpa, bool write)
{
    if (!in_range(bt, gva))
        return;
    vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "mmu: window %s gva %016llx gpa %llx rip %016llx\n",
            write ? "write" : "read", (unsigned long long)gva, (unsigned long long)gpa,
            (unsigned long long)v->rip);
}

void trace_code_write(struct bt_engine *bt, uint64_t gpa, uint64_t len)
{
    struct vcpu *v = bt_this_vcpu();
    if (!in_range(bt, gpa))
        return;
    if (v)
        vcpu_fp_save(v);
    fprintf(bt->cfg.trace, "mmu: write of %llu bytes to a page with translated code, gpa %llx\n",
            (unsigned long long)len, (unsigned long long)gpa);
}
