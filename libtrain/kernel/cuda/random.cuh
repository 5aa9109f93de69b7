/* Random numbers of a stretch of eight elements: base/normal.h's, bit for bit. */
#ifndef TR_CUDA_RANDOM_CUH
#define TR_CUDA_RANDOM_CUH
#include "libtrain/base/normal.h"
#include "libtrain/kernel/cuda/device.cuh"

/* x[k] = std * number first + k of the stream. */
static __device__ inline void tr_normals8(float (&x)[TR_WIDE], struct tr_key key, int64_t first, double std)
{
    double even, odd;
    if (first % 2 == 0) {
#pragma unroll
        for (int k = 0; k < TR_WIDE; k += 2) {
            tr_normal_pair(key, (uint64_t)(first + k) / 2, &even, &odd);
            x[k] = (float)(std * even), x[k + 1] = (float)(std * odd);
        }
        return;
    }
#pragma unroll
    for (int k = -1; k < TR_WIDE; k += 2) {
        tr_normal_pair(key, (uint64_t)(first + k) / 2, &even, &odd);
        if (k >= 0) x[k] = (float)(std * even);
        if (k + 1 < TR_WIDE) x[k + 1] = (float)(std * odd);
    }
}

/* tr_uniform. */
static __device__ inline double tr_uniform_at(struct tr_key key, int64_t index)
{
    uint32_t w[4];
    tr_philox_inline(w, key, (uint64_t)index / 4);
    return (index % 4 == 0 ? w[0] : index % 4 == 1 ? w[1] : index % 4 == 2 ? w[2] : w[3]) * 0x1p-32;
}

#endif
