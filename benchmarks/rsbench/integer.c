/*
 * Integer work: CRC, sorting, hash tables, trees, pointer chasing, regular expressions, a bytecode
 * interpreter and a compressor.
 */
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "rsbench.h"

static struct result bench_crc32(void)
{
    static uint32_t table[256];
    static uint8_t data[65536];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[i] = c;
    }
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)rng();
    uint32_t crc = ~0u;
    start();
    for (uint64_t r = 0; r < 100; r++)
        for (unsigned i = 0; i < sizeof(data); i++)
            crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
    stop();
    return (struct result){100 * (sizeof(data) / 1024), ~crc};
}

static void quicksort(uint32_t *a, int64_t lo, int64_t hi)
{
    while (lo < hi) {
        uint32_t pivot = a[(lo + hi) / 2];
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - lo < hi - i) {
            quicksort(a, lo, j);
            lo = i;
        } else {
            quicksort(a, i, hi);
            hi = j;
        }
    }
}

static struct result bench_sort(void)
{
    enum { COUNT = 200000 };
    uint32_t *a = get_memory(COUNT * 4);
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 2; r++) {
        for (unsigned i = 0; i < COUNT; i++)
            a[i] = (uint32_t)rng();
        quicksort(a, 0, COUNT - 1);
        for (unsigned i = 1; i < COUNT; i++)
            if (a[i - 1] > a[i])
                abort();
        check = check * 31 + a[COUNT / 3];
    }
    stop();
    munmap(a, COUNT * 4);
    return (struct result){2ull * COUNT, check};
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static struct result bench_qsort(void)
{
    enum { COUNT = 100000 };
    uint32_t *a = get_memory(COUNT * 4);
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 2; r++) {
        for (unsigned i = 0; i < COUNT; i++)
            a[i] = (uint32_t)rng();
        qsort(a, COUNT, 4, compare_u32);
        check = check * 31 + a[COUNT / 3];
    }
    stop();
    munmap(a, COUNT * 4);
    return (struct result){2ull * COUNT, check};
}

static struct result bench_hash(void)
{
    enum { BITS = 17, SLOTS = 1 << BITS };
    struct slot {
        uint64_t key, value;
    } *t = get_memory(SLOTS * sizeof(*t));
    uint64_t check = 0, ops = 0;
    start();
    for (uint64_t r = 0; r < 15; r++) {
        memset(t, 0, SLOTS * sizeof(*t));
        for (unsigned i = 0; i < SLOTS; i++, ops++) {
            uint64_t key = rng() % (SLOTS / 2) + 1;
            uint64_t h = key * 0x9e3779b97f4a7c15ull >> (64 - BITS);
            while (t[h].key && t[h].key != key)
                h = (h + 1) & (SLOTS - 1);
            t[h].key = key;
            t[h].value += i;
            check += t[h].value;
        }
    }
    stop();
    munmap(t, SLOTS * sizeof(*t));
    return (struct result){ops, check};
}

/* A random cycle through nodes of 64 bytes each. */
static struct result chase(uint64_t steps, size_t bytes)
{
    size_t count = bytes / 64;
    struct node {
        struct node *next;
        uint64_t value;
    } __attribute__((aligned(64))) *nodes = get_memory(bytes);
    uint32_t *order = get_memory(count * 4);
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = (size_t)(rng() % i); /* Sattolo: one cycle */
        uint32_t x = order[i];
        order[i] = order[j];
        order[j] = x;
    }
    for (size_t i = 0; i < count; i++) {
        nodes[order[i]].next = &nodes[order[(i + 1) % count]];
        nodes[order[i]].value = i;
    }
    struct node *p = nodes;
    uint64_t check = 0;
    start();
    for (uint64_t i = 0; i < steps; i++) {
        check += p->value;
        p = p->next;
    }
    stop();
    munmap(nodes, bytes);
    munmap(order, count * 4);
    return (struct result){steps, check};
}

static struct result bench_chase32k(void)
{
    return chase(10000000, 32768);
}
static struct result bench_chase16m(void)
{
    return chase(300000, 16 << 20);
}

