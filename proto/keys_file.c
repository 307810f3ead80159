/* See keys_file.h. Owns nothing; any thread, any process. The rename makes a reader see the old file or the new one,
 * and the sync before it makes that hold over a power failure too. */
#include "proto/keys_file.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static enum err check_dir(const char *path, unsigned refused)
{
    struct stat st;
    enum err e = ERR_OK;
    /* A symbolic link could be anybody's: the directory itself is meant. */
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_set(errno == EACCES ? ERR_FORBIDDEN : ERR_IO, "%s: %s", path,
                       errno == ENOTDIR || errno == ELOOP ? "exists and is not a directory" : strerror(errno));
    if (fstat(fd, &st) != 0)
        e = err_set(ERR_IO, "%s: %s", path, strerror(errno));
    else if (st.st_uid != geteuid())
        e = err_set(ERR_FORBIDDEN, "%s belongs to user %u, not to this one (%u); give another directory", path,
                    st.st_uid, geteuid());
    else if (st.st_mode & refused)
        e = err_set(ERR_FORBIDDEN,
                    "%s has mode %03o, too open for what is kept there: chmod 700 %s, or give another directory", path,
                    st.st_mode & 0777, path);
    close(fd);
    return e;
}

enum err keys_file_mkdir(const char *path, unsigned refused)
{
    char part[PATH_MAX];
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof part)
        return err_set(ERR_INVALID, "not a usable directory name: '%.200s'", path);
    memcpy(part, path, len + 1);
    for (char *p = part + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES)
            return err_set(ERR_IO, "%s: %s", part, strerror(errno));
        *p = '/';
    }
    if (mkdir(part, 0700) != 0 && errno != EEXIST)
        return err_set(ERR_IO, "cannot make directory %s: %s", part, strerror(errno));
    return check_dir(path, refused);
}

enum err keys_file_read(const char *path, char *buf, size_t cap, size_t *len)
{
    struct stat st;
    enum err e = ERR_OK;
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(errno == ENOENT   ? ERR_NOT_FOUND
                       : errno == EACCES ? ERR_FORBIDDEN
                                         : ERR_IO,
                       "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0)
        e = err_set(ERR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        e = err_set(ERR_INVALID, "%s is not a file", path);
    else if (st.st_uid != geteuid() && st.st_uid != 0)
        e = err_set(ERR_FORBIDDEN, "%s belongs to user %u, not to this one (%u)", path, st.st_uid, geteuid());
    else if (st.st_mode & 077)
        e = err_set(ERR_FORBIDDEN,
                    "%s has mode %03o: others can read or write it. Make new keys, or if nobody did: chmod 600 %s",
                    path, st.st_mode & 0777, path);
    else if ((unsigned long long)st.st_size >= cap)
        e = err_set(ERR_TOO_BIG, "%s: %lld bytes, at most %zu", path, (long long)st.st_size, cap - 1);
    while (e == ERR_OK && n < cap - 1) {
        ssize_t r = read(fd, buf + n, cap - 1 - n);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            e = err_set(ERR_IO, "%s: %s", path, strerror(errno));
        if (r <= 0)
            break;
        n += (size_t)r;
    }
    close(fd);
    buf[n] = '\0';
    *len = n;
    return e;
}

static enum err sync_dir_of(const char *path)
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (!slash)
        return ERR_OK;
    slash[1] = '\0';
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set(ERR_IO, "%s: %s", dir, strerror(errno));
    fsync(fd); /* some filesystems cannot; the rename itself has happened */
    close(fd);
    return ERR_OK;
}

enum err keys_file_write(const char *path, const char *data, size_t len)
{
    char tmp[PATH_MAX];
    if (snprintf(tmp, sizeof tmp, "%s.XXXXXX", path) >= (int)sizeof tmp)
        return err_set(ERR_INVALID, "%.200s...: the path is too long", path);
    int fd = mkostemp(tmp, O_CLOEXEC); /* 0600, must not exist */
    if (fd < 0)
        return err_set(ERR_IO, "cannot write %s: %s", path, strerror(errno));
    size_t n = 0;
    while (n < len) {
        ssize_t r = write(fd, data + n, len - n);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            break;
        n += (size_t)r;
    }
    bool ok = n == len && fsync(fd) == 0;
    int err = errno;
    close(fd);
    if (ok && rename(tmp, path) == 0)
        return sync_dir_of(path);
    if (ok)
        err = errno;
    unlink(tmp);
    return err_set(ERR_IO, "cannot write %s: %s", path, strerror(err));
}

enum err keys_file_lock(const char *path, int *fd)
{
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0)
        return err_set(ERR_IO, "cannot lock %s: %s", path, strerror(errno));
    while (flock(*fd, LOCK_EX) != 0) {
        if (errno == EINTR)
            continue;
        int err = errno;
        close(*fd);
        *fd = -1;
        return err_set(ERR_IO, "cannot lock %s: %s", path, strerror(err));
    }
    return ERR_OK;
}
