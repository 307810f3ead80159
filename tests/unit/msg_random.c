/* See msg_random.h. */
#include "msg_random.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

/* SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators; OOPSLA 2014). */
uint64_t msg_random_u64(struct msg_random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
uint32_t msg_random_below(struct msg_random *r, uint32_t n)
{
    return n ? (uint32_t)(msg_random_u64(r) % n) : 0;
}
/* All widths alike, zero and the maximum among them. */
static uint64_t wide(struct msg_random *r)
{
    uint64_t v = msg_random_u64(r);
    unsigned bits = msg_random_below(r, 66);
    return bits == 65 ? UINT64_MAX : bits == 64 ? v : v & ((1ull << bits) - 1);
}
static uint32_t word(struct msg_random *r)
{
    uint64_t v = wide(r);
    return v > UINT32_MAX ? UINT32_MAX - (uint32_t)(v & 7) : (uint32_t)v;
}
static float real(struct msg_random *r)
{
    return (float)((double)(int64_t)msg_random_u64(r) / 1e15);
}
static void *list(struct msg_random *r, uint32_t n, size_t size)
{
    void *p = arena_array(r->arena, n, size);
    ASSERT(p);
    return p;
}
static char *text(struct msg_random *r)
{
    uint32_t len = msg_random_below(r, 4) ? msg_random_below(r, r->str_max + 1) : 0;
    char *s = list(r, len + 1, 1);
    for (uint32_t i = 0; i < len; i++)
        s[i] = (char)(1 + msg_random_below(r, 255));
    return s;
}
static uint32_t *words(struct msg_random *r, uint32_t n)
{
    uint32_t *v = list(r, n, sizeof *v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = word(r);
    return v;
}
static uint32_t count(struct msg_random *r, uint32_t max)
{
    return msg_random_below(r, MIN(r->list_max, max) + 1);
}
static uint8_t *blob(struct msg_random *r, uint32_t *len)
{
    *len = count(r, MSG_BLOB_MAX);
    uint8_t *p = list(r, *len, 1);
    for (uint32_t i = 0; i < *len; i++)
        p[i] = (uint8_t)msg_random_u64(r);
    return p;
}

static void fill_device(struct msg_random *r, struct msg_device *m)
{
    *m = (struct msg_device){
        .name = text(r), .kind = text(r), .model = text(r), .memory_bytes = wide(r), .cores = word(r), .numa = word(r), .uuid = text(r), .bus_id = text(r),
        .sm = word(r), .memory_total_bytes = wide(r), .memory_free_bytes = wide(r), .temperature_c = word(r), .power_mw = word(r),
        .utilization_percent = word(r), .throttle = word(r), .lost = msg_random_below(r, 2), .why = text(r), .state_age_ms = word(r),
    };
    m->n_peers = count(r, MSG_DEVICES_MAX);
    m->path = words(r, m->n_peers);
    m->nvlinks = words(r, m->n_peers);
}

static void fill_hello(struct msg_random *r, struct msg_hello *m)
{
    m->version_min = word(r) / 2;
    m->version_max = m->version_min + word(r) / 2;
    m->role = text(r);
    m->host = text(r);
    m->peer_id = wide(r);
    m->epoch = wide(r);
    m->pid = word(r);
    m->n_devices = count(r, MSG_DEVICES_MAX);
    m->devices = list(r, m->n_devices, sizeof *m->devices);
    for (uint32_t i = 0; i < m->n_devices; i++)
        fill_device(r, &m->devices[i]);
    m->gpu_driver = text(r);
    m->cuda_version = word(r);
    m->gpu_note = text(r);
}

static void fill_heartbeat(struct msg_random *r, struct msg_heartbeat *m)
{
    *m = (struct msg_heartbeat){.progress = wide(r), .step_id = wide(r), .epoch = wide(r)};
    m->n_devices = count(r, MSG_DEVICES_MAX);
    uint32_t **lists[] = {&m->device, &m->temperature_c, &m->power_mw, &m->utilization_percent, &m->throttle, &m->lost};
    for (size_t i = 0; i < ARRAY_LEN(lists); i++)
        *lists[i] = words(r, m->n_devices);
    m->memory_free_bytes = list(r, m->n_devices, sizeof *m->memory_free_bytes);
    for (uint32_t i = 0; i < m->n_devices; i++)
        m->memory_free_bytes[i] = wide(r);
    m->why = text(r);
}

static void fill_start_worker(struct msg_random *r, struct msg_start_worker *m)
{
    m->worker_id = wide(r);
    m->device = text(r);
    m->model_path = text(r);
    m->model_bytes = wide(r);
    m->deployment = text(r);
    m->replica = word(r);
    m->tp = 1 + count(r, MSG_RANKS_MAX - 1);
    m->pp = 1 + count(r, MSG_RANKS_MAX - 1);
    m->tp_rank = msg_random_below(r, m->tp);
    m->stage = msg_random_below(r, m->pp);
    m->n_share = m->tp;
    m->share = words(r, m->tp);
    m->n_layer_first = m->pp + 1;
    m->layer_first = list(r, m->n_layer_first, sizeof *m->layer_first);
    for (uint32_t i = 1; i < m->n_layer_first; i++)
        m->layer_first[i] = m->layer_first[i - 1] + msg_random_below(r, 100);
    m->epoch = wide(r);
    m->ctx = word(r);
    m->max_seqs = word(r);
    m->max_step_tokens = word(r);
    m->kv_memory_bytes = wide(r);
    m->kv_type = word(r);
    m->endpoint = text(r);
    m->heartbeat_ms = word(r);
    m->step_timeout_ms = word(r);
    m->deterministic = msg_random_below(r, 2);
}

/* Ids in sequences of one to three. Returns how many ids. */
static uint32_t fill_sequences(struct msg_random *r, uint32_t max, uint32_t **id, uint32_t **len, uint32_t *n)
{
    uint32_t n_ids = count(r, max);
    *id = words(r, n_ids);
    *len = list(r, n_ids, sizeof **len);
    *n = 0;
    for (uint32_t left = n_ids; left; left -= (*len)[(*n)++]) {
        uint32_t one = 1 + msg_random_below(r, 3);
        (*len)[*n] = MIN(left, one);
    }
    return n_ids;
}

static void fill_setup(struct msg_random *r, struct slot_setup *m)
{
    m->slot = word(r);
    m->gen = word(r);
    m->seed = wide(r);
    m->choice = word(r);
    m->temperature = real(r);
    m->top_p = real(r);
    m->min_p = real(r);
    m->top_k = word(r);
    m->repetition_penalty = real(r);
    m->presence_penalty = real(r);
    m->frequency_penalty = real(r);
    m->min_tokens = word(r);
    m->n_logprobs = msg_random_below(r, MSG_LOGPROBS_MAX + 1);
    m->n_history = count(r, MSG_TOKENS_MAX);
    m->history = words(r, m->n_history);
    m->n_output = msg_random_below(r, m->n_history + 1);
    m->prompt_len = word(r);
    m->n_stop = count(r, MSG_STOP_IDS_MAX);
    m->stop = words(r, m->n_stop);
    m->n_bias = count(r, MSG_BIAS_MAX);
    m->bias_id = words(r, m->n_bias);
    m->bias = list(r, m->n_bias, sizeof *m->bias);
    for (uint32_t i = 0; i < m->n_bias; i++)
        m->bias[i] = real(r);
    float *reals[] = {&m->typical_p, &m->top_n_sigma, &m->xtc_probability, &m->xtc_threshold, &m->dynatemp_range, &m->dynatemp_exponent,
                      &m->dry_multiplier, &m->dry_base, &m->mirostat_tau, &m->mirostat_eta, &m->mirostat_mu};
    for (size_t i = 0; i < ARRAY_LEN(reals); i++)
        *reals[i] = real(r);
    m->dry_allowed_length = word(r);
    m->dry_last_n = word(r);
    m->penalty_last_n = word(r);
    m->mirostat = word(r);
    m->n_allowed = count(r, MSG_ALLOWED_MAX);
    m->allowed = words(r, m->n_allowed);
    m->n_bad_ids = fill_sequences(r, MSG_BAD_IDS_MAX, &m->bad_id, &m->bad_len, &m->n_bad);
    m->n_dry_ids = fill_sequences(r, MSG_DRY_IDS_MAX, &m->dry_id, &m->dry_len, &m->n_dry);
    m->pooling = word(r);
    m->n_targets = count(r, MSG_TARGETS_MAX);
    m->target = words(r, m->n_targets);
}

static void fill_step(struct msg_random *r, struct step *m)
{
    m->epoch = wide(r);
    m->step_id = wide(r);
    m->n_runs = count(r, MSG_RUNS_MAX);
    m->slot = words(r, m->n_runs);
    m->gen = words(r, m->n_runs);
    m->start = words(r, m->n_runs);
    m->n_tokens = words(r, m->n_runs);
    m->want = words(r, m->n_runs);
    m->n_blocks = words(r, m->n_runs);
    for (uint32_t i = 0; i < m->n_runs; i++) {
        m->n_tokens[i] = 1 + m->n_tokens[i] % 5;
        m->want[i] &= RUN_WANT_ALL;
        m->n_blocks[i] %= 3;
        m->n_all_tokens += m->n_tokens[i];
        m->n_all_blocks += m->n_blocks[i];
    }
    m->tokens = words(r, m->n_all_tokens);
    m->blocks = words(r, m->n_all_blocks);
    m->n_setups = count(r, 6);
    m->setups = list(r, m->n_setups, sizeof *m->setups);
    for (uint32_t i = 0; i < m->n_setups; i++)
        fill_setup(r, &m->setups[i]);
    m->n_freed = count(r, MSG_RUNS_MAX);
    m->freed = words(r, m->n_freed);
}

static void fill_step_result(struct msg_random *r, struct step_result *m)
{
    m->epoch = wide(r);
    m->step_id = wide(r);
    m->n_runs = count(r, MSG_RUNS_MAX);
    m->slot = words(r, m->n_runs);
    m->gen = words(r, m->n_runs);
    m->token = words(r, m->n_runs);
    m->n_positions = words(r, m->n_runs);
    for (uint32_t i = 0; i < m->n_runs; i++)
        m->n_all_positions += m->n_positions[i] %= 4;
    m->logprob = list(r, m->n_all_positions, sizeof *m->logprob);
    m->n_top = words(r, m->n_all_positions);
    for (uint32_t i = 0; i < m->n_all_positions; i++) {
        m->logprob[i] = msg_random_below(r, 5) ? real(r) : NAN;
        m->n_all_top += m->n_top[i] %= 6;
    }
    m->top_id = words(r, m->n_all_top);
    m->top_logprob = list(r, m->n_all_top, sizeof *m->top_logprob);
    for (uint32_t i = 0; i < m->n_all_top; i++)
        m->top_logprob[i] = real(r);
    m->mu_run = list(r, m->n_runs, sizeof *m->mu_run);
    m->mu = list(r, m->n_runs, sizeof *m->mu);
    for (uint32_t i = 0; i < m->n_runs; i++)
        if (msg_random_below(r, 2)) {
            m->mu_run[m->n_mu] = i;
            m->mu[m->n_mu++] = real(r);
        }
    m->pooled_dim = msg_random_below(r, 5);
    m->n_all_pooled = m->pooled_dim * count(r, 10);
    m->pooled = list(r, m->n_all_pooled, sizeof *m->pooled);
    for (uint32_t i = 0; i < m->n_all_pooled; i++)
        m->pooled[i] = real(r);
    m->compute_us = word(r);
    m->comm_us = word(r);
    m->sample_us = word(r);
}

static void fill_worker_info(struct msg_random *r, struct msg_worker_info *m)
{
    *m = (struct msg_worker_info){
        .worker_id = wide(r), .host = text(r), .device = text(r), .state = text(r), .backend = text(r), .pid = word(r),
        .replica = word(r), .stage = word(r), .tp_rank = word(r), .layer_first = word(r), .layer_end = word(r),
        .weights_bytes = wide(r), .weights_bytes_planned = wide(r), .kv_bytes = wide(r), .kv_blocks = word(r), .load_ms = word(r),
        .restarts = word(r), .steps = wide(r), .heartbeat_age_ms = word(r), .deployment = text(r),
        .device_kind = text(r), .device_model = text(r), .device_uuid = text(r), .device_memory_bytes = wide(r), .memory_free_bytes = wide(r),
        .temperature_c = word(r), .power_mw = word(r), .utilization_percent = word(r), .throttle = word(r), .device_lost = msg_random_below(r, 2),
    };
}

static void fill_admin_reply(struct msg_random *r, struct msg_admin_reply *m)
{
    m->id = wide(r);
    m->err = msg_random_below(r, ERR_COUNT);
    m->text = text(r);
    m->version = text(r);
    m->model = text(r);
    m->http_url = text(r);
    m->uptime_ms = wide(r);
    m->tp = word(r);
    m->pp = word(r);
    m->ctx = word(r);
    m->n_replicas = count(r, 9);
    m->replicas = list(r, m->n_replicas, sizeof *m->replicas);
    for (uint32_t i = 0; i < m->n_replicas; i++)
        m->replicas[i] = (struct msg_replica_info){word(r), text(r), wide(r), word(r), word(r), word(r), word(r), word(r), text(r)};
    m->n_workers = count(r, 9);
    m->workers = list(r, m->n_workers, sizeof *m->workers);
    for (uint32_t i = 0; i < m->n_workers; i++)
        fill_worker_info(r, &m->workers[i]);
    m->n_nodes = count(r, 4);
    m->nodes = list(r, m->n_nodes, sizeof *m->nodes);
    for (uint32_t i = 0; i < m->n_nodes; i++)
        fill_hello(r, &m->nodes[i]);
    m->n_deployments = count(r, 4);
    m->deployments = list(r, m->n_deployments, sizeof *m->deployments);
    for (uint32_t i = 0; i < m->n_deployments; i++)
        m->deployments[i] =
            (struct msg_deployment_info){text(r), text(r), text(r), text(r), word(r), word(r), word(r), word(r), word(r), word(r)};
}

static void fill_comm_peers(struct msg_random *r, struct msg_comm_peers *m)
{
    m->epoch = wide(r);
    m->n = count(r, 20);
    m->address = list(r, m->n, sizeof *m->address);
    m->address_len = list(r, m->n, sizeof *m->address_len);
    for (uint32_t i = 0; i < m->n; i++)
        m->address[i] = blob(r, &m->address_len[i]);
}

void msg_random_fill(struct msg_random *r, enum msg_type type, struct msg *m)
{
    memset(m, 0, sizeof *m);
    m->type = type;
    switch (type) {
    case MSG_HELLO: fill_hello(r, &m->hello); break;
    case MSG_WELCOME: m->welcome = (struct msg_welcome){word(r), wide(r), word(r)}; break;
    case MSG_REFUSE: m->refuse = (struct msg_refuse){msg_random_below(r, ERR_COUNT), text(r), word(r), word(r)}; break;
    case MSG_START_WORKER: fill_start_worker(r, &m->start_worker); break;
    case MSG_STOP_WORKER: m->stop_worker.worker_id = wide(r); break;
    case MSG_WORKER_EXITED: m->worker_exited = (struct msg_worker_exited){wide(r), word(r), (int32_t)word(r), text(r)}; break;
    case MSG_HEARTBEAT: fill_heartbeat(r, &m->heartbeat); break;
    case MSG_LOAD_PROGRESS: m->load_progress = (struct msg_load_progress){wide(r), wide(r)}; break;
    case MSG_WORKER_READY:
        m->worker_ready = (struct msg_worker_ready){.epoch = wide(r), .kv_blocks = word(r), .weights_bytes = wide(r),
            .weights_bytes_planned = wide(r), .kv_bytes = wide(r), .file_bytes_read = wide(r), .load_ms = word(r), .backend = text(r)};
        m->worker_ready.address = blob(r, &m->worker_ready.address_len);
        break;
    case MSG_COMM_PEERS: fill_comm_peers(r, &m->comm_peers); break;
    case MSG_COMM_READY: m->comm_ready.epoch = wide(r); break;
    case MSG_RESET: m->reset.epoch = wide(r); break;
    case MSG_WORKER_ERROR:
        m->worker_error = (struct msg_worker_error){wide(r), wide(r), msg_random_below(r, ERR_COUNT), text(r), msg_random_below(r, 2)};
        break;
    case MSG_SHUTDOWN: m->shutdown.grace_ms = word(r); break;
    case MSG_STEP: fill_step(r, &m->step); break;
    case MSG_STEP_RESULT: fill_step_result(r, &m->step_result); break;
    case MSG_ADMIN_REQUEST: m->admin_request = (struct msg_admin_request){word(r), wide(r)}; break;
    case MSG_ADMIN_REPLY: fill_admin_reply(r, &m->admin_reply); break;
    case MSG_TYPE_COUNT: ASSERT(false);
    }
}

/* --- comparison --- */

#define SAME(f) do { if (a->f != b->f) return #f; } while (0)
#define SAME_REAL(f) do { if (memcmp(&a->f, &b->f, sizeof a->f) != 0) return #f; } while (0)
#define SAME_STR(f) do { if (!a->f || !b->f || strcmp(a->f, b->f) != 0) return #f; } while (0)
#define SAME_LIST(f, n) do { if (a->n != b->n || (a->n && memcmp(a->f, b->f, a->n * sizeof *a->f) != 0)) return #f; } while (0)
#define SAME_EACH(f, n, fn) do { SAME(n); for (uint32_t i = 0; i < a->n; i++) { const char *d = fn(&a->f[i], &b->f[i]); if (d) return d; } } while (0)

static const char *diff_device(const struct msg_device *a, const struct msg_device *b)
{
    SAME_STR(name); SAME_STR(kind); SAME_STR(model); SAME(memory_bytes); SAME(cores); SAME(numa);
    SAME_STR(uuid); SAME_STR(bus_id); SAME(sm); SAME(memory_total_bytes); SAME(memory_free_bytes); SAME(temperature_c); SAME(power_mw);
    SAME(utilization_percent); SAME(throttle); SAME(lost); SAME_STR(why); SAME(state_age_ms); SAME_LIST(path, n_peers); SAME_LIST(nvlinks, n_peers);
    return NULL;
}
static const char *diff_hello(const struct msg_hello *a, const struct msg_hello *b)
{
    SAME(version_min); SAME(version_max); SAME_STR(role); SAME_STR(host); SAME(peer_id); SAME(epoch); SAME(pid);
    SAME_EACH(devices, n_devices, diff_device);
    SAME_STR(gpu_driver); SAME(cuda_version); SAME_STR(gpu_note);
    return NULL;
}
static const char *diff_heartbeat(const struct msg_heartbeat *a, const struct msg_heartbeat *b)
{
    SAME(progress); SAME(step_id); SAME(epoch); SAME_LIST(device, n_devices); SAME_LIST(temperature_c, n_devices); SAME_LIST(power_mw, n_devices);
    SAME_LIST(utilization_percent, n_devices); SAME_LIST(throttle, n_devices); SAME_LIST(memory_free_bytes, n_devices); SAME_LIST(lost, n_devices);
    SAME_STR(why);
    return NULL;
}
static const char *diff_start_worker(const struct msg_start_worker *a, const struct msg_start_worker *b)
{
    SAME(worker_id); SAME_STR(device); SAME_STR(model_path); SAME(model_bytes); SAME_STR(deployment); SAME(replica); SAME(tp); SAME(pp);
    SAME(tp_rank); SAME(stage); SAME_LIST(share, n_share); SAME_LIST(layer_first, n_layer_first); SAME(epoch); SAME(ctx); SAME(max_seqs);
    SAME(max_step_tokens); SAME(kv_memory_bytes); SAME(kv_type); SAME_STR(endpoint); SAME(heartbeat_ms); SAME(step_timeout_ms);
    SAME(deterministic);
    return NULL;
}
static const char *diff_setup(const struct slot_setup *a, const struct slot_setup *b)
{
    SAME(slot); SAME(gen); SAME(seed); SAME(choice); SAME_REAL(temperature); SAME_REAL(top_p); SAME_REAL(min_p); SAME(top_k);
    SAME_REAL(repetition_penalty); SAME_REAL(presence_penalty); SAME_REAL(frequency_penalty); SAME(min_tokens); SAME(n_logprobs);
    SAME(n_output); SAME(prompt_len); SAME_LIST(history, n_history); SAME_LIST(stop, n_stop); SAME_LIST(bias_id, n_bias); SAME(pooling); SAME_LIST(target, n_targets);
    SAME_LIST(bias, n_bias);
    SAME_REAL(typical_p); SAME_REAL(top_n_sigma); SAME_REAL(xtc_probability); SAME_REAL(xtc_threshold); SAME_REAL(dynatemp_range);
    SAME_REAL(dynatemp_exponent); SAME_REAL(dry_multiplier); SAME_REAL(dry_base); SAME(dry_allowed_length); SAME(dry_last_n);
    SAME(penalty_last_n); SAME(mirostat); SAME_REAL(mirostat_tau); SAME_REAL(mirostat_eta); SAME_REAL(mirostat_mu);
    SAME_LIST(allowed, n_allowed); SAME_LIST(bad_id, n_bad_ids); SAME_LIST(bad_len, n_bad); SAME_LIST(dry_id, n_dry_ids);
    SAME_LIST(dry_len, n_dry);
    return NULL;
}
static const char *diff_step(const struct step *a, const struct step *b)
{
    SAME(epoch); SAME(step_id); SAME_LIST(slot, n_runs); SAME_LIST(gen, n_runs); SAME_LIST(start, n_runs); SAME_LIST(n_tokens, n_runs);
    SAME_LIST(want, n_runs); SAME_LIST(n_blocks, n_runs); SAME_LIST(tokens, n_all_tokens); SAME_LIST(blocks, n_all_blocks);
    SAME_EACH(setups, n_setups, diff_setup); SAME_LIST(freed, n_freed);
    return NULL;
}
static const char *diff_step_result(const struct step_result *a, const struct step_result *b)
{
    SAME(epoch); SAME(step_id); SAME_LIST(slot, n_runs); SAME_LIST(gen, n_runs); SAME_LIST(token, n_runs); SAME_LIST(n_positions, n_runs);
    SAME_LIST(logprob, n_all_positions); SAME_LIST(n_top, n_all_positions); SAME_LIST(top_id, n_all_top);
    SAME_LIST(top_logprob, n_all_top); SAME(pooled_dim); SAME_LIST(pooled, n_all_pooled); SAME_LIST(mu_run, n_mu); SAME_LIST(mu, n_mu);
    SAME(compute_us); SAME(comm_us); SAME(sample_us);
    return NULL;
}
static const char *diff_replica_info(const struct msg_replica_info *a, const struct msg_replica_info *b)
{
    SAME(replica); SAME_STR(state); SAME(epoch); SAME(running); SAME(waiting); SAME(kv_blocks); SAME(kv_blocks_used); SAME(load_percent);
    SAME_STR(deployment);
    return NULL;
}
static const char *diff_deployment_info(const struct msg_deployment_info *a, const struct msg_deployment_info *b)
{
    SAME_STR(names); SAME_STR(path); SAME_STR(state); SAME_STR(text); SAME(tp); SAME(pp); SAME(replicas); SAME(ctx); SAME(workers);
    SAME(workers_ready);
    return NULL;
}
static const char *diff_worker_info(const struct msg_worker_info *a, const struct msg_worker_info *b)
{
    SAME(worker_id); SAME_STR(host); SAME_STR(device); SAME_STR(state); SAME_STR(backend); SAME(pid); SAME(replica); SAME(stage);
    SAME(tp_rank); SAME(layer_first); SAME(layer_end); SAME(weights_bytes); SAME(weights_bytes_planned); SAME(kv_bytes); SAME(kv_blocks);
    SAME(load_ms); SAME(restarts); SAME(steps); SAME(heartbeat_age_ms); SAME_STR(deployment);
    SAME_STR(device_kind); SAME_STR(device_model); SAME_STR(device_uuid); SAME(device_memory_bytes); SAME(memory_free_bytes);
    SAME(temperature_c); SAME(power_mw); SAME(utilization_percent); SAME(throttle); SAME(device_lost);
    return NULL;
}
static const char *diff_admin_reply(const struct msg_admin_reply *a, const struct msg_admin_reply *b)
{
    SAME(id); SAME(err); SAME_STR(text); SAME_STR(version); SAME_STR(model); SAME_STR(http_url); SAME(uptime_ms); SAME(tp); SAME(pp);
    SAME(ctx); SAME_EACH(replicas, n_replicas, diff_replica_info); SAME_EACH(workers, n_workers, diff_worker_info);
    SAME_EACH(nodes, n_nodes, diff_hello); SAME_EACH(deployments, n_deployments, diff_deployment_info);
    return NULL;
}
static const char *diff_comm_peers(const struct msg_comm_peers *a, const struct msg_comm_peers *b)
{
    SAME(epoch);
    SAME_LIST(address_len, n);
    for (uint32_t i = 0; i < a->n; i++)
        if (a->address_len[i] && memcmp(a->address[i], b->address[i], a->address_len[i]) != 0)
            return "address";
    return NULL;
}

const char *msg_random_diff(const struct msg *a, const struct msg *b)
{
    SAME(type);
    switch (a->type) {
    case MSG_HELLO: return diff_hello(&a->hello, &b->hello);
    case MSG_WELCOME: SAME(welcome.version); SAME(welcome.peer_id); SAME(welcome.heartbeat_ms); return NULL;
    case MSG_REFUSE: SAME(refuse.err); SAME_STR(refuse.text); SAME(refuse.version_min); SAME(refuse.version_max); return NULL;
    case MSG_START_WORKER: return diff_start_worker(&a->start_worker, &b->start_worker);
    case MSG_STOP_WORKER: SAME(stop_worker.worker_id); return NULL;
    case MSG_WORKER_EXITED:
        SAME(worker_exited.worker_id); SAME(worker_exited.pid); SAME(worker_exited.status); SAME_STR(worker_exited.text);
        return NULL;
    case MSG_HEARTBEAT: return diff_heartbeat(&a->heartbeat, &b->heartbeat);
    case MSG_LOAD_PROGRESS: SAME(load_progress.bytes_done); SAME(load_progress.bytes_total); return NULL;
    case MSG_WORKER_READY:
        SAME(worker_ready.epoch); SAME(worker_ready.kv_blocks); SAME(worker_ready.weights_bytes); SAME(worker_ready.weights_bytes_planned);
        SAME(worker_ready.kv_bytes); SAME(worker_ready.file_bytes_read); SAME(worker_ready.load_ms); SAME_STR(worker_ready.backend);
        SAME_LIST(worker_ready.address, worker_ready.address_len);
        return NULL;
    case MSG_COMM_PEERS: return diff_comm_peers(&a->comm_peers, &b->comm_peers);
    case MSG_COMM_READY: SAME(comm_ready.epoch); return NULL;
    case MSG_RESET: SAME(reset.epoch); return NULL;
    case MSG_WORKER_ERROR:
        SAME(worker_error.epoch); SAME(worker_error.step_id); SAME(worker_error.err); SAME_STR(worker_error.text); SAME(worker_error.fatal);
        return NULL;
    case MSG_SHUTDOWN: SAME(shutdown.grace_ms); return NULL;
    case MSG_STEP: return diff_step(&a->step, &b->step);
    case MSG_STEP_RESULT: return diff_step_result(&a->step_result, &b->step_result);
    case MSG_ADMIN_REQUEST: SAME(admin_request.verb); SAME(admin_request.id); return NULL;
    case MSG_ADMIN_REPLY: return diff_admin_reply(&a->admin_reply, &b->admin_reply);
    case MSG_TYPE_COUNT: break;
    }
    return "type";
}
