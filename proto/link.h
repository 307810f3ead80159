/* ZeroMQ links with CURVE and ZAP, always. The only place that knows ZeroMQ.
 *
 * A server is a ROUTER that the coordinator binds (cluster: agents and admins; one per engine: its workers). A client
 * is a DEALER. Messages are one frame of codec bytes each. All sends are non-blocking; a full peer queue is ERR_BUSY. A
 * peer's role and name come from its key (ZAP User-Id), never from what it says. Each link belongs to one thread; the
 * context and the ZAP thread are shared by the process.
 *
 * What is guaranteed: nobody sends or receives before CURVE has proved its key and ZAP found it in the allow-list with
 * a role of that server; one payload frame a message, longer ones are dropped; strangers (also many, also garbage) cost
 * a connection that is closed after seconds. What is not: an admitted peer that floods within its queue, and the order
 * of messages of two peers. Routing ids are given by the server's socket and new for every connection: a peer that
 * reconnects is a new `struct link_peer` (it must say HELLO again, whoever it was), its old id gives ERR_PEER_LOST, and
 * no peer can take the id of another.
 *
 * ZeroMQ does not survive fork: fork before link_context_create, or exec at once in the child. Threads of ZeroMQ take
 * no signals.
 *
 * Idle: link_fd is edge-triggered (ZeroMQ): after poll says readable, call link_*_recv until it returns
 * ERR_UNAVAILABLE; also drain once after every send, since sending may swallow the edge. */
#ifndef PROTO_LINK_H
#define PROTO_LINK_H

#include "proto/codec.h"
#include "proto/keys.h"

struct link_context; /* ZeroMQ context, and in a coordinator the ZAP thread */
struct link_server;
struct link_client;

/* keys: the coordinator's (starts ZAP with its allow-list; `state_dir` is re-read when it changes, so that new keys
 * work at once), or NULL. */
enum err link_context_create(const struct keys *keys, const char *state_dir, struct link_context **out);
/* After every server and client of it is closed. Waits at most a tenth of a second for messages that are still to
 * leave. */
void link_context_destroy(struct link_context **c);

struct link_peer {
    uint8_t id[32]; /* routing id */
    uint32_t id_len;
    enum key_role role;
    char name[64]; /* of the key */
};

/* endpoint: ipc://PATH, tcp://HOST:PORT (port 0 or *: any). roles: bit mask of (1 << key_role) let in. ERR_ADDR_IN_USE.
 */
enum err link_server_open(struct link_context *c, const char *endpoint, unsigned roles, struct link_server **out);
void link_server_close(struct link_server **s);
const char *link_server_endpoint(const struct link_server *s); /* the first, with the real port */
/* The n-th bound endpoint (from 0), with the real port; NULL past the last. */
const char *link_server_endpoint_at(const struct link_server *s, unsigned n);
/* A second endpoint of the same server (ipc for this host, tcp for others). */
enum err link_server_bind(struct link_server *s, const char *endpoint);
int link_server_fd(const struct link_server *s);
/* ERR_BUSY: the peer's queue is full. ERR_PEER_LOST: no such connection any more. */
enum err link_server_send(struct link_server *s, const struct link_peer *to, const struct msg *m);
/* Encoded once, sent to many (a step). */
enum err link_server_send_bytes(struct link_server *s, const struct link_peer *to, const void *bytes, size_t len);
/* ERR_UNAVAILABLE: nothing there. ERR_PROTOCOL: bad bytes from *from (already dropped; the caller may refuse the peer);
 * more may be there. ERR_NOMEM: dropped too, over the arena's limit. */
enum err link_server_recv(struct link_server *s, struct arena *arena, struct link_peer *from, struct msg *out);

/* key: secret, public and the server's public. Reconnects by itself (50 ms, growing to 1 s), keeping what was not sent.
 * A client whose key was refused does not try again: every call gives ERR_AUTH; close it and open a new one. */
enum err link_client_open(struct link_context *c, const char *endpoint, const struct key_file *key,
                          struct link_client **out);
void link_client_close(struct link_client **l);
int link_client_fd(const struct link_client *l);
enum err link_client_send(struct link_client *l, const struct msg *m);
/* ERR_UNAVAILABLE: nothing there. ERR_PROTOCOL, ERR_NOMEM as above. */
enum err link_client_recv(struct link_client *l, struct arena *arena, struct msg *out);
/* Waits up to timeout_ms for one message; ERR_TIMEOUT; ERR_AUTH at once when the handshake is refused (the detail says
 * so). */
enum err link_client_wait(struct link_client *l, struct arena *arena, uint32_t timeout_ms, struct msg *out);

/* Peers with keys that were refused since the start (all servers); for logs and tests. */
uint64_t link_refused(const struct link_context *c);

#endif
