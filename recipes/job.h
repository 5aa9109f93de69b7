/* Everything one process opens for a recipe: model, tokenizer, data, optimizer, tape. The commands are built from it. */
#ifndef RECIPE_JOB_H
#define RECIPE_JOB_H
#include "checkpoint/capture.h"
#include "libtrain/comm/comm.h"
#include "libtrain/data/data.h"
#include "libtrain/model/net.h"
#include "optim/optim.h"
#include "recipes/recipe.h"

enum { UPDATE_PANELS = 8 /* parts of a matrix whose squares are summed apart */, UPDATE_SUMS = 3 };

struct pipeline;

struct job {
    const struct recipe *r;
    struct tr_weights *weights;          /* NULL from scratch */
    struct tr_tokenizer *tokenizer;      /* NULL when no text is involved */
    struct tr_shape shape;
    struct tr_net *net;
    struct tr_tape *tape;
    struct tr_feed feed;
    struct tr_dataset *train, *valid;
    struct tr_loader *loader, *valid_loader;
    struct opt *opt;
    struct tr_spill *state_file, *saved_file;   /* memory.offload = disk: optimizer state and saved activations; else NULL */
    /* what the keys resolve to */
    int64_t batch, micro_batch, micro_batches, rounds, steps;   /* micro-batches of the whole batch; rounds: of this rank */
    enum tr_recompute recompute;
    bool values;                         /* of weights that ranks share: loaded once they are dealt */
    bool fused;                          /* each parameter is updated inside backward */
    bool projects;                       /* gradients are projected where the rule allows it, before they are added */
    int64_t segment;                     /* tokens of the loss head at a time */
    /* ranks: rows of each parameter dealt to them, size + 1 numbers each; sums of gradients, this rank's rows, within a step */
    struct tr_comm *comm;
    /* the grid: ranks that share the batches of a stage, and the stages of a pipeline; rank = stage x data ranks + data rank */
    struct tr_comm *data, *pipe;
    int64_t *first, *low_first;          /* of `data`; low_first: of one projection at a time */
    struct tr_tensor *sum;
    /* a pipeline: how many stages (1: none); rows that stages have of each parameter, all or none; rows of its state on all ranks */
    int stages;
    int64_t *held, *dealt;
    struct pipeline *pipeline;
    size_t dealt_least, dealt_most;      /* bytes of state (at stage 3 with weights) of the ranks with least and most */
    double *figures;                     /* what ranks add up at the end of a step, see update.c */
    bool stop;                           /* this rank was asked to stop */
    struct ckpt_capture *capture;        /* checkpoint.memory_every: snapshots in memory; else NULL */
    bool done;                           /* the run ended as it should: nothing of it is needed in memory */
    /* progress: words of a snapshot */
    uint64_t step, tokens_seen;
};

/* Opens the model files and resolves shape and types; nothing large is allocated. The second without the device of run.device, for what
 * reads and writes but computes nothing. */
int job_open(struct job *j, const struct recipe *r);
int job_open_files(struct job *j, const struct recipe *r);
/* Tokenizer when text is involved; required = an error when there is none. */
int job_tokenizer(struct job *j, bool required);
/* Training (and validation) data with their loaders; resolves steps and micro-batches. */
int job_data(struct job *j, bool train);
/* Since the start: bytes that this rank sent, seconds that it waited; bytes that all ranks send by the shapes of what is exchanged. */
struct job_traffic { uint64_t sent, moved; double waited; };
struct job_traffic job_traffic(const struct job *j);
/* How a step is cut and held. Refuses what cannot work together. */
int job_resolve(struct job *j, int64_t micro_batch, enum tr_recompute recompute);
/* Allocates the network; values: from the file or random, or unset when a snapshot follows (values = false). */
int job_net(struct job *j, bool values);
/* Optimizer, tape and feed for training; feed alone for evaluation. */
int job_training(struct job *j);
int job_feed(struct job *j, int64_t tokens);
/* Closes what training does not need once the weights are there: the model file and the tokenizer. */
void job_forget_files(struct job *j);
void job_release(struct job *j);

/* Loads the parameters of a snapshot ("" = newest of the run folder, or a path) over the network's. */
int job_parameters(struct job *j, const char *snapshot);
/* Lists all state that a resume needs. */
int job_visit(void *job, struct tr_visitor *v);

/* The same as this rank has it, listed by parameter; local. */
int job_visit_owned(void *job, const struct tr_owned *v);
/* How the ranks lie on nodes, and checkpoint.redundancy over them. Errors: TR_EINPUT. Collective. */
int job_nodes(struct ckpt_nodes *n, const struct recipe *r, struct tr_comm *comm);

/* Bytes moved so far by memory.offload, and those of its files; zeros without. */
struct tr_spill_counts job_disk(const struct job *j);

/* One optimizer step over the next batch; *loss is the mean over its counted tokens. grad_norm before clipping. */
struct step_result { double loss, grad_norm, lr; int64_t tokens, counted; bool stop; /* any rank was asked to stop */ };
int job_step(struct job *j, struct step_result *out);
/* The same for rules that learn from losses: forward passes only. */
int job_step_by_losses(struct job *j, struct step_result *out);
/* The part of a step of parameters that learn from losses beside others; the loader is where it was. */
int job_move_by_losses(struct job *j);
/* Curvature probes on the micro-batch that is fed: of drawn labels on the last of a batch, of Hessian-vector products on the
 * first. Collective. */
int job_probe(struct job *j, int64_t step);
int job_probe_hessian(struct job *j, int64_t step);
/* Mean loss over the validation data. */
int job_evaluate(struct job *j, double *loss, int64_t *counted);

/* Learning rate of update k (0-based): warm-up, then the schedule. */
double job_lr(const struct recipe *r, int64_t steps, int64_t k);

#endif
