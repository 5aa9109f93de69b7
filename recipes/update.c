#include "recipes/update.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/kernel.h"
#include <inttypes.h>
#include <math.h>

static const int64_t *rows_of_ranks(const struct job *j, const struct tr_param *p) { return j->first + p->index * (j->comm->size + 1); }

double *update_losses(struct job *j) { return j->figures + UPDATE_PANELS * j->net->n_params; }

bool update_keeps(const struct job *j) { return j->comm->size == 1 && j->rounds == 1 && !j->fused; }

/* Squares of this rank's rows, by panels that do not depend on the ranks (1, 2, 4 or 8 of them). */
static int measure(struct update *u, const struct tr_param *p, const struct tr_tensor *own)
{
    struct job *j = u->j;
    if (p->frozen) return TR_OK;
    const int64_t *first = rows_of_ranks(j, p), rows = tr_rows(&p->value);
    int64_t begin = first[j->comm->rank], end = first[j->comm->rank + 1];
    for (int k = 0; k < UPDATE_PANELS; k++) {
        int64_t a = rows / UPDATE_PANELS * k + rows % UPDATE_PANELS * k / UPDATE_PANELS;
        int64_t b = rows / UPDATE_PANELS * (k + 1) + rows % UPDATE_PANELS * (k + 1) / UPDATE_PANELS;
        double *sum = &j->figures[p->index * UPDATE_PANELS + k];
        a = a < begin ? begin : a;
        b = b > end ? end : b;
        *sum = 0;
        if (a >= b) continue;
        struct tr_tensor panel = tr_comm_rows(own, a - begin, b - a);
        *sum = tr_kernels()->sum_squares(&panel);
        if (!isfinite(*sum))
            return tr_fail(TR_EFAIL, "gradient of '%s' (step %" PRId64 "): it is not finite; the newest snapshot is whole: resume from it with a lower train.lr", p->name, u->step);
    }
    return TR_OK;
}

/* All rows from their owners, then the same update on every rank. grad: where this rank's rows lie in place, or NULL. */
static int update_everywhere(struct update *u, struct tr_param *p, struct tr_tensor *own, struct tr_tensor *grad)
{
    struct job *j = u->j;
    const int64_t *first = rows_of_ranks(j, p);
    struct tr_tensor all = { 0 };
    int rc;
    if (!grad) {
        TR_TRY(tr_tensor_arena(&all, TR_GRADIENTS, TR_F32, p->value.ndim, p->value.dim, 0));
        struct tr_tensor mine = tr_comm_rows(&all, first[j->comm->rank], first[j->comm->rank + 1] - first[j->comm->rank]);
        if (own->data) tr_kernels()->copy(&mine, own);
        grad = &all;
    }
    TR_GO(tr_comm_gather_rows(j->comm, grad, NULL, first));
    rc = opt_update(j->opt, p, grad, u->lr, u->step, NULL);
done:
    tr_tensor_release(&all);
    return rc;
}

/* own: the finished gradient of this rank's rows. */
static int apply(struct update *u, struct tr_param *p, struct tr_tensor *own, struct tr_tensor *grad)
{
    struct job *j = u->j;
    if (p->frozen) return TR_OK;
    const int64_t *first = rows_of_ranks(j, p);
    bool any = first[j->comm->rank + 1] > first[j->comm->rank];
    if (u->scale != 1 && any) tr_kernels()->scale(own, (float)u->scale);
    if (j->comm->size == 1) return opt_update(j->opt, p, own, u->lr, u->step, NULL);
    if (j->r->parallel.zero == 0) return update_everywhere(u, p, own, grad);
    if (any) TR_TRY(opt_update(j->opt, p, own, u->lr, u->step, NULL));
    return p->shard.ndim ? TR_OK : tr_comm_gather_rows(j->comm, &p->value, NULL, first); /* stage 3 gathers when a layer is used */
}

int update_gradient(void *update, struct tr_param *p, struct tr_tensor *grad)
{
    struct update *u = update;
    struct job *j = u->j;
    if (p->frozen) return TR_OK;
    const int64_t *first = rows_of_ranks(j, p);
    int64_t begin = first[j->comm->rank], n = first[j->comm->rank + 1] - begin;
    struct tr_tensor *sum = &j->sum[p->index], own = tr_comm_rows(grad, begin, n);
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    bool last = u->round == j->rounds - 1;
    if (!j->fused) {
        if (!sum->data && n > 0)
            TR_TRY(tr_tensor_arena(sum, TR_GRADIENTS, TR_F32, own.ndim, own.dim, 0));
        TR_TRY(tr_comm_reduce_rows(j->comm, sum, grad, first, u->round > 0));
        if (last) TR_TRY(measure(u, p, sum));
    } else {
        TR_TRY(tr_comm_reduce_rows(j->comm, &own, grad, first, false));
        TR_TRY(measure(u, p, &own));
        TR_TRY(apply(u, p, &own, grad));
    }
    tr_part_enter(part);
    return TR_OK;
}

/* ---- what waited for the last round */

static int measure_kept(void *self, struct tr_weight *w)
{
    for (int i = 0; i < w->n && w->grad.data; i++) {
        struct tr_tensor g = tr_weight_grad(w, i);
        TR_TRY(measure(self, w->param[i], &g));
    }
    return TR_OK;
}

static int apply_one(void *self, struct tr_param *p, struct tr_tensor *grad) { return apply(self, p, grad, grad); }

static int flush(void *self, struct tr_weight *w)
{
    struct tr_sink sink = { self, apply_one };
    return w->grad.data ? tr_weight_flush(w, &sink) : TR_OK;
}

static int apply_sums(struct update *u)
{
    struct job *j = u->j;
    for (int64_t i = 0; i < j->net->n_params; i++) {
        if (!j->net->param[i].trainable || j->net->param[i].frozen) continue;
        TR_TRY(apply(u, &j->net->param[i], &j->sum[i], NULL));
        tr_tensor_release(&j->sum[i]);
    }
    return TR_OK;
}

int update_finish(struct update *u, double *norm)
{
    struct job *j = u->j;
    double squares = 0;
    int64_t n = UPDATE_PANELS * j->net->n_params;
    if (update_keeps(j)) TR_TRY(tr_net_weights(j->net, measure_kept, u));
    TR_TRY(tr_comm_sum(j->comm, j->figures, (size_t)(n + j->micro_batches + 2)));
    for (int64_t i = 0; i < n; i++) squares += j->figures[i];
    *norm = sqrt(squares);
    if (j->r->train.clip > 0 && *norm > j->r->train.clip) u->scale = j->r->train.clip / (*norm + 1e-6);
    if (j->fused) return TR_OK;
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    TR_TRY(update_keeps(j) ? tr_net_weights(j->net, flush, u) : apply_sums(u));
    tr_part_enter(part);
    return TR_OK;
}
