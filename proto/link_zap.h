/* The authenticator of the process's CURVE servers (ZAP, rfc.zeromq.org/spec/27), in a thread of its own. Private to
 * link.c. */
#ifndef PROTO_LINK_ZAP_H
#define PROTO_LINK_ZAP_H

#include "proto/keys.h"

#include <stddef.h>
#include <stdint.h>

struct link_zap;

/* Bound to inproc://zeromq.zap.01 of the ZeroMQ context when it returns: servers may bind from then on. keys are
 * copied; state_dir may be NULL (the list never changes). The thread ends when the context is shut down. */
enum err link_zap_start(void *zmq_context, const struct keys *keys, const char *state_dir, struct link_zap **out);
/* After zmq_ctx_shutdown: joins and frees. Accepts NULL. */
void link_zap_stop(struct link_zap **z);
uint64_t link_zap_refused(const struct link_zap *z);
/* A server's ZAP domain carries the roles it lets in; the User-Id of an accepted peer its role and name. */
void link_zap_domain(unsigned roles, char *buf, size_t cap);
/* False when the text is not one of link_zap's own. name of 64 bytes. */
int link_zap_user(const char *user_id, enum key_role *role, char *name);

#endif
