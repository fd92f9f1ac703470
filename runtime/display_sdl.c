/*
 * A window, through SDL2.  The library is loaded when it is asked for.  A click into the window
 * gives mouse and keyboard to the guest, Ctrl+Alt+G takes them back.
 */
#include "runtime/display_frontend.h"

#include <errno.h>

#ifndef HAVE_SDL2

#include <stdio.h>

static int sdl_open(struct display *d, const struct display_options *o, uint32_t *pixels,
                    unsigned width, unsigned height, void **state, char *err, size_t errlen)
{
    snprintf(err, errlen,
             "this ringshift was built without SDL; install libsdl2-dev and build it again");
    return -ENOTSUP;
}

const struct display_frontend display_sdl = {.open = sdl_open};

#else

#include <SDL.h>
#include <dlfcn.h>
#include <linux/input-event-codes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/ps2.h"

#define LIBRARY "libSDL2-2.0.so.0"
#define POLL_MS 10

#define FUNCTIONS(F)                                                                               \
    F(SDL_InitSubSystem)                                                                           \
    F(SDL_Quit)                                                                                    \
    F(SDL_SetHint)                                                                                 \
    F(SDL_GetError)                                                                                \
    F(SDL_GetCurrentVideoDriver)                                                                   \
    F(SDL_CreateWindow)                                                                            \
    F(SDL_DestroyWindow)                                                                           \
    F(SDL_SetWindowSize)                                                                           \
    F(SDL_SetWindowTitle)                                                                          \
    F(SDL_GetWindowFlags)                                                                          \
    F(SDL_CreateRenderer)                                                                          \
    F(SDL_DestroyRenderer)                                                                         \
    F(SDL_CreateTexture)                                                                           \
    F(SDL_DestroyTexture)                                                                          \
    F(SDL_UpdateTexture)                                                                           \
    F(SDL_RenderCopy)                                                                              \
    F(SDL_RenderPresent)                                                                           \
    F(SDL_SetRelativeMouseMode)                                                                    \
    F(SDL_SetWindowGrab)                                                                           \
    F(SDL_PollEvent)

#define DECLARE(name) __typeof__(name) *name;
struct sdl_library {
    void *handle;
    FUNCTIONS(DECLARE)
};

struct sdl {
    struct display *display;
    struct sdl_library lib;
    SDL_Window *window;
    SDL_Renderer *renderer;
    SDL_Texture *texture;
    uint32_t *pixels;
    unsigned width, height;
    bool grabbed, dirty;
    uint8_t buttons;
};

static int fail(struct sdl *s, char *err, size_t errlen, const char *what)
{
    snprintf(err, errlen,
             "cannot %s: %s (is there a desktop? $DISPLAY or $WAYLAND_DISPLAY say "
             "where)",
             what, s->lib.SDL_GetError());
    return -EIO;
}

/* Where there is no desktop, SDL draws into memory that nobody sees. */
static bool invisible(struct sdl *s)
{
    const char *driver = s->lib.SDL_GetCurrentVideoDriver();

    return !driver || !strcmp(driver, "dummy") || !strcmp(driver, "offscreen");
}

static int no_desktop(char *err, size_t errlen)
{
    snprintf(err, errlen,
             "there is no desktop for a window ($DISPLAY and $WAYLAND_DISPLAY name none that answers); "
             "--display vnc needs none");
    return -ENODEV;
}

static int load_library(struct sdl_library *lib, char *err, size_t errlen)
{
    lib->handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib->handle) {
        snprintf(err, errlen, "SDL needs " LIBRARY " (Debian: libsdl2-2.0-0): %s", dlerror());
        return -ENOTSUP;
    }
#define LOAD(name)                                                                                 \
    lib->name = (__typeof__(name) *)dlsym(lib->handle, #name);                                     \
    if (!lib->name) {                                                                              \
        snprintf(err, errlen, LIBRARY " is too old for this ringshift");                           \
        return -ENOTSUP;                                                                           \
    }
    FUNCTIONS(LOAD)
    return 0;
}

