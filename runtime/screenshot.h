/*
 * The guest's screen as a file or as text.
 */
#ifndef RINGSHIFT_RUNTIME_SCREENSHOT_H
#define RINGSHIFT_RUNTIME_SCREENSHOT_H

#include <stddef.h>

struct machine;

enum screenshot_format { SCREENSHOT_PNG, SCREENSHOT_PPM, SCREENSHOT_TEXT };

/* "png", "ppm" or "text".  0 or -EINVAL. */
int screenshot_format_by_name(const char *name, enum screenshot_format *out);

/* Writes the screen to a file, which appears whole or not at all.  0, or a negative errno with one
 * sentence in err. */
int screenshot_save(struct machine *m, const char *path, enum screenshot_format format, char *err,
                    size_t errlen);

/* The text screen (vga_text()), to be freed.  0, or a negative errno with one sentence in err. */
int screenshot_text(struct machine *m, char **out, char *err, size_t errlen);

#endif
