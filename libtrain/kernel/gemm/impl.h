/* One product, and the list of those who can compute it. Private to this folder. */
#ifndef TR_GEMM_IMPL_H
#define TR_GEMM_IMPL_H
#include "libtrain/tensor/tensor.h"

/* A stored matrix with row stride ld, used as it is or transposed. */
struct tr_operand {
    const void *data;
    enum tr_dtype dtype;
    int64_t ld;
    bool transposed;
    const float *scale;        /* int8 only: of stored row r and column c at scale[r * groups + c / group], and so */
    const int8_t *zero;
    int64_t group, groups;
};

/* c[M,N] = alpha op(a)[M,K] op(b)[K,N] + beta c; a and c f32 or bf16, b also int8; sums in f32. b is taken as a's type
 * (f32 weights of bf16 activations are rounded). M, N, K > 0. */
struct tr_product {
    int64_t m, n, k;
    float alpha, beta;
    struct tr_operand a, b;
    void *c;
    enum tr_dtype c_dtype;
    int64_t c_ld;
};

struct tr_gemm_impl {
    const char *name;
    bool (*takes)(const struct tr_product *p);           /* a function of CPU, types and shape only */
    int (*run)(const struct tr_product *p, bool dry);    /* dry: counts its work memory and computes nothing */
    bool any_cut;             /* sums over k have the same bits however a caller cuts them (bf16: at even k, AMX: at multiples of 32) */
    size_t (*held)(void);     /* bytes kept outside the ledger by the library once it was used; NULL for none */
};

extern const struct tr_gemm_impl tr_gemm_onednn, tr_gemm_packed, tr_gemm_cblas, tr_gemm_ref;
extern const struct tr_gemm_impl tr_gemm_device;   /* takes all when a device is in use */

/* All of the CPU's in order, NULL at the end. */
extern const struct tr_gemm_impl *const tr_gemm_list[];

/* Our own products (x86/gemm_tmpl.h); pairs: bf16 products, which need AVX-512 with bf16; amx: bf16 by tiles. */
int tr_avx2_product(const struct tr_product *p, bool dry, bool pairs);
int tr_avx512_product(const struct tr_product *p, bool dry, bool pairs);
int tr_amx_product(const struct tr_product *p, bool dry);

/* The first of the list that takes the product. */
const struct tr_gemm_impl *tr_gemm_choose(const struct tr_product *p);

#endif