/* -- Input ------------------------------------------------------------------------------------- */

/* SDL's scan codes are the USB HID usages of page 7. */
static unsigned key_of(SDL_Scancode code)
{
    static const uint8_t keys[] = {
        [SDL_SCANCODE_A] = KEY_A,
        [SDL_SCANCODE_B] = KEY_B,
        [SDL_SCANCODE_C] = KEY_C,
        [SDL_SCANCODE_D] = KEY_D,
        [SDL_SCANCODE_E] = KEY_E,
        [SDL_SCANCODE_F] = KEY_F,
        [SDL_SCANCODE_G] = KEY_G,
        [SDL_SCANCODE_H] = KEY_H,
        [SDL_SCANCODE_I] = KEY_I,
        [SDL_SCANCODE_J] = KEY_J,
        [SDL_SCANCODE_K] = KEY_K,
        [SDL_SCANCODE_L] = KEY_L,
        [SDL_SCANCODE_M] = KEY_M,
        [SDL_SCANCODE_N] = KEY_N,
        [SDL_SCANCODE_O] = KEY_O,
        [SDL_SCANCODE_P] = KEY_P,
        [SDL_SCANCODE_Q] = KEY_Q,
        [SDL_SCANCODE_R] = KEY_R,
        [SDL_SCANCODE_S] = KEY_S,
        [SDL_SCANCODE_T] = KEY_T,
        [SDL_SCANCODE_U] = KEY_U,
        [SDL_SCANCODE_V] = KEY_V,
        [SDL_SCANCODE_W] = KEY_W,
        [SDL_SCANCODE_X] = KEY_X,
        [SDL_SCANCODE_Y] = KEY_Y,
        [SDL_SCANCODE_Z] = KEY_Z,
        [SDL_SCANCODE_1] = KEY_1,
        [SDL_SCANCODE_2] = KEY_2,
        [SDL_SCANCODE_3] = KEY_3,
        [SDL_SCANCODE_4] = KEY_4,
        [SDL_SCANCODE_5] = KEY_5,
        [SDL_SCANCODE_6] = KEY_6,
        [SDL_SCANCODE_7] = KEY_7,
        [SDL_SCANCODE_8] = KEY_8,
        [SDL_SCANCODE_9] = KEY_9,
        [SDL_SCANCODE_0] = KEY_0,
        [SDL_SCANCODE_RETURN] = KEY_ENTER,
        [SDL_SCANCODE_ESCAPE] = KEY_ESC,
        [SDL_SCANCODE_BACKSPACE] = KEY_BACKSPACE,
        [SDL_SCANCODE_TAB] = KEY_TAB,
        [SDL_SCANCODE_SPACE] = KEY_SPACE,
        [SDL_SCANCODE_MINUS] = KEY_MINUS,
        [SDL_SCANCODE_EQUALS] = KEY_EQUAL,
        [SDL_SCANCODE_LEFTBRACKET] = KEY_LEFTBRACE,
        [SDL_SCANCODE_RIGHTBRACKET] = KEY_RIGHTBRACE,
        [SDL_SCANCODE_BACKSLASH] = KEY_BACKSLASH,
        [SDL_SCANCODE_NONUSHASH] = KEY_BACKSLASH,
        [SDL_SCANCODE_SEMICOLON] = KEY_SEMICOLON,
        [SDL_SCANCODE_APOSTROPHE] = KEY_APOSTROPHE,
        [SDL_SCANCODE_GRAVE] = KEY_GRAVE,
        [SDL_SCANCODE_COMMA] = KEY_COMMA,
        [SDL_SCANCODE_PERIOD] = KEY_DOT,
        [SDL_SCANCODE_SLASH] = KEY_SLASH,
        [SDL_SCANCODE_CAPSLOCK] = KEY_CAPSLOCK,
        [SDL_SCANCODE_F1] = KEY_F1,
        [SDL_SCANCODE_F2] = KEY_F2,
        [SDL_SCANCODE_F3] = KEY_F3,
        [SDL_SCANCODE_F4] = KEY_F4,
        [SDL_SCANCODE_F5] = KEY_F5,
        [SDL_SCANCODE_F6] = KEY_F6,
        [SDL_SCANCODE_F7] = KEY_F7,
        [SDL_SCANCODE_F8] = KEY_F8,
        [SDL_SCANCODE_F9] = KEY_F9,
        [SDL_SCANCODE_F10] = KEY_F10,
        [SDL_SCANCODE_F11] = KEY_F11,
        [SDL_SCANCODE_F12] = KEY_F12,
        [SDL_SCANCODE_PRINTSCREEN] = KEY_SYSRQ,
        [SDL_SCANCODE_SCROLLLOCK] = KEY_SCROLLLOCK,
        [SDL_SCANCODE_PAUSE] = KEY_PAUSE,
        [SDL_SCANCODE_INSERT] = KEY_INSERT,
        [SDL_SCANCODE_HOME] = KEY_HOME,
        [SDL_SCANCODE_PAGEUP] = KEY_PAGEUP,
        [SDL_SCANCODE_DELETE] = KEY_DELETE,
        [SDL_SCANCODE_END] = KEY_END,
        [SDL_SCANCODE_PAGEDOWN] = KEY_PAGEDOWN,
        [SDL_SCANCODE_RIGHT] = KEY_RIGHT,
        [SDL_SCANCODE_LEFT] = KEY_LEFT,
        [SDL_SCANCODE_DOWN] = KEY_DOWN,
        [SDL_SCANCODE_UP] = KEY_UP,
        [SDL_SCANCODE_NUMLOCKCLEAR] = KEY_NUMLOCK,
        [SDL_SCANCODE_KP_DIVIDE] = KEY_KPSLASH,
        [SDL_SCANCODE_KP_MULTIPLY] = KEY_KPASTERISK,
        [SDL_SCANCODE_KP_MINUS] = KEY_KPMINUS,
        [SDL_SCANCODE_KP_PLUS] = KEY_KPPLUS,
        [SDL_SCANCODE_KP_ENTER] = KEY_KPENTER,
        [SDL_SCANCODE_KP_1] = KEY_KP1,
        [SDL_SCANCODE_KP_2] = KEY_KP2,
        [SDL_SCANCODE_KP_3] = KEY_KP3,
        [SDL_SCANCODE_KP_4] = KEY_KP4,
        [SDL_SCANCODE_KP_5] = KEY_KP5,
        [SDL_SCANCODE_KP_6] = KEY_KP6,
        [SDL_SCANCODE_KP_7] = KEY_KP7,
        [SDL_SCANCODE_KP_8] = KEY_KP8,
        [SDL_SCANCODE_KP_9] = KEY_KP9,
        [SDL_SCANCODE_KP_0] = KEY_KP0,
        [SDL_SCANCODE_KP_PERIOD] = KEY_KPDOT,
        [SDL_SCANCODE_NONUSBACKSLASH] = KEY_102ND,
        [SDL_SCANCODE_APPLICATION] = KEY_COMPOSE,
        [SDL_SCANCODE_KP_EQUALS] = KEY_KPEQUAL,
        [SDL_SCANCODE_INTERNATIONAL1] = KEY_RO,
        [SDL_SCANCODE_INTERNATIONAL2] = KEY_KATAKANAHIRAGANA,
        [SDL_SCANCODE_INTERNATIONAL3] = KEY_YEN,
        [SDL_SCANCODE_INTERNATIONAL4] = KEY_HENKAN,
        [SDL_SCANCODE_INTERNATIONAL5] = KEY_MUHENKAN,
        [SDL_SCANCODE_LCTRL] = KEY_LEFTCTRL,
        [SDL_SCANCODE_LSHIFT] = KEY_LEFTSHIFT,
        [SDL_SCANCODE_LALT] = KEY_LEFTALT,
        [SDL_SCANCODE_LGUI] = KEY_LEFTMETA,
        [SDL_SCANCODE_RCTRL] = KEY_RIGHTCTRL,
        [SDL_SCANCODE_RSHIFT] = KEY_RIGHTSHIFT,
        [SDL_SCANCODE_RALT] = KEY_RIGHTALT,
        [SDL_SCANCODE_RGUI] = KEY_RIGHTMETA,
    };

    return (unsigned)code < sizeof(keys) ? keys[code] : 0;
}

