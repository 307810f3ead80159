#include "coordinator/instance.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static long pid_of_name(const char *name)
{
    char *end;
    long pid = strtol(name, &end, 10);
    return *name >= '1' && *name <= '9' && *end == 0 ? pid : 0;
}

/* Our own sockets only: one level, no directory below. */
static void remove_dir(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return;
    for (struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] != '.' || (f->d_name[1] && strcmp(f->d_name, "..") != 0))
            unlinkat(dirfd(d), f->d_name, 0);
    closedir(d);
    rmdir(path);
}

/* Removes what dead coordinators left; returns the most recent of those alive but us, or 0. */
static long sweep(const char *runtime_dir)
{
    DIR *d = opendir(runtime_dir);
    long newest = 0;
    time_t newest_time = 0;
    if (!d)
        return 0;
    for (struct dirent *f; (f = readdir(d));) {
        long pid = pid_of_name(f->d_name);
        char path[512];
        struct stat st;
        if (!pid || pid == (long)getpid())
            continue;
        snprintf(path, sizeof path, "%s/%s", runtime_dir, f->d_name);
        if (kill((pid_t)pid, 0) != 0 && errno == ESRCH) {
            remove_dir(path);
        } else if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_mtime >= newest_time) {
            newest = pid;
            newest_time = st.st_mtime;
        }
    }
    closedir(d);
    return newest;
}

static enum err point_current(const char *runtime_dir, long pid)
{
    char link[320], next[340], target[32];
    snprintf(link, sizeof link, "%s/current", runtime_dir);
    snprintf(next, sizeof next, "%s/.current.%ld", runtime_dir, (long)getpid());
    snprintf(target, sizeof target, "%ld", pid);
    unlink(next);
    if (symlink(target, next) != 0 || rename(next, link) != 0)
        return err_set(ERR_IO, "%s: %s", link, strerror(errno));
    return ERR_OK;
}

enum err instance_open(const char *runtime_dir, struct instance *out)
{
    memset(out, 0, sizeof *out);
    if (strlen(runtime_dir) >= sizeof out->runtime_dir)
        return err_set(ERR_CONFIG, "runtime_dir '%.64s...' is too long", runtime_dir);
    sweep(runtime_dir);
    snprintf(out->runtime_dir, sizeof out->runtime_dir, "%s", runtime_dir);
    snprintf(out->dir, sizeof out->dir, "%s/%ld", runtime_dir, (long)getpid());
    remove_dir(out->dir); /* of an earlier process of this number */
    if (mkdir(out->dir, 0700) != 0) {
        enum err e = err_set(ERR_IO, "%s: %s", out->dir, strerror(errno));
        out->dir[0] = 0;
        return e;
    }
    return point_current(runtime_dir, (long)getpid());
}

void instance_close(struct instance *i)
{
    char link[320], target[32] = "";
    if (!i->dir[0])
        return;
    remove_dir(i->dir);
    snprintf(link, sizeof link, "%s/current", i->runtime_dir);
    if (readlink(link, target, sizeof target - 1) > 0 && pid_of_name(target) == (long)getpid()) {
        long other = sweep(i->runtime_dir);
        if (!other || point_current(i->runtime_dir, other) != ERR_OK)
            unlink(link);
    }
    i->dir[0] = 0;
}

enum err instance_endpoint(const struct instance *i, const char *name, char *out, size_t cap)
{
    struct sockaddr_un un;
    int n = snprintf(out, cap, "ipc://%s/%s", i->dir, name);
    if (n < 0 || (size_t)n >= cap || (size_t)n - 6 >= sizeof un.sun_path)
        return err_set(ERR_CONFIG, "the socket path %s/%s is longer than %zu characters: set a shorter --runtime-dir",
                       i->dir, name, sizeof un.sun_path - 1);
    return ERR_OK;
}
