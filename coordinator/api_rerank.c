/* /v1/rerank and /score: pairs of a query and a document become prompts of a model that was trained to answer "yes" or "no" (Qwen3-Reranker), and the
 * score of a pair is the softmax over the logits of these two tokens after its prompt.
 *
 * The prompt is the one that the file carries under the name "rerank", or that of the model card of Qwen3-Reranker. A mark of the template such as
 * <|im_end|> is a token; the same letters in a query or a document are text, so that no document can end its own turn. */
#include "coordinator/api_embed.h"

#include "base/check.h"
#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

enum { MARK_MAX = 64 };

/* The prompt of the model card of Qwen3-Reranker. */
static const char default_template[] =
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
static const char default_instruction[] = "Given a web search query, retrieve relevant passages that answer the query";

struct text {
    const char *s;
    size_t len;
};
enum { HOLE_INSTRUCTION, HOLE_QUERY, HOLE_DOCUMENT, N_HOLES };
static const char *const holes[N_HOLES] = {"{instruction}", "{query}", "{document}"};
struct prompt {
    struct text tmpl, fill[N_HOLES];
};

static struct text text_of(const json_t *v)
{
    return (struct text){json_string_value(v), json_string_length(v)};
}

/* ---- prompts */

static int hole_at(const char *p, size_t left)
{
    for (int h = 0; h < N_HOLES; h++)
        if (left >= strlen(holes[h]) && memcmp(p, holes[h], strlen(holes[h])) == 0)
            return h;
    return -1;
}

/* Length of a mark <|...|> at p, or 0. */
static size_t mark_at(const char *p, size_t left)
{
    if (left < 5 || p[0] != '<' || p[1] != '|')
        return 0;
    for (size_t i = 2; i + 1 < left && i < MARK_MAX; i++) {
        if (p[i] == '|' && p[i + 1] == '>')
            return i + 2;
        if (p[i] == ' ' || p[i] == '\n' || p[i] == '<' || p[i] == '{')
            return 0;
    }
    return 0;
}

/* The stretch of the template up to the next mark, with its holes filled. True: it had some. */
static bool fill_stretch(const struct prompt *p, size_t *at, struct buf *out)
{
    bool filled = false;
    const char *s = p->tmpl.s;
    while (*at < p->tmpl.len && !mark_at(s + *at, p->tmpl.len - *at)) {
        int h = hole_at(s + *at, p->tmpl.len - *at);
        if (h < 0) {
            buf_putc(out, s[(*at)++]);
            continue;
        }
        buf_append(out, p->fill[h].s, p->fill[h].len);
        *at += strlen(holes[h]);
        filled = true;
    }
    return filled;
}

static enum err encode(const struct tokenizer *tok, struct buf *b, unsigned flags, struct tokens *out)
{
    enum err e = b->failed ? err_set(ERR_NOMEM, "no memory for a prompt") : b->len ? tokenizer_encode(tok, b->data, b->len, flags, out) : ERR_OK;
    buf_clear(b);
    return e;
}

/* Stretches between marks are tokenised one by one, as a tokenizer does that splits at its special tokens first; those that hold what the client wrote
 * without looking for special tokens in them. */
static enum err make_prompt(const struct tokenizer *tok, const struct prompt *p, struct tokens *out)
{
    struct buf fixed, stretch; /* marks and text of the template alone; a stretch */
    enum err e = ERR_OK;
    const struct vocab *v = tokenizer_vocab(tok);
    buf_init(&fixed);
    buf_init(&stretch);
    if (v->add_bos && v->bos >= 0)
        TRY_GOTO(tokens_push(out, (uint32_t)v->bos), fail);
    for (size_t at = 0; at < p->tmpl.len;) {
        size_t mark = mark_at(p->tmpl.s + at, p->tmpl.len - at);
        buf_append(&fixed, p->tmpl.s + at, mark);
        at += mark;
        if (!fill_stretch(p, &at, &stretch)) {
            buf_append(&fixed, stretch.data, stretch.len);
            buf_clear(&stretch);
            continue;
        }
        TRY_GOTO(encode(tok, &fixed, TOKENIZER_PARSE, out), fail);
        TRY_GOTO(encode(tok, &stretch, 0, out), fail);
    }
    e = encode(tok, &fixed, TOKENIZER_PARSE, out);
fail:
    buf_deinit(&fixed);
    buf_deinit(&stretch);
    return e;
}

