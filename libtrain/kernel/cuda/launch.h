/* What crosses from C to CUDA: matrices as plain structs, and one function for each kernel. Every function queues its work
 * on the stream and returns a cudaError_t as int (0 is success). What each computes is written in kernel/kernel.h. Grids and
 * the split of sums depend on the shape alone, so the bits are those of any GPU. Included from C17 and from C++. */
#ifndef TR_CUDA_LAUNCH_H
#define TR_CUDA_LAUNCH_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum tr_cuda_dtype { TR_CUDA_F32, TR_CUDA_BF16, TR_CUDA_F16, TR_CUDA_INT8, TR_CUDA_I32 };

/* A tensor on the device; scale, zero and group only for int8: value = scale[row][col / group] (int8 - zero[row][col / group]). */
struct tr_mat { void *data; float *scale; signed char *zero; int64_t rows, cols, ld, group, groups; int dtype; };

typedef void *tr_cuda_stream;   /* a cudaStream_t; NULL is the default stream */

enum { TR_CUDA_PARTS = 1024 };  /* a sum over a whole tensor is at most so many parts, added on the host in order */

/* host: dense rows of the same dtype. Both return when the bytes are there. */
int tr_cuda_write(struct tr_mat y, const void *host, tr_cuda_stream s);
int tr_cuda_read(struct tr_mat x, void *host, tr_cuda_stream s);
int tr_cuda_wait(tr_cuda_stream s);   /* until all work on it is done */
const char *tr_cuda_text(int error);

/* c = alpha op(a) op(b) + beta c; ta, tb: transposed. */
int tr_cuda_plain_product(struct tr_mat c, struct tr_mat a, int ta, struct tr_mat b, int tb, float alpha, float beta, tr_cuda_stream s);

int tr_cuda_copy(struct tr_mat y, struct tr_mat x, tr_cuda_stream s);
int tr_cuda_fill(struct tr_mat y, float value, tr_cuda_stream s);
int tr_cuda_add(struct tr_mat y, struct tr_mat a, struct tr_mat b, tr_cuda_stream s);
int tr_cuda_axpy(struct tr_mat y, float alpha, struct tr_mat x, tr_cuda_stream s);
int tr_cuda_scale(struct tr_mat y, float alpha, tr_cuda_stream s);
/* squares: the sum of squares; else the number of elements that are not finite. Waits for the stream. */
int tr_cuda_total(double *out, struct tr_mat x, int squares, tr_cuda_stream s);

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

#ifdef __cplusplus
}
#endif
#endif
