/*
 * What a frontend is to the display (display.h) and what the display is to it.  Everything is
 * called on the display's thread.
 */
#ifndef RINGSHIFT_RUNTIME_DISPLAY_FRONTEND_H
#define RINGSHIFT_RUNTIME_DISPLAY_FRONTEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct display;
struct display_options;

struct display_frontend {
    /* Opens it; pixels are width x height times 0x00RRGGBB, and stay valid until resize().  0 and
     * *state, or a negative errno with one sentence in err. */
    int (*open)(struct display *d, const struct display_options *o, uint32_t *pixels,
                unsigned width, unsigned height, void **state, char *err, size_t errlen);
    void (*close)(void *state);
    /* Whether anybody looks: if not, nothing is drawn. */
    bool (*watched)(void *state);
    /* Deals with what happened (connections, keys), and waits for more until wake_fd is readable
     * or timeout_ms have passed (-1: for ever). */
    void (*wait)(void *state, int wake_fd, int timeout_ms);
    /* The picture has another size; the old pixels are still valid until this returns. */
    int (*resize)(void *state, uint32_t *pixels, unsigned width, unsigned height);
    /* These pixels have changed. */
    void (*update)(void *state, unsigned x, unsigned y, unsigned width, unsigned height);
};

/* For frontends: input for the guest. */
void display_key(struct display *d, unsigned key, bool down);
void display_mouse(struct display *d, int dx, int dy, int dz, uint8_t buttons);
/* Nobody is there any more: releases all keys and buttons. */
void display_release_all(struct display *d);
/* The window was closed: ends the virtual machine. */
void display_quit(struct display *d);

extern const struct display_frontend display_vnc, display_sdl;

#endif
