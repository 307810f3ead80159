/* CURVE key pairs: made, kept, listed. The format of each file stands above its writer.
 *
 * A new peer's public key enters the allow-list before its key file is written: whoever can read the key file can also
 * get in. A key file that is lost in between (a crash) leaves a line in the list that nobody can use. */
#include "proto/keys.h"

#include "base/buf.h"
#include "proto/keys_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { KEY_FILE_MAX = 4096, ALLOWED_MAX = 1 << 20, KEY_LEN = 40 };

static const char *const role_names[] = {
    [KEY_ROLE_WORKER] = "worker", [KEY_ROLE_ADMIN] = "admin", [KEY_ROLE_VIEWER] = "viewer"};
static const char coordinator[] = "coordinator", local_worker[] = "local-worker", local_admin[] = "local-admin";

const char *key_role_name(enum key_role r)
{
    return (unsigned)r < sizeof role_names / sizeof *role_names ? role_names[r] : "none";
}

static bool role_parse(const char *s, enum key_role *out)
{
    for (unsigned i = 0; i < sizeof role_names / sizeof *role_names; i++) {
        if (strcmp(s, role_names[i]) == 0) {
            *out = (enum key_role)i;
            return true;
        }
    }
    return false;
}

void keys_wipe(struct key_file *k)
{
    explicit_bzero(k, sizeof *k);
}

void keys_deinit(struct keys *k)
{
    if (!k)
        return;
    keys_wipe(&k->server);
    free(k->allowed);
    k->allowed = NULL;
    k->n_allowed = 0;
}

/* --- directories --- */

enum err keys_state_dir(const char *given, char *buf, size_t cap)
{
    const char *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n;
    if (given)
        n = snprintf(buf, cap, "%s", given);
    else if (xdg && xdg[0] == '/')
        n = snprintf(buf, cap, "%s/racklm", xdg);
    else if (home && home[0] == '/')
        n = snprintf(buf, cap, "%s/.local/state/racklm", home);
    else
        return err_set(ERR_CONFIG, "no state directory: neither --state-dir nor XDG_STATE_HOME nor HOME is set");
    if (n < 0 || (size_t)n >= cap)
        return err_set(ERR_INVALID, "the state directory's path is too long (%d bytes)", n);
    return keys_file_mkdir(buf, 022); /* the keys are one level deeper, closed */
}

static bool own_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid();
}

enum err keys_runtime_dir(const char *given, char *buf, size_t cap)
{
    const char *xdg = getenv("XDG_RUNTIME_DIR"), *tmp = getenv("TMPDIR");
    int n;
    if (given)
        n = snprintf(buf, cap, "%s", given);
    else if (xdg && xdg[0] == '/' && own_directory(xdg)) /* after `su` it is still the other user's */
        n = snprintf(buf, cap, "%s/racklm", xdg);
    else
        n = snprintf(buf, cap, "%s/racklm-%u", tmp && tmp[0] == '/' ? tmp : "/tmp", geteuid());
    if (n < 0 || (size_t)n >= cap)
        return err_set(ERR_INVALID, "the runtime directory's path is too long (%d bytes)", n);
    return keys_file_mkdir(buf, 077);
}

static bool name_valid(const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len >= sizeof((struct key_file *)0)->name || name[0] == '.' || name[0] == '-')
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len;
}

enum err keys_path(const char *state_dir, const char *name, char *buf, size_t cap)
{
    if (!name_valid(name))
        return err_set(
            ERR_INVALID,
            "'%.80s' is no name for a key: 1 to 63 of letters, digits, '.', '_', '-', not starting with '.' or '-'",
            name);
    if (snprintf(buf, cap, "%s/keys/%s.key", state_dir, name) >= (int)cap)
        return err_set(ERR_INVALID, "%.200s...: the path is too long", state_dir);
    return ERR_OK;
}

static enum err dir_file(const char *state_dir, const char *file, char *buf, size_t cap)
{
    if (snprintf(buf, cap, "%s/keys/%s", state_dir, file) >= (int)cap)
        return err_set(ERR_INVALID, "%.200s...: the path is too long", state_dir);
    return ERR_OK;
}

/* --- one key file: lines "field value"; fields name, role, secret, public, server --- */

static bool key_valid(const char *z85)
{
    uint8_t raw[32];
    bool ok = strlen(z85) == KEY_LEN && zmq_z85_decode(raw, z85);
    explicit_bzero(raw, sizeof raw);
    return ok;
}

static enum err write_file(const char *path, const struct key_file *k)
{
    char text[512];
    int n = snprintf(text, sizeof text, "# racklm key; keep it secret\nname %s\nrole %s\nsecret %s\npublic %s\n",
                     k->name, k->server_pub[0] ? key_role_name(k->role) : coordinator, k->secret, k->pub);
    if (k->server_pub[0])
        n += snprintf(text + n, sizeof text - (size_t)n, "server %s\n", k->server_pub);
    enum err e = keys_file_write(path, text, (size_t)n);
    explicit_bzero(text, sizeof text);
    return e;
}

