/*
 * The VNC server, through libvncserver.  The library is loaded when it is asked for, so that a
 * virtual machine without it does not carry it and what it needs.
 */
#include "runtime/display_frontend.h"

#include <errno.h>

#ifndef HAVE_LIBVNCSERVER

#include <stdio.h>

static int vnc_open(struct display *d, const struct display_options *o, uint32_t *pixels,
                    unsigned width, unsigned height, void **state, char *err, size_t errlen)
{
    snprintf(err, errlen,
             "this ringshift was built without VNC; install libvncserver-dev and build it again");
    return -ENOTSUP;
}

const struct display_frontend display_vnc = {.open = vnc_open};

#else

#include <arpa/inet.h>
#include <dlfcn.h>
#include <linux/input-event-codes.h>
#include <poll.h>
#include <rfb/keysym.h>
#include <rfb/rfb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/ps2.h"
#include "runtime/display.h"
#include "runtime/keys.h"

#define LIBRARY      "libvncserver.so.1"
#define CLIENTS_MAX  8
#define PASSWORD_MAX 8 /* of VNC's authentication */
/* The library reads and writes whole messages: a client that stops in the middle of one holds up
 * the others, and the end, for so long, and is disconnected then. */
#define CLIENT_WAIT_MS 1000

/* The library's functions that we use. */
#define FUNCTIONS(F)                                                                               \
    F(rfbGetScreen)                                                                                \
    F(rfbInitServerWithPthreadsAndZRLE)                                                            \
    F(rfbProcessEvents)                                                                            \
    F(rfbNewFramebuffer)                                                                           \
    F(rfbMarkRectAsModified)                                                                       \
    F(rfbShutdownServer)                                                                           \
    F(rfbScreenCleanup)                                                                            \
    F(rfbLogEnable)                                                                                \
    F(rfbCheckPasswordByList)

#define DECLARE(name) __typeof__(name) *name;
struct vnc_library {
    void *handle;
    FUNCTIONS(DECLARE)
};

struct vnc {
    struct display *display;
    struct vnc_library lib;
    rfbScreenInfoPtr screen;
    char password[PASSWORD_MAX + 1];
    char *passwords[2];
    unsigned clients;
    int x, y; /* where the pointer was last */
    bool pointer_known;
    uint8_t buttons;
};

static int load_library(struct vnc_library *lib, char *err, size_t errlen)
{
    lib->handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib->handle) {
        snprintf(err, errlen, "VNC needs " LIBRARY " (Debian: libvncserver1): %s", dlerror());
        return -ENOTSUP;
    }
#define LOAD(name)                                                                                 \
    lib->name = (__typeof__(name) *)dlsym(lib->handle, #name);                                     \
    if (!lib->name) {                                                                              \
        snprintf(err, errlen, LIBRARY " is not the one that this ringshift was built with");       \
        return -ENOTSUP;                                                                           \
    }
    FUNCTIONS(LOAD)
    int *client_wait = dlsym(lib->handle, "rfbMaxClientWait");

    if (client_wait)
        *client_wait = CLIENT_WAIT_MS;
    return 0;
}

static int read_password(struct vnc *v, const char *path, char *err, size_t errlen)
{
    char line[256] = "";
    FILE *f = fopen(path, "re");

    if (!f) {
        int code = -errno;

        snprintf(err, errlen, "cannot read the VNC password from %s: %s", path, strerror(errno));
        return code;
    }
    if (!fgets(line, sizeof(line), f))
        line[0] = '\0';
    fclose(f);
    line[strcspn(line, "\r\n")] = '\0';
    if (!line[0] || strlen(line) > PASSWORD_MAX) {
        snprintf(err, errlen,
                 "the first line of %s is not a VNC password: those have 1 to %d characters", path,
                 PASSWORD_MAX);
        return -EINVAL;
    }
    memcpy(v->password, line, strlen(line) + 1);
    return 0;
}

/* -- Callbacks --------------------------------------------------------------------------------- */

