/* The front: HTTP, TLS, tokenising, templates, SSE; one thread of its own. It turns HTTP requests into struct request,
 * gives each to the least loaded engine (engine_snapshot) and turns struct token_event into text.
 *
 * Borrowed for its whole life: everything in front_config. The engines stop only after front_destroy, so an engine
 * pointer is always good; an engine that is not ready still queues (engine_submit), up to its bound. */
#ifndef COORDINATOR_FRONT_H
#define COORDINATOR_FRONT_H

#include "base/options.h"
#include "base/queue.h"
#include "coordinator/deployment.h"

/* What /health says of a deployment, or of all together. Filled by the coordinator, any thread. */
struct front_health {
    bool ready;            /* every replica has run a real step and has all of its workers */
    bool degraded;         /* of all: they were ready once, and at least one deployment is now */
    bool fatal;            /* it will not become ready without a person: the text says why */
    uint32_t load_percent; /* of the weights, 0..100 */
    uint32_t n_replicas, n_ready;
    uint32_t n_workers, n_workers_ready;
    char
        text[256]; /* "loading weights", "waiting for devices: 1 of 2", "replica 0 lost worker 1: killed by signal 9" */
};

struct front_config {
    const struct options *opts;
    struct deployment *deployments; /* the front loads their text side */
    uint32_t n_deployments;
    struct queue *events; /* struct token_event *, from all engines; the front frees what it pops */
    void (*health)(void *arg, const struct deployment *d /* NULL: all */, struct front_health *out);
    void *health_arg;
};

struct front;
/* Binds opts->host:port and starts the thread. ERR_ADDR_IN_USE, ERR_CONFIG (another address than loopback without a
 * key), ERR_UNSUPPORTED (an unknown tokenizer). */
enum err front_create(const struct front_config *cfg, struct front **out);
/* Closes every connection, joins the thread. */
void front_destroy(struct front **f);
/* "http://127.0.0.1:8000", with the real port. */
const char *front_url(const struct front *f);
/* From now on new requests get 503 with Retry-After; open streams go on. Any thread. */
void front_drain(struct front *f);

#endif
