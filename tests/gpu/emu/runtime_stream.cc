/* Streams and events of the emulated devices, and what runs when (runtime.h). */
#include "tests/gpu/emu/runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unistd.h>

namespace emu {

namespace {

constexpr auto RETRY = std::chrono::microseconds(100), PATIENCE = std::chrono::microseconds(500);

bool finished(const dependency &d)
{
    return d.stream == nullptr || d.stream->done >= d.seq;
}

bool may_start(const CUstream_st &s)
{
    return !s.queue.empty() && !s.hung && !s.running && std::all_of(s.queue.front().deps.begin(), s.queue.front().deps.end(), finished);
}

bool has_work(const device &d)
{
    return d.sticky == cudaSuccess && std::any_of(d.streams.begin(), d.streams.end(), [](const stream_ref &s) { return !s->queue.empty(); });
}

/* The next operation is of this stream; NULL: none may start now. */
stream_ref choose(device &d)
{
    std::vector<stream_ref> ready;
    auto now = clock::now();
    for (const stream_ref &s : d.streams)
        if (may_start(*s) && s->not_before <= now)
            ready.push_back(s);
    if (ready.empty())
        return nullptr;
    /* Some of the time one stream runs ahead of the others as far as it can: the order in which most mistakes show. */
    if (d.last != nullptr && d.random() % 16 < d.stay && std::find(ready.begin(), ready.end(), d.last) != ready.end())
        return d.last;
    d.stay = d.random() % 2 == 0 ? 0 : 15;
    return d.last = ready[d.random() % ready.size()];
}

void complete(device &d, const stream_ref &s)
{
    operation op = std::move(s->queue.front());
    s->queue.pop_front();
    s->done++;
    d.n_operations++;
    if (op.record != nullptr) {
        op.record->time = clock::now();
        op.record->time_seq = s->done;
    }
    if (s->destroyed && s->queue.empty())
        d.streams.erase(std::find(d.streams.begin(), d.streams.end(), s));
}

/* Runs one operation of the device, if one may start. */
bool step(runtime &r, lock &l, device &d)
{
    stream_ref s = d.sticky == cudaSuccess ? choose(d) : nullptr;
    if (s == nullptr)
        return false;
    bool outermost = !r.busy;
    r.busy = s->running = true;
    expose_memory(r);
    l.unlock();
    progress p = s->queue.front().attempt(d); /* stays where it is while others append */
    l.lock();
    s->running = false;
    r.busy = !outermost;
    if (d.sticky == cudaSuccess) {
        if (p == progress::done)
            complete(d, s);
        else if (p == progress::later)
            s->not_before = clock::now() + RETRY;
    }
    r.changed.notify_all();
    return p != progress::later;
}

/* A kernel waits for memory that another stream's work may write: that one's turn. On the thread that runs the kernel. */
bool run_another()
{
    runtime &r = rt();
    lock l(r.mutex);
    for (auto &d : r.devices)
        if (step(r, l, *d))
            return true;
    return false;
}

/* One operation of this device, else of another: it may wait for that one. */
bool step_any(runtime &r, lock &l, device &d)
{
    d.touched = clock::now();
    if (r.busy || r.lag_ms < 0)
        return false;
    if (step(r, l, d))
        return true;
    for (auto &other : r.devices)
        if (other.get() != &d && step(r, l, *other))
            return true;
    return false;
}

template <typename P> cudaError_t wait_until(runtime &r, lock &l, device &d, P done)
{
    while (check_time(r, d) == cudaSuccess && !done())
        if (!step_any(r, l, d) && d.sticky == cudaSuccess && !done())
            r.changed.wait_for(l, PATIENCE);
    return d.sticky;
}

/* The thread that goes on with work that no host thread asks for. */
void work_alone()
{
    runtime &r = rt();
    lock l(r.mutex);
    for (;;) {
        bool ran = false, waits = false;
        for (auto &d : r.devices)
            if (r.lag_ms != 0 && !r.busy && has_work(*d)) {
                waits = true;
                if (r.lag_ms < 0 || clock::now() - d->touched >= std::chrono::milliseconds(r.lag_ms))
                    ran |= step(r, l, *d);
            }
        hide_memory(r);
        if (ran)
            continue;
        if (waits)
            r.changed.wait_for(l, r.lag_ms < 0 ? RETRY : std::chrono::milliseconds(1));
        else
            r.changed.wait(l);
    }
}

/* A kernel, or the fault that was set for it. */
progress attempt_kernel(device &d, const kernel_launch &launch)
{
    runtime &r = rt();
    unsigned slow_us;
    {
        lock l(r.mutex);
        auto f = std::find_if(d.faults.begin(), d.faults.end(), [&](const emu_fault &i) { return i.at_kernel == d.n_kernels + 1; });
        if (f != d.faults.end()) {
            emu_fault found = *f;
            d.faults.erase(f);
            if (found.kind == EMU_FAULT_ERROR)
                fail_device(r, d, found.error);
            else
                d.last->hung = true;
            return progress::later;
        }
        d.n_kernels++;
        slow_us = r.slow_us;
    }
    if (slow_us > 0)
        usleep(slow_us);
    set_idle(run_another);
    fault f = run_kernel(launch);
    lock l(r.mutex);
    if (f == fault::none) {
        check_bounds(r, &d, launch.name);
        return progress::done;
    }
    fail_device(r, d, f == fault::out_of_bounds ? cudaErrorIllegalAddress : f == fault::timeout ? cudaErrorLaunchTimeout : cudaErrorLaunchFailure);
    return progress::later;
}

} // namespace

stream_ref find_stream(runtime &r, device &d, cudaStream_t handle)
{
    if (handle == nullptr || handle == cudaStreamLegacy)
        return d.legacy;
    auto i = r.streams.find(handle); /* cudaStreamPerThread is none of them */
    return i == r.streams.end() ? nullptr : i->second;
}

/* The default stream waits for the streams that are not cudaStreamNonBlocking, and they for it (programming guide, implicit synchronization). */
cudaError_t enqueue(runtime &r, const stream_ref &s, operation op, uint64_t *seq)
{
    if (seq != nullptr)
        *seq = 0;
    device &d = *s->dev;
    if (s->cap != nullptr)
        return capture_operation(r, s, std::move(op));
    if (s == d.legacy) {
        if (cudaError_t e = capture_forbids_legacy(r, d); e != cudaSuccess)
            return e;
        for (const stream_ref &other : d.streams)
            if (other != s && other->flags == cudaStreamDefault && other->done < other->issued)
                op.deps.push_back({other, other->issued});
    } else if (s->flags == cudaStreamDefault && d.legacy->done < d.legacy->issued) {
        op.deps.push_back({d.legacy, d.legacy->issued});
    }
    s->queue.push_back(std::move(op));
    s->issued++;
    if (seq != nullptr)
        *seq = s->issued;
    d.touched = clock::now();
    if (r.lag_ms != 0) {
        if (!r.worker_started)
            std::thread(work_alone).detach();
        r.worker_started = true;
    }
    r.changed.notify_all();
    return cudaSuccess;
}

cudaError_t wait_for_seq(runtime &r, lock &l, const stream_ref &s, uint64_t seq)
{
    return wait_until(r, l, *s->dev, [&] { return s->done >= seq; });
}

cudaError_t wait_for_device(runtime &r, lock &l, device &d)
{
    return wait_until(r, l, d, [&] { return !has_work(d); });
}

void wait_until_free(runtime &r, lock &l)
{
    r.changed.wait(l, [&] { return !r.busy; });
}

void fail_device(runtime &r, device &d, cudaError_t e)
{
    if (d.sticky == cudaSuccess)
        d.sticky = e;
    r.changed.notify_all();
}

cudaError_t enqueue_kernel(kernel_launch launch, cudaStream_t stream)
{
    api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr || s->dev != &d)
            return refuse(cudaErrorInvalidResourceHandle, "%s: the stream is none of the current device", launch.name);
        if (cudaError_t e = check_launch(launch); e != cudaSuccess)
            return e;
        const char *name = launch.name;
        auto k = std::make_shared<kernel_launch>(std::move(launch));
        return enqueue(r, s, {name, [k](device &on) { return attempt_kernel(on, *k); }});
    });
    return cudaGetLastError(); /* an earlier error that nobody fetched comes out here, as after <<<>>> */
}

