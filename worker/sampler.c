#include "worker/sampler.h"

#include "base/check.h"
#include "base/fmath.h"
#include "kernels/sampling_filter.h"
#include "worker/sampler_adjust.h"
#include "worker/sampler_history.h"
#include "worker/sampler_math.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SEG = SHARD_VOCAB_SEGMENT };

/* What is asked of all ranks for a row in a round. */
enum ask {
    ASK_RAW = 1,     /* segment statistics of the raw logits */
    ASK_ADJ = 2,     /* ... of the adjusted ones, with temperature */
    ASK_BEST = 4,    /* greedy: the best adjusted */
    ASK_TARGET = 8,  /* raw logit of the target */
    ASK_TOP = 16,    /* the n_top best raw */
    ASK_CANDS = 32,  /* the cand_cap best adjusted */
    ASK_DRAW = 64,   /* the token at draw_left in segment draw_seg */
    ASK_MORE = 128,  /* with ASK_ADJ: what entropy and deviation are made of */
};
struct cand {
    float z, raw;        /* adjusted and raw logit */
    uint32_t id, pad;
};
struct row_state {
    unsigned ask, asked; /* wanted; given in this round */
    struct sampling_params sp;
    bool adjusted, greedy, filtered, bad, more;
    bool dynamic;        /* the temperature is not known yet */
    bool lifted;         /* everything was banned: only `allowed` counts, and biases */
    bool again;          /* the adjusted statistics are to be made once more */
    float raw_max;
    double raw_sum;
    struct sampling_dist adj; /* scale: 1 / temperature */
    uint32_t n_changes;
    float token_raw;     /* raw logit of the chosen token */
    uint32_t cand_cap, draw_seg;
    double draw_left;
};
struct sampler {
    struct sampler_config cfg;
    uint32_t n_seg_own;
    struct row_state *state;   /* [rows_cap] */
    struct sampling_seg *raw, *adj; /* [rows_cap][n_seg_own] */
    struct sampling_more *more;     /* [rows_cap][n_seg_own] */
    float *adj_logits;         /* [rows_cap][own ids], rows that bias, bans or penalties change */
    struct sampling_change *changes; /* [rows_cap][changes_each] what looks back at the tokens takes off */
    size_t changes_each;
    uint32_t *best, *z;        /* [threads][vocab], [threads][ctx] scratch of that; best is zero between */
    bool look_back;            /* some row does */
    struct cand *scratch;      /* [threads][scratch_each] */
    size_t scratch_each;
    float *masses;             /* [threads][vocab] of candidates */
    uint8_t *xchg;
    size_t xchg_cap;
    size_t *row_at;            /* [tp][rows_cap] where a rank's answer for a row lies */
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
    void *map;
    size_t map_bytes;

    struct comm *comm;         /* of the run that is on */
    const float *logits;
    size_t stride;
    struct sampler_row *rows;
    uint32_t n, n_active;
    enum err err;
};

static struct shard_range own(const struct sampler *s)
{
    return s->cfg.ids[s->cfg.tp_rank];
}
static uint32_t n_segs(uint32_t n)
{
    return (n + SEG - 1) / SEG;
}
static const float *raw_row(const struct sampler *s, uint32_t i)
{
    return s->logits + i * s->stride;
}
static const float *adj_row(const struct sampler *s, uint32_t i)
{
    return s->state[i].adjusted ? s->adj_logits + (size_t)i * own(s).n : raw_row(s, i);
}
/* Without adjustments and at temperature 1 the raw statistics serve both. */
static bool shares_raw(const struct row_state *st)
{
    return !st->adjusted && st->adj.scale == 1 && !st->greedy;
}

/* ---- candidates: (z, id) with the higher z first, then the lower id */

