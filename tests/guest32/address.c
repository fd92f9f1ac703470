/*
 * Operand and address sizes: 16-bit ModRM forms, 32-bit forms with SIB, prefixes 66 and 67 in all
 * combinations, string instructions, loops.
 */
#include "guest32.h"

static bool code32(unsigned m)
{
    return CODE32 >> m & 1;
}

static int32_t sext(u32 v, unsigned bytes)
{
    return bytes == 1 ? (int8_t)v : bytes == 2 ? (int16_t)v : (int32_t)v;
}

/* The bytes that loads find: different in each segment of the SEGBASES modes. */
static void fill(void)
{
    static const u32 bases[5] = {DS_BASE, SS_BASE, ES_BASE, FS_BASE, GS_BASE};
    for (unsigned s = 0; s < 5; s++)
        for (u32 i = 0; i < 0x10000; i += 4)
            *mem32(bases[s] + i) = (i * 0x9e3779b1u) ^ (bases[s] * 0x1003fu);
}

/* segment override prefixes and the base each stands for */
static const struct {
    u8 prefix;
    u32 base;
} overrides[] = {{0, 0},          {0x26, ES_BASE}, {0x36, SS_BASE},
                 {0x3e, DS_BASE}, {0x64, FS_BASE}, {0x65, GS_BASE}};

TEST(address, modrm16)
{
    fill();
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.ebx = 0xabcd1234;
        r.ebp = 0x98765678;
        r.esi = 0xfedc2345;
        r.edi = 0x0101f0f0;
        for (unsigned mod = 0; mod < 3; mod++)
            for (unsigned rm = 0; rm < 8; rm++)
                for (unsigned ov = 0; ov < 6; ov++) {
                    static const u32 disps[] = {0x0042, 0xff93, 0x7fff, 0x8001};
                    u32 disp = disps[(rm + ov) & 3];
                    unsigned dn = mod == 0 ? (rm == 6 ? 2 : 0) : mod;
                    u32 base = rm == 0   ? r.ebx + r.esi
                               : rm == 1 ? r.ebx + r.edi
                               : rm == 2 ? r.ebp + r.esi
                               : rm == 3 ? r.ebp + r.edi
                               : rm == 4 ? r.esi
                               : rm == 5 ? r.edi
                               : rm == 6 ? (mod ? r.ebp : 0)
                                         : r.ebx;
                    u32 ea = (base + (dn ? (u32)sext(disp, dn) : 0)) & 0xffff;
                    u8 *c = gen_start(m), *p = c;
                    context("%s, mod %u rm %u prefix %x", mode_name(m), mod, rm,
                            overrides[ov].prefix);
                    if (code32(m))
                        PUT(p, 0x67, 0x66);
                    PUT(p, 0x8d, (u8)(mod << 6 | 1 << 3 | rm)); /* lea cx, [...] */
                    p = put_bytes(p, &disp, dn);
                    if (SEGBASES >> m & 1) {
                        if (overrides[ov].prefix)
                            PUT(p, overrides[ov].prefix);
                        if (code32(m))
                            PUT(p, 0x67);
                        PUT(p, 0x8a, (u8)(mod << 6 | 2 << 3 | rm)); /* mov dl, [...] */
                        p = put_bytes(p, &disp, dn);
                    }
                    PUT(p, 0xcc);
                    if (!done(&r, c))
                        continue;
                    EQ(T.r.ecx, (r.ecx & 0xffff0000) | ea);
                    if (SEGBASES >> m & 1) {
                        u32 seg = overrides[ov].prefix                       ? overrides[ov].base
                                  : (rm == 2 || rm == 3 || (rm == 6 && mod)) ? SS_BASE
                                                                             : DS_BASE;
                        EQ(T.r.edx & 0xff, *(u8 *)(seg + ea));
                    }
                }
    }
}

