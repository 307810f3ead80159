/* comm.h for GPUs: NCCL for what is on the device, an inner comm for what is on the host.
 *
 * Two NCCL communicators: one of the stage's tensor-parallel group, one of all ranks for the pipeline, each only where there is more than one to talk to. The
 * unique id of the first comes from the stage's first rank, of the second from rank 0, both in the address, with the name of the GPU.
 *
 * Both are non-blocking, so that no call of ours can hang: whatever returns ncclInProgress is polled with comm_check in between. NCCL then starts a thread for
 * every call (2.28: some 20 us each), which graphs pay once, at capture. NCCL's own errors cover networks only; a peer that dies in this host, or one
 * that never comes, shows as a deadline. ncclCommAbort is a blocking call in any case, hence the deadman in comm_destroy.
 *
 * Threading: one thread. comm_abort from others sets flags: ours, the inner comm's, and the word that the one-shot kernel looks at. */
#include "worker/comm/comm_nccl.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/comm/comm_impl.h"
#include "worker/comm/nccl_api.h"
#include "worker/comm/one_shot.h"
#include "worker/worker.h"

#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    ADDRESS_VERSION = 1,
    NAME_MAX_BYTES = 64,
    DESTROY_NS = 2000000000, /* a GPU that has not stopped by then does not listen */
    SPIN_NS = 20000000,      /* polls before it sleeps between them; own_core: longer than most steps */
    SPIN_SHARED_NS = 100000, /* a core that others want, too: as long as NCCL takes for a call */
    SPIN_CHECK = 32,         /* polls between two looks at the clock */
    NAP_NS = 50000,          /* of a sleep */
    ASYNC_NS = 1000000,      /* between two looks at NCCL's errors */
    PIECE = 1 << 18,         /* floats that are summed in order at a time */
};
enum { GROUP, WORLD, N_COMMS };
static const char *const comm_names[N_COMMS] = {"the tensor-parallel group", "the pipeline"};

/* What a rank offers, before the inner comm's address. */
struct offer {
    uint8_t version;
    uint8_t inner_len[2]; /* little-endian */
    char gpu[NAME_MAX_BYTES];
    ncclUniqueId ids[N_COMMS]; /* zeros from a rank that founds none */
};

struct nccl {
    struct comm c;
    struct comm *inner;         /* NULL where there is one rank */
    const struct nccl_api *api; /* NULL where there is one rank */
    int device;
    char gpu[NAME_MAX_BYTES];
    ncclComm_t comms[N_COMMS]; /* NULL where there is nobody to talk to */
    float *parts;              /* [tp][PIECE] where sums are to have an order, else NULL */
    struct one_shot one;
};

static enum err fail_cuda(const char *what, cudaError_t r)
{
    cudaGetLastError(); /* or the next launch finds it */
    return err_set(r == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_DEVICE, "comm: %s: the GPU says %s (%s)", what, cudaGetErrorName(r), cudaGetErrorString(r));
}

#define TRY_CUDA(what, x)                                                                                              \
    do {                                                                                                               \
        cudaError_t try_r_ = (x);                                                                                      \
        if (try_r_ != cudaSuccess)                                                                                     \
            return fail_cuda(what, try_r_);                                                                            \
    } while (0)

static enum err fail_nccl(const struct nccl *n, ncclComm_t comm, const char *what, ncclResult_t r)
{
    enum err e = r == ncclRemoteError || r == ncclSystemError ? ERR_PEER_LOST
                 : r == ncclUnhandledCudaError                ? ERR_DEVICE
                 : r == ncclInvalidUsage                      ? ERR_CONFIG /* two ranks on one GPU, say */
                                                              : ERR_INTERNAL;
    return err_set(e, "comm: rank %u, %s: NCCL says %s (%.300s)", n->c.rank, what, n->api->GetErrorString(r), n->api->GetLastError(comm));
}

/* ---- waiting ---- */

/* One wait. It polls without a pause for a while, then sleeps between polls. */
struct poll {
    const char *what;
    uint64_t begun;
    unsigned n;
    bool sleeps;
};

