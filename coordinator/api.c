/* Routes and who may use them. A route that is not in the table is refused; one that is, with the role it names. */
#include "coordinator/api.h"

#include "base/check.h"
#include "base/clock.h"

#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum role { ROLE_ANYONE, ROLE_KEY };

static void chat_completions(struct api *a, struct http_exchange *x)
{
    api_generate(a, x, true);
}

static void completions(struct api *a, struct http_exchange *x)
{
    api_generate(a, x, false);
}

static void models(struct api *a, struct http_exchange *x)
{
    api_models(a, x, NULL);
}

static const struct route {
    const char *path;
    enum http_method method;
    enum role role;
    void (*fn)(struct api *a, struct http_exchange *x);
} routes[] = {
    {"/health", HTTP_GET, ROLE_ANYONE, api_health},
    {"/version", HTTP_GET, ROLE_ANYONE, api_version},
    {"/metrics", HTTP_GET, ROLE_KEY, api_metrics},
    {"/v1/models", HTTP_GET, ROLE_KEY, models},
    {"/v1/chat/completions", HTTP_POST, ROLE_KEY, chat_completions},
    {"/v1/completions", HTTP_POST, ROLE_KEY, completions},
    {"/v1/embeddings", HTTP_POST, ROLE_KEY, api_embeddings},
    {"/v1/rerank", HTTP_POST, ROLE_KEY, api_rerank},
    {"/v2/rerank", HTTP_POST, ROLE_KEY, api_rerank},
    {"/rerank", HTTP_POST, ROLE_KEY, api_rerank},
    {"/v1/score", HTTP_POST, ROLE_KEY, api_score},
    {"/score", HTTP_POST, ROLE_KEY, api_score},
    {"/tokenize", HTTP_POST, ROLE_KEY, api_tokenize},
    {"/detokenize", HTTP_POST, ROLE_KEY, api_detokenize},
    {"/apply-template", HTTP_POST, ROLE_KEY, api_apply_template},
};
static const char models_prefix[] = "/v1/models/";

bool api_error(struct api_error *e, int status, const char *param, const char *fmt, ...)
{
    if (e->status)
        return false;
    e->status = status;
    snprintf(e->param, sizeof(e->param), "%s", param ? param : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, ap);
    va_end(ap);
    return false;
}

void api_fail(struct http_exchange *x, const struct api_error *e)
{
    struct buf b;
    buf_init(&b);
    http_error_body(&b, e->status, e->param[0] ? e->param : NULL, e->message);
    if (e->status == 429 || e->status == 503)
        http_set_header(x, "Retry-After", "1");
    if (e->status == 401)
        http_set_header(x, "WWW-Authenticate", "Bearer");
    api_reply_json(x, e->status, &b);
}

void api_reply_json(struct http_exchange *x, int status, struct buf *body)
{
    static const char no_memory[] = "{\"error\":{\"message\":\"out of memory\",\"type\":\"unavailable_error\",\"param\":null,\"code\":503}}";
    if (body->failed)
        http_reply(x, 503, "application/json", no_memory, sizeof(no_memory) - 1);
    else
        http_reply(x, status, "application/json", body->data ? body->data : "", body->len);
    buf_deinit(body);
}

static void hash_key(const char *key, size_t len, uint8_t out[32])
{
    crypto_generichash(out, 32, (const unsigned char *)key, len, NULL, 0);
}

/* Compares hashes, all of them, so that the time tells nothing of a key. */
static bool key_known(const struct api *a, const char *header)
{
    if (!header || strncasecmp(header, "Bearer ", 7) != 0)
        return false;
    header += 7;
    while (*header == ' ')
        header++;
    uint8_t h[32];
    hash_key(header, strlen(header), h);
    int found = 0;
    for (uint32_t i = 0; i < a->n_keys; i++)
        found |= sodium_memcmp(h, a->key_hashes[i], 32) == 0;
    return found != 0;
}

/* Without keys only this machine is served, and a web page that points its own name at loopback (DNS rebinding) is no client of ours. */
static bool host_allowed(const char *host)
{
    if (!host)
        return true;
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        size_t n = strlen(names[i]);
        if (strncasecmp(host, names[i], n) == 0 && (host[n] == '\0' || host[n] == ':'))
            return true;
    }
    return strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.:") == strlen(host);
}

static bool allowed(const struct api *a, const struct http_head *head, enum role role, struct api_error *e)
{
    if (a->n_keys == 0 && a->loopback && !host_allowed(head->host))
        return api_error(e, 403, NULL, "the Host header names another machine; without an API key this server answers to localhost only");
    if (role == ROLE_KEY && a->n_keys > 0 && !key_known(a, head->authorization))
        return api_error(e, 401, NULL, "this server needs an API key in the header `Authorization: Bearer KEY`");
    return true;
}

