/* RMSNorm and LayerNorm, and sums over rows (gradients of gains and biases). A block has a row, or a group of one where
 * x is wider than the gain; a thread owns every 256th of its elements. */
#include "libtrain/kernel/cuda/device.cuh"

struct norm_shared { float part[TR_BLOCK / 32]; };

/* Row and first column of block i. */
struct place { int64_t row, at; };
static __device__ inline place tr_place(int64_t i, int64_t groups, int64_t width) { return { i / groups, i % groups * width }; }

static __global__ void rms_norm_kernel(tr_mat y, float *r, tr_mat x, tr_mat g, float eps)
{
    norm_shared &s = tr_shared<norm_shared>();
    int64_t W = g.cols;
    place p = tr_place(blockIdx.x, x.cols / W, W);
    float sum = 0;
    for (int64_t c = threadIdx.x; c < W; c += TR_BLOCK) {
        float v = tr_get(x, p.row, p.at + c);
        sum = fmaf(v, v, sum);
    }
    float ri = 1 / sqrtf(tr_block_sum(sum, s.part) / (float)W + eps);
    if (!threadIdx.x) r[blockIdx.x] = ri;
    for (int64_t c = threadIdx.x; c < W; c += TR_BLOCK)
        tr_put(y, p.row, p.at + c, tr_get(x, p.row, p.at + c) * ri * tr_get(g, 0, c));
}

static __global__ void rms_norm_rebuild_kernel(tr_mat y, const float *r, tr_mat x, tr_mat g)
{
    int64_t W = g.cols;
    place p = tr_place(blockIdx.x, x.cols / W, W);
    float ri = r[blockIdx.x];
    for (int64_t c = threadIdx.x; c < W; c += TR_BLOCK)
        tr_put(y, p.row, p.at + c, tr_get(x, p.row, p.at + c) * ri * tr_get(g, 0, c));
}

/* dx may be dy: a thread reads its elements before it writes them. */
static __global__ void rms_norm_backward_kernel(tr_mat dx, int acc, tr_mat dy, tr_mat x, const float *r, tr_mat g)
{
    norm_shared &s = tr_shared<norm_shared>();
    int64_t W = g.cols;
    place p = tr_place(blockIdx.x, x.cols / W, W);
    float ri = r[blockIdx.x], sum = 0;
    for (int64_t c = threadIdx.x; c < W; c += TR_BLOCK)
        sum = fmaf(tr_get(dy, p.row, p.at + c) * tr_get(g, 0, c), tr_get(x, p.row, p.at + c), sum);
    float mean = tr_block_sum(sum, s.part) / (float)W * ri;
    for (int64_t c = threadIdx.x; c < W; c += TR_BLOCK) {
        float d = tr_get(dy, p.row, p.at + c) * tr_get(g, 0, c), u = tr_get(x, p.row, p.at + c);
        float old = acc ? tr_get(dx, p.row, p.at + c) : 0;
        tr_put(dx, p.row, p.at + c, old + ri * (d - u * ri * mean));
    }
}

/* stat[row] = mean, 1 / sqrt(var + eps); two passes, as the CPU's. */
static __global__ void layer_norm_kernel(tr_mat y, float *stat, tr_mat x, tr_mat g, tr_mat b, float eps)
{
    norm_shared &s = tr_shared<norm_shared>();
    int64_t row = blockIdx.x, C = x.cols;
    float sum = 0, squares = 0;
    for (int64_t c = threadIdx.x; c < C; c += TR_BLOCK) sum += tr_get(x, row, c);
    float mean = tr_block_sum(sum, s.part) / (float)C;
    for (int64_t c = threadIdx.x; c < C; c += TR_BLOCK) {
        float v = tr_get(x, row, c) - mean;
        squares = fmaf(v, v, squares);
    }
    float rstd = 1 / sqrtf(tr_block_sum(squares, s.part) / (float)C + eps);
    if (!threadIdx.x) stat[2 * row] = mean, stat[2 * row + 1] = rstd;
    for (int64_t c = threadIdx.x; c < C; c += TR_BLOCK)
        tr_put(y, row, c, (tr_get(x, row, c) - mean) * rstd * tr_get(g, 0, c) + tr_get(b, 0, c));
}

static __global__ void layer_norm_rebuild_kernel(tr_mat y, const float *stat, tr_mat x, tr_mat g, tr_mat b)
{
    int64_t row = blockIdx.x;
    float mean = stat[2 * row], rstd = stat[2 * row + 1];
    for (int64_t c = threadIdx.x; c < x.cols; c += TR_BLOCK)
        tr_put(y, row, c, (tr_get(x, row, c) - mean) * rstd * tr_get(g, 0, c) + tr_get(b, 0, c));
}

