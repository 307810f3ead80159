/* proto/keys: creation, modes, the allow-list, broken files, several processes at once. Everything happens in a new
 * temporary directory. */
#include "proto/keys.h"

#include "base/buf.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char root[128];

static int setup(void **state)
{
    (void)state;
    strcpy(root, "/tmp/racklm-keys-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}
static int teardown(void **state)
{
    char command[200];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}
static char *in(const char *file)
{
    static char path[4][256];
    static unsigned n;
    char *p = path[n++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", root, file);
    return p;
}
static unsigned mode_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_mode & 0777;
}
static void overwrite(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void keys_are_made_once_and_found_again(void **state)
{
    (void)state;
    struct keys a, b;
    struct key_file worker, admin;
    umask(0); /* modes must not depend on it */
    assert_int_equal(keys_load_or_create(in("state"), &a), ERR_OK);
    umask(022);
    assert_int_equal(keys_load_or_create(in("state"), &b), ERR_OK);
    assert_string_equal(a.server.secret, b.server.secret);
    assert_string_equal(a.server.pub, b.server.pub);
    assert_string_not_equal(a.server.pub, a.server.secret);
    assert_int_equal(strlen(a.server.pub), 40);
    assert_int_equal(a.n_allowed, 2);
    assert_int_equal(b.n_allowed, 2);
    assert_int_equal(mode_of(in("state")), 0700);
    assert_int_equal(mode_of(in("state/keys")), 0700);
    assert_int_equal(mode_of(in("state/keys/coordinator.key")), 0600);
    assert_int_equal(mode_of(in("state/keys/local-worker.key")), 0600);
    assert_int_equal(mode_of(in("state/keys/allowed")), 0600);
    assert_int_equal(keys_read_file(in("state/keys/local-worker.key"), &worker), ERR_OK);
    assert_int_equal(keys_read_file(in("state/keys/local-admin.key"), &admin), ERR_OK);
    assert_int_equal(worker.role, KEY_ROLE_WORKER);
    assert_int_equal(admin.role, KEY_ROLE_ADMIN);
    assert_string_equal(worker.name, "local-worker");
    assert_string_equal(worker.server_pub, a.server.pub);
    assert_string_equal(a.allowed[0].pub, worker.pub);
    assert_string_equal(a.allowed[1].pub, admin.pub);
    keys_deinit(&a);
    keys_deinit(&b);
}

static void a_peer_is_added_once(void **state)
{
    (void)state;
    struct keys k;
    struct key_file f;
    char path[256];
    assert_int_equal(keys_add(in("state"), "rack-7.gpu_0", KEY_ROLE_VIEWER, path, sizeof path), ERR_OK);
    assert_string_equal(path, in("state/keys/rack-7.gpu_0.key"));
    assert_int_equal(keys_read_file(path, &f), ERR_OK);
    assert_int_equal(f.role, KEY_ROLE_VIEWER);
    assert_int_equal(keys_add(in("state"), "rack-7.gpu_0", KEY_ROLE_WORKER, path, sizeof path), ERR_INVALID);
    assert_non_null(strstr(err_detail(), "taken"));
    unlink(path); /* taken to its host: the name stays taken */
    assert_int_equal(keys_add(in("state"), "rack-7.gpu_0", KEY_ROLE_WORKER, path, sizeof path), ERR_INVALID);
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_OK);
    assert_int_equal(k.n_allowed, 3);
    assert_string_equal(k.allowed[2].name, "rack-7.gpu_0");
    assert_string_equal(k.allowed[2].pub, f.pub);
    assert_int_equal(k.allowed[2].role, KEY_ROLE_VIEWER);
    keys_deinit(&k);
}

static void names_that_are_none_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      ".",
                                      "..",
                                      "../x",
                                      "a/b",
                                      "-x",
                                      "a b",
                                      "a\nb",
                                      "local-admin",
                                      "coordinator",
                                      "0123456789012345678901234567890123456789012345678901234567890123"};
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (keys_add(in("state"), bad[i], KEY_ROLE_WORKER, path, sizeof path) != ERR_INVALID)
            fail_msg("'%s' was accepted", bad[i]);
}

