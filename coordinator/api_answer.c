/* How answers look: chat.completion, text_completion and their chunks. JSON is written by hand: a tree for every token would be waste.
 *
 * Tokens go into the choice's buffers first (api_answer_tokens): the text that is certain, log-probabilities and ids as JSON items. A streaming
 * generation then sends and empties them (api_answer_delta); another keeps them until the end (api_answer_end). */
#include "coordinator/api.h"

#include "base/check.h"
#include "base/clock.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void comma(struct buf *b)
{
    if (b->len)
        buf_putc(b, ',');
}

static void put_float(struct buf *b, float v)
{
    buf_json_double(b, isfinite(v) ? v : v < 0 ? -9999.0 : NAN);
}

/* {"token","logprob","bytes"[,"top_logprobs":[...]]} as in chat. */
static void put_token(struct buf *b, const struct generation *g, uint32_t id, float logprob, bool close)
{
    struct buf piece;
    buf_init(&piece);
    tokenizer_piece(g->d->tok, id, true, &piece);
    buf_puts(b, "{\"token\":");
    if (g->tokens_as_ids)
        buf_printf(b, "\"token_id:%u\"", id);
    else
        buf_json_str(b, piece.data ? piece.data : "", piece.len);
    buf_puts(b, ",\"logprob\":");
    put_float(b, logprob);
    buf_puts(b, ",\"bytes\":[");
    for (size_t i = 0; i < piece.len; i++)
        buf_printf(b, i ? ",%u" : "%u", (unsigned char)piece.data[i]);
    buf_puts(b, close ? "]}" : "]");
    buf_deinit(&piece);
}

static void put_piece(struct buf *b, const struct generation *g, uint32_t id)
{
    if (g->tokens_as_ids) {
        buf_printf(b, "\"token_id:%u\"", id);
        return;
    }
    struct buf piece;
    buf_init(&piece);
    tokenizer_piece(g->d->tok, id, true, &piece);
    buf_json_str(b, piece.data ? piece.data : "", piece.len);
    buf_deinit(&piece);
}

static void put_chat_logprob(struct choice *c, const struct generation *g, uint32_t id, const struct token_logprobs *lp, uint32_t n_top)
{
    comma(&c->logprobs);
    put_token(&c->logprobs, g, id, lp->logprob, false);
    buf_puts(&c->logprobs, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < lp->n_top && i < n_top; i++) {
        if (i)
            buf_putc(&c->logprobs, ',');
        put_token(&c->logprobs, g, lp->id[i], lp->top[i], true);
    }
    buf_puts(&c->logprobs, "]}");
}

/* One row of the columns of a text completion's logprobs; a NaN is the first token of a prompt. */
static void put_text_logprob(struct choice *c, const struct generation *g, uint32_t id, const struct token_logprobs *lp, uint32_t n_top,
                             size_t offset)
{
    comma(&c->lp_tokens);
    put_piece(&c->lp_tokens, g, id);
    comma(&c->lp_values);
    put_float(&c->lp_values, lp->logprob);
    comma(&c->lp_offsets);
    buf_printf(&c->lp_offsets, "%zu", offset);
    comma(&c->lp_top);
    if (isnan(lp->logprob) || n_top == 0) {
        buf_puts(&c->lp_top, "null");
        return;
    }
    buf_putc(&c->lp_top, '{');
    for (uint32_t i = 0; i < lp->n_top && i < n_top; i++) {
        if (i)
            buf_putc(&c->lp_top, ',');
        put_piece(&c->lp_top, g, lp->id[i]);
        buf_putc(&c->lp_top, ':');
        put_float(&c->lp_top, lp->top[i]);
    }
    buf_putc(&c->lp_top, '}');
}

static size_t n_chars(const char *s, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)s[i] & 0xC0) != 0x80;
    return n;
}

static void count_chars(struct choice *c)
{
    if (c->text.len > c->n_counted)
        c->n_chars += n_chars(c->text.data + c->n_counted, c->text.len - c->n_counted);
    c->n_counted = c->text.len;
}

