#include "coordinator/scheduler.h"

#include "base/check.h"
#include "proto/msg.h"

#include <stdlib.h>
#include <string.h>

enum {
    BUDGET_UNMEASURED = 64, /* prefill tokens of a step before any was timed */
    BUDGET_MIN = 32,        /* smaller chunks waste the read of the weights */
    BUDGET_MIN_DECODING = 16,
    TARGETS_ALONE = 8, /* step times that a step takes in which nobody generates: who comes next waits for the prompt before his all the same */
    LISTED_MAX = 1 << 21, /* of a step: at five bytes each a sixth of a message */
    PENDING_MAX = 2, /* enough to hide the round trip at any pp */
};
static const double speed_weight = 0.25; /* of the newest measurement */

/* ---- lists ---- */

static void list_push_last(struct seq_list *l, struct seq *q)
{
    q->prev = l->last;
    q->next = NULL;
    *(l->last ? &l->last->next : &l->first) = q;
    l->last = q;
    l->n++;
}

static void list_push_first(struct seq_list *l, struct seq *q)
{
    q->prev = NULL;
    q->next = l->first;
    *(l->first ? &l->first->prev : &l->last) = q;
    l->first = q;
    l->n++;
}

static void list_remove(struct seq_list *l, struct seq *q)
{
    *(q->prev ? &q->prev->next : &l->first) = q->next;
    *(q->next ? &q->next->prev : &l->last) = q->prev;
    q->prev = q->next = NULL;
    l->n--;
}

/* ---- life ---- */

enum err scheduler_init(struct scheduler *s, const struct scheduler_config *cfg)
{
    ASSERT(cfg->max_seqs >= 1 && cfg->pp >= 1 && cfg->max_step_tokens >= cfg->max_seqs);
    memset(s, 0, sizeof *s);
    s->cfg = *cfg;
    uint32_t n = cfg->max_seqs, n_plans = cfg->pp + 1;
    s->slots = calloc(n, sizeof *s->slots);
    s->free_slots = calloc(n, sizeof *s->free_slots);
    s->freed = calloc(n, sizeof *s->freed);
    s->outcomes = calloc(n, sizeof *s->outcomes);
    s->plans = calloc(n_plans, sizeof *s->plans);
    bool ok = s->slots && s->free_slots && s->freed && s->outcomes && s->plans;
    for (uint32_t i = 0; ok && i < n_plans; i++) {
        s->plans[i].runs = calloc(n, sizeof *s->plans[i].runs);
        s->plans[i].freed = calloc(n, sizeof *s->plans[i].freed);
        ok = s->plans[i].runs && s->plans[i].freed;
    }
    if (!ok || kv_blocks_init(&s->kv, 0, n) != ERR_OK) {
        scheduler_deinit(s);
        return err_set(ERR_NOMEM, "scheduler for %u sequences", n);
    }
    for (uint32_t i = 0; i < n; i++)
        s->free_slots[i] = n - 1 - i; /* the lowest first */
    s->n_free_slots = n;
    s->next_step_id = s->next_order = 1;
    return ERR_OK;
}

void scheduler_deinit(struct scheduler *s)
{
    for (uint32_t i = 0; s->plans && i <= s->cfg.pp; i++) {
        free(s->plans[i].runs);
        free(s->plans[i].freed);
    }
    free(s->plans);
    free(s->slots);
    free(s->free_slots);
    free(s->freed);
    free(s->outcomes);
    kv_blocks_deinit(&s->kv);
    memset(s, 0, sizeof *s);
}

/* ---- sequences ---- */

/* Tokens at which it ends: prompt plus max_tokens, or the context. */
static uint32_t seq_limit(const struct scheduler *s, const struct seq *q)
{
    uint64_t want = (uint64_t)q->req->n_prompt + q->req->sampling.max_tokens;
    return (uint32_t)MIN(want, (uint64_t)MIN(s->ctx, q->n_cap));
}

/* Its length once the samples on their way are there. */
static uint32_t seq_length(const struct seq *q)
{
    return q->n_tokens + q->n_pending;
}

