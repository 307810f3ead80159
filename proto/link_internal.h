/* What link.c (context, servers) and link_client.c share: the context, the options of every socket, receiving. Private
 * to them. */
#ifndef PROTO_LINK_INTERNAL_H
#define PROTO_LINK_INTERNAL_H

#include "proto/link.h"
#include "proto/link_zap.h"

#include <stdatomic.h>
#include <zmq.h>

enum {
    LINK_QUEUE_MESSAGES = 1024, /* per peer and direction */
    LINK_HANDSHAKE_MS = 3000,   /* a connection that has not proved its key by then is closed */
    LINK_HEARTBEAT_MS = 2000,   /* finds dead TCP connections; the work loops' own heartbeat is another thing */
    LINK_HEARTBEAT_TIMEOUT_MS = 6000,
    LINK_ENDPOINT_MAX = 320,
};

struct link_context {
    void *zmq;
    struct link_zap *zap; /* coordinator only */
    struct key_file key;  /* of the servers */
    atomic_int open;
    atomic_uint monitors;
};

struct link_option {
    int option, value;
};
/* Stop at the first that ZeroMQ refuses (ERR_INTERNAL). */
enum err link_set_ints(void *sock, const struct link_option *o, size_t n);
enum err link_set_str(void *sock, int option, const char *s);
enum err link_set_common(void *sock);
enum err link_set_ipv6(void *sock, const char *endpoint); /* where the endpoint has brackets */
/* ipc:///PATH, or tcp://HOST:PORT with a port from port_min (0: also `*`). ERR_INVALID. */
enum err link_check_endpoint(const char *endpoint, unsigned port_min);
void link_close_sock(void *sock);
int link_sock_fd(void *sock);
/* ZeroMQ's error of a send that did not happen, of a receive that gave nothing. */
enum err link_send_error(const char *to);
enum err link_recv_error(void);
/* Takes and drops the rest of the message. True when there was any. */
bool link_drain_frames(void *sock);
/* `more`: there were frames after this one. A peer's bytes that do not decode are ERR_PROTOCOL, whatever is wrong with
 * them. */
enum err link_decode(zmq_msg_t *frame, bool more, const char *from, struct arena *arena, struct msg *out);

#endif
