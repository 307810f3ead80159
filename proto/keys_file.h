/* Files that only their owner may read: written whole or not at all, refused when others could have read them. Used by
 * keys.c. */
#ifndef PROTO_KEYS_FILE_H
#define PROTO_KEYS_FILE_H

#include "base/err.h"

#include <stddef.h>

/* The directory, made with mode 0700 (its parents too, where missing). An existing one must be the user's own and have
 * none of the mode bits in `refused` (077: closed to others; 022: others may look); otherwise ERR_FORBIDDEN. The mode
 * of an existing directory is never changed: the path may be a mistake, and it may be /tmp. */
enum err keys_file_mkdir(const char *path, unsigned refused);
/* The whole file into buf, with a NUL. ERR_NOT_FOUND; ERR_FORBIDDEN: readable by group or others, or another user's;
 * ERR_TOO_BIG; ERR_IO. */
enum err keys_file_read(const char *path, char *buf, size_t cap, size_t *len);
/* Mode 0600, through a new file in the same directory that is synced and renamed. */
enum err keys_file_write(const char *path, const char *data, size_t len);
/* An exclusive lock on the file (made 0600); close(*fd) gives it back. Waits. */
enum err keys_file_lock(const char *path, int *fd);

#endif
