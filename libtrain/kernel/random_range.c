/* Singular vectors by a randomised range finder. Letters: X [L,O] is G^T (right) or G (left), K = R + 8 directions. */
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/linalg.h"
#include <math.h>

enum { MORE = 8, POWER_STEPS = 2 };

/* y [L,K] = X z, and z [O,K] = X^T y. */
static int to_wanted(struct tr_tensor *y, const struct tr_tensor *g, bool right, const struct tr_tensor *z) { return tr_gemm_f32(y, 1, g, right, z, false, 0); }
static int to_other(struct tr_tensor *z, const struct tr_tensor *g, bool right, const struct tr_tensor *y) { return tr_gemm_f32(z, 1, g, !right, y, false, 0); }

/* y becomes an orthonormal basis [L,K] of what X does to random directions. */
static int find_range(struct tr_tensor *y, struct tr_tensor *z, const struct tr_tensor *g, bool right, struct tr_key key)
{
    tr_kernels()->random_normal(z, key, 1);
    TR_TRY(to_wanted(y, g, right, z));
    TR_TRY(tr_orthonormal(y));
    for (int i = 0; i < POWER_STEPS; i++) {
        TR_TRY(to_other(z, g, right, y));
        TR_TRY(tr_orthonormal(z));
        TR_TRY(to_wanted(y, g, right, z));
        TR_TRY(tr_orthonormal(y));
    }
    return TR_OK;
}

int tr_random_range(struct tr_tensor *p, const struct tr_tensor *g, bool right, const struct tr_tensor *old, struct tr_key key)
{
    int64_t m = tr_rows(g), n = tr_cols(g), r = right ? tr_rows(p) : tr_cols(p), lo = m < n ? m : n, k = r + MORE < lo ? r + MORE : lo;
    struct tr_tensor y = { 0 }, z = { 0 }, gram = { 0 }, turn = { 0 };
    double squares = tr_kernels()->sum_squares(g);
    int rc;
    if (!tr_mem_is_dry() && (!isfinite(squares) || squares <= 0)) return tr_keep_vectors(p, right, old);
    TR_GO(tr_tensor_arena(&y, TR_WORKSPACE, TR_F32, TR_DIMS(right ? n : m, k), 0));
    TR_GO(tr_tensor_arena(&z, TR_WORKSPACE, TR_F32, TR_DIMS(right ? m : n, k), 0));
    TR_GO(tr_tensor_arena(&gram, TR_WORKSPACE, TR_F32, TR_DIMS(k, k), 0));
    TR_GO(tr_tensor_arena(&turn, TR_WORKSPACE, TR_F32, TR_DIMS(k, k), 0));
    TR_GO(find_range(&y, &z, g, right, key));
    TR_GO(to_other(&z, g, right, &y)); /* turned within y so that the largest come first: eigenvectors of (X^T y)^T (X^T y) */
    TR_GO(tr_gemm_f32(&gram, 1, &z, true, &z, false, 0));
    TR_GO(tr_eigenvectors(&turn, &gram));
    struct tr_tensor first = tr_cols_view(&turn, 0, r);
    TR_GO(right ? tr_gemm_f32(p, 1, &first, true, &y, true, 0) : tr_gemm_f32(p, 1, &y, false, &first, false, 0));
    rc = tr_settle_signs(p, right, old);
done:
    tr_tensor_release(&turn);
    tr_tensor_release(&gram);
    tr_tensor_release(&z);
    tr_tensor_release(&y);
    return rc;
}