static void grab(struct sdl *s, bool on)
{
    s->grabbed = on;
    s->lib.SDL_SetRelativeMouseMode(on ? SDL_TRUE : SDL_FALSE);
    s->lib.SDL_SetWindowGrab(s->window, on ? SDL_TRUE : SDL_FALSE);
    s->lib.SDL_SetWindowTitle(s->window,
                              on ? "Ringshift - Ctrl+Alt+G releases the mouse" : "Ringshift");
}

static void on_key(struct sdl *s, const SDL_KeyboardEvent *e)
{
    unsigned key = key_of(e->keysym.scancode);
    bool down = e->type == SDL_KEYDOWN;

    if (key == KEY_G && (e->keysym.mod & KMOD_CTRL) && (e->keysym.mod & KMOD_ALT)) {
        if (down && !e->repeat)
            grab(s, !s->grabbed);
        return;
    }
    if (key)
        display_key(s->display, key, down);
}

static void on_button(struct sdl *s, const SDL_MouseButtonEvent *e)
{
    uint8_t bit = e->button == SDL_BUTTON_LEFT     ? PS2_LEFT
                  : e->button == SDL_BUTTON_MIDDLE ? PS2_MIDDLE
                  : e->button == SDL_BUTTON_RIGHT  ? PS2_RIGHT
                  : e->button == SDL_BUTTON_X1     ? PS2_SIDE
                                                   : PS2_EXTRA;

    if (!s->grabbed) { /* the click that takes the mouse is not the guest's */
        if (e->type == SDL_MOUSEBUTTONDOWN)
            grab(s, true);
        return;
    }
    s->buttons = (uint8_t)(e->type == SDL_MOUSEBUTTONDOWN ? s->buttons | bit : s->buttons & ~bit);
    display_mouse(s->display, 0, 0, 0, s->buttons);
}

