/* The emulated libcublasLt.so.13: the part of cublasLt.h that kernels/cuda/cublaslt.c calls, on the emulated devices, by plain loops. What NVIDIA's documentation
 * (cuBLAS 13.0, "Using the cuBLASLt API") demands of a caller is checked, and a violation is told on standard error. It has one algorithm: A transposed, B not, all
 * column-major, pointers and leading dimensions aligned to 16 bytes; it writes to all the workspace that it asked for, and, chosen for one number of columns, it
 * refuses some others, as a real one may. */
#include "tests/gpu/emu/emu.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

enum : uint64_t { DESC = 0x6c74646573630001, LAYOUT, PREFERENCE, ALGO }; /* what an opaque struct was initialised as */

struct desc {
    uint64_t magic;
    int compute, scale, transa, transb, pointer_mode;
    uint32_t epilogue;
    const void *bias;
    int bias_type;
};
struct layout {
    uint64_t magic;
    int type, order;
    uint64_t rows, cols;
    int64_t ld;
};
struct preference {
    uint64_t magic, workspace;
    uint32_t align[4], search;
};
struct algorithm {
    uint64_t magic, workspace, n;
    uint32_t align[4];
};
static_assert(sizeof(desc) <= sizeof(cublasLtMatmulDescOpaque_t) && sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t) &&
              sizeof(preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t) && sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t));

/* The struct inside, or NULL: not initialised as such. */
template <typename T, typename O> T *inside(O *opaque, uint64_t magic)
{
    T *t = reinterpret_cast<T *>(opaque);
    return t != nullptr && t->magic == magic ? t : nullptr;
}

cublasStatus_t refuse(cublasStatus_t s, const char *format, ...) __attribute__((format(printf, 2, 3)));
cublasStatus_t refuse(cublasStatus_t s, const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    fprintf(stderr, "emulated cuBLASLt: %s: %s\n", cublasLtGetStatusString(s), line);
    return s;
}

template <typename T> cublasStatus_t set(T &field, const void *buf, size_t size)
{
    if (buf == nullptr || size != sizeof(field))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "an attribute of %zu bytes was set with %zu", sizeof(field), size);
    memcpy(&field, buf, size);
    return CUBLAS_STATUS_SUCCESS;
}

size_t bytes_of(int type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

/* One product, checked: what a heuristic looks at, and what a call runs. */
struct product {
    int type, out;
    uint64_t m, n, k;
    int64_t lda, ldb, ldc, ldd;
    float alpha, beta;
    const char *a, *b, *c;
    char *d;
    const void *bias;
    bool tf32;
    void *workspace;
    size_t workspace_bytes;
};

cublasStatus_t check(const desc *op, const layout *a, const layout *b, const layout *c, const layout *d, product *p)
{
    if (op == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "a description that was not initialised");
    for (const layout *l : {a, b, c, d}) {
        if (l->order != CUBLASLT_ORDER_COL)
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "memory order %d", l->order);
        if (l->rows == 0 || l->cols == 0 || l->rows > INT32_MAX || l->cols > INT32_MAX || l->ld < (int64_t)l->rows)
            return refuse(CUBLAS_STATUS_INVALID_VALUE, "a matrix of %llu x %llu, leading dimension %lld", (unsigned long long)l->rows,
                          (unsigned long long)l->cols, (long long)l->ld);
    }
    if (op->transa != CUBLAS_OP_T || op->transb != CUBLAS_OP_N || op->pointer_mode != CUBLASLT_POINTER_MODE_HOST || op->scale != CUDA_R_32F)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "transposition, pointer mode or scale type that are not emulated");
    bool floats = a->type == CUDA_R_32F, halves = a->type == CUDA_R_16F || a->type == CUDA_R_16BF;
    bool compute = op->compute == CUBLAS_COMPUTE_32F || (floats && op->compute == CUBLAS_COMPUTE_32F_FAST_TF32);
    if (!(floats || halves) || b->type != a->type || c->type != d->type || (d->type != CUDA_R_32F && d->type != a->type) || !compute)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "types A %d, B %d, C %d, D %d, compute type %d", a->type, b->type, c->type, d->type, op->compute);
    if (a->rows != b->rows || d->rows != a->cols || d->cols != b->cols || c->rows != d->rows || c->cols != d->cols)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "shapes A %llux%llu (transposed), B %llux%llu, C %llux%llu, D %llux%llu", (unsigned long long)a->rows,
                      (unsigned long long)a->cols, (unsigned long long)b->rows, (unsigned long long)b->cols, (unsigned long long)c->rows,
                      (unsigned long long)c->cols, (unsigned long long)d->rows, (unsigned long long)d->cols);
    if (op->epilogue != CUBLASLT_EPILOGUE_DEFAULT && op->epilogue != CUBLASLT_EPILOGUE_BIAS)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "epilogue %u", op->epilogue);
    bool bias = op->epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (bias && (op->bias == nullptr || (op->bias_type != -1 && op->bias_type != d->type)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "a bias without a pointer or of another type than D");
    *p = {a->type, d->type, d->rows, d->cols, a->rows, a->ld, b->ld, c->ld, d->ld, 1, 0, nullptr, nullptr, nullptr, nullptr, bias ? op->bias : nullptr,
          op->compute == CUBLAS_COMPUTE_32F_FAST_TF32, nullptr, 0};
    return CUBLAS_STATUS_SUCCESS;
}

