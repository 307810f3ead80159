/* Metrics: one table (metrics.def), plain atomics, rendered as Prometheus text. Counters and histograms have one series
 * per replica ("engine" label); one struct metrics for each model ("model_name"). Any thread may update; rendering reads without locks. */
#ifndef BASE_METRICS_H
#define BASE_METRICS_H

#include "base/buf.h"

#include <stdint.h>

enum metric {
#define METRIC(sym, type, name, buckets, help) METRIC_##sym,
#include "base/metrics.def"
#undef METRIC
    METRIC_COUNT
};
enum { METRIC_ENGINES_MAX = 64 };

struct metrics;
/* n_engines series of each metric; model_name is copied. */
struct metrics *metrics_create(const char *model_name, unsigned n_engines);
void metrics_destroy(struct metrics **m);
void metrics_add(struct metrics *m, enum metric id, unsigned engine, uint64_t v);          /* counter */
void metrics_set(struct metrics *m, enum metric id, unsigned engine, double v);            /* gauge */
void metrics_observe(struct metrics *m, enum metric id, unsigned engine, double v);        /* histogram */
/* A counter with one more label, value one of a fixed small set: request_success_total{finished_reason="stop"}. */
void metrics_add_label(struct metrics *m, enum metric id, unsigned engine, const char *label_value, uint64_t v);
/* Several models together: the series of a metric stand side by side, as the format wants. */
void metrics_render(const struct metrics *const *m, unsigned n, struct buf *out);

#endif
