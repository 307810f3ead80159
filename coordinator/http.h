/* HTTP/1.1 on libevent's evhttp: listening, limits, deadlines, streams, and the sight of a client that goes away. The only place that knows
 * libevent. Knows nothing of models or JSON: api.c gives it a handler and answers through the exchange.
 *
 * One thread owns everything here. An exchange is one request with its answer; it lives from the handler's call until the answer is complete or the
 * client is gone. Limits: header 64 KiB, body `body_max`, a whole request within `timeout_ms` (also byte by byte), `connections_max`, 16 MiB of
 * answer that a client does not read. What evhttp itself refuses is answered in JSON as everything else is, and so that a client that is still
 * sending gets to read it. Every answer carries X-Request-Id: the client's, or a new one. */
#ifndef COORDINATOR_HTTP_H
#define COORDINATOR_HTTP_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct http;
struct http_exchange;

enum { HTTP_REQUEST_ID_MAX = 128 }; /* a client's longer X-Request-Id is replaced, as one is that is not printable ASCII */
enum http_method { HTTP_GET, HTTP_POST, HTTP_HEAD, HTTP_OTHER };

/* What is known of a request before its body is there; valid during the call. */
struct http_head {
    const char *authorization, *host; /* NULL: absent */
};

struct http_config {
    const char *host;
    uint16_t port;            /* 0: any */
    uint64_t body_max;
    uint32_t timeout_ms, connections_max;
    /* The header of a request with a longer body is there. 0: go on; else the status of the refusal, its text in `text`. The body is not taken, and
     * the connection ends. NULL: everything is received. */
    int (*admit)(void *arg, const struct http_head *head, char *text, size_t cap);
    /* A whole request is there. The handler answers now or keeps the exchange and answers later. */
    void (*handle)(void *arg, struct http_exchange *x);
    /* The client went away before the answer was complete; the exchange is gone when this returns. Not called after http_end. */
    void (*gone)(void *arg, struct http_exchange *x);
    void *arg;
};

/* ERR_ADDR_IN_USE, ERR_INVALID (address). */
enum err http_create(const struct http_config *cfg, struct http **out);
void http_destroy(struct http **h);
uint16_t http_port(const struct http *h);
/* Runs the loop until http_stop. fd callbacks and timers below run in it. */
void http_run(struct http *h);
void http_stop(struct http *h); /* from inside the loop */
/* fn is called whenever fd is readable (level-triggered). */
enum err http_watch_fd(struct http *h, int fd, void (*fn)(void *arg), void *arg);
/* fn is called every period_ms while it returns true; a new call to http_timer starts it again. */
enum err http_timer(struct http *h, uint32_t period_ms, bool (*fn)(void *arg), void *arg);

enum http_method http_method(const struct http_exchange *x);
const char *http_path(const struct http_exchange *x);                       /* decoded, without the query */
const char *http_header(const struct http_exchange *x, const char *name);   /* NULL: absent */
const char *http_body(const struct http_exchange *x, size_t *len);          /* contiguous; valid until http_body_done or the exchange's end */
void http_body_done(struct http_exchange *x);                               /* frees the body; http_body is empty afterwards */
void http_set_header(struct http_exchange *x, const char *name, const char *value);
void http_set_user(struct http_exchange *x, void *user);
void *http_user(const struct http_exchange *x);

/* The whole answer; the exchange ends. */
void http_reply(struct http_exchange *x, int status, const char *content_type, const char *body, size_t len);
/* A stream: begin, any number of chunks, end. */
void http_begin(struct http_exchange *x, int status, const char *content_type);
void http_chunk(struct http_exchange *x, const char *p, size_t len);
void http_end(struct http_exchange *x);

const char *http_status_text(int status);
/* {"error":{"message","type","param","code"}}: the OpenAI shape, into out. param may be NULL. */
void http_error_body(struct buf *out, int status, const char *param, const char *message);

#endif
