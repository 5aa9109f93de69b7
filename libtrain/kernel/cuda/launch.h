/* What crosses from C to CUDA: matrices as plain structs, and one function for each kernel. Every function queues its work
 * on the stream and returns a cudaError_t as int (0 is success). What each computes is written in kernel/kernel.h. Grids and
 * the split of sums depend on the shape alone, so the bits are those of any GPU. Included from C17 and from C++. */
#ifndef TR_CUDA_LAUNCH_H
#define TR_CUDA_LAUNCH_H
#include "libtrain/kernel/rounding.h"
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum tr_cuda_dtype { TR_CUDA_F32, TR_CUDA_BF16, TR_CUDA_F16, TR_CUDA_INT8, TR_CUDA_I32, TR_CUDA_U8 /* to and from the host alone */ };

/* A tensor on the device; scale, zero and group only for int8: value = scale[row][col / group] (int8 - zero[row][col / group]). */
struct tr_mat { void *data; float *scale; signed char *zero; int64_t rows, cols, ld, group, groups; int dtype; };

typedef void *tr_cuda_stream;   /* a cudaStream_t; NULL is the default stream */

enum { TR_CUDA_PARTS = 1024, TR_CUDA_PANELS = 8 };  /* a sum over rows of a tensor is at most so many parts, added on the host in order */

/* host: dense rows of the same dtype. Both return when the bytes are there. */
int tr_cuda_write(struct tr_mat y, const void *host, tr_cuda_stream s);
int tr_cuda_read(struct tr_mat x, void *host, tr_cuda_stream s);
int tr_cuda_wait(tr_cuda_stream s);   /* until all work on it is done */
const char *tr_cuda_text(int error);
int tr_cuda_is_device(const void *p);   /* memory of the device */

/* c = alpha op(a) op(b) + beta c; ta, tb: transposed. */
int tr_cuda_plain_product(struct tr_mat c, struct tr_mat a, int ta, struct tr_mat b, int tb, float alpha, float beta, tr_cuda_stream s);

int tr_cuda_copy(struct tr_mat y, struct tr_mat x, tr_cuda_stream s);
int tr_cuda_fill(struct tr_mat y, float value, tr_cuda_stream s);
int tr_cuda_random_normal(struct tr_mat y, struct tr_key key, float std, tr_cuda_stream s);
int tr_cuda_add(struct tr_mat y, struct tr_mat a, struct tr_mat b, tr_cuda_stream s);
int tr_cuda_axpy(struct tr_mat y, float alpha, struct tr_mat x, tr_cuda_stream s);
int tr_cuda_scale(struct tr_mat y, float alpha, tr_cuda_stream s);
/* Of each of n panels, rows [begin[k], begin[k + 1]): the sum of squares, else the number of elements that are not finite. Waits for the stream. */
int tr_cuda_total(double *out, struct tr_mat x, const int64_t *begin, int n, int squares, tr_cuda_stream s);

int tr_cuda_swiglu(struct tr_mat a, struct tr_mat gu, tr_cuda_stream s);
int tr_cuda_swiglu_backward(struct tr_mat dgu, struct tr_mat da, struct tr_mat gu, tr_cuda_stream s);
int tr_cuda_gelu(struct tr_mat y, struct tr_mat x, tr_cuda_stream s);
int tr_cuda_gelu_backward(struct tr_mat dx, struct tr_mat dy, struct tr_mat x, tr_cuda_stream s);
int tr_cuda_add_bias(struct tr_mat y, struct tr_mat b, tr_cuda_stream s);
int tr_cuda_bias_backward(float *db, struct tr_mat dy, tr_cuda_stream s);

int tr_cuda_embed(struct tr_mat y, struct tr_mat w, const int32_t *ids, int acc, tr_cuda_stream s);
int tr_cuda_embed_backward(struct tr_mat dw, struct tr_mat dy, const int32_t *ids, tr_cuda_stream s);
int tr_cuda_scatter(struct tr_mat y, struct tr_mat x, const int32_t *rows, tr_cuda_stream s);
int tr_cuda_rope(struct tr_mat x, struct tr_mat cs, const int32_t *pos, int64_t heads, int inverse, tr_cuda_stream s);

int tr_cuda_rms_norm(struct tr_mat y, float *r, struct tr_mat x, struct tr_mat g, float eps, tr_cuda_stream s);
int tr_cuda_rms_norm_rebuild(struct tr_mat y, const float *r, struct tr_mat x, struct tr_mat g, tr_cuda_stream s);
int tr_cuda_rms_norm_backward(struct tr_mat dx, int acc, float *dg, struct tr_mat dy, struct tr_mat x, const float *r,
                              struct tr_mat g, tr_cuda_stream s);
int tr_cuda_layer_norm(struct tr_mat y, float *stat, struct tr_mat x, struct tr_mat g, struct tr_mat b, float eps, tr_cuda_stream s);
int tr_cuda_layer_norm_rebuild(struct tr_mat y, const float *stat, struct tr_mat x, struct tr_mat g, struct tr_mat b, tr_cuda_stream s);
int tr_cuda_layer_norm_backward(struct tr_mat dx, int acc, float *dg, float *db, struct tr_mat dy, struct tr_mat x,
                                const float *stat, struct tr_mat g, tr_cuda_stream s);

