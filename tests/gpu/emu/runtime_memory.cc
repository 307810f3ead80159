/* Memory of the emulated devices, pinned memory, copies.
 *
 * An allocation stands alone in the address space: a page that faults, the gap up to the first byte, its bytes, the slack up to 256, a page that faults. It
 * begins at a multiple of 256, as CUDA promises, and ends as near to the page as that allows. Gap and slack hold a pattern that is looked at after every kernel
 * (under AddressSanitizer they are poisoned, too). Fresh bytes are POISON: NaN as fp32, f16 and bf16, a wild index as an integer. Freed memory faults; its addresses
 * are not used again for long.
 *
 * Large allocations are private mappings of one small file of poison, so that only what is written takes memory of the machine.
 *
 * A program that touches device memory by itself, not by a copy, faults: the pages are closed while no operation runs. That costs two system calls an allocation
 * and wait, so it is done while there are no more than PROTECTED bytes; beyond them nothing is closed. */
#include "tests/gpu/emu/runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace emu {
namespace {

constexpr size_t PROTECTED = 64 << 20;
constexpr size_t PAGE = 4096, ALIGN = 256, TILE = 2 << 20, QUARANTINE = 4096;
constexpr uint16_t POISON = 0xffc5;
constexpr unsigned char BORDER = 0xa7;

size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

void fill_poison(char *p, size_t n) /* p even */
{
    for (size_t i = 0; i + 1 < n; i += 2)
        memcpy(p + i, &POISON, 2);
    if (n % 2 != 0)
        p[n - 1] = (char)(POISON & 0xff);
}

int memory_file(const char *name, size_t bytes)
{
    int fd = (int)syscall(SYS_memfd_create, name, 1u /* MFD_CLOEXEC */);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int poison_file()
{
    static int fd = [] {
        int made = memory_file("racklm-emu-poison", TILE);
        void *p = made < 0 ? MAP_FAILED : mmap(nullptr, TILE, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
        if (p == MAP_FAILED) {
            perror("emulated CUDA: memfd");
            abort();
        }
        fill_poison((char *)p, TILE);
        munmap(p, TILE);
        return made;
    }();
    return fd;
}

/* Addresses for so many bytes, all of which fault, as do the pages before and after. */
char *reserve_pages(size_t bytes)
{
    char *all = (char *)mmap(nullptr, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return all == MAP_FAILED ? nullptr : all + PAGE;
}

/* Poisoned pages; NULL: the machine has no memory. */
char *map_pages(size_t bytes)
{
    char *map = reserve_pages(bytes);
    if (map == nullptr)
        return nullptr;
    for (size_t at = 0; at < bytes; at += TILE) {
        size_t n = std::min(TILE, bytes - at);
        bool small = bytes < TILE / 4;
        if (mmap(map + at, n, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | (small ? MAP_ANONYMOUS : MAP_NORESERVE), small ? -1 : poison_file(), 0) ==
            MAP_FAILED) {
            munmap(map - PAGE, bytes + 2 * PAGE);
            return nullptr;
        }
        if (small)
            fill_poison(map + at, n);
    }
    return map;
}

/* It faults from now on. */
void unmap_pages(char *map, size_t bytes)
{
    static std::deque<std::pair<char *, size_t>> dead; /* under the runtime's mutex */
    mmap(map, bytes, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    dead.emplace_back(map - PAGE, bytes + 2 * PAGE);
    if (dead.size() > QUARANTINE) {
        munmap(dead.front().first, dead.front().second);
        dead.pop_front();
    }
}

char *end_of_slack(const range &a)
{
    return a.base + round_up(a.size, ALIGN);
}

void make_borders(range &a)
{
    memset(a.map, BORDER, (size_t)(a.base - a.map));
    memset(a.base + a.size, BORDER, (size_t)(end_of_slack(a) - a.base) - a.size);
    ASAN_POISON_MEMORY_REGION(a.map, (size_t)(a.base - a.map));
    ASAN_POISON_MEMORY_REGION(a.base + a.size, (size_t)(end_of_slack(a) - a.base) - a.size);
}

/* The first byte of [p, end) that is no BORDER, or NULL. Under AddressSanitizer nobody gets so far as to write there. */
const char *written(const char *p, const char *end)
{
#if defined(__SANITIZE_ADDRESS__)
    return nullptr;
#endif
    if (p == end || ((unsigned char)*p == BORDER && memcmp(p, p + 1, (size_t)(end - p) - 1) == 0))
        return nullptr;
    while ((unsigned char)*p == BORDER)
        p++;
    return p;
}

const char *kind_name(const range &a)
{
    return a.kind == range::kind::device ? "device memory" : a.kind == range::kind::imported ? "memory of another process" : "pinned memory";
}

void check_range(const range &a, const char *after)
{
    if (a.map == nullptr || a.kind == range::kind::imported)
        return;
    const char *p = written(a.map, a.base);
    if (p == nullptr)
        p = written(a.base + a.size, end_of_slack(a));
    if (p == nullptr)
        return;
    fprintf(stderr, "emulated CUDA: out of bounds: %s: byte %td of %zu bytes of %s at %p was written (seed %llu)\n", after, p - a.base, a.size, kind_name(a),
            (void *)a.base, (unsigned long long)seed());
    abort();
}

void protect_memory(runtime &r, int protection)
{
    for (auto &[base, a] : r.ranges)
        if (a.kind == range::kind::device || a.kind == range::kind::imported)
            mprotect(a.map, a.map_bytes, protection);
}

range *add_range(runtime &r, device &d, enum range::kind kind, size_t size, unsigned flags)
{
    size_t bytes = round_up(size, PAGE);
    char *map = map_pages(bytes);
    if (map == nullptr)
        return nullptr;
    char *base = map + bytes - round_up(size, ALIGN);
    range a = {kind, base, size, &d, map, bytes, -1, 0, 1, flags};
    make_borders(a);
    range *added = &r.ranges.emplace((uintptr_t)base, a).first->second;
    expose_memory(r); /* all in one state */
    return added;
}

void remove_range(runtime &r, range *a)
{
    if (a->map != nullptr) {
        expose_memory(r);
        check_range(*a, "before it was freed");
        ASAN_UNPOISON_MEMORY_REGION(a->map, a->map_bytes);
        unmap_pages(a->map, a->map_bytes);
    }
    if (a->kind == range::kind::device && a->fd >= 0)
        close(a->fd);
    if (a->kind == range::kind::device)
        a->dev->used -= round_up(a->size, ALIGN);
    r.ranges.erase((uintptr_t)a->base);
}

/* The range of that kind that begins at p, or NULL. */
range *find_start(runtime &r, const void *p, enum range::kind kind)
{
    range *a = find_range(r, p);
    return a != nullptr && a->base == p && a->kind == kind ? a : nullptr;
}

/* Waits for the device first, as a GPU does. */
cudaError_t wait_and_remove(runtime &r, lock &l, range *a)
{
    cudaError_t e = wait_for_device(r, l, *a->dev);
    if (e == cudaSuccess)
        remove_range(r, a);
    return e;
}

cudaError_t free_now(const char *name, void *p, enum range::kind kind)
{
    return api([&](runtime &r, lock &l, device &) {
        if (p == nullptr)
            return cudaSuccess;
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
            return e;
        range *a = find_start(r, p, kind);
        return a == nullptr ? refuse(cudaErrorInvalidValue, "%s: %p was not allocated, or is freed already", name, p) : wait_and_remove(r, l, a);
    });
}

cudaError_t allocate(runtime &r, device &d, void **p, size_t size)
{
    if (p == nullptr)
        return cudaErrorInvalidValue;
    *p = nullptr;
    if (size == 0)
        return cudaSuccess;
    if (allocation_fails(r) || d.used > d.memory || size > d.memory - d.used || round_up(size, ALIGN) > d.memory - d.used)
        return cudaErrorMemoryAllocation;
    range *a = add_range(r, d, range::kind::device, size, 0);
    if (a == nullptr)
        return cudaErrorMemoryAllocation;
    d.used += round_up(size, ALIGN);
    *p = a->base;
    return cudaSuccess;
}

bool is_device(const range *a)
{
    return a != nullptr && (a->kind == range::kind::device || a->kind == range::kind::imported);
}

/* ---- copies */

struct copy {
    const char *name;
    char *dst;
    size_t dst_pitch;
    const char *src;
    size_t src_pitch, width, height;
    enum cudaMemcpyKind kind;

    size_t dst_extent() const { return dst_pitch * (height - 1) + width; }
    size_t src_extent() const { return src_pitch * (height - 1) + width; }
    void run(const char *from) const
    {
        for (size_t i = 0; i < height; i++)
            memmove(dst + i * dst_pitch, from + i * src_pitch, width);
    }
};

cudaError_t check_side(runtime &r, const copy &c, const void *p, size_t n, bool must_be_device, const char *side)
{
    range *a = find_range(r, p);
    if (c.kind != cudaMemcpyDefault && is_device(a) != must_be_device)
        return refuse(cudaErrorInvalidValue, "%s: the %s %p is %s", c.name, side, p, is_device(a) ? "device memory" : "no device memory (any more)");
    if (a != nullptr && (const char *)p + n > a->base + a->size)
        return refuse(cudaErrorInvalidValue, "%s: %zu bytes at the %s %p end %td bytes past the %zu bytes allocated", c.name, n, side, p,
                      (const char *)p + n - (a->base + a->size), a->size);
    return cudaSuccess;
}

cudaError_t check_copy(runtime &r, const copy &c)
{
    if (c.kind < cudaMemcpyHostToHost || c.kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    if (c.width > c.dst_pitch || c.width > c.src_pitch)
        return cudaErrorInvalidPitchValue;
    if (c.dst == nullptr || c.src == nullptr)
        return cudaErrorInvalidValue;
    bool from = c.kind == cudaMemcpyDeviceToHost || c.kind == cudaMemcpyDeviceToDevice;
    bool to = c.kind == cudaMemcpyHostToDevice || c.kind == cudaMemcpyDeviceToDevice;
    cudaError_t e = check_side(r, c, c.dst, c.dst_extent(), to, "destination");
    return e == cudaSuccess ? check_side(r, c, c.src, c.src_extent(), from, "source") : e;
}

/* From or to pageable memory: a source is read before the call returns, a destination is written before it returns. */
cudaError_t copy_async(runtime &r, lock &l, const stream_ref &s, const copy &c)
{
    if (s == nullptr)
        return cudaErrorInvalidResourceHandle;
    if (c.width == 0 || c.height == 0)
        return cudaSuccess;
    if (cudaError_t e = check_copy(r, c); e != cudaSuccess)
        return e;
    bool src_pageable = find_range(r, c.src) == nullptr, dst_pageable = find_range(r, c.dst) == nullptr;
    if (s->cap != nullptr && (src_pageable || dst_pageable)) /* a GPU's graph would keep the pointer: nothing that we ever want */
        return capture_forbids(s->cap);
    operation op = {c.name, nullptr};
    if (src_pageable) {
        auto staged = std::make_shared<std::vector<char>>(c.src, c.src + c.src_extent());
        op.attempt = [c, staged](device &) {
            c.run(staged->data());
            return progress::done;
        };
    } else {
        op.attempt = [c](device &) {
            c.run(c.src);
            return progress::done;
        };
    }
    uint64_t seq;
    cudaError_t e = enqueue(r, s, std::move(op), &seq);
    return e == cudaSuccess && dst_pageable ? wait_for_seq(r, l, s, seq) : e;
}

/* In the default stream, and waited for, between devices' memories excepted. */
cudaError_t copy_sync(runtime &r, lock &l, device &d, const copy &c)
{
    if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
        return e;
    if (cudaError_t e = copy_async(r, l, d.legacy, c); e != cudaSuccess)
        return e;
    if (is_device(find_range(r, c.src)) && is_device(find_range(r, c.dst)))
        return cudaSuccess;
    return wait_for_seq(r, l, d.legacy, d.legacy->issued);
}

cudaError_t set_async(runtime &r, const stream_ref &s, char *p, size_t pitch, int value, size_t width, size_t height)
{
    if (s == nullptr)
        return cudaErrorInvalidResourceHandle;
    if (width == 0 || height == 0)
        return cudaSuccess;
    range *a = find_range(r, p);
    if (width > pitch)
        return cudaErrorInvalidValue;
    if (a == nullptr || p + pitch * (height - 1) + width > a->base + a->size)
        return refuse(cudaErrorInvalidValue, "cudaMemset: %zu bytes at %p are not in one allocation", pitch * (height - 1) + width, (void *)p);
    return enqueue(r, s, {"cudaMemset", [=](device &) {
                              for (size_t i = 0; i < height; i++)
                                  memset(p + i * pitch, value, width);
                              return progress::done;
                          }});
}

} // namespace

bool allocation_fails(runtime &r)
{
    r.n_allocations++;
    for (auto i = r.failing_allocations.begin(); i != r.failing_allocations.end(); ++i)
        if (*i == r.n_allocations) {
            r.failing_allocations.erase(i);
            return true;
        }
    return false;
}

range *find_range(runtime &r, const void *p)
{
    auto i = r.ranges.upper_bound((uintptr_t)p);
    if (i == r.ranges.begin())
        return nullptr;
    range &a = std::prev(i)->second;
    return (const char *)p < a.base + a.size ? &a : nullptr;
}

void expose_memory(runtime &r)
{
    if (!r.exposed)
        protect_memory(r, PROT_READ | PROT_WRITE);
    r.exposed = true;
}

void hide_memory(runtime &r)
{
    if (!r.exposed || r.busy)
        return;
    size_t bytes = 0;
    for (auto &[base, a] : r.ranges)
        bytes += a.kind == range::kind::device || a.kind == range::kind::imported ? a.map_bytes : 0;
    if (bytes > PROTECTED)
        return;
    protect_memory(r, PROT_NONE);
    r.exposed = false;
}

void check_bounds(runtime &r, const device *d, const char *after)
{
    for (auto &[base, a] : r.ranges)
        if (d == nullptr || a.dev == d)
            check_range(a, after);
}

void memory_reset(runtime &r, device &d)
{
    for (auto i = r.ranges.begin(); i != r.ranges.end();) {
        range *a = &(i++)->second;
        if (a->dev == &d)
            remove_range(r, a);
    }
}

bool device_accessible(const void *p, bool or_end)
{
    runtime &r = rt();
    lock l(r.mutex);
    return find_range(r, p) != nullptr || (or_end && find_range(r, (const char *)p - 1) != nullptr);
}

bool allocation_in_page(uintptr_t page, uintptr_t *lo, uintptr_t *hi)
{
    runtime &r = rt();
    lock l(r.mutex);
    auto a = r.ranges.lower_bound((page + 1) * PAGE);
    if (a == r.ranges.begin())
        return false;
    --a;
    *lo = a->first;
    *hi = a->first + a->second.size;
    return *hi > page * PAGE && a->second.kind != range::kind::registered; /* that has neighbours of the host's */
}

void describe_address(const void *p, char *text, size_t size)
{
    runtime &r = rt();
    lock l(r.mutex, std::defer_lock);
    text[0] = '\0';
    if (!l.try_lock())
        return;
    const range *best = nullptr;
    uintptr_t distance = 1 << 20, at = (uintptr_t)p;
    for (auto &[base, a] : r.ranges) {
        uintptr_t end = base + a.size, away = at < base ? base - at : at >= end ? at - end : 0;
        if (away <= distance) {
            distance = away;
            best = &a;
        }
    }
    if (best == nullptr)
        snprintf(text, size, "no memory of a device, or freed");
    else
        snprintf(text, size, "byte %td of %zu bytes of %s at %p", (const char *)p - best->base, best->size, kind_name(*best), (void *)best->base);
}

} // namespace emu

using namespace emu;

/* ---- allocation */

cudaError_t cudaMalloc(void **p, size_t size)
{
    return api([&](runtime &r, lock &, device &d) {
        cudaError_t e = capture_forbids_unsafe(r);
        return e == cudaSuccess ? allocate(r, d, p, size) : e;
    });
}

cudaError_t cudaFree(void *p)
{
    return free_now("cudaFree", p, range::kind::device);
}

/* There at once; a caller that uses it before the stream is there is not found out. */
cudaError_t cudaMallocAsync(void **p, size_t size, cudaStream_t stream)
{
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
        if (s->cap != nullptr) /* nodes of memory are not emulated */
            return capture_forbids(s->cap);
        return allocate(r, *s->dev, p, size);
    });
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream)
{
    return stream_api(stream, [&](runtime &r, lock &, device &, const stream_ref &s) {
        if (s->cap != nullptr)
            return capture_forbids(s->cap);
        if (p == nullptr)
            return cudaSuccess;
        if (find_start(r, p, range::kind::device) == nullptr)
            return refuse(cudaErrorInvalidValue, "cudaFreeAsync: %p was not allocated, or is freed already", p);
        return enqueue(r, s, {"cudaFreeAsync", [p](device &) {
                                  runtime &r2 = rt();
                                  lock l2(r2.mutex);
                                  if (range *a2 = find_range(r2, p); a2 != nullptr)
                                      remove_range(r2, a2);
                                  return progress::done;
                              }});
    });
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    return api([&](runtime &, lock &, device &d) {
        if (free == nullptr || total == nullptr)
            return cudaErrorInvalidValue;
        *free = d.memory > d.used ? d.memory - d.used : 0;
        *total = d.memory;
        return cudaSuccess;
    });
}

cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags)
{
    return api([&](runtime &r, lock &, device &d) {
        if (p == nullptr || (flags & ~(cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined)) != 0)
            return cudaErrorInvalidValue;
        *p = nullptr;
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess || size == 0)
            return e;
        range *a = allocation_fails(r) ? nullptr : add_range(r, d, range::kind::host, size, flags);
        if (a == nullptr)
            return cudaErrorMemoryAllocation;
        *p = a->base;
        return cudaSuccess;
    });
}

