/* SwiGLU, GELU and the residual add. */
#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"

static int swiglu_backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *gu, *dgu;
    bool acc;
    TR_TRY(tr_saved(n, 0, &gu));
    TR_TRY(tr_grad_into(n->in[0], &dgu, &acc)); /* gate|up is used once: never acc */
    tr_kernels()->swiglu_backward(dgu, tr_grad_of(n), gu);
    return TR_OK;
}

static int swiglu_rebuild(struct tr_node *n, struct tr_value *v)
{
    tr_kernels()->swiglu(&v->t, &n->in[0]->t);
    return TR_OK;
}

static const struct tr_op swiglu_op = { "swiglu", swiglu_backward, swiglu_rebuild };

int tr_swiglu(struct tr_tape *t, struct tr_value **a_NI, struct tr_value *gu_N2I)
{
    struct tr_node *n;
    TR_TRY(tr_value_new(t, a_NI, gu_N2I->t.dtype, TR_DIMS(tr_rows(&gu_N2I->t), tr_cols(&gu_N2I->t) / 2)));
    tr_kernels()->swiglu(&(*a_NI)->t, &gu_N2I->t);
    TR_TRY(tr_record(t, &n, &swiglu_op, *a_NI));
    tr_input(n, 0, gu_N2I, true);
    tr_rebuildable(n);
    return TR_OK;
}

static int gelu_backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *x, *dx;
    bool acc;
    TR_TRY(tr_saved(n, 0, &x));
    TR_TRY(tr_grad_into(n->in[0], &dx, &acc));
    tr_kernels()->gelu_backward(dx, tr_grad_of(n), x);
    return TR_OK;
}

static int gelu_rebuild(struct tr_node *n, struct tr_value *v)
{
    tr_kernels()->gelu(&v->t, &n->in[0]->t);
    return TR_OK;
}

static const struct tr_op gelu_op = { "gelu", gelu_backward, gelu_rebuild };

int tr_gelu(struct tr_tape *t, struct tr_value **y, struct tr_value *x)
{
    struct tr_node *n;
    TR_TRY(tr_value_new(t, y, x->t.dtype, x->t.ndim, x->t.dim));
    tr_kernels()->gelu(&(*y)->t, &x->t);
    TR_TRY(tr_record(t, &n, &gelu_op, *y));
    tr_input(n, 0, x, true);
    tr_rebuildable(n);
    return TR_OK;
}

/* The gradient goes to both sides; they share one buffer until one adds to it. */
static int add_backward(struct tr_tape *t, struct tr_node *n)
{
    TR_TRY(tr_grad_share(n->in[0], n->out->grad));
    return tr_grad_share(n->in[1], n->out->grad);
}

static const struct tr_op add_op = { "add", add_backward, NULL };

int tr_add(struct tr_tape *t, struct tr_value **y, struct tr_value *a, struct tr_value *b)
{
    struct tr_node *n;
    TR_TRY(tr_value_new(t, y, a->t.dtype, a->t.ndim, a->t.dim));
    tr_kernels()->add(&(*y)->t, &a->t, &b->t);
    TR_TRY(tr_record(t, &n, &add_op, *y));
    tr_input(n, 0, a, false);
    tr_input(n, 1, b, false);
    return TR_OK;
}
