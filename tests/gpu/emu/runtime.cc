/* The emulated CUDA runtime: devices, errors, faults. runtime.h tells what lies where. Documentation followed: CUDA Runtime API 13.0, CUDA C++ Programming Guide
 * 13.0. What racklm does not call is not here, so that it fails to link and not to work. */
#include "tests/gpu/emu/runtime.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>

namespace emu {
namespace {

thread_local int thread_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
bool forked = false; /* CUDA does not live through a fork */

constexpr int SMS = 8, MAX_THREADS = 1024, THREADS_SM = 2048, BLOCKS_SM = 32;
constexpr size_t SMEM_BLOCK = 48 << 10, SMEM_OPTIN = 227 << 10, SMEM_SM = 228 << 10, SMEM_RESERVED = 1 << 10;

uint64_t number_of(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);
    if (s == nullptr || *s == '\0')
        return otherwise;
    char *end;
    uint64_t n = strtoull(s, &end, 10);
    switch (*end) {
    case 'K': return n << 10;
    case 'M': return n << 20;
    case 'G': return n << 30;
    case '\0': return n;
    default: fprintf(stderr, "emulated CUDA: %s=%s is not a number\n", name, s); abort();
    }
}

[[noreturn]] void bad_fault(const char *s)
{
    fprintf(stderr, "emulated CUDA: RACKLM_EMU_FAULT: %s is not kind@when:device (emu_control.h)\n", s);
    abort();
}

/* One element of RACKLM_EMU_FAULT. */
void add_fault(runtime &r, const std::string &s)
{
    static const struct { const char *name; cudaError_t e; } errors[] = {{"illegal", cudaErrorIllegalAddress}, {"launch", cudaErrorLaunchFailure},
                                                                          {"ecc", cudaErrorECCUncorrectable}, {"lost", cudaErrorUnknown}};
    char kind[16] = "", unit[4] = "";
    unsigned long long n = 0;
    int device = -1;
    size_t colon = s.find(':');
    if (colon != s.npos && sscanf(s.c_str() + colon, ":%d", &device) != 1)
        bad_fault(s.c_str());
    std::string head = s.substr(0, colon);
    int got = sscanf(head.c_str(), "%15[a-z]@%llu%3[a-z]", kind, &n, unit);
    std::string k = kind;
    bool ms = strcmp(unit, "ms") == 0;
    if (k == "nodriver" || k == "olddriver") {
        r.no_driver = cudaErrorInsufficientDriver;
        r.driver_version = k == "nodriver" ? 0 : 11040;
        return;
    }
    if (k == "nodevice") {
        r.no_driver = cudaErrorNoDevice;
        return;
    }
    if (got < 2 || (got == 3 && !ms) || (n == 0 && !ms))
        bad_fault(s.c_str());
    emu_fault f = {EMU_FAULT_ERROR, cudaSuccess, ms ? 0 : n, ms ? (uint32_t)n : 0};
    for (const auto &e : errors)
        if (k == e.name)
            f.error = e.e;
    if (k == "oom" && !ms)
        r.failing_allocations.push_back(n);
    else if (k == "slow" && !ms)
        r.slow_us = (unsigned)n;
    else if (k == "hang" && !ms)
        f.kind = EMU_FAULT_HANG;
    else if (f.error == cudaSuccess)
        bad_fault(s.c_str());
    if (f.error != cudaSuccess || f.kind == EMU_FAULT_HANG)
        for (auto &d : r.devices)
            if (device < 0 || device == d->physical)
                d->faults.push_back(f);
}

void begin(runtime &r)
{
    std::vector<int> visible;
    int n = (int)number_of("RACKLM_EMU_DEVICES", 1);
    if (const char *s = getenv("CUDA_VISIBLE_DEVICES"); s != nullptr) { /* the first that is not there ends the list, as the programming guide has it */
        for (const char *p = s; *p != '\0';) {
            char *end;
            long i = strtol(p, &end, 10);
            if (end == p || i < 0 || i >= n)
                break;
            visible.push_back((int)i);
            p = *end == ',' ? end + 1 : end;
        }
    } else {
        for (int i = 0; i < n; i++)
            visible.push_back(i);
    }
    for (int i : visible) {
        auto d = std::make_unique<device>();
        d->ordinal = (int)r.devices.size();
        d->physical = i;
        d->memory = number_of("RACKLM_EMU_MEMORY", 2ull << 30);
        d->random.seed(seed() * 1000003 + (uint64_t)i);
        d->legacy = std::make_shared<CUstream_st>(CUstream_st{d.get(), cudaStreamDefault, 0, 0});
        d->streams.push_back(d->legacy);
        r.devices.push_back(std::move(d));
    }
    r.random.seed(seed());
    r.lag_ms = (int)number_of("RACKLM_EMU_LAG_MS", 5);
    if (r.devices.empty())
        r.no_driver = cudaErrorNoDevice;
    if (const char *s = getenv("RACKLM_EMU_FAULT"); s != nullptr) {
        std::string all = s;
        for (size_t at = 0; at < all.size();) {
            size_t comma = std::min(all.find(',', at), all.size());
            add_fault(r, all.substr(at, comma - at));
            at = comma + 1;
        }
    }
}

} // namespace