TEST(address, sib32)
{
    fill();
    EACH_MODE(m, ALL)
    {
        struct regs r = regs_for(m);
        r.eax = 0x11;
        r.ecx = 0x203;
        r.edx = 0x3405;
        r.ebx = 0x150;
        r.ebp = 0x621;
        r.esi = 0x733;
        r.edi = 0x847;
        for (unsigned mod = 0; mod < 3; mod++)
            for (unsigned k = 0; k < 8 + 256; k += k < 8 ? 1 : 1) {
                bool sib = k >= 8;
                unsigned rm = sib ? 4 : k, s = k - 8;
                if (!sib && rm == 4)
                    continue;
                unsigned b = sib ? s & 7 : rm, x = s >> 3 & 7;
                unsigned dn = mod == 0 ? (b == 5 ? 4 : 0) : mod == 1 ? 1 : 4;
                u32 disp = dn == 1 ? (u32)(k * 5 & 0x7f) : 0x1234 + k * 3;
                u32 ea = dn ? disp : 0;
                if (!(mod == 0 && b == 5))
                    ea += (&r.eax)[b];
                if (sib && x != 4)
                    ea += (&r.eax)[x] << (s >> 6);
                unsigned ov = (k + mod) % 6;
                context("%s, mod %u rm %u sib %x prefix %x", mode_name(m), mod, rm, sib ? s : 0,
                        overrides[ov].prefix);
                u8 *c = gen_start(m), *p = c;
                if (!code32(m))
                    PUT(p, 0x67, 0x66);
                PUT(p, 0x8d, (u8)(mod << 6 | 1 << 3 | rm)); /* lea ecx, [...] */
                if (sib)
                    PUT(p, (u8)s);
                p = put_bytes(p, &disp, dn);
                struct regs q = r;
                bool load = (SEGBASES >> m & 1) && ea < 0x10000 && b != 1 && !(sib && x == 1);
                if (load) {
                    if (overrides[ov].prefix)
                        PUT(p, overrides[ov].prefix);
                    if (!code32(m))
                        PUT(p, 0x67);
                    PUT(p, 0x8a, (u8)(mod << 6 | 2 << 3 | rm)); /* mov dl, [...] */
                    if (sib)
                        PUT(p, (u8)s);
                    p = put_bytes(p, &disp, dn);
                }
                PUT(p, 0xcc);
                if (!done(&q, c))
                    continue;
                EQ(T.r.ecx, ea);
                if (load) {
                    bool ss = b == 4 || (b == 5 && mod);
                    u32 seg = overrides[ov].prefix ? overrides[ov].base : ss ? SS_BASE : DS_BASE;
                    EQ(T.r.edx & 0xff, *(u8 *)(seg + ea));
                }
            }
    }
}