static void slot_release(struct scheduler *s, uint32_t idx, bool tell)
{
    struct slot *slot = &s->slots[idx];
    if (slot->state == SLOT_DRAINING)
        s->n_draining--;
    slot->state = SLOT_FREE;
    slot->seq = NULL;
    if (!MUTANT(1))
        kv_blocks_give(&s->kv, idx);
    s->free_slots[s->n_free_slots++] = idx;
    if (tell)
        scheduler_note_freed(s, idx);
}

static void seq_detach(struct scheduler *s, struct seq *q)
{
    uint32_t idx = q->slot;
    struct slot *slot = &s->slots[idx];
    ASSERT(slot->state == SLOT_ACTIVE && slot->seq == q);
    list_remove(&s->active, q);
    s->n_embed -= q->req->kind == REQUEST_EMBED;
    q->state = SEQ_OUT;
    slot->seq = NULL;
    slot->state = SLOT_DRAINING;
    s->n_draining++;
    if (slot->n_in_flight == 0 || MUTANT(2))
        slot_release(s, idx, true);
}

/* Back to the head of the queue with the tokens it has: everything active is older than everything queued. */
static void seq_requeue(struct scheduler *s, struct seq *q)
{
    q->n_planned = q->n_pending = 0;
    q->state = SEQ_QUEUED;
    if (MUTANT(3))
        q->n_tokens = q->req->n_prompt;
    if (MUTANT(4))
        list_push_last(&s->queue, q);
    else
        list_push_first(&s->queue, q);
}

enum err scheduler_submit(struct scheduler *s, struct seq *q)
{
    ASSERT(q->state == SEQ_NEW && q->n_tokens >= 1);
    if ((uint64_t)s->queue.n + s->active.n >= (uint64_t)s->cfg.max_seqs + s->cfg.queue_max)
        return err_set(ERR_BUSY, "%u requests run and %u wait; the queue holds %u", s->active.n, s->queue.n,
                       s->cfg.queue_max);
    q->order = s->next_order++;
    q->state = SEQ_QUEUED;
    list_push_last(&s->queue, q);
    return ERR_OK;
}

void scheduler_cancel(struct scheduler *s, struct seq *q)
{
    if (q->state == SEQ_QUEUED) {
        list_remove(&s->queue, q);
        q->state = SEQ_OUT;
    } else if (q->state == SEQ_ACTIVE) {
        seq_detach(s, q);
    }
}

struct seq *scheduler_take_unfit(struct scheduler *s, enum finish *finish, enum err *err)
{
    if (s->ctx == 0)
        return NULL;
    for (struct seq *q = s->queue.first; q; q = q->next) {
        *finish = FINISH_ERROR;
        if (q->n_failures >= SCHEDULER_FAILURES_MAX)
            *err = ERR_PEER_LOST;
        else if (q->req->n_prompt > s->ctx)
            *err = ERR_NO_FIT;
        else if (q->n_tokens >= s->ctx && q->n_tokens > q->req->n_prompt) /* came back to a smaller pool */
            *err = ERR_OK, *finish = FINISH_LENGTH;
        else
            continue;
        list_remove(&s->queue, q);
        q->state = SEQ_OUT;
        return q;
    }
    return NULL;
}

/* ---- planning ---- */

