/* Building, loading, initialising: which parameters a shape has, under which names, in which stacks. */
#include "libtrain/model/net.h"
#include "libtrain/model/shard.h"
#include "libtrain/base/log.h"
#include "libtrain/base/status.h"
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct part { const char *name; int64_t rows; };   /* name: with %d for the block's number; rows 0 ends a list */

/* One weight: storage for all parts stacked, a parameter for each. cols 0: a vector. */
static int add_weight(struct tr_net *net, struct tr_weight *w, int layer, int block, enum tr_role role, int64_t cols,
                      bool file_transposed, const struct part *part)
{
    int64_t rows = 0;
    for (int i = 0; part[i].rows; i++) rows += part[i].rows;
    struct tr_tensor *store = &net->storage[net->n_storage++];
    *w = (struct tr_weight){ 0 };
    enum tr_dtype dtype = cols == 0 && net->dtype == TR_INT8 ? TR_BF16 : net->dtype;
    int ndim = cols ? 2 : 1;
    bool spread = net->vocab_rows && (role == TR_HEAD || net->n_storage == 1), here = net->has[layer] || spread, copy = role == TR_EMBEDDING && net->shape.tied && net->has[net->n_layers - 1] && net->n_storage == 1;
    if (spread) rows = net->vocab_rows;
    const int64_t dim[] = { rows, cols };
    if (net->sharded || (!here && !copy)) {
        *store = tr_tensor_view(NULL, dtype, ndim, dim);
        if (dtype == TR_INT8) store->quant.group = TR_QUANT_GROUP;
    } else TR_TRY(tr_tensor_new(store, TR_WEIGHTS, dtype, ndim, dim));
    w->value = *store;
    w->value.owner = 0;
    int64_t at = 0;
    for (int i = 0; part[i].rows; i++, at += part[i - 1].rows) {
        struct tr_param *p = &net->param[net->n_params];
        *p = (struct tr_param){ .role = role, .layer = layer, .index = (int)net->n_params++, .file_transposed = file_transposed, .trainable = true, .elsewhere = !here, .spread = spread };
        char name[sizeof p->name];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* names come from the tables below, not from outside */
        snprintf(name, sizeof name, part[i].name, block);
#pragma GCC diagnostic pop
        memcpy(p->name, name, sizeof name);
        if (spread) {
            p->value = tr_tensor_view(NULL, dtype, TR_DIMS(part[i].rows, cols));
            p->value.quant.group = w->value.quant.group;
            p->shard = w->value;
            p->shard_begin = net->vocab_begin;
        } else if (cols) p->value = tr_rows_view(&w->value, at, part[i].rows);
        else {
            p->value = tr_tensor_view(store->data ? (char *)store->data + (size_t)at * tr_dtype_size(dtype) : NULL, dtype, TR_DIMS(part[i].rows));
        }
        w->param[w->n++] = p;
    }
    return TR_OK;
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#define PARTS(...) (const struct part[]){ __VA_ARGS__, { NULL, 0 } }
#define B "model.layers.%d."

static int build_llama_block(struct tr_net *net, struct tr_layer *l, int i)
{
    const struct tr_shape *s = &net->shape;
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, C = s->hidden, I = s->intermediate;
    TR_TRY(add_weight(net, &l->qkv, l->index, i, TR_MATRIX, C, false, PARTS({ B "self_attn.q_proj.weight", q }, { B "self_attn.k_proj.weight", kv }, { B "self_attn.v_proj.weight", kv })));
    if (s->qkv_bias) TR_TRY(add_weight(net, &l->qkv_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "self_attn.q_proj.bias", q }, { B "self_attn.k_proj.bias", kv }, { B "self_attn.v_proj.bias", kv })));
    if (s->qk_norm) {
        TR_TRY(add_weight(net, &l->q_norm, l->index, i, TR_NORM, 0, false, PARTS({ B "self_attn.q_norm.weight", s->head_dim })));
        TR_TRY(add_weight(net, &l->k_norm, l->index, i, TR_NORM, 0, false, PARTS({ B "self_attn.k_norm.weight", s->head_dim })));
    }
    TR_TRY(add_weight(net, &l->out, l->index, i, TR_MATRIX, q, false, PARTS({ B "self_attn.o_proj.weight", C })));
    if (s->out_bias) TR_TRY(add_weight(net, &l->out_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "self_attn.o_proj.bias", C })));
    TR_TRY(add_weight(net, &l->up, l->index, i, TR_MATRIX, C, false, PARTS({ B "mlp.gate_proj.weight", I }, { B "mlp.up_proj.weight", I })));
    TR_TRY(add_weight(net, &l->down, l->index, i, TR_MATRIX, I, false, PARTS({ B "mlp.down_proj.weight", C })));
    if (s->mlp_bias) {
        TR_TRY(add_weight(net, &l->up_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "mlp.gate_proj.bias", I }, { B "mlp.up_proj.bias", I })));
        TR_TRY(add_weight(net, &l->down_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "mlp.down_proj.bias", C })));
    }
    TR_TRY(add_weight(net, &l->norm1, l->index, i, TR_NORM, 0, false, PARTS({ B "input_layernorm.weight", C })));
    return add_weight(net, &l->norm2, l->index, i, TR_NORM, 0, false, PARTS({ B "post_attention_layernorm.weight", C }));
}