static bool take_field(struct key_file *k, const char *field, const char *value, char role[16])
{
    char *to;
    if (strcmp(field, "name") == 0) {
        if (!name_valid(value))
            return false;
        strcpy(k->name, value);
        return true;
    }
    if (strcmp(field, "role") == 0) {
        snprintf(role, 16, "%s", value);
        return true;
    }
    if (strcmp(field, "secret") == 0)
        to = k->secret;
    else if (strcmp(field, "public") == 0)
        to = k->pub;
    else if (strcmp(field, "server") == 0)
        to = k->server_pub;
    else
        return true; /* of a later version */
    if (!key_valid(value))
        return false;
    memcpy(to, value, KEY_LEN + 1);
    return true;
}

static enum err parse_file(const char *path, char *text, struct key_file *out)
{
    char role[16] = "", *save = NULL;
    unsigned number = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        number++;
        if (line[0] == '#')
            continue;
        char *blank = strchr(line, ' ');
        if (blank)
            *blank = '\0';
        if (!blank || !take_field(out, line, blank + 1, role)) /* the value may be a secret: not in the text */
            return err_set(ERR_CORRUPT, "%s: entry %u is not valid", path, number);
    }
    if (!out->secret[0] || !out->pub[0] || !out->name[0] || !role[0])
        return err_set(ERR_CORRUPT, "%s: name, role, secret or public is missing", path);
    char derived[KEY_LEN + 1];
    if (zmq_curve_public(derived, out->secret) != 0 || strcmp(derived, out->pub) != 0)
        return err_set(ERR_CORRUPT, "%s: secret and public do not belong together", path);
    if (strcmp(role, coordinator) == 0 && !out->server_pub[0])
        return ERR_OK;
    if (!role_parse(role, &out->role))
        return err_set(ERR_CORRUPT, "%s: unknown role '%s' (worker, admin, viewer)", path, role);
    if (!out->server_pub[0])
        return err_set(ERR_CORRUPT, "%s: the coordinator's public key (server) is missing", path);
    return ERR_OK;
}

enum err keys_read_file(const char *path, struct key_file *out)
{
    char text[KEY_FILE_MAX];
    size_t len;
    memset(out, 0, sizeof *out);
    TRY(keys_file_read(path, text, sizeof text, &len));
    enum err e = memchr(text, 0, len) ? err_set(ERR_CORRUPT, "%s holds NUL bytes", path) : parse_file(path, text, out);
    explicit_bzero(text, sizeof text);
    if (e != ERR_OK)
        keys_wipe(out);
    return e;
}

/* --- the allow-list: lines "public role name" --- */

static enum err parse_allowed(const char *path, char *text, struct key_allow *list, uint32_t *n)
{
    char *save = NULL;
    *n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char role[16], name[64], pub[64], extra;
        if (line[0] == '#' || line[strspn(line, " \t\r")] == '\0')
            continue;
        struct key_allow *a = &list[*n];
        if (sscanf(line, "%63s %15s %63s %c", pub, role, name, &extra) != 3 || !key_valid(pub) ||
            !role_parse(role, &a->role) || !name_valid(name))
            return err_set(ERR_CORRUPT, "%s: entry %u is not 'PUBLIC-KEY ROLE NAME' with role worker, admin or viewer",
                           path, *n + 1);
        memcpy(a->pub, pub, sizeof a->pub);
        memcpy(a->name, name, sizeof a->name);
        ++*n;
    }
    return ERR_OK;
}

enum err keys_read_allowed(const char *state_dir, struct key_allow **out, uint32_t *n)
{
    char path[PATH_MAX];
    size_t len, lines = 1;
    enum err e;
    *out = NULL;
    *n = 0;
    TRY(dir_file(state_dir, "allowed", path, sizeof path));
    char *text = malloc(ALLOWED_MAX);
    if (!text)
        return err_set(ERR_NOMEM, "no memory to read %s", path);
    TRY_GOTO(keys_file_read(path, text, ALLOWED_MAX, &len), done);
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    *out = calloc(lines, sizeof **out);
    e = *out ? parse_allowed(path, text, *out, n) : err_set(ERR_NOMEM, "no memory to read %s", path);
    if (e != ERR_OK) {
        free(*out);
        *out = NULL;
        *n = 0;
    }
done:
    free(text);
    return e;
}