static void on_event(struct sdl *s, const SDL_Event *e)
{
    switch (e->type) {
    case SDL_QUIT:
        display_quit(s->display);
        break;
    case SDL_KEYDOWN:
    case SDL_KEYUP:
        on_key(s, &e->key);
        break;
    case SDL_MOUSEMOTION:
        if (s->grabbed)
            display_mouse(s->display, e->motion.xrel, e->motion.yrel, 0, s->buttons);
        break;
    case SDL_MOUSEBUTTONDOWN:
    case SDL_MOUSEBUTTONUP:
        on_button(s, &e->button);
        break;
    case SDL_MOUSEWHEEL:
        if (s->grabbed)
            display_mouse(s->display, 0, 0, -e->wheel.y, s->buttons);
        break;
    case SDL_WINDOWEVENT:
        if (e->window.event == SDL_WINDOWEVENT_FOCUS_LOST) {
            display_release_all(s->display);
            s->buttons = 0;
            if (s->grabbed)
                grab(s, false);
        }
        s->dirty = true; /* it may have been uncovered */
        break;
    default:
        break;
    }
}

/* -- The frontend ------------------------------------------------------------------------------ */

static void sdl_close(void *state)
{
    struct sdl *s = state;

    if (s->texture)
        s->lib.SDL_DestroyTexture(s->texture);
    if (s->renderer)
        s->lib.SDL_DestroyRenderer(s->renderer);
    if (s->window)
        s->lib.SDL_DestroyWindow(s->window);
    if (s->lib.SDL_Quit)
        s->lib.SDL_Quit();
    free(s);
}

