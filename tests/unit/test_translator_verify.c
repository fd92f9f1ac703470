/*
 * The verifier accepts what the translator emits and refuses what it must never emit: real blocks,
 * damaged by hand in every way that would open the sandbox.
 */
#include "tests/support/diff_guest.h"

#include "translator/emit.h"
#include "translator/trace.h"

#include <criterion/criterion.h>

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    atomic_fetch_or(&v->events, events);
}

static struct diff_guest guest;
static struct diff_result result;

static struct bt_engine *engine(void)
{
    return (struct bt_engine *)guest.f.engine;
}

static void run(unsigned cpl, const uint8_t *code, unsigned len)
{
    struct diff_case c = {.cpl = (uint8_t)cpl, .start = 0x100, .len = (uint16_t)len};
    memcpy(c.code, code, len);
    for (unsigned r = 0; r < 16; r++)
        c.gpr[r] = DIFF_DATA + 0x100 * r;
    c.gpr[RSP] = DIFF_STACK + 0x1000;
    c.gpr[RCX] = 3;
    diff_guest_run(&guest, &c, &result);
}

/* Code with every kind of thing in it; flags are live across some of the accesses. */
static const uint8_t sample[] = {
    0x48, 0x8b, 0x03,                            /* mov rax, [rbx]                */
    0x48, 0x89, 0x43, 0x08,                      /* mov [rbx+8], rax              */
    0x48, 0x01, 0xc0,                            /* add rax, rax                  */
    0x48, 0x8b, 0x56, 0x10,                      /* mov rdx, [rsi+16]             */
    0x48, 0x11, 0x16,                            /* adc [rsi], rdx                */
    0x4d, 0x8b, 0x12,                            /* mov r10, [r10]                */
    0x8a, 0x27,                                  /* mov ah, [rdi]                 */
    0x53, 0x5a,                                  /* push rbx; pop rdx             */
    0x0f, 0xae, 0x07,                            /* fxsave [rdi]                  */
    0xf3, 0x0f, 0x6f, 0x06,                      /* movdqu xmm0, [rsi]            */
    0x66, 0x0f, 0xf7, 0xc1,                      /* maskmovdqu xmm0, xmm1         */
    0x48, 0x63, 0x84, 0x8e, 0x20, 0,    0,    0, /* movsxd rax, [rsi+rcx*4+32]    */
    0x48, 0x8d, 0x05, 0x00, 0x20, 0x00, 0x00,    /* lea rax, [rip+0x2000]         */
    0x0f, 0xa2,                                  /* cpuid                         */
    0x48, 0x8b, 0x07,                            /* mov rax, [rdi]                */
    0xb9, 1,    0,    0,    0,                   /* mov ecx, 1                    */
    0xff, 0xc9,                                  /* dec ecx                       */
    0x75, 0xfc,                                  /* jnz                           */
    0xc7, 0x03, 0,    0,    0,    0,             /* mov dword [rbx], 0            */
    0xe8, 0,    0,    0,    0,                   /* call next                     */
    0x58,                                        /* pop rax                       */
};

/* Window checks that hold across instructions with implicit and explicit outputs. */
static const uint8_t hoisted[] = {
    0x0f, 0xb6, 0x46, 0x01,                   /* movzx eax, byte [rsi+1] */
    0x48, 0x8b, 0x14, 0x83,                   /* mov rdx, [rbx+rax*4]  */
    0x8a, 0x24, 0x83,                         /* mov ah, [rbx+rax*4]   */
    0x48, 0x8b, 0x43, 0x18,                   /* mov rax, [rbx+24]     */
    0xb9, 3,    0,    0,    0,                /* mov ecx, 3            */
    0x48, 0x99,                               /* cqo                   */
    0x48, 0xf7, 0xf9,                         /* idiv rcx              */
    0x48, 0x03, 0x83, 0xd0, 0x00, 0x00, 0x00, /* add rax, [rbx+0xd0]   */
    0x48, 0x0f, 0xaf, 0xd1,                   /* imul rdx, rcx         */
    0x48, 0x01, 0x93, 0xc8, 0x00, 0x00, 0x00, /* add [rbx+0xc8], rdx   */
    0x48, 0x6b, 0xd1, 0x05,                   /* imul rdx, rcx, 5      */
    0x48, 0x03, 0x43, 0x20,                   /* add rax, [rbx+32]     */
    0x48, 0xf7, 0xe1,                         /* mul rcx               */
    0x48, 0x03, 0x43, 0x28,                   /* add rax, [rbx+40]     */
    0x48, 0x8d, 0x56, 0x40,                   /* lea rdx, [rsi+64]     */
    0x48, 0x03, 0x4a, 0x08,                   /* add rcx, [rdx+8]      */
    0x48, 0x98,                               /* cdqe                  */
    0x48, 0x03, 0x4a, 0x10,                   /* add rcx, [rdx+16]     */
    0x48, 0x8d, 0x47, 0x40,                   /* lea rax, [rdi+64]     */
    0x48, 0x03, 0x48, 0x08,                   /* add rcx, [rax+8]      */
    0x48, 0x99,                               /* cqo                   */
    0x48, 0x03, 0x48, 0x10,                   /* add rcx, [rax+16]     */
    0xf2, 0x66, 0x0f, 0x38, 0xf1, 0xca,       /* crc32 ecx, dx         */
    0x48, 0x8b, 0x04, 0x24,                   /* mov rax, [rsp]        */
    0x49, 0x89, 0xe3,                         /* mov r11, rsp          */
    0x48, 0x83, 0xe4, 0xf0,                   /* and rsp, -16          */
    0x4c, 0x89, 0xd8,                         /* mov rax, r11          */
    0x48, 0x8b, 0x70, 0x20,                   /* mov rsi, [rax+32]     */
    0x31, 0xc0,                               /* xor eax, eax          */
};

/* An instruction that Capstone 4 does not know between checks and what they are good for. */
static const uint8_t masks[] = {
    0x48, 0x8b, 0x04, 0x24,       /* mov rax, [rsp]   */
    0x48, 0x03, 0x0f,             /* add rcx, [rdi]   */
    0x48, 0x89, 0xf8,             /* mov rax, rdi     */
    0xc4, 0xe1, 0xfb, 0x93, 0xd4, /* kmovq rdx, k4    */
    0x48, 0x03, 0x48, 0x08,       /* add rcx, [rax+8] */
    0x48, 0x03, 0x4c, 0x24, 0x08, /* add rcx, [rsp+8] */
    0x31, 0xc0,                   /* xor eax, eax     */
};

