/* one_shot.h. Peers in another process are reached by CUDA IPC, those in this one (tests) directly. */
#include "worker/comm/comm_impl.h"
#include "worker/comm/one_shot.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* The last resort where the host cannot set the word of abort: longer than any deadline of a step (options.def). */
#define SPIN_NS (3600 * NS_PER_S)
/* Beyond this many calls mailboxes are wiped between two epochs, so that the largest number is far away. */
enum { STEP_WIPE = 0x7fffffff };

struct one_shot_box {
    struct one_shot_box *next;
    int device;
    size_t bytes;
    void *mail;
    uint32_t *state;      /* device */
    uint32_t *host;       /* pinned: word of abort, status */
    uint32_t *host_mapped; /* the same for the device */
    uint32_t step;
};
enum { ABORT, STATUS };

/* What ranks tell each other. */
struct card {
    uint64_t process;
    cudaIpcMemHandle_t handle;
    uint64_t address;
    uint32_t wanted, device, floats, step;
};

static pthread_mutex_t free_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct one_shot_box *free_boxes;

static uint64_t process_token(void)
{
    static uint64_t token; /* guarded by free_mutex */
    pthread_mutex_lock(&free_mutex);
    while (token == 0)
        if (getrandom(&token, sizeof(token), 0) != sizeof(token))
            token = 0;
    pthread_mutex_unlock(&free_mutex);
    return token;
}

static void box_destroy(struct one_shot_box *b)
{
    cudaFree(b->mail);
    cudaFree(b->state);
    cudaFreeHost(b->host);
    free(b);
}

static struct one_shot_box *box_reuse(int device, size_t bytes)
{
    pthread_mutex_lock(&free_mutex);
    struct one_shot_box **at = &free_boxes;
    while (*at && ((*at)->device != device || (*at)->bytes != bytes))
        at = &(*at)->next;
    struct one_shot_box *b = *at;
    if (b)
        *at = b->next;
    pthread_mutex_unlock(&free_mutex);
    return b;
}

static struct one_shot_box *box_create(int device, size_t bytes)
{
    struct one_shot_box *b = calloc(1, sizeof(*b));
    if (!b)
        return NULL;
    b->device = device;
    b->bytes = bytes;
    b->step = 1;
    if (cudaMalloc(&b->mail, bytes) != cudaSuccess || cudaMemset(b->mail, 0, bytes) != cudaSuccess ||
        cudaMalloc((void **)&b->state, CUDA_PEERS_STATE_BYTES) != cudaSuccess ||
        cudaHostAlloc((void **)&b->host, 2 * sizeof(uint32_t), cudaHostAllocMapped) != cudaSuccess ||
        cudaHostGetDevicePointer((void **)&b->host_mapped, b->host, 0) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
        box_destroy(b);
        return NULL;
    }
    return b;
}

enum err one_shot_open(struct one_shot *o, size_t bytes, uint32_t rank, uint32_t n)
{
    int device = 0;
    *o = (struct one_shot){0};
    if (bytes < sizeof(float) || n > CUDA_PEERS_MAX)
        return ERR_OK;
    uint32_t floats = (uint32_t)MIN(bytes / sizeof(float), UINT32_MAX);
    size_t room = cuda_peers_mail_bytes(n, floats);
    cudaGetDevice(&device);
    struct one_shot_box *b = box_reuse(device, room);
    if (!b)
        b = box_create(device, room);
    if (!b)
        return err_set(ERR_NOMEM, "comm: %zu bytes of GPU memory for a mailbox: %s", room, cudaGetErrorName(cudaGetLastError()));
    b->host[ABORT] = b->host[STATUS] = 0;
    o->peers = (struct cuda_peers){.rank = rank, .n = n, .floats_max = floats, .state = b->state, .abort = &b->host_mapped[ABORT],
                                   .status = &b->host_mapped[STATUS], .spin_ns = SPIN_NS};
    o->peers.mail[rank] = b->mail;
    o->box = b;
    return ERR_OK;
}

static enum err gather(struct comm *inner, void *all, size_t each, uint32_t n)
{
    size_t off[CUDA_PEERS_MAX], len[CUDA_PEERS_MAX];
    for (uint32_t r = 0; r < n; r++) {
        off[r] = r * each;
        len[r] = each;
    }
    return comm_allgather(inner, all, off, len);
}

/* Reaches the mailbox of another rank; what CUDA says where that cannot be. */
static cudaError_t reach(struct one_shot *o, uint32_t r, const struct card *mine, const struct card *theirs)
{
    if (theirs->process != mine->process) {
        cudaError_t e = cudaIpcOpenMemHandle(&o->peers.mail[r], theirs->handle, cudaIpcMemLazyEnablePeerAccess);
        o->opened[r] = e == cudaSuccess;
        return e;
    }
    o->peers.mail[r] = (void *)(uintptr_t)theirs->address;
    if (theirs->device == mine->device)
        return cudaSuccess;
    cudaError_t e = cudaDeviceEnablePeerAccess((int)theirs->device, 0);
    return e == cudaErrorPeerAccessAlreadyEnabled ? cudaSuccess : e;
}