cudaError_t cudaMallocHost(void **p, size_t size)
{
    return cudaHostAlloc(p, size, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *p)
{
    return free_now("cudaFreeHost", p, range::kind::host);
}

cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags)
{
    return api([&](runtime &r, lock &, device &d) {
        unsigned known = cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterIoMemory | cudaHostRegisterReadOnly;
        if (p == nullptr || size == 0 || (flags & ~known) != 0)
            return cudaErrorInvalidValue;
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
            return e;
        auto next = r.ranges.upper_bound((uintptr_t)p);
        if (find_range(r, p) != nullptr || (next != r.ranges.end() && next->first < (uintptr_t)p + size))
            return cudaErrorHostMemoryAlreadyRegistered;
        if (allocation_fails(r))
            return cudaErrorMemoryAllocation;
        r.ranges.emplace((uintptr_t)p, range{range::kind::registered, (char *)p, size, &d, nullptr, 0, -1, 0, 1, flags});
        return cudaSuccess;
    });
}

cudaError_t cudaHostUnregister(void *p)
{
    return api([&](runtime &r, lock &l, device &) {
        if (cudaError_t e = capture_forbids_unsafe(r); e != cudaSuccess)
            return e;
        range *a = find_start(r, p, range::kind::registered);
        return a == nullptr ? cudaErrorHostMemoryNotRegistered : wait_and_remove(r, l, a);
    });
}

