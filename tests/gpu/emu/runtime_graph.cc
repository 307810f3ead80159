/* Stream capture and graphs (programming guide, CUDA Graphs; Runtime API, Stream Management and Graph Management). A graph here is of one device and made by
 * capture only. Stricter than a GPU: pageable memory, allocations and launches of other graphs cannot be captured, and a captured stream waits for no event that was
 * never recorded. */
#include "tests/gpu/emu/runtime.h"

#include <algorithm>
#include <thread>

struct CUgraphNode_st {
    emu::operation op;
    std::vector<size_t> deps; /* indices of nodes before this one */
    size_t index;
    std::vector<size_t> next = {}; /* of an instantiated graph: those that have this one among their deps */
};

struct CUgraph_st {
    emu::device *dev;
    std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};

struct CUgraphExec_st {
    emu::device *dev;
    std::shared_ptr<const std::vector<CUgraphNode_st>> nodes;
    emu::dependency last = {}; /* its latest launch; the next one waits for it */
};

namespace emu {

struct capture {
    uint64_t id;
    enum cudaStreamCaptureMode mode;
    std::unique_ptr<CUgraph_st> graph;
    stream_ref origin;
    std::thread::id thread;
    std::vector<stream_ref> streams;
    bool invalid = false, ended = false;
};

namespace {

thread_local enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

void join(const std::shared_ptr<capture> &c, const stream_ref &s)
{
    s->cap = c;
    c->streams.push_back(s);
}

void end(runtime &r, const std::shared_ptr<capture> &c)
{
    c->ended = true;
    for (const stream_ref &s : c->streams) {
        s->cap = nullptr;
        s->cap_deps.clear();
    }
    c->streams.clear();
    c->origin = nullptr;
    r.captures.erase(c.get());
}

cudaError_t forbid(capture &c, cudaError_t e)
{
    c.invalid = true;
    return e;
}

void add_deps(std::vector<CUgraphNode_st *> &to, const std::vector<CUgraphNode_st *> &from)
{
    for (CUgraphNode_st *n : from)
        if (std::find(to.begin(), to.end(), n) == to.end())
            to.push_back(n);
}

/* Whether every node comes before the end of the stream that the capture began in. */
bool joined(const capture &c)
{
    std::vector<bool> seen(c.graph->nodes.size());
    std::vector<size_t> open; /* reached, their own dependencies not looked at */
    for (const CUgraphNode_st *n : c.origin->cap_deps)
        open.push_back(n->index);
    while (!open.empty()) {
        size_t i = open.back();
        open.pop_back();
        if (seen[i])
            continue;
        seen[i] = true;
        open.insert(open.end(), c.graph->nodes[i]->deps.begin(), c.graph->nodes[i]->deps.end());
    }
    return std::find(seen.begin(), seen.end(), false) == seen.end();
}

/* One launch of a graph. Nodes run one at a time, in any order that their dependencies leave. */
struct replay {
    std::shared_ptr<const std::vector<CUgraphNode_st>> nodes;
    std::vector<operation> ops; /* fresh copies: what an attempt remembers is of this launch */
    std::vector<size_t> missing; /* dependencies of each that have not run */
    std::vector<size_t> ready;
    size_t left;

    explicit replay(std::shared_ptr<const std::vector<CUgraphNode_st>> n) : nodes(std::move(n)), left(nodes->size())
    {
        for (const CUgraphNode_st &node : *nodes) {
            ops.push_back(node.op);
            missing.push_back(node.deps.size());
            if (node.deps.empty())
                ready.push_back(node.index);
        }
    }

