/* Conversion of GGUF rows into the packed layout of layout.h, and one row back. Its decoders are its own, not the
 * reference's: they write a whole row's panel as bytes in loops that a compiler vectorises, since a load converts
 * gigabytes. */
#include "kernels/cpu/layout.h"
#include "kernels/half.h"

enum { PANEL_COLS = LAYOUT_PANEL * 32 };

size_t layout_bytes(enum quant type, uint32_t rows, uint32_t cols)
{
    return ((size_t)rows + LAYOUT_ROWS - 1) / LAYOUT_ROWS * layout_group_bytes(type, cols);
}

/* --- GGUF bytes of one row and panel -> raw weights --- */

static void nibbles(const uint8_t *qs, uint8_t *w)
{
    for (int i = 0; i < 16; i++) {
        w[i] = qs[i] & 15;
        w[i + 16] = qs[i] >> 4;
    }
}
static void fifth_bits(const uint8_t *qh, uint8_t *w)
{
    uint32_t bits;
    memcpy(&bits, qh, 4);
    for (int i = 0; i < 32; i++)
        w[i] |= (uint8_t)((bits >> i & 1) << 4);
}

static void raw_block(enum quant type, const uint8_t *p, uint8_t *w)
{
    switch (type) {
    case QUANT_Q8_0:
        memcpy(w, p + 2, 32);
        break;
    case QUANT_Q4_0:
        nibbles(p + 2, w);
        break;
    case QUANT_Q4_1:
        nibbles(p + 4, w);
        break;
    case QUANT_Q5_0:
        nibbles(p + 6, w);
        fifth_bits(p + 2, w);
        break;
    default: /* Q5_1 */
        nibbles(p + 8, w);
        fifth_bits(p + 4, w);
        break;
    }
}

/* The 2-bit fields of Q2_K and Q3_K: block s is field s % 4 of the 32 bytes at 32 * (s / 4). */
static void two_bits(const uint8_t *qs, uint8_t *w)
{
    for (int s = 0; s < 8; s++)
        for (int i = 0; i < 32; i++)
            w[32 * s + i] = qs[s / 4 * 32 + i] >> s % 4 * 2 & 3;
}
static void four_bits(const uint8_t *qs, uint8_t *w)
{
    for (int s = 0; s < 8; s++)
        for (int i = 0; i < 32; i++)
            w[32 * s + i] = s % 2 ? qs[s / 2 * 32 + i] >> 4 : qs[s / 2 * 32 + i] & 15;
}
/* One more bit at `at`, block s's at bit s of 32 bytes. */
static void one_bit(const uint8_t *bits, int at, uint8_t *w)
{
    for (int s = 0; s < 8; s++)
        for (int i = 0; i < 32; i++)
            w[32 * s + i] |= (uint8_t)((bits[i] >> s & 1) << at);
}
static void raw_q6_k(const uint8_t *p, uint8_t *w)
{
    for (int s = 0; s < 8; s++) {
        const uint8_t *ql = p + s / 4 * 64 + s % 2 * 32, *qh = p + 128 + s / 4 * 32;
        int lo = s % 4 / 2 * 4, hi = s % 4 * 2;
        for (int i = 0; i < 32; i++)
            w[32 * s + i] = (uint8_t)((ql[i] >> lo & 15) | (qh[i] >> hi & 3) << 4);
    }
}

static void raw_panel(enum quant type, const uint8_t *p, uint32_t n_blocks, uint8_t *w)
{
    switch (type) {
    case QUANT_Q2_K:
        two_bits(p + 16, w);
        break;
    case QUANT_Q3_K:
        two_bits(p + 32, w);
        one_bit(p, 2, w);
        break;
    case QUANT_Q4_K:
        four_bits(p + 16, w);
        break;
    case QUANT_Q5_K:
        four_bits(p + 48, w);
        one_bit(p + 16, 4, w);
        break;
    case QUANT_Q6_K:
        raw_q6_k(p, w);
        break;
    default:
        for (uint32_t b = 0; b < n_blocks; b++)
            raw_block(type, p + (size_t)b * quant_traits[type].block_bytes, w + 32 * b);
    }
}