/* Immediates, moffs and results follow the prefixes. */
TEST(address, prefixes)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++)
            for (unsigned a = 0; a < 2; a++) {
                bool o32 = code32(m) ^ o, a32 = code32(m) ^ a;
                context("%s, operand %u address %u", mode_name(m), o32 ? 32 : 16, a32 ? 32 : 16);
                struct regs r = regs_for(m);
                u32 off = a32 ? ds_off(m, 0x1230) : 0x1230; /* flat, 16-bit: linear 0x1230 */
                u32 lin = SEGBASES >> m & 1 || a32 ? DS_BASE + 0x1230 : 0x1230;
                *mem32(lin) = 0x76543210;
                u8 *c = gen_start(m), *p = c;
#define PRE()                                                                                      \
    do {                                                                                           \
        if (o)                                                                                     \
            PUT(p, 0x66);                                                                          \
        if (a)                                                                                     \
            PUT(p, 0x67);                                                                          \
    } while (0)
                PRE();
                PUT(p, 0xa1); /* mov ax, moffs */
                p = put_bytes(p, &off, a32 ? 4 : 2);
                PRE();
                PUT(p, 0x05); /* add ax, imm */
                p = put_bytes(p, &(u32){0x11111111}, o32 ? 4 : 2);
                PRE();
                PUT(p, 0xb9); /* mov cx, imm */
                p = put_bytes(p, &(u32){0x22222222}, o32 ? 4 : 2);
                PRE();
                PUT(p, 0x68); /* push imm */
                p = put_bytes(p, &(u32){0x33333333}, o32 ? 4 : 2);
                PRE();
                PUT(p, 0x6a, 0xfe); /* push imm8 */
                PRE();
                PUT(p, 0x83, 0xc2, 0x80); /* add dx, imm8 */
                PRE();
                PUT(p, 0xa3); /* mov moffs, ax */
                p = put_bytes(p, &off, a32 ? 4 : 2);
                PRE();
                PUT(p, 0xc7, a32 ? 0x05 : 0x06); /* mov [disp], imm */
                off += 8;
                p = put_bytes(p, &off, a32 ? 4 : 2);
                p = put_bytes(p, &(u32){0x44444444}, o32 ? 4 : 2);
                PRE();
                PUT(p, 0x69, 0xd9); /* imul bx, cx, imm */
                p = put_bytes(p, &(u32){0x00000003}, o32 ? 4 : 2);
                PRE();
                PUT(p, 0xf7, 0xc7); /* test di, imm */
                p = put_bytes(p, &(u32){0x80008000}, o32 ? 4 : 2);
                PUT(p, 0xcc);
                *mem32(lin + 8) = 0;
                if (!done(&r, c))
                    continue;
                u32 mask = o32 ? 0xffffffff : 0xffff;
#define MERGE(old, v) (((old) & ~mask) | ((v)&mask))
                u32 sum = MERGE(r.eax, 0x76543210u + 0x11111111u);
                EQ(T.r.eax, sum);
                EQ(T.r.ecx, MERGE(r.ecx, 0x22222222));
                EQ(T.r.edx, MERGE(r.edx, r.edx - 0x80));
                EQ(T.r.ebx, MERGE(r.ebx, 0x66666666));
                EQ(T.r.esp, r.esp - (o32 ? 8 : 4));
                EQ(*mem32(SS_BASE + 0x8000 - 4), o32 ? 0x33333333 : 0x3333fffe);
                if (o32)
                    EQ(*mem32(SS_BASE + 0x8000 - 8), 0xfffffffe);
                EQ(*mem32(lin), MERGE(0x76543210, sum));
                EQ(*mem32(lin + 8), 0x44444444 & mask);
            }
    }
}