cudaError_t cudaHostGetDevicePointer(void **device_p, void *p, unsigned flags)
{
    return api([&](runtime &r, lock &, device &) {
        range *a = find_range(r, p);
        if (device_p == nullptr || flags != 0 || a == nullptr || is_device(a))
            return cudaErrorInvalidValue;
        *device_p = p;
        return cudaSuccess;
    });
}

cudaError_t cudaHostGetFlags(unsigned *flags, void *p)
{
    return api([&](runtime &r, lock &, device &) {
        range *a = find_range(r, p);
        if (flags == nullptr || a == nullptr || a->base != p || is_device(a))
            return cudaErrorInvalidValue;
        *flags = a->flags;
        return cudaSuccess;
    });
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *at, const void *p)
{
    return api([&](runtime &r, lock &, device &) {
        if (at == nullptr)
            return cudaErrorInvalidValue;
        range *a = find_range(r, p);
        memset(at, 0, sizeof(*at));
        at->type = a == nullptr ? cudaMemoryTypeUnregistered : is_device(a) ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
        at->device = a == nullptr ? -2 : a->dev->ordinal; /* cudaInvalidDeviceId */
        at->devicePointer = a == nullptr ? nullptr : (void *)p;
        at->hostPointer = is_device(a) ? nullptr : (void *)p;
        return cudaSuccess;
    });
}

