/* Memory, streams and errors of the emulated device. Its memory is one range of addresses that is forbidden whenever no
 * operation runs, so that host code which touches it ends there; fresh memory is 0xff, NaN in every float. Operations run
 * when they are given, on the only stream there may be; once it was made, the default stream is refused. */
#include <cuda_runtime_api.h>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

namespace {

const size_t ALL = (size_t)1 << 32, PAGE = 2 << 20 /* huge: forbidding small ones takes longer than the kernels */, ALIGN = 256;
char *pool, *top;                  /* [pool, top) was ever used */
std::map<char *, size_t> blocks;   /* with a gap behind each */
int entered;
int device;                        /* a process has one; EMULATE_DEVICES of the machine's 8 are to be seen */
cudaStream_t only;

void protect(int how)
{
    if (top > pool && mprotect(pool, (size_t)(top - pool), how)) abort();
}

}

int (*tr_emulate_busy)();

void tr_emulate_enter()
{
    if (!entered++) protect(PROT_READ | PROT_WRITE);
}

void tr_emulate_leave()
{
    if (!--entered) protect(PROT_NONE);
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : error == cudaErrorMemoryAllocation ? "out of memory" :
           error == cudaErrorInvalidValue ? "invalid argument" : "no error";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count)
{
    const char *seen = getenv("EMULATE_DEVICES");
    *count = seen ? atoi(seen) : 8;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int which)
{
    int count;
    cudaGetDeviceCount(&count);
    device = which;
    return which < 0 || which >= count ? cudaErrorInvalidValue : cudaSuccess;
}

int tr_emulate_device() { return device; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr a, int) 
{
    *value = a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrPageableMemoryAccess;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int)
{
    *p = { "emulated on the CPU", { { static_cast<char>(device) } }, 9, 0 };
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) 
{
    *stream = only = reinterpret_cast<cudaStream_t>(&only);
    return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue;
}

/* A wait that could last for ever, and work behind a transfer, are errors: both must be asked for with cudaStreamQuery first. */
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return stream == only && !(tr_emulate_busy && tr_emulate_busy()) ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return stream != only ? cudaErrorInvalidValue : tr_emulate_busy && tr_emulate_busy() ? cudaErrorNotReady : cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *available, size_t *all)
{
    *all = *available = ALL;
    for (auto &b : blocks) *available -= b.second;
    return cudaSuccess;
}

/* The first gap that is large enough. */
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    if (!pool) {
        void *m = mmap(nullptr, ALL + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return cudaErrorMemoryAllocation;
        pool = top = static_cast<char *>(m) + PAGE - reinterpret_cast<uintptr_t>(m) % PAGE;
        madvise(pool, ALL, MADV_HUGEPAGE);
    }
    if (bytes > ALL) return cudaErrorMemoryAllocation;
    size_t room = (bytes + ALIGN - 1) / ALIGN * ALIGN + ALIGN;
    char *at = pool;
    for (auto &b : blocks) {
        if ((size_t)(b.first - at) >= room) break;
        at = b.first + b.second;
    }
    if (room > (size_t)(pool + ALL - at)) return cudaErrorMemoryAllocation;
    blocks[at] = room;
    size_t end = ((size_t)(at - pool) + room + PAGE - 1) / PAGE * PAGE;
    if (pool + end > top) top = pool + end;
    UNPOISON(at, bytes);
    POISON(at + bytes, room - bytes);
    tr_emulate_enter();
    memset(at, 0xff, bytes);
    tr_emulate_leave();
    *p = at;
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *, size_t, unsigned) { return cudaSuccess; }
cudaError_t cudaMallocHost(void **out, size_t bytes) { return (*out = calloc(1, bytes)) ? cudaSuccess : cudaErrorMemoryAllocation; }

cudaError_t cudaFree(void *p)
{
    auto b = blocks.find(static_cast<char *>(p));
    if (b == blocks.end()) return cudaErrorInvalidValue;
    POISON(b->first, b->second);
    blocks.erase(b);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    *a = {};
    a->type = pool && p >= pool && p < top ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream)
{
    if (stream != only) return cudaErrorInvalidValue;
    tr_emulate_enter();
    memset(p, byte, bytes);
    tr_emulate_leave();
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, enum cudaMemcpyKind, cudaStream_t stream)
{
    if (stream != only || width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
    tr_emulate_enter();
    for (size_t r = 0; r < height; r++) memcpy(static_cast<char *>(to) + r * to_pitch, static_cast<const char *>(from) + r * from_pitch, width);
    tr_emulate_leave();
    return cudaSuccess;
}
