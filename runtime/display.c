/* The display's thread: see display.h. */
#include "runtime/display.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "devices/vga.h"
#include "runtime/display_frontend.h"
#include "runtime/error.h"
#include "runtime/machine.h"

#define FRAME_MS    33
#define BLINK_MS    266 /* half a period of the cursor */
#define BAND        16u /* lines that are compared at once */
#define KEYS        256u
#define VNC_ADDRESS 0x7f000001u
#define VNC_PORT    5900

struct display {
    struct machine *machine;
    const struct display_frontend *frontend;
    struct display_options options;
    void *state;
    pthread_t thread;
    bool started;
    _Atomic bool ending;
    int wake_fd;
    unsigned width, height;
    uint32_t *shown, *drawn; /* what the frontend has, and the frame being made */
    bool key_down[KEYS];
    uint8_t buttons;

    /* The thread's start: whether the frontend opened. */
    pthread_mutex_t lock;
    pthread_cond_t opened_cond;
    bool opened;
    int open_code;
    char *err;
    size_t errlen;
};

/* -- Options ----------------------------------------------------------------------------------- */

static int parse_address(struct display_options *o, const char *text, size_t len, char *err,
                         size_t errlen)
{
    char copy[64], *colon, *end;
    struct in_addr address;
    unsigned long port;

    if (len < sizeof(copy)) {
        memcpy(copy, text, len);
        copy[len] = '\0';
        colon = strrchr(copy, ':');
        if (colon) {
            *colon = '\0';
            port = strtoul(colon + 1, &end, 10);
            if (!strcmp(copy, "localhost"))
                strcpy(copy, "127.0.0.1");
            if (colon[1] >= '0' && colon[1] <= '9' && !*end && port >= 1 && port <= 65535 &&
                inet_pton(AF_INET, copy, &address) == 1) {
                o->address = ntohl(address.s_addr);
                o->port = (uint16_t)port;
                return 0;
            }
        }
    }
    return fail_with(
        err, errlen, -EINVAL,
        "--display vnc= takes an IPv4 address and a TCP port, such as 127.0.0.1:5901, not "
        "'%.*s'",
        (int)len, text);
}

int display_parse(struct display_options *out, const char *text, char *err, size_t errlen)
{
    static const char password[] = "password-file=";

    *out = (struct display_options){.address = VNC_ADDRESS, .port = VNC_PORT};
    if (!strcmp(text, "none"))
        return 0;
    if (!strcmp(text, "sdl")) {
        out->kind = DISPLAY_SDL;
        return 0;
    }
    if (strncmp(text, "vnc", 3) || (text[3] && text[3] != '=' && text[3] != ','))
        return fail_with(err, errlen, -EINVAL, "--display knows none, vnc and sdl, not '%s'", text);
    out->kind = DISPLAY_VNC;
    text += 3;
    if (*text == '=') {
        size_t len = strcspn(text + 1, ",");
        int code = parse_address(out, text + 1, len, err, errlen);

        if (code)
            return code;
        text += 1 + len;
    }
    if (!*text)
        return 0;
    text++;
    if (strncmp(text, password, sizeof(password) - 1) || !text[sizeof(password) - 1] ||
        strlen(text) >= sizeof(out->password_file))
        return fail_with(err, errlen, -EINVAL,
                         "--display vnc takes password-file=FILE after a comma, not '%s'", text);
    strcpy(out->password_file, text + sizeof(password) - 1);
    return 0;
}

bool display_unprotected(const struct display_options *o)
{
    return o->kind == DISPLAY_VNC && !o->password_file[0] &&
           o->address >> 24 != INADDR_LOOPBACK >> 24;
}

/* -- Input ------------------------------------------------------------------------------------- */

void display_key(struct display *d, unsigned key, bool down)
{
    if (key >= KEYS)
        return;
    d->key_down[key] = down;
    machine_key(d->machine, key, down);
}

void display_mouse(struct display *d, int dx, int dy, int dz, uint8_t buttons)
{
    d->buttons = buttons;
    machine_mouse(d->machine, dx, dy, dz, buttons);
}

void display_release_all(struct display *d)
{
    for (unsigned key = 0; key < KEYS; key++)
        if (d->key_down[key])
            display_key(d, key, false);
    if (d->buttons)
        display_mouse(d, 0, 0, 0, 0);
}

void display_quit(struct display *d)
{
    machine_quit(d->machine);
}