#undef B
#define B "transformer.h.%d."

static int build_gpt2_block(struct tr_net *net, struct tr_layer *l, int i)
{
    const struct tr_shape *s = &net->shape;
    int64_t C = s->hidden, I = s->intermediate;
    TR_TRY(add_weight(net, &l->norm1, l->index, i, TR_NORM, 0, false, PARTS({ B "ln_1.weight", C })));
    TR_TRY(add_weight(net, &l->norm1_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "ln_1.bias", C })));
    TR_TRY(add_weight(net, &l->qkv, l->index, i, TR_MATRIX, C, true, PARTS({ B "attn.c_attn.weight", 3 * C })));
    TR_TRY(add_weight(net, &l->qkv_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "attn.c_attn.bias", 3 * C })));
    TR_TRY(add_weight(net, &l->out, l->index, i, TR_MATRIX, C, true, PARTS({ B "attn.c_proj.weight", C })));
    TR_TRY(add_weight(net, &l->out_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "attn.c_proj.bias", C })));
    TR_TRY(add_weight(net, &l->norm2, l->index, i, TR_NORM, 0, false, PARTS({ B "ln_2.weight", C })));
    TR_TRY(add_weight(net, &l->norm2_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "ln_2.bias", C })));
    TR_TRY(add_weight(net, &l->up, l->index, i, TR_MATRIX, C, true, PARTS({ B "mlp.c_fc.weight", I })));
    TR_TRY(add_weight(net, &l->up_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "mlp.c_fc.bias", I })));
    TR_TRY(add_weight(net, &l->down, l->index, i, TR_MATRIX, I, true, PARTS({ B "mlp.c_proj.weight", C })));
    return add_weight(net, &l->down_b, l->index, i, TR_BIAS, 0, false, PARTS({ B "mlp.c_proj.bias", C }));
}

