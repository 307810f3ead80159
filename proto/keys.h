/* CURVE key pairs (Z85 text of 40 characters) and where they are kept.
 *
 * state_dir/keys/coordinator.key       secret and public of the coordinator's server socket, 0600
 * state_dir/keys/<name>.key            one peer: its secret, its public, its role, the coordinator's public: all a peer
 * needs (--key-file), 0600 state_dir/keys/allowed               one line a peer: public role name; the ZAP allow-list
 * Files are written by rename, directories are 0700; wider modes are refused on read (ERR_FORBIDDEN says how to mend).
 * Two processes that create keys at the same time take turns at state_dir/keys/lock (flock). Any thread; secrets are
 * wiped from memory by keys_deinit and keys_wipe, and never reach a log or an error text. */
#ifndef PROTO_KEYS_H
#define PROTO_KEYS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum key_role { KEY_ROLE_WORKER, KEY_ROLE_ADMIN, KEY_ROLE_VIEWER };

struct key_file {
    char secret[41], pub[41];
    char server_pub[41]; /* empty in coordinator.key */
    enum key_role role;
    char name[64];
};
struct key_allow {
    char pub[41];
    enum key_role role;
    char name[64];
};
struct keys { /* the coordinator's */
    struct key_file server;
    struct key_allow *allowed;
    uint32_t n_allowed;
};

const char *key_role_name(enum key_role r);
/* The user's state directory ($XDG_STATE_HOME/racklm or ~/.local/state/racklm), or `given`; made 0700; an existing one
 * that others may write to is refused. buf of cap bytes. */
enum err keys_state_dir(const char *given, char *buf, size_t cap);
/* $XDG_RUNTIME_DIR/racklm, or racklm-UID in the temporary directory, or `given`; made 0700; an existing one that
 * another user owns or may enter is refused (ERR_FORBIDDEN). */
enum err keys_runtime_dir(const char *given, char *buf, size_t cap);
/* Makes coordinator.key, local worker and admin keys ("local-worker", "local-admin") on first use; loads. */
enum err keys_load_or_create(const char *state_dir, struct keys *out);
void keys_deinit(struct keys *k);
/* A new peer (racklm key NAME --role worker): writes its key file and adds it to the allow-list. ERR_INVALID when the
 * name is taken. */
enum err keys_add(const char *state_dir, const char *name, enum key_role role, char *path, size_t path_cap);
enum err keys_read_file(const char *path, struct key_file *out);
/* The path of a peer's key file: state_dir/keys/NAME.key. ERR_INVALID when the name is none or the path is too long. */
enum err keys_path(const char *state_dir, const char *name, char *buf, size_t cap);
/* The allow-list by itself; *out is owned by the caller (free()). Lines that start with # are comments. */
enum err keys_read_allowed(const char *state_dir, struct key_allow **out, uint32_t *n);
void keys_wipe(struct key_file *k);

#endif
