/* Answers libzmq's question "may this key connect?" for every handshake of the process's servers.
 *
 * libzmq asks over inproc with REQ's framing: version, request id, domain, address, identity, mechanism, the client's
 * 32-byte key. Without a handler it would let every key in; link.c therefore starts this one before any bind and sets
 * ZMQ_ZAP_ENFORCE_DOMAIN. The list is read again when the file's identity (inode, times, size) has changed: one stat a
 * handshake. When it cannot be read, nobody gets in, with a temporary refusal: such clients try again by themselves. An
 * unknown key, or one without the role, gets a final refusal that its client can show. A key taken out of the list
 * keeps the connections it has: the list decides who may connect, not who may stay. Threading: one thread owns the list
 * and the socket; the counter is atomic; everything else is written before the thread starts. */
#include "proto/link_zap.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zmq.h>

enum { FRAMES = 7, FRAME_MAX = 256 };

struct link_zap {
    void *sock;
    pthread_t thread;
    char state_dir[PATH_MAX], path[PATH_MAX + 16];
    struct key_allow *allowed;
    uint32_t n_allowed;
    struct stat seen; /* of the list as it was read; zero: never */
    bool readable;
    uint64_t log_ns;      /* of the last line about a refusal */
    uint64_t log_skipped; /* refusals since then: a stranger must not fill the log */
    atomic_uint_fast64_t refused;
};

static const char domain_prefix[] = "racklm/";

void link_zap_domain(unsigned roles, char *buf, size_t cap)
{
    snprintf(buf, cap, "%s%u", domain_prefix, roles);
}

int link_zap_user(const char *user_id, enum key_role *role, char *name)
{
    const char *blank = user_id ? strchr(user_id, ' ') : NULL;
    if (!blank || strlen(blank + 1) >= 64)
        return 0;
    for (int r = KEY_ROLE_WORKER; r <= KEY_ROLE_VIEWER; r++) {
        const char *s = key_role_name((enum key_role)r);
        if (strlen(s) == (size_t)(blank - user_id) && memcmp(s, user_id, strlen(s)) == 0) {
            *role = (enum key_role)r;
            strcpy(name, blank + 1);
            return 1;
        }
    }
    return 0;
}

/* --- the list --- */

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size && a->st_mode == b->st_mode &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static void refresh(struct link_zap *z)
{
    struct stat st;
    if (!z->state_dir[0])
        return;
    if (stat(z->path, &st) != 0)
        memset(&st, 0, sizeof st);
    if (same_file(&st, &z->seen) && z->readable)
        return;
    struct key_allow *list;
    uint32_t n;
    bool was_readable = z->readable;
    enum err e = keys_read_allowed(z->state_dir, &list, &n);
    z->seen = st; /* taken before the reading: a change in between is seen the next time */
    z->readable = e == ERR_OK;
    free(z->allowed);
    z->allowed = list;
    z->n_allowed = n;
    if (e == ERR_OK)
        LOG(INFO, PROTO, "allow-list read", "keys=%u", n);
    else if (was_readable)
        LOG(ERROR, PROTO, "allow-list cannot be read; nobody can connect", "error=%s detail=\"%s\"", err_name(e),
            err_detail());
}

static const struct key_allow *find(const struct link_zap *z, const char *pub)
{
    for (uint32_t i = 0; i < z->n_allowed; i++) /* public keys: comparing needs no constant time */
        if (strcmp(z->allowed[i].pub, pub) == 0)
            return &z->allowed[i];
    return NULL;
}

/* --- one question --- */

struct request {
    char frame[FRAMES][FRAME_MAX + 1];
    size_t len[FRAMES];
};

/* False when it is no request of the version we speak; *ended: the context is going down. */
static bool read_request(void *sock, struct request *r, bool *ended)
{
    unsigned n = 0;
    int more = 1;
    bool ok = true;
    memset(r, 0, sizeof *r);
    *ended = false;
    while (more) {
        char spare[FRAME_MAX];
        char *to = n < FRAMES ? r->frame[n] : spare;
        int len = zmq_recv(sock, to, FRAME_MAX, 0);
        if (len < 0 && errno == EINTR)
            continue;
        if (len < 0) {
            *ended = true;
            return false;
        }
        ok = ok && len <= FRAME_MAX && n < FRAMES;
        if (n < FRAMES) {
            r->len[n] = (size_t)(len <= FRAME_MAX ? len : FRAME_MAX);
            r->frame[n][r->len[n]] = '\0';
        }
        n++;
        size_t size = sizeof more;
        if (zmq_getsockopt(sock, ZMQ_RCVMORE, &more, &size) != 0) {
            *ended = true;
            return false;
        }
    }
    return ok && n == FRAMES && strcmp(r->frame[0], "1.0") == 0;
}

