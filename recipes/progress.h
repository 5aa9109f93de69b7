/* The line that shows a run: live on a terminal, a plain line every log_every steps elsewhere. */
#ifndef RECIPE_PROGRESS_H
#define RECIPE_PROGRESS_H
#include "recipes/metrics.h"

struct progress;
int progress_new(struct progress **out, int64_t steps, int64_t done, int64_t log_every);
void progress_step(struct progress *p, const struct metrics_row *row);
/* Leaves the last line standing. */
void progress_end(struct progress *p);
void progress_free(struct progress *p);

#endif