static __global__ void layer_norm_backward_kernel(tr_mat dx, int acc, tr_mat dy, tr_mat x, const float *stat, tr_mat g)
{
    norm_shared &s = tr_shared<norm_shared>();
    int64_t row = blockIdx.x, C = x.cols;
    float mean = stat[2 * row], rstd = stat[2 * row + 1], plain = 0, along = 0;
    for (int64_t c = threadIdx.x; c < C; c += TR_BLOCK) {
        float d = tr_get(dy, row, c) * tr_get(g, 0, c);
        plain += d;
        along = fmaf(d, (tr_get(x, row, c) - mean) * rstd, along);
    }
    float a = tr_block_sum(plain, s.part) / (float)C, b = tr_block_sum(along, s.part) / (float)C;
    for (int64_t c = threadIdx.x; c < C; c += TR_BLOCK) {
        float d = tr_get(dy, row, c) * tr_get(g, 0, c), xh = (tr_get(x, row, c) - mean) * rstd;
        float old = acc ? tr_get(dx, row, c) : 0;
        tr_put(dx, row, c, old + rstd * (d - a - xh * b));
    }
}

/* Sums over rows, added to what is there: eight threads share a column, each takes every eighth row in order, and the
 * eight sums are added in order. */
enum { ALONG = 32, ACROSS = TR_BLOCK / ALONG };
enum sum_of { BIAS, RMS_GAIN, LAYER_GAIN };
struct columns_shared { float part[ACROSS][ALONG]; };

template <int OF>
static __global__ void columns_kernel(float *out, int64_t width, tr_mat dy, tr_mat x, const float *stat)
{
    columns_shared &s = tr_shared<columns_shared>();
    int64_t lane = threadIdx.x % ALONG, y = threadIdx.x / ALONG, c = (int64_t)blockIdx.x * ALONG + lane, groups = dy.cols / width;
    float sum = 0;
    for (int64_t i = y; c < width && i < dy.rows * groups; i += ACROSS) {
        place p = tr_place(i, groups, width);
        float d = tr_get(dy, p.row, p.at + c);
        if (OF == RMS_GAIN) d = d * tr_get(x, p.row, p.at + c) * stat[i];
        if (OF == LAYER_GAIN) d = d * ((tr_get(x, p.row, p.at + c) - stat[2 * i]) * stat[2 * i + 1]);
        sum += d;
    }
    s.part[y][lane] = sum;
    __syncthreads();
    if (y || c >= width) return;
    for (int k = 1; k < ACROSS; k++) sum += s.part[k][lane];
    out[c] += sum;
}

template <int OF> static int columns(float *out, int64_t width, tr_mat dy, tr_mat x, const float *stat, tr_cuda_stream s)
{
    return tr_launch(dim3((unsigned)((width + ALONG - 1) / ALONG)), TR_BLOCK, sizeof(columns_shared), s, columns_kernel<OF>, out, width, dy, x, stat);
}

/* A block for each row, or for each group of one. */
#define ROWS(x, g) dim3((unsigned)((x).rows * ((x).cols / (g).cols))), TR_BLOCK, sizeof(norm_shared), s

extern "C" {

int tr_cuda_rms_norm(tr_mat y, float *r, tr_mat x, tr_mat g, float eps, tr_cuda_stream s)
{
    return tr_launch(ROWS(x, g), rms_norm_kernel, y, r, x, g, eps);
}

int tr_cuda_rms_norm_rebuild(tr_mat y, const float *r, tr_mat x, tr_mat g, tr_cuda_stream s)
{
    return tr_launch(ROWS(x, g), rms_norm_rebuild_kernel, y, r, x, g);
}

int tr_cuda_rms_norm_backward(tr_mat dx, int acc, float *dg, tr_mat dy, tr_mat x, const float *r, tr_mat g, tr_cuda_stream s)
{
    int err = dg ? columns<RMS_GAIN>(dg, g.cols, dy, x, r, s) : 0;   /* first: dx may overwrite dy */
    return err ? err : tr_launch(ROWS(x, g), rms_norm_backward_kernel, dx, acc, dy, x, r, g);
}

int tr_cuda_layer_norm(tr_mat y, float *stat, tr_mat x, tr_mat g, tr_mat b, float eps, tr_cuda_stream s)
{
    return tr_launch(ROWS(x, x), layer_norm_kernel, y, stat, x, g, b, eps);
}

int tr_cuda_layer_norm_rebuild(tr_mat y, const float *stat, tr_mat x, tr_mat g, tr_mat b, tr_cuda_stream s)
{
    return tr_launch(ROWS(x, x), layer_norm_rebuild_kernel, y, stat, x, g, b);
}

int tr_cuda_layer_norm_backward(tr_mat dx, int acc, float *dg, float *db, tr_mat dy, tr_mat x, const float *stat, tr_mat g, tr_cuda_stream s)
{
    int err = dg ? columns<LAYER_GAIN>(dg, g.cols, dy, x, stat, s) : 0;
    if (!err && db) err = columns<BIAS>(db, g.cols, dy, x, stat, s);
    return err ? err : tr_launch(ROWS(x, x), layer_norm_backward_kernel, dx, acc, dy, x, stat, g);
}

int tr_cuda_bias_backward(float *db, tr_mat dy, tr_cuda_stream s) { return columns<BIAS>(db, dy.cols, dy, dy, nullptr, s); }

}