static int find_name(const struct keys *k, const char *name)
{
    for (uint32_t i = 0; i < k->n_allowed; i++)
        if (strcmp(k->allowed[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* Sets or appends the entry and writes the list. */
static enum err allow(const char *state_dir, struct keys *k, const struct key_file *f)
{
    char path[PATH_MAX];
    struct buf text;
    TRY(dir_file(state_dir, "allowed", path, sizeof path));
    int at = find_name(k, f->name);
    if (at < 0) {
        struct key_allow *grown = realloc(k->allowed, (k->n_allowed + 1) * sizeof *grown);
        if (!grown)
            return err_set(ERR_NOMEM, "no memory for the allow-list");
        k->allowed = grown;
        at = (int)k->n_allowed++;
    }
    struct key_allow *a = &k->allowed[at];
    memset(a, 0, sizeof *a);
    memcpy(a->pub, f->pub, sizeof a->pub);
    memcpy(a->name, f->name, sizeof a->name);
    a->role = f->role;
    buf_init(&text);
    buf_puts(&text, "# who may connect: public key, role, name\n");
    for (uint32_t i = 0; i < k->n_allowed; i++)
        buf_printf(&text, "%s %s %s\n", k->allowed[i].pub, key_role_name(k->allowed[i].role), k->allowed[i].name);
    enum err e =
        text.failed ? err_set(ERR_NOMEM, "no memory for the allow-list") : keys_file_write(path, text.data, text.len);
    buf_deinit(&text);
    return e;
}

/* --- making keys; the caller holds the lock --- */

static enum err make_pair(struct key_file *f, const char *name)
{
    memset(f, 0, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    if (zmq_curve_keypair(f->pub, f->secret) != 0)
        return err_set(ERR_UNSUPPORTED, "this libzmq was built without CURVE");
    return ERR_OK;
}

static enum err make_peer(const char *state_dir, struct keys *k, const char *name, enum key_role role, const char *path)
{
    struct key_file f;
    enum err e;
    TRY(make_pair(&f, name));
    f.role = role;
    memcpy(f.server_pub, k->server.pub, sizeof f.server_pub);
    TRY_GOTO(allow(state_dir, k, &f), done);
    e = write_file(path, &f);
done:
    keys_wipe(&f);
    return e;
}

/* A local peer's key, where it is missing. */
static enum err ensure_local(const char *state_dir, struct keys *k, const char *name, enum key_role role)
{
    char path[PATH_MAX];
    struct key_file f;
    TRY(keys_path(state_dir, name, path, sizeof path));
    enum err e = keys_read_file(path, &f);
    keys_wipe(&f);
    if (e == ERR_NOT_FOUND)
        return make_peer(state_dir, k, name, role, path);
    return e;
}

static enum err ensure_coordinator(const char *state_dir, struct keys *k)
{
    char path[PATH_MAX];
    TRY(keys_path(state_dir, coordinator, path, sizeof path));
    enum err e = keys_read_file(path, &k->server);
    if (e == ERR_NOT_FOUND) {
        TRY(make_pair(&k->server, coordinator));
        e = write_file(path, &k->server);
    }
    if (e == ERR_OK && k->server.server_pub[0])
        e = err_set(ERR_CORRUPT, "%s is a peer's key file, not the coordinator's", path);
    return e;
}

static enum err load_locked(const char *state_dir, struct keys *k)
{
    TRY(ensure_coordinator(state_dir, k));
    enum err e = keys_read_allowed(state_dir, &k->allowed, &k->n_allowed);
    if (e != ERR_OK && e != ERR_NOT_FOUND)
        return e;
    TRY(ensure_local(state_dir, k, local_worker, KEY_ROLE_WORKER));
    return ensure_local(state_dir, k, local_admin, KEY_ROLE_ADMIN);
}

static enum err lock(const char *state_dir, int *fd)
{
    char path[PATH_MAX];
    *fd = -1;
    TRY(keys_file_mkdir(state_dir, 022));
    TRY(dir_file(state_dir, "", path, sizeof path));
    path[strlen(path) - 1] = '\0';
    TRY(keys_file_mkdir(path, 077));
    TRY(dir_file(state_dir, "lock", path, sizeof path));
    return keys_file_lock(path, fd);
}

enum err keys_load_or_create(const char *state_dir, struct keys *out)
{
    int fd;
    memset(out, 0, sizeof *out);
    TRY(lock(state_dir, &fd));
    enum err e = load_locked(state_dir, out);
    close(fd);
    if (e != ERR_OK)
        keys_deinit(out);
    return e;
}

enum err keys_add(const char *state_dir, const char *name, enum key_role role, char *path, size_t path_cap)
{
    struct keys k = {0};
    enum err e;
    int fd;
    TRY(keys_path(state_dir, name, path, path_cap));
    if ((unsigned)role >= sizeof role_names / sizeof *role_names)
        return err_set(ERR_INVALID, "unknown role %d", (int)role);
    TRY(lock(state_dir, &fd));
    TRY_GOTO(load_locked(state_dir, &k), done);
    if (find_name(&k, name) >= 0 || access(path, F_OK) == 0) {
        e = err_set(ERR_INVALID, "the name %s is taken; to make it anew delete %s and its line in %s/keys/allowed",
                    name, path, state_dir);
        goto done;
    }
    e = make_peer(state_dir, &k, name, role, path);
done:
    close(fd);
    keys_deinit(&k);
    return e;
}
