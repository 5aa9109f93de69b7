/* Softmax cross entropy: a block has a row. It is read twice: for its maximum and sum together, and for the gradient, from its end on,
 * where the cache still holds it. */
#include "libtrain/kernel/cuda/device.cuh"

enum { LOSS_THREADS = 1024 };   /* a row for each multiprocessor: those under way at once stay in the second-level cache */
struct loss_shared { float most[32], sum[32]; };   /* of the warps */

/* NaN wins, so that it shows in the loss. */
static __device__ inline float tr_more(float a, float b) { return b > a || b != b ? b : a; }

/* exp(a - b) with exp of nothing 0. */
static __device__ inline float tr_share(float a, float b) { return a == -INFINITY ? 0 : expf(a - b); }

/* Sums of exp(x - most), each of its own largest number, become one. */
static __device__ inline void tr_join(float &most, float &sum, float other, float more)
{
    float top = tr_more(most, other);
    sum = sum * tr_share(most, top) + more * tr_share(other, top);
    most = top;
}

static __global__ __launch_bounds__(LOSS_THREADS) void cross_entropy_kernel(float *loss, tr_mat dlogits, tr_mat logits, const int32_t *target, float scale)
{
    loss_shared &s = tr_shared<loss_shared>();
    int64_t row = blockIdx.x, V = logits.cols, t = target[row], units = (V + TR_WIDE - 1) / TR_WIDE;
    float x[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    if (t < 0) {   /* the whole block */
        for (int64_t u = threadIdx.x; dlogits.data && u < units; u += LOSS_THREADS)
            tr_put8(dlogits, row, u * TR_WIDE, V - u * TR_WIDE < TR_WIDE ? (int)(V - u * TR_WIDE) : (int)TR_WIDE, x);
        if (!threadIdx.x) loss[row] = 0;
        return;
    }
    float most = -INFINITY, sum = 0;
#pragma unroll 2
    for (int64_t u = threadIdx.x; u < units; u += LOSS_THREADS) {
        int n = V - u * TR_WIDE < TR_WIDE ? (int)(V - u * TR_WIDE) : (int)TR_WIDE;
        tr_get8(x, logits, row, u * TR_WIDE, n);
        float top = most;
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++) top = k < n ? tr_more(top, x[k]) : top;
        sum *= tr_share(most, top);
        most = top;
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++) sum += k < n ? tr_share(x[k], top) : 0;
    }
    for (int o = 16; o; o /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, most, o), more = __shfl_xor_sync(0xffffffffu, sum, o);
        tr_join(most, sum, other, more);
    }
    if (threadIdx.x % 32 == 0) s.most[threadIdx.x / 32] = most, s.sum[threadIdx.x / 32] = sum;
    __syncthreads();
    most = s.most[threadIdx.x % 32], sum = s.sum[threadIdx.x % 32];
    for (int o = 16; o; o /= 2) {   /* each warp for itself */
        float other = __shfl_xor_sync(0xffffffffu, most, o), more = __shfl_xor_sync(0xffffffffu, sum, o);
        tr_join(most, sum, other, more);
    }
    float log_sum = most + logf(sum), at_target = tr_get(logits, row, t);
    if (!threadIdx.x) loss[row] = log_sum - at_target;
    __syncthreads();   /* the gradient may overwrite the logits */
    if (!dlogits.data) return;
#pragma unroll 2
    for (int64_t v = threadIdx.x; v < units; v += LOSS_THREADS) {
        int64_t c = (units - 1 - v) * TR_WIDE;
        int n = V - c < TR_WIDE ? (int)(V - c) : (int)TR_WIDE;
        tr_get8(x, logits, row, c, n);
#pragma unroll
        for (int k = 0; k < TR_WIDE; k++) x[k] = (expf(x[k] - log_sum) - (c + k == t ? 1.0f : 0.0f)) * scale;
        tr_put8(dlogits, row, c, n, x);
    }
}

extern "C" int tr_cuda_cross_entropy(float *loss, tr_mat dlogits, tr_mat logits, const int32_t *target, float scale, tr_cuda_stream s)
{
    return tr_launch(dim3((unsigned)logits.rows), LOSS_THREADS, sizeof(loss_shared), s, cross_entropy_kernel, loss, dlogits, logits, target, scale);
}
