/* Elementwise kernels, conversions, and sums over a whole tensor. */
#include "libtrain/kernel/cuda/device.cuh"
#include <string.h>

/* A warp finds the grid of a group (kernel/rounding.h) and rounds to nearest: the same bits as the CPU's. */
static __global__ void quantise_kernel(tr_mat y, tr_mat x)
{
    int64_t r = blockIdx.x, g = (int64_t)blockIdx.y * (TR_BLOCK / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (g >= y.groups) return;   /* the whole warp */
    int64_t first = g * y.group, end = first + y.group < y.cols ? first + y.group : y.cols;
    float low = 0, high = 0;
    for (int64_t c = first + lane; c < end; c += 32) {
        float v = tr_get(x, r, c);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    for (int o = 16; o; o /= 2) {
        float a = __shfl_xor_sync(0xffffffffu, low, o), b = __shfl_xor_sync(0xffffffffu, high, o);
        low = a < low ? a : low;
        high = b > high ? b : high;
    }
    struct tr_grid8 grid = tr_grid8_between(low, high, false);
    if (!lane) {
        y.scale[r * y.groups + g] = grid.scale;
        y.zero[r * y.groups + g] = (signed char)grid.zero;
    }
    for (int64_t c = first + lane; c < end; c += 32) static_cast<signed char *>(y.data)[r * y.ld + c] = tr_code8_nearest(tr_get(x, r, c), grid);
}

/* Each rule has its operands as members. */

struct copy_rule {
    tr_mat y, x;
    RULE
    {
        float v[TR_WIDE];
        tr_get8_any(v, x, r, c, n);
        tr_put8(y, r, c, n, v);
    }
};

struct fill_rule {
    tr_mat y;
    float value;
    RULE
    {
        float v[TR_WIDE];
        EIGHT v[k] = value;
        tr_put8(y, r, c, n, v);
    }
};

struct add_rule {
    tr_mat y, a, b;
    RULE
    {
        tr_raw first = {}, second = {};
        float u[TR_WIDE], v[TR_WIDE];
        tr_fetch8(first, a, r, c, n);
        tr_fetch8(second, b, r, c, n);
        tr_widen8(u, first, a.dtype);
        tr_widen8(v, second, b.dtype);
        EIGHT u[k] += v[k];
        tr_put8(y, r, c, n, u);
    }
};

struct bias_rule {
    tr_mat y, b;
    RULE
    {
        float u[TR_WIDE], v[TR_WIDE];
        tr_get8(u, y, r, c, n);
        tr_get8(v, b, 0, c, n);
        EIGHT u[k] += v[k];
        tr_put8(y, r, c, n, u);
    }
};

struct swiglu_rule {
    tr_mat a, gu;
    RULE
    {
        tr_raw gate = {}, up = {};
        float g[TR_WIDE], u[TR_WIDE];
        tr_fetch8(gate, gu, r, c, n);
        tr_fetch8(up, gu, r, a.cols + c, n);
        tr_widen8(g, gate, gu.dtype);
        tr_widen8(u, up, gu.dtype);
        EIGHT u[k] *= g[k] / (1 + expf(-g[k]));
        tr_put8(a, r, c, n, u);
    }
};

struct swiglu_backward_rule {
    tr_mat dgu, da, gu;
    RULE
    {
        tr_raw gate = {}, up = {}, down = {};
        float g[TR_WIDE], u[TR_WIDE], d[TR_WIDE];
        tr_fetch8(gate, gu, r, c, n);
        tr_fetch8(up, gu, r, da.cols + c, n);
        tr_fetch8(down, da, r, c, n);
        tr_widen8(g, gate, gu.dtype);
        tr_widen8(u, up, gu.dtype);
        tr_widen8(d, down, da.dtype);
        EIGHT {
            float s = 1 / (1 + expf(-g[k])), silu = g[k] * s;
            g[k] = d[k] * u[k] * (s + silu * (1 - s));
            u[k] = d[k] * silu;
        }
        tr_put8(dgu, r, c, n, g);
        tr_put8(dgu, r, da.cols + c, n, u);
    }
};

struct plus_times { float alpha; __device__ void operator()(float &y, float x) const { y += alpha * x; } };
struct times { float alpha; __device__ void operator()(float &y) const { y *= alpha; } };

#define GELU_A 0.7978845608028654f   /* sqrt(2/pi) */
#define GELU_B 0.044715f

struct gelu_of { __device__ void operator()(float &x) const { x = 0.5f * x * (1 + tanhf(GELU_A * (x + GELU_B * x * x * x))); } };

struct gelu_slope {
    __device__ void operator()(float &d, float x) const
    {
        float t = tanhf(GELU_A * (x + GELU_B * x * x * x));
        d *= 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * GELU_A * (1 + 3 * GELU_B * x * x);
    }
};

struct total_shared { double part[TR_BLOCK / 32]; };

/* Panels of rows, each in parts as its own size asks for. Part p: every so-manieth run of 256 stretches of eight columns. */
struct total_panels { int64_t begin[TR_CUDA_PANELS + 1], parts[TR_CUDA_PANELS]; };
static __global__ __launch_bounds__(TR_BLOCK) void total_kernel(double *out, tr_mat x, total_panels panels, int squares)
{
    total_shared &s = tr_shared<total_shared>();
    int64_t top = panels.begin[blockIdx.y], parts = panels.parts[blockIdx.y], each = (x.cols + TR_WIDE - 1) / TR_WIDE, units = (panels.begin[blockIdx.y + 1] - top) * each;
    if (blockIdx.x >= parts) return;   /* the whole block: another panel has more */
    double sum = 0;
    for (int64_t unit = (int64_t)blockIdx.x * TR_BLOCK + threadIdx.x; unit < units; unit += parts * TR_BLOCK) {
        int64_t r = units >> 32 ? unit / each : (int64_t)((unsigned)unit / (unsigned)each), c = (unit - r * each) * TR_WIDE;
        float v[TR_WIDE];
        tr_get8_any(v, x, top + r, c, x.cols - c < TR_WIDE ? (int)(x.cols - c) : (int)TR_WIDE);
        EIGHT {
            if (squares) sum += (double)v[k] * (double)v[k];
            else sum += (__float_as_uint(v[k]) & 0x7f800000u) == 0x7f800000u;
        }
    }
    sum = tr_block_sum(sum, s.part);
    if (!threadIdx.x) out[blockIdx.y * TR_CUDA_PARTS + blockIdx.x] = sum;
}

#define EACH(t, rule, ...) return tr_each((t).rows, (t).cols, s, rule{ __VA_ARGS__ })

extern "C" {

int tr_cuda_copy(tr_mat y, tr_mat x, tr_cuda_stream s)
{
    if (y.dtype == TR_CUDA_INT8) {
        dim3 grid((unsigned)y.rows, (unsigned)((y.groups + TR_BLOCK / 32 - 1) / (TR_BLOCK / 32)));
        return tr_launch(grid, TR_BLOCK, 0, s, quantise_kernel, y, x);
    }
    EACH(y, copy_rule, y, x);
}

int tr_cuda_fill(tr_mat y, float value, tr_cuda_stream s) { EACH(y, fill_rule, y, value); }
int tr_cuda_add(tr_mat y, tr_mat a, tr_mat b, tr_cuda_stream s) { EACH(y, add_rule, y, a, b); }
int tr_cuda_axpy(tr_mat y, float alpha, tr_mat x, tr_cuda_stream s) { EACH(y, tr_map2<plus_times>, y, y, x, { alpha }); }
int tr_cuda_scale(tr_mat y, float alpha, tr_cuda_stream s) { EACH(y, tr_map1<times>, y, y, { alpha }); }
int tr_cuda_add_bias(tr_mat y, tr_mat b, tr_cuda_stream s) { EACH(y, bias_rule, y, b); }
int tr_cuda_swiglu(tr_mat a, tr_mat gu, tr_cuda_stream s) { EACH(a, swiglu_rule, a, gu); }
int tr_cuda_swiglu_backward(tr_mat dgu, tr_mat da, tr_mat gu, tr_cuda_stream s) { EACH(da, swiglu_backward_rule, dgu, da, gu); }
int tr_cuda_gelu(tr_mat y, tr_mat x, tr_cuda_stream s) { EACH(y, tr_map1<gelu_of>, y, x, {}); }
int tr_cuda_gelu_backward(tr_mat dx, tr_mat dy, tr_mat x, tr_cuda_stream s) { EACH(dx, tr_map2<gelu_slope>, dx, dy, x, {}); }

/* Host memory that the device reaches without the driver's detour, for what goes back and forth in a step; taken at the first call. */
static const size_t PINNED = 1 << 20;
static int pinned(char **out)
{
    static char *p;
    int err = p ? 0 : (int)cudaMallocHost(reinterpret_cast<void **>(&p), PINNED);
    *out = p;
    return err;
}

int tr_cuda_total(double *out, tr_mat x, const int64_t *begin, int n, int squares, tr_cuda_stream s)
{
    char *p;
    int64_t most = 0;
    total_panels panels = {};
    int err = pinned(&p);
    double *part = reinterpret_cast<double *>(p);
    for (int k = 0; k < n; k++) {
        int64_t blocks = ((begin[k + 1] - begin[k]) * ((x.cols + TR_WIDE - 1) / TR_WIDE) + TR_BLOCK - 1) / TR_BLOCK;
        panels.parts[k] = blocks < TR_CUDA_PARTS ? blocks : (int64_t)TR_CUDA_PARTS;
        panels.begin[k] = begin[k], panels.begin[k + 1] = begin[k + 1];
        most = panels.parts[k] > most ? panels.parts[k] : most;
    }
    if (!err) err = tr_launch(dim3((unsigned)most, (unsigned)n), TR_BLOCK, sizeof(total_shared), s, total_kernel, part, x, panels, squares);
    if (!err) err = (int)cudaStreamSynchronize((cudaStream_t)s);
    for (int k = 0; k < n; k++) {
        out[k] = 0;
        for (int64_t i = 0; !err && i < panels.parts[k]; i++) out[k] += part[k * TR_CUDA_PARTS + i];
    }
    return err;
}

static size_t width(int dtype) { return dtype == TR_CUDA_INT8 || dtype == TR_CUDA_U8 ? 1 : dtype == TR_CUDA_BF16 || dtype == TR_CUDA_F16 ? 2 : 4; }

/* Rows between the device and dense rows of the host, a piece at a time: some whole rows, or a part of a long one. */
static int move_rows(tr_mat x, char *host, bool in, tr_cuda_stream s)
{
    size_t row = (size_t)x.cols * width(x.dtype), pitch = (size_t)x.ld * width(x.dtype), rows = (size_t)x.rows;
    if (row == pitch) row = pitch = row * rows, rows = rows > 0;
    size_t piece = row < PINNED ? row : PINNED, each = row && row < PINNED ? PINNED / row : 1;
    char *p;
    int err = pinned(&p);
    for (size_t r = 0; r < rows; r += each)
        for (size_t c = 0; c < row && !err; c += piece) {
            size_t n = rows - r < each ? rows - r : each, some = row - c < piece ? row - c : piece;
            char *there = static_cast<char *>(x.data) + r * pitch + c, *here = host + r * row + c;
            if (in) memcpy(p, here, n * some);
            err = (int)cudaMemcpy2DAsync(in ? there : p, in ? pitch : some, in ? p : there, in ? some : pitch, some, n, cudaMemcpyDefault, (cudaStream_t)s);
            if (!err) err = (int)cudaStreamSynchronize((cudaStream_t)s);
            if (!err && !in) memcpy(here, p, n * some);
        }
    return err;
}

int tr_cuda_write(tr_mat y, const void *host, tr_cuda_stream s) { return move_rows(y, static_cast<char *>(const_cast<void *>(host)), true, s); }
int tr_cuda_read(tr_mat x, void *host, tr_cuda_stream s) { return move_rows(x, static_cast<char *>(host), false, s); }

int tr_cuda_wait(tr_cuda_stream s) { return (int)cudaStreamSynchronize((cudaStream_t)s); }

int tr_cuda_is_device(const void *p)
{
    cudaPointerAttributes a = {};
    return cudaPointerGetAttributes(&a, p) == cudaSuccess && a.type == cudaMemoryTypeDevice;
}

const char *tr_cuda_text(int error) { return cudaGetErrorString((cudaError_t)error); }

}
