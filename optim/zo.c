/* A step from losses: weights are moved along directions and back in place, and slopes become updates. */
#include "optim/zo.h"
#include "libtrain/base/status.h"
#include "optim/opt_impl.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct walk { struct opt *o; const struct opt_zo *z; const struct opt_evaluator *e; double lr; int64_t step; int block; /* -1: all layers */ };

static bool by_losses(const struct item *it) { return it->state && it->kind->needs != OPT_GRADIENT; }

enum opt_needs opt_needs(const struct opt *o)
{
    enum opt_needs needs = OPT_GRADIENT;
    for (int64_t i = 0; i < o->n; i++) {
        if (!o->item[i].state) continue;
        if (!by_losses(&o->item[i])) return OPT_GRADIENT;
        needs = o->item[i].kind->needs;
    }
    return needs;
}

bool opt_needs_losses(const struct opt *o)
{
    for (int64_t i = 0; i < o->n; i++)
        if (by_losses(&o->item[i])) return true;
    return false;
}

int opt_check_needs(const struct opt *o, const char *path)
{
    const struct item *first = NULL, *probe = NULL;
    bool gradients = opt_needs(o) == OPT_GRADIENT;
    for (int64_t i = 0; i < o->n; i++) {
        struct item *it = &o->item[i];
        if (!it->state) continue;
        if (it->kind->probe) probe = it;
        if ((by_losses(it) || it->kind->probe == OPT_PROBE_HESSIAN) && it->p->value.dtype != TR_F32)
            return tr_fail(TR_EINPUT, "optimizer.name = %s (%s): its small moves of the weights are lost in %s; set model.dtype = f32 (and model.compute = bf16 for speed)",
                           it->kind->name, path, tr_dtype_name(it->p->value.dtype));
        if (!by_losses(it)) continue;
        if (!first) first = it;
        if (it->kind != first->kind)
            return tr_fail(TR_EINPUT, "'%s' takes %s (%s): it cannot learn beside %s, whose losses are taken otherwise; give all parameters that learn from losses one rule", it->p->name,
                           it->kind->name, path, first->kind->name);
        it->p->frozen = gradients;
    }
    if (first && probe)
        return tr_fail(TR_EINPUT, "'%s' takes %s (%s): it probes the curvature, and cannot learn beside %s, which learns from losses; choose another rule for it", probe->p->name, probe->kind->name,
                       path, first->kind->name);
    return TR_OK;
}

static bool takes_part(const struct walk *w, const struct item *it) { return by_losses(it) && (w->block < 0 || it->p->layer == w->block); }

/* Draw i of this step for a parameter. The streams do not depend on ranks, rows or blocks. */
static int draw(const struct walk *w, const struct item *it, int64_t i, struct tr_direction *z)
{
    uint64_t name = tr_hash(it->p->name), step = (uint64_t)w->step - 1;
    *z = (struct tr_direction){ .key = tr_key(w->o->seed, TR_RNG_DIRECTION, name, step * (uint64_t)w->z->q + (uint64_t)i), .zeros = w->z->sparsity,
                                .mask = tr_key(w->o->seed, TR_RNG_MASK, name, step / (uint64_t)w->z->resample) };
    return w->e->given ? w->e->given(w->e->self, it->p, (int64_t)step * w->z->q + i, &z->given) : TR_OK;
}

/* W = W + c eps z: every rank all of it, or where ranks share the weights its rows. */
static int perturb(const struct walk *w, int64_t i, double c)
{
    for (int64_t k = 0; k < w->o->n; k++) {
        struct item *it = &w->o->item[k];
        struct tr_direction z;
        if (!takes_part(w, it)) continue;
        TR_TRY(draw(w, it, i, &z));
        if (it->p->shard.ndim) z.first = it->first[w->o->comm->rank] * tr_cols(&it->p->value);
        tr_updates()->move(it->p->shard.ndim ? &it->p->shard : &it->p->value, 1, (float)(c * w->z->zo_eps), &z);
    }
    return TR_OK;
}

/* The loss's slope along draw i; *at: a loss near or at the weights, for the log. */
static int slope(const struct walk *w, int64_t i, double *p, double *at)
{
    double plus, minus;
    TR_TRY(perturb(w, i, 1));
    TR_TRY(w->e->loss(w->e->self, &plus));
    TR_TRY(perturb(w, i, w->z->mode == OPT_TWO_SIDE ? -2 : -1));
    TR_TRY(w->e->loss(w->e->self, &minus));
    if (w->z->mode == OPT_TWO_SIDE) TR_TRY(perturb(w, i, 1));
    *p = (plus - minus) / (w->z->mode == OPT_TWO_SIDE ? 2 * w->z->zo_eps : w->z->zo_eps);
    *at = w->z->mode == OPT_TWO_SIDE ? (plus + minus) / 2 : minus;
    return isfinite(*p) || tr_mem_is_dry() ? TR_OK : tr_fail(TR_EFAIL, "a loss of step %lld is not finite; the newest snapshot is whole: resume from it with a lower train.lr", (long long)w->step);
}

