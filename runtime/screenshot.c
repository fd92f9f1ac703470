/* The screen as a file or as text: see screenshot.h. */
#include "runtime/screenshot.h"

#include <errno.h>
#include <fcntl.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/vga.h"
#include "runtime/error.h"
#include "runtime/machine.h"

static int no_screen(char *err, size_t errlen)
{
    return fail_with(err, errlen, -ENODEV, "this machine has no screen; run it with --vga std");
}

int screenshot_format_by_name(const char *name, enum screenshot_format *out)
{
    static const char *const names[] = {
        [SCREENSHOT_PNG] = "png", [SCREENSHOT_PPM] = "ppm", [SCREENSHOT_TEXT] = "text"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!strcmp(name, names[i])) {
            *out = (enum screenshot_format)i;
            return 0;
        }
    }
    return -EINVAL;
}

int screenshot_text(struct machine *m, char **out, char *err, size_t errlen)
{
    struct vga_regs regs;
    const uint8_t *vram;
    char *text;
    int len;

    if (!machine_screen(m, &regs, &vram))
        return no_screen(err, errlen);
    text = malloc(VGA_TEXT_MAX + 1);
    if (!text)
        return fail_with(err, errlen, -ENOMEM, "no memory for the screen's text");
    len = vga_text(&regs, vram, text, VGA_TEXT_MAX);
    if (len < 0) {
        free(text);
        return fail_with(err, errlen, len,
                         "the screen is in a graphics mode and has no characters; take a picture");
    }
    text[len] = '\0';
    *out = text;
    return 0;
}

/* -- Pictures ---------------------------------------------------------------------------------- */

/* A row of 0x00RRGGBB as bytes R, G, B. */
static void rgb_row(const uint32_t *pixels, unsigned width, uint8_t *out)
{
    for (unsigned x = 0; x < width; x++) {
        *out++ = (uint8_t)(pixels[x] >> 16);
        *out++ = (uint8_t)(pixels[x] >> 8);
        *out++ = (uint8_t)pixels[x];
    }
}

static int write_ppm(FILE *f, const struct vga_geometry *g, const uint32_t *pixels, uint8_t *row)
{
    fprintf(f, "P6\n%u %u\n255\n", g->width, g->height);
    for (unsigned y = 0; y < g->height; y++, pixels += g->width) {
        rgb_row(pixels, g->width, row);
        fwrite(row, 3, g->width, f);
    }
    return ferror(f) ? -EIO : 0;
}

static int write_png(FILE *f, const struct vga_geometry *g, const uint32_t *pixels, uint8_t *row)
{
    png_struct *volatile png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_info *volatile info = png ? png_create_info_struct(png) : NULL;
    volatile int err = png && info ? 0 : -ENOMEM;

    if (!err) {
        if (setjmp(png_jmpbuf(png))) {
            err = ferror(f) ? -EIO : -ENOMEM;
        } else {
            png_init_io(png, f);
            png_set_compression_level(png, 3);
            png_set_IHDR(png, info, g->width, g->height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                         PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
            png_write_info(png, info);
            for (unsigned y = 0; y < g->height; y++) {
                rgb_row(pixels + (size_t)y * g->width, g->width, row);
                png_write_row(png, row);
            }
            png_write_end(png, NULL);
        }
    }
    png_struct *p = png;
    png_info *i = info;
    png_destroy_write_struct(&p, &i);
    return err;
}

static int write_picture(struct machine *m, FILE *f, enum screenshot_format format, char *err,
                         size_t errlen)
{
    struct vga_regs regs;
    struct vga_geometry g;
    const uint8_t *vram;
    uint32_t *pixels;
    uint8_t *row;
    int code;

    if (!machine_screen(m, &regs, &vram))
        return no_screen(err, errlen);
    vga_geometry(&regs, &g);
    pixels = malloc((size_t)g.width * g.height * sizeof(*pixels));
    row = malloc((size_t)g.width * 3);
    if (pixels && row) {
        vga_render(&regs, vram, &g, true, pixels);
        code = format == SCREENSHOT_PNG ? write_png(f, &g, pixels, row)
                                        : write_ppm(f, &g, pixels, row);
    } else {
        code = -ENOMEM;
    }
    free(row);
    free(pixels);
    return code;
}

static int write_content(struct machine *m, FILE *f, enum screenshot_format format, char *err,
                         size_t errlen)
{
    char *text;
    int code;

    if (format != SCREENSHOT_TEXT)
        return write_picture(m, f, format, err, errlen);
    code = screenshot_text(m, &text, err, errlen);
    if (code)
        return code;
    fputs(text, f);
    free(text);
    return ferror(f) ? -EIO : 0;
}

int screenshot_save(struct machine *m, const char *path, enum screenshot_format format, char *err,
                    size_t errlen)
{
    char temporary[4096];
    struct stat st;
    FILE *f;
    int fd, code;

    err[0] = '\0';
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return fail_with(err, errlen, -EINVAL, "%s is no regular file; name another one", path);
    if ((size_t)snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= sizeof(temporary))
        return fail_with(err, errlen, -ENAMETOOLONG, "the file's name is too long");
    fd = mkostemp(temporary, O_CLOEXEC);
    f = fd < 0 ? NULL : fdopen(fd, "w");
    if (!f) {
        code = -errno;
        if (fd >= 0)
            close(fd);
        return fail_with(err, errlen, code, "cannot write %s: %s", path, strerror(-code));
    }
    fchmod(fd, 0644);
    code = write_content(m, f, format, err, errlen);
    if (fclose(f) && !code)
        code = -errno;
    if (!code && rename(temporary, path))
        code = -errno;
    if (code) {
        unlink(temporary);
        if (!err[0])
            fail_with(err, errlen, code, "cannot write %s: %s", path, strerror(-code));
    }
    return code;
}