static void add_run(struct scheduler *s, struct step_plan *p, struct seq *q, uint32_t n, uint32_t n_blocks,
                    uint32_t first_block)
{
    struct slot *slot = &s->slots[q->slot];
    const struct sampling *sp = &q->req->sampling;
    uint32_t length = seq_length(q), start = q->n_planned;
    struct plan_run *r = &p->runs[p->n_runs++];
    *r = (struct plan_run){.seq = q,
                           .slot = q->slot,
                           .gen = slot->gen,
                           .start = start,
                           .n_tokens = n,
                           .n_blocks = n_blocks,
                           .first_block = first_block,
                           .setup = slot->fresh};
    r->tokens = start < q->n_tokens ? q->tokens + start : NULL;
    ASSERT(r->tokens ? start + n <= q->n_tokens : n == 1);
    if (start + n == length && length < seq_limit(s, q)) {
        r->want = RUN_WANT_SAMPLE | (sp->logprobs ? RUN_WANT_LOGPROBS : 0);
        q->n_pending++;
    } else if (start + n == length && q->req->kind != REQUEST_GENERATE) {
        r->want |= q->req->kind == REQUEST_EMBED ? RUN_WANT_POOLED : RUN_WANT_TARGETS;
        r->n_targets = q->req->n_targets;
    }
    if (sp->prompt_logprobs && !q->prompt_logprobs.sent && start < q->req->n_prompt)
        r->want |= RUN_WANT_PROMPT_LOGPROBS;
    q->n_planned += n;
    q->last_step = p->step_id;
    slot->fresh = false;
    slot->n_in_flight++;
    p->n_tokens += n;
    p->n_decodes += n == 1;
}

static void preempt_youngest(struct scheduler *s)
{
    struct seq *q = s->active.last;
    seq_detach(s, q);
    seq_requeue(s, q);
    s->n_preemptions++;
}

static uint32_t blocks_draining(const struct scheduler *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; s->n_draining && i < s->cfg.max_seqs; i++)
        n += s->slots[i].state == SLOT_DRAINING ? s->kv.tables[i].n : 0;
    return n;
}

/* One more block for q, at the cost of younger ones. False: not in this step (q itself may have been preempted). */
static bool take_block(struct scheduler *s, struct seq *q, uint32_t *first)
{
    while (s->kv.n_free == 0 && blocks_draining(s) == 0) {
        bool self = s->active.last == q;
        preempt_youngest(s);
        if (self)
            return false;
    }
    return kv_blocks_take(&s->kv, q->slot, 1, first);
}

/* One position is left to compute and it is not the last one ever needed. */
static bool can_decode(const struct scheduler *s, const struct seq *q)
{
    uint32_t length = seq_length(q);
    return q->n_planned + 1 == length && q->n_pending < PENDING_MAX && !(q->n_pending && length >= seq_limit(s, q));
}

/* True: planned. False: no block, and q may be gone from the active list. */
static bool add_decode(struct scheduler *s, struct step_plan *p, struct seq *q)
{
    uint32_t n_blocks = 0, first = KV_BLOCKS_NONE;
    if (kv_blocks_for(q->n_planned + 1) > s->kv.tables[q->slot].n) {
        if (!take_block(s, q, &first))
            return false;
        n_blocks = 1;
    }
    add_run(s, p, q, 1, n_blocks, first);
    return true;
}

/* Up to cap decodes, those that waited longest first, the older first among them. `patient`: none whose input token
 * would hold up the first stage. */
static uint32_t deal_decodes(struct scheduler *s, struct step_plan *p, uint32_t cap, bool patient)
{
    uint32_t n = 0;
    for (uint64_t floor = 0; n < cap;) {
        uint64_t turn = UINT64_MAX; /* the oldest last_step not dealt yet */
        for (struct seq *q = s->active.first; q; q = q->next) {
            bool ready = !patient || !q->n_pending || q->last_step + s->cfg.pp <= p->step_id;
            if (ready && q->last_step >= floor && q->last_step < MIN(turn, p->step_id) && can_decode(s, q))
                turn = q->last_step;
        }
        if (turn == UINT64_MAX)
            break;
        for (struct seq *q = s->active.first, *next; q && n < cap; q = next) {
            next = q->next;
            bool ready = !patient || !q->n_pending || q->last_step + s->cfg.pp <= p->step_id;
            if (!ready || q->last_step != turn || !can_decode(s, q))
                continue;
            n += add_decode(s, p, q);
            if (q->state != SEQ_ACTIVE) /* preempted, so it was the last of the list */
                break;
            next = q->next; /* a younger one may have been preempted meanwhile */
        }
        floor = turn + 1;
    }
    return n;
}

