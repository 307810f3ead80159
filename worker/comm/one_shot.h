/* The mailboxes of kernels/cuda/all_reduce.h between the ranks of a stage: who reaches whose memory, and since when. Private to worker/comm.
 *
 * A rank's mailbox outlives its communicator: it goes back to a list of the process and serves the next epoch, so that a peer that is late in leaving
 * the last one writes into memory that is still there. Numbers of calls go on from epoch to epoch.
 *
 * Threading: one thread, but one_shot_abort. */
#ifndef WORKER_COMM_ONE_SHOT_H
#define WORKER_COMM_ONE_SHOT_H

#include "kernels/cuda/all_reduce.h"
#include "worker/comm/comm.h"

struct one_shot_box;
struct one_shot {
    struct one_shot_box *box; /* NULL: off, and everything below unset */
    struct cuda_peers peers;
    bool on;                       /* every rank reaches every other */
    bool opened[CUDA_PEERS_MAX];   /* by IPC */
};

/* bytes = 0, or more ranks than the kernel has room for: stays off. The current device is the rank's. ERR_NOMEM, ERR_IO. */
enum err one_shot_open(struct one_shot *o, size_t bytes, uint32_t rank, uint32_t n);
/* All ranks of the stage together, over the connected inner comm; on only if it works for all. Errors are the inner comm's, and ERR_IO. */
enum err one_shot_connect(struct one_shot *o, struct comm *inner);
/* Waits for the device; the words of abort make that short where a call is stuck. */
void one_shot_close(struct one_shot *o);

size_t one_shot_bytes(const struct one_shot *o); /* of the largest message; 0: off */
bool one_shot_serves(const struct one_shot *o, uint32_t n_tok, size_t dim, bool norm);
cudaError_t one_shot_call(const struct one_shot *o, const struct cuda_all_reduce *call, uint32_t n_tok, uint32_t dim, cudaStream_t s);
/* ERR_OK, or why a call gave up. */
enum err one_shot_status(const struct one_shot *o);
/* Any thread. */
void one_shot_abort(struct one_shot *o);

#endif
