/* Rope, q/k norm and attention on the fused buffer [q heads | k heads | v heads]. */
#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"

/* A rotation's gradient is the rotation back, in place. */
static int rope_backward(struct tr_tape *t, struct tr_node *n)
{
    TR_TRY(tr_grad_own(n->out));
    tr_kernels()->rope(tr_grad_of(n), n->arg.ptr[0], n->arg.ptr[1], n->arg.word[2], true);
    return TR_OK;
}

static const struct tr_op rope_op = { "rope", rope_backward, NULL };

int tr_rope(struct tr_tape *t, struct tr_value *qkv, const struct tr_tensor *cs_PD, const struct tr_tensor *pos_N, int64_t heads)
{
    struct tr_node *n;
    tr_kernels()->rope(&qkv->t, cs_PD, pos_N, heads, false);
    TR_TRY(tr_record(t, &n, &rope_op, qkv));
    tr_input(n, 0, qkv, false);
    if (n) n->arg.ptr[0] = cs_PD, n->arg.ptr[1] = pos_N, n->arg.word[2] = heads;
    return TR_OK;
}

enum { QKV, RQ, RK };

static int qk_norm_backward(struct tr_tape *t, struct tr_node *n)
{
    const struct tr_attention *a = n->arg.ptr[0];
    struct tr_tensor *x, *r[2];
    TR_TRY(tr_need(t, n->w[0]));
    TR_TRY(tr_saved(n, QKV, &x));
    TR_TRY(tr_saved(n, RQ, &r[0]));
    TR_TRY(tr_saved(n, RK, &r[1]));
    TR_TRY(tr_grad_share(n->in[QKV], n->out->grad));
    if (n->out->grad->holders == 2) { /* ours alone but for the output, which is done with it: work in place */
        n->out->grad->holders--;
        n->out->grad = NULL;
    }
    TR_TRY(tr_grad_own(n->in[QKV]));
    int64_t begin = 0, width[2] = { a->heads * a->head_dim, a->kv_heads * a->head_dim };
    for (int k = 0; k < 2; begin += width[k++]) {
        struct tr_tensor d = tr_cols_view(&n->in[QKV]->grad->t, begin, width[k]), xk = tr_cols_view(x, begin, width[k]), *dg;
        TR_TRY(tr_weight_grad_add(t, n->w[k], &dg));
        tr_kernels()->rms_norm_backward(&d, false, dg, &d, &xk, r[k], &n->w[k]->value);
        TR_TRY(tr_weight_done(t, n->w[k]));
    }
    return TR_OK;
}

static const struct tr_op qk_norm_op = { "qk_norm", qk_norm_backward, NULL };

int tr_qk_norm(struct tr_tape *t, struct tr_value **y, struct tr_value *qkv, struct tr_weight *gq, struct tr_weight *gk, double eps,
               const struct tr_attention *a)
{
    struct tr_node *n;
    struct tr_value *r[2];
    int64_t begin = 0, heads[2] = { a->heads, a->kv_heads };
    struct tr_weight *g[2] = { gq, gk };
    TR_TRY(tr_need(t, gq));
    TR_TRY(tr_value_new(t, y, qkv->t.dtype, qkv->t.ndim, qkv->t.dim));
    for (int k = 0; k < 2; begin += heads[k++] * a->head_dim) {
        struct tr_tensor xk = tr_cols_view(&qkv->t, begin, heads[k] * a->head_dim), yk = tr_cols_view(&(*y)->t, begin, heads[k] * a->head_dim);
        TR_TRY(tr_value_new(t, &r[k], TR_F32, TR_DIMS(tr_rows(&qkv->t), heads[k])));
        tr_kernels()->rms_norm(&yk, &r[k]->t, &xk, &g[k]->value, (float)eps);
    }
    struct tr_tensor xv = tr_cols_view(&qkv->t, begin, a->kv_heads * a->head_dim), yv = tr_cols_view(&(*y)->t, begin, a->kv_heads * a->head_dim);
    tr_kernels()->copy(&yv, &xv);
    TR_TRY(tr_record(t, &n, &qk_norm_op, *y));
    TR_TRY(tr_use(t, n, 0, gq));
    TR_TRY(tr_use(t, n, 1, gk));
    tr_input(n, QKV, qkv, true);
    tr_input(n, RQ, r[0], true);
    tr_input(n, RK, r[1], true);
    if (n) n->arg.ptr[0] = a;
    tr_drop(t, r[0]);
    tr_drop(t, r[1]);
    return TR_OK;
}

enum { LSE = 1 };

static int attend_backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *qkv, *lse, *dqkv, work;
    bool acc;
    const struct tr_layout *layout = n->arg.ptr[0];
    const struct tr_attention *a = n->arg.ptr[1];
    TR_TRY(tr_saved(n, QKV, &qkv));
    TR_TRY(tr_saved(n, LSE, &lse));
    TR_TRY(tr_grad_into(n->in[QKV], &dqkv, &acc)); /* qkv is used once: never acc */
    TR_TRY(tr_tensor_arena(&work, TR_WORKSPACE, TR_U8, TR_DIMS((int64_t)tr_kernels()->attention_work(layout, a, qkv->dtype, true)), 0));
    tr_kernels()->attention_backward(dqkv, tr_grad_of(n), &n->out->t, lse, qkv, layout, a, &work);
    tr_tensor_release(&work);
    return TR_OK;
}

static const struct tr_op attend_op = { "attention", attend_backward, NULL };

int tr_attend(struct tr_tape *t, struct tr_value **o, struct tr_value *qkv, const struct tr_layout *layout, const struct tr_attention *a)
{
    struct tr_node *n;
    struct tr_value *lse;
    int64_t N = tr_rows(&qkv->t);
    TR_TRY(tr_value_new(t, o, qkv->t.dtype, TR_DIMS(N, a->heads * a->head_dim)));
    TR_TRY(tr_value_new(t, &lse, TR_F32, TR_DIMS(N, a->heads)));
    tr_kernels()->attention(&(*o)->t, &lse->t, &qkv->t, layout, a);
    TR_TRY(tr_record(t, &n, &attend_op, *o));
    tr_input(n, QKV, qkv, true);
    tr_input(n, LSE, lse, true);
    tr_save_out(n);
    if (n) n->arg.ptr[0] = layout, n->arg.ptr[1] = a;
    tr_drop(t, lse);
    return TR_OK;
}
