/* Matrix products on a CUDA device. */
#ifndef TR_CUDA_MATMUL_H
#define TR_CUDA_MATMUL_H
#include "libtrain/kernel/gemm/impl.h"

/* 0, or the library's status. */
int tr_cuda_matmul_open(void *stream);
/* Work memory of a product, and the product (errors as in table.h). */
size_t tr_cuda_product_work(const struct tr_product *p);
void tr_cuda_product(const struct tr_product *p, void *work, size_t bytes);

#endif
