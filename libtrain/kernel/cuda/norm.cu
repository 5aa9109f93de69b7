/* RMSNorm and LayerNorm, and sums over rows (gradients of gains and biases). A row, or a group of one where x is wider than
 * the gain, belongs to a team: some lanes of a warp, or a block, as its width asks for; a thread has every TEAM-th stretch of eight columns. */
#include "libtrain/kernel/cuda/device.cuh"

struct norm_shared { float part[TR_BLOCK / 32]; };

/* Where a team works: row i of all groups. A thread holds HELD stretches in registers; further ones are read again. */
template <int TEAM, int HELD> struct team {
    int64_t i, row, at;
    int width, lane;   /* width 0: beyond the last row; its threads go along */
    __device__ team(int64_t rows, int64_t groups, int64_t w)
        : i((int64_t)blockIdx.x * (TR_BLOCK / TEAM) + threadIdx.x / TEAM), row((unsigned)i / (unsigned)groups), at((i - row * groups) * w),
          width(i < rows ? (int)w : 0), lane((int)threadIdx.x % TEAM) {}
    __device__ int n(int c) const { return width - c < TR_WIDE ? width - c : (int)TR_WIDE; }
    __device__ void get(float (&x)[TR_WIDE], const tr_mat &t, int c) const { tr_get8(x, t, row, at + c, n(c)); }
    __device__ void put(const tr_mat &t, int c, const float (&x)[TR_WIDE]) const { tr_put8(t, row, at + c, n(c), x); }
    /* f(u, c) for each stretch, columns from c on; u: its place in registers, -1 when it has none. */
    template <class F> __device__ void each(F f) const
    {
#pragma unroll
        for (int u = 0; u < HELD; u++)
            if ((u * TEAM + lane) * TR_WIDE < width) f(u, (u * TEAM + lane) * TR_WIDE);
        for (int c = (HELD * TEAM + lane) * TR_WIDE; c < width; c += TEAM * TR_WIDE) f(-1, c);
    }
};

/* What a thread holds of a matrix, all on its way before any is used. */
template <int TEAM, int HELD> struct held {
    const team<TEAM, HELD> &w;
    const tr_mat &t;
    tr_raw r[HELD];
    __device__ held(const team<TEAM, HELD> &where, const tr_mat &what) : w(where), t(what), r()
    {
#pragma unroll
        for (int u = 0; u < HELD; u++)
            if ((u * TEAM + w.lane) * TR_WIDE < w.width) tr_fetch8(r[u], t, w.row, w.at + (u * TEAM + w.lane) * TR_WIDE, w.n((u * TEAM + w.lane) * TR_WIDE));
    }
    __device__ void get(float (&x)[TR_WIDE], int u, int c) const
    {
        if (u >= 0) tr_widen8(x, r[u], t.dtype);
        else w.get(x, t, c);
    }
};

#define NORM_KERNEL template <int TEAM, int HELD> static __global__ __launch_bounds__(TR_BLOCK)