    progress attempt(device &d)
    {
        if (left == 0)
            return progress::done;
        size_t first = d.random() % ready.size();
        for (size_t i = 0; i < ready.size(); i++) {
            size_t at = (first + i) % ready.size(), node = ready[at];
            progress p = ops[node].attempt(d);
            if (p == progress::later)
                continue;
            if (p == progress::done) {
                ready.erase(ready.begin() + (ptrdiff_t)at);
                left--;
                for (size_t n : (*nodes)[node].next)
                    if (--missing[n] == 0)
                        ready.push_back(n);
            }
            return left == 0 ? progress::done : progress::more;
        }
        return progress::later;
    }
};

} // namespace

cudaError_t capture_forbids(const std::shared_ptr<capture> &c, cudaError_t e)
{
    return forbid(*c, e);
}

cudaError_t capture_operation(runtime &, const stream_ref &s, operation op)
{
    capture &c = *s->cap;
    if (c.invalid)
        return cudaErrorStreamCaptureInvalidated;
    auto node = std::make_unique<CUgraphNode_st>(CUgraphNode_st{std::move(op), {}, c.graph->nodes.size()});
    for (const CUgraphNode_st *n : s->cap_deps)
        node->deps.push_back(n->index);
    s->cap_deps = {node.get()};
    c.graph->nodes.push_back(std::move(node));
    return cudaSuccess;
}

cudaError_t capture_record(runtime &, const stream_ref &s, const event_ref &e)
{
    if (s->cap->invalid)
        return cudaErrorStreamCaptureInvalidated;
    e->cap = s->cap;
    e->cap_deps = s->cap_deps;
    return cudaSuccess;
}

cudaError_t capture_wait(runtime &r, const stream_ref &s, const event_ref &e)
{
    if (e->cap == nullptr)
        return capture_forbids(s->cap, cudaErrorStreamCaptureIsolation);
    if (e->cap->ended)
        return s->cap != nullptr ? capture_forbids(s->cap, cudaErrorStreamCaptureIsolation) : cudaErrorCapturedEvent;
    if (e->cap->invalid)
        return cudaErrorStreamCaptureInvalidated;
    if (s == s->dev->legacy)
        return capture_forbids(e->cap, cudaErrorStreamCaptureImplicit);
    if (s->cap != nullptr && s->cap != e->cap) {
        capture_forbids(s->cap);
        return capture_forbids(e->cap, cudaErrorStreamCaptureMerge);
    }
    if (s->dev != e->cap->graph->dev)
        return capture_forbids(e->cap, refuse(cudaErrorNotSupported, "graphs over several devices are not emulated"));
    if (s->cap == nullptr)
        join(e->cap, s);
    add_deps(s->cap_deps, e->cap_deps);
    (void)r;
    return cudaSuccess;
}

/* cudaThreadExchangeStreamCaptureMode says which captures matter to a thread of which mode. */
cudaError_t capture_forbids_unsafe(runtime &r)
{
    cudaError_t e = cudaSuccess;
    if (thread_mode == cudaStreamCaptureModeRelaxed)
        return e;
    for (capture *c : r.captures) {
        bool own = c->thread == std::this_thread::get_id() && c->mode != cudaStreamCaptureModeRelaxed;
        bool others = c->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
        if (own || others)
            e = forbid(*c, cudaErrorStreamCaptureUnsupported);
    }
    return e;
}

cudaError_t capture_forbids_legacy(runtime &r, device &d)
{
    cudaError_t e = cudaSuccess;
    for (capture *c : r.captures)
        for (const stream_ref &s : c->streams)
            if (s->dev == &d && s->flags == cudaStreamDefault)
                e = forbid(*c, cudaErrorStreamCaptureImplicit);
    return e;
}

cudaError_t capture_forbids_device(runtime &r, device &d)
{
    cudaError_t e = cudaSuccess;
    for (capture *c : r.captures)
        if (c->graph->dev == &d)
            e = forbid(*c, cudaErrorStreamCaptureUnsupported);
    return e;
}

void graphs_reset(runtime &r)
{
    while (!r.captures.empty())
        end(r, (*r.captures.begin())->origin->cap);
    for (CUgraph_st *g : r.graphs)
        delete g;
    for (CUgraphExec_st *x : r.execs)
        delete x;
    r.graphs.clear();
    r.execs.clear();
}

} // namespace emu

using namespace emu;

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    if (mode == nullptr || *mode < cudaStreamCaptureModeGlobal || *mode > cudaStreamCaptureModeRelaxed)
        return note(cudaErrorInvalidValue);
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    return stream_api(stream, [&](runtime &r, lock &, device &d, const stream_ref &s) {
        static uint64_t ids = 0;
        if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
            return cudaErrorInvalidValue;
        if (s == d.legacy)
            return cudaErrorStreamCaptureUnsupported;
        if (s->cap != nullptr)
            return capture_forbids(s->cap, cudaErrorIllegalState);
        auto c = std::make_shared<capture>();
        c->id = ++ids;
        c->mode = mode;
        c->graph = std::make_unique<CUgraph_st>(CUgraph_st{s->dev, {}});
        c->origin = s;
        c->thread = std::this_thread::get_id();
        join(c, s);
        r.captures.insert(c.get());
        return cudaSuccess;
    });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
        if (graph == nullptr)
            return cudaErrorInvalidValue;
        *graph = nullptr;
        std::shared_ptr<capture> c = s->cap;
        if (c == nullptr)
            return cudaErrorIllegalState;
        if (c->origin != s)
            return capture_forbids(c, cudaErrorStreamCaptureUnmatched);
        if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
            return cudaErrorStreamCaptureWrongThread;
        cudaError_t e = c->invalid ? cudaErrorStreamCaptureInvalidated : joined(*c) ? cudaSuccess : cudaErrorStreamCaptureUnjoined;
        end(r, c);
        if (e == cudaSuccess) {
            *graph = c->graph.release();
            r.graphs.insert(*graph);
        }
        return e;
    });
}

