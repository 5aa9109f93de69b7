#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"

/* dx = dy W before dW: the sink may update W as soon as dW is finished. */
static int backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *dx;
    bool acc;
    TR_TRY(tr_need(t, n->w[0]));
    TR_TRY(tr_grad_into(n->in[0], &dx, &acc));
    return tr_gemm_dx(dx, tr_grad_of(n), &n->w[0]->value, acc);
}

static int weights(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *x, *dw, *dy = tr_grad_of(n);
    bool fresh;
    if (!tr_weight_frozen(n->w[0])) {
        TR_TRY(tr_saved(n, 0, &x));
        TR_TRY(tr_weight_grad_into(t, n->w[0], &dw, &fresh));
        TR_TRY(tr_gemm_dw(dw, dy, x, !fresh));
    }
    TR_TRY(tr_weight_done(t, n->w[0]));
    if (!n->w[1]) return TR_OK;
    TR_TRY(tr_weight_grad_add(t, n->w[1], &dw));
    tr_kernels()->bias_backward(dw, dy);
    return tr_weight_done(t, n->w[1]);
}

static const struct tr_op op = { "linear", backward, NULL, weights };

int tr_linear(struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *w, struct tr_weight *b)
{
    struct tr_node *n;
    TR_TRY(tr_need(t, w));
    TR_TRY(tr_value_new(t, y, x->t.dtype, TR_DIMS(tr_rows(&x->t), tr_rows(&w->value))));
    TR_TRY(tr_gemm_forward(&(*y)->t, &x->t, &w->value, false));
    if (b) tr_kernels()->add_bias(&(*y)->t, &b->value);
    TR_TRY(tr_record(t, &n, &op, *y));
    TR_TRY(tr_use(t, n, 0, w));
    TR_TRY(tr_use(t, n, 1, b));
    tr_input(n, 0, x, !tr_weight_frozen(w));
    return TR_OK;
}
