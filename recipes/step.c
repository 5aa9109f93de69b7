/* One optimizer step: micro-batches through forward and backward; what becomes of gradients is in update.c. */
#include "libtrain/base/buf.h"
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "libtrain/kernel/device.h"
#include "recipes/pipeline.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int step_blame(struct job *j, int64_t step, double loss)
{
    int layer = -1;
    TR_TRY(tr_device_check());
    if (j->net->sharded || j->stages > 1) /* the others are not here to bring weights in */
        return tr_fail(TR_EFAIL, "loss is %g (step %" PRId64 ", rank %d): it is not finite; no snapshot was overwritten: resume from the newest with a lower train.lr or with train.clip = 1", loss, step, j->comm->rank);
    tr_tape_begin(j->tape, false, TR_KEEP);
    if (tr_net_first_bad(j->net, j->tape, &j->feed, &layer) != TR_OK) layer = -1;
    tr_tape_clear(j->tape);
    char where[64] = "in the loss itself";
    if (layer == 0) snprintf(where, sizeof where, "first in the embedding");
    else if (layer > 0 && layer < j->net->n_layers - 1) snprintf(where, sizeof where, "first in layer %d", layer - 1);
    else if (layer > 0) snprintf(where, sizeof where, "first in the final norm");
    return tr_fail(TR_EFAIL, "loss is %g (step %" PRId64 ", %s): it is not finite; no snapshot was overwritten: resume from the newest with a lower train.lr or with train.clip = 1", loss, step, where);
}

int step_feed(struct job *j, struct tr_feed *feed, int64_t *tokens)
{
    const struct tr_batch *b;
    const struct tr_comm *c = j->data;
    enum tr_part part = tr_part_enter(TR_PART_DATA);
    tr_loader_skip(j->loader, c->rank * j->micro_batch);
    TR_TRY(tr_loader_next(j->loader, j->micro_batch, &b));
    tr_loader_skip(j->loader, (c->size - 1 - c->rank) * j->micro_batch);
    TR_TRY(tr_feed_set(feed, j->net, b->n, b->ids, b->targets, b->start, b->pos, b->seq, b->n_seqs));
    *tokens = b->n;
    tr_part_enter(part);
    return TR_OK;
}

/* This rank's micro-batches, one after another. */
static int run_rounds(struct job *j, struct update *u, int64_t counted, double *losses, double *tokens)
{
    struct tr_sink sink = { u, update_gradient };
    for (; u->round < j->rounds; u->round++) {
        int64_t fed;
        TR_TRY(step_feed(j, &j->feed, &fed));
        if (u->round == 0 && opt_probe_due(j->opt, OPT_PROBE_HESSIAN, u->step)) /* a forecast's first step has it, too */
            TR_TRY(job_probe_hessian(j, u->step));
        double *loss = &losses[u->round * j->data->size + j->data->rank];
        tr_tape_begin(j->tape, true, j->recompute);
        /* Divided by the counted tokens of the whole batch, so that micro-batches of unequal length weigh alike. */
        TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, (float)(1.0 / (double)counted), j->segment, loss));
        if (!isfinite(*loss)) return step_blame(j, u->step, *loss);
        *tokens += (double)fed;
        TR_TRY(tr_backward(j->tape, &sink, update_keeps(j)));
    }
    return TR_OK;
}