/* A loop whose checks are made once, with an index that is no more than 32 bits by a check. */
static const uint8_t loop[] = {
    0x31, 0xd2,                         /* xor edx, edx        */
    0x0f, 0x1f, 0x40, 0x00,             /* 1: nop              */
    0x48, 0x8b, 0x04, 0xd3,             /* mov rax, [rbx+rdx*8] */
    0x48, 0x89, 0x04, 0xd6,             /* mov [rsi+rdx*8], rax */
    0x48, 0x8b, 0x07,                   /* mov rax, [rdi]      */
    0x48, 0x83, 0xc7, 0x08,             /* add rdi, 8          */
    0x48, 0xff, 0xc2,                   /* inc rdx             */
    0x48, 0x83, 0xfa, 0x08,             /* cmp rdx, 8          */
    0x75, 0xe8,                         /* jne 1b              */
};

/* Indexes that are no more than 32 bits by a check, whatever has been done to them before. */
static const uint8_t indexes[] = {
    0x48, 0xc7, 0xc0, 0xfe, 0xff, 0xff, 0xff, /* mov rax, -2          */
    0x48, 0xf7, 0xd0,                         /* not rax              */
    0x48, 0x8b, 0x0c, 0xc3,                   /* mov rcx, [rbx+rax*8] */
    0x31, 0xc0,                               /* xor eax, eax         */
    0x48, 0x89, 0xc2,                         /* mov rdx, rax         */
    0x48, 0x21, 0xda,                         /* and rdx, rbx         */
    0x48, 0x29, 0xd2,                         /* sub rdx, rdx         */
    0x48, 0x83, 0xe2, 0xf0,                   /* and rdx, -16         */
    0x48, 0x8b, 0x0c, 0x93,                   /* mov rcx, [rbx+rdx*4] */
    0x85, 0xc0,                               /* test eax, eax        */
    0x74, 0x01,                               /* je +1                */
    0x90,
};

/* What is known of RDX is known behind operations of bytes, which leave it alone. */
static const uint8_t bytes[] = {
    0x48, 0x89, 0xda,             /* mov rdx, rbx  */
    0x31, 0xc0,                   /* xor eax, eax  */
    0x80, 0x22, 0x00,             /* and byte [rdx], 0 */
    0xf6, 0x22,                   /* mul byte [rdx]  */
    0xf6, 0x2a,                   /* imul byte [rdx] */
    0xfe, 0x02,                   /* inc byte [rdx]  */
    0xf6, 0x32,                   /* div byte [rdx]  */
    0xf6, 0x3a,                   /* idiv byte [rdx] */
    0x85, 0xc0,                   /* test eax, eax */
    0x74, 0x01,                   /* je +1         */
    0x90,
};

/* String instructions, with one operand and with two. */
static const uint8_t strings[] = {
    0x31, 0xc0,                   /* xor eax, eax  */
    0xf3, 0xa4,                   /* rep movsb     */
    0x48, 0xa5,                   /* movsq         */
    0x83, 0xc1, 0x05,             /* add ecx, 5    */
    0xf3, 0xab,                   /* rep stosd     */
    0x66, 0xad,                   /* lodsw         */
    0x83, 0xc1, 0x05,             /* add ecx, 5    */
    0xf3, 0xa6,                   /* repe cmpsb    */
    0xf2, 0xae,                   /* repne scasb   */
    0x48, 0x8b, 0x44, 0x24, 0x10, /* mov rax, [rsp+16] */
};

/* The stack in every way that is not through its address (native_stack.c). */
static const uint8_t stack[] = {
    0x53,                                           /* push rbx                 */
    0x48, 0x83, 0xec, 0x20,                         /* sub rsp, 32              */
    0x48, 0x89, 0x44, 0x24, 0x08,                   /* mov [rsp+8], rax         */
    0x48, 0x8d, 0x54, 0x24, 0x10,                   /* lea rdx, [rsp+16]        */
    0x48, 0x89, 0xe0,                               /* mov rax, rsp             */
    0x83, 0xe1, 0x07,                               /* and ecx, 7               */
    0x8b, 0x04, 0x8c,                               /* mov eax, [rsp+rcx*4]     */
    0x49, 0x89, 0xe0,                               /* mov r8, rsp              */
    0x48, 0x83, 0xe4, 0xf0,                         /* and rsp, -16             */
    0x48, 0x39, 0xc8,                               /* cmp rax, rcx             */
    0x4c, 0x89, 0xc4,                               /* mov rsp, r8              */
    0x54, 0x5a,                                     /* push rsp; pop rdx        */
    0x68, 0x78, 0x56, 0x34, 0x12,                   /* push 0x12345678          */
    0x5a,                                           /* pop rdx                  */
    0x48, 0x87, 0xe2,                               /* xchg rdx, rsp            */
    0x48, 0x87, 0xe2,                               /* xchg rdx, rsp            */
    0x48, 0x0f, 0xb1, 0x14, 0x24,                   /* cmpxchg [rsp], rdx       */
    0x48, 0x89, 0xf9,                               /* mov rcx, rdi             */
    0x0f, 0xa5, 0x39,                               /* shld [rcx], edi, cl      */
    0x48, 0x03, 0x41, 0x08,                         /* add rax, [rcx+8]         */
    0x48, 0x8d, 0xa4, 0x24, 0x00, 0x00, 0x00, 0x10, /* lea rsp, [rsp+0x10000000] */
    0x48, 0x8d, 0xa4, 0x24, 0x00, 0x00, 0x00, 0x10, /* lea rsp, [rsp+0x10000000] */
    0x48, 0x8d, 0xa4, 0x24, 0x00, 0x00, 0x00, 0x10, /* lea rsp, [rsp+0x10000000] */
    0x48, 0x8d, 0xa4, 0x24, 0x00, 0x00, 0x00, 0x10, /* lea rsp, [rsp+0x10000000] */
    0x48, 0x8d, 0xa4, 0x24, 0x00, 0x00, 0x00, 0x10, /* lea rsp, [rsp+0x10000000] */
    0xeb, 0x00,                                     /* jmp next                 */
    0x48, 0x8d, 0xa4, 0x24, 0x00, 0x00, 0x00, 0xb0, /* lea rsp, [rsp-0x50000000] */
    0x48, 0x83, 0xc4, 0x20,                         /* add rsp, 32              */
    0x5b,                                           /* pop rbx                  */
    0x31, 0xc0,                                     /* xor eax, eax             */
};

