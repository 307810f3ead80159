/* The front of comm.h: checks, the first error, statistics. What moves bytes is in comm_local.c and comm_ucx.c.
 *
 * Threading: one thread uses a comm; comm_abort only touches the atomic flag and ops->wake. */
#include "worker/comm/comm_impl.h"

#include "base/check.h"
#include "base/clock.h"

enum err comm_init(struct comm *c, const struct comm_ops *ops, const struct comm_config *cfg)
{
    uint64_t n;
    if (cfg->tp == 0 || cfg->pp == 0 || !check_mul(cfg->tp, cfg->pp, &n) || n > COMM_RANKS_MAX || cfg->rank >= n)
        return err_set(ERR_INVALID, "comm: rank %u of tp %u x pp %u (at most %u ranks)", cfg->rank, cfg->tp, cfg->pp,
                       (unsigned)COMM_RANKS_MAX);
    c->ops = ops;
    c->rank = cfg->rank;
    c->tp = cfg->tp;
    c->pp = cfg->pp;
    c->n = (uint32_t)n;
    c->group_first = cfg->rank / cfg->tp * cfg->tp;
    c->epoch = cfg->epoch;
    c->own_core = cfg->own_core;
    c->connected = false;
    c->deadline_ns = UINT64_MAX;
    c->broken = ERR_OK;
    atomic_init(&c->aborted, false);
    c->stats = (struct comm_stats){0};
    comm_set_idle(c, NULL, NULL, 0);
    return ERR_OK;
}

enum err comm_check(struct comm *c, const char *what, uint64_t now_ns)
{
    if (now_ns >= c->idle_next_ns) {
        c->idle_next_ns = now_ns + c->idle_period_ns;
        c->idle(c->idle_arg);
    }
    if (atomic_load_explicit(&c->aborted, memory_order_acquire))
        return err_set(ERR_ABORTED, "comm: rank %u of epoch %llu was told to give up %s", c->rank,
                       (unsigned long long)c->epoch, what);
    if (now_ns >= c->deadline_ns)
        return err_set(ERR_TIMEOUT, "comm: rank %u of epoch %llu reached its deadline in %s", c->rank,
                       (unsigned long long)c->epoch, what);
    return ERR_OK;
}

/* Every operation passes here: refuses a broken object, keeps the first error, counts. */
static enum err begin(struct comm *c, const char *what, uint64_t *t0)
{
    if (c->broken != ERR_OK)
        return err_set(c->broken, "comm: rank %u of epoch %llu failed earlier; only good for comm_destroy", c->rank,
                       (unsigned long long)c->epoch);
    *t0 = clock_ns();
    return c->broken = comm_check(c, what, *t0);
}

static enum err end(struct comm *c, enum err e, uint64_t t0, size_t bytes)
{
    c->broken = e;
    c->stats.wait_ns += clock_ns() - t0;
    c->stats.bytes += bytes;
    c->stats.ops++;
    return e;
}

enum err comm_connect(struct comm *c, const struct comm_addr *addrs, uint64_t deadline_ns)
{
    uint64_t t0, kept = c->deadline_ns;
    c->deadline_ns = deadline_ns;
    TRY(begin(c, "connect", &t0));
    enum err e = c->connected ? ERR_OK : c->ops->connect(c, addrs);
    c->connected = e == ERR_OK;
    c->deadline_ns = kept;
    return end(c, e, t0, 0);
}

enum err comm_allgather(struct comm *c, void *buf, const size_t *off, const size_t *len)
{
    uint64_t t0;
    size_t bytes = 0;
    if (c->tp == 1)
        return ERR_OK;
    ASSERT(c->connected);
    TRY(begin(c, "all-gather", &t0));
    for (uint32_t r = 0; r < c->tp; r++)
        bytes += c->group_first + r == c->rank ? len[r] * (c->tp - 1) : len[r];
    return end(c, c->ops->allgather(c, buf, off, len), t0, bytes);
}

enum err comm_send(struct comm *c, uint32_t to, const void *buf, size_t len)
{
    uint64_t t0;
    ASSERT(c->connected && to < c->n && to != c->rank);
    TRY(begin(c, "send", &t0));
    return end(c, c->ops->send(c, to, buf, len), t0, len);
}

enum err comm_recv(struct comm *c, uint32_t from, void *buf, size_t len)
{
    uint64_t t0;
    ASSERT(c->connected && from < c->n && from != c->rank);
    TRY(begin(c, "receive", &t0));
    return end(c, c->ops->recv(c, from, buf, len), t0, len);
}

void comm_destroy(struct comm **c)
{
    if (!c || !*c)
        return;
    (*c)->ops->destroy(*c);
    *c = NULL;
}

void comm_abort(struct comm *c)
{
    atomic_store_explicit(&c->aborted, true, memory_order_release);
    c->ops->wake(c);
}

void comm_set_deadline(struct comm *c, uint64_t deadline_ns)
{
    c->deadline_ns = deadline_ns;
}

bool comm_overdue(const struct comm *c)
{
    return c->broken != ERR_OK || atomic_load_explicit(&c->aborted, memory_order_acquire) || clock_ns() >= c->deadline_ns;
}

void comm_set_idle(struct comm *c, comm_idle_fn *fn, void *arg, uint32_t period_ms)
{
    c->idle = fn;
    c->idle_arg = arg;
    c->idle_period_ns = period_ms * NS_PER_MS;
    c->idle_next_ns = fn ? clock_ns() + c->idle_period_ns : UINT64_MAX;
}

uint64_t comm_wake_ns(const struct comm *c)
{
    return MIN(c->deadline_ns, c->idle_next_ns);
}

struct comm_stats comm_stats(const struct comm *c)
{
    return c->stats;
}
