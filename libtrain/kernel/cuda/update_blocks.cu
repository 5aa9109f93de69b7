/* Rules of optimizers that need more than an element at a time, or another: norms, moments in 8 bits, selections. */
#include "libtrain/kernel/cuda/device.cuh"


/* ---- norms: squares in double. Of rows: a warp or a block has one. Of columns: parts of the rows, their teams, the parts, each in order. */

struct row_norm_shared { double part[TR_BLOCK / 32]; };

template <int TEAM> static __global__ __launch_bounds__(TR_BLOCK) void row_norms_kernel(float *out, tr_mat x)
{
    row_norm_shared &s = tr_shared<row_norm_shared>();
    int64_t row = (int64_t)blockIdx.x * (TR_BLOCK / TEAM) + threadIdx.x / TEAM, lane = threadIdx.x % TEAM;
    if (row >= x.rows) return;   /* a whole team */
    double sum = 0;
    for (int64_t c = lane * TR_WIDE; c < x.cols; c += TEAM * TR_WIDE) {
        float v[TR_WIDE];
        tr_get8_any(v, x, row, c, x.cols - c < TR_WIDE ? (int)(x.cols - c) : (int)TR_WIDE);
        EIGHT sum += (double)v[k] * (double)v[k];
    }
    sum = tr_team_sum<TEAM>(sum, s.part);
    if (!lane) out[row] = (float)sqrt(sum);
}

enum { NORM_LANES = 32, NORM_TEAMS = TR_BLOCK / NORM_LANES, NORM_PARTS = 64, NORM_SUMS = 1 << 19 };
static __device__ double column_sums[NORM_SUMS];   /* [parts][columns]: of the call under way, thus one stream at a time */
struct column_norm_shared { double part[NORM_TEAMS][NORM_LANES * TR_WIDE]; };

static __global__ __launch_bounds__(TR_BLOCK) void column_squares_kernel(tr_mat x, int64_t rows_each)
{
    column_norm_shared &s = tr_shared<column_norm_shared>();
    int lane = (int)threadIdx.x % NORM_LANES, team = (int)threadIdx.x / NORM_LANES;
    int64_t first = (int64_t)blockIdx.x * NORM_LANES * TR_WIDE, c = first + lane * TR_WIDE, begin = blockIdx.y * rows_each, end = begin + rows_each < x.rows ? begin + rows_each : x.rows;
    int n = x.cols - c < TR_WIDE ? (int)(x.cols - c) : (int)TR_WIDE;
    double sum[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    if (n > 0)
        for (int64_t r = begin + team; r < end; r += NORM_TEAMS) {
            float v[TR_WIDE];
            tr_get8_any(v, x, r, c, n);
            EIGHT sum[k] += (double)v[k] * (double)v[k];
        }
    EIGHT s.part[team][lane * TR_WIDE + k] = sum[k];
    __syncthreads();
    if (first + threadIdx.x >= x.cols) return;
    double all = 0;
    for (int t = 0; t < NORM_TEAMS; t++) all += s.part[t][threadIdx.x];
    column_sums[blockIdx.y * x.cols + first + threadIdx.x] = all;
}

static __global__ __launch_bounds__(TR_BLOCK) void column_norms_kernel(float *out, int64_t cols, int parts)
{
    int64_t c = (int64_t)blockIdx.x * TR_BLOCK + threadIdx.x;
    if (c >= cols) return;
    double sum = 0;
    for (int p = 0; p < parts; p++) sum += column_sums[p * cols + c];
    out[c] = (float)sqrt(sum);
}

/* ---- moments in 8 bits: a warp has a block of codes, a lane eight of them, one after another block for each of its turns */

enum { TURNS = 4 };
struct codes_shared { float value[2][256], middle[2][256]; };

/* The nearest of the values (kernel/update_rules.h: encode). */
static __device__ inline unsigned nearest_code(float y, const float *middle)
{
    int at = 0;
#pragma unroll
    for (int step = 128; step; step /= 2) at += y > middle[at + step - 1] ? step : 0;
    return (unsigned)at;
}

static __device__ inline float warp_most(const float (&x)[TR_WIDE])
{
    float most = 0;
    EIGHT most = fabsf(x[k]) > most ? fabsf(x[k]) : most;
    for (int o = 16; o; o /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, most, o);
        most = other > most ? other : most;
    }
    return most;
}

