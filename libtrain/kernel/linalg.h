/* Decompositions of matrices, by LAPACK. On one thread each, so that bits do not depend on threads. Matrices of a device are
 * read to the host, in its arena, and the results written back. */
#ifndef TR_LINALG_H
#define TR_LINALG_H
#include "libtrain/base/rng.h"
#include "libtrain/tensor/tensor.h"

/* The first R singular vectors of g [M,N] (f32, rows maybe longer): right: p [R,N], rows are right singular vectors; else
 * p [M,R], columns are left ones; R <= min(M,N). By the eigenvectors of the smaller Gram matrix, formed and solved in double:
 * as exact as an SVD in f32. Signs: as near as can be to `old` (same shape), or, when NULL, each vector's largest entry is
 * positive. A g that is zero or not finite leaves `old`, or the first R unit vectors. Work buffers come from the arena.
 * Errors: TR_EFAIL where the build has no LAPACK or it does not converge. */
int tr_singular_vectors(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old);

/* Nearly the same, many times faster where R is far below min(M,N): from what g does to R + 8 random directions, drawn with
 * `key`, and two power steps (Halko, Martinsson and Tropp 2011). The space is off by about (sigma_(R+9) / sigma_R)^5 and f32
 * rounding; a g that is zero or not finite leaves what it leaves above. */
int tr_random_range(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old, struct tr_key key);

/* Parts of both: the signs of vectors that are found; what stands where g says nothing. */
int tr_settle_signs(struct tr_tensor *p, bool right, const struct tr_tensor *old);
int tr_keep_vectors(struct tr_tensor *p, bool right, const struct tr_tensor *old);

/* The functions below take dense f32 matrices, compute in double, do nothing in dry mode (work buffers are counted), and fail
 * with TR_EFAIL where the build has no LAPACK or it does not converge, or a number is not finite. */

/* q [S,S] = eigenvectors of the symmetric a [S,S] as columns, largest eigenvalue first. */
int tr_eigenvectors(struct tr_tensor *q, const struct tr_tensor *a);
/* q [M,N], M >= N, becomes the orthonormal factor of its QR decomposition. */
int tr_orthonormal(struct tr_tensor *q);
/* A power step: order (i32 [S]) sorts the columns of q [S,S] by diag(q^T a q), largest first, ties by index;
 * q = qr(a q[:, order]). */
int tr_power_step(struct tr_tensor *q, struct tr_tensor *order, const struct tr_tensor *a);
/* x [1,S] = column k of (damping + by a)^-1, a [S,S] symmetric and not negative. */
int tr_damped_column(struct tr_tensor *x, const struct tr_tensor *a, double by, double damping, int64_t k);
/* Diagonal += x. */
int tr_add_diagonal(struct tr_tensor *a, float x);

#endif