runtime &rt()
{
    static runtime *r = [] {
        auto *made = new runtime; /* lives on while the process exits: other threads may still be at work */
        pthread_atfork(nullptr, nullptr, [] { forked = true; });
        begin(*made);
        return made;
    }();
    return *r;
}

device &current_device(runtime &r)
{
    return *r.devices[(size_t)thread_device];
}

cudaError_t enter(runtime &r)
{
    if (forked)
        return cudaErrorInitializationError;
    if (r.no_driver != cudaSuccess)
        return r.no_driver;
    device &d = current_device(r);
    if (!d.in_use) {
        d.in_use = true;
        d.begun = clock::now();
    }
    return check_time(r, d);
}

cudaError_t check_time(runtime &r, device &d)
{
    for (const emu_fault &f : d.faults)
        if (d.sticky == cudaSuccess && f.at_kernel == 0 && clock::now() - d.begun >= std::chrono::milliseconds(f.after_ms))
            fail_device(r, d, f.error);
    return d.sticky;
}

cudaError_t note(cudaError_t e)
{
    if (e != cudaSuccess)
        last_error = e;
    return e;
}

cudaError_t refuse(cudaError_t e, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    fprintf(stderr, "emulated CUDA: %s: %s\n", cudaGetErrorName(e), line);
    return e;
}

} // namespace emu

using namespace emu;

/* ---- errors */

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last_error;
    runtime &r = rt();
    lock l(r.mutex);
    last_error = r.no_driver == cudaSuccess ? current_device(r).sticky : cudaSuccess; /* which no call clears */
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