/* Eight codes in two words, n of them there. */
static __device__ inline uint2 get_codes(const uint8_t *p, int n)
{
    if (n == TR_WIDE && reinterpret_cast<uintptr_t>(p) % 8 == 0) return *reinterpret_cast<const uint2 *>(p);
    unsigned w[2] = { 0, 0 };
    EIGHT if (k < n) w[k / 4] |= (unsigned)p[k] << 8 * (k % 4);
    return uint2{ w[0], w[1] };
}

static __device__ inline void put_codes(uint8_t *p, int n, const float (&x)[TR_WIDE], float most, bool whole, const float *middle)
{
    unsigned w[2] = { 0, 0 };
    float by = most > 0 ? 1 / most : 0;
    EIGHT w[k / 4] |= nearest_code(whole ? x[k] * by : most > 0 ? x[k] / most : 0, middle) << 8 * (k % 4);
    if (n == TR_WIDE && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
        *reinterpret_cast<uint2 *>(p) = uint2{ w[0], w[1] };
        return;
    }
    EIGHT if (k < n) p[k] = (uint8_t)(w[k / 4] >> 8 * (k % 4));
}

static __global__ __launch_bounds__(TR_BLOCK, 3) void adam_8bit_kernel(tr_mat g, uint8_t *m, uint8_t *v, float *m_most, float *v_most, tr_cuda_books books, tr_cuda_moments h)
{
    codes_shared &s = tr_shared<codes_shared>();
    int t = (int)threadIdx.x, lane = t % 32;
    s.value[0][t] = books.with_sign[t], s.value[1][t] = books.positive[t];
    s.middle[0][t] = t < 255 ? (books.with_sign[t] + books.with_sign[t + 1]) / 2 : 0;
    s.middle[1][t] = t < 255 ? (books.positive[t] + books.positive[t + 1]) / 2 : 0;
    __syncthreads();
    int64_t count = g.rows * g.cols, blocks = (count + TR_CUDA_8BIT - 1) / TR_CUDA_8BIT;
    for (int64_t block = (int64_t)blockIdx.x * (TR_BLOCK / 32) + t / 32; block < blocks; block += (int64_t)gridDim.x * (TR_BLOCK / 32)) {   /* a warp goes along as one */
        int64_t i = block * TR_CUDA_8BIT + lane * TR_WIDE;
        int n = i >= count ? 0 : count - i < TR_WIDE ? (int)(count - i) : (int)TR_WIDE;
        bool whole = (block + 1) * TR_CUDA_8BIT <= count, dense = g.ld == g.cols;
        uint2 mc = get_codes(m + i, n), vc = get_codes(v + i, n);
        float x[TR_WIDE], mm[TR_WIDE], vv[TR_WIDE], most[2] = { m_most[block], v_most[block] };
        if (dense) tr_get8(x, g, 0, i, n);
        else EIGHT x[k] = k < n ? tr_get(g, (i + k) / g.cols, (i + k) % g.cols) : 0;
        EIGHT {
            unsigned at = 8 * (k % 4);
            mm[k] = h.beta1 * (s.value[0][(k < 4 ? mc.x : mc.y) >> at & 255] * most[0]) + h.keep1 * x[k];
            vv[k] = h.beta2 * (s.value[1][(k < 4 ? vc.x : vc.y) >> at & 255] * most[1]) + h.keep2 * (x[k] * x[k]);
            x[k] = mm[k] / (sqrtf(vv[k]) * h.root + h.eps);
            if (k >= n) mm[k] = vv[k] = 0;
        }
        most[0] = warp_most(mm), most[1] = warp_most(vv);   /* after all lanes have read the old ones */
        put_codes(m + i, n, mm, most[0], whole, s.middle[0]);
        put_codes(v + i, n, vv, most[1], whole, s.middle[1]);
        if (!lane) m_most[block] = most[0], v_most[block] = most[1];
        if (dense) tr_put8(g, 0, i, n, x);
        else EIGHT if (k < n) tr_put(g, (i + k) / g.cols, (i + k) % g.cols, x[k]);
    }
}

