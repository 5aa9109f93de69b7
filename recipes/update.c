#include "recipes/pipeline.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "libtrain/kernel/kernel.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const int64_t *rows_of_ranks(struct job *j, const struct tr_param *p) { return j->first + p->index * (j->data->size + 1); }

/* What is added up for a parameter in this step: its gradient, or a projection of it; and who adds which rows. */
struct summed { bool low; int ndim; int64_t dim[2], rows, at; const int64_t *first; };   /* at: of `rows`, where those begin that are dealt */

static struct summed summed_of(const struct update *u, const struct tr_param *p)
{
    struct job *j = u->j;
    struct summed s = { .ndim = p->value.ndim, .dim = { p->value.dim[0], p->value.dim[1] }, .rows = tr_rows(&p->value), .first = rows_of_ranks(j, p) };
    if (p->spread) {
        s.dim[0] = tr_rows(&p->shard);
        s.at = p->shard_begin;
        return s;
    }
    if (pipeline_joins(j, p) || !opt_low_shape(j->opt, p, u->step, s.dim)) return s;
    /* At stage 0 evenly to ranks, else whole to the one that has the state. */
    for (int r = 0; r <= j->data->size; r++) j->low_first[r] = j->r->parallel.zero == 0 ? s.dim[0] * r / j->data->size : s.first[r] ? s.dim[0] : 0;
    s.low = true;
    s.rows = s.dim[0];
    s.first = j->low_first;
    return s;
}

double *update_losses(struct job *j) { return j->figures + UPDATE_PANELS * j->net->n_params; }

bool update_keeps(const struct job *j) { return j->stages == 1 && j->data->size == 1 && j->rounds == 1 && !j->fused; }

/* Squares of this rank's rows, by panels that do not depend on the ranks (1, 2, 4 or 8 of them). */
static int measure(struct update *u, const struct tr_param *p, const struct summed *s, const struct tr_tensor *own)
{
    struct job *j = u->j;
    if (p->frozen) return TR_OK;
    int64_t rows = s->rows, begin = s->at + s->first[j->data->rank], end = s->at + s->first[j->data->rank + 1];
    double *sum = &j->figures[p->index * UPDATE_PANELS];
    int64_t top[UPDATE_PANELS + 1];
    for (int k = 0; k <= UPDATE_PANELS; k++) {
        int64_t a = rows / UPDATE_PANELS * k + rows % UPDATE_PANELS * k / UPDATE_PANELS;
        top[k] = (a < begin ? begin : a > end ? end : a) - begin;
    }
    memset(sum, 0, UPDATE_PANELS * sizeof *sum);
    if (end > begin) tr_kernels()->sum_squares_panels(sum, own, top, UPDATE_PANELS);
    for (int k = 0; k < UPDATE_PANELS; k++) {
        if (!isfinite(sum[k])) TR_TRY(tr_device_check());
        if (!isfinite(sum[k]))
            return tr_fail(TR_EFAIL, "gradient of '%s' (step %" PRId64 "): it is not finite; the newest snapshot is whole: resume from it with a lower train.lr", p->name, u->step);
    }
    return TR_OK;
}

static int update_one(struct update *u, struct tr_param *p, const struct summed *s, struct tr_tensor *sum)
{
    return s->low ? opt_update_low(u->j->opt, p, sum, u->lr, u->step) : opt_update(u->j->opt, p, sum, u->lr, u->step, NULL);
}

/* All rows from their owners, then the same update on every rank. whole: where this rank's rows lie in place, or NULL. */
static int update_everywhere(struct update *u, struct tr_param *p, const struct summed *s, struct tr_tensor *own, struct tr_tensor *whole)
{
    struct job *j = u->j;
    const int64_t *first = s->first;
    struct tr_tensor all = { 0 };
    int rc;
    if (!whole) {
        TR_TRY(tr_tensor_arena(&all, TR_GRADIENTS, TR_F32, s->ndim, s->dim, 0));
        struct tr_tensor mine = tr_comm_rows(&all, first[j->data->rank], first[j->data->rank + 1] - first[j->data->rank]);
        if (own->data) tr_kernels()->copy(&mine, own);
        whole = &all;
    }
    TR_GO(tr_comm_gather_rows(j->data, whole, NULL, first));
    rc = update_one(u, p, s, whole);
done:
    tr_tensor_release(&all);
    return rc;
}

/* own: the finished sum of this rank's rows. */
static int apply(struct update *u, struct tr_param *p, const struct summed *s, struct tr_tensor *own, struct tr_tensor *whole)
{
    struct job *j = u->j;
    if (p->frozen) return TR_OK;
    bool any = s->first[j->data->rank + 1] > s->first[j->data->rank];
    ckpt_capture_gate(j->capture, p->index);
    if (u->scale != 1 && any) tr_kernels()->scale(own, (float)u->scale);
    if (j->data->size == 1) return update_one(u, p, s, own);
    if (j->r->parallel.zero == 0) return update_everywhere(u, p, s, own, whole);
    if (any) TR_TRY(update_one(u, p, s, own));
    TR_TRY(opt_share_low(j->opt, p, u->step));
    return j->net->sharded ? TR_OK : tr_comm_gather_rows(j->data, p->spread ? &p->shard : &p->value, NULL, rows_of_ranks(j, p)); /* stage 3 gathers when a layer is used */
}

