/* What a kind of schedule is, and what the files of this folder share. */
#ifndef PAR_SCHEDULE_IMPL_H
#define PAR_SCHEDULE_IMPL_H
#include "parallel/schedule/schedule.h"

enum par_map { PAR_LOOP, PAR_VEE };   /* stage chunk * ranks + rank; every second chunk backwards */

struct par_schedule_kind {
    const char *name, *summary;
    enum par_map map;
    int chunks;                                           /* 0: by choice, from 2 */
    bool split;
    int (*fits)(const struct par_schedule *s);            /* TR_EINPUT with the nearest sizes; NULL = all sizes */
    int (*bound)(const struct par_schedule *s, int rank);
    /* One of both. slot: when a pass begins in a time of the kind's own, in which everything that it needs began earlier;
     * the order of a rank is the order of slots. make: fills s->pass and s->row. */
    int64_t (*slot)(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro);
    int (*make)(struct par_schedule *s);
};

extern const struct par_schedule_kind par_1f1b, par_interleaved, par_zero_bubble, par_v_half, par_v_min;

/* Barriers between the last F and the first B of a micro-batch: 0, 2 (alg1) or 1 (alg2). */
int par_barriers(const struct par_schedule *s);
/* Passes of a rank, and the kinds of pass that there are. */
int64_t par_row_size(const struct par_schedule *s);
bool par_has(const struct par_schedule *s, enum par_pass_kind pass);

/* Where a pass is in an index of all passes. */
int64_t par_key(const struct par_schedule *s, enum par_pass_kind pass, int rank, int chunk, int micro);
int64_t par_keys(const struct par_schedule *s);

struct par_need { enum par_pass_kind pass; int rank, chunk; };   /* of the same micro-batch */
/* What a pass of a rank needs; need has room for ranks + 1. Returns how many. */
int par_needs(const struct par_schedule *s, int rank, const struct par_pass *p, struct par_need *need);

/* "B12b of rank 3", for messages. */
const char *par_pass_text(char *out, size_t size, const struct par_schedule *s, int rank, const struct par_pass *p);

/* round[i] = the round in which pass i runs when each rank does a pass a round as soon as what it needs was done in an earlier
 * one. Errors: TR_EINPUT where nobody can go on, with who waits for what. Passes must be there once each. */
int par_rounds(const struct par_schedule *s, int32_t *round);

/* Bytes that a pass takes at its begin; *back: those it gives back at its end. */
double par_pass_bytes(const struct par_schedule *s, const struct par_costs *c, int rank, const struct par_pass *p, double *back);

#endif
