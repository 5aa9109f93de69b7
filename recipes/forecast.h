/* What a run will need, told by running its own code without memory. */
#ifndef RECIPE_FORECAST_H
#define RECIPE_FORECAST_H
#include "recipes/job.h"

/* A step in the order of time; micro-batches one over another. */
enum forecast_phase { FORECAST_EMBED, FORECAST_BLOCKS, FORECAST_LOSS, FORECAST_BACK, FORECAST_BACK_EMBED, FORECAST_UPDATE, FORECAST_PHASES };
const char *forecast_phase_name(enum forecast_phase p);

struct forecast {
    struct tr_ledger ledger;       /* after one step; peak and at_peak are those of the run */
    int64_t peak_rss;              /* resident bytes expected at most */
    int64_t device;                /* bytes on the device, where one computes */
    int64_t state[TR_CATEGORIES];  /* bytes that stay between steps */
    struct tr_spill_counts disk;   /* memory.offload: bytes read and written in a step, and those of the files */
    int rank;                      /* the rank that this is of */
    uint64_t sent[2];              /* bytes that a rank sends, the mean over ranks: in the first step, and in the second */
    size_t held[2];                /* most bytes of gradients in each of the two */
    int64_t refresh;               /* updates from one refresh of the subspaces to the next, where gradients are summed in them; else 0 */
    size_t dealt_least, dealt_most;   /* see struct job */
    size_t peaks[2];               /* forecast_span: the least and the most peak of all ranks */
    size_t formula;                /* optimizer state by the kinds' formulas */
    struct { size_t total, at[TR_CATEGORIES]; } phase[FORECAST_PHASES];   /* the fullest moment of each */
};

/* Forecasts the run of an opened job whose data is loaded and whose network does not exist yet. The work is done in a
 * child process in dry mode: kernels do nothing, the ledger counts. Errors: those that the run itself would meet. */
int forecast_run(struct job *j, struct forecast *out);

/* The same as if the recipe were another: `set` is an override for recipe_set, or "optimizer.name=NAME" with the keys of
 * the other optimizer forgotten. NULL changes nothing. */
int forecast_with(struct job *j, const char *set, struct forecast *out);

/* The same of one rank of the recipe's data x pipeline ranks, which are not there. The job is of one rank. */
int forecast_of_rank(struct job *j, int rank, struct forecast *out);

/* The forecast of the run as it will be: with memory.recompute = auto the least recomputation that fits the budget is
 * chosen and kept in the job. TR_EBUDGET when nothing fits. */
int forecast_fit(struct job *j, struct forecast *out);

/* Ranks differ, those of a pipeline most: peaks. Collective. */
int forecast_span(struct forecast *f, struct tr_comm *c);

/* TR_EBUDGET when the forecast is above memory.budget: the largest items, and what would save how much, each forecast too. */
int forecast_check(struct job *j, const struct forecast *f);

/* What a run was told before it began, as plan.json in its folder, and read back (zeros when there is none). */
struct forecast_note { int64_t steps, parameters, peak, peak_rss, state, formula; };
int forecast_write(const struct job *j, const struct forecast *f, const char *folder);
int forecast_read(struct forecast_note *out, const char *folder);

/* Where the peak is. */
enum forecast_phase forecast_peak_phase(const struct forecast *f);

/* "weights 269 MB, optimizer 1076 MB, ..." of a ledger's peak, in a buffer of the caller. */
void forecast_text(char *out, size_t size, const struct tr_ledger *l);

/* What has a limit: bytes on the device where one computes, else resident ones; and the limit: memory.budget, and what is free on the
 * device; 0 for none. */
int64_t forecast_limited(const struct forecast *f);
int64_t forecast_limit(const struct job *j);

#endif
