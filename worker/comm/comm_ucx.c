/* comm.h between processes, on UCP tag matching: the only file that knows UCX.
 *
 * Within a host the transports are shared memory only (TLS posix, cma, self): no listening socket exists, and UCX needs no malloc or
 * mmap hooks. Posix segments are unlinked as soon as they are made (UCX opens its peers' through /proc), so that a killed
 * process leaves nothing; System V segments, which could stay behind, are used only where posix ones cannot be had. Between hosts
 * the one configured device is added: TCP for a network interface, RC and UD for an RDMA device.
 *
 * Failures: endpoints within a host use UCP_ERR_HANDLING_MODE_NONE, since the other mode gives up shared memory; a dead peer is then
 * seldom noticed here, and the wait ends by the deadline or the abort flag. It is noticed when its memory cannot be copied any more:
 * UCX reports that at level FATAL, whose handler ends the process, so such reports are taken over (on_log) and the request fails.
 * Endpoints to other hosts use UCP_ERR_HANDLING_MODE_PEER. After the first error the UCP worker is destroyed at once, so that nothing writes into a buffer
 * of the caller any more.
 *
 * Tags: kind, source rank, low bits of the epoch, number of the operation. UCX keeps the order of a pair; the number only turns
 * a rank that ran out of step into a timeout instead of wrong numbers.
 *
 * Waiting: a rank that owns its core polls for a while (an all-gather is microseconds), then sleeps on UCX's eventfd (ucp_worker_arm);
 * a rank that shares its core gives it away at once (a few sched_yield, then the same sleep). Senders signal only receivers
 * that sleep. How long it polls adapts: a wait that ends while polling lets the next one poll longer, one that ends in a sleep halves it.
 * That matters when somebody else works on "our" cores: two ranks that poll for 1.5 ms each then keep the core from one another (8 KiB
 * all-gather: 3.4 ms on two busy cores, 0.01 ms when they sleep; 1.4 us on idle ones either way).
 *
 * Threading: one thread; comm_abort from others writes to an eventfd. */
#include "worker/comm/comm_impl.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

enum {
    SPIN_NS_MAX = 400000,         /* own_core: longer than the waits of a balanced step */
    SPIN_NS_MIN = 5000,
    SPIN_NS_ALONE = 20000,        /* from here on it yields between polls */
    SPIN_CHECK = 64,              /* polls between two looks at the clock */
    SHARED_POLLS = 2,             /* not own_core: polls before each yield */
    SHARED_YIELDS = 8,            /* and yields before sleeping */
    RING_MIN_BYTES = 256 << 10,   /* parts from here on go round a ring: one sender a link at a time */
    CLOSE_NS = 500000000,         /* closing connections to other hosts */
    CARRIER_NS = 1200000000,      /* the kernel reports a carrier within a second */
    ADDRESS_VERSION = 1,
    ADDRESS_HEAD = 1 + 8,         /* version, host id */
};
enum kind { KIND_HELLO, KIND_GATHER, KIND_PAIR };

/* What UCX leaves room for in each of its requests; those under way are on a ring, so that they can be cancelled. */
struct request {
    struct request *prev, *next;
};

struct ucx {
    struct comm c;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_ep_h *eps;                 /* [n] */
    bool *far;                     /* [n] on another host */
    uint32_t *send_seq, *recv_seq; /* [n] */
    uint32_t gather_seq;
    uint32_t pending;              /* operations under way, and ... */
    struct request requests;       /* ... those that UCX has made requests of; head of the ring */
    ucs_status_t failed;           /* first failure of a request or an endpoint */
    uint64_t spin_ns;              /* how long the next wait polls */
    int worker_fd, wake_fd;
    bool net;                      /* a device for other hosts is open */
    uint64_t host_id;
};

static enum err fail_ucx(enum err e, const char *what, ucs_status_t st)
{
    return err_set(e, "comm: %s: %s", what, ucs_status_string(st));
}

static ucp_tag_t tag_of(const struct comm *c, enum kind kind, uint32_t from, uint32_t seq)
{
    return (uint64_t)kind << 60 | (uint64_t)from << 48 | (c->epoch & 0xffffff) << 24 | (seq & 0xffffff);
}

