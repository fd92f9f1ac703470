/*
 * The machine: one PC with its RAM, buses, devices, vCPUs and the threads that run them.  It owns
 * all of these; nothing is global, so a process can hold several.
 *
 * Threads: one per vCPU (vCPU 0 runs on the thread that calls machine_run()) and the I/O thread
 * (event_loop.h).
 *
 * Lock order: the machine lock (`lock`) protects all device state, the buses, the timers and the
 * shutdown state.  It is taken by the platform callbacks on behalf of a vCPU and by the event loop
 * around each callback; light code takes it if it is free at once (light_platform.h).  Under it only
 * leaf locks of backends may be taken.  No engine function is called under it but kick(), which is
 * async-signal-safe and takes no lock.
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
struct firmware;
struct drive_set;
struct event_loop;
struct machine;
struct vga_regs;

#define MACHINE_MAX_CPUS 64

enum machine_result {
    MACHINE_POWEROFF,     /* the guest switched itself off */
    MACHINE_REBOOT,       /* the guest asked for a reset and no_reboot is set */
    MACHINE_TRIPLE_FAULT, /* a vCPU shut down; the message says where */
    MACHINE_QUIT,         /* machine_quit() */
    MACHINE_EXIT,         /* a write to the debug exit port: machine_exit_code() */
    MACHINE_REFUSED,      /* the host refuses a thread; the message says so */
    MACHINE_ERROR,        /* the host or the loader failed, or the guest entered a mode that
                             is not supported; the message is one sentence */
};

struct machine_config {
    uint64_t memory; /* bytes of RAM */
    unsigned cpus;   /* 1..MACHINE_MAX_CPUS */
    const struct engine_ops *engine;
    struct engine_config engine_cfg;
    struct chardev *serial0;        /* COM1's backend, or NULL; not owned, outlives the machine */
    const struct drive_set *drives; /* or NULL; not owned, outlives the machine */
    bool rng;                       /* a virtio entropy device */
    /*
     * NULL: the machine starts in what `load` sets up.  Else the guest starts in this firmware, at
     * the reset vector; `load` is not called.  Not owned, outlives the machine.
     */
    struct firmware *firmware;
    const char *boot_order; /* letters: a floppy, c disk, d CD, n network; NULL: "cad" */
    bool boot_menu;         /* the firmware offers a choice of what to boot */
    bool serial_console;    /* SeaBIOS shows its screen on COM1, too */
    /* Output on the debug consoles (ports 0xe9 and 0x402), or NULL.  Machine lock held. */
    void (*debugcon)(void *opaque, const char *text, size_t len);
    void *debugcon_opaque;
    bool baseline_cpu;              /* CPUID shows cpu_model_baseline(), not cpu_model_host() */
    bool no_reboot;                 /* end machine_run() on a guest reset instead of restarting */
    bool stats;                     /* keep books of the vCPU threads' time (host_time.h) */
    bool vga;                       /* a VGA, and keyboard and mouse at the 8042 */
    const void *vga_rom; /* the VGA's BIOS, or NULL; used only while the machine is created */
    uint32_t vga_rom_len;
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

/* After MACHINE_EXIT: what the guest said, (value << 1) | 1. */
int machine_exit_code(const struct machine *m);

/* Asks machine_run() to return MACHINE_QUIT soon.  Any thread, with or without the lock;
 * async-signal-safe. */
void machine_quit(struct machine *m);

/* Presses the ACPI power button.  Lock held (from an event-loop callback). */
void machine_power_button(struct machine *m);

/* Pulls the reset line: the guest starts anew, or machine_run() returns MACHINE_REBOOT under
 * no_reboot.  Any thread, with or without the lock. */
void machine_reset(struct machine *m);

/*
 * Stops the vCPUs and the guest's clocks (TSC, PIT, local APIC timer, PM timer; the RTC is the
 * host's wall clock and goes on) and waits until they have stopped.  cont lets them go on as if no
 * time had passed.  Both do nothing if it is so already.  From one thread that is no vCPU's,
 * without the lock.
 */
void machine_stop(struct machine *m);
void machine_cont(struct machine *m);
/* The same without telling the listener: for a look at the guest's state.  hold returns false, and
 * release need not be called, if the machine was stopped already. */
bool machine_hold(struct machine *m);
void machine_release(struct machine *m);
/* Whether machine_stop() is in effect.  Any thread. */
bool machine_stopped(const struct machine *m);

/* -- Screen, keyboard and mouse; without a VGA there are none. ----------------------------------
 */
bool machine_has_screen(const struct machine *m);
/* Copies what the picture depends on, and gives video memory, which can be read without the lock as
 * long as the machine lives.  False without a VGA.  Any thread, without the lock. */
bool machine_screen(struct machine *m, struct vga_regs *regs, const uint8_t **vram);
/* A key (KEY_* of <linux/input-event-codes.h>) goes down or up.  False if the keyboard has no such
 * key.  Without the lock. */
bool machine_key(struct machine *m, unsigned key, bool down);
/* The mouse moves by dx to the right and dy down, its wheel by dz clicks towards the user, and has
 * these buttons (enum ps2_button) held.  Without the lock. */
void machine_mouse(struct machine *m, int dx, int dy, int dz, uint8_t buttons);
/* How many bytes of keys the guest has not read yet: who types waits for it. Without the lock. */
unsigned machine_keys_pending(struct machine *m);

/* -- News. ------------------------------------------------------------------------------------- */
enum machine_event {
    MACHINE_EVENT_STOP,
    MACHINE_EVENT_RESUME,
    MACHINE_EVENT_RESET,
    MACHINE_EVENT_POWERDOWN, /* the power button was pressed */
    MACHINE_EVENT_SHUTDOWN,  /* machine_run() is about to return */
};
/* Calls event(opaque, what) for each, on whatever thread, perhaps under the lock: it must not call
 * back.  One listener; set before machine_run(). */
void machine_set_listener(struct machine *m, void (*event)(void *opaque, enum machine_event what),
                          void *opaque);

/* -- For the loader, the terminal and --stats. ------------------------------------------------- */
struct guest_ram *machine_ram(struct machine *m);
struct vcpu *machine_vcpu(struct machine *m, unsigned index);
struct event_loop *machine_event_loop(struct machine *m);
/* May be NULL.  Media are changed through drive.h. */
const struct drive_set *machine_drives(const struct machine *m);
struct engine *machine_engine(struct machine *m);
void machine_lock(struct machine *m);
void machine_unlock(struct machine *m);

/* The memory map for boot_params or PVH: returns how many entries there are (at most `max` are
 * written), sorted by address.  Types are E820_TYPE_*: 1 RAM, 2 reserved, 3 ACPI. */
unsigned machine_e820(const struct machine *m, struct boot_e820_entry *out, unsigned max);

/* What a boot loader says about the screen: text mode, or nothing (zeros) without a VGA. */
void machine_screen_info(const struct machine *m, struct screen_info *out);

/* GPA of the ACPI RSDP (for boot_params.acpi_rsdp_addr or the PVH start info). */
uint64_t machine_acpi_rsdp(const struct machine *m);

void machine_print_stats(struct machine *m, FILE *out);

#endif