static bool single_token(const struct tokenizer *tok, const char *word, uint32_t *out)
{
    struct tokens t = {0};
    bool ok = tokenizer_encode(tok, word, strlen(word), 0, &t) == ERR_OK && t.n == 1;
    if (ok)
        *out = t.ids[0];
    tokens_deinit(&t);
    return ok;
}

/* What all pairs of a request share. */
static bool begin_prompt(struct embed *m, const json_t *o, struct prompt *p, struct api_error *e)
{
    const char *instruction = NULL;
    struct gguf_str own;
    *p = (struct prompt){.tmpl = {default_template, sizeof(default_template) - 1},
                         .fill[HOLE_INSTRUCTION] = {default_instruction, sizeof(default_instruction) - 1}};
    if (!api_get_str(o, "instruction", &instruction, e))
        return false;
    if (instruction)
        p->fill[HOLE_INSTRUCTION] = text_of(json_object_get(o, "instruction"));
    if (gguf_get_str(m->d->gguf, "tokenizer.chat_template.rerank", &own) && own.len) {
        p->tmpl = (struct text){own.s, own.len};
        if (instruction && !memmem(own.s, own.len, holes[HOLE_INSTRUCTION], strlen(holes[HOLE_INSTRUCTION])))
            return api_error(e, 400, "instruction", "`instruction`: the rerank prompt in this model's file has its own");
    }
    m->pooling = m->d->hp.has_cls ? POOLING_RANK : POOLING_NONE; /* a file with a head for the scores alone has their rows there */
    if (m->pooling == POOLING_NONE && (!single_token(m->d->tok, "yes", &m->targets[0]) || !single_token(m->d->tok, "no", &m->targets[1])))
        return api_error(e, 400, "model", "this model cannot rerank: its vocabulary has no tokens `yes` and `no`");
    return true;
}

static bool add_pair(struct embed *m, uint32_t i, struct prompt *p, struct text query, struct text document, const char *param, struct api_error *e)
{
    struct tokens *t = &m->inputs[i].ids;
    p->fill[HOLE_QUERY] = query;
    p->fill[HOLE_DOCUMENT] = document;
    enum err err = make_prompt(m->d->tok, p, t);
    if (err != ERR_OK)
        return api_error(e, err_http_status(err), param, "`%s` cannot be tokenised: %.200s", param, err_detail());
    if (t->n > m->ctx)
        return api_error(e, 400, param, "query and document %u have %zu tokens with the prompt around them, the context is %u", i, t->n, m->ctx);
    m->prompt_tokens += t->n;
    if (m->prompt_tokens > EMBED_TOKENS_MAX)
        return api_error(e, 400, param, "`%s`: the inputs have more than %d tokens together: send fewer at a time", param, EMBED_TOKENS_MAX);
    return !atomic_load(&m->job.cancelled) || api_error(e, 503, NULL, "the client left");
}

/* ---- rerank */

/* A string, or an object with a string `text`. NULL: neither. */
static const json_t *document_text(const json_t *d)
{
    const json_t *v = json_is_object(d) ? json_object_get(d, "text") : d;
    return json_is_string(v) ? v : NULL;
}

bool embed_read_rerank(struct embed *m, const json_t *o, struct api_error *e)
{
    const json_t *query = api_get(o, "query"), *docs = api_get(o, "documents");
    int64_t top_n = 0;
    bool show = true;
    struct prompt p;
    if (!json_is_string(query) || json_string_length(query) == 0)
        return api_error(e, 400, "query", "`query` must be a string that is not empty");
    if (!json_is_array(docs) || json_array_size(docs) == 0)
        return api_error(e, 400, "documents", "`documents` must be a list with at least one text");
    if (!api_get_int(o, "top_n", 0, INT32_MAX, &top_n, e) || !api_get_bool(o, "return_documents", &show, e) || !begin_prompt(m, o, &p, e) ||
        !embed_make_inputs(m, json_array_size(docs), "documents", e))
        return false;
    m->top_n = top_n ? (uint32_t)MIN(top_n, (int64_t)m->n_inputs) : m->n_inputs;
    m->documents = show ? json_array() : NULL;
    for (uint32_t i = 0; i < m->n_inputs; i++) {
        const json_t *text = document_text(json_array_get(docs, i));
        if (!text)
            return api_error(e, 400, "documents", "`documents[%u]` must be a string, or an object with a string `text`", i);
        if (!add_pair(m, i, &p, text_of(query), text_of(text), "documents", e))
            return false;
        if (show && json_array_append(m->documents, (json_t *)text) != 0)
            return api_error(e, 503, NULL, "out of memory");
    }
    return true;
}

