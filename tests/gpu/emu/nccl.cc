/* libnccl.so.2, emulated: the calls that racklm makes, between processes and between threads of one, as the documentation of NCCL 2.28 has them
 * (https://docs.nvidia.com/deeplearning/nccl/user-guide) and, where that is silent, as NCCL's source does. comm_nccl finds it by dlopen as it would find the
 * real one; it finds the emulated runtime in the program that loads it.
 *
 * A unique id names shared memory (a memfd of the process that made the id, opened through /proc, so that nothing is left behind): a board where ranks
 * join, and a ring of bytes for each ordered pair. An operation sits in its stream (emu::enqueue_operation) and moves bytes whenever it is asked, until its
 * part is done. Each message begins with a header; where two ranks do not agree about what they do, that is said on standard error and
 * neither ever finishes, as with the real one, which says nothing.
 *
 * What it holds a caller to:
 *  - a non-blocking communicator answers with ncclInProgress; nothing is in the stream until ncclCommGetAsyncError was asked; any other call before it said ncclSuccess
 *    is ncclInvalidArgument (ncclCommEnsureReady of the source);
 *  - buffers are memory of the communicator's device, and operations on one communicator come one at a time, in the same order on all ranks;
 *  - two ranks on one GPU are refused unless NCCL_HOSTID tells them apart;
 *  - the order of a sum depends on where an element lies, as in a ring, and is the same on all ranks: no more is promised;
 *  - a peer that is gone is not noticed; ncclCommAbort waits until no graph holds an operation of the communicator.
 *
 * Injected, by environment, read when it matters (so also between fork and use):
 *  RACKLM_EMU_NCCL_VERSION=21703  what ncclGetVersion says
 *  RACKLM_EMU_NCCL_INIT=hang      communicators of this process never come into being
 *  RACKLM_EMU_NCCL_DELAY_US=n     each operation of this process starts so late
 *  RACKLM_EMU_NCCL_FAIL=n         the n-th operation of this process (from 1) never ends, and ncclCommGetAsyncError says ncclRemoteError from then on
 *  RACKLM_EMU_NCCL_DIE=n          the process kills itself in the middle of its n-th operation
 *  RACKLM_EMU_NCCL_ABORT=hang     ncclCommAbort never returns */
#include "tests/gpu/emu/emu.h"

#include <nccl.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace
{

constexpr unsigned RANKS = 16;
constexpr size_t RING = 1 << 18;

struct ring {
    alignas(64) std::atomic<uint64_t> written;
    alignas(64) std::atomic<uint64_t> read;
    uint8_t bytes[RING];
};
struct board {
    std::atomic<uint32_t> n_ranks; /* what the first one said */
    std::atomic<uint32_t> joined;  /* a bit a rank */
    struct {
        char host[64], bus_id[32];
    } where[RANKS];
    ring rings[RANKS][RANKS]; /* [from][to] */
};

struct unique_id {
    char magic[8];
    int64_t pid;
    int32_t fd;
    uint64_t nonce;
};
const char MAGIC[8] = "rknccl1";
static_assert(sizeof(unique_id) <= NCCL_UNIQUE_ID_BYTES);

enum class kind : uint32_t { all_reduce, all_gather, broadcast, pair };
const char *const kind_names[] = {"ncclAllReduce", "ncclAllGather", "ncclBroadcast", "ncclSend or ncclRecv"};

struct header {
    kind what;
    uint32_t type, root;
    uint32_t number; /* of the communicator's operations at the sender: for people */
    uint64_t count;
};

struct call {
    kind what;
    const void *in;
    void *out;
    size_t count;
    ncclDataType_t type;
    int peer; /* root; peer of a pair */
    bool is_send;
    cudaStream_t stream;
};

thread_local char last_error[512];

ncclResult_t refuse(ncclResult_t r, const char *format, ...) __attribute__((format(printf, 2, 3)));
ncclResult_t refuse(ncclResult_t r, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(last_error, sizeof(last_error), format, ap);
    va_end(ap);
    fprintf(stderr, "emulated NCCL: %s\n", last_error);
    return r;
}

bool is_hang(const char *name)
{
    const char *v = getenv(name);
    return v && strcmp(v, "hang") == 0;
}
long number_of(const char *name)
{
    const char *v = getenv(name);
    return v ? atol(v) : 0;
}

size_t size_of(ncclDataType_t t)
{
    switch (t) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    default:
        return 0;
    }
}

