/* The OpenAI-compatible API: routes and roles, JSON in, JSON and SSE out. Runs in the front thread only.
 *
 * http_request -api-> generation (one POST: its choices, each a struct request of the engine), and back: token_event -> detokenizer -> answer.
 * api.c routes; api_params.c, api_sampling.c, api_options.c and api_chat.c read requests; api_generate.c starts and ends generations; api_answer.c writes
 * answers; api_task.c and api_info.c the rest. Large bodies are read beside the loop (api_work.h): what reads a request may run in that thread. */
#ifndef COORDINATOR_API_H
#define COORDINATOR_API_H

#include "base/options.h"
#include "coordinator/api_work.h"
#include "coordinator/deployment.h"
#include "text/detokenizer.h"
#include "coordinator/front.h"
#include "coordinator/http.h"

#include <jansson.h>

enum {
    API_CHOICES_MAX = 128,       /* n, or prompts times n, of one request */
    API_STOPS_MAX = 16, API_STOP_BYTES_MAX = 1024,
    API_WORDS_MAX = 256, API_WORD_BYTES_MAX = 256, /* of bad_words and the like */
    API_LOGPROBS_MAX = 20,
    API_MESSAGES_MAX = 100000,
    API_JSON_DEPTH_MAX = 64, API_JSON_CONTAINERS_MAX = 1 << 20,
    API_HELD_MAX = 128 << 20,    /* bytes of an answer that is not streamed */
    API_INLINE_MAX = 48 << 10,   /* longer bodies are read beside the loop */
};

/* A bad request on its way to the client: kept here, rendered by api_fail. */
struct api_error {
    int status;
    char param[64];      /* "" : null */
    char message[400];
};
/* Fills e once (the first finding wins) and returns false, so that parsers read `return api_error(...)`. */
bool api_error(struct api_error *e, int status, const char *param, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

struct api {
    const struct options *opts;
    struct http *http;
    struct api_work *work;            /* NULL: everything in the loop */
    struct deployment *deployments;   /* what is served; a request's own is generation.d */
    uint32_t n_deployments;
    uint8_t (*key_hashes)[32];        /* BLAKE2b of each API key; none: open to whoever reaches the address */
    uint32_t n_keys;
    bool loopback;
    bool draining;
    uint64_t started_s;
    struct generation **gens;         /* slot table; NULL where free */
    struct generation *unsent;        /* streams with something to send at the end of this turn */
    uint32_t n_gens, gens_cap, serial;
    struct embed **embeds;            /* the same of requests for numbers (api_embed.h) */
    uint32_t n_embeds, embeds_cap;
    void (*health)(void *arg, const struct deployment *d, struct front_health *out); /* front_config */
    void *health_arg;
};

/* What http_user points to: the first member of whatever answers an exchange. */
struct api_client {
    void (*gone)(struct api_client *c); /* the client left before the answer was complete; the exchange is no more */
};

/* One choice of a generation: one request of the engine. */
struct choice {
    uint64_t id;               /* of the engine's request */
    struct engine *engine;
    struct detokenizer detok;
    struct reasoning split;    /* what the detokenizer gave, into the next two */
    struct buf text, thought;  /* not streaming: the whole; streaming: the delta of this event */
    struct buf raw;            /* scratch: the text of one token */
    struct buf logprobs;       /* JSON list items, without brackets */
    struct buf lp_tokens, lp_values, lp_top, lp_offsets; /* the columns of completions logprobs */
    struct buf ids;            /* JSON list items */
    struct buf prompt_logprobs, prompt_ids;
    const uint32_t *prompt;    /* view into the generation */
    uint32_t prompt_idx, n_prompt, n_tokens;
    size_t n_chars, n_counted; /* characters of the text so far; bytes of `text` among them */
    uint64_t first_ns, last_ns;
    const char *finish;        /* "stop", "length" */
    int64_t stop_id;           /* the end id that was met, or -1 */
    double logprob_sum;        /* of its tokens, where choices are compared (best_of) */
    bool started, sent_role, done;
};
struct generation {
    struct api_client client;
    struct api *api;
    struct deployment *d;      /* that the request's `model` names */
    uint32_t ctx;              /* deployment_ctx when the request came */
    struct http_exchange *x;
    uint32_t slot, serial;
    bool chat, stream, include_usage, continuous_usage, echo, return_token_ids, logprobs, prompt_logprobs, began;
    bool show_special;         /* skip_special_tokens is off */
    bool tokens_as_ids;        /* log-probabilities name "token_id:N" */
    bool include_reasoning, service_tier;
    const char *reasoning_field; /* the name of the thinking part in answers; NULL: it is not told from the rest */
    struct reasoning split;    /* as the prompt leaves it; each choice begins with a copy */
    uint32_t n_logprobs, n_prompt_logprobs, n_done;
    uint32_t n_best;           /* choices of each prompt that are shown: the likeliest; 0: all */
    uint32_t truncate;         /* so many tokens of a prompt's end are taken; 0: all */
    size_t held;               /* bytes in the choices' buffers */
    char id[48];
    uint64_t created_s, arrival_ns, last_sent_ns;
    struct tokens *prompts;    /* [n_prompts] */
    uint32_t n_prompts, n_choices;
    struct choice *choices;
    char **stops;
    uint32_t n_stops;
    bool include_stop;
    uint32_t prompt_tokens, completion_tokens, reasoning_tokens;
    uint64_t prefill_ns;
    struct start *start;       /* while the request is read beside the loop */
    struct buf out;            /* of a stream: what this turn of the loop has for it; keeps its memory */
    bool in_unsent;
    struct generation *next_unsent;
};

/* api.c */
enum err api_init(struct api *a); /* opts and deployments are set: reads the keys */
void api_deinit(struct api *a);
void api_handle(void *arg, struct http_exchange *x); /* http_config.handle */
void api_gone(void *arg, struct http_exchange *x);   /* http_config.gone */
int api_admit(void *arg, const struct http_head *head, char *text, size_t cap); /* http_config.admit */
void api_fail(struct http_exchange *x, const struct api_error *e);
void api_reply_json(struct http_exchange *x, int status, struct buf *body);

/* api_params.c: strict readers; null counts as absent. False: *e is filled. */
json_t *api_parse_body(const char *body, size_t len, struct api_error *e); /* an object, or NULL */
const json_t *api_get(const json_t *o, const char *key); /* NULL: absent or null */
bool api_get_bool(const json_t *o, const char *key, bool *out, struct api_error *e);
bool api_get_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *out, struct api_error *e);
bool api_get_float(const json_t *o, const char *key, double min, double max, double *out, struct api_error *e);
bool api_get_str(const json_t *o, const char *key, const char **out, struct api_error *e);
/* What `model` (absent: the first) or the name says; NULL: 404, *e is filled. */
struct deployment *api_find_model(const struct api *a, const char *name, struct api_error *e);
struct deployment *api_get_model(const struct api *a, const json_t *o, struct api_error *e);
/* api_sampling.c. Sampling parameters of a request (not n, stop strings or the prompt), arrays owned by *s: api_sampling_deinit. What the answer shows of
 * log-probabilities goes into *g. Here and below g->d and g->ctx are set. */
