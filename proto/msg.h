/* The messages as plain C structs; racklm.proto is their form on the wire, codec.c turns one into the other.
 *
 * Every decoded message lives in the arena given to the decoder; every repeated field has a cap (below), checked before anything is
 * allocated in proportion to it. Strings are NUL-terminated and bounded. No message refers to itself. */
#ifndef PROTO_MSG_H
#define PROTO_MSG_H

#include "base/arena.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PROTO_VERSION_MIN = 1, PROTO_VERSION_MAX = 1 };
enum {
    MSG_STR_MAX = 4096,        /* any string */
    MSG_BLOB_MAX = 4096,       /* a comm address */
    MSG_DEVICES_MAX = 256,
    MSG_RANKS_MAX = 1024,
    MSG_RUNS_MAX = 4096,       /* runs of a step */
    MSG_TOKENS_MAX = 1 << 20,  /* tokens of a step */
    MSG_BLOCKS_MAX = 1 << 20,
    MSG_BIAS_MAX = 1024, MSG_STOP_IDS_MAX = 128, MSG_TARGETS_MAX = 16,
    MSG_POOLED_MAX = 1 << 20,  /* floats of the pooled states of a step */
    MSG_ALLOWED_MAX = 1 << 18, /* token ids that may be sampled at all */
    MSG_BAD_IDS_MAX = 4096,    /* ids of the sequences that may not be sampled */
    MSG_DRY_IDS_MAX = 1 << 16, /* ids of the sequences that end what DRY looks at */
    MSG_LOGPROBS_MAX = 128,    /* top log-probabilities of a position */
    MSG_POSITIONS_MAX = MSG_TOKENS_MAX + MSG_RUNS_MAX, /* rows of log-probabilities of a step */
    MSG_TOP_MAX = 8 << 20,     /* top log-probabilities of a step */
    MSG_FRAME_MAX = 64 << 20,  /* bytes of a message */
};

/* Control: agent, worker and admin to the coordinator and back. One oneof on the wire. */
enum msg_type {
#define MSG(sym, field) MSG_##sym,
#include "proto/msgs.def"
#undef MSG
    MSG_TYPE_COUNT
};

struct msg_device {
    char *name;           /* "cpu:0" */
    char *kind;           /* "cpu", "cuda", "emulated" */
    char *model;          /* CPU or GPU name */
    uint64_t memory_bytes; /* budget of one worker there */
    uint32_t cores;       /* threads it may use */
    uint32_t numa;
    /* GPUs only; what is not known is 0 or "" */
    char *uuid, *bus_id;
    uint32_t sm;          /* compute capability: 90 */
    uint64_t memory_total_bytes;
    uint64_t memory_free_bytes; /* from here on: the state when the agent looked last */
    uint32_t temperature_c, power_mw, utilization_percent;
    uint32_t throttle;    /* enum device_throttle (device.h) */
    bool lost;            /* no worker runs there any more */
    char *why;            /* it is lost */
    uint32_t state_age_ms; /* coordinator to admin: how long ago that was */
    uint32_t *path;       /* to each device of the node: enum device_path (device.h) */
    uint32_t *nvlinks;    /* likewise: NVLinks that lead there */
    uint32_t n_peers;
};
/* First message of every peer: agent or worker. */
struct msg_hello {
    uint32_t version_min, version_max;
    char *role;           /* "agent", "worker", "admin" */
    char *host;
    uint64_t peer_id;     /* agent: random per start; worker: worker_id */
    uint64_t epoch;       /* worker */
    uint32_t pid;
    struct msg_device *devices; /* agent */
    uint32_t n_devices;
    char *gpu_driver;     /* agent: version of the NVIDIA driver */
    uint32_t cuda_version; /* that it knows: 13000 */
    char *gpu_note;       /* why GPUs that may be there are not offered */
};
struct msg_welcome {
    uint32_t version;
    uint64_t peer_id;     /* as given by the coordinator */
    uint32_t heartbeat_ms;
};
/* Last message before the coordinator forgets a peer: why. */
struct msg_refuse {
    uint32_t err;
    char *text;
    uint32_t version_min, version_max;
};
/* Coordinator to agent: run one rank of a replica. Everything the worker needs to know. */
struct msg_start_worker {
    uint64_t worker_id;
    char *device;
    char *model_path;
    uint64_t model_bytes;     /* of the first file; another size on that host is refused */
    char *deployment;
    uint32_t replica, tp, pp, tp_rank, stage;
    uint32_t *share;          /* n_share = tp */
    uint32_t n_share;
    uint32_t *layer_first;    /* n = pp + 1 */
    uint32_t n_layer_first;
    uint64_t epoch;
    uint32_t ctx, max_seqs, max_step_tokens;
    uint64_t kv_memory_bytes; /* 0: from max_seqs and ctx, at most half of what is left of the budget */
    uint32_t kv_type;
    char *endpoint;           /* of the engine */
    uint32_t heartbeat_ms, step_timeout_ms;
    bool deterministic;       /* on a GPU: results that do not depend on what else is in the step */
};
struct msg_stop_worker {
    uint64_t worker_id;
};
/* Agent to coordinator: the process is gone (pidfd), or never came up. */
struct msg_worker_exited {
    uint64_t worker_id;
    uint32_t pid;
    int32_t status;           /* exit code, or minus the signal */
    char *text;               /* one line: "killed by signal 9", or the error it left */
};
/* Work loop's sign of life; the agent's too (progress = number of wake-ups). */
struct msg_heartbeat {
    uint64_t progress, step_id, epoch;
    uint32_t *device;         /* agent: the state of these of its HELLO's devices, as in msg_device; the coordinator does not send them back */
    uint32_t *temperature_c, *power_mw, *utilization_percent, *throttle;
    uint64_t *memory_free_bytes;
    uint32_t *lost;           /* 0, 1 */
    uint32_t n_devices;
    char *why;                /* of those that are newly lost */
};
/* Worker to engine. */
struct msg_load_progress {
    uint64_t bytes_done, bytes_total;
};
struct msg_worker_ready {
    uint64_t epoch;
    uint32_t kv_blocks;       /* of this rank; the replica uses the minimum */
    uint64_t weights_bytes, weights_bytes_planned, kv_bytes, file_bytes_read;
    uint32_t load_ms;
    char *backend;            /* "cpu-avx2" */
    uint8_t *address;         /* comm address, new for every epoch */
    uint32_t address_len;
};
/* Engine to worker: a new epoch begins; connect to these. Sequences of the old epoch are forgotten (slots and KV are empty). */
struct msg_comm_peers {
    uint64_t epoch;
    uint8_t **address;        /* by world rank */
    uint32_t *address_len;
    uint32_t n;
};
struct msg_comm_ready {
    uint64_t epoch;
};
/* Engine to worker: leave the epoch: abort the communicator, make a new one for `epoch`, answer with WORKER_READY. */
struct msg_reset {
    uint64_t epoch;
};
/* Worker to engine: a step or an epoch failed; the worker waits for RESET (or exits when fatal). */
struct msg_worker_error {
    uint64_t epoch, step_id;
    uint32_t err;
    char *text;
    bool fatal;
};
struct msg_shutdown {
    uint32_t grace_ms;
};

