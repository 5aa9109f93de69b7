/* Pipelines of stages, one on each rank, side by side when batches are shared (parallel.data): runs the passes of a schedule (parallel/schedule) with the messages between them.
 *
 * Micro-batches under way have a tape, a feed and an input each; as many as the schedule promises, and one more whose message is
 * on its way. Every stage walks over the same data, so that only hidden states and their gradients travel. A tied embedding is
 * on the first and on the last stage: its gradients meet at the end of a step on the first, which sends the new weights. */
#ifndef RECIPE_PIPELINE_H
#define RECIPE_PIPELINE_H
#include "recipes/update.h"

struct pipeline;

/* Layers [from, to) of the network's list that a stage has, by the work of blocks and head. Errors: TR_EINPUT. */
int pipeline_cut(const struct job *j, int stage, int *from, int *to);
/* The schedule for the job's micro-batches, and room for those under way. After the network. */
int pipeline_new(struct pipeline **out, struct job *j);
void pipeline_free(struct pipeline *p);

/* This pipeline's micro-batches forward and backward; losses: [micro-batches of the batch], its own set on the last stage; *tokens: those of the batch, on
 * the first. Collective. */
int pipeline_step(struct job *j, struct update *u, int64_t counted, double *losses, double *tokens);
/* Loss of the micro-batch that `feed` holds on every stage, forward alone; set on the last. Collective. */
int pipeline_loss(struct job *j, struct tr_feed *feed, double *loss);

/* A parameter that the first and the last stage have: *sum of the first becomes that of both, in this order. */
bool pipeline_joins(const struct job *j, const struct tr_param *p);
int pipeline_join(struct job *j, struct tr_tensor *sum);
/* The first stage's new value to the last. */
int pipeline_spread(struct job *j, struct tr_param *p);

#endif