/* What must be equal for two processes to reach each other's shared memory: the boot, and the namespaces. The network is among
 * them so that two network namespaces are two hosts. */
static uint64_t read_host_id(void)
{
    static const char *const links[] = {"/proc/self/ns/net", "/proc/self/ns/ipc", "/proc/self/ns/pid", "/proc/self/ns/user"};
    char text[512];
    size_t len = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t got = read(fd, text, 64);
        len = got > 0 ? (size_t)got : 0;
        close(fd);
    }
    for (unsigned i = 0; i < ARRAY_LEN(links); i++) {
        ssize_t got = readlink(links[i], text + len, 64);
        len += got > 0 ? (size_t)got : 0;
    }
    uint64_t h = 14695981039346656037ull; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        h = (h ^ (uint8_t)text[i]) * 1099511628211ull;
    return h;
}

/* ---- waiting ---- */

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static enum err sleep_once(struct ucx *u, const char *what)
{
    ucs_status_t st = ucp_worker_arm(u->worker);
    if (st == UCS_ERR_BUSY)
        return ERR_OK; /* something came in meanwhile */
    if (st != UCS_OK)
        return fail_ucx(ERR_IO, "ucp_worker_arm", st);
    uint64_t now = clock_ns(), until = comm_wake_ns(&u->c);
    if (now < until) {
        struct pollfd fds[2] = {{u->worker_fd, POLLIN, 0}, {u->wake_fd, POLLIN, 0}};
        uint64_t left = until - now;
        struct timespec ts = {(time_t)MIN(left / NS_PER_S, 3600), (long)(left % NS_PER_S)};
        ppoll(fds, 2, &ts, NULL);
        now = clock_ns();
    }
    return comm_check(&u->c, what, now);
}

/* Until no request is pending. */
static enum err wait_pending(struct ucx *u, const char *what)
{
    uint64_t spin_until = 0;
    bool slept = false;
    for (unsigned n = 1; u->pending > 0 && u->failed == UCS_OK; n++) {
        if (ucp_worker_progress(u->worker) > 0 && n % SPIN_CHECK != 0)
            continue;
        if (u->c.own_core) {
            relax();
            if (n % SPIN_CHECK != 0)
                continue;
            uint64_t now = clock_ns();
            TRY(comm_check(&u->c, what, now));
            if (spin_until == 0)
                spin_until = now + u->spin_ns;
            if (now < spin_until) {
                if (spin_until - now < u->spin_ns - MIN(u->spin_ns, SPIN_NS_ALONE))
                    sched_yield(); /* nothing on a core of our own */
                continue;
            }
        } else {
            if (n % SHARED_POLLS != 0)
                continue;
            if (n / SHARED_POLLS % (SHARED_YIELDS + 1) != 0) {
                sched_yield();
                continue;
            }
        }
        slept = true;
        TRY(sleep_once(u, what));
    }
    u->spin_ns = slept ? MAX(u->spin_ns / 2, SPIN_NS_MIN) : MIN(u->spin_ns * 2, SPIN_NS_MAX);
    if (u->failed == UCS_OK)
        return ERR_OK;
    if (u->failed == UCS_ERR_MESSAGE_TRUNCATED)
        return err_set(ERR_PROTOCOL, "comm: a peer sent another length than expected in %s", what);
    return fail_ucx(ERR_PEER_LOST, what, u->failed);
}

/* ---- requests ---- */

static void finish(struct ucx *u, void *request, ucs_status_t st)
{
    u->pending--;
    if (st != UCS_OK && u->failed == UCS_OK)
        u->failed = st;
    if (!request)
        return;
    struct request *q = request;
    q->prev->next = q->next;
    q->next->prev = q->prev;
    ucp_request_free(request);
}

static void on_sent(void *request, ucs_status_t st, void *arg)
{
    finish(arg, request, st);
}

static void on_received(void *request, ucs_status_t st, const ucp_tag_recv_info_t *info, void *arg)
{
    (void)info;
    finish(arg, request, st);
}

static void on_peer_failed(void *arg, ucp_ep_h ep, ucs_status_t st)
{
    (void)ep;
    struct ucx *u = arg;
    if (u->failed == UCS_OK)
        u->failed = st;
}

