/* Reverse-mode autograd on a tape.
 *
 * Ops (autograd/ops.h) compute at once and, while the tape records, leave a node. A value is a tensor in the step arena:
 * the code that made it holds it until tr_drop, nodes hold what their backward needs. tr_backward walks the nodes from
 * the last to the first, gives memory back as it goes, and hands each parameter's finished gradient to the sink, a tied
 * weight's after its last use.
 *
 * Memory of saved activations: TR_KEEP keeps all; TR_SELECTIVE drops what its maker can rebuild cheaply (norm outputs,
 * products) and rebuilds it when backward asks; TR_BLOCK keeps only the input of each block and runs the block again.
 * Whatever the policy keeps can wait in a file between forward and backward (tr_tape_offload).
 *
 * Backward can be split: first the gradients of values alone, which whoever is below waits for, later those of the large weights
 * (tr_tape_split). */
#ifndef TR_TAPE_H
#define TR_TAPE_H
#include "libtrain/base/profile.h"
#include "libtrain/base/spill.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/tensor/param.h"

enum tr_recompute { TR_KEEP, TR_SELECTIVE, TR_BLOCK };

struct tr_tape;
struct tr_node;

/* A gradient of a value; shared by several values until one of them adds to it. */
struct tr_grad { struct tr_tensor t; int holders; };

struct tr_value {
    struct tr_tensor t;          /* data NULL while it is dropped and waits to be rebuilt */
    struct tr_grad *grad;        /* NULL until something flowed in */
    struct tr_node *maker;       /* node that can rebuild t, or NULL */
    int holders, savers;         /* code that uses it now; nodes that will */
    int block;                   /* the last block whose nodes save it */
    enum { TR_HERE, TR_GOING, TR_AWAY, TR_COMING } place;   /* where t's bytes are when the tape has a file */
    uint64_t at;                 /* in the file */
    struct tr_value *next;       /* the tape's list of all its values */
};

/* A weight as layers use it: one parameter, or several stacked by rows (q|k|v, gate|up) so that one product serves all.
 * Each parameter's value is a row view of `value`. */
struct tr_weight {
    struct tr_tensor value;       /* [O,C] or [C] */
    struct tr_param *param[3];
    int n;
    struct tr_tensor grad;        /* f32 in the arena, rows maybe padded; lives from its first to its last contribution */
    int pending;                  /* in backward: uses whose contribution is still to come */
};

/* Who receives finished gradients: `grad` is f32, shaped like p->value (rows maybe padded), and may be overwritten. */
struct tr_sink {
    void *self;
    int (*on_grad)(void *self, struct tr_param *p, struct tr_tensor *grad);
};

int tr_tape_new(struct tr_tape **out);
void tr_tape_free(struct tr_tape *t);

/* Saved activations wait in this file, borrowed, from the end of their block's forward to the beginning of its backward:
 * blocks are written behind and read ahead by one. NULL: they stay in memory. */
void tr_tape_offload(struct tr_tape *t, struct tr_spill *file);

/* Who brings weights in that are not always here (ZeRO 3). Ops ask before they use a value; a weight stays until one of another
 * layer is asked for, or until the tape is cleared. */
struct tr_resident {
    void *self;
    int (*need)(void *self, struct tr_weight *w);
    void (*leave)(void *self);       /* nothing is used any more */
};
/* Borrowed; NULL: all weights are here. */
void tr_tape_resident(struct tr_tape *t, const struct tr_resident *r);

/* Starts a micro-batch. record: leave nodes for backward. policy: see above. */
void tr_tape_begin(struct tr_tape *t, bool record, enum tr_recompute policy);
/* Within a recorded micro-batch: leave nodes from here on, or none. What comes before the first layer that trains needs none. */
void tr_tape_record(struct tr_tape *t, bool record);
/* Walks back over everything recorded. keep_grads: finished gradients stay alive in their weights (clipping, or more
 * micro-batches to come) and the sink, which may be NULL, is not called; else each goes to the sink and is freed. */
int tr_backward(struct tr_tape *t, const struct tr_sink *sink, bool keep_grads);
/* The same for a part of the network: the gradient of its last value is there already (tr_grad_into); *din = that of `in`, its
 * first (NULL: none is asked for), in the arena and the caller's. Several tapes may hold micro-batches of one network, whose
 * gradients come with each backward. */
int tr_backward_part(struct tr_tape *t, const struct tr_sink *sink, bool keep_grads, struct tr_value *in, struct tr_tensor *din);
/* From now on tr_backward_part leaves the products of weights, with what they need (their inputs and the gradients of their outputs),
 * to tr_backward_weights, which ends the micro-batch. The sums of each weight are then added in that order. */
