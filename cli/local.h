/* A whole racklm on this machine for one command: coordinator and node agent as children, watched through the admin link.
 *
 * Options travel to the children as RACKLM_* variables of their environment, so that no secret stands in an argument list. Both children
 * hold a pipe of ours: when this process ends in whatever way, they end too, and the agent's workers with them. */
#ifndef CLI_LOCAL_H
#define CLI_LOCAL_H

#include "base/err.h"
#include "base/options.h"

#include <stdbool.h>
#include <sys/types.h>

struct local_model {
    char names[256], path[512]; /* cut where longer */
    uint32_t tp, pp, ctx;
};

struct local {
    pid_t coordinator, agent;
    int pipe_fd;             /* write end, never written */
    char url[160];
    char endpoint[256];      /* control socket */
    char log_path[512];      /* "" : the terminal */
    char runtime_dir[256], state_dir[256];
    struct local_model served[OPTIONS_MODELS_MAX]; /* once ready */
    uint32_t n_served;
    char gpu_note[400];      /* why GPUs that this host may have are not used, or "" */
    struct options *opts;
    char *const *models;     /* arguments of the coordinator */
    int n_models;
    unsigned agent_restarts;
    uint64_t agent_ends_ns[10]; /* the last ones: a ring */
    bool told;               /* a child that failed has said why on standard error: nothing is left to say */
};

/* Starts both and waits until a real step of every model has run, with a progress line. models: files, or [NAME=]FILE arguments of which there
 * may be several; none: what the options (racklm.yaml) say. quiet: logs go to a file in the state directory
 * even without a terminal, the port is any free one. On failure everything is stopped again. */
enum err local_start(struct options *opts, char *const *models, int n_models, bool quiet, struct local *out);
/* Without --api-key, takes the first key of --api-key-file for this process's own requests. */
enum err local_client_key(struct options *opts);
/* Until the coordinator ends or SIGINT/SIGTERM arrives (which drains). Restarts a lost agent. The exit code for main. */
int local_wait(struct local *l);
/* Drains (at most drain_timeout_ms), stops, waits for both. */
void local_stop(struct local *l);

#endif