static bool better(const struct cand *a, const struct cand *b)
{
    return a->z > b->z || (a->z == b->z && a->id < b->id);
}
/* Restores a heap whose root is the worst. */
static void sift(struct cand *h, uint32_t n, uint32_t i)
{
    struct cand v = h[i];
    for (;;) {
        uint32_t c = 2 * i + 1;
        if (c >= n)
            break;
        if (c + 1 < n && better(&h[c], &h[c + 1]))
            c++;
        if (!better(&v, &h[c]))
            break;
        h[i] = h[c];
        i = c;
    }
    h[i] = v;
}
/* Best first; in place, no allocation. */
static void sort_best_first(struct cand *h, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(h, n, i);
    for (uint32_t end = n; end-- > 1;) {
        struct cand worst = h[0];
        h[0] = h[end];
        h[end] = worst;
        sift(h, end, 0);
    }
}

/* The cap best of this rank's ids, best first; out has room for min(cap, own ids), all of which are filled. Segments come in the order of their
 * maxima, so that the walk ends as soon as no later one can hold a better. order: [n_seg_own] scratch. */
static void best_of_own(const struct sampler *s, const float *z, const float *raw, const struct sampling_seg *stat, uint32_t cap,
                        struct cand *order, struct cand *out)
{
    struct shard_range ids = own(s);
    uint32_t n = 0, n_seg = s->n_seg_own;
    cap = MIN(cap, ids.n);
    for (uint32_t i = 0; i < cap; i++)
        out[i] = (struct cand){-INFINITY, -INFINITY, ids.first, 0};
    for (uint32_t g = 0; g < n_seg; g++)
        order[g] = (struct cand){.z = stat[g].max, .id = g};
    sort_best_first(order, n_seg);
    for (uint32_t g = 0; g < n_seg; g++) {
        if (n == cap && order[g].z < out[0].z)
            break;
        uint32_t begin = order[g].id * SEG, end = MIN(begin + SEG, ids.n);
        for (uint32_t i = begin; i < end; i++) {
            if (n == cap && z[i] < out[0].z)
                continue;
            struct cand c = {z[i], raw[i], ids.first + i, 0};
            if (n < cap) {
                out[n++] = c;
                if (n == cap)
                    for (uint32_t j = n / 2; j-- > 0;)
                        sift(out, n, j);
            } else if (better(&c, &out[0])) {
                out[0] = c;
                sift(out, n, 0);
            }
        }
    }
    sort_best_first(out, cap);
}

/* ---- phase 1: adjust, and the statistics of each segment */

static struct sampling_seg stat_of(const float *z, uint32_t n, float scale)
{
    float e[SEG];
    struct sampling_seg st = {.max = sampler_math_max(z, n)};
    if (st.max > -INFINITY) { /* not NaN either */
        sampler_math_exps(z, n, st.max, scale, e);
        st.sum = sampler_math_sum(e, n);
    }
    return st;
}

static struct sampling_more more_of(const float *z, uint32_t n, float max, float scale)
{
    float e[SEG];
    struct sampling_more m = {0};
    if (!(max > -INFINITY))
        return m;
    sampler_math_exps(z, n, max, scale, e);
    for (uint32_t j = 0; j < n; j++) {
        if (z[j] == -INFINITY)
            continue;
        m.dot += sampling_dot(e[j], z[j], max, scale);
        m.n += 1;
        m.z += (double)z[j];
        m.zz += (double)z[j] * (double)z[j];
    }
    return m;
}

