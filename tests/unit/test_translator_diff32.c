/*
 * What the differential test of 16- and 32-bit code (tests/tools/diff_host.c --mode 32|16) found,
 * kept for good: each case once came out differently through the translator.
 */
#include "tests/support/diff_native.h"

#include "tests/support/diff_guest.h"

#include "translator/bt.h"

#include <criterion/criterion.h>

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    atomic_fetch_or(&v->events, events);
}

struct found {
    const char *what;
    struct diff_case c; /* segments and RSP that are 0 get the usual ones */
};

#define CODE(...) .len = sizeof((uint8_t[]){__VA_ARGS__}), .code = {__VA_ARGS__}

static const struct found cases[] = {
    {"VEX.vvvv that names nothing must be 1111b, the fourth bit included",
     {.bits = 32, CODE(0xc4, 0xc3, 0xb9, 0x62, 0xf2, 0x4e)}},
    {"EVEX.V' of 0", {.bits = 32, CODE(0x62, 0xe2, 0xed, 0xc6, 0x77, 0xe3)}},
    {"EVEX.R' of 0 means nothing", {.bits = 32, CODE(0x62, 0xe1, 0x6c, 0x48, 0x58, 0xd4)}},
    {"a register in an immediate has three bits",
     {.bits = 32, .fp_seed = 5, CODE(0xc4, 0xe3, 0x29, 0x4a, 0xd1, 0xfc)}},
    {"VZEROUPPER: eight registers", {.bits = 32, .fp_seed = 7, CODE(0xc5, 0xf8, 0x77)}},
    {"VZEROALL: eight registers", {.bits = 32, .fp_seed = 7, CODE(0xc5, 0xfc, 0x77)}},
    {"VCVTUSI2SS with W: four bytes all the same",
     {.bits = 32, .gpr = {[RBX] = DIFF_LDATA}, CODE(0x62, 0xf1, 0x86, 0x28, 0x7b, 0x23)}},
    {"FXSAVE without XMM8 to XMM15",
     {.bits = 32, .fp_seed = 9, .gpr = {[RBX] = DIFF_LDATA + 0x400}, CODE(0x0f, 0xae, 0x03)}},
    {"FXRSTOR without XMM8 to XMM15; MXCSR is good behind FXSAVE",
     {.bits = 32,
      .fp_seed = 9,
      .gpr = {[RBX] = DIFF_LDATA + 0x400},
      CODE(0x0f, 0xae, 0x03, 0x0f, 0xef, 0xc0, 0x0f, 0xae, 0x0b)}},
    {"XSAVE and XRSTOR of everything",
     {.bits = 32,
      .fp_seed = 9,
      .gpr = {[RAX] = 0xe7, [RBX] = DIFF_LDATA + 0x200},
      CODE(0x0f, 0xae, 0x23, 0xc5, 0xfc, 0x77, 0x0f, 0xae, 0x2b)}},
    {"XSAVEC",
     {.bits = 32,
      .fp_seed = 9,
      .gpr = {[RAX] = 0xe7, [RBX] = DIFF_LDATA + 0x200},
      CODE(0x0f, 0xc7, 0x23)}},
    {"a branch past CS's limit to where nothing is mapped: #GP",
     {.cpl = 3, .bits = 32, .seg = {[SEG_CS] = DIFF_SEL(2)}, CODE(0xe9, 0, 0, 0x10, 0)}},
    {"a branch past CS's limit is no branch",
     {.cpl = 3, .bits = 32, .seg = {[SEG_CS] = DIFF_SEL(2)}, CODE(0xe9, 0, 0x30, 0, 0)}},
    {"RET past CS's limit under TF: #GP, no trap",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      CODE(0x68, 0, 0x30, 0, 0, 0x68, 0x02, 0x03, 0, 0, 0x9d, 0xc3)}},
    {"RET past CS's limit, after one that is not, with flags to keep",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .rflags = FL_ARITH,
      CODE(0x68, 0, 0x30, 0, 0, 0xe8, 0, 0, 0, 0, 0x83, 0x04, 0x24, 0x05, 0xc3, 0xc2, 8, 0)}},
    {"CALL past CS's limit has written the return address",
     {.cpl = 3, .bits = 32, .seg = {[SEG_CS] = DIFF_SEL(2)}, CODE(0xe8, 0, 0x30, 0, 0)}},
    {"and found that there is no stack first",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .gpr = {[RSP] = DIFF_LDATA + 0x2800},
      CODE(0xe8, 0, 0x30, 0, 0)}},
    {"the same by register",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .gpr = {[RBX] = 0x3000},
      CODE(0xff, 0xd3)}},
    {"an indirect JMP to the byte after the limit",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .gpr = {[RBX] = 0x3000},
      CODE(0xff, 0xe3)}},
    {"Jcc past CS's limit", /* one that is not taken, one that is */
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .rflags = FL_ZF,
      CODE(0x0f, 0x85, 0, 0x30, 0, 0, 0x0f, 0x84, 0, 0x30, 0, 0)}},
    {"LOOPE past CS's limit",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .start = 0x10,
      .rflags = FL_ZF,
      .gpr = {[RCX] = 1},
      CODE(0xe1, 0x80, 0x41, 0x41, 0xe1, 0x80)}},
    {"JCXZ past CS's limit",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_CS] = DIFF_SEL(2)},
      .start = 0x10,
      .gpr = {[RCX] = 0x10000},
      CODE(0xe3, 0x80, 0x67, 0xe3, 0x80)}},
    {"RETF reads two bytes of CS",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_SS] = DIFF_SEL(10)},
      .gpr = {[RSP] = 0xfff9, [RAX] = DIFF_LCODE + 0x120, [RBX] = DIFF_LSTACK + 0x1ff9},
      CODE(0x89, 0x03, 0x66, 0xc7, 0x43, 0x04, DIFF_UCS32, 0, 0xcb)}},
    {"and no page behind them",
     {.cpl = 3,
      .bits = 32,
      .gpr = {[RSP] = DIFF_LSTACK + 0x1ffa, [RAX] = DIFF_LCODE + 0x120},
      CODE(0x89, 0x04, 0x24, 0x66, 0xc7, 0x44, 0x24, 0x04, DIFF_UCS32, 0, 0xcb)}},
    {"so does IRET",
     {.cpl = 3,
      .bits = 32,
      .seg = {[SEG_SS] = DIFF_SEL(10)},
      .gpr = {[RSP] = 0xfff9, [RAX] = DIFF_LCODE + 0x120, [RBX] = DIFF_LSTACK + 0x1ff9},
      CODE(0x89, 0x03, 0x66, 0xc7, 0x43, 0x04, DIFF_UCS32, 0, 0xcf)}},
    {"ENTER: the push that must be possible at the end is four bytes",
     {.cpl = 3,
      .bits = 32,
      .gpr = {[RSP] = DIFF_LWRAP + 0x1000 + 0xf3f0, [RBP] = 0},
      .seg = {[SEG_SS] = DIFF_UDS},
      CODE(0xc8, 0xef, 0xf3, 0)}},
    {"VPCMPESTRI with W: lengths of 32 bits",
     {.bits = 32, .gpr = {[RDX] = 0xffffffff}, CODE(0xc4, 0xe3, 0xf9, 0x61, 0xd2, 0xc2)}},
    {"gathers know of segments",
     {.bits = 32,
      .fp_seed = 9,
      .seg = {[SEG_DS] = DIFF_SEL(18)},
      .gpr = {[RBX] = 0x100},
      CODE(0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8b)}},
    {"flags of AAS", {.bits = 32, .rflags = 0x844, .gpr = {0x1f7}, CODE(0x3f)}},
    {"flags of AAD", {.bits = 32, .gpr = {0xe2c30ec4}, CODE(0xd5, 0x33)}},
    {"INTO under TF: no trap before the handler",
     {.cpl = 3, .bits = 32, CODE(0x68, 0x02, 0x0b, 0, 0, 0x9d, 0xce)}},
    {"MOVBE with 66h in 16-bit code",
     {.bits = 16, .gpr = {[RCX] = 0x12345678, [RBX] = 0x400}, CODE(0x66, 0x0f, 0x38, 0xf1, 0x0f)}},
    {"BOUND: the second bound's offset wraps",
     {.bits = 16, .seg = {[SEG_DS] = DIFF_SEL(9)}, .gpr = {[RBX] = 0xfffc}, CODE(0x62, 0x07)}},
    {"LES: the selector's offset wraps",
     {.cpl = 3,
      .bits = 16,
      .seg = {[SEG_DS] = DIFF_SEL(9)},
      .gpr = {[RBX] = 0xfffe},
      CODE(0xc4, 0x07)}},
    {"POP ES of four bytes reads two",
     {.cpl = 3,
      .bits = 16,
      .seg = {[SEG_SS] = DIFF_SEL(10)},
      .gpr = {[RSP] = 0xfffe},
      CODE(0x66, 0x07)}},
};