/* ---- unique ids */

std::mutex ids_mutex;
std::map<uint64_t, int> ids; /* descriptors of ids that this process made and nobody has used up */

board *map_board(const ncclUniqueId &id, unique_id *u)
{
    char path[64];
    memcpy(u, id.internal, sizeof(*u));
    if (memcmp(u->magic, MAGIC, sizeof(MAGIC)) != 0)
        return nullptr;
    snprintf(path, sizeof(path), "/proc/%lld/fd/%d", (long long)u->pid, u->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return nullptr;
    void *p = mmap(nullptr, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return p == MAP_FAILED ? nullptr : static_cast<board *>(p);
}

void use_up(uint64_t nonce)
{
    std::lock_guard<std::mutex> l(ids_mutex);
    auto it = ids.find(nonce);
    if (it == ids.end())
        return;
    close(it->second);
    ids.erase(it);
}

/* ---- communicators */

struct state {
    std::mutex mutex;
    board *b = nullptr;
    uint64_t nonce = 0;
    unsigned rank = 0, n = 0;
    int device = 0;
    bool blocking = true, up = false;
    bool aborted = false, stuck = false;
    ncclResult_t error = ncclSuccess;
    unsigned polls = 0;          /* ncclCommGetAsyncError has to be asked so often before what is under way is done */
    std::vector<call> deferred;  /* of a non-blocking group */
    const void *running = nullptr; /* the operation that has begun */
    uint32_t n_operations = 0;
    std::shared_ptr<int> captured = std::make_shared<int>(0); /* held by every operation in a graph */

    ~state()
    {
        if (b)
            munmap(b, sizeof(*b));
    }
};

std::atomic<long> process_operations;

/* One side of one message. */
struct message {
    header h;
    uint8_t *data; /* read when it is sent */
    size_t bytes;
    size_t done = 0; /* header included */
};

struct reduction {
    const call *c;
    std::vector<std::vector<float>> parts; /* by rank; this rank's is empty */
};

/* A group of calls on one communicator in one stream, once begun. */
struct run {
    std::vector<std::deque<message>> out, in; /* by peer */
    std::deque<reduction> reductions;
    std::chrono::steady_clock::time_point not_before;
    bool dies = false, never_ends = false;
    size_t bytes = 0, moved = 0;
};

size_t put(ring &r, const void *data, size_t n)
{
    uint64_t w = r.written.load(std::memory_order_relaxed), at = w % RING;
    n = std::min(n, RING - static_cast<size_t>(w - r.read.load(std::memory_order_acquire)));
    n = std::min(n, RING - static_cast<size_t>(at));
    memcpy(r.bytes + at, data, n);
    r.written.store(w + n, std::memory_order_release);
    return n;
}

size_t get(ring &r, void *data, size_t n)
{
    uint64_t rd = r.read.load(std::memory_order_relaxed), at = rd % RING;
    n = std::min(n, static_cast<size_t>(r.written.load(std::memory_order_acquire) - rd));
    n = std::min(n, RING - static_cast<size_t>(at));
    memcpy(data, r.bytes + at, n);
    r.read.store(rd + n, std::memory_order_release);
    return n;
}

void say_mismatch(state &s, unsigned peer, const header &mine, const header &theirs)
{
    fprintf(stderr,
            "emulated NCCL: rank %u in its operation %u waits for %s of %llu elements of type %u (root %u), rank %u in its operation %u does %s of %llu of type %u "
            "(root %u): neither will end\n",
            s.rank, mine.number, kind_names[(int)mine.what], (unsigned long long)mine.count, mine.type, mine.root, peer, theirs.number,
            (unsigned)theirs.what < 4 ? kind_names[(int)theirs.what] : "nonsense", (unsigned long long)theirs.count, theirs.type, theirs.root);
}

std::shared_ptr<run> begin(state &s, const std::vector<call> &calls)
{
    auto r = std::make_shared<run>();
    long op = ++process_operations;
    s.n_operations++;
    r->out.resize(s.n);
    r->in.resize(s.n);
    r->not_before = std::chrono::steady_clock::now() + std::chrono::microseconds(number_of("RACKLM_EMU_NCCL_DELAY_US"));
    r->dies = number_of("RACKLM_EMU_NCCL_DIE") == op;
    if (number_of("RACKLM_EMU_NCCL_FAIL") == op) {
        s.error = ncclRemoteError;
        r->never_ends = true;
    }
    for (const call &c : calls) {
        size_t bytes = c.count * size_of(c.type);
        header h = {c.what, c.type, c.what == kind::broadcast ? (uint32_t)c.peer : 0, s.n_operations, c.count};
        auto send = [&](unsigned peer) { r->out[peer].push_back({h, (uint8_t *)const_cast<void *>(c.in), bytes}); };
        auto recv = [&](unsigned peer, void *to) { r->in[peer].push_back({h, (uint8_t *)to, bytes}); };
        switch (c.what) {
        case kind::all_reduce:
            r->reductions.push_back({&c, std::vector<std::vector<float>>(s.n)});
            for (unsigned p = 0; p < s.n; p++)
                if (p != s.rank) {
                    auto &part = r->reductions.back().parts[p];
                    part.resize(c.count);
                    send(p);
                    recv(p, part.data());
                }
            break;
        case kind::all_gather:
            for (unsigned p = 0; p < s.n; p++)
                if (p != s.rank) {
                    send(p);
                    recv(p, (uint8_t *)c.out + p * bytes);
                }
            if ((uint8_t *)c.out + s.rank * bytes != c.in)
                memcpy((uint8_t *)c.out + s.rank * bytes, c.in, bytes);
            break;
        case kind::broadcast:
            for (unsigned p = 0; p < s.n && (unsigned)c.peer == s.rank; p++)
                if (p != s.rank)
                    send(p);
            if ((unsigned)c.peer != s.rank)
                recv((unsigned)c.peer, c.out);
            else if (c.out != c.in)
                memcpy(c.out, c.in, bytes);
            break;
        case kind::pair:
            if (c.is_send)
                send((unsigned)c.peer);
            else
                recv((unsigned)c.peer, c.out);
        }
    }
    for (auto &q : r->out)
        for (auto &m : q)
            r->bytes += sizeof(header) + m.bytes;
    for (auto &q : r->in)
        for (auto &m : q)
            r->bytes += sizeof(header) + m.bytes;
    return r;
}

void finish(state &s, run &r)
{
    for (reduction &d : r.reductions) {
        const float *own = (const float *)d.c->in;
        float *out = (float *)d.c->out;
        for (size_t i = 0; i < d.c->count; i++) {
            unsigned first = (unsigned)(i / 128) % s.n;
            float sum = 0.0f;
            for (unsigned k = 0; k < s.n; k++) {
                unsigned p = (first + k) % s.n;
                float v = p == s.rank ? own[i] : d.parts[p][i];
                sum = k == 0 ? v : sum + v;
            }
            out[i] = sum;
        }
    }
}

/* Moves of a message what the ring has room or bytes for; true at its end. move(m, left): how much went. */
template <typename F> bool pump(run &r, message &m, F move)
{
    size_t total = sizeof(header) + m.bytes, n;
    do {
        n = move(m, total - m.done);
        m.done += n;
        r.moved += n;
        if (r.dies && r.moved * 4 >= r.bytes)
            raise(SIGKILL);
    } while (n > 0 && m.done < total);
    return m.done == total;
}

/* Headers are read whole. False: it is not there yet, or (stuck) it is another one's. */
bool take_header(state &s, run &r, unsigned peer, message &m)
{
    ring &g = s.b->rings[peer][s.rank];
    header theirs;
    if (g.written.load(std::memory_order_acquire) - g.read.load(std::memory_order_relaxed) < sizeof(header))
        return false;
    for (size_t at = 0; at < sizeof(header);)
        at += get(g, (uint8_t *)&theirs + at, sizeof(header) - at);
    if (theirs.what != m.h.what || theirs.count != m.h.count || theirs.type != m.h.type || theirs.root != m.h.root) {
        say_mismatch(s, peer, m.h, theirs);
        s.stuck = true;
        return false;
    }
    m.done = sizeof(header);
    r.moved += sizeof(header);
    return true;
}

/* Moves what can be moved; true at the end. */
bool progress(state &s, run &r)
{
    if (r.never_ends || s.stuck || std::chrono::steady_clock::now() < r.not_before)
        return false;
    bool rest = false;
    for (unsigned p = 0; p < s.n; p++) {
        ring &to = s.b->rings[s.rank][p], &from = s.b->rings[p][s.rank];
        auto send = [&](message &m, size_t left) {
            return m.done < sizeof(header) ? put(to, (uint8_t *)&m.h + m.done, sizeof(header) - m.done) : put(to, m.data + m.done - sizeof(header), left);
        };
        auto receive = [&](message &m, size_t left) { return get(from, m.data + m.done - sizeof(header), left); };
        while (!r.out[p].empty() && pump(r, r.out[p].front(), send))
            r.out[p].pop_front();
        for (auto &q = r.in[p]; !q.empty(); q.pop_front())
            if ((q.front().done == 0 && !take_header(s, r, p, q.front())) || !pump(r, q.front(), receive))
                break;
        if (s.stuck)
            return false;
        rest = rest || !r.out[p].empty() || !r.in[p].empty();
    }
    return !rest;
}

/* What sits in a stream or a graph. Copies start anew. */
struct operation {
    std::shared_ptr<state> s;
    std::shared_ptr<const std::vector<call>> calls;
    std::shared_ptr<int> captured;
    std::shared_ptr<run> r;

    bool operator()()
    {
        std::lock_guard<std::mutex> l(s->mutex);
        if (s->aborted) {
            if (r && s->running == r.get())
                s->running = nullptr;
            return true;
        }
        if (!r) {
            if (s->running)
                return false;
            r = begin(*s, *calls);
            s->running = r.get();
        }
        if (!progress(*s, *r))
            return false;
        finish(*s, *r);
        s->running = nullptr;
        return true;
    }
};

/* Calls of one communicator. */
ncclResult_t launch(const std::shared_ptr<state> &s, const std::vector<call> &calls)
{
    cudaStream_t stream = calls[0].stream;
    if (std::any_of(calls.begin(), calls.end(), [&](const call &c) { return c.stream != stream; }))
        return refuse(ncclInvalidUsage, "the emulator has groups in one stream only");
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capturing) != cudaSuccess)
        return refuse(ncclUnhandledCudaError, "cudaStreamIsCapturing failed");
    operation op = {s, std::make_shared<const std::vector<call>>(calls), capturing == cudaStreamCaptureStatusActive ? s->captured : nullptr, nullptr};
    cudaError_t e = emu::enqueue_operation(stream, op);
    return e == cudaSuccess ? ncclSuccess : refuse(ncclUnhandledCudaError, "the stream says %s", cudaGetErrorName(e));
}