/* vLLM's shape: a list with null first, then an object by token id. */
static void put_prompt_logprob(struct buf *b, const struct generation *g, uint32_t id, const struct token_logprobs *lp, uint32_t n_top)
{
    comma(b);
    if (isnan(lp->logprob)) {
        buf_puts(b, "null");
        return;
    }
    buf_putc(b, '{');
    bool given = false, first = true;
    for (uint32_t i = 0; i <= MIN(lp->n_top, n_top); i++) {
        bool last = i == MIN(lp->n_top, n_top);
        if (last && given)
            break;
        uint32_t t = last ? id : lp->id[i];
        given |= t == id;
        buf_printf(b, "%s\"%u\":{\"logprob\":", first ? "" : ",", t);
        put_float(b, last ? lp->logprob : lp->top[i]);
        if (!last)
            buf_printf(b, ",\"rank\":%u", i + 1);
        buf_puts(b, ",\"decoded_token\":");
        put_piece(b, g, t);
        buf_putc(b, '}');
        first = false;
    }
    buf_putc(b, '}');
}

static void take_prompt(struct choice *c, struct generation *g, const struct token_event *ev)
{
    const struct tokenizer *tok = g->d->tok;
    size_t offset = 0;
    struct detokenizer d;
    struct buf piece;
    detokenizer_init(&d, tok, NULL, 0, false);
    buf_init(&piece);
    for (uint32_t i = 0; i < ev->n_prompt_logprobs && i < c->n_prompt; i++) {
        const struct token_logprobs *lp = &ev->prompt_logprobs[i];
        if (g->prompt_logprobs)
            put_prompt_logprob(&c->prompt_logprobs, g, c->prompt[i], lp, g->n_prompt_logprobs);
        if (g->echo && g->logprobs)
            put_text_logprob(c, g, c->prompt[i], lp, g->n_logprobs, offset);
        buf_clear(&piece);
        detokenizer_push(&d, c->prompt[i], &piece);
        offset += n_chars(piece.data, piece.len);
    }
    buf_deinit(&piece);
    detokenizer_deinit(&d);
}

/* The prompt's text and ids, before anything else of the choice. */
static void take_start(struct choice *c, struct generation *g)
{
    if (c->started)
        return;
    c->started = true;
    if (g->return_token_ids)
        for (uint32_t i = 0; i < c->n_prompt; i++) {
            comma(&c->prompt_ids);
            buf_printf(&c->prompt_ids, "%u", c->prompt[i]);
        }
    if (!g->echo)
        return;
    struct detokenizer d;
    detokenizer_init(&d, g->d->tok, NULL, 0, false);
    for (uint32_t i = 0; i < c->n_prompt; i++)
        detokenizer_push(&d, c->prompt[i], &c->text);
    detokenizer_finish(&d, &c->text);
    detokenizer_deinit(&d);
}

static void take_raw(struct choice *c)
{
    reasoning_push(&c->split, c->raw.data ? c->raw.data : "", c->raw.len, &c->thought, &c->text);
}

void api_answer_tokens(struct choice *c, struct generation *g, const struct token_event *ev)
{
    if (ev->n_tokens || ev->n_prompt_logprobs || ev->finish != FINISH_NONE)
        take_start(c, g);
    if (ev->n_prompt_logprobs)
        take_prompt(c, g, ev);
    for (uint32_t i = 0; i < ev->n_tokens && !c->finish; i++) {
        uint32_t id = ev->tokens[i];
        count_chars(c);
        size_t offset = c->n_chars + n_chars(c->detok.held.data, c->detok.held.len);
        c->n_tokens++;
        g->completion_tokens++;
        if (g->return_token_ids) {
            comma(&c->ids);
            buf_printf(&c->ids, "%u", id);
        }
        if (g->logprobs && ev->logprobs) {
            if (g->chat)
                put_chat_logprob(c, g, id, &ev->logprobs[i], g->n_logprobs);
            else
                put_text_logprob(c, g, id, &ev->logprobs[i], g->n_logprobs, offset);
        }
        if (ev->logprobs)
            c->logprob_sum += ev->logprobs[i].logprob;
        buf_clear(&c->raw);
        if (detokenizer_push(&c->detok, id, &c->raw)) {
            c->finish = "stop";
            if (g->include_stop)
                buf_puts(&c->raw, g->stops[c->detok.stop_idx]);
        }
        bool thinking = c->split.state == REASONING_THOUGHT;
        take_raw(c);
        g->reasoning_tokens += thinking || c->split.state == REASONING_THOUGHT;
    }
}

