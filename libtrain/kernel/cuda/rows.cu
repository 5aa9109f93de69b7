/* Gathers and scatters of rows, and rotary positions. */
#include "libtrain/kernel/cuda/device.cuh"

static __global__ void embed_kernel(tr_mat y, tr_mat w, const int32_t *ids, int acc)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c >= y.cols) return;
    float v = tr_get(w, ids[r], c);
    tr_put(y, r, c, acc ? v + tr_get(y, r, c) : v);
}

struct embed_shared { int before[TR_BLOCK]; };

/* The block of an id's first token adds all its tokens in order; the others find an earlier one and leave. */
static __global__ void embed_backward_kernel(tr_mat dw, tr_mat dy, const int32_t *ids)
{
    embed_shared &s = tr_shared<embed_shared>();
    int64_t first = blockIdx.x, c = TR_COLUMN;
    int32_t id = ids[first];
    int before = 0;
    for (int64_t i = threadIdx.x; i < first; i += TR_BLOCK) before |= ids[i] == id;
    s.before[threadIdx.x] = before;
    __syncthreads();
    for (int t = 0; t < TR_BLOCK; t++)
        if (s.before[t]) return;
    if (c >= dy.cols) return;
    float *to = static_cast<float *>(dw.data) + id * dw.ld + c, sum = *to;
    for (int64_t i = first; i < dy.rows; i++)
        if (ids[i] == id) sum += tr_get(dy, i, c);
    *to = sum;
}

static __global__ void scatter_kernel(tr_mat y, tr_mat x, const int32_t *rows)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < x.cols) tr_put(y, rows[r], c, tr_get(x, r, c));
}

static __global__ void rope_kernel(tr_mat x, tr_mat cs, const int32_t *pos, int64_t heads, float sign)
{
    int64_t half = cs.cols / 2, r = blockIdx.x, at = TR_COLUMN, d = at % half, c = at / half * cs.cols + d;
    if (at >= heads * half) return;
    float cosine = tr_get(cs, pos[r], d), sine = sign * tr_get(cs, pos[r], half + d);
    float a = tr_get(x, r, c), b = tr_get(x, r, c + half);
    tr_put(x, r, c, a * cosine - b * sine);
    tr_put(x, r, c + half, b * cosine + a * sine);
}

extern "C" {

int tr_cuda_embed(tr_mat y, tr_mat w, const int32_t *ids, int acc, tr_cuda_stream s)
{
    return tr_launch(tr_grid(y.rows, y.cols), TR_BLOCK, 0, s, embed_kernel, y, w, ids, acc);
}

int tr_cuda_embed_backward(tr_mat dw, tr_mat dy, const int32_t *ids, tr_cuda_stream s)
{
    return tr_launch(tr_grid(dy.rows, dy.cols), TR_BLOCK, sizeof(embed_shared), s, embed_backward_kernel, dw, dy, ids);
}

int tr_cuda_scatter(tr_mat y, tr_mat x, const int32_t *rows, tr_cuda_stream s)
{
    return tr_launch(tr_grid(x.rows, x.cols), TR_BLOCK, 0, s, scatter_kernel, y, x, rows);
}

int tr_cuda_rope(tr_mat x, tr_mat cs, const int32_t *pos, int64_t heads, int inverse, tr_cuda_stream s)
{
    return tr_launch(tr_grid(x.rows, heads * (cs.cols / 2)), TR_BLOCK, 0, s, rope_kernel, x, cs, pos, heads, inverse ? -1.0f : 1.0f);
}

}