/* ---- copies */

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind)
{
    return api([&](runtime &r, lock &l, device &d) { return copy_sync(r, l, d, {"cudaMemcpy", (char *)dst, n, (const char *)src, n, n, 1, kind}); });
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return api([&](runtime &r, lock &l, device &d) {
        return copy_async(r, l, find_stream(r, d, stream), {"cudaMemcpyAsync", (char *)dst, n, (const char *)src, n, n, 1, kind});
    });
}

cudaError_t cudaMemcpy2D(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height, enum cudaMemcpyKind kind)
{
    return api([&](runtime &r, lock &l, device &d) {
        return copy_sync(r, l, d, {"cudaMemcpy2D", (char *)dst, dst_pitch, (const char *)src, src_pitch, width, height, kind});
    });
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    return api([&](runtime &r, lock &l, device &d) {
        return copy_async(r, l, find_stream(r, d, stream), {"cudaMemcpy2DAsync", (char *)dst, dst_pitch, (const char *)src, src_pitch, width, height, kind});
    });
}

/* Each side on the device that it was said to be on. */
static cudaError_t check_peer(runtime &r, const void *dst, int dst_device, const void *src, int src_device)
{
    range *to = find_range(r, dst), *from = find_range(r, src);
    bool fits = is_device(to) && is_device(from) && to->dev->ordinal == dst_device && from->dev->ordinal == src_device;
    return fits ? cudaSuccess : refuse(cudaErrorInvalidValue, "cudaMemcpyPeer: %p is not of device %d or %p not of device %d", dst, dst_device, src, src_device);
}

