/* Random valid blocks of every storage type, at memory speed. The block layouts are those of ggml's format; the
 * statistics behind each factor stand beside it. Types with a minimum get one near the mean, so that it matters but
 * does not carry the model away. */
#include "tests/bench/mkmodel.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

struct rnd {
    uint64_t s;
};

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators; OOPSLA 2014). */
static inline uint64_t next(struct rnd *r)
{
    uint64_t z = (r->s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void bytes(struct rnd *r, uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = next(r);
        memcpy(p + i, &v, n - i < 8 ? n - i : 8);
    }
}

/* fp32 to fp16, to nearest even, subnormals included; |v| stays far below the largest half. */
static uint16_t half(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u < 0x38800000) { /* below 2^-14: the nearest multiple of 2^-24 */
        float scaled;
        memcpy(&scaled, &u, 4);
        return (uint16_t)(sign | (uint16_t)lrintf(scaled * 16777216.0f));
    }
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | (u - 0x38000000) >> 13);
}

static uint16_t bfloat(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Block scales: 256 values in +-[0.5, 1.5) of the middle (root mean square 1.04), both signs so that offsets do not add
 * up to a mean. */
struct scales {
    uint16_t d[256], m[256]; /* m = -d * offset */
};

static void make_scales(struct scales *s, double middle, double offset, bool is_signed)
{
    for (int i = 0; i < 256; i++) {
        double d = middle * (0.5 + (i >> 1) / 128.0) * (is_signed && (i & 1) ? -1 : 1);
        s->d[i] = half((float)d);
        s->m[i] = half((float)(-d * offset));
    }
}

static void put16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, 2);
}

/* Eight 6-bit scales in [16, 63] (root mean square 42) and minima beside them, packed in 12 bytes. */
static void scales_k4(struct rnd *r, uint8_t *out)
{
    uint8_t sc[8], mn[8], raw[16];
    bytes(r, raw, 16);
    for (int i = 0; i < 8; i++) {
        int m;
        sc[i] = (uint8_t)(16 + raw[i] % 48);
        m = sc[i] + (raw[8 + i] & 15) - 8;
        mn[i] = (uint8_t)(m > 63 ? 63 : m);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = (uint8_t)(sc[i] | (sc[i + 4] >> 4) << 6);
        out[i + 4] = (uint8_t)(mn[i] | (mn[i + 4] >> 4) << 6);
        out[i + 8] = (uint8_t)((sc[i + 4] & 15) | (mn[i + 4] & 15) << 4);
    }
}

static void block_q2_k(struct rnd *r, const struct scales *s, uint8_t *p)
{
    uint8_t raw[16];
    bytes(r, raw, 16);
    for (int i = 0; i < 16; i++) { /* 4-bit scale in [4, 15], minimum within 1 of it */
        int sc = 4 + (raw[i] & 63) % 12, mn = sc + (raw[i] >> 6) - 1;
        p[i] = (uint8_t)(sc | (mn > 15 ? 15 : mn) << 4);
    }
    bytes(r, p + 16, 64);
    uint8_t pick = (uint8_t)next(r);
    put16(p + 80, s->d[pick]);
    put16(p + 82, s->m[pick] ^ 0x8000); /* stored positive and subtracted */
}

static void block_q6_k(struct rnd *r, const struct scales *s, uint8_t *p)
{
    bytes(r, p, 208);
    for (int i = 192; i < 208; i++) { /* signed scales of 32 to 127 either way */
        int v = 32 + (p[i] & 127) * 3 / 4;
        p[i] = (uint8_t)(int8_t)(p[i] & 128 ? -v : v);
    }
    put16(p + 208, s->d[(uint8_t)next(r)]);
}

static void block_k45(struct rnd *r, const struct scales *s, size_t quants, uint8_t *p)
{
    uint8_t pick = (uint8_t)next(r);
    put16(p, s->d[pick]);
    put16(p + 2, s->m[pick] ^ 0x8000);
    scales_k4(r, p + 4);
    bytes(r, p + 16, quants);
}

/* d (and m), then random quants. */
static void block_legacy(struct rnd *r, const struct scales *s, bool has_min, size_t quants, uint8_t *p)
{
    uint8_t pick = (uint8_t)next(r);
    put16(p, s->d[pick]);
    if (has_min)
        put16(p + 2, s->m[pick]);
    bytes(r, p + (has_min ? 4 : 2), quants);
}

