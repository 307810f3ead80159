/* The communicator of GPU workers: a comm (comm.h) with operations on device memory beside those on host memory.
 *
 * What comm.h declares works on host memory and goes to an inner comm (comm_ucx; any other in tests): sampled ids, statistics, small things. What is
 * declared here puts work into a CUDA stream and returns; all of it may be captured in a graph. comm_nccl_wait is where a rank waits. Activations never pass
 * through host memory of ours.
 *
 * Ranks of a replica are of one GPU type; comm_connect refuses others (ERR_CONFIG). After any error the object is only good for comm_destroy, as everywhere
 * in comm.h. NCCL does not hear of a peer that died on the same host: such a wait ends by the deadline, or by comm_abort when the coordinator says so.
 *
 * comm_destroy ends what is still under way on the GPU (its results are rubbish then) and gives that 2 s: after that the process leaves with
 * WORKER_EXIT_GPU, since a kernel that does not listen ends with its process only. Graphs that hold operations of a comm are destroyed before it: NCCL
 * waits for them.
 *
 * Threading as in comm.h. The calling thread's current device is the config's after every function here. */
#ifndef WORKER_COMM_COMM_NCCL_H
#define WORKER_COMM_COMM_NCCL_H

#include "kernels/cuda/cuda.h"
#include "worker/comm/comm.h"

#include <cuda_runtime_api.h>

struct comm_nccl_config {
    struct comm_config comm; /* the inner comm_ucx's, too */
    int device;
    struct comm *inner;      /* taken, also when creating fails; connects without addresses (comm_local). NULL: a comm_ucx, if needed */
    /* All-reduces up to so many bytes go through our own kernel (kernels/cuda/all_reduce.h) instead of NCCL's, where all ranks of a stage can
     * reach each other's memory; the smallest value of the stage's ranks counts. 0, the default: never, until a GPU has shown it right. */
    size_t one_shot_bytes;
    /* All-reduces add in the order of ranks wherever a value lies in a message, as the one-shot form always does; NCCL's do not. Moves tp - 1 times as much. */
    bool deterministic;
};

/* Loads NCCL when there is more than one rank, and sets what it reads of the environment: so before other threads look there. ERR_UNSUPPORTED: it is missing
 * or too old. */
enum err comm_nccl_create(const struct comm_nccl_config *cfg, struct comm **out, struct comm_addr *own);

/* buf[n] = sum over the tensor-parallel group, in place; every rank gets the same bits. */
enum err comm_nccl_all_reduce(struct comm *c, float *buf, size_t n, cudaStream_t s);
/* x += sum over the group of part; out = rmsnorm(x) * w where w is given: cuda_add_norm (cuda.h) of what the ranks have, in one kernel where the
 * one-shot form serves. part [n][dim] is overwritten in any case; x must have the same bits on all ranks, and has them after. */
enum err comm_nccl_all_reduce_norm(struct comm *c, float *part, float *x, const float *w, float eps, uint32_t n, uint32_t dim,
                                   const struct cuda_act *out, cudaStream_t s);
/* comm_allgather on device memory. */
enum err comm_nccl_all_gather(struct comm *c, void *buf, const size_t *off, const size_t *len, cudaStream_t s);
/* Between neighbours of the pipeline, of any two ranks; in order per pair; the same bytes on both sides. One stream for all of a rank's, or an order between
 * its streams that is the same on both sides. A send may wait in its stream until the receiver takes it. */
enum err comm_nccl_send(struct comm *c, uint32_t to, const void *buf, size_t bytes, cudaStream_t s);
enum err comm_nccl_recv(struct comm *c, uint32_t from, void *buf, size_t bytes, cudaStream_t s);

/* Until `event` (NULL: all that is in s) is done. ERR_TIMEOUT, ERR_ABORTED, ERR_PEER_LOST (NCCL reports the network or a peer), ERR_DEVICE (the GPU
 * itself failed; only the end of the process repairs that). */
enum err comm_nccl_wait(struct comm *c, cudaStream_t s, cudaEvent_t event);

#endif