static void files_that_others_can_read_are_refused(void **state)
{
    (void)state;
    struct keys k;
    struct key_file f;
    static const char *const files[] = {"state/keys/coordinator.key", "state/keys/local-worker.key",
                                        "state/keys/allowed"};
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_OK);
    keys_deinit(&k);
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned bit = 1; bit < 0100; bit <<= 1) {
            chmod(in(files[i]), 0600 | bit);
            assert_int_equal(keys_load_or_create(in("state"), &k), ERR_FORBIDDEN);
            assert_non_null(strstr(err_detail(), "chmod 600"));
        }
        chmod(in(files[i]), 0600);
    }
    chmod(in("state/keys/local-worker.key"), 0640);
    assert_int_equal(keys_read_file(in("state/keys/local-worker.key"), &f), ERR_FORBIDDEN);
    chmod(in("state/keys"), 0750);
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_FORBIDDEN);
    assert_non_null(strstr(err_detail(), "chmod 700"));
}

static void broken_key_files_are_named_without_their_secrets(void **state)
{
    (void)state;
    struct keys k;
    struct key_file f;
    struct buf good;
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_OK);
    buf_init(&good);
    const char *path = in("state/keys/local-worker.key");
    assert_int_equal(buf_read_file(&good, path, 4096), ERR_OK);
    assert_int_equal(keys_read_file(path, &f), ERR_OK);
    char secret[41];
    strcpy(secret, f.secret);
    for (size_t cut = 0; cut + 1 < good.len; cut += 3) { /* truncated; the last newline is not needed */
        char text[1024];
        snprintf(text, sizeof text, "%.*s", (int)cut, good.data);
        overwrite(path, text);
        assert_int_equal(keys_read_file(path, &f), ERR_CORRUPT);
        assert_null(strstr(err_detail(), secret));
        assert_int_equal(f.secret[0], 0);
    }
    overwrite(path, good.data);
    char *at = strstr(good.data, secret);
    at[5] = at[5] == 'a' ? 'b' : 'a'; /* another secret: does not belong to the public key */
    overwrite(path, good.data);
    assert_int_equal(keys_read_file(path, &f), ERR_CORRUPT);
    overwrite(path, "nonsense\n");
    assert_int_equal(keys_read_file(path, &f), ERR_CORRUPT);
    assert_int_equal(keys_read_file(in("state/keys/nobody.key"), &f), ERR_NOT_FOUND);
    assert_int_equal(keys_read_file(in("state/keys"), &f), ERR_INVALID);
    assert_int_equal(keys_read_file(in("state/keys/coordinator.key"), &f), ERR_OK);
    assert_int_equal(f.server_pub[0], 0);
    keys_deinit(&k);
    buf_deinit(&good);
}

static void broken_allow_lists_are_refused(void **state)
{
    (void)state;
    struct keys k;
    static const char *const bad[] = {"x worker a\n", "0123456789012345678901234567890123456789 king a\n",
                                      "0123456789012345678901234567890123456789 worker\n",
                                      "0123456789012345678901234567890123456789 worker a b\n",
                                      "0123456789012345678901234567890123456789 worker ../a\n"};
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_OK);
    keys_deinit(&k);
    for (unsigned i = 0; i < 5; i++) {
        overwrite(in("state/keys/allowed"), bad[i]);
        if (keys_load_or_create(in("state"), &k) != ERR_CORRUPT)
            fail_msg("accepted: %s", bad[i]);
    }
    overwrite(in("state/keys/allowed"), "# nobody\n\n0123456789012345678901234567890123456789 viewer a\n");
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_OK);
    assert_int_equal(k.n_allowed, 1);
    keys_deinit(&k);
}

