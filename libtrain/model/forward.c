/* Running the network: embedding, blocks, head; with a cache of keys and values for generation. */
#include "libtrain/autograd/ops.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/gemm/gemm.h"
#include "libtrain/model/net.h"
#include <inttypes.h>
#include <stdlib.h>

/* ---- feed */

int tr_feed_new(struct tr_feed *f, int64_t capacity)
{
    *f = (struct tr_feed){ .capacity = capacity };
    struct tr_tensor *ints[] = { &f->ids, &f->start, &f->pos, &f->rows, &f->targets };
    int rc;
    for (int i = 0; i < 5; i++) TR_GO(tr_tensor_new(ints[i], TR_OTHER, TR_I32, TR_DIMS(capacity)));
    TR_GO(tr_tensor_new(&f->loss, TR_OTHER, TR_F32, TR_DIMS(capacity)));
    TR_GO(tr_calloc(&f->host_rows, (size_t)capacity, sizeof *f->host_rows));
    TR_GO(tr_calloc(&f->host_targets, (size_t)capacity, sizeof *f->host_targets));
    TR_GO(tr_calloc(&f->host_loss, (size_t)capacity, sizeof *f->host_loss));
    return TR_OK;
done:
    tr_feed_release(f);
    return rc;
}

void tr_feed_release(struct tr_feed *f)
{
    struct tr_tensor *all[] = { &f->ids, &f->start, &f->pos, &f->rows, &f->targets, &f->loss };
    for (int i = 0; i < 6; i++) tr_tensor_release(all[i]);
    free(f->host_rows);
    free(f->host_targets);
    free(f->host_loss);
    free(f->pass);
    *f = (struct tr_feed){ 0 };
}

static struct tr_tensor first(const struct tr_tensor *x, int64_t n) { return tr_tensor_view(x->data, x->dtype, 1, &n); }

int tr_feed_set(struct tr_feed *f, const struct tr_net *net, int64_t n, const int32_t *ids, const int32_t *targets,
                const int32_t *start, const int32_t *pos, const int64_t *seq, int64_t n_seqs)
{
    int64_t V = net->shape.vocab, window = net->shape.window, m = 0;
    if (n > f->capacity) return tr_fail(TR_EFAIL, "a micro-batch of %" PRId64 " tokens is above the %" PRId64 " foreseen", n, f->capacity);
    int64_t most = net->shape.arch == TR_GPT2 ? net->shape.context : net->rope_PD.dim[0];
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= V) return tr_fail(TR_EINPUT, "token id %d (token %" PRId64 " of a batch): the vocabulary has %" PRId64 " entries", ids[i], i, V);
        if (pos[i] < 0 || pos[i] >= most) return tr_fail(TR_EINPUT, "a sequence has more than %" PRId64 " tokens: the model cannot go further; lower data.sequence", most);
        if (!targets || targets[i] == -100) continue;
        if (targets[i] < 0 || targets[i] >= V) return tr_fail(TR_EINPUT, "target id %d (token %" PRId64 " of a batch): the vocabulary has %" PRId64 " entries", targets[i], i, V);
        f->host_rows[m] = (int32_t)i;
        f->host_targets[m++] = targets[i];
    }
    f->n_counted = m;
    f->ids_N = first(&f->ids, n);
    f->rows_M = first(&f->rows, m);
    f->targets_M = first(&f->targets, m);
    f->loss_M = first(&f->loss, m);
    f->layout = (struct tr_layout){ .n_tokens = n, .n_seqs = n_seqs, .start_N = first(&f->start, n), .pos_N = first(&f->pos, n), .seq = seq };
    tr_tensor_write(&f->ids_N, ids);
    tr_tensor_write(&f->layout.pos_N, pos);
    tr_tensor_write(&f->rows_M, f->host_rows);
    tr_tensor_write(&f->targets_M, f->host_targets);
    if (!window) tr_tensor_write(&f->layout.start_N, start);
    else { /* host_loss lends its bytes: it is free until the loss is read */
        int32_t *narrow = (int32_t *)(void *)f->host_loss;
        for (int64_t i = 0; i < n; i++) narrow[i] = i - window + 1 > start[i] ? (int32_t)(i - window + 1) : start[i];
        tr_tensor_write(&f->layout.start_N, narrow);
    }
    return TR_OK;
}