static enum err pause_poll(struct nccl *n, struct poll *p)
{
    if (!p->sleeps && ++p->n % SPIN_CHECK != 0) {
        sched_yield();
        return ERR_OK;
    }
    uint64_t now = clock_ns();
    TRY(comm_check(&n->c, p->what, now));
    if (p->begun == 0)
        p->begun = now;
    p->sleeps = now - p->begun > (n->c.own_core ? SPIN_NS : SPIN_SHARED_NS);
    if (p->sleeps)
        nanosleep(&(struct timespec){0, NAP_NS}, NULL);
    return ERR_OK;
}

/* The result of a call on comm: waits while NCCL is at it. */
static enum err settle(struct nccl *n, ncclComm_t comm, const char *what, ncclResult_t r)
{
    struct poll p = {.what = what};
    while (r == ncclSuccess || r == ncclInProgress) {
        ncclResult_t state = ncclSuccess;
        r = n->api->CommGetAsyncError(comm, &state);
        if (r == ncclSuccess && state == ncclSuccess)
            return ERR_OK;
        if (r == ncclSuccess)
            r = state;
        if (r == ncclInProgress)
            TRY(pause_poll(n, &p));
    }
    return fail_nccl(n, comm, what, r);
}

static enum err look_at_errors(struct nccl *n)
{
    for (unsigned i = 0; i < N_COMMS; i++) {
        ncclResult_t state = ncclSuccess;
        if (!n->comms[i])
            continue;
        ncclResult_t r = n->api->CommGetAsyncError(n->comms[i], &state);
        if (r != ncclSuccess || (state != ncclSuccess && state != ncclInProgress))
            return fail_nccl(n, n->comms[i], comm_names[i], r != ncclSuccess ? r : state);
    }
    return ERR_OK;
}

static enum err wait_device(struct nccl *n, cudaStream_t s, cudaEvent_t event)
{
    struct poll p = {.what = "a step on the GPU"};
    uint64_t looked = 0;
    for (;;) {
        cudaError_t r = event ? cudaEventQuery(event) : cudaStreamQuery(s);
        if (r == cudaSuccess)
            return one_shot_status(&n->one);
        if (r != cudaErrorNotReady)
            return fail_cuda("a step", r);
        (void)cudaGetLastError(); /* or the next launch would find it there */
        TRY(pause_poll(n, &p));
        uint64_t now = clock_ns();
        if (now - looked > ASYNC_NS) {
            looked = now;
            TRY(look_at_errors(n));
        }
    }
}

/* ---- operations on the device ---- */

/* Every one passes here first, and through leave() last: as begin and end of comm.c, without a look at the clock. */
static enum err enter(struct nccl *n)
{
    ASSERT(n->c.connected);
    if (n->c.broken != ERR_OK)
        return err_set(n->c.broken, "comm: rank %u of epoch %llu failed earlier; only good for comm_destroy", n->c.rank, (unsigned long long)n->c.epoch);
    if (atomic_load_explicit(&n->c.aborted, memory_order_acquire))
        n->c.broken = err_set(ERR_ABORTED, "comm: rank %u of epoch %llu was told to give up", n->c.rank, (unsigned long long)n->c.epoch);
    return n->c.broken;
}

static enum err leave(struct nccl *n, enum err e, size_t bytes)
{
    n->c.broken = e;
    n->c.stats.ops++;
    n->c.stats.bytes += bytes;
    return e;
}

/* Every rank gets everybody's values and adds them in the order of ranks, as the one-shot kernel does. */
static enum err sum_in_order(struct nccl *n, float *buf, size_t count, cudaStream_t s)
{
    uint32_t me = n->c.rank - n->c.group_first;
    for (size_t at = 0; at < count; at += PIECE) {
        size_t k = MIN(count - at, PIECE);
        float *own = n->parts + me * k;
        TRY_CUDA("all-reduce", cudaMemcpyAsync(own, buf + at, k * sizeof(float), cudaMemcpyDeviceToDevice, s));
        TRY(settle(n, n->comms[GROUP], "all-reduce", n->api->AllGather(own, n->parts, k, ncclFloat32, n->comms[GROUP], s)));
        TRY_CUDA("all-reduce", cuda_sum_parts(buf + at, n->parts, n->c.tp, (uint32_t)k, s));
    }
    return ERR_OK;
}

