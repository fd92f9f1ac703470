/*
 * Runs cases of diff_case.h through the translator: bt_fixture.h with page tables of its own, in
 * which the case's pages are scattered over guest RAM and nothing else is mapped but one supervisor
 * region for descriptor tables, TSS, handlers and the stack they run on.
 */
#ifndef RINGSHIFT_TESTS_DIFF_GUEST_H
#define RINGSHIFT_TESTS_DIFF_GUEST_H

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "cpu/segment.h"
#include "tests/support/bt_fixture.h"
#include "tests/support/diff_case.h"

#define DIFF_SYS      0xffffb7a5d1230000ull /* GDT, IDT, handlers, TSS, two pages of stack */
#define DIFF_SYS_GPA  0x3000000ull
#define DIFF_PT_GPA   0x3100000ull
#define DIFF_SYS_IDT  (DIFF_SYS + 0x1000)
#define DIFF_SYS_HND  (DIFF_SYS + 0x2000)
#define DIFF_SYS_TSS  (DIFF_SYS + 0x3000)
#define DIFF_SYS_SP   (DIFF_SYS + 0x6000)
#define DIFF_SYS_LDT  0x400u /* 16- and 32-bit code: in the GDT's page */
#define DIFF_REAL_HND 0x9000u

struct diff_guest {
    struct bt_fixture f;
    uint64_t gpa[DIFF_PAGES];
    uint8_t pristine[DIFF_PAGES][4096];
    const uint8_t *pristine_ptr[DIFF_PAGES];
    uint64_t pt_next;
    enum diff_world world; /* of 16- and 32-bit code       */
    uint64_t sys;          /* DIFF_SYS as this mode has it */
    /* The kicker: a thread that ends runaway cases and, on demand, interrupts all the time. */
    pthread_t thread;
    _Atomic bool quit, kicks, running;
    _Atomic uint64_t runs;
    _Atomic uint32_t patience_ms; /* how long a case may run */
};

/* Legacy protected and virtual-8086 mode: PAE paging. */
static inline bool diff_pae(const struct diff_guest *g)
{
    return diff_legacy && (g->world == DIFF_PROT || g->world == DIFF_V86);
}

static inline uint64_t diff_pt_entry(struct diff_guest *g, uint64_t table, unsigned index)
{
    uint64_t e;
    ram_read(&g->f.ram, table + 8 * index, &e, 8);
    if (!(e & 1)) {
        e = g->pt_next | (diff_pae(g) && table == DIFF_PT_GPA ? 1 : 7);
        g->pt_next += 4096;
        fx_put64(&g->f, table + 8 * index, e);
    }
    return e & 0x000ffffffffff000ull;
}

static inline void diff_map(struct diff_guest *g, uint64_t gva, uint64_t gpa, uint64_t flags)
{
    uint64_t t = DIFF_PT_GPA;
    for (int shift = diff_pae(g) ? 30 : 39; shift > 12; shift -= 9)
        t = diff_pt_entry(g, t, (gva >> shift) & 511);
    fx_put64(&g->f, t + 8 * (gva >> 12 & 511), gpa | flags);
}

static inline void *diff_guest_thread(void *arg)
{
    struct diff_guest *g = arg;
    uint64_t last = 0, seen_at = 0, rnd = 12345;
    while (!g->quit) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
        if (g->runs != last || !g->running || !seen_at) {
            last = g->runs;
            seen_at = ms;
        } else if (ms - seen_at > g->patience_ms) {
            atomic_fetch_or(&g->f.v->events, EV_STOP);
            g->f.engine->ops->kick(g->f.engine, g->f.v);
            seen_at = ms;
        }
        if (g->kicks) {
            for (unsigned i = 0; i < 64; i++) {
                if (g->running)
                    g->f.engine->ops->kick(g->f.engine, g->f.v);
                for (unsigned k = diff_below(&rnd, 600); k; k--)
                    __builtin_ia32_pause();
            }
        } else {
            usleep(g->patience_ms < 100 ? 2000 : 50000);
        }
    }
    return NULL;
}