ncclResult_t check_buffer(const state &s, const char *name, const void *p, size_t bytes)
{
    cudaPointerAttributes a;
    if (bytes == 0)
        return ncclSuccess;
    if (!p || cudaPointerGetAttributes(&a, p) != cudaSuccess || a.type != cudaMemoryTypeDevice || a.device != s.device ||
        !emu::device_accessible((const char *)p + bytes - 1))
        return refuse(ncclInvalidArgument, "%s of rank %u is not %zu bytes of memory of its device %d", name, s.rank, bytes, s.device);
    return ncclSuccess;
}

} // namespace

struct ncclComm {
    std::shared_ptr<state> s;
};

namespace
{

struct grouped {
    ncclComm *comm;
    call c;
};
thread_local int group_depth;
thread_local std::vector<grouped> group;
thread_local ncclResult_t group_error;

/* Ends a group: everything goes, or is put off until it is asked for. */
ncclResult_t submit(std::vector<grouped> calls)
{
    ncclResult_t result = ncclSuccess;
    std::vector<ncclComm *> comms;
    for (auto &g : calls) {
        if (std::find(comms.begin(), comms.end(), g.comm) == comms.end())
            comms.push_back(g.comm);
    }
    for (ncclComm *c : comms)
        if (c->s->blocking != comms[0]->s->blocking)
            return refuse(ncclInvalidArgument, "blocking and non-blocking communicators in one group");
    for (ncclComm *c : comms) {
        std::vector<call> of;
        for (auto &g : calls)
            if (g.comm == c)
                of.push_back(g.c);
        if (c->s->blocking) {
            ncclResult_t r = launch(c->s, of);
            result = result == ncclSuccess ? r : result;
            continue;
        }
        std::lock_guard<std::mutex> l(c->s->mutex);
        c->s->deferred = of;
        c->s->polls = 2;
        result = ncclInProgress;
    }
    return result;
}

ncclResult_t add(ncclComm *comm, call c)
{
    if (!comm)
        return refuse(ncclInvalidArgument, "no communicator");
    state &s = *comm->s;
    {
        std::lock_guard<std::mutex> l(s.mutex);
        if (s.error != ncclSuccess)
            return s.error;
        if (!s.up || s.polls > 0)
            return refuse(ncclInvalidArgument, "communicator used before the previous call on it had come to ncclSuccess");
    }
    size_t bytes = c.count * size_of(c.type);
    ncclResult_t r = ncclSuccess;
    int device = -1;
    cudaGetDevice(&device);
    if (device != s.device)
        r = refuse(ncclInvalidUsage, "the calling thread's device is %d, the communicator's %d", device, s.device);
    else if (size_of(c.type) == 0)
        r = refuse(ncclInvalidArgument, "type %d", (int)c.type);
    else if (c.what == kind::all_reduce && c.type != ncclFloat32)
        r = refuse(ncclInvalidArgument, "the emulator sums float32 only");
    else if ((c.what == kind::broadcast || c.what == kind::pair) && (c.peer < 0 || c.peer >= (int)s.n))
        r = refuse(ncclInvalidArgument, "rank %d of %u", c.peer, s.n);
    else if (c.what == kind::pair && c.peer == (int)s.rank)
        r = refuse(ncclInvalidUsage, "the emulator has no messages to oneself");
    bool reads = c.what != kind::broadcast || c.peer == (int)s.rank;
    if (r == ncclSuccess && c.in && reads)
        r = check_buffer(s, "the send buffer", c.in, bytes);
    if (r == ncclSuccess && !(c.what == kind::pair && c.is_send))
        r = check_buffer(s, "the receive buffer", c.out, c.what == kind::all_gather ? bytes * s.n : bytes);
    if (group_depth > 0) {
        group_error = group_error == ncclSuccess ? r : group_error;
        if (r == ncclSuccess)
            group.push_back({comm, c});
        return r;
    }
    return r == ncclSuccess ? submit({{comm, c}}) : r;
}

/* Joins when everybody is there. */
void look_up(state &s)
{
    if (s.up || is_hang("RACKLM_EMU_NCCL_INIT"))
        return;
    if (s.b->joined.load(std::memory_order_acquire) != (1u << s.n) - 1)
        return;
    for (unsigned p = 0; p < s.n; p++)
        if (p != s.rank && memcmp(&s.b->where[p], &s.b->where[s.rank], sizeof(s.b->where[0])) == 0) {
            s.error = refuse(ncclInvalidUsage, "duplicate GPU: ranks %u and %u are both on %s", s.rank, p, s.b->where[p].bus_id);
            return;
        }
    s.up = true;
    use_up(s.nonce);
}

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *version)
{
    long v = number_of("RACKLM_EMU_NCCL_VERSION");
    *version = v ? (int)v : NCCL_VERSION(2, 28, 9);
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static std::atomic<uint64_t> count;
    unique_id u = {};
    int fd = memfd_create("racklm-emulated-nccl", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, sizeof(board)) != 0)
        return refuse(ncclSystemError, "memfd_create failed");
    memcpy(u.magic, MAGIC, sizeof(MAGIC));
    u.pid = getpid();
    u.fd = fd;
    u.nonce = (uint64_t)getpid() << 32 | ++count;
    std::lock_guard<std::mutex> l(ids_mutex);
    ids[u.nonce] = fd;
    memset(id, 0, sizeof(*id));
    memcpy(id->internal, &u, sizeof(u));
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const texts[] = {"no error",         "unhandled cuda error", "unhandled system error", "internal error", "invalid argument",
                                        "invalid usage",    "remote process exited or there was a network error",                "NCCL operation in progress"};
    return r >= 0 && r <= ncclInProgress ? texts[r] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t)
{
    return last_error;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    static const char *const host = [] { return getenv("NCCL_HOSTID"); }();
    *comm = nullptr;
    if (config && config->magic != 0xcafebeef)
        return refuse(ncclInvalidArgument, "ncclConfig_t was not made by NCCL_CONFIG_INITIALIZER");
    if (n < 1 || n > (int)RANKS || rank < 0 || rank >= n)
        return refuse(ncclInvalidArgument, "rank %d of %d (the emulator has up to %u)", rank, n, RANKS);
    if (group_depth > 0)
        return refuse(ncclInvalidUsage, "the emulator makes no communicators in groups");
    auto s = std::make_shared<state>();
    unique_id u;
    s->b = map_board(id, &u);
    if (!s->b)
        return refuse(ncclSystemError, "the process that made the unique id is gone");
    s->nonce = u.nonce;
    s->rank = (unsigned)rank;
    s->n = (unsigned)n;
    s->blocking = !config || config->blocking != 0;
    s->polls = 2;
    if (cudaGetDevice(&s->device) != cudaSuccess)
        return refuse(ncclUnhandledCudaError, "no device");
    uint32_t none = 0;
    if (!s->b->n_ranks.compare_exchange_strong(none, (uint32_t)n) && none != (uint32_t)n)
        return refuse(ncclInvalidArgument, "rank %d says there are %d ranks, another one said %u", rank, n, none);
    auto &where = s->b->where[rank];
    snprintf(where.host, sizeof(where.host), "%s", host ? host : "");
    cudaDeviceGetPCIBusId(where.bus_id, sizeof(where.bus_id), s->device);
    if (s->b->joined.fetch_or(1u << rank) & 1u << rank)
        return refuse(ncclInvalidUsage, "two ranks say they are rank %d", rank);
    *comm = new ncclComm{s};
    if (!s->blocking)
        return ncclInProgress;
    while (s->error == ncclSuccess && !s->up) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        look_up(*s);
    }
    s->polls = 0;
    return s->error;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out)
{
    if (!comm || !out)
        return refuse(ncclInvalidArgument, "no communicator");
    state &s = *comm->s;
    std::vector<call> go;
    {
        std::lock_guard<std::mutex> l(s.mutex);
        look_up(s);
        if (s.polls > 0 && s.up)
            s.polls--;
        if (s.polls == 0)
            go.swap(s.deferred);
    }
    ncclResult_t r = go.empty() ? ncclSuccess : launch(comm->s, go);
    std::lock_guard<std::mutex> l(s.mutex);
    if (r != ncclSuccess && s.error == ncclSuccess)
        s.error = r;
    *out = s.error != ncclSuccess ? s.error : s.polls > 0 || !s.up ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    if (!comm)
        return ncclSuccess;
    std::shared_ptr<state> s = comm->s;
    while (is_hang("RACKLM_EMU_NCCL_ABORT"))
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    {
        std::lock_guard<std::mutex> l(s->mutex);
        s->aborted = true;
        s->deferred.clear();
        use_up(s->nonce);
    }
    if (s->captured.use_count() > 1)
        fprintf(stderr, "emulated NCCL: a communicator ends while a graph holds operations of it: waits until the graph is destroyed\n");
    while (s->captured.use_count() > 1)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (group_depth == 0)
        return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth > 0)
        return ncclSuccess;
    std::vector<grouped> calls;
    calls.swap(group);
    ncclResult_t r = group_error;
    group_error = ncclSuccess;
    return r != ncclSuccess || calls.empty() ? r : submit(calls);
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    if (op != ncclSum)
        return refuse(ncclInvalidArgument, "the emulator has sums only");
    return add(comm, {kind::all_reduce, in, out, n, type, 0, false, stream});
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream)
{
    return add(comm, {kind::all_gather, in, out, n, type, 0, false, stream});
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream)
{
    return add(comm, {kind::broadcast, in, out, n, type, root, false, stream});
}

ncclResult_t ncclSend(const void *in, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    return add(comm, {kind::pair, in, nullptr, n, type, peer, true, stream});
}

ncclResult_t ncclRecv(void *out, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    return add(comm, {kind::pair, nullptr, out, n, type, peer, false, stream});
}

} // extern "C"