static void plan_decodes(struct scheduler *s, struct step_plan *p)
{
    uint32_t n_phase = 0, n_prefill = 0;
    for (struct seq *q = s->active.first; q; q = q->next) {
        if (q->n_planned + 1 >= seq_length(q))
            n_phase++;
        else
            n_prefill++;
    }
    uint32_t cap = (n_phase + s->cfg.pp - 1) / s->cfg.pp;
    if (deal_decodes(s, p, cap, true) == 0 && n_prefill == 0)
        deal_decodes(s, p, cap, false);
}

/* Prefill tokens that fit the step's time. */
static uint32_t prefill_budget(const struct scheduler *s, const struct step_plan *p)
{
    uint32_t n, room = s->cfg.max_step_tokens - p->n_tokens;
    if (s->cfg.prefill_chunk) {
        n = s->cfg.prefill_chunk;
    } else if (s->prefill_us <= 0) {
        n = BUDGET_UNMEASURED;
    } else {
        double left_us = p->n_runs ? s->cfg.step_target_us - s->decode_us : TARGETS_ALONE * (double)s->cfg.step_target_us;
        double fits = left_us > 0 ? left_us / s->prefill_us : 0;
        n = fits < s->cfg.max_step_tokens ? (uint32_t)fits / KV_BLOCKS_POSITIONS * KV_BLOCKS_POSITIONS
                                          : s->cfg.max_step_tokens;
        n = MAX(n, p->n_runs ? BUDGET_MIN_DECODING : BUDGET_MIN);
    }
    return MIN(n, room);
}

/* The head of the queue gets a slot and the blocks of all of its tokens. A running sequence keeps a block in reserve,
 * or the newcomer would be preempted at once. */
static struct seq *admit(struct scheduler *s, uint64_t now_ns, uint32_t *n_blocks, uint32_t *first)
{
    struct seq *q = s->queue.first;
    if (!q || !s->n_free_slots)
        return NULL;
    if (q->req->kind == REQUEST_EMBED && s->cfg.embed_max && s->n_embed >= s->cfg.embed_max)
        return NULL;
    uint32_t need = kv_blocks_for(q->n_tokens), reserve = MIN(s->active.n, s->kv.n_blocks / 16);
    if (s->kv.n_free < need + reserve)
        return NULL;
    list_remove(&s->queue, q);
    uint32_t idx = s->free_slots[--s->n_free_slots];
    struct slot *slot = &s->slots[idx];
    ASSERT(slot->state == SLOT_FREE && slot->n_in_flight == 0);
    slot->state = SLOT_ACTIVE;
    slot->gen = slot->gen == UINT32_MAX ? 1 : slot->gen + 1;
    slot->fresh = true;
    slot->seq = q;
    q->slot = idx;
    q->state = SEQ_ACTIVE;
    q->last_step = 0;
    if (!q->first_slot_ns)
        q->first_slot_ns = now_ns;
    list_push_last(&s->active, q);
    s->n_embed += q->req->kind == REQUEST_EMBED;
    *n_blocks = need;
    bool taken = kv_blocks_take(&s->kv, idx, need, first);
    ASSERT(taken);
    return q;
}

/* Ids that its set-up lists: with many such the message of a step would pass its limit. */
static uint32_t n_listed(const struct seq *q)
{
    const struct sampling_ids *ids = q ? q->req->sampling.ids : NULL;
    return ids ? ids->n_allowed + 2 * (ids->n_bad_ids + ids->n_dry_ids) : 0;
}

static void plan_prefills(struct scheduler *s, struct step_plan *p, uint64_t now_ns)
{
    uint32_t budget = prefill_budget(s, p);
    for (struct seq *q = s->active.first; q && budget; q = q->next) {
        if (q->n_planned + 1 >= seq_length(q))
            continue;
        uint32_t n = MIN(budget, q->n_tokens - q->n_planned);
        add_run(s, p, q, n, 0, KV_BLOCKS_NONE);
        budget -= n;
    }
    struct seq *q;
    uint32_t n_blocks, first, listed = 0;
    while (budget && (listed == 0 || listed + n_listed(s->queue.first) <= LISTED_MAX) && (q = admit(s, now_ns, &n_blocks, &first))) {
        uint32_t n = MIN(budget, q->n_tokens);
        listed += n_listed(q);
        add_run(s, p, q, n, n_blocks, first);
        budget -= n;
    }
}

