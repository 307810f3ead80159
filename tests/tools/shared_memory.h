/* Pieces of shared memory that no process uses. Other programs on this machine have theirs, which come and go: only what stays behind counts. */
#ifndef TESTS_TOOLS_SHARED_MEMORY_H
#define TESTS_TOOLS_SHARED_MEMORY_H

#include <dirent.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Is the file of /dev/shm in the memory of a process? */
static inline bool shared_memory_mapped(const char *name)
{
    bool found = false;
    DIR *d = opendir("/proc");
    for (struct dirent *p; !found && d && (p = readdir(d));) {
        char path[300], line[600];
        snprintf(path, sizeof(path), "/proc/%s/maps", p->d_name);
        FILE *f = p->d_name[0] >= '1' && p->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        while (!found && f && fgets(line, sizeof(line), f))
            found = strstr(line, "/dev/shm/") && strstr(line, name);
        if (f)
            fclose(f);
    }
    if (d)
        closedir(d);
    return found;
}

static inline unsigned shared_memory_orphans(void)
{
    unsigned n = 0, users;
    DIR *d = opendir("/dev/shm");
    for (struct dirent *p; d && (p = readdir(d));)
        n += p->d_name[0] != '.' && !shared_memory_mapped(p->d_name);
    if (d)
        closedir(d);
    FILE *f = fopen("/proc/sysvipc/shm", "r");
    char line[512];
    while (f && fgets(line, sizeof(line), f)) /* key shmid perms size cpid lpid nattch */
        n += sscanf(line, "%*d %*d %*o %*u %*d %*d %u", &users) == 1 && users == 0;
    if (f)
        fclose(f);
    return n;
}

/* More than before, for good? Another program may be between making its own and mapping it. */
static inline bool shared_memory_left(unsigned before)
{
    for (unsigned i = 0; i < 100; i++) {
        if (shared_memory_orphans() <= before)
            return false;
        poll(NULL, 0, 100);
    }
    return true;
}
#endif
