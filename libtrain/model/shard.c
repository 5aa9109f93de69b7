/* Weights that ranks share by rows (ZeRO 3): whole only while their layer is used. */
#include "libtrain/model/shard.h"
#include "libtrain/base/status.h"

int tr_net_shard(struct tr_param *p, int64_t begin, int64_t n)
{
    bool vector = p->value.ndim == 1;
    const int64_t cols = tr_cols(&p->value), dim[] = { vector ? n * cols : n, cols };
    p->shard_begin = n ? begin : 0;
    return tr_tensor_new(&p->shard, TR_WEIGHTS, p->value.dtype, p->value.ndim, dim);
}

/* Where the i-th parameter of a weight lies in it. */
static struct tr_tensor part(const struct tr_weight *w, int i)
{
    const struct tr_tensor *p = &w->param[i]->value;
    int64_t at = 0;
    for (int k = 0; k < i; k++) at += p->ndim == 1 ? tr_count(&w->param[k]->value) : tr_rows(&w->param[k]->value);
    if (p->ndim > 1) return tr_rows_view(&w->value, at, tr_rows(p));
    return tr_tensor_view((char *)w->value.data + (size_t)at * tr_dtype_size(p->dtype), p->dtype, 1, p->dim);
}

/* Back to a shape without bytes. */
static void let_go(struct tr_weight *w)
{
    struct tr_tensor shape = w->value;
    tr_tensor_release(&w->value);
    shape.data = NULL;
    tr_quant_point(&shape, NULL);
    shape.owner = 0;
    w->value = shape;
}

void tr_shard_leave(void *self)
{
    struct tr_net *net = self;
    struct tr_weight *w[TR_LAYER_WEIGHTS];
    if (!net->here) return;
    for (int k = 0, n = tr_layer_weights(net->here, w); k < n; k++) let_go(w[k]);
    net->here = NULL;
}

static int bring(struct tr_net *net, struct tr_weight *w)
{
    struct tr_tensor shape = w->value;
    int rc = tr_tensor_arena(&w->value, TR_WEIGHTS, shape.dtype, shape.ndim, shape.dim, 0);
    for (int i = 0; i < w->n && rc == TR_OK; i++) {
        struct tr_tensor whole = part(w, i);
        rc = net->shards.gather(net->shards.self, w->param[i], &whole);
    }
    return rc;
}

int tr_shard_need(void *self, struct tr_weight *w)
{
    struct tr_net *net = self;
    if (!net->sharded) return TR_OK;
    struct tr_layer *layer = &net->layer[w->param[0]->layer];
    struct tr_weight *all[TR_LAYER_WEIGHTS];
    if (net->here == layer) return TR_OK;
    tr_shard_leave(net);
    net->here = layer;
    for (int k = 0, n = tr_layer_weights(layer, all); k < n; k++) TR_TRY(bring(net, all[k]));
    return TR_OK;
}

int tr_shard_visit(struct tr_net *net, struct tr_param *p, struct tr_visitor *v, const char *name)
{
    struct tr_tensor whole;
    TR_TRY(tr_tensor_arena(&whole, TR_WEIGHTS, p->value.dtype, p->value.ndim, p->value.dim, 0));
    int rc;
    TR_GO(net->shards.gather(net->shards.self, p, &whole));
    TR_GO(v->tensor(v->self, name, &whole));
    if (v->only_reads) goto done;
    if (p->elsewhere && p->value.data) TR_GO(tr_tensor_copy(&p->value, &whole)); /* a copy */
    if (!tr_count(&p->shard)) goto done;
    struct tr_tensor mine = whole.ndim > 1 ? tr_rows_view(&whole, p->shard_begin, tr_rows(&p->shard)) : whole;
    rc = tr_tensor_copy(&p->shard, &mine);
done:
    tr_tensor_release(&whole);
    return rc;
}