/* --- raw weights -> vectors of a block --- */

/* Packs n vectors of v, from vector j0 on, as fields of `bits` bits. */
static void fields(const uint8_t *v, int n, int bits, int shift, uint8_t *out)
{
    for (int i = 0; i < 64; i++) {
        unsigned x = 0;
        for (int j = 0; j < n; j++)
            x |= (unsigned)(v[64 * j + i] >> shift & ((1 << bits) - 1)) << bits * j;
        out[i] = (uint8_t)x;
    }
}
static void pack_nibbles(const uint8_t *v, uint8_t *out)
{
    for (int i = 0; i < 256; i++)
        out[i] = (uint8_t)((v[i] & 15) | (v[i + 256] & 15) << 4);
}

static void pack_block(unsigned bits, const uint8_t *v, uint8_t flip, uint8_t *out)
{
    switch (bits) {
    case 8:
        for (int i = 0; i < 512; i++)
            out[i] = v[i] ^ flip;
        break;
    case 6:
        pack_nibbles(v, out);
        fields(v, 4, 2, 4, out + 256);
        fields(v + 256, 4, 2, 4, out + 320);
        break;
    case 5:
        pack_nibbles(v, out);
        fields(v, 8, 1, 4, out + 256);
        break;
    case 4:
        pack_nibbles(v, out);
        break;
    default:
        fields(v, 4, 2, 0, out);
        fields(v + 256, 4, 2, 0, out + 64);
        if (bits == 3)
            fields(v, 8, 1, 2, out + 128);
    }
}

/* --- headers --- */

static void put16(uint8_t *dst, const uint8_t *src)
{
    memcpy(dst, src, 2);
}

/* The 6-bit scales and minima of Q4_K and Q5_K: 4 bytes of low parts each, then 4 bytes with both upper nibbles. */
static void k4_pairs(const uint8_t *s, unsigned row, uint8_t *pairs)
{
    for (int b = 0; b < 4; b++) {
        uint8_t *lo = pairs + 32 * b + 2 * row, *hi = pairs + 32 * (b + 4) + 2 * row;
        lo[0] = s[b] & 63;
        lo[1] = s[4 + b] & 63;
        hi[0] = (uint8_t)((s[8 + b] & 15) | (s[b] >> 6) << 4);
        hi[1] = (uint8_t)(s[8 + b] >> 4 | (s[4 + b] >> 6) << 4);
    }
}
static void q3_pairs(const uint8_t *s, unsigned row, uint8_t *pairs)
{
    for (int j = 0; j < 16; j++) {
        int v = (j < 8 ? s[j] & 15 : s[j - 8] >> 4) | (s[8 + j % 4] >> j / 4 * 2 & 3) << 4;
        pairs[32 * (j / 2) + 2 * row + j % 2] = (uint8_t)(v - 32);
    }
}
static void byte_pairs(const uint8_t *s, unsigned row, uint8_t *pairs)
{
    for (int j = 0; j < 16; j++)
        pairs[32 * (j / 2) + 2 * row + j % 2] = s[j];
}

static void pack_header(enum quant type, const uint8_t *p, uint32_t n_blocks, unsigned row, uint8_t *h)
{
    switch (type) {
    case QUANT_Q2_K:
        put16(h + 2 * row, p + 80);
        put16(h + 32 + 2 * row, p + 82);
        byte_pairs(p, row, h + 64);
        break;
    case QUANT_Q3_K:
        put16(h + 2 * row, p + 108);
        q3_pairs(p + 96, row, h + 64);
        break;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        put16(h + 2 * row, p);
        put16(h + 32 + 2 * row, p + 2);
        k4_pairs(p + 4, row, h + 64);
        break;
    case QUANT_Q6_K:
        put16(h + 2 * row, p + 208);
        byte_pairs(p + 192, row, h + 64);
        break;
    default:
        for (uint32_t b = 0; b < n_blocks; b++) {
            const uint8_t *q = p + (size_t)b * quant_traits[type].block_bytes;
            put16(h + 32 * b + 2 * row, q);
            if (layout_scales(type) == LAYOUT_DM)
                put16(h + 256 + 32 * b + 2 * row, q + 2);
        }
    }
}