NORM_KERNEL void rms_norm_kernel(tr_mat y, float *r, tr_mat x, tr_mat g, float eps, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM, HELD> w(rows, x.cols / g.cols, g.cols);
    held<TEAM, HELD> hx(w, x);
    float sum = 0;
    w.each([&](int u, int c) {
        float v[TR_WIDE];
        hx.get(v, u, c);
        EIGHT sum = fmaf(v[k], v[k], sum);
    });
    float ri = 1 / sqrtf(tr_team_sum<TEAM>(sum, s.part) / (float)g.cols + eps);
    if (!w.lane && w.width) r[w.i] = ri;
    w.each([&](int u, int c) {
        float v[TR_WIDE], gain[TR_WIDE];
        hx.get(v, u, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT v[k] = v[k] * ri * gain[k];
        w.put(y, c, v);
    });
}

/* r: of rows and groups. */
struct rms_norm_rebuild_rule {
    tr_mat y, x, g;
    const float *stat;
    RULE
    {
        int64_t groups = x.cols / g.cols, row = groups == 1 ? r : r / groups, at = groups == 1 ? c : r % groups * g.cols + c;
        float v[TR_WIDE], gain[TR_WIDE], ri = stat[r];
        tr_get8(v, x, row, at, n);
        tr_get8(gain, g, 0, c, n);
        EIGHT v[k] = v[k] * ri * gain[k];
        tr_put8(y, row, at, n, v);
    }
};

/* dx may be dy: a thread reads its elements before it writes them. */
NORM_KERNEL void rms_norm_backward_kernel(tr_mat dx, int acc, tr_mat dy, tr_mat x, const float *r, tr_mat g, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM, HELD> w(rows, x.cols / g.cols, g.cols);
    held<TEAM, HELD> hx(w, x), hd(w, dy);
    float ri = w.width ? r[w.i] : 0, sum = 0;
    w.each([&](int u, int c) {
        float v[TR_WIDE], d[TR_WIDE], gain[TR_WIDE];
        hx.get(v, u, c);
        hd.get(d, u, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT sum = fmaf(d[k] * gain[k], v[k], sum);
    });
    float mean = tr_team_sum<TEAM>(sum, s.part) / (float)g.cols * ri;
    w.each([&](int u, int c) {
        float v[TR_WIDE], d[TR_WIDE], gain[TR_WIDE], old[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        if (acc) w.get(old, dx, c);
        hx.get(v, u, c);
        hd.get(d, u, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT old[k] += ri * (d[k] * gain[k] - v[k] * ri * mean);
        w.put(dx, c, old);
    });
}

/* stat[row] = mean, 1 / sqrt(var + eps); the variance from the differences, as the CPU's. */
NORM_KERNEL void layer_norm_kernel(tr_mat y, float *stat, tr_mat x, tr_mat g, tr_mat b, float eps, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM, HELD> w(rows, 1, x.cols);
    held<TEAM, HELD> hx(w, x);
    float sum = 0, squares = 0;
    w.each([&](int u, int c) {
        float v[TR_WIDE];
        hx.get(v, u, c);
        EIGHT sum += v[k];
    });
    float mean = tr_team_sum<TEAM>(sum, s.part) / (float)x.cols;
    w.each([&](int u, int c) {
        float v[TR_WIDE];
        hx.get(v, u, c);
        EIGHT {
            float d = k < w.n(c) ? v[k] - mean : 0;
            squares = fmaf(d, d, squares);
        }
    });
    float rstd = 1 / sqrtf(tr_team_sum<TEAM>(squares, s.part) / (float)x.cols + eps);
    if (!w.lane && w.width) stat[2 * w.i] = mean, stat[2 * w.i + 1] = rstd;
    w.each([&](int u, int c) {
        float v[TR_WIDE], gain[TR_WIDE], bias[TR_WIDE];
        hx.get(v, u, c);
        tr_get8(gain, g, 0, c, w.n(c));
        tr_get8(bias, b, 0, c, w.n(c));
        EIGHT v[k] = (v[k] - mean) * rstd * gain[k] + bias[k];
        w.put(y, c, v);
    });
}

struct layer_norm_rebuild_rule {
    tr_mat y, x, g, b;
    const float *stat;
    RULE
    {
        float v[TR_WIDE], gain[TR_WIDE], bias[TR_WIDE], mean = stat[2 * r], rstd = stat[2 * r + 1];
        tr_get8(v, x, r, c, n);
        tr_get8(gain, g, 0, c, n);
        tr_get8(bias, b, 0, c, n);
        EIGHT v[k] = (v[k] - mean) * rstd * gain[k] + bias[k];
        tr_put8(y, r, c, n, v);
    }
};

NORM_KERNEL void layer_norm_backward_kernel(tr_mat dx, int acc, tr_mat dy, tr_mat x, const float *stat, tr_mat g, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM, HELD> w(rows, 1, x.cols);
    held<TEAM, HELD> hx(w, x), hd(w, dy);
    float mean = w.width ? stat[2 * w.i] : 0, rstd = w.width ? stat[2 * w.i + 1] : 0, plain = 0, along = 0;
    w.each([&](int u, int c) {
        float v[TR_WIDE], d[TR_WIDE], gain[TR_WIDE];
        hx.get(v, u, c);
        hd.get(d, u, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT {
            d[k] *= gain[k];   /* 0 beyond the row */
            plain += d[k];
            along = fmaf(d[k], (v[k] - mean) * rstd, along);
        }
    });
    float a = tr_team_sum<TEAM>(plain, s.part) / (float)x.cols, b = tr_team_sum<TEAM>(along, s.part) / (float)x.cols;
    w.each([&](int u, int c) {
        float v[TR_WIDE], d[TR_WIDE], gain[TR_WIDE], old[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        if (acc) w.get(old, dx, c);
        hx.get(v, u, c);
        hd.get(d, u, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT old[k] += rstd * (d[k] * gain[k] - a - (v[k] - mean) * rstd * b);
        w.put(dx, c, old);
    });
}

/* Sums over rows, in three steps that each go in order: a part of the rows belongs to a block, whose teams take its rows in turn; the
 * teams' sums are added; the parts' sums are added to what is there. */
enum sum_of { BIAS, RMS_GAIN, LAYER_GAIN };
enum { MOST_PARTS = 256, MOST_SUMS = 1 << 20 };
static __device__ float part_sums[MOST_SUMS];   /* [parts][width]: of the call under way, thus one stream at a time */
struct columns_shared { float part[TR_BLOCK][TR_WIDE + 1]; };

/* lanes: threads side by side in a row, a power of 2. */
template <int OF>
static __global__ __launch_bounds__(TR_BLOCK) void columns_kernel(int64_t width, int lanes, int64_t rows_each, tr_mat dy, tr_mat x, const float *stat)
{
    columns_shared &s = tr_shared<columns_shared>();
    int lane = (int)threadIdx.x % lanes, teams = TR_BLOCK / lanes;
    int64_t c = ((int64_t)blockIdx.x * lanes + lane) * TR_WIDE, groups = dy.cols / width, rows = dy.rows * groups, begin = blockIdx.y * rows_each;
    int64_t end = begin + rows_each < rows ? begin + rows_each : rows;
    int n = width - c < TR_WIDE ? (int)(width - c) : (int)TR_WIDE;
    float sum[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    if (c < width)
#pragma unroll 4
        for (int64_t i = begin + (int)threadIdx.x / lanes; i < end; i += teams) {
            int64_t row = groups == 1 ? i : i / groups, at = groups == 1 ? 0 : i % groups * width;
            float d[TR_WIDE], v[TR_WIDE];
            tr_get8(d, dy, row, at + c, n);
            if (OF != BIAS) tr_get8(v, x, row, at + c, n);
            EIGHT {
                if (OF == RMS_GAIN) d[k] = d[k] * v[k] * stat[i];
                if (OF == LAYER_GAIN) d[k] = d[k] * ((v[k] - stat[2 * i]) * stat[2 * i + 1]);
                sum[k] += d[k];
            }
        }
    EIGHT s.part[threadIdx.x][k] = sum[k];
    __syncthreads();
    int64_t first = (int64_t)blockIdx.x * lanes * TR_WIDE;
    for (int j = (int)threadIdx.x; j < lanes * TR_WIDE && first + j < width; j += TR_BLOCK) {
        float all = 0;
        for (int t = 0; t < teams; t++) all += s.part[t * lanes + j / TR_WIDE][j % TR_WIDE];
        part_sums[blockIdx.y * width + first + j] = all;
    }
}

static __global__ __launch_bounds__(TR_BLOCK) void parts_kernel(float *out, int64_t width, int parts)
{
    int64_t c = (int64_t)blockIdx.x * TR_BLOCK + threadIdx.x;
    if (c >= width) return;
    float sum = 0;
#pragma unroll 16
    for (int p = 0; p < parts; p++) sum += part_sums[p * width + c];
    out[c] += sum;
}

template <int OF> static int columns(float *out, int64_t width, tr_mat dy, tr_mat x, const float *stat, tr_cuda_stream s)
{
    int lanes = 1;
    while (lanes < 32 && lanes * TR_WIDE < width) lanes *= 2;
    int64_t rows = dy.rows * (dy.cols / width), most = MOST_SUMS / width < MOST_PARTS ? MOST_SUMS / width : (int64_t)MOST_PARTS;
    int64_t each = 4 * (TR_BLOCK / lanes);   /* rows of a part: four of each team, or more where there would be too many parts */
    if (!most) return (int)cudaErrorInvalidValue;
    if (each * most < rows) each = (rows + most - 1) / most;
    int64_t parts = (rows + each - 1) / each, across = (width + lanes * TR_WIDE - 1) / (lanes * TR_WIDE);
    int err = tr_launch(dim3((unsigned)across, (unsigned)parts), TR_BLOCK, sizeof(columns_shared), s, columns_kernel<OF>, width, lanes, each, dy, x, stat);
    return err ? err : tr_launch(dim3((unsigned)((width + TR_BLOCK - 1) / TR_BLOCK)), TR_BLOCK, 0, s, parts_kernel, out, width, parts);
}

/* The kernel for `rows` rows or groups of `width`: the smallest team that holds one in registers. */
template <class... P, class... A> static int launch_teams(int size, int64_t rows, tr_cuda_stream s, void (*kernel)(P...), A... args)
{
    int64_t each = TR_BLOCK / size;
    return tr_launch(dim3((unsigned)((rows + each - 1) / each)), TR_BLOCK, sizeof(norm_shared), s, kernel, args..., rows);
}

#define TEAMS(s, rows, width, kernel, ...) \
    ((width) <= 64 ? launch_teams(8, rows, s, kernel<8, 1>, __VA_ARGS__) : (width) <= 128 ? launch_teams(16, rows, s, kernel<16, 1>, __VA_ARGS__) : \
     (width) <= 256 ? launch_teams(32, rows, s, kernel<32, 1>, __VA_ARGS__) : (width) <= TR_NARROW ? launch_teams(32, rows, s, kernel<32, 4>, __VA_ARGS__) : \
     (width) <= 4096 ? launch_teams(TR_BLOCK, rows, s, kernel<TR_BLOCK, 2>, __VA_ARGS__) : launch_teams(TR_BLOCK, rows, s, kernel<TR_BLOCK, 4>, __VA_ARGS__))

extern "C" {

int tr_cuda_rms_norm(tr_mat y, float *r, tr_mat x, tr_mat g, float eps, tr_cuda_stream s)
{
    return TEAMS(s, x.rows * (x.cols / g.cols), g.cols, rms_norm_kernel, y, r, x, g, eps);
}

int tr_cuda_rms_norm_rebuild(tr_mat y, const float *r, tr_mat x, tr_mat g, tr_cuda_stream s)
{
    return tr_each(x.rows * (x.cols / g.cols), g.cols, s, rms_norm_rebuild_rule{ y, x, g, r });
}

int tr_cuda_rms_norm_backward(tr_mat dx, int acc, float *dg, tr_mat dy, tr_mat x, const float *r, tr_mat g, tr_cuda_stream s)
{
    int err = dg ? columns<RMS_GAIN>(dg, g.cols, dy, x, r, s) : 0;   /* first: dx may overwrite dy */
    return err ? err : TEAMS(s, x.rows * (x.cols / g.cols), g.cols, rms_norm_backward_kernel, dx, acc, dy, x, r, g);
}

int tr_cuda_layer_norm(tr_mat y, float *stat, tr_mat x, tr_mat g, tr_mat b, float eps, tr_cuda_stream s)
{
    return TEAMS(s, x.rows, x.cols, layer_norm_kernel, y, stat, x, g, b, eps);
}

int tr_cuda_layer_norm_rebuild(tr_mat y, const float *stat, tr_mat x, tr_mat g, tr_mat b, tr_cuda_stream s)
{
    return tr_each(x.rows, x.cols, s, layer_norm_rebuild_rule{ y, x, g, b, stat });
}

int tr_cuda_layer_norm_backward(tr_mat dx, int acc, float *dg, float *db, tr_mat dy, tr_mat x, const float *stat, tr_mat g, tr_cuda_stream s)
{
    int err = dg ? columns<LAYER_GAIN>(dg, g.cols, dy, x, stat, s) : 0;
    if (!err && db) err = columns<BIAS>(db, g.cols, dy, x, stat, s);
    return err ? err : TEAMS(s, x.rows, x.cols, layer_norm_backward_kernel, dx, acc, dy, x, stat, g);
}

int tr_cuda_bias_backward(float *db, tr_mat dy, tr_cuda_stream s) { return columns<BIAS>(db, dy.cols, dy, dy, nullptr, s); }

}