/* Those that the runtime may give, and their texts as the documentation describes them. */
static const struct { cudaError_t e; const char *name, *text; } error_texts[] = {
#define E(e, text) {e, #e, text}
    E(cudaSuccess, "no error"),
    E(cudaErrorInvalidValue, "invalid argument"),
    E(cudaErrorMemoryAllocation, "out of memory"),
    E(cudaErrorInitializationError, "initialization error"),
    E(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    E(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    E(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    E(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    E(cudaErrorInvalidDeviceFunction, "invalid device function"),
    E(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    E(cudaErrorInvalidDevice, "invalid device ordinal"),
    E(cudaErrorMapBufferObjectFailed, "mapping of buffer object failed"),
    E(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    E(cudaErrorPeerAccessUnsupported, "peer access is not supported between these two devices"),
    E(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    E(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    E(cudaErrorNotReady, "device not ready"),
    E(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    E(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
    E(cudaErrorPeerAccessNotEnabled, "peer access has not been enabled"),
    E(cudaErrorAssert, "device-side assert triggered"),
    E(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped"),
    E(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    E(cudaErrorLaunchFailure, "unspecified launch failure"),
    E(cudaErrorNotPermitted, "operation not permitted"),
    E(cudaErrorNotSupported, "operation not supported"),
    E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    E(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    E(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    E(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    E(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    E(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    E(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream"),
    E(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    E(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread"),
    E(cudaErrorUnknown, "unknown error"),
#undef E
};

const char *cudaGetErrorName(cudaError_t e)
{
    for (const auto &t : error_texts)
        if (t.e == e)
            return t.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t e)
{
    for (const auto &t : error_texts)
        if (t.e == e)
            return t.text;
    return "unrecognized error code";
}

/* ---- devices */

cudaError_t cudaDriverGetVersion(int *version)
{
    if (version == nullptr)
        return note(cudaErrorInvalidValue);
    *version = rt().driver_version; /* 0 without a driver, which is no error */
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    if (version == nullptr)
        return note(cudaErrorInvalidValue);
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    runtime &r = rt();
    if (count == nullptr)
        return note(cudaErrorInvalidValue);
    *count = r.no_driver == cudaSuccess ? (int)r.devices.size() : 0;
    return note(r.no_driver);
}

cudaError_t cudaSetDevice(int device)
{
    runtime &r = rt();
    lock l(r.mutex);
    if (r.no_driver != cudaSuccess)
        return note(r.no_driver);
    if (device < 0 || (size_t)device >= r.devices.size())
        return note(cudaErrorInvalidDevice);
    thread_device = device;
    return note(enter(r));
}

cudaError_t cudaGetDevice(int *device)
{
    runtime &r = rt();
    if (device == nullptr)
        return note(cudaErrorInvalidValue);
    *device = thread_device;
    return note(r.no_driver);
}

static cudaError_t with_device(runtime &r, int ordinal, device **d)
{
    if (ordinal < 0 || (size_t)ordinal >= r.devices.size())
        return cudaErrorInvalidDevice;
    *d = r.devices[(size_t)ordinal].get();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int ordinal)
{
    return api([&](runtime &r, lock &, device &) {
        device *d;
        if (cudaError_t e = with_device(r, ordinal, &d); e != cudaSuccess || p == nullptr)
            return p == nullptr ? cudaErrorInvalidValue : e;
        memset(p, 0, sizeof(*p));
        snprintf(p->name, sizeof(p->name), "Emulated GPU");
        snprintf(p->uuid.bytes, sizeof(p->uuid.bytes), "racklm-emu-%04d", d->physical);
        p->totalGlobalMem = d->memory;
        p->sharedMemPerBlock = SMEM_BLOCK;
        p->sharedMemPerBlockOptin = SMEM_OPTIN;
        p->sharedMemPerMultiprocessor = SMEM_SM;
        p->reservedSharedMemPerBlock = SMEM_RESERVED;
        p->regsPerBlock = p->regsPerMultiprocessor = 65536;
        p->warpSize = 32;
        p->memPitch = INT32_MAX;
        p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = MAX_THREADS;
        p->maxThreadsDim[2] = 64;
        p->maxGridSize[0] = INT32_MAX;
        p->maxGridSize[1] = p->maxGridSize[2] = 65535;
        p->totalConstMem = 65536;
        p->major = 9;
        p->multiProcessorCount = SMS;
        p->maxThreadsPerMultiProcessor = THREADS_SM;
        p->maxBlocksPerMultiProcessor = BLOCKS_SM;
        p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->streamPrioritiesSupported = 1;
        p->hostRegisterSupported = p->memoryPoolsSupported = p->ECCEnabled = 1;
        p->canUseHostPointerForRegisteredMem = 1;
        p->asyncEngineCount = 2;
        p->memoryBusWidth = 512;
        p->l2CacheSize = 4 << 20;
        p->pciBusID = d->physical + 1;
        p->hostNumaId = -1;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int ordinal)
{
    if (value == nullptr)
        return note(cudaErrorInvalidValue);
    cudaDeviceProp p;
    if (cudaError_t e = cudaGetDeviceProperties(&p, ordinal); e != cudaSuccess)
        return e;
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrPciBusId: *value = p.pciBusID; break;
    case cudaDevAttrPciDeviceId: *value = p.pciDeviceID; break;
    case cudaDevAttrPciDomainId: *value = p.pciDomainID; break;
    case cudaDevAttrUnifiedAddressing: *value = p.unifiedAddressing; break;
    case cudaDevAttrMemoryPoolsSupported: *value = p.memoryPoolsSupported; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrEccEnabled: *value = p.ECCEnabled; break;
    case cudaDevAttrAsyncEngineCount: *value = p.asyncEngineCount; break;
    case cudaDevAttrIntegrated: case cudaDevAttrCooperativeLaunch: case cudaDevAttrClusterLaunch: case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess: case cudaDevAttrPageableMemoryAccess: case cudaDevAttrComputeMode: *value = 0; break;
    default: return note(refuse(cudaErrorInvalidValue, "cudaDeviceGetAttribute %d is not emulated", (int)attr));
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int ordinal)
{
    cudaDeviceProp p;
    if (id == nullptr || len < 13)
        return note(cudaErrorInvalidValue);
    if (cudaError_t e = cudaGetDeviceProperties(&p, ordinal); e != cudaSuccess)
        return e;
    snprintf(id, (size_t)len, "%04x:%02x:%02x.0", p.pciDomainID, p.pciBusID, p.pciDeviceID);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    return api([&](runtime &, lock &, device &) {
        if (least != nullptr)
            *least = 0;
        if (greatest != nullptr)
            *greatest = -5;
        return cudaSuccess;
    });
}

cudaError_t cudaSetDeviceFlags(unsigned)
{
    return api([](runtime &, lock &, device &) { return cudaSuccess; }); /* how a host thread waits is no matter here */
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int ordinal, int peer)
{
    return api([&](runtime &r, lock &, device &) {
        device *d;
        if (can == nullptr)
            return cudaErrorInvalidValue;
        if (with_device(r, ordinal, &d) != cudaSuccess || with_device(r, peer, &d) != cudaSuccess)
            return cudaErrorInvalidDevice;
        *can = ordinal != peer;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags)
{
    return api([&](runtime &r, lock &, device &d) {
        device *p;
        if (with_device(r, peer, &p) != cudaSuccess || p == &d)
            return cudaErrorInvalidDevice;
        if (flags != 0)
            return cudaErrorInvalidValue;
        return d.peers.insert(peer).second ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled;
    });
}

cudaError_t cudaDeviceDisablePeerAccess(int peer)
{
    return api([&](runtime &r, lock &, device &d) {
        device *p;
        if (with_device(r, peer, &p) != cudaSuccess)
            return cudaErrorInvalidDevice;
        return d.peers.erase(peer) != 0 ? cudaSuccess : cudaErrorPeerAccessNotEnabled;
    });
}

/* ---- kernels, as far as the host asks about them; what runs them is engine.cc */

namespace emu {

cudaError_t check_launch(const kernel_launch &k)
{
    uint64_t threads = (uint64_t)k.block.x * k.block.y * k.block.z;
    if (k.grid.x == 0 || k.grid.y == 0 || k.grid.z == 0 || threads == 0)
        return refuse(cudaErrorInvalidConfiguration, "%s: grid %ux%ux%u, block %ux%ux%u: nothing to run", k.name, k.grid.x, k.grid.y, k.grid.z, k.block.x,
                      k.block.y, k.block.z);
    if (k.grid.x > INT32_MAX || k.grid.y > 65535 || k.grid.z > 65535)
        return refuse(cudaErrorInvalidConfiguration, "%s: grid %ux%ux%u is over 2147483647x65535x65535", k.name, k.grid.x, k.grid.y, k.grid.z);
    if (threads > MAX_THREADS || k.block.x > MAX_THREADS || k.block.y > MAX_THREADS || k.block.z > 64)
        return refuse(cudaErrorInvalidConfiguration, "%s: block %ux%ux%u is over %d threads or 64 in z", k.name, k.block.x, k.block.y, k.block.z, MAX_THREADS);
    if (k.smem > SMEM_OPTIN)
        return refuse(cudaErrorInvalidValue, "%s: %zu bytes of shared memory, a block has %zu", k.name, k.smem, SMEM_OPTIN);
    return cudaSuccess;
}

} // namespace emu

cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attr, int value)
{
    return api([&](runtime &, lock &, device &) {
        if (func == nullptr)
            return cudaErrorInvalidDeviceFunction;
        if (attr == cudaFuncAttributePreferredSharedMemoryCarveout)
            return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
        if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || (size_t)value > SMEM_OPTIN)
            return cudaErrorInvalidValue;
        return cudaSuccess;
    });
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *func)
{
    return api([&](runtime &, lock &, device &) {
        if (a == nullptr)
            return cudaErrorInvalidValue;
        if (func == nullptr)
            return cudaErrorInvalidDeviceFunction;
        memset(a, 0, sizeof(*a)); /* registers and machine code are nothing that the emulator knows */
        a->maxThreadsPerBlock = MAX_THREADS;
        a->maxDynamicSharedSizeBytes = SMEM_OPTIN;
        a->ptxVersion = a->binaryVersion = 90;
        return cudaSuccess;
    });
}

/* By threads, blocks and shared memory; registers, which are not known, do not count. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *func, int block, size_t smem)
{
    return api([&](runtime &, lock &, device &) {
        if (n == nullptr || func == nullptr || block <= 0)
            return cudaErrorInvalidValue;
        *n = 0;
        if (block > MAX_THREADS || smem > SMEM_OPTIN)
            return cudaSuccess;
        size_t by_threads = (size_t)THREADS_SM / (((size_t)block + 31) / 32 * 32), by_smem = SMEM_SM / (smem + SMEM_RESERVED);
        *n = (int)std::min({by_threads, by_smem, (size_t)BLOCKS_SM});
        return cudaSuccess;
    });
}

/* ---- emu_control.h */

static device &device_of(runtime &r, int ordinal)
{
    if (ordinal < 0 || (size_t)ordinal >= r.devices.size()) {
        fprintf(stderr, "emulated CUDA: emu_control: no device %d\n", ordinal);
        abort();
    }
    return *r.devices[(size_t)ordinal];
}

void emu_add_fault(int ordinal, const struct emu_fault *f)
{
    runtime &r = rt();
    lock l(r.mutex);
    device &d = device_of(r, ordinal);
    emu_fault g = *f;
    if (g.at_kernel != 0) {
        g.at_kernel += d.n_kernels;
    } else {
        d.in_use = true;
        d.begun = clock::now();
    }
    d.faults.push_back(g);
}

void emu_fail_device(int ordinal, cudaError_t e)
{
    runtime &r = rt();
    lock l(r.mutex);
    fail_device(r, device_of(r, ordinal), e);
}

void emu_fail_allocation(uint64_t n)
{
    runtime &r = rt();
    lock l(r.mutex);
    r.failing_allocations.push_back(r.n_allocations + n);
}

void emu_set_memory(int ordinal, size_t bytes)
{
    runtime &r = rt();
    lock l(r.mutex);
    device_of(r, ordinal).memory = bytes;
}

void emu_set_order_seed(uint64_t seed)
{
    runtime &r = rt();
    lock l(r.mutex);
    r.random.seed(seed);
    for (auto &d : r.devices)
        d->random.seed(seed * 1000003 + (uint64_t)d->physical);
}

void emu_set_lag_ms(int ms)
{
    runtime &r = rt();
    lock l(r.mutex);
    r.lag_ms = ms;
    wake(r);
}

void emu_catch_faults(bool on)
{
    runtime &r = rt();
    lock l(r.mutex);
    catch_faults(on);
}

void emu_get_stats(int ordinal, struct emu_stats *s)
{
    runtime &r = rt();
    lock l(r.mutex);
    device &d = device_of(r, ordinal);
    *s = {d.used, 0, d.n_kernels, d.n_operations, r.streams.size(), r.events.size(), r.graphs.size() + r.execs.size()};
    for (auto &[base, a] : r.ranges)
        s->allocations += a.dev == &d;
}

void emu_reset(void)
{
    runtime &r = rt();
    lock l(r.mutex);
    r.changed.wait(l, [&] { return !r.busy; });
    graphs_reset(r);
    for (auto &d : r.devices)
        for (const stream_ref &s : d->streams)
            s->queue.clear(); /* which may hold the stream itself */
    r.streams.clear();
    r.events.clear();
    expose_memory(r);
    for (auto &d : r.devices)
        memory_reset(r, *d);
    r.devices.clear();
    r.failing_allocations.clear();
    r.n_allocations = 0;
    r.slow_us = 0;
    catch_faults(false);
    r.no_driver = cudaSuccess;
    r.driver_version = CUDART_VERSION;
    thread_device = 0;
    last_error = cudaSuccess;
    begin(r);
}