/* A check that holds over more checks of other addresses than there are registers. */
static unsigned put_long_lived(uint8_t *code)
{
    static const uint8_t first[] = {0x48, 0x8b, 0x03};             /* mov rax, [rbx]          */
    static const uint8_t other[] = {0x48, 0x8b, 0x54, 0x8e, 0x20}; /* mov rdx, [rsi+rcx*4+32] */
    static const uint8_t last[] = {0x48, 0x03, 0x43, 0x08,         /* add rax, [rbx+8]        */
                                   0x31, 0xc0};                    /* xor eax, eax            */
    unsigned len = sizeof first;

    memcpy(code, first, sizeof first);
    for (unsigned i = 0; i < 40; i++, len += sizeof other)
        memcpy(code + len, other, sizeof other);
    memcpy(code + len, last, sizeof last);
    return len + sizeof last;
}

typedef void (*visit)(const struct tb *tb, uint8_t *copy, uint32_t size);

static void each_block(visit f)
{
    for (unsigned r = 0; r < CACHE_REGIONS; r++)
        for (unsigned i = 0; i < engine()->region[r].n_tbs; i++) {
            const struct tb *tb = engine()->region[r].tbs[i];
            uint32_t size = tb->host_end - tb->entry_ind;
            uint8_t *copy = malloc(size);
            memcpy(copy, (const void *)(uintptr_t)tb->entry_ind, size);
            f(tb, copy, size);
            free(copy);
        }
}

static void setup(unsigned mode)
{
    /* Both tiers of each block. */
    struct engine_config cfg = {.mem_mode = mode, .verify = true, .hot_threshold = 1};
    diff_guest_start(&guest, &cfg);
    guest.patience_ms = 20000;
    for (unsigned cpl = 0; cpl <= 3; cpl += 3)
        for (unsigned i = 0; i < 3; i++)
            run(cpl, sample, sizeof sample);
    for (unsigned i = 0; i < 3; i++)
        run(3, hoisted, sizeof hoisted);
    for (unsigned i = 0; i < 3 && __builtin_cpu_supports("avx512bw"); i++)
        run(3, masks, sizeof masks);
    for (unsigned i = 0; i < 3; i++)
        run(3, strings, sizeof strings);
    for (unsigned i = 0; i < 3; i++)
        run(3, loop, sizeof loop);
    for (unsigned i = 0; i < 3; i++)
        run(3, bytes, sizeof bytes);
    for (unsigned i = 0; i < 3; i++)
        run(3, indexes, sizeof indexes);
    for (unsigned cpl = 0; cpl <= 3; cpl += 3)
        for (unsigned i = 0; i < 3; i++)
            run(cpl, stack, sizeof stack);
    uint8_t code[256];
    unsigned len = put_long_lived(code);
    for (unsigned i = 0; i < 3; i++)
        run(3, code, len);
}

static unsigned seen, applied, accepted;

static void expect_good(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    seen++;
    cr_expect(bt_verify_bytes(engine(), tb, copy, false));
}

Test(translator_verify, accepts_soft)
{
    setup(MEM_SOFT);
    each_block(expect_good);
    cr_expect_gt(seen, 4);
    cr_expect_eq(engine()->stats.rejected, 0);
    diff_guest_stop(&guest);
}

Test(translator_verify, accepts_windows)
{
    setup(MEM_WINDOW);
    each_block(expect_good);
    cr_expect_gt(seen, 8);
    cr_expect_eq(engine()->stats.rejected, 0);
    diff_guest_stop(&guest);
}

/* A vCPU's windows are 50 TiB of addresses: when it is gone others can have them. */
Test(translator_verify, windows_end_with_their_vcpu)
{
    unsigned first = 0;
    for (unsigned i = 0; i < 5; i++) {
        struct engine_config cfg = {.mem_mode = MEM_WINDOW};
        diff_guest_start(&guest, &cfg);
        run(3, sample, sizeof sample);
        unsigned count = guest.f.v->engine->windows_on ? guest.f.v->engine->ws.count : 0;
        first = i ? first : count;
        cr_expect_eq(count, first, "%u windows for vCPU %u, %u for the first", count, i, first);
        diff_guest_stop(&guest);
    }
}

/* -- Damage ---------------------------------------------------------------------------------------
 */

/* Wherever `find` (bytes; -1 matches any) occurs, `put` (-1 keeps) must make the block
 * unacceptable. */
struct damage {
    const char *what;
    int find[16];
    unsigned len;
    int put[16];
    unsigned n_put;
};

#define FIND(...) {__VA_ARGS__}, sizeof((int[]){__VA_ARGS__}) / sizeof(int)
#define PUT(...)  {__VA_ARGS__}, sizeof((int[]){__VA_ARGS__}) / sizeof(int)
#define ANY4      -1, -1, -1, -1

