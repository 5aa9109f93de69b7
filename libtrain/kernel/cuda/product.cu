/* A matrix product for what cuBLASLt does not take: any types, strides and alignment. */
#include "libtrain/kernel/cuda/device.cuh"

enum { PRODUCT_TILE = 16 };
struct product_shared { float a[PRODUCT_TILE][PRODUCT_TILE + 1], b[PRODUCT_TILE][PRODUCT_TILE + 1]; };

/* A block has a tile of c; a thread adds its element over k in order. */
static __global__ void product_kernel(tr_mat c, tr_mat a, int ta, tr_mat b, int tb, float alpha, float beta)
{
    product_shared &s = tr_shared<product_shared>();
    int64_t x = threadIdx.x % PRODUCT_TILE, y = threadIdx.x / PRODUCT_TILE, row = (int64_t)blockIdx.x * PRODUCT_TILE, col = (int64_t)blockIdx.y * PRODUCT_TILE, K = ta ? a.rows : a.cols;
    float sum = 0;
    for (int64_t k = 0; k < K; k += PRODUCT_TILE) {
        s.a[y][x] = row + y < c.rows && k + x < K ? (ta ? tr_get(a, k + x, row + y) : tr_get(a, row + y, k + x)) : 0;
        s.b[y][x] = col + x < c.cols && k + y < K ? (tb ? tr_get(b, col + x, k + y) : tr_get(b, k + y, col + x)) : 0;
        __syncthreads();
        for (int i = 0; i < PRODUCT_TILE; i++) sum = fmaf(s.a[y][i], s.b[i][x], sum);
        __syncthreads();
    }
    if (row + y >= c.rows || col + x >= c.cols) return;
    tr_put(c, row + y, col + x, beta != 0 ? fmaf(beta, tr_get(c, row + y, col + x), alpha * sum) : alpha * sum);
}

extern "C" int tr_cuda_plain_product(tr_mat c, tr_mat a, int ta, tr_mat b, int tb, float alpha, float beta, tr_cuda_stream s)
{
    dim3 grid((unsigned)((c.rows + PRODUCT_TILE - 1) / PRODUCT_TILE), (unsigned)((c.cols + PRODUCT_TILE - 1) / PRODUCT_TILE));
    return tr_launch(grid, PRODUCT_TILE * PRODUCT_TILE, sizeof(product_shared), s, product_kernel, c, a, ta, b, tb, alpha, beta);
}
