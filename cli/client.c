/* See client.h. */
#include "cli/client.h"

#include "base/check.h"
#include "cli/cli.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static bool feed_line(struct client_request *r)
{
    const char *p = r->line.data;
    size_t len = r->line.len;
    while (len && p[len - 1] == '\r')
        len--;
    if (len < 5 || memcmp(p, "data:", 5) != 0)
        return true;
    p += 5;
    len -= 5;
    while (len && *p == ' ') {
        p++;
        len--;
    }
    if (len == 6 && memcmp(p, "[DONE]", 6) == 0) {
        r->done = true;
        return true;
    }
    return r->event(r->arg, p, len);
}

static size_t on_data(char *p, size_t size, size_t n, void *arg)
{
    struct client_request *r = arg;
    size_t len = size * n;
    long status = 0;
    curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, &status);
    if (!r->event || status >= 400) {
        buf_append(&r->reply, p, len);
        return len;
    }
    for (size_t i = 0; i < len;) {
        char *nl = memchr(p + i, '\n', len - i);
        size_t part = nl ? (size_t)(nl - p) - i : len - i;
        buf_append(&r->line, p + i, part);
        i += part + (nl ? 1 : 0);
        if (!nl)
            break;
        if (r->line.len && !feed_line(r)) {
            r->stopped = true;
            return 0;
        }
        buf_clear(&r->line);
    }
    return len;
}

enum err client_request_init(struct client_request *r, const char *url, const char *path, const char *api_key, const struct buf *body,
                             client_event_fn *event, void *arg)
{
    memset(r, 0, sizeof(*r));
    buf_init(&r->body);
    buf_init(&r->reply);
    buf_init(&r->line);
    r->event = event;
    r->arg = arg;
    r->curl = curl_easy_init();
    if (!r->curl)
        return err_set(ERR_NOMEM, "libcurl does not start");
    struct buf full;
    buf_init(&full);
    size_t n = strlen(url);
    while (n && url[n - 1] == '/')
        n--;
    buf_append(&full, url, n);
    if (n >= 3 && memcmp(url + n - 3, "/v1", 3) == 0 && strncmp(path, "/v1/", 4) == 0)
        path += 3; /* both forms of a base URL are in use */
    buf_puts(&full, path);
    r->headers = curl_slist_append(NULL, "Content-Type: application/json");
    r->headers = curl_slist_append(r->headers, "Expect:");
    if (api_key) {
        struct buf h;
        buf_init(&h);
        buf_printf(&h, "Authorization: Bearer %s", api_key);
        r->headers = curl_slist_append(r->headers, h.data);
        buf_deinit(&h);
    }
    if (body) {
        buf_append(&r->body, body->data, body->len);
        curl_easy_setopt(r->curl, CURLOPT_POSTFIELDS, r->body.data);
        curl_easy_setopt(r->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body.len);
    }
    curl_easy_setopt(r->curl, CURLOPT_URL, full.data);
    curl_easy_setopt(r->curl, CURLOPT_HTTPHEADER, r->headers);
    curl_easy_setopt(r->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(r->curl, CURLOPT_WRITEDATA, r);
    curl_easy_setopt(r->curl, CURLOPT_ERRORBUFFER, r->error);
    curl_easy_setopt(r->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(r->curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(r->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(r->curl, CURLOPT_PRIVATE, r);
    bool failed = full.failed || r->body.failed;
    buf_deinit(&full);
    return failed ? err_set(ERR_NOMEM, "no memory for a request") : ERR_OK;
}

void client_request_deinit(struct client_request *r)
{
    if (r->curl)
        curl_easy_cleanup(r->curl);
    curl_slist_free_all(r->headers);
    buf_deinit(&r->body);
    buf_deinit(&r->reply);
    buf_deinit(&r->line);
    memset(r, 0, sizeof(*r));
}

/* The HTTP status and the server's message as an error. */
static enum err check(const struct client_request *r)
{
    long status = 0;
    curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status < 400)
        return ERR_OK;
    json_t *o = json_loadb(r->reply.data ? r->reply.data : "", r->reply.len, 0, NULL);
    const json_t *e = json_object_get(o, "error");
    const char *message = json_is_string(e) ? json_string_value(e) : json_string_value(json_object_get(e, "message"));
    err_set(status == 429 ? ERR_BUSY : status >= 500 ? ERR_UNAVAILABLE : ERR_INVALID, "the server answers %ld: %.400s", status,
            message ? message : r->reply.data ? r->reply.data : "");
    json_decref(o);
    return status == 429 ? ERR_BUSY : status >= 500 ? ERR_UNAVAILABLE : ERR_INVALID;
}

static enum err outcome(const struct client_request *r, CURLcode rc)
{
    if (rc != CURLE_OK && !(rc == CURLE_WRITE_ERROR && r->stopped))
        return err_set(ERR_UNAVAILABLE, "%s", r->error[0] ? r->error : curl_easy_strerror(rc));
    return check(r);
}

enum err client_request_run(struct client_request *r)
{
    return outcome(r, curl_easy_perform(r->curl));
}

enum err client_request_start(struct client_request *r, CURLM *multi)
{
    return curl_multi_add_handle(multi, r->curl) == CURLM_OK ? ERR_OK : err_set(ERR_INTERNAL, "libcurl takes no more requests");
}

struct client_request *client_request_ended(CURLM *multi, enum err *e)
{
    int active, left;
    curl_multi_perform(multi, &active);
    for (CURLMsg *m; (m = curl_multi_info_read(multi, &left)) != NULL;) {
        struct client_request *r = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &r);
        *e = outcome(r, m->data.result);
        curl_multi_remove_handle(multi, r->curl);
        return r;
    }
    return NULL;
}

enum err client_read_key(const char *path, struct buf *key)
{
    struct buf file;
    buf_init(&file);
    enum err e = buf_read_file(&file, path, 1 << 20);
    for (size_t at = 0, len; e == ERR_OK && at < file.len && key->len == 0; at += len + 1) {
        len = strcspn(file.data + at, "\n");
        size_t used = len;
        while (used && (file.data[at + used - 1] == '\r' || file.data[at + used - 1] == ' '))
            used--;
        if (used && file.data[at] != '#')
            buf_append(key, file.data + at, used);
    }
    if (e == ERR_OK && key->len == 0)
        e = err_set(ERR_INVALID, "%s holds no key", path);
    buf_deinit(&file);
    return e;
}