/* Near branches with the other operand size truncate EIP to 16 bits, or not. */
TEST(address, near_branches)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned o = 0; o < 2; o++) {
            bool o32 = code32(m) ^ o;
            if (code32(m) && !o32)
                continue; /* below: target in the first 64 KiB */
            context("%s, operand %u", mode_name(m), o32 ? 32 : 16);
            struct regs r = regs_for(m);
            u8 *c = gen_start(m), *p = c, *far = c + 0x400;
            u32 rel;
#define REL(target)                                                                                \
    do {                                                                                           \
        rel = (u32)((target) - (p + (o32 ? 4 : 2)));                                               \
        p = put_bytes(p, &rel, o32 ? 4 : 2);                                                       \
    } while (0)
#define O()                                                                                        \
    do {                                                                                           \
        if (o)                                                                                     \
            PUT(p, 0x66);                                                                          \
    } while (0)
            O();
            PUT(p, 0xe8); /* call far */
            REL(far);
            PUT(p, 0xcc);
            u8 *p2 = p;
            p = far;
            O();
            PUT(p, 0xe9); /* jmp far + 0x100 */
            REL(far + 0x100);
            p = far + 0x100;
            O();
            PUT(p, 0x0f, 0x83); /* jnc far + 0x200 */
            REL(far + 0x200);
            PUT(p, 0xf4);
            p = far + 0x200;
            O();
            PUT(p, 0xc2, 0x06, 0x00); /* ret 6 */
            if (!done(&r, c))
                continue;
            EQ(T.r.eip, ip_of(m, p2));
            EQ(T.r.esp, r.esp + 6);
            if (!((CPL0 | M(REAL)) >> m & 1)) /* there the trap's frame lies over it */
                EQ(o32 ? *mem32(SS_BASE + 0x8000 - 4) : *mem16(SS_BASE + 0x8000 - 2),
                   ip_of(m, p2 - 1));
            /* indirect: the register's upper half counts only with 32 bits */
            p = c;
            O();
            PUT(p, 0xff, 0xd0); /* call ax */
            PUT(p, 0xcc);
            *far = 0xcc;
            r.eax = ip_of(m, far) | (o32 ? 0 : 0xdead0000);
            if (!done(&r, c))
                continue;
            EQ(T.r.eip, ip_of(m, far) + 1);
            EQ(T.r.esp, r.esp - (o32 ? 4 : 2));
            /* push; ret */
            p = c;
            O();
            PUT(p, 0x50); /* push ax */
            O();
            PUT(p, 0xc3, 0xf4);
            if (!done(&r, c))
                continue;
            EQ(T.r.eip, ip_of(m, far) + 1);
            EQ(T.r.esp, r.esp);
        }
    }
    /* 32-bit code, 66h: the target is cut to 16 bits */
    EACH_MODE(m, M(U32) | M(K32))
    {
        struct regs r = regs_for(m);
        u8 *c = gen_start(m), *p = c;
        *(u8 *)0x2000 = 0xcc;
        PUT(p, 0x66, 0xe9);
        u32 rel = 0x2000 - ((u32)p + 2);
        p = put_bytes(p, &rel, 2);
        run_at(&r, c);
        expect(DONE, 0);
        EQ(T.r.eip, 0x2001);
        p = c;
        PUT(p, 0x66, 0x0f, 0x84); /* jz */
        rel = 0x2000 - ((u32)p + 2);
        p = put_bytes(p, &rel, 2);
        PUT(p, 0xcc);
        r.eflags |= F_ZF;
        run_at(&r, c);
        expect(DONE, 0);
        EQ(T.r.eip, 0x2001);
        r.eflags &= ~(u32)F_ZF;
        run_at(&r, c);
        EQ(T.r.eip, (u32)p);
        p = c;
        PUT(p, 0x66, 0xeb, 0x10); /* jmp short, too */
        *(u8 *)(((u32)p + 0x10) & 0xffff) = 0xcc;
        run_at(&r, c);
        expect(DONE, 0);
        EQ(T.r.eip, (((u32)p + 0x10) & 0xffff) + 1);
        p = c;
        PUT(p, 0x66, 0xe8); /* call: pushes IP */
        rel = 0x2000 - ((u32)p + 2);
        p = put_bytes(p, &rel, 2);
        run_at(&r, c);
        expect(DONE, 0);
        EQ(T.r.eip, 0x2001);
        EQ(T.r.esp, r.esp - 2);
        EQ(*mem16(r.esp - 2), (u32)p & 0xffff);
    }
}

TEST(address, loops)
{
    EACH_MODE(m, ALL)
    {
        for (unsigned a = 0; a < 2; a++)
            for (unsigned k = 0; k < 4; k++) { /* loopne loope loop jcxz */
                bool a32 = code32(m) ^ a;
                for (unsigned zf = 0; zf < 2; zf++) {
                    static const u32 values[] = {0,       1,          2,          0x10000,
                                                 0x10001, 0xffff0000, 0xffff0001, 0xffffffff};
                    for (unsigned v = 0; v < 8; v++) {
                        struct regs r = regs_for(m);
                        u8 *c = gen_start(m), *p = c;
                        if (a)
                            PUT(p, 0x67);
                        PUT(p, (u8)(0xe0 + k), 1, 0xcc, 0x90, 0xcc);
                        r.ecx = values[v];
                        r.eflags |= zf ? F_ZF : 0;
                        context("%s, %x, address %u, zf %u, ecx %x", mode_name(m), 0xe0 + k,
                                a32 ? 32 : 16, zf, r.ecx);
                        if (!done(&r, c))
                            return;
                        u32 n = r.ecx, mask = a32 ? 0xffffffff : 0xffff;
                        bool taken;
                        if (k == 3) {
                            taken = !(n & mask);
                        } else {
                            n = (n & ~mask) | ((n - 1) & mask);
                            taken = (n & mask) && (k == 2 || zf == (k == 1));
                        }
                        EQ(T.r.ecx, n);
                        EQ(T.r.eip, ip_of(m, p) - (taken ? 0 : 2));
                        EQ(T.r.eflags & F_ARITH, r.eflags & F_ARITH);
                    }
                }
            }
    }
}

