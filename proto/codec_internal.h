/* The parts of the codec: codec.c packs and unpacks, codec_scan.c bounds input before anything is allocated for it,
 * codec_check.c holds the rules of a message's content. */
#ifndef PROTO_CODEC_INTERNAL_H
#define PROTO_CODEC_INTERNAL_H

#include "proto/msg.h"
#include "racklm.pb-c.h"

#include <stddef.h>
#include <stdint.h>

/* Walks the bytes of one Msg without allocating: well-formed tags and lengths, right wire types, no repeated singular
 * field, no NUL in a string, every count and length within its cap. *body, *body_len: the one body; *type which.
 * ERR_PROTOCOL or ERR_TOO_BIG names the field. */
enum err codec_scan(const uint8_t *bytes, size_t len, enum msg_type *type, const uint8_t **body, size_t *body_len);
/* Caps, bounded strings, finite floats, and that counts agree with each other. The same rules for what is sent and what
 * came in. */
enum err codec_check(const struct msg *m);
/* The protobuf-c descriptor of a type's body. */
const ProtobufCMessageDescriptor *codec_descriptor(enum msg_type type);

#endif
