/* The table of operations that a backend implements, and their contract. Backends: ref (plain C, the oracle, in the
 * exact form that the CPU must equal), ref_f32 (plain C, weights dequantised, everything in fp32: the oracle of the
 * mathematics), cpu (AVX2, AVX-512; run-time dispatch; plain C elsewhere).
 *
 * No op starts threads or allocates: the caller gives each thread its part (rows, heads, tokens). Every output is
 * computed wholly by one call in one fixed order, so results depend neither on the split over threads, nor on batch or
 * chunk, nor on which kernel of a backend runs (vector or matrix form), nor on the instruction set. ref and cpu give
 * the same bits.
 *
 * The order of summation, which is part of the contract:
 *
 *  matmul, quantised weights (QUANT_ACT_Q8). Row r, activation x quantised in blocks of 32 (q int8, d_x fp32). One fp32 chain acc
 * over the blocks b = 0, 1, ... in k order, starting at 0; each product of two scales is rounded once to fp32.
 *    Q8_0, Q4_0, Q5_0, Q4_1, Q5_1:  S = sum (w - off) * q, exact in int32 (off 0, 8, 16, 0, 0): acc = fmaf((float)S, d_w*d_x, acc)
 *    Q4_K, Q5_K (sub-blocks of 32, 6-bit scale sc, super-block d):  acc = fmaf((float)S, (d*sc)*d_x, acc); d*sc is exact
 *    Q2_K, Q3_K, Q6_K (sub-blocks of 16, scales of 4, 6 and 8 bits, offsets 0, 4, 32):  the two of the 32 are added as integers:
 *      acc = fmaf((float)(sc0*S0 + sc1*S1), d*d_x, acc)
 *    then, where there is a minimum, with A the sum of q:  Q4_1, Q5_1: acc = fmaf(m_w, A*d_x, acc); Q4_K, Q5_K (6-bit mn):
 *      acc = fmaf(-(dmin*mn), A*d_x, acc), dmin*mn exact; Q2_K (4-bit mn): the same for the first sub-block, then for the second.
 * matmul, F32, F16, BF16 weights (QUANT_ACT_F32):
 * weights widened exactly to fp32; 4 chains, chain c takes k = c mod 4 in k order by fmaf from 0; result (c0 + c1) +
 * (c2 + c3). ref_f32 takes QUANT_ACT_F32 for every type and sums in double. quantize: per block of 32: a = max |x|; d =
 * a / 127; q = rint(x * (127 / a)) half to even; a = 0 gives d = 0, q = 0. Each quotient rounded once to fp32. (Blocks
 * with a below 2^-120 count as 0. Non-finite inputs: q = 0, d = NaN, so that the error stays visible.) rmsnorm: 16
 * chains of fmaf(x, x, chain), chain i mod 16; added as a tree (i with i+8, then i+4, i+2, i+1); r = 1 / sqrtf(sum / k
 * + eps); y = (x * r) * w. attention: KV positions in ranges of KERNELS_ATTN_RANGE counted from 0, combined in order.
 * Score = (16 chains over head_dim, i mod 16, fmaf, added as the tree above) * scale. Within a range: m = max score, p
 * = fm_exp(s - m), l = p summed in position order (one chain), o[j] = fmaf(p, v[j], o[j]) in position order from 0.
 * Combining with the state (M, L, O): M' = max(M, m), a = fm_exp(M - M'), b = fm_exp(m - M'), L = fmaf(l, b, L * a),
 * O[j] = fmaf(o[j], b, O[j] * a); the first range is taken as it is. Result O[j] * (1 / L). rope: x0' = x0*c - x1*s as
 * fmaf(x0, c, -(x1 * s)); x1' = fmaf(x0, s, x1 * c). swiglu: y = gate * (1 / (1 + fm_exp(-gate))) * up, left to right.
 * add: x = x + y.
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "base/check.h"
#include "model/hparams.h" /* enum rope_layout */
#include "model/quants.h"
#include "model/shard.h" /* enum kv_type, SHARD_KV_BLOCK */

