/* A pipeline of ranks: runs the passes of a schedule (parallel/schedule), whichever it is, with the messages between them. A rank
 * has one stage or, by the schedule, several.
 *
 * A stage's micro-batch under way has a tape and an input, a micro-batch a feed; as many as the table has under way at a time. Every
 * rank walks over the same data, so that only hidden states and their gradients travel. A tied embedding is on the first and on the
 * last stage: its gradients meet at the end of a step on the first, which sends the new weights; where one rank has both they are
 * one. With parallel.vocabulary all ranks have rows of both vocabulary layers (vocabulary.h). */
#ifndef RECIPE_PIPELINE_H
#define RECIPE_PIPELINE_H
#include "recipes/update.h"

struct pipeline;

/* The schedule for the job's micro-batches and the cut of the network's layers by the work of blocks and head. Before the network.
 * Errors: TR_EINPUT (sizes that the schedule cannot do, with the nearest that it can). */
int pipeline_new(struct pipeline **out, const struct job *j);
/* What a rank has; stage: room for pipeline_chunks(). */
int pipeline_chunks(const struct pipeline *p);
struct tr_cut pipeline_cut(const struct pipeline *p, int rank, struct tr_stage *stage);
/* Room for what is under way, for training. */
int pipeline_open(struct pipeline *p, const struct job *j);
void pipeline_free(struct pipeline *p);

/* This rank's micro-batches forward and backward; losses: [micro-batches], set on the last stage; *tokens: those of them, on the first
 * rank. Collective. */
int pipeline_step(struct job *j, struct update *u, int64_t counted, double *losses, double *tokens);
/* Calls `before` before each step of the table that pipeline_step does, and with NULL behind the last. */
struct par_step;
void pipeline_watch(struct pipeline *p, void (*before)(void *self, const struct par_step *k), void *self);
/* Loss of the micro-batch that `feed` holds on every stage, forward alone; set on the last. Collective. */
int pipeline_loss(struct job *j, struct tr_feed *feed, double *loss);

/* A parameter that the ranks of the first and the last stage both have: *sum of the first becomes that of both, in this order. */
bool pipeline_joins(const struct job *j, const struct tr_param *p);
int pipeline_join(struct job *j, struct tr_tensor *sum);
/* The first stage's new value to the last. */
int pipeline_spread(struct job *j, struct tr_param *p);

#endif