static void adjusted_segment(struct sampler *s, uint32_t i, uint32_t g)
{
    struct row_state *st = &s->state[i];
    uint32_t at = g * SEG, n = MIN((uint32_t)SEG, own(s).n - at);
    const float *raw = raw_row(s, i) + at, *z = raw;
    struct sampling_seg *adj_stat = &s->adj[(size_t)i * s->n_seg_own + g];
    if (st->adjusted) {
        float *a = s->adj_logits + (size_t)i * own(s).n + at;
        const struct sampling_change *changes = s->changes + i * s->changes_each;
        sampler_adjust(s->rows[i].slot, &st->sp, s->rows[i].position, changes, st->n_changes, st->lifted, raw, own(s).first + at, n, a);
        z = a;
    }
    if (st->greedy)
        *adj_stat = (struct sampling_seg){.max = sampler_math_max(z, n)};
    else if (shares_raw(st) && (st->ask & ASK_RAW))
        *adj_stat = s->raw[(size_t)i * s->n_seg_own + g];
    else
        *adj_stat = stat_of(z, n, st->adj.scale);
    if (st->ask & ASK_MORE)
        s->more[(size_t)i * s->n_seg_own + g] = more_of(z, n, adj_stat->max, st->adj.scale);
}

static void segment(struct sampler *s, uint32_t i, uint32_t g)
{
    uint32_t at = g * SEG, n = MIN((uint32_t)SEG, own(s).n - at);
    if (s->state[i].ask & (ASK_RAW | ASK_TOP))
        s->raw[(size_t)i * s->n_seg_own + g] = stat_of(raw_row(s, i) + at, n, 1);
    if (s->rows[i].sample)
        adjusted_segment(s, i, g);
}

/* ---- phase 2: this rank's answers */

static size_t answer_bytes(const struct sampler *s, uint32_t i, uint32_t rank)
{
    const struct row_state *st = &s->state[i];
    uint32_t n = s->cfg.ids[rank].n;
    size_t b = 0;
    if (st->asked & ASK_RAW)
        b += n_segs(n) * sizeof(struct sampling_seg);
    if (st->asked & ASK_ADJ)
        b += n_segs(n) * sizeof(struct sampling_seg);
    if (st->asked & ASK_MORE)
        b += n_segs(n) * sizeof(struct sampling_more);
    if (st->asked & ASK_BEST)
        b += sizeof(struct cand);
    if (st->asked & ASK_TARGET)
        b += sizeof(struct cand);
    if (st->asked & ASK_TOP)
        b += MIN(s->rows[i].n_top, n) * sizeof(struct cand);
    if (st->asked & ASK_CANDS)
        b += MIN(st->cand_cap, n) * sizeof(struct cand);
    if (st->asked & ASK_DRAW)
        b += sizeof(struct cand);
    return b;
}

/* Thread 0: which rows take part in this round (as many as fit), and where the answers lie. The same on every rank. */
static void lay_out(struct sampler *s)
{
    size_t total = 0;
    s->n_active = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        struct row_state *st = &s->state[i];
        size_t bytes = 0;
        st->asked = st->ask;
        if (!st->ask)
            continue;
        for (uint32_t r = 0; r < s->cfg.tp; r++)
            bytes += answer_bytes(s, i, r);
        if (s->n_active && total + bytes > s->xchg_cap) {
            st->asked = 0;
            continue;
        }
        ASSERT(total + bytes <= s->xchg_cap);
        total += bytes;
        s->n_active++;
    }
    size_t at = 0;
    for (uint32_t r = 0; r < s->cfg.tp; r++) {
        s->off[r] = at;
        for (uint32_t i = 0; i < s->n; i++) {
            s->row_at[(size_t)r * s->cfg.rows_cap + i] = at;
            at += answer_bytes(s, i, r);
        }
        s->len[r] = at - s->off[r];
    }
}

static void *take(uint8_t **p, size_t bytes)
{
    void *at = *p;
    *p += bytes;
    return at;
}

