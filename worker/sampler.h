/* From logits to tokens and log-probabilities, exactly, with the vocabulary cut over the ranks of the last stage.
 *
 * Logits stay in the rank that made them. Per segment of 512 ids a rank gives the maximum and the sum of exponentials; with filters its best
 * candidates too. Everybody merges the same numbers in the same order (ranks, segments, ids), so all ranks come to the same token, for every tp and
 * thread count. One Philox uniform of (seed, choice, position): without filters it picks the segment, whose owner walks to the token; with
 * filters it picks among the merged candidates, of which more are asked for until they hold what top_k, min_p and top_p need.
 *
 * Order: bias, allowed ids, min_tokens (stop ids are banned), penalties, DRY and bad sequences (sampler_history.h), temperature (with dynatemp_range r
 * between t - r and t + r, by the share that the entropy is of the largest possible, to the power dynatemp_exponent), then the filters
 * (kernels/sampling_filter.h). A temperature below 1e-5 is greedy (ties: the lowest id). Log-probabilities are of the raw logits. min_p keeps p >= min_p * p_max;
 * top_k the k best (ties: lower id first); top_p the shortest run of the best whose mass reaches top_p of what was left. When bans leave nothing,
 * all but the allowed ids are lifted.
 *
 * SPMD over the pool: segments, then rows, are shared out; thread 0 does the exchange. Buffers are allocated once. */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include "base/pool.h"
#include "worker/comm/comm.h"
#include "worker/slots.h"

enum { SAMPLER_NONE = SAMPLING_NONE };

struct sampler_config {
    uint32_t tp, tp_rank, vocab, rows_cap, ctx;
    struct shard_range ids[SHARD_TP_MAX]; /* of each rank; begin at multiples of 512 */
    struct pool *pool;
};
/* One position whose next token is sampled, or whose next token is known and scored. */
struct sampler_row {
    const struct slot *slot;
    uint32_t slot_idx;
    bool mirostat;         /* the slot's */
    uint32_t position;     /* of the token that these logits predict */
    bool sample;
    bool logprob;          /* of the sampled token */
    uint32_t target;       /* score this token instead; SAMPLER_NONE */
    uint32_t n_top;        /* log-probabilities of so many best tokens; room in the two arrays below */
    uint32_t token;        /* result; SAMPLER_NONE when none was sampled */
    float lp;              /* result; NaN when none was asked for */
    float mu;              /* result: the slot's, after this sample */
    uint32_t n_top_out;
    uint32_t *top_id;
    float *top_lp;
};

struct sampler;
enum err sampler_create(const struct sampler_config *cfg, struct sampler **out);
void sampler_destroy(struct sampler **s);
/* logits: [n][stride], this rank's ids. Every rank of the stage calls it with the same rows. comm may be NULL with tp 1. ERR_CORRUPT: logits that
 * are not finite; errors of comm.h. */
enum err sampler_run(struct sampler *s, struct comm *comm, const float *logits, size_t stride, struct sampler_row *rows, uint32_t n);

#endif