/* Ten processes create the same directory, each adds a peer: one coordinator key, no line lost. */
static void processes_that_start_together_agree(void **state)
{
    (void)state;
    enum { N = 10 };
    int out[2];
    pid_t pid[N];
    assert_int_equal(pipe(out), 0);
    for (int i = 0; i < N; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            struct keys k;
            char name[32], path[256];
            snprintf(name, sizeof name, "peer%d", i);
            if (keys_load_or_create(in("state"), &k) != ERR_OK ||
                keys_add(in("state"), name, KEY_ROLE_WORKER, path, sizeof path) != ERR_OK)
                _exit(1);
            _exit(write(out[1], k.server.pub, 40) == 40 ? 0 : 1);
        }
    }
    char first[41] = "", pub[41] = "";
    for (int i = 0; i < N; i++) {
        int status;
        waitpid(pid[i], &status, 0);
        assert_int_equal(status, 0);
        assert_int_equal(read(out[0], pub, 40), 40);
        if (i == 0)
            strcpy(first, pub);
        assert_string_equal(pub, first);
    }
    struct keys k;
    assert_int_equal(keys_load_or_create(in("state"), &k), ERR_OK);
    assert_string_equal(k.server.pub, first);
    assert_int_equal(k.n_allowed, N + 2);
    keys_deinit(&k);
    DIR *d = opendir(in("state/keys")); /* nothing temporary is left */
    unsigned n = 0;
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    assert_int_equal(n, N + 3 + 2); /* peers, coordinator and two locals, allowed and lock */
    close(out[0]);
    close(out[1]);
}

static void directories_are_found_made_and_guarded(void **state)
{
    (void)state;
    char path[256], want[256];
    setenv("XDG_STATE_HOME", root, 1);
    assert_int_equal(keys_state_dir(NULL, path, sizeof path), ERR_OK);
    assert_string_equal(path, in("racklm"));
    assert_int_equal(mode_of(path), 0700);
    unsetenv("XDG_STATE_HOME");
    setenv("HOME", root, 1);
    assert_int_equal(keys_state_dir(NULL, path, sizeof path), ERR_OK);
    assert_string_equal(path, in(".local/state/racklm"));
    assert_int_equal(keys_state_dir(in("deep/er"), path, sizeof path), ERR_OK);
    assert_int_equal(mode_of(path), 0700);
    assert_int_equal(keys_state_dir(in("deep/er"), path, 10), ERR_INVALID);
    setenv("XDG_RUNTIME_DIR", root, 1);
    assert_int_equal(keys_runtime_dir(NULL, path, sizeof path), ERR_OK);
    assert_string_equal(path, in("racklm"));
    setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
    setenv("TMPDIR", root, 1);
    assert_int_equal(keys_runtime_dir(NULL, path, sizeof path), ERR_OK);
    snprintf(want, sizeof want, "%s/racklm-%u", root, geteuid());
    assert_string_equal(path, want);
    chmod(want, 0755);
    assert_int_equal(keys_runtime_dir(NULL, path, sizeof path), ERR_FORBIDDEN);
    assert_int_equal(mode_of(want), 0755); /* an existing directory is never changed */
    rmdir(want);
    assert_int_equal(symlink(root, want), 0);
    assert_int_not_equal(keys_runtime_dir(NULL, path, sizeof path), ERR_OK);
    chmod(root, 0777);
    assert_int_equal(keys_state_dir(root, path, sizeof path), ERR_FORBIDDEN);
    overwrite(in("file"), "");
    assert_int_not_equal(keys_state_dir(in("file"), path, sizeof path), ERR_OK);
    if (geteuid() == 0) { /* another user's directory */
        assert_int_equal(mkdir(in("theirs"), 0700), 0);
        assert_int_equal(chown(in("theirs"), 12345, 12345), 0);
        assert_int_equal(keys_runtime_dir(in("theirs"), path, sizeof path), ERR_FORBIDDEN);
    }
    unsetenv("TMPDIR");
    unsetenv("XDG_RUNTIME_DIR");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(keys_are_made_once_and_found_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_peer_is_added_once, setup, teardown),
        cmocka_unit_test_setup_teardown(names_that_are_none_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(files_that_others_can_read_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_key_files_are_named_without_their_secrets, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_allow_lists_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(processes_that_start_together_agree, setup, teardown),
        cmocka_unit_test_setup_teardown(directories_are_found_made_and_guarded, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