/* Walks the segment to the token where the running sum of exponentials passes what the uniform left. */
static struct cand draw(const struct sampler *s, uint32_t i)
{
    const struct row_state *st = &s->state[i];
    struct shard_range ids = own(s);
    uint32_t at = st->draw_seg * SEG;
    if (at - ids.first >= ids.n) /* another rank's */
        return (struct cand){.id = SAMPLER_NONE};
    at -= ids.first;
    float e[SEG];
    uint32_t n = MIN((uint32_t)SEG, ids.n - at), pick = SAMPLER_NONE;
    sampler_math_exps(adj_row(s, i) + at, n, s->adj[(size_t)i * s->n_seg_own + at / SEG].max, st->adj.scale, e);
    double sum = 0;
    for (uint32_t j = 0; j < n; j++) {
        if (e[j] == 0)
            continue;
        pick = j; /* rounding may leave the sum short: then the last that can be drawn */
        sum += (double)e[j];
        if (sum > st->draw_left)
            break;
    }
    ASSERT(pick != SAMPLER_NONE); /* the maximum itself counts 1 */
    return (struct cand){.raw = raw_row(s, i)[at + pick], .id = ids.first + at + pick};
}

static void answer(struct sampler *s, uint32_t i, struct cand *scratch)
{
    struct row_state *st = &s->state[i];
    for (uint32_t g = 0; st->again && g < s->n_seg_own; g++)
        adjusted_segment(s, i, g);
    st->again = false;
    struct shard_range ids = own(s);
    const struct sampling_seg *raw = s->raw + (size_t)i * s->n_seg_own, *adj = s->adj + (size_t)i * s->n_seg_own;
    uint8_t *p = s->xchg + s->row_at[(size_t)s->cfg.tp_rank * s->cfg.rows_cap + i];
    size_t stats = s->n_seg_own * sizeof(struct sampling_seg);
    if (st->asked & ASK_RAW)
        memcpy(take(&p, stats), raw, stats);
    if (st->asked & ASK_ADJ)
        memcpy(take(&p, stats), adj, stats);
    if (st->asked & ASK_MORE) {
        size_t bytes = s->n_seg_own * sizeof(struct sampling_more);
        memcpy(take(&p, bytes), s->more + (size_t)i * s->n_seg_own, bytes);
    }
    if (st->asked & ASK_BEST) {
        struct cand best = {-INFINITY, 0, SAMPLER_NONE, 0};
        for (uint32_t g = 0; g < s->n_seg_own; g++)
            if (adj[g].max != adj[g].max) {
                best.z = adj[g].max;
                break;
            } else if (best.z < adj[g].max) {
                best = (struct cand){.z = adj[g].max, .id = g};
            }
        if (best.z > -INFINITY) {
            uint32_t at = best.id * SEG;
            while (adj_row(s, i)[at] != best.z)
                at++;
            best.id = ids.first + at;
            best.raw = raw_row(s, i)[at];
        }
        memcpy(take(&p, sizeof(best)), &best, sizeof(best));
    }
    if (st->asked & ASK_TARGET) {
        uint32_t at = s->rows[i].target - ids.first;
        struct cand c = {.raw = at < ids.n ? raw_row(s, i)[at] : 0, .id = s->rows[i].target};
        memcpy(take(&p, sizeof(c)), &c, sizeof(c));
    }
    if (st->asked & ASK_TOP)
        best_of_own(s, raw_row(s, i), raw_row(s, i), raw, s->rows[i].n_top, scratch,
                    take(&p, MIN(s->rows[i].n_top, ids.n) * sizeof(struct cand)));
    if (st->asked & ASK_CANDS)
        best_of_own(s, adj_row(s, i), raw_row(s, i), adj, st->cand_cap, scratch, take(&p, MIN(st->cand_cap, ids.n) * sizeof(struct cand)));
    if (st->asked & ASK_DRAW) {
        struct cand c = draw(s, i);
        memcpy(take(&p, sizeof(c)), &c, sizeof(c));
    }
}

/* ---- phase 3: everybody merges all answers */

