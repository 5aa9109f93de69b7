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
    int64_t sent;                           /* bytes that this rank sent in the step */
    double wait_s;                          /* seconds that it waited for others */
};

struct metrics;
/* Opens folder/metrics.jsonl, keeping the lines of steps up to `after`. after 0: starts afresh. */
int metrics_open(struct metrics **out, const char *folder, int64_t after);
int metrics_write(struct metrics *m, const struct metrics_row *row);
void metrics_close(struct metrics *m);

/* Reads the file back, a row for each step (the last line of a step counts). The caller frees *rows. */
int metrics_read(struct metrics_row **rows, size_t *n, const char *folder);

#endif
