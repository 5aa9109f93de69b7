/* What the kernels share: launches without <<<>>>, shared memory as one struct, rows of any dtype, sums over a block. Only
 * this file asks which compiler reads it: nvcc, or g++ with tests/emulate/include in front. */
#ifndef TR_CUDA_DEVICE_CUH
#define TR_CUDA_DEVICE_CUH
#include <cuda_runtime.h>
#include "libtrain/kernel/cuda/launch.h"

enum { TR_BLOCK = 256 };   /* threads of a block that sums: part of the order of the sums */

template <class S> static __device__ inline S &tr_shared()
{
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char tr_shared_bytes[];
    return *reinterpret_cast<S *>(tr_shared_bytes);
#else
    return *static_cast<S *>(tr_emulate_shared());
#endif
}

template <class... P, class... A>
static inline int tr_launch(dim3 grid, dim3 block, size_t shared, tr_cuda_stream stream, void (*kernel)(P...), A... args)
{
    if (!grid.x || !grid.y) return 0;
    cudaLaunchConfig_t c = {};
    c.gridDim = grid, c.blockDim = block, c.dynamicSmemBytes = shared, c.stream = (cudaStream_t)stream;
    if (shared > 48 << 10)
        if (int err = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared)) return err;
    return (int)cudaLaunchKernelEx(&c, kernel, static_cast<P>(args)...);
}

/* A block of 256 threads for each stretch of 256 columns of each row. */
static inline dim3 tr_grid(int64_t rows, int64_t cols) { return dim3((unsigned)rows, (unsigned)((cols + TR_BLOCK - 1) / TR_BLOCK)); }
#define TR_COLUMN ((int64_t)blockIdx.y * TR_BLOCK + threadIdx.x)

static __device__ inline float tr_half_to_float(unsigned short h)
{
    unsigned sign = (unsigned)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 31) return __uint_as_float(sign | 0x7f800000u | m << 13);
    if (e) return __uint_as_float(sign | (e + 112) << 23 | m << 13);
    float f = (float)m * 5.9604644775390625e-8f;   /* 2^-24 */
    return sign ? -f : f;
}

static __device__ inline float tr_get(const tr_mat &t, int64_t row, int64_t col)
{
    int64_t i = row * t.ld + col;
    switch (t.dtype) {
    case TR_CUDA_F32: return static_cast<const float *>(t.data)[i];
    case TR_CUDA_BF16: return __uint_as_float((unsigned)static_cast<const unsigned short *>(t.data)[i] << 16);
    case TR_CUDA_F16: return tr_half_to_float(static_cast<const unsigned short *>(t.data)[i]);
    default: return (float)(static_cast<const signed char *>(t.data)[i] - t.zero[row * t.groups + col / t.group]) * t.scale[row * t.groups + col / t.group];
    }
}

/* f32 and bf16 (to nearest, ties to even), as base/dtype.h rounds. */
static __device__ inline void tr_put(const tr_mat &t, int64_t row, int64_t col, float x)
{
    int64_t i = row * t.ld + col;
    if (t.dtype == TR_CUDA_F32) {
        static_cast<float *>(t.data)[i] = x;
        return;
    }
    unsigned u = __float_as_uint(x);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    static_cast<unsigned short *>(t.data)[i] = (unsigned short)(nan ? (u >> 16 | 64) : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Two rounded to bf16, the first in the lower half; 2^x to 2 units of the last place. */
static __device__ inline unsigned tr_pack_bf16(float low, float high)
{
#ifdef __CUDACC__
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return tr_emulate_bf16(low) | tr_emulate_bf16(high) << 16;
#endif
}

static __device__ inline float tr_exp2(float x)
{
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* The sum over a block, for every thread: 32 lanes by a tree, then the warps in order. Used again and again with the same
 * `part`, thus the first barrier. */
template <class T> static __device__ inline T tr_block_sum(T v, T *part)
{
    for (int o = 16; o; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = part[0];
    for (unsigned w = 1; w < TR_BLOCK / 32; w++) sum += part[w];
    return sum;
}

#endif
