/* One visitor, many readers: whoever holds state lists it once; snapshots, shards, forecasts and reports read the list. */
#ifndef TR_VISIT_H
#define TR_VISIT_H
#include "libtrain/tensor/tensor.h"

struct tr_visitor {
    void *self;
    /* A named tensor ("param/NAME", "optimizer/NAME/m", ...); may be overwritten through it when state is restored. */
    int (*tensor)(void *self, const char *name, struct tr_tensor *t);
    /* A named run of plain bytes in host memory (counters, positions): `count` numbers of 8 bytes. */
    int (*words)(void *self, const char *name, uint64_t *words, int64_t count);
    int64_t step;      /* when state is restored: the step after which it was saved; else 0 */
    bool only_reads;   /* nothing is overwritten: state that lives in a file need not be written back */
};

/* The same state as a rank has it: each row of every tensor is listed by one rank, where its bytes are, and nothing is sent.
 * n may be 0. */
struct tr_owned {
    void *self;
    int rank, size;
    /* Rows [from, from + n) of t's first dimension are rows [begin, begin + n) of `whole`. What changes in one update has the
     * same `group`, its parameter's index, and is listed together. */
    int (*rows)(void *self, int64_t group, const char *name, const struct tr_tensor *t, int64_t from, int64_t n, int64_t begin, int64_t whole);
    int (*words)(void *self, int64_t group, const char *name, const uint64_t *words, int64_t count);   /* count 0: another rank's */
};

/* Lists this rank's share of a tensor that every rank has whole: even parts of its first dimension; a vector is one rank's. */
int tr_owned_share(const struct tr_owned *v, int64_t group, const char *name, const struct tr_tensor *t);
/* The same of t that are rows [begin, begin + t->dim[0]) of `whole`, which `holders` ranks have, this one the holder-th of them. */
int tr_owned_part(const struct tr_owned *v, int64_t group, const char *name, const struct tr_tensor *t, int64_t begin, int64_t whole, int holder, int holders);

#endif