void api_answer_finish(struct choice *c)
{
    buf_clear(&c->raw);
    detokenizer_finish(&c->detok, &c->raw);
    take_raw(c);
    reasoning_finish(&c->split, &c->thought, &c->text);
}

/* ---- pieces of answers ---- */

static void put_head(struct buf *b, const struct generation *g, const char *object)
{
    buf_printf(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%llu,\"model\":", g->id, object, (unsigned long long)g->created_s);
    buf_json_str(b, g->d->names[0], strlen(g->d->names[0]));
    buf_printf(b, ",\"system_fingerprint\":\"racklm-%s\"%s", RACKLM_VERSION, g->service_tier ? ",\"service_tier\":\"default\"" : "");
}

static void put_usage(struct buf *b, const struct generation *g)
{
    buf_printf(b, "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,\"prompt_tokens_details\":{\"cached_tokens\":0}",
               g->prompt_tokens, g->completion_tokens, g->prompt_tokens + g->completion_tokens);
    buf_printf(b, g->chat ? ",\"completion_tokens_details\":{\"reasoning_tokens\":%u}}" : "}", g->reasoning_tokens);
}

static void put_bytes(struct buf *b, const struct buf *from)
{
    buf_append(b, from->data ? from->data : "", from->len);
}

static void put_logprobs(struct buf *b, const struct generation *g, const struct choice *c)
{
    buf_puts(b, ",\"logprobs\":");
    if (!g->logprobs) {
        buf_puts(b, "null");
    } else if (g->chat) {
        buf_puts(b, "{\"content\":[");
        put_bytes(b, &c->logprobs);
        buf_puts(b, "],\"refusal\":null}");
    } else {
        buf_puts(b, "{\"tokens\":[");
        put_bytes(b, &c->lp_tokens);
        buf_puts(b, "],\"token_logprobs\":[");
        put_bytes(b, &c->lp_values);
        buf_puts(b, "],\"top_logprobs\":[");
        put_bytes(b, &c->lp_top);
        buf_puts(b, "],\"text_offset\":[");
        put_bytes(b, &c->lp_offsets);
        buf_puts(b, "]}");
    }
}

static void put_extras(struct buf *b, const struct generation *g, const struct choice *c)
{
    if (g->return_token_ids) {
        if (c->prompt_ids.len || !g->stream) {
            buf_puts(b, ",\"prompt_token_ids\":[");
            put_bytes(b, &c->prompt_ids);
            buf_putc(b, ']');
        }
        buf_puts(b, ",\"token_ids\":[");
        put_bytes(b, &c->ids);
        buf_putc(b, ']');
    }
    if (g->prompt_logprobs && (c->prompt_logprobs.len || !g->stream)) {
        buf_puts(b, ",\"prompt_logprobs\":[");
        put_bytes(b, &c->prompt_logprobs);
        buf_putc(b, ']');
    }
}

static void put_finish(struct buf *b, const struct generation *g, const struct choice *c)
{
    if (!c->finish) {
        buf_puts(b, ",\"finish_reason\":null");
        return;
    }
    buf_printf(b, ",\"finish_reason\":\"%s\",\"stop_reason\":", c->finish);
    if (c->detok.stopped) {
        const char *stop = g->stops[c->detok.stop_idx];
        buf_json_str(b, stop, strlen(stop));
    } else if (c->stop_id >= 0) {
        buf_printf(b, "%lld", (long long)c->stop_id);
    } else {
        buf_puts(b, "null");
    }
}

size_t api_answer_held(struct choice *c)
{
    const struct buf *bufs[] = {&c->text, &c->thought, &c->logprobs, &c->lp_tokens, &c->lp_values, &c->lp_top, &c->lp_offsets, &c->ids, &c->prompt_logprobs, &c->prompt_ids};
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(bufs); i++)
        n += bufs[i]->len;
    return n;
}

