/* The kernel table over the launches: tensors become plain matrices, the first failed call is remembered by name. */
#include "libtrain/kernel/cuda/table_impl.h"
#include <math.h>
#include <stdio.h>

typedef struct tr_tensor T;
static char first_error[160];
static tr_cuda_stream stream;
static bool each_waits, no_host_memory;

const char *tr_cuda_error(void) { return *first_error ? first_error : NULL; }

void tr_cuda_use(tr_cuda_stream s, bool waits, bool checks)
{
    stream = s;
    each_waits = waits;
    no_host_memory = checks;
}

tr_cuda_stream tr_cuda_queue(void) { return stream; }

void tr_cuda_check(int error, const char *entry)
{
    if (!error && each_waits) error = tr_cuda_wait(stream);
    if (error && !*first_error) snprintf(first_error, sizeof first_error, "%s: %s", entry, tr_cuda_text(error));
}

void *tr_cuda_at(const struct tr_tensor *t)
{
    if (no_host_memory && t->data && !tr_cuda_is_device(t->data)) tr_cuda_check(1, "a tensor in host memory");
    return t->data;
}

struct tr_mat tr_cuda_mat(const struct tr_tensor *t)
{
    static const signed char dtype[TR_DTYPES] = { [TR_F32] = TR_CUDA_F32, [TR_BF16] = TR_CUDA_BF16, [TR_F16] = TR_CUDA_F16,
                                                  [TR_I32] = TR_CUDA_I32, [TR_U8] = TR_CUDA_U8, [TR_INT8] = TR_CUDA_INT8, [TR_F64] = -1 };
    if (!t) return (struct tr_mat){ 0 };
    if (dtype[t->dtype] < 0) tr_cuda_check(1, "a type that devices do not have");
    bool scaled = t->dtype == TR_INT8;
    return (struct tr_mat){ tr_cuda_at(t), t->quant.scale, t->quant.zero, tr_rows(t), tr_cols(t), t->ld, t->quant.group, scaled ? tr_groups(t) : 0, dtype[t->dtype] };
}

#define mat tr_cuda_mat
#define at tr_cuda_at

static void cu_write(T *t, const void *host) { RUN(write, mat(t), host); }
static void cu_read(const T *t, void *host) { RUN(read, mat(t), host); }
static void cu_copy(T *y, const T *x) { RUN(copy, mat(y), mat(x)); }
static void cu_fill(T *y, float v) { RUN(fill, mat(y), v); }
static void cu_random_normal(T *y, struct tr_key key, float std) { RUN(random_normal, mat(y), key, std); }
static void cu_add(T *y, const T *a, const T *b) { RUN(add, mat(y), mat(a), mat(b)); }
static void cu_axpy(T *y, float alpha, const T *x) { RUN(axpy, mat(y), alpha, mat(x)); }
static void cu_scale(T *y, float alpha) { RUN(scale, mat(y), alpha); }

static void cu_sum_squares_panels(double *sum, const T *x, const int64_t *begin, int n)
{
    RUN(total, sum, mat(x), begin, n, 1);
    for (int k = 0; k < n && *first_error; k++) sum[k] = (double)NAN;
}

static double cu_sum_squares(const T *x)
{
    double sum;
    cu_sum_squares_panels(&sum, x, (int64_t[]){ 0, tr_rows(x) }, 1);
    return sum;
}

static bool cu_all_finite(const T *x)
{
    double bad = 0;
    RUN(total, &bad, mat(x), ((int64_t[]){ 0, tr_rows(x) }), 1, 0);
    return !*first_error && bad == 0;
}

static void cu_embed(T *y, const T *w, const T *ids, bool acc) { RUN(embed, mat(y), mat(w), at(ids), acc); }
static void cu_embed_backward(T *dw, const T *dy, const T *ids) { RUN(embed_backward, mat(dw), mat(dy), at(ids)); }
static void cu_scatter(T *y, const T *x, const T *rows) { RUN(scatter, mat(y), mat(x), at(rows)); }
static void cu_rms_norm(T *y, T *r, const T *x, const T *g, float eps) { RUN(rms_norm, mat(y), at(r), mat(x), mat(g), eps); }
static void cu_rms_norm_rebuild(T *y, const T *r, const T *x, const T *g) { RUN(rms_norm_rebuild, mat(y), at(r), mat(x), mat(g)); }

static void cu_rms_norm_backward(T *dx, bool acc, T *dg, const T *dy, const T *x, const T *r, const T *g)
{
    RUN(rms_norm_backward, mat(dx), acc, dg ? at(dg) : NULL, mat(dy), mat(x), at(r), mat(g));
}