TEST(address, xlat)
{
    fill();
    EACH_MODE(m, SEGBASES)
    {
        for (unsigned a = 0; a < 2; a++)
            for (unsigned ov = 0; ov < 6; ov++) {
                bool a32 = code32(m) ^ a;
                u8 *c = gen_start(m), *p = c;
                struct regs r = regs_for(m);
                r.ebx = a32 ? 0x7654 : 0xbeeffff0;
                if (a)
                    PUT(p, 0x67);
                if (overrides[ov].prefix)
                    PUT(p, overrides[ov].prefix);
                PUT(p, 0xd7, 0xcc);
                if (!done(&r, c))
                    continue;
                u32 ea = r.ebx + (r.eax & 0xff);
                if (!a32)
                    ea &= 0xffff;
                u32 seg = overrides[ov].prefix ? overrides[ov].base : DS_BASE;
                EQ(T.r.eax, (r.eax & ~0xffu) | *(u8 *)(seg + ea));
            }
    }
}

/* -- String instructions ---------------------------------------------------------------------- */

enum { MOVS, CMPS, STOS, LODS, SCAS };

static u32 rd(u32 lin, unsigned w)
{
    return w == 1 ? *(u8 *)lin : w == 2 ? *mem16(lin) : *mem32(lin);
}
static void wr(u32 lin, unsigned w, u32 v)
{
    memcpy((void *)lin, &v, w);
}

static u32 sub_flags(u32 a, u32 b, unsigned w)
{
    u32 mask = w == 4 ? 0xffffffff : (1u << 8 * w) - 1, sign = (mask >> 1) + 1;
    a &= mask;
    b &= mask;
    u32 r = (a - b) & mask, f = 0;
    u8 p = (u8)r;
    p ^= p >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    f |= a < b ? F_CF : 0;
    f |= p & 1 ? 0 : F_PF;
    f |= (a ^ b ^ r) & 16 ? F_AF : 0;
    f |= r ? 0 : F_ZF;
    f |= r & sign ? F_SF : 0;
    f |= (a ^ b) & (a ^ r) & sign ? F_OF : 0;
    return f;
}

struct string_case {
    unsigned m, op, w, rep; /* rep: 0, 0xf2, 0xf3 */
    bool a32, df;
    u8 prefix;
    u32 src_base, dst_base; /* linear bases of the two segments */
    u32 ecx, esi, edi;
};