#include <stddef.h>
#include <stdint.h>

enum { KERNELS_Q_BLOCK = 32, KERNELS_ATTN_RANGE = 256, KERNELS_ALIGN = 64 };

/* A matrix [rows][cols] in the backend's own layout; a row is an output. data is KERNELS_ALIGN-aligned. */
struct kernels_weight {
    enum quant type;
    uint32_t rows, cols;
    const void *data;
};
/* Activations of n rows (tokens), k columns. By the weight's act: f32 [n][k], or q [n][k] with d [n][k/32]. A token is `stride` elements behind the one before it
 * (d: stride / 32, then a multiple of 32). Rows that begin at the same place of a page fight for the same lines of the first-level cache: kernels_act_stride keeps them apart. */
struct kernels_act {
    uint32_t n, k, stride;
    const float *f32;
    const int8_t *q;
    const float *d;
};
static inline uint32_t kernels_act_stride(uint32_t k)
{
    return ROUND_UP(k, 64u) + 64;
}
/* Paged attention of one run: consecutive tokens of one sequence; token i sees positions 0 .. pos0 + i. */
struct kernels_attn {
    const float *q; /* [n_tok][n_heads][head_dim], row stride q_stride floats */
    float *out;     /* the same shape, stride out_stride; head_dim_v columns a head */
    size_t q_stride, out_stride;
    uint32_t pos0, n_tok;
    uint32_t head_dim, head_dim_v;
    uint32_t head0, group, kv_head0; /* local head h reads local KV head (head0 + h) / group - kv_head0 */
    const uint8_t *kv;               /* the layer's pool */
    size_t block_stride;             /* bytes from a block to the next */
    size_t v_off;                    /* bytes from a block's K to its V */
    size_t k_head_stride,
        v_head_stride;      /* bytes from a KV head to the next, inside a block; rows of 16 positions are dense */
    const uint32_t *blocks; /* block id of positions [16*i, 16*i+16) */
    enum kv_type type;
    float scale;
};

/* What each op does:
 *  act           which activation a weight type is multiplied with in this backend
 *  weight_bytes  bytes of a packed matrix of rows x cols (rows padded as the layout wants)
 *  weight_pack   puts n rows from GGUF row-major bytes `src` at packed rows [row0, row0+n); row0 is a multiple of 16;
 * several threads may pack different rows of one matrix at once. The last call's rows end at `rows`; padding rows are
 * written as zeros. weight_row    one row as fp32 [cols] (embedding look-up), exact quantize      x [k] -> q [k], d
 * [k/32]; k is a multiple of 32 rmsnorm       x [k], w [k] -> y [k]; x may be y matmul        y[i*y_stride + r] for
 * tokens i and rows r of [row_begin, row_end) (row_begin a multiple of 16; y indexed by r, not r - row_begin) rope
 * rotates x [n_heads][head_dim] in place by cos, sin [rope_dims/2] (magnitude already in them) kv_write      n fp32
 * values -> the KV type at dst (n a multiple of 32 for q8_0) attention     local heads [head_begin, head_end), tokens
 * [tok_begin, tok_end). scratch: KERNELS_ATTN_SCRATCH floats of this thread, aligned swiglu, add   elementwise over n
 */
enum { KERNELS_ATTN_SCRATCH = 65536 };

struct kernels {
    const char *name; /* "ref", "ref_f32", "cpu-avx2", "cpu-avx512", "cpu-c" */
#define OP(name, ret, params) ret(*name) params;
#include "kernels/ops.def"
#undef OP
};

extern const struct kernels kernels_ref, kernels_ref_f32;
/* The fastest table this CPU runs; never NULL. RACKLM_CPU_ISA=c|avx2|avx512 forces one it can run. */
const struct kernels *kernels_cpu(void);
/* By name: auto, cpu, ref, ref_f32; NULL when unknown. */
const struct kernels *kernels_by_name(const char *name);

#endif
