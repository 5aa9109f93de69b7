/* The kernel table: the only way to the bytes of a tensor. One table per kind of machine (plain C, AVX2, AVX-512, later
 * CUDA) plus `dry`, whose functions do nothing. tr_kernels() is the table in use.
 *
 * Rules for every entry: tensors are dense or row-strided (`ld`); activations x, y, dy are f32 or bf16, all the same in
 * one call unless said; sums are accumulated in f32 or wider and split by shape only, so that the bits do not depend on
 * the number of threads; `acc` adds into the destination instead of overwriting it. Parameters (gains, biases) may be
 * f32 or bf16 whatever the activations are; their gradients (dg, db, dw) are f32 and are always accumulated (+=).
 * Shapes are checked by the callers (autograd/ops). Plain C in kernel/ref is the specification. */
#ifndef TR_KERNEL_H
#define TR_KERNEL_H
#include "libtrain/base/rng.h"
#include "libtrain/tensor/tensor.h"

/* One micro-batch's layout on the device: N tokens in n_seqs sequences one after another. */
struct tr_layout {
    int64_t n_tokens, n_seqs;
    struct tr_tensor start_N;  /* i32: index of the first token that token i may see (its document's, or its window's);
                                * start[i] <= i, and never before its sequence */
    struct tr_tensor pos_N;    /* i32: position for rope or learned positions; restarts with each document */
    const int64_t *seq;        /* host: sequence s is tokens [seq[s], seq[s+1]); n_seqs + 1 entries */
};

struct tr_attention { int64_t heads, kv_heads, head_dim; float scale; };

struct tr_kernels {
    const char *name;

    /* ---- bytes */
    void (*write)(struct tr_tensor *t, const void *host);      /* host (dense, same dtype) to tensor */
    void (*read)(const struct tr_tensor *t, void *host);
    void (*copy)(struct tr_tensor *y, const struct tr_tensor *x);   /* converts f32, bf16, f16 either way; int8 to f32/bf16 */
    void (*fill)(struct tr_tensor *y, float value);
    void (*random_normal)(struct tr_tensor *y, struct tr_key key, float std); /* element i = std * tr_normal(key, i) */

    /* ---- elementwise */
    void (*add)(struct tr_tensor *y, const struct tr_tensor *a, const struct tr_tensor *b);     /* y = a + b; may alias */
    void (*axpy)(struct tr_tensor *y, float alpha, const struct tr_tensor *x);                  /* y += alpha x, any of f32/bf16 each */
    void (*scale)(struct tr_tensor *y, float alpha);
    double (*sum_squares)(const struct tr_tensor *x);          /* in double, by fixed blocks of 4096 elements in order */
    /* Of rows [begin[k], begin[k + 1]) for k < n (1 to 8), which may be none: the bits of sum_squares on those rows. */
    void (*sum_squares_panels)(double *sum, const struct tr_tensor *x, const int64_t *begin, int n);
    bool (*all_finite)(const struct tr_tensor *x);

    /* ---- layers */
    /* y[i] (+)= w[ids[i]]; w f32, bf16 or int8 */
    void (*embed)(struct tr_tensor *y_NC, const struct tr_tensor *w_VC, const struct tr_tensor *ids_N, bool acc);
    void (*embed_backward)(struct tr_tensor *dw_VC, const struct tr_tensor *dy_NC, const struct tr_tensor *ids_N);
    void (*scatter)(struct tr_tensor *y_NC, const struct tr_tensor *x_MC, const struct tr_tensor *rows_M);   /* y[rows[i]] = x[i], rows distinct */
    /* r = 1 / sqrt(mean(x^2) + eps) f32 per row; y = x r g. Rows are split further into `tr_cols(g)` wide groups when x is
     * wider than g (Qwen3's q/k norm on head slices): r then has one entry per row and group. y may be x. */
    void (*rms_norm)(struct tr_tensor *y, struct tr_tensor *r, const struct tr_tensor *x, const struct tr_tensor *g, float eps);
    /* y = x r g again from the saved r (bit-equal to rms_norm's y) */
    void (*rms_norm_rebuild)(struct tr_tensor *y, const struct tr_tensor *r, const struct tr_tensor *x, const struct tr_tensor *g);
    /* dx (+)= r (g dy - xh mean(g dy xh)), dg += sum dy xh, xh = x r. dx may be dy when !acc. dg may be NULL. */
    void (*rms_norm_backward)(struct tr_tensor *dx, bool acc, struct tr_tensor *dg, const struct tr_tensor *dy,
                              const struct tr_tensor *x, const struct tr_tensor *r, const struct tr_tensor *g);
    /* stat f32 [N,2]: mean and 1/sqrt(var + eps); y = (x - mean) rstd g + b */
    void (*layer_norm)(struct tr_tensor *y, struct tr_tensor *stat_N2, const struct tr_tensor *x, const struct tr_tensor *g, const struct tr_tensor *b, float eps);
    void (*layer_norm_rebuild)(struct tr_tensor *y, const struct tr_tensor *stat_N2, const struct tr_tensor *x, const struct tr_tensor *g, const struct tr_tensor *b);
    void (*layer_norm_backward)(struct tr_tensor *dx, bool acc, struct tr_tensor *dg, struct tr_tensor *db, const struct tr_tensor *dy,
                                const struct tr_tensor *x, const struct tr_tensor *stat_N2, const struct tr_tensor *g);
    /* In place on the first `heads` heads of each row of x: pairs (d, d + D/2) turned by pos * freq. cs f32 [positions, D]:
     * cos in the first half of a row, sin in the second. inverse turns back (the gradient). */
    void (*rope)(struct tr_tensor *x_NQ, const struct tr_tensor *cs_PD, const struct tr_tensor *pos_N, int64_t heads, bool inverse);
    /* a = silu(gate) * up; gu = [gate | up] side by side in a row */
    void (*swiglu)(struct tr_tensor *a_NI, const struct tr_tensor *gu_N2I);
    void (*swiglu_backward)(struct tr_tensor *dgu_N2I, const struct tr_tensor *da_NI, const struct tr_tensor *gu_N2I); /* dgu may be gu */
    void (*gelu)(struct tr_tensor *y, const struct tr_tensor *x);                            /* tanh form (GPT-2) */
    void (*gelu_backward)(struct tr_tensor *dx, const struct tr_tensor *dy, const struct tr_tensor *x);
    void (*add_bias)(struct tr_tensor *y_NO, const struct tr_tensor *b_O);                   /* y += b */
    void (*bias_backward)(struct tr_tensor *db_O, const struct tr_tensor *dy_NO);            /* db += sum over N */