static int build_layers(struct tr_net *net)
{
    const struct tr_shape *s = &net->shape;
    bool gpt2 = s->arch == TR_GPT2;
    int64_t C = s->hidden, V = s->vocab;
    for (int i = 0; i < net->n_layers; i++) {
        struct tr_layer *l = &net->layer[i];
        l->index = i;
        l->kind = i == 0 ? TR_LAYER_EMBED : i == net->n_layers - 1 ? TR_LAYER_HEAD : TR_LAYER_BLOCK;
        if (l->kind == TR_LAYER_EMBED) {
            TR_TRY(add_weight(net, &l->embed, i, 0, TR_EMBEDDING, C, false, PARTS({ gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", V })));
            if (gpt2) TR_TRY(add_weight(net, &l->pos, i, 0, TR_EMBEDDING, C, false, PARTS({ "transformer.wpe.weight", s->context })));
        } else if (l->kind == TR_LAYER_BLOCK) TR_TRY((gpt2 ? build_gpt2_block : build_llama_block)(net, l, i - 1));
        else {
            TR_TRY(add_weight(net, &l->norm1, i, 0, TR_NORM, 0, false, PARTS({ gpt2 ? "transformer.ln_f.weight" : "model.norm.weight", C })));
            if (gpt2) TR_TRY(add_weight(net, &l->norm1_b, i, 0, TR_BIAS, 0, false, PARTS({ "transformer.ln_f.bias", C })));
            if (!s->tied) TR_TRY(add_weight(net, &l->head, i, 0, TR_HEAD, C, false, PARTS({ "lm_head.weight", V })));
        }
    }
    return TR_OK;
}

/* cos and sin of every position. Angles are formed in f32 as transformers does (position times inverse frequency), so
 * that far positions agree; llama3 scaling after its paper's code: low frequencies slowed, a smooth band between. */
static int build_rope(struct tr_net *net, int64_t positions)
{
    const struct tr_shape *s = &net->shape;
    int64_t D = s->head_dim, half = D / 2;
    if (s->arch == TR_GPT2) return TR_OK;
    TR_TRY(tr_tensor_new(&net->rope_PD, TR_OTHER, TR_F32, TR_DIMS(positions, D)));
    if (tr_mem_is_dry()) return TR_OK;
    float *table = malloc((size_t)(positions * D) * sizeof *table);
    if (!table) return tr_fail(TR_EFAIL, "no memory for %" PRId64 " positions", positions);
    for (int64_t i = 0; i < half; i++) {
        float inv = 1.0f / powf((float)s->rope_theta, (float)(2 * i) / (float)D);
        if (s->rope_linear > 1) inv = (float)(inv / s->rope_linear);
        if (s->rope_llama3.on) {
            double wave = 2 * M_PI / inv, old = (double)s->rope_llama3.old_context, f = s->rope_llama3.factor;
            double lo = s->rope_llama3.low_freq, hi = s->rope_llama3.high_freq, smooth = (old / wave - lo) / (hi - lo);
            if (wave > old / lo) inv = (float)(inv / f);
            else if (wave >= old / hi) inv = (float)((1 - smooth) * inv / f + smooth * inv);
        }
        for (int64_t p = 0; p < positions; p++) {
            float angle = (float)p * inv;
            table[p * D + i] = (float)cos((double)angle);
            table[p * D + half + i] = (float)sin((double)angle);
        }
    }
    tr_tensor_write(&net->rope_PD, table);
    free(table);
    return TR_OK;
}

int tr_net_new(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions)
{
    return tr_net_new_sharded(out, shape, dtype, compute, positions, (struct tr_shards){ 0 });
}

/* What this rank has of a parameter: all or none of its rows. */
static void own_all(struct tr_param *p)
{
    if (p->spread) return;
    p->shard = p->value;
    p->shard.owner = 0;
    if (p->elsewhere) p->shard.dim[0] = 0;
}

static int build(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions, const struct tr_cut *cut, bool sharded, struct tr_shards shards)
{
    TR_TRY(tr_shape_check(shape, "model"));
    struct tr_net *net;
    TR_TRY(tr_calloc(&net, 1, sizeof *net));
    int rc;
    net->shape = *shape;
    net->dtype = dtype;
    net->compute = compute;
    net->shards = shards;
    net->sharded = sharded;
    net->resident = (struct tr_resident){ net, tr_shard_need, tr_shard_leave };
    net->attention = (struct tr_attention){ shape->heads, shape->kv_heads, shape->head_dim, (float)(1 / sqrt((double)shape->head_dim)) };
    net->n_layers = (int)shape->layers + 2;
    TR_GO(tr_calloc(&net->layer, (size_t)net->n_layers, sizeof *net->layer));
    TR_GO(tr_calloc(&net->has, (size_t)net->n_layers, sizeof *net->has));
    for (int i = 0; i < cut->n; i++)
        for (int l = cut->stage[i].from; l < cut->stage[i].to && l < net->n_layers; l++) net->has[l] = true;
    net->vocab_begin = cut->vocab_begin;
    net->vocab_rows = cut->vocab_rows;
    enum { MOST = 16 };   /* parameters a layer */
    TR_GO(tr_calloc(&net->param, (size_t)net->n_layers * MOST, sizeof *net->param));
    TR_GO(tr_calloc(&net->storage, (size_t)net->n_layers * MOST, sizeof *net->storage));
    TR_GO(build_layers(net));
    TR_GO(build_rope(net, positions > shape->context ? positions : shape->context));
    for (int64_t i = 0; i < net->n_params && shards.gather && !sharded; i++) own_all(&net->param[i]);
    *out = net;
    return TR_OK;
done:
    tr_net_free(net);
    return rc;
}

int tr_net_new_sharded(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions, struct tr_shards shards)
{
    struct tr_cut all = { .stage = &(struct tr_stage){ 0, INT_MAX }, .n = 1 };
    return build(out, shape, dtype, compute, positions, &all, shards.gather != NULL, shards);
}

int tr_net_new_stages(struct tr_net **out, const struct tr_shape *shape, enum tr_dtype dtype, enum tr_dtype compute, int64_t positions, const struct tr_cut *cut, struct tr_shards shards)
{
    return build(out, shape, dtype, compute, positions, cut, false, shards);
}

void tr_net_free(struct tr_net *net)
{
    if (!net) return;
    tr_shard_leave(net);
    for (int64_t i = 0; i < net->n_params; i++) tr_tensor_release(&net->param[i].shard);
    for (int64_t i = 0; i < net->n_storage; i++) tr_tensor_release(&net->storage[i]);
    tr_tensor_release(&net->rope_PD);
    free(net->storage);
    free(net->param);
    free(net->has);
    free(net->layer);
    free(net);
}

int tr_layer_weights(struct tr_layer *l, struct tr_weight *out[TR_LAYER_WEIGHTS])
{
    int n = 0;
    struct tr_weight *all[TR_LAYER_WEIGHTS] = { &l->embed, &l->pos, &l->norm1, &l->norm1_b, &l->norm2, &l->norm2_b, &l->qkv, &l->qkv_b, &l->q_norm,
                                        &l->k_norm, &l->out, &l->out_b, &l->up, &l->up_b, &l->down, &l->down_b, &l->head };
    for (int k = 0; k < TR_LAYER_WEIGHTS; k++)
        if (all[k]->n) out[n++] = all[k];
    return n;
}

int tr_net_weights(struct tr_net *net, int (*each)(void *self, struct tr_weight *w), void *self)
{
    struct tr_weight *w[TR_LAYER_WEIGHTS];
    for (int i = 0; i < net->n_layers; i++)
        for (int k = 0, n = tr_layer_weights(&net->layer[i], w); k < n; k++) TR_TRY(each(self, w[k]));
    return TR_OK;
}

struct tr_param *tr_net_find(struct tr_net *net, const char *name)
{
    for (int64_t i = 0; i < net->n_params; i++)
        if (!strcmp(net->param[i].name, name)) return &net->param[i];
    return NULL;
}

int tr_net_visit(struct tr_net *net, struct tr_visitor *v)
{
    for (int64_t i = 0; i < net->n_params; i++) {
        char name[128];
        snprintf(name, sizeof name, "param/%s", net->param[i].name);
        TR_TRY(net->shards.gather ? tr_shard_visit(net, &net->param[i], v, name) : v->tensor(v->self, name, &net->param[i].value));
    }
    return TR_OK;
}

/* ---- values */

enum { CHUNK = 1 << 20 };   /* elements moved through host memory at a time */

/* Writes n rows of f32 into a tensor from row `begin`, through a staging tensor of the kernels. */
static int rows_write(struct tr_tensor *values, int64_t begin, int64_t n, const float *rows, struct tr_tensor *stage)
{
    int64_t cols = tr_cols(values);
    struct tr_tensor part = *stage, to = values->ndim == 1 ? tr_reshape(values, TR_DIMS(1, cols)) : tr_rows_view(values, begin, n);
    part.owner = 0;
    part.ndim = 2;
    part.dim[0] = n;
    part.dim[1] = part.ld = cols;
    tr_tensor_write(&part, rows);
    tr_kernels()->copy(&to, &part);
    return TR_OK;
}

int tr_param_read(const struct tr_param *p, int64_t begin, int64_t n, float *out)
{
    struct tr_tensor stage, from = p->value.ndim == 1 ? tr_reshape(&p->value, TR_DIMS(1, tr_cols(&p->value))) : tr_rows_view(&p->value, begin, n);
    TR_TRY(tr_tensor_arena(&stage, TR_WORKSPACE, TR_F32, TR_DIMS(n, tr_cols(&from)), 0));
    tr_kernels()->copy(&stage, &from);
    tr_tensor_read(&stage, out);
    tr_tensor_release(&stage);
    return TR_OK;
}

typedef int (*row_source)(void *self, struct tr_param *p, int64_t begin, int64_t n, float *out);

static int fill_params(struct tr_net *net, row_source source, void *self, const char *doing)
{
    if (tr_mem_is_dry()) return TR_OK;
    int64_t most = CHUNK;
    for (int64_t i = 0; i < net->n_params; i++)
        if (tr_cols(&net->param[i].value) > most) most = tr_cols(&net->param[i].value);
    struct tr_tensor stage = { 0 };
    float *rows = malloc((size_t)most * sizeof *rows);
    int rc = rows ? tr_tensor_arena(&stage, TR_WORKSPACE, TR_F32, TR_DIMS(most), 0) : tr_fail(TR_EFAIL, "no memory to load the model");
    for (int64_t i = 0; i < net->n_params && rc == TR_OK; i++) {
        struct tr_param *p = &net->param[i];
        struct tr_tensor *to = net->sharded || p->spread ? &p->shard : &p->value; /* of shared weights this rank's rows */
        if (!net->sharded && !to->data) continue; /* of another stage */
        int64_t cols = tr_cols(&p->value), total = tr_count(to) / cols, step = most / cols;
        if (net->n_params > 50 && i % 16 == 0) tr_progress(false, "%s %" PRId64 "/%" PRId64, doing, i, net->n_params);
        for (int64_t r = 0; r < total && rc == TR_OK; r += step) {
            int64_t n = total - r < step ? total - r : step;
            rc = source(self, p, p->shard_begin + r, n, rows);
            if (rc == TR_OK) rc = rows_write(to, r, n, rows, &stage);
        }
    }
    tr_tensor_release(&stage);
    free(rows);
    return rc;
}

static int rows_of_file(void *self, struct tr_param *p, int64_t begin, int64_t n, float *out)
{
    const struct tr_weights *w = self;
    const struct tr_weight_entry *e = tr_weights_find(w, p->name);
    return tr_weights_read(w, e, begin, n, out);
}

int tr_net_load(struct tr_net *net, const struct tr_weights *w)
{
    for (int64_t i = 0; i < net->n_params; i++) { /* all are checked before the first is read */
        const struct tr_param *p = &net->param[i];
        const struct tr_weight_entry *e = tr_weights_find(w, p->name);
        if (!e) return tr_fail(TR_EINPUT, "tensor '%s' (%s): it is missing; the file is of another model or incomplete", p->name, tr_weights_path(w));
        bool same = e->ndim == p->value.ndim;
        for (int k = 0; same && k < e->ndim; k++) same = e->dim[k] == p->value.dim[k];
        if (!same) {
            struct tr_tensor has = tr_tensor_view(NULL, TR_F32, e->ndim, e->dim);
            return tr_fail(TR_EINPUT, "tensor '%s' (%s): its shape is %s where the configuration asks for %s", p->name, tr_weights_path(w), tr_shape_text(&has), tr_shape_text(&p->value));
        }
    }
    return fill_params(net, rows_of_file, (void *)(uintptr_t)w, "loading");
}

struct random_rows { const struct tr_shape *shape; uint64_t seed; };

static int rows_at_random(void *self, struct tr_param *p, int64_t begin, int64_t n, float *out)
{
    const struct random_rows *r = self;
    int64_t cols = tr_cols(&p->value), count = n * cols;
    if (p->role == TR_NORM || p->role == TR_BIAS) {
        for (int64_t i = 0; i < count; i++) out[i] = p->role == TR_NORM;
        return TR_OK;
    }
    double std = r->shape->init_std;
    if (r->shape->arch == TR_GPT2 && strstr(p->name, "c_proj")) std /= sqrt(2.0 * (double)r->shape->layers);
    struct tr_key key = tr_key(r->seed, TR_RNG_INIT, tr_hash(p->name), 0);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) tr_normals(out + i * cols, key, (uint64_t)((begin + i) * cols), cols, std);
    return TR_OK;
}

int tr_net_init(struct tr_net *net, uint64_t seed)
{
    struct random_rows r = { &net->shape, seed };
    return fill_params(net, rows_at_random, &r, "drawing weights");
}
