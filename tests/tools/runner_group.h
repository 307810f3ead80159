/* A whole replica in one process: tp x pp runners, one thread each, over comm_local. For tests and tools. */
#ifndef TESTS_TOOLS_RUNNER_GROUP_H
#define TESTS_TOOLS_RUNNER_GROUP_H

#include "worker/model_runner.h"

struct runner_group;
struct runner_group_config {
    const char *model_path, *backend; /* backend: kernels_by_name */
    uint32_t tp, pp;
    const uint32_t *share, *layer_first; /* or NULL */
    uint32_t n_threads, ctx, max_seqs, max_step_tokens;
    enum kv_type kv_type;
    uint32_t n_gpus;     /* > 0: ranks run on GPUs 0 .. n_gpus - 1 in turn (only in programs built with CUDA or the emulator) */
    bool deterministic;
};
/* Loads all ranks, in parallel. On failure err_detail() of this thread says why. */
enum err runner_group_create(const struct runner_group_config *cfg, struct runner_group **out);
void runner_group_destroy(struct runner_group **g);
/* One step on every rank; the result of rank 0 of the last stage, valid until the next step. ERR_INTERNAL when ranks of the last stage disagree. */
enum err runner_group_step(struct runner_group *g, const struct step *s, const struct step_result **out);
/* n steps without waiting for one another, as a pipeline has them in flight: tokens[i] is the first token of the result of step i. */
enum err runner_group_stream(struct runner_group *g, const struct step *s, uint32_t n, uint32_t *tokens);
void runner_group_reset(struct runner_group *g);
/* On every rank of the last stage; called from their threads. */
void runner_group_set_logits_hook(struct runner_group *g, runner_logits_fn *fn, void *arg);
void runner_group_info(const struct runner_group *g, uint32_t world_rank, struct runner_info *out);

#endif