/* Real mode: the vector table and its handlers, where they are not as they should be.  A wild branch
 * may have got at them: there, code can do what the host does not let it. */
static inline void diff_real_vectors(struct diff_guest *g)
{
    for (unsigned i = 0; i < 256; i++) {
        const uint16_t ivt[2] = {(uint16_t)(16 * i), DIFF_REAL_HND >> 4};
        if (memcmp(g->f.ram.base + 4 * i, ivt, 4))
            fx_write(&g->f, 4 * i, ivt, 4);
        if (g->f.ram.base[DIFF_REAL_HND + 16 * i] != 0xf4)
            fx_write(&g->f, DIFF_REAL_HND + 16 * i, "\xf4", 1);
    }
}

static inline void diff_guest_setup(struct diff_guest *g)
{
    struct bt_fixture *f = &g->f;
    static const uint64_t zero[512];
    fx_reset(f);
    for (uint64_t p = DIFF_SYS_GPA; p < DIFF_SYS_GPA + 0x6000; p += 4096)
        fx_write(f, p, zero, 4096);
    for (uint64_t p = DIFF_PT_GPA; p < DIFF_PT_GPA + 0x40000; p += 4096)
        fx_write(f, p, zero, 4096);
    g->pt_next = DIFF_PT_GPA + 0x1000;
    for (unsigned i = 0; i < 6; i++)
        diff_map(g, g->sys + 0x1000 * i, DIFF_SYS_GPA + 0x1000 * i, i == 2 ? 3 : 3 | 1ull << 63);
    for (unsigned i = 0; i < DIFF_PAGES; i++) {
        /* No two neighbours in GVA are neighbours in GPA. */
        g->gpa[i] = FX_DATA + 0x3000 * (uint64_t)((i * 5) % 13) + 0x1000;
        if (diff_legacy && g->world == DIFF_REAL)
            g->gpa[i] = diff_pages[i].gva;
        diff_map(g, diff_pages[i].gva, g->gpa[i],
                 5 | (diff_pages[i].flags & DP_W ? 2 : 0) |
                     (diff_pages[i].flags & DP_X ? 0 : 1ull << 63));
        diff_fill_page(i, g->pristine[i]);
        g->pristine_ptr[i] = g->pristine[i];
        fx_write(f, g->gpa[i], g->pristine[i], 4096);
    }
    bool pae = diff_pae(g);
    const uint64_t gdt[] = {0,
                            0,
                            pae ? 0x00cf9b000000ffffull : 0x00af9b000000ffffull,
                            0x00cf93000000ffffull,
                            diff_legacy ? 0x00cffb000000ffffull : 0,
                            0x00cff3000000ffffull,
                            0x00affb000000ffffull,
                            [15] =
                                diff_legacy ? 0x0040f50000000000ull : 0}; /* Linux's CPU number */
    fx_write(f, DIFF_SYS_GPA, gdt, sizeof gdt);
    for (unsigned i = 0; i < DIFF_LDT_N; i++)
        fx_put64(f, DIFF_SYS_GPA + DIFF_SYS_LDT + 8 * i, diff_desc_raw(&diff_ldt[i]));
    for (unsigned i = 0; i < 256; i++) {
        uint64_t h = g->sys + 0x2000 + 16 * i, dpl = i == 3 || i == 4 ? 0xee00 : 0x8e00;
        if (pae) {
            fx_put64(f, DIFF_SYS_GPA + 0x1000 + 8 * i,
                     (h & 0xffff) | 0x10 << 16 | dpl << 32 | (h >> 16 & 0xffff) << 48);
        } else {
            fx_put64(f, DIFF_SYS_GPA + 0x1000 + 16 * i,
                     (h & 0xffff) | 0x10 << 16 | (dpl | 1) << 32 | (h >> 16 & 0xffff) << 48);
            fx_put64(f, DIFF_SYS_GPA + 0x1000 + 16 * i + 8, h >> 32);
        }
        fx_write(f, DIFF_SYS_GPA + 0x2000 + 16 * i, "\xf4", 1);
    }
    if (diff_legacy && g->world == DIFF_REAL)
        diff_real_vectors(g);
    uint64_t sp = g->sys + 0x6000;
    fx_write(f, DIFF_SYS_GPA + 0x3000 + 4, &sp, 8);
    if (pae) {
        uint32_t ss0 = 0x18;
        fx_write(f, DIFF_SYS_GPA + 0x3000 + 8, &ss0, 4);
    } else {
        fx_write(f, DIFF_SYS_GPA + 0x3000 + 36, &sp, 8);
    }
    uint16_t iomap = 0x100;
    fx_write(f, DIFF_SYS_GPA + 0x3000 + 102, &iomap, 2);
    mmu_flush_all(f->v);
}