/* A stack machine that computes primes; the dispatch is one indirect jump per instruction. */
static struct result bench_interp(void)
{
    enum { PUSH, LOAD, STORE, ADD, MUL, MOD, LT, JZ, JMP, INC, HALT };
    /* for (i = 2; i < 3000; i++) { for (d = 2; d * d < i + 1; d++) if (i % d == 0) goto no;
     * count++; no: } */
    static const int32_t code[] = {
        PUSH, 2, STORE, 0,                                             /*  0: i = 2           */
        LOAD, 0, PUSH,  3000, LT,  JZ,   45,                           /*  4: i < 3000 ?      */
        PUSH, 2, STORE, 1,                                             /* 11: d = 2           */
        LOAD, 1, LOAD,  1,    MUL, LOAD, 0,  PUSH, 1, ADD, LT, JZ, 39, /* 15: d * d < i + 1 ? */
        LOAD, 0, LOAD,  1,    MOD, JZ,   41,                           /* 28: i % d           */
        INC,  1, JMP,   15,                                            /* 35: d++             */
        INC,  2,                                                       /* 39: count++         */
        INC,  0, JMP,   4,                                             /* 41: i++             */
        HALT,                                                          /* 45                  */
    };
    uint64_t ops = 0, check = 0;
    start();
    for (unsigned r = 0; r < 10; r++) {
        int64_t stack[16], vars[4] = {0};
        int64_t *sp = stack;
        const int32_t *pc = code;
        for (;;) {
            ops++;
            switch (*pc++) {
            case PUSH:
                *sp++ = *pc++;
                continue;
            case LOAD:
                *sp++ = vars[*pc++];
                continue;
            case STORE:
                vars[*pc++] = *--sp;
                continue;
            case ADD:
                sp--;
                sp[-1] += sp[0];
                continue;
            case MUL:
                sp--;
                sp[-1] *= sp[0];
                continue;
            case MOD:
                sp--;
                sp[-1] = (int32_t)sp[-1] % (int32_t)sp[0];
                continue;
            case LT:
                sp--;
                sp[-1] = sp[-1] < sp[0];
                continue;
            case JZ:
                pc = *--sp ? pc + 1 : code + *pc;
                continue;
            case JMP:
                pc = code + *pc;
                continue;
            case INC:
                vars[*pc++]++;
                continue;
            default:
                break;
            }
            break;
        }
        check += (uint64_t)vars[2];
    }
    stop();
    return (struct result){ops, check};
}

/* A byte-oriented LZ77 compressor with a hash of the last occurrence, and its decompressor. */
static size_t lz_compress(const uint8_t *in, size_t size, uint8_t *out, uint32_t *heads)
{
    size_t i = 0, o = 0, literal = 0;
    memset(heads, 0, 4 << 14);
    while (i + 4 < size) {
        uint32_t v;
        memcpy(&v, in + i, 4);
        uint32_t h = v * 2654435761u >> 18;
        size_t cand = heads[h];
        heads[h] = (uint32_t)i + 1;
        if (cand && i - (cand - 1) < 65536 && !memcmp(in + cand - 1, in + i, 4)) {
            size_t from = cand - 1, len = 4;
            while (i + len < size && len < 255 && in[from + len] == in[i + len])
                len++;
            for (; literal < i; literal += 255) {
                size_t run = i - literal < 255 ? i - literal : 255;
                out[o++] = 0;
                out[o++] = (uint8_t)run;
                for (size_t k = 0; k < run; k++)
                    out[o++] = in[literal + k];
            }
            out[o++] = (uint8_t)len;
            out[o++] = (uint8_t)(i - from);
            out[o++] = (uint8_t)((i - from) >> 8);
            i += len;
            literal = i;
        } else {
            i++;
        }
    }
    for (; literal < size; literal += 255) {
        size_t run = size - literal < 255 ? size - literal : 255;
        out[o++] = 0;
        out[o++] = (uint8_t)run;
        for (size_t k = 0; k < run; k++)
            out[o++] = in[literal + k];
    }
    return o;
}

static size_t lz_expand(const uint8_t *in, size_t size, uint8_t *out)
{
    size_t i = 0, o = 0;
    while (i < size) {
        if (in[i]) {
            size_t len = in[i], back = in[i + 1] | (size_t)in[i + 2] << 8;
            for (size_t k = 0; k < len; k++, o++)
                out[o] = out[o - back];
            i += 3;
        } else {
            size_t run = in[i + 1];
            memcpy(out + o, in + i + 2, run);
            o += run;
            i += 2 + run;
        }
    }
    return o;
}

static struct result bench_lz(void)
{
    enum { SIZE = 1 << 20 };
    uint8_t *text = get_memory(SIZE), *packed = get_memory(2 * SIZE), *back = get_memory(SIZE);
    uint32_t *heads = get_memory(4 << 14);
    static const char *const words[] = {"the ",      "translator ", "of ",    "blocks ",
                                        "guest ",    "page ",       "fault ", "and ",
                                        "register ", "x",           "0",      "\n"};
    for (size_t i = 0; i < SIZE;) {
        const char *w = words[rng() % 12];
        for (; *w && i < SIZE; w++)
            text[i++] = (uint8_t)*w;
        if (i < SIZE && (rng() & 3) == 0)
            text[i++] = (uint8_t)('a' + rng() % 26);
    }
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 3; r++) {
        size_t size = lz_compress(text, SIZE, packed, heads);
        if (lz_expand(packed, size, back) != SIZE || memcmp(text, back, SIZE))
            abort();
        check += size;
    }
    stop();
    munmap(text, SIZE);
    munmap(packed, 2 * SIZE);
    munmap(back, SIZE);
    munmap(heads, 4 << 14);
    return (struct result){3 * (SIZE / 1024), check};
}

