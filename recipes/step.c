/* One optimizer step: micro-batches through forward and backward, the global norm, the updates. */
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "recipes/job.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

struct update { struct job *j; double lr, scale, squares; int64_t step; };

/* The sink: checks, measures and applies one finished gradient. */
static int on_grad(void *self, struct tr_param *p, struct tr_tensor *grad)
{
    struct update *u = self;
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    if (u->j->fused) {
        double squares = tr_kernels()->sum_squares(grad);
        if (!isfinite(squares))
            return tr_fail(TR_EFAIL, "gradient of '%s' (step %" PRId64 "): it is not finite; the newest snapshot is whole: resume from it with a lower train.lr", p->name, u->step);
        u->squares += squares;
    } else if (u->scale != 1) tr_kernels()->scale(grad, (float)u->scale);
    TR_TRY(opt_update(u->j->opt, p, grad, u->lr, u->step, NULL));
    tr_part_enter(part);
    return TR_OK;
}

static int add_squares(void *self, struct tr_weight *w)
{
    struct update *u = self;
    if (!w->grad.data) return TR_OK;
    for (int i = 0; i < w->n; i++) {
        struct tr_tensor g = tr_weight_grad(w, i);
        double squares = tr_kernels()->sum_squares(&g);
        if (!isfinite(squares))
            return tr_fail(TR_EFAIL, "gradient of '%s' (step %" PRId64 "): it is not finite; the newest snapshot is whole: resume from it with a lower train.lr", w->param[i]->name, u->step);
        u->squares += squares;
    }
    return TR_OK;
}

static int flush(void *self, struct tr_weight *w)
{
    struct update *u = self;
    struct tr_sink sink = { u, on_grad };
    return w->grad.data ? tr_weight_flush(w, &sink) : TR_OK;
}

/* Where a loss that is not finite arose: the first layer whose output is not finite, told by running forward again. */
static int blame(struct job *j, int64_t step, double loss)
{
    int layer = -1;
    tr_tape_begin(j->tape, false, TR_KEEP);
    if (tr_net_first_bad(j->net, j->tape, &j->feed, &layer) != TR_OK) layer = -1;
    tr_tape_clear(j->tape);
    char where[64] = "in the loss itself";
    if (layer == 0) snprintf(where, sizeof where, "first in the embedding");
    else if (layer > 0 && layer < j->net->n_layers - 1) snprintf(where, sizeof where, "first in layer %d", layer - 1);
    else if (layer > 0) snprintf(where, sizeof where, "first in the final norm");
    return tr_fail(TR_EFAIL, "loss is %g (step %" PRId64 ", %s): it is not finite; no snapshot was overwritten: resume from the newest with a lower train.lr or with train.clip = 1", loss, step, where);
}

int job_step(struct job *j, struct step_result *out)
{
    const struct recipe *r = j->r;
    int64_t counted = tr_loader_peek_counted(j->loader, j->batch), tokens = 0, step = (int64_t)j->step + 1;
    struct update u = { .j = j, .lr = job_lr(r, j->steps, (int64_t)j->step), .scale = 1, .step = step };
    struct tr_sink sink = { &u, on_grad };
    double total = 0;
    for (int64_t m = 0; m < j->micro_batches; m++) {
        const struct tr_batch *b;
        tr_part_enter(TR_PART_DATA);
        TR_TRY(tr_loader_next(j->loader, j->micro_batch, &b));
        TR_TRY(tr_feed_set(&j->feed, j->net, b->n, b->ids, b->targets, b->start, b->pos, b->seq, b->n_seqs));
        tr_part_enter(TR_PART_OTHER);
        double loss;
        tr_tape_begin(j->tape, true, j->recompute);
        /* Divided by the counted tokens of the whole batch, so that micro-batches of unequal length weigh alike. */
        TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, (float)(1.0 / (double)counted), j->segment, &loss));
        if (!isfinite(loss)) return blame(j, step, loss);
        total += loss;
        tokens += b->n;
        bool last = m == j->micro_batches - 1;
        TR_TRY(tr_backward(j->tape, &sink, !(j->fused && last)));
    }
    if (!j->fused) {
        tr_part_enter(TR_PART_OPTIMIZER);
        TR_TRY(tr_net_weights(j->net, add_squares, &u));
        double norm = sqrt(u.squares);
        if (r->train.clip > 0 && norm > r->train.clip) u.scale = r->train.clip / (norm + 1e-6);
        TR_TRY(tr_net_weights(j->net, flush, &u));
        tr_part_enter(TR_PART_OTHER);
    }
    j->step++;
    j->tokens_seen += (uint64_t)tokens;
    *out = (struct step_result){ .loss = total / (double)counted, .grad_norm = sqrt(u.squares), .lr = u.lr, .tokens = tokens, .counted = counted };
    return TR_OK;
}

int job_evaluate(struct job *j, double *loss, int64_t *counted)
{
    struct tr_loader *l = j->valid_loader;
    int64_t left = tr_loader_sequences(l);
    double total = 0;
    *counted = 0;
    while (left > 0) {
        const struct tr_batch *b;
        double sum;
        int64_t n = left < j->micro_batch ? left : j->micro_batch;
        TR_TRY(tr_loader_next(l, n, &b));
        TR_TRY(tr_feed_set(&j->feed, j->net, b->n, b->ids, b->targets, b->start, b->pos, b->seq, b->n_seqs));
        tr_tape_begin(j->tape, false, TR_KEEP);
        TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, 0, j->segment, &sum));
        tr_tape_clear(j->tape);
        total += sum;
        *counted += j->feed.n_counted;
        left -= n;
    }
    *loss = *counted ? total / (double)*counted : NAN;
    return TR_OK;
}
