/* The metrics of metrics.def as plain atomics, rendered in the Prometheus text format 0.0.4.
 *
 * A series is one struct: a gauge or a sum is a double in the bits of an atomic word, counts are atomic words. Updates
 * are relaxed: the numbers are independent, and a scrape that falls between two of them sees one more or one less.
 * The count of a histogram is the sum of its buckets at the time of the scrape, so the two never disagree. */
#include "base/metrics.h"

#include "base/check.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS_MAX = 24, LABELS_MAX = 16 };

enum type { GAUGE, COUNTER, HISTOGRAM, LABELLED };
static const char *const type_names[] = {"gauge", "counter", "histogram", "counter"};

/* vLLM's edges (its names are kept too), so that dashboards and alerts carry over. */
static const double edges_ttft[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                    1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
static const double edges_itl[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                   0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double edges_seconds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                       30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double edges_tokens[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                                      2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};

struct buckets {
    const double *edges;
    unsigned n;
};
#define BUCKETS_NONE                                                                                                   \
    {                                                                                                                  \
        NULL, 0                                                                                                        \
    }
#define BUCKETS_TOKENS                                                                                                 \
    {                                                                                                                  \
        edges_tokens, ARRAY_LEN(edges_tokens)                                                                          \
    }
#define BUCKETS_SECONDS                                                                                                \
    {                                                                                                                  \
        edges_seconds, ARRAY_LEN(edges_seconds)                                                                        \
    }
#define BUCKETS_SECONDS_TTFT                                                                                           \
    {                                                                                                                  \
        edges_ttft, ARRAY_LEN(edges_ttft)                                                                              \
    }
#define BUCKETS_SECONDS_ITL                                                                                            \
    {                                                                                                                  \
        edges_itl, ARRAY_LEN(edges_itl)                                                                                \
    }
#define BUCKETS_finished_reason                                                                                        \
    {                                                                                                                  \
        NULL, 0                                                                                                        \
    }

static const struct {
    enum type type;
    const char *name, *label, *help;
    struct buckets buckets;
} rows[METRIC_COUNT] = {
#define METRIC(sym, type, name, column, help) {type, name, #column, help, BUCKETS_##column},
#include "base/metrics.def"
#undef METRIC
};

struct series {
    _Atomic uint64_t bits;                     /* a double: the gauge, or the sum of a histogram */
    _Atomic uint64_t count;                    /* counter */
    _Atomic uint64_t buckets[BUCKETS_MAX + 1]; /* not cumulative; the one past the last edge is +Inf */
};

struct label {
    char *_Atomic value; /* owned; set once */
    _Atomic uint64_t count[METRIC_ENGINES_MAX];
};

struct metrics {
    char *model_name;
    unsigned n_engines;
    struct label labels[METRIC_COUNT][LABELS_MAX];
    struct series series[]; /* [METRIC_COUNT][n_engines] */
};

_Static_assert(ARRAY_LEN(edges_ttft) <= BUCKETS_MAX && ARRAY_LEN(edges_itl) <= BUCKETS_MAX &&
                   ARRAY_LEN(edges_seconds) <= BUCKETS_MAX && ARRAY_LEN(edges_tokens) <= BUCKETS_MAX,
               "room for the buckets");

static double from_bits(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint64_t to_bits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static struct series *series_at(struct metrics *m, enum metric id, unsigned engine)
{
    ASSERT((unsigned)id < METRIC_COUNT && engine < m->n_engines);
    return &m->series[(size_t)id * m->n_engines + engine];
}

static uint64_t load(const _Atomic uint64_t *p)
{
    return atomic_load_explicit(p, memory_order_relaxed);
}

static void add(_Atomic uint64_t *p, uint64_t v)
{
    atomic_fetch_add_explicit(p, v, memory_order_relaxed);
}

struct metrics *metrics_create(const char *model_name, unsigned n_engines)
{
    ASSERT(n_engines > 0 && n_engines <= METRIC_ENGINES_MAX);
    struct metrics *m = calloc(1, sizeof *m + (size_t)METRIC_COUNT * n_engines * sizeof(struct series));
    char *name = strdup(model_name);
    if (!m || !name) {
        free(m);
        free(name);
        return NULL;
    }
    m->model_name = name;
    m->n_engines = n_engines;
    return m;
}

void metrics_destroy(struct metrics **mp)
{
    struct metrics *m = *mp;
    if (!m)
        return;
    for (unsigned id = 0; id < METRIC_COUNT; id++)
        for (unsigned i = 0; i < LABELS_MAX; i++)
            free(atomic_load(&m->labels[id][i].value));
    free(m->model_name);
    free(m);
    *mp = NULL;
}

void metrics_add(struct metrics *m, enum metric id, unsigned engine, uint64_t v)
{
    struct series *s = series_at(m, id, engine);
    ASSERT(rows[id].type == COUNTER);
    add(&s->count, v);
}

void metrics_set(struct metrics *m, enum metric id, unsigned engine, double v)
{
    struct series *s = series_at(m, id, engine);
    ASSERT(rows[id].type == GAUGE);
    atomic_store_explicit(&s->bits, to_bits(v), memory_order_relaxed);
}

void metrics_observe(struct metrics *m, enum metric id, unsigned engine, double v)
{
    struct series *s = series_at(m, id, engine);
    ASSERT(rows[id].type == HISTOGRAM);
    if (isnan(v))
        return; /* would spoil the sum for ever */
    const struct buckets *b = &rows[id].buckets;
    unsigned i = 0;
    while (i < b->n && v > b->edges[i])
        i++;
    add(&s->buckets[i], 1);
    uint64_t old = load(&s->bits);
    while (!atomic_compare_exchange_weak_explicit(&s->bits, &old, to_bits(from_bits(old) + v), memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
}

/* The entry of this value, made on first use; the last one, "other", takes what does not fit. */
static struct label *label_at(struct metrics *m, enum metric id, const char *value)
{
    for (unsigned i = 0; i < LABELS_MAX; i++) {
        struct label *l = &m->labels[id][i];
        const char *want = i == LABELS_MAX - 1 ? "other" : value;
        char *have = atomic_load_explicit(&l->value, memory_order_acquire);
        if (!have) {
            char *copy = strdup(want);
            if (!copy)
                return NULL;
            if (atomic_compare_exchange_strong(&l->value, &have, copy))
                return l;
            free(copy); /* another thread was first: `have` is its value */
        }
        if (strcmp(have, want) == 0)
            return l;
    }
    return NULL;
}

void metrics_add_label(struct metrics *m, enum metric id, unsigned engine, const char *label_value, uint64_t v)
{
    ASSERT((unsigned)id < METRIC_COUNT && engine < m->n_engines && rows[id].type == LABELLED);
    struct label *l = label_at(m, id, label_value);
    if (l)
        add(&l->count[engine], v);
}

static void put_label_value(struct buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '\\' || *s == '"')
            buf_putc(out, '\\');
        if (*s == '\n')
            buf_puts(out, "\\n");
        else
            buf_putc(out, *s);
    }
}

/* name_suffix{model_name="..",engine="0",extra="value"} up to the blank before the number. */
static void put_series(const struct metrics *m, struct buf *out, enum metric id, const char *suffix, unsigned engine,
                       const char *extra, const char *value)
{
    buf_printf(out, "racklm:%s%s{model_name=\"", rows[id].name, suffix);
    put_label_value(out, m->model_name);
    buf_printf(out, "\",engine=\"%u\"", engine);
    if (extra) {
        buf_printf(out, ",%s=\"", extra);
        put_label_value(out, value);
        buf_putc(out, '"');
    }
    buf_puts(out, "} ");
}

/* Prometheus writes infinities and NaN by name. */
static void put_double(struct buf *out, double v)
{
    if (isfinite(v))
        buf_json_double(out, v);
    else
        buf_puts(out, isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
}

static void put_histogram(const struct metrics *m, struct buf *out, enum metric id, unsigned engine,
                          const struct series *s)
{
    const struct buckets *b = &rows[id].buckets;
    uint64_t total = 0;
    struct buf le;
    buf_init(&le);
    for (unsigned i = 0; i <= b->n; i++) {
        buf_clear(&le);
        put_double(&le, i < b->n ? b->edges[i] : INFINITY);
        if (le.failed) {
            out->failed = true;
            break;
        }
        total += load(&s->buckets[i]);
        put_series(m, out, id, "_bucket", engine, "le", le.data);
        buf_printf(out, "%llu\n", (unsigned long long)total);
    }
    buf_deinit(&le);
    put_series(m, out, id, "_sum", engine, NULL, NULL);
    put_double(out, from_bits(load(&s->bits)));
    buf_putc(out, '\n');
    put_series(m, out, id, "_count", engine, NULL, NULL);
    buf_printf(out, "%llu\n", (unsigned long long)total);
}

static void put_labelled(const struct metrics *m, struct buf *out, enum metric id, unsigned engine)
{
    for (unsigned i = 0; i < LABELS_MAX; i++) {
        const struct label *l = &m->labels[id][i];
        const char *value = atomic_load_explicit(&l->value, memory_order_acquire);
        if (!value)
            break;
        put_series(m, out, id, "", engine, rows[id].label, value);
        buf_printf(out, "%llu\n", (unsigned long long)load(&l->count[engine]));
    }
}

static void put_metric(const struct metrics *m, struct buf *out, enum metric id)
{
    for (unsigned engine = 0; engine < m->n_engines; engine++) {
        const struct series *s = &m->series[(size_t)id * m->n_engines + engine];
        switch (rows[id].type) {
        case HISTOGRAM:
            put_histogram(m, out, id, engine, s);
            break;
        case LABELLED:
            put_labelled(m, out, id, engine);
            break;
        case GAUGE:
            put_series(m, out, id, "", engine, NULL, NULL);
            put_double(out, from_bits(load(&s->bits)));
            buf_putc(out, '\n');
            break;
        case COUNTER:
            put_series(m, out, id, "", engine, NULL, NULL);
            buf_printf(out, "%llu\n", (unsigned long long)load(&s->count));
            break;
        }
    }
}

void metrics_render(const struct metrics *const *m, unsigned n, struct buf *out)
{
    for (unsigned id = 0; id < METRIC_COUNT; id++) {
        buf_printf(out, "# HELP racklm:%s %s\n# TYPE racklm:%s %s\n", rows[id].name, rows[id].help, rows[id].name, type_names[rows[id].type]);
        for (unsigned i = 0; i < n; i++)
            put_metric(m[i], out, (enum metric)id);
    }
}