/* Linked lists, matrices and a state machine, with a CRC over the results: the mix that embedded
 * processors are compared with. */
struct item {
    struct item *next;
    int16_t key, value;
};

static uint16_t crc16(uint16_t data, uint16_t crc)
{
    for (unsigned i = 0; i < 16; i++) {
        bool carry = (data ^ crc) & 1;
        crc >>= 1;
        if (carry)
            crc ^= 0xa001;
        data >>= 1;
    }
    return crc;
}

static struct item *merge_lists(struct item *a, struct item *b, bool by_key)
{
    struct item *head = NULL, **tail = &head;
    while (a && b) {
        struct item **take = (by_key ? a->key <= b->key : a->value <= b->value) ? &a : &b;
        *tail = *take;
        tail = &(*take)->next;
        *take = (*take)->next;
    }
    *tail = a ? a : b;
    return head;
}

static struct item *sort_list(struct item *list, bool by_key)
{
    if (!list || !list->next)
        return list;
    struct item *slow = list, *fast = list->next;
    while (fast && fast->next) {
        slow = slow->next;
        fast = fast->next->next;
    }
    struct item *second = slow->next;
    slow->next = NULL;
    return merge_lists(sort_list(list, by_key), sort_list(second, by_key), by_key);
}

static struct item *reverse_list(struct item *list)
{
    struct item *done = NULL;
    while (list) {
        struct item *next = list->next;
        list->next = done;
        done = list;
        list = next;
    }
    return done;
}

enum { CORE_N = 24 };
static uint16_t core_matrix(int16_t (*a)[CORE_N], int16_t (*b)[CORE_N], int16_t add)
{
    int32_t sum = 0;
    for (unsigned i = 0; i < CORE_N; i++)
        for (unsigned j = 0; j < CORE_N; j++) {
            int32_t s = 0;
            for (unsigned k = 0; k < CORE_N; k++)
                s += (a[i][k] + add) * b[k][j];
            sum = sum * 3 + ((s >> 2) & 0x7f) + ((s >> 5) & 0xff);
        }
    return (uint16_t)(sum ^ sum >> 16);
}

/* Which of integer, fraction, exponent or garbage each number of a text is. */
static uint16_t core_states(const char *text)
{
    enum { BEGIN, SIGN, INTEGER, FRACTION, EXP, EXPSIGN, EXPINT, BAD, STATES } state = BEGIN;
    uint16_t final[STATES] = {0};
    for (const char *s = text;; s++) {
        char c = *s;
        bool digit = c >= '0' && c <= '9';
        if (c == ',' || !c) {
            final[state]++;
            state = BEGIN;
            if (!c)
                break;
            continue;
        }
        switch (state) {
        case BEGIN:
            state = digit ? INTEGER : c == '+' || c == '-' ? SIGN : c == '.' ? FRACTION : BAD;
            break;
        case SIGN:
            state = digit ? INTEGER : c == '.' ? FRACTION : BAD;
            break;
        case INTEGER:
            state = digit ? INTEGER : c == '.' ? FRACTION : c == 'e' ? EXP : BAD;
            break;
        case FRACTION:
            state = digit ? FRACTION : c == 'e' ? EXP : BAD;
            break;
        case EXP:
            state = digit ? EXPINT : c == '+' || c == '-' ? EXPSIGN : BAD;
            break;
        case EXPSIGN:
        case EXPINT:
            state = digit ? EXPINT : BAD;
            break;
        default:
            break;
        }
    }
    uint16_t crc = 0;
    for (unsigned i = 0; i < STATES; i++)
        crc = crc16(final[i], crc);
    return crc;
}

static struct result bench_core(void)
{
    enum { ITEMS = 400, ROUNDS = 100 };
    static struct item items[ITEMS];
    static int16_t a[CORE_N][CORE_N], b[CORE_N][CORE_N];
    static char text[1200];
    static const char *const numbers[] = {"5012,", "-874,", "+122,",   "35.54400,", ".1234500,",
                                          "0.1e2", "T0.3,", "-T.T++,", "5.5e+3,",   "-.123e-2,"};
    for (unsigned i = 0; i < ITEMS; i++)
        items[i] =
            (struct item){i + 1 < ITEMS ? &items[i + 1] : NULL, (int16_t)rng(), (int16_t)rng()};
    for (unsigned i = 0; i < CORE_N; i++)
        for (unsigned j = 0; j < CORE_N; j++) {
            a[i][j] = (int16_t)(rng() & 0xff);
            b[i][j] = (int16_t)(rng() & 0xff);
        }
    for (size_t n = 0; n < sizeof(text) - 16;)
        n += (size_t)sprintf(text + n, "%s", numbers[rng() % 10]);
    uint16_t crc = 0;
    struct item *list = items;
    start();
    for (unsigned r = 0; r < ROUNDS; r++) {
        list = sort_list(list, r & 1);
        unsigned nth = 0;
        for (struct item *i = list; i; i = i->next)
            if (nth++ % 8 == r % 8)
                crc = crc16((uint16_t)(i->key ^ i->value), crc);
        list = reverse_list(list);
        crc = crc16(core_matrix(a, b, (int16_t)r), crc);
        crc = crc16(core_states(text), crc);
        text[r * 7 % 1000] ^= 1;
    }
    stop();
    return (struct result){ROUNDS, crc};
}