/* The registers that no case touches itself, but that exceptions change. */
static inline void diff_guest_cpu(struct diff_guest *g, unsigned cpl)
{
    struct vcpu *v = g->f.v;
    v->gdtr = (struct dtable){DIFF_SYS, diff_legacy ? 127 : 55};
    v->idtr = (struct dtable){DIFF_SYS_IDT, 0xfff};
    v->tr.base = DIFF_SYS_TSS;
    v->tr.limit = 0x67;
    if (v->cr3 != DIFF_PT_GPA) {
        v->cr3 = DIFF_PT_GPA;
        v->efer |= EFER_NX;
        v->cr0 |= CR0_WP | CR0_AM | CR0_MP;
        v->cr4 |= CR4_FSGSBASE;
        mmu_flush_all(v);
    }
    v->cpl = (uint8_t)cpl;
    v->seg[SEG_CS] = cpu_flat_code64(cpl ? 0x33 : 0x10, cpl);
    for (unsigned s = SEG_ES; s < SEG_COUNT; s++)
        if (s != SEG_CS)
            v->seg[s] = cpu_flat_data(cpl ? 0x2b : 0x18, cpl);
    v->dr[6] = 0xffff0ff0;
    v->halted = false;
    v->interrupt_shadow = 0;
}

/* The same for 16- and 32-bit code: a mode of enum diff_world, with the case's segments. */
static inline void diff_guest_legacy(struct diff_guest *g, const struct diff_case *c)
{
    struct vcpu *v = g->f.v;
    bool real_segments = c->world == DIFF_V86 || c->world == DIFF_REAL;
    if (c->world != DIFF_COMPAT) {
        v->efer = EFER_NX;
        v->cr0 = CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_MP |
                 (c->world == DIFF_REAL ? 0u : CR0_PE | CR0_PG);
        v->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | (v->model->xcr0_valid ? CR4_OSXSAVE : 0) |
                 (diff_pae(g) ? CR4_PAE : 0);
        v->gdtr.base = v->ldtr.base = (uint32_t)DIFF_SYS;
        v->idtr = (struct dtable){(uint32_t)DIFF_SYS_IDT, 0x7ff};
        v->tr.base = (uint32_t)DIFF_SYS_TSS;
        v->tr.attr = 0x8b;
        if (diff_pae(g) && !(v->pdpte[0] & 1)) {
            ram_read(&g->f.ram, DIFF_PT_GPA, v->pdpte, sizeof v->pdpte);
            mmu_flush_all(v);
        }
    }
    if (c->world == DIFF_REAL)
        v->idtr = (struct dtable){0, 0x3ff};
    v->ldtr = (struct segment){
        .sel = 0x40, .attr = 0x82, .limit = 8 * DIFF_LDT_N - 1, .base = g->sys + DIFF_SYS_LDT};
    v->rflags =
        c->rflags | FL_FIXED1 | FL_IF | (c->world == DIFF_V86 ? (uint64_t)(FL_VM | FL_IOPL) : 0);
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        const struct diff_desc *d = diff_desc_of(c->seg[i]);
        v->seg[i] = c->seg[i] & ~3 ? cpu_segment_of(c->seg[i], diff_desc_raw(d))
                                   : (struct segment){.sel = c->seg[i]};
        if (real_segments) {
            v->seg[i].sel = (uint16_t)(d->base >> 4);
            v->seg[i].attr =
                c->world == DIFF_V86 ? 0xf3 : (v->seg[i].attr & (SEGA_DB | SEGA_G)) | 0x93;
        }
        if (!c->cpl && (i == SEG_CS || i == SEG_SS)) {
            v->seg[i].attr &= ~(unsigned)SEGA_DPL;
            v->seg[i].sel &= 0xfffc;
        }
    }
    v->cpl = c->world == DIFF_V86 ? 3 : c->world == DIFF_REAL ? 0 : c->cpl;
    cpu_mode_changed(v);
}