static unsigned key_of(rfbKeySym sym)
{
    static const struct {
        rfbKeySym sym;
        unsigned key;
    } others[] = {
        {XK_BackSpace, KEY_BACKSPACE},
        {XK_Tab, KEY_TAB},
        {XK_ISO_Left_Tab, KEY_TAB},
        {XK_Return, KEY_ENTER},
        {XK_Escape, KEY_ESC},
        {XK_Delete, KEY_DELETE},
        {XK_Home, KEY_HOME},
        {XK_Left, KEY_LEFT},
        {XK_Up, KEY_UP},
        {XK_Right, KEY_RIGHT},
        {XK_Down, KEY_DOWN},
        {XK_Page_Up, KEY_PAGEUP},
        {XK_Page_Down, KEY_PAGEDOWN},
        {XK_End, KEY_END},
        {XK_Insert, KEY_INSERT},
        {XK_Print, KEY_SYSRQ},
        {XK_Pause, KEY_PAUSE},
        {XK_Break, KEY_PAUSE},
        {XK_Menu, KEY_COMPOSE},
        {XK_Num_Lock, KEY_NUMLOCK},
        {XK_Caps_Lock, KEY_CAPSLOCK},
        {XK_Scroll_Lock, KEY_SCROLLLOCK},
        {XK_Shift_L, KEY_LEFTSHIFT},
        {XK_Shift_R, KEY_RIGHTSHIFT},
        {XK_Control_L, KEY_LEFTCTRL},
        {XK_Control_R, KEY_RIGHTCTRL},
        {XK_Alt_L, KEY_LEFTALT},
        {XK_Meta_L, KEY_LEFTALT},
        {XK_Alt_R, KEY_RIGHTALT},
        {XK_ISO_Level3_Shift, KEY_RIGHTALT},
        {XK_Mode_switch, KEY_RIGHTALT},
        {XK_Super_L, KEY_LEFTMETA},
        {XK_Super_R, KEY_RIGHTMETA},
        {XK_KP_Enter, KEY_KPENTER},
        {XK_KP_Add, KEY_KPPLUS},
        {XK_KP_Subtract, KEY_KPMINUS},
        {XK_KP_Multiply, KEY_KPASTERISK},
        {XK_KP_Divide, KEY_KPSLASH},
        {XK_KP_Decimal, KEY_KPDOT},
        {XK_KP_Delete, KEY_KPDOT},
        {XK_KP_Home, KEY_KP7},
        {XK_KP_Up, KEY_KP8},
        {XK_KP_Page_Up, KEY_KP9},
        {XK_KP_Left, KEY_KP4},
        {XK_KP_Begin, KEY_KP5},
        {XK_KP_Right, KEY_KP6},
        {XK_KP_End, KEY_KP1},
        {XK_KP_Down, KEY_KP2},
        {XK_KP_Page_Down, KEY_KP3},
        {XK_KP_Insert, KEY_KP0},
    };
    static const uint16_t keypad[10] = {KEY_KP0, KEY_KP1, KEY_KP2, KEY_KP3, KEY_KP4,
                                        KEY_KP5, KEY_KP6, KEY_KP7, KEY_KP8, KEY_KP9};
    unsigned key;
    bool shift;

    /* The viewer sends Shift itself; what counts is which key has the character. */
    if (sym >= 0x20 && sym < 0x7f && key_by_char((unsigned char)sym, &key, &shift))
        return key;
    if (sym >= XK_F1 && sym <= XK_F10)
        return KEY_F1 + (sym - XK_F1);
    if (sym == XK_F11 || sym == XK_F12)
        return KEY_F11 + (sym - XK_F11);
    if (sym >= XK_KP_0 && sym <= XK_KP_9)
        return keypad[sym - XK_KP_0];
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (others[i].sym == sym)
            return others[i].key;
    return 0;
}

static void on_key(rfbBool down, rfbKeySym sym, rfbClientPtr client)
{
    struct vnc *v = client->screen->screenData;
    unsigned key = key_of(sym);

    if (key)
        display_key(v->display, key, down);
}

static void on_pointer(int mask, int x, int y, rfbClientPtr client)
{
    struct vnc *v = client->screen->screenData;
    int dx = v->pointer_known ? x - v->x : 0, dy = v->pointer_known ? y - v->y : 0;
    int dz = (mask & 0x10 ? 1 : 0) - (mask & 0x08 ? 1 : 0);
    uint8_t buttons = (uint8_t)((mask & 1 ? PS2_LEFT : 0) | (mask & 2 ? PS2_MIDDLE : 0) |
                                (mask & 4 ? PS2_RIGHT : 0));

    v->x = x;
    v->y = y;
    v->pointer_known = true;
    if (dx || dy || dz || buttons != v->buttons)
        display_mouse(v->display, dx, dy, dz, buttons);
    v->buttons = buttons;
}

static void on_client_gone(rfbClientPtr client)
{
    struct vnc *v = client->screen->screenData;

    v->clients--;
    v->pointer_known = false;
    if (!v->clients) {
        display_release_all(v->display);
        v->buttons = 0;
    }
}

static enum rfbNewClientAction on_client(rfbClientPtr client)
{
    struct vnc *v = client->screen->screenData;

    client->clientGoneHook = on_client_gone;
    v->clients++;
    return v->clients > CLIENTS_MAX ? RFB_CLIENT_REFUSE : RFB_CLIENT_ACCEPT;
}