static enum cudaStreamCaptureStatus status_of(const CUstream_st &s)
{
    return s.cap == nullptr   ? cudaStreamCaptureStatusNone
           : s.cap->invalid ? cudaStreamCaptureStatusInvalidated
                            : cudaStreamCaptureStatusActive;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    return stream_api(stream, [&](runtime &r, lock &, device &d, const stream_ref &s) {
        if (status == nullptr)
            return cudaErrorInvalidValue;
        if (s == d.legacy)
            for (capture *c : r.captures)
                for (const stream_ref &other : c->streams)
                    if (other->dev == &d && other->flags == cudaStreamDefault)
                        return cudaErrorStreamCaptureImplicit;
        *status = status_of(*s);
        return cudaSuccess;
    });
}

/* Status and id; the graph that is being made is not shown. */
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **deps, const cudaGraphEdgeData **edges, size_t *n_deps)
{
    if (graph != nullptr || deps != nullptr || edges != nullptr || n_deps != nullptr)
        return note(refuse(cudaErrorNotSupported, "cudaStreamGetCaptureInfo gives status and id only"));
    cudaError_t e = cudaStreamIsCapturing(stream, status);
    return e != cudaSuccess ? e : api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (id != nullptr && s != nullptr && s->cap != nullptr)
            *id = s->cap->id;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n)
{
    return api([&](runtime &r, lock &, device &) {
        if (n == nullptr || r.graphs.count(graph) == 0)
            return cudaErrorInvalidValue;
        size_t have = graph->nodes.size();
        if (nodes != nullptr)
            for (size_t i = 0; i < *n; i++)
                nodes[i] = i < have ? graph->nodes[i].get() : nullptr;
        *n = nodes == nullptr ? have : std::min(*n, have);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    return api([&](runtime &r, lock &, device &) {
        if (exec == nullptr || flags != 0 || r.graphs.count(graph) == 0)
            return cudaErrorInvalidValue;
        if (allocation_fails(r)) /* a graph takes memory of the device */
            return cudaErrorMemoryAllocation;
        auto nodes = std::make_shared<std::vector<CUgraphNode_st>>();
        for (const auto &n : graph->nodes) {
            nodes->push_back(*n);
            for (size_t before : n->deps)
                (*nodes)[before].next.push_back(n->index);
        }
        *exec = new CUgraphExec_st{graph->dev, std::move(nodes)};
        r.execs.insert(*exec);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    return cudaGraphInstantiate(exec, graph, flags);
}

static cudaError_t find_exec(runtime &r, device &d, cudaGraphExec_t exec, cudaStream_t stream, stream_ref *s)
{
    if (r.execs.count(exec) == 0)
        return cudaErrorInvalidValue;
    *s = find_stream(r, d, stream);
    if (*s == nullptr || (*s)->dev != exec->dev)
        return cudaErrorInvalidResourceHandle;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s;
        return find_exec(r, d, exec, stream, &s);
    });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s;
        if (cudaError_t e = find_exec(r, d, exec, stream, &s); e != cudaSuccess)
            return e;
        if (s->cap != nullptr)
            return capture_forbids(s->cap, refuse(cudaErrorNotSupported, "graphs in graphs are not emulated"));
        auto run = std::make_shared<replay>(exec->nodes);
        operation op = {"cudaGraphLaunch", [run](device &on) { return run->attempt(on); }};
        if (exec->last.stream != nullptr)
            op.deps.push_back(exec->last);
        uint64_t seq;
        cudaError_t e = enqueue(r, s, std::move(op), &seq);
        if (e == cudaSuccess)
            exec->last = {s, seq};
        return e;
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return api([&](runtime &r, lock &, device &) {
        if (r.execs.erase(exec) == 0)
            return cudaErrorInvalidValue;
        delete exec; /* what was launched goes on */
        return cudaSuccess;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return api([&](runtime &r, lock &, device &) {
        if (r.graphs.erase(graph) == 0)
            return cudaErrorInvalidValue;
        delete graph;
        return cudaSuccess;
    });
}
