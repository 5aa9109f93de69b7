/* A step of rules that learn from losses: the batch goes forward several times at moved weights. No tape, no gradients:
 * the memory of evaluation. Where other parameters learn from gradients, theirs comes after, on the same batch. Ranks
 * exchange the sums of losses of micro-batches, nothing else. */
#include "libtrain/base/profile.h"
#include "libtrain/base/status.h"
#include "recipes/update.h"
#include <math.h>
#include <string.h>

struct look { struct job *j; struct tr_loader_place begin; int64_t counted, tokens; bool fed; };

/* Mean loss of the whole batch at the weights as they are; the sums of micro-batches are added in order. */
static int loss_of_batch(void *self, double *out)
{
    struct look *k = self;
    struct job *j = k->j;
    double total = 0, *losses = update_losses(j);
    memset(losses, 0, (size_t)j->micro_batches * sizeof *losses);
    bool again = j->rounds > 1 || !k->fed; /* a single micro-batch stays fed */
    if (again) tr_loader_seek(j->loader, k->begin);
    k->tokens = again ? 0 : k->tokens;
    for (int64_t round = 0; round < j->rounds; round++) {
        int64_t tokens = 0;
        double *loss = &losses[round * j->comm->size + j->comm->rank];
        if (again) TR_TRY(step_feed(j, &j->feed, &tokens));
        k->tokens += tokens;
        tr_tape_begin(j->tape, false, TR_KEEP);
        TR_TRY(tr_net_loss(j->net, j->tape, &j->feed, 0, j->segment, loss));
        tr_tape_clear(j->tape);
        if (!isfinite(*loss)) return step_blame(j, (int64_t)j->step + 1, *loss);
    }
    k->fed = true;
    TR_TRY(tr_comm_sum(j->comm, losses, (size_t)j->micro_batches));
    for (int64_t m = 0; m < j->micro_batches; m++) total += losses[m];
    *out = total / (double)k->counted;
    return TR_OK;
}

/* The step of all parameters that learn from losses. */
static int move(struct look *k, double *loss)
{
    struct job *j = k->j;
    struct opt_evaluator e = { .self = k, .loss = loss_of_batch };
    j->comm->doing = "a step";
    ckpt_capture_settle(j->capture); /* weights move from the first evaluation on */
    enum tr_part part = tr_part_enter(TR_PART_OPTIMIZER);
    TR_TRY(opt_step_by_losses(j->opt, job_lr(j->r, j->steps, (int64_t)j->step), (int64_t)j->step + 1, &e, loss));
    tr_part_enter(part);
    return TR_OK;
}

int job_move_by_losses(struct job *j)
{
    struct look k = { .j = j, .begin = tr_loader_tell(j->loader), .counted = tr_loader_peek_counted(j->loader, j->batch) };
    double loss;
    TR_TRY(move(&k, &loss));
    tr_loader_seek(j->loader, k.begin);
    return TR_OK;
}

int job_step_by_losses(struct job *j, struct step_result *out)
{
    struct look k = { .j = j, .begin = tr_loader_tell(j->loader), .counted = tr_loader_peek_counted(j->loader, j->batch) };
    double lr = job_lr(j->r, j->steps, (int64_t)j->step), loss, sums[3];
    TR_TRY(move(&k, &loss));
    TR_TRY(opt_settle(j->opt));
    sums[0] = (double)k.tokens;
    sums[1] = j->stop;
    TR_TRY(ckpt_capture_protect(j->capture));
    sums[2] = ckpt_capture_say(j->capture);
    TR_TRY(tr_comm_sum(j->comm, sums, 3));
    ckpt_capture_hear(j->capture, sums[2]);
    j->step++;
    j->tokens_seen += (uint64_t)sums[0];
    *out = (struct step_result){ .loss = loss, .lr = lr, .tokens = (int64_t)sums[0], .counted = k.counted, .stop = sums[1] > 0 };
    return TR_OK;
}
