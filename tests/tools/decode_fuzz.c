/*
 * Fuzzes the decoder: random bytes in every mode, ending right before an unmapped page.
 *
 * usage: decode_fuzz [count] [seed]
 *
 * Properties: nothing behind `avail` is read (a fault ends the program); the result depends on the
 * instruction's own bytes alone; a cut-off instruction is told apart from an invalid one; every
 * field is in range.  Exit status 1 and the bytes of the first counterexample if one fails.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "translator/insn.h"

static uint64_t state;

static uint64_t rng(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            return #cond;                                                                          \
    } while (0)

static const char *check_fields(const struct insn *in, int len)
{
    CHECK(len >= 1 && len <= 15 && in->len == len);
    CHECK(in->op < OP_COUNT);
    CHECK(in->mnemonic != NULL);
    CHECK(in->fpu <= FPU_XSAVE);
    if (in->op == OP_INVALID) {
        CHECK(in->flags == 0 && in->mem.base == REG_NONE);
        return NULL;
    }
    CHECK(in->opcode_off < len && in->raw[in->opcode_off] == in->opcode);
    CHECK(in->disp_off + in->disp_size <= len && in->imm_off + in->imm_size <= len);
    CHECK((in->disp_size != 0) == (in->disp_off != 0));
    CHECK((in->imm_size != 0) == (in->imm_off != 0));
    CHECK(in->op_size == 1 || in->op_size == 2 || in->op_size == 4 || in->op_size == 8);
    CHECK(in->addr_size == 2 || in->addr_size == 4 || in->addr_size == 8);
    CHECK(in->reg < 32 && in->rm < 32 && in->vvvv < 32 && in->evex_mask < 8);
    CHECK(in->mem.base < 16 || in->mem.base == REG_NONE || in->mem.base == BASE_RIP);
    CHECK(in->mem.index < 32 || in->mem.index == REG_NONE);
    CHECK(in->mem.scale == 1 || in->mem.scale == 2 || in->mem.scale == 4 || in->mem.scale == 8);
    CHECK(in->mem.seg < SEG_COUNT && in->mem.size <= 512);
    CHECK(!(in->flags & (INSN_MEM_READ | INSN_MEM_WRITE)) || (in->flags & INSN_MEM));
    CHECK(!(in->flags & INSN_LOCK) || (in->flags & INSN_MEM_WRITE));
    CHECK(!(in->flags & INSN_MEM) || (in->flags & (INSN_MEM_READ | INSN_MEM_WRITE)));
    CHECK(!(in->flags & INSN_MEM) || in->mem.size || (in->op >= OP_XSAVE && in->op <= OP_XRSTOR));
    CHECK(!(in->flags & INSN_RM_GPR) || in->mod == 3);
    CHECK(!(in->flags & INSN_VSIB) || in->op == OP_GATHER || in->op == OP_SCATTER);
    if (in->flags & INSN_MEM && !(in->flags & INSN_VSIB) && in->mem.index < 16)
        CHECK(in->gpr_read >> in->mem.index & 1);
    if (in->flags & INSN_MEM && in->mem.base < 16)
        CHECK(in->gpr_read >> in->mem.base & 1);
    return NULL;
}

/* `end` is the first unmapped byte. */
static const char *check_one(const uint8_t *code, uint8_t *end, enum insn_mode mode)
{
    struct insn full, part;
    uint8_t *p = end - 15;
    const char *error;

    memcpy(p, code, 15);
    int len = insn_decode(&full, p, 15, mode);
    error = check_fields(&full, len);
    if (error)
        return error;
    for (int avail = 0; avail < 15; avail++) {
        p = end - avail;
        memcpy(p, code, (size_t)avail);
        int n = insn_decode(&part, p, (size_t)avail, mode);
        if (avail < len) {
            CHECK(n == 0);
            continue;
        }
        CHECK(n == len);
        memcpy(part.raw + len, full.raw + len, sizeof(part.raw) - (size_t)len);
        CHECK(memcmp(&part, &full, sizeof(part)) == 0);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x67, 0x40,
                                       0x48, 0x41, 0x4c, 0x0f, 0x0f, 0x0f, 0xc4, 0xc5, 0x62, 0x62};
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;

    state = (argc > 2 ? strtoull(argv[2], NULL, 0) : 1) * 0x9e3779b97f4a7c15ULL + 1;
    uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || mprotect(page + 4096, 4096, PROT_NONE)) {
        perror("mmap");
        return 2;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint8_t code[16];
        uint64_t a = rng(), b = rng();
        memcpy(code, &a, 8);
        memcpy(code + 8, &b, 8);
        unsigned k = rng() % 16 == 0 ? 15 : rng() % 5; /* now and then nothing but prefixes */
        for (unsigned j = 0; j < k; j++)
            code[j] = prefixes[rng() % (k == 15 ? 13 : sizeof(prefixes))];
        enum insn_mode mode = (enum insn_mode)(i % 4 == 0   ? MODE_32
                                               : i % 4 == 1 ? MODE_16
                                                            : MODE_64);
        const char *error = check_one(code, page + 4096, mode);
        if (error) {
            printf("mode %d:", mode);
            for (int j = 0; j < 15; j++)
                printf(" %02x", code[j]);
            printf("\n%s does not hold\n", error);
            return 1;
        }
    }
    printf("%lu byte strings, all properties hold\n", (unsigned long)count);
    return 0;
}
