/* How a gradient becomes an update; one parameter at a time.
 *
 * A kind of optimizer is a const table (struct opt_kind), one file each, one line in registry.c. It lists its state once
 * (`visit`): snapshots, forecasts, shards and release all read that list. `struct opt` is the optimizer of a run: which
 * kind with which numbers for which parameter. */
#ifndef OPT_OPTIM_H
#define OPT_OPTIM_H
#include "libtrain/base/buf.h"
#include "libtrain/base/spill.h"
#include "libtrain/comm/comm.h"
#include "libtrain/config/option.h"
#include "libtrain/tensor/param.h"
#include "libtrain/tensor/visit.h"

/* One key of [optimizer] or [optimizer.group.NAME] as it stands in a recipe. */
struct opt_entry { char *section, *key, *value; struct tr_place place; };

/* First member of every kind's configuration. moments: TR_F32, or TR_BF16 where the kind can. */
struct opt_base { double weight_decay; enum tr_dtype moments; };

/* Draws and decompositions handed in instead of made; only replay has them. `what` is the name in the reference files
 * ("projection", "projection_left", "uniform", ...), k counts refreshes (draws) from 0. *out becomes a view in f32, indices
 * as whole numbers; TR_EINPUT when there is none. */
struct opt_given { void *self; int (*get)(void *self, const char *what, int64_t k, struct tr_tensor *out); };

/* What an update gets. grad is f32 [O,C] or [C], rows maybe longer; it may be overwritten. */
struct opt_step {
    struct tr_param *p;
    struct tr_tensor *grad;
    bool low;             /* grad is the projection that the kind's `low` tells of, in place of the gradient */
    const struct opt_slopes *slopes;   /* for rules that learn from losses, in place of grad */
    double lr;
    double schedule;      /* lr as a share of the recipe's train.lr, for rules with a second rate */
    int64_t t;            /* number of this update, from 1 */
    int64_t row;          /* of the parameter, that p->value begins with: others have the rows before */
    uint64_t seed;        /* of the run; draws are keyed by it, the purpose, the parameter's name and the step */
    double tokens;        /* of a full step */
    bool more;            /* a probe's result adds to what the same probe gave before */
    int64_t member, members;   /* place of the parameter among those of the same rule and settings */
    const struct opt_given *given;  /* NULL: make draws and decompositions yourself */
};

/* Evaluations beside the gradient, for the diagonal of the curvature.
 *   labels    after the update of step every, 2 every, ...: the gradient against labels that the model drew
 *   hessian   before the update of step 1, 1 + every, ...: u H u, elementwise, for a normal u (Hutchinson) */
enum opt_probe { OPT_PROBE_NONE, OPT_PROBE_LABELS, OPT_PROBE_HESSIAN };

/* What a rule learns from: gradients that opt_update is given; losses, or the slope along a direction, for which
 * opt_step_by_losses asks. */
enum opt_needs { OPT_GRADIENT, OPT_LOSSES, OPT_SLOPE };
struct opt_zo;
struct opt_slopes;

/* Whose turn it is: the step that begins; the block of layers that a parameter is in (-1: embeddings, final norm, head), of so
 * many. */
struct opt_turn { uint64_t seed; int64_t step; int block, blocks; };

struct opt_lister;        /* takes the state of one parameter; see opt_list_* */
int opt_list_tensor(struct opt_lister *l, const char *field, struct tr_tensor *t);
int opt_list_words(struct opt_lister *l, const char *field, uint64_t *words, int64_t count);

/* Rules that learn from a projection of the gradient alone, but at a refresh. Projecting is linear: gradients of micro-batches
 * and of ranks are projected first and added then.
 *   every    so many updates there is a refresh, which needs the gradient; the first is in update 1
 *   shape    of that projection of an [m,n] matrix; false: there is none under this configuration
 *   init     of a state, what projecting needs alone, zeroed (category communication)
 *   visit    lists the same
 *   project  low = projection of g, both f32 */
struct opt_low {
    const char *where;            /* for help: under which configuration; "" under each */
    int64_t (*every)(const void *config);
    bool (*shape)(const void *config, int64_t m, int64_t n, int64_t dim[2]);
    int (*init)(const void *config, void *state, const struct tr_param *p);
    int (*visit)(void *state, struct opt_lister *l);
    int (*project)(const void *config, const void *state, struct tr_tensor *low, const struct tr_tensor *g);
};