const struct step_plan *scheduler_plan(struct scheduler *s, uint64_t now_ns)
{
    if (s->n_in_flight > s->cfg.pp || s->ctx == 0)
        return NULL;
    struct step_plan *p = &s->plans[(s->plan_first + s->n_in_flight) % (s->cfg.pp + 1)];
    p->step_id = s->next_step_id;
    p->planned_ns = now_ns;
    p->n_runs = p->n_tokens = p->n_decodes = p->n_freed = 0;
    plan_decodes(s, p);
    plan_prefills(s, p, now_ns);
    if (p->n_runs == 0)
        return NULL;
    memcpy(p->freed, s->freed, s->n_freed * sizeof *p->freed);
    p->n_freed = s->n_freed;
    s->n_freed = 0;
    s->next_step_id++;
    s->n_in_flight++;
    return p;
}

const struct step_plan *scheduler_oldest(const struct scheduler *s)
{
    return s->n_in_flight ? &s->plans[s->plan_first] : NULL;
}

/* ---- results ---- */

static bool is_stop(const struct seq *q, uint32_t token)
{
    for (uint32_t i = 0; i < q->req->sampling.n_stop_ids; i++)
        if (q->req->sampling.stop_ids[i] == token)
            return true;
    return false;
}

static void take_sample(struct scheduler *s, struct seq *q, uint32_t token, struct seq_outcome *o)
{
    q->n_pending--;
    if (is_stop(q, token) && !MUTANT(5)) {
        o->finish = FINISH_STOP;
        o->stop_id = token;
        return;
    }
    ASSERT(q->n_tokens < q->n_cap);
    if (!(MUTANT(6) && q->n_tokens % 7 == 3))
        q->tokens[q->n_tokens++] = token;
    o->has_token = true;
    o->token = token;
    if (q->n_tokens >= seq_limit(s, q))
        o->finish = FINISH_LENGTH;
}

static bool apply_run(struct scheduler *s, const struct plan_run *r, uint32_t token, struct seq_outcome *o)
{
    struct slot *slot = &s->slots[r->slot];
    if (!MUTANT(2))
        ASSERT(slot->gen == r->gen && slot->n_in_flight > 0);
    if (!MUTANT(7) || r->start % 5)
        slot->n_in_flight--;
    if (slot->state == SLOT_DRAINING) { /* its sequence has left: what was sampled is dropped */
        if (slot->n_in_flight == 0)
            slot_release(s, r->slot, true);
        return false;
    }
    struct seq *q = slot->seq;
    if (MUTANT(2) && !q)
        return false;
    *o = (struct seq_outcome){.seq = q};
    uint32_t end = r->start + r->n_tokens;
    if (end > q->n_best) {
        q->n_best = end;
        q->n_failures = 0;
    }
    if (r->want & RUN_WANT_SAMPLE)
        take_sample(s, q, token, o);
    else if (end < q->n_tokens)
        o->n_prefilled = end;
    else
        o->finish = q->req->kind == REQUEST_GENERATE ? FINISH_LENGTH : FINISH_STOP; /* nothing was to be sampled */
    if (o->finish != FINISH_NONE)
        seq_detach(s, q);
    return true;
}

uint32_t scheduler_apply(struct scheduler *s, const uint32_t *sampled, uint64_t now_ns)
{
    ASSERT(s->n_in_flight > 0);
    struct step_plan *p = &s->plans[s->plan_first];
    s->plan_first = (s->plan_first + 1) % (s->cfg.pp + 1);
    s->n_in_flight--;
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        struct seq_outcome *o = &s->outcomes[n];
        if (!apply_run(s, &p->runs[i], sampled[i], o))
            continue;
        o->run_idx = i;
        if (o->has_token) {
            if (!o->seq->first_token_ns)
                o->seq->first_token_ns = now_ns;
        }
        n++;
    }
    return n;
}

