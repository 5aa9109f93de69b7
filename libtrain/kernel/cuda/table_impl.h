/* What the tables of kernels and of updates share. */
#ifndef TR_CUDA_TABLE_IMPL_H
#define TR_CUDA_TABLE_IMPL_H
#include "libtrain/kernel/cuda/table.h"

struct tr_mat tr_cuda_mat(const struct tr_tensor *t);   /* NULL: a matrix without data */
void *tr_cuda_at(const struct tr_tensor *t);            /* its bytes */

#define RUN(entry, ...) tr_cuda_check(tr_cuda_##entry(__VA_ARGS__, tr_cuda_queue()), #entry)

#endif