/* g: this rank's gradient of a micro-batch, or its projection; may be overwritten. */
static int take(struct update *u, struct tr_param *p, const struct summed *s, struct tr_tensor *g)
{
    struct job *j = u->j;
    int64_t begin = s->first[j->data->rank], n = s->first[j->data->rank + 1] - begin;
    struct tr_tensor *sum = &j->sum[p->index], own = tr_comm_rows(g, begin, n);
    if (j->fused) {
        TR_TRY(tr_comm_reduce_rows(j->data, &own, g, s->first, false));
        TR_TRY(measure(u, p, s, &own));
        return apply(u, p, s, &own, g);
    }
    bool add = sum->data; /* of the same micro-batch too: a tied embedding whose two ends are on one rank */
    if (!sum->data && n > 0)
        TR_TRY(tr_tensor_arena(sum, TR_GRADIENTS, TR_F32, own.ndim, own.dim, 0));
    TR_TRY(tr_comm_reduce_rows(j->data, sum, g, s->first, add));
    return u->round == j->rounds - 1 && !pipeline_joins(j, p) ? measure(u, p, s, sum) : TR_OK;
}

int update_gradient(void *update, struct tr_param *p, struct tr_tensor *grad)
{
    struct update *u = update;
    if (p->frozen) return TR_OK;
    struct summed s = summed_of(u, p);
    struct tr_tensor low = { 0 };
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    int rc;
    if (s.low) {
        TR_GO(tr_tensor_arena(&low, TR_GRADIENTS, TR_F32, s.ndim, s.dim, 0));
        TR_GO(opt_project(u->j->opt, p, &low, grad));
    }
    rc = take(u, p, &s, s.low ? &low : grad);
done:
    tr_tensor_release(&low);
    tr_part_enter(part);
    return rc;
}

int update_sum(struct update *u, struct tr_param *p, struct tr_tensor **sum)
{
    struct job *j = u->j;
    struct summed s = summed_of(u, p);
    *sum = NULL;
    if (j->data->size > 1 || j->fused || s.low || p->frozen) return TR_OK;
    *sum = &j->sum[p->index];
    if ((*sum)->data) return TR_OK;
    TR_TRY(tr_tensor_arena(*sum, TR_GRADIENTS, TR_F32, s.ndim, s.dim, s.ndim == 2 && s.dim[1] % 16 == 0 ? 16 : 0)); /* padded as in tr_weight_grad_into */
    tr_kernels()->fill(*sum, 0);
    return TR_OK;
}

int update_added(struct update *u, struct tr_param *p)
{
    struct summed s = summed_of(u, p);
    return u->round == u->j->rounds - 1 && !pipeline_joins(u->j, p) ? measure(u, p, &s, &u->j->sum[p->index]) : TR_OK;
}

/* ---- what waited for the last round */

static int measure_kept(void *self, struct tr_weight *w)
{
    for (int i = 0; i < w->n && w->grad.data; i++) {
        struct tr_tensor g = tr_weight_grad(w, i);
        struct summed s = summed_of(self, w->param[i]);
        TR_TRY(measure(self, w->param[i], &s, &g));
    }
    return TR_OK;
}

static int apply_one(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct summed s = summed_of(self, p);
    return apply(self, p, &s, grad, grad);
}

static int flush(void *self, struct tr_weight *w)
{
    struct tr_sink sink = { self, apply_one };
    return w->grad.data ? tr_weight_flush(w, &sink) : TR_OK;
}

static int apply_sums(struct update *u)
{
    struct job *j = u->j;
    for (int64_t i = 0; i < j->net->n_params; i++) {
        struct tr_param *p = &j->net->param[i];
        if (!p->trainable || p->frozen) continue;
        if (!p->elsewhere) {
            struct summed s = summed_of(u, p);
            TR_TRY(apply(u, p, &s, &j->sum[i], NULL));
            tr_tensor_release(&j->sum[i]);
        }
        if (pipeline_joins(j, p)) TR_TRY(pipeline_spread(j, p));
    }
    return TR_OK;
}

/* What two stages have of a gradient is added before the norm is known. */
static int join_stages(struct update *u)
{
    struct job *j = u->j;
    struct tr_param *p = &j->net->param[0];
    if (!pipeline_joins(j, p)) return TR_OK;
    TR_TRY(pipeline_join(j, &j->sum[0]));
    struct summed s = summed_of(u, p);
    return p->elsewhere ? TR_OK : measure(u, p, &s, &j->sum[0]);
}

int update_finish(struct update *u, double *norm)
{
    struct job *j = u->j;
    double squares = 0;
    int64_t n = UPDATE_PANELS * j->net->n_params;
    if (update_keeps(j)) TR_TRY(tr_net_weights(j->net, measure_kept, u));
    TR_TRY(join_stages(u));
    double *disk = update_losses(j) + j->micro_batches + UPDATE_SUMS - 1;
    TR_TRY(ckpt_capture_protect(j->capture));
    *disk = ckpt_capture_say(j->capture);
    TR_TRY(tr_comm_sum(j->comm, j->figures, (size_t)(n + j->micro_batches + UPDATE_SUMS)));
    ckpt_capture_hear(j->capture, *disk);
    for (int64_t i = 0; i < n; i++) squares += j->figures[i];
    *norm = sqrt(squares);
    if (j->r->train.clip > 0 && *norm > j->r->train.clip) u->scale = j->r->train.clip / (*norm + 1e-6);
    if (j->fused) return TR_OK;
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    TR_TRY(update_keeps(j) ? tr_net_weights(j->net, flush, u) : apply_sums(u));
    tr_part_enter(part);
    return TR_OK;
}