/* -- Drawing ----------------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Shows what has changed in these lines: one rectangle, from the first to the last column. */
static void compare_band(struct display *d, unsigned y, unsigned lines)
{
    unsigned left = d->width, right = 0;
    size_t width = d->width;

    if (!memcmp(d->shown + y * width, d->drawn + y * width, lines * width * sizeof(uint32_t)))
        return;
    for (unsigned i = y; i < y + lines; i++) {
        const uint32_t *old = d->shown + i * width, *new = d->drawn + i *width;

        for (unsigned x = 0; x < left; x++)
            if (old[x] != new[x])
                left = x;
        for (unsigned x = d->width; x > right; x--)
            if (old[x - 1] != new[x - 1])
                right = x;
    }
    for (unsigned i = y; i < y + lines; i++)
        memcpy(d->shown + i * width + left, d->drawn + i * width + left,
               (right - left) * sizeof(uint32_t));
    d->frontend->update(d->state, left, y, right - left, lines);
}

static int set_size(struct display *d, unsigned width, unsigned height)
{
    size_t size = (size_t)width * height * sizeof(uint32_t);
    uint32_t *shown = calloc(1, size), *drawn = malloc(size), *old = d->shown;
    int code = shown && drawn ? 0 : -ENOMEM;

    if (!code && d->state)
        code = d->frontend->resize(d->state, shown, width, height);
    if (code) {
        free(shown);
        free(drawn);
        return code;
    }
    free(old);
    free(d->drawn);
    d->shown = shown;
    d->drawn = drawn;
    d->width = width;
    d->height = height;
    return 0;
}

static void refresh(struct display *d)
{
    struct vga_regs regs;
    struct vga_geometry g;
    const uint8_t *vram;

    if (!machine_screen(d->machine, &regs, &vram))
        return;
    vga_geometry(&regs, &g);
    if ((g.width != d->width || g.height != d->height) && set_size(d, g.width, g.height))
        return; /* no memory now; the next frame tries again */
    vga_render(&regs, vram, &g, now_ms() / BLINK_MS % 2 == 0, d->drawn);
    for (unsigned y = 0; y < d->height; y += BAND)
        compare_band(d, y, d->height - y < BAND ? d->height - y : BAND);
}

/* -- The thread -------------------------------------------------------------------------------- */

static void *display_thread(void *opaque)
{
    struct display *d = opaque;
    int code = set_size(d, 720, 400);

    if (!code)
        code = d->frontend->open(d, &d->options, d->shown, d->width, d->height, &d->state, d->err,
                                 d->errlen);
    else
        fail_with(d->err, d->errlen, code, "no memory for the display");
    pthread_mutex_lock(&d->lock);
    d->opened = true;
    d->open_code = code;
    pthread_cond_signal(&d->opened_cond);
    pthread_mutex_unlock(&d->lock);
    if (code)
        return NULL;
    while (!atomic_load(&d->ending)) {
        uint64_t start = now_ms(), spent;

        if (d->frontend->watched(d->state))
            refresh(d);
        spent = now_ms() - start;
        /* However long a frame takes, half of the time is left for others. */
        d->frontend->wait(d->state, d->wake_fd,
                          !d->frontend->watched(d->state)
                              ? -1
                              : (int)(spent < FRAME_MS / 2 ? FRAME_MS - spent : spent));
    }
    display_release_all(d);
    d->frontend->close(d->state);
    return NULL;
}

int display_create(struct display **out, struct machine *m, const struct display_options *o,
                   char *err, size_t errlen)
{
    struct display *d;
    sigset_t all, old;
    int code;

    *out = NULL;
    if (o->kind == DISPLAY_NONE)
        return 0;
    d = calloc(1, sizeof(*d));
    if (!d)
        return fail_with(err, errlen, -ENOMEM, "no memory for the display");
    d->machine = m;
    d->options = *o;
    d->frontend = o->kind == DISPLAY_VNC ? &display_vnc : &display_sdl;
    d->err = err;
    d->errlen = errlen;
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->opened_cond, NULL);
    d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    code = d->wake_fd < 0 ? -errno : 0;
    if (!code) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        code = -pthread_create(&d->thread, NULL, display_thread, d);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        d->started = !code;
    }
    if (code) {
        fail_with(err, errlen, code, "cannot set up the display: %s", strerror(-code));
    } else {
        pthread_mutex_lock(&d->lock);
        while (!d->opened)
            pthread_cond_wait(&d->opened_cond, &d->lock);
        code = d->open_code;
        pthread_mutex_unlock(&d->lock);
    }
    if (code) {
        display_destroy(d);
        return code;
    }
    *out = d;
    return 0;
}

void display_destroy(struct display *d)
{
    uint64_t one = 1;

    if (!d)
        return;
    atomic_store(&d->ending, true);
    if (d->started) {
        /* The counter cannot be full: nobody else writes. */
        if (write(d->wake_fd, &one, sizeof(one)) == sizeof(one))
            pthread_join(d->thread, NULL);
    }
    if (d->wake_fd >= 0)
        close(d->wake_fd);
    pthread_cond_destroy(&d->opened_cond);
    pthread_mutex_destroy(&d->lock);
    free(d->shown);
    free(d->drawn);
    free(d);
}
