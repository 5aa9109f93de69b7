/* Vocabulary parallelism: the ranks of a pipeline have rows of the embedding and of the head each, whatever their stages, tied or not.
 *
 * The embedding: whoever has a token's row sends it to the first stage, and gets its gradient back. The head (Yeung et al., "Balancing
 * Pipeline Parallelism with Vocabulary Parallelism", 2024): every rank gets the last stage's hidden states X and has its columns of
 * the logits, Y = X W^T. Pass S makes the softmax Q over these columns alone, with its logarithm of the sum l; once all ranks' l are
 * known, of sum L, the gradient is dY = c (exp(l - L) Q - G), G one at the labels that are here. Algorithm 1 has then dX = dY W and
 * dW = dY^T X in pass T, and a second barrier for the sum of dX. Algorithm 2 has A = Q W in pass S already, so that
 * dX = c (exp(l - L) A - G W) needs no product behind the first barrier, and pass T, dW alone, can wait. */
#ifndef RECIPE_VOCABULARY_H
#define RECIPE_VOCABULARY_H
#include "recipes/update.h"

struct vocabulary;

/* last: the rank of the last stage; work: [ranks] products of a token in each rank's layers, which rows level (par_share_rows). Errors:
 * TR_EINPUT (fewer rows than ranks). */
int vocabulary_new(struct vocabulary **out, const struct job *j, int last, bool one_barrier, const double *work);
/* Rows of rank r: [first[r], first[r + 1]). */
const int64_t *vocabulary_first(const struct vocabulary *v);
/* Room for so many micro-batches between X and pass T. */
int vocabulary_open(struct vocabulary *v, const struct job *j, int parts);
bool vocabulary_is_open(const struct vocabulary *v);
void vocabulary_free(struct vocabulary *v);

/* All of these by every rank, the collective ones at once; micro-batch `micro` is the one that `f` holds. */

/* Collective. x_NC (first stage; else NULL) = rows of the fed tokens; dx_NC back, to this step's sums. */
int vocabulary_embed(struct vocabulary *v, struct job *j, const struct tr_feed *f, struct tr_tensor *x_NC);
int vocabulary_embed_back(struct vocabulary *v, struct job *j, const struct tr_feed *f, const struct tr_tensor *dx_NC, struct update *u);
/* Collective. The last stage's h_NC (else NULL) to all ranks. */
int vocabulary_share(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, const struct tr_tensor *h_NC);
/* Pass S; record: T follows. */
int vocabulary_s(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, bool record);
/* Collective. What all ranks' columns sum up to; *loss = sum of the counted tokens' losses. */
int vocabulary_statistics(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, double *loss);
/* Pass T; scale: c. */
int vocabulary_t(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, float scale, struct update *u);
/* Collective. dh_NC (last stage; else NULL) = the gradient of h; with one barrier after the statistics, with two after T. */
int vocabulary_gradient(struct vocabulary *v, struct job *j, int micro, const struct tr_feed *f, float scale, struct tr_tensor *dh_NC);
/* X goes, where no T follows. */
void vocabulary_forget(struct vocabulary *v, int micro);

#endif
