#include "libtrain/autograd/tape.h"
#include "libtrain/base/buf.h"
#include "libtrain/base/status.h"
#include <stdlib.h>

struct later { struct tr_node node; struct tr_grad *grad; };   /* grad: of the node's output */

struct tr_tape {
    struct tr_node *node;
    size_t n, cap;
    struct tr_value *values, *spare;     /* alive; structs to use again */
    struct tr_weight **used;             /* by this micro-batch, once for each use */
    size_t n_used, cap_used;
    bool record, count;                  /* count: uses of weights are being counted (not while a block runs again) */
    enum tr_recompute policy;
    const struct tr_sink *sink;
    bool keep_grads;
    bool split;                          /* gradients of weights wait in `later` */
    struct later *later;
    size_t n_later, cap_later;
    const struct tr_resident *resident;
    /* offloading: the block at work (in forward the count of those begun), the end of the file, the last job given */
    struct tr_spill *file;
    int block;
    uint64_t end, ticket;
};

int tr_tape_new(struct tr_tape **out) { return tr_calloc(out, 1, sizeof **out); }

void tr_tape_free(struct tr_tape *t)
{
    if (!t) return;
    tr_tape_clear(t);
    for (struct tr_value *v; (v = t->spare) != NULL; free(v)) t->spare = v->next;
    free(t->later);
    free(t->used);
    free(t->node);
    free(t);
}

void tr_tape_resident(struct tr_tape *t, const struct tr_resident *r) { t->resident = r; }

int tr_need(struct tr_tape *t, struct tr_weight *w) { return t->resident && w ? t->resident->need(t->resident->self, w) : TR_OK; }

void tr_tape_offload(struct tr_tape *t, struct tr_spill *file) { t->file = file; }

void tr_tape_begin(struct tr_tape *t, bool record, enum tr_recompute policy)
{
    tr_tape_clear(t);
    t->block = 0;
    t->end = 0;
    t->record = record;
    t->count = record;
    t->policy = policy;
}

void tr_tape_record(struct tr_tape *t, bool record) { t->record = t->count = record; }

bool tr_tape_recording(const struct tr_tape *t) { return t->record; }

/* ---- values */

int tr_value_new(struct tr_tape *t, struct tr_value **out, enum tr_dtype dtype, int ndim, const int64_t *dim)
{
    struct tr_value *v = t->spare;
    if (v) t->spare = v->next;
    else TR_TRY(tr_calloc(&v, 1, sizeof *v));
    *v = (struct tr_value){ .holders = 1, .next = t->values };
    t->values = v;
    *out = v;
    return tr_tensor_arena(&v->t, TR_ACTIVATIONS, dtype, ndim, dim, 0);
}

static void forget_data(struct tr_value *v) /* keeps the shape for a rebuild */
{
    struct tr_tensor shape = v->t;
    tr_tensor_release(&v->t);
    shape.data = NULL;
    shape.owner = 0;
    v->t = shape;
}

static void settle(struct tr_tape *t, struct tr_value *v)
{
    if (v->holders == 0 && v->t.data && (v->savers == 0 || (v->maker && t->policy == TR_SELECTIVE))) forget_data(v);
}

void tr_drop(struct tr_tape *t, struct tr_value *v)
{
    if (!v) return;
    v->holders--;
    settle(t, v);
}

static void grad_drop(struct tr_grad *g)
{
    if (!g || --g->holders > 0) return;
    tr_tensor_release(&g->t);
    free(g);
}

static void grad_release(struct tr_value *v)
{
    grad_drop(v->grad);
    v->grad = NULL;
}

void tr_tape_clear(struct tr_tape *t)
{
    if (t->file) tr_spill_wait(t->file, t->ticket); /* the file's thread may be at work on what is freed now */
    while (t->n_later > 0) grad_drop(t->later[--t->n_later].grad);
    for (struct tr_value *v; (v = t->values) != NULL;) {
        t->values = v->next;
        grad_release(v);
        tr_tensor_release(&v->t);
        v->next = t->spare;
        t->spare = v;
    }
    t->n = t->n_used = 0;
    if (t->resident) t->resident->leave(t->resident->self);
}

/* ---- saved values that wait in a file */

static bool is_large(const struct tr_value *v) { return tr_bytes(&v->t) >= TR_SPILL_LEAST; }

/* What was being written is there: its memory is free. */
static int finish_going(struct tr_tape *t)
{
    int rc = tr_spill_wait(t->file, t->ticket);
    for (struct tr_value *v = t->values; v; v = v->next) {
        if (v->place != TR_GOING) continue;
        forget_data(v);
        v->place = TR_AWAY;
    }
    return rc;
}

