/* Matrix products. An ordered list of implementations (our own packed products for AVX2, AVX-512 and AMX, oneDNN, BLAS,
 * reference); the first that takes types and shape wins. The choice is a
 * function of CPU, types and shape only, so that two runs that must agree do. Bits do not depend on the number of threads,
 * and (on x86) rows of y and dx do not depend on which other rows are in the call.
 *
 * Weights W[O,C] are used in place, in f32, bf16 or int8; where their type is not the compute type (that of the
 * activations) they are widened or dequantised while they are packed, never as a dense copy of the model. Work memory is
 * taken from the step arena during the call (at most some MB), in dry mode too. */
#ifndef TR_GEMM_H
#define TR_GEMM_H
#include "libtrain/tensor/tensor.h"
#include <stdio.h>

/* y[N,O] (+)= x[N,C] W[O,C]^T.  x, y f32 or bf16 (y may also be f32 when x is bf16: logits). */
int tr_gemm_forward(struct tr_tensor *y_NO, const struct tr_tensor *x_NC, const struct tr_tensor *w_OC, bool acc);
/* dx[N,C] (+)= dy[N,O] W[O,C]. */
int tr_gemm_dx(struct tr_tensor *dx_NC, const struct tr_tensor *dy_NO, const struct tr_tensor *w_OC, bool acc);
/* dw[O,C] (+)= dy[N,O]^T x[N,C]; dw f32, dense or padded alike. One sum over the tokens in order, continued by acc: a batch
 * cut at any even token gives the same bits; with AMX (bf16) one cut at multiples of 32 tokens. */
int tr_gemm_dw(struct tr_tensor *dw_OC, const struct tr_tensor *dy_NO, const struct tr_tensor *x_NC, bool acc);

/* Plain f32 product for optimizers: c[M,N] = alpha op(a) op(b) + beta c, any of them transposed; all f32, row strides allowed. */
int tr_gemm_f32(struct tr_tensor *c_MN, float alpha, const struct tr_tensor *a, bool ta, const struct tr_tensor *b, bool tb,
                float beta);

/* Bytes that the libraries in use here keep outside the arena at most (none for our own products); counted in the ledger
 * as workspace at first use. */
size_t tr_gemm_scratch(void);

/* Is bf16 compute native here (avx512_bf16, with amx_bf16 or without)? Otherwise `compute = auto` means f32. */
bool tr_gemm_has_bf16(void);

/* GFLOP/s of [n,c]x[o,c]^T in `dtype`, best of several short runs; for doctor, bench and plan. */
double tr_gemm_rate(enum tr_dtype dtype, int64_t n, int64_t o, int64_t c);

#endif
