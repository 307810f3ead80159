/* metrics.h: the text form by the rules of Prometheus (checked by promtool where it is installed), bucket borders, and
 * updates from several threads. The edges are written out again here as vLLM's documentation and dashboards have them.
 */
#include "base/check.h"
#include "base/metrics.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct buf out;

static const char *render(struct metrics *m)
{
    buf_clear(&out);
    metrics_render((const struct metrics *const *)&m, 1, &out);
    assert_false(out.failed);
    return out.data;
}

static void has_line(const char *text, const char *wanted)
{
    char line[512];
    snprintf(line, sizeof line, "\n%s\n", wanted);
    if (!strstr(text, line))
        fail_msg("no line `%s`", wanted);
}

static void gauges_and_counters_have_a_series_for_each_engine(void **state)
{
    (void)state;
    struct metrics *m = metrics_create("demo", 2);
    metrics_set(m, METRIC_REQUESTS_RUNNING, 1, 3);
    metrics_set(m, METRIC_KV_CACHE_USAGE, 0, 0.25);
    metrics_add(m, METRIC_PROMPT_TOKENS, 0, 5);
    metrics_add(m, METRIC_PROMPT_TOKENS, 0, 1ull << 53);
    const char *t = render(m);
    has_line(t, "# TYPE racklm:num_requests_waiting gauge");
    has_line(t, "# HELP racklm:num_requests_waiting requests in the queue");
    has_line(t, "racklm:num_requests_running{model_name=\"demo\",engine=\"0\"} 0");
    has_line(t, "racklm:num_requests_running{model_name=\"demo\",engine=\"1\"} 3");
    has_line(t, "racklm:kv_cache_usage_perc{model_name=\"demo\",engine=\"0\"} 0.25");
    has_line(t, "# TYPE racklm:prompt_tokens_total counter");
    has_line(t, "racklm:prompt_tokens_total{model_name=\"demo\",engine=\"0\"} 9007199254740997");
    metrics_destroy(&m);
    assert_null(m);
    metrics_destroy(&m);
}

static void histograms_are_cumulative_with_inclusive_edges(void **state)
{
    (void)state;
    struct metrics *m = metrics_create("demo", 1);
    metrics_observe(m, METRIC_TTFT, 0, 0.001); /* le: an observation on the edge belongs to it */
    metrics_observe(m, METRIC_TTFT, 0, 0.0011);
    metrics_observe(m, METRIC_TTFT, 0, 3);
    metrics_observe(m, METRIC_TTFT, 0, 1e9);
    metrics_observe(m, METRIC_TTFT, 0, NAN); /* not counted */
    const char *t = render(m);
    has_line(t, "# TYPE racklm:time_to_first_token_seconds histogram");
#define TTFT(le, n)                                                                                                    \
    has_line(t, "racklm:time_to_first_token_seconds_bucket{model_name=\"demo\",engine=\"0\",le=\"" le "\"} " n)
    TTFT("0.001", "1");
    TTFT("0.005", "2");
    TTFT("2.5", "2");
    TTFT("5", "3");
    TTFT("2560", "3");
    TTFT("+Inf", "4");
    has_line(t, "racklm:time_to_first_token_seconds_count{model_name=\"demo\",engine=\"0\"} 4");
    const char *sum = strstr(t, "racklm:time_to_first_token_seconds_sum{model_name=\"demo\",engine=\"0\"} ");
    assert_non_null(sum);
    assert_true(fabs(strtod(strstr(sum, "} ") + 2, NULL) - 1000000003.0021) < 1e-6);
    metrics_destroy(&m);
}

static void edges_are_those_that_dashboards_know(void **state)
{
    (void)state;
    static const char *const ttft[] = {"0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1",
                                       "0.25",  "0.5",   "0.75", "1",    "2.5",  "5",    "7.5",  "10",
                                       "20",    "40",    "80",   "160",  "640",  "2560", "+Inf"};
    static const char *const e2e[] = {"0.3", "0.5", "0.8", "1",  "1.5", "2",   "2.5", "5",   "10",   "15",   "20",
                                      "30",  "40",  "50",  "60", "120", "240", "480", "960", "1920", "7680", "+Inf"};
    struct metrics *m = metrics_create("demo", 1);
    const char *t = render(m), *at = strstr(t, "racklm:time_to_first_token_seconds_bucket");
    char le[128];
    for (size_t i = 0; i < ARRAY_LEN(ttft); i++, at = strchr(at, '\n') + 1) {
        snprintf(le, sizeof le, "time_to_first_token_seconds_bucket{model_name=\"demo\",engine=\"0\",le=\"%s\"}",
                 ttft[i]);
        assert_memory_equal(at + 7, le, strlen(le));
    }
    at = strstr(t, "racklm:e2e_request_latency_seconds_bucket");
    for (size_t i = 0; i < ARRAY_LEN(e2e); i++, at = strchr(at, '\n') + 1) {
        snprintf(le, sizeof le, "e2e_request_latency_seconds_bucket{model_name=\"demo\",engine=\"0\",le=\"%s\"}",
                 e2e[i]);
        assert_memory_equal(at + 7, le, strlen(le));
    }
    metrics_destroy(&m);
}

