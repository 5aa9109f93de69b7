/* One product, and the list of those who can compute it. Private to this folder. */
#ifndef TR_GEMM_IMPL_H
#define TR_GEMM_IMPL_H
#include "libtrain/tensor/tensor.h"

/* A stored matrix with row stride ld, used as it is or transposed. */
struct tr_operand { const void *data; enum tr_dtype dtype; int64_t ld; bool transposed; };

/* c[M,N] = alpha op(a)[M,K] op(b)[K,N] + beta c; f32 and bf16, sums in f32. M, N, K > 0. */
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
    size_t (*held)(void);     /* bytes kept outside the ledger by the library once it was used; NULL for none */
};

extern const struct tr_gemm_impl tr_gemm_onednn, tr_gemm_cblas, tr_gemm_ref;

/* The list in order, NULL at its end. */
extern const struct tr_gemm_impl *const tr_gemm_list[];

/* Runs the first of the list that takes the product. */
int tr_gemm_run(const struct tr_product *p);

#endif
