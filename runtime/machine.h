/*
 * The machine: one PC with its RAM, buses, devices, vCPUs and the threads that run them.  It owns
 * all of these; nothing is global, so a process can hold several.
 *
 * Threads: one per vCPU (vCPU 0 runs on the thread that calls machine_run()) and the I/O thread
 * (event_loop.h).
 *
 * Lock order: the machine lock (`lock`) protects all device state, the buses, the timers and the
 * shutdown state.  It is taken by the platform callbacks on behalf of a vCPU and by the event loop
 * around each callback.  Under it only leaf locks of backends may be taken.  No engine function is
 * called under it but kick(), which is async-signal-safe and takes no lock.
 */
#ifndef RINGSHIFT_RUNTIME_MACHINE_H
#define RINGSHIFT_RUNTIME_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <asm/bootparam.h>

#include "runtime/engine.h"

struct chardev;
struct drive_set;
struct event_loop;
struct machine;

#define MACHINE_MAX_CPUS 64

enum machine_result {
    MACHINE_POWEROFF,     /* the guest switched itself off */
    MACHINE_REBOOT,       /* the guest asked for a reset and no_reboot is set */
    MACHINE_TRIPLE_FAULT, /* a vCPU shut down; the message says where */
    MACHINE_QUIT,         /* machine_quit() */
    MACHINE_ERROR,        /* the host or the loader failed, or the guest entered a mode that
                             is not supported; the message is one sentence */
};

struct machine_config {
    uint64_t memory; /* bytes of RAM */
    unsigned cpus;   /* 1..MACHINE_MAX_CPUS */
    const struct engine_ops *engine;
    struct engine_config engine_cfg;
    struct chardev *serial0; /* COM1's backend, or NULL; not owned, outlives the machine */
    const struct drive_set *drives; /* or NULL; not owned, outlives the machine */
    bool baseline_cpu;       /* CPUID shows cpu_model_baseline(), not cpu_model_host() */
    bool no_reboot;          /* end machine_run() on a guest reset instead of restarting */
    /*
     * Puts the guest into RAM and sets the boot state of vCPU 0, which has just been reset.
     * Called by machine_run() on vCPU 0's thread before the first start and after every reset,
     * without the lock (nothing else runs then).  RAM is zero the first time and holds what the
     * guest left after a reset; the area machine_e820() gives as ACPI is already filled and must
     * be left alone.  0, or a negative errno with one sentence in err.
     */
    int (*load)(struct machine *m, void *opaque, char *err, unsigned errlen);
    void *load_opaque;
};

/* Builds the machine.  0 and *out, or a negative errno with one sentence in err. */
int machine_create(struct machine **out, const struct machine_config *cfg, char *err,
                   unsigned errlen);
void machine_destroy(struct machine *m);

/* Runs the guest on this thread until it ends.  msg gets one sentence ("" if nothing to say).
 * Call at most once. */
enum machine_result machine_run(struct machine *m, char *msg, unsigned msglen);

/* Asks machine_run() to return MACHINE_QUIT soon.  Any thread, with or without the lock;
 * async-signal-safe. */
void machine_quit(struct machine *m);

/* Presses the ACPI power button.  Lock held (from an event-loop callback). */
void machine_power_button(struct machine *m);

/* -- For the loader, the terminal and --stats. ------------------------------------------------- */
struct guest_ram *machine_ram(struct machine *m);
struct vcpu *machine_vcpu(struct machine *m, unsigned index);
struct event_loop *machine_event_loop(struct machine *m);
struct engine *machine_engine(struct machine *m);
void machine_lock(struct machine *m);
void machine_unlock(struct machine *m);

/* The memory map for boot_params or PVH: returns how many entries there are (at most `max` are
 * written), sorted by address.  Types are E820_TYPE_*: 1 RAM, 2 reserved, 3 ACPI. */
unsigned machine_e820(const struct machine *m, struct boot_e820_entry *out, unsigned max);

/* GPA of the ACPI RSDP (for boot_params.acpi_rsdp_addr or the PVH start info). */
uint64_t machine_acpi_rsdp(const struct machine *m);

void machine_print_stats(struct machine *m, FILE *out);

#endif