static void string_case(const struct string_case *s)
{
    static const u8 opcode[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae};
    unsigned m = s->m;
    u32 amask = s->a32 ? 0xffffffff : 0xffff;
    u8 *c = gen_start(m), *p = c;
    if (s->a32 != code32(m))
        PUT(p, 0x67);
    if (s->w > 1 && (s->w == 4) != code32(m))
        PUT(p, 0x66);
    if (s->prefix)
        PUT(p, s->prefix);
    if (s->rep)
        PUT(p, (u8)s->rep);
    PUT(p, (u8)(opcode[s->op] | (s->w > 1)), 0xcc);
    struct regs r = regs_for(m);
    r.ecx = s->ecx;
    r.esi = s->esi;
    r.edi = s->edi;
    r.eflags |= F_CF | F_OF | (s->df ? F_DF : 0);

    /* The model works on memory itself, which is then put back. */
    static u8 before[256], want[256];
    u32 around = s->dst_base + (s->edi & amask) - 128;
    bool writes = s->op == MOVS || s->op == STOS;
    if (writes)
        memcpy(before, (void *)around, 256);
    u32 eax = r.eax, ecx = r.ecx, esi = r.esi, edi = r.edi, fl = r.eflags & F_ARITH;
    u32 step = s->df ? 0 - s->w : s->w;
    while (!s->rep || (ecx & amask)) {
        u32 a = s->src_base + (esi & amask), b = s->dst_base + (edi & amask);
        u32 wmask = s->w == 4 ? 0xffffffff : (1u << 8 * s->w) - 1;
        if (s->op == MOVS)
            wr(b, s->w, rd(a, s->w));
        else if (s->op == STOS)
            wr(b, s->w, eax);
        else if (s->op == LODS)
            eax = (eax & ~wmask) | rd(a, s->w);
        else if (s->op == CMPS)
            fl = sub_flags(rd(a, s->w), rd(b, s->w), s->w);
        else
            fl = sub_flags(eax, rd(b, s->w), s->w);
        if (s->op == MOVS || s->op == CMPS || s->op == LODS)
            esi = (esi & ~amask) | ((esi + step) & amask);
        if (s->op != LODS)
            edi = (edi & ~amask) | ((edi + step) & amask);
        if (!s->rep)
            break;
        ecx = (ecx & ~amask) | ((ecx - 1) & amask);
        if ((s->op == CMPS || s->op == SCAS) && !(fl & F_ZF) == (s->rep == 0xf3))
            break;
    }
    if (writes) {
        memcpy(want, (void *)around, 256);
        memcpy((void *)around, before, 256);
    }
    if (!done(&r, c))
        return;
    EQ(T.r.eax, eax);
    EQ(T.r.ecx, ecx);
    EQ(T.r.esi, esi);
    EQ(T.r.edi, edi);
    EQ(T.r.eflags & F_ARITH, fl);
    if (writes && memcmp(want, (void *)around, 256))
        fail("memory differs");
}

TEST(address, strings)
{
    fill();
    EACH_MODE(m, ALL)
    {
        for (unsigned op = 0; op < 5; op++)
            for (unsigned w = 1; w <= 4; w *= 2)
                for (unsigned a = 0; a < 2; a++)
                    for (unsigned k = 0; k < 6; k++) {
                        bool a32 = a, flat = !(SEGBASES >> m & 1);
                        unsigned rep = k % 3 == 0 ? 0 : k % 3 == 1 ? 0xf3 : 0xf2;
                        if (rep == 0xf2 && op != CMPS && op != SCAS)
                            continue;
                        unsigned ov = flat ? 0 : random32() % 6;
                        struct string_case s = {.m = m,
                                                .op = op,
                                                .w = w,
                                                .rep = rep,
                                                .a32 = a32,
                                                .df = k >= 3,
                                                .prefix = overrides[ov].prefix};
                        /* flat, 16-bit addresses: memory between the IVT and 64 KiB */
                        s.src_base = flat ? 0 : ov ? overrides[ov].base : DS_BASE;
                        s.dst_base = flat ? 0 : ES_BASE;
                        s.esi = flat && a32 ? DS_BASE + 0x1111 : 0x3456;
                        s.edi = flat && a32 ? ES_BASE + 0x2222 : 0x6789;
                        s.ecx = 9;
                        if (!a32) {
                            s.esi |= 0xabc50000;
                            s.edi |= 0x12340000;
                            s.ecx |= 0xffff0000;
                        }
                        u32 src = s.src_base + (a32 ? s.esi : s.esi & 0xffff),
                            dst = s.dst_base + (a32 ? s.edi : s.edi & 0xffff);
                        for (int i = -64; i < 64; i++) {
                            *(u8 *)(src + (u32)i) = (u8)(random32() >> 24);
                            if (op == CMPS) /* mostly equal, or mostly different */
                                *(u8 *)(dst + (u32)i) = rep == 0xf3 ? *(u8 *)(src + (u32)i) : 0;
                            if (op == SCAS)
                                *(u8 *)(dst + (u32)i) = rep == 0xf3 ? 0x41 : (u8)i;
                        }
                        if (op == CMPS && rep == 0xf3)
                            *(u8 *)(dst + (s.df ? (u32)-20 : 20)) ^= 0x80;
                        context("%s, op %u width %u address %u rep %x df %u prefix %x",
                                mode_name(m), op, w, a32 ? 32 : 16, rep, s.df, s.prefix);
                        string_case(&s);
                        if (rep) { /* a count of zero, as far as the address size sees it */
                            s.ecx = a32 ? 0 : 0xffff0000;
                            string_case(&s);
                            s.ecx |= 1;
                            string_case(&s);
                        }
                    }
    }
}