/* A step: the same bytes to every worker of the replica. Parallel arrays over its runs, packed on the wire. */
enum run_want {
    RUN_WANT_NOTHING = 0,
    RUN_WANT_SAMPLE = 1,      /* a token after the last position of the run */
    RUN_WANT_LOGPROBS = 2,    /* with SAMPLE: of the sampled token and the top n_logprobs */
    RUN_WANT_PROMPT_LOGPROBS = 4, /* of every input token of this run given what precedes it (position 0 has none), and the top n */
    RUN_WANT_TARGETS = 8,     /* log-probabilities of the slot's target ids after the last position of the run */
    RUN_WANT_POOLED = 16,     /* the slot's pooled hidden state after this run */
    RUN_WANT_ALL = 31,
};
enum { STEP_TOKEN_SAMPLED = 0xffffffffu }; /* input token: "what this slot sampled last" */

/* Set up once per (slot, generation), in the step of its first run. */
struct slot_setup {
    uint32_t slot, gen;
    uint64_t seed;
    uint32_t choice;
    float temperature, top_p, min_p;
    uint32_t top_k;           /* 0: off */
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t min_tokens;      /* the ids of `stop` are not sampled before so many */
    uint32_t n_logprobs;
    uint32_t n_output;        /* of history: how many at the end are output (a rebuilt sequence) */
    uint32_t *history;        /* tokens that no run of this generation will bring (prefix cache); penalties count them */
    uint32_t n_history;
    uint32_t prompt_len;      /* tokens from here on are output, also when they come in as input (a rebuilt sequence) */
    uint32_t *stop;           /* ids */
    uint32_t n_stop;
    uint32_t *bias_id;
    float *bias;
    uint32_t n_bias;
    float typical_p, top_n_sigma; /* 0: off */
    float xtc_probability, xtc_threshold;
    float dynatemp_range, dynatemp_exponent;
    float dry_multiplier, dry_base; /* multiplier 0: off */
    uint32_t dry_allowed_length, dry_last_n; /* last_n 0: the whole sequence */
    uint32_t penalty_last_n;  /* the penalties look at so many tokens; 0: at all */
    uint32_t mirostat;        /* 0: off, 1, 2 */
    float mirostat_tau, mirostat_eta;
    float mirostat_mu;        /* 2 tau, or what the last result of the sequence said */
    uint32_t *allowed;        /* none: all */
    uint32_t n_allowed;
    uint32_t *bad_id, *bad_len; /* sequences that must not become output; their lengths add up to n_bad_ids */
    uint32_t n_bad_ids, n_bad;
    uint32_t *dry_id, *dry_len; /* sequences that no repetition reaches across; likewise */
    uint32_t n_dry_ids, n_dry;
    uint32_t pooling;         /* enum pooling (model/hparams.h) of the hidden states after the final norm; RANK: the classifier's outputs come first, then zeros */
    uint32_t *target;         /* ids whose log-probabilities a run may want */
    uint32_t n_targets;
};
struct step {
    uint64_t epoch, step_id;
    uint32_t n_runs;
    uint32_t *slot, *gen;     /* [n_runs] */
    uint32_t *start;          /* position of the first token */
    uint32_t *n_tokens;       /* of the run; >= 1 */
    uint32_t *want;           /* enum run_want bits */
    uint32_t *n_blocks;       /* newly given block ids, appended to the slot's table */
    uint32_t n_all_tokens, n_all_blocks;
    uint32_t *tokens;         /* concatenated; STEP_TOKEN_SAMPLED allowed */
    uint32_t *blocks;         /* concatenated */
    struct slot_setup *setups;
    uint32_t n_setups;
    uint32_t *freed;          /* slots whose sequences ended: forget them before this step's runs */
    uint32_t n_freed;
};
/* Rank 0 of the last stage to the engine. Arrays over the runs that wanted something, in the step's order. */
struct step_result {
    uint64_t epoch, step_id;
    uint32_t n_runs;
    uint32_t *slot, *gen;
    uint32_t *token;          /* sampled; STEP_TOKEN_SAMPLED where none was wanted */
    uint32_t *n_positions;    /* rows of log-probabilities: the run's tokens (prompt), 1 (sample), the slot's targets, one after the other */
    uint32_t n_all_positions;
    float *logprob;           /* [n_all_positions] of the token there; NaN where none */
    uint32_t *n_top;          /* [n_all_positions] */
    uint32_t n_all_top;
    uint32_t *top_id;         /* [n_all_top], descending */
    float *top_logprob;
    uint32_t pooled_dim, n_all_pooled;
    float *pooled;            /* [runs that wanted it][pooled_dim] */
    uint32_t *mu_run;         /* [n_mu] runs of this result, rising ... */
    float *mu;                /* ... and mirostat's state after their samples */
    uint32_t n_mu;
    uint32_t compute_us, comm_us, sample_us;
};