static const struct damage soft_damage[] = {
    {"a bound one byte too far", FIND(0x49, 0x81, 0xfa, 0xf8, 0x0f, 0, 0),
     PUT(-1, -1, -1, 0xf9, -1, -1, -1)},
    {"no bound to speak of", FIND(0x49, 0x81, 0xfa, -1, 0x0f, 0, 0),
     PUT(-1, -1, -1, -1, 0xff, 0x7f, 0)},
    {"a signed comparison", FIND(0x0f, 0x87, ANY4), PUT(-1, 0x8f)},
    {"no branch to the slow path", FIND(0x0f, 0x87, ANY4), PUT(0x0f, 0x1f, 0x44, 0x00, 0x00, 0x90)},
    {"the branch the other way round", FIND(0x0f, 0x87, ANY4), PUT(-1, 0x86)},
    {"an index beyond the TLB", FIND(0x41, 0x81, 0xe3, 0xe0, 0x3f, 0, 0),
     PUT(-1, -1, -1, 0xe0, 0x7f, 0, 0)},
    {"an index between entries", FIND(0x41, 0x81, 0xe3, 0xe0, 0x3f, 0, 0),
     PUT(-1, -1, -1, 0xff, 0x3f, 0, 0)},
    {"an index beyond CPUID's answers", FIND(0x41, 0x81, 0xe3, 0xf0, 0x01, 0, 0),
     PUT(-1, -1, -1, 0xf0, 0x03, 0, 0)},
    {"a store to CPUID's answers", FIND(0x65, 0x41, 0x8b, 0x83, ANY4), PUT(-1, -1, 0x89)},
    {"no index mask", FIND(0x41, 0x81, 0xe3, 0xe0, 0x3f, 0, 0), PUT(0x0f, 0x1f, 0x80, 0, 0, 0, 0)},
    {"another entry's host address", FIND(0x65, 0x4d, 0x03, 0x93, ANY4), PUT(-1, -1, -1, 0x92)},
    {"the tag not subtracted", FIND(0x65, 0x4d, 0x2b, 0x93, ANY4),
     PUT(0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0)},
    {"the tag added", FIND(0x65, 0x4d, 0x2b, 0x93, ANY4), PUT(-1, -1, 0x03)},
    {"a store outside the state", FIND(0x65, 0x48, 0x89, 0x04, 0x25, ANY4),
     PUT(-1, -1, -1, -1, -1, 0, 0xff, 0xff, 0x7f)},
    {"a store to host_rsp", FIND(0x65, 0x48, 0x89, -1, 0x25, ANY4),
     PUT(-1, -1, -1, -1, -1, (int)(offsetof(struct vcpu, host_rsp) & 0xff),
         (int)(offsetof(struct vcpu, host_rsp) >> 8 & 0xff), 0, 0)},
    {"a store to the jump cache", FIND(0x65, 0x48, 0x89, -1, 0x25, ANY4),
     PUT(-1, -1, -1, -1, -1, (int)(offsetof(struct vcpu, jump_cache) & 0xff),
         (int)(offsetof(struct vcpu, jump_cache) >> 8 & 0xff),
         (int)(offsetof(struct vcpu, jump_cache) >> 16 & 0xff), 0)},
    {"the state through ds:", FIND(0x65, 0x48, 0x89, -1, 0x25, ANY4), PUT(0x3e)},
    {"the state through fs:", FIND(0x65, 0x48, 0x89, -1, 0x25, ANY4), PUT(0x64)},
    {"SYSCALL", FIND(0x45, 0x89, 0xd3), PUT(0x0f, 0x05, 0x90)},
    {"INT 80H", FIND(0x45, 0x89, 0xd3), PUT(0xcd, 0x80, 0x90)},
    {"a read through RBX", FIND(0x45, 0x89, 0xd3), PUT(0x44, 0x8b, 0x1b)},
    {"a write through RSP", FIND(0x45, 0x89, 0xd3), PUT(0x90, 0x50, 0x90)},
    {"RET", FIND(0x45, 0x89, 0xd3), PUT(0xc3, 0x90, 0x90)},
    {"an indirect jump", FIND(0x45, 0x89, 0xd3), PUT(0x41, 0xff, 0xe3)},
    {"an indirect call", FIND(0x45, 0x89, 0xd3), PUT(0x41, 0xff, 0xd3)},
    {"CPUID", FIND(0x45, 0x89, 0xd3), PUT(0x0f, 0xa2, 0x90)},
    {"a string instruction", FIND(0x45, 0x89, 0xd3), PUT(0x48, 0xa5, 0x90)},
    {"MOV to a segment", FIND(0x45, 0x89, 0xd3), PUT(0x41, 0x8e, 0xdb)},
    {"WRGSBASE", FIND(0x41, 0xc1, 0xeb, 0x07, 0x41), PUT(0xf3, 0x0f, 0xae, 0xd8, -1)},
    {"RDGSBASE", FIND(0x41, 0xc1, 0xeb, 0x07, 0x41), PUT(0xf3, 0x0f, 0xae, 0xc8, -1)},
    {"a jump into the middle of an instruction", FIND(0x0f, 0x87, -1, -1, 0, 0),
     PUT(-1, -1, 0x03, 0x00, 0, 0)},
    {"a direct jump into the VMM", FIND(0xe9, ANY4), PUT(-1, 0, 0, 0, 0x10)},
    {"a RIP-relative operand", FIND(0x65, 0x4d, 0x2b, 0x93, ANY4),
     PUT(0x90, 0x4c, 0x8b, 0x15, 0, 0, 0, 0)},
    /* Another site of the same block would do: where it resumes is checked. */
    {"no argument for a stub", FIND(0x41, 0xbb, ANY4, 0xe9, ANY4), PUT(-1, -1, 0x1c)},
    {"another argument for a stub", FIND(0x41, 0xbb, ANY4, 0xe9, ANY4), PUT(-1, -1, -1, -1, 0xff)},
    {"the middle of a stub", FIND(0x41, 0xbb, ANY4, 0xe9, ANY4),
     PUT(-1, -1, -1, -1, -1, -1, -1, 0x03)},
    {"none of the block's links", FIND(0x41, 0xba, ANY4, 0xe9, ANY4),
     PUT(-1, -1, -1, -1, -1, 0x00)},
};

