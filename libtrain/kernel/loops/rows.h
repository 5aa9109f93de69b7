/* Rows of any float type as f32, a chunk at a time: what all loops share. */
#ifndef TR_LOOPS_ROWS_H
#define TR_LOOPS_ROWS_H
#include "libtrain/kernel/int8.h"
#include "libtrain/tensor/tensor.h"
#include <string.h>

enum { TR_CHUNK = 256 };

static inline float tr_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023, u;
    if (e == 31) u = sign | 0x7f800000u | (m << 13);
    else if (e) u = sign | ((e + 112) << 23) | (m << 13);
    else {
        float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline float tr_load(const struct tr_tensor *t, int64_t row, int64_t col)
{
    int64_t i = row * t->ld + col;
    switch (t->dtype) {
    case TR_F32: return ((const float *)t->data)[i];
    case TR_BF16: return tr_bf16_to_f32(((const uint16_t *)t->data)[i]);
    case TR_F16: return tr_f16_to_f32(((const uint16_t *)t->data)[i]);
    case TR_INT8: return (float)(((const int8_t *)t->data)[i] - t->quant.zero[row * tr_groups(t) + col / t->quant.group]) * t->quant.scale[row * tr_groups(t) + col / t->quant.group];
    default: return 0;
    }
}

/* out[k] = t[row][col + k] for k < n. */
static inline void tr_load_row(float *out, const struct tr_tensor *t, int64_t row, int64_t col, int64_t n)
{
    if (t->dtype == TR_F32) memcpy(out, (const float *)t->data + row * t->ld + col, (size_t)n * 4);
    else if (t->dtype == TR_BF16) {
        const uint16_t *x = (const uint16_t *)t->data + row * t->ld + col;
        for (int64_t k = 0; k < n; k++) out[k] = tr_bf16_to_f32(x[k]);
    } else if (t->dtype == TR_INT8) { /* one scale and zero for a stretch of the row */
        const int8_t *x = (const int8_t *)t->data + row * t->ld + col, *zero = t->quant.zero + row * tr_groups(t);
        const float *scale = t->quant.scale + row * tr_groups(t);
        for (int64_t k = 0, end; k < n; k = end) {
            int64_t g = (col + k) / t->quant.group;
            end = (g + 1) * t->quant.group - col < n ? (g + 1) * t->quant.group - col : n;
            for (int64_t i = k; i < end; i++) out[i] = (float)(x[i] - zero[g]) * scale[g];
        }
    } else for (int64_t k = 0; k < n; k++) out[k] = tr_load(t, row, col + k);
}

/* One group of int8 weights from f32, to nearest. */
static inline void tr_store_group(struct tr_tensor *t, int64_t row, int64_t g, const float *x, int64_t n)
{
    int64_t at = row * tr_groups(t) + g;
    struct tr_grid8 grid = tr_grid8(x, n, false);
    t->quant.scale[at] = grid.scale;
    t->quant.zero[at] = (int8_t)grid.zero;
    tr_grid8_nearest((int8_t *)t->data + row * t->ld + g * t->quant.group, x, n, grid);
}

static inline void tr_store_row(struct tr_tensor *t, int64_t row, int64_t col, int64_t n, const float *x)
{
    if (t->dtype == TR_F32) memcpy((float *)t->data + row * t->ld + col, x, (size_t)n * 4);
    else {
        uint16_t *y = (uint16_t *)t->data + row * t->ld + col;
        for (int64_t k = 0; k < n; k++) y[k] = tr_f32_to_bf16(x[k]);
    }
}

/* Sum of a b (of a when b is NULL) in double: sixteen lanes, added in a fixed order. */
static inline double dot(const float *restrict a, const float *restrict b, int64_t n)
{
    double lane[16] = { 0 }, sum = 0;
    int64_t k = 0;
    for (; k + 16 <= n; k += 16)
        for (int j = 0; j < 16; j++) lane[j] += (double)a[k + j] * (b ? (double)b[k + j] : 1.0);
    for (int j = 0; k < n; k++, j++) lane[j] += (double)a[k] * (b ? (double)b[k] : 1.0);
    for (int j = 0; j < 16; j++) sum += lane[j];
    return sum;
}

#define TR_FOR_CHUNKS(col, n, cols) for (int64_t col = 0, n; n = (cols) - col < TR_CHUNK ? (cols) - col : TR_CHUNK, col < (cols); col += TR_CHUNK)

#endif