void scheduler_observe(struct scheduler *s, uint32_t n_prefill_tokens, uint32_t n_decodes, double us)
{
    if (us <= 0)
        return;
    if (n_prefill_tokens == 0) {
        s->decode_us = s->decode_us > 0 ? s->decode_us + speed_weight * (us - s->decode_us) : us;
        return;
    }
    /* What a step of decodes alone costs is taken off, but never more than half: the estimate may be stale. */
    double rest = us - (n_decodes ? MIN(s->decode_us, us / 2) : 0);
    double per_token = rest / n_prefill_tokens;
    s->prefill_us = s->prefill_us > 0 ? s->prefill_us + speed_weight * (per_token - s->prefill_us) : per_token;
}

/* ---- epochs ---- */

enum err scheduler_reset(struct scheduler *s, uint32_t n_blocks, uint32_t ctx)
{
    s->n_in_flight = 0;
    for (struct seq *q; (q = s->active.last);) { /* youngest first, so that the queue's head ends up the oldest */
        struct slot *slot = &s->slots[q->slot];
        q->n_failures += slot->n_in_flight > 0;
        slot->n_in_flight = 0;
        seq_detach(s, q);
        seq_requeue(s, q);
    }
    for (uint32_t i = 0; i < s->cfg.max_seqs; i++) {
        s->slots[i].n_in_flight = 0;
        if (s->slots[i].state == SLOT_DRAINING)
            slot_release(s, i, false);
    }
    s->n_freed = 0; /* the workers' slots are empty */
    s->ctx = (uint32_t)MIN((uint64_t)ctx, (uint64_t)n_blocks * KV_BLOCKS_POSITIONS);
    if (n_blocks == s->kv.n_blocks)
        return ERR_OK;
    struct kv_blocks kv;
    enum err e = kv_blocks_init(&kv, n_blocks, s->cfg.max_seqs);
    if (e != ERR_OK) {
        s->ctx = 0;
        return e;
    }
    kv_blocks_deinit(&s->kv);
    s->kv = kv;
    return ERR_OK;
}

uint64_t scheduler_take_step_id(struct scheduler *s)
{
    ASSERT(s->n_in_flight == 0);
    return s->next_step_id++;
}

void scheduler_note_freed(struct scheduler *s, uint32_t slot)
{
    for (uint32_t i = 0; i < s->n_freed; i++)
        if (s->freed[i] == slot)
            return;
    ASSERT(s->n_freed < s->cfg.max_seqs);
    s->freed[s->n_freed++] = slot;
}

/* ---- invariants ---- */

static void check_list(const struct scheduler *s, const struct seq_list *l, enum seq_state state)
{
    uint32_t n = 0;
    const struct seq *prev = NULL;
    for (const struct seq *q = l->first; q; prev = q, q = q->next, n++) {
        ASSERT(n < l->n);
        ASSERT(q->prev == prev && q->state == state);
        ASSERT(q->order > 0 && q->order < s->next_order && (!prev || prev->order < q->order));
        ASSERT(q->n_tokens >= q->req->n_prompt && q->n_tokens <= q->n_cap);
    }
    ASSERT(n == l->n && l->last == prev);
}