static void choice_clear(struct choice *c)
{
    struct buf *bufs[] = {&c->text, &c->thought, &c->logprobs, &c->lp_tokens, &c->lp_values, &c->lp_top, &c->lp_offsets, &c->ids, &c->prompt_logprobs, &c->prompt_ids};
    count_chars(c);
    c->n_counted = 0;
    for (size_t i = 0; i < ARRAY_LEN(bufs); i++)
        buf_clear(bufs[i]);
}

/* ---- streams ---- */

void api_answer_begin(struct generation *g)
{
    if (g->began)
        return;
    g->began = true;
    http_set_header(g->x, "X-Accel-Buffering", "no");
    http_begin(g->x, 200, "text/event-stream; charset=utf-8");
}

/* Ends an event; it is sent with what else this turn of the loop has for the stream. */
static void end_event(struct generation *g)
{
    buf_puts(&g->out, "\n\n");
    if (g->in_unsent)
        return;
    g->in_unsent = true;
    g->next_unsent = g->api->unsent;
    g->api->unsent = g;
}

void api_answer_send(struct generation *g)
{
    if (g->out.len && !g->out.failed)
        http_chunk(g->x, g->out.data, g->out.len);
    buf_clear(&g->out);
    g->last_sent_ns = clock_ns();
}

void api_answer_comment(struct generation *g, const char *text)
{
    api_answer_begin(g);
    buf_printf(&g->out, ": %s", text);
    end_event(g);
}

static uint32_t choice_index(const struct generation *g, const struct choice *c)
{
    return (uint32_t)(c - g->choices);
}

/* "role", then the thinking part (where there is one to show) and the content. */
static void put_message(struct buf *b, const struct generation *g, const struct choice *c)
{
    bool thought = c->thought.len && g->include_reasoning;
    buf_putc(b, '{');
    if (!g->stream)
        buf_puts(b, "\"role\":\"assistant\",");
    if (thought) {
        buf_printf(b, "\"%s\":", g->reasoning_field);
        buf_json_str(b, c->thought.data, c->thought.len);
    }
    if (c->text.len || !thought || !g->stream) {
        buf_puts(b, thought ? ",\"content\":" : "\"content\":");
        buf_json_str(b, c->text.data ? c->text.data : "", c->text.len);
    }
    buf_puts(b, g->stream ? "}" : ",\"refusal\":null}");
}

