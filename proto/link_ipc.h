/* Who owns the path of an ipc socket. Private to link.c.
 *
 * ZeroMQ unlinks whatever stands at the path before it binds, also the socket of a living server. So the path is
 * claimed first: a lock on PATH.lock, held as long as the server lives and given back by the kernel when it dies. */
#ifndef PROTO_LINK_IPC_H
#define PROTO_LINK_IPC_H

#include "base/err.h"

/* Removes a dead server's socket. ERR_ADDR_IN_USE: a living one, or something that is no socket. ERR_INVALID: too long
 * for a socket address (107 bytes), or not absolute. */
enum err link_ipc_claim(const char *path, int *lock_fd);
/* Unlinks socket and lock. */
void link_ipc_release(const char *path, int lock_fd);

#endif
