/* The AVX-512 table: its own products, the rest from AVX2. Weights of 8 bits are packed as unsigned bytes. No
 * intrinsics here: only the products' files are built for AVX-512. */
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"

#ifdef RACKLM_SIMDE
#define AVX512_NAME(name) name##_simde
#else
#define AVX512_NAME(name) name
#endif

void AVX512_NAME(cpu_avx512_matmul_q8)(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                                       uint32_t row_end, float *y, size_t y_stride);
void AVX512_NAME(cpu_avx512_matmul_float)(const struct kernels_weight *w, const struct kernels_act *x,
                                          uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride);

enum { FLIP = 0x80 };

static enum quant_act act(enum quant type)
{
    return quant_traits[type].act;
}
static void pack(enum quant type, uint32_t rows, uint32_t cols, const void *src, uint32_t row0, uint32_t n, void *dst)
{
    layout_pack(type, rows, cols, src, row0, n, dst, FLIP);
}
static void row(const struct kernels_weight *w, uint32_t r, float *out)
{
    layout_row(w, r, out, FLIP);
}
static void matmul(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin, uint32_t row_end,
                   float *y, size_t y_stride)
{
    (act(w->type) == QUANT_ACT_Q8 ? AVX512_NAME(cpu_avx512_matmul_q8)
                                  : AVX512_NAME(cpu_avx512_matmul_float))(w, x, row_begin, row_end, y, y_stride);
}

const struct kernels AVX512_NAME(kernels_cpu_avx512) = {
    .name = "cpu-avx512",
    .act = act,
    .weight_bytes = layout_bytes,
    .weight_pack = pack,
    .weight_row = row,
    .quantize = cpu_avx2_quantize,
    .rmsnorm = cpu_avx2_rmsnorm,
    .matmul = matmul,
    .rope = cpu_avx2_rope,
    .kv_write = cpu_avx2_kv_write,
    .attention = cpu_avx2_attention,
    .swiglu = cpu_avx2_swiglu,
    .add = cpu_avx2_add,
};
