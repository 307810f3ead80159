/* The library as a table of functions, and a table of what it chose: struct cublaslt owns both, and no device memory. cuBLASLt sees matrices column by column, so
 * for it y [n][rows] is rows x n, w [rows][k] is k x rows and taken transposed, x [n][k] is k x n. */
#include "kernels/cuda/cublaslt.h"

#include "base/check.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* X(name of the function after "cublasLt"): what is called. */
#define FUNCTIONS(X)                                                                                                                                 \
    X(Create)                                                                                                                                        \
    X(Destroy)                                                                                                                                       \
    X(GetVersion)                                                                                                                                    \
    X(Matmul)                                                                                                                                        \
    X(MatmulAlgoGetHeuristic)                                                                                                                        \
    X(MatmulDescInit_internal)                                                                                                                       \
    X(MatmulDescSetAttribute)                                                                                                                        \
    X(MatmulPreferenceInit_internal)                                                                                                                 \
    X(MatmulPreferenceSetAttribute)                                                                                                                  \
    X(MatrixLayoutInit_internal)

enum { PLANS = 256, PROBES = 8 };

/* What an algorithm was chosen for. Compared as bytes: zeroed before it is filled. */
struct key {
    uint32_t type, y_type, rows, k;
    uint32_t n; /* the power of two at or above the tokens */
    uint32_t epilogue; /* 1: bias, 2: accumulate */
    uint32_t y_align;  /* bytes that y is a multiple of, up to 256; y may begin anywhere in a row of a wider matrix */
    uint32_t x_align, w_align;
    uint32_t unused;
    size_t w_stride, x_stride, y_stride, workspace_bytes;
};

struct plan {
    struct key key; /* rows = 0: free */
    bool none;      /* there is no algorithm */
    cublasLtMatmulAlgo_t algo;
};

struct cublaslt {
    void *library;
    cublasLtHandle_t handle;
    char version[32];
#define X(name) __typeof__(&cublasLt##name) name;
    FUNCTIONS(X)
#undef X
    struct plan plans[PLANS];
};

/* One problem as cuBLASLt wants it described; on the stack, nothing is allocated. */
struct description {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static bool load(struct cublaslt *lt, const char *name)
{
    lt->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!lt->library)
        return false;
    bool ok = true;
#define X(fn) ok = (lt->fn = (__typeof__(lt->fn))dlsym(lt->library, "cublasLt" #fn)) != NULL && ok;
    FUNCTIONS(X)
#undef X
    if (ok && lt->Create(&lt->handle) == CUBLAS_STATUS_SUCCESS)
        return true;
    dlclose(lt->library);
    lt->library = NULL;
    return false;
}

struct cublaslt *cublaslt_open(void)
{
    struct cublaslt *lt = calloc(1, sizeof(*lt));
    if (!lt)
        return NULL;
    if (!load(lt, "libcublasLt.so.13") && !load(lt, "libcublasLt.so.12")) {
        free(lt);
        return NULL;
    }
    size_t v = lt->GetVersion();
    snprintf(lt->version, sizeof(lt->version), "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return lt;
}

void cublaslt_close(struct cublaslt **lt)
{
    if (!*lt)
        return;
    (*lt)->Destroy((*lt)->handle);
    dlclose((*lt)->library);
    free(*lt);
    *lt = NULL;
}

const char *cublaslt_version(const struct cublaslt *lt)
{
    return lt->version;
}

static cudaError_t error_of(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return cudaSuccess;
    case CUBLAS_STATUS_NOT_SUPPORTED:
    case CUBLAS_STATUS_ARCH_MISMATCH: return cudaErrorNotSupported;
    case CUBLAS_STATUS_ALLOC_FAILED: return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_INVALID_VALUE: return cudaErrorInvalidValue;
    case CUBLAS_STATUS_NOT_INITIALIZED: return cudaErrorInitializationError;
    case CUBLAS_STATUS_EXECUTION_FAILED: return cudaErrorLaunchFailure;
    default: return cudaErrorUnknown;
    }
}

