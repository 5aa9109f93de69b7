/* Softmax cross entropy over vectors of lanes; compiled once per instruction set with TABLE set to its name. A row is
 * read three times (maximum, sum, gradient) while it stays in the second cache; two exps per logit and no stored
 * exponentials, so that the gradient is rounded once and may overwrite the logits. */
#include "libtrain/kernel/attention.h"
#include "libtrain/kernel/x86/lanes.h"
#include <math.h>

#define NAME2(isa, name) tr_##isa##_##name
#define NAME1(isa, name) NAME2(isa, name)
#define NAME(name) NAME1(TABLE, name)

static float row_max(const float *x_V, int64_t n)
{
    vf m[4] = { v_set(-INFINITY), v_set(-INFINITY), v_set(-INFINITY), v_set(-INFINITY) };
    int64_t v = 0;
    for (; v + 4 * LANES <= n; v += 4 * LANES)
        for (int i = 0; i < 4; i++) m[i] = v_max(m[i], v_load(x_V + v + i * LANES));
    for (; v < n; v += LANES) m[0] = v_max(m[0], v_load_head(x_V + v, n - v < LANES ? n - v : LANES, -INFINITY));
    return v_largest(v_max(v_max(m[0], m[1]), v_max(m[2], m[3])));
}

/* Sum of exp(x - max) in sixteen f32 lanes, each from the first to the last element, whatever the vectors' width. That
 * is how PyTorch sums on AVX-512: over a vocabulary of 49152 its rounding is 8e-6 of the loss and moves gradients of
 * norm gains by 4e-4, so a more exact sum would not agree with transformers in float32. */
static float row_sum(const float *x_V, int64_t n, float max)
{
    enum { SUMS = 16 / LANES };
    const vf c = v_set(LOG2E), shift = v_set(max);
    vf s[SUMS];
    for (int i = 0; i < SUMS; i++) s[i] = v_zero();
    for (int64_t v = 0; v < n; v += 16)
        for (int i = 0; i < SUMS && v + i * LANES < n; i++) {
            int64_t left = n - v - i * LANES;
            vf x = left >= LANES ? v_load(x_V + v + i * LANES) : v_load_head(x_V + v + i * LANES, left, -INFINITY);
            s[i] = v_add(s[i], v_exp2(v_mul(v_sub(x, shift), c), 6));
        }
    float sum = v_sum(s[0]);
    for (int i = 1; i < SUMS; i++) sum += v_sum(s[i]);
    return sum;
}

static float row_log_sum(const float *x_V, int64_t n)
{
    float max = row_max(x_V, n);
    return max + logf(row_sum(x_V, n, max));
}

/* d = exp(x - log_sum) scale; the caller takes the target's share off. */
static void row_gradient(void *d_V, enum tr_dtype dtype, const float *x_V, int64_t n, float log_sum, float scale)
{
    const vf c = v_set(LOG2E), shift = v_set(log_sum), s = v_set(scale);
    int64_t v = 0;
    for (; v + LANES <= n; v += LANES) {
        vf p = v_mul(v_exp2(v_mul(v_sub(v_load(x_V + v), shift), c), 6), s);
        if (dtype == TR_F32) v_store((float *)d_V + v, p);
        else v_store_bf16((uint16_t *)d_V + v, p);
    }
    if (v < n) {
        float tail[LANES];
        v_store(tail, v_mul(v_exp2(v_mul(v_sub(v_load_head(x_V + v, n - v, 0), shift), c), 6), s));
        for (int64_t i = v; i < n; i++) {
            if (dtype == TR_F32) ((float *)d_V)[i] = tail[i - v];
            else ((uint16_t *)d_V)[i] = tr_f32_to_bf16(tail[i - v]);
        }
    }
}

void NAME(cross_entropy)(struct tr_tensor *loss_N, struct tr_tensor *dlogits_NV, const struct tr_tensor *logits_NV,
                         const struct tr_tensor *target_N, float scale)
{
    int64_t cols = tr_cols(logits_NV);
    float *loss = loss_N->data;
    const int32_t *target = target_N->data;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tr_rows(logits_NV); i++) {
        const float *x_V = (const float *)logits_NV->data + i * logits_NV->ld;
        size_t width = dlogits_NV ? tr_dtype_size(dlogits_NV->dtype) : 0;
        char *d_V = dlogits_NV ? (char *)dlogits_NV->data + (size_t)(i * dlogits_NV->ld) * width : NULL;
        if (target[i] < 0) {
            loss[i] = 0;
            if (d_V) memset(d_V, 0, (size_t)cols * width);
            continue;
        }
        float log_sum = row_log_sum(x_V, cols), hit = x_V[target[i]];
        loss[i] = log_sum - hit;
        if (!d_V) continue;
        row_gradient(d_V, dlogits_NV->dtype, x_V, cols, log_sum, scale);
        float d = (expf(hit - log_sum) - 1) * scale;    /* one rounding, and no cancelling of rounded parts */
        if (dlogits_NV->dtype == TR_F32) ((float *)d_V)[target[i]] = d;
        else ((uint16_t *)d_V)[target[i]] = tr_f32_to_bf16(d);
    }
}

void NAME(softmax)(struct tr_tensor *q_NV, struct tr_tensor *lse_N, struct tr_tensor *hit_N, const struct tr_tensor *logits_NV,
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
        if (q_NV) row_gradient((char *)q_NV->data + (size_t)(i * q_NV->ld) * tr_dtype_size(q_NV->dtype), q_NV->dtype, x_V, cols, log_sum, 1);
    }
}
