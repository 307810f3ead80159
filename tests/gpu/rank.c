/* racklm-rank MODEL.gguf IDS.bin OUT.f32 TP PP RANK DIR [prefill]: one rank of a replica on GPU 0 as a process of its own, so that several can share one GPU (NCCL takes
 * them for hosts by NCCL_HOSTID, which is read once a process). The ranks find each other by files in DIR. The first `prefill` ids (default: half) run in one step, the others one
 * by one; ranks of the last stage write their part of the fp32 logits of every position into OUT, [n][vocab]. Exit code 0, or 1 with the reason. */
#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "worker/model_runner.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEADLINE_S = 120 };

struct rank {
    uint32_t tp, pp, rank, n_ids, prefill, vocab, pos, n_blocks;
    uint32_t *ids, *blocks;
    const char *dir;
    int out;
    struct runner *runner;
    struct comm *comm;
};

static void die(const struct rank *r, const char *what)
{
    fprintf(stderr, "racklm-rank %u: %s\n", r->rank, what);
    _exit(1); /* what the others wait for ends by their deadline */
}

static void write_at(const struct rank *r, size_t at, const float *v, uint32_t n)
{
    if (pwrite(r->out, v, n * sizeof(*v), (off_t)(at * sizeof(*v))) != (ssize_t)(n * sizeof(*v)))
        die(r, "cannot write the logits");
}

static void on_logits(void *arg, uint32_t slot, uint32_t position, uint32_t first_id, uint32_t n, const float *logits)
{
    struct rank *r = arg;
    (void)slot;
    if (position - 1 < r->n_ids)
        write_at(r, (size_t)(position - 1) * r->vocab + first_id, logits, n);
}

/* addr: in, this rank's; all: out, everybody's. */
static void exchange(struct rank *r, const struct comm_addr *own, struct comm_addr *all, uint64_t deadline)
{
    char path[512], tmp[520];
    snprintf(path, sizeof(path), "%s/%u", r->dir, r->rank);
    snprintf(tmp, sizeof(tmp), "%s.part", path);
    FILE *f = fopen(tmp, "wb");
    if (!f || fwrite(own, sizeof(*own), 1, f) != 1 || fclose(f) != 0 || rename(tmp, path) != 0)
        die(r, "cannot write the address");
    for (uint32_t i = 0; i < r->tp * r->pp; i++) {
        snprintf(path, sizeof(path), "%s/%u", r->dir, i);
        while (!(f = fopen(path, "rb"))) {
            if (clock_ns() > deadline)
                die(r, "a rank has not come");
            usleep(10000);
        }
        if (fread(&all[i], sizeof(all[i]), 1, f) != 1)
            die(r, "an address is no address");
        fclose(f);
    }
}

static void start(struct rank *r, const char *model, uint64_t deadline)
{
    uint32_t step = MAX(r->prefill, 1u);
    struct runner_config rc = {.model_path = model, .tp = r->tp, .pp = r->pp, .tp_rank = r->rank % r->tp, .stage = r->rank / r->tp,
                               .kernels = kernels_by_name("cpu"), .n_threads = 1, .ctx = r->n_ids + 1, .max_seqs = 1, .max_step_tokens = step,
                               .kv_type = KV_F16, .use_cuda = true};
    struct comm_config cc = {.rank = r->rank, .tp = r->tp, .pp = r->pp};
    struct comm_addr own, *all = calloc(r->tp * r->pp, sizeof(*all));
    ASSERT(all);
    if (runner_create(&rc, &r->runner) != ERR_OK || runner_comm_create(r->runner, &cc, &r->comm, &own) != ERR_OK)
        die(r, err_detail());
    exchange(r, &own, all, deadline);
    if (comm_connect(r->comm, all, deadline) != ERR_OK)
        die(r, err_detail());
    runner_set_comm(r->runner, r->comm);
    free(all);
}

static void step(struct rank *r, uint32_t n)
{
    uint32_t zero = 0, at = r->pos, need = (r->pos + n + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK, n_blocks = need - r->n_blocks, want = RUN_WANT_NOTHING;
    struct slot_setup setup = {.top_p = 1, .prompt_len = r->n_ids};
    struct step s = {.step_id = r->pos, .n_runs = 1, .slot = &zero, .gen = &zero, .start = &at, .n_tokens = &n, .want = &want, .n_blocks = &n_blocks,
                     .n_all_tokens = n, .n_all_blocks = n_blocks, .tokens = r->ids + r->pos, .blocks = r->blocks + r->n_blocks, .setups = &setup,
                     .n_setups = r->pos == 0};
    struct step_result res;
    bool has_result;
    if (runner_step(r->runner, &s, &res, &has_result) != ERR_OK)
        die(r, err_detail());
    r->pos += n;
    r->n_blocks = need;
}

int main(int argc, char **argv)
{
    struct rank r = {0};
    struct runner_info info;
    struct buf in;
    uint64_t deadline = clock_ns() + DEADLINE_S * NS_PER_S;
    if (argc < 8)
        die(&r, "usage: racklm-rank MODEL.gguf IDS.bin OUT.f32 TP PP RANK DIR [prefill]");
    r.tp = (uint32_t)atoi(argv[4]), r.pp = (uint32_t)atoi(argv[5]), r.rank = (uint32_t)atoi(argv[6]), r.dir = argv[7];
    buf_init(&in);
    if (buf_read_file(&in, argv[2], 64 << 20) != ERR_OK || in.len < 4)
        die(&r, "no ids");
    r.n_ids = (uint32_t)(in.len / 4);
    r.ids = (uint32_t *)in.data;
    r.prefill = argc > 8 ? (uint32_t)atoi(argv[8]) : (r.n_ids + 1) / 2;
    r.out = open(argv[3], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (r.out < 0)
        die(&r, "cannot write OUT");
    start(&r, argv[1], deadline);
    runner_info(r.runner, &info);
    r.vocab = info.vocab;
    r.blocks = calloc(info.kv_blocks, sizeof(*r.blocks));
    ASSERT(r.blocks);
    for (uint32_t i = 0; i < info.kv_blocks; i++)
        r.blocks[i] = info.kv_blocks - 1 - i; /* not in order: nothing may depend on it */
    comm_set_deadline(r.comm, deadline);
    if (r.rank / r.tp + 1 == r.pp)
        runner_set_logits_hook(r.runner, on_logits, &r);
    while (r.pos < r.n_ids)
        step(&r, r.pos == 0 && r.prefill ? MIN(r.prefill, r.n_ids) : 1);
    /* Not before the others are done with what they have of this rank: a stage ahead has sent its last. */
    runner_destroy(&r.runner);
    comm_destroy(&r.comm);
    close(r.out);
    free(r.blocks);
    buf_deinit(&in);
    return 0;
}
