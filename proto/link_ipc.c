/* See link_ipc.h. Owns nothing; any thread. */
#include "proto/link_ipc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { PATH_LEN_MAX = sizeof((struct sockaddr_un *)0)->sun_path - 1 };

static bool same_inode(int fd, const char *path)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

/* A holder that leaves unlinks its lock file: a lock on a file that is no longer at the path is worth nothing, so look
 * again. */
static enum err take_lock(const char *socket_path, const char *path, int *out)
{
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return err_set(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "cannot make %s: %s", path, strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            int err = errno;
            close(fd);
            if (err == EINTR)
                continue;
            if (err == EWOULDBLOCK)
                return err_set(ERR_ADDR_IN_USE, "ipc://%s is in use by another running process", socket_path);
            return err_set(ERR_IO, "cannot lock %s: %s", path, strerror(err));
        }
        if (same_inode(fd, path)) {
            *out = fd;
            return ERR_OK;
        }
        close(fd);
    }
}

/* Does anybody listen there? */
static bool listens(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return true; /* unknown: leave it alone */
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    bool live = connect(fd, (struct sockaddr *)&a, sizeof a) == 0 || (errno != ECONNREFUSED && errno != ENOENT);
    close(fd);
    return live;
}

static enum err clear_path(const char *path)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? ERR_OK : err_set(ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return err_set(ERR_ADDR_IN_USE, "%s exists and is not a socket; it is left alone", path);
    if (listens(path))
        return err_set(ERR_ADDR_IN_USE, "ipc://%s is in use by another running process", path);
    if (unlink(path) != 0 && errno != ENOENT)
        return err_set(ERR_IO, "cannot remove the stale socket %s: %s", path, strerror(errno));
    return ERR_OK;
}

enum err link_ipc_claim(const char *path, int *lock_fd)
{
    char lock[PATH_LEN_MAX + 8];
    *lock_fd = -1;
    if (path[0] != '/')
        return err_set(ERR_INVALID, "ipc://%.200s: the path must be absolute", path);
    if (strlen(path) > PATH_LEN_MAX)
        return err_set(ERR_INVALID,
                       "ipc://%.300s: the path has %zu bytes, a socket's may have %d; give a shorter runtime directory",
                       path, strlen(path), (int)PATH_LEN_MAX);
    snprintf(lock, sizeof lock, "%s.lock", path);
    TRY(take_lock(path, lock, lock_fd));
    enum err e = clear_path(path);
    if (e != ERR_OK) {
        unlink(lock);
        close(*lock_fd);
        *lock_fd = -1;
    }
    return e;
}

void link_ipc_release(const char *path, int lock_fd)
{
    char lock[PATH_LEN_MAX + 8];
    if (lock_fd < 0)
        return;
    snprintf(lock, sizeof lock, "%s.lock", path);
    unlink(path);
    unlink(lock); /* while it is held: see take_lock */
    close(lock_fd);
}
