/* comm.h between threads of one process, for tests and sanitizers: a hub holds a mailbox for every ordered pair of ranks.
 *
 * A message is copied into the pair's queue (bounded: a full queue makes the sender wait) and out of it by the receiver; an
 * all-gather is a message to and from each of the others, on a channel of its own. The buffers of a queue are kept and grow to
 * the largest message, so a steady state allocates nothing. A rank that was destroyed is known to be gone: who waits for it
 * gets ERR_PEER_LOST at once, after what it had still sent.
 *
 * Threading: one mutex in the hub guards everything but the atomic flags; one condition variable a rank. Nobody spins. The hub
 * outlives its comms. */
#include "worker/comm/comm_impl.h"

#include "base/check.h"
#include "base/clock.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { LOCAL_DEPTH = 8 };
enum channel { CHANNEL_PAIR, CHANNEL_GATHER, CHANNEL_COUNT };

struct mail {
    uint8_t *data; /* kept for the next message */
    size_t len, cap;
};
struct mailbox {
    struct mail ring[LOCAL_DEPTH];
    uint32_t head, n; /* oldest, count */
};
struct comm_hub {
    pthread_mutex_t mutex;
    uint32_t tp, pp, n;
    struct mailbox *boxes; /* [channel][from][to] */
    struct local **ranks;  /* [n], NULL until created */
    bool *gone;            /* [n] destroyed */
    pthread_cond_t *conds; /* [n] */
};
struct local {
    struct comm c;
    struct comm_hub *hub;
};

static struct mailbox *box_of(struct comm_hub *h, enum channel ch, uint32_t from, uint32_t to)
{
    return &h->boxes[((size_t)ch * h->n + from) * h->n + to];
}

/* The calling rank sleeps until its condition is signalled, or it is time to look; with the mutex held. */
static enum err wait_for(struct local *l, const char *what)
{
    uint64_t now = clock_ns(), until = comm_wake_ns(&l->c);
    if (now >= until || atomic_load_explicit(&l->c.aborted, memory_order_acquire)) {
        pthread_mutex_unlock(&l->hub->mutex); /* the idle function may call comm_abort, which takes it */
        enum err e = comm_check(&l->c, what, now);
        pthread_mutex_lock(&l->hub->mutex);
        return e;
    }
    struct timespec ts = {(time_t)(until / NS_PER_S), (long)(until % NS_PER_S)};
    if (until == UINT64_MAX)
        pthread_cond_wait(&l->hub->conds[l->c.rank], &l->hub->mutex);
    else
        pthread_cond_timedwait(&l->hub->conds[l->c.rank], &l->hub->mutex, &ts);
    return ERR_OK;
}

static enum err post(struct local *l, enum channel ch, uint32_t to, const void *buf, size_t len)
{
    struct comm_hub *h = l->hub;
    struct mailbox *b = box_of(h, ch, l->c.rank, to);
    enum err e = ERR_OK;

    pthread_mutex_lock(&h->mutex);
    while (b->n == LOCAL_DEPTH && !h->gone[to])
        TRY_GOTO(wait_for(l, "send"), fail);
    if (h->gone[to]) {
        e = err_set(ERR_PEER_LOST, "comm: rank %u is gone", to);
        goto fail;
    }
    struct mail *m = &b->ring[(b->head + b->n) % LOCAL_DEPTH];
    if (m->cap < len) {
        uint8_t *grown = realloc(m->data, len);
        if (!grown) {
            e = err_set(ERR_NOMEM, "comm: %zu bytes for a message", len);
            goto fail;
        }
        m->data = grown;
        m->cap = len;
    }
    if (len > 0)
        memcpy(m->data, buf, len);
    m->len = len;
    b->n++;
    pthread_cond_signal(&h->conds[to]);
fail:
    pthread_mutex_unlock(&h->mutex);
    return e;
}

static enum err take(struct local *l, enum channel ch, uint32_t from, void *buf, size_t len)
{
    struct comm_hub *h = l->hub;
    struct mailbox *b = box_of(h, ch, from, l->c.rank);
    enum err e = ERR_OK;

    pthread_mutex_lock(&h->mutex);
    while (b->n == 0) {
        if (h->gone[from]) {
            e = err_set(ERR_PEER_LOST, "comm: rank %u is gone", from);
            goto fail;
        }
        TRY_GOTO(wait_for(l, "receive"), fail);
    }
    struct mail *m = &b->ring[b->head];
    if (m->len != len) {
        e = err_set(ERR_PROTOCOL, "comm: rank %u sent %zu bytes where %zu were expected", from, m->len, len);
        goto fail;
    }
    if (len > 0)
        memcpy(buf, m->data, len);
    b->head = (b->head + 1) % LOCAL_DEPTH;
    b->n--;
    pthread_cond_signal(&h->conds[from]); /* it may wait for room */
fail:
    pthread_mutex_unlock(&h->mutex);
    return e;
}