struct opt_kind {
    const char *name, *summary, *rule, *source;   /* rule: the update in a line or a few, for help */
    const struct tr_option *options;              /* offsets into the configuration */
    size_t config_size, state_size;
    bool matrices_only;                           /* embeddings, head, norms and biases take `rest` */
    const char *rest;
    bool rest_undecayed;                          /* and have no weight decay */
    bool for_int8;                                /* made for int8 weights: model.dtype = auto means these */
    bool bf16_moments;                            /* init and bytes follow the configuration's `moments` */
    const char *in_8bit;                          /* the kind that is this one with moments in 8 bits; NULL: none is */
    bool by_rows;                                 /* an update of some rows needs those rows alone: ranks may share a matrix */
    bool (*state_moves)(const void *config);      /* state comes and goes between parameters: ranks cannot share it; may be NULL */
    /* Before a state is restored: which tensors there are after step s->t. NULL: always the same. */
    int (*restoring)(const void *config, void *state, const struct opt_step *s);
    bool (*holds)(const void *state);             /* whether it is here now, for `bytes`; NULL: always */
    int (*check)(const void *config);             /* combinations; may be NULL */
    int (*init)(const void *config, void *state, const struct tr_param *p);   /* state is zeroed; may be NULL */
    int (*update)(const void *config, void *state, const struct opt_step *s);
    const struct opt_low *low;                    /* NULL: every update needs the gradient itself */
    /* Kinds whose layers take turns: whether a parameter trains, and whether its state starts anew. A parameter that does not
     * train is frozen and has no state. NULL: all train always. */
    int (*turn)(const void *config, const struct opt_turn *t, bool *trains);
    bool (*anew)(const void *config, const struct opt_turn *t);
    /* A rule that needs the curvature says which probe, and every how many steps; what the probe found is handed over then.
     * Functions NULL for others. */
    enum opt_probe probe;
    enum opt_needs needs;
    const struct opt_zo *(*zo)(const void *config);   /* how losses are taken; rules that learn from them */
    int64_t (*probe_every)(const void *config);
    double (*probe_eps)(const void *config);
    int (*curvature)(const void *config, void *state, const struct opt_step *s);
    int (*visit)(void *state, struct opt_lister *l);
    /* Bytes of state for an [m,n] matrix (m = 1: a vector), exactly those that init allocates. */
    size_t (*bytes)(const void *config, int64_t m, int64_t n);
};

extern const struct opt_kind *const opt_kinds[];   /* NULL-terminated */
/* Hyphens and underscores are the same; NULL when unknown. */
const struct opt_kind *opt_find(const char *name);
/* Whether an optimizer (NULL: any of them) takes a key of [optimizer]. */
bool opt_has_key(const char *name, const char *key);

/* Checks all keys of all sections against the kinds' tables. path: the recipe, for messages. */
int opt_check(const struct opt_entry *e, size_t n, const char *path);
/* Appends the sections with every key resolved. */
int opt_print(const struct opt_entry *e, size_t n, struct tr_buf *out);
/* Help on one kind (name NULL: the list of all). */
int opt_help(struct tr_buf *out, const char *name);

struct opt;
/* What ranks share: state bytes of a parameter, its rows (a vector is one), whether it may be cut between rows; the answer:
 * rows dealt to ranks as in comm.h, borrowed for as long as the optimizer lives. */
struct opt_share { size_t bytes; int64_t rows; bool by_rows; const int64_t *first; };
struct opt_setup {
    const struct opt_entry *entry; size_t n; const char *path; uint64_t seed;
    double tokens;                   /* of a full step */
    double lr;                       /* the recipe's learning rate, before its schedule */
    bool shares_weights;             /* ranks have rows of the weights alone (ZeRO 3) */
    bool projects;                   /* opt_project is called, on every rank: each holds what projecting needs (of states that others
                                      * have: category communication) */
    struct tr_comm *comm;            /* NULL: all state is here; else `deal` says which rows each rank has */
    /* those of `comm` that share a batch, so that the parameters that they update are the same: share_at is the rank of the first in
     * `comm`; used with `projects` */
    struct tr_comm *sharers;
    int share_at;
    int (*deal)(void *self, struct opt_share *share, int64_t n);
    void (*leaves)(void *self, int64_t i);   /* may be NULL: the state of parameter i is about to be given back for good */
    void *self;
    struct tr_spill *file;           /* NULL: state is in memory; else it waits in this file between updates */
};

