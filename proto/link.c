/* ZeroMQ sockets with the options that make them safe (the defaults are not), and messages over them.
 *
 * Server: ROUTER, CURVE server, ZAP domain enforced. Client: DEALER, CURVE client. A message is the routing frame (server side only) and one
 * frame of codec bytes. Every call returns at once but link_client_wait. Buffers for encoding live in the link and are reused.
 *
 * No socket monitor on a server: an undrained one lets strangers stall it. A client has one, for the single event "key refused": after it the
 * connection has ended for good, so at most one is ever queued, and every call looks at it.
 * The routing id of a peer is left to the ROUTER and ROUTER_HANDOVER stays off: an id that a client chose itself and that is taken is ignored
 * by ZeroMQ, so nobody takes over another's; a peer that comes back has a new id. Who a peer is says its key, with every message.
 *
 * Threading: a link belongs to one thread at a time; the context may be shared. The number of open links is atomic. */
#include "proto/link.h"

#include "base/check.h"
#include "base/clock.h"
#include "proto/link_ipc.h"
#include "proto/link_zap.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zmq.h>

/* The library has it since 4.3.0; its header hides the name among the drafts. */
#ifndef ZMQ_ZAP_ENFORCE_DOMAIN
#define ZMQ_ZAP_ENFORCE_DOMAIN 93
#endif

enum {
    QUEUE_MESSAGES = 1024,      /* per peer and direction */
    HANDSHAKE_MS = 3000,        /* a connection that has not proved its key by then is closed */
    BACKLOG = 512,
    RECONNECT_MS = 50, RECONNECT_MS_MAX = 1000,
    HEARTBEAT_MS = 2000, HEARTBEAT_TIMEOUT_MS = 6000, /* finds dead TCP connections; the work loops' own heartbeat is another thing */
    LINGER_CLOSE_MS = 100,      /* a last word may still leave when a link is closed */
    ENDPOINT_MAX = 320, ENDPOINTS = 4,
};

struct link_context {
    void *zmq;
    struct link_zap *zap; /* coordinator only */
    struct key_file key;  /* of the servers */
    atomic_int open;
    atomic_uint monitors;
};
struct link_endpoint {
    char name[ENDPOINT_MAX];
    const char *path; /* of an ipc endpoint, inside name; else NULL */
    int lock_fd;
};
struct link_server {
    struct link_context *context;
    void *sock;
    struct link_endpoint at[ENDPOINTS];
    unsigned n_at;
    struct buf out;
};
struct link_client {
    struct link_context *context;
    void *sock, *monitor;
    char endpoint[ENDPOINT_MAX], key_name[64];
    bool refused;
    struct buf out;
};

/* --- context --- */

enum err link_context_create(const struct keys *keys, const char *state_dir, struct link_context **out)
{
    enum err e;
    *out = NULL;
    if (!zmq_has("curve"))
        return err_set(ERR_UNSUPPORTED, "this libzmq was built without CURVE");
    struct link_context *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(ERR_NOMEM, "no memory for the ZeroMQ context");
    c->zmq = zmq_ctx_new();
    if (!c->zmq) {
        e = err_set(ERR_NOMEM, "no ZeroMQ context: %s", zmq_strerror(zmq_errno()));
        goto fail;
    }
    if (keys) {
        c->key = keys->server;
        TRY_GOTO(link_zap_start(c->zmq, keys, state_dir, &c->zap), fail);
    }
    *out = c;
    return ERR_OK;
fail:
    link_context_destroy(&c);
    return e;
}

void link_context_destroy(struct link_context **c)
{
    struct link_context *x = *c;
    if (!x)
        return;
    ASSERT(atomic_load(&x->open) == 0);
    if (x->zmq)
        zmq_ctx_shutdown(x->zmq);
    link_zap_stop(&x->zap);
    while (x->zmq && zmq_ctx_term(x->zmq) != 0 && zmq_errno() == EINTR)
        ;
    keys_wipe(&x->key);
    free(x);
    *c = NULL;
}

uint64_t link_refused(const struct link_context *c)
{
    return link_zap_refused(c->zap);
}

/* --- options --- */

struct int_option {
    int option, value;
};

static enum err set_ints(void *sock, const struct int_option *o, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (zmq_setsockopt(sock, o[i].option, &o[i].value, sizeof o[i].value) != 0)
            return err_set(ERR_INTERNAL, "ZeroMQ option %d: %s", o[i].option, zmq_strerror(zmq_errno()));
    return ERR_OK;
}