bool api_get_sampling(const json_t *o, struct generation *g, struct sampling *s, struct api_error *e);
void api_sampling_deinit(struct sampling *s);
bool api_get_stops(const json_t *o, struct generation *g, struct api_error *e);
/* Text, texts, ids or lists of ids (`prompt`, or what `key` says; at most n_max), a prompt with `suffix` where the model fills in; fills g->prompts. */
bool api_get_prompts(const json_t *o, const char *key, uint32_t n_max, struct generation *g, struct api_error *e);
/* Text to a prompt's ids: truncated where the request wants it, checked against the context. */
bool api_encode_prompt(const struct generation *g, const char *text, size_t len, unsigned flags, const char *param, struct tokens *out,
                       struct api_error *e);

/* api_options.c. How the answer is to look, and what is accepted without effect or refused by name; n choices of each prompt. */
bool api_get_options(const json_t *o, struct generation *g, int64_t *n, struct api_error *e);

/* api_chat.c. messages through the chat template; one prompt. */
bool api_get_chat(const json_t *o, struct generation *g, struct api_error *e);
bool api_chat_render(const json_t *o, const struct deployment *d, struct buf *text, struct api_error *e);

/* api_generate.c */
void api_generate(struct api *a, struct http_exchange *x, bool chat);
bool api_servable(const struct api *a, const struct deployment *d, struct api_error *e);
struct engine *api_engine(const struct deployment *d);    /* the one with the least to do; NULL: all have stopped */
void api_event(struct api *a, struct token_event *ev); /* takes ownership */
void api_generation_gone(struct generation *g);        /* the client left: cancel and free */
void api_flush(struct api *a);                         /* after the events of a turn: each stream's chunks in one write */
bool api_tick(void *arg);                              /* keeps silent streams alive; http_timer */
uint32_t api_n_open(const struct api *a);

/* api_embed.c, api_rerank.c */
void api_embeddings(struct api *a, struct http_exchange *x);
void api_rerank(struct api *a, struct http_exchange *x);
void api_score(struct api *a, struct http_exchange *x);
bool api_embed_event(struct api *a, struct token_event *ev); /* false: of no request for numbers; else takes ownership */
void api_embed_tick(struct api *a);
void api_embed_deinit(struct api *a);

/* api_answer.c: how answers look. */
void api_answer_begin(struct generation *g);
void api_answer_tokens(struct choice *c, struct generation *g, const struct token_event *ev); /* into the choice's buffers */
void api_answer_finish(struct choice *c);                       /* what was held back, when c->finish is set */
size_t api_answer_held(struct choice *c);                       /* bytes in them */
void api_answer_delta(struct generation *g, struct choice *c);  /* streams what is new; the finish with it */
void api_answer_end(struct generation *g);                      /* usage chunk and [DONE], or the whole JSON */
void api_answer_error(struct generation *g, const struct api_error *e);
void api_answer_comment(struct generation *g, const char *text);
void api_answer_send(struct generation *g);                     /* what is in g->out */

/* api_task.c. Routes that only compute: fn reads the body and writes the answer's JSON, beside the loop where the body is large. */
typedef bool api_task_fn(struct api *a, const json_t *o, struct buf *out, struct api_error *e);
void api_task(struct api *a, struct http_exchange *x, api_task_fn *fn);

/* api_info.c */
void api_models(struct api *a, struct http_exchange *x, const char *id /* or NULL */);
void api_health(struct api *a, struct http_exchange *x);
void api_metrics(struct api *a, struct http_exchange *x);
void api_version(struct api *a, struct http_exchange *x);
void api_tokenize(struct api *a, struct http_exchange *x);
void api_detokenize(struct api *a, struct http_exchange *x);
void api_apply_template(struct api *a, struct http_exchange *x);

#endif
