/* A made-up host: files as they stand in its /proc and /sys, below a folder of the test's own. */
#ifndef TESTS_TOOLS_HOST_FILES_H
#define TESTS_TOOLS_HOST_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static char root[64];

static inline void make_root(void)
{
    snprintf(root, sizeof(root), "/tmp/racklm-host-XXXXXX");
    assert_non_null(mkdtemp(root));
}

static inline int drop_root(void)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", root);
    return system(cmd);
}

/* mode: "w", or "a" for more of a file. */
static inline void put_file(const char *path, const char *text, const char *mode)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, mode);
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

#endif
