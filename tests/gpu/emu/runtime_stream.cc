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

constexpr auto RETRY = std::chrono::microseconds(100), RETRY_MAX = std::chrono::microseconds(800);
constexpr unsigned PATIENCE_MAX = 64;

bool finished(const dependency &d)
{
    return d.stream == nullptr || d.stream->done >= d.seq;
}

bool may_start(const CUstream_st &s)
{
    return !s.queue.empty() && !s.hung && std::all_of(s.queue.front().deps.begin(), s.queue.front().deps.end(), finished);
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

/* Runs one operation of the device, or as much of it as can be, if one may start. */
bool step(runtime &r, lock &l, device &d)
{
    stream_ref s = d.sticky == cudaSuccess ? choose(d) : nullptr;
    if (s == nullptr)
        return false;
    r.busy = true;
    r.stuck = false;
    expose_memory(r);
    l.unlock();
    progress p = s->queue.front().attempt(d); /* stays where it is while others append */
    l.lock();
    r.busy = false;
    if (d.sticky == cudaSuccess && p == progress::done)
        complete(d, s);
    else if (p == progress::later)
        s->not_before = clock::now() + RETRY;
    return p != progress::later;
}

/* Whoever asked is told that nothing goes on. */
void get_stuck(runtime &r)
{
    r.stuck = true;
    r.grants = 0;
    wake(r);
}

bool wanted(const runtime &r, const device *d)
{
    return std::any_of(r.waiters.begin(), r.waiters.end(), [&](const waiter *w) { return (d == nullptr || w->dev == d) && (!w->asks || r.grants > 0); });
}

/* One operation that somebody wants: of a device that is waited for, else of another, which that one may wait for; or of one that was left alone for long. waits:
 * there are such, but none may start now. */
bool work_once(runtime &r, lock &l, bool *waits)
{
    bool any = r.lag_ms < 0 || wanted(r, nullptr);
    size_t n = r.devices.size(), first = n > 1 ? r.random() % n : 0;
    for (bool own : {true, false})
        for (size_t i = 0; i < n; i++) {
            device &d = *r.devices[(first + i) % n];
            bool late = r.lag_ms > 0 && clock::now() - d.touched >= std::chrono::milliseconds(r.lag_ms);
            if (!has_work(d) || wanted(r, &d) != own || !(any || late))
                continue;
            *waits = true;
            if (step(r, l, d))
                return true;
        }
    return false;
}

void work_forever()
{
    runtime &r = rt();
    lock l(r.mutex);
    auto retry = RETRY;
    for (;;) {
        bool waits = false;
        if (work_once(r, l, &waits)) {
            retry = RETRY;
            r.grants -= r.grants > 0;
            wake(r);
            continue;
        }
        hide_memory(r);
        get_stuck(r);
        if (waits) {
            r.work.wait_for(l, retry);
            retry = std::min(retry * 2, RETRY_MAX);
        } else if (r.lag_ms > 0 && std::any_of(r.devices.begin(), r.devices.end(), [](const auto &d) { return has_work(*d); })) {
            r.work.wait_for(l, std::chrono::milliseconds(1));
        } else {
            r.work.wait(l);
        }
    }
}

cudaError_t wait_as(runtime &r, lock &l, waiter &w)
{
    device &d = *w.dev;
    d.touched = clock::now();
    r.waiters.push_back(&w);
    r.work.notify_one();
    while (check_time(r, d) == cudaSuccess && !w.done())
        w.woken.wait_for(l, std::chrono::milliseconds(d.faults.empty() ? 100 : 1)); /* faults may come by time */
    r.waiters.erase(std::find(r.waiters.begin(), r.waiters.end(), &w));
    return d.sticky;
}

template <typename P> cudaError_t wait_until(runtime &r, lock &l, device &d, P done)
{
    waiter w = {&d, done, false};
    d.patience = 1;
    return check_time(r, d) != cudaSuccess || done() ? d.sticky : wait_as(r, l, w);
}

/* Whoever asks again and again gets more and more done in between. */
template <typename P> cudaError_t ask(runtime &r, lock &l, device &d, P done)
{
    if (!done()) {
        waiter w = {&d, [&] { return done() || r.grants == 0 || r.stuck; }, true};
        r.grants = std::max(r.grants, d.patience);
        r.stuck = false;
        d.patience = std::min(d.patience * 2, PATIENCE_MAX);
        wait_as(r, l, w);
    }
    if (d.sticky != cudaSuccess)
        return d.sticky;
    if (!done())
        return cudaErrorNotReady;
    d.patience = 1;
    return cudaSuccess;
}

/* The fault that was set for a kernel, if any: true when there was one. */
bool fault_instead(device &d)
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
            return true;
        }
        d.n_kernels++;
        slow_us = r.slow_us;
    }
    if (slow_us > 0)
        usleep(slow_us);
    return false;
}

