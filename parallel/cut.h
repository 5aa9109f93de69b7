/* Layers dealt to the stages of a pipeline, and rows of a vocabulary to its ranks. */
#ifndef PAR_CUT_H
#define PAR_CUT_H
#include <stdint.h>

/* first[i] = first layer of stage i, with `layers` as first[stages]. Evenly by number; as `text` says, a number of layers for each stage,
 * "4,4,3"; or so that the slowest stage is as fast
 * as it can be and, among those cuts, the stages are most alike (sum of squares). seconds: [layers]; the first and the last
 * stage have first_extra and last_extra (embedding, head) on top. Every stage has a layer. Errors: TR_EINPUT (more stages than
 * layers; numbers that do not fit, with some that do), TR_EFAIL (memory). */
int par_cut_even(int *first, int layers, int stages);
int par_cut_by_hand(int *first, int layers, int stages, const char *text);
int par_cut_by_cost(int *first, int layers, int stages, const double *seconds, double first_extra, double last_extra);

/* Rows of a shared vocabulary to ranks in a row, first[0..ranks], so that all have as much work: work[r] is what rank r has beside, row
 * that of a row. Layers are whole and rows are many, so these fill what the layers leave uneven. Each rank has a row or more; rows
 * must be at least ranks. */
void par_share_rows(int64_t *first, int64_t rows, int ranks, const double *work, double row);

#endif