/* A treap: insertions, look-ups and removals in a binary tree that rotates. */
struct tnode {
    struct tnode *child[2];
    uint32_t key, priority;
};

static struct tnode *tree_insert(struct tnode *t, struct tnode *fresh)
{
    if (!t)
        return fresh;
    if (t->key == fresh->key)
        return t;
    bool right = fresh->key > t->key;
    t->child[right] = tree_insert(t->child[right], fresh);
    struct tnode *c = t->child[right];
    if (c->priority <= t->priority)
        return t;
    t->child[right] = c->child[!right];
    c->child[!right] = t;
    return c;
}

static struct tnode *tree_join(struct tnode *a, struct tnode *b)
{
    if (!a || !b)
        return a ? a : b;
    if (a->priority > b->priority) {
        a->child[1] = tree_join(a->child[1], b);
        return a;
    }
    b->child[0] = tree_join(a, b->child[0]);
    return b;
}

static struct result bench_tree(void)
{
    enum { COUNT = 20000 };
    static struct tnode pool[COUNT];
    struct tnode *root = NULL;
    uint64_t check = 0;
    start();
    for (unsigned i = 0; i < COUNT; i++) {
        pool[i] = (struct tnode){{NULL, NULL}, (uint32_t)(rng() % (4 * COUNT)), (uint32_t)rng()};
        root = tree_insert(root, &pool[i]);
    }
    for (unsigned i = 0; i < 2 * COUNT; i++) {
        uint32_t key = (uint32_t)(rng() % (4 * COUNT));
        const struct tnode *t = root;
        unsigned depth = 0;
        while (t && t->key != key) {
            t = t->child[key > t->key];
            depth++;
        }
        check += t ? 1000 + depth : depth;
    }
    for (unsigned i = 0; i < COUNT; i++) {
        uint32_t key = (uint32_t)(rng() % (4 * COUNT));
        struct tnode **at = &root;
        while (*at && (*at)->key != key)
            at = &(*at)->child[key > (*at)->key];
        if (*at) {
            *at = tree_join((*at)->child[0], (*at)->child[1]);
            check += 3;
        }
    }
    stop();
    return (struct result){4ull * COUNT, check};
}

/* glibc's regular expressions over a text. */
static struct result bench_regex(void)
{
    static const char *const patterns[] = {"[a-z]+@[a-z]+\\.(org|com|net)",
                                           "(fault|page|guest) [0-9]+", "^x(y|z)*w$"};
    static char text[40000];
    for (size_t n = 0; n < sizeof(text) - 64;) {
        static const char *const words[] = {
            "guest ",       "user@host.org ", "page 42 ", "xyzzyw\n",
            "a@b.invalid ", "fault ",         "0x1234 ",  "; "};
        n += (size_t)sprintf(text + n, "%s", words[rng() % 8]);
    }
    uint64_t check = 0;
    start();
    for (unsigned p = 0; p < 3; p++) {
        regex_t re;
        if (regcomp(&re, patterns[p], REG_EXTENDED | REG_NEWLINE))
            abort();
        regmatch_t m;
        for (const char *s = text; !regexec(&re, s, 1, &m, s == text ? 0 : REG_NOTBOL);
             s += m.rm_eo)
            check = check * 31 + (uint64_t)(s - text) + (uint64_t)m.rm_so;
        regfree(&re);
    }
    stop();
    return (struct result){3 * (sizeof(text) / 1024), check};
}

const struct bench integer_benches[] = {
    {"core", bench_core, "iteration"},
    {"crc32", bench_crc32, "KiB"},
    {"sort", bench_sort, "element"},
    {"qsort", bench_qsort, "element"},
    {"hash", bench_hash, "update"},
    {"tree", bench_tree, "operation"},
    {"chase32k", bench_chase32k, "step"},
    {"chase16m", bench_chase16m, "step"},
    {"regex", bench_regex, "KiB"},
    {"interp", bench_interp, "bytecode"},
    {"lz", bench_lz, "KiB"},
    {0},
};
