/*
 * Ways to watch the guest's screen and to be its keyboard and mouse: `--display none|vnc|sdl`.
 *
 * A thread draws the screen about 30 times a second while somebody watches, compares it with what
 * was shown before and hands the rectangles that changed to a frontend (display_vnc.c,
 * display_sdl.c).  It takes the machine lock to copy the VGA's registers and to pass input on, and
 * for nothing else.
 */
#ifndef RINGSHIFT_RUNTIME_DISPLAY_H
#define RINGSHIFT_RUNTIME_DISPLAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

struct display;
struct machine;

enum display_kind { DISPLAY_NONE, DISPLAY_VNC, DISPLAY_SDL };

struct display_options {
    enum display_kind kind;
    uint32_t address; /* VNC: IPv4 address, host byte order */
    uint16_t port;
    char password_file[4096]; /* VNC: "": no password */
};

/* none | vnc[=ADDRESS:PORT][,password-file=FILE] | sdl.  0, or -EINVAL with one sentence in err. */
int display_parse(struct display_options *out, const char *text, char *err, size_t errlen);

/* A VNC server that other machines reach and that asks for no password: whoever runs it should know. */
bool display_unprotected(const struct display_options *o);

/* Opens the window, or listens; for DISPLAY_NONE, *out is NULL.  Before machine_run(), and the
 * machine has a screen.  0, or a negative errno with one sentence in err (-ENOTSUP: this build or
 * this host lacks the library). */
int display_create(struct display **out, struct machine *m, const struct display_options *o,
                   char *err, size_t errlen);
/* After machine_run(), before machine_destroy().  NULL is no display. */
void display_destroy(struct display *d);

#endif
