/*
 * The instruction decoder: prefixes, opcode row (decode_table.h), ModRM, SIB, displacement and
 * immediate, then what the row says about operands and effects.
 *
 * Two properties matter more than all others, because the sandbox rests on them:
 *   - Length, memory operand and general registers are those that the CPU would use.  The rest of
 *     an instruction may be copied to the host as it is: if the host does not know it, it raises
 *     #UD, which becomes the guest's.
 *   - Nothing is read at or beyond code + avail: the next page may be absent, and whether it is
 *     looked at is visible to the guest.
 *
 * SDM vol. 2, chapter 2 (formats), appendix A (opcode maps), and 2.6-2.8 for what VEX and EVEX
 * encodings must have to be no #UD.
 */
#include "translator/decode_table.h"

#define MAX_LEN 15

enum prefix_class { PFX_NONE, PFX_REX, PFX_SEG, PFX_66, PFX_67, PFX_LOCK, PFX_REP };

static const uint8_t prefix_class[256] = {
    [0x26] = PFX_SEG,  [0x2e] = PFX_SEG, [0x36] = PFX_SEG, [0x3e] = PFX_SEG,
    [0x64] = PFX_SEG,  [0x65] = PFX_SEG, [0x66] = PFX_66,  [0x67] = PFX_67,
    [0xf0] = PFX_LOCK, [0xf2] = PFX_REP, [0xf3] = PFX_REP, [0x40 ... 0x4f] = PFX_REX,
};

/* The flags that a condition code depends on; indexed by half the code. */
static const uint16_t cc_flags[8] = {
    FL_OF, FL_CF, FL_ZF, FL_CF | FL_ZF, FL_SF, FL_PF, FL_SF | FL_OF, FL_SF | FL_OF | FL_ZF,
};

static const uint8_t fixed_size[] = {
    [SZ_1] = 1,   [SZ_2] = 2,   [SZ_4] = 4,   [SZ_8] = 8, [SZ_10] = 10,
    [SZ_16] = 16, [SZ_32] = 32, [SZ_64] = 64, [SZ_0] = 0,
};

/* What the prefixes and the VEX or EVEX prefix say. */
struct prefixes {
    enum insn_mode mode;
    bool p66, p67, lock;
    uint8_t rep; /* 0, F2 or F3: the last one                                                   */
    uint8_t seg; /* override or SEG_NONE                                                        */
    uint8_t rex; /* the byte, if it directly precedes the opcode                                */
    uint8_t w, r, x, b; /* extension bits, not inverted; r and x of EVEX include R' as bit 1    */
    uint8_t vvvv, l, pp;
    uint8_t evex_z, evex_b, evex_v2, evex_r2, evex_aaa;
};

static inline uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t load64(const uint8_t *p)
{
    return load32(p) | (uint64_t)load32(p + 4) << 32;
}

/* Sets every field.  Word by word: `rep stos` takes longer to start than all of the rest. */
static inline void clear(struct insn *out)
{
    typedef uint64_t __attribute__((may_alias)) word;
    word *w = (word *)out;

    _Static_assert(sizeof(struct insn) == 13 * 8, "clear() sets all words");
    w[0] = 0, w[1] = 0, w[2] = 0, w[3] = 0, w[4] = 0, w[5] = 0, w[6] = 0;
    w[7] = 0, w[8] = 0, w[9] = 0, w[10] = 0, w[11] = 0, w[12] = 0;
    out->mem.base = REG_NONE;
    out->mem.index = REG_NONE;
    out->mem.scale = 1;
    out->mem.seg = SEG_DS;
}

/* What is no instruction: OP_INVALID, with the bytes that were looked at. */
static int __attribute__((noinline, cold))
invalid(struct insn *out, const uint8_t *code, unsigned len, int64_t too_long)
{
    clear(out);
    for (unsigned i = 0; i < len; i++)
        out->raw[i] = code[i];
    out->op = OP_INVALID;
    out->mnemonic = "(bad)";
    out->len = (uint8_t)len;
    out->imm = too_long;
    return (int)len;
}