static cudaDataType_t type_of(enum cuda_type t)
{
    return t == CUDA_F32 ? CUDA_R_32F : t == CUDA_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

static uint32_t align_of(const void *p)
{
    uintptr_t a = (uintptr_t)p | 256;
    return (uint32_t)(a & -a);
}

static uint32_t power_of_two(uint32_t n)
{
    uint32_t p = 1;
    while (p < n && p < 1u << 31)
        p *= 2;
    return p;
}

static struct key key_of(const struct cublaslt_problem *p)
{
    struct key k;
    memset(&k, 0, sizeof(k));
    k.type = p->type;
    k.y_type = p->y_type;
    k.rows = p->rows;
    k.k = p->k;
    k.n = power_of_two(p->n);
    k.epilogue = (p->bias ? 1u : 0u) | (p->accumulate ? 2u : 0u);
    k.y_align = align_of(p->y);
    k.x_align = align_of(p->x);
    k.w_align = align_of(p->w);
    k.w_stride = p->w_stride;
    k.x_stride = p->x_stride;
    k.y_stride = p->y_stride;
    k.workspace_bytes = p->workspace_bytes;
    return k;
}

/* Its slot, or the one it shall have: a free one, else that of an older key. */
static struct plan *plan_slot(struct cublaslt *lt, const struct key *k)
{
    uint64_t h = 1469598103934665603u; /* FNV-1a */
    for (size_t i = 0; i < sizeof(*k); i++)
        h = (h ^ ((const unsigned char *)k)[i]) * 1099511628211u;
    for (size_t i = 0; i < PROBES; i++) {
        struct plan *s = &lt->plans[(h + i) % PLANS];
        if (s->key.rows == 0 || memcmp(&s->key, k, sizeof(*k)) == 0)
            return s;
    }
    return &lt->plans[(h + (h >> 32) % PROBES) % PLANS];
}

static cublasStatus_t describe(const struct cublaslt *lt, const struct cublaslt_problem *p, uint32_t n, struct description *d)
{
    cudaDataType_t type = type_of(p->type), y_type = type_of(p->y_type);
    cublasOperation_t transposed = CUBLAS_OP_T;
    uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t s = lt->MatmulDescInit_internal(&d->op, sizeof(d->op), p->type == CUDA_F32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->MatmulDescSetAttribute(&d->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
    if (s == CUBLAS_STATUS_SUCCESS && p->bias) {
        s = lt->MatmulDescSetAttribute(&d->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue));
        if (s == CUBLAS_STATUS_SUCCESS)
            s = lt->MatmulDescSetAttribute(&d->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof(p->bias));
    }
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->MatrixLayoutInit_internal(&d->w, sizeof(d->w), type, p->k, p->rows, (int64_t)p->w_stride);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->MatrixLayoutInit_internal(&d->x, sizeof(d->x), type, p->k, n, (int64_t)p->x_stride);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->MatrixLayoutInit_internal(&d->y, sizeof(d->y), y_type, p->rows, n, (int64_t)p->y_stride);
    return s;
}

/* Asks for the best algorithm for n tokens. NOT_SUPPORTED: there is none. */
static cublasStatus_t choose(const struct cublaslt *lt, const struct cublaslt_problem *p, uint32_t n, cublasLtMatmulAlgo_t *algo)
{
    const struct { cublasLtMatmulPreferenceAttributes_t attr; uint32_t bytes; } aligned[] = {
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_of(p->w)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_of(p->x)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_of(p->y)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_of(p->y)},
    };
    cublasLtMatmulPreferenceOpaque_t pref;
    struct description d;
    uint64_t workspace = p->workspace_bytes;
    cublasStatus_t s = describe(lt, p, n, &d);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->MatmulPreferenceInit_internal(&pref, sizeof(pref));
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->MatmulPreferenceSetAttribute(&pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    for (size_t i = 0; i < ARRAY_LEN(aligned) && s == CUBLAS_STATUS_SUCCESS; i++)
        s = lt->MatmulPreferenceSetAttribute(&pref, aligned[i].attr, &aligned[i].bytes, sizeof(aligned[i].bytes));
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    s = lt->MatmulAlgoGetHeuristic(lt->handle, &d.op, &d.w, &d.x, &d.y, &d.y, &pref, 1, &best, &found);
    if (s != CUBLAS_STATUS_SUCCESS || found == 0 || best.state != CUBLAS_STATUS_SUCCESS)
        return s != CUBLAS_STATUS_SUCCESS ? s : CUBLAS_STATUS_NOT_SUPPORTED;
    *algo = best.algo;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t launch(const struct cublaslt *lt, const struct cublaslt_problem *p, const cublasLtMatmulAlgo_t *algo, cudaStream_t stream)
{
    struct description d;
    float alpha = 1, beta = p->accumulate ? 1 : 0;
    cublasStatus_t s = describe(lt, p, p->n, &d);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    return lt->Matmul(lt->handle, &d.op, &alpha, p->w, &d.w, p->x, &d.x, &beta, p->y, &d.y, p->y, &d.y, algo, p->workspace, p->workspace_bytes, stream);
}

cudaError_t cublaslt_matmul(struct cublaslt *lt, const struct cublaslt_problem *p, cudaStream_t stream)
{
    size_t bytes = p->type == CUDA_F32 ? 4 : 2;
    ASSERT(p->rows > 0 && p->k > 0 && (p->y_type == CUDA_F32 || p->y_type == p->type));
    ASSERT(p->w_stride >= p->k && p->x_stride >= p->k && p->y_stride >= p->rows);
    ASSERT(p->w_stride * bytes % 16 == 0 && p->x_stride * bytes % 16 == 0 && align_of(p->w) >= 16 && align_of(p->x) >= 16 && align_of(p->y) >= 16);
    ASSERT(!p->workspace_bytes || align_of(p->workspace) == 256);
    if (p->n == 0)
        return cudaSuccess;
    struct key key = key_of(p);
    struct plan *plan = plan_slot(lt, &key);
    if (memcmp(&plan->key, &key, sizeof(key)) != 0) {
        cublasLtMatmulAlgo_t algo;
        cublasStatus_t s = choose(lt, p, key.n, &algo);
        if (s != CUBLAS_STATUS_SUCCESS && s != CUBLAS_STATUS_NOT_SUPPORTED)
            return error_of(s);
        plan->key = key;
        plan->none = s == CUBLAS_STATUS_NOT_SUPPORTED;
        if (!plan->none)
            plan->algo = algo;
    }
    if (plan->none)
        return cudaErrorNotSupported;
    cublasStatus_t s = launch(lt, p, &plan->algo, stream);
    if ((s == CUBLAS_STATUS_NOT_SUPPORTED || s == CUBLAS_STATUS_INVALID_VALUE) && p->n != key.n) { /* not for exactly so many tokens */
        s = choose(lt, p, p->n, &plan->algo);
        if (s == CUBLAS_STATUS_SUCCESS)
            s = launch(lt, p, &plan->algo, stream);
        else
            plan->key.rows = 0;
    }
    return error_of(s);
}