/* A kernel that waits for memory lets the work of other streams have its turn, and goes on after that. */
progress attempt_kernel(device &d, const kernel_launch &launch, std::shared_ptr<kernel_run> &run)
{
    if (run == nullptr) {
        if (fault_instead(d))
            return progress::later;
        run = kernel_begin(launch);
    }
    fault f;
    if (advance a = kernel_advance(*run, &f); a != advance::ended)
        return a == advance::some ? progress::more : progress::later;
    run.reset();
    runtime &r = rt();
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
    if (!r.worker_started)
        std::thread(work_forever).detach();
    r.worker_started = true;
    r.work.notify_one();
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

void wake(runtime &r)
{
    for (waiter *w : r.waiters)
        if (w->dev->sticky != cudaSuccess || w->done())
            w->woken.notify_one();
    r.changed.notify_all();
    r.work.notify_one();
}

void fail_device(runtime &r, device &d, cudaError_t e)
{
    if (d.sticky == cudaSuccess)
        d.sticky = e;
    wake(r);
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
        return enqueue(r, s, {name, [k, run = std::shared_ptr<kernel_run>()](device &on) mutable { return attempt_kernel(on, *k, run); }});
    });
    return cudaGetLastError(); /* an earlier error that nobody fetched comes out here, as after <<<>>> */
}

cudaError_t enqueue_operation(cudaStream_t stream, std::function<bool()> attempt, const char *name)
{
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
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
    return stream_api(stream, [&](runtime &r, lock &l, device &d, const stream_ref &s) {
        if (s->cap != nullptr)
            return capture_forbids(s->cap);
        if (cudaError_t e = s == d.legacy ? capture_forbids_legacy(r, d) : cudaSuccess; e != cudaSuccess)
            return e;
        return wait_for_seq(r, l, s, s->issued);
    });
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    return stream_api(stream, [&](runtime &r, lock &l, device &, const stream_ref &s) {
        if (s->cap != nullptr)
            return capture_forbids(s->cap);
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
            return e;
        return ask(r, l, *s->dev, [&] { return s->done >= s->issued; });
    });
}

template <typename T, typename F> static cudaError_t get(cudaStream_t stream, T *out, F field)
{
    return stream_api(stream, [&](runtime &, lock &, device &, const stream_ref &s) {
        if (out == nullptr)
            return cudaErrorInvalidValue;
        *out = field(*s);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority)
{
    return get(stream, priority, [](const CUstream_st &s) { return s.priority; });
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags)
{
    return get(stream, flags, [](const CUstream_st &s) { return s.flags; });
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *ordinal)
{
    return get(stream, ordinal, [](const CUstream_st &s) { return s.dev->ordinal; });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
        auto i = r.events.find(event);
        if (i == r.events.end())
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
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
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
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
        auto i = r.events.find(event);
        if (i == r.events.end() || i->second->dev != s->dev)
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
        return ask(r, l, *ev->dev, [&] { return finished(last); });
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
    wake(r);
}
