/* Causal attention in plain C: the specification. Two passes per query row and no work memory: the scores of a row are
 * computed again wherever they are needed. Each sum has one fixed order, so the bits do not depend on the number of
 * threads. All sums f32. */
#include "libtrain/kernel/attention.h"
#include <assert.h>
#include <math.h>

static float get(const struct tr_tensor *t, int64_t row, int64_t col)
{
    int64_t i = row * t->ld + col;
    return t->dtype == TR_F32 ? ((const float *)t->data)[i] : tr_bf16_to_f32(((const uint16_t *)t->data)[i]);
}

static void get_row(float *x_D, const struct tr_tensor *t, int64_t row, int64_t col, int64_t n)
{
    for (int64_t d = 0; d < n; d++) x_D[d] = get(t, row, col + d);
}

static void put_row(struct tr_tensor *t, int64_t row, int64_t col, const float *x_D, int64_t n)
{
    int64_t i = row * t->ld + col;
    for (int64_t d = 0; d < n; d++) {
        if (t->dtype == TR_F32) ((float *)t->data)[i + d] = x_D[d];
        else ((uint16_t *)t->data)[i + d] = tr_f32_to_bf16(x_D[d]);
    }
}

static float dot(const float *x_D, const struct tr_tensor *t, int64_t row, int64_t col, int64_t n)
{
    float sum = 0;
    for (int64_t d = 0; d < n; d++) sum += x_D[d] * get(t, row, col + d);
    return sum;
}

static void add(float *y_D, float alpha, const struct tr_tensor *t, int64_t row, int64_t col, int64_t n)
{
    for (int64_t d = 0; d < n; d++) y_D[d] += alpha * get(t, row, col + d);
}

/* One query row over keys [first, n) whose k and v start at the given columns; returns the log of the sum. */
static float attend(float *o_D, const float *q_D, const struct tr_tensor *k, int64_t k_col, const struct tr_tensor *v,
                    int64_t v_col, int64_t first, int64_t n, int64_t dim, float scale)
{
    float max = -INFINITY, sum = 0;
    for (int64_t j = first; j < n; j++) max = fmaxf(max, scale * dot(q_D, k, j, k_col, dim));
    for (int64_t d = 0; d < dim; d++) o_D[d] = 0;
    for (int64_t j = first; j < n; j++) {
        float p = expf(scale * dot(q_D, k, j, k_col, dim) - max);
        sum += p;
        add(o_D, p, v, j, v_col, dim);
    }
    for (int64_t d = 0; d < dim; d++) o_D[d] /= sum;
    return max + logf(sum);
}

void tr_ref_attention(struct tr_tensor *o_NHD, struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ,
                      const struct tr_layout *layout, const struct tr_attention *a)
{
    int64_t dim = a->head_dim, group = a->heads / a->kv_heads, k_col = a->heads * dim, v_col = k_col + a->kv_heads * dim;
    const int32_t *start = layout->start_N.data;
    assert(dim <= TR_MAX_HEAD_DIM);
#pragma omp parallel for schedule(static)
    for (int64_t unit = 0; unit < layout->n_tokens * a->heads; unit++) {
        int64_t i = unit / a->heads, h = unit % a->heads, kv = h / group * dim;
        float q_D[TR_MAX_HEAD_DIM], o_D[TR_MAX_HEAD_DIM];
        get_row(q_D, qkv_NQ, i, h * dim, dim);
        float lse = attend(o_D, q_D, qkv_NQ, k_col + kv, qkv_NQ, v_col + kv, start[i], i + 1, dim, a->scale);
        put_row(o_NHD, i, h * dim, o_D, dim);
        ((float *)lse_NH->data)[i * lse_NH->ld + h] = lse;
    }
}

/* What the two backward loops share: one head of one query row. */
struct query { float q_D[TR_MAX_HEAD_DIM], do_D[TR_MAX_HEAD_DIM], lse, delta; /* delta = sum over D of do o */ };