/* Statistics of all segments in the order of the ids. p: per rank, advanced. */
struct segs {
    const struct sampling_seg *of[SHARD_TP_MAX];
};
static void take_segs(const struct sampler *s, uint8_t **p, struct segs *out)
{
    for (uint32_t r = 0; r < s->cfg.tp; r++)
        out->of[r] = take(&p[r], n_segs(s->cfg.ids[r].n) * sizeof(struct sampling_seg));
}
enum merged { MERGED_OK, MERGED_BAD /* a logit is not finite */, MERGED_NONE /* all are banned */ };
static enum merged merge_segs(const struct sampler *s, const struct segs *v, float scale, float *max, double *sum)
{
    *max = -INFINITY;
    *sum = 0;
    for (uint32_t r = 0; r < s->cfg.tp; r++)
        for (uint32_t g = 0; g < n_segs(s->cfg.ids[r].n); g++) {
            if (v->of[r][g].max != v->of[r][g].max)
                return MERGED_BAD;
            *max = v->of[r][g].max > *max ? v->of[r][g].max : *max;
        }
    if (!(*max > -INFINITY))
        return MERGED_NONE;
    for (uint32_t r = 0; r < s->cfg.tp; r++)
        for (uint32_t g = 0; g < n_segs(s->cfg.ids[r].n); g++)
            *sum += sampling_seg_mass(&v->of[r][g], *max, scale);
    return MERGED_OK;
}

/* Entropy and deviation; where the temperature hangs on them, everything is asked for again at it. */
static void merge_more(const struct sampler *s, struct row_state *st, const struct segs *v, bool none, uint8_t **p)
{
    struct sampling_dist *d = &st->adj;
    struct sampling_more all = {0};
    for (uint32_t r = 0; r < s->cfg.tp; r++) {
        uint32_t n = n_segs(s->cfg.ids[r].n);
        const struct sampling_more *m = take(&p[r], n * sizeof(*m));
        for (uint32_t g = 0; g < n; g++) {
            if (!(v->of[r][g].max > -INFINITY))
                continue;
            all.dot += sampling_seg_dot(&v->of[r][g], &m[g], d->max, d->scale);
            all.n += m[g].n;
            all.z += m[g].z;
            all.zz += m[g].zz;
        }
    }
    if (none)
        return;
    sampling_settle(&st->sp, &all, st->dynamic, d);
    st->again = st->dynamic;
    st->dynamic = false;
}

/* No filter: the uniform picks the segment, and how far into it. */
static void ask_draw(const struct sampler *s, struct row_state *st, const struct segs *v)
{
    double target = st->adj.u * st->adj.sum, sum = 0;
    st->ask = ASK_DRAW;
    for (uint32_t r = 0; r < s->cfg.tp; r++)
        for (uint32_t g = 0; g < n_segs(s->cfg.ids[r].n); g++) {
            const struct sampling_seg *seg = &v->of[r][g];
            double mass = sampling_seg_mass(seg, st->adj.max, st->adj.scale);
            if (mass == 0)
                continue;
            st->draw_seg = s->cfg.ids[r].first / SEG + g;
            st->draw_left = (target - sum) / (double)fm_exp((seg->max - st->adj.max) * st->adj.scale);
            sum += mass;
            if (sum > target)
                return;
        }
}
/* The best n of the ranks' sorted lists, best first. */
static uint32_t merge_cands(const struct sampler *s, uint8_t **p, uint32_t cap, struct cand *out)
{
    const struct cand *list[SHARD_TP_MAX];
    uint32_t left[SHARD_TP_MAX], n = 0;
    for (uint32_t r = 0; r < s->cfg.tp; r++) {
        left[r] = MIN(cap, s->cfg.ids[r].n);
        list[r] = take(&p[r], left[r] * sizeof(struct cand));
    }
    for (; n < cap; n++) {
        uint32_t best = SAMPLER_NONE;
        for (uint32_t r = 0; r < s->cfg.tp; r++)
            if (left[r] && (best == SAMPLER_NONE || better(list[r], list[best])))
                best = r;
        if (best == SAMPLER_NONE)
            break;
        out[n] = *list[best]++;
        left[best]--;
    }
    return n;
}

