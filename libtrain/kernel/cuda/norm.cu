/* RMSNorm and LayerNorm, and sums over rows (gradients of gains and biases). A row, or a group of one where x is wider than
 * the gain, belongs to a warp or to a block, whichever its width asks for; a thread has every 32nd or 256th stretch of eight columns. */
#include "libtrain/kernel/cuda/device.cuh"

struct norm_shared { float part[TR_BLOCK / 32]; };
enum { HELD_UNITS = 4 /* stretches that a thread keeps in registers; further ones are read again */ };

/* Where a team works: row i of all groups. */
template <int TEAM> struct team {
    int64_t i, row, at, width;   /* row and first column of its group */
    int lane;
    __device__ team(int64_t groups, int64_t w) : i((int64_t)blockIdx.x * (TR_BLOCK / TEAM) + threadIdx.x / TEAM), row(i / groups), at(i % groups * w), width(w), lane((int)threadIdx.x % TEAM) {}
    __device__ int64_t col(int unit) const { return (int64_t)(unit * TEAM + lane) * TR_WIDE; }
    __device__ int n(int64_t c) const { return width - c < TR_WIDE ? (int)(width - c) : (int)TR_WIDE; }
    __device__ void get(float (&x)[TR_WIDE], const tr_mat &t, int64_t c) const { tr_get8(x, t, row, at + c, n(c)); }
    __device__ void put(const tr_mat &t, int64_t c, const float (&x)[TR_WIDE]) const { tr_put8(t, row, at + c, n(c), x); }
};

/* f(x, c) for every stretch of a thread, columns from c on, x [8] its numbers of `t`: kept by the first of two walks, read again by the
 * second where there are too many. */
template <int TEAM> struct held {
    const team<TEAM> &w;
    const tr_mat &t;
    float x[HELD_UNITS][TR_WIDE];
    __device__ held(const team<TEAM> &where, const tr_mat &what) : w(where), t(what) {}

    template <class F> __device__ void first(F f)
    {
#pragma unroll
        for (int u = 0; u < HELD_UNITS; u++)
            if (w.col(u) < w.width) w.get(x[u], t, w.col(u));
#pragma unroll
        for (int u = 0; u < HELD_UNITS; u++)
            if (w.col(u) < w.width) f(x[u], w.col(u));
        rest(f);
    }

    template <class F> __device__ void again(F f)
    {
#pragma unroll
        for (int u = 0; u < HELD_UNITS; u++)
            if (w.col(u) < w.width) f(x[u], w.col(u));
        rest(f);
    }

    template <class F> __device__ void rest(F f)
    {
        for (int u = HELD_UNITS; w.col(u) < w.width; u++) {
            float y[TR_WIDE];
            w.get(y, t, w.col(u));
            f(y, w.col(u));
        }
    }
};


