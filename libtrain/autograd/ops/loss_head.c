/* Output head and cross entropy in segments of tokens. Source of the idea: logits are the largest array of a step
 * (B T V) and are needed for one moment; computing their gradient at once lets them go segment by segment. */
#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/gemm/gemm.h"

enum { H, DH };

/* dh was computed in forward; it becomes (or is added to) h's gradient. */
static int backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *dh, *d;
    bool acc;
    TR_TRY(tr_saved(n, DH, &d));
    TR_TRY(tr_grad_into(n->in[H], &dh, &acc));
    if (acc) tr_kernels()->add(dh, dh, d);
    else tr_kernels()->copy(dh, d);
    return tr_weight_done(t, n->w[0]);
}

static const struct tr_op op = { "loss_head", backward, NULL };

struct head {
    struct tr_tape *t;
    struct tr_weight *w;
    struct tr_tensor *dw;      /* NULL: the weight does not train */
    bool fresh;
    float scale;
};

/* One segment of s rows: h_SC in, loss_S and dh_SC out. */
static int segment_pass(struct head *p, struct tr_tensor *loss_S, struct tr_tensor *dh_SC, const struct tr_tensor *h_SC, const struct tr_tensor *target_S)
{
    struct tr_tensor logits_SV, dlogits_SV = { 0 };
    int64_t S = tr_rows(h_SC), V = tr_rows(&p->w->value);
    enum tr_dtype dtype = h_SC->dtype;
    int rc = tr_tensor_arena(&logits_SV, TR_WORKSPACE, TR_F32, TR_DIMS(S, V), 0);
    if (rc != TR_OK) return rc;
    TR_GO(tr_gemm_forward(&logits_SV, h_SC, &p->w->value, false));
    if (!dh_SC) { /* the loss alone */
        tr_kernels()->cross_entropy(loss_S, NULL, &logits_SV, target_S, 0);
        goto done;
    }
    if (dtype == TR_F32) { /* the gradient takes the logits' place */
        dlogits_SV = logits_SV;
        dlogits_SV.owner = 0;
    } else TR_GO(tr_tensor_arena(&dlogits_SV, TR_WORKSPACE, dtype, TR_DIMS(S, V), 0));
    tr_kernels()->cross_entropy(loss_S, &dlogits_SV, &logits_SV, target_S, p->scale);
    if (dtype != TR_F32) tr_tensor_release(&logits_SV);
    TR_GO(tr_gemm_dx(dh_SC, &dlogits_SV, &p->w->value, false));
    if (p->dw) TR_GO(tr_gemm_dw(p->dw, &dlogits_SV, h_SC, !p->fresh));
    p->fresh = false;
done:
    tr_tensor_release(&dlogits_SV);
    tr_tensor_release(&logits_SV);
    return rc;
}

static struct tr_tensor slice_1d(const struct tr_tensor *x, int64_t begin, int64_t n)
{
    struct tr_tensor v = tr_tensor_view((char *)x->data + (size_t)begin * tr_dtype_size(x->dtype), x->dtype, 1, &n);
    return v;
}

int tr_loss_head(struct tr_tape *t, struct tr_tensor *loss_N, struct tr_value *h_NC, struct tr_weight *w_VC,
                 const struct tr_tensor *row_N, const struct tr_tensor *target_N, int64_t n_rows, float scale, int64_t segment)
{
    struct head p = { .t = t, .w = w_VC, .scale = scale };
    struct tr_value *dh = NULL;
    struct tr_node *n;
    int64_t N = tr_rows(&h_NC->t), C = tr_cols(&h_NC->t);
    bool gather = n_rows != N, grad = tr_tape_recording(t);
    TR_TRY(tr_need(t, w_VC));
    if (grad) {
        TR_TRY(tr_value_new(t, &dh, h_NC->t.dtype, TR_DIMS(N, C)));
        if (gather) tr_kernels()->fill(&dh->t, 0);
        if (!tr_weight_frozen(w_VC)) TR_TRY(tr_weight_grad_into(t, w_VC, &p.dw, &p.fresh));
    }
    for (int64_t at = 0; at < n_rows; at += segment) {
        int64_t S = n_rows - at < segment ? n_rows - at : segment;
        struct tr_tensor loss_S = slice_1d(loss_N, at, S), target_S = slice_1d(target_N, at, S), row_S = slice_1d(row_N, at, S);
        struct tr_tensor h_SC, dh_SC = { 0 };
        int rc = TR_OK;
        if (gather) { /* only counted rows cost anything */
            TR_TRY(tr_tensor_arena(&h_SC, TR_WORKSPACE, h_NC->t.dtype, TR_DIMS(S, C), 0));
            tr_kernels()->embed(&h_SC, &h_NC->t, &row_S, false);
            if (grad) rc = tr_tensor_arena(&dh_SC, TR_WORKSPACE, h_NC->t.dtype, TR_DIMS(S, C), 0);
        } else {
            h_SC = tr_rows_view(&h_NC->t, at, S);
            if (grad) dh_SC = tr_rows_view(&dh->t, at, S);
        }
        if (rc == TR_OK) rc = segment_pass(&p, &loss_S, grad ? &dh_SC : NULL, &h_SC, &target_S);
        if (rc == TR_OK && gather && grad) tr_kernels()->scatter(&dh->t, &dh_SC, &row_S);
        tr_tensor_release(&dh_SC);
        tr_tensor_release(&h_SC);
        TR_TRY(rc);
    }
    if (p.dw && p.fresh) tr_kernels()->fill(p.dw, 0); /* no counted token at all */
    TR_TRY(tr_record(t, &n, &op, h_NC));
    TR_TRY(tr_use(t, n, 0, w_VC));
    tr_input(n, H, h_NC, false);
    if (n) tr_input(n, DH, dh, true);
    tr_drop(t, dh);
    return TR_OK;
}