float to_tf32(float x) /* 10 bits of mantissa, to nearest, ties to even */
{
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7f800000u) != 0x7f800000u)
        u = (u + 0xfffu + (u >> 13 & 1)) & ~0x1fffu;
    memcpy(&x, &u, 4);
    return x;
}

void to_floats(const product &p, const char *from, float *to, size_t n)
{
    if (p.type == CUDA_R_16F) {
        for (size_t i = 0; i < n; i++) {
            _Float16 h;
            memcpy(&h, from + 2 * i, 2);
            to[i] = (float)h;
        }
    } else if (p.type == CUDA_R_16BF) {
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, from + 2 * i, 2);
            uint32_t u = (uint32_t)h << 16;
            memcpy(to + i, &u, 4);
        }
    } else {
        memcpy(to, from, 4 * n);
        if (p.tf32)
            for (size_t i = 0; i < n; i++)
                to[i] = to_tf32(to[i]);
    }
}

float load(int type, const void *p, size_t i)
{
    return type == CUDA_R_32F   ? static_cast<const float *>(p)[i]
           : type == CUDA_R_16F ? __half2float(static_cast<const __half *>(p)[i])
                                : __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]);
}

void store(int type, void *p, size_t i, float v)
{
    if (type == CUDA_R_32F)
        static_cast<float *>(p)[i] = v;
    else if (type == CUDA_R_16F)
        static_cast<__half *>(p)[i] = __float2half_rn(v);
    else
        static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
}

/* Four columns of B against one of A, in eight partial sums each. k is a multiple of 8: padded with zeros. */
void dot4(const float *a, const float *const b[4], size_t k, float out[4])
{
    typedef float v8 __attribute__((vector_size(32), aligned(4)));
    v8 sum[4] = {};
    for (size_t i = 0; i < k; i += 8)
        for (int t = 0; t < 4; t++)
            sum[t] += *(const v8 *)(a + i) * *(const v8 *)(b[t] + i);
    for (int t = 0; t < 4; t++) {
        out[t] = 0;
        for (int l = 0; l < 8; l++)
            out[t] += sum[t][l];
    }
}

bool run(const product &p)
{
    size_t k8 = (p.k + 7) / 8 * 8;
    std::vector<float> b(p.n * k8), a(k8);
    if (p.workspace_bytes > 0)
        memset(p.workspace, 0xff, p.workspace_bytes);
    for (uint64_t j = 0; j < p.n; j++)
        to_floats(p, p.b + j * (uint64_t)p.ldb * bytes_of(p.type), &b[j * k8], p.k);
    for (uint64_t i = 0; i < p.m; i++) {
        to_floats(p, p.a + i * (uint64_t)p.lda * bytes_of(p.type), a.data(), p.k);
        for (uint64_t j = 0; j < p.n; j += 4) {
            const float *columns[4];
            float out[4];
            for (uint64_t t = 0; t < 4; t++)
                columns[t] = &b[std::min(j + t, p.n - 1) * k8];
            dot4(a.data(), columns, k8, out);
            for (uint64_t t = 0; t < 4 && j + t < p.n; t++) {
                float v = p.alpha * out[t];
                if (p.beta != 0)
                    v += p.beta * load(p.out, p.c, i + (j + t) * (uint64_t)p.ldc);
                if (p.bias != nullptr)
                    v += load(p.out, p.bias, i);
                store(p.out, p.d, i + (j + t) * (uint64_t)p.ldd, v);
            }
        }
    }
    return true;
}

