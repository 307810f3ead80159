/* Requests that want numbers, not text: /v1/embeddings, /v1/rerank, /score. api_embed.c has their life (inputs to engines, events to the answer)
 * and the embeddings; api_rerank.c reads and answers the other two. Front thread only, but that large bodies are read beside it (api_work.h).
 *
 * A request has up to EMBED_INPUTS_MAX inputs, each a struct request of an engine; at most as many as run together (and EMBED_WINDOW) are in the hands
 * of the engines at a time, so that a long list neither fills the queue nor is refused because it would. Ids are (serial, slot, input), with serials from the same counter
 * as generations, so that an event finds its owner or nobody. */
#ifndef COORDINATOR_API_EMBED_H
#define COORDINATOR_API_EMBED_H

#include "coordinator/api.h"

enum { EMBED_INPUTS_MAX = 2048, EMBED_WINDOW = 64, EMBED_TOKENS_MAX = 32 << 20 /* of all inputs: a query stands before each document */ };
enum embed_kind { EMBED_EMBEDDINGS, EMBED_RERANK, EMBED_SCORE };

struct embed_input {
    struct tokens ids;
    struct engine *engine; /* that has it, or had */
    bool done;
    float score;           /* RERANK, SCORE: probability of "yes" against "no" */
    struct buf json;       /* EMBEDDINGS: the vector, rendered */
};
struct embed {
    struct api_client client;
    struct api *api;
    struct deployment *d;
    struct http_exchange *x;   /* NULL: the client left while the body was read */
    enum embed_kind kind;
    struct api_job job;        /* reads a large body ... */
    char *body;                /* ... this one; NULL: nothing is read beside the loop */
    size_t body_len;
    struct api_error error;    /* what reading found */
    uint32_t ctx, slot, serial;
    uint64_t arrival_ns, prompt_tokens;
    struct embed_input *inputs;
    uint32_t n_inputs, n_sent, n_done;

    bool base64;           /* EMBEDDINGS */
    uint32_t dims;         /* the vector is cut to so many */
    enum pooling pooling;  /* NONE: scores of targets; RANK: of the model's own head */

    uint32_t targets[2];   /* yes, no */
    uint32_t top_n;
    json_t *documents;     /* RERANK, where the answer shows them: strings */
};

/* api_rerank.c: from a body to inputs, and the answer. */
bool embed_read_rerank(struct embed *m, const json_t *o, struct api_error *e);
bool embed_read_score(struct embed *m, const json_t *o, struct api_error *e);
void embed_answer_scores(struct embed *m, struct buf *out);
/* From a body to inputs: api and kind are set. Any thread. What it made is freed by embed_deinit, on failure too. */
bool embed_read(struct embed *m, const json_t *o, struct api_error *e);
void embed_deinit(struct embed *m);
/* api_embed.c, for api_rerank.c */
bool embed_make_inputs(struct embed *m, size_t n, const char *param, struct api_error *e);
void embed_put_id(const char *prefix, struct buf *out); /* "id":"PREFIX-...", */

#endif
