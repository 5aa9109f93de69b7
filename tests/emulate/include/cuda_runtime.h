/* The part of CUDA that the kernels use, on host memory, for tests: blocks run one after another, the threads of a block
 * as fibers in a changing order (grid.cpp). The names are the vendor's; no toolkit is needed. */
#ifndef EMULATE_CUDA_RUNTIME_H
#define EMULATE_CUDA_RUNTIME_H
#include <cuda_runtime_api.h>
#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
extern dim3 threadIdx, blockIdx, blockDim, gridDim;   /* of the running fiber */

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute what, int value);
template <class... P> static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute what, int value)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), what, value);
}

struct cudaLaunchConfig_t { dim3 gridDim, blockDim; size_t dynamicSmemBytes; cudaStream_t stream; };
cudaError_t tr_emulate_grid(const cudaLaunchConfig_t *c, const std::function<void()> &thread);

template <class... P, class... A> static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(P...), A... args)
{
    return tr_emulate_grid(c, [=] { kernel(args...); });
}

void *tr_emulate_shared();   /* the running block's shared memory */
void tr_emulate_exchange(unsigned mask, const void *in, void *out, size_t bytes, unsigned from);
void tr_emulate_gather(const void *in, void *out, size_t bytes);   /* the words of all lanes, at most 24 bytes each */
void __syncthreads();

template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int lanes)
{
    T out;
    static_assert(sizeof(T) <= 8, "a word of 32 or 64 bits");
    tr_emulate_exchange(mask, &v, &out, sizeof v, (threadIdx.x % 32) ^ (unsigned)lanes);
    return out;
}

static inline unsigned __ballot_sync(unsigned mask, int v)
{
    unsigned set = v != 0, all[32], bits = 0;
    tr_emulate_gather(&set, all, sizeof set);
    for (unsigned l = 0; l < 32; l++) bits |= all[l] << l;
    return mask & bits;
}

static inline int __popc(unsigned v) { return __builtin_popcount(v); }

static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}

/* To nearest, ties to even; every NaN becomes one, as on the device. */
static inline unsigned tr_emulate_bf16(float f)
{
    unsigned u = __float_as_uint(f);
    return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

#endif