static int update(const struct walk *w, const double *p, double lr)
{
    for (int64_t k = 0; k < w->o->n; k++) {
        struct item *it = &w->o->item[k];
        struct opt_slopes s = { .n = w->z->q };
        if (!takes_part(w, it)) continue;
        for (int64_t i = 0; i < s.n; i++) {
            TR_TRY(draw(w, it, i, &s.z[i]));
            s.slope[i] = p[i] / (double)s.n;
            if (it->first) s.z[i].first = it->first[w->o->comm->rank] * tr_cols(&it->p->value);
        }
        struct opt_step step = { .p = it->first ? &it->own : it->p, .slopes = &s, .lr = lr * it->lr_scale, .schedule = w->o->lr > 0 ? lr / w->o->lr : 1, .t = w->step,
                                 .seed = w->o->seed, .tokens = w->o->tokens };
        if (!it->first || it->first[w->o->comm->rank + 1] > it->first[w->o->comm->rank]) TR_TRY(opt_item_update(w->o, it, &step));
        if (it->first && !it->p->shard.ndim) TR_TRY(tr_comm_gather_rows(w->o->comm, &it->p->value, NULL, it->first));
    }
    return TR_OK;
}

/* Takes the step, its opposite, or none, whichever loses least. */
static int conservative(const struct walk *w, double *loss)
{
    double start, plus, minus, p, at;
    TR_TRY(w->e->loss(w->e->self, &start));
    TR_TRY(slope(w, 0, &p, &at));
    TR_TRY(update(w, &p, w->lr));
    TR_TRY(w->e->loss(w->e->self, &plus));
    TR_TRY(update(w, &p, -2 * w->lr));
    TR_TRY(w->e->loss(w->e->self, &minus));
    *loss = start;
    if (plus > start) return start < minus ? update(w, &p, w->lr) : TR_OK;
    return plus < minus ? update(w, &p, 2 * w->lr) : TR_OK;
}

/* Layers with something to train, in order; -1 ends. */
static int next_block(const struct opt *o, int after)
{
    int next = -1;
    for (int64_t i = 0; i < o->n; i++)
        if (by_losses(&o->item[i]) && o->item[i].p->layer > after && (next < 0 || o->item[i].p->layer < next)) next = o->item[i].p->layer;
    return next;
}

static int by_blocks(struct walk *w, double *loss)
{
    double p[OPT_ZO_DRAWS], sum = 0;
    double *kept = NULL;
    int64_t blocks = 0, n = 0;
    int rc;
    for (int b = next_block(w->o, -1); b >= 0; b = next_block(w->o, b)) blocks++;
    TR_TRY(tr_calloc(&kept, (size_t)(blocks * w->z->q), sizeof *kept));
    for (w->block = next_block(w->o, -1); w->block >= 0; w->block = next_block(w->o, w->block), n++) {
        double at = 0;
        for (int64_t i = 0; i < w->z->q; i++) TR_GO(slope(w, i, &p[i], &at));
        memcpy(kept + n * w->z->q, p, (size_t)w->z->q * sizeof *p);
        sum += at;
        if (w->z->blockwise == OPT_COORDINATE) TR_GO(update(w, p, w->lr));
    }
    n = 0;
    for (w->block = next_block(w->o, -1); w->block >= 0 && w->z->blockwise == OPT_JOINT; w->block = next_block(w->o, w->block), n++)
        TR_GO(update(w, kept + n * w->z->q, w->lr));
    *loss = blocks ? sum / (double)blocks : 0;
    rc = TR_OK;
done:
    free(kept);
    return rc;
}

int opt_step_by_losses(struct opt *o, double lr, int64_t step, const struct opt_evaluator *e, double *loss)
{
    struct walk w = { o, NULL, e, lr, step, -1 };
    enum opt_needs needs = OPT_GRADIENT;
    double p[OPT_ZO_DRAWS], sum = 0, at = 0;
    for (int64_t i = 0; i < o->n && !w.z; i++)
        if (by_losses(&o->item[i])) needs = o->item[i].kind->needs, w.z = o->item[i].kind->zo(o->item[i].config);
    *loss = 0;
    if (!w.z) return TR_OK;
    if (needs == OPT_SLOPE && e->slope) {
        TR_TRY(e->slope(e->self, p));
        return update(&w, p, lr);
    }
    if (w.z->conservative) return conservative(&w, loss);
    if (w.z->blockwise != OPT_WHOLE) return by_blocks(&w, loss);
    for (int64_t i = 0; i < w.z->q; i++) {
        TR_TRY(slope(&w, i, &p[i], &at));
        sum += at;
    }
    *loss = sum / (double)w.z->q;
    return update(&w, p, lr);
}