enum err one_shot_connect(struct one_shot *o, struct comm *inner)
{
    uint32_t n = inner->tp, me = inner->rank - inner->group_first, step = 0;
    struct card cards[CUDA_PEERS_MAX] = {0};
    uint8_t works[CUDA_PEERS_MAX] = {0};
    if (n > CUDA_PEERS_MAX)
        return ERR_OK;
    if (o->box) {
        cudaError_t e = cudaIpcGetMemHandle(&cards[me].handle, o->box->mail);
        cards[me].process = process_token();
        cards[me].address = (uintptr_t)o->box->mail;
        cards[me].wanted = 1;
        cards[me].device = (uint32_t)o->box->device;
        cards[me].floats = o->peers.floats_max;
        cards[me].step = o->box->step;
        if (e != cudaSuccess)
            LOG(DEBUG, COMM, "no IPC handle", "error=%s", cudaGetErrorName(e)); /* peers in this process need none */
    }
    TRY(gather(inner, cards, sizeof(cards[0]), n));
    for (uint32_t r = 0; r < n; r++) {
        if (!cards[r].wanted)
            return ERR_OK;
        o->peers.floats_max = MIN(o->peers.floats_max, cards[r].floats);
        step = MAX(step, cards[r].step);
    }
    works[me] = 1;
    for (uint32_t r = 0; r < n && works[me]; r++) {
        cudaError_t e = r == me ? cudaSuccess : reach(o, r, &cards[me], &cards[r]);
        works[me] = e == cudaSuccess;
        if (e != cudaSuccess)
            LOG(WARN, COMM, "the memory of a peer's GPU cannot be reached: NCCL does all all-reduces", "rank=%u peer=%u error=%s", me, r, cudaGetErrorName(e));
    }
    if (step > STEP_WIPE && works[me]) {
        works[me] = cudaMemset(o->box->mail, 0, o->box->bytes) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess;
        step = 1;
    }
    works[me] = works[me] && cuda_peers_reset(&o->peers, step + 2) == cudaSuccess;
    (void)cudaGetLastError(); /* what did not work is known; nobody shall find it later */
    TRY(gather(inner, works, 1, n));
    o->on = true;
    for (uint32_t r = 0; r < n; r++)
        o->on = o->on && works[r];
    return ERR_OK;
}

void one_shot_close(struct one_shot *o)
{
    struct one_shot_box *b = o->box;
    if (!b)
        return;
    bool sound = cudaDeviceSynchronize() == cudaSuccess;
    for (uint32_t r = 0; r < o->peers.n; r++)
        if (o->opened[r])
            cudaIpcCloseMemHandle(o->peers.mail[r]);
    if (o->on)
        sound = sound && cuda_peers_step(&o->peers, &b->step) == cudaSuccess;
    *o = (struct one_shot){0};
    if (!sound)
        return; /* the device is lost, and its memory with it */
    pthread_mutex_lock(&free_mutex);
    b->next = free_boxes;
    free_boxes = b;
    pthread_mutex_unlock(&free_mutex);
}

size_t one_shot_bytes(const struct one_shot *o)
{
    return o->on ? o->peers.floats_max * sizeof(float) : 0;
}

bool one_shot_serves(const struct one_shot *o, uint32_t n_tok, size_t dim, bool norm)
{
    return o->on && dim <= UINT32_MAX && cuda_all_reduce_fits(&o->peers, n_tok, (uint32_t)dim, norm);
}

cudaError_t one_shot_call(const struct one_shot *o, const struct cuda_all_reduce *call, uint32_t n_tok, uint32_t dim, cudaStream_t s)
{
    return cuda_all_reduce(&o->peers, call, 1, n_tok, dim, s);
}

enum err one_shot_status(const struct one_shot *o)
{
    uint32_t s = o->on ? __atomic_load_n(&o->box->host[STATUS], __ATOMIC_ACQUIRE) : CUDA_PEERS_OK;
    if (s == CUDA_PEERS_OK)
        return ERR_OK;
    return err_set(s == CUDA_PEERS_ABORTED ? ERR_ABORTED : ERR_TIMEOUT, "comm: an all-reduce of rank %u gave up: %s", o->peers.rank,
                   s == CUDA_PEERS_ABORTED ? "it was told to" : "a peer did not come");
}

void one_shot_abort(struct one_shot *o)
{
    if (o->box)
        __atomic_store_n(&o->box->host[ABORT], 1, __ATOMIC_RELEASE);
}