static inline void diff_guest_start_in(struct diff_guest *g, const struct engine_config *cfg,
                                       enum diff_world world)
{
    memset(g, 0, sizeof *g);
    g->patience_ms = 250;
    g->world = world;
    g->sys = diff_pae(g) ? (uint32_t)DIFF_SYS : DIFF_SYS;
    fx_create(&g->f, cfg);
    diff_guest_setup(g);
    diff_guest_cpu(g, 0);
    pthread_create(&g->thread, NULL, diff_guest_thread, g);
}
static inline void diff_guest_start(struct diff_guest *g, const struct engine_config *cfg)
{
    diff_guest_start_in(g, cfg, DIFF_COMPAT);
}

static inline void diff_guest_stop(struct diff_guest *g)
{
    g->quit = true;
    pthread_join(g->thread, NULL);
    fx_destroy(&g->f);
}

static inline void diff_guest_run(struct diff_guest *g, const struct diff_case *c,
                                  struct diff_result *r)
{
    struct vcpu *v = g->f.v;
    diff_guest_cpu(g, c->cpl);
    for (unsigned done = 0; done < c->len;) {
        unsigned at = c->start + done, n = c->len - done, room = 4096 - at % 4096;
        n = n < room ? n : room;
        fx_write(&g->f, g->gpa[at / 4096] + at % 4096, c->code + done, n);
        done += n;
    }
    memcpy(v->gpr, c->gpr, sizeof v->gpr);
    v->rip = diff_start(c);
    v->rflags = c->rflags | FL_FIXED1 | FL_IF;
    if (c->bits) {
        diff_guest_legacy(g, c);
    } else {
        v->seg[SEG_FS].base = c->fs_base;
        v->seg[SEG_GS].base = c->gs_base;
    }
    v->cr2 = 0;
    uint8_t img[DIFF_XSAVE];
    diff_fp_make(c->fp_seed, img);
    memcpy(v->fp_area, img, v->fp_host_mask & 0x80 ? DIFF_XSAVE : v->fp_host_mask & 4 ? 832 : 512);
    v->fp_saved = 1;
    v->exit = VCPU_EXIT_NONE;
    v->exit_reason[0] = 0;

    atomic_fetch_and(&v->events, ~(uint32_t)EV_STOP);
    g->running = true;
    g->f.engine->ops->run(g->f.engine, v);
    g->running = false;
    g->runs++;