/* Before the body: the same question as in api_handle, for whoever has a long one to send. What anyone may ask for takes no body. */
int api_admit(void *arg, const struct http_head *head, char *text, size_t cap)
{
    struct api_error e = {0};
    if (!allowed(arg, head, ROLE_KEY, &e))
        snprintf(text, cap, "%s", e.message);
    return e.status;
}

/* "GET, HEAD" or "POST", whichever the path takes. */
static void set_allow(struct http_exchange *x, const char *path)
{
    bool get = strncmp(path, models_prefix, sizeof(models_prefix) - 1) == 0;
    for (size_t i = 0; i < ARRAY_LEN(routes); i++)
        get |= strcmp(routes[i].path, path) == 0 && routes[i].method == HTTP_GET;
    http_set_header(x, "Allow", get ? "GET, HEAD" : "POST");
}

void api_handle(void *arg, struct http_exchange *x)
{
    struct api *a = arg;
    struct api_error e = {0};
    const char *path = http_path(x);
    enum http_method method = http_method(x);
    struct http_head head = {.authorization = http_header(x, "Authorization"), .host = http_header(x, "Host")};
    bool known_path = false;
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        if (strcmp(routes[i].path, path) != 0)
            continue;
        known_path = true;
        if (routes[i].method != method && !(method == HTTP_HEAD && routes[i].method == HTTP_GET))
            continue;
        if (allowed(a, &head, routes[i].role, &e))
            routes[i].fn(a, x);
        else
            api_fail(x, &e);
        return;
    }
    if (!allowed(a, &head, ROLE_KEY, &e)) {
        api_fail(x, &e);
        return;
    }
    if (strncmp(path, models_prefix, sizeof(models_prefix) - 1) == 0) {
        known_path = true;
        if (method == HTTP_GET || method == HTTP_HEAD) {
            api_models(a, x, path + sizeof(models_prefix) - 1);
            return;
        }
    }
    if (known_path)
        set_allow(x, path);
    if (known_path)
        api_error(&e, 405, NULL, "this path does not take that HTTP method");
    else
        api_error(&e, 404, NULL, "there is no such path; see /v1/models, /v1/chat/completions, /v1/completions");
    api_fail(x, &e);
}

void api_gone(void *arg, struct http_exchange *x)
{
    (void)arg;
    struct api_client *c = http_user(x);
    if (c)
        c->gone(c);
}

static enum err add_key(struct api *a, const char *key, size_t len)
{
    void *p = realloc(a->key_hashes, (a->n_keys + 1) * sizeof(*a->key_hashes));
    if (!p)
        return err_set(ERR_NOMEM, "no memory for API keys");
    a->key_hashes = p;
    hash_key(key, len, a->key_hashes[a->n_keys++]);
    return ERR_OK;
}

static enum err load_keys(struct api *a)
{
    if (a->opts->api_key && a->opts->api_key[0])
        TRY(add_key(a, a->opts->api_key, strlen(a->opts->api_key)));
    if (!a->opts->api_key_file)
        return ERR_OK;
    struct buf b;
    buf_init(&b);
    enum err e = buf_read_file(&b, a->opts->api_key_file, 1 << 20);
    uint32_t before = a->n_keys;
    for (char *p = b.data, *end; e == ERR_OK && p && p < b.data + b.len; p = end + 1) {
        end = memchr(p, '\n', (size_t)(b.data + b.len - p));
        if (!end)
            end = b.data + b.len;
        size_t len = (size_t)(end - p);
        while (len && (p[len - 1] == '\r' || p[len - 1] == ' '))
            len--;
        if (len && *p != '#')
            e = add_key(a, p, len);
    }
    if (b.data)
        sodium_memzero(b.data, b.len);
    buf_deinit(&b);
    if (e == ERR_OK && a->n_keys == before)
        e = err_set(ERR_CONFIG, "http.api_key_file: %s holds no key (one a line)", a->opts->api_key_file);
    return e;
}

enum err api_init(struct api *a)
{
    if (sodium_init() < 0)
        return err_set(ERR_INTERNAL, "libsodium does not start");
    TRY(load_keys(a));
    const char *host = a->opts->host;
    a->loopback = strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0;
    if (!a->loopback && a->n_keys == 0)
        return err_set(ERR_CONFIG, "http.host: %s is reachable from other machines; give --api-key-file (or --api-key), or listen on 127.0.0.1", host);
    a->started_s = clock_unix_s();
    return ERR_OK;
}

void api_deinit(struct api *a)
{
    for (uint32_t i = 0; i < a->gens_cap; i++)
        if (a->gens[i])
            api_generation_gone(a->gens[i]);
    free(a->gens);
    api_embed_deinit(a);
    free(a->key_hashes);
}