static void run_all(const struct engine_config *cfg, enum diff_world world)
{
    static struct diff_native native;
    static struct diff_guest guest;
    static struct diff_result r;
    diff_legacy = true;
    cr_assert_eq(diff_native_start(&native), 0);
    diff_guest_start_in(&guest, cfg, world);
    guest.patience_ms = 20000;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct diff_case c = cases[i].c;
        c.world = (uint8_t)world;
        if (!c.start)
            c.start = 0x100;
        if (world == DIFF_PROT)
            c.cpl = 3;
        if (!c.gpr[RSP])
            c.gpr[RSP] = c.bits == 32 ? DIFF_LSTACK + 0x1000 : 0x1000;
        for (unsigned s = 0; s < SEG_COUNT; s++)
            if (!c.seg[s])
                c.seg[s] = c.bits == 32  ? s == SEG_CS ? DIFF_UCS32 : DIFF_UDS
                           : s == SEG_CS ? DIFF_SEL(1)
                           : s == SEG_SS ? DIFF_SEL(8)
                                         : DIFF_SEL(7);
        for (unsigned round = 0; round < 3; round++) {
            native.sh->c[0] = c;
            diff_native_run(&native, 1);
            diff_guest_run(&guest, &c, &r);
            diff_native_wait(&native);
            const struct diff_result *n = &native.sh->r[0];
            cr_expect_eq(diff_compare(n, &r, &c, guest.pristine_ptr, DIFF_FLAGS, stderr), 0,
                         "%s (round %u)", cases[i].what, round);
        }
    }
    cr_expect_eq(((const struct bt_engine *)guest.f.engine)->stats.rejected, 0);
    diff_guest_stop(&guest);
    diff_native_stop(&native);
}

Test(translator_diff32, soft)
{
    run_all(&(struct engine_config){.mem_mode = MEM_SOFT, .verify = true}, DIFF_COMPAT);
}
Test(translator_diff32, window)
{
    run_all(&(struct engine_config){.mem_mode = MEM_WINDOW, .verify = true}, DIFF_COMPAT);
}
Test(translator_diff32, protected)
{
    run_all(&(struct engine_config){.mem_mode = MEM_MIXED, .verify = true}, DIFF_PROT);
}
