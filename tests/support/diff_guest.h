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

#define DIFF_SYS     0xffffb7a5d1230000ull /* GDT, IDT, handlers, TSS, two pages of stack */
#define DIFF_SYS_GPA 0x3000000ull
#define DIFF_PT_GPA  0x3100000ull
#define DIFF_SYS_IDT (DIFF_SYS + 0x1000)
#define DIFF_SYS_HND (DIFF_SYS + 0x2000)
#define DIFF_SYS_TSS (DIFF_SYS + 0x3000)
#define DIFF_SYS_SP  (DIFF_SYS + 0x6000)

struct diff_guest {
    struct bt_fixture f;
    uint64_t gpa[DIFF_PAGES];
    uint8_t pristine[DIFF_PAGES][4096];
    const uint8_t *pristine_ptr[DIFF_PAGES];
    uint64_t pt_next;
    /* The kicker: a thread that ends runaway cases and, on demand, interrupts all the time. */
    pthread_t thread;
    _Atomic bool quit, kicks, running;
    _Atomic uint64_t runs;
    _Atomic uint32_t patience_ms; /* how long a case may run */
};

static inline uint64_t diff_pt_entry(struct diff_guest *g, uint64_t table, unsigned index)
{
    uint64_t e;
    ram_read(&g->f.ram, table + 8 * index, &e, 8);
    if (!(e & 1)) {
        e = g->pt_next | 7;
        g->pt_next += 4096;
        fx_put64(&g->f, table + 8 * index, e);
    }
    return e & 0x000ffffffffff000ull;
}

static inline void diff_map(struct diff_guest *g, uint64_t gva, uint64_t gpa, uint64_t flags)
{
    uint64_t t = DIFF_PT_GPA;
    for (int shift = 39; shift > 12; shift -= 9)
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
        diff_map(g, DIFF_SYS + 0x1000 * i, DIFF_SYS_GPA + 0x1000 * i, i == 2 ? 3 : 3 | 1ull << 63);
    for (unsigned i = 0; i < DIFF_PAGES; i++) {
        /* No two neighbours in GVA are neighbours in GPA. */
        g->gpa[i] = FX_DATA + 0x3000 * (uint64_t)((i * 5) % 13) + 0x1000;
        diff_map(g, diff_pages[i].gva, g->gpa[i],
                 5 | (diff_pages[i].flags & DP_W ? 2 : 0) |
                     (diff_pages[i].flags & DP_X ? 0 : 1ull << 63));
        diff_fill_page(i, g->pristine[i]);
        g->pristine_ptr[i] = g->pristine[i];
        fx_write(f, g->gpa[i], g->pristine[i], 4096);
    }
    static const uint64_t gdt[] = {0,
                                   0,
                                   0x00af9b000000ffffull,
                                   0x00cf93000000ffffull,
                                   0,
                                   0x00cff3000000ffffull,
                                   0x00affb000000ffffull};
    fx_write(f, DIFF_SYS_GPA, gdt, sizeof gdt);
    for (unsigned i = 0; i < 256; i++) {
        uint64_t h = DIFF_SYS_HND + 16 * i, dpl = i == 3 ? 0xee00 : 0x8e00;
        fx_put64(f, DIFF_SYS_GPA + 0x1000 + 16 * i,
                 (h & 0xffff) | 0x10 << 16 | (dpl | 1) << 32 | (h >> 16 & 0xffff) << 48);
        fx_put64(f, DIFF_SYS_GPA + 0x1000 + 16 * i + 8, h >> 32);
        fx_write(f, DIFF_SYS_GPA + 0x2000 + 16 * i, "\xf4", 1);
    }
    uint64_t sp = DIFF_SYS_SP;
    fx_write(f, DIFF_SYS_GPA + 0x3000 + 4, &sp, 8);
    fx_write(f, DIFF_SYS_GPA + 0x3000 + 36, &sp, 8);
    uint16_t iomap = 0x100;
    fx_write(f, DIFF_SYS_GPA + 0x3000 + 102, &iomap, 2);
    mmu_flush_all(f->v);
}

/* The registers that no case touches itself, but that exceptions change. */
static inline void diff_guest_cpu(struct diff_guest *g, unsigned cpl)
{
    struct vcpu *v = g->f.v;
    v->gdtr = (struct dtable){DIFF_SYS, 55};
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

static inline void diff_guest_start(struct diff_guest *g, const struct engine_config *cfg)
{
    memset(g, 0, sizeof *g);
    g->patience_ms = 250;
    fx_create(&g->f, cfg);
    diff_guest_setup(g);
    diff_guest_cpu(g, 0);
    pthread_create(&g->thread, NULL, diff_guest_thread, g);
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
    v->seg[SEG_FS].base = c->fs_base;
    v->seg[SEG_GS].base = c->gs_base;
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
    uint64_t h = v->rip - 1 - DIFF_SYS_HND;
    if (v->exit != VCPU_EXIT_HLT) {
        r->vector = v->exit == VCPU_EXIT_STOP ? DIFF_TIMEOUT : DIFF_OTHER;
        if (v->exit != VCPU_EXIT_STOP && v->exit_reason[0])
            fprintf(stderr, "engine: %s\n", v->exit_reason);
    } else if (h < 4096 && h % 16 == 0) {
        uint64_t frame[6] = {0}; /* error, rip, cs, rflags, rsp, ss */
        unsigned bytes = (unsigned)(DIFF_SYS_SP - v->gpr[RSP]);
        if (bytes == 40 || bytes == 48)
            ram_read(&g->f.ram, DIFF_SYS_GPA + 0x6000 - bytes, frame + (bytes == 40), bytes);
        r->vector = (uint32_t)(h / 16);
        r->error = (uint32_t)frame[0];
        r->rip = frame[1];
        r->rflags = frame[3];
        r->gpr[RSP] = frame[4];
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
