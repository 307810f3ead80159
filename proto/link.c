/* ZeroMQ sockets with the options that make them safe (the defaults are not), and messages over them.
 *
 * Here are the context and the servers; link_client.c has the clients. Server: ROUTER, CURVE server, ZAP domain
 * enforced. A message is the routing frame and one frame of codec bytes. Every call returns at once. The buffer for
 * encoding lives in the link and is reused.
 *
 * No socket monitor: an undrained one lets strangers stall the server.
 * The routing id of a peer is left to the ROUTER and ROUTER_HANDOVER stays off: an id that a client chose itself and
 * that is taken is ignored by ZeroMQ, so nobody takes over another's; a peer that comes back has a new id. Who a peer
 * is says its key, with every message.
 *
 * Threading: a link belongs to one thread at a time; the context may be shared. The number of open links is atomic. */
#include "proto/link_internal.h"

#include "base/check.h"
#include "proto/link_ipc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The library has it since 4.3.0; its header hides the name among the drafts. */
#ifndef ZMQ_ZAP_ENFORCE_DOMAIN
#define ZMQ_ZAP_ENFORCE_DOMAIN 93
#endif

enum { BACKLOG = 512, LINGER_CLOSE_MS = 100 /* a last word may still leave when a link is closed */, ENDPOINTS = 4 };

struct link_endpoint {
    char name[LINK_ENDPOINT_MAX];
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

enum err link_set_ints(void *sock, const struct link_option *o, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (zmq_setsockopt(sock, o[i].option, &o[i].value, sizeof o[i].value) != 0)
            return err_set(ERR_INTERNAL, "ZeroMQ option %d: %s", o[i].option, zmq_strerror(zmq_errno()));
    return ERR_OK;
}

enum err link_set_str(void *sock, int option, const char *s)
{
    if (zmq_setsockopt(sock, option, s, strlen(s)) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ option %d: %s", option, zmq_strerror(zmq_errno()));
    return ERR_OK;
}

enum err link_set_common(void *sock)
{
    const struct link_option options[] = {
        {ZMQ_SNDHWM, LINK_QUEUE_MESSAGES},
        {ZMQ_RCVHWM, LINK_QUEUE_MESSAGES},
        {ZMQ_LINGER, 0},
        {ZMQ_SNDTIMEO, 0},
        {ZMQ_RCVTIMEO, 0},
        {ZMQ_HANDSHAKE_IVL, LINK_HANDSHAKE_MS},
        {ZMQ_HEARTBEAT_IVL, LINK_HEARTBEAT_MS},
        {ZMQ_HEARTBEAT_TIMEOUT, LINK_HEARTBEAT_TIMEOUT_MS},
        {ZMQ_HEARTBEAT_TTL, LINK_HEARTBEAT_TIMEOUT_MS},
    };
    int64_t max = MSG_FRAME_MAX;
    TRY(link_set_ints(sock, options, ARRAY_LEN(options)));
    if (zmq_setsockopt(sock, ZMQ_MAXMSGSIZE, &max, sizeof max) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ option MAXMSGSIZE: %s", zmq_strerror(zmq_errno()));
    return ERR_OK;
}

enum err link_set_ipv6(void *sock, const char *endpoint)
{
    const struct link_option on = {ZMQ_IPV6, 1};
    return strchr(endpoint, '[') ? link_set_ints(sock, &on, 1) : ERR_OK;
}

/* ZeroMQ would cut a port of 99999 down to 16 bits and bind that. */
enum err link_check_endpoint(const char *endpoint, unsigned port_min)
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
    return err_set(ERR_INVALID, "'%.200s' is not an endpoint: ipc:///PATH or tcp://HOST:PORT with a port up to 65535",
                   endpoint);
}

void link_close_sock(void *sock)
{
    int linger = LINGER_CLOSE_MS;
    if (!sock)
        return;
    zmq_setsockopt(sock, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(sock);
}

int link_sock_fd(void *sock)
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
    TRY(link_check_endpoint(endpoint, 0));
    if (ipc)
        TRY(link_ipc_claim(endpoint + 6, &at->lock_fd));
    TRY_GOTO(link_set_ipv6(s->sock, endpoint), fail);
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
    const struct link_option options[] = {
        {ZMQ_ROUTER_MANDATORY, 1}, {ZMQ_ROUTER_HANDOVER, 0},    {ZMQ_BACKLOG, BACKLOG},
        {ZMQ_CURVE_SERVER, 1},     {ZMQ_ZAP_ENFORCE_DOMAIN, 1},
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
    TRY_GOTO(link_set_common(s->sock), fail);
    TRY_GOTO(link_set_str(s->sock, ZMQ_ZAP_DOMAIN, domain), fail);
    TRY_GOTO(link_set_ints(s->sock, options, ARRAY_LEN(options)), fail);
    TRY_GOTO(link_set_str(s->sock, ZMQ_CURVE_SECRETKEY, c->key.secret), fail);
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
    link_close_sock(x->sock);
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
    return link_sock_fd(s->sock);
}

enum err link_send_error(const char *to)
{
    switch (zmq_errno()) {
    case EAGAIN:
        return err_set(ERR_BUSY, "the queue to %s is full (%d messages)", to, (int)LINK_QUEUE_MESSAGES);
    case EHOSTUNREACH:
        return err_set(ERR_PEER_LOST, "%s is not connected any more", to);
    default:
        return err_set(ERR_IO, "cannot send to %s: %s", to, zmq_strerror(zmq_errno()));
    }
}

enum err link_server_send_bytes(struct link_server *s, const struct link_peer *to, const void *bytes, size_t len)
{
    if (zmq_send(s->sock, to->id, to->id_len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return link_send_error(to->name);
    /* The first frame has chosen the peer and taken its place in the queue: this one does not block. */
    if (zmq_send(s->sock, bytes, len, ZMQ_DONTWAIT) < 0)
        return link_send_error(to->name);
    return ERR_OK;
}

enum err link_server_send(struct link_server *s, const struct link_peer *to, const struct msg *m)
{
    buf_clear(&s->out);
    TRY(codec_encode(m, &s->out));
    return link_server_send_bytes(s, to, s->out.data, s->out.len);
}

bool link_drain_frames(void *sock)
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

enum err link_recv_error(void)
{
    if (zmq_errno() == EAGAIN || zmq_errno() == EINTR)
        return ERR_UNAVAILABLE;
    return err_set(ERR_IO, "cannot receive: %s", zmq_strerror(zmq_errno()));
}

enum err link_decode(zmq_msg_t *frame, bool more, const char *from, struct arena *arena, struct msg *out)
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
        return link_recv_error();
    from->id_len = (uint32_t)MIN((size_t)n, sizeof from->id);
    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, s->sock, ZMQ_DONTWAIT) < 0) {
        e = link_recv_error();
        goto done;
    }
    bool more = link_drain_frames(s->sock);
    if (!link_zap_user(zmq_msg_gets(&frame, "User-Id"), &from->role, from->name))
        e = err_set(ERR_PROTOCOL, "a message without an authenticated sender"); /* cannot be: ZAP is enforced */
    else if ((size_t)n > sizeof from->id)
        e = err_set(ERR_PROTOCOL, "%s chose a routing id of %d bytes, at most %zu", from->name, n, sizeof from->id);
    else
        e = link_decode(&frame, more, from->name, arena, out);
done:
    zmq_msg_close(&frame);
    return e;
}