cudaError_t enqueue_operation(cudaStream_t stream, std::function<bool()> attempt, const char *name)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr)
            return cudaErrorInvalidResourceHandle;
        return enqueue(r, s, {name, [attempt = std::move(attempt)](device &) mutable { return attempt() ? progress::done : progress::later; }});
    });
}

} // namespace emu

using namespace emu;

/* ---- streams */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    return api([&](runtime &r, lock &, device &d) {
        static uint64_t ids = 0;
        if (stream == nullptr || (flags & ~(unsigned)cudaStreamNonBlocking) != 0)
            return cudaErrorInvalidValue;
        priority = std::clamp(priority, -5, 0); /* kept, and without effect: no order is promised by it */
        auto s = std::make_shared<CUstream_st>(CUstream_st{&d, flags, priority, ++ids});
        d.streams.push_back(s);
        r.streams[s.get()] = s;
        *stream = s.get();
        return cudaSuccess;
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

/* Returns at once; what is in the stream still runs. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    return api([&](runtime &r, lock &, device &) {
        auto i = r.streams.find(stream);
        if (i == r.streams.end())
            return cudaErrorInvalidResourceHandle;
        stream_ref s = i->second;
        if (s->cap != nullptr)
            return capture_forbids(s->cap);
        r.streams.erase(i);
        s->destroyed = true;
        if (s->queue.empty())
            s->dev->streams.erase(std::find(s->dev->streams.begin(), s->dev->streams.end(), s));
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return api([&](runtime &r, lock &l, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr)
            return cudaErrorInvalidResourceHandle;
        if (s->cap != nullptr)
            return capture_forbids(s->cap);
        if (cudaError_t e = s == d.legacy ? capture_forbids_legacy(r, d) : cudaSuccess; e != cudaSuccess)
            return e;
        return wait_for_seq(r, l, s, s->issued);
    });
}

/* Every question lets one operation run. */
cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    return api([&](runtime &r, lock &l, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr)
            return cudaErrorInvalidResourceHandle;
        if (s->cap != nullptr)
            return capture_forbids(s->cap);
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
            return e;
        if (s->done < s->issued)
            step_any(r, l, *s->dev);
        return s->dev->sticky != cudaSuccess ? s->dev->sticky : s->done >= s->issued ? cudaSuccess : cudaErrorNotReady;
    });
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr || priority == nullptr)
            return s == nullptr ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue;
        *priority = s->priority;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr || flags == nullptr)
            return s == nullptr ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue;
        *flags = s->flags;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *ordinal)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr || ordinal == nullptr)
            return s == nullptr ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue;
        *ordinal = s->dev->ordinal;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        auto i = r.events.find(event);
        if (s == nullptr || i == r.events.end())
            return cudaErrorInvalidResourceHandle;
        if (flags != 0)
            return cudaErrorInvalidValue;
        if (s->cap != nullptr || i->second->cap != nullptr)
            return capture_wait(r, s, i->second);
        if (i->second->last.stream == nullptr || finished(i->second->last)) /* never recorded: nothing to wait for */
            return cudaSuccess;
        return enqueue(r, s, {"cudaStreamWaitEvent", [](device &) { return progress::done; }, {i->second->last}});
    });
}