static void pack_group(enum quant type, uint32_t cols, const uint8_t *src, size_t row_bytes, uint32_t n, uint8_t *dst,
                       uint8_t flip)
{
    const struct quant_traits *t = &quant_traits[type];
    uint8_t w[LAYOUT_ROWS][PANEL_COLS], v[512];
    memset(w, 0, sizeof w);
    for (uint32_t b0 = 0; b0 < cols / 32; b0 += LAYOUT_PANEL) {
        uint32_t n_blocks = MIN(cols / 32 - b0, (uint32_t)LAYOUT_PANEL);
        memset(dst, 0, layout_header_bytes(type));
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *p = src + r * row_bytes + (size_t)b0 * 32 / t->block_elems * t->block_bytes;
            raw_panel(type, p, n_blocks, w[r]);
            pack_header(type, p, n_blocks, r, dst);
        }
        dst += layout_header_bytes(type);
        for (uint32_t b = 0; b < n_blocks; b++) {
            for (int r = 0; r < LAYOUT_ROWS; r++)
                for (int j = 0; j < 8; j++)
                    memcpy(v + 64 * j + 4 * r, w[r] + 32 * b + 4 * j, 4);
            pack_block(layout_bits(type), v, flip, dst);
            dst += layout_block_bytes(type);
        }
    }
}

/* In pieces of 64 columns, so that the interleaved lines stay in the first-level cache while 16 rows pass. BF16 keeps
 * pairs of columns together. */
static void pack_float_group(enum quant type, uint32_t cols, const uint8_t *src, size_t row_bytes, uint32_t n,
                             uint8_t *dst)
{
    memset(dst, 0, layout_group_bytes(type, cols));
    for (uint32_t k0 = 0; k0 < cols; k0 += 64)
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *from = src + r * row_bytes;
            size_t end = MIN(k0 + 64, cols), k = k0;
            if (type == QUANT_F32)
                for (; k < end; k++)
                    memcpy(dst + 64 * k + 4 * r, from + 4 * k, 4);
            else if (type == QUANT_F16)
                for (; k < end; k++)
                    memcpy(dst + 32 * k + 2 * r, from + 2 * k, 2);
            else
                for (; k < end; k += 2)
                    memcpy(dst + 32 * k + 4 * r, from + 2 * k, k + 2 <= end ? 4 : 2);
        }
}

void layout_pack(enum quant type, uint32_t rows, uint32_t cols, const void *src, uint32_t row0, uint32_t n, void *dst,
                 uint8_t flip)
{
    ASSERT(row0 % LAYOUT_ROWS == 0 && row0 <= rows && n <= rows - row0 && cols % quant_traits[type].block_elems == 0);
    size_t row_bytes = quant_row_bytes(type, cols), group_bytes = layout_group_bytes(type, cols);
    bool q8 = quant_traits[type].act == QUANT_ACT_Q8;
    ASSERT(n % LAYOUT_ROWS == 0 || row0 + n == rows);
    for (uint32_t r = 0; r < n; r += LAYOUT_ROWS) {
        const uint8_t *from = (const uint8_t *)src + r * row_bytes;
        uint8_t *to = (uint8_t *)dst + (size_t)((row0 + r) / LAYOUT_ROWS) * group_bytes;
        uint32_t part = MIN(n - r, (uint32_t)LAYOUT_ROWS);
        if (q8)
            pack_group(type, cols, from, row_bytes, part, to, flip);
        else
            pack_float_group(type, cols, from, row_bytes, part, to);
    }
}

/* --- one row back --- */