/* SI, DI and CX wrap at 64 KiB with 16-bit addresses, upwards and downwards. */
TEST(address, string_wrap)
{
    fill();
    EACH_MODE(m, SEGBASES)
    {
        for (unsigned df = 0; df < 2; df++)
            for (unsigned w = 1; w <= 2; w *= 2) {
                struct string_case s = {.m = m,
                                        .op = MOVS,
                                        .w = w,
                                        .rep = 0xf3,
                                        .df = df,
                                        .src_base = DS_BASE,
                                        .dst_base = ES_BASE};
                s.ecx = 0x70008;
                s.esi = df ? 0x50004 : 0x5fffc;
                s.edi = 0x62000;
                context("%s, width %u df %u, source", mode_name(m), w, df);
                string_case(&s);
                s.op = STOS;
                s.edi = df ? 0x6000c : 0x6fff0 + w;
                s.ecx = 9;
                context("%s, width %u df %u, destination", mode_name(m), w, df);
                string_case(&s);
                s.op = SCAS;
                s.rep = 0xf2;
                string_case(&s);
            }
    }
}

/* A whole segment: CX = 0xffff, and a big copy that a translator might split. */
TEST(address, string_long)
{
    EACH_MODE(m, SEGBASES)
    {
        struct regs r = regs_for(m);
        struct snip s = {SNIP16("addr32 rep stosb"), SNIP32("rep stosb")},
                    w = {SNIP16("addr32 rep movsw"), SNIP32("rep movsw")},
                    c = {SNIP16("addr32 repe cmpsb"), SNIP32("repe cmpsb")};
        r.ecx = 0xffff;
        r.edi = 0;
        *(u8 *)(ES_BASE + 0xffff) = 0x99;
        if (done(&r, code_for(m, s))) {
            EQ(T.r.ecx, 0);
            EQ(T.r.edi, 0xffff);
            for (u32 i = 0; i < 0xffff; i++)
                if (*(u8 *)(ES_BASE + i) != 0x41) {
                    fail("byte 0x%x is wrong", i);
                    break;
                }
            EQ(*(u8 *)(ES_BASE + 0xffff), 0x99);
        }
        fill();
        r.ecx = 0x7fff;
        r.esi = 1;
        r.edi = 2;
        if (done(&r, code_for(m, w))) {
            EQ(T.r.esi, 0xffff);
            EQ(T.r.edi, 0x10000);
            EQ(memcmp((void *)(DS_BASE + 1), (void *)(ES_BASE + 2), 0xfffe), 0);
        }
        r.ecx = 0xf000;
        *(u8 *)(ES_BASE + 0x8002) ^= 1;
        if (done(&r, code_for(m, c))) {
            EQ(T.r.esi, 0x8002);
            EQ(T.r.ecx, 0xf000 - 0x8001);
        }
    }
}