    memcpy(r->gpr, v->gpr, sizeof r->gpr);
    r->rip = v->rip - 1;
    r->rflags = v->rflags;
    r->fs_base = v->seg[SEG_FS].base;
    r->gs_base = v->seg[SEG_GS].base;
    r->cr2 = v->cr2;
    r->error = 0;
    r->vector = EXC_GP; /* HLT is #GP(0) natively */
    for (unsigned i = 0; i < SEG_COUNT; i++)
        r->seg[i] = v->seg[i].sel;
    r->frame_at = 0;
    bool real = c->bits && c->world == DIFF_REAL;
    uint64_t h = v->rip - 1 - (g->sys + 0x2000);
    if (real)
        h = v->seg[SEG_CS].base == DIFF_REAL_HND ? v->rip - 1 : ~0ull;
    if (v->exit != VCPU_EXIT_HLT) {
        r->vector = v->exit == VCPU_EXIT_STOP ? DIFF_TIMEOUT : DIFF_OTHER;
        /* Real mode: a stack without room for a frame is a shutdown, and no news. */
        if (v->exit != VCPU_EXIT_STOP && v->exit_reason[0] &&
            !(real && v->exit == VCPU_EXIT_TRIPLE))
            fprintf(stderr, "engine: %s\n", v->exit_reason);
    } else if (h < 4096 && h % 16 == 0) {
        r->vector = (uint32_t)(h / 16);
        unsigned bytes = (unsigned)(g->sys + 0x6000 - v->gpr[RSP]);
        if (real) {
            uint16_t frame[3] = {0}; /* ip, cs, flags: on the code's own stack */
            bool big = v->seg[SEG_SS].attr & SEGA_DB;
            uint32_t sp = (uint32_t)v->gpr[RSP];
            r->frame_at = (uint32_t)v->seg[SEG_SS].base;
            r->frame_sp = sp;
            r->frame_wraps = !big;
            for (unsigned i = 0; i < 3; i++)
                ram_read(&g->f.ram, r->frame_at + (big ? sp + 2 * i : (uint16_t)(sp + 2 * i)),
                         &frame[i], 2);
            r->rip = frame[0];
            r->rflags = frame[2] | (v->rflags & ~0xffffull);
            r->gpr[RSP] = big ? sp + 6 : (sp & 0xffff0000) | (uint16_t)(sp + 6);
        } else if (diff_pae(g)) {
            uint32_t frame[10] = {0}; /* error, eip, cs, eflags, esp, ss; V86: es, ds, fs, gs */
            unsigned plain = c->world == DIFF_V86 ? 36 : 20;
            if (bytes == plain || bytes == plain + 4)
                ram_read(&g->f.ram, DIFF_SYS_GPA + 0x6000 - bytes, frame + (bytes == plain), bytes);
            r->error = frame[0];
            r->rip = frame[1];
            r->seg[SEG_CS] = (uint16_t)frame[2];
            r->rflags = frame[3];
            r->gpr[RSP] = frame[4];
            r->seg[SEG_SS] = (uint16_t)frame[5];
        } else {
            uint64_t frame[6] = {0}; /* error, rip, cs, rflags, rsp, ss */
            if (bytes == 40 || bytes == 48)
                ram_read(&g->f.ram, DIFF_SYS_GPA + 0x6000 - bytes, frame + (bytes == 40), bytes);
            r->error = (uint32_t)frame[0];
            r->rip = frame[1];
            r->seg[SEG_CS] = (uint16_t)frame[2];
            r->rflags = frame[3];
            r->gpr[RSP] = frame[4];
            r->seg[SEG_SS] = (uint16_t)frame[5];
        }
    }
    memset(r->xsave, 0, sizeof r->xsave);
    memcpy(r->xsave, v->fp_area,
           v->fp_host_mask & 0x80 ? DIFF_XSAVE
           : v->fp_host_mask & 4  ? 832
                                  : 512);
    if (!v->fp_host_mask)
        r->xsave[512] = 3;
    diff_fp_normalize(r->xsave);

    for (unsigned done = 0; done < c->len;) {
        unsigned at = c->start + done, n = c->len - done, room = 4096 - at % 4096;
        n = n < room ? n : room;
        fx_write(&g->f, g->gpa[at / 4096] + at % 4096, g->pristine[0], n);
        done += n;
    }
    if (real)
        diff_real_vectors(g);
    r->dirty = 0;
    for (unsigned p = 0; p < DIFF_PAGES; p++) {
        uint8_t *now = g->f.ram.base + g->gpa[p];
        if (memcmp(now, g->pristine[p], 4096)) {
            r->dirty |= 1u << p;
            memcpy(r->page[p], now, 4096);
            fx_write(&g->f, g->gpa[p], g->pristine[p], 4096);
        }
    }
}

#endif