static unsigned two_at(const uint8_t *blk, unsigned j, unsigned i)
{
    return blk[64 * (j / 4) + i] >> j % 4 * 2 & 3;
}
static unsigned four_at(const uint8_t *blk, unsigned j, unsigned i)
{
    return blk[64 * (j % 4) + i] >> j / 4 * 4 & 15;
}

/* Byte i of vector j of a block. */
static int raw_at(enum quant type, const uint8_t *blk, unsigned j, unsigned i)
{
    switch (layout_bits(type)) {
    case 8:
        return blk[64 * j + i];
    case 6:
        return (int)(four_at(blk, j, i) | two_at(blk + 256, j, i) << 4);
    case 5:
        return (int)(four_at(blk, j, i) | (blk[256 + i] >> j & 1u) << 4);
    case 4:
        return (int)four_at(blk, j, i);
    case 3:
        return (int)(two_at(blk, j, i) | (blk[128 + i] >> j & 1u) << 2);
    default:
        return (int)two_at(blk, j, i);
    }
}

static float f16_at(const uint8_t *p)
{
    return half_from_f16(half_load16(p));
}

/* Products are exact in fp32; only adding a minimum rounds (see ref_dequant). */
static void block_row(enum quant type, const uint8_t *group, uint32_t b, unsigned row, float *out, uint8_t flip)
{
    const uint8_t *h = layout_panel(type, group, b), *blk = layout_block(type, group, b);
    const uint8_t *pair = h + 64 + 32 * (b % 8) + 2 * row;
    float d = f16_at(h + 2 * row), m = 0;
    int sc[2] = {1, 1}, mn[2] = {0, 0};
    switch (layout_scales(type)) {
    case LAYOUT_DM:
        m = f16_at(h + 256 + 32 * (b % 8) + 2 * row);
        mn[0] = mn[1] = 1; /* fall through */
    case LAYOUT_D:
        d = f16_at(h + 32 * (b % 8) + 2 * row);
        break;
    case LAYOUT_K4:
        m = f16_at(h + 32 + 2 * row);
        sc[0] = sc[1] = pair[0];
        mn[0] = mn[1] = -pair[1];
        break;
    case LAYOUT_K2:
        m = f16_at(h + 32 + 2 * row);
        for (int i = 0; i < 2; i++) {
            sc[i] = pair[i] & 15;
            mn[i] = -(pair[i] >> 4);
        }
        break;
    case LAYOUT_KS:
        sc[0] = (int8_t)pair[0];
        sc[1] = (int8_t)pair[1];
    }
    bool has_min =
        layout_scales(type) == LAYOUT_DM || layout_scales(type) == LAYOUT_K4 || layout_scales(type) == LAYOUT_K2;
    for (unsigned i = 0; i < 32; i++) {
        int w = raw_at(type, blk, i / 4, 4 * row + i % 4);
        w = type == QUANT_Q8_0 ? (int8_t)(w ^ flip) : w - layout_offset(type);
        float v = d * (float)sc[i / 16] * (float)w;
        out[i] = has_min ? v + m * (float)mn[i / 16] : v;
    }
}

void layout_row(const struct kernels_weight *w, uint32_t row, float *out, uint8_t flip)
{
    ASSERT(row < w->rows);
    const uint8_t *group = (const uint8_t *)w->data + row / LAYOUT_ROWS * layout_group_bytes(w->type, w->cols);
    unsigned r = row % LAYOUT_ROWS;
    if (quant_traits[w->type].act == QUANT_ACT_Q8) {
        for (uint32_t b = 0; b < w->cols / 32; b++)
            block_row(w->type, group, b, r, out + 32 * b, flip);
        return;
    }
    for (size_t k = 0; k < w->cols; k++) {
        if (w->type == QUANT_F32)
            memcpy(&out[k], group + (k * 16 + r) * 4, 4);
        else if (w->type == QUANT_F16)
            out[k] = f16_at(group + (k * 16 + r) * 2);
        else
            out[k] = half_from_bf16(half_load16(group + (k / 2 * 32 + r * 2 + k % 2) * 2));
    }
}
