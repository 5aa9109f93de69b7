#include "optim/newton_schulz.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/kernel/kernel.h"
#include <math.h>

/* y = a x + (b A + c A^2) x, or x (b A + c A^2) where A is of the columns; A is of the smaller side. */
static int one_step(struct tr_tensor *y, const struct tr_tensor *x, struct tr_tensor *a, struct tr_tensor *b, const struct opt_newton_schulz *c)
{
    bool rows = tr_rows(x) <= tr_cols(x);
    TR_TRY(tr_gemm_f32(a, 1, x, !rows, x, rows, 0));
    tr_kernels()->copy(b, a);
    TR_TRY(tr_gemm_f32(b, (float)c->c, a, false, a, false, (float)c->b));
    tr_kernels()->copy(y, x);
    return rows ? tr_gemm_f32(y, 1, b, false, x, false, (float)c->a) : tr_gemm_f32(y, 1, x, false, b, false, (float)c->a);
}

int opt_orthogonalise(struct tr_tensor *x, const struct opt_newton_schulz *c)
{
    int64_t m = tr_rows(x), n = tr_cols(x), s = m < n ? m : n;
    struct tr_tensor y = { 0 }, a = { 0 }, b = { 0 }, *from = x, *to = &y;
    int rc;
    TR_GO(tr_tensor_arena(&y, TR_WORKSPACE, TR_F32, TR_DIMS(m, n), 0));
    TR_GO(tr_tensor_arena(&a, TR_WORKSPACE, TR_F32, TR_DIMS(s, s), 0));
    TR_GO(tr_tensor_arena(&b, TR_WORKSPACE, TR_F32, TR_DIMS(s, s), 0));
    tr_kernels()->scale(x, (float)(1 / (sqrt(tr_kernels()->sum_squares(x)) + c->eps)));
    for (int64_t i = 0; i < c->steps; i++) {
        TR_GO(one_step(to, from, &a, &b, c));
        struct tr_tensor *other = from;
        from = to;
        to = other;
    }
    if (from != x) tr_kernels()->copy(x, from);
    rc = TR_OK;
done:
    tr_tensor_release(&b);
    tr_tensor_release(&a);
    tr_tensor_release(&y);
    return rc;
}