/* The bytes, as far as they may be read; those behind the instruction have no meaning. */
static inline void copy_raw(struct insn *out, const uint8_t *code, unsigned limit)
{
    if (limit == MAX_LEN) {
        __builtin_memcpy(out->raw, code, 8);
        __builtin_memcpy(out->raw + 7, code + 7, 8);
        return;
    }
    for (unsigned i = 0; i < limit; i++)
        out->raw[i] = code[i];
}

static inline unsigned operand_size(enum opsize kind, const struct prefixes *px)
{
    bool is64 = px->mode == MODE_64;
    unsigned z = px->p66 != (px->mode == MODE_16) ? 2 : 4;

    switch (kind) {
    case OS_V:
        return px->w && is64 ? 8 : z;
    case OS_B:
        return 1;
    case OS_D64:
        return !is64 ? z : px->p66 && !px->w ? 2 : 8;
    case OS_F64:
        return is64 ? 8 : z;
    case OS_Y:
        return px->w && is64 ? 8 : 4;
    case OS_W:
        return 2;
    case OS_D:
        return 4;
    case OS_Z:
        return px->w && is64 ? 4 : z;
    case OS_M:
        return is64 ? 8 : 4;
    }
    return 4;
}

static inline unsigned memory_size(enum memsize kind, unsigned op_size, unsigned vec_len,
                                   const struct prefixes *px)
{
    switch (kind) {
    case SZ_OP:
        return op_size;
    case SZ_VL:
        return vec_len;
    case SZ_VL2:
        return vec_len / 2;
    case SZ_VL4:
        return vec_len / 4;
    case SZ_VL8:
        return vec_len / 8;
    case SZ_ENV:
        return op_size == 2 ? 14 : 28;
    case SZ_SAVE:
        return op_size == 2 ? 94 : 108;
    case SZ_512:
        return 512;
    case SZ_2OP:
        return op_size * 2;
    case SZ_FAR:
        return op_size + 2;
    case SZ_DT:
        return px->mode == MODE_64 ? 10 : 6;
    case SZ_SXD:
        return op_size == 2 ? 2 : 4;
    default:
        return fixed_size[kind];
    }
}