static enum err set_str(void *sock, int option, const char *s)
{
    if (zmq_setsockopt(sock, option, s, strlen(s)) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ option %d: %s", option, zmq_strerror(zmq_errno()));
    return ERR_OK;
}

static enum err set_common(void *sock)
{
    const struct int_option options[] = {
        {ZMQ_SNDHWM, QUEUE_MESSAGES}, {ZMQ_RCVHWM, QUEUE_MESSAGES}, {ZMQ_LINGER, 0}, {ZMQ_SNDTIMEO, 0}, {ZMQ_RCVTIMEO, 0},
        {ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS}, {ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS}, {ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS},
        {ZMQ_HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS},
    };
    int64_t max = MSG_FRAME_MAX;
    TRY(set_ints(sock, options, ARRAY_LEN(options)));
    if (zmq_setsockopt(sock, ZMQ_MAXMSGSIZE, &max, sizeof max) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ option MAXMSGSIZE: %s", zmq_strerror(zmq_errno()));
    return ERR_OK;
}

static enum err set_ipv6(void *sock, const char *endpoint)
{
    const struct int_option on = {ZMQ_IPV6, 1};
    return strchr(endpoint, '[') ? set_ints(sock, &on, 1) : ERR_OK;
}

/* ZeroMQ would cut a port of 99999 down to 16 bits and bind that. */
static enum err check_endpoint(const char *endpoint, unsigned port_min)
{
    const char *colon = strrchr(endpoint, ':');
    unsigned long port = 0;
    char *end = NULL;
    if (strncmp(endpoint, "ipc:///", 7) == 0)
        return ERR_OK;
    if (strncmp(endpoint, "tcp://", 6) == 0 && colon > endpoint + 6) {
        if (port_min == 0 && strcmp(colon, ":*") == 0)
            return ERR_OK;
        if (colon[1] >= '0' && colon[1] <= '9')
            port = strtoul(colon + 1, &end, 10);
        if (end && *end == '\0' && port >= port_min && port <= 65535)
            return ERR_OK;
    }
    return err_set(ERR_INVALID, "'%.200s' is not an endpoint: ipc:///PATH or tcp://HOST:PORT with a port up to 65535", endpoint);
}

static void close_sock(void *sock)
{
    int linger = LINGER_CLOSE_MS;
    if (!sock)
        return;
    zmq_setsockopt(sock, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(sock);
}

static int sock_fd(void *sock)
{
    int fd = -1;
    size_t len = sizeof fd;
    int rc = zmq_getsockopt(sock, ZMQ_FD, &fd, &len);
    ASSERT(rc == 0);
    return fd;
}

/* --- server --- */

static enum err bind_error(const char *endpoint)
{
    switch (zmq_errno()) {
    case EADDRINUSE:
        return err_set(ERR_ADDR_IN_USE, "%s is in use by another process; choose another port", endpoint);
    case EACCES:
        return err_set(ERR_FORBIDDEN, "%s: not permitted to bind there", endpoint);
    case ENODEV:
    case EADDRNOTAVAIL:
        return err_set(ERR_INVALID, "%s: not an address or network interface of this host", endpoint);
    case EINVAL:
    case EPROTONOSUPPORT:
        return err_set(ERR_INVALID, "'%s' is not an endpoint: ipc:///PATH or tcp://ADDRESS:PORT", endpoint);
    default:
        return err_set(ERR_IO, "cannot bind %s: %s", endpoint, zmq_strerror(zmq_errno()));
    }
}

enum err link_server_bind(struct link_server *s, const char *endpoint)
{
    enum err e = ERR_OK;
    if (s->n_at == ENDPOINTS)
        return err_set(ERR_TOO_BIG, "%s: at most %d endpoints a server", endpoint, (int)ENDPOINTS);
    struct link_endpoint *at = &s->at[s->n_at];
    *at = (struct link_endpoint){.lock_fd = -1};
    bool ipc = strncmp(endpoint, "ipc://", 6) == 0;
    TRY(check_endpoint(endpoint, 0));
    if (ipc)
        TRY(link_ipc_claim(endpoint + 6, &at->lock_fd));
    TRY_GOTO(set_ipv6(s->sock, endpoint), fail);
    if (zmq_bind(s->sock, endpoint) != 0) {
        e = bind_error(endpoint);
        goto fail;
    }
    size_t len = sizeof at->name;
    if (zmq_getsockopt(s->sock, ZMQ_LAST_ENDPOINT, at->name, &len) != 0) {
        e = err_set(ERR_INTERNAL, "%s: %s", endpoint, zmq_strerror(zmq_errno()));
        goto fail;
    }
    if (ipc) {
        at->path = at->name + 6;
        chmod(at->path, 0600); /* the directory is closed already */
    }
    s->n_at++;
    return ERR_OK;
fail:
    if (ipc)
        link_ipc_release(endpoint + 6, at->lock_fd);
    return e;
}

enum err link_server_open(struct link_context *c, const char *endpoint, unsigned roles, struct link_server **out)
{
    enum err e;
    char domain[32];
    const struct int_option options[] = {
        {ZMQ_ROUTER_MANDATORY, 1}, {ZMQ_ROUTER_HANDOVER, 0}, {ZMQ_BACKLOG, BACKLOG}, {ZMQ_CURVE_SERVER, 1}, {ZMQ_ZAP_ENFORCE_DOMAIN, 1},
    };
    *out = NULL;
    ASSERT(c->zap && roles != 0); /* without the handler CURVE lets every key in */
    struct link_server *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(ERR_NOMEM, "no memory for a server");
    s->context = c;
    atomic_fetch_add(&c->open, 1);
    buf_init(&s->out);
    s->sock = zmq_socket(c->zmq, ZMQ_ROUTER);
    if (!s->sock) {
        e = err_set(ERR_UNAVAILABLE, "no ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
        goto fail;
    }
    link_zap_domain(roles, domain, sizeof domain);
    TRY_GOTO(set_common(s->sock), fail);
    TRY_GOTO(set_str(s->sock, ZMQ_ZAP_DOMAIN, domain), fail);
    TRY_GOTO(set_ints(s->sock, options, ARRAY_LEN(options)), fail);
    TRY_GOTO(set_str(s->sock, ZMQ_CURVE_SECRETKEY, c->key.secret), fail);
    TRY_GOTO(link_server_bind(s, endpoint), fail);
    *out = s;
    return ERR_OK;
fail:
    link_server_close(&s);
    return e;
}

void link_server_close(struct link_server **s)
{
    struct link_server *x = *s;
    if (!x)
        return;
    close_sock(x->sock);
    for (unsigned i = 0; i < x->n_at; i++)
        if (x->at[i].path)
            link_ipc_release(x->at[i].path, x->at[i].lock_fd);
    buf_deinit(&x->out);
    atomic_fetch_sub(&x->context->open, 1);
    free(x);
    *s = NULL;
}

const char *link_server_endpoint_at(const struct link_server *s, unsigned n)
{
    return n < s->n_at ? s->at[n].name : NULL;
}

const char *link_server_endpoint(const struct link_server *s)
{
    return s->at[0].name;
}

int link_server_fd(const struct link_server *s)
{
    return sock_fd(s->sock);
}

static enum err send_error(const char *to)
{
    switch (zmq_errno()) {
    case EAGAIN:
        return err_set(ERR_BUSY, "the queue to %s is full (%d messages)", to, (int)QUEUE_MESSAGES);
    case EHOSTUNREACH:
        return err_set(ERR_PEER_LOST, "%s is not connected any more", to);
    default:
        return err_set(ERR_IO, "cannot send to %s: %s", to, zmq_strerror(zmq_errno()));
    }
}

enum err link_server_send_bytes(struct link_server *s, const struct link_peer *to, const void *bytes, size_t len)
{
    if (zmq_send(s->sock, to->id, to->id_len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return send_error(to->name);
    /* The first frame has chosen the peer and taken its place in the queue: this one does not block. */
    if (zmq_send(s->sock, bytes, len, ZMQ_DONTWAIT) < 0)
        return send_error(to->name);
    return ERR_OK;
}

enum err link_server_send(struct link_server *s, const struct link_peer *to, const struct msg *m)
{
    buf_clear(&s->out);
    TRY(codec_encode(m, &s->out));
    return link_server_send_bytes(s, to, s->out.data, s->out.len);
}

/* Frames past the expected one: taken and dropped. True when there were any. */
static bool drain_frames(void *sock)
{
    bool any = false;
    int more = 1;
    for (size_t size = sizeof more; zmq_getsockopt(sock, ZMQ_RCVMORE, &more, &size) == 0 && more;) {
        zmq_msg_t spare;
        any = true;
        zmq_msg_init(&spare);
        int rc = zmq_msg_recv(&spare, sock, ZMQ_DONTWAIT);
        zmq_msg_close(&spare);
        if (rc < 0)
            break;
    }
    return any;
}

static enum err recv_error(void)
{
    if (zmq_errno() == EAGAIN || zmq_errno() == EINTR)
        return ERR_UNAVAILABLE;
    return err_set(ERR_IO, "cannot receive: %s", zmq_strerror(zmq_errno()));
}

/* The payload and the end of the message. A peer's bytes that do not decode are ERR_PROTOCOL, whatever is wrong with them. */
static enum err decode_payload(zmq_msg_t *frame, bool more, const char *from, struct arena *arena, struct msg *out)
{
    if (more)
        return err_set(ERR_PROTOCOL, "%s sent a message of more than one frame", from);
    enum err e = codec_decode(zmq_msg_data(frame), zmq_msg_size(frame), arena, out);
    return e == ERR_TOO_BIG ? ERR_PROTOCOL : e;
}

enum err link_server_recv(struct link_server *s, struct arena *arena, struct link_peer *from, struct msg *out)
{
    zmq_msg_t frame;
    enum err e;
    memset(from, 0, sizeof *from);
    memset(out, 0, sizeof *out);
    int n = zmq_recv(s->sock, from->id, sizeof from->id, ZMQ_DONTWAIT);
    if (n < 0)
        return recv_error();
    from->id_len = (uint32_t)MIN((size_t)n, sizeof from->id);
    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, s->sock, ZMQ_DONTWAIT) < 0) {
        e = recv_error();
        goto done;
    }
    bool more = drain_frames(s->sock);
    if (!link_zap_user(zmq_msg_gets(&frame, "User-Id"), &from->role, from->name))
        e = err_set(ERR_PROTOCOL, "a message without an authenticated sender"); /* cannot be: ZAP is enforced */
    else if ((size_t)n > sizeof from->id)
        e = err_set(ERR_PROTOCOL, "%s chose a routing id of %d bytes, at most %zu", from->name, n, sizeof from->id);
    else
        e = decode_payload(&frame, more, from->name, arena, out);
done:
    zmq_msg_close(&frame);
    return e;
}

/* --- client --- */

/* The one event that the monitor reports; see the top of the file. */
static enum err watch_refusal(struct link_client *l)
{
    char name[64];
    const struct int_option options[] = {{ZMQ_LINGER, 0}, {ZMQ_RCVTIMEO, 0}};
    snprintf(name, sizeof name, "inproc://racklm.refused.%u", atomic_fetch_add(&l->context->monitors, 1));
    if (zmq_socket_monitor(l->sock, name, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ monitor: %s", zmq_strerror(zmq_errno()));
    l->monitor = zmq_socket(l->context->zmq, ZMQ_PAIR);
    if (!l->monitor)
        return err_set(ERR_UNAVAILABLE, "no ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
    TRY(set_ints(l->monitor, options, ARRAY_LEN(options)));
    if (zmq_connect(l->monitor, name) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ monitor: %s", zmq_strerror(zmq_errno()));
    return ERR_OK;
}

enum err link_client_open(struct link_context *c, const char *endpoint, const struct key_file *key, struct link_client **out)
{
    enum err e;
    const struct int_option options[] = {{ZMQ_RECONNECT_IVL, RECONNECT_MS}, {ZMQ_RECONNECT_IVL_MAX, RECONNECT_MS_MAX},
                                         {ZMQ_CONNECT_TIMEOUT, HANDSHAKE_MS}};
    *out = NULL;
    if (!key->server_pub[0])
        return err_set(ERR_INVALID, "the key %s does not name its coordinator's public key: it is not a peer's key file", key->name);
    if (strlen(endpoint) >= ENDPOINT_MAX)
        return err_set(ERR_INVALID, "%.200s...: the endpoint is too long", endpoint);
    TRY(check_endpoint(endpoint, 1));
    struct link_client *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(ERR_NOMEM, "no memory for a client");
    l->context = c;
    atomic_fetch_add(&c->open, 1);
    buf_init(&l->out);
    snprintf(l->endpoint, sizeof l->endpoint, "%s", endpoint);
    snprintf(l->key_name, sizeof l->key_name, "%s", key->name);
    l->sock = zmq_socket(c->zmq, ZMQ_DEALER);
    if (!l->sock) {
        e = err_set(ERR_UNAVAILABLE, "no ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
        goto fail;
    }
    TRY_GOTO(set_common(l->sock), fail);
    TRY_GOTO(set_ints(l->sock, options, ARRAY_LEN(options)), fail);
    TRY_GOTO(set_str(l->sock, ZMQ_CURVE_SERVERKEY, key->server_pub), fail);
    TRY_GOTO(set_str(l->sock, ZMQ_CURVE_PUBLICKEY, key->pub), fail);
    TRY_GOTO(set_str(l->sock, ZMQ_CURVE_SECRETKEY, key->secret), fail);
    TRY_GOTO(set_ipv6(l->sock, endpoint), fail);
    TRY_GOTO(watch_refusal(l), fail);
    if (zmq_connect(l->sock, endpoint) != 0) {
        e = zmq_errno() == ENAMETOOLONG ? err_set(ERR_INVALID, "%s: the path is too long for a socket (107 bytes)", endpoint)
                                        : err_set(ERR_INVALID, "'%s' is not an endpoint: ipc:///PATH or tcp://HOST:PORT", endpoint);
        goto fail;
    }
    *out = l;
    return ERR_OK;
fail:
    link_client_close(&l);
    return e;
}

void link_client_close(struct link_client **l)
{
    struct link_client *x = *l;
    if (!x)
        return;
    if (x->monitor) {
        zmq_socket_monitor(x->sock, NULL, 0);
        zmq_close(x->monitor);
    }
    close_sock(x->sock);
    buf_deinit(&x->out);
    atomic_fetch_sub(&x->context->open, 1);
    free(x);
    *l = NULL;
}

int link_client_fd(const struct link_client *l)
{
    return sock_fd(l->sock);
}

static enum err refused(struct link_client *l)
{
    uint8_t event[16];
    if (!l->refused && zmq_recv(l->monitor, event, sizeof event, ZMQ_DONTWAIT) >= 0) {
        drain_frames(l->monitor);
        l->refused = true;
    }
    if (!l->refused)
        return ERR_OK;
    return err_set(ERR_AUTH, "%s refused the key '%s': it is not in the coordinator's allow-list, or not with this role (racklm key)",
                   l->endpoint, l->key_name);
}

enum err link_client_send(struct link_client *l, const struct msg *m)
{
    TRY(refused(l));
    buf_clear(&l->out);
    TRY(codec_encode(m, &l->out));
    if (zmq_send(l->sock, l->out.data, l->out.len, ZMQ_DONTWAIT) < 0)
        return send_error(l->endpoint);
    return ERR_OK;
}

enum err link_client_recv(struct link_client *l, struct arena *arena, struct msg *out)
{
    zmq_msg_t frame;
    enum err e;
    memset(out, 0, sizeof *out);
    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, l->sock, ZMQ_DONTWAIT) < 0) {
        e = recv_error();
        if (e == ERR_UNAVAILABLE && refused(l) != ERR_OK)
            e = ERR_AUTH;
    } else {
        bool more = drain_frames(l->sock);
        e = decode_payload(&frame, more, l->endpoint, arena, out);
    }
    zmq_msg_close(&frame);
    return e;
}

enum err link_client_wait(struct link_client *l, struct arena *arena, uint32_t timeout_ms, struct msg *out)
{
    uint64_t end = clock_ns() + timeout_ms * NS_PER_MS;
    for (;;) {
        enum err e = link_client_recv(l, arena, out);
        if (e != ERR_UNAVAILABLE)
            return e;
        uint64_t now = clock_ns();
        if (now >= end)
            return err_set(ERR_TIMEOUT, "no answer from %s within %u ms; is the coordinator running?", l->endpoint, timeout_ms);
        zmq_pollitem_t items[2] = {{.socket = l->sock, .events = ZMQ_POLLIN}, {.socket = l->monitor, .events = ZMQ_POLLIN}};
        zmq_poll(items, 2, (long)((end - now + NS_PER_MS - 1) / NS_PER_MS));
    }
}
