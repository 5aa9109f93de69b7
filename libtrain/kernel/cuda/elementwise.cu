/* Elementwise kernels, conversions, and sums over a whole tensor. */
#include "libtrain/kernel/cuda/device.cuh"

static __global__ void copy_kernel(tr_mat y, tr_mat x)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < y.cols) tr_put(y, r, c, tr_get(x, r, c));
}

/* A warp finds the grid of a group (kernel/int8.h) and rounds to nearest: the same bits as the CPU's. */
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
    float range = high - low, scale = (range > 1e-5f ? range : 1e-5f) / 254, steps = -low / scale;
    int zero = (int)((steps + 12582912.0f) - 12582912.0f);
    zero += ((float)zero < steps) - 128;
    if (!lane) {
        y.scale[r * y.groups + g] = scale;
        y.zero[r * y.groups + g] = (signed char)zero;
    }
    for (int64_t c = first + lane; c < end; c += 32) {
        int code = (int)((tr_get(x, r, c) / scale + 12582912.0f) - 12582912.0f) + zero;
        static_cast<signed char *>(y.data)[r * y.ld + c] = (signed char)(code > 127 ? 127 : code < -128 ? -128 : code);
    }
}

static __global__ void fill_kernel(tr_mat y, float value)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < y.cols) tr_put(y, r, c, value);
}

static __global__ void add_kernel(tr_mat y, tr_mat a, tr_mat b)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < y.cols) tr_put(y, r, c, tr_get(a, r, c) + tr_get(b, r, c));
}

static __global__ void axpy_kernel(tr_mat y, float alpha, tr_mat x)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < y.cols) tr_put(y, r, c, tr_get(y, r, c) + alpha * tr_get(x, r, c));
}

static __global__ void scale_kernel(tr_mat y, float alpha)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < y.cols) tr_put(y, r, c, tr_get(y, r, c) * alpha);
}

static __global__ void add_bias_kernel(tr_mat y, tr_mat b)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c < y.cols) tr_put(y, r, c, tr_get(y, r, c) + tr_get(b, 0, c));
}

static __global__ void swiglu_kernel(tr_mat a, tr_mat gu)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c >= a.cols) return;
    float g = tr_get(gu, r, c);
    tr_put(a, r, c, tr_get(gu, r, a.cols + c) * (g / (1 + expf(-g))));
}

static __global__ void swiglu_backward_kernel(tr_mat dgu, tr_mat da, tr_mat gu)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c >= da.cols) return;
    float g = tr_get(gu, r, c), u = tr_get(gu, r, da.cols + c), d = tr_get(da, r, c);
    float s = 1 / (1 + expf(-g)), silu = g * s;
    tr_put(dgu, r, c, d * u * (s + silu * (1 - s)));
    tr_put(dgu, r, da.cols + c, d * silu);
}

#define GELU_A 0.7978845608028654f   /* sqrt(2/pi) */
#define GELU_B 0.044715f

static __global__ void gelu_kernel(tr_mat y, tr_mat x)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c >= y.cols) return;
    float u = tr_get(x, r, c);
    tr_put(y, r, c, 0.5f * u * (1 + tanhf(GELU_A * (u + GELU_B * u * u * u))));
}

static __global__ void gelu_backward_kernel(tr_mat dx, tr_mat dy, tr_mat x)
{
    int64_t r = blockIdx.x, c = TR_COLUMN;
    if (c >= dx.cols) return;
    float u = tr_get(x, r, c), t = tanhf(GELU_A * (u + GELU_B * u * u * u));
    float slope = 0.5f * (1 + t) + 0.5f * u * (1 - t * t) * GELU_A * (1 + 3 * GELU_B * u * u);
    tr_put(dx, r, c, tr_get(dy, r, c) * slope);
}

struct total_shared { double part[TR_BLOCK / 32]; };

/* Part p: rows p, p + parts, ... in order; a thread owns every 256th column. */
static __global__ void total_kernel(double *out, tr_mat x, int64_t parts, int squares)
{
    total_shared &s = tr_shared<total_shared>();
    double sum = 0;
    for (int64_t r = blockIdx.x; r < x.rows; r += parts)
        for (int64_t c = threadIdx.x; c < x.cols; c += TR_BLOCK) {
            float v = tr_get(x, r, c);
            if (squares) sum += (double)v * (double)v;
            else sum += (__float_as_uint(v) & 0x7f800000u) == 0x7f800000u;
        }
    sum = tr_block_sum(sum, s.part);
    if (!threadIdx.x) out[blockIdx.x] = sum;
}

