#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"

/* dw[ids[i]] += dy[i]; learned positions likewise. */
static int backward(struct tr_tape *t, struct tr_node *n)
{
    const struct tr_tensor *dy = tr_grad_of(n);
    for (int k = 0; k < 2; k++) {
        if (!n->w[k]) continue;
        struct tr_tensor *dw;
        if (!tr_weight_frozen(n->w[k])) {
            TR_TRY(tr_weight_grad_add(t, n->w[k], &dw));
            if (dy) tr_kernels()->embed_backward(dw, dy, n->arg.ptr[k]);
        }
        TR_TRY(tr_weight_done(t, n->w[k]));
    }
    return TR_OK;
}

static const struct tr_op op = { "embedding", backward, NULL };

int tr_embedding(struct tr_tape *t, struct tr_value **y_NC, enum tr_dtype dtype, struct tr_weight *w_VC, const struct tr_tensor *ids_N,
                 struct tr_weight *pos_w, const struct tr_tensor *pos_N)
{
    struct tr_node *n;
    TR_TRY(tr_need(t, w_VC));
    TR_TRY(tr_value_new(t, y_NC, dtype, TR_DIMS(tr_count(ids_N), tr_cols(&w_VC->value))));
    tr_kernels()->embed(&(*y_NC)->t, &w_VC->value, ids_N, false);
    if (pos_w) tr_kernels()->embed(&(*y_NC)->t, &pos_w->value, pos_N, true);
    TR_TRY(tr_record(t, &n, &op, *y_NC));
    TR_TRY(tr_use(t, n, 0, w_VC));
    TR_TRY(tr_use(t, n, 1, pos_w));
    if (n) n->arg.ptr[0] = ids_N, n->arg.ptr[1] = pos_N;
    return TR_OK;
}
