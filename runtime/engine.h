/*
 * The seam between the machine and what runs its vCPUs.  The binary translator is one engine; KVM
 * can be another.  The machine owns vCPU threads, devices and memory; an engine only executes.
 */
#ifndef RINGSHIFT_RUNTIME_ENGINE_H
#define RINGSHIFT_RUNTIME_ENGINE_H

#include <stdint.h>
#include <stdio.h>

#include "cpu/vcpu.h"

struct guest_ram;
struct engine;

enum mem_mode { MEM_MIXED, MEM_SOFT, MEM_WINDOW };

struct engine_config {
    enum mem_mode mem_mode;  /* how guest memory is shadowed (docs/architecture.md)             */
    int hot_threshold; /* executions of an access up to the second tier; 0: as the mode has it   */
    uint64_t tick_cycles; /* between looks at which links to open; 0: the usual; for counting tests */
    bool huge_pages;         /* guest RAM in the host's huge pages where that may pay           */
    bool verify;             /* check every emitted block with the independent verifier         */
    bool chaos;              /* tests: tiny cache, spurious flushes and signals, random choices */
    uint64_t cache_size;     /* bytes of code cache, 0 = default                                */
    void (*on_fatal)(void);  /* async-signal-safe: called before a crash of ours ends the process */
    FILE *trace;             /* NULL, or where --trace writes                                   */
    uint32_t trace_mask;     /* TRACE_* of runtime/trace.h                                      */
    uint64_t trace_lo, trace_hi; /* guest addresses to trace, inclusive                         */
    /* NULL, or called on the vCPU's thread, its state exact and FP saved, when code at reached_gva
     * is about to be translated (at most a few times: whenever that is).                        */
    void (*reached)(void *opaque);
    void *reached_opaque;
    uint64_t reached_gva;
};

struct engine_ops {
    const char *name;
    /* Creates an engine for this RAM.  Returns 0 and *out, or a negative errno with one sentence
     * in err (size errlen). */
    int (*create)(const struct engine_config *cfg, struct guest_ram *ram, struct engine **out,
                  char *err, unsigned errlen);
    void (*destroy)(struct engine *e);
    /* Attaches a reset vCPU; called on the thread that will run it.  0 or negative errno. */
    int (*vcpu_init)(struct engine *e, struct vcpu *v);
    void (*vcpu_destroy)(struct engine *e, struct vcpu *v);
    /* Runs the guest on this thread until v->exit says why it came back. */
    void (*run)(struct engine *e, struct vcpu *v);
    /* Makes run() notice v->events soon.  Any thread; async-signal-safe. */
    void (*kick)(struct engine *e, struct vcpu *v);
    /* A signal that, sent to a vCPU's thread by a timer (SI_TIMER), raises EV_TIMER as kick() would: run()
     * then calls the platform's run_timers.  0: there is none. */
    int timer_signal;
    /* Human-readable counters for --stats. */
    void (*print_stats)(struct engine *e, FILE *out);
};

struct engine {
    const struct engine_ops *ops;
};

extern const struct engine_ops bt_engine_ops; /* translator/engine.c */

#endif