static const struct damage window_damage[] = {
    {"a rotation that misses the window", FIND(0xc4, -1, 0xfb, 0xf0, -1, 39),
     PUT(-1, -1, -1, -1, -1, 40)},
    {"no branch when it is another window", FIND(0x0f, 0x85, ANY4, 0x65, 0x4c),
     PUT(0x0f, 0x1f, 0x44, 0, 0, 0x90)},
    {"the branch the other way round", FIND(0x0f, 0x85, ANY4, 0x65, 0x4c), PUT(-1, 0x84)},
    {"checked for another window than used", FIND(0xf0, -1, 39, 0x41, 0x80, 0xfa, 0x00),
     PUT(-1, -1, -1, -1, -1, -1, 0x01)},
    {"checked by lower bits", FIND(0xf0, -1, 39, 0x41, 0x80, 0xfa, 0x00), PUT(-1, -1, 38)},
    {"checked by higher bits", FIND(0xf0, -1, 39, 0x41, 0x80, 0xfa, 0x00), PUT(-1, -1, 40)},
    {"another register checked", FIND(0xf0, -1, 39, 0x41, 0x80, 0xfa, 0x00),
     PUT(-1, -1, -1, -1, -1, 0xfb)},
    {"an index that is not bounded", FIND(0x42, 0x0f, 0xb6, 0x44, 0x1e, 0x01),
     PUT(0x4a, 0x8b, 0x44, 0x1e, 0x01, 0x90)},
    {"IMUL of a register that was checked", FIND(0x48, 0x0f, 0xaf, 0xd1, 0x4a, 0x01, 0x94, 0x1b),
     PUT(-1, -1, -1, 0xd9)},
    {"CQO after a check of RDX", FIND(0x48, 0x98, 0x4a, 0x03, 0x4c, 0x1a), PUT(-1, 0x99)},
    {"CDQE after a check of RAX", FIND(0x48, 0x99, 0x4a, 0x03, 0x4c, 0x18), PUT(-1, 0x98)},
    /* lea r10, [rbx + r11]; mov rdx, [r10 + rax*4] */
    {"a sum and an index that is not bounded", FIND(0x4e, 0x8d, 0x14, 0x1b, 0x49, 0x8b, 0x14, 0x82),
     PUT(-1, -1, -1, -1, -1, -1, -1, 0x8a)},
    {"a sum with what was not checked", FIND(0x4e, 0x8d, 0x14, 0x1b, 0x49, 0x8b, 0x14, 0x82),
     PUT(-1, -1, -1, 0x1a)},
    {"a sum with twice the delta", FIND(0x4e, 0x8d, 0x14, 0x1b, 0x49, 0x8b, 0x14, 0x82),
     PUT(-1, -1, -1, 0x5b)},
    {"no sum", FIND(0x4e, 0x8d, 0x14, 0x1b, 0x49, 0x8b, 0x14, 0x82), PUT(0x0f, 0x1f, 0x40, 0x00)},
    {"an unbounded table index", FIND(0x45, 0x0f, 0xb7, 0xdb, 0x65, 0x4e, 0x8b),
     PUT(0x0f, 0x1f, 0x40, 0x00)},
    /* String instructions. */
    {"RSI is the guest's", FIND(0x4a, 0x8d, 0x34, 0x16, 0x4a), PUT(0x0f, 0x1f, 0x40, 0x00)},
    {"RDI is the guest's", FIND(0x4a, 0x8d, 0x3c, 0x1f, 0xf3), PUT(0x0f, 0x1f, 0x40, 0x00)},
    {"RSI by RDI's delta", FIND(0x4a, 0x8d, 0x34, 0x16, 0x4a), PUT(-1, -1, -1, 0x1e)},
    {"RSI off by a bit", FIND(0x4a, 0x8d, 0x34, 0x16, 0x4a), PUT(0x4a, 0x8d, 0x34, 0x56)},
    {"RDI from RDX", FIND(0x4a, 0x8d, 0x3c, 0x1f, 0xf3), PUT(-1, -1, -1, 0x1a)},
    {"the delta of another register", FIND(0xc4, 0x63, 0xfb, 0xf0, 0xde, 39, 0x45),
     PUT(-1, -1, -1, -1, 0xdb)},
    {"a delta lost before the instruction", FIND(0x4d, 0x89, 0xda), PUT(0x45, 0x31, 0xd2)},
    {"RSI stays the host's", FIND(0x4a, 0x8d, 0x74, 0x16, 0x01), PUT(0x0f, 0x1f, 0x44, 0, 0)},
    {"RDI stays the host's", FIND(0x4a, 0x8d, 0x7c, 0x1f, 0x01), PUT(0x0f, 0x1f, 0x44, 0, 0)},
    {"one less than the guest's", FIND(0x4a, 0x8d, 0x74, 0x16, 0x01), PUT(-1, -1, -1, -1, 0)},
    {"a delta that is added again", FIND(0x49, 0xf7, 0xd3), PUT(0x0f, 0x1f, 0x00)},
    {"the negative delta, and one", FIND(0x49, 0xf7, 0xd2), PUT(-1, -1, 0xda)},
    {"another string instruction", FIND(0xf3, 0xab), PUT(-1, 0xa5)},
    {"one with the other operand", FIND(0xf3, 0xab), PUT(-1, 0xad)},
    {"one with 32-bit addresses", FIND(0xf3, 0xa4), PUT(0x67)},
    {"one with FS", FIND(0xf3, 0xa4), PUT(0x64)},
    {"one with LOCK", FIND(0xf3, 0xa4), PUT(0xf0)},
    {"REP INSB", FIND(0xf3, 0xa4), PUT(-1, 0x6c)},
    {"REP OUTSB", FIND(0xf3, 0xa4), PUT(-1, 0x6e)},
    {"no string instruction where the side table says so", FIND(0xf3, 0xab), PUT(0x90, 0x90)},
};

#define STACK_NOT_16 (int)(VCPU_OFF(bt.stack_not) & 0xff), (int)(VCPU_OFF(bt.stack_not) >> 8 & 0xff)
#define NOP3         0x0f, 0x1f, 0x00
#define NOP4         0x0f, 0x1f, 0x40, 0
#define NOP5         0x0f, 0x1f, 0x44, 0, 0
#define NOP9         0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0

