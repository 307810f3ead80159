/* One decoder for each quantisation: GGUF bytes -> 32 integers with their scales (format: the block structures of
 * ggml's GGUF types, as the PyPI package gguf documents and decodes them; tests/kernels/oracle.py compares). Everything
 * else in the reference, dequantised or exact, stands on these functions. */
#include "base/check.h"
#include "kernels/half.h"
#include "kernels/ref/ref.h"

static float f16_at(const uint8_t *p)
{
    return half_from_f16(half_load16(p));
}

static void plain_scales(struct ref_block *o, float d)
{
    o->d = d;
    o->sc[0] = o->sc[1] = 1;
}

static void with_min(struct ref_block *o, float m, int32_t mn0, int32_t mn1)
{
    o->has_min = true;
    o->m = m;
    o->mn[0] = mn0;
    o->mn[1] = mn1;
}

/* Low nibbles are elements 0..15, high nibbles 16..31. */
static int nibble(const uint8_t *qs, int i)
{
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

/* f16 d; 16 bytes of nibbles; offset 8 */
static void decode_q4_0(const uint8_t *p, struct ref_block *o)
{
    plain_scales(o, f16_at(p));
    for (int i = 0; i < 32; i++)
        o->w[i] = (int16_t)(nibble(p + 2, i) - 8);
}

/* f16 d, f16 m; 16 bytes of nibbles */
static void decode_q4_1(const uint8_t *p, struct ref_block *o)
{
    plain_scales(o, f16_at(p));
    with_min(o, f16_at(p + 2), 1, 1);
    for (int i = 0; i < 32; i++)
        o->w[i] = (int16_t)nibble(p + 4, i);
}

/* f16 d; 32 fifth bits, element i at bit i; 16 bytes of nibbles; offset 16 */
static void decode_q5_0(const uint8_t *p, struct ref_block *o)
{
    plain_scales(o, f16_at(p));
    for (int i = 0; i < 32; i++)
        o->w[i] = (int16_t)((nibble(p + 6, i) | (p[2 + i / 8] >> i % 8 & 1) << 4) - 16);
}

/* f16 d, f16 m; 32 fifth bits; 16 bytes of nibbles */
static void decode_q5_1(const uint8_t *p, struct ref_block *o)
{
    plain_scales(o, f16_at(p));
    with_min(o, f16_at(p + 2), 1, 1);
    for (int i = 0; i < 32; i++)
        o->w[i] = (int16_t)(nibble(p + 8, i) | (p[4 + i / 8] >> i % 8 & 1) << 4);
}

/* f16 d; 32 int8 */
static void decode_q8_0(const uint8_t *p, struct ref_block *o)
{
    plain_scales(o, f16_at(p));
    for (int i = 0; i < 32; i++)
        o->w[i] = (int8_t)p[2 + i];
}

/* The K types: p is a super-block of 256, s the block of 32 inside it. */

/* 16 bytes (scale, low; minimum, high) of sub-blocks of 16; 64 bytes of 2-bit fields; f16 d, f16 dmin */
static void decode_q2_k(const uint8_t *p, uint32_t s, struct ref_block *o)
{
    const uint8_t *scales = p, *qs = p + 16;
    o->d = f16_at(p + 80);
    o->halves = true;
    o->sc[0] = scales[2 * s] & 15;
    o->sc[1] = scales[2 * s + 1] & 15;
    with_min(o, f16_at(p + 82), -(scales[2 * s] >> 4), -(scales[2 * s + 1] >> 4));
    for (uint32_t i = 0; i < 32; i++)
        o->w[i] = qs[32 * (s / 4) + i] >> 2 * (s % 4) & 3;
}

/* 32 bytes of third bits, block s at bit s; 64 bytes of 2-bit fields; 12 bytes of 6-bit scales (offset 32); f16 d;
 * offset 4 */
static void decode_q3_k(const uint8_t *p, uint32_t s, struct ref_block *o)
{
    const uint8_t *hmask = p, *qs = p + 32, *scales = p + 96;
    o->d = f16_at(p + 108);
    o->halves = true;
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t j = 2 * s + h;
        int lo = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
        int hi = scales[8 + j % 4] >> 2 * (j / 4) & 3;
        o->sc[h] = (lo | hi << 4) - 32;
    }
    for (uint32_t i = 0; i < 32; i++)
        o->w[i] = (int16_t)((qs[32 * (s / 4) + i] >> 2 * (s % 4) & 3) + (hmask[i] >> s & 1) * 4 - 4);
}