/* ---- cache */

int tr_cache_new(struct tr_cache *c, const struct tr_net *net, int64_t capacity)
{
    int layers = net->n_layers, rc;
    *c = (struct tr_cache){ .capacity = capacity, .layers = layers };
    TR_GO(tr_calloc(&c->k, (size_t)layers, sizeof *c->k));
    TR_GO(tr_calloc(&c->v, (size_t)layers, sizeof *c->v));
    for (int i = 1; i < layers - 1; i++) {
        TR_GO(tr_tensor_new(&c->k[i], TR_ACTIVATIONS, net->compute, TR_DIMS(capacity, net->shape.kv_heads * net->shape.head_dim)));
        TR_GO(tr_tensor_new(&c->v[i], TR_ACTIVATIONS, net->compute, TR_DIMS(capacity, net->shape.kv_heads * net->shape.head_dim)));
    }
    return TR_OK;
done:
    tr_cache_release(c);
    return rc;
}

void tr_cache_release(struct tr_cache *c)
{
    for (int i = 0; i < c->layers; i++) {
        if (c->k) tr_tensor_release(&c->k[i]);
        if (c->v) tr_tensor_release(&c->v[i]);
    }
    free(c->k);
    free(c->v);
    *c = (struct tr_cache){ 0 };
}

/* ---- layers */

struct pass { struct tr_net *net; struct tr_feed *feed; struct tr_layer *layer; struct tr_cache *cache; };

static struct tr_weight *have(struct tr_weight *w) { return w->n ? w : NULL; }

static int norm(struct tr_net *net, struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *g, struct tr_weight *b)
{
    return b->n ? tr_layer_norm(t, y, x, g, b, net->shape.norm_eps) : tr_rms_norm(t, y, x, g, net->shape.norm_eps);
}

/* Attention over the cache: appends the new keys and values; a single new token goes through the decoding kernel. */
static int attend_with_cache(struct pass *p, struct tr_tape *t, struct tr_value **o, struct tr_value *qkv)
{
    const struct tr_attention *a = &p->net->attention;
    struct tr_cache *c = p->cache;
    int64_t N = tr_rows(&qkv->t), q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim, l = p->layer->index;
    struct tr_tensor k = tr_cols_view(&qkv->t, q, kv), v = tr_cols_view(&qkv->t, q + kv, kv);
    struct tr_tensor to_k = tr_rows_view(&c->k[l], c->n, N), to_v = tr_rows_view(&c->v[l], c->n, N);
    tr_kernels()->copy(&to_k, &k);
    tr_kernels()->copy(&to_v, &v);
    if (c->n == 0) return tr_attend(t, o, qkv, &p->feed->layout, a);
    TR_TRY(tr_value_new(t, o, qkv->t.dtype, TR_DIMS(N, q)));
    for (int64_t i = 0; i < N; i++) {
        struct tr_tensor oi = tr_rows_view(&(*o)->t, i, 1), qi = tr_rows_view(&qkv->t, i, 1);
        int64_t n = c->n + i + 1, window = p->net->shape.window;
        tr_kernels()->attention_cached(&oi, &qi, &c->k[l], &c->v[l], window && n > window ? n - window : 0, n, a);
    }
    return TR_OK;
}