/* A status pointer of a call that was counted as pending: NULL is done, an error is kept, a request calls back (later, while polling). */
static void started(struct ucx *u, ucs_status_ptr_t p)
{
    if (p == NULL || UCS_PTR_IS_ERR(p)) {
        finish(u, NULL, p ? UCS_PTR_STATUS(p) : UCS_OK);
        return;
    }
    struct request *q = p;
    *q = (struct request){&u->requests, u->requests.next};
    q->prev->next = q->next->prev = q;
}

static void start_send(struct ucx *u, uint32_t to, const void *buf, size_t len, ucp_tag_t tag)
{
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                             .cb.send = on_sent,
                             .user_data = u};
    u->pending++;
    started(u, ucp_tag_send_nbx(u->eps[to], buf, len, tag, &p));
}

static void start_recv(struct ucx *u, void *buf, size_t len, ucp_tag_t tag)
{
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                             .cb.recv = on_received,
                             .user_data = u};
    u->pending++;
    started(u, ucp_tag_recv_nbx(u->worker, buf, len, tag, UINT64_MAX, &p));
}

/* After the last send of an operation: bytes that UCX still holds for the network leave only while somebody polls, and this rank
 * now goes away to compute. Shared memory has no such bytes. */
static void start_flush(struct ucx *u)
{
    if (!u->net)
        return;
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                             .cb.send = on_sent,
                             .user_data = u};
    u->pending++;
    started(u, ucp_worker_flush_nbx(u->worker, &p));
}

/* Ends every request by destroying the UCP worker: from here on UCX touches no buffer of the caller. Receives that nothing has come for are
 * cancelled, and endpoints to other hosts closed by force (UCX insists that they have no requests left); a send within a host, or a
 * message that has begun to come, can be neither, and is dropped with the worker (at level WARN UCX says so). */
static void tear_down(struct ucx *u)
{
    if (!u->worker)
        return;
    for (struct request *q = u->requests.next, *next; q != &u->requests; q = next) {
        next = q->next; /* cancelling calls back: q is gone then */
        ucp_request_cancel(u->worker, q);
    }
    ucp_request_param_t force = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = UCP_EP_CLOSE_FLAG_FORCE};
    uint64_t give_up = clock_ns() + CLOSE_NS;
    for (uint32_t r = 0; r < u->c.n && u->eps; r++) {
        if (!u->eps[r] || !u->far[r])
            continue;
        ucs_status_ptr_t p = ucp_ep_close_nbx(u->eps[r], &force);
        u->eps[r] = NULL;
        if (!UCS_PTR_IS_PTR(p))
            continue;
        while (ucp_request_check_status(p) == UCS_INPROGRESS && clock_ns() < give_up)
            ucp_worker_progress(u->worker);
        ucp_request_free(p);
    }
    ucp_worker_destroy(u->worker);
    u->worker = NULL;
    u->pending = 0;
    u->requests.prev = u->requests.next = &u->requests;
}

static enum err wait_or_tear_down(struct ucx *u, const char *what)
{
    enum err e = wait_pending(u, what);
    if (e != ERR_OK)
        tear_down(u);
    return e;
}

/* ---- operations ---- */

static enum err gather_ring(struct ucx *u, uint8_t *buf, const size_t *off, const size_t *len, uint32_t seq)
{
    struct comm *c = &u->c;
    uint32_t tp = c->tp, me = c->rank - c->group_first, prev = (me + tp - 1) % tp, next = (me + 1) % tp;
    for (uint32_t k = 0; k + 1 < tp; k++) {
        uint32_t out = (me + tp - k) % tp, in = (prev + tp - k) % tp;
        if (len[in] > 0)
            start_recv(u, buf + off[in], len[in], tag_of(c, KIND_GATHER, c->group_first + prev, seq));
        if (len[out] > 0)
            start_send(u, c->group_first + next, buf + off[out], len[out], tag_of(c, KIND_GATHER, c->rank, seq));
        start_flush(u);
        TRY(wait_or_tear_down(u, "all-gather"));
    }
    return ERR_OK;
}