/* Whether a column-major matrix lies in device memory. */
bool accessible(const void *p, uint64_t rows, uint64_t cols, int64_t ld, size_t bytes)
{
    return emu::device_accessible(p) && emu::device_accessible((const char *)p + ((cols - 1) * (uint64_t)ld + rows) * bytes - 1);
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    int device;
    if (handle == nullptr || cudaGetDevice(&device) != cudaSuccess || cudaSetDevice(device) != cudaSuccess)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = reinterpret_cast<cublasLtHandle_t>(new int(device));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete reinterpret_cast<int *>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusString(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS";
    }
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t opaque, size_t size, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (size < sizeof(*opaque))
        return CUBLAS_STATUS_ALLOC_FAILED;
    *reinterpret_cast<desc *>(opaque) = {DESC, compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_POINTER_MODE_HOST, CUBLASLT_EPILOGUE_DEFAULT, nullptr, -1};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque, cublasLtMatmulDescAttributes_t attr, const void *buf, size_t size)
{
    desc *d = inside<desc>(opaque, DESC);
    if (d == nullptr)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attr) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return set(d->compute, buf, size);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return set(d->scale, buf, size);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return set(d->pointer_mode, buf, size);
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(d->transa, buf, size);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(d->transb, buf, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(d->epilogue, buf, size);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(d->bias, buf, size);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(d->bias_type, buf, size);
    default: return refuse(CUBLAS_STATUS_INVALID_VALUE, "attribute %d of a product is not emulated", (int)attr);
    }
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t opaque, size_t size, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    if (size < sizeof(*opaque))
        return CUBLAS_STATUS_ALLOC_FAILED;
    *reinterpret_cast<layout *>(opaque) = {LAYOUT, type, CUBLASLT_ORDER_COL, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t opaque, size_t size)
{
    if (size < sizeof(*opaque))
        return CUBLAS_STATUS_ALLOC_FAILED;
    *reinterpret_cast<preference *>(opaque) = {PREFERENCE, 0, {256, 256, 256, 256}, CUBLASLT_SEARCH_BEST_FIT};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t opaque, cublasLtMatmulPreferenceAttributes_t attr, const void *buf, size_t size)
{
    preference *p = inside<preference>(opaque, PREFERENCE);
    if (p == nullptr)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attr) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE: return set(p->search, buf, size);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return set(p->workspace, buf, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return set(p->align[0], buf, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return set(p->align[1], buf, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return set(p->align[2], buf, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return set(p->align[3], buf, size);
    default: return refuse(CUBLAS_STATUS_INVALID_VALUE, "preference %d is not emulated", (int)attr);
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t pref, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    product p;
    const preference *want = inside<preference>(pref, PREFERENCE);
    if (handle == nullptr)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (want == nullptr || wanted <= 0 || results == nullptr || found == nullptr)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "a heuristic without preference or results");
    *found = 0;
    cublasStatus_t s = check(inside<desc>(op, DESC), inside<layout>(a, LAYOUT), inside<layout>(b, LAYOUT), inside<layout>(c, LAYOUT), inside<layout>(d, LAYOUT), &p);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    bool aligned = std::min({want->align[0], want->align[1]}) >= 16 && (uint64_t)p.lda * bytes_of(p.type) % 16 == 0 && (uint64_t)p.ldb * bytes_of(p.type) % 16 == 0;
    if (!aligned)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    algorithm algo = {ALGO, std::min(want->workspace, p.m * p.n * 4) / 256 * 256, p.n, {want->align[0], want->align[1], want->align[2], want->align[3]}};
    memset(&results[0], 0, sizeof(results[0]));
    memcpy(&results[0].algo, &algo, sizeof(algo));
    results[0].workspaceSize = algo.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    product p;
    if (handle == nullptr)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t s = check(inside<desc>(op, DESC), inside<layout>(a_layout, LAYOUT), inside<layout>(b_layout, LAYOUT), inside<layout>(c_layout, LAYOUT),
                             inside<layout>(d_layout, LAYOUT), &p);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    const algorithm *chosen = inside<const algorithm>(algo, ALGO);
    if (alpha == nullptr || beta == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr || chosen == nullptr)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "a pointer is NULL, or the algorithm was not chosen by a heuristic");
    const void *const pointers[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)pointers[i] % chosen->align[i] != 0 || (uintptr_t)pointers[i] % bytes_of(i < 2 ? p.type : p.out) != 0)
            return refuse(CUBLAS_STATUS_INVALID_VALUE, "matrix %c at %p is not aligned to %u bytes as the heuristic was told", "ABCD"[i], pointers[i], chosen->align[i]);
    if (workspace_bytes < chosen->workspace || (uintptr_t)workspace % 256 != 0 || (chosen->workspace > 0 && !emu::device_accessible(workspace)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "%zu bytes of workspace at %p: the algorithm needs %llu, aligned to 256", workspace_bytes, workspace,
                      (unsigned long long)chosen->workspace);
    if (c == d && p.ldc != p.ldd)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "C is D and has another layout");
    if (p.n != chosen->n && p.n % 8 == 1)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memcpy(&p.alpha, alpha, sizeof(float));
    memcpy(&p.beta, beta, sizeof(float));
    bool there = accessible(a, p.k, p.m, p.lda, bytes_of(p.type)) && accessible(b, p.k, p.n, p.ldb, bytes_of(p.type)) &&
                 accessible(d, p.m, p.n, p.ldd, bytes_of(p.out)) && (p.beta == 0 || accessible(c, p.m, p.n, p.ldc, bytes_of(p.out))) &&
                 (p.bias == nullptr || accessible(p.bias, p.m, 1, (int64_t)p.m, bytes_of(p.out)));
    if (!there) /* a GPU would fault when it runs */
        return refuse(CUBLAS_STATUS_EXECUTION_FAILED, "a matrix reaches out of device memory");
    p.a = static_cast<const char *>(a);
    p.b = static_cast<const char *>(b);
    p.c = static_cast<const char *>(c);
    p.d = static_cast<char *>(d);
    p.workspace = workspace;
    p.workspace_bytes = chosen->workspace;
    return emu::enqueue_operation(stream, [p] { return run(p); }, "cublasLtMatmul") == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

} // extern "C"
