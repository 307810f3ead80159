/* HTTP for the commands, on libcurl: a JSON request, or a stream of server-sent events, to any OpenAI-compatible server. */
#ifndef CLI_CLIENT_H
#define CLI_CLIENT_H

#include "base/buf.h"

#include <curl/curl.h>
#include <stdbool.h>
#include <stdint.h>

/* Called with the JSON text of each `data:` event; false ends the request. */
typedef bool client_event_fn(void *arg, const char *json, size_t len);

struct client_request {
    CURL *curl;
    struct curl_slist *headers;
    struct buf body, reply, line; /* line: of the stream, not yet whole */
    client_event_fn *event;
    void *arg;
    bool done;                    /* data: [DONE] was seen */
    bool stopped;                 /* event said false */
    char error[CURL_ERROR_SIZE];
};

/* POST body (copied) to url + path; GET when body is NULL. event NULL: the whole reply goes to r->reply. api_key may be NULL. */
enum err client_request_init(struct client_request *r, const char *url, const char *path, const char *api_key, const struct buf *body,
                             client_event_fn *event, void *arg);
void client_request_deinit(struct client_request *r);
/* Runs it. ERR_UNAVAILABLE: no connection; ERR_INVALID...: the server's own error message is the detail. */
enum err client_request_run(struct client_request *r);
/* Several at once: start each, then ask (and curl_multi_poll) until all have ended. ended: sends and receives what can be, then one that is done, its outcome as
 * client_request_run tells it in *e; NULL: none for now. One that is given up is removed from multi by the caller. */
enum err client_request_start(struct client_request *r, CURLM *multi);
struct client_request *client_request_ended(CURLM *multi, enum err *e);
/* The first key of a file of API keys (one a line, # begins a comment). */
enum err client_read_key(const char *path, struct buf *key);
#endif
