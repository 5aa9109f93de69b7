/* metrics.jsonl: one object a step, appended and flushed at once. After a resume, lines of later steps are dropped. */
#ifndef RECIPE_METRICS_H
#define RECIPE_METRICS_H
#include "libtrain/base/mem.h"

struct metrics_row {
    int64_t step, tokens;                   /* tokens: trained on since the start of the run */
    double loss, lr, grad_norm, tokens_per_s, step_s, checkpoint_block_s;
    double valid_loss;                      /* NAN when not evaluated */
    struct tr_ledger memory;
    size_t peak_rss;
    int ranks;                              /* the rest only where there are several */
    int64_t sent;                           /* bytes that a rank sent in the step, the mean over ranks */
    double wait_s;                          /* seconds that it waited for others */
    size_t peaks[2], rsss[2];               /* smallest and largest peak and peak_rss of all ranks */
};

struct metrics;
/* Opens folder/metrics.jsonl, keeping the lines of steps up to `after`. after 0: starts afresh. */
int metrics_open(struct metrics **out, const char *folder, int64_t after);
/* Appends a row. again: the next call writes the same step once more, in the place of this row; so a step is on record before
 * its snapshot is, and a run that goes on from there lacks no line. */
int metrics_write(struct metrics *m, const struct metrics_row *row, bool again);
void metrics_close(struct metrics *m);

/* Reads the file back, a row for each step (the last line of a step counts). The caller frees *rows. */
int metrics_read(struct metrics_row **rows, size_t *n, const char *folder);

/* What the rows come to. NAN where there is nothing to say. */
struct metrics_sum {
    double first, last, mean_last;          /* training loss; the mean over the last tenth of the steps */
    double valid, best_valid;               /* newest and lowest validation loss */
    double tokens_per_s, seconds;           /* median; training steps alone */
    size_t peak, peak_rss, state;           /* largest; bytes that the optimizer keeps between steps */
};
int metrics_sum_up(struct metrics_sum *out, const struct metrics_row *rows, size_t n);

#endif
