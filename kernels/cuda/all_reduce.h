/* One-shot all-reduce of small messages between GPUs that reach each other's memory (NVLink or PCIe, CUDA IPC between processes), with what follows it in a
 * layer: residual and RMSNorm. Meant for decode, where a step has two all-reduces a layer and each is latency only; larger messages are NCCL's.
 *
 * Every rank has a mailbox that its peers write to. A float travels in 8 bytes with the number of the call beside it; a store of 8 bytes comes as a whole, so a
 * receiver that sees the number has the value, and no flag, fence or second trip is needed: one crossing of the link. The mailbox has two halves, for even
 * and odd numbers. A rank that makes call k + 2 has everybody's values of call k + 1, and who has sent those has read all of call k: nothing is overwritten
 * before it was read, and there is no second barrier. (NCCL calls the form of the words LL.)
 *
 * Values are added in the order of ranks, so that all ranks get the same bits, however many tokens run together.
 *
 * Nothing spins for ever: every wait looks at a word that the host may set, and at a deadline. A rank that gave up says why in its status, fills its results with
 * rubbish, neither sends nor waits from then on, and is only good for cuda_peers_reset on all ranks.
 *
 * All blocks of a call must be resident together: a call has at most CUDA_PEERS_BLOCKS_MAX of 128 threads. */
#ifndef KERNELS_CUDA_ALL_REDUCE_H
#define KERNELS_CUDA_ALL_REDUCE_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_PEERS_MAX = 8, CUDA_PEERS_BLOCKS_MAX = 128 };
enum cuda_peers_status { CUDA_PEERS_OK, CUDA_PEERS_ABORTED, CUDA_PEERS_TIMEOUT };

/* A rank among its peers. */
struct cuda_peers {
    uint32_t rank, n;           /* 2 .. CUDA_PEERS_MAX */
    uint32_t floats_max;        /* of a call, the same on all ranks */
    void *mail[CUDA_PEERS_MAX]; /* of each rank, as this one reaches it: cuda_peers_mail_bytes(), CUDA_ALIGN-aligned */
    uint32_t *state;            /* device memory of this rank alone, CUDA_PEERS_STATE_BYTES: number of the next call, blocks that have ended, status */
    const uint32_t *abort;      /* host memory that the device reaches; not 0: give up */
    uint32_t *status;           /* the same; enum cuda_peers_status, written when it is not OK; may be NULL */
    uint64_t spin_ns;           /* how long one call may wait */
};
enum { CUDA_PEERS_STATE_BYTES = 16 };

size_t cuda_peers_mail_bytes(uint32_t n, uint32_t floats_max);
/* Before the first call, and after a rank gave up: on every rank, while none of them is in a call, with one first_step (> 0) that is larger than any number
 * used with these mailboxes before; fresh mailboxes are zeroed by the caller. Each call takes one number. Waits for the copy. */
cudaError_t cuda_peers_reset(const struct cuda_peers *p, uint32_t first_step);
/* The number of the next call; while none is under way. */
cudaError_t cuda_peers_step(const struct cuda_peers *p, uint32_t *step);

/* What a rank brings to a call; n_tok and dim are the same on all ranks. */
struct cuda_all_reduce {
    float *part;    /* [n_tok][dim]; the sum where x is NULL, else left alone; 16-byte aligned, as are x and w */
    float *x;       /* [n_tok][dim] += sum; or NULL */
    const float *w; /* [dim]: out = rmsnorm(x, or the sum) * w; or NULL */
    float eps;
    struct cuda_act out;
};
/* Whether a call of that shape is one of those that cuda_all_reduce does: n_tok * dim within floats_max, blocks within their limit, dim a multiple of 8 (of 1 where
 * n_tok is 1 and there is no norm), at most 16384 with a norm. */
bool cuda_all_reduce_fits(const struct cuda_peers *p, uint32_t n_tok, uint32_t dim, bool norm);
/* here: 1; more only where several ranks share a device, whose calls are then one launch (peers[here], calls[here]). */
cudaError_t cuda_all_reduce(const struct cuda_peers *peers, const struct cuda_all_reduce *calls, uint32_t here, uint32_t n_tok, uint32_t dim,
                            cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