    /* ---- attention, causal: token i sees keys start[i]..i of its sequence. qkv rows are [q heads | k heads | v heads].
     * lse f32 [N,H]: log of the sum of exp(scale q.k). Online softmax; nothing of size T x T. */
    void (*attention)(struct tr_tensor *o_NHD, struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ,
                      const struct tr_layout *layout, const struct tr_attention *a);
    void (*attention_backward)(struct tr_tensor *dqkv_NQ, const struct tr_tensor *do_NHD, const struct tr_tensor *o_NHD,
                               const struct tr_tensor *lse_NH, const struct tr_tensor *qkv_NQ, const struct tr_layout *layout,
                               const struct tr_attention *a, struct tr_tensor *work);
    size_t (*attention_work)(const struct tr_layout *layout, const struct tr_attention *a, enum tr_dtype dtype, bool backward);
    /* Decoding: one new token (row of q_1Q), keys and values of positions [first, n) in a cache f32/bf16 [P, K*D] each;
     * writes o_1HD. */
    void (*attention_cached)(struct tr_tensor *o_HD, const struct tr_tensor *q_Q, const struct tr_tensor *k_PKD,
                             const struct tr_tensor *v_PKD, int64_t first, int64_t n, const struct tr_attention *a);

    /* ---- loss: rows of logits f32. loss[i] = logsumexp - logit[target], 0 where target is -100; dlogits (f32 or bf16,
     * may be the logits when f32) = (softmax - onehot) * scale, 0 rows where target is -100. dlogits NULL: loss only. */
    void (*cross_entropy)(struct tr_tensor *loss_N, struct tr_tensor *dlogits_NV, const struct tr_tensor *logits_NV,
                          const struct tr_tensor *target_N, float scale);
    /* The same where these columns are some of a vocabulary's, in two parts (not on devices). lse[i] = logsumexp of the row, hit[i] =
     * logit[target]; q (f32 or bf16, may be the logits when f32; NULL: none) = exp(logits - lse), of at least one column. A target
     * below 0 is among other columns: hit is 0. */
    void (*softmax)(struct tr_tensor *q_NV, struct tr_tensor *lse_N, struct tr_tensor *hit_N, const struct tr_tensor *logits_NV,
                    const struct tr_tensor *target_N);
    /* q[i] = (part[i] q[i] - onehot) scale, part f32: the share of these columns in the sum over all. target NULL: no onehot. */
    void (*softmax_gradient)(struct tr_tensor *q_NV, const struct tr_tensor *part_N, const struct tr_tensor *target_N, float scale);
};

/* The table in use: dry in dry mode, else the best that this CPU (or DNNL_MAX_CPU_ISA / TR_KERNELS=ref|avx2|avx512)
 * allows. Chosen once at first use. */
const struct tr_kernels *tr_kernels(void);

/* Tables by name, NULL where the CPU cannot run it: "ref", "avx2", "avx512", "dry". For tests and benchmarks. */
const struct tr_kernels *tr_kernels_named(const char *name);

/* Sets the number of threads of all kernels and of the matmul libraries (1 or more; 0 leaves it). */
void tr_set_threads(int n);
int tr_threads(void);

/* Calls of BLAS and LAPACK stand between these two, where each must run on one thread lest its bits depend on their
 * number: begin returns the number of threads, which end sets again. */
int tr_blas_begin(void);
void tr_blas_end(int threads);

/* CPU features that decide, under the limit of DNNL_MAX_CPU_ISA. */
struct tr_cpu { bool avx2, avx512, avx512_bf16, amx_bf16; };
struct tr_cpu tr_cpu(void);

#endif
