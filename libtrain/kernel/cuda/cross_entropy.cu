/* Softmax cross entropy: a block has a row. */
#include "libtrain/kernel/cuda/device.cuh"

struct loss_shared { float part[TR_BLOCK / 32]; };

/* NaN wins, so that it shows in the loss. */
static __device__ inline float tr_more(float a, float b) { return b > a || b != b ? b : a; }

static __global__ void cross_entropy_kernel(float *loss, tr_mat dlogits, tr_mat logits, const int32_t *target, float scale)
{
    loss_shared &s = tr_shared<loss_shared>();
    int64_t row = blockIdx.x, V = logits.cols, t = target[row];
    if (t < 0) {   /* the whole block */
        for (int64_t c = threadIdx.x; dlogits.data && c < V; c += TR_BLOCK) tr_put(dlogits, row, c, 0);
        if (!threadIdx.x) loss[row] = 0;
        return;
    }
    float most = -INFINITY, sum = 0;
    for (int64_t c = threadIdx.x; c < V; c += TR_BLOCK) most = tr_more(most, tr_get(logits, row, c));
    for (int o = 16; o; o /= 2) most = tr_more(most, __shfl_xor_sync(0xffffffffu, most, o));
    if (threadIdx.x % 32 == 0) s.part[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < TR_BLOCK / 32; w++) most = tr_more(most, s.part[w]);
    for (int64_t c = threadIdx.x; c < V; c += TR_BLOCK) sum += expf(tr_get(logits, row, c) - most);
    float log_sum = most + logf(tr_block_sum(sum, s.part));
    if (!threadIdx.x) loss[row] = log_sum - tr_get(logits, row, t);
    __syncthreads();   /* the gradient may overwrite the logits */
    for (int64_t c = threadIdx.x; dlogits.data && c < V; c += TR_BLOCK)
        tr_put(dlogits, row, c, (expf(tr_get(logits, row, c) - log_sum) - (c == t ? 1.0f : 0.0f)) * scale);
}

extern "C" int tr_cuda_cross_entropy(float *loss, tr_mat dlogits, tr_mat logits, const int32_t *target, float scale, tr_cuda_stream s)
{
    return tr_launch(dim3((unsigned)logits.rows), TR_BLOCK, sizeof(loss_shared), s, cross_entropy_kernel, loss, dlogits, logits, target, scale);
}
