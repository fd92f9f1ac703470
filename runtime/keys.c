/* Names for keys: see keys.h. */
#include "runtime/keys.h"

#include <linux/input-event-codes.h>
#include <string.h>

static const struct {
    const char *name;
    unsigned key;
} names[] = {
    {"a", KEY_A},
    {"b", KEY_B},
    {"c", KEY_C},
    {"d", KEY_D},
    {"e", KEY_E},
    {"f", KEY_F},
    {"g", KEY_G},
    {"h", KEY_H},
    {"i", KEY_I},
    {"j", KEY_J},
    {"k", KEY_K},
    {"l", KEY_L},
    {"m", KEY_M},
    {"n", KEY_N},
    {"o", KEY_O},
    {"p", KEY_P},
    {"q", KEY_Q},
    {"r", KEY_R},
    {"s", KEY_S},
    {"t", KEY_T},
    {"u", KEY_U},
    {"v", KEY_V},
    {"w", KEY_W},
    {"x", KEY_X},
    {"y", KEY_Y},
    {"z", KEY_Z},
    {"0", KEY_0},
    {"1", KEY_1},
    {"2", KEY_2},
    {"3", KEY_3},
    {"4", KEY_4},
    {"5", KEY_5},
    {"6", KEY_6},
    {"7", KEY_7},
    {"8", KEY_8},
    {"9", KEY_9},
    {"f1", KEY_F1},
    {"f2", KEY_F2},
    {"f3", KEY_F3},
    {"f4", KEY_F4},
    {"f5", KEY_F5},
    {"f6", KEY_F6},
    {"f7", KEY_F7},
    {"f8", KEY_F8},
    {"f9", KEY_F9},
    {"f10", KEY_F10},
    {"f11", KEY_F11},
    {"f12", KEY_F12},
    {"ret", KEY_ENTER},
    {"enter", KEY_ENTER},
    {"esc", KEY_ESC},
    {"escape", KEY_ESC},
    {"spc", KEY_SPACE},
    {"space", KEY_SPACE},
    {"tab", KEY_TAB},
    {"backspace", KEY_BACKSPACE},
    {"shift", KEY_LEFTSHIFT},
    {"shift_r", KEY_RIGHTSHIFT},
    {"ctrl", KEY_LEFTCTRL},
    {"ctrl_r", KEY_RIGHTCTRL},
    {"alt", KEY_LEFTALT},
    {"alt_r", KEY_RIGHTALT},
    {"meta_l", KEY_LEFTMETA},
    {"meta_r", KEY_RIGHTMETA},
    {"menu", KEY_COMPOSE},
    {"compose", KEY_COMPOSE},
    {"up", KEY_UP},
    {"down", KEY_DOWN},
    {"left", KEY_LEFT},
    {"right", KEY_RIGHT},
    {"home", KEY_HOME},
    {"end", KEY_END},
    {"pgup", KEY_PAGEUP},
    {"pgdn", KEY_PAGEDOWN},
    {"insert", KEY_INSERT},
    {"delete", KEY_DELETE},
    {"minus", KEY_MINUS},
    {"equal", KEY_EQUAL},
    {"bracket_left", KEY_LEFTBRACE},
    {"bracket_right", KEY_RIGHTBRACE},
    {"semicolon", KEY_SEMICOLON},
    {"apostrophe", KEY_APOSTROPHE},
    {"grave_accent", KEY_GRAVE},
    {"backslash", KEY_BACKSLASH},
    {"comma", KEY_COMMA},
    {"dot", KEY_DOT},
    {"slash", KEY_SLASH},
    {"less", KEY_102ND},
    {"caps_lock", KEY_CAPSLOCK},
    {"num_lock", KEY_NUMLOCK},
    {"scroll_lock", KEY_SCROLLLOCK},
    {"print", KEY_SYSRQ},
    {"sysrq", KEY_SYSRQ},
    {"pause", KEY_PAUSE},
    {"asterisk", KEY_KPASTERISK},
    {"kp_multiply", KEY_KPASTERISK},
    {"kp_divide", KEY_KPSLASH},
    {"kp_subtract", KEY_KPMINUS},
    {"kp_add", KEY_KPPLUS},
    {"kp_enter", KEY_KPENTER},
    {"kp_decimal", KEY_KPDOT},
    {"kp_comma", KEY_KPCOMMA},
    {"kp_equals", KEY_KPEQUAL},
    {"kp_0", KEY_KP0},
    {"kp_1", KEY_KP1},
    {"kp_2", KEY_KP2},
    {"kp_3", KEY_KP3},
    {"kp_4", KEY_KP4},
    {"kp_5", KEY_KP5},
    {"kp_6", KEY_KP6},
    {"kp_7", KEY_KP7},
    {"kp_8", KEY_KP8},
    {"kp_9", KEY_KP9},
    {"ro", KEY_RO},
    {"yen", KEY_YEN},
    {"henkan", KEY_HENKAN},
    {"muhenkan", KEY_MUHENKAN},
    {"katakanahiragana", KEY_KATAKANAHIRAGANA},
    {"power", KEY_POWER},
    {"sleep", KEY_SLEEP},
    {"wake", KEY_WAKEUP},
    {"audiomute", KEY_MUTE},
    {"volumedown", KEY_VOLUMEDOWN},
    {"volumeup", KEY_VOLUMEUP},
};

unsigned key_by_name(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strlen(names[i].name) == len && !memcmp(names[i].name, name, len))
            return names[i].key;
    return 0;
}

bool key_by_char(unsigned char c, unsigned *key, bool *shift)
{
    /* The characters of each key, without and with Shift. */
    static const struct {
        unsigned char plain, shifted;
        unsigned key;
    } others[] = {
        {'1', '!', KEY_1},           {'2', '@', KEY_2},           {'3', '#', KEY_3},
        {'4', '$', KEY_4},           {'5', '%', KEY_5},           {'6', '^', KEY_6},
        {'7', '&', KEY_7},           {'8', '*', KEY_8},           {'9', '(', KEY_9},
        {'0', ')', KEY_0},           {'-', '_', KEY_MINUS},       {'=', '+', KEY_EQUAL},
        {'[', '{', KEY_LEFTBRACE},   {']', '}', KEY_RIGHTBRACE},  {';', ':', KEY_SEMICOLON},
        {'\'', '"', KEY_APOSTROPHE}, {'`', '~', KEY_GRAVE},       {'\\', '|', KEY_BACKSLASH},
        {',', '<', KEY_COMMA},       {'.', '>', KEY_DOT},         {'/', '?', KEY_SLASH},
        {' ', ' ', KEY_SPACE},       {'\n', '\n', KEY_ENTER},     {'\r', '\r', KEY_ENTER},
        {'\t', '\t', KEY_TAB},       {'\b', '\b', KEY_BACKSPACE}, {0x7f, 0x7f, KEY_BACKSPACE},
        {0x1b, 0x1b, KEY_ESC},
    };

    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
        char name = (char)(c | 0x20);

        *key = key_by_name(&name, 1);
        *shift = c <= 'Z';
        return true;
    }
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (c == others[i].plain || c == others[i].shifted) {
            *key = others[i].key;
            *shift = c != others[i].plain;
            return true;
        }
    }
    return false;
}
