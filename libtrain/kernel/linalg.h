/* Decompositions of matrices, by LAPACK. On one thread each, so that bits do not depend on threads. */
#ifndef TR_LINALG_H
#define TR_LINALG_H
#include "libtrain/tensor/tensor.h"

/* The first R singular vectors of g [M,N] (f32, rows maybe longer): right: p [R,N], rows are right singular vectors; else
 * p [M,R], columns are left ones; R <= min(M,N). By the eigenvectors of the smaller Gram matrix, formed and solved in double:
 * as exact as an SVD in f32. Signs: as near as can be to `old` (same shape), or, when NULL, each vector's largest entry is
 * positive. A g that is zero or not finite leaves `old`, or the first R unit vectors. Work buffers come from the arena.
 * Errors: TR_EFAIL where the build has no LAPACK or it does not converge. */
int tr_singular_vectors(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old);

#endif