static void pick_candidate(const struct sampler *s, struct row_state *st, struct sampler_row *row, const struct cand *c, uint32_t n, float *p)
{
    struct sampling_list l = {&c[0].z, sizeof(*c) / sizeof(float), p, n, n};
    uint32_t pick;
    for (uint32_t i = 0; i < n; i++)
        p[i] = c[i].z;
    sampler_math_exps(p, n, st->adj.max, st->adj.scale, p);
    if (!sampling_pick(&st->adj, &st->sp, &l, &pick, &row->mu)) {
        st->cand_cap = sampling_cands_more(st->cand_cap, s->cfg.vocab);
        st->ask = ASK_CANDS;
        return;
    }
    row->token = c[pick].id;
    st->token_raw = c[pick].raw;
}

static float logprob(const struct row_state *st, float raw)
{
    return sampling_logprob(raw, st->raw_max, st->raw_sum);
}

static void merge(struct sampler *s, uint32_t i, struct cand *scratch, float *masses)
{
    struct row_state *st = &s->state[i];
    struct sampler_row *row = &s->rows[i];
    uint8_t *p[SHARD_TP_MAX];
    struct segs raw = {0}, adj = {0};
    for (uint32_t r = 0; r < s->cfg.tp; r++)
        p[r] = s->xchg + s->row_at[(size_t)r * s->cfg.rows_cap + i];
    bool none = false;
    st->ask = 0;
    if (st->asked & ASK_RAW) {
        take_segs(s, p, &raw);
        st->bad |= merge_segs(s, &raw, 1, &st->raw_max, &st->raw_sum) != MERGED_OK;
    }
    if (st->asked & ASK_ADJ) {
        take_segs(s, p, &adj);
        enum merged m = merge_segs(s, &adj, st->adj.scale, &st->adj.max, &st->adj.sum);
        none = m == MERGED_NONE;
        st->bad |= m == MERGED_BAD;
    }
    if (st->bad)
        return;
    bool first_pass = st->dynamic;
    if (st->asked & ASK_MORE)
        merge_more(s, st, &adj, none, p);
    if (st->asked & ASK_BEST) {
        struct cand best = {-INFINITY, 0, SAMPLER_NONE, 0}, c;
        for (uint32_t r = 0; r < s->cfg.tp; r++) {
            memcpy(&c, take(&p[r], sizeof(c)), sizeof(c));
            st->bad |= c.z != c.z;
            if (better(&c, &best))
                best = c;
        }
        none = best.id == SAMPLER_NONE;
        row->token = best.id;
        st->token_raw = best.raw;
    }
    if (st->asked & ASK_TARGET)
        for (uint32_t r = 0; r < s->cfg.tp; r++) {
            struct cand c;
            memcpy(&c, take(&p[r], sizeof(c)), sizeof(c));
            if (row->target - s->cfg.ids[r].first < s->cfg.ids[r].n)
                row->lp = logprob(st, c.raw);
        }
    if (st->asked & ASK_TOP) {
        row->n_top_out = merge_cands(s, p, row->n_top, scratch);
        for (uint32_t j = 0; j < row->n_top_out; j++) {
            row->top_id[j] = scratch[j].id;
            row->top_lp[j] = logprob(st, scratch[j].raw);
        }
    }
    if (none) { /* what a client banned leaves nothing: not an error of the replica's */
        st->bad |= st->lifted || !st->adjusted;
        st->lifted = st->again = true;
        st->ask = st->bad ? 0 : st->asked & (ASK_ADJ | ASK_MORE | ASK_CANDS | ASK_BEST);
        return;
    }
    if (first_pass)
        st->ask = ASK_ADJ | (st->more ? ASK_MORE : 0) | (st->filtered ? ASK_CANDS : 0);
    else if ((st->asked & ASK_ADJ) && !st->filtered)
        ask_draw(s, st, &adj);
    if (st->asked & ASK_CANDS)
        pick_candidate(s, st, row, scratch, merge_cands(s, p, st->cand_cap, scratch), masses);
    if (st->asked & ASK_DRAW)
        for (uint32_t r = 0; r < s->cfg.tp; r++) {
            struct cand c;
            memcpy(&c, take(&p[r], sizeof(c)), sizeof(c));
            if (c.id != SAMPLER_NONE) {
                row->token = c.id;
                st->token_raw = c.raw;
            }
        }
    if (!st->ask && row->sample && row->logprob && !st->bad)
        row->lp = logprob(st, st->token_raw);
}