enum err comm_nccl_all_reduce(struct comm *c, float *buf, size_t count, cudaStream_t s)
{
    struct nccl *n = (struct nccl *)c;
    if (c->tp == 1 || count == 0)
        return ERR_OK;
    TRY(enter(n));
    if (one_shot_serves(&n->one, 1, count, false)) {
        cudaError_t r = one_shot_call(&n->one, &(struct cuda_all_reduce){.part = buf}, 1, (uint32_t)count, s);
        return leave(n, r == cudaSuccess ? ERR_OK : fail_cuda("all-reduce", r), count * sizeof(float));
    }
    if (n->parts)
        return leave(n, sum_in_order(n, buf, count, s), count * (c->tp - 1) * sizeof(float));
    ncclComm_t comm = n->comms[GROUP];
    return leave(n, settle(n, comm, "all-reduce", n->api->AllReduce(buf, buf, count, ncclFloat32, ncclSum, comm, s)), count * sizeof(float));
}

enum err comm_nccl_all_reduce_norm(struct comm *c, float *part, float *x, const float *w, float eps, uint32_t rows, uint32_t dim,
                                   const struct cuda_act *out, cudaStream_t s)
{
    struct nccl *n = (struct nccl *)c;
    if (rows == 0)
        return ERR_OK;
    if (one_shot_serves(&n->one, rows, dim, w != NULL)) {
        struct cuda_all_reduce call = {.part = part, .x = x, .w = w, .eps = eps};
        if (w)
            call.out = *out;
        TRY(enter(n));
        cudaError_t r = one_shot_call(&n->one, &call, rows, dim, s);
        return leave(n, r == cudaSuccess ? ERR_OK : fail_cuda("all-reduce and norm", r), (size_t)rows * dim * sizeof(float));
    }
    TRY(comm_nccl_all_reduce(c, part, (size_t)rows * dim, s));
    cudaError_t r = cuda_add_norm(x, part, w, eps, rows, dim, out, s);
    return r == cudaSuccess ? ERR_OK : leave(n, fail_cuda("residual and norm", r), 0);
}

static bool is_even(const struct comm *c, const size_t *off, const size_t *len)
{
    for (uint32_t r = 1; r < c->tp; r++)
        if (len[r] != len[0] || off[r] != off[0] + r * len[0])
            return false;
    return true;
}

enum err comm_nccl_all_gather(struct comm *c, void *buf, const size_t *off, const size_t *len, cudaStream_t s)
{
    struct nccl *n = (struct nccl *)c;
    uint32_t me = c->rank - c->group_first;
    ncclComm_t comm = n->comms[GROUP];
    uint8_t *b = buf;
    size_t bytes = 0;
    for (uint32_t r = 0; r < c->tp; r++)
        bytes += r == me ? len[r] * (c->tp - 1) : len[r];
    if (c->tp == 1 || bytes == 0)
        return ERR_OK;
    TRY(enter(n));
    ncclResult_t r = ncclSuccess;
    if (is_even(c, off, len)) {
        r = n->api->AllGather(b + off[me], b + off[0], len[0], ncclUint8, comm, s);
        return leave(n, settle(n, comm, "all-gather", r), bytes);
    }
    /* NCCL makes one launch of a group's broadcasts. */
    r = n->api->GroupStart();
    for (uint32_t k = 0; k < c->tp && r == ncclSuccess; k++)
        if (len[k] > 0)
            r = n->api->Broadcast(b + off[k], b + off[k], len[k], ncclUint8, (int)k, comm, s);
    ncclResult_t end = n->api->GroupEnd();
    return leave(n, settle(n, comm, "all-gather", r != ncclSuccess ? r : end), bytes);
}

enum err comm_nccl_send(struct comm *c, uint32_t to, const void *buf, size_t bytes, cudaStream_t s)
{
    struct nccl *n = (struct nccl *)c;
    ASSERT(to < c->n && to != c->rank && n->comms[WORLD]);
    if (bytes == 0)
        return ERR_OK;
    TRY(enter(n));
    return leave(n, settle(n, n->comms[WORLD], "send", n->api->Send(buf, bytes, ncclUint8, (int)to, n->comms[WORLD], s)), bytes);
}

