/* Layers dealt to the stages of a pipeline. */
#ifndef PAR_CUT_H
#define PAR_CUT_H

/* first[i] = first layer of stage i, with `layers` as first[stages]. Evenly by number; as `text` says, a number of layers for each stage,
 * "4,4,3"; or so that the slowest stage is as fast
 * as it can be and, among those cuts, the stages are most alike (sum of squares). seconds: [layers]; the first and the last
 * stage have first_extra and last_extra (embedding, head) on top. Every stage has a layer. Errors: TR_EINPUT (more stages than
 * layers; numbers that do not fit, with some that do), TR_EFAIL (memory). */
int par_cut_even(int *first, int layers, int stages);
int par_cut_by_hand(int *first, int layers, int stages, const char *text);
int par_cut_by_cost(int *first, int layers, int stages, const double *seconds, double first_extra, double last_extra);

#endif
