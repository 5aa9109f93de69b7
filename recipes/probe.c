/* Curvature probes: Sophia-G's, the gradient of the loss against labels that the model itself draws; and Sophia-H's, the
 * product of the Hessian with a random direction, as the difference of two gradients. */
#include "libtrain/base/profile.h"
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/update.h"
#include "recipes/job.h"
#include <math.h>

enum { TOKENS = 64 };   /* whose logits are looked at at a time */

/* A label by the softmax of z [V] and a number u in [0, 1); sums in double, in order. */
static int32_t draw(const float *z, int64_t V, double u)
{
    float most = z[0];
    double sum = 0, reached = 0;
    for (int64_t v = 1; v < V; v++) most = z[v] > most ? z[v] : most;
    for (int64_t v = 0; v < V; v++) sum += (double)expf(z[v] - most);
    for (int64_t v = 0; v < V; v++)
        if ((reached += (double)expf(z[v] - most)) > u * sum) return (int32_t)v;
    return (int32_t)(V - 1);
}

/* Targets of the fed micro-batch's counted tokens become drawn labels. */
static int draw_labels(struct job *j, int64_t step)
{
    struct tr_feed *f = &j->feed;
    struct tr_value *h;
    int64_t V = j->net->shape.vocab, N = f->layout.n_tokens, at = 0;
    struct tr_key key = tr_key((uint64_t)j->r->train.seed, TR_RNG_LABELS, 0, (uint64_t)step);
    void *logits;
    TR_TRY(tr_arena_alloc(&logits, (size_t)(TOKENS * V) * sizeof(float), TR_WORKSPACE));
    tr_tape_begin(j->tape, false, TR_KEEP);
    int rc = tr_net_hidden(j->net, j->tape, f, NULL, &h);
    for (int64_t begin = 0; rc == TR_OK && begin < N; begin += TOKENS) {
        int64_t n = N - begin < TOKENS ? N - begin : TOKENS, first = at;
        rc = tr_net_logits(j->net, h, begin, n, tr_mem_is_dry() ? NULL : logits);
        while (at < f->n_counted && f->host_rows[at] < begin + n) at++;
        if (rc != TR_OK || tr_mem_is_dry()) continue;
#pragma omp parallel for schedule(static)
        for (int64_t i = first; i < at; i++)
            f->host_targets[i] = draw((const float *)logits + (f->host_rows[i] - begin) * V, V, tr_uniform(key, (uint64_t)f->host_rows[i]));
    }
    tr_tape_clear(j->tape);
    tr_arena_free(logits, TR_WORKSPACE);
    if (rc == TR_OK) tr_tensor_write(&f->targets_M, f->host_targets);
    return rc;
}

/* What all ranks found, added up, to where the state is. more: a further part of the same probe. */
static int hand_over(struct job *j, struct tr_param *p, struct tr_tensor *grad, int64_t step, bool more)
{
    struct tr_comm *c = j->comm;
    const int64_t *first = j->first + p->index * (c->size + 1);
    int64_t n = first[c->rank + 1] - first[c->rank];
    struct tr_tensor own = tr_comm_rows(grad, first[c->rank], n);
    TR_TRY(tr_comm_reduce_rows(c, &own, grad, first, false));
    if (c->size > 1 && j->r->parallel.zero == 0) {
        TR_TRY(tr_comm_gather_rows(c, grad, NULL, first));
        return opt_curvature(j->opt, p, grad, step, more);
    }
    return n > 0 ? opt_curvature(j->opt, p, &own, step, more) : TR_OK;
}

/* One micro-batch is probed, the rank `prober` has it; the others work along with gradients of zero, so that the curvature
 * has the bits of one rank. scale: of this rank's loss; 0 on all: there is nothing to probe. */
static int probe_scale(struct job *j, int prober, bool *any, float *scale)
{
    uint64_t counted = (uint64_t)j->feed.n_counted;
    j->comm->doing = "a curvature probe";
    TR_TRY(tr_comm_words(j->comm, &counted, 1, prober));
    *any = counted > 0;
    *scale = *any && j->comm->rank == prober ? (float)(1.0 / (double)counted) : 0;
    return TR_OK;
}

struct probe { struct job *j; int64_t step; };

static int on_grad(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct probe *b = self;
    return hand_over(b->j, p, grad, b->step, false);
}

int job_probe(struct job *j, int64_t step)
{
    struct probe b = { j, step };
    struct tr_sink sink = { &b, on_grad };
    bool any;
    float scale;
    double loss;
    TR_TRY(probe_scale(j, j->comm->size - 1, &any, &scale)); /* the last micro-batch of the batch */
    if (!any) return TR_OK;
    tr_part_enter(TR_PART_OPTIMIZER);
    TR_TRY(draw_labels(j, step));
    tr_tape_begin(j->tape, true, j->recompute);
    TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, scale, j->segment, &loss));
    if (!isfinite(loss)) return tr_fail(TR_EFAIL, "the curvature probe's loss (step %lld) is not finite; resume from the newest snapshot with a lower train.lr", (long long)step);
    TR_TRY(tr_backward(j->tape, &sink, false));
    tr_part_enter(TR_PART_OTHER);
    return TR_OK;
}

/* ---- u H u */

enum { PASSES = 2 };
struct hessian { struct job *j; int64_t step; double by; bool more; };

static struct tr_direction direction_of(const struct job *j, const struct tr_param *p, int64_t step)
{
    return (struct tr_direction){ .key = tr_key((uint64_t)j->r->train.seed, TR_RNG_PROBE, tr_hash(p->name), (uint64_t)step) };
}

/* A pass's share of u (g(W + eps u) - g(W - eps u)) / (2 eps): nothing waits for the other pass. */
static int on_shifted_grad(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct hessian *h = self;
    struct tr_direction u = direction_of(h->j, p, h->step);
    tr_updates()->weigh(grad, (float)h->by, &u);
    return hand_over(h->j, p, grad, h->step, h->more);
}

/* W = W + by u: every rank all of it, or where ranks share the weights its rows. */
static void shift(struct job *j, int64_t step, double by)
{
    for (int64_t i = 0; i < j->net->n_params; i++) {
        struct tr_param *p = &j->net->param[i];
        struct tr_direction u = direction_of(j, p, step);
        if (!p->trainable) continue;
        if (p->shard.ndim) u.first = p->shard_begin * tr_cols(&p->value);
        tr_updates()->move(p->shard.ndim ? &p->shard : &p->value, 1, (float)by, &u);
    }
}

int job_probe_hessian(struct job *j, int64_t step)
{
    double eps = opt_probe_eps(j->opt), loss;
    struct hessian h = { .j = j, .step = step };
    struct tr_sink sink = { &h, on_shifted_grad };
    bool any;
    float scale;
    TR_TRY(probe_scale(j, 0, &any, &scale)); /* the first micro-batch of the batch */
    if (!any) return TR_OK;
    ckpt_capture_settle(j->capture);
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    for (int pass = 0; pass < PASSES; pass++) {
        shift(j, step, pass ? -2 * eps : eps);
        h.by = (pass ? -1 : 1) / (2 * eps);
        h.more = pass > 0;
        tr_tape_begin(j->tape, true, j->recompute);
        TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, scale, j->segment, &loss));
        if (!isfinite(loss)) return tr_fail(TR_EFAIL, "the curvature probe's loss (step %lld) is not finite; resume from the newest snapshot with a lower train.lr", (long long)step);
        TR_TRY(tr_backward(j->tape, &sink, false));
    }
    shift(j, step, eps);
    tr_part_enter(part);
    return TR_OK;
}