enum err comm_nccl_recv(struct comm *c, uint32_t from, void *buf, size_t bytes, cudaStream_t s)
{
    struct nccl *n = (struct nccl *)c;
    ASSERT(from < c->n && from != c->rank && n->comms[WORLD]);
    if (bytes == 0)
        return ERR_OK;
    TRY(enter(n));
    return leave(n, settle(n, n->comms[WORLD], "receive", n->api->Recv(buf, bytes, ncclUint8, (int)from, n->comms[WORLD], s)), bytes);
}

enum err comm_nccl_wait(struct comm *c, cudaStream_t s, cudaEvent_t event)
{
    struct nccl *n = (struct nccl *)c;
    if (c->broken != ERR_OK)
        return enter(n);
    uint64_t t0 = clock_ns();
    c->broken = wait_device(n, s, event);
    c->stats.wait_ns += clock_ns() - t0;
    return c->broken;
}

/* ---- operations on the host ---- */

/* Lends the inner comm our deadline and idle function for one call. */
static struct comm *lend(struct nccl *n)
{
    struct comm *i = n->inner;
    i->deadline_ns = n->c.deadline_ns;
    i->idle = n->c.idle;
    i->idle_arg = n->c.idle_arg;
    i->idle_period_ns = n->c.idle_period_ns;
    i->idle_next_ns = n->c.idle_next_ns;
    return i;
}

static enum err back(struct nccl *n, enum err e)
{
    n->c.idle_next_ns = n->inner->idle_next_ns;
    return e;
}

static enum err nccl_host_allgather(struct comm *c, uint8_t *buf, const size_t *off, const size_t *len)
{
    struct nccl *n = (struct nccl *)c;
    return back(n, comm_allgather(lend(n), buf, off, len));
}

static enum err nccl_host_send(struct comm *c, uint32_t to, const void *buf, size_t len)
{
    struct nccl *n = (struct nccl *)c;
    return back(n, comm_send(lend(n), to, buf, len));
}

static enum err nccl_host_recv(struct comm *c, uint32_t from, void *buf, size_t len)
{
    struct nccl *n = (struct nccl *)c;
    return back(n, comm_recv(lend(n), from, buf, len));
}

/* ---- connecting ---- */

static size_t inner_len(const struct offer *o)
{
    return o->inner_len[0] | (size_t)o->inner_len[1] << 8;
}

/* Reads rank r's address; its inner part goes to `inner`. */
static enum err read_offer(const struct nccl *n, uint32_t r, const struct comm_addr *a, struct offer *o, struct comm_addr *inner)
{
    if (a->len < sizeof(*o) || a->len > COMM_ADDRESS_MAX)
        return err_set(ERR_PROTOCOL, "comm: the address of rank %u is no GPU worker's", r);
    memcpy(o, a->bytes, sizeof(*o));
    if (o->version != ADDRESS_VERSION || inner_len(o) != a->len - sizeof(*o) || memchr(o->gpu, 0, sizeof(o->gpu)) == NULL)
        return err_set(ERR_PROTOCOL, "comm: the address of rank %u is no GPU worker's", r);
    if (strcmp(o->gpu, n->gpu) != 0)
        return err_set(ERR_CONFIG, "comm: rank %u has a GPU of type \"%s\", rank %u of type \"%s\": the ranks of a replica need one type", n->c.rank, n->gpu, r,
                       o->gpu);
    inner->len = (uint32_t)inner_len(o);
    memcpy(inner->bytes, a->bytes + sizeof(*o), inner->len);
    return ERR_OK;
}

static enum err open_comm(struct nccl *n, unsigned which, uint32_t ranks, uint32_t rank, const ncclUniqueId *id)
{
    static const ncclUniqueId none;
    ncclConfig_t cfg = NCCL_CONFIG_INITIALIZER;
    cfg.blocking = 0;
    if (memcmp(id, &none, sizeof(none)) == 0)
        return err_set(ERR_PROTOCOL, "comm: no NCCL id for %s came with the addresses", comm_names[which]);
    ncclResult_t r = n->api->CommInitRankConfig(&n->comms[which], (int)ranks, *id, (int)rank, &cfg);
    if (!n->comms[which])
        return fail_nccl(n, NULL, comm_names[which], r == ncclSuccess ? ncclInternalError : r);
    return settle(n, n->comms[which], comm_names[which], r);
}