static void block_q8_0(struct rnd *r, const struct scales *s, uint8_t *p)
{
    block_legacy(r, s, false, 32, p);
    for (int i = 2; i < 34; i++) /* a quantiser never writes -128 */
        p[i] = p[i] == 0x80 ? 0x81 : p[i];
}

/* Deviation of the values of a block when d is 1, and the offset that centres them (units of d). */
static void statistics(enum quant type, double *deviation, double *offset)
{
    static const struct {
        double deviation, offset;
    } t[QUANT_COUNT] = {
        [QUANT_Q8_0] = {73.6 * 1.04, 0},        [QUANT_Q4_0] = {4.64 * 1.04, 0},
        [QUANT_Q4_1] = {4.61 * 1.04, 7.5},      [QUANT_Q5_0] = {9.25 * 1.04, 0},
        [QUANT_Q5_1] = {9.23 * 1.04, 15.5},     [QUANT_Q2_K] = {11.5 * 1.04, 1.5},
        [QUANT_Q3_K] = {18.5 * 2.35 * 1.04, 0}, [QUANT_Q4_K] = {42 * 4.7 * 1.04, 7.5},
        [QUANT_Q5_K] = {42 * 9.4 * 1.04, 15.5}, [QUANT_Q6_K] = {84 * 18.5 * 1.04, 0},
    };
    *deviation = t[type].deviation;
    *offset = t[type].offset;
}

static void fill_floats(enum quant type, double deviation, struct rnd *r, uint64_t n, uint8_t *out)
{
    float scale = (float)(deviation * sqrt(3.0) / 2147483648.0); /* uniform: range = deviation * sqrt(12) */
    for (uint64_t i = 0; i < n; i++) {
        float v = (float)(int32_t)(next(r) >> 32) * scale;
        if (type == QUANT_F32)
            memcpy(out + 4 * i, &v, 4);
        else
            put16(out + 2 * i, type == QUANT_F16 ? half(v) : bfloat(v));
    }
}

static void fill_run(enum quant type, double deviation, struct rnd *r, uint64_t n, uint8_t *out)
{
    struct scales s;
    double unit, offset;
    if (type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16) {
        fill_floats(type, deviation, r, n, out);
        return;
    }
    statistics(type, &unit, &offset);
    /* K types keep d and dmin positive, as their quantisers do. */
    bool is_signed = type != QUANT_Q2_K && type != QUANT_Q4_K && type != QUANT_Q5_K;
    make_scales(&s, deviation / unit, offset, is_signed);
    for (uint64_t i = 0; i < n; i++, out += quant_traits[type].block_bytes) {
        switch (type) {
        case QUANT_Q8_0:
            block_q8_0(r, &s, out);
            break;
        case QUANT_Q4_0:
            block_legacy(r, &s, false, 16, out);
            break;
        case QUANT_Q4_1:
            block_legacy(r, &s, true, 16, out);
            break;
        case QUANT_Q5_0:
            block_legacy(r, &s, false, 20, out);
            break;
        case QUANT_Q5_1:
            block_legacy(r, &s, true, 20, out);
            break;
        case QUANT_Q2_K:
            block_q2_k(r, &s, out);
            break;
        case QUANT_Q3_K:
            bytes(r, out, 108);
            put16(out + 108, s.d[(uint8_t)next(r)]);
            break;
        case QUANT_Q4_K:
            block_k45(r, &s, 128, out);
            break;
        case QUANT_Q5_K:
            block_k45(r, &s, 160, out);
            break;
        case QUANT_Q6_K:
            block_q6_k(r, &s, out);
            break;
        default:
            ASSERT(!"a type without a generator");
        }
    }
}

void mkmodel_fill(enum quant type, double deviation, uint64_t seed, uint64_t first, uint64_t n, uint8_t *out)
{
    ASSERT(first % MKMODEL_RUN == 0);
    for (uint64_t done = 0; done < n; done += MKMODEL_RUN) {
        struct rnd r = {seed * 0xd1342543de82ef95u ^ (first + done)};
        uint64_t count = MIN((uint64_t)MKMODEL_RUN, n - done);
        r.s = next(&r); /* neighbouring seeds must not give shifted copies of one sequence */
        fill_run(type, deviation, &r, count, out + done * quant_traits[type].block_bytes);
    }
}
