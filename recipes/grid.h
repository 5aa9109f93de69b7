/* The grid of ranks, data x pipeline, and which rows of what each of them has. */
#ifndef RECIPE_GRID_H
#define RECIPE_GRID_H
#include "recipes/job.h"

/* Communicators of the grid; one rank has all layers, whatever the recipe's pipeline. Errors: TR_EINPUT. Collective. */
int grid_open(struct job *j);

/* Whose each parameter is in a pipeline: held. After the network. */
int grid_hold_stages(struct job *j);
/* Rows of every parameter evenly to the ranks of a stage: for sums of gradients where each rank has all state. */
int grid_deal_rows(struct job *j);
/* opt_setup.deal. Rows where their state is: what may be cut is cut, whole matrices go to ranks by the bytes of their state. */
int grid_deal_state(void *job, struct opt_share *share, int64_t n);
/* opt_setup.deal. Whole parameters to their stages. */
int grid_deal_stages(void *job, struct opt_share *share, int64_t n);

/* tr_shards.gather: all rows of a weight from those who have them. Collective. */
int grid_gather_weight(void *job, const struct tr_param *p, struct tr_tensor *whole);

#endif