cudaError_t cudaMemcpyPeer(void *dst, int dst_device, const void *src, int src_device, size_t n)
{
    return api([&](runtime &r, lock &l, device &d) {
        cudaError_t e = check_peer(r, dst, dst_device, src, src_device);
        return e == cudaSuccess ? copy_sync(r, l, d, {"cudaMemcpyPeer", (char *)dst, n, (const char *)src, n, n, 1, cudaMemcpyDeviceToDevice}) : e;
    });
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device, size_t n, cudaStream_t stream)
{
    return api([&](runtime &r, lock &l, device &d) {
        cudaError_t e = check_peer(r, dst, dst_device, src, src_device);
        return e == cudaSuccess ? copy_async(r, l, find_stream(r, d, stream),
                                             {"cudaMemcpyPeerAsync", (char *)dst, n, (const char *)src, n, n, 1, cudaMemcpyDeviceToDevice})
                                : e;
    });
}

cudaError_t cudaMemset(void *p, int value, size_t n)
{
    return api([&](runtime &r, lock &, device &d) {
        cudaError_t e = capture_forbids_unsafe(r);
        return e == cudaSuccess ? set_async(r, d.legacy, (char *)p, n, value, n, 1) : e;
    });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream)
{
    return api([&](runtime &r, lock &, device &d) { return set_async(r, find_stream(r, d, stream), (char *)p, n, value, n, 1); });
}

cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    return api([&](runtime &r, lock &, device &d) { return set_async(r, find_stream(r, d, stream), (char *)p, pitch, value, width, height); });
}

/* ---- memory of other processes
 *
 * Memory that is shared moves into a file without a name, at the same addresses; the other process opens that by /proc. */

namespace {
struct ipc_handle {
    char magic[8];
    int pid, fd;
    size_t map_bytes, offset, size;
};
static_assert(sizeof(ipc_handle) <= sizeof(cudaIpcMemHandle_t));
constexpr char IPC_MAGIC[8] = "emu-ipc";

cudaError_t move_to_file(runtime &r, range *a)
{
    int fd = memory_file("racklm-emu-shared", a->map_bytes);
    char *p = fd < 0 ? (char *)MAP_FAILED : (char *)mmap(nullptr, a->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        if (fd >= 0)
            close(fd);
        return cudaErrorMemoryAllocation;
    }
    expose_memory(r);
    ASAN_UNPOISON_MEMORY_REGION(a->map, a->map_bytes);
    memcpy(p, a->map, a->map_bytes);
    munmap(p, a->map_bytes);
    mmap(a->map, a->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    make_borders(*a);
    a->fd = fd;
    return cudaSuccess;
}
} // namespace

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *p)
{
    return api([&](runtime &r, lock &l, device &) {
        r.changed.wait(l, [&] { return !r.busy; }); /* nothing writes there while it moves */
        range *a = find_start(r, p, range::kind::device);
        if (handle == nullptr || a == nullptr)
            return cudaErrorInvalidValue;
        if (cudaError_t e = a->fd < 0 ? move_to_file(r, a) : cudaSuccess; e != cudaSuccess)
            return e;
        ipc_handle h = {{}, (int)getpid(), a->fd, a->map_bytes, (size_t)(a->base - a->map), a->size};
        memcpy(h.magic, IPC_MAGIC, sizeof(h.magic));
        memset(handle, 0, sizeof(*handle));
        memcpy(handle, &h, sizeof(h));
        return cudaSuccess;
    });
}