static enum err ucx_allgather(struct comm *c, uint8_t *buf, const size_t *off, const size_t *len)
{
    struct ucx *u = (struct ucx *)c;
    uint32_t me = c->rank - c->group_first, seq = u->gather_seq++;
    size_t largest = 0;
    for (uint32_t r = 0; r < c->tp; r++)
        largest = MAX(largest, len[r]);
    if (largest >= RING_MIN_BYTES && c->tp > 2)
        return gather_ring(u, buf, off, len, seq);

    /* Receives first, so that what arrives goes straight to its place; each rank starts with its right neighbour. */
    for (uint32_t k = 1; k < c->tp; k++) {
        uint32_t from = (me + c->tp - k) % c->tp;
        if (len[from] > 0)
            start_recv(u, buf + off[from], len[from], tag_of(c, KIND_GATHER, c->group_first + from, seq));
    }
    for (uint32_t k = 1; k < c->tp && len[me] > 0; k++)
        start_send(u, c->group_first + (me + k) % c->tp, buf + off[me], len[me], tag_of(c, KIND_GATHER, c->rank, seq));
    start_flush(u);
    return wait_or_tear_down(u, "all-gather");
}

static enum err ucx_send(struct comm *c, uint32_t to, const void *buf, size_t len)
{
    struct ucx *u = (struct ucx *)c;
    start_send(u, to, buf, len, tag_of(c, KIND_PAIR, c->rank, u->send_seq[to]++));
    start_flush(u);
    return wait_or_tear_down(u, "send");
}

static enum err ucx_recv(struct comm *c, uint32_t from, void *buf, size_t len)
{
    struct ucx *u = (struct ucx *)c;
    start_recv(u, buf, len, tag_of(c, KIND_PAIR, from, u->recv_seq[from]++));
    return wait_or_tear_down(u, "receive");
}

/* ---- connecting ---- */

static enum err open_endpoint(struct ucx *u, uint32_t r, const struct comm_addr *a)
{
    if (a->len <= ADDRESS_HEAD || a->len > COMM_ADDRESS_MAX || a->bytes[0] != ADDRESS_VERSION)
        return err_set(ERR_PROTOCOL, "comm: the address of rank %u is no UCX address", r);
    uint64_t host;
    memcpy(&host, a->bytes + 1, sizeof(host));
    bool here = host == u->host_id;
    u->far[r] = !here;
    if (!here && !u->net)
        return err_set(ERR_CONFIG,
                       "comm: rank %u is on another host, but this worker has no network for activations: start both "
                       "racklm-worker with --comm-device (an interface, e.g. eth0)",
                       r);
    ucp_ep_params_t p = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
                         .address = (const ucp_address_t *)(a->bytes + ADDRESS_HEAD),
                         .err_mode = UCP_ERR_HANDLING_MODE_NONE};
    if (!here) {
        p.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER;
        p.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        p.err_handler = (ucp_err_handler_t){.cb = on_peer_failed, .arg = u};
    }
    ucs_status_t st = ucp_ep_create(u->worker, &p, &u->eps[r]);
    if (st != UCS_OK)
        return err_set(ERR_PEER_LOST, "comm: no way to rank %u%s: %s", r,
                       here ? "" : " on another host (is its --comm-device reachable?)", ucs_status_string(st));
    return ERR_OK;
}

/* Two rounds of one word with every peer: after the second, each pair has been heard in both directions by both, so that no
 * connection is left half made when a rank goes off to wait for its first step. */
static enum err ucx_connect(struct comm *c, const struct comm_addr *addrs)
{
    struct ucx *u = (struct ucx *)c;
    enum err e = ERR_OK;
    uint64_t *words = calloc(c->n, sizeof(*words)), mine = c->epoch;

