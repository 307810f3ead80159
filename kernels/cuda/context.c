#include "kernels/cuda/context.h"

#include "base/check.h"
#include "kernels/cuda/attention.h"

#include <stdio.h>
#include <stdlib.h>

enum { COUNTER_BYTES = CONTEXT_COUNTERS * 4 };

size_t cuda_workspace_bytes(const struct cuda_limits *l)
{
    size_t scratch = MAX(matmul_scratch_bytes(l), cuda_attention_workspace_bytes(l));
    return COUNTER_BYTES + ROUND_UP(scratch, (size_t)CUDA_ALIGN);
}

struct cuda_context *cuda_context_create(const struct cuda_config *cfg)
{
    struct cuda_context *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->cfg = *cfg;
    if (c->cfg.n_sms == 0)
        c->cfg.n_sms = 1;
    if (cfg->workspace && cfg->workspace_bytes >= COUNTER_BYTES) {
        ASSERT((uintptr_t)cfg->workspace % CUDA_ALIGN == 0);
        if (cudaMemset(cfg->workspace, 0, COUNTER_BYTES) != cudaSuccess)
            goto fail;
        c->counters = cfg->workspace;
        c->scratch = (uint8_t *)cfg->workspace + COUNTER_BYTES;
        c->scratch_bytes = cfg->workspace_bytes - COUNTER_BYTES;
    }
    if (!cfg->deterministic)
        c->lt = cublaslt_open();
    snprintf(c->describe, sizeof c->describe, c->lt ? "own kernels, cuBLASLt %s" : "own kernels", c->lt ? cublaslt_version(c->lt) : "");
    return c;

fail:
    free(c);
    return NULL;
}

void cuda_context_destroy(struct cuda_context **c)
{
    if (!*c)
        return;
    if ((*c)->lt)
        cublaslt_close(&(*c)->lt);
    free(*c);
    *c = NULL;
}

const char *cuda_context_describe(const struct cuda_context *c)
{
    return c->describe;
}