static enum err nccl_connect(struct comm *c, const struct comm_addr *addrs)
{
    struct nccl *n = (struct nccl *)c;
    enum err e = ERR_OK;
    ncclUniqueId ids[N_COMMS] = {0};
    struct offer o;
    struct comm_addr *inner = calloc(c->n, sizeof(*inner));
    if (!inner)
        return err_set(ERR_NOMEM, "comm: addresses of %u ranks", c->n);
    for (uint32_t r = 0; r < c->n; r++) {
        TRY_GOTO(read_offer(n, r, &addrs[r], &o, &inner[r]), fail);
        if (r == c->group_first)
            ids[GROUP] = o.ids[GROUP];
        if (r == 0)
            ids[WORLD] = o.ids[WORLD];
    }
    if (n->inner)
        TRY_GOTO(back(n, comm_connect(lend(n), inner, c->deadline_ns)), fail);
    if (cudaSetDevice(n->device) != cudaSuccess) {
        e = err_set(ERR_DEVICE, "comm: GPU %d cannot be used", n->device);
        goto fail;
    }
    if (c->tp > 1)
        TRY_GOTO(open_comm(n, GROUP, c->tp, c->rank - c->group_first, &ids[GROUP]), fail);
    if (c->pp > 1)
        TRY_GOTO(open_comm(n, WORLD, c->n, c->rank, &ids[WORLD]), fail);
    if (c->tp > 1)
        TRY_GOTO(back(n, one_shot_connect(&n->one, lend(n))), fail);
    if (n->api)
        LOG(INFO, COMM, "GPUs joined", "rank=%u tp=%u pp=%u nccl=%d.%d.%d one_shot_bytes=%zu", c->rank, c->tp, c->pp, n->api->version / 10000,
            n->api->version / 100 % 100, n->api->version % 100, one_shot_bytes(&n->one));
fail:
    free(inner);
    return e;
}

/* ---- beginning and end ---- */

static void nccl_wake(struct comm *c)
{
    struct nccl *n = (struct nccl *)c;
    one_shot_abort(&n->one);
    if (n->inner)
        comm_abort(n->inner);
}

/* Ends the process when the GPU does not let go in time. */
struct deadman {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    pthread_t thread;
    bool done, running;
    uint32_t rank;
};

