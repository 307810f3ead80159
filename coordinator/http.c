/* See http.h. What evhttp (2.1) does not do by itself is done here by callbacks on a connection's buffers:
 *
 *  - A deadline for a whole request. evhttp's own timeout starts anew with every byte. The first byte of a request starts a timer of the
 *    connection; the handler's call stops it.
 *  - JSON for what evhttp refuses before any handler sees it (a body over the limit, a bad request line): its HTML page is replaced in the
 *    output buffer before it is sent.
 *  - A bound on what a client sends while its answer runs, and on what it does not read.
 *  - A look at the header before its body is received (http_config.admit): the bytes are seen here before evhttp takes them. Of a request that came
 *    behind another one (pipelined) they are seen when that one's answer ends; a refusal then is the end of the connection.
 *  - Requests whose end another HTTP reader may see elsewhere than evhttp (a body of a GET, two lengths, an encoding besides chunked) are the last
 *    of their connection: what follows them is never taken for a request, so that nobody's answer goes to somebody else behind a proxy.
 *  - A lingering close. A client that is still sending when it is refused would get a reset instead of the answer: our side of the connection is
 *    shut, what comes is thrown away for a bounded time and number of bytes, then the socket is closed.
 *
 * The connection record is made with the bufferevent and ends with evhttp's close callback, which is set by an event that runs right after the accept:
 * only then does the bufferevent carry evhttp's connection. */
#include "coordinator/http.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER_MAX = 64 << 10, PIPELINED_MAX = 64 << 10, UNREAD_MAX = 16 << 20 };
enum { LINGERS_MAX = 64, LINGER_S = 2, LINGER_TOTAL_S = 10, LINGER_BYTES_MAX = 64 << 20 };

struct conn {
    struct http *http;
    struct bufferevent *bev;
    struct evhttp_connection *evcon;
    struct event *timer;        /* adoption, then the deadline of the request that is being received */
    struct http_exchange *x;    /* the request that is being answered, or NULL */
    struct buf head;            /* the header that is coming in, as sent; keeps its memory */
    char request_id[HTTP_REQUEST_ID_MAX + 1]; /* of the request that is coming in, once its header is there */
    bool receiving;
    bool heading;               /* head is being collected */
    bool refused;               /* evhttp refuses this client: linger */
    struct conn *prev, *next;
};

/* A socket whose answer is given and whose client still sends. */
struct lingering {
    struct http *http;
    struct event *ev;
    int fd;
    size_t n_bytes;
    uint64_t end_ns;
    struct lingering *prev, *next;
};

struct http_exchange {
    struct http *http;
    struct evhttp_request *req;
    struct conn *conn;
    char *path;
    void *user;
};

struct watch {
    struct event *ev;
    void (*fn)(void *arg);
    bool (*tick)(void *arg);
    void *arg;
    uint32_t period_ms;
    struct watch *next;
};

struct http {
    struct http_config cfg;
    struct event_base *base;
    struct evhttp *ev;
    struct evhttp_bound_socket *bound;
    struct conn *conns;
    struct watch *watches;
    struct lingering *lingers;
    unsigned n_conns, n_lingers;
    uint16_t port;
    bool full, closing;
};

const char *http_status_text(int status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 429: return "Too Many Requests";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    default: return status >= 500 ? "Internal Server Error" : "Error";
    }
}