/* Admin. A request names a verb; the answer is typed. */
enum admin_verb { ADMIN_STATUS, ADMIN_WORKERS, ADMIN_SHUTDOWN };
struct msg_admin_request {
    uint32_t verb;
    uint64_t id;
};
struct msg_worker_info {
    uint64_t worker_id;
    char *host, *device, *state, *backend;
    uint32_t pid, replica, stage, tp_rank, layer_first, layer_end;
    uint64_t weights_bytes, weights_bytes_planned, kv_bytes;
    uint32_t kv_blocks, load_ms, restarts;
    uint64_t steps;
    uint32_t heartbeat_age_ms;
    char *deployment;         /* its name */
    char *device_kind, *device_model, *device_uuid; /* from here on: of its device, as in msg_device */
    uint64_t device_memory_bytes, memory_free_bytes;
    uint32_t temperature_c, power_mw, utilization_percent, throttle;
    bool device_lost;
};
struct msg_replica_info {
    uint32_t replica;
    char *state;              /* "waiting for workers", "loading", "ready", "recovering" */
    uint64_t epoch;
    uint32_t running, waiting, kv_blocks, kv_blocks_used, load_percent;
    char *deployment;
};
struct msg_deployment_info {
    char *names;              /* "name,alias,..." */
    char *path, *state, *text;
    uint32_t tp, pp, replicas, ctx, workers, workers_ready;
};
struct msg_admin_reply {
    uint64_t id;
    uint32_t err;
    char *text;
    char *version, *model, *http_url;
    uint64_t uptime_ms;
    uint32_t tp, pp, ctx;
    struct msg_replica_info *replicas;
    uint32_t n_replicas;
    struct msg_worker_info *workers;
    uint32_t n_workers;
    struct msg_hello *nodes;  /* agents with their devices */
    uint32_t n_nodes;
    struct msg_deployment_info *deployments; /* model, tp, pp and ctx above are those of the first */
    uint32_t n_deployments;
};

struct msg {
    enum msg_type type;
    union {
        struct msg_hello hello;
        struct msg_welcome welcome;
        struct msg_refuse refuse;
        struct msg_start_worker start_worker;
        struct msg_stop_worker stop_worker;
        struct msg_worker_exited worker_exited;
        struct msg_heartbeat heartbeat;
        struct msg_load_progress load_progress;
        struct msg_worker_ready worker_ready;
        struct msg_comm_peers comm_peers;
        struct msg_comm_ready comm_ready;
        struct msg_reset reset;
        struct msg_worker_error worker_error;
        struct msg_shutdown shutdown;
        struct step step;
        struct step_result step_result;
        struct msg_admin_request admin_request;
        struct msg_admin_reply admin_reply;
    };
};

#endif