/* -- The frontend ------------------------------------------------------------------------------ */

static void vnc_close(void *state)
{
    struct vnc *v = state;

    if (v->screen) {
        v->lib.rfbShutdownServer(v->screen, TRUE);
        v->lib.rfbScreenCleanup(v->screen);
    }
    /* Not unloaded: libraries behind it leave thread-local data and exit handlers. */
    free(v);
}

static int listen_for_clients(struct vnc *v, const struct display_options *o, uint32_t *pixels,
                              unsigned width, unsigned height, char *err, size_t errlen)
{
    struct in_addr address = {.s_addr = htonl(o->address)};
    char name[INET_ADDRSTRLEN] = "";

    v->lib.rfbLogEnable(0);
    v->screen = v->lib.rfbGetScreen(NULL, NULL, (int)width, (int)height, 8, 3, 4);
    if (!v->screen) {
        snprintf(err, errlen, "no memory for the VNC server");
        return -ENOMEM;
    }
    v->screen->frameBuffer = (char *)pixels;
    v->screen->serverFormat.redShift = 16;
    v->screen->serverFormat.greenShift = 8;
    v->screen->serverFormat.blueShift = 0;
    v->screen->desktopName = "Ringshift";
    v->screen->screenData = v;
    v->screen->alwaysShared = TRUE;
    v->screen->ignoreSIGPIPE = FALSE; /* this thread blocks all signals */
    v->screen->autoPort = FALSE;
    v->screen->port = o->port;
    v->screen->ipv6port = 0;
    v->screen->listenInterface = address.s_addr;
    v->screen->kbdAddEvent = on_key;
    v->screen->ptrAddEvent = on_pointer;
    v->screen->newClientHook = on_client;
    v->screen->cursor = NULL; /* the guest draws its own */
    if (v->password[0]) {
        v->passwords[0] = v->password;
        v->screen->authPasswdData = v->passwords;
        v->screen->passwordCheck = v->lib.rfbCheckPasswordByList;
    }
    v->lib.rfbInitServerWithPthreadsAndZRLE(v->screen);
    if (v->screen->listenSock < 0) {
        inet_ntop(AF_INET, &address, name, sizeof(name));
        snprintf(err, errlen,
                 "cannot listen for VNC on %s:%u; is another program there? --display "
                 "vnc=%s:PORT takes another port",
                 name, o->port, name);
        return -EADDRINUSE;
    }
    return 0;
}

static int vnc_open(struct display *d, const struct display_options *o, uint32_t *pixels,
                    unsigned width, unsigned height, void **state, char *err, size_t errlen)
{
    struct vnc *v = calloc(1, sizeof(*v));
    int code;

    if (!v) {
        snprintf(err, errlen, "no memory for the VNC server");
        return -ENOMEM;
    }
    v->display = d;
    code = o->password_file[0] ? read_password(v, o->password_file, err, errlen) : 0;
    if (!code)
        code = load_library(&v->lib, err, errlen);
    if (!code)
        code = listen_for_clients(v, o, pixels, width, height, err, errlen);
    if (code) {
        vnc_close(v);
        return code;
    }
    *state = v;
    return 0;
}

static bool vnc_watched(void *state)
{
    struct vnc *v = state;

    return v->clients > 0;
}

static void vnc_wait(void *state, int wake_fd, int timeout_ms)
{
    struct vnc *v = state;

    if (timeout_ms < 0) {
        struct pollfd fds[2] = {{.fd = wake_fd, .events = POLLIN},
                                {.fd = v->screen->listenSock, .events = POLLIN}};

        poll(fds, 2, -1);
        v->lib.rfbProcessEvents(v->screen, 0);
        return;
    }
    /* The library waits for its own sockets; the end can wait for one frame. */
    v->lib.rfbProcessEvents(v->screen, (long)timeout_ms * 1000);
}

static int vnc_resize(void *state, uint32_t *pixels, unsigned width, unsigned height)
{
    struct vnc *v = state;

    v->lib.rfbNewFramebuffer(v->screen, (char *)pixels, (int)width, (int)height, 8, 3, 4);
    v->pointer_known = false;
    return 0;
}

static void vnc_update(void *state, unsigned x, unsigned y, unsigned width, unsigned height)
{
    struct vnc *v = state;

    v->lib.rfbMarkRectAsModified(v->screen, (int)x, (int)y, (int)(x + width), (int)(y + height));
}

const struct display_frontend display_vnc = {
    .open = vnc_open,
    .close = vnc_close,
    .watched = vnc_watched,
    .wait = vnc_wait,
    .resize = vnc_resize,
    .update = vnc_update,
};

#endif