    if (!words) {
        e = err_set(ERR_NOMEM, "comm: %u words", c->n);
        goto fail;
    }
    for (uint32_t r = 0; r < c->n; r++)
        if (r != c->rank)
            TRY_GOTO(open_endpoint(u, r, &addrs[r]), fail);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t r = 0; r < c->n; r++)
            if (r != c->rank)
                start_recv(u, &words[r], sizeof(words[r]), tag_of(c, KIND_HELLO, r, round));
        for (uint32_t r = 0; r < c->n; r++)
            if (r != c->rank)
                start_send(u, r, &mine, sizeof(mine), tag_of(c, KIND_HELLO, c->rank, round));
        start_flush(u);
        TRY_GOTO(wait_pending(u, "the first exchange with every peer"), fail);
        for (uint32_t r = 0; r < c->n; r++)
            if (r != c->rank && words[r] != c->epoch) {
                e = err_set(ERR_PROTOCOL, "comm: rank %u is in epoch %llu, this rank in %llu", r,
                            (unsigned long long)words[r], (unsigned long long)c->epoch);
                goto fail;
            }
    }
    free(words);
    return ERR_OK;
fail:
    tear_down(u); /* before `words` goes */
    free(words);
    return e;
}

static void ucx_wake(struct comm *c)
{
    uint64_t one = 1;
    ssize_t put = write(((struct ucx *)c)->wake_fd, &one, sizeof(one)); /* never read: once aborted, always awake */
    (void)put;
}

static void ucx_destroy(struct comm *c)
{
    struct ucx *u = (struct ucx *)c;
    tear_down(u);
    if (u->context)
        ucp_cleanup(u->context);
    if (u->wake_fd >= 0)
        close(u->wake_fd);
    free(u->eps);
    free(u->far);
    free(u->send_seq);
    free(u->recv_seq);
    free(u);
}

/* ---- creating ---- */

/* An interface that has just come up (again) is not ready at once: UCX would do without it. Waits a moment; goes on in any case. */
static void await_carrier(const char *device)
{
    struct ifreq r = {0};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", device);
    uint64_t end = clock_ns() + CARRIER_NS;
    while (s >= 0 && ioctl(s, SIOCGIFFLAGS, &r) == 0 && !(r.ifr_flags & IFF_RUNNING)) {
        if (clock_ns() >= end) {
            LOG(WARN, COMM, "the interface for other hosts is down", "device=%s", device);
            break;
        }
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
    if (s >= 0)
        close(s);
}

/* The transports for a device: its kind decides. */
static enum err pick_net(const char *device, const char **tls)
{
    char path[256];
    if (if_nametoindex(device) > 0) {
        await_carrier(device);
        *tls = "tcp";
        return ERR_OK;
    }
    snprintf(path, sizeof(path), "/sys/class/infiniband/%.*s", (int)MIN(strcspn(device, ":"), 200), device);
    if (access(path, F_OK) == 0) {
        *tls = "rc,ud";
        return ERR_OK;
    }
    return err_set(ERR_CONFIG, "comm: --comm-device %s is neither a network interface nor an RDMA device of this host", device);
}

/* FATAL comes this way only for a transport's failure on an endpoint without error handling, after which the operation returns an
 * error like any other; UCX's own handler would call abort(). Broken invariants of UCX do not pass here. */
static ucs_log_func_rc_t on_log(const char *file, unsigned line, const char *function, ucs_log_level_t level,
                                const ucs_log_component_config_t *component, const char *format, va_list ap)
{
    char text[256];
    (void)function;
    (void)component;
    if (level != UCS_LOG_LEVEL_FATAL)
        return UCS_LOG_FUNC_RC_CONTINUE;
    vsnprintf(text, sizeof(text), format, ap);
    LOG(WARN, COMM, "a transport failed", "at=%s:%u error=\"%s\"", file, line, text);
    return UCS_LOG_FUNC_RC_STOP;
}

static void take_over_log(void)
{
    ucs_log_push_handler(on_log);
}

static ucs_status_t open_context(struct ucx *u, const char *tls, const char *device)
{
    ucp_config_t *conf;
    ucs_status_t st = ucp_config_read(NULL, NULL, &conf);
    if (st != UCS_OK)
        return st;
    const char *const settings[][2] = {{"TLS", tls}, {"NET_DEVICES", device ? device : "all"}};
    for (unsigned i = 0; i < ARRAY_LEN(settings) && st == UCS_OK; i++)
        st = ucp_config_modify(conf, settings[i][0], settings[i][1]);
    ucp_params_t p = {.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS | UCP_PARAM_FIELD_REQUEST_SIZE,
                      .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP,
                      .request_size = sizeof(struct request),
                      .estimated_num_eps = u->c.n};
    if (st == UCS_OK)
        st = ucp_init(&p, conf, &u->context);
    ucp_config_release(conf);
    if (st != UCS_OK)
        return st;
    ucp_worker_params_t wp = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SINGLE};
    st = ucp_worker_create(u->context, &wp, &u->worker);
    if (st == UCS_OK)
        st = ucp_worker_get_efd(u->worker, &u->worker_fd);
    if (st != UCS_OK) {
        tear_down(u);
        ucp_cleanup(u->context);
        u->context = NULL;
    }
    return st;
}

