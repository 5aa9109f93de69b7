/* Pipeline schedules as data: which pass of which micro-batch a rank does after which. Pure functions of sizes; nothing here
 * knows a model or sends a byte. A kind is a file and a line in the registry.
 *
 * Layers are dealt to ranks x chunks stages in a row; the kind says which rank has which stage. Passes:
 *   F  forward of a stage            needs F of the stage before
 *   B  backward, towards the input   needs B of the stage after; at the last stage its F, or with vocabulary parallelism
 *                                    S (alg2: one barrier) or T (alg1: two barriers) of all ranks
 *   W  backward, towards weights     needs B; only where the kind splits backward, else it is a part of B
 *   S  a rank's part of the head     needs F of the last stage: logits, softmax (alg2: and the gradient before scaling)
 *   T  its backward                  needs S of all ranks (the statistics of the whole vocabulary) */
#ifndef PAR_SCHEDULE_H
#define PAR_SCHEDULE_H
#include "libtrain/base/buf.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum par_pass_kind { PAR_F, PAR_B, PAR_W, PAR_S, PAR_T, PAR_PASSES };
enum par_vocabulary { PAR_VOCABULARY_NONE, PAR_VOCABULARY_ALG1, PAR_VOCABULARY_ALG2 };

struct par_pass { uint8_t kind, chunk; int32_t micro; };   /* chunk is 0 in S and T */

struct par_schedule_kind;
struct par_schedule {
    const struct par_schedule_kind *kind;
    int ranks, chunks, micros;          /* chunks: stages on a rank; micros: micro-batches */
    enum par_vocabulary vocabulary;
    struct par_pass *pass;              /* rank r does pass[row[r]] to pass[row[r + 1] - 1], in this order */
    int64_t *row;                       /* [ranks + 1] */
};

/* Names of the kinds, NULL ends; the sentence that says what one is. */
const char *const *par_schedule_names(void);
const char *par_schedule_summary(const char *name);

/* chunks: stages on a rank where the kind leaves a choice (interleaved), 0 = its own. Errors: TR_EINPUT (unknown name, sizes
 * that the kind cannot do, with the nearest that it can), TR_EFAIL (memory). Released by par_schedule_release. */
int par_schedule_make(struct par_schedule *out, const char *name, int ranks, int chunks, int micros, enum par_vocabulary vocabulary);
void par_schedule_release(struct par_schedule *s);

/* Where a chunk of a rank stands in the row of stages, and back. */
int par_stage(const struct par_schedule *s, int rank, int chunk);
int par_stage_rank(const struct par_schedule *s, int stage, int *chunk);
/* Backward is split into B and W. */
bool par_schedule_splits(const struct par_schedule *s);
/* Stages' activations that a rank holds at most, as the kind promises: the bound that par_schedule_check asks for. */
int par_schedule_bound(const struct par_schedule *s, int rank);

/* Whether the table can be run: every pass once, what a pass needs before it, an end that is reached even when each message
 * waits for both sides (no buffer anywhere), activations within the bound. Errors: TR_EINPUT with the first fault,
 * TR_EFAIL (memory). */
int par_schedule_check(const struct par_schedule *s);

/* The table with its messages: what a rank does one after another when a message waits for both sides. */
enum par_step_kind { PAR_COMPUTE, PAR_SEND, PAR_RECEIVE, PAR_GATHER, PAR_EMBED };
struct par_step {
    uint8_t kind;
    struct par_pass pass;      /* compute: what; else: whose result moves (gather: F = the last stage's output to all ranks,
                                  S = statistics, in alg2 with the input gradient, T = the input gradient); embed, where ranks
                                  share the vocabulary: F = rows of the embedding to the first stage, before its F, B = their
                                  gradients back, after its B */
    int32_t peer;              /* send, receive: the other rank */
};
struct par_steps { struct par_step *step; int64_t *row; };   /* [row[ranks]], as the passes of a schedule */

int par_schedule_lower(struct par_steps *out, const struct par_schedule *s);
/* Runs the steps without any buffer: both sides of a message are there at the same time, all ranks of a gather; a pass finds
 * what it needs. Errors: TR_EINPUT with who waits. */
int par_steps_check(const struct par_steps *t, const struct par_schedule *s);
void par_steps_release(struct par_steps *t);

/* What a step does to the bytes of its rank: the most there are beside those before it, and how many more there are behind it. */
struct par_bytes { double during, after; };
/* The most bytes that a rank's steps hold, message buffers and the pass under way among them. */
double par_steps_peak(const struct par_steps *t, int rank, struct par_bytes (*of)(void *self, const struct par_step *k), void *self);

/* What passes cost; any unit. */
struct par_costs {
    const double *seconds[PAR_PASSES];   /* F, B, W: [stages]; S, T: [ranks]. Without a split, B takes B and W */
    double send, gather;                 /* seconds of a message between stages on two ranks; of a barrier over all ranks */
    const double *held, *kept;           /* [stages] bytes from F until backward ends; the part that stays from B to W */
    const double *shard;                 /* [ranks] bytes from S to T; may be NULL without vocabulary parallelism */
};

struct par_simulation {
    double *begin, *end;                 /* [passes] */
    double *busy, *peak;                 /* [ranks] seconds at work; most bytes held */
    double seconds, bubble;              /* until the last pass ends; share of ranks x seconds without work */
};

/* Every pass as early as its rank and what it needs allow. The table must have passed par_schedule_check.
 * Errors: TR_EFAIL (memory). */
int par_schedule_simulate(struct par_simulation *out, const struct par_schedule *s, const struct par_costs *c);
void par_simulation_release(struct par_simulation *m);

/* The most bytes a rank holds; order alone decides it. */
double par_schedule_peak(const struct par_schedule *s, const struct par_costs *c, int rank);

/* A pass a word, a rank a line: "F0 F1 B0 ..."; chunks as letters after the number ("F0a"). */
int par_schedule_text(struct tr_buf *out, const struct par_schedule *s);
/* The simulated schedule over time: `width` columns of text, and SVG that stands alone, with the bytes held under each rank. */
int par_schedule_draw(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, int width);
int par_schedule_svg(struct tr_buf *out, const struct par_schedule *s, const struct par_simulation *m, const struct par_costs *c, const char *title);

#endif
