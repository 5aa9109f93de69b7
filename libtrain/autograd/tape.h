/* Reverse-mode autograd on a tape.
 *
 * Ops (autograd/ops) compute at once and, while the tape records, leave a node. A value (struct tr_value) is a tensor in
 * the step arena with a count of its holders: the code that made it holds it until tr_drop, nodes hold what their
 * backward needs. tr_backward walks the nodes from the last to the first, frees as it goes, and hands each parameter's
 * finished gradient to the sink, a tied weight's after its last use. */
#ifndef TR_TAPE_H
#define TR_TAPE_H
#include "libtrain/kernel/kernel.h"
#include "libtrain/tensor/param.h"

struct tr_tape;
struct tr_node;

/* How saved activations are held. */
enum tr_recompute { TR_KEEP, TR_SELECTIVE /* norm outputs and products are rebuilt */, TR_BLOCK /* layers run again */ };

struct tr_value {
    struct tr_tensor t;
    struct tr_tensor grad;       /* data NULL until something flowed in */
    struct tr_node *maker;       /* the node that can rebuild it, or NULL */
    struct tr_value *grad_of;    /* grad is borrowed from this value (residual add), or NULL */
    int holders;
    int grad_holders;
    bool wants_grad;
};

/* Who receives finished gradients. `grad` is f32, shaped like p->value (rows maybe padded) and the sink's until return. */
struct tr_sink {
    void *self;
    int (*on_grad)(void *self, struct tr_param *p, struct tr_tensor *grad);
};

#endif
