/* struct msg <-> bytes (protobuf). Bytes come from peers: unpacking runs in a capped allocator, every cap of msg.h is
 * checked, arrays that must be parallel are. */
#ifndef PROTO_CODEC_H
#define PROTO_CODEC_H

#include "base/buf.h"
#include "proto/msg.h"

/* Appends the bytes. ERR_NOMEM, ERR_TOO_BIG (over MSG_FRAME_MAX). */
enum err codec_encode(const struct msg *m, struct buf *out);
/* Everything of *out lies in the arena. ERR_PROTOCOL names the field; ERR_TOO_BIG; ERR_NOMEM. */
enum err codec_decode(const void *bytes, size_t len, struct arena *arena, struct msg *out);

#endif