static void get_query(struct query *s, const struct tr_tensor *do_NHD, const struct tr_tensor *o_NHD,
                      const struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, int64_t i, int64_t h, int64_t dim)
{
    get_row(s->q_D, qkv_NQ, i, h * dim, dim);
    get_row(s->do_D, do_NHD, i, h * dim, dim);
    s->lse = ((const float *)lse_NH->data)[i * lse_NH->ld + h];
    s->delta = dot(s->do_D, o_NHD, i, h * dim, dim);
}

void tr_ref_attention_backward(struct tr_tensor *dqkv_NQ, const struct tr_tensor *do_NHD, const struct tr_tensor *o_NHD,
                               const struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, const struct tr_layout *layout,
                               const struct tr_attention *a, struct tr_tensor *work)
{
    int64_t dim = a->head_dim, group = a->heads / a->kv_heads, k_col = a->heads * dim, v_col = k_col + a->kv_heads * dim;
    const int32_t *start = layout->start_N.data;
    assert(dim <= TR_MAX_HEAD_DIM);
#pragma omp parallel for schedule(static)
    for (int64_t unit = 0; unit < layout->n_tokens * a->heads; unit++) {   /* dq: keys of a query */
        int64_t i = unit / a->heads, h = unit % a->heads, kv = h / group * dim;
        struct query s;
        float dq_D[TR_MAX_HEAD_DIM] = { 0 };
        get_query(&s, do_NHD, o_NHD, lse_NH, qkv_NQ, i, h, dim);
        for (int64_t j = start[i]; j <= i; j++) {
            float p = expf(a->scale * dot(s.q_D, qkv_NQ, j, k_col + kv, dim) - s.lse);
            float ds = a->scale * p * (dot(s.do_D, qkv_NQ, j, v_col + kv, dim) - s.delta);
            add(dq_D, ds, qkv_NQ, j, k_col + kv, dim);
        }
        put_row(dqkv_NQ, i, h * dim, dq_D, dim);
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t unit = 0; unit < layout->n_seqs * a->kv_heads; unit++) {   /* dk, dv: queries of a key */
        int64_t seq = unit / a->kv_heads, kv = unit % a->kv_heads;
        for (int64_t j = layout->seq[seq]; j < layout->seq[seq + 1]; j++) {
            float dk_D[TR_MAX_HEAD_DIM] = { 0 }, dv_D[TR_MAX_HEAD_DIM] = { 0 };
            for (int64_t i = j; i < layout->seq[seq + 1]; i++) {
                for (int64_t h = kv * group; h < (kv + 1) * group && start[i] <= j; h++) {
                    struct query s;
                    get_query(&s, do_NHD, o_NHD, lse_NH, qkv_NQ, i, h, dim);
                    float p = expf(a->scale * dot(s.q_D, qkv_NQ, j, k_col + kv * dim, dim) - s.lse);
                    float ds = a->scale * p * (dot(s.do_D, qkv_NQ, j, v_col + kv * dim, dim) - s.delta);
                    add(dk_D, ds, qkv_NQ, i, h * dim, dim);
                    add(dv_D, p, do_NHD, i, h * dim, dim);
                }
            }
            put_row(dqkv_NQ, j, k_col + kv * dim, dk_D, dim);
            put_row(dqkv_NQ, j, v_col + kv * dim, dv_D, dim);
        }
    }
}

size_t tr_ref_attention_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward)
{
    return 0;
}

void tr_ref_attention_cached(struct tr_tensor *o_HD, const struct tr_tensor *q_Q, const struct tr_tensor *k_PKD,
                             const struct tr_tensor *v_PKD, int64_t first, int64_t n, const struct tr_attention *a)
{
    int64_t dim = a->head_dim, group = a->heads / a->kv_heads;
    assert(dim <= TR_MAX_HEAD_DIM);
#pragma omp parallel for schedule(static)
    for (int64_t h = 0; h < a->heads; h++) {
        int64_t kv = h / group * dim;
        float q_D[TR_MAX_HEAD_DIM], o_D[TR_MAX_HEAD_DIM];
        get_row(q_D, q_Q, 0, h * dim, dim);
        attend(o_D, q_D, k_PKD, kv, v_PKD, kv, first, n, dim, a->scale);
        put_row(o_HD, 0, h * dim, o_D, dim);
    }
}