/* ---- the run */

static void begin_row(struct sampler *s, uint32_t i)
{
    struct sampler_row *row = &s->rows[i];
    const struct slot *sl = row->slot;
    struct row_state *st = &s->state[i];
    *st = (struct row_state){0};
    row->token = SAMPLER_NONE;
    row->lp = NAN;
    row->mu = sl->mu;
    row->n_top_out = 0;
    if (row->target != SAMPLER_NONE)
        st->ask |= ASK_TARGET | ASK_RAW;
    if (row->sample && row->logprob)
        st->ask |= ASK_RAW;
    if (row->n_top)
        st->ask |= ASK_TOP | ASK_RAW;
    if (!row->sample)
        return;
    bool look_back = slot_looks_back(sl);
    struct sampling_plan plan;
    st->sp = slot_params(sl);
    sampling_begin(&st->sp, s->cfg.vocab, row->position, &plan);
    s->look_back |= look_back;
    st->adjusted = sl->n_bias || sl->has_penalties || sl->allowed || look_back || (sl->n_stop && sampling_bans_stops(&st->sp, row->position));
    st->dynamic = plan.dynamic;
    st->greedy = plan.greedy;
    st->filtered = plan.filtered;
    st->more = plan.more;
    st->adj = plan.dist;
    st->cand_cap = plan.cands;
    if (st->greedy)
        st->ask |= ASK_BEST;
    else
        st->ask |= ASK_ADJ | (st->more || st->dynamic ? ASK_MORE : 0) | (st->filtered && !st->dynamic ? ASK_CANDS : 0);
}

static void look_back(struct sampler *s, uint32_t i, unsigned ith)
{
    const struct sampler_row *row = &s->rows[i];
    if (row->sample && slot_looks_back(row->slot))
        s->state[i].n_changes = sampler_history_changes(row->slot, row->position, s->best + (size_t)ith * s->cfg.vocab,
                                                        s->z + (size_t)ith * s->cfg.ctx, s->changes + i * s->changes_each);
}

static void sampler_pass(void *arg, unsigned ith, unsigned nth)
{
    struct sampler *s = arg;
    struct cand *scratch = s->scratch + ith * s->scratch_each;
    float *masses = s->masses + (size_t)ith * s->cfg.vocab;
    uint32_t begin, end;
    for (uint32_t i = ith; s->look_back && i < s->n; i += nth)
        look_back(s, i, ith);
    if (s->look_back)
        pool_barrier(s->cfg.pool);
    pool_part(s->n * s->n_seg_own, 1, ith, nth, &begin, &end);
    for (uint32_t item = begin; item < end; item++)
        segment(s, item / s->n_seg_own, item % s->n_seg_own);
    for (;;) {
        if (ith == 0)
            lay_out(s);
        pool_barrier(s->cfg.pool);
        if (s->n_active == 0)
            return;
        for (uint32_t i = ith; i < s->n; i += nth)
            if (s->state[i].asked)
                answer(s, i, scratch);
        pool_barrier(s->cfg.pool);
        if (s->cfg.tp > 1) {
            if (ith == 0)
                s->err = comm_allgather(s->comm, s->xchg, s->off, s->len);
            pool_barrier(s->cfg.pool);
            if (s->err != ERR_OK)
                return;
        }
        for (uint32_t i = ith; i < s->n; i += nth)
            if (s->state[i].asked)
                merge(s, i, scratch, masses);
        pool_barrier(s->cfg.pool);
    }
}