/* Heads, and where each of n_seqs sequences begins (seq: n_seqs + 1 entries in host memory). scale > 0, tokens below 2^31. */
struct tr_cuda_heads { int64_t heads, kv_heads, head_dim, n_seqs; const int64_t *seq; float scale; };

/* delta: work memory of the backward pass, f32 [tokens, heads]. */
int tr_cuda_attention(struct tr_mat o, float *lse, int64_t lse_ld, struct tr_mat qkv, const int32_t *start,
                      const struct tr_cuda_heads *a, tr_cuda_stream s);
int tr_cuda_attention_backward(struct tr_mat dqkv, struct tr_mat dout, struct tr_mat o, const float *lse, int64_t lse_ld, struct tr_mat qkv,
                               const int32_t *start, const struct tr_cuda_heads *a, float *delta, tr_cuda_stream s);
int tr_cuda_attention_cached(struct tr_mat o, struct tr_mat q, struct tr_mat k, struct tr_mat v, int64_t first, int64_t n,
                             const struct tr_cuda_heads *a, tr_cuda_stream s);

/* dlogits.data may be NULL. */
int tr_cuda_cross_entropy(float *loss, struct tr_mat dlogits, struct tr_mat logits, const int32_t *target, float scale, tr_cuda_stream s);

/* ---- kernel/update.h. A matrix without data stands for NULL. Weights are f32, bf16 or int8 in groups of 128 (not flat). */
struct tr_cuda_step { float before, rate, after; struct tr_noise noise; struct tr_mat draws; int published_grid; };
struct tr_cuda_moments { float beta1, keep1, beta2, keep2, root, eps; struct tr_noise noise; };   /* keep: 1 - beta, rounded once */
struct tr_cuda_signs { float step_m, step_g, keep_m, keep_g; struct tr_noise noise; };
struct tr_cuda_velocity { float decay, momentum, keep; int nesterov, first; };
struct tr_cuda_direction { struct tr_key key, mask; double zeros; int64_t first; const float *given; };
enum { TR_CUDA_8BIT = 256 };   /* elements of a block of codes */
struct tr_cuda_books { float with_sign[256], positive[256]; };

int tr_cuda_apply(struct tr_mat w, struct tr_mat g, struct tr_cuda_step a, tr_cuda_stream s);
int tr_cuda_apply_scaled(struct tr_mat w, struct tr_mat g, const float *f, int axis, struct tr_cuda_step a, tr_cuda_stream s);
int tr_cuda_adam(struct tr_mat w, struct tr_mat m, struct tr_mat v, struct tr_mat g, struct tr_cuda_moments h, struct tr_cuda_step a, tr_cuda_stream s);
int tr_cuda_adam_direction(struct tr_mat u, struct tr_mat m, struct tr_mat v, struct tr_mat g, struct tr_cuda_moments h, tr_cuda_stream s);
int tr_cuda_sgd(struct tr_mat w, struct tr_mat b, struct tr_mat g, struct tr_cuda_velocity h, struct tr_cuda_step a, tr_cuda_stream s);
int tr_cuda_norms(float *n, struct tr_mat x, int axis, tr_cuda_stream s);
int tr_cuda_sign(struct tr_mat w, struct tr_mat m, struct tr_mat g, struct tr_cuda_signs h, struct tr_cuda_step a, tr_cuda_stream s);
int tr_cuda_clamp(struct tr_mat g, float limit, tr_cuda_stream s);
int tr_cuda_momentum(struct tr_mat g, struct tr_mat m, float keep_m, float keep_g, float out_g, float out_m, tr_cuda_stream s);
int tr_cuda_scale_outer(struct tr_mat g, const float *row, const float *col, tr_cuda_stream s);
int tr_cuda_root_direction(struct tr_mat g, struct tr_mat v, float beta, float eps, tr_cuda_stream s);
int tr_cuda_adam_8bit(struct tr_mat g, uint8_t *m, uint8_t *v, float *m_most, float *v_most, const struct tr_cuda_books *books, struct tr_cuda_moments h, tr_cuda_stream s);
int tr_cuda_sign_scale(struct tr_mat g, float factor, tr_cuda_stream s);
int tr_cuda_pick(struct tr_mat low, struct tr_mat g, const int32_t *index, int axis, tr_cuda_stream s);
int tr_cuda_place(struct tr_mat g, struct tr_mat low, const int32_t *index, int axis, float factor, tr_cuda_stream s);
int tr_cuda_lion_direction(struct tr_mat u, struct tr_mat m, struct tr_cuda_signs h, tr_cuda_stream s);
int tr_cuda_cut_step(struct tr_mat g, struct tr_mat h, float scale, float eps, tr_cuda_stream s);
int tr_cuda_cut_ratio(struct tr_mat g, struct tr_mat h, float eps, float most, tr_cuda_stream s);
int tr_cuda_move(struct tr_mat w, float before, float scale, struct tr_cuda_direction z, tr_cuda_stream s);
int tr_cuda_weigh(struct tr_mat g, float scale, struct tr_cuda_direction z, tr_cuda_stream s);
int tr_cuda_mean_squares(struct tr_mat h, struct tr_mat g, float keep, float take, tr_cuda_stream s);

#ifdef __cplusplus
}
#endif
#endif