/* The 12 bytes of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima; those of sub-blocks 4..7 have their upper
 * bits in the top bits of the bytes of sub-blocks 0..3. */
static void k4_scales(const uint8_t *b, uint32_t s, int32_t *sc, int32_t *mn)
{
    if (s < 4) {
        *sc = b[s] & 63;
        *mn = b[s + 4] & 63;
    } else {
        *sc = (b[s + 4] & 15) | b[s - 4] >> 6 << 4;
        *mn = b[s + 4] >> 4 | b[s] >> 6 << 4;
    }
}

static void k4_header(const uint8_t *p, uint32_t s, struct ref_block *o)
{
    int32_t sc, mn;
    k4_scales(p + 4, s, &sc, &mn);
    o->d = f16_at(p);
    o->sc[0] = o->sc[1] = sc;
    with_min(o, f16_at(p + 2), -mn, -mn);
}

/* f16 d, f16 dmin; 12 bytes of scales; 128 bytes of nibbles: two blocks share 32 bytes, the even one has the low
 * nibbles */
static void decode_q4_k(const uint8_t *p, uint32_t s, struct ref_block *o)
{
    k4_header(p, s, o);
    for (uint32_t i = 0; i < 32; i++)
        o->w[i] = p[16 + 32 * (s / 2) + i] >> 4 * (s % 2) & 15;
}

/* as Q4_K, with 32 bytes of fifth bits (block s at bit s) before the nibbles */
static void decode_q5_k(const uint8_t *p, uint32_t s, struct ref_block *o)
{
    k4_header(p, s, o);
    for (uint32_t i = 0; i < 32; i++)
        o->w[i] = (int16_t)((p[48 + 32 * (s / 2) + i] >> 4 * (s % 2) & 15) | (p[16 + i] >> s & 1) << 4);
}

/* 128 bytes of nibbles, 64 bytes of upper 2-bit fields, 16 int8 scales of sub-blocks of 16, f16 d; offset 32. In each
 * half of 128 elements, blocks 0, 1 are the low and 2, 3 the high nibbles of two runs of 32 bytes. */
static void decode_q6_k(const uint8_t *p, uint32_t s, struct ref_block *o)
{
    uint32_t half = s / 4, j = s % 4;
    const uint8_t *ql = p + 64 * half + 32 * (j % 2), *qh = p + 128 + 32 * half;
    o->d = f16_at(p + 208);
    o->halves = true;
    o->sc[0] = (int8_t)p[192 + 2 * s];
    o->sc[1] = (int8_t)p[192 + 2 * s + 1];
    for (uint32_t i = 0; i < 32; i++)
        o->w[i] = (int16_t)(((ql[i] >> 4 * (j / 2) & 15) | (qh[i] >> 2 * j & 3) << 4) - 32);
}