/* ---- selections: where element (r, c) of one lies in the matrix */

static __device__ inline int64_t selected(const tr_mat &g, const int32_t *index, int axis, int64_t r, int64_t c)
{
    if (axis == 0) return index[r] * g.ld + c;
    if (axis == 1) return r * g.ld + index[c];
    return index[c] / g.cols * g.ld + index[c] % g.cols;
}

struct selection_rule {
    tr_mat low, g;
    const int32_t *index;
    int axis, back;   /* back: into the matrix, times factor */
    float factor;
    RULE
    {
        for (int k = 0; k < n; k++) {
            float *in_low = static_cast<float *>(low.data) + r * low.ld + c + k, *in_g = static_cast<float *>(g.data) + selected(g, index, axis, r, c + k);
            if (back) *in_g = factor * *in_low;
            else *in_low = *in_g;
        }
    }
};

extern "C" {

int tr_cuda_norms(float *n, tr_mat x, int axis, tr_cuda_stream s)
{
    const int warps = TR_BLOCK / 32;
    if (axis == 0 && x.cols > TR_NARROW) return tr_launch(dim3((unsigned)x.rows), TR_BLOCK, sizeof(row_norm_shared), s, row_norms_kernel<TR_BLOCK>, n, x);
    if (axis == 0) return tr_launch(dim3((unsigned)((x.rows + warps - 1) / warps)), TR_BLOCK, sizeof(row_norm_shared), s, row_norms_kernel<32>, n, x);
    int64_t most = NORM_SUMS / x.cols < NORM_PARTS ? NORM_SUMS / x.cols : (int64_t)NORM_PARTS, each = 4 * NORM_TEAMS;
    if (!most) return (int)cudaErrorInvalidValue;
    if (each * most < x.rows) each = (x.rows + most - 1) / most;
    int64_t parts = (x.rows + each - 1) / each, wide = NORM_LANES * TR_WIDE;
    int err = tr_launch(dim3((unsigned)((x.cols + wide - 1) / wide), (unsigned)parts), TR_BLOCK, sizeof(column_norm_shared), s, column_squares_kernel, x, each);
    return err ? err : tr_launch(dim3((unsigned)((x.cols + TR_BLOCK - 1) / TR_BLOCK)), TR_BLOCK, 0, s, column_norms_kernel, n, x.cols, parts);
}

int tr_cuda_adam_8bit(tr_mat g, uint8_t *m, uint8_t *v, float *m_most, float *v_most, const tr_cuda_books *books, tr_cuda_moments h, tr_cuda_stream s)
{
    int64_t blocks = (g.rows * g.cols + TR_CUDA_8BIT - 1) / TR_CUDA_8BIT;
    int64_t each = TURNS * (TR_BLOCK / 32);
    return tr_launch(dim3((unsigned)((blocks + each - 1) / each)), TR_BLOCK, sizeof(codes_shared), s, adam_8bit_kernel, g, m, v, m_most, v_most, *books, h);
}

int tr_cuda_pick(tr_mat low, tr_mat g, const int32_t *index, int axis, tr_cuda_stream s) { return tr_each(low.rows, low.cols, s, selection_rule{ low, g, index, axis, 0, 1 }); }

int tr_cuda_place(tr_mat g, tr_mat low, const int32_t *index, int axis, float factor, tr_cuda_stream s)
{
    return tr_each(low.rows, low.cols, s, selection_rule{ low, g, index, axis, 1, factor });
}

}
