/* Softmax cross entropy in plain C: the specification. A row is read for its maximum, for its sum (sixteen f32
 * lanes, as PyTorch's; see x86/cross_entropy_tmpl.h) and for its gradient; row by row, so that a row stays in the cache and the gradient may overwrite it. */
#include "libtrain/kernel/attention.h"
#include <math.h>

static void put(struct tr_tensor *t, int64_t row, int64_t col, float x)
{
    int64_t i = row * t->ld + col;
    if (t->dtype == TR_F32) ((float *)t->data)[i] = x;
    else ((uint16_t *)t->data)[i] = tr_f32_to_bf16(x);
}

static float row_log_sum(const float *x_V, int64_t cols)
{
    float max = -INFINITY, lane[16] = { 0 }, sum = 0;
    for (int64_t v = 0; v < cols; v++) max = x_V[v] > max || isnan(x_V[v]) ? x_V[v] : max;
    for (int64_t v = 0; v < cols; v++) lane[v % 16] += expf(x_V[v] - max);
    for (int k = 0; k < 16; k++) sum += lane[k];
    return max + logf(sum);
}

void tr_ref_cross_entropy(struct tr_tensor *loss_N, struct tr_tensor *dlogits_NV, const struct tr_tensor *logits_NV,
                          const struct tr_tensor *target_N, float scale)
{
    int64_t cols = tr_cols(logits_NV);
    float *loss = loss_N->data;
    const int32_t *target = target_N->data;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(logits_NV); i++) {
        const float *x_V = (const float *)logits_NV->data + i * logits_NV->ld;
        if (target[i] < 0) {
            loss[i] = 0;
            for (int64_t v = 0; dlogits_NV && v < cols; v++) put(dlogits_NV, i, v, 0);
            continue;
        }
        float log_sum = row_log_sum(x_V, cols);
        loss[i] = log_sum - x_V[target[i]];
        for (int64_t v = 0; dlogits_NV && v < cols; v++)
            put(dlogits_NV, i, v, (expf(x_V[v] - log_sum) - (v == target[i] ? 1.0f : 0.0f)) * scale);
    }
}

void tr_ref_softmax(struct tr_tensor *q_NV, struct tr_tensor *lse_N, struct tr_tensor *hit_N, const struct tr_tensor *logits_NV,
                    const struct tr_tensor *target_N)
{
    int64_t cols = tr_cols(logits_NV);
    const int32_t *target = target_N->data;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(logits_NV); i++) {
        const float *x_V = (const float *)logits_NV->data + i * logits_NV->ld;
        float log_sum = row_log_sum(x_V, cols);
        ((float *)lse_N->data)[i] = log_sum;
        ((float *)hit_N->data)[i] = target[i] < 0 ? 0 : x_V[target[i]];
        for (int64_t v = 0; q_NV && v < cols; v++) put(q_NV, i, v, expf(x_V[v] - log_sum));
    }
}