/* Chooses kind and numbers for every trainable parameter and allocates the state (category optimizer). */
int opt_new(struct opt **out, const struct opt_setup *setup, struct tr_param *params, int64_t n);
void opt_free(struct opt *o);
/* Before the gradients of a step: layers whose turn is over give their state back and are frozen (tr_param), those whose turn
 * begins get one. In dry mode all that could be its largest: the lowest layer's turn. */
int opt_begin(struct opt *o, int64_t step);
/* Applies one finished gradient (of this rank's rows where ranks share); once per parameter and step, in any order.
 * given: NULL but in replay. */
int opt_update(struct opt *o, struct tr_param *p, struct tr_tensor *grad, double lr, int64_t step, const struct opt_given *given);
/* Whether update `step` (from 1) of a parameter needs but a projection of its gradient: then its shape, [R,N] or [M,R], else dim
 * stays as it is. The same on every rank. */
bool opt_low_shape(const struct opt *o, const struct tr_param *p, int64_t step, int64_t dim[2]);
/* Updates from one that needs gradients to the next; 0: all do. */
int64_t opt_low_every(const struct opt *o);
/* low (f32, of that shape) = projection of a gradient of the whole parameter, on any rank. */
int opt_project(struct opt *o, struct tr_param *p, struct tr_tensor *low, const struct tr_tensor *grad);
/* opt_update with the sum of projections; where ranks share state, on the rank that has it. */
int opt_update_low(struct opt *o, struct tr_param *p, struct tr_tensor *low, double lr, int64_t step);
/* After update `step`, where it was with the gradient: what projecting needs goes from the rank that has the state to the others.
 * Collective where ranks share state. */
int opt_share_low(struct opt *o, struct tr_param *p, int64_t step);
/* What the rules of a run learn from: gradients where any rule does. */
enum opt_needs opt_needs(const struct opt *o);
/* Whether any does: beside gradients, then (zeroth order for some layers, backward for the others). */
bool opt_needs_losses(const struct opt *o);
/* A whole step of rules that learn from losses: moves the parameters along directions and back, asks for the loss of the same
 * batch each time, updates. *loss: one at or near the weights. Collective where ranks share state; all ranks must get the same
 * losses. slope and given are for replay: slopes of a recorded run, and its directions (index of the draw from 0); else NULL. */
struct opt_evaluator {
    void *self;
    int (*loss)(void *self, double *loss);
    int (*slope)(void *self, double *slope);
    int (*given)(void *self, const struct tr_param *p, int64_t draw, const struct tr_tensor **z);
};
int opt_step_by_losses(struct opt *o, double lr, int64_t step, const struct opt_evaluator *e, double *loss);
/* Steps between two probes of a kind, 0: none is needed; whether step `step` (from 1) has one; and what it found for one
 * parameter (where the rule needs none nothing happens). */
int64_t opt_probe_every(const struct opt *o, enum opt_probe probe);
bool opt_probe_due(const struct opt *o, enum opt_probe probe, int64_t step);
/* more: adds to what the same probe gave before. */
int opt_curvature(struct opt *o, struct tr_param *p, struct tr_tensor *grad, int64_t step, bool more);
/* How far a Hessian probe moves the weights. */
double opt_probe_eps(const struct opt *o);
/* No state is in memory that belongs in the file: at the end of a step. */
int opt_settle(struct opt *o);
/* Lists all state, whole on every rank and whatever the layout (collective where ranks share): tensors "optimizer/NAME/FIELD", numbers likewise. */
int opt_visit(struct opt *o, struct tr_visitor *v);
/* Lists the state of parameter i as this rank has it; local. State that waits in a file is not there to be listed. */
int opt_visit_owned(struct opt *o, int64_t i, const struct tr_owned *v);
/* Whether state comes and goes between parameters: its bytes do not stay where they were listed. */
bool opt_state_moves(const struct opt *o);
/* Whether layers take turns: which states there are changes, their bytes together do not where all is on one rank. */
bool opt_takes_turns(const struct opt *o);
/* Sum of the kinds' formulas over all parameters. */
size_t opt_state_bytes(const struct opt *o);
/* Name of the kind that a parameter takes. */
const char *opt_kind_of(const struct opt *o, const struct tr_param *p);

#endif
