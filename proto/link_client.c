/* Clients: DEALER, CURVE client, one connection that comes back by itself. See link.c for the rest.
 *
 * A client has a socket monitor, for the single event "key refused": after it the connection has ended for good, so at
 * most one event is ever queued and an undrained monitor cannot stall anything; every call looks at it. (Nothing else
 * tells a refusal from a server that is away.) Every call returns at once but link_client_wait. Threading: a link
 * belongs to one thread at a time. */
#include "proto/link_internal.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RECONNECT_MS = 50, RECONNECT_MS_MAX = 1000 };

struct link_client {
    struct link_context *context;
    void *sock, *monitor;
    char endpoint[LINK_ENDPOINT_MAX], key_name[64];
    bool refused;
    struct buf out;
};

static enum err watch_refusal(struct link_client *l)
{
    char name[64];
    const struct link_option options[] = {{ZMQ_LINGER, 0}, {ZMQ_RCVTIMEO, 0}};
    snprintf(name, sizeof name, "inproc://racklm.refused.%u", atomic_fetch_add(&l->context->monitors, 1));
    if (zmq_socket_monitor(l->sock, name, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ monitor: %s", zmq_strerror(zmq_errno()));
    l->monitor = zmq_socket(l->context->zmq, ZMQ_PAIR);
    if (!l->monitor)
        return err_set(ERR_UNAVAILABLE, "no ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
    TRY(link_set_ints(l->monitor, options, ARRAY_LEN(options)));
    if (zmq_connect(l->monitor, name) != 0)
        return err_set(ERR_INTERNAL, "ZeroMQ monitor: %s", zmq_strerror(zmq_errno()));
    return ERR_OK;
}

enum err link_client_open(struct link_context *c, const char *endpoint, const struct key_file *key,
                          struct link_client **out)
{
    enum err e;
    const struct link_option options[] = {{ZMQ_RECONNECT_IVL, RECONNECT_MS},
                                          {ZMQ_RECONNECT_IVL_MAX, RECONNECT_MS_MAX},
                                          {ZMQ_CONNECT_TIMEOUT, LINK_HANDSHAKE_MS}};
    *out = NULL;
    if (!key->server_pub[0])
        return err_set(ERR_INVALID,
                       "the key %s does not name its coordinator's public key: it is not a peer's key file", key->name);
    if (strlen(endpoint) >= LINK_ENDPOINT_MAX)
        return err_set(ERR_INVALID, "%.200s...: the endpoint is too long", endpoint);
    TRY(link_check_endpoint(endpoint, 1));
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
    TRY_GOTO(link_set_common(l->sock), fail);
    TRY_GOTO(link_set_ints(l->sock, options, ARRAY_LEN(options)), fail);
    TRY_GOTO(link_set_str(l->sock, ZMQ_CURVE_SERVERKEY, key->server_pub), fail);
    TRY_GOTO(link_set_str(l->sock, ZMQ_CURVE_PUBLICKEY, key->pub), fail);
    TRY_GOTO(link_set_str(l->sock, ZMQ_CURVE_SECRETKEY, key->secret), fail);
    TRY_GOTO(link_set_ipv6(l->sock, endpoint), fail);
    TRY_GOTO(watch_refusal(l), fail);
    if (zmq_connect(l->sock, endpoint) != 0) {
        e = zmq_errno() == ENAMETOOLONG
                ? err_set(ERR_INVALID, "%s: the path is too long for a socket (107 bytes)", endpoint)
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
    link_close_sock(x->sock);
    buf_deinit(&x->out);
    atomic_fetch_sub(&x->context->open, 1);
    free(x);
    *l = NULL;
}

int link_client_fd(const struct link_client *l)
{
    return link_sock_fd(l->sock);
}

static enum err refused(struct link_client *l)
{
    uint8_t event[16];
    if (!l->refused && zmq_recv(l->monitor, event, sizeof event, ZMQ_DONTWAIT) >= 0) {
        link_drain_frames(l->monitor);
        l->refused = true;
    }
    if (!l->refused)
        return ERR_OK;
    return err_set(
        ERR_AUTH,
        "%s refused the key '%s': it is not in the coordinator's allow-list, or not with this role (racklm key)",
        l->endpoint, l->key_name);
}

enum err link_client_send(struct link_client *l, const struct msg *m)
{
    TRY(refused(l));
    buf_clear(&l->out);
    TRY(codec_encode(m, &l->out));
    if (zmq_send(l->sock, l->out.data, l->out.len, ZMQ_DONTWAIT) < 0)
        return link_send_error(l->endpoint);
    return ERR_OK;
}

enum err link_client_recv(struct link_client *l, struct arena *arena, struct msg *out)
{
    zmq_msg_t frame;
    enum err e;
    memset(out, 0, sizeof *out);
    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, l->sock, ZMQ_DONTWAIT) < 0) {
        e = link_recv_error();
        if (e == ERR_UNAVAILABLE && refused(l) != ERR_OK)
            e = ERR_AUTH;
    } else {
        bool more = link_drain_frames(l->sock);
        e = link_decode(&frame, more, l->endpoint, arena, out);
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
            return err_set(ERR_TIMEOUT, "no answer from %s within %u ms; is the coordinator running?", l->endpoint,
                           timeout_ms);
        zmq_pollitem_t items[2] = {{.socket = l->sock, .events = ZMQ_POLLIN},
                                   {.socket = l->monitor, .events = ZMQ_POLLIN}};
        zmq_poll(items, 2, (long)((end - now + NS_PER_MS - 1) / NS_PER_MS));
    }
}