static const char *error_type(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 503: return "unavailable_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void http_error_body(struct buf *out, int status, const char *param, const char *message)
{
    buf_puts(out, "{\"error\":{\"message\":");
    buf_json_str(out, message, strlen(message));
    buf_printf(out, ",\"type\":\"%s\",\"param\":", error_type(status));
    if (param)
        buf_json_str(out, param, strlen(param));
    else
        buf_puts(out, "null");
    buf_printf(out, ",\"code\":%d}}", status);
}

/* ---- connections ---- */

static const char *refusal_text(int status)
{
    switch (status) {
    case 413: return "the request body is over the server's limit (body_max)";
    case 408: return "the request did not arrive whole within the server's time limit (http.timeout_ms)";
    case 400: return "this is no well-formed HTTP/1.1 request";
    case 501: return "this HTTP method is not supported";
    default: return "the server could not read this request";
    }
}

static void new_request_id(char out[HTTP_REQUEST_ID_MAX + 1])
{
    uint64_t r[2];
    rng_system(r, sizeof(r));
    snprintf(out, HTTP_REQUEST_ID_MAX + 1, "req-%016llx%016llx", (unsigned long long)r[0], (unsigned long long)r[1]);
}

/* The client's own id where it is short and printable, or a new one. */
static void choose_request_id(const char *given, char out[HTTP_REQUEST_ID_MAX + 1])
{
    size_t n = given ? strlen(given) : 0;
    bool good = n > 0 && n <= HTTP_REQUEST_ID_MAX;
    for (size_t i = 0; good && i < n; i++)
        good = given[i] >= 0x20 && given[i] <= 0x7e;
    if (good)
        memcpy(out, given, n + 1);
    else
        new_request_id(out);
}

static void refusal(struct conn *c, struct buf *out, int status, const char *text)
{
    struct buf body;
    buf_init(&body);
    http_error_body(&body, status, NULL, text);
    if (!c->request_id[0])
        new_request_id(c->request_id);
    buf_printf(out, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nX-Request-Id: %s\r\n%sConnection: close\r\n\r\n",
               status, http_status_text(status), body.len, c->request_id, status == 401 ? "WWW-Authenticate: Bearer\r\n" : "");
    buf_append(out, body.data, body.len);
    buf_deinit(&body);
}

/* ---- lingering ---- */

static void linger_end(struct lingering *l)
{
    struct http *h = l->http;
    if (l->prev)
        l->prev->next = l->next;
    else
        h->lingers = l->next;
    if (l->next)
        l->next->prev = l->prev;
    h->n_lingers--;
    event_free(l->ev);
    close(l->fd);
    free(l);
}

static void linger_fired(evutil_socket_t fd, short what, void *arg)
{
    static char waste[64 << 10]; /* nothing reads it */
    struct lingering *l = arg;
    ssize_t n = what & EV_TIMEOUT ? 0 : recv(fd, waste, sizeof(waste), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    l->n_bytes += n > 0 ? (size_t)n : 0;
    if (n <= 0 || l->n_bytes > LINGER_BYTES_MAX || clock_ns() > l->end_ns)
        linger_end(l);
}

/* Shuts our side of a connection that is about to be closed and reads on through a descriptor of our own. */
static void linger_start(struct http *h, int sock)
{
    while (h->n_lingers >= LINGERS_MAX) {
        struct lingering *oldest = h->lingers;
        while (oldest->next)
            oldest = oldest->next;
        linger_end(oldest);
    }
    struct lingering *l = calloc(1, sizeof(*l));
    int fd = l ? fcntl(sock, F_DUPFD_CLOEXEC, 0) : -1;
    struct timeval tv = {LINGER_S, 0};
    if (fd >= 0)
        l->ev = event_new(h->base, fd, EV_READ | EV_PERSIST, linger_fired, l);
    if (fd < 0 || !l->ev || event_add(l->ev, &tv) != 0) { /* then the client may see a reset */
        if (l && l->ev)
            event_free(l->ev);
        if (fd >= 0)
            close(fd);
        free(l);
        return;
    }
    shutdown(fd, SHUT_WR);
    l->http = h;
    l->fd = fd;
    l->end_ns = clock_ns() + LINGER_TOTAL_S * NS_PER_S;
    l->next = h->lingers;
    if (l->next)
        l->next->prev = l;
    h->lingers = l;
    h->n_lingers++;
}

/* ---- what evhttp answers ---- */

/* evhttp's HTML error page, just added to the output, becomes JSON. Nothing of ours is ever text/html. */
static void output_changed(struct evbuffer *out, const struct evbuffer_cb_info *info, void *arg)
{
    struct conn *c = arg;
    if (info->n_added < 6)
        return;
    size_t len = evbuffer_get_length(out);
    struct evbuffer_ptr at;
    if (evbuffer_ptr_set(out, &at, len - info->n_added, EVBUFFER_PTR_SET) != 0)
        return;
    char head[6];
    if (evbuffer_copyout_from(out, &at, head, sizeof(head)) != sizeof(head) || memcmp(head, "<HTML>", 6) != 0)
        return;
    const char *all = (const char *)evbuffer_pullup(out, -1);
    const char *start = NULL; /* of the last answer in the buffer */
    for (const char *p = all; (p = memmem(p, len - (size_t)(p - all), "HTTP/1.", 7)) != NULL; p++)
        start = p;
    if (!start || len - (size_t)(start - all) < 13)
        return;
    int status = atoi(start + 9);
    struct buf b;
    buf_init(&b);
    buf_append(&b, all, (size_t)(start - all));
    refusal(c, &b, status, refusal_text(status));
    c->refused = true;
    evbuffer_drain(out, len);
    evbuffer_add(out, b.data, b.len);
    buf_deinit(&b);
}

static void conn_closed(struct evhttp_connection *evcon, void *arg)
{
    (void)evcon;
    struct conn *c = arg;
    struct http *h = c->http;
    struct http_exchange *x = c->x;
    if (x) {
        /* Where the client is the one who left, evhttp has taken the request off the connection and leaves it to us. */
        c->x = NULL;
        h->cfg.gone(h->cfg.arg, x);
        if (!evhttp_request_get_connection(x->req))
            evhttp_request_free(x->req);
        free(x->path);
        free(x);
    }
    if (c->refused && !h->closing)
        linger_start(h, bufferevent_getfd(c->bev));
    event_free(c->timer);
    buf_deinit(&c->head);
    if (c->prev)
        c->prev->next = c->next;
    else
        h->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    free(c);
    h->n_conns--;
    if (h->full && !h->closing) {
        h->full = false;
        evconnlistener_enable(evhttp_bound_socket_get_listener(h->bound));
    }
}

/* Ends a connection as if its client had left, from the loop: nothing of it is touched after the callback that is running now. */
static void conn_cut(struct conn *c)
{
    bufferevent_disable(c->bev, EV_READ);
    bufferevent_trigger_event(c->bev, BEV_EVENT_EOF | BEV_EVENT_READING, BEV_TRIG_DEFER_CALLBACKS);
}

/* Answers a request that is still coming in, and closes. What evhttp has not seen of it, it does not get to see. */
static void conn_refuse(struct conn *c, int status, const char *text)
{
    struct buf b;
    buf_init(&b);
    refusal(c, &b, status, text);
    int sock = bufferevent_getfd(c->bev);
    bool between = evbuffer_get_length(bufferevent_get_output(c->bev)) == 0; /* not in the middle of the answer before */
    if (between && send(sock, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        LOG(DEBUG, FRONT, "the client of a refused request is gone", "errno=%d", errno);
    buf_deinit(&b);
    c->heading = false;
    c->refused = true;
    struct evbuffer *in = bufferevent_get_input(c->bev);
    evbuffer_drain(in, evbuffer_get_length(in));
    conn_cut(c);
}

/* The connection ends with the answer that is being made; what comes behind its request is thrown away. */
static void conn_last(struct conn *c)
{
    http_set_header(c->x, "Connection", "close");
    c->refused = true;
}

static void conn_late(struct conn *c)
{
    if (c->receiving && !c->x)
        conn_refuse(c, 408, refusal_text(408));
}

/* ---- the header, before the body ---- */

/* The value of a field of a header, white space cut off its ends; "" where it is absent or does not fit. */
static void head_field(const struct buf *head, const char *name, char *out, size_t cap)
{
    size_t n = strlen(name);
    const char *end = head->data + head->len;
    out[0] = '\0';
    for (const char *line = head->data, *nl; line < end; line = nl + 1) {
        nl = memchr(line, '\n', (size_t)(end - line));
        if (!nl)
            return;
        if ((size_t)(nl - line) <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
            continue;
        const char *v = line + n + 1, *e = nl;
        while (v < e && (*v == ' ' || *v == '\t'))
            v++;
        while (e > v && (e[-1] == ' ' || e[-1] == '\t' || e[-1] == '\r'))
            e--;
        if ((size_t)(e - v) < cap) {
            memcpy(out, v, (size_t)(e - v));
            out[e - v] = '\0';
        }
        return;
    }
}

/* The header is whole; n_body bytes behind it are here, too. Where more is to come, the API may refuse now. */
static void head_complete(struct conn *c, size_t n_body)
{
    char authorization[4096], host[256], length[32], encoding[64], id[512], text[256];
    head_field(&c->head, "X-Request-Id", id, sizeof(id));
    choose_request_id(id, c->request_id);
    head_field(&c->head, "Content-Length", length, sizeof(length));
    head_field(&c->head, "Transfer-Encoding", encoding, sizeof(encoding));
    if (!encoding[0] && strtoull(length, NULL, 10) <= n_body)
        return;
    head_field(&c->head, "Authorization", authorization, sizeof(authorization));
    head_field(&c->head, "Host", host, sizeof(host));
    struct http_head h = {.authorization = authorization[0] ? authorization : NULL, .host = host[0] ? host : NULL};
    int status = c->http->cfg.admit ? c->http->cfg.admit(c->http->cfg.arg, &h, text, sizeof(text)) : 0;
    if (status && c->x)
        conn_last(c);
    else if (status)
        conn_refuse(c, status, text);
}

/* Collects the header's bytes as they come, before evhttp takes them out of the buffer. */
static void head_collect(struct conn *c, const struct evbuffer *in, size_t n_added)
{
    struct evbuffer_ptr at;
    size_t len = evbuffer_get_length(in), before = c->head.len;
    size_t n = MIN(n_added, HEADER_MAX + 4096 - MIN(before, (size_t)HEADER_MAX));
    if (!buf_reserve(&c->head, n + 1) || evbuffer_ptr_set((struct evbuffer *)in, &at, len - n_added, EVBUFFER_PTR_SET) != 0 ||
        evbuffer_copyout_from((struct evbuffer *)in, &at, c->head.data + before, n) != (ev_ssize_t)n) {
        c->heading = false;
        return;
    }
    c->head.len += n;
    c->head.data[c->head.len] = '\0';
    char *p = c->head.data;
    size_t i = before > 3 ? before - 3 : 0, empty = strspn(p, "\r\n"); /* lines before a request line */
    i = MAX(i, empty);
    for (; i < c->head.len; i++) {
        size_t end = p[i] != '\n' ? 0 : p[i + 1] == '\n' ? i + 2 : p[i + 1] == '\r' && p[i + 2] == '\n' ? i + 3 : 0;
        if (!end)
            continue;
        size_t n_body = c->head.len - end + (n_added - n);
        c->heading = false;
        c->head.len = end;
        head_complete(c, n_body);
        return;
    }
    if (c->head.len > HEADER_MAX)
        c->heading = false; /* evhttp refuses it */
}

static void conn_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct conn *c = arg;
    if (c->evcon) {
        conn_late(c);
        return;
    }
    bufferevent_data_cb rd, wr;
    bufferevent_event_cb ev;
    void *evcon = NULL;
    bufferevent_getcb(c->bev, &rd, &wr, &ev, &evcon);
    ASSERT(evcon != NULL);
    c->evcon = evcon;
    evhttp_connection_set_closecb(c->evcon, conn_closed, c);
    int one = 1;
    setsockopt(bufferevent_getfd(c->bev), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void input_changed(struct evbuffer *in, const struct evbuffer_cb_info *info, void *arg)
{
    struct conn *c = arg;
    if (info->n_added == 0)
        return;
    /* Nothing more is taken for a request before the answer is complete and sent: a client that does not read could fill the memory. */
    if ((c->x || evbuffer_get_length(bufferevent_get_output(c->bev))) && evbuffer_get_length(in) > PIPELINED_MAX) {
        conn_cut(c);
        return;
    }
    if (c->x || c->refused)
        return;
    if (!c->receiving) {
        struct timeval tv = {c->http->cfg.timeout_ms / 1000, (suseconds_t)(c->http->cfg.timeout_ms % 1000) * 1000};
        c->receiving = true;
        event_add(c->timer, &tv);
    }
    if (c->heading)
        head_collect(c, in, info->n_added);
}

static struct bufferevent *conn_create(struct event_base *base, void *arg)
{
    struct http *h = arg;
    struct bufferevent *bev = bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
    struct conn *c = calloc(1, sizeof(*c));
    if (!bev || !c)
        goto fail;
    c->http = h;
    c->bev = bev;
    c->heading = true;
    buf_init(&c->head);
    c->timer = evtimer_new(base, conn_timer, c);
    if (!c->timer || !evbuffer_add_cb(bufferevent_get_input(bev), input_changed, c) ||
        !evbuffer_add_cb(bufferevent_get_output(bev), output_changed, c))
        goto fail;
    c->next = h->conns;
    if (c->next)
        c->next->prev = c;
    h->conns = c;
    if (++h->n_conns >= h->cfg.connections_max && !h->full) {
        h->full = true;
        evconnlistener_disable(evhttp_bound_socket_get_listener(h->bound));
    }
    event_active(c->timer, EV_TIMEOUT, 0);
    return bev;
fail:
    if (c && c->timer)
        event_free(c->timer);
    free(c);
    if (bev)
        bufferevent_free(bev);
    return NULL; /* evhttp then makes a plain one, which http_handle refuses */
}

static struct conn *conn_find(struct http *h, const struct evhttp_connection *evcon)
{
    for (struct conn *c = h->conns; c; c = c->next)
        if (c->evcon == evcon)
            return c;
    return NULL;
}

/* ---- exchanges ---- */

/* evhttp reads on, without a callback for data, only once the first byte of an answer is written. A client that leaves while its answer is
 * still being made must be seen as soon, so the same is done when the request is there. */
static void watch_for_leaving(struct conn *c)
{
    bufferevent_data_cb rd, wr;
    bufferevent_event_cb ev;
    void *evcon;
    bufferevent_getcb(c->bev, &rd, &wr, &ev, &evcon);
    bufferevent_setcb(c->bev, NULL, wr, ev, evcon);
    bufferevent_enable(c->bev, EV_READ);
}

enum framing { FRAMING_PLAIN, FRAMING_BODY_UNREAD, FRAMING_AMBIGUOUS };

/* Whether everybody who reads the header sees the request's end where evhttp does. */
static enum framing framing_of(struct evhttp_request *req)
{
    unsigned n_lengths = 0, n_encodings = 0;
    bool odd = false, body = false;
    for (const struct evkeyval *f = evhttp_request_get_input_headers(req)->tqh_first; f; f = f->next.tqe_next) {
        size_t n = strlen(f->value);
        odd |= f->key[strcspn(f->key, " \t")] != '\0';
        if (strcasecmp(f->key, "Content-Length") == 0) {
            n_lengths++;
            body |= strspn(f->value, "0") < n;
            odd |= n == 0 || strspn(f->value, "0123456789") < n;
        } else if (strcasecmp(f->key, "Transfer-Encoding") == 0) {
            n_encodings++;
            body = true;
            odd |= strcasecmp(f->value, "chunked") != 0;
        }
    }
    if (odd || n_lengths + n_encodings > 1)
        return FRAMING_AMBIGUOUS;
    bool read = evhttp_request_get_command(req) & (EVHTTP_REQ_POST | EVHTTP_REQ_PUT | EVHTTP_REQ_PATCH); /* by evhttp */
    return body && !read ? FRAMING_BODY_UNREAD : FRAMING_PLAIN;
}

static void handle(struct evhttp_request *req, void *arg)
{
    struct http *h = arg;
    struct conn *c = conn_find(h, evhttp_request_get_connection(req));
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(req);
    const char *path = uri ? evhttp_uri_get_path(uri) : NULL;
    struct http_exchange *x = c && path ? calloc(1, sizeof(*x)) : NULL;
    if (x)
        x->path = evhttp_uridecode(path, 0, NULL);
    if (!x || !x->path) {
        free(x);
        evhttp_send_error(req, path ? HTTP_SERVUNAVAIL : HTTP_BADREQUEST, NULL);
        return;
    }
    evtimer_del(c->timer);
    c->receiving = false;
    struct timeval write_max = {60, 0}; /* an answer may take its time; a client that reads nothing may not */
    bufferevent_set_timeouts(c->bev, NULL, &write_max);
    x->http = h;
    x->req = req;
    x->conn = c;
    c->x = x;
    watch_for_leaving(c);
    choose_request_id(http_header(x, "X-Request-Id"), c->request_id);
    http_set_header(x, "X-Request-Id", c->request_id);
    enum framing framing = framing_of(req);
    if (framing != FRAMING_PLAIN)
        conn_last(c);
    if (framing != FRAMING_AMBIGUOUS) {
        h->cfg.handle(h->cfg.arg, x);
        return;
    }
    struct buf body;
    buf_init(&body);
    http_error_body(&body, 400, NULL, "the header does not say clearly where the body ends (one Content-Length of digits, or Transfer-Encoding: chunked)");
    http_reply(x, 400, "application/json", body.data, body.len);
    buf_deinit(&body);
}

enum http_method http_method(const struct http_exchange *x)
{
    switch (evhttp_request_get_command(x->req)) {
    case EVHTTP_REQ_GET: return HTTP_GET;
    case EVHTTP_REQ_POST: return HTTP_POST;
    case EVHTTP_REQ_HEAD: return HTTP_HEAD;
    default: return HTTP_OTHER;
    }
}

const char *http_path(const struct http_exchange *x)
{
    return x->path;
}

const char *http_header(const struct http_exchange *x, const char *name)
{
    return evhttp_find_header(evhttp_request_get_input_headers(x->req), name);
}

const char *http_body(const struct http_exchange *x, size_t *len)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(x->req);
    *len = evbuffer_get_length(in);
    return *len ? (const char *)evbuffer_pullup(in, -1) : "";
}

void http_body_done(struct http_exchange *x)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(x->req);
    evbuffer_drain(in, evbuffer_get_length(in));
}

void http_set_header(struct http_exchange *x, const char *name, const char *value)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(x->req);
    evhttp_remove_header(headers, name);
    evhttp_add_header(headers, name, value);
}

void http_set_user(struct http_exchange *x, void *user)
{
    x->user = user;
}

void *http_user(const struct http_exchange *x)
{
    return x->user;
}

static void exchange_end(struct http_exchange *x)
{
    struct timeval idle = {x->http->cfg.timeout_ms / 1000 + 1, 0};
    bufferevent_set_timeouts(x->conn->bev, &idle, &idle);
    struct evbuffer *in = bufferevent_get_input(x->conn->bev);
    x->conn->request_id[0] = 0;
    x->conn->heading = true;
    buf_clear(&x->conn->head);
    if (evbuffer_get_length(in) && !x->conn->refused)
        head_collect(x->conn, in, evbuffer_get_length(in)); /* a request came behind this one */
    x->conn->x = NULL;
    free(x->path);
    free(x);
}

void http_reply(struct http_exchange *x, int status, const char *content_type, const char *body, size_t len)
{
    struct evhttp_request *req = x->req;
    http_set_header(x, "Content-Type", content_type);
    struct evbuffer *out = evhttp_request_get_output_buffer(req);
    evbuffer_add(out, body, len);
    exchange_end(x);
    evhttp_send_reply(req, status, http_status_text(status), NULL);
}

void http_begin(struct http_exchange *x, int status, const char *content_type)
{
    http_set_header(x, "Content-Type", content_type);
    http_set_header(x, "Cache-Control", "no-cache");
    evhttp_send_reply_start(x->req, status, http_status_text(status));
}

void http_chunk(struct http_exchange *x, const char *p, size_t len)
{
    struct bufferevent *bev = x->conn->bev;
    if (evbuffer_get_length(bufferevent_get_output(bev)) > UNREAD_MAX) {
        LOG(INFO, FRONT, "a client does not read its answer: cut off", "unread_bytes=%zu", evbuffer_get_length(bufferevent_get_output(bev)));
        conn_cut(x->conn); /* a client that does not read; the close callback ends the exchange */
        return;
    }
    struct evbuffer *out = evbuffer_new();
    if (!out)
        return;
    evbuffer_add(out, p, len);
    evhttp_send_reply_chunk(x->req, out);
    evbuffer_free(out);
}

void http_end(struct http_exchange *x)
{
    struct evhttp_request *req = x->req;
    exchange_end(x);
    evhttp_send_reply_end(req);
}

/* ---- the server ---- */

static void watch_fired(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct watch *w = arg;
    if (w->fn) {
        w->fn(w->arg);
    } else if (w->tick(w->arg)) {
        struct timeval tv = {w->period_ms / 1000, (suseconds_t)(w->period_ms % 1000) * 1000};
        event_add(w->ev, &tv);
    }
}

enum err http_watch_fd(struct http *h, int fd, void (*fn)(void *arg), void *arg)
{
    struct watch *w = calloc(1, sizeof(*w));
    if (!w)
        return err_set(ERR_NOMEM, "no memory to watch a descriptor");
    *w = (struct watch){.fn = fn, .arg = arg, .next = h->watches};
    w->ev = event_new(h->base, fd, EV_READ | EV_PERSIST, watch_fired, w);
    if (!w->ev || event_add(w->ev, NULL) != 0) {
        if (w->ev)
            event_free(w->ev);
        free(w);
        return err_set(ERR_NOMEM, "no memory to watch a descriptor");
    }
    h->watches = w;
    return ERR_OK;
}

enum err http_timer(struct http *h, uint32_t period_ms, bool (*fn)(void *arg), void *arg)
{
    struct watch *w = h->watches;
    while (w && (w->tick != fn || w->arg != arg))
        w = w->next;
    if (!w) {
        w = calloc(1, sizeof(*w));
        if (!w)
            return err_set(ERR_NOMEM, "no memory for a timer");
        *w = (struct watch){.tick = fn, .arg = arg, .next = h->watches};
        w->ev = evtimer_new(h->base, watch_fired, w);
        if (!w->ev) {
            free(w);
            return err_set(ERR_NOMEM, "no memory for a timer");
        }
        h->watches = w;
    }
    w->period_ms = period_ms;
    if (!evtimer_pending(w->ev, NULL)) {
        struct timeval tv = {period_ms / 1000, (suseconds_t)(period_ms % 1000) * 1000};
        event_add(w->ev, &tv);
    }
    return ERR_OK;
}

enum err http_create(const struct http_config *cfg, struct http **out)
{
    struct http *h = calloc(1, sizeof(*h));
    if (!h)
        return err_set(ERR_NOMEM, "no memory for the HTTP server");
    h->cfg = *cfg;
    enum err e = ERR_NOMEM;
    h->base = event_base_new();
    h->ev = h->base ? evhttp_new(h->base) : NULL;
    if (!h->ev) {
        err_set(ERR_NOMEM, "no memory for the HTTP server");
        goto fail;
    }
    evhttp_set_max_headers_size(h->ev, HEADER_MAX);
    evhttp_set_max_body_size(h->ev, (ev_ssize_t)cfg->body_max);
    evhttp_set_timeout(h->ev, (int)cfg->timeout_ms / 1000 + 2); /* behind our own, which answers before it closes */
    evhttp_set_allowed_methods(h->ev, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_OPTIONS | EVHTTP_REQ_PUT |
                                          EVHTTP_REQ_DELETE | EVHTTP_REQ_PATCH);
    evhttp_set_default_content_type(h->ev, NULL);
    evhttp_set_gencb(h->ev, handle, h);
    evhttp_set_bevcb(h->ev, conn_create, h);
    errno = 0;
    h->bound = evhttp_bind_socket_with_handle(h->ev, cfg->host, cfg->port);
    if (!h->bound) {
        if (errno == EADDRINUSE)
            e = err_set(ERR_ADDR_IN_USE, "http.port: %s:%u is in use by another process; choose another --port (0 takes any free one)",
                        cfg->host, cfg->port);
        else
            e = err_set(ERR_INVALID, "http.host: cannot listen on %s:%u: %s", cfg->host, cfg->port, strerror(errno ? errno : EINVAL));
        goto fail;
    }
    struct sockaddr_storage sa;
    socklen_t sa_len = sizeof(sa);
    if (getsockname(evhttp_bound_socket_get_fd(h->bound), (struct sockaddr *)&sa, &sa_len) == 0)
        h->port = ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port : ((struct sockaddr_in *)&sa)->sin_port);
    *out = h;
    return ERR_OK;
fail:
    http_destroy(&h);
    return e;
}

void http_destroy(struct http **hp)
{
    struct http *h = *hp;
    if (!h)
        return;
    h->closing = true;
    for (struct watch *w = h->watches, *next; w; w = next) {
        next = w->next;
        event_free(w->ev);
        free(w);
    }
    while (h->lingers)
        linger_end(h->lingers);
    if (h->ev)
        evhttp_free(h->ev); /* closes connections: conn_closed frees their records */
    if (h->base)
        event_base_free(h->base);
    free(h);
    *hp = NULL;
}

uint16_t http_port(const struct http *h)
{
    return h->port;
}

void http_run(struct http *h)
{
    event_base_loop(h->base, EVLOOP_NO_EXIT_ON_EMPTY);
}

void http_stop(struct http *h)
{
    event_base_loopbreak(h->base);
}
