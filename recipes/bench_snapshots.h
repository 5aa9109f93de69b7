/* What snapshots in memory cost, measured within `train bench`: steps that follow one beside steps that do not. */
#ifndef RECIPE_BENCH_SNAPSHOTS_H
#define RECIPE_BENCH_SNAPSHOTS_H
#include "recipes/job.h"
#include <jansson.h>

struct bench_snapshots {
    char *folder;                        /* of its own, in the run folder; NULL where checkpoint.memory_every = 0 */
    double *with, *without, *block, *copy;   /* seconds: of steps; that they waited; from begin to a complete version */
    int64_t n_with, n_without;
    bool begun;                          /* a version is copied in the step that comes */
};

/* Before the job is opened: the run folder is replaced by one that is removed again. */
int bench_snapshots_open(struct bench_snapshots *b, struct recipe *r);
/* After job_training: shared memory and keeper. Steps at most. */
int bench_snapshots_start(struct bench_snapshots *b, struct job *j, int64_t steps);
/* After a step of so many seconds (not the first), and, last thing before the next one, the version that is due. */
void bench_snapshots_step(struct bench_snapshots *b, struct job *j, double seconds);
int bench_snapshots_begin(struct bench_snapshots *b, struct job *j);
/* Writes one version to disk and adds "checkpoint" to o; nothing where there are no snapshots. */
int bench_snapshots_report(struct bench_snapshots *b, struct job *j, json_t *o);
/* After job_release. */
void bench_snapshots_close(struct bench_snapshots *b);

/* The middle of n > 0 numbers, which are sorted. */
double bench_median(double *x, int64_t n);

#endif
