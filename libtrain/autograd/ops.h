/* The ops: each computes at once and, while the tape records, leaves a node with its backward. Outputs are new values
 * held once by the caller unless said; errors: TR_EFAIL (memory), shapes are the model's business and asserted. */
#ifndef TR_OPS_H
#define TR_OPS_H
#include "libtrain/autograd/tape.h"

/* y[N,C] = w[ids], in `dtype`. */
int tr_embedding(struct tr_tape *t, struct tr_value **y_NC, enum tr_dtype dtype, struct tr_weight *w_VC, const struct tr_tensor *ids_N);
/* y += w[pos], in place: learned positions. */
int tr_positions(struct tr_tape *t, struct tr_value *y_NC, struct tr_weight *w_PC, const struct tr_tensor *pos_N);
int tr_rms_norm(struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *g, double eps);
int tr_layer_norm(struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *g, struct tr_weight *b, double eps);
/* y[N,O] = x[N,C] W^T (+ b). b may be NULL. */
int tr_linear(struct tr_tape *t, struct tr_value **y, struct tr_value *x, struct tr_weight *w, struct tr_weight *b);
/* In place on the first `heads` heads of qkv: the value stays the caller's. */
int tr_rope(struct tr_tape *t, struct tr_value *qkv, const struct tr_tensor *cs_PD, const struct tr_tensor *pos_N, int64_t heads);
/* Qwen3: RMSNorm of each q and k head; v passes through. */
int tr_qk_norm(struct tr_tape *t, struct tr_value **y, struct tr_value *qkv, struct tr_weight *gq, struct tr_weight *gk, double eps,
               const struct tr_attention *a);
/* layout and a must stay until backward is over. */
int tr_attend(struct tr_tape *t, struct tr_value **o, struct tr_value *qkv, const struct tr_layout *layout, const struct tr_attention *a);
int tr_swiglu(struct tr_tape *t, struct tr_value **a_NI, struct tr_value *gu_N2I);
int tr_gelu(struct tr_tape *t, struct tr_value **y, struct tr_value *x);
int tr_add(struct tr_tape *t, struct tr_value **y, struct tr_value *a, struct tr_value *b);

/* The loss head: cross entropy of h W^T against the targets, in segments of `segment` counted tokens; forward and
 * backward together, so that logits exist for one segment only.
 *   rows      host: indices of the n_rows tokens of h whose target counts
 *   row_N, target_N   i32 tensors of n_rows entries: the same indices, and their targets
 *   loss_N    f32 [n_rows]: receives each counted token's loss
 *   scale     d(total loss)/d(token loss): 1 / counted tokens of the whole batch
 * While the tape records, dW is added to the weight at once and dh waits for backward. */
int tr_loss_head(struct tr_tape *t, struct tr_tensor *loss_N, struct tr_value *h_NC, struct tr_weight *w_VC,
                 const struct tr_tensor *row_N, const struct tr_tensor *target_N, int64_t n_rows, float scale, int64_t segment);

#endif