/* On the thread that runs the device's work; it makes no CUDA calls, as the documentation demands. */
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *data)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        if (s == nullptr)
            return cudaErrorInvalidResourceHandle;
        if (fn == nullptr)
            return cudaErrorInvalidValue;
        return enqueue(r, s, {"cudaLaunchHostFunc", [=](device &) {
                                  fn(data);
                                  return progress::done;
                              }});
    });
}

cudaError_t cudaDeviceSynchronize(void)
{
    return api([](runtime &r, lock &l, device &d) {
        if (cudaError_t e = capture_forbids_device(r, d); e != cudaSuccess)
            return e;
        return wait_for_device(r, l, d);
    });
}

/* ---- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    return api([&](runtime &r, lock &, device &d) {
        if (event == nullptr || (flags & ~(unsigned)(cudaEventBlockingSync | cudaEventDisableTiming)) != 0)
            return cudaErrorInvalidValue;
        auto e = std::make_shared<CUevent_st>(CUevent_st{&d, flags});
        r.events[e.get()] = e;
        *event = e.get();
        return cudaSuccess;
    });
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    return api([&](runtime &r, lock &, device &) { return r.events.erase(event) != 0 ? cudaSuccess : cudaErrorInvalidResourceHandle; });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return api([&](runtime &r, lock &, device &d) {
        stream_ref s = find_stream(r, d, stream);
        auto i = r.events.find(event);
        if (s == nullptr || i == r.events.end() || i->second->dev != s->dev)
            return cudaErrorInvalidResourceHandle;
        event_ref ev = i->second;
        if (s->cap != nullptr)
            return capture_record(r, s, ev);
        cudaError_t e = enqueue(r, s, {"cudaEventRecord", [](device &) { return progress::done; }, {}, ev});
        if (e == cudaSuccess) {
            ev->cap = nullptr;
            ev->cap_deps.clear();
            ev->last = {s, s->issued};
        }
        return e;
    });
}

static cudaError_t find_event(runtime &r, cudaEvent_t event, event_ref *ev)
{
    auto i = r.events.find(event);
    if (i == r.events.end())
        return cudaErrorInvalidResourceHandle;
    *ev = i->second;
    return (*ev)->cap != nullptr ? capture_forbids((*ev)->cap, cudaErrorCapturedEvent) : cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return api([&](runtime &r, lock &l, device &) {
        event_ref ev;
        if (cudaError_t e = find_event(r, event, &ev); e != cudaSuccess)
            return e;
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
            return e;
        dependency last = ev->last;
        if (finished(last))
            return cudaSuccess;
        step_any(r, l, *ev->dev);
        return ev->dev->sticky != cudaSuccess ? ev->dev->sticky : finished(last) ? cudaSuccess : cudaErrorNotReady;
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return api([&](runtime &r, lock &l, device &) {
        event_ref ev;
        if (cudaError_t e = find_event(r, event, &ev); e != cudaSuccess)
            return e;
        dependency last = ev->last;
        return last.stream == nullptr ? cudaSuccess : wait_for_seq(r, l, last.stream, last.seq);
    });
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    return api([&](runtime &r, lock &, device &) {
        event_ref a, b;
        cudaError_t e = find_event(r, start, &a);
        if (e == cudaSuccess)
            e = find_event(r, end, &b);
        if (e != cudaSuccess)
            return e;
        if (ms == nullptr)
            return cudaErrorInvalidValue;
        if (a->dev != b->dev || ((a->flags | b->flags) & cudaEventDisableTiming) != 0 || a->last.stream == nullptr || b->last.stream == nullptr)
            return cudaErrorInvalidResourceHandle;
        if (!finished(a->last) || !finished(b->last))
            return cudaErrorNotReady;
        *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
        return cudaSuccess;
    });
}

/* ---- emu_control.h */

void emu_hang_stream(cudaStream_t stream, bool hang)
{
    runtime &r = rt();
    lock l(r.mutex);
    if (stream_ref s = find_stream(r, current_device(r), stream); s != nullptr)
        s->hung = hang;
    r.changed.notify_all();
}