enum err sampler_run(struct sampler *s, struct comm *comm, const float *logits, size_t stride, struct sampler_row *rows, uint32_t n)
{
    ASSERT(n > 0 && n <= s->cfg.rows_cap);
    s->comm = comm;
    s->logits = logits;
    s->stride = stride;
    s->rows = rows;
    s->n = n;
    s->err = ERR_OK;
    s->look_back = false;
    for (uint32_t i = 0; i < n; i++)
        begin_row(s, i);
    pool_run(s->cfg.pool, sampler_pass, s);
    for (uint32_t i = 0; i < n && s->err == ERR_OK; i++)
        if (s->state[i].bad)
            return err_set(ERR_CORRUPT, "logits at position %u are not finite (damaged weights)", rows[i].position);
    return s->err;
}

/* ---- buffers */

static void *carve(struct sampler *s, size_t n, size_t size)
{
    size_t at = s->map_bytes;
    s->map_bytes = ROUND_UP(at + n * size, (size_t)64);
    return s->map ? (uint8_t *)s->map + at : NULL;
}

static void carve_all(struct sampler *s)
{
    size_t rows = s->cfg.rows_cap, tp = s->cfg.tp, segs = n_segs(s->cfg.vocab) + tp;
    s->map_bytes = 0;
    s->state = carve(s, rows, sizeof(*s->state));
    s->raw = carve(s, rows * s->n_seg_own, sizeof(*s->raw));
    s->adj = carve(s, rows * s->n_seg_own, sizeof(*s->adj));
    s->more = carve(s, rows * s->n_seg_own, sizeof(*s->more));
    s->adj_logits = carve(s, rows * own(s).n, sizeof(float));
    s->changes_each = s->cfg.ctx + MSG_BAD_IDS_MAX;
    s->changes = carve(s, rows * s->changes_each, sizeof(*s->changes));
    s->best = carve(s, (size_t)s->cfg.vocab * pool_n_threads(s->cfg.pool), sizeof(*s->best));
    s->z = carve(s, (size_t)s->cfg.ctx * pool_n_threads(s->cfg.pool), sizeof(*s->z));
    s->scratch_each = s->cfg.vocab + segs;
    s->scratch = carve(s, s->scratch_each * pool_n_threads(s->cfg.pool), sizeof(*s->scratch));
    s->masses = carve(s, (size_t)s->cfg.vocab * pool_n_threads(s->cfg.pool), sizeof(*s->masses));
    s->row_at = carve(s, rows * tp, sizeof(*s->row_at));
    /* All rows with statistics and first candidates; or one row with the candidates of the whole vocabulary. */
    size_t lists = tp * (MSG_LOGPROBS_MAX + SAMPLING_CANDS + 3) * sizeof(struct cand);
    s->xchg_cap = rows * (segs * (2 * sizeof(struct sampling_seg) + sizeof(struct sampling_more)) + lists) + s->cfg.vocab * sizeof(struct cand);
    s->xchg = carve(s, s->xchg_cap, 1);
}

enum err sampler_create(const struct sampler_config *cfg, struct sampler **out)
{
    struct sampler *s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(ERR_NOMEM, "out of memory for the sampler");
    s->cfg = *cfg;
    s->n_seg_own = n_segs(own(s).n);
    carve_all(s);
    size_t bytes = s->map_bytes;
    s->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->map == MAP_FAILED) {
        free(s);
        return err_set(ERR_NOMEM, "no memory for %zu bytes of sampling buffers", bytes);
    }
    carve_all(s);
    *out = s;
    return ERR_OK;
}

void sampler_destroy(struct sampler **s)
{
    if (!*s)
        return;
    munmap((*s)->map, (*s)->map_bytes);
    free(*s);
    *s = NULL;
}