static void *deadman_main(void *p)
{
    struct deadman *d = p;
    uint64_t until = clock_ns() + DESTROY_NS;
    struct timespec ts = {(time_t)(until / NS_PER_S), (long)(until % NS_PER_S)};
    pthread_mutex_lock(&d->mutex);
    while (!d->done)
        if (pthread_cond_timedwait(&d->cond, &d->mutex, &ts) != 0 && !d->done) {
            LOG(ERROR, COMM, "the GPU did not end its operations, leaving", "rank=%u waited_ms=%u", d->rank, (unsigned)(DESTROY_NS / NS_PER_MS));
            _exit(WORKER_EXIT_GPU);
        }
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

static void deadman_start(struct deadman *d, uint32_t rank)
{
    pthread_condattr_t attr;
    *d = (struct deadman){.rank = rank};
    pthread_mutex_init(&d->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->cond, &attr);
    pthread_condattr_destroy(&attr);
    d->running = pthread_create(&d->thread, NULL, deadman_main, d) == 0;
}

static void deadman_stop(struct deadman *d)
{
    pthread_mutex_lock(&d->mutex);
    d->done = true;
    pthread_cond_signal(&d->cond);
    pthread_mutex_unlock(&d->mutex);
    if (d->running)
        pthread_join(d->thread, NULL);
    pthread_cond_destroy(&d->cond);
    pthread_mutex_destroy(&d->mutex);
}

static void nccl_destroy(struct comm *c)
{
    struct nccl *n = (struct nccl *)c;
    if (n->api) {
        struct deadman d;
        deadman_start(&d, c->rank);
        one_shot_abort(&n->one);
        /* Abort, not destroy: nothing is left to finish, and a peer that is gone would be waited for. */
        for (unsigned i = 0; i < N_COMMS; i++)
            if (n->comms[i])
                n->api->CommAbort(n->comms[i]);
        one_shot_close(&n->one);
        cudaFree(n->parts);
        deadman_stop(&d);
    }
    comm_destroy(&n->inner);
    free(n);
}

static const struct comm_ops nccl_ops = {"nccl", nccl_destroy, nccl_wake, nccl_connect, nccl_host_allgather, nccl_host_send, nccl_host_recv};

static enum err make_offer(struct nccl *n, const struct comm_addr *inner, struct comm_addr *own)
{
    struct offer o = {.version = ADDRESS_VERSION, .inner_len = {(uint8_t)inner->len, (uint8_t)(inner->len >> 8)}};
    memcpy(o.gpu, n->gpu, sizeof(o.gpu));
    if (inner->len > COMM_ADDRESS_MAX - sizeof(o))
        return err_set(ERR_TOO_BIG, "comm: an address of %u bytes; name one --comm-device", inner->len);
    const bool founds[N_COMMS] = {n->c.tp > 1 && n->c.rank == n->c.group_first, n->c.pp > 1 && n->c.rank == 0};
    for (unsigned i = 0; i < N_COMMS; i++) {
        ncclResult_t r = founds[i] ? n->api->GetUniqueId(&o.ids[i]) : ncclSuccess;
        if (r != ncclSuccess)
            return fail_nccl(n, NULL, "ncclGetUniqueId", r);
    }
    memcpy(own->bytes, &o, sizeof(o));
    memcpy(own->bytes + sizeof(o), inner->bytes, inner->len);
    own->len = (uint32_t)sizeof(o) + inner->len;
    return ERR_OK;
}

static enum err name_gpu(struct nccl *n)
{
    struct cudaDeviceProp p;
    TRY_CUDA("cudaSetDevice", cudaSetDevice(n->device));
    TRY_CUDA("cudaGetDeviceProperties", cudaGetDeviceProperties(&p, n->device));
    size_t len = strnlen(p.name, sizeof(n->gpu) - 1);
    memcpy(n->gpu, p.name, len);
    return ERR_OK;
}

/* NCCL listens where UCX does: on the one interface for other hosts, else on the loopback only, and not at all for its status service. It reads its
 * environment once; what the operator has set stays. */
static void limit_nccl(const char *net_device)
{
    char exactly[64];
    if (!net_device || if_nametoindex(net_device) > 0) {
        snprintf(exactly, sizeof(exactly), "=%s", net_device ? net_device : "lo");
        setenv("NCCL_SOCKET_IFNAME", exactly, 0);
    } else {
        setenv("NCCL_IB_HCA", net_device, 0); /* an RDMA device, with its port after a colon: pick_net of comm_ucx.c */
    }
    setenv("NCCL_RAS_ENABLE", "0", 0);
}

enum err comm_nccl_create(const struct comm_nccl_config *cfg, struct comm **out, struct comm_addr *own)
{
    struct comm_addr inner = {.len = 0};
    struct comm *taken = cfg->inner;
    enum err e = ERR_OK;
    *out = NULL;
    struct nccl *n = calloc(1, sizeof(*n));
    if (!n) {
        comm_destroy(&taken);
        return err_set(ERR_NOMEM, "comm: a rank");
    }
    n->device = cfg->device;
    n->inner = taken;
    TRY_GOTO(comm_init(&n->c, &nccl_ops, &cfg->comm), fail);
    TRY_GOTO(name_gpu(n), fail);
    if (n->c.n > 1) {
        limit_nccl(cfg->comm.net_device);
        TRY_GOTO(nccl_api_load(&n->api), fail);
    }
    if (n->c.tp > 2 && cfg->deterministic) { /* of two, any order is the same */
        cudaError_t r = cudaMalloc((void **)&n->parts, (size_t)n->c.tp * PIECE * sizeof(float));
        if (r != cudaSuccess) {
            e = fail_cuda("room for sums in order", r);
            goto fail;
        }
    }
    if (!n->inner && n->c.n > 1)
        TRY_GOTO(comm_ucx_create(&cfg->comm, &n->inner, &inner), fail);
    if (n->c.tp > 1)
        TRY_GOTO(one_shot_open(&n->one, cfg->one_shot_bytes, n->c.rank - n->c.group_first, n->c.tp), fail);
    TRY_GOTO(make_offer(n, &inner, own), fail);
    *out = &n->c;
    return ERR_OK;
fail:
    one_shot_close(&n->one);
    cudaFree(n->parts);
    comm_destroy(&n->inner);
    free(n);
    return e;
}