/* ---- score */

/* A string is a list of one. */
static bool get_texts(const json_t *o, const char *key, size_t *n, struct api_error *e)
{
    const json_t *v = api_get(o, key);
    bool ok = json_is_string(v) || (json_is_array(v) && json_array_size(v) > 0);
    for (size_t i = 0; ok && json_is_array(v) && i < json_array_size(v); i++)
        ok = json_is_string(json_array_get(v, i));
    *n = json_is_array(v) ? json_array_size(v) : 1;
    return ok || api_error(e, 400, key, "`%s` must be a string or a list of strings", key);
}

static struct text text_at(const json_t *o, const char *key, size_t i)
{
    const json_t *v = json_object_get(o, key);
    return text_of(json_is_array(v) ? json_array_get(v, json_array_size(v) == 1 ? 0 : i) : v);
}

bool embed_read_score(struct embed *m, const json_t *o, struct api_error *e)
{
    size_t n1, n2;
    struct prompt p;
    if (!get_texts(o, "text_1", &n1, e) || !get_texts(o, "text_2", &n2, e))
        return false;
    if (n1 != n2 && n1 != 1)
        return api_error(e, 400, "text_1", "`text_1` has %zu texts and `text_2` %zu: one to many, or as many as there", n1, n2);
    if (!begin_prompt(m, o, &p, e) || !embed_make_inputs(m, n2, "text_2", e))
        return false;
    for (uint32_t i = 0; i < m->n_inputs; i++)
        if (!add_pair(m, i, &p, text_at(o, "text_1", i), text_at(o, "text_2", i), "text_2", e))
            return false;
    return true;
}

/* ---- answers */

static int by_score(const void *x, const void *y)
{
    const struct embed_input *a = *(const struct embed_input *const *)x, *b = *(const struct embed_input *const *)y;
    return a->score > b->score ? -1 : a->score < b->score ? 1 : a < b ? -1 : a > b; /* ties: as they came */
}

static void put_ranked(const struct embed *m, struct buf *out)
{
    const struct embed_input **order = calloc(m->n_inputs, sizeof(*order));
    if (!order) {
        out->failed = true;
        return;
    }
    for (uint32_t i = 0; i < m->n_inputs; i++)
        order[i] = &m->inputs[i];
    qsort(order, m->n_inputs, sizeof(*order), by_score);
    for (uint32_t i = 0; i < m->top_n; i++) {
        size_t idx = (size_t)(order[i] - m->inputs);
        buf_printf(out, "%s{\"index\":%zu,\"relevance_score\":%.9g", i ? "," : "", idx, (double)order[i]->score);
        if (m->documents) {
            struct text t = text_of(json_array_get(m->documents, idx));
            buf_puts(out, ",\"document\":{\"text\":");
            buf_json_str(out, t.s, t.len);
            buf_putc(out, '}');
        }
        buf_putc(out, '}');
    }
    free(order);
}

void embed_answer_scores(struct embed *m, struct buf *out)
{
    bool rerank = m->kind == EMBED_RERANK;
    buf_putc(out, '{');
    embed_put_id(rerank ? "rerank" : "score", out);
    if (!rerank)
        buf_printf(out, "\"object\":\"list\",\"created\":%llu,", (unsigned long long)clock_unix_s());
    buf_puts(out, "\"model\":");
    buf_json_str(out, m->d->names[0], strlen(m->d->names[0]));
    buf_puts(out, rerank ? ",\"results\":[" : ",\"data\":[");
    if (rerank)
        put_ranked(m, out);
    for (uint32_t i = 0; !rerank && i < m->n_inputs; i++)
        buf_printf(out, "%s{\"index\":%u,\"object\":\"score\",\"score\":%.9g}", i ? "," : "", i, (double)m->inputs[i].score);
    buf_printf(out, "],\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}}", (unsigned long long)m->prompt_tokens, (unsigned long long)m->prompt_tokens);
}