static int one_step(struct job *j, struct step_result *out)
{
    if (opt_needs(j->opt) != OPT_GRADIENT) return job_step_by_losses(j, out);
    int64_t counted = tr_loader_peek_counted(j->loader, j->batch), step = (int64_t)j->step + 1;
    struct update u = { .j = j, .lr = job_lr(j->r, j->steps, (int64_t)j->step), .scale = 1, .step = step };
    double total = 0, norm, tokens = 0, *losses = update_losses(j), *sums = losses + j->micro_batches;
    memset(losses, 0, (size_t)j->micro_batches * sizeof *losses);
    memset(j->figures, 0, (size_t)(UPDATE_PANELS * j->net->n_params) * sizeof *j->figures);
    static char doing[32];
    snprintf(doing, sizeof doing, "step %" PRId64, step);
    j->comm->doing = doing;
    TR_TRY(opt_begin(j->opt, step));
    if (opt_needs_losses(j->opt)) TR_TRY(job_move_by_losses(j));
    TR_TRY(j->stages > 1 ? pipeline_step(j, &u, counted, losses, &tokens) : run_rounds(j, &u, counted, losses, &tokens));
    sums[0] = tokens;
    sums[1] = j->stop;
    TR_TRY(update_finish(&u, &norm));
    for (int64_t m = 0; m < j->micro_batches; m++) total += losses[m];
    int64_t every = opt_probe_every(j->opt, OPT_PROBE_LABELS);
    bool foretold = tr_mem_is_dry() && every <= j->steps; /* a forecast sees the largest step */
    if (every && (step % every == 0 || foretold)) TR_TRY(job_probe(j, step));
    TR_TRY(opt_settle(j->opt));
    TR_TRY(tr_device_check());
    j->step++;
    j->tokens_seen += (uint64_t)sums[0];
    *out = (struct step_result){ .loss = total / (double)counted, .grad_norm = norm, .lr = u.lr, .tokens = (int64_t)sums[0], .counted = counted, .stop = sums[1] > 0 };
    return TR_OK;
}

int job_step(struct job *j, struct step_result *out)
{
    char why[400];
    int64_t step = (int64_t)j->step + 1;
    int rc = one_step(j, out);
    if (rc == TR_OK || tr_device_check() == TR_OK) return rc;
    snprintf(why, sizeof why, "%s", tr_message());
    if (j->comm->size > 1) return tr_fail(TR_EFAIL, "step %" PRId64 ", rank %d: %s", step, j->comm->rank, why);
    return tr_fail(TR_EFAIL, "step %" PRId64 ": %s", step, why);
}

/* Micro-batches are dealt to ranks; their sums are added in order, so that every rank count gives the same bits. */
int job_evaluate(struct job *j, double *loss, int64_t *counted)
{
    struct tr_loader *l = j->valid_loader;
    int64_t all = tr_loader_sequences(l), n = (all + j->micro_batch - 1) / j->micro_batch;
    double *sums, total = 0;
    int rc = TR_OK;
    TR_TRY(tr_calloc(&sums, (size_t)n + 1, sizeof *sums));
    j->comm->doing = "evaluation";
    const struct tr_comm *c = j->data;
    for (int64_t first = 0; first < n; first += c->size) {
        const struct tr_batch *b;
        double unused;
        bool counts = first + c->rank < n;
        int64_t m = counts ? first + c->rank : n - 1; /* a rank with none is there to bring weights in at stage 3 */
        int64_t begin = m * j->micro_batch, take = all - begin < j->micro_batch ? all - begin : j->micro_batch;
        int64_t end = (first + c->size) * j->micro_batch < all ? (first + c->size) * j->micro_batch : all;
        tr_loader_skip(l, begin - first * j->micro_batch);
        TR_GO(tr_loader_next(l, take, &b));
        tr_loader_skip(l, end - begin - take);
        if (!counts && !j->net->sharded) continue;
        TR_GO(tr_feed_set(&j->feed, j->net, b->n, b->ids, b->targets, b->start, b->pos, b->seq, b->n_seqs));
        if (j->stages > 1) TR_GO(pipeline_loss(j, &j->feed, &sums[m]));
        else {
            tr_tape_begin(j->tape, false, TR_KEEP);
            TR_GO(tr_net_loss(j->net, j->tape, &j->feed, 0, j->segment, counts ? &sums[m] : &unused));
            tr_tape_clear(j->tape);
        }
        if (counts && j->pipe->rank == 0) sums[n] += (double)j->feed.n_counted;
    }
    TR_GO(tr_comm_sum(j->comm, sums, (size_t)n + 1));
    for (int64_t m = 0; m < n; m++) total += sums[m];
    *counted = (int64_t)sums[n];
    *loss = *counted ? total / (double)*counted : NAN;
done:
    free(sums);
    return rc;
}
