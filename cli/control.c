/* See control.h. The link says HELLO (role admin) before the first question, as every peer does. */
#include "cli/control.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "cli/cli.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct control {
    struct link_context *ctx;
    struct link_client *link;
    uint64_t next_id;
    bool greeted;
};

enum err control_open(const char *endpoint, const char *state_dir, const char *key_file, struct control **out)
{
    char path[PATH_MAX];
    if (!key_file) {
        snprintf(path, sizeof(path), "%s/keys/local-admin.key", state_dir);
        key_file = path;
    }
    struct key_file key;
    TRY(keys_read_file(key_file, &key));
    struct control *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(ERR_NOMEM, "no memory for the admin link");
    enum err e = link_context_create(NULL, NULL, &c->ctx);
    if (e == ERR_OK)
        e = link_client_open(c->ctx, endpoint, &key, &c->link);
    if (e != ERR_OK)
        control_close(&c);
    *out = c;
    return e;
}

enum err control_open_options(const struct options *o, struct control **out)
{
    char state[256], runtime[256], endpoint[PATH_MAX + 32];
    TRY(keys_state_dir(o->state_dir, state, sizeof(state)));
    if (o->join) {
        snprintf(endpoint, sizeof(endpoint), "%s", o->join);
    } else {
        TRY(keys_runtime_dir(o->runtime_dir, runtime, sizeof(runtime)));
        snprintf(endpoint, sizeof(endpoint), "%s/current/control.sock", runtime);
        if (access(endpoint, F_OK) != 0)
            return err_set(ERR_NOT_FOUND, "no coordinator runs on this machine (%s); start `racklm serve`, or name one with --join", endpoint);
        snprintf(endpoint, sizeof(endpoint), "ipc://%s/current/control.sock", runtime);
    }
    return control_open(endpoint, state, o->key_file, out);
}

void control_close(struct control **cp)
{
    struct control *c = *cp;
    if (!c)
        return;
    link_client_close(&c->link);
    link_context_destroy(&c->ctx);
    free(c);
    *cp = NULL;
}

static enum err greet(struct control *c)
{
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    struct msg m = {.type = MSG_HELLO,
                    .hello = {.version_min = PROTO_VERSION_MIN, .version_max = PROTO_VERSION_MAX, .role = "admin", .host = host, .pid = (uint32_t)getpid()}};
    rng_system(&m.hello.peer_id, sizeof(m.hello.peer_id));
    TRY(link_client_send(c->link, &m));
    c->greeted = true;
    return ERR_OK;
}

enum err control_ask(struct control *c, enum admin_verb verb, uint32_t timeout_ms, struct arena *arena, struct msg_admin_reply *out)
{
    uint64_t end = clock_ns() + timeout_ms * NS_PER_MS;
    if (!c->greeted)
        TRY(greet(c));
    struct msg m = {.type = MSG_ADMIN_REQUEST, .admin_request = {.verb = verb, .id = ++c->next_id}};
    TRY(link_client_send(c->link, &m));
    for (;;) {
        uint64_t now = clock_ns();
        if (now >= end)
            return err_set(ERR_TIMEOUT, "the coordinator does not answer");
        TRY(link_client_wait(c->link, arena, (uint32_t)((end - now) / NS_PER_MS + 1), &m));
        if (m.type == MSG_REFUSE) {
            c->greeted = false;
            return err_set((enum err)MIN(m.refuse.err, (uint32_t)ERR_INTERNAL), "refused by the coordinator: %s", m.refuse.text);
        }
        if (m.type == MSG_ADMIN_REPLY && m.admin_reply.id == c->next_id) {
            *out = m.admin_reply;
            return ERR_OK;
        }
    }
}

static enum err ask_once(const struct options *o, enum admin_verb verb, struct arena *arena, struct msg_admin_reply *out)
{
    enum { ASK_TIMEOUT_MS = 3000 };
    struct control *c;
    TRY(control_open_options(o, &c));
    enum err e = control_ask(c, verb, ASK_TIMEOUT_MS, arena, out);
    control_close(&c);
    return e;
}

int control_show(const char *command, enum admin_verb verb, control_json_fn *json, control_text_fn *text, struct options *o, int argc, char **argv)
{
    if (!cli_flags(command, NULL, 0, o, OPTION_CLIENT, &argc, argv))
        return CLI_USAGE;
    if (argc != 1)
        return cli_usage(command, "\"%s\" is not expected", argv[1]);
    struct arena arena;
    struct msg_admin_reply r;
    arena_init(&arena, 0);
    enum err e = ask_once(o, verb, &arena, &r);
    if (e == ERR_OK && o->output == 1) {
        struct buf b;
        buf_init(&b);
        json(&b, &r);
        buf_putc(&b, '\n');
        fwrite(b.data, 1, b.len, stdout);
        buf_deinit(&b);
    } else if (e == ERR_OK) {
        text(&r);
    }
    arena_deinit(&arena);
    return e == ERR_OK ? CLI_OK : cli_fail_err(command, e);
}