int tr_tape_settle(struct tr_tape *t) { return t->file && t->count ? finish_going(t) : TR_OK; }

/* Before a block's forward: what the blocks before it saved and nobody uses goes. */
static int begin_block(struct tr_tape *t)
{
    if (!t->file || !t->count) return TR_OK;
    TR_TRY(finish_going(t));
    t->block++;
    for (struct tr_value *v = t->values; v; v = v->next) {
        if (v->holders || !v->savers || !v->t.data || !is_large(v) || v->place != TR_HERE) continue;
        v->at = t->end;
        t->end += tr_spill_room(tr_bytes(&v->t));
        t->ticket = tr_spill_write(t->file, v->at, v->t.data, tr_bytes(&v->t));
        v->place = TR_GOING;
    }
    return TR_OK;
}

/* Begins to read what a block saved. */
static int come(struct tr_tape *t, int block)
{
    for (struct tr_value *v = t->values; v; v = v->next) {
        if (v->place != TR_AWAY || v->block != block) continue;
        TR_TRY(tr_tensor_arena(&v->t, TR_ACTIVATIONS, v->t.dtype, v->t.ndim, (int64_t[4]){ v->t.dim[0], v->t.dim[1], v->t.dim[2], v->t.dim[3] }, 0));
        t->ticket = tr_spill_read(t->file, v->at, v->t.data, tr_bytes(&v->t));
        v->place = TR_COMING;
    }
    return TR_OK;
}

/* Before a block's backward: all that it saved is there, and the block below is on its way. */
static int enter_block(struct tr_tape *t, int block)
{
    if (!t->file || block == t->block) return TR_OK;
    t->block = block;
    TR_TRY(come(t, block));
    TR_TRY(tr_spill_wait(t->file, t->ticket));
    for (struct tr_value *v = t->values; v; v = v->next)
        if (v->place == TR_COMING) v->place = TR_HERE;
    return come(t, block - 1);
}

/* ---- recording */

int tr_record(struct tr_tape *t, struct tr_node **n, const struct tr_op *op, struct tr_value *out)
{
    *n = NULL;
    if (!t->record) return TR_OK;
    /* Nodes are pointed to by values (maker): the array must not move while they do, so it is made once, large. */
    enum { NODES = 1 << 14 };
    if (!t->node) TR_TRY(tr_calloc(&t->node, NODES, sizeof *t->node));
    if (t->n == NODES) return tr_fail(TR_EFAIL, "the model has more than %d operations", NODES);
    *n = &t->node[t->n++];
    **n = (struct tr_node){ .op = op, .out = out, .part = tr_part_current(), .block = t->block };
    return TR_OK;
}

int tr_use(struct tr_tape *t, struct tr_node *n, int slot, struct tr_weight *w)
{
    if (!w) return TR_OK;
    if (n) n->w[slot] = w;
    if (!t->count) return TR_OK;
    TR_TRY(tr_grow(&t->used, t->n_used, &t->cap_used, sizeof(struct tr_weight *)));
    t->used[t->n_used++] = w;
    return TR_OK;
}

void tr_input(struct tr_node *n, int slot, struct tr_value *v, bool save)
{
    if (!n) return;
    n->in[slot] = v;
    n->saved[slot] = save;
    v->savers += save;
    if (save) v->block = n->block;
}

void tr_save_out(struct tr_node *n)
{
    if (!n) return;
    n->saved_out = true;
    n->out->savers++;
    n->out->block = n->block;
}

void tr_rebuildable(struct tr_node *n)
{
    if (n) n->out->maker = n;
}

/* ---- backward */

int tr_saved(struct tr_node *n, int slot, struct tr_tensor **out)
{
    struct tr_value *v = n->in[slot];
    *out = &v->t;
    if (v->t.data) return TR_OK;
    TR_TRY(tr_tensor_arena(&v->t, TR_ACTIVATIONS, v->t.dtype, v->t.ndim, (int64_t[4]){ v->t.dim[0], v->t.dim[1], v->t.dim[2], v->t.dim[3] }, 0));
    return v->maker->op->rebuild(v->maker, v);
}

struct tr_tensor *tr_grad_of(struct tr_node *n) { return n->out->grad ? &n->out->grad->t : NULL; }

int tr_grad_own(struct tr_value *v)
{
    if (v->grad->holders == 1) return TR_OK;
    struct tr_grad *g;
    TR_TRY(tr_calloc(&g, 1, sizeof *g));
    g->holders = 1;
    const struct tr_tensor *old = &v->grad->t;
    int rc = tr_tensor_arena(&g->t, TR_ACTIVATIONS, old->dtype, old->ndim, old->dim, 0);
    if (rc != TR_OK) {
        free(g);
        return rc;
    }
    tr_kernels()->copy(&g->t, old);
    v->grad->holders--;
    v->grad = g;
    return TR_OK;
}

