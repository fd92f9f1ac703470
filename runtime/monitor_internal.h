/*
 * What the monitor's files share: monitor.c has the socket and the thread, monitor_commands.c what
 * the commands do, monitor_input.c the keys and the mouse.
 */
#ifndef RINGSHIFT_RUNTIME_MONITOR_INTERNAL_H
#define RINGSHIFT_RUNTIME_MONITOR_INTERNAL_H

#include <pthread.h>
#include <stdint.h>

#include "runtime/error.h"
#include "runtime/machine.h"
#include "runtime/monitor_session.h"

#define MONITOR_KEYS_MAX 65536u

/* A key goes down or up, then nothing happens for wait_ms. */
struct key_step {
    uint16_t key;
    uint16_t wait_ms;
    bool down;
};

struct monitor {
    struct machine *machine;
    struct monitor_client *clients;
    unsigned client_count;
    int listen_fd, wake_fd;
    char path[108];
    uint64_t inode, device; /* of the socket's file */
    pthread_t thread;
    bool started;
    _Atomic bool ending;

    pthread_mutex_t event_lock; /* leaf: events come from under the machine lock */
    enum machine_event events[16];
    unsigned event_count;

    /* Keys to be typed, for one session at a time. */
    struct key_step *steps;
    unsigned step_count, step_next, steps_size;
    uint64_t step_due_ms;      /* monotonic */
    uint64_t step_patience_ms; /* until when the guest may leave keys unread */
    struct monitor_session *typist;

    uint8_t buttons; /* of the mouse, as the monitor holds them */
    uint64_t commands;
};

/* Sends an event to every client. */
void monitor_broadcast(struct monitor *mon, const char *event, json_t *data);

/* monitor_commands.c */
monitor_execute_fn monitor_execute;

/* monitor_input.c */
uint64_t monitor_now_ms(void);
int monitor_send_key(struct monitor *mon, struct monitor_session *s, json_t *args, char *err,
                     size_t errlen);
int monitor_type(struct monitor *mon, struct monitor_session *s, json_t *args, char *err,
                 size_t errlen);
int monitor_mouse(struct monitor *mon, json_t *args, char *err, size_t errlen);
int monitor_input_events(struct monitor *mon, json_t *args, char *err, size_t errlen);
/* Presses what is due; returns after how many ms to call again, -1: not before there are keys. */
int monitor_run_keys(struct monitor *mon);
/* The machine has ended: whoever types gets an answer, an error if keys are left to press. */
void monitor_end_keys(struct monitor *mon);
/* The session is going away: releases what it holds down. */
void monitor_forget_keys(struct monitor *mon, struct monitor_session *s);

#endif
