#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"

/* dw[ids[i]] += dy[i] */
static int backward(struct tr_tape *t, struct tr_node *n)
{
    const struct tr_tensor *dy = tr_grad_of(n);
    struct tr_tensor *dw;
    if (!tr_weight_frozen(n->w[0])) {
        TR_TRY(tr_weight_grad_add(t, n->w[0], &dw));
        if (dy) tr_kernels()->embed_backward(dw, dy, n->arg.ptr[0]);
    }
    return tr_weight_done(t, n->w[0]);
}

static const struct tr_op op = { "embedding", backward, NULL };

int tr_positions(struct tr_tape *t, struct tr_value *y_NC, struct tr_weight *w_PC, const struct tr_tensor *pos_N)
{
    struct tr_node *n;
    TR_TRY(tr_need(t, w_PC));
    tr_kernels()->embed(&y_NC->t, &w_PC->value, pos_N, true);
    TR_TRY(tr_record(t, &n, &op, y_NC));
    TR_TRY(tr_use(t, n, 0, w_PC));
    tr_input(n, 0, y_NC, false);
    if (n) n->arg.ptr[0] = pos_N;
    return TR_OK;
}

int tr_embedding(struct tr_tape *t, struct tr_value **y_NC, enum tr_dtype dtype, struct tr_weight *w_VC, const struct tr_tensor *ids_N)
{
    struct tr_node *n;
    TR_TRY(tr_need(t, w_VC));
    TR_TRY(tr_value_new(t, y_NC, dtype, TR_DIMS(tr_count(ids_N), tr_cols(&w_VC->value))));
    tr_kernels()->embed(&(*y_NC)->t, &w_VC->value, ids_N, false);
    TR_TRY(tr_record(t, &n, &op, *y_NC));
    TR_TRY(tr_use(t, n, 0, w_VC));
    if (n) n->arg.ptr[0] = ids_N;
    return TR_OK;
}
