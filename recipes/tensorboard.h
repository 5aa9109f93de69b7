/* Event files for TensorBoard: the numbers of metrics.jsonl as scalars, in dir/tensorboard/. */
#ifndef RECIPE_TENSORBOARD_H
#define RECIPE_TENSORBOARD_H
#include "recipes/metrics.h"

struct tensorboard;
/* Starts a file of its own. after 0: a new run, the event files of an earlier one are removed; after a resume TensorBoard is
 * told to forget what it read of later steps. Errors: TR_EFAIL. */
int tensorboard_open(struct tensorboard **out, const char *folder, int64_t after);
/* One event with the scalars of this step, flushed. NULL is fine. */
int tensorboard_write(struct tensorboard *t, const struct metrics_row *row);
void tensorboard_close(struct tensorboard *t);

#endif