/* x + attention(norm(x)), then + mlp(norm(x)). */
static int block(void *self, struct tr_tape *t, struct tr_value **out, struct tr_value *x)
{
    struct pass *p = self;
    struct tr_net *net = p->net;
    struct tr_layer *l = p->layer;
    const struct tr_attention *a = &net->attention;
    struct tr_value *n, *qkv, *o, *y, *mid, *up, *act;
    tr_part_enter(TR_PART_NORM);
    TR_TRY(norm(net, t, &n, x, &l->norm1, &l->norm1_b));
    tr_part_enter(TR_PART_ATTENTION);
    TR_TRY(tr_linear(t, &qkv, n, &l->qkv, have(&l->qkv_b)));
    tr_drop(t, n);
    if (l->q_norm.n) {
        struct tr_value *raw = qkv;
        TR_TRY(tr_qk_norm(t, &qkv, raw, &l->q_norm, &l->k_norm, net->shape.norm_eps, a));
        tr_drop(t, raw);
    }
    if (net->rope_PD.ndim) TR_TRY(tr_rope(t, qkv, &net->rope_PD, &p->feed->layout.pos_N, a->heads + a->kv_heads));
    if (p->cache) TR_TRY(attend_with_cache(p, t, &o, qkv));
    else TR_TRY(tr_attend(t, &o, qkv, &p->feed->layout, a));
    tr_drop(t, qkv);
    TR_TRY(tr_linear(t, &y, o, &l->out, have(&l->out_b)));
    tr_drop(t, o);
    TR_TRY(tr_add(t, &mid, x, y));
    tr_drop(t, y);

    tr_part_enter(TR_PART_NORM);
    TR_TRY(norm(net, t, &n, mid, &l->norm2, &l->norm2_b));
    tr_part_enter(TR_PART_MLP);
    TR_TRY(tr_linear(t, &up, n, &l->up, have(&l->up_b)));
    tr_drop(t, n);
    TR_TRY((net->shape.arch == TR_GPT2 ? tr_gelu : tr_swiglu)(t, &act, up));
    tr_drop(t, up);
    TR_TRY(tr_linear(t, &y, act, &l->down, have(&l->down_b)));
    tr_drop(t, act);
    TR_TRY(tr_add(t, out, mid, y));
    tr_drop(t, mid);
    tr_drop(t, y);
    return TR_OK;
}

/* The lowest layer that trains: below it backward has nothing to do. */
static int first_to_train(const struct tr_net *net)
{
    int low = net->n_layers;
    for (int64_t i = 0; i < net->n_params; i++)
        if (!net->param[i].frozen && net->param[i].layer < low) low = net->param[i].layer;
    return low;
}

/* Some layers, up to the final norm where that is the last. in: NULL where the embedding is the first; the caller's. */
static int hidden(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, struct tr_stage stage, struct tr_cache *cache, struct tr_value *in, struct tr_value **h)
{
    struct tr_layer *e = &net->layer[0], *top = &net->layer[net->n_layers - 1];
    struct tr_value *x = in, *y;
    struct pass *pass = f->pass;
    bool record = tr_tape_recording(t);
    int low = first_to_train(net);
    if (!pass) TR_TRY(tr_calloc(&pass, (size_t)net->n_layers, sizeof *pass));
    f->pass = pass;
    if (record) tr_tape_record(t, low <= stage.from);
    if (stage.from == 0) {
        tr_part_enter(TR_PART_EMBED);
        if (!net->vocab_rows) TR_TRY(tr_embedding(t, &x, net->compute, &e->embed, &f->ids_N));
        if (e->pos.n) TR_TRY(tr_positions(t, x, &e->pos, &f->layout.pos_N));
    }
    for (int i = stage.from > 1 ? stage.from : 1; i < stage.to && i < net->n_layers - 1; i++) {
        if (record && i == low) tr_tape_record(t, true);
        pass[i] = (struct pass){ net, f, &net->layer[i], cache };
        TR_TRY(tr_checkpoint(t, &y, x, block, &pass[i]));
        if (x != in) tr_drop(t, x);
        x = y;
    }
    if (record) tr_tape_record(t, true);
    *h = x;
    if (stage.to < net->n_layers) return TR_OK;
    tr_part_enter(TR_PART_NORM);
    TR_TRY(norm(net, t, h, x, &top->norm1, &top->norm1_b));
    if (x != in) tr_drop(t, x);
    return TR_OK;
}