void ref_decode(enum quant type, const uint8_t *row, uint32_t b, struct ref_block *out)
{
    const struct quant_traits *t = &quant_traits[type];
    uint32_t per = t->block_elems / 32;
    ASSERT(t->act == QUANT_ACT_Q8 && per > 0);
    const uint8_t *p = row + (size_t)(b / per) * t->block_bytes;
    uint32_t s = b % per;
    *out = (struct ref_block){.has_min = false};
    switch (type) {
    case QUANT_Q4_0:
        decode_q4_0(p, out);
        break;
    case QUANT_Q4_1:
        decode_q4_1(p, out);
        break;
    case QUANT_Q5_0:
        decode_q5_0(p, out);
        break;
    case QUANT_Q5_1:
        decode_q5_1(p, out);
        break;
    case QUANT_Q8_0:
        decode_q8_0(p, out);
        break;
    case QUANT_Q2_K:
        decode_q2_k(p, s, out);
        break;
    case QUANT_Q3_K:
        decode_q3_k(p, s, out);
        break;
    case QUANT_Q4_K:
        decode_q4_k(p, s, out);
        break;
    case QUANT_Q5_K:
        decode_q5_k(p, s, out);
        break;
    case QUANT_Q6_K:
        decode_q6_k(p, s, out);
        break;
    default:
        ASSERT(!"a type without decoder");
    }
}

float ref_element(enum quant type, const uint8_t *row, uint32_t k)
{
    float f;
    switch (type) {
    case QUANT_F32:
        memcpy(&f, row + 4 * (size_t)k, 4);
        return f;
    case QUANT_F16:
        return half_from_f16(half_load16(row + 2 * (size_t)k));
    case QUANT_BF16:
        return half_from_bf16(half_load16(row + 2 * (size_t)k));
    default:
        ASSERT(!"not a float type");
        return 0;
    }
}

/* Each product is exact in fp32 (11 bits of d, at most 8 of the scale, 6 of the weight), so a weight has at most one
 * rounding. */
void ref_dequant(enum quant type, const uint8_t *row, uint32_t n, float *out)
{
    if (quant_traits[type].act == QUANT_ACT_F32) {
        for (uint32_t k = 0; k < n; k++)
            out[k] = ref_element(type, row, k);
        return;
    }
    for (uint32_t b = 0; b < n / 32; b++) {
        struct ref_block blk;
        ref_decode(type, row, b, &blk);
        for (uint32_t i = 0; i < 32; i++) {
            float v = blk.d * (float)blk.sc[i / 16] * (float)blk.w[i];
            out[b * 32 + i] = blk.has_min ? v + blk.m * (float)blk.mn[i / 16] : v;
        }
    }
}

size_t ref_kv_bytes(enum kv_type type, uint32_t n)
{
    switch (type) {
    case KV_F32:
        return 4 * (size_t)n;
    case KV_F16:
    case KV_BF16:
        return 2 * (size_t)n;
    case KV_Q8_0:
        return 34 * (size_t)(n / 32);
    case KV_FP8:
        return n;
    }
    ASSERT(!"a KV type");
    return 0;
}

void ref_kv_read(enum kv_type type, const void *src, uint32_t n, float *out)
{
    const uint8_t *p = src;
    for (uint32_t i = 0; i < n; i++) {
        switch (type) {
        case KV_F32:
            memcpy(&out[i], p + 4 * (size_t)i, 4);
            break;
        case KV_F16:
            out[i] = half_from_f16(half_load16(p + 2 * (size_t)i));
            break;
        case KV_BF16:
            out[i] = half_from_bf16(half_load16(p + 2 * (size_t)i));
            break;
        case KV_Q8_0:
            out[i] = f16_at(p + 34 * (i / 32)) * (float)(int8_t)p[34 * (i / 32) + 2 + i % 32];
            break;
        case KV_FP8:
            out[i] = half_from_e4m3(p[i]);
            break;
        }
    }
}

const uint8_t *ref_kv_row(const struct kernels_attn *a, uint32_t kv_head, uint32_t pos, bool v)
{
    const uint8_t *block = a->kv + (size_t)a->blocks[pos / SHARD_KV_BLOCK] * a->block_stride;
    size_t in = pos % SHARD_KV_BLOCK;
    if (v)
        return block + a->v_off + kv_head * a->v_head_stride + in * ref_kv_bytes(a->type, a->head_dim_v);
    return block + kv_head * a->k_head_stride + in * ref_kv_bytes(a->type, a->head_dim);
}
