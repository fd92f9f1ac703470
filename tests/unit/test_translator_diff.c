/*
 * What the differential test against the host CPU (tests/tools/diff_host.c) found, kept for good:
 * each case once came out differently through the translator.
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
    struct diff_case c;
};

#define CODE(...) .len = sizeof((uint8_t[]){__VA_ARGS__}), .code = {__VA_ARGS__}

static const struct found cases[] = {
    {"POPF with TF and AC: a callout that leaves its block lost the arithmetic flags",
     {.cpl = 3, .rflags = 0x891, CODE(0x68, 0x94, 0x0b, 0x24, 0x00, 0x9d)}},
    {"single step: the frame shows flags that are dead",
     {.cpl = 3,
      .rflags = 0x811,
      CODE(0x68, 0x01, 0x43, 0, 0, 0x9d, 0x68, 0x11, 0x88, 0x1e, 0x86, /* push, popf, push */
           0x48, 0xba, 0xe0, 0x1f, 0, 0, 0, 0x70, 0, 0, 0x36, 0x22, 0x6a, 0x02)}},
    {"MOVQ XMM6, XMM11 between accesses through one window: the verifier took it for a write of R11",
     {.cpl = 3,
      .fp_seed = 5,
      .gpr = {[RDX] = 0x20000100},
      CODE(0x0f, 0x10, 0x62, 0xf0, 0xf3, 0x49, 0x0f, 0x7e, 0xf3, 0x0f, 0x15, 0x52, 0xb0)}},
    {"an opmask whose number is RSP's, between pushes: the verifier took it for a write of RSP",
     {.cpl = 3, .fp_seed = 5, CODE(0x53, 0xc4, 0xe1, 0xfb, 0x93, 0xd4, 0x55)}}, /* kmovq rdx, k4 */
    {"#GP for alignment comes before #PF",
     {.gpr = {[RCX] = 1}, CODE(0x67, 0x66, 0x0f, 0xd5, 0x99, 0xce, 0x02, 0, 0)}},
    {"masked scalar: only bit 0 of the mask counts",
     {.gpr = {[R8] = 0x20002971},
      .fp_seed = 0x7f286b8f9afaacc7,
      CODE(0x62, 0x43, 0x55, 0x04, 0x55, 0x30, 0x64)}},
    {"VMASKMOVPS of an unmapped operand without active elements",
     {.gpr = {[R11] = 0x700000001335},
      .gs_base = 0x6fffff2a2613,
      .fp_seed = 0x7b13620a0f6df8c1,
      CODE(0x65, 0xc4, 0xc2, 0x79, 0x2c, 0x0b)}},
    {"masked conversion of a non-canonical operand",
     {.cpl = 3,
      .start = 0xff3,
      .gpr = {[RCX] = 0xf40c76ed6be06bc4},
      .fp_seed = 0x6872e58ee48fec68,
      CODE(0x62, 0x75, 0x7c, 0x29, 0x79, 0x3c, 0xcf)}},
    {"masked aligned store without active elements, misaligned",
     {.gpr = {[R8] = 0x2000169f},
      .gs_base = 0x6fffff7154d3,
      .fp_seed = 0x2599c28a62ec4495,
      CODE(0x65, 0x62, 0x11, 0xfd, 0x0b, 0x7f, 0xb0, 0x3b, 0xfb, 0xff, 0xff)}},
    {"an x87 store that stores nothing, across pages: old bounce bytes went to the guest",
     {.cpl = 3,
      .gpr = {[RCX] = 0x20000b8d},
      .fp_seed = 0x26245fac53e44b87,
      CODE(0xdd, 0x89, 0x6e, 0x04, 0, 0)}},
    {"FNSAVE in 16-bit format has FIP elsewhere",
     {.gpr = {[R13] = 0x700000001b88, [R14] = 0x35},
      .fp_seed = 0x49782f65d4e04fbe,
      CODE(0x66, 0x47, 0xdd, 0x74, 0xf5, 0x15)}},
    {"rotates leave OF alone for most counts",
     {.cpl = 3,
      .rflags = 0xc41,
      .fp_seed = 0x49dcc84887ab3511,
      CODE(0x68, 0x90, 0x0e, 0, 0, 0x9d, 0x46, 0xdd, 0x14, 0x5c, /* fst [rsp+r11*2] */
           0x9e, 0x49, 0xc0, 0xcf, 0x4b)}},
    {"BTR leaves PF alone",
     {.gpr = {[RSP] = 0x300012a8, [R12] = 0x28},
      .rflags = 0x54,
      CODE(0x4e, 0x0f, 0xba, 0xb4, 0x24, 0x6e, 0xfa, 0xff, 0xff, 0xbb, 0x0f, 0x8a, 1, 0, 0, 0, 0x5a,
           0x66, 0x43, 0x2a, 0xd8)}},
    {"DIV leaves the flags alone",
     {.gpr = {[RDX] = 0x20000051},
      .rflags = 0x45,
      CODE(0x67, 0x66, 0xf2, 0xf7, 0xb2, 0x60, 0x07, 0, 0)}},
    {"IDIV leaves the flags alone",
     {.cpl = 3,
      .gpr = {[R13] = 0x700000000811},
      .rflags = 0xc1,
      CODE(0xf2, 0x49, 0xf7, 0xbd, 0xc3, 0xfe, 0xff, 0xff)}},
    {"a VEX gather that faults has cleared its mask's upper half",
     {.rflags = 0x4c4,
      .fs_base = 0xf009939,
      .fp_seed = 0xcaa647458d64667f,
      CODE(0x64, 0xc4, 0xc2, 0xc5, 0x90, 0xac, 0xcf, 0xd3, 0, 0, 0)}},
    {"VPGATHERQD spreads the signs of mask elements that have no index",
     {.cpl = 3, .fp_seed = 0x9c749120e6624791, CODE(0xc4, 0x82, 0x25, 0x91, 0x04, 0x04)}},
    {"VPGATHERQD, 128 bits",
     {.cpl = 3, .fp_seed = 0x31821607eb15e641, CODE(0xc4, 0xa2, 0x61, 0x91, 0x14, 0x4b)}},
    {"a gather that faults late has cleared its destination's upper half",
     {.gpr = {[R11] = 0x20004cb4},
      .fp_seed = 0xcdfa9fdbb4c218f9,
      CODE(0xc4, 0x82, 0x55, 0x92, 0x14, 0xdb)}},
    {"but not what is in its vector, though above its elements",
     {.gpr = {[R11] = 0x20004cb4},
      .fp_seed = 0xcdfa9fdbb4c218f9,
      CODE(0xc5, 0xe5, 0x76, 0xdb, 0xc5, 0xdd, 0x73, 0xd3, 8, 0xc5, 0xe9, 0xef, 0xd2, 0xc4, 0xe3, 0x6d,
           0x38, 0xd4, 1, 0xc4, 0xc2, 0x65, 0x93, 0x0c, 0x13)}}, /* vgatherqps xmm1, [r11 + ymm2], xmm3 */
    {"one that faults at once has not",
     {.cpl = 3,
      .fp_seed = 0x7cac51f75eb6f861,
      CODE(0xc4, 0xe2, 0x51, 0x90, 0x14, 0x25, 0xb7, 0x03, 0, 0)}},
    {"#AC of a ten-byte operand",
     {.cpl = 3,
      .rflags = 0x94,
      .fp_seed = 0xc24f1a586b488783,
      CODE(0x68, 0x50, 0x02, 0x24, 0, 0x9d, 0x48, 0xba, 0x5e, 0x0c, 0, 0, 0, 0x70, 0, 0, 0xdb, 0xaa,
           0x9d, 0x03, 0, 0)}},
    {"#AC comes before #GP at the edge of the canonical half",
     {.cpl = 3,
      CODE(0x68, 0x10, 0x4e, 0x04, 0, 0x9d, 0x48, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0,
           0x4a, 0xd1, 0x08)}},
};