static int make_texture(struct sdl *s, uint32_t *pixels, unsigned width, unsigned height)
{
    SDL_Texture *texture = s->lib.SDL_CreateTexture(
        s->renderer, SDL_PIXELFORMAT_RGB888, SDL_TEXTUREACCESS_STREAMING, (int)width, (int)height);

    if (!texture)
        return -ENOMEM;
    if (s->texture)
        s->lib.SDL_DestroyTexture(s->texture);
    s->texture = texture;
    s->pixels = pixels;
    s->width = width;
    s->height = height;
    s->dirty = true;
    return 0;
}

static int sdl_open(struct display *d, const struct display_options *o, uint32_t *pixels,
                    unsigned width, unsigned height, void **state, char *err, size_t errlen)
{
    struct sdl *s = calloc(1, sizeof(*s));
    int code;

    (void)o;
    if (!s) {
        snprintf(err, errlen, "no memory for the window");
        return -ENOMEM;
    }
    s->display = d;
    code = load_library(&s->lib, err, errlen);
    if (!code) {
        /* Ctrl-C and kill are the program's business. */
        s->lib.SDL_SetHint(SDL_HINT_NO_SIGNAL_HANDLERS, "1");
        if (s->lib.SDL_InitSubSystem(SDL_INIT_VIDEO))
            code = fail(s, err, errlen, "open a window");
        else if (!getenv("SDL_VIDEODRIVER") && invisible(s))
            code = no_desktop(err, errlen);
    }
    if (!code) {
        s->window =
            s->lib.SDL_CreateWindow("Ringshift", SDL_WINDOWPOS_CENTERED, SDL_WINDOWPOS_CENTERED,
                                    (int)width, (int)height, SDL_WINDOW_RESIZABLE);
        s->renderer = s->window ? s->lib.SDL_CreateRenderer(s->window, -1, 0) : NULL;
        if (!s->renderer || make_texture(s, pixels, width, height))
            code = fail(s, err, errlen, "open a window");
    }
    if (code) {
        sdl_close(s);
        return code;
    }
    *state = s;
    return 0;
}

static bool sdl_watched(void *state)
{
    struct sdl *s = state;

    return !(s->lib.SDL_GetWindowFlags(s->window) & (SDL_WINDOW_MINIMIZED | SDL_WINDOW_HIDDEN));
}

static void present(struct sdl *s)
{
    s->dirty = false;
    s->lib.SDL_UpdateTexture(s->texture, NULL, s->pixels, (int)(s->width * sizeof(uint32_t)));
    s->lib.SDL_RenderCopy(s->renderer, s->texture, NULL, NULL);
    s->lib.SDL_RenderPresent(s->renderer);
}

static void sdl_wait(void *state, int wake_fd, int timeout_ms)
{
    struct sdl *s = state;
    struct pollfd fd = {.fd = wake_fd, .events = POLLIN};
    SDL_Event e;

    if (s->dirty)
        present(s);
    /* The library's connection cannot be polled together with ours: look at it now and then. */
    for (int left = timeout_ms < 0 ? 100 : timeout_ms; left > 0; left -= POLL_MS) {
        while (s->lib.SDL_PollEvent(&e))
            on_event(s, &e);
        if (poll(&fd, 1, left < POLL_MS ? left : POLL_MS) > 0)
            return;
    }
}

static int sdl_resize(void *state, uint32_t *pixels, unsigned width, unsigned height)
{
    struct sdl *s = state;
    int code = make_texture(s, pixels, width, height);

    if (!code)
        s->lib.SDL_SetWindowSize(s->window, (int)width, (int)height);
    return code;
}

static void sdl_update(void *state, unsigned x, unsigned y, unsigned width, unsigned height)
{
    struct sdl *s = state;

    (void)x, (void)y, (void)width, (void)height;
    s->dirty = true; /* one upload a frame */
}

const struct display_frontend display_sdl = {
    .open = sdl_open,
    .close = sdl_close,
    .watched = sdl_watched,
    .wait = sdl_wait,
    .resize = sdl_resize,
    .update = sdl_update,
};

#endif