static void labels_are_escaped_and_bounded(void **state)
{
    (void)state;
    struct metrics *m = metrics_create("we\"ird\\na\nme", 1);
    metrics_add_label(m, METRIC_REQUEST_SUCCESS, 0, "stop", 2);
    metrics_add_label(m, METRIC_REQUEST_SUCCESS, 0, "length", 1);
    metrics_add_label(m, METRIC_REQUEST_SUCCESS, 0, "stop", 3);
    const char *t = render(m);
#define SUCCESS "racklm:request_success_total{model_name=\"we\\\"ird\\\\na\\nme\",engine=\"0\",finished_reason="
    has_line(t, SUCCESS "\"stop\"} 5");
    has_line(t, SUCCESS "\"length\"} 1");
    char value[8];
    for (int i = 0; i < 50; i++) { /* a set that is not small after all must not grow without bound */
        snprintf(value, sizeof value, "v%d", i);
        metrics_add_label(m, METRIC_REQUEST_SUCCESS, 0, value, 1);
    }
    t = render(m);
    int n = 0;
    unsigned long long total = 0;
    for (const char *at = t; (at = strstr(at, "finished_reason=")); at++, n++)
        total += strtoull(strstr(at, "} ") + 2, NULL, 10);
    assert_in_range(n, 3, 16);
    assert_int_equal(total, 56);
    metrics_destroy(&m);
}

enum { THREADS = 4, EACH = 5000 };

static void *update(void *arg)
{
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    struct metrics *m = arg;
    for (int i = 0; i < EACH; i++) {
        metrics_add(m, METRIC_GENERATION_TOKENS, 0, 1);
        metrics_observe(m, METRIC_ITL, 0, 0.5);
        metrics_add_label(m, METRIC_REQUEST_SUCCESS, 0, reasons[i % 4], 1);
        metrics_set(m, METRIC_REQUESTS_RUNNING, 0, i);
    }
    return NULL;
}

static void no_update_of_a_thread_is_lost(void **state)
{
    (void)state;
    struct metrics *m = metrics_create("demo", 1);
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, update, m), 0);
    for (int i = 0; i < 20; i++)
        render(m);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    const char *text = render(m);
    has_line(text, "racklm:generation_tokens_total{model_name=\"demo\",engine=\"0\"} 20000");
    has_line(text, "racklm:inter_token_latency_seconds_sum{model_name=\"demo\",engine=\"0\"} 10000");
    has_line(text, "racklm:inter_token_latency_seconds_count{model_name=\"demo\",engine=\"0\"} 20000");
    has_line(text, "racklm:request_success_total{model_name=\"demo\",engine=\"0\",finished_reason=\"abort\"} 5000");
    metrics_destroy(&m);
}

/* promtool parses first (exit 1 when it cannot) and then lints (exit 3): it frowns on colons and on a histogram named
 * _total, which are vLLM's choices. Any other remark fails. */
static void promtool_takes_the_text(void **state)
{
    (void)state;
    if (system("command -v promtool >/dev/null 2>&1") != 0)
        skip();
    struct metrics *m = metrics_create("a \"b\" \\ c", 3);
    metrics_add_label(m, METRIC_REQUEST_SUCCESS, 1, "stop", 1);
    metrics_observe(m, METRIC_E2E, 2, 0.7);
    render(m);
    char path[] = "/tmp/racklm-test-XXXXXX", command[256], remark[512];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, out.data, out.len), out.len);
    close(fd);
    snprintf(command, sizeof command, "promtool check metrics < %s 2>&1", path);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    while (fgets(remark, sizeof remark, p))
        if (!strstr(remark, "should not contain ':'") &&
            !strstr(remark, "iteration_tokens_total non-counter metrics should not have \"_total\" suffix"))
            fail_msg("promtool: %s", remark);
    int status = pclose(p);
    unlink(path);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3));
    metrics_destroy(&m);
}

static int teardown(void **state)
{
    (void)state;
    buf_deinit(&out);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gauges_and_counters_have_a_series_for_each_engine),
        cmocka_unit_test(histograms_are_cumulative_with_inclusive_edges),
        cmocka_unit_test(edges_are_those_that_dashboards_know),
        cmocka_unit_test(labels_are_escaped_and_bounded),
        cmocka_unit_test(no_update_of_a_thread_is_lost),
        cmocka_unit_test(promtool_takes_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}