/* Where other vendors' processors may differ. */
static const struct found intel_cases[] = {
    {"REP MOVS, ECX = 0: upper halves",
     {.gpr = {[RCX] = 0x100000000, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf3, 0xa4)}},
    {"REP STOS, ECX = 0",
     {.gpr = {[RCX] = 0x100000000, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf3, 0xab)}},
    {"REP MOVS, the first element faults",
     {.gpr = {[RCX] = 0x100000002, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf3, 0xa4)}},
    {"REP CMPS, the first element faults",
     {.gpr = {[RCX] = 0x100000002, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf3, 0xa6)}},
    {"REP LODS, ECX = 0",
     {.gpr = {[RCX] = 0x100000000, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf3, 0xac)}},
    {"REPE CMPS, ECX = 0",
     {.gpr = {[RCX] = 0x100000000, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf3, 0xa6)}},
    {"REPNE SCAS, ECX = 0",
     {.gpr = {[RCX] = 0x100000000, [RSI] = 0x200000002, [RDI] = 0x300000003}, CODE(0x67, 0xf2, 0xaf)}},
};

static void run_all(const struct engine_config *cfg, bool kicks)
{
    static struct diff_native native;
    static struct diff_guest guest;
    static struct diff_result r;
    cr_assert_eq(diff_native_start(&native), 0);
    diff_guest_start(&guest, cfg);
    guest.patience_ms = 20000;
    guest.kicks = kicks;
    uint64_t seed = 99;
    const unsigned n_cases = sizeof cases / sizeof cases[0];
    const unsigned n_intel = diff_intel() ? sizeof intel_cases / sizeof intel_cases[0] : 0;
    for (unsigned i = 0; i < n_cases + n_intel; i++) {
        const struct found *found = i < n_cases ? &cases[i] : &intel_cases[i - n_cases];
        struct diff_case c = found->c;
        if (!c.gpr[RSP])
            c.gpr[RSP] = DIFF_STACK + 0x1000;
        for (unsigned round = 0; round < 20; round++) {
            native.sh->c[0] = c;
            diff_native_run(&native, 1);
            diff_guest_run(&guest, &c, &r);
            diff_native_wait(&native);
            const struct diff_result *n = &native.sh->r[0];
            cr_expect_eq(diff_compare(n, &r, &c, guest.pristine_ptr, DIFF_FLAGS, stderr), 0,
                         "%s (round %u)", found->what, round);
            if (round >= 10)
                c.start = (uint16_t)(0x1000 - diff_below(&seed, c.len + 1u)); /* across pages */
        }
    }
    cr_expect_eq(((const struct bt_engine *)guest.f.engine)->stats.rejected, 0);
    diff_guest_stop(&guest);
    diff_native_stop(&native);
}

Test(translator_diff, soft)
{
    run_all(&(struct engine_config){.mem_mode = MEM_SOFT, .verify = true}, false);
}
Test(translator_diff, mixed)
{
    run_all(&(struct engine_config){.mem_mode = MEM_MIXED, .verify = true}, false);
}
Test(translator_diff, window)
{
    run_all(&(struct engine_config){.mem_mode = MEM_WINDOW, .verify = true}, false);
}
Test(translator_diff, chaos)
{
    run_all(&(struct engine_config){.chaos = true, .verify = true}, true);
}