template <int TEAM> static __global__ __launch_bounds__(TR_BLOCK) void rms_norm_kernel(tr_mat y, float *r, tr_mat x, tr_mat g, float eps, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM> w(x.cols / g.cols, g.cols);
    if (w.i >= rows) return;   /* a whole team */
    held<TEAM> h(w, x);
    float sum = 0;
    h.first([&](float (&v)[TR_WIDE], int64_t) { EIGHT sum = fmaf(v[k], v[k], sum); });
    float ri = 1 / sqrtf(tr_team_sum<TEAM>(sum, s.part) / (float)w.width + eps);
    if (!w.lane) r[w.i] = ri;
    h.again([&](float (&v)[TR_WIDE], int64_t c) {
        float gain[TR_WIDE];
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
template <int TEAM> static __global__ __launch_bounds__(TR_BLOCK) void rms_norm_backward_kernel(tr_mat dx, int acc, tr_mat dy, tr_mat x, const float *r, tr_mat g, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM> w(x.cols / g.cols, g.cols);
    if (w.i >= rows) return;
    held<TEAM> h(w, x);
    float ri = r[w.i], sum = 0;
    h.first([&](float (&v)[TR_WIDE], int64_t c) {
        float d[TR_WIDE], gain[TR_WIDE];
        w.get(d, dy, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT sum = fmaf(d[k] * gain[k], v[k], sum);
    });
    float mean = tr_team_sum<TEAM>(sum, s.part) / (float)w.width * ri;
    h.again([&](float (&v)[TR_WIDE], int64_t c) {
        float d[TR_WIDE], gain[TR_WIDE], old[TR_WIDE];
        w.get(d, dy, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT old[k] = 0;
        if (acc) w.get(old, dx, c);
        EIGHT old[k] += ri * (d[k] * gain[k] - v[k] * ri * mean);
        w.put(dx, c, old);
    });
}

/* stat[row] = mean, 1 / sqrt(var + eps); the variance from the differences, as the CPU's. */
template <int TEAM> static __global__ __launch_bounds__(TR_BLOCK) void layer_norm_kernel(tr_mat y, float *stat, tr_mat x, tr_mat g, tr_mat b, float eps, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM> w(1, x.cols);
    if (w.i >= rows) return;
    held<TEAM> h(w, x);
    float sum = 0, squares = 0;
    h.first([&](float (&v)[TR_WIDE], int64_t) { EIGHT sum += v[k]; });
    float mean = tr_team_sum<TEAM>(sum, s.part) / (float)w.width;
    h.again([&](float (&v)[TR_WIDE], int64_t c) {
        EIGHT {
            float d = k < w.n(c) ? v[k] - mean : 0;
            squares = fmaf(d, d, squares);
        }
    });
    float rstd = 1 / sqrtf(tr_team_sum<TEAM>(squares, s.part) / (float)w.width + eps);
    if (!w.lane) stat[2 * w.i] = mean, stat[2 * w.i + 1] = rstd;
    h.again([&](float (&v)[TR_WIDE], int64_t c) {
        float gain[TR_WIDE], bias[TR_WIDE];
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

template <int TEAM> static __global__ __launch_bounds__(TR_BLOCK) void layer_norm_backward_kernel(tr_mat dx, int acc, tr_mat dy, tr_mat x, const float *stat, tr_mat g, int64_t rows)
{
    norm_shared &s = tr_shared<norm_shared>();
    team<TEAM> w(1, x.cols);
    if (w.i >= rows) return;
    held<TEAM> h(w, x);
    float mean = stat[2 * w.i], rstd = stat[2 * w.i + 1], plain = 0, along = 0;
    h.first([&](float (&v)[TR_WIDE], int64_t c) {
        float d[TR_WIDE], gain[TR_WIDE];
        w.get(d, dy, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT {
            d[k] *= gain[k];   /* 0 beyond the row */
            plain += d[k];
            along = fmaf(d[k], (v[k] - mean) * rstd, along);
        }
    });
    float a = tr_team_sum<TEAM>(plain, s.part) / (float)w.width, b = tr_team_sum<TEAM>(along, s.part) / (float)w.width;
    h.again([&](float (&v)[TR_WIDE], int64_t c) {
        float d[TR_WIDE], gain[TR_WIDE], old[TR_WIDE];
        w.get(d, dy, c);
        tr_get8(gain, g, 0, c, w.n(c));
        EIGHT old[k] = 0;
        if (acc) w.get(old, dx, c);
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

/* The kernel for rows or groups of `width`: a warp has one, or a block where they are wide. */
#define TEAMS(s, rows, width, kernel, ...) \
    ((width) > TR_NARROW ? tr_launch(dim3((unsigned)(rows)), TR_BLOCK, sizeof(norm_shared), s, kernel<TR_BLOCK>, __VA_ARGS__, rows) : \
     tr_launch(dim3((unsigned)(((rows) + TR_BLOCK / 32 - 1) / (TR_BLOCK / 32))), TR_BLOCK, sizeof(norm_shared), s, kernel<32>, __VA_ARGS__, rows))

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
