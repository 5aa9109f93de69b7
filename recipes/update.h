/* From a finished gradient to new weights, on one rank or many.
 *
 * Sums do not depend on the number of ranks: micro-batch m of the whole batch belongs to rank m % ranks in round m / ranks.
 * Each round's gradients are exchanged whole, the owner of a row adds them in the order of micro-batches, one after another,
 * as one rank would. It costs an exchange a round, and no memory: a rank keeps sums of its own rows only.
 *
 * Where a rule needs but a projection of the gradient (optim.h, opt_low_shape), each micro-batch's gradient is projected where
 * it arose, and projections are exchanged and added. That is so whenever a step has several micro-batches, on one rank too: the
 * bits do not depend on ranks. The norm is then that of the projections. With train.clip gradients stay whole. */
#ifndef RECIPE_UPDATE_H
#define RECIPE_UPDATE_H
#include "recipes/job.h"

/* Feeds this rank's next micro-batch into `feed`; all ranks walk over all of them. */
int step_feed(struct job *j, struct tr_feed *feed, int64_t *tokens);
/* Where a loss that is not finite arose, as an error: the first layer whose output is not finite, by running forward again. */
int step_blame(struct job *j, int64_t step, double loss);

struct update { struct job *j; double lr, scale; int64_t step, round; };

/* Whether gradients stay in the weights until update_finish: a single one of a single rank that is not used at once. */
bool update_keeps(const struct job *j);
/* The sink of backward. */
int update_gradient(void *update, struct tr_param *p, struct tr_tensor *grad);
/* Beside the sink: where this step's sum of p is on this rank alone, gradients may be added to it in place, and no other copy is made.
 * *sum: it, filled with zeros before the first; NULL: by the sink. update_added follows. */
int update_sum(struct update *u, struct tr_param *p, struct tr_tensor **sum);
int update_added(struct update *u, struct tr_param *p);
/* After the last round: the norm before clipping, and what was not used inside backward. Adds up j->figures over ranks: the
 * squares of the gradients, then the sum of losses of each micro-batch, then UPDATE_SUMS numbers: two of the caller, one of
 * snapshots in memory. */
int update_finish(struct update *u, double *norm);
/* The figures behind the squares. */
double *update_losses(struct job *j);

#endif