/* 16-bit addressing: SDM vol. 2, table 2-1. Returns the displacement's size. */
static unsigned address16(struct insn_mem *mem, unsigned mod, unsigned rm)
{
    static const uint8_t base[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const uint8_t index[8] = {RSI, RDI, RSI, RDI, REG_NONE, REG_NONE, REG_NONE, REG_NONE};

    if (mod == 0 && rm == 6)
        return 2;
    mem->base = base[rm];
    mem->index = index[rm];
    return mod;
}

/*
 * The constraints on VEX and EVEX fields beyond those in `match` (SDM vol. 2, 2.6.9 and 2.7.11).
 */
static bool vector_fields_valid(const struct prefixes *px, const struct insn *in, uint64_t attr,
                                bool is_mem)
{
    unsigned v = px->vvvv | px->evex_v2 << 4;

    if (attr & A_VSIB) {
        if (px->vvvv != 0 && in->enc == ENC_EVEX)
            return false;
    } else if (!(attr & (A_V_VEC | A_V_R | A_V_W))) {
        if (v != 0)
            return false;
    } else if ((attr & (A_K_V | A_V_R | A_V_W)) && px->evex_v2) {
        return false;
    }
    if ((attr & A_K_V) && px->vvvv > 7 && px->mode == MODE_64)
        return false;
    if ((attr & A_K_REG) && (px->r || px->evex_r2))
        return false;
    if (in->enc == ENC_VEX)
        return true;

    bool zeroing_ok = px->evex_aaa && !(attr & (A_NOZ | A_K_REG)) && !(is_mem && (attr & A_MEM_W));
    if (px->evex_z && !zeroing_ok)
        return false;
    if (px->evex_aaa && (attr & A_NOK))
        return false;
    if ((attr & A_VSIB) && !px->evex_aaa)
        return false;
    if (px->evex_b && !(attr & (is_mem ? A_BCAST : A_ROUND)))
        return false;
    if ((attr & (A_REG_R | A_REG_W)) && px->evex_r2)
        return false;
    return true;
}

/* Destination, index and (VEX) mask of a gather must be different registers: else #UD. */
static bool gather_registers_valid(const struct insn *in)
{
    if (in->op != OP_GATHER)
        return true;
    if (in->reg == in->mem.index)
        return false;
    return in->enc == ENC_EVEX || (in->vvvv != in->mem.index && in->vvvv != in->reg);
}

int insn_decode(struct insn *out, const uint8_t *code, size_t avail, enum insn_mode mode)
{
    const unsigned limit = avail < MAX_LEN ? (unsigned)avail : MAX_LEN;
    struct prefixes px = {.mode = mode, .seg = SEG_NONE};
    unsigned p = 0;

    /* Whether the next n bytes can be read; if not, the instruction is cut off or too long. */
#define NEED(n)                                                                                    \
    do {                                                                                           \
        if (p + (n) > limit)                                                                       \
            return limit == MAX_LEN ? invalid(out, code, MAX_LEN, 1) : 0;                          \
    } while (0)

    for (;; p++) {
        NEED(1);
        uint8_t byte = code[p];
        enum prefix_class cls = prefix_class[byte];
        if (cls == PFX_NONE)
            break;
        if (cls == PFX_REX) {
            if (mode != MODE_64)
                break;
            px.rex = byte;
            continue;
        }
        px.rex = 0; /* a REX prefix that does not directly precede the opcode is ignored */
        switch (cls) {
        case PFX_66:
            px.p66 = true;
            break;
        case PFX_67:
            px.p67 = true;
            break;
        case PFX_LOCK:
            px.lock = true;
            break;
        case PFX_REP:
            px.rep = byte;
            break;
        default:
            if (byte >= 0x64)
                px.seg = byte == 0x64 ? SEG_FS : SEG_GS;
            else if (mode != MODE_64) /* null prefixes in 64-bit mode */
                px.seg = (byte >> 3) & 3;
        }
    }

    clear(out);
    copy_raw(out, code, limit);
    out->prefix_len = (uint8_t)p;
    out->rex = px.rex;
    px.w = px.rex >> 3 & 1;
    px.r = px.rex >> 2 & 1;
    px.x = px.rex >> 1 & 1;
    px.b = px.rex & 1;
    px.pp = px.rep ? (px.rep == 0xf3 ? 2 : 3) : px.p66;

    /* Opcode bytes. */
    enum insn_enc enc = ENC_LEGACY;
    unsigned map = MAP_ONE;
    uint8_t opcode = code[p];
    bool vex_prefix = opcode == 0xc4 || opcode == 0xc5 || opcode == 0x62;
    if (vex_prefix && mode != MODE_64) { /* LES, LDS, BOUND with a memory operand */
        NEED(2);
        vex_prefix = code[p + 1] >= 0xc0;
    }
    if (vex_prefix) {
        if (px.lock || px.p66 || px.rep || px.rex)
            return invalid(out, code, p + 1 + (mode != MODE_64), 0);
        if (opcode == 0xc5) {
            NEED(3);
            uint8_t b1 = code[p + 1];
            enc = ENC_VEX;
            map = MAP_0F;
            px.r = !(b1 & 0x80);
            px.vvvv = ~b1 >> 3 & 15;
            px.l = b1 >> 2 & 1;
            px.pp = b1 & 3;
            p += 2;
        } else {
            NEED(3);
            uint8_t b1 = code[p + 1], b2 = code[p + 2];
            px.r = !(b1 & 0x80);
            px.x = !(b1 & 0x40);
            px.b = !(b1 & 0x20);
            px.w = b2 >> 7;
            px.vvvv = ~b2 >> 3 & 15;
            px.pp = b2 & 3;
            if (opcode == 0xc4) {
                enc = ENC_VEX;
                map = b1 & 31;
                px.l = b2 >> 2 & 1;
                p += 3;
                if (map < MAP_0F || map > MAP_0F3A)
                    return invalid(out, code, p, 0);
            } else {
                NEED(4);
                uint8_t b3 = code[p + 3];
                enc = ENC_EVEX;
                map = b1 & 15;
                px.evex_r2 = !(b1 & 0x10);
                px.evex_z = b3 >> 7;
                px.l = b3 >> 5 & 3;
                px.evex_b = b3 >> 4 & 1;
                px.evex_v2 = !(b3 & 8);
                px.evex_aaa = b3 & 7;
                p += 4;
                if (map < MAP_0F || map >= DECODE_MAPS || map == 4 || !(b2 & 4))
                    return invalid(out, code, p, 0);
            }
        }
        if (mode != MODE_64) { /* B and R' are ignored, V' must name no further register */
            px.b = 0;
            px.evex_r2 = 0;
            if (px.evex_v2)
                return invalid(out, code, p, 0);
        }
        NEED(1);
        opcode = code[p];
    } else if (opcode == 0x0f) {
        p++;
        NEED(1);
        opcode = code[p];
        map = MAP_0F;
        if (opcode == 0x38 || opcode == 0x3a) {
            map = opcode == 0x38 ? MAP_0F38 : MAP_0F3A;
            p++;
            NEED(1);
            opcode = code[p];
        }
    }
    out->opcode_off = (uint8_t)p++;

    const struct opcode_table *table = &opcode_tables[enc];
    unsigned index = table->index[map][opcode];
    if (index == 0)
        return invalid(out, code, p, 0);

    /* The row. */
    unsigned modrm = 0, mod = 0;
    uint32_t key = (uint32_t)(px.pp << KEY_PP | px.w << KEY_W | px.l << KEY_L |
                              (mode == MODE_64) << KEY_M64 | px.b << KEY_REXB);
    if (index & INDEX_MODRM) {
        NEED(1);
        modrm = code[p];
        out->modrm_off = (uint8_t)p++;
        out->flags = INSN_MODRM;
        mod = modrm >> 6;
        key |=
            (uint32_t)(mod == 3) << KEY_MOD3 | (modrm >> 3 & 7) << KEY_REG | (modrm & 7) << KEY_RM;
    }
    const struct opcode_row *row = &table->rows[index & INDEX_ROW];
    while ((key ^ (uint32_t)row->match) & (uint32_t)(row->match >> 32)) {
        row++;
        /* The end of the list is a line of no row, or the next opcode's first row. */
        if ((row->attr & (A_VALID | A_HEAD)) != A_VALID)
            return invalid(out, code, p, 0);
    }
    const uint64_t attr = row->attr, effects = row->effects;
    if (attr & A_MODIGN)
        mod = 3;
    const bool has_modrm = index & INDEX_MODRM, is_mem = has_modrm && mod != 3;

    if (enc == ENC_EVEX && px.evex_b && !is_mem && (attr & A_ROUND))
        px.l = 2; /* L'L is the rounding mode, the length is 512 bits */
    out->enc = (uint8_t)enc;
    out->map = (uint8_t)map;
    out->opcode = opcode;
    out->op = (uint16_t)(effects >> E_OP_SHIFT);
    out->mnemonic = row->mnemonic;
    out->fpu = attr >> A_FPU_SHIFT & 15;
    if (enc != ENC_LEGACY) {
        if (!vector_fields_valid(&px, out, attr, is_mem))
            return invalid(out, code, p, 0);
        if (mode != MODE_64)
            px.vvvv &= 7; /* where it names no register, all four bits must be right */
        if (px.l == 3) /* reserved even where the length is ignored */
            return invalid(out, code, p, 0);
        out->vec_len = (uint8_t)(attr & A_LIG ? 16 : 16 << px.l);
        out->vvvv = (uint8_t)(px.vvvv | px.evex_v2 << 4);
        out->evex_mask = px.evex_aaa;
    }

    const unsigned op_size = operand_size(attr >> A_OPSIZE_SHIFT & 15, &px);
    unsigned addr_size = mode == MODE_64 ? (px.p67 ? 4 : 8) : px.p67 != (mode == MODE_16) ? 2 : 4;
    out->op_size = (uint8_t)op_size;
    out->addr_size = (uint8_t)addr_size;

    uint32_t flags = out->flags, gpr_read = 0, gpr_written = 0;
    struct insn_mem *mem = &out->mem;
    if (px.seg != SEG_NONE)
        mem->seg = px.seg;

    /* ModRM, SIB and displacement. */
    if (has_modrm) {
        unsigned rm = modrm & 7;
        out->modrm = (uint8_t)modrm;
        out->mod = (uint8_t)mod;
        out->reg = (uint8_t)((modrm >> 3 & 7) | px.r << 3 | px.evex_r2 << 4);
        if (attr & A_SREG) {
            /* Segment and debug registers: REX.R is ignored for one, reserved for the other. */
            if (px.r && map != MAP_ONE)
                return invalid(out, code, p, 0);
            out->reg &= 7;
        }
        if ((attr & A_CREG) && out->reg > 8)
            return invalid(out, code, p, 0);
        if ((attr & A_DISTINCT) && out->reg == out->vvvv)
            return invalid(out, code, p, 0);
        if (!is_mem) {
            out->rm = (uint8_t)(rm | px.b << 3);
            if (enc == ENC_EVEX)
                out->rm |= (uint8_t)(px.x << 4);
            if ((attr & A_DISTINCT) && out->reg == out->rm)
                return invalid(out, code, p, 0);
        } else {
            unsigned disp_size = mod == 3 ? 0 : mod == 2 ? 4 : mod;
            bool no_base = false;
            if (addr_size == 2) {
                disp_size = address16(mem, mod, rm);
            } else if (rm == 4) {
                NEED(1);
                unsigned sib = code[p++];
                out->sib = (uint8_t)sib;
                flags |= INSN_SIB;
                unsigned idx = (sib >> 3 & 7) | px.x << 3;
                if (attr & A_VSIB)
                    mem->index = (uint8_t)(idx | px.evex_v2 << 4);
                else if (idx != 4)
                    mem->index = (uint8_t)idx;
                mem->scale = (uint8_t)(1 << (sib >> 6));
                no_base = (sib & 7) == 5 && mod == 0;
                if (!no_base)
                    mem->base = (uint8_t)((sib & 7) | px.b << 3);
            } else {
                no_base = rm == 5 && mod == 0;
                if (!no_base)
                    mem->base = (uint8_t)(rm | px.b << 3);
                else if (mode == MODE_64)
                    mem->base = BASE_RIP;
            }
            if (no_base)
                disp_size = 4;
            if ((attr & A_VSIB) && !(flags & INSN_SIB))
                return invalid(out, code, p, 0);
            if ((attr & A_VSIB) && !gather_registers_valid(out))
                return invalid(out, code, p, 0);
            if (px.seg == SEG_NONE && (mem->base == RSP || mem->base == RBP))
                mem->seg = SEG_SS;
            if (mem->base < 16)
                gpr_read |= 1u << mem->base;
            if (mem->index < 16 && !(attr & A_VSIB))
                gpr_read |= 1u << mem->index;
            if (disp_size) {
                NEED(disp_size);
                out->disp_off = (uint8_t)p;
                out->disp_size = (uint8_t)disp_size;
                mem->disp = disp_size == 1   ? (int8_t)code[p]
                            : disp_size == 2 ? (int16_t)load16(code + p)
                                             : (int32_t)load32(code + p);
                p += disp_size;
            }
        }
    }

    /* The memory operand's size and use. */
    if (is_mem) {
        unsigned size = memory_size(attr >> A_MEMSIZE_SHIFT & 31, op_size, out->vec_len, &px);
        unsigned n = size;
        if (px.evex_b)
            size = n = 1u << (attr >> A_ELEM_SHIFT & 3);
        else if (attr & A_D8ELEM)
            n = 1u << (attr >> A_ELEM_SHIFT & 3);
        if (enc == ENC_EVEX && mod == 1)
            mem->disp *= n;
        mem->size = (uint16_t)size;
        if (!(attr & A_ADDR)) {
            flags |= INSN_MEM;
            if (attr & (A_RM_R | A_MEM_R))
                flags |= INSN_MEM_READ;
            if (attr & (A_RM_W | A_MEM_W))
                flags |= INSN_MEM_WRITE;
            if (attr & A_ALIGN)
                flags |= INSN_MEM_ALIGNED;
            if ((attr & A_MASKED) || px.evex_aaa)
                flags |= INSN_MASKED;
        }
        if (attr & A_VSIB)
            flags |= INSN_VSIB;
    }

    /* General registers.  Writes of 8 and 16 bits leave the rest of the register. */
    if (attr & (A_REG_R | A_REG_W)) {
        unsigned size = attr & A_REG8 ? 1 : op_size, n = out->reg &= 15;
        if (size == 1 && !px.rex && n >= 4 && n < 8 && enc == ENC_LEGACY) {
            flags |= INSN_HIGH8;
            n -= 4;
        }
        flags |= INSN_REG_GPR;
        if (attr & A_REG_W) {
            gpr_written |= 1u << n;
            if (size < 4)
                gpr_read |= 1u << n;
        }
        if (attr & A_REG_R)
            gpr_read |= 1u << n;
    }
    if (has_modrm && !is_mem && (attr & (A_RM_R | A_RM_W))) {
        unsigned size = attr & A_RM8 ? 1 : op_size, n = out->rm &= 15;
        if (size == 1 && !px.rex && n >= 4 && n < 8 && enc == ENC_LEGACY) {
            flags |= INSN_HIGH8;
            n -= 4;
        }
        flags |= INSN_RM_GPR;
        if (attr & A_RM_W) {
            gpr_written |= 1u << n;
            if (size < 4)
                gpr_read |= 1u << n;
        }
        if (attr & A_RM_R)
            gpr_read |= 1u << n;
    }
    if (attr & (A_OPC_R | A_OPC_W)) {
        unsigned n = (opcode & 7u) | px.b << 3;
        out->rm = (uint8_t)n;
        flags |= INSN_OPC_GPR;
        if (op_size == 1 && !px.rex && n >= 4) {
            flags |= INSN_HIGH8;
            n -= 4;
        }
        if (attr & A_OPC_W) {
            gpr_written |= 1u << n;
            if (op_size < 4)
                gpr_read |= 1u << n;
        }
        if (attr & A_OPC_R)
            gpr_read |= 1u << n;
    }
    if (attr & (A_V_R | A_V_W)) {
        flags |= INSN_VVVV_GPR;
        if (attr & A_V_R)
            gpr_read |= 1u << px.vvvv;
        if (attr & A_V_W)
            gpr_written |= 1u << px.vvvv;
    }
    gpr_read |= effects >> E_GPR_R_SHIFT & 0xffff;
    gpr_written |= effects >> E_GPR_W_SHIFT & 0xffff;
    if (op_size < 4)
        gpr_read |= effects >> E_GPR_W_SHIFT & 0xffff;

    /* Flags. */
    out->flags_read = effects & E_FLAGS_MASK;
    out->flags_written = effects >> E_FLAGS_W_SHIFT & E_FLAGS_MASK;
    if (attr & A_CC) {
        out->cond = opcode & 15;
        out->flags_read |= cc_flags[opcode >> 1 & 7];
    }
    if (attr & A_FCOND)
        flags |= INSN_FLAGS_COND;
    if (attr & A_PRIV)
        flags |= INSN_PRIVILEGED;
    if (attr & A_STRING) {
        mem->size = (uint16_t)op_size;
        if (px.rep) {
            flags |= px.rep == 0xf3 ? INSN_REP : INSN_REPNE;
            if (out->flags_written)
                flags |= INSN_FLAGS_COND; /* with a count of 0 nothing happens */
            gpr_read |= 1u << RCX;
            gpr_written |= 1u << RCX;
            gpr_read |= gpr_written;
        }
    }

    /* Immediate. */
    enum imm_kind imm_kind = attr >> A_IMM_SHIFT & 15;
    if (imm_kind != IMM_NONE) {
        unsigned size = 1;
        out->imm_off = (uint8_t)p;
        switch (imm_kind) {
        case IMM_IB:
        case IMM_JB:
            NEED(1);
            out->imm = (int8_t)code[p];
            break;
        case IMM_UB:
            NEED(1);
            out->imm = code[p];
            break;
        case IMM_IZ:
        case IMM_JZ:
        case IMM_IV:
            size = op_size == 8 && imm_kind != IMM_IV ? 4 : op_size;
            NEED(size);
            out->imm = size == 2   ? (int16_t)load16(code + p)
                       : size == 4 ? (int32_t)load32(code + p)
                                   : (int64_t)load64(code + p);
            break;
        case IMM_IW:
        case IMM_IWIB:
            size = imm_kind == IMM_IW ? 2 : 3;
            NEED(size);
            out->imm = load16(code + p);
            if (size == 3)
                out->imm2 = code[p + 2];
            break;
        case IMM_AP:
            size = op_size + 2;
            NEED(size);
            out->imm = op_size == 2 ? load16(code + p) : (int64_t)load32(code + p);
            out->imm2 = load16(code + p + op_size);
            break;
        case IMM_MOFFS:
            size = 0;
            NEED(addr_size);
            out->imm_off = 0;
            out->disp_off = (uint8_t)p;
            out->disp_size = (uint8_t)addr_size;
            mem->disp = addr_size == 2   ? (int64_t)load16(code + p)
                        : addr_size == 4 ? (int64_t)load32(code + p)
                                         : (int64_t)load64(code + p);
            mem->size = (uint16_t)op_size;
            flags |= INSN_MEM | (attr & A_MEM_R ? INSN_MEM_READ : INSN_MEM_WRITE);
            p += addr_size;
            break;
        case IMM_NONE:
            break;
        }
        out->imm_size = (uint8_t)size;
        p += size;
        if ((attr & A_COUNT) && op_size <= 8) {
            unsigned count = (unsigned)out->imm & (op_size == 8 ? 63 : 31);
            /* RCL and RCR of 8 and 16 bits count modulo 9 and 17: may come to zero as well. */
            if (count == 0 || (out->flags_read && op_size <= 2 && count != 1))
                flags |= INSN_FLAGS_COND;
        }
    }

    /* Where 66h selects the operand size rather than another instruction (SDM vol. 2, 2.1.1). */
    if (mode == MODE_16 && enc == ENC_LEGACY) {
        bool integer = map == MAP_ONE ? out->fpu == FPU_NONE || out->fpu == FPU_X87
                       : map == MAP_0F
                           ? (opcode >= 0x40 && opcode <= 0x4f) || opcode == 0xc0 || opcode == 0xc1 ||
                                 (opcode >= 0xa0 && opcode <= 0xcf && opcode != 0xae &&
                                  (opcode < 0xc2 || opcode > 0xc7))
                           : map == MAP_0F38 && (opcode == 0xf0 || opcode == 0xf1);
        enum opsize kind = attr >> A_OPSIZE_SHIFT & 15;
        if (integer && (kind == OS_V || kind == OS_Z || kind == OS_D64))
            flags |= INSN_TOGGLE66;
    }

    if (px.lock) {
        if (!is_mem || !(attr & A_LOCK))
            return invalid(out, code, p, 0);
        flags |= INSN_LOCK;
    }

    if (out->op == OP_PUSH_SEG || out->op == OP_POP_SEG)
        out->reg = opcode >> 3 & 7;
    if (out->op == OP_PUSH || out->op == OP_POP)
        out->stack_operand = is_mem ? STK_MEM : imm_kind != IMM_NONE ? STK_IMM : STK_REG;

    out->len = (uint8_t)p;
    out->flags = flags;
    out->gpr_read = (uint16_t)gpr_read;
    out->gpr_written = (uint16_t)gpr_written;
    return (int)p;
#undef NEED
}

const char *insn_op_name(enum insn_op op)
{
    static const char *const names[OP_COUNT] = {
#define NAME(op) [OP_##op] = #op
        NAME(COPY),        NAME(INVALID),      NAME(NOP),         NAME(JMP),
        NAME(JCC),         NAME(CALL),         NAME(LOOP),        NAME(LOOPE),
        NAME(LOOPNE),      NAME(JRCXZ),        NAME(JMP_IND),     NAME(CALL_IND),
        NAME(RET),         NAME(JMP_FAR),      NAME(CALL_FAR),    NAME(RETF),
        NAME(IRET),        NAME(INT),          NAME(INT3),        NAME(INT1),
        NAME(INTO),        NAME(SYSCALL),      NAME(SYSRET),      NAME(SYSENTER),
        NAME(SYSEXIT),     NAME(UD),           NAME(PUSH),        NAME(POP),
        NAME(PUSHF),       NAME(POPF),         NAME(ENTER),       NAME(LEAVE),
        NAME(PUSHA),       NAME(POPA),         NAME(PUSH_SEG),    NAME(POP_SEG),
        NAME(LEA),         NAME(MOV_MOFFS),    NAME(MOVS),        NAME(CMPS),
        NAME(STOS),        NAME(LODS),         NAME(SCAS),        NAME(INS),
        NAME(OUTS),        NAME(BT_MEM_REG),   NAME(XLAT),        NAME(MASKMOV),
        NAME(GATHER),      NAME(SCATTER),      NAME(FXSAVE),      NAME(FXRSTOR),
        NAME(XSAVE),       NAME(XSAVEC),       NAME(XSAVEOPT),    NAME(XRSTOR),
        NAME(FNSAVE),      NAME(FRSTOR),       NAME(FNSTENV),     NAME(FLDENV),
        NAME(IN),          NAME(OUT),          NAME(HLT),         NAME(CLI),
        NAME(STI),         NAME(CPUID),        NAME(RDMSR),       NAME(WRMSR),
        NAME(RDTSC),       NAME(RDTSCP),       NAME(RDPMC),       NAME(RDPID),
        NAME(MOV_FROM_CR), NAME(MOV_TO_CR),    NAME(MOV_FROM_DR), NAME(MOV_TO_DR),
        NAME(CLTS),        NAME(LMSW),         NAME(SMSW),        NAME(SGDT),
        NAME(SIDT),        NAME(LGDT),         NAME(LIDT),        NAME(SLDT),
        NAME(STR),         NAME(LLDT),         NAME(LTR),         NAME(LAR),
        NAME(LSL),         NAME(VERR),         NAME(VERW),        NAME(ARPL),
        NAME(INVLPG),      NAME(INVPCID),      NAME(INVD),        NAME(WBINVD),
        NAME(SWAPGS),      NAME(RDFSBASE),     NAME(RDGSBASE),    NAME(WRFSBASE),
        NAME(WRGSBASE),    NAME(XGETBV),       NAME(XSETBV),      NAME(STAC),
        NAME(CLAC),        NAME(MOV_FROM_SEG), NAME(MOV_TO_SEG),  NAME(LOAD_FAR_PTR),
        NAME(MONITOR),     NAME(MWAIT),        NAME(VMCALL),      NAME(BOUND),
        NAME(FAULT_DE),    NAME(FAULT_NM),    NAME(FAULT_GP),    NAME(BCD),
#undef NAME
    };

    return (unsigned)op < OP_COUNT && names[op] ? names[op] : "?";
}