static enum err own_address(struct ucx *u, struct comm_addr *own)
{
    ucp_address_t *a;
    size_t len;
    ucs_status_t st = ucp_worker_get_address(u->worker, &a, &len);
    if (st != UCS_OK)
        return fail_ucx(ERR_IO, "ucp_worker_get_address", st);
    bool fits = len <= COMM_ADDRESS_MAX - ADDRESS_HEAD;
    if (fits) {
        own->bytes[0] = ADDRESS_VERSION;
        memcpy(own->bytes + 1, &u->host_id, sizeof(u->host_id));
        memcpy(own->bytes + ADDRESS_HEAD, a, len);
        own->len = (uint32_t)(ADDRESS_HEAD + len);
    }
    ucp_worker_release_address(u->worker, a);
    return fits ? ERR_OK : err_set(ERR_TOO_BIG, "comm: an address of %zu bytes; name one --comm-device", len);
}

static const struct comm_ops ucx_ops = {"ucx", ucx_destroy, ucx_wake, ucx_connect, ucx_allgather, ucx_send, ucx_recv};

enum err comm_ucx_create(const struct comm_config *cfg, struct comm **out, struct comm_addr *own)
{
    static const char *const shm[] = {"posix,cma,self", "sysv,cma,self"};
    static pthread_once_t log_once = PTHREAD_ONCE_INIT;
    const char *net = NULL;
    *out = NULL;
    struct ucx *u = calloc(1, sizeof(*u));
    if (!u)
        return err_set(ERR_NOMEM, "comm: a rank");
    u->wake_fd = -1;
    u->requests.prev = u->requests.next = &u->requests;
    u->spin_ns = SPIN_NS_MAX;
    pthread_once(&log_once, take_over_log);
    enum err e = comm_init(&u->c, &ucx_ops, cfg);
    if (e != ERR_OK) {
        free(u);
        return e;
    }
    if (cfg->net_device)
        TRY_GOTO(pick_net(cfg->net_device, &net), fail);
    u->net = net != NULL;
    u->host_id = read_host_id();
    u->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    u->eps = calloc(u->c.n, sizeof(ucp_ep_h));
    u->far = calloc(u->c.n, sizeof(*u->far));
    u->send_seq = calloc(u->c.n, sizeof(*u->send_seq));
    u->recv_seq = calloc(u->c.n, sizeof(*u->recv_seq));
    if (u->wake_fd < 0 || !u->eps || !u->far || !u->send_seq || !u->recv_seq) {
        e = err_set(ERR_NOMEM, "comm: memory or descriptors for %u ranks", u->c.n);
        goto fail;
    }
    ucs_status_t st = UCS_ERR_NO_DEVICE;
    for (unsigned i = 0; i < ARRAY_LEN(shm) && st != UCS_OK; i++) {
        char tls[64];
        snprintf(tls, sizeof(tls), "%s%s%s", shm[i], net ? "," : "", net ? net : "");
        st = open_context(u, tls, cfg->net_device);
        if (st != UCS_OK)
            LOG(WARN, COMM, "transports cannot be opened", "tls=%s error=\"%s\"", tls, ucs_status_string(st));
    }
    if (st != UCS_OK) {
        e = fail_ucx(ERR_IO, "no shared-memory transport can be opened (is /dev/shm writable and large enough?)", st);
        goto fail;
    }
    TRY_GOTO(own_address(u, own), fail);
    *out = &u->c;
    return ERR_OK;
fail:
    ucx_destroy(&u->c);
    return e;
}