#define ELEMENTWISE(name, t, ...) return tr_launch(tr_grid((t).rows, (t).cols), TR_BLOCK, 0, s, name##_kernel, __VA_ARGS__)

extern "C" {

int tr_cuda_copy(tr_mat y, tr_mat x, tr_cuda_stream s)
{
    if (y.dtype == TR_CUDA_INT8) {
        dim3 grid((unsigned)y.rows, (unsigned)((y.groups + TR_BLOCK / 32 - 1) / (TR_BLOCK / 32)));
        return tr_launch(grid, TR_BLOCK, 0, s, quantise_kernel, y, x);
    }
    ELEMENTWISE(copy, y, y, x);
}

int tr_cuda_fill(tr_mat y, float value, tr_cuda_stream s) { ELEMENTWISE(fill, y, y, value); }
int tr_cuda_add(tr_mat y, tr_mat a, tr_mat b, tr_cuda_stream s) { ELEMENTWISE(add, y, y, a, b); }
int tr_cuda_axpy(tr_mat y, float alpha, tr_mat x, tr_cuda_stream s) { ELEMENTWISE(axpy, y, y, alpha, x); }
int tr_cuda_scale(tr_mat y, float alpha, tr_cuda_stream s) { ELEMENTWISE(scale, y, y, alpha); }
int tr_cuda_add_bias(tr_mat y, tr_mat b, tr_cuda_stream s) { ELEMENTWISE(add_bias, y, y, b); }
int tr_cuda_swiglu(tr_mat a, tr_mat gu, tr_cuda_stream s) { ELEMENTWISE(swiglu, a, a, gu); }
int tr_cuda_swiglu_backward(tr_mat dgu, tr_mat da, tr_mat gu, tr_cuda_stream s) { ELEMENTWISE(swiglu_backward, da, dgu, da, gu); }
int tr_cuda_gelu(tr_mat y, tr_mat x, tr_cuda_stream s) { ELEMENTWISE(gelu, y, y, x); }
int tr_cuda_gelu_backward(tr_mat dx, tr_mat dy, tr_mat x, tr_cuda_stream s) { ELEMENTWISE(gelu_backward, dx, dx, dy, x); }

int tr_cuda_total(double *out, tr_mat x, int squares, tr_cuda_stream s)
{
    static double *device;   /* 8 KiB, taken at the first call */
    double part[TR_CUDA_PARTS];
    int64_t parts = x.rows < TR_CUDA_PARTS ? x.rows : (int64_t)TR_CUDA_PARTS;
    int err = device ? 0 : (int)cudaMalloc(reinterpret_cast<void **>(&device), sizeof part);
    if (!err) err = tr_launch(dim3((unsigned)parts), TR_BLOCK, sizeof(total_shared), s, total_kernel, device, x, parts, squares);
    if (!err) err = (int)cudaMemcpyAsync(part, device, (size_t)parts * sizeof *part, cudaMemcpyDeviceToHost, (cudaStream_t)s);
    if (!err) err = (int)cudaStreamSynchronize((cudaStream_t)s);
    *out = 0;
    for (int64_t p = 0; !err && p < parts; p++) *out += part[p];
    return err;
}

static size_t width(int dtype) { return dtype == TR_CUDA_INT8 ? 1 : dtype == TR_CUDA_BF16 || dtype == TR_CUDA_F16 ? 2 : 4; }

int tr_cuda_write(tr_mat y, const void *host, tr_cuda_stream s)
{
    size_t row = (size_t)y.cols * width(y.dtype);
    int err = (int)cudaMemcpy2DAsync(y.data, (size_t)y.ld * width(y.dtype), host, row, row, (size_t)y.rows, cudaMemcpyHostToDevice, (cudaStream_t)s);
    return err ? err : (int)cudaStreamSynchronize((cudaStream_t)s);
}

int tr_cuda_read(tr_mat x, void *host, tr_cuda_stream s)
{
    size_t row = (size_t)x.cols * width(x.dtype);
    int err = (int)cudaMemcpy2DAsync(host, row, x.data, (size_t)x.ld * width(x.dtype), row, (size_t)x.rows, cudaMemcpyDeviceToHost, (cudaStream_t)s);
    return err ? err : (int)cudaStreamSynchronize((cudaStream_t)s);
}

const char *tr_cuda_text(int error) { return cudaGetErrorString((cudaError_t)error); }

}
