/* RMSNorm and LayerNorm. Saved: the input and one or two f32 a row; the output can be rebuilt from them. */
#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"

enum { X, STAT };

static int rms_backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *x, *r, *dx, *dg, *dy = tr_grad_of(n);
    bool acc;
    TR_TRY(tr_need(t, n->w[0]));
    TR_TRY(tr_saved(n, X, &x));
    TR_TRY(tr_saved(n, STAT, &r));
    TR_TRY(tr_grad_into(n->in[X], &dx, &acc));
    TR_TRY(tr_weight_grad_add(t, n->w[0], &dg));
    tr_kernels()->rms_norm_backward(dx, acc, dg, dy, x, r, &n->w[0]->value);
    return tr_weight_done(t, n->w[0]);
}

static int rms_rebuild(struct tr_node *n, struct tr_value *v)
{
    tr_kernels()->rms_norm_rebuild(&v->t, &n->in[STAT]->t, &n->in[X]->t, &n->w[0]->value);
    return TR_OK;
}

static const struct tr_op rms_op = { "rms_norm", rms_backward, rms_rebuild };

int tr_rms_norm(struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *g, double eps)
{
    struct tr_node *n;
    struct tr_value *r;
    TR_TRY(tr_need(t, g));
    TR_TRY(tr_value_new(t, y, x->t.dtype, x->t.ndim, x->t.dim));
    TR_TRY(tr_value_new(t, &r, TR_F32, TR_DIMS(tr_rows(&x->t), 1)));
    tr_kernels()->rms_norm(&(*y)->t, &r->t, &x->t, &g->value, (float)eps);
    TR_TRY(tr_record(t, &n, &rms_op, *y));
    TR_TRY(tr_use(t, n, 0, g));
    tr_input(n, X, x, true);
    tr_input(n, STAT, r, true);
    tr_rebuildable(n);
    tr_drop(t, r);
    return TR_OK;
}

static int layer_backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *x, *stat, *dx, *dg, *db, *dy = tr_grad_of(n);
    bool acc;
    TR_TRY(tr_need(t, n->w[0]));
    TR_TRY(tr_saved(n, X, &x));
    TR_TRY(tr_saved(n, STAT, &stat));
    TR_TRY(tr_grad_into(n->in[X], &dx, &acc));
    TR_TRY(tr_weight_grad_add(t, n->w[0], &dg));
    TR_TRY(tr_weight_grad_add(t, n->w[1], &db));
    tr_kernels()->layer_norm_backward(dx, acc, dg, db, dy, x, stat, &n->w[0]->value);
    TR_TRY(tr_weight_done(t, n->w[0]));
    return tr_weight_done(t, n->w[1]);
}

static int layer_rebuild(struct tr_node *n, struct tr_value *v)
{
    tr_kernels()->layer_norm_rebuild(&v->t, &n->in[STAT]->t, &n->in[X]->t, &n->w[0]->value, &n->w[1]->value);
    return TR_OK;
}

static const struct tr_op layer_op = { "layer_norm", layer_backward, layer_rebuild };

int tr_layer_norm(struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *g, struct tr_weight *b, double eps)
{
    struct tr_node *n;
    struct tr_value *stat;
    TR_TRY(tr_need(t, g));
    TR_TRY(tr_value_new(t, y, x->t.dtype, x->t.ndim, x->t.dim));
    TR_TRY(tr_value_new(t, &stat, TR_F32, TR_DIMS(tr_rows(&x->t), 2)));
    tr_kernels()->layer_norm(&(*y)->t, &stat->t, &x->t, &g->value, &b->value, (float)eps);
    TR_TRY(tr_record(t, &n, &layer_op, *y));
    TR_TRY(tr_use(t, n, 0, g));
    TR_TRY(tr_use(t, n, 1, b));
    tr_input(n, X, x, true);
    tr_input(n, STAT, stat, true);
    tr_rebuildable(n);
    tr_drop(t, stat);
    return TR_OK;
}