void tr_tape_split(struct tr_tape *t);
int tr_backward_weights(struct tr_tape *t, const struct tr_sink *sink);
/* Frees every value and node (after an error too). Gradients kept in weights stay. */
void tr_tape_clear(struct tr_tape *t);
/* The last block is behind: what is being written is waited for and freed. */
int tr_tape_settle(struct tr_tape *t);

/* Whether none of its parameters trains in this step: then nobody asks for its gradient, and ops leave the product out where
 * that saves one (vectors are computed and passed over). */
bool tr_weight_frozen(const struct tr_weight *w);
/* Gives a kept gradient of a weight to the sink, parameter by parameter, and frees it. */
int tr_weight_flush(struct tr_weight *w, const struct tr_sink *sink);
/* The part of the weight's gradient that belongs to its i-th parameter. */
struct tr_tensor tr_weight_grad(const struct tr_weight *w, int i);

/* The code that made a value has no more use for it. NULL is fine. */
void tr_drop(struct tr_tape *t, struct tr_value *v);

/* ---- for ops ------------------------------------------------------------------------------------------------- */

enum { TR_NODE_VALUES = 4, TR_NODE_WEIGHTS = 3 };

struct tr_op {
    const char *name;
    int (*backward)(struct tr_tape *t, struct tr_node *n);
    int (*rebuild)(struct tr_node *n, struct tr_value *v);   /* fills v->t again from what the node saved; or NULL */
    int (*weights)(struct tr_tape *t, struct tr_node *n);    /* the part of backward that can wait: gradients of weights; or NULL */
};

struct tr_node {
    const struct tr_op *op;
    struct tr_value *out, *in[TR_NODE_VALUES];   /* in: where gradients flow to; held when saved */
    bool saved[TR_NODE_VALUES];                  /* in[i]'s tensor is needed by backward */
    bool saved_out;
    enum tr_part part;                           /* whose time its backward is */
    int block;                                   /* calls of tr_checkpoint before it */
    struct tr_weight *w[TR_NODE_WEIGHTS];
    union { double real[4]; int64_t word[4]; const void *ptr[4]; } arg;
};

/* A new value in the arena, held once by the caller. */
int tr_value_new(struct tr_tape *t, struct tr_value **out, enum tr_dtype dtype, int ndim, const int64_t *dim);
/* A node, or NULL in *n while the tape does not record. Weights are counted as used either way. */
int tr_record(struct tr_tape *t, struct tr_node **n, const struct tr_op *op, struct tr_value *out);
int tr_use(struct tr_tape *t, struct tr_node *n, int slot, struct tr_weight *w);
/* in[slot] = v; save: its tensor is needed by backward. */
void tr_input(struct tr_node *n, int slot, struct tr_value *v, bool save);
void tr_save_out(struct tr_node *n);
/* The output can be rebuilt by this node's op. */
void tr_rebuildable(struct tr_node *n);

/* In backward: the saved tensor, rebuilt when needed. */
int tr_saved(struct tr_node *n, int slot, struct tr_tensor **out);
/* Gradient that flowed into the node's output; NULL when none did. */
struct tr_tensor *tr_grad_of(struct tr_node *n);
/* Where to put v's gradient: *acc says whether to add. */
int tr_grad_into(struct tr_value *v, struct tr_tensor **dx, bool *acc);
/* v's gradient += g, without a copy where nothing is there yet. */
int tr_grad_share(struct tr_value *v, struct tr_grad *g);
/* Makes v's gradient its own, so that it may be changed in place. */
int tr_grad_own(struct tr_value *v);

/* Before the value of a weight (NULL is fine) is used. */
int tr_need(struct tr_tape *t, struct tr_weight *w);
/* The weight's gradient to add into; *fresh: nothing is there yet and it must be overwritten. */
int tr_weight_grad_into(struct tr_tape *t, struct tr_weight *w, struct tr_tensor **dw, bool *fresh);
/* The same, filled with zeros when fresh. */
int tr_weight_grad_add(struct tr_tape *t, struct tr_weight *w, struct tr_tensor **dw);
/* One use has contributed; after the last the gradient is finished. */
int tr_weight_done(struct tr_tape *t, struct tr_weight *w);

bool tr_tape_recording(const struct tr_tape *t);

/* Runs `layer` (in to out). Under TR_BLOCK only `in` is kept and backward runs it again. */
typedef int (*tr_layer_fn)(void *self, struct tr_tape *t, struct tr_value **out, struct tr_value *in);
int tr_checkpoint(struct tr_tape *t, struct tr_value **out, struct tr_value *in, tr_layer_fn layer, void *self);

#endif