static const struct damage stack_damage[] = {
    {"PUSH of the host's RSP", FIND(0x53, 0x48, 0x8d, 0x64, 0x24, 0xe0), PUT(0x54)},
    {"PUSH of 16 bits", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a),
     PUT(0x66, 0x68, 0x34, 0x12, 0x90)},
    {"PUSH of a segment", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x0f, 0xa0, NOP3)},
    {"PUSH of memory", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0xff, 0x34, 0x24, 0x66, 0x90)},
    {"PUSHFQ", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x9c, NOP4)},
    {"POPFQ", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x9d, NOP4)},
    {"LEAVE", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0xc9, NOP4)},
    {"ENTER", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0xc8, 0, 0, 0, 0x90)},
    {"CALL", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0xe8, 0, 0, 0, 0)},
    {"RET", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0xc3, NOP4)},
    {"an ADD to RSP of a register", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a),
     PUT(0x48, 0x01, 0xc4, 0x66, 0x90)},
    {"an XCHG with RSP", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a),
     PUT(0x48, 0x87, 0xe2, 0x66, 0x90)},
    {"MOV RSP", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x48, 0x89, 0xd4, 0x66, 0x90)},
    {"a jump to itself", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0xeb, 0xfe, NOP3)},
    {"a loop of nothing but itself", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a),
     PUT(0xe2, 0xfe, 0x9c, 0x66, 0x90)},
    {"MOV ESP", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x89, 0xd4, NOP3)},
    {"MOV SPL", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x40, 0xb4, 0x08, 0x66, 0x90)},
    {"a comparison with RSP", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a),
     PUT(0x48, 0x39, 0xe0, 0x66, 0x90)},
    {"RSP as what is stored", FIND(0x48, 0x89, 0x44, 0x24, 0x08), PUT(-1, -1, 0x64)},
    {"RSP to an XMM register", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a),
     PUT(0x66, 0x48, 0x0f, 0x6e, 0xc4)},
    {"a load to RSP", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(0x48, 0x8b, 0x64, 0x24, 0x08)},
    {"POP of RSP", FIND(0x68, 0x78, 0x56, 0x34, 0x12, 0x5a), PUT(-1, -1, -1, -1, -1, 0x5c)},
    {"LEA of RSP to another register", FIND(0x48, 0x8d, 0x64, 0x24, 0xe0), PUT(-1, -1, 0x5c)},
    {"LEA of ESP to another register", FIND(0x48, 0x8d, 0x64, 0x24, 0xe0),
     PUT(0x67, 0x8d, 0x5c, 0x24, -1)},
    {"LEA to ESP", FIND(0x48, 0x8d, 0x64, 0x24, 0xe0), PUT(0x40)},
    {"LEA to RSP with a register", FIND(0x48, 0x8d, 0x64, 0x24, 0xe0), PUT(-1, -1, -1, 0x04)},
    {"AND with a positive constant", FIND(0x48, 0x83, 0xe4, 0xf0), PUT(-1, -1, -1, 0x70)},
    {"OR for AND", FIND(0x48, 0x83, 0xe4, 0xf0), PUT(-1, -1, 0xcc)},
    {"ADD for AND, which is not by LEA", FIND(0x48, 0x83, 0xe4, 0xf0), PUT(-1, -1, 0xc4)},
    {"the sum with another register", FIND(0x4b, 0x8d, 0x24, 0x1a), PUT(0x4a, -1, -1, 0x1b)},
    {"half the sum", FIND(0x4b, 0x8d, 0x24, 0x1a), PUT(0x49, 0x89, 0xd4, 0x90)},
    {"the delta twice", FIND(0x4b, 0x8d, 0x24, 0x1a), PUT(-1, -1, -1, 0x5a)},
    {"the delta not in its complement", FIND(0x49, 0xf7, 0xd3, 0x65, 0x4c, 0x89, 0x1c, 0x25),
     PUT(NOP3)},
    {"the delta's negative", FIND(0x49, 0xf7, 0xd3, 0x65, 0x4c, 0x89, 0x1c, 0x25),
     PUT(-1, -1, 0xdb)},
    {"another register's value as the delta", FIND(0x49, 0xf7, 0xd3, 0x65, 0x4c, 0x89, 0x1c, 0x25),
     PUT(-1, -1, -1, -1, -1, -1, 0x14)},
    {"the delta not stored", FIND(0x65, 0x4c, 0x89, 0x1c, 0x25, STACK_NOT_16), PUT(NOP9)},
    {"half the delta stored", FIND(0x65, 0x4c, 0x89, 0x1c, 0x25, STACK_NOT_16), PUT(-1, 0x44)},
    {"the delta of another window", FIND(0xc4, 0x43, 0xfb, 0xf0, 0xda, 39, 0x45, 0x0f, 0xb7, 0xdb),
     PUT(-1, -1, -1, -1, -1, 38)},
    {"LEA without the undo", FIND(0x48, 0x8d, 0x54, 0x14, 0x11), PUT(-1, -1, -1, 0x24)},
    {"LEA with twice the undo", FIND(0x48, 0x8d, 0x54, 0x14, 0x11), PUT(-1, -1, -1, 0x54)},
    {"LEA with another register", FIND(0x48, 0x8d, 0x54, 0x14, 0x11), PUT(-1, -1, -1, 0x1c)},
    {"LEA of 32 bits", FIND(0x48, 0x8d, 0x54, 0x14, 0x11), PUT(0x40)},
    {"MOV from RSP", FIND(0x48, 0x8d, 0x44, 0x04, 0x01), PUT(0x48, 0x89, 0xe0, 0x66, 0x90)},
    {"the undo from elsewhere", FIND(0x65, 0x48, 0x8b, 0x14, 0x25, STACK_NOT_16),
     PUT(-1, -1, -1, -1, -1, (int)((VCPU_OFF(bt.stack_not) & 0xff) ^ 8))},
    {"RSP far away and not used", FIND(0x44, 0x8b, 0x14, 0x24), PUT(NOP4)},
    {"used at another place", FIND(0x44, 0x8b, 0x14, 0x24), PUT(-1, -1, 0x13)},
    {"its address taken for its use", FIND(0x44, 0x8b, 0x14, 0x24), PUT(-1, 0x8d)},
};

static const struct damage door_damage[] = {
    {"no PEXT", FIND(0xc4, 0x42, 0xa2, 0xf5, 0xdb), PUT(NOP5)},
    {"PDEP", FIND(0xc4, 0x42, 0xa2, 0xf5, 0xdb), PUT(-1, -1, 0xa3)},
    {"BZHI", FIND(0xc4, 0x42, 0xa2, 0xf5, 0xdb), PUT(-1, -1, 0xa0)},
    {"PEXT by another mask", FIND(0xc4, 0x42, 0xa2, 0xf5, 0xdb), PUT(-1, -1, -1, -1, 0xda)},
    {"PEXT of another value", FIND(0xc4, 0x42, 0xa2, 0xf5, 0xdb), PUT(-1, -1, 0xaa)},
    {"PEXT to another register", FIND(0xc4, 0x42, 0xa2, 0xf5, 0xdb), PUT(-1, -1, -1, -1, 0xd3)},
    {"the byte before the probe", FIND(0xf5, 0xdb, 0x45, 0x8a, 0x9b, 0xff),
     PUT(-1, -1, -1, -1, -1, 0xfe)},
    {"a page further", FIND(0xf5, 0xdb, 0x45, 0x8a, 0x9b, 0xff, -1),
     PUT(-1, -1, -1, -1, -1, -1, 0x7f)},
    {"a probe that writes", FIND(0xf5, 0xdb, 0x45, 0x8a, 0x9b), PUT(-1, -1, -1, 0x88)},
    {"a probe of 8 bytes", FIND(0xf5, 0xdb, 0x45, 0x8a, 0x9b), PUT(-1, -1, 0x4d, 0x8b)},
    {"a probe of 4 bytes", FIND(0xf5, 0xdb, 0x45, 0x8a, 0x9b), PUT(-1, -1, -1, 0x8b)},
    {"a probe by R10", FIND(0xf5, 0xdb, 0x45, 0x8a, 0x9b), PUT(-1, -1, -1, -1, 0x9a)},
    {"a counter one further", FIND(0x8b, 0x0c, 0x25, -1, -1, -1, -1, 0x8d, 0x49, 0xff),
     PUT(-1, -1, -1, 0x01)},
    {"a count stored far away", FIND(0x89, 0x0c, 0x25, ANY4, 0xe3, 0x08),
     PUT(-1, -1, -1, 0, 0, 0, 0x10)},
    {"RCX not given back", FIND(0xe3, 0x08, 0x4c, 0x89, 0xd9, 0xe9), PUT(-1, 0x07)},
};