static enum err local_allgather(struct comm *c, uint8_t *buf, const size_t *off, const size_t *len)
{
    struct local *l = (struct local *)c;
    uint32_t me = c->rank - c->group_first;
    for (uint32_t r = 0; r < c->tp; r++)
        if (r != me && len[me] > 0)
            TRY(post(l, CHANNEL_GATHER, c->group_first + r, buf + off[me], len[me]));
    for (uint32_t r = 0; r < c->tp; r++)
        if (r != me && len[r] > 0)
            TRY(take(l, CHANNEL_GATHER, c->group_first + r, buf + off[r], len[r]));
    return ERR_OK;
}

static enum err local_send(struct comm *c, uint32_t to, const void *buf, size_t len)
{
    return post((struct local *)c, CHANNEL_PAIR, to, buf, len);
}

static enum err local_recv(struct comm *c, uint32_t from, void *buf, size_t len)
{
    return take((struct local *)c, CHANNEL_PAIR, from, buf, len);
}

/* Waits until every rank of the hub exists; addresses are not needed. */
static enum err local_connect(struct comm *c, const struct comm_addr *addrs)
{
    (void)addrs;
    struct local *l = (struct local *)c;
    enum err e = ERR_OK;
    pthread_mutex_lock(&l->hub->mutex);
    for (uint32_t r = 0; r < c->n && e == ERR_OK; r++)
        while (!l->hub->ranks[r] && !l->hub->gone[r] && e == ERR_OK)
            e = wait_for(l, "connect");
    pthread_mutex_unlock(&l->hub->mutex);
    return e;
}

static void local_wake(struct comm *c)
{
    struct comm_hub *h = ((struct local *)c)->hub;
    pthread_mutex_lock(&h->mutex); /* so that the flag is not set between the sleeper's look and its sleep */
    pthread_cond_broadcast(&h->conds[c->rank]);
    pthread_mutex_unlock(&h->mutex);
}

static void local_destroy(struct comm *c)
{
    struct local *l = (struct local *)c;
    struct comm_hub *h = l->hub;
    pthread_mutex_lock(&h->mutex);
    h->ranks[c->rank] = NULL;
    h->gone[c->rank] = true;
    for (uint32_t r = 0; r < h->n; r++)
        pthread_cond_broadcast(&h->conds[r]);
    pthread_mutex_unlock(&h->mutex);
    free(l);
}

static const struct comm_ops local_ops = {"local",         local_destroy, local_wake, local_connect,
                                          local_allgather, local_send,    local_recv};

enum err comm_local_create(struct comm_hub *h, uint32_t rank, struct comm **out)
{
    *out = NULL;
    struct comm_config cfg = {.rank = rank, .tp = h->tp, .pp = h->pp};
    struct local *l = calloc(1, sizeof(*l));
    if (!l)
        return err_set(ERR_NOMEM, "comm: a rank");
    enum err e = comm_init(&l->c, &local_ops, &cfg);
    if (e != ERR_OK) {
        free(l);
        return e;
    }
    l->hub = h;
    pthread_mutex_lock(&h->mutex);
    ASSERT(!h->ranks[rank]);
    h->ranks[rank] = l;
    for (uint32_t r = 0; r < h->n; r++)
        pthread_cond_broadcast(&h->conds[r]);
    pthread_mutex_unlock(&h->mutex);
    *out = &l->c;
    return ERR_OK;
}

enum err comm_hub_create(uint32_t tp, uint32_t pp, struct comm_hub **out)
{
    *out = NULL;
    uint64_t n;
    if (tp == 0 || pp == 0 || !check_mul(tp, pp, &n) || n > COMM_RANKS_MAX)
        return err_set(ERR_INVALID, "comm: tp %u x pp %u", tp, pp);
    struct comm_hub *h = calloc(1, sizeof(*h));
    if (!h)
        return err_set(ERR_NOMEM, "comm: a hub");
    h->tp = tp;
    h->pp = pp;
    h->n = (uint32_t)n;
    pthread_mutex_init(&h->mutex, NULL);
    h->boxes = calloc(CHANNEL_COUNT * n * n, sizeof(*h->boxes));
    h->ranks = calloc(n, sizeof(*h->ranks));
    h->gone = calloc(n, sizeof(*h->gone));
    h->conds = calloc(n, sizeof(*h->conds));
    if (!h->boxes || !h->ranks || !h->gone || !h->conds) {
        h->n = 0;
        comm_hub_destroy(&h);
        return err_set(ERR_NOMEM, "comm: a hub of %llu ranks", (unsigned long long)n);
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    for (uint32_t r = 0; r < h->n; r++)
        pthread_cond_init(&h->conds[r], &attr);
    pthread_condattr_destroy(&attr);
    *out = h;
    return ERR_OK;
}

void comm_hub_destroy(struct comm_hub **hp)
{
    if (!hp || !*hp)
        return;
    struct comm_hub *h = *hp;
    size_t n_boxes = CHANNEL_COUNT * (size_t)h->n * h->n;
    for (size_t i = 0; h->boxes && i < n_boxes; i++)
        for (unsigned k = 0; k < LOCAL_DEPTH; k++)
            free(h->boxes[i].ring[k].data);
    for (uint32_t r = 0; r < h->n; r++)
        pthread_cond_destroy(&h->conds[r]);
    pthread_mutex_destroy(&h->mutex);
    free(h->boxes);
    free(h->ranks);
    free(h->gone);
    free(h->conds);
    free(h);
    *hp = NULL;
}
