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

/* Eight elements of a row at once: 16 bytes of bf16, 32 of f32. n of them, 0 to 8, from col on; the others read as 0 and are not written. */
enum { TR_WIDE = 8 };
static __device__ inline bool tr_whole(const void *p, int n) { return n == TR_WIDE && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/* As they are in memory: fetched apart from where they are used, so that several are on their way at once. */
struct tr_raw { uint4 a, b; };

static __device__ inline void tr_fetch8(tr_raw &x, const tr_mat &t, int64_t row, int64_t col, int n)
{
    int64_t i = row * t.ld + col;
    if (t.dtype == TR_CUDA_BF16) {
        const unsigned short *p = static_cast<const unsigned short *>(t.data) + i;
        if (tr_whole(p, n)) {
            x.a = *reinterpret_cast<const uint4 *>(p);
            return;
        }
        unsigned w[TR_WIDE];
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++) w[k] = k < n ? p[k] : 0;
        x.a = uint4{ w[0] | w[1] << 16, w[2] | w[3] << 16, w[4] | w[5] << 16, w[6] | w[7] << 16 };
        return;
    }
    const unsigned *p = static_cast<const unsigned *>(t.data) + i;
    if (tr_whole(p, n)) {
        x.a = reinterpret_cast<const uint4 *>(p)[0], x.b = reinterpret_cast<const uint4 *>(p)[1];
        return;
    }
    unsigned w[TR_WIDE];
#pragma unroll
    for (int k = 0; k < TR_WIDE; k++) w[k] = k < n ? p[k] : 0;
    x.a = uint4{ w[0], w[1], w[2], w[3] }, x.b = uint4{ w[4], w[5], w[6], w[7] };
}

static __device__ inline void tr_widen8(float (&x)[TR_WIDE], const tr_raw &r, int dtype)
{
    unsigned w[TR_WIDE] = { r.a.x, r.a.y, r.a.z, r.a.w, r.b.x, r.b.y, r.b.z, r.b.w };
    bool half = dtype == TR_CUDA_BF16;
#pragma unroll
    for (int k = TR_WIDE; k-- > 0;) x[k] = __uint_as_float(!half ? w[k] : k % 2 ? w[k / 2] & 0xffff0000u : w[k / 2] << 16);
}

static __device__ inline void tr_get8(float (&x)[TR_WIDE], const tr_mat &t, int64_t row, int64_t col, int n)
{
    tr_raw r = {};
    tr_fetch8(r, t, row, col, n);
    tr_widen8(x, r, t.dtype);
}

/* Of any dtype; columns of int8 begin at a multiple of 8, groups too. */
static __device__ inline void tr_get8_any(float (&x)[TR_WIDE], const tr_mat &t, int64_t row, int64_t col, int n)
{
    int64_t i = row * t.ld + col;
    if (t.dtype == TR_CUDA_INT8) {
        const signed char *p = static_cast<const signed char *>(t.data) + i;
        int64_t at = row * t.groups + col / t.group;
        int zero = t.zero[at];
        float scale = t.scale[at];
        if (n == TR_WIDE && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
            uint2 v = *reinterpret_cast<const uint2 *>(p);
#pragma unroll
            for (int k = 0; k < TR_WIDE; k++) x[k] = (float)((signed char)((k < 4 ? v.x : v.y) >> 8 * (k % 4)) - zero) * scale;
            return;
        }
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++) x[k] = k < n ? (float)(p[k] - zero) * scale : 0;
    } else if (t.dtype == TR_CUDA_F16) {
        const unsigned short *p = static_cast<const unsigned short *>(t.data) + i;
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++) x[k] = k < n ? tr_half_to_float(p[k]) : 0;
    } else tr_get8(x, t, row, col, n);
}