static void check_seq(const struct scheduler *s, const struct seq *q)
{
    const struct slot *slot = &s->slots[q->slot];
    uint32_t n_blocks = s->kv.tables[q->slot].n, n_samples = 0, n_runs = 0, end = 0;
    ASSERT(slot->state == SLOT_ACTIVE && slot->seq == q && slot->gen != 0);
    ASSERT(q->n_planned >= 1 && q->n_planned <= seq_length(q) && q->n_pending <= PENDING_MAX);
    ASSERT(seq_length(q) <= MAX(seq_limit(s, q), q->req->n_prompt));
    ASSERT(n_blocks >= kv_blocks_for(q->n_planned));
    ASSERT(n_blocks <= kv_blocks_for(MAX(q->n_planned, q->n_tokens)));
    for (uint32_t i = 0; i < s->n_in_flight; i++) {
        const struct step_plan *p = &s->plans[(s->plan_first + i) % (s->cfg.pp + 1)];
        for (uint32_t j = 0; j < p->n_runs; j++) {
            if (p->runs[j].slot != q->slot)
                continue;
            ASSERT(p->runs[j].gen == slot->gen);
            ASSERT(n_runs == 0 || p->runs[j].start == end); /* runs of a sequence follow one another */
            end = p->runs[j].start + p->runs[j].n_tokens;
            n_samples += (p->runs[j].want & RUN_WANT_SAMPLE) != 0;
            n_runs++;
        }
    }
    ASSERT(n_samples == q->n_pending && n_runs == slot->n_in_flight);
    ASSERT(n_runs == 0 || end == q->n_planned);
}

static void check_slots(const struct scheduler *s)
{
    uint32_t n_free = 0, n_active = 0, n_draining = 0;
    for (uint32_t i = 0; i < s->cfg.max_seqs; i++) {
        const struct slot *slot = &s->slots[i];
        n_free += slot->state == SLOT_FREE;
        n_active += slot->state == SLOT_ACTIVE;
        n_draining += slot->state == SLOT_DRAINING;
        ASSERT((slot->seq != NULL) == (slot->state == SLOT_ACTIVE));
        ASSERT(slot->state != SLOT_FREE || (slot->n_in_flight == 0 && s->kv.tables[i].n == 0));
        ASSERT(slot->state != SLOT_DRAINING || slot->n_in_flight > 0);
    }
    ASSERT(n_free == s->n_free_slots && n_active == s->active.n && n_draining == s->n_draining);
    for (uint32_t i = 0; i < s->n_free_slots; i++)
        for (uint32_t j = 0; j < i; j++)
            ASSERT(s->free_slots[i] != s->free_slots[j]);
}

static void check_plans(const struct scheduler *s)
{
    ASSERT(s->n_in_flight <= s->cfg.pp + 1);
    for (uint32_t i = 0; i < s->n_in_flight; i++) {
        const struct step_plan *p = &s->plans[(s->plan_first + i) % (s->cfg.pp + 1)];
        uint32_t n_tokens = 0;
        ASSERT(p->n_runs >= 1 && p->n_runs <= s->cfg.max_seqs && p->step_id < s->next_step_id);
        for (uint32_t j = 0; j < p->n_runs; j++) {
            ASSERT(p->runs[j].n_tokens >= 1);
            n_tokens += p->runs[j].n_tokens;
            ASSERT(s->slots[p->runs[j].slot].state != SLOT_FREE && s->slots[p->runs[j].slot].gen == p->runs[j].gen);
            for (uint32_t k = 0; k < j; k++)
                ASSERT(p->runs[j].slot != p->runs[k].slot); /* one run of a slot in a step */
        }
        ASSERT(n_tokens == p->n_tokens && n_tokens <= s->cfg.max_step_tokens);
    }
}

void scheduler_check(const struct scheduler *s)
{
    kv_blocks_check(&s->kv);
    ASSERT(s->ctx <= (uint64_t)s->kv.n_blocks * KV_BLOCKS_POSITIONS);
    check_list(s, &s->queue, SEQ_QUEUED);
    check_list(s, &s->active, SEQ_ACTIVE);
    uint32_t n_embed = 0;
    for (const struct seq *q = s->active.first; q; q = q->next)
        n_embed += q->req->kind == REQUEST_EMBED;
    ASSERT(n_embed == s->n_embed && (!s->cfg.embed_max || n_embed <= s->cfg.embed_max));
    ASSERT(!s->queue.first || !s->active.last || s->active.last->order < s->queue.first->order);
    ASSERT((uint64_t)s->queue.n + s->active.n <= (uint64_t)s->cfg.max_seqs + s->cfg.queue_max);
    check_slots(s);
    check_plans(s);
    for (const struct seq *q = s->active.first; q; q = q->next)
        check_seq(s, q);
}