static void cu_layer_norm(T *y, T *stat, const T *x, const T *g, const T *b, float eps)
{
    RUN(layer_norm, mat(y), at(stat), mat(x), mat(g), mat(b), eps);
}

static void cu_layer_norm_rebuild(T *y, const T *stat, const T *x, const T *g, const T *b)
{
    RUN(layer_norm_rebuild, mat(y), at(stat), mat(x), mat(g), mat(b));
}

static void cu_layer_norm_backward(T *dx, bool acc, T *dg, T *db, const T *dy, const T *x, const T *stat, const T *g)
{
    RUN(layer_norm_backward, mat(dx), acc, dg ? at(dg) : NULL, db ? at(db) : NULL, mat(dy), mat(x), at(stat), mat(g));
}

static void cu_rope(T *x, const T *cs, const T *pos, int64_t heads, bool inverse) { RUN(rope, mat(x), mat(cs), at(pos), heads, inverse); }
static void cu_swiglu(T *a, const T *gu) { RUN(swiglu, mat(a), mat(gu)); }
static void cu_swiglu_backward(T *dgu, const T *da, const T *gu) { RUN(swiglu_backward, mat(dgu), mat(da), mat(gu)); }
static void cu_gelu(T *y, const T *x) { RUN(gelu, mat(y), mat(x)); }
static void cu_gelu_backward(T *dx, const T *dy, const T *x) { RUN(gelu_backward, mat(dx), mat(dy), mat(x)); }
static void cu_add_bias(T *y, const T *b) { RUN(add_bias, mat(y), mat(b)); }
static void cu_bias_backward(T *db, const T *dy) { RUN(bias_backward, at(db), mat(dy)); }

static struct tr_cuda_heads heads(const struct tr_attention *a, const struct tr_layout *layout)
{
    struct tr_cuda_heads h = { a->heads, a->kv_heads, a->head_dim, 0, NULL, a->scale };
    if (layout) h.n_seqs = layout->n_seqs, h.seq = layout->seq;
    return h;
}

static void cu_attention(T *o, T *lse, const T *qkv, const struct tr_layout *layout, const struct tr_attention *a)
{
    struct tr_cuda_heads h = heads(a, layout);
    RUN(attention, mat(o), at(lse), lse->ld, mat(qkv), at(&layout->start_N), &h);
}

static void cu_attention_backward(T *dqkv, const T *dout, const T *o, const T *lse, const T *qkv, const struct tr_layout *layout,
                                  const struct tr_attention *a, T *work)
{
    struct tr_cuda_heads h = heads(a, layout);
    RUN(attention_backward, mat(dqkv), mat(dout), mat(o), at(lse), lse->ld, mat(qkv), at(&layout->start_N), &h, at(work));
}

static size_t cu_attention_work(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward)
{
    return backward ? (size_t)(layout->n_tokens * a->heads) * sizeof(float) : 0;   /* the sum of do o of each row and head */
}

static void cu_attention_cached(T *o, const T *q, const T *k, const T *v, int64_t first, int64_t n, const struct tr_attention *a)
{
    struct tr_cuda_heads h = heads(a, NULL);
    RUN(attention_cached, mat(o), mat(q), mat(k), mat(v), first, n, &h);
}

static void cu_cross_entropy(T *loss, T *dlogits, const T *logits, const T *target, float scale)
{
    RUN(cross_entropy, at(loss), mat(dlogits), mat(logits), at(target), scale);
}

const struct tr_kernels tr_cuda_table = {
    .name = "cuda", .write = cu_write, .read = cu_read, .copy = cu_copy, .fill = cu_fill, .random_normal = cu_random_normal, .add = cu_add, .axpy = cu_axpy,
    .scale = cu_scale, .sum_squares = cu_sum_squares, .sum_squares_panels = cu_sum_squares_panels, .all_finite = cu_all_finite, .embed = cu_embed,
    .embed_backward = cu_embed_backward, .scatter = cu_scatter, .rms_norm = cu_rms_norm, .rms_norm_rebuild = cu_rms_norm_rebuild,
    .rms_norm_backward = cu_rms_norm_backward, .layer_norm = cu_layer_norm, .layer_norm_rebuild = cu_layer_norm_rebuild,
    .layer_norm_backward = cu_layer_norm_backward, .rope = cu_rope, .swiglu = cu_swiglu, .swiglu_backward = cu_swiglu_backward,
    .gelu = cu_gelu, .gelu_backward = cu_gelu_backward, .add_bias = cu_add_bias, .bias_backward = cu_bias_backward,
    .attention = cu_attention, .attention_backward = cu_attention_backward, .attention_work = cu_attention_work,
    .attention_cached = cu_attention_cached, .cross_entropy = cu_cross_entropy,
};