void api_answer_delta(struct generation *g, struct choice *c)
{
    bool news = c->text.len || (c->thought.len && g->include_reasoning) || c->logprobs.len || c->lp_tokens.len || c->ids.len || c->prompt_logprobs.len || c->prompt_ids.len;
    if (!news && !c->finish)
        return;
    api_answer_begin(g);
    struct buf *b = &g->out;
    if (g->chat && !c->sent_role) {
        buf_puts(b, "data: ");
        put_head(b, g, "chat.completion.chunk");
        buf_printf(b, ",\"choices\":[{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                   choice_index(g, c));
        c->sent_role = true;
    }
    /* A chat's finish stands alone, with an empty delta; a text completion's travels with the last text. */
    if (news || !g->chat) {
        buf_puts(b, "data: ");
        put_head(b, g, g->chat ? "chat.completion.chunk" : "text_completion");
        buf_printf(b, ",\"choices\":[{\"index\":%u,", choice_index(g, c));
        buf_puts(b, g->chat ? "\"delta\":" : "\"text\":");
        if (g->chat)
            put_message(b, g, c);
        else
            buf_json_str(b, c->text.data ? c->text.data : "", c->text.len);
        put_logprobs(b, g, c);
        put_extras(b, g, c);
        if (g->chat)
            buf_puts(b, ",\"finish_reason\":null");
        else
            put_finish(b, g, c);
        buf_puts(b, "}]");
        if (g->continuous_usage) {
            buf_putc(b, ',');
            put_usage(b, g);
        } else if (g->include_usage) {
            buf_puts(b, ",\"usage\":null");
        }
        buf_puts(b, c->finish && g->chat ? "}\n\n" : "}");
    }
    if (c->finish && g->chat) {
        buf_puts(b, "data: ");
        put_head(b, g, "chat.completion.chunk");
        buf_printf(b, ",\"choices\":[{\"index\":%u,\"delta\":{},\"logprobs\":null", choice_index(g, c));
        put_finish(b, g, c);
        buf_puts(b, g->include_usage ? "}],\"usage\":null}" : "}]}");
    }
    choice_clear(c);
    end_event(g);
}

static void end_stream(struct generation *g)
{
    struct buf *b = &g->out;
    if (g->include_usage) {
        buf_puts(b, "data: ");
        put_head(b, g, g->chat ? "chat.completion.chunk" : "text_completion");
        buf_puts(b, ",\"choices\":[],");
        put_usage(b, g);
        buf_puts(b, "}\n\n");
    }
    buf_puts(b, "data: [DONE]");
    end_event(g);
    api_answer_send(g);
    http_end(g->x);
}

/* Extension in the way of llama-server: where the time went, for benchmarks and people. */
static void put_timings(struct buf *b, const struct generation *g)
{
    uint64_t first = 0, last = 0;
    for (uint32_t i = 0; i < g->n_choices; i++) {
        const struct choice *c = &g->choices[i];
        first = first == 0 || (c->first_ns && c->first_ns < first) ? c->first_ns : first;
        last = MAX(last, c->last_ns);
    }
    double predicted_ms = first ? (double)(last - first) / 1e6 : 0, prompt_ms = (double)g->prefill_ns / 1e6;
    buf_printf(b, ",\"timings\":{\"prompt_n\":%u,\"prompt_ms\":%.3f,\"predicted_n\":%u,\"predicted_ms\":%.3f}", g->prompt_tokens, prompt_ms,
               g->completion_tokens, predicted_ms);
}

/* Which choices are shown: all, or the n_best of each prompt by the mean log-probability of their tokens, the likeliest first. */
static uint32_t rank_choices(const struct generation *g, uint32_t order[API_CHOICES_MAX])
{
    uint32_t n = 0, each = g->n_choices / g->n_prompts;
    bool taken[API_CHOICES_MAX] = {0};
    for (uint32_t p = 0; p < g->n_prompts; p++)
        for (uint32_t k = 0; k < (g->n_best ? g->n_best : each); k++) {
            uint32_t best = UINT32_MAX;
            for (uint32_t i = p * each; i < (p + 1) * each; i++)
                if (!taken[i] && (best == UINT32_MAX || (g->n_best && g->choices[i].logprob_sum * MAX(g->choices[best].n_tokens, 1u) >
                                                                          g->choices[best].logprob_sum * MAX(g->choices[i].n_tokens, 1u))))
                    best = i;
            taken[best] = true;
            order[n++] = best;
        }
    return n;
}

void api_answer_end(struct generation *g)
{
    if (g->stream) {
        api_answer_begin(g);
        end_stream(g);
        return;
    }
    struct buf b;
    buf_init(&b);
    put_head(&b, g, g->chat ? "chat.completion" : "text_completion");
    buf_puts(&b, ",\"choices\":[");
    uint32_t order[API_CHOICES_MAX], n = rank_choices(g, order);
    for (uint32_t i = 0; i < n; i++) {
        struct choice *c = &g->choices[order[i]];
        buf_printf(&b, "%s{\"index\":%u,", i ? "," : "", i);
        buf_puts(&b, g->chat ? "\"message\":" : "\"text\":");
        if (g->chat)
            put_message(&b, g, c);
        else
            buf_json_str(&b, c->text.data ? c->text.data : "", c->text.len);
        put_logprobs(&b, g, c);
        put_extras(&b, g, c);
        put_finish(&b, g, c);
        buf_putc(&b, '}');
    }
    buf_puts(&b, "],");
    put_usage(&b, g);
    put_timings(&b, g);
    buf_putc(&b, '}');
    api_reply_json(g->x, 200, &b);
}

void api_answer_error(struct generation *g, const struct api_error *e)
{
    if (!g->began) {
        api_fail(g->x, e);
        return;
    }
    buf_puts(&g->out, "data: ");
    http_error_body(&g->out, e->status, NULL, e->message);
    end_event(g);
    api_answer_send(g);
    http_end(g->x); /* no [DONE]: the answer is not complete */
}