static const struct damage *list;
static unsigned n_list;
static unsigned applied_to[64];

static void apply(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    for (unsigned i = 0; i < n_list; i++) {
        const struct damage *d = &list[i];
        for (uint32_t at = 0; at + d->len <= size; at++) {
            uint8_t keep[16];
            bool found = true;
            for (unsigned k = 0; k < d->len; k++)
                found &= d->find[k] < 0 || d->find[k] == copy[at + k];
            if (!found)
                continue;
            memcpy(keep, copy + at, d->len);
            for (unsigned k = 0; k < d->n_put; k++)
                if (d->put[k] >= 0)
                    copy[at + k] = (uint8_t)d->put[k];
            if (memcmp(keep, copy + at, d->len)) {
                applied++;
                applied_to[i]++;
                bool ok = bt_verify_bytes(engine(), tb, copy, true);
                accepted += ok;
                cr_expect_not(ok, "%s: accepted at +%#x of the block at %#llx", d->what, at,
                              (unsigned long long)tb->gva);
            }
            memcpy(copy + at, keep, d->len);
        }
    }
}

static void damage_all(unsigned mode, const struct damage *l, unsigned n)
{
    setup(mode);
    list = l;
    n_list = n;
    each_block(apply);
    for (unsigned i = 0; i < n; i++)
        cr_expect_gt(applied_to[i], 0, "%s: no place for it was found", l[i].what);
    diff_guest_stop(&guest);
}

/* -- What links hand on (ahead.c) ------------------------------------------------------------------- */

static const struct tb *demanding;
static unsigned n_claims, n_entered;

static void find_demanding(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    if (tb->entry_known != tb->entry)
        demanding = tb;
}

/* A link that claims to know one register more; one that comes in behind checks it cannot do without. */
static void know_too_much(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    for (unsigned i = 0; i < tb->n_out; i++) {
        struct link *l = &tb->out[i];
        struct known keep = l->known;
        for (unsigned r = 0; r < 16 && !l->to; r++) {
            if ((keep.regs[0] | keep.regs[1]) >> r & 1)
                continue;
            l->known.regs[1] |= (uint16_t)(1u << r);
            l->known.id[1] = 0x77;
            cr_expect_not(bt_verify_bytes(engine(), tb, copy, true),
                          "register %u of a link of %#llx", r, (unsigned long long)tb->gva);
            l->known = keep;
            n_claims++;
        }
        if (!demanding || ahead_entrance(l, demanding) != demanding->entry || l->to)
            continue;
        uint32_t at = l->patch_x - tb->entry_ind, rel = demanding->entry_known - (l->patch_x + 4), old;
        memcpy(&old, copy + at, 4);
        memcpy(copy + at, &rel, 4);
        cr_expect_not(bt_verify_bytes(engine(), tb, copy, true), "a link of %#llx",
                      (unsigned long long)tb->gva);
        memcpy(copy + at, &old, 4);
        n_entered++;
    }
}

Test(translator_verify, refuses_links_that_know_too_much)
{
    setup(MEM_WINDOW);
    each_block(find_demanding);
    each_block(know_too_much);
    cr_expect(demanding);
    cr_expect_gt(n_claims, 0);
    cr_expect_gt(n_entered, 0);
    diff_guest_stop(&guest);
}

Test(translator_verify, refuses_damaged_soft_blocks)
{
    damage_all(MEM_SOFT, soft_damage, sizeof soft_damage / sizeof soft_damage[0]);
}

Test(translator_verify, refuses_damaged_window_blocks)
{
    damage_all(MEM_WINDOW, window_damage, sizeof window_damage / sizeof window_damage[0]);
}

Test(translator_verify, refuses_damaged_stacks)
{
    damage_all(MEM_WINDOW, stack_damage, sizeof stack_damage / sizeof stack_damage[0]);
}

Test(translator_verify, refuses_damaged_doors)
{
    setup(MEM_WINDOW);
    bool probes = engine()->probe;
    diff_guest_stop(&guest);
    if (!probes)
        cr_skip_test("PEXT is no quick instruction here: doors branch");
    damage_all(MEM_WINDOW, door_damage, sizeof door_damage / sizeof door_damage[0]);
}

/* Bytes at random: nothing to expect of each, but the verifier must neither crash nor hang. */
static void scramble(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    uint64_t s = tb->gva | 1;
    uint8_t *work = malloc(size);
    for (unsigned i = 0; i < 400; i++) {
        memcpy(work, copy, size);
        for (unsigned k = 0; k <= i % 4; k++)
            work[diff_below(&s, size)] = (uint8_t)diff_rnd(&s);
        accepted += bt_verify_bytes(engine(), tb, work, true);
        applied++;
    }
    free(work);
}

Test(translator_verify, survives_noise)
{
    setup(MEM_WINDOW);
    each_block(scramble);
    cr_expect_lt(accepted, applied / 2);
    diff_guest_stop(&guest);
}

/* The side table decides what a fault in the middle of a string instruction does to the registers.
 */