static __device__ inline void tr_put8(const tr_mat &t, int64_t row, int64_t col, int n, const float (&x)[TR_WIDE])
{
    int64_t i = row * t.ld + col;
    if (t.dtype == TR_CUDA_BF16) {
        unsigned short *p = static_cast<unsigned short *>(t.data) + i;
        uint4 v = { tr_pack_bf16(x[0], x[1]), tr_pack_bf16(x[2], x[3]), tr_pack_bf16(x[4], x[5]), tr_pack_bf16(x[6], x[7]) };
        if (tr_whole(p, n)) {
            *reinterpret_cast<uint4 *>(p) = v;
            return;
        }
        unsigned w[4] = { v.x, v.y, v.z, v.w };
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++)
            if (k < n) p[k] = (unsigned short)(w[k / 2] >> 16 * (k % 2));
        return;
    }
    float *p = static_cast<float *>(t.data) + i;
    if (tr_whole(p, n)) {
        reinterpret_cast<float4 *>(p)[0] = float4{ x[0], x[1], x[2], x[3] };
        reinterpret_cast<float4 *>(p)[1] = float4{ x[4], x[5], x[6], x[7] };
        return;
    }
#pragma unroll
    for (int k = 0; k < TR_WIDE; k++)
        if (k < n) p[k] = x[k];
}

/* For k of the eight; what a rule of tr_each is called by: n columns, 1 to 8, from column c on of row r. */
#define EIGHT _Pragma("unroll") for (int k = 0; k < TR_WIDE; k++)
#define RULE __device__ void operator()(int64_t r, int64_t c, int n) const

/* f(row, col, n) for every stretch of up to eight columns of a matrix: a thread has one. */
template <class F> static __global__ __launch_bounds__(TR_BLOCK) void tr_each_kernel(F f, int64_t rows, int64_t cols)
{
    int64_t unit = (int64_t)blockIdx.x * TR_BLOCK + threadIdx.x, each = (cols + TR_WIDE - 1) / TR_WIDE, units = rows * each;
    if (unit >= units) return;
    int64_t row = units >> 32 ? unit / each : (int64_t)((unsigned)unit / (unsigned)each), col = (unit - row * each) * TR_WIDE;
    f(row, col, cols - col < TR_WIDE ? (int)(cols - col) : (int)TR_WIDE);
}

template <class F> static inline int tr_each(int64_t rows, int64_t cols, tr_cuda_stream s, F f)
{
    int64_t blocks = (rows * ((cols + TR_WIDE - 1) / TR_WIDE) + TR_BLOCK - 1) / TR_BLOCK;
    return tr_launch(dim3((unsigned)blocks), TR_BLOCK, 0, s, tr_each_kernel<F>, f, rows, cols);
}

/* Rules of tr_each. y = x, changed by f(x) element by element; y may be x. */
template <class F> struct tr_map1 {
    tr_mat y, x;
    F f;
    RULE
    {
        float u[TR_WIDE];
        tr_get8(u, x, r, c, n);
        EIGHT f(u[k]);
        tr_put8(y, r, c, n, u);
    }
};

/* y = a, changed by f(a, b), which with BOTH changes b in place, too; y may be a. */
template <class F, bool BOTH = false> struct tr_map2 {
    tr_mat y, a, b;
    F f;
    RULE
    {
        float u[TR_WIDE], v[TR_WIDE];
        tr_get8(u, a, r, c, n);
        tr_get8(v, b, r, c, n);
        EIGHT f(u[k], v[k]);
        if (BOTH) tr_put8(b, r, c, n, v);
        tr_put8(y, r, c, n, u);
    }
};

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

/* The sum over a team: some lanes of a warp, or the block. Rows of up to TR_NARROW columns belong to a warp. */
enum { TR_NARROW = 1024 };
template <int TEAM, class T> static __device__ inline T tr_team_sum(T v, T *part)
{
    if constexpr (TEAM > 32) v = tr_block_sum(v, part);
    else for (int o = TEAM / 2; o; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

#endif