struct tr_weight *tr_net_head(struct tr_net *net)
{
    struct tr_weight *w = &net->layer[net->n_layers - 1].head;
    return w->n ? w : &net->layer[0].embed;
}

int tr_net_stage(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, struct tr_stage stage, float scale, int64_t segment, struct tr_value *in, struct tr_value **out, double *loss)
{
    struct tr_value *h;
    enum tr_part part = tr_part_current();
    TR_TRY(hidden(net, t, f, stage, NULL, in, &h));
    TR_TRY(tr_tape_settle(t));
    if (out) *out = h;
    if (stage.to == net->n_layers && !net->vocab_rows) {
        if (out) *out = NULL;
        tr_part_enter(TR_PART_LOSS);
        TR_TRY(tr_loss_head(t, &f->loss_M, h, tr_net_head(net), &f->rows_M, &f->targets_M, f->n_counted, scale, segment));
        tr_drop(t, h);
        tr_tensor_read(&f->loss_M, f->host_loss);
        TR_TRY(tr_device_check());
        *loss = 0;
        for (int64_t i = 0; i < f->n_counted; i++) *loss += (double)f->host_loss[i];
    }
    tr_part_enter(part);
    return TR_OK;
}

int tr_net_loss(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, float scale, int64_t segment, double *loss)
{
    return tr_net_stage(net, t, f, (struct tr_stage){ 0, net->n_layers }, scale, segment, NULL, NULL, loss);
}

int tr_net_first_bad(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, int *layer)
{
    struct tr_value *x, *y;
    *layer = 0;
    TR_TRY(tr_embedding(t, &x, net->compute, &net->layer[0].embed, &f->ids_N));
    if (net->layer[0].pos.n) TR_TRY(tr_positions(t, x, &net->layer[0].pos, &f->layout.pos_N));
    if (!tr_kernels()->all_finite(&x->t)) return TR_OK;
    for (int i = 1; i < net->n_layers; i++) {
        struct pass p = { net, f, &net->layer[i], NULL };
        if (net->layer[i].kind == TR_LAYER_BLOCK) TR_TRY(block(&p, t, &y, x));
        else TR_TRY(norm(net, t, &y, x, &net->layer[i].norm1, &net->layer[i].norm1_b));
        tr_drop(t, x);
        x = y;
        *layer = i;
        if (!tr_kernels()->all_finite(&x->t)) return TR_OK;
    }
    *layer = -1;
    return TR_OK;
}

int tr_net_hidden(struct tr_net *net, struct tr_tape *t, struct tr_feed *f, struct tr_cache *cache, struct tr_value **h_NC)
{
    if (cache && cache->n + f->layout.n_tokens > cache->capacity)
        return tr_fail(TR_EINPUT, "the text is longer than the %" PRId64 " tokens foreseen; lower --max-tokens or shorten the prompt", cache->capacity);
    enum tr_part part = tr_part_current();
    TR_TRY(hidden(net, t, f, (struct tr_stage){ 0, net->n_layers }, cache, NULL, h_NC));
    tr_part_enter(part);
    if (cache) cache->n += f->layout.n_tokens;
    return TR_OK;
}

int tr_net_logits(struct tr_net *net, const struct tr_value *h_NC, int64_t begin, int64_t n, float *out)
{
    struct tr_tensor logits, rows = tr_rows_view(&h_NC->t, begin, n);
    TR_TRY(tr_tensor_arena(&logits, TR_WORKSPACE, TR_F32, TR_DIMS(n, net->shape.vocab), 0));
    int rc = net->resident.need(net, tr_net_head(net));
    if (rc == TR_OK) rc = tr_gemm_forward(&logits, &rows, &tr_net_head(net)->value, false);
    if (rc == TR_OK && out) tr_tensor_read(&logits, out);
    if (rc == TR_OK && out) rc = tr_device_check();
    tr_tensor_release(&logits);
    return rc;
}