static void wrong_side_table(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    for (uint32_t i = 0; i < tb->n_side; i++) {
        unsigned kind = tb->side[i].kind;
        for (unsigned k = SIDE_STRING_BOTH; k <= SIDE_STRING_RDI + 1; k++) {
            unsigned put = k <= SIDE_STRING_RDI ? k : SIDE_INSIDE;
            if (put == kind || (k > SIDE_STRING_RDI && !side_is_string(kind)) ||
                (k <= SIDE_STRING_RDI && kind != SIDE_BOUNDARY && !side_is_string(kind)))
                continue;
            tb->side[i].kind = put & 31;
            bool ok = bt_verify_bytes(engine(), tb, copy, true);
            tb->side[i].kind = kind & 31;
            /* Behind the last instruction's boundary may be nothing that runs. */
            cr_expect(!ok || i + 1 == tb->n_side ||
                          side_host(tb, &tb->side[i]) == side_host(tb, &tb->side[i + 1]),
                      "kind %u instead of %u accepted at +%#x", put, kind, tb->side[i].host);
            applied++;
            seen += side_is_string(kind);
        }
    }
}

Test(translator_verify, refuses_a_wrong_side_table)
{
    setup(MEM_WINDOW);
    each_block(wrong_side_table);
    cr_expect_gt(applied, 50);
    cr_expect_gt(seen, 10);
    diff_guest_stop(&guest);
}

/* -- 32-bit code ----------------------------------------------------------------------------------- */

/* String instructions, and a call of a function that loads its return address. */
static const uint8_t flat_code[] = {
    0x8b, 0x03,                   /* mov eax, [ebx]     */
    0xf3, 0xa5,                   /* rep movsd          */
    0xb9, 0x40, 0,    0,    0,    /* mov ecx, 40h       */
    0xf3, 0xaa,                   /* rep stosb          */
    0xb9, 0x10, 0,    0,    0,    /* mov ecx, 10h       */
    0xf3, 0xa6,                   /* repe cmpsb         */
    0xad, 0xae,                   /* lodsd; scasb       */
    0xe8, 0x04, 0,    0,    0,    /* call 1f            */
    0x01, 0xd8,                   /* add eax, ebx       */
    0xeb, 0x04,                   /* jmp 2f             */
    0x8b, 0x1c, 0x24, 0xc3,       /* 1: mov ebx, [esp]; ret */
    0x40,                         /* 2: inc eax         */
};

static void setup_flat(void)
{
    struct engine_config cfg = {.mem_mode = MEM_WINDOW, .verify = true, .hot_threshold = 1};
    diff_legacy = true;
    diff_guest_start(&guest, &cfg);
    guest.patience_ms = 20000;
    for (unsigned i = 0; i < 3; i++) {
        struct diff_case c = {
            .cpl = 3, .bits = 32, .start = 0x100, .len = sizeof flat_code, .world = DIFF_COMPAT};
        memcpy(c.code, flat_code, sizeof flat_code);
        for (unsigned s = 0; s < SEG_COUNT; s++)
            c.seg[s] = DIFF_SEL(s == SEG_CS ? 0 : 6);
        for (unsigned r = 0; r < 8; r++)
            c.gpr[r] = DIFF_LDATA + 0x100 * r;
        c.gpr[RSP] = DIFF_LSTACK + 0x1000;
        c.gpr[RCX] = 3;
        diff_guest_run(&guest, &c, &result);
    }
}

static unsigned n_inlined;

/* The link of the call may lead to instructions only, and to those that leave the stack as it should be. */
static void misled_links(const struct tb *tb, uint8_t *copy, uint32_t size)
{
    cr_expect(bt_verify_bytes(engine(), tb, copy, false));
    for (unsigned i = 0; i < tb->n_out; i++) {
        uint32_t inlined = tb->out[i].inlined;
        if (!inlined)
            continue;
        n_inlined++;
        tb->out[i].inlined = inlined + 1;
        cr_expect_not(bt_verify_bytes(engine(), tb, copy, true));
        tb->out[i].inlined = tb->host_end;
        cr_expect_not(bt_verify_bytes(engine(), tb, copy, true));
        tb->out[i].inlined = inlined;
    }
}

Test(translator_verify, accepts_flat_code)
{
    setup_flat();
    cr_expect_eq(engine()->stats.rejected, 0);
    each_block(misled_links);
    cr_expect_gt(n_inlined, 0);
    diff_guest_stop(&guest);
}

static const struct damage flat_damage[] = {
    {"RSI that is not in the window", FIND(0x4a, 0x8d, 0x34, 0x1e), PUT(0x0f, 0x1f, 0x40, 0)},
    {"RDI that is not in the window", FIND(0x4a, 0x8d, 0x3c, 0x1f), PUT(0x0f, 0x1f, 0x40, 0)},
    {"a sum of 32 bits", FIND(0x4a, 0x8d, 0x34, 0x1e), PUT(0x42)},
    {"an index times 2", FIND(0x4a, 0x8d, 0x3c, 0x1f), PUT(-1, -1, -1, 0x5f)},
    {"ESI stays the host's", FIND(0x42, 0x8d, 0x74, 0x1e, 0x01), PUT(0x0f, 0x1f, 0x44, 0, 0)},
    {"EDI stays the host's", FIND(0x42, 0x8d, 0x7c, 0x1f, 0x01), PUT(0x0f, 0x1f, 0x44, 0, 0)},
    {"ESI with 64 bits", FIND(0x42, 0x8d, 0x74, 0x1e, 0x01), PUT(0x4a)},
    {"one less than the guest's", FIND(0x42, 0x8d, 0x74, 0x1e, 0x01), PUT(-1, -1, -1, -1, 0)},
    {"ESI from RDI", FIND(0x42, 0x8d, 0x74, 0x1e, 0x01), PUT(-1, -1, -1, 0x1f)},
    {"the window's base added again", FIND(0x49, 0xf7, 0xd3), PUT(0x0f, 0x1f, 0x00)},
    {"elements of eight bytes", FIND(0xf3, 0xa6), PUT(0x48)},
    {"another string instruction", FIND(0xf3, 0xa6), PUT(-1, 0xaa)},
    {"one with 32-bit addresses", FIND(0xf3, 0xa6), PUT(0x67)},
};

Test(translator_verify, refuses_damaged_flat_code)
{
    setup_flat();
    list = flat_damage;
    n_list = sizeof flat_damage / sizeof flat_damage[0];
    each_block(apply);
    for (unsigned i = 0; i < n_list; i++)
        cr_expect_gt(applied_to[i], 0, "%s: no place for it was found", list[i].what);
    diff_guest_stop(&guest);
}

Test(translator_verify, refuses_a_wrong_side_table_of_flat_code)
{
    setup_flat();
    each_block(wrong_side_table);
    cr_expect_gt(seen, 4);
    diff_guest_stop(&guest);
}