static void reply(void *sock, const struct request *r, const char *code, const char *text, const char *user)
{
    zmq_send(sock, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(sock, r->frame[1], r->len[1], ZMQ_SNDMORE);
    zmq_send(sock, code, strlen(code), ZMQ_SNDMORE);
    zmq_send(sock, text, strlen(text), ZMQ_SNDMORE);
    zmq_send(sock, user, strlen(user), ZMQ_SNDMORE);
    zmq_send(sock, "", 0, 0); /* no metadata */
}

static void log_refused(struct link_zap *z, const char *why, const char *name, const char *address)
{
    uint64_t now = clock_ns();
    if (z->log_ns && now - z->log_ns < NS_PER_S) {
        z->log_skipped++;
        return;
    }
    LOG(WARN, PROTO, "a peer was refused", "why=\"%s\" key=%s address=%s more=%llu", why, name,
        address[0] ? address : "local", (unsigned long long)z->log_skipped);
    z->log_ns = now;
    z->log_skipped = 0;
}

static void answer(struct link_zap *z, const struct request *r)
{
    char pub[41], user[96];
    unsigned roles = 0;
    size_t prefix = sizeof domain_prefix - 1;
    const char *why = "unknown key", *name = "unknown";

    refresh(z);
    if (strncmp(r->frame[2], domain_prefix, prefix) == 0)
        roles = (unsigned)strtoul(r->frame[2] + prefix, NULL, 10);
    if (strcmp(r->frame[5], "CURVE") == 0 && r->len[6] == 32 && zmq_z85_encode(pub, (const uint8_t *)r->frame[6], 32)) {
        const struct key_allow *a = find(z, pub);
        if (a && (roles & 1u << a->role)) {
            snprintf(user, sizeof user, "%s %s", key_role_name(a->role), a->name);
            reply(z->sock, r, "200", "OK", user);
            return;
        }
        if (a) {
            why = "wrong role";
            name = a->name;
        }
    }
    atomic_fetch_add(&z->refused, 1);
    if (z->readable || !z->state_dir[0])
        reply(z->sock, r, "400", why, "");
    else
        reply(z->sock, r, "300", "try later", "");
    log_refused(z, why, name, r->frame[3]);
}

static void *serve(void *arg)
{
    struct link_zap *z = arg;
    struct request r;
    bool ended = false;
    while (!ended) {
        if (read_request(z->sock, &r, &ended))
            answer(z, &r);
        else if (!ended)
            reply(z->sock, &r, "500", "malformed request", "");
    }
    zmq_close(z->sock);
    return NULL;
}

/* --- life --- */

static enum err copy_keys(struct link_zap *z, const struct keys *keys, const char *state_dir)
{
    z->allowed = calloc(keys->n_allowed ? keys->n_allowed : 1, sizeof *z->allowed);
    if (!z->allowed)
        return err_set(ERR_NOMEM, "no memory for the allow-list");
    if (keys->n_allowed)
        memcpy(z->allowed, keys->allowed, keys->n_allowed * sizeof *z->allowed);
    z->n_allowed = keys->n_allowed;
    z->readable = true;
    if (state_dir && (strlen(state_dir) >= sizeof z->state_dir))
        return err_set(ERR_INVALID, "the state directory's path is too long");
    if (state_dir) {
        strcpy(z->state_dir, state_dir);
        snprintf(z->path, sizeof z->path, "%s/keys/allowed", state_dir);
    }
    return ERR_OK;
}

enum err link_zap_start(void *zmq_context, const struct keys *keys, const char *state_dir, struct link_zap **out)
{
    enum err e;
    sigset_t all, old;
    int zero = 0;
    struct link_zap *z = calloc(1, sizeof *z);
    *out = NULL;
    if (!z)
        return err_set(ERR_NOMEM, "no memory for the authenticator");
    TRY_GOTO(copy_keys(z, keys, state_dir), fail);
    z->sock = zmq_socket(zmq_context, ZMQ_REP);
    if (!z->sock || zmq_setsockopt(z->sock, ZMQ_LINGER, &zero, sizeof zero) != 0 ||
        zmq_bind(z->sock, "inproc://zeromq.zap.01") != 0) {
        e = err_set(ERR_INTERNAL, "the authenticator cannot start: %s", zmq_strerror(zmq_errno()));
        goto fail;
    }
    /* Signals are for the threads that the process chose. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&z->thread, NULL, serve, z);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        e = err_set(ERR_NOMEM, "the authenticator's thread cannot start: %s", strerror(rc));
        goto fail;
    }
    *out = z;
    return ERR_OK;
fail:
    if (z->sock)
        zmq_close(z->sock);
    free(z->allowed);
    free(z);
    return e;
}

void link_zap_stop(struct link_zap **z)
{
    if (!*z)
        return;
    pthread_join((*z)->thread, NULL);
    free((*z)->allowed);
    free(*z);
    *z = NULL;
}

uint64_t link_zap_refused(const struct link_zap *z)
{
    return z ? atomic_load(&z->refused) : 0;
}
