/* A deployment: one model that is served, with its names, its split, its options, its text side and its engines (one for each replica).
 * A coordinator has one or several; a request's `model` chooses.
 *
 * Everything but what the engines' snapshots say is set before the threads that use it start, and only read from then on: any thread may.
 * Order: deployment_open (model facts), the coordinator makes the engines, the front loads the text side beside the loading workers. */
#ifndef COORDINATOR_DEPLOYMENT_H
#define COORDINATOR_DEPLOYMENT_H

#include "base/metrics.h"
#include "base/options.h"
#include "text/chat_caps.h"
#include "coordinator/engine.h"
#include "text/tokenizer.h"
#include "model/gguf.h"
#include "model/hparams.h"
#include "model/shard.h"
#include "model/vocab.h"

#include <limits.h>

enum { DEPLOYMENTS_MAX = OPTIONS_MODELS_MAX, DEPLOYMENT_NAMES_MAX = 16, DEPLOYMENT_NAME_LEN_MAX = 200, DEPLOYMENT_END_IDS_MAX = 32 };

struct deployment {
    uint32_t index;             /* among the coordinator's */
    struct options own;
    const struct options *opts; /* own: the server's, with what this deployment has instead */
    char *names_text;           /* holds `names` */
    const char *names[DEPLOYMENT_NAMES_MAX]; /* the name, then its aliases */
    uint32_t n_names;
    char stem[256];             /* of the file: one more name that requests may use */
    char path[PATH_MAX];        /* absolute: workers open it by this name on their host */

    struct gguf *gguf;
    struct hparams hp;
    struct shard_split split;
    uint64_t n_params, bytes;   /* of all of its files */

    struct vocab *vocab;
    struct tokenizer *tok;
    struct buf template_text;   /* of the option chat_template; empty: the model's own */
    struct chat_template *tmpl; /* NULL: the model has none */
    struct chat_template *tool_tmpl; /* for requests with tools, where the model has one of its own for them */
    char *tmpl_error;           /* why there is none, or NULL */
    struct chat_caps caps;      /* what the template wants, where there is one */
    uint32_t marks[8], n_marks; /* control tokens around a thinking part: shown in the text, for reasoning.h to find */
    uint32_t fim[3];            /* prefix, suffix, middle: tokens of a model that fills in */
    bool has_fim;
    uint32_t end_ids[DEPLOYMENT_END_IDS_MAX], n_end_ids;
    char *bos_text, *eos_text;
    _Atomic(struct token_pieces *) pieces; /* what each id says; made by the first request that needs it (api_sampling.c) */

    struct metrics *metrics;
    struct engine *engines[METRIC_ENGINES_MAX]; /* by replica */
    uint32_t n_engines, max_step_tokens;
};

/* The index'th model of the server's options: reads its facts, names it, cuts it, checks what can be known before workers join. On failure
 * deployment_close is still due. ERR_CONFIG, ERR_NO_FIT, and what gguf_open and hparams_load say. */
enum err deployment_open(const struct options *server, uint32_t index, struct deployment *d);
/* No two of them may answer to one name. ERR_CONFIG names both. */
enum err deployment_check_names(const struct deployment *list, uint32_t n);
/* deployment_text.c: vocabulary, tokenizer, chat template. ERR_UNSUPPORTED (an unknown tokenizer), and what is wrong with files that the options
 * name; a template of the model that is not understood is no error. */
enum err deployment_load_text(struct deployment *d);
/* The engines end before the queues that they write to, the rest after the threads that read it. */
void deployment_stop_engines(struct deployment *d);
void deployment_close(struct deployment *d);

/* The longest sequence now: what the workers have room for; before they are up, what was asked for or what the model has. */
uint32_t deployment_ctx(const struct deployment *d);
/* By name, alias or file's stem, in this order; "default" is the first. NULL: there is none. */
struct deployment *deployment_find(struct deployment *list, uint32_t n, const char *name);
/* "`a`, `b`" for errors; cut at cap. */
void deployment_list(const struct deployment *list, uint32_t n, char *out, size_t cap);

#endif