int tr_grad_into(struct tr_value *v, struct tr_tensor **dx, bool *acc)
{
    *acc = v->grad != NULL;
    if (v->grad) TR_TRY(tr_grad_own(v));
    else {
        struct tr_grad *g;
        TR_TRY(tr_calloc(&g, 1, sizeof *g));
        g->holders = 1;
        v->grad = g;
        TR_TRY(tr_tensor_arena(&g->t, TR_ACTIVATIONS, v->t.dtype, v->t.ndim, v->t.dim, 0));
    }
    *dx = &v->grad->t;
    return TR_OK;
}

int tr_grad_share(struct tr_value *v, struct tr_grad *g)
{
    if (!v->grad) {
        v->grad = g;
        g->holders++;
        return TR_OK;
    }
    TR_TRY(tr_grad_own(v));
    tr_kernels()->add(&v->grad->t, &v->grad->t, &g->t);
    return TR_OK;
}

void tr_tape_split(struct tr_tape *t) { t->split = true; }

/* A node's weights wait: what they need stays. */
static int put_off(struct tr_tape *t, struct tr_node *n)
{
    struct tr_tensor *unused;
    TR_TRY(tr_grow(&t->later, t->n_later, &t->cap_later, sizeof *t->later));
    for (int i = 0; i < TR_NODE_VALUES; i++) {
        if (!n->saved[i]) continue;
        TR_TRY(tr_saved(n, i, &unused)); /* what can rebuild it is over by then */
        n->in[i]->holders++;
    }
    n->out->grad->holders++;
    t->later[t->n_later++] = (struct later){ *n, n->out->grad };
    return TR_OK;
}

static int walk(struct tr_tape *t, size_t down_to)
{
    while (t->n > down_to) {
        struct tr_node *n = &t->node[t->n - 1];
        struct tr_node held = *n; /* a block that runs again writes new nodes from here on */
        if (n->out->maker == n) n->out->maker = NULL;
        t->n--;
        TR_TRY(enter_block(t, held.block));
        tr_part_enter(tr_part_backward(held.part));
        TR_TRY(held.op->backward(t, &held));
        if (held.op->weights) TR_TRY((t->split ? put_off : held.op->weights)(t, &held));
        for (int i = 0; i < TR_NODE_VALUES; i++) {
            if (!held.saved[i]) continue;
            held.in[i]->savers--;
            settle(t, held.in[i]);
        }
        if (held.saved_out) held.out->savers--;
        settle(t, held.out);
        bool in_place = false; /* then the gradient goes on under the same value */
        for (int i = 0; i < TR_NODE_VALUES; i++) in_place |= held.in[i] == held.out;
        if (!in_place) grad_release(held.out);
    }
    return TR_OK;
}

int tr_backward_part(struct tr_tape *t, const struct tr_sink *sink, bool keep_grads, struct tr_value *in, struct tr_tensor *din)
{
    t->sink = sink;
    t->keep_grads = keep_grads;
    enum tr_part part = tr_part_current();
    int rc = tr_tape_settle(t);
    t->count = false;
    t->block = -1;
    for (size_t i = 0; i < t->n_used; i++) t->used[i]->pending = 0; /* other micro-batches may be under way on their own tapes */
    for (size_t i = 0; i < t->n_used; i++) t->used[i]->pending++;
    if (rc == TR_OK) rc = walk(t, 0);
    if (rc == TR_OK && in && in->grad) { /* handed on: the tape forgets it */
        rc = tr_grad_own(in);
        *din = in->grad->t;
        in->grad->t = (struct tr_tensor){ 0 };
    }
    if (!t->split) tr_tape_clear(t);
    tr_part_enter(part);
    return rc;
}

static int weights_of(struct tr_tape *t, struct later *l)
{
    struct tr_node *n = &l->node;
    tr_part_enter(tr_part_backward(n->part));
    n->out->grad = l->grad;
    TR_TRY(n->op->weights(t, n));
    l->grad = NULL;
    grad_release(n->out);
    for (int i = 0; i < TR_NODE_VALUES; i++)
        if (n->saved[i]) tr_drop(t, n->in[i]);
    return TR_OK;
}

