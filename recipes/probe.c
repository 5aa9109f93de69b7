/* The curvature probe of Sophia-G: the gradient of the loss against labels that the model itself draws. */
#include "libtrain/base/profile.h"
#include "libtrain/base/rng.h"
#include "libtrain/base/status.h"
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

struct probe { struct job *j; int64_t step; };

static int on_grad(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct probe *b = self;
    return opt_curvature(b->j->opt, p, grad, b->step);
}

int job_probe(struct job *j, int64_t step)
{
    struct probe b = { j, step };
    struct tr_sink sink = { &b, on_grad };
    double loss;
    if (!j->feed.n_counted) return TR_OK;
    tr_part_enter(TR_PART_OPTIMIZER);
    TR_TRY(draw_labels(j, step));
    tr_tape_begin(j->tape, true, j->recompute);
    TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, (float)(1.0 / (double)j->feed.n_counted), j->segment, &loss));
    if (!isfinite(loss)) return tr_fail(TR_EFAIL, "the curvature probe's loss (step %lld) is not finite; resume from the newest snapshot with a lower train.lr", (long long)step);
    TR_TRY(tr_backward(j->tape, &sink, false));
    tr_part_enter(TR_PART_OTHER);
    return TR_OK;
}
