/*
 * A guest without a machine: RAM, identity page tables, an IDT whose handlers halt, one vCPU and
 * the translator. For tests that run a few instructions and look at the state.
 *
 * Layout of the 64 MiB of RAM: page tables at 1 MiB, GDT and IDT at 2 MiB, handlers at 0x210000
 * (vector n: HLT at 0x210000 + 16 n), code by convention at 4 MiB, data at 8 MiB, stack below 16 MiB.
 */
#ifndef RINGSHIFT_TESTS_BT_FIXTURE_H
#define RINGSHIFT_TESTS_BT_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpuid.h"
#include "cpu/fpu.h"
#include "cpu/platform.h"
#include "cpu/reset.h"
#include "mmu/mmu.h"
#include "mmu/ram.h"
#include "runtime/engine.h"

#define FX_RAM      (64ull << 20)
#define FX_PT       0x100000ull
#define FX_GDT      0x200000ull
#define FX_IDT      0x201000ull
#define FX_HANDLERS 0x210000ull
#define FX_CODE     0x400000ull
#define FX_DATA     0x800000ull
#define FX_STACK    0x1000000ull

struct bt_fixture {
    struct guest_ram ram;
    struct platform platform;
    struct cpu_model model;
    struct engine *engine;
    struct vcpu *v;
};

static uint32_t fx_pio_read(struct platform *p, uint16_t port, unsigned size)
{
    return 0xffffffffu;
}
static void fx_pio_write(struct platform *p, uint16_t port, unsigned size, uint32_t value)
{
}
static uint64_t fx_mmio_read(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size)
{
    return ~0ull;
}
static void fx_mmio_write(struct platform *p, struct vcpu *v, uint64_t gpa, unsigned size,
                          uint64_t value)
{
}
static int fx_intr_ack(struct platform *p, struct vcpu *v)
{
    v->events &= ~(uint32_t)EV_INTR;
    return -1;
}
static int fx_apic_read(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t *value)
{
    return -1;
}
static int fx_apic_write(struct platform *p, struct vcpu *v, uint32_t msr, uint64_t value)
{
    return -1;
}
static void fx_set_cr8(struct platform *p, struct vcpu *v, uint8_t t)
{
}
static uint8_t fx_get_cr8(struct platform *p, struct vcpu *v)
{
    return 0;
}
static const struct platform_ops fx_ops = {
    .pio_read = fx_pio_read,
    .pio_write = fx_pio_write,
    .mmio_read = fx_mmio_read,
    .mmio_write = fx_mmio_write,
    .intr_ack = fx_intr_ack,
    .apic_read_msr = fx_apic_read,
    .apic_write_msr = fx_apic_write,
    .set_cr8 = fx_set_cr8,
    .get_cr8 = fx_get_cr8,
};

static inline void fx_write(struct bt_fixture *f, uint64_t gpa, const void *data, uint64_t len)
{
    if (ram_write(&f->ram, gpa, data, len)) {
        fprintf(stderr, "fixture: write outside RAM\n");
        abort();
    }
}
static inline void fx_put64(struct bt_fixture *f, uint64_t gpa, uint64_t x)
{
    fx_write(f, gpa, &x, 8);
}

/* Page tables and descriptor tables. */
static inline void fx_reset_memory(struct bt_fixture *f)
{
    fx_put64(f, FX_PT, (FX_PT + 0x1000) | 7);
    fx_put64(f, FX_PT + 0x1000, (FX_PT + 0x2000) | 7);
    for (unsigned i = 0; i < FX_RAM >> 21; i++) {
        fx_put64(f, FX_PT + 0x2000 + 8 * i, (FX_PT + 0x3000 + i * 0x1000) | 7);
        for (unsigned j = 0; j < 512; j++)
            fx_put64(f, FX_PT + 0x3000 + i * 0x1000 + 8 * j, ((uint64_t)i << 21 | j << 12) | 0x67);
    }
    fx_put64(f, FX_GDT, 0);
    fx_put64(f, FX_GDT + 8, 0);
    fx_put64(f, FX_GDT + 16, 0x00af9b000000ffffull); /* 0x10: 64-bit code */
    fx_put64(f, FX_GDT + 24, 0x00cf93000000ffffull); /* 0x18: data */
    for (unsigned i = 0; i < 256; i++) {
        uint64_t h = FX_HANDLERS + 16 * i;
        fx_put64(f, FX_IDT + 16 * i, (h & 0xffff) | 0x10 << 16 | 0x8e00ull << 32 |
                                         (h >> 16 & 0xffff) << 48);
        fx_put64(f, FX_IDT + 16 * i + 8, h >> 32);
        fx_write(f, h, "\xf4", 1);
    }
}

/* The boot state. */
static inline void fx_reset_cpu(struct bt_fixture *f)
{
    struct vcpu *v = f->v;
    vcpu_reset(v);
    vcpu_setup_long64(v, FX_CODE, 0, FX_PT, FX_GDT, 31, 0x10, 0x18);
    v->idtr.base = FX_IDT;
    v->idtr.limit = 0xfff;
    v->gpr[RSP] = FX_STACK;
    v->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT;
    if (v->model->xcr0_valid) {
        v->cr4 |= CR4_OSXSAVE;
        v->xcr0 = v->model->xcr0_valid;
    }
    mmu_flush_all(v);
}

/* Both; call again to reset. */
static inline void fx_reset(struct bt_fixture *f)
{
    fx_reset_memory(f);
    fx_reset_cpu(f);
}

static inline void fx_create(struct bt_fixture *f, const struct engine_config *cfg)
{
    char err[256] = "";
    memset(f, 0, sizeof *f);
    f->platform.ops = &fx_ops;
    f->platform.tsc_hz = 1000000000;
    cpu_model_host(&f->model, 1, f->platform.tsc_hz);
    f->v = vcpu_alloc();
    memset(f->v, 0, sizeof *f->v);
    f->v->platform = &f->platform;
    f->v->model = &f->model;
    f->v->ram = &f->ram;
    if (ram_create(&f->ram, FX_RAM) || bt_engine_ops.create(cfg, &f->ram, &f->engine, err, 256) ||
        vcpu_fp_init(f->v)) {
        fprintf(stderr, "fixture: %s\n", err);
        abort();
    }
    mmu_stlb_init(f->v);
    if (f->engine->ops->vcpu_init(f->engine, f->v))
        abort();
    fx_reset(f);
}

static inline void fx_destroy(struct bt_fixture *f)
{
    f->engine->ops->vcpu_destroy(f->engine, f->v);
    f->engine->ops->destroy(f->engine);
    vcpu_fp_destroy(f->v);
    ram_destroy(&f->ram);
    vcpu_free(f->v);
}

/* Runs from v->rip to the next HLT (or another exit). Returns the vector of the handler it halted
 * in, -1 for a plain HLT, -2 for any other exit. */
static inline int fx_run(struct bt_fixture *f)
{
    f->engine->ops->run(f->engine, f->v);
    f->v->halted = false;
    if (f->v->exit != VCPU_EXIT_HLT)
        return -2;
    uint64_t at = f->v->rip - 1 - FX_HANDLERS;
    return at < 256 * 16 && at % 16 == 0 ? (int)(at / 16) : -1;
}

#endif