/* A second open of the same memory gives the same address. */
cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t handle, unsigned flags)
{
    return api([&](runtime &r, lock &, device &d) {
        ipc_handle h;
        memcpy(&h, &handle, sizeof(h));
        if (p == nullptr || flags != cudaIpcMemLazyEnablePeerAccess)
            return cudaErrorInvalidValue;
        if (memcmp(h.magic, IPC_MAGIC, sizeof(h.magic)) != 0)
            return cudaErrorInvalidResourceHandle;
        if (h.pid == (int)getpid()) /* what it was exported from cannot import it */
            return cudaErrorDeviceUninitialized;
        for (auto &[base, a] : r.ranges)
            if (a.kind == range::kind::imported && a.owner == h.pid && a.fd == h.fd && a.dev == &d) {
                a.refs++;
                *p = a.base;
                return cudaSuccess;
            }
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", h.pid, h.fd);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            return cudaErrorInvalidResourceHandle;
        char *map = reserve_pages(h.map_bytes);
        if (map == nullptr || mmap(map, h.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
            close(fd);
            return cudaErrorMapBufferObjectFailed;
        }
        close(fd);
        range a = {range::kind::imported, map + h.offset, h.size, &d, map, h.map_bytes, h.fd, h.pid, 1, 0};
        *p = a.base;
        r.ranges.emplace((uintptr_t)a.base, a);
        expose_memory(r);
        return cudaSuccess;
    });
}

cudaError_t cudaIpcCloseMemHandle(void *p)
{
    return api([&](runtime &r, lock &l, device &) {
        range *a = find_start(r, p, range::kind::imported);
        if (a == nullptr)
            return cudaErrorInvalidValue;
        return --a->refs > 0 ? cudaSuccess : wait_and_remove(r, l, a);
    });
}