int tr_backward_weights(struct tr_tape *t, const struct tr_sink *sink)
{
    enum tr_part part = tr_part_current();
    int rc = TR_OK;
    t->sink = sink;
    for (size_t i = 0; i < t->n_later; i++)
        for (int k = 0; k < TR_NODE_WEIGHTS; k++)
            if (t->later[i].node.w[k]) t->later[i].node.w[k]->pending = 0;
    for (size_t i = 0; i < t->n_later; i++)
        for (int k = 0; k < TR_NODE_WEIGHTS; k++)
            if (t->later[i].node.w[k]) t->later[i].node.w[k]->pending++;
    for (size_t i = 0; i < t->n_later && rc == TR_OK; i++) rc = weights_of(t, &t->later[i]);
    tr_tape_clear(t);
    tr_part_enter(part);
    return rc;
}

int tr_backward(struct tr_tape *t, const struct tr_sink *sink, bool keep_grads) { return tr_backward_part(t, sink, keep_grads, NULL, NULL); }

/* ---- gradients of weights */

int tr_weight_grad_into(struct tr_tape *t, struct tr_weight *w, struct tr_tensor **dw, bool *fresh)
{
    *fresh = w->grad.data == NULL;
    /* Rows 16 floats longer than the matrix keep oneDNN on its faster path for this product (docs/kernels.md). */
    int64_t pad = w->value.ndim == 2 && tr_cols(&w->value) % 16 == 0 ? 16 : 0;
    if (*fresh) TR_TRY(tr_tensor_arena(&w->grad, TR_GRADIENTS, TR_F32, w->value.ndim, w->value.dim, pad));
    *dw = &w->grad;
    return TR_OK;
}

int tr_weight_grad_add(struct tr_tape *t, struct tr_weight *w, struct tr_tensor **dw)
{
    bool fresh;
    TR_TRY(tr_weight_grad_into(t, w, dw, &fresh));
    if (fresh) tr_kernels()->fill(*dw, 0);
    return TR_OK;
}

struct tr_tensor tr_weight_grad(const struct tr_weight *w, int i)
{
    struct tr_tensor v = w->grad;
    v.owner = 0;
    if (w->n == 1) return v; /* of a parameter that is spread: of its rows here */
    if (w->value.ndim == 1) {
        int64_t begin = 0;
        for (int k = 0; k < i; k++) begin += tr_count(&w->param[k]->value);
        v.data = (float *)v.data + begin;
        v.dim[0] = v.ld = tr_count(&w->param[i]->value);
        return v;
    }
    int64_t begin = 0;
    for (int k = 0; k < i; k++) begin += tr_rows(&w->param[k]->value);
    return tr_rows_view(&w->grad, begin, tr_rows(&w->param[i]->value));
}

bool tr_weight_frozen(const struct tr_weight *w)
{
    for (int i = 0; i < w->n; i++)
        if (!w->param[i]->frozen) return false;
    return true;
}

int tr_weight_flush(struct tr_weight *w, const struct tr_sink *sink)
{
    int rc = TR_OK;
    for (int i = 0; i < w->n && rc == TR_OK; i++) {
        struct tr_tensor g = tr_weight_grad(w, i);
        rc = sink->on_grad(sink->self, w->param[i], &g);
    }
    tr_tensor_release(&w->grad);
    return rc;
}

int tr_weight_done(struct tr_tape *t, struct tr_weight *w)
{
    if (--w->pending > 0 || t->keep_grads || !w->grad.data) return TR_OK;
    return tr_weight_flush(w, t->sink);
}

/* ---- blocks that run again */

static int checkpoint_backward(struct tr_tape *t, struct tr_node *n)
{
    struct tr_value *out;
    size_t mark = t->n;
    t->record = true;
    enum tr_recompute policy = t->policy;
    t->policy = TR_SELECTIVE; /* one block's products are rebuilt too: its peak is the step's */
    TR_TRY(((tr_layer_fn)(uintptr_t)n->arg.ptr[0])((void *)(uintptr_t)n->arg.ptr[1], t, &out, n->in[0]));
    out->grad = n->out->grad;
    n->out->grad = NULL;
    tr_drop(t, out);
    TR_TRY(walk(t, mark));
    t->policy = policy;
    return TR_OK;
}

static const struct tr_op checkpoint_op = { "checkpoint", checkpoint_backward, NULL };

int tr_checkpoint(struct tr_tape *t, struct tr_value **out, struct tr_value *in, tr_layer_fn layer, void *self)
{
    TR_TRY(begin_block(t));
    if (!t->record || t->policy != TR_BLOCK) return layer(self, t, out, in);
    t->record = false;
    int rc = layer(self, t, out, in);
    t->record = true;
    TR_TRY(rc);
    struct tr_node *n;
    TR_TRY(tr_record(t, &n, &checkpoint_op, *out));
    tr_input(n, 0, in, true);
    n->arg.ptr[0] = (const void *)(uintptr_t)layer;
    n->arg.ptr[1] = self;
    return TR_OK;
}
