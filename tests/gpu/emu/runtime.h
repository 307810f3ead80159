/* Inside of the emulated runtime; no other part includes it. One mutex guards all of it; it is not held while an operation runs.
 *
 * runtime.cc         devices, their properties, errors, faults
 * runtime_memory.cc  allocations, copies, memory shared between processes
 * runtime_stream.cc  streams, events, who runs what when
 * runtime_graph.cc   capture, graphs
 *
 * All work is done by one thread of the runtime's own, one operation of the process at a time, when a host thread waits (cudaStreamSynchronize ...) or asks
 * (cudaEventQuery ...): results come as late as they can. Which stream is next is chosen at random among those whose next operation may start: independent
 * streams come in any order. A kernel that waits for memory stops, and operations of other streams have their turn. Where nobody waits or asks for a while
 * (emu_set_lag_ms) the thread goes on by itself, for other processes may need what it does. */
#ifndef TESTS_GPU_EMU_RUNTIME_H
#define TESTS_GPU_EMU_RUNTIME_H

#include "tests/gpu/emu/emu.h"
#include "tests/gpu/emu/emu_control.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

namespace emu {

using lock = std::unique_lock<std::mutex>;
using clock = std::chrono::steady_clock;
using stream_ref = std::shared_ptr<CUstream_st>;
using event_ref = std::shared_ptr<CUevent_st>;

struct device;
struct capture;

/* Work up to and with number `seq` of a stream. */
struct dependency {
    stream_ref stream;
    uint64_t seq;
};

/* more: it did something and has to be called again; later: it cannot go on yet. */
enum class progress { done, more, later };

/* One element of a stream's queue or node of a graph. attempt is copied for each replay of a graph, so what it remembers between calls starts anew. */
struct operation {
    const char *name;
    std::function<progress(device &)> attempt;
    std::vector<dependency> deps = {};
    event_ref record = {};
};

struct range { /* memory that the runtime knows */
    enum class kind { device, host, registered, imported } kind;
    char *base;
    size_t size;
    device *dev;
    char *map; /* the whole mapping, guards not included; NULL: the caller's memory */
    size_t map_bytes;
    int fd;        /* of the file that holds shared memory, as the process numbers it that shared it; else -1 */
    int owner;     /* imported: that process */
    unsigned refs; /* imported: how often it was opened */
    unsigned flags;
};

struct device {
    int ordinal;  /* as the process sees it */
    int physical; /* as the machine sees it: CUDA_VISIBLE_DEVICES picks */
    size_t memory, used = 0;
    cudaError_t sticky = cudaSuccess;
    stream_ref legacy; /* the default stream */
    std::vector<stream_ref> streams;
    std::set<int> peers;
    std::mt19937_64 random;
    stream_ref last;         /* whose operation ran last */
    unsigned stay = 0;       /* in 16: how likely it goes on with that one */
    clock::time_point touched; /* when a host thread last gave it work, waited or asked */
    unsigned patience = 1;     /* operations that run when somebody asks again */
    uint64_t n_kernels = 0, n_operations = 0;
    std::vector<emu_fault> faults;
    clock::time_point begun;
    bool in_use = false;
};

/* A host thread that waits for `done`, or asks whether it is so by now. */
struct waiter {
    device *dev;
    std::function<bool()> done;
    bool asks;
    std::condition_variable woken = {};
};

struct runtime {
    std::mutex mutex;
    std::condition_variable work;    /* for the thread that works: there may be some */
    std::condition_variable changed; /* busy */
    std::vector<waiter *> waiters;
    unsigned grants = 0;          /* operations that may run because somebody asks */
    bool busy = false;            /* an operation runs */
    bool stuck = false;           /* nothing that is wanted can go on now */
    std::mt19937_64 random;       /* whose turn it is among devices */
    std::vector<std::unique_ptr<device>> devices;
    cudaError_t no_driver = cudaSuccess; /* cudaErrorInsufficientDriver or cudaErrorNoDevice */
    int driver_version = 13000;
    std::map<uintptr_t, range> ranges; /* by base */
    std::map<CUstream_st *, stream_ref> streams;
    std::map<CUevent_st *, event_ref> events;
    std::unordered_set<CUgraph_st *> graphs;
    std::unordered_set<CUgraphExec_st *> execs;
    std::set<capture *> captures;
    uint64_t n_allocations = 0;
    std::vector<uint64_t> failing_allocations;
    unsigned slow_us = 0;
    int lag_ms = 5;
    bool worker_started = false;
    bool exposed = false; /* device memory can be touched (runtime_memory.cc) */
};

runtime &rt();
/* The device of the calling thread. */
device &current_device(runtime &r);
/* What every call begins with: the lock, whether there is a driver, whether the device is still alive; and ends with: the thread's last error. */
cudaError_t enter(runtime &r);
/* Faults that come after a time: the device's error by now. */
cudaError_t check_time(runtime &r, device &d);
cudaError_t note(cudaError_t e);
void hide_memory(runtime &r);
template <typename F> cudaError_t api(F f)
{
    runtime &r = rt();
    lock l(r.mutex);
    cudaError_t e = enter(r);
    if (e == cudaSuccess)
        e = f(r, l, current_device(r));
    hide_memory(r);
    return note(e);
}
/* A line on standard error about a call that was refused. Gives e. */
cudaError_t refuse(cudaError_t e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The shape of a launch, by the documentation. */
cudaError_t check_launch(const kernel_launch &k);

/* ---- runtime_memory.cc */
/* Before anything touches the memory of devices, and (hide_memory) when nothing does any more: a program that does it by itself is to fault. */
void expose_memory(runtime &r);
/* The allocation that was to fail is this one. */
bool allocation_fails(runtime &r);
/* The live range that holds p, or NULL. */
range *find_range(runtime &r, const void *p);
/* What lies around each allocation is as it was; else says where it was written, after what, and ends the process. */
void check_bounds(runtime &r, const device *d, const char *after);
void memory_reset(runtime &r, device &d);

/* ---- runtime_stream.cc */
/* The stream behind a handle (NULL and cudaStreamLegacy: the device's default stream), or NULL. */
stream_ref find_stream(runtime &r, device &d, cudaStream_t handle);
/* api() for a call that is about a stream: f gets that, too. */
template <typename F> cudaError_t stream_api(cudaStream_t handle, F f)
{
    return api([&](runtime &r, lock &l, device &d) {
        stream_ref s = find_stream(r, d, handle);
        return s == nullptr ? cudaErrorInvalidResourceHandle : f(r, l, d, s);
    });
}
/* Puts it into the stream, or into the graph that is being captured. seq: its number, for wait_for_seq; 0 when it was captured. */
cudaError_t enqueue(runtime &r, const stream_ref &s, operation op, uint64_t *seq = nullptr);
cudaError_t wait_for_seq(runtime &r, lock &l, const stream_ref &s, uint64_t seq);
/* Until everything of the device is done. */
cudaError_t wait_for_device(runtime &r, lock &l, device &d);
/* Tells those who wait, and the thread that works, that something has changed. */
void wake(runtime &r);
/* The device is lost: this error from now on. */
void fail_device(runtime &r, device &d, cudaError_t e);

/* ---- runtime_graph.cc */
/* A node for op at the stream's place in its graph. */
cudaError_t capture_operation(runtime &r, const stream_ref &s, operation op);
cudaError_t capture_record(runtime &r, const stream_ref &s, const event_ref &e);
cudaError_t capture_wait(runtime &r, const stream_ref &s, const event_ref &e);
/* A call that a capture forbids: the error, and that capture is worth nothing any more. */
cudaError_t capture_forbids(const std::shared_ptr<capture> &c, cudaError_t e = cudaErrorStreamCaptureUnsupported);
/* Calls that may wait for the device inside, which a capture of this thread (or, in global mode, of any thread) forbids; the default stream, which the
 * capture of a blocking stream forbids. */
cudaError_t capture_forbids_unsafe(runtime &r);
cudaError_t capture_forbids_legacy(runtime &r, device &d);
/* Waiting for a whole device that captures. */
cudaError_t capture_forbids_device(runtime &r, device &d);
void graphs_reset(runtime &r);

} // namespace emu

struct CUstream_st {
    emu::device *dev;
    unsigned flags;
    int priority;
    uint64_t id;
    std::deque<emu::operation> queue = {};
    uint64_t issued = 0, done = 0;
    bool destroyed = false, hung = false;
    emu::clock::time_point not_before = {};
    std::shared_ptr<emu::capture> cap = {};
    std::vector<CUgraphNode_st *> cap_deps = {};
};

struct CUevent_st {
    emu::device *dev;
    unsigned flags;
    emu::dependency last = {};      /* stream NULL: never recorded */
    uint64_t time_seq = 0;          /* the record that `time` is of */
    emu::clock::time_point time = {};
    std::shared_ptr<emu::capture> cap = {};
    std::vector<CUgraphNode_st *> cap_deps = {};
};

#endif
